"""The simulation is the service: same order, same head; and its figures can be checked by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import LABEL_CONFIG, TinyBackbone, World, retrain, rgb
from PIL import Image

from backend.config import Settings
from backend.errors import ImageError, SelectionError
from backend.loop.rounds import Round
from backend.loop.simulate import (
    STRATEGIES,
    LabeledImages,
    Row,
    Simulation,
    embed_folder,
    held_out_fifth,
    report,
    simulate,
    summary,
)

SETTINGS = Settings(seed_size=4, window_size=4)
COLOURS = {"cat": (200, 60, 60), "dog": (60, 200, 60), "owl": (90, 90, 160)}


def photos(n_per_class: int = 15, noise: float = 45.0) -> tuple[list[tuple[int, int, int]], list[str]]:
    """Noisy colours of three classes, and their names."""
    random = np.random.default_rng(0)
    labels = [name for name in COLOURS for _ in range(n_per_class)]
    colours = np.array([COLOURS[name] for name in labels]) + noise * random.normal(size=(len(labels), 3))
    return [tuple(row) for row in np.clip(colours, 1, 255).astype(int).tolist()], labels


@pytest.fixture
def images() -> LabeledImages:
    return labeled(*photos())


def labeled(colours: list[tuple[int, int, int]], labels: list[str]) -> LabeledImages:
    return LabeledImages((np.array(colours, dtype=np.float32) / 255).astype(np.float16), np.array(labels), 0)


def test_a_fifth_of_each_class_is_held_out() -> None:
    """Of ten and six images two each (every fifth, rounded up); another seed holds out others."""
    labels = ["a"] * 10 + ["b"] * 6
    masks = [held_out_fifth(labels, seed) for seed in range(5)]
    assert all((mask[:10].sum(), mask[10:].sum()) == (2, 2) for mask in masks)
    assert len({mask.tobytes() for mask in masks}) > 1
    np.testing.assert_array_equal(held_out_fifth(labels, 3), masks[3])


@pytest.mark.parametrize("acquisition", ["information_density", "margin", "badge", "typiclust"])
def test_default_is_what_the_service_does(world: World, acquisition: str) -> None:
    """A person who labels what the real trainer puts first gets, label by label, the simulation's accuracies."""
    colours, labels = photos(noise=110)
    held_out = held_out_fifth(labels, 1)
    truth = [label for label, out in zip(labels, held_out, strict=True) if not out]
    pool = [rgb(*colour) for colour, out in zip(colours, held_out, strict=True) if not out]
    world = world.again(seed_size=SETTINGS.seed_size, window_size=SETTINGS.window_size, acquisition=acquisition)
    config = LABEL_CONFIG.replace('<Choice value="dog"/>', '<Choice value="dog"/><Choice value="owl"/>')
    world.label_studio.add_project(1, pool, label_config=config)
    world.embed_all()
    simulation = Simulation(labeled(colours, labels), seed=1, settings=world.services.settings)
    budgets = list(range(4, 13))
    simulated = dict(STRATEGIES["default"][1](simulation, budgets))
    assert world.services.trainer.retrain(1) is not None
    for n_labels in range(1, budgets[-1] + 1):
        task_id = world.label_studio.served_order(1)[0]
        world.label_studio.annotate(1, task_id, truth[task_id - 1])
        record = retrain(world)
        if n_labels in budgets:
            assert simulation.accuracy(world.registry.head(record)) == simulated[n_labels], n_labels
    assert len(set(simulated.values())) > 1, "the accuracies differ, so that the comparison says something"


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_reaches_every_budget(images: LabeledImages, name: str) -> None:
    """The whole pool is the last budget: 36 of 45 images. With all of them three plain colours are told apart."""
    rows = list(simulate(images, strategies=[name], budgets=[1, 5, 36], n_seeds=2, settings=SETTINGS))
    assert [(row.strategy, row.budget, row.seed) for row in rows] == [(name, b, s) for s in (0, 1) for b in (1, 5, 36)]
    assert all(0 <= row.accuracy <= 1 for row in rows)
    assert rows[0].accuracy == pytest.approx(1 / 3), "one class known: the best constant answer"
    assert min(rows[2].accuracy, rows[5].accuracy) > 0.7


