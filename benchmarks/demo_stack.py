"""The demo as benchmarks run it: real Label Studio, Redis, gunicorn and worker, on free ports, ended when done."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from benchmarks import REPOSITORY
from benchmarks.stack import free_port

STOP_S = 60
START_ATTEMPTS = 3


@contextmanager
def running_demo(images: Path, run_dir: Path, weights: Path | None) -> Iterator[dict[str, Any]]:
    """Starts `python -m backend demo` on a folder of images; what its `demo.json` tells, once it is ready.

    An installed Label Studio of the repository's own demo is used again. The first start of a new `run_dir` takes one
    to two minutes, for Label Studio makes its database; later ones about twenty seconds.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    installed = REPOSITORY / ".run" / "label-studio"
    if not (run_dir / "label-studio").exists() and installed.exists():
        (run_dir / "label-studio").symlink_to(installed)
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    if weights:
        environment["BACKBONE_WEIGHTS"] = str(weights.resolve())
    demo = _started(images, run_dir, environment)
    try:
        yield json.loads((run_dir / "demo.json").read_text())
    finally:
        demo.send_signal(signal.SIGINT)
        demo.wait(STOP_S)


def _started(images: Path, run_dir: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """The demo once it is ready; on a busy machine Label Studio's time limits can make a first attempt fail."""
    for _ in range(START_ATTEMPTS):
        command = [
            sys.executable, "-m", "backend", "demo", "--images", str(images), "--run-dir", str(run_dir),
            "--label-studio-port", str(free_port()), "--backend-port", str(free_port()),
        ]  # fmt: skip
        ready = run_dir / "demo.json"
        ready.unlink(missing_ok=True)
        demo = subprocess.Popen(command, env=environment, cwd=REPOSITORY, stdout=sys.stderr)
        while demo.poll() is None:
            if ready.exists():
                return demo
            time.sleep(0.2)
    raise SystemExit(f"the demo did not start in {START_ATTEMPTS} attempts; what it printed says why")


def label_studio_client(url: str, token: str) -> httpx.Client:
    """A client that speaks to Label Studio as the user of a token."""
    return httpx.Client(base_url=url, headers={"Authorization": f"Token {token}"}, timeout=600)


def quantiles(seconds: Sequence[float], percents: Sequence[int] = (95,)) -> dict[str, float]:
    """Median, the percentiles asked for (linear between neighbours) and maximum, to a millisecond."""
    values = np.asarray(seconds)
    found = {"median": np.median(values)}
    found |= {f"p{percent}": np.quantile(values, percent / 100) for percent in percents}
    found["max"] = values.max()
    return {name: round(float(value), 3) for name, value in found.items()}
