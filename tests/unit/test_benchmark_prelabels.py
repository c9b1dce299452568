"""The gates that the benchmark of pre-labels compares, on looks whose answer a reader derives."""

from __future__ import annotations

from dataclasses import replace

from fakes import World, add_cats_and_dogs, retrain

from backend.loop.prelabels import is_shown, least_confidence
from benchmarks.prelabels import SLACK, Look, by_accuracy, by_confidence, rows


def look(labels: int, bound: float | None, *following: tuple[float, int]) -> Look:
    """A look with this lower end of the cross-validated accuracy."""
    return Look(labels, None if bound is None else (0.9, bound), None, 0.9, 0.9, following)


RUN = [
    look(2, None, (0.99, 1), (0.4, 0)),
    look(20, 0.7, (0.85, 1), (0.8, 0)),
    look(40, 0.81, (0.5, 1), (0.6, 0)),
    look(50, 0.8 - SLACK, (0.9, 1)),
    look(60, 0.74, (0.9, 1)),
]


def test_a_gate_by_accuracy_opens_for_all_and_closes_a_little_below() -> None:
    """Shown whatever the confidence of the image, and not before anything is measured."""
    shown = list(by_accuracy(RUN, 0.8, measured="cross_validated"))
    assert shown == [[False, False], [False, False], [True, True], [True], [False]]
    assert not any(any(flags) for flags in by_accuracy(RUN, 0.8, measured="validated"))


def test_the_gate_by_confidence_is_the_service_s(world: World) -> None:
    """For every image of every look both say the same."""
    add_cats_and_dogs(world)
    record = retrain(world)
    for known, flags in zip(RUN, by_confidence(RUN, 0.8), strict=True):
        judged = known.cross_validated[0] if known.cross_validated else None
        least = least_confidence(replace(record, cross_validated_accuracy=judged), 0.8)
        version = replace(record, prelabels=least is not None, prelabels_from=least or 0.0)
        assert [is_shown(version, confidence) for confidence, _ in known.next] == list(flags)


def test_rows_count_what_came_next_what_was_shown_and_what_was_right() -> None:
    """Eight images came next; four of them are sure enough after the first evaluation, and one of the four is wrong."""
    (row,) = [
        row
        for row in rows("few", [RUN])
        if (row["gate"], row["from"], row["labels"]) == ("confidence of the image", 0.8, [2, 300])
    ]
    assert (row["n_next"], row["n_shown"], row["n_right"], row["opens_at"]) == (8, 4, 3, [20])
