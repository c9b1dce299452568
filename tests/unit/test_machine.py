"""Cores: those the process is bound to, and no more than the time a container may have."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from backend.machine import NICENESS, n_usable_cores


@pytest.fixture
def six_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the process might run on cores 2 to 7."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(2, 8)), raising=False)


@pytest.mark.usefixtures("six_cores")
@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("max 100000\n", 6),  # no limit
        ("400000 100000\n", 4),  # four cores' time
        ("250000 100000\n", 2),  # two and a half: rounded down
        ("50000 100000\n", 1),  # half a core: still one
        ("900000 100000\n", 6),  # more time than cores
        ("", 6),  # not what Linux writes
        ("100000 0\n", 6),
    ],
)
def test_cores_and_a_container_s_time(tmp_path: Path, content: str, expected: int) -> None:
    """cpu.max holds the microseconds of processor time in each period of so many microseconds."""
    file = tmp_path / "cpu.max"
    file.write_text(content)
    assert n_usable_cores(file) == expected


@pytest.mark.usefixtures("six_cores")
def test_outside_a_container_the_cores_count(tmp_path: Path) -> None:
    """No file, no limit."""
    assert n_usable_cores(tmp_path / "none") == 6


def test_a_system_without_affinities_says_how_many_cores_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """macOS has no sched_getaffinity."""
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 10)
    assert n_usable_cores(tmp_path / "none") == 10


POOLS = """
import sys, json
import numpy, torch
from threadpoolctl import threadpool_info
from backend.machine import limit_threads
limit_threads(int(sys.argv[1]))
print(json.dumps([torch.get_num_threads(), *(pool["num_threads"] for pool in threadpool_info())]))
"""


@pytest.mark.parametrize(("of_its_own", "limit", "expected"), [("2", 1, 1), ("2", 8, 2), ("1", 2, 1)])
def test_thread_pools_get_no_more_threads_than_the_limit(of_its_own: str, limit: int, expected: int) -> None:
    """A real process with numpy and torch: pools are made smaller, never larger than somebody wanted them."""
    environment = {**os.environ, "OMP_NUM_THREADS": of_its_own, "OPENBLAS_NUM_THREADS": of_its_own}
    command = [sys.executable, "-W", "ignore", "-c", POOLS, str(limit)]
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=120)
    assert max(json.loads(answer.stdout)) == expected


PRIORITY = """
import os, threading
from backend.machine import give_way
os.nice(int(__import__("sys").argv[1]))
give_way()
give_way()
thread = threading.Thread(target=lambda: print(os.getpriority(os.PRIO_PROCESS, threading.get_native_id())))
thread.start()
thread.join()
"""


@pytest.mark.parametrize("before", [0, NICENESS + 1])
def test_a_process_goes_behind_others_and_its_threads_with_it(before: int) -> None:
    """Once, and never in front of where it was: these tests may run behind others themselves (nice)."""
    command = [sys.executable, "-c", PRIORITY, str(before)]
    answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert int(answer.stdout) == max(os.getpriority(os.PRIO_PROCESS, 0) + before, NICENESS)


MEMORY = """
import numpy
from backend.machine import release_memory

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

pieces = [numpy.ones(8_000) for _ in range(2_000)]  # 128 MB that no piece of is mapped by itself
last = pieces[-1]
del pieces
before = resident()
release_memory()
print(before - resident())
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="only Linux tells a process' memory so")
def test_freed_memory_goes_back_to_the_system() -> None:
    """What lies below a piece that is still in use, too."""
    answer = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True, timeout=60)
    assert int(answer.stdout) > 100e6


SETTLED = """
import gc, weakref
import label_studio_sdk.label_interface.interface
from backend.machine import settle_memory

class Node:
    pass

def forgotten():
    node = Node()
    node.itself = node
    return weakref.ref(node)

gc.disable()
before, after = [forgotten() for _ in range(9)], []
settle_memory()
looked_at = len(gc.get_objects())
after = [forgotten() for _ in range(9)]
gc.collect()
print(looked_at, gc.get_freeze_count(), sum(ref() is not None for ref in before + after))
"""


def test_what_is_loaded_is_no_longer_searched_for_garbage() -> None:
    """Garbage of before is gone, garbage of afterwards is found, and there is hardly anything to look at."""
    answer = subprocess.run([sys.executable, "-c", SETTLED], capture_output=True, text=True, check=True, timeout=60)
    looked_at, frozen, left = map(int, answer.stdout.split())
    assert looked_at < 1_000 < 50_000 < frozen
    assert left == 0
