"""Versions: which a project keeps, and going back to one of them.

Going back *pins* the project to an earlier version's head until it is released. Every label still makes a new version,
so that the queue moves on and no version ever changes; it has the pinned head, and its record names whose that is
(`head_of`). A person pins and releases on the command line, over HTTP, or in Label Studio's own settings.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from backend.adapters.jobs import Jobs
from backend.adapters.label_studio import LabelStudioClient
from backend.adapters.registry import Registry, is_own_version, version_number
from backend.addresses import same_address
from backend.choices import ChoicesConfig, parse_labeling_config
from backend.config import Settings
from backend.errors import LabelStudioError, VersionNotFoundError, VersionUnusableError
from backend.learning.head import Head
from backend.learning.pool import DEFAULT_DETAIL_WEIGHT
from backend.loop.projects import check_known
from backend.loop.rounds import RoundHead
from backend.schema import Pin, VersionRecord

logger = logging.getLogger(__name__)

NEWEST = "newest"
"""What to use instead of a version's name to release the pin."""

VERSION_NOTE = "version_note"
"""Note that says why a pin ended, or a choice in Label Studio was not followed; until somebody chooses again."""

LATE_VERSIONS = 10
"""A webhook that names a version so far behind the published one was not merely on its way when that was published."""

LATE_S = 2.0
"""Nor was one that came so long after: Label Studio waits for an answer for 1 s, and asks no second time."""


@dataclass(frozen=True)
class KeptVersion:
    """The version a project is pinned to: its record, and its head for planning rounds."""

    record: VersionRecord
    round_head: RoundHead


