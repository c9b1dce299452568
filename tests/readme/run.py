"""Follows "Try it" of README.md in a clean container, from the clone to the first label in a browser; times each step.

    python tests/readme/run.py [--engine podman] [--json FILE] [--keep]

The container has what the README asks for and nothing else; the command lines are read from the README, so that it
cannot say what does not work. The browser is in a second container that shares the first one's network.
Needs a container engine and access to package downloads. Exit code: 0 when all worked, 1 when a step did not, 2
when there is no engine.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
RESULTS = REPOSITORY / "benchmarks" / "results" / "readme.json"
NEWCOMER = Path(__file__).with_name("newcomer.py")

BASE = "python:3.11-slim-bookworm"
NEEDED = ("git", "make")  # beside Python; the README must name them
DESK = f"""FROM {BASE}
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends {" ".join(NEEDED)} \\
 && rm -rf /var/lib/apt/lists/* && useradd --create-home newcomer
USER newcomer
WORKDIR /home/newcomer
CMD ["sleep", "infinity"]
"""
BROWSER = f"""FROM {BASE}
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core \\
      libatomic1 && rm -rf /var/lib/apt/lists/*
RUN python -m pip install --quiet --no-cache-dir "playwright=={{playwright}}" \\
 && python -c "from playwright.sync_api import sync_playwright as p; p().start().stop()" && chromium --version
"""
CLONE = "active-learning"

BUILD_TIMEOUT_S = 1200
START_TIMEOUT_S = 2400
BROWSER_TIMEOUT_S = 300
COMMAND_TIMEOUT_S = 120


class StepError(Exception):
    """A step did not work; the message says what was said."""


class Steps:
    """The table: what was done, how long it took, and what came over the network meanwhile."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def add(self, step: str, seconds: float, megabytes: float = 0.0, found: str = "") -> None:
        """One line, printed at once."""
        self.rows.append({"step": step, "s": round(seconds, 1), "downloaded_mb": round(megabytes, 1), "found": found})
        print(f"{step:<60} {seconds:>7.1f} s {megabytes:>8.1f} MB  {found}", flush=True)


class Desk:
    """The newcomer's machine: a container that nothing was installed in but what the README asks for."""

    def __init__(self, engine: str) -> None:
        self._engine = engine
        self.name = f"readme-test-{secrets.token_hex(3)}"
        self._browser = f"{self.name}-browser"

    def prepare(self) -> None:
        """Images and the container; a newcomer has this already."""
        locked = re.search(r"(?m)^playwright==(\S+)", (REPOSITORY / "requirements-dev.txt").read_text())
        if locked is None:
            raise StepError("requirements-dev.txt names no playwright")
        for tag, recipe in (("readme-test-desk", DESK), ("readme-test-browser", BROWSER.format(playwright=locked[1]))):
            self._run("build", "--quiet", "--tag", tag, "-", given=recipe, timeout_s=BUILD_TIMEOUT_S)
        self._run("run", "--detach", "--init", "--name", self.name, "readme-test-desk")

    def bring(self, file: Path, to: str) -> None:
        """A file put there."""
        self._run("cp", str(file), f"{self.name}:{to}")

    def type(self, line: str, *, timeout_s: float = COMMAND_TIMEOUT_S) -> str:
        """A command line that ends by itself; what it printed."""
        return self._run("exec", self.name, "sh", "-c", line, timeout_s=timeout_s)

    def start(self, line: str) -> subprocess.Popen[str]:
        """A command line that stays, in a process group of its own as in a terminal; its output to be read."""
        return subprocess.Popen(
            [self._engine, "exec", self.name, "setsid", "--wait", "sh", "-c", f"echo $$ >/tmp/group; {line}"],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def press_ctrl_c(self) -> None:
        """What a terminal does: SIGINT to all processes of the group."""
        self.type("python -c 'import os; os.killpg(int(open(\"/tmp/group\").read()), 2)'")

    def browse(self, told: dict[str, str]) -> list[dict[str, Any]]:
        """The steps in the browser, from beside the desk: to it, 127.0.0.1 is the desk's."""
        said = self._run(
            "run", "--rm", "--interactive", "--name", self._browser, "--network", f"container:{self.name}",
            "--shm-size", "1g", "readme-test-browser", "python", "-", json.dumps(told),
            given=NEWCOMER.read_text(), timeout_s=BROWSER_TIMEOUT_S,
        )  # fmt: skip
        return [json.loads(line) for line in said.splitlines() if line.startswith("{")]

    def received_mb(self) -> float:
        """All that came over the network so far, in 10⁶ bytes."""
        return int(self.type("cat /sys/class/net/eth0/statistics/rx_bytes")) / 1e6

    def remove(self) -> None:
        """Both containers; the images stay for the next time."""
        for name in (self._browser, self.name):
            subprocess.run([self._engine, "rm", "--force", "--volumes", name], capture_output=True, check=False)

    def _run(self, *arguments: str, given: str | None = None, timeout_s: float = COMMAND_TIMEOUT_S) -> str:
        done = subprocess.run(
            [self._engine, *arguments], input=given, capture_output=True, text=True, timeout=timeout_s, check=False
        )
        if done.returncode:
            tail = "\n".join((done.stdout + done.stderr).splitlines()[-15:])
            raise StepError(f"`{' '.join(arguments)[:200]}` ended with {done.returncode}:\n{tail}")
        return done.stdout


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", default=os.environ.get("ENGINE"), help="podman, docker [environment: ENGINE]")
    parser.add_argument("--json", type=Path, default=RESULTS, help="where the times are written")
    parser.add_argument("--keep", action="store_true", help="leave the container at the end")
    options = parser.parse_args()
    engine = next((name for name in (options.engine, "podman", "docker") if name and _works(name)), None)
    if engine is None or (options.engine and engine != options.engine):
        print("no container engine works here; name one with --engine", file=sys.stderr)
        return 2
    steps, desk = Steps(), Desk(engine)
    try:
        follow(try_it(), desk, steps)
    except (StepError, subprocess.TimeoutExpired) as exc:
        print(f"stopped: {exc}", file=sys.stderr)
        return 1
    finally:
        if options.keep:
            print(f"kept: {desk.name}")
        else:
            desk.remove()
    options.json.write_text(json.dumps(summary(steps.rows), indent=2, ensure_ascii=False) + "\n")
    return 0


def try_it() -> dict[str, str]:
    """The command lines of the section, by their make target."""
    section = (REPOSITORY / "README.md").read_text(encoding="utf-8").partition("## Try it\n")[2].partition("\n## ")[0]
    lines = [line.partition("  #")[0].strip() for line in re.findall(r"(?m)^ {4}(\S.*)$", section)]
    found = {"demo": next((line for line in lines if line.startswith("make demo")), "")}
    for target in ("status", "doctor"):
        match = re.search(rf"`(make {target}[^`]*)`", section)
        found[target] = match[1] if match else ""
    missing = [name for name, line in found.items() if not line]
    missing += [name for name in NEEDED if not re.search(rf"\b{name}\b", section.partition("\n    ")[0])]
    if missing:
        raise StepError(f"README.md, Try it, does not name {', '.join(missing)}")
    return found


def follow(lines: dict[str, str], desk: Desk, steps: Steps) -> None:
    """All of it, in the order of the README."""
    desk.prepare()
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "repository.bundle"
        git = ["git", "-C", str(REPOSITORY), "bundle", "create", "--quiet", str(bundle), "HEAD"]
        subprocess.run(git, check=True, stdin=subprocess.DEVNULL)
        bundle.chmod(0o644)
        desk.bring(bundle, "/tmp/repository.bundle")
    started = time.monotonic()
    desk.type(f"git clone --quiet /tmp/repository.bundle {CLONE}")
    steps.add("git clone", time.monotonic() - started)
    told, demo = until_ready(desk, lines["demo"], steps, "first")
    for row in desk.browse(told):
        steps.add(row["step"], row["s"], found=row["found"])
    for target in ("status", "doctor"):
        started = time.monotonic()
        said = desk.type(f"cd {CLONE} && {lines[target]}")
        told_of = re.search(r'"labels_used": 1\b', said) if target == "status" else re.search(r".*\S(?=\s*\Z)", said)
        if told_of is None:
            raise StepError(f"`{lines[target]}` does not know the label:\n{said[-1000:]}")
        steps.add(lines[target], time.monotonic() - started, found=told_of[0].strip())
    disk = desk.type(f"du -sm {CLONE} .cache | cut -f1").split()
    steps.add("disk used by the clone and the packages' cache", 0, found=f"{' + '.join(disk)} MB")
    stop(desk, demo, steps)
    _, demo = until_ready(desk, lines["demo"], steps, "second")
    stop(desk, demo, steps)


def until_ready(desk: Desk, line: str, steps: Steps, which: str) -> tuple[dict[str, str], subprocess.Popen[str]]:
    """Types the line, and reads what it says until it is ready; what it told, and the process that goes on."""
    started = last = time.monotonic()
    received = desk.received_mb()
    demo = desk.start(f"cd {CLONE} && exec {line}")
    said: list[str] = []

    def step(name: str) -> None:
        nonlocal last, received
        now, total = time.monotonic(), desk.received_mb()
        steps.add(f"{which} {line}: {name}", now - last, total - received)
        last, received = now, total

    assert demo.stdout is not None
    for text in demo.stdout:
        said.append(text.rstrip())
        if time.monotonic() > started + START_TIMEOUT_S:
            raise StepError(f"not ready within {START_TIMEOUT_S} s")
        if text.startswith("starting Redis …"):
            step("packages of the service")
        elif re.match(r"installing Label Studio.*: [\d.]+ s", text):
            step("Label Studio installed")
        elif "Ctrl-C" in text:
            step("all started, images embedded, first batch chosen")
            steps.add(f"{which} {line}: until it is ready", time.monotonic() - started)
            return read_told("\n".join(said)), demo
    raise StepError(f"`{line}` ended with {demo.wait()}:\n" + "\n".join(said[-15:]))


def read_told(text: str) -> dict[str, str]:
    """What a newcomer copies from the terminal: two addresses, and whom to log in as."""
    told = dict(re.findall(r"(?m)^  (label here|dashboard) +(\S+)$", text))
    logins = re.findall(r"(?m)^  (?:log in as +| +user )(\S+) +password (\S+)$", text)
    if len(told) != 2 or len(logins) != 2:
        raise StepError(f"the demo does not print two addresses with whom to log in as:\n{text[-1500:]}")
    (email, password), (user, dashboard_password) = logins
    return {**told, "email": email, "password": password, "user": user, "dashboard password": dashboard_password}


def stop(desk: Desk, demo: subprocess.Popen[str], steps: Steps) -> None:
    """Ctrl-C ends all of it."""
    started = time.monotonic()
    desk.press_ctrl_c()
    demo.communicate(timeout=COMMAND_TIMEOUT_S)
    left = desk.type("cat /proc/[0-9]*/comm")
    if re.search(r"gunicorn|label-studio|valkey|redis", left):
        raise StepError(f"Ctrl-C left processes: {left.split()}")
    steps.add("Ctrl-C", time.monotonic() - started)


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Seconds from the clone to the first label, of them those that packages are fetched and installed."""
    seconds = {row["step"]: row["s"] for row in rows}
    submitted = next(n for n, row in enumerate(rows) if row["step"].startswith("choose a label"))
    to_label = [row for row in rows[: submitted + 1] if "until it is ready" not in row["step"]]
    packages = [row for row in to_label if row["step"].endswith(("packages of the service", "Label Studio installed"))]
    return {
        "clone_to_first_label_s": round(sum(row["s"] for row in to_label), 1),
        "of_which_packages_s": round(sum(row["s"] for row in packages), 1),
        "downloaded_mb": round(sum(row["downloaded_mb"] for row in to_label)),
        "second_start_s": next(s for step, s in seconds.items() if re.match("second .*until it is ready", step)),
        "processors": os.cpu_count(),
        "load_average_15_min": round(os.getloadavg()[2], 1),
        "steps": list(rows),
    }


def _works(engine: str) -> bool:
    if shutil.which(engine) is None:
        return False
    return subprocess.run([engine, "info"], capture_output=True, timeout=60, check=False).returncode == 0


if __name__ == "__main__":
    sys.exit(main())
