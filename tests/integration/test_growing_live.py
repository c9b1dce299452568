"""Projects that grow, new images labeled, and the Data Manager's own order, with a real Label Studio."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from live import REPOSITORY, RUN_DIR, LabelingProject, Stack, colour_of, picture, remove

from backend.services import Services

MakeProject = Callable[..., LabelingProject]
ORDERING = ["-tasks:predictions_score"]


def watch(stack: Stack, *arguments: object) -> list[str]:
    """The lines of one look."""
    done: subprocess.CompletedProcess[str] = stack.cli("watch", *map(str, arguments), "--once")
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_project_grows_with_a_folder(make_project: MakeProject, stack: Stack, tmp_path: Path) -> None:
    """Uploaded, embedded and queued without a word to the service; again nothing; a new file alone."""
    project = make_project()
    before = project.status()["pool_size"]
    for number, colour in enumerate(("red", "green", "blue")):
        picture(colour, 100 + number).save(tmp_path / f"{colour} one.png")
    assert len(watch(stack, project.id, tmp_path, "--filter", ".*png")) == 3
    project.wait(lambda status: status["pool_size"] == before + 3)
    assert watch(stack, project.id, tmp_path, "--filter", ".*png") == []
    picture("red", 200).save(tmp_path / "late.png")
    assert watch(stack, project.id, tmp_path, "--filter", ".*png") == [f"added {tmp_path / 'late.png'}"]
    status = project.wait(lambda status: status["pool_size"] == before + 4)
    assert status["image_failures"] == {}
    assert len(project.tasks()) == 18 + 4


def test_a_storage_is_synced_when_files_come(make_project: MakeProject, stack: Stack) -> None:
    """By Label Studio itself: references are those of local files, each file one task."""
    project = make_project()
    folder = RUN_DIR / "images" / f"growing-{project.id}"
    folder.mkdir(parents=True)
    try:
        body = {"project": project.id, "path": str(folder), "use_blob_urls": True, "regex_filter": r".*\.png"}
        stack.call("POST", "/api/storages/localfiles/", json=body)
        picture("green", 300).save(folder / "a.png")
        (line,) = watch(stack, project.id, folder)
        assert "/data/local-files/?d=" in line
        assert watch(stack, project.id, folder) == []
        picture("blue", 301).save(folder / "b.png")
        assert len(watch(stack, project.id, folder)) == 1
        assert len(project.tasks()) == 18 + 2
        project.wait(lambda status: status["pool_size"] == 20)
    finally:
        remove(folder)


def test_new_images_are_labeled_by_the_published_version(
    make_project: MakeProject, stack: Stack, tmp_path: Path
) -> None:
    """Colours it never saw, by what a person taught it; a broken file is listed; the sheet is drawn."""
    project = make_project()
    for task in project.tasks()[:9]:
        project.annotate(task["id"], colour_of(project, task["id"]))
    project.wait(lambda status: status["labels_used"] == 9)
    new = tmp_path / "new"
    new.mkdir()
    for number, colour in enumerate(("red", "green", "blue")):
        picture(colour, 400 + number).save(new / f"{colour}.png")
    (new / "broken.png").write_bytes(b"no image")
    sheet = tmp_path / "sheet.png"
    done = stack.cli("predict", str(new), "--project", str(project.id), "--sheet", str(sheet), "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert {Path(row["file"]).stem: row["label"] for row in said["predictions"]} == {
        "red": "red", "green": "green", "blue": "blue",
    }  # fmt: skip
    assert [Path(name).name for name in said["unreadable"]] == ["broken.png"]
    assert sheet.stat().st_size > 1000


def test_the_data_manager_shows_the_queue_from_the_highest_score(
    make_project: MakeProject, stack: Stack, services: Services
) -> None:
    """Sorted by falling prediction score it is the window, and the first task labeled as displayed is the first of it.

    The version is made here, for the worker of this stack has the default order.
    """
    project = make_project()
    turned = Services(replace(services.settings, score_order="descending"))
    try:
        record = turned.trainer.retrain(project.id)
        assert record is not None
        assert record.score_order == "descending"
        query = json.dumps({"ordering": ORDERING})
        params = {"project": project.id, "page_size": 100, "query": query}
        shown = [task["id"] for task in stack.call("GET", "/api/tasks/", params=params)["tasks"]]
        assert shown[: len(record.window)] == list(record.window)
        body = {"ordering": ORDERING, "selectedItems": {"all": True, "excluded": []}}
        action = {"id": "next_task", "project": project.id}
        first = stack.call("POST", "/api/dm/actions/", params=action, json=body)
        assert first["id"] == record.window[0]
        turned.connector.connect(project.id)
        assert stack.call("GET", f"/api/projects/{project.id}/")["sampling"] == "Sequential sampling"
    finally:
        turned.close()


def test_watch_ends_with_ctrl_c(make_project: MakeProject, stack: Stack, tmp_path: Path) -> None:
    """Exit code 130, after its first line."""
    project = make_project(references=[], connect=False)
    picture("red", 500).save(tmp_path / "a.png")
    time.sleep(2)  # no longer being written
    command = [sys.executable, "-m", "backend", "watch", str(project.id), str(tmp_path), "--every", "1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=stack.environment, cwd=REPOSITORY)
    assert process.stdout is not None
    assert process.stdout.readline() == f"added {tmp_path / 'a.png'}\n"
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130
    process.stdout.close()
