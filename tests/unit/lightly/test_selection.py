"""The later form: each input and strategy on rows worked out by hand, and everything it refuses by name."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backend.errors import SelectionError, TagError
from backend.learning.coreset import select_coreset, typicality
from backend.learning.features import normalise
from backend.lightly import ActiveLearningAgent, Dataset, SamplerConfig, SamplingMethod, select
from backend.lightly.selection import COMBINATIONS, INPUTS, STRATEGIES

EMBEDDINGS = {"type": "EMBEDDINGS"}
DIVERSITY = {"input": EMBEDDINGS, "strategy": {"type": "DIVERSITY"}}


def circle(*degrees: float) -> np.ndarray:
    """Embeddings of length 1 at these angles; 60 degrees apart are 1 apart, 180 degrees 2."""
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def at(*degrees: int, metadata: Mapping[str, Sequence[object]] | None = None) -> Dataset:
    """A dataset of such embeddings, each image named by its angle."""
    return Dataset([str(angle) for angle in degrees], circle(*degrees), metadata=metadata)


def config(*strategies: Mapping[str, Any], n_samples: int = 3) -> dict[str, Any]:
    return {"n_samples": n_samples, "strategies": list(strategies)}


def by(strategy: str, input_type: str = "EMBEDDINGS", *, of: Mapping[str, Any] | None = None, **more: Any) -> Any:
    """One strategy; `of` are further settings of its input."""
    return {"input": {"type": input_type, **(of or {})}, "strategy": {"type": strategy, **more}}


# -- each strategy ----------------------------------------------------------------------------------------------------


def test_diversity_is_the_agent_s_coreset() -> None:
    """The same images by both forms, also by the strategy's first name."""
    degrees = (0, 10, 100, 170, 180)
    expected = ActiveLearningAgent(at(*degrees)).query(SamplerConfig(3, SamplingMethod.CORESET, "x"))
    assert select(at(*degrees), config(DIVERSITY), tag_name="x") == expected == ["0", "180", "100"]
    assert select(at(*degrees), config(by("DIVERSIFY")), tag_name="x") == expected


def test_n_samples_counts_the_new_ones() -> None:
    """Two are preselected and two new are chosen: the tag holds all four, the preselected first."""
    dataset = at(0, 10, 100, 170, 180)
    dataset.tags.create("done", ["180", "0"])
    new = select(dataset, config(DIVERSITY, n_samples=2), tag_name="x", preselected_tag_name="done")
    assert new == ["100", "10"]
    assert dataset.tags.get("x") == ("180", "0", "100", "10")


def test_a_proportion_is_of_the_query_set() -> None:
    """Half of the four images of the tag; at least one of ever so few."""
    dataset = at(0, 10, 100, 170, 180, 270)
    dataset.tags.create("sharp", ["0", "10", "100", "170"])
    half = {"proportion_samples": 0.5, "strategies": [DIVERSITY]}
    assert select(dataset, half, tag_name="x", query_tag_name="sharp") == ["0", "170"]
    few = {"proportion_samples": 0.01, "strategies": [DIVERSITY]}
    assert select(dataset, few, tag_name="y", query_tag_name="sharp") == ["0"]


def test_a_minimum_distance_ends_the_selection() -> None:
    """0 and 180 are 2 apart and 90 is 1.41 from both; 30 is 0.52 from 0, and too near."""
    near = by("DIVERSITY", stopping_condition_minimum_distance=0.6)
    assert select(at(0, 30, 90, 180), config(near, n_samples=4), tag_name="x") == ["0", "180", "90"]
    nearer = by("DIVERSITY", stopping_condition_minimum_distance=0.5)
    assert select(at(0, 30, 90, 180), config(nearer, n_samples=4), tag_name="x") == ["0", "180", "90", "30"]


def test_weights_take_the_largest() -> None:
    """Of a score, of metadata with negative numbers, and with a negative strength the smallest."""
    dataset = at(0, 90, 180, metadata={"temperature": [-5, 3.5, -1]})
    scores = {"uncertainty_margin": np.array([0.2, 0.1, 0.9])}
    weights = by("WEIGHTS", "SCORES", of={"score": "uncertainty_margin", "task": "weather"})
    assert select(dataset, config(weights, n_samples=2), tag_name="a", scores=scores) == ["180", "0"]
    warm = by("WEIGHTS", "METADATA", of={"key": "temperature"})
    assert select(dataset, config(warm), tag_name="b") == ["90", "180", "0"]
    cold = by("WEIGHTS", "METADATA", of={"key": "temperature"}, strength=-1)
    assert select(dataset, config(cold), tag_name="c") == ["0", "180", "90"]


