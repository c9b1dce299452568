"""Compare each project with Label Studio, because a webhook that fails is never sent again."""

from __future__ import annotations

import logging
import time

from backend.adapters.jobs import Jobs
from backend.adapters.label_studio import LabelStudioClient
from backend.adapters.registry import Registry, is_own_version, version_number
from backend.choices import parse_labeling_config
from backend.errors import LabelStudioError, ProjectBusyError
from backend.loop.embed import Embedder
from backend.loop.ledger import READ_EVERYTHING, Ledger
from backend.loop.projects import register_project
from backend.loop.versions import Versions
from backend.schema import Project, VersionRecord

logger = logging.getLogger(__name__)

MARK = "mark"
"""Note under which the last state seen in Label Studio is kept; a failed job deletes it, so that it is asked again."""

KEPT_PREDICTIONS = 5
"""Versions whose predictions stay in Label Studio: the published one, the one a labeler may be looking at, and some to
choose from in its settings, where only versions with predictions are offered."""

SUPERSEDED_MOST = 400
"""Superseded versions that may wait for a quiet moment; beyond, they are deleted as fast as new ones come. With so many
windows of 30 the next task of 10,000 takes 0.09 s instead of 0.06; to delete one takes 0.3 to 0.5 s of Label Studio's
time, in which nobody's label is taken."""

PRUNED_AT_ONCE = 2
"""Versions whose predictions one job deletes when it is not quiet; one comes with every label."""

QUIET_S = 10.0
"""Pause after a version from which nobody seems to label."""

RETRIED = "images_retried"
"""Note of the last try at images that failed for a passing reason: how many, the pause after it, and its end."""

RETRY_PAUSE_S, LONGEST_RETRY_PAUSE_S = 60.0, 900.0
"""Pause after the first such try, and what it grows to by doubling while no more images fail. Behind a storage that
Label Studio proxies a deleted image looks like a storage that is away; every try lists all tasks."""

PRUNED = "pruned"
"""Note of the number of the oldest version that may still have predictions in Label Studio."""


