"""The nouns that travel between modules: frozen dataclasses, no behaviour that needs the outside world."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

UNTRAINED = "untrained"
"""Model version given with answers made before any version is published."""

VersionKind = Literal["seed", "model"]


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
    """One task: its id and the reference to its image as it stands in the task's data (None: no such field)."""

    id: int
    image: str | None


@dataclass(frozen=True)
class Annotation:
    """One submitted annotation; drafts are not annotations."""

    id: int
    result: Sequence[Mapping[str, Any]]
    was_cancelled: bool
    ground_truth: bool
    updated_at: str


@dataclass(frozen=True)
class AnnotatedTask:
    """A task that at least one person has submitted or skipped, with all its annotations."""

    task: Task
    annotations: Sequence[Annotation]


@dataclass(frozen=True)
class TrainingLabels:
    """What all annotations of a project mean for training.

    labels: task id → the one label to train on.
    answered: tasks with a submitted annotation; they leave the pool, whether or not a label could be read from it.
    skipped: tasks that were only skipped; they stay in the pool, behind all others.
    ignored: task id → why its annotations give no label (a label the config no longer offers, an empty result).
    """

    labels: Mapping[int, str]
    answered: frozenset[int]
    skipped: frozenset[int]
    ignored: Mapping[int, str]


@dataclass(frozen=True)
class QueueEntry:
    """One task of the window: what Label Studio is told about it."""

    task_id: int
    queue_score: float
    result: Sequence[Mapping[str, Any]]


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
    accuracy: float | None
    accuracy_kind: str | None
    log_loss: float | None
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
    seed_strategy: str | None = None  # that of the first batch while part of it waits; None in records before it

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types only."""
        return asdict(self)

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> VersionRecord:
        """The record of a JSON object; keys of a newer release are left out, so that a downgrade can still read it."""
        known = {item.name for item in fields(cls)}
        return cls(**{key: value for key, value in raw.items() if key in known})


@dataclass(frozen=True)
class Progress:
    """How far the embedding of one project is."""

    done: int
    total: int


@dataclass(frozen=True)
class Check:
    """One line of `doctor`: what was looked at, whether it is well, and if not why and what to do."""

    name: str
    ok: bool
    found: str
    cure: str | None = None
    warning: bool = False
