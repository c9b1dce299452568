"""Whether what the model thinks is shown to people: a pre-label that is mostly wrong costs more than none.

A person who confirms what is mostly right needs one key for it. One who sees what is mostly wrong has to correct it,
or, worse, lets it stand: labels drift towards what was shown. So the predictions of a version carry a `result` from a
measured accuracy on. Their score, by which Label Studio orders, they carry always.
"""

from __future__ import annotations

from backend.learning.intervals import wilson_interval
from backend.schema import VersionRecord

SLACK = 0.05
"""Pre-labels that are shown stay until the accuracy is this much below PRELABEL_FROM: they do not come and go."""


def proven_accuracy(record: VersionRecord) -> float | None:
    """The accuracy (0..1) that the record's evaluation leaves no doubt about; None while there is none.

    The lower end of the 95 % interval: of the accuracy measured on a validation split, or, without one, of the
    cross-validated one. That is lower than the accuracy on all images, for it is of images that were asked for because
    they are hard; but so are those on which the pre-labels will be shown.
    """
    if record.accuracy is None:
        return None
    if record.accuracy_interval:
        return float(record.accuracy_interval[0])
    n_labels = record.evaluated_labels
    return wilson_interval(min(round(record.accuracy * n_labels), n_labels), n_labels)[0] if n_labels else None


def are_shown(record: VersionRecord, previous: VersionRecord | None, prelabel_from: float) -> bool:
    """Whether the predictions of a new version carry a result.

    `record` has the evaluation that is known when it is made, which is that of the version before; `previous` is that
    version. With `prelabel_from` 0 they always do, with 1 never.
    """
    if prelabel_from <= 0:
        return True
    proven = proven_accuracy(record)
    if proven is None:
        return False
    was_shown = previous is not None and previous.prelabels and previous.kind == "model"
    return proven >= prelabel_from - (SLACK if was_shown and prelabel_from < 1 else 0.0)


def described(record: VersionRecord, prelabel_from: float) -> str:
    """Why the record's version shows pre-labels or not, as a sentence."""
    if record.kind == "seed":
        return "nothing to show yet: no model before labels of two classes"
    if prelabel_from <= 0:
        return "shown whatever the accuracy (PRELABEL_FROM=0)" if record.prelabels else "shown from the next version on"
    proven = proven_accuracy(record)
    known = "the accuracy is not known yet" if proven is None else f"the accuracy is at least {proven:.2f}"
    if record.prelabels:
        return f"shown: {known}, PRELABEL_FROM is {prelabel_from:g}"
    if proven is not None and proven >= prelabel_from:
        return f"shown from the next version on: {known}, PRELABEL_FROM is {prelabel_from:g}"
    return f"not shown: {known}, they are from {prelabel_from:g} on (PRELABEL_FROM)"
