"""From the image reference of a Label Studio task to a decoded RGB picture."""

from __future__ import annotations

import base64
import binascii
import contextlib
import re
import threading
import time
import urllib.parse
import warnings
from collections.abc import Callable, Iterator, Mapping
from http.cookiejar import CookieJar, DefaultCookiePolicy
from io import BytesIO

import httpx
import numpy as np
from PIL import Image, UnidentifiedImageError

from backend.errors import ImageError
from backend.outgoing import ForbiddenAddressError, GuardedClients, until

DEFAULT_TIMEOUT_S = 10.0
DEFAULT_MAX_IMAGE_BYTES = 64 * 1024 * 1024
DEFAULT_MAX_IMAGE_PIXELS = 100_000_000

# A whole fetch may take this many times `timeout_s`, which bounds one connect or one read: without it a server that
# sends a byte now and then holds a worker for ever.
_WHOLE_FETCH_TIMEOUTS = 6
_MAX_REDIRECTS = 5
_CHUNK_BYTES = 64 * 1024

# Where Label Studio serves task images: its data_import/urls.py, io_storages/urls.py and core/urls.py.
_LABEL_STUDIO_PATHS = ("/data/", "/storage-data/", "/tasks/", "/projects/", "/static/")
# `url_scheme` of the storages in label_studio/io_storages/*/models.py, and those of the enterprise edition.
_STORAGE_SCHEMES = frozenset({"s3", "s3s", "gs", "azure-blob", "azure-spi", "dbx"})
# What addresses that stores signed carry: S3 (new and old), Google, Azure.
_SIGNATURES = frozenset({"X-Amz-Signature", "Signature", "X-Goog-Signature", "sig"})
_ACCEPTED = (
    "'/data/upload/…', '/data/local-files/?d=…', 'http(s)://…', 's3://…', 'gs://…', 'azure-blob://…' or 'data:…'"
)

# What browsers show, and TIFF, JPEG 2000 and portable pixmaps. Pillow's other readers stay shut: some start other
# programs (EPS runs Ghostscript).
_FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF", "JPEG2000", "ICO", "PPM", "TGA")
_EXIF_ORIENTATION = 0x0112
# EXIF 2.32, tag 0x0112: what turns each stored orientation upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Warning filters belong to the process, so the moments they are changed must not overlap between threads.
_WARNING_FILTERS_LOCK = threading.Lock()


