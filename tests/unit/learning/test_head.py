"""The head: agreement with scikit-learn, and what it does with few, rare and contradictory labels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from backend.errors import FitInterruptedError
from backend.learning import head as head_module
from backend.learning import pool as pool_module
from backend.learning import spreading
from backend.learning.features import FeatureSpace, normalise, plain_space, pool_space
from backend.learning.head import DEFAULT_STRENGTH, STRENGTHS, FitResult, Head, HeadSettings
from backend.learning.pool import DEFAULT_DETAIL_WEIGHT, Pool


def clusters(n_per_class: dict[str, int], *, n_features: int = 30, noise: float = 0.5, seed: int = 0):
    """Embeddings (N, n_features) around one random centre per class, and their labels."""
    random = np.random.default_rng(seed)
    labels = [name for name, count in n_per_class.items() for _ in range(count)]
    centres = {name: random.normal(size=n_features) for name in n_per_class}
    embeddings = np.array([centres[name] + noise * random.normal(size=n_features) for name in labels])
    return embeddings.astype(np.float32), labels


def fit_head(embeddings, labels, *, strength=100.0, space=None):
    """The plain head, by default of embeddings that are only scaled to length 1."""
    space = plain_space(np.shape(embeddings)[-1]) if space is None else space
    return head_module.fit_head(embeddings, labels, space=space, strength=strength)


def fit_and_evaluate(embeddings, labels, *, random_state=0, unlabeled=None, **options) -> FitResult:
    """The head of a pool whose first rows are those of the labels."""
    embeddings = np.asarray(embeddings)
    everything = embeddings if unlabeled is None else np.concatenate([embeddings, unlabeled])
    return head_module.fit_and_evaluate(
        Pool(everything), np.arange(len(embeddings)), labels, random_state=random_state, **options
    )


def test_predict_proba_by_hand():
    """Row (3, 4) has direction (0.6, 0.8): logits 0.6·ln 4 / 0.6 = ln 4 and 0 give 4/5 and 1/5."""
    weights = np.array([[np.log(4) / 0.6, 0], [0, 0]], dtype=np.float32)
    head = Head(("cat", "dog"), weights, np.zeros(2, np.float32), plain_space(2), strength=1.0)
    np.testing.assert_allclose(head.predict_proba([[3, 4], [0, 1]]), [[0.8, 0.2], [0.5, 0.5]], rtol=1e-6)


def test_predict_proba_sees_embeddings_from_the_centre():
    """From (0.6, 0.4), row (0.6, 0.8) lies straight up and (1, 0) to the right and down: logits ln 3 and 0."""
    weights = np.array([[0, np.log(3)], [0, 0]], dtype=np.float32)
    space = FeatureSpace(np.ones(2, np.float32), np.array([0.6, 0.4], np.float32))
    head = Head(("cat", "dog"), weights, np.zeros(2, np.float32), space, strength=1.0)
    down = np.log(3) * -0.4 / np.hypot(0.4, 0.4)
    expected = [[0.75, 0.25], [1 / (1 + np.exp(-down)), 1 / (1 + np.exp(down))]]
    np.testing.assert_allclose(head.predict_proba([[3, 4], [2, 0]]), expected, rtol=1e-5)


def test_predict_proba_works_in_blocks(monkeypatch):
    """A pool larger than one block gives the same probabilities."""
    embeddings, labels = clusters({"a": 5, "b": 5})
    head = fit_head(embeddings, labels)
    expected = head.predict_proba(embeddings)
    monkeypatch.setattr(head_module, "BLOCK_ROWS", 3)
    np.testing.assert_allclose(head.predict_proba(embeddings), expected, rtol=1e-6)
    assert head.predict_proba(np.empty((0, 30))).shape == (0, 2)


@pytest.mark.parametrize("n_features", [8, 200])
@pytest.mark.parametrize("strength", [1.0, 100.0])
def test_head_is_scikit_learns_logistic_regression(n_features, strength):
    """With fewer features than rows and with more, probabilities are scikit-learn's for the same loss."""
    embeddings, labels = clusters({"c": 15, "a": 20, "b": 10}, n_features=n_features, noise=1.0)
    pool, _ = clusters({"x": 20}, n_features=n_features, seed=1)
    head = fit_head(embeddings, labels, strength=strength)
    reference = LogisticRegression(C=strength, solver="newton-cg", tol=1e-8, max_iter=1000)
    reference.fit(normalise(embeddings).astype(np.float64), labels)
    assert head.classes == ("a", "b", "c")
    assert (head.weights.shape, head.bias.shape) == ((3, n_features), (3,))
    assert (head.weights.dtype, head.bias.dtype) == (np.float32, np.float32)
    np.testing.assert_allclose(head.predict_proba(pool), reference.predict_proba(normalise(pool)), atol=1e-3)


