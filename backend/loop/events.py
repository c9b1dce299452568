"""What Label Studio tells becomes a request for work; nothing is computed here, so that it is answered at once.

Apart from `backend.model`, whose base class brings torch along: the web service needs half a gigabyte less without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from backend.adapters.jobs import Jobs
from backend.adapters.label_studio import event_of_webhook
from backend.adapters.registry import Registry
from backend.errors import BadRequestError
from backend.loop.ledger import READ_EVERYTHING

LABEL_EVENTS = frozenset({"ANNOTATION_CREATED", "ANNOTATIONS_CREATED", "ANNOTATION_UPDATED", "ANNOTATIONS_DELETED"})
TASK_EVENTS = frozenset({"TASKS_CREATED", "TASKS_DELETED"})
START_TRAINING = "START_TRAINING"
PROJECT_UPDATED = "PROJECT_UPDATED"


class EventHandler:
    """Turns events of any project into requests."""

    def __init__(self, *, jobs: Jobs, registry: Registry) -> None:
        self._jobs = jobs
        self._registry = registry

    def handle(self, project_id: int, event: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Turns a webhook event into a request; returns at once. `ticket` is there when a new version will follow.

        Events that change neither labels nor tasks are fine and change nothing.
        """
        jobs = self._jobs
        if event in LABEL_EVENTS:
            jobs.record_event(project_id, event_of_webhook({**body, "action": event}) or READ_EVERYTHING)
            ticket, job = jobs.request_retrain(project_id)
            return {"job": job, "ticket": ticket}
        if event == START_TRAINING:
            jobs.record_event(project_id, READ_EVERYTHING)
            ticket, job = jobs.request_retrain(project_id, forced=True)
            return {"job": job, "ticket": ticket}
        if event in TASK_EVENTS:
            return {"job": jobs.request_embedding(project_id)}
        if event == PROJECT_UPDATED and self._config_changed(project_id, body):
            return {"job": jobs.request_reconciliation(project_id)}
        return {}

    def _config_changed(self, project_id: int, body: Mapping[str, Any]) -> bool:
        """Whether the event may have brought another labeling config; our own PATCHes make this event too."""
        project = body.get("project")
        config = project.get("label_config") if isinstance(project, Mapping) else None
        if config is None:
            return True
        facts = self._registry.project_facts(project_id)
        return facts is None or facts.get("label_config") != config


def project_id_of(raw: object) -> int:
    """The id in any of Label Studio's spellings: 3, '3', '3.1763721234' (id.created), {'id': 3}."""
    if isinstance(raw, Mapping):
        raw = raw.get("id")
    # Spelled out only if it is short: what stands there may be large. 3.5 is no id with a time, but '3.5' may be.
    text = raw if isinstance(raw, str) else ""
    if isinstance(raw, int | float) and abs(raw) < 2**63 and raw == int(raw):
        text = str(int(raw))
    number = text.partition(".")[0]
    if isinstance(raw, bool) or not (
        number.isascii() and number.isdigit() and len(number) <= 10 and 0 < int(number) < 2**31
    ):
        shown = repr(text[:80]) if text else type(raw).__name__
        raise BadRequestError(f"project {shown} is not a project id such as 3 or '3.1763721234'")
    return int(number)
