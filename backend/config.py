"""Settings: read once from a mapping, all mistakes reported together, secrets never shown.

This is the only module that reads the environment.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from backend.errors import SettingsError
from backend.schema import ValidationFilter
from backend.storage import Place, parse_place

LOG_FORMATS = ("text", "json")
"""Choices of LOG_FORMAT; see `backend.logs`."""

SEED_STRATEGIES = ("typical_coreset", "coreset", "typiclust", "probcover", "random")
"""Choices of SEED_STRATEGY: the names of `learning.first_batch.FIRST_BATCH_STRATEGIES`."""

ACQUISITIONS = (
    "information_density",
    "margin",
    "least_confidence",
    "entropy",
    "coral",
    "badge",
    "knn_of_high_loss",
    *SEED_STRATEGIES,
)
"""Choices of ACQUISITION: the names of `learning.later_rounds.LATER_ROUND_STRATEGIES`, then the above."""

SCORE_ORDERS = ("ascending", "descending")
"""Choices of SCORE_ORDER: from which end of the scores that Label Studio shows the queue begins."""


def _text(raw: str) -> str:
    return raw


def _path(raw: str) -> Path:
    try:
        return Path(raw).expanduser()
    except RuntimeError:
        raise ValueError("a path; there is no such user to whose home ~ could point") from None


def _address(raw: str) -> str:
    if not (raw.startswith(("http://", "https://")) and _has_host(raw)) or "@" in urlsplit(raw).netloc:
        raise ValueError("an address such as http://127.0.0.1:8080, without a user or a password in it")
    return raw.rstrip("/")


def _redis_address(raw: str) -> str:
    if not (raw.startswith("unix://") or (raw.startswith(("redis://", "rediss://")) and _has_host(raw))):
        raise ValueError("an address such as redis://127.0.0.1:6379/0")
    return raw


def _has_host(url: str) -> bool:
    """Whether the address names a host, and a port that is a number if any."""
    try:
        parts = urlsplit(url)
        return bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _listener(raw: str) -> str:
    host, _, port = raw.rpartition(":")
    if not (host and port.isascii() and port.isdigit() and len(port) < 6 and 0 < int(port) < 65_536):
        raise ValueError("a host and a port such as 0.0.0.0:9090")
    return raw


def _whole(minimum: int, maximum: int | None = None) -> Callable[[str], int]:
    def parse(raw: str) -> int:
        bound = f"a whole number of at least {minimum}" + (f" and at most {maximum}" if maximum is not None else "")
        try:
            value = int(raw)
        except ValueError:
            raise ValueError(bound) from None
        if value < minimum or (maximum is not None and value > maximum):
            raise ValueError(bound)
        return value

    return parse


def _seconds(minimum: float) -> Callable[[str], float]:
    def parse(raw: str) -> float:
        bound = f"a number of seconds of at least {minimum:g}"
        try:
            value = float(raw)
        except ValueError:
            raise ValueError(bound) from None
        if not minimum <= value < float("inf"):
            raise ValueError(bound)
        return value

    return parse


def _choice(*names: str) -> Callable[[str], str]:
    def parse(raw: str) -> str:
        if raw not in names:
            raise ValueError("one of " + ", ".join(names))
        return raw

    return parse


def _share(*, with_ends: bool) -> Callable[[str], float]:
    def parse(raw: str) -> float:
        bound = "a share from 0 to 1, such as 0.8" if with_ends else "a share above 0 and below 1, such as 0.95"
        try:
            value = float(raw)
        except ValueError:
            raise ValueError(bound) from None
        if not (0 < value < 1 or (with_ends and value in (0, 1))):
            raise ValueError(bound)
        return value

    return parse


def _switch(raw: str) -> bool:
    if raw.lower() in ("1", "true", "yes", "on"):
        return True
    if raw.lower() in ("0", "false", "no", "off"):
        return False
    raise ValueError("true or false")


def _setting(parse: Callable[[str], Any], default: Any, description: str, *, secret: bool = False) -> Any:
    return field(default=default, repr=not secret, metadata={"parse": parse, "description": description})


# ruff: noqa: RUF009 - `_setting` is a spelling of dataclasses.field
@dataclass(frozen=True, kw_only=True)
class Settings:
    """Every setting, with the environment variable of the same name in capitals."""

    label_studio_url: str = _setting(_address, "http://127.0.0.1:8080", "where this service reaches Label Studio")
    label_studio_token: str = _setting(
        _text, "", "Label Studio access token: a personal access token or a legacy token", secret=True
    )
    backend_url: str = _setting(_address, "http://127.0.0.1:9090", "where Label Studio reaches this service")
    backend_user: str = _setting(_text, "label-studio", "Basic auth user that Label Studio and people log in with")
    backend_password: str = _setting(
        _text, "", "Basic auth password; empty: anybody may who reaches the port, see ALLOW_ANONYMOUS", secret=True
    )
    webhook_secret: str = _setting(
        _text, "", "secret header of the webhook; empty: derived from BACKEND_PASSWORD", secret=True
    )
    api_token: str = _setting(
        _text,
        "",
        "Bearer token that opens the status pages and /metrics, and nothing else; empty: none does",
        secret=True,
    )
    allow_anonymous: bool = _setting(
        _switch, False, "serve without BACKEND_PASSWORD although BIND is reached from other machines"
    )
    bind: str = _setting(_listener, "127.0.0.1:9090", "address and port the web service listens on")
    web_workers: int = _setting(_whole(1, 64), 2, "web processes")
    web_threads: int = _setting(_whole(1, 256), 8, "threads of each web process")
    redis_url: str = _setting(
        _redis_address, "redis://127.0.0.1:6379/0", "Redis or Valkey, for the job queue", secret=True
    )
    data_dir: Place = _setting(
        parse_place, Path("data"), "folder, or address such as s3://bucket/prefix, for embeddings and model versions"
    )
    backbone: str = _setting(_text, "mobilenet_v2", "torchvision classification model whose features are used")
    backbone_weights: Path | None = _setting(_path, None, "weights file for BACKBONE; empty: torchvision's download")
    seed_strategy: str = _setting(
        _choice(*SEED_STRATEGIES), "typical_coreset", "how the first batch is chosen: " + ", ".join(SEED_STRATEGIES)
    )
    seed_size: int = _setting(_whole(1, 10_000), 30, "images of the first batch, chosen before there is any model")
    acquisition: str = _setting(
        _choice(*ACQUISITIONS), "information_density", "how images are chosen after it: " + ", ".join(ACQUISITIONS)
    )
    train: str = _setting(
        _choice("head", "finetune"),
        "head",
        "what is trained: head; or finetune: with a GPU and labels enough, from time to time the backbone too",
    )
    finetune_from: int = _setting(
        _whole(20), 300, "labels from which TRAIN=finetune fine-tunes; again whenever they have doubled"
    )
    window_size: int = _setting(_whole(1, 10_000), 30, "tasks that carry the newest version's queue score at any time")
    score_order: str = _setting(
        _choice(*SCORE_ORDERS),
        "ascending",
        "which scores come first: ascending, the lowest, as Label Studio's sampling by uncertainty takes them; "
        "descending, the highest, for those who sort the Data Manager and label tasks as displayed",
    )
    validation_filter: ValidationFilter | None = _setting(
        ValidationFilter.parse,
        None,
        "tasks to measure accuracy on, never selected or trained on: ground_truth or data.FIELD=VALUE; empty: none",
    )
    target_accuracy: float = _setting(
        _share(with_ends=False), 0.95, "accuracy to reach, 0 to 1; the status says how many more labels that takes"
    )
    prelabel_from: float = _setting(
        _share(with_ends=True),
        0.8,
        "confidence, 0 to 1, from which an image's pre-label is shown, once it was tried on labels; 0: all, 1: none",
    )
    publish_wait_s: float = _setting(
        _seconds(0), 0.6, "longest wait of a webhook answer for the version with its label; 0: never wait"
    )
    reconcile_interval_s: float = _setting(_seconds(1), 60.0, "pause between comparisons with Label Studio")
    keep_versions: int = _setting(_whole(1), 20, "model versions kept on disk")
    embed_batch_size: int = _setting(_whole(1, 4096), 512, "images per embedding job")
    shard_size: int = _setting(
        _whole(1000), 100_000, "largest project, in images, that each worker holds in memory; see docs/scaling.md"
    )
    image_timeout_s: float = _setting(_seconds(0.1), 10.0, "longest wait for one image")
    max_image_bytes: int = _setting(_whole(1024), 64 * 2**20, "largest image file read")
    max_image_pixels: int = _setting(_whole(64), 100_000_000, "largest image decoded, width × height")
    allow_private_addresses: bool = _setting(
        _switch, False, "fetch images from private networks too, not only from Label Studio and public addresses"
    )
    max_request_bytes: int = _setting(_whole(1024), 32 * 2**20, "largest request body accepted")
    max_tasks_per_request: int = _setting(_whole(1), 50_000, "most tasks in one request for predictions")
    request_timeout_s: float = _setting(_seconds(0.1), 30.0, "longest wait for a client to send a whole request")
    random_state: int = _setting(_whole(0, 2**31 - 1), 0, "seed of everything random; recorded with every version")
    log_level: str = _setting(_choice("DEBUG", "INFO", "WARNING", "ERROR"), "INFO", "least severe line logged")
    log_format: str = _setting(_choice(*LOG_FORMATS), "text", "how lines are logged: text, or json, an object a line")
    allow_weights_download: bool = _setting(_switch, True, "let torchvision download BACKBONE's weights")

    def secrets(self) -> list[str]:
        """The values that must not be seen: token, passwords (that in the address of Redis too) and webhook secret."""
        parts = urlsplit(self.redis_url)
        passwords = [parts.password or "", *parse_qs(parts.query).get("password", [])]
        found = [self.label_studio_token, self.backend_password, self.webhook_secret, *passwords]
        return [secret for secret in (*found, *map(unquote, passwords)) if secret]

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, str]) -> Settings:
        """Settings from names in capitals; empty values count as absent.

        Raises SettingsError that lists every malformed value at once, without showing secrets.
        """
        values: dict[str, Any] = {}
        mistakes: list[str] = []
        for item in fields(cls):
            raw = mapping.get(item.name.upper(), "").strip()
            if not raw:
                continue
            try:
                values[item.name] = item.metadata["parse"](raw)
            except ValueError as expected:
                shown = re.sub("//[^/]*@", "//…@", repr(raw)) if item.repr else "the value given"
                mistakes.append(f"{item.name.upper()}: {shown} is not {expected}")
        if mistakes:
            raise SettingsError("settings are wrong; correct them and start again:\n  " + "\n  ".join(mistakes))
        return cls(**values)

    @classmethod
    def from_environment(cls, env_file: Path | None = None) -> Settings:
        """Settings from the process environment, which wins, and from a file of NAME=value lines."""
        if env_file is None:
            return cls.from_mapping(os.environ)
        if not env_file.is_file():
            raise SettingsError(f"there is no settings file {env_file}")
        from dotenv import dotenv_values

        lines = {name: value for name, value in dotenv_values(env_file).items() if value is not None}
        return cls.from_mapping({**lines, **{name: value for name, value in os.environ.items() if value.strip()}})


def describe_settings() -> list[tuple[str, str, str]]:
    """(NAME, default, description) of every setting, for the README and `--help`."""
    return [(item.name.upper(), _shown_default(item), item.metadata["description"]) for item in fields(Settings)]


def _shown_default(item: Field[Any]) -> str:
    if item.default is MISSING or item.default is None or item.default == "":
        return ""
    return str(item.default)


def process_environment(**overrides: str) -> dict[str, str]:
    """A copy of the process environment for a child process, with some names set anew."""
    return {**os.environ, **overrides}
