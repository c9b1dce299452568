"""tests/readme/run.py, which follows README's "Try it" in a container: what it reads, without the container."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "readme" / "run.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("readme_run", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_lines_to_type_stand_in_the_readme(script: ModuleType) -> None:
    """Under Try it, with what they need beside Python."""
    lines = script.try_it()
    assert lines["demo"] == "make demo"
    assert lines["status"] == "make status PROJECT=1"
    assert lines["doctor"] == "make doctor"


def test_what_the_demo_prints_is_read_as_a_person_reads_it(script: ModuleType) -> None:
    """Two addresses, and whom to log in as at each; without one of them it is said which text was printed."""
    text = """
  label here   http://127.0.0.1:8080/projects/1/data
  log in as    demo@example.com   password first
  dashboard    http://127.0.0.1:9090/projects/1
               user label-studio   password second
  logs         /home/newcomer/.run/logs
"""
    assert script.read_told(text) == {
        "label here": "http://127.0.0.1:8080/projects/1/data",
        "dashboard": "http://127.0.0.1:9090/projects/1",
        "email": "demo@example.com",
        "password": "first",
        "user": "label-studio",
        "dashboard password": "second",
    }
    with pytest.raises(script.StepError, match="two addresses"):
        script.read_told(text.replace("dashboard", "elsewhere"))


def test_the_time_to_the_first_label_counts_each_step_once(script: ModuleType) -> None:
    """2 + 50 + 30 + 20 for the demo, 5 + 1 in the browser; no line that adds up, nor what comes later."""
    steps: list[tuple[str, float]] = [
        ("git clone", 2),
        ("first make demo: packages of the service", 50),
        ("first make demo: Label Studio installed", 30),
        ("first make demo: all started, images embedded, first batch chosen", 20),
        ("first make demo: until it is ready", 100),
        ("log in", 5),
        ("choose a label by its key and submit it", 1),
        ("see the next image", 7),
        ("second make demo: until it is ready", 9),
    ]
    rows: list[dict[str, Any]] = [{"step": step, "s": s, "downloaded_mb": 1.0, "found": ""} for step, s in steps]
    found = script.summary(rows)
    assert found["clone_to_first_label_s"] == 108
    assert found["of_which_packages_s"] == 80
    assert found["downloaded_mb"] == 6
    assert found["second_start_s"] == 9