def test_what_all_embeddings_share_does_not_matter_to_a_centred_head():
    """A large common part (photos of one street) hides the classes from a plain head, not from a centred one."""
    embeddings, labels = clusters({"a": 30, "b": 30}, noise=1.0)
    shifted = embeddings + 20 * np.ones(30, dtype=np.float32)
    head = fit_head(shifted[::2], labels[::2], space=pool_space(shifted), strength=1.0)
    plain = fit_head(shifted[::2], labels[::2], strength=1.0)
    rest = np.array(labels[1::2]) == "b"
    confidences = [fitted.predict_proba(shifted[1::2])[np.arange(30), rest.astype(int)] for fitted in (head, plain)]
    assert confidences[0].mean() > 0.8 > 0.6 > confidences[1].mean()


def test_two_classes_have_two_rows():
    """Both rows are penalised, so strength C is scikit-learn's two-class C of 2·C."""
    embeddings, labels = clusters({"a": 12, "b": 8}, noise=1.5)
    head = fit_head(embeddings, labels, strength=10.0)
    reference = LogisticRegression(C=20.0, tol=1e-8, max_iter=1000).fit(normalise(embeddings), labels)
    assert head.weights.shape == (2, 30)
    np.testing.assert_allclose(
        head.predict_proba(embeddings), reference.predict_proba(normalise(embeddings)), atol=1e-3
    )


def test_separable_classes_are_learned():
    """Clear clusters are told apart in cross-validation and on images never seen."""
    embeddings, labels = clusters({"a": 20, "b": 20, "c": 20})
    result = fit_and_evaluate(embeddings[::2], labels[::2], random_state=0)
    assert result.evaluation.accuracy == 1.0
    probabilities = result.head.predict_proba(embeddings[1::2])
    assert [result.head.classes[best] for best in probabilities.argmax(axis=1)] == labels[1::2]


def test_labels_without_meaning_get_a_strong_penalty():
    """On random labels the most modest head predicts held-out labels best, near the log-loss of knowing nothing."""
    random = np.random.default_rng(0)
    labels = [str(label) for label in random.integers(0, 2, size=80)]
    result = fit_and_evaluate(random.normal(size=(80, 20)), labels, random_state=0)
    assert result.head.strength == STRENGTHS[0]
    assert result.evaluation.log_loss == pytest.approx(np.log(2), abs=0.1)


def test_evaluation_reports_what_its_probabilities_say():
    """Accuracy and log-loss are those of the out-of-fold probabilities it carries; every row is held out once."""
    embeddings, labels = clusters({"a": 9, "b": 7, "c": 8}, noise=3.0)
    evaluation = fit_and_evaluate(embeddings, labels, random_state=3).evaluation
    targets = np.array(["abc".index(label) for label in labels])
    given_labels = evaluation.probabilities[np.arange(24), targets]
    assert (evaluation.n_folds, evaluation.n_evaluated) == (5, 24)
    assert 0 < evaluation.accuracy < 1
    assert evaluation.accuracy == np.mean(evaluation.probabilities.argmax(axis=1) == targets)
    assert evaluation.log_loss == pytest.approx(-np.log(given_labels).mean())


def test_held_out_rows_are_not_trained_on():
    """Two copies of one image with opposite labels: whichever is held out is predicted from the other, wrongly."""
    embeddings = np.repeat(np.eye(4), 2, axis=0)
    result = fit_and_evaluate(embeddings, ["a", "b"] * 4, random_state=0, strengths=[1000.0])
    assert result.evaluation.accuracy <= 0.5


def test_a_class_with_one_example_does_not_break_the_folds():
    """The only example of a class is always trained on, never held out, and its class is still offered."""
    embeddings, labels = clusters({"a": 6, "b": 6, "rare": 1})
    result = fit_and_evaluate(embeddings, labels, random_state=0)
    assert result.head.classes == ("a", "b", "rare")
    assert result.evaluation.n_evaluated == 12
    assert np.isnan(result.evaluation.probabilities[12]).all()
    assert not np.isnan(result.evaluation.probabilities[:12]).any()
    assert result.head.predict_proba(embeddings[12:]).argmax() == 2


