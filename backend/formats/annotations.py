"""Labels out of the files that Label Studio writes: exports as JSON, JSON-MIN, CSV and TSV, and target storages.

What each holds was seen of Label Studio 1.23.2; samples of its own are in tests/unit/formats/samples.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from backend.errors import FileFormatError
from backend.formats.names import path_of
from backend.formats.simple import is_simple, read_json, read_text
from backend.schema import DIGEST_FIELD, FETCHED_FIELD, SOURCE_FIELD

_ABOUT_THE_ANNOTATION = frozenset(
    {"id", "annotator", "annotation_id", "created_at", "updated_at", "lead_time", "agreement", "history"}
)
"""What JSON-MIN, CSV and TSV have beside the task's data and the answers."""

_NOTES = frozenset({SOURCE_FIELD, DIGEST_FIELD, FETCHED_FIELD})
_DIGEST = re.compile(r"[0-9a-f]{64}")

_IMAGE = re.compile(r"\.(?:bmp|gif|heic|jpe?g|png|tiff?|webp|avif|jfif)\Z", re.IGNORECASE)


@dataclass(frozen=True)
class LabeledFiles:
    """What people answered, by image.

    labels: image reference, as exported → labels, in the order in which they were given.
    skipped: references of images with skipped annotations only. JSON-MIN, CSV and TSV leave these out.
    format: 'json', 'json-min', 'csv', 'tsv', 'target storage' or 'simple'.
    unanswered: references of images that were submitted without any choice of this control: where images may have
        several labels, those that have none of them.
    several: whether images may have several labels: that was said, or an answer has two.
    """

    labels: dict[str, tuple[str, ...]]
    skipped: tuple[str, ...]
    format: str
    unanswered: tuple[str, ...] = ()
    several: bool = False


@dataclass(frozen=True)
class _Answer:
    """One submitted annotation; labels: none, if it has none of this control."""

    labels: tuple[str, ...]
    ground_truth: bool
    updated_at: str
    annotation_id: int
    person: str


@dataclass(frozen=True)
class _Row:
    """One annotation as it stands in a file, before it is known which field and control are meant.

    answers: control → labels, where they are choices.
    submitted: whether it is an annotation that was not skipped; a task without any has a row, too.
    """

    fields: Mapping[str, object]
    answers: Mapping[str, tuple[str, ...]]
    submitted: bool = False
    skipped: bool = False
    ground_truth: bool = False
    updated_at: str = ""
    annotation_id: int = 0
    person: str = ""


def read_annotations(
    path: Path, *, control: str | None = None, image_field: str | None = None, several: bool = False
) -> LabeledFiles:
    """The labels in a file or folder that Label Studio wrote, told apart by what it holds and not by its name.

    A folder is a target storage: one JSON per annotation, whose file is named by the annotation's id. `control` is the
    name of the `Choices`, `image_field` that of the task's data with the image; each may be left out where there is
    one only. Of several annotations of an image the ground truth counts, else what most people answered, and among
    equals the answer given last; of each person the last. Where images may have several labels, which `several` says
    and any answer with two of them, each label counts by itself. Raises FileFormatError.
    """
    kind, rows = _rows(path, control, image_field)
    if kind == "simple":
        labels = {name: answers for row in rows for name, answers in row.answers.items()}
        return LabeledFiles(labels, (), kind, several=several or _has_several(labels.values()))
    return _labeled(path, kind, rows, control, image_field, several=several)


def read_tasks(
    tasks: object, *, control: str | None = None, image_field: str | None = None, several: bool = False
) -> LabeledFiles:
    """The same out of an export as JSON that is in memory."""
    here = Path("the export")
    return _labeled(here, "json", _task_rows(here, tasks), control, image_field, several=several)


