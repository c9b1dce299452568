"""The dashboard before a live loop: people label in Label Studio, and every part of the open page follows by itself.

The images are the demo's handwritten digits, uploaded to the running Label Studio; nothing is made up.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chromium import CHROMIUM, PATIENCE_S, patient_chromium
from live import LabelingProject, Stack, config_of, paused
from playwright.sync_api import Browser, BrowserContext, Locator, Page, expect
from test_dashboard import AXE, bring_up_map
from test_labeling import SCREENSHOTS, LabelStream, log_in

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the PATH; install Debian's package chromium")

DIGITS = {"0": "zero", "1": "one", "4": "four"}
"""The digits that are used, and what the labeling config calls them: no name is part of another."""

HOTKEYS = {name: str(place) for place, name in enumerate(DIGITS.values(), start=1)}
# Notes what the page shows, and when: looking from outside would miss what is there for a moment only.
WATCH = """() => {
  window.opened = 'once';
  window.seen = { labels: [], now: [] };
  const look = () => {
    const labels = document.querySelector('#figures .figure:nth-child(2) .value')?.textContent;
    if (labels !== undefined && labels !== window.seen.labels.at(-1)?.labels) {
      window.seen.labels.push({ labels, at: Date.now() / 1000 });
    }
    const now = [...document.querySelectorAll('#now .step-title')].map((step) => step.textContent).join(', ');
    if (now !== window.seen.now.at(-1)) window.seen.now.push(now);
  };
  new MutationObserver(look).observe(document.body, { childList: true, subtree: true, characterData: true });
  look();
}"""


class Board:
    """The open dashboard of a project."""

    def __init__(self, page: Page, project: LabelingProject) -> None:
        self.page = page
        self.project = project
        page.goto(f"{project.stack.facts['backend_url']}/projects/{project.id}")
        expect(page.locator("#figures .value").first).to_be_visible()
        expect(page.locator("#live")).to_contain_text("Live")
        page.evaluate(WATCH)

    def part(self, name: str) -> Locator:
        return self.page.locator(f"#{name}")

    def figure(self, n: int) -> Locator:
        """Accuracy, labels used, labels needed, model version."""
        return self.page.locator("#figures .figure").nth(n)

    def seen(self) -> dict[str, Any]:
        """What the page has shown since it was opened."""
        found: dict[str, Any] = self.page.evaluate("window.seen")
        return found

    def shown_at(self, n_labels: int) -> float:
        """When the page first said that so many labels are used, in seconds since 1970."""
        return next(float(one["at"]) for one in self.seen()["labels"] if one["labels"] == str(n_labels))

    def window(self) -> list[int]:
        """Tasks of the thumbnails, in their order."""
        addresses = self.page.locator("#window li a").evaluate_all("links => links.map((link) => link.href)")
        return [int(address.rpartition("=")[2]) for address in addresses]

    def table(self, part: str) -> list[list[str]]:
        """Cells of the table behind a chart or the map, which says the same in words."""
        rows = self.page.locator(f"#{part} tbody tr")
        found: list[list[str]] = rows.evaluate_all(
            "rows => rows.map((row) => [...row.cells].map((cell) => cell.textContent))"
        )
        return found

    def await_map(self) -> Locator:
        """Scrolls to the map, and waits until it shows the images; its canvas."""
        canvas = bring_up_map(self.page)
        expect(canvas).to_have_attribute("aria-label", re.compile("Map of [1-9]"), timeout=2000 * PATIENCE_S)
        return canvas

    def await_idle(self) -> dict[str, Any]:
        """The service's status once the newest version is evaluated and the page shows it; nothing changes then."""
        status = self.project.wait(lambda status: status["model_version"] is not None)
        expect(self.figure(3)).to_contain_text(str(status["model_version"]).partition("-")[0])
        return status


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Headless Chromium."""
    with patient_chromium() as chromium:
        yield chromium


@pytest.fixture
def make_digits(make_project: Callable[..., LabelingProject], digits: Path) -> Callable[[int], LabelingProject]:
    """Makes a connected, seeded project with so many images of each digit, uploaded as people do it."""

    def make(n_each: int) -> LabelingProject:
        project = make_project([], config=config_of(tuple(DIGITS.values())), connect=False)
        files = [
            (f"{name}-{path.name}", (f"{name}-{path.name}", path.read_bytes(), "image/png"))
            for digit, name in DIGITS.items()
            for path in sorted((digits / digit).iterdir())[:n_each]
        ]
        project.stack.call("POST", f"/api/projects/{project.id}/import", files=files)
        assert project.stack.cli("connect", str(project.id)).returncode == 0
        project.wait(lambda status: status["model_version"] is not None)
        return project

    return make


@pytest.fixture
def open_context(browser: Browser, stack: Stack) -> Iterator[Callable[..., BrowserContext]]:
    """A person's browser, who knows the service's password. At the end its pages were not reloaded nor complained."""
    contexts: list[BrowserContext] = []
    problems: list[str] = []
    facts = stack.facts
    credentials = {"username": facts["backend_user"], "password": facts["backend_password"]}

    def watch(page: Page) -> None:
        def is_ours(address: str) -> bool:
            return address.startswith(facts["backend_url"])

        page.on("pageerror", lambda error: problems.append(str(error)) if is_ours(page.url) else None)
        page.on(
            "console", lambda said: problems.append(said.text) if said.type == "error" and is_ours(page.url) else None
        )

    def open_one(**options: Any) -> BrowserContext:
        context = browser.new_context(
            viewport={"width": 1280, "height": 900},
            http_credentials={**credentials, "origin": facts["backend_url"]},  # type: ignore[arg-type]
            **options,
        )
        context.set_default_timeout(1000 * PATIENCE_S)
        context.on("page", watch)
        contexts.append(context)
        return context

    yield open_one
    boards = [page for context in contexts for page in context.pages if page.url.startswith(facts["backend_url"])]
    reloaded = [page.url for page in boards if page.evaluate("window.opened") != "once"]
    for context in contexts:
        context.close()
    assert boards
    assert reloaded == []
    assert problems == []


def label_of(project: LabelingProject, task_id: int) -> str:
    """The digit that an image shows, by its file's name."""
    address = str(project.stack.call("GET", f"/api/tasks/{task_id}/")["data"]["image"])
    return next(name for name in DIGITS.values() if f"-{name}-" in address)


