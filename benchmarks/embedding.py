"""How fast are pictures embedded? Beside plain torch and the bare network; one worker and two; features alike?

Every figure is a rate in pictures per second: the median of repetitions in which all contenders take turns; and beside
it the processor time of a picture, which others on the machine disturb less. A worker is a process of its own, as in
the service; all that the first table compares shares one core: network, decoding, fetching.

    python -m benchmarks.embedding [--images DIR --weights FILE --backbone NAME] [--pictures 192] [--repetitions 7]

Without images and weights at hand it makes some up, which changes no rate much; the result says so.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from backend.adapters.backbones import load_backbone
from backend.adapters.images import ImageLoader, decode
from backend.loop.pipeline import embed_in_batches
from benchmarks import RESULTS, SHARED, WEIGHTS

BATCH_SIZES = (4, 16, 32, 64)
PHOTO_SIZE = (224, 298)


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints two tables and writes a JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="folder of JPEG files, at any depth")
    parser.add_argument("--weights", type=Path, help="BACKBONE_WEIGHTS for the backbone")
    parser.add_argument("--backbone", default="mobilenet_v2")
    parser.add_argument("--pictures", type=int, default=192, help="pictures in each repetition")
    parser.add_argument("--repetitions", type=int, default=7)
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        images, weights = given.images, given.weights
        clothing = SHARED / "data" / "clothing"
        if images is None:
            images = clothing if clothing.is_dir() else write_photos(Path(folder) / "photos")
        if weights is None:
            known = given.backbone == "mobilenet_v2" and WEIGHTS.is_file()
            weights = WEIGHTS if known else write_random_weights(Path(folder) / "weights.pth", given.backbone)
        task = (given.backbone, weights, images, given.pictures)
        result = {
            "backbone": given.backbone,
            "weights": "random" if weights.parent == Path(folder) else weights.name,
            "images": "made up" if images.parent == Path(folder) else images.name,
            "pictures": given.pictures,
            "repetitions": given.repetitions,
            **measure(task, given.repetitions),
        }
    show(result)
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "embedding.json").write_text(json.dumps(result, indent=2) + "\n")


def measure(task: tuple[Any, ...], n_repetitions: int) -> dict[str, Any]:
    """The rates on one core, of one worker and of two, and how like the features are."""
    cores = sorted(os.sched_getaffinity(0))
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Files, directory=str(task[2])))
    serving = multiprocessing.get_context("fork").Process(target=server.serve_forever, daemon=True)
    serving.start()
    workers: list[Worker] = []
    try:
        workers.append(Worker(task, {cores[0]}, server.server_port))
        alone = workers[0]
        agreement = alone.ask("agreement")
        contenders: dict[str, Contender] = {}
        for size in BATCH_SIZES:
            contenders[f"torch, {size} at once"] = partial(_rate, [alone], "torch", size)
            contenders[f"network, {size} at once"] = partial(_rate, [alone], "network", size)
        contenders["network, as the worker batches"] = partial(_rate, [alone], "network", agreement["batch_size"])
        contenders["worker, files"] = partial(_rate, [alone], "files")
        contenders["worker, HTTP"] = partial(_rate, [alone], "http")
        one_core = in_turns(contenders, n_repetitions)
        scaling = None
        if len(cores) > 1:
            pair = set(cores[:2])
            workers += [Worker(task, pair, server.server_port) for _ in range(2)]
            scaling = in_turns(
                {
                    "one worker on one core": partial(_rate, [alone], "files"),
                    "two workers on two cores": partial(_rate, workers[1:], "files"),
                    "one worker on two cores": partial(_rate, workers[1:2], "files"),
                },
                n_repetitions,
            )
    finally:
        for worker in workers:
            worker.stop()
        serving.terminate()
        serving.join()
        server.server_close()
    return {"agreement": agreement, "one_core": one_core, "scaling": scaling}


Contender = Callable[[], tuple[float, float]]


def in_turns(contenders: dict[str, Contender], n_repetitions: int) -> dict[str, dict[str, list[float]]]:
    """Rates and processor times of each contender, one after the other and over again; a first round is thrown away."""
    found: dict[str, dict[str, list[float]]] = {name: {"rates": [], "processor_ms": []} for name in contenders}
    for repetition in range(n_repetitions + 1):
        for name, run in contenders.items():
            rate, processor_ms = run()
            if repetition:
                found[name]["rates"].append(round(rate, 2))
                found[name]["processor_ms"].append(round(processor_ms, 3))
    return found


def _rate(workers: Sequence[Worker], work: str, *options: int) -> tuple[float, float]:
    """Pictures per second of some workers that start together, until the last is done; processor ms per picture."""
    for worker in workers:
        worker.send(work, *options)
    answers = [worker.receive() for worker in workers]
    n_pictures = sum(n for n, _, _ in answers)
    return n_pictures / max(took for _, took, _ in answers), 1000 * sum(cpu for _, _, cpu in answers) / n_pictures


def show(result: dict[str, Any]) -> None:
    """Prints the tables: median, least and most, and ratios within the repetitions."""
    agreement, one_core, scaling = result["agreement"], result["one_core"], result["scaling"]
    print(f"{result['backbone']}, weights {result['weights']}, images {result['images']}; {agreement['engine']}")
    print(f"features beside plain torch: least cosine of a block {agreement['least_cosine']:.6f}")
    print("\non one core".ljust(34) + _HEAD)
    bare = "network, as the worker batches"
    for name, found in one_core.items():
        other = name.replace("network", "torch") if "at once" in name else bare
        print(_line(name, found, one_core[other], other if other != name else ""))
    for size in BATCH_SIZES:
        print(_line("worker, files", one_core["worker, files"], one_core[f"torch, {size} at once"], f"torch, {size}"))
    if scaling:
        print("\nworkers, files".ljust(34) + _HEAD)
        one = "one worker on one core"
        for name, found in scaling.items():
            print(_line(name, found, scaling[one], one if name != one else ""))


_HEAD = "pictures/s   (least to most)   processor ms"


def _line(name: str, found: dict[str, list[float]], beside: dict[str, list[float]], other: str) -> str:
    rates = found["rates"]
    ratio = statistics.median(a / b for a, b in zip(rates, beside["rates"], strict=True))
    spread = f"({min(rates):.1f} to {max(rates):.1f})"
    columns = (
        f"{name:<33}{statistics.median(rates):>10.1f}   {spread:<18}{statistics.median(found['processor_ms']):>10.2f}"
    )
    return columns + (f"   x {ratio:.2f} of {other}" if other else "")


class Worker:
    """A process that embeds on the cores it is given."""

    def __init__(self, task: tuple[Any, ...], cores: set[int], port: int) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._connection, theirs = spawn.Pipe()
        self._process = spawn.Process(target=_work, args=(theirs, task, cores, port), daemon=True)
        self._process.start()

    def send(self, *command: Any) -> None:
        """Says what to do."""
        self._connection.send(command)

    def receive(self) -> Any:
        """What came of it."""
        answer = self._connection.recv()
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def ask(self, *command: Any) -> Any:
        """Both."""
        self.send(*command)
        return self.receive()

    def stop(self) -> None:
        """Ends the process."""
        self._process.terminate()
        self._process.join()


def _work(connection: Connection, task: tuple[Any, ...], cores: set[int], port: int) -> None:
    os.sched_setaffinity(0, cores)  # before torch counts them
    bench = _Bench(*task, port=port)
    while True:
        name, *options = connection.recv()
        try:
            connection.send(getattr(bench, name)(*options))
        except Exception as exc:
            connection.send(exc)


class _Bench:
    """What a worker can be asked; all but `agreement` answer (pictures, seconds, processor seconds)."""

    def __init__(self, backbone: str, weights: Path, images: Path, n_pictures: int, port: int) -> None:
        import torch
        from torchvision.models import get_model

        self._backbone = load_backbone(backbone, weights, device="cpu")
        every = sorted(path for path in images.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
        if not every:
            sys.exit(f"{images} holds no JPEG files")
        self._files = [every[row % len(every)] for row in np.linspace(0, len(every) - 1, n_pictures).astype(int)]
        self._pixels = np.stack([self._backbone.prepare(self._decoded(path)) for path in self._files])
        self._plain = self._backbone.embed_prepared(self._pixels)
        self._backbone.accelerate()
        self._torch_network = get_model(backbone, weights=None).eval().requires_grad_(False)
        self._inputs = torch.from_numpy(self._pixels).permute(0, 3, 1, 2).float().div(255).contiguous()
        self._base = f"http://127.0.0.1:{port}"
        self._addresses = [f"{self._base}/{path.relative_to(images).as_posix()}" for path in self._files]
        self._loader = ImageLoader(self._base, dict)

    def _decoded(self, path: Path) -> Image.Image:
        return decode(path.read_bytes(), min_side=self._backbone.input_side)

    def agreement(self) -> dict[str, Any]:
        """How like the features are to those of plain torch, on all pictures, and what computes them."""
        ours = self._backbone.embed_prepared(self._pixels)
        backbone: Any = self._backbone
        # Blocks have length 1, so |a - b|² = 2 - 2 cos; the last stage and each block of details count for themselves.
        least = min(float(1 - (block**2).sum(axis=1).max() / 2) for block in backbone._blocks(ours - self._plain))
        engine = "ONNX Runtime" if backbone._engine is not None else "torch (ONNX Runtime is not there)"
        return {"engine": engine, "least_cosine": least, "batch_size": self._backbone.batch_size}

    def torch(self, size: int) -> tuple[int, float, float]:
        """The network of torchvision as it comes, float32, pictures already normalised; without details."""
        import torch

        stop = _stopwatch()
        with torch.inference_mode():
            for start in range(0, len(self._inputs), size):
                self._torch_network(self._inputs[start : start + size])
        return len(self._inputs), *stop()

    def network(self, size: int) -> tuple[int, float, float]:
        """Our network alone, on pictures already prepared."""
        stop = _stopwatch()
        for start in range(0, len(self._pixels), size):
            self._backbone.embed_prepared(self._pixels[start : start + size])
        return len(self._pixels), *stop()

    def files(self) -> tuple[int, float, float]:
        """All the service does for pictures that are at hand: decoding, resizing, network."""
        return self._whole(self._files, self._decoded)

    def http(self) -> tuple[int, float, float]:
        """The same with pictures fetched from a server on this machine, which takes its own time on the cores."""
        side = self._backbone.input_side
        return self._whole(self._addresses, lambda address: self._loader.load(address, min_side=side))

    def _whole(self, items: Sequence[Any], load: Callable[[Any], Image.Image]) -> tuple[int, float, float]:
        stop = _stopwatch()
        n_done = sum(len(batch) for batch in embed_in_batches(self._backbone, items, load))
        return n_done, *stop()


def _stopwatch() -> Callable[[], tuple[float, float]]:
    """What gives the seconds since now, and the processor seconds of this process in them."""
    wall, processor = time.perf_counter(), time.process_time()
    return lambda: (time.perf_counter() - wall, time.process_time() - processor)


class _Files(SimpleHTTPRequestHandler):
    """Serves files as a web server does: connections stay open, and an answer leaves in one piece."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1

    def log_message(self, *_: Any) -> None:
        """Nothing."""


def write_photos(folder: Path, n_photos: int = 64) -> Path:
    """JPEG files of about the size of photos on the web: soft patches of colour with some noise."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(n_photos):
        patches = Image.fromarray(random.integers(0, 256, (12, 9, 3), dtype=np.uint8)).resize(PHOTO_SIZE)
        noisy = np.asarray(patches, dtype=np.int16) + random.integers(-12, 13, (*PHOTO_SIZE[::-1], 3))
        Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(folder / f"{number}.jpg", quality=85)
    return folder


def write_random_weights(path: Path, backbone: str) -> Path:
    """Weights as they are before any training."""
    import torch
    from torchvision.models import get_model

    torch.manual_seed(0)
    torch.save(get_model(backbone, weights=None).state_dict(), path)
    return path


if __name__ == "__main__":
    main()
