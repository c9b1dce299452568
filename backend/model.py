"""The `LabelStudioMLBase` subclass: predict answers a request, an event becomes a retrain request, fit is the job.

It runs under this package's own server, under label-studio-ml 1.0.9's, and under a 2.x server, whose base class takes
`project_id, label_config` and calls `predict(tasks, context)` and `fit(event, data)`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from label_studio_ml.model import LabelStudioMLBase

from backend.config import Settings
from backend.errors import BadRequestError
from backend.loop.events import LABEL_EVENTS, START_TRAINING, project_id_of
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
        self._label_config = label_config or ""
        # The config is not passed to the base class: its parser refuses some valid ones; ours is backend.choices.
        super().__init__(project_id=str(self._project_id or ""), **kwargs)

    @property
    def model_version(self) -> str:
        """The published version of the project."""
        if self._project_id is None:
            return UNTRAINED
        return self._services.registry.published(self._project_id) or UNTRAINED

    def setup(self) -> None:
        """What a 2.x base class calls whenever a model is built, also to answer /setup: a new project is taken in."""
        if self._project_id is not None:
            self._take_in(self._project_id)

    def get(self, key: str) -> Any:
        """What a 2.x server asks for the answer to /setup; its base class keeps everything but the version itself."""
        return self.model_version if key == "model_version" else super().get(key)

    def predict(
        self, tasks: Sequence[Mapping[str, Any]], context: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> list[dict[str, Any]]:
        """One prediction per task, in order; of Label Studio's `context` nothing is used."""
        if not tasks:
            return []
        project_id = self._project_id if self._project_id is not None else project_id_of(tasks[0].get("project"))
        self._take_in(project_id)
        return self._services.predictor.predict(project_id, self._label_config, tasks)

    def process_event(
        self, event: str, data: Mapping[str, Any], job_id: str = "", additional_params: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """As `EventHandler.handle`; a project that the model was not built with is taken from the payload."""
        project_id = self._project_id if self._project_id is not None else project_id_of(data.get("project"))
        if event in LABEL_EVENTS or event == START_TRAINING:  # whatever else concerns a new project asks for embedding
            self._take_in(project_id)
        return self._services.events.handle(project_id, event, data)

    def fit(self, first: Any = None, /, data: Any = None, *, event: str | None = None, **kwargs: Any) -> dict[str, Any]:
        """Trains when the RQ job calls (event RETRAIN); any other event only requests it, to keep requests short.

        2.x calls `fit(event, data)`; 1.0.9 calls `fit(tasks, event=…, data=…)` for an event, and `fit(tasks, workdir)`
        for its old route /train, which means a training whatever is new.
        """
        if event is None and not isinstance(first, str):
            return self._services.events.handle(self._project_of_training(first or (), data), START_TRAINING, {})
        name = event if event is not None else first
        if name == RETRAIN:
            if self._project_id is None:
                raise BadRequestError("fit needs a model that was built with a project_id")
            record = self._services.trainer.retrain(self._project_id)
            return {"model_version": record.version if record else self.model_version}
        return self.process_event(name, data or {})

    def _project_of_training(self, tasks: Iterable[Mapping[str, Any]], workdir: str | None) -> int:
        """The project of a /train request: from its tasks, else from the folder that 1.0.9 names by it."""
        if self._project_id is not None:
            return self._project_id
        named = next((task["project"] for task in tasks if task.get("project") is not None), None)
        return project_id_of(Path(workdir or "").parent.name if named is None else named)

    def _take_in(self, project_id: int) -> None:
        """Has a project embedded that nobody has told of, for 1.0.9 does not pass on /setup."""
        if self._services.registry.project_facts(project_id) is None:
            self._services.jobs.request_embedding(project_id)