def test_a_score_of_the_task_is_preferred() -> None:
    """Scores of several models can be told apart by task/score."""
    scores = {"margin": np.array([1.0, 0.0]), "weather/margin": np.array([0.0, 1.0])}
    for task, expected in (("weather", ["90"]), ("clothes", ["0"])):
        entry = by("WEIGHTS", "SCORES", of={"task": task, "score": "margin"})
        assert select(at(0, 90), config(entry, n_samples=1), tag_name="x", scores=scores) == expected


def test_uncertainties_are_made_of_predictions() -> None:
    """The most doubtful first; a preselected image needs no prediction."""
    dataset = at(0, 90, 180)
    dataset.tags.create("done", ["0"])
    entry = by("WEIGHTS", "SCORES", of={"score": "uncertainty_entropy"})
    predictions = np.array([[np.nan, np.nan], [0.9, 0.1], [0.6, 0.4]])
    new = select(dataset, config(entry), tag_name="x", preselected_tag_name="done", predictions=predictions)
    assert new == ["180", "90"]
    with pytest.raises(SelectionError, match="has no number for '0'"):
        select(dataset, config(entry), tag_name="y", predictions=predictions)


@pytest.mark.parametrize(
    ("operation", "expected"),
    [("SMALLER", ["0"]), ("SMALLER_EQUAL", ["0", "90"]), ("BIGGER", ["180"]), ("BIGGER_EQUAL", ["90", "180"])],
)
def test_thresholds_keep_what_passes(operation: str, expected: list[str]) -> None:
    """In the dataset's order if nothing else is wanted; an image without the number never passes."""
    dataset = at(0, 90, 180, 270, metadata={"sharpness": [10, 20, 30, None]})
    entry = by("THRESHOLD", "METADATA", of={"key": "sharpness"}, threshold=20, operation=operation)
    assert select(dataset, config(entry, n_samples=4), tag_name="x") == expected


def test_thresholds_come_first() -> None:
    """The farthest image is blurred: the choice is the best among the others, and those are fewer than asked for."""
    dataset = at(0, 10, 100, 180, metadata={"sharpness": [30, 30, 30, 5]})
    sharp = by("THRESHOLD", "METADATA", of={"key": "sharpness"}, threshold=20, operation="BIGGER")
    assert select(dataset, config(DIVERSITY, sharp, n_samples=4), tag_name="x") == ["0", "100", "10"]
    none = by("THRESHOLD", "METADATA", of={"key": "sharpness"}, threshold=40, operation="BIGGER")
    with pytest.raises(SelectionError, match="no image passes the THRESHOLD"):
        select(dataset, config(DIVERSITY, none), tag_name="y")
    assert dataset.tags.names() == ["x"]


def test_balance_reaches_its_target_by_metadata() -> None:
    """Nine of sun, three of rain, three of fog: half rain is three of six, and what is not named shares the rest."""
    weather = ["sun"] * 9 + ["rain"] * 3 + ["fog"] * 3
    dataset = at(*range(15), metadata={"weather": weather})

    def chosen(tag_name: str, **strategy: Any) -> list[str]:
        entry = by("BALANCE", "METADATA", of={"key": "weather"}, **strategy)
        return sorted(weather[int(name)] for name in select(dataset, config(entry, n_samples=6), tag_name=tag_name))

    assert chosen("a", target={"rain": 0.5}).count("rain") == 3
    assert chosen("b", target={"sun": 0.5, "rain": 0.5}) == ["rain"] * 3 + ["sun"] * 3
    assert chosen("c", distribution="UNIFORM") == ["fog", "fog", "rain", "rain", "sun", "sun"]
    assert chosen("d", distribution="INPUT").count("sun") in (3, 4)  # 3.6 of 6
    assert chosen("e", distribution="TARGET", target={"fog": 1.0}).count("fog") == 3


def test_balance_counts_the_preselected() -> None:
    """Two of sun are labeled: for equal shares two of rain come next."""
    dataset = at(0, 1, 2, 3, 4, metadata={"weather": ["sun", "sun", "sun", "rain", "rain"]})
    dataset.tags.create("done", ["0", "1"])
    entry = by("BALANCE", "METADATA", of={"key": "weather"}, distribution="UNIFORM")
    assert select(dataset, config(entry, n_samples=2), tag_name="x", preselected_tag_name="done") == ["3", "4"]


