"""Images that arrive: each becomes one task, once, and half a file none."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from fakes import World
from PIL import Image
from s3 import put as put_objects
from typer.testing import CliRunner

from backend import cli
from backend.adapters.image_source import open_images
from backend.errors import ImageError, LabelStudioUnreachableError, StorageError, UsageError
from backend.loop.growing import FolderArrivals, Grower, filled, read_addresses, storage_of
from backend.storage import Address

LONG_AGO = 1_000_000_000


def png(*colour: int) -> bytes:
    packed = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(packed, "PNG")
    return packed.getvalue()


def put(folder: Path, name: str, content: bytes, *, age_s: float = 100) -> Path:
    """A file that was last changed so long ago."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    os.utime(path, (LONG_AGO - age_s, LONG_AGO - age_s))
    return path


@pytest.fixture
def incoming(tmp_path: Path) -> Path:
    folder = tmp_path / "incoming"
    folder.mkdir()
    return folder


@pytest.fixture
def project(world: World) -> World:
    world.label_studio.add_project(1)
    return world


def arrivals(incoming: Path, now: float = LONG_AGO) -> FolderArrivals:
    return FolderArrivals(open_images(incoming, max_image_bytes=10**6), now=lambda: now)


def grower(world: World, tmp_path: Path) -> Grower:
    return Grower(label_studio=world.label_studio, project_id=1, notes_file=tmp_path / "home" / "watch.json")  # type: ignore[arg-type]


def lines(made: Grower, source: Any) -> list[str]:
    return [f"{line.outcome} {Path(line.source).name}" for line in made.add_arrivals(source, "folder x")]


def test_each_image_is_added_once(project: World, incoming: Path, tmp_path: Path) -> None:
    """Also when its bytes come again under another name, after a restart, without the notes, and once deleted."""
    put(incoming, "a.png", png(255, 0, 0))
    put(incoming, "sub/b.png", png(0, 255, 0))
    put(incoming, "same-as-a.png", png(255, 0, 0))
    source, made = arrivals(incoming), grower(project, tmp_path)
    assert lines(made, source) == ["added a.png", "added b.png"]
    assert lines(made, source) == []
    put(incoming, "c.png", png(0, 0, 255))
    assert lines(made, source) == ["added c.png"]
    kept = project.label_studio[1]
    assert [Path(str(reference)).name.partition("-")[2] for reference in kept.tasks.values()] == [
        "a.png",
        "b.png",
        "c.png",
    ]
    assert kept.fields[1]["source"] == str(incoming / "a.png")
    assert len(kept.fields[1]["sha256"]) == 64

    assert lines(grower(project, tmp_path), arrivals(incoming)) == []
    del kept.tasks[2]
    assert lines(grower(project, tmp_path), arrivals(incoming)) == []
    (tmp_path / "home" / "watch.json").unlink()
    assert lines(grower(project, tmp_path), arrivals(incoming)) == ["added b.png"]


