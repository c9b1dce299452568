"""A torch network carried out by ONNX Runtime, which on processors is the faster of the two."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from backend.errors import BackboneError

if TYPE_CHECKING:
    import torch

ROWS_PER_RUN = 8
"""Rows one thread computes at a time; 1 to 32 are equally fast (measured), and memory grows with them."""

MAX_CONCURRENT_RUNS = 8
"""Runs side by side, each with activations of its own in memory; cores beyond are shared out among them."""

_OPSET = 17


class OnnxNetwork:
    """Computes what `network` computes, (N, …) → (N, D) float32, up to rounding; may be called from several threads.

    Each run takes one core where there are no more than `MAX_CONCURRENT_RUNS`, and as many runs go on side by side as
    there are cores. Nothing waits for the slowest core after each layer that way, and other processes on the same cores
    take their share of them and no more.
    """

    def __init__(
        self, network: torch.nn.Module, compute: Callable[[torch.Tensor], torch.Tensor], example: NDArray[np.uint8], *,
        n_threads: int,
    ) -> None:  # fmt: skip
        """Export `compute`, which applies `network`, as traced with two rows of `example`; takes seconds.

        No other thread may change Python's warning filters meanwhile. Raises ImportError without onnxruntime and onnx,
        and BackboneError when the network cannot be exported.
        """
        import onnxruntime

        options = onnxruntime.SessionOptions()
        self._n_runs = min(n_threads, MAX_CONCURRENT_RUNS)
        options.intra_op_num_threads = n_threads // self._n_runs
        options.inter_op_num_threads = 1
        # Threads that spin while they wait take the cores away from those who decode the next pictures.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3  # errors; it warns of what it optimises
        exported = _export(network, compute, example[:2])
        try:
            self._session = onnxruntime.InferenceSession(exported, options, providers=["CPUExecutionProvider"])
        except Exception as exc:  # onnxruntime's exceptions have no common class
            raise BackboneError(f"ONNX Runtime does not take the exported network: {exc}") from exc

    def __call__(self, rows: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the outputs (N, D) for rows (N, …), N ≥ 1, of the example's type and shape."""
        per_run = min(ROWS_PER_RUN, -(-len(rows) // self._n_runs))
        parts = [rows[start : start + per_run] for start in range(0, len(rows), per_run)]
        if len(parts) == 1:
            return self._run(parts[0])
        with ThreadPoolExecutor(min(self._n_runs, len(parts)), thread_name_prefix="onnx") as threads:
            return np.concatenate(list(threads.map(self._run, parts)))

    def _run(self, rows: NDArray[np.uint8]) -> NDArray[np.float32]:
        try:
            outputs: NDArray[np.float32] = self._session.run(None, {"rows": rows})[0]
        except Exception as exc:  # as above
            raise BackboneError(f"ONNX Runtime failed on {len(rows)} pictures: {exc}") from exc
        return outputs


def _export(
    network: torch.nn.Module, compute: Callable[[torch.Tensor], torch.Tensor], example: NDArray[np.uint8]
) -> bytes:
    """The network in ONNX's format, for any number of rows."""
    import onnx  # noqa: F401  # the exporter needs it, and says so less clearly
    import torch

    class Whole(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            return compute(rows)

    content = io.BytesIO()
    # Transformers have a fused attention in torch that ONNX knows nothing of.
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # the tracer warns of every Python number in a network
            torch.onnx.export(
                Whole().eval(),
                (torch.from_numpy(example),),
                content,  # type: ignore[arg-type]  # the older exporter takes what can be written to, the newer a path
                dynamo=False,
                opset_version=_OPSET,
                input_names=["rows"],
                output_names=["outputs"],
                dynamic_axes={"rows": {0: "n"}, "outputs": {0: "n"}},
            )
    except Exception as exc:  # the exporter raises almost anything
        reason = (str(exc).splitlines() or [type(exc).__name__])[0][:200]
        raise BackboneError(f"the network cannot be exported to ONNX: {reason}") from exc
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    return content.getvalue()
