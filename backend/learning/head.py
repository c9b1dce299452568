"""The head: multinomial logistic regression on the features of embeddings, and how well it is expected to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from threadpoolctl import threadpool_limits

from backend.learning.features import Features, as_features

Floats = NDArray[np.float64]

STRENGTHS = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0)
"""Strengths tried, ascending: scikit-learn's `C`, the weight of the data against the L2 penalty on the weights."""

DEFAULT_STRENGTH = 1000.0
"""Strength where cross-validation is impossible, so with very few labels: of single values the one with the lowest
held-out log-loss at 10 to 20 labels (MobileNetV2 features of 1,121 weather and 1,485 clothing photos), and within a
percent of the best accuracy."""

MAX_FOLDS = 5
"""Cross-validation folds: heads are judged on four fifths of the labels, at five times the cost of one fit."""

BLOCK_ROWS = 8192
"""Rows of the pool turned into float32 at a time, so that predicting needs little memory beside the pool."""

_CV_TOLERANCE = 1e-4  # largest gradient entry at which a fold counts as fitted; finer changes no choice of strength
_FIT_TOLERANCE = 1e-5  # the same for the head itself: probabilities then agree with scikit-learn's to about 1e-3
_MAX_ITERATIONS = 300  # 10 to 250 are usual, most where the penalty is weak; stopping here is no error


@dataclass(frozen=True)
class Head:
    """A linear softmax classifier over the features of embeddings."""

    classes: tuple[str, ...]  # sorted; column c of every (N, C) array below is classes[c]
    weights: NDArray[np.float32]  # (C, D), two rows for two classes
    bias: NDArray[np.float32]  # (C,)
    centre: NDArray[np.float32]  # (D,), what embeddings are features relative to; see `features.pool_centre`
    strength: float  # the strength it was fitted with

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
            logits[block] = as_features(rows[block], self.centre) @ self.weights.T + self.bias
        return _softmax(logits)


@dataclass(frozen=True)
class CrossValidation:
    """How well heads trained on part of the labels did on the rest of them.

    An estimate for judging progress, not a promise about the pool. Labels chosen by active learning are not a random
    sample: they are the images the model found hard, so the accuracy on them is usually *lower* than on the pool;
    the heads judged here also saw fewer labels than the final one. In the other direction, the strength was chosen on
    the same folds, which flatters a little. For an unbiased number keep a random set of labels aside.
    """

    accuracy: float  # 0..1, share of evaluated rows whose top class is the label
    log_loss: float  # mean of -ln(probability of the label), nats; ln C for a head that knows nothing
    n_folds: int
    n_evaluated: int  # rows held out once: all but those that are the only one of their class
    probabilities: Floats  # (N, C) out-of-fold, columns as Head.classes; NaN in rows never held out


@dataclass(frozen=True)
class FitResult:
    """A head, and the cross-validation that chose its strength (None where the labels are too few for one)."""

    head: Head
    evaluation: CrossValidation | None


def fit_head(
    embeddings: ArrayLike,
    labels: Sequence[str],
    *,
    centre: ArrayLike | None = None,
    strength: float = DEFAULT_STRENGTH,
) -> Head:
    """The head of one given strength; no randomness. See `fit_and_evaluate` for arguments and errors."""
    problem = _Problem(embeddings, labels, centre)
    return problem.head(strength)


def fit_and_evaluate(
    embeddings: ArrayLike,
    labels: Sequence[str],
    *,
    random_state: int,
    centre: ArrayLike | None = None,
    strengths: Sequence[float] = STRENGTHS,
) -> FitResult:
    """A head of the strength that predicts held-out labels best, with the out-of-fold result at that strength.

    `embeddings` (N, D) of any float type become features here, relative to `centre` (D,), best that of the whole pool
    (None: zeros, only normalised); `labels` holds N class names; `random_state` seeds the folds. The minimised loss is
    scikit-learn's, `½‖W‖² + strength · Σ cross-entropy` with a free bias. With two
    classes both rows are penalised, so strength C equals scikit-learn's two-class C of 2·C.

    The strength is chosen by log-loss, not accuracy. With tens of labels accuracy moves in steps of several percent
    and many strengths tie, while log-loss uses every probability, and the acquisition functions need probabilities
    that mean something. (On 30 random labels of weather and clothing photos, held-out accuracy was 0.81 and 0.46 chosen
    by log-loss, 0.77 and 0.43 by accuracy.) Strengths are tried from strong to weak penalty until the log-loss rises.

    Folds are stratified. A class with one example is always trained on and never held out; without two classes of at
    least two examples nothing can be evaluated, and `DEFAULT_STRENGTH` is used.

    Raises ValueError for fewer than two classes, unequal lengths or embeddings that are not finite. Cost: one
    eigendecomposition of the smaller of N×N and D×D, then 10 to 50 passes over N·min(N, D)·C·folds per strength; with
    thousands of labels, pass only the last chosen strength and its neighbours.
    """
    problem = _Problem(embeddings, labels, centre)
    folds = _deal_folds(problem.targets, random_state=random_state)
    if folds is None:
        return FitResult(head=problem.head(DEFAULT_STRENGTH), evaluation=None)

    evaluation, best, solution = None, DEFAULT_STRENGTH, None
    for strength in sorted(strengths):
        candidate_solution, probabilities = problem.out_of_fold(folds, strength, start=solution)
        candidate = _evaluate(probabilities, problem.targets, folds)
        if evaluation is not None and candidate.log_loss >= evaluation.log_loss:
            break
        evaluation, best, solution = candidate, strength, candidate_solution
    return FitResult(head=problem.head(best, start=solution), evaluation=evaluation)