def test_balance_by_predictions() -> None:
    """Probabilities add up: 0.9 + 0.1 of sun is half, so of four the first and third are chosen in either order."""
    predictions = np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.7, 0.3]])
    entry = by(
        "BALANCE", "PREDICTIONS", of={"task": "weather", "name": "CLASS_DISTRIBUTION"}, target={"sun": 0.5, "rain": 0.5}
    )
    new = select(
        at(0, 1, 2, 3), config(entry, n_samples=2), tag_name="x", predictions=predictions, classes=["sun", "rain"]
    )
    assert new == ["3", "2"]  # 0.7 is nearest to half, and 0.7 + 0.1 of 2 nearer than any other pair with it


def test_similarity_is_to_the_query_tag() -> None:
    """The nearest first, on either side; images of the tag are the most alike."""
    dataset = at(0, 60, 100, 180, 300)
    dataset.tags.create("rare", ["100"])
    entry = by("SIMILARITY", of={"tag_name": "rare"})
    assert select(dataset, config(entry, n_samples=5), tag_name="x") == ["100", "60", "180", "0", "300"]
    dataset.tags.create("others", ["0", "300"])
    assert select(dataset, config(entry), tag_name="y", query_tag_name="others") == ["0", "300"]


def test_typicality_takes_the_middle() -> None:
    """With two neighbours the middle of the cluster is first and the stray image last."""
    entry = by("TYPICALITY", num_nearest_neighbors=2)
    new = select(at(0, 5, 10, 180), config(entry, n_samples=4), tag_name="x")
    assert (new[0], new[-1]) == ("5", "180")
    ended = by("TYPICALITY", num_nearest_neighbors=2, stopping_condition_minimum_typicality=0.5)
    assert "180" not in select(at(0, 5, 10, 180), config(ended, n_samples=4), tag_name="x")


def test_random_is_by_its_seed() -> None:
    """Of the input, else of the call; over many seeds every image comes first equally often."""
    dataset = at(*range(5))
    firsts = []
    for seed in range(300):
        entry = by("WEIGHTS", "RANDOM", of={"random_seed": seed})
        firsts += select(dataset, config(entry, n_samples=1), tag_name=f"seeded {seed}", random_state=7)
        called = select(
            dataset, config(by("WEIGHTS", "RANDOM"), n_samples=1), tag_name=f"called {seed}", random_state=seed
        )
        assert firsts[-1:] == called
    assert min(firsts.count(name) for name in dataset.names) > 35  # of 300, 60 expected each, standard deviation 6.9
    half = by("THRESHOLD", "RANDOM", threshold=0.5, operation="BIGGER")
    assert 30 < len(select(at(*range(100)), config(half, n_samples=100), tag_name="x")) < 70


def test_strategies_together_are_lightly_s_sum_of_logarithms() -> None:
    """Diversity and typicality as the first batch has them, with strengths."""
    generator = np.random.default_rng(2)
    embeddings = generator.gamma(0.5, size=(70, 6))
    dataset = Dataset([f"{number:02}" for number in range(70)], embeddings)
    both = config(by("DIVERSITY", strength=0.7), by("TYPICALITY", strength=1.3), n_samples=12)
    rows = normalise(embeddings)
    expected = select_coreset(
        rows, budget=12, typicality_weights=typicality(rows), diversity_strength=0.7, weighting_strength=1.3
    )
    assert select(dataset, both, tag_name="x") == dataset.names_of(expected)


def test_a_greater_strength_counts_more() -> None:
    """Scores prefer the images at 0, diversity those far apart: with more strength of the scores more come from 0."""
    dataset = at(0, 1, 2, 3, 90, 180, 270)
    scores = {"s": np.array([1.0, 1.0, 1.0, 1.0, 0.1, 0.1, 0.1])}

    def n_alike(strength: float) -> int:
        entries = DIVERSITY, by("WEIGHTS", "SCORES", of={"score": "s"}, strength=strength)
        new = select(dataset, config(*entries, n_samples=4), tag_name=f"with {strength}", scores=scores)
        return len(set(new) & {"0", "1", "2", "3"})

    assert n_alike(0.0) == 1
    assert n_alike(100.0) == 4


