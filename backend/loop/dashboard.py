"""All that the dashboard of a project shows but its map, as JSON: one answer, put together from what is at hand."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import numpy as np

from backend.adapters.jobs import Jobs
from backend.adapters.registry import Registry
from backend.choices import parse_labeling_config
from backend.config import Settings
from backend.errors import BackendError, RedisUnavailableError
from backend.learning.intervals import wilson_interval
from backend.learning.learning_curve import confidence_error
from backend.loop.embed import Embedder
from backend.loop.outlook import carried_curve
from backend.loop.score import Predictor
from backend.loop.status import StatusReader
from backend.loop.train import RECORDED_BEFORE
from backend.loop.versions import Versions
from backend.schema import CurvePoint, VersionRecord

GUESSES_KEPT = 16
"""Projects whose guesses for the window are kept in memory."""

CLOSE = 0.5
"""Two classes whose probabilities differ by less are ones that the model wavers between."""

Z_95 = 1.96
"""Standard deviations on either side of the mean that hold 95 % of a normal distribution."""

ASK_DOUBT = frozenset({"information_density", "margin", "least_confidence", "entropy", "coral", "badge"})
"""Acquisition strategies to which an image counts the more, the less the model is sure of it."""

FIRST_BATCH_WHY: Mapping[str, tuple[str, str]] = {
    "typical_coreset": ("typical", "typical of many images, and unlike those chosen before it"),
    "coreset": ("different", "the image least like all those chosen before it"),
    "typiclust": ("typical", "the most typical image of a group of which none was chosen yet"),
    "probcover": ("typical", "like many images that none of those chosen before it resembles"),
    "random": ("chance", "drawn at random"),
}
"""Why a first-batch strategy chooses an image: its kind and a sentence."""


class DashboardReader:
    """Reads what is at hand (data folder, Redis) and looks at the window with the published head."""

    def __init__(
        self,
        *,
        status: StatusReader,
        versions: Versions,
        predictor: Predictor,
        embedder: Embedder,
        jobs: Jobs,
        registry: Registry,
        settings: Settings,
    ) -> None:
        self._status = status
        self._versions = versions
        self._predictor = predictor
        self._embedder = embedder
        self._jobs = jobs
        self._registry = registry
        self._settings = settings
        self._guard = threading.Lock()
        self._guesses: OrderedDict[int, tuple[str, dict[int, list[dict[str, Any]]]]] = OrderedDict()

    def project(self, project_id: int) -> dict[str, Any]:
        """The dashboard as JSON. Raises ProjectNotFoundError for a project that was never connected."""
        status = self._status.project(project_id)
        record = self._registry.published_record(project_id)
        facts = self._registry.project_facts(project_id) or {}
        return {
            "project": {
                "id": project_id,
                "title": facts.get("title") or None,
                "link": self._status.link(project_id),
            },
            "status": status,
            "last_label_at": self._last_label_at(project_id, record),
            "curve": self._curve(record),
            "window": self._window(record) if record else [],
            "suspects": self._with_thumbnails(project_id, status["suspects"]),
            "disagreements": self._with_thumbnails(project_id, status["disagreements"]),
            "classes": self._classes(record, str(facts.get("label_config") or "")),
            "confusion": record.confusion if record else None,
            "calibration": record.calibration if record else None,
            "label_figures": record.label_figures if record else None,
            "versions": self._versions.listed(project_id),
        }

    def _last_label_at(self, project_id: int, record: VersionRecord | None) -> str | None:
        """When the last answer came: the later of what the journal of webhooks says, in Redis, and the record.

        Either may not know: Redis was emptied, or the answer is not in a version yet.
        """
        known: list[datetime] = []
        with suppress(RedisUnavailableError):
            heard_at = self._jobs.newest_label_at(project_id)
            known += [datetime.fromtimestamp(heard_at, UTC)] if heard_at is not None else []
        with suppress(ValueError):
            moment = datetime.fromisoformat((record.last_answer_at if record else None) or "")
            known.append(moment if moment.tzinfo else moment.replace(tzinfo=UTC))
        return max(known).astimezone(UTC).isoformat() if known else None

    # -- accuracy -------------------------------------------------------------------------------------------------

    def _curve(self, record: VersionRecord | None) -> dict[str, Any]:
        points: list[CurvePoint] = []
        random: Mapping[str, Any] = {}
        if record is not None:
            points = carried_curve(record, fingerprint=record.fingerprint, validation_filter=record.validation_filter)
            random = record.random_order or {}
        return {
            "target": self._settings.target_accuracy,
            "points": [
                {
                    "kind": point.kind,
                    "labels_used": point.labels_used,
                    "accuracy": point.accuracy,
                    "interval": _interval(point, of_sets=record is not None and record.threshold is not None),
                    "n_evaluated": point.n_evaluated,
                }
                for point in points
            ],
            "random": list(random.get("points", [])),
            "random_note": random.get("note"),
        }

    # -- the window -----------------------------------------------------------------------------------------------

    def _window(self, record: VersionRecord) -> list[dict[str, Any]]:
        guesses = self._guessed(record)
        return [
            {
                "task_id": task_id,
                "place": place,
                "link": self._status.link(record.project_id, task_id),
                "thumbnail": thumbnail_path(record.project_id, task_id),
                "why": why_chosen(record, task_id, guesses.get(task_id, [])),
            }
            for place, task_id in enumerate(record.window, start=1)
        ]

    def _guessed(self, record: VersionRecord) -> dict[int, list[dict[str, Any]]]:
        """Task id → the two likeliest classes of the window's tasks, or where images may have several labels the two
        that are most in doubt; nothing without a head that can be read.
        """
        with self._guard:
            known = self._guesses.get(record.project_id)
        if known is not None and known[0] == record.version:
            return known[1]
        published = self._predictor.published(record.project_id)
        if published is None or published[1] is None or published[0].version != record.version:
            return {}
        head = published[1]
        try:
            table = self._embedder.rows(
                record.project_id, list(record.window), record.fingerprint, head.weights.shape[1]
            )
        except (BackendError, OSError):  # the queue goes on without reasons
            return {}
        probabilities = head.predict_proba(table.embeddings)
        found: dict[int, list[dict[str, Any]]] = {}
        for task_id, row in zip(table.task_ids.tolist(), probabilities, strict=True):
            told = -row if head.threshold is None else np.abs(row - 0.5)
            likeliest = np.argsort(told, kind="stable")[:2].tolist()
            found[task_id] = [
                {"label": head.classes[column], "probability": round(float(row[column]), 6)} for column in likeliest
            ]
        with self._guard:
            self._guesses[record.project_id] = record.version, found
            self._guesses.move_to_end(record.project_id)
            while len(self._guesses) > GUESSES_KEPT:
                self._guesses.popitem(last=False)
        return found

    # -- the rest -------------------------------------------------------------------------------------------------

    def _classes(self, record: VersionRecord | None, label_config: str) -> list[dict[str, Any]]:
        """Every label that is offered or used, in the order of the labeling config."""
        names: list[str] = []
        with suppress(BackendError):  # of a config that nothing can be learned from
            names += parse_labeling_config(record.label_config if record else label_config).labels
        given = record.labels_by_class if record else {}
        predicted = record.predicted_by_class if record else None
        names += sorted(({*given, *(predicted or {})}).difference(names))
        return [
            {
                "label": name,
                "n_labels": int(given.get(name, 0)),
                "n_predicted": None if predicted is None else int(predicted.get(name, 0)),
            }
            for name in names
        ]

    @staticmethod
    def _with_thumbnails(project_id: int, items: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
        return [{**item, "thumbnail": thumbnail_path(project_id, item["task_id"])} for item in items]


def thumbnail_path(project_id: int, task_id: int) -> str:
    """Where this service shows a task's image small."""
    return f"/api/projects/{project_id}/tasks/{task_id}/thumbnail"


