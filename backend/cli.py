"""The command line: each command is parse → one call → print."""

from __future__ import annotations

import json
import os
import re
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

import typer

from backend import cli_files, cli_formats, cli_grow
from backend.cli_common import LABELING, SET_UP, AsJson, Control, ImageField, Several, example
from backend.cli_common import settings_of as _settings
from backend.config import describe_settings
from backend.errors import (
    BackendError,
    LabelStudioUnreachableError,
    ProjectNotReadyError,
    RedisUnavailableError,
    StorageError,
    UsageError,
)
from backend.progress import progress, waiting
from backend.shown import settings_page, status_lines

if TYPE_CHECKING:
    from backend.services import Services

PUBLISHED_WITHIN_S = 20.0
"""How long `models --use` waits for the worker before it says that it does not wait longer."""

LOOK_EVERY_S = 0.5
"""Pause between two looks at a project that is waited for."""

WELL, FAILED, WRONG_USE, AWAY, STOPPED = 0, 1, 2, 3, 130
"""Exit codes: as `EXIT_CODES` says."""

EXIT_CODES = {
    WELL: "all is well",
    FAILED: "a check failed, or what was asked for cannot be done, and a sentence says why",
    WRONG_USE: "wrong use, an option or argument is missing or not as it should be",
    AWAY: "Label Studio, Redis or the data folder does not answer or not in time, try again later",
    STOPPED: "stopped with Ctrl-C",
}

AWAY_ERRORS = (RedisUnavailableError, LabelStudioUnreachableError, StorageError, ProjectNotReadyError)

TRY_IT = "1. Try it"
PLAN = "4. Plan: what would so many labels give?"

PROGRAM = "active-learning"
"""The file in the repository that shells can complete; `python -m backend` is none."""


app = typer.Typer(
    name="python -m backend",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Active learning for Label Studio: the next image shown is the one that teaches the model most.\n\n"
    "Commands stand in the order in which one needs them; each has a --help with examples, and --json for programs.",
    epilog="Settings are environment variables, or lines of a file: python -m backend --env-file .env COMMAND. "
    "`python -m backend settings` lists them.\n\nExit codes: "
    + "; ".join(f"{code} {meaning}" for code, meaning in EXIT_CODES.items())
    + f".\n\nIn a clone ./{PROGRAM} is the same, and your shell completes it after ./{PROGRAM} --install-completion.",
)


@app.callback()
def _options(
    context: typer.Context,
    env_file: Annotated[Path | None, typer.Option(help="File with settings, one NAME=value per line.")] = None,
) -> None:
    context.obj = env_file


@app.command(
    rich_help_panel=TRY_IT,
    epilog=example(
        "make demo IMAGES=~/pictures",
        "python -m backend demo --images ~/pictures --labels cat,dog",
    ),
)
def demo(
    context: typer.Context,
    images: Annotated[Path | None, typer.Option(help="Folder of images; class folders name the labels.")] = None,
    labels: Annotated[str, typer.Option(help="Labels, separated by commas; default: the class folders.")] = "",
    label_studio_port: Annotated[int, typer.Option(min=1, max=65535)] = 8080,
    backend_port: Annotated[int, typer.Option(min=1, max=65535)] = 9090,
    run_dir: Annotated[Path, typer.Option(help="Folder for everything the demo keeps.")] = Path(".run"),
) -> None:
    """Start Redis, Label Studio, web service and worker with a project of your images; Ctrl-C stops them all."""
    from backend.demo import Demo, DemoOptions

    options = DemoOptions(
        images=images,
        labels=tuple(label.strip() for label in labels.split(",") if label.strip()),
        label_studio_port=label_studio_port,
        backend_port=backend_port,
        run_dir=run_dir.absolute(),
    )
    Demo(options, env_file=context.obj).run()


