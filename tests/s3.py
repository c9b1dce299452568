"""A server on this machine that speaks the S3 protocol, and buckets on it."""

from __future__ import annotations

import itertools
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import boto3

HOST = "127.0.0.1"
REGION = "eu-west-1"
KEYS = {"aws_access_key_id": "key", "aws_secret_access_key": "secret"}

# Not `python -m moto.server`, whose threads let two conditional puts of one object both succeed; S3 lets one.
_SERVER = """
import sys
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import run_simple
run_simple(sys.argv[1], int(sys.argv[2]), DomainDispatcherApplication(create_backend_app), threaded=False)
"""
_BUCKETS_MADE = itertools.count(1)


@contextmanager
def running_s3_server() -> Iterator[str]:
    """The server's address, which takes any keys."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port = int(probe.getsockname()[1])
    # moto's own modules warn where they are imported.
    command = [sys.executable, "-W", "ignore", "-c", _SERVER, HOST, str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
    try:
        for _ in range(1200):
            with socket.socket() as probe:
                if probe.connect_ex((HOST, port)) == 0:
                    break
            assert server.poll() is None, "the S3 server ended at once"
            time.sleep(0.05)
        else:
            raise AssertionError("the S3 server did not start within 60 s")
        yield f"http://{HOST}:{port}"
    finally:
        server.terminate()
        server.wait(10)


def environment_of(server: str) -> dict[str, str]:
    """What the usual environment says of this server."""
    names = {"ENDPOINT_URL": server, "REGION": REGION, "DEFAULT_REGION": REGION, "EC2_METADATA_DISABLED": "true"}
    return {f"AWS_{name}": value for name, value in names.items()} | {
        name.upper(): value for name, value in KEYS.items()
    }


def new_bucket(server: str, objects: Mapping[str, bytes] | None = None) -> str:
    """A bucket with these objects; its name."""
    bucket = f"bucket-{next(_BUCKETS_MADE)}"
    _client(server).create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": REGION})
    put(server, bucket, objects or {})
    return bucket


def put(server: str, bucket: str, objects: Mapping[str, bytes]) -> None:
    """Puts objects, by their keys."""
    client = _client(server)
    for key, payload in objects.items():
        client.put_object(Bucket=bucket, Key=key, Body=payload)


def _client(server: str) -> Any:
    return boto3.client("s3", endpoint_url=server, region_name=REGION, **KEYS)
