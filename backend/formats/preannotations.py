"""Labels that were made elsewhere: by YOLO, in COCO's format, or as a table.

Each reader gives the label of each file together with what it could not tell; nothing is guessed.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from backend.errors import FileFormatError, UsageError
from backend.formats.simple import read_json, read_text

BoxRule = Literal["largest", "most-frequent"]
BOX_RULES: tuple[BoxRule, ...] = ("largest", "most-frequent")
"""Which class an image has whose boxes are of several: that of the largest, or the one with the most of them."""

IMAGES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
"""Ends of the names of files that are images."""

NAMES_FILES = ("data.yaml", "data.yml", "dataset.yaml", "classes.txt", "obj.names")
"""Where the names of YOLO's classes are looked for, in the folder and the two above it."""

NO_LABELS = frozenset(
    {*NAMES_FILES, "train.txt", "val.txt", "test.txt", "README.txt", "labels.txt", "requirements.txt"}
)
"""Text files that are none of labels: names of classes, lists of images, what goes with a data set."""


@dataclass(frozen=True)
class Found:
    """The label of one file; score: how sure whoever gave it was, 0 to 1, None if that is not said."""

    label: str
    score: float | None = None


@dataclass(frozen=True)
class FoundLabels:
    """The labels of files.

    labels: file name, with '/' → label, where an image has one.
    undecided: file name → the labels between which nothing decides.
    empty: file names without any label.
    rule: how labels were come by, as a sentence.
    without_extension: names come without one; they are those of label files beside the images.
    sets: file name → all its labels, each once with its highest score, where an image may have several.
    set_rule: how these were come by.
    """

    labels: dict[str, Found]
    undecided: dict[str, tuple[str, ...]]
    empty: tuple[str, ...]
    rule: str
    without_extension: bool = False
    sets: dict[str, tuple[Found, ...]] = field(default_factory=dict)
    set_rule: str = ""


@dataclass(frozen=True)
class _Box:
    label: str
    area: float = 0.0
    score: float | None = None


@dataclass
class _Collected:
    least_score: float = 0.0  # what has a lower one is left out
    labels: dict[str, Found] = field(default_factory=dict)
    undecided: dict[str, tuple[str, ...]] = field(default_factory=dict)
    empty: list[str] = field(default_factory=list)
    sets: dict[str, tuple[Found, ...]] = field(default_factory=dict)

    def add(self, name: str, boxes: Sequence[_Box], rule: BoxRule) -> None:
        boxes = [box for box in boxes if box.score is None or box.score >= self.least_score]
        if not boxes:
            self.empty.append(name)
            return
        self.sets[name] = each_once(Found(box.label, box.score) for box in boxes)
        chosen = _of_boxes(boxes, rule)
        if isinstance(chosen, Found):
            self.labels[name] = chosen
        else:
            self.undecided[name] = chosen

    def add_best(self, name: str, found: Sequence[Found], *, is_set: bool) -> None:
        """The label with the highest score; and all of them, if that is a set of labels and not a choice among them."""
        found = [item for item in found if item.score is None or item.score >= self.least_score]
        if not found:
            self.empty.append(name)
            return
        best = _best(found)
        if is_set or len(best) == 1:
            self.sets[name] = each_once(found if is_set else best)
        if len(best) == 1:
            self.labels[name] = best[0]
        else:
            self.undecided[name] = tuple(sorted({item.label for item in best}))

    def found(self, rule: str, set_rule: str, *, without_extension: bool = False) -> FoundLabels:
        return FoundLabels(self.labels, self.undecided, tuple(self.empty), rule, without_extension, self.sets, set_rule)


def each_once(found: Iterable[Found]) -> tuple[Found, ...]:
    """Each label once, with its highest score, if it has one."""
    best: dict[str, Found] = {}
    for item in found:
        known = best.setdefault(item.label, item)
        if item.score is not None and (known.score is None or item.score > known.score):
            best[item.label] = item
    return tuple(best.values())


