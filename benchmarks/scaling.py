"""What grows with the number of images: Label Studio's requests, the embedding store, and one worker's round, on all
embeddings or on the working set of a project in shards.

    python -m benchmarks.scaling [--tasks 1000 10000 100000] [--rows 10000 100000 1000000] [--only label-studio store …]

Label Studio is the real one with SQLite, as the demo starts it, with `--label-studio FOLDER` naming the virtual
environment it is installed in; images are references that nobody loads. Embeddings are made up: clusters, float16. Each
size of the store and of the round is measured in a process of its own, whose peak memory is told.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np

from backend.adapters.embedding_store import EmbeddingRow, EmbeddingStore, EmbeddingTable
from backend.adapters.jobs import Jobs
from backend.adapters.label_studio import LabelStudioClient
from backend.adapters.registry import Registry
from backend.config import Settings
from backend.demo import labeling_config
from backend.learning.acquisition import margin
from backend.learning.coreset import covering_radius, select_coreset
from backend.learning.features import FeatureSpace
from backend.learning.head import FitResult, Head
from backend.learning.later_rounds import rarity
from backend.learning.pool import Pool
from backend.loop.rounds import Pools, Round, Stopwatch, plan_round
from backend.loop.shards import Shards
from backend.schema import QueueEntry, TrainingLabels, VersionRecord
from benchmarks import REPOSITORY, RESULTS
from benchmarks.kcenter import made_up
from benchmarks.stack import redis

PARTS = ("label-studio", "store", "round", "shards")
TASKS = (1_000, 10_000, 100_000)
ROWS = (10_000, 100_000, 1_000_000)
DIVIDED = (200_000, 1_000_000)
DIM = 1280
"""About those of mobilenet_v2, which gives 1,432 with its details."""

TASKS_PER_IMPORT = 1_000
WINDOW = 30
REPETITIONS = 15
LABELS = 100
BATCH = 512
CLASSES = 10
HOST = "127.0.0.1"

Answer = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> None:
    """Measures the parts, puts them beside those measured before in a JSON file, prints them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", type=int, default=TASKS, help="tasks of Label Studio's projects")
    parser.add_argument("--rows", nargs="+", type=int, default=ROWS, help="embeddings of a project")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts to measure")
    parser.add_argument("--label-studio", type=Path, default=REPOSITORY / ".run" / "label-studio")
    parser.add_argument("--divided", nargs="+", type=int, default=DIVIDED, help="embeddings of a project in shards")
    parser.add_argument("--run", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.run:
        print(json.dumps(_run(*arguments.run)))
        return
    path = RESULTS / "scaling.json"
    result = json.loads(path.read_text()) if path.is_file() else {}
    if "label-studio" in arguments.only:
        result["label-studio"] = measure_label_studio(arguments.label_studio, arguments.tasks)
    for part, sizes in (("store", arguments.rows), ("round", arguments.rows), ("shards", arguments.divided)):
        if part in arguments.only:
            result[part] = {str(n_rows): _in_own_process(part, n_rows) for n_rows in sizes}
    RESULTS.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n")
    show(result)


def _run(part: str, n_rows: str, *arguments: str) -> Answer:
    """One measurement, in a process of its own."""
    folder = Path(arguments[0]) if arguments else Path()
    if part == "search":
        return measure_search(int(n_rows), folder, int(arguments[1]))
    if part == "choice":
        return measure_choice(int(n_rows), folder)
    return {"store": measure_store, "round": measure_round, "shards": measure_shards}[part](int(n_rows))


def show(result: Answer) -> None:
    """Prints a table of each part: a row for each figure, a column for each size."""
    for part, by_size in result.items():
        print(f"\n{part:<34}" + "".join(f"{int(size):>14,}" for size in by_size))
        for name in next(iter(by_size.values())):
            print(f"{name:<34}" + "".join(f"{found[name]:>14.4g}" for found in by_size.values()))


# -- Label Studio -----------------------------------------------------------------------------------------------------


def measure_label_studio(home: Path, sizes: Sequence[int]) -> Answer:
    """Seconds of its requests for a project of each size, one after the other in one database."""
    program = home / "bin" / "label-studio"
    if not program.is_file():
        raise SystemExit(
            f"there is no {program}; run `make demo` once, which installs Label Studio, or --only store round"
        )
    with tempfile.TemporaryDirectory() as folder:
        port, token = _free_port(), secrets.token_hex(20)
        environment = {
            **os.environ,
            "LABEL_STUDIO_BASE_DATA_DIR": folder,
            "LABEL_STUDIO_USERNAME": "somebody@example.org",
            "LABEL_STUDIO_PASSWORD": secrets.token_urlsafe(12),
            "LABEL_STUDIO_USER_TOKEN": token,
            "LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN": "true",
            "LATEST_VERSION_CHECK": "false",
            "COLLECT_ANALYTICS": "false",
            "SENTRY_DSN": "",
            "fflag_fix_back_4620_memory_efficient_predictions_import_08012025_short": "true",
        }
        command = [str(program), "start", "--no-browser", "--port", str(port), "--internal-host", HOST]
        with (Path(folder) / "log").open("w") as log:
            server = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            url = f"http://{HOST}:{port}"
            _await(url, server)
            with closing(LabelStudioClient(url, token)) as client:
                return {str(n_tasks): _measure_project(client, url, token, n_tasks) for n_tasks in sizes}
        finally:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait(30)


def _measure_project(client: LabelStudioClient, url: str, token: str, n_tasks: int) -> Answer:
    project_id = client.create_project(f"{n_tasks} tasks", labeling_config(["cat", "dog"])).id
    client.update_project(project_id, sampling="Uncertainty sampling")
    tasks = [{"data": {"image": f"/data/local-files/?d=images/{n:09d}.jpg"}} for n in range(n_tasks)]
    parts = [tasks[start : start + TASKS_PER_IMPORT] for start in range(0, n_tasks, TASKS_PER_IMPORT)]
    imports = [_seconds(lambda part=part: client.import_tasks(project_id, part)) for part in parts]
    listed = []
    listing = _seconds(lambda: listed.extend(client.tasks(project_id, "image")))
    if len(listed) != n_tasks:
        raise SystemExit(f"Label Studio lists {len(listed)} of {n_tasks} tasks")
    ids = [task.id for task in listed]
    seconds: dict[str, list[float]] = {"publish": [], "next": [], "mark": [], "submit": []}
    choice = {"from_name": "choice", "to_name": "image", "type": "choices", "value": {"choices": ["cat"]}}
    generator = np.random.default_rng(0)
    with httpx.Client(base_url=url, headers={"Authorization": f"Token {token}"}, timeout=300) as labeler:
        for n in range(REPETITIONS):
            window = generator.choice(len(ids), WINDOW, replace=False).tolist()
            entries = [QueueEntry(ids[row], rank / WINDOW, []) for rank, row in enumerate(window)]
            started = time.monotonic()
            client.push_predictions(project_id, f"v{n}", entries)
            client.activate_version(project_id, f"v{n}")
            seconds["publish"].append(time.monotonic() - started)
            started = time.monotonic()
            task = labeler.get(f"/api/projects/{project_id}/next").raise_for_status().json()
            seconds["next"].append(time.monotonic() - started)
            seconds["mark"].append(_seconds(lambda: client.change_mark(project_id)))
            started = time.monotonic()
            labeler.post(f"/api/tasks/{task['id']}/annotations/", json={"result": [choice]}).raise_for_status()
            seconds["submit"].append(time.monotonic() - started)
    return {
        "import, tasks/s": n_tasks / sum(imports),
        "import, last 1,000 tasks, s": imports[-1],
        "list all tasks, s": listing,
        "list 1,000 tasks, s": listing / max(n_tasks / 1000, 1),
        "push and activate 30, s": statistics.median(seconds["publish"]),
        "next task, s": statistics.median(seconds["next"]),
        "next task, slowest, s": max(seconds["next"]),
        "submit, s": statistics.median(seconds["submit"]),
        "has anything changed?, s": statistics.median(seconds["mark"]),
    }


def _await(url: str, server: subprocess.Popen[bytes]) -> None:
    for _ in range(1200):
        if server.poll() is not None:
            raise SystemExit("Label Studio did not start")
        with suppress(httpx.HTTPError):
            if httpx.get(f"{url}/health", timeout=5).status_code == 200:
                return
        time.sleep(0.25)
    raise SystemExit("Label Studio did not start within five minutes")


# -- the embedding store ----------------------------------------------------------------------------------------------


def measure_store(n_rows: int) -> Answer:
    """A store on disk that is written, read whole, asked for a batch, and given one more batch."""
    embeddings = made_up(n_rows, DIM)
    with tempfile.TemporaryDirectory() as folder:
        store = EmbeddingStore(Path(folder), "made-up", DIM)
        writes = []
        for start in range(0, n_rows, 100 * BATCH):
            rows = [
                EmbeddingRow(n, f"/data/local-files/?d=images/{n:09d}.jpg", embeddings[n])
                for n in range(start, min(start + 100 * BATCH, n_rows))
            ]
            writes.append(_seconds(lambda rows=rows: store.upsert(rows)))
        size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
        del embeddings, rows
        other = EmbeddingStore(Path(folder), "made-up", DIM)
        generator = np.random.default_rng(0)
        taken = [
            _seconds(lambda: other.take(generator.choice(n_rows, BATCH, replace=False).tolist())) for _ in range(5)
        ]
        batch = [EmbeddingRow(n_rows + n, "x", np.zeros(DIM, np.float16)) for n in range(BATCH)]
        one_more = _seconds(lambda: other.upsert(batch))
        read = _seconds(lambda: other.read())
    return {
        "bytes per embedding on disk": size / n_rows,
        "write, embeddings/s": n_rows / sum(writes),
        "read all, s": read,
        "read 512, s": statistics.median(taken),
        "add 512, s": one_more,
        "peak memory, MB": _peak_mb(),
    }


# -- a round ----------------------------------------------------------------------------------------------------------


def measure_round(n_rows: int) -> Answer:
    """A worker's first round after its start, and the next, with 100 labels of ten classes; on embeddings in memory."""
    embeddings = made_up(n_rows, DIM)
    task_ids = np.arange(n_rows, dtype=np.int64)
    references = dict.fromkeys(range(n_rows), "/data/local-files/?d=images/1.jpg")
    table = EmbeddingTable(task_ids, embeddings, {}, references, 1)
    before = _peak_mb()
    pool = Pool(embeddings)
    labeled = np.linspace(0, n_rows - 1, LABELS + 1).astype(int).tolist()
    centres = embeddings[labeled[:10]].astype(np.float32)
    given = {n: f"class {int((centres @ embeddings[n].astype(np.float32)).argmax())}" for n in labeled}
    seconds = []
    start = None
    for n_labels in (LABELS, LABELS + 1):
        labels = TrainingLabels(
            {n: given[n] for n in labeled[:n_labels]}, frozenset(labeled[:n_labels]), frozenset(), {}
        )
        watch = Stopwatch()
        began = time.monotonic()
        made = plan_round(table, pool, labels, Settings(), n_classes=10, previous_seed=None, watch=watch, start=start)
        seconds.append(time.monotonic() - began)
        start = made.fitted
    return {
        "first round after the start, s": seconds[0],
        "next round, s": seconds[1],
        "embeddings, MB": embeddings.nbytes / 1e6,
        "peak memory, MB": _peak_mb(),
        "of these before the round, MB": before,
    }


# -- shards -----------------------------------------------------------------------------------------------------------


def measure_shards(n_rows: int) -> Answer:
    """Searches of all shards by one worker, rounds on the working set, and what is chosen beside the exact choice."""
    embeddings = made_up(n_rows, DIM)
    with tempfile.TemporaryDirectory() as name, redis(Path(name)) as port:
        folder = Path(name)
        store = EmbeddingStore(folder, "made-up", DIM)
        for start in range(0, n_rows, 100 * BATCH):
            rows = range(start, min(start + 100 * BATCH, n_rows))
            store.upsert([EmbeddingRow(n, f"{n:09d}.jpg", embeddings[n]) for n in rows])
        del embeddings
        found = _in_own_process("search", n_rows, str(folder), str(port))
        return {**found, **_in_own_process("choice", n_rows, str(folder))}


def measure_search(n_rows: int, folder: Path, redis_port: int) -> Answer:
    """One worker: shards searched for a first batch, a round, shards searched by its head, and rounds with that."""
    settings = Settings(data_dir=folder, redis_url=f"redis://{HOST}:{redis_port}/0", seed_strategy="coreset")
    jobs, registry = Jobs(settings.redis_url), Registry(folder / "projects")
    registry.register(1, 0, labeling_config([f"class {n}" for n in range(CLASSES)]))
    store, shards, pools = (
        EmbeddingStore(folder, "made-up", DIM),
        Shards(jobs=jobs, registry=registry, settings=settings),
        Pools(),
    )
    backbone: Any = SimpleNamespace(fingerprint="made-up", n_details=0)
    numbers = range(-(-n_rows // settings.shard_size))
    classes = store.take(list(range(CLASSES))).embeddings.astype(np.float32)
    labeled = (
        np.linspace(0, n_rows - 1, 2 * LABELS).astype(int)[np.random.default_rng(0).permutation(2 * LABELS)].tolist()
    )
    known = store.take(labeled)
    truth = (known.embeddings.astype(np.float32) @ classes.T).argmax(axis=1)
    given = {int(n): f"class {row}" for n, row in zip(known.task_ids, truth, strict=True)}
    fits: list[FitResult] = []

    def search() -> float:
        taken = []
        for number in numbers:
            jobs.queues()[0].empty()  # the retrain that an earlier search asked for would go first
            taken.append(_seconds(lambda number=number: shards.search(1, number, store, backbone)))
        return statistics.median(taken)

    def round_of(n_labels: int) -> tuple[Round, float]:
        chosen = labeled[:n_labels]
        labels = TrainingLabels({n: given[n] for n in chosen}, frozenset(chosen), frozenset(), {})
        began = time.monotonic()
        table = shards.working_set(1, store, "made-up", chosen).table
        made = plan_round(
            table, pools.pool(1, table, backbone), labels, settings, n_classes=CLASSES, previous_seed=None,
            watch=Stopwatch(), start=None,
        )  # fmt: skip
        if made.fitted is not None:
            fits.append(made.fitted)
        return made, time.monotonic() - began

    first_searches = search()
    first_batch, _ = round_of(0)
    made, first_round = round_of(LABELS)
    _publish(registry, made, given, labeled[:LABELS])
    later_searches = search()
    _, after_search = round_of(LABELS + 1)
    _, next_round = round_of(LABELS + 2)
    round_of(int(1.2 * LABELS))
    table = shards.working_set(1, store, "made-up", ()).table
    choice = {
        "first batch": [n for n, _ in first_batch.window],
        "labeled": labeled[:LABELS],
        "known": table.task_ids.tolist(),
    }
    (folder / "choice.json").write_text(json.dumps(choice))
    for name, fit in (("now", fits[0]), ("later", fits[-1])):
        np.savez(
            folder / f"{name}.npz",
            weights=fit.head.weights,
            bias=fit.head.bias,
            scale=fit.head.space.scale,
            centre=fit.head.space.centre,
            counts=[sum(given[n] == c for n in labeled[:LABELS]) for c in fit.head.classes],
        )
    jobs.close()
    return {
        "shards": len(numbers),
        "search of a shard, first batch, s": first_searches,
        "search of a shard, by a head, s": later_searches,
        "working set, embeddings": len(table.task_ids),
        "first round after the start, s": first_round,
        "round after a search, s": after_search,
        "next round, s": next_round,
        "peak memory, MB": _peak_mb(),
    }


def measure_choice(n_rows: int, folder: Path) -> Answer:
    """What was chosen from shards beside what is chosen from all embeddings at once."""
    embeddings = made_up(n_rows, DIM)
    choice = json.loads((folder / "choice.json").read_text())
    at_once = covering_radius(embeddings, select_coreset(embeddings, budget=len(choice["first batch"])))
    answer = {"first batch: covering radius / at once": covering_radius(embeddings, choice["first batch"]) / at_once}
    for name in ("now", "later"):
        head = np.load(folder / f"{name}.npz")
        probabilities = Head(
            tuple(map(str, range(len(head["bias"])))), head["weights"], head["bias"],
            FeatureSpace(head["scale"], head["centre"]), 1.0,
        ).predict_proba(embeddings)  # fmt: skip
        utilities = margin(probabilities) * rarity(probabilities, head["counts"])
        utilities[choice["labeled"]] = -np.inf
        best = np.argsort(-utilities)[:WINDOW]
        answer[f"{WINDOW} most useful in the working set, {name}"] = float(np.isin(best, choice["known"]).mean())
    return answer


def _publish(registry: Registry, made: Round, given: Mapping[int, str], labeled: Sequence[int]) -> None:
    """Publishes the head of a round, as a retrain does."""
    assert made.fitted is not None
    head = made.fitted.head
    record = VersionRecord(
        version=registry.new_version(1, len(labeled), datetime.now(UTC)), kind="model", created_at="", project_id=1,
        label_config="", classes=list(head.classes), labels_used=len(labeled),
        labels_by_class=dict(Counter(given[n] for n in labeled)), ignored_labels={}, strength=head.strength,
        acquisition="", backbone="", fingerprint="made-up", random_state=0, pool_size=0, window=[], seed_task_ids=[],
        seed_engine=None, seed_engine_reason=None, inputs_digest="",
    )  # fmt: skip
    registry.save(record, head)
    registry.publish(1, record.version)


def _in_own_process(part: str, n_rows: int, *arguments: str) -> Answer:
    command = [sys.executable, "-m", "benchmarks.scaling", "--run", part, str(n_rows), *arguments]
    done = subprocess.run(command, cwd=REPOSITORY, stdout=subprocess.PIPE, check=True, text=True)
    answer: Answer = json.loads(done.stdout.splitlines()[-1])
    return answer


def _peak_mb() -> float:
    # Not resource.getrusage's: that begins with what the process had that started this one.
    (peak,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(peak.split()[1]) / 1000  # kB


def _seconds(work: Callable[[], Any]) -> float:
    started = time.monotonic()
    work()
    return time.monotonic() - started


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


if __name__ == "__main__":
    main()
