"""All that was measured beside what is asked of it: one table of the results kept in benchmarks/results.

python -m benchmarks.summary
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import RESULTS
from benchmarks.labeler import CHECKPOINTS

Result = Mapping[str, Any]


@dataclass(frozen=True)
class Figure:
    """One line: what was measured, and the bound it must keep, a lower one if `at_least`; none: nothing is asked."""

    what: str
    measured: float
    bound: float | None = None
    at_least: bool = False

    @property
    def is_kept(self) -> bool | None:
        """Whether the bound is kept; None without one."""
        if self.bound is None:
            return None
        return self.measured >= self.bound if self.at_least else self.measured <= self.bound


def main() -> None:
    """Prints the table."""
    print_table(list(figures(RESULTS)))


def figures(folder: Path) -> Iterator[Figure]:
    """The figures of every result that is there; a file of another form than expected raises KeyError."""
    for pattern, read in READERS.items():
        for path in sorted(folder.glob(f"{pattern}.json")):
            yield from read(json.loads(path.read_text()))


def print_table(rows: list[Figure]) -> None:
    """A line for each figure, and how many bounds are kept."""
    for row in rows:
        asked = "" if row.bound is None else f"{'≥' if row.at_least else '≤'} {row.bound:g}"
        print(f"{row.what:<86} {row.measured:>10.4g}  {asked:<9} {'' if row.is_kept is not False else 'NOT KEPT'}")
    bound = [row for row in rows if row.is_kept is not None]
    print(f"{sum(bool(row.is_kept) for row in bound)} of {len(bound)} bounds are kept")


def labeler(result: Result) -> Iterator[Figure]:
    """A labeler's session: accuracy at 60 labels, and the order of the queue."""
    name = f"labeler, {result['images']}"
    for n in CHECKPOINTS:
        if str(n) in result["accuracy_held_out"]:
            floor = 0.92 if (n, result["images"]) == (60, "weather") else None
            yield Figure(f"{name}: held-out accuracy at {n} labels", result["accuracy_held_out"][str(n)], floor, True)
    share = result["served_from_newest_version"] / result["labels_submitted"]
    yield Figure(f"{name}: share of tasks served from the version with the last label, no pause", share)


PEERS_OF_KCENTER = ("numpy", "lightly-mundig", "scikit-activeml")
SUBMIT_BOUNDS = {"zero-lag": {"median": 0.30, "p95": 0.45}, "five": {"p95": 0.7}}
PUBLISH_P95 = {1_000: 0.5, 10_000: 0.7, 100_000: 1.5}


def latency(result: Result) -> Iterator[Figure]:
    """What people wait for."""
    for row in result["rows"]:
        kind, name = row["row"].partition(" ")[0], f"lag, {row['row']}"
        if kind != "publish":
            bounds = SUBMIT_BOUNDS[kind]
            for quantile in ("median", "p95"):
                yield Figure(f"{name}: Submit, {quantile}, s", row["submit_s"][quantile], bounds.get(quantile))
            if "baseline_submit_s" in row:
                yield Figure(f"{name}: Submit without a backend, median, s", row["baseline_submit_s"]["median"])
        if kind == "zero-lag":
            share = row["next_knows_last_label_share"]
            yield Figure(f"{name}: share of next tasks from a version with the last label", share, 0.99, True)
        published = row["webhook_to_published_s"]
        if kind == "publish" or row["pool"] == 1_000:
            median = 0.25 if kind != "five" and row["pool"] == 1_000 else None
            yield Figure(f"{name}: webhook → version, median, s", published["median"], median)
        if kind != "five":
            yield Figure(f"{name}: webhook → version, p95, s", published["p95"], PUBLISH_P95.get(row["pool"]))
        else:
            yield Figure(f"{name}: Submit → version, longest, s", row["submit_to_published_s"]["max"], 1.5)
        yield Figure(f"{name}: labels lost", row["labels_lost"], 0)


def service(result: Result) -> Iterator[Figure]:
    """The service by itself."""
    webhook, predict, memory = result["webhook"], result["predict"], result["memory"]
    what = f"webhook answer at {webhook['events_per_s']:g} events/s while training, no wait"
    yield Figure(f"{what}: p99, ms", webhook["p99_ms"], 20)
    for row in predict["tasks_per_s"]:
        bound = 2000 if row["batch"] > 1 else None
        what = f"/predict, pool of {row['pool']:,}, {row['batch']:,} tasks a request, tasks/s"
        yield Figure(what, row["tasks_per_s"], bound, True)
    for row in predict["cold_first_answer_s"]:
        yield Figure(f"/predict, first answer after the start, pool of {row['pool']:,}, longest, s", row["max"], 1)
    after = f"after {memory['answers']:,} retrains"
    yield Figure(f"web worker {after}, MB", memory["last_kb"]["web_rss"] / 1024, 500)
    bound = 1200 + memory["embeddings_kb"] / 1024
    yield Figure(f"RQ worker {after}, MB (1,200 and the embeddings)", memory["last_kb"]["rq_rss"] / 1024, bound)
    for name, kind in (("web worker", "web_rss"), ("RQ worker", "rq_rss")):
        growth = memory["growth_kb_per_retrain"][kind]
        yield Figure(f"{name}: growth over the last retrains, kB each (16: 16 MB in 1,000)", growth, 16)