@app.command(
    rich_help_panel=SET_UP,
    epilog=example(
        "python -m backend settings",
        "python -m backend settings --markdown > docs/settings.md",
    ),
)
def settings(
    as_markdown: Annotated[bool, typer.Option("--markdown", help="As the page docs/settings.md.")] = False,
    as_json: AsJson = False,
) -> None:
    """List all settings with default and meaning."""
    if as_json:
        rows = [{"name": name, "default": default, "meaning": text} for name, default, text in describe_settings()]
        typer.echo(json.dumps({"settings": rows}, indent=2, ensure_ascii=False))
        return
    if as_markdown:
        typer.echo(settings_page(), nl=False)
        return
    for name, default, description in describe_settings():
        typer.echo(f"{name:<24} {default:<28} {description}")


@app.command(rich_help_panel=SET_UP, epilog=example("python -m backend --env-file .env web"))
def web(context: typer.Context) -> None:
    """Run the web service that Label Studio talks to (gunicorn)."""
    from backend.services import Services
    from backend.web import serve

    settings = _settings(context)
    serve(Services(settings))


@app.command(rich_help_panel=SET_UP, epilog=example("python -m backend --env-file .env worker"))
def worker(context: typer.Context) -> None:
    """Run the worker that embeds, trains and fills the queue; several may run."""
    from backend.machine import give_way
    from backend.services import Services, load_modules
    from backend.supervisor import fork_supervised
    from backend.worker import run_worker

    settings = _settings(context)
    give_way()
    load_modules(before_fork=True)
    child = fork_supervised()
    run_worker(Services(settings), name=child.name, dead=child.dead)


@app.command(rich_help_panel=SET_UP, epilog=example("python -m backend connect 3 --wait"))
def connect(
    context: typer.Context,
    project: Annotated[int, typer.Argument(help="Label Studio's project id: the number in its address.")],
    wait: Annotated[
        bool, typer.Option("--wait", help="Stay until the first batch is on top of the queue, and show how far it is.")
    ] = False,
    timeout_s: Annotated[float, typer.Option(min=1, help="Longest --wait, in seconds.")] = 3600.0,
    as_json: AsJson = False,
) -> None:
    """Attach this service to a Label Studio project; safe to run again.

    ML backend with Basic auth, webhook with a secret header, sampling by uncertainty, pre-labels, embedding.
    """
    from backend.services import Services

    services = Services(_settings(context, quiet=True))
    connection = services.connector.connect(project)
    if not as_json:
        typer.echo(f"connected to project {connection.project_id}, {connection.title!r}")
        for step in connection.steps:
            typer.echo(f"  {step}")
    version = _first_version(services, project, timeout_s) if wait else None
    if as_json:
        said = {"project_id": connection.project_id, "title": connection.title, "steps": list(connection.steps)}
        typer.echo(json.dumps({**said, **({"model_version": version} if wait else {})}, indent=2, ensure_ascii=False))
    elif version:
        typer.echo(f"ready to label: the queue is ordered by {version}")


@app.command(rich_help_panel=SET_UP, epilog=example("python -m backend doctor", "python -m backend doctor 3 --json"))
def doctor(
    context: typer.Context,
    project: Annotated[list[int] | None, typer.Argument(help="Projects to check; default: all connected ones.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per check.")] = False,
) -> None:
    """Check every link in both directions and name the cure of each failure; exit code 1 if one is broken."""
    from backend.services import Services

    n_broken = n_checks = 0
    checks = Services(_settings(context, quiet=True)).doctor.examine(project or None)
    while True:
        # What hangs takes its time-out; the line is gone before the next check is printed.
        with waiting(f"checking, {n_checks} done"):
            check = next(checks, None)
        if check is None:
            break
        n_checks += 1
        n_broken += not check.ok
        if as_json:
            typer.echo(json.dumps(check.__dict__, ensure_ascii=False))
            continue
        sign = "FAIL" if not check.ok else "warn" if check.warning else "ok  "
        typer.echo(f"{sign}  {check.name}: {check.found}")
        if check.cure:
            typer.echo(f"      → {check.cure}")
    if n_broken:
        typer.echo(f"{n_broken} broken", err=True)
        raise typer.Exit(FAILED)