def pattern_of(name_filter: str | None) -> re.Pattern[str] | None:
    """The filter of file names: a regular expression such as `.*png` for the path from its beginning on, as in Label
    Studio's storages. Raises UsageError.
    """
    if name_filter is None:
        return None
    try:
        return re.compile(name_filter)
    except re.error as exc:
        raise UsageError(f"{name_filter!r} is no regular expression ({exc}); expected one such as .*png") from exc


def read_yolo(
    folder: Path,
    *,
    names_file: Path | None = None,
    box_rule: BoxRule = "largest",
    name_filter: str | None = None,
    least_score: float = 0.0,
) -> FoundLabels:
    """The labels of a folder of YOLO's.

    With text files in it they are its labels, one file an image: of a detection, lines of class, x, y, width, height
    and maybe confidence; of a classification, lines of confidence and class, or a class alone. Else it is a folder of
    class folders, each with images. `name_filter`: of these files, those whose path below the folder it fits; see
    `pattern_of`. What has a lower score than `least_score` is left out. Raises FileFormatError, and UsageError for a
    filter that is none, or lets nothing through.
    """
    pattern = pattern_of(name_filter)
    if not folder.is_dir():
        raise FileFormatError(f"{folder} is no folder; YOLO's labels are a folder of text files or of class folders")
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    other = {names_file.resolve()} if names_file else set()
    texts = [
        path for path in files if path.suffix == ".txt" and path.name not in NO_LABELS and path.resolve() not in other
    ]
    found = texts or [path for path in files if path.suffix.lower() in IMAGES]
    if not found:
        raise FileFormatError(f"{folder} holds no text files and no images in class folders; name YOLO's folder")
    paths = {path.relative_to(folder).as_posix(): path for path in found}
    if pattern is not None:
        paths = {name: path for name, path in paths.items() if pattern.match(name)}
    if not paths:
        raise UsageError(f"the filter {name_filter!r} lets none of {len(found)} files in {folder} through")
    if texts:
        return _read_label_files(folder, paths, names_file, box_rule, least_score)
    collected = _Collected()
    for name in paths:
        steps = name.split("/")
        collected.add(name, [_Box(steps[-2])] if len(steps) > 1 else [], box_rule)
    return collected.found("the folder that an image is in", "the folder that an image is in")


def read_coco(path: Path, *, box_rule: BoxRule = "largest", least_score: float = 0.0) -> FoundLabels:
    """The labels of a file in COCO's format: `images`, `annotations` and `categories`. Raises FileFormatError."""
    raw = read_json(path)
    parts = [raw.get(name) if isinstance(raw, dict) else None for name in ("images", "annotations", "categories")]
    if not all(isinstance(part, list) and all(isinstance(item, dict) for item in part) for part in parts):
        raise FileFormatError(
            f"{path} has no lists 'images', 'annotations' and 'categories', as COCO's format has them"
        )
    images, annotations, categories = parts
    assert images is not None  # all are lists
    assert annotations is not None
    assert categories is not None
    labels = {item.get("id"): item.get("name") for item in categories}
    names = {item.get("id"): item.get("file_name") for item in images}
    if not all(isinstance(name, str) for name in (*labels.values(), *names.values())):
        raise FileFormatError(f"{path}: an image has no 'file_name', or a category no 'name'")
    boxes: dict[Any, list[_Box]] = defaultdict(list)
    for number, item in enumerate(annotations):
        if item.get("image_id") not in names or item.get("category_id") not in labels:
            raise FileFormatError(f"{path}: annotation {number} is of an image or a category that is not listed")
        box = item.get("bbox")
        area = item.get("area")
        if isinstance(box, list) and len(box) == 4:
            area = _decimal(box[2], path) * _decimal(box[3], path)
        score = item.get("score")
        boxes[item["image_id"]].append(
            _Box(
                str(labels[item["category_id"]]),
                0.0 if area is None else _decimal(area, path),
                None if score is None else _score(score, f"{path}: annotation {number}"),
            )
        )
    collected = _Collected(least_score)
    for image_id, name in names.items():
        collected.add(str(name).replace("\\", "/"), boxes.get(image_id, []), box_rule)
    return collected.found(_said(box_rule), "all categories that it is annotated with")


