"""Cores: those the process is bound to, and no more than the time a container may have."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from backend.machine import n_usable_cores


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
