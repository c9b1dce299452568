"""The docs: what they link to is there, what they tell to type can be typed, and their examples run as they stand."""

from __future__ import annotations

import re
import shlex
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from PIL import Image

from backend import __version__, cli
from backend.adapters import backbones
from backend.adapters.backbones import Backbone
from backend.config import Settings, describe_settings
from backend.learning import later_rounds
from backend.learning.features import plain_space
from backend.learning.later_rounds import RoundState, next_batch
from backend.loop.simulate import embed_folder, simulate

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
NEW = ("how-it-works", "settings", "troubleshooting", "extending")


def test_the_pages_that_are_promised_are_there() -> None:
    """And the README leads to each page of docs/."""
    names = {page.name for page in PAGES}
    assert {f"{name}.md" for name in NEW} | {"README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"} <= names
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [page.name for page in (ROOT / "docs").glob("*.md") if f"docs/{page.name}" not in readme] == []


def anchors(page: Path) -> set[str]:
    """The names by which headings are linked to, as GitHub makes them."""
    headings = re.findall(r"(?m)^#+ (.+)$", page.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    """To a file of the repository, and a heading in it if one is named; addresses elsewhere at least have a host."""
    text = re.sub(r"(?ms)^```.*?^```|^ {4}.*?$", "", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            assert re.match(r"https?://[^/]+\.[^/]+|http://localhost:\d+", target), target
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), f"{page.name} links to {target}"
        assert found.is_relative_to(ROOT)
        if anchor:
            assert anchor in anchors(found), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_picture_is_there_and_said_in_words(page: Path) -> None:
    """Also those in HTML, which are drawn for light and dark or smaller than they are."""
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r'\b(?:src|srcset)="([^"]+)"', text):
        assert (page.parent / target).is_file(), f"{page.name} shows {target}"
    for words in re.findall(r"!\[([^\]]*)\]", text) + re.findall(r"<img\b[^>]*?(?:alt=\"([^\"]*)\"[^>]*)?>", text):
        assert len(words.split()) > 2, f"{page.name}: a picture's words are {words!r}"


def test_pictures_are_small_and_shown_somewhere() -> None:
    """At most 300 kB each, for a page loads them all."""
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    for picture in (ROOT / "docs" / "images").iterdir():
        assert picture.stat().st_size <= 300_000, picture.name
        assert picture.name in text, f"{picture.name} is shown on no page"


def command_lines(page: Path) -> Iterator[str]:
    """What is to be typed: indented and fenced blocks, and what stands in a line between backquotes."""
    text = re.sub(r"\\\n *", "", page.read_text(encoding="utf-8"))
    for line in re.findall(r"(?m)^ {4,}(\S.*)$", text) + re.findall(r"`([^`\n]+)`", text):
        yield line.split("  #")[0].strip()


NAMES = {command.callback.__name__ for command in cli.app.registered_commands if command.callback}


def backend_commands() -> list[tuple[str, str]]:
    """(page, arguments) of every `python -m backend …` that is a whole command line and no pattern for one."""
    found = []
    for page in PAGES:
        for line in command_lines(page):
            match = re.search(r"(?:python -m backend|\./active-learning) (.*)", line)
            if match and not re.search(r"…|\b(?:NAME|FILE|COMMAND|PROJECT_ID|VERSION)\b", match[1]):
                found.append((page.name, match[1].split("|")[0].split(" > ")[0]))
    return sorted(set(found))


@pytest.mark.parametrize(("page", "arguments"), backend_commands())
def test_every_command_can_be_typed(page: str, arguments: str) -> None:
    """The parser takes it: the command is there, and so are its options."""
    words = shlex.split(arguments)
    if words[-1] in ("--install-completion", "--show-completion", "--help"):
        assert len(words) == 1 or words[0] in {command.name for command in cli.app.registered_commands} | NAMES
        return
    group: Any = typer.main.get_command(cli.app)
    context = group.make_context("backend", words)
    name, command, rest = group.resolve_command(context, [*context._protected_args, *context.args])
    needed = [item for item in command.params if item.required]
    if rest or not needed:  # a name alone is a mention of the command
        command.make_context(name, rest, parent=context)


def test_commands_were_found() -> None:
    """The test above tests something."""
    assert len(backend_commands()) > 20
    assert {"connect", "status", "doctor", "simulate"} <= {line.split()[0] for _, line in backend_commands()}