def test_1121_embeddings_are_selected_within_a_second() -> None:
    """The size of the tutorial's pool, 1,280 numbers each: 200 new beside 100 labeled, by three strategies at once."""
    generator = np.random.default_rng(0)
    dataset = Dataset([f"{number}.jpg" for number in range(1121)], generator.random((1121, 1280), dtype=np.float32))
    dataset.tags.create("done", dataset.names[:100])
    predictions = generator.dirichlet(np.ones(5), size=1121)
    entries = (
        by("DIVERSITY", stopping_condition_minimum_distance=1e-6),
        by("WEIGHTS", "SCORES", of={"score": "uncertainty_margin"}),
        by("BALANCE", "PREDICTIONS", distribution="UNIFORM"),
    )
    times = []
    for number in range(3):  # the best of three: other tests run beside this one
        started = time.perf_counter()
        new = select(
            dataset,
            config(*entries, n_samples=200),
            tag_name=f"round {number}",
            preselected_tag_name="done",
            predictions=predictions,
            classes=list("abcde"),
        )
        times.append(time.perf_counter() - started)
        assert len(new) == 200
    assert min(times) <= 1.0


# -- any config -------------------------------------------------------------------------------------------------------


def some(strategy: str, input_type: str, strength: float) -> Any:
    """A valid entry of each combination."""
    inputs: dict[str, dict[str, Any]] = {
        "SCORES": {"score": "s"},
        "METADATA": {"key": "weather" if strategy == "BALANCE" else "sharpness"},
        "EMBEDDINGS": {"tag_name": "rare"} if strategy == "SIMILARITY" else {},
        "PREDICTIONS": {"name": "CLASS_DISTRIBUTION"},
        "RANDOM": {},
    }
    strategies: dict[str, dict[str, Any]] = {
        "THRESHOLD": {"threshold": 0, "operation": "BIGGER_EQUAL"},
        "BALANCE": {"target": {"sun": 0.4}, "strength": strength},
    }
    return by(strategy, input_type, of=inputs[input_type], **strategies.get(strategy, {"strength": strength}))


ALL = [(strategy, input_type) for strategy, input_types in COMBINATIONS.items() for input_type in input_types]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from(ALL), min_size=1, max_size=5, unique=True),
    st.lists(st.integers(0, 359), min_size=3, max_size=15, unique=True),
    st.data(),
)
def test_any_config_gives_what_it_promises(
    combinations: list[tuple[str, str]], degrees: list[int], data: st.DataObject
) -> None:
    """As many new images as asked for or left, none labeled, twice the same, and a tag of both."""
    n = len(degrees)
    dataset = at(*degrees, metadata={"weather": (["sun", "rain", None] * n)[:n], "sharpness": list(range(n))})
    dataset.tags.create("rare", dataset.names[:2])
    labeled = data.draw(st.lists(st.sampled_from(dataset.names), unique=True, max_size=n - 3))
    dataset.tags.create("done", labeled)
    n_samples = data.draw(st.integers(1, n + 3))
    strength = data.draw(st.sampled_from([-1.0, 0.0, 0.3, 2.0]))
    wanted = config(*[some(strategy, kind, strength) for strategy, kind in combinations], n_samples=n_samples)
    known = {
        "preselected_tag_name": "done",
        "scores": {"s": np.linspace(0, 1, n)},
        "predictions": np.tile([0.7, 0.3], (n, 1)),
        "classes": ["sun", "rain"],
    }
    new = select(dataset, wanted, tag_name="x", **known)
    assert len(set(new)) == len(new) == min(n_samples, n - len(labeled))
    assert not set(new) & set(labeled)
    assert dataset.tags.get("x") == (*labeled, *new)
    assert select(dataset, wanted, tag_name="y", **known) == new


# -- what is refused --------------------------------------------------------------------------------------------------


def test_every_combination_that_is_not_listed_is_refused() -> None:
    """With both names and what the strategy takes."""
    for strategy in STRATEGIES:
        for input_type in INPUTS:
            if input_type not in COMBINATIONS[strategy]:
                with pytest.raises(SelectionError, match=f"strategy {strategy} on input {input_type}; {strategy} take"):
                    select(at(0, 90), config(by(strategy, input_type)), tag_name="x")