def read_label_table(path: Path, *, least_score: float = 0.0) -> FoundLabels:
    """The labels of a CSV file with the header `file,label` or `file,label,score`.

    A file that has several lines gets the label with the highest score, if each has one; where images may have several
    labels, those of all its lines. Raises FileFormatError.
    """
    try:
        table = list(csv.reader(io.StringIO(read_text(path), newline=""), strict=True))
    except csv.Error as exc:
        raise FileFormatError(f"{path} is no whole CSV file ({exc})") from exc
    header = [cell.strip().lower() for cell in table[0]] if table else []
    if header not in (["file", "label"], ["file", "label", "score"]):
        raise FileFormatError(
            f"{path} begins with {','.join(header)!r}; expected the header file,label or file,label,score"
        )
    lines: dict[str, list[Found]] = defaultdict(list)
    collected = _Collected(least_score)
    for number, cells in enumerate(table[1:], start=2):
        if not cells:
            continue
        if len(cells) != len(header):
            raise FileFormatError(f"{path}: line {number} has {len(cells)} cells and not {len(header)}")
        name, label = cells[0].strip().replace("\\", "/"), cells[1].strip()
        score = _score(cells[2], f"{path}: line {number}") if len(cells) == 3 and cells[2].strip() else None
        lines[name] += [Found(label, score)] if label else []
    for name, found in lines.items():
        collected.add_best(name, found, is_set=True)
    return collected.found("of its lines the one with the highest score", "all of its lines")


def _read_label_files(
    folder: Path, texts: Mapping[str, Path], names_file: Path | None, box_rule: BoxRule, least_score: float
) -> FoundLabels:
    names: list[str] | None = None
    collected = _Collected(least_score)
    is_detection = False
    for name, path in texts.items():
        lines = [line.split() for line in read_text(path).splitlines() if line.strip()]
        scored: list[Found] = []
        boxes: list[_Box] = []
        for number, cells in enumerate(lines, start=1):
            where = f"{path}: line {number}"
            is_number = [_is_decimal(cell) for cell in cells]
            if all(is_number) and (len(cells) in (1, 5, 6)):
                names = names if names is not None else _class_names(folder, names_file)
                label = _class_name(cells[0], names, where)
                area = float(cells[3]) * float(cells[4]) if len(cells) > 1 else 0.0
                boxes.append(_Box(label, area, _score(cells[5], where) if len(cells) == 6 else None))
            elif len(cells) > 1 and is_number[0] and not all(is_number[1:]):
                scored.append(Found(" ".join(cells[1:]), _score(cells[0], where)))
            else:
                raise FileFormatError(
                    f"{where} is {' '.join(cells)[:60]!r}; expected class x y width height and maybe confidence, or "
                    "confidence and class, or a class"
                )
        if scored and boxes:
            raise FileFormatError(f"{path} has lines of a detection and of a classification; expected one kind")
        image = _image_of(name)
        if scored:  # a probability for each class, of which one is meant
            collected.add_best(image, scored, is_set=False)
        else:
            is_detection = is_detection or any(len(cells) > 1 for cells in lines)
            collected.add(image, boxes, box_rule)
    best = "the class with the highest confidence"
    rule, set_rule = (_said(box_rule), "the classes of all its boxes") if is_detection else (best, best)
    return collected.found(rule, set_rule, without_extension=True)


def _of_boxes(boxes: Sequence[_Box], rule: BoxRule) -> Found | tuple[str, ...]:
    """The label of the boxes, with the highest score of those that decide; several labels where nothing decides."""
    areas: dict[str, float] = defaultdict(float)
    if rule == "largest":
        for box in boxes:
            areas[box.label] = max(areas[box.label], box.area)
    else:
        counts = Counter(box.label for box in boxes)
        areas.update({label: float(n) for label, n in counts.items()})
    most = max(areas.values())
    winners = sorted(label for label, value in areas.items() if value == most)
    if len(winners) > 1:
        return tuple(winners)
    deciding = [box for box in boxes if box.label == winners[0] and (rule != "largest" or box.area == most)]
    scores = [box.score for box in deciding if box.score is not None]
    return Found(winners[0], max(scores) if scores else None)


