"""The web service: Label Studio's ML protocol, the webhook, and the status API."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from flask import Flask, Response, g, jsonify, request
from werkzeug.exceptions import HTTPException

from backend import access
from backend.api_pages import add_api_pages
from backend.bodies import MAX_CONFIG_CHARS, MAX_NAME_CHARS, json_object, tasks_of, text_of
from backend.choices import parse_labeling_config
from backend.dashboard import add_dashboard
from backend.dashboard_pages import Assets, add_dashboard_pages, refusal_page
from backend.errors import (
    BackendError,
    BadRequestError,
    ImageError,
    LabelingConfigError,
    LabelStudioAuthError,
    LabelStudioUnreachableError,
    ProjectNotFoundError,
    RedisUnavailableError,
    TaskNotFoundError,
    VersionNotFoundError,
    VersionUnusableError,
)
from backend.loop.connect import PROJECT_HEADER
from backend.loop.events import LABEL_EVENTS, project_id_of
from backend.loop.metrics import CONTENT_TYPE
from backend.loop.versions import pin_as_json
from backend.machine import settle_memory
from backend.openapi import description
from backend.schema import UNTRAINED
from backend.server import HEADERS, UNEXPECTED, serve_forever
from backend.services import Services, load_modules
from backend.telemetry import flush, flush_regularly, observe_requests
from backend.web_map import add_map

if TYPE_CHECKING:
    from werkzeug.wrappers import Response as BaseResponse

logger = logging.getLogger(__name__)

STATUS_OF: Mapping[type[BackendError], int] = {
    BadRequestError: 400,
    ProjectNotFoundError: 404,
    VersionNotFoundError: 404,
    TaskNotFoundError: 404,
    VersionUnusableError: 409,
    LabelingConfigError: 422,
    ImageError: 422,
    RedisUnavailableError: 503,
    LabelStudioUnreachableError: 503,
    LabelStudioAuthError: 503,
}
"""HTTP status of an error; any other BackendError is 500."""

ALONE_S = 1.0
"""Pause after a version from which one person seems to label, who looks at an image for longer than that."""

MAX_REASON_CHARS = 400

MODEL_CLASS = "ActiveLearningModel"
"""What /health names: the class in `backend.model`, which is not imported here, for its base class imports torch."""


def create_app(services: Services) -> Flask:
    """The WSGI application."""
    app = Flask("backend", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = services.settings.max_request_bytes
    app.url_map.merge_slashes = False  # or '//x' is answered by a redirect to whatever host the request names
    app.json.sort_keys = False  # type: ignore[attr-defined]
    app.wsgi_app = _with_a_path(app.wsgi_app)  # type: ignore[method-assign]
    observe_requests(app, services.request_counts)
    assets = Assets()
    app.before_request(lambda: _admit(services, assets))
    app.after_request(_finish)
    app.register_error_handler(BackendError, _refuse)
    app.register_error_handler(HTTPException, _refuse_http)
    app.register_error_handler(Exception, _fail)
    _add_ml_protocol(app, services)
    _add_api(app, services, assets)
    _add_versions(app, services)
    add_dashboard(app, services)
    add_map(app, services)
    add_api_pages(app)
    return app


def _with_a_path(application: Callable[..., Any]) -> Callable[..., Any]:
    """The same for requests without a path, which Flask would answer by a redirect to whatever host they name."""

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        return application({**environ, "PATH_INFO": environ.get("PATH_INFO") or "/"}, start_response)

    return answer


# -- Label Studio's ML protocol ---------------------------------------------------------------------------------------


def _add_ml_protocol(app: Flask, services: Services) -> None:
    def health() -> Response:
        return jsonify({"status": "UP", "model_class": MODEL_CLASS})

    def setup() -> Response:
        body = json_object(request)
        label_config = text_of(body, "schema", request.path, at_most=MAX_CONFIG_CHARS)
        uid = body.get("project")
        project_id = project_id_of(uid)
        parse_labeling_config(label_config)
        hostname = _hostname(body.get("hostname"))
        created = _created_seconds(uid)
        if created is not None:
            # Requested before it is registered: without Redis it stays news, and the next setup asks again.
            if services.registry.is_news(project_id, created, label_config):
                services.jobs.request_embedding(project_id)
            services.registry.register(project_id, created, label_config, hostname)
        return jsonify({"model_version": services.registry.published(project_id) or UNTRAINED})

    def predict() -> Response:
        body = json_object(request)
        tasks = tasks_of(body, request.path, at_most=services.settings.max_tasks_per_request)
        project = body.get("project") or (tasks[0].get("project") if tasks else None)
        project_id = project_id_of(project)
        label_config = text_of(body, "label_config", request.path, at_most=MAX_CONFIG_CHARS, default="")
        results = services.predictor.predict(project_id, label_config, tasks)
        return jsonify({"results": results, "model_version": services.registry.published(project_id) or UNTRAINED})

    def webhook() -> tuple[Response, int]:
        body = json_object(request)
        event = text_of(body, "action", request.path, at_most=MAX_NAME_CHARS)
        project_ids = _projects_of_event(body, services)
        longest = _longest_wait(project_ids, services) if event in LABEL_EVENTS else 0.0
        answers = [(project_id, services.events.handle(project_id, event, body)) for project_id in project_ids]
        logger.info("webhook action=%s projects=%s", event, ",".join(map(str, project_ids)) or "-")
        waits = [(project_id, answer["ticket"]) for project_id, answer in answers if "ticket" in answer]
        if longest > 0 and waits:
            started = time.monotonic()
            in_time = services.jobs.wait_for_retrain(*waits[0], timeout_s=longest)
            services.jobs.observe("webhook", {"answered" if in_time else "gave_up": time.monotonic() - started})
        return jsonify(answers[0][1] if len(answers) == 1 else {}), 201

    def job_status() -> tuple[Response, int]:
        body = json_object(request) if request.method == "POST" else request.args
        status = services.jobs.job_status(text_of(body, "job", request.path, at_most=MAX_NAME_CHARS))
        if status is None:
            return jsonify({"job_status": "removed"}), 410
        return jsonify(status), 200

    def versions() -> Response:
        body = json_object(request, optional=True) if request.method == "POST" else {}
        raw = request.args.get("project") or body.get("project")
        return jsonify({"versions": services.status.versions(project_id_of(raw) if raw else None)})

    app.add_url_rule("/health", view_func=health)
    app.add_url_rule("/setup", view_func=setup, methods=["POST"])
    app.add_url_rule("/predict", view_func=predict, methods=["POST"])
    app.add_url_rule("/webhook", view_func=webhook, methods=["POST"])
    app.add_url_rule("/job_status", view_func=job_status, methods=["GET", "POST"])
    app.add_url_rule("/versions", view_func=versions, methods=["GET", "POST"])


def _longest_wait(project_ids: Sequence[int], services: Services) -> float:
    """How long the answer to a label may wait for its version, in seconds.

    Not at all while a version is under way, for ours comes after it, and people who label together wait for each other
    already; half as long when one was published just now, for then others label, too.
    """
    longest = services.settings.publish_wait_s
    if longest <= 0 or len(project_ids) != 1:
        return 0.0
    quiet_s = services.jobs.quiet_s(project_ids[0])
    return 0.0 if quiet_s == 0.0 else longest / 2 if quiet_s < ALONE_S else longest


def _created_seconds(uid: object) -> int | None:
    """The creation time that Label Studio writes behind the project's id, as in '3.1763721234'.

    With another time it counts as another project, and what was kept is set aside: nothing else may pass for one.
    """
    text = uid.partition(".")[2] if isinstance(uid, str) else ""
    return int(text) if text.isascii() and text.isdigit() and len(text) in (10, 11) else None


def _hostname(raw: object) -> str:
    """The address by which Label Studio says it knows itself; '' for anything that is no plain web address.

    People follow it: links to tasks begin with it.
    """
    if not isinstance(raw, str) or len(raw) > 500 or not (raw.isascii() and raw.isprintable()):
        return ""
    try:
        parts = urlsplit(raw)
        plain = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and "@" not in parts.netloc
    except ValueError:
        return ""
    return raw if plain and not (parts.query or parts.fragment or set(raw) & set(" \\\"'<>")) else ""


def _projects_of_event(body: Mapping[str, Any], services: Services) -> list[int]:
    """The project of a webhook: from its payload, else from the header we gave the webhook, else all we know."""
    project = body.get("project")
    if isinstance(project, Mapping):
        return [project_id_of(project)]
    header = request.headers.get(PROJECT_HEADER)
    if header:
        return [project_id_of(header)]
    return services.registry.known_projects()


# -- status API -------------------------------------------------------------------------------------------------------


def _add_api(app: Flask, services: Services, assets: Assets) -> None:
    def index() -> Response:
        known = services.status.known_projects()
        return jsonify(
            {
                "service": "active-learning backend for Label Studio",
                "projects": {str(number): f"/api/projects/{number}/status" for number in known},
                "metrics": "/metrics",
                "ready": "/ready",
            }
        )

    def status(project_id: int) -> Response:
        return jsonify(services.status.project(project_id))

    def metrics() -> Response:
        flush(services.request_counts)
        return Response(services.metrics.text(), content_type=CONTENT_TYPE)

    def ready() -> tuple[Response, int]:
        report = services.readiness.report()
        answer: dict[str, Any] = {"status": "ready" if report.ready else "not ready"}
        if g.known:  # strangers are told no more than that
            answer["checks"] = {name: asdict(finding) for name, finding in report.findings.items()}
        return jsonify(answer), 200 if report.ready else 503

    def openapi() -> Response:
        return jsonify(description(services.settings))

    add_dashboard_pages(app, known_projects=services.status.known_projects, index=index, assets=assets)
    app.add_url_rule("/api/projects/<int:project_id>/status", view_func=status)
    app.add_url_rule("/metrics", view_func=metrics)
    app.add_url_rule("/ready", view_func=ready)
    app.add_url_rule("/openapi.json", view_func=openapi)


# -- versions ---------------------------------------------------------------------------------------------------------


def _add_versions(app: Flask, services: Services) -> None:
    def listed(project_id: int) -> Response:
        return jsonify({"versions": services.versions.listed(project_id)})

    def described(project_id: int, name: str) -> Response:
        return jsonify(services.versions.described(project_id, name))

    def pin(project_id: int) -> tuple[Response, int]:
        # A form of another site can send a person's password along, but no JSON.
        if not request.is_json:
            raise BadRequestError(f'{request.path} expects Content-Type: application/json and {{"version": "v0012-…"}}')
        name = text_of(json_object(request), "version", request.path, at_most=MAX_NAME_CHARS)
        pinned, _ = services.versions.use(project_id, name, by="API")
        return jsonify({"pinned": pin_as_json(pinned)}), 202

    def release(project_id: int) -> tuple[Response, int]:
        services.versions.release(project_id)
        return jsonify({"pinned": None}), 202

    app.add_url_rule("/api/projects/<int:project_id>/versions", view_func=listed)
    app.add_url_rule("/api/projects/<int:project_id>/versions/<name>", view_func=described)
    app.add_url_rule("/api/projects/<int:project_id>/pin", view_func=pin, methods=["POST"])
    app.add_url_rule("/api/projects/<int:project_id>/pin", view_func=release, methods=["DELETE"])


# -- who may ----------------------------------------------------------------------------------------------------------


def _admit(services: Services, assets: Assets) -> BaseResponse | None:
    """Turns away who may not enter; `g.known`: whether who asks has shown that they may know."""
    g.started = time.monotonic()
    g.known = access.is_known(request, services.settings)
    if access.may_enter(request, services.settings, services.webhook_secret):
        return None
    # People see it once they have given up being asked; programs get the sentence.
    answer = refusal_page(assets) or _answer(401, access.refusal(request, services.settings))
    answer.headers["WWW-Authenticate"] = 'Basic realm="active learning", charset="UTF-8"'
    return answer


# -- answers ----------------------------------------------------------------------------------------------------------


def _answer(status: int, sentence: str) -> Response:
    """An error as JSON, and as the reason phrase: Label Studio shows only that to the person who connects us."""
    answer = jsonify({"error": sentence})
    line = "".join(character if " " <= character <= "~" else "?" for character in " ".join(sentence.split()))
    answer.status = f"{status} {line[:MAX_REASON_CHARS]}"
    return answer


def _refuse(exc: BackendError) -> Response:
    status = next((code for kind, code in STATUS_OF.items() if isinstance(exc, kind)), 500)
    logger.warning("%s %s answered %d: %s", request.method, request.path, status, exc)
    return _answer(status, str(exc))


def _refuse_http(exc: HTTPException) -> BaseResponse:
    answer = _answer(exc.code or 500, str(exc.description or exc.name))
    for name, value in exc.get_headers():
        if name.lower() not in ("content-type", "content-length"):
            answer.headers[name] = value
    return answer


def _fail(exc: Exception) -> Response:
    logger.exception("%s %s failed", request.method, request.path, exc_info=exc)
    return _answer(500, UNEXPECTED)


def _finish(answer: Response) -> Response:
    for name, text in HEADERS.items():
        answer.headers.setdefault(name, text)  # a page for people says itself what it may load and keep
    took = time.monotonic() - g.get("started", time.monotonic())
    logger.debug(
        "answered method=%s path=%s status=%d took=%.3fs", request.method, request.path, answer.status_code, took
    )
    return answer


# -- gunicorn ---------------------------------------------------------------------------------------------------------


def warm_up(services: Services) -> None:
    """Loads what first requests need, about two seconds of imports and the published versions, before they come.

    In each web process itself and not before the fork: Lance must not be forked once it was used.
    """
    load_modules()
    services.predictor.warm_up()
    settle_memory()


def serve(services: Services) -> None:
    """Runs the service under gunicorn until it is stopped. Raises SettingsError rather than let anybody in unasked."""
    settings = services.settings

    def load() -> Callable[..., Any]:
        warm_up(services)
        counting = (services.request_counts, threading.Event())
        threading.Thread(target=flush_regularly, args=counting, name="count-requests", daemon=True).start()
        return create_app(services)

    access.check_exposure(settings)
    if not settings.backend_password:
        logger.warning("BACKEND_PASSWORD is empty: anybody who reaches %s may use this service", settings.bind)
    serve_forever(settings, load, on_exit=lambda: flush(services.request_counts))
