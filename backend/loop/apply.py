"""Label completely new images with a version that is there: no Label Studio, no Redis, nothing is kept."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from backend.adapters.backbones import Backbone
from backend.adapters.image_source import ImageSource
from backend.adapters.images import DEFAULT_MAX_IMAGE_PIXELS
from backend.adapters.registry import Registry, head_of_bytes, load_head
from backend.errors import BackendError, FileFormatError, ImageError, VersionNotFoundError, VersionUnusableError
from backend.formats.simple import write_whole
from backend.labels import Label, names_of, text_of
from backend.learning import label_sets
from backend.learning.head import Head
from backend.loop.image_files import read_image
from backend.loop.pipeline import WORTH_ACCELERATING, embed_in_batches
from backend.loop.projects import check_known
from backend.schema import VersionRecord
from backend.storage import Place

HEAD_FILE, RECORD_FILE = "head.safetensors", "record.json"
"""The two files of a version, side by side in its folder."""

CELL, GAP, CAPTION, TEXT = 176, 8, 36, 13
"""Of a contact sheet, in pixels: a picture's square, what is left between two, a caption's height, its type."""

SHEET_COLUMNS = 8
SHEET_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")

NewImage = tuple[ImageSource, str]
"""Where an image lies, and its name there."""


@dataclass(frozen=True)
class Model:
    """A head, and the name and fingerprint of the backbone that it was trained on.

    version: what it is called. weights: the file of a fine-tuned backbone, if there is one.
    """

    version: str
    backbone: str
    fingerprint: str
    head: Head
    weights: Path | None = None


@dataclass(frozen=True)
class Predictions:
    """What a version says of new images.

    images, names: (N,) where each lies, and its path or address. probabilities: (N, C), rows sum to 1 but for sets.
    failures: path or address → why nothing can be said. threshold: that of the head, where images may have several
    labels.
    """

    version: str
    classes: Sequence[str]
    images: Sequence[NewImage]
    names: Sequence[str]
    probabilities: NDArray[np.float64]
    failures: Mapping[str, str]
    threshold: float | None = None

    @cached_property
    def labels(self) -> list[Label]:
        """What each (N,) is taken for: the likeliest class, or a set of labels."""
        return label_sets.predicted(self.classes, self.probabilities, self.threshold)

    @cached_property
    def confidences(self) -> list[float]:
        """How likely (N,) that is right altogether, 0..1."""
        found: list[float] = label_sets.confidence(self.probabilities, self.threshold).tolist()
        return found

    @property
    def counts(self) -> dict[str, int]:
        """How many images each class is given, the most frequent first."""
        return dict(Counter(name for label in self.labels for name in names_of(label)).most_common())

    @property
    def n_none(self) -> int:
        """How many images are given no label."""
        return sum(1 for label in self.labels if not names_of(label))

    def csv(self) -> str:
        """`file,label,score`, a line for each label of an image, or one without: what `preannotate --format csv` reads.

        The score is the label's probability; without a label how likely it is that there is none.
        """
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["file", "label", "score"])
        column = {name: number for number, name in enumerate(self.classes)}
        rows = zip(self.names, self.labels, self.confidences, self.probabilities.tolist(), strict=True)
        for name, label, confidence, row in rows:
            for own in names_of(label):
                writer.writerow([name, own, f"{row[column[own]]:.6f}"])
            if not names_of(label):
                writer.writerow([name, "", f"{confidence:.6f}"])
        return text.getvalue()

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types only, with the probability of every class; of sets their `labels` and the threshold."""
        of_sets = {} if self.threshold is None else {"n_none_of_these": self.n_none, "threshold": self.threshold}
        return {
            "version": self.version,
            "n_images": len(self.names),
            "counts": self.counts,
            **of_sets,
            "predictions": [
                {
                    "file": name,
                    **({"label": label} if isinstance(label, str) else {"labels": list(label)}),
                    "confidence": round(confidence, 6),
                    "probabilities": dict(zip(self.classes, [round(p, 6) for p in row], strict=True)),
                }
                for name, label, confidence, row in zip(
                    self.names, self.labels, self.confidences, self.probabilities.tolist(), strict=True
                )
            ],
            "unreadable": dict(self.failures),
        }


# -- the model --------------------------------------------------------------------------------------------------------


