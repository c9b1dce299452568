"""The later form of Lightly's selection: a config of strategies, each an input and what is wanted of it.

    {"n_samples": 30, "strategies": [{"input": {"type": "EMBEDDINGS"}, "strategy": {"type": "DIVERSITY"}}]}

The config is read strictly: a setting that is unknown, missing or of no effect where it stands is refused by name.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from backend.errors import SelectionError
from backend.learning.coreset import typicality
from backend.learning.features import normalise
from backend.learning.objectives import Balance, Diversity, Objective, Weighting, select_by_objectives, similarity
from backend.lightly.dataset import Dataset, open_sets
from backend.lightly.scorers import UNCERTAINTIES, ScorerClassification

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]

INPUTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "EMBEDDINGS": ("tag_name",),
        "SCORES": ("task", "score"),
        "METADATA": ("key",),
        "PREDICTIONS": ("task", "name"),
        "RANDOM": ("random_seed",),
    }
)
"""The types of input, and the settings each takes."""

STRATEGIES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "DIVERSITY": ("strength", "stopping_condition_minimum_distance"),
        "WEIGHTS": ("strength",),
        "THRESHOLD": ("threshold", "operation"),
        "BALANCE": ("strength", "target", "distribution"),
        "SIMILARITY": ("strength",),
        "TYPICALITY": ("strength", "num_nearest_neighbors", "stopping_condition_minimum_typicality"),
    }
)
"""The types of strategy, and the settings each takes."""

COMBINATIONS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "DIVERSITY": ("EMBEDDINGS",),
        "WEIGHTS": ("SCORES", "METADATA", "RANDOM"),
        "THRESHOLD": ("SCORES", "METADATA", "RANDOM"),
        "BALANCE": ("PREDICTIONS", "METADATA"),
        "SIMILARITY": ("EMBEDDINGS",),
        "TYPICALITY": ("EMBEDDINGS",),
    }
)
"""The inputs that each strategy works on."""

OPERATIONS: Mapping[str, Callable[[Floats, float], NDArray[np.bool_]]] = MappingProxyType(
    {
        "SMALLER": operator.lt,
        "SMALLER_EQUAL": operator.le,
        "BIGGER": operator.gt,
        "BIGGER_EQUAL": operator.ge,
    }
)
"""What THRESHOLD keeps, compared with the threshold."""

DISTRIBUTIONS = ("TARGET", "UNIFORM", "INPUT")
"""What BALANCE aims at: shares that are given, equal shares, or those of all images that may be chosen."""

N_NEIGHBORS = 20
"""Nearest neighbours that TYPICALITY looks at unless told otherwise, as in Lightly."""

MAX_STRENGTH = 1e9
"""Strengths lie between plus and minus this, Lightly's limit."""

_ONCE = ("DIVERSITY", "TYPICALITY")  # a second one could only repeat or contradict the first
_FORMER = {"DIVERSIFY": "DIVERSITY"}  # the first releases' name


@dataclass(frozen=True)
class _Entry:
    """One strategy of the config, checked: both types are known and fit, and all settings are of them."""

    place: str
    input_type: str
    input: Mapping[str, Any]
    type: str
    strategy: Mapping[str, Any]

    @property
    def strength(self) -> float:
        value = self.strategy.get("strength", 1.0)
        if not _is_number(value) or abs(value) > MAX_STRENGTH:
            raise SelectionError(
                f"{self.place}.strategy has strength {value!r}; expected a number between -1e9 and 1e9"
            )
        return float(value)


@dataclass(frozen=True, eq=False)
class _Known:
    """What the strategies may look at: the dataset, and scores and predictions of all its images in its order."""

    dataset: Dataset
    scores: Mapping[str, Floats]
    predictions: Floats | None
    classes: tuple[str, ...]
    random_state: int


