"""How a process of this package writes its log: one event a line, as text for people or as JSON for programs.

A message is an event and its facts, `logger.info("retrained project=%d version=%s", 3, version)`. In both formats the
facts can be told from the rest: JSON has them as fields of their own, with the types they were logged with. What holds
for everything that is done meanwhile (the job, the request) is given once, by `log_context`.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar, Token, copy_context
from typing import Any, ParamSpec, TypeVar

SHORTEST_SECRET = 8
"""Characters from which a secret is blotted out of the log; a shorter one would blot out words."""

BLOT = "…"

_CONVERSION = re.compile(r"(?:\b(\w+)=)?%[#0 +-]*\d*(?:\.\d+)?([diouxXeEfFgGcrsa%])")
_CONTROL = re.compile(r"[\x00-\x1f\x7f\x85\u2028\u2029]")
_RESERVED = frozenset({"time", "level", "logger", "message", "exception"})

_context: ContextVar[Mapping[str, object]] = ContextVar("log_context")

Parameters = ParamSpec("Parameters")
Answer = TypeVar("Answer")


@contextmanager
def log_context(**facts: object) -> Iterator[None]:
    """Adds these facts to every line that is logged inside, in this thread and in those begun by `in_log_context`."""
    token = set_log_context(**facts)
    try:
        yield
    finally:
        _context.reset(token)


def set_log_context(**facts: object) -> Token[Mapping[str, object]]:
    """As `log_context`, until `reset_log_context` is given the token; for callers that see only a begin and an end."""
    return _context.set({**_context.get({}), **facts})


def reset_log_context(token: Token[Mapping[str, object]]) -> None:
    """Ends what `set_log_context` began."""
    _context.reset(token)


def in_log_context(work: Callable[Parameters, Answer]) -> Callable[Parameters, Answer]:
    """The same work for another thread, which logs with the facts that hold here and now."""
    context = copy_context()

    def inside(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Answer:
        return context.run(work, *args, **kwargs)

    return inside


def configure_logging(level: str, log_format: str = "text", secrets: Sequence[str] = ()) -> None:
    """One line per event on standard error, times in UTC; libraries, rq and gunicorn among them, in the same form.

    Libraries only speak from WARNING on. `secrets` are blotted out wherever they would stand.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter(secrets) if log_format == "json" else TextFormatter(secrets))
    logging.basicConfig(level="WARNING", handlers=[handler], force=True)
    logging.getLogger("backend").setLevel(level)
    logging.captureWarnings(True)


class TextFormatter(logging.Formatter):
    """`2026-01-01T00:00:00Z INFO backend.loop.train retrained project=3 labels=42 took=0.80s job=retrain-3-0f3a`.

    The context stands at the end, without what the message says itself. A line break in a message is written as \\n, so
    that nobody can make a line of their own; the lines of a traceback follow, indented.
    """

    def __init__(self, secrets: Sequence[str] = ()) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s %(message)s", "%Y-%m-%dT%H:%M:%SZ")
        self.converter = time.gmtime
        self._blotted = _blotter(secrets)

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        said = facts_of(record)
        context = "".join(f" {name}={value}" for name, value in _context.get({}).items() if name not in said)
        line = (
            f"{self.formatTime(record, self.datefmt)} {record.levelname} {record.name} {record.getMessage()}{context}"
        )
        line = _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), line)
        exception = _exception_of(self, record)
        if exception:
            line += "".join(f"\n    {part}" for part in exception.splitlines())
        return self._blotted(line)


class JsonFormatter(logging.Formatter):
    """One object per line: time, level, logger, message; the context's facts; the message's facts; exception if any."""

    def __init__(self, secrets: Sequence[str] = ()) -> None:
        super().__init__(datefmt="%Y-%m-%dT%H:%M:%S")
        self.converter = time.gmtime
        self._blotted = _blotter(secrets)

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        facts = {**_context.get({}), **facts_of(record)}
        content: dict[str, Any] = {
            "time": f"{self.formatTime(record, self.datefmt)}.{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **{name: value for name, value in facts.items() if name not in _RESERVED},
        }
        exception = _exception_of(self, record)
        if exception:
            content["exception"] = exception
        return json.dumps({name: self._plain(value) for name, value in content.items()}, ensure_ascii=False)

    def _plain(self, value: object) -> object:
        """What JSON can hold; no NaN, which it cannot."""
        if value is None or isinstance(value, bool | int) or (isinstance(value, float) and abs(value) < float("inf")):
            return value
        return self._blotted(str(value))


def facts_of(record: logging.LogRecord) -> dict[str, object]:
    """The facts that a record's message holds as `name=%d` and the like, with the values that were given for them.

    Read from the template and not from the text, so that nothing that comes from outside can pose as a fact.
    """
    if not isinstance(record.msg, str) or not isinstance(record.args, tuple):
        return {}
    facts: dict[str, object] = {}
    values = iter(record.args)
    for name, kind in _CONVERSION.findall(record.msg):
        if kind == "%":
            continue
        value = next(values, None)
        if name:
            facts[name] = value
    return facts


def _exception_of(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    text = formatter.formatException(record.exc_info) if record.exc_info else ""
    return "\n".join(filter(None, (text, record.stack_info)))


def _blotter(secrets: Sequence[str]) -> Callable[[str], str]:
    """Replaces every secret in a text."""
    hidden = sorted({secret for secret in secrets if len(secret) >= SHORTEST_SECRET}, key=len, reverse=True)
    if not hidden:
        return lambda text: text
    pattern = re.compile("|".join(map(re.escape, hidden)))
    return lambda text: pattern.sub(BLOT, text)
