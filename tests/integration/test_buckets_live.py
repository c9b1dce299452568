"""Images in a bucket, as Label Studio's S3 storage serves them: to the browser by itself, or by a signed address."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable

import fsspec
import pytest
from live import LabelingProject, picture, png
from s3 import KEYS, REGION, environment_of, new_bucket

from backend.adapters.image_source import open_images
from backend.storage import Address

MakeProject = Callable[..., LabelingProject]

COLOURS = ("red", "green", "blue")


@pytest.fixture
def bucket(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Eighteen photos, half of them a folder deeper, one that will be deleted, and what is none of them."""
    for name, value in environment_of(s3_server).items():
        monkeypatch.setenv(name, value)
    photos = {
        f"photos/{'more/' if number % 2 else ''}{COLOURS[number % 3]} {number:02d}.png": png(
            picture(COLOURS[number % 3], number)
        )
        for number in range(18)
    }
    photos["photos/red gone.png"] = png(picture("red", 99))
    return new_bucket(s3_server, {**photos, "photos/notes.txt": b"no image", "photos-old/red.png": b"no image"})


@pytest.mark.parametrize("presign", [True, False], ids=["signed addresses", "through Label Studio"])
def test_a_bucket_is_labeled(make_project: MakeProject, bucket: str, s3_server: str, presign: bool) -> None:
    """Storage made and synced, connected, embedded, labeled: predictions are there, and labels lie in the bucket."""
    project = make_project(references=[], connect=False)
    call = project.stack.call
    place = {"project": project.id, "bucket": bucket, "s3_endpoint": s3_server, "region_name": REGION, **KEYS}
    source = {"prefix": "photos", "regex_filter": r".*\.png", "use_blob_urls": True, "recursive_scan": True}
    storage = call("POST", "/api/storages/s3/", json={**place, **source, "presign": presign})
    call("POST", f"/api/storages/s3/{storage['id']}/sync")
    call("POST", "/api/storages/export/s3", json={**place, "prefix": "labels"})

    query = {"project": project.id, "page_size": 100, "fields": "all", "resolve_uri": "false"}
    tasks = call("GET", "/api/tasks/", params=query)["tasks"]
    references = {task["id"]: str(next(iter(task["data"].values()))) for task in tasks}
    images = open_images(Address(f"s3://{bucket}/photos"), name_filter=r".*\.png", max_image_bytes=2**20)
    assert sorted(references.values()) == [images.reference(name) for name in images.names()]
    assert len(references) == 19
    gone = next(task_id for task_id, reference in references.items() if reference.endswith("/red gone.png"))
    store = fsspec.filesystem("s3", skip_instance_cache=True, use_listings_cache=False)
    store.rm_file(references.pop(gone))
    task_id, reference = next(iter(references.items()))
    encoded = base64.urlsafe_b64encode(reference.encode()).decode()
    served = project.stack.label_studio.get(f"/tasks/{task_id}/resolve/", params={"fileuri": encoded})
    assert served.status_code == (303 if presign else 200)
    assert ("X-Amz-Signature=" in served.headers.get("location", "")) == presign

    assert project.stack.cli("connect", str(project.id)).returncode == 0
    status = project.wait(lambda status: status["model_version"] is not None)
    assert status["pool_size"] == 18
    failures = {int(task): reason for task, reason in status["image_failures"].items()}
    sentence = (
        "HTTP 403; Label Studio signed this address for us"
        if presign
        else "HTTP 424; its cloud storage did not give the file"
    )
    assert list(failures) == [gone]
    assert sentence in failures[gone]

    def colour_of(task_id: int) -> str:
        return references[task_id].rpartition("/")[2].split()[0]

    for n_labels in range(1, 8):
        first = project.queue()[0][1]
        project.annotate(first, colour_of(first))
        project.wait(lambda status, n_labels=n_labels: status["labels_used"] == n_labels)  # type: ignore[misc]
    version = call("GET", f"/api/projects/{project.id}/")["model_version"]
    predicted = {
        task["id"]: prediction["result"][0]["value"]["choices"]
        for task in project.tasks()
        for prediction in task["predictions"]
        if prediction["model_version"] == version and prediction["result"]
    }
    assert len(predicted) == 8, "the window"
    assert predicted == {task_id: [colour_of(task_id)] for task_id in predicted}

    labels = [json.loads(store.cat_file(key)) for key in store.find(f"{bucket}/labels")]
    assert {label["task"]["id"]: label["result"][0]["value"]["choices"] for label in labels} == {
        label["task"]["id"]: [colour_of(label["task"]["id"])] for label in labels
    }
    assert len(labels) == 7