def select(
    dataset: Dataset,
    selection_config: Mapping[str, Any],
    *,
    tag_name: str,
    preselected_tag_name: str | None = None,
    query_tag_name: str | None = None,
    scores: Mapping[str, ArrayLike] | None = None,
    predictions: ArrayLike | None = None,
    classes: Sequence[str] | None = None,
    random_state: int = 0,
) -> list[str]:
    """Chooses images by a selection config and gives the new ones, best first; they become a tag.

    `n_samples` counts the new images, unlike that of `SamplerConfig`: Lightly documents it as the most that a run may
    select, and what earlier runs selected comes on top. `proportion_samples` (0 to 1) of the query set may be given in
    its place. Fewer are chosen where fewer are left, by thresholds or in all, and where a stopping condition ends it.
    The tag holds the images of `preselected_tag_name` first, then the new ones. Only images of `query_tag_name` are
    chosen, or of the whole dataset.

    `scores` are (N,) by name and `predictions` (N, C) class probabilities of `classes`, both of all images of the
    dataset in its order; NaN where there is none, which is fine for images that are preselected or cannot be chosen.
    From predictions, the scores of `ScorerClassification` are made that `scores` lacks. All predictions and scores are
    of one model: `task` is read, for configs have it, and a score "task/name" is preferred to "name".

    THRESHOLD goes first. Of what it leaves, and the preselected, each step takes the image with the largest sum over
    the strategies of strength times the logarithm of the objective: see `learning.objectives` for each; SIMILARITY and
    TYPICALITY are weights. Embeddings are scaled to length 1, so distances are between 0 and 2. Scores and metadata
    with a negative number are raised so that the least is 0. `random_state` seeds RANDOM without a `random_seed`, and
    the sample by which TYPICALITY is measured in large datasets.

    Raises SelectionError for a config that is not understood, contradicts itself or asks for what is not there, and
    when no image can be chosen; TagError for tags that are unknown or taken. Then no tag is made.
    """
    dataset.tags.check_free(tag_name)
    entries = _parse(selection_config)
    labeled, query = open_sets(dataset, preselected_tag_name, query_tag_name)
    known = _known(dataset, scores, predictions, classes, random_state)
    n_wanted = _n_wanted(selection_config, len(query))
    candidates = np.setdiff1d(query, labeled)
    if not len(candidates):
        raise SelectionError("no image is left to choose: all of the query set are preselected, or it is empty")
    for entry in entries:
        if entry.type == "THRESHOLD":
            candidates = candidates[_passes(entry, known, candidates)]
    if not len(candidates):
        raise SelectionError("no image passes the THRESHOLD strategies; loosen one of them")
    rows = np.concatenate([labeled, candidates])
    objectives = [_objective(entry, known, rows, len(labeled)) for entry in entries if entry.type != "THRESHOLD"]
    if not objectives:  # thresholds alone: whatever passes, in the dataset's order
        objectives = [Weighting(np.zeros(len(rows)))]
    picks = select_by_objectives(
        objectives, n_rows=len(rows), budget=min(n_wanted, len(candidates)), preselected=range(len(labeled))
    )
    if not picks:
        raise SelectionError("a stopping condition ended the selection before the first image; loosen it")
    new = dataset.names_of(rows[picks])
    dataset.tags.create(tag_name, [*dataset.names_of(labeled), *new])
    return new


# -- the config -------------------------------------------------------------------------------------------------------


def _parse(config: Mapping[str, Any]) -> list[_Entry]:
    if not isinstance(config, Mapping):
        raise SelectionError(f"the selection config is {config!r}; expected n_samples and strategies")
    _only(config, ("n_samples", "proportion_samples", "strategies"), "the selection config")
    if ("n_samples" in config) == ("proportion_samples" in config):
        raise SelectionError("the selection config has both or none of n_samples and proportion_samples; give one")
    strategies = config.get("strategies")
    if not isinstance(strategies, Sequence) or isinstance(strategies, str) or not strategies:
        raise SelectionError(f"strategies is {strategies!r}; expected a list of at least one strategy")
    entries = [_entry(item, f"strategies[{number}]") for number, item in enumerate(strategies)]
    for type_ in _ONCE:
        places = [entry.place for entry in entries if entry.type == type_]
        if len(places) > 1:
            raise SelectionError(f"{places[0]} and {places[1]} are both {type_}; give one, with a strength if need be")
    return entries


def _entry(item: object, place: str) -> _Entry:
    if not isinstance(item, Mapping):
        raise SelectionError(f"{place} is {item!r}; expected an input and a strategy")
    _only(item, ("input", "strategy"), place)
    input_, input_type = _typed(item, "input", place, INPUTS)
    strategy, type_ = _typed(item, "strategy", place, STRATEGIES)
    if input_type not in COMBINATIONS[type_]:
        raise SelectionError(
            f"{place} has strategy {type_} on input {input_type}; {type_} takes {' or '.join(COMBINATIONS[type_])}"
        )
    if "tag_name" in input_ and type_ != "SIMILARITY":
        raise SelectionError(f"{place}.input has tag_name, which only SIMILARITY uses; remove it")
    return _Entry(place, input_type, input_, type_, strategy)


