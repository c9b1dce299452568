"""The older form: totals, sets and tags, and what each method chooses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backend.errors import SelectionError, TagError
from backend.learning.coreset import select_coreset
from backend.learning.features import normalise
from backend.lightly import (
    ActiveLearningAgent,
    Dataset,
    SamplerConfig,
    SamplingMethod,
    ScorerClassification,
    ScorerObjectDetection,
)

CORESET, CORAL, RANDOM = SamplingMethod.CORESET, SamplingMethod.CORAL, SamplingMethod.RANDOM


def circle(*degrees: float) -> np.ndarray:
    """Embeddings of length 1 at these angles: the farther apart the angles, up to 180, the farther the embeddings."""
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def at(*degrees: int, tags_dir: Path | None = None) -> Dataset:
    """A dataset of such embeddings, each image named by its angle."""
    return Dataset([f"{angle}.jpg" for angle in degrees], circle(*degrees), tags_dir=tags_dir)


def test_a_coreset_is_as_diverse_as_can_be() -> None:
    """0 is first, 180 the farthest, then 100, which lies between; 10 and 170 are near others."""
    agent = ActiveLearningAgent(at(0, 10, 100, 170, 180))
    chosen = agent.query(SamplerConfig(n_samples=3, method=CORESET, name="initial-selection"))
    assert chosen == ["0.jpg", "180.jpg", "100.jpg"] == agent.labeled_set == agent.added_set
    assert agent.unlabeled_set == ["10.jpg", "170.jpg"]
    assert agent.query_set == ["0.jpg", "10.jpg", "100.jpg", "170.jpg", "180.jpg"]


def test_the_length_of_an_embedding_does_not_matter() -> None:
    """They are scaled to length 1: an image ten times as long is no farther away."""
    dataset = Dataset(list("abc"), circle(0, 20, 90) * [[1.0], [10.0], [0.1]])
    assert ActiveLearningAgent(dataset).query(SamplerConfig(2, CORESET, "x")) == ["a", "c"]


def test_n_samples_is_the_total(tmp_path: Path) -> None:
    """The second round adds one to two, keeps both as tags, and another agent goes on from the tag's name."""
    dataset = at(0, 10, 100, 170, 180, tags_dir=tmp_path)
    agent = ActiveLearningAgent(dataset)
    agent.query(SamplerConfig(2, CORESET, "first"))
    assert agent.query(SamplerConfig(3, CORESET, "second")) == ["0.jpg", "180.jpg", "100.jpg"]
    assert agent.added_set == ["100.jpg"]
    assert dataset.tags.names() == ["first", "second"]
    again = ActiveLearningAgent(at(0, 10, 100, 170, 180, tags_dir=tmp_path), preselected_tag_name="first")
    assert again.labeled_set == ["0.jpg", "180.jpg"]
    assert again.query(SamplerConfig(3, CORESET, "again")) == ["0.jpg", "180.jpg", "100.jpg"]


@pytest.mark.parametrize("n_samples", [1, 2])
def test_a_total_that_adds_nothing_is_refused(n_samples: int) -> None:
    """It is named, with what it means, and nothing changes."""
    dataset = at(0, 10, 100)
    agent = ActiveLearningAgent(dataset)
    agent.query(SamplerConfig(2, CORESET, "first"))
    with pytest.raises(
        SelectionError, match=f"n_samples is {n_samples} and 2 images are labeled; it is the total .* more than 2"
    ):
        agent.query(SamplerConfig(n_samples, CORESET, "second"))
    assert dataset.tags.names() == ["first"]
    assert len(agent.labeled_set) == 2


def test_more_than_there_is_is_refused() -> None:
    """Counting the labeled and what is left in the query set."""
    dataset = at(0, 10, 100, 180)
    dataset.tags.create("done", ["0.jpg"])
    dataset.tags.create("sharp", ["0.jpg", "10.jpg", "100.jpg"])
    agent = ActiveLearningAgent(dataset, preselected_tag_name="done", query_tag_name="sharp")
    with pytest.raises(SelectionError, match="n_samples is 4; expected at most 3, 1 labeled and 2 more"):
        agent.query(SamplerConfig(4, CORESET, "x"))
    assert agent.query(SamplerConfig(3, CORESET, "x")) == ["0.jpg", "100.jpg", "10.jpg"]


