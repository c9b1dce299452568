"""The nouns that travel between modules: frozen dataclasses, no behaviour that needs the outside world."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar, Literal

from backend.labels import Label

UNTRAINED = "untrained"
"""Model version given with answers made before any version is published."""

SOURCE_FIELD, DIGEST_FIELD, FETCHED_FIELD = "source", "sha256", "fetched_at"
"""Fields of the data of tasks that `watch` adds: where the image came from, of which bytes it is, since when."""

VersionKind = Literal["seed", "model"]
CurveKind = Literal["measured", "expected"]
FinetuningOutcome = Literal["begun", "failed", "rejected", "adopted", "in_use"]


@dataclass(frozen=True)
class Project:
    """One Label Studio project, as Label Studio describes it."""

    id: int
    title: str
    created_at: str
    label_config: str
    model_version: str
    sampling: str
    show_collab_predictions: bool
    n_tasks: int


@dataclass(frozen=True)
class Task:
    """One task: its id and the reference to its image as it stands in the task's data (None: no such field).

    fields: those further fields of its data that were asked for, and that it has.
    """

    id: int
    image: str | None
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Annotation:
    """One submitted annotation; drafts are not annotations."""

    id: int
    result: Sequence[Mapping[str, Any]]
    was_cancelled: bool
    ground_truth: bool
    updated_at: str
    completed_by: int | None = None
    """Label Studio's id of the person; None where it does not say."""


@dataclass(frozen=True)
class AnnotatedTask:
    """A task that at least one person has submitted or skipped, with all its annotations."""

    task: Task
    annotations: Sequence[Annotation]


@dataclass(frozen=True)
class AnswerEvent:
    """What one webhook says of answers: which came or changed, which were deleted, and how things are after it.

    n_annotations: all of the project, submitted and skipped.
    model_version: what Label Studio ordered its queue by when it told of this; None if it did not say.
    """

    answered: Sequence[AnnotatedTask]
    deleted: Sequence[int]
    label_config: str
    n_annotations: int
    model_version: str | None = None


@dataclass(frozen=True)
class SeveralAnswers:
    """What several people answered to one task, the last of them last.

    answers: who, by Label Studio's id of the person (None where it does not say), and which label.
    has_ground_truth: one of the answers is marked as ground truth, and gives the task its label.
    """

    answers: Sequence[tuple[int | None, Label]]
    has_ground_truth: bool = False