def _typed(
    item: Mapping[str, Any], part: str, place: str, types: Mapping[str, tuple[str, ...]]
) -> tuple[Mapping[str, Any], str]:
    """The input or strategy of an entry, and its type."""
    found = item.get(part)
    if not isinstance(found, Mapping) or "type" not in found:
        raise SelectionError(f"{place} has {part} {found!r}; expected a type, one of {', '.join(types)}")
    type_ = found["type"]
    type_ = _FORMER.get(type_, type_) if isinstance(type_, str) else type_
    if not isinstance(type_, str) or type_ not in types:
        raise SelectionError(f"{place}.{part} has type {type_!r}; expected one of {', '.join(types)}")
    _only(found, ("type", *types[type_]), f"{place}.{part} of type {type_}")
    return found, type_


def _only(found: Mapping[str, Any], known: Sequence[str], place: str) -> None:
    for key in found:
        if key not in known:
            raise SelectionError(f"{place} has {key!r}; it takes: {', '.join(known)}")


def _n_wanted(config: Mapping[str, Any], n_query: int) -> int:
    if "n_samples" in config:
        n_samples: object = config["n_samples"]
        if isinstance(n_samples, bool) or not isinstance(n_samples, int) or n_samples < 1:
            raise SelectionError(f"n_samples is {n_samples!r}; expected a whole number of at least 1")
        return n_samples
    proportion = config["proportion_samples"]
    if not _is_number(proportion) or not 0 < proportion <= 1:
        raise SelectionError(f"proportion_samples is {proportion!r}; expected a number above 0 and up to 1")
    return max(round(float(proportion) * n_query), 1)


# -- inputs -----------------------------------------------------------------------------------------------------------


def _known(
    dataset: Dataset,
    scores: Mapping[str, ArrayLike] | None,
    predictions: ArrayLike | None,
    classes: Sequence[str] | None,
    random_state: int,
) -> _Known:
    checked: dict[str, Floats] = {}
    for name, values in (scores or {}).items():
        checked[name] = np.asarray(values, dtype=np.float64)
        if checked[name].shape != (len(dataset),):
            raise SelectionError(
                f"score {name!r} has shape {checked[name].shape}; expected ({len(dataset)},), one per image of the "
                "dataset"
            )
    if predictions is None:
        if classes is not None:
            raise SelectionError("classes are given without predictions; give both, or neither")
        return _Known(dataset, checked, None, (), random_state)
    table = np.asarray(predictions, dtype=np.float64)
    if table.ndim != 2 or len(table) != len(dataset):
        raise SelectionError(
            f"predictions have shape {table.shape}; expected ({len(dataset)}, C), a row per image of the dataset"
        )
    names = tuple(classes or ())
    if classes is not None and (len(names) != table.shape[1] or len(set(names)) < len(names)):
        raise SelectionError(
            f"got {len(names)} classes, {len(set(names))} of them different, for predictions with {table.shape[1]} "
            "columns; expected a name for each"
        )
    return _Known(dataset, checked, table, names, random_state)


def _numbers(entry: _Entry, known: _Known) -> Floats:
    """The number (N,) that the input gives each image of the dataset; NaN where there is none."""
    if entry.input_type == "RANDOM":
        seed = entry.input.get("random_seed", known.random_state)
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise SelectionError(f"{entry.place}.input has random_seed {seed!r}; expected a whole number from 0")
        return np.random.default_rng(seed).random(len(known.dataset))
    if entry.input_type == "METADATA":
        key, values = _metadata(entry, known)
        wrong = next((value for value in values if value is not None and not _is_number(value)), None)
        if wrong is not None:
            raise SelectionError(
                f"{entry.place} has {entry.type} on metadata {key!r}, which has the value {wrong!r}; expected numbers, "
                "or BALANCE for categories"
            )
        return np.array([math.nan if value is None else value for value in values], dtype=np.float64)
    return _score(entry, known)


