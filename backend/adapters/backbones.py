"""Frozen networks that turn pictures into feature vectors, and a hand-made descriptor for when none can be had."""

from __future__ import annotations

import hashlib
import importlib
import logging
import re
import sys
import tempfile
import threading
import time
import types
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from uuid import uuid4

import numpy as np
import numpy.typing as npt
from PIL import Image

from backend.errors import BackboneError
from backend.learning.finetuning import finetune
from backend.learning.onnx_inference import ROWS_PER_RUN, OnnxNetwork
from backend.machine import n_usable_cores

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

WeightsSource = Literal["file", "download", "descriptor"]

DEFAULT_BACKBONE = "mobilenet_v2"
DESCRIPTOR = "descriptor"

# Offline must be noticed quickly: a first start waits for this. A transfer under way may pause this long.
_DOWNLOAD_TIMEOUT_S = 5.0
# Pictures that torch computes at once: on a processor few, for what their layers hold to stay in its caches and not to
# be asked from the system for every layer; on a GPU as many, halved when its memory does not hold them.
_CPU_BATCH = 4
_GPU_BATCH = 256
_DESCRIPTOR_BATCH = 64
# Accelerated features of any picture, and of each block in them, must be as close as this to plain ones.
_MIN_COSINE = 0.999
_N_PROBES = 3
# googlenet and inception_v3 have side branches that only training uses, and that not every weights file holds.
_UNSUPPORTED = frozenset({"googlenet", "inception_v3"})
_EXAMPLES = (
    "mobilenet_v2, mobilenet_v3_large, resnet18, resnet50, efficientnet_b0, convnext_tiny, squeezenet1_1, vit_b_16"
)
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# What torchvision's checkpoints are named after: the start of the file's SHA-256.
_HASH_IN_NAME = re.compile(r"-([0-9a-f]{8,})\.")
_N_IMAGENET_CLASSES = 1000
# The first stages, at half the resolution, see little but edges.
_FINEST_STAGE = 4
_COUNTER = "num_batches_tracked"
_N_ORIENTATIONS = 8
_HOG_WEIGHT = 1.5
_N_UNIFORM_PATTERNS = 59
_N_NAMES_SHOWN = 5
# What torchvision (seen in 0.29) imports from `torch._dynamo.utils`.
_ASKED_OF_THE_COMPILER = {"is_compile_supported": lambda device: False}
# Pictures for fine-tuning are this much larger than the network's input, for crops to show them in full resolution.
_MARGIN = 8 / 7
_NO_GPU = "TRAIN=finetune has no effect without a GPU: the backbone stays as it is and the head alone is trained"


