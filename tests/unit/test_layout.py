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
    """import-linter keeps the contracts of pyproject.toml: doors, wiring, use cases, adapters, learning, ground."""
    program = Path(sys.executable).with_name("lint-imports")
    if not program.exists():
        pytest.skip("import-linter is not installed here; `make dev` installs it")
    done = subprocess.run(
        [str(program), "--no-cache"], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_module_has_a_floor() -> None:
    """A new module below backend/ is put into the layers of pyproject.toml, or the contract would not see it."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = settings["tool"]["importlinter"]["contracts"]
    layers = next(contract for contract in contracts if contract["type"] == "layers")["layers"]
    floors = {name.strip() for layer in layers for name in layer.replace(":", "|").split("|")}
    tops = {".".join(module.split(".")[:2]) for module in MODULES} - {"backend"} | {"backend.__main__"}
    assert tops - floors == set()


def test_only_the_config_module_reads_the_environment() -> None:
    """`os.environ` and `os.getenv` stand in backend/config.py and nowhere else."""
    readers = []
    for module in MODULES:
        tree = tree_of(module)
        names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        names |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
        if names & {"environ", "environb", "getenv", "getenvb"}:
            readers.append(module)
    assert readers == ["backend.config"]


def test_learning_knows_no_project_file_or_network() -> None:
    """Arrays in, arrays out: only numerical packages, and of ours only errors and other learning modules."""
    allowed = {"__future__", "collections", "dataclasses", "functools", "math", "types", "typing"}
    allowed |= {"numpy", "scipy", "threadpoolctl", "backend"}
    for module in MODULES:
        if module.startswith("backend.learning"):
            names = imported(tree_of(module))
            assert {name.split(".")[0] for name in names} <= allowed, module
            ours = {name for name in names if name.startswith("backend.")}
            assert all(name.startswith(("backend.learning", "backend.errors")) for name in ours), module


def test_nothing_imports_the_program_that_runs_lightly_s_engine() -> None:
    """The engine must never run in this process; its program is started by path."""
    assert [module for module in MODULES if "backend.adapters.lightly_child" in imported(tree_of(module))] == []
    users = [
        module for module in MODULES if any(name.startswith("lightly_mundig") for name in imported(tree_of(module)))
    ]
    assert users == ["backend.adapters.lightly_child"]


def test_no_pickle_is_read() -> None:
    """Model files are safetensors and queue data is JSON; only torch's own weights-only reader may name pickle's error."""
    users = [module for module in MODULES if imported(tree_of(module)) & {"pickle", "dill", "joblib", "shelve"}]
    assert set(users) <= {"backend.adapters.backbones"}
    for node in ast.walk(tree_of("backend.adapters.backbones")):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "pickle":
            assert node.attr == "UnpicklingError"


IMPORT_AND_WATCH = """
import importlib, json, sys
acts = []

def watch(event, arguments):
    if event == "open":
        path, mode, flags = arguments
        if isinstance(mode, str) and set(mode) & set("wax+") or mode is None and isinstance(flags, int) and flags & 3:
            acts.append(f"writes {path}")
    elif event in ("os.mkdir", "os.rename", "os.remove", "socket.connect", "socket.getaddrinfo", "subprocess.Popen"):
        acts.append(f"{event} {arguments[0]}")

sys.addaudithook(watch)
importlib.import_module(sys.argv[1])
heavy = [name for name in ("torch", "lightly_mundig", "label_studio_sdk", "lance") if name in sys.modules]
print(json.dumps([acts, heavy]))
"""


@pytest.mark.parametrize("module", MODULES)
def test_importing_a_module_does_no_io(module: str, tmp_path: Path) -> None:
    """In a new interpreter with an empty environment and no HOME: nothing is written, started or connected to."""
    environment = {
        "PATH": os.defpath,
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": str(ROOT),
        "PYTHONWARNINGS": "ignore",
    }
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_AND_WATCH, module],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    acts, _ = json.loads(done.stdout.splitlines()[-1])
    assert acts == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("module", ["backend.config", "backend.choices", "backend.cli", "backend.services"])
def test_light_modules_load_nothing_heavy(module: str, tmp_path: Path) -> None:
    """`--help` and a wrong setting answer at once: torch, Lance and the SDK are loaded when they are first used."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", IMPORT_AND_WATCH, module],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    _, heavy = json.loads(done.stdout.splitlines()[-1])
    assert heavy == []
