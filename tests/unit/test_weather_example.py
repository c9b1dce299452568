"""examples/weather/run.sh runs as it stands, on scikit-learn's digits."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from backend.adapters.registry import load_head
from backend.demo import write_digits
from backend.formats.lightly_predictions import check_predictions, read_predictions

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "weather" / "run.sh"


def few_digits(folder: Path, every: Path) -> None:
    """Three of the classes, forty images each, beside each other as in the original dataset: zero0.png."""
    folder.mkdir()
    for digit, name in enumerate(("zero", "one", "two")):
        for number, path in enumerate(sorted((every / str(digit)).iterdir())[:40]):
            shutil.copy(path, folder / f"{name}{number}.png")


def run(tmp_path: Path, *arguments: Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("BACKBONE", "DATA_DIR"))}
    settings = {"PYTHON": sys.executable, "WORK": str(tmp_path / "work"), "N": "10", "BACKBONE": "descriptor"}
    return subprocess.run(
        [SCRIPT, *arguments],
        env={**environment, **settings},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def test_the_tutorial_runs_from_end_to_end(tmp_path: Path) -> None:
    """Twice: the second time with the first run's answers as files that somebody exported."""
    write_digits(tmp_path / "digits")
    few_digits(tmp_path / "images", tmp_path / "digits")
    done = run(tmp_path, tmp_path / "images")
    assert done.returncode == 0, done.stderr
    work = tmp_path / "work"
    assert len(json.loads((work / "full_train.json").read_text())) == 96
    assert check_predictions(work / "lightly") == []
    predictions = read_predictions(work / "lightly", "weather-classification")
    assert sorted(predictions.names) == json.loads((work / "full_train.json").read_text())
    assert len(list((work / "samples_for_labelling").iterdir())) == 20
    assert load_head(work / "model-1.safetensors")[0].classes == ("one", "two", "zero")
    rows = [line.split() for line in done.stdout.splitlines()[-2:]]
    assert [(row[0], row[1], row[2]) for row in rows] == [("10", "60.0", "19.0"), ("20", "90.0", "44.2")]
    assert float(rows[1][4]) > 50  # three classes: chance is 33
    assert "answers, taken from the classes" in done.stdout

    given = [shutil.copy(work / f"annotation-{n}.json", tmp_path / f"given-{n}.json") for n in (0, 1)]
    again = run(tmp_path, tmp_path / "images", *given)
    assert again.returncode == 0, again.stderr
    assert "answers, taken from the classes" not in again.stdout
    assert again.stdout.splitlines()[-2:] == done.stdout.splitlines()[-2:]


def test_one_file_of_annotations_is_refused(tmp_path: Path) -> None:
    """Before anything is done."""
    done = run(tmp_path, tmp_path, tmp_path / "annotation-0.json")
    assert done.returncode == 2
    assert "expected two" in done.stderr
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize("step", ["", "draw"])
def test_an_unknown_step_is_refused(step: str) -> None:
    """With those that there are."""
    done = subprocess.run(
        [sys.executable, SCRIPT.with_name("steps.py"), step], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert f"there is no step {step!r}" in done.stderr
