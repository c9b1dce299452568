"""One round of active learning: from embeddings and labels to a head and the tasks to label next.

The service and the simulation both run this, and nothing in it knows of Label Studio, Redis or the data folder.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from backend.adapters.backbones import Backbone
from backend.adapters.embedding_store import EmbeddingTable
from backend.config import Settings
from backend.learning.first_batch import FIRST_BATCH_STRATEGIES
from backend.learning.head import CrossValidation, FitResult, HeadSettings, choose_settings, fit
from backend.learning.later_rounds import (
    ASK_OUT_OF_FOLD,
    ASK_TYPICALITY,
    LATER_ROUND_STRATEGIES,
    RoundState,
    next_batch,
)
from backend.learning.pool import Pool
from backend.loop.queue import build_window
from backend.loop.score import Scores, score
from backend.loop.seed import Seed, select_seed
from backend.schema import TrainingLabels

POOLS_KEPT = 4
"""Projects whose pools are kept; each costs up to 5,000 float32 rows for every weight of details that was chosen."""

FRESH = 0.75
"""Settings chosen on at least this share of the labels are used as they are; older ones are chosen anew at once."""


@dataclass(frozen=True)
class Chosen:
    """Settings for heads, and how many labels chose them (`evaluate_labels`)."""

    settings: HeadSettings
    n_labels: int


@dataclass(frozen=True)
class Round:
    """What follows from some labels.

    labeled: tasks with a label and an embedding, ascending; what the head was fitted on.
    pool: embedded tasks that nobody answered yet and that are not kept aside for validation, ascending.
    fitted: the head; None while fewer than two classes are labeled.
    scores: of the pool, a row per task in its order; None without a head.
    seed: the first batch while part of it still waits; with an ACQUISITION that asks no head, the batch that goes on.
    window: the next tasks to label with their queue scores, the first to be labeled first.
    """

    labeled: Sequence[int]
    pool: Sequence[int]
    fitted: FitResult | None
    scores: Scores | None
    seed: Seed | None
    window: Sequence[tuple[int, float]]


class Pools:
    """The pools of the projects served last: what is computed from all images is not computed again at every label."""

    def __init__(self) -> None:
        self._pools: OrderedDict[str, Pool] = OrderedDict()

    def pool(self, table: EmbeddingTable, backbone: Backbone) -> Pool:
        """The pool of these embeddings, made by the backbone; the same object as long as neither changes."""
        key = f"{backbone.fingerprint} {table.digest}"
        pool = self._pools.get(key)
        if pool is None:
            pool = self._pools[key] = Pool(table.embeddings, backbone.n_details)
        self._pools.move_to_end(key)
        while len(self._pools) > POOLS_KEPT:
            self._pools.popitem(last=False)
        return pool


def plan_round(
    table: EmbeddingTable,
    everything: Pool,
    labels: TrainingLabels,
    settings: Settings,
    *,
    n_classes: int,
    previous_seed: Seed | None,
    watch: Stopwatch,
    chosen: Chosen | None = None,
    start: FitResult | None = None,
    seen: frozenset[int] = frozenset(),
) -> Round:
    """Fits a head, scores the pool and builds the window.

    `everything` is the pool of all of the table's images, `n_classes` how many classes the labeling config offers,
    `previous_seed` the seed of the round before, `seen` the tasks whose labels the backbone was fine-tuned on.

    The head has the settings in `chosen`, which cross-validation found after the round before, when nobody was waiting;
    without such, or with much older ones, they are chosen here. `start` is an earlier fit on the same pool.
    """
    with watch.stage("fit"):
        labeled = trainable(table, labels)
        fitted = _fit(table, everything, labeled, labels, settings, chosen, start, seen)
    pool = unlabeled(table, labels)
    # Tasks that somebody skipped wait behind all others, and come again once nothing else is left.
    waiting = frozenset(pool) - labels.skipped or frozenset(pool)
    with watch.stage("seed"):
        seed = _seed(
            table, everything, waiting, labeled, settings, n_classes, previous_seed, has_head=fitted is not None
        )
        waiting_seed = [task_id for task_id in seed.task_ids if task_id in waiting] if seed else []
    with watch.stage("score"):
        scores = None
        if fitted is not None:
            scores = score(fitted.head, table.embeddings[table.rows_of(pool)], settings.acquisition)
    with watch.stage("rank"):
        ranked: list[int] = []
        n_wanted = settings.window_size - len(waiting_seed)
        if fitted and scores and n_wanted > 0 and settings.acquisition in LATER_ROUND_STRATEGIES:
            free = waiting.difference(waiting_seed)
            rows = [row for row, task_id in enumerate(pool) if task_id in free]
            ranked = _rank(
                table, everything, labels, settings, labeled, [pool[row] for row in rows], fitted,
                np.asarray(scores.probabilities)[rows], budget=n_wanted,
            )  # fmt: skip
        window = build_window(
            waiting_seed=waiting_seed,
            ranked=ranked,
            queue_scores=dict(zip(pool, scores.queue_scores.tolist(), strict=True)) if scores else {},
            skipped=labels.skipped,
            size=settings.window_size,
        )
    return Round(labeled, pool, fitted, scores, seed, window)


def trainable(table: EmbeddingTable, labels: TrainingLabels) -> list[int]:
    """Tasks that have both a label and an embedding, ascending."""
    task_ids = sorted(labels.labels)
    return [task_id for task_id, row in zip(task_ids, table.rows_of(task_ids).tolist(), strict=True) if row >= 0]


def unlabeled(table: EmbeddingTable, labels: TrainingLabels) -> list[int]:
    """Embedded tasks that nobody answered yet and that are not kept aside for validation, ascending."""
    taken = labels.answered | labels.reserved
    return [task_id for task_id in table.task_ids.tolist() if task_id not in taken]


def evaluate_labels(
    table: EmbeddingTable,
    everything: Pool,
    labels: TrainingLabels,
    settings: Settings,
    *,
    seen: frozenset[int] = frozenset(),
    interrupted: Callable[[], bool] = lambda: False,
) -> tuple[Chosen | None, CrossValidation | None]:
    """The settings for the next head, and how well heads predict labels held out; nothing while one class is labeled.

    Raises FitInterruptedError once `interrupted` says so; see `learning.head.choose_settings`.
    """
    labeled = trainable(table, labels)
    targets = [labels.labels[task_id] for task_id in labeled]
    if len(set(targets)) < 2:
        return None, None
    found, evaluation = choose_settings(
        everything,
        table.rows_of(labeled),
        targets,
        random_state=settings.random_state,
        never_held_out=np.array([task_id in seen for task_id in labeled]),
        interrupted=interrupted,
    )
    return Chosen(found, len(labeled)), evaluation


def _fit(
    table: EmbeddingTable,
    everything: Pool,
    labeled: Sequence[int],
    labels: TrainingLabels,
    settings: Settings,
    chosen: Chosen | None,
    start: FitResult | None,
    seen: frozenset[int],
) -> FitResult | None:
    evaluation = None
    if settings.acquisition in ASK_OUT_OF_FOLD or chosen is None or chosen.n_labels < FRESH * len(labeled):
        chosen, evaluation = evaluate_labels(table, everything, labels, settings, seen=seen)
    targets = [labels.labels[task_id] for task_id in labeled]
    if chosen is None or len(set(targets)) < 2:
        return None
    fitted = fit(everything, table.rows_of(labeled), targets, chosen.settings, start=start)
    return replace(fitted, evaluation=evaluation)


def _seed(
    table: EmbeddingTable,
    everything: Pool,
    waiting: frozenset[int],
    labeled: Sequence[int],
    settings: Settings,
    n_classes: int,
    previous: Seed | None,
    *,
    has_head: bool,
) -> Seed | None:
    """The seed of this round: what is left of the previous one, and more of it where the settings want it.

    Without a head, a used-up seed is followed by another. With one, only an ACQUISITION that asks no head goes on so:
    its choice does not depend on the labels, so it is made for many tasks at once, and lasts.
    """
    left = [task_id for task_id in previous.task_ids if task_id in waiting] if previous else []
    n_wanted, strategy = 1, settings.seed_strategy
    if has_head:
        goes_on = settings.acquisition in FIRST_BATCH_STRATEGIES
        n_wanted, strategy = settings.window_size if goes_on else 0, settings.acquisition
    others = sorted(waiting.difference(left))
    if len(left) >= n_wanted or not others:
        return previous if left else None
    more = select_seed(
        table, everything, others, [*labeled, *left], strategy=strategy, budget=settings.seed_size, n_classes=n_classes,
        random_state=settings.random_state,
    )  # fmt: skip
    return replace(more, task_ids=[*left, *more.task_ids])


def _rank(
    table: EmbeddingTable,
    everything: Pool,
    labels: TrainingLabels,
    settings: Settings,
    labeled: Sequence[int],
    candidates: Sequence[int],
    fitted: FitResult,
    probabilities: NDArray[np.float64],
    *,
    budget: int,
) -> list[int]:
    """The next `budget` of the candidates (task ids) in the order of the acquisition strategy."""
    rows = table.rows_of(candidates)
    asks_typicality = settings.acquisition in ASK_TYPICALITY  # seconds in a large project, at the first round
    column = {name: index for index, name in enumerate(fitted.head.classes)}
    state = RoundState(
        embeddings=table.embeddings,
        space=fitted.head.space,
        labeled=table.rows_of(labeled),
        targets=np.array([column[labels.labels[task_id]] for task_id in labeled], dtype=np.intp),
        candidates=rows,
        probabilities=probabilities,
        out_of_fold=fitted.evaluation.probabilities if fitted.evaluation else None,
        typicality=everything.typicality(fitted.settings.detail_weight)[rows] if asks_typicality else None,
    )
    chosen = next_batch(settings.acquisition, state, budget=budget, random_state=settings.random_state)
    return [candidates[position] for position in chosen]


class Stopwatch:
    """Seconds by stage, in the order the stages ran."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measures the block as one stage."""
        started = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = round(time.monotonic() - started, 4)

    @property
    def total(self) -> float:
        """Seconds of all stages so far."""
        return sum(self.seconds.values())

    def __str__(self) -> str:
        return " ".join(f"{name}={seconds:.2f}" for name, seconds in self.seconds.items())
