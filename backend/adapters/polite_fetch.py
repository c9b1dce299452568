"""Pictures that change at their address, such as webcams': asked for now and then, and never insistently."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from backend.errors import ImageError
from backend.outgoing import ForbiddenAddressError, GuardedClients, until

PAUSE_S = 1.0
"""Least pause between two requests to one host."""

FIRST_BACKOFF_S, LONGEST_BACKOFF_S = 60.0, 3600.0
"""How long a host is left alone that refuses or fails and does not say how long: doubled each time."""

LONGEST_RETRY_AFTER_S = 86_400.0
"""A host that asks for longer is asked again after a day."""

WHOLE_FETCH_TIMEOUTS = 6
MAX_REDIRECTS = 5
CHUNK_BYTES = 64 * 1024
USER_AGENT = "active-learning-watch/1 (images for labeling; one request at a time)"


@dataclass(frozen=True)
class Fetched:
    """An image's bytes, and the marks by which the host can tell next time whether it changed."""

    content: bytes
    marks: Mapping[str, str]


@dataclass
class _Host:
    asked_at: float = float("-inf")
    free_at: float = float("-inf")
    backoff_s: float = FIRST_BACKOFF_S
    reason: str = field(default="")


class PoliteFetcher:
    """Fetches one address at a time, and waits between two requests to a host; for one thread.

    Private addresses are refused unless they are allowed, link-local ones and metadata services always; see
    `backend.outgoing`. No cookie is kept, no token sent.
    """

    def __init__(
        self,
        *,
        timeout_s: float,
        max_image_bytes: int,
        allow_private: bool,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._timeout_s = timeout_s
        self._max_image_bytes = max_image_bytes
        self._clock = clock
        self._sleep = sleep
        self._hosts: dict[str, _Host] = {}
        # No host is our own: what may be reached is the same for every address.
        self._clients = GuardedClients(
            httpx.URL("http://none.invalid"), allow_private=allow_private, timeout=timeout_s, follow_redirects=False
        )

    def close(self) -> None:
        """Closes the connections."""
        self._clients.close()

    def fetch(self, address: str, marks: Mapping[str, str]) -> Fetched | None:
        """The image at an address; None if the host says that it is the one of `marks`, or is to be left alone.

        Raises ImageError; a `transient` one has made the host be left alone for a while.
        """
        deadline = time.monotonic() + WHOLE_FETCH_TIMEOUTS * self._timeout_s
        try:
            url = httpx.URL(address)
            with until(deadline):
                return self._follow(url, address, marks, deadline)
        except (httpx.InvalidURL, UnicodeError) as exc:
            raise ImageError(
                f"{address!r} is no address ({exc}); expected one such as https://host/picture.jpg"
            ) from exc

    def _follow(self, url: httpx.URL, address: str, marks: Mapping[str, str], deadline: float) -> Fetched | None:
        for _ in range(MAX_REDIRECTS + 1):
            if url.scheme not in ("http", "https") or not url.host:
                raise ImageError(f"{address} leads to {str(url)[:200]!r}, which is not an http(s) address")
            host = self._hosts.setdefault(url.host, _Host())
            now = self._clock()
            if now < host.free_at:
                return None
            self._sleep(max(0.0, host.asked_at + PAUSE_S - now))
            try:
                with self._clients.client_for(url).stream("GET", url, headers=_headers(marks)) as response:
                    if not response.has_redirect_location:
                        return self._read(response, host, address, deadline)
                    url = url.join(response.headers["location"])
            except ForbiddenAddressError as exc:
                cure = "; ALLOW_PRIVATE_ADDRESSES=true allows it" if exc.kind == "private" else ""
                raise ImageError(f"{address}: {exc}{cure}") from exc
            except httpx.HTTPError as exc:
                self._leave_alone(host, None)
                raise ImageError(
                    f"{address} does not answer ({type(exc).__name__}); {_again(host, self._clock())}", transient=True
                ) from exc
            finally:
                host.asked_at = self._clock()
        raise ImageError(f"{address}: more than {MAX_REDIRECTS} redirects, the last to {str(url)[:200]!r}")

    def _read(self, response: httpx.Response, host: _Host, address: str, deadline: float) -> Fetched | None:
        status = response.status_code
        if status == httpx.codes.NOT_MODIFIED:
            host.backoff_s = FIRST_BACKOFF_S
            return None
        if status == 429 or status >= 500:
            self._leave_alone(host, response.headers.get("retry-after"))
            raise ImageError(f"{address} answered HTTP {status}; {_again(host, self._clock())}", transient=True)
        if status != httpx.codes.OK:
            raise ImageError(f"{address} answered HTTP {status}; open it in a browser to see why")
        content = bytearray()
        for chunk in response.iter_bytes(CHUNK_BYTES):
            content += chunk
            if len(content) > self._max_image_bytes:
                raise ImageError(f"{address} is larger than MAX_IMAGE_BYTES, {self._max_image_bytes:,} bytes")
            if time.monotonic() > deadline:
                self._leave_alone(host, None)
                raise ImageError(
                    f"{address} was still sending at the end; {_again(host, self._clock())}", transient=True
                )
        host.backoff_s = FIRST_BACKOFF_S
        kept = {name: response.headers[name] for name in ("etag", "last-modified") if name in response.headers}
        return Fetched(bytes(content), kept)

    def _leave_alone(self, host: _Host, retry_after: str | None) -> None:
        asked = seconds_of(retry_after, datetime.now(UTC))
        if asked is None:
            asked, host.backoff_s = host.backoff_s, min(2 * host.backoff_s, LONGEST_BACKOFF_S)
        host.free_at = self._clock() + min(asked, LONGEST_RETRY_AFTER_S)


def seconds_of(retry_after: str | None, now: datetime) -> float | None:
    """How long a Retry-After header asks to wait: seconds, or a date (RFC 9110, 10.2.3); None if it does not say."""
    text = (retry_after or "").strip()
    if text.isdecimal() and text.isascii():
        return float(text)
    try:
        when = parsedate_to_datetime(text)
    except (ValueError, TypeError):
        return None
    return max(0.0, (when.replace(tzinfo=when.tzinfo or UTC) - now).total_seconds())


def _headers(marks: Mapping[str, str]) -> dict[str, Any]:
    headers = {"User-Agent": USER_AGENT, "Accept": "image/*,*/*;q=0.8", "Accept-Encoding": "identity"}
    names = {"etag": "If-None-Match", "last-modified": "If-Modified-Since"}
    return headers | {names[name]: value for name, value in marks.items() if name in names}


def _again(host: _Host, now: float) -> str:
    return f"its host is asked again in {max(0.0, host.free_at - now):.0f} s"
