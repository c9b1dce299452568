"""What an image is labeled with: one class, or a set of them."""

from __future__ import annotations

Label = str | tuple[str, ...]
"""What an image is labeled with: a class, or where it may have several the set of them, sorted; () is none of them."""

NONE_OF_THESE = "none of these"
"""What people read for the empty set of labels."""


def names_of(label: Label) -> tuple[str, ...]:
    """The classes of a label: itself, or those of the set."""
    return (label,) if isinstance(label, str) else label


def text_of(label: Label) -> str:
    """A label as people read it: the class, or the classes of the set with commas."""
    return label if isinstance(label, str) else ", ".join(label) or NONE_OF_THESE
