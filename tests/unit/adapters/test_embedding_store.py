"""The embedding store against real Lance datasets in a temporary folder."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backend.adapters.embedding_store import (
    EmbeddingRow,
    EmbeddingStore,
    EmbeddingTable,
    ImageFailure,
    reference_key,
)
from backend.errors import BackendError
from backend.storage import Address

ROOT = Path(__file__).resolve().parents[3]


def row(task_id: int, *values: float) -> EmbeddingRow:
    return EmbeddingRow(task_id, f"/data/upload/{task_id}.jpg", np.array(values or (task_id, 0.5), dtype=np.float32))


def failed(task_id: int, *, transient: bool = False) -> EmbeddingRow:
    return EmbeddingRow(task_id, f"/data/upload/{task_id}.jpg", failure=ImageFailure("HTTP 404", transient))


@pytest.fixture
def store(tmp_path: Path) -> EmbeddingStore:
    return EmbeddingStore(tmp_path, "f00d", 2)


def assert_same(one: EmbeddingTable, other: EmbeddingTable) -> None:
    assert one.task_ids.tolist() == other.task_ids.tolist()
    assert one.embeddings.tolist() == other.embeddings.tolist()
    assert one.failures == other.failures
    assert one.references == other.references
    assert one.version == other.version


def test_an_empty_store_reads_as_an_empty_table_and_leaves_no_files(store: EmbeddingStore, tmp_path: Path) -> None:
    """Reading before the first write gives empty arrays of the right shape, and makes nothing on disk."""
    table = store.read()
    assert table.task_ids.shape == (0,)
    assert table.embeddings.shape == (0, 2)
    assert table.rows_of([1]).tolist() == [-1]
    assert table.get(1) is None
    assert store.version == 0
    assert list(tmp_path.iterdir()) == []


def test_rows_come_back_sorted_as_float16_with_failures_apart(store: EmbeddingStore) -> None:
    """What was written is read back: embeddings by ascending task id, failures and references by task id."""
    store.upsert([row(9, 1, 2), failed(5, transient=True), row(3, 3, 4)])
    table = EmbeddingStore(store.path.parent, "f00d", 2).read()
    assert table.task_ids.tolist() == [3, 9]
    assert table.embeddings.dtype == np.float16
    assert table.embeddings.tolist() == [[3, 4], [1, 2]]
    assert table.failures == {5: ImageFailure("HTTP 404", True)}
    assert table.references == {n: f"/data/upload/{n}.jpg" for n in (3, 5, 9)}
    assert table.rows_of([9, 4, 3, 5, 100]).tolist() == [1, -1, 0, -1, -1]
    assert not table.embeddings.flags.writeable


def test_a_store_can_be_looked_at_without_reading_its_numbers(store: EmbeddingStore) -> None:
    """Its index knows all tasks, a range only some; both follow every write, whoever made it."""
    assert (store.count(), len(store.index().task_ids), len(store.between(0, 9).task_ids)) == (0, 0, 0)
    store.upsert([row(9, 1, 2), failed(5, transient=True), row(3, 3, 4)])
    for reader in (store, EmbeddingStore(store.path.parent, "f00d", 2)):
        index = reader.index()
        assert index.embeddings.shape == (2, 0)
        assert index.task_ids.tolist() == [3, 9]
        assert index.failures == {5: ImageFailure("HTTP 404", True)}
        assert index.references == reader.read().references
        assert index.digest == reader.read().digest
        assert reader.index() is index
        assert reader.count() == 3
        part = reader.between(3, 9)
        assert (part.task_ids.tolist(), part.embeddings.tolist()) == ([3], [[3, 4]])
        assert list(part.failures) == [5]
    other = EmbeddingStore(store.path.parent, "f00d", 2)
    other.remove([3])
    assert store.index().task_ids.tolist() == other.index().task_ids.tolist() == [9]
    assert store.count() == 2
    store.read()
    store.upsert([row(4, 0, 1)])
    assert store.index().task_ids.tolist() == [4, 9]
    assert store.count() == 3


def test_upsert_replaces_the_row_of_a_task_and_the_later_of_two_counts(store: EmbeddingStore) -> None:
    """One task has one row, whether its rows came in two writes or in one; a failure gives way to an embedding."""
    store.upsert([failed(1), row(2, 0, 0)])
    store.upsert([row(1, 7, 7), row(1, 8, 8)])
    table = store.read()
    assert table.task_ids.tolist() == [1, 2]
    assert table.embeddings.tolist() == [[8, 8], [0, 0]]
    assert table.failures == {}


def test_remove_forgets_tasks_and_ignores_unknown_ones(store: EmbeddingStore) -> None:
    """After `remove` nothing of a task is left; removing from an empty store does nothing."""
    store.remove([1])
    store.upsert([row(1), row(2), failed(3)])
    store.remove([1, 3, 99])
    assert store.read().references == {2: "/data/upload/2.jpg"}


def test_outdated_names_new_tasks_and_changed_references(store: EmbeddingStore) -> None:
    """A task is outdated when it has no row or its image was replaced; a failed one with the same image is not."""
    store.upsert([row(1), row(2), failed(3)])
    now = {1: "/data/upload/1.jpg", 2: "/data/upload/other.jpg", 3: "/data/upload/3.jpg", 4: "/data/upload/4.jpg"}
    assert store.read().outdated(now) == [2, 4]


def test_long_references_are_kept_as_a_hash(store: EmbeddingStore) -> None:
    """A data URI of many kilobytes is not stored, yet a change of it is noticed."""
    long = "data:image/png;base64," + "A" * 5000
    store.upsert([EmbeddingRow(1, long, np.zeros(2))])
    table = store.read()
    assert table.references[1] == reference_key(long)
    assert len(table.references[1]) < 100
    assert table.outdated({1: long}) == []
    assert table.outdated({1: long + "B"}) == [1]


def test_read_returns_the_same_object_until_something_changes(store: EmbeddingStore) -> None:
    """Nothing is read again while the version stands; another instance's write is seen at the next read."""
    store.upsert([row(1)])
    first = store.read()
    assert store.read() is first
    EmbeddingStore(store.path.parent, "f00d", 2).upsert([row(2)])
    second = store.read()
    assert second.task_ids.tolist() == [1, 2]
    assert second.version == store.version > first.version


