"""Compare each project with Label Studio, because a webhook that fails is never sent again."""

from __future__ import annotations

import logging

from backend.adapters.jobs import Jobs
from backend.adapters.label_studio import LabelStudioClient
from backend.adapters.registry import Registry, is_own_version, version_number
from backend.errors import LabelStudioError
from backend.loop.embed import Embedder
from backend.loop.ledger import READ_EVERYTHING
from backend.loop.projects import register_project
from backend.schema import Project

logger = logging.getLogger(__name__)

MARK = "mark"
"""Note under which the last state seen in Label Studio is kept; a failed job deletes it, so that it is asked again."""

KEPT_PREDICTIONS = 2
"""Versions whose predictions stay in Label Studio: the published one, and the one a labeler may be looking at."""

PRUNED_AT_ONCE = 2
"""Versions whose predictions one job deletes: two windows of 30, about half a second of Label Studio's time."""


class Reconciler:
    """Finds what no webhook told."""

    def __init__(
        self,
        *,
        label_studio: LabelStudioClient,
        jobs: Jobs,
        registry: Registry,
        embedder: Embedder,
        keep_versions: int,
    ) -> None:
        self._label_studio = label_studio
        self._jobs = jobs
        self._registry = registry
        self._embedder = embedder
        self._keep_versions = keep_versions

    def reconcile(self, project_id: int) -> bool:
        """Requests embedding and a retrain if the project changed since it was last looked at; whether it did.

        A queue that somebody pointed at no version of ours (connecting a backend does that) is pointed at the
        published version again. Images that failed for a passing reason are tried again.
        """
        self._jobs.begin(project_id, "reconcile")
        project = self._label_studio.project(project_id)
        self._repair_queue(project)
        config_changed = register_project(self._registry, project)
        passing = [
            task_id for task_id, failure in self._embedder.table(project_id).failures.items() if failure.transient
        ]
        if passing:
            self._embedder.forget(project_id, passing)
        mark = self._label_studio.change_mark(project_id)
        if not config_changed and not passing and mark == self._jobs.note(project_id, MARK):
            return False
        self._jobs.set_note(project_id, MARK, mark)
        self._jobs.request_embedding(project_id)
        self._jobs.record_event(project_id, READ_EVERYTHING)
        self._jobs.request_retrain(project_id)
        return True

    def prune(self, project_id: int) -> None:
        """Deletes predictions of superseded versions from Label Studio; from disk versions past the limit, and what is
        kept of backbones that were fine-tuned before the last.

        At most PRUNED_AT_ONCE versions, so that a label never waits long for the worker; the job after the next
        version goes on with the rest.
        """
        self._jobs.begin(project_id, "prune")
        published = self._registry.published(project_id)
        held = [version for version in self._label_studio.prediction_counts(project_id) if is_own_version(version)]
        held.sort(key=lambda version: (version_number(version), version), reverse=True)
        superseded = [version for version in held[KEPT_PREDICTIONS:] if version != published]
        for version in superseded[-PRUNED_AT_ONCE:]:
            self._label_studio.delete_predictions(project_id, version)
        for fingerprint in self._registry.stale_backbones(project_id):
            self._embedder.discard(project_id, fingerprint)
            self._registry.forget_weights(project_id, fingerprint)
            logger.info("pruned project=%d backbone=%s", project_id, fingerprint)
        pruned = self._registry.prune(project_id, self._keep_versions)
        if pruned:
            logger.info("pruned project=%d versions=%d", project_id, len(pruned))

    def _repair_queue(self, project: Project) -> None:
        record = self._registry.published_record(project.id)
        if record is None or not record.window or is_own_version(project.model_version):
            return
        try:
            self._label_studio.activate_version(project.id, record.version)
        except LabelStudioError as exc:
            if exc.status != 400:
                raise
            # Label Studio holds no predictions of it any more; the same labels must make a new version.
            logger.warning("queue not repaired project=%d, a new version is made: %s", project.id, exc)
            self._jobs.request_retrain(project.id, forced=True)
            return
        logger.warning(
            "queue repaired project=%d: Label Studio ordered by %r, now by %s",
            project.id, project.model_version, record.version,
        )  # fmt: skip
