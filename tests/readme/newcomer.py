"""What a newcomer does in the browser once `make demo` is ready; one line of JSON per step: `step`, `s`, `found`.

Run by tests/readme/run.py where Chromium and Playwright are; needs nothing else of this repository.

    python newcomer.py '{"label here": "http://…/projects/1/data", "email": …, "password": …, "dashboard": …, …}'
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any

from playwright.sync_api import Page, Response, sync_playwright

SWITCHES = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --use-gl=angle --use-angle=swiftshader --enable-unsafe-swiftshader"
)
WAIT_MS = 120_000
BLOBS = "[...document.images].filter((i) => i.src.startsWith('blob:') && i.naturalWidth > 0).map((i) => i.src)"


class Newcomer:
    """A person before two pages: Label Studio and the dashboard."""

    def __init__(self, label_studio: Page, dashboard: Page, told: dict[str, str]) -> None:
        self._page = label_studio
        self._dashboard = dashboard
        self._told = told
        self._served: list[dict[str, Any]] = []
        self._seen: set[str] = set()
        label_studio.on("response", self._remember)

    def everything(self) -> None:
        """From the address that the terminal printed to a dashboard that counts the label."""
        for step, work in (
            ("log in", self.log_in),
            ("press Label All Tasks, see the first image", self.first_image),
            ("choose a label by its key and submit it", self.label),
            ("see the next image", self.next_image),
            ("look at the dashboard: one label", self.look),
        ):
            _timed(step, work)

    def log_in(self) -> str:
        page = self._page
        page.goto(self._told["label here"])
        page.fill("input[name=email]", self._told["email"])
        page.fill("input[name=password]", self._told["password"])
        page.click("button[type=submit]")
        page.wait_for_selector("text=Label All Tasks", timeout=WAIT_MS)
        return page.title()

    def first_image(self) -> str:
        self._page.click("text=Label All Tasks")
        return self._shown(1)

    def label(self) -> str:
        """The right answer: the name of the folder that the image lies in."""
        name = PurePosixPath(self._served[0]["data"]["image"].partition("?d=")[2]).parent.name
        choice = self._page.locator("label").filter(has_text=re.compile(rf"^{re.escape(name)}\[(\w)\]$")).first
        hotkey = (choice.text_content(timeout=WAIT_MS) or "")[-2]
        for _ in range(20):  # the editor may not listen yet
            self._page.keyboard.press(hotkey)
            self._page.wait_for_timeout(250)
            if choice.locator("input").is_checked():
                break
        else:
            raise AssertionError(f"the key {hotkey} does not choose {name}")
        self._page.keyboard.press("Control+Enter")
        return f"label {name} by key {hotkey}"

    def next_image(self) -> str:
        found = self._shown(2)
        if self._served[0]["id"] == self._served[1]["id"]:
            raise AssertionError("the same image is shown again")
        return found

    def look(self) -> str:
        self._dashboard.goto(self._told["dashboard"])
        self._dashboard.locator("#figures").get_by_text(re.compile(r"^1$")).first.wait_for(timeout=WAIT_MS)
        return re.sub(r"\s+", " ", self._dashboard.locator("#figures").inner_text())

    def _remember(self, response: Response) -> None:
        if response.ok and (re.search(r"/api/projects/\d+/next|/api/dm/actions.*next_task", response.url)):
            self._served.append(json.loads(response.text()))

    def _shown(self, n: int) -> str:
        deadline = time.monotonic() + WAIT_MS / 1000
        while len(self._served) < n:
            if time.monotonic() > deadline:
                raise AssertionError(f"image {n} was not served")
            self._page.wait_for_timeout(20)
        # Label Studio shows an image as a blob: of an address that is new with each.
        deadline += WAIT_MS / 1000
        while not (new := set(self._page.evaluate(BLOBS)) - self._seen):
            if time.monotonic() > deadline:
                raise AssertionError(f"image {n} is not shown")
            self._page.wait_for_timeout(20)
        self._seen |= new
        return PurePosixPath(self._served[n - 1]["data"]["image"].partition("?d=")[2]).name


def _timed(step: str, work: Callable[[], str]) -> None:
    started = time.monotonic()
    found = work()
    print(json.dumps({"step": step, "s": round(time.monotonic() - started, 1), "found": found}), flush=True)


def main() -> None:
    """One visit; an error says which step did not work."""
    told = json.loads(sys.argv[1])
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=SWITCHES.split())
        credentials = {"username": told["user"], "password": told["dashboard password"]}
        pages = browser.new_context().new_page(), browser.new_context(http_credentials=credentials).new_page()
        for page in pages:
            page.set_default_timeout(WAIT_MS)
        Newcomer(*pages, told).everything()
        browser.close()


if __name__ == "__main__":
    main()
