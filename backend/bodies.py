"""Bodies of requests: read within bounds, and understood strictly, before anything else looks at them.

What JSON readers differ in or stumble over ends here with a sentence: not a number (NaN), numbers beyond all bounds,
thousands of brackets, text that is no text.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from werkzeug.exceptions import (
    ClientDisconnected,
    HTTPException,
    RequestEntityTooLarge,
    RequestTimeout,
    UnsupportedMediaType,
)

from backend.errors import BadRequestError

if TYPE_CHECKING:
    from flask import Request

MAX_NESTING = 64
"""Brackets within brackets; Label Studio's own bodies have about ten, and its tasks what people put into them."""

MAX_ITEMS = 2_000_000
"""Values of one body: 32 MiB of tasks have about half of that, and each costs up to 80 bytes of memory."""

MAX_NAME_CHARS = 200
"""Of what is the name of something: an action, a job."""

MAX_CONFIG_CHARS = 1_000_000
"""Of a labeling config; ten thousand choices take half of it."""

_BRACKETS = b"[]{}"
_STEP = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}
_ALL_BUT_BRACKETS = bytes(sorted(set(range(256)) - set(_BRACKETS)))
# Half of a pair that stands for one character beyond U+FFFF; a lone half is no text, and no UTF-8 can be made of it.
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def json_object(request: Request, *, optional: bool = False) -> Mapping[str, Any]:
    """The JSON object in the body, as json.loads gives it; of a key that comes twice the last value counts.

    `optional`: no body at all is an empty object.
    Raises BadRequestError, or an HTTPException with a sentence (408, 413, 415).
    """
    raw = _bytes_of(request)
    if optional and not raw:
        return {}
    text = _text_of(raw, request.path)
    _check_shape(raw, request.path)
    try:
        body = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
    except (ValueError, RecursionError) as exc:  # also whole numbers of more than 4,300 digits
        reason = _reason(exc)
        raise BadRequestError(
            f"{request.path} expects a JSON object in the body, and this is no JSON: {reason}"
        ) from exc
    if not isinstance(body, dict):
        kind = type(body).__name__
        raise BadRequestError(f"{request.path} expects a JSON object in the body, not {kind}")
    whole: Mapping[str, Any] = _mended(body) if _SURROGATE.search(text) else body
    return whole


def text_of(body: Mapping[str, Any], name: str, path: str, *, at_most: int, default: str | None = None) -> str:
    """The text in a field of at most so many characters. Raises BadRequestError."""
    value = body.get(name)
    if value is None and default is not None:
        return default
    if not isinstance(value, str):
        raise BadRequestError(f"{path} expects a text in {name!r}, not {type(value).__name__}")
    if len(value) > at_most:
        raise BadRequestError(f"{path} expects at most {at_most:,} characters in {name!r}, not {len(value):,}")
    return value


def tasks_of(body: Mapping[str, Any], path: str, *, at_most: int) -> list[Mapping[str, Any]]:
    """Label Studio's tasks in 'tasks', each with an id. Raises BadRequestError, RequestEntityTooLarge."""
    tasks = body.get("tasks")
    if not isinstance(tasks, list):
        raise BadRequestError(f"{path} expects a list of tasks in 'tasks', not {type(tasks).__name__}")
    if len(tasks) > at_most:
        raise RequestEntityTooLarge(
            f"{len(tasks):,} tasks in one request; at most {at_most:,} are answered: ask for fewer at a time, or raise"
            " MAX_TASKS_PER_REQUEST"
        )
    for position, task in enumerate(tasks):
        number = task.get("id") if isinstance(task, dict) else None
        if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < 2**63:
            raise BadRequestError(f"tasks[{position}] has no whole number in 'id'; expected Label Studio's task JSON")
    return tasks


def _bytes_of(request: Request) -> bytes:
    coding = request.headers.get("Content-Encoding", "").strip().lower()
    if coding not in ("", "identity"):
        raise UnsupportedMediaType(f"{request.path} reads no packed bodies; send it without Content-Encoding")
    limit = request.max_content_length
    try:
        raw = request.get_data(cache=False)
        if request.content_length is None and limit is not None and len(raw) >= limit:
            raise RequestEntityTooLarge  # of a body without a length, werkzeug gives the beginning and says nothing
        return raw
    except RequestEntityTooLarge as exc:
        raise RequestEntityTooLarge(
            f"the body is larger than {limit or 0:,} bytes; ask for fewer tasks at a time, or raise MAX_REQUEST_BYTES"
        ) from exc
    except ClientDisconnected as exc:
        raise RequestTimeout("the body did not come whole, or not in time; send it at once") from exc
    except HTTPException:
        raise
    except Exception as exc:  # gunicorn raises a dozen types of its own for malformed chunks
        raise BadRequestError(f"the body of {request.path} is not well-formed HTTP; send it again") from exc


def _text_of(raw: bytes, path: str) -> str:
    try:
        return raw.decode("utf-8-sig" if raw.startswith(b"\xef\xbb\xbf") else "utf-8")
    except UnicodeDecodeError as exc:
        raise BadRequestError(f"{path} expects JSON in UTF-8, and byte {exc.start:,} of the body is none") from exc


def _check_shape(raw: bytes, path: str) -> None:
    """Raises BadRequestError for bodies that would take more memory or stack than any sensible one."""
    # Without escaped characters every quote begins or ends a string; left to right, as JSON reads them.
    plain = raw.replace(b"\\\\", b"").replace(b'\\"', b"")
    outside = b"".join(plain.split(b'"')[::2]) if b'"' in plain else plain
    brackets = outside.translate(None, _ALL_BUT_BRACKETS)
    if outside.count(b",") + len(brackets) > MAX_ITEMS:
        raise BadRequestError(f"the body of {path} holds more than {MAX_ITEMS:,} values; send fewer at a time")
    if len(brackets) > MAX_NESTING and max(accumulate(map(_STEP.__getitem__, brackets))) > MAX_NESTING:
        raise BadRequestError(f"the body of {path} is nested deeper than {MAX_NESTING} levels; send it flatter")


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"the number {digits[:20]} is too large")
    return number


def _reason(exc: Exception) -> str:
    if isinstance(exc, json.JSONDecodeError):
        return f"{exc.msg} at character {exc.pos:,}"
    return str(exc)[:100] if str(exc).isprintable() else type(exc).__name__


def _mended(value: Any) -> Any:
    """The same with U+FFFD for every lone half of a surrogate pair; nested at most `MAX_NESTING` deep."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [_mended(item) for item in value]
    if isinstance(value, dict):
        return {_mended(name): _mended(item) for name, item in value.items()}
    return value