def test_the_exit_codes_stand_in_the_docs() -> None:
    """As `--help` names them."""
    page = (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8")
    assert all(f"| {code} | {meaning} |" in page for code, meaning in cli.EXIT_CODES.items())
    assert all(f"`{command.name or command.callback.__name__}`" in page for command in cli.app.registered_commands)  # type: ignore[union-attr]


def test_every_make_target_that_is_named_is_there() -> None:
    """In README and docs; those of the Makefile stand at the start of a line."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = {name for line in re.findall(r"(?m)^([a-z][a-z -]*):", makefile) for name in line.split()}
    named = {
        match for page in PAGES for line in command_lines(page) for match in re.findall(r"^make ([a-z][a-z-]*)", line)
    }
    assert {"demo", "test", "connect"} <= named
    assert named <= targets


def test_every_setting_that_is_named_is_there() -> None:
    """A name in capitals before an = in backquotes is a setting, or a variable of another program that is known."""
    settings = {name for name, _, _ in describe_settings()}
    others = {
        "IMAGES", "LABELS", "PROJECT", "LABEL_STUDIO_PORT", "BACKEND_PORT", "PYTHON", "TESTS", "TIMES", "ENGINE",
        "USE_DEFAULT_BANNED_SUBNETS", "USER_ADDITIONAL_BANNED_SUBNETS", "SSRF_PROTECTION_ENABLED", "ML_BLOCK_LOCAL_IP",
        "WORKERS", "WORKER_CPUS", "TORCH_BACKEND", "WEIGHTS", "LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN",
    }  # fmt: skip
    for page in PAGES:
        named = set(re.findall(r"`([A-Z][A-Z_]{3,})(?:=[^`]*)?`", page.read_text(encoding="utf-8")))
        unknown = {name for name in named if "_" in name} - settings - others
        if page.stem in NEW or page.name in ("README.md", "CONTRIBUTING.md"):
            allowed = {"LATER_ROUND_STRATEGIES", "FIRST_BATCH_STRATEGIES"}
            assert unknown <= allowed, f"{page.name}: {unknown}"


@pytest.mark.parametrize("picture", sorted((ROOT / "docs" / "images").glob("*.svg")), ids=lambda path: path.name)
def test_pictures_are_well_formed_and_load_nothing(picture: Path) -> None:
    """An SVG that a browser shows as it is, from a file."""
    text = picture.read_text(encoding="utf-8")
    assert ElementTree.fromstring(text).tag.endswith("svg")
    assert "<script" not in text
    assert not re.search(r'href="https?:', text)


def test_the_picture_of_how_it_works_is_drawn_for_light_and_dark() -> None:
    """And says in words what it shows."""
    text = (ROOT / "docs" / "images" / "how-it-works.svg").read_text(encoding="utf-8")
    assert "prefers-color-scheme: dark" in text
    assert "<title" in text
    assert "<desc" in text


# -- docs/extending.md ------------------------------------------------------------------------------------------------


def examples() -> list[str]:
    """The blocks of Python of the page, in their order."""
    page = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    return re.findall(r"(?ms)^```python\n(.*?)^```", page)


def defined_by(code: str) -> dict[str, Any]:
    """What a block defines when it is run."""
    names: dict[str, Any] = {}
    exec(compile(code, "docs/extending.md", "exec"), names)
    return names


def test_the_examples_are_short() -> None:
    """Under 30 lines each."""
    assert [len(code.splitlines()) < 30 for code in examples()] == [True, True]


def test_the_strategy_of_the_page_works_in_the_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two classes: the most doubtful cat (position 1), the most doubtful dog (3), then the second of each."""
    strategy = defined_by(examples()[0])["classes_in_turn"]
    known = {**later_rounds.LATER_ROUND_STRATEGIES, "classes_in_turn": strategy}
    monkeypatch.setattr(later_rounds, "LATER_ROUND_STRATEGIES", known)
    state = RoundState(
        embeddings=np.eye(6, dtype=np.float32),
        space=plain_space(6),
        labeled=np.array([4, 5]),
        targets=np.array([0, 1]),
        candidates=np.arange(4),
        probabilities=np.array([[0.7, 0.3], [0.55, 0.45], [0.1, 0.9], [0.2, 0.8]]),
    )
    assert next_batch("classes_in_turn", state, budget=4, random_state=0) == [1, 3, 0, 2]
    assert next_batch("classes_in_turn", state, budget=2, random_state=0) == [1, 3]


def test_the_backbone_of_the_page_learns_colours(tmp_path: Path) -> None:
    """Through the service's own embedding and rounds: reds and blues are told apart by four labels."""
    backbone = defined_by(examples()[1])["ColourBackbone"]()
    assert isinstance(backbone, Backbone)
    for number in range(12):
        target = tmp_path / ("red", "blue")[number % 2] / f"{number}.png"
        target.parent.mkdir(exist_ok=True)
        Image.new("RGB", (40, 30), (250 - number, 0, 0) if number % 2 == 0 else (0, 0, 250 - number)).save(target)
    pictures = embed_folder(backbone, tmp_path, lambda done, total: None)
    assert pictures.embeddings.shape == (12, backbone.dim)
    rows = list(
        simulate(
            pictures, strategies=["default"], budgets=[4], n_seeds=1, settings=Settings(seed_size=4), step=1, n_jobs=1
        )
    )
    assert [row.accuracy for row in rows] == [1.0]
    assert "def load_backbone" in Path(backbones.__file__).read_text(encoding="utf-8"), "where the page says to add it"


def test_the_changelog_tells_of_this_release() -> None:
    """In the form of Keep a Changelog."""
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert "## [Unreleased]" in text
    assert f"## [{__version__}]" in text
    assert set(re.findall(r"(?m)^### (.+)$", text)) <= {
        "Added",
        "Changed",
        "Deprecated",
        "Removed",
        "Fixed",
        "Security",
    }


def test_the_licence_is_that_of_the_project_file() -> None:
    """Apache-2.0, as Label Studio's."""
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")[:200]
    assert 'license = "Apache-2.0"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


# -- docs/troubleshooting.md ------------------------------------------------------------------------------------------


def quoted(heading: str) -> list[str]:
    """What stands between backquotes in the first column of the table under a heading of the page."""
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    section = page.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    cells = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    return [text for cell in cells for text in re.findall(r"`([^`]+)`", cell)]


@pytest.mark.parametrize("heading", ["What doctor says", "What the logs say"])
def test_what_is_quoted_is_said(heading: str) -> None:
    """Every check and every line of a log that the page explains stands in the code, word for word."""
    code = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "backend").rglob("*.py"))
    lines = quoted(heading)
    assert len(lines) > 5
    for line in lines:
        parts = [part.strip() for part in re.split(r"…|\d+", line) if len(part.strip()) > 2]
        assert parts
        assert [part for part in parts if part not in code] == [], line
