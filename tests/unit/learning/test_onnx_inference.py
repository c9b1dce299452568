"""ONNX Runtime gives what torch gives, however many rows there are and threads share them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from backend.errors import BackboneError
from backend.learning.onnx_inference import MAX_CONCURRENT_RUNS, ROWS_PER_RUN, OnnxNetwork

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed here; `make dev` installs it")
pytest.importorskip("onnx", reason="onnx is not installed here; `make dev` installs it")


def small_network() -> torch.nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        layers = torch.nn.Conv2d(3, 5, 3), torch.nn.BatchNorm2d(5), torch.nn.ReLU6(), torch.nn.AdaptiveAvgPool2d(1)
        return torch.nn.Sequential(*layers, torch.nn.Flatten()).eval()


def rows(n: int) -> np.ndarray:
    return np.random.default_rng(n).integers(0, 256, (n, 9, 9, 3), dtype=np.uint8)


def compute(network: torch.nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    outputs: torch.Tensor = network(pixels.permute(0, 3, 1, 2).float() / 255)
    return outputs


@pytest.mark.parametrize("n_threads", [1, 3, 2 * MAX_CONCURRENT_RUNS])
def test_outputs_are_those_of_torch_in_the_order_of_the_rows(n_threads: int) -> None:
    """One row, a few, more than one run takes, and more than all threads take at once."""
    network = small_network()
    fast = OnnxNetwork(network, lambda pixels: compute(network, pixels), rows(2), n_threads=n_threads)
    for n in (1, 2, ROWS_PER_RUN, ROWS_PER_RUN + 1, 5 * ROWS_PER_RUN + 3):
        with torch.inference_mode():
            expected = compute(network, torch.from_numpy(rows(n))).numpy()
        outputs = fast(rows(n))
        assert (outputs.shape, outputs.dtype) == ((n, 5), np.float32)
        np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-5)


def test_several_threads_may_ask_at_once() -> None:
    """Each gets the outputs of its own rows."""
    network = small_network()
    fast = OnnxNetwork(network, lambda pixels: compute(network, pixels), rows(2), n_threads=2)
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda n: fast(rows(n)), range(1, 30)))
    for n, answer in enumerate(answers, start=1):
        np.testing.assert_allclose(answer, fast(rows(n)), rtol=1e-5, atol=1e-6)


def test_what_cannot_be_exported_is_said() -> None:
    """Singular values have no operator in ONNX; torch's own settings are as they were."""
    fused = torch.backends.mha.get_fastpath_enabled()
    with pytest.raises(BackboneError, match="cannot be exported to ONNX"):
        OnnxNetwork(small_network(), lambda pixels: torch.linalg.svdvals(pixels.float()[..., 0]), rows(2), n_threads=1)
    assert torch.backends.mha.get_fastpath_enabled() == fused


def test_rows_of_another_shape_are_refused() -> None:
    """The error is ours, and says how many pictures it was."""
    network = small_network()
    fast = OnnxNetwork(network, lambda pixels: compute(network, pixels), rows(2), n_threads=1)
    with pytest.raises(BackboneError, match="failed on 2 pictures"):
        fast(np.zeros((2, 9, 9), dtype=np.uint8))
