"""Local-files storages with a real Label Studio: selected images become tasks, and answers come back as files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from live import RUN_DIR, LabelingProject, Stack, picture, remove

from backend.formats.annotations import read_annotations
from backend.loop.learn import read_labels


def test_selected_images_become_tasks_and_answers_files(
    make_project: Callable[..., LabelingProject], stack: Stack, tmp_path: Path
) -> None:
    """Select, fetch as links, storage; again it makes no task twice; a second selection adds only what is new."""
    project = make_project([], connect=False)
    images, cache = tmp_path / "images", tmp_path / "cache"
    for number in range(8):
        colour = ("red", "green")[number % 2]
        (images / colour).mkdir(parents=True, exist_ok=True)
        picture(colour, number).save(images / colour / f"{colour} {number}.png")
    samples, answers = RUN_DIR / "images" / f"samples-{project.id}", RUN_DIR / "images" / f"answers-{project.id}"
    shared = ["--n", "3", "--strategy", "diversity", "--cache", str(cache), "--json"]
    command = ["storage", str(project.id), str(samples), "--target", str(answers), "--json"]

    def cli(*arguments: str) -> dict[str, object]:
        done = stack.cli(*arguments)
        assert done.returncode == 0, done.stderr
        result: dict[str, object] = json.loads(done.stdout)
        return result

    first = cli("select", str(images), "--tag", "initial", *shared)["new"]
    cli("fetch", str(images), str(samples), "--tag", "initial", "--cache", str(cache), "--json")
    made = cli(*command)
    assert (made["n_new_tasks"], made["n_saved"]) == (3, 0)
    assert len(project.tasks()) == 3
    again = cli(*command)
    assert (again["source_id"], again["target_id"], again["n_new_tasks"]) == (made["source_id"], made["target_id"], 0)

    for task in project.tasks():
        project.annotate(task["id"], "red" if "/red" in task["data"]["image"] else "green")
    saved = read_annotations(answers)
    assert saved.format == "target storage"
    assert len(saved.labels) == 3
    exported = tmp_path / "annotation-0.json"
    done = stack.cli("export", str(project.id), "--format", "json-min", "--output", str(exported))
    assert done.returncode == 0, done.stderr
    names = [path.relative_to(images).as_posix() for path in images.rglob("*.png")]
    for path in (exported, answers):
        labels = read_labels([path], names)
        assert sorted(labels) == sorted(first)  # type: ignore[call-overload]
        assert all(name.startswith(label) for name, label in labels.items())

    cli("select", str(images), "--tag", "second", "--preselected", "initial", *shared)
    cli("fetch", str(images), str(samples), "--tag", "second", "--cache", str(cache), "--json")
    (samples / "notes.png").write_text("matches the first filter and not the second")
    narrowed = cli(*command, "--filter", r".*(red|green) \d\.png")
    assert (narrowed["source_id"], narrowed["n_new_tasks"]) == (made["source_id"], 3)
    assert len(project.tasks()) == 6
    for folder in (samples, answers):
        remove(folder)


def test_a_folder_that_label_studio_may_not_serve_is_refused(
    make_project: Callable[..., LabelingProject], stack: Stack, tmp_path: Path
) -> None:
    """With the document root as it is, and what to set."""
    project = make_project([], connect=False)
    done = stack.cli("storage", str(project.id), str(tmp_path))
    assert done.returncode == 1
    assert f"{tmp_path} does not lie below LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT" in done.stderr
    assert str(RUN_DIR / "images") in done.stderr
    gone = stack.cli("storage", str(project.id), str(RUN_DIR / "images" / "nowhere"))
    assert gone.returncode == 1
    assert "Label Studio sees no folder" in gone.stderr
