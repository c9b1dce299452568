"""The head: a linear classifier learned from the labels and the whole pool, and how well it is expected to do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from threadpoolctl import threadpool_limits

from backend.errors import FitInterruptedError
from backend.labels import Label
from backend.learning import label_sets
from backend.learning.calibration import calibration_error, fit_temperature, log_loss
from backend.learning.features import Features, FeatureSpace, evenly_spaced, principal_axes
from backend.learning.label_sets import DEFAULT_THRESHOLD
from backend.learning.pool import DEFAULT_DETAIL_WEIGHT, Pool
from backend.learning.spreading import spread_label_sets, spread_labels

Floats = NDArray[np.float64]

STRENGTHS = (3.0, 10.0, 100.0)
"""Strengths tried: scikit-learn's `C`, the weight of the data against the L2 penalty on the weights. The largest is
best where labels are right (photos of weather and clothes, digits; 10 to 400 labels); with a fifth of 400 labels wrong
the smallest is 5 points more accurate (both measured without entropies)."""

DEFAULT_STRENGTH = 100.0
"""Strength where cross-validation is impossible, so with very few labels."""

DETAIL_WEIGHTS = (0.0, 0.15, 0.35)
"""Weights of the details that are tried; see `learning.pool.Pool`."""

SOFT_LABELS = 100.0
"""All soft rows together weigh as much as so many labels times C / n (n labels of C classes)."""

LEAST_SOFT_SHARE = 0.01
"""Below this share of the labels' weight the soft rows are left out: they only cost time."""

MAX_UNLABELED_ROWS = 2048
"""Unlabeled rows that the head is trained on, a sample of more."""

MAX_FOLD_ROWS = 512
"""Unlabeled rows that the heads of the cross-validation are trained on: there are five times as many of them."""

ENTROPY_WEIGHT = 0.3
"""The entropies of all unlabeled rows together weigh as much as so many times the labels, or the images if those are
fewer; 0.3 to 1 give the same."""

MAX_CLASS_WEIGHT = 10.0
"""No label weighs more than so many of the average class, however rare its own: it might be wrong."""

MAX_RIDGE_ROWS = 500
"""Labels by which the weight of the details is chosen, a sample of more: by then it has long been clear."""

MAX_FOLDS = 5
"""Cross-validation folds: heads are judged on four fifths of the labels, at five times the cost of one fit."""

BLOCK_ROWS = 8192
"""Rows of the pool turned into float32 at a time, so that predicting needs little memory beside the pool."""

# The largest gradient entry at which a fit counts as done, and the least relative gain worth another step: for the
# folds (finer changes no choice and no third digit), for the head, and for the plain head, whose probabilities then
# agree with scikit-learn's to about 1e-3. Only the last needs float64.
_FOLD_TOLERANCE = 1e-3, 1e-7
_HEAD_TOLERANCE = 1e-4, 1e-8
_PLAIN_TOLERANCE = 1e-5, 1e-12
_LEAST_SHARE = 1e-12  # of a class among the images: its logarithm must be finite
_LEAST_END = 1e-6  # the same for the share of images that have a label, and of those that have not, in float32
_RIDGES = (0.01, 0.1, 1.0)
_MAX_ITERATIONS = 300  # 10 to 250 are usual, most where the penalty is weak; stopping here is no error


@dataclass(frozen=True)
class Head:
    """A linear classifier over the features of embeddings: a softmax, or where an image may have several labels, one
    logistic regression for each of them.
    """

    classes: tuple[str, ...]  # sorted; column c of every (N, C) array below is classes[c]
    weights: NDArray[np.float32]  # (C, D), two rows for two classes
    bias: NDArray[np.float32]  # (C,)
    space: FeatureSpace  # how embeddings become the features it was fitted on
    strength: float  # the strength it was fitted with
    threshold: float | None = None  # of several labels per image: each is predicted from this probability on

    def predict_proba(self, embeddings: ArrayLike) -> Floats:
        """Class probabilities (N, C) in 0..1, rows sum to 1, of raw embeddings (N, D) of any float type.

        Raises ValueError if the embeddings are not (N, D) with the head's D.
        """
        rows = np.asarray(embeddings)
        if rows.ndim != 2 or rows.shape[1] != self.weights.shape[1]:
            raise ValueError(
                f"embeddings have shape {rows.shape}; this head expects (N, {self.weights.shape[1]}): "
                "embed with the backbone the head was trained on, or retrain"
            )
        logits = np.empty((len(rows), len(self.classes)))
        for start in range(0, len(rows), BLOCK_ROWS):
            block = slice(start, start + BLOCK_ROWS)
            logits[block] = self.space.features(rows[block]) @ self.weights.T + self.bias
        return _softmax(logits) if self.threshold is None else _sigmoid(logits)

    def predicted(self, probabilities: Floats) -> list[Label]:
        """What images with these probabilities (N, C) are taken for: the likeliest class, or a set of labels."""
        return label_sets.predicted(self.classes, probabilities, self.threshold)

    def confidence(self, probabilities: Floats) -> Floats:
        """How likely (N,) that is to be right altogether, 0..1: the top probability; of a set, as if its labels came
        independently of each other.
        """
        return label_sets.confidence(probabilities, self.threshold)


