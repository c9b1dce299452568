"""The lag a labeler sees: real Label Studio, Redis, gunicorn and worker, people at a person's pace.

Rows of the table, each on projects of its own whose embeddings are made up (see benchmarks.made_projects):

- zero-lag: one person labels; how long Submit and the next task take, and whether that task was chosen by a version
  that knows the label just submitted. Every few submits come some to a project of the same size without a backend.
- publish: from the webhook to the published version, pools of several sizes taken in turns.
- five: several people at once, in turns with a project without a backend; how long until a version has each label.

How it is known that a task was chosen by a version with the label: after Submit was answered, and before the next task
is asked for, `model_version` of the project is read from Label Studio's database (well below a millisecond). Versions
only get newer, so the queue is ordered by that one or a newer one; the answer brings the task's prediction, which
names the version that ordered it at the latest. It counts if the record of the first tells of all labels submitted so
far, and the window of one of the two holds the task.

When a webhook was received is told by its entry in the project's journal in Redis, in whole milliseconds; when a
version was published by looking every few milliseconds.

    python -m benchmarks.latency [--quick] [--rows zero-lag publish five] [--submits 110] [--pace 2,3]
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
from PIL import Image

from backend.adapters.backbones import load_backbone
from backend.adapters.jobs import Histogram
from backend.adapters.registry import Registry
from backend.config import Settings
from backend.services import Services
from benchmarks import RESULTS, SHARED, WEIGHTS
from benchmarks.demo_stack import label_studio_client, quantiles, running_demo
from benchmarks.made_projects import (
    Anchors,
    LabelStudioDatabase,
    MadeProject,
    anchors_of_pictures,
    anchors_without_pictures,
    choice,
    connect_project,
    is_quiet,
    made_embeddings,
    make_project,
    removed_afterwards,
    sign_up,
    wait_until,
)

PICTURES = SHARED / "data" / "clothing"
ROWS = ("zero-lag", "publish", "five")

LOOK_EVERY_S = 0.003
"""Pause between two looks at which version is published; a look takes a twentieth of a millisecond."""

BLOCK = 10
"""Submits in a row before others take their turn."""

BASELINE_SUBMITS = 3
"""Submits to the project without a backend after each block."""

PATIENCE_S = 600.0
"""Longest wait for the jobs after a block, and for a version with its last label."""

OBSERVED_S = 0.1
"""Pause after the end of a retrain until its stages are counted in the histograms."""

SLOWEST = 5

Answer = dict[str, Any]
Histograms = Mapping[tuple[str, str], Histogram]


@dataclass(frozen=True)
class Submission:
    """One label: seconds since 1970 at which Submit was sent and answered."""

    task_id: int
    annotation_id: int
    started: float
    answered: float


@dataclass(frozen=True)
class Received:
    """A webhook: when (seconds since 1970) it was written to the journal, and how many tasks had a label by then."""

    at: float
    n_tasks: int


@dataclass(frozen=True)
class Publication:
    """A version as it was found published: when (seconds since 1970), and what its record tells."""

    at: float
    version: str
    labels_used: int
    window: frozenset[int]


@dataclass(frozen=True)
class Served:
    """A task that Label Studio handed out.

    ordered_by: the version that ordered the queue just before it was asked for. predicted_by: the version of the
    prediction that came with it; None without one.
    """

    task_id: int
    ordered_by: str | None
    predicted_by: str | None


@dataclass
class Measured:
    """What one project's people went through; lists in the order of their submits."""

    submissions: list[Submission] = field(default_factory=list)
    next_s: list[float] = field(default_factory=list)
    served: list[Served] = field(default_factory=list)

    @property
    def n_tasks(self) -> int:
        """Tasks labeled; fewer than submits where Label Studio hands one to two people who ask at once."""
        return len({item.task_id for item in self.submissions})


# -- arithmetic --------------------------------------------------------------------------------------------------------