def test_every_setting_of_another_type_is_refused() -> None:
    """Each setting of each strategy and input, on every type that does not take it."""
    for types, part in ((STRATEGIES, "strategy"), (INPUTS, "input")):
        every = {setting for taken in types.values() for setting in taken}
        for type_, taken in types.items():
            for setting in sorted(every - set(taken)):
                entry = {"input": EMBEDDINGS, "strategy": {"type": "DIVERSITY"}, part: {"type": type_, setting: 1}}
                with pytest.raises(SelectionError, match=f"{part} of type {type_} has '{setting}'; it takes: type"):
                    select(at(0, 90), config(entry), tag_name="x")


BALANCED = by("BALANCE", "METADATA", of={"key": "weather"}, distribution="UNIFORM")


@pytest.mark.parametrize(
    ("wanted", "match"),
    [
        ([], "the selection config is"),
        ({}, "has both or none of n_samples and proportion_samples"),
        ({"n_samples": 1, "proportion_samples": 0.1, "strategies": [DIVERSITY]}, "has both or none"),
        ({"n_samples": 1}, "strategies is None"),
        (config(), r"strategies is \[\]"),
        ({"n_samples": 1, "strategies": "DIVERSITY"}, "strategies is 'DIVERSITY'"),
        ({"n_samples": 1, "strategies": [DIVERSITY], "lightly_path_regex": "x"}, "has 'lightly_path_regex'"),
        (config(DIVERSITY, n_samples=0), "n_samples is 0"),
        (config(DIVERSITY, n_samples=True), "n_samples is True"),
        ({"proportion_samples": 0, "strategies": [DIVERSITY]}, "proportion_samples is 0"),
        ({"proportion_samples": 1.1, "strategies": [DIVERSITY]}, r"proportion_samples is 1\.1"),
        (config("DIVERSITY"), r"strategies\[0\] is 'DIVERSITY'"),  # type: ignore[arg-type]
        (config(DIVERSITY, {**DIVERSITY, "weight": 1}), r"strategies\[1\] has 'weight'"),
        (config({"input": EMBEDDINGS}), r"strategies\[0\] has strategy None"),
        (config({"input": {}, "strategy": {"type": "DIVERSITY"}}), r"has input {}; expected a type"),
        (config(by("DIVERSE")), "strategy has type 'DIVERSE'; expected one of DIVERSITY, WEIGHTS"),
        (config(by("DIVERSITY", "EMBEDDING")), "input has type 'EMBEDDING'"),
        (config(by(["DIVERSITY"])), r"has type \['DIVERSITY'\]"),  # type: ignore[arg-type]
        (config(DIVERSITY, DIVERSITY), r"strategies\[0\] and strategies\[1\] are both DIVERSITY"),
        (config(by("DIVERSITY", of={"tag_name": "rare"})), "tag_name, which only SIMILARITY uses"),
        (config(by("DIVERSITY", strength="high")), "strength 'high'; expected a number"),
        (config(by("DIVERSITY", strength=2e9)), r"strength 2000000000\.0"),
        (config(by("DIVERSITY", strength=float("nan"))), "strength nan"),
        (config(by("DIVERSITY", stopping_condition_minimum_distance=3)), "minimum_distance 3; expected above 0 and up"),
        (config(by("DIVERSITY", stopping_condition_minimum_distance=-1)), "minimum_distance -1"),
        (config(by("TYPICALITY", num_nearest_neighbors=1)), "num_nearest_neighbors 1; expected a whole number of at"),
        (config(by("SIMILARITY")), "no tag_name; SIMILARITY needs"),
        (config(by("SIMILARITY", of={"tag_name": "empty"})), "'empty', an empty tag"),
        (config(by("WEIGHTS", "SCORES", of={"score": "x"})), "score 'x'; the scores are: s"),
        (config(by("WEIGHTS", "SCORES")), "score 'None'"),
        (config(by("WEIGHTS", "METADATA")), "key None; the dataset's metadata are: weather, sharpness"),
        (config(by("WEIGHTS", "METADATA", of={"key": "weather"})), "has the value 'sun'; expected numbers"),
        (config(by("WEIGHTS", "METADATA", of={"key": "sharpness"})), "has no number for '180'"),
        (config(by("WEIGHTS", "RANDOM", of={"random_seed": -1})), "random_seed -1"),
        (config(by("THRESHOLD", "SCORES", of={"score": "s"}, operation="BIGGER")), "threshold None"),
        (config(by("THRESHOLD", "SCORES", of={"score": "s"}, threshold=1, operation=">")), "operation '>'; expected"),
        (config(by("BALANCE", "METADATA", of={"key": "weather"})), "target None; expected a share"),
        (config(by("BALANCE", "METADATA", of={"key": "weather"}, target={"snow": 1})), "target for 'snow'; the class"),
        (config(by("BALANCE", "METADATA", of={"key": "weather"}, target={"sun": 2})), "target 'sun': 2; expected"),
        (config(by("BALANCE", "METADATA", of={"key": "weather"}, target={"sun": 0.6, "rain": 0.6})), r"sum to 1\.2"),
        (config(by("BALANCE", "METADATA", of={"key": "weather"}, target={"sun": 0})), "sum to 0"),
        (config(by("BALANCE", "METADATA", of={"key": "weather"}, distribution="EVEN")), "distribution 'EVEN'"),
        (
            config(by("BALANCE", "METADATA", of={"key": "weather"}, distribution="INPUT", target={"sun": 1})),
            "a target beside distribution INPUT",
        ),
        (config(by("BALANCE", "METADATA", of={"key": "sharpness"}, distribution="INPUT")), "are decimal numbers"),
        (config(by("BALANCE", "PREDICTIONS", distribution="INPUT")), "pass predictions and classes"),
        (config(by("BALANCE", "PREDICTIONS", of={"name": "CATEGORY_COUNT"}, distribution="INPUT")), "CATEGORY_COUNT"),
    ],
)
def test_a_config_that_is_not_understood_is_refused(wanted: Any, match: str) -> None:
    """By the name of the setting, with where it stands; and no tag is made."""
    dataset = at(0, 90, 180, metadata={"weather": ["sun", "rain", None], "sharpness": [1.5, 2.5, None]})
    dataset.tags.create("empty", [])
    with pytest.raises(SelectionError, match=match):
        select(dataset, wanted, tag_name="x", scores={"s": np.ones(3)})
    assert dataset.tags.names() == ["empty"]


