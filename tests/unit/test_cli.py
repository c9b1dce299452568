"""The command line: each command prints what it should, and a mistake is one sentence and exit code 1."""

from __future__ import annotations

import json
import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import typer
from fakes import CREATED, LABEL_CONFIG, World, add_cats_and_dogs, label, retrain, rgb
from live import png
from PIL import Image
from s3 import put
from typer.testing import CliRunner, Result

from backend import cli
from backend.addresses import forbidden_except
from backend.cli_common import ON_FILES
from backend.config import Settings, describe_settings
from backend.errors import (
    BackendError,
    LabelStudioUnreachableError,
    ProjectNotFoundError,
    ProjectNotReadyError,
    RedisUnavailableError,
    SettingsError,
    UsageError,
)
from backend.formats.simple import write_simple
from backend.logs import configure_logging
from backend.loop.simulate import STRATEGIES
from backend.shown import status_lines
from backend.storage import Address

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.usefixtures("logging_as_before")


@pytest.fixture
def built(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    """Commands find these services, whatever their settings; `built.given` would be those of the environment."""
    monkeypatch.setattr("backend.services.Services", lambda _: world.services)
    return world


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, arguments)


def test_settings_are_listed_with_default_and_meaning() -> None:
    """Every one of them, and none shows a secret's value."""
    output = run("settings").output
    lines = output.splitlines()
    assert len(lines) == len(describe_settings())
    for (name, default, description), line in zip(describe_settings(), lines, strict=True):
        assert line.startswith(name)
        assert default in line
        assert line.endswith(description)


def test_settings_as_their_page() -> None:
    """docs/settings.md is what the command prints, so it cannot be out of date; the README's few are among its rows."""
    page = run("settings", "--markdown").output
    assert (ROOT / "docs" / "settings.md").read_text(encoding="utf-8") == page, "settings --markdown > docs/settings.md"
    readme = (ROOT / "README.md").read_text(encoding="utf-8").partition("\n## Settings\n")[2].partition("\n## ")[0]
    rows = [line for line in readme.splitlines() if line.startswith("| `")]
    assert rows
    assert set(rows) <= set(page.splitlines())


def test_every_command_is_explained() -> None:
    """`--help` names every command, and every command has a sentence of its own."""
    output = run("--help").output
    names = [command.name or command.callback.__name__ for command in cli.app.registered_commands if command.callback]
    assert {"web", "worker", "connect", "doctor", "status", "settings", "demo"} <= set(names)
    for name in names:
        assert name in output
        explained = run(name, "--help")
        assert explained.exit_code == 0
        assert len(explained.output) > 100


COMMANDS = {
    command.name or command.callback.__name__: command for command in cli.app.registered_commands if command.callback
}
ENDLESS = {"demo", "web", "worker"}
"""They run until they are stopped; the tests of the demo and of the servers run them."""


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_an_example_that_can_be_typed(name: str) -> None:
    """Its help shows at least one, and each is a command line that the parser takes."""
    command = COMMANDS[name]
    assert command.rich_help_panel in (cli.TRY_IT, cli.SET_UP, cli.LABELING, cli.PLAN, ON_FILES)
    lines = (command.epilog or "").split("\n\n")
    assert lines[0] == "For example:"
    shown = " ".join(run(name, "--help").output.split())
    for line in lines[1:]:
        assert line.split()[0] in shown
        if line.startswith("python -m backend "):
            parsed_without_error(line)
    assert any(line.startswith("python -m backend ") for line in lines)


