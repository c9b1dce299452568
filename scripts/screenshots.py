"""Takes the pictures of docs/images: a real demo, labeled through Label Studio, looked at with Chromium.

    python scripts/screenshots.py [--images DIR] [--others DIR] [--labels 60] [--run-dir DIR] [--only NAME …]

The images are class folders, whose names are the labels: those kept beside the project, else the demo's digits. A
hundred of them are the validation split, as people have it who want a measured accuracy; one label in twenty is wrong,
as people's are. A run folder that is kept (`--run-dir`) is labeled no further once it has its labels.
"""

from __future__ import annotations

import argparse
import io
import math
import os
import random
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import httpx
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from backend.demo import write_digits  # noqa: E402
from benchmarks import SHARED, WEIGHTS  # noqa: E402
from benchmarks.dashboard import SWITCHES  # noqa: E402
from benchmarks.demo_stack import label_studio_client, running_demo  # noqa: E402

PICTURES = ROOT / "docs" / "images"
MAX_BYTES = 300_000
QUALITIES = (90, 84, 78, 70, 60)
N_VALIDATION = 100
N_OTHERS = 250
WRONG_EVERY = 20
HIDDEN = [
    "inner_id",
    "completed_at",
    "cancelled_annotations",
    "total_predictions",
    "annotators",
    "annotations_results",
    "annotations_ids",
    "predictions_results",
    "file_upload",
    "storage_filename",
    "created_at",
    "updated_at",
    "updated_by",
    "avg_lead_time",
    "draft_exists",
    "predictions_model_versions",
]
WAIT_S = 300
PAGE_MS = 120_000


