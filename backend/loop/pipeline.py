"""Load pictures and embed them at the same time: while one batch is in the network the next is fetched and decoded."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from backend.adapters.backbones import Backbone
from backend.errors import ImageError
from backend.machine import n_usable_cores

Item = TypeVar("Item")

MIN_LOADERS = 8
"""Pictures loaded at once, at least: fetching waits for a server."""

BATCHES_AHEAD = 2
"""Batches of pictures loaded or being loaded while one is in the network."""


WORTH_ACCELERATING = 100
"""Pictures from which the seconds that `Backbone.accelerate` takes are won back."""


def n_loaders() -> int:
    """How many pictures to load at once here; decoding and resizing release the interpreter lock, so cores count."""
    return max(MIN_LOADERS, n_usable_cores())


def embed_in_batches(
    backbone: Backbone, items: Sequence[Item], load: Callable[[Item], Image.Image]
) -> Generator[list[tuple[Item, NDArray[np.float32] | ImageError]]]:
    """Yield each item with its picture's features (dim,), or why there are none, in batches and in order.

    `load` is called from several threads and may raise ImageError; anything else it raises ends the whole. Whoever
    stops before the end closes the iterator: what is being loaded is waited for and dropped.
    """

    def prepare(item: Item) -> NDArray[np.uint8] | ImageError:
        try:
            return backbone.prepare(load(item))
        except ImageError as exc:
            return exc

    size = backbone.batch_size
    waiting = iter(items)
    loading: deque[tuple[Item, Future[NDArray[np.uint8] | ImageError]]] = deque()
    with ThreadPoolExecutor(n_loaders(), thread_name_prefix="load") as threads:

        def load_ahead() -> None:
            room = BATCHES_AHEAD * size - len(loading)
            loading.extend((item, threads.submit(prepare, item)) for item in islice(waiting, room))

        try:
            load_ahead()
            while loading:
                batch = [(item, future.result()) for item, future in islice(loading, size)]
                for _ in batch:
                    loading.popleft()
                load_ahead()
                pixels = [outcome for _, outcome in batch if not isinstance(outcome, ImageError)]
                features = iter(backbone.embed_prepared(np.stack(pixels)) if pixels else ())
                yield [
                    (item, outcome if isinstance(outcome, ImageError) else next(features)) for item, outcome in batch
                ]
        finally:
            for _, future in loading:
                future.cancel()
