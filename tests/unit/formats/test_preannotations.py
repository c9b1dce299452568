"""Labels of YOLO, COCO and tables: which class an image has by which rule, and what nothing decides."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from backend.errors import FileFormatError, UsageError
from backend.formats.preannotations import Found, read_coco, read_label_table, read_yolo

BOXES = "0 0.5 0.5 0.1 0.1 0.9\n0 0.2 0.2 0.1 0.1 0.3\n1 0.5 0.5 0.4 0.5 0.6\n"
"""Two small boxes of class 0 and a large one of class 1."""


def write(folder: Path, **files: str) -> Path:
    """Files by their paths, in which _ stands for . and __ for /."""
    for name, content in files.items():
        path = folder / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    return folder


def test_class_folders(tmp_path: Path) -> None:
    """The folder that an image is in; other files are none, and an image beside the folders has no label."""
    folder = write(tmp_path, train__cat__1_png="", train__dog__2_jpg="", train__dog__notes_md="", three_png="")
    found = read_yolo(folder)
    assert found.labels == {"train/cat/1.png": Found("cat"), "train/dog/2.jpg": Found("dog")}
    assert found.empty == ("three.png",)
    assert not found.without_extension


def test_only_the_files_that_the_filter_fits(tmp_path: Path) -> None:
    """As in Label Studio's storages; one that is none, or leaves nothing, is refused."""
    folder = write(tmp_path, cat__1_png="", dog__2_jpg="")
    assert list(read_yolo(folder, name_filter=".*png").labels) == ["cat/1.png"]
    with pytest.raises(UsageError, match=r"'\*png' is no regular expression"):
        read_yolo(folder, name_filter="*png")
    with pytest.raises(UsageError, match="lets none of 2 files"):
        read_yolo(folder, name_filter=".*gif")


@pytest.mark.parametrize(("rule", "label"), [("largest", Found("dog", 0.6)), ("most-frequent", Found("cat", 0.9))])
def test_the_class_of_boxes(tmp_path: Path, rule: Any, label: Found) -> None:
    """One large dog and two small cats; the score is the highest of the boxes that decide."""
    folder = write(tmp_path, labels__train__a_txt=BOXES, labels__val__b_txt="", classes_txt="cat\ndog\n")
    found = read_yolo(folder, box_rule=rule)
    assert found.labels == {"train/a": label}
    assert found.empty == ("val/b",)
    assert found.without_extension
    assert f"--box-rule {rule}" in found.rule


def test_boxes_of_one_size_decide_nothing(tmp_path: Path) -> None:
    """Both labels are told."""
    folder = write(tmp_path, a_txt="0 .5 .5 .2 .1\n1 .5 .5 .1 .2\n", classes_txt="cat\ndog\n")
    assert read_yolo(folder).undecided == {"a": ("cat", "dog")}


@pytest.mark.parametrize(
    "text",
    [
        "path: x\nnames: [cat, 'dog, big']  # two\nnc: 2\n",
        "names:\n  0: cat\n  1: 'dog, big'\nnc: 2\n",
        "nc: 2\nnames:\n- cat\n- dog, big\n",
        'names: ["cat",\n  "dog, big"]\n',
    ],
)
def test_the_names_of_classes_in_yolos_own_file(tmp_path: Path, text: str) -> None:
    """In each of the ways that it is written, beside the labels or above."""
    write(tmp_path, data_yaml=text, labels__a_txt="1 .5 .5 .2 .1\n")
    assert read_yolo(tmp_path / "labels").labels == {"a": Found("dog, big")}


def test_all_classes_of_the_boxes(tmp_path: Path) -> None:
    """For a project of several labels per image, each with its highest score; boxes of too low a one are left out."""
    folder = write(tmp_path, a_txt=BOXES, b_txt="0 .5 .5 .2 .1\n1 .5 .5 .1 .2\n", classes_txt="cat\ndog\n")
    found = read_yolo(folder)
    assert found.sets == {"a": (Found("cat", 0.9), Found("dog", 0.6)), "b": (Found("cat"), Found("dog"))}
    assert found.set_rule == "the classes of all its boxes"
    found = read_yolo(folder, least_score=0.7)
    assert (found.sets["a"], found.labels["a"]) == ((Found("cat", 0.9),), Found("cat", 0.9))
    assert read_yolo(folder, least_score=0.95).empty == ("a",)


