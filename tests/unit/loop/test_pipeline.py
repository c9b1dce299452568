"""Pictures are loaded while others are in the network, never too many of them, and come out in order."""

from __future__ import annotations

import threading

import numpy as np
import numpy.typing as npt
import pytest
from fakes import TinyBackbone
from PIL import Image

from backend.errors import ImageError, LabelStudioError
from backend.loop.pipeline import BATCHES_AHEAD, embed_in_batches

WAIT_S = 30


def colour(number: int) -> Image.Image:
    return Image.new("RGB", (1, 1), (number, 0, 0))


def test_features_come_in_batches_and_in_order() -> None:
    """Seven pictures in batches of two; a broken one among them keeps its place with its reason."""

    def load(number: int) -> Image.Image:
        if number == 3:
            raise ImageError("is damaged")
        return colour(number)

    backbone = TinyBackbone()
    batches = list(embed_in_batches(backbone, range(7), load))
    assert [[number for number, _ in batch] for batch in batches] == [[0, 1], [2, 3], [4, 5], [6]]
    outcomes = [outcome for batch in batches for _, outcome in batch]
    assert str(outcomes.pop(3)) == "is damaged"
    reds = [float(outcome[0]) * 255 for outcome in outcomes if not isinstance(outcome, ImageError)]
    assert reds == pytest.approx([0, 1, 2, 4, 5, 6])
    assert backbone.n_embedded == 6


def test_nothing_and_nothing_but_failures() -> None:
    """The backbone is not asked in vain."""

    def load(number: int) -> Image.Image:
        raise ImageError(f"{number} is away", transient=True)

    backbone = TinyBackbone()
    assert list(embed_in_batches(backbone, [], load)) == []
    (batch,) = embed_in_batches(backbone, [5], load)
    assert [(number, str(outcome)) for number, outcome in batch] == [(5, "5 is away")]
    assert backbone.n_embedded == 0


def test_the_next_batch_is_loaded_while_one_is_in_the_network() -> None:
    """The network waits, in the first batch, for pictures of the next two to be loaded: else it would wait for ever."""
    loaded = [threading.Event() for _ in range(20)]

    class Waiting(TinyBackbone):
        def embed_prepared(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
            if self.n_embedded == 0:
                assert all(event.wait(WAIT_S) for event in loaded[2:6])
                assert not any(event.is_set() for event in loaded[6:])
            return super().embed_prepared(pixels)

    def load(number: int) -> Image.Image:
        loaded[number].set()
        return colour(number)

    assert BATCHES_AHEAD == 2
    assert len(list(embed_in_batches(Waiting(), range(20), load))) == 10


def test_stopping_early_loads_no_more() -> None:
    """Closed after one batch of two: four more were on their way, all others are left alone."""
    loaded: list[int] = []

    def load(number: int) -> Image.Image:
        loaded.append(number)
        return colour(number)

    batches = embed_in_batches(TinyBackbone(), range(100), load)
    next(batches)
    batches.close()
    assert set(loaded) <= set(range(6))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("load")]


def test_other_errors_end_it() -> None:
    """A token that is refused is no matter of one picture."""

    def load(number: int) -> Image.Image:
        raise LabelStudioError("the token was refused", status=401)

    with pytest.raises(LabelStudioError, match="refused"):
        list(embed_in_batches(TinyBackbone(), range(3), load))
