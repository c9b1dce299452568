"""The arithmetic of the benchmark beside label-studio-ml: which labels were lost, and how long the others took."""

from __future__ import annotations

import itertools
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import peer, stack


def test_a_label_takes_until_the_first_version_that_has_it() -> None:
    """Labels 21, 22, 23 at 10, 11, 12 s; versions of 22 at 14 s and of 23 at 20 s, listed in any order."""
    versions = [(20.0, 23), (9.0, 20), (14.0, 22)]
    assert peer.delays_to_version([10.0, 11.0, 12.0], [21, 22, 23], versions) == [4.0, 3.0, 8.0]


def test_a_label_in_no_version_has_no_delay() -> None:
    """It is lost, and does not count as fast."""
    assert peer.delays_to_version([10.0, 11.0], [21, 22], [(12.0, 21)]) == [2.0, None]
    assert peer.delays_to_version([10.0], [21], []) == [None]


def test_a_version_of_more_labels_has_the_earlier_ones() -> None:
    """A later version may have come first for a label: that of 30 counts for the 21st."""
    assert peer.delays_to_version([10.0], [21], [(13.0, 30), (15.0, 21)]) == [3.0]


def test_answers_come_ever_faster() -> None:
    """Pauses of 2, 1.15 and 0.3 s."""
    due = peer.ever_faster(4, 2.0, 0.3)
    assert [later - sooner for sooner, later in itertools.pairwise(due)] == pytest.approx([2.0, 1.15, 0.3])
    assert due[0] == 0


def test_the_worker_is_killed_while_answers_come_and_after_the_last() -> None:
    """And both systems meet the same situations, the peer never first."""
    found = {situation["name"]: situation for situation in peer.situations(quick=False)}
    amid, last = found["killed amid answers"], found[peer.ON_THE_LAST]
    assert amid["due"][0] < amid["killed_at"] < amid["due"][-1]
    assert last["killed_at"] > last["due"][-1]
    for situation in found.values():
        assert situation["due"] == sorted(situation["due"])
        assert situation["systems"][0] == peer.OURS
        assert situation["systems"][-1] == peer.PEER
    assert len(found["burst"]["due"]) == 200
    assert all(situation["killed_at"] is None for situation in peer.situations(quick=True))


def test_a_killed_worker_runs_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process; the first is gone with its children, also one in a group of its own; stopping ends both."""
    monkeypatch.setattr(peer, "RESTART_S", 0.0)
    started: list[subprocess.Popen[bytes]] = []
    program = "import subprocess, time; subprocess.Popen(['sleep', '60'], process_group=0); time.sleep(60)"

    def start():
        context = stack.running([sys.executable, "-c", program], tmp_path / "log")
        process = context.__enter__()
        started.append(process)
        # Ended by the context that the worker is given.
        return _Entered(context, process)

    worker = peer.Worker(start)
    deadline = time.monotonic() + 20
    while not (family := stack.children(started[0].pid)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert family
    worker.kill_and_restart()
    assert len(started) == 2
    assert started[0].returncode == -9
    # A signal is sent, not waited for: on a loaded machine a grandchild may take a moment to end.
    while any(_runs(pid) for pid in family) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(_runs(pid) for pid in family)
    assert started[1].poll() is None
    worker.stop()
    assert started[1].poll() is not None


class _Entered:
    def __init__(self, context, process) -> None:
        self._context, self._process = context, process

    def __enter__(self):
        return self._process

    def __exit__(self, *error) -> None:
        self._context.__exit__(*error)


def _runs(pid: int) -> bool:
    """Whether there is such a process, other than one that is dead and waits to be reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_labels_of_our_versions_are_read_from_their_names() -> None:
    """The name that the registry gives is what the watcher takes apart."""
    assert peer.labels_in("v0007-12labels-20260101T000000Z") == 12
