"""Attach the service to a Label Studio project; running it again changes only what is not as it should be."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from backend.adapters.jobs import Jobs
from backend.adapters.label_studio import SEQUENTIAL_SAMPLING, UNCERTAINTY_SAMPLING, WEBHOOK_ACTIONS, LabelStudioClient
from backend.adapters.registry import Registry
from backend.addresses import same_address
from backend.choices import parse_labeling_config
from backend.config import Settings
from backend.errors import LabelStudioError
from backend.loop.projects import register_project
from backend.loop.reconcile import MARK

logger = logging.getLogger(__name__)

BACKEND_TITLE = "Active learning"
SECRET_HEADER = "X-Active-Learning-Secret"
PROJECT_HEADER = "X-Active-Learning-Project"

PRIVATE_ADDRESS_CURE = (
    "Label Studio refuses backends on private addresses unless told otherwise: start it with "
    "USE_DEFAULT_BANNED_SUBNETS=false and USER_ADDITIONAL_BANNED_SUBNETS set to what stays forbidden "
    "(`python -m backend banned-subnets` prints the value for this backend; in containers name their network), "
    "or with SSRF_PROTECTION_ENABLED=false and ML_BLOCK_LOCAL_IP=false"
)


@dataclass(frozen=True)
class Connection:
    """What connecting found and did, one sentence each."""

    project_id: int
    title: str
    steps: tuple[str, ...]


class Connector:
    """Connects one service to projects of one Label Studio."""

    def __init__(
        self,
        *,
        label_studio: LabelStudioClient,
        registry: Registry,
        jobs: Jobs,
        settings: Settings,
        webhook_secret: str,
    ) -> None:
        self._label_studio = label_studio
        self._registry = registry
        self._jobs = jobs
        self._settings = settings
        self._webhook_secret = webhook_secret

    def connect(self, project_id: int) -> Connection:
        """Backend with Basic auth, webhook with a secret header, uncertainty sampling, pre-labels; then embed and seed.

        Raises LabelingConfigError, ProjectNotFoundError, LabelStudioError, RedisUnavailableError.
        """
        self._jobs.ping()
        project = self._label_studio.project(project_id)
        parse_labeling_config(project.label_config)
        register_project(self._registry, project)
        steps = [self._connect_backend(project_id), self._connect_webhook(project_id)]
        changes: dict[str, Any] = {}
        sampling = wanted_sampling(self._settings.score_order)
        if project.sampling != sampling:
            changes["sampling"] = sampling
        if not project.show_collab_predictions:
            changes["show_collab_predictions"] = True
        if changes:
            self._label_studio.update_project(project_id, **changes)
        told = "by uncertainty"
        if sampling == SEQUENTIAL_SAMPLING:
            told = "sequential; sort the Data Manager by falling prediction score and label tasks as displayed"
        steps.append(f"task sampling: {told}" + (" (set now)" if "sampling" in changes else ""))
        steps.append("pre-labels: shown" + (" (set now)" if "show_collab_predictions" in changes else ""))
        steps.append(self._restore_version(project_id))
        self._jobs.set_note(project_id, MARK, None)  # whatever was seen before: everything is compared
        self._jobs.request_reconciliation(project_id)
        steps.append("embedding and first batch: requested from the worker")
        logger.info("connected project=%d title=%r", project_id, project.title)
        return Connection(project_id, project.title, tuple(steps))

    def webhook_headers(self, project_id: int) -> dict[str, str]:
        """The headers Label Studio must send with the project's webhook."""
        headers = {PROJECT_HEADER: str(project_id)}
        if self._webhook_secret:
            headers[SECRET_HEADER] = self._webhook_secret
        return headers

    def _connect_backend(self, project_id: int) -> str:
        url = self._settings.backend_url
        values: dict[str, Any] = {"url": url, "title": BACKEND_TITLE, "is_interactive": False, "auth_method": "NONE"}
        if self._settings.backend_password:
            values |= {
                "auth_method": "BASIC_AUTH",
                "basic_auth_user": self._settings.backend_user,
                "basic_auth_pass": self._settings.backend_password,
            }
        mine = [item for item in self._label_studio.backends(project_id) if same_address(item["url"], url)]
        try:
            # Saving makes Label Studio call /health and /setup with these credentials, so it is also the check.
            self._label_studio.save_backend(project_id, mine[0]["id"] if mine else None, **values)
        except LabelStudioError as exc:
            raise LabelStudioError(explain_refusal(exc, url), status=exc.status) from exc
        for duplicate in mine[1:]:
            self._label_studio.delete_backend(duplicate["id"])
        return f"ML backend: {url}" + ("" if mine else " (connected now)")

    def _connect_webhook(self, project_id: int) -> str:
        url = f"{self._settings.backend_url}/webhook"
        wanted: dict[str, Any] = {
            "url": url,
            "headers": self.webhook_headers(project_id),
            "is_active": True,
            "send_payload": True,
            "send_for_all_actions": False,
            "actions": list(WEBHOOK_ACTIONS),
        }
        mine = [item for item in self._label_studio.webhooks(project_id) if same_address(item["url"], url)]
        if len(mine) == 1 and not webhook_faults(mine[0], wanted["headers"]):
            return f"webhook: {url}"
        try:
            self._label_studio.save_webhook(project_id, mine[0]["id"] if mine else None, **wanted)
        except LabelStudioError as exc:
            raise LabelStudioError(explain_refusal(exc, url), status=exc.status) from exc
        for duplicate in mine[1:]:
            self._label_studio.delete_webhook(duplicate["id"])
        return f"webhook: {url} (set up now)"

    def _restore_version(self, project_id: int) -> str:
        """Connecting makes Label Studio order by the backend's title, which no prediction carries: set it right."""
        published = self._registry.published(project_id)
        if published is None:
            return "queue: random until the first batch is chosen"
        try:
            self._label_studio.activate_version(project_id, published)
        except LabelStudioError as exc:
            logger.info("version not activated project=%d: %s", project_id, exc)
            self._jobs.request_retrain(project_id, forced=True)
            return "queue: a new version is made, for Label Studio holds no predictions of the published one"
        return f"queue: ordered by {published}"


