"""Project 3 as the web service serves it: four images, a made model, a client, and what every refusal looks like.

The fixtures `project`, `client` and `stranger` of conftest.py are made of this.
"""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
from fakes import CREATED, LABEL_CONFIG, World, rgb
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from backend.learning.features import plain_space
from backend.learning.head import Head
from backend.schema import VersionRecord
from backend.web import create_app

IMAGES = [rgb(250, 0), rgb(0, 250), rgb(200, 0), rgb(0, 200)]
VERSION = "v0001-2labels-20260101T000000Z"
UID = f"3.{CREATED}"

ROUTES = [
    ("GET", "/"),
    ("POST", "/setup"),
    ("POST", "/predict"),
    ("POST", "/webhook"),
    ("POST", "/job_status"),
    ("GET", "/versions"),
    ("GET", "/metrics"),
    ("GET", "/api/projects/3/status"),
    ("GET", "/api/projects/3/dashboard"),
    ("GET", "/api/projects/3/events"),
    ("GET", "/api/projects/3/tasks/1/thumbnail"),
    ("GET", "/api/projects/3/versions"),
    ("GET", f"/api/projects/3/versions/{VERSION}"),
    ("POST", "/api/projects/3/pin"),
    ("DELETE", "/api/projects/3/pin"),
    ("GET", "/projects/3"),
    ("GET", "/no-such-page"),
]
"""Every address, as somebody who may not enter would try it."""


def basic(user: str = "label-studio", password: str = "pass-w0rd", *, encoding: str = "utf-8") -> dict[str, str]:
    """The header of Basic auth, the right one unless told otherwise."""
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode(encoding)).decode()}


def publish(world: World, project_id: int = 3, version: str = VERSION) -> None:
    """A published model that tells red (cat) from green (dog)."""
    record = VersionRecord(
        version=version, kind="model", created_at="2026-01-01T00:00:00+00:00", project_id=project_id,
        label_config=LABEL_CONFIG, classes=["cat", "dog"], labels_used=2, labels_by_class={"cat": 1, "dog": 1},
        ignored_labels={}, accuracy=0.75, accuracy_kind="cross-validated", log_loss=0.5, strength=10.0,
        acquisition="margin", backbone="tiny", fingerprint="f00d", random_state=0, pool_size=2, window=[3, 4],
        seed_task_ids=[], seed_engine=None, seed_engine_reason=None, inputs_digest="d",
    )  # fmt: skip
    weights = np.array([[4, -4, 0], [-4, 4, 0]], dtype=np.float32)
    world.registry.register(project_id, CREATED, LABEL_CONFIG)
    world.registry.save(record, Head(("cat", "dog"), weights, np.zeros(2, np.float32), plain_space(3), 10.0))
    world.registry.publish(project_id, version)


def client_of(world: World, *, credentials: bool = True) -> FlaskClient:
    """A client of the services' application, with the right credentials or without any."""
    client = create_app(world.services).test_client()
    if credentials:
        client.environ_base["HTTP_AUTHORIZATION"] = basic()["Authorization"]
    return client


def sentence_of(answer: TestResponse) -> str:
    """The error's sentence, after checking that it is one: JSON, no traceback, our header, also in the reason."""
    assert answer.headers["X-Backend"] == "active-learning"
    assert answer.is_json, answer.data[:200]
    assert set(answer.json or {}) == {"error"}
    sentence = str((answer.json or {})["error"])
    assert len(sentence) > 15
    for leak in ("Traceback", 'File "', "pass-w0rd", "tok-en"):
        assert leak not in sentence
    return sentence


def task(number: int, **changes: Any) -> dict[str, Any]:
    """A task of the project as Label Studio sends it."""
    return {"id": number, "data": {"image": IMAGES[number - 1]}, "project": 3, "annotations": [], **changes}