@app.command(
    "banned-subnets",
    rich_help_panel=SET_UP,
    epilog=example(
        "python -m backend banned-subnets",
        "python -m backend banned-subnets 172.20.0.0/24",
    ),
)
def banned_subnets(
    context: typer.Context,
    allow: Annotated[
        list[str] | None, typer.Argument(help="Networks to allow; default: the address of BACKEND_URL.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print the USER_ADDITIONAL_BANNED_SUBNETS that opens this address only."""
    from backend.addresses import forbidden_except

    if not allow:
        host = urlsplit(_settings(context, quiet=True).backend_url).hostname or ""
        try:
            allow = [socket.gethostbyname(host)]
        except OSError as exc:
            raise BackendError(f"{host!r} of BACKEND_URL cannot be resolved here; name its network yourself") from exc
    try:
        banned = forbidden_except(*allow)
    except ValueError as exc:
        raise UsageError(f"{exc}; expected a network such as 172.20.0.0/24") from exc
    typer.echo(json.dumps({"USER_ADDITIONAL_BANNED_SUBNETS": banned}) if as_json else ",".join(banned))


@app.command(
    rich_help_panel=LABELING,
    epilog=example(
        "python -m backend status 3",
        "python -m backend status 3 --json | jq .forecast.suggestion",
    ),
)
def status(
    context: typer.Context,
    project: Annotated[int, typer.Argument(help="Project id.")],
    as_json: Annotated[bool, typer.Option("--json", help="As one JSON object; so it is, too, when piped.")] = False,
) -> None:
    """Say how a project is: labels, accuracy, whether to go on, what comes next, what is going on, what fails."""
    from backend.services import Services

    found = Services(_settings(context, quiet=True)).status.project(project)
    if as_json or not sys.stdout.isatty():
        typer.echo(_lists_of_numbers_in_one_line(json.dumps(found, indent=2, ensure_ascii=False)))
        return
    for line in status_lines(found):
        typer.echo(line)


@app.command(rich_help_panel=LABELING, epilog=example("python -m backend suspects 3"))
def suspects(
    context: typer.Context,
    project: Annotated[int, typer.Argument(help="Project id.")],
    as_json: AsJson = False,
) -> None:
    """List the labels that look wrong, the likeliest error first, each with a link to the task."""
    from dataclasses import asdict

    from backend.services import Services

    found = Services(_settings(context, quiet=True)).status.suspects(project)
    if as_json:
        typer.echo(json.dumps(asdict(found), indent=2, ensure_ascii=False))
        return
    for item in found.suspects:
        typer.echo(
            f"task {item['task_id']}: labeled {item['label']!r} ({item['probability']:.1%}), "
            f"looks like {item['suggested_label']!r} ({item['suggested_probability']:.1%})  {item['link']}"
        )
    if not found.n_labels:
        typer.echo(f"no label is judged yet: {found.model_version} has too few, at least two classes need some")
        return
    rest = found.n_suspects - len(found.suspects)
    more = f"; {rest} more are not listed" if rest else ""
    typer.echo(f"{found.n_suspects} of {found.n_labels} labels suspected in {found.model_version}{more}")


@app.command(rich_help_panel=LABELING, epilog=example("python -m backend disagreements 3"))
def disagreements(
    context: typer.Context,
    project: Annotated[int, typer.Argument(help="Project id.")],
    as_json: AsJson = False,
) -> None:
    """List the tasks that several people answered differently, the greatest disagreement first, each with a link."""
    from backend.services import Services

    status = Services(_settings(context, quiet=True)).status.project(project)
    if as_json:
        found = {name: status[name] for name in ("model_version", "agreement", "n_disagreements", "disagreements")}
        typer.echo(json.dumps(found, indent=2, ensure_ascii=False))
        return
    for item in status["disagreements"]:
        answers = ", ".join(f"{label!r} {len(people)} ({_people(people)})" for label, people in item["answers"].items())
        source = "ground truth" if item["ground_truth"] else "used"
        typer.echo(f"task {item['task_id']}: {answers}; {source}: {item['label']!r}  {item['link']}")
    agreement = status["agreement"]
    if agreement is None:
        typer.echo("no task was answered by several people")
        return
    rest = status["n_disagreements"] - len(status["disagreements"])
    more = f", of which {rest} are not listed" if rest else ""
    alpha = agreement["krippendorff_alpha"]
    typer.echo(
        f"{status['n_disagreements']} of {agreement['n_tasks']} tasks with several answers, by "
        f"{agreement['n_annotators']} people, disagree{more}; mean pairwise agreement "
        f"{agreement['mean_pairwise_agreement']:.3f}, Krippendorff's alpha {'-' if alpha is None else f'{alpha:.3f}'}"
    )


@app.command(
    rich_help_panel=LABELING,
    epilog=example(
        "python -m backend models 3",
        "python -m backend models 3 --use v0012",
        "python -m backend models 3 --use newest",
    ),
)
def models(
    context: typer.Context,
    project: Annotated[int, typer.Argument(help="Project id.")],
    show: Annotated[str | None, typer.Option(metavar="VERSION", help="Print all that is kept of one version.")] = None,
    use: Annotated[
        str | None,
        typer.Option(
            metavar="VERSION", help="Go back to a version and stay with it; `newest` goes on with the labels."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List model versions, the newest first; look at one, or go back to one. VERSION may be its number: v0012."""
    from backend.loop.versions import NEWEST
    from backend.services import Services

    if show and use:
        raise UsageError("--show and --use cannot be given together; look at the version first, then use it")
    services = Services(_settings(context, quiet=True))
    versions = services.versions
    if show:
        found = json.dumps(versions.described(project, show), indent=2, ensure_ascii=False)
        typer.echo(_lists_of_numbers_in_one_line(found))
        return
    if use:
        ticket = versions.release(project) if use == NEWEST else versions.use(project, use, by="command line")[1]
        if ticket is not None and not _is_published(services, project, ticket):
            typer.echo("not published yet: the worker is busy, or none runs; it will be done", err=True)
    listed = versions.listed(project)
    if as_json:
        typer.echo(json.dumps({"versions": listed}, indent=2, ensure_ascii=False))
        return
    for item in listed:
        typer.echo(_version_in_one_line(item))
    if not listed:
        typer.echo(f"project {project} has no version yet")


@app.command(
    rich_help_panel=PLAN,
    epilog=example(
        "python -m backend simulate --images photos/ --budgets 10,30,60 --seeds 5 --json out.json --plot out.svg",
        "python -m backend simulate --images s3://bucket/photos --filter '.*[.]jpg'",
        "python -m backend simulate --images photos/ --labels labels.json --budgets 20,40,80",
    ),
)
def simulate(
    context: typer.Context,
    images: Annotated[
        str,
        typer.Option(
            metavar="FOLDER|ADDRESS",
            help="Folder of class folders, or address such as s3://bucket/photos; their names are the labels.",
        ),
    ],
    labels: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Labels in place of the folders' names, as Label Studio exports them, or file name → list of classes; "
            "repeat it, the later counts.",
        ),
    ] = None,
    control: Control = None,
    image_field: ImageField = None,
    several: Several = False,
    name_filter: Annotated[
        str | None,
        typer.Option(
            "--filter",
            metavar="REGEX",
            help="Which files are images, as in Label Studio's storages; default: those that end in .jpg, .png, …",
        ),
    ] = None,
    strategy: Annotated[
        list[str] | None, typer.Option(help="Name; may be given again. Default: the first two.")
    ] = None,
    budgets: Annotated[
        str, typer.Option(help="Numbers of labels to measure at, separated by commas.")
    ] = "10,30,60,120",
    seeds: Annotated[int, typer.Option(min=1, help="Runs, each with another held-out fifth.")] = 3,
    step: Annotated[int, typer.Option(min=1, help="Labels from one retrain to the next; the service's: 1.")] = 1,
    jobs: Annotated[int | None, typer.Option(min=1, help="Processes that share the seeds. Default: the cores.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Where to write every measurement.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Where to draw the learning curves: a .png or .svg file.")] = None,
) -> None:
    """Run the loop without Label Studio on images whose labels are known, and compare strategies.

    Strategies: default (what the service does with these settings), baseline (random order, plain logistic regression),
    and with the service's learner random, coreset, typical_coreset, typiclust, probcover throughout, or margin,
    information_density, least_confidence, entropy, coral, badge, knn_of_high_loss after the service's first batch.
    Where images may have several labels there is no baseline, and an image is right with all its labels.
    """
    from backend.loop.image_files import place_of
    from backend.loop.learn import are_sets, read_labels
    from backend.loop.plot import check_plot_file, plot_learning_curves
    from backend.loop.simulate import STRATEGIES, embed_folder, report, summary
    from backend.loop.simulate import simulate as run
    from backend.services import Services

    settings = _settings(context, quiet=True)
    place = place_of("--images", images)
    if plot is not None:
        check_plot_file(plot)
    for option, file in (("--json", json_file), ("--plot", plot)):
        if file is not None and not file.parent.is_dir():
            raise UsageError(f"{option} {file}: there is no folder {file.parent}; make it first")
    if not labels and (control or image_field or several):
        raise UsageError("--control, --image-field and --several go with --labels FILE; folders' names are one label")
    services = Services(settings)
    source = services.image_source(place, name_filter)
    given = None
    if labels:
        known = source.names()
        given = read_labels(labels, known, control=control, image_field=image_field, several=several)
        if len(given) < len(known):
            typer.echo(
                f"note: {len(known) - len(given)} of {len(known)} images have no label and are left out", err=True
            )
    several = given is not None and are_sets(given)
    backbone = services.backbone()
    if backbone.warning:
        typer.echo(f"note: {backbone.warning}", err=True)
    names = strategy or ["default", "random" if several else "baseline"]
    wanted = _whole_numbers(budgets)
    with progress() as advance:
        pictures = embed_folder(
            backbone,
            source,
            lambda done, total: advance("embedding", done, total),
            labels=given,
            max_image_pixels=settings.max_image_pixels,
        )
        n_rows = len(names) * len(set(wanted)) * seeds
        rows = []
        for row in run(
            pictures, strategies=names, budgets=wanted, n_seeds=seeds, settings=settings, step=step,
            n_jobs=jobs or os.cpu_count() or 1,
        ):  # fmt: skip
            rows.append(row)
            advance("labeling", len(rows), n_rows)
    accuracy = "share of images all of whose labels are right" if several else "accuracy"
    typer.echo(f"{accuracy} on the held-out fifth, mean ± standard deviation of {seeds} seeds")
    typer.echo("labels".ljust(18) + "".join(f"{budget:>15}" for budget in sorted(set(wanted))))
    for name, by_budget in summary(rows).items():
        cells = "".join(f"{f'{mean:.3f} ± {spread:.3f}':>15}" for mean, spread in by_budget.values())
        typer.echo(name.ljust(18) + cells)
    for name in names:
        typer.echo(f"{name}: {STRATEGIES[name][0]}")
    if json_file is not None:
        content = {"images": place.name, **report(rows, pictures, backbone, settings, step)}
        json_file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if plot is not None:
        plot_learning_curves(summary(rows), f"{place.name}, {backbone.name}, {seeds} seeds", plot)


cli_formats.register(app)
cli_files.register(app)
cli_grow.register(app)


def main() -> None:
    """Entry point: errors are one sentence and an exit code that says of which kind they are."""
    try:
        _check_completion(sys.argv)
        app()
    except BackendError as exc:
        typer.echo(f"error: {exc}", err=True)
        sys.exit(exit_code(exc))
    except KeyboardInterrupt:
        sys.exit(STOPPED)


def exit_code(exc: BackendError) -> int:
    """What a command ends with after this error; see `EXIT_CODES`."""
    return AWAY if isinstance(exc, AWAY_ERRORS) else WRONG_USE if isinstance(exc, UsageError) else FAILED


def _check_completion(arguments: Sequence[str]) -> None:
    """A shell completes what follows the name of a program, which `python -m backend` is not."""
    asked = [name for name in arguments[1:] if name in ("--install-completion", "--show-completion")]
    if asked and Path(arguments[0]).name != PROGRAM:
        raise UsageError(f"shells complete after the name of a program; run: ./{PROGRAM} {asked[0]}")


def _first_version(services: Services, project: int, timeout_s: float) -> str:
    """The published version, once there is one; meanwhile it is shown how far the embedding is."""
    deadline = time.monotonic() + timeout_s
    with progress() as advance:
        while True:
            found = services.status.project(project)
            if embedding := found["embedding"]:
                advance("embedding", embedding["done"], embedding["total"])
            if found["model_version"]:
                return str(found["model_version"])
            if found["n_workers"] == 0:
                raise ProjectNotReadyError(
                    "no worker runs, so nothing is embedded; start one: python -m backend worker, and wait again: "
                    f"python -m backend connect {project} --wait"
                )
            if time.monotonic() > deadline:
                raise ProjectNotReadyError(
                    f"project {project} has no first batch after {timeout_s:.0f} s "
                    f"({found['last_error'] or 'no error'}); how far it is: python -m backend status {project}"
                )
            time.sleep(LOOK_EVERY_S)


def _is_published(services: Services, project: int, ticket: int) -> bool:
    """Whether the worker answers the ticket in time; from the second second on it is shown how long is waited."""
    began = time.monotonic()
    with progress() as advance:
        while not services.jobs.wait_for_retrain(project, ticket, LOOK_EVERY_S):
            waited_s = time.monotonic() - began
            if waited_s >= PUBLISHED_WITHIN_S:
                return False
            if waited_s >= 1:
                advance("waiting for the worker, at most so many seconds", int(waited_s), int(PUBLISHED_WITHIN_S))
    return True


def _people(ids: Sequence[int | None]) -> str:
    """Ids as Label Studio numbers people; unknown ones as a question mark."""
    return "by " + ", ".join("?" if number is None else str(number) for number in ids)


def _version_in_one_line(item: Mapping[str, Any]) -> str:
    """Name, what it is, labels, accuracy with its interval where it was measured, and what it is used for."""
    marks = [name for name in ("published", "pinned") if item[name]]
    if "error" in item:
        return "  ".join([item["version"], *marks, item["error"]])
    accuracy = "-" if item["accuracy"] is None else f"{item['accuracy']:.3f}"
    if item["accuracy_interval"]:
        accuracy += " ({:.3f} to {:.3f})".format(*item["accuracy_interval"])
    elif item["accuracy"] is not None:
        accuracy += " cross-validated"
    source = [f"head of {item['head_of']}"] if item["head_of"] else []
    made, kind, labels = item["created_at"][:19], item["kind"], f"{item['labels_used']} labels"
    return "  ".join([f"{item['version']:<48}", made, f"{kind:<5}", f"{labels:>12}", accuracy, *source, *marks])


def _lists_of_numbers_in_one_line(text: str) -> str:
    """Indented JSON in which a window of 30 tasks takes one line and not 30; line breaks stand outside strings only."""
    return re.sub(r"\[\n[-+.\deE,\s]*\]", lambda found: "[" + " ".join(found[0][1:-1].split()) + "]", text)


def _whole_numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"--budgets {text!r} is not a list of whole numbers such as 10,30,60") from None
