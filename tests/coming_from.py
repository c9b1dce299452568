"""docs/coming-from.md as tests read it: its rows, the commands in them, and how they are typed one after the other."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from live import REPOSITORY, RUN_DIR, pids_with
from typist import Typist

from backend.adapters.jobs import Jobs
from backend.config import describe_settings

START_S = 120
"""For web service and worker to start, on a machine that is busy."""

PAGE = REPOSITORY / "docs" / "coming-from.md"

WEATHER = "The weather tutorial of Lightly and Label Studio"
AGENT = "Lightly's active-learning agent in Python"
WEBCAM = "The webcam assignment"
ML_BACKEND = "An ML backend of your own"
SCORES = "Scores written into Label Studio by a script"
SYSTEMS = (WEATHER, AGENT, WEBCAM, ML_BACKEND, SCORES)

WALKS = ("tests/integration/test_coming_from_live.py", "tests/unit/test_coming_from.py")
"""The tests that go through the page's tables."""

NAMED: Mapping[tuple[str, str], tuple[str, ...]] = {
    (WEATHER, "`label-studio start` with"): (
        "tests/integration/test_storage_live.py::test_a_folder_that_label_studio_may_not_serve_is_refused",
    ),
    (WEATHER, "*Label All Tasks* with keys"): (
        "tests/browser/test_labeling.py::test_labeling_with_hotkeys_follows_the_queue",
    ),
    (AGENT, "Predictions in that order"): (
        "tests/unit/lightly/test_agent.py::test_scores_that_do_not_fit_are_refused",
        "tests/unit/lightly/test_scorers.py::test_what_are_no_probabilities_is_refused",
    ),
    (AGENT, "Again until the model"): ("tests/unit/loop/test_outlook.py::test_a_reached_target_says_stop",),
    (AGENT, "Scorers for detection"): ("tests/unit/lightly/test_scorers.py::test_detection_scores_by_hand",),
    (WEBCAM, "Embedding view"): (
        "tests/browser/test_dashboard_live.py::test_what_is_labeled_in_label_studio_shows_without_reload",
    ),
    (WEBCAM, "Run Label Studio on the folder"): (
        "tests/integration/test_storage_live.py::test_selected_images_become_tasks_and_answers_files",
    ),
    (WEBCAM, "Labeling interface"): (
        "tests/browser/test_several_labels.py::test_sets_are_labeled_with_a_key_for_each_label",
    ),
    (ML_BACKEND, "`docker run` of Label Studio"): (
        "tests/unit/test_compose_file.py::test_label_studio_is_the_release_that_the_demo_runs",
        "tests/integration/test_demo.py::test_demo_json_holds_all_that_is_promised",
    ),
    (ML_BACKEND, "A class from `LabelStudioMLBase`"): (
        "tests/unit/test_label_studio_ml_servers.py::test_the_document_s_model_file_is_the_one_tested",
        "tests/unit/test_label_studio_ml_servers.py::test_a_webhook_of_1_0_9_becomes_a_version",
    ),
    (SCORES, "Two variables in every terminal"): (
        "tests/integration/test_demo.py::test_demo_json_holds_all_that_is_promised",
        "tests/unit/test_compose_file.py::test_label_studio_is_the_release_that_the_demo_runs",
    ),
    (SCORES, "*Label All Tasks* with shortcuts"): (
        "tests/browser/test_labeling.py::test_labeling_with_hotkeys_follows_the_queue",
    ),
}
"""(heading, how a row's left cell begins) → tests that do what no command does, in a browser above all."""

_SETTINGS = {name for name, _, _ in describe_settings()}


@dataclass(frozen=True)
class Row:
    """One step: the other system's, and ours."""

    system: str
    theirs: str
    here: str

    @property
    def commands(self) -> list[str]:
        """What is to be typed, in its order."""
        return re.findall(r"`(python -m backend [^`]+)`", self.here)

    @property
    def settings(self) -> dict[str, str]:
        """Settings that are named with a value."""
        found = re.findall(r"`([A-Z][A-Z_]+)=([^`]*)`", self.here)
        return {name: value for name, value in found if name in _SETTINGS}


def rows(text: str | None = None) -> list[Row]:
    """Every row of every table of steps, in the order of the page."""
    text = PAGE.read_text(encoding="utf-8") if text is None else text
    found = []
    for section in re.split(r"(?m)^## ", text)[1:]:
        heading, _, body = section.partition("\n")
        if "| theirs | here |" in body:
            lines = body.partition("| theirs | here |\n|---|---|\n")[2].partition("\n\n")[0].splitlines()
            for line in lines:
                theirs, here = line.removeprefix("| ").removesuffix(" |").split(" | ")
                found.append(Row(heading, theirs, here))
    return found


def python_blocks() -> list[str]:
    """The page's programs, in their order."""
    return re.findall(r"(?ms)^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"))


def settings_of(system: str) -> dict[str, str]:
    """The settings that a table names, which hold for all its commands."""
    return {name: value for row in rows() if row.system == system for name, value in row.settings.items()}


# -- which test does which row ----------------------------------------------------------------------------------------


def walked(sources: Iterable[str]) -> list[tuple[str, str]]:
    """(heading, beginning of the row) of every `step` that a test takes, by the tests' sources."""
    found = []
    for source in sources:
        for function in ast.walk(ast.parse(source)):
            if not isinstance(function, ast.FunctionDef):
                continue
            calls = [node for node in ast.walk(function) if isinstance(node, ast.Call)]
            systems = [
                argument.id
                for call in calls
                for argument in call.args[:1]
                if isinstance(argument, ast.Name)
                and argument.id in ("WEATHER", "AGENT", "WEBCAM", "ML_BACKEND", "SCORES")
            ]
            steps = [
                call.args[0].value
                for call in calls
                if isinstance(call.func, ast.Attribute)
                and call.func.attr == "step"
                and call.args
                and isinstance(call.args[0], ast.Constant)
            ]
            found += [(globals()[systems[0]], str(step)) for step in steps if systems]
    return found


