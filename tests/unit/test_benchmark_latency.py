"""The arithmetic of the benchmark of the lag a labeler sees."""

from __future__ import annotations

import argparse
import sqlite3
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import httpx
import numpy as np
import pytest

from backend.adapters.jobs import HISTOGRAM_BOUNDS, Histogram
from backend.adapters.registry import Registry
from backend.schema import VersionRecord
from benchmarks import demo_stack, latency, made_projects
from benchmarks.latency import Publication, Received, Served, Submission

FIRST = Publication(1.0, "v1", 10, frozenset({1, 2}))
SECOND = Publication(2.0, "v2", 11, frozenset({2, 3}))
BOTH = {"v1": FIRST, "v2": SECOND}


@pytest.mark.parametrize(
    ("served", "knows"),
    [
        (Served(3, "v2", "v2"), True),
        (Served(2, "v1", "v2"), False),  # ordered by the older one when it was asked for: perhaps chosen by it
        (Served(3, "v1", "v1"), False),
        (Served(7, "v2", None), False),  # not from the window: a random one, or one locked before
        (Served(3, None, "v2"), False),
        (Served(3, "Active learning", "v2"), False),
    ],
)
def test_a_task_counts_only_if_it_was_certainly_chosen_by_a_version_with_the_label(served: Served, knows: bool) -> None:
    """With 11 labels submitted, only the second version knows them all."""
    assert latency.knows_all(served, BOTH, 11) is knows


def test_a_version_published_while_the_task_was_fetched_counts_when_the_one_before_it_knew() -> None:
    """Both know the 10 labels; the task is in the window of the newer one only."""
    assert latency.knows_all(Served(3, "v1", "v2"), BOTH, 10)


def test_webhooks_are_read_from_the_journal() -> None:
    """A place begins with milliseconds; a second annotation of a task is no further label, nor is a second webhook."""
    events = [
        ("1500-0", {"annotations": [{"id": 5, "task": 1}]}),
        ("1600-0", {"read": "everything"}),
        ("1700-3", {"annotations": [{"id": 6, "task": 1}]}),
        ("1800-0", {"annotations": [{"id": 5, "task": 1}, {"id": 7, "task": 2}]}),
    ]
    assert latency.received(events) == {5: Received(1.5, 1), 6: Received(1.7, 1), 7: Received(1.8, 2)}


def test_lags_are_of_the_first_version_with_the_label() -> None:
    """Two labels after 9: the second version has both; its webhook came first, so the first label waited for it."""
    submissions = [Submission(1, 21, 0.5, 2.5), Submission(2, 22, 0.6, 1.0)]
    webhooks = {22: Received(0.7, 1), 21: Received(0.9, 2)}
    found = latency.lags(submissions, webhooks, [FIRST, SECOND], 9)
    expected = [
        {"before_webhook": 0.4, "publishing": 1.1, "answering": 0.5, "submit_to_published": 1.5, "submit": 2.0},
        {"before_webhook": 0.1, "publishing": 0.3, "answering": 0.0, "submit_to_published": 0.4, "submit": 0.4},
    ]
    assert [item == pytest.approx(wanted) for item, wanted in zip(found, expected, strict=True)] == [True, True]
    assert latency.slowest(found)[0]["number"] == 1
    assert latency.mean_of(found, "publishing") == pytest.approx(0.7)


def test_labels_without_webhook_or_version_have_no_lag() -> None:
    """One webhook never came, one label is in no version."""
    submissions = [Submission(1, 21, 0.5, 0.6), Submission(2, 22, 0.6, 0.7)]
    assert latency.lags(submissions, {22: Received(0.65, 1)}, [FIRST], 10) == []


