"""Commands on a folder or bucket of images, from the first selection to the model, and Label Studio's local files."""

from __future__ import annotations

import json
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from backend.cli_common import ON_FILES, SET_UP, AsJson, Control, ImageField, Several, example, settings_of
from backend.errors import UsageError
from backend.progress import progress, waiting

if TYPE_CHECKING:
    from collections.abc import Collection

    from backend.adapters.image_source import ImageSource
    from backend.config import Settings
    from backend.lightly import Dataset
    from backend.services import Services


class Strategy(StrEnum):
    """What `select` goes by."""

    TYPICAL = "typical"
    DIVERSITY = "diversity"
    RANDOM = "random"
    MARGIN = "margin"
    LEAST_CONFIDENCE = "least-confidence"
    ENTROPY = "entropy"


_BY_SCORES = (Strategy.MARGIN, Strategy.LEAST_CONFIDENCE, Strategy.ENTROPY)

Images = Annotated[
    str, typer.Argument(metavar="FOLDER|ADDRESS", help="Folder of images, or address such as s3://bucket/photos.")
]
NameFilter = Annotated[
    str | None,
    typer.Option(
        "--filter",
        metavar="REGEX",
        help="Which files are images, as in Label Studio's storages; default: those that end in .jpg, .png, …",
    ),
]
Only = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Take these images only: a list of names such as full_train.json of `split`."),
]
Cache = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="Where embeddings and tags are kept; default: a folder in DATA_DIR/folders."),
]


def register(app: typer.Typer) -> None:
    """Adds these commands."""
    app.command(
        rich_help_panel=ON_FILES,
        epilog=example(
            "python -m backend split dataset2/ work/",
            "python -m backend split s3://bucket/photos work/ --one-in 10 --seed 3",
            "python -m backend split photos/ work/ --labels annotation-0.json",
        ),
    )(split)
    app.command(
        rich_help_panel=ON_FILES,
        epilog=example(
            "python -m backend select dataset2/ --n 30 --tag initial --only work/full_train.json",
            "python -m backend select dataset2/ --n 30 --tag second --preselected initial --by-scores work/ "
            "--only work/full_train.json",
            "python -m backend select dataset2/ --n 30 --tag second --preselected initial "
            "--by-scores model.safetensors",
        ),
    )(select)
    app.command(
        rich_help_panel=ON_FILES,
        epilog=example(
            "python -m backend fetch dataset2/ samples_for_labelling/ --tag initial",
            "python -m backend fetch s3://bucket/photos samples_for_labelling/ --tag second",
        ),
    )(fetch)
    app.command(
        rich_help_panel=SET_UP,
        epilog=example(
            "python -m backend storage 3 samples_for_labelling/",
            "python -m backend storage 3 samples_for_labelling/ --target annotations/ --filter '.*png'",
        ),
    )(storage)
    app.command(
        rich_help_panel=ON_FILES,
        epilog=example(
            "python -m backend train dataset2/ --labels annotation-0.json --validation work/val.json "
            "--out model.safetensors --predictions work/",
            "python -m backend train s3://bucket/photos --labels annotation-0.json --labels annotation-1.json "
            "--out model.safetensors",
        ),
    )(train)


def split(
    context: typer.Context,
    images: Images,
    out: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where full_train.json and val.json are written.")],
    one_in: Annotated[int, typer.Option(min=2, help="One image in so many of each class is for validation.")] = 5,
    seed: Annotated[int, typer.Option(min=0, help="Which ones; the same seed gives the same.")] = 0,
    labels: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Labels in place of the classes in names, as Label Studio exports them, or file name → list of "
            "classes; repeat it, the later counts. Those of the training images become train.json.",
        ),
    ] = None,
    control: Control = None,
    image_field: ImageField = None,
    several: Several = False,
    name_filter: NameFilter = None,
    as_json: AsJson = False,
) -> None:
    """Divide images into training and validation by class: full_train.json, names, and val.json, names with classes.

    Classes are the folders that images lie in, or the letters that file names begin with, as in cloudy1.jpg, or the
    labels in files. No image is moved; the other commands take the files.
    """
    from backend.loop.folder import split as run
    from backend.loop.folder import write_split
    from backend.loop.learn import read_labels

    if not labels and (control or image_field or several):
        raise UsageError("--control, --image-field and --several go with --labels FILE; classes in names are one each")
    names = _source(context, images, name_filter)[1].names()
    given = None
    if labels:
        given = read_labels(labels, names, control=control, image_field=image_field, several=several)
    found = run(names, one_in=one_in, seed=seed, labels=given)
    train_file, validation_file, *labels_file = write_split(found, out)
    known = found.training_labels
    if as_json:
        counts = {"n_train": len(found.train), "n_validation": len(found.validation), "classes": dict(found.classes)}
        more = {} if known is None else {"training_labels": str(*labels_file), "n_training_labels": len(known)}
        said = {"train": str(train_file), "validation": str(validation_file), **counts, **more}
        typer.echo(json.dumps(said, indent=2, ensure_ascii=False))
        return
    typer.echo(f"{train_file}: {len(found.train)} images; {validation_file}: {len(found.validation)} with classes")
    if known is not None:
        typer.echo(f"{labels_file[0]}: {len(known)} with classes to train on")
    typer.echo(", ".join(f"{name} {n}" for name, n in found.classes.items()))


