"""Exports of Label Studio are read without loss: samples of its own (1.23.2), and what else may stand in them."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from backend.errors import FileFormatError
from backend.formats.annotations import read_annotations, read_tasks
from backend.formats.simple import write_simple

SAMPLES = Path(__file__).parent / "samples"
TRUTH: dict[str, Any] = json.loads((SAMPLES / "truth.json").read_text(encoding="utf-8"))
FILES = {
    "two-controls.json": "json",
    "two-controls.min.json": "json-min",
    "two-controls.csv": "csv",
    "two-controls.tsv": "tsv",
    "target": "target storage",
}


@pytest.mark.parametrize("control", ["weather", "seen"])
@pytest.mark.parametrize("name", FILES)
def test_label_studios_own_files_are_read_without_loss(name: str, control: str) -> None:
    """Every label of either control as it was given; commas, quotation marks and other alphabets are in them."""
    found = read_annotations(SAMPLES / name, control=control, image_field="image")
    assert found.labels == {reference: tuple(labels) for reference, labels in TRUTH[control].items()}
    assert found.format == FILES[name]
    other = "seen" if control == "weather" else "weather"
    assert set(found.unanswered) == set(TRUTH[other]) - set(TRUTH[control])


@pytest.mark.parametrize("name", FILES)
def test_skipped_tasks_are_told_where_the_format_has_them(name: str) -> None:
    """JSON-MIN and tables leave them out."""
    found = read_annotations(SAMPLES / name, control="weather")
    assert list(found.skipped) == (TRUTH["skipped"] if FILES[name] in ("json", "target storage") else [])


@pytest.mark.parametrize("name", ["plain.json", "plain.min.json", "plain.csv", "plain.tsv"])
def test_of_one_control_and_one_image_nothing_needs_to_be_named(name: str) -> None:
    """As in the tutorials; the task that nobody has labeled is in these exports, and has no label."""
    found = read_annotations(SAMPLES / name)
    assert found.labels == {
        "/data/upload/2/2f3cea13-cloudy_1.jpg": ("cloudy",),
        "/data/upload/2/a671ae89-rain1.jpg": ("rain",),
    }
    assert (found.skipped, found.unanswered) == ((), ())


@pytest.mark.parametrize("name", FILES)
def test_of_several_controls_one_must_be_named(name: str) -> None:
    """By the names that may be meant."""
    with pytest.raises(FileFormatError, match=r"'seen', 'weather'.*name the control"):
        read_annotations(SAMPLES / name)


@pytest.mark.parametrize("name", FILES)
def test_a_control_that_nobody_has_answered_is_refused(name: str) -> None:
    """It is mistyped: an empty file of labels would tell of it too late. Of an export without labels it is not."""
    with pytest.raises(FileFormatError, match=r"nobody has answered 'wether'; answered are .*'seen', 'weather'"):
        read_annotations(SAMPLES / name, control="wether")
    assert read_tasks([{"id": 1, "data": {"image": "a.png"}, "annotations": []}], control="wether").labels == {}


def test_one_file_of_a_target_storage() -> None:
    """It is read like the folder."""
    found = read_annotations(SAMPLES / "target" / "2", control="seen")
    assert list(found.labels.values()) == [("tree", "house, red", "人")]
    assert found.format == "target storage"


def test_a_target_storage_of_whole_tasks() -> None:
    """Label Studio can be told to save the task with its annotations instead."""
    tasks = json.loads((SAMPLES / "plain.json").read_text(encoding="utf-8"))
    assert read_tasks(tasks).labels == read_annotations(SAMPLES / "plain.json").labels


def test_the_simple_file_is_read_as_well(tmp_path: Path) -> None:
    """File name → list of classes."""
    write_simple(tmp_path / "labels.json", {"b.png": ["rain"], "a.png": ["tree", "人"]})
    found = read_annotations(tmp_path / "labels.json")
    assert (found.labels, found.format) == ({"a.png": ("tree", "人"), "b.png": ("rain",)}, "simple")


# -- several annotations ----------------------------------------------------------------------------------------------


def annotation(number: int, *labels: str, person: int | None = None, **more: Any) -> dict[str, Any]:
    """One annotation as an export has it; they were given one after the other."""
    result = [{"from_name": "choice", "to_name": "image", "type": "choices", "value": {"choices": list(labels)}}]
    return {
        "id": number,
        "result": result if labels else [],
        "completed_by": person,
        "updated_at": f"2026-11-23T00:00:{number:02}Z",
        **more,
    }


def labels_of(*annotations: dict[str, Any]) -> tuple[str, ...] | None:
    """What counts of them."""
    found = read_tasks([{"id": 1, "data": {"image": "a.png"}, "annotations": list(annotations)}])
    return found.labels.get("a.png")


def test_most_people_are_right() -> None:
    """Two to one."""
    assert labels_of(
        annotation(1, "cat", person=1), annotation(2, "cat", person=2), annotation(3, "dog", person=3)
    ) == ("cat",)


def test_among_equals_the_last_counts() -> None:
    """Whatever their order in the file."""
    assert labels_of(annotation(2, "dog", person=2), annotation(1, "cat", person=1)) == ("dog",)


def test_of_each_person_the_last_counts() -> None:
    """Cat, cat, dog by one person is one dog."""
    assert labels_of(
        annotation(1, "cat", person=1), annotation(2, "cat", person=1), annotation(3, "dog", person=1)
    ) == ("dog",)


def test_ground_truth_settles_it() -> None:
    """Against any number of others."""
    assert labels_of(
        annotation(1, "cat", ground_truth=True), annotation(2, "dog", person=2), annotation(3, "dog", person=3)
    ) == ("cat",)


def test_of_several_labels_each_counts_by_itself() -> None:
    """Tree was seen by three, house by two, car by one."""
    assert labels_of(
        annotation(1, "tree", "house", person=1),
        annotation(2, "house", "tree", person=2),
        annotation(3, "car", "tree", person=3),
    ) == ("tree", "house")


def test_where_images_have_several_labels_an_answer_without_any_counts() -> None:
    """Two of three say that nothing is there; of one label per image they said nothing."""
    annotations = [annotation(1, "cat", person=1), annotation(2, person=2), annotation(3, person=3)]
    tasks = [{"id": 1, "data": {"image": "a.png"}, "annotations": annotations}]
    found = read_tasks(tasks)
    assert (found.labels, found.unanswered, found.several) == ({"a.png": ("cat",)}, (), False)
    found = read_tasks(tasks, several=True)
    assert (found.labels, found.unanswered, found.several) == ({}, ("a.png",), True)
    tasks.append({"id": 2, "data": {"image": "b.png"}, "annotations": [annotation(4, "cat", "dog")]})
    found = read_tasks(tasks)
    assert (found.labels, found.unanswered, found.several) == ({"b.png": ("cat", "dog")}, ("a.png",), True)


def test_a_skip_does_not_undo_a_label() -> None:
    """It is one who could not tell, beside one who could."""
    assert labels_of(annotation(1, "cat"), annotation(2, was_cancelled=True)) == ("cat",)


# -- other programs, other orders -------------------------------------------------------------------------------------


def test_json_min_whose_keys_another_program_has_sorted(tmp_path: Path) -> None:
    """The order told answers from data; an image's name tells, too."""
    tasks = json.loads((SAMPLES / "plain.min.json").read_text(encoding="utf-8"))
    (tmp_path / "sorted.json").write_text(json.dumps(tasks, sort_keys=True))
    assert read_annotations(tmp_path / "sorted.json").labels == read_annotations(SAMPLES / "plain.min.json").labels