def test_what_is_labeled_in_label_studio_shows_without_reload(
    open_context: Callable[..., BrowserContext],
    make_digits: Callable[[int], LabelingProject],
    stack: Stack,
) -> None:
    """Ten labels by hotkey: figures, window, classes, curve, map and what happens now follow each of them."""
    project = make_digits(12)
    context = open_context()
    board = Board(context.new_page(), project)
    page = board.page
    expect(board.figure(1)).to_contain_text("none yet · 36 images left")
    expect(board.part("curve")).to_contain_text("The curve begins with the first model")
    expect(board.part("classes")).to_contain_text("3 classes to choose from: zero, one, four")
    expect(board.part("now")).to_contain_text("Waiting for labels")
    expect(page.locator("#window li")).to_have_count(6)
    assert board.window() == project.status()["window"]
    bring_up_map(page)

    labeler = context.new_page()
    log_in(labeler, stack)
    stream = LabelStream(labeler, project, HOTKEYS)
    given: dict[int, str] = {}

    def label_next() -> int:
        n = len(given) + 1
        task_id = stream.await_task(n)
        given[task_id] = label_of(project, task_id)
        stream.label(given[task_id])
        return task_id

    waits = []
    for n in range(1, 9):
        task_id = label_next()
        expect(board.figure(1).locator(".value")).to_have_text(str(n))
        waits.append(board.shown_at(n) - stream.submitted_at)
        expect(board.figure(1)).to_contain_text("last one just now")
        expect(page.locator(f'#window a[href$="task={task_id}"]')).to_have_count(0)
    status = board.await_idle()
    assert status["kind"] == "model"
    assert board.window() == status["window"]
    assert {name: n for name, n, _ in board.table("classes")} == {
        name: str(list(given.values()).count(name)) for name in DIGITS.values()
    }
    expect(board.part("curve").locator("svg")).to_be_visible()
    assert "9" not in [row[0] for row in board.table("curve")]
    print(f"From Submit to the dashboard: median {statistics.median(waits):.2f} s, longest {max(waits):.2f} s")

    canvas = board.await_map()
    page.get_by_label("Colour by").select_option("label")
    page.locator("#map summary").click()
    before = canvas.screenshot()
    task_id = label_next()
    expect(page.locator("#map tbody tr", has_text=re.compile(rf"Task {task_id}\b"))).to_contain_text(given[task_id])
    expect(page.locator(".map-keys .key", has_text=given[task_id])).to_contain_text(
        str(list(given.values()).count(given[task_id]))
    )
    assert canvas.screenshot() != before
    expect(page.locator("#curve tbody th", has_text=re.compile(r"^9$"))).to_have_count(1)

    with paused(stack.worker_pids()):
        label_next()
        expect(board.part("now")).to_contain_text("A new version is waiting its turn")
        expect(board.part("now").get_by_role("progressbar")).to_be_visible()
    expect(board.figure(1).locator(".value")).to_have_text("10")
    expect(board.part("now")).to_contain_text("Model up to date")
    expect(page.locator("#versions-part tbody tr.current")).to_contain_text("v0011")
    assert [one["labels"] for one in board.seen()["labels"]] == [str(n) for n in range(11)]
    photograph(page, "dashboard-live")


