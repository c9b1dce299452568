"""Selection by several objectives: against lightly-mundig, and on rows whose answer can be worked out by hand."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backend.errors import SelectionError
from backend.learning import objectives as objectives_module
from backend.learning.coreset import select_coreset, typicality
from backend.learning.features import normalise
from backend.learning.objectives import Balance, Diversity, Objective, Weighting, select_by_objectives, similarity

ENGINE = """
import json, sys
import numpy as np
from lightly_mundig import Selection, Similarity

request = json.loads(open(sys.argv[1]).read())
if "queries" in request:
    keys = np.array(request["rows"], dtype=np.float32)
    print(json.dumps(Similarity(keys).calculate_similarity(np.array(request["queries"], dtype=np.float32))))
    raise SystemExit
answers = []
for case in request["cases"]:
    selection = Selection()
    for kind, values, strength, extra in case["objectives"]:
        array = np.array(values, dtype=np.float32)
        if kind == "Diversity":
            selection.add_diversifying_strategy(
                embeddings=array, strength=strength, stopping_condition_minimum_distance=extra
            )
        elif kind == "Weighting":
            selection.add_weighting_strategy(weights=values, strength=strength)
        else:
            selection.add_balancing_strategy(class_distributions=array, target=extra, strength=strength)
    preselected = case["preselected"]
    answers.append(
        selection.run_selection(
            preselected_indices=preselected,
            n_total_samples=case["n_rows"],
            n_samples_to_select=len(preselected) + case["budget"],
        )[len(preselected):]
    )
print(json.dumps(answers))
"""


def engine(folder: Path, request: dict[str, Any]) -> Any:
    """What lightly-mundig answers, in a process of its own."""
    (folder / "request.json").write_text(json.dumps(request))
    command = [sys.executable, "-c", ENGINE, str(folder / "request.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def as_request(objectives: Sequence[Objective], n_rows: int, budget: int, preselected: list[int]) -> dict[str, Any]:
    described: list[list[Any]] = []
    for item in objectives:
        if isinstance(item, Diversity):
            described.append(["Diversity", np.asarray(item.embeddings).tolist(), item.strength, item.minimum_distance])
        elif isinstance(item, Weighting):
            described.append(["Weighting", np.asarray(item.weights).tolist(), item.strength, None])
        else:
            target = np.asarray(item.target).tolist()
            described.append(["Balance", np.asarray(item.distributions).tolist(), item.strength, target])
    return {"objectives": described, "n_rows": n_rows, "budget": budget, "preselected": preselected}


def made_up(n_rows: int = 80, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Embeddings of length 1 in clusters, weights, and class distributions of three uneven classes."""
    generator = np.random.default_rng(seed)
    rows = normalise(generator.gamma(0.5, size=(5, 16))[generator.integers(0, 5, n_rows)] + 0.5 * generator.random(16))
    rows = normalise(rows + 0.12 * generator.normal(size=rows.shape))
    logits = generator.normal(size=(n_rows, 3)) * 2 + np.array([1.5, 0.0, -1.0])
    return rows, generator.random(n_rows), np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


def test_the_picks_are_lightly_mundig_s(tmp_path: Path) -> None:
    """Pick by pick for every objective, alone and together, with strengths, preselected rows and an early end."""
    rows, weights, classes = made_up()
    one_hot = np.eye(3)[classes.argmax(axis=1)]
    target = [0.2, 0.3, 0.5]
    cases: list[tuple[list[Objective], list[int]]] = [
        ([Diversity(rows)], []),
        ([Diversity(rows, minimum_distance=0.6)], []),
        ([Diversity(rows, minimum_distance=0.7), Weighting(weights)], [4, 20]),
        ([Diversity(rows, -1.0)], [7]),
        ([Weighting(weights, -1.0)], [7]),
        ([Balance(classes, target)], [3, 50, 51]),
        ([Balance(one_hot, target), Weighting(weights)], [3, 50]),
        ([Balance(classes, target, 0.5), Diversity(rows, 2.0)], []),
        ([Diversity(rows, 0.7), Weighting(weights, 0.5), Weighting(weights[::-1].copy(), 1.5)], [0, 1, 2]),
        ([Diversity(rows), Balance(classes, [1, 1, 1], 3.0), Weighting(weights, 0.3)], [11]),
    ]
    budget = 25
    request = {"cases": [as_request(objectives, 80, budget, preselected) for objectives, preselected in cases]}
    expected = engine(tmp_path, request)
    assert [len(picks) for picks in expected].count(budget) == len(cases) - 2  # two ended early
    for (objectives, preselected), picks in zip(cases, expected, strict=True):
        assert select_by_objectives(objectives, n_rows=80, budget=budget, preselected=preselected) == picks


def test_the_similarity_is_lightly_mundig_s(tmp_path: Path) -> None:
    """For rows two of which are queries; the root of float32 rounding is 0.0003, and that of a distance of 0."""
    rows, _, _ = made_up(30)
    queries = np.concatenate([rows[[4, 9]], made_up(3, seed=5)[0]])
    expected = engine(tmp_path, {"rows": rows.tolist(), "queries": queries.tolist()})
    np.testing.assert_allclose(similarity(rows, queries), expected, atol=1e-3)


def test_similarity_by_hand() -> None:
    """Distances 0, 1 and 2 to the query have the mean 1: exp(0), exp(-1), exp(-2)."""
    np.testing.assert_allclose(similarity([[0.0], [1.0], [2.0]], [[0.0]]), np.exp([0.0, -1.0, -2.0]))
    assert similarity([[3.0], [3.0]], [[3.0]]).tolist() == [1.0, 1.0]
    with pytest.raises(SelectionError, match="no query"):
        similarity([[3.0]], np.empty((0, 1)))


