"""The pages as they are served, with made-up answers behind them: for browser tests and the dashboard's benchmark."""

from __future__ import annotations

import io
import json
import math
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flask import Flask, Response, jsonify, request
from PIL import Image, ImageDraw
from werkzeug.serving import WSGIRequestHandler, make_server

from backend.dashboard_pages import add_dashboard_pages
from backend.server import HEADERS

LABEL_STUDIO = "http://labels.example"
CLASSES = ["cat", "dog", "fox", "hare", "owl", "seal"]
NONE = 65535


def link_of(task_id: int) -> str:
    return f"{LABEL_STUDIO}/projects/3/data?task={task_id}"


def thumbnail_of(task_id: int) -> str:
    return f"/api/projects/3/tasks/{task_id}/thumbnail"


def empty_board() -> dict[str, Any]:
    """A project that was connected just now: nothing is embedded, nothing labeled."""
    return {
        "project": {"id": 3, "title": "Animals", "link": f"{LABEL_STUDIO}/projects/3/data"},
        "status": {
            "project_id": 3, "model_version": None, "kind": None, "created_at": None, "pinned": None, "head_of": None,
            "version_note": None, "labels_used": 0, "labels_given": 0, "labels_by_class": {}, "ignored_labels": {},
            "pool_size": None, "window": [], "training": "idle", "accuracy": None, "accuracy_kind": None,
            "accuracy_labels": 0, "accuracy_interval": None, "cross_validated_accuracy": None,
            "expected_accuracy": None, "calibration_error": None, "validation": None, "forecast": None,
            "n_suspects": 0, "suspects": [], "agreement": None, "n_disagreements": 0, "disagreements": [],
            "acquisition": None, "seed_engine": None, "seed_engine_reason": None, "backbone": None,
            "backbone_warning": None, "finetuning": None, "embedding": None, "shards_to_search": 0,
            "image_failures": {}, "n_workers": 1, "last_error": None, "failures": [],
        },
        "last_label_at": None,
        "curve": {"target": 0.95, "points": [], "random": [], "random_note": None},
        "window": [], "suspects": [], "disagreements": [], "classes": [], "confusion": None, "calibration": None,
        "versions": [],
    }  # fmt: skip


def embedding_board() -> dict[str, Any]:
    """A project whose images are being embedded."""
    board = empty_board()
    board["status"] |= {"embedding": {"done": 4210, "total": 12000, "images_per_s": 61.3, "seconds_left": 127.0}}
    return board


