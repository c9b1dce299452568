"""The `LabelStudioMLBase` subclass: predict answers a request, an event becomes a retrain request, fit is the job.

It runs under this package's own server, under label-studio-ml 1.0.9's, and under a 2.x server, whose base class takes
`project_id, label_config` and calls `predict(tasks, context)` and `fit(event, data)`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from label_studio_ml.model import LabelStudioMLBase

from backend.adapters.jobs import Jobs
from backend.adapters.label_studio import event_of_webhook
from backend.config import Settings
from backend.errors import BadRequestError
from backend.loop.ledger import READ_EVERYTHING
from backend.schema import UNTRAINED
from backend.services import Services

RETRAIN = "RETRAIN"
"""The event with which the RQ job calls `fit`: train here and now."""

LABEL_EVENTS = frozenset({"ANNOTATION_CREATED", "ANNOTATIONS_CREATED", "ANNOTATION_UPDATED", "ANNOTATIONS_DELETED"})
TASK_EVENTS = frozenset({"TASKS_CREATED", "TASKS_DELETED"})
START_TRAINING = "START_TRAINING"
PROJECT_UPDATED = "PROJECT_UPDATED"


@cache
def services_from_environment() -> Services:
    """The services of a process whose server builds the model itself and can pass none."""
    return Services(Settings.from_environment())


class ActiveLearningModel(LabelStudioMLBase):  # type: ignore[misc]  # the base class has no types
    """A light handle on one project; what is heavy (backbone, heads, embeddings) is kept by `services`."""

    def __init__(
        self,
        project_id: str | int | None = None,
        label_config: str | None = None,
        services: Services | None = None,
        **kwargs: Any,
    ) -> None:
        self._services = services or services_from_environment()
        self._project_id = project_id_of(project_id) if project_id not in (None, "") else None
        # Not passed to the base class: its parser refuses some valid configs; ours is backend.choices.
        super().__init__(**kwargs)
        self._label_config = label_config or ""

    @property
    def model_version(self) -> str:
        """The published version of the project."""
        if self._project_id is None:
            return UNTRAINED
        return self._services.registry.published(self._project_id) or UNTRAINED

    def predict(
        self, tasks: Sequence[Mapping[str, Any]], context: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> list[dict[str, Any]]:
        """One prediction per task, in order; of Label Studio's `context` nothing is used."""
        if not tasks:
            return []
        project_id = self._project_id if self._project_id is not None else project_id_of(tasks[0].get("project"))
        return self._services.predictor.predict(project_id, self._label_config, tasks)

    def process_event(
        self, event: str, data: Mapping[str, Any], job_id: str = "", additional_params: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Turns a webhook event into a request; returns at once. `ticket` is there when a new version will follow.

        Events that change neither labels nor tasks are fine and change nothing.
        """
        project_id = self._project_id if self._project_id is not None else project_id_of(data.get("project"))
        jobs: Jobs = self._services.jobs
        if event in LABEL_EVENTS:
            jobs.record_event(project_id, event_of_webhook({**data, "action": event}) or READ_EVERYTHING)
            ticket, job = jobs.request_retrain(project_id)
            return {"job": job, "ticket": ticket}
        if event == START_TRAINING:
            jobs.record_event(project_id, READ_EVERYTHING)
            ticket, job = jobs.request_retrain(project_id, forced=True)
            return {"job": job, "ticket": ticket}
        if event in TASK_EVENTS:
            return {"job": jobs.request_embedding(project_id)}
        if event == PROJECT_UPDATED and self._config_changed(project_id, data):
            return {"job": jobs.request_reconciliation(project_id)}
        return {}

    def fit(self, first: Any = None, /, data: Any = None, *, event: str | None = None, **kwargs: Any) -> dict[str, Any]:
        """Trains when the RQ job calls (event RETRAIN); any other event only requests it, to keep requests short.

        label-studio-ml 1.0.9 calls `fit(tasks, event=…, data=…)`, 2.x calls `fit(event, data)`.
        """
        name = event if event is not None else str(first)
        if name == RETRAIN:
            if self._project_id is None:
                raise BadRequestError("fit needs a model that was built with a project_id")
            record = self._services.trainer.retrain(self._project_id)
            return {"model_version": record.version if record else self.model_version}
        return self.process_event(name, data or {})

    def _config_changed(self, project_id: int, data: Mapping[str, Any]) -> bool:
        """Whether the event may have brought another labeling config; our own PATCHes make this event too."""
        project = data.get("project")
        config = project.get("label_config") if isinstance(project, Mapping) else None
        if config is None:
            return True
        facts = self._services.registry.project_facts(project_id)
        return facts is None or facts.get("label_config") != config


def project_id_of(raw: object) -> int:
    """The id in any of Label Studio's spellings: 3, '3', '3.1763721234' (id.created), {'id': 3}."""
    if isinstance(raw, Mapping):
        raw = raw.get("id")
    text = str(raw).partition(".")[0]
    if isinstance(raw, bool) or not (text.isascii() and text.isdigit() and len(text) <= 10 and 0 < int(text) < 2**31):
        raise BadRequestError(f"project {str(raw)[:80]!r} is not a project id such as 3 or '3.1763721234'")
    return int(text)
