"""Accuracy per label beside scikit-activeml's query strategies: same embeddings, same folds, one table per data set.

`default` is the service itself, `baseline` random order with a plain learner, both as `python -m backend simulate` runs
them. The others are strategies of scikit-activeml (Kottke et al. 2021), used as its documentation shows, and once more
each with its order of labels and our learner, which tells what comes from the selection and what from the learner.

    python -m benchmarks.selection [--images DIR …] [--weights FILE] [--budgets 10,20,…] [--seeds 10]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from backend.adapters.backbones import Backbone
from backend.config import Settings
from backend.demo import write_digits
from backend.errors import BackendError
from backend.loop.simulate import (
    STRATEGIES,
    LabeledImages,
    Row,
    Simulation,
    embed_folder,
    held_out_fifth,
    plain_features,
    report,
    summary,
)
from backend.services import Services
from benchmarks import RESULTS, SHARED, WEIGHTS

BUDGETS = (10, 20, 30, 60, 120, 240)
N_SEEDS = 10
DATA_SETS = ("weather", "clothing")

OURS = "default"
BASELINE = "baseline"
OUR_LEARNER = " + our learner"

STRENGTH = 100.0
"""`C` of the plain learner, that of `baseline`."""

MAX_ITERATIONS = 1000
"""Of the plain learner; scikit-learn's 100 are too few at this strength."""

N_RANDOM = 10
"""Random labels a strategy begins with if it needs a model: the first of `baseline` with the same seed."""

MISSING_LABEL = -1

Query = Callable[[NDArray[np.int64], int], Sequence[int]]
"""(class numbers (N,), MISSING_LABEL where none is known; batch size) → rows to label next."""


@dataclass(frozen=True)
class QueryStrategy:
    """One of scikit-activeml: its class with its arguments, and how it is used here."""

    description: str
    class_name: str
    arguments: dict[str, Any]
    batch_size: int
    needs_model: bool = False
    needs_n_classes: bool = False


QUERY_STRATEGIES = {
    "margin": QueryStrategy(
        f"smallest margin after {N_RANDOM} random labels, one label at a time; Scheffer et al. 2001",
        "UncertaintySampling",
        {"method": "margin_sampling"},
        batch_size=1,
        needs_model=True,
    ),
    "typiclust": QueryStrategy(
        "the most typical of each cluster, from no label on, 10 at a time; Hacohen et al. 2022",
        "TypiClust",
        {},
        batch_size=10,
    ),
    "probcover": QueryStrategy(
        "covers most with balls of one radius, from no label on, 10 at a time; is told the number of classes; "
        "Yehuda et al. 2022",
        "ProbCover",
        {},
        batch_size=10,
        needs_n_classes=True,
    ),
    "coreset": QueryStrategy(
        "k-center greedy from a random image on, 10 at a time; Sener & Savarese 2018", "CoreSet", {}, batch_size=10
    ),
    "badge": QueryStrategy(
        f"k-means++ on gradient embeddings after {N_RANDOM} random labels, 10 at a time; Ash et al. 2020",
        "Badge",
        {},
        batch_size=10,
        needs_model=True,
    ),
}
"""Row of the table → strategy. Every other argument is scikit-activeml's default."""


@dataclass(frozen=True)
class Standing:
    """How `default` stands at one budget beside the best of some others.

    lead: mean over seeds of its accuracy minus the other's, so negative where it is behind.
    standard_error: of that mean; None with a single seed.
    """

    budget: int
    best_other: str
    lead: float
    standard_error: float | None

    @property
    def verdict(self) -> str:
        """Who is first, and whether by more than one standard error of the paired difference."""
        if self.lead == 0:
            return f"{OURS} and {self.best_other} are level"
        first = OURS if self.lead > 0 else self.best_other
        if self.standard_error is None:
            return f"{first} first; one seed tells no standard error"
        return f"{first} first, {'by more than' if abs(self.lead) > self.standard_error else 'within'} a standard error"


