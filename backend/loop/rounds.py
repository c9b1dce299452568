"""One round of active learning: from embeddings and labels to a head and the tasks to label next.

The service and the simulation both run this, and nothing in it knows of Label Studio, Redis or the data folder.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from threading import Thread

import numpy as np
from numpy.typing import NDArray

from backend.adapters.backbones import Backbone
from backend.adapters.embedding_store import EmbeddingTable
from backend.config import Settings
from backend.labels import names_of
from backend.learning.first_batch import FIRST_BATCH_STRATEGIES
from backend.learning.head import (
    DETAIL_WEIGHTS,
    CrossValidation,
    FitResult,
    Head,
    HeadSettings,
    choose_settings,
    fit,
    predict_pool,
)
from backend.learning.label_sets import can_be_told_apart, membership, named_classes
from backend.learning.later_rounds import (
    ASK_OUT_OF_FOLD,
    ASK_TYPICALITY,
    LATER_ROUND_STRATEGIES,
    RoundState,
    next_batch,
)
from backend.learning.pool import Pool
from backend.learning.reasons import Reason, reasons
from backend.logs import in_log_context
from backend.loop.queue import build_window
from backend.loop.score import Scores, scores_of
from backend.loop.seed import Seed, select_seed
from backend.schema import TrainingLabels

logger = logging.getLogger(__name__)

Ids = NDArray[np.int64]

POOLS_KEPT = 4
"""Projects whose pools are kept; each costs up to 5,000 float32 rows for every weight of details that was chosen."""

AHEAD = 1.25
"""Pools are prepared for so many times the labels there are, so that the axes for more are there before the labels."""

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
    fitted: the head; None while fewer than two classes are labeled, and with a kept head.
    scores: of the pool, a row per task in its order; None without a head.
    seed: the first batch while part of it still waits; with an ACQUISITION that asks no head, the batch that goes on.
    window: the next tasks to label with their queue scores, the first to be labeled first.
    """

    labeled: Sequence[int]
    pool: Ids
    fitted: FitResult | None
    scores: Scores | None
    seed: Seed | None
    window: Sequence[tuple[int, float]]


@dataclass(frozen=True, eq=False)
class RoundHead:
    """The head a round is planned with: fitted on the labels, or kept whatever they are (of a pinned version).

    out_of_fold: cross-validated probabilities of the labeled tasks, where there are some; see `RoundState`.
    """

    head: Head
    detail_weight: float
    out_of_fold: NDArray[np.float64] | None = None

    @classmethod
    def of(cls, fitted: FitResult) -> RoundHead:
        """The head of a fit."""
        evaluation = fitted.evaluation
        return cls(fitted.head, fitted.settings.detail_weight, evaluation.probabilities if evaluation else None)


