"""Learning curves as pictures: files of the right kind, with every curve in them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from backend.errors import BackendError
from backend.loop.plot import COLOURS, LINES, MARKERS, plot_learning_curves

CURVES = {"default": {10: (0.6, 0.05), 30: (0.9, 0.02)}, "baseline": {10: (0.5, 0.0), 30: (0.98, 0.05)}}


def test_an_svg_names_axes_title_and_strategies(tmp_path: Path) -> None:
    """Text stays text where the picture keeps it; the shaded band is there, one for each curve."""
    file = tmp_path / "curves.svg"
    plot_learning_curves(CURVES, "weather, 2 seeds", file)
    text = file.read_text(encoding="utf-8")
    for word in ("default", "baseline", "labels", "accuracy on held-out images", "weather, 2 seeds"):
        assert f"<!-- {word} -->" in text or f">{word}<" in text
    assert text.count('id="FillBetweenPolyCollection_') == 2


def test_a_png_shows_a_line_and_a_band_in_each_colour(tmp_path: Path) -> None:
    """Pixels of the first two colours, and of the first at an eighth of its strength on white."""
    file = tmp_path / "curves.PNG"
    plot_learning_curves(CURVES, "weather", file)
    pixels = np.asarray(Image.open(file).convert("RGB")).reshape(-1, 3).astype(int)
    for colour in COLOURS[:2]:
        exact = np.array([int(colour[start : start + 2], 16) for start in (1, 3, 5)])
        assert (np.abs(pixels - exact).max(axis=1) <= 2).sum() > 100
        band = 0.12 * exact + 0.88 * 255
        assert (np.abs(pixels - band).max(axis=1) <= 2).sum() > 500
    for colour in COLOURS[2:]:
        exact = np.array([int(colour[start : start + 2], 16) for start in (1, 3, 5)])
        assert colour == "#000000" or (np.abs(pixels - exact).max(axis=1) <= 2).sum() == 0


def test_there_are_different_curves_for_every_strategy() -> None:
    """Colours and markers come in pairs, lines in rounds: more combinations than strategies."""
    assert len(set(COLOURS)) == len(COLOURS) == len(MARKERS) == len(set(MARKERS))
    assert len(COLOURS) * len(LINES) >= 13


@pytest.mark.parametrize("name", ["curves", "curves.pdf", "curves.png.txt"])
def test_another_kind_of_file_is_refused(tmp_path: Path, name: str) -> None:
    """The ending says which picture is wanted."""
    with pytest.raises(BackendError, match=r"expected a name that ends in \.png or \.svg"):
        plot_learning_curves(CURVES, "weather", tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    """One sentence with the path and the reason."""
    with pytest.raises(BackendError, match=r"cannot be written to .*gone.*: No such file or directory"):
        plot_learning_curves(CURVES, "weather", tmp_path / "gone" / "curves.png")