def test_only_images_of_the_query_tag_are_chosen() -> None:
    """180 is the farthest, but not in the tag; a labeled image outside the tag counts as chosen all the same."""
    dataset = at(0, 10, 100, 170, 180)
    dataset.tags.create("sharp", ["10.jpg", "100.jpg"])
    dataset.tags.create("done", ["0.jpg"])
    agent = ActiveLearningAgent(dataset, preselected_tag_name="done", query_tag_name="sharp")
    assert agent.query_set == agent.unlabeled_set == ["10.jpg", "100.jpg"]
    assert agent.query(SamplerConfig(2, CORESET, "x")) == ["0.jpg", "100.jpg"]


def test_coral_prefers_the_uncertain_of_those_alike() -> None:
    """Pairs at 0, 90 and 180 degrees; 0 is labeled, and of each other pair the uncertain one is chosen."""
    dataset = at(0, 88, 92, 178, 182)
    dataset.tags.create("done", ["0.jpg"])
    agent = ActiveLearningAgent(dataset, preselected_tag_name="done")
    assert agent.unlabeled_set == ["88.jpg", "92.jpg", "178.jpg", "182.jpg"]
    scorer = ScorerClassification([[0.6, 0.4], [0.9, 0.1], [0.9, 0.1], [0.6, 0.4]])
    assert set(agent.query(SamplerConfig(3, CORAL, "x"), scorer)) == {"0.jpg", "88.jpg", "182.jpg"}
    assert set(agent.added_set) == {"88.jpg", "182.jpg"}


def test_coral_is_the_coreset_with_scores_as_weights() -> None:
    """Against `select_coreset` itself, on made-up images: labeled rows at the mean, strengths in balance."""
    generator = np.random.default_rng(1)
    embeddings = generator.gamma(0.5, size=(60, 8))
    dataset = Dataset([f"{number:02}" for number in range(60)], embeddings)
    dataset.tags.create("done", dataset.names_of([7, 3, 50]))
    p = generator.dirichlet(np.ones(4) * 0.5, size=57)
    scorer = ScorerClassification(p, score="uncertainty_entropy")
    agent = ActiveLearningAgent(dataset, preselected_tag_name="done")
    agent.query(SamplerConfig(13, CORAL, "x"), scorer)
    entropy = scorer.calculate_scores()["uncertainty_entropy"]
    weights = np.insert(entropy, [3, 6, 48], entropy.mean())  # before which the labeled 3, 7 and 50 stood
    expected = select_coreset(
        normalise(embeddings),
        budget=10,
        preselected=[7, 3, 50],
        typicality_weights=weights,
        weighting_strength=None,
    )
    assert agent.added_set == dataset.names_of(expected)


def test_scores_of_the_query_set_are_taken_too() -> None:
    """The later releases scored labeled images with the others: the same choice either way."""
    rows = np.array([[0.5, 0.5], [0.6, 0.4], [0.9, 0.1], [0.9, 0.1], [0.6, 0.4]])
    chosen = []
    for p in (rows, rows[1:]):
        dataset = at(0, 88, 92, 178, 182)
        dataset.tags.create("done", ["0.jpg"])
        agent = ActiveLearningAgent(dataset, preselected_tag_name="done")
        chosen.append(agent.query(SamplerConfig(3, CORAL, "x"), ScorerClassification(p)))
    assert chosen[0] == chosen[1]