def knows_all(served: Served, publications: Mapping[str, Publication], n_labels: int) -> bool:
    """Whether the task was certainly chosen by a version that knows all `n_labels` labels submitted before it."""
    first = publications.get(served.ordered_by or "")
    last = publications.get(served.predicted_by or "")
    if first is None or first.labels_used < n_labels:
        return False
    return served.task_id in first.window or (last is not None and served.task_id in last.window)


def received(events: Sequence[tuple[str, Any]]) -> dict[int, Received]:
    """Annotation id → its webhook, in the journal's order.

    The place of an event in the journal begins with Redis' clock, in milliseconds.
    """
    found: dict[int, Received] = {}
    tasks: set[int] = set()
    for place, event in events:
        for annotation in event.get("annotations", []):
            tasks.add(int(annotation["task"]))
            found.setdefault(int(annotation["id"]), Received(int(place.partition("-")[0]) / 1000, len(tasks)))
    return found


def published_with(publications: Sequence[Publication], n_labels: int) -> Publication | None:
    """The first version, in order of publication, trained on at least `n_labels` labels."""
    return next((item for item in publications if item.labels_used >= n_labels), None)


def stage_means(readings: Sequence[tuple[Histograms, Histograms]], work: str) -> dict[str, float]:
    """Stage → mean seconds of what was counted between the two readings of each pair.

    A stage that only some of the work had counts as nothing in the rest of it, so that the means add up.
    """
    totals: dict[str, float] = {}
    n = 0
    for before, after in readings:
        for name, stage in after:
            if name == work:
                earlier = before.get((name, stage), Histogram([0], 0.0))
                totals[stage] = totals.get(stage, 0.0) + after[name, stage].total - earlier.total
        n += max((counted(before, after, name, stage) for name, stage in after if name == work), default=0)
    return {stage: total / n for stage, total in totals.items()} if n else {}


def counted(before: Histograms, after: Histograms, work: str, stage: str) -> int:
    """How often a stage was counted between two readings."""
    readings = [found[work, stage].cumulative[-1] if (work, stage) in found else 0 for found in (before, after)]
    return readings[1] - readings[0]


def lags(
    submissions: Sequence[Submission],
    webhooks: Mapping[int, Received],
    publications: Sequence[Publication],
    n_before: int,
) -> list[dict[str, float]]:
    """Of each label that a version has: seconds from one step to the next; `n_before` labels were there at the start.

    before_webhook: Submit sent → webhook in the journal. publishing: → version with the label published.
    answering: → Submit answered; negative when the answer did not wait for the version.

    A label is in the first version with labels of as many tasks as had come up to it in the journal, the order in which
    a retrain takes them. Labels whose webhook never came are left out.
    """
    found = []
    for submission in submissions:
        webhook = webhooks.get(submission.annotation_id)
        publication = webhook and published_with(publications, n_before + webhook.n_tasks)
        if webhook is None or publication is None:
            continue
        found.append(
            {
                "before_webhook": webhook.at - submission.started,
                "publishing": publication.at - webhook.at,
                "answering": submission.answered - publication.at,
                "submit_to_published": publication.at - submission.started,
                "submit": submission.answered - submission.started,
            }
        )
    return found


def pool_and_labels(text: str) -> tuple[int, int]:
    """(tasks, labels to begin with) of `1000:10`."""
    pool, _, labels = text.partition(":")
    if not (pool.isdigit() and labels.isdigit() and 2 <= int(labels) < int(pool)):
        raise argparse.ArgumentTypeError(f"{text!r} is not TASKS:LABELS with 2 ≤ LABELS < TASKS, such as 1000:10")
    return int(pool), int(labels)


def pace_of(text: str) -> tuple[float, float]:
    """Shortest and longest pause, in seconds, of `2,3`; a single number is both."""
    try:
        bounds = [float(part) for part in text.split(",")]
    except ValueError:
        bounds = []
    if len(bounds) not in (1, 2) or not 0 <= bounds[0] <= bounds[-1] < 3600:
        raise argparse.ArgumentTypeError(f"{text!r} is not a pause in seconds, such as 2,3 or 0")
    return bounds[0], bounds[-1]


