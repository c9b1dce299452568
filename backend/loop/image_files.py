"""Images that lie in a folder or a bucket, not in Label Studio: decoded within the same limits."""

from __future__ import annotations

import re
from pathlib import Path

from PIL import Image

from backend.adapters.image_source import ImageSource, open_images
from backend.adapters.images import DEFAULT_MAX_IMAGE_BYTES, DEFAULT_MAX_IMAGE_PIXELS, decode
from backend.errors import ImageError, UsageError
from backend.storage import Place, parse_place


def place_of(option: str, text: str) -> Place:
    """The folder or address given with an option such as --images.

    Raises UsageError, which shows no keys, when it is neither or when the folder is not there.
    """
    try:
        place = parse_place(text)
    except ValueError as expected:
        shown = re.sub("//[^/]*@", "//…@", text).partition("?")[0]
        raise UsageError(f"{option} {shown} is not {expected}") from expected
    if isinstance(place, Path) and not place.is_dir():
        raise UsageError(f"{option} {place} is not a folder; give one, or an address such as s3://bucket/prefix")
    return place


def source_of(place: Path | ImageSource) -> ImageSource:
    """The images of a folder, with the default limits; a source as it is."""
    return open_images(place, max_image_bytes=DEFAULT_MAX_IMAGE_BYTES) if isinstance(place, Path) else place


def read_image(
    source: ImageSource, name: str, *, min_side: int | None = None, max_image_pixels: int = DEFAULT_MAX_IMAGE_PIXELS
) -> Image.Image:
    """The image of that name, upright and in RGB; `min_side` as in `ImageLoader.load`.

    Raises ImageError for what concerns this image, ImageSourceError and StorageError for what concerns all.
    """
    payload = source.fetch(name)
    try:
        return decode(payload, max_image_pixels=max_image_pixels, min_side=min_side)
    except ImageError as exc:
        raise ImageError(f"image {source.reference(name)!r} {exc}", transient=exc.transient) from exc
