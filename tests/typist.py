"""`python -m backend …` many times: each in a fork of one interpreter that has imported what commands need.

Importing torch and Label Studio's client takes most of a command's time: minutes, of a test that types thirty of them.
What is forked runs the package as `-m` does, with the arguments, environment, folder and streams of its own.
"""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

REPOSITORY = Path(__file__).resolve().parents[1]


class Typist:
    """The interpreter, from outside."""

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        self._process = process
        self._streams = [folder / "stdout", folder / "stderr"]

    def run(self, arguments: Sequence[str], *, cwd: Path, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
        """As `subprocess.run` of `python -m backend` with these arguments."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        order = {
            "arguments": list(arguments),
            "folder": str(cwd),
            "environment": dict(env),
            "streams": list(map(str, self._streams)),
        }
        print(json.dumps(order), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        assert answer, "the interpreter has ended"
        return subprocess.CompletedProcess(list(arguments), int(answer), *(path.read_text() for path in self._streams))


@contextmanager
def sitting_typist() -> Iterator[Typist]:
    """A `Typist`, until the end."""
    with (
        TemporaryDirectory() as folder,
        subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        ) as process,
    ):
        yield Typist(process, Path(folder))
        assert process.stdin is not None
        process.stdin.close()
        process.wait(20)


def _type_all() -> None:
    """Takes orders, a line each, and answers with exit codes."""
    import backend.cli
    import backend.lightly
    import backend.loop.apply
    import backend.loop.learn  # noqa: F401
    from backend.services import load_modules

    load_modules(before_fork=True)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            os._exit(_typed(json.loads(line)))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def _typed(order: Mapping[str, object]) -> int:
    for number, name in enumerate(["/dev/null", *order["streams"]]):  # type: ignore[misc]
        os.dup2(os.open(name, os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.chdir(str(order["folder"]))
    os.environ.clear()
    os.environ.update(order["environment"])  # type: ignore[call-overload]
    sys.argv = ["backend", *order["arguments"]]  # type: ignore[misc]
    try:
        runpy.run_module("backend", run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as exc:
        code = exc.code if isinstance(exc.code, int) else int(exc.code is not None)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return code


if __name__ == "__main__":
    _type_all()