# -- the command ------------------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> None:
    """Measures every data set, prints its table as Markdown and writes its JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, nargs="+", help="folders of class folders; default: those at hand")
    parser.add_argument("--weights", type=Path, help="BACKBONE_WEIGHTS; default: the setting, else those at hand")
    parser.add_argument("--budgets", type=whole_numbers, default=BUDGETS, help="numbers of labels, by commas")
    parser.add_argument("--seeds", type=int, default=N_SEEDS, help="runs, each with another held-out fifth")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    arguments = parser.parse_args(argv)
    if find_spec("skactiveml") is None:
        raise SystemExit("scikit-activeml is not installed; `make bench-selection` installs it and runs this")
    if arguments.seeds < 1 or arguments.jobs < 1:
        raise SystemExit(f"--seeds is {arguments.seeds} and --jobs {arguments.jobs}; expected at least 1 of each")
    try:
        with tempfile.TemporaryDirectory() as folder:
            run(arguments, Path(folder))
    except BackendError as exc:
        raise SystemExit(str(exc)) from exc


def run(arguments: argparse.Namespace, scratch: Path) -> None:
    """Embeds all data sets, so that what is wrong with one is told first, and measures one after the other."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as Ctrl-C: else the processes of the pool stay behind
    folders = arguments.images or [path for path in at_hand() if path.is_dir()]
    if not arguments.images:
        for path in at_hand():
            if not path.is_dir():
                log(f"there is no {path}: {path.name} is left out")
        write_digits(scratch / "digits")
        folders.append(scratch / "digits")
    check_folders(folders)
    settings = Settings.from_environment()
    weights = arguments.weights or settings.backbone_weights
    if weights is None and settings.backbone == "mobilenet_v2" and WEIGHTS.is_file():
        weights = WEIGHTS
    settings = replace(settings, backbone_weights=weights)
    backbone = Services(settings).backbone()
    if backbone.warning:
        log(f"note: {backbone.warning}")
    data_sets = {folder.name: embed(backbone, folder) for folder in folders}
    for name, images in data_sets.items():
        check_budgets(arguments.budgets, images, name)
    for name, images in data_sets.items():
        started = time.monotonic()
        rows = measure_all(name, images, arguments, settings)
        result = {
            "images": name,
            **report(rows, images, backbone, settings, 1),
            "n_seeds": arguments.seeds,
            "strategies": descriptions(),
            "versions": {package: version(package) for package in ("scikit-activeml", "scikit-learn", "numpy")},
            "took_s": round(time.monotonic() - started),
            "jobs": arguments.jobs,
            "standings": {
                title: [asdict(item) for item in standings(rows, names)] for title, names in comparisons(rows)
            },
        }
        RESULTS.mkdir(parents=True, exist_ok=True)
        (RESULTS / f"selection-{name}.json").write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n")
        print(f"\n{name}: accuracy on the held-out fifth, mean ± standard deviation of {arguments.seeds} seeds\n")
        print(table(rows))
        for title, names in comparisons(rows):
            print(f"\n{OURS} beside {title}; lead ± standard error of the paired difference\n")
            print(standings_table(standings(rows, names)), flush=True)
    print()
    for name, description in descriptions().items():
        print(f"{name}: {description}")


def at_hand() -> list[Path]:
    """Data sets measured unless others are named, whether they are there or not; the digits come on top."""
    return [SHARED / "data" / name for name in DATA_SETS]


def check_folders(folders: Sequence[Path]) -> None:
    """Raises SystemExit for a folder that is not there, and for two of one name, as results are filed by it."""
    for folder in folders:
        if not folder.is_dir():
            raise SystemExit(f"--images {folder} is not a folder; give folders of class folders")
    names = [folder.name for folder in folders]
    for name in names:
        if names.count(name) > 1:
            raise SystemExit(f"--images names two folders {name!r}; results are filed by name, so rename one")


def check_budgets(budgets: Sequence[int], images: LabeledImages, name: str) -> None:
    """Raises SystemExit for a budget larger than the pool."""
    n_pool = int(np.sum(~held_out_fifth(images.labels, 0)))
    if budgets[-1] > n_pool:
        raise SystemExit(f"--budgets goes to {budgets[-1]}; expected at most {n_pool}, the images of {name}'s pool")


def whole_numbers(text: str) -> tuple[int, ...]:
    """Numbers of labels, ascending, each once."""
    try:
        numbers = sorted({int(part) for part in text.split(",")})
    except ValueError:
        numbers = [0]
    if numbers[0] < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of whole numbers of at least 1, such as 10,30,60")
    return tuple(numbers)


def embed(backbone: Backbone, folder: Path) -> LabeledImages:
    """Embeds a folder once for all strategies and seeds."""
    images = embed_folder(
        backbone, folder, lambda done, total: log(f"{folder.name}: {done} of {total} images embedded")
    )
    if images.n_unreadable:
        log(f"{folder.name}: {images.n_unreadable} files are no images and are left out")
    return images


def log(line: str) -> None:
    """Progress, on standard error."""
    print(line, file=sys.stderr, flush=True)


# -- measuring --------------------------------------------------------------------------------------------------------


