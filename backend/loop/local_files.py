"""Label Studio's local-files storages: a folder of images becomes tasks, and annotations are saved to another."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backend.adapters.label_studio import LabelStudioClient
from backend.errors import LabelStudioError, ProjectNotReadyError, UsageError

IMAGE_FILTER = r"(?i).*\.(jpe?g|png|gif|bmp|webp|tiff?|avif)$"
"""Which files become tasks unless told otherwise, as Label Studio matches it: to a name without its folders."""

SYNCED_WITHIN_S = 600.0
"""How long is waited for a Label Studio with a Redis, which synchronises in the background."""

LOOK_EVERY_S = 0.5
"""Pause between two looks at it."""

_DOCUMENT_ROOT = re.compile(r'LOCAL_FILES_DOCUMENT_ROOT=\\*"(?P<root>[^"\\]*)')


@dataclass(frozen=True)
class Storages:
    """What was made and synchronised.

    n_new_tasks: those that the folder's new files became.
    n_saved: annotations that were saved to the target folder; None without one.
    """

    source_id: int
    n_new_tasks: int
    target_id: int | None
    n_saved: int | None


def save_storages(
    label_studio: LabelStudioClient,
    project_id: int,
    folder: Path,
    *,
    target: Path | None = None,
    name_filter: str = IMAGE_FILTER,
    pause: Callable[[float], None] = time.sleep,
) -> Storages:
    """Makes the storages of a project, unless they are there, and synchronises them: safe to run again.

    `folder` and `target` are paths as Label Studio sees them, absolute. Files below `folder` whose name matches become
    tasks, each once; every annotation, now and later, is saved to `target` as a file named by its id.

    Raises UsageError for a filter that is none and a target that is in the folder or holds it, LabelStudioError where
    Label Studio may not serve the folder, with what has to be set, and ProjectNotReadyError when the end does not come.
    """
    try:
        re.compile(name_filter)
    except re.error as exc:
        raise UsageError(
            f"--filter {name_filter!r} is no regular expression ({exc}); expected one such as '.*\\.png'"
        ) from exc
    if target is not None and (target.is_relative_to(folder) or folder.is_relative_to(target)):
        raise UsageError(f"--target {target} and {folder} lie in each other; give annotations a folder of their own")
    project = label_studio.project(project_id)  # its absence is told before anything is made
    with _explained(folder):
        source_id = label_studio.save_local_storage(project.id, folder.name, str(folder), name_filter)
        n_new = synchronise(label_studio, source_id, pause=pause)
    if target is None:
        return Storages(source_id, n_new, None, None)
    with _explained(target):
        target_id = label_studio.save_local_target(project.id, target.name, str(target))
        n_saved = synchronise(label_studio, target_id, is_target=True, pause=pause)
    return Storages(source_id, n_new, target_id, n_saved)


def synchronise(
    label_studio: LabelStudioClient,
    storage_id: int,
    *,
    is_target: bool = False,
    pause: Callable[[float], None] = time.sleep,
) -> int:
    """Synchronises a storage and waits for its end: how many tasks were made, or annotations saved.

    Raises LabelStudioError when Label Studio fails at it, ProjectNotReadyError when the end does not come.
    """
    state: Mapping[str, Any] = label_studio.sync_local_storage(storage_id, is_target=is_target)
    waited_s = 0.0
    while state["status"] in ("queued", "in_progress"):
        if waited_s >= SYNCED_WITHIN_S:
            raise ProjectNotReadyError(
                f"Label Studio has not synchronised storage {storage_id} within {SYNCED_WITHIN_S:.0f} s (it is "
                f"{state['status']}); see that its workers run, and run this again"
            )
        pause(LOOK_EVERY_S)
        waited_s += LOOK_EVERY_S
        state = label_studio.local_storage(storage_id, is_target=is_target)
    if state["status"] != "completed":
        reason = str(state.get("traceback") or "no reason").strip().splitlines()[-1]
        raise LabelStudioError(
            f"Label Studio could not synchronise storage {storage_id} ({state['status']}: {reason}); see Cloud Storage "
            "in the project's settings"
        )
    return int(state.get("last_sync_count") or 0)


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """Turns Label Studio's refusals of a folder into what has to be done about them."""
    try:
        yield
    except LabelStudioError as exc:
        said = str(exc)
        if exc.status != 400:
            raise
        if "must be a subdirectory" in said or "cannot be the same" in said:
            root = _DOCUMENT_ROOT.search(said)
            sentence = (
                f"{folder} does not lie below LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT, which is "
                f"{root['root'] if root else 'another folder'}; start Label Studio with "
                f"LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT={folder.parent}, or fetch the images into a folder below it"
            )
        elif "SERVING_ENABLED" in said:
            sentence = (
                "Label Studio serves no local files; start it with LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true and "
                f"LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT={folder.parent}"
            )
        elif "does not exist" in said:
            sentence = (
                f"Label Studio sees no folder {folder}; give its path as Label Studio's machine or container has it"
            )
        else:
            raise
        raise LabelStudioError(sentence, status=400) from exc