@pytest.mark.parametrize(
    ("known", "match"),
    [
        ({"scores": {"s": np.ones(2)}}, r"score 's' has shape \(2,\); expected \(3,\)"),
        ({"predictions": np.ones((2, 2))}, r"predictions have shape \(2, 2\); expected \(3, C\)"),
        ({"predictions": np.ones((3, 2)), "classes": ["a"]}, "got 1 classes, 1 of them different"),
        ({"predictions": np.ones((3, 2)), "classes": ["a", "a"]}, "got 2 classes, 1 of them different"),
        ({"classes": ["a"]}, "classes are given without predictions"),
        ({"preselected_tag_name": "initial-tag"}, "no image is left to choose"),
    ],
)
def test_what_does_not_fit_the_dataset_is_refused(known: dict[str, Any], match: str) -> None:
    """Scores, predictions and classes of other numbers, and nothing to choose from."""
    with pytest.raises(SelectionError, match=match):
        select(at(0, 90, 180), config(DIVERSITY), tag_name="x", **known)


def test_predictions_must_be_probabilities() -> None:
    """For BALANCE: none negative, none missing for an image that may be chosen."""
    entry = by("BALANCE", "PREDICTIONS", distribution="UNIFORM")
    for predictions in ([[-1.0, 2.0]] * 2, [[np.nan, 1.0]] * 2):
        with pytest.raises(SelectionError, match="NaN or negative"):
            select(at(0, 90), config(entry), tag_name="x", predictions=predictions, classes=["a", "b"])


def test_balance_without_any_class_is_refused() -> None:
    """Metadata that are all missing balance nothing."""
    dataset = at(0, 90, metadata={"weather": [None, None]})
    with pytest.raises(SelectionError, match="no image that may be chosen has a class"):
        select(dataset, config(BALANCED), tag_name="x")


def test_a_stopping_condition_that_leaves_nothing_is_said() -> None:
    """Everything is nearer to a labeled image than the minimum."""
    dataset = at(0, 1, 2)
    dataset.tags.create("done", ["0"])
    entry = by("DIVERSITY", stopping_condition_minimum_distance=1)
    with pytest.raises(SelectionError, match="ended the selection before the first image"):
        select(dataset, config(entry), tag_name="x", preselected_tag_name="done")


def test_a_tag_that_is_taken_is_refused() -> None:
    """Before anything else is looked at."""
    dataset = at(0, 90)
    dataset.tags.create("x", [])
    with pytest.raises(TagError, match="there is a tag 'x' already"):
        select(dataset, {}, tag_name="x")