def test_a_classification(tmp_path: Path) -> None:
    """Lines of confidence and class, the likeliest first or not; or a class alone, by number."""
    folder = write(tmp_path, a_txt="0.08 house cat\n0.92 dog\n", b_txt="1\n", classes_txt="cat\ndog\n")
    found = read_yolo(folder)
    assert found.labels == {"a": Found("dog", 0.92), "b": Found("dog")}
    assert found.sets == {"a": (Found("dog", 0.92),), "b": (Found("dog"),)}, "of its classes one is meant"
    assert found.rule == "the class with the highest confidence"


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"a_txt": "0 .5 .5 .2 .1\n"}, "no names of classes were found"),
        ({"a_txt": "2 .5 .5 .2 .1\n", "classes_txt": "cat\ndog\n"}, "line 1 has class 2; 2 classes are named"),
        ({"a_txt": "0 .5 .5\n", "classes_txt": "cat\n"}, "line 1 is '0 .5 .5'"),
        ({"a_txt": "0 .5 .5 .2 .1 7\n", "classes_txt": "cat\n"}, "score '7'"),
        ({"a_txt": "0 .5 .5 .2 .1\n0.9 cat\n", "classes_txt": "cat\n"}, "a detection and of a classification"),
        ({"a_txt": "0\n", "data_yaml": "names:\n  1: cat\n"}, "does not name classes"),
        ({"a_md": ""}, "no text files and no images"),
    ],
)
def test_what_yolo_does_not_write_is_refused(tmp_path: Path, files: dict[str, str], reason: str) -> None:
    """With file and line."""
    with pytest.raises(FileFormatError, match=reason):
        read_yolo(write(tmp_path, **files))


def coco(tmp_path: Path, annotations: list[dict[str, Any]], **changes: Any) -> Path:
    content = {
        "images": [{"id": 7, "file_name": "a.jpg"}, {"id": 8, "file_name": "sub\\b.jpg"}],
        "categories": [{"id": 1, "name": "cat"}, {"id": 3, "name": "dog"}],
        "annotations": annotations,
        **changes,
    }
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(content))
    return path


def test_coco(tmp_path: Path) -> None:
    """The largest box or the most of them; labels of whole images are annotations without a box."""
    cats = [{"image_id": 7, "category_id": 1, "bbox": [0, 0, 10, 10], "score": 0.5}] * 2
    dog = {"image_id": 7, "category_id": 3, "bbox": [0, 0, 50, 10], "area": 3}
    whole = {"image_id": 8, "category_id": 3}
    path = coco(tmp_path, [*cats, dog, whole])
    assert read_coco(path).labels == {"a.jpg": Found("dog"), "sub/b.jpg": Found("dog")}
    assert read_coco(path, box_rule="most-frequent").labels["a.jpg"] == Found("cat", 0.5)


def test_coco_of_two_labels_of_a_whole_image(tmp_path: Path) -> None:
    """Nothing decides; an image without annotations has no label."""
    found = read_coco(coco(tmp_path, [{"image_id": 8, "category_id": n} for n in (1, 3)]))
    assert (found.undecided, found.empty) == ({"sub/b.jpg": ("cat", "dog")}, ("a.jpg",))
    assert found.sets == {"sub/b.jpg": (Found("cat"), Found("dog"))}


def test_what_is_not_coco_is_refused(tmp_path: Path) -> None:
    """A list of results names neither images nor categories."""
    with pytest.raises(FileFormatError, match="no lists 'images'"):
        read_coco(coco(tmp_path, [], categories=None))
    with pytest.raises(FileFormatError, match="annotation 0 is of an image or a category"):
        read_coco(coco(tmp_path, [{"image_id": 9, "category_id": 1}]))
    with pytest.raises(FileFormatError, match="no 'file_name'"):
        read_coco(coco(tmp_path, [], images=[{"id": 1}]))


def test_a_table(tmp_path: Path) -> None:
    """Of several lines the highest score counts; two labels without one are undecided, one twice is one."""
    path = tmp_path / "labels.csv"
    path.write_text(
        'File,Label,Score\n"a, b.png",cat,.4\n"a, b.png",dog,0.6\nc.png,cat,\nc.png,dog,0.9\n'
        "d.png,cat,\nd.png,cat,\ne.png,,\n\n"
    )
    found = read_label_table(path)
    assert found.labels == {"a, b.png": Found("dog", 0.6), "d.png": Found("cat")}
    assert (found.undecided, found.empty) == ({"c.png": ("cat", "dog")}, ("e.png",))
    assert found.sets == {
        "a, b.png": (Found("cat", 0.4), Found("dog", 0.6)),
        "c.png": (Found("cat"), Found("dog", 0.9)),
        "d.png": (Found("cat"),),
    }
    found = read_label_table(path, least_score=0.95)
    assert found.empty == ("a, b.png", "e.png")
    assert found.labels == {"c.png": Found("cat"), "d.png": Found("cat")}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a.png,cat\n", "expected the header file,label"),
        ("file,label\na.png\n", "line 2 has 1 cells"),
        ("file,label,score\na.png,cat,80%\n", "score '80%'"),
        ("", "expected the header"),
    ],
)
def test_a_table_that_is_none_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    """The header says which column is which; it is not guessed."""
    path = tmp_path / "labels.csv"
    path.write_text(text)
    with pytest.raises(FileFormatError, match=reason):
        read_label_table(path)
