"""The map of a project over HTTP: one binary answer, packed for who takes that, and 304 while it is the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flask import Response, request

from backend.services import Services

if TYPE_CHECKING:
    from flask import Flask

CONTENT_TYPE = "application/octet-stream"


def add_map(app: Flask, services: Services) -> None:
    """Adds the route."""

    def project_map(project_id: int) -> Response:
        answer = services.map_reader.answer(project_id)
        if request.if_none_match.contains_weak(answer.etag):
            response = Response(status=304)
        elif request.accept_encodings["gzip"] > 0 and answer.content:
            response = Response(answer.packed, content_type=CONTENT_TYPE, headers={"Content-Encoding": "gzip"})
        else:
            response = Response(answer.content, content_type=CONTENT_TYPE)
        response.set_etag(answer.etag, weak=True)  # packed or not it is the same
        response.vary.add("Accept-Encoding")
        return response

    app.add_url_rule("/api/projects/<int:project_id>/map", view_func=project_map)