def test_balance_by_hand() -> None:
    """Two of class A selected, half and half wanted: B, B, and then the cheapest is A again.

    After A A B B either is alike, and the lowest index wins.
    """
    distributions = np.eye(2)[[0, 0, 0, 1, 1, 1]]
    balance = Balance(distributions, [0.5, 0.5])
    assert select_by_objectives([balance], n_rows=6, budget=3, preselected=[0, 1]) == [3, 4, 2]


def test_a_minimum_ends_the_selection() -> None:
    """On a line 0, then 4, then 2, and 1 and 3 are at distance 1; a weight below the minimum ends it, too."""
    line = np.arange(5.0)[:, None]
    assert select_by_objectives([Diversity(line, minimum_distance=1.5)], n_rows=5, budget=5) == [0, 4, 2]
    assert select_by_objectives([Diversity(line, minimum_distance=1.0)], n_rows=5, budget=5) == [0, 4, 2, 1, 3]
    weighting = Weighting([0.1, 0.9, 0.5, 0.4], minimum_weight=0.5)
    assert select_by_objectives([weighting], n_rows=4, budget=4) == [1, 2]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.data())
def test_select_coreset_is_the_special_case(seed: int, data: st.DataObject) -> None:
    """One diversity and one weighting give the same rows by the general loop and by `select_coreset`."""
    rows, weights, _ = made_up(40, seed)
    preselected = data.draw(st.lists(st.integers(0, 39), unique=True, max_size=6))
    both = [Diversity(rows, 0.8), Weighting(weights, 0.4)]
    never = [Diversity(rows, 0.8, minimum_distance=1e-9), Weighting(weights, 0.4)]  # the general loop
    assert objectives_module._is_plain(both)
    assert not objectives_module._is_plain(never)
    plain = select_by_objectives(both, n_rows=40, budget=15, preselected=preselected)
    assert plain == select_by_objectives(never, n_rows=40, budget=15, preselected=preselected)
    assert plain == select_coreset(
        rows,
        budget=15,
        preselected=preselected,
        typicality_weights=weights,
        diversity_strength=0.8,
        weighting_strength=0.4,
    )


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(-3, 3), min_size=1, max_size=10), st.data())
def test_any_rows_give_as_many_as_asked(positions: list[int], data: st.DataObject) -> None:
    """Copies, zeros and strengths of either sign: `budget` different rows, none preselected, and twice the same."""
    rows = np.array([[position, 1.0] for position in positions], dtype=np.float32)
    n_rows = len(rows)
    preselected = data.draw(st.lists(st.sampled_from(range(n_rows)), unique=True))
    budget = data.draw(st.integers(0, n_rows - len(preselected)))
    strengths = data.draw(st.tuples(*[st.sampled_from([-2.0, 0.0, 0.5, 1.0])] * 3))
    objectives = [
        Diversity(rows, strengths[0]),
        Weighting(np.abs(np.array(positions, dtype=float)), strengths[1]),
        Balance(np.eye(2)[[position % 2 for position in positions]], [0.3, 0.7], strengths[2]),
    ]
    picks = select_by_objectives(objectives, n_rows=n_rows, budget=budget, preselected=preselected)
    assert len(set(picks)) == len(picks) == budget
    assert not set(picks) & set(preselected)
    assert picks == select_by_objectives(objectives, n_rows=n_rows, budget=budget, preselected=preselected)


def test_typicality_as_weights_prefers_the_middle() -> None:
    """Of a cluster and a stray row, the stray one comes last."""
    rows = np.array([[0.0], [0.1], [0.2], [0.3], [9.0]])
    picks = select_by_objectives([Weighting(typicality(rows, 2))], n_rows=5, budget=5)
    assert picks[-1] == 4


@pytest.mark.parametrize(
    ("objective", "match"),
    [
        (Diversity(np.ones((2, 2))), "2 embeddings of 3 rows"),
        (Diversity(np.full((3, 2), np.nan), -1.0), "NaN"),
        (Weighting([1.0, -1.0, 0.0], -1.0), "negative"),
        (Balance(np.ones((3, 2)), [1.0, 1.0, 1.0]), r"shape \(3, 2\); expected \(3, 3\)"),
        (Balance(-np.ones((3, 2)), [1.0, 1.0]), "class distributions contain"),
        (Balance(np.ones((3, 2)), [0.0, 0.0]), "the target is 0"),
        (Balance(np.ones((3, 2)), [np.nan, 0.0]), "target contain"),
    ],
)
def test_impossible_objectives_are_refused(objective: Objective, match: str) -> None:
    """Each with what came and what was expected."""
    ending = Weighting(np.ones(3), minimum_weight=0.5)  # so that the general loop checks
    with pytest.raises(SelectionError, match=match):
        select_by_objectives([objective, ending], n_rows=3, budget=1)


def test_impossible_requests_are_refused() -> None:
    """No objective, too large a budget, an index outside."""
    with pytest.raises(SelectionError, match="no objective"):
        select_by_objectives([], n_rows=3, budget=1)
    with pytest.raises(SelectionError, match=r"budget is 3; expected 0\.\.2"):
        select_by_objectives([Weighting(np.ones(3))], n_rows=3, budget=3, preselected=[0])
    with pytest.raises(SelectionError, match="index 7"):
        select_by_objectives([Weighting(np.ones(3))], n_rows=3, budget=1, preselected=[7])
