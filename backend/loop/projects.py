"""Which projects there are, and the comparison with Label Studio that heals what webhooks missed."""

from __future__ import annotations

import logging
from datetime import datetime

from backend.adapters.registry import Registry
from backend.errors import ProjectNotFoundError
from backend.schema import Project

logger = logging.getLogger(__name__)


def created_seconds(project: Project) -> int:
    """The project's creation time in whole seconds, as Label Studio writes it behind the id in `project` uids."""
    return int(datetime.fromisoformat(project.created_at).timestamp())


def check_known(registry: Registry, project_id: int) -> None:
    """Raises ProjectNotFoundError, with what to do, for a project that was never connected."""
    if registry.project_facts(project_id) is None:
        raise ProjectNotFoundError(
            f"project {project_id} is not connected to this service; run: python -m backend connect {project_id} "
            "(if it is connected, DATA_DIR is not the service's: give the same settings)"
        )


def register_project(registry: Registry, project: Project) -> bool:
    """Makes the project known; True if it was not, or its labeling config changed."""
    changed = registry.register(project.id, created_seconds(project), project.label_config, title=project.title)
    if changed:
        logger.info("registered project=%d title=%r", project.id, project.title)
    return changed