@pytest.mark.parametrize("counts", [{"a": 1, "b": 1}, {"a": 1, "b": 5}, {"a": 3, "b": 1, "c": 1}])
def test_too_few_labels_to_evaluate(counts):
    """Without two classes of two examples there is a head of the default strength and no evaluation."""
    embeddings, labels = clusters(counts)
    result = fit_and_evaluate(embeddings, labels, random_state=0)
    assert result.evaluation is None
    assert result.head.strength == DEFAULT_STRENGTH
    assert result.head.predict_proba(embeddings).argmax(axis=1).tolist() == [sorted(counts).index(x) for x in labels]


@settings(max_examples=25, deadline=None)
@given(labels=st.lists(st.sampled_from("abcd"), min_size=2, max_size=15).filter(lambda labels: len(set(labels)) > 1))
def test_every_set_of_labels_gives_a_usable_head(labels):
    """However few and uneven the labels, rows of probabilities sum to 1 and held-out classes are known to the fold."""
    embeddings = np.random.default_rng(0).normal(size=(len(labels), 6))
    result = fit_and_evaluate(embeddings, labels, random_state=0)
    probabilities = result.head.predict_proba(embeddings)
    assert probabilities.shape == (len(labels), len(set(labels)))
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0)
    counts = [labels.count(name) for name in set(labels)]
    assert (result.evaluation is None) == (sum(count >= 2 for count in counts) < 2)
    if result.evaluation is not None:
        assert 0 <= result.evaluation.accuracy <= 1
        assert result.evaluation.n_evaluated == sum(count for count in counts if count >= 2)


def test_same_seed_same_head():
    """The folds come from `random_state` alone, so a retrain on the same labels gives the same version."""
    embeddings, labels = clusters({"a": 9, "b": 9}, noise=3.0)
    first, second = (fit_and_evaluate(embeddings, labels, random_state=7) for _ in range(2))
    np.testing.assert_array_equal(first.head.weights, second.head.weights)
    np.testing.assert_array_equal(first.evaluation.probabilities, second.evaluation.probabilities)


def test_float16_embeddings_are_accepted():
    """The store keeps float16; it makes no visible difference."""
    embeddings, labels = clusters({"a": 9, "b": 9})
    half = fit_and_evaluate(embeddings.astype(np.float16), labels, random_state=0).head
    full = fit_and_evaluate(embeddings, labels, random_state=0).head
    np.testing.assert_allclose(half.predict_proba(embeddings), full.predict_proba(embeddings), atol=0.01)


def test_equal_images_leave_the_class_shares():
    """Rows without any difference carry no information: the head predicts how often each class was given."""
    head = fit_head(np.ones((4, 3)), ["a", "a", "a", "b"])
    np.testing.assert_allclose(head.predict_proba(np.ones((1, 3))), [[0.75, 0.25]], atol=1e-3)


@pytest.mark.parametrize(
    ("embeddings", "labels", "message"),
    [
        (np.ones((2, 3)), ["a", "a"], r"classes \['a'\]; expected at least two"),
        (np.ones((0, 3)), [], "at least two"),
        (np.ones((3, 3)), ["a", "b"], r"shape \(3, 3\) and 2 labels"),
        (np.ones(2), ["a", "b"], r"shape \(2,\)"),
        (np.array([[1.0, np.nan], [0.0, 1.0]]), ["a", "b"], "NaN"),
    ],
)
def test_impossible_input_is_refused(embeddings, labels, message):
    """Each error says what came and what was expected."""
    with pytest.raises(ValueError, match=message):
        fit_and_evaluate(embeddings, labels, random_state=0)
    with pytest.raises(ValueError, match=message):
        fit_head(embeddings, labels)


def test_embeddings_of_another_backbone_are_refused():
    """A head of 30 features cannot judge embeddings of 20."""
    embeddings, labels = clusters({"a": 2, "b": 2})
    with pytest.raises(ValueError, match=r"shape \(1, 20\); this head expects \(N, 30\)"):
        fit_head(embeddings, labels).predict_proba(np.ones((1, 20)))