def _rows(path: Path, control: str | None, image_field: str | None) -> tuple[str, list[_Row]]:
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
        if not files:
            raise FileFormatError(f"{path} is an empty folder; name one that Label Studio has saved annotations to")
        return "target storage", [row for file in files for row in _stored_rows(file, read_json(file))]
    text = read_text(path)
    if text.lstrip()[:1] not in ("[", "{"):
        delimiter = "\t" if "\t" in text.partition("\n")[0] else ","
        return ("tsv" if delimiter == "\t" else "csv"), _table_rows(path, text, delimiter, control, image_field)
    try:
        raw = json.loads(text)
    except ValueError as exc:
        raise FileFormatError(f"{path} is no whole JSON ({exc}); export it anew") from exc
    if isinstance(raw, dict) and "result" in raw and "task" in raw:
        return "target storage", _stored_rows(path, raw)
    if is_simple(raw):
        return "simple", [_Row({}, {name: tuple(classes) for name, classes in raw.items()})]
    if not isinstance(raw, list) or not all(isinstance(item, dict) for item in raw):
        raise FileFormatError(f"{path} is neither an export of Label Studio nor file name → list of classes")
    if all("annotations" in item or "completions" in item for item in raw):
        return "json", _task_rows(path, raw)
    if all("annotation_id" in item for item in raw):
        return "json-min", [_min_row(path, item, control, image_field) for item in raw]
    raise FileFormatError(
        f"{path} has tasks without annotations; it may be a file of tasks: export labels as JSON, JSON-MIN, CSV or TSV"
    )


# -- one annotation as each format has it -----------------------------------------------------------------------------


def _task_rows(path: Path, tasks: object) -> list[_Row]:
    """Of an export as JSON: tasks, each with its data and all its annotations."""
    if not isinstance(tasks, list):
        raise FileFormatError(f"{path} is no list of tasks; export it as JSON")
    rows = []
    for task in tasks:
        data = task.get("data") if isinstance(task, dict) else None
        annotations = task.get("annotations") if isinstance(task, dict) else None
        if not isinstance(data, dict) or not isinstance(annotations, list):
            raise FileFormatError(f"{path}: a task has no data or no annotations; export it as JSON")
        rows += [_row_of(path, annotation, data) for annotation in annotations]
        if not annotations:
            rows.append(_Row(data, {}))
    return rows


def _stored_rows(path: Path, raw: object) -> list[_Row]:
    """Of one file of a target storage: an annotation with its task; Label Studio can be told to save whole tasks."""
    if isinstance(raw, dict) and "annotations" in raw:
        return _task_rows(path, [raw])
    task = raw.get("task") if isinstance(raw, dict) else None
    data = task.get("data") if isinstance(task, dict) else None
    if not isinstance(data, dict):
        raise FileFormatError(
            f"{path} is no annotation with its task's data; name a folder with nothing but what a target storage of "
            "Label Studio saves"
        )
    return [_row_of(path, raw, data)]


def _row_of(path: Path, annotation: object, data: Mapping[str, object]) -> _Row:
    if not isinstance(annotation, dict) or not isinstance(annotation.get("result"), list):
        raise FileFormatError(f"{path}: an annotation has no result; export it anew")
    answers: dict[str, list[str]] = {}
    for region in annotation["result"]:
        value = region.get("value") if isinstance(region, dict) else None
        if isinstance(value, dict) and isinstance(value.get("choices"), list):
            answers.setdefault(str(region.get("from_name")), []).extend(map(str, value["choices"]))
    person = annotation.get("completed_by")
    return _Row(
        fields=data,
        answers={name: tuple(labels) for name, labels in answers.items()},
        submitted=not annotation.get("was_cancelled"),
        skipped=bool(annotation.get("was_cancelled")),
        ground_truth=bool(annotation.get("ground_truth")),
        updated_at=str(annotation.get("updated_at") or ""),
        annotation_id=_number(annotation.get("id")),
        person=str(person.get("id") if isinstance(person, dict) else person or ""),
    )


def _min_row(path: Path, item: Mapping[str, Any], control: str | None, image_field: str | None) -> _Row:
    """Of JSON-MIN: the task's data, then its id, then the answers, then what is about the annotation."""
    names = list(item)
    if control is not None and control == image_field:
        raise FileFormatError(_overwritten(path, control))
    if "id" in names and "annotator" in names and names.index("id") < names.index("annotator"):
        said = names[names.index("id") + 1 : names.index("annotator")]
    else:  # some program has put them in another order
        said = [name for name in names if name != image_field and not _looks_like_image(str(item[name]))]
    asked = (set(said) - _ABOUT_THE_ANNOTATION) | ({control} if control is not None else set())
    answers = {name: labels for name in names if name in asked and (labels := _labels_of(item[name])) is not None}
    return _Row({name: value for name, value in item.items() if name not in asked}, answers, **_about(item))


