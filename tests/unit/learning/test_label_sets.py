"""Sets of labels: what is predicted, how good it is, and the head that learns them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.optimize import approx_fprime
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, f1_score

from backend.errors import FitInterruptedError
from backend.labels import Label, names_of, text_of
from backend.learning import acquisition, label_sets, later_rounds, spreading
from backend.learning import head as head_module
from backend.learning.features import plain_space
from backend.learning.head import FitResult, HeadSettings, choose_settings, fit, predict_pool
from backend.learning.later_rounds import LATER_ROUND_STRATEGIES, RoundState
from backend.learning.pool import Pool
from backend.learning.suspects import Suspect, find_set_suspects

PETS = ("cat", "dog")


def pictures(n: int, *, noise: float = 0.4, seed: int = 0) -> tuple[np.ndarray, list[Label]]:
    """Embeddings (N, 30) that are the sum of what is on the image, and which of a, b and c that is."""
    random = np.random.default_rng(seed)
    things = random.normal(size=(3, 30))
    has = random.random((n, 3)) < 0.45
    embeddings = has @ things + noise * random.normal(size=(n, 30)) + random.normal(size=30)
    return embeddings.astype(np.float32), [tuple(np.array(list("abc"))[row].tolist()) for row in has]


# -- labels -----------------------------------------------------------------------------------------------------------


def test_labels_are_read_by_people() -> None:
    """A class is itself, a set is its labels, and the empty one says so."""
    assert [text_of(label) for label in ("cat", ("cat", "dog"), ())] == ["cat", "cat, dog", "none of these"]
    assert [names_of(label) for label in ("cat", ("cat", "dog"), ())] == [("cat",), ("cat", "dog"), ()]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["cat", "cat"], False),
        (["cat", "dog"], True),
        ([("cat",), ("cat",)], False),
        ([(), ()], False),
        ([(), ("cat",)], True),
        ([("cat", "dog"), ("cat",)], True),
    ],
)
def test_something_can_be_learned_once_labels_differ(labels: list[Label], expected: bool) -> None:
    """Two classes, or a label that one image has and another has not."""
    assert label_sets.can_be_told_apart(labels) == expected


def test_predictions_by_hand() -> None:
    """From 0.6 on: both, the dog, neither; of classes the likeliest."""
    probabilities = np.array([[0.6, 0.9], [0.5, 0.7], [0.1, 0.2]])
    assert label_sets.predicted(PETS, probabilities, 0.6) == [("cat", "dog"), ("dog",), ()]
    assert label_sets.predicted(PETS, probabilities, None) == ["dog", "dog", "dog"]


def test_confidence_by_hand() -> None:
    """0.6 · 0.9 for both, 0.5 · 0.7 for the dog alone, 0.9 · 0.8 for neither."""
    probabilities = np.array([[0.6, 0.9], [0.5, 0.7], [0.1, 0.2]])
    np.testing.assert_allclose(label_sets.confidence(probabilities, 0.6), [0.54, 0.35, 0.72])
    np.testing.assert_allclose(label_sets.confidence(probabilities, None), [0.9, 0.7, 0.2])


def test_the_likeliest_sets_are_those_of_all() -> None:
    """Of all eight sets of three labels the three with the greatest product of probabilities."""
    random = np.random.default_rng(0)
    for probabilities in random.random((20, 3)):
        sets = [np.array(flags) for flags in itertools.product([False, True], repeat=3)]
        sets.sort(key=lambda has: -float(np.where(has, probabilities, 1 - probabilities).prod()))
        expected = [tuple(np.array(list("abc"))[has].tolist()) for has in sets[:2]]
        found = label_sets.likeliest_sets("abc", probabilities, 3)
        assert found[:2] == expected
        assert len(set(found)) == 3


def test_the_threshold_is_that_with_most_right_sets() -> None:
    """Labels that images have from 0.4 on; and nothing is moved where 0.5 does as well."""
    probabilities = np.array([[0.42, 0.1], [0.9, 0.3], [0.33, 0.44]])
    assert label_sets.choose_threshold(probabilities, probabilities > 0.36) == 0.4
    assert label_sets.choose_threshold(probabilities, probabilities > 0.46) == 0.5


def test_figures_are_scikit_learns() -> None:
    """F1 and average precision of each label, ties among the probabilities included; a label nobody has is left out."""
    random = np.random.default_rng(0)
    has = random.random((40, 4)) < 0.3
    has[:, 3] = False
    probabilities = np.round(np.clip(0.5 * has + 0.6 * random.random((40, 4)), 0, 1), 1)
    probabilities[:, 3] = 0.1
    figures = label_sets.set_figures(probabilities, has, 0.5)
    guess = probabilities >= 0.5
    assert figures.exact_match == np.mean([(one == two).all() for one, two in zip(guess, has, strict=True)])
    assert figures.label_accuracy == pytest.approx((guess == has).mean())
    for label in range(3):
        assert figures.f1[label] == pytest.approx(f1_score(has[:, label], guess[:, label]))
        expected = average_precision_score(has[:, label], probabilities[:, label])
        # scikit-learn counts what is equally likely together, too, but its sum runs over the thresholds.
        assert figures.average_precision[label] == pytest.approx(expected)
    assert np.isnan([figures.f1[3], figures.average_precision[3]]).all()
    assert figures.macro_f1 == pytest.approx(figures.f1[:3].mean())
    assert figures.mean_average_precision == pytest.approx(figures.average_precision[:3].mean())


# -- the head ---------------------------------------------------------------------------------------------------------


def test_each_label_is_scikit_learns_logistic_regression() -> None:
    """With all weights 1 and nothing from a pool, the solution of each label is that of the label alone."""
    embeddings, labels = pictures(60, noise=1.5)
    has = label_sets.membership("abc", labels)
    problem = head_module._SetProblem(embeddings.astype(np.float64), has[:, None] * 1.0, np.ones((60, 1, 3)))
    solution = problem.solve(2.0, start=None, tolerance=(1e-7, 1e-14))[:, 0]
    for label in range(3):
        reference = LogisticRegression(C=2.0, tol=1e-8, max_iter=1000).fit(embeddings.astype(np.float64), has[:, label])
        np.testing.assert_allclose(solution[:-1, label], reference.coef_[0], atol=2e-3)
        np.testing.assert_allclose(solution[-1, label], reference.intercept_[0], atol=2e-3)


def test_the_loss_of_sets_has_the_gradient_it_says() -> None:
    """With entropies and shares, against finite differences."""
    random = np.random.default_rng(0)
    targets, weights = random.random((5, 2, 3)), random.random((5, 2, 3))
    entropies = random.random((5, 2))
    doubt, shares = random.random((2, 3)), random.uniform(0.2, 0.8, (2, 3))
    problem = head_module._SetProblem(
        random.normal(size=(5, 4)), targets, weights, doubt=doubt, entropies=entropies / entropies.sum(axis=0)
    )

    def loss(flat: np.ndarray) -> float:
        return problem._loss(flat.reshape(5, 2, 3).copy(), weights, doubt, shares)[0]

    logits = 2 * random.normal(size=30)
    _, gradient = problem._loss(logits.reshape(5, 2, 3).copy(), weights, doubt, shares)
    np.testing.assert_allclose(gradient.ravel(), approx_fprime(logits, loss, 1e-6), atol=1e-5)


def learned(n_labels: int = 60, *, n_pool: int = 200, noise: float = 0.4) -> tuple[Pool, list[Label], FitResult]:
    embeddings, labels = pictures(n_pool, noise=noise)
    pool = Pool(embeddings)
    return pool, labels, fit(pool, np.arange(n_labels), labels[:n_labels], HeadSettings())


def test_sets_are_learned_and_told_of_other_images() -> None:
    """Sums of three things, each there or not: nine in ten of the others right altogether, empty sets among them."""
    pool, labels, fitted = learned()
    assert fitted.head.classes == ("a", "b", "c")
    assert fitted.head.threshold == 0.5
    found = fitted.head.predicted(fitted.head.predict_proba(pool.embeddings[60:]))
    assert label_sets.share_right(found, labels[60:]) > 0.9
    assert () in found


def test_probabilities_of_the_pool_are_those_of_the_head() -> None:
    """The quick way and the long one, which do not sum to 1."""
    pool, _, fitted = learned()
    probabilities = predict_pool(fitted, pool)
    np.testing.assert_allclose(probabilities, fitted.head.predict_proba(pool.embeddings), atol=1e-4)
    assert np.ptp(probabilities.sum(axis=1)) > 1


def test_a_fit_that_starts_from_another_comes_to_the_same() -> None:
    """One label more, warm or cold; a start of other labels is of no use and left aside."""
    pool, labels, fitted = learned(40)
    rows = np.arange(41)
    warm = fit(pool, rows, labels[:41], HeadSettings(), start=fitted).head
    cold = fit(pool, rows, labels[:41], HeadSettings()).head
    np.testing.assert_allclose(warm.predict_proba(pool.embeddings), cold.predict_proba(pool.embeddings), atol=0.02)
    single = ["a" if "a" in label else "b" for label in labels[:41]]
    other = fit(pool, rows, single, HeadSettings(), start=fitted)
    assert other.head.threshold is None
    again = fit(pool, rows, [(name,) for name in single], HeadSettings(), start=other)
    assert again.head.threshold == 0.5


def test_a_label_that_all_images_have_is_predicted_but_not_certain() -> None:
    """Nothing says how an image without it would look."""
    embeddings, labels = pictures(60)
    everywhere: list[Label] = [tuple(sorted({*names_of(label), "photo"})) for label in labels]
    head = fit(Pool(embeddings), np.arange(20), everywhere[:20], HeadSettings()).head
    probabilities = head.predict_proba(embeddings[20:])[:, head.classes.index("photo")]
    assert (probabilities > 0.5).all()
    assert probabilities.max() < 0.999


def test_a_label_that_counts_little_hardly_moves_the_others() -> None:
    """Six of twenty labels `a` are wrong; weighed at 0.05, for a alone, they are overruled, and b and c stay."""
    embeddings, labels = pictures(120, noise=1.0)
    pool = Pool(embeddings)
    given = [tuple(sorted(set(label) ^ {"a"})) if row < 6 else label for row, label in enumerate(labels[:20])]
    weights = np.ones((20, 3))
    weights[:6, 0] = 0.05
    has = label_sets.membership("abc", labels)[20:]
    plain, weighed = (
        fit(pool, np.arange(20), given, HeadSettings(), weights=w).head.predict_proba(embeddings[20:])
        for w in (None, weights)
    )
    right = [float(((found >= 0.5) == has)[:, 0].mean()) for found in (plain, weighed)]
    assert right[1] > right[0] + 0.05
    others = [float(((found >= 0.5) == has)[:, 1:].mean()) for found in (plain, weighed)]
    assert others[1] == pytest.approx(others[0], abs=0.03)


def test_settings_are_chosen_and_judged_on_sets_held_out() -> None:
    """Exact matches of heads that had not learned the images; the threshold is one of those tried."""
    embeddings, labels = pictures(80)
    settings, evaluation = choose_settings(Pool(embeddings), np.arange(60), labels[:60], random_state=0)
    assert evaluation is not None
    assert settings.threshold == evaluation.threshold
    assert settings.threshold in label_sets.THRESHOLDS
    assert evaluation.n_evaluated == 60
    found = label_sets.predicted("abc", evaluation.probabilities, evaluation.threshold)
    assert evaluation.accuracy == label_sets.share_right(found, labels[:60]) > 0.6
    assert 0 <= evaluation.calibration_error < 0.3


def test_nothing_is_judged_without_a_label_two_have_and_two_have_not() -> None:
    """Each label is on one image only."""
    embeddings, _ = pictures(4)
    settings, evaluation = choose_settings(Pool(embeddings), np.arange(4), [("a",), ("b",), (), ()], random_state=0)
    assert (settings.strength, evaluation) == (head_module.DEFAULT_STRENGTH, None)


def test_folds_keep_examples_of_each_label() -> None:
    """Of every label two images have and two have not, each fold's head learns both; single ones are never held out."""
    random = np.random.default_rng(0)
    for seed in range(20):
        targets = (random.random((40, 6)) < [0.5, 0.3, 0.1, 0.1, 0.9, 0.5]).astype(np.intp)
        targets[:, 5] = 0
        targets[7, 5] = 1  # on one image only
        folds = head_module._deal_folds_of_sets(targets, None, random_state=seed)
        assert folds is not None
        assert folds[7] == -1
        for fold in range(5):
            kept = targets[folds != fold]
            n_having = targets.sum(axis=0)
            assert (kept.sum(axis=0) >= np.minimum(n_having, 1)).all()
        sizes = np.bincount(folds[folds >= 0])
        assert len(sizes) == 5
        assert np.ptp(sizes) <= 6
        np.testing.assert_array_equal(folds, head_module._deal_folds_of_sets(targets, None, random_state=seed))