def test_a_crash_between_task_and_note_adds_nothing_twice(
    project: World, incoming: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Label Studio knows the bytes that it has."""
    put(incoming, "a.png", png(255, 0, 0))
    made = grower(project, tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(made, "_keep_notes", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            lines(made, arrivals(incoming))
    assert len(project.label_studio[1].tasks) == 1
    assert lines(grower(project, tmp_path), arrivals(incoming)) == []
    assert len(project.label_studio[1].tasks) == 1


def test_a_bucket_grows(project: World, tmp_path: Path, s3_server: str, store_address: Address) -> None:
    """Objects are there whole or not at all: each is taken at the first look that lists it."""
    bucket, _, prefix = store_address.key.partition("/")
    put_objects(s3_server, bucket, {f"{prefix}/a.png": png(255, 0, 0), f"{prefix}/notes.txt": b"no image"})
    source, made = FolderArrivals(open_images(store_address, max_image_bytes=10**6)), grower(project, tmp_path)
    assert lines(made, source) == ["added a.png"]
    put_objects(s3_server, bucket, {f"{prefix}/b.png": png(0, 255, 0)})
    assert lines(made, source) == ["added b.png"]
    assert lines(made, source) == []
    assert project.label_studio[1].fields[2]["source"] == f"{store_address.text}/b.png"


def test_a_file_that_is_being_written_is_waited_for(project: World, incoming: Path, tmp_path: Path) -> None:
    """Changed a second ago it is left; unchanged at the next look it is taken."""
    put(incoming, "a.png", png(255, 0, 0)[:40], age_s=1)
    source, made = arrivals(incoming), grower(project, tmp_path)
    assert lines(made, source) == []
    assert source.n_unsettled == 1
    put(incoming, "a.png", png(255, 0, 0), age_s=0.5)
    assert lines(made, source) == []
    assert lines(made, source) == ["added a.png"]
    assert source.n_unsettled == 0


def test_half_an_image_is_left_out_until_it_is_whole(project: World, incoming: Path, tmp_path: Path) -> None:
    """Said once, not at every look."""
    put(incoming, "a.png", png(255, 0, 0)[:40])
    source, made = arrivals(incoming), grower(project, tmp_path)
    assert lines(made, source) == ["left out a.png"]
    assert lines(made, source) == []
    put(incoming, "a.png", png(255, 0, 0), age_s=50)
    assert lines(made, source) == ["added a.png"]


def test_what_is_there_may_be_left(project: World, incoming: Path, tmp_path: Path) -> None:
    """Only what comes later is added, and only the first start says what is there."""
    put(incoming, "old.png", png(1, 1, 1))
    made, source = grower(project, tmp_path), arrivals(incoming)
    assert made.leave_present(source, "folder x") == 1
    put(incoming, "new.png", png(2, 2, 2))
    assert made.leave_present(source, "folder x") == 0
    assert lines(made, source) == ["added new.png"]


def test_a_local_storage_is_synced(project: World, incoming: Path, tmp_path: Path) -> None:
    """Once for whatever came, never for nothing; nothing is uploaded."""
    kept = project.label_studio[1]
    kept.storages[7] = incoming
    assert storage_of(project.label_studio.local_storages(1), incoming) == 7
    assert storage_of(project.label_studio.local_storages(1), tmp_path) is None
    made, source = grower(project, tmp_path), arrivals(incoming)
    assert list(made.sync_storage(7, source, "folder x")) == []
    put(incoming, "a.png", png(255, 0, 0))
    put(incoming, "b.png", png(0, 255, 0))
    assert [str(line) for line in made.sync_storage(7, source, "folder x")] == [
        "added /data/local-files/?d=a.png: task 1",
        "added /data/local-files/?d=b.png: task 2",
    ]
    assert list(made.sync_storage(7, source, "folder x")) == []
    assert project.label_studio.asked.count("sync_local_storage") == 1
    assert kept.uploads == {}


def test_a_storage_is_not_synced_while_a_file_is_written(project: World, incoming: Path, tmp_path: Path) -> None:
    """Label Studio would take the half of it; after six looks it is synced all the same."""
    project.label_studio[1].storages[7] = incoming
    put(incoming, "a.png", png(255, 0, 0))
    put(incoming, "b.png", png(0, 255, 0), age_s=0)
    made, source = grower(project, tmp_path), arrivals(incoming)
    assert list(made.sync_storage(7, source, "folder x")) == []
    assert len(list(made.sync_storage(7, source, "folder x"))) == 2
    put(incoming, "c.png", png(0, 0, 255))
    for n_looks in range(6):
        put(incoming, "d.png", png(0, 0, n_looks), age_s=-n_looks)
        assert list(made.sync_storage(7, source, "folder x")) == []
    put(incoming, "d.png", png(0, 0, 9), age_s=-9)
    assert len(list(made.sync_storage(7, source, "folder x"))) == 2


class Camera:
    """Pictures as they come, one look after the other."""

    def __init__(self, *pictures: bytes | ImageError) -> None:
        self._pictures = iter(pictures)

    def look(self, notes: dict[str, Any]) -> Iterator[tuple[str, bytes | ImageError]]:
        yield "https://cam.example.org/now", next(self._pictures)


def test_a_picture_that_changes_becomes_a_task_each_time(project: World, tmp_path: Path) -> None:
    """The same one does not, a failure is said, and an address without an ending gets that of its picture."""
    camera = Camera(png(1, 1, 1), png(1, 1, 1), ImageError("away", transient=True), png(2, 2, 2))
    made = grower(project, tmp_path)
    found = [[str(line) for line in made.add_arrivals(camera, "urls x")] for _ in range(4)]
    assert found == [
        ["added https://cam.example.org/now"],
        [],
        ["left out https://cam.example.org/now: away"],
        ["added https://cam.example.org/now"],
    ]
    assert all(str(reference).endswith("-now.png") for reference in project.label_studio[1].tasks.values())


def test_a_list_of_addresses(tmp_path: Path) -> None:
    """Comments and doubles go; times are filled in; what is none is refused with its line."""
    file = tmp_path / "urls.txt"
    file.write_text("# cams\nhttps://h/a.png\n\nhttps://h/a.png\nhttps://h/{time:%Y/%m}/b.jpg?x=%20\n")
    found = read_addresses(file)
    assert found == ["https://h/a.png", "https://h/{time:%Y/%m}/b.jpg?x=%20"]
    assert filled(found[1], datetime(2026, 11, 2, tzinfo=UTC)) == "https://h/2026/11/b.jpg?x=%20"
    assert read_addresses(file, ".*png") == ["https://h/a.png"]
    file.write_text("https://h/a.png\nftp://h/a.png\n")
    with pytest.raises(UsageError, match=r"line 2: 'ftp://h/a\.png' is not an address"):
        read_addresses(file)
    file.write_text("# nothing\n")
    with pytest.raises(UsageError, match="holds no address"):
        read_addresses(file)
    with pytest.raises(UsageError, match="cannot be read"):
        read_addresses(tmp_path / "none.txt")


def test_damaged_notes_are_said(project: World, tmp_path: Path) -> None:
    """And what to do: without them Label Studio says what is there."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "watch.json").write_text("{")
    with pytest.raises(StorageError, match="delete the file"):
        grower(project, tmp_path)


def run(world: World, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> Any:
    monkeypatch.setattr("backend.services.Services", lambda _: world.services)
    monkeypatch.setattr("backend.cli_grow.settings_of", lambda *_, **__: world.services.settings)
    return CliRunner().invoke(cli.app, ["watch", *map(str, arguments)])


def test_the_command_adds_and_ends(project: World, incoming: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line an image, as text or as JSON; the second run finds nothing new."""
    put(incoming, "a.png", png(255, 0, 0))
    put(incoming, "b.jpg", png(0, 255, 0))
    done = run(project, monkeypatch, 1, incoming, "--filter", ".*png", "--once")
    assert done.stdout == f"added {incoming / 'a.png'}\n", done.output
    said = run(project, monkeypatch, 1, incoming, "--once", "--json")
    assert json.loads(said.stdout) == {"outcome": "added", "source": str(incoming / "b.jpg"), "detail": ""}
    assert run(project, monkeypatch, 1, incoming, "--once").stdout == ""


def test_label_studio_may_be_away_for_a_while(project: World, incoming: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Said, and gone on with; Ctrl-C ends it."""
    looks = iter(range(3))

    def sleep(_: float) -> None:
        number = next(looks)
        failures = project.label_studio.failures
        if number == 0:
            put(incoming, "a.png", png(255, 0, 0))
            failures["upload_image"] = LabelStudioUnreachableError("Label Studio does not answer")
        elif number == 1:
            del failures["upload_image"]
        else:
            raise KeyboardInterrupt

    monkeypatch.setattr("backend.cli_grow.time.sleep", sleep)
    done = run(project, monkeypatch, 1, incoming, "--every", 5)
    assert "note: Label Studio does not answer; tried again in 5 s" in done.stderr
    assert done.stdout.startswith(f"added {incoming / 'a.png'}\n")
    assert len(project.label_studio[1].tasks) == 1


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([1], "give either a folder"),
        ([1, ".", "--urls", "x"], "give either a folder"),
        ([1, "--urls", "x", "--only-new"], "--only-new goes with a folder"),
        ([1, "--urls", "x", "--every", "2"], "--every 2 is too often for addresses; give 10"),
        ([1, "/no/such/folder"], "is not a folder"),
    ],
)
def test_what_the_command_refuses(
    arguments: list[object], reason: str, project: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one sentence, before Label Studio is asked to do anything."""
    done = run(project, monkeypatch, *arguments)
    assert isinstance(done.exception, UsageError), done.output
    assert reason in str(done.exception)