def select(
    context: typer.Context,
    images: Images,
    tag: Annotated[str, typer.Option(help="Name of the tag that the images become, after those preselected.")],
    n: Annotated[int, typer.Option("--n", min=1, help="How many new images.")] = 30,
    strategy: Annotated[
        Strategy | None,
        typer.Option(
            help="typical: typical of many and unlike each other, the default; with --by-scores margin: unsure of two "
            "classes, and unlike each other."
        ),
    ] = None,
    by_scores: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE|FOLDER", help="A model of `train`, or predictions in Lightly's format as it writes them."
        ),
    ] = None,
    task_name: Annotated[
        str | None, typer.Option("--task", help="Which of the predictions' tasks, where there are several.")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Lightly's selection config as JSON, in place of --n and --strategy."),
    ] = None,
    preselected: Annotated[str | None, typer.Option(metavar="TAG", help="Images selected before.")] = None,
    only: Only = None,
    name_filter: NameFilter = None,
    cache: Cache = None,
    as_json: AsJson = False,
) -> None:
    """Choose the images to label: first by embeddings, later by the scores of a model's predictions.

    Prints the new names, best first. The tag holds the preselected and the new ones.
    """
    from backend.formats.lightly_predictions import read_predictions
    from backend.formats.simple import read_json
    from backend.lightly import select as run
    from backend.loop.apply import model_of_file
    from backend.loop.folder import read_names
    from backend.loop.learn import aligned, only_task, predicted_by, set_scores

    if config is not None and (strategy is not None or _given(context, "n")):
        raise UsageError("--config goes without --n and --strategy; the config has n_samples and strategies of its own")
    if strategy in _BY_SCORES and by_scores is None:
        raise UsageError(
            f"--strategy {strategy} needs predictions; give --by-scores FILE or FOLDER, or another strategy"
        )
    folder = by_scores if by_scores is not None and by_scores.is_dir() else None
    if task_name is not None and folder is None:
        raise UsageError("--task goes with --by-scores FOLDER, whose predictions have tasks")
    if by_scores is not None and strategy not in (None, *_BY_SCORES):
        raise UsageError(f"--strategy {strategy} uses no scores; leave --by-scores out, or choose margin")
    if by_scores is not None and not by_scores.exists():
        raise UsageError(f"--by-scores {by_scores} is not there; give a model of `train`, or a folder of predictions")
    model = None if by_scores is None or folder is not None else model_of_file(by_scores)
    predictions = None if folder is None else read_predictions(folder, task_name or only_task(folder))
    wanted: Any = read_json(config) if config is not None else _selection_config(n, strategy, by_scores is not None)
    dataset, services = _dataset(context, images, name_filter, cache, None if only is None else read_names(only))
    probabilities = None if predictions is None else aligned(predictions, dataset.names)
    classes = None if predictions is None else predictions.classes
    scores = None
    if model is not None:
        probabilities, classes = predicted_by(model, dataset, services.backbone()), model.head.classes
        scores = None if model.head.threshold is None else set_scores(probabilities)
    new = run(
        dataset,
        wanted,
        tag_name=tag,
        preselected_tag_name=preselected,
        scores=scores,
        predictions=probabilities,
        classes=classes,
    )
    n_tagged = len(dataset.tags.get(tag))
    if as_json:
        typer.echo(json.dumps({"tag": tag, "n_tagged": n_tagged, "new": new}, indent=2, ensure_ascii=False))
        return
    for name in new:
        typer.echo(name)
    if len(new) < n and config is None:
        typer.echo(f"note: no more than {len(new)} images were left to choose from", err=True)


