"""Pre-annotations: labels that were made elsewhere become predictions of a named version in Label Studio.

They stand beside the service's own versions, which go on as if they were not there: the queue is ordered by the version
the project names, and only the service's own are ever deleted as superseded.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from backend.adapters.label_studio import LabelStudioClient
from backend.adapters.registry import is_own_version
from backend.choices import ChoicesConfig, parse_labeling_config
from backend.errors import BackendError, LabelStudioError, UsageError
from backend.formats.names import find_names
from backend.formats.preannotations import Found, FoundLabels, each_once
from backend.loop.connect import BACKEND_TITLE
from backend.progress import Advance
from backend.schema import UNTRAINED, Suggestion


@dataclass(frozen=True)
class Preannotation:
    """What came of it.

    version: the version whose predictions were replaced.
    n_imported: tasks that have a prediction of it now; n_replaced: how many it had before.
    rule: how an image's label was come by, or where it may have several its labels.
    unknown_labels: label of the files that the labeling config does not offer → number of files.
    without_task: files that no task shows.
    undecided: file → labels between which nothing decides.
    without_label: files without any label.
    ambiguous_tasks: task id → the files that it may show.
    n_tasks_without_file: tasks that no file is about.
    """

    version: str
    n_imported: int
    n_replaced: int
    rule: str
    unknown_labels: Mapping[str, int]
    without_task: Sequence[str]
    undecided: Mapping[str, Sequence[str]]
    without_label: Sequence[str]
    ambiguous_tasks: Mapping[int, Sequence[str]]
    n_tasks_without_file: int


def preannotate(
    label_studio: LabelStudioClient,
    project_id: int,
    found: FoundLabels,
    *,
    version: str,
    label_map: Mapping[str, str],
    advance: Advance,
    box_rule: str | None = None,
) -> Preannotation:
    """Imports labels as predictions of the version, in place of those it has.

    Where the project's images may have several labels, a prediction has all that the files have of its image and the
    project offers, and its score is the product of theirs, if each has one: how likely all are right, as if they came
    independently of each other. Nothing is made of a file without any.

    `label_map` renames labels of the files to those of the labeling config; what is in neither is left out and told, as
    are files without task. `box_rule` is the rule that was asked for, if one was. Raises UsageError for a version, a
    map or a rule that cannot be used, BackendError if nothing would be imported, and then nothing is changed.
    """
    _check_version(version)
    config = parse_labeling_config(label_studio.project(project_id).label_config)
    if config.several and box_rule is not None:
        raise UsageError(
            f"--box-rule {box_rule}: images of project {project_id} may have several labels, so those of all boxes are "
            "taken; leave it out"
        )
    _check_map(label_map, found, config)
    advance("reading tasks", 0, 0)
    tasks = {task.id: task.image for task in label_studio.tasks(project_id, config.image_field) if task.image}
    names = [*found.labels, *found.undecided, *found.empty]
    matches = find_names(tasks.values(), names, ignore_extension=found.without_extension)
    labels, undecided = _renamed_sets(found, label_map) if config.several else _renamed(found, label_map)
    unknown = Counter(item.label for items in labels.values() for item in items if item.label not in config.labels)
    suggestions = [
        _suggestion(task_id, given, config)
        for task_id, reference in tasks.items()
        if (given := _offered(labels.get(matches.matched.get(reference, ""), ()), config))
    ]
    shown = set(matches.matched.values())
    may_show = {task_id: matches.unmatched.get(reference, ()) for task_id, reference in tasks.items()}
    if not suggestions:
        raise BackendError(_nothing(project_id, names, shown, unknown, config))
    try:
        n_replaced = label_studio.replace_suggestions(
            project_id, version, suggestions, lambda done: advance("importing", done, len(suggestions))
        )
    except LabelStudioError as exc:
        raise type(exc)(f"{exc}; run the command again, it replaces what is there", status=exc.status) from exc
    return Preannotation(
        version=version,
        n_imported=len(suggestions),
        n_replaced=n_replaced,
        rule=found.set_rule if config.several else found.rule,
        unknown_labels=dict(sorted(unknown.items())),
        without_task=tuple(name for name in names if name not in shown),
        undecided=undecided,
        without_label=found.empty,
        ambiguous_tasks={task_id: files for task_id, files in may_show.items() if files},
        n_tasks_without_file=sum(1 for reference in tasks.values() if reference not in matches.matched),
    )


def parse_label_map(pairs: Sequence[str]) -> dict[str, str]:
    """Pairs such as 'cat=Cat' as a mapping; a label may hold '=' where it is renamed to. Raises UsageError."""
    found: dict[str, str] = {}
    for pair in pairs:
        source, sign, target = pair.partition("=")
        if not sign or not source or not target:
            raise UsageError(
                f"--map {pair!r} is no pair; expected a label of the files and one of the project: cat=Cat"
            )
        if found.setdefault(source, target) != target:
            raise UsageError(f"--map names {source!r} twice, as {found[source]!r} and as {target!r}; name it once")
    return found


_Labels = dict[str, tuple[Found, ...]]
"""File name → its labels by the project's names."""


