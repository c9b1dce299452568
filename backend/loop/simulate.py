"""The loop without Label Studio: class folders or files answer for people, accuracy is measured on a held-out fifth.

`default` runs `plan_round`, the service's own code, label by label. The other strategies take one part of it away.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from threadpoolctl import threadpool_limits

from backend.adapters.backbones import Backbone
from backend.adapters.embedding_store import EmbeddingTable
from backend.adapters.image_source import ImageSource
from backend.adapters.images import DEFAULT_MAX_IMAGE_PIXELS
from backend.config import Settings
from backend.errors import ImageError, SelectionError
from backend.labels import Label, names_of, text_of
from backend.learning.features import normalise, plain_space
from backend.learning.first_batch import FIRST_BATCH_STRATEGIES
from backend.learning.head import Head, fit_head
from backend.learning.label_sets import can_be_told_apart, named_classes, share_right, strata
from backend.learning.pool import Pool
from backend.loop.image_files import read_image, source_of
from backend.loop.pipeline import WORTH_ACCELERATING, embed_in_batches
from backend.loop.rounds import Round, Stopwatch, evaluate_labels, plan_round
from backend.schema import TrainingLabels

logger = logging.getLogger(__name__)

HELD_OUT = 5
"""One image of each class in so many is held out."""

PLAIN_STRENGTH = 100.0
"""Strength of the plain learner of `baseline`."""


@dataclass(frozen=True, eq=False)
class LabeledImages:
    """Embeddings (N, D) of images whose classes (N,) are known, and how many files could not be read.

    sets: of each image (N,) the labels it has, where it may have several; `labels` is then what people read of them.

    The last `n_details` columns are details, see `Backbone`.
    """

    embeddings: NDArray[np.float16]
    labels: NDArray[np.str_]
    n_unreadable: int
    n_details: int = 0
    sets: Sequence[tuple[str, ...]] | None = None

    @property
    def answers(self) -> list[Label]:
        """What a person would answer for each image."""
        return list(self.sets) if self.sets is not None else self.labels.tolist()

    @property
    def strata(self) -> list[str]:
        """The groups (N,) of each of which a fifth is held out."""
        return strata(self.answers, HELD_OUT)


@dataclass(frozen=True)
class Row:
    """One measurement: accuracy (0..1) on the held-out images with the first `budget` labels of one run."""

    strategy: str
    budget: int
    seed: int
    accuracy: float


# -- images -----------------------------------------------------------------------------------------------------------


def embed_folder(
    backbone: Backbone,
    folder: Path | ImageSource,
    advance: Callable[[int, int], None],
    *,
    labels: Mapping[str, Label] | None = None,
    max_image_pixels: int = DEFAULT_MAX_IMAGE_PIXELS,
) -> LabeledImages:
    """Embeds a folder (or bucket) of class folders; `advance(done, total)` is called after each batch.

    What lies deeper has the class of its uppermost folder, what lies beside the class folders none. With `labels`, name
    → label, these images are taken and no others. Raises ImageError unless there are at least two class folders with
    images, or labels that differ, and what the source raises.
    """
    source = source_of(folder)
    truth = labels if labels is not None else {name: name.partition("/")[0] for name in source.names() if "/" in name}
    # By their parts: 'cat' stands before 'cat-2', as in a listing of folders.
    files = sorted(truth, key=lambda name: name.split("/"))
    if len(files) >= WORTH_ACCELERATING:
        backbone.accelerate()

    def load(name: str) -> Image.Image:
        return read_image(source, name, min_side=backbone.input_side, max_image_pixels=max_image_pixels)

    embeddings: list[NDArray[np.float32]] = []
    found: list[Label] = []
    n_done = 0
    for batch in embed_in_batches(backbone, files, load):
        for name, outcome in batch:
            if isinstance(outcome, ImageError):
                logger.warning("left out: %s", outcome)
            else:
                embeddings.append(outcome)
                found.append(truth[name])
        n_done += len(batch)
        advance(n_done, len(files))
    if not can_be_told_apart(found):
        expected = "a folder per class, two or more" if labels is None else "labels that differ"
        raise ImageError(f"{source.place} holds images of {len(set(found))} classes; expected {expected}")
    return LabeledImages(
        np.stack(embeddings).astype(np.float16),
        np.array(list(map(text_of, found))),
        len(files) - len(found),
        backbone.n_details,
        None if isinstance(found[0], str) else list(map(names_of, found)),
    )


def held_out_fifth(labels: Sequence[str] | NDArray[np.str_], seed: int) -> NDArray[np.bool_]:
    """Which rows (N,) are held out: of each class every fifth, in an order shuffled by `seed`."""
    random = np.random.default_rng(seed)
    names = np.asarray(labels)
    held_out = np.zeros(len(names), dtype=bool)
    for name in np.unique(names):
        held_out[random.permutation(np.flatnonzero(names == name))[::HELD_OUT]] = True
    return held_out


def plain_features(embeddings: NDArray[np.float16], n_details: int) -> NDArray[np.float32]:
    """What the plain learner sees (N, D - n_details): embeddings without their details, scaled to length 1."""
    return normalise(embeddings[:, : embeddings.shape[1] - n_details])


# -- strategies -------------------------------------------------------------------------------------------------------


class Simulation:
    """One run: a pool whose labels are given when asked for."""

    def __init__(self, images: LabeledImages, *, seed: int, settings: Settings, step: int = 1) -> None:
        held_out = held_out_fifth(images.strata, seed)
        self.seed = seed
        self.step = step  # labels from one retrain to the next
        self.settings = settings
        self.table = _table(images.embeddings[~held_out])
        self.pool = Pool(self.table.embeddings, images.n_details)
        answers = list(zip(images.answers, held_out.tolist(), strict=True))
        self.truth = [label for label, is_out in answers if not is_out]  # by task id, which is the row in the table
        self.n_classes = len(named_classes(images.answers))
        self.test_embeddings = images.embeddings[held_out]
        self.test_labels = [label for label, is_out in answers if is_out]

    @property
    def size(self) -> int:
        """Images of the pool, labeled or not."""
        return len(self.truth)

    def labels(self, task_ids: Sequence[int]) -> TrainingLabels:
        """What a person would have answered for these tasks."""
        answers = {task_id: self.truth[task_id] for task_id in task_ids}
        return TrainingLabels(answers, frozenset(answers), frozenset(), {})

    def plan(
        self, task_ids: Sequence[int], *, settings: Settings | None = None, previous: Round | None = None
    ) -> Round:
        """The service's round after these tasks were labeled; `settings`: those of the simulation if None.

        As where labels come one by one and each version is evaluated before the next label.
        """
        settings = settings or self.settings
        chosen, _ = evaluate_labels(self.table, self.pool, self.labels(task_ids[:-1]), settings)
        return plan_round(
            self.table,
            self.pool,
            self.labels(task_ids),
            settings,
            n_classes=self.n_classes,
            previous_seed=previous.seed if previous else None,
            watch=Stopwatch(),
            chosen=chosen,
            start=previous.fitted if previous else None,
        )

    def accuracy(self, head: Head | None) -> float:
        """Share of held-out images whose prediction is right; without a head, that of the best constant answer."""
        if head is None:
            return max(Counter(self.test_labels).values()) / len(self.test_labels)
        return share_right(head.predicted(head.predict_proba(self.test_embeddings)), self.test_labels)

    def fit_plain(self, rows: Sequence[int], labels: Sequence[str]) -> Head:
        """The plain learner: logistic regression on L2-normalised embeddings without their details."""
        space = plain_space(self.pool.embeddings.shape[1])
        space.scale[len(space.scale) - self.pool.n_details :] = 0
        return fit_head(self.pool.embeddings[list(rows)], labels, space=space, strength=PLAIN_STRENGTH)


Strategy = Callable[[Simulation, Sequence[int]], Iterator[tuple[int, float]]]
"""(simulation, budgets ascending) → (budget, accuracy) as each is reached."""


def _service(acquisition: str | None = None) -> Strategy:
    """The service itself; with an ACQUISITION of its own unless it is that of the settings.

    A first-batch strategy runs throughout, so it also chooses the first batch.
    """

    def run(simulation: Simulation, budgets: Sequence[int]) -> Iterator[tuple[int, float]]:
        settings = replace(simulation.settings, acquisition=acquisition or simulation.settings.acquisition)
        if acquisition is not None and acquisition in FIRST_BATCH_STRATEGIES:
            settings = replace(settings, seed_strategy=acquisition)
        if acquisition == "random":  # in each run another order, that of `baseline`
            settings = replace(settings, random_state=simulation.seed, seed_size=simulation.size)
        task_ids: list[int] = []
        plan: Round | None = None
        while True:
            plan = simulation.plan(task_ids, settings=settings, previous=plan)
            if len(task_ids) in budgets:
                yield len(task_ids), simulation.accuracy(plan.fitted.head if plan.fitted else None)
            if len(task_ids) >= budgets[-1]:
                return
            budget = next(b for b in budgets if b > len(task_ids))
            task_ids += _labeled_before_order_changes(plan, budget, simulation.step)

    return run


def _labeled_before_order_changes(plan: Round, budget: int, step: int) -> list[int]:
    """The next `step` tasks; while the first batch lasts, whose order no label changes, the rest of it; to `budget`."""
    n_next = step
    if plan.seed is not None:
        n_next = len(set(plan.seed.task_ids).intersection(task_id for task_id, _ in plan.window))
    n_next = min(max(n_next, 1), budget - len(plan.labeled))
    return [task_id for task_id, _ in plan.window[:n_next]]


def _baseline(simulation: Simulation, budgets: Sequence[int]) -> Iterator[tuple[int, float]]:
    """Random order and a plain learner."""
    order = np.random.default_rng(simulation.seed).permutation(simulation.size)
    for budget in budgets:
        rows = order[:budget].tolist()
        labels = [label for row in rows if isinstance(label := simulation.truth[row], str)]
        head = None
        if len(set(labels)) > 1:
            head = simulation.fit_plain(rows, labels)
        yield budget, simulation.accuracy(head)


STRATEGIES: Mapping[str, tuple[str, Strategy]] = MappingProxyType(
    {
        "default": ("what the service does with these settings", _service()),
        "baseline": ("random, with L2-normalised embeddings and logistic regression, C = 100", _baseline),
        "random": ("random throughout, with the service's learner", _service("random")),
        "coreset": ("k-center greedy throughout; Sener & Savarese 2018 (Lightly: diversity)", _service("coreset")),
        "typical_coreset": ("Lightly's diversity and typicality throughout", _service("typical_coreset")),
        "typiclust": ("typical images of large clusters throughout; Hacohen et al. 2022", _service("typiclust")),
        "probcover": ("greatest coverage by balls throughout; Yehuda et al. 2022", _service("probcover")),
        "information_density": (
            "the service's first batch, then margin × typicality × diversity; Settles & Craven 2008, Xu et al. 2007",
            _service("information_density"),
        ),
        "margin": ("the service's first batch, then the smallest margin; Scheffer et al. 2001", _service("margin")),
        "least_confidence": (
            "the service's first batch, then the lowest confidence; Lewis & Gale 1994",
            _service("least_confidence"),
        ),
        "entropy": ("the service's first batch, then the highest entropy; Settles 2009", _service("entropy")),
        "coral": ("the service's first batch, then margin × diversity (Lightly: CORAL)", _service("coral")),
        "badge": ("the service's first batch, then unlike gradients; Ash et al. 2020", _service("badge")),
        "knn_of_high_loss": (
            "the service's first batch, then neighbours of the labels predicted worst",
            _service("knn_of_high_loss"),
        ),
    }
)
"""Name → (what it does and where it comes from, how it runs)."""


# -- runs -------------------------------------------------------------------------------------------------------------


def simulate(
    images: LabeledImages,
    *,
    strategies: Sequence[str],
    budgets: Sequence[int],
    n_seeds: int,
    settings: Settings,
    step: int = 1,
    n_jobs: int = 1,
) -> Iterator[Row]:
    """Every strategy at every budget with seeds 0 to `n_seeds` - 1, as they are measured.

    The seed decides which images are held out and what is random in a strategy. Strategies that ask the head learn anew
    after every `step` labels; the service does after every one. Seeds run in `n_jobs` processes.

    Raises SelectionError for an unknown strategy, for `baseline` where images may have several labels, and for budgets
    that are not 1 to the size of the pool.
    """
    unknown = [name for name in strategies if name not in STRATEGIES]
    if unknown:
        raise SelectionError(f"there is no strategy {unknown[0]!r}; choose of {', '.join(STRATEGIES)}")
    if images.sets is not None and "baseline" in strategies:
        raise SelectionError("the strategy 'baseline' knows one label per image, and these may have several")
    n_pool = int(np.sum(~held_out_fifth(images.strata, 0)))
    wanted = sorted(set(budgets))
    if not wanted or wanted[0] < 1 or wanted[-1] > n_pool:
        raise SelectionError(f"budgets are {list(budgets)}; expected whole numbers of 1 to {n_pool}, the pool's images")
    run = partial(_run, images, strategies, wanted, settings, step)
    if n_jobs == 1:
        for seed in range(n_seeds):
            yield from run(seed)
        return
    # New processes rather than forked ones: those of a program whose libraries have threads may hang.
    with ProcessPoolExecutor(min(n_jobs, n_seeds), mp_context=get_context("spawn")) as executor:
        for rows in executor.map(partial(_list, run), range(n_seeds)):
            yield from rows


def _run(
    images: LabeledImages, strategies: Sequence[str], budgets: Sequence[int], settings: Settings, step: int, seed: int
) -> Iterator[Row]:
    simulation = Simulation(images, seed=seed, settings=settings, step=step)
    for name in strategies:
        for budget, accuracy in STRATEGIES[name][1](simulation, budgets):
            yield Row(name, budget, seed, accuracy)


def _list(run: Callable[[int], Iterator[Row]], seed: int) -> list[Row]:
    with threadpool_limits(limits=1):  # as many processes as cores: more threads would only wait for each other
        return list(run(seed))


def report(
    rows: Sequence[Row], images: LabeledImages, backbone: Backbone, settings: Settings, step: int
) -> dict[str, Any]:
    """Everything needed to know what was measured, as plain JSON types; `rows` is the measurement."""
    counts = Counter(name for label in images.answers for name in names_of(label))
    return {
        "n_images": len(images.labels),
        "n_unreadable": images.n_unreadable,
        "classes": {name: counts[name] for name in sorted(counts)},
        "several": images.sets is not None,
        "held_out": f"one in {HELD_OUT} of each class, by seed",
        "backbone": backbone.name,
        "fingerprint": backbone.fingerprint,
        "seed_strategy": settings.seed_strategy,
        "seed_size": settings.seed_size,
        "acquisition": settings.acquisition,
        "window_size": settings.window_size,
        "step": step,
        "random_state": settings.random_state,
        "rows": [asdict(row) for row in rows],
    }


def summary(rows: Sequence[Row]) -> dict[str, dict[int, tuple[float, float]]]:
    """strategy → budget → mean accuracy and standard deviation over seeds (0 for a single seed)."""
    found: dict[str, dict[int, list[float]]] = {}
    for row in rows:
        found.setdefault(row.strategy, {}).setdefault(row.budget, []).append(row.accuracy)
    return {
        strategy: {
            budget: (float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0)
            for budget, values in by_budget.items()
        }
        for strategy, by_budget in found.items()
    }


def _table(embeddings: NDArray[np.float16]) -> EmbeddingTable:
    task_ids = np.arange(len(embeddings), dtype=np.int64)
    references = dict.fromkeys(task_ids.tolist(), "")
    return EmbeddingTable(task_ids, embeddings, failures={}, references=references, version=1)