def test_where_a_task_came_from_is_neither_its_image_nor_an_answer(tmp_path: Path) -> None:
    """`watch` notes it beside the image, an address that looks like one; in every format nothing needs to be named."""
    notes = {"source": "https://cam.example.org/a.jpg", "sha256": "0f" * 32, "fetched_at": "2026-11-23T03:26:49+00:00"}
    image, about = "/data/upload/9/a373d66b-a.jpg", {"annotator": 1, "annotation_id": 5}
    (tmp_path / "min.json").write_text(json.dumps([{"image": image, **notes, "id": 1, "choice": "sunny", **about}]))
    task = {"id": 1, "data": {"image": image, **notes}, "annotations": [annotation(5, "sunny")]}
    (tmp_path / "whole.json").write_text(json.dumps([task]))
    columns = {**about, "choice": "sunny", **notes, "id": 1, "image": image}
    (tmp_path / "labels.csv").write_text("\n".join(",".join(map(str, line)) for line in (columns, columns.values())))
    for name in ("min.json", "whole.json", "labels.csv"):
        assert read_annotations(tmp_path / name).labels == {image: ("sunny",)}, name
    (tmp_path / "min.json").write_text(json.dumps([{"image": image, "source": "b.jpg", "choice": "sunny", **about}]))
    with pytest.raises(FileFormatError, match="'image', 'source'"):  # somebody else's field
        read_annotations(tmp_path / "min.json")


