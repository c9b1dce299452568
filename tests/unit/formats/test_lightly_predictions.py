"""Predictions as Lightly reads them: the layout of its bucket, and everything that does not fit it is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from backend.errors import FileFormatError
from backend.formats.lightly_predictions import check_predictions, read_predictions, write_predictions

CLASSES = ["cloudy", "rain"]
NAMES = ["sub/a.b.jpg", "é.png"]
ROWS = np.array([[0.25, 0.75], [1.0, 0.0]], dtype=np.float32)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_predictions(tmp_path, "weather", CLASSES, NAMES, ROWS)
    return tmp_path


def test_the_layout_is_that_of_the_bucket(folder: Path) -> None:
    """A list of tasks, a schema, and a file for each image where the image is."""
    root = folder / ".lightly" / "predictions"
    files = {path.relative_to(root).as_posix(): json.loads(path.read_text("utf-8")) for path in root.rglob("*.json")}
    assert files == {
        "tasks.json": ["weather"],
        "weather/schema.json": {
            "task_type": "classification",
            "categories": [{"id": 0, "name": "cloudy"}, {"id": 1, "name": "rain"}],
        },
        "weather/sub/a.b.json": {
            "file_name": "sub/a.b.jpg",
            "predictions": [{"category_id": 1, "score": 0.75, "probabilities": [0.25, 0.75]}],
        },
        "weather/é.json": {
            "file_name": "é.png",
            "predictions": [{"category_id": 0, "score": 1.0, "probabilities": [1.0, 0.0]}],
        },
    }
    assert check_predictions(folder) == []


def test_what_is_written_is_read(folder: Path) -> None:
    """Every number of it."""
    found = read_predictions(folder, "weather")
    assert dict(zip(found.names, found.probabilities.tolist(), strict=True)) == dict(
        zip(NAMES, ROWS.tolist(), strict=True)
    )
    assert found.classes == ("cloudy", "rain")


def test_written_again_old_images_are_gone_and_other_tasks_stay(folder: Path) -> None:
    """The list names each task once."""
    write_predictions(folder, "colour", ["red"], ["x.png"], np.array([[1.0]]))
    write_predictions(folder, "weather", CLASSES, ["new.png"], ROWS[:1])
    assert json.loads((folder / ".lightly/predictions/tasks.json").read_text()) == ["weather", "colour"]
    assert read_predictions(folder, "weather").names == ("new.png",)
    assert read_predictions(folder, "colour").names == ("x.png",)
    assert check_predictions(folder) == []


@pytest.mark.parametrize(
    ("names", "classes", "rows", "task", "reason"),
    [
        (["a.jpg", "a.png"], CLASSES, ROWS, "t", "same file a.json"),
        (["a.jpg", "a.jpg"], CLASSES, ROWS, "t", "named twice"),
        (["../a.jpg", "b.jpg"], CLASSES, ROWS, "t", "no path below"),
        (["schema.jpg", "b.jpg"], CLASSES, ROWS, "t", "place of the schema"),
        (NAMES, ["cloudy"], ROWS, "t", r"\(2, 1\)"),
        (NAMES, ["cloudy", "cloudy"], ROWS, "t", "named twice"),
        (NAMES, CLASSES, ROWS * 2, "t", "between 0 and 1"),
        (NAMES, CLASSES, ROWS / 2, "t", "have the sum 0.5"),
        (NAMES, CLASSES, ROWS * np.nan, "t", "between 0 and 1"),
        (NAMES, CLASSES, ROWS, "a/b", "no name for a task"),
    ],
)
def test_what_cannot_be_written_is_refused_before_anything_is(
    tmp_path: Path, names: list[str], classes: list[str], rows: NDArray[Any], task: str, reason: str
) -> None:
    """And leaves nothing behind."""
    with pytest.raises(FileFormatError, match=reason):
        write_predictions(tmp_path, task, classes, names, rows)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("tasks.json", {}, "no list of the names"),
        ("tasks.json", ["weather", "gone"], "schema.json cannot be read"),
        ("tasks.json", ["other"], "is not in tasks.json"),
        ("weather/schema.json", {"task_type": "object-detection"}, "classification"),
        ("weather/schema.json", {"task_type": "classification", "categories": [{"id": 1, "name": "x"}]}, "0, 1, 2"),
        ("weather/é.json", {"file_name": "é.png"}, "no file_name or no predictions"),
        ("weather/é.json", {"file_name": "e.png", "predictions": []}, "should be e.json"),
        ("weather/é.json", {"file_name": "é.png", "predictions": []}, "has 0 predictions"),
        (
            "weather/é.json",
            {"file_name": "é.png", "predictions": [{"category_id": 0, "probabilities": [0.5, 0.6]}]},
            "have the sum 1.1",
        ),
        (
            "weather/é.json",
            {"file_name": "é.png", "predictions": [{"category_id": 0, "probabilities": [0.4, 0.6]}]},
            "not the likeliest",
        ),
        (
            "weather/é.json",
            {"file_name": "é.png", "predictions": [{"category_id": 0, "probabilities": [1]}]},
            "no list of 2 probabilities",
        ),
    ],
)
def test_what_is_not_as_the_format_has_it_is_named(folder: Path, file: str, content: object, reason: str) -> None:
    """With the file, and everything else is still looked at."""
    (folder / ".lightly" / "predictions" / file).write_text(json.dumps(content), encoding="utf-8")
    problems = check_predictions(folder)
    assert [problem for problem in problems if reason in problem], problems


def test_a_damaged_prediction_is_not_read(folder: Path) -> None:
    """Nothing is made of half of it."""
    (folder / ".lightly/predictions/weather/é.json").write_text("{")
    with pytest.raises(FileFormatError, match="no JSON"):
        read_predictions(folder, "weather")
