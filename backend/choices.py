"""The one kind of label known so far: a single `Choices` on one `Image`.

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
from backend.schema import AnnotatedTask, Annotation, SeveralAnswers, TrainingLabels

logger = logging.getLogger(__name__)

_EXPECTED = 'this backend learns from exactly one <Choices choice="single"> with <Choice> values on one <Image>'


@dataclass(frozen=True)
class ChoicesConfig:
    """What the labeling config says: the names of its two tags, the task field with the image, the labels offered."""

    from_name: str
    to_name: str
    image_field: str
    labels: tuple[str, ...]


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
    if mode not in ("single", "single-radio"):
        raise LabelingConfigError(f'<Choices name="{control.name}"> has choice="{mode}"; {_EXPECTED}')
    if control.attr.get("perRegion", "false").lower() == "true":
        raise LabelingConfigError(f'<Choices name="{control.name}"> is per region; {_EXPECTED}')
    labels = tuple(control.labels or ())
    if len(labels) < 2:
        raise LabelingConfigError(
            f'<Choices name="{control.name}"> offers {len(labels)} fixed labels, at least two are needed; {_EXPECTED}'
        )
    to_name = next(name for name in control.to_name if name in images)
    image_field = (images[to_name].attr.get("value") or "").lstrip("$")
    if not image_field:
        raise LabelingConfigError(f'<Image name="{to_name}"> has no value="$field"; {_EXPECTED}')
    return ChoicesConfig(control.name, to_name, image_field, labels)


def read_labels(config: ChoicesConfig, annotated_tasks: Iterable[AnnotatedTask]) -> TrainingLabels:
    """What the annotations mean for training.

    A task with several annotations gets one label: that of its ground truth if there is one, else the most frequent,
    and among equals the one given last. Of each person the last annotation counts; what several people answered is kept
    in `several`.
    """
    labels: dict[int, str] = {}
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
        votes = [(annotation, _choice_of(config, annotation)) for annotation in submitted]
        known = [(annotation, label) for annotation, label in votes if label in config.labels]
        if known:
            ballots = _ballots(known)
            labels[item.task.id] = _consensus(ballots)
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
        and [_choice_of(config, annotation) for annotation in item.annotations if not annotation.was_cancelled].count(
            labels.labels[item.task.id]
        )
        >= 2
    }


def prediction_result(config: ChoicesConfig, probabilities: Mapping[str, float]) -> list[dict[str, Any]]:
    """The `result` of a Label Studio prediction: the likeliest label, its confidence and that of every class."""
    label = max(probabilities, key=lambda name: probabilities[name])
    confidence = {name: round(float(value), 6) for name, value in probabilities.items()}
    return [
        {
            "from_name": config.from_name,
            "to_name": config.to_name,
            "type": "choices",
            "value": {"choices": [label]},
            "score": confidence[label],
            "meta": {"confidence": confidence},
        }
    ]


def _choice_of(config: ChoicesConfig, annotation: Annotation) -> str | None:
    for region in annotation.result:
        if region.get("from_name") != config.from_name or region.get("type") != "choices":
            continue
        value = region.get("value")
        choices = value.get("choices") if isinstance(value, Mapping) else None
        if isinstance(choices, Sequence) and not isinstance(choices, str) and len(choices) == 1:
            return str(choices[0])
    return None


def _ballots(known: Sequence[tuple[Annotation, str | None]]) -> Sequence[tuple[Annotation, str | None]]:
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


def _several(ballots: Sequence[tuple[Annotation, str | None]]) -> SeveralAnswers:
    answers = [(annotation.completed_by, str(label)) for annotation, label in ballots]
    return SeveralAnswers(answers, any(annotation.ground_truth for annotation, _ in ballots))


def _consensus(known: Sequence[tuple[Annotation, str | None]]) -> str:
    ground_truth = [(annotation, label) for annotation, label in known if annotation.ground_truth]
    ballots = ground_truth or known
    counts = Counter(label for _, label in ballots)
    latest = {label: (annotation.updated_at, annotation.id) for annotation, label in sorted(ballots, key=_by_time)}
    winner = max(counts, key=lambda label: (counts[label], latest[label]))
    assert winner is not None  # labels outside the config were taken out before
    return winner


def _by_time(ballot: tuple[Annotation, str | None]) -> tuple[str, int]:
    return ballot[0].updated_at, ballot[0].id


def _why_ignored(config: ChoicesConfig, votes: Sequence[tuple[Annotation, str | None]]) -> str:
    annotation, label = votes[-1]
    if label is None:
        return f"annotation {annotation.id} holds no single choice for {config.from_name!r}"
    offered = ", ".join(repr(name) for name in config.labels)
    return f"annotation {annotation.id} has label {label!r}; the labeling config offers {offered}"


def _first_line(exc: Exception) -> str:
    return (str(exc).strip().splitlines() or [type(exc).__name__])[0][:200]
