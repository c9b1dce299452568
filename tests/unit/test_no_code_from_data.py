"""Nothing that is read can run code: not what lies in Redis, not what lies in the data folder, not a weights file."""

from __future__ import annotations

import ast
import base64
import binascii
import contextlib
import os
import pickle
import pickletools
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import CREATED, LABEL_CONFIG, World, add_cats_and_dogs
from redis import Redis
from rq import Callback, Queue
from rq.serializers import DefaultSerializer, JSONSerializer

from backend.adapters.backbones import load_backbone
from backend.adapters.jobs import RETRAIN_QUEUE
from backend.errors import BackboneError
from backend.worker import JOBS, WarmWorker, is_own

BACKEND = Path(__file__).resolve().parents[2] / "backend"


def is_pickled(raw: bytes) -> bool:
    """Whether the bytes, as they are or unpacked, are a pickle of a protocol since 2 (rq's default is the highest)."""
    for content in (raw, *_unpacked(raw)):
        if content.startswith(b"\x80"):
            with contextlib.suppress(Exception):
                if list(pickletools.genops(content)):
                    return True
    return False


def _unpacked(raw: bytes) -> Iterator[bytes]:
    with contextlib.suppress(zlib.error):
        yield zlib.decompress(raw)
    with contextlib.suppress(binascii.Error, ValueError):
        yield base64.b64decode(raw, validate=True)


def content_of(redis: Redis) -> Iterator[tuple[str, bytes]]:
    """(key, value) of everything in Redis, of every type."""
    for key in list(redis.scan_iter()):
        kind: Any = redis.type(key)
        values: Any
        match kind:
            case b"string":
                values = [redis.get(key)]
            case b"hash":
                values = [part for pair in redis.hgetall(key).items() for part in pair]
            case b"list":
                values = redis.lrange(key, 0, -1)
            case b"set":
                values = redis.smembers(key)
            case b"zset":
                values = redis.zrange(key, 0, -1)
            case b"stream":
                values = [part for _, entry in redis.xrange(key) for pair in entry.items() for part in pair]
            case _:
                pytest.fail(f"{key!r} is a {kind!r}, which this test cannot read")
        for value in values:
            yield key.decode(), value


def work(world: World) -> None:
    """Does everything that waits, as the worker does."""
    WarmWorker(world.services).work(burst=True, logging_level="WARNING")


@pytest.fixture
def trained(world: World) -> World:
    """Project 1, embedded, trained, evaluated and reconciled by jobs; one of them failed, one is in the queue."""
    world.registry.register(1, CREATED, LABEL_CONFIG)
    add_cats_and_dogs(world)
    world.jobs.request_reconciliation(1)
    world.jobs.request_retrain(1)
    work(world)
    assert world.registry.published(1) is not None
    world.registry.register(9, CREATED, LABEL_CONFIG)
    world.label_studio.failures["project"] = ValueError("a failure with a traceback")
    world.jobs.request_retrain(1)
    work(world)
    world.label_studio.failures.clear()
    world.jobs.request_retrain(1, forced=True)
    world.jobs.record_event(1, world.label_studio.event(1, "ANNOTATION_CREATED", task_id=1))
    return world


def test_nothing_in_redis_is_pickled(trained: World) -> None:
    """Jobs that wait, ended and failed, their results, notes, journal: all of it."""
    found = list(content_of(trained.jobs.redis))
    names = {key.partition(":")[0] for key, _ in found}
    assert {"active-learning", "rq"} <= names
    assert len(found) > 50
    assert [key for key, value in found if is_pickled(value)] == []
    Queue(RETRAIN_QUEUE, connection=trained.jobs.redis, serializer=DefaultSerializer).enqueue(
        "backend.worker.retrain", 1
    )
    assert [key for key, value in content_of(trained.jobs.redis) if is_pickled(value)] != [], "it would be seen"


def test_nothing_in_the_data_folder_is_pickled(trained: World) -> None:
    """Records, heads and embeddings; torch's own format, which is a pickle in a zip file, is not used either."""
    files = [path for path in Path(str(trained.services.settings.data_dir)).rglob("*") if path.is_file()]
    assert {"record.json", "head.safetensors"} <= {path.name for path in files}
    assert [path for path in files if is_pickled(path.read_bytes()) or path.read_bytes()[:2] == b"PK"] == []


def test_a_job_that_is_none_of_ours_is_not_run(world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """rq calls whatever function a job names, with whatever arguments: who can write to Redis could run anything."""
    target = tmp_path / "owned"
    queue = Queue(RETRAIN_QUEUE, connection=world.jobs.redis, serializer=JSONSerializer)
    for name, arguments in (
        ("os.system", [f"touch {target}"]),
        ("os.mkdir", [str(target)]),
        ("backend.worker._run", [1]),
    ):
        queue.enqueue_call(name, args=arguments)
    work(world)
    assert not target.exists()
    assert caplog.text.count("it is none of this service's") == 3
    assert world.waiting() == []
    assert not [key for key in world.jobs.redis.scan_iter() if key.startswith(b"rq:job:")]


def test_a_job_of_ours_calls_nothing_else_afterwards(world: World, tmp_path: Path) -> None:
    """Callbacks are functions by name as well."""
    queue = Queue(RETRAIN_QUEUE, connection=world.jobs.redis, serializer=JSONSerializer)
    for option in ("on_success", "on_failure", "on_stopped"):
        callback: Any = {option: Callback("os.mkdir")}
        job = queue.enqueue_call("backend.worker.retrain", args=[1], **callback)
        assert not is_own(job)
    assert is_own(queue.enqueue_call("backend.worker.retrain", args=[1]))


def test_every_job_of_ours_is_known(world: World) -> None:
    """What `Jobs` queues is what a worker runs."""
    jobs = world.jobs
    jobs.request_retrain(1)
    jobs.request_search(1, 0)
    for request in (jobs.request_evaluation, jobs.request_embedding, jobs.request_reconciliation, jobs.request_pruning,
                    jobs.request_finetuning, jobs.request_map):  # fmt: skip
        request(1)
    jobs.enqueue_batch(1, 0, [])
    from backend.adapters.jobs import ALL_QUEUES

    queued = [job for queue in jobs.queues(ALL_QUEUES) for job in queue.jobs]
    assert {job.func_name for job in queued} == JOBS
    assert all(map(is_own, queued))


def test_a_weights_file_runs_nothing(tmp_path: Path) -> None:
    """A .pth file is a pickle; torch is told to take tensors out of it and nothing else."""
    target = tmp_path / "owned"

    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(target),)

    for number, write in enumerate((lambda path: torch.save({"x": Evil()}, path),
                                    lambda path: path.write_bytes(pickle.dumps(Evil())))):  # fmt: skip
        file = tmp_path / f"evil-{number}.pth"
        write(file)
        with pytest.raises(BackboneError):
            load_backbone("mobilenet_v2", file)
    assert not target.exists()


def test_no_reader_is_told_to_unpickle() -> None:
    """torch.load with weights_only, numpy never with allow_pickle, in every module."""
    for path in BACKEND.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            options = {item.arg: getattr(item.value, "value", None) for item in node.keywords}
            assert options.get("allow_pickle", False) is False, path
            name = ast.unparse(node.func)
            if name == "torch.load":
                assert options.get("weights_only") is True, path
            assert name not in ("eval", "exec", "compile", "__import__"), path
