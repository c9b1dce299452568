"""docs/lightly-api.md: its program runs as it stands, and its tables have every name and setting of the code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from backend.lightly import SamplingMethod, ScorerObjectDetection
from backend.lightly.selection import COMBINATIONS, DISTRIBUTIONS, INPUTS, OPERATIONS, STRATEGIES

PAGE = Path(__file__).resolve().parents[3] / "docs" / "lightly-api.md"


def test_the_program_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All blocks in their order, in an empty folder; the accuracies are those that the page names."""
    text = PAGE.read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"(?ms)^```python\n(.*?)^```", text))
    monkeypatch.chdir(tmp_path)
    defined: dict[str, Any] = {}
    exec(compile(code, str(PAGE), "exec"), defined)
    told_accuracies = re.findall(r"(\w+_accuracy) = .*  # (0\.\d\d)\b", code)
    assert len(told_accuracies) == 3
    for name, told in told_accuracies:
        assert defined[name] == pytest.approx(float(told), abs=0.015), name
    assert sorted(path.name for path in (tmp_path / "tags").iterdir()) == [
        "al-iteration-1.json",
        "al-iteration-2.json",
        "initial-selection.json",
    ]
    assert (tmp_path / "to-label.txt").read_text().splitlines() == defined["new"]


def test_the_tables_have_every_name() -> None:
    """Methods, scores, strategies with their inputs and settings, inputs with theirs."""
    text = PAGE.read_text(encoding="utf-8")
    rows = {match[1]: match[0] for match in re.finditer(r"(?m)^\| `(\w+)` \|.*$", text)}
    assert set(SamplingMethod) | set(ScorerObjectDetection.score_names()) | set(STRATEGIES) | set(INPUTS) == set(rows)
    for strategy, settings in STRATEGIES.items():
        for name in (*settings, *COMBINATIONS[strategy]):
            assert f"`{name}`" in rows[strategy], f"{strategy}: {name}"
    for input_type, settings in INPUTS.items():
        for name in settings:
            assert f"`{name}`" in rows[input_type], f"{input_type}: {name}"
    assert all(f"`{name}`" in text for name in (*OPERATIONS, *DISTRIBUTIONS))
