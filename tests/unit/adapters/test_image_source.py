"""Images of a folder on a real disk and of a bucket behind a real S3 protocol: the same names, bytes and sentences."""

from __future__ import annotations

import http.server
import json
import logging
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import fsspec
import httpx
import pytest
from s3 import put

from backend.adapters.image_source import BucketImages, ImageFile, ImageSource, LocalImages, open_images
from backend.errors import ImageError, ImageSourceError, StorageError
from backend.storage import Address, Place

FILES = {
    "a.png": b"one",
    "b c.JPG": b"four",
    "cats/1.jpeg": b"five!",
    "cats/deeper/ü #1?[x]*.webp": b"sixsix",
    "cats/empty.png": b"",
    "notes.txt": b"not an image",
    "no-suffix": b"perhaps one",
    ".lightly/x.png": b"hidden",
    "cats/.DS_Store.png": b"hidden",
}
MAX_BYTES = 5


@pytest.fixture(params=["disk", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """An empty folder, or an empty prefix of a bucket."""
    if request.param == "s3":
        address: Address = request.getfixturevalue("store_address")
        return address
    (tmp_path / "photos").mkdir()
    return tmp_path / "photos"


def fill(place: Place, files: Mapping[str, bytes]) -> None:
    if isinstance(place, Path):
        for name, content in files.items():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes(content)
        return
    bucket, _, prefix = place.key.partition("/")
    put(os.environ["AWS_ENDPOINT_URL"], bucket, {f"{prefix}/{name}": content for name, content in files.items()})


def images(place: Place, name_filter: str | None = None, max_image_bytes: int = MAX_BYTES) -> ImageSource:
    return open_images(place, name_filter=name_filter, max_image_bytes=max_image_bytes)


def test_images_are_named_by_their_paths(place: Place) -> None:
    """Sorted, whatever the case of the suffix; what is hidden or no image by its name is not there."""
    fill(place, FILES)
    source = images(place)
    assert source.names() == ["a.png", "b c.JPG", "cats/1.jpeg", "cats/deeper/ü #1?[x]*.webp", "cats/empty.png"]
    assert [file.n_bytes for file in source.files()] == [3, 4, 5, 6, 0]
    assert source.reference("cats/1.jpeg") == f"{place}/cats/1.jpeg"


def test_a_stamp_changes_with_the_content(place: Place) -> None:
    """So that what is kept of an image can be known to be of this one: also when it has as many bytes as before."""
    fill(place, {"a.png": b"one", "b.png": b"two"})
    before = {file.name: file.stamp for file in images(place).files()}
    assert {file.name: file.stamp for file in images(place).files()} == before
    fill(place, {"a.png": b"ONE"})
    after = {file.name: file.stamp for file in images(place).files()}
    assert after["b.png"] == before["b.png"]
    assert after["a.png"] != before["a.png"]


def test_a_filter_finds_what_label_studio_finds(place: Place) -> None:
    """From the start, to the last part of a name in a folder and to the whole key in a bucket; hidden stays hidden."""
    fill(place, FILES)
    assert images(place, ".*png").names() == ["a.png", "cats/empty.png"]
    assert images(place, ".*").names() == [
        "a.png", "b c.JPG", "cats/1.jpeg", "cats/deeper/ü #1?[x]*.webp", "cats/empty.png", "no-suffix", "notes.txt",
    ]  # fmt: skip
    by_name, by_key = images(place, "1[.]"), images(place, "active-learning/cats/1")
    if isinstance(place, Path):
        assert by_name.names() == ["cats/1.jpeg"]
        assert by_key.files() == []
    else:
        assert by_name.files() == []
        assert by_key.names() == ["cats/1.jpeg"]


def test_a_filter_that_is_none_is_refused(tmp_path: Path) -> None:
    """A file pattern of a shell is a common mistake."""
    with pytest.raises(
        ImageSourceError, match=r"'\*\.png' is no regular expression \(nothing to repeat.*'\.\*\\\.png'"
    ):
        images(tmp_path, "*.png")


def test_nothing_found_is_told(place: Place) -> None:
    """With the filter if there is one; whoever waits for images to come asks for the files instead."""
    with pytest.raises(ImageSourceError, match=r"holds no file whose name ends as an image's does"):
        images(place).names()
    fill(place, {"a.png": b"one"})
    with pytest.raises(ImageSourceError, match=r"holds no file whose name the filter '\.\*jpg' matches"):
        images(place, ".*jpg").names()
    assert images(place, ".*jpg").files() == []


def test_bytes_are_fetched_within_the_limit(place: Place) -> None:
    """Before and after listing; five bytes are allowed here."""
    fill(place, FILES)
    for source in (images(place), images(place)):
        assert source.fetch("a.png") == b"one"
        assert source.fetch("cats/1.jpeg") == b"five!"
        with pytest.raises(ImageError, match=r"image '.*\.webp' is larger than .* MiB; make it smaller or raise"):
            source.fetch("cats/deeper/ü #1?[x]*.webp")
        with pytest.raises(ImageError, match=r"image '.*/cats/empty\.png' is empty \(0 bytes\)"):
            source.fetch("cats/empty.png")
        with pytest.raises(ImageError, match=r"image '.*/gone\.png' (is not there|cannot be read \(No such file)"):
            source.fetch("gone.png")
        source.files()


def test_many_are_fetched_at_once_and_in_order(place: Place) -> None:
    """What cannot be had stands among them with its reason."""
    fill(place, FILES)
    source = images(place)
    names = ["cats/1.jpeg", "gone.png", "a.png", "b c.JPG"] * 10
    fetched = list(source.fetch_all(names))
    assert [name for name, _ in fetched] == names
    assert [outcome for name, outcome in fetched if name == "a.png"] == [b"one"] * 10
    assert all(isinstance(outcome, ImageError) for name, outcome in fetched if name == "gone.png")


class Counting(LocalImages):
    """Remembers how many are fetched at the same moment, and waits until it is as many as asked for."""

    def __init__(self, place: Path, n_together: int) -> None:
        super().__init__(place, max_image_bytes=MAX_BYTES)
        self.together = threading.Barrier(n_together, timeout=30)
        self.n_fetched = 0

    def fetch(self, name: str) -> bytes:
        self.n_fetched += 1
        self.together.wait()
        return name.encode()


def test_as_many_are_fetched_at_once_as_asked_for(tmp_path: Path) -> None:
    """With fewer the barrier would break; whoever stops early makes no more begin."""
    source = Counting(tmp_path, 4)
    fetched = source.fetch_all([f"{number}" for number in range(40)], n_at_once=4)
    assert next(fetched) == ("0", b"0")
    fetched.close()
    assert source.n_fetched == 4


def test_a_bucket_is_asked_for_several_at_once(monkeypatch: pytest.MonkeyPatch, store_address: Address) -> None:
    """A server that answers no request before four have come together gives all eight images."""
    together = threading.Barrier(4, timeout=30)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            together.wait()
            self.send_response(206)
            self.send_header("Content-Length", "3")
            self.end_headers()
            self.wfile.write(b"one")

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    names = [f"{number}.png" for number in range(8)]
    assert list(images(store_address).fetch_all(names, n_at_once=4)) == [(name, b"one") for name in names]
    server.shutdown()
    server.server_close()
    thread.join()


# -- on disk ----------------------------------------------------------------------------------------------------------


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    """A folder of links to selected images is a folder of images; one that leads nowhere is none."""
    fill(tmp_path, {"all/cats/1.png": b"one"})
    (tmp_path / "chosen").mkdir()
    (tmp_path / "chosen" / "linked.png").symlink_to(tmp_path / "all" / "cats" / "1.png")
    (tmp_path / "chosen" / "cats").symlink_to(tmp_path / "all" / "cats")
    (tmp_path / "chosen" / "nowhere.png").symlink_to(tmp_path / "gone.png")
    (tmp_path / "chosen" / "round").symlink_to(tmp_path / "chosen")
    source = images(tmp_path / "chosen")
    assert source.names() == ["cats/1.png", "linked.png"]
    assert source.fetch("linked.png") == b"one"


def test_only_regular_files_below_the_folder_are_read(tmp_path: Path) -> None:
    """A name may come from a file that somebody else wrote; and a pipe would never end."""
    fill(tmp_path, {"photos/a.png": b"one", "secret.png": b"no"})
    os.mkfifo(tmp_path / "photos" / "pipe.png")
    source = images(tmp_path / "photos")
    assert source.names() == ["a.png"]
    for name in ("../secret.png", str(tmp_path / "secret.png")):
        with pytest.raises(ImageError, match=r"is no name below .*; expected one such as 'cats/1\.jpg'"):
            source.fetch(name)
    with pytest.raises(ImageError, match="is not a file"):
        source.fetch("pipe.png")


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    """And so is a file in its place."""
    fill(tmp_path, {"a.png": b"one"})
    with pytest.raises(ImageSourceError, match="gone is not there; expected a folder of images, or an address"):
        images(tmp_path / "gone").files()
    with pytest.raises(ImageSourceError, match=r"a\.png is a file; expected a folder"):
        images(tmp_path / "a.png").files()


# -- in a bucket ------------------------------------------------------------------------------------------------------


def test_keys_that_are_no_paths_are_left_out(store_address: Address, caplog: pytest.LogCaptureFixture) -> None:
    """Copied into a folder they would land elsewhere; said once. What consoles put to make a folder is not counted."""
    fill(store_address, {"a.png": b"one", "/b.png": b"two", "x/../../c.png": b"two", "folder/": b""})
    with caplog.at_level(logging.WARNING):
        assert images(store_address).names() == ["a.png"]
    assert [record.message for record in caplog.records] == [
        f"left out 2 objects of {store_address} whose keys are no paths: an empty part, . or .."
    ]


def test_a_prefix_is_a_folder_and_no_beginning_of_a_name(store_address: Address) -> None:
    """photos is not photos-old; and an address of one object names no folder."""
    fill(store_address, {"photos/a.png": b"one", "photos-old/b.png": b"two"})
    assert images(store_address / "photos").names() == ["a.png"]
    assert images(Address(f"{store_address}/photos/")).names() == ["a.png"]
    assert images(store_address / "photos" / "a.png").files() == []
    whole = Address(str(store_address).removesuffix("/active-learning"))
    assert images(whole).names() == ["active-learning/photos-old/b.png", "active-learning/photos/a.png"]


def test_a_bucket_that_is_not_there_is_named(store_address: Address) -> None:
    """When it is listed, and when an image of it is fetched, which is not that image's fault."""
    source = images(Address("s3://no-such-bucket/photos"))
    sentence = r"s3://no-such-bucket/photos: there is no bucket 'no-such-bucket' \(.*\); correct the address"
    with pytest.raises(ImageSourceError, match=sentence):
        source.files()
    with pytest.raises(ImageSourceError, match=sentence):
        source.fetch("a.png")


def allow_anything_but(address: Address, action: str, resource: str) -> None:
    """A policy of the bucket that denies one thing."""
    bucket = address.key.partition("/")[0]
    policy = {
        "Version": "2012-10-17",
        "Statement": [
            {"Effect": "Allow", "Principal": "*", "Action": "s3:*", "Resource": f"arn:aws:s3:::{bucket}/*"},
            {"Effect": "Deny", "Principal": "*", "Action": action, "Resource": f"arn:aws:s3:::{bucket}{resource}"},
        ],
    }
    url = f"{os.environ['AWS_ENDPOINT_URL']}/{bucket}?policy"
    assert httpx.put(url, content=json.dumps(policy)).status_code < 300


def test_an_image_that_may_not_be_read_is_left_out_alone(store_address: Address) -> None:
    """An archived object, or one with a policy of its own, spoils no other."""
    fill(store_address, {"a.png": b"one", "b.png": b"two"})
    allow_anything_but(store_address, "s3:GetObject", "/active-learning/a.png")
    outcomes = dict(images(store_address).fetch_all(["a.png", "b.png"]))
    assert outcomes["b.png"] == b"two"
    assert "/a.png' is not given to us" in str(outcomes["a.png"])
    assert "let these keys read it" in str(outcomes["a.png"])


@pytest.fixture
def strict_server(store_address: Address) -> Iterator[Address]:
    """The server knows nobody's keys from now on; as a rule it takes any."""
    server = os.environ["AWS_ENDPOINT_URL"]
    fill(store_address, {"a.png": b"one"})
    httpx.post(f"{server}/moto-api/reset-auth", content="0")
    yield store_address
    httpx.post(f"{server}/moto-api/reset-auth", content="inf")


def test_keys_that_are_refused_end_the_whole(strict_server: Address) -> None:
    """Otherwise a thousand images would be left out one by one; the names of the variables are told, never a value."""
    source = images(strict_server)
    sentence = r"is not open to the keys in the environment \(.*\); let them list and read .*AWS_ACCESS_KEY_ID"
    with pytest.raises(ImageSourceError, match=sentence) as raised:
        source.files()
    assert os.environ["AWS_SECRET_ACCESS_KEY"] not in str(raised.value)
    with pytest.raises(ImageSourceError, match=sentence):
        list(source.fetch_all(["a.png"]))


def test_no_keys_at_all_are_told(store_address: Address, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither in the environment nor in a file."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with pytest.raises(ImageSourceError, match=r"there are no keys to ask with \(.*\); set AWS_ACCESS_KEY_ID and"):
        images(store_address).files()
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(ImageSourceError, match=r"there are no keys to ask with \(.*nobody.*\)"):
        images(store_address).files()


def test_a_store_that_is_away_is_an_error_of_its_own(
    store_address: Address, dead_redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Try again later, says the exit code; an image is never taken for broken because of it."""
    monkeypatch.setattr("s3fs.S3FileSystem.retries", 1)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://" + dead_redis_url.partition("@")[2].removesuffix("/0"))
    for ask in (lambda source: source.files(), lambda source: list(source.fetch_all(["a.png"]))):
        with pytest.raises(StorageError, match=r"s3://.* cannot be read: .*; check .*, and that it is up"):
            ask(images(store_address))


def test_a_missing_library_is_named_with_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """One sentence instead of an ImportError."""

    def refuse(*_: object, **__: object) -> None:
        raise ImportError("Please install gcsfs to access Google Storage")

    monkeypatch.setattr(fsspec, "filesystem", refuse)
    sentence = r"gs://bucket/x: gs:// needs a library .*install gcsfs.*\); pip install gcsfs, or give a folder"
    with pytest.raises(ImageSourceError, match=sentence):
        images(Address("gs://bucket/x")).files()


def test_another_store_names_its_own_stamp_and_keys() -> None:
    """Where there is no ETag the time counts; both other stores have names of their own for either."""

    class Store:
        def find(self, *_: object, **__: object) -> dict[str, object]:
            return {"box/p/a.png": {"size": 3, "updated": "2026-01-01T00:00:00Z"}}

    source = BucketImages(Address("gs://box/p"), max_image_bytes=MAX_BYTES)
    source._opened = os.getpid(), Store()
    assert source.files() == [ImageFile("a.png", 3, "2026-01-01T00:00:00Z-3")]