class Reconciler:
    """Finds what no webhook told."""

    def __init__(
        self,
        *,
        label_studio: LabelStudioClient,
        jobs: Jobs,
        registry: Registry,
        embedder: Embedder,
        ledger: Ledger,
        versions: Versions,
        keep_versions: int,
    ) -> None:
        self._label_studio = label_studio
        self._jobs = jobs
        self._registry = registry
        self._embedder = embedder
        self._ledger = ledger
        self._versions = versions
        self._keep_versions = keep_versions

    def reconcile(self, project_id: int) -> bool:
        """Requests what a change that no webhook told calls for, embedding or a retrain; whether there was one.

        Nothing is listed but the tasks that changed since it was last looked at, unless tasks were added or deleted. A
        queue that somebody pointed at no version of ours (connecting a backend does that) is pointed at the published
        version again; one pointed at an older version is what a person chose, see `Versions`. Images that failed for a
        passing reason are tried again, after pauses that grow. What is kept here is looked at, too: a version or
        embeddings that are damaged are made anew.
        """
        self._jobs.begin(project_id, "reconcile")
        project = self._label_studio.project(project_id)
        is_repaired = self._repair_version(project_id)
        if not self._follow_choice(project):
            self._repair_queue(project)
        if not self._versions.is_settled(project_id):
            self._jobs.request_retrain(project_id)
        config_changed = register_project(self._registry, project)
        passing = self._images_to_retry(project_id)
        if passing:
            self._embedder.forget(project_id, passing)
        if self._n_superseded(project_id) and self._jobs.quiet_s(project_id) >= QUIET_S:
            self._jobs.request_pruning(project_id)
        before, mark = self._jobs.note(project_id, MARK), self._label_studio.change_mark(project_id)
        if before is None and self._registry.published(project_id) is not None:
            self._jobs.request_evaluation(project_id)  # a job failed, perhaps that one
        if config_changed or passing:
            before = None
        tasks_lost = self._tasks_lost(project)
        if mark == before:
            if tasks_lost:
                self._jobs.request_embedding(project_id)
            is_misled = self._is_misled(project_id, mark)
            return is_repaired or tasks_lost or is_misled
        changed = None
        if before is not None:
            image_field = parse_labeling_config(project.label_config).image_field
            changed = self._label_studio.changed_tasks(
                project_id, image_field, before=before, now=mark, fields=self._embedder.listed_fields
            )
        tasks_changed = (
            tasks_lost or changed is None or not self._embedder.is_planned(project_id, [item.task for item in changed])
        )
        answers_changed = changed is None or not self._ledger.knows(project_id, changed)
        if tasks_changed:
            # Without a mark a job may have died or failed: its marker is no promise.
            self._jobs.request_embedding(project_id, renew=before is None)
        if answers_changed:
            self._jobs.record_event(project_id, READ_EVERYTHING)
            self._jobs.request_retrain(project_id)
        self._jobs.set_note(project_id, MARK, mark)
        return tasks_changed or answers_changed or is_repaired

    def _images_to_retry(self, project_id: int) -> list[int]:
        """The tasks whose image failed for a passing reason, when it is time to try again; at once if more failed."""
        failures = self._embedder.index(project_id).failures
        passing = [task_id for task_id, failure in failures.items() if failure.transient]
        note, now = self._jobs.note(project_id, RETRIED), time.time()
        if not passing:
            if note is not None:
                self._jobs.set_note(project_id, RETRIED, None)
            return []
        n_before, pause_s, until = map(float, note.split()) if note else (0.0, 0.0, 0.0)
        if len(passing) > n_before:
            pause_s = RETRY_PAUSE_S
        elif now < until:
            return []
        else:
            pause_s = min(2 * pause_s, LONGEST_RETRY_PAUSE_S)
        self._jobs.set_note(project_id, RETRIED, f"{len(passing)} {pause_s:.0f} {now + pause_s:.0f}")
        return passing

    def prune(self, project_id: int) -> None:
        """Deletes from disk versions past the limit, and what is kept of backbones that were fine-tuned before the
        last; from Label Studio predictions of superseded versions, in a quiet moment.
        """
        self._jobs.begin(project_id, "prune")
        for fingerprint in self._registry.stale_backbones(project_id):
            self._embedder.discard(project_id, fingerprint)
            self._registry.forget_weights(project_id, fingerprint)
            logger.info("pruned project=%d backbone=%s", project_id, fingerprint)
        pruned = self._registry.prune(project_id, self._keep_versions)
        if pruned:
            logger.debug("pruned project=%d versions=%d", project_id, len(pruned))
        n_superseded = self._n_superseded(project_id)
        if n_superseded > SUPERSEDED_MOST or (n_superseded and self._jobs.quiet_s(project_id) >= QUIET_S):
            self._delete_predictions(project_id)

    def _n_superseded(self, project_id: int) -> int:
        """How many superseded versions may have predictions in Label Studio, without asking it; at first at least 1."""
        published, oldest = self._registry.published(project_id), self._jobs.note(project_id, PRUNED)
        if published is None:
            return 0
        first_kept = _first_kept(published)
        return max(1, first_kept) if oldest is None else max(0, first_kept - int(oldest))

    def _delete_predictions(self, project_id: int) -> None:
        """Version by version, the oldest first, until somebody labels; then at most `PRUNED_AT_ONCE`."""
        published = self._registry.published(project_id)
        held = [version for version in self._label_studio.prediction_counts(project_id) if is_own_version(version)]
        held.sort(key=lambda version: (version_number(version), version))
        # What a person has just chosen is not published yet.
        needed = {published, self._label_studio.project(project_id).model_version}
        superseded = [version for version in held[:-KEPT_PREDICTIONS] if version not in needed]
        n_deleted = 0
        for version in superseded:
            if n_deleted >= PRUNED_AT_ONCE and self._jobs.quiet_s(project_id) < QUIET_S:
                break
            self._label_studio.delete_predictions(project_id, version)
            n_deleted += 1
        left = [version_number(version) for version in superseded[n_deleted:]]
        if published is not None:
            # Not what is held: some of those that are kept have no predictions left, and others stand in for them.
            self._jobs.set_note(project_id, PRUNED, str(min([*left, max(1, _first_kept(published))])))
        if n_deleted:
            logger.info("pruned project=%d predictions of %d versions", project_id, n_deleted)

    def _follow_choice(self, project: Project) -> bool:
        """Does what a person chose in Label Studio, if that is what the queue shows; whether it calls for a version."""
        if not self._versions.may_be_chosen(project.id, project.model_version, None):
            return False
        config = parse_labeling_config(project.label_config)
        # Without the lock a version published since would make the one before it look like a choice.
        with self._jobs.project_lock(project.id):
            fingerprint = self._embedder.backbone(project.id).fingerprint
            return self._versions.follow_label_studio(project.id, config, fingerprint)

    def _repair_version(self, project_id: int) -> bool:
        """Asks for a new version if the published one is damaged, or a retrain was requested and never answered."""
        damage = self._registry.damage(project_id)
        if damage is not None:
            logger.error("a new version is made project=%d: %s", project_id, damage)
            self._jobs.request_retrain(project_id, forced=True)
            return True
        if self._jobs.is_unanswered(project_id):
            logger.warning("retrain requested again project=%d: the last one was not answered", project_id)
            self._jobs.request_retrain(project_id)
            return True
        return False

    def _is_misled(self, project_id: int, mark: str) -> bool:
        """Whether webhooks told of answers that Label Studio does not have; then all are read anew."""
        n_annotations = self._label_studio.n_annotations_at(mark)
        if n_annotations is None or self._ledger.counts(project_id, n_annotations):
            return False
        logger.warning("answers are read anew project=%d: Label Studio has %d annotations", project_id, n_annotations)
        self._jobs.record_event(project_id, READ_EVERYTHING)
        self._jobs.request_retrain(project_id)
        return True

    def _tasks_lost(self, project: Project) -> bool:
        """Whether tasks are unknown here, embedding as well as failure, and nobody is about to look at them.

        Their webhook may have been lost, or their embeddings with a damaged dataset.
        """
        n_known = len(self._embedder.index(project.id).references)
        return n_known < project.n_tasks and not self._jobs.is_embedding(project.id)

    def _repair_queue(self, project: Project) -> None:
        record = self._registry.published_record(project.id)
        if record is None or not record.window or not _is_astray(project, record):
            return
        try:
            # No version is under way then that Label Studio already orders by, and that is published in a moment.
            with self._jobs.project_lock(project.id, wait_s=0.0):
                project, record = self._label_studio.project(project.id), self._registry.published_record(project.id)
                if record is None or not _is_astray(project, record):
                    return
                self._label_studio.activate_version(project.id, record.version)
        except ProjectBusyError:
            return
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


def _first_kept(published: str) -> int:
    """Number of the oldest version whose predictions are not superseded."""
    return version_number(published) - KEPT_PREDICTIONS + 1


def _is_astray(project: Project, record: VersionRecord) -> bool:
    """Whether Label Studio orders by no version of ours, or by one that was never published.

    A worker that dies between the two leaves that. An older one of ours was chosen by somebody.
    """
    named = project.model_version
    return not is_own_version(named) or version_number(named) > version_number(record.version)