def _renamed(found: FoundLabels, label_map: Mapping[str, str]) -> tuple[_Labels, dict[str, tuple[str, ...]]]:
    """The label of each file, and those between which nothing decides: two may have become one."""
    labels: _Labels = {name: (_by_project_name(item, label_map),) for name, item in found.labels.items()}
    undecided = {}
    for name, candidates in found.undecided.items():
        renamed = tuple(dict.fromkeys(label_map.get(label, label) for label in candidates))
        if len(renamed) == 1:
            labels[name] = (Found(renamed[0]),)
        else:
            undecided[name] = renamed
    return labels, undecided


def _renamed_sets(found: FoundLabels, label_map: Mapping[str, str]) -> tuple[_Labels, dict[str, tuple[str, ...]]]:
    """All labels of each file; nothing decides only between the classes of a classification."""
    labels, undecided = _renamed(replace(found, labels={}), label_map)
    sets = {name: each_once(_by_project_name(item, label_map) for item in items) for name, items in found.sets.items()}
    return labels | sets, {name: items for name, items in undecided.items() if name not in sets}


def _by_project_name(item: Found, label_map: Mapping[str, str]) -> Found:
    return Found(label_map.get(item.label, item.label), item.score)


def _offered(given: Sequence[Found], config: ChoicesConfig) -> list[Found]:
    """Those that the project offers, in its order."""
    return sorted(
        (item for item in given if item.label in config.labels), key=lambda item: config.labels.index(item.label)
    )


def _suggestion(task_id: int, given: Sequence[Found], config: ChoicesConfig) -> Suggestion:
    scores = [item.score for item in given if item.score is not None]
    score = math.prod(scores) if len(scores) == len(given) else None
    region = {
        "from_name": config.from_name,
        "to_name": config.to_name,
        "type": "choices",
        "value": {"choices": [item.label for item in given]},
        **({} if score is None else {"score": score}),
    }
    return Suggestion(task_id, score, [region])


def _check_version(version: str) -> None:
    if not version.strip() or version != version.strip():
        raise UsageError(f"--version {version!r} is no name; give one such as yolo-2026-11")
    if is_own_version(version) or version in (UNTRAINED, BACKEND_TITLE):
        raise UsageError(f"--version {version!r} is a name of the service's own; give another such as yolo-2026-11")


def _check_map(label_map: Mapping[str, str], found: FoundLabels, config: ChoicesConfig) -> None:
    of_images = [item for items in found.sets.values() for item in items] if config.several else found.labels.values()
    in_files = {item.label for item in of_images} | {label for labels in found.undecided.values() for label in labels}
    for source, target in label_map.items():
        if source not in in_files:
            raise UsageError(
                f"--map {source}={target}: the files have no label {source!r}; they have {_some(in_files)}"
            )
        if target not in config.labels:
            raise UsageError(
                f"--map {source}={target}: the project offers no label {target!r}; it offers {_some(config.labels)}"
            )


def _nothing(
    project_id: int, names: Sequence[str], shown: set[str], unknown: Mapping[str, int], config: ChoicesConfig
) -> str:
    """Why there is nothing to import, and what to do."""
    if not shown:
        first = f", such as {names[0]!r}," if names else ""
        return (
            f"none of {len(names)} files{first} is shown by a task of project {project_id}, so nothing is imported; "
            "compare their names with those in the tasks"
        )
    if unknown:
        return (
            f"the project offers {_some(config.labels)}, the files have {_some(unknown)}, so nothing is imported; "
            f"say which is which: --map {next(iter(unknown))}=…"
        )
    return f"the files that tasks of project {project_id} show have no label that is certain, so nothing is imported"


def _some(labels: Iterable[str]) -> str:
    listed = sorted(labels)
    more = f" and {len(listed) - 10} more" if len(listed) > 10 else ""
    return (", ".join(map(repr, listed[:10])) or "none") + more
