"""Fetching from real local HTTP servers, decoding of real image files made in memory."""

from __future__ import annotations

import base64
import contextlib
import socketserver
import threading
import time
import urllib.parse
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from backend.adapters.images import ImageLoader, decode
from backend.config import Settings
from backend.errors import ImageError, LabelStudioAuthError

SHARED = Path(__file__).resolve().parents[3].parent / "shared"
TOKEN = {"Authorization": "Token s3cret"}


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


PNG = encoded(Image.new("RGB", (4, 3), "red"))
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8))


@dataclass
class Answer:
    """What the server sends for one path."""

    body: bytes = PNG
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    delay_s: float = 0.0
    announced_bytes: int | None = None  # another Content-Length than the body has; -1: none at all


@dataclass
class Site:
    """A running server: answers by path (without query), and the requests it saw."""

    url: str
    answers: dict[str, Answer]
    seen: list[tuple[str, dict[str, str]]]

    def tokens(self) -> list[str | None]:
        return [headers.get("authorization") for _, headers in self.seen]


@pytest.fixture
def start_site() -> Iterator[Callable[..., Site]]:
    servers: list[ThreadingHTTPServer] = []

    def start(answers: dict[str, Answer] | None = None) -> Site:
        site = Site("", answers or {}, [])

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                site.seen.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
                answer = site.answers.get(self.path.partition("?")[0], Answer(b"not here", 404))
                time.sleep(answer.delay_s)
                self.send_response(answer.status)
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                announced = len(answer.body) if answer.announced_bytes is None else answer.announced_bytes
                if announced >= 0:
                    self.send_header("Content-Length", str(announced))
                if announced != len(answer.body):
                    self.close_connection = True
                self.end_headers()
                try:
                    self.wfile.write(answer.body)
                except OSError:
                    self.close_connection = True

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        site.url = f"http://127.0.0.1:{server.server_port}"
        return site

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def make_loader() -> Iterator[Callable[..., ImageLoader]]:
    loaders: list[ImageLoader] = []

    def make(url: str, *, allow_private_addresses: bool = True, **options: Any) -> ImageLoader:
        """All servers here are on this machine, so private addresses are allowed unless a test is about that."""
        loaders.append(ImageLoader(url, lambda: TOKEN, allow_private_addresses=allow_private_addresses, **options))
        return loaders[-1]

    yield make
    for loader in loaders:
        loader.close()


@pytest.fixture
def offline(make_loader: Callable[..., ImageLoader]) -> ImageLoader:
    """A loader whose Label Studio does not exist."""
    return make_loader("http://127.0.0.1:9")


# ---- references


@pytest.mark.parametrize(
    "reference",
    ["/data/upload/1/cat.png", "/data/local-files/?d=cats%2Fa%20b.png", "/storage-data/uploaded/?filepath=x.png"],
)
def test_label_studio_paths_are_fetched_from_it_with_the_token(
    start_site: Callable[..., Site], make_loader: Callable[..., ImageLoader], reference: str
) -> None:
    """A path of Label Studio's is joined onto its address, query and all, and carries the token."""
    site = start_site({reference.partition("?")[0]: Answer()})
    image = make_loader(site.url + "/").load(reference)
    assert (image.size, image.mode) == ((4, 3), "RGB")
    assert [path for path, _ in site.seen] == [reference]
    assert site.tokens() == ["Token s3cret"]


@pytest.mark.parametrize("reference", ["/label/data/upload/1/cat.png", "/data/upload/1/cat.png"])
def test_a_path_prefix_of_label_studio_is_added_once(
    start_site: Callable[..., Site], make_loader: Callable[..., ImageLoader], reference: str
) -> None:
    """Served under a prefix, Label Studio writes it into some references and not into others."""
    site = start_site({"/label/data/upload/1/cat.png": Answer()})
    assert make_loader(site.url + "/label").fetch(reference) == PNG


