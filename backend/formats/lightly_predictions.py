"""Predictions in the layout that Lightly reads from a bucket: `.lightly/predictions` with a folder for each task.

    FOLDER/.lightly/predictions/tasks.json                     ["weather"]
    FOLDER/.lightly/predictions/weather/schema.json            task_type and categories
    FOLDER/.lightly/predictions/weather/sub/cloudy1.json       of the image sub/cloudy1.jpg

https://docs.lightly.ai/docs/prediction-format
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backend.errors import FileFormatError
from backend.formats.simple import read_json, write_whole

SUM_WITHIN = 1e-3
"""How far the probabilities of an image may be from a sum of 1."""


@dataclass(frozen=True)
class LightlyPredictions:
    """The predictions of one classification task.

    probabilities: (N, C), rows as `names`, columns as `classes`.
    """

    task_name: str
    classes: tuple[str, ...]
    names: tuple[str, ...]
    probabilities: NDArray[np.float64]


def write_predictions(
    folder: Path,
    task_name: str,
    classes: Sequence[str],
    names: Sequence[str],
    probabilities: NDArray[Any],
) -> None:
    """Writes one file for each image, the schema, and the task's name into the list of tasks.

    `names` are the images' paths with '/', relative to their folder; `probabilities` (N, C), each row with a sum of 1.
    Other tasks stay as they are; of this one files of images that are not named now are deleted. Raises
    FileFormatError, and then nothing is written.
    """
    rows = np.asarray(probabilities, dtype=np.float64)
    _check_task_name(task_name)
    if rows.shape != (len(names), len(classes)):
        raise FileFormatError(
            f"the probabilities have the shape {rows.shape}, and {len(names)} images of {len(classes)} classes need "
            f"({len(names)}, {len(classes)})"
        )
    if len(set(classes)) != len(classes) or not classes:
        raise FileFormatError(f"the classes {list(classes)} are none, or some are named twice; each needs its own name")
    files = _files_of(names)
    if "schema.json" in files.values():
        raise FileFormatError("an image called 'schema' would take the place of the schema; rename it")
    for name, row in zip(names, rows, strict=True):
        if problem := _problem(row.tolist()):
            raise FileFormatError(f"the probabilities of {name!r} {problem}")
    root = folder / ".lightly" / "predictions"
    try:
        tasks = read_json(root / "tasks.json") if (root / "tasks.json").exists() else []
        if not isinstance(tasks, list):
            raise FileFormatError(f"{root / 'tasks.json'} is no list of names; delete it and write all tasks anew")
        target = root / task_name
        target.mkdir(parents=True, exist_ok=True)
        categories = [{"id": number, "name": name} for number, name in enumerate(classes)]
        _write(target / "schema.json", {"task_type": "classification", "categories": categories})
        for name, row in zip(names, rows, strict=True):
            file = target / files[name]
            file.parent.mkdir(parents=True, exist_ok=True)
            found = {"category_id": int(row.argmax()), "score": float(row.max()), "probabilities": row.tolist()}
            _write(file, {"file_name": name, "predictions": [found]})
        kept = {target / file for file in files.values()} | {target / "schema.json"}
        for file in target.rglob("*.json"):
            if file not in kept:
                file.unlink()
        # Last, so that a task is listed once all of it is there.
        _write(root / "tasks.json", [*tasks, *([] if task_name in tasks else [task_name])])
    except OSError as exc:
        raise FileFormatError(f"{exc.filename} cannot be written ({exc.strerror}); name a folder you own") from exc


def read_predictions(folder: Path, task_name: str) -> LightlyPredictions:
    """The predictions of one task, by the names of their images. Raises FileFormatError for the first thing wrong."""
    _check_task_name(task_name)
    problems: list[str] = []
    found = _read_task(folder / ".lightly" / "predictions", task_name, problems)
    if problems or found is None:
        raise FileFormatError(problems[0] if problems else f"{task_name!r} cannot be read")
    return found


def check_predictions(folder: Path) -> list[str]:
    """All that is not as the format has it, a sentence each; an empty list: all is well.

    Looked at are the list of tasks, each task's schema, and each image's file: its place, its category, and its
    probabilities. Images without a prediction, and predictions of images that are not there, cannot be told here.
    """
    root = folder / ".lightly" / "predictions"
    try:
        tasks = read_json(root / "tasks.json")
    except FileFormatError as exc:
        return [str(exc)]
    if not isinstance(tasks, list) or not tasks or not all(isinstance(name, str) for name in tasks):
        return [f"{root / 'tasks.json'} is no list of the names of tasks"]
    problems: list[str] = []
    for name in tasks:
        try:
            _check_task_name(name)
        except FileFormatError as exc:
            problems.append(str(exc))
            continue
        _read_task(root, name, problems)
    unlisted = {path.name for path in root.iterdir() if path.is_dir()} - set(tasks)
    problems += [f"the folder {root / name} is not in tasks.json" for name in sorted(unlisted)]
    return problems


def _read_task(root: Path, task_name: str, problems: list[str]) -> LightlyPredictions | None:
    target = root / task_name
    try:
        classes = _classes(target / "schema.json")
    except FileFormatError as exc:
        problems.append(str(exc))
        return None
    names: list[str] = []
    rows: list[list[float]] = []
    for file in sorted(target.rglob("*.json")):
        if file == target / "schema.json":
            continue
        try:
            raw = read_json(file)
            name, row = _prediction(raw, len(classes), str(file.relative_to(target).as_posix()))
        except FileFormatError as exc:
            text = str(exc)
            problems.append(text if str(file) in text else f"{file} {text}")
            continue
        names.append(name)
        rows.append(row)
    return LightlyPredictions(
        task_name, classes, tuple(names), np.array(rows, dtype=np.float64).reshape(len(rows), len(classes))
    )


def _classes(path: Path) -> tuple[str, ...]:
    raw = read_json(path)
    if not isinstance(raw, dict) or raw.get("task_type") != "classification":
        raise FileFormatError(f"{path} is no schema with the task_type 'classification'")
    categories: Any = raw.get("categories")
    whole = isinstance(categories, list) and all(
        isinstance(item, dict) and isinstance(item.get("name"), str) and type(item.get("id")) is int
        for item in categories
    )
    if not whole or not categories or [item["id"] for item in categories] != list(range(len(categories))):
        raise FileFormatError(f"{path}: its categories are not a list of names with the ids 0, 1, 2, …")
    return tuple(item["name"] for item in categories)


def _prediction(raw: object, n_classes: int, place: str) -> tuple[str, list[float]]:
    name = raw.get("file_name") if isinstance(raw, dict) else None
    predictions = raw.get("predictions") if isinstance(raw, dict) else None
    if not isinstance(name, str) or not isinstance(predictions, list):
        raise FileFormatError("has no file_name or no predictions")
    if _file_of(name) != place:
        raise FileFormatError(f"is of {name!r}, whose file should be {_file_of(name)}")
    if len(predictions) != 1 or not isinstance(predictions[0], dict):
        raise FileFormatError(f"has {len(predictions)} predictions; a classification has one for each image")
    row, category = predictions[0].get("probabilities"), predictions[0].get("category_id")
    if not isinstance(row, list) or len(row) != n_classes or not all(type(value) in (int, float) for value in row):
        raise FileFormatError(f"has no list of {n_classes} probabilities, one for each category")
    if problem := _problem(row):
        raise FileFormatError(f"has probabilities that {problem}")
    if type(category) is not int or not 0 <= category < n_classes or row[category] < max(row):
        raise FileFormatError(f"has the category_id {category!r}, which is not the likeliest category")
    return name, [float(value) for value in row]


def _problem(row: Sequence[float]) -> str | None:
    if not all(math.isfinite(value) and 0 <= value <= 1 for value in row):
        return "are not all between 0 and 1"
    total = math.fsum(row)
    return f"have the sum {total:g}; it should be 1" if abs(total - 1) > SUM_WITHIN else None


def _files_of(names: Sequence[str]) -> dict[str, str]:
    """Name of an image → that of its file; refused where two have the same, such as a.jpg and a.png."""
    files: dict[str, str] = {}
    owner: dict[str, str] = {}
    for name in names:
        parts = PurePosixPath(name).parts
        if not parts or name.startswith("/") or ".." in parts:
            raise FileFormatError(f"{name!r} is no path below a folder; give names relative to the images' folder")
        files[name] = file = _file_of(name)
        if owner.setdefault(file, name) != name:
            raise FileFormatError(f"{owner[file]!r} and {name!r} would have the same file {file}; rename one of them")
    if len(files) != len(names):
        raise FileFormatError("an image is named twice; name each once")
    return files


def _file_of(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(".json")) if PurePosixPath(name).name else ""


def _check_task_name(name: str) -> None:
    if not name or name in (".", "..") or name != name.strip() or any(sign in name for sign in "/\\"):
        raise FileFormatError(f"{name!r} is no name for a task; it becomes a folder's, so give one without '/'")


def _write(path: Path, content: object) -> None:
    write_whole(path, (json.dumps(content, ensure_ascii=False) + "\n").encode())
