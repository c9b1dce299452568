"""The ledger: what people have answered, kept up to date by webhooks instead of read anew at every label.

Webhooks are written to a journal (`Jobs.record_event`) before a retrain is requested. A retrain that finds nothing but
answers there, adds them to what it knows; anything else makes it read everything: no event at all (somebody asked for
another reason), an event that says so, one that does not hold its answers, a gap, another labeling config. Label Studio
stays the source of truth: every event brings its own count of answers, which is compared after publishing (`is_true`),
and the regular reconciliation reads everything whenever something changed.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from backend.adapters.jobs import Jobs
from backend.adapters.label_studio import LabelStudioClient, answers_of_event
from backend.choices import parse_labeling_config
from backend.schema import AnnotatedTask, Annotation, AnswerEvent, Project

logger = logging.getLogger(__name__)

READ_EVERYTHING: Mapping[str, object] = {"read": "everything"}
"""The event after which what is known is read anew."""

_PLACE: Mapping[str, object] = {"read": "nothing"}
"""The event that only marks where in the journal everything was read; it means nothing to other processes."""

MAX_PROJECTS = 16
"""Projects whose answers are kept in memory, those used last."""


@dataclass(frozen=True)
class Answers:
    """A project as it was when its answers were last read, and all tasks that anybody answered or skipped.

    heard_at: when the last webhook told what the queue is ordered by, the project's `model_version`, in seconds by
    Redis' clock; None when that was read from Label Studio itself.
    """

    project: Project
    annotated: Sequence[AnnotatedTask]
    heard_at: float | None = None


@dataclass
class _Account:
    """What is known of one project, up to the event `mark` of its journal."""

    project: Project
    mark: str
    annotated: dict[int, AnnotatedTask]
    task_of: dict[int, int]  # annotation id → task id
    newest: int = 0  # the highest annotation id seen when everything was read
    count: int | None = None  # of annotations in Label Studio, as the last event told it
    heard_at: float | None = None  # see `Answers`
    deleted: set[int] = field(default_factory=set)  # ids of annotations that events said are gone

    def count_here(self) -> int:
        return len(self.task_of)

    def newest_seen(self) -> int:
        return max((self.newest, *self.task_of, *self.deleted))


class Ledger:
    """The answers of all projects, as one process knows them."""

    def __init__(self, *, label_studio: LabelStudioClient, jobs: Jobs, fields: Sequence[str] = ()) -> None:
        self._label_studio = label_studio
        self._jobs = jobs
        self._fields = fields  # of the tasks' data that are kept
        self._accounts: OrderedDict[int, _Account] = OrderedDict()

    def read(self, project_id: int) -> Answers:
        """All answers up to now, and how the project is configured."""
        account = self._accounts.get(project_id)
        if account is None or not self._bring_up_to_date(account):
            newest = account.newest_seen() if account else 0
            account = self._read_everything(project_id)
            account.newest = max(account.newest, newest)
        return self._keep(project_id, account)

    def known(self, project_id: int) -> Answers:
        """The same for one who does not ask because something happened: without any event nothing is read."""
        account = self._accounts.get(project_id)
        if account is not None and self._events(account) == []:
            return self._keep(project_id, account)
        return self.read(project_id)

    def is_true(self, project_id: int) -> bool:
        """Whether Label Studio counted as many annotations, at the last event, as are known here.

        False also for a moment when two people submit at once: the event of the one counts the other's, too.
        """
        account = self._accounts.get(project_id)
        return account is None or account.count is None or account.count == account.count_here()

    def counts(self, project_id: int, n_annotations: int) -> bool:
        """Whether so many annotations are known here, as far as that can be said: nothing may be, or news may wait.

        Events may tell of an annotation that is long deleted.
        """
        account = self._accounts.get(project_id)
        return account is None or self._events(account) != [] or account.count_here() == n_annotations

    def knows(self, project_id: int, tasks: Sequence[AnnotatedTask]) -> bool:
        """Whether webhooks told all that people answered to these tasks, which come as Label Studio has them."""
        account = self._accounts.get(project_id)
        if account is None:
            return False
        # A copy, so that the next retrain still finds the events it is asked for.
        account = replace(
            account,
            annotated=dict(account.annotated),
            task_of=dict(account.task_of),
            deleted=set(account.deleted),
        )
        if self._events(account) != [] and not self._bring_up_to_date(account):
            return False
        for item in tasks:
            known = account.annotated.get(item.task.id, AnnotatedTask(item.task, []))
            if known.task != item.task or _content(known.annotations) != _content(item.annotations):
                return False
        return True

    def _events(self, account: _Account) -> list[tuple[str, Any]] | None:
        """(place, event) of all that happened since the account was brought up to date; None if that is not known."""
        raw = self._jobs.events_since(account.project.id, account.mark)
        return None if raw is None else [(place, event) for place, event in raw if event != _PLACE]

    def _keep(self, project_id: int, account: _Account) -> Answers:
        self._accounts[project_id] = account
        self._accounts.move_to_end(project_id)
        while len(self._accounts) > MAX_PROJECTS:
            self._accounts.popitem(last=False)
        return Answers(account.project, list(account.annotated.values()), account.heard_at)

    def _read_everything(self, project_id: int) -> _Account:
        # The mark comes first: what happens while everything is read is applied again afterwards, and changes nothing.
        mark = self._jobs.record_event(project_id, _PLACE)
        project = self._label_studio.project(project_id)
        config = parse_labeling_config(project.label_config)
        annotated = self._label_studio.annotated_tasks(project_id, config.image_field, fields=self._fields)
        by_task = {item.task.id: item for item in annotated}
        task_of = {annotation.id: item.task.id for item in annotated for annotation in item.annotations}
        return _Account(project, mark, by_task, task_of, newest=max(task_of, default=0))

    def _bring_up_to_date(self, account: _Account) -> bool:
        """Whether the events since the account's mark tell all that happened; then they are in it."""
        raw = self._events(account)
        if not raw:
            return False
        image_field = parse_labeling_config(account.project.label_config).image_field
        events = [answers_of_event(event, image_field, self._fields) for _, event in raw]
        if not all(event is not None and event.label_config == account.project.label_config for event in events):
            return False
        if any(_is_old_news(account, event) for event in events if event is not None):
            return False
        for (place, _), event in zip(raw, events, strict=True):
            assert event is not None
            _apply(account, event)
            if event.model_version is not None:
                account.project = replace(account.project, model_version=event.model_version)
                account.heard_at = int(place.partition("-")[0]) / 1000
        account.mark = raw[-1][0]
        return True