class Pools:
    """The pools of the projects served last: what is computed from all images is not computed again at every label."""

    def __init__(self) -> None:
        self._pools: OrderedDict[int, tuple[str, EmbeddingTable, Pool]] = OrderedDict()
        self._preparation: Thread | None = None

    def pool(self, project_id: int, table: EmbeddingTable, backbone: Backbone) -> Pool:
        """The pool of these embeddings, made by the backbone; the same object as long as neither changes.

        When images came or went it is another one, which keeps what was computed of those that stayed.
        """
        known = self._pools.get(project_id)
        if known is None or known[0] != backbone.fingerprint:
            pool = Pool(table.embeddings, backbone.n_details)
        elif known[1] is table or known[1].digest == table.digest:
            pool = known[2]
        else:
            pool = known[2].changed(table.embeddings, table.rows_in(known[1]))
        self._pools[project_id] = backbone.fingerprint, table, pool
        self._pools.move_to_end(project_id)
        while len(self._pools) > POOLS_KEPT:
            self._pools.popitem(last=False)
        return pool

    def prepare(self, pool: Pool, detail_weight: float, n_labels: int, settings: Settings) -> None:
        """Begins, in a thread of its own, to make what later heads of this pool will need; see `Pool.prepare`.

        `detail_weight` is in use. At most one thread works, for one pool; what it leaves out is made the next time.
        """
        if self._preparation is not None and self._preparation.is_alive():
            return
        others = [weight for weight in DETAIL_WEIGHTS if weight != detail_weight] if pool.n_details else []

        def work() -> None:
            try:
                pool.prepare(
                    [detail_weight, *others],
                    n_labels=int(n_labels * AHEAD),
                    with_typicality=settings.acquisition in ASK_TYPICALITY,
                )
            except Exception:  # whoever needs it makes it then, and fails with whom it concerns
                logger.exception("a pool of %d images was not prepared", len(pool.embeddings))

        self._preparation = Thread(target=in_log_context(work), name="prepare-pool", daemon=True)
        self._preparation.start()


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
    interrupted: Callable[[], bool] = lambda: False,
    kept: RoundHead | None = None,
) -> Round:
    """Fits a head, or takes the one that is kept, scores the pool and builds the window.

    `everything` is the pool of all of the table's images, `n_classes` how many classes the labeling config offers,
    `previous_seed` the seed of the round before, `seen` the tasks whose labels the backbone was fine-tuned on.

    The head has the settings in `chosen`, which cross-validation found after the round before, when nobody was waiting;
    without such, or with much older ones, they are chosen here. `start` is an earlier fit on the same pool.

    Raises FitInterruptedError once `interrupted`, asked every few milliseconds of the fit, says so.
    """
    with watch.stage("fit"):
        labeled = trainable(table, labels)
        fitted, used = None, kept
        if kept is None:
            fitted = _fit(table, everything, labeled, labels, settings, chosen, start, seen, interrupted)
            used = RoundHead.of(fitted) if fitted else None
    rows = unlabeled(table, labels)
    pool = table.task_ids[rows]
    # Tasks that somebody skipped wait behind all others, and come again once nothing else is left.
    is_skipped = np.isin(pool, list(labels.skipped))
    is_waiting = ~is_skipped | is_skipped.all()
    with watch.stage("seed"):
        seed = _seed(
            table, everything, pool[is_waiting], labeled, settings, n_classes, previous_seed,
            has_head=used is not None,
        )  # fmt: skip
        waiting_seed = _among(seed.task_ids, pool[is_waiting]) if seed else []
    with watch.stage("score"):
        scores = None
        if used is not None:
            probabilities = (
                predict_pool(fitted, everything)[rows] if fitted else used.head.predict_proba(table.embeddings[rows])
            )
            scores = scores_of(used.head, probabilities, settings.acquisition)
    with watch.stage("rank"):
        ranked: list[int] = []
        n_wanted = settings.window_size - len(waiting_seed)
        if used and scores and n_wanted > 0 and settings.acquisition in LATER_ROUND_STRATEGIES:
            free = np.flatnonzero(is_waiting & ~np.isin(pool, waiting_seed))
            chosen_rows = _rank(
                table, everything, labels, settings, labeled, rows[free], used, probabilities[free], budget=n_wanted
            )
            ranked = table.task_ids[chosen_rows].tolist()
        window = build_window(
            waiting_seed=waiting_seed,
            ranked=ranked,
            queue_scores=_first_of_queue(pool, scores, is_skipped, settings.window_size, ranked) if scores else {},
            skipped=labels.skipped,
            size=settings.window_size,
        )
    return Round(labeled, pool, fitted, scores, seed, window)


def _first_of_queue(
    pool: Ids, scores: Scores, is_skipped: NDArray[np.bool_], size: int, ranked: Sequence[int]
) -> dict[int, float]:
    """Queue scores of all tasks that a window of `size` may hold: those ranked, and the first of the others."""
    first = np.lexsort((pool, scores.queue_scores, is_skipped))[: size + len(ranked)]
    wanted = np.concatenate([first, np.searchsorted(pool, ranked).astype(np.intp)])
    return dict(zip(pool[wanted].tolist(), scores.queue_scores[wanted].tolist(), strict=True))


def _among(task_ids: Sequence[int], others: Ids) -> list[int]:
    """Those of the task ids that are among the others, in their order."""
    known = np.isin(np.asarray(task_ids, dtype=np.int64), others)
    return [task_id for task_id, is_known in zip(task_ids, known.tolist(), strict=True) if is_known]


def trainable(table: EmbeddingTable, labels: TrainingLabels) -> list[int]:
    """Tasks that have both a label and an embedding, ascending."""
    task_ids = sorted(labels.labels)
    return [task_id for task_id, row in zip(task_ids, table.rows_of(task_ids).tolist(), strict=True) if row >= 0]


def unlabeled(table: EmbeddingTable, labels: TrainingLabels) -> NDArray[np.intp]:
    """Rows of embedded tasks that nobody answered yet and that are not kept aside for validation, ascending."""
    is_free = np.ones(len(table.task_ids), dtype=bool)
    taken = table.rows_of([*labels.answered, *labels.reserved])
    is_free[taken[taken >= 0]] = False
    return np.flatnonzero(is_free)


def evaluate_labels(
    table: EmbeddingTable,
    everything: Pool,
    labels: TrainingLabels,
    settings: Settings,
    *,
    seen: frozenset[int] = frozenset(),
    detail_weights: Sequence[float] = DETAIL_WEIGHTS,
    interrupted: Callable[[], bool] = lambda: False,
) -> tuple[Chosen | None, CrossValidation | None]:
    """The settings for the next head, and how well heads predict labels held out; nothing while one class is labeled.

    Raises FitInterruptedError once `interrupted` says so; see `learning.head.choose_settings`.
    """
    labeled = trainable(table, labels)
    targets = [labels.labels[task_id] for task_id in labeled]
    if not can_be_told_apart(targets):
        return None, None
    found, evaluation = choose_settings(
        everything,
        table.rows_of(labeled),
        targets,
        random_state=settings.random_state,
        detail_weights=detail_weights,
        never_held_out=np.array([task_id in seen for task_id in labeled]),
        weights=_weights(labels, labeled),
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
    interrupted: Callable[[], bool],
) -> FitResult | None:
    evaluation = None
    if settings.acquisition in ASK_OUT_OF_FOLD or chosen is None or chosen.n_labels < FRESH * len(labeled):
        chosen, evaluation = evaluate_labels(table, everything, labels, settings, seen=seen, interrupted=interrupted)
    targets = [labels.labels[task_id] for task_id in labeled]
    if chosen is None or not can_be_told_apart(targets):
        return None
    fitted = fit(
        everything,
        table.rows_of(labeled),
        targets,
        chosen.settings,
        start=start,
        weights=_weights(labels, labeled),
        interrupted=interrupted,
    )
    return replace(fitted, evaluation=evaluation)


