"""Selection at scale: time, memory and covering radius of k-center beside its peers, and of the other strategies.

On made-up embeddings in clusters, of length 1, in float16. Every measurement is a process of its own, so that the peak
of its memory is its own; they alternate (ours, peer, peer, ours, …), and ratios are those of medians. The time is that
of the selection alone: peers get float32 embeddings, made before the clock starts. On a GPU, where there is one, the
same function is given a tensor.

    python -m benchmarks.kcenter [--shapes 100000x1280 1000000x512] [--repetitions 3]
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from backend.learning.coreset import covering_radius, merge_coresets, select_coreset, typicality
from backend.learning.features import evenly_spaced
from backend.learning.first_batch import FIRST_BATCH_STRATEGIES
from benchmarks import REPOSITORY, RESULTS

BUDGET = 100
SHAPES = ("100000x1280", "1000000x512")

PEERS = ("numpy", "lightly-mundig", "scikit-activeml")
LIMIT_S = 300.0
"""What takes longer is stopped and left out."""

CORRELATION_ROWS = 20_000
"""Rows of which typicality among all is compared with typicality among a sample."""

N_SHARDS = 8
SAMPLED_SHARE = 10

Answer = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> None:
    """Measures the shapes, puts them beside those measured before in a JSON file, prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=SHAPES, help="rows x numbers of the embeddings")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--run", help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.run:
        print(json.dumps(run(arguments.run, arguments.file, arguments.shapes[0])))
        return
    path = RESULTS / "kcenter.json"
    earlier = json.loads(path.read_text())["shapes"] if path.is_file() else []
    measured = {shape["shape"]: shape for shape in earlier}
    for shape in arguments.shapes:
        measured[shape] = measure(shape, arguments.repetitions)
    content = {
        "budget": BUDGET,
        "data": "made up: clusters, power-law spectrum, length 1, float16",
        "shapes": [measured[shape] for shape in sorted(measured)],
        "typicality": measure_typicality(),
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n")
    print_tables(content)


def made_up(n_rows: int, n_features: int, seed: int = 0) -> np.ndarray:
    """Embeddings in 200 clusters of length 1, most variance on few axes, some rows far from their cluster."""
    random = np.random.default_rng(seed)
    scale = (np.arange(1, n_features + 1) ** -0.5).astype(np.float32)
    centres = random.standard_normal((200, n_features), dtype=np.float32) * scale
    embeddings = np.empty((n_rows, n_features), dtype=np.float16)
    for start in range(0, n_rows, 20_000):
        part = embeddings[start : start + 20_000]
        rows = random.standard_normal(part.shape, dtype=np.float32) * scale
        rows *= random.gamma(4, 0.25, (len(part), 1)).astype(np.float32)
        rows += centres[random.integers(0, 200, len(part))]
        part[:] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return embeddings


def measure(shape: str, repetitions: int) -> Answer:
    """Everything about embeddings of one shape."""
    n_rows, n_features = (int(number) for number in shape.split("x"))
    with tempfile.TemporaryDirectory(prefix="kcenter-") as folder:
        file = Path(folder) / "embeddings"
        made_up(n_rows, n_features).tofile(file)
        runs: dict[str, list[Answer]] = {}
        for _ in range(repetitions):
            for name in ("ours", *PEERS):
                answer = run_apart(name, file, n_rows, n_features)
                if answer is not None:
                    runs.setdefault(name, []).append(answer)
        others = ["shards", "sample", *(name for name in FIRST_BATCH_STRATEGIES if name not in ("coreset", "random"))]
        if has_gpu():
            others.insert(0, "gpu")
        for name in others:
            answer = run_apart(name, file, n_rows, n_features)
            if answer is not None:
                runs[name] = [answer]
        embeddings = np.memmap(file, np.float16, "r", shape=(n_rows, n_features))
        found = [summary(name, answers, embeddings) for name, answers in runs.items()]
    own = found[0]
    for row in found:
        row["times_ours"] = row["seconds"] / own["seconds"]
        row["radius_to_ours"] = row["covering_radius"] / own["covering_radius"]
    return {
        "shape": shape,
        "rows": n_rows,
        "features": n_features,
        "array_bytes": n_rows * n_features * 2,
        "repetitions": repetitions,
        "measured": found,
    }


def summary(name: str, answers: list[Answer], embeddings: np.ndarray) -> Answer:
    """Medians and spread over repetitions, and the covering radius of what was selected."""
    seconds = [answer["seconds"] for answer in answers]
    return {
        "name": name,
        "seconds": float(np.median(seconds)),
        "seconds_all": seconds,
        "peak_bytes_to_array": float(np.median([answer["peak_bytes"] for answer in answers])) / embeddings.nbytes,
        "covering_radius": covering_radius(embeddings, answers[0]["selected"]),
        **{key: value for key, value in answers[0].items() if key.startswith("gpu_")},
    }


def run_apart(name: str, file: Path, rows: int, n_features: int) -> Answer | None:
    """What `run` gives, in a process of its own; None if it takes too long, is not installed or out of memory."""
    command = [sys.executable, "-m", "benchmarks.kcenter", "--run", name, "--file", str(file)]
    command += ["--shapes", f"{rows}x{n_features}"]
    try:
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=LIMIT_S, check=True)
    except subprocess.TimeoutExpired:
        print(f"{name} on {rows} rows: stopped after {LIMIT_S:g} s", file=sys.stderr)
        return None
    except subprocess.CalledProcessError as exc:
        print(f"{name} on {rows} rows: {exc.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
        return None
    answer: Answer = json.loads(done.stdout)
    print(f"{name} on {rows} rows: {answer['seconds']:.2f} s", file=sys.stderr)
    return answer


def run(name: str, file: Path, shape: str) -> Answer:
    """Seconds of one selection, the peak of this process's memory with the array in it, and what was selected."""
    rows, n_features = (int(number) for number in shape.split("x"))
    prepare, select = RUNS.get(name, (float16_rows, strategy(name)))
    with tempfile.NamedTemporaryFile() as small:  # imports, and the first use of everything, before the clock starts
        made_up(1000, 16).tofile(small.name)
        select(prepare(Path(small.name), 1000, 16))
    before = memory("VmRSS")
    embeddings = prepare(file, rows, n_features)
    start = time.perf_counter()
    selected = select(embeddings)
    seconds = time.perf_counter() - start
    peak = memory("VmHWM") - before
    extra = gpu_figures(embeddings, seconds) if name == "gpu" else {}
    return {"seconds": seconds, "peak_bytes": peak, "selected": [int(row) for row in selected], **extra}


def memory(kind: str) -> int:
    """Bytes this process holds now ("VmRSS") or has held at most ("VmHWM")."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(kind))


def float16_rows(file: Path, n_rows: int, n_features: int) -> np.ndarray:
    """The first rows as they are stored, read into memory."""
    return np.fromfile(file, np.float16, n_rows * n_features).reshape(n_rows, n_features)


def float32_rows(file: Path, n_rows: int, n_features: int) -> np.ndarray:
    """What peers work on, without a moment at which both are in memory."""
    rows = np.empty((n_rows, n_features), dtype=np.float32)
    with file.open("rb") as stream:
        for start in range(0, n_rows, 10_000):
            part = rows[start : start + 10_000]
            part[:] = np.fromfile(stream, np.float16, part.size).reshape(part.shape)
    return rows


def tensor_on_gpu(file: Path, n_rows: int, n_features: int) -> Any:
    """The first rows as they are stored, in the memory of the GPU."""
    import torch

    return torch.from_numpy(float16_rows(file, n_rows, n_features)).cuda()


def ours(embeddings: Any) -> list[int]:
    """Ours, on an array or a tensor."""
    return select_coreset(embeddings, budget=BUDGET)


def plain_numpy(embeddings: np.ndarray) -> list[int]:
    """The loop as one writes it: one product of the matrix with a vector for each row selected."""
    lengths = np.einsum("nd,nd->n", embeddings, embeddings)
    selected = [0]
    nearest = lengths + lengths[0] - 2 * (embeddings @ embeddings[0])
    while len(selected) < BUDGET:
        nearest[selected[-1]] = -np.inf
        chosen = int(nearest.argmax())
        selected.append(chosen)
        np.minimum(nearest, lengths + lengths[chosen] - 2 * (embeddings @ embeddings[chosen]), out=nearest)
    return selected


def lightly_mundig(embeddings: np.ndarray) -> list[int]:
    """Lightly's engine; this is a process of its own, as it needs one."""
    from lightly_mundig import Selection

    selection = Selection()
    selection.add_diversifying_strategy(embeddings=embeddings, strength=1.0)
    selected: list[int] = selection.run_selection(
        preselected_indices=[], n_total_samples=len(embeddings), n_samples_to_select=BUDGET
    )
    return selected


def scikit_activeml(embeddings: np.ndarray) -> list[int]:
    """Its CoreSet with row 0 labeled, where the others start."""
    from skactiveml.pool import CoreSet

    targets = np.full(len(embeddings), np.nan)
    targets[0] = 0
    return [0, *CoreSet(random_state=0).query(embeddings, targets, batch_size=BUDGET - 1)]


def shards(embeddings: np.ndarray) -> list[int]:
    """Coresets of `N_SHARDS` stretches of the array, merged."""
    bounds = np.linspace(0, len(embeddings), N_SHARDS + 1).astype(int)
    chosen = [
        np.array(select_coreset(embeddings[start:end], budget=BUDGET)) + start
        for start, end in itertools.pairwise(bounds)
    ]
    merged = merge_coresets([embeddings[rows] for rows in chosen], budget=BUDGET)
    return [int(chosen[shard][row]) for shard, row in merged]


def sample(embeddings: np.ndarray) -> list[int]:
    """k-center of a tenth of the rows."""
    rows = evenly_spaced(len(embeddings), max(len(embeddings) // SAMPLED_SHARE, BUDGET))
    return [int(rows[row]) for row in select_coreset(embeddings[rows], budget=BUDGET)]


def strategy(name: str) -> Callable[[Any], list[int]]:
    """A first-batch strategy."""
    return lambda features: FIRST_BATCH_STRATEGIES[name](features, budget=BUDGET, n_classes=10, random_state=0)


RUNS: dict[str, tuple[Callable[[Path, int, int], Any], Callable[[Any], list[int]]]] = {
    "ours": (float16_rows, ours),
    "gpu": (tensor_on_gpu, ours),
    "numpy": (float32_rows, plain_numpy),
    "lightly-mundig": (float32_rows, lightly_mundig),
    "scikit-activeml": (float32_rows, scikit_activeml),
    "shards": (float16_rows, shards),
    "sample": (float16_rows, sample),
}


def has_gpu() -> bool:
    """Whether torch sees one."""
    import torch

    return torch.cuda.is_available()


def gpu_figures(embeddings: Any, seconds: float) -> Answer:
    """Bytes of embeddings read per second, and as a share of what a copy within the GPU's memory reads and writes."""
    import torch

    embeddings.clone()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(10):
        embeddings.clone()
    torch.cuda.synchronize()
    copied = 20 * embeddings.nbytes / (time.perf_counter() - start)
    read = BUDGET * embeddings.nbytes / seconds
    return {
        "gpu_name": torch.cuda.get_device_name(),
        "gpu_bytes_per_s": read,
        "gpu_share_of_copy_bandwidth": read / copied,
    }


def measure_typicality() -> Answer:
    """Rank correlation of typicality among samples with that among all rows."""
    embeddings = made_up(CORRELATION_ROWS, 512)
    exact = typicality(embeddings, exact_rows=CORRELATION_ROWS)
    found = []
    for n_reference in (2_000, 5_000, 10_000):
        exact_rows = int((n_reference * CORRELATION_ROWS) ** 0.5)
        sampled = typicality(embeddings, exact_rows=exact_rows)
        found.append({"reference_rows": n_reference, "rank_correlation": float(spearmanr(exact, sampled).statistic)})
    return {"rows": CORRELATION_ROWS, "features": 512, "sampled": found}


def print_tables(content: Answer) -> None:
    """One table for each shape, and one for typicality."""
    for shape in content["shapes"]:
        print(f"\n{shape['rows']} x {shape['features']}, {content['budget']} selected\n")
        print("| | seconds | times ours | peak memory / array | covering radius | / ours |")
        print("|---|---|---|---|---|---|")
        for row in shape["measured"]:
            spread = f"{row['seconds']:.2f} ({min(row['seconds_all']):.2f}–{max(row['seconds_all']):.2f})"
            print(
                f"| {row['name']} | {spread} | {row['times_ours']:.1f} | "
                f"{row['peak_bytes_to_array']:.2f} | {row['covering_radius']:.4f} | {row['radius_to_ours']:.4f} |"
            )
            if "gpu_name" in row:
                print(
                    f"\n{row['gpu_name']}: {row['gpu_bytes_per_s'] / 1e9:.0f} GB/s of embeddings, "
                    f"{row['gpu_share_of_copy_bandwidth']:.0%} of a copy's\n"
                )
    print("\n| typicality among | rank correlation with that among all |\n|---|---|")
    for row in content["typicality"]["sampled"]:
        print(f"| {row['reference_rows']} of {content['typicality']['rows']} | {row['rank_correlation']:.3f} |")


if __name__ == "__main__":
    main()