def wanted_sampling(score_order: str) -> str:
    """The project's task sampling that goes with SCORE_ORDER.

    Sampling by uncertainty hands out the lowest score first, and nothing else: where the highest is to come first it
    would begin at the end of the window, so people there go by the Data Manager's own order.
    """
    return SEQUENTIAL_SAMPLING if score_order == "descending" else UNCERTAINTY_SAMPLING


def webhook_faults(webhook: Mapping[str, Any], headers: Mapping[str, str]) -> list[str]:
    """What is not as it should be with a webhook of ours, in words; the secret is compared, never shown."""
    faults = []
    if not webhook.get("is_active"):
        faults.append("it is switched off")
    if not webhook.get("send_payload"):
        faults.append("it sends no payload")
    told = webhook.get("actions") or []
    if not webhook.get("send_for_all_actions"):
        absent = [action for action in WEBHOOK_ACTIONS if action not in told]
        if absent:
            faults.append("it does not tell of " + ", ".join(absent))
    if webhook.get("send_for_all_actions") or "PROJECT_UPDATED" in told:
        faults.append("it tells of changes of the project, which costs time at each version of ours")
    present = webhook.get("headers") or {}
    wrong = [name for name, value in headers.items() if present.get(name) != value]
    if wrong:
        faults.append("its headers lack or differ in " + ", ".join(wrong))
    return faults


def explain_refusal(exc: LabelStudioError, url: str) -> str:
    """Label Studio's refusal of a backend or webhook with the likeliest cure."""
    text = str(exc)
    lowered = text.lower()
    if "reserved network" in lowered:  # core/utils/io.py; "ssrf" alone stands in every failure's connection class
        return f"Label Studio does not want to call {url}: {text}. {PRIVATE_ADDRESS_CURE}"
    if "valid url" in lowered:
        return (
            f"Label Studio does not take {url} for an address: {text}. The host of BACKEND_URL needs a dot in its "
            "name, or must be localhost or an IP address; give the host an alias such as web.internal"
        )
    if "health check failed" in lowered or "can't connect" in lowered or "resolve" in lowered:
        return (
            f"Label Studio cannot reach the backend at {url}: {text}. Start it (`python -m backend web`), "
            "or set BACKEND_URL to where Label Studio reaches it"
        )
    return text