def _score(entry: _Entry, known: _Known) -> Floats:
    name, task = str(entry.input.get("score")), entry.input.get("task")
    for key in (f"{task}/{name}", name):
        if key in known.scores:
            return known.scores[key]
    if known.predictions is not None and name in UNCERTAINTIES:
        there = np.flatnonzero(np.isfinite(known.predictions).all(axis=1))
        numbers = np.full(len(known.dataset), math.nan)
        numbers[there] = ScorerClassification(known.predictions[there]).calculate_scores()[name]
        return numbers
    available = [*known.scores, *(UNCERTAINTIES if known.predictions is not None else ())]
    raise SelectionError(
        f"{entry.place}.input has score {name!r}; the scores are: {', '.join(dict.fromkeys(available)) or 'none'}"
    )


def _metadata(entry: _Entry, known: _Known) -> tuple[str, tuple[object, ...]]:
    key = entry.input.get("key")
    if key not in known.dataset.metadata:
        available = ", ".join(known.dataset.metadata) or "none"
        raise SelectionError(f"{entry.place}.input has key {key!r}; the dataset's metadata are: {available}")
    return str(key), known.dataset.metadata[str(key)]


def _is_number(value: object) -> bool:
    is_number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    return is_number and math.isfinite(float(value))  # type: ignore[arg-type]


# -- strategies -------------------------------------------------------------------------------------------------------


def _passes(entry: _Entry, known: _Known, candidates: Indices) -> NDArray[np.bool_]:
    """Which candidates (U,) a THRESHOLD keeps; one without a number never."""
    threshold, operation = entry.strategy.get("threshold"), entry.strategy.get("operation")
    if not _is_number(threshold):
        raise SelectionError(f"{entry.place}.strategy has threshold {threshold!r}; expected a number")
    if not isinstance(operation, str) or operation not in OPERATIONS:
        raise SelectionError(
            f"{entry.place}.strategy has operation {operation!r}; expected one of {', '.join(OPERATIONS)}"
        )
    return OPERATIONS[operation](_numbers(entry, known)[candidates], float(threshold))  # type: ignore[arg-type]


def _objective(entry: _Entry, known: _Known, rows: Indices, n_labeled: int) -> Objective:
    """What an entry wants of these rows of the dataset, of which the first are labeled."""
    if entry.type == "BALANCE":
        return _balance(entry, known, rows, n_labeled)
    if entry.type == "WEIGHTS":
        return Weighting(_weights(entry, known, rows, n_labeled), entry.strength)
    embeddings = normalise(known.dataset.embeddings[rows])
    if entry.type == "DIVERSITY":
        return Diversity(embeddings, entry.strength, _limit(entry, "stopping_condition_minimum_distance", 2.0))
    if entry.type == "SIMILARITY":
        return Weighting(similarity(embeddings, _queries(entry, known)), entry.strength)
    n_neighbors = entry.strategy.get("num_nearest_neighbors", N_NEIGHBORS)
    if isinstance(n_neighbors, bool) or not isinstance(n_neighbors, int) or n_neighbors < 2:
        raise SelectionError(
            f"{entry.place}.strategy has num_nearest_neighbors {n_neighbors!r}; expected a whole number of at least 2"
        )
    values = typicality(embeddings, n_neighbors, random_state=known.random_state)
    return Weighting(values, entry.strength, _limit(entry, "stopping_condition_minimum_typicality", 1.0))


def _limit(entry: _Entry, setting: str, largest: float) -> float | None:
    """A stopping condition, above 0 and up to the largest; None if it is not set."""
    value = entry.strategy.get(setting)
    if value is None:
        return None
    if not _is_number(value) or not 0 < value <= largest:
        raise SelectionError(f"{entry.place}.strategy has {setting} {value!r}; expected above 0 and up to {largest:g}")
    return float(value)


def _queries(entry: _Entry, known: _Known) -> NDArray[np.float32]:
    tag_name = entry.input.get("tag_name")
    if not isinstance(tag_name, str):
        raise SelectionError(f"{entry.place}.input has no tag_name; SIMILARITY needs the tag of the images to be like")
    rows = known.dataset.rows_of_tag(tag_name)
    if not len(rows):
        raise SelectionError(f"{entry.place}.input has tag_name {tag_name!r}, an empty tag; name one with images")
    return normalise(known.dataset.embeddings[rows])