@settings(max_examples=15, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["upsert", "fail", "remove", "read", "elsewhere"]), st.integers(0, 6)), max_size=12
    )
)
def test_own_writes_merged_in_memory_equal_a_fresh_read(steps: list[tuple[str, int]]) -> None:
    """Whatever the order of writes here and elsewhere, the table in memory is the one on disk."""
    with tempfile.TemporaryDirectory() as folder:
        check_steps(Path(folder), steps)


def check_steps(folder: Path, steps: list[tuple[str, int]]) -> None:
    store, other = (EmbeddingStore(folder, "f00d", 2, writes_per_cleanup=4) for _ in range(2))
    store.read()
    for i, (step, task_id) in enumerate(steps):
        if step == "upsert":
            store.upsert([row(task_id, i, i), row(task_id + 1, i, 0)])
        elif step == "fail":
            store.upsert([failed(task_id)])
        elif step == "remove":
            store.remove([task_id])
        elif step == "elsewhere":
            other.upsert([row(task_id, -i, -i)])
        else:
            store.read()
    assert_same(store.read(), EmbeddingStore(folder, "f00d", 2).read())


@pytest.mark.parametrize("in_memory", [True, False])
def test_take_gives_the_rows_asked_for(store: EmbeddingStore, in_memory: bool) -> None:
    """`take` answers alike from memory and from disk, and leaves unknown tasks out."""
    store.upsert([row(n) for n in range(10)] + [failed(20), failed(21)])
    if in_memory:
        store.read()
    table = store.take([7, 3, 20, 99, 3])
    assert table.task_ids.tolist() == [3, 7]
    assert table.embeddings.tolist() == [[3, 0.5], [7, 0.5]]
    assert set(table.failures) == {20}
    assert set(table.references) == {3, 7, 20}
    assert store.take([]).task_ids.tolist() == []


@pytest.mark.parametrize("seed", range(3))
def test_rows_are_found_by_their_places_whatever_was_written(tmp_path: Path, seed: int) -> None:
    """Asked again and again between writes, removals and clean-ups of another process, a reader is always right."""
    random = np.random.default_rng(seed)
    reader, writer = (EmbeddingStore(tmp_path, "f00d", 2, writes_per_cleanup=4) for _ in range(2))
    for turn in range(12):
        tasks = random.integers(0, 60, 15).tolist()
        if turn % 3 == 2:
            writer.remove(tasks)
        else:
            writer.upsert([row(n, turn, n) if n % 7 else failed(n) for n in tasks])
        table = EmbeddingStore(tmp_path, "f00d", 2).read()
        for _ in range(3):
            wanted = random.integers(0, 70, 20).tolist()
            found = reader.take(wanted)
            there = sorted({n for n in wanted if n in table.references})
            assert found.references == {n: table.references[n] for n in there}
            assert found.task_ids.tolist() == [n for n in there if n not in table.failures]
            assert np.array_equal(found.embeddings, table.embeddings[table.rows_of(found.task_ids)])
            assert set(found.failures) == {n for n in there if n in table.failures}