def _checked(embeddings: ArrayLike, labels: Sequence[str]) -> tuple[NDArray[Any], tuple[str, ...], NDArray[np.intp]]:
    """Rows (N, D), sorted classes, and the class index (N,) of each row."""
    rows = np.asarray(embeddings)
    if rows.ndim != 2 or len(rows) != len(labels):
        raise ValueError(f"got embeddings of shape {rows.shape} and {len(labels)} labels; expected one row per label")
    classes = tuple(sorted(set(labels)))
    if len(classes) < 2:
        raise ValueError(
            f"the labels name the classes {list(classes)}; expected at least two: label images of another class"
        )
    if not np.isfinite(rows).all():
        raise ValueError("embeddings contain NaN or infinity; embed these images again")
    index = {name: position for position, name in enumerate(classes)}
    return rows, classes, np.array([index[label] for label in labels])


def _deal_folds(targets: NDArray[np.intp], *, random_state: int) -> NDArray[np.intp] | None:
    """The fold (N,) in which each row is held out, -1 for never; None if fewer than two classes could be judged.

    Each class is shuffled and dealt in turn, continuing where the last class ended, so folds differ by one row at
    most. A class of m >= 2 rows never loses all of them to one fold.
    """
    counts = np.bincount(targets)
    if np.sum(counts >= 2) < 2:
        return None
    random = np.random.default_rng(random_state)
    n_folds = int(min(MAX_FOLDS, counts[counts >= 2].sum()))
    folds = np.full(len(targets), -1)
    dealt = 0
    for label in np.flatnonzero(counts >= 2):
        members = random.permutation(np.flatnonzero(targets == label))
        folds[members] = (dealt + np.arange(len(members))) % n_folds
        dealt += len(members)
    return folds


def _evaluate(probabilities: Floats, targets: NDArray[np.intp], folds: NDArray[np.intp]) -> CrossValidation:
    evaluated = np.flatnonzero(folds >= 0)
    given = probabilities[evaluated, targets[evaluated]]
    return CrossValidation(
        accuracy=float(np.mean(probabilities[evaluated].argmax(axis=1) == targets[evaluated])),
        log_loss=float(-np.log(np.maximum(given, np.finfo(np.float64).tiny)).mean()),
        n_folds=int(folds.max()) + 1,
        n_evaluated=len(evaluated),
        probabilities=probabilities,
    )