@dataclass(frozen=True)
class CrossValidation:
    """How well heads trained on part of the labels did on the rest of them.

    An estimate for judging progress, not a promise about the pool. Labels chosen by active learning are not a random
    sample: they are the images the model found hard, so the accuracy on them is usually *lower* than on the pool;
    the heads judged here also saw fewer labels than the final one. In the other direction, strength and temperature
    were chosen on the same folds, which flatters a little. For an unbiased number keep a random set of labels aside.
    """

    accuracy: float  # 0..1, share of evaluated rows whose top class is the label, or all of whose labels are right
    log_loss: float  # mean of -ln(probability of the label), nats; ln C for a head that knows nothing
    calibration_error: float  # 0..1, expected calibration error, see `learning.calibration`
    n_folds: int
    n_evaluated: int  # rows held out once: all but those that are the only one of their class
    probabilities: Floats  # (N, C) out-of-fold, columns as Head.classes; NaN in rows never held out
    threshold: float | None = None  # at which sets of labels were judged, see `Head`


@dataclass(frozen=True)
class HeadSettings:
    """What labels decide about a head besides its weights; the defaults are for labels too few to decide anything."""

    detail_weight: float = DEFAULT_DETAIL_WEIGHT  # of `DETAIL_WEIGHTS`
    strength: float = DEFAULT_STRENGTH  # of `STRENGTHS`
    temperature: float = 1.0  # what the logits are divided by
    threshold: float = DEFAULT_THRESHOLD  # the probability from which a label is predicted; for several per image


@dataclass(frozen=True, eq=False)
class Solutions:
    """Weights and, last, bias (R + 1, C) along R principal axes: of the fit without entropies, and of the head."""

    without_entropies: Floats
    with_entropies: Floats


@dataclass(frozen=True, eq=False)
class FitResult:
    """A head with the settings and solutions it came from: the next fit, with a label more, starts there.

    evaluation: None where the settings were given, or the labels are too few to hold any out.
    """

    head: Head
    settings: HeadSettings
    solutions: Solutions
    evaluation: CrossValidation | None = None


def fit_head(embeddings: ArrayLike, labels: Sequence[str], *, space: FeatureSpace, strength: float) -> Head:
    """Plain logistic regression on labeled embeddings (N, D), nothing chosen and nothing taken from the pool.

    Errors as `fit_and_evaluate`.
    """
    rows, classes, targets = _checked(embeddings, labels)
    features = space.features(rows)
    mean = features.mean(axis=0, dtype=np.float64)
    axes = principal_axes(features - mean)
    problem = _Problem((features - mean) @ axes, np.eye(len(classes))[targets][:, None], np.ones((len(rows), 1)))
    solution = problem.solve(strength, start=None, tolerance=_PLAIN_TOLERANCE)[:, 0]
    return _head(classes, solution, mean, axes, space, strength)


def choose_settings(
    pool: Pool,
    rows: ArrayLike,
    labels: Sequence[Label],
    *,
    random_state: int,
    strengths: Sequence[float] = STRENGTHS,
    detail_weights: Sequence[float] = DETAIL_WEIGHTS,
    never_held_out: NDArray[np.bool_] | None = None,
    weights: Floats | None = None,
    interrupted: Callable[[], bool] = lambda: False,
) -> tuple[HeadSettings, CrossValidation | None]:
    """The settings under which heads predict labels best that they were not trained on, and how well they do.

    `rows` (n,) are the labeled rows of the pool, `labels` their n class names; `random_state` seeds the folds. Nothing
    is decided with a held-out set:

    1. How much the details of the embeddings count, one of `detail_weights`, is chosen by the leave-one-out error of
       ridge regression on the labels (`_choose_detail_weight`).
    2. The strength is chosen by cross-validated log-loss, not accuracy: with tens of labels accuracy moves in steps of
       several percent and many strengths tie, while log-loss uses every probability. They are tried from weak to
       strong penalty until the log-loss rises. Heads are fitted as by `fit`, with fewer unlabeled images. Held-out
       labels are not spread; their images take part as unlabeled ones.
    3. The temperature is the one at which the probabilities fit held-out labels best (`learning.calibration`);
       strengths are compared at their best temperatures.
    4. Where images have several labels, the threshold from which one is predicted is that at which most held-out sets
       are right (`label_sets.choose_threshold`).

    `weights` as for `fit`; every label held out counts alike.

    Folds are stratified. A class with one example is always trained on and never held out, and so are the labels that
    `never_held_out` (n,) marks: those by which a backbone was fine-tuned, for it would know the answers. Without two
    classes of at least two examples nothing can be evaluated, and `DEFAULT_STRENGTH` is used.

    Raises ValueError for fewer than two classes, unequal lengths or embeddings that are not finite, and
    FitInterruptedError once `interrupted`, asked every few milliseconds, says that the answer is no longer wanted.
    Cost: 20 to 100 passes over rows·axes·C·folds per strength, where rows are the labeled and the unlabeled ones.
    """
    indices = np.asarray(rows, dtype=np.intp)
    embeddings, _, targets = _checked(pool.embeddings[indices], labels)
    weight = _choose_detail_weight(pool, embeddings, targets, detail_weights)
    deal = _deal_folds if targets.ndim == 1 else _deal_folds_of_sets
    folds = deal(targets, never_held_out, random_state=random_state)
    if folds is None:
        return HeadSettings(weight), None
    problem = _pool_problem(pool, weight, indices, targets, folds, MAX_FOLD_ROWS, weights)
    problem.interrupted = interrupted
    evaluated = np.flatnonzero(folds >= 0)
    lowest, solution, best, evaluation = np.inf, None, HeadSettings(weight), None
    for strength in sorted(strengths, reverse=True):
        candidate, logits = problem.out_of_fold(folds, strength, start=solution)
        temperature = fit_temperature(logits[evaluated], targets[evaluated])
        judged = _evaluate(logits / temperature, targets, folds)
        if judged.log_loss >= lowest:
            break
        lowest, solution, evaluation = judged.log_loss, candidate, judged
        threshold = DEFAULT_THRESHOLD if judged.threshold is None else judged.threshold
        best = HeadSettings(weight, strength, temperature, threshold)
    return best, evaluation


