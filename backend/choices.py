"""The kinds of label known: `Choices` on one `Image`, of which an image has one (`choice="single"`) or several
(`choice="multiple"`).

With several, what is submitted is the whole answer: labels that are not chosen are not on the image, and an annotation
without any choice says that none of them is.

Everything that depends on the kind of label stands here: which labeling configs are understood, what annotations mean
for training, and what a prediction looks like. Another kind of label is another module like this one.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from backend.errors import LabelingConfigError
from backend.labels import Label, names_of
from backend.schema import AnnotatedTask, Annotation, SeveralAnswers, TrainingLabels

logger = logging.getLogger(__name__)

_EXPECTED = (
    'this backend learns from exactly one <Choices>, choice="single" or "multiple", with <Choice> values on one <Image>'
)


Ballot = tuple[Annotation, Label]
"""An annotation and what it says."""


@dataclass(frozen=True)
class ChoicesConfig:
    """What the labeling config says: the names of its two tags, the task field with the image, the labels offered, and
    whether an image may have several of them.
    """

    from_name: str
    to_name: str
    image_field: str
    labels: tuple[str, ...]
    several: bool = False


def parse_labeling_config(label_config: str) -> ChoicesConfig:
    """The choices of a labeling config (XML, as Label Studio stores it).

    Other tags (headers, text areas, further controls that are not choices on an image) may stand beside it. Raises
    LabelingConfigError that says what was found and what is expected.
    """
    from label_studio_sdk.label_interface.interface import LabelInterface

    if not isinstance(label_config, str) or not label_config.strip():
        raise LabelingConfigError(f"the labeling config is empty; {_EXPECTED}")
    if "<!DOCTYPE" in label_config or "<!ENTITY" in label_config:  # of no use there but to make a small text large
        raise LabelingConfigError(f"the labeling config has a document type declaration; leave it out; {_EXPECTED}")
    sdk_logger = logging.getLogger("label_studio_sdk.label_interface")
    try:
        interface = LabelInterface(label_config)
        controls, objects = list(interface.controls), list(interface.objects)
    except Exception as exc:  # the SDK raises a dozen types of its own, lxml's and pydantic's
        sdk_logger.debug("labeling config not parsed", exc_info=exc)
        raise LabelingConfigError(f"the labeling config cannot be parsed ({_first_line(exc)}); {_EXPECTED}") from exc
    images = {item.name: item for item in objects if item.tag == "Image"}
    candidates = [item for item in controls if item.tag == "Choices" and any(name in images for name in item.to_name)]
    if len(candidates) != 1:
        found = ", ".join(f"<{item.tag}>" for item in [*objects, *controls]) or "no control tag"
        count = f"the labeling config has {len(candidates)} <Choices> on an image ({found})"
        raise LabelingConfigError(f"{count}; {_EXPECTED}")
    control = candidates[0]
    mode = control.attr.get("choice", "single")
    if mode not in ("single", "single-radio", "multiple"):
        raise LabelingConfigError(f'<Choices name="{control.name}"> has choice="{mode}"; {_EXPECTED}')
    if control.attr.get("perRegion", "false").lower() == "true":
        raise LabelingConfigError(f'<Choices name="{control.name}"> is per region; {_EXPECTED}')
    labels = tuple(control.labels or ())
    needed = 1 if mode == "multiple" else 2  # one that an image has or has not says something
    if len(labels) < needed:
        raise LabelingConfigError(
            f'<Choices name="{control.name}"> offers {len(labels)} fixed labels, at least {needed} are needed; '
            f"{_EXPECTED}"
        )
    to_name = next(name for name in control.to_name if name in images)
    image_field = (images[to_name].attr.get("value") or "").lstrip("$")
    if not image_field:
        raise LabelingConfigError(f'<Image name="{to_name}"> has no value="$field"; {_EXPECTED}')
    return ChoicesConfig(control.name, to_name, image_field, labels, mode == "multiple")


def read_labels(config: ChoicesConfig, annotated_tasks: Iterable[AnnotatedTask]) -> TrainingLabels:
    """What the annotations mean for training.

    A task with several annotations gets one label: that of its ground truth if there is one, else the most frequent,
    and among equals the one given last. Where an image may have several labels, it has each that most say it has, or of
    equal numbers the one who answered last. Of each person the last annotation counts; what several people answered is
    kept in `several`.
    """
    labels: dict[int, Label] = {}
    several: dict[int, SeveralAnswers] = {}
    answered: set[int] = set()
    skipped: set[int] = set()
    ignored: dict[int, str] = {}
    for item in annotated_tasks:
        submitted = [annotation for annotation in item.annotations if not annotation.was_cancelled]
        if not submitted:
            if item.annotations:
                skipped.add(item.task.id)
            continue
        answered.add(item.task.id)
        votes = [(annotation, _label_of(config, annotation)) for annotation in submitted]
        known = [
            (annotation, label)
            for annotation, label in votes
            if label is not None and set(names_of(label)) <= set(config.labels)
        ]
        if known:
            ballots = _ballots(known)
            labels[item.task.id] = _set_consensus(ballots) if config.several else _consensus(ballots)
            if len(ballots) > 1:
                several[item.task.id] = _several(ballots)
        else:
            ignored[item.task.id] = _why_ignored(config, votes)
    return TrainingLabels(labels, frozenset(answered), frozenset(skipped), ignored, several=several)


def agreed_tasks(config: ChoicesConfig, annotated_tasks: Iterable[AnnotatedTask], labels: TrainingLabels) -> set[int]:
    """The tasks whose label at least two submitted annotations give: a second look came to the same."""
    return {
        item.task.id
        for item in annotated_tasks
        if item.task.id in labels.labels
        and [_label_of(config, annotation) for annotation in item.annotations if not annotation.was_cancelled].count(
            labels.labels[item.task.id]
        )
        >= 2
    }


def prediction_result(
    config: ChoicesConfig, label: Label, confidence: float, probabilities: Mapping[str, float]
) -> list[dict[str, Any]]:
    """The `result` of a Label Studio prediction: a label, how sure it is, and how likely every class is.

    Labels of a set stand in the order of the labeling config. None of them is what Label Studio makes of it: nothing.
    """
    names = [name for name in config.labels if name in names_of(label)] if config.several else list(names_of(label))
    if not names:
        return []
    return [
        {
            "from_name": config.from_name,
            "to_name": config.to_name,
            "type": "choices",
            "value": {"choices": names},
            "score": round(float(confidence), 6),
            "meta": {"confidence": {name: round(float(value), 6) for name, value in probabilities.items()}},
        }
    ]


def _label_of(config: ChoicesConfig, annotation: Annotation) -> Label | None:
    """What an annotation says; None where it says nothing that could be meant."""
    found = [
        _texts(region.get("value"))
        for region in annotation.result
        if region.get("from_name") == config.from_name and region.get("type") == "choices"
    ]
    if not config.several:
        return next((choices[0] for choices in found if choices is not None and len(choices) == 1), None)
    if any(choices is None for choices in found):
        return None
    return tuple(sorted({name for choices in found for name in choices or ()}))


def _texts(value: Any) -> list[str] | None:
    choices = value.get("choices") if isinstance(value, Mapping) else None
    is_list = isinstance(choices, Sequence) and not isinstance(choices, str)
    return [str(choice) for choice in choices] if is_list and choices is not None else None


def _ballots(known: Sequence[Ballot]) -> Sequence[Ballot]:
    """Of each person the last annotation, in the order they were given, and all that are ground truth."""
    if len(known) < 2:
        return known
    ordered = sorted(known, key=_by_time)
    last = {annotation.completed_by: annotation.id for annotation, _ in ordered if not annotation.ground_truth}
    return [
        (annotation, label)
        for annotation, label in ordered
        if annotation.ground_truth or annotation.completed_by is None or last[annotation.completed_by] == annotation.id
    ]


def _several(ballots: Sequence[Ballot]) -> SeveralAnswers:
    answers = [(annotation.completed_by, label) for annotation, label in ballots]
    return SeveralAnswers(answers, any(annotation.ground_truth for annotation, _ in ballots))


def _consensus(known: Sequence[Ballot]) -> Label:
    ballots = _decisive(known)
    counts = Counter(label for _, label in ballots)
    latest = {label: (annotation.updated_at, annotation.id) for annotation, label in sorted(ballots, key=_by_time)}
    return max(counts, key=lambda label: (counts[label], latest[label]))


def _set_consensus(known: Sequence[Ballot]) -> Label:
    ballots = sorted(_decisive(known), key=_by_time)
    counts = Counter(name for _, label in ballots for name in label)
    last = ballots[-1][1]
    return tuple(sorted(name for name, n in counts.items() if 2 * n > len(ballots) - (name in last)))


def _decisive(known: Sequence[Ballot]) -> Sequence[Ballot]:
    """Those that are ground truth if any is, else all."""
    return [ballot for ballot in known if ballot[0].ground_truth] or known


def _by_time(ballot: Ballot) -> tuple[str, int]:
    return ballot[0].updated_at, ballot[0].id


def _why_ignored(config: ChoicesConfig, votes: Sequence[tuple[Annotation, Label | None]]) -> str:
    annotation, label = votes[-1]
    if label is None:
        wanted = "a region without a list of choices" if config.several else "no single choice"
        return f"annotation {annotation.id} holds {wanted} for {config.from_name!r}"
    offered = ", ".join(repr(name) for name in config.labels)
    (unknown, *_) = [name for name in names_of(label) if name not in config.labels]
    return f"annotation {annotation.id} has label {unknown!r}; the labeling config offers {offered}"


def _first_line(exc: Exception) -> str:
    return (str(exc).strip().splitlines() or [type(exc).__name__])[0][:200]