def unaccounted(all_rows: Sequence[Row], steps: Iterable[tuple[str, str]]) -> list[Row]:
    """The rows that no test does: neither typed in a walk, nor named with tests elsewhere.

    A row with a command is only done by typing it.
    """
    typed, named = list(steps), list(NAMED)

    def is_among(row: Row, known: Iterable[tuple[str, str]]) -> bool:
        return any(row.system == system and row.theirs.startswith(begins) for system, begins in known)

    return [row for row in all_rows if not (is_among(row, typed) or (not row.commands and is_among(row, named)))]


def is_a_test(test_id: str) -> bool:
    """Whether a file has a test function of that name."""
    file, _, name = test_id.partition("::")
    path = REPOSITORY / file
    return path.is_file() and any(
        isinstance(node, ast.FunctionDef) and node.name == name for node in ast.parse(path.read_text("utf-8")).body
    )


# -- going through a table --------------------------------------------------------------------------------------------


@dataclass
class Walk:
    """A table of the page, gone through from its first row to its last, in a folder, as its reader would.

    `places` says what stands in a test for what the page names: whole words and the beginnings of addresses. Without
    Label Studio rows may be left out that need it. Where the demo `runs_already` with these settings, its processes are
    those of `web` and `worker`.
    """

    system: str
    folder: Path
    environment: Mapping[str, str]
    places: Mapping[str, str] = field(default_factory=dict)
    has_label_studio: bool = True
    runs_already: bool = False
    typist: Typist | None = None
    _left: list[Row] = field(init=False)
    _staying: list[subprocess.Popen[bytes]] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self._left = [row for row in rows() if row.system == self.system]
        assert self._left, f"the page has no table of {self.system}"
        self.environment = {**self.environment, "PYTHONPATH": str(REPOSITORY), **settings_of(self.system)}

    def step(self, begins: str) -> list[str]:
        """Types what the next row that begins so has, word by word; the standard output of each of its commands.

        Of `web` and `worker`, which stay, there is none; they end with the test. Rows before it must be done elsewhere.
        """
        while self._left and not self._left[0].theirs.startswith(begins):
            self._leave(f"{begins!r} is to come")
        assert self._left, f"no row begins with {begins!r} from here on"
        return [self._type(command) for command in self._left.pop(0).commands]

    def end(self) -> None:
        """Nothing is left to do."""
        while self._left:
            self._leave("the test has ended")

    def stop(self) -> None:
        """Ends `web` and `worker`."""
        for process in reversed(self._staying):
            process.terminate()
        for process in self._staying:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`python -m backend …` with the project's own interpreter."""
        if self.typist:
            return self.typist.run(arguments, cwd=self.folder, env={**os.environ, **self.environment})
        return subprocess.run(
            [sys.executable, "-m", "backend", *arguments],
            env={**os.environ, **self.environment},
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )

    def _leave(self, why: str) -> None:
        row = self._left.pop(0)
        if self.has_label_studio:
            assert unaccounted([row], []) == [], f"{row.theirs!r} was not done, and {why}"

    def _type(self, command: str) -> str:
        words = [self._word(word) for word in shlex.split(command)[3:]]
        if words[0] in ("web", "worker") and self.runs_already:
            assert pids_with("-m", "backend", *words, run_dir=str(RUN_DIR)), f"the demo does not run {command}"
            return ""
        if words[0] in ("web", "worker"):
            with (self.folder / f"{words[0]}.log").open("w") as log:
                process = subprocess.Popen(
                    [sys.executable, "-m", "backend", *words],
                    env={**os.environ, **self.environment},
                    cwd=self.folder,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                )
            self._staying.append(process)
            if words[0] == "worker":
                self._await_service()
            return ""
        done = self.run(*words)
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        return done.stdout

    def _await_service(self) -> None:
        """Until `web` answers and the worker is there: the next command is typed by somebody who sees that."""
        jobs = Jobs(self.environment["REDIS_URL"])
        deadline = time.monotonic() + START_S
        try:
            while not (jobs.n_workers() and self._answers()):
                ended = [process.args for process in self._staying if process.poll() is not None]
                assert not ended, f"{ended}: {[log.read_text() for log in self.folder.glob('*.log')]}"
                assert time.monotonic() < deadline, "web and worker did not start"
                time.sleep(0.1)
        finally:
            jobs.redis.close()

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self.environment['BACKEND_URL']}/health").is_success
        except httpx.TransportError:
            return False

    def _word(self, word: str) -> str:
        for place, stands_for in self.places.items():
            if word == place or ("://" in place and word.startswith(place)):
                return stands_for + word.removeprefix(place)
        return word


@contextmanager
def walking(
    system: str,
    folder: Path,
    environment: Mapping[str, str],
    places: Mapping[str, str] | None = None,
    *,
    has_label_studio: bool = True,
    runs_already: bool = False,
    typist: Typist | None = None,
) -> Iterator[Walk]:
    """A `Walk` that must have come to the end of its table; then what it has started is stopped."""
    walk = Walk(system, folder, environment, places or {}, has_label_studio, runs_already, typist)
    try:
        yield walk
        walk.end()
    finally:
        walk.stop()