@dataclass(frozen=True)
class TrainingLabels:
    """What all annotations of a project mean for training.

    labels: task id → the label to train on.
    answered: tasks with a submitted annotation; they leave the pool, whether or not a label could be read from it.
    skipped: tasks that were only skipped; they stay in the pool, behind all others.
    ignored: task id → why its annotations give no label (a label the config no longer offers, an empty result).
    validation: task id → label, of the validation split; never trained on, so not in `labels`.
    reserved: all tasks of the validation split, labeled or not; they are never in the pool.
    several: the tasks that several people answered, of the split or not, with what they answered.
    weights: task id → how much its label counts, 0 to 1, where that is less than whole; see `loop.agreement`. Where an
        image may have several labels, how much each class of the labeling config counts, whether the image has it or
        not.
    """

    labels: Mapping[int, Label]
    answered: frozenset[int]
    skipped: frozenset[int]
    ignored: Mapping[int, str]
    validation: Mapping[int, Label] = field(default_factory=dict)
    reserved: frozenset[int] = frozenset()
    several: Mapping[int, SeveralAnswers] = field(default_factory=dict)
    weights: Mapping[int, float | Mapping[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class ValidationFilter:
    """Which labeled tasks are kept aside to measure accuracy on: never selected, never trained on.

    field: the field of the task's data that must equal `value`; empty: tasks with a ground-truth annotation.
    """

    field: str = ""
    value: str = ""

    GROUND_TRUTH: ClassVar[str] = "ground_truth"

    @classmethod
    def parse(cls, text: str) -> ValidationFilter:
        """The filter of `ground_truth` or `data.FIELD=VALUE`; ValueError says what is expected.

        The field is one key of the task's data, not a path; the value is all that follows the first `=`.
        """
        if text == cls.GROUND_TRUTH:
            return cls()
        name, equals, value = text.removeprefix("data.").partition("=")
        name, value = name.strip(), value.strip()
        if not (text.startswith("data.") and name and equals and value):
            raise ValueError(f"{cls.GROUND_TRUTH}, or data.FIELD=VALUE such as data.split=val")
        return cls(name, value)

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields of a task's data that `holds` looks at."""
        return (self.field,) if self.field else ()

    def holds(self, fields: Mapping[str, Any]) -> bool:
        """Whether a task with these fields of data belongs to the split; what ground truth says is not in them.

        Numbers, true and false are compared as JSON writes them: `data.fold=3`, `data.held_out=true`.
        """
        return bool(self.field) and self.field in fields and self.text_of(fields) == self.value

    def text_of(self, fields: Mapping[str, Any]) -> str:
        """What stands in the field, as a filter would write it. Raises KeyError without the field."""
        found = fields[self.field]
        return found if isinstance(found, str) else json.dumps(found, ensure_ascii=False)

    def __str__(self) -> str:
        return f"data.{self.field}={self.value}" if self.field else self.GROUND_TRUTH


@dataclass(frozen=True)
class ValidationSplit:
    """The tasks a validation filter on data took when all tasks were last listed.

    newest: the highest task id listed, 0 without tasks; of tasks above it nothing is known yet.
    """

    filter: str
    task_ids: frozenset[int]
    newest: int


@dataclass(frozen=True)
class QueueEntry:
    """One task of the window: what Label Studio is told about it.

    shown_score: what it sorts by, the first to be labeled lowest, or highest with SCORE_ORDER=descending.
    """

    task_id: int
    shown_score: float
    result: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Suggestion:
    """A prediction of a version that is none of the service's; score: how sure it is, None if that is not known."""

    task_id: int
    score: float | None
    result: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class CurvePoint:
    """One point of a project's learning curve.

    kind: `measured` on validation tasks, or `expected` (mean confidence over the images still to label).
    n_evaluated: how many independent images the accuracy (0..1) is worth; for an expected one, the labels used.
    """

    kind: CurveKind
    labels_used: int
    accuracy: float
    n_evaluated: int

    @classmethod
    def from_json(cls, raw: object) -> CurvePoint | None:
        """The point of a JSON object; None for anything that is no point."""
        if not isinstance(raw, Mapping):
            return None
        kind, numbers = raw.get("kind"), [raw.get(name) for name in ("labels_used", "accuracy", "n_evaluated")]
        if not (kind == "measured" or kind == "expected") or any(
            type(number) not in (int, float) for number in numbers
        ):
            return None
        point = cls(kind, int(raw["labels_used"]), float(raw["accuracy"]), int(raw["n_evaluated"]))
        return point if point.labels_used >= 1 and 0 <= point.accuracy <= 1 and point.n_evaluated >= 1 else None


@dataclass(frozen=True)
class VersionRecord:
    """What one immutable version was made from and what it is worth; stored as JSON beside the head."""

    version: str
    kind: VersionKind
    created_at: str
    project_id: int
    label_config: str
    classes: Sequence[str]
    labels_used: int
    labels_by_class: Mapping[str, int]
    ignored_labels: Mapping[str, str]
    strength: float | None
    acquisition: str
    backbone: str
    fingerprint: str
    random_state: int
    pool_size: int
    window: Sequence[int]
    seed_task_ids: Sequence[int]
    seed_engine: str | None
    seed_engine_reason: str | None
    inputs_digest: str
    stage_seconds: Mapping[str, float] = field(default_factory=dict)
    # What follows came later: a record of an earlier release has none of it.
    accuracy: float | None = None
    accuracy_kind: str | None = None
    log_loss: float | None = None
    accuracy_interval: Sequence[float] | None = None  # Wilson's 95 %, of a measured accuracy
    cross_validated_accuracy: float | None = None
    expected_accuracy: float | None = None  # mean confidence over the images still to label, 0..1
    validation_filter: str | None = None
    validation_tasks: int = 0  # tasks of the split, labeled or not; with ground truth the labeled ones
    validation_labels: int = 0  # tasks the accuracy was measured on
    validation_note: str | None = None
    # Of this version and those before, each a CurvePoint as JSON.
    learning_curve: Sequence[Mapping[str, Any]] = field(default_factory=list)
    forecast: Mapping[str, Any] | None = None
    n_suspects: int = 0
    suspects: Sequence[Mapping[str, Any]] = field(default_factory=list)  # the likeliest first, the first so many
    calibration_error: float | None = None  # expected, of the cross-validated probabilities, 0..1
    temperature: float | None = None
    detail_weight: float | None = None
    seed_strategy: str | None = None  # that of the first batch while part of it waits; None in records before it
    labels_digest: str | None = None  # of the labels trained on, see loop.inputs.labels_digest
    # Accuracy, curve, forecast and suspects are of this version's evaluation, or until it is made of the last one's.
    evaluated_version: str | None = None
    evaluated_labels: int = 0
    chosen: Mapping[str, Any] | None = None  # what it chose for the heads that follow, a HeadSettings as JSON
    # Of a version made while the project is pinned: whose head it has, and how many labels there are by now.
    head_of: str | None = None
    labels_given: int | None = None
    embeddings_digest: str | None = None  # which task had which image, see `EmbeddingTable.digest`
    release: str | None = None  # of this package
    # Whether its predictions may carry a result, from which confidence on, and how many of the window do; see
    # `loop.prelabels`. A record of an earlier release does not say: all of its predictions do.
    prelabels: bool = True
    prelabels_from: float = 0.0
    n_prelabels: int | None = None
    # How far people who answered the same tasks agree; see `loop.agreement`.
    agreement: Mapping[str, Any] | None = None
    n_disagreements: int = 0
    disagreements: Sequence[Mapping[str, Any]] = field(default_factory=list)  # the first so many
    # For the dashboard, plain JSON made in `loop.judgement`; None where nothing can be said.
    confusion: Mapping[str, Any] | None = None  # which classes are taken for which
    calibration: Mapping[str, Any] | None = None  # how often a confidence is right
    predicted_by_class: Mapping[str, int] | None = None  # how many images still to label are predicted to be of each
    random_order: Mapping[str, Any] | None = None  # what as many labels asked for at random would be worth
    reasons: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # task id → why it is in the window
    score_order: str = "ascending"  # which of the scores pushed come first; a record of an earlier release: the lowest
    last_answer_at: str | None = None  # when the newest answer it knows was given or changed, by Label Studio's clock
    threshold: float | None = None  # of a head that predicts several labels per image, see `learning.head.Head`
    label_figures: Mapping[str, Any] | None = (
        None  # of each label by itself where images have several; `loop.judgement`
    )

    EVALUATION: ClassVar[frozenset[str]] = frozenset(
        {
            "accuracy", "accuracy_kind", "accuracy_interval", "log_loss", "cross_validated_accuracy",
            "calibration_error", "expected_accuracy", "validation_tasks", "validation_labels", "validation_note",
            "learning_curve", "forecast", "n_suspects", "suspects", "evaluated_version", "evaluated_labels", "chosen",
            "agreement", "n_disagreements", "disagreements", "confusion", "calibration", "predicted_by_class",
            "random_order", "reasons", "label_figures",
        }
    )  # fmt: skip
    """The fields that an evaluation says anew, after the version is published; all others never change."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types only."""
        return asdict(self)

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> VersionRecord:
        """The record of a JSON object; keys of a newer release are left out, so that a downgrade can still read it."""
        known = {item.name for item in fields(cls)}
        return cls(**{key: value for key, value in raw.items() if key in known})


@dataclass(frozen=True)
class Pin:
    """Which version's head a project keeps until it is released, since when (ISO 8601), and who wanted it."""

    version: str
    since: str
    by: str


@dataclass(frozen=True)
class MapSource:
    """The embeddings that a project's map shows: of which backbone, how wide, and how many of their last columns are
    details.
    """

    fingerprint: str
    dim: int
    n_details: int


@dataclass(frozen=True)
class FinetuningRecord:
    """How one fine-tuning of a project's backbone went; stored as JSON.

    outcome: `begun` (running, or stopped in the middle and tried again), `failed` and `rejected` (not tried again until
    there are twice the labels), `adopted` (better, its embeddings of all images are being made), `in_use`.
    base: fingerprint of the backbone it began with.
    note: what happened, as a sentence for people.
    n_tries: how often it was begun on about these labels.
    error: what stopped it last, until it got further.
    fingerprint: of the fine-tuned backbone, once it is adopted.
    seen: the tasks whose labels it was trained on; accuracy must be measured on others.
    """

    outcome: FinetuningOutcome
    labels_used: int
    base: str
    note: str
    n_tries: int = 1
    error: str | None = None
    fingerprint: str | None = None
    seen: Sequence[int] = field(default_factory=list)


@dataclass(frozen=True)
class Progress:
    """How far the embedding of one project is, in images.

    images_per_s: since it was last planned, by all workers together; None until the first are done.
    """

    done: int
    total: int
    images_per_s: float | None = None

    @property
    def seconds_left(self) -> float | None:
        """How long the rest takes at this rate; None while that is unknown."""
        if self.done >= self.total:
            return 0.0
        return (self.total - self.done) / self.images_per_s if self.images_per_s else None


@dataclass(frozen=True)
class Check:
    """One line of `doctor`: what was looked at, whether it is well, and if not why and what to do."""

    name: str
    ok: bool
    found: str
    cure: str | None = None
    warning: bool = False
