"""Tags: kept, listed, combined and exported; the same in memory and in a folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.errors import TagError
from backend.lightly import INITIAL_TAG, Tags

NAMES = ["a.jpg", "b/c.jpg", "d.jpg", "é 1.png"]


@pytest.fixture(params=["in memory", "in a folder"])
def tags(request: pytest.FixtureRequest, tmp_path: Path) -> Tags:
    return Tags(NAMES, tmp_path / "tags" if request.param == "in a folder" else None)


def test_a_tag_keeps_its_images_in_order(tags: Tags) -> None:
    """As they were given, listed by name, and forgotten when deleted."""
    tags.create("second", ["d.jpg", "a.jpg"])
    tags.create("Al iteration: 1", ["é 1.png"])
    tags.create("nothing", [])
    assert tags.names() == ["Al iteration: 1", "nothing", "second"]
    assert tags.get("second") == ("d.jpg", "a.jpg")
    assert tags.get("Al iteration: 1") == ("é 1.png",)
    assert tags.get("nothing") == ()
    tags.delete("second")
    assert tags.names() == ["Al iteration: 1", "nothing"]
    with pytest.raises(TagError, match=r"no tag 'second'; the tags are: 'Al iteration: 1', 'nothing'"):
        tags.get("second")


def test_every_dataset_has_its_initial_tag(tags: Tags) -> None:
    """All images, not listed, and neither made nor deleted."""
    assert tags.get(INITIAL_TAG) == tuple(NAMES)
    assert tags.names() == []
    assert tags.difference(INITIAL_TAG, INITIAL_TAG) == ()
    with pytest.raises(TagError, match="already"):
        tags.create(INITIAL_TAG, [])
    with pytest.raises(TagError, match="cannot be deleted"):
        tags.delete(INITIAL_TAG)


def test_tags_are_combined(tags: Tags) -> None:
    """Union, intersection and difference, in the order of the first; a name makes them a tag."""
    tags.create("x", ["d.jpg", "a.jpg"])
    tags.create("y", ["a.jpg", "b/c.jpg"])
    assert tags.union("x", "y") == ("d.jpg", "a.jpg", "b/c.jpg")
    assert tags.intersection("x", "y") == ("a.jpg",)
    assert tags.difference("x", "y", "only-x") == ("d.jpg",)
    assert tags.get("only-x") == ("d.jpg",)
    assert tags.names() == ["only-x", "x", "y"]
    with pytest.raises(TagError, match="already"):
        tags.union("x", "y", "only-x")


@given(st.sets(st.sampled_from(NAMES)), st.sets(st.sampled_from(NAMES)))
def test_combinations_are_those_of_sets(first: set[str], second: set[str]) -> None:
    """Whatever the tags hold, and every image once."""
    tags = Tags(NAMES)
    tags.create("x", sorted(first))
    tags.create("y", sorted(second))
    for combined, expected in (
        (tags.union("x", "y"), first | second),
        (tags.intersection("x", "y"), first & second),
        (tags.difference("x", "y"), first - second),
    ):
        assert set(combined) == expected
        assert len(combined) == len(expected)


def test_a_tag_is_exported_as_lines(tags: Tags) -> None:
    """One file name a line, and nothing for an empty tag."""
    tags.create("x", ["d.jpg", "é 1.png"])
    tags.create("nothing", [])
    assert tags.export("x") == "d.jpg\né 1.png\n"
    assert tags.export("nothing") == ""


def test_another_process_sees_the_tags(tmp_path: Path) -> None:
    """Of the same folder, in files that say what they are; nothing half-written is left beside them."""
    Tags(NAMES, tmp_path / "tags").create("al=1; @x", ["a.jpg"])
    again = Tags(["a.jpg"], tmp_path / "tags")
    assert again.names() == ["al=1; @x"]
    (file,) = (tmp_path / "tags").iterdir()
    assert json.loads(file.read_text(encoding="utf-8")) == {"name": "al=1; @x", "names": ["a.jpg"]}
    again.delete("al=1; @x")
    assert list((tmp_path / "tags").iterdir()) == []


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "-x", "tab\t", "x" * 81, "ü", "x\n"])
def test_names_that_could_be_anything_are_refused(tags: Tags, name: str) -> None:
    """A tag is a file name and stands in texts: Lightly's characters only."""
    with pytest.raises(TagError, match="the tag name is"):
        tags.create(name, [])


def test_images_that_are_not_there_are_refused(tags: Tags) -> None:
    """Unknown ones, with one of them named, and any of them twice; no tag is left."""
    with pytest.raises(TagError, match=r"'no\.jpg' and 1 more"):
        tags.create("x", ["a.jpg", "no.jpg", "nor.jpg"])
    with pytest.raises(TagError, match="twice"):
        tags.create("x", ["a.jpg", "a.jpg"])
    assert tags.names() == []


@pytest.mark.parametrize("content", [b"", b"[1]", b'{"names": [1]}', b"\xff", b'{"other": []}'])
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    """With what to do about it, which then can be done."""
    tags = Tags(NAMES, tmp_path)
    (tmp_path / "x.json").write_bytes(content)
    assert tags.names() == ["x"]
    with pytest.raises(TagError, match=r"the file of tag 'x', x\.json, is damaged; delete the tag"):
        tags.get("x")
    tags.delete("x")
    tags.create("x", ["a.jpg"])
    assert tags.get("x") == ("a.jpg",)


def test_a_tag_that_is_not_there_cannot_be_deleted(tags: Tags) -> None:
    """And what there is, is said."""
    with pytest.raises(TagError, match="no tag 'x'; the tags are: none"):
        tags.delete("x")
