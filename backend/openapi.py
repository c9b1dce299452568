"""What the web service offers, as an OpenAPI 3.1 description, served at /openapi.json.

Written by hand beside the routes of `backend.web`; the tests hold the two together, and send what is described.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from backend.bodies import MAX_CONFIG_CHARS, MAX_NAME_CHARS, MAX_NESTING
from backend.config import Settings
from backend.loop.connect import PROJECT_HEADER, SECRET_HEADER

Schema = dict[str, Any]

VERSION = "1"

LABEL_STUDIO: Sequence[Mapping[str, Sequence[str]]] = ({"basic": []},)
WEBHOOK: Sequence[Mapping[str, Sequence[str]]] = ({"webhookSecret": []}, {"basic": []})
PAGE: Sequence[Mapping[str, Sequence[str]]] = ({"basic": []}, {"token": []})
ALL: Sequence[Mapping[str, Sequence[str]]] = ({}, {"basic": []})

_ERRORS = {
    400: "The request cannot be understood; the sentence says what was expected.",
    401: "Wrong or missing credentials.",
    404: "There is no such project.",
    408: "The body did not come whole, or not in time.",
    409: "The version cannot be used here; the sentence says why.",
    413: "The body is larger than MAX_REQUEST_BYTES, or holds more tasks than MAX_TASKS_PER_REQUEST.",
    415: "The body is packed (Content-Encoding).",
    422: "The labeling config is not one that can be learned from.",
    500: "A fault of the service; its log has the details.",
    503: "Redis, Label Studio or the data folder is away; the sentence says which.",
}
_OF_A_BODY = (400, 401, 408, 413, 415)

_TEXT: Schema = {"type": "string"}
_PROJECT: Schema = {
    "description": "Label Studio's project id: 3, '3', or '3.1763721234' with the time it was created.",
    "oneOf": [
        {"type": "integer", "minimum": 1, "maximum": 2**31 - 1},
        {"type": "string", "pattern": r"^[0-9]{1,9}(\.[0-9]{1,12})?$"},
    ],
}
_OF_A_PROJECT: Schema = {
    "in": "path",
    "name": "project_id",
    "required": True,
    "schema": {"type": "integer", "minimum": 0},
}
_UNCHANGED: Schema = {"description": "Still as the ETag says that was given."}
_JOB: Schema = {"type": "string", "maxLength": MAX_NAME_CHARS}


def description(settings: Settings) -> dict[str, Any]:
    """The description, with the bounds that these settings give."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Active-learning backend for Label Studio",
            "version": VERSION,
            "description": "Label Studio's ML protocol, its webhook, and the status. Every refusal is a JSON object "
            f"with a sentence in `error`. Bodies are at most {settings.max_request_bytes:,} bytes of UTF-8, nested at "
            f"most {MAX_NESTING} deep.",
        },
        "security": list(LABEL_STUDIO),
        "paths": _paths(settings),
        "components": {
            "schemas": {
                "Error": _object({"error": {"type": "string", "minLength": 10}}, "error", closed=True),
            },
            "securitySchemes": {
                "basic": {"type": "http", "scheme": "basic", "description": "BACKEND_USER and BACKEND_PASSWORD"},
                "token": {"type": "http", "scheme": "bearer", "description": "API_TOKEN"},
                "webhookSecret": {"type": "apiKey", "in": "header", "name": SECRET_HEADER},
            },
        },
    }


