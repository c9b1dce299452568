"""The data folder, on a real disk and behind a real S3 protocol: the same promises."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import fsspec
import pytest

from backend.errors import StorageError
from backend.storage import Address, Folder, LocalFolder, ObjectFolder, Place, open_folder


@pytest.fixture(params=["disk", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    return tmp_path / "root" if request.param == "disk" else request.getfixturevalue("store_address")


@pytest.fixture
def folder(root: Place) -> Folder:
    return open_folder(root)


def test_addresses_are_joined_like_paths() -> None:
    """And take apart into protocol and key."""
    address = Address("s3://bucket/a/") / "b" / "c.lance"
    assert str(address) == "s3://bucket/a/b/c.lance"
    assert (address.protocol, address.key) == ("s3", "bucket/a/b/c.lance")
    assert isinstance(open_folder(address), ObjectFolder)
    assert isinstance(open_folder(Path("a")), LocalFolder)


def test_an_empty_folder_answers_with_nothing(folder: Folder) -> None:
    """Nothing was made yet: every question has an empty answer, and deleting is fine."""
    assert folder.read("3/a.json") is None
    assert not folder.exists("3/a.json")
    assert folder.holding("a.json") == []
    assert folder.created("3/versions", "record.json") == []
    assert folder.files("3") == []
    assert not folder.move("3", "4", last="a.json")
    folder.remove("3")
    with folder.on_disk("3/w") as path:
        assert not path.exists()


def test_a_file_is_replaced(folder: Folder, root: Place) -> None:
    """The later content counts, for another process too."""
    folder.write("3/a.json", b"one")
    folder.write("3/a.json", "zweiü".encode())
    assert open_folder(root).read("3/a.json") == "zweiü".encode()
    assert folder.exists("3/a.json")
    assert folder.files("3") == ["a.json"]
    assert folder.holding("a.json") == ["3"]
    assert folder.holding("b.json") == []
    folder.remove("3/a.json")
    assert folder.read("3/a.json") is None


def test_a_created_folder_never_changes(folder: Folder) -> None:
    """Made again, with more or other files, it is refused, and stays as it is."""
    folder.create("3/versions/v1", {"head": b"h", "record.json": b"r"})
    folder.create("3/versions/v2", {"record.json": b"s"})
    with pytest.raises(OSError, match=r".+"):
        folder.create("3/versions/v1", {"head": b"x", "record.json": b"y"})
    assert folder.read("3/versions/v1/head") == b"h"
    assert folder.read("3/versions/v1/record.json") == b"r"
    assert sorted(folder.created("3/versions", "record.json")) == ["v1", "v2"]


def test_a_full_disk_is_told_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What could not be written, why, and what to do; whatever was there stays, and nothing half-written does."""
    folder = LocalFolder(tmp_path)
    folder.write("3/a.json", b"before")

    def refuse(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", refuse)
    with pytest.raises(StorageError, match=r"a\.json cannot be written: No space left on device; make room"):
        folder.write("3/a.json", b"after")
    with pytest.raises(StorageError, match="v1 cannot be written: No space left"):
        folder.create("3/versions/v1", {"head": b"h", "record.json": b"r"})
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["a.json"]
    assert folder.read("3/a.json") == b"before"


def test_what_killed_writers_left_is_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file and a folder that were being written an hour ago go; a younger one, and all that is whole, stays."""
    folder = LocalFolder(tmp_path)
    folder.create("3/versions/v1", {"record.json": b"r"})
    folder.write("3/.hidden.json", b"h")

    class KilledError(BaseException):
        pass

    def be_killed(*_: object, **__: object) -> None:
        raise KilledError

    def leave_half_written() -> None:
        with monkeypatch.context() as patch:
            for name in ("replace", "rename", "unlink"):
                patch.setattr(Path, name, be_killed)
            patch.setattr("shutil.rmtree", be_killed)
            with pytest.raises(KilledError):
                folder.write("3/a.json", b"a")
            with pytest.raises(KilledError):
                folder.create("3/versions/v2", {"head": b"h", "record.json": b"r"})

    leave_half_written()
    for path in [*(tmp_path / "3").glob(".a.json.*"), *(tmp_path / "3/versions").glob(".v2.*")]:
        os.utime(path, (time.time() - 4000, time.time() - 4000))
    leave_half_written()
    before = {path for path in tmp_path.rglob(".*") if path.name != ".hidden.json"}
    assert len(before) == 4
    assert folder.sweep("3", older_than_s=3600) == 2
    assert folder.sweep("3", older_than_s=3600) == 0
    left = [path for path in before if path.exists()]
    assert len(left) == 2
    assert all(time.time() - path.stat().st_mtime < 3600 for path in left)
    assert folder.read("3/versions/v1/record.json") == b"r"
    assert folder.read("3/.hidden.json") == b"h"


def test_a_folder_counts_once_its_last_file_is_there(store_address: Address) -> None:
    """A writer killed between two puts leaves files that nobody takes for a version."""
    folder = ObjectFolder(store_address)
    folder.write("3/versions/v1/head", b"h")
    assert folder.created("3/versions", "record.json") == []
    folder.write("3/versions/v1/record.json", b"r")
    assert folder.created("3/versions", "record.json") == ["v1"]


def test_of_two_who_create_one_folder_one_fails(folder: Folder, root: Place) -> None:
    """Eight at once: one has made all of it, whose content is that of no other."""
    outcomes: list[str] = []
    start = threading.Barrier(8)

    def create(number: int) -> None:
        mine = open_folder(root)
        start.wait()
        try:
            mine.create("v1", {"head": str(number).encode(), "record.json": str(number).encode()})
            outcomes.append(str(number))
        except OSError:
            outcomes.append("refused")

    threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.count("refused") == 7
    (winner,) = set(outcomes) - {"refused"}
    assert folder.read("v1/head") == folder.read("v1/record.json") == winner.encode()


def test_removing_takes_everything_below_and_nothing_beside(folder: Folder) -> None:
    """v1 goes, v10 stays."""
    for name in ("v1", "v10"):
        folder.create(f"3/versions/{name}", {"head": b"h", "record.json": b"r"})
    folder.remove("3/versions/v1", first="record.json")
    assert folder.read("3/versions/v1/head") is None
    assert folder.created("3/versions", "record.json") == ["v10"]
    assert folder.read("3/versions/v10/head") == b"h"


def test_moving_takes_everything_along(folder: Folder) -> None:
    """Also what lies deeper; 33 is another folder than 3."""
    folder.write("3/project.json", b"p")
    folder.write("3/embeddings/f.lance/data/x", b"x")
    folder.write("33/project.json", b"q")
    assert folder.move("3", "3.gone-1", last="project.json")
    assert folder.read("3/project.json") is None
    assert folder.read("3.gone-1/project.json") == b"p"
    assert folder.read("3.gone-1/embeddings/f.lance/data/x") == b"x"
    assert folder.read("33/project.json") == b"q"


def test_a_move_that_is_cut_off_is_ended_by_the_next(store_address: Address, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file that says the folder is in use leaves last, so it is seen and moved again."""
    folder = ObjectFolder(store_address)
    for name in ("a", "project.json", "z"):
        folder.write(f"3/{name}", b"1")
    moved: list[str] = []
    rm_file = folder._store.rm_file

    def fail_at_third(path: str) -> None:
        moved.append(path.rpartition("/")[2])
        if len(moved) == 3:
            raise OSError("connection reset")
        rm_file(path)

    with monkeypatch.context() as patch:
        patch.setattr(folder._store, "rm_file", fail_at_third)
        with pytest.raises(StorageError, match="connection reset"):
            folder.move("3", "3.gone", last="project.json")
    assert moved == ["a", "z", "project.json"]
    assert folder.files("3") == ["project.json"]
    assert folder.move("3", "3.gone", last="project.json")
    assert folder.files("3.gone") == ["a", "project.json", "z"]


def test_files_for_libraries_that_want_a_path(folder: Folder) -> None:
    """What is written to the path is the file, and can be read from a path again."""
    with folder.take_in("3/backbones/f.safetensors") as path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"weights")
    with folder.on_disk("3/backbones/f.safetensors") as path:
        assert path.read_bytes() == b"weights"
    assert folder.files("3/backbones") == ["f.safetensors"]