class _Problem:
    """Logistic regression on one set of rows, prepared once and solved for several strengths and folds.

    Two rewritings make it fast and change nothing in the result. As the bias is free, rows may be centred. As the
    penalty is on ‖W‖², the optimal weights lie in the span of the rows (representer theorem), so the rows may be
    expressed in their principal axes: min(N - 1, D) numbers each. There the Hessian is near diagonal, and scaling
    every axis by it saves L-BFGS most of its steps.
    """

    def __init__(self, embeddings: ArrayLike, labels: Sequence[str], centre: ArrayLike | None) -> None:
        rows, self.classes, self.targets = _checked(embeddings, labels)
        self.centre = np.zeros(rows.shape[1], np.float32) if centre is None else np.asarray(centre, np.float32)
        features: Features = as_features(rows, self.centre)
        self.mean = features.mean(axis=0, dtype=np.float64)  # (D,)
        centred = features - self.mean  # (N, D)
        self.axes, self.coordinates = _principal_axes(centred)  # (D, R), (N, R)
        self.spread = np.mean(self.coordinates**2, axis=0)  # (R,) variance along each axis
        self.one_hot = np.eye(len(self.classes))[self.targets]  # (N, C)

    def head(self, strength: float, *, start: Floats | None = None) -> Head:
        """The head fitted on all rows; `start` is a solution of the folds at about this strength."""
        first = None if start is None else start.mean(axis=1, keepdims=True)
        solution = self._solve(np.ones((len(self.one_hot), 1)), strength, start=first, tolerance=_FIT_TOLERANCE)
        weights = solution[:-1, 0].T @ self.axes.T  # (C, D)
        bias = solution[-1, 0] - weights @ self.mean  # (C,)
        return Head(self.classes, weights.astype(np.float32), bias.astype(np.float32), self.centre, float(strength))

    def out_of_fold(self, folds: NDArray[np.intp], strength: float, *, start: Floats | None) -> tuple[Floats, Floats]:
        """The solution of all folds, a warm start for the next strength, and each row's held-out probabilities."""
        n_folds = int(folds.max()) + 1
        trained = (folds[:, None] != np.arange(n_folds)).astype(np.float64)  # (N, F)
        solution = self._solve(trained, strength, start=start, tolerance=_CV_TOLERANCE)
        probabilities = np.full(self.one_hot.shape, np.nan)
        for fold in range(n_folds):
            held_out = folds == fold
            probabilities[held_out] = _softmax(self.coordinates[held_out] @ solution[:-1, fold] + solution[-1, fold])
        return solution, probabilities

    def _solve(self, trained: Floats, strength: float, *, start: Floats | None, tolerance: float) -> Floats:
        """Weights and, last, bias (R + 1, F, C) of F problems at once; `trained` (N, F) is 1 where a row counts.

        The problems do not touch each other: their sum is minimised in one run, which pays Python's overhead once.
        """
        n_rows, n_classes = self.one_hot.shape
        shape = (len(self.spread) + 1, trained.shape[1], n_classes)
        features = np.hstack([self.coordinates, np.ones((n_rows, 1))])  # (N, R + 1)
        penalty = np.append(np.full(len(self.spread), 1 / (strength * n_rows)), 0.0)  # (R + 1,), loss divided by C·N
        curvature = np.append(self.spread, 1.0) / n_classes + penalty
        unscale = 1 / np.sqrt(curvature)[:, None]

        def loss_and_gradient(flat: Floats) -> tuple[float, Floats]:
            weights = flat.reshape(shape[0], -1) * unscale  # (R + 1, F·C)
            logits = (features @ weights).reshape(n_rows, *shape[1:])  # (N, F, C)
            logits -= logits.max(axis=2, keepdims=True)
            exponentials = np.exp(logits)
            totals = exponentials.sum(axis=2)  # (N, F)
            chosen = np.einsum("nfc,nc->nf", logits, self.one_hot)
            loss = np.sum(trained * (np.log(totals) - chosen)) / n_rows
            residuals = exponentials / totals[:, :, None] - self.one_hot[:, None]
            residuals *= trained[:, :, None] / n_rows
            penalised = penalty[:, None] * weights
            gradient = features.T @ residuals.reshape(n_rows, -1) + penalised
            return float(loss + np.sum(penalised * weights) / 2), (gradient * unscale).ravel()

        first = np.zeros(shape) if start is None else start
        # NumPy and SciPy each bring a BLAS with threads of its own; alternating between them, the threads of the one
        # spin while the other's work, and a fit of 0.1 s takes 0.8 s.
        with threadpool_limits(limits=1, user_api="blas"):
            result: Any = minimize(
                loss_and_gradient,
                (first.reshape(shape[0], -1) / unscale).ravel(),
                jac=True,
                method="L-BFGS-B",
                options={"maxiter": _MAX_ITERATIONS, "gtol": tolerance, "ftol": 1e-12, "maxcor": 10},
            )
        solution: Floats = (result.x.reshape(shape[0], -1) * unscale).reshape(shape)
        return solution


def _principal_axes(centred: Floats) -> tuple[Floats, Floats]:
    """Orthonormal axes (D, R) of the rows' span and the rows' coordinates (N, R) on them."""
    n_rows, n_features = centred.shape
    small = centred @ centred.T if n_rows <= n_features else centred.T @ centred
    variances, vectors = np.linalg.eigh(small)
    # Rounding leaves directions of zero variance at about 1e-16 of the largest; they carry no information.
    kept = variances > 1e-12 * max(variances[-1], np.finfo(np.float64).tiny)
    variances, vectors = variances[kept], vectors[:, kept]
    if n_rows <= n_features:
        coordinates = vectors * np.sqrt(variances)
        return centred.T @ (vectors / np.sqrt(variances)), coordinates
    return vectors, centred @ vectors


def _softmax(logits: Floats) -> Floats:
    """Probabilities (N, C) of logits (N, C), safe for large logits."""
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities: Floats = exponentials / exponentials.sum(axis=1, keepdims=True)
    return probabilities
