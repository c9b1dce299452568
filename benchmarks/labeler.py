"""A labeler at work: real Label Studio, its own `next` endpoint, labels from folder names.

Starts the demo on four fifths of a folder of class folders, labels what Label Studio hands out, one at a time, waits
after each submit for the version that knows it, and measures accuracy on the held-out fifth with the published head.

    python -m benchmarks.labeler --images DIR [--labels 60] [--weights FILE]
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

from backend.adapters.backbones import load_backbone
from backend.adapters.images import decode
from backend.adapters.registry import Registry
from backend.loop.simulate import held_out_fifth
from benchmarks import RESULTS
from benchmarks.demo_stack import label_studio_client, quantiles, running_demo

CHECKPOINTS = (10, 20, 30, 40, 50, 60, 80, 100, 150, 200, 300)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs one labeler and prints what happened."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="folder of class folders")
    parser.add_argument("--labels", type=int, default=60, help="labels to submit")
    parser.add_argument("--weights", type=Path, help="BACKBONE_WEIGHTS")
    parser.add_argument("--seed", type=int, default=0, help="seed of the held-out fifth")
    parser.add_argument("--run-dir", type=Path, help="folder of the demo; default: a new one with Label Studio reused")
    parser.add_argument("--name", default="labeler", help="name of the JSON file")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        result = run(arguments, Path(folder))
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{arguments.name}.json").write_text(json.dumps(result, indent=2) + "\n")
    print_table(result)


def run(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Starts the demo, labels, measures."""
    pool_folder, held_out = split(arguments.images, folder / "pool", arguments.seed)
    run_dir = arguments.run_dir or folder / "run"
    with running_demo(pool_folder, run_dir, arguments.weights) as facts:
        return label(arguments, facts, run_dir, held_out)


def split(images: Path, target: Path, seed: int) -> tuple[Path, dict[Path, str]]:
    """Copies four fifths of each class to `target`; the rest, path → class."""
    files = sorted(images.glob("*/*"))
    held_out = {}
    for path, out in zip(files, held_out_fifth([path.parent.name for path in files], seed), strict=True):
        if out:
            held_out[path] = path.parent.name
        else:
            (target / path.parent.name).mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target / path.parent.name)
    return target, held_out


def label(
    arguments: argparse.Namespace, facts: dict[str, Any], run_dir: Path, held_out: dict[Path, str]
) -> dict[str, Any]:
    """The labeling session."""
    project_id = facts["project_id"]
    label_studio = label_studio_client(facts["label_studio_url"], facts["label_studio_token"])
    backend = httpx.Client(
        base_url=facts["backend_url"], auth=(facts["backend_user"], facts["backend_password"]), timeout=60
    )
    backbone = load_backbone("mobilenet_v2", arguments.weights)
    embeddings = embed(backbone, list(held_out))
    registry = Registry(run_dir / "data" / "projects")
    submits, publishes, fresh, ascending = [], [], [], []
    served_by_version: dict[str, list[float]] = defaultdict(list)
    accuracies: dict[int, float] = {}
    counts: Counter[str] = Counter()
    for n in range(1, arguments.labels + 1):
        task = label_studio.get(f"/api/projects/{project_id}/next").json()
        status = backend.get(f"/api/projects/{project_id}/status").json()
        scores = queue_scores(label_studio, project_id)
        version = scores["version"]
        waiting = [score for task_id, score in scores["tasks"].items() if task_id != task["id"]]
        own = scores["tasks"].get(task["id"])
        if own is not None:
            served_by_version[version].append(own)
            ascending.append(all(own <= score for score in waiting))
        fresh.append(own is not None and status["labels_used"] == n - 1)
        name = Path(task["data"]["image"].partition("?d=")[2]).parent.name
        counts[name] += 1
        body = {
            "result": [{"from_name": "choice", "to_name": "image", "type": "choices", "value": {"choices": [name]}}],
            "lead_time": 1.0,
        }
        started = time.monotonic()
        label_studio.post(f"/api/tasks/{task['id']}/annotations/", json=body).raise_for_status()
        submits.append(time.monotonic() - started)
        while backend.get(f"/api/projects/{project_id}/status").json()["labels_used"] < n:
            if time.monotonic() - started > 60:
                raise SystemExit(f"label {n} was not in a published version within 60 s")
            time.sleep(0.01)
        publishes.append(time.monotonic() - started)
        if n in CHECKPOINTS or n == arguments.labels:
            accuracies[n] = accuracy(registry, project_id, embeddings, list(held_out.values()))
            print(f"{n:4d} labels  held-out accuracy {accuracies[n]:.3f}", file=sys.stderr)
    while (final := backend.get(f"/api/projects/{project_id}/status").json())["accuracy_labels"] < arguments.labels:
        if time.monotonic() - started > 60:
            raise SystemExit("the last version was not evaluated within 60 s")
        time.sleep(0.1)
    return {
        "images": arguments.images.name,
        "backbone": final["backbone"],
        "acquisition": final["acquisition"],
        "labels_submitted": arguments.labels,
        "labels_used": final["labels_used"],
        "labels_by_class": dict(counts),
        "accuracy_held_out": accuracies,
        "n_held_out": len(held_out),
        "accuracy_cross_validated": final["accuracy"],
        "pool_size": final["pool_size"],
        "served_lowest_score": sum(ascending),
        "served_scored": len(ascending),
        "served_from_newest_version": sum(fresh),
        "submit_s": quantiles(submits),
        "submit_to_version_s": quantiles(publishes),
    }


def queue_scores(label_studio: httpx.Client, project_id: int) -> dict[str, Any]:
    """The active version and the scores of its predictions on tasks without annotation."""
    version = label_studio.get(f"/api/projects/{project_id}/").json()["model_version"]
    predictions = label_studio.get("/api/predictions/", params={"project": project_id, "page_size": 10000}).json()
    found = predictions["results"] if isinstance(predictions, dict) else predictions
    return {
        "version": version,
        "tasks": {item["task"]: item["score"] for item in found if item["model_version"] == version},
    }


def embed(backbone: Any, files: list[Path]) -> np.ndarray:
    """Embeddings (N, D) of image files."""
    batches = []
    for start in range(0, len(files), 64):
        images: list[Image.Image] = [decode(path.read_bytes()) for path in files[start : start + 64]]
        batches.append(backbone.embed(images))
    return np.concatenate(batches)


def accuracy(registry: Registry, project_id: int, embeddings: np.ndarray, labels: list[str]) -> float:
    """Share of right top classes of the published head; 0 before there is one."""
    record = registry.published_record(project_id)
    head = registry.head(record) if record else None
    if head is None:
        return 0.0
    top = head.predict_proba(embeddings).argmax(axis=1)
    return float(np.mean([head.classes[index] == label for index, label in zip(top, labels, strict=True)]))


def print_table(result: dict[str, Any]) -> None:
    """One line per figure."""
    for name, value in result.items():
        print(f"{name:<28} {json.dumps(value)}")


if __name__ == "__main__":
    main()