def test_absolute_addresses_get_the_token_on_label_studios_own_host_and_port_only(
    start_site: Callable[..., Site], make_loader: Callable[..., ImageLoader]
) -> None:
    """The same host on another port is another server."""
    own, other = start_site({"/data/a.png": Answer()}), start_site({"/data/a.png": Answer()})
    loader = make_loader(own.url)
    loader.fetch(own.url + "/data/a.png")
    loader.fetch(other.url + "/data/a.png")
    assert own.tokens() == ["Token s3cret"]
    assert other.tokens() == [None]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_followed_without_the_token_leaving_label_studio(
    start_site: Callable[..., Site], make_loader: Callable[..., ImageLoader], status: int
) -> None:
    """Label Studio redirects to pre-signed addresses of a cloud; those see no token, a way back sees it again."""
    own, cloud = start_site(), start_site()
    own.answers["/data/a.png"] = Answer(b"", status, {"Location": cloud.url + "/signed?x=1"})
    cloud.answers["/signed"] = Answer(b"", status, {"Location": own.url + "/data/b.png"})
    own.answers["/data/b.png"] = Answer()
    assert make_loader(own.url).fetch("/data/a.png") == PNG
    assert own.tokens() == ["Token s3cret", "Token s3cret"]
    assert cloud.tokens() == [None]


def test_cookies_are_not_kept(start_site: Callable[..., Site], make_loader: Callable[..., ImageLoader]) -> None:
    """A session cookie handed out with one image is not sent with the next."""
    site = start_site({"/data/a.png": Answer(headers={"Set-Cookie": "sessionid=1; Path=/"})})
    loader = make_loader(site.url)
    loader.fetch("/data/a.png")
    loader.fetch("/data/a.png")
    assert "cookie" not in site.seen[1][1]


def test_storage_references_are_resolved_by_label_studio(
    start_site: Callable[..., Site], make_loader: Callable[..., ImageLoader]
) -> None:
    """`s3://…` is asked for as Label Studio's frontend does, and the pre-signed address gets no token."""
    own, cloud = start_site(), start_site({"/bucket/ä b.png": Answer()})
    cloud.answers["/bucket/signed.png"] = Answer()
    own.answers["/tasks/17/resolve/"] = Answer(b"", 303, {"Location": cloud.url + "/bucket/signed.png?sig=1"})
    for reference in ("s3://bucket/ä b.png", "gs://bucket/x.png", "azure-blob://container/y?.png"):
        own.seen.clear()
        assert make_loader(own.url).fetch(reference, 17) == PNG
        (query,) = urllib.parse.parse_qsl(urllib.parse.urlsplit(own.seen[0][0]).query)
        assert query[0] == "fileuri"
        assert base64.urlsafe_b64decode(query[1]).decode() == reference
    assert set(cloud.tokens()) == {None}


def test_a_storage_reference_without_its_task_says_what_is_missing(offline: ImageLoader) -> None:
    """Label Studio resolves storage references per task."""
    with pytest.raises(ImageError, match="without a task id"):
        offline.fetch("s3://bucket/a.png")


@pytest.mark.parametrize(
    "reference",
    [
        "data:image/png;base64," + base64.b64encode(PNG).decode(),
        "data:image/png;base64," + base64.urlsafe_b64encode(PNG).decode().rstrip("="),
        "DATA:;base64," + urllib.parse.quote(base64.encodebytes(PNG).decode()),
        "data:image/png," + urllib.parse.quote_from_bytes(PNG),
        "  data:image/png;charset=x;base64," + base64.b64encode(PNG).decode() + "\n",
    ],
)
def test_data_uris_are_read_in_place(offline: ImageLoader, reference: str) -> None:
    """Base64 (padded or not, wrapped, URL-safe) and percent-encoded data URIs need no server."""
    assert offline.fetch(reference) == PNG


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("data:image/png;base64", "no ','"),
        ("data:image/png;base64,???", "not valid base64"),
        ("data:image/png;base64,", "empty"),
        ("", "is empty; expected '/data/upload/"),
        ("   ", "is empty"),
        (None, "is a NoneType, not a text"),
        (["/data/a.png"], "is a list, not a text"),
        ("/home/me/cat.png", "'/home/me/cat.png' is not a reference .*; expected '/data/upload/"),
        ("C:\\cats\\cat.png", "is not a reference"),
        ("cat.png", "is not a reference"),
        ("//host/data/cat.png", "is not a reference"),
        ("/data/../api/users/", "is not a reference"),
        ("/data/%2e%2e/api/users/", "is not a reference"),
        ("/data/%252e%252e/api/users/", "is not a reference"),
        ("/data/x/..%5c..%5capi/users/", "is not a reference"),
        ("/data/local-files/?d=../../etc/passwd", "is not a reference"),
        ("/data/local-files/?d=a%2F..%2F..%2Fetc/passwd", "is not a reference"),
        ("/data/local-files/?x=1&d=%252e%252e/etc/passwd", "is not a reference"),
        ("/api/users/", "is not a reference"),
        ("ftp://host/cat.png", "is not a reference"),
        ("file:///etc/passwd", "is not a reference"),
        ("javascript://x", "is not a reference"),
        ("http://", "not an http"),
        ("http://host:port/cat.png", "no valid address"),
        ("http://" + "a" * 70 + ".example/cat.png", "no valid address|connection"),
        ("http://a..b/cat.png", "no valid address|connection"),
    ],
)
def test_other_references_are_refused_with_what_came_and_what_is_accepted(
    offline: ImageLoader, reference: Any, message: str
) -> None:
    """Local paths, other schemes, empty and non-text values never lead to a request."""
    with pytest.raises(ImageError, match=message):
        offline.load(reference)