def fit(
    pool: Pool,
    rows: ArrayLike,
    labels: Sequence[Label],
    settings: HeadSettings,
    *,
    start: FitResult | None = None,
    weights: Floats | None = None,
    interrupted: Callable[[], bool] = lambda: False,
) -> FitResult:
    """A head learned from labels and from the whole pool, with settings that are known.

    `rows` (n,) are the labeled rows of the pool, `labels` their n class names, or n sets of them: then there is one
    logistic regression for each class that an image has, and what follows is done for each of them.

    1. Labels spread along the graph of all images (`learning.spreading`). Up to `MAX_UNLABELED_ROWS` unlabeled rows
       with the soft labels that arrive there are trained on beside the labeled ones, weighted by confidence, all
       together like `SOFT_LABELS` · C / n labels: they rule while there is a label or two per class and fade as
       labels come.
    2. The boundaries between classes are moved to where few images are: the mean entropy of the probabilities of the
       same unlabeled rows is minimised along (Grandvalet and Bengio 2004, *Semi-supervised learning by entropy
       minimization*; for few labels Boudiaf et al. 2020, https://arxiv.org/abs/2008.11297), which pays from some
       labels per class on. The classes' mean probabilities are held, by their divergence, at those of the head fitted
       without it; even shares instead cost up to 5 points where classes are uneven.
    3. Labels of rare classes weigh more, so that all classes weigh the same (`class_weights`), and those that are
       trusted less weigh less: `weights` (n,), of sets also (n, C), above 0 and 1 at most; None: 1 each.
    4. The rest of the loss is scikit-learn's, `½‖W‖² + strength · Σ weight · cross-entropy` with a free bias (with two
       classes both rows are penalised, so strength C equals scikit-learn's two-class C of 2·C).

    `start` is an earlier fit on the same pool, best on nearly the same labels: then it takes a quarter of the steps.
    One of other classes or another detail weight is of no use and left aside.

    Raises ValueError for fewer than two classes, unequal lengths or embeddings that are not finite, and
    FitInterruptedError as `choose_settings`. Cost: once per detail weight what `Pool` keeps; then 20 to 80 passes over
    rows·axes·C, where rows are the labeled and the unlabeled ones.
    """
    indices = np.asarray(rows, dtype=np.intp)
    _, classes, targets = _checked(pool.embeddings[indices], labels)
    problem = _pool_problem(pool, settings.detail_weight, indices, targets, None, MAX_UNLABELED_ROWS, weights)
    problem.interrupted = interrupted
    first = last = None
    if start is not None and _fits(start, classes, settings, problem):
        first, last = start.solutions.without_entropies[:, None], start.solutions.with_entropies[:, None]
    first, last = problem.solve_with_entropies(settings.strength, first, last, tolerance=_HEAD_TOLERANCE)
    basis = pool.basis(settings.detail_weight, len(indices))
    head = _head(
        classes, last[:, 0] / settings.temperature, basis.mean, basis.axes, pool.space(settings.detail_weight),
        settings.strength,
    )  # fmt: skip
    if targets.ndim == 2:
        head = replace(head, threshold=settings.threshold)
    return FitResult(head, settings, Solutions(first[:, 0], last[:, 0]))


def predict_pool(fitted: FitResult, pool: Pool) -> Floats:
    """Class probabilities (N, C) of all images of the pool that a head was fitted on.

    Those of `Head.predict_proba` to float32 rounding, from coordinates that are there already: one matrix product.
    """
    solution = fitted.solutions.with_entropies / fitted.settings.temperature  # (R + 1, C)
    # Axes may have been added since; the first ones stay what they were.
    coordinates = pool.basis(fitted.settings.detail_weight, len(solution) - 1).coordinates[:, : len(solution) - 1]
    logits = (coordinates @ solution[:-1].astype(np.float32)).astype(np.float64) + solution[-1]
    return _softmax(logits) if fitted.head.threshold is None else _sigmoid(logits)


def fit_and_evaluate(
    pool: Pool,
    rows: ArrayLike,
    labels: Sequence[Label],
    *,
    random_state: int,
    strengths: Sequence[float] = STRENGTHS,
    never_held_out: NDArray[np.bool_] | None = None,
) -> FitResult:
    """The head that `fit` makes with the settings of `choose_settings`, and their evaluation; errors are theirs."""
    settings, evaluation = choose_settings(
        pool, rows, labels, random_state=random_state, strengths=strengths, never_held_out=never_held_out
    )
    return replace(fit(pool, rows, labels, settings), evaluation=evaluation)