def measure_all(name: str, images: LabeledImages, arguments: argparse.Namespace, settings: Settings) -> list[Row]:
    """Every strategy with every seed, in several processes; rows in the order of the table."""
    # The service takes longest and goes first, so that no process is left waiting for it at the end.
    runs = [(strategy, seed) for strategy in (OURS, BASELINE, *QUERY_STRATEGIES) for seed in range(arguments.seeds)]
    rows: list[Row] = []
    pool = ProcessPoolExecutor(arguments.jobs, mp_context=get_context("spawn"))
    try:
        futures = {
            pool.submit(measure, images, strategy, seed=seed, budgets=arguments.budgets, settings=settings): (
                strategy,
                seed,
            )
            for strategy, seed in runs
        }
        for n_done, future in enumerate(as_completed(futures), start=1):
            found, seconds = future.result()
            rows += found
            strategy, seed = futures[future]
            log(f"{name}: {n_done} of {len(runs)} runs; {strategy}, seed {seed}: {seconds:.1f} s")
    finally:
        pool.shutdown(cancel_futures=True)
    order = [OURS, BASELINE, *QUERY_STRATEGIES, *(name + OUR_LEARNER for name in (BASELINE, *QUERY_STRATEGIES))]
    return sorted(rows, key=lambda row: (order.index(row.strategy), row.budget, row.seed))


def measure(
    images: LabeledImages, strategy: str, *, seed: int, budgets: Sequence[int], settings: Settings
) -> tuple[list[Row], float]:
    """One run of one strategy, and of its order with our learner; and how many seconds it took.

    Runs in a process of its own, on one thread: several runs at once use the cores better than several threads in one.
    """
    started = time.monotonic()
    simulation = Simulation(images, seed=seed, settings=settings)
    with threadpool_limits(limits=1):
        if strategy in QUERY_STRATEGIES:
            order = queried_order(QUERY_STRATEGIES[strategy], simulation, budgets[-1])
            held_out = held_out_fifth(images.labels, seed)
            plain = with_plain_learner(images, held_out, order, budgets)
        else:
            order = random_order(simulation.size, seed)
            plain = STRATEGIES[strategy][1](simulation, budgets)
        rows = [Row(strategy, budget, seed, accuracy) for budget, accuracy in plain]
        if strategy != OURS:
            for budget, accuracy in with_our_learner(simulation, order, budgets):
                rows.append(Row(strategy + OUR_LEARNER, budget, seed, accuracy))
    return rows, time.monotonic() - started


def random_order(n_rows: int, seed: int) -> list[int]:
    """The order of `baseline`."""
    order: list[int] = np.random.default_rng(seed).permutation(n_rows).tolist()
    return order


def queried_order(asked: QueryStrategy, simulation: Simulation, budget: int) -> list[int]:
    """Rows of the pool in the order in which a strategy of scikit-activeml asks for their labels."""
    from skactiveml import pool
    from skactiveml.classifier import SklearnClassifier

    names, numbers = np.unique(simulation.truth, return_inverse=True)
    features = plain_features(simulation.pool.embeddings, simulation.pool.n_details)
    arguments = {**asked.arguments, "missing_label": MISSING_LABEL, "random_state": simulation.seed}
    if asked.needs_n_classes:
        arguments["n_classes"] = len(names)
    strategy = getattr(pool, asked.class_name)(**arguments)
    model = {}
    if asked.needs_model:
        model["clf"] = SklearnClassifier(
            plain_learner(), classes=np.arange(len(names)), missing_label=MISSING_LABEL, random_state=simulation.seed
        )

    def query(labels: NDArray[np.int64], batch_size: int) -> Sequence[int]:
        return list(strategy.query(features, labels, batch_size=batch_size, **model))

    first = random_order(simulation.size, simulation.seed)[:N_RANDOM] if asked.needs_model else []
    return label_order(query, numbers, first=first, batch_size=asked.batch_size, budget=budget)


def label_order(
    query: Query, answers: NDArray[np.int64], *, first: Sequence[int], batch_size: int, budget: int
) -> list[int]:
    """`budget` rows in the order asked for: `first`, then batch by batch what `query` wants to know.

    `answers` (N,) are class numbers; `query` sees those of the rows it asked for, and of `first`.
    """
    order = list(first)[:budget]
    labels = np.full(len(answers), MISSING_LABEL)
    labels[order] = answers[order]
    while len(order) < budget:
        rows = [int(row) for row in query(labels.copy(), min(batch_size, budget - len(order)))]
        order += rows
        labels[rows] = answers[rows]
        if len(set(order)) < len(order):
            raise RuntimeError(f"asked for rows {rows} after {order[: -len(rows)]}; expected each row once")
    return order


def plain_learner() -> LogisticRegression:
    """What learns from scikit-activeml's selections, for asking and for measuring."""
    return LogisticRegression(C=STRENGTH, max_iter=MAX_ITERATIONS)