def why_chosen(record: VersionRecord, task_id: int, guesses: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Why a task is in the version's window: kind, sentence, and the likeliest classes (`guesses`, at most two).

    What the evaluation found, see `learning.reasons`; until then what the strategy asks for in any case.
    """
    kind, sentence = _why(record, task_id, guesses)
    return {"kind": kind, "sentence": sentence, "classes": list(guesses)}


def _why(record: VersionRecord, task_id: int, guesses: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    if task_id in record.seed_task_ids:
        strategy = record.seed_strategy or RECORDED_BEFORE
        return FIRST_BATCH_WHY.get(strategy, ("other", f"chosen by the strategy {strategy}"))
    leaning = _leaning(guesses) if record.threshold is None else _doubt(guesses)
    reason = record.reasons.get(str(task_id), {})
    factor, share = reason.get("factor"), reason.get("share")
    if factor == "skipped":
        return "other", "somebody skipped it, so it comes after all others"
    if isinstance(share, int | float) and factor in ("different", "typical"):
        more = "less like the labeled images" if factor == "different" else "more typical of all images"
        return factor, f"{more} than {_percent(share)} of those left" + (f"; {leaning}" if leaning else "")
    if record.acquisition == "knn_of_high_loss":
        near = "near a labeled image that a model gets wrong when it has not learned it"
        return "other", near + (f"; {leaning}" if leaning else "")
    if record.acquisition == "random":
        return "chance", "drawn at random"
    if leaning and record.acquisition in ASK_DOUBT:
        is_close = _is_close(guesses) if record.threshold is None else abs(guesses[0]["probability"] - 0.5) < CLOSE / 2
        if is_close or factor == "uncertain":
            return "uncertain", leaning if is_close else f"less sure than of most others: {leaning}"
    return "other", leaning or f"chosen by the strategy {record.acquisition}"


def _leaning(guesses: Sequence[Mapping[str, Any]]) -> str:
    """What the model makes of the image, in words; empty without guesses."""
    told = [f"'{guess['label']}' ({_percent(guess['probability'])})" for guess in guesses]
    if len(told) < 2:
        return f"taken for {told[0]}" if told else ""
    if _is_close(guesses):
        return f"uncertain between {told[0]} and {told[1]}"
    return f"rather {told[0]} than {told[1]}"


def _is_close(guesses: Sequence[Mapping[str, Any]]) -> bool:
    return len(guesses) == 2 and guesses[0]["probability"] - guesses[1]["probability"] < CLOSE


def _doubt(guesses: Sequence[Mapping[str, Any]]) -> str:
    """Which label the model doubts most, where an image may have several; empty without guesses."""
    if not guesses:
        return ""
    return f"whether it has '{guesses[0]['label']}' is uncertain ({_percent(guesses[0]['probability'])})"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _interval(point: CurvePoint, *, of_sets: bool) -> list[float]:
    """The 95 % interval of a point: of a measured one Wilson's; an expected one is as far off as such figures were."""
    if point.kind == "measured":
        return list(wilson_interval(round(point.accuracy * point.n_evaluated), point.n_evaluated))
    reach = Z_95 * confidence_error(of_sets=of_sets)
    return [max(0.0, point.accuracy - reach), min(1.0, point.accuracy + reach)]
