"""Files cut off or overwritten, as a power cut, a bad disk or a person may leave them; all can be made again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from fault_log import IS_SHORT, Faults
from fault_stack import FaultProject, FaultStack, ask_for_predictions


def cut_off(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def overwritten(path: Path) -> None:
    path.write_bytes(bytes(range(256)) * (1 + path.stat().st_size // 256))


DAMAGES = {"cut off": cut_off, "emptied": emptied, "overwritten": overwritten}


def project_folder(stack: FaultStack, project: FaultProject) -> Path:
    return stack.folder / "data" / "projects" / str(project.id)


def version_folder(stack: FaultStack, project: FaultProject) -> Path:
    folder = project_folder(stack, project)
    return folder / "versions" / str(json.loads((folder / "published.json").read_text())["version"])


def newest(folder: Path, pattern: str) -> list[Path]:
    """The file of the store that was written last; none if there is none of the kind."""
    return sorted(folder.glob(f"embeddings/*.lance/{pattern}"), key=lambda path: path.stat().st_mtime)[-1:]


FILES: dict[str, Callable[[FaultStack, FaultProject], list[Path]]] = {
    "head.safetensors": lambda stack, project: [version_folder(stack, project) / "head.safetensors"],
    "record.json": lambda stack, project: [version_folder(stack, project) / "record.json"],
    "published.json": lambda stack, project: [project_folder(stack, project) / "published.json"],
    "project.json": lambda stack, project: [project_folder(stack, project) / "project.json"],
    "the dataset's manifest": lambda stack, project: newest(project_folder(stack, project), "_versions/*.manifest"),
    "the dataset's newest data": lambda stack, project: newest(project_folder(stack, project), "data/*.lance"),
    "all data of the dataset": lambda stack, project: list(
        project_folder(stack, project).glob("embeddings/*.lance/data/*.lance")
    ),
}


SHORT = ("head.safetensors", "record.json", "published.json", "all data of the dataset")
"""The files of the shortened form."""


@pytest.mark.parametrize("damage", ("cut off",) if IS_SHORT else DAMAGES)
@pytest.mark.parametrize("name", SHORT if IS_SHORT else FILES)
def test_damaged_file_while_running(
    fault_stack: FaultStack, faults: Faults, project: FaultProject, name: str, damage: str
) -> None:
    """Nothing is restarted and nobody labels: the service finds out, and repairs it."""
    for _ in faults.times():
        with faults.injected(f"{name} {damage}", project):
            for path in FILES[name](fault_stack, project):
                DAMAGES[damage](path)
            ask_for_predictions(fault_stack, project)


@pytest.mark.parametrize("name", SHORT[-1:] if IS_SHORT else FILES)
def test_damaged_file_found_at_the_start(
    fault_stack: FaultStack, faults: Faults, project: FaultProject, name: str
) -> None:
    """As after a power cut: web and worker start on what is there, and a label comes."""
    for _ in faults.times():
        with faults.injected(f"{name} cut off, all restarted", project):
            fault_stack.worker.stop()
            fault_stack.web.stop()
            for path in FILES[name](fault_stack, project):
                cut_off(path)
            fault_stack.web.start()
            fault_stack.await_web()
            ask_for_predictions(fault_stack, project)
            fault_stack.worker.start()
            project.label(1)
    fault_stack.await_workers(1)
