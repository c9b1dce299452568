"""The page at /docs: open like the description it shows, made of this service's own files, bound by its own policy."""

from __future__ import annotations

import hashlib
import re

import pytest
from fakes import World
from flask.testing import FlaskClient
from served import client_of

from backend.api_pages import CONTENT_SECURITY_POLICY, FILES, PAGE, PAGES
from backend.server import HEADERS

VENDOR = PAGES / "vendor" / "swagger-ui"

AS_RELEASED = {
    "LICENSE": "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30",
    "NOTICE": "0d20d1adef18aee3f40dd258172155521ce702ac445cb5f7b7d60ed32dad2fb2",
    "swagger-ui-bundle.js": "e6a898692f2d768e807c3ba4626068a69a2c5dd960dd6c76f3e4d3a3de180af2",
    "swagger-ui-bundle.js.LICENSE.txt": "37eb6e7e59aed57b2c1acf076574b818ea07b74265717e0bd67b59e0baf9abbb",
    "swagger-ui.css": "5ed08757e53da3e026d6cbecc61fe5d43585c9560b302d534ad56692519a273d",
}
"""sha256 of the files of swagger-ui-dist 5.35.0 as its authors released them."""


@pytest.fixture
def stranger(world: World) -> FlaskClient:
    """Without credentials, where there is a password."""
    return client_of(world, credentials=False)


def test_the_page_is_open_and_may_load_nothing_from_elsewhere(stranger: FlaskClient) -> None:
    """Its policy is its own; what else every answer says it says too."""
    answer = stranger.get("/docs")
    assert (answer.status_code, answer.mimetype) == (200, "text/html")
    assert answer.headers["Content-Security-Policy"] == CONTENT_SECURITY_POLICY
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert "unsafe" not in CONTENT_SECURITY_POLICY
    assert "http" not in CONTENT_SECURITY_POLICY
    loaded = re.findall(r'(?:src|href)="(/[^"]*)"', answer.text)
    assert len(loaded) == 4
    assert all(stranger.get(address).status_code == 200 for address in loaded)


def test_the_page_has_no_script_or_style_of_its_own_in_it() -> None:
    """The policy would not let it run: every script is a file."""
    page = (PAGES / PAGE).read_text(encoding="utf-8")
    assert re.findall(r"<script(?![^>]* src=)", page) == []
    assert "<style" not in page
    assert not re.search(r"\b(?:on\w+|style)=", page)


def test_other_answers_keep_their_policy(stranger: FlaskClient) -> None:
    """What is no page for people may load nothing at all."""
    for path in ("/openapi.json", "/health", "/docs/nothing"):
        assert stranger.get(path).headers["Content-Security-Policy"] == HEADERS["Content-Security-Policy"]


def test_a_browser_that_has_a_file_is_told_so(stranger: FlaskClient) -> None:
    """The bundle is 1.7 MB: it is sent once a release."""
    first = stranger.get("/docs/swagger-ui-bundle.js")
    again = stranger.get("/docs/swagger-ui-bundle.js", headers={"If-None-Match": first.headers["ETag"]})
    assert (first.status_code, again.status_code, again.data) == (200, 304, b"")
    assert first.headers["Cache-Control"] == "no-cache"


@pytest.mark.parametrize("name", ["LICENSE", "../web.py", "..%2Fweb.py", "vendor", "docs.htm", "%00"])
def test_nothing_else_is_served(stranger: FlaskClient, name: str) -> None:
    """A list of names, and no path made of what somebody sends."""
    answer = stranger.get(f"/docs/{name}")
    assert answer.status_code in (401, 404)
    assert b"import" not in answer.data


def test_swagger_ui_is_as_released() -> None:
    """Byte for byte, with its licence; a new release changes these sums and nothing else."""
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in VENDOR.iterdir()}
    assert found == AS_RELEASED
    assert "Apache License" in (VENDOR / "LICENSE").read_text(encoding="utf-8")
    assert {place for place, _ in FILES.values() if "vendor" in place} == {
        f"vendor/swagger-ui/{name}" for name in AS_RELEASED if name in FILES
    }