def fetch(
    context: typer.Context,
    images: Images,
    out: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where they are put, by their names.")],
    tag: Annotated[str, typer.Option(help="The tag whose images are wanted, as `select` made it.")],
    without: Annotated[str | None, typer.Option(metavar="TAG", help="But for the images of this tag.")] = None,
    copy: Annotated[bool, typer.Option("--copy", help="Copies in place of links; of a bucket always.")] = False,
    cache: Cache = None,
    as_json: AsJson = False,
) -> None:
    """Put a tag's images into a folder to be labeled, as links or copies; safe to run again, with a later tag too."""
    from backend.lightly import Tags
    from backend.loop.folder import fetch as run

    services, source = _source(context, images, ".*")  # what a tag holds was an image to `select`
    tags = Tags((), _cache_of(services.settings, source, cache) / "tags")
    names = tags.get(tag) if without is None else tags.difference(tag, without)
    with progress() as advance:
        done = run(source, names, out, copy=copy, advance=lambda n, total: advance("fetching", n, total))
    if as_json:
        typer.echo(json.dumps({"folder": str(out), **asdict(done)}, indent=2, ensure_ascii=False))
    else:
        typer.echo(f"{out}: {done.n_new} new, {done.n_there} were there")
        for name, reason in done.failed.items():
            typer.echo(f"{name}: {reason}", err=True)
    if done.failed:
        raise typer.Exit(1)