# ---- answers that are no image


@pytest.mark.parametrize(
    ("answer", "message", "transient"),
    [
        (Answer(b"no", 401), "Label Studio answered HTTP 401; check the Label Studio token", False),
        (Answer(b"no", 403), "HTTP 403; check the Label Studio token", False),
        (Answer(b"no", 404), "HTTP 404; check that the file still exists", False),
        (Answer(b"no", 424), "HTTP 424; its cloud storage did not give the file", True),
        (Answer(b"no", 418), "HTTP 418; open the address", False),
        (Answer(b"no", 429), "HTTP 429; it asks for fewer requests", True),
        (Answer(b"no", 500), "HTTP 500; try again later", True),
        (Answer(b"no", 503), "HTTP 503; try again later", True),
        (Answer(b""), "is empty", False),
        (Answer(b"\n<!DOCTYPE html><html><title>Sign in</title>"), "web page .* login page", False),
        (Answer(b'{"detail": "x"}'), "is not an image; expected a whole JPEG", False),
        (Answer(b"<svg xmlns='http://www.w3.org/2000/svg'/>"), "is not an image but an SVG", False),
        (Answer(encoded(NOISE)[:500]), "damaged or cut short", False),
        (Answer(PNG, announced_bytes=len(PNG) + 10), "connection to 127.0.0.1 failed", True),
        (Answer(b"x" * 3000), "larger than", False),
        (Answer(b"x" * 3000, announced_bytes=-1), "larger than", False),
        (Answer(b"", 302, {"Location": "/data/a.png"}), "more than 5 redirects", False),
        (Answer(b"", 302, {"Location": "ftp://host/a.png"}), "'ftp://host/a.png', which is not an http", False),
        (Answer(b"", 302, {"Location": "file:///etc/passwd"}), "not an http", False),
        (Answer(PNG, headers={"Content-Encoding": "gzip"}), "cannot be read", False),
    ],
)
def test_an_answer_that_is_no_image_becomes_a_sentence(
    start_site: Callable[..., Site],
    make_loader: Callable[..., ImageLoader],
    answer: Answer,
    message: str,
    transient: bool,
) -> None:
    """Each failure names the image and what to do; only those that may pass by themselves are transient."""
    site = start_site({"/data/a.png": answer})
    with pytest.raises(ImageError, match=message) as raised:
        make_loader(site.url, max_image_bytes=2048).load("/data/a.png")
    assert raised.value.transient is transient
    assert "'/data/a.png'" in str(raised.value)


@pytest.mark.parametrize("status", [403, 404])
def test_a_signed_address_that_is_refused_is_not_about_the_token(
    start_site: Callable[..., Site], make_loader: Callable[..., ImageLoader], status: int
) -> None:
    """S3 answers 404 for what is gone, or 403 if these keys may not list the bucket; the signature is not shown."""
    bucket = start_site({"/bucket/a.png": Answer(b"no", status)})
    signed = f"{bucket.url}/bucket/a.png?X-Amz-Expires=60&X-Amz-Signature=5e6f"
    site = start_site({"/tasks/7/resolve/": Answer(b"", 303, {"Location": signed})})
    sentence = f"HTTP {status}; Label Studio signed this address for us; check that the file still exists"
    with pytest.raises(ImageError, match=sentence) as raised:
        make_loader(site.url).load("s3://bucket/a.png", 7)
    assert "5e6f" not in str(raised.value)
    assert not raised.value.transient