def test_a_run_can_be_repeated(images: LabeledImages) -> None:
    """Same images, settings and seeds: the same figures."""
    wanted = {"strategies": ["default", "baseline"], "budgets": [3, 8], "n_seeds": 2, "settings": SETTINGS}
    assert list(simulate(images, **wanted)) == list(simulate(images, **wanted))


def test_processes_share_the_seeds(images: LabeledImages) -> None:
    """Two processes measure what one does, in the same order."""
    wanted = {"strategies": ["default", "baseline"], "budgets": [3, 9], "n_seeds": 3, "settings": SETTINGS}
    assert list(simulate(images, **wanted, n_jobs=2)) == list(simulate(images, **wanted))


def test_heads_learn_anew_after_every_step(images: LabeledImages, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four of the first batch, then up to 14 labels: a round for each, or for every three, and at each budget."""
    fitted: list[int] = []
    plan = Simulation.plan

    def counted(simulation: Simulation, task_ids: Sequence[int], **options: Any) -> Round:
        fitted.append(len(task_ids))
        return plan(simulation, task_ids, **options)

    monkeypatch.setattr(Simulation, "plan", counted)
    settings = replace(SETTINGS, seed_size=4)
    list(simulate(images, strategies=["default"], budgets=[11, 14], n_seeds=1, settings=settings))
    assert fitted == [0, 4, *range(5, 15)]
    fitted.clear()
    list(simulate(images, strategies=["default"], budgets=[11, 14], n_seeds=1, settings=settings, step=3))
    assert fitted == [0, 4, 7, 10, 11, 14]


def test_an_acquisition_function_is_that_of_its_name(images: LabeledImages) -> None:
    """`entropy` is the service with ACQUISITION=entropy, whatever the settings say."""
    by_name = [row.accuracy for row in simulate(
        images, strategies=["entropy"], budgets=[6, 9, 12], n_seeds=2, settings=SETTINGS
    )]  # fmt: skip
    by_setting = [row.accuracy for row in simulate(
        images, strategies=["default"], budgets=[6, 9, 12], n_seeds=2, settings=replace(SETTINGS, acquisition="entropy")
    )]  # fmt: skip
    assert by_name == by_setting


def test_a_first_batch_strategy_runs_throughout(images: LabeledImages) -> None:
    """`typiclust` is the service with that as SEED_STRATEGY and ACQUISITION."""
    wanted = {"budgets": [3, 6, 9, 12], "n_seeds": 2}
    by_name = simulate(images, strategies=["typiclust"], settings=SETTINGS, **wanted)
    throughout = replace(SETTINGS, seed_strategy="typiclust", acquisition="typiclust")
    by_setting = simulate(images, strategies=["default"], settings=throughout, **wanted)
    assert [row.accuracy for row in by_name] == [row.accuracy for row in by_setting]


def test_random_and_baseline_label_the_same_images(images: LabeledImages, monkeypatch: pytest.MonkeyPatch) -> None:
    """One order, two learners: the difference is the learner's. Another seed, another order."""
    asked: dict[str, set[int]] = {}
    for name, seed in (("random", 3), ("baseline", 3), ("random", 4)):
        simulation = Simulation(images, seed=seed, settings=SETTINGS)

        class Watched(list[str]):
            def __getitem__(self, index: Any, seen: str = f"{name} {seed}") -> Any:
                asked.setdefault(seen, set()).add(index)
                return super().__getitem__(index)

        simulation.truth = Watched(simulation.truth)
        list(STRATEGIES[name][1](simulation, [5, 15]))
    assert len(asked["random 3"]) == 15
    assert asked["random 3"] == asked["baseline 3"] != asked["random 4"]


def test_what_cannot_be_simulated_is_told(images: LabeledImages) -> None:
    """An unknown strategy, and budgets that the pool cannot give."""
    with pytest.raises(SelectionError, match=r"no strategy 'best'; choose of default, baseline"):
        list(simulate(images, strategies=["best"], budgets=[3], n_seeds=1, settings=SETTINGS))
    for budgets in ([], [0, 3], [37]):
        with pytest.raises(SelectionError, match="whole numbers of 1 to 36"):
            list(simulate(images, strategies=["default"], budgets=budgets, n_seeds=1, settings=SETTINGS))


def test_the_summary_is_mean_and_standard_deviation() -> None:
    """0.5 and 0.7: mean 0.6, standard deviation 0.1 · √2; one seed has none."""
    rows = [Row("a", 3, 0, 0.5), Row("a", 3, 1, 0.7), Row("b", 3, 0, 0.25)]
    found = summary(rows)
    assert found["a"][3] == (pytest.approx(0.6), pytest.approx(0.1 * 2**0.5))
    assert found["b"][3] == (0.25, 0.0)


def test_a_folder_is_embedded_without_its_broken_images(tmp_path: Path) -> None:
    """A broken image is left out and counted, what is none by its name is not looked at; the rest keeps its class."""
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8), COLOURS[name]).save(tmp_path / name / "1.png")
    (tmp_path / "cat" / "broken.png").write_text("not an image")
    (tmp_path / "cat" / "notes.txt").write_text("not an image either")
    seen: list[tuple[int, int]] = []
    found = embed_folder(TinyBackbone(), tmp_path, lambda done, total: seen.append((done, total)))
    assert found.labels.tolist() == ["cat", "dog"]
    assert (found.embeddings.shape, found.n_unreadable) == ((2, 3), 1)
    assert seen == [(2, 3), (3, 3)]
    content = report([Row("a", 3, 0, 0.5)], found, TinyBackbone(), SETTINGS, 5)
    assert content["classes"] == {"cat": 1, "dog": 1}
    assert content["rows"] == [{"strategy": "a", "budget": 3, "seed": 0, "accuracy": 0.5}]


