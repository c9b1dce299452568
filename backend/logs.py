"""How a process of this package writes its log."""

from __future__ import annotations

import logging
import time


def configure_logging(level: str) -> None:
    """One line per event on standard error, times in UTC; libraries only speak from WARNING on."""
    formatter = logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s", "%Y-%m-%dT%H:%M:%SZ")
    formatter.converter = time.gmtime
    handler = logging.StreamHandler()
    handler.setFormatter(formatter)
    logging.basicConfig(level="WARNING", handlers=[handler], force=True)
    logging.getLogger("backend").setLevel(level)
