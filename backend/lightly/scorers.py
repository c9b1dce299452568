"""Scorers: what a model predicts, turned into active-learning scores by Lightly's published formulas and names.

A score is in 0..1, and higher means that labeling the image teaches the model more.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from backend.errors import SelectionError
from backend.learning import acquisition

Floats = NDArray[np.float64]

UNCERTAINTIES = {
    "uncertainty_least_confidence": acquisition.least_confidence,
    "uncertainty_margin": acquisition.margin,
    "uncertainty_entropy": acquisition.entropy,
}
"""The scores of class probabilities, rescaled so that a certain prediction has 0 and a uniform one 1."""

SUM_TOLERANCE = 1e-3
"""How far the probabilities of an image may be from summing to 1: what float16 does to a hundred classes."""

FREQUENCY_PENALTY = 0.25
"""What a further object of a class that the image already has counts, Lightly's default."""

MIN_SCORE = 0.9
"""The `object_frequency` of the image with the fewest objects, Lightly's default."""


class Scorer(ABC):
    """Scores of some images, in the order of the predictions it was made of.

    score: the one that the method CORAL uses.
    """

    score: str

    @abstractmethod
    def calculate_scores(self) -> dict[str, Floats]:
        """Each score (N,) by its published name."""

    @classmethod
    @abstractmethod
    def score_names(cls) -> list[str]:
        """The names of the scores."""

    def _use(self, score: str) -> None:
        if score not in self.score_names():
            raise SelectionError(f"score is {score!r}; {type(self).__name__} has: {', '.join(self.score_names())}")
        self.score = score


class ScorerClassification(Scorer):
    """Uncertainty of class probabilities (N, C): Settles 2009, section 3.1, in Lightly's scaling.

    - `uncertainty_least_confidence`: `(1 - max p) / (1 - 1/C)`
    - `uncertainty_margin`: `1 - (p₁ - p₂)`, the two largest
    - `uncertainty_entropy`: `-Σ p log₂ p / log₂ C`

    A single column is the probability of one class of two. With `multi_label`, where an image may have any number of
    classes, each column is such a probability by itself, and the image's score is the largest of its classes'.
    """

    def __init__(
        self, probabilities: ArrayLike, *, multi_label: bool = False, score: str = "uncertainty_margin"
    ) -> None:
        """Raises SelectionError unless the probabilities are (N, C) in 0..1 and, but for `multi_label`, sum to 1."""
        self._probabilities = _checked_probabilities(probabilities, sums_to_one=not multi_label)
        self._multi_label = multi_label or self._probabilities.shape[1] == 1
        self._use(score)

    @classmethod
    def score_names(cls) -> list[str]:
        """See `Scorer.score_names`."""
        return list(UNCERTAINTIES)

    def calculate_scores(self) -> dict[str, Floats]:
        """See `Scorer.calculate_scores`."""
        if not self._multi_label:
            return {name: function(self._probabilities) for name, function in UNCERTAINTIES.items()}
        one_of_two = np.stack([self._probabilities, 1 - self._probabilities], axis=2).reshape(-1, 2)  # (N·C, 2)
        shape = self._probabilities.shape
        return {
            name: function(one_of_two).reshape(shape).max(axis=1, initial=0.0)
            for name, function in UNCERTAINTIES.items()
        }


@dataclass(frozen=True)
class BoundingBox:
    """A box by two corners, as shares of the image's width and height: 0 <= x0 <= x1 <= 1, and y alike."""

    x0: float
    y0: float
    x1: float
    y1: float

    def __post_init__(self) -> None:
        for low, high, axis in ((self.x0, self.x1, "x"), (self.y0, self.y1, "y")):
            if not 0 <= low <= high <= 1:
                raise SelectionError(
                    f"the box reaches from {axis}0 = {low:g} to {axis}1 = {high:g}; expected 0 <= {axis}0 <= {axis}1 "
                    "<= 1, as shares of the image"
                )


class ObjectDetectionOutput:
    """What a detector finds in one image: K boxes, how surely each is an object, and of which class.

    scores: (K,) the probability of an object times that of its likeliest class.
    labels: (K,) the likeliest class of each.
    """

    def __init__(
        self,
        boxes: Sequence[BoundingBox | Sequence[float]],
        object_probabilities: Sequence[float],
        class_probabilities: Sequence[Sequence[float]],
    ) -> None:
        """Raises SelectionError unless all three are of the same length and probabilities in 0..1."""
        counts = len(boxes), len(object_probabilities), len(class_probabilities)
        if len(set(counts)) > 1:
            raise SelectionError(
                f"got {counts[0]} boxes, {counts[1]} object and {counts[2]} class probabilities; expected one of each "
                "per object"
            )
        self.boxes = [box if isinstance(box, BoundingBox) else BoundingBox(*box) for box in boxes]
        self.object_probabilities = np.asarray(object_probabilities, dtype=np.float64)
        if not ((self.object_probabilities >= 0) & (self.object_probabilities <= 1)).all():
            raise SelectionError("object probabilities are outside 0..1; pass probabilities, not logits")
        self.class_probabilities = (
            _checked_probabilities(class_probabilities, sums_to_one=False) if len(boxes) else np.empty((0, 1))
        )
        self.scores: Floats = self.object_probabilities * self.class_probabilities.max(axis=1)
        self.labels: list[int] = self.class_probabilities.argmax(axis=1).tolist()

    @classmethod
    def from_scores(
        cls, boxes: Sequence[BoundingBox | Sequence[float]], scores: Sequence[float], labels: Sequence[int]
    ) -> ObjectDetectionOutput:
        """The same of a detector that gives a score and a class per box only.

        The score stands for both probabilities, and what is missing to 1 is spread evenly over the other classes, of
        which only those up to the largest label of the image are known: the classification scores are rough.
        """
        if len(scores) != len(labels):
            raise SelectionError(f"got {len(scores)} scores and {len(labels)} labels; expected one of each per object")
        if any(label < 0 for label in labels):
            raise SelectionError("labels hold a negative number; expected the numbers of classes, from 0")
        n_others = max(*labels, 1) if labels else 1
        probabilities = np.array([[(1 - score) / n_others] * (n_others + 1) for score in scores])
        for row, (score, label) in enumerate(zip(scores, labels, strict=True)):
            probabilities[row, label] = score
        output = cls(boxes, scores, probabilities.tolist())
        output.scores = np.asarray(scores, dtype=np.float64)
        output.labels = [int(label) for label in labels]
        return output