# -- people and what is watched ----------------------------------------------------------------------------------------


class Watcher:
    """Sees which versions of a project are published, in a thread of its own.

    Records are read later, by `publications`, so that nothing is read while somebody waits. A version must be asked for
    before the service has deleted it from disk, KEEP_VERSIONS later.
    """

    def __init__(self, registry: Registry, project_id: int) -> None:
        self._registry = registry
        self._project_id = project_id
        self._seen: list[tuple[float, str]] = []
        self._publications: list[Publication] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name=f"watch-{project_id}", daemon=True)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watches meanwhile."""
        self._thread.start()
        try:
            yield
        finally:
            self._stop.set()
            self._thread.join()

    def publications(self) -> list[Publication]:
        """All so far, in order."""
        for at, version in self._seen[len(self._publications) :]:
            record = self._registry.record(self._project_id, version)
            self._publications.append(Publication(at, version, record.labels_used, frozenset(record.window)))
        return self._publications

    def _watch(self) -> None:
        while not self._stop.wait(LOOK_EVERY_S):
            version = self._registry.published(self._project_id)
            if version is not None and (not self._seen or self._seen[-1][1] != version):
                self._seen.append((time.time(), version))


class Person:
    """Takes a task, looks at it, submits the right label.

    held: the task that was handed out and is not submitted yet, as Label Studio's JSON.
    """

    def __init__(self, client: httpx.Client, project: MadeProject, pace: tuple[float, float], seed: int) -> None:
        self._client = client
        self._project = project
        self._pace = pace
        self._random = np.random.default_rng(seed)
        self.held: dict[str, Any] | None = None

    def take(self) -> tuple[dict[str, Any], float]:
        """Gets the next task; it as JSON, and the seconds it took."""
        started = time.time()
        answer = self._client.get(f"/api/projects/{self._project.id}/next")
        took = time.time() - started
        task: dict[str, Any] = answer.raise_for_status().json()
        self.held = task
        return task, took

    def look(self) -> None:
        """The pause in which a person thinks."""
        time.sleep(self._random.uniform(*self._pace))

    def submit(self) -> Submission:
        """Submits the label of the task held as the editor does."""
        task = self.held
        assert task is not None
        label = self._project.labels[task["data"]["image"]]
        started = time.time()
        answer = self._client.post(
            f"/api/tasks/{task['id']}/annotations/", json={"result": choice(label), "lead_time": 1.0}
        )
        answered = time.time()
        answer.raise_for_status()
        return Submission(int(task["id"]), int(answer.json()["id"]), started, answered)


@dataclass(frozen=True)
class Stack:
    """The running demo, and what projects are made from."""

    facts: Mapping[str, Any]
    services: Services
    database: LabelStudioDatabase
    client: httpx.Client
    anchors: Anchors
    backbone: tuple[str, int]
    seed: int

    def project(self, name: str, pool: int, n_labeled: int, *, connected: bool) -> MadeProject:
        """A new project of so many tasks, so many of them labeled."""
        random = np.random.default_rng([self.seed, pool, n_labeled])
        embeddings, labels = made_embeddings(self.anchors, pool, random)
        classes = sorted(set(self.anchors.labels))
        started = time.monotonic()
        project = make_project(self.services, f"{name} {pool}", labels, n_labeled, classes)
        say(f"imported project={project.id} tasks={pool} took={time.monotonic() - started:.1f}s")
        if not connected:
            return project
        started = time.monotonic()
        project = connect_project(self.services, self.database, project, embeddings, self.backbone)
        say(f"connected project={project.id} tasks={pool} took={time.monotonic() - started:.1f}s")
        return project

    def wait_until_quiet(self) -> None:
        """Lets the service finish what it does after labels have come."""
        wait_until(lambda: is_quiet(self.services), "the end of all jobs", PATIENCE_S)


class Session:
    """One person at one project, block after block."""

    def __init__(self, stack: Stack, project: MadeProject, pace: tuple[float, float]) -> None:
        self.project = project
        self.measured = Measured()
        self.n_known = 0
        self._stack = stack
        self._person = Person(stack.client, project, pace, stack.seed)
        self._watcher = Watcher(stack.services.registry, project.id) if project.journal else None

    def watching(self) -> Any:
        """Watches the versions meanwhile, where there is a service."""
        return self._watcher.watching() if self._watcher else _nothing()

    def label(self, n: int) -> None:
        """Submits `n` labels, each with the task that follows."""
        database, measured, person = self._stack.database, self.measured, self._person
        for _ in range(n):
            if person.held is None:
                person.take()
            person.look()
            submission = person.submit()
            ordered_by = database.model_version(self.project.id) if self._watcher else None
            task, took = person.take()
            measured.submissions.append(submission)
            measured.next_s.append(took)
            if self._watcher is None:
                continue
            predictions = [item.get("model_version") for item in task.get("predictions", [])]
            measured.served.append(Served(task["id"], ordered_by, predictions[0] if predictions else None))
            # A version seen now may have been published after the task was chosen; it is told by its own name.
            known = {item.version: item for item in self._watcher.publications()}
            n_labels = self.project.n_labeled + len(measured.submissions)
            self.n_known += knows_all(measured.served[-1], known, n_labels)

    def finish(self) -> tuple[list[Publication], int]:
        """Waits for a version with all labels, and for the end of its job; (publications, labels that none has)."""
        assert self._watcher is not None
        n_labels = self.project.n_labeled + self.measured.n_tasks
        return await_labels(self._stack, self.project.id, self._watcher, n_labels)


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def await_labels(stack: Stack, project_id: int, watcher: Watcher, n_labels: int) -> tuple[list[Publication], int]:
    """Waits for a version with so many labels, and for the end of its job; (publications, labels that none has)."""
    jobs = stack.services.jobs
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if published_with(watcher.publications(), n_labels) is not None and jobs.training(project_id) == "idle":
            break
        time.sleep(0.05)
    time.sleep(OBSERVED_S)
    publications = list(watcher.publications())
    return publications, n_labels - max((item.labels_used for item in publications), default=0)


# -- rows --------------------------------------------------------------------------------------------------------------


def measure_zero_lag(stack: Stack, arguments: argparse.Namespace) -> Iterator[Answer]:
    """A row per pool: one person, a project without a backend beside it."""
    for pool, n_labeled in arguments.zero_lag:
        with removed_afterwards(stack.services, stack.client) as project_ids:
            project = stack.project("Zero lag", pool, n_labeled, connected=True)
            project_ids.append(project.id)
            baseline = stack.project("Without backend", pool, n_labeled, connected=False)
            project_ids.append(baseline.id)
            yield from in_turns(
                stack,
                [Session(stack, project, arguments.pace)],
                Session(stack, baseline, (0, 0)),
                [f"zero-lag {pool} from {n_labeled}"],
                n=arguments.submits,
                block=BLOCK,
                pace=arguments.pace,
            )


def measure_publish(stack: Stack, arguments: argparse.Namespace) -> Iterator[Answer]:
    """A row per pool, all with as many labels, a few submits to each in turn."""
    with removed_afterwards(stack.services, stack.client) as project_ids:
        sessions = []
        for pool in arguments.publish:
            project = stack.project("Publish", pool, arguments.publish_labels, connected=True)
            project_ids.append(project.id)
            sessions.append(Session(stack, project, arguments.pace))
        names = [f"publish {pool} from {arguments.publish_labels}" for pool in arguments.publish]
        rows = list(
            in_turns(stack, sessions, None, names, n=arguments.publish_submits, block=BLOCK // 2, pace=arguments.pace)
        )
        for row in rows:
            medians = [item["webhook_to_published_s"]["median"] for item in (row, rows[0])]
            yield row | {"times_first_pool": round(medians[0] / medians[1], 2)}


def in_turns(
    stack: Stack,
    sessions: Sequence[Session],
    baseline: Session | None,
    names: Sequence[str],
    *,
    n: int,
    block: int,
    pace: tuple[float, float],
) -> Iterator[Answer]:
    """`n` submits to each session, `block` at a time, then BASELINE_SUBMITS to the baseline; a row per session.

    What the service does beside retraining (evaluating, pruning, comparing) goes on meanwhile, as it does in life,
    except in the turns of the baseline.
    """
    services = stack.services
    load_before = os.getloadavg()[0]
    spent: list[list[tuple[Histograms, Histograms]]] = [[] for _ in sessions]
    done = 0
    # One after the other: whoever is not watched is not labeled either.
    with_watchers = [session.watching() for session in sessions]
    for watching in with_watchers:
        watching.__enter__()
    try:
        while done < n:
            now = min(block, n - done)
            for session, readings in zip(sessions, spent, strict=True):
                before = services.jobs.histograms()
                session.label(now)
                session.finish()
                readings.append((before, services.jobs.histograms()))
            if baseline is not None:
                stack.wait_until_quiet()
                baseline.label(BASELINE_SUBMITS)
            done += now
            say(f"{names[0]}: {done} of {n}")
        finished = [session.finish() for session in sessions]
    finally:
        for watching in with_watchers:
            watching.__exit__(None, None, None)
    for name, session, (publications, n_lost), readings in zip(names, sessions, finished, spent, strict=True):
        row = row_of(stack, name, session.project, session.measured, publications, readings, baseline)
        row |= {
            "pace_s": list(pace),
            "labels_lost": n_lost,
            "next_knows_last_label": session.n_known,
            "next_knows_last_label_share": round(session.n_known / n, 4),
            "load_average": [round(load_before, 2), round(os.getloadavg()[0], 2)],
        }
        yield row


def row_of(
    stack: Stack,
    name: str,
    project: MadeProject,
    measured: Measured,
    publications: Sequence[Publication],
    readings: Sequence[tuple[Histograms, Histograms]],
    baseline: Session | None,
) -> Answer:
    """The figures that all rows have."""
    events = stack.services.jobs.events_since(project.id, project.journal)
    if events is None:
        raise SystemExit(f"the journal of project {project.id} no longer reaches back to its start; submit fewer")
    found = lags(measured.submissions, received(events), publications, project.n_labeled)
    if not found:
        raise SystemExit(f"no label of project {project.id} came into a version; the worker's log says why")
    submits = [item.answered - item.started for item in measured.submissions]
    stages = stage_means(readings, "retrain")
    publishing = [item["publishing"] for item in found]
    row: Answer = {
        "row": name,
        "pool": len(project.labels),
        "labels_from": project.n_labeled,
        "labels_to": project.n_labeled + len(submits),
        "submits": len(submits),
        "data": stack.anchors.source,
        "submit_s": quantiles(submits, (95, 99)),
        "next_s": quantiles(measured.next_s, (95, 99)),
        "submit_to_published_s": quantiles([item["submit_to_published"] for item in found], (95, 99)),
        "webhook_to_published_s": quantiles(publishing, (95, 99)),
        "versions": len(publications) - 1,
        "webhooks_answered_in_time": sum(counted(*pair, "webhook", "answered") for pair in readings),
        "webhooks_gave_up": sum(counted(*pair, "webhook", "gave_up") for pair in readings),
        "mean_s": {
            "before_webhook": mean_of(found, "before_webhook"),
            "webhook_to_published": mean_of(found, "publishing"),
            "stages": {stage: round(seconds, 4) for stage, seconds in stages.items()},
            "outside_stages": round(float(np.mean(publishing)) - sum(stages.values()), 4),
            "published_to_answer": mean_of(found, "answering"),
        },
        "slowest": slowest(found),
    }
    if baseline is not None:
        bare = [item.answered - item.started for item in baseline.measured.submissions]
        row["baseline_submits"] = len(bare)
        row["baseline_submit_s"] = quantiles(bare, (95,))
        row["baseline_next_s"] = quantiles(baseline.measured.next_s, (95,))
        row["submit_times_baseline"] = round(float(np.median(submits) / np.median(bare)), 2)
    return row


def mean_of(found: Sequence[Mapping[str, float]], name: str) -> float:
    """Mean of one figure."""
    return round(float(np.mean([item[name] for item in found])), 4)


def slowest(found: Sequence[Mapping[str, float]]) -> list[dict[str, float]]:
    """The labels that took longest to be published, with their number, from 1."""
    order = np.argsort([-item["publishing"] for item in found], kind="stable")[:SLOWEST]
    return [
        {"number": int(index) + 1, **{name: round(seconds, 3) for name, seconds in found[index].items()}}
        for index in order
    ]


def measure_five(stack: Stack, arguments: argparse.Namespace) -> Iterator[Answer]:
    """One row: several people at once, members of the project, in turns with a project without a backend."""
    pool, n_labeled = arguments.five
    services = stack.services
    load_before = os.getloadavg()[0]
    url = stack.facts["label_studio_url"]
    invitation = stack.client.get("/api/invite").raise_for_status().json()["invite_url"]
    name = f"{time.time_ns():x}"
    users = [
        sign_up(url, invitation, f"labeler-{number}-{name}@example.com", f"labels {name}")
        for number in range(arguments.labelers)
    ]
    clients = [label_studio_client(url, token) for _, token in users]
    with removed_afterwards(services, stack.client) as project_ids:
        project = stack.project("Several people", pool, n_labeled, connected=True)
        project_ids.append(project.id)
        bare = stack.project("Several people, without backend", pool, n_labeled, connected=False)
        project_ids.append(bare.id)
        for made in (project, bare):
            stack.database.add_members(made.id, [user_id for user_id, _ in users])
        crews = [
            [Person(client, made, arguments.pace, stack.seed + index) for index, client in enumerate(clients)]
            for made in (project, bare)
        ]
        measured, without = Measured(), Measured()
        watcher = Watcher(services.registry, project.id)
        readings = []
        found: tuple[list[Publication], int] = [], 0
        with watcher.watching():
            for block in blocks(arguments.labels_each, BLOCK // 2):
                before = services.jobs.histograms()
                together(crews[0], block, measured, watcher.publications)
                found = await_labels(stack, project.id, watcher, n_labeled + measured.n_tasks)
                readings.append((before, services.jobs.histograms()))
                stack.wait_until_quiet()
                together(crews[1], block, without, lambda: None)
                say(f"{arguments.labelers} people: {len(measured.submissions)} labels")
        publications, n_lost = found
        measured.submissions.sort(key=lambda item: item.started)
        row = row_of(stack, f"five {pool} from {n_labeled}", project, measured, publications, readings, None)
        submits = [item.answered - item.started for item in without.submissions]
        yield row | {
            "people": arguments.labelers,
            "pace_s": list(arguments.pace),
            "labels_lost": n_lost,
            "tasks_labeled": measured.n_tasks,
            "baseline_submits": len(submits),
            "baseline_submit_s": quantiles(submits, (95,)),
            "baseline_next_s": quantiles(without.next_s, (95,)),
            "submit_times_baseline": round(row["submit_s"]["median"] / float(np.median(submits)), 2),
            "load_average": [round(load_before, 2), round(os.getloadavg()[0], 2)],
        }
    for client in clients:
        client.close()


def blocks(n: int, size: int) -> list[int]:
    """`n` in parts of `size`, the last one smaller."""
    return [min(size, n - start) for start in range(0, n, size)]


def together(crew: Sequence[Person], n: int, measured: Measured, after_each: Callable[[], object]) -> None:
    """Everybody submits `n` labels, at the same time; raises what the first of them ran into."""
    guard = threading.Lock()
    failures: list[Exception] = []

    def work(person: Person) -> None:
        try:
            if person.held is None:
                person.look()  # so that not all ask for their first task at the same moment
                person.take()
            for _ in range(n):
                person.look()
                submission = person.submit()
                _, took = person.take()
                with guard:
                    measured.submissions.append(submission)
                    measured.next_s.append(took)
                    after_each()
        except Exception as exc:
            failures.append(exc)

    threads = [threading.Thread(target=work, args=(person,)) for person in crew]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


# -- the command -------------------------------------------------------------------------------------------------------


MEASURES: Mapping[str, Callable[[Stack, argparse.Namespace], Iterator[Answer]]] = {
    "zero-lag": measure_zero_lag,
    "publish": measure_publish,
    "five": measure_five,
}


def main(argv: Sequence[str] | None = None) -> None:
    """Measures the rows, puts them beside those measured before in a JSON file, prints the tables."""
    arguments = parsed(argv)
    name = arguments.name or ("latency-quick" if arguments.quick else "latency")
    path = RESULTS / f"{name}.json"
    measured = {} if not path.is_file() else {row["row"]: row for row in json.loads(path.read_text())["rows"]}
    fresh = []
    with tempfile.TemporaryDirectory(prefix="latency-") as folder, running_stack(arguments, Path(folder)) as stack:
        for kind in arguments.rows:
            for row in MEASURES[kind](stack, arguments):
                measured.pop(row["row"], None)  # what is measured anew goes to the end
                measured[row["row"]] = row
                fresh.append(row)
                RESULTS.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps({"rows": list(measured.values())}, indent=2) + "\n")
    print_tables(fresh)


def parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line; `--quick` only changes what is not given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few submits and no large pool: about four minutes")
    parser.add_argument("--rows", nargs="+", choices=ROWS, help="which rows; default: all, --quick: not publish")
    parser.add_argument("--pace", type=pace_of, default=(2.0, 3.0), help="pause before each submit, s: 2,3 or 0")
    parser.add_argument("--submits", type=int, help="submits of each zero-lag row")
    parser.add_argument("--zero-lag", nargs="+", type=pool_and_labels, help="TASKS:LABELS to begin with, each a row")
    parser.add_argument("--publish", nargs="+", type=int, help="pools of the publish rows, tasks")
    parser.add_argument("--publish-labels", type=int, default=100, help="labels to begin with")
    parser.add_argument("--publish-submits", type=int, help="submits to each pool")
    parser.add_argument("--five", type=pool_and_labels, default=(1000, 100), help="TASKS:LABELS of the five-people row")
    parser.add_argument("--labelers", type=int, default=5)
    parser.add_argument("--labels-each", type=int)
    parser.add_argument("--images", type=Path, help="folder of class folders whose embeddings are made from")
    parser.add_argument("--weights", type=Path, help="BACKBONE_WEIGHTS for mobilenet_v2")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--run-dir", type=Path, help="folder of the demo, kept with its logs; default: a new one")
    parser.add_argument("--name", help="name of the JSON file")
    arguments = parser.parse_args(argv)
    if arguments.quick:
        defaults: Answer = {
            "rows": ["zero-lag", "five"], "submits": 16, "zero_lag": [(1000, 10), (10_000, 200)],
            "publish": [1000, 10_000], "publish_submits": 10, "labels_each": 5,
        }  # fmt: skip
    else:
        defaults = {
            "rows": list(ROWS), "submits": 110, "zero_lag": [(1000, 10), (10_000, 390)],
            "publish": [1000, 10_000, 100_000], "publish_submits": 20, "labels_each": 20,
        }  # fmt: skip
    for option, value in defaults.items():
        if getattr(arguments, option) is None:
            setattr(arguments, option, value)
    return arguments


@contextmanager
def running_stack(arguments: argparse.Namespace, folder: Path) -> Iterator[Stack]:
    """The demo on a handful of pictures, and anchors by the backbone it uses."""
    weights = arguments.weights or (WEIGHTS if WEIGHTS.is_file() else None)
    images = arguments.images or (PICTURES if PICTURES.is_dir() else None)
    if weights is None:
        images, weights = None, random_weights(folder / "weights.pth", arguments.seed)
    backbone = load_backbone("mobilenet_v2", weights)
    if images is not None:
        anchors = anchors_of_pictures(backbone, images, arguments.seed)
    else:
        anchors = anchors_without_pictures(backbone.dim, arguments.seed)
    identity = backbone.fingerprint, backbone.dim
    del backbone
    gc.collect()
    say(f"embeddings from {anchors.source}")
    run_dir = arguments.run_dir or folder / "run"
    with running_demo(a_few_pictures(run_dir / "pictures"), run_dir, weights) as facts:
        services = Services(Settings.from_environment(run_dir / "settings.env"))
        database = LabelStudioDatabase(run_dir / "label-studio-data" / "label_studio.sqlite3")
        client = label_studio_client(facts["label_studio_url"], facts["label_studio_token"])
        try:
            yield Stack(facts, services, database, client, anchors, identity, arguments.seed)
        finally:
            client.close()
            database.close()
            services.close()


def random_weights(path: Path, seed: int) -> Path:
    """A file of mobilenet_v2's shape for the demo to start with, where there are no weights."""
    import torch
    from torchvision.models import mobilenet_v2

    torch.manual_seed(seed)
    torch.save(mobilenet_v2(weights=None).state_dict(), path)
    return path


