"""Exports: a project's labels as a file, as Label Studio writes it or as simple as file name → list of classes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from backend.adapters.label_studio import LabelStudioClient
from backend.choices import parse_labeling_config
from backend.errors import LabelingConfigError, LabelStudioError, UsageError
from backend.formats.annotations import LabeledFiles, read_annotations, read_tasks
from backend.formats.names import short_names
from backend.formats.simple import simple_text

OWN_FORMATS: Mapping[str, str] = {"json": "JSON", "json-min": "JSON_MIN", "csv": "CSV", "tsv": "TSV"}
"""Formats of Label Studio's own, and what it calls them."""

SIMPLE = "simple"
"""File name → list of classes."""


@dataclass(frozen=True)
class Exported:
    """A file's content, and of the simple format how many images have labels, were skipped, or have no answer."""

    content: bytes
    n_labeled: int | None = None
    n_skipped: int | None = None
    n_unanswered: int | None = None


def export_project(
    label_studio: LabelStudioClient,
    project_id: int,
    format_name: str,
    *,
    control: str | None = None,
    image_field: str | None = None,
    several: bool = False,
) -> Exported:
    """The labels of a project in one of `OWN_FORMATS` or `SIMPLE`.

    For the simple one `control`, `image_field` and whether images may have several labels are those of the labeling
    config, if it has one of each. Raises ProjectNotFoundError, FileFormatError, and UsageError if
    they are said to have several and may not.
    """
    project = label_studio.project(project_id)
    if format_name != SIMPLE:
        return Exported(label_studio.export(project_id, OWN_FORMATS[format_name]))
    try:
        config = parse_labeling_config(project.label_config)
    except LabelingConfigError:  # several controls; the answers may be of one only
        pass
    else:
        control, image_field = control or config.from_name, image_field or config.image_field
        if several and not config.several:
            raise UsageError(
                f"--several: images of project {project_id} have one label each; leave it out, or set "
                f'choice="multiple" on <Choices name="{config.from_name}">'
            )
        several = config.several
    content = label_studio.export(project_id, OWN_FORMATS["json"])
    try:
        tasks = json.loads(content)
    except ValueError as exc:
        raise LabelStudioError(f"the export of project {project_id} is no JSON; export it with --format json") from exc
    return _simple(read_tasks(tasks, control=control, image_field=image_field, several=several), several)


def export_file(
    path: Path, *, control: str | None = None, image_field: str | None = None, several: bool = False
) -> Exported:
    """The labels of a file, or of a target storage's folder, in the simple format. Raises FileFormatError."""
    return _simple(read_annotations(path, control=control, image_field=image_field, several=several), several)


def _simple(found: LabeledFiles, several: bool) -> Exported:
    """Where images may have several labels, those that were submitted without any have none of them: an empty list."""
    references = [*found.labels, *found.skipped, *found.unanswered]
    # Of all of them, so that an image keeps its name when another is labeled.
    names = short_names(references)
    labels = {names[reference]: labels for reference, labels in found.labels.items()}
    unanswered = found.unanswered
    if several:
        labels |= {names[reference]: () for reference in unanswered}
        unanswered = ()
    return Exported(simple_text(labels).encode(), len(labels), len(found.skipped), len(unanswered))
