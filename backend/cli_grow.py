"""Commands for images that come later: label new ones with the model, and add those that arrive to a project."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from backend.cli_common import LABELING, SET_UP, AsJson, example, settings_of
from backend.errors import (
    ImageSourceError,
    LabelStudioError,
    ProjectNotFoundError,
    ProjectNotReadyError,
    StorageError,
    UsageError,
)
from backend.labels import NONE_OF_THESE, text_of
from backend.progress import progress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from backend.config import Settings
    from backend.loop.apply import NewImage, Predictions
    from backend.loop.growing import Addition
    from backend.services import Services

SHOWN = 10
"""As many unreadable images are listed on a terminal; --json has all."""


EVERY_S, EVERY_S_OF_ADDRESSES = 10.0, 600.0
"""Pause between two looks into a folder, and at addresses."""

LEAST_EVERY_S = 10.0
"""Addresses belong to somebody, who pays for each look."""


class SheetOrder(StrEnum):
    """In which order a contact sheet shows images."""

    UNCERTAIN = "uncertain"
    CLASS = "class"


def register(app: typer.Typer) -> None:
    """Adds these commands."""
    app.command(
        rich_help_panel=LABELING,
        epilog=example(
            "python -m backend predict new-photos/ --project 3 --csv labels.csv --sheet sheet.png",
            "python -m backend predict a.jpg b.jpg --project 3 --json",
            "python -m backend predict s3://bucket/photos --model v0012-60-labels/ --csv out.csv",
        ),
    )(predict)
    app.command(
        rich_help_panel=SET_UP,
        epilog=example(
            "python -m backend watch 3 /data/incoming --filter '.*png'",
            "python -m backend watch 3 s3://bucket/photos --every 300",
            "python -m backend watch 3 --urls webcams.txt --every 600",
        ),
    )(watch)


def predict(
    context: typer.Context,
    images: Annotated[
        list[str], typer.Argument(metavar="FOLDER|ADDRESS|FILE…", help="Folders, addresses such as s3://b/p, or files.")
    ],
    project: Annotated[int | None, typer.Option(help="Project whose published version labels them.")] = None,
    version: Annotated[
        str | None, typer.Option("--version", help="Another version of the project: its name, or number such as v0012.")
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(metavar="FILE|FOLDER", help="Not a project, but a file of `train`, or a version's folder."),
    ] = None,
    csv_file: Annotated[
        Path | None,
        typer.Option("--csv", metavar="FILE", help="Where to write file,label,score, a line for each label."),
    ] = None,
    sheet: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where to draw a contact sheet: .png, .jpg or .webp.")
    ] = None,
    sheet_order: Annotated[
        SheetOrder, typer.Option(help="The least sure first, or class after class with as many of each.")
    ] = SheetOrder.UNCERTAIN,
    sheet_images: Annotated[int, typer.Option(min=1, max=2000, help="Images on the sheet, at most.")] = 96,
    name_filter: Annotated[
        str | None,
        typer.Option(
            "--filter", metavar="REGEX", help="Which files of folders and addresses, such as '.*png'; default: images."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Label new images that no project has, with a version's head; neither Label Studio nor Redis is asked."""
    from backend.loop.apply import (
        backbone_of,
        check_sheet_file,
        model_of_file,
        model_of_project,
        predict_images,
        write_sheet,
    )
    from backend.services import Services

    if (project is None) == (model is None):
        raise UsageError("give either --project ID, whose published version is used, or --model FILE")
    if version is not None and project is None:
        raise UsageError("--version goes with --project; --model is one version already")
    for option, file in (("--csv", csv_file), ("--sheet", sheet)):
        if file is not None and not file.parent.is_dir():
            raise UsageError(f"{option} {file}: there is no folder {file.parent}; make it first")
    if sheet is not None:
        check_sheet_file(sheet)
    settings = settings_of(context, quiet=True)
    services = Services(settings)
    wanted = _new_images(services, images, name_filter)
    if project is not None:
        kept = services.versions.find(project, version) if version else None
        chosen = model_of_project(services.registry, project, kept)
    else:
        assert model is not None
        chosen = model_of_file(model)
    backbone = backbone_of(chosen, services.backbone())
    with progress() as advance:
        found = predict_images(
            chosen,
            backbone,
            wanted,
            lambda done, total: advance("labeling", done, total),
            max_image_pixels=settings.max_image_pixels,
        )
    if csv_file is not None:
        from backend.formats.simple import write_whole

        write_whole(csv_file, found.csv().encode())
    if sheet is not None:
        write_sheet(found, sheet, by_class=sheet_order is SheetOrder.CLASS, n_images=sheet_images)
    if as_json:
        typer.echo(json.dumps(found.to_json(), indent=2, ensure_ascii=False))
        return
    for line in _told(found, listed=csv_file is None):
        typer.echo(line)


