"""The commands on a folder of images, one after the other as a person runs them, and what they refuse."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fakes import TinyBackbone
from PIL import Image
from s3 import put
from typer.testing import CliRunner, Result

from backend import cli
from backend.adapters.registry import load_head
from backend.errors import SelectionError, TagError, UsageError
from backend.formats.lightly_predictions import check_predictions, read_predictions
from backend.formats.simple import write_simple
from backend.services import Services
from backend.storage import Address


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    """Commands configure logging for their process; here it is put back."""
    root, ours = logging.getLogger(), logging.getLogger("backend")
    handlers, levels = list(root.handlers), (root.level, ours.level)
    yield
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    ours.setLevel(levels[1])


@pytest.fixture(autouse=True)
def backbone(monkeypatch: pytest.MonkeyPatch) -> TinyBackbone:
    """The same for every command."""
    found = TinyBackbone()
    monkeypatch.setattr(Services, "backbone", lambda _: found)
    return found


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Twenty reddish cats and twenty greenish dogs in one flat folder; everything else is put beside it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATA_DIR", str(tmp_path / "data"))
    place, random = tmp_path / "images", np.random.default_rng(0)
    place.mkdir()
    for label, colour in (("cat", (200, 60, 60)), ("dog", (60, 200, 60))):
        for n in range(20):
            shade = tuple(int(value) for value in np.clip(np.array(colour) + 20 * random.normal(size=3), 0, 255))
            Image.new("RGB", (2, 2), shade).save(place / f"{label}{n}.png")
    return place


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def said(*arguments: str | Path) -> str:
    """Standard output of a command that ends well."""
    done = run(*arguments)
    assert done.exit_code == 0, (done.output, done.exception)
    return done.stdout


def answer(names: list[str], path: Path) -> Path:
    write_simple(path, {name: ["cat" if name.startswith("cat") else "dog"] for name in names})
    return path


def test_the_tutorial_s_steps(images: Path, tmp_path: Path, backbone: TinyBackbone) -> None:
    """Split, select, fetch, train, select by scores, fetch the others; every image is embedded once."""
    split = json.loads(said("split", images, "work", "--json"))
    assert (split["n_train"], split["n_validation"], split["classes"]) == (32, 8, {"cat": 20, "dog": 20})
    only = ["--only", "work/full_train.json"]
    train_names = json.loads(Path("work/full_train.json").read_text())

    first = said("select", images, "--n", "4", "--tag", "initial", *only).split()
    assert len(first) == 4
    assert set(first) <= set(train_names)
    assert {name[:3] for name in first} == {"cat", "dog"}
    assert said("fetch", images, "samples", "--tag", "initial") == "samples: 4 new, 0 were there\n"
    assert sorted(path.name for path in Path("samples").iterdir()) == sorted(first)

    labels = answer(first, tmp_path / "annotation-0.json")
    train = ["train", images, "--labels", labels, "--validation", "work/val.json", "--out", "m.safetensors", *only]
    found = json.loads(said(*train, "--predictions", "work", "--task", "animals", "--json"))
    assert (found["n_labels"], found["n_unlabeled"], found["n_validation"]) == (4, 28, 8)
    assert (found["training_accuracy"], found["validation_accuracy"]) == (1.0, 1.0)
    head, facts = load_head(Path("m.safetensors"))
    assert head.classes == ("cat", "dog")
    assert facts == {"backbone": "tiny", "fingerprint": "f00d"}
    assert check_predictions(Path("work")) == []
    predictions = read_predictions(Path("work"), "animals")
    assert sorted(predictions.names) == train_names
    assert "Training accuracy: 100.0%" in said(*train)
    assert "Validation accuracy: 100.0% of 8" in said(*train)

    more = ["--preselected", "initial", "--by-scores", "work", *only, "--n", "3"]
    second = json.loads(said("select", images, "--tag", "second", *more, "--json"))
    assert second["n_tagged"] == 7
    assert len(set(second["new"]) - set(first)) == 3
    gap = np.abs(predictions.probabilities[:, 0] - predictions.probabilities[:, 1])
    margins = dict(zip(predictions.names, 1 - gap, strict=True))
    assert np.mean([margins[name] for name in second["new"]]) > np.mean(list(margins.values()))
    assert said("fetch", images, "samples", "--tag", "second") == "samples: 3 new, 4 were there\n"
    fetched = json.loads(said("fetch", images, "new", "--tag", "second", "--without", "initial", "--copy", "--json"))
    assert (fetched["n_new"], sorted(path.name for path in Path("new").iterdir())) == (3, sorted(second["new"]))
    assert backbone.n_embedded == 40


def test_a_bucket_is_as_a_folder(images: Path, s3_server: str, store_address: Address) -> None:
    """Its images are copied, not linked; embeddings and tags are kept on this disk."""
    bucket, _, prefix = store_address.key.partition("/")
    put(s3_server, bucket, {f"{prefix}/{path.name}": path.read_bytes() for path in images.iterdir()})
    said("split", store_address.text, "work")
    arguments = ["select", store_address.text, "--n", "4", "--tag", "initial", "--only", "work/full_train.json"]
    assert said(*arguments) == said("select", images, *arguments[2:])
    said("fetch", store_address.text, "samples", "--tag", "initial")
    names = sorted(path.name for path in Path("samples").iterdir())
    assert [Path("samples", name).read_bytes() for name in names] == [(images / name).read_bytes() for name in names]
    assert not any(Path("samples", name).is_symlink() for name in names)
    labels = answer(names, Path("annotation-0.json").absolute())
    assert "Validation accuracy" in said(
        "train", store_address.text, "--labels", labels, "--validation", "work/val.json", "--out", "m.safetensors"
    )


def test_a_selection_config_of_lightly_s(images: Path, tmp_path: Path) -> None:
    """In place of a number and a strategy."""
    config = {"n_samples": 5, "strategies": [{"input": {"type": "EMBEDDINGS"}, "strategy": {"type": "DIVERSITY"}}]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    by_config = said("select", images, "--tag", "a", "--config", "config.json").split()
    assert by_config == said("select", images, "--tag", "b", "--n", "5", "--strategy", "diversity").split()
    assert len(by_config) == 5


def test_an_image_that_is_gone_is_said(images: Path) -> None:
    """With exit code 1; the others are fetched."""
    (first, *_) = said("select", images, "--n", "3", "--tag", "a", "--strategy", "random").split()
    (images / first).unlink()
    done = run("fetch", images, "samples", "--tag", "a")
    assert done.exit_code == 1
    assert f"{first}: it is not there" in done.stderr
    assert len(list(Path("samples").iterdir())) == 2


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--config", "c.json", "--n", "3"], "--config goes without --n"),
        (["--config", "c.json", "--strategy", "random"], "--config goes without --n"),
        (["--strategy", "margin"], "--strategy margin needs predictions"),
        (["--strategy", "typical", "--by-scores", "x"], "--strategy typical uses no scores"),
        (["--task", "x"], "--task goes with --by-scores"),
    ],
)
def test_selections_that_contradict_themselves_are_refused(images: Path, arguments: list[str], reason: str) -> None:
    """Before anything is read."""
    done = run("select", images, "--tag", "a", *arguments)
    assert isinstance(done.exception, UsageError)
    assert reason in str(done.exception)


def test_what_is_not_there_is_refused_by_name(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tag that is taken or unknown, a folder that is not there, and a data folder that is in a bucket."""
    Path("one.json").write_text(json.dumps(said("select", images, "--n", "3", "--tag", "a").split()))
    for arguments, kind, reason in (
        (["select", images, "--tag", "a"], TagError, "there is a tag 'a' already"),
        (["fetch", images, "samples", "--tag", "b"], TagError, "there is no tag 'b'; the tags are: 'a'"),
        (["split", "nowhere", "work"], UsageError, "IMAGES nowhere is not a folder"),
        (["select", images, "--tag", "b", "--preselected", "a", "--only", "one.json"], SelectionError, "no image is"),
        (["train", images, "--labels", "x", "--out", "no/m"], UsageError, "there is no folder no"),
        (["train", images, "--labels", "x", "--out", "m", "--task", "t"], UsageError, "give --predictions"),
    ):
        done = run(*arguments)
        assert isinstance(done.exception, kind), (arguments, done.output, done.exception)
        assert reason in str(done.exception)
    monkeypatch.setenv("DATA_DIR", "s3://bucket/data")
    done = run("fetch", images, "samples", "--tag", "a")
    assert "no folder on this disk; give --cache FOLDER" in str(done.exception)
