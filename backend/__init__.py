"""Active-learning backend for Label Studio."""

__version__ = "0.1.0"
"""The release, as in pyproject.toml; every model version names the one that made it."""