def test_a_store_begun_anew_is_not_taken_for_the_one_before(tmp_path: Path) -> None:
    """Also when it has as many versions; what was opened before is not read again."""
    reader = EmbeddingStore(tmp_path, "f00d", 2)
    for value in (1, 2):
        writer = EmbeddingStore(tmp_path, "f00d", 2)
        writer.upsert([row(n, value, n) for n in range(10)])
        for _ in range(3):
            assert reader.take([4]).embeddings.tolist() == [[value, 4]]
        writer.discard()
        assert reader.take([4]).task_ids.tolist() == []


@pytest.mark.parametrize("pattern", ["data/*.lance", "_versions/*.manifest"])
def test_a_file_damaged_behind_an_open_dataset_is_noticed(tmp_path: Path, pattern: str) -> None:
    """Though what is asked for could still be read from it: the dataset goes aside, for all to be made again."""
    store = EmbeddingStore(tmp_path, "f00d", 2)
    store.upsert([row(n) for n in range(1_000)])
    for _ in range(3):
        assert store.take([0]).task_ids.tolist() == [0]
    for path in store.path.glob(pattern):
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
    assert store.take([0]).task_ids.tolist() == []
    assert [path.name for path in tmp_path.glob("*.corrupt*")] == ["f00d.lance.corrupt"]


def test_old_versions_and_small_files_do_not_pile_up(tmp_path: Path) -> None:
    """A hundred small writes leave about as many files as the writes since the last clean-up, and every row."""
    store = EmbeddingStore(tmp_path, "f00d", 2, writes_per_cleanup=10, keep_versions_s=0)
    counts = []
    for n in range(100):
        store.upsert([row(n), row(0, n, n)])
        counts.append(sum(path.is_file() for path in store.path.rglob("*")))
    assert max(counts) < 60
    assert min(counts[-10:]) < 15
    table = EmbeddingStore(tmp_path, "f00d", 2).read()
    assert table.task_ids.tolist() == list(range(100))
    assert table.embeddings[0].tolist() == [99, 99]


def test_clean_up_keeps_the_identity_of_the_dataset(tmp_path: Path) -> None:
    """Joining files neither loses rows nor makes the table in memory look foreign."""
    store = EmbeddingStore(tmp_path, "f00d", 2, writes_per_cleanup=2, keep_versions_s=0)
    store.upsert([row(1)])
    identity = store._token()
    for n in range(2, 7):
        store.upsert([row(n)])
    now = store._token()
    assert identity is not None
    assert now is not None
    assert now[0] == identity[0]


def test_values_beyond_float16_are_clipped_and_not_finite_ones_refused(store: EmbeddingStore) -> None:
    """Large features stay finite; NaN, a wrong length and a row without content are programming errors."""
    store.upsert([row(1, 1e6, -1e6)])
    assert store.read().embeddings.tolist() == [[65504, -65504]]
    with pytest.raises(ValueError, match=r"task 2: .* not finite"):
        store.upsert([row(2, float("nan"), 0)])
    with pytest.raises(ValueError, match=r"task 2: .* \(3,\), expected \(2,\)"):
        store.upsert([row(2, 1, 2, 3)])
    with pytest.raises(ValueError, match="either an embedding or a failure"):
        store.upsert([EmbeddingRow(2, "x")])