def model_of_project(registry: Registry, project_id: int, version: str | None = None) -> Model:
    """The published version of a project, or another that is kept.

    Raises ProjectNotFoundError, VersionNotFoundError, and VersionUnusableError for a version without a head.
    """
    check_known(registry, project_id)
    name = version or registry.published(project_id)
    if name is None:
        raise VersionNotFoundError(
            f"project {project_id} has no published version yet; label images until `status` shows one"
        )
    record = registry.record(project_id, name)
    weights = registry.weights_file(project_id, record.fingerprint)
    return _model(record, registry.head(record), weights)


def model_of_file(path: Path) -> Model:
    """What `train --out` wrote; or a version's folder, `…/versions/v0012-…/`, or the head in it with its record beside.

    Raises VersionNotFoundError unless it is there and whole, VersionUnusableError for a version without a head.
    """
    folder = path if path.is_dir() else path.parent
    if path.is_file() and not (folder / RECORD_FILE).exists():
        return _model_of_train(path)
    try:
        raw = json.loads((folder / RECORD_FILE).read_bytes())
        record = VersionRecord.from_json(raw)
        head = head_of_bytes(record, (folder / HEAD_FILE).read_bytes()) if record.kind == "model" else None
    except FileNotFoundError as exc:
        raise VersionNotFoundError(
            f"{path} is no model: there is no {exc.filename}; expected a file that `train` wrote, or a version's "
            f"folder, with {HEAD_FILE} and {RECORD_FILE} in it"
        ) from exc
    except Exception as exc:  # safetensors and dataclasses each raise their own for a damaged file
        raise VersionNotFoundError(f"the model {path} cannot be read: {exc}; copy the version's folder anew") from exc
    return _model(record, head, folder.parent.parent / "backbones" / f"{record.fingerprint}.safetensors")


def _model_of_train(path: Path) -> Model:
    try:
        head, facts = load_head(path)
        return Model(path.name, facts["backbone"], facts["fingerprint"], head)
    except (FileFormatError, KeyError) as exc:
        raise VersionNotFoundError(
            f"the model {path} cannot be read: {exc}; give a file that `train` wrote, or a version's folder"
        ) from exc


def _model(record: VersionRecord, head: Head | None, weights: Place) -> Model:
    if head is None:
        raise VersionUnusableError(
            f"version {record.version} is the first batch, made before two classes were labeled; label on until there "
            "is a model"
        )
    tuned = weights if isinstance(weights, Path) and weights.is_file() else None
    return Model(record.version, record.backbone, record.fingerprint, head, tuned)


def backbone_of(model: Model, base: Backbone) -> Backbone:
    """The backbone that the head was trained on: that of the settings, or the fine-tuned one beside it.

    Raises VersionUnusableError when it is neither.
    """
    wanted = model.fingerprint
    if base.fingerprint == wanted:
        return base
    if model.weights is not None:
        tuned = base.with_weights(model.weights)
        if tuned.fingerprint == wanted:
            return tuned
    raise VersionUnusableError(
        f"{model.version} was trained on the backbone {model.backbone} ({wanted}), but the settings "
        f"name {base.name} ({base.fingerprint}); set BACKBONE and BACKBONE_WEIGHTS as they were"
    )


# -- predictions ------------------------------------------------------------------------------------------------------


def predict_images(
    model: Model,
    backbone: Backbone,
    images: Sequence[NewImage],
    advance: Callable[[int, int], None],
    *,
    max_image_pixels: int = DEFAULT_MAX_IMAGE_PIXELS,
) -> Predictions:
    """Labels images, as fast as they are embedded; `advance(done, total)` is called after each batch.

    The same image has the same probabilities as a task of the project. Raises ImageError when not one can be read, and
    what the sources raise.
    """
    if len(images) >= WORTH_ACCELERATING:
        backbone.accelerate()

    def load(image: NewImage) -> Image.Image:
        source, name = image
        return read_image(source, name, min_side=backbone.input_side, max_image_pixels=max_image_pixels)

    read: list[NewImage] = []
    probabilities: list[NDArray[np.float64]] = []
    failures: dict[str, str] = {}
    n_done = 0
    with closing(embed_in_batches(backbone, images, load)) as batches:
        for batch in batches:
            rows = []
            for image, outcome in batch:
                if isinstance(outcome, ImageError):
                    failures[image[0].reference(image[1])] = str(outcome)
                else:
                    read.append(image)
                    rows.append(outcome)
            if rows:  # half precision is what is kept of a task's embedding
                probabilities.append(model.head.predict_proba(np.stack(rows).astype(np.float16)))
            n_done += len(batch)
            advance(n_done, len(images))
    if not read:
        first = next(iter(failures.values()), "no image was given")
        raise ImageError(f"none of {len(images)} images can be read; the first: {first}")
    return Predictions(
        model.version,
        model.head.classes,
        read,
        [source.reference(name) for source, name in read],
        np.concatenate(probabilities),
        failures,
        model.head.threshold,
    )


