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