def test_stage_means_are_of_what_was_counted_between_the_readings() -> None:
    """Two versions, 1.2 s of fitting; one of them also read everything, 0.4 s: 0.2 s each; other work is left out."""

    def histogram(n: int, total: float) -> Histogram:
        return Histogram([0] * len(HISTOGRAM_BOUNDS) + [n], total)

    before = {("retrain", "fit"): histogram(3, 9.0), ("webhook", "gave_up"): histogram(1, 0.4)}
    after = {
        ("retrain", "fit"): histogram(5, 10.2),
        ("retrain", "read"): histogram(1, 0.4),
        ("webhook", "gave_up"): histogram(3, 1.2),
    }
    assert latency.stage_means([(before, after)], "retrain") == pytest.approx({"fit": 0.6, "read": 0.2})
    assert latency.counted(before, after, "webhook", "gave_up") == 2
    assert latency.counted(before, after, "webhook", "answered") == 0
    assert latency.stage_means([(after, after)], "retrain") == {}


def test_quantiles_are_of_all_values() -> None:
    """0, 1, …, 100 ms: percentiles are the values themselves."""
    found = demo_stack.quantiles([milliseconds / 1000 for milliseconds in range(101)], (95, 99))
    assert found == {"median": 0.05, "p95": 0.095, "p99": 0.099, "max": 0.1}


@pytest.mark.parametrize("text", ["", "a", "3,2", "-1", "1,2,3", "nan", "2,inf"])
def test_a_pace_that_is_none_is_refused(text: str) -> None:
    """With what is expected."""
    with pytest.raises(argparse.ArgumentTypeError, match="is not a pause in seconds, such as 2,3 or 0"):
        latency.pace_of(text)


def test_paces_and_pools_are_read() -> None:
    """One number is both bounds."""
    assert latency.pace_of("2,3") == (2.0, 3.0)
    assert latency.pace_of("0") == (0.0, 0.0)
    assert latency.pool_and_labels("1000:10") == (1000, 10)
    assert latency.blocks(25, 10) == [10, 10, 5]


@pytest.mark.parametrize("text", ["1000", "1000:1", "10:10", "a:5", ":", "-5:2"])
def test_a_pool_that_is_none_is_refused(text: str) -> None:
    """Two labels at least, fewer than tasks."""
    with pytest.raises(argparse.ArgumentTypeError, match="is not TASKS:LABELS"):
        latency.pool_and_labels(text)


def test_made_embeddings_lie_around_anchors_of_their_class() -> None:
    """The nearest anchor is of the row's class, for clusters far apart; every class comes up."""
    anchors = made_projects.anchors_without_pictures(400, seed=0)
    embeddings, labels = made_projects.made_embeddings(anchors, 500, np.random.default_rng(1))
    assert embeddings.shape == (500, 400)
    assert embeddings.dtype == np.float16
    distances = np.linalg.norm(embeddings[:, None].astype(np.float32) - anchors.embeddings[None], axis=2)
    assert [anchors.labels[row] for row in distances.argmin(axis=1)] == labels
    assert len(set(labels)) == made_projects.N_CLASSES
    spread = np.std(embeddings[labels.index("class 0")] - anchors.embeddings, axis=1).min()
    assert spread == pytest.approx(made_projects.NOISE * anchors.embeddings.std(axis=0).mean(), rel=0.15)


class Published:
    """A registry whose published version changes at every look."""

    def __init__(self) -> None:
        self.names = iter(["v1", "v1", "v2", None, "v3"])
        self.last: str | None = None

    def published(self, project_id: int) -> str | None:
        self.last = next(self.names, self.last)
        return self.last

    def record(self, project_id: int, version: str) -> VersionRecord:
        return VersionRecord.from_json(
            dict.fromkeys(VersionRecord.__dataclass_fields__)
            | {"version": version, "labels_used": int(version[1:]), "window": [project_id]}
        )


def test_every_version_is_seen_once_in_order() -> None:
    """Three versions, one of them looked at twice, and a moment in which there is none."""
    watcher = latency.Watcher(Published(), 7)  # type: ignore[arg-type]
    with watcher.watching():
        while len(watcher.publications()) < 3:
            pass
    found = watcher.publications()
    assert [(item.version, item.labels_used, item.window) for item in found] == [
        (f"v{number}", number, frozenset({7})) for number in (1, 2, 3)
    ]
    assert all(one.at <= other.at for one, other in pairwise(found))
    assert latency.published_with(found, 2) is found[1]
    assert latency.published_with(found, 4) is None


