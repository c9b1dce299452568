"""What the modules of commands share: how examples, `--json` and settings look in each."""

from __future__ import annotations

from typing import Annotated

import typer

from backend.config import Settings
from backend.logs import configure_logging

SET_UP = "2. Set it up beside your Label Studio"
LABELING = "3. While people label: how good is it, what looks wrong, which model"

ON_FILES = "5. On files, without Label Studio"

Control = Annotated[
    str | None, typer.Option("--control", help="Name of the Choices that is meant, where there are several.")
]
ImageField = Annotated[
    str | None,
    typer.Option("--image-field", help="Field of the tasks' data with the image, where there are several."),
]
Several = Annotated[
    bool,
    typer.Option(
        "--several",
        help="Images may have several labels, or none, though each has one here; with two on an image it is seen.",
    ),
]
"""What labels in files mean."""

AsJson = Annotated[bool, typer.Option("--json", help="As one JSON object, for programs.")]


def example(*lines: str) -> str:
    """The last lines of a command's help, one for each command line that can be copied."""
    return "\n\n".join(["For example:", *lines])


def settings_of(context: typer.Context, *, quiet: bool = False) -> Settings:
    """The settings of the environment and of --env-file; logging goes by them, `quiet` shows warnings only."""
    settings = Settings.from_environment(context.obj)
    configure_logging("WARNING" if quiet else settings.log_level, settings.log_format, settings.secrets())
    return settings
