"""Files of labels → head, without Label Studio: our learner on a folder's embeddings, and what it predicts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from backend.errors import FileFormatError, SelectionError
from backend.formats.annotations import read_annotations
from backend.formats.lightly_predictions import LightlyPredictions
from backend.formats.names import match_names
from backend.formats.simple import read_json, read_simple
from backend.learning.head import Head, fit_and_evaluate
from backend.learning.pool import Pool
from backend.lightly import Dataset


@dataclass(frozen=True, eq=False)
class Learned:
    """A head, its accuracies (0..1), and what it predicts for the images that are not for validation.

    expected_accuracy: cross-validated on the labels; None with too few of them.
    validation_accuracy: None without validation images.
    names: (N,), `probabilities` (N, C), columns as the head's classes.
    """

    head: Head
    n_labels: int
    n_unlabeled: int
    training_accuracy: float
    expected_accuracy: float | None
    n_validation: int
    validation_accuracy: float | None
    names: tuple[str, ...]
    probabilities: NDArray[np.float64]


def read_labels(
    paths: Sequence[Path],
    names: Sequence[str],
    *,
    control: str | None = None,
    image_field: str | None = None,
) -> dict[str, str]:
    """Name → label, of files as Label Studio exports them or as `write_simple` does; a later file has precedence.

    Raises FileFormatError for a file that is none, or has an image with several labels, and UnmatchedError for images
    that are not known for certain among `names`.
    """
    found: dict[str, str] = {}
    for path in paths:
        labeled = read_annotations(path, control=control, image_field=image_field)
        matched = match_names([reference for reference, labels in labeled.labels.items() if labels], names)
        for reference, name in matched.items():
            found[name] = _only_label(path, reference, labeled.labels[reference])
    if not found:
        raise FileFormatError(f"{', '.join(map(str, paths))}: no image has a label; label some and export again")
    return found


def read_validation(path: Path, names: Sequence[str]) -> dict[str, str]:
    """Name → label, of a file such as `split` writes, name → list of one class. Raises as `read_labels`."""
    labels = read_simple(path)
    matched = match_names([name for name, given in labels.items() if given], names)
    return {name: _only_label(path, reference, labels[reference]) for reference, name in matched.items()}


def learn(
    dataset: Dataset,
    labels: Mapping[str, str],
    *,
    validation: Mapping[str, str],
    n_details: int,
    random_state: int,
) -> Learned:
    """Fits the service's learner: to the labels, and to how all images that are not for validation lie to each other.

    Raises SelectionError for labels of one class only, and of images that are kept for validation.
    """
    shared = sorted(labels.keys() & validation.keys())
    if shared:
        raise SelectionError(
            f"{shared[0]!r} has a label to train on and is kept for validation ({len(shared)} such images); leave it "
            "out of one of both"
        )
    classes = sorted(set(labels.values()))
    if len(classes) < 2:
        raise SelectionError(f"all {len(labels)} labels are {classes[0]!r}; label images of two classes or more")
    is_kept = np.array([name in validation for name in dataset.names])
    names = tuple(name for name in dataset.names if name not in validation)
    pool = Pool(dataset.embeddings[~is_kept], n_details)
    row_of = {name: row for row, name in enumerate(names)}
    labeled = sorted(labels)
    rows = [row_of[name] for name in labeled]
    fitted = fit_and_evaluate(pool, rows, [labels[name] for name in labeled], random_state=random_state)
    probabilities = fitted.head.predict_proba(pool.embeddings)
    top = np.asarray(fitted.head.classes)[probabilities.argmax(axis=1)]
    right_in_training = [top[row] == labels[name] for name, row in zip(labeled, rows, strict=True)]
    validation_accuracy = None
    if validation:
        judged = [name for name in dataset.names if name in validation]
        guesses = fitted.head.predict_proba(dataset.embeddings[is_kept]).argmax(axis=1)
        right = [fitted.head.classes[guess] == validation[name] for guess, name in zip(guesses, judged, strict=True)]
        validation_accuracy = float(np.mean(right))
    return Learned(
        fitted.head,
        len(labeled),
        len(names) - len(labeled),
        float(np.mean(right_in_training)),
        fitted.evaluation.accuracy if fitted.evaluation else None,
        len(validation),
        validation_accuracy,
        names,
        probabilities,
    )


def only_task(folder: Path) -> str:
    """The name of the one task that a folder has predictions of. Raises FileFormatError if there are several."""
    listed = folder / ".lightly" / "predictions" / "tasks.json"
    tasks = read_json(listed)
    if not isinstance(tasks, list) or len(tasks) != 1 or not isinstance(tasks[0], str):
        raise FileFormatError(f"{listed} has {json.dumps(tasks, ensure_ascii=False)}; say which one with --task")
    return tasks[0]


def aligned(predictions: LightlyPredictions, names: Sequence[str]) -> NDArray[np.float64]:
    """The probabilities (N, C) of these names, NaN where there are none.

    Raises SelectionError unless one of them has some.
    """
    rows = np.full((len(names), len(predictions.classes)), np.nan)
    row_of = {name: row for row, name in enumerate(predictions.names)}
    for row, name in enumerate(names):
        if name in row_of:
            rows[row] = predictions.probabilities[row_of[name]]
    if not np.isfinite(rows).any():
        raise SelectionError(
            f"no image has a prediction of task {predictions.task_name!r}; give the folder that its {len(row_of)} "
            "predictions were made of"
        )
    return rows


def _only_label(path: Path, reference: str, labels: Sequence[str]) -> str:
    if len(set(labels)) > 1:
        raise FileFormatError(
            f"{path}: {reference!r} has the labels {', '.join(map(repr, labels))}; expected one for each image"
        )
    return labels[0]
