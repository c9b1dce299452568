"""A labeler in Chromium: logs in, labels with hotkeys, and sees the most informative image next."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from live import REPOSITORY, LabelingProject, Stack, colour_of
from playwright.sync_api import Browser, Page, Response, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SCREENSHOTS = REPOSITORY / ".test" / "screenshots"

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the PATH; install Debian's package chromium")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Headless Chromium."""
    switches = (
        "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
        "--disable-component-update --disable-sync"
    )
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=switches.split())
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Browser, stack: Stack) -> Iterator[Page]:
    """A page logged in as the demo's user."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    page = context.new_page()
    log_in(page, stack)
    yield page
    context.close()


def log_in(page: Page, stack: Stack) -> None:
    """As the demo's user, to Label Studio."""
    page.goto(f"{stack.facts['label_studio_url']}/user/login")
    page.fill("input[name=email]", stack.facts["email"])
    page.fill("input[name=password]", stack.facts["password"])
    page.click("button[type=submit]")
    page.wait_for_url(lambda url: "/user/login" not in url, wait_until="commit")


class LabelStream:
    """The label stream of a project, and which task it shows."""

    def __init__(self, page: Page, project: LabelingProject, hotkeys: Mapping[str, str] | None = None) -> None:
        self.page = page
        self.hotkeys = hotkeys or HOTKEYS
        self.served: list[int] = []
        self.submitted_at = 0.0
        self._next = f"/api/projects/{project.id}/next"
        page.on("response", self._remember)
        page.goto(f"{project.stack.facts['label_studio_url']}/projects/{project.id}/data")
        page.click("text=Label All Tasks")
        self.await_task(1)

    def _remember(self, response: Response) -> None:
        if self._is_next(response) and response.ok:
            self.served.append(int(json.loads(response.text())["id"]))

    def _is_next(self, response: Response) -> bool:
        return self._next in response.url or ("/api/dm/actions" in response.url and "next_task" in response.url)

    def await_task(self, n: int) -> int:
        """Waits until the n-th task is there and its image and choices are shown; its id."""
        deadline = time.monotonic() + 30
        while len(self.served) < n:
            assert time.monotonic() < deadline, f"task {n} was not served; served: {self.served}"
            self.page.wait_for_timeout(50)
        self.page.wait_for_selector("img[alt=image], .lsf-image img, canvas, img[src^=data]", timeout=20_000)
        self.page.wait_for_selector(f"text={next(iter(self.hotkeys))}", timeout=20_000)
        self.page.wait_for_timeout(300)
        return self.served[n - 1]

    def label(self, label: str) -> None:
        """Presses the hotkey of a choice until the editor took it, then that of Submit, at `submitted_at` (time())."""
        choice = self.page.locator(f'label:has-text("{label}") input').first
        for _ in range(20):
            self.page.keyboard.press(self.hotkeys[label])
            self.page.wait_for_timeout(250)
            if choice.is_checked():
                break
        assert choice.is_checked(), f"the hotkey {self.hotkeys[label]} does not choose {label}"
        self.submitted_at = time.time()
        self.page.keyboard.press("Control+Enter")


HOTKEYS = {"red": "1", "green": "2", "blue": "3"}


def test_labeling_with_hotkeys_follows_the_queue(page: Page, project: LabelingProject) -> None:
    """Six labels through the UI: each image shown is the one with the lowest queue score of its moment."""
    stream = LabelStream(page, project)
    expected = project.queue()[0][1]
    for n in range(1, 7):
        task_id = stream.await_task(n)
        assert task_id == expected, f"image {n}: shown {task_id}, lowest score {expected}"
        stream.label(colour_of(project, task_id))
        deadline = time.monotonic() + 20
        while len(stream.served) <= n and time.monotonic() < deadline:
            page.wait_for_timeout(50)
        status = project.wait(lambda status, n=n: status["labels_used"] == n)
        # Label Studio hands out the next task with the answer to Submit and locks it to the labeler. If the new version
        # was not yet published then, the task comes from the version before: lowest of its queue.
        shown = stream.served[n] if len(stream.served) > n else None
        candidates = {project.queue()[0][1], *_lowest_before(project, status)}
        assert shown in candidates, f"after {n} labels: shown {shown}, expected one of {candidates}"
        expected = shown
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=str(SCREENSHOTS / "label-stream.png"))
    assert project.status()["kind"] == "model"


def test_score_column_of_the_data_manager_is_filled(page: Page, project: LabelingProject) -> None:
    """The Data Manager shows a prediction score for the tasks of the window."""
    page.goto(f"{project.stack.facts['label_studio_url']}/projects/{project.id}/data")
    page.wait_for_selector("text=Label All Tasks", timeout=20_000)
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.wait_for_timeout(1000)
    page.screenshot(path=str(SCREENSHOTS / "data-manager.png"))
    answer: Any = project.stack.call(
        "GET", "/api/tasks/", params={"project": project.id, "page_size": 100, "fields": "all"}
    )
    scored = [task["id"] for task in answer["tasks"] if task["predictions_score"] is not None]
    assert set(project.status()["window"]) <= set(scored)


def _lowest_before(project: LabelingProject, status: dict[str, Any]) -> set[int]:
    """The lowest unlabeled task of the version before the published one."""
    versions = sorted(
        {prediction["model_version"] for task in project.tasks() for prediction in task["predictions"]}, reverse=True
    )
    earlier = [version for version in versions if version < status["model_version"]]
    if not earlier:
        return set()
    queue = sorted(
        (prediction["score"], task["id"])
        for task in project.tasks()
        for prediction in task["predictions"]
        if prediction["model_version"] == earlier[0] and not task["total_annotations"]
    )
    return {queue[0][1]} if queue else set()
