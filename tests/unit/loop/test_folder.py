"""A folder or bucket of images as a dataset: embedded once, split by class, put into a folder for labeling."""

from __future__ import annotations

import json
import logging
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from fakes import TinyBackbone
from PIL import Image

from backend.adapters.image_source import open_images
from backend.errors import FileFormatError, ImageSourceError, SelectionError
from backend.formats.simple import read_simple
from backend.lightly import Dataset
from backend.loop import folder
from backend.loop.folder import cache_of, classes_of, fetch, open_folder, read_names, split, write_split
from backend.storage import Address


def add(place: Path, **colours: int) -> None:
    """Red images of such a brightness: add(place, a=200) writes a.png."""
    for name, red in colours.items():
        path = place / f"{name.replace('__', '/')}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (red, 0, 0)).save(path)


def opened(place: Path, cache: Path, backbone: TinyBackbone, **options: object) -> Dataset:
    return open_folder(place, cache=cache, backbone=backbone, advance=lambda *_: None, **options)  # type: ignore[arg-type]


def test_images_are_embedded_once(tmp_path: Path) -> None:
    """Only new and changed ones the second time; names are paths with '/', sorted; what is gone is not in it."""
    place, cache = tmp_path / "images", tmp_path / "cache"
    add(place, b=100, a__c=200, d=50)
    backbone = TinyBackbone()
    dataset = opened(place, cache, backbone)
    assert dataset.names == ("a/c.png", "b.png", "d.png")
    np.testing.assert_allclose(dataset.embeddings[:, 0], np.array([200, 100, 50]) / 255, atol=1e-3)
    assert backbone.n_embedded == 3
    add(place, b=7, e=30)
    (place / "d.png").unlink()
    again = opened(place, cache, backbone)
    assert again.names == ("a/c.png", "b.png", "e.png")
    np.testing.assert_allclose(again.embeddings[:, 0], np.array([200, 7, 30]) / 255, atol=1e-3)
    assert backbone.n_embedded == 5


def test_progress_is_of_the_new_images(tmp_path: Path) -> None:
    """After each batch of two; nothing is told where nothing is new."""
    add(tmp_path / "images", a=1, b=2, c=3)
    told: list[tuple[int, int]] = []
    for _ in range(2):
        open_folder(
            tmp_path / "images", cache=tmp_path / "cache", backbone=TinyBackbone(),
            advance=lambda done, total: told.append((done, total)),
        )  # fmt: skip
    assert told == [(2, 3), (3, 3)]


def test_another_backbone_has_embeddings_of_its_own(tmp_path: Path) -> None:
    """By its fingerprint, and the first one's stay."""
    add(tmp_path / "images", a=100)
    one, other = TinyBackbone(), TinyBackbone("cafe", (2.0, 1.0, 1.0))
    for backbone in (one, other, one, other):
        found = opened(tmp_path / "images", tmp_path / "cache", backbone)
        assert found.embeddings[0, 0] == pytest.approx(100 / 255 * backbone.weights[0], abs=1e-3)
    assert (one.n_embedded, other.n_embedded) == (1, 1)


def test_what_was_embedded_is_kept_when_it_is_cut_off(tmp_path: Path) -> None:
    """The rest is embedded the next time, and only that."""
    add(tmp_path / "images", a=1, b=2, c=3, d=4)
    backbone = TinyBackbone()

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_folder(tmp_path / "images", cache=tmp_path / "cache", backbone=backbone, advance=interrupt)
    n_before = backbone.n_embedded
    assert len(opened(tmp_path / "images", tmp_path / "cache", backbone)) == 4
    assert 2 <= n_before < 4
    assert backbone.n_embedded == 4


def test_many_parts_become_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing is lost: a folder to which images come one by one."""
    monkeypatch.setattr(folder, "MOST_PARTS", 3)
    backbone = TinyBackbone()
    for n in range(6):
        add(tmp_path / "images", **{f"i{n}": 10 * n})
        found = opened(tmp_path / "images", tmp_path / "cache", backbone)
        assert len(list((tmp_path / "cache" / "embeddings" / "f00d").iterdir())) <= 3
    assert backbone.n_embedded == 6
    np.testing.assert_allclose(found.embeddings[:, 0], np.arange(6) * 10 / 255, atol=1e-3)


def test_a_damaged_part_is_made_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With a warning that names it."""
    add(tmp_path / "images", a=100)
    backbone = TinyBackbone()
    opened(tmp_path / "images", tmp_path / "cache", backbone)
    (part,) = (tmp_path / "cache" / "embeddings" / "f00d").iterdir()
    part.write_bytes(part.read_bytes()[:-3])
    with caplog.at_level(logging.WARNING):
        assert len(opened(tmp_path / "images", tmp_path / "cache", backbone)) == 1
    assert str(part) in caplog.text
    assert backbone.n_embedded == 2


