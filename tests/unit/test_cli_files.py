"""The commands on a folder of images, one after the other as a person runs them, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from fakes import TinyBackbone
from PIL import Image
from s3 import put
from typer.testing import CliRunner, Result

from backend import cli
from backend.adapters.registry import load_head, save_head
from backend.errors import SelectionError, TagError, UsageError, VersionUnusableError
from backend.formats.lightly_predictions import check_predictions, read_predictions
from backend.formats.simple import write_simple
from backend.services import Services
from backend.storage import Address

pytestmark = pytest.mark.usefixtures("logging_as_before")


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


def test_several_labels_per_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train, select by the model and predict; whole sets count, and Lightly's format is refused by name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATA_DIR", str(tmp_path / "data"))
    truth: dict[str, list[str]] = {}
    for n in range(8):
        for letter, label, colour in (("r", ["red"], (200 + n, 20, 20)), ("y", ["red", "green"], (200 + n, 200, 20)),
                                      ("g", ["green"], (20, 200 + n, 20)), ("b", [], (20, 20, 100 + n))):  # fmt: skip
            truth[f"{letter}{n}.png"] = label
            Path("images").mkdir(exist_ok=True)
            Image.new("RGB", (2, 2), colour).save(f"images/{letter}{n}.png")
    labels, judged = Path("labels.json"), Path("val.json")
    write_simple(labels, {name: label for name, label in truth.items() if int(name[1]) < 4})
    write_simple(judged, {name: label for name, label in truth.items() if int(name[1]) == 7})
    write_simple(Path("all.json"), truth)
    split = json.loads(said("split", "images", "work", "--labels", "all.json", "--one-in", "4", "--json"))
    assert (split["n_train"], split["n_validation"], split["n_training_labels"]) == (24, 8, 24)
    assert "work/train.json: 24 with classes to train on" in said("split", "images", "work", "--labels", "all.json",
                                                                  "--one-in", "4")  # fmt: skip
    divided = ["--labels", "work/train.json", "--validation", "work/val.json", "--out", "m.safetensors"]
    assert json.loads(said("train", "images", *divided, "--json"))["validation_accuracy"] == 1.0
    done = run("split", "images", "work", "--several")
    assert "--several go with --labels FILE" in str(done.exception)

    train = ["train", "images", "--labels", labels, "--validation", judged, "--out", "m.safetensors"]
    found = json.loads(said(*train, "--json"))
    assert (found["several"], found["n_labels"], found["n_validation"]) == (True, 16, 4)
    assert (found["training_accuracy"], found["validation_accuracy"]) == (1.0, 1.0)
    assert found["threshold"] == load_head(Path("m.safetensors"))[0].threshold
    text = said(*train)
    assert "16 images labeled with 2 classes" in text
    assert "shares of the images all of whose labels are right" in text
    done = run(*train, "--predictions", "work")
    assert isinstance(done.exception, UsageError)
    assert "--by-scores m.safetensors" in str(done.exception)
    new = said("select", "images", "--n", "3", "--tag", "next", "--by-scores", "m.safetensors").split()
    assert len(new) == 3
    predicted = json.loads(said("predict", "images", "--model", "m.safetensors", "--csv", "out.csv", "--json"))
    assert {Path(row["file"]).name: row["labels"] for row in predicted["predictions"]} == {
        name: sorted(label) for name, label in truth.items()
    }
    assert ("red", 16) in predicted["counts"].items()
    text = said("predict", "images/b0.png", "images/y0.png", "--model", "m.safetensors")
    assert text.splitlines()[0].startswith("none of these  ")
    assert text.splitlines()[1].startswith("green, red     ")
    assert text.splitlines()[2].endswith("green 1, red 1, none of these 1")


def test_a_model_scores_as_its_predictions_do(images: Path) -> None:
    """Of one label per image; a model of another network is refused by name."""
    labels = answer([f"{label}{n}.png" for label in ("cat", "dog") for n in range(3)], Path("labels.json").absolute())
    said("train", images, "--labels", labels, "--out", "m.safetensors", "--predictions", "work")
    by_predictions = said("select", images, "--n", "4", "--tag", "a", "--by-scores", "work").split()
    assert said("select", images, "--n", "4", "--tag", "b", "--by-scores", "m.safetensors").split() == by_predictions
    head, _ = load_head(Path("m.safetensors"))
    save_head(Path("other"), head, {"backbone": "other", "fingerprint": "beef"})
    done = run("select", images, "--tag", "c", "--by-scores", "other")
    assert isinstance(done.exception, VersionUnusableError)
    assert "trained on the backbone other (beef)" in str(done.exception)
    done = run("select", images, "--tag", "c", "--by-scores", "m.safetensors", "--task", "x")
    assert "--task goes with --by-scores FOLDER" in str(done.exception)


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
        (["--by-scores", "nowhere"], "--by-scores nowhere is not there; give a model of `train`"),
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
        (["train", images, "--labels", "x", "--out", "m"], UsageError, "--labels x: there is no such file"),
        (["train", images, "--labels", "x", "--out", "m", "--task", "t"], UsageError, "give --predictions"),
    ):
        done = run(*arguments)
        assert isinstance(done.exception, kind), (arguments, done.output, done.exception)
        assert reason in str(done.exception)
    monkeypatch.setenv("DATA_DIR", "s3://bucket/data")
    done = run("fetch", images, "samples", "--tag", "a")
    assert "no folder on this disk; give --cache FOLDER" in str(done.exception)
