"""Files of labels → head, without Label Studio: our learner on a folder's embeddings, and what it predicts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backend.adapters.backbones import Backbone
from backend.errors import FileFormatError, SelectionError, VersionUnusableError
from backend.formats.annotations import LabeledFiles, read_annotations
from backend.formats.lightly_predictions import LightlyPredictions
from backend.formats.names import match_names
from backend.formats.simple import read_json, read_simple
from backend.labels import Label, text_of
from backend.learning.head import Head, fit_and_evaluate
from backend.learning.label_sets import can_be_told_apart, share_right
from backend.learning.pool import Pool
from backend.lightly import Dataset, ScorerClassification
from backend.loop.apply import Model, backbone_of
from backend.loop.judgement import ON_VALIDATION, OUT_OF_FOLD, JudgedImages, label_figures


@dataclass(frozen=True, eq=False)
class Learned:
    """A head, its accuracies (0..1), and what it predicts for the images that are not for validation.

    Where images may have several labels, an accuracy is the share of the images all of whose labels are right.
    expected_accuracy: cross-validated on the labels; None with too few of them.
    validation_accuracy: None without validation images.
    names: (N,), `probabilities` (N, C), columns as the head's classes.
    label_figures: of several labels per image how well each is told, as the status has it: of the validation images, or
    without any of labels by heads that had not learned them; else None.
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
    label_figures: Mapping[str, Any] | None = None


def read_labels(
    paths: Sequence[Path],
    names: Sequence[str],
    *,
    control: str | None = None,
    image_field: str | None = None,
    several: bool = False,
) -> dict[str, Label]:
    """Name → label, of files as Label Studio exports them or as `write_simple` does; a later file has precedence.

    All are sets of labels if `several` says so, or if one image has two labels; then an image that was submitted
    without any has none of them, while of one label per image it is left out. Raises FileFormatError for a file that is
    none, and UnmatchedError for images that are not known for certain among `names`.
    """

    def read(several: bool) -> list[LabeledFiles]:
        return [read_annotations(path, control=control, image_field=image_field, several=several) for path in paths]

    files = read(several)
    several = any(file.several for file in files)
    if several and not all(file.several for file in files):  # of several people's answers another one counts, then
        files = read(several)
    found: dict[str, Label] = {}
    for file in files:
        given = {reference: labels for reference, labels in file.labels.items() if labels or several}
        if several:
            given |= dict.fromkeys(file.unanswered, ())
        for reference, name in match_names(given, names).items():
            found[name] = _label(given[reference], several)
    if not found:
        raise FileFormatError(f"{', '.join(map(str, paths))}: no image has a label; label some and export again")
    return found


def read_validation(path: Path, names: Sequence[str], *, several: bool = False) -> dict[str, Label]:
    """Name → label, of a file such as `split` writes, name → list of its classes. Raises as `read_labels`, and
    FileFormatError for an image with several labels unless `several`.
    """
    labels = read_simple(path)
    matched = match_names([name for name, given in labels.items() if given or several], names)
    for reference in matched:
        if not several and len(set(labels[reference])) > 1:
            raise FileFormatError(
                f"{path}: {reference!r} has the labels {', '.join(map(repr, labels[reference]))}, and of the images "
                "that are learned from each has one; add --several if images may have several"
            )
    return {name: _label(labels[reference], several) for reference, name in matched.items()}


def are_sets(labels: Mapping[str, Label]) -> bool:
    """Whether these are sets of labels, rather than one for each image."""
    return any(not isinstance(label, str) for label in labels.values())


def learn(
    dataset: Dataset,
    labels: Mapping[str, Label],
    *,
    validation: Mapping[str, Label],
    n_details: int,
    random_state: int,
) -> Learned:
    """Fits the service's learner: to the labels, and to how all images that are not for validation lie to each other.

    Raises SelectionError for labels that are all the same, and of images that are kept for validation.
    """
    shared = sorted(labels.keys() & validation.keys())
    if shared:
        raise SelectionError(
            f"{shared[0]!r} has a label to train on and is kept for validation ({len(shared)} such images); leave it "
            "out of one of both"
        )
    if not can_be_told_apart(list(labels.values())):
        only = next(iter(labels.values()))
        what = (
            f"labels are {only!r}; label images of two classes or more"
            if isinstance(only, str)
            else f"images have the labels {text_of(only)!r}; label images that have others"
        )
        raise SelectionError(f"all {len(labels)} {what}")
    is_kept = np.array([name in validation for name in dataset.names])
    names = tuple(name for name in dataset.names if name not in validation)
    pool = Pool(dataset.embeddings[~is_kept], n_details)
    row_of = {name: row for row, name in enumerate(names)}
    labeled = sorted(labels)
    rows = [row_of[name] for name in labeled]
    truth = [labels[name] for name in labeled]
    fitted = fit_and_evaluate(pool, rows, truth, random_state=random_state)
    head = fitted.head
    probabilities = head.predict_proba(pool.embeddings)
    validation_accuracy, figures = None, None
    if validation:
        judged = [validation[name] for name in dataset.names if name in validation]
        of_judged = head.predict_proba(dataset.embeddings[is_kept])
        validation_accuracy = share_right(head.predicted(of_judged), judged)
        basis = ON_VALIDATION.format(n=len(judged))
        figures = JudgedImages(judged, head.classes, of_judged, basis, head.threshold)
    elif fitted.evaluation is not None:
        of_folds = fitted.evaluation.probabilities
        held_out = np.flatnonzero(np.isfinite(of_folds).all(axis=1))
        judged = [truth[row] for row in held_out.tolist()]
        basis = OUT_OF_FOLD.format(n=len(judged))
        figures = JudgedImages(judged, head.classes, of_folds[held_out], basis, fitted.evaluation.threshold)
    return Learned(
        head,
        len(labeled),
        len(names) - len(labeled),
        share_right(head.predicted(probabilities[rows]), truth),
        fitted.evaluation.accuracy if fitted.evaluation else None,
        len(validation),
        validation_accuracy,
        names,
        probabilities,
        label_figures(figures) if figures is not None and figures.threshold is not None else None,
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


def predicted_by(model: Model, dataset: Dataset, backbone: Backbone) -> NDArray[np.float64]:
    """The probabilities (N, C) of a dataset's images by a model of `train`.

    Raises VersionUnusableError unless it was trained on the backbone by which they are embedded.
    """
    if backbone_of(model, backbone) is not backbone:
        raise VersionUnusableError(
            f"{model.version} was trained on a fine-tuned network, and these images are embedded by {backbone.name}; "
            "give a file that `train` wrote"
        )
    return model.head.predict_proba(dataset.embeddings)


def set_scores(probabilities: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """The scores (N,) of images that may have several labels, of probabilities (N, C): the largest over the labels."""
    return ScorerClassification(probabilities, multi_label=True).calculate_scores()


def _label(labels: Sequence[str], several: bool) -> Label:
    return tuple(sorted(set(labels))) if several else labels[0]