def test_a_control_with_the_name_of_the_field_is_read_from_a_table(tmp_path: Path) -> None:
    """There the data's column begins with _data_ (label_studio_sdk/converter/exports/csv2.py)."""
    stream = io.StringIO()
    csv.writer(stream).writerows(
        [
            ["_data_image", "annotation_id", "annotator", "created_at", "id", "image", "lead_time", "updated_at"],
            ["/data/upload/1/12345678-a.png", 1, 1, "2026", 1, "rain", "", "2026"],
        ]
    )
    (tmp_path / "labels.csv").write_text(stream.getvalue())
    found = read_annotations(tmp_path / "labels.csv")
    assert found.labels == {"/data/upload/1/12345678-a.png": ("rain",)}


def test_a_control_with_the_name_of_the_field_is_lost_in_json_min(tmp_path: Path) -> None:
    """The answer has overwritten the image: that is said, and no label is made of it."""
    lost = {
        "image": "rain", "id": 1, "annotator": 1, "annotation_id": 1, "created_at": "", "updated_at": "",
        "lead_time": None,
    }  # fmt: skip
    (tmp_path / "min.json").write_text(json.dumps([lost]))
    with pytest.raises(FileFormatError, match="export it as JSON or CSV"):
        read_annotations(tmp_path / "min.json")
    with pytest.raises(FileFormatError, match="export it as JSON or CSV"):
        read_annotations(tmp_path / "min.json", control="image", image_field="image")


@pytest.mark.parametrize("label", ["[1]", "[x", "{a}", "true", "0", " spaced "])
def test_labels_that_look_like_something_else_stay_texts(tmp_path: Path, label: str) -> None:
    """In a table everything is text."""
    stream = io.StringIO()
    csv.writer(stream).writerows(
        [["annotation_id", "annotator", "choice", "image", "updated_at"], [1, 1, label, "a.png", "2026"]]
    )
    (tmp_path / "labels.csv").write_text(stream.getvalue())
    assert read_annotations(tmp_path / "labels.csv").labels == {"a.png": (label,)}


def test_an_image_that_stands_in_its_cell(tmp_path: Path) -> None:
    """As data, which is longer than what Python takes for a cell; for others that limit stays."""
    image = "data:image/png;base64," + "A" * 200_000
    (tmp_path / "labels.csv").write_text(f'annotation_id,annotator,choice,image\n1,1,cat,"{image}"\n')
    before = csv.field_size_limit()
    assert read_annotations(tmp_path / "labels.csv").labels == {image: ("cat",)}
    assert csv.field_size_limit() == before


def test_boxes_are_no_choices() -> None:
    """Of a project with both, the choices are found without being named."""
    box = {"from_name": "box", "type": "rectanglelabels", "value": {"x": 1, "rectanglelabels": ["cat"]}}
    given = annotation(1, "dog")
    given["result"].append(box)
    assert labels_of(given) == ("dog",)


def test_nobody_has_labeled(tmp_path: Path) -> None:
    """An export without tasks, and one with tasks only."""
    (tmp_path / "none.json").write_text("[\n\n]")
    assert read_annotations(tmp_path / "none.json").labels == {}
    assert read_tasks([{"id": 1, "data": {"image": "a.png"}, "annotations": []}]).labels == {}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("[{", "no whole JSON"),
        ("[1]", "neither an export"),
        ('[{"id": 1, "data": {"image": "a.png"}}]', "tasks without annotations"),
        ("file,label\na.png,cat\n", "no columns 'annotation_id'"),
        ('"annotation_id","annotator","image"\n1,1\n', "fewer cells"),
        ('[{"data": {"left": "a.png", "right": "b.png"}, "annotations": []}]', "'left', 'right'"),
        ('[{"data": {"image": "a.png"}, "annotations": [{"id": 1}]}]', "no result"),
        ('{"id": 1, "result": [], "task": 3}', "no annotation with its task's data"),
    ],
)  # fmt: skip
def test_what_is_no_export_is_refused(tmp_path: Path, content: str, reason: str) -> None:
    """By one sentence that names the file."""
    file = tmp_path / "labels"
    file.write_text(content)
    with pytest.raises(FileFormatError, match=reason) as caught:
        read_annotations(file)
    assert str(file) in str(caught.value)


def test_a_file_that_is_not_there_or_no_text(tmp_path: Path) -> None:
    """It is named."""
    with pytest.raises(FileFormatError, match="cannot be read"):
        read_annotations(tmp_path / "gone.json")
    (tmp_path / "latin.csv").write_bytes("Zürich".encode("latin-1"))
    with pytest.raises(FileFormatError, match="not UTF-8"):
        read_annotations(tmp_path / "latin.csv")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileFormatError, match="empty folder"):
        read_annotations(tmp_path / "empty")
