"""The floors of the layout hold, and importing a module does nothing but define names."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from backend import __version__

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "backend"
# lightly_child is a program for another process: nothing imports it.
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in PACKAGE.rglob("*.py")
    if path.name != "__main__.py"
)


def tree_of(module: str) -> ast.Module:
    path = ROOT.joinpath(*module.split("."))
    source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(source.read_text(encoding="utf-8"))


def imported(tree: ast.Module) -> set[str]:
    """Full names of everything a module imports, wherever in it."""
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_a_module_imports_only_from_floors_below_its_own() -> None:
    """import-linter keeps the contracts of pyproject.toml: doors, wiring, use cases, adapters, learning, ground.

    The contract is exhaustive: a new module without a floor breaks it.
    """
    program = Path(sys.executable).with_name("lint-imports")
    if not program.exists():
        pytest.skip("import-linter is not installed here; `make dev` installs it")
    done = subprocess.run(
        [str(program), "--no-cache"], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_release_is_that_of_the_project_file() -> None:
    """Versions name the release that made them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert __version__ == project["version"]


def test_only_the_config_module_reads_the_environment() -> None:
    """`os.environ` and `os.getenv` stand in backend/config.py and nowhere else; `request.environ` is another thing."""
    readers = []
    for module in MODULES:
        tree = tree_of(module)
        attributes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
        names = {
            node.attr for node in attributes if not (isinstance(node.value, ast.Name) and node.value.id == "request")
        }
        names |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
        if names & {"environ", "environb", "getenv", "getenvb"}:
            readers.append(module)
    assert readers == ["backend.config"]


def test_learning_knows_no_project_file_or_network() -> None:
    """Arrays in, arrays out: only numerical packages, and of ours only errors, labels and other learning modules."""
    allowed = {"__future__", "collections", "dataclasses", "functools", "math", "types", "typing"}
    allowed |= {
        "concurrent",
        "heapq",
        "io",
        "itertools",
        "threading",
        "warnings",
        "numpy",
        "scipy",
        "sklearn",
        "threadpoolctl",
        "torch",
        "onnx",
        "onnxruntime",
        "openTSNE",
    }
    allowed |= {"backend"}
    for module in MODULES:
        if module.startswith("backend.learning"):
            names = imported(tree_of(module))
            assert {name.split(".")[0] for name in names} <= allowed, module
            ours = {name for name in names if name.startswith("backend.")}
            known = ("backend.learning", "backend.errors", "backend.labels")
            assert all(name.startswith(known) for name in ours), module


def test_nothing_imports_the_program_that_runs_lightly_s_engine() -> None:
    """The engine must never run in this process; its program is started by path."""
    assert [module for module in MODULES if "backend.adapters.lightly_child" in imported(tree_of(module))] == []
    users = [
        module for module in MODULES if any(name.startswith("lightly_mundig") for name in imported(tree_of(module)))
    ]
    assert users == ["backend.adapters.lightly_child"]


def test_no_pickle_is_read() -> None:
    """Model files are safetensors, queue data is JSON; torch reads weights only, so just pickle's error is named."""
    users = [module for module in MODULES if imported(tree_of(module)) & {"pickle", "dill", "joblib", "shelve"}]
    assert set(users) <= {"backend.adapters.backbones"}
    for node in ast.walk(tree_of("backend.adapters.backbones")):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "pickle":
            assert node.attr == "UnpicklingError"


IMPORT_AND_WATCH = """
import importlib, json, sys
module, acts = "", []

def watch(event, arguments):
    if event == "open":
        path, mode, flags = arguments
        if isinstance(mode, str) and set(mode) & set("wax+") or mode is None and isinstance(flags, int) and flags & 3:
            acts.append(f"{module} writes {path}")
    elif event in ("os.mkdir", "os.rename", "os.remove", "socket.connect", "socket.getaddrinfo", "subprocess.Popen"):
        acts.append(f"{module} {event} {arguments[0]}")

sys.addaudithook(watch)
for module in sys.argv[1:]:
    importlib.import_module(module)
heavy = [name for name in ("torch", "lightly_mundig", "label_studio_sdk", "lance") if name in sys.modules]
print(json.dumps([acts, heavy]))
"""

# label-studio-ml imports torch.multiprocessing, and with it ctypes, which asks ldconfig where the C library is.
NOT_OURS = ("/dev/null", "ldconfig")


def import_in_new_interpreter(folder: Path, *modules: str) -> tuple[list[str], list[str]]:
    """What importing did to the world around, and which heavy packages it loaded; empty environment, no HOME."""
    environment = {"PATH": os.defpath, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", IMPORT_AND_WATCH, *modules],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    acts, heavy = json.loads(done.stdout.splitlines()[-1])
    return [act for act in acts if not act.endswith(NOT_OURS)], heavy


def test_importing_does_no_io(tmp_path: Path) -> None:
    """No module writes, starts or connects to anything when it is imported, and none needs a setting or a HOME."""
    acts, _ = import_in_new_interpreter(tmp_path, *MODULES)
    assert acts == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("module", ["backend.cli", "backend.services", "backend.choices", "backend.web"])
def test_light_modules_load_nothing_heavy(module: str, tmp_path: Path) -> None:
    """`--help` and a wrong setting answer at once: torch, Lance and the SDK are loaded when they are first used.

    The web service never loads torch unless it has to embed an image itself: half a gigabyte in each of its processes.
    """
    assert import_in_new_interpreter(tmp_path, module) == ([], [])