def watch(
    context: typer.Context,
    project: Annotated[int, typer.Argument(help="Project id.")],
    folder: Annotated[
        str | None, typer.Argument(metavar="FOLDER|ADDRESS", help="Where images arrive; or --urls FILE.")
    ] = None,
    urls: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Addresses, one a line; {time:%Y%m%d-%H%M} is the time of the look in UTC."),
    ] = None,
    every: Annotated[
        float | None, typer.Option(min=1, help="Seconds between two looks. Default: 10; of addresses 600.")
    ] = None,
    name_filter: Annotated[
        str | None, typer.Option("--filter", metavar="REGEX", help="Which files, such as '.*png'; default: images.")
    ] = None,
    only_new: Annotated[
        bool, typer.Option("--only-new", help="Leave what lies in the folder at the first start.")
    ] = False,
    once: Annotated[bool, typer.Option("--once", help="Look once and end, for a timer of your own.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Add images to a project as they arrive; each once, also after a restart. Ctrl-C ends it.

    A folder that is a local storage of the project is synced, files of others and pictures from addresses are uploaded.
    The service embeds and queues them as they come.
    """
    from backend.loop.growing import SETTLED_S
    from backend.services import Services

    if (folder is None) == (urls is None):
        raise UsageError("give either a folder (or address such as s3://bucket/prefix), or --urls FILE")
    if only_new and folder is None:
        raise UsageError("--only-new goes with a folder; at an address the picture of now is the first")
    if urls is not None and every is not None and every < LEAST_EVERY_S and not once:
        raise UsageError(f"--every {every:g} is too often for addresses; give {LEAST_EVERY_S:g} seconds or more")
    settings = settings_of(context, quiet=True)
    pause_s = every or (EVERY_S if urls is None else EVERY_S_OF_ADDRESSES)
    look, unsettled = _looks(Services(settings), settings, project, folder, urls, name_filter, only_new)
    n_looks = 0
    while True:
        try:
            for addition in look():
                typer.echo(json.dumps(asdict(addition), ensure_ascii=False) if as_json else str(addition))
        except (LabelStudioError, ProjectNotReadyError, ImageSourceError, StorageError) as exc:
            if n_looks == 0 or isinstance(exc, ProjectNotFoundError):
                raise
            typer.echo(f"note: {exc}; tried again in {pause_s:g} s", err=True)
        n_looks += 1
        if once and (n_looks > 1 or not unsettled()):
            return
        time.sleep(SETTLED_S if once else pause_s)


def _looks(
    services: Services,
    settings: Settings,
    project: int,
    folder: str | None,
    urls: Path | None,
    name_filter: str | None,
    only_new: bool,
) -> tuple[Callable[[], Iterator[Addition]], Callable[[], bool]]:
    """What one look is, and whether it left a file that was being written."""
    from backend.adapters.polite_fetch import PoliteFetcher
    from backend.loop.growing import AddressArrivals, FolderArrivals, Grower, read_addresses, storage_of
    from backend.loop.image_files import place_of

    home = services.registry.project_directory(project)
    if not isinstance(home, Path):
        raise UsageError(f"DATA_DIR is {settings.data_dir}; watch keeps its notes in a folder, so give it one on disk")
    if urls is not None:
        addresses = read_addresses(urls, name_filter)
        key = f"urls {urls.absolute()}"
    else:
        assert folder is not None
        place = place_of("the argument", folder)
        place = place.absolute() if isinstance(place, Path) else place
        key = f"folder {place}"
    grower = Grower(
        label_studio=services.label_studio,
        project_id=project,
        notes_file=home / f"watch-{hashlib.sha256(key.encode()).hexdigest()[:12]}.json",
        max_image_pixels=settings.max_image_pixels,
    )
    if urls is not None:
        fetcher = PoliteFetcher(
            timeout_s=settings.image_timeout_s,
            max_image_bytes=settings.max_image_bytes,
            allow_private=settings.allow_private_addresses,
        )
        pictures = AddressArrivals(addresses, fetcher)
        return lambda: grower.add_arrivals(pictures, key), lambda: False
    files = FolderArrivals(services.image_source(place, name_filter))
    if only_new:
        grower.leave_present(files, key)
    storage = storage_of(services.label_studio.local_storages(project), place) if isinstance(place, Path) else None
    if storage is not None:
        return lambda: grower.sync_storage(storage, files, key), lambda: files.n_unsettled > 0
    return lambda: grower.add_arrivals(files, key), lambda: files.n_unsettled > 0


def _new_images(services: Services, given: Sequence[str], name_filter: str | None) -> list[NewImage]:
    """Every image of the folders, addresses and files, each once, in the order given."""
    from backend.loop.image_files import place_of

    found: dict[str, NewImage] = {}
    for text in given:
        path = Path(text).expanduser()
        if "://" not in text and not path.is_dir():
            if not path.is_file():
                raise UsageError(
                    f"{text} is neither a folder nor a file; give one that is there, or s3://bucket/prefix"
                )
            source = services.image_source(path.parent)
            names = [path.name]
        else:
            source = services.image_source(place_of("the argument", text), name_filter)
            names = source.names()
        found.update({source.reference(name): (source, name) for name in names})
    return list(found.values())


def _told(found: Predictions, *, listed: bool) -> list[str]:
    """Each image where no file has them, then how many of each class, then what cannot be read."""
    lines = []
    if listed:
        labels = list(map(text_of, found.labels))
        width = max(map(len, labels))
        lines = [
            f"{label:<{width}}  {confidence:.3f}  {name}"
            for name, label, confidence in zip(found.names, labels, found.confidences, strict=True)
        ]
    counts = ", ".join(f"{label} {n}" for label, n in found.counts.items())
    if found.n_none:
        counts = f"{counts}, {NONE_OF_THESE} {found.n_none}" if counts else f"{NONE_OF_THESE} {found.n_none}"
    lines.append(f"{len(found.names)} images labeled by {found.version}: {counts}")
    if found.failures:
        lines.append(f"{len(found.failures)} cannot be read:")
        lines += [f"  {reason}" for reason in list(found.failures.values())[:SHOWN]]
        if len(found.failures) > SHOWN:
            lines.append(f"  and {len(found.failures) - SHOWN} more (--json lists all)")
    return lines