def test_images_never_to_be_held_out_are_not() -> None:
    """Those by which a backbone was fine-tuned."""
    embeddings, labels = pictures(40)
    never = np.arange(40) < 20
    _, evaluation = choose_settings(Pool(embeddings), np.arange(40), labels, random_state=0, never_held_out=never)
    assert evaluation is not None
    assert np.isnan(evaluation.probabilities[:20]).all()


def test_a_fit_of_sets_ends_when_it_is_no_longer_wanted() -> None:
    """A label came meanwhile."""
    embeddings, labels = pictures(40)
    with pytest.raises(FitInterruptedError):
        fit(Pool(embeddings), np.arange(40), labels, HeadSettings(), interrupted=lambda: True)


def test_spreading_is_that_of_two_classes_for_each_label() -> None:
    """Has it and has it not, each spread by itself; a label that all have says nothing."""
    random = np.random.default_rng(0)
    features = random.normal(size=(30, 5)).astype(np.float32)
    graph = spreading.neighbor_graph(features / np.linalg.norm(features, axis=1, keepdims=True))
    known = np.zeros((30, 1))
    known[:10] = 1
    has = np.zeros((30, 1, 3))
    has[:10, 0, :2] = random.random((10, 2)) < 0.5
    has[:10, 0, 2] = 1
    found = spreading.spread_label_sets(graph, known, has)
    for label in range(2):
        starts = np.stack([known - has[:, :, label], has[:, :, label]], axis=2)
        expected = spreading.spread_labels(graph, starts)
        arrives = expected.sum(axis=2) > 0
        np.testing.assert_allclose(found[arrives][:, label], expected[:, :, 1][arrives], atol=1e-6)
    np.testing.assert_array_equal(found[:, :, 2], 0.5)


