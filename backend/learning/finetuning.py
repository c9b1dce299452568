"""Fine-tuning: all weights of a network are trained on labeled pictures, and the outcome is judged on others."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from backend.errors import FinetuningError
from backend.learning.calibration import fit_temperature, log_loss
from backend.learning.head import class_weights, fit_and_evaluate
from backend.learning.pool import Pool

if TYPE_CHECKING:
    import torch

HELD_OUT = 5
"""One label of each class in so many is held out to judge the outcome."""

EPOCHS = 12
"""Fixed in advance: with so few labels there are none to spare for choosing when to stop."""

BATCH_SIZE = 32
PROBE_STEPS = 300
"""Steps in which the classifier alone is fitted before the network moves."""

NETWORK_RATE = 2e-4
"""Peak learning rate of the network's own weights, which are good already: a tenth of what training afresh takes."""

CLASSIFIER_RATE = 1e-3
WARM_UP = 0.1
"""Share of all steps in which the rates rise; then they fall along a cosine."""

WEIGHT_DECAY = 0.01
LABEL_SMOOTHING = 0.1
SMALLEST_CROP = 0.7
"""Least share of a picture's area that a crop shows. No mirroring: it makes another digit, letter or road sign."""

MAX_GRADIENT_NORM = 1.0


@dataclass(frozen=True)
class Judgement:
    """A head's accuracy (0..1) and log-loss (nats, at its best temperature) on held-out labels."""

    accuracy: float
    log_loss: float

    def beats(self, other: Judgement) -> bool:
        """Whether this is better: a lower log-loss, which uses every probability, at no lower accuracy."""
        return self.log_loss < other.log_loss and self.accuracy >= other.accuracy


def hold_out(labels: Sequence[str], may_be_held_out: NDArray[np.bool_], *, random_state: int) -> NDArray[np.bool_]:
    """Which of the labels (N,) are held out: of each class one in `HELD_OUT`, rounded down, of those that may be."""
    random = np.random.default_rng(random_state)
    names = np.asarray(labels)
    held_out = np.zeros(len(names), dtype=bool)
    for name in np.unique(names):
        n_wanted = int(np.sum(names == name)) // HELD_OUT
        held_out[random.permutation(np.flatnonzero((names == name) & may_be_held_out))[:n_wanted]] = True
    return held_out


def judge(
    embeddings: NDArray[np.floating[Any]],
    n_details: int,
    labels: Sequence[str],
    held_out: NDArray[np.bool_],
    *,
    random_state: int,
) -> Judgement:
    """How the service's head does on the held-out ones of some embeddings (N, D) when it learns from the others.

    The temperature is fitted to the held-out labels themselves: that of the head was chosen on labels which a
    fine-tuned network has seen, and would count against it alone.
    """
    names = np.asarray(labels)
    rows = np.flatnonzero(~held_out)
    head = fit_and_evaluate(Pool(embeddings, n_details), rows, names[rows].tolist(), random_state=random_state).head
    logits = np.log(np.maximum(head.predict_proba(embeddings[held_out]), np.finfo(np.float64).tiny))
    targets = np.searchsorted(head.classes, names[held_out])
    temperature = fit_temperature(logits, targets)
    return Judgement(float(np.mean(logits.argmax(axis=1) == targets)), log_loss(logits / temperature, targets))