def test_labels_in_place_of_folders(tmp_path: Path) -> None:
    """Only what has one is embedded; sets are answers as they are, and held out by strata."""
    for n in range(12):
        Image.new("RGB", (4, 4), (20 * n, 9, 9)).save(tmp_path / f"{n:02}.png")
    single = embed_folder(TinyBackbone(), tmp_path, lambda *_: None, labels={"01.png": "a", "00.png": "b"})
    assert (single.answers, single.sets) == (["b", "a"], None)
    sets = {f"{n:02}.png": (("a",), ("a", "b"), ())[min(n // 5, 2)] for n in range(11)}
    images = embed_folder(TinyBackbone(), tmp_path, lambda *_: None, labels=sets)
    assert images.answers == [("a",)] * 5 + [("a", "b")] * 5 + [()]
    assert images.strata == ["a"] * 5 + ["a, b"] * 5 + ["none of these"]
    assert report([], images, TinyBackbone(), SETTINGS, 1)["classes"] == {"a": 10, "b": 5}
    with pytest.raises(ImageError, match="holds images of 1 classes; expected labels that differ"):
        embed_folder(TinyBackbone(), tmp_path, lambda *_: None, labels={"01.png": ("a",), "00.png": ("a",)})


def test_rare_sets_are_held_out_by_their_rarest_label() -> None:
    """A fifth of them all, not each of them because it is the only one."""
    sets = [("a",)] * 5 + [("a", "b"), ("b", "c"), ("a", "b", "d"), ("b",)]
    images = LabeledImages(np.zeros((9, 2), np.float16), np.array(["x"] * 9), 0, 0, sets)
    assert images.strata == ["a"] * 5 + ["b and others", "c and others", "d and others", "b and others"]


def test_a_folder_without_classes_is_refused(tmp_path: Path) -> None:
    """Images directly in the folder have no class."""
    Image.new("RGB", (8, 8)).save(tmp_path / "1.png")
    with pytest.raises(ImageError, match="a folder per class, two or more"):
        embed_folder(TinyBackbone(), tmp_path, lambda *_: None)