# -- the contact sheet ------------------------------------------------------------------------------------------------


def sheet_rows(found: Predictions, *, by_class: bool, n_images: int) -> list[int]:
    """Which predictions a contact sheet shows, in its order: the least sure first.

    By class: class after class, an equal share of each, the least sure first within it; shares that a class does not
    need go to the others. Of several labels the first counts, and images without any come last.
    """
    confidence = np.array(found.confidences)
    doubt = np.argsort(confidence, kind="stable")
    if not by_class:
        return [int(row) for row in doubt[:n_images]]
    firsts = [next(iter(names_of(label)), None) for label in found.labels]
    rows_of = [[int(row) for row in doubt if firsts[row] == name] for name in (*found.classes, None)]
    taken = [0] * len(rows_of)
    left = min(n_images, len(firsts))
    while left:
        for column, rows in enumerate(rows_of):
            if left and taken[column] < len(rows):
                taken[column] += 1
                left -= 1
    return [row for rows, n_taken in zip(rows_of, taken, strict=True) for row in rows[:n_taken]]


def write_sheet(
    found: Predictions, path: Path, *, by_class: bool = False, n_images: int = 96, columns: int = SHEET_COLUMNS
) -> int:
    """Draws the pictures in a grid, under each its label and confidence and its name; how many there are.

    They are read once more, so that a folder of any size takes no memory. Raises BackendError for a file that cannot be
    written.
    """
    check_sheet_file(path)
    rows = sheet_rows(found, by_class=by_class, n_images=n_images)
    columns = min(columns, len(rows))
    n_lines = -(-len(rows) // columns)
    width, height = columns * (CELL + GAP) + GAP, n_lines * (CELL + CAPTION + GAP) + GAP
    sheet = Image.new("RGB", (width, height), "white")
    draw, font = ImageDraw.Draw(sheet), _font()
    for place, row in enumerate(rows):
        left = GAP + place % columns * (CELL + GAP)
        top = GAP + place // columns * (CELL + CAPTION + GAP)
        source, name = found.images[row]
        try:
            picture = read_image(source, name, min_side=CELL // 2)
            picture.thumbnail((CELL, CELL), Image.Resampling.LANCZOS)
        except ImageError:  # deleted since it was embedded
            picture = Image.new("RGB", (CELL, CELL), "#dddddd")
        sheet.paste(picture, (left + (CELL - picture.width) // 2, top + (CELL - picture.height) // 2))
        confidence = f" {100 * found.confidences[row]:.0f} %"
        label = _fitted(text_of(found.labels[row]), font, CELL - font.getlength(confidence)) + confidence
        draw.text((left, top + CELL + 2), label, "black", font)
        draw.text((left, top + CELL + 2 + CAPTION // 2), _fitted(name.rpartition("/")[2], font, CELL), "#666666", font)
    packed = io.BytesIO()
    sheet.save(packed, {".png": "PNG", ".webp": "WEBP"}.get(path.suffix.lower(), "JPEG"))
    write_whole(path, packed.getvalue())
    return len(rows)


def check_sheet_file(path: Path) -> None:
    """Raises BackendError unless the name says which kind of picture to write."""
    if path.suffix.lower() not in SHEET_SUFFIXES:
        wanted = ", ".join(SHEET_SUFFIXES)
        raise BackendError(f"the sheet's file is {path.name!r}; expected a name that ends in {wanted}")


def _font() -> ImageFont.FreeTypeFont:
    import matplotlib  # whose font knows more alphabets than Pillow's own

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", TEXT)


def _fitted(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """The text, with an ellipsis in place of what is too wide."""
    text = " ".join(text.split())
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
