"""The demo's own small parts; the demo as a whole is started in tests/integration."""

from __future__ import annotations

from pathlib import Path

from fakes import FakeLabelStudio

from backend.config import Settings
from backend.demo import settings_file, still_there


def test_the_settings_file_is_read_back_as_it_was(tmp_path: Path) -> None:
    """Spaces, quotes, backslashes, a dollar and a hash in a value; variables that are no settings stay out."""
    folder = tmp_path / "it's a \\ folder # $HOME"
    given = {"DATA_DIR": str(folder), "BACKEND_PASSWORD": "a'b\\'c", "SEED_SIZE": "7", "HOME": "/x", "WINDOW_SIZE": ""}
    path = tmp_path / "settings.env"
    path.write_text(settings_file(given))
    assert "HOME=" not in path.read_text().replace("$HOME", "")
    assert Settings.from_environment(path) == Settings.from_mapping(given)


def test_a_project_deleted_since_the_last_start_is_made_anew() -> None:
    """The demo's note of it outlives the project; Label Studio is asked."""
    label_studio = FakeLabelStudio()
    label_studio.add_project(1)
    assert still_there(label_studio, 1) == 1  # type: ignore[arg-type]
    label_studio.remove_project(1)
    assert still_there(label_studio, 1) is None  # type: ignore[arg-type]
    assert still_there(label_studio, None) is None  # type: ignore[arg-type]
