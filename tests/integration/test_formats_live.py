"""Files of labels with a real Label Studio: what it exports is read back without loss, and what is imported stays."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from labeled_project import (
    CONFIG,
    ON_DISK,
    UPLOADED,
    add_local_files,
    add_target_storage,
    answer,
    choices,
    label_all,
    tasks_of,
    upload,
)
from live import RUN_DIR, LabelingProject, Stack, config_of, png, remove
from PIL import Image

from backend.formats.annotations import read_annotations
from backend.formats.names import find_names
from backend.loop import reconcile
from backend.loop.learn import read_labels
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


def test_several_labels_per_image_go_out_and_come_back(
    make_project: Callable[..., LabelingProject], stack: Stack, tmp_path: Path
) -> None:
    """Each export has every set, also the empty one, and is trained on; what the model says comes in as predictions."""
    config = config_of(("red", "green")).replace("<Choices ", '<Choices choice="multiple" ')
    project = make_project([], config=config, connect=False)
    folder = tmp_path / "images"
    folder.mkdir()
    truth = {f"{n:02}.png": (("red",), ("green",), ("red", "green"), ())[n % 4] for n in range(20)}
    for seed, (name, colours) in enumerate(truth.items()):
        noise = np.random.default_rng(seed).integers(0, 60, (48, 48, 3), dtype=np.uint8)
        picture = Image.fromarray(noise + np.array([170 * (c in colours) for c in ("red", "green", "blue")], np.uint8))
        picture.save(folder / name)
        files = {"file": (name, png(picture), "image/png")}
        stack.call("POST", f"/api/projects/{project.id}/import", files=files)
    name_of = {task: path.rpartition("-")[2] for task, path in tasks_of(stack.call, project.id).items()}
    labeled = {name: tuple(sorted(colours)) for name, colours in list(truth.items())[:12]}
    for task, name in name_of.items():
        if name in labeled:
            regions = [choices("choice", *truth[name], image="image")] if truth[name] else []
            answer(stack.call, task, *regions)

    for kind in ("json", "json-min", "csv", "tsv", "simple"):
        path = tmp_path / kind
        done = stack.cli("export", str(project.id), "--format", kind, "--output", str(path))
        assert done.returncode == 0, done.stderr
        assert read_labels([path], list(truth)) == labeled, kind

    model, table = tmp_path / "model.safetensors", tmp_path / "out.csv"
    done = stack.cli("train", str(folder), "--labels", str(tmp_path / "csv"), "--out", str(model), "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["several"], told["n_labels"], told["n_unlabeled"], told["training_accuracy"]) == (True, 12, 8, 1.0)
    done = stack.cli("predict", str(folder), "--model", str(model), "--csv", str(table), "--json")
    predicted = {Path(row["file"]).name: set(row["labels"]) for row in json.loads(done.stdout)["predictions"]}
    assert sum(predicted[name] == set(colours) for name, colours in truth.items()) >= 18
    done = stack.cli("preannotate", str(project.id), str(table), "--format", "csv", "--version", "sets", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["n_imported"] + len(told["without_label"]) == 20
    held = {name_of[task["id"]]: task["predictions"] for task in project.tasks()}
    assert {name: set(rows[0]["result"][0]["value"]["choices"]) for name, rows in held.items() if rows} == {
        name: colours for name, colours in predicted.items() if colours
    }

    assert stack.cli("connect", str(project.id), "--wait").returncode == 0
    project.wait(lambda status: status["labels_used"] == 12)
    done = stack.cli("predict", str(folder), "--project", str(project.id), "--json")
    of_project = {Path(row["file"]).name: row for row in json.loads(done.stdout)["predictions"]}
    assert sum(set(of_project[name]["labels"]) == set(colours) for name, colours in truth.items()) >= 18
    version = json.loads(done.stdout)["version"]
    shown = {
        name_of[task["id"]]: row["result"]
        for task in project.tasks()
        for row in task["predictions"]
        if row["model_version"] == version
    }
    assert shown
    for name, result in shown.items():
        assert (set(result[0]["value"]["choices"]) if result else set()) == set(of_project[name]["labels"])


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