def _paths(settings: Settings) -> dict[str, Any]:
    model_version = {"model_version": _TEXT}
    versions = _json("Kept versions, newest first.", _object({"versions": _list(_TEXT)}, "versions"))
    state = _object({"job_status": _TEXT, "error": _or_null("string")}, "job_status")
    job_status = {
        200: _json("State and times of the job.", state),
        410: _json("The job is over and forgotten.", _object({"job_status": {"const": "removed"}}, "job_status")),
    }
    return {
        "/health": {
            "get": _operation(
                "Whether the service is alive; asked without credentials, or with the right ones.",
                {200: _json("It is.", _object({"status": {"const": "UP"}, "model_class": _TEXT}, "status"))},
                errors=(401,),
                security=ALL,
            )
        },
        "/setup": {
            "post": _operation(
                "Label Studio connects a project, or tells of another labeling config.",
                {200: _json("The published version, or 'untrained'.", _object(model_version, "model_version"))},
                body=_object(
                    {
                        "project": _PROJECT,
                        "schema": {"type": "string", "maxLength": MAX_CONFIG_CHARS, "description": "Labeling config."},
                        "hostname": {"type": ["string", "null"], "description": "Where people find Label Studio."},
                        "access_token": {"description": "Not used."},
                        "extra_params": {"description": "Not used."},
                    },
                    "project",
                    "schema",
                ),
                errors=(*_OF_A_BODY, 422, 503),
            )
        },
        "/predict": {
            "post": _operation(
                "Pre-labels and queue scores for tasks, as many and in the order asked for.",
                {200: _json("One prediction for each task.", _predictions())},
                body=_object(
                    {
                        "tasks": {**_list(_task()), "maxItems": settings.max_tasks_per_request},
                        "project": _PROJECT,
                        "label_config": {"type": ["string", "null"], "maxLength": MAX_CONFIG_CHARS},
                        "params": {"description": "Not used."},
                    },
                    "tasks",
                    "project",
                ),
                errors=(*_OF_A_BODY, 422, 503),
            )
        },
        "/webhook": {
            "post": _operation(
                "Label Studio tells of a label, of tasks, or that Start Training was pressed; may wait PUBLISH_WAIT_S.",
                {
                    201: _json(
                        "Taken; `job` and `ticket` are there if it leads to work.",
                        _object({"job": _JOB, "ticket": {"type": "integer"}}),
                    )
                },
                body=_object(
                    {
                        "action": {"type": "string", "maxLength": MAX_NAME_CHARS},
                        "project": {**_object({"id": _PROJECT}, "id"), "description": "Absent without payload."},
                    },
                    "action",
                ),
                parameters=[_parameter("header", PROJECT_HEADER, _PROJECT)],
                errors=(*_OF_A_BODY, 422, 503),
                security=WEBHOOK,
            )
        },
        "/job_status": {
            "get": _operation(
                "How a job goes.",
                job_status,
                parameters=[_parameter("query", "job", _JOB, required=True)],
                errors=(400, 401, 503),
            ),
            "post": _operation(
                "How a job goes.", job_status, body=_object({"job": _JOB}, "job"), errors=(*_OF_A_BODY, 503)
            ),
        },
        "/versions": {
            "get": _operation(
                "The versions that are kept.",
                {200: versions},
                parameters=[_parameter("query", "project", _PROJECT)],
                errors=(400, 401, 503),
            ),
            "post": _operation(
                "The versions that are kept.",
                {200: versions},
                body=_object({"project": _PROJECT}),
                parameters=[_parameter("query", "project", _PROJECT)],
                errors=(*_OF_A_BODY, 503),
            ),
        },
        "/": {
            "get": _operation(
                "Which projects there are: as JSON, or as a page for who accepts text/html before that.",
                {200: _start(), 302: {"description": "To the page of the only project."}, 304: _UNCHANGED},
                errors=(401, 503),
                security=PAGE,
            )
        },
        "/projects/{project_id}": {
            "get": _operation(
                "The dashboard of a project.",
                {
                    200: _file("The page.", "text/html"),
                    304: _UNCHANGED,
                    404: _no_project_page(),
                },
                parameters=[_OF_A_PROJECT],
                errors=(401, 503),
                security=PAGE,
            )
        },
        "/assets/{version}/{name}": {
            "get": _operation(
                "What the pages are made of.",
                {200: _file("The file.", "text/javascript", "text/css", "image/svg+xml"), 304: _UNCHANGED},
                parameters=[
                    {"in": "path", "name": name, "required": True, "schema": _TEXT} for name in ("version", "name")
                ],
                errors=(401, 404),
                security=PAGE,
            )
        },
        "/api/projects/{project_id}/status": {
            "get": _operation(
                "How a project is.",
                {200: _json("Version, labels used, accuracy, window, what is going on, last error.", _status())},
                parameters=[_OF_A_PROJECT],
                errors=(401, 404, 503),
                security=PAGE,
            )
        },
        "/api/projects/{project_id}/versions": {
            "get": _operation(
                "The versions of a project, newest first.",
                {200: _json("What each was made of, and how good it is.", _object({"versions": _list(_object({}))}))},
                parameters=[_OF_A_PROJECT],
                errors=(401, 404, 503),
                security=PAGE,
            )
        },
        "/api/projects/{project_id}/versions/{name}": {
            "get": _operation(
                "All that is kept of one version.",
                {200: _json("Its record.", _object({"version": _TEXT}, "version"))},
                parameters=[_OF_A_PROJECT, {"in": "path", "name": "name", "required": True, "schema": _TEXT}],
                errors=(401, 404, 503),
                security=PAGE,
            )
        },
        "/api/projects/{project_id}/pin": {
            "post": _operation(
                "Goes back to a version, and stays with it until told otherwise.",
                {202: _json("The next version has its head.", _object({"pinned": {"type": "object"}}, "pinned"))},
                body=_object({"version": {"type": "string", "maxLength": MAX_NAME_CHARS}}, "version"),
                parameters=[_OF_A_PROJECT],
                errors=(*_OF_A_BODY, 404, 409, 422, 503),
            ),
            "delete": _operation(
                "Goes on with the labels.",
                {202: _json("The next version is trained.", _object({"pinned": {"type": "null"}}, "pinned"))},
                parameters=[_OF_A_PROJECT],
                errors=(401, 404, 503),
            ),
        },
        "/ready": {
            "get": _operation(
                "Whether a label would get through; asked without credentials it says no more than that.",
                {status: _json(text, _readiness()) for status, text in ((200, "It would."), (503, "It would not."))},
                errors=(401,),
                security=({}, *PAGE),
            )
        },
        "/metrics": {
            "get": _operation(
                "Figures for Prometheus.",
                {200: {"description": "Prometheus' text format.", "content": {"text/plain": {"schema": _TEXT}}}},
                errors=(401, 503),
                security=PAGE,
            )
        },
        "/openapi.json": {
            "get": _operation(
                "This description.",
                {200: _json("OpenAPI 3.1.", _object({"openapi": _TEXT, "paths": {"type": "object"}}, "openapi"))},
                errors=(),
                security=[{}],
            )
        },
    }