def main(argv: Sequence[str] | None = None) -> None:
    """Starts, labels, and takes every picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, default=SHARED / "data" / "weather", help="folder of class folders")
    parser.add_argument("--others", type=Path, default=SHARED / "data" / "clothing", help="images of a second project")
    parser.add_argument("--labels", type=int, default=60, help="labels to give")
    parser.add_argument("--run-dir", type=Path, help="folder of the demo, kept; default: a new one")
    parser.add_argument("--only", nargs="+", choices=TAKEN, default=list(TAKEN), help="the pictures to take")
    arguments = parser.parse_args(argv)
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("error: no Chromium on the PATH; install Debian's package chromium")
    os.environ["VALIDATION_FILTER"] = "ground_truth"
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        run_dir = arguments.run_dir or Path(folder) / "run"
        images, others = _folders(arguments.images, arguments.others, run_dir / "pictures")
        weights = WEIGHTS if WEIGHTS.is_file() else None
        if not (run_dir / "projects.json").exists():
            with running_demo(others, run_dir, weights) as facts:
                Labeler(facts).work(20, n_validation=0)
        with running_demo(images, run_dir, weights) as facts:
            labeler = Labeler(facts)
            labeler.work(arguments.labels, n_validation=N_VALIDATION)
            browser = playwright.chromium.launch(executable_path=chromium, args=SWITCHES.split())
            for name in arguments.only:
                for picture, screenshot in TAKEN[name](browser, labeler):
                    save(screenshot, PICTURES / f"{picture}.webp")
            browser.close()


def _folders(images: Path, others: Path, folder: Path) -> tuple[Path, Path]:
    """The images, or the digits instead; and of the second project's a few of each class."""
    if not images.is_dir():
        images = folder / "digits"
        write_digits(images)
    some = folder / others.name
    if others.is_dir():
        classes = sorted(path for path in others.iterdir() if path.is_dir())
        for path in [path for kind in classes for path in sorted(kind.iterdir())[: N_OTHERS // len(classes)]]:
            (some / path.parent.name).mkdir(parents=True, exist_ok=True)
            shutil.copy(path, some / path.parent.name)
    else:
        some = folder / "other digits"
        write_digits(some)
    return images, some


class Labeler:
    """The person who labels the demo's project, through Label Studio's own queue."""

    def __init__(self, facts: dict[str, Any]) -> None:
        self.facts = facts
        self.project = int(facts["project_id"])
        self._label_studio = label_studio_client(facts["label_studio_url"], facts["label_studio_token"])
        self._backend = httpx.Client(
            base_url=facts["backend_url"], auth=(facts["backend_user"], facts["backend_password"]), timeout=60
        )

    def work(self, n_labels: int, n_validation: int) -> None:
        """Labels until the project has so many, and waits until all is worked out."""
        if n_validation and not self.status()["validation"]["tasks"]:
            self._validate(n_validation)
        for n in range(self.status()["labels_used"] + 1, n_labels + 1):
            task = self.call("GET", f"/api/projects/{self.project}/next")
            labels = sorted(set(self.labels()) - {self.true_label(task)})
            label = labels[n % len(labels)] if n % WRONG_EVERY == 0 else self.true_label(task)
            self.annotate(task["id"], label)
            self.wait(lambda status, n=n: status["labels_used"] >= n)
        self.wait(lambda status: status["accuracy_labels"] == status["labels_used"])
        self._await(self._map_is_ready)

    def annotate(self, task_id: int, label: str, *, ground_truth: bool = False) -> None:
        """One submitted annotation."""
        result = [{"from_name": "choice", "to_name": "image", "type": "choices", "value": {"choices": [label]}}]
        body = {"result": result, "lead_time": 2.0, "ground_truth": ground_truth}
        self.call("POST", f"/api/tasks/{task_id}/annotations/", json=body)

    def labels(self) -> list[str]:
        """What the labeling config offers, in its order: hotkeys follow it."""
        return re.findall(r'<Choice value="([^"]+)"', self.call("GET", f"/api/projects/{self.project}")["label_config"])

    def true_label(self, task: dict[str, Any]) -> str:
        """The name of the folder that the image lies in."""
        return Path(unquote(task["data"]["image"]).partition("?d=")[2]).parent.name

    def status(self) -> dict[str, Any]:
        """What the service says of the project."""
        found: dict[str, Any] = self._backend.get(f"/api/projects/{self.project}/status").raise_for_status().json()
        return found

    def wait(self, condition: Callable[[dict[str, Any]], bool]) -> None:
        """Until the status is so, and nothing is under way."""
        self._await(lambda: (status := self.status())["training"] == "idle" and condition(status))

    def call(self, method: str, path: str, **arguments: Any) -> Any:
        """One request to Label Studio that must succeed; its JSON."""
        answer = self._label_studio.request(method, path, **arguments).raise_for_status()
        return answer.json() if answer.content else None

    def _validate(self, n_tasks: int) -> None:
        """Ground truth for a random part of the images, which are never trained on then."""
        params = {"project": self.project, "page_size": 100_000}
        tasks = [task for task in self.call("GET", "/api/tasks/", params=params)["tasks"] if not task["is_labeled"]]
        for task in random.Random(0).sample(tasks, n_tasks):
            self.annotate(task["id"], self.true_label(task), ground_truth=True)
        self.wait(lambda status: status["validation"]["tasks"] == n_tasks)

    def _map_is_ready(self) -> bool:
        answer = self._backend.get(f"/api/projects/{self.project}/map")
        return b'"ready"' in answer.content[:2000] and self.status()["model_version"].encode() in answer.content[:2000]

    def _await(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + WAIT_S
        while not condition():
            if time.monotonic() > deadline:
                sys.exit(f"error: not within {WAIT_S} s; the status is {self.status()}")
            time.sleep(0.1)


# -- the pictures -----------------------------------------------------------------------------------------------------

Pictures = list[tuple[str, bytes]]


def dashboard(browser: Browser, labeler: Labeler) -> Pictures:
    """The top of it, as on a screen, in light and dark."""
    taken = []
    for scheme in ("light", "dark"):
        page = _service_page(browser, labeler, color_scheme=scheme, viewport={"width": 1280, "height": 960})
        _open_dashboard(page, labeler)
        taken.append((f"dashboard-{scheme}", page.screenshot()))
        page.context.close()
    return taken


def whole(browser: Browser, labeler: Labeler) -> Pictures:
    """All of it, from top to bottom."""
    page = _service_page(browser, labeler, viewport={"width": 1280, "height": 900})
    _open_dashboard(page, labeler)
    _bring_up_map(page)
    page.evaluate("scrollTo(0, 0)")
    page.wait_for_timeout(500)
    taken = page.screenshot(full_page=True)
    page.context.close()
    return [("dashboard-whole", taken)]


def phone(browser: Browser, labeler: Labeler) -> Pictures:
    """As wide as a phone."""
    page = _service_page(
        browser,
        labeler,
        viewport={"width": 390, "height": 844},
        device_scale_factor=2,
        is_mobile=True,
        has_touch=True,
    )
    _open_dashboard(page, labeler)
    taken = page.screenshot()
    page.context.close()
    return [("dashboard-phone", taken)]


def embedding_map(browser: Browser, labeler: Labeler) -> Pictures:
    """The map, with an image under the pointer."""
    page = _service_page(browser, labeler, viewport={"width": 1280, "height": 900}, device_scale_factor=1.5)
    _open_dashboard(page, labeler)
    canvas = _bring_up_map(page)
    box = canvas.bounding_box()
    assert box is not None
    tip = page.locator(".map-tip")
    for n in range(400):  # along a spiral from the middle, until there is an image with a thumbnail
        angle, radius = 0.4 * n, 0.1 + 0.002 * n
        page.mouse.move(
            box["x"] + box["width"] * (0.5 + radius * math.cos(angle) / 2),
            box["y"] + box["height"] * (0.5 + radius * math.sin(angle)),
        )
        page.wait_for_timeout(30)
        if tip.count() and tip.first.is_visible():
            page.wait_for_timeout(800)
            break
    taken = page.locator("#map").screenshot()
    page.context.close()
    return [("map", taken)]


def projects(browser: Browser, labeler: Labeler) -> Pictures:
    """The list of projects."""
    page = _service_page(browser, labeler, viewport={"width": 900, "height": 320})
    page.goto(labeler.facts["backend_url"] + "/")
    expect(page.locator("#projects li")).to_have_count(2)
    taken = page.screenshot()
    page.context.close()
    return [("projects", taken)]


def label_stream(browser: Browser, labeler: Labeler) -> Pictures:
    """The next image in Label Studio, its label chosen by the key, not yet submitted."""
    page = _label_studio_page(browser, labeler)
    with page.expect_response(re.compile(r"/api/projects/\d+/next|next_task"), timeout=PAGE_MS) as served:
        page.click("text=Label All Tasks")
    task = served.value.json()
    label = labeler.true_label(task)
    choice = page.locator("label", has_text=re.compile(rf"^{re.escape(label)}\[")).first
    hotkey = (choice.text_content() or "")[-2]
    for _ in range(20):
        if choice.locator("input").is_checked():
            break
        page.keyboard.press(hotkey)
        page.wait_for_timeout(500)
    page.wait_for_timeout(1500)
    taken = page.screenshot()
    page.context.close()
    return [("label-stream", taken)]


def data_manager(browser: Browser, labeler: Labeler) -> Pictures:
    """Label Studio's list of tasks, ordered by the queue score."""
    tab = {
        "title": "Queue",
        "ordering": ["tasks:predictions_score"],
        "hiddenColumns": {"explore": [f"tasks:{name}" for name in HIDDEN], "labeling": []},
        "columnsDisplayType": {"tasks:data.image": "Image"},
    }
    for earlier in labeler.call("GET", "/api/dm/views/", params={"project": labeler.project}):
        if earlier["data"].get("title") == tab["title"]:
            labeler.call("DELETE", f"/api/dm/views/{earlier['id']}/")
    view = labeler.call("POST", "/api/dm/views/", json={"project": labeler.project, "data": tab})
    page = _label_studio_page(browser, labeler, f"?tab={view['id']}")
    page.wait_for_timeout(3000)
    taken = page.screenshot()
    page.context.close()
    return [("data-manager", taken)]


TAKEN = {
    "label-stream": label_stream,
    "dashboard": dashboard,
    "whole": whole,
    "phone": phone,
    "map": embedding_map,
    "projects": projects,
    "data-manager": data_manager,
}


def _service_page(browser: Browser, labeler: Labeler, **options: Any) -> Page:
    """A page that is logged in to the service."""
    facts = labeler.facts
    credentials = {"username": facts["backend_user"], "password": facts["backend_password"]}
    context = browser.new_context(http_credentials=credentials, reduced_motion="reduce", **options)
    page = context.new_page()
    page.set_default_timeout(PAGE_MS)
    return page


def _open_dashboard(page: Page, labeler: Labeler) -> None:
    """Until everything that is in view at first is drawn, thumbnails too."""
    page.goto(labeler.facts["dashboard_url"])
    expect(page.locator("#curve svg")).to_be_visible(timeout=PAGE_MS)
    expect(page.locator("#live")).to_contain_text("Live", timeout=PAGE_MS)
    _await_images(page)


def _bring_up_map(page: Page) -> Any:
    page.locator("#map").scroll_into_view_if_needed()
    canvas = page.locator("#map canvas")
    expect(canvas).to_have_attribute("aria-label", re.compile("coloured by"), timeout=PAGE_MS)
    page.wait_for_timeout(1000)
    _await_images(page)
    return canvas


def _await_images(page: Page) -> None:
    """Lazy ones are loaded as if they were scrolled to."""
    page.evaluate("for (const image of document.images) image.loading = 'eager'")
    for _ in range(200):
        if page.evaluate("[...document.images].every((image) => image.complete)"):
            break
        page.wait_for_timeout(50)


def _label_studio_page(browser: Browser, labeler: Labeler, query: str = "") -> Page:
    """The project's tasks in Label Studio, logged in."""
    facts = labeler.facts
    page = browser.new_context(viewport={"width": 1280, "height": 800}, color_scheme="light").new_page()
    page.set_default_timeout(PAGE_MS)
    page.goto(f"{facts['label_studio_url']}/projects/{facts['project_id']}/data{query}")
    page.fill("input[name=email]", facts["email"])
    page.fill("input[name=password]", facts["password"])
    page.click("button[type=submit]")
    page.wait_for_selector("text=Label All Tasks", timeout=PAGE_MS)
    return page


def save(screenshot: bytes, path: Path) -> None:
    """As WebP, as good as the limit of bytes allows."""
    image = Image.open(io.BytesIO(screenshot)).convert("RGB")
    for quality in QUALITIES:
        stream = io.BytesIO()
        image.save(stream, "WEBP", quality=quality, method=6)
        webp = stream.getvalue()
        if len(webp) <= MAX_BYTES:
            path.write_bytes(webp)
            print(f"{path.name:<24} {image.width} × {image.height}, {len(webp) // 1000} kB, quality {quality}")
            return
    sys.exit(f"error: {path.name} takes more than {MAX_BYTES} bytes at quality {QUALITIES[-1]}")


if __name__ == "__main__":
    main()