def test_a_refusal_of_another_host_says_that_it_got_no_token(
    start_site: Callable[..., Site], make_loader: Callable[..., ImageLoader]
) -> None:
    """A Label Studio reached by another name than the configured one looks like this."""
    other = start_site({"/data/a.png": Answer(b"no", 401)})
    with pytest.raises(ImageError, match=r"not where Label Studio .* serves images, so no token was sent"):
        make_loader("http://127.0.0.1:9").fetch(other.url + "/data/a.png")


def test_a_silent_server_times_out(start_site: Callable[..., Site], make_loader: Callable[..., ImageLoader]) -> None:
    """No answer within the timeout is a transient failure."""
    site = start_site({"/data/a.png": Answer(delay_s=1.0)})
    with pytest.raises(ImageError, match=r"did not answer within 0.1 s") as raised:
        make_loader(site.url, timeout_s=0.1).fetch("/data/a.png")
    assert raised.value.transient


@pytest.mark.parametrize(
    "head", [b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 200 OK\r\nX: ", b""], ids=["body", "header", "line"]
)
def test_a_server_that_never_stops_sending_is_cut_off(make_loader: Callable[..., ImageLoader], head: bytes) -> None:
    """Bytes that trickle in keep no worker, in whatever part of the answer: the whole fetch has a limit too."""
    stop = threading.Event()

    class Trickle(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(OSError):
                self.request.sendall(head)
                while not stop.wait(0.02):
                    self.request.sendall(b"x")

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True

    server = Server(("127.0.0.1", 0), Trickle)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        with pytest.raises(ImageError, match=r"still sending after 0\.6 s") as raised:
            make_loader(f"http://127.0.0.1:{server.server_address[1]}", timeout_s=0.1).fetch("/data/a.png")
        assert raised.value.transient
    finally:
        stop.set()
        server.shutdown()
        server.server_close()


def test_no_server_at_all_is_transient(offline: ImageLoader) -> None:
    """A refused connection may be accepted a minute later."""
    with pytest.raises(ImageError, match=r"connection to 127.0.0.1 failed") as raised:
        offline.fetch("/data/a.png")
    assert raised.value.transient


def test_an_error_of_the_token_provider_passes_through() -> None:
    """A refused token is not this image's fault and must not be recorded as such."""

    def refuse() -> Mapping[str, str]:
        raise LabelStudioAuthError("the token was refused")

    loader = ImageLoader("http://127.0.0.1:9", refuse)
    with pytest.raises(LabelStudioAuthError):
        loader.fetch("/data/a.png")
    loader.close()


def test_messages_show_no_password_signature_or_token(offline: ImageLoader) -> None:
    """Failures end up in logs and in the dashboard."""
    with pytest.raises(ImageError) as raised:
        offline.fetch("http://user:hunter2@127.0.0.1:9/a.png?X-Amz-Signature=abc")
    assert "hunter2" not in str(raised.value)
    assert "abc" not in str(raised.value)
    assert "s3cret" not in str(raised.value)


@pytest.mark.parametrize(
    "path", ["/api/projects/1/export", "/user/logout", "/data/../api/users/", "/data/%2e%2e/api/users/"]
)
def test_label_studio_s_other_pages_get_no_token(
    start_site: Callable[..., Site], make_loader: Callable[..., ImageLoader], path: str
) -> None:
    """Who writes tasks must not make us ask Label Studio, in our name, for other things than images."""
    own = start_site({"/data/a.png": Answer(b"", 302, {"Location": path})})
    own.answers[path] = Answer()
    loader = make_loader(own.url)
    for reference in (own.url + path, "/data/a.png"):
        own.seen.clear()
        with contextlib.suppress(ImageError):
            loader.fetch(reference)
        assert [token for where, token in zip(own.seen, own.tokens(), strict=True) if where[0] != "/data/a.png"] == [
            None
        ]


def test_another_application_beside_label_studio_gets_no_token(
    start_site: Callable[..., Site], make_loader: Callable[..., ImageLoader]
) -> None:
    """Under its own prefix only, where it has one."""
    site = start_site({"/data/a.png": Answer(), "/label/data/a.png": Answer()})
    loader = make_loader(site.url + "/label")
    loader.fetch(site.url + "/data/a.png")
    loader.fetch(site.url + "/label/data/a.png")
    assert site.tokens() == [None, "Token s3cret"]


def test_names_with_dots_are_no_steps_up(
    start_site: Callable[..., Site], make_loader: Callable[..., ImageLoader]
) -> None:
    """Only '..' between two slashes is one."""
    site = start_site({"/data/local-files/": Answer(), "/data/upload/1/a..b...png": Answer()})
    for reference in ("/data/local-files/?d=a..b/c...d/..e.png", "/data/upload/1/a..b...png"):
        assert make_loader(site.url).fetch(reference) == PNG


def test_private_addresses_are_refused_except_label_studios_own(
    start_site: Callable[..., Site], make_loader: Callable[..., ImageLoader]
) -> None:
    """Neither a reference nor a redirect reaches another machine of the network; the sentence names the setting."""
    own, other = start_site({"/data/a.png": Answer()}), start_site({"/a.png": Answer()})
    own.answers["/data/away.png"] = Answer(b"", 302, {"Location": other.url + "/a.png"})
    loader = make_loader(own.url, allow_private_addresses=False)
    assert loader.fetch("/data/a.png") == PNG
    port = other.url.rpartition(":")[2]
    hosts = ("127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "2130706433", "0x7f.1", "127.1", "[::ffff:7f00:1]")
    for reference in ("/data/away.png", *(f"http://{host}:{port}/a.png" for host in hosts)):
        with pytest.raises(ImageError, match=r"private network .* set ALLOW_PRIVATE_ADDRESSES=true") as raised:
            loader.fetch(reference)
        assert raised.value.transient, "once the setting is changed it is fetched"
    assert other.seen == []


def test_private_addresses_are_refused_by_default() -> None:
    """As the setting is."""
    loader = ImageLoader("http://127.0.0.1:9", lambda: TOKEN)
    with pytest.raises(ImageError, match="ALLOW_PRIVATE_ADDRESSES"):
        loader.fetch("http://10.0.0.1/a.png")
    loader.close()
    assert Settings().allow_private_addresses is False


@pytest.mark.parametrize("allowed", [True, False])
@pytest.mark.parametrize(
    "host",
    ["169.254.169.254", "[fe80::1]", "[fd00:ec2::254]", "[::ffff:169.254.169.254]", "[64:ff9b::a9fe:a9fe]", "0.0.0.0",
     "[::]", "2852039166", "168.63.129.16", "100.100.100.200"],
)  # fmt: skip
def test_metadata_services_are_never_asked(
    start_site: Callable[..., Site], make_loader: Callable[..., ImageLoader], host: str, allowed: bool
) -> None:
    """Also when private addresses are allowed, by a redirect too."""
    own = start_site({"/data/a.png": Answer(b"", 302, {"Location": f"http://{host}/latest/meta-data/"})})
    loader = make_loader(own.url, allow_private_addresses=allowed)
    for reference in (f"http://{host}/latest/meta-data/", "/data/a.png"):
        with pytest.raises(ImageError, match="an address of the machine, its network or its cloud") as raised:
            loader.fetch(reference)
        assert not raised.value.transient


def test_a_proxy_of_the_environment_is_asked_for_names_only(
    start_site: Callable[..., Site], make_loader: Callable[..., ImageLoader], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It looks names up by itself; an address that must not be reached it is not asked for. NO_PROXY holds."""
    proxy, own = start_site(), start_site({"/data/a.png": Answer()})
    proxy.answers["http://images.example/a.png"] = Answer()
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("http_proxy", proxy.url)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    loader = make_loader(own.url, allow_private_addresses=False)
    assert loader.fetch("/data/a.png") == PNG
    assert loader.fetch("http://images.example/a.png") == PNG
    for address in ("http://169.254.169.254/a.png", "http://10.0.0.1/a.png"):
        with pytest.raises(ImageError, match=r"private network|of the machine"):
            loader.fetch(address)
    assert [path for path, _ in proxy.seen] == ["http://images.example/a.png"]
    assert proxy.tokens() == [None]


def test_many_threads_share_one_loader(
    start_site: Callable[..., Site], make_loader: Callable[..., ImageLoader]
) -> None:
    """Concurrent loads of different images each get their own."""
    site = start_site({f"/data/{n}.png": Answer(encoded(Image.new("RGB", (n + 1, 2)))) for n in range(20)})
    loader = make_loader(site.url)
    with ThreadPoolExecutor(8) as pool:
        sizes = list(pool.map(lambda n: loader.load(f"/data/{n}.png").size, range(20)))
    assert sizes == [(n + 1, 2) for n in range(20)]


# ---- decoding


def pixel(image: Image.Image, x: int = 0, y: int = 0) -> tuple[int, ...]:
    value = image.getpixel((x, y))
    assert isinstance(value, tuple)
    return tuple(int(part) for part in value)


def two_tone(mode: str, left: Any, right: Any) -> Image.Image:
    image = Image.new(mode, (8, 4), left)
    image.paste(right, (4, 0, 8, 4))
    return image


def palette_with_byte_transparency() -> bytes:
    """A palette PNG whose tRNS chunk gives several entries their own alpha; Pillow warns when it turns to RGB."""
    image = two_tone("P", 0, 1)
    image.putpalette([255, 0, 0, 0, 0, 255])
    return encoded(image, transparency=bytes([0, 255]))


@pytest.mark.parametrize(
    ("payload", "left", "right"),
    [
        (encoded(two_tone("RGB", "red", "blue")), (255, 0, 0), (0, 0, 255)),
        (encoded(two_tone("L", 10, 200)), (10, 10, 10), (200, 200, 200)),
        (encoded(two_tone("1", 0, 1)), (0, 0, 0), (255, 255, 255)),
        (encoded(two_tone("RGBA", (255, 0, 0, 255), (0, 0, 0, 0))), (255, 0, 0), (255, 255, 255)),
        (encoded(two_tone("RGBA", (0, 0, 255, 51), (0, 0, 0, 255))), (204, 204, 255), (0, 0, 0)),
        (encoded(two_tone("LA", (0, 255), (0, 0))), (0, 0, 0), (255, 255, 255)),
        (palette_with_byte_transparency(), (255, 255, 255), (0, 0, 255)),
        (encoded(two_tone("RGB", "red", "blue"), transparency=(255, 0, 0)), (255, 255, 255), (0, 0, 255)),
        (encoded(two_tone("CMYK", (0, 255, 255, 0), (0, 0, 0, 255)), "TIFF"), (255, 0, 0), (0, 0, 0)),
        (encoded(two_tone("I;16", 0, 65535)), (0, 0, 0), (255, 255, 255)),
        (encoded(two_tone("I;16", 257 * 100, 257 * 50)), (100, 100, 100), (50, 50, 50)),
        (encoded(two_tone("I", 0, 65535), "TIFF"), (0, 0, 0), (255, 255, 255)),
        (encoded(two_tone("I", -1_000_000, 1_000_000), "TIFF"), (0, 0, 0), (255, 255, 255)),
        (encoded(two_tone("F", 0.0, 1.0), "TIFF"), (0, 0, 0), (255, 255, 255)),
        (encoded(two_tone("RGB", "red", "blue"), "WEBP", lossless=True), (255, 0, 0), (0, 0, 255)),
        (encoded(two_tone("RGB", "red", "blue"), "BMP"), (255, 0, 0), (0, 0, 255)),
        (
            encoded(two_tone("P", 0, 0), "GIF", save_all=True, append_images=[two_tone("P", 1, 1)]),
            pixel(two_tone("P", 0, 0).convert("RGB")),
            pixel(two_tone("P", 0, 0).convert("RGB")),
        ),
    ],
)
def test_every_kind_of_pixel_becomes_rgb(payload: bytes, left: tuple[int, ...], right: tuple[int, ...]) -> None:
    """Grey, palette, alpha (upon white), CMYK, 16-bit, float and animated images all give 8-bit RGB."""
    image = decode(payload)
    assert (image.mode, image.size) == ("RGB", (8, 4))
    assert (pixel(image), pixel(image, 7, 3)) == (left, right)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_the_exif_orientation_is_applied(orientation: int, kind: str) -> None:
    """However a camera stored it, the white corner ends up at the top left, as a person sees it."""
    upright = Image.new("RGB", (64, 32), "black")
    upright.paste("white", (0, 0, 24, 12))
    # What has to be done to an upright picture so that the tag's own transposition undoes it (EXIF 2.32, 0x0112).
    stored = {
        1: upright,
        2: upright.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: upright.transpose(Image.Transpose.ROTATE_180),
        4: upright.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: upright.transpose(Image.Transpose.TRANSPOSE),
        6: upright.transpose(Image.Transpose.ROTATE_90),
        7: upright.transpose(Image.Transpose.TRANSVERSE),
        8: upright.transpose(Image.Transpose.ROTATE_270),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = decode(encoded(stored, kind, exif=exif))
    assert image.size == (64, 32)
    assert pixel(image, 4, 4)[0] > 200
    assert pixel(image, 60, 28)[0] < 50


def test_broken_metadata_spoils_no_picture() -> None:
    """An EXIF block of nonsense, about which Pillow warns or raises, leaves the pixels alone."""
    for tail in (b"II*\0", b"MM\0*\0\0\0\x08\xff\xff\x01\x12", b"II*\0\x08\0\0\0\x05\0\x12\x01\x07\0"):
        junk = b"Exif\0\0" + tail
        assert decode(encoded(Image.new("RGB", (8, 8), "red"), "JPEG", exif=junk)).size == (8, 8)


def test_decoding_leaks_no_warning_in_any_thread() -> None:
    """Pillow warns about alpha in palettes, odd EXIF and many pixels; here it does not, and no filter stays changed."""
    payloads = [
        palette_with_byte_transparency(),
        encoded(Image.new("RGB", (8, 8)), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01\x07\0"),
        encoded(Image.new("1", (10_000, 9_000))),  # 90 Mpx: above the limit where Pillow warns, below ours
    ]
    filters = list(warnings.filters)
    with ThreadPoolExecutor(4) as pool:
        assert len(list(pool.map(lambda n: decode(payloads[n % 2]).size, range(40)))) == 40
    with pytest.raises(ImageError, match=r"10000 x 9000 pixels; at most 80,000,000"):
        decode(payloads[2], max_image_pixels=80_000_000)
    assert list(warnings.filters) == filters


@pytest.mark.parametrize("side", [300, 20_000])
def test_too_many_pixels_are_refused_from_the_header(side: int) -> None:
    """A small file that unpacks to an enormous picture is refused before anything is unpacked."""
    # The header says side x side; there is no pixel data at all behind it.
    bomb = PNG[:16] + side.to_bytes(4, "big") * 2 + PNG[24:]
    bomb = bomb[:29] + zlib.crc32(bomb[12:29]).to_bytes(4, "big") + bomb[33:]
    with pytest.raises(ImageError, match="pixels; at most 80,000 are read"):
        decode(bomb, max_image_pixels=80_000)


def test_a_large_jpeg_is_decoded_small_but_not_below_twice_the_side_asked_for() -> None:
    """`min_side` saves work on large photos and never costs detail."""
    payload = encoded(Image.new("RGB", (2400, 1600)), "JPEG")
    assert decode(payload).size == (2400, 1600)
    assert decode(payload, min_side=224).size == (1200, 800)
    assert decode(payload, min_side=1500).size == (2400, 1600)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "AVIF"])
def test_cut_short_files_are_errors_not_half_pictures(kind: str) -> None:
    """Half a file is reported, whatever its kind."""
    payload = encoded(NOISE, kind)
    with pytest.raises(ImageError):
        decode(payload[: len(payload) // 2])


_KINDS = ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "ICO", "PPM")
_SAMPLES = [*(encoded(two_tone("RGB", "red", "blue"), kind) for kind in _KINDS), palette_with_byte_transparency()]


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(_SAMPLES),
    st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=8),
    st.integers(0, 10_000),
)
def test_damaged_bytes_give_an_image_or_an_image_error(sample: bytes, changes: list[tuple[int, int]], cut: int) -> None:
    """No damage to a file leads to another exception, a warning or an enormous picture."""
    payload = bytearray(sample)
    for position, value in changes:
        payload[position % len(payload)] = value
    try:
        image = decode(bytes(payload[: len(payload) - cut % 20]), max_image_pixels=1_000_000)
    except ImageError:
        return
    assert image.mode == "RGB"


def test_formats_that_start_other_programs_stay_shut() -> None:
    """PostScript would be handed to Ghostscript; it is refused instead."""
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    with pytest.raises(ImageError, match="is not an image"):
        decode(postscript)


ODD_IMAGES = sorted((SHARED / "data" / "odd-images").glob("*")) if (SHARED / "data" / "odd-images").is_dir() else []


@pytest.mark.skipif(not ODD_IMAGES, reason="the real images in ../shared/data/odd-images are not on this machine")
def test_odd_real_images_decode() -> None:
    """GIFs, PNGs and greyscale files under wrong names, untouched from the web, all give RGB."""
    for path in ODD_IMAGES:
        assert decode(path.read_bytes(), min_side=224).mode == "RGB", path.name