def peer(result: Result) -> Iterator[Figure]:
    """The same answers to this service and to label-studio-ml's own server."""
    for row in result["rows"]:
        name = f"{row['situation']}: {row['system']}"
        is_ours = row["system"].startswith("this service")
        yield Figure(f"{name}: labels lost", row["labels_lost"], 0 if is_ours else None)
        if row["to_version_s"]["median"] is not None:
            yield Figure(f"{name}: to a version with the label, median, s", row["to_version_s"]["median"])
        yield Figure(f"{name}: webhook answer, median, ms", row["webhook_ms"]["median"])


def embedding(result: Result) -> Iterator[Figure]:
    """Rates of embedding, compared within each repetition."""

    def ratio(one: str, other: str, part: str) -> float:
        pairs = zip(result[part][one]["rates"], result[part][other]["rates"], strict=True)
        ratios = sorted(a / b for a, b in pairs)
        return float(ratios[len(ratios) // 2])

    yield Figure("embedding: least cosine to torch", result["agreement"]["least_cosine"], 0.999, True)
    network = "network, as the worker batches"
    yield Figure("embedding from files / the bare network", ratio("worker, files", network, "one_core"), 0.9, True)
    yield Figure("embedding over HTTP / the bare network", ratio("worker, HTTP", network, "one_core"))
    for name in result["one_core"]:
        if name.startswith("torch, "):
            bound = None if name == "torch, 4 at once" else 2.5  # eager torch is fastest so, and nobody batches so
            yield Figure(f"embedding from files / eager {name}", ratio("worker, files", name, "one_core"), bound, True)
    if "scaling" in result:
        two = ratio("two workers on two cores", "one worker on one core", "scaling")
        yield Figure("two workers on two cores / one on one", two, 1.8, True)


def kcenter(result: Result) -> Iterator[Figure]:
    """Selection beside others, in the same run."""
    for shape in result["shapes"]:
        for row in shape["measured"]:
            name = f"100 of {shape['shape']}: {row['name']}"
            if row["name"] == "ours":
                yield Figure(f"{name}, s", row["seconds"])
                yield Figure(f"{name}, peak memory / the array", row["peak_bytes_to_array"], 1.2)
            elif row["name"] in PEERS_OF_KCENTER:
                yield Figure(f"{name}, seconds / ours", row["times_ours"], 1, True)
                yield Figure(f"{name}, covering radius / ours", row["radius_to_ours"], 0.999, True)


def scaling(result: Result) -> Iterator[Figure]:
    """A project in shards."""
    for size, row in result.get("shards", {}).items():
        name = f"{int(size):,} images in shards"
        yield Figure(f"{name}: search of one, s", row["search of a shard, by a head, s"])
        yield Figure(f"{name}: round, s", row["next round, s"])
        yield Figure(f"{name}: worker's peak memory, MB", row["peak memory, MB"])
        what = "first batch: covering radius / at once"
        yield Figure(f"{name}, {what}", row[what], 4)
        what = "30 most useful in the working set, later"
        yield Figure(f"{name}, {what}", row[what])


def fuzz(result: Result) -> Iterator[Figure]:
    """Malformed requests."""
    yield Figure("malformed requests sent", result["requests"], 20_000, True)
    yield Figure("malformed requests: faults (5xx, hang, no sentence, growth, …)", result["n_faults"], 0)
    yield Figure("malformed requests: slowest answer, s", result["slowest_s"])
    yield Figure("malformed requests: growth of a web process, kB", result["max_growth_kb"], 24 * 1024)
    what = f"/health beside {result['stalled_clients']} stalled clients, slowest, s"
    yield Figure(what, result["health_while_stalled_s"])


def readme(result: Result) -> Iterator[Figure]:
    """A newcomer in a clean container."""
    yield Figure("README followed: clone to first label, s", result["clone_to_first_label_s"], 600)
    yield Figure("README followed: of that, packages fetched and installed, s", result["of_which_packages_s"])
    yield Figure("README followed: second start, s", result["second_start_s"])


READERS: Mapping[str, Callable[[Result], Iterator[Figure]]] = {
    "labeler-*": labeler,
    "latency": latency,
    "service": service,
    "peer": peer,
    "embedding": embedding,
    "kcenter": kcenter,
    "scaling": scaling,
    "fuzz": fuzz,
    "readme": readme,
}


if __name__ == "__main__":
    main()