def _table_rows(path: Path, text: str, delimiter: str, control: str | None, image_field: str | None) -> list[_Row]:
    """Of CSV or TSV: columns in the order of the alphabet; one of the data whose name an answer has begins with _data_.

    An empty cell is no answer.
    """
    limit = csv.field_size_limit(len(text) + 1)  # an image may stand in its cell, as data
    try:
        table = list(csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True))
    except csv.Error as exc:
        raise FileFormatError(f"{path} is no whole table ({exc}); export it anew") from exc
    finally:
        csv.field_size_limit(limit)
    columns = set(table[0]) if table else set((text.splitlines() or [""])[0].replace('"', "").split(delimiter))
    if not {"annotation_id", "annotator"} <= columns:
        raise FileFormatError(
            f"{path} has no columns 'annotation_id' and 'annotator', so it is no export of Label Studio; a table of "
            "file,label is for `preannotate --format csv`"
        )
    rows = []
    for record in table:
        if None in record or None in record.values():
            raise FileFormatError(f"{path}: a line has more or fewer cells than there are columns; export it anew")
        answers = {}
        for name, value in record.items():
            if name in _ABOUT_THE_ANNOTATION or name.startswith("_data_"):
                continue
            if name == image_field and f"_data_{name}" not in record:
                continue
            if value != "":
                labels = _labels_of_cell(value)
                if labels is not None:
                    answers[name] = labels
        fields: dict[str, object] = {}
        for name, value in record.items():
            if name.startswith("_data_"):
                fields[name.removeprefix("_data_")] = value
            elif f"_data_{name}" not in record and name not in _ABOUT_THE_ANNOTATION and name != control:
                fields[name] = value
        rows.append(_Row(fields, answers, **_about(record)))
    return rows


def _about(record: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "submitted": record.get("annotation_id") not in (None, ""),
        "updated_at": str(record.get("updated_at") or ""),
        "annotation_id": _number(record.get("annotation_id")),
        "person": str(record.get("annotator") or ""),
    }


def _labels_of(value: object) -> tuple[str, ...] | None:
    """One choice is a text, several are an object with them, and of a control that repeats there is a list of these."""
    if isinstance(value, str):
        return (value,)
    if isinstance(value, dict) and isinstance(value.get("choices"), list):
        return tuple(map(str, value["choices"]))
    if isinstance(value, list) and value:
        parts = [_labels_of(item) for item in value]
        if all(part is not None for part in parts):
            return tuple(label for part in parts if part for label in part)
    return None


def _labels_of_cell(cell: str) -> tuple[str, ...] | None:
    """Of a cell of a table, which is text or the JSON of what is more than that; a label may begin with a bracket."""
    if cell[:1] not in ("[", "{"):
        return (cell,)
    try:
        value = json.loads(cell)
    except ValueError:
        return (cell,)
    labels = _labels_of(value)
    has_objects = isinstance(value, dict) or any(isinstance(item, dict) for item in value)
    return labels if labels is not None or has_objects else (cell,)


def _number(value: object) -> int:
    try:
        return int(str(value))
    except ValueError:
        return 0


# -- which field, which control, which answer -------------------------------------------------------------------------


def _labeled(
    path: Path, kind: str, rows: Sequence[_Row], control: str | None, image_field: str | None, *, several: bool
) -> LabeledFiles:
    if not rows:
        return LabeledFiles({}, (), kind, several=several)
    rows = [_without_notes(row, {control, image_field}) for row in rows]
    field = image_field or _only_image_field(path, rows)
    is_table = kind in ("csv", "tsv", "json-min")
    if control is None:
        control = _only_control(path, rows, field, is_table=is_table)
    elif any(row.submitted for row in rows):
        answered = {name for row in rows for name in row.answers}
        if control not in answered and (others := sorted(answered - {field})):
            raise FileFormatError(
                f"{path}: nobody has answered {control!r}; answered are {', '.join(map(repr, others))}"
            )
    if kind == "json-min" and not control and any(row.submitted for row in rows):
        raise FileFormatError(
            f"{path}: no annotation holds an answer; if the control is named as a field of the data, JSON-MIN keeps "
            "only one of the two: export it as JSON or CSV"
        )
    by_image: dict[str, list[_Answer]] = defaultdict(list)
    skipped: dict[str, None] = {}
    for row in rows:
        reference = row.fields.get(field)
        if not isinstance(reference, str):
            known = ", ".join(map(repr, sorted(row.fields))) or "none"
            raise FileFormatError(f"{path}: a task has no image in field {field!r}; its fields are {known}")
        if row.skipped:
            skipped[reference] = None
        elif row.submitted:
            labels = row.answers.get(control, ())
            by_image[reference].append(_Answer(labels, row.ground_truth, row.updated_at, row.annotation_id, row.person))
    several = several or _has_several(answer.labels for answers in by_image.values() for answer in answers)
    labels_of = {reference: _consensus(answers, several=several) for reference, answers in by_image.items()}
    return LabeledFiles(
        {reference: labels for reference, labels in labels_of.items() if labels},
        tuple(reference for reference in skipped if reference not in by_image),
        kind,
        tuple(reference for reference, labels in labels_of.items() if not labels),
        several,
    )