def _start() -> Schema:
    answer = _json("Where to look.", _object({"service": _TEXT, "projects": {"type": "object"}}, "projects"))
    return {**answer, "content": {**answer["content"], "text/html": {"schema": _TEXT}}}


def _no_project_page() -> Schema:
    answer = _file("A page that says that there is no such project; JSON where its number is none.", "text/html")
    answer["content"]["application/json"] = {"schema": {"$ref": "#/components/schemas/Error"}}
    return answer


def _task() -> Schema:
    return _object(
        {
            "id": {"type": "integer", "minimum": 0, "maximum": 2**63 - 1},
            "data": {"description": "The task's data; the field with the image is named by the labeling config."},
            "project": {"description": "Project id, where the request names none."},
        },
        "id",
    )


def _predictions() -> Schema:
    prediction = _object(
        {
            "result": _list({"type": "object"}),
            "score": {"type": "number", "minimum": 0, "maximum": 1, "description": "Queue score: 0 = label first."},
            "model_version": _TEXT,
        },
        "result",
        "score",
        "model_version",
        closed=True,
    )
    return _object({"results": _list(prediction), "model_version": _TEXT}, "results", "model_version")


def _readiness() -> Schema:
    return _object({"status": {"enum": ["ready", "not ready"]}, "checks": {"type": "object"}}, "status")


def _status() -> Schema:
    return _object(
        {
            "project_id": {"type": "integer"},
            "model_version": _or_null("string"),
            "labels_used": {"type": "integer", "minimum": 0},
            "pool_size": _or_null("integer"),
            "window": _list({"type": "integer"}),
            "training": {"enum": ["idle", "queued", "running", None]},
            "accuracy": {"type": ["number", "null"], "minimum": 0, "maximum": 1},
            "last_error": _or_null("string"),
        },
        "project_id", "model_version", "labels_used", "pool_size", "window", "training", "accuracy", "last_error",
    )  # fmt: skip


def _operation(
    summary: str,
    answers: Mapping[int, Schema],
    *,
    errors: Sequence[int],
    body: Schema | None = None,
    parameters: Sequence[Schema] = (),
    security: Sequence[Mapping[str, Sequence[str]]] = LABEL_STUDIO,
) -> Schema:
    refusal = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    refused = {status: {"description": _ERRORS[status], "content": refusal} for status in (*errors, 500)}
    operation: Schema = {
        "summary": summary,
        "responses": {str(status): answer for status, answer in sorted({**answers, **refused}.items())},
        "security": list(security),
    }
    if body is not None:
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": body}}}
    if parameters:
        operation["parameters"] = list(parameters)
    return operation


def _parameter(place: str, name: str, schema: Schema, *, required: bool = False) -> Schema:
    return {"in": place, "name": name, "required": required, "schema": schema}


def _file(text: str, *content_types: str) -> Schema:
    return {"description": text, "content": {content_type: {"schema": _TEXT} for content_type in content_types}}


def _json(text: str, schema: Schema) -> Schema:
    return {"description": text, "content": {"application/json": {"schema": schema}}}


def _object(properties: Mapping[str, Schema], *required: str, closed: bool = False) -> Schema:
    schema: Schema = {"type": "object", "properties": dict(properties)}
    if required:
        schema["required"] = list(required)
    if closed:
        schema["additionalProperties"] = False
    return schema


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _or_null(kind: str) -> Schema:
    return {"type": [kind, "null"]}
