"""A small HTTP server that answers what a backend asks of Label Studio, in the form of 1.23.2, from memory.

For load that Label Studio itself could not give: a request costs it about 70 ms, this server less than one. It shows no
pages and sends no webhooks: `POST /submit` is a person's answer, and returns the webhook that would have been sent.

    python -m benchmarks.stand_in --port 8080 --projects 1:1000 2:10000
"""

from __future__ import annotations

import argparse
import json
import re
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from typing import Any
from urllib.parse import parse_qs, urlsplit

from PIL import Image

CREATED_AT = "2026-01-01T00:00:00.000000Z"
CREATED = 1767225600
"""The same moment in seconds, as it stands in a project's uid."""

LABELS = ("cloudy", "rain", "shine", "sunrise")
LABEL_CONFIG = (
    '<View><Image name="image" value="$image"/><Choices name="choice" toName="image">'
    + "".join(f'<Choice value="{label}"/>' for label in LABELS)
    + "</Choices></View>"
)

Json = dict[str, Any]


def _picture() -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (64, 64), "grey").save(buffer, "PNG")
    return buffer.getvalue()


PICTURE = _picture()
"""The image of every task."""


def image_reference(task_id: int) -> str:
    """The reference of a task's image, as one from local files."""
    return f"/data/local-files/?d=made-up/images/image-{task_id:07d}.jpg"


def task_json(project_id: int, task_id: int) -> Json:
    """A task as Label Studio sends it to /predict (tasks/serializers.py, TaskSimpleSerializer)."""
    return {
        "id": task_id,
        "annotations": [],
        "predictions": [],
        "data": {"image": image_reference(task_id)},
        "meta": {},
        "created_at": CREATED_AT,
        "updated_at": CREATED_AT,
        "is_labeled": False,
        "overlap": 1,
        "inner_id": task_id,
        "total_annotations": 0,
        "cancelled_annotations": 0,
        "total_predictions": 0,
        "comment_count": 0,
        "unresolved_comment_count": 0,
        "last_comment_updated_at": None,
        "project": project_id,
        "updated_by": None,
        "file_upload": None,
        "comment_authors": [],
    }


class Project:
    """One project: tasks 1 to `n_tasks`, one annotation per task at most, and its predictions."""

    def __init__(self, project_id: int, n_tasks: int) -> None:
        self.id = project_id
        self.n_tasks = n_tasks
        self.model_version = ""
        self.annotations: dict[int, Json] = {}
        self.predictions: Counter[str] = Counter()
        self.latest = (0, CREATED_AT)

    def facts(self) -> Json:
        """The project's own JSON."""
        return {
            "id": self.id,
            "title": "made up",
            "created_at": CREATED_AT,
            "label_config": LABEL_CONFIG,
            "model_version": self.model_version,
            "sampling": "Uncertainty sampling",
            "show_collab_predictions": True,
            "task_number": self.n_tasks,
            "total_annotations_number": len(self.annotations),
            "skipped_annotations_number": 0,
        }

    def submit(self, task_id: int, label: str) -> Json:
        """A person labels the task, or changes its label; the webhook's body."""
        if not 1 <= task_id <= self.n_tasks or label not in LABELS:
            raise ValueError(f"project {self.id} has tasks 1 to {self.n_tasks} and labels {LABELS}")
        known = self.annotations.get(task_id)
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        region = {"from_name": "choice", "to_name": "image", "type": "choices", "value": {"choices": [label]}}
        annotation = {
            "id": known["id"] if known else len(self.annotations) + 1,
            "task": task_id,
            "result": [region],
            "was_cancelled": False,
            "ground_truth": False,
            "created_at": known["created_at"] if known else now,
            "updated_at": now,
            "lead_time": 2.5,
        }
        self.annotations[task_id] = annotation
        self.latest = (task_id, now)
        return {
            "action": "ANNOTATION_UPDATED" if known else "ANNOTATION_CREATED",
            "project": self.facts(),
            "task": {"id": task_id, "data": {"image": image_reference(task_id)}, "overlap": 1},
            "annotation": annotation,
        }

    def labeled_tasks(self) -> list[Json]:
        """The annotated tasks, as exported."""
        return [
            {"id": task_id, "data": {"image": image_reference(task_id)}, "annotations": [annotation]}
            for task_id, annotation in sorted(self.annotations.items())
        ]

    def tasks(self, query: Json, page: int, page_size: int) -> Json:
        """Tasks after an id, the one that changed last, or a page of those with annotations: what the service asks."""
        first = (page - 1) * page_size
        ordering = query.get("ordering")
        if ordering == ["tasks:id"]:
            (later,) = query["filters"]["items"]
            ids = range(later["value"] + 1, min(later["value"] + page_size, self.n_tasks) + 1)
            found: list[Json] = [{"id": task_id, "data": {"image": image_reference(task_id)}} for task_id in ids]
            return {"tasks": found, "total": self.n_tasks}
        if query.get("filters", {}).get("items", [{}])[0].get("operator") == "equal":
            task_id = query["filters"]["items"][0]["value"]
            known = [{"id": task_id, "data": {"image": image_reference(task_id)}}] * (1 <= task_id <= self.n_tasks)
            return {"tasks": known, "total": len(known)}
        if ordering:
            found = [{"id": self.latest[0], "updated_at": self.latest[1]}]
            return {"tasks": found, "total": self.n_tasks}
        labeled = self.labeled_tasks()
        return {"tasks": labeled[first : first + page_size], "total": len(labeled)}