def _fits(start: FitResult, classes: tuple[str, ...], settings: HeadSettings, problem: _Problem) -> bool:
    same_space = start.settings.detail_weight == settings.detail_weight
    same_kind = (start.head.threshold is None) == (problem.kind == "classes")
    same_classes = same_kind and start.head.classes == classes
    return same_space and same_classes and len(start.solutions.with_entropies) == problem.n_weights


def _checked(embeddings: ArrayLike, labels: Sequence[Label]) -> tuple[NDArray[Any], tuple[str, ...], NDArray[np.intp]]:
    """Rows (N, D), sorted classes, and the class index (N,) of each row; of sets, which it has (N, C), 0 or 1."""
    rows = np.asarray(embeddings)
    if rows.ndim != 2 or len(rows) != len(labels):
        raise ValueError(f"got embeddings of shape {rows.shape} and {len(labels)} labels; expected one row per label")
    classes = label_sets.named_classes(labels)
    if not label_sets.can_be_told_apart(labels):
        raise ValueError(
            f"the labels name the classes {list(classes)}; expected at least two, or with several labels per image one "
            "that some images have and others have not: label images of another class"
        )
    if not np.isfinite(rows).all():
        raise ValueError("embeddings contain NaN or infinity; embed these images again")
    if not isinstance(labels[0], str):
        return rows, classes, label_sets.membership(classes, labels).astype(np.intp)
    index: dict[Label, int] = {name: position for position, name in enumerate(classes)}
    return rows, classes, np.array([index[label] for label in labels])


def _deal_folds(
    targets: NDArray[np.intp], never_held_out: NDArray[np.bool_] | None, *, random_state: int
) -> NDArray[np.intp] | None:
    """The fold (N,) in which each row is held out, -1 for never; None if fewer than two classes could be judged.

    Each class is shuffled and dealt in turn, continuing where the last class ended, so folds differ by one row at
    most. A class of m >= 2 rows never loses all of them to one fold.
    """
    free = np.ones(len(targets), dtype=bool) if never_held_out is None else ~never_held_out
    counts = np.bincount(targets[free])
    if np.sum(counts >= 2) < 2:
        return None
    random = np.random.default_rng(random_state)
    n_folds = int(min(MAX_FOLDS, counts[counts >= 2].sum()))
    folds = np.full(len(targets), -1)
    dealt = 0
    for label in np.flatnonzero(counts >= 2):
        members = random.permutation(np.flatnonzero((targets == label) & free))
        folds[members] = (dealt + np.arange(len(members))) % n_folds
        dealt += len(members)
    return folds


def _deal_folds_of_sets(
    targets: NDArray[np.intp], never_held_out: NDArray[np.bool_] | None, *, random_state: int
) -> NDArray[np.intp] | None:
    """As `_deal_folds` for sets of labels (N, C); None if there is no label that two images have and two have not.

    Never held out is the only image that has a label, and the only one that has not. Images go to the folds from the
    rarest label on, each to that with the fewest of it (iterative stratification, Sechidis et al. 2011,
    doi:10.1007/978-3-642-23808-6_10), those without a label at last.
    """
    free = np.ones(len(targets), dtype=bool) if never_held_out is None else ~never_held_out
    n_with, n_without = targets[free].sum(axis=0), (1 - targets[free]).sum(axis=0)
    if not np.any((n_with >= 2) & (n_without >= 2)):
        return None
    free &= ~(targets[:, n_with == 1] == 1).any(axis=1) & ~(targets[:, n_without == 1] == 0).any(axis=1)
    if free.sum() < 2:
        return None
    random = np.random.default_rng(random_state)
    n_folds = int(min(MAX_FOLDS, free.sum()))
    folds = np.full(len(targets), -1)
    labels_in, rows_in = np.zeros((n_folds, targets.shape[1]), dtype=np.intp), np.zeros(n_folds, dtype=np.intp)
    groups = [targets[:, label] == 1 for label in np.argsort(n_with, kind="stable")]
    for label, group in zip([*np.argsort(n_with, kind="stable"), None], [*groups, np.ones_like(free)], strict=True):
        for row in random.permutation(np.flatnonzero(group & free & (folds < 0))):
            of_label = rows_in if label is None else labels_in[:, label]
            fold = int(np.lexsort((rows_in, labels_in @ targets[row], of_label))[0])
            folds[row] = fold
            labels_in[fold] += targets[row]
            rows_in[fold] += 1
    return folds


def _evaluate(logits: Floats, targets: NDArray[np.intp], folds: NDArray[np.intp]) -> CrossValidation:
    """How good held-out predictions are; of sets at the threshold at which most are right."""
    evaluated = np.flatnonzero(folds >= 0)
    probabilities = np.full(logits.shape, np.nan)
    probabilities[evaluated] = rows = (_softmax if targets.ndim == 1 else _sigmoid)(logits[evaluated])
    if targets.ndim == 1:
        threshold = None
        is_right = rows.argmax(axis=1) == targets[evaluated]
    else:
        has = targets[evaluated] == 1
        threshold = label_sets.choose_threshold(rows, has)
        is_right = ((rows >= threshold) == has).all(axis=1)
    return CrossValidation(
        accuracy=float(np.mean(is_right)),
        log_loss=log_loss(logits[evaluated], targets[evaluated]),
        calibration_error=calibration_error(label_sets.confidence(rows, threshold), is_right),
        n_folds=int(folds.max()) + 1,
        n_evaluated=len(evaluated),
        probabilities=probabilities,
        threshold=threshold,
    )


