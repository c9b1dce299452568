"""The demo's own small parts; the demo as a whole is started in tests/integration."""

from __future__ import annotations

import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fakes import FakeLabelStudio

from backend import demo
from backend.config import Settings
from backend.demo import labeling_config, settings_file, still_there


def test_the_settings_file_is_read_back_as_it_was(tmp_path: Path) -> None:
    """Spaces, quotes, backslashes, a dollar and a hash in a value; variables that are no settings stay out."""
    folder = tmp_path / "it's a \\ folder # $HOME"
    given = {"DATA_DIR": str(folder), "BACKEND_PASSWORD": "a'b\\'c", "SEED_SIZE": "7", "HOME": "/x", "WINDOW_SIZE": ""}
    path = tmp_path / "settings.env"
    path.write_text(settings_file(given))
    assert "HOME=" not in path.read_text().replace("$HOME", "")
    assert Settings.from_environment(path) == Settings.from_mapping(given)


def test_a_digit_is_chosen_by_its_own_key() -> None:
    """Label Studio would give 0 the key 1, 1 the key 2, and so on; other labels keep what Label Studio gives them."""
    found = [(choice.get("value"), choice.get("hotkey")) for choice in choices_of(("0", "1", "7"))]
    assert found == [("0", "0"), ("1", "1"), ("7", "7")]
    assert [choice.get("hotkey") for choice in choices_of(("1", "2", "none"))] == [None, None, None]
    assert [choice.get("value") for choice in choices_of(("<&>", 'a "b"'))] == ["<&>", 'a "b"']


def choices_of(labels: tuple[str, ...]) -> list[ElementTree.Element]:
    return ElementTree.fromstring(labeling_config(labels)).findall("Choices/Choice")


def test_a_project_deleted_since_the_last_start_is_made_anew() -> None:
    """The demo's note of it outlives the project; Label Studio is asked."""
    label_studio = FakeLabelStudio()
    label_studio.add_project(1)
    assert still_there(label_studio, 1) == 1  # type: ignore[arg-type]
    label_studio.remove_project(1)
    assert still_there(label_studio, 1) is None  # type: ignore[arg-type]
    assert still_there(label_studio, None) is None  # type: ignore[arg-type]


def test_two_that_want_label_studio_at_one_place_make_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second waits for the first instead of clearing away what is being made."""
    home = tmp_path / "label-studio"
    made: list[Path] = []

    def make(at: Path, log: Path, advance: Callable[[int, int], None]) -> None:
        made.append(at)
        time.sleep(0.3)
        (at / "bin").mkdir(parents=True)
        (at / "bin" / "label-studio").touch()
        (at / "installed.txt").write_text(demo._LABEL_STUDIO.read_text())

    monkeypatch.setattr(demo, "_install_label_studio", make)
    with ThreadPoolExecutor(4) as threads:
        for done in [threads.submit(demo.install_label_studio, home, tmp_path / "log") for _ in range(4)]:
            done.result()
    assert made == [home]
    assert demo.is_label_studio_installed(home)


def test_how_far_the_installation_is_is_told_part_by_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every package of the file once, as the file says it, ten at a time; then the file as a whole, and the note."""
    names = [f"package-{n}==1.{n} ; python_full_version < '4'" for n in range(23)]
    wanted = tmp_path / "wanted.txt"
    wanted.write_text("# compiled\n" + "".join(f"{name}\n    # via\n    #   other\n" for name in names))
    monkeypatch.setattr(demo, "_LABEL_STUDIO", wanted)
    asked: list[Sequence[str]] = []
    monkeypatch.setattr(demo, "_run_uv", lambda arguments, log: asked.append(arguments))
    told: list[tuple[int, int]] = []
    home = tmp_path / "label-studio"
    home.mkdir()
    demo.install_label_studio(home, tmp_path / "log", lambda done, total: told.append((done, total)))
    assert told == [(0, 23), (10, 23), (20, 23), (23, 23)]
    assert [item for arguments in asked for item in arguments if "==" in item] == names
    assert list(asked[-1])[-2:] == ["-r", str(wanted)]
    assert (home / "installed.txt").read_text() == wanted.read_text()


def test_the_demo_shows_how_far_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a terminal in lines: when a step begins and ends, and last how much it was."""
    options = demo.DemoOptions(images=None, labels=(), label_studio_port=1, backend_port=2, run_dir=tmp_path)
    with demo.Demo(options)._progress("importing images") as advance:
        advance(500, 700)
        advance(700, 700)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "importing images: 0"
    assert lines[1].startswith("importing images: 700 of 700")
    assert lines[2].startswith("importing images: 700 in ")
