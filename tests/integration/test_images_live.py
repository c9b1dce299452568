"""Every way an image can stand in a task, with both kinds of token, and images that are broken or odd."""

from __future__ import annotations

import functools
import http.server
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from live import RUN_DIR, LabelingProject, Stack, data_uri, picture, png

SHARED = Path(__file__).resolve().parents[3] / "shared"

MakeProject = Callable[..., LabelingProject]


@pytest.fixture
def web_server(tmp_path: Path) -> Iterator[str]:
    """A plain HTTP server with one picture per colour."""
    for colour in ("red", "green", "blue"):
        picture(colour, 7).save(tmp_path / f"{colour}.png")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def upload(project: LabelingProject, name: str, payload: bytes) -> None:
    project.stack.call("POST", f"/api/projects/{project.id}/import", files={"file": (name, payload, "image/png")})


def test_uploads_http_data_and_local_files_are_all_read(make_project: MakeProject, web_server: str) -> None:
    """One project with an upload, a web address, a data URI and a local file: all are embedded, none fails."""
    project = make_project(references=[], connect=False)
    stored = RUN_DIR / "images" / "by-hand"
    stored.mkdir(parents=True, exist_ok=True)
    picture("blue", 3).save(stored / "blue one.png")
    body = {"project": project.id, "path": str(stored), "title": "by hand", "use_blob_urls": True}
    project.stack.call("POST", "/api/storages/localfiles/", json=body)
    upload(project, "red.png", png(picture("red", 1)))
    project.add_tasks(
        [f"{web_server}/green.png", data_uri(picture("green", 2)), "/data/local-files/?d=by-hand/blue%20one.png"]
    )
    assert project.stack.cli("connect", str(project.id)).returncode == 0
    status = project.wait(lambda status: status["model_version"] is not None)
    assert status["image_failures"] == {}
    assert status["pool_size"] == 4


def test_synced_local_storage_is_read(make_project: MakeProject) -> None:
    """Tasks made by Label Studio's own storage sync are embedded as they are."""
    project = make_project(references=[], connect=False)
    stored = RUN_DIR / "images" / "synced"
    stored.mkdir(parents=True, exist_ok=True)
    for number, colour in enumerate(("red", "green", "blue")):
        picture(colour, number).save(stored / f"{colour}.png")
    body = {"project": project.id, "path": str(stored), "use_blob_urls": True, "regex_filter": r".*\.png"}
    storage = project.stack.call("POST", "/api/storages/localfiles/", json=body)
    project.stack.call("POST", f"/api/storages/localfiles/{storage['id']}/sync")
    assert project.stack.cli("connect", str(project.id)).returncode == 0
    status = project.wait(lambda status: status["model_version"] is not None)
    assert status["pool_size"] == 3
    assert status["image_failures"] == {}


def test_broken_images_are_left_out_and_named_and_stop_nothing(make_project: MakeProject, web_server: str) -> None:
    """Each unusable image is reported by task id with its reason; the others form the first batch."""
    truncated = png(picture("red", 1))[:200]
    broken = [
        f"{web_server}/absent.png",
        "data:image/png;base64,bm90IGFuIGltYWdl",
        "/data/local-files/?d=nowhere/absent.png",
        "C:\\pictures\\mine.png",
    ]
    project = make_project(references=[data_uri(picture("green", i)) for i in range(4)] + broken, connect=False)
    upload(project, "truncated.png", truncated)
    assert project.stack.cli("connect", str(project.id)).returncode == 0
    status = project.wait(lambda status: status["model_version"] is not None)
    failures = status["image_failures"]
    assert len(failures) == len(broken) + 1, failures
    assert all(reason for reason in failures.values())
    assert status["pool_size"] == 4
    assert not {int(task) for task in failures} & set(status["window"])


def test_label_on_a_broken_image_is_reported_and_not_trained_on(make_project: MakeProject) -> None:
    """A person may still label a task whose image we cannot read; that label is counted out, with the reason."""
    project = make_project(references=[data_uri(picture("red", i)) for i in range(3)] + ["data:image/png;base64,AAAA"])
    broken = int(next(iter(project.wait(lambda status: bool(status["image_failures"]))["image_failures"])))
    project.annotate(broken, "red")
    status = project.wait(lambda status: bool(status["ignored_labels"]))
    assert status["labels_used"] == 0
    assert "image" in status["ignored_labels"][str(broken)]


@pytest.mark.skipif(
    not (SHARED / "data" / "odd-images").is_dir(), reason="shared/data/odd-images is not beside the project"
)
def test_odd_but_readable_images_are_all_embedded(make_project: MakeProject) -> None:
    """GIFs and PNGs named .jpg, RGBA and greyscale files: none is left out."""
    project = make_project(references=[], connect=False)
    files = sorted((SHARED / "data" / "odd-images").iterdir())
    for path in files:
        upload(project, path.name, path.read_bytes())
    assert project.stack.cli("connect", str(project.id)).returncode == 0
    status = project.wait(lambda status: status["model_version"] is not None)
    assert status["image_failures"] == {}
    assert status["pool_size"] == len(files)


def test_a_personal_access_token_works_for_everything(make_project: MakeProject, stack: Stack) -> None:
    """With a personal access token instead of a legacy one, connect and doctor work and images are read."""
    project = make_project(references=[], connect=False)
    upload(project, "red.png", png(picture("red", 1)))
    organization = stack.call("GET", "/api/organizations/")[0]["id"]
    stack.call(
        "POST",
        "/api/jwt/settings",
        json={"api_tokens_enabled": True, "legacy_api_tokens_enabled": True, "api_token_ttl_days": 30},
        params={"organization": organization},
    )
    token = stack.call("POST", "/api/token/", json={})["token"]
    done = stack.cli("connect", str(project.id), LABEL_STUDIO_TOKEN=token)
    assert done.returncode == 0, done.stderr
    project.wait(lambda status: status["model_version"] is not None)
    done = stack.cli("doctor", str(project.id), LABEL_STUDIO_TOKEN=token)
    assert done.returncode == 0, done.stdout
    assert "personal access token" in done.stdout
