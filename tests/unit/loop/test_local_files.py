"""Label Studio's local-files storages: made once, synchronised, and refusals with what has to be set."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from backend.errors import LabelStudioError, ProjectNotReadyError, UsageError
from backend.loop.local_files import IMAGE_FILTER, Storages, save_storages

FOLDER, TARGET = Path("/data/samples"), Path("/data/annotations")


class Storing:
    """The part of a Label Studio that has storages; `states` are what is answered to a synchronisation, in order."""

    def __init__(self, *states: Mapping[str, Any], refusal: str | None = None) -> None:
        self.saved: list[tuple[Any, ...]] = []
        self._states = list(states)
        self._refusal = refusal

    def project(self, project_id: int) -> Any:
        return type("Project", (), {"id": project_id})

    def save_local_storage(self, project_id: int, title: str, path: str, regex_filter: str) -> int:
        if self._refusal:
            raise LabelStudioError(f"POST … answered 400: {self._refusal}", status=400)
        self.saved.append(("source", project_id, title, path, regex_filter))
        return 8

    def save_local_target(self, project_id: int, title: str, path: str) -> int:
        self.saved.append(("target", project_id, title, path))
        return 9

    def sync_local_storage(self, storage_id: int, *, is_target: bool = False) -> Mapping[str, Any]:
        return self._states.pop(0)

    local_storage = sync_local_storage


def save(stored: Storing, *arguments: Any, **options: Any) -> Storages:
    return save_storages(stored, 3, FOLDER, *arguments, pause=lambda _: None, **options)  # type: ignore[arg-type]


def test_a_source_and_a_target_are_made_and_synchronised() -> None:
    """A Label Studio with a Redis answers at once that it is queued, and is asked until it is done."""
    done = {"status": "completed", "last_sync_count": 30}
    stored = Storing({"status": "queued"}, {"status": "in_progress"}, done, {"status": "completed"})
    assert save(stored, target=TARGET) == Storages(8, 30, 9, 0)
    assert stored.saved == [
        ("source", 3, "samples", "/data/samples", IMAGE_FILTER),
        ("target", 3, "annotations", "/data/annotations"),
    ]


# As Label Studio 1.23.2 says it (io_storages/localfiles/models.py).
OUTSIDE = (
    '{\\"non_field_errors\\": [\\"Absolute local path \\\\\\"/data/samples\\\\\\" must be a subdirectory of '
    'LOCAL_FILES_DOCUMENT_ROOT=\\\\\\"/srv\\\\\\" by security reasons."]}'
)


@pytest.mark.parametrize(
    ("refusal", "sentence"),
    [
        (OUTSIDE, "/data/samples does not lie below LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT, which is /srv; start"),
        ("set the LOCAL_FILES_SERVING_ENABLED environment", "serves no local files; start it with LABEL_STUDIO_LOCAL_"),
        ('path "/data/samples" does not exist', "Label Studio sees no folder /data/samples"),
        ("something else", "answered 400: something else"),
    ],
)
def test_a_refusal_says_what_to_set(refusal: str, sentence: str) -> None:
    """In one sentence; what is not known is passed on."""
    with pytest.raises(LabelStudioError) as caught:
        save(Storing(refusal=refusal))
    assert sentence in str(caught.value)


def test_a_failed_or_endless_synchronisation_is_told() -> None:
    """With the last line of Label Studio's report."""
    with pytest.raises(LabelStudioError, match=r"could not synchronise storage 8 \(failed: ValueError: gone\)"):
        save(Storing({"status": "failed", "traceback": "Traceback\nValueError: gone\n"}))
    with pytest.raises(ProjectNotReadyError, match="within 600 s"):
        save(Storing(*[{"status": "queued"}] * 2000))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"target": FOLDER / "answers"}, "lie in each other"),
        ({"target": FOLDER}, "lie in each other"),
        ({"target": FOLDER.parent}, "lie in each other"),
        ({"name_filter": "*png"}, "no regular expression"),
    ],
)
def test_what_cannot_be_meant_is_refused(options: dict[str, Any], reason: str) -> None:
    """Before anything is made: annotations among the images would become tasks."""
    stored = Storing()
    with pytest.raises(UsageError, match=reason):
        save(stored, **options)
    assert stored.saved == []
