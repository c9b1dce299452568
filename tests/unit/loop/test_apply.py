"""New images labeled with a version: the numbers of the service, what is wrong is said, and the sheet shows it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fakes import LABEL_CONFIG, TinyBackbone, World, rgb
from PIL import Image
from s3 import put
from typer.testing import CliRunner, Result

from backend import cli
from backend.adapters.image_source import open_images
from backend.adapters.registry import save_head
from backend.errors import (
    BackendError,
    ImageError,
    ProjectNotFoundError,
    UsageError,
    VersionNotFoundError,
    VersionUnusableError,
)
from backend.formats.preannotations import Found, read_label_table
from backend.loop.apply import (
    CELL,
    GAP,
    Predictions,
    backbone_of,
    model_of_file,
    model_of_project,
    predict_images,
    sheet_rows,
    write_sheet,
)
from backend.storage import Address

pytestmark = pytest.mark.usefixtures("logging_as_before")

COLOURS = {"red.png": (240, 0, 0), "green.png": (0, 240, 0), "sub/mixed.png": (125, 125, 0)}


@pytest.fixture
def trained(world: World) -> World:
    """Project 1 with a published model: red is a cat, green a dog."""
    world.label_studio.add_project(1, [rgb(250, 0), rgb(0, 250), rgb(240, 0), rgb(0, 240)])
    world.embed_all()
    world.label_studio.annotate(1, 1, "cat")
    world.label_studio.annotate(1, 2, "dog")
    assert world.services.trainer.retrain(1) is not None
    return world


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three images of one colour, and a file that is none."""
    place = tmp_path / "new"
    for name, colour in COLOURS.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30), colour).save(place / name)
    (place / "broken.png").write_bytes(b"no image")
    return place


def labeled(world: World, folder: Path) -> Predictions:
    source = open_images(folder, max_image_bytes=10**6)
    model = model_of_project(world.registry, 1)
    return predict_images(model, world.backbone, [(source, name) for name in source.names()], lambda *_: None)


def test_new_images_get_the_numbers_of_the_service(trained: World, folder: Path) -> None:
    """What /predict answers for a task with the same image; in the order of the names, the broken one listed."""
    found = labeled(trained, folder)
    assert [Path(name).name for name in found.names] == ["green.png", "red.png", "mixed.png"]
    assert found.labels[:2] == ["dog", "cat"]
    assert list(found.failures) == [str(folder / "broken.png")]
    task = {"id": 3, "data": {"image": rgb(240, 0)}, "project": 1}
    (answer,) = trained.services.predictor.predict(1, LABEL_CONFIG, [task])
    np.testing.assert_allclose(found.confidences[1], answer["result"][0]["score"], atol=2e-6)
    assert found.counts["dog"] + found.counts["cat"] == 3


def test_images_of_a_bucket_are_labeled(trained: World, folder: Path, s3_server: str, store_address: Address) -> None:
    """With the numbers of the same files in a folder, by their addresses."""
    bucket, _, prefix = store_address.key.partition("/")
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*.png")}
    put(s3_server, bucket, {f"{prefix}/{name}": path.read_bytes() for name, path in files.items()})
    source = open_images(store_address, max_image_bytes=10**6)
    images = [(source, name) for name in source.names()]
    found = predict_images(model_of_project(trained.registry, 1), trained.backbone, images, lambda *_: None)
    np.testing.assert_array_equal(found.probabilities, labeled(trained, folder).probabilities)
    assert found.names[0] == f"{store_address.text}/green.png"
    assert list(found.failures) == [f"{store_address.text}/broken.png"]


def test_a_version_that_was_copied_elsewhere_says_the_same(trained: World, folder: Path, tmp_path: Path) -> None:
    """Its folder, or the head in it; without its record it is no model, and a damaged head is said to be one."""
    registry = trained.registry
    name = registry.published(1)
    copied = Path(shutil.copytree(str(registry.project_directory(1) / "versions" / str(name)), tmp_path / "copied"))
    expected = model_of_project(registry, 1)
    for path in (copied, copied / "head.safetensors"):
        model = model_of_file(path)
        assert model.version == name
        np.testing.assert_array_equal(model.head.weights, expected.head.weights)
    (copied / "head.safetensors").write_bytes(b"\x00" * 40)
    with pytest.raises(VersionNotFoundError, match=r"cannot be read: .*copy the version's folder anew"):
        model_of_file(copied)
    (copied / "record.json").unlink()
    with pytest.raises(VersionNotFoundError, match=r"there is no .*record\.json; expected a file that `train` wrote"):
        model_of_file(copied)


