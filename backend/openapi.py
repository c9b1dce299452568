"""What the web service offers, as an OpenAPI 3.1 description, served at /openapi.json.

Written by hand beside the routes of `backend.web`; the tests hold the two together, and send what is described.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from backend.api_pages import FILES
from backend.bodies import MAX_CONFIG_CHARS, MAX_NAME_CHARS, MAX_NESTING
from backend.config import Settings
from backend.loop.connect import PROJECT_HEADER, SECRET_HEADER

Schema = dict[str, Any]

VERSION = "1"

LABEL_STUDIO: Sequence[Mapping[str, Sequence[str]]] = ({"basic": []},)
WEBHOOK: Sequence[Mapping[str, Sequence[str]]] = ({"webhookSecret": []}, {"basic": []})
PAGE: Sequence[Mapping[str, Sequence[str]]] = ({"basic": []}, {"token": []})
ALL: Sequence[Mapping[str, Sequence[str]]] = ({}, {"basic": []})

PROTOCOL_TAG = "What Label Studio asks"
PROJECT_TAG = "Projects"
SERVICE_TAG = "The service"
_PROTOCOL = ("/health", "/setup", "/predict", "/webhook", "/job_status", "/versions")

_ERRORS = {
    400: "The request cannot be understood; the sentence says what was expected.",
    401: "Wrong or missing credentials.",
    404: "There is no such project, version, task or page.",
    408: "The body did not come whole, or not in time.",
    409: "The version cannot be used here; the sentence says why.",
    413: "The body is larger than MAX_REQUEST_BYTES, or holds more tasks than MAX_TASKS_PER_REQUEST.",
    415: "The body is packed (Content-Encoding).",
    422: "The labeling config is not one that can be learned from, or the image cannot be shown.",
    500: "A fault of the service; its log has the details.",
    503: "Redis, Label Studio or the data folder is away, or all threads for this are in use; the sentence says which.",
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
        "tags": [{"name": name} for name in (PROTOCOL_TAG, PROJECT_TAG, SERVICE_TAG)],
        "paths": {
            path: {method: {"tags": [_tag(path)], **operation} for method, operation in methods.items()}
            for path, methods in _paths(settings).items()
        },
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


def _tag(path: str) -> str:
    """Under which heading of /docs a route stands."""
    return PROTOCOL_TAG if path in _PROTOCOL else PROJECT_TAG if path.startswith("/api/projects/") else SERVICE_TAG


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
                errors=(404,),
                security=[{}],
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
        "/api/projects/{project_id}/dashboard": {
            "get": _operation(
                "All that the dashboard shows of a project but its map.",
                {200: _json("Status, curve, window, suspects, classes, versions.", _dashboard())},
                parameters=[_OF_A_PROJECT],
                errors=(401, 404, 503),
                security=PAGE,
            )
        },
        "/api/projects/{project_id}/events": {
            "get": _operation(
                "News of a project as server-sent events: `changed` at once and whenever something changed.",
                {
                    200: {
                        "description": "The `data` of an event is JSON with model_version, evaluated, training, "
                        "labels_used, embedding, n_workers and last_error. The stream ends after five minutes.",
                        "content": {"text/event-stream": {"schema": _TEXT}},
                    }
                },
                parameters=[_OF_A_PROJECT],
                errors=(401, 404, 503),
                security=PAGE,
            )
        },
        "/api/projects/{project_id}/tasks/{task_id}/thumbnail": {
            "get": _operation(
                "A task's image, at most 256 pixels long; 422 with the reason if it cannot be shown.",
                {200: {"description": "JPEG.", "content": {"image/jpeg": {"schema": _TEXT}}}},
                parameters=[_OF_A_PROJECT, {**_OF_A_PROJECT, "name": "task_id"}],
                errors=(401, 404, 422, 503),
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
        "/api/projects/{project_id}/map": {
            "get": _operation(
                "Where each image lies on the embedding map, with label, prediction, uncertainty and queue place; "
                "docs/embedding-map.md has the form. With If-None-Match 304 while nothing has changed.",
                {
                    200: {
                        "description": "The map; the first call asks for one that is not there.",
                        "content": {"application/octet-stream": {"schema": {}}},
                    },
                    304: {"description": "It is as it was."},
                },
                parameters=[_OF_A_PROJECT],
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
        "/docs": {
            "get": _operation(
                "This description as a page.",
                {200: _file("The page.", "text/html"), 304: {"description": "As the ETag given says."}},
                errors=(),
                security=[{}],
            )
        },
        "/docs/{name}": {
            "get": _operation(
                "What that page is made of.",
                {
                    200: _file("A script or a style sheet.", "text/javascript", "text/css", "text/html"),
                    304: {"description": "As the ETag given says."},
                },
                parameters=[{"in": "path", "name": "name", "required": True, "schema": {"enum": list(FILES)}}],
                errors=(404,),
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
            "score": {
                "type": "number",
                "minimum": 0,
                "maximum": 1,
                "description": "Queue score: 0 = label first; 1 with SCORE_ORDER=descending.",
            },
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


def _dashboard() -> Schema:
    thumbnail: Schema = {"type": "string", "description": "Where this service shows the image small."}
    share: Schema = {"type": "number", "minimum": 0, "maximum": 1}
    interval: Schema = {"type": ["array", "null"], "items": share}
    point: dict[str, Schema] = {"labels_used": {"type": "integer"}, "accuracy": share, "interval": interval}
    curve = _object(
        {
            "target": {"type": ["number", "null"]},
            "points": _list(_object({"kind": {"enum": ["measured", "expected"]}, **point, "n_evaluated": {}}, "kind")),
            "random": _list(_object(point, *point)),
            "random_note": _or_null("string"),
        },
        "target", "points", "random", "random_note",
    )  # fmt: skip
    guess = _object({"label": _TEXT, "probability": share}, "label", "probability")
    why = _object(
        {
            "kind": {"enum": ["uncertain", "different", "typical", "chance", "other"]},
            "sentence": _TEXT,
            "classes": {**_list(guess), "maxItems": 2},
        },
        "kind", "sentence", "classes",
    )  # fmt: skip
    place: Schema = {"type": "integer", "minimum": 1}
    shown: dict[str, Schema] = {"task_id": {"type": "integer"}, "link": _TEXT, "thumbnail": thumbnail}
    properties: dict[str, Schema] = {
        "project": _object({"id": {"type": "integer"}, "title": _or_null("string"), "link": _TEXT}, "id", "link"),
        "status": _status(),
        "last_label_at": {"type": ["string", "null"], "description": "ISO 8601; when the newest answer came."},
        "curve": curve,
        "window": _list(_object({**shown, "place": place, "why": why}, *shown, "place", "why")),
        "suspects": _list(_object(shown, *shown)),
        "disagreements": _list(_object(shown, *shown)),
        "classes": _list(
            _object({"label": _TEXT, "n_labels": {"type": "integer"}, "n_predicted": _or_null("integer")}, "label")
        ),
        "confusion": {
            **_object({"labels": _list(_TEXT), "counts": _list(_list({"type": "integer"})), "basis": _TEXT}, "labels"),
            "type": ["object", "null"],
        },
        "calibration": {
            **_object(
                {"bins": _list(_object({}, "confidence", "accuracy", "n")), "error": share, "basis": _TEXT}, "bins"
            ),
            "type": ["object", "null"],
        },
        "label_figures": {
            **_object(
                {
                    "n_images": {"type": "integer"},
                    "exact_match": share,
                    "label_accuracy": share,
                    "macro_f1": _or_null("number"),
                    "mean_average_precision": _or_null("number"),
                    "threshold": share,
                    "labels": _list(_object({"label": _TEXT, "n_having": {"type": "integer"}}, "label")),
                    "basis": _TEXT,
                },
                "labels",
            ),
            "type": ["object", "null"],
            "description": "How well each label is told where images may have several; null where each has one.",
        },
        "versions": _list(_object({})),
    }
    return _object(properties, *properties)


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
    schema_of = {kind: {"schema": _TEXT} if kind.startswith("text/") else {} for kind in content_types}
    return {"description": text, "content": schema_of}


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
