"""Files of labels become a head, on a handful of colours whose classes are plain to see."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from backend.adapters.registry import load_head, save_head
from backend.errors import FileFormatError, SelectionError, UnmatchedError
from backend.formats.lightly_predictions import LightlyPredictions, write_predictions
from backend.formats.simple import write_simple
from backend.lightly import Dataset
from backend.loop.learn import aligned, learn, only_task, read_labels, read_validation, set_scores

NAMES = [f"cat/{n}.png" for n in range(12)] + [f"dog/{n}.png" for n in range(12)]
TRUTH = {name: name.partition("/")[0] for name in NAMES}


@pytest.fixture
def dataset() -> Dataset:
    """Twelve reddish and twelve greenish images."""
    random = np.random.default_rng(0)
    colours = np.repeat([[0.8, 0.2, 0.2], [0.2, 0.8, 0.2]], 12, axis=0)
    return Dataset(NAMES, (colours + 0.05 * random.normal(size=colours.shape)).astype(np.float16))


def test_a_head_is_learned_and_judged(dataset: Dataset, tmp_path: Path) -> None:
    """Two labels of each class suffice here; predictions are of all images but those for validation."""
    validation = {name: TRUTH[name] for name in ("cat/11.png", "dog/11.png", "dog/10.png")}
    validation["dog/10.png"] = "cat"  # somebody's error: a third of them is wrong
    labels = {name: TRUTH[name] for name in ("cat/0.png", "cat/1.png", "dog/0.png", "dog/1.png")}
    learned = learn(dataset, labels, validation=validation, n_details=0, random_state=0)
    assert (learned.n_labels, learned.n_unlabeled, learned.n_validation) == (4, 17, 3)
    assert learned.training_accuracy == 1.0
    assert learned.expected_accuracy == 1.0
    assert learned.validation_accuracy == pytest.approx(2 / 3)
    assert learned.names == tuple(name for name in NAMES if name not in validation)
    guesses = np.array(learned.head.classes)[learned.probabilities.argmax(axis=1)]
    assert guesses.tolist() == [TRUTH[name] for name in learned.names]
    save_head(tmp_path / "m.safetensors", learned.head, {"backbone": "tiny"})
    head, facts = load_head(tmp_path / "m.safetensors")
    assert facts == {"backbone": "tiny"}
    assert (head.classes, head.strength) == (learned.head.classes, learned.head.strength)
    np.testing.assert_array_equal(
        head.predict_proba(dataset.embeddings), learned.head.predict_proba(dataset.embeddings)
    )


def test_labels_of_images_for_validation_are_refused(dataset: Dataset) -> None:
    """What the head has seen says nothing about it."""
    labels = {"cat/0.png": "cat", "dog/0.png": "dog"}
    with pytest.raises(SelectionError, match=r"'dog/0.png' has a label to train on and is kept for validation"):
        learn(dataset, labels, validation={"dog/0.png": "dog"}, n_details=0, random_state=0)


def test_one_class_is_refused(dataset: Dataset) -> None:
    """There is nothing to tell apart."""
    with pytest.raises(SelectionError, match="all 2 labels are 'cat'; label images of two"):
        learn(dataset, {"cat/0.png": "cat", "cat/1.png": "cat"}, validation={}, n_details=0, random_state=0)


def test_a_damaged_model_is_refused(tmp_path: Path) -> None:
    """As is one that is not there."""
    (tmp_path / "m").write_bytes(b"no model")
    for name, reason in (("m", "no model of this program"), ("n", "cannot be read")):
        with pytest.raises(FileFormatError, match=reason):
            load_head(tmp_path / name)


def json_min(path: Path, labels: dict[str, str | None]) -> Path:
    """As Label Studio writes it for local files; None: submitted without a choice."""
    rows = [
        {"image": f"/data/local-files/?d=work/samples/{name}", "id": number,
         **({} if label is None else {"choice": label}), "annotator": 1, "annotation_id": number}
        for number, (name, label) in enumerate(labels.items(), start=1)
    ]  # fmt: skip
    path.write_text(json.dumps(rows))
    return path


def test_labels_come_from_several_files(tmp_path: Path) -> None:
    """The later has precedence; images without a choice have no label."""
    first = json_min(tmp_path / "annotation-0.json", {"cat/0.png": "dog", "dog/1.png": "dog", "dog/2.png": None})
    write_simple(tmp_path / "labels.json", {"cat/0.png": ["cat"]})
    found = read_labels([first, tmp_path / "labels.json"], NAMES)
    assert found == {"cat/0.png": "cat", "dog/1.png": "dog"}
    assert read_labels([tmp_path / "labels.json", first], NAMES)["cat/0.png"] == "dog"


def test_labels_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    """Of unknown images, several to judge by where others have one, and none at all."""
    with pytest.raises(UnmatchedError):
        read_labels([json_min(tmp_path / "a", {"bird/7.png": "bird"})], ["cat/0.png", "dog/0.png"])
    write_simple(tmp_path / "b", {"cat/0.png": ["cat", "dog"]})
    with pytest.raises(FileFormatError, match=r"has the labels 'cat', 'dog', and .* each has one; add --several"):
        read_validation(tmp_path / "b", NAMES)
    write_simple(tmp_path / "c", {"cat/0.png": []})
    with pytest.raises(FileFormatError, match="no image has a label"):
        read_labels([tmp_path / "c"], NAMES)


# -- several labels per image -----------------------------------------------------------------------------------------

SETS: dict[str, tuple[str, ...]] = {}
"""Name → what is on the image: ten each of red, green, both and neither."""
for n in range(10):
    SETS |= {f"r{n}.png": ("red",), f"g{n}.png": ("green",), f"y{n}.png": ("green", "red"), f"b{n}.png": ()}


@pytest.fixture
def colours() -> Dataset:
    random = np.random.default_rng(0)
    pure = np.array([[0.8 * ("red" in SETS[name]), 0.8 * ("green" in SETS[name]), 0.2] for name in sorted(SETS)])
    return Dataset(sorted(SETS), (pure + 0.05 * random.normal(size=pure.shape)).astype(np.float16))


def test_one_image_with_two_labels_makes_sets_of_all(tmp_path: Path) -> None:
    """In whichever file; an image without any has none of them then, and else none that is known."""
    write_simple(tmp_path / "a", {"r0.png": ["red"], "b0.png": []})
    min_file = json_min(tmp_path / "min", {"g0.png": "green", "b1.png": None})
    assert read_labels([tmp_path / "a", min_file], list(SETS)) == {"r0.png": "red", "g0.png": "green"}
    as_sets = {"r0.png": ("red",), "b0.png": (), "g0.png": ("green",), "b1.png": ()}
    assert read_labels([tmp_path / "a", min_file], list(SETS), several=True) == as_sets
    write_simple(tmp_path / "two", {"y0.png": ["red", "green"]})
    found = read_labels([tmp_path / "a", min_file, tmp_path / "two"], list(SETS))
    assert found == as_sets | {"y0.png": ("green", "red")}
    assert read_validation(tmp_path / "a", list(SETS), several=True) == {"r0.png": ("red",), "b0.png": ()}


def test_a_head_of_sets_is_learned_judged_and_read_back(colours: Dataset, tmp_path: Path) -> None:
    """By whole sets: of four images to judge by two are right, one misses a label, one has one too many."""
    labels = {name: SETS[name] for name in sorted(SETS) if int(name[1]) < 5}
    validation = {"r9.png": ("red",), "y9.png": ("red",), "b9.png": ("green",), "g9.png": ("green",)}
    learned = learn(colours, labels, validation=validation, n_details=0, random_state=0)
    assert learned.head.classes == ("green", "red")
    assert learned.training_accuracy == 1.0
    assert learned.validation_accuracy == 0.5
    assert learned.label_figures is not None
    assert (learned.label_figures["n_images"], learned.label_figures["label_accuracy"]) == (4, 0.75)
    assert learned.label_figures["basis"].startswith("the 4 validation images")
    assert learned.expected_accuracy is not None
    assert learned.head.predicted(learned.probabilities) == [SETS[name] for name in learned.names]
    save_head(tmp_path / "m", learned.head, {"backbone": "tiny", "fingerprint": "f00d"})
    head, facts = load_head(tmp_path / "m")
    assert head.threshold == learned.head.threshold
    assert head.threshold is not None
    assert facts == {"backbone": "tiny", "fingerprint": "f00d"}
    np.testing.assert_array_equal(
        head.predict_proba(colours.embeddings), learned.head.predict_proba(colours.embeddings)
    )


def test_without_validation_images_labels_are_judged_by_heads_that_had_not_learned_them(colours: Dataset) -> None:
    """As in the status; with one label per image there are no such figures."""
    labels = {name: SETS[name] for name in sorted(SETS) if int(name[1]) < 5}
    learned = learn(colours, labels, validation={}, n_details=0, random_state=0)
    assert learned.label_figures is not None
    assert learned.label_figures["exact_match"] == learned.expected_accuracy
    assert learned.label_figures["basis"].startswith("20 labeled images")
    single = {name: label[0] for name, label in labels.items() if len(label) == 1}
    assert learn(colours, single, validation={}, n_details=0, random_state=0).label_figures is None


def test_equal_sets_are_refused(colours: Dataset) -> None:
    """Nor can images be told apart that have no label, all of them."""
    for label, text in ((("green", "red"), "green, red"), ((), "none of these")):
        with pytest.raises(SelectionError, match=f"all 2 images have the labels '{text}'; label images that have"):
            learn(colours, {"y0.png": label, "y1.png": label}, validation={}, n_details=0, random_state=0)


def test_the_scores_of_sets_are_those_of_the_label_most_in_doubt() -> None:
    """0.5 is the greatest doubt, whatever the other label has."""
    scores = set_scores(np.array([[0.5, 1.0], [0.9, 0.2], [0.0, 1.0]]))["uncertainty_margin"]
    np.testing.assert_allclose(scores, [1.0, 0.4, 0.0])


def test_predictions_in_the_order_of_a_dataset() -> None:
    """NaN where there are none; none at all are of another folder."""
    predictions = LightlyPredictions("t", ("a", "b"), ("y", "x"), np.array([[0.25, 0.75], [1.0, 0.0]]))
    found = aligned(predictions, ["x", "q", "y"])
    np.testing.assert_array_equal(found, [[1.0, 0.0], [np.nan, np.nan], [0.25, 0.75]])
    with pytest.raises(SelectionError, match="no image has a prediction of task 't'"):
        aligned(predictions, ["q"])


def test_the_only_task_is_meant(tmp_path: Path) -> None:
    """With two, one has to be named."""
    write_predictions(tmp_path, "one", ["a", "b"], ["x.png"], np.array([[0.5, 0.5]]))
    assert only_task(tmp_path) == "one"
    write_predictions(tmp_path, "two", ["a", "b"], ["x.png"], np.array([[0.5, 0.5]]))
    with pytest.raises(FileFormatError, match='has \\["one", "two"\\]; say which one with --task'):
        only_task(tmp_path)