@pytest.mark.parametrize("damage", ["manifest", "data", "dim", "foreign"])
@pytest.mark.parametrize("first_use", ["read", "take", "upsert", "remove"])
def test_a_damaged_dataset_is_moved_aside_and_started_afresh(
    tmp_path: Path, damage: str, first_use: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever is broken and whoever notices, the old files are kept beside, a warning says so, and writing works."""
    EmbeddingStore(tmp_path, "f00d", 3 if damage == "dim" else 2).upsert(
        [row(n, *[n] * (2 + (damage == "dim"))) for n in range(50)]
    )
    store = EmbeddingStore(tmp_path, "f00d", 2)
    if damage == "foreign":
        lance = pytest.importorskip("lance")
        pyarrow = pytest.importorskip("pyarrow")
        lance.write_dataset(pyarrow.table({"x": [1]}), store.path, mode="overwrite")
    for path in (store.path / ("_versions" if damage == "manifest" else "data")).iterdir():
        if damage in ("manifest", "data") and path.suffix != ".json":
            path.write_bytes(path.read_bytes()[:20])
    with caplog.at_level(logging.WARNING):
        if first_use == "read":
            assert store.read().task_ids.tolist() == []
        elif first_use == "take":
            assert store.take([1]).task_ids.tolist() == []
        elif first_use == "remove":
            store.remove([1])
        store.upsert([row(1, 1, 1)])
    assert store.read().task_ids.tolist() == [1]
    assert EmbeddingStore(tmp_path, "f00d", 2).read().task_ids.tolist() == [1]
    assert (tmp_path / "f00d.lance.corrupt").is_dir()
    assert "moved aside" in caplog.text


def test_damage_after_damage_fills_no_disk(tmp_path: Path) -> None:
    """Of three damaged datasets only the last stays beside."""
    for n in range(3):
        EmbeddingStore(tmp_path, "f00d", 2).upsert([row(n)])
        for path in (tmp_path / "f00d.lance/data").iterdir():
            path.write_bytes(b"")
        assert EmbeddingStore(tmp_path, "f00d", 2).read().task_ids.tolist() == []
    assert [path.name for path in tmp_path.glob("*.corrupt*")] == ["f00d.lance.corrupt"]


def test_a_table_in_memory_does_not_outlive_the_dataset_it_came_from(store: EmbeddingStore) -> None:
    """A dataset found broken while writing takes the rows read from it along; only what is on disk is shown."""
    store.upsert([row(1), row(2)])
    store.read()
    for path in (store.path / "data").iterdir():
        path.write_bytes(b"")
    store.upsert([row(3)])
    assert store.read().task_ids.tolist() == [3]


def test_a_rebuilt_dataset_with_the_same_version_number_is_read_again(store: EmbeddingStore) -> None:
    """Version numbers start from 1 again after a rebuild; the content is told apart all the same."""
    store.upsert([row(1)])
    before = store.read()
    shutil.rmtree(store.path)
    EmbeddingStore(store.path.parent, "f00d", 2).upsert([row(5)])
    after = store.read()
    assert after.version == before.version
    assert after.task_ids.tolist() == [5]


def test_a_folder_without_a_first_commit_counts_as_empty(store: EmbeddingStore, tmp_path: Path) -> None:
    """What a writer leaves that was killed before its first commit is written over, not treated as damage."""
    (store.path / "data").mkdir(parents=True)
    (store.path / "data" / "left-over.lance").write_bytes(b"half")
    assert store.read().version == 0
    store.upsert([row(1)])
    assert store.read().task_ids.tolist() == [1]
    assert not (tmp_path / "f00d.lance.corrupt").exists()


FULL_DISK = """
import resource, sys
from pathlib import Path
import numpy as np
from backend.adapters.embedding_store import EmbeddingRow, EmbeddingStore
from backend.errors import BackendError
store = EmbeddingStore(Path(sys.argv[1]), "f00d", 2)
store.read()
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))  # no file may grow beyond 100 bytes
try:
    store.upsert([EmbeddingRow(2, "x", np.zeros(2))])
except BackendError as exc:
    print(exc)
"""


def test_a_failing_disk_is_not_taken_for_a_damaged_dataset(store: EmbeddingStore, tmp_path: Path) -> None:
    """When nothing can be written any more, that is said, and what is there stays in place."""
    store.upsert([row(1)])
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path)]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "cannot be written" in answer.stdout
    assert store.read().task_ids.tolist() == [1]
    assert not list(tmp_path.glob("*.corrupt*"))


WRITER = """
import sys
from pathlib import Path
import numpy as np
from backend.adapters.embedding_store import EmbeddingRow, EmbeddingStore
from backend.storage import Address
place = Address(sys.argv[1]) if "://" in sys.argv[1] else Path(sys.argv[1])
store = EmbeddingStore(place, "f00d", 2, writes_per_cleanup=8, keep_versions_s=0)
first, n_writes = int(sys.argv[2]), int(sys.argv[3])
for n in range(first, first + n_writes):
    # one row of its own, one that every writer writes
    store.upsert([EmbeddingRow(n, "own", np.full(2, n)), EmbeddingRow(0, "shared", np.full(2, n))])
    print(n, flush=True)