def with_plain_learner(
    images: LabeledImages, held_out: NDArray[np.bool_], order: Sequence[int], budgets: Sequence[int]
) -> Iterator[tuple[int, float]]:
    """(budget, accuracy on the held-out images) of the plain learner on the first labels of an order of the pool.

    With one class labeled the answer is the best constant one, as `Simulation.accuracy` has it for all.
    """
    features, labels = plain_features(images.embeddings, images.n_details), images.labels
    pool = np.flatnonzero(~held_out)
    for budget in budgets:
        rows = pool[list(order[:budget])]
        if len(set(labels[rows])) > 1:
            answers = plain_learner().fit(features[rows], labels[rows]).predict(features[held_out])
            yield budget, float(np.mean(answers == labels[held_out]))
        else:
            yield budget, float(np.unique(labels[held_out], return_counts=True)[1].max() / held_out.sum())


def with_our_learner(
    simulation: Simulation, order: Sequence[int], budgets: Sequence[int]
) -> Iterator[tuple[int, float]]:
    """(budget, accuracy on the held-out images) of what the service learns from the first labels of an order."""
    for budget in budgets:
        plan = simulation.plan(order[:budget])
        yield budget, simulation.accuracy(plan.fitted.head if plan.fitted else None)


# -- tables -----------------------------------------------------------------------------------------------------------


def descriptions() -> dict[str, str]:
    """What each row of the table is."""
    plain = f"L2-normalised embeddings, logistic regression, C = {STRENGTH:g}"
    return {
        OURS: STRATEGIES[OURS][0],
        BASELINE: STRATEGIES[BASELINE][0],
        **{
            name: f"scikit-activeml {asked.class_name}, {asked.description}; {plain}"
            for name, asked in QUERY_STRATEGIES.items()
        },
        f"…{OUR_LEARNER}": "the same order of labels, with what the service learns from them",
    }


def comparisons(rows: Sequence[Row]) -> list[tuple[str, list[str]]]:
    """Whom `default` is compared with: (title, rows of the table)."""
    others = [name for name in summary(rows) if name != OURS]
    return [
        ("the others", [name for name in others if not name.endswith(OUR_LEARNER)]),
        ("their orders with our learner", [name for name in others if name.endswith(OUR_LEARNER)]),
    ]


def table(rows: Sequence[Row]) -> str:
    """Markdown: a line per strategy, a column per budget, mean ± standard deviation."""
    found = summary(rows)
    budgets = sorted({row.budget for row in rows})
    lines = [["labels", *map(str, budgets)]]
    for name, by_budget in found.items():
        lines.append([name, *("{:.3f} ± {:.3f}".format(*by_budget[budget]) for budget in budgets)])
    return markdown(lines)


def standings(rows: Sequence[Row], others: Sequence[str]) -> list[Standing]:
    """`default` beside the best of `others` at each budget, ascending; of equal means the first named is the best."""
    means = summary(rows)
    found = []
    for budget in sorted({row.budget for row in rows}):
        best = max(others, key=lambda name: means[name][budget][0])
        found.append(Standing(budget, best, *paired_difference(rows, OURS, best, budget)))
    return found


def paired_difference(rows: Sequence[Row], one: str, other: str, budget: int) -> tuple[float, float | None]:
    """Mean over seeds of one strategy's accuracy minus another's, and the standard error of that mean.

    Paired: runs of one seed share their held-out fifth, so what a fold adds to both drops out. The standard error is
    s / √n with s the sample standard deviation of the n differences; None for n = 1. Raises ValueError unless both were
    measured with the same seeds.
    """
    ours, theirs = (
        {row.seed: row.accuracy for row in rows if row.strategy == name and row.budget == budget}
        for name in (one, other)
    )
    if not ours or ours.keys() != theirs.keys():
        raise ValueError(
            f"at {budget} labels {one} has seeds {sorted(ours)} and {other} {sorted(theirs)}; expected the same"
        )
    # Accuracies are shares of some hundred images: a difference this small is rounding, and rounding is no lead.
    differences = np.array([ours[seed] - theirs[seed] for seed in ours]).round(12)
    error = float(differences.std(ddof=1) / math.sqrt(len(differences))) if len(differences) > 1 else None
    return round(float(differences.mean()), 12), error


def standings_table(found: Sequence[Standing]) -> str:
    """Markdown: a line per budget."""
    lines = [["labels", "best other", "lead", "verdict"]]
    for standing in found:
        error = "" if standing.standard_error is None else f" ± {standing.standard_error:.3f}"
        lines.append([str(standing.budget), standing.best_other, f"{standing.lead:+.3f}{error}", standing.verdict])
    return markdown(lines)


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table, its columns aligned; the first line is the heading."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = ["| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in lines]
    return "\n".join([padded[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *padded[1:]])


if __name__ == "__main__":
    main()