def test_an_image_that_cannot_be_read_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With a warning; where none can be read, that is an error."""
    place = tmp_path / "images"
    add(place, a=100)
    (place / "broken.png").write_bytes(b"no image")
    with caplog.at_level(logging.WARNING):
        assert opened(place, tmp_path / "cache", TinyBackbone()).names == ("a.png",)
    assert "broken.png" in caplog.text
    (place / "a.png").unlink()
    with pytest.raises(ImageSourceError, match="none of 1 images can be read"):
        opened(place, tmp_path / "cache", TinyBackbone())


def test_only_some_images_and_their_tags(tmp_path: Path) -> None:
    """A filter, or a list of names; tags are those of the cache, whichever images are taken."""
    place, cache = tmp_path / "images", tmp_path / "cache"
    add(place, a=1, b=2, c=3)
    backbone = TinyBackbone()
    dataset = opened(place, cache, backbone, only=["c.png", "a.png"])
    assert dataset.names == ("a.png", "c.png")
    assert backbone.n_embedded == 2
    dataset.tags.create("first", ["c.png"])
    filtered = opened(place, cache, backbone, name_filter="[bc].*")
    assert filtered.names == ("b.png", "c.png")
    assert filtered.tags.get("first") == ("c.png",)
    with pytest.raises(ImageSourceError, match=r"no image 'x.png' and 1 more; give the folder"):
        opened(place, cache, backbone, only=["a.png", "x.png", "y.png"])
    with pytest.raises(ImageSourceError, match="no file whose name the filter 'z'"):
        opened(place, cache, backbone, name_filter="z")


def test_each_place_has_a_cache_of_its_own(tmp_path: Path) -> None:
    """Named after it; a folder by where it is, so that two of the same name are two."""
    a = cache_of(tmp_path / "one" / "photos", tmp_path)
    b = cache_of(tmp_path / "two" / "photos", tmp_path)
    c = cache_of(Address("s3://bucket/photos"), tmp_path)
    assert len({a, b, c}) == 3
    assert {path.name.rpartition("-")[0] for path in (a, b, c)} == {"photos"}


# -- split ------------------------------------------------------------------------------------------------------------


def test_classes_are_folders_or_leading_letters() -> None:
    """The uppermost folder; in a flat folder as in cloudy1.jpg."""
    assert classes_of(["cat/a/1.png", "dog/1.png"]) == {"cat/a/1.png": "cat", "dog/1.png": "dog"}
    assert classes_of(["cloudy1.jpg", "rain12.jpg", "Été_3.jpg"]) == {
        "cloudy1.jpg": "cloudy", "rain12.jpg": "rain", "Été_3.jpg": "Été",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["cat/1.png", "x.png"], "'x.png' lies beside class folders such as 'cat'"),
        (["a1.png", "12.png"], "'12.png' does not begin with letters"),
        (["a1.png", "a2.png"], "all 2 images are of one class, 'a'"),
    ],
)
def test_images_without_a_class_are_refused(names: list[str], reason: str) -> None:
    """By name, with what to do."""
    with pytest.raises(SelectionError, match=reason):
        classes_of(names)


def test_the_split_is_by_class_and_by_seed(tmp_path: Path) -> None:
    """One in five of each, rounded up: of the original dataset 226 of 1,125; nothing is in both or lost."""
    sizes = {"cloudy": 300, "rain": 215, "shine": 253, "sunrise": 357}
    names = [f"{label}{n}.jpg" for label, size in sizes.items() for n in range(1, size + 1)]
    found = split(names, one_in=5, seed=3)
    assert len(found.validation) == 226
    counts = [list(found.validation.values()).count(label) for label in sizes]
    assert counts == [60, 43, 51, 72]
    assert sorted([*found.train, *found.validation]) == sorted(names)
    assert found == split(list(reversed(names)), one_in=5, seed=3)
    assert found.validation != split(names, one_in=5, seed=4).validation
    train_file, validation_file = write_split(found, tmp_path / "new")
    assert (train_file.name, validation_file.name) == ("full_train.json", "val.json")
    assert read_names(train_file) == list(found.train)
    assert read_simple(validation_file) == {name: [label] for name, label in found.validation.items()}
    assert read_names(validation_file) == list(found.validation)


def test_labels_divide_images_whose_names_say_nothing(tmp_path: Path) -> None:
    """Those without a label are to train on; the labels of these are written, too."""
    labels = {f"{n}.png": "dog" if n < 4 else "cat" for n in range(10)}
    found = split([*labels, "x.png"], one_in=2, seed=0, labels=labels)
    assert sorted(found.validation.values()) == ["cat"] * 3 + ["dog"] * 2
    assert "x.png" in found.train
    assert found.training_labels == {name: label for name, label in labels.items() if name not in found.validation}
    names, judged, known = write_split(found, tmp_path)
    assert json.loads(names.read_text()) == list(found.train)
    assert read_simple(judged) == {name: [label] for name, label in found.validation.items()}
    assert read_simple(known) == {name: [label] for name, label in found.training_labels.items()}


def test_sets_are_divided_by_themselves_and_rare_ones_by_their_rarest_label(tmp_path: Path) -> None:
    """Two of the five with sun, of the two with dusk one; what only one image has is learned from."""
    sets = [("sun",)] * 5 + [()] * 5 + [("rain",), ("rain", "sun"), ("dusk", "rain", "sun")] + [("snow", "sun")]
    labels = {f"{n:02}.png": label for n, label in enumerate(sets)}
    labels["14.png"] = ("dusk", "rain")
    found = split(list(labels), one_in=4, seed=0, labels=labels)
    taken = Counter(found.validation.values())
    assert taken[("sun",)] == taken[()] == 2
    assert sum("dusk" in label for label in taken.elements()) == 1, "of the two with dusk, which is rarer than rain"
    assert sum("rain" in label and "dusk" not in label for label in taken.elements()) == 1
    assert ("snow", "sun") not in taken
    assert found.classes == {"dusk": 2, "rain": 4, "snow": 1, "sun": 8}
    write_split(found, tmp_path)
    assert [] in read_simple(tmp_path / "val.json").values()


def test_a_class_of_one_image_is_refused() -> None:
    """There would be none to train on."""
    with pytest.raises(SelectionError, match=r"class 'b' has the one image 'b1.png'"):
        split(["a1.png", "a2.png", "b1.png"], one_in=5, seed=0)


def test_a_file_that_names_no_images_is_refused(tmp_path: Path) -> None:
    """Neither a list nor labels."""
    (tmp_path / "x.json").write_text(json.dumps({"a": 1}))
    with pytest.raises(FileFormatError, match="no list of names"):
        read_names(tmp_path / "x.json")


# -- fetch ------------------------------------------------------------------------------------------------------------


def fetched(place: Path, names: list[str], target: Path, *, copy: bool = False) -> folder.Fetched:
    return fetch(open_images(place, max_image_bytes=10**6), names, target, copy=copy, advance=lambda *_: None)


def test_images_are_linked_by_their_names(tmp_path: Path) -> None:
    """Again with more: what is there stays. What is gone meanwhile is said."""
    place, target = tmp_path / "images", tmp_path / "samples"
    add(place, a__1=1, b=2)
    assert fetched(place, ["a/1.png"], target) == folder.Fetched(1, 0, {})
    assert fetched(place, ["a/1.png", "b.png", "c.png"], target) == folder.Fetched(1, 1, {"c.png": "it is not there"})
    for name in ("a/1.png", "b.png"):
        assert (target / name).is_symlink()
        assert (target / name).read_bytes() == (place / name).read_bytes()


def test_copies_are_files_of_their_own(tmp_path: Path) -> None:
    """The same bytes, and no half file beside; again: they are there."""
    place, target = tmp_path / "images", tmp_path / "samples"
    add(place, a=1)
    assert fetched(place, ["a.png"], target, copy=True).n_new == 1
    assert fetched(place, ["a.png"], target, copy=True).n_there == 1
    assert [path.name for path in target.iterdir()] == ["a.png"]
    assert not (target / "a.png").is_symlink()
    assert (target / "a.png").read_bytes() == (place / "a.png").read_bytes()


def test_another_file_of_that_name_is_not_overwritten(tmp_path: Path) -> None:
    """Nothing is put there, then; nor into the folder of the images itself."""
    place, target = tmp_path / "images", tmp_path / "samples"
    add(place, a=1, b=1)
    target.mkdir()
    (target / "b.png").write_bytes(b"another")
    with pytest.raises(ImageSourceError, match=r"b\.png is there and no link of"):
        fetched(place, ["a.png", "b.png"], target)
    assert (target / "b.png").read_bytes() == b"another"
    assert not (target / "a.png").exists()
    with pytest.raises(ImageSourceError, match="name a folder elsewhere"):
        fetched(place, ["a.png"], place / "samples")