class Versions:
    """The versions of all projects."""

    def __init__(
        self,
        *,
        label_studio: LabelStudioClient,
        jobs: Jobs,
        registry: Registry,
        settings: Settings,
        now: Callable[[], datetime],
    ) -> None:
        self._label_studio = label_studio
        self._jobs = jobs
        self._registry = registry
        self._settings = settings
        self._now = now

    # -- for people -----------------------------------------------------------------------------------------------

    def listed(self, project_id: int) -> list[dict[str, Any]]:
        """The kept versions, newest first, as JSON; one whose record is damaged has only its name and an `error`.

        Raises ProjectNotFoundError.
        """
        check_known(self._registry, project_id)
        found = []
        for name in self._registry.versions(project_id):
            try:
                record = self._registry.record(project_id, name)
            except VersionNotFoundError as exc:
                found.append({"version": name, **self._marks(project_id, name), "error": str(exc)})
                continue
            evaluated = record.evaluated_version == record.version
            found.append(
                {
                    "version": name,
                    **self._marks(project_id, name),
                    "created_at": record.created_at,
                    "kind": record.kind,
                    "labels_used": record.labels_used,
                    "accuracy": record.accuracy if evaluated else None,
                    "accuracy_kind": record.accuracy_kind if evaluated else None,
                    "accuracy_interval": record.accuracy_interval if evaluated else None,
                    "head_of": record.head_of,
                }
            )
        return found

    def described(self, project_id: int, name: str) -> dict[str, Any]:
        """Everything kept of one version, as JSON. Raises ProjectNotFoundError, VersionNotFoundError."""
        record = self._registry.record(project_id, self.find(project_id, name))
        return {**record.to_json(), **self._marks(project_id, record.version)}

    def find(self, project_id: int, name: str) -> str:
        """The whole name of a kept version that may be given by its number: v0012. Errors as `described`."""
        check_known(self._registry, project_id)
        kept = self._registry.versions(project_id)
        short = name.partition("-")[0] if "-" not in name else ""
        found = [version for version in kept if version == name or (short and version.startswith(f"{short}-"))]
        if not found:
            raise VersionNotFoundError(
                f"project {project_id} keeps no version {name[:80]!r}; `python -m backend models {project_id}` lists "
                "those it keeps, the newest KEEP_VERSIONS"
            )
        return found[0]

    def use(self, project_id: int, name: str, *, by: str) -> tuple[Pin, int]:
        """Pins the project to a version; the pin, and the ticket of the retrain that publishes it (`Jobs`).

        Raises ProjectNotFoundError, VersionNotFoundError, and VersionUnusableError that says why it cannot be.
        """
        version = self.find(project_id, name)
        self._jobs.ping()  # without Redis nothing would come of it now
        published = self._registry.published_record(project_id)
        facts = self._registry.project_facts(project_id) or {}
        config = parse_labeling_config(str(facts.get("label_config")))
        pin = self._pin(project_id, version, config, published.fingerprint if published else None, by=by)
        return pin, self._jobs.request_retrain(project_id)[0]

    def release(self, project_id: int) -> int | None:
        """Lets the project go on with the newest labels; the ticket of the retrain, or None if it was not pinned."""
        check_known(self._registry, project_id)
        self._jobs.ping()
        if self._registry.pin(project_id) is None:
            return None
        self._release(project_id, "a person")
        return self._jobs.request_retrain(project_id)[0]

    # -- for the worker -------------------------------------------------------------------------------------------

    def kept(self, project_id: int, config: ChoicesConfig, fingerprint: str) -> KeptVersion | None:
        """The version the project is pinned to; None without a pin.

        `config` is the labeling config now, `fingerprint` that of the backbone in use. A pin on a version
        that cannot be used any more is released, for a queue that stands still helps nobody; the status says why.
        """
        pin = self._registry.pin(project_id)
        if pin is None:
            return None
        try:
            record, head = self._usable(project_id, pin.version, config, fingerprint)
        except (VersionNotFoundError, VersionUnusableError) as exc:
            sentence = f"the pin on {pin.version} has ended, and training goes on: {exc}"
            logger.error("project=%d: %s", project_id, sentence)
            self._registry.release_pin(project_id)
            self._jobs.set_note(project_id, VERSION_NOTE, sentence)
            return None
        detail_weight = DEFAULT_DETAIL_WEIGHT if record.detail_weight is None else record.detail_weight
        return KeptVersion(record, RoundHead(head, detail_weight))

    def is_settled(self, project_id: int) -> bool:
        """Whether the published version has the head that the pin, or its absence, wants."""
        pin, published = self._registry.pin(project_id), self._registry.published_record(project_id)
        return published is None or published.head_of == (pin.version if pin else None)

    def may_be_chosen(self, project_id: int, model_version: str, heard_at: float | None) -> bool:
        """Whether what Label Studio is said to order its queue by may be a person's choice; asks nobody but Redis.

        It is older than the published version also when somebody submitted just before that was published, so a webhook
        that came at `heard_at` (by Redis' clock; None: read from Label Studio itself) counts only if it came too late
        for that. What it is in truth `follow_label_studio` says.
        """
        published = self._registry.published(project_id)
        if published is None or model_version in ("", published):
            return False
        if not is_own_version(model_version):
            return self._registry.pin(project_id) is not None
        behind = version_number(published) - version_number(model_version)
        if behind <= 0 or heard_at is None or behind > LATE_VERSIONS:
            return behind > 0
        answered_at = self._jobs.answered_at(project_id)
        return answered_at is None or heard_at > answered_at + LATE_S

    def follow_label_studio(self, project_id: int, config: ChoicesConfig, fingerprint: str) -> bool:
        """Does what a person chose in Label Studio's settings; whether that calls for another version.

        An older version of ours pins the project to it, the backend itself ("live model") releases a pin. A version
        that cannot be used is not followed: the queue is pointed at the published one again, and the status says why.
        To be called under the project's lock: then only a person can have pointed the queue at an older version.
        """
        project, published = self._label_studio.project(project_id), self._registry.published_record(project_id)
        chosen = project.model_version
        if published is None or not published.window:
            return False
        if not is_own_version(chosen):
            if not chosen or self._registry.pin(project_id) is None or not self._is_backend(project_id, chosen):
                return False
            self._release(project_id, "Label Studio")
            return True
        if version_number(chosen) >= version_number(published.version):
            return False
        try:
            pin = self._pin(project_id, chosen, config, fingerprint, by="Label Studio")
        except (VersionNotFoundError, VersionUnusableError) as exc:
            sentence = f"{chosen}, chosen in Label Studio, is not used: {exc}"
            logger.warning("project=%d: %s", project_id, sentence)
            self._jobs.set_note(project_id, VERSION_NOTE, sentence)
        else:
            if published.head_of != pin.version:
                return True
        self._activate(project_id, published.version)
        return False

    # -- both -----------------------------------------------------------------------------------------------------

    def _pin(self, project_id: int, version: str, config: ChoicesConfig, fingerprint: str | None, *, by: str) -> Pin:
        """Keeps the pin, on the version that the head is really of; one that is there already stays as it is."""
        source = self._registry.record(project_id, version).head_of
        record, _ = self._usable(
            project_id, source if source in self._registry.versions(project_id) else version, config, fingerprint
        )
        self._jobs.set_note(project_id, VERSION_NOTE, None)
        pin = self._registry.pin(project_id)
        if pin is None or pin.version != record.version:
            pin = Pin(record.version, self._now().isoformat(), by)
            self._registry.set_pin(project_id, pin)
            logger.info("pinned project=%d version=%s by=%s", project_id, record.version, by)
        return pin

    def _release(self, project_id: int, by: str) -> None:
        self._registry.release_pin(project_id)
        self._jobs.set_note(project_id, VERSION_NOTE, None)
        logger.info("released project=%d by=%s", project_id, by)

    def _usable(
        self, project_id: int, version: str, config: ChoicesConfig, fingerprint: str | None
    ) -> tuple[VersionRecord, Head]:
        """The version's record and head. Raises VersionNotFoundError and VersionUnusableError."""
        record = self._registry.record(project_id, version)
        head = self._registry.head(record)
        if head is None:
            raise VersionUnusableError(
                f"{version} was made before labels of two classes were known and has no head; use a version of kind "
                "'model'"
            )
        if fingerprint is not None and record.fingerprint != fingerprint:
            raise VersionUnusableError(
                f"{version} reads embeddings of backbone {record.fingerprint[:12]} ({record.backbone}), and the "
                f"project's are of {fingerprint[:12]}; use a version made with that, or set BACKBONE back"
            )
        if (head.threshold is not None) != config.several:
            one, other = ("one label", "several") if config.several else ("several labels", "one")
            raise VersionUnusableError(
                f"{version} predicts {one} per image, and the labeling config now asks for {other}; use a version made "
                "since then, or set it back"
            )
        gone = [repr(name) for name in head.classes if name not in config.labels]
        if gone:
            raise VersionUnusableError(
                f"{version} knows the labels {', '.join(gone)}, which the labeling config no longer offers; use a "
                "version made since then, or offer them again"
            )
        return record, head

    def _is_backend(self, project_id: int, title: str) -> bool:
        """Whether a backend of that title is this service."""
        return any(
            item.get("title") == title and same_address(str(item.get("url")), self._settings.backend_url)
            for item in self._label_studio.backends(project_id)
        )

    def _activate(self, project_id: int, version: str) -> None:
        try:
            self._label_studio.activate_version(project_id, version)
        except LabelStudioError as exc:
            if exc.status != 400:
                raise
            self._jobs.request_retrain(project_id, forced=True)  # its predictions are gone

    def _marks(self, project_id: int, version: str) -> dict[str, bool]:
        pin = self._registry.pin(project_id)
        return {
            "published": version == self._registry.published(project_id),
            "pinned": pin is not None and version == pin.version,
        }


def pin_as_json(pin: Pin | None) -> dict[str, str] | None:
    """The pin as the status tells it."""
    return asdict(pin) if pin else None