def _best(found: Sequence[Found]) -> list[Found]:
    """One for each label that may be meant: all, or those with the highest score if all have one."""
    scores = [item.score for item in found if item.score is not None]
    if len(scores) == len(found):
        found = [item for item in found if item.score == max(scores)]
    return list({item.label: item for item in found}.values())


def _said(box_rule: BoxRule) -> str:
    of_box = "the class of the largest box" if box_rule == "largest" else "the class of the most boxes"
    return f"{of_box} (--box-rule {box_rule})"


def _image_of(name: str) -> str:
    """The image's path without its extension; YOLO keeps labels/train/a.txt for images/train/a.jpg."""
    stem = name.rpartition(".")[0]
    steps = stem.split("/")
    return "/".join(steps[1:]) if len(steps) > 1 and steps[0] == "labels" else stem


def _class_names(folder: Path, names_file: Path | None) -> list[str]:
    places = [place / name for place in (folder, *list(folder.resolve().parents)[:2]) for name in NAMES_FILES]
    found = names_file or next((place for place in places if place.is_file()), None)
    if found is None:
        raise FileFormatError(
            f"the labels in {folder} are numbers, and no names of classes were found ({', '.join(NAMES_FILES)}); give "
            "them with --names FILE, one a line"
        )
    text = read_text(found)
    names = _yaml_names(text) if found.suffix in (".yaml", ".yml") else [line.strip() for line in text.splitlines()]
    while names and not names[-1]:
        names.pop()
    if not names or not all(names):
        raise FileFormatError(
            f"{found} does not name classes one after another; give a file with one a line as --names"
        )
    return names


def _yaml_names(text: str) -> list[str]:
    """`names` of YOLO's YAML file: a list in brackets, a list of lines, or lines of number and name in a row."""
    lines = [line.rstrip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    start = next((n for n, line in enumerate(lines) if line.startswith("names:")), None)
    if start is None:
        return []
    rest = lines[start].partition(":")[2].strip()
    if rest.startswith("["):
        joined = rest
        for line in lines[start + 1 :]:
            if "]" in joined:
                break
            joined += line.strip()
        inside = joined.partition("[")[2].rpartition("]")[0]
        cells = next(csv.reader([inside.replace("'", '"')], skipinitialspace=True), [])
        return [cell.strip() for cell in cells]
    names: list[str] = []
    for line in lines[start + 1 :]:
        item = re.fullmatch(r"\s*-\s+(?P<name>.+)|\s+(?P<number>\d+)\s*:\s*(?P<numbered>.+)", line)
        if item is None:
            break
        if item["number"] is not None and int(item["number"]) != len(names):
            return []
        names.append((item["name"] or item["numbered"]).strip().strip("'\""))
    return names


def _class_name(cell: str, names: Sequence[str], where: str) -> str:
    number = float(cell)
    if number != int(number) or not 0 <= number < len(names):
        raise FileFormatError(f"{where} has class {cell}; {len(names)} classes are named, from 0 to {len(names) - 1}")
    return names[int(number)]


def _is_decimal(cell: str) -> bool:
    return re.fullmatch(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?", cell) is not None


def _decimal(value: object, path: Path) -> float:
    if type(value) not in (int, float):
        raise FileFormatError(f"{path}: a box or an area has {value!r} where a number is expected")
    return float(value)  # type: ignore[arg-type]


def _score(value: object, where: str) -> float:
    text = str(value).strip()
    if not _is_decimal(text) or not 0 <= float(text) <= 1:
        raise FileFormatError(f"{where} has the score {text!r}; expected a number between 0 and 1")
    return float(text)