def finetune(
    network: torch.nn.Module,
    pixels: NDArray[np.uint8],
    targets: NDArray[np.intp],
    *,
    side: int,
    mean: torch.Tensor,
    std: torch.Tensor,
    random_state: int,
) -> float:
    """Trains all weights of the network in place; the loss of the last epoch, nats.

    network: pictures (B, 3, side, side), standardised, to features (B, D), on the device of `mean` and `std`
    (1, 3, 1, 1; of pixels 0..255). pixels: (N, S, S, 3); S above `side` leaves detail for crops. targets: (N,),
    classes from 0 on.

    First a linear classifier is fitted to the features as they are, then both are trained together, so that the first
    steps do not distort good features (Kumar et al. 2022, https://arxiv.org/abs/2202.10054): AdamW, a linear warm-up
    and a cosine, cross-entropy with label smoothing and classes weighted evenly. Batch normalisation keeps its
    statistics, which a few hundred pictures would only blur. On a GPU in half precision.

    Raises FinetuningError when the loss is no longer finite; the network's weights are then of no use.
    """
    import torch
    from torch import nn

    device = mean.device
    on_gpu = device.type == "cuda"
    random = torch.Generator().manual_seed(random_state)
    classes = torch.from_numpy(targets.astype(np.int64)).to(device)
    weights = torch.from_numpy(class_weights(targets)).float().to(device)
    loss_of = nn.CrossEntropyLoss(weights, label_smoothing=LABEL_SMOOTHING)

    def batch(rows: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
        pictures = torch.from_numpy(pixels[rows.numpy()]).to(device).permute(0, 3, 1, 2).float()
        standardised = (_cropped(pictures, boxes.to(device), side) - mean) / std
        return standardised.contiguous(memory_format=torch.channels_last)  # half as long on a processor

    network.to(memory_format=torch.channels_last)
    network.eval().requires_grad_(False)
    whole = torch.tensor([[1.0, 0.0, 0.0]])
    with torch.inference_mode(), torch.autocast(device.type, torch.float16, enabled=on_gpu):
        chunks = torch.split(torch.arange(len(pixels)), BATCH_SIZE)
        features = torch.cat([network(batch(rows, whole.expand(len(rows), 3))).float() for rows in chunks])
    classifier = _probe(features.clone(), classes, loss_of)

    network.train().requires_grad_(True)
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    optimizer = torch.optim.AdamW(
        [
            {"params": network.parameters(), "lr": NETWORK_RATE},
            {"params": classifier.parameters(), "lr": CLASSIFIER_RATE},
        ],
        weight_decay=WEIGHT_DECAY,
    )
    n_steps = EPOCHS * math.ceil(len(pixels) / BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, n_steps))
    scaler = torch.amp.GradScaler("cuda", enabled=on_gpu)
    parameters = [*network.parameters(), *classifier.parameters()]
    losses: list[float] = []
    with torch.random.fork_rng([device] if on_gpu else []):  # for dropout and the like
        torch.manual_seed(random_state)
        for rows, boxes in _batches(len(pixels), random):
            with torch.autocast(device.type, torch.float16, enabled=on_gpu):
                logits = classifier(network(batch(rows, boxes)))
            loss = loss_of(logits.float(), classes[rows.to(device)])
            losses.append(loss.item())
            if not math.isfinite(losses[-1]):
                raise FinetuningError(
                    f"fine-tuning was given up: its loss became {losses[-1]} at step {len(losses)} of {n_steps}; "
                    "choose another BACKBONE or set TRAIN=head"
                )
            optimizer.zero_grad(set_to_none=True)
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(parameters, MAX_GRADIENT_NORM)
            scaler.step(optimizer)
            scaler.update()
            schedule.step()
    network.eval().requires_grad_(False)
    if not all(bool(torch.isfinite(value).all()) for value in network.state_dict().values()):
        raise FinetuningError("fine-tuning was given up: weights became infinite; choose another BACKBONE")
    return float(np.mean(losses[-n_steps // EPOCHS :]))


def _probe(features: torch.Tensor, classes: torch.Tensor, loss_of: Any) -> torch.nn.Module:
    """A linear classifier fitted to features (N, D)."""
    import torch
    from torch import nn

    n_classes = int(classes.max()) + 1
    with torch.random.fork_rng(devices=[]):  # its random weights are all replaced; the caller's generator stays
        classifier = nn.Linear(features.shape[1], n_classes).to(features.device)
    nn.init.zeros_(classifier.weight)
    nn.init.zeros_(classifier.bias)
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=CLASSIFIER_RATE, weight_decay=WEIGHT_DECAY)
    for _ in range(PROBE_STEPS):
        optimizer.zero_grad(set_to_none=True)
        loss_of(classifier(features), classes).backward()
        optimizer.step()
    return classifier


def _rate(step: int, n_steps: int) -> float:
    """The share of its peak that a learning rate has at a step."""
    n_warm = max(1, round(WARM_UP * n_steps))
    if step < n_warm:
        return (step + 1) / n_warm
    return 0.5 * (1 + math.cos(math.pi * (step - n_warm) / max(1, n_steps - n_warm)))


def _batches(n: int, random: torch.Generator) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Rows (B,) and crops (B, 3) of every step; see `_cropped`."""
    import torch

    for _ in range(EPOCHS):
        for rows in torch.split(torch.randperm(n, generator=random), BATCH_SIZE):
            area = torch.rand(len(rows), 1, generator=random) * (1 - SMALLEST_CROP) + SMALLEST_CROP
            scale = area.sqrt()
            shift = (torch.rand(len(rows), 2, generator=random) * 2 - 1) * (1 - scale)
            yield rows, torch.cat([scale, shift], dim=1)


def _cropped(pictures: torch.Tensor, boxes: torch.Tensor, side: int) -> torch.Tensor:
    """Pictures (B, 3, side, side) of boxes (B, 3): side of the crop, x and y of its centre; a picture is -1..1."""
    import torch
    from torch.nn import functional

    scale, x, y = boxes.T
    zero = torch.zeros_like(scale)
    affine = torch.stack([scale, zero, x, zero, scale, y], dim=1).view(-1, 2, 3)
    grid = functional.affine_grid(affine, [len(pictures), 3, side, side], align_corners=False)
    return functional.grid_sample(pictures, grid, mode="bilinear", padding_mode="border", align_corners=False)
