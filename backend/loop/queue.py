"""The window: the next tasks to label, in order, with the queue scores Label Studio sorts by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

SEED_STEP = 1e-6
"""Distance between the queue scores of seed tasks: all of them stay below every score that a model gives."""

TIE_STEP = 1e-9
"""Least distance between two scores of a window, so that the order served is the order chosen."""


def seed_queue_score(rank: int) -> float:
    """The queue score of the seed task with this rank (0 = first)."""
    return rank * SEED_STEP


def build_window(
    *,
    waiting_seed: Sequence[int],
    ranked: Sequence[int] = (),
    queue_scores: Mapping[int, float],
    skipped: frozenset[int],
    size: int,
) -> list[tuple[int, float]]:
    """Up to `size` (task id, queue score), strictly ascending in score, the first to be labeled first.

    The seed batch comes first, in rank order; then the `ranked` tasks in the order of the strategy that chose them;
    then the rest of the pool by queue score; tasks that somebody skipped only when nothing else is left. `queue_scores`
    maps pool tasks, the ranked ones among them, to 0..1, 0 = label first; it is empty before the first model. A task
    whose score would break the order gets the least that keeps it.
    """
    placed = {*waiting_seed, *ranked}
    rest = sorted(
        (task_id in skipped, queue_score, task_id)
        for task_id, queue_score in queue_scores.items()
        if task_id not in placed
    )
    ordered = [(task_id, seed_queue_score(rank)) for rank, task_id in enumerate(waiting_seed)]
    ordered += [(task_id, queue_scores[task_id]) for task_id in ranked]
    ordered += [(task_id, queue_score) for _, queue_score, task_id in rest]
    window: list[tuple[int, float]] = []
    for task_id, queue_score in ordered[:size]:
        floor = window[-1][1] + TIE_STEP if window else 0.0
        window.append((task_id, max(queue_score, floor)))
    return window
