"""Exports: Label Studio's own as they come, and the simple one of a project, a file or a folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fakes import LABEL_CONFIG, World

from backend.errors import FileFormatError, LabelStudioError, UsageError
from backend.loop.export import OWN_FORMATS, export_file, export_project

SAMPLES = Path(__file__).parents[1] / "formats" / "samples"


def test_label_studios_own_formats_come_as_they_are(world: World) -> None:
    """Byte by byte, by Label Studio's names for them."""
    world.label_studio.add_project(1, ["a.png"])
    assert export_project(world.services.label_studio, 1, "json-min").content == b"JSON_MIN of project 1"
    assert OWN_FORMATS.keys() == {"json", "json-min", "csv", "tsv"}


def test_the_simple_file_of_a_project(world: World) -> None:
    """File names without what Label Studio put before them; what is skipped or empty is counted."""
    world.label_studio.add_project(1, [f"/data/upload/1/0000000{n}-{n}.png" for n in range(5)])
    for task_id, name in ((1, "cat"), (2, "dog"), (3, None)):
        world.label_studio.annotate(1, task_id, name)
    world.label_studio.annotate(1, 4, None, skipped=True)
    exported = export_project(world.services.label_studio, 1, "simple")
    assert json.loads(exported.content) == {"0.png": ["cat"], "1.png": ["dog"]}
    assert (exported.n_labeled, exported.n_skipped, exported.n_unanswered) == (2, 1, 1)


def test_the_simple_file_of_a_project_with_several_labels_per_image(world: World) -> None:
    """Who submits none of them has answered; so it is of a file, if that is said."""
    several = LABEL_CONFIG.replace("<Choices ", '<Choices choice="multiple" ')
    world.label_studio.add_project(1, [f"/data/upload/1/0000000{n}-{n}.png" for n in range(4)], label_config=several)
    for task_id, labels in ((1, ("dog", "cat")), (2, ()), (3, ("cat",))):
        world.label_studio.annotate(1, task_id, labels)
    exported = export_project(world.services.label_studio, 1, "simple")
    assert json.loads(exported.content) == {"0.png": ["dog", "cat"], "1.png": [], "2.png": ["cat"]}
    assert (exported.n_labeled, exported.n_skipped, exported.n_unanswered) == (3, 0, 0)


def test_a_file_of_several_labels_per_image(tmp_path: Path) -> None:
    """That is said: an image that was submitted without any may have been one of another control."""
    tasks = [
        {"image": "a.png", "id": 1, "choice": {"choices": ["x", "y"]}, "annotator": 1, "annotation_id": 1},
        {"image": "b.png", "id": 2, "annotator": 1, "annotation_id": 2},
    ]
    (tmp_path / "min").write_text(json.dumps(tasks))
    assert json.loads(export_file(tmp_path / "min").content) == {"a.png": ["x", "y"]}
    assert json.loads(export_file(tmp_path / "min", several=True).content) == {"a.png": ["x", "y"], "b.png": []}


def test_several_labels_of_a_project_with_one_each_are_refused(world: World) -> None:
    """Its labeling config knows better."""
    world.label_studio.add_project(1, ["a.png"])
    with pytest.raises(UsageError, match="images of project 1 have one label each"):
        export_project(world.services.label_studio, 1, "simple", several=True)


def test_a_project_with_two_controls_needs_a_name(world: World) -> None:
    """Of its Choices; there is none that could be meant alone."""
    config = (
        '<View><Image name="image" value="$image"/>'
        '<Choices name="choice" toName="image"><Choice value="cat"/><Choice value="dog"/></Choices>'
        '<Choices name="seen" toName="image"><Choice value="x"/><Choice value="y"/></Choices></View>'
    )
    world.label_studio.add_project(1, ["a.png"], label_config=config)
    world.label_studio.annotate(1, 1, "cat")
    exported = export_project(world.services.label_studio, 1, "simple", control="choice")
    assert json.loads(exported.content) == {"a.png": ["cat"]}


def test_an_export_that_is_none(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page of something in between."""
    world.label_studio.add_project(1, ["a.png"])
    monkeypatch.setattr(world.label_studio, "export", lambda project_id, kind: b"<html>")
    with pytest.raises(LabelStudioError, match="no JSON"):
        export_project(world.services.label_studio, 1, "simple")


@pytest.mark.parametrize("name", ["two-controls.json", "two-controls.csv", "two-controls.min.json", "target"])
def test_the_simple_file_of_a_file(name: str) -> None:
    """Whatever Label Studio wrote, it comes to the same."""
    labels = json.loads(export_file(SAMPLES / name, control="seen").content)
    assert labels == {
        "plain.png": ["tree"],
        "comma_and_22quote22.png": ["tree", "house, red", "人"],
        "two_annotations.png": ["人", "tree"],
        "a.png": ["house, red", "tree"],
        "é.png": ["人"],
    }


def test_a_file_with_two_controls_needs_a_name() -> None:
    """As a project."""
    with pytest.raises(FileFormatError, match="name the control"):
        export_file(SAMPLES / "two-controls.json")