def test_scores_that_do_not_fit_are_refused() -> None:
    """Too few predictions, none at all, and a scorer where scores have no effect; no tag is made."""
    dataset = at(0, 10, 100)
    agent = ActiveLearningAgent(dataset)
    with pytest.raises(SelectionError, match="predictions for 2 images; expected 3, one for each of unlabeled_set"):
        agent.query(SamplerConfig(2, CORAL, "x"), ScorerClassification([[0.5, 0.5]] * 2))
    with pytest.raises(SelectionError, match="CORAL needs scores"):
        agent.query(SamplerConfig(2, CORAL, "x"))
    with pytest.raises(SelectionError, match="method CORESET uses no scores"):
        agent.query(SamplerConfig(2, CORESET, "x"), ScorerObjectDetection([]))
    assert dataset.tags.names() == []
    with pytest.raises(SelectionError, match="nothing was added yet"):
        _ = agent.added_set


def test_random_is_by_its_seed() -> None:
    """The same seed the same images, another seed others; over many seeds every image equally often."""
    counts = dict.fromkeys(at(*range(6)).names, 0)
    for seed in range(300):
        chosen = ActiveLearningAgent(at(*range(6))).query(SamplerConfig(2, RANDOM, "x", random_state=seed))
        assert chosen == ActiveLearningAgent(at(*range(6))).query(SamplerConfig(2, RANDOM, "x", random_state=seed))
        for name in chosen:
            counts[name] += 1
    assert min(counts.values()) > 65  # of 600, 100 expected each, standard deviation 8.2


def test_a_name_that_is_taken_is_refused_before_anything_is_chosen() -> None:
    """The labeled set stays as it was."""
    agent = ActiveLearningAgent(at(0, 10, 100))
    agent.query(SamplerConfig(1, CORESET, "x"))
    with pytest.raises(TagError, match="there is a tag 'x' already"):
        agent.query(SamplerConfig(2, CORESET, "x"))
    assert agent.labeled_set == ["0.jpg"]


@pytest.mark.parametrize(
    ("n_samples", "method", "match"),
    [
        (0, CORESET, "n_samples is 0"),
        (1.5, CORESET, r"n_samples is 1\.5"),
        (True, CORESET, "n_samples is True"),
        (5, "CORAAL", "method is 'CORAAL'; expected one of RANDOM, CORESET, CORAL"),
    ],
)
def test_a_config_that_means_nothing_is_refused(n_samples: int, method: SamplingMethod, match: str) -> None:
    """When it is made."""
    with pytest.raises(SelectionError, match=match):
        SamplerConfig(n_samples, method, "x")


def test_unknown_tags_are_refused() -> None:
    """By name, when the agent is made."""
    with pytest.raises(TagError, match="no tag 'initial-selection'"):
        ActiveLearningAgent(at(0), preselected_tag_name="initial-selection")
    with pytest.raises(TagError, match="no tag 'sharp'"):
        ActiveLearningAgent(at(0), query_tag_name="sharp")


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 359), min_size=1, max_size=12, unique=True), st.data())
def test_any_query_adds_up(degrees: list[int], data: st.DataObject) -> None:
    """By any method: the total is what was asked for, what was labeled stays first, and the sets fit together."""
    dataset = at(*degrees)
    labeled = data.draw(st.lists(st.sampled_from(dataset.names), unique=True, max_size=len(degrees) - 1))
    dataset.tags.create("done", labeled)
    agent = ActiveLearningAgent(dataset, preselected_tag_name="done", query_tag_name="initial-tag")
    total = data.draw(st.integers(len(labeled) + 1, len(degrees)))
    method = data.draw(st.sampled_from(list(SamplingMethod)))
    scorer = ScorerClassification([[0.5, 0.5]] * len(agent.unlabeled_set)) if method is CORAL else None
    chosen = agent.query(SamplerConfig(total, method, "x"), scorer)
    assert len(set(chosen)) == len(chosen) == total
    assert chosen[: len(labeled)] == labeled
    assert chosen[len(labeled) :] == agent.added_set
    assert tuple(chosen) == dataset.tags.get("x")
    assert sorted([*chosen, *agent.unlabeled_set]) == sorted(dataset.names)
