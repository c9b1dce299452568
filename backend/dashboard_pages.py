"""The pages for people: the list of projects at /, a project's dashboard, and the scripts and styles they are made of.

The pages hold nothing of a project: their scripts ask the API for it. Files are read when they are first asked for.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from flask import Flask, Response, abort, redirect, request
from werkzeug.wrappers import Response as BaseResponse

PAGES = Path(__file__).with_name("pages")

CONTENT_TYPES: Mapping[str, str] = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
"""What is served below /assets/, by the end of its name. Pages are not: each has its own address."""

FOLDERS = ("dashboard", "vendor/d3", "vendor/plot", "vendor/three")
"""Where it lies, below `PAGES`."""

CHART_STYLE = """:where(.chart) {
  --plot-background: white;
  display: block;
  height: auto;
  height: intrinsic;
  max-width: 100%;
}
:where(.chart text),
:where(.chart tspan) {
  white-space: pre;
}"""
"""The style sheet that Observable Plot 0.6.17 puts into each chart of class `chart` (its src/plot.js)."""

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; "
    "style-src 'self' '{chart_style}'; "
    "img-src 'self' data: blob:; connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
"""Of the pages only: what is not a file of this service is neither run nor loaded, Plot's style sheet excepted."""

KEPT = "private, max-age=31536000, immutable"
"""For an address with the digest of its content, which never has another."""

VERSION_MARK = "{{assets}}"
"""In a page: where its files are."""

MIN_PACKED_BYTES = 1000
"""Smaller files are not worth packing."""


@dataclass(frozen=True)
class Asset:
    """One file, and the same packed."""

    content: bytes
    packed: bytes
    content_type: str
    etag: str


class Assets:
    """All files of the pages; `version` is the digest of them together, so that modules of two releases never mix."""

    def __init__(self, folder: Path = PAGES) -> None:
        self._folder = folder
        self._lock = Lock()
        self._files: dict[str, Asset] | None = None
        self._version = ""

    @property
    def version(self) -> str:
        """Sixteen hexadecimal digits."""
        self._load()
        return self._version

    def find(self, name: str) -> Asset | None:
        """The file of that name below the pages' folder; None if there is none, or it is not for browsers."""
        return self._load().get(name)

    def page(self, name: str) -> bytes:
        """A page, in which the addresses of its files carry their version."""
        text = (self._folder / name).read_text(encoding="utf-8")
        return text.replace(VERSION_MARK, f"/assets/{self.version}").encode()

    def _load(self) -> Mapping[str, Asset]:
        with self._lock:
            if self._files is None:
                self._files = {
                    path.relative_to(self._folder).as_posix(): _asset(path)
                    for folder in FOLDERS
                    for path in sorted((self._folder / folder).iterdir())
                    if path.suffix in CONTENT_TYPES
                }
                together = "".join(f"{name} {asset.etag}\n" for name, asset in sorted(self._files.items()))
                self._version = hashlib.sha256(together.encode()).hexdigest()[:16]
            return self._files


def _asset(path: Path) -> Asset:
    content = path.read_bytes()
    packed = gzip.compress(content, 9, mtime=0) if len(content) >= MIN_PACKED_BYTES else b""
    return Asset(content, packed, CONTENT_TYPES[path.suffix], hashlib.sha256(content).hexdigest()[:16])


def refusal_page(assets: Assets) -> Response | None:
    """What people see who may not enter a page; None for programs, and where there is no page."""
    is_page = request.path == "/" or request.path.startswith("/projects/")
    return _page(assets, "refused.html", 401) if is_page and _is_browser() else None


def _is_browser() -> bool:
    return request.accept_mimetypes.best_match(("application/json", "text/html")) == "text/html"


def add_dashboard_pages(
    app: Flask,
    *,
    known_projects: Callable[[], Sequence[int]],
    index: Callable[[], Response],
    assets: Assets | None = None,
) -> None:
    """Adds /, /projects/… and /assets/…; `index` answers at / who is no browser."""
    assets = assets or Assets()

    def start() -> BaseResponse:
        answer: BaseResponse
        if not _is_browser():
            answer = index()
        else:
            known = known_projects()
            # Relative: the name by which a browser reaches this service is not known here.
            answer = redirect(f"/projects/{known[0]}", 302) if len(known) == 1 else _page(assets, "index.html")
        answer.headers["Vary"] = "Accept"
        return answer

    def project(project_id: int) -> Response:
        known = project_id in known_projects()
        return _page(assets, "project.html" if known else "unknown.html", 200 if known else 404)

    def asset(version: str, name: str) -> Response:
        found = assets.find(name)
        if found is None:
            abort(404, f"there is no file {request.path[:200]}; the pages are at /")
        answer = Response(content_type=found.content_type)
        answer.headers["Vary"] = "Accept-Encoding"
        answer.headers["Cache-Control"] = KEPT if version == assets.version else "no-cache"
        if found.packed and request.accept_encodings.quality("gzip") > 0:
            answer.set_data(found.packed)
            answer.headers["Content-Encoding"] = "gzip"
            answer.set_etag(f"{found.etag}-gzip")
        else:
            answer.set_data(found.content)
            answer.set_etag(found.etag)
        answer.make_conditional(request)
        return answer

    app.add_url_rule("/", "index", start)
    app.add_url_rule("/projects/<int:project_id>", "project_page", project)
    app.add_url_rule("/assets/<version>/<path:name>", "asset", asset)


def _page(assets: Assets, name: str, status: int = 200) -> Response:
    answer = Response(assets.page(name), status, content_type="text/html; charset=utf-8")
    answer.headers["Content-Security-Policy"] = content_security_policy()
    answer.headers["Cache-Control"] = "no-cache"  # another release has other files
    answer.add_etag()
    if status == 200:
        answer.make_conditional(request)
    return answer


def content_security_policy() -> str:
    """What the pages may run and load."""
    return CONTENT_SECURITY_POLICY.format(chart_style=_hash_source(CHART_STYLE))


def _hash_source(text: str) -> str:
    """The text as a Content-Security-Policy names it: by its sha256."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
