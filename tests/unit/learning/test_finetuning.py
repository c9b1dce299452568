"""Fine-tuning a small network on tiny pictures, and judging the outcome by what was held out."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from backend.errors import FinetuningError
from backend.learning import finetuning
from backend.learning.finetuning import Judgement, _cropped, _rate, finetune, hold_out, judge

MEAN = torch.full((1, 3, 1, 1), 127.5)
SIDE = 7


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One thread, so that sums come in one order, and few steps."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(finetuning, "PROBE_STEPS", 20)
    yield
    torch.set_num_threads(n_threads)


def small_network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.2), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )


def stripes(n: int = 40) -> tuple[NDArray[np.uint8], NDArray[np.intp]]:
    """Pictures (n, 8, 8, 3) of noise with rows (class 0) or columns (class 1) of stripes."""
    random = np.random.default_rng(0)
    targets = np.arange(n) % 2
    pixels = random.integers(0, 200, (n, 8, 8, 3))
    pixels[targets == 0, ::2] += 55
    pixels[targets == 1, :, ::2] += 55
    return pixels.astype(np.uint8), targets.astype(np.intp)


def tune(network: nn.Module, *, random_state: int = 0) -> float:
    pixels, targets = stripes()
    return finetune(network, pixels, targets, side=SIDE, mean=MEAN, std=MEAN, random_state=random_state)


def test_the_loss_falls_below_that_of_a_guess(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two even classes: ln 2 is a guess; a network that may move fast gets below it, and further in more epochs."""
    monkeypatch.setattr(finetuning, "NETWORK_RATE", 0.01)
    monkeypatch.setattr(finetuning, "CLASSIFIER_RATE", 0.05)
    losses = []
    for epochs in (2, 30):
        monkeypatch.setattr(finetuning, "EPOCHS", epochs)
        losses.append(tune(small_network()))
    assert losses[1] < losses[0] < math.log(2) + 0.1
    assert losses[1] < 0.8 * math.log(2)


def test_weights_move_and_statistics_do_not() -> None:
    """Every weight is trained; batch normalisation keeps mean and variance; the network is left as one to use."""
    network = small_network()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    tune(network)
    for key, value in network.state_dict().items():
        assert torch.equal(value, before[key]) == ("running" in key or "num_batches" in key), key
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_the_same_seed_gives_the_same_weights() -> None:
    """Order, crops and dropout are drawn from the seed alone, and the caller's generator is left as it was."""
    states = []
    for seed in (1, 1, 2):
        torch.manual_seed(len(states))
        expected = torch.random.get_rng_state()
        network = small_network()
        tune(network, random_state=seed)
        assert torch.equal(torch.random.get_rng_state(), expected)
        states.append(network[0].weight)  # type: ignore[index]
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_a_loss_that_is_not_finite_ends_it() -> None:
    """Features that overflow make no backbone: an error that says at which step."""

    class Overflowing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(1.0))

        def forward(self, pictures: torch.Tensor) -> torch.Tensor:
            features = pictures.mean((2, 3)) * self.scale
            return features * (1e38 * 1e38 if self.training else 1.0)

    with pytest.raises(FinetuningError, match=r"its loss became (nan|inf) at step 1 of 24"):
        tune(Overflowing())


def test_weights_that_are_not_finite_end_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last step may break what no loss is computed from any more."""
    monkeypatch.setattr(finetuning, "EPOCHS", 1)
    monkeypatch.setattr(finetuning, "NETWORK_RATE", math.inf)
    with pytest.raises(FinetuningError, match=r"weights became infinite|its loss became"):
        tune(small_network())


def test_a_crop_of_everything_is_the_picture() -> None:
    """Box (1, 0, 0) at the picture's own size changes nothing."""
    pictures = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(_cropped(pictures, torch.tensor([[1.0, 0.0, 0.0]] * 2), 8), pictures)


def test_a_crop_shows_its_box() -> None:
    """Half the side, centred a half to the right and a half down: the lower right quarter, pixel by pixel."""
    picture = torch.arange(64.0).view(1, 1, 8, 8).expand(1, 3, 8, 8)
    quarter = _cropped(picture, torch.tensor([[0.5, 0.5, 0.5]]), 4)
    torch.testing.assert_close(quarter, picture[:, :, 4:, 4:])


def test_crops_stay_inside_and_every_picture_is_seen_once_per_epoch() -> None:
    """A box of side s may be centred up to 1 - s from the middle; its area is at least SMALLEST_CROP."""
    steps = list(finetuning._batches(70, torch.Generator().manual_seed(0)))
    per_epoch = math.ceil(70 / finetuning.BATCH_SIZE)
    assert len(steps) == finetuning.EPOCHS * per_epoch
    first = torch.cat([rows for rows, _ in steps[:per_epoch]])
    assert sorted(first.tolist()) == list(range(70))
    boxes = torch.cat([boxes for _, boxes in steps])
    scale, shift = boxes[:, 0], boxes[:, 1:]
    assert bool((scale**2 >= finetuning.SMALLEST_CROP - 1e-6).all())
    assert bool((scale <= 1).all())
    assert bool((shift.abs() <= (1 - scale)[:, None] + 1e-6).all())


def test_rates_rise_and_fall() -> None:
    """20 steps: two of warm-up to the peak, half of it in the middle of the rest, next to nothing at the end."""
    rates = [_rate(step, 20) for step in range(20)]
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert rates[11] == pytest.approx(0.5)
    assert 0 < rates[19] < 0.01


def test_a_fifth_of_every_class_is_held_out() -> None:
    """10, 7 and 4 labels: two, one and none; the seed decides which."""
    labels = ["a"] * 10 + ["b"] * 7 + ["c"] * 4
    everywhere = np.ones(21, dtype=bool)
    held_out = hold_out(labels, everywhere, random_state=0)
    assert [int(held_out[rows].sum()) for rows in (slice(0, 10), slice(10, 17), slice(17, 21))] == [2, 1, 0]
    assert (hold_out(labels, everywhere, random_state=0) == held_out).all()
    assert any((hold_out(labels, everywhere, random_state=seed) != held_out).any() for seed in range(1, 5))


def test_only_what_may_be_is_held_out() -> None:
    """Of ten labels two would be held out, and one may be."""
    allowed = np.zeros(10, dtype=bool)
    allowed[3] = True
    assert np.flatnonzero(hold_out(["a"] * 10, allowed, random_state=0)).tolist() == [3]


def test_features_that_tell_classes_apart_are_judged_better() -> None:
    """Clear features against noisy ones, same labels and held-out fifth; accuracy recomputed from what is known."""
    random = np.random.default_rng(0)
    labels = ["cat", "dog"] * 40
    signal = np.tile([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], (40, 1))
    held_out = hold_out(labels, np.ones(80, dtype=bool), random_state=0)
    clear, noisy = (
        judge(signal + noise * random.normal(size=signal.shape), 0, labels, held_out, random_state=0)
        for noise in (0.1, 3.0)
    )
    assert clear.accuracy == 1.0
    assert 0.2 < noisy.accuracy < 0.9
    assert clear.log_loss < 0.1 < noisy.log_loss
    assert clear.beats(noisy)
    assert not noisy.beats(clear)


def test_lower_loss_is_not_better_at_lower_accuracy() -> None:
    """Both must agree: a lower log-loss, and an accuracy that is not lower."""
    one = Judgement(accuracy=0.9, log_loss=0.4)
    assert Judgement(0.9, 0.3).beats(one)
    assert not Judgement(0.8, 0.3).beats(one)
    assert not Judgement(0.95, 0.4).beats(one)
