"""The page at /docs: what /openapi.json describes, for people, without anything from another site."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from flask import Flask, Response, abort, request

PAGES = Path(__file__).with_name("pages")

PAGE = "docs.html"

FILES: Mapping[str, tuple[str, str]] = {
    PAGE: (PAGE, "text/html; charset=utf-8"),
    "docs.js": ("docs.js", "text/javascript; charset=utf-8"),
    "swagger-ui-bundle.js": ("vendor/swagger-ui/swagger-ui-bundle.js", "text/javascript; charset=utf-8"),
    "swagger-ui.css": ("vendor/swagger-ui/swagger-ui.css", "text/css; charset=utf-8"),
}
"""What is served: name below /docs/ → file below `PAGES`, and its type. Nothing else of the folder is."""

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Of these answers only: scripts and styles of this service, pictures that stand in its style sheet, its own API."""


def add_api_pages(app: Flask) -> None:
    """Adds /docs and the files it is made of; anybody may read them, as /openapi.json."""

    def page() -> Response:
        return _served(PAGE)

    def file(name: str) -> Response:
        if name not in FILES:
            abort(404, f"there is no page {request.path}; the API's documentation is at /docs")
        return _served(name)

    app.add_url_rule("/docs", "api_page", page)
    app.add_url_rule("/docs/<name>", "api_file", file)


def _served(name: str) -> Response:
    """The file, or 304 for a browser that has it."""
    place, content_type = FILES[name]
    answer = Response((PAGES / place).read_bytes(), content_type=content_type)
    answer.headers["Content-Security-Policy"] = CONTENT_SECURITY_POLICY
    answer.headers["Cache-Control"] = "no-cache"  # kept, and asked for again: another release has others
    answer.add_etag()
    answer.make_conditional(request)
    return answer