def test_projects_are_removed_with_what_the_service_kept_and_no_others(tmp_path: Path) -> None:
    """Project 1 goes, folder and what was moved aside; 12 stays, and so does what was moved aside of it."""
    deleted = []

    def answer(request: httpx.Request) -> httpx.Response:
        deleted.append((request.method, request.url.path))
        return httpx.Response(204)

    registry = Registry(tmp_path)
    for project_id in (1, 12, 12):
        registry.forget(project_id)
        (registry.project_directory(project_id) / "embeddings").mkdir()
    services = SimpleNamespace(registry=registry, jobs=SimpleNamespace(queues=lambda: []))
    client = httpx.Client(transport=httpx.MockTransport(answer), base_url="http://label-studio")
    with client, made_projects.removed_afterwards(services, client) as project_ids:  # type: ignore[arg-type]
        project_ids.append(1)
        assert (tmp_path / "1" / "embeddings").is_dir()
    assert deleted == [("DELETE", "/api/projects/1/")]
    assert sorted(path.name.partition("-")[0] for path in tmp_path.iterdir()) == ["12", "12.gone"]


def test_what_does_not_come_in_time_ends_the_benchmark() -> None:
    """With its name."""
    with pytest.raises(SystemExit, match="a version of project 3 did not come within 0 s"):
        made_projects.wait_until(lambda: False, "a version of project 3", 0)


def test_quiet_is_when_no_job_waits_and_none_runs() -> None:
    """Queues of two waiting jobs, of a running one, of neither."""

    class Queue:
        def __init__(self, n_waiting: int, n_running: int) -> None:
            self.n_waiting = n_waiting
            self.started_job_registry = SimpleNamespace(get_job_count=lambda *, cleanup: n_running)

        def __len__(self) -> int:
            return self.n_waiting

    def quiet(*queues: Queue) -> bool:
        services = SimpleNamespace(jobs=SimpleNamespace(queues=lambda: list(queues)))
        return made_projects.is_quiet(services)  # type: ignore[arg-type]

    assert quiet(Queue(0, 0), Queue(0, 0))
    assert not quiet(Queue(0, 0), Queue(2, 0))
    assert not quiet(Queue(0, 1), Queue(0, 0))


def test_members_and_versions_are_read_from_and_written_to_the_database(tmp_path: Path) -> None:
    """Tables as Label Studio 1.23.2 makes them, with the columns that are used."""
    path = tmp_path / "label_studio.sqlite3"
    with sqlite3.connect(path) as connection:
        connection.executescript(
            """
            CREATE TABLE project (id integer PRIMARY KEY, model_version text);
            CREATE TABLE task (id integer PRIMARY KEY, data text, project_id integer);
            CREATE TABLE projects_projectmember (
                id integer PRIMARY KEY, enabled bool, created_at datetime, updated_at datetime,
                project_id integer, user_id integer
            );
            INSERT INTO project VALUES (3, 'v1'), (4, NULL);
            INSERT INTO task VALUES (8, '{"image": "a.jpg"}', 3), (9, '{"image": "b.jpg"}', 4);
            """
        )
    connection.close()
    database = made_projects.LabelStudioDatabase(path)
    try:
        assert [database.model_version(number) for number in (3, 4, 5)] == ["v1", None, None]
        assert database.task_ids(3) == {"a.jpg": 8}
        database.add_members(3, [1, 2])
        with sqlite3.connect(path) as connection:
            found = connection.execute("SELECT enabled, project_id, user_id FROM projects_projectmember").fetchall()
        connection.close()
    finally:
        database.close()
    assert found == [(1, 3, 1), (1, 3, 2)]
