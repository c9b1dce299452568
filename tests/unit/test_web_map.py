"""The map over HTTP: its form, packed or not, and nothing when it is the same."""

from __future__ import annotations

import gzip
import sys

import pytest
from fakes import LABEL_CONFIG, World, add_cats_and_dogs, retrain
from flask.testing import FlaskClient
from served import client_of

URL = "/api/projects/1/map"


@pytest.fixture
def client(world: World) -> FlaskClient:
    """Project 1 with a model and a map."""
    add_cats_and_dogs(world)
    world.registry.register(1, 1767225600, LABEL_CONFIG)
    retrain(world)
    world.services.embedder.plan(1)
    world.services.map_maker.make(1)
    return client_of(world)


def test_it_comes_in_the_form_that_is_documented(client: FlaskClient) -> None:
    """Binary, not packed unless asked for."""
    answer = client.get(URL)
    assert (answer.status_code, answer.content_type) == (200, "application/octet-stream")
    assert answer.data.startswith(b"ALM1\x18\0\0\0")
    assert "Content-Encoding" not in answer.headers
    assert answer.headers["Vary"] == "Accept-Encoding"


def test_packed_it_is_the_same(client: FlaskClient) -> None:
    """For who takes gzip."""
    plain, packed = client.get(URL), client.get(URL, headers={"Accept-Encoding": "br, gzip"})
    assert packed.headers["Content-Encoding"] == "gzip"
    assert gzip.decompress(packed.data) == plain.data
    assert packed.headers["ETag"] == plain.headers["ETag"]
    assert "Content-Encoding" not in client.get(URL, headers={"Accept-Encoding": "gzip;q=0"}).headers


def test_who_has_it_is_told_that_it_is_the_same(client: FlaskClient) -> None:
    """304 without a body; something else under another name."""
    etag = client.get(URL).headers["ETag"]
    same = client.get(URL, headers={"If-None-Match": etag})
    assert (same.status_code, same.data, same.headers["ETag"]) == (304, b"", etag)
    assert client.get(URL, headers={"If-None-Match": 'W/"other"'}).status_code == 200


def test_of_an_unknown_project_there_is_none(client: FlaskClient) -> None:
    """A sentence, as everywhere."""
    answer = client.get("/api/projects/7/map")
    assert answer.status_code == 404
    assert "not connected" in (answer.json or {})["error"]


def test_a_web_process_loads_nothing_to_answer(client: FlaskClient) -> None:
    """No torch and no openTSNE: neither is imported by the modules that answer."""
    import backend.loop.map
    import backend.web_map

    for module in (backend.loop.map, backend.web_map):
        assert not {"torch", "openTSNE"} & set(vars(module))
    assert "backend.web_map" in sys.modules