"""


def start_writer(folder: Path | Address, first: int, n_writes: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, str(folder), str(first), str(n_writes)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def test_two_processes_write_and_a_third_reads_without_losing_a_row(tmp_path: Path) -> None:
    """Every row of two concurrent writers arrives once; a reader meanwhile sees whole versions only."""
    reader = EmbeddingStore(tmp_path, "f00d", 2)
    writers = [start_writer(tmp_path, first, 25) for first in (100, 200)]
    seen = 0
    while any(writer.poll() is None for writer in writers):
        table = reader.read()
        assert len(set(table.task_ids.tolist())) == len(table.task_ids) >= seen
        seen = len(table.task_ids)
    for writer in writers:
        writer.communicate()
        assert writer.returncode == 0
    assert reader.read().task_ids.tolist() == [0, *range(100, 125), *range(200, 225)]
    assert not list(tmp_path.glob("*.corrupt*"))


def test_a_writer_killed_midway_leaves_a_readable_dataset(tmp_path: Path) -> None:
    """After kill -9 at any moment, all that was reported written is there, and the next writer gets its turn."""
    for round_ in range(3):
        with start_writer(tmp_path, 1000 * (round_ + 1), 1000) as writer:
            assert writer.stdout is not None
            for _ in range(3 + 4 * round_):
                last = int(writer.stdout.readline())
            writer.send_signal(signal.SIGKILL)
        store = EmbeddingStore(tmp_path, "f00d", 2)
        table = store.read()
        assert set(range(1000 * (round_ + 1), last + 1)) <= set(table.task_ids.tolist())
        store.upsert([row(1)])
    assert not list(tmp_path.glob("*.corrupt*"))


def test_threads_share_one_store(store: EmbeddingStore) -> None:
    """Threads writing and reading through one object lose nothing and raise nothing."""
    errors: list[BaseException] = []

    def work(first: int) -> None:
        try:
            for n in range(first, first + 8):
                store.upsert([row(n)])
                assert n in store.read().references
                assert store.take([n]).get(n) is not None
        except BaseException as exc:
            errors.append(exc)

    threads = [threading.Thread(target=work, args=(100 * k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(store.read().task_ids) == 32


def test_a_forked_process_is_told_instead_of_hanging(store: EmbeddingStore) -> None:
    """Lance's threads do not survive a fork; a store already used says so."""
    store.upsert([row(1)])
    pid_seen_by_the_store, store._pid = store._pid, os.getpid() + 1
    assert pid_seen_by_the_store == os.getpid()
    with pytest.raises(BackendError, match="forked"):
        store.read()


def test_a_discarded_store_begins_empty(store: EmbeddingStore, tmp_path: Path) -> None:
    """Everything goes, in memory too and for other readers; what is written afterwards is all there is."""
    store.upsert([row(1), row(2)])
    other = EmbeddingStore(tmp_path, "f00d", 2)
    assert len(other.read().task_ids) == len(store.read().task_ids) == 2
    store.discard()
    assert not store.path.exists()
    assert len(store.read().task_ids) == len(other.read().task_ids) == 0
    store.upsert([row(3)])
    assert store.read().task_ids.tolist() == other.read().task_ids.tolist() == [3]
    EmbeddingStore(tmp_path, "beef", 0).discard()


# -- at an address of an object store ---------------------------------------------------------------------------------


def test_at_an_address_it_is_the_same_store(store_address: Address) -> None:
    """Empty, written, replaced, read in part, removed, discarded: as on disk."""
    store = EmbeddingStore(store_address, "f00d", 2)
    assert store.version == 0
    assert store.read().task_ids.tolist() == []
    store.remove([1])
    store.upsert([row(9, 1, 2), failed(5, transient=True), row(3, 3, 4)])
    store.upsert([row(9, 7, 8), row(5, 5, 6)])
    store.remove([3, 4])
    other = EmbeddingStore(store_address, "f00d", 2)
    assert_same(store.read(), other.read())
    assert other.read().task_ids.tolist() == [5, 9]
    assert other.read().embeddings.tolist() == [[5, 6], [7, 8]]
    assert other.read().failures == {}
    for _ in range(3):
        assert other.take([9, 1]).embeddings.tolist() == [[7, 8]]
    store.discard()
    assert other.read().task_ids.tolist() == []
    store.upsert([row(1)])
    assert other.read().task_ids.tolist() == [1]