def _weights(labels: TrainingLabels, labeled: Sequence[int]) -> NDArray[np.float64] | None:
    """How much each label counts, (n,), of sets each class of it (n, C); None while all count whole."""
    if not labels.weights:
        return None
    weights = [labels.weights.get(task_id, 1.0) for task_id in labeled]
    if not any(isinstance(weight, Mapping) for weight in weights):
        return np.array(weights)
    classes = named_classes([labels.labels[task_id] for task_id in labeled])
    return np.array(
        [[weight.get(name, 1.0) if isinstance(weight, Mapping) else weight for name in classes] for weight in weights]
    )


def _seed(
    table: EmbeddingTable,
    everything: Pool,
    waiting: Ids,
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
    left = _among(previous.task_ids, waiting) if previous else []
    n_wanted, strategy = 1, settings.seed_strategy
    if has_head:
        goes_on = settings.acquisition in FIRST_BATCH_STRATEGIES
        n_wanted, strategy = settings.window_size if goes_on else 0, settings.acquisition
    if len(left) >= n_wanted or len(left) == len(waiting):
        return previous if left else None
    others = waiting[~np.isin(waiting, left)]
    more = select_seed(
        table,
        everything,
        others.tolist(),
        [*labeled, *left],
        strategy=strategy,
        budget=settings.seed_size,
        n_classes=n_classes,
        random_state=settings.random_state,
    )
    return replace(more, task_ids=[*left, *more.task_ids])


def _rank(
    table: EmbeddingTable,
    everything: Pool,
    labels: TrainingLabels,
    settings: Settings,
    labeled: Sequence[int],
    candidates: NDArray[np.intp],
    used: RoundHead,
    probabilities: NDArray[np.float64],
    *,
    budget: int,
) -> NDArray[np.intp]:
    """The next `budget` of the candidates (rows of the table) in the order of the acquisition strategy."""
    state = _round_state(settings.acquisition, table, everything, labels, labeled, candidates, used, probabilities)
    chosen = next_batch(settings.acquisition, state, budget=budget, random_state=settings.random_state)
    return candidates[chosen]


def _round_state(
    acquisition: str,
    table: EmbeddingTable,
    everything: Pool,
    labels: TrainingLabels,
    labeled: Sequence[int],
    candidates: NDArray[np.intp],
    used: RoundHead,
    probabilities: NDArray[np.float64],
) -> RoundState:
    asks_typicality = acquisition in ASK_TYPICALITY  # seconds in a large project, at the first round
    classes, of_sets = used.head.classes, used.head.threshold is not None
    in_head = frozenset(classes)  # a kept head may lack new classes
    known = [task_id for task_id in labeled if in_head.issuperset(names_of(labels.labels[task_id]))]
    has = membership(classes, [labels.labels[task_id] for task_id in known])
    return RoundState(
        embeddings=table.embeddings,
        space=used.head.space,
        labeled=table.rows_of(known),
        targets=has.astype(np.intp) if of_sets else has.argmax(axis=1).astype(np.intp),
        candidates=candidates,
        probabilities=probabilities,
        out_of_fold=used.out_of_fold,
        typicality=everything.typicality(used.detail_weight)[candidates] if asks_typicality else None,
        of_sets=of_sets,
    )


def window_reasons(
    acquisition: str,
    table: EmbeddingTable,
    everything: Pool,
    labels: TrainingLabels,
    window: Sequence[int],
    used: RoundHead,
    rows: NDArray[np.intp],
    probabilities: NDArray[np.float64],
) -> dict[int, Reason]:
    """Why each of the window's tasks was chosen from the pool's `rows`, of which these are the head's `probabilities`.

    Left out are tasks that are no longer in the pool, and those that somebody skipped: they come last for that.
    """
    positions = {task_id: place for place, task_id in enumerate(table.task_ids[rows].tolist())}
    task_ids = [task_id for task_id in window if task_id in positions and task_id not in labels.skipped]
    labeled = trainable(table, labels)
    state = _round_state(acquisition, table, everything, labels, labeled, rows, used, probabilities)
    found = reasons(acquisition, state, [positions[task_id] for task_id in task_ids])
    return dict(zip(task_ids, found, strict=True)) if found else {}


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