def _content(annotations: Sequence[Annotation]) -> dict[int, tuple[object, ...]]:
    """What annotations say; when they were changed last is no part of that."""
    return {item.id: (item.result, item.was_cancelled, item.ground_truth) for item in annotations}


def _is_old_news(account: _Account, event: AnswerEvent) -> bool:
    """Whether an event tells of an annotation that is not there though it was made before everything was read.

    It was deleted, then, and somebody sends the event again: to believe it would bring the label back.
    """
    return any(
        annotation.id <= account.newest and annotation.id not in account.task_of
        for answered in event.answered
        for annotation in answered.annotations
    )


def _apply(account: _Account, event: AnswerEvent) -> None:
    """Events may come twice and out of order: of two states of an annotation the later counts, none of a deleted one.

    Label Studio gives an id once.
    """
    account.count = event.n_annotations
    account.deleted.update(event.deleted)
    for annotation_id in event.deleted:
        task_id = account.task_of.pop(annotation_id, None)
        if task_id is None:
            continue
        item = account.annotated[task_id]
        left = [annotation for annotation in item.annotations if annotation.id != annotation_id]
        if left:
            account.annotated[task_id] = AnnotatedTask(item.task, left)
        else:
            del account.annotated[task_id]
    for answered in event.answered:
        known = account.annotated.get(answered.task.id)
        annotations = {annotation.id: annotation for annotation in known.annotations} if known else {}
        for annotation in answered.annotations:
            if annotation.id in account.deleted:
                continue
            before = annotations.get(annotation.id)
            if before is None or before.updated_at <= annotation.updated_at:
                annotations[annotation.id] = annotation
            account.task_of[annotation.id] = answered.task.id
        if annotations:
            account.annotated[answered.task.id] = AnnotatedTask(answered.task, list(annotations.values()))
