"""The base class: built anew for every request, keeps what it keeps by project, and lets nothing of it be set."""

from __future__ import annotations

from typing import Any

KEPT: dict[tuple[str, str], Any] = {}
"""(project, name) → value; that release keeps it in SQLite."""


class LabelStudioMLBase:
    INITIAL_MODEL_VERSION = "0.0.1"
    TRAIN_EVENTS = ("ANNOTATION_CREATED", "ANNOTATION_UPDATED", "ANNOTATION_DELETED", "START_TRAINING")

    def __init__(self, project_id: str | None = None, label_config: str | None = None) -> None:
        self.project_id = project_id or ""
        if label_config is not None:
            self.use_label_config(label_config)
        if not self.model_version:
            self.set("model_version", self.INITIAL_MODEL_VERSION)
        self.setup()

    def setup(self) -> None:
        """For subclasses."""

    def use_label_config(self, label_config: str) -> None:
        self.set("label_config", label_config)

    def set_extra_params(self, extra_params: Any) -> None:
        self.set("extra_params", extra_params)

    def get(self, key: str) -> Any:
        return KEPT.get((self.project_id, key))

    def set(self, key: str, value: Any) -> None:
        KEPT[self.project_id, key] = value

    def has(self, key: str) -> bool:
        return (self.project_id, key) in KEPT

    @property
    def label_config(self) -> Any:
        return self.get("label_config")

    @property
    def parsed_label_config(self) -> Any:
        return self.get("parsed_label_config")

    @property
    def extra_params(self) -> Any:
        return self.get("extra_params")

    @property
    def model_version(self) -> Any:
        return self.get("model_version")

    def predict(self, tasks: Any, context: Any = None, **kwargs: Any) -> Any:
        raise NotImplementedError

    def process_event(self, event: str, data: Any, job_id: str, additional_params: Any) -> Any:
        if event in self.TRAIN_EVENTS:
            return self.fit(event=event, data=data, job_id=job_id, **additional_params)
        return None

    def fit(self, event: str, data: Any, **additional_params: Any) -> Any:
        raise NotImplementedError
