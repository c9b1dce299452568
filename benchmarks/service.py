"""The service by itself: its webhook under load while it trains, predictions per second, and memory over retrains.

The web service under gunicorn and the worker as they always run, with a Redis server of their own. In Label Studio's
place stands `benchmarks.stand_in`, which takes answers as fast as they come and costs nothing; embeddings are made up,
as many numbers each as the backbone's.

    python -m benchmarks.service [--quick] [--weights FILE]
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import numpy as np

from backend.adapters.registry import Registry
from backend.learning.features import pool_space
from backend.learning.head import fit_head
from backend.schema import VersionRecord
from benchmarks import RESULTS, stack
from benchmarks.stand_in import CREATED_AT, LABEL_CONFIG, LABELS

RATE = 50.0
"""Events per second under which the webhook is measured."""

SUBMITTED_BEFORE_S = 0.5
"""How long before its webhook an answer is recorded in the stand-in."""

LOADED_POOL = 10_000
RETRAINED_POOL = 2_000
COLD_POOLS = (1_000, 10_000, 100_000)
BATCH_SIZES = (1, 32, 250, 1_000)
N_COLD_STARTS = 3
N_FIRST_LABELS = 20
N_LABELED = 200
"""Tasks that get a label; answers after that change labels, so that what is kept of them need not grow."""

ASKED: dict[str, float] = {
    "webhook p99 (ms)": 20,
    "predict (tasks/s)": 2_000,
    "cold first answer (s)": 1,
    "web worker (MB)": 500,
    "rq worker without embeddings (MB)": 1_200,
}

Answer = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, writes service.json, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="about a minute: less of everything")
    parser.add_argument("--weights", type=Path, help="BACKBONE_WEIGHTS for mobilenet_v2")
    parser.add_argument("--only", choices=["webhook", "predict", "memory"], help="one part; nothing is written")
    arguments = parser.parse_args(argv)
    quick = arguments.quick
    content: Answer = {
        "label_studio": "a stand-in that answers from memory",
        "embeddings": "made up: 40 clusters, four labels",
        "quick": quick,
        "load_before": stack.load_of_machine(),
    }
    backbone = stack.UsedBackbone.load(arguments.weights)
    content["backbone"], content["features"] = backbone.settings.get("BACKBONE", "mobilenet_v2"), backbone.dim
    parts = {
        "webhook": lambda: measure_webhook(backbone, seconds=10 if quick else 60),
        "predict": lambda: measure_predictions(
            backbone, COLD_POOLS[:2] if quick else COLD_POOLS, seconds=1 if quick else 3
        ),
        "memory": lambda: measure_memory(backbone, n_retrains=50 if quick else 1000),
    }
    for name, measure in parts.items():
        if arguments.only in (None, name):
            print(f"{name} …", file=sys.stderr)
            content[name] = measure()
    content["load_after"] = stack.load_of_machine()
    if not arguments.only:
        RESULTS.mkdir(parents=True, exist_ok=True)
        (RESULTS / "service.json").write_text(json.dumps(content, indent=2) + "\n")
    print_table(content)


# -- the webhook under load -------------------------------------------------------------------------------------------


def measure_webhook(backbone: stack.UsedBackbone, seconds: float) -> Answer:
    """How long webhooks take to be answered at `RATE` while the worker trains on what they tell."""
    embeddings, labels = stack.made_up_pool(LOADED_POOL, backbone.dim)
    with ExitStack() as stop:
        service, person = stack.prepare(stop, {1: LOADED_POOL}, backbone, publish_wait_s="0", web_workers="2")
        stack.write_pool(service.registry, 1, backbone.fingerprint, embeddings)
        for task_id in range(1, N_FIRST_LABELS + 1):
            person.submit(task_id, labels[task_id - 1])
        stop.enter_context(service.web())
        stop.enter_context(service.worker(1, N_FIRST_LABELS))
        due = stack.schedule(RATE, seconds)
        before = service.n_versions(1)
        # Recorded in the stand-in shortly before: earlier, and the worker would find all of them at its first look.
        events: list[Future[Answer]] = [Future() for _ in due]

        def submit(number: int) -> None:
            events[number].set_result(person.submit(*answer_of(number, labels)))

        submitting = Thread(target=stack.open_loop, args=(submit, due), kwargs={"n_threads": 1})
        submitting.start()
        time.sleep(SUBMITTED_BEFORE_S)
        took = stack.open_loop(lambda number: service.send_event(events[number].result(timeout=60)), due)
        submitting.join()
        n_versions = service.n_versions(1) - before
        record = service.registry.published_record(1)
        stages = sum(record.stage_seconds.values()) if record else 0.0
    return {
        "pool": LOADED_POOL,
        "events": len(due),
        "events_per_s": RATE,
        "web_workers": 2,
        "median_ms": 1000 * stack.quantile(took, 0.5),
        "p99_ms": 1000 * stack.quantile(took, 0.99),
        "max_ms": 1000 * max(took),
        "versions_published_meanwhile": n_versions,
        "last_retrain_s": stages,
        "load": stack.load_of_machine(),
    }


def answer_of(number: int, labels: Sequence[str]) -> tuple[int, str]:
    """(task, label) of a person's n-th answer after the first labels: new labels up to `N_LABELED`, then changes.

    Changes turn labels to the next class and, the next time round, back.
    """
    n_new = N_LABELED - N_FIRST_LABELS
    if number < n_new:
        task_id = N_FIRST_LABELS + 1 + number
        return task_id, labels[task_id - 1]
    turn, position = divmod(number - n_new, N_LABELED)
    turned = (LABELS.index(labels[position]) + (turn + 1) % 2) % len(LABELS)
    return position + 1, LABELS[turned]


# -- predictions ------------------------------------------------------------------------------------------------------


def measure_predictions(backbone: stack.UsedBackbone, pools: Sequence[int], seconds: float) -> Answer:
    """Tasks per second of one web process, one request after the other; and the first answer after its start."""
    random = np.random.default_rng(0)
    with ExitStack() as stop:
        projects = dict(enumerate(pools, start=1))
        service, _ = stack.prepare(stop, projects, backbone, web_workers="1")
        for project_id, n_tasks in projects.items():
            embeddings, labels = stack.made_up_pool(n_tasks, backbone.dim)
            stack.write_pool(service.registry, project_id, backbone.fingerprint, embeddings)
            publish_head(service.registry, project_id, backbone.fingerprint, embeddings, labels)
        first: dict[int, list[float]] = {}
        rates: list[Answer] = []
        memory: list[Answer] = []
        starts: list[float] = []
        for start in range(N_COLD_STARTS):
            for project_id, n_tasks in projects.items():
                begun = time.monotonic()
                with service.web() as pid, httpx.Client(timeout=60) as client:
                    starts.append(time.monotonic() - begun)
                    asked = (random.choice(n_tasks, 100, replace=False) + 1).tolist()
                    started = time.monotonic()
                    service.predict(client, project_id, asked)
                    first.setdefault(n_tasks, []).append(time.monotonic() - started)
                    if start:
                        continue
                    for size in BATCH_SIZES:
                        rate = _rate(service, client, project_id, n_tasks, size, seconds, random)
                        rates.append({"pool": n_tasks, "batch": size, "tasks_per_s": rate})
                    (worker,) = stack.children(pid)
                    memory.append({"pool": n_tasks, **stack.memory_kb(worker)})
    return {
        "web_workers": 1,
        "clients": 1,
        "cold_first_answer_s": [
            {"pool": n_tasks, "tasks": 100, "median": float(np.median(took)), "max": max(took), "starts": len(took)}
            for n_tasks, took in first.items()
        ],
        "start_to_health_s": {"median": float(np.median(starts)), "max": max(starts), "starts": len(starts)},
        "tasks_per_s": rates,
        "web_worker_kb_after": memory,
        "load": stack.load_of_machine(),
    }


def _rate(
    service: stack.Service, client: httpx.Client, project_id: int, n_tasks: int, size: int, seconds: float, random: Any
) -> float:
    n_answered, spent = 0, 0.0
    while spent < seconds:
        asked = (random.choice(n_tasks, size, replace=False) + 1).tolist()
        started = time.monotonic()
        service.predict(client, project_id, asked)
        spent += time.monotonic() - started
        n_answered += size
    return n_answered / spent


def publish_head(
    registry: Registry, project_id: int, fingerprint: str, embeddings: np.ndarray, labels: Sequence[str]
) -> None:
    """A published version without a worker: a plain logistic regression on a hundred labels."""
    head = fit_head(embeddings[:100], labels[:100], space=pool_space(embeddings), strength=10.0)
    version = "v0001-100labels-20260101T000000Z"
    record = VersionRecord(
        version=version, kind="model", created_at=CREATED_AT, project_id=project_id, label_config=LABEL_CONFIG,
        classes=list(head.classes), labels_used=100, labels_by_class={}, ignored_labels={}, strength=head.strength,
        acquisition="margin", backbone="made up", fingerprint=fingerprint, random_state=0, pool_size=len(embeddings),
        window=[], seed_task_ids=[], seed_engine=None, seed_engine_reason=None, inputs_digest="made up",
    )  # fmt: skip
    registry.save(record, head)
    registry.publish(project_id, version)


# -- memory -----------------------------------------------------------------------------------------------------------


def measure_memory(backbone: stack.UsedBackbone, n_retrains: int) -> Answer:
    """Resident memory of a web process, the worker and its supervisor over retrains, each after an answer and before a
    prediction."""
    embeddings, labels = stack.made_up_pool(RETRAINED_POOL, backbone.dim)
    with ExitStack() as stop:
        service, person = stack.prepare(stop, {1: RETRAINED_POOL}, backbone, publish_wait_s="30", web_workers="1")
        stack.write_pool(service.registry, 1, backbone.fingerprint, embeddings)
        for task_id in range(1, N_FIRST_LABELS + 1):
            person.submit(task_id, labels[task_id - 1])
        web = stop.enter_context(service.web())
        supervisor = stop.enter_context(service.worker(1, N_FIRST_LABELS))
        client = stop.enter_context(httpx.Client(timeout=60))
        pids = {"web": stack.children(web)[0], "rq": stack.children(supervisor)[0], "supervisor": supervisor}
        samples = [{"retrains": 0, **_memory(pids)}]
        before = service.n_versions(1)
        started = time.monotonic()
        for number in range(n_retrains):
            known = service.n_versions(1)
            service.send_event(person.submit(*answer_of(number, labels)))
            # The webhook does not wait for its version while another is under way, as it is for who never pauses.
            service.await_version_after(1, known)
            service.predict(client, 1, [1 + number % RETRAINED_POOL])
            if (number + 1) % 10 == 0:
                samples.append({"retrains": number + 1, **_memory(pids)})
        took = time.monotonic() - started
        n_versions = service.n_versions(1) - before
    later = [sample for sample in samples if sample["retrains"] >= n_retrains // 2]
    growth = {
        name: stack.slope([sample["retrains"] for sample in later], [sample[name] for sample in later])
        for name in ("web_rss", "web_pss", "rq_rss", "rq_pss")
    }
    return {
        "pool": RETRAINED_POOL,
        "embeddings_kb": embeddings.nbytes // 1024,
        "answers": n_retrains,
        "versions_published": n_versions,
        "seconds": took,
        "first_kb": samples[0],
        "last_kb": samples[-1],
        "max_kb": {name: max(sample[name] for sample in samples) for name in growth},
        "growth_kb_per_retrain": growth,
        "growth_fitted_over": [later[0]["retrains"], later[-1]["retrains"]],
        "samples": samples,
        "load": stack.load_of_machine(),
    }


def _memory(pids: dict[str, int]) -> dict[str, int]:
    return {f"{name}_{kind}": kb for name, pid in pids.items() for kind, kb in stack.memory_kb(pid).items()}


# -- the table --------------------------------------------------------------------------------------------------------


def print_table(content: Answer) -> None:
    """One line per figure, with what is asked of it."""
    for name, value, asked in rows_of(content):
        print(f"{name:<64} {value:>12}  {asked}")


def rows_of(content: Answer) -> Iterator[tuple[str, str, str]]:
    """(what, figure, what is asked) of everything measured."""
    if webhook := content.get("webhook"):
        what = f"webhook answer at {webhook['events_per_s']:g} events/s while training"
        yield f"{what}: median, ms", f"{webhook['median_ms']:.1f}", ""
        yield f"{what}: p99, ms", f"{webhook['p99_ms']:.1f}", f"≤ {ASKED['webhook p99 (ms)']:g}"
        yield f"{what}: maximum, ms", f"{webhook['max_ms']:.1f}", ""
        yield "  versions published meanwhile", str(webhook["versions_published_meanwhile"]), ""
    if predictions := content.get("predict"):
        for row in predictions["tasks_per_s"]:
            what = f"/predict, pool of {row['pool']:,}, {row['batch']:,} tasks a request: tasks/s"
            yield what, f"{row['tasks_per_s']:,.0f}", f"≥ {ASKED['predict (tasks/s)']:,g}" if row["batch"] > 1 else ""
        what = "start of the web service until /health answers: median, s"
        yield what, f"{predictions['start_to_health_s']['median']:.1f}", ""
        for row in predictions["cold_first_answer_s"]:
            what = f"first answer after the start, pool of {row['pool']:,}: longest, s"
            yield what, f"{row['max']:.2f}", f"≤ {ASKED['cold first answer (s)']:g}"
        for row in predictions["web_worker_kb_after"]:
            what = f"web worker after that, pool of {row['pool']:,}: RSS, PSS, MB"
            yield what, _megabytes(row, ""), f"≤ {ASKED['web worker (MB)']:g}"
    if memory := content.get("memory"):
        limits = {
            "web": f"≤ {ASKED['web worker (MB)']:g}",
            "rq": f"≤ {ASKED['rq worker without embeddings (MB)']:,g} + {memory['embeddings_kb'] / 1024:.0f}",
        }
        for name, limit in limits.items():
            yield f"{name} worker at the start: RSS, PSS, MB", _megabytes(memory["first_kb"], f"{name}_"), limit
            what = f"{name} worker after {memory['versions_published']:,} retrains: RSS, PSS, MB"
            yield what, _megabytes(memory["last_kb"], f"{name}_"), limit
            first, last = memory["growth_fitted_over"]
            what = f"{name} worker, growth of RSS from retrain {first:,} to {last:,}, kB each"
            yield what, f"{memory['growth_kb_per_retrain'][f'{name}_rss']:+.1f}", "flat"
        if "supervisor_pss" in memory["last_kb"]:
            both = memory["last_kb"]["rq_pss"] + memory["last_kb"]["supervisor_pss"]
            yield "rq worker and its supervisor after that, together: PSS, MB", f"{both / 1024:.0f}", ""


def _megabytes(found: Answer, prefix: str) -> str:
    return f"{found[f'{prefix}rss'] / 1024:.0f}, {found[f'{prefix}pss'] / 1024:.0f}"


if __name__ == "__main__":
    main()