def rings(n_per_class: int, *, seed: int = 0):
    """Two classes whose images lie along two long arcs, close together across and far apart along; and their labels."""
    random = np.random.default_rng(seed)
    along = random.uniform(0, 2.4, size=2 * n_per_class)
    label = np.repeat([0, 1], n_per_class)
    height = np.where(label == 0, 0.35, -0.35) + 0.02 * random.normal(size=len(label))
    embeddings = np.column_stack([np.cos(along), np.sin(along), height]).astype(np.float32)
    return embeddings, ["ab"[index] for index in label]


def test_unlabeled_images_carry_labels_on():
    """One label per class, at opposite ends of the arcs: alone they mislead, the images between them tell the truth."""
    embeddings, labels = rings(200)
    along = np.arctan2(embeddings[:, 1], embeddings[:, 0])
    of_a, of_b = np.arange(200), np.arange(200, 400)
    labeled = [of_a[along[:200].argmin()], of_b[along[200:].argmax()]]
    names = [labels[row] for row in labeled]

    def accuracy(head: Head) -> float:
        top = head.predict_proba(embeddings).argmax(axis=1)
        return float(np.mean(np.array(head.classes)[top] == labels))

    pool = Pool(embeddings)
    alone = head_module.fit_head(embeddings[labeled], names, space=pool.space(), strength=100.0)
    together = head_module.fit_and_evaluate(pool, labeled, names, random_state=0).head
    assert accuracy(together) > 0.95 > 0.75 > accuracy(alone)


