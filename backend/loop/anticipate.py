"""Anticipate: plan the next round while a person looks at the image, for the answers they will most likely give.

Fitting and ranking are most of what a worker does between a label and its version, and wait for nothing but the label.
A planned round is used only if everything it was planned from is what the label then brings, so it is the round that
would have been planned, earlier.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from backend.adapters.embedding_store import EmbeddingTable
from backend.config import Settings
from backend.errors import FitInterruptedError
from backend.labels import Label
from backend.learning.head import FitResult
from backend.learning.label_sets import likeliest_sets
from backend.learning.later_rounds import ASK_OUT_OF_FOLD, LATER_ROUND_STRATEGIES
from backend.learning.pool import Pool
from backend.loop.rounds import POOLS_KEPT, Chosen, Round, RoundHead, Stopwatch, plan_round
from backend.loop.seed import Seed
from backend.schema import TrainingLabels

LIKELIEST = 3
"""Answers that are planned for. The next image is one the head is unsure of: its first guess is often wrong."""

LARGEST_POOL = 20_000
"""Embeddings of the largest pool whose rounds are planned ahead: a label that comes meanwhile waits for what cannot be
interrupted, scores and ranks (on a busy machine 0.06 s at 10,000)."""


@dataclass(frozen=True, eq=False)
class RoundInputs:
    """What a round is planned from; the fields are arguments of `plan_round`."""

    table: EmbeddingTable
    pool: Pool
    labels: TrainingLabels
    n_classes: int
    previous_seed: Seed | None
    chosen: Chosen | None
    start: FitResult | None
    seen: frozenset[int]

    def plan(
        self,
        settings: Settings,
        watch: Stopwatch,
        interrupted: Callable[[], bool] = lambda: False,
        kept: RoundHead | None = None,
    ) -> Round:
        """The round; raises FitInterruptedError once `interrupted` says that it is no longer wanted."""
        return plan_round(
            self.table,
            self.pool,
            self.labels,
            settings,
            n_classes=self.n_classes,
            previous_seed=self.previous_seed,
            watch=watch,
            chosen=self.chosen,
            start=self.start,
            seen=self.seen,
            interrupted=interrupted,
            kept=kept,
        )

    def same_as(self, other: RoundInputs) -> bool:
        """Whether both give the same round: the pool and the fit to start from are the same objects, the rest equal."""
        return (
            self.pool is other.pool
            and self.start is other.start
            and self.labels == other.labels
            and self.n_classes == other.n_classes
            and self.previous_seed == other.previous_seed
            and self.chosen == other.chosen
            and self.seen == other.seen
        )


class Anticipation:
    """Rounds of projects, planned before their label came; only those for the next label of each are kept."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._planned: OrderedDict[int, list[tuple[RoundInputs, Round]]] = OrderedDict()

    def plan(self, project_id: int, given: RoundInputs, task_id: int, interrupted: Callable[[], bool]) -> int:
        """Plans rounds for the likeliest answers to one task, on top of what is given; how many, until interrupted."""
        planned: list[tuple[RoundInputs, Round]] = []
        self._planned.pop(project_id, None)
        self._planned[project_id] = planned
        while len(self._planned) > POOLS_KEPT:
            self._planned.popitem(last=False)
        for label in self._likeliest(given, task_id):
            labels = replace(
                given.labels,
                labels={**given.labels.labels, task_id: label},
                answered=given.labels.answered | {task_id},
                skipped=given.labels.skipped - {task_id},
            )
            expected = replace(given, labels=labels)
            try:
                planned.append((expected, expected.plan(self._settings, Stopwatch(), interrupted)))
            except FitInterruptedError:
                break
        return len(planned)

    def take(self, project_id: int, given: RoundInputs) -> Round | None:
        """The round planned from exactly this, if there is one; what else was planned for the project is dropped."""
        for expected, planned in self._planned.pop(project_id, []):
            if expected.same_as(given):
                return planned
        return None

    def _likeliest(self, given: RoundInputs, task_id: int) -> Sequence[Label]:
        """The likeliest labels, the likeliest first; none where planning ahead does not pay."""
        asks_head_only = self._settings.acquisition in LATER_ROUND_STRATEGIES
        if not asks_head_only or self._settings.acquisition in ASK_OUT_OF_FOLD:
            return []
        (row,) = given.table.rows_of([task_id]).tolist()
        if given.start is None or row < 0 or len(given.table.task_ids) > LARGEST_POOL:
            return []
        head = given.start.head
        (probabilities,) = head.predict_proba(given.table.embeddings[[row]])
        if head.threshold is not None:
            return likeliest_sets(head.classes, probabilities, LIKELIEST)
        order = np.argsort(-probabilities, kind="stable")[:LIKELIEST]
        return [head.classes[index] for index in order.tolist()]