def test_a_file_of_train_labels_as_well(trained: World, tmp_path: Path) -> None:
    """With the classes and the backbone that stand in it; one of another program is refused by name."""
    expected = model_of_project(trained.registry, 1)
    path = tmp_path / "model.safetensors"
    save_head(path, expected.head, {"backbone": expected.backbone, "fingerprint": expected.fingerprint})
    model = model_of_file(path)
    assert (model.version, model.backbone, model.fingerprint) == ("model.safetensors", "tiny", "f00d")
    np.testing.assert_array_equal(model.head.weights, expected.head.weights)
    save_head(path, expected.head, {})
    with pytest.raises(VersionNotFoundError, match="give a file that `train` wrote, or a version's folder"):
        model_of_file(path)
    path.write_text("weights")
    with pytest.raises(VersionNotFoundError, match=r"model\.safetensors cannot be read: .* is no model"):
        model_of_file(path)


def test_what_cannot_label_is_refused(world: World) -> None:
    """An unknown project, one without a version, a first batch, and another backbone, each by name."""
    with pytest.raises(ProjectNotFoundError):
        model_of_project(world.registry, 7)
    world.label_studio.add_project(1, [rgb(250, 0), rgb(0, 250)])
    world.services.connector.connect(1)
    with pytest.raises(VersionNotFoundError, match="project 1 has no published version yet"):
        model_of_project(world.registry, 1)
    world.embed_all()
    assert world.services.trainer.retrain(1) is not None
    with pytest.raises(VersionUnusableError, match="is the first batch"):
        model_of_project(world.registry, 1)


def test_another_backbone_is_refused_and_a_fine_tuned_one_found(trained: World, tmp_path: Path) -> None:
    """The embeddings of one say nothing to the head of another."""
    model = model_of_project(trained.registry, 1)
    with pytest.raises(VersionUnusableError, match=r"trained on the backbone tiny \(f00d\), but .* \(beef\)"):
        backbone_of(model, TinyBackbone(fingerprint="beef"))
    tuned = TinyBackbone("tuned-2-1-1", (2, 1, 1))
    tuned.save(tmp_path / "w" / "x.safetensors")
    beside = replace(model, fingerprint="tuned-2-1-1", weights=tmp_path / "w" / "x.safetensors")
    assert backbone_of(beside, trained.backbone).fingerprint == "tuned-2-1-1"


def of_sets(*rows: tuple[float, float]) -> Predictions:
    """Predictions of sets with the threshold 0.4."""
    return Predictions("v", ("cat", "dog"), [], [f"{n}.png" for n in range(len(rows))], np.array(rows), {}, 0.4)


def test_sets_are_told_whole() -> None:
    """All labels from the threshold on; how sure is the product over the labels; counted is each label."""
    found = of_sets((0.9, 0.4), (0.2, 0.8), (0.1, 0.3))
    assert found.labels == [("cat", "dog"), ("dog",), ()]
    assert found.confidences == pytest.approx([0.36, 0.64, 0.63])
    assert (found.counts, found.n_none) == ({"dog": 2, "cat": 1}, 1)
    said = found.to_json()
    assert [row["labels"] for row in said["predictions"]] == [["cat", "dog"], ["dog"], []]
    assert (said["threshold"], said["n_none_of_these"]) == (0.4, 1)
    assert sheet_rows(found, by_class=True, n_images=9) == [0, 1, 2]
    assert sheet_rows(of_sets((0.1, 0.1), (0.1, 0.9), (0.8, 0.9)), by_class=True, n_images=9) == [2, 1, 0]


def test_a_table_of_sets_is_read_back(tmp_path: Path) -> None:
    """A line for each label with its probability; where one label is wanted the likeliest of them."""
    path = tmp_path / "out.csv"
    path.write_text(of_sets((0.9, 0.4), (0.2, 0.8), (0.1, 0.3)).csv())
    table = read_label_table(path)
    assert table.sets == {"0.png": (Found("cat", 0.9), Found("dog", 0.4)), "1.png": (Found("dog", 0.8),)}
    assert table.labels == {"0.png": Found("cat", 0.9), "1.png": Found("dog", 0.8)}
    assert table.empty == ("2.png",)