def _choose_detail_weight(
    pool: Pool, embeddings: NDArray[Any], targets: NDArray[np.intp], detail_weights: Sequence[float]
) -> float:
    """The one of the weights under which labels tell each other best; without evidence the default one.

    Judged by the leave-one-out error of kernel ridge regression, which has a closed form (Rifkin and Lippert 2007,
    *Notes on regularized least squares*): it costs an eigendecomposition of n × n and agrees with cross-validating the
    head itself. The only label of its class is left out: nothing could predict it.
    """
    # Evenly spaced, for tasks are often imported class by class: the last labels alone could be of one class.
    rows = evenly_spaced(len(targets), MAX_RIDGE_ROWS)
    embeddings, targets = embeddings[rows], targets[rows]
    if targets.ndim == 2:
        wanted: NDArray[np.floating[Any]] = 2.0 * targets - 1
        judged: NDArray[np.bool_] = np.ones(len(targets), dtype=bool)
    else:
        one_hot = np.eye(int(targets.max()) + 1)[targets]
        wanted = one_hot - one_hot.mean(axis=1, keepdims=True)
        judged = np.bincount(targets)[targets] >= 2
    if not pool.n_details or not judged.any():
        return DEFAULT_DETAIL_WEIGHT
    errors = [
        _leave_one_out_error(pool.space(weight).features(embeddings), wanted, judged) for weight in detail_weights
    ]
    return detail_weights[int(np.argmin(errors))]


def _leave_one_out_error(features: Features, wanted: NDArray[np.floating[Any]], judged: NDArray[np.bool_]) -> float:
    """Mean squared error over the judged rows (n, C) at the best ridge."""
    eigenvalues, vectors = np.linalg.eigh((features @ features.T).astype(np.float64) + 1)
    errors = []
    for ridge in _RIDGES:
        hat = (vectors * (eigenvalues / (eigenvalues + ridge))) @ vectors.T
        residuals = (wanted - hat @ wanted) / (1 - np.diag(hat))[:, None]
        errors.append(float(np.mean(residuals[judged] ** 2)))
    return min(errors)


def class_weights(targets: NDArray[np.intp], trust: Floats | None = None) -> Floats:
    """What a label of each class (C,) weighs: n / (C · n_c), scikit-learn's "balanced", and 10 at most.

    Labels are counted by how much they are trusted, `trust` (n,); None: 1 each.

    Labels that were asked for do not come in the classes' shares. Weighted so, heads are more accurate on even pools
    (clothing photos, 60 labels of the first batch: 0.69 against 0.68) and on uneven ones (0.74 against 0.73; mean
    over the classes 0.62 against 0.57).
    """
    counts = np.bincount(targets, weights=trust)
    weights: Floats = np.minimum(counts.sum() / (len(counts) * counts), MAX_CLASS_WEIGHT)
    return weights


def _pool_problem(
    pool: Pool,
    detail_weight: float,
    rows: NDArray[np.intp],
    targets: NDArray[np.intp],
    folds: NDArray[np.intp] | None,
    n_unlabeled: int,
    weights: Floats | None,
) -> _Problem:
    """The fit of the labeled rows and of up to `n_unlabeled` unlabeled ones: one problem for each fold, else one."""
    n_labels = len(rows)
    n_problems = 1 if folds is None else int(folds.max()) + 1
    is_held_out = np.zeros((n_labels, 1), bool) if folds is None else folds[:, None] == np.arange(n_problems)

    graph = pool.graph(detail_weight)
    sample = evenly_spaced(len(graph.rows), n_unlabeled)  # the same at every label, but for those labeled since
    sample = sample[(graph.rows[sample] >= 0) & ~np.isin(graph.rows[sample], rows)]

    # A held-out image is to its fold's head what the rest of the pool is to the head: trained on without a label.
    n_rest = len(pool.embeddings) - n_labels
    entropies: Floats = is_held_out / np.maximum(n_rest + is_held_out.sum(axis=0), 1)  # (n, F)
    rest = np.repeat((1 - entropies.sum(axis=0))[None] / max(len(sample), 1), len(sample), axis=0)
    entropies = np.concatenate([entropies, rest])
    coordinates = pool.basis(detail_weight, n_labels).coordinates
    places = np.concatenate([coordinates[rows], coordinates[graph.rows[sample]]])
    if targets.ndim == 2:
        return _set_problem(pool, detail_weight, rows, sample, places, targets, is_held_out, weights, entropies, n_rest)

    n_classes = int(targets.max()) + 1
    one_hot = np.eye(n_classes)[targets]  # (n, C)
    own = class_weights(targets, weights)[targets]  # (n,)
    trained = ~is_held_out * (own if weights is None else own * weights)[:, None]  # (n, F)
    mass = SOFT_LABELS * n_classes / n_labels
    soft: Floats = np.zeros((len(sample), n_problems, n_classes))  # (U, F, C)
    if mass >= LEAST_SOFT_SHARE * n_labels:
        entries = pool.entry_points(detail_weight, rows)
        starts = entries @ (trained[:, :, None] * one_hot[:, None]).reshape(n_labels, -1)
        soft = spread_labels(graph, starts.reshape(len(graph.rows), n_problems, n_classes))[sample]
    confidence = np.maximum((soft.max(axis=2) - 1 / n_classes) / (1 - 1 / n_classes), 0)  # (U, F)
    return _Problem(
        places,
        np.concatenate([np.repeat(one_hot[:, None], n_problems, axis=1), soft]),
        np.concatenate([trained, confidence * mass / max(len(sample), 1)]),
        doubt=ENTROPY_WEIGHT * np.minimum(trained.sum(axis=0), n_rest),
        entropies=entropies,
    )