@pytest.mark.parametrize("n_labels", [4, 6, 20])
@pytest.mark.parametrize("prepared_for", [0, 6, 40])
def test_the_pool_is_scored_along_as_many_axes_as_the_head_has(monkeypatch, n_labels, prepared_for):
    """More labels than axes double them, more may be prepared: the scores are the head's own in every case."""
    monkeypatch.setattr(pool_module, "LEAST_AXES", 4)
    embeddings, truth = two_clouds(60, 60, apart=1.2)
    embeddings = np.hstack([embeddings, np.random.default_rng(1).normal(size=(120, 12)).astype(np.float32)])
    pool = Pool(embeddings)
    pool.prepare([DEFAULT_DETAIL_WEIGHT], n_labels=prepared_for)
    rows = np.arange(0, 120, 120 // n_labels)[:n_labels]
    fitted = head_module.fit(pool, rows, truth[rows].tolist(), HeadSettings())
    assert len(fitted.solutions.with_entropies) - 1 == {4: 4, 6: 8, 20: 20}[n_labels]
    scores = head_module.predict_pool(fitted, pool)
    np.testing.assert_allclose(scores, fitted.head.predict_proba(embeddings), atol=1e-4)


def two_clouds(n_often: int, n_seldom: int, *, apart: float):
    """Two clouds of so many images each whose middles lie `apart` and their labels."""
    random = np.random.default_rng(0)
    label = np.repeat([0, 1], [n_often, n_seldom])
    embeddings = random.normal(size=(len(label), 8)) * 0.3
    embeddings[:, 0] += np.where(label == 0, -apart / 2, apart / 2)
    embeddings[:, 1] += 2
    return embeddings.astype(np.float32), np.array(["often", "seldom"])[label]


def test_boundaries_move_to_where_no_images_are(monkeypatch):
    """Labels from the left edge of each cloud put the boundary inside the left one; the entropies move it out."""
    embeddings, truth = two_clouds(200, 200, apart=1.2)
    labeled = [*np.argsort(embeddings[:200, 0])[:10], *(200 + np.argsort(embeddings[200:, 0])[:10])]
    monkeypatch.setattr(head_module, "SOFT_LABELS", 0.0)

    def accuracy() -> float:
        head = head_module.fit_and_evaluate(Pool(embeddings), labeled, truth[labeled].tolist(), random_state=0).head
        return float(np.mean(np.array(head.classes)[head.predict_proba(embeddings).argmax(axis=1)] == truth))

    with_entropies = accuracy()
    monkeypatch.setattr(head_module, "ENTROPY_WEIGHT", 0.0)
    assert with_entropies > accuracy() + 0.02


def test_entropies_do_not_even_out_classes():
    """Nine tenths of the images are of one class, and as many of its labels: neither class takes over the other."""
    embeddings, truth = two_clouds(360, 40, apart=2)
    labeled = [*range(10), *range(360, 370)]
    head = head_module.fit_and_evaluate(Pool(embeddings), labeled, truth[labeled].tolist(), random_state=0).head
    assert np.mean(head.predict_proba(embeddings).argmax(axis=1) == (truth == "seldom")) > 0.95


def test_the_last_images_without_a_label_do_not_rule(monkeypatch):
    """Two images left of sixty: the head is about what the labels alone make it, in cross-validation too."""
    embeddings, labels = clusters({"a": 30, "b": 30}, n_features=4, noise=1.5)
    labeled = np.arange(1, 59)
    names = [labels[row] for row in labeled]

    def fitted() -> FitResult:
        return head_module.fit_and_evaluate(Pool(embeddings), labeled, names, random_state=0, strengths=[10.0])

    with_entropies = fitted()
    monkeypatch.setattr(head_module, "ENTROPY_WEIGHT", 0.0)
    without = fitted()
    seen, wanted = (result.head.predict_proba(embeddings) for result in (with_entropies, without))
    assert np.abs(seen - wanted).mean() < 0.03
    assert with_entropies.evaluation.log_loss == pytest.approx(without.evaluation.log_loss, abs=0.03)


def test_slopes_of_the_entropies_are_those_of_their_values():
    """Against finite differences, two problems at once; and by hand where every image is sure of another class."""
    random = np.random.default_rng(0)
    logits = random.normal(size=(7, 2, 3))
    shares = random.dirichlet(np.ones(3), size=2)
    weights = random.dirichlet(np.ones(7), size=2).T

    def value(moved):
        probabilities = np.exp(moved - np.log(np.exp(moved).sum(axis=2, keepdims=True)))
        return head_module._doubt(probabilities, np.log(probabilities), weights, shares)

    slopes = value(logits)[1]
    for index in np.ndindex(logits.shape):
        step = np.zeros_like(logits)
        step[index] = 1e-5
        difference = (value(logits + step)[0] - value(logits - step)[0]) / 2e-5
        assert difference[index[1]] == pytest.approx(slopes[index], abs=1e-8)
        assert difference[1 - index[1]] == 0

    sure = np.array([[[1.0, 0.0]], [[0.0, 1.0]]])
    logs = np.log(np.maximum(sure, 1e-300))
    values, _ = head_module._doubt(sure, logs, np.array([[0.5], [0.5]]), np.array([[0.25, 0.75]]))
    assert values == pytest.approx([0.5 * np.log(2) + 0.5 * np.log(2 / 3)])


def test_confidence_fits_the_images_whose_entropies_were_minimised():
    """They are surer than new images; the temperature must not be found on images that are like new ones."""
    gaps = []
    for seed in range(3):
        random = np.random.default_rng(seed)
        middles = random.normal(size=(5, 100))
        middles *= 2.4 / np.linalg.norm(middles, axis=1, keepdims=True)
        truth = np.repeat(np.arange(5), 100)
        embeddings = middles[truth] + 0.8 * random.normal(size=(500, 100))
        order = random.permutation(500)
        labeled, unlabeled = order[:60], order[60:]
        names = [str(label) for label in truth[labeled]]
        head = head_module.fit_and_evaluate(Pool(embeddings), labeled, names, random_state=0).head
        probabilities = head.predict_proba(embeddings[unlabeled])
        right = np.mean(probabilities.argmax(axis=1) == truth[unlabeled])
        gaps.append(probabilities.max(axis=1).mean() - right)
    assert abs(np.mean(gaps)) < 0.06  # 0.09 when held-out labels take no part as unlabeled images


def test_more_labels_than_axes_see_all_axes(monkeypatch):
    """What tells the classes apart varies least of all: with few labels it is left out, with many it is found."""
    random = np.random.default_rng(0)
    embeddings = random.normal(size=(400, 6)) * [5, 5, 5, 5, 5, 0.5] + [0, 0, 0, 0, 20, 0]
    labels = np.where(embeddings[:, 5] > 0, "a", "b")
    monkeypatch.setattr(pool_module, "LEAST_AXES", 2)
    head = head_module.fit_and_evaluate(Pool(embeddings), np.arange(300), labels[:300].tolist(), random_state=0).head
    assert np.mean(np.array(head.classes)[head.predict_proba(embeddings).argmax(axis=1)] == labels) > 0.9


def test_soft_rows_fade_and_go(monkeypatch):
    """With labels enough none are spread: without entropies the head is that of the labels alone."""
    embeddings, labels = clusters({"a": 120, "b": 120}, n_features=4, noise=2.0)
    monkeypatch.setattr(Pool, "entry_points", None)
    monkeypatch.setattr(head_module, "ENTROPY_WEIGHT", 0.0)
    result = fit_and_evaluate(embeddings, labels, unlabeled=clusters({"x": 50}, n_features=4)[0], strengths=[10.0])
    alone = head_module.fit_head(embeddings, labels, space=result.head.space, strength=10.0)
    np.testing.assert_allclose(result.head.weights * result.settings.temperature, alone.weights, atol=1e-3)


@pytest.mark.parametrize(("telling", "weight"), [("thing", 0.0), ("detail", 0.35)])
def test_labels_decide_how_much_details_count(telling, weight):
    """Classes that only the details tell apart give them their full weight, classes they cannot tell none."""
    random = np.random.default_rng(0)
    labels = ["ab"[index % 2] for index in range(24)]
    signal, noise = np.eye(8)[[index % 2 for index in range(200)]], random.normal(size=(200, 8))
    signal = signal + 0.2 * random.normal(size=(200, 8))
    things, details = (signal, noise) if telling == "thing" else (noise, signal)
    unit = [block / np.linalg.norm(block, axis=1, keepdims=True) for block in (things, details)]
    pool = Pool(np.hstack(unit), n_details=8)
    assert head_module.fit_and_evaluate(pool, np.arange(24), labels, random_state=0).settings.detail_weight == weight


def test_labels_in_the_order_of_their_classes_still_decide(monkeypatch):
    """More labels than are looked at, sorted by class as tasks often are: not the last class alone is looked at."""
    monkeypatch.setattr(head_module, "MAX_RIDGE_ROWS", 20)
    random = np.random.default_rng(0)
    details = np.repeat(np.eye(8)[:2], 40, axis=0) + 0.2 * random.normal(size=(80, 8))
    unit = [block / np.linalg.norm(block, axis=1, keepdims=True) for block in (random.normal(size=(80, 8)), details)]
    labels = ["a"] * 40 + ["b"] * 40
    pool = Pool(np.hstack(unit), n_details=8)
    assert head_module.fit_and_evaluate(pool, np.arange(80), labels, random_state=0).settings.detail_weight == 0.35


def test_one_label_of_each_class_says_nothing_about_details():
    """Nothing could be predicted from the others, so details keep the weight they have before any label."""
    pool = Pool(np.random.default_rng(0).normal(size=(20, 6)), n_details=3)
    result = head_module.fit_and_evaluate(pool, [0, 1, 2], ["a", "b", "c"], random_state=0)
    assert result.settings.detail_weight == DEFAULT_DETAIL_WEIGHT
    np.testing.assert_allclose(result.head.space.scale, [1, 1, 1, 0.15, 0.15, 0.15])


def test_leave_one_out_error_is_what_leaving_out_gives():
    """The closed form against ridge regression fitted n times without one row (bias as a constant feature)."""
    random = np.random.default_rng(0)
    features, targets = random.normal(size=(9, 3)).astype(np.float32), np.array([0, 1, 2] * 3)
    wanted = np.eye(3)[targets] - 1 / 3
    rows = np.hstack([features, np.ones((9, 1))]).astype(np.float64)
    errors = []
    for ridge in (0.01, 0.1, 1.0):
        residuals = []
        for out in range(9):
            kept = np.arange(9) != out
            gram = rows[kept].T @ rows[kept] + ridge * np.eye(4)
            residuals.append(wanted[out] - rows[out] @ np.linalg.solve(gram, rows[kept].T @ wanted[kept]))
        errors.append(np.mean(np.square(residuals)))
    found = head_module._leave_one_out_error(features, wanted, np.ones(9, dtype=bool))
    assert found == pytest.approx(min(errors), rel=1e-5)


def test_probabilities_fit_held_out_labels():
    """With a third of the labels wrong a confident head would be a liar: confidence stays near what it gets right."""
    random = np.random.default_rng(0)
    embeddings, labels = clusters({"a": 150, "b": 150}, n_features=10, noise=0.3)
    noisy = np.array(labels)
    wrong = random.permutation(300)[:100]
    noisy[wrong] = np.where(noisy[wrong] == "a", "b", "a")
    result = fit_and_evaluate(embeddings, noisy.tolist(), strengths=[100.0])
    assert result.settings.temperature > 1
    assert result.evaluation.calibration_error < 0.1
    assert result.evaluation.probabilities.max(axis=1).mean() == pytest.approx(2 / 3, abs=0.08)


@settings(max_examples=15, deadline=None)
@given(
    labels=st.lists(st.sampled_from("abc"), min_size=2, max_size=9).filter(lambda labels: len(set(labels)) > 1),
    n_unlabeled=st.integers(0, 4),
    equal=st.booleans(),
)
def test_every_pool_gives_a_usable_head(labels, n_unlabeled, equal):
    """Pools smaller than the neighbourhood, without unlabeled images, of equal images: always probabilities."""
    rows = np.random.default_rng(0).normal(size=(len(labels) + n_unlabeled, 5))
    pool = Pool(np.ones_like(rows) if equal else rows, n_details=2)
    head = head_module.fit_and_evaluate(pool, np.arange(len(labels)), labels, random_state=0).head
    probabilities = head.predict_proba(pool.embeddings)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0)


