"""Images outside Label Studio: where they are said to be, and how they are read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from fakes import TinyBackbone
from live import picture, png
from s3 import put

from backend.adapters.image_source import open_images
from backend.errors import ImageError, UsageError
from backend.loop.image_files import place_of, read_image, source_of
from backend.loop.simulate import embed_folder
from backend.storage import Address


def test_a_place_is_a_folder_or_an_address(tmp_path: Path) -> None:
    """~ is somebody's home; the bucket is not asked yet."""
    assert place_of("--images", str(tmp_path)) == tmp_path
    assert place_of("--images", "~") == Path.home()
    assert place_of("--images", "s3://bucket/photos/") == Address("s3://bucket/photos")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "http://pictures.example/cats",
            "--images http://pictures.example/cats is not a folder, or an address such as",
        ),
        ("S3://bucket", "--images S3://bucket is not a folder, or an address such as s3://bucket/prefix"),
        ("s3://", "--images s3:// is not a folder, or an address"),
        ("s3://key:pass-w0rd@bucket/photos", "--images s3://…@bucket/photos is not .*, without keys in it"),
        ("s3://bucket/a?X-Amz-Signature=pass-w0rd", "--images s3://bucket/a is not .*, without keys in it"),
        ("/nowhere/photos", "--images /nowhere/photos is not a folder; give one, or an address such as s3://"),
        ("~nobody-of-that-name/photos", "is not a path; there is no such user"),
    ],
)
def test_what_is_neither_is_refused_without_its_keys(text: str, sentence: str) -> None:
    """Option, what came, what was expected."""
    with pytest.raises(UsageError, match=sentence) as raised:
        place_of("--images", text)
    assert "pass-w0rd" not in str(raised.value)


def test_an_image_is_read_within_the_limits(tmp_path: Path) -> None:
    """Decoded as those of tasks are; what is wrong with one is said with its path."""
    picture("red", 1, size=48).save(tmp_path / "red.png")
    (tmp_path / "broken.png").write_bytes(png(picture("red", 1))[:200])
    source = source_of(tmp_path)
    assert read_image(source, "red.png").size == (48, 48)
    with pytest.raises(ImageError, match=r"image '.*/red\.png' has 48 x 48 pixels; at most 2,303 are read"):
        read_image(source, "red.png", max_image_pixels=48 * 48 - 1)
    with pytest.raises(ImageError, match=r"image '.*/broken\.png' is damaged or cut short"):
        read_image(source, "broken.png")


def test_a_bucket_is_embedded_as_the_same_folder(tmp_path: Path, store_address: Address) -> None:
    """Class folders, one deeper than the others, a broken image, and one that lies beside them and has no class."""
    files = {
        "cat/1.png": png(picture("red", 1)),
        "cat-2/1.png": png(picture("green", 1)),
        "dog/of 2026/1.png": png(picture("blue", 1)),
        "dog/broken.png": b"not an image",
        "beside.png": png(picture("red", 2)),
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    bucket, _, prefix = store_address.key.partition("/")
    put(os.environ["AWS_ENDPOINT_URL"], bucket, {f"{prefix}/{name}": content for name, content in files.items()})
    there = embed_folder(TinyBackbone(), open_images(store_address, max_image_bytes=2**20), lambda *_: None)
    here = embed_folder(TinyBackbone(), tmp_path, lambda *_: None)
    assert there.labels.tolist() == here.labels.tolist() == ["cat", "cat-2", "dog"]
    assert there.n_unreadable == here.n_unreadable == 1
    assert (there.embeddings == here.embeddings).all()
