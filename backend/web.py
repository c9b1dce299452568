"""The web service: Label Studio's ML protocol, the webhook, and the status API."""

from __future__ import annotations

import hmac
import importlib
import logging
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from flask import Flask, Response, g, jsonify, request
from werkzeug.exceptions import HTTPException

from backend.choices import parse_labeling_config
from backend.errors import (
    BackendError,
    BadRequestError,
    LabelingConfigError,
    LabelStudioUnreachableError,
    ProjectNotFoundError,
    RedisUnavailableError,
    VersionNotFoundError,
)
from backend.loop.connect import PROJECT_HEADER, SECRET_HEADER
from backend.loop.events import project_id_of
from backend.schema import UNTRAINED
from backend.services import Services

if TYPE_CHECKING:
    from werkzeug.datastructures import Authorization
    from werkzeug.wrappers import Response as BaseResponse

logger = logging.getLogger(__name__)

STATUS_OF: Mapping[type[BackendError], int] = {
    BadRequestError: 400,
    ProjectNotFoundError: 404,
    VersionNotFoundError: 404,
    LabelingConfigError: 422,
    RedisUnavailableError: 503,
    LabelStudioUnreachableError: 503,
}
"""HTTP status of an error; any other BackendError is 500."""

MAX_REASON_CHARS = 400

MODEL_CLASS = "ActiveLearningModel"
"""What /health names: the class in `backend.model`, which is not imported here, for its base class imports torch."""

LOADED_ON_USE = ("label_studio_sdk.label_interface.interface", "lance", "redis", "rq", "safetensors.numpy")
"""What requests import when they come to it; the first of them would take longer than Label Studio waits for it."""


def create_app(services: Services) -> Flask:
    """The WSGI application."""
    app = Flask("backend")
    app.config["MAX_CONTENT_LENGTH"] = services.settings.max_request_bytes
    app.json.sort_keys = False  # type: ignore[attr-defined]
    app.before_request(lambda: _admit(services))
    app.after_request(_finish)
    app.register_error_handler(BackendError, _refuse)
    app.register_error_handler(HTTPException, _refuse_http)
    app.register_error_handler(Exception, _fail)
    _add_ml_protocol(app, services)
    _add_api(app, services)
    return app


# -- Label Studio's ML protocol ---------------------------------------------------------------------------------------


def _add_ml_protocol(app: Flask, services: Services) -> None:
    def health() -> Response:
        return jsonify({"status": "UP", "model_class": MODEL_CLASS})

    def setup() -> Response:
        body = _body()
        label_config = _text(body, "schema")
        uid = body.get("project")
        project_id = project_id_of(uid)
        parse_labeling_config(label_config)
        hostname = _text(body, "hostname", "")
        created = _created_seconds(uid)
        if created is not None:
            # Requested before it is registered: without Redis it stays news, and the next setup asks again.
            if services.registry.is_news(project_id, created, label_config):
                services.jobs.request_embedding(project_id)
            services.registry.register(project_id, created, label_config, hostname)
        return jsonify({"model_version": services.registry.published(project_id) or UNTRAINED})

    def predict() -> Response:
        body = _body()
        tasks = _tasks(body)
        project = body.get("project") or (tasks[0].get("project") if tasks else None)
        project_id = project_id_of(project)
        results = services.predictor.predict(project_id, _text(body, "label_config", ""), tasks)
        return jsonify({"results": results, "model_version": services.registry.published(project_id) or UNTRAINED})

    def webhook() -> tuple[Response, int]:
        body = _body()
        event = _text(body, "action")
        project_ids = _projects_of_event(body, services)
        answers = [(project_id, services.events.handle(project_id, event, body)) for project_id in project_ids]
        logger.info("webhook action=%s projects=%s", event, ",".join(map(str, project_ids)) or "-")
        waits = [(project_id, answer["ticket"]) for project_id, answer in answers if "ticket" in answer]
        longest = services.settings.publish_wait_s
        if longest > 0 and len(waits) == 1 and event != "START_TRAINING":
            started = time.monotonic()
            in_time = services.jobs.wait_for_retrain(*waits[0], timeout_s=longest)
            services.jobs.observe("webhook", {"answered" if in_time else "gave_up": time.monotonic() - started})
        return jsonify(answers[0][1] if len(answers) == 1 else {}), 201

    def job_status() -> tuple[Response, int]:
        body = _body() if request.method == "POST" else request.args
        status = services.jobs.job_status(_text(body, "job"))
        if status is None:
            return jsonify({"job_status": "removed"}), 410
        return jsonify(status), 200

    def versions() -> Response:
        body = request.get_json(silent=True)
        raw = request.args.get("project") or (body.get("project") if isinstance(body, dict) else None)
        return jsonify({"versions": services.status.versions(project_id_of(raw) if raw else None)})

    app.add_url_rule("/health", view_func=health)
    app.add_url_rule("/setup", view_func=setup, methods=["POST"])
    app.add_url_rule("/predict", view_func=predict, methods=["POST"])
    app.add_url_rule("/webhook", view_func=webhook, methods=["POST"])
    app.add_url_rule("/job_status", view_func=job_status, methods=["GET", "POST"])
    app.add_url_rule("/versions", view_func=versions, methods=["GET", "POST"])