class Backbone(ABC):
    """Pictures in, features out; methods may be called from several threads.

    `fingerprint` is the same in every process for the same weights and preparation of pictures, and differs otherwise:
    embeddings of one fingerprint can be compared. It does not depend on where the weights came from, nor on the device
    and the library that compute with them, whose features differ by rounding: `accelerate` makes sure of that.
    """

    name: str
    fingerprint: str
    dim: int
    weights_source: WeightsSource
    warning: str | None = None
    """A sentence for the user of the service when this is not the backbone that was asked for."""
    input_side: int
    """Pixels per side that pictures are brought to, S: `min_side` for whoever decodes them."""
    batch_size: int
    """How many pictures `embed_prepared` had best be given at a time, for this machine to be busy with them."""
    training_side: int = 0
    """The same for fine-tuning, which needs a little more."""
    n_details: int = 0
    """How many columns, the last ones, come from earlier stages of a network: textures and tints, not things."""
    finetuning_obstacle: str | None
    """Why this backbone is not fine-tuned in this process, as a sentence; None if nothing stands against it."""

    @abstractmethod
    def prepare(self, image: Image.Image) -> npt.NDArray[np.uint8]:
        """Return the pixels (S, S, 3) that `embed_prepared` wants of an RGB picture of any size, S = `input_side`."""

    @abstractmethod
    def embed_prepared(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Return features (N, dim), finite and not normalised, of N prepared pictures (N, S, S, 3)."""

    def embed(self, images: Sequence[Image.Image]) -> npt.NDArray[np.float32]:
        """Return features (N, dim), finite and not normalised, of N RGB pictures of any size."""
        features = np.empty((len(images), self.dim), dtype=np.float32)
        for start in range(0, len(images), self.batch_size):
            rows = slice(start, start + self.batch_size)
            features[rows] = self.embed_prepared(np.stack([self.prepare(image) for image in images[rows]]))
        return features

    def accelerate(self) -> None:  # noqa: B027  # most have no faster way
        """Get ready for hundreds of pictures: takes seconds once if it helps, else and later nothing.

        No other thread of the process may change Python's warning filters meanwhile.
        """

    def training_pixels(self, images: Sequence[Image.Image]) -> npt.NDArray[np.uint8]:
        """Return pixels (N, S, S, 3) of N RGB pictures as `finetuned` wants them, S = `training_side`."""
        raise BackboneError(f"{self.name} cannot be fine-tuned; choose a network as BACKBONE")

    def finetuned(self, pixels: npt.NDArray[np.uint8], targets: npt.NDArray[np.intp], *, random_state: int) -> Backbone:
        """Return a copy trained on these pictures and their classes (N,), 0 to C - 1; see `learning.finetuning`.

        On a GPU seconds to minutes, on a processor core about EPOCHS times half a second a picture. Raises
        FinetuningError when training fails.
        """
        raise BackboneError(f"{self.name} cannot be fine-tuned; choose a network as BACKBONE")

    def save(self, path: Path) -> None:
        """Write the weights to a .safetensors file, beside its place and then renamed."""
        raise BackboneError(f"{self.name} has no weights to keep; choose a network as BACKBONE")

    def with_weights(self, path: Path) -> Backbone:
        """Return the same network with the weights that `save` wrote. Raises BackboneError if the file is not whole."""
        raise BackboneError(f"{self.name} takes no weights; choose a network as BACKBONE")


def load_backbone(
    name: str = DEFAULT_BACKBONE,
    weights_file: Path | None = None,
    *,
    allow_download: bool = True,
    device: str | None = None,
) -> Backbone:
    """Return the backbone `name`: any of torchvision's classification networks, or `descriptor`.

    Weights come from `weights_file` (a state dict, .safetensors or what torch.save writes) or else from torchvision's
    own ImageNet checkpoint, kept in torch's cache. If that can be neither found nor downloaded, the descriptor is
    returned, with a `warning`. `device` as torch writes it; by default a GPU if there is one. Takes a few seconds.
    Raises BackboneError for an unknown name and for a weights file that is missing, broken or of another network.
    """
    if name == DESCRIPTOR and weights_file is None:
        return DescriptorBackbone()
    zoo = torchvision_models()
    known = [other for other in zoo.list_models(module=zoo) if other not in _UNSUPPORTED]
    if name not in known:
        raise BackboneError(
            f"unknown backbone {name!r}; expected '{DESCRIPTOR}' or a torchvision classification network such as"
            f" {_EXAMPLES}"
        )
    if weights_file is not None:
        return NetworkBackbone(name, _read_state_dict(weights_file), "file", str(weights_file), device)
    reason = "downloads are switched off"
    try:
        checkpoint = _cached_checkpoint(zoo.get_model_weights(name).DEFAULT.url, allow_download)
        if checkpoint is not None:
            return NetworkBackbone(name, _read_state_dict(checkpoint), "download", str(checkpoint), device)
    except _DownloadError as exc:
        reason = str(exc)
    return DescriptorBackbone(
        f"The weights of {name} are not on this machine and could not be downloaded ({reason}). Images are described by"
        " their colours and textures instead, which learns far slower. Give a weights file (BACKBONE_WEIGHTS) or a"
        " connection to download.pytorch.org and start again."
    )


def torchvision_models() -> types.ModuleType:
    """`torchvision.models`, imported without torch's compiler.

    An operator of torchvision that no classification network uses asks the compiler one question when it is called, and
    imports all of it for that: 4 s of 5, and 170 MB of the process. It gets a stand-in that says no; should another
    release want more of the compiler than that, it is imported after all.
    """
    compiler = types.ModuleType("torch._dynamo"), types.ModuleType("torch._dynamo.utils")
    vars(compiler[1]).update(_ASKED_OF_THE_COMPILER)
    is_new = not {"torchvision", *(module.__name__ for module in compiler)} & sys.modules.keys()
    if is_new:
        sys.modules.update({module.__name__: module for module in compiler})
    try:
        return importlib.import_module("torchvision.models")
    except ImportError:
        if not is_new:
            raise
    finally:
        for module in compiler:
            if sys.modules.get(module.__name__) is module:
                del sys.modules[module.__name__]
    return importlib.import_module("torchvision.models")


class NetworkBackbone(Backbone):
    """A torchvision network without its classifier.

    Features are blocks, each the signed square root (which tames a few large entries: Perronnin et al. 2010) scaled to
    length 1: what the classifier would get, after pooling; then, as details, the mean over the picture of what each
    earlier stage ends with, a stage being the layers between two halvings of the resolution (none in a transformer).
    """

    def __init__(
        self, name: str, state_dict: Mapping[str, torch.Tensor], source: WeightsSource, origin: str, device: str | None
    ) -> None:
        import torch

        zoo = torchvision_models()
        preset = zoo.get_model_weights(name).DEFAULT.transforms()
        self.input_side = int(preset.crop_size[0])
        self.training_side = round(self.input_side * _MARGIN)
        # Vision transformers are built for one picture size.
        options = {"image_size": self.input_side} if name.startswith("vit_") else {}
        with torch.random.fork_rng(devices=[]):  # its random weights are all replaced; the caller's generator stays
            network = zoo.get_model(name, weights=None, **options)
        classifier, self.dim = _replace_classifier(network)
        _load_features(network, state_dict, classifier, name, origin)
        self.name = name
        self.weights_source = source
        self._resample = Image.Resampling[preset.interpolation.name]
        try:
            self._device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
            network = network.eval().requires_grad_(False).to(self._device)
            if self._device.type == "cuda":
                network = network.to(memory_format=torch.channels_last)  # as tensor cores want it
            self._network = network
        except (RuntimeError, AssertionError) as exc:
            raise BackboneError(f"device {device!r} cannot be used ({_first_line(exc)}); give 'cpu' or none") from exc
        mean, std = (
            getattr(preset, part, default) for part, default in (("mean", _IMAGENET_MEAN), ("std", _IMAGENET_STD))
        )
        self._n_threads = min(torch.get_num_threads(), n_usable_cores())
        self._torch_batch = max(_CPU_BATCH, self._n_threads) if self._device.type == "cpu" else _GPU_BATCH
        self._engine: OnnxNetwork | None = None
        self._engine_settled = False
        self._engine_guard = threading.Lock()
        self._pooled = threading.local()
        self._stages = self._watch_stages()
        self.n_details = sum(n_channels for _, n_channels in self._stages)
        self._n_last = self.dim
        self.dim += self.n_details
        self._mean, self._std = (torch.tensor(v, device=self._device).mul(255).view(1, 3, 1, 1) for v in (mean, std))
        transform = f"half-squeezed-1 stages-1 {self.input_side} {self._resample.name} {list(mean)} {list(std)}"
        self.fingerprint = _fingerprint("torchvision", name, _digest(network.state_dict()), transform)
        self.finetuning_obstacle = _NO_GPU if self._device.type == "cpu" else None

    @property
    def batch_size(self) -> int:  # type: ignore[override]
        """See `Backbone.batch_size`; two rounds, so that the next one is on its way when one ends."""
        return 2 * (self._torch_batch if self._device.type != "cpu" else ROWS_PER_RUN * self._n_threads)

    def accelerate(self) -> None:
        """See `Backbone.accelerate`: on a processor ONNX Runtime takes over if it is there and gives the same features.

        Features of both differed by 6e-6 at most (128 photos, mobilenet_v2): rounding, far below that of the float16
        they are kept in. So both have the same fingerprint and may stand in one store. bfloat16 would be twice as fast
        again, but is as far off as a cosine of 0.95, and is not used.
        """
        with self._engine_guard:
            if self._engine_settled or self._device.type != "cpu":
                return
            self._engine_settled = True
            started = time.monotonic()
            probes = _probes(self.input_side)
            try:
                engine = OnnxNetwork(self._network, self._stacked_blocks, probes, n_threads=self._n_threads)
                difference = self._scaled(engine(probes)) - self._scaled(self._run_torch(probes))
                # Blocks have length 1, or 0 in both; NaN compares as false.
                cosine = 1 - max(float((block**2).sum(axis=1).max()) for block in self._blocks(difference)) / 2
                if not cosine >= _MIN_COSINE:
                    raise BackboneError(f"its features are off (cosine {cosine:.4f}, expected {_MIN_COSINE} and above)")
            except ImportError as exc:
                logger.info("embedding with torch, not the faster ONNX Runtime (%s): pip install onnxruntime onnx", exc)
            except BackboneError as exc:
                logger.warning("embedding with torch, not the faster ONNX Runtime: %s", exc)
            else:
                self._engine = engine
                took = time.monotonic() - started
                logger.info(
                    "embedding with ONNX Runtime backbone=%s threads=%d took=%.1fs", self.name, self._n_threads, took
                )

    def prepare(self, image: Image.Image) -> npt.NDArray[np.uint8]:
        """See `Backbone.prepare`."""
        return self._prepared(image, self.input_side)

    def embed_prepared(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """See `Backbone.embed_prepared`; on a GPU in half precision."""
        if not len(pixels):
            return np.empty((0, self.dim), dtype=np.float32)
        engine = self._engine
        features = engine(pixels) if engine is not None else self._run_torch(pixels)
        if not np.isfinite(features).all():
            raise BackboneError(f"{self.name} gave features that are not finite; the weights do not fit it: use others")
        return self._scaled(features)

    def _run_torch(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Raw features (N, dim) of prepared pictures (N, S, S, 3), in batches the device's memory holds."""
        import torch

        on_gpu = self._device.type == "cuda"
        waiting = torch.from_numpy(pixels)
        if on_gpu:
            waiting = waiting.pin_memory()  # what lets the copies below go on beside the network
        outputs: list[torch.Tensor] = []
        with torch.inference_mode(), torch.autocast("cuda", torch.float16, enabled=on_gpu):
            while len(waiting):
                size = min(self._torch_batch, len(waiting))
                try:
                    outputs.append(self._stacked_blocks(waiting[:size].to(self._device, non_blocking=True)))
                except torch.OutOfMemoryError as exc:
                    if size == 1:
                        raise BackboneError(
                            f"the memory of {self._device} does not hold one picture in {self.name}; free some, or"
                            " choose a smaller network as BACKBONE"
                        ) from exc
                    self._torch_batch = size // 2
                    logger.info("pictures at once on %s halved to %d: its memory is full", self._device, size // 2)
                else:
                    waiting = waiting[size:]
            features: npt.NDArray[np.float32] = torch.cat(outputs).cpu().numpy()
        return features

    def _stacked_blocks(self, pixels: torch.Tensor) -> torch.Tensor:
        """Raw features (N, dim) of pixels (N, S, S, 3), 0..255: the last stage's and the details."""
        import torch

        self._pooled.stages = {}
        outputs = self._network((pixels.permute(0, 3, 1, 2).float() - self._mean) / self._std)
        return torch.cat([outputs.float(), *(self._pooled.stages[name] for name, _ in self._stages)], dim=1)

    def _blocks(self, features: npt.NDArray[np.float32]) -> list[npt.NDArray[np.float32]]:
        """Views of the columns of the last stage and of each block of details."""
        ends = np.cumsum([self._n_last, *(n_channels for _, n_channels in self._stages)])[:-1]
        return np.split(features, ends, axis=1)

    def _scaled(self, features: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """The signed square root of raw features (N, dim), each block at length 1."""
        rooted: npt.NDArray[np.float32] = np.sign(features) * np.sqrt(np.abs(features))
        for block in self._blocks(rooted):
            lengths = np.linalg.norm(block, axis=1, keepdims=True)
            np.divide(block, lengths, out=block, where=lengths > 0)
        return rooted

    def training_pixels(self, images: Sequence[Image.Image]) -> npt.NDArray[np.uint8]:
        """See `Backbone.training_pixels`."""
        pixels = np.empty((len(images), self.training_side, self.training_side, 3), dtype=np.uint8)
        for row, image in zip(pixels, images, strict=True):
            row[:] = self._prepared(image, self.training_side)
        return pixels

    def finetuned(
        self, pixels: npt.NDArray[np.uint8], targets: npt.NDArray[np.intp], *, random_state: int
    ) -> NetworkBackbone:
        """See `Backbone.finetuned`."""
        copy = self._with(self._network.state_dict(), "this backbone")
        copy._pooled.stages = {}  # where the hooks put what only `embed` wants
        finetune(
            copy._network,
            pixels,
            targets,
            side=self.input_side,
            mean=self._mean,
            std=self._std,
            random_state=random_state,
        )
        return self._with(copy._network.state_dict(), "fine-tuning")

    def save(self, path: Path) -> None:
        """See `Backbone.save`."""
        from safetensors.torch import save_file

        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{path.name}.{uuid4().hex[:8]}")
        try:
            save_file({key: value.cpu().contiguous() for key, value in self._network.state_dict().items()}, beside)
            beside.replace(path)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise

    def with_weights(self, path: Path) -> NetworkBackbone:
        """See `Backbone.with_weights`."""
        return self._with(_read_state_dict(path), str(path))

    def _with(self, state_dict: Mapping[str, torch.Tensor], origin: str) -> NetworkBackbone:
        return NetworkBackbone(self.name, state_dict, "file", origin, str(self._device))

    def _watch_stages(self) -> list[tuple[str, int]]:
        """Name and number of channels of the last module of each earlier stage; from now on each pools its output."""
        import torch

        found: dict[int, tuple[str, int]] = {}  # by pixels per side, in order of execution
        maps_last: set[str] = set()

        def probe(name: str) -> Callable[[torch.nn.Module, Any, Any], None]:
            def note(module: torch.nn.Module, inputs: Any, output: Any) -> None:
                if isinstance(output, torch.Tensor) and output.ndim == 4:
                    height, width, last = output.shape[1:]
                    if height == width != last:  # channels last, as in Swin transformers
                        maps_last.add(name)
                        width, height = last, height
                        found[height] = name, width
                    else:
                        found[last] = name, height

            return note

        # Blocks and stages are at most two names deep; what is inside of a block is no end of a stage.
        modules = {name: module for name, module in self._network.named_modules() if name and name.count(".") < 2}
        hooks = [module.register_forward_hook(probe(name)) for name, module in modules.items()]
        with torch.inference_mode():
            self._network(torch.zeros(1, 3, self.input_side, self.input_side, device=self._device))
        for hook in hooks:
            hook.remove()
        maps = [side for side in found if side > 1]  # 1 is what pooling leaves
        stages = [found[side] for side in maps if min(maps) < side <= self.input_side // _FINEST_STAGE]

        def pool(name: str) -> Callable[[torch.nn.Module, Any, Any], None]:
            axes = (1, 2) if name in maps_last else (2, 3)

            def keep(module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> None:
                self._pooled.stages[name] = output.float().mean(axes)

            return keep

        for name, _ in stages:
            modules[name].register_forward_hook(pool(name))
        return stages

    def _prepared(self, image: Image.Image, side: int) -> npt.NDArray[np.uint8]:
        # A picture becomes square half by squeezing, half by cutting the ends of its longer side off. Accuracy of a
        # logistic regression on all labels of 1,485 photos of clothes, mobilenet_v2: squeezed only 0.820, this 0.844,
        # cut to a square 0.845, torchvision's tighter cut 0.843. This one keeps the most of a wide picture in sight.
        width, height = image.size
        shorter = min(width, height)
        half_width, half_height = (width * shorter) ** 0.5 / 2, (height * shorter) ** 0.5 / 2
        box = (width / 2 - half_width, height / 2 - half_height, width / 2 + half_width, height / 2 + half_height)
        return np.asarray(_rgb(image).resize((side, side), self._resample, box, reducing_gap=2.0))


class DescriptorBackbone(Backbone):
    """Colours and textures over a grid, in numpy: what can be had without any weights.

    Blocks of unit length: mean and spread of opponent colours in 4 x 4 cells, a joint colour histogram, gradient
    orientations in 8 x 8 cells (after Dalal and Triggs 2005), uniform local binary patterns (Ojala et al. 2002), and a
    coarse grey thumbnail. Histograms enter by their square root (Hellinger), which tames large counts.
    """

    input_side = 64
    batch_size = _DESCRIPTOR_BATCH
    dim = 2 * 48 + 150 + 512 + 59 + 64
    name = DESCRIPTOR
    weights_source: WeightsSource = "descriptor"
    finetuning_obstacle = "TRAIN=finetune has no effect with BACKBONE=descriptor, which has no weights to fine-tune"

    def __init__(self, warning: str | None = None) -> None:
        self.warning = warning
        self.fingerprint = _fingerprint(DESCRIPTOR, "colour-texture", "", "1")

    def prepare(self, image: Image.Image) -> npt.NDArray[np.uint8]:
        """See `Backbone.prepare`."""
        # Averaging keeps the colours of large pictures; tiny ones are enlarged smoothly.
        resample = Image.Resampling.BOX if min(image.size) >= self.input_side else Image.Resampling.BICUBIC
        return np.asarray(_rgb(image).resize((self.input_side, self.input_side), resample))

    def embed_prepared(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """See `Backbone.embed_prepared`; about 2 ms a picture."""
        features = np.empty((len(pixels), self.dim), dtype=np.float32)
        for row, picture in zip(features, pixels, strict=True):
            row[:] = np.concatenate([block.ravel() for block in _descriptor_blocks(picture / np.float32(255))])
        return features


def _descriptor_blocks(rgb: npt.NDArray[np.float32]) -> Iterator[npt.NDArray[np.float32]]:
    """Blocks of the descriptor, from pixels (S, S, 3) in 0..1."""
    grey = rgb @ np.array([0.299, 0.587, 0.114], dtype=np.float32)  # (S, S)
    red_green = rgb[..., 0] - rgb[..., 1]
    yellow_blue = (rgb[..., 0] + rgb[..., 1]) / 2 - rgb[..., 2]
    opponents = np.stack([grey, red_green, yellow_blue], axis=-1)  # (S, S, 3)

    means = _cell_means(opponents, 4)  # (4, 4, 3)
    spreads = np.sqrt(np.maximum(_cell_means(opponents**2, 4) - means**2, 0))
    yield _unit(means - np.array([0.5, 0, 0], dtype=np.float32))
    yield _unit(spreads)

    # Weak tints are the common ones: the root gives them bins of their own.
    tints = [np.sign(tint) * np.sqrt(np.abs(tint)) for tint in (red_green, yellow_blue)]
    bins = (_bin(grey, 0, 1, 6) * 5 + _bin(tints[0], -0.8, 0.8, 5)) * 5 + _bin(tints[1], -0.8, 0.8, 5)
    yield _hellinger(np.bincount(bins.ravel(), minlength=150))

    # The shape of things tells classes apart best (of the blocks, measured on photos of clothes): hence the weight.
    yield _HOG_WEIGHT * _hellinger(_cell_means(_oriented_gradients(grey), 8))
    yield _hellinger(np.bincount(_uniform_patterns(grey).ravel(), minlength=_N_UNIFORM_PATTERNS))

    thumbnail = _cell_means(grey[..., None], 8)
    yield _unit(thumbnail - thumbnail.mean())


def _oriented_gradients(grey: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Gradient magnitudes (S, S, 8) by orientation (sign ignored), each split between the two nearest directions."""
    gradient_y, gradient_x = np.zeros_like(grey), np.zeros_like(grey)
    gradient_y[1:-1] = grey[2:] - grey[:-2]
    gradient_x[:, 1:-1] = grey[:, 2:] - grey[:, :-2]
    magnitude = np.hypot(gradient_x, gradient_y)
    position = np.arctan2(gradient_y, gradient_x) % np.pi / np.pi * _N_ORIENTATIONS
    lower = np.floor(position).astype(int)
    share = position - lower
    oriented = np.zeros((*grey.shape, _N_ORIENTATIONS), dtype=np.float32)
    rows, columns = np.indices(grey.shape)
    oriented[rows, columns, lower % _N_ORIENTATIONS] += magnitude * (1 - share)
    oriented[rows, columns, (lower + 1) % _N_ORIENTATIONS] += magnitude * share
    return oriented


def _uniform_patterns(grey: npt.NDArray[np.float32]) -> npt.NDArray[np.intp]:
    """The local binary pattern (S-2, S-2) of each inner pixel: 58 uniform ones, and 58 for all others."""
    side = len(grey)
    centre = grey[1:-1, 1:-1] + 0.01  # brighter by 1 % of the range counts, noise does not
    around = [(-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1)]
    codes = np.zeros(centre.shape, dtype=np.intp)
    for bit, (dy, dx) in enumerate(around):
        codes |= (grey[1 + dy : side - 1 + dy, 1 + dx : side - 1 + dx] > centre).astype(np.intp) << bit
    values = np.arange(256)
    turned = (values >> 1) | ((values & 1) << 7)
    n_changes = sum(((values ^ turned) >> bit) & 1 for bit in range(8))
    uniform = n_changes <= 2
    numbers = np.where(uniform, np.cumsum(uniform) - 1, _N_UNIFORM_PATTERNS - 1)
    return numbers[codes]


def _cell_means(values: npt.NDArray[np.float32], n_cells: int) -> npt.NDArray[np.float32]:
    """Means (n, n, C) of (S, S, C) over a grid of n x n cells."""
    side, _, channels = values.shape
    step = side // n_cells
    means: npt.NDArray[np.float32] = values.reshape(n_cells, step, n_cells, step, channels).mean(axis=(1, 3))
    return means


def _bin(values: npt.NDArray[np.float32], low: float, high: float, n_bins: int) -> npt.NDArray[np.intp]:
    return np.clip(((values - low) / (high - low) * n_bins).astype(np.intp), 0, n_bins - 1)


def _unit(block: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """The block at length 1; one of nothing but zeros stays so."""
    return (block / max(float(np.linalg.norm(block)), 1e-6)).astype(np.float32)


def _hellinger(histogram: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    return _unit(np.sqrt(histogram))


def _probes(side: int) -> npt.NDArray[np.uint8]:
    """Made-up pictures (N, S, S, 3): soft patches of colour with some noise, the same ones at every call."""
    random = np.random.default_rng(0)
    patches = random.integers(0, 256, (_N_PROBES, 7, 7, 3), dtype=np.uint8)
    soft = np.stack([np.asarray(Image.fromarray(patch).resize((side, side))) for patch in patches]).astype(np.int16)
    return np.clip(soft + random.integers(-20, 21, soft.shape), 0, 255).astype(np.uint8)


def _rgb(image: Image.Image) -> Image.Image:
    return image if image.mode == "RGB" else image.convert("RGB")


def _fingerprint(kind: str, name: str, weights_digest: str, transform: str) -> str:
    return hashlib.sha256("\n".join((kind, name, weights_digest, transform)).encode()).hexdigest()[:16]


def _digest(state_dict: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of weights, whatever file they came in."""
    digest = hashlib.sha256()
    for key in sorted(state_dict):
        if not key.endswith(_COUNTER):
            values = state_dict[key].detach().cpu().contiguous()
            digest.update(f"{key} {values.dtype} {tuple(values.shape)}\n".encode())
            digest.update(values.numpy().tobytes())
    return digest.hexdigest()


def _replace_classifier(network: torch.nn.Module) -> tuple[str, int]:
    """Take the last layer that gives the 1,000 ImageNet classes out; return its name and how many features it took."""
    from torch import nn

    for key, layer in reversed(list(network.named_modules())):
        n_outputs = getattr(layer, "out_features", None) or getattr(layer, "out_channels", None)
        if n_outputs == _N_IMAGENET_CLASSES and isinstance(layer, nn.Linear | nn.Conv2d):
            parent, _, attribute = key.rpartition(".")
            setattr(network.get_submodule(parent), attribute, nn.Identity())
            return key, layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels
    raise BackboneError(f"{type(network).__name__} has no classifier of {_N_IMAGENET_CLASSES} classes; choose another")


def _load_features(
    network: torch.nn.Module, state_dict: Mapping[str, torch.Tensor], classifier: str, name: str, origin: str
) -> None:
    """Load all weights but the classifier's; raises BackboneError unless exactly those are there."""
    import torch

    expected = network.state_dict()
    given = {key: value for key, value in state_dict.items() if not key.startswith(f"{classifier}.")}
    # Counters of training steps play no part in features; old files lack them.
    missing = [key for key in expected if key not in given and not key.endswith(_COUNTER)]
    unknown = [key for key in given if key not in expected]
    misshapen = [
        f"{key} is {tuple(value.shape)} instead of {tuple(expected[key].shape)}"
        for key, value in given.items()
        if key in expected and value.shape != expected[key].shape
    ]
    not_finite = [key for key, value in given.items() if value.is_floating_point() and not torch.isfinite(value).all()]
    problems = {
        "lacks": missing,
        "also holds": unknown,
        "does not fit": misshapen,
        "has NaN or infinity in": not_finite,
    }
    if any(problems.values()):
        found = "; ".join(f"{what} {_listed(keys)}" for what, keys in problems.items() if keys)
        raise BackboneError(f"{origin} does not hold the weights of {name}: it {found}. Give the file of {name} itself")
    network.load_state_dict(given, strict=False)


def _listed(keys: Sequence[str]) -> str:
    more = len(keys) - _N_NAMES_SHOWN
    return ", ".join(keys[:_N_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    import torch

    if not path.is_file():
        raise BackboneError(
            f"the weights file {path} does not exist; give the path of a state dict (.pth, .safetensors)"
        )
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content: Any = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as exc:  # what is not a weights file makes torch.load raise almost anything
        raise BackboneError(
            f"the weights file {path} cannot be read ({_first_line(exc)}); expected a state dict written by torch.save"
            " or safetensors"
        ) from exc
    # Training scripts often wrap the state dict, and DataParallel prefixes its keys.
    for wrapper in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise BackboneError(f"the weights file {path} holds no state dict (names and tensors); save model.state_dict()")
    return {str(key).removeprefix("module."): value for key, value in content.items()}


def _first_line(exc: Exception) -> str:
    return (str(exc).splitlines() or [type(exc).__name__])[0][:200]


class _DownloadError(Exception):
    """Why a checkpoint could not be downloaded."""


def _cached_checkpoint(url: str, allow_download: bool) -> Path | None:
    """The checkpoint in torch's cache, downloaded if it must and may be; None if it must but may not."""
    import torch

    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if _is_whole(path, path.name):
        return path
    if not allow_download:
        return None
    _download(url, path)
    return path


def _is_whole(path: Path, name: str) -> bool:
    """Whether the file is there and is the one whose hash the name tells."""
    named = _HASH_IN_NAME.search(name)
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return named is None or hashlib.file_digest(file, "sha256").hexdigest().startswith(named[1])


def _download(url: str, path: Path) -> None:
    """Fetch a checkpoint beside its place, check its hash and move it there; raises _DownloadError."""
    import httpx

    partial: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with httpx.stream("GET", url, timeout=_DOWNLOAD_TIMEOUT_S, follow_redirects=True) as response:
            response.raise_for_status()
            with tempfile.NamedTemporaryFile(
                dir=path.parent, prefix=f"{path.stem}.", suffix=".part", delete=False
            ) as file:
                partial = Path(file.name)
                for chunk in response.iter_bytes():
                    file.write(chunk)
        if not _is_whole(partial, path.name):
            raise _DownloadError(f"what {httpx.URL(url).host} sent has another hash than expected")
        partial.replace(path)
    except (httpx.HTTPError, OSError) as exc:
        raise _DownloadError(_first_line(exc)) from exc
    finally:
        if partial is not None:
            partial.unlink(missing_ok=True)
