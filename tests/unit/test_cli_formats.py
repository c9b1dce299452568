"""The commands on files of labels: what they print, and what they refuse before anything is read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fakes import World
from typer.testing import CliRunner, Result

from backend import cli
from backend.errors import BackendError, UsageError

SAMPLES = Path(__file__).parent / "formats" / "samples"
UPLOADS = ["/data/upload/1/0000000a-a.png", "/data/upload/1/0000000b-b.png", "/data/upload/1/0000000c-c.png"]

PREANNOTATE = ["preannotate", "1", "x", "--version", "v", "--format"]

pytestmark = pytest.mark.usefixtures("logging_as_before")


@pytest.fixture
def built(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    """Project 1 of three uploads, the first labeled and the second skipped."""
    monkeypatch.setattr("backend.services.Services", lambda _: world.services)
    world.label_studio.add_project(1, UPLOADS)
    world.label_studio.annotate(1, 1, "cat")
    world.label_studio.annotate(1, 2, None, skipped=True)
    return world


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def refusal(*arguments: str | Path) -> str:
    """The sentence of a UsageError."""
    done = run(*arguments)
    assert isinstance(done.exception, UsageError), done.output
    return str(done.exception)


def test_export_writes_to_standard_output_or_a_file(built: World, tmp_path: Path) -> None:
    """The same content; with a file it is said what is in it."""
    done = run("export", "1", "--format", "simple")
    assert json.loads(done.stdout) == {"a.png": ["cat"]}
    file = tmp_path / "labels.json"
    told = run("export", "1", "--format", "simple", "--output", file)
    assert file.read_text(encoding="utf-8") == done.stdout
    assert told.stdout == f"{file}: 1 images with labels; left out are 1 skipped and 0 submitted without a label\n"
    said = json.loads(run("export", "1", "--format", "simple", "-o", file, "--json").stdout)
    assert said == {
        "file": str(file), "n_bytes": len(done.stdout), "n_labeled": 1, "n_skipped": 1, "n_unanswered": 0,
    }  # fmt: skip
    assert run("export", "1", "-o", file).stdout == f"{file}: 21 bytes\n"
    assert file.read_text() == "JSON_MIN of project 1"


def test_export_from_a_file_asks_no_label_studio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No settings, either."""
    monkeypatch.setattr("backend.cli_formats.settings_of", lambda *_, **__: pytest.fail("settings were read"))
    done = run("export", "--from", SAMPLES / "plain.csv", "--format", "simple")
    assert json.loads(done.stdout) == {"cloudy_1.jpg": ["cloudy"], "rain1.jpg": ["rain"]}


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["export"], "either a project's id or --from"),
        (["export", "1", "--from", "x", "--format", "simple"], "either a project's id or --from"),
        (["export", "--from", "x"], "--from goes with --format simple only; json-min is"),
        (["export", "1", "--control", "x"], "--control, --image-field and --several go with --format simple"),
        (["export", "1", "--several"], "--control, --image-field and --several go with --format simple"),
        (["export", "1", "--json"], "--json goes with --output"),
        (["export", "1", "-o", "/no/such/folder/x"], "there is no folder /no/such/folder"),
        ([*PREANNOTATE, "csv", "--names", "n"], "--names goes with --format yolo"),
        ([*PREANNOTATE, "coco", "--filter", "n"], "--filter goes with"),
        ([*PREANNOTATE, "csv", "--box-rule", "most-frequent"], "--box-rule goes"),
        ([*PREANNOTATE, "csv", "--map", "cat"], "--map 'cat' is no pair"),
    ],
)  # fmt: skip
def test_what_contradicts_itself_is_refused_by_name(arguments: list[str], reason: str) -> None:
    """With exit code 2, before anything is read."""
    assert reason in refusal(*arguments)


def test_a_format_that_is_not_known_is_refused() -> None:
    """Its name, and those that are known."""
    done = run("export", "1", "--format", "xml")
    assert done.exit_code == 2
    assert "xml" in done.stderr
    assert "json-min" in done.stderr


def test_preannotate_tells_what_it_did_and_what_it_could_not(built: World, tmp_path: Path) -> None:
    """A line for each kind; --json has all of it."""
    table = tmp_path / "labels.csv"
    table.write_text("file,label\na.png,Cat\nb.png,bird\nz.png,bird\nc.png,dog\nc.png,Cat\n")
    arguments = ["preannotate", "1", table, "--format", "csv", "--version", "old", "--map", "Cat=cat"]
    lines = run(*arguments).stdout.splitlines()
    assert lines == [
        "1 predictions of version 'old'; the label of an image: of its lines the one with the highest score",
        "labels that the project does not offer: 'bird' (2); rename them with --map",
        "1 files that no task shows: z.png",
        "1 files whose label nothing decides: c.png (cat or dog)",
    ]
    found = json.loads(run(*arguments, "--json").stdout)
    assert found["n_replaced"] == 1
    assert found["unknown_labels"] == {"bird": 2}
    assert found["undecided"] == {"c.png": ["cat", "dog"]}


def test_preannotate_reads_yolo_and_coco(built: World, tmp_path: Path) -> None:
    """Class folders with a filter, and annotations."""
    for name in ("yolo/cat/b.png", "yolo/dog/c.jpg"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    run("preannotate", "1", tmp_path / "yolo", "--format", "yolo", "--version", "y", "--filter", ".*png")
    coco = {
        "images": [{"id": 1, "file_name": "c.png"}],
        "categories": [{"id": 1, "name": "dog"}],
        "annotations": [{"image_id": 1, "category_id": 1}],
    }
    (tmp_path / "coco.json").write_text(json.dumps(coco))
    run("preannotate", "1", tmp_path / "coco.json", "--format", "coco", "--version", "c")
    assert [(row["model_version"], row["task"]) for row in built.label_studio[1].predictions] == [("y", 2), ("c", 3)]


def test_preannotate_that_could_import_nothing_fails(built: World, tmp_path: Path) -> None:
    """With exit code 1 and the reason."""
    (tmp_path / "labels.csv").write_text("file,label\nz.png,cat\n")
    done = run("preannotate", "1", tmp_path / "labels.csv", "--format", "csv", "--version", "old")
    assert isinstance(done.exception, BackendError)
    assert cli.exit_code(done.exception) == 1
    assert "nothing is imported" in str(done.exception)