def _created_seconds(uid: object) -> int | None:
    """The creation time that Label Studio writes behind the project's id, as in '3.1763721234'."""
    text = str(uid).partition(".")[2]
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 12 else None


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


def _add_api(app: Flask, services: Services) -> None:
    def index() -> Response:
        known = services.status.known_projects()
        return jsonify(
            {
                "service": "active-learning backend for Label Studio",
                "projects": {str(number): f"/api/projects/{number}/status" for number in known},
                "metrics": "/metrics",
            }
        )

    def status(project_id: int) -> Response:
        return jsonify(services.status.project(project_id))

    def metrics() -> Response:
        return Response(services.status.metrics(), content_type="text/plain; version=0.0.4; charset=utf-8")

    app.add_url_rule("/", view_func=index)
    app.add_url_rule("/api/projects/<int:project_id>/status", view_func=status)
    app.add_url_rule("/metrics", view_func=metrics)


# -- who may ----------------------------------------------------------------------------------------------------------


def _admit(services: Services) -> BaseResponse | None:
    """Lets a request in with Basic auth or, for the webhook, with its secret header; /health also without either."""
    g.started = time.monotonic()
    password = services.settings.backend_password
    if not password or request.method == "OPTIONS":
        return None
    if request.path == "/webhook" and _same(request.headers.get(SECRET_HEADER, ""), services.webhook_secret):
        return None
    given = _authorization()
    if given is None and "Authorization" not in request.headers and request.path == "/health":
        return None
    if given is not None and given.type == "basic":
        right_user = _same(given.username or "", services.settings.backend_user)
        right_password = _same(given.password or "", password)
        if right_user and right_password:
            return None
    answer = _answer(401, "wrong or missing credentials; give BACKEND_USER and BACKEND_PASSWORD as Basic auth")
    answer.headers["WWW-Authenticate"] = 'Basic realm="active learning", charset="UTF-8"'
    return answer


def _authorization() -> Authorization | None:
    try:
        return request.authorization
    except ValueError:  # bytes beyond ASCII where base64 should be
        return None


def _same(given: str, expected: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), expected.encode()) and bool(expected)


# -- bodies and answers -----------------------------------------------------------------------------------------------


def _body() -> Mapping[str, Any]:
    try:
        body = request.get_json(force=True, silent=True)
    except RecursionError:
        raise BadRequestError(f"{request.path} expects a JSON object that is not nested thousands of times") from None
    if not isinstance(body, dict):
        raise BadRequestError(f"{request.path} expects a JSON object in the body")
    return body


def _text(body: Mapping[str, Any], name: str, default: str | None = None) -> str:
    value = body.get(name)
    if value is None and default is not None:
        return default
    if not isinstance(value, str):
        raise BadRequestError(f"{request.path} expects a text in {name!r}, not {type(value).__name__}")
    return value


def _tasks(body: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    tasks = body.get("tasks")
    if not isinstance(tasks, list):
        raise BadRequestError(f"{request.path} expects a list of tasks in 'tasks', not {type(tasks).__name__}")
    for position, task in enumerate(tasks):
        number = task.get("id") if isinstance(task, dict) else None
        if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < 2**63:
            raise BadRequestError(f"tasks[{position}] has no whole number in 'id'; expected Label Studio's task JSON")
    return tasks


def _answer(status: int, sentence: str) -> Response:
    """An error as JSON, and as the reason phrase: Label Studio shows only that to the person who connects us."""
    answer = jsonify({"error": sentence})
    reason = " ".join(sentence.split()).encode("ascii", "replace").decode()[:MAX_REASON_CHARS]
    answer.status = f"{status} {reason}"
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
    return _answer(500, "an unexpected error; the web service's log has the details")


def _finish(answer: Response) -> Response:
    answer.headers["X-Backend"] = "active-learning"
    took = time.monotonic() - g.get("started", time.monotonic())
    logger.debug("%s %s %d %.3fs", request.method, request.path, answer.status_code, took)
    return answer


# -- gunicorn ---------------------------------------------------------------------------------------------------------


def warm_up(services: Services) -> None:
    """Loads what first requests need, about two seconds of imports and the published versions, before they come.

    In each web process itself and not before the fork: Lance must not be forked once it was used.
    """
    for name in LOADED_ON_USE:
        importlib.import_module(name)
    services.predictor.warm_up()


def serve(services: Services) -> None:
    """Runs the service under gunicorn until it is stopped."""
    from gunicorn.app.base import BaseApplication

    settings = services.settings

    class Server(BaseApplication):  # type: ignore[misc]
        def load_config(self) -> None:
            options: dict[str, Any] = {
                "bind": settings.bind,
                "workers": settings.web_workers,
                "worker_class": "gthread",
                "threads": settings.web_threads,
                "timeout": 120,
                "graceful_timeout": 5,
                "proc_name": "active-learning-web",
                "loglevel": settings.log_level.lower(),
                "accesslog": None,
                "control_socket_disable": True,
            }
            for name, value in options.items():
                self.cfg.set(name, value)

        def load(self) -> Callable[..., Any]:
            warm_up(services)
            return create_app(services)

    if not settings.backend_password:
        logger.warning("BACKEND_PASSWORD is empty: anybody who reaches %s may use this service", settings.bind)
    Server().run()