def _set_problem(
    pool: Pool,
    detail_weight: float,
    rows: NDArray[np.intp],
    sample: NDArray[np.intp],
    places: NDArray[np.floating[Any]],
    targets: NDArray[np.intp],
    is_held_out: NDArray[np.bool_],
    weights: Floats | None,
    entropies: Floats,
    n_rest: int,
) -> _SetProblem:
    """As `_pool_problem`, each label by itself: has it (1) or not (0), `targets` (n, C).

    `sample` are the unlabeled nodes, `places` (n + U, R) coordinates; `weights` (n,) or (n, C). Beside the images
    stands one in the middle of all, which has half of every label: so none is certain because all images have it.
    """
    n_labels, n_classes = targets.shape
    trust = np.ones(targets.shape) if weights is None else np.broadcast_to(weights.reshape(n_labels, -1), targets.shape)
    own = set_weights(targets, trust) * trust  # (n, C)
    trained = ~is_held_out[:, :, None] * own[:, None]  # (n, F, C)

    graph = pool.graph(detail_weight)
    mass = SOFT_LABELS * 2 / n_labels
    soft: Floats = np.zeros((len(sample), is_held_out.shape[1], n_classes))  # (U, F, C)
    confidence = soft
    if mass >= LEAST_SOFT_SHARE * n_labels:
        entries = pool.entry_points(detail_weight, rows)
        known = ~is_held_out * trust.mean(axis=1)[:, None]  # (n, F)
        having = entries @ (known[:, :, None] * targets[:, None]).reshape(n_labels, -1)
        soft = spread_label_sets(graph, entries @ known, having.reshape(len(graph.rows), -1, n_classes))[sample]
        confidence = np.abs(2 * soft - 1)
    middle = np.full((1, is_held_out.shape[1], n_classes), 0.5)
    return _SetProblem(
        np.concatenate([places, np.zeros((1, places.shape[1]), places.dtype)]),
        np.concatenate([np.repeat(targets[:, None], is_held_out.shape[1], axis=1), soft, middle]),
        np.concatenate([trained, confidence * mass / max(len(sample), 1), 2 * middle]),
        doubt=ENTROPY_WEIGHT * np.minimum(trained.sum(axis=0), n_rest),
        entropies=np.concatenate([entropies, np.zeros((1, entropies.shape[1]))]),
    )


def set_weights(targets: NDArray[np.intp], trust: Floats) -> Floats:
    """What having and not having each label weighs, (n, C): the root of what `class_weights` would say of the two.

    `trust` (n, C). Most labels are rare: at their full weight too many images are taken to have them, without any too
    few. Right sets of pairs of clothing photos with 20, 60 and 120 random labels: 0.26, 0.40 and 0.44 with the root,
    0.26, 0.39 and 0.41 at full weight, 0.25, 0.40 and 0.46 without; macro F1 0.30, 0.59 and 0.62, then 0.31, 0.57 and
    0.62, then 0.22, 0.61 and 0.63 (mean of four splits).
    """
    total = trust.sum(axis=0)
    n_having = (trust * targets).sum(axis=0)
    counts = np.where(targets == 1, n_having, total - n_having)
    weights: Floats = np.sqrt(np.minimum(total / (2 * np.maximum(counts, np.finfo(np.float64).tiny)), MAX_CLASS_WEIGHT))
    return weights


