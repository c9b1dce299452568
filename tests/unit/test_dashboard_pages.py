"""The pages as they are served: their addresses, what they may load, and how long a browser may keep what."""

from __future__ import annotations

import gzip
import re
import runpy
from pathlib import Path

import pytest
from fakes import World
from flask.testing import FlaskClient
from served import client_of, publish

from backend.dashboard_pages import CHART_STYLE, FOLDERS, PAGES, Assets, content_security_policy
from backend.server import HEADERS

BROWSER = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}


def test_a_browser_gets_a_page_where_programs_get_json(client: FlaskClient) -> None:
    """At /: who accepts anything, or says nothing, is a program."""
    assert client.get("/").json["projects"] == {"3": "/api/projects/3/status"}  # type: ignore[index]
    for accept in ("*/*", "application/json", "application/json, text/html", "image/png", ""):
        assert client.get("/", headers={"Accept": accept}).content_type == "application/json", accept
    answer = client.get("/", headers=BROWSER)
    assert (answer.status_code, answer.headers["Location"]) == (302, "/projects/3")
    assert "Accept" in answer.headers["Vary"]


def test_several_projects_are_listed(project: World) -> None:
    """And with none there is a page, too, that says how to connect one."""
    publish(project, 4)
    answer = client_of(project).get("/", headers=BROWSER)
    assert answer.content_type == "text/html; charset=utf-8"
    assert 'id="projects"' in answer.text


def test_a_project_that_is_not_known_has_a_page_that_says_so(client: FlaskClient) -> None:
    """With the status that programs go by."""
    answer = client.get("/projects/99")
    assert answer.status_code == 404
    assert "There is no such project here" in answer.text
    assert client.get("/projects/x").status_code == 404


def test_only_pages_may_run_scripts_and_only_this_service_s(client: FlaskClient) -> None:
    """Every other answer keeps the policy that allows nothing."""
    policy = client.get("/projects/3").headers["Content-Security-Policy"]
    assert policy == content_security_policy()
    assert "default-src 'none'; script-src 'self'; style-src 'self' 'sha256-" in policy
    assert "unsafe" not in policy
    for path in ("/", "/api/projects/3/status", "/assets/x/dashboard/style.css", "/no-such-page"):
        assert client.get(path).headers["Content-Security-Policy"] == HEADERS["Content-Security-Policy"], path
    for name, text in HEADERS.items():
        if name not in ("Content-Security-Policy", "Cache-Control"):
            assert client.get("/projects/3").headers[name] == text


def test_pages_have_no_script_or_style_within_them() -> None:
    """The policy would not let it run; and everything they name is there."""
    assets = Assets()
    for page in PAGES.glob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert not re.search(r"<script(?![^>]*src=)|<style|\son\w+=|\sstyle=", text), page
        for name in re.findall(r'"{{assets}}/([^"]+)"', text):
            assert assets.find(name) is not None, (page, name)


def test_the_style_sheet_of_charts_is_that_of_the_vendored_plot() -> None:
    """Its hash is in the policy: another release of Plot may have another."""
    script = (PAGES / "vendor" / "plot" / "plot.umd.min.js").read_text(encoding="utf-8")
    rule = CHART_STYLE.replace(".chart", ".${CLASS}").replace("\n", "\\n")
    assert rule in re.sub(r"(:where\(\.)\$\{\w+\}", r"\1${CLASS}", script)
    charts = (PAGES / "dashboard" / "charts.js").read_text(encoding="utf-8")
    assert 'const CLASS = "chart";' in charts


def test_files_are_kept_by_the_digest_in_their_address(client: FlaskClient) -> None:
    """A year under the right one; under another, as of a release before, they are asked for again."""
    page = client.get("/projects/3").text
    address = re.findall(r'href="(/assets/[0-9a-f]{16}/dashboard/style.css)"', page)[0]
    answer = client.get(address)
    assert answer.status_code == 200
    assert answer.content_type == "text/css; charset=utf-8"
    assert answer.headers["Cache-Control"] == "private, max-age=31536000, immutable"
    assert client.get("/assets/older/dashboard/style.css").headers["Cache-Control"] == "no-cache"
    again = client.get(address, headers={"If-None-Match": answer.headers["ETag"]})
    assert (again.status_code, again.data) == (304, b"")
    page_again = client.get("/projects/3", headers={"If-None-Match": client.get("/projects/3").headers["ETag"]})
    assert page_again.status_code == 304


def test_files_are_packed_for_who_can_unpack_them(client: FlaskClient) -> None:
    """The same content, with an ETag of its own."""
    plain = client.get("/assets/x/vendor/d3/d3.min.js")
    packed = client.get("/assets/x/vendor/d3/d3.min.js", headers={"Accept-Encoding": "br, gzip"})
    assert "Content-Encoding" not in plain.headers
    assert packed.headers["Content-Encoding"] == "gzip"
    assert gzip.decompress(packed.data) == plain.data
    assert packed.headers["ETag"] != plain.headers["ETag"]
    assert "Accept-Encoding" in packed.headers["Vary"]
    refused = client.get("/assets/x/vendor/d3/d3.min.js", headers={"Accept-Encoding": "gzip;q=0"})
    assert "Content-Encoding" not in refused.headers


@pytest.mark.parametrize(
    "name",
    ["../web.py", "..%2fweb.py", "dashboard/../../web.py", "/etc/passwd", "project.html", "vendor/d3/LICENSE", "", "x"],
)
def test_nothing_else_is_served(client: FlaskClient, name: str) -> None:
    """Neither what lies beside the files, nor a page under another address."""
    answer = client.get(f"/assets/x/{name}")
    assert answer.status_code == 404
    assert answer.json["error"]  # type: ignore[index]


def test_vendored_files_come_with_their_licences() -> None:
    """In the folder they are served from."""
    for folder in FOLDERS:
        if folder.startswith("vendor/"):
            assert (PAGES / folder / "LICENSE").read_text(encoding="utf-8").strip()


def test_what_is_made_of_a_library_is_what_make_vendor_makes() -> None:
    """Byte by byte; and it has nothing that the policy forbids."""
    vendor = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "vendor.py"))
    bundles = [(package.folder, package.bundle) for package in vendor["PACKAGES"] if package.bundle]
    assert [folder for folder, _ in bundles] == ["backend/pages/vendor/three"]
    for folder, bundle in bundles:
        content = (PAGES.parents[1] / folder / bundle.file).read_bytes()
        assert vendor["integrity_of"](content) == bundle.integrity
        assert not re.search(rb"\beval\(|new Function|new Worker|createObjectURL|https?://(?!www\.w3\.org/)", content)
