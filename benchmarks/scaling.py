"""What grows with the number of images: Label Studio's own requests, the embedding store, and one worker's round.

    python -m benchmarks.scaling [--tasks 1000 10000 100000] [--rows 10000 100000 1000000] [--only label-studio store …]

Label Studio is the real one with SQLite, as the demo starts it, with `--label-studio FOLDER` naming the virtual
environment it is installed in; images are references that nobody loads. Embeddings are made up: clusters, float16. Each
size of the store and of the round is measured in a process of its own, whose peak memory is told.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import secrets
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from backend.adapters.embedding_store import EmbeddingRow, EmbeddingStore, EmbeddingTable
from backend.adapters.label_studio import LabelStudioClient
from backend.config import Settings
from backend.demo import labeling_config
from backend.learning.pool import Pool
from backend.loop.rounds import Stopwatch, plan_round
from backend.schema import QueueEntry, TrainingLabels
from benchmarks import REPOSITORY, RESULTS
from benchmarks.kcenter import made_up

PARTS = ("label-studio", "store", "round")
TASKS = (1_000, 10_000, 100_000)
ROWS = (10_000, 100_000, 1_000_000)
DIM = 1280
"""About those of mobilenet_v2, which gives 1,432 with its details."""

TASKS_PER_IMPORT = 1_000
WINDOW = 30
REPETITIONS = 15
LABELS = 100
BATCH = 512
HOST = "127.0.0.1"

Answer = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> None:
    """Measures the parts, puts them beside those measured before in a JSON file, prints them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", type=int, default=TASKS, help="tasks of Label Studio's projects")
    parser.add_argument("--rows", nargs="+", type=int, default=ROWS, help="embeddings of a project")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts to measure")
    parser.add_argument("--label-studio", type=Path, default=REPOSITORY / ".run" / "label-studio")
    parser.add_argument("--run", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.run:
        part, n_rows = arguments.run
        print(json.dumps({"store": measure_store, "round": measure_round}[part](int(n_rows))))
        return
    path = RESULTS / "scaling.json"
    result = json.loads(path.read_text()) if path.is_file() else {}
    if "label-studio" in arguments.only:
        result["label-studio"] = measure_label_studio(arguments.label_studio, arguments.tasks)
    for part in ("store", "round"):
        if part in arguments.only:
            result[part] = {str(n_rows): _in_own_process(part, n_rows) for n_rows in arguments.rows}
    RESULTS.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n")
    show(result)


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


def _in_own_process(part: str, n_rows: int) -> Answer:
    command = [sys.executable, "-m", "benchmarks.scaling", "--run", part, str(n_rows)]
    done = subprocess.run(command, cwd=REPOSITORY, stdout=subprocess.PIPE, check=True, text=True)
    answer: Answer = json.loads(done.stdout.splitlines()[-1])
    return answer


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000  # kB on Linux


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
