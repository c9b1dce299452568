"""What commands show to people: a project's status, what they ask first first; and the page of the settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from backend.config import describe_settings

N_WINDOW_SHOWN = 8
N_SENTENCES_SHOWN = 3
WIDTH = 15


SETTINGS_PAGE = """\
# Settings

Environment variables, or lines of a file given with `python -m backend --env-file FILE …`; what stands in the
environment wins. `make` takes `.env`, and where there is none the demo's `.run/settings.env`. All mistakes are told at
once, at the start, and a secret is never shown. [docker-compose.yml](../docker-compose.yml) passes all of them on. This
page is what `python -m backend settings --markdown` prints.

| setting | default | meaning |
|---|---|---|
"""


def settings_page() -> str:
    """The page docs/settings.md, Markdown."""
    rows = [
        f"| `{name}` | {f'`{default}`' if default else ''} | {text} |\n" for name, default, text in describe_settings()
    ]
    return SETTINGS_PAGE + "".join(rows)


def status_lines(status: Mapping[str, Any]) -> Iterator[str]:
    """The lines of `python -m backend status` on a terminal."""
    version = status["model_version"]
    made = f", made {status['created_at'][:16].replace('T', ' ')} UTC" if status["created_at"] else ""
    yield f"project {status['project_id']}: {version or 'no version yet'}{made}"
    if status["pinned"]:
        yield _line("pinned", f"to {status['pinned']['version']}; to go on: --use newest")
    if status["version_note"]:
        yield _line("note", status["version_note"])
    yield _line("labels", _labels(status))
    yield _line("accuracy", _accuracy(status))
    if status["expected_accuracy"] is not None:
        yield _line(
            "expected", f"{status['expected_accuracy']:.3f}, the mean confidence over the images still to label"
        )
    if status["forecast"]:
        yield _line("suggestion", status["forecast"]["suggestion"])
    if status["validation"] and status["validation"]["note"]:
        yield _line("validation", status["validation"]["note"])
    if status["prelabels"]:
        yield _line("pre-labels", status["prelabels"]["note"])
    yield _line("next", _window(status))
    yield _line("embedding", _embedding(status["embedding"]))
    yield _line("training", _training(status))
    if status["backbone_warning"]:
        yield _line("backbone", status["backbone_warning"])
    if status["finetuning"]:
        yield _line("fine-tuning", status["finetuning"]["note"])
    number = status["project_id"]
    if status["n_suspects"]:
        count = status["n_suspects"]
        look = "labels look" if count > 1 else "label looks"
        yield _line("suspects", f"{count} {look} wrong; see: python -m backend suspects {number}")
    if status["n_disagreements"]:
        count = status["n_disagreements"]
        yield _line(
            "disagreements", f"{count} task{'s' if count > 1 else ''}; see: python -m backend disagreements {number}"
        )
    yield from _sentences("images left out", status["image_failures"])
    yield from _sentences("labels unused", status["ignored_labels"])
    for failure in status["failures"] or ():
        yield _line("failing", f"{failure['work']}, {failure['times']} times: {failure['reason']}")
    if status["last_error"] and not status["failures"]:
        yield _line("last error", status["last_error"])


def _line(name: str, text: str) -> str:
    return f"  {name:<{WIDTH}} {text}"


def _labels(status: Mapping[str, Any]) -> str:
    used, given = status["labels_used"], status["labels_given"] or 0
    waiting = f" of {given} given" if given != used else ""
    by_class = ", ".join(f"{label} {n}" for label, n in sorted(status["labels_by_class"].items()))
    left = "" if status["pool_size"] is None else f"; {status['pool_size']:,} images left"
    return f"{used:,} used{waiting}" + (f" ({by_class})" if by_class else "") + left


def _accuracy(status: Mapping[str, Any]) -> str:
    if status["accuracy"] is None:
        return "not known yet: it takes labels of two classes"
    interval = status["accuracy_interval"]
    bounds = f" ({interval[0]:.3f} to {interval[1]:.3f})" if interval else ""
    return f"{status['accuracy']:.3f}{bounds}, {status['accuracy_kind']}"


def _window(status: Mapping[str, Any]) -> str:
    window = status["window"]
    if not window:
        return "nothing is in the queue"
    more = f" … {len(window)} in all" if len(window) > N_WINDOW_SHOWN else ""
    return "tasks " + ", ".join(map(str, window[:N_WINDOW_SHOWN])) + more


def _embedding(embedding: Mapping[str, Any] | None) -> str:
    if embedding is None:
        return "not known: Redis does not answer, or it was not asked for yet"
    text = f"{embedding['done']:,} of {embedding['total']:,} images"
    if embedding["done"] < embedding["total"] and embedding["images_per_s"]:
        text += f", {embedding['images_per_s']:.0f}/s, {embedding['seconds_left']:.0f} s left"
    return text


def _training(status: Mapping[str, Any]) -> str:
    workers = status["n_workers"]
    if workers is None:
        return "not known: Redis does not answer; run: python -m backend doctor"
    if workers == 0:
        return "no worker runs: start one with python -m backend worker"
    return f"{status['training']}, {workers} worker{'s' if workers > 1 else ''}"


def _sentences(name: str, by_task: Mapping[str, str]) -> Iterator[str]:
    if not by_task:
        return
    yield _line(name, f"{len(by_task)}:")
    for task_id, reason in list(by_task.items())[:N_SENTENCES_SHOWN]:
        yield _line("", f"task {task_id}: {reason}")