class _Problem:
    """Logistic regression on one set of rows, prepared once and solved for several strengths and folds.

    Every row has a soft target and a weight in each of F problems, and a share in the mean entropy that is minimised
    along. Two rewritings make it fast and change nothing in the result. As the bias is free, rows may be centred. As
    the penalty is on ‖W‖², the optimal weights lie in the span of the rows (representer theorem), so the rows may
    be expressed along principal axes, (N, R), or fewer of them, which leave out what hardly varies. There the Hessian
    is near diagonal, and scaling every axis by it saves L-BFGS most of its steps. Rows are computed with in the type
    of `coordinates`.
    """

    kind = "classes"

    def __init__(
        self,
        coordinates: NDArray[np.floating[Any]],
        targets: Floats,
        weights: Floats,
        *,
        doubt: Floats | None = None,
        entropies: Floats | None = None,
    ) -> None:
        kind = coordinates.dtype
        self.rows = np.hstack([coordinates, np.ones((len(coordinates), 1), kind)])  # (N, R + 1)
        self.targets = targets.astype(kind)  # (N, F, C), rows sum to 1
        self.weights = weights.astype(kind)  # (N, F), in a `_SetProblem` (N, F, C)
        self.doubt = np.zeros(weights.shape[1]) if doubt is None else doubt  # (F,), weight of the mean entropies
        has_entropies = entropies is not None and entropies.any() and self.doubt.any()
        self.entropies = entropies.astype(kind) if entropies is not None and has_entropies else None  # (N, F)
        self.interrupted: Callable[[], bool] = lambda: False
        self._shares: Floats | None = None  # (F, C), what the mean probabilities are held at

    @property
    def n_weights(self) -> int:
        """R + 1."""
        return int(self.rows.shape[1])

    def out_of_fold(self, folds: NDArray[np.intp], strength: float, *, start: Floats | None) -> tuple[Floats, Floats]:
        """The solution, as the next strength's start, and the labels' held-out logits (n, C); one problem per fold."""
        solution = start
        if start is None:
            _, solution = self.solve_with_entropies(strength, None, None, tolerance=_FOLD_TOLERANCE)
        else:
            solution = self.solve(strength, start=start, tolerance=_FOLD_TOLERANCE, shares=self._shares)
        logits = np.full((len(folds), self.targets.shape[2]), np.nan)
        for fold in range(solution.shape[1]):
            held_out = np.flatnonzero(folds == fold)
            logits[held_out] = self.rows[held_out] @ solution[:, fold]
        return solution, logits

    def solve_with_entropies(
        self, strength: float, first: Floats | None, last: Floats | None, *, tolerance: tuple[float, float]
    ) -> tuple[Floats, Floats]:
        """The solutions (R + 1, F, C) without entropies and with them, which start from others where such are known.

        With entropies there are several minima, of which the one nearest to the solution without is wanted. Its
        classes' shares are those that the mean probabilities are held at.
        """
        if self.entropies is None:
            first = self.solve(strength, start=first, tolerance=tolerance)
            return first, first
        first = self.solve(strength, start=first, tolerance=_FOLD_TOLERANCE)
        logits = (self.rows @ first.reshape(len(first), -1).astype(self.rows.dtype)).reshape(self.targets.shape)
        means = np.einsum("nf,nfc->fc", self.entropies, self._probabilities(logits))
        self._shares = np.maximum(means, _LEAST_SHARE)
        start = first if last is None else last
        return first, self.solve(strength, start=start, tolerance=tolerance, shares=self._shares)

    def solve(
        self,
        strength: float,
        *,
        start: Floats | None,
        tolerance: tuple[float, float],
        shares: Floats | None = None,
    ) -> Floats:
        """Weights and, last, bias (R + 1, F, C) of all problems at once, with entropies if there are `shares` (F, C).

        The problems do not touch each other, and one run pays Python's overhead once.
        """
        rows, row_weights = self.rows, self.weights.reshape(len(self.rows), -1)
        n_rows, n_problems, n_classes = self.targets.shape
        shape = (rows.shape[1], n_problems, n_classes)
        kind = rows.dtype
        total = float(row_weights.sum(dtype=np.float64)) / row_weights.shape[1]  # the loss is divided by it
        penalty = np.append(np.full(shape[0] - 1, 1 / (strength * total)), 0.0)  # (R + 1,)
        share = row_weights.mean(axis=1) / total  # (N,)
        curvature = share @ rows**2 / self._flatness + penalty
        unscale = 1 / np.sqrt(curvature)[:, None]
        doubt = (self.doubt / total).astype(kind)  # (F,), (F, C)
        scaled_weights = (row_weights / total).reshape(n_rows, n_problems, -1).astype(kind)

        def loss_and_gradient(flat: Floats) -> tuple[float, Floats]:
            if self.interrupted():
                raise FitInterruptedError("the fit is no longer wanted")
            weights = flat.reshape(shape[0], -1) * unscale  # (R + 1, F·C)
            logits = (rows @ weights.astype(kind)).reshape(n_rows, *shape[1:])  # (N, F, C)
            loss, residuals = self._loss(logits, scaled_weights, doubt, shares)
            penalised = penalty[:, None] * weights
            gradient = rows.T @ residuals.reshape(n_rows, -1) + penalised
            return loss + float(np.sum(penalised * weights)) / 2, (gradient * unscale).ravel()

        first = np.zeros(shape) if start is None else start
        # NumPy and SciPy each bring a BLAS with threads of its own; alternating between them, the threads of the one
        # spin while the other's work, and a fit of 0.1 s takes 0.8 s.
        with threadpool_limits(limits=1, user_api="blas"):
            result: Any = minimize(
                loss_and_gradient,
                (first.reshape(shape[0], -1) / unscale).ravel(),
                jac=True,
                method="L-BFGS-B",
                options={"maxiter": _MAX_ITERATIONS, "gtol": tolerance[0], "ftol": tolerance[1], "maxcor": 10},
            )
        solution: Floats = (result.x.reshape(shape[0], -1) * unscale).reshape(shape)
        return solution

    @property
    def _flatness(self) -> int:
        """By about what the loss curves less along a logit than its square would."""
        return int(self.targets.shape[2])

    @staticmethod
    def _probabilities(logits: Floats) -> Floats:
        return _softmax(logits)

    def _loss(
        self, logits: Floats, weights: Floats, doubt: Floats, shares: Floats | None
    ) -> tuple[float, NDArray[np.floating[Any]]]:
        """The loss without its penalty, and its derivatives (N, F, C) by the logits, which are overwritten."""
        logits -= logits.max(axis=2, keepdims=True)
        exponentials = np.exp(logits)
        totals = exponentials.sum(axis=2, keepdims=True)  # (N, F, 1)
        logits -= np.log(totals)
        probabilities = exponentials / totals
        residuals = self.targets * logits
        loss = -float(np.sum(weights * residuals, dtype=np.float64))
        np.subtract(probabilities, self.targets, out=residuals)
        residuals *= weights
        if self.entropies is not None and shares is not None:
            value, slopes = _doubt(probabilities, logits, self.entropies, shares)
            loss += float(np.sum(doubt * value))
            residuals += doubt[:, None] * slopes
        return loss, residuals


