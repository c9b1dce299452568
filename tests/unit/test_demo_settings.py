"""The demo's own small parts; the demo as a whole is started in tests/integration."""

from __future__ import annotations

from pathlib import Path

from backend.config import Settings
from backend.demo import settings_file


def test_the_settings_file_is_read_back_as_it_was(tmp_path: Path) -> None:
    """Spaces, quotes, backslashes, a dollar and a hash in a value; variables that are no settings stay out."""
    folder = tmp_path / "it's a \\ folder # $HOME"
    given = {"DATA_DIR": str(folder), "BACKEND_PASSWORD": "a'b\\'c", "SEED_SIZE": "7", "HOME": "/x", "WINDOW_SIZE": ""}
    path = tmp_path / "settings.env"
    path.write_text(settings_file(given))
    assert "HOME=" not in path.read_text().replace("$HOME", "")
    assert Settings.from_environment(path) == Settings.from_mapping(given)