def a_few_pictures(folder: Path) -> Path:
    """Noise in two class folders: what the demo starts with."""
    for label in ("a", "b"):
        (folder / label).mkdir(parents=True, exist_ok=True)
        for number in range(4):
            pixels: npt.NDArray[np.uint8] = np.random.default_rng(number).integers(0, 255, (64, 64, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{number}.png")
    return folder


def print_tables(rows: Sequence[Answer]) -> None:
    """What people waited for; and where the time went."""
    print(
        f"\n{'seconds':<26}{'submits':>8}  {'Submit median':>13}{'p95':>7}{'p99':>7}{'max':>7}  {'bare':>6}"
        f"  {'next':>6}{'bare':>7}  {'knows':>6}  {'webhook→version':>16}{'p95':>7}{'max':>7}"
        f"  {'Submit→version max':>18}"
        f"  {'lost':>4}"
    )
    for row in rows:
        submit, publishing = row["submit_s"], row["webhook_to_published_s"]
        known = row.get("next_knows_last_label_share")
        print(
            f"{row['row']:<26}{row['submits']:>8}  {submit['median']:>13.3f}{submit['p95']:>7.3f}{submit['p99']:>7.3f}"
            f"{submit['max']:>7.3f}  {figure(row.get('baseline_submit_s')):>6}  {row['next_s']['median']:>6.3f}"
            f"{figure(row.get('baseline_next_s')):>7}  {'' if known is None else f'{known:.1%}':>6}"
            f"  {publishing['median']:>16.3f}{publishing['p95']:>7.3f}{publishing['max']:>7.3f}"
            f"  {row['submit_to_published_s']['max']:>18.3f}  {row['labels_lost']:>4}"
        )
    print("\nmean milliseconds: Submit → webhook | stages | outside the stages | published → answer")
    for row in rows:
        means = row["mean_s"]
        stages = " ".join(f"{name} {1000 * seconds:.0f}" for name, seconds in means["stages"].items())
        print(
            f"{row['row']:<26}{1000 * means['before_webhook']:.0f} | {stages} | {1000 * means['outside_stages']:.0f}"
            f" | {1000 * means['published_to_answer']:.0f}"
            f"   (answers gave up {row['webhooks_gave_up']}, load {row['load_average'][0]}–{row['load_average'][1]})"
        )


def figure(found: Mapping[str, float] | None) -> str:
    """The median, if it was measured."""
    return f"{found['median']:.3f}" if found else ""


def say(text: str) -> None:
    """A line about how far it is."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