def full_board(n_labels: int = 240, *, classes: list[str] | None = None, n_window: int = 24) -> dict[str, Any]:
    """A project in full swing."""
    names = classes or CLASSES
    rng = np.random.default_rng(0)
    board = empty_board()
    steps = [n for n in (12, 16, 20, 26, 34, 44, 58, 76, 98, 126, 160, 200, 240, 300, 380) if n < n_labels] + [n_labels]
    points = []
    for n in steps:
        accuracy = 0.97 - 0.9 * n**-0.5
        half = 1.96 * math.sqrt(accuracy * (1 - accuracy) / 200)
        points.append(
            {"kind": "measured", "labels_used": n, "accuracy": accuracy, "n_evaluated": 200,
             "interval": [max(0, accuracy - half), min(1, accuracy + half)]}
        )  # fmt: skip
    random = [
        {"labels_used": n, "accuracy": 0.95 - 1.3 * n**-0.5, "interval": None} for n in [*steps, int(steps[-1] * 1.2)]
    ]
    accuracy = points[-1]["accuracy"]
    version = f"v{n_labels:04d}-{n_labels}labels-20260101T120000Z"
    window = list(range(1001, 1001 + n_window))
    kinds = ["uncertain", "uncertain", "different", "uncertain", "typical", "chance"]
    matrix = rng.poisson(1.2, (len(names), len(names)))
    np.fill_diagonal(matrix, rng.integers(22, 40, len(names)))
    made = [version] + [f"v{n:04d}-{n}labels-20260101T110000Z" for n in range(n_labels - 1, n_labels - 20, -1)]
    board["status"] |= {
        "model_version": version, "kind": "model", "created_at": "2026-01-01T12:00:00+00:00", "labels_used": n_labels,
        "labels_given": n_labels, "pool_size": 11760, "window": window, "accuracy": accuracy,
        "accuracy_kind": "measured on 200 validation tasks", "accuracy_labels": 200,
        "accuracy_interval": points[-1]["interval"], "expected_accuracy": 0.93, "cross_validated_accuracy": 0.71,
        "calibration_error": 0.034, "acquisition": "margin", "backbone": "efficientnet_v2_s",
        "embedding": {"done": 12000, "total": 12000, "images_per_s": 60.0, "seconds_left": 0.0},
        "forecast": {
            "target": 0.95, "horizon": 24, "labels_needed": 310, "labels_needed_interval": [150, 900], "reason": None,
            "expected_gain": 0.008, "gain_at_most": 0.021, "verdict": "go_on", "stop": False,
            "suggestion": "Go on: the next 24 labels are expected to gain 0.8 percentage points, hardly more than 2.1.",
            "basis": "accuracy measured on the validation tasks",
        },
        "n_suspects": 9,
        "agreement": {"n_tasks": 40, "n_annotators": 3, "krippendorff_alpha": 0.81, "mean_pairwise_agreement": 0.87},
        "n_disagreements": 2,
    }  # fmt: skip
    board["last_label_at"] = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(time.time() - 95))
    board["curve"] |= {
        "points": points, "random": random,
        "random_note": "not measured here, but what labels in random order gave on similar data",
    }  # fmt: skip
    sentences = {
        "uncertain": "The model cannot tell {0} from {1} here.",
        "different": "Unlike anything labeled so far.",
        "typical": "Stands for many images that look like it.",
        "chance": "Drawn by chance, to keep the estimate honest.",
    }
    board["window"] = []
    for place, task_id in enumerate(window, 1):
        kind = kinds[place % len(kinds)]
        first, second = names[place % len(names)], names[(place + 2) % len(names)]
        p = 0.42 + 0.07 * float(rng.random())
        board["window"].append(
            {"task_id": task_id, "place": place, "link": link_of(task_id), "thumbnail": thumbnail_of(task_id),
             "why": {"kind": kind, "sentence": sentences[kind].format(first, second),
                     "classes": [{"label": first, "probability": p}, {"label": second, "probability": p - 0.03}]
                     if kind == "uncertain" else []}}
        )  # fmt: skip
    board["suspects"] = [
        {"task_id": 20 + i, "label": names[i % len(names)], "probability": 0.01 + 0.01 * i,
         "suggested_label": names[(i + 1) % len(names)], "suggested_probability": 0.97 - 0.03 * i,
         "link": link_of(20 + i), "thumbnail": thumbnail_of(20 + i)}
        for i in range(5)
    ]  # fmt: skip
    board["disagreements"] = [
        {"task_id": 60 + i, "label": names[i], "ground_truth": i == 1, "agreement": 0.33,
         "answers": {names[i]: [1, 2], names[i + 1]: [3]}, "link": link_of(60 + i), "thumbnail": thumbnail_of(60 + i)}
        for i in range(2)
    ]  # fmt: skip
    given = rng.multinomial(n_labels, rng.dirichlet(np.full(len(names), 4)))
    predicted = rng.multinomial(11760, rng.dirichlet(np.full(len(names), 4)))
    board["classes"] = [
        {"label": name, "n_labels": int(a), "n_predicted": int(b)}
        for name, a, b in zip(names, given, predicted, strict=True)
    ]
    board["status"]["labels_by_class"] = {item["label"]: item["n_labels"] for item in board["classes"]}
    board["confusion"] = {"labels": names, "counts": matrix.tolist(), "basis": "Counted on 200 validation tasks."}
    board["calibration"] = {
        "bins": [{"confidence": c, "accuracy": min(1.0, c - 0.04 + 0.05 * float(rng.random())), "n": int(n)}
                 for c, n in zip((0.35, 0.45, 0.55, 0.65, 0.75, 0.85, 0.96), (4, 9, 14, 20, 26, 41, 86), strict=True)],
        "error": 0.034, "basis": "Counted on 200 validation tasks.",
    }  # fmt: skip
    board["versions"] = [
        {"version": name, "published": index == 0, "pinned": False, "created_at": "2026-01-01T12:00:00+00:00",
         "kind": "model", "labels_used": n_labels - index, "accuracy": accuracy - 0.001 * index,
         "accuracy_kind": "measured on 200 validation tasks", "accuracy_interval": None, "head_of": None}
        for index, name in enumerate(made)
    ]  # fmt: skip
    return board


def map_of(n: int, *, classes: list[str] | None = None, state: str = "ready", note: str | None = None) -> bytes:
    """A map of n points in clusters, as the service packs it; the first 24 are next, a fiftieth is labeled."""
    names = classes or CLASSES
    rng = np.random.default_rng(1)
    owner = rng.integers(0, len(names), n)
    centres = np.stack([np.cos(np.arange(len(names)) * 2.4), np.sin(np.arange(len(names)) * 2.4)], 1)
    centres *= np.linspace(0.35, 0.7, len(names))[:, None]
    xy = np.clip(centres[owner] + rng.normal(0, 0.11, (n, 2)), -1, 1).astype("<f4")
    uncertainty = np.clip(rng.normal(70, 60, n), 0, 255).astype("u1")
    label = np.where(np.arange(n) % 50 == 49, owner, NONE).astype("<u2")
    place = np.where(np.arange(n) < 24, np.arange(n) + 1, NONE).astype("<u2")
    header = json.dumps({"model_version": "v1", "classes": names, "state": state, "note": note}).encode()
    head = b"ALM1" + struct.pack("<II", n, len(header)) + header
    head += b"\0" * (-len(head) % 4)
    task_id = np.arange(1001, 1001 + n, dtype="<u4")
    parts = (xy[:, 0], xy[:, 1], task_id, label, owner.astype("<u2"), place, uncertainty)
    return head + b"".join(np.ascontiguousarray(part).tobytes() for part in parts)