def test_all_classes_weigh_the_same():
    """Forty labels of a class and five of the other, overlapping: the rare one is found about as often."""
    random = np.random.default_rng(0)
    middles = np.repeat([[1, 0, 0, 2], [0, 1, 0, 2]], 400, axis=0)
    embeddings = middles + random.normal(size=middles.shape)
    labeled = np.concatenate([np.arange(40), np.arange(400, 405)])
    names = ["often"] * 40 + ["seldom"] * 5
    head = head_module.fit_and_evaluate(Pool(embeddings), labeled, names, random_state=0).head
    top = head.predict_proba(embeddings).argmax(axis=1)
    found = np.mean(top[:400] == 0), np.mean(top[400:] == 1)
    assert min(found) > 0.55
    assert abs(found[0] - found[1]) < 0.3


def test_a_single_label_does_not_drown_the_others():
    """Weights by hand: 12 labels, 3 classes: 12 / (3 · 8), 12 / (3 · 3), 12 / (3 · 1); never more than ten."""
    weights = head_module.class_weights(np.repeat([0, 1, 2], [8, 3, 1]))
    np.testing.assert_allclose(weights, [0.5, 4 / 3, 4])
    assert head_module.class_weights(np.repeat([0, 1], [99, 1]))[1] == 10


def test_labels_a_backbone_was_fine_tuned_on_are_never_held_out():
    """They are trained on in every fold; accuracy, strength and temperature come from the others alone."""
    embeddings, labels = clusters({"a": 12, "b": 12})
    seen = np.arange(24) % 12 < 8
    result = fit_and_evaluate(embeddings, labels, random_state=0, never_held_out=seen)
    assert result.evaluation.n_evaluated == 8
    assert np.isnan(result.evaluation.probabilities[seen]).all()
    assert not np.isnan(result.evaluation.probabilities[~seen]).any()
    nothing_left = fit_and_evaluate(embeddings, labels, random_state=0, never_held_out=np.ones(24, dtype=bool))
    assert nothing_left.evaluation is None


