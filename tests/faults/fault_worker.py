"""A worker that can be told to kill itself at a stage of its work, or to see its clock jump; until told, a plain one.

Production code has no places made for this: the methods themselves are wrapped, when SIGUSR1 comes, as the file named
in FAULT_FILE says ({"stage": …} or {"clock_shift_s": …}), which is deleted as the sign that it was read.

    FAULT_FILE=… python tests/faults/fault_worker.py
"""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def die(*_: object, **__: object) -> None:
    """As a machine that loses power, or a kernel that needs memory, ends a process."""
    os.kill(os.getpid(), signal.SIGKILL)


def before(place: Any, name: str) -> None:
    """Dies when the function is called."""
    setattr(place, name, die)


def after(place: Any, name: str) -> None:
    """Dies when the function has done its work, before whoever called learns of it."""
    original = getattr(place, name)

    @functools.wraps(original)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        original(*args, **kwargs)
        die()

    setattr(place, name, wrapped)


def marker(where: Callable[[Any, str], None]) -> Callable[[], None]:
    def install() -> None:
        from backend.adapters.jobs import Jobs

        where(Jobs, "begin_retrain")

    return install


def labels_read() -> None:
    from backend.loop.inputs import InputReader

    after(InputReader, "read")


def between_files() -> None:
    from backend import storage

    original = storage._write_durably

    def write(path: Path, content: bytes) -> None:
        if path.name == "record.json":
            die()
        original(path, content)

    storage._write_durably = write


def half_a_file() -> None:
    from backend import storage

    original = storage._write_durably

    def write(path: Path, content: bytes) -> None:
        if path.name == "record.json":
            original(path, content[: len(content) // 2])
            die()
        original(path, content)

    storage._write_durably = write


def registry(where: Callable[[Any, str], None], name: str) -> Callable[[], None]:
    def install() -> None:
        from backend.adapters.registry import Registry

        where(Registry, name)

    return install


def label_studio(where: Callable[[Any, str], None], name: str) -> Callable[[], None]:
    def install() -> None:
        from backend.adapters.label_studio import LabelStudioClient

        where(LabelStudioClient, name)

    return install


def between_push_batches() -> None:
    from backend.adapters.label_studio import LabelStudioClient

    original = LabelStudioClient.push_predictions

    def push(self: Any, project_id: int, version: str, entries: Any) -> None:
        original(self, project_id, version, entries[: len(entries) // 2])
        die()

    LabelStudioClient.push_predictions = push  # type: ignore[method-assign]


def answered() -> None:
    from backend.adapters.jobs import Jobs

    after(Jobs, "answer_retrain")


def evaluating() -> None:
    from backend.loop import evaluate

    before(evaluate, "evaluate_labels")


def planning() -> None:
    from backend.loop.embed import Embedder

    before(Embedder, "_plan")


def embeddings(where: Callable[[Any, str], None]) -> Callable[[], None]:
    def install() -> None:
        from backend.adapters.embedding_store import EmbeddingStore

        where(EmbeddingStore, "upsert")

    return install


STAGES: dict[str, Callable[[], None]] = {
    "before the marker is cleared": marker(before),
    "after the marker is cleared": marker(after),
    "with the labels read": labels_read,
    "saving, between two files": between_files,
    "saving, in the middle of a file": half_a_file,
    "between saving and push": registry(after, "save"),
    "between two push batches": between_push_batches,
    "between push and activation": label_studio(before, "activate_version"),
    "between activation and publishing": label_studio(after, "activate_version"),
    "between publishing and answer": registry(after, "publish"),
    "after the answer": answered,
    "evaluating": evaluating,
    "before the evaluation is written": registry(before, "update"),
    "pruning": registry(after, "prune"),
    "reconciling": label_studio(after, "change_mark"),
    "planning what to embed": planning,
    "between embedding and writing": embeddings(before),
    "after embeddings are written": embeddings(after),
}


def arm(*_: object) -> None:
    """Does what the file says."""
    path = Path(os.environ["FAULT_FILE"])
    told = json.loads(path.read_text())
    if "clock_shift_s" in told:
        from datetime import UTC, datetime, timedelta

        import time_machine

        time_machine.travel(datetime.now(UTC) + timedelta(seconds=told["clock_shift_s"]), tick=True).start()
    else:
        STAGES[told["stage"]]()
    path.unlink()


if __name__ == "__main__":
    signal.signal(signal.SIGUSR1, arm)
    from backend.cli import main

    sys.argv = ["backend", "worker"]
    main()
