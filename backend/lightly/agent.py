"""The older form of Lightly's active learning: an agent that is queried with a sampler config and a scorer."""

from __future__ import annotations

import enum
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from backend.errors import SelectionError
from backend.learning import first_batch
from backend.learning.coreset import select_coreset
from backend.learning.features import normalise
from backend.lightly.dataset import Dataset, open_sets
from backend.lightly.scorers import Scorer

Indices = NDArray[np.intp]


class SamplingMethod(enum.StrEnum):
    """How images are chosen: at random, far from each other, or far from each other and high in a score."""

    RANDOM = "RANDOM"
    CORESET = "CORESET"
    CORAL = "CORAL"


@dataclass(frozen=True)
class SamplerConfig:
    """One request for images.

    n_samples: how many the labeled set shall hold afterwards: the total, not how many are added.
    name: of the tag that the labeled set is kept as.
    random_state: seeds RANDOM; the other methods leave nothing to chance.

    Raises SelectionError for a number below 1 and an unknown method.
    """

    n_samples: int
    method: SamplingMethod
    name: str
    random_state: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.n_samples, bool) or not isinstance(self.n_samples, int) or self.n_samples < 1:
            raise SelectionError(f"n_samples is {self.n_samples!r}; expected a whole number of at least 1")
        if self.method not in tuple(SamplingMethod):
            raise SelectionError(f"method is {self.method!r}; expected one of {', '.join(SamplingMethod)}")


class ActiveLearningAgent:
    """Keeps track of which images of a dataset are labeled, and chooses the next.

    With `preselected_tag_name` the images of that tag are labeled, and with `query_tag_name` only images of that tag
    are chosen. Either may be left out: then none is labeled, and all may be chosen. Raises TagError for unknown tags.
    """

    def __init__(
        self, dataset: Dataset, *, preselected_tag_name: str | None = None, query_tag_name: str | None = None
    ) -> None:
        self._dataset = dataset
        self._labeled, self._query = open_sets(dataset, preselected_tag_name, query_tag_name)
        self._added: Indices | None = None

    @property
    def query_set(self) -> list[str]:
        """The images that may be chosen, labeled ones among them, in the order of the dataset."""
        return self._dataset.names_of(self._query)

    @property
    def labeled_set(self) -> list[str]:
        """The labeled images, in the order in which they were chosen."""
        return self._dataset.names_of(self._labeled)

    @property
    def unlabeled_set(self) -> list[str]:
        """The images of the query set that are not labeled, in the order of the dataset: that of the predictions."""
        return self._dataset.names_of(self._unlabeled)

    @property
    def added_set(self) -> list[str]:
        """The images that the last query added. Raises SelectionError before there was one."""
        if self._added is None:
            raise SelectionError("nothing was added yet; call query first")
        return self._dataset.names_of(self._added)

    def query(self, config: SamplerConfig, scorer: Scorer | None = None) -> list[str]:
        """Chooses images until the labeled set holds `config.n_samples`, and gives it: what was labeled comes first.

        The labeled set becomes the tag `config.name`, and is what the next query starts from. CORAL needs a `scorer`,
        made of predictions for `unlabeled_set` in its order (or for `query_set`, as in later releases); it uses
        `scorer.score`, with the labeled images at the mean of the others and a strength at which neither the score nor
        the distances drown the other, see `learning.coreset.select_coreset`. Distances are Euclidean, between
        embeddings scaled to length 1.

        Raises SelectionError for a total not above what is labeled or above what there is, for CORAL without a scorer,
        another method with one, and scores that do not fit; TagError for a tag name that is taken. Then nothing
        changes.
        """
        unlabeled = self._unlabeled
        budget = self._budget(config, len(unlabeled))
        self._dataset.tags.check_free(config.name)
        method = SamplingMethod(config.method)
        if method is SamplingMethod.CORAL and scorer is None:
            raise SelectionError("method CORAL needs scores and got no scorer; pass one, or use CORESET")
        if method is not SamplingMethod.CORAL and scorer is not None:
            raise SelectionError(f"method {method} uses no scores and got a scorer; leave it out, or use CORAL")
        embeddings = self._dataset.embeddings[np.concatenate([self._labeled, unlabeled])]
        n_labeled = len(self._labeled)
        if method is SamplingMethod.RANDOM:
            picks = first_batch.random(
                embeddings,
                budget=budget,
                preselected=range(n_labeled),
                n_classes=0,
                random_state=config.random_state,
            )
        else:
            weights = None if scorer is None else self._weights(scorer, unlabeled)
            picks = select_coreset(
                normalise(embeddings),
                budget=budget,
                preselected=range(n_labeled),
                typicality_weights=weights,
                weighting_strength=None,
            )
        added = unlabeled[np.array(picks, dtype=np.intp) - n_labeled]
        labeled = np.concatenate([self._labeled, added])
        self._dataset.tags.create(config.name, self._dataset.names_of(labeled))
        self._labeled, self._added = labeled, added
        return self.labeled_set

    @property
    def _unlabeled(self) -> Indices:
        return np.setdiff1d(self._query, self._labeled)

    def _budget(self, config: SamplerConfig, n_unlabeled: int) -> int:
        n_labeled = len(self._labeled)
        budget = config.n_samples - n_labeled
        if budget < 1:
            raise SelectionError(
                f"n_samples is {config.n_samples} and {n_labeled} images are labeled; it is the total size of the "
                f"labeled set, expected more than {n_labeled}"
            )
        if budget > n_unlabeled:
            raise SelectionError(
                f"n_samples is {config.n_samples}; expected at most {n_labeled + n_unlabeled}, {n_labeled} labeled and "
                f"{n_unlabeled} more in the query set"
            )
        return budget

    def _weights(self, scorer: Scorer, unlabeled: Indices) -> NDArray[np.float64]:
        """The scorer's score of the labeled, at the mean, and the unlabeled images."""
        scores = scorer.calculate_scores()[scorer.score]
        if len(scores) == len(self._query):  # the later releases' order; without labeled images both are the same
            scores = scores[np.isin(self._query, unlabeled)]
        if len(scores) != len(unlabeled):
            raise SelectionError(
                f"the scorer has predictions for {len(scores)} images; expected {len(unlabeled)}, one for each of "
                "unlabeled_set in its order"
            )
        return np.concatenate([np.full(len(self._labeled), scores.mean()), scores])