def storage(
    context: typer.Context,
    project: Annotated[int, typer.Argument(help="Project id.")],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Images, where Label Studio sees them.")],
    target: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where Label Studio saves annotations; default: nowhere.")
    ] = None,
    name_filter: Annotated[
        str | None,
        typer.Option("--filter", metavar="REGEX", help="Which files become tasks, such as '.*png'; default: images."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make tasks of a folder's files by Label Studio's local-files storage; safe to run again when there are more.

    Label Studio must have been started with LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true and
    LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT, a folder that holds this one.
    """
    from backend.loop.local_files import IMAGE_FILTER, save_storages
    from backend.services import Services

    label_studio = Services(settings_of(context, quiet=True)).label_studio
    if target is not None:
        try:
            target.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            raise UsageError(f"--target {target} cannot be made ({exc.strerror}); name a folder you own") from exc
    with waiting("Label Studio reads the folder"):
        done = save_storages(
            label_studio,
            project,
            folder.absolute(),
            target=None if target is None else target.absolute(),
            name_filter=IMAGE_FILTER if name_filter is None else name_filter,
        )
    if as_json:
        typer.echo(json.dumps(asdict(done), indent=2))
        return
    typer.echo(f"project {project}: {done.n_new_tasks} new tasks from {folder} (storage {done.source_id})")
    if target is not None:
        typer.echo(f"annotations are saved to {target} (storage {done.target_id}), {done.n_saved} so far")


def train(
    context: typer.Context,
    images: Images,
    labels: Annotated[
        list[Path],
        typer.Option(
            metavar="FILE",
            help="Labels as Label Studio exports them, or file name → list of classes; repeat it, the later counts.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The model, a safetensors file.")],
    validation: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="val.json of `split`: images to judge by, which nothing is learned from."),
    ] = None,
    predictions: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Write predictions for all images not in --validation there, in Lightly's format."
        ),
    ] = None,
    task_name: Annotated[str, typer.Option("--task", help="The predictions' name.")] = "classification",
    control: Control = None,
    image_field: ImageField = None,
    several: Several = False,
    only: Only = None,
    name_filter: NameFilter = None,
    cache: Cache = None,
    as_json: AsJson = False,
) -> None:
    """Train on labels in files, with the service's learner: it learns from the unlabeled images, too.

    Prints the accuracy on the labels and on the validation images; where images may have several labels, it is the
    share of those all of whose labels are right.
    """
    from backend.adapters.registry import save_head
    from backend.formats.lightly_predictions import write_predictions
    from backend.loop.folder import read_names
    from backend.loop.learn import are_sets, learn, read_labels, read_validation

    if task_name != "classification" and predictions is None:
        raise UsageError("--task names predictions; give --predictions FOLDER, too")
    if not out.parent.is_dir():
        raise UsageError(f"--out {out}: there is no folder {out.parent}; make it first")
    for option, file in (*(("--labels", path) for path in labels), ("--validation", validation)):
        if file is not None and not file.exists():  # said before everything is embedded
            raise UsageError(f"{option} {file}: there is no such file; name one that is there")
    _check_predictions(predictions, out, several=several)
    wanted = None
    if only is not None:
        judged = read_names(validation) if validation is not None else []
        wanted = {*read_names(only), *judged}
    dataset, services = _dataset(context, images, name_filter, cache, wanted)
    backbone = services.backbone()
    given = read_labels(labels, dataset.names, control=control, image_field=image_field, several=several)
    several = are_sets(given)
    _check_predictions(predictions, out, several=several)
    learned = learn(
        dataset,
        given,
        validation={} if validation is None else read_validation(validation, dataset.names, several=several),
        n_details=backbone.n_details,
        random_state=services.settings.random_state,
    )
    save_head(out, learned.head, {"backbone": backbone.name, "fingerprint": backbone.fingerprint})
    if predictions is not None:
        write_predictions(predictions, task_name, learned.head.classes, learned.names, learned.probabilities)
    if as_json:
        said = {
            "model": str(out),
            "classes": learned.head.classes,
            "several": several,
            "threshold": learned.head.threshold,
            "n_labels": learned.n_labels,
            "n_unlabeled": learned.n_unlabeled,
            "training_accuracy": learned.training_accuracy,
            "expected_accuracy": learned.expected_accuracy,
            "n_validation": learned.n_validation,
            "validation_accuracy": learned.validation_accuracy,
            "label_figures": learned.label_figures,
            "predictions": None if predictions is None else str(predictions),
            "backbone": backbone.name,
        }
        typer.echo(json.dumps(said, indent=2, ensure_ascii=False))
        return
    what = "images labeled with" if several else "labels of"
    typer.echo(f"{out}: {learned.n_labels} {what} {len(learned.head.classes)} classes, {learned.n_unlabeled} without")
    if several:
        typer.echo("Accuracies are shares of the images all of whose labels are right.")
    text = f"Training accuracy: {learned.training_accuracy:.1%}"
    if learned.expected_accuracy is not None:
        text += f"   cross-validated: {learned.expected_accuracy:.1%}"
    if learned.validation_accuracy is not None:
        text += f"   Validation accuracy: {learned.validation_accuracy:.1%} of {learned.n_validation}"
    typer.echo(text)
    if (figures := learned.label_figures) is not None:
        f1 = "" if figures["macro_f1"] is None else f"   macro F1: {figures['macro_f1']:.3f}"
        typer.echo(f"Labels right: {figures['label_accuracy']:.1%}{f1}   of {figures['basis']}")
    if predictions is not None:
        typer.echo(f"{predictions}: predictions of {len(learned.names)} images, task {task_name!r}")


# -- what they share --------------------------------------------------------------------------------------------------


def _source(context: typer.Context, images: str, name_filter: str | None) -> tuple[Services, ImageSource]:
    from backend.loop.image_files import place_of
    from backend.services import Services

    services = Services(settings_of(context, quiet=True))
    return services, services.image_source(place_of("IMAGES", images), name_filter)


def _cache_of(settings: Settings, source: ImageSource, cache: Path | None) -> Path:
    from backend.loop.folder import cache_of

    if cache is not None:
        return cache
    if not isinstance(settings.data_dir, Path):
        raise UsageError(f"DATA_DIR is {settings.data_dir}, no folder on this disk; give --cache FOLDER")
    return cache_of(source.place, settings.data_dir / "folders")


def _dataset(
    context: typer.Context, images: str, name_filter: str | None, cache: Path | None, only: Collection[str] | None
) -> tuple[Dataset, Services]:
    from backend.loop.folder import open_folder

    services, source = _source(context, images, name_filter)
    backbone = services.backbone()
    if backbone.warning:
        typer.echo(f"note: {backbone.warning}", err=True)
    with progress() as advance:
        dataset = open_folder(
            source,
            cache=_cache_of(services.settings, source, cache),
            backbone=backbone,
            only=only,
            advance=lambda done, total: advance("embedding", done, total),
            max_image_pixels=services.settings.max_image_pixels,
        )
    return dataset, services


def _check_predictions(folder: Path | None, model: Path, *, several: bool) -> None:
    """Raises UsageError where predictions are wanted that Lightly's format cannot hold."""
    if several and folder is not None:
        raise UsageError(
            "--predictions: images have several labels, and in Lightly's format the probabilities of an image's "
            f"classes sum to 1; leave it out, and give the model to `select`: --by-scores {model}"
        )


def _given(context: typer.Context, name: str) -> bool:
    """Whether an option stands in the command line."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _selection_config(n: int, strategy: Strategy | None, has_scores: bool) -> dict[str, Any]:
    """A config as Lightly's, for `select`."""
    embeddings = {"type": "EMBEDDINGS"}
    diversity = {"input": embeddings, "strategy": {"type": "DIVERSITY"}}
    strategy = strategy or (Strategy.MARGIN if has_scores else Strategy.TYPICAL)
    others = {
        Strategy.DIVERSITY: [diversity],
        Strategy.TYPICAL: [diversity, {"input": embeddings, "strategy": {"type": "TYPICALITY"}}],
        Strategy.RANDOM: [{"input": {"type": "RANDOM"}, "strategy": {"type": "WEIGHTS"}}],
    }
    if strategy in others:
        return {"n_samples": n, "strategies": others[strategy]}
    scores = {"type": "SCORES", "score": f"uncertainty_{strategy.replace('-', '_')}"}
    return {"n_samples": n, "strategies": [{"input": scores, "strategy": {"type": "WEIGHTS"}}, diversity]}
