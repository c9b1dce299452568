"""The simple file: file name → list of classes."""

from __future__ import annotations

from pathlib import Path

import pytest

from backend.errors import FileFormatError
from backend.formats.simple import read_simple, write_simple

LABELS = {'b, "c".png': ["sun, mostly"], "a/é.png": ["tree", "人"]}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    """One image a line, in order, and in letters that people can read."""
    write_simple(tmp_path / "labels.json", LABELS)
    assert read_simple(tmp_path / "labels.json") == LABELS
    text = (tmp_path / "labels.json").read_text(encoding="utf-8")
    assert text.splitlines()[1] == '  "a/é.png": ["tree", "人"],'
    assert [path.name for path in tmp_path.iterdir()] == ["labels.json"]


def test_no_labels_are_a_file_too(tmp_path: Path) -> None:
    """An empty object."""
    write_simple(tmp_path / "labels.json", {})
    assert read_simple(tmp_path / "labels.json") == {}


def test_what_is_none_is_refused(tmp_path: Path) -> None:
    """By one sentence."""
    (tmp_path / "labels.json").write_text('{"a.png": "cat"}')
    with pytest.raises(FileFormatError, match="file name → list of classes"):
        read_simple(tmp_path / "labels.json")
    with pytest.raises(FileFormatError, match="cannot be written"):
        write_simple(tmp_path / "gone" / "labels.json", LABELS)
