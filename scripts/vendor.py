"""Fetches the libraries that the pages use from npm, as released, and checks that they are what they were.

`make vendor` runs it, and needs npm; the service and its tests do not, for what it fetches is kept with the source.
Another release: change name and version below, empty the integrity, run it, and put in what it says npm has.

three.js is released as it is written, 2 MB: esbuild makes of it one small file of what the map uses, always the same.
"""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


ESBUILD = "0.28.2"
"""Release of esbuild, which is run from npm's cache; what it makes is checked, whoever made it."""


@dataclass(frozen=True)
class Bundle:
    """One minified module that is made of a package: these names of that module, without what they do not need."""

    module: str
    names: tuple[str, ...]
    file: str
    integrity: str


@dataclass(frozen=True)
class Package:
    """A package on npm: which of its files go where, and npm's sha512 of the whole."""

    name: str
    version: str
    integrity: str
    folder: str
    files: tuple[str, ...]
    bundle: Bundle | None = None


PACKAGES = (
    Package(
        "d3",
        "7.9.0",
        "sha512-e1U46jVP+w7Iut8Jt8ri1YsPOvFpg46k+K8TpCb0P+zjCkjkPnV7WzfDJzMHy1LnA+wj5pLT1wjO901gLXeEhA==",
        "backend/pages/vendor/d3",
        ("dist/d3.min.js", "LICENSE"),
    ),
    Package(
        "@observablehq/plot",
        "0.6.17",
        "sha512-/qaXP/7mc4MUS0s4cPPFASDRjtsWp85/TbfsciqDgU1HwYixbSbbytNuInD8AcTYC3xaxACgVX06agdfQy9W+g==",
        "backend/pages/vendor/plot",
        ("dist/plot.umd.min.js", "LICENSE"),
    ),
    Package(
        "three",
        "0.187.0",
        "sha512-Qiu7R+Cmh8CstZsY1uJOSWnVlfo7ZtNLV7mF8Jltk3LB3AtDu9cRZlcnRKkAk8Y4z6KKw35z7Y7Urd7jWY8etA==",
        "backend/pages/vendor/three",
        ("LICENSE",),
        Bundle(
            "build/three.module.js",
            (
                "BufferAttribute",
                "BufferGeometry",
                "CanvasTexture",
                "ColorManagement",
                "LinearSRGBColorSpace",
                "OrthographicCamera",
                "Points",
                "PointsMaterial",
                "Scene",
                "WebGLRenderer",
            ),
            "three.min.js",
            "sha512-8XZhgmW/2EI8TglpEy3idh5aGO4nRmEyOGWHWTCk74oLqC4xi+Job8mgrq1I/WZ2XCRAUDhq7sUR9ZN/ykce/g==",
        ),
    ),
    # For tests alone.
    Package(
        "axe-core",
        "4.14.1",
        "sha512-FHfa+lmNjQZfJz1q8wKqIDwC6DExcHt/pkjNQb09a3NPjCKg2rhu5qb2S4r76ASyFNNtuFooJpZe37OgudVGtQ==",
        "tests/browser/vendor/axe-core",
        ("axe.min.js", "LICENSE", "LICENSE-3RD-PARTY.txt"),
    ),
)


def integrity_of(content: bytes) -> str:
    """Its sha512 as npm writes it."""
    return "sha512-" + base64.b64encode(hashlib.sha512(content).digest()).decode()


def fetch(package: Package, folder: Path) -> Path:
    """The packed package, once its sha512 is right; ends the program with a sentence if it is not."""
    name = f"{package.name}@{package.version}"
    done = subprocess.run(["npm", "pack", "--json", name], cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"error: npm pack {name} failed: {done.stderr.strip()[-400:]}")
    packed = folder / json.loads(done.stdout)[0]["filename"]
    found = integrity_of(packed.read_bytes())
    if found != package.integrity:
        sys.exit(f"error: npm has {name} with {found}, expected {package.integrity or 'none'}; nothing was changed")
    return packed


def unpack(package: Package, packed: Path) -> None:
    """Writes the files that are used."""
    target = ROOT / package.folder
    target.mkdir(parents=True, exist_ok=True)
    with tarfile.open(packed) as archive:
        for name in package.files:
            member = archive.extractfile(f"package/{name}")
            if member is None:
                sys.exit(f"error: {package.name} has no file {name}; look into the package and change {__file__}")
            target.joinpath(Path(name).name).write_bytes(member.read())


def build(package: Package, bundle: Bundle, packed: Path, folder: Path) -> bytes:
    """The bundle; ends the program with a sentence if it is another than it was."""
    with tarfile.open(packed) as archive:
        archive.extractall(folder, filter="data")
    npm = ["npm", "exec", "--yes", "--ignore-scripts", f"--package=esbuild@{ESBUILD}", "--", "esbuild"]
    options = ["--bundle", "--minify", "--format=esm", "--target=es2022", "--legal-comments=inline"]
    entry = f'export {{ {", ".join(bundle.names)} }} from "./{bundle.module}";'.encode()
    done = subprocess.run([*npm, *options], cwd=folder / "package", input=entry, capture_output=True, check=False)
    if done.returncode:
        sys.exit(f"error: esbuild {ESBUILD} could not bundle {package.name}: {done.stderr.decode().strip()[-400:]}")
    found = integrity_of(done.stdout)
    if found != bundle.integrity:
        sys.exit(
            f"error: esbuild {ESBUILD} makes of {package.name} {package.version} {len(done.stdout):,} bytes "
            f"with {found}, expected {bundle.integrity or 'none'}; nothing was changed"
        )
    return done.stdout


def main() -> None:
    """Fetches all of them and makes what is made, then writes."""
    with tempfile.TemporaryDirectory() as folder:
        fetched = [(package, fetch(package, Path(folder))) for package in PACKAGES]
        made = {
            ROOT / package.folder / package.bundle.file: build(package, package.bundle, packed, Path(folder, str(n)))
            for n, (package, packed) in enumerate(fetched)
            if package.bundle
        }
        for package, packed in fetched:
            unpack(package, packed)
            print(f"{package.name} {package.version} → {package.folder}")
        for path, content in made.items():
            path.write_bytes(content)


if __name__ == "__main__":
    main()
