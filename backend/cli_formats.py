"""Commands on files of labels: export them, and bring in those that were made elsewhere."""

from __future__ import annotations

import json
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from backend.cli_common import LABELING, SET_UP, AsJson, example, settings_of
from backend.errors import UsageError
from backend.progress import progress, waiting

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backend.formats.preannotations import FoundLabels
    from backend.loop.preannotate import Preannotation

SHOWN = 10
"""As many files are listed of each kind on a terminal; --json has all."""


class ExportFormat(StrEnum):
    """What `export` writes."""

    JSON_MIN = "json-min"
    JSON = "json"
    CSV = "csv"
    TSV = "tsv"
    SIMPLE = "simple"


class LabelFormat(StrEnum):
    """What `preannotate` reads."""

    YOLO = "yolo"
    COCO = "coco"
    CSV = "csv"


class BoxRule(StrEnum):
    """Which class an image has whose boxes are of several."""

    LARGEST = "largest"
    MOST_FREQUENT = "most-frequent"


def register(app: typer.Typer) -> None:
    """Adds these commands."""
    app.command(
        rich_help_panel=LABELING,
        epilog=example(
            "python -m backend export 3 --format json-min --output annotation-0.json",
            "python -m backend export 3 --format simple > labels.json",
            "python -m backend export --from annotation-0.json --format simple --output labels.json",
        ),
    )(export)
    app.command(
        rich_help_panel=SET_UP,
        epilog=example(
            "python -m backend preannotate 3 dataset/ --format yolo --version yolo-1 --map cat=Cat --map dog=Dog",
            "python -m backend preannotate 3 annotations.json --format coco --version coco --box-rule most-frequent",
            "python -m backend preannotate 3 labels.csv --format csv --version old-model --least-score 0.6",
        ),
    )(preannotate)


def export(
    context: typer.Context,
    project: Annotated[int | None, typer.Argument(help="Project id; not with --from.")] = None,
    format_name: Annotated[
        ExportFormat, typer.Option("--format", help="As Label Studio exports, or simple: file name → list of classes.")
    ] = ExportFormat.JSON_MIN,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Where to write it; default: standard output.")
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="FILE|FOLDER",
            help="Not a project but a file that Label Studio exported, or a target storage's folder; for simple.",
        ),
    ] = None,
    control: Annotated[
        str | None,
        typer.Option(help="Name of the Choices that is meant, where there are several; for simple."),
    ] = None,
    image_field: Annotated[
        str | None, typer.Option(help="Field of the tasks' data with the image, where there are several; for simple.")
    ] = None,
    several: Annotated[
        bool,
        typer.Option(
            "--several",
            help="Images may have several labels, and those submitted without any have none: an empty list; for simple."
            " Of a project with one Choices this is known.",
        ),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Say what was written as one JSON object; with --output.")
    ] = False,
) -> None:
    """Write a project's labels to a file, or make the simple file of one; skipped and unlabeled images are left out."""
    from backend.formats.simple import write_whole
    from backend.loop.export import export_file, export_project

    is_simple = format_name is ExportFormat.SIMPLE
    if (project is None) == (source is None):
        raise UsageError("give either a project's id or --from FILE")
    if source is not None and not is_simple:
        raise UsageError(f"--from goes with --format simple only; {format_name.value} is Label Studio's to write")
    if (control or image_field or several) and not is_simple:
        raise UsageError(
            "--control, --image-field and --several go with --format simple only; other formats hold all there is"
        )
    if as_json and output is None:
        raise UsageError("--json goes with --output FILE, for without it standard output is the file")
    if output is not None and not output.parent.is_dir():
        raise UsageError(f"--output {output}: there is no folder {output.parent}; make it first")
    if source is not None:
        exported = export_file(source, control=control, image_field=image_field, several=several)
    else:
        from backend.services import Services

        assert project is not None
        label_studio = Services(settings_of(context, quiet=True)).label_studio
        with waiting("Label Studio writes the export"):
            exported = export_project(
                label_studio, project, format_name.value, control=control, image_field=image_field, several=several
            )
    if output is None:
        typer.echo(exported.content, nl=False)
        return
    write_whole(output, exported.content)
    if as_json:
        said = {name: count for name, count in asdict(exported).items() if name != "content" and count is not None}
        typer.echo(json.dumps({"file": str(output), "n_bytes": len(exported.content), **said}, ensure_ascii=False))
    elif is_simple:
        typer.echo(
            f"{output}: {exported.n_labeled} images with labels; left out are {exported.n_skipped} skipped and "
            f"{exported.n_unanswered} submitted without a label"
        )
    else:
        typer.echo(f"{output}: {len(exported.content):,} bytes")