class ImageLoader:
    """Fetches and decodes task images; one loader may be used by many threads.

    `auth_headers` is called for every request to Label Studio, so it can hand out a fresh token; what it raises passes
    through unchanged. Its headers go to Label Studio's own scheme, host and port only, and there only to where it
    serves images, also across redirects.
    References (and redirects) to machines of the local network other than Label Studio are refused unless
    `allow_private_addresses`: who may write tasks is not always one who may reach that network. Link-local addresses
    and the metadata services of clouds are refused in any case.
    """

    def __init__(
        self,
        label_studio_url: str,
        auth_headers: Callable[[], Mapping[str, str]],
        timeout_s: float = DEFAULT_TIMEOUT_S,
        max_image_bytes: int = DEFAULT_MAX_IMAGE_BYTES,
        max_image_pixels: int = DEFAULT_MAX_IMAGE_PIXELS,
        allow_private_addresses: bool = False,
    ) -> None:
        self._base = label_studio_url.rstrip("/")
        self._base_url = httpx.URL(self._base)
        self._auth_headers = auth_headers
        self._timeout_s = timeout_s
        self._max_image_bytes = max_image_bytes
        self._max_image_pixels = max_image_pixels
        # A session cookie would make later requests act for whoever it was given to, whatever their token says.
        no_cookies = CookieJar(policy=DefaultCookiePolicy(allowed_domains=[]))
        self._clients = GuardedClients(
            self._base_url,
            allow_private=allow_private_addresses,
            timeout=timeout_s,
            follow_redirects=False,
            cookies=no_cookies,
        )

    def load(self, reference: str, task_id: int | None = None, *, min_side: int | None = None) -> Image.Image:
        """Return the image a task refers to, upright and in RGB.

        `min_side` (pixels) allows a large JPEG to be decoded at a fraction of its size, never below twice `min_side`
        on the shorter side. Storage references (`s3://…`) need the `task_id` they came from. Raises ImageError.
        """
        payload = self.fetch(reference, task_id)
        try:
            return decode(payload, max_image_pixels=self._max_image_pixels, min_side=min_side)
        except ImageError as exc:
            raise ImageError(f"image {_shown(reference)} {exc}", transient=exc.transient) from exc

    def fetch(self, reference: str, task_id: int | None = None) -> bytes:
        """Return the bytes behind a reference; raises ImageError, `transient` when trying again later may help."""
        if not isinstance(reference, str) or not reference.strip():
            came = "is empty" if isinstance(reference, str) else f"is a {type(reference).__name__}, not a text"
            raise ImageError(f"the task's image reference {came}; expected {_ACCEPTED}")
        reference = reference.strip()
        if reference[:5].lower() == "data:":
            return self._read_data_uri(reference)
        try:
            url = self._address(reference, task_id)
            deadline = time.monotonic() + _WHOLE_FETCH_TIMEOUTS * self._timeout_s
            with until(deadline):
                return self._download(url, _shown(reference), deadline)
        except (httpx.InvalidURL, UnicodeError, OverflowError) as exc:
            raise ImageError(f"image {_shown(reference)} is no valid address ({exc}); correct it in the task") from exc

    def close(self) -> None:
        """Close the pooled connections."""
        self._clients.close()

    def _address(self, reference: str, task_id: int | None) -> httpx.URL:
        scheme = reference.partition("://")[0].lower() if "://" in reference else ""
        if scheme in ("http", "https"):
            return httpx.URL(reference)
        if scheme in _STORAGE_SCHEMES:
            if task_id is None:
                raise ImageError(
                    f"image {_shown(reference)} lies in a cloud storage, which Label Studio resolves per task, but it"
                    " came without a task id; ask for it together with the id of its task"
                )
            # The same address Label Studio gives its own frontend: io_storages/base_models.py, resolve_uri.
            file_uri = base64.urlsafe_b64encode(reference.encode()).decode()
            return httpx.URL(f"{self._base}/tasks/{task_id}/resolve/", params={"fileuri": file_uri})
        if not scheme and (path := self._label_studio_path(reference)) is not None:
            return httpx.URL(self._base + path)
        raise ImageError(f"image {_shown(reference)} is not a reference this service can follow; expected {_ACCEPTED}")

    def _label_studio_path(self, reference: str) -> str | None:
        """The reference below `label_studio_url`, or None when Label Studio would not serve it."""
        # Served under a prefix (FORCE_SCRIPT_NAME), Label Studio writes the prefix into its upload references.
        prefix = self._base_url.path.rstrip("/")
        path = reference.removeprefix(prefix) if prefix and reference.startswith(prefix + "/") else reference
        return path if path.startswith(_LABEL_STUDIO_PATHS) and not _steps_up(path) else None

    def _read_data_uri(self, reference: str) -> bytes:
        # RFC 2397: data:[<mediatype>][;base64],<data>
        header, comma, body = reference[5:].partition(",")
        if not comma:
            raise ImageError(
                f"image {_shown(reference)} has no ',' before its content; expected 'data:<type>;base64,…'"
            )
        payload = urllib.parse.unquote_to_bytes(body)
        if header.lower().replace(" ", "").endswith(";base64"):
            packed = re.sub(rb"\s", b"", payload).translate(bytes.maketrans(b"-_", b"+/"))
            try:
                payload = base64.b64decode(packed + b"=" * (-len(packed) % 4), validate=True)
            except binascii.Error as exc:
                raise ImageError(
                    f"image {_shown(reference)} is not valid base64 ({exc}); write the image into the task again"
                ) from exc
        if len(payload) > self._max_image_bytes:
            raise self._too_large(_shown(reference))
        return _checked_payload(payload, _shown(reference))

    def _download(self, url: httpx.URL, shown: str, deadline: float) -> bytes:
        for _ in range(_MAX_REDIRECTS + 1):
            if url.scheme not in ("http", "https") or not url.host:
                raise ImageError(f"image {shown} leads to {_shown(str(url))}, which is not an http(s) address")
            try:
                with self._clients.client_for(url).stream("GET", url, headers=self._headers(url)) as response:
                    if not response.has_redirect_location:
                        return self._read(response, url, shown, deadline)
                    next_url = url.join(response.headers["location"])
            except ForbiddenAddressError as exc:
                raise _forbidden(exc, shown) from exc
            except httpx.TimeoutException as exc:
                if time.monotonic() >= deadline:
                    raise self._too_slow(url, shown) from exc
                raise ImageError(
                    f"image {shown}: {url.host} did not answer within {self._timeout_s:g} s; check that it is up",
                    transient=True,
                ) from exc
            except (httpx.UnsupportedProtocol, httpx.LocalProtocolError, httpx.DecodingError) as exc:
                raise ImageError(f"image {shown}: {url.host} cannot be read from: {exc}") from exc
            except httpx.TransportError as exc:
                raise ImageError(
                    f"image {shown}: the connection to {url.host} failed ({exc}); check the address and that it is up",
                    transient=True,
                ) from exc
            url = next_url
        raise ImageError(f"image {shown}: more than {_MAX_REDIRECTS} redirects, the last to {_shown(str(url))}")

    def _headers(self, url: httpx.URL) -> dict[str, str]:
        # Images are compressed already, and an unpacked answer would have to be bounded once more.
        headers = {"Accept": "image/*,*/*;q=0.8", "Accept-Encoding": "identity"}
        if self._gets_token(url):
            headers.update(self._auth_headers())
        return headers

    def _is_label_studio(self, url: httpx.URL) -> bool:
        return _origin(url) == _origin(self._base_url)

    def _gets_token(self, url: httpx.URL) -> bool:
        """Whether the token goes along: a reference must not make us ask Label Studio for other things than images."""
        path, prefix = url.raw_path.decode("ascii"), self._base_url.path.rstrip("/")
        if not self._is_label_studio(url) or not path.startswith(f"{prefix}/"):
            return False
        return self._label_studio_path(path) is not None

    def _read(self, response: httpx.Response, url: httpx.URL, shown: str, deadline: float) -> bytes:
        if response.status_code != httpx.codes.OK:
            raise self._refused(response.status_code, url, shown)
        announced = response.headers.get("content-length", "")
        if announced.isdecimal() and int(announced) > self._max_image_bytes:
            raise self._too_large(shown)
        payload = bytearray()
        for chunk in response.iter_bytes(_CHUNK_BYTES):
            payload += chunk
            if len(payload) > self._max_image_bytes:
                raise self._too_large(shown)
            if time.monotonic() > deadline:
                raise self._too_slow(url, shown)
        return _checked_payload(bytes(payload), shown)

    def _refused(self, status: int, url: httpx.URL, shown: str) -> ImageError:
        own = self._gets_token(url)
        where = "Label Studio" if own else url.host
        passing = status in (408, 429) or status >= 500
        if not own and status in (400, 401, 403, 404) and _SIGNATURES.intersection(url.params):
            advice = (
                "Label Studio signed this address for us; check that the file still exists, that the keys in Label"
                " Studio's storage may read it, and that both clocks are right"
            )
        elif status in (401, 403):
            advice = (
                "check the Label Studio token and that its user may see the project (and, for local files, that"
                " LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED is set)"
                if own
                else f"it is not where Label Studio ({self._base}) serves images, so no token was sent; make the image"
                " readable without one, or correct the Label Studio address"
            )
        elif status == 404:
            advice = "check that the file still exists and, for a cloud storage, that it is connected to the project"
        elif own and status == httpx.codes.FAILED_DEPENDENCY:
            # io_storages/proxy_api.py: whatever the storage said, an outage as well as an object that is gone.
            passing = True
            advice = "its cloud storage did not give the file; check that it still exists, and the storage's keys"
        elif status == 429:
            advice = "it asks for fewer requests; try again later"
        elif status >= 500:
            advice = "try again later, and look into its log if that goes on"
        else:
            advice = "open the address in a browser to see why"
        return ImageError(f"image {shown}: {where} answered HTTP {status}; {advice}", transient=passing)

    def _too_slow(self, url: httpx.URL, shown: str) -> ImageError:
        longest_s = _WHOLE_FETCH_TIMEOUTS * self._timeout_s
        return ImageError(
            f"image {shown}: {url.host} was still sending after {longest_s:g} s; check the connection to it",
            transient=True,
        )

    def _too_large(self, shown: str) -> ImageError:
        limit_mib = self._max_image_bytes / 1024 / 1024
        return ImageError(f"image {shown} is larger than {limit_mib:g} MiB; make it smaller or raise the limit")


