"""Files of labels with a real Label Studio: what it exports is read back without loss, and what is imported stays."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from labeled_project import CONFIG, ON_DISK, UPLOADED, add_local_files, add_target_storage, label_all, tasks_of, upload
from live import RUN_DIR, LabelingProject, Stack, remove

from backend.formats.annotations import read_annotations
from backend.formats.names import find_names
from backend.loop import reconcile
from backend.services import Services

COLOURS = ("red", "green", "blue")


@pytest.fixture
def answered(make_project: Callable[..., LabelingProject]) -> LabelingProject:
    """Uploads and local files with two controls, answered as `label_all` says; the service knows nothing of it."""
    project = make_project([], config=CONFIG, connect=False)
    upload(project.stack.call, project.id, UPLOADED)
    add_local_files(project.stack.call, project.id, RUN_DIR / "images" / f"pictures-{project.id}")
    return project


def test_what_label_studio_exports_is_read_back_without_loss(
    answered: LabelingProject, stack: Stack, tmp_path: Path
) -> None:
    """Every format, by the command: both controls, every label, and where the format has them the skipped tasks.

    Last the target storage, and the simple file, which is the same from the project and from any of the files.
    """
    weather, seen, skipped = label_all(stack.call, answered.id)
    files = {}
    for name in ("json", "json-min", "csv", "tsv"):
        files[name] = tmp_path / name
        done = stack.cli("export", str(answered.id), "--format", name, "--output", str(files[name]))
        assert done.returncode == 0, done.stderr
    target = RUN_DIR / "images" / f"target-{answered.id}"
    add_target_storage(stack.call, answered.id, target)
    files["target storage"] = target
    for name, path in files.items():
        for control, truth in (("weather", weather), ("seen", seen)):
            found = read_annotations(path, control=control)
            assert found.format == name
            assert found.labels == truth
            assert list(found.skipped) == (skipped if name in ("json", "target storage") else []), name

    done = stack.cli("export", str(answered.id), "--format", "simple", "--control", "seen")
    simple = json.loads(done.stdout)
    assert simple["a.png"] == ["house, red", "tree"]
    assert len(simple) == len(seen)
    for path in files.values():
        done = stack.cli("export", "--from", str(path), "--format", "simple", "--control", "seen")
        assert json.loads(done.stdout) == simple, done.stderr
    remove(target)


def test_names_are_found_again(answered: LabelingProject, stack: Stack) -> None:
    """Of each file that was uploaded or stands in a storage, by what Label Studio made of its name."""
    references = list(tasks_of(stack.call, answered.id).values())
    found = find_names(references, [*UPLOADED, *ON_DISK])
    assert found.unmatched == {}
    assert sorted(found.matched.values()) == sorted([*UPLOADED, *ON_DISK])


def test_imported_labels_stand_beside_the_service(
    make_project: Callable[..., LabelingProject],
    stack: Stack,
    services: Services,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Class folders become predictions of a version, twice; the queue stays the service's, and pruning leaves them."""
    project = make_project([], connect=False)
    names = [f"{COLOURS[n % 3]} {n}.png" for n in range(12)]
    upload(stack.call, project.id, names)
    services.connector.connect(project.id)
    first = project.wait(lambda status: status["model_version"] is not None)
    for name in [*names[:9], "red gone.png"]:
        folder = tmp_path / "yolo" / name.split()[0]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    command = ["preannotate", str(project.id), str(tmp_path / "yolo"), "--format", "yolo", "--version", "yolo-1"]
    for n_replaced in (0, 9):
        done = stack.cli(*command, "--filter", ".*png", "--json")
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout)
        assert (told["n_imported"], told["n_replaced"], told["unknown_labels"]) == (9, n_replaced, {})
        assert told["without_task"] == ["red/red gone.png"]
    given = {
        task["data"]["image"].rpartition("-")[2].partition("_")[0]: prediction["result"][0]["value"]["choices"]
        for task in project.tasks()
        for prediction in task["predictions"]
        if prediction["model_version"] == "yolo-1"
    }
    assert given == {colour: [colour] for colour in COLOURS}

    def is_ours() -> bool:
        """Whether Label Studio hands out the first task of the window, and its queue is the window in its order."""
        status = project.status()
        settings = stack.call("GET", f"/api/projects/{project.id}/")
        return (
            settings["model_version"] == status["model_version"]
            and [task for _, task in project.queue()] == list(status["window"])
            and project.next_task() == status["window"][0]
        )

    assert project.status()["model_version"] == first["model_version"]
    assert is_ours()
    for n_labels in range(1, 5):
        task_id = project.next_task()
        reference = stack.call("GET", f"/api/tasks/{task_id}/")["data"]["image"]
        project.annotate(task_id, reference.rpartition("-")[2].partition("_")[0])
        project.wait(lambda status, n_labels=n_labels: status["labels_given"] == n_labels)  # type: ignore[misc]
    assert is_ours()

    monkeypatch.setattr(reconcile, "KEPT_PREDICTIONS", 1)
    monkeypatch.setattr(reconcile, "QUIET_S", 0.0)
    services.reconciler._delete_predictions(project.id)
    held = services.label_studio.prediction_counts(project.id)
    assert held.pop("yolo-1") == 9
    assert list(held) == [project.status()["model_version"]]
    assert is_ours()