def test_a_fit_that_starts_from_the_last_one_ends_where_a_fresh_one_does(monkeypatch):
    """A label more: the same probabilities to a few thousandths, in fewer steps."""
    random = np.random.default_rng(0)
    middles = random.normal(size=(4, 40))
    truth = np.repeat(np.arange(4), 75)
    embeddings = middles[truth] + 1.5 * random.normal(size=(300, 40))
    order = random.permutation(300)
    names = [str(label) for label in truth[order]]
    pool, chosen = Pool(embeddings), HeadSettings(strength=10.0, temperature=1.3)
    n_steps = []
    minimize = head_module.minimize

    def counted(*args, **options):
        result = minimize(*args, **options)
        n_steps.append(result.nfev)
        return result

    monkeypatch.setattr(head_module, "minimize", counted)
    before = head_module.fit(pool, order[:60], names[:60], chosen)
    n_steps.clear()
    warm = head_module.fit(pool, order[:61], names[:61], chosen, start=before)
    n_warm = sum(n_steps)
    fresh = head_module.fit(pool, order[:61], names[:61], chosen)
    assert n_warm < 0.7 * (sum(n_steps) - n_warm)
    np.testing.assert_allclose(warm.head.predict_proba(embeddings), fresh.head.predict_proba(embeddings), atol=0.01)


