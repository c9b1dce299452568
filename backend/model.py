"""The `LabelStudioMLBase` subclass: predict answers a request, an event becomes a retrain request, fit is the job.

It runs under this package's own server, under label-studio-ml 1.0.9's, and under a 2.x server, whose base class takes
`project_id, label_config` and calls `predict(tasks, context)` and `fit(event, data)`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from label_studio_ml.model import LabelStudioMLBase

from backend.config import Settings
from backend.errors import BadRequestError
from backend.loop.events import project_id_of
from backend.schema import UNTRAINED
from backend.services import Services

RETRAIN = "RETRAIN"
"""The event with which the RQ job calls `fit`: train here and now."""


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
        """As `EventHandler.handle`; a project that the model was not built with is taken from the payload."""
        project_id = self._project_id if self._project_id is not None else project_id_of(data.get("project"))
        return self._services.events.handle(project_id, event, data)

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
