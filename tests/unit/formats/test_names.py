"""Which image is meant: what Label Studio and others make of a file's name is undone, and nothing is guessed."""

from __future__ import annotations

import pytest

from backend.errors import UnmatchedError
from backend.formats.names import find_names, match_names, path_of, short_names, stored_name


@pytest.mark.parametrize(
    ("reference", "path"),
    [
        ("/data/upload/1/4c2a4425-plain.png", "plain.png"),
        ("/data/upload/1/c05d1658-Z%C3%BCrich_%E9%9B%A8.png", "Zürich_雨.png"),
        ("https://host/studio/data/upload/1/4c2a4425-plain.png", "plain.png"),
        ("http://host/data/local-files/?d=pics/set%20one/b%2C%20c.png", "pics/set one/b, c.png"),
        ("/data/local-files/?d=pics%5Ca.png", "pics/a.png"),
        ("s3://bucket/data/what?#1.png", "bucket/data/what?#1.png"),
        ("https://host/pictures/a%20b.jpg?signature=x", "pictures/a b.jpg"),
        ("/tasks/3/resolve/?fileuri=czM6Ly9iL2EucG5n", "b/a.png"),
        ("data:image/png;base64,AAAA", ""),
        ("train_set/cloudy1.jpg", "train_set/cloudy1.jpg"),
    ],
)
def test_the_path_in_a_reference(reference: str, path: str) -> None:
    """Without host, prefix of an upload, query and quoting."""
    assert path_of(reference) == path


def test_names_as_label_studio_stores_them() -> None:
    """Seen of 1.23.2: spaces become underscores, commas go, and a browser sends a quotation mark as %22."""
    assert stored_name('comma, and "quote".png') == "comma_and_22quote22.png"
    assert stored_name("Zürich 雨.png") == "Zürich_雨.png"


def test_an_upload_is_known_by_its_name() -> None:
    """Also where it was made safe; the name itself comes first."""
    names = ["a/comma, and.png", "a/plain.png", "b/two words.png", "b/two_words.png"]
    found = find_names(
        [f"/data/upload/1/1234567{n}-{name}" for n, name in enumerate(["comma_and.png", "plain.png", "two_words.png"])],
        names,
    )
    assert list(found.matched.values()) == ["a/comma, and.png", "a/plain.png", "b/two_words.png"]


def test_elsewhere_a_name_that_only_looks_alike_is_another() -> None:
    """A file on disk is called what it is called."""
    assert find_names(["pics/two_words.png"], ["two words.png"]).unmatched == {"pics/two_words.png": ()}


def test_the_longest_end_counts() -> None:
    """Both are called 1.png; the folder tells."""
    names = ["cat/1.png", "dog/1.png"]
    assert match_names(["pics/cat/1.png", "pics/dog/1.png"], names) == {
        "pics/cat/1.png": "cat/1.png",
        "pics/dog/1.png": "dog/1.png",
    }


def test_several_that_fit_are_not_guessed() -> None:
    """They are listed, as is what fits none."""
    with pytest.raises(UnmatchedError, match=r"2 of 3 images .*1 fit no name and 1 fit several") as caught:
        match_names(["1.png", "9.png", "2.png"], ["cat/1.png", "dog/1.png", "2.png"])
    assert caught.value.matched == {"2.png": "2.png"}
    assert caught.value.unmatched == {"1.png": ("cat/1.png", "dog/1.png"), "9.png": ()}


def test_a_file_name_that_is_there_once_on_both_sides_is_enough() -> None:
    """The images lie flat here and in class folders there; twice on one side, and it is not known."""
    assert match_names(["flat/1.png"], ["cat/1.png"]) == {"flat/1.png": "cat/1.png"}
    found = find_names(["flat/1.png", "other/1.png"], ["cat/1.png"])
    assert found.matched == {}
    assert found.unmatched == {"flat/1.png": ("cat/1.png",), "other/1.png": ("cat/1.png",)}


def test_label_files_have_no_extension() -> None:
    """train/a is the text file beside the image train/a.jpg."""
    found = find_names(["x/train/a.jpg", "x/val/a.v2.jpg"], ["train/a", "val/a.v2"], ignore_extension=True)
    assert found.matched == {"x/train/a.jpg": "train/a", "x/val/a.v2.jpg": "val/a.v2"}


def test_accents_written_in_two_ways_are_the_same() -> None:
    """As one character, and as a letter and an accent, which is how a Mac writes them."""
    assert match_names(["/data/local-files/?d=x/%C3%A9.png"], ["e\u0301.png"])


def test_short_names_tell_files_apart() -> None:
    """The name alone where it is there once, else as much of its path as is needed, else all of it."""
    uploads = ["/data/upload/1/12345678-a.png", "/data/upload/1/87654321-a.png"]
    assert short_names([*uploads, "s3://b/cat/1.png", "s3://b/dog/1.png", "1.png", "s3://b/2.png"]) == {
        uploads[0]: uploads[0],
        uploads[1]: uploads[1],
        "s3://b/cat/1.png": "cat/1.png",
        "s3://b/dog/1.png": "dog/1.png",
        "1.png": "1.png",
        "s3://b/2.png": "2.png",
    }