def preannotate(
    context: typer.Context,
    project: Annotated[int, typer.Argument(help="Project id.")],
    source: Annotated[Path, typer.Argument(metavar="FILE|FOLDER", help="YOLO's folder, COCO's JSON, or a CSV file.")],
    format_name: Annotated[
        LabelFormat,
        typer.Option(
            "--format",
            help="yolo: class folders, or text files of a detection or a classification; coco: images, annotations and "
            "categories; csv: file,label or file,label,score.",
        ),
    ],
    version: Annotated[str, typer.Option(help="Name of the version; its predictions are replaced.")],
    label_map: Annotated[
        list[str] | None,
        typer.Option("--map", metavar="cat=Cat", help="A label and the project's name for it; repeat it."),
    ] = None,
    names_file: Annotated[
        Path | None,
        typer.Option(
            "--names", metavar="FILE", help="Names of YOLO's classes, one a line, or its YAML file; else looked for."
        ),
    ] = None,
    box_rule: Annotated[
        BoxRule | None,
        typer.Option(
            help="Whose class an image has: that of its largest box (default), or of the most boxes. Where the "
            "project's images may have several labels, they have all of them."
        ),
    ] = None,
    least_score: Annotated[
        float, typer.Option(min=0, max=1, help="Leave out boxes, lines and annotations with a lower score.")
    ] = 0.0,
    name_filter: Annotated[
        str | None,
        typer.Option("--filter", metavar="REGEX", help="Which files of YOLO's folder, such as '.*png'; default: all."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Import labels made elsewhere as predictions of a version; safe to run again, and beside the service's own.

    In a project whose images may have several labels a prediction has all of its image's. Labels that the project does
    not offer, files that no task shows, and images whose label nothing decides are listed and left out.
    """
    from backend.loop.preannotate import parse_label_map
    from backend.loop.preannotate import preannotate as run
    from backend.services import Services

    pairs = parse_label_map(label_map or [])
    found = _read(source, format_name, names_file, box_rule, name_filter, least_score)
    label_studio = Services(settings_of(context, quiet=True)).label_studio
    with progress() as advance:
        done = run(label_studio, project, found, version=version, label_map=pairs, advance=advance, box_rule=box_rule)
    if as_json:
        typer.echo(json.dumps(asdict(done), indent=2, ensure_ascii=False))
        return
    for line in _told(done):
        typer.echo(line)


def _read(
    source: Path,
    format_name: LabelFormat,
    names_file: Path | None,
    box_rule: BoxRule | None,
    name_filter: str | None,
    least_score: float,
) -> FoundLabels:
    from backend.formats.preannotations import read_coco, read_label_table, read_yolo

    of_yolo = {"--names": names_file, "--filter": name_filter}
    given = [option for option, value in of_yolo.items() if value is not None]
    if given and format_name is not LabelFormat.YOLO:
        raise UsageError(
            f"{given[0]} goes with --format yolo only; {format_name.value} is one file that names its labels"
        )
    rule = BoxRule.LARGEST if box_rule is None else box_rule
    if format_name is LabelFormat.YOLO:
        return read_yolo(
            source, names_file=names_file, box_rule=rule.value, name_filter=name_filter, least_score=least_score
        )
    if format_name is LabelFormat.COCO:
        return read_coco(source, box_rule=rule.value, least_score=least_score)
    if box_rule is not None:
        raise UsageError("--box-rule goes with --format yolo or coco; a CSV file has no boxes")
    return read_label_table(source, least_score=least_score)


def _told(done: Preannotation) -> list[str]:
    """What was imported, then what was not and why."""
    before = f", in place of {done.n_replaced}" if done.n_replaced else ""
    lines = [f"{done.n_imported} predictions of version {done.version!r}{before}; the label of an image: {done.rule}"]
    if done.unknown_labels:
        listed = ", ".join(f"{label!r} ({n})" for label, n in done.unknown_labels.items())
        lines.append(f"labels that the project does not offer: {listed}; rename them with --map")
    lines += _listed("files that no task shows", done.without_task)
    lines += _listed(
        "files whose label nothing decides",
        [f"{name} ({' or '.join(found)})" for name, found in done.undecided.items()],
    )
    lines += _listed("files without a label", done.without_label)
    lines += _listed(
        "tasks that may show several files",
        [f"{task_id} ({' or '.join(names[:3])})" for task_id, names in done.ambiguous_tasks.items()],
    )
    if done.n_tasks_without_file:
        lines.append(f"{done.n_tasks_without_file} tasks of the project have no file")
    return lines


def _listed(what: str, names: Sequence[str]) -> list[str]:
    more = f", and {len(names) - SHOWN} more (--json lists all)" if len(names) > SHOWN else ""
    return [f"{len(names)} {what}: {', '.join(names[:SHOWN])}{more}"] if names else []