@pytest.mark.parametrize("change", ["another class", "another space"])
def test_a_start_that_does_not_fit_is_left_aside(change):
    """It has other columns, or lies along other axes: the result is that of no start at all, exactly."""
    embeddings, labels = clusters({"a": 12, "b": 12, "c": 12})
    pool, rows = Pool(embeddings, n_details=10), np.arange(36)
    before = head_module.fit(pool, rows[:24], labels[:24], HeadSettings())
    if change == "another class":
        start, wanted = before, (rows, labels, HeadSettings())
    else:
        start, wanted = before, (rows[:24], labels[:24], HeadSettings(detail_weight=0.35))
    warm, fresh = (head_module.fit(pool, *wanted, start=given) for given in (start, None))
    np.testing.assert_array_equal(warm.head.weights, fresh.head.weights)


def test_a_fit_can_be_interrupted():
    """Asked again and again while it works, and given up as soon as the answer is yes."""
    embeddings, labels = clusters({"a": 12, "b": 12})
    asked = []

    def interrupted() -> bool:
        asked.append(True)
        return len(asked) == 5

    with pytest.raises(FitInterruptedError):
        head_module.choose_settings(Pool(embeddings), np.arange(24), labels, random_state=0, interrupted=interrupted)
    assert len(asked) == 5


def test_labels_outside_the_graph_are_looked_up_once(monkeypatch):
    """In a large pool a label enters at the nearest nodes; a label more costs one look-up, and changes no other."""
    monkeypatch.setattr(spreading, "MAX_NODES", 30)
    embeddings, _ = clusters({"a": 60, "b": 60})
    pool = Pool(embeddings)
    rows = np.arange(0, 120, 7)
    looked_up = []
    nearest = spreading._nearest

    def counted(features, *args, **options):
        looked_up.append(len(features))
        return nearest(features, *args, **options)

    graph = pool.graph(0.15)
    expected = spreading.entry_points(graph, rows, pool.space(0.15).features(embeddings[rows])).toarray()
    monkeypatch.setattr(spreading, "_nearest", counted)
    pool.entry_points(0.15, rows[:-1])
    found = pool.entry_points(0.15, rows).toarray()
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert sum(looked_up) == np.sum(~np.isin(rows, graph.rows))


def test_labels_trusted_whole_are_labels_without_weights():
    """Weights of 1 change no bit."""
    embeddings, labels = clusters({"a": 8, "b": 5, "c": 4}, noise=1.0)
    pool = Pool(embeddings)
    rows, ones = np.arange(12), np.ones(12)
    one = head_module.fit(pool, rows, labels[:12], HeadSettings())
    other = head_module.fit(pool, rows, labels[:12], HeadSettings(), weights=ones)
    np.testing.assert_array_equal(one.head.weights, other.head.weights)
    settings, evaluation = head_module.choose_settings(pool, rows, labels[:12], random_state=0)
    again, same = head_module.choose_settings(pool, rows, labels[:12], random_state=0, weights=ones)
    assert settings == again
    assert evaluation is not None
    assert same is not None
    np.testing.assert_array_equal(evaluation.probabilities, same.probabilities)


def test_a_wrong_label_that_is_hardly_trusted_hardly_counts():
    """An image among those of a, labeled b: with little weight the head goes on calling it a."""
    embeddings, labels = clusters({"a": 10, "b": 10})
    labels[0] = "b"
    pool, rows = Pool(embeddings), np.arange(20)
    whole = head_module.fit(pool, rows, labels, HeadSettings())
    weights = np.array([0.05, *[1.0] * 19])
    little = head_module.fit(pool, rows, labels, HeadSettings(), weights=weights)
    assert whole.head.predict_proba(embeddings[:1])[0, 1] > 0.5
    assert little.head.predict_proba(embeddings[:1])[0, 1] < 0.5


def test_classes_are_balanced_by_how_much_their_labels_are_trusted():
    """Two labels of a that count half are as one of b that counts whole."""
    weights = head_module.class_weights(np.array([0, 0, 1]), np.array([0.5, 0.5, 1.0]))
    assert weights.tolist() == [1.0, 1.0]