# -- what comes next --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(acquisition.ACQUISITION_FUNCTIONS))
def test_the_utility_of_an_image_is_that_of_its_most_doubtful_label(name: str) -> None:
    """Lightly's rule: of each label as one of two classes, the largest over the labels."""
    probabilities = np.random.default_rng(0).random((30, 4))
    function = acquisition.ACQUISITION_FUNCTIONS[name]
    by_label = [function(np.column_stack([column, 1 - column])) for column in probabilities.T]
    found = acquisition.utilities(name, probabilities, of_sets=True)
    np.testing.assert_allclose(found, np.max(by_label, axis=0), rtol=1e-12)


def test_other_strategies_ask_about_all_labels() -> None:
    """By hand: labels of 0.5 and 1 are in doubt by 1 and 0, of 0.75 and 0.75 by a half each."""
    found = acquisition.utilities("information_density", [[0.5, 1.0], [0.75, 0.75], [0.0, 1.0]], of_sets=True)
    np.testing.assert_allclose(found, [0.5, 0.5, 0])


@pytest.mark.parametrize("name", list(LATER_ROUND_STRATEGIES))
def test_every_strategy_asks_about_sets(name: str) -> None:
    """Different candidates, as many as wanted, and of an image that is certain and one in doubt the latter."""
    pool, labels, fitted = learned(30, n_pool=80)
    _, evaluation = choose_settings(pool, np.arange(30), labels[:30], random_state=0)
    assert evaluation is not None
    probabilities = np.full((50, 3), 0.001)
    probabilities[:5] = 0.5
    state = RoundState(
        embeddings=pool.embeddings,
        space=plain_space(30),
        labeled=np.arange(30),
        targets=label_sets.membership(fitted.head.classes, labels[:30]).astype(np.intp),
        candidates=np.arange(30, 80),
        probabilities=probabilities,
        out_of_fold=evaluation.probabilities,
        of_sets=True,
    )
    found = later_rounds.next_batch(name, state, budget=10, random_state=0)
    assert len(set(found)) == 10
    if name != "knn_of_high_loss":
        assert found[0] in range(5)


def test_set_suspects_by_hand() -> None:
    """A cat that is none (0.02), a dog that was forgotten (0.96 it is there); an image never held out is not judged."""
    probabilities = np.array([[0.02, 0.5], [0.3, 0.96], [np.nan, np.nan], [0.8, 0.15]])
    given = np.array([[1, 1], [0, 0], [1, 0], [1, 1]])
    assert find_set_suspects(probabilities, given) == [
        Suspect(0, 0, 0.02, 0.98),
        Suspect(1, 1, pytest.approx(0.04), pytest.approx(0.96)),
    ]
    with pytest.raises(ValueError, match="expected both"):
        find_set_suspects(probabilities, given[:2])


def test_strata_by_hand() -> None:
    """A class is its own; a set that two have, and the empty one, too; others go by their rarest label."""
    assert label_sets.strata(["cat", "dog", "cat"], 2) == ["cat", "dog", "cat"]
    sets: list[Label] = [("a", "b"), ("a", "b"), ("a",), ("a", "c"), ("b", "c"), ()]
    assert label_sets.strata(sets, 2) == [
        "a, b",
        "a, b",
        "a and others",
        "c and others",
        "c and others",
        "none of these",
    ]