def _weights(entry: _Entry, known: _Known, rows: Indices, n_labeled: int) -> Floats:
    weights = _numbers(entry, known)[rows]
    missing = ~np.isfinite(weights)
    if missing[n_labeled:].any():
        name = known.dataset.names[rows[n_labeled + int(missing[n_labeled:].argmax())]]
        raise SelectionError(
            f"{entry.place}.input of type {entry.input_type} has no number for {name!r}; give one for every image that "
            "may be chosen, or leave it out by query_tag_name"
        )
    weights[missing] = weights[n_labeled:].mean()  # labeled images need no prediction: they count like the others
    raised: Floats = weights - min(weights.min(), 0.0)
    return raised


def _balance(entry: _Entry, known: _Known, rows: Indices, n_labeled: int) -> Balance:
    names, table = _class_table(entry, known, rows, n_labeled)
    target = entry.strategy.get("target")
    kind = entry.strategy.get("distribution", "TARGET")
    if kind not in DISTRIBUTIONS:
        raise SelectionError(
            f"{entry.place}.strategy has distribution {kind!r}; expected one of {', '.join(DISTRIBUTIONS)}"
        )
    if kind != "TARGET":
        if target is not None:
            raise SelectionError(f"{entry.place}.strategy has a target beside distribution {kind}; give one of both")
        shares = np.ones(len(names)) if kind == "UNIFORM" else table[n_labeled:].sum(axis=0)
        return Balance(table, shares, entry.strength)
    if not isinstance(target, Mapping) or not target:
        raise SelectionError(f"{entry.place}.strategy has target {target!r}; expected a share for at least one class")
    for name, share in target.items():
        if name not in names:
            raise SelectionError(
                f"{entry.place}.strategy has a target for {name!r}; the classes are: {', '.join(names)}"
            )
        if not _is_number(share) or not 0 <= share <= 1:
            raise SelectionError(f"{entry.place}.strategy has target {name!r}: {share!r}; expected a share from 0 to 1")
    total = float(sum(target.values()))
    if total > 1 + 1e-6 or total == 0:
        raise SelectionError(
            f"{entry.place}.strategy has targets that sum to {total:g}; expected above 0 and up to 1, the rest being "
            "for all other classes"
        )
    named = [names.index(name) for name in target]
    others = [column for column in range(len(names)) if column not in named]
    if others:
        table = np.column_stack([table[:, named], table[:, others].sum(axis=1)])
        return Balance(table, [*target.values(), max(1 - total, 0.0)], entry.strength)
    return Balance(table[:, named], list(target.values()), entry.strength)


def _class_table(entry: _Entry, known: _Known, rows: Indices, n_labeled: int) -> tuple[list[str], Floats]:
    """The classes (C), and how much of each these rows are (R, C); a row of zeros where it is not known."""
    if entry.input_type == "METADATA":
        key, values = _metadata(entry, known)
        if any(isinstance(value, (float, np.floating)) for value in values):
            raise SelectionError(
                f"{entry.place} has BALANCE on metadata {key!r}, which are decimal numbers; expected categories, or "
                "WEIGHTS or THRESHOLD for numbers"
            )
        labels = [None if value is None else str(value) for value in values]
        names = sorted({label for label in labels if label is not None})
        columns = {name: column for column, name in enumerate(names)}
        table: Floats = np.zeros((len(rows), len(names)))
        for place, row in enumerate(rows):
            label = labels[row]
            if label is not None:
                table[place, columns[label]] = 1
    else:
        if entry.input.get("name", "CLASS_DISTRIBUTION") != "CLASS_DISTRIBUTION":
            raise SelectionError(
                f"{entry.place}.input has name {entry.input['name']!r}; expected CLASS_DISTRIBUTION, for predictions "
                "are class probabilities here"
            )
        if known.predictions is None or not known.classes:
            raise SelectionError(f"{entry.place} has input PREDICTIONS; pass predictions and classes")
        names, table = list(known.classes), known.predictions[rows]
        if not (np.isfinite(table[n_labeled:]) & (table[n_labeled:] >= 0)).all():
            raise SelectionError(
                f"{entry.place}.input has predictions that are NaN or negative for images that may be chosen; give "
                "probabilities"
            )
        table = np.where(np.isfinite(table), table, 0.0)
    if not names or not table[n_labeled:].any():
        raise SelectionError(f"{entry.place} has BALANCE, and no image that may be chosen has a class; remove it")
    return names, table