def test_own_writes_at_an_address_are_merged_in_memory_unless_others_wrote(store_address: Address) -> None:
    """The table in memory is never short of what another process put between two writes of ours."""
    one, other = (EmbeddingStore(store_address, "f00d", 2) for _ in range(2))
    one.upsert([row(1)])
    assert one.read().task_ids.tolist() == [1]
    one.upsert([row(2)])
    assert one._unmerged.keys() == {2}
    assert one.read().task_ids.tolist() == [1, 2]
    other.upsert([row(3)])
    one.upsert([row(4)])
    assert one._unmerged == {}
    assert one.read().task_ids.tolist() == [1, 2, 3, 4]


def test_three_processes_write_to_one_address_at_once_and_no_row_is_lost(store_address: Address) -> None:
    """Nobody holds a lock: who is not first begins again; every row arrives, and each task is read once."""
    writers = [start_writer(store_address, first, 6) for first in (100, 200, 300)]
    reader = EmbeddingStore(store_address, "f00d", 2)
    while any(writer.poll() is None for writer in writers):
        table = reader.read()
        assert len(set(table.task_ids.tolist())) == len(table.task_ids)
    for writer in writers:
        writer.communicate()
        assert writer.returncode == 0
    table = reader.read()
    assert table.task_ids.tolist() == [0, *range(100, 106), *range(200, 206), *range(300, 306)]
    assert float(table.embeddings[0][0]) in {105, 205, 305}


def test_a_task_inserted_twice_is_read_once_and_can_be_replaced_and_removed(store_address: Address) -> None:
    """What two hosts that embed the same new task at the same moment may leave; the later row counts."""
    import lance

    store = EmbeddingStore(store_address, "f00d", 2)
    store.upsert([row(1, 1, 1), row(2, 2, 2)])
    again = store._arrow_table([store._checked(row(1, 3, 3)), store._checked(failed(2))])
    lance.write_dataset(again, f"{store.path}/{store._dataset_name}", mode="append", **store._options)
    table = store.read()
    assert table.task_ids.tolist() == [1]
    assert table.embeddings.tolist() == [[3, 3]]
    assert table.failures == {2: ImageFailure("HTTP 404", False)}
    store.upsert([row(1, 4, 4)])
    assert EmbeddingStore(store_address, "f00d", 2).read().embeddings.tolist() == [[4, 4]]
    store.remove([1, 2])
    assert EmbeddingStore(store_address, "f00d", 2).read().references == {}


def test_a_store_out_of_reach_is_an_error_and_nothing_is_set_aside(
    store_address: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One sentence; once it is back everything is as it was."""
    store = EmbeddingStore(store_address, "f00d", 2)
    store.upsert([row(1)])
    dead = {"storage_options": {"allow_http": "true", "aws_endpoint": "http://127.0.0.1:9", "client_max_retries": "0"}}
    with monkeypatch.context() as patch:
        patch.setattr(store, "_options", dead)
        with pytest.raises(BackendError, match=r"s3://.*f00d.lance cannot be read: .*; check the address in DATA_DIR"):
            store.read()
        with pytest.raises(BackendError, match=r"s3://.*f00d.lance cannot be written: "):
            store.upsert([row(2)])
    assert store.read().task_ids.tolist() == [1]


def test_of_two_who_begin_a_store_at_once_both_are_in_it(
    store_address: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lance itself would let the second overwrite the first; of the two datasets made, one is left."""
    one, other = (EmbeddingStore(store_address, "f00d", 2) for _ in range(2))
    create = other._create

    def create_late(table: object) -> None:
        one.upsert([row(1)])  # between the other's look, that saw nothing, and its writing
        create(table)

    monkeypatch.setattr(other, "_create", create_late)
    other.upsert([row(2)])
    assert one.read().task_ids.tolist() == [1, 2]
    datasets = {name[0] for name in one._folder._below("f00d.lance")}  # type: ignore[attr-defined]
    assert datasets == {"dataset.txt", one._dataset_name}


def test_a_store_discarded_by_another_process_is_begun_again(store_address: Address) -> None:
    """Whoever still knows the old dataset looks where the store is now."""
    one, other = (EmbeddingStore(store_address, "f00d", 2) for _ in range(2))
    one.upsert([row(1)])
    assert other.read().task_ids.tolist() == [1]
    one.discard()
    assert other.read().task_ids.tolist() == []
    one.upsert([row(2)])
    assert other.read().task_ids.tolist() == [2]
    one.discard()
    one.upsert([row(3)])
    other.upsert([row(4)])
    assert one.read().task_ids.tolist() == other.read().task_ids.tolist() == [3, 4]