def picture(task_id: int) -> bytes:
    """A JPEG with something to see."""
    rng = np.random.default_rng(task_id)
    image = Image.new("RGB", (256, 192), tuple(int(c) for c in rng.integers(40, 190, 3)))
    draw = ImageDraw.Draw(image)
    for _ in range(6):
        x, y, r = (int(v) for v in rng.integers((0, 0, 14), (256, 192, 70)))
        draw.ellipse((x - r, y - r, x + r, y + r), fill=tuple(int(c) for c in rng.integers(60, 240, 3)))
    packed = io.BytesIO()
    image.save(packed, "JPEG", quality=80)
    return packed.getvalue()


@dataclass
class FakeService:
    """What the fake answers, to be changed while it runs, and what it was asked."""

    board: dict[str, Any] = field(default_factory=full_board)
    map: bytes = field(default_factory=lambda: map_of(1000))
    projects: list[int] = field(default_factory=lambda: [3])
    events: bool = True
    away: bool = False
    pin_refusal: str | None = None
    asked: list[tuple[str, str]] = field(default_factory=list)
    url: str = ""
    changed: threading.Condition = field(default_factory=threading.Condition)

    def change(self, board: dict[str, Any]) -> None:
        """Another answer, and an event that tells of it."""
        with self.changed:
            self.board = board
            self.changed.notify_all()

    def app(self) -> Flask:
        app = Flask("fake", static_folder=None)
        app.json.sort_keys = False  # type: ignore[attr-defined]

        def index() -> Response:
            return jsonify({"projects": {str(n): f"/api/projects/{n}/status" for n in self.projects}})

        add_dashboard_pages(app, known_projects=lambda: self.projects, index=index)

        @app.before_request
        def note() -> tuple[Response, int] | None:
            self.asked.append((request.method, request.path))
            if self.away and request.path.startswith("/api/"):
                return jsonify({"error": "Redis does not answer; start it."}), 503
            return None

        @app.after_request
        def finish(answer: Response) -> Response:
            for name, text in HEADERS.items():
                answer.headers.setdefault(name, text)
            return answer

        @app.get("/api/projects/<int:number>/status")
        def status(number: int) -> Response:
            return jsonify(self.board["status"] | {"project_id": number})

        @app.get("/api/projects/<int:number>/dashboard")
        def dashboard(number: int) -> Response:
            return jsonify(self.board)

        @app.get("/api/projects/<int:number>/events")
        def events(number: int) -> Response | tuple[Response, int]:
            if not self.events:
                return jsonify({"error": "too many pages listen; ask again every five seconds"}), 503
            return Response(self._tell(), content_type="text/event-stream")

        @app.get("/api/projects/<int:number>/tasks/<int:task_id>/thumbnail")
        def thumbnail(number: int, task_id: int) -> Response:
            return Response(picture(task_id), content_type="image/jpeg")

        @app.get("/api/projects/<int:number>/map")
        def points(number: int) -> Response:
            answer = Response(self.map, content_type="application/octet-stream")
            answer.add_etag()
            answer.make_conditional(request)
            return answer

        @app.route("/api/projects/<int:number>/pin", methods=["POST", "DELETE"])
        def pin(number: int) -> tuple[Response, int]:
            if self.pin_refusal:
                return jsonify({"error": self.pin_refusal}), 409
            version = request.get_json()["version"] if request.method == "POST" else None
            pinned = {"version": version, "by": "API"} if version else None
            self.change({**self.board, "status": {**self.board["status"], "pinned": pinned}})
            return jsonify({"pinned": pinned}), 202

        return app

    def _tell(self) -> Iterator[str]:
        while not self.away:
            yield f"event: changed\ndata: {json.dumps({'model_version': self.board['status']['model_version']})}\n\n"
            with self.changed:
                before = self.board
                while self.board is before and not self.away:
                    if not self.changed.wait(1):
                        yield ": still here\n\n"


class Quiet(WSGIRequestHandler):
    """Without a line for every request."""

    protocol_version = "HTTP/1.1"

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Says nothing."""


@contextmanager
def running(service: FakeService, port: int = 0) -> Iterator[FakeService]:
    """The fake, served on a port of its own."""
    server = make_server("127.0.0.1", port, service.app(), threaded=True, request_handler=Quiet)
    server.daemon_threads = True
    service.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield service
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