def test_a_store_that_does_not_answer_is_an_error_and_not_an_empty_folder(
    store_address: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To take a dead network for an empty folder would begin every project anew."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr("s3fs.S3FileSystem.retries", 1)
    folder = ObjectFolder(store_address)
    with pytest.raises(StorageError, match=r"s3://.* cannot be read: .*; check the address in DATA_DIR"):
        folder.read("3/published.json")
    with pytest.raises(StorageError, match="cannot be written"):
        folder.write("3/published.json", b"{}")


def test_a_missing_bucket_is_named_when_written_to(store_address: Address) -> None:
    """The sentence has the store's own reason."""
    with pytest.raises(StorageError, match=r"s3://no-such-bucket/x cannot be written: .*bucket does not exist"):
        ObjectFolder(Address("s3://no-such-bucket/x")).write("a", b"1")


def test_a_missing_library_is_named_with_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """One sentence instead of an ImportError."""

    def refuse(*_: object, **__: object) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec, "filesystem", refuse)
    with pytest.raises(
        StorageError, match=r"needs a library .*Install s3fs.*; pip install '\.\[s3\]', or set DATA_DIR"
    ):
        ObjectFolder(Address("s3://bucket/x")).read("a")


def test_a_forked_process_opens_connections_of_its_own(store_address: Address) -> None:
    """gunicorn forks its workers; what the parent opened must not be used by them."""
    program = """
import os, sys
from backend.storage import Address, ObjectFolder
folder = ObjectFolder(Address(sys.argv[1]))
folder.write("a", b"1")
child = os.fork()
if not child:
    os._exit(0 if folder.read("a") == b"1" else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = subprocess.run([sys.executable, "-c", program, str(store_address)], timeout=60, env=dict(os.environ))
    assert done.returncode == 0