def decode(
    payload: bytes, *, max_image_pixels: int = DEFAULT_MAX_IMAGE_PIXELS, min_side: int | None = None
) -> Image.Image:
    """Return the (first) image in the bytes: upright, in RGB, transparency laid on white.

    The number of pixels is read from the header and checked before anything is unpacked. `min_side` as in
    `ImageLoader.load`. Raises ImageError. May hold about eight bytes per pixel for a moment.
    """
    # Pillow's readers answer damaged files with many kinds of exception (OSError, SyntaxError, ValueError,
    # struct.error, KeyError, …): whatever they raise says the same thing about the file, hence the broad clause.
    try:
        with _without_pillow_warnings():
            Image.init()
            # Some builds of Pillow lack a format.
            formats = [kind for kind in _FORMATS if kind in Image.OPEN]
            image: Image.Image = Image.open(BytesIO(payload), formats=formats)
            width, height = image.size
            if width * height > max_image_pixels:
                raise _too_many_pixels(f"{width} x {height} pixels", max_image_pixels)
            if min_side is not None:
                image.draft(None, (2 * min_side, 2 * min_side))
        image.load()
        return _as_rgb(_upright(image))
    except ImageError:
        raise
    except Image.DecompressionBombError as exc:
        raise _too_many_pixels("far too many pixels", max_image_pixels) from exc
    except UnidentifiedImageError as exc:
        kind = " but an SVG drawing" if b"<svg" in payload[:1024].lower() else ""
        raise ImageError(f"is not an image{kind}; expected a whole JPEG, PNG, GIF, WebP, BMP, TIFF or AVIF") from exc
    except Exception as exc:
        raise ImageError(f"is damaged or cut short ({exc}); upload it again") from exc


