"""Which pre-labels are shown to people: those that are right as often as PRELABEL_FROM wants, by the model's own word.

A person who confirms what is right needs one key for it. One who sees what is wrong has to correct it, or, worse, lets
it stand: labels drift towards what was shown. The images that come next are those that the model doubts, so its
accuracy on all images says little about them: each is judged by its own confidence, which cross-validation has
calibrated. The score, by which Label Studio orders, every prediction carries. `benchmarks.prelabels` has the figures.
"""

from __future__ import annotations

from backend.schema import VersionRecord


def least_confidence(record: VersionRecord, prelabel_from: float) -> float | None:
    """The confidence (0..1) from which predictions of a new version carry a result; None: none of them does.

    `record` has the evaluation that is known when it is made, which is that of the version before. Until labels could
    be held out, nothing is known of how often a confidence is right. With `prelabel_from` 0 all carry a result, with 1
    none.
    """
    if prelabel_from <= 0:
        return 0.0
    if prelabel_from >= 1 or record.cross_validated_accuracy is None:
        return None
    return prelabel_from


def is_shown(record: VersionRecord, confidence: float) -> bool:
    """Whether a prediction of the record's version with this confidence, its top probability, carries a result."""
    return record.prelabels and confidence >= record.prelabels_from


def described(record: VersionRecord, prelabel_from: float) -> str:
    """Where the record's version shows pre-labels, and why nowhere else, as a sentence."""
    if record.kind == "seed":
        return "nothing to show yet: no model before labels of two classes"
    if record.prelabels and record.prelabels_from <= 0:
        later = "" if prelabel_from <= 0 else "; PRELABEL_FROM counts from the next version on"
        return f"shown on every image{later}"
    if record.prelabels:
        n_shown = "" if record.n_prelabels is None else f", {record.n_prelabels} of the next {len(record.window)}"
        return (
            f"shown on images of which the model is at least {record.prelabels_from:.0%} sure (PRELABEL_FROM){n_shown}"
        )
    if prelabel_from >= 1:
        return "never shown (PRELABEL_FROM=1)"
    if least_confidence(record, prelabel_from) is not None:
        return "shown from the next version on"
    return "not shown yet: how often it is right when it is sure is known with two labels each of two classes"