class StandIn:
    """The projects, and what each route does with them."""

    def __init__(self, projects: Sequence[Project], refused: Sequence[int] = ()) -> None:
        self._projects = {project.id: project for project in projects}
        self._refused = frozenset(refused)
        self._guard = threading.Lock()
        self._routes: list[tuple[str, str, Callable[[Project, Json, Any], tuple[int, Any]]]] = [
            ("GET", r"/api/projects/(\d+)/", lambda project, query, body: (200, project.facts())),
            ("PATCH", r"/api/projects/(\d+)/", self._patch),
            ("GET", r"/api/projects/(\d+)/export", lambda project, query, body: (200, project.labeled_tasks())),
            ("POST", r"/api/projects/(\d+)/import/predictions", self._import_predictions),
            ("GET", r"/api/projects/(\d+)/model-versions/", lambda project, query, body: (200, project.predictions)),
            ("DELETE", r"/api/projects/(\d+)/model-versions/", self._delete_predictions),
        ]

    def answer(self, method: str, address: str, body: Any) -> tuple[int, Any]:
        """(status, JSON) for a request."""
        parts = urlsplit(address)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        with self._guard:
            try:
                if (method, parts.path) == ("GET", "/api/current-user/whoami"):
                    return 200, {"id": 1, "email": "made-up@example.org"}
                if (method, parts.path) == ("POST", "/submit"):
                    return 201, self._projects[int(body["project"])].submit(int(body["task"]), str(body["label"]))
                if (method, parts.path) == ("GET", "/api/tasks/"):
                    view = json.loads(query.get("query", "{}"))
                    pages = int(query.get("page", 1)), int(query.get("page_size", 100))
                    return 200, self._projects[int(query["project"])].tasks(view, *pages)
                if (method, parts.path) == ("POST", "/api/predictions/"):
                    (project,) = self._projects.values()
                    return self._import_predictions(project, {}, [body])
                for known, pattern, act in self._routes:
                    match = re.fullmatch(pattern, parts.path)
                    if match and int(match.group(1)) in self._refused:
                        return 400, {"detail": "every request about this project is refused"}
                    if match and int(match.group(1)) not in self._projects:
                        return 404, {"detail": "No Project matches the given query."}
                    if match and known == method:
                        return act(self._projects[int(match.group(1))], query, body)
            except (KeyError, ValueError, TypeError) as exc:
                return 400, {"detail": repr(exc)}
        return 404, {"detail": f"the stand-in for Label Studio knows no {method} {parts.path}"}

    @staticmethod
    def _patch(project: Project, query: Json, body: Any) -> tuple[int, Any]:
        version = body["model_version"]
        if not project.predictions[version]:
            return 400, {"validation_errors": {"model_version": [f"Model version {version!r} doesn't exist"]}}
        project.model_version = version
        return 200, project.facts()

    @staticmethod
    def _import_predictions(project: Project, query: Json, body: Any) -> tuple[int, Any]:
        unknown = [item["task"] for item in body if not 1 <= item["task"] <= project.n_tasks]
        if unknown:
            return 400, {"detail": f"invalid task ID {unknown}"}
        project.predictions.update(item["model_version"] for item in body)
        return 201, {"created": len(body)}

    @staticmethod
    def _delete_predictions(project: Project, query: Json, body: Any) -> tuple[int, Any]:
        return 200, {"deleted": project.predictions.pop(body["model_version"], 0)}


def serve(stand_in: StandIn, port: int) -> ThreadingHTTPServer:
    """A server on the loopback address; `serve_forever` runs it."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = 2**16  # head and body leave together
        disable_nagle_algorithm = True

        def _respond(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            raw = self.rfile.read(length)
            if self.path.startswith("/data/"):
                status, content, kind = 200, PICTURE, "image/png"
            else:
                status, answer = stand_in.answer(self.command, self.path, json.loads(raw) if raw else None)
                content, kind = json.dumps(answer).encode(), "application/json"
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PATCH = do_DELETE = _respond  # noqa: N815

        def log_message(self, *_: object) -> None:
            """Nothing is logged."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 256

    return Server(("127.0.0.1", port), Handler)


def main(argv: Sequence[str] | None = None) -> None:
    """Serves until it is killed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--projects", nargs="+", required=True, help="project id:number of tasks")
    parser.add_argument("--refused", nargs="*", type=int, default=[], help="ids of projects it answers for with 400")
    arguments = parser.parse_args(argv)
    projects = [Project(*map(int, text.split(":"))) for text in arguments.projects]
    serve(StandIn(projects, arguments.refused), arguments.port).serve_forever()


if __name__ == "__main__":
    main()