def test_a_head_with_a_threshold_gives_sets(trained: World, folder: Path, tmp_path: Path) -> None:
    """Of a file of `train` as of a version."""
    source = open_images(folder, max_image_bytes=10**6)
    found = model_of_project(trained.registry, 1)
    path = tmp_path / "model.safetensors"
    save_head(path, replace(found.head, threshold=0.3), {"backbone": found.backbone, "fingerprint": found.fingerprint})
    for model in (model_of_file(path), replace(found, head=replace(found.head, threshold=0.3))):
        done = predict_images(model, trained.backbone, [(source, "red.png")], lambda *_: None)
        assert done.threshold == 0.3
        assert done.labels == [("cat",)]


def test_nothing_readable_is_an_error(trained: World, folder: Path) -> None:
    """With the reason of the first."""
    source = open_images(folder, max_image_bytes=10**6)
    with pytest.raises(ImageError, match=r"none of 1 images can be read; the first: .*broken\.png"):
        predict_images(model_of_project(trained.registry, 1), trained.backbone, [(source, "broken.png")], print)


def of(*cats: float) -> Predictions:
    """Predictions whose first column is this."""
    rows = np.array([(p, 1 - p) for p in cats])
    return Predictions("v", ("cat", "dog"), [], [str(row) for row in range(len(cats))], rows, {})


def test_the_order_of_a_sheet() -> None:
    """Confidences 0.9, 0.6, 0.8, 0.7, 0.95; the third and fourth are dogs."""
    found = of(0.9, 0.6, 0.2, 0.3, 0.95)
    assert sheet_rows(found, by_class=False, n_images=3) == [1, 3, 2]
    assert sheet_rows(found, by_class=True, n_images=4) == [1, 0, 3, 2]
    assert sheet_rows(found, by_class=True, n_images=9) == [1, 0, 4, 3, 2]


def test_a_sheet_shows_the_pictures_in_its_order(trained: World, folder: Path, tmp_path: Path) -> None:
    """The mixed one first; each in the middle of its cell, with black letters beneath."""
    found = labeled(trained, folder)
    assert write_sheet(found, tmp_path / "sheet.png") == 3
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape[1] == 3 * (CELL + GAP) + GAP
    centres = [tuple(int(v) for v in sheet[GAP + CELL // 2, GAP + CELL // 2 + n * (CELL + GAP)]) for n in range(3)]
    names = [found.names[row] for row in sheet_rows(found, by_class=False, n_images=9)]
    in_order = [COLOURS[Path(name).relative_to(folder).as_posix()] for name in names]
    assert centres == in_order
    assert in_order[0] == COLOURS["sub/mixed.png"]
    assert sheet[GAP + CELL :].min() < 60
    with pytest.raises(BackendError, match=r"'sheet\.pdf'; expected a name that ends in \.png"):
        write_sheet(found, tmp_path / "sheet.pdf")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, ["predict", *map(str, arguments)])


def test_the_command(trained: World, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sentences, JSON, a table that `preannotate` reads, and a sheet; a file named twice is labeled once."""
    monkeypatch.setattr("backend.services.Services", lambda _: trained.services)
    told = run(folder, folder / "red.png", "--project", 1)
    assert told.exit_code == 0, told.output
    assert "3 images labeled by v" in told.stdout
    assert "1 cannot be read:" in told.stdout
    out, sheet = tmp_path / "out.csv", tmp_path / "sheet.png"
    said = json.loads(
        run(folder, "--project", 1, "--csv", out, "--sheet", sheet, "--sheet-order", "class", "--json").stdout
    )
    assert (said["n_images"], len(said["unreadable"])) == (3, 1)
    assert sum(said["predictions"][0]["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    assert sheet.stat().st_size > 500
    table = read_label_table(out)
    assert str(folder / "red.png") in str(table)
    only = json.loads(run(folder, "--project", 1, "--filter", "gr.*png", "--json").stdout)
    assert [Path(row["file"]).name for row in only["predictions"]] == ["green.png"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["."], "give either --project ID"),
        ([".", "--project", "1", "--model", "x"], "give either --project ID"),
        ([".", "--model", "x", "--version", "v1"], "--version goes with --project"),
        ([".", "--project", "1", "--csv", "/no/such/a.csv"], "there is no folder /no/such"),
        (["/no/such/picture.png", "--project", "1"], "neither a folder nor a file"),
    ],
)
def test_what_the_command_refuses(
    arguments: list[str], reason: str, trained: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wrong use, in one sentence, before an image is read."""
    monkeypatch.setattr("backend.services.Services", lambda _: trained.services)
    done = run(*arguments)
    assert isinstance(done.exception, UsageError), done.output
    assert reason in str(done.exception)