class ScorerObjectDetection(Scorer):
    """Scores of a detector's outputs, one per image.

    - `object_frequency`: the more objects, and of the more classes, the higher. The first object of a class counts 1,
      each further one `frequency_penalty`; the sums are scaled so that the smallest of all images is `min_score` and
      the largest 1. If all are the same they are 1.
    - `objectness_least_confidence`: 1 - the mean of `ObjectDetectionOutput.scores`, 0 without objects. Earlier releases
      called it prediction-margin.
    - the scores of `ScorerClassification`: the largest of the image's objects, 0 without objects.
    """

    def __init__(
        self,
        outputs: Sequence[ObjectDetectionOutput],
        config: Mapping[str, float] | None = None,
        *,
        score: str = "objectness_least_confidence",
    ) -> None:
        """Raises SelectionError for an unknown key of `config`, or a value outside 0..1."""
        self._outputs = list(outputs)
        self.config = {"frequency_penalty": FREQUENCY_PENALTY, "min_score": MIN_SCORE}
        for key, value in (config or {}).items():
            if key not in self.config:
                raise SelectionError(f"config has {key!r}; ScorerObjectDetection takes: {', '.join(self.config)}")
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
                raise SelectionError(f"config has {key} = {value!r}; expected a number from 0 to 1")
            self.config[key] = float(value)
        self._use(score)

    @classmethod
    def score_names(cls) -> list[str]:
        """See `Scorer.score_names`."""
        return ["object_frequency", "objectness_least_confidence", *UNCERTAINTIES]

    def calculate_scores(self) -> dict[str, Floats]:
        """See `Scorer.calculate_scores`."""
        scores = {
            "object_frequency": self._object_frequency(),
            "objectness_least_confidence": np.array(
                [1 - output.scores.mean() if len(output.scores) else 0.0 for output in self._outputs]
            ),
        }
        for name in UNCERTAINTIES:
            scores[name] = np.array([_largest_uncertainty(name, output) for output in self._outputs])
        return scores

    def _object_frequency(self) -> Floats:
        sums = np.array([self._frequency(Counter(output.labels)) for output in self._outputs])
        if not len(sums) or sums.min() == sums.max():
            return np.ones(len(sums))
        scaled: Floats = np.interp(sums, (sums.min(), sums.max()), (self.config["min_score"], 1.0))
        return scaled

    def _frequency(self, counts: Counter[int]) -> float:
        return sum(1 + self.config["frequency_penalty"] * (n_objects - 1) for n_objects in counts.values())


def _largest_uncertainty(name: str, output: ObjectDetectionOutput) -> float:
    if not len(output.scores):
        return 0.0
    p = output.class_probabilities
    if p.shape[1] == 1:
        p = np.concatenate([p, 1 - p], axis=1)
    return float(UNCERTAINTIES[name](p).max())


def _checked_probabilities(probabilities: ArrayLike, *, sums_to_one: bool) -> Floats:
    try:
        p = np.asarray(probabilities, dtype=np.float64)
    except ValueError as exc:
        raise SelectionError(f"probabilities are no array of numbers ({exc}); expected (N, C)") from exc
    if p.ndim != 2 or p.shape[1] == 0:
        raise SelectionError(
            f"probabilities have shape {p.shape}; expected (N, C): a row per image, a column per class"
        )
    outside = ~((p >= -SUM_TOLERANCE) & (p <= 1 + SUM_TOLERANCE)).all(axis=1)
    if outside.any():
        raise SelectionError(
            f"probabilities of row {int(outside.argmax())} are not in 0..1; pass probabilities, not logits"
        )
    p = np.clip(p, 0.0, 1.0)
    off = np.abs(p.sum(axis=1) - 1) > SUM_TOLERANCE
    if sums_to_one and p.shape[1] > 1 and off.any():
        row = int(off.argmax())
        raise SelectionError(
            f"probabilities of row {row} sum to {p[row].sum():.4g}; expected 1: normalise the rows, or set multi_label "
            "if an image may have several classes"
        )
    return p
