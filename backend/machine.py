"""How much of the machine this process may use."""

from __future__ import annotations

import gc
import os
from pathlib import Path

NICENESS = 5
"""How far the worker stands behind what people wait for."""

LEAST = 19
"""How far what nobody waits for stands behind everything else."""

_CGROUP_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def n_usable_cores(quota_file: Path = _CGROUP_QUOTA) -> int:
    """Return the processor cores this process may use, at least 1.

    Cores it is bound to (taskset, a container's cpuset), and no more than the share of processor time that a container
    may have (cpu.max of Linux's control groups, version 2: two numbers of microseconds, or `max`), rounded down.
    """
    n_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota_us, period_us = (int(number) for number in quota_file.read_text().split())
    except (OSError, ValueError):  # no such limit
        return n_cores
    return max(1, min(n_cores, quota_us // period_us)) if period_us > 0 else n_cores


def give_way(niceness: int = NICENESS) -> None:
    """Let this process, and those it starts, go behind others that want the processor at the same time.

    Embedding and evaluation take all cores there are; a web service or Label Studio on the same machine has somebody
    waiting. Nothing changes while nobody else wants to compute. A process that is behind already stays where it is.
    """
    if hasattr(os, "setpriority") and os.getpriority(os.PRIO_PROCESS, 0) < niceness:
        os.setpriority(os.PRIO_PROCESS, 0, niceness)


def release_memory() -> None:
    """Give memory that was freed back to the system, where the C library is glibc and keeps it otherwise."""
    import ctypes

    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def settle_memory() -> None:
    """Take all that is loaded by now out of Python's search for objects that nobody refers to any more.

    The search looks at every object, and nothing else goes on meanwhile: with torch loaded half a million of them,
    0.3 s, in the middle of some label or prediction. To be called once all modules are loaded, before there is work;
    what is garbage at that moment is freed, what becomes so later of the objects of that moment is kept.
    """
    gc.collect()
    gc.freeze()


def limit_threads(n_threads: int) -> None:
    """Let no thread pool of the numeric libraries loaded so far have more than so many threads; smaller ones stay.

    They count the machine's cores and know nothing of a container's share of processor time: with 64 threads for the
    time of two cores, each waits for others that are not let run.
    """
    import torch
    from threadpoolctl import ThreadpoolController

    if torch.get_num_threads() > n_threads:
        torch.set_num_threads(n_threads)
    for pool in ThreadpoolController().lib_controllers:
        if pool.num_threads > n_threads:
            pool.set_num_threads(n_threads)