@contextlib.contextmanager
def _without_pillow_warnings() -> Iterator[None]:
    """Silence what Pillow says about odd headers: an image that can be read is fine, any other raises."""
    with _WARNING_FILTERS_LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _upright(image: Image.Image) -> Image.Image:
    try:
        with _without_pillow_warnings():
            orientation = image.getexif().get(_EXIF_ORIENTATION)
    except Exception:  # a damaged EXIF block, raised as anything from SyntaxError to struct.error, spoils no picture
        return image
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    if image.mode == "F" or image.mode.startswith("I"):
        image = _eight_bits(image)
    if image.has_transparency_data:
        upon_white = Image.new("RGBA", image.size, "white")
        upon_white.alpha_composite(image.convert("RGBA"))
        image = upon_white
    return image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Greyscale of 16 or 32 bits as 8 bits; 16-bit values keep their scale, wider ones are stretched to their range."""
    values = np.nan_to_num(np.asarray(image, dtype=np.float32))  # (H, W)
    low, high = float(values.min()), float(values.max())
    if image.mode.startswith("I") and low >= 0 and high <= 65535:
        low, high = 0.0, 65535.0
    elif image.mode == "F" and low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    scaled = (values - low) * (255 / max(high - low, 1e-12))
    return Image.fromarray((scaled + 0.5).astype(np.uint8))


def _too_many_pixels(came: str, max_image_pixels: int) -> ImageError:
    return ImageError(f"has {came}; at most {max_image_pixels:,} are read: make it smaller or raise the limit")


def _checked_payload(payload: bytes, shown: str) -> bytes:
    if not payload:
        raise ImageError(f"image {shown} is empty (0 bytes); upload it again")
    start = payload[:512].lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html")):
        raise ImageError(
            f"image {shown} gave a web page instead of an image, most likely a login page; check the token and that the"
            " address leads to the image itself"
        )
    return payload


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port or {"http": 80, "https": 443}.get(url.scheme)


def _steps_up(path: str) -> bool:
    """Whether '..' is a step of the path or of what a query names, however often its characters are encoded."""
    for _ in range(4):
        if ".." in re.split(r"[/\\\\?&=#]", path):
            return True
        path = urllib.parse.unquote(path)
    return False


def _forbidden(exc: ForbiddenAddressError, shown: str) -> ImageError:
    if exc.kind == "machine":
        return ImageError(
            f"image {shown}: {exc.host} is {exc.address}, an address of the machine, its network or its cloud, where"
            " there are no images; correct it in the task"
        )
    return ImageError(
        f"image {shown}: {exc.host} is on a private network ({exc.address}), from which no images are fetched; serve it"
        " through Label Studio or from a public address, or set ALLOW_PRIVATE_ADDRESSES=true",
        transient=True,  # until somebody sets it
    )


def _shown(reference: str) -> str:
    """The reference as messages and logs may show it: short, without passwords and without signed queries."""
    text = reference.strip()
    if text[:5].lower() == "data:":
        return repr(text[:40] + ("…" if len(text) > 40 else ""))
    scheme, separator, rest = text.partition("://")
    if separator:
        rest, query, _ = rest.partition("?")
        host, slash, path = rest.partition("/")
        text = scheme + separator + host.rpartition("@")[2] + slash + path + ("?…" if query else "")
    return repr(text if len(text) <= 200 else text[:200] + "…")