def test_with_more_labels_every_part_is_filled_and_leads_to_label_studio(
    open_context: Callable[..., BrowserContext], make_digits: Callable[[int], LabelingProject], stack: Stack
) -> None:
    """Suspects, confusion, calibration come by themselves; links open tasks; going back works; axe finds nothing."""
    project = make_digits(14)
    context = open_context()
    log_in(context.new_page(), stack)
    board = Board(context.new_page(), project)
    page = board.page
    for part in ("suspects", "confusion", "calibration"):
        expect(board.part(part).locator(".nothing")).to_be_visible()
    tasks = sorted(task["id"] for task in project.tasks())
    wrong, second = tasks[1], tasks[3]
    for task_id in (*tasks[::2], wrong):
        label = label_of(project, task_id)
        project.annotate(task_id, label if task_id != wrong else next(name for name in HOTKEYS if name != label))
    status = project.wait(lambda status: status["accuracy_labels"] == status["labels_used"] == 22)
    suspect = board.part("suspects").locator("li", has_text=f"Task {wrong}")
    expect(suspect).to_contain_text(f"looks like {label_of(project, wrong)}")
    for part in ("curve", "classes", "confusion", "calibration"):
        expect(board.part(part).locator("svg")).to_be_visible()
    expect(board.part("confusion").locator("figcaption")).to_contain_text("22 labeled images")
    expect(board.part("calibration").locator("figcaption")).to_contain_text("22 labeled images")
    board.page.locator("#confusion summary").click()
    assert sum(int(cell) for row in board.table("confusion") for cell in row[1:]) == 22
    expect(page.locator("#versions-part tbody tr")).to_have_count(12)
    board.part("versions-part").get_by_role("button", name="Show all").click()

    opens(context, project, suspect.locator("a"), wrong)
    next_up = board.window()[0]
    assert next_up == status["window"][0]
    opens(context, project, page.locator("#window li a").first, next_up)

    earlier = next(item["version"] for item in versions_of(project) if item["labels_used"] == 20)
    page.get_by_role("button", name=f"Use this version: {earlier.partition('-')[0]}", exact=True).click()
    page.get_by_role("button", name="Yes").click()
    expect(board.part("versions-part")).to_contain_text("The project stays with")
    status = project.wait(lambda status: status["head_of"] == earlier)
    expect(board.figure(3)).to_contain_text(f"goes by {earlier.partition('-')[0]}")
    assert settings_of(project)["model_version"] == status["model_version"]
    page.get_by_role("button", name="Go on with the labels").click()
    page.get_by_role("button", name="Yes").click()
    status = project.wait(lambda status: status["head_of"] is None)
    expect(board.figure(1).locator(".value")).to_have_text("22")
    expect(page.locator("#versions-part .pinned")).to_have_count(0)
    assert settings_of(project)["model_version"] == status["model_version"]

    canvas = board.await_map()
    x, y = place_on_map(page, project, second)
    canvas.hover(position={"x": x, "y": y})
    expect(page.locator(".map-tip")).to_contain_text(f"Task {second}")
    expect(page.locator(".map-tip img")).to_have_js_property("complete", True)
    opens(context, project, canvas, second, position={"x": x, "y": y})

    page.locator("#map summary").click()
    assert page.locator("img[data-missing]").count() == 0
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        page.wait_for_timeout(300)
        assert serious(page) == []
        photograph(page, f"dashboard-live-{scheme}")


def opens(context: BrowserContext, project: LabelingProject, where: Locator, task_id: int, **options: Any) -> None:
    """A click opens the task in Label Studio, which shows it: its number stands below its image."""
    with context.expect_page() as opened:
        where.click(**options)
    page = opened.value
    expect(page).to_have_url(f"{project.stack.facts['label_studio_url']}/projects/{project.id}/data?task={task_id}")
    expect(page.get_by_text(str(task_id), exact=True).first).to_be_visible()
    page.close()


def place_on_map(page: Page, project: LabelingProject, task_id: int) -> tuple[float, float]:
    """Where on the canvas the task's point lies while the whole map is shown, in CSS pixels."""
    raw = project.stack.backend.get(f"/api/projects/{project.id}/map").content
    n, header = int.from_bytes(raw[4:8], "little"), int.from_bytes(raw[8:12], "little")
    start = 12 + header + -header % 4
    x, y = np.frombuffer(raw, "<f4", 2 * n, start).reshape(2, n)
    (index,) = np.flatnonzero(np.frombuffer(raw, "<u4", n, start + 8 * n) == task_id)
    box = page.locator("canvas").bounding_box()
    assert box is not None
    half_width, half_height = min(box["width"], box["height"] * 1.7) / 2 * 0.94, box["height"] / 2 * 0.94
    return box["width"] / 2 + float(x[index]) * half_width, box["height"] / 2 - float(y[index]) * half_height


def serious(page: Page) -> list[tuple[str, str, list[Any]]]:
    """What axe-core finds that is serious: rule, how much so, where."""
    page.evaluate(AXE.read_text(encoding="utf-8"))
    found = page.evaluate("axe.run().then(result => result.violations)")
    told = [(rule["id"], rule["impact"], [node["target"] for node in rule["nodes"]][:5]) for rule in found]
    return [rule for rule in told if rule[1] in ("serious", "critical")]


def versions_of(project: LabelingProject) -> list[dict[str, Any]]:
    return list(project.stack.backend.get(f"/api/projects/{project.id}/versions").json()["versions"])


def settings_of(project: LabelingProject) -> dict[str, Any]:
    found: dict[str, Any] = project.stack.call("GET", f"/api/projects/{project.id}/")
    return found


def photograph(page: Page, name: str) -> None:
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=str(SCREENSHOTS / f"{name}.png"), full_page=True)
