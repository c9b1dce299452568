"""Backbones: weights files that fit or do not, the fallback descriptor, downloads from a real local server."""

from __future__ import annotations

import hashlib
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torchvision.models.feature_extraction import create_feature_extractor

from backend.adapters import backbones
from backend.adapters.backbones import (
    DescriptorBackbone,
    NetworkBackbone,
    _download,
    _DownloadError,
    load_backbone,
)
from backend.errors import BackboneError
from backend.learning import finetuning
from backend.learning.pool import Pool

ROOT = Path(__file__).resolve().parents[3]
SHARED = ROOT.parent / "shared"


def random_state_dict(name: str = "squeezenet1_1", seed: int = 0) -> dict[str, torch.Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        state_dict: dict[str, torch.Tensor] = torchvision.models.get_model(name, weights=None).state_dict()
    return state_dict


def saved(folder: Path, content: object, name: str = "weights.pth") -> Path:
    path = folder / name
    torch.save(content, path)
    return path


def noise(seed: int, size: tuple[int, int] = (90, 60)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def state_dict() -> dict[str, torch.Tensor]:
    return random_state_dict()


@pytest.fixture
def without_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache for torch, and a proxy that refuses every connection."""
    for variable in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "")
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "torch"


# ---- networks


@pytest.mark.parametrize(
    ("name", "dim"),
    [("mobilenet_v2", 1280), ("squeezenet1_1", 512), ("resnet18", 512), ("mobilenet_v3_small", 1024),
     ("efficientnet_b0", 1280), ("shufflenet_v2_x0_5", 1024), ("regnet_y_400mf", 440)],
)  # fmt: skip
def test_a_network_gives_what_its_classifier_would_get(tmp_path: Path, name: str, dim: int) -> None:
    """The first columns are the square roots of the classifier's input, at length 1, whatever the network is called."""
    weights = random_state_dict(name)
    backbone = load_backbone(name, saved(tmp_path, weights), device="cpu")
    side = backbone.input_side
    features = backbone.embed([noise(1, (side, side)), noise(2, (300, 200)).convert("L")])
    assert (features.shape, features.dtype) == ((2, backbone.dim), np.float32)
    assert backbone.dim - backbone.n_details == dim
    assert (backbone.name, backbone.weights_source, backbone.warning) == (name, "file", None)
    np.testing.assert_allclose(np.linalg.norm(features[:, :dim], axis=1), 1, rtol=1e-5)

    if name == "squeezenet1_1":  # its classifier comes before the pooling
        return
    network = torchvision.models.get_model(name, weights=None).eval()
    network.load_state_dict(weights)
    last = [module for module in network.modules() if isinstance(module, torch.nn.Linear)][-1]
    taken: list[torch.Tensor] = []
    last.register_forward_pre_hook(lambda _, inputs: taken.append(inputs[0]))
    with torch.inference_mode():
        network(prepared(name, noise(1, (side, side))))
    assert_block(features[0, :dim], taken[0][0])


@pytest.mark.parametrize(
    ("name", "ends"),
    [("resnet18", ["layer1", "layer2", "layer3"]), ("mobilenet_v2", ["features.3", "features.6", "features.13"]),
     ("swin_t", ["features.1", "features.3", "features.5"]), ("vgg11", ["features.9", "features.14", "features.19"]),
     ("densenet121", ["features.denseblock1", "features.denseblock2", "features.denseblock3"]),
     ("vit_b_32", [])],
)  # fmt: skip
def test_details_are_what_earlier_stages_end_with(tmp_path: Path, name: str, ends: list[str]) -> None:
    """After the last stage come the means of the layers before each halving of the resolution, finest first."""
    weights = random_state_dict(name)
    backbone = load_backbone(name, saved(tmp_path, weights), device="cpu")
    side = backbone.input_side
    details = backbone.embed([noise(1, (side, side))])[0, backbone.dim - backbone.n_details :]
    if not ends:
        assert len(details) == 0
        return
    network = torchvision.models.get_model(name, weights=None).eval()
    network.load_state_dict(weights)
    outputs = create_feature_extractor(network, ends)(prepared(name, noise(1, (side, side))))
    axes = (1, 2) if name == "swin_t" else (2, 3)
    means = [outputs[end].detach().mean(axes)[0] for end in ends]
    assert sum(len(mean) for mean in means) == len(details)
    for block, mean in zip(np.split(details, np.cumsum([len(mean) for mean in means])[:-1]), means, strict=True):
        assert_block(block, mean)


def assert_block(block: np.ndarray, values: torch.Tensor) -> None:
    expected = values.numpy()
    expected = np.sign(expected) * np.sqrt(np.abs(expected))
    np.testing.assert_allclose(block, expected / np.linalg.norm(expected), rtol=1e-2, atol=1e-4)


def prepared(name: str, picture: Image.Image) -> torch.Tensor:
    """The network's input (1, 3, S, S) of a square picture of its size, by torchvision's own figures."""
    preset = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 255
    mean, std = (torch.tensor(part).view(1, 3, 1, 1) for part in (preset.mean, preset.std))
    return (pixels - mean) / std


def test_features_do_not_depend_on_the_batch(tmp_path: Path, state_dict: dict[str, torch.Tensor]) -> None:
    """A picture has the same features alone and among others, also beyond one batch; none give an empty array."""
    backbone = load_backbone("squeezenet1_1", saved(tmp_path, state_dict), device="cpu")
    pictures = [noise(n) for n in range(18)]
    together = backbone.embed(pictures)
    np.testing.assert_allclose(together[17], backbone.embed(pictures[17:])[0], rtol=1e-4, atol=1e-5)
    assert backbone.embed([]).shape == (0, backbone.dim)


# ---- faster engines


def least_cosine(backbone: NetworkBackbone, one: np.ndarray, other: np.ndarray) -> float:
    """Of any picture's last stage or block of details."""
    pairs = zip(backbone._blocks(one), backbone._blocks(other), strict=True)
    return min(float((a * b).sum(axis=1).min()) for a, b in pairs)


def loaded(folder: Path, name: str) -> NetworkBackbone:
    backbone = load_backbone(name, saved(folder, random_state_dict(name)), device="cpu")
    assert isinstance(backbone, NetworkBackbone)
    return backbone


@pytest.mark.parametrize("name", ["mobilenet_v2", "squeezenet1_1", "shufflenet_v2_x0_5", "vit_b_32", "swin_t"])
def test_an_accelerated_network_gives_the_same_features(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Every block of every picture within 0.999, for convolutions and transformers; the fingerprint stays."""
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed here; `make dev` installs it")
    caplog.set_level(logging.INFO)
    backbone = loaded(tmp_path, name)
    pictures = [noise(n, (80 + 60 * n, 200)) for n in range(9)] + [Image.new("RGB", (50, 70), "red")]
    fingerprint, plain = backbone.fingerprint, backbone.embed(pictures)
    for _ in range(2):
        backbone.accelerate()
    assert [record.message.partition(" took")[0] for record in caplog.records] == [
        f"embedding with ONNX Runtime backbone={name} threads={backbone._n_threads}"
    ]
    fast = backbone.embed(pictures)
    assert backbone._engine is not None
    assert least_cosine(backbone, plain, fast) >= 0.999
    assert backbone.fingerprint == fingerprint
    assert backbone.embed([]).shape == (0, backbone.dim)


@pytest.mark.parametrize("missing", ["onnxruntime", "onnx"])
def test_without_onnx_runtime_torch_goes_on(
    tmp_path: Path, missing: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One line says so and how to get it; the features are those of before, to the last bit."""
    backbone = loaded(tmp_path, "squeezenet1_1")
    plain = backbone.embed([noise(1), noise(2)])
    monkeypatch.setitem(sys.modules, missing, None)
    caplog.set_level(logging.INFO)
    for _ in range(2):
        backbone.accelerate()
    (record,) = caplog.records
    assert record.message.startswith("embedding with torch")
    assert "pip install onnxruntime onnx" in record.message
    np.testing.assert_array_equal(backbone.embed([noise(1), noise(2)]), plain)


def test_an_engine_whose_features_are_off_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An eighth of noise on the outputs turns each block by more than a cosine of 0.999: torch goes on."""
    backbone = loaded(tmp_path, "squeezenet1_1")

    def inexact(*_: object, **__: object) -> Any:
        def compute(pixels: np.ndarray) -> np.ndarray:
            exact = backbone._run_torch(pixels)
            return exact * np.random.default_rng(0).uniform(0.75, 1.25, exact.shape).astype(np.float32)

        return compute

    monkeypatch.setattr(backbones, "OnnxNetwork", inexact)
    plain = backbone.embed([noise(1)])
    backbone.accelerate()
    assert "its features are off" in caplog.text
    np.testing.assert_array_equal(backbone.embed([noise(1)]), plain)


def test_pictures_at_once_are_halved_until_the_memory_holds_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device that holds three: batches of 16 become 8, 4 and 2, which stays so; features are in order."""
    backbone = loaded(tmp_path, "squeezenet1_1")
    pictures = [noise(n) for n in range(11)]
    expected = backbone.embed(pictures)
    stacked_blocks, sizes = backbone._stacked_blocks, []

    def small_device(pixels: torch.Tensor) -> torch.Tensor:
        sizes.append(len(pixels))
        if len(pixels) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return stacked_blocks(pixels)

    monkeypatch.setattr(backbone, "_stacked_blocks", small_device)
    backbone._torch_batch = 16
    prepared = np.stack([backbone.prepare(picture) for picture in pictures])
    np.testing.assert_allclose(backbone.embed_prepared(prepared), expected, rtol=1e-3, atol=1e-4)
    assert sizes == [11, 5, 2, 2, 2, 2, 2, 1]
    assert backbone._torch_batch == 2

    def full_device(pixels: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(backbone, "_stacked_blocks", full_device)
    with pytest.raises(BackboneError, match="does not hold one picture in squeezenet1_1; free some"):
        backbone.embed_prepared(prepared)


def test_the_callers_random_generator_is_left_alone(tmp_path: Path, state_dict: dict[str, torch.Tensor]) -> None:
    """Loading a network draws no numbers from torch's global generator."""
    path = saved(tmp_path, state_dict)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load_backbone("squeezenet1_1", path, device="cpu")
    torch.testing.assert_close(torch.rand(3), expected)


def test_the_classifier_may_be_missing_or_of_another_size(tmp_path: Path, state_dict: dict[str, torch.Tensor]) -> None:
    """The classifier is not used, so files without it or with other classes give the same backbone."""
    features = {key: value for key, value in state_dict.items() if key.startswith("features.")}
    other = features | {"classifier.1.weight": torch.zeros(7, 512, 1, 1), "classifier.1.bias": torch.zeros(7)}
    wrapped = {"epoch": 3, "state_dict": {f"module.{key}": value for key, value in state_dict.items()}}
    save_file(state_dict, tmp_path / "d.safetensors")
    files = [saved(tmp_path, content, f"{n}.pth") for n, content in enumerate((state_dict, features, other, wrapped))]
    loaded = [load_backbone("squeezenet1_1", file, device="cpu") for file in [*files, tmp_path / "d.safetensors"]]
    assert len({backbone.fingerprint for backbone in loaded}) == 1
    np.testing.assert_array_equal(loaded[0].embed([noise(1)]), loaded[2].embed([noise(1)]))


def test_the_fingerprint_tells_weights_and_networks_apart_and_nothing_else(
    tmp_path: Path, state_dict: dict[str, torch.Tensor]
) -> None:
    """The same weights give the same fingerprint in another process; other weights or no weights another one."""
    path = saved(tmp_path, state_dict)
    here = load_backbone("squeezenet1_1", path, device="cpu").fingerprint
    code = (
        "import sys; from pathlib import Path; from backend.adapters.backbones import load_backbone;"
        "print(load_backbone('squeezenet1_1', Path(sys.argv[1]), device='cpu').fingerprint)"
    )
    there = subprocess.run(
        [sys.executable, "-c", code, str(path)], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert there.strip() == here
    other = load_backbone("squeezenet1_1", saved(tmp_path, random_state_dict(seed=1), "o.pth"), device="cpu")
    assert len({here, other.fingerprint, DescriptorBackbone().fingerprint}) == 3
    assert len(here) == 16
    assert int(here, 16) >= 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop("features.0.weight"), r"it lacks features\.0\.weight\. Give the file of"),
        (lambda weights: weights.update(extra=torch.zeros(1)), "it also holds extra"),
        (
            lambda weights: weights.update({"features.0.bias": torch.zeros(3)}),
            r"it does not fit features\.0\.bias is \(3,\) instead of \(64,\)",
        ),
        (lambda weights: weights["features.0.bias"].fill_(float("nan")), r"has NaN or infinity in features\.0\.bias"),
        (lambda weights: [weights.pop(key) for key in list(weights) if "squeeze" in key], r"lacks .* and \d+ more"),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit_are_refused_by_name(tmp_path: Path, change: object, message: str) -> None:
    """Missing, foreign, misshapen and broken weights are named; nothing is ever left at random."""
    weights = random_state_dict()
    change(weights)  # type: ignore[operator]
    with pytest.raises(BackboneError, match=message):
        load_backbone("squeezenet1_1", saved(tmp_path, weights), device="cpu")


def test_the_weights_of_another_network_are_refused(tmp_path: Path, state_dict: dict[str, torch.Tensor]) -> None:
    """A file of the wrong network says so in one sentence of bounded length."""
    with pytest.raises(BackboneError, match="does not hold the weights of resnet18") as raised:
        load_backbone("resnet18", saved(tmp_path, state_dict), device="cpu")
    assert len(str(raised.value)) < 1500


@pytest.mark.parametrize("content", [b"", b"not weights at all", b"PK\x03\x04 half a zip", b"\x80\x02half a pickle"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_broken_weights_file_is_an_error_not_a_fallback(tmp_path: Path, content: bytes, suffix: str) -> None:
    """Whoever names a file wants that file: nothing else is used in its place."""
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content)
    with pytest.raises(BackboneError, match=r"cannot be read .* expected a state dict"):
        load_backbone("squeezenet1_1", path)


def test_a_file_with_code_in_it_is_not_run(tmp_path: Path) -> None:
    """A pickle that is more than tensors is refused, since unpickling it could run anything."""
    with pytest.raises(BackboneError, match="cannot be read"):
        load_backbone("squeezenet1_1", saved(tmp_path, torch.nn.Linear(2, 2)))


def test_a_file_without_tensors_is_refused(tmp_path: Path) -> None:
    """A list or a dict of numbers is no state dict."""
    for content in ([1, 2], {"a": 1}):
        with pytest.raises(BackboneError, match="holds no state dict"):
            load_backbone("squeezenet1_1", saved(tmp_path, content))


def test_a_missing_file_and_an_unknown_name_say_what_to_give(tmp_path: Path) -> None:
    """The message names what came and valid choices."""
    with pytest.raises(BackboneError, match=r"none\.pth does not exist; give the path"):
        load_backbone("squeezenet1_1", tmp_path / "none.pth")
    for name in ("mobilenet", "googlenet", "fasterrcnn_resnet50_fpn", ""):
        with pytest.raises(
            BackboneError, match=r"unknown backbone .* expected 'descriptor' or .* mobilenet_v2, .*resnet18"
        ):
            load_backbone(name)


def test_a_device_that_is_not_there_is_said_so(tmp_path: Path, state_dict: dict[str, torch.Tensor]) -> None:
    """A device torch does not know is an error of ours."""
    with pytest.raises(BackboneError, match="device 'nonsense' cannot be used"):
        load_backbone("squeezenet1_1", saved(tmp_path, state_dict), device="nonsense")


def test_importing_the_module_loads_no_torch() -> None:
    """The web service starts without waiting for torch."""
    code = (
        "import sys, backend.adapters.backbones, backend.adapters.images, backend.adapters.embedding_store;"
        "print(sorted({'torch', 'torchvision', 'lance', 'pyarrow'} & set(sys.modules)))"
    )
    output = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"


def test_a_wide_picture_is_cut_and_squeezed_by_equal_parts(tmp_path: Path, state_dict: dict[str, torch.Tensor]) -> None:
    """Of a picture four times as wide as high the middle half of the width is seen, and nothing outside of it."""
    backbone = load_backbone("squeezenet1_1", saved(tmp_path, state_dict), device="cpu")
    wide, other_ends = noise(1, (400, 100)), noise(2, (400, 100))
    other_ends.paste(wide.crop((90, 0, 310, 100)), (90, 0))
    other_middle = wide.copy()
    other_middle.paste(noise(2, (20, 100)), (105, 0))
    features = backbone.embed([wide, other_ends, other_middle])
    np.testing.assert_array_equal(features[0], features[1])
    assert np.abs(features[0] - features[2]).max() > 1e-3


# ---- download


@pytest.mark.parametrize("allow_download", [True, False])
def test_without_weights_the_descriptor_steps_in_and_says_so(without_network: Path, allow_download: bool) -> None:
    """No file, no cache, no network: the descriptor with a sentence for people, and no half files."""
    backbone = load_backbone("mobilenet_v2", allow_download=allow_download)
    assert (backbone.name, backbone.weights_source) == ("descriptor", "descriptor")
    assert backbone.warning is not None
    assert "mobilenet_v2" in backbone.warning
    assert ("switched off" in backbone.warning) is not allow_download
    assert [path for path in without_network.rglob("*") if path.is_file()] == []


def test_a_foreign_file_in_the_cache_is_not_trusted(without_network: Path) -> None:
    """A checkpoint whose content does not have the hash in its name is not used."""
    cache = without_network / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    url = torchvision.models.get_model_weights("squeezenet1_1").DEFAULT.url
    torch.save(random_state_dict(), cache / url.rpartition("/")[2])
    assert load_backbone("squeezenet1_1").weights_source == "descriptor"


def test_the_descriptor_can_be_asked_for_by_name() -> None:
    """Chosen on purpose it needs no warning."""
    assert load_backbone("descriptor").warning is None


BODY = b"weights" * 10_000


@pytest.fixture
def file_server() -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status = 503 if self.path.startswith("/busy") else 200
            self.send_response(status)
            self.send_header("Content-Length", str(len(BODY)))
            self.end_headers()
            self.wfile.write(BODY[:1000] if self.path.startswith("/half") else BODY)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_download_appears_whole_under_its_name(file_server: str, tmp_path: Path) -> None:
    """The file is moved into place once its hash agrees, and nothing else is left."""
    path = tmp_path / "cache" / f"net-{hashlib.sha256(BODY).hexdigest()[:8]}.pth"
    _download(f"{file_server}/{path.name}", path)
    assert path.read_bytes() == BODY
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(("where", "message"), [("whole", "another hash"), ("half", "peer closed"), ("busy", "503")])
def test_a_failed_download_leaves_nothing(file_server: str, tmp_path: Path, where: str, message: str) -> None:
    """A wrong hash, a broken connection or an error page neither stays on disk nor passes as weights."""
    path = tmp_path / "net-00000000.pth"
    with pytest.raises(_DownloadError, match=message):
        _download(f"{file_server}/{where}/{path.name}", path)
    assert list(tmp_path.iterdir()) == []


# ---- descriptor


def test_the_descriptor_gives_finite_blocks_for_any_picture() -> None:
    """Plain, tiny, narrow and grey pictures all have features of the stated length; same picture, same features."""
    pictures = [noise(1), Image.new("RGB", (1, 1)), Image.new("RGB", (500, 3), "white"), Image.new("L", (8, 8), 7)]
    backbone = DescriptorBackbone()
    features = backbone.embed(pictures)
    assert (features.shape, features.dtype) == ((4, backbone.dim), np.float32)
    assert np.isfinite(features).all()
    np.testing.assert_array_equal(features[:1], backbone.embed(pictures[:1]))
    assert backbone.embed([]).shape == (0, backbone.dim)


def test_the_descriptor_sees_colour_and_direction() -> None:
    """Red is closer to dark red than to blue, and horizontal stripes to wider ones than to vertical ones."""
    stripes = np.zeros((64, 64), dtype=np.uint8)
    stripes[::8] = stripes[1::8] = 255
    wider = np.repeat(stripes, 2, axis=0)[:64]
    pictures = [Image.new("RGB", (32, 32), colour) for colour in ("#ff0000", "#cc1100", "#0000ff")]
    pictures += [Image.fromarray(pixels) for pixels in (stripes, wider, stripes.T.copy())]
    features = DescriptorBackbone().embed(pictures)

    def distance(one: int, other: int) -> float:
        return float(np.linalg.norm(features[one] - features[other]))

    assert distance(0, 1) < distance(0, 2)
    assert distance(3, 4) < distance(3, 5)


def test_the_descriptor_reads_handwritten_digits() -> None:
    """On the demo's pictures, scikit-learn's digits, a plain classifier of 1,000 labels gets nine in ten right."""
    digits = load_digits()
    pictures = [Image.fromarray((pixels * 15).astype(np.uint8)).resize((32, 32)) for pixels in digits.images]
    features = DescriptorBackbone().embed(pictures)
    learner = LogisticRegression(C=100, max_iter=300).fit(features[:1000], digits.target[:1000])
    assert learner.score(features[1000:], digits.target[1000:]) >= 0.9


# ---- the real weights


@pytest.mark.skipif(
    not (SHARED / "weights").is_dir(), reason="the real weights in ../shared/weights are not on this machine"
)
@pytest.mark.parametrize(
    ("name", "file", "dim"),
    [("mobilenet_v2", "mobilenet_v2-imagenet.pth", 1280), ("squeezenet1_1", "squeezenet1_1-imagenet.pth", 512)],
)
def test_real_weights_tell_real_pictures_apart(name: str, file: str, dim: int) -> None:
    """A photo's nearest neighbour shows the same kind of clothes: 0.97 and 0.89 measured, random weights below 0.45."""
    backbone = load_backbone(name, SHARED / "weights" / file, device="cpu")
    assert backbone.dim - backbone.n_details == dim
    pictures, kinds = [], []
    for kind in ("pants", "shoes", "hat"):
        for path in sorted((SHARED / "data" / "clothing" / kind).iterdir())[:12]:
            pictures.append(Image.open(path).convert("RGB"))
            kinds.append(kind)
    embeddings = backbone.embed(pictures)
    features = Pool(embeddings, backbone.n_details).space().features(embeddings)
    similarity = features @ features.T
    np.fill_diagonal(similarity, -1)
    hits = np.array(kinds) == np.array(kinds)[similarity.argmax(axis=1)]
    assert hits.mean() >= 0.8


# ---- fine-tuning


@pytest.fixture
def tuned(tmp_path: Path, state_dict: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    """A network, and the same after one step on four pictures of noise in two classes."""
    monkeypatch.setattr(finetuning, "EPOCHS", 1)
    backbone = load_backbone("squeezenet1_1", saved(tmp_path, state_dict), device="cpu")
    pixels = backbone.training_pixels([noise(seed) for seed in range(4)])
    assert pixels.shape == (4, backbone.training_side, backbone.training_side, 3)
    return backbone, backbone.finetuned(pixels, np.array([0, 1, 0, 1]), random_state=0)


def test_a_fine_tuned_network_is_a_backbone_of_its_own(tuned: tuple[Any, Any], tmp_path: Path) -> None:
    """Another fingerprint and other features of the same shape; the one it came from is as it was."""
    backbone, other = tuned
    pictures = [noise(8), noise(9)]
    assert other.fingerprint != backbone.fingerprint
    assert (other.name, other.dim, other.n_details) == (backbone.name, backbone.dim, backbone.n_details)
    again = load_backbone("squeezenet1_1", tmp_path / "weights.pth", device="cpu")
    assert again.fingerprint == backbone.fingerprint
    np.testing.assert_array_equal(again.embed(pictures), backbone.embed(pictures))
    assert np.abs(other.embed(pictures) - backbone.embed(pictures)).max() > 1e-4


def test_saved_weights_give_the_same_backbone(tuned: tuple[Any, Any], tmp_path: Path) -> None:
    """Written beside and renamed; read again, fingerprint and features are the same."""
    backbone, other = tuned
    path = tmp_path / "backbones" / f"{other.fingerprint}.safetensors"
    other.save(path)
    assert [found.name for found in path.parent.iterdir()] == [path.name]
    again = backbone.with_weights(path)
    assert again.fingerprint == other.fingerprint
    np.testing.assert_array_equal(again.embed([noise(8)]), other.embed([noise(8)]))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(BackboneError, match="cannot be read"):
        backbone.with_weights(path)


def test_what_cannot_be_fine_tuned_says_why(tmp_path: Path, state_dict: dict[str, torch.Tensor]) -> None:
    """A processor would take too long, the descriptor has no weights: one sentence each, and an error if tried."""
    network = load_backbone("squeezenet1_1", saved(tmp_path, state_dict), device="cpu")
    assert "without a GPU" in (network.finetuning_obstacle or "")
    descriptor = DescriptorBackbone()
    assert "no weights to fine-tune" in (descriptor.finetuning_obstacle or "")
    for call in (
        lambda: descriptor.training_pixels([noise(1)]),
        lambda: descriptor.finetuned(np.zeros((1, 64, 64, 3), np.uint8), np.zeros(1, np.intp), random_state=0),
        lambda: descriptor.save(tmp_path / "w.safetensors"),
        lambda: descriptor.with_weights(tmp_path / "w.safetensors"),
    ):
        with pytest.raises(BackboneError, match="choose a network as BACKBONE"):
            call()


# -- how torchvision is imported ---------------------------------------------------------------------------------------

IMPORT = """
import sys
from backend.adapters import backbones
{before}
zoo = backbones.torchvision_models()
print("torch._dynamo.convert_frame" in sys.modules, len(zoo.list_models(module=zoo)) > 50)
import torch._dynamo.utils
print(hasattr(torch._dynamo.utils, "counters"), zoo is backbones.torchvision_models())
"""


@pytest.mark.parametrize(
    ("before", "is_loaded"),
    [
        ("", False),
        ("backbones._ASKED_OF_THE_COMPILER.clear()", True),  # as with a release that wants more of it
    ],
)
def test_torchs_compiler_is_not_loaded_for_torchvision_unless_it_must(before: str, is_loaded: bool) -> None:
    """And whoever wants it afterwards gets the real one."""
    code = IMPORT.format(before=before)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.split() == [str(is_loaded), "True", "True", "True"], done.stderr
