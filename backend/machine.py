"""How much of the machine this process may use."""

from __future__ import annotations

import os
from pathlib import Path

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
