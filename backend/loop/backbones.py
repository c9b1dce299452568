"""Which backbone sees a project's images: that of the settings, or one fine-tuned on the project's own labels."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock

from backend.adapters.backbones import Backbone
from backend.adapters.registry import Registry
from backend.errors import BackboneError
from backend.schema import FinetuningRecord

logger = logging.getLogger(__name__)

BACKBONE_WARNING = "backbone_warning"
"""Note that another backbone is used than was asked for: a worker's of project 0, a retrain's of its project."""

BACKBONES_KEPT = 4
"""Fine-tuned backbones kept in memory, those of the projects served last; each costs 10 to 350 MB."""


@dataclass(frozen=True)
class ProjectBackbone:
    """A project's backbone at one moment.

    seen: the tasks whose labels it was fine-tuned on. warning: why it is that of the settings although the project has
    a fine-tuned one, as a sentence.
    """

    backbone: Backbone
    seen: frozenset[int] = frozenset()
    warning: str | None = None


class ProjectBackbones:
    """The backbones of all projects, for one process; safe from several threads."""

    def __init__(self, *, load_base: Callable[[], Backbone], registry: Registry, finetunes: bool) -> None:
        self._load_base = load_base
        self._registry = registry
        self._finetunes = finetunes
        self._loaded: OrderedDict[tuple[int, str], ProjectBackbone] = OrderedDict()
        self._guard = Lock()

    @property
    def base(self) -> Backbone:
        """The backbone of the settings."""
        return self._load_base()

    def current(self, project_id: int) -> ProjectBackbone:
        """The project's backbone now; a small file is read to know it, and weights when it has changed.

        That of the settings with TRAIN=head, when the fine-tuned one was made from another, and when its weights file
        is damaged; once it is whole again, a restart finds it.
        """
        base = self.base
        record = self._registry.backbone_in_use(project_id) if self._finetunes else None
        if record is None or record.fingerprint is None or record.base != base.fingerprint:
            return ProjectBackbone(base)
        key = project_id, record.fingerprint
        with self._guard:
            if key not in self._loaded:
                try:
                    self._loaded[key] = ProjectBackbone(self.load(project_id, record), frozenset(record.seen))
                except BackboneError as exc:
                    warning = f"the original backbone is used instead of the fine-tuned one: {exc}"
                    logger.error("project=%d: %s", project_id, warning)
                    self._loaded[key] = ProjectBackbone(base, warning=warning)
            self._loaded.move_to_end(key)
            while len(self._loaded) > BACKBONES_KEPT:
                self._loaded.popitem(last=False)
            return self._loaded[key]

    def load(self, project_id: int, record: FinetuningRecord) -> Backbone:
        """The fine-tuned backbone of an adopted record. Raises BackboneError unless the very weights are there."""
        with self._registry.weights(project_id, str(record.fingerprint)) as path:
            backbone = self.base.with_weights(path)
        if backbone.fingerprint != record.fingerprint:
            place = self._registry.weights_file(project_id, str(record.fingerprint))
            raise BackboneError(f"{place} holds other weights than were saved; put the file back, or label on")
        return backbone
