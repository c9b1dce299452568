"""Headless Chromium for tests that look at pages, and its switches."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, expect, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

SWITCHES = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --use-gl=angle --use-angle=swiftshader --enable-unsafe-swiftshader"
)

PATIENCE_S = 60
"""For anything that is to show before a live loop, where a busy machine is not what is tested."""

PLAYWRIGHTS_PATIENCE_MS = 5000


@contextmanager
def patient_chromium() -> Iterator[Browser]:
    """Chromium that draws WebGL by its processor; meanwhile `expect` waits `PATIENCE_S`."""
    expect.set_options(timeout=1000 * PATIENCE_S)
    try:
        with sync_playwright() as playwright:
            chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=SWITCHES.split())
            yield chromium
            chromium.close()
    finally:
        expect.set_options(timeout=PLAYWRIGHTS_PATIENCE_MS)