def parsed_without_error(line: str) -> None:
    """Raises click's UsageError for a command line that nobody could run; what follows a pipe or a > is the shell's."""
    arguments = shlex.split(line.split("|")[0].split(" > ")[0])[3:]
    group: Any = typer.main.get_command(cli.app)
    context = group.make_context("backend", arguments, resilient_parsing=False)
    name, command, rest = group.resolve_command(context, [*context._protected_args, *context.args])
    command.make_context(name, rest, parent=context)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_test(name: str) -> None:
    """It is run somewhere among the tests."""
    asked = re.compile(rf'"{name}"')
    assert [path for path in (ROOT / "tests").rglob("test_*.py") if asked.search(path.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("name", sorted(set(COMMANDS) - ENDLESS))
def test_every_command_that_answers_has_json(name: str) -> None:
    """One switch for programs, everywhere of the same name."""
    assert "--json" in run(name, "--help").output


def test_the_exit_codes_are_told_and_kept() -> None:
    """`--help` names them all, and each kind of error has its own."""
    shown = " ".join(run("--help").output.split())
    assert all(f"{code} {meaning}" in shown for code, meaning in cli.EXIT_CODES.items())
    assert cli.exit_code(BackendError("no")) == cli.exit_code(SettingsError("no")) == 1
    assert cli.exit_code(UsageError("no")) == 2
    away = (RedisUnavailableError("no"), LabelStudioUnreachableError("no"), ProjectNotReadyError("no"))
    assert [cli.exit_code(error) for error in away] == [3, 3, 3]


@pytest.mark.parametrize("name", sorted(set(COMMANDS) - {"settings", "simulate", "banned-subnets"}))
def test_a_mistyped_option_is_exit_code_2(name: str) -> None:
    """Before anything is read or asked."""
    done = run(name, "--no-such-option")
    assert done.exit_code == 2
    assert "no-such-option" in done.stderr


@pytest.mark.parametrize("arguments", [["status", "1"], ["connect", "1"], ["models", "1", "--use", "newest"]])
def test_without_redis_is_exit_code_3_or_what_is_known_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    """A status is read from the data folder; what needs Redis says that it is away."""
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1/0")
    monkeypatch.setenv("DATA_DIR", str(tmp_path))
    monkeypatch.setenv("LABEL_STUDIO_URL", "http://127.0.0.1:1")
    assert run_main(monkeypatch, *arguments) == (1 if arguments[0] != "connect" else 3)
    assert capsys.readouterr().err.startswith("error: ")


def test_a_shell_can_complete_the_program_of_the_clone(tmp_path: Path) -> None:
    """Its script is printed, and asking with the word begun gives the commands."""
    program = ROOT / cli.PROGRAM
    assert os.access(program, os.X_OK)
    environment = {"PATH": os.defpath, "_ACTIVE_LEARNING_COMPLETE": "complete_bash"}
    begun = {"COMP_WORDS": "active-learning s", "COMP_CWORD": "1"}
    done = subprocess.run(
        [sys.executable, str(program)],
        cwd=tmp_path, env={**environment, **begun}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.stdout.split() == ["settings", "status", "suspects", "simulate", "split", "select", "storage"]


def test_the_program_of_the_clone_finds_its_python_wherever_it_is_called_from(tmp_path: Path) -> None:
    """In a folder with a space in its name, from another one."""
    if not Path(sys.prefix, "bin", "python").exists():
        pytest.skip("these tests run in no virtual environment")
    clone = tmp_path / "my clone"
    clone.mkdir()
    shutil.copy(ROOT / cli.PROGRAM, clone)
    (clone / ".venv").symlink_to(sys.prefix)
    (clone / "backend").symlink_to(ROOT / "backend")
    done = subprocess.run(
        [clone / cli.PROGRAM, "banned-subnets", "172.20.0.0/24"],
        cwd=tmp_path, env={"PATH": os.defpath}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.stdout.strip() == ",".join(forbidden_except("172.20.0.0/24")), done.stderr


def test_completion_of_no_program_says_which_to_use(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`python -m backend` is three words."""
    assert run_main(monkeypatch, "--install-completion") == 2
    assert "run: ./active-learning --install-completion" in capsys.readouterr().err


def test_settings_and_banned_subnets_as_json() -> None:
    """For programs."""
    rows = json.loads(run("settings", "--json").output)["settings"]
    assert [row["name"] for row in rows] == [name for name, _, _ in describe_settings()]
    banned = json.loads(run("banned-subnets", "172.20.0.0/24", "--json").output)
    assert banned == {"USER_ADDITIONAL_BANNED_SUBNETS": forbidden_except("172.20.0.0/24")}


def test_simulate_prints_a_table_and_writes_every_measurement(tmp_path: Path) -> None:
    """Twelve images of two colours, one strategy, two seeds: a row of the table, two rows in the file."""
    for number in range(12):
        target = tmp_path / "images" / ("red", "blue")[number % 2] / f"{number}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (250 - number, 0, 0) if number % 2 == 0 else (0, 0, 250 - number)).save(target)
    file = tmp_path / "out.json"
    picture = tmp_path / "out.svg"
    arguments = ("--images", str(tmp_path / "images"), "--strategy", "default", "--budgets", "4", "--seeds", "2")
    done = CliRunner().invoke(
        cli.app,
        ("simulate", *arguments, "--json", str(file), "--plot", str(picture)),
        env={"BACKBONE": "descriptor", "SEED_SIZE": "4"},
    )
    assert done.exit_code == 0, done.output
    assert "default" in done.output
    assert "1.000 ± 0.000" in done.output
    assert "default: what the service does with these settings" in done.output
    content = json.loads(file.read_text())
    assert [(row["strategy"], row["budget"], row["seed"]) for row in content["rows"]] == [
        ("default", 4, 0),
        ("default", 4, 1),
    ]
    assert (content["images"], content["n_images"], content["backbone"]) == ("images", 12, "descriptor")
    assert "images, descriptor, 2 seeds" in picture.read_text(encoding="utf-8")


def test_simulate_takes_labels_from_files(tmp_path: Path) -> None:
    """Where images have several it is said what right means, and there is random in place of a baseline."""
    labels: dict[str, list[str]] = {}
    for number in range(24):
        has = [name for name, bit in (("red", 1), ("blue", 2)) if number % 4 & bit]
        colour = (240 - number if "red" in has else 9, 9, 240 - number if "blue" in has else 9)
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.new("RGB", (32, 32), colour).save(tmp_path / "images" / f"{number}.png")
        labels[f"{number}.png"] = has
    Image.new("RGB", (32, 32)).save(tmp_path / "images" / "unknown.png")
    write_simple(tmp_path / "labels.json", labels)
    arguments = ["simulate", "--images", str(tmp_path / "images"), "--budgets", "12", "--seeds", "1", "--step", "4"]
    environment = {"BACKBONE": "descriptor", "SEED_SIZE": "8"}
    given = ["--labels", str(tmp_path / "labels.json"), "--json", str(tmp_path / "out.json")]
    done = CliRunner().invoke(cli.app, [*arguments, *given], env=environment)
    assert done.exit_code == 0, (done.output, done.exception)
    assert "share of images all of whose labels are right on the held-out fifth" in done.stdout
    assert "1 of 25 images have no label and are left out" in done.stderr
    content = json.loads((tmp_path / "out.json").read_text())
    assert (content["classes"], content["several"], content["n_images"]) == ({"blue": 12, "red": 12}, True, 24)
    assert [(row["strategy"], row["budget"]) for row in content["rows"]] == [("default", 12), ("random", 12)]
    assert content["rows"][0]["accuracy"] > 0.5
    done = CliRunner().invoke(cli.app, [*arguments, *given, "--strategy", "baseline"], env=environment)
    assert "'baseline' knows one label per image" in str(done.exception)
    done = CliRunner().invoke(cli.app, [*arguments, "--several"], env=environment)
    assert "--several go with --labels" in str(done.exception)


def test_simulate_takes_a_bucket(store_address: Address, tmp_path: Path) -> None:
    """As it takes a folder; --filter says which of its files are images."""
    bucket, _, prefix = store_address.key.partition("/")
    objects = {f"{prefix}/notes.txt": b"no image"}
    for number in range(12):
        image = Image.new("RGB", (32, 32), (250 - number, 0, 0) if number % 2 == 0 else (0, 0, 250 - number))
        objects[f"{prefix}/{('red', 'blue')[number % 2]}/{number}"] = png(image)
    put(os.environ["AWS_ENDPOINT_URL"], bucket, objects)
    file = tmp_path / "out.json"
    arguments = ["simulate", "--images", str(store_address), "--strategy", "default", "--budgets", "4", "--seeds", "1"]
    environment = {"BACKBONE": "descriptor", "SEED_SIZE": "4"}
    done = CliRunner().invoke(cli.app, [*arguments, "--json", str(file)], env=environment)
    assert "holds no file whose name ends as an image's does" in str(done.exception)
    done = CliRunner().invoke(cli.app, [*arguments, "--filter", ".*/[0-9]+$", "--json", str(file)], env=environment)
    assert done.exit_code == 0, done.output
    content = json.loads(file.read_text())
    assert (content["images"], content["n_images"], content["n_unreadable"]) == ("active-learning", 12, 0)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--images", "s3://key:secret@bucket"], "--images s3://…@bucket is not a folder, or an address such as s3://"),
        (["--images", ".", "--filter", "*.png"], "the name filter '*.png' is no regular expression"),
        (["--images", "/nowhere"], "--images /nowhere is not a folder"),
        (["--images", ".", "--plot", "curves.pdf"], "'curves.pdf'; expected a name that ends in .png or .svg"),
        (["--images", ".", "--json", "/nowhere/out.json"], "--json /nowhere/out.json: there is no folder /nowhere"),
        (["--images", ".", "--budgets", "ten"], "'ten' is not a list of whole numbers such as 10,30,60"),
    ],
)
def test_simulate_says_what_is_wrong(arguments: list[str], sentence: str) -> None:
    """A missing folder, budgets that are no numbers: one sentence."""
    done = CliRunner().invoke(cli.app, ("simulate", *arguments), env={"BACKBONE": "descriptor"})
    assert sentence in str(done.exception)


def test_simulate_names_every_strategy() -> None:
    """The help text is complete."""
    output = " ".join(run("simulate", "--help").output.split())
    assert all(name in output for name in STRATEGIES)


def test_connect_says_what_it_did(built: World) -> None:
    """One line per step, and no secret among them."""
    built.label_studio.add_project(1, [rgb(1, 1)])
    done = run("connect", "1")
    assert done.exit_code == 0
    assert done.output.startswith("connected to project 1, 'Animals'\n  ML backend: http://127.0.0.1:9090")
    assert "webhook: http://127.0.0.1:9090/webhook" in done.output
    assert "pass-w0rd" not in done.output
    assert built.services.webhook_secret not in done.output


def test_connect_waits_for_the_first_batch(built: World) -> None:
    """How far the embedding is, on standard error; then what the queue is ordered by."""
    built.label_studio.add_project(1, [rgb(1, 1), rgb(2, 2)])
    built.embed_all()
    assert built.services.trainer.retrain(1) is not None
    done = run("connect", "1", "--wait")
    assert done.exit_code == 0
    assert done.stdout.splitlines()[-1].startswith("ready to label: the queue is ordered by v0001-0labels-")
    said = json.loads(run("connect", "1", "--wait", "--json").stdout)
    assert said["title"] == "Animals"
    assert said["model_version"].startswith("v0001-0labels-")
    assert len(said["steps"]) == 6


@pytest.mark.parametrize(("n_workers", "sentence"), [(0, "no worker runs"), (1, "no first batch after 1 s")])
def test_connect_does_not_wait_for_ever(
    built: World, monkeypatch: pytest.MonkeyPatch, n_workers: int, sentence: str
) -> None:
    """Without a worker not at all, else as long as it was told to."""
    built.label_studio.add_project(1, [rgb(1, 1)])
    monkeypatch.setattr(built.jobs, "n_workers", lambda: n_workers)
    done = run("connect", "1", "--wait", "--timeout-s", "1")
    assert isinstance(done.exception, ProjectNotReadyError)
    assert sentence in str(done.exception)


def test_status_on_a_terminal_is_for_people(mislabeled: World) -> None:
    """The lines that a terminal gets; JSON is for everything else."""
    lines = list(status_lines(mislabeled.services.status.project(1)))
    assert lines[0].startswith("project 1: v0001-21labels-")
    text = "\n".join(lines)
    assert "labels          21 used (cat 10, dog 11); 0 images left" in text
    assert ", cross-validated on the labeled tasks" in text
    assert "next            nothing is in the queue" in text
    assert "training        no worker runs: start one with python -m backend worker" in text
    assert "suspects        1 label looks wrong; see: python -m backend suspects 1" in text
    assert max(map(len, lines)) < 250


def test_status_of_a_project_without_a_version_is_for_people(built: World) -> None:
    """Every line stands, and none is empty."""
    built.registry.register(1, CREATED, LABEL_CONFIG)
    lines = list(status_lines(built.services.status.project(1)))
    assert lines[0] == "project 1: no version yet"
    assert "not known yet: it takes labels of two classes" in lines[2]
    assert all(line.split()[1:] for line in lines)


def test_status_is_json(built: World) -> None:
    """What the web service answers, without it."""
    built.registry.register(1, CREATED, LABEL_CONFIG)
    done = run("status", "1")
    assert done.exit_code == 0
    assert json.loads(done.output)["project_id"] == 1


def test_a_window_takes_one_line_of_the_status() -> None:
    """Lists of numbers are not spread over as many lines; nothing else is touched, and it stays the same JSON."""
    status = {
        "window": [3, 1, 2],
        "accuracy_interval": [0.5, 1e-06],
        "note": "[\n1]",
        "suspects": [{"id": 1}],
        "no": [],
    }
    text = cli._lists_of_numbers_in_one_line(json.dumps(status, indent=2))
    assert json.loads(text) == status
    assert '  "window": [3, 1, 2],\n  "accuracy_interval": [0.5, 1e-06],\n' in text
    assert '"suspects": [\n' in text


@pytest.fixture
def mislabeled(built: World) -> World:
    """Ten reds are cats and ten greens dogs, but task 1, a red, is a dog; one version is published."""
    built.label_studio.add_project(1, [rgb(250 - n, 0, n) for n in range(11)] + [rgb(0, 250 - n, n) for n in range(10)])
    built.embed_all()
    for task_id in range(1, 22):
        built.label_studio.annotate(1, task_id, "cat" if 1 < task_id <= 11 else "dog")
    retrain(built)
    return built


def test_suspects_are_listed_with_a_link(mislabeled: World) -> None:
    """Task, given label, suggested label, where to look again; then the count."""
    done = run("suspects", "1")
    assert done.exit_code == 0
    line, count = done.output.splitlines()
    assert line.startswith("task 1: labeled 'dog' (")
    assert "looks like 'cat' (" in line
    assert line.endswith("  http://127.0.0.1:8080/projects/1/data?task=1")
    assert count == f"1 of 21 labels suspected in {mislabeled.registry.published(1)}"


def test_suspects_as_json(mislabeled: World) -> None:
    """For programs: the same, with the probabilities as numbers."""
    found = json.loads(run("suspects", "1", "--json").output)
    assert found["model_version"] == mislabeled.registry.published(1)
    assert (found["n_labels"], found["n_suspects"]) == (21, 1)
    (suspect,) = found["suspects"]
    assert set(suspect) == {"task_id", "label", "suggested_label", "probability", "suggested_probability", "link"}
    assert 0 <= suspect["probability"] < 0.1


def test_labels_nobody_judged_are_not_called_right(built: World) -> None:
    """A first batch only: no labels yet, so "none suspected" would be a false comfort."""
    built.label_studio.add_project(1, [rgb(1, 1), rgb(2, 3)])
    built.embed_all()
    assert built.services.trainer.retrain(1) is not None
    done = run("suspects", "1")
    assert done.exit_code == 0
    assert done.output.startswith("no label is judged yet: v0001-0labels-")


def test_no_suspects_is_said(mislabeled: World) -> None:
    """The one wrong label is corrected: looked at all, suspected none."""
    mislabeled.label_studio.withdraw(1, 1)
    mislabeled.label_studio.annotate(1, 1, "cat")
    retrain(mislabeled)
    assert run("suspects", "1").output.startswith("0 of 21 labels suspected in v0002-21labels-")


@pytest.mark.parametrize(("project", "sentence"), [("7", "backend connect 7"), ("1", "no published version yet")])
def test_suspects_of_nothing_is_a_sentence(built: World, project: str, sentence: str) -> None:
    """A project that is not connected, and one that is and has no version."""
    built.registry.register(1, CREATED, LABEL_CONFIG)
    done = run("suspects", project)
    assert isinstance(done.exception, BackendError)
    assert sentence in str(done.exception)


@pytest.fixture
def two_versions(built: World, monkeypatch: pytest.MonkeyPatch) -> World:
    """Project 1 with versions of six and of seven labels; who waits for the worker is the worker."""
    add_cats_and_dogs(built)
    retrain(built)
    label(built, cat=[4])
    retrain(built)

    def work(project_id: int, ticket: int, timeout_s: float) -> bool:
        retrain(built, project_id)
        return True

    monkeypatch.setattr(built.jobs, "wait_for_retrain", work)
    return built


def test_models_are_listed_newest_first(two_versions: World) -> None:
    """A line each: name, time, kind, labels, accuracy, what it is used for."""
    newest, oldest = run("models", "1").output.splitlines()
    assert newest.startswith("v0002-7labels-")
    assert newest.endswith("cross-validated  published")
    assert "6 labels" in oldest
    assert "published" not in oldest
    content = json.loads(run("models", "1", "--json").output)
    assert [item["labels_used"] for item in content["versions"]] == [7, 6]


def test_a_model_is_shown(two_versions: World) -> None:
    """Its record, by its number."""
    shown = json.loads(run("models", "1", "--show", "v0001").output)
    assert (shown["labels_used"], shown["published"], shown["fingerprint"]) == (6, False, "f00d")


def test_using_a_model_goes_back_to_it_and_newest_goes_on(two_versions: World) -> None:
    """What is published after each is in the list that follows; of a wait that is none nothing is said."""
    done = run("models", "1", "--use", "v0001")
    assert done.stderr == ""
    lines = done.output.splitlines()
    assert lines[0].startswith("v0003-6labels-")
    assert "-from-v0001" in lines[0]
    assert lines[0].endswith("published")
    assert lines[2].endswith("pinned")
    lines = run("models", "1", "--use", "newest").output.splitlines()
    assert lines[0].startswith("v0004-7labels-")
    assert not any(line.endswith("pinned") for line in lines)


def test_a_worker_that_does_not_come_is_told(two_versions: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """How long it is waited, and that it is not waited longer; the pin stands all the same."""
    monkeypatch.setattr(two_versions.jobs, "wait_for_retrain", lambda *_: time.sleep(0.3))
    monkeypatch.setattr(cli, "PUBLISHED_WITHIN_S", 1.8)
    done = run("models", "1", "--use", "v0001")
    assert done.exit_code == 0
    assert done.stderr.startswith("waiting for the worker, at most so many seconds: 1 of 1\n")
    assert "not published yet: the worker is busy, or none runs" in done.stderr
    assert two_versions.registry.pin(1) is not None


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["1", "--show", "v0001", "--use", "v0001"], "cannot be given together"),
        (["1", "--use", "v0077"], "project 1 keeps no version 'v0077'"),
        (["5"], "backend connect 5"),
    ],
)
def test_models_say_what_is_wrong(two_versions: World, arguments: list[str], sentence: str) -> None:
    """One sentence."""
    done = run("models", *arguments)
    assert isinstance(done.exception, BackendError)
    assert sentence in str(done.exception)


def test_a_project_without_a_version_is_said(built: World) -> None:
    """Not an empty answer."""
    built.registry.register(1, CREATED, LABEL_CONFIG)
    assert run("models", "1").output == "project 1 has no version yet\n"


def test_doctor_refuses_a_malformed_validation_filter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is looked at: what came, what is expected."""
    monkeypatch.setenv("VALIDATION_FILTER", "split=val")
    done = run("doctor")
    assert isinstance(done.exception, BackendError)
    assert "VALIDATION_FILTER: 'split=val' is not ground_truth, or data.FIELD=VALUE" in str(done.exception)


def test_doctor_ends_with_1_when_something_is_broken(built: World) -> None:
    """Nothing runs here: failures with their cures, and the code for scripts."""
    done = run("doctor")
    assert done.exit_code == 1
    assert "FAIL  worker: 0 listening\n      → start one: python -m backend worker" in done.output
    assert "ok    Redis: answers" in done.output


def test_doctor_as_json(built: World) -> None:
    """One object per line, the same checks."""
    done = CliRunner().invoke(cli.app, ["doctor", "--json"])
    checks = [json.loads(line) for line in done.stdout.splitlines()]
    assert {"name": "Redis", "ok": True, "found": "answers", "cure": None, "warning": False} in checks
    assert done.exit_code == 1


def test_doctor_of_given_projects(built: World) -> None:
    """Only those are looked at."""
    done = run("doctor", "7", "8")
    assert "project 7: access" in done.output
    assert "project 8: access" in done.output


def test_banned_subnets_of_the_backend_s_own_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without argument the address of BACKEND_URL is let through, and only that."""
    monkeypatch.setenv("BACKEND_URL", "http://127.0.0.1:9090")
    assert run("banned-subnets").output.strip() == ",".join(forbidden_except("127.0.0.1"))


def test_banned_subnets_of_given_networks() -> None:
    """For compose, where the network is known and not the address."""
    assert run("banned-subnets", "172.20.0.0/24").output.strip() == ",".join(forbidden_except("172.20.0.0/24"))


def test_banned_subnets_of_nonsense_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Malformed networks and hosts that cannot be resolved."""
    done = run("banned-subnets", "10.0.0.1/8")
    assert isinstance(done.exception, BackendError)
    assert "172.20.0.0/24" in str(done.exception)
    monkeypatch.setenv("BACKEND_URL", "http://nowhere.invalid:9090")
    done = run("banned-subnets")
    assert isinstance(done.exception, BackendError)
    assert "nowhere.invalid" in str(done.exception)


def test_settings_come_from_a_file_if_one_is_named(
    built: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--env-file` stands before the command."""
    monkeypatch.delenv("SEED_SIZE", raising=False)
    given: list[Settings] = []
    monkeypatch.setattr("backend.services.Services", lambda settings: (given.append(settings), built.services)[1])
    built.registry.register(1, CREATED, LABEL_CONFIG)
    env_file = tmp_path / "my.env"
    env_file.write_text("SEED_SIZE=17\n")
    assert run("--env-file", str(env_file), "status", "1").exit_code == 0
    assert given[0].seed_size == 17
    assert isinstance(run("--env-file", str(tmp_path / "no.env"), "status", "1").exception, SettingsError)


def run_main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> object:
    monkeypatch.setattr(sys, "argv", ["backend", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code


def test_an_error_is_one_line_and_exit_code_1(
    built: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No traceback: what came, what was expected, what to do."""
    assert run_main(monkeypatch, "status", "9") == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(
        "error: project 9 is not connected to this service; run: python -m backend connect 9"
    )
    assert "Traceback" not in captured.err
    assert isinstance(run("connect", "9").exception, ProjectNotFoundError)


def test_ctrl_c_is_exit_code_130(built: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of any program, and without a traceback."""

    def interrupt(_: int) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(built.services.status, "project", interrupt)
    assert run_main(monkeypatch, "status", "1") == 130


def test_wrong_settings_are_told_all_at_once_by_the_real_program(tmp_path: Path) -> None:
    """`python -m backend web` with two mistakes in its environment: both lines, exit code 1, no traceback."""
    done = subprocess.run(
        [sys.executable, "-m", "backend", "web"],
        cwd=tmp_path,
        env={"PATH": os.defpath, "PYTHONPATH": str(ROOT), "WEB_WORKERS": "none", "REDIS_URL": "nowhere"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("error: settings are wrong")
    assert "WEB_WORKERS" in done.stderr
    assert "REDIS_URL" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_wrong_argument_is_told_by_the_real_program(tmp_path: Path) -> None:
    """A project that is no number, a command that is not there."""
    for arguments in (["connect", "x"], ["conect", "1"], []):
        done = subprocess.run(
            [sys.executable, "-m", "backend", *arguments],
            cwd=tmp_path,
            env={"PATH": os.defpath, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 2
        assert "Usage" in done.stdout + done.stderr
        assert "Traceback" not in done.stderr


def test_log_lines_have_utc_times_and_libraries_are_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    """One line per event on standard error; other packages speak from WARNING on."""
    configure_logging("INFO")
    logging.getLogger("backend.test").info("retrained project=3")
    logging.getLogger("httpx").info("chatter")
    logging.getLogger("httpx").warning("trouble")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert lines[0].endswith("Z INFO backend.test retrained project=3")
    assert lines[1].endswith("Z WARNING httpx trouble")
