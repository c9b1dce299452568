"""Spreading: by hand, against scikit-learn, and in pools larger than the graph."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning
from sklearn.semi_supervised import LabelSpreading

from backend.learning import spreading
from backend.learning.features import normalise
from backend.learning.spreading import entry_points, neighbor_graph, spread_labels


def two_kinds(n_per_kind: int, *, noise: float = 0.2, seed: int = 0):
    """Features (2n, 6) around two directions."""
    random = np.random.default_rng(seed)
    centres = np.repeat(np.eye(6)[:2], n_per_kind, axis=0)
    return normalise(centres + noise * random.normal(size=centres.shape))


def starts_of(graph, labels: dict[int, int], n_classes: int = 2):
    rows = np.array(list(labels))
    entries = entry_points(graph, rows, graph.features[:0] if not len(rows) else ALL[rows])
    return np.asarray(entries @ np.eye(n_classes)[list(labels.values())])[:, None]


ALL = two_kinds(40)


def test_links_are_symmetric_and_normalised():
    """The largest eigenvalue is 1, no image is linked to itself, each to twelve at least."""
    links = neighbor_graph(ALL).links.toarray()
    np.testing.assert_allclose(links, links.T)
    assert np.linalg.eigvalsh(links).max() == pytest.approx(1.0)
    assert (np.diag(links) == 0).all()
    assert (links > 0).sum(axis=1).min() >= 12


def test_a_link_weighs_what_the_formula_says():
    """Three images, all linked: exp((cos - 1) / 0.1) over the roots of both degrees."""
    features = np.array([[1, 0], [0.8, 0.6], [0.6, 0.8]], dtype=np.float32)
    weights = np.exp((features.astype(np.float64) @ features.T - 1) / 0.1) * (1 - np.eye(3))
    degrees = weights.sum(axis=1)
    np.testing.assert_allclose(
        neighbor_graph(features).links.toarray(), weights / np.sqrt(np.outer(degrees, degrees)), rtol=1e-5
    )


def test_spreading_is_scikit_learns():
    """With one label per class, its LabelSpreading on the same graph agrees, but for one factor: the class mass."""
    features = two_kinds(40, noise=0.6)
    graph = neighbor_graph(features)
    soft = spread_labels(graph, starts_of(graph, {0: 0, 40: 1}))[:, 0]

    class OnOurGraph(LabelSpreading):
        def _build_graph(self):
            return graph.links

    given = np.full(80, -1)
    given[[0, 40]] = 0, 1
    with pytest.warns(ConvergenceWarning):  # it stops after as many steps as ours
        reference = OnOurGraph(alpha=spreading.ALPHA, max_iter=spreading.N_STEPS, tol=0).fit(features, given)
    masses = reference.label_distributions_
    reached = (soft.min(axis=1) > 0) & (masses.min(axis=1) > 0)
    assert reached.sum() > 20
    odds = (soft[reached, 0] / soft[reached, 1]) / (masses[reached, 0] / masses[reached, 1])
    np.testing.assert_allclose(odds, odds[0])


def test_how_often_a_class_was_labeled_does_not_matter():
    """Nine labels of one kind and one of the other: mirrored, the images between two kinds are as much the one's."""
    features = np.concatenate(
        [half := two_kinds(20, noise=0.6), half[:, [1, 0, 2, 3, 4, 5]]]
    )  # the other kind mirrored
    graph = neighbor_graph(features)
    even = spread_labels(graph, starts_of(graph, {0: 0, 40: 1}))[:, 0]
    starts = starts_of(graph, {0: 0, 40: 1})
    starts[0] *= 9
    np.testing.assert_allclose(spread_labels(graph, starts)[:, 0], even)
    np.testing.assert_allclose(even[:40], even[40:, ::-1], atol=1e-6)


def test_sets_of_labels_do_not_touch_each_other():
    """Spread together or one by one: the same."""
    graph = neighbor_graph(ALL)
    one, other = starts_of(graph, {0: 0, 40: 1}), starts_of(graph, {5: 1, 50: 0, 51: 0})
    together = spread_labels(graph, np.concatenate([one, other], axis=1))
    np.testing.assert_allclose(together[:, :1], spread_labels(graph, one))
    np.testing.assert_allclose(together[:, 1:], spread_labels(graph, other))


def test_where_no_label_arrives_there_is_none():
    """Two far islands of fourteen images, a label on one of them: the other stays without."""
    features = normalise(np.repeat([[1.0, 0.0], [-1.0, 0.0]], 14, axis=0) + 0.01 * np.arange(28)[:, None] * [0, 1])
    graph = neighbor_graph(features)
    starts = np.zeros((28, 1, 2))
    starts[0, 0, 0] = 1
    soft = spread_labels(graph, starts)[:, 0]
    np.testing.assert_allclose(soft[:14], [[1, 0]] * 14)
    np.testing.assert_array_equal(soft[14:], np.zeros((14, 2)))


def test_a_large_pool_is_a_sample_of_nodes(monkeypatch):
    """Labels of images outside the graph enter at their nearest nodes, and arrive at the right kind."""
    monkeypatch.setattr(spreading, "MAX_NODES", 31)
    graph = neighbor_graph(ALL)
    assert len(graph.rows) == 31
    outside = [row for row in range(80) if row not in graph.rows]
    labels = {outside[0]: 0, outside[-1]: 1, int(graph.rows[0]): 0}
    rows = np.array(list(labels))
    entries = entry_points(graph, rows, ALL[rows]).toarray()
    np.testing.assert_allclose(entries.sum(axis=0), 1)
    assert entries[0, 2] == 1
    soft = spread_labels(graph, (entries @ np.eye(2)[list(labels.values())])[:, None])[:, 0]
    assert (soft.argmax(axis=1) == (graph.rows >= 40)).all()


@pytest.mark.parametrize("n_rows", [1, 2, 5])
def test_pools_smaller_than_the_neighborhood(n_rows):
    """Everything is linked to everything; a single image to nothing."""
    graph = neighbor_graph(ALL[:n_rows])
    assert (graph.links.toarray() > 0).sum() == n_rows * (n_rows - 1)
    starts = np.zeros((n_rows, 1, 2))
    starts[0, 0, 1] = 1
    np.testing.assert_allclose(spread_labels(graph, starts)[0, 0], [0, 1])


def test_a_graph_needs_the_features_of_its_nodes_only(monkeypatch):
    """Of 40 rows ten are nodes: the same graph from their features alone, and from float16."""
    monkeypatch.setattr(spreading, "MAX_NODES", 10)
    features = normalise(np.random.default_rng(0).normal(size=(40, 6)).astype(np.float16))
    whole = neighbor_graph(features)
    rows = spreading.node_rows(40)
    for nodes in (features[rows], features[rows].astype(np.float16)):
        graph = neighbor_graph(nodes, rows)
        assert graph.rows.tolist() == whole.rows.tolist() == [0, 4, 8, 13, 17, 21, 26, 30, 34, 39]
        assert graph.features.dtype == np.float32
        np.testing.assert_allclose(graph.links.toarray(), whole.links.toarray(), atol=1e-2)
    with pytest.raises(ValueError, match="features of 40 rows and 10 row numbers"):
        neighbor_graph(features, rows)