def _without_notes(row: _Row, meant: set[str | None]) -> _Row:
    """Of a task that `watch` added, without its notes of the image's origin: an address there looks like an image."""
    if not _DIGEST.fullmatch(str(row.fields.get(DIGEST_FIELD))):
        return row
    notes = {name: (str(row.fields[name]),) for name in _NOTES & row.fields.keys() if name not in meant}
    return replace(
        row,
        fields={name: value for name, value in row.fields.items() if name not in notes},
        # In a table every column is both; one that differs is the answer to a control of that name.
        answers={name: labels for name, labels in row.answers.items() if notes.get(name) != labels},
    )


def _only_image_field(path: Path, rows: Sequence[_Row]) -> str:
    """The field of the tasks' data that holds images: the only one, or the only one that looks like it everywhere."""
    texts = _common(
        {name for name, value in row.fields.items() if isinstance(value, str) and name not in _ABOUT_THE_ANNOTATION}
        for row in rows
    )
    images = {name for name in texts if all(_looks_like_image(str(row.fields[name])) for row in rows)}
    found = images or texts
    if len(found) == 1:
        return next(iter(found))
    which = ", ".join(map(repr, sorted(found))) or "none that every task has"
    raise FileFormatError(f"{path}: which field of the tasks has the image is not clear ({which}); name it")


def _only_control(path: Path, rows: Sequence[_Row], image_field: str, *, is_table: bool) -> str:
    """The only `Choices` that was answered. In a table it cannot be told from a text or another field of the data."""
    # A table's column of the image looks like one of answers, too.
    is_data = (
        [image_field] if all(row.answers.get(image_field) == (row.fields.get(image_field),) for row in rows) else []
    )
    found = sorted({name for row in rows for name in row.answers}.difference(is_data))
    if len(found) == 1:
        return found[0]
    if not found:
        return ""  # nobody has answered
    which = ", ".join(map(repr, found))
    reason = "are columns of answers or of the tasks' data" if is_table else "were answered"
    raise FileFormatError(f"{path}: {which} {reason}; name the control whose labels are meant")


def _common(groups: Iterable[set[str]]) -> set[str]:
    found: set[str] | None = None
    for group in groups:
        found = set(group) if found is None else found & group
    return found or set()


def _looks_like_image(reference: str) -> bool:
    return reference.startswith("data:image/") or _IMAGE.search(path_of(reference)) is not None


def _has_several(answers: Iterable[Sequence[str]]) -> bool:
    return any(len(set(labels)) > 1 for labels in answers)


def _consensus(answers: Sequence[_Answer], *, several: bool) -> tuple[str, ...]:
    """What counts of several annotations of one image; () if it was submitted without a choice."""
    ordered = sorted(answers, key=lambda answer: (answer.updated_at, answer.annotation_id))
    if not several:  # of one label for each image, an annotation without it says nothing
        ordered = [answer for answer in ordered if answer.labels]
    ground_truth = [answer for answer in ordered if answer.ground_truth]
    last_of = {answer.person: answer for answer in ordered if answer.person}
    each_once = [answer for answer in ordered if not answer.person or last_of[answer.person] is answer]
    ballots = ground_truth or each_once
    if not ballots:
        return ()
    last = ballots[-1].labels
    if several:
        n_of = Counter(label for answer in ballots for label in dict.fromkeys(answer.labels))
        given = [
            label for label, n in n_of.items() if 2 * n > len(ballots) or (2 * n == len(ballots) and label in last)
        ]
        return tuple(sorted(given, key=lambda label: last.index(label) if label in last else len(last)))
    n_answers = Counter(answer.labels for answer in ballots)
    most = max(n_answers.values())
    return next(answer.labels for answer in reversed(ballots) if n_answers[answer.labels] == most)


def _overwritten(path: Path, name: str) -> str:
    return (
        f"{path}: the control and the image's field are both called {name!r}, and JSON-MIN keeps only the answer; "
        "export it as JSON or CSV"
    )
