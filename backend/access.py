"""Who may: Basic auth for Label Studio and people, a secret header for the webhook, a token for the status pages."""

from __future__ import annotations

import hmac
import ipaddress
from typing import TYPE_CHECKING

from backend.config import Settings
from backend.errors import SettingsError
from backend.loop.connect import SECRET_HEADER

if TYPE_CHECKING:
    from flask import Request
    from werkzeug.datastructures import Authorization

OPEN_TO_ALL = ("/openapi.json", "/docs")
"""Pages without anything of a user's in them: what the service offers stands in its source code, too."""

OPEN_FOLDERS = ("/docs/", "/assets/")
"""What the pages are made of: scripts, styles and libraries, the same for all who run this release.

They stand in the source code, too, and ask the API for whatever is a user's; that is guarded. So a page that refuses
somebody looks like the others, and a browser that sends no credentials along for a file still gets it.
"""

PROBES = ("/health", "/ready")
"""What supervisors and load balancers ask, who have no credentials."""

REFUSAL = "wrong or missing credentials; give BACKEND_USER and BACKEND_PASSWORD as Basic auth"


def may_enter(request: Request, settings: Settings, webhook_secret: str) -> bool:
    """Whether the request may be answered, judged before anything of its body is read.

    Basic auth opens everything. The webhook's secret opens the webhook alone, API_TOKEN the status pages alone, as a
    Bearer token or, for browsers, as the password of any user. Probes may ask without credentials; wrong ones are
    refused there as well, so that who connects learns of it.
    Without BACKEND_PASSWORD everybody may enter, but for the status pages if there is an API_TOKEN.
    """
    password = settings.backend_password
    if request.path in OPEN_TO_ALL or request.path.startswith(OPEN_FOLDERS):
        return True
    is_page = request.method in ("GET", "HEAD") and _is_page(request.path)
    if not password and not (is_page and settings.api_token):
        return True
    if request.path == "/webhook" and _same_bytes(request.headers.get(SECRET_HEADER, ""), webhook_secret):
        return True
    given = _authorization(request)
    if given is None:
        return request.path in PROBES and "Authorization" not in request.headers
    if given.type == "bearer":
        return is_page and _same_bytes(given.token or "", settings.api_token)
    if given.type == "basic":
        right_user = _same(given.username or "", settings.backend_user)
        right_password = _same(given.password or "", password)
        # A browser sends what it is told as Basic auth only; what the token opens, it then opens to people as well.
        right_token = is_page and _same(given.password or "", settings.api_token)
        return (right_user and right_password) or right_token
    return False


def is_known(request: Request, settings: Settings) -> bool:
    """Whether one who may enter may know details: not a probe that shows nothing where others have to."""
    is_guarded = bool(settings.backend_password or settings.api_token)
    return not is_guarded or request.path not in PROBES or "Authorization" in request.headers


def refusal(request: Request, settings: Settings) -> str:
    """What to tell somebody who may not enter; never what was wrong."""
    if settings.api_token and _is_page(request.path):
        return f"{REFUSAL}, or API_TOKEN as a Bearer token"
    return REFUSAL


def check_exposure(settings: Settings) -> None:
    """Raises SettingsError when the service would be open to anybody on the network without having been told to be."""
    if settings.backend_password or settings.allow_anonymous or is_loopback(settings.bind):
        return
    raise SettingsError(
        f"BACKEND_PASSWORD is empty and BIND={settings.bind} may be reached from other machines: anybody there could"
        " read what this service knows and tell it anything; set BACKEND_PASSWORD, or bind to 127.0.0.1, or set"
        " ALLOW_ANONYMOUS=true if something else decides who gets in"
    )


def is_loopback(bind: str) -> bool:
    """Whether a 'host:port' is reached from this machine only; a name other than localhost counts as reached."""
    host = bind.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _is_page(path: str) -> bool:
    return path in ("/", "/metrics", "/ready") or path.startswith(("/api/", "/projects/"))


def _authorization(request: Request) -> Authorization | None:
    try:
        return request.authorization
    except ValueError:  # bytes beyond ASCII where base64 should be
        return None


def _same(given: str, expected: str) -> bool:
    """Whether both are the same, in a time that does not tell how much of it is; nothing is the same as ''."""
    return hmac.compare_digest(given.encode("utf-8", "surrogatepass"), expected.encode()) and bool(expected)


def _same_bytes(header: str, expected: str) -> bool:
    """The same for the text of a header, of which WSGI makes one character out of each byte."""
    try:
        given = header.encode("latin-1")
    except UnicodeEncodeError:
        return False
    return hmac.compare_digest(given, expected.encode()) and bool(expected)
