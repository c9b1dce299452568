"""The window: who comes first, who comes last, and that Label Studio's order is exactly ours."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from backend.loop.queue import SEED_STEP, TIE_STEP, build_window, seed_queue_score

NOBODY: frozenset[int] = frozenset()


def ids(window: list[tuple[int, float]]) -> list[int]:
    return [task_id for task_id, _ in window]


def test_before_the_first_model_the_seed_comes_in_rank_order() -> None:
    """Three seed tasks, window of two: the first two, ranks as scores."""
    window = build_window(waiting_seed=[9, 4, 7], queue_scores={}, skipped=NOBODY, size=2)
    assert window == [(9, seed_queue_score(0)), (4, seed_queue_score(1))]
    assert seed_queue_score(1) == SEED_STEP


def test_the_rest_of_the_seed_comes_before_the_model_s_choice() -> None:
    """Task 5 waits from the seed although the model finds it dull; then the pool by queue score."""
    window = build_window(waiting_seed=[5], queue_scores={1: 0.5, 2: 0.3, 5: 0.9}, skipped=NOBODY, size=9)
    assert window == [(5, 0.0), (2, 0.3), (1, 0.5)]


def test_skipped_tasks_come_when_nothing_else_is_left() -> None:
    """Task 2 has the best score but somebody skipped it: last, and still above all others in score."""
    window = build_window(waiting_seed=[], queue_scores={1: 0.5, 2: 0.1, 3: 0.7}, skipped=frozenset({2}), size=3)
    assert ids(window) == [1, 3, 2]
    assert window[2][1] > 0.7
    assert ids(build_window(waiting_seed=[], queue_scores={1: 0.5, 2: 0.1}, skipped=frozenset({2}), size=1)) == [1]


def test_a_seed_of_skipped_tasks_is_still_a_queue() -> None:
    """Everything was skipped, so the caller gives skipped tasks as the seed: they come in rank order."""
    window = build_window(waiting_seed=[2, 1], queue_scores={}, skipped=frozenset({1, 2}), size=3)
    assert ids(window) == [2, 1]


def test_the_strategy_s_order_wins_over_the_scores() -> None:
    """Ranked 3, 1, 2: 3 keeps its score, 1 would come before it and gets a hair more, 2 keeps its own."""
    scores = {1: 0.2, 2: 0.6, 3: 0.4, 4: 0.1, 5: 0.7}
    window = build_window(waiting_seed=[9], ranked=[3, 1, 2], queue_scores=scores, skipped=NOBODY, size=6)
    assert ids(window) == [9, 3, 1, 2, 4, 5]
    assert [score for _, score in window] == [0.0, 0.4, 0.4 + TIE_STEP, 0.6, 0.6 + TIE_STEP, 0.7]


def test_an_order_that_agrees_changes_no_score() -> None:
    """Ranked by queue score, as uncertainty sampling ranks: the same window as without a ranking."""
    scores = {1: 0.2, 2: 0.6, 3: 0.4}
    plain = build_window(waiting_seed=[], queue_scores=scores, skipped=NOBODY, size=3)
    assert build_window(waiting_seed=[], ranked=[1, 3], queue_scores=scores, skipped=NOBODY, size=3) == plain


def test_equal_scores_are_told_apart_by_task_id() -> None:
    """Label Studio would order equal scores as it likes; ours never are equal."""
    window = build_window(waiting_seed=[], queue_scores={3: 0.5, 1: 0.5, 2: 0.5}, skipped=NOBODY, size=3)
    assert ids(window) == [1, 2, 3]
    assert window[0][1] < window[1][1] < window[2][1]


def test_nothing_to_label_is_an_empty_window() -> None:
    """No pool, no window."""
    assert build_window(waiting_seed=[], queue_scores={}, skipped=frozenset({1}), size=5) == []


TASK_IDS = st.integers(1, 40)


@given(
    st.lists(TASK_IDS, unique=True, max_size=12),
    st.dictionaries(TASK_IDS, st.floats(0, 1) | st.sampled_from([0.0, 0.01, 0.5, 1.0]), max_size=25),
    st.frozensets(TASK_IDS, max_size=12),
    st.integers(1, 30),
    st.booleans(),
)
def test_any_window_is_ordered_and_of_the_right_size(
    seed: list[int], scores: dict[int, float], skipped: frozenset[int], size: int, has_model: bool
) -> None:
    """Scores ascend strictly; no task twice; as many as asked for or all; seeds, then pool, then skipped."""
    seed = [task_id for task_id in seed if task_id not in skipped]
    scores = {**scores, **dict.fromkeys(seed, 0.4)} if has_model else {}
    window = build_window(waiting_seed=seed, queue_scores=scores, skipped=skipped, size=size)
    values = [score for _, score in window]
    assert all(one < other for one, other in pairwise(values))
    everything = set(seed) | set(scores)
    assert len(window) == min(size, len(everything))
    assert set(ids(window)) <= everything
    assert len(set(ids(window))) == len(window)
    assert ids(window)[: len(seed)] == seed[:size]
    kinds = [2 if task_id in skipped else 0 if task_id in seed else 1 for task_id in ids(window)]
    assert kinds == sorted(kinds)
    pool = [scores[task_id] for task_id in ids(window) if task_id not in skipped and task_id not in seed]
    assert pool == sorted(pool)