class _SetProblem(_Problem):
    """The same where an image may have several labels: a logistic regression for each label of each problem.

    Of an image's row in `targets` (N, F, C) each number is the share in which it has the label, 0 to 1, and `weights`
    are (N, F, C), `doubt` (F, C). The penalty is ½‖w‖² of each label, as scikit-learn's for two classes.
    """

    kind = "sets"

    @property
    def _flatness(self) -> int:
        return 4

    @staticmethod
    def _probabilities(logits: Floats) -> Floats:
        return _sigmoid(logits)

    def _loss(
        self, logits: Floats, weights: Floats, doubt: Floats, shares: Floats | None
    ) -> tuple[float, NDArray[np.floating[Any]]]:
        # softplus(z) - t·z is the cross-entropy of t; by |z| so that nothing overflows.
        small = np.exp(-np.abs(logits))
        probabilities = np.where(logits >= 0, 1, small) / (1 + small)
        softplus = np.maximum(logits, 0) + np.log1p(small)
        loss = float(np.sum(weights * (softplus - self.targets * logits), dtype=np.float64))
        residuals = weights * (probabilities - self.targets)
        if self.entropies is not None and shares is not None:
            value, slopes = _doubt_of_sets(probabilities, logits, softplus, self.entropies, shares)
            loss += float(np.sum(doubt * value))
            residuals += doubt * slopes
        return loss, residuals


def _head(
    classes: tuple[str, ...], solution: Floats, mean: Floats, axes: Floats, space: FeatureSpace, strength: float
) -> Head:
    """The head of a solution (R + 1, C) along `axes` (D, R), whose coordinates are from the point `mean` (D,)."""
    weights = solution[:-1].T @ axes.T  # (C, D)
    bias = solution[-1] - weights @ mean  # (C,)
    return Head(classes, weights.astype(np.float32), bias.astype(np.float32), space, float(strength))


def _doubt(probabilities: Floats, logs: Floats, weights: Floats, shares: Floats) -> tuple[Floats, Floats]:
    """Mean entropy plus the divergence of the mean probabilities from `shares` (F, C), of F problems, in nats.

    `probabilities` (N, F, C) and their logarithms; `weights` (N, F) of the means, columns of sum 1. Returns values (F,)
    and the derivatives (N, F, C) by the logits.
    """
    entropies = -np.sum(probabilities * logs, axis=2, keepdims=True)  # (N, F, 1)
    means = np.einsum("nf,nfc->fc", weights, probabilities)
    excess = np.log(np.maximum(means, _LEAST_SHARE) / shares)  # (F, C)
    expected = np.sum(probabilities * excess, axis=2, keepdims=True)  # (N, F, 1)
    slopes = weights[:, :, None] * probabilities * (excess - expected - logs - entropies)
    return np.sum(weights * entropies[:, :, 0], axis=0) + np.sum(means * excess, axis=1), slopes


def _doubt_of_sets(
    probabilities: Floats, logits: Floats, softplus: Floats, weights: Floats, shares: Floats
) -> tuple[Floats, Floats]:
    """As `_doubt` for each label by itself: has an image it or not. Values (F, C), derivatives (N, F, C)."""
    spread = probabilities * (1 - probabilities)
    means = np.einsum("nf,nfc->fc", weights, probabilities)
    ends = np.clip(means, _LEAST_END, 1 - _LEAST_END)
    shares = np.clip(shares, _LEAST_END, 1 - _LEAST_END).astype(means.dtype)
    excess, lack = np.log(ends / shares), np.log((1 - ends) / (1 - shares))  # (F, C)
    entropies = np.einsum("nf,nfc->fc", weights, softplus - probabilities * logits)
    slopes = weights[:, :, None] * spread * (excess - lack - logits)
    return entropies + means * excess + (1 - means) * lack, slopes


def _sigmoid(logits: Floats) -> Floats:
    """Probabilities of logits, each by itself, safe for large ones."""
    small = np.exp(-np.abs(logits))
    probabilities: Floats = np.where(logits >= 0, 1, small) / (1 + small)
    return probabilities


def _softmax(logits: Floats) -> Floats:
    """Probabilities of logits, classes on the last axis, safe for large logits."""
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probabilities: Floats = exponentials / exponentials.sum(axis=-1, keepdims=True)
    return probabilities
