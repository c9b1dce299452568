"""The dashboard in Chromium, before made-up answers: every part, what changes by itself, and what goes wrong."""

from __future__ import annotations

import copy
import io
import json
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_service import CLASSES, FakeService, embedding_board, empty_board, full_board, map_of, running
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
AXE = Path(__file__).with_name("vendor") / "axe-core" / "axe.min.js"
HOSTILE = "<img src=x onerror=window.broken=1>"

SWITCHES = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --use-gl=angle --use-angle=swiftshader --enable-unsafe-swiftshader"
)

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the PATH; install Debian's package chromium")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Headless Chromium that draws WebGL by its processor."""
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=SWITCHES.split())
        yield chromium
        chromium.close()


@pytest.fixture
def service() -> Iterator[FakeService]:
    """The pages, with a project in full swing behind them."""
    with running(FakeService()) as fake:
        yield fake


@pytest.fixture
def open_page(browser: Browser, service: FakeService) -> Iterator[Callable[..., Page]]:
    """Opens an address of the service; at the end nothing may have gone wrong in the page unless the test expects it.

    What a Content-Security-Policy forbids is an error on the console, too.
    """
    contexts = []
    problems: list[str] = []

    def open_at(
        path: str = "/projects/3", *, expected: str = "$^", width: int = 1280, init_script: str = "", **options: Any
    ) -> Page:
        context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        contexts.append(context)
        context.add_init_script(init_script)
        page = context.new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on(
            "console",
            lambda said: (
                problems.append(said.text) if said.type == "error" and not re.search(expected, said.text) else None
            ),
        )
        page.set_default_timeout(20_000)
        page.goto(service.url + path)
        return page

    yield open_at
    for context in contexts:
        context.close()
    assert problems == []


def bring_up_map(page: Page) -> Locator:
    """Scrolls to the map, and waits until it is painted; its canvas."""
    page.locator("#map").scroll_into_view_if_needed()
    expect(page.locator("canvas")).to_have_attribute("aria-label", re.compile("coloured by"))
    page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    return page.locator("canvas")


def place_of(page: Page, n: int, index: int) -> tuple[float, float]:
    """Where on the canvas the point lies while the whole map is shown, in CSS pixels."""
    box = page.locator("canvas").bounding_box()
    assert box is not None
    raw = map_of(n)
    start = 12 + int.from_bytes(raw[8:12], "little")
    x, y = np.frombuffer(raw, "<f4", 2 * n, start + -start % 4).reshape(2, n)[:, index]
    half_width, half_height = min(box["width"], box["height"] * 1.7) / 2 * 0.94, box["height"] / 2 * 0.94
    return box["width"] / 2 + float(x) * half_width, box["height"] / 2 - float(y) * half_height


# -- every part -------------------------------------------------------------------------------------------------------


def test_every_part_shows_what_the_service_says(open_page: Callable[..., Page]) -> None:
    """Figures, suggestion, curve, window, suspects, disagreements, classes, confusion, calibration, versions."""
    page = open_page()
    expect(page.locator("#title")).to_have_text("Animals")
    expect(page.get_by_role("link", name="Open in Label Studio")).to_have_attribute(
        "href", "http://labels.example/projects/3/data"
    )
    expect(page.locator("#figures")).to_contain_text("91 %")
    expect(page.locator("#figures")).to_contain_text("240")
    expect(page.locator("#figures")).to_contain_text("≈ 310")
    expect(page.locator("#figures")).to_contain_text("v0240")
    expect(page.locator("#suggestion")).to_contain_text("Go on: the next 24 labels")
    expect(page.locator("#curve svg")).to_have_attribute("aria-label", re.compile("With 240 labels the measured"))
    expect(page.locator("#window li")).to_have_count(24)
    first = page.locator("#window li").first
    expect(first).to_contain_text("The model cannot tell dog from hare here.")
    expect(first.locator("a")).to_have_attribute("href", "http://labels.example/projects/3/data?task=1001")
    expect(page.locator("#suspects li")).to_have_count(5)
    expect(page.locator("#suspects li").first).to_contain_text("labeled cat")
    expect(page.locator("#suspects li").first).to_contain_text("looks like dog")
    expect(page.locator("#disagreements li")).to_have_count(2)
    for part in ("classes", "confusion", "calibration"):
        expect(page.locator(f"#{part} svg")).to_be_visible()
        page.locator(f"#{part} summary").click()
        expect(page.locator(f"#{part} table")).to_be_visible()
    expect(page.locator("#versions-part tbody tr")).to_have_count(12)
    page.get_by_role("button", name="Show all 20").click()
    expect(page.locator("#versions-part tbody tr")).to_have_count(20)


def test_before_there_is_anything_every_part_says_what_will_come(
    open_page: Callable[..., Page], service: FakeService
) -> None:
    """One sentence each, and no empty frame."""
    service.board, service.map = empty_board(), map_of(0, state="none")
    page = open_page()
    for part in ("curve", "window", "suspects", "disagreements", "classes", "confusion", "calibration"):
        expect(page.locator(f"#{part} .nothing")).to_contain_text(re.compile(r"\w{3,}.*\."))
    expect(page.locator("#versions-part .nothing")).to_contain_text("The first version is made once")
    expect(page.locator("#now")).to_contain_text("Images not embedded yet")
    expect(page.locator(".map-notice")).to_contain_text("once all images are embedded")


def test_where_images_have_several_labels_each_is_shown(open_page: Callable[..., Page], service: FakeService) -> None:
    """How well each label is told stands where the confusion does otherwise; one that nobody has has no figures."""
    board = full_board()
    labels = [
        {"label": "rain", "n_having": 30, "accuracy": 0.9, "f1": 0.75, "average_precision": 0.81},
        {"label": "sun", "n_having": 50, "accuracy": 0.8, "f1": 0.5, "average_precision": 0.62},
        {"label": "snow", "n_having": 0, "accuracy": 1.0, "f1": None, "average_precision": None},
    ]
    board["confusion"] = None
    board["label_figures"] = {
        "n_images": 100, "exact_match": 0.7, "label_accuracy": 0.9, "macro_f1": 0.625, "mean_average_precision": 0.715,
        "threshold": 0.5, "labels": labels, "basis": "the 100 validation images, of which the model has learned none",
    }  # fmt: skip
    service.board = board
    part = open_page().locator("#confusion")
    expect(part).to_contain_text("All labels of an image are right in 70 %, a single label in 90 %.")
    expect(part.locator("svg")).to_be_visible()
    part.locator("summary").click()
    expect(part.locator("tbody tr")).to_have_text(["sun5080 %50 %62 %", "rain3090 %75 %81 %", "snow0100 %––"])


def test_with_images_but_no_labels_yet_it_says_what_there_is_to_choose(
    open_page: Callable[..., Page], service: FakeService
) -> None:
    """The first batch is shown; which classes there are stands in the labeling config."""
    board, full = embedding_board(), full_board()
    board["window"] = full["window"][:3]
    board["window"][0]["why"] = {"kind": "other", "sentence": "stands for many images", "classes": []}
    board["classes"] = [{"label": name, "n_labels": 0, "n_predicted": None} for name in CLASSES]
    board["versions"] = [{**full["versions"][0], "kind": "seed", "labels_used": 0, "accuracy": None}]
    service.board = board
    page = open_page()
    expect(page.locator("#classes .nothing")).to_contain_text("6 classes to choose from: cat, dog, fox")
    expect(page.locator("#window li").first).to_contain_text("Stands for many images.")
    expect(page.locator("#versions-part tbody tr")).to_have_count(1)
    expect(page.get_by_role("button", name="Use this version")).to_have_count(0)


def test_what_is_going_on_is_shown_with_how_long_it_takes(open_page: Callable[..., Page], service: FakeService) -> None:
    """Embedding with rate and time left, training, and errors in words."""
    board = embedding_board()
    board["status"] |= {
        "training": "running", "n_workers": 0, "last_error": "image 7 is not there",
        "failures": [{"work": "retrain", "reason": "Label Studio does not answer", "times": 3, "next_try": None,
                      "needs_a_person": True}],
        "image_failures": {"7": "no such file"},
    }  # fmt: skip
    service.board = board
    now = open_page().locator("#now")
    expect(now).to_contain_text("4,210 of 12,000 images · 61 images/s, about 2 min 7 s left")
    expect(now.get_by_role("progressbar", name="Images embedded")).to_have_attribute("value", "4210")
    expect(now).to_contain_text("Training and pushing a new version")
    expect(now).to_contain_text("No worker is running")
    expect(now).to_contain_text("Retrain failed 3 times: Label Studio does not answer. Somebody has to see to it.")
    expect(now).to_contain_text("Last error: image 7 is not there.")
    expect(now).to_contain_text("1 image could not be read")


def test_names_are_text_and_addresses_are_of_the_web(open_page: Callable[..., Page], service: FakeService) -> None:
    """A label may be called like markup, a link may be a script: neither becomes one."""
    board = full_board(classes=[HOSTILE, *CLASSES[1:]])
    board["project"] |= {"title": HOSTILE, "link": "javascript:window.broken=2"}
    board["window"][0]["link"] = "javascript:window.broken=3"
    board["window"][0]["why"]["sentence"] = HOSTILE
    board["status"]["last_error"] = HOSTILE
    service.board, service.map = board, map_of(200, classes=[HOSTILE, *CLASSES[1:]])
    page = open_page()
    expect(page.locator("#title")).to_have_text(HOSTILE)
    expect(page.locator("#now")).to_contain_text(HOSTILE)
    expect(page.locator("#classes svg")).to_be_visible()
    bring_up_map(page)
    expect(page.locator(".map-keys")).to_contain_text(HOSTILE)
    page.locator("#map summary").click()
    expect(page.locator("#map table")).to_contain_text(HOSTILE)
    expect(page.locator("img[src='x']")).to_have_count(0)
    expect(page.locator("a[href^=javascript]")).to_have_count(0)
    assert page.evaluate("window.broken") is None


# -- by itself --------------------------------------------------------------------------------------------------------


def test_it_changes_by_itself_and_keeps_scroll_and_focus(open_page: Callable[..., Page], service: FakeService) -> None:
    """An event is enough; the new version is announced, and the link somebody is at stays where it was."""
    page = open_page()
    expect(page.locator("#live")).to_contain_text("Live")
    page.locator("#curve summary").click()
    link = page.locator("#window li[data-key=task-1005] a")
    link.focus()
    # Where people look: what grows above it (the open table by a row) moves the page, not what they see.
    place = "() => Math.round(document.querySelector('#window').getBoundingClientRect().top)"
    page.wait_for_timeout(300)
    before = page.evaluate(place)
    board = full_board(241)
    board["window"] = [item for item in board["window"] if item["task_id"] != 1001]
    service.change(board)
    expect(page.locator("#figures")).to_contain_text("v0241")
    expect(page.locator("#window li")).to_have_count(23)
    expect(page.locator("#curve table tbody")).to_contain_text("241")
    expect(page.locator("#announce")).to_contain_text("Version v0241: 241 labels, accuracy about 91")
    expect(link).to_be_focused()
    assert abs(page.evaluate(place) - before) <= 2
    assert page.locator("#curve details").get_attribute("open") is not None


def test_without_events_it_asks_every_five_seconds(open_page: Callable[..., Page], service: FakeService) -> None:
    """When the service has as many listeners as it takes."""
    service.events = False
    page = open_page(expected="503")
    expect(page.locator("#live")).to_contain_text("Every 5 s")
    service.board = full_board(242)
    expect(page.locator("#figures")).to_contain_text("v0242", timeout=8000)


def test_a_banner_says_that_the_service_is_away_and_goes_by_itself(
    open_page: Callable[..., Page], service: FakeService
) -> None:
    """What was shown stays."""
    page = open_page(expected="503|ERR_")
    expect(page.locator("#figures")).to_contain_text("v0240")
    service.away = True
    service.change(service.board)
    expect(page.locator("#banner")).to_contain_text("Redis does not answer", timeout=15_000)
    expect(page.locator("#figures")).to_contain_text("v0240")
    service.away = False
    expect(page.locator("#banner")).to_be_hidden(timeout=15_000)


# -- versions ---------------------------------------------------------------------------------------------------------


def pins(service: FakeService) -> list[str]:
    return [method for method, path in service.asked if path.endswith("/pin")]


def test_a_version_is_used_only_after_it_was_confirmed(open_page: Callable[..., Page], service: FakeService) -> None:
    """No goes back to the button; Yes pins, and then one may go on with the labels."""
    page = open_page()
    use = page.get_by_role("button", name="Use this version: v0238")
    use.click()
    expect(page.get_by_role("button", name="Yes")).to_be_focused()
    page.get_by_role("button", name="No").click()
    expect(use).to_be_focused()
    assert pins(service) == []
    use.click()
    page.get_by_role("button", name="Yes").click()
    expect(page.locator("#versions-part")).to_contain_text("New versions go by v0238.")
    expect(page.locator("#versions-part .pinned")).to_contain_text("The project stays with v0238")
    page.get_by_role("button", name="Go on with the labels").click()
    page.get_by_role("button", name="Yes").click()
    expect(page.locator("#versions-part .pinned")).to_have_count(0)
    assert pins(service) == ["POST", "DELETE"]


def test_why_a_version_cannot_be_used_is_said(open_page: Callable[..., Page], service: FakeService) -> None:
    """In the service's own words."""
    service.pin_refusal = "version v0238 knows other labels; use one made since the labels changed"
    page = open_page(expected="409")
    page.get_by_role("button", name="Use this version: v0238").click()
    page.get_by_role("button", name="Yes").click()
    expect(page.get_by_role("alert")).to_have_text(service.pin_refusal)


# -- map --------------------------------------------------------------------------------------------------------------


def test_the_map_shows_the_image_under_the_mouse_and_opens_its_task(open_page: Callable[..., Page]) -> None:
    """Hover: its thumbnail and what is known of it; click: its task in Label Studio."""
    page = open_page()
    canvas = bring_up_map(page)
    x, y = place_of(page, 1000, 0)
    canvas.hover(position={"x": x, "y": y})
    tip = page.locator(".map-tip")
    expect(tip).to_contain_text("next to label")
    expect(tip.locator("img")).to_have_attribute("src", "/api/projects/3/tasks/1001/thumbnail")
    page.context.route("http://labels.example/**", lambda route: route.fulfill(body="Label Studio"))
    with page.context.expect_page() as opened:
        canvas.click(position={"x": x, "y": y})
    opened.value.wait_for_url("http://labels.example/projects/3/data?task=1001")


def test_the_map_is_used_by_keyboard_and_read_as_a_table(open_page: Callable[..., Page]) -> None:
    """+ shows fewer images, 0 all; a class alone, and the same by queue place."""
    page = open_page()
    canvas = bring_up_map(page)
    page.locator("#map summary").click()
    shown = page.locator("#map .as-table p")
    expect(shown).to_contain_text("1,000 images in view")
    expect(page.locator("#map tbody tr").first).to_contain_text("Task 1001")
    canvas.focus()
    for _ in range(4):
        canvas.press("+")
    expect(shown).not_to_contain_text("1,000 images in view")
    canvas.press("0")
    expect(shown).to_contain_text("1,000 images in view")
    page.locator(".map-keys button").first.click()
    expect(page.locator(".map-keys button").first).to_have_attribute("aria-pressed", "true")
    expect(shown).not_to_contain_text("1,000 images in view")
    before = canvas.screenshot()
    page.get_by_label("Colour by").select_option("queue")
    expect(page.locator(".map-keys")).to_contain_text("next to label")
    page.wait_for_timeout(200)
    assert canvas.screenshot() != before


@pytest.mark.parametrize(
    ("verdict", "words"), [("target_reached", "the target is reached"), ("go_on", "about reached, not for certain yet")]
)
def test_a_target_is_called_reached_when_that_is_certain(
    open_page: Callable[..., Page], service: FakeService, verdict: str, words: str
) -> None:
    """No label more is needed by the curve, and yet the suggestion may be to go on a little."""
    board = full_board()
    board["status"]["forecast"] |= {"labels_needed": 0, "labels_needed_interval": [0, 40], "verdict": verdict}
    service.change(board)
    expect(open_page().locator("#figures")).to_contain_text(words)


def test_the_map_says_by_what_it_is_coloured(open_page: Callable[..., Page]) -> None:
    """To those who do not see it, too, and after another choice."""
    page = open_page()
    canvas = bring_up_map(page)
    page.get_by_label("Colour by").select_option("uncertainty")
    expect(canvas).to_have_attribute("aria-label", re.compile("coloured by uncertainty"))


def test_the_map_of_a_new_version_comes_by_itself(open_page: Callable[..., Page], service: FakeService) -> None:
    """And the view stays as it was."""
    page = open_page()
    bring_up_map(page)
    expect(page.locator("canvas")).to_have_attribute("aria-label", re.compile("1,000 images"))
    service.map = map_of(1200)
    service.change(full_board(250))
    expect(page.locator("canvas")).to_have_attribute("aria-label", re.compile("1,200 images"))


def test_the_map_follows_the_evaluation_which_comes_after_the_version(
    open_page: Callable[..., Page], service: FakeService
) -> None:
    """What was asked for when the version was published is of the version before, and is asked for again."""
    page = open_page()
    bring_up_map(page)
    expect(page.locator("canvas")).to_have_attribute("aria-label", re.compile("1,000 images"))
    service.change(full_board(250))
    expect(page.locator("#figures")).to_contain_text("v0250")
    for _ in range(200):
        if sum(path.endswith("/map") for _, path in service.asked) == 2:
            break
        page.wait_for_timeout(50)
    service.map = map_of(1200)
    service.change({**full_board(250), "suspects": []})
    expect(page.locator("canvas")).to_have_attribute("aria-label", re.compile("1,200 images"))


def lights(page: Page, canvas: Locator, places: Iterable[tuple[float, float]]) -> list[bool]:
    """Whether something else than the background is seen at each place of the canvas."""
    shown = np.asarray(Image.open(io.BytesIO(canvas.screenshot())).convert("RGB")).astype(int)
    background = shown[4, 4]
    height, width = shown.shape[:2]
    return [
        bool(np.abs(shown[min(round(y), height - 1), min(round(x), width - 1)] - background).max() > 24)
        for x, y in places
    ]


def test_every_point_is_drawn_where_it_lies(open_page: Callable[..., Page], service: FakeService) -> None:
    """Of 100,000, too, and nothing elsewhere; what draws them is loaded when the rest of the page is there."""
    service.map = map_of(100_000)
    page = open_page()
    canvas = bring_up_map(page)
    asked = [path.rsplit("/", 1)[-1] for _, path in service.asked]
    assert asked.index("dashboard") < asked.index("three.min.js")
    page.wait_for_timeout(500)
    everywhere = [place_of(page, 100_000, index) for index in range(0, 100_000, 2_000)]
    assert all(lights(page, canvas, everywhere))
    box = canvas.bounding_box()
    assert box is not None
    # All within the middle of the canvas, whose corners stay empty.
    corners = [(x, y) for x in (6, box["width"] - 6) for y in (6, box["height"] - 6)]
    assert not any(lights(page, canvas, corners))


def test_a_map_whose_graphics_context_is_lost_says_so_and_comes_again(open_page: Callable[..., Page]) -> None:
    """As when a computer wakes up, or its graphics driver is restarted."""
    page = open_page()
    canvas = bring_up_map(page)
    places = [place_of(page, 1000, index) for index in range(0, 1000, 20)]
    page.evaluate(
        "() => { const gl = document.querySelector('canvas').getContext('webgl2');"
        " window.taken = gl.getExtension('WEBGL_lose_context'); window.taken.loseContext(); }"
    )
    expect(page.locator(".map-notice")).to_contain_text("has stopped drawing the map")
    page.get_by_label("Colour by").select_option("uncertainty")  # nothing is drawn, and nothing breaks
    assert not any(lights(page, canvas, places))
    page.evaluate("window.taken.restoreContext()")
    expect(page.locator(".map-notice")).to_be_hidden()
    page.wait_for_timeout(300)
    assert sum(lights(page, canvas, places)) > 0.9 * len(places)


def test_without_webgl_the_map_is_drawn_all_the_same(open_page: Callable[..., Page], service: FakeService) -> None:
    """By the canvas' plain context, which the map says; what draws it otherwise is not even loaded."""
    page = open_page(
        init_script="const get = HTMLCanvasElement.prototype.getContext;"
        "HTMLCanvasElement.prototype.getContext = function (kind, ...rest) {"
        " return kind === 'webgl2' ? null : get.call(this, kind, ...rest); }"
    )
    canvas = bring_up_map(page)
    expect(page.locator(".map-notice")).to_have_text(re.compile("draws without WebGL"))
    assert all(lights(page, canvas, [place_of(page, 1000, index) for index in range(0, 1000, 20)]))
    canvas.focus()
    canvas.press("+")
    canvas.press("0")
    page.wait_for_timeout(200)
    assert all(lights(page, canvas, [place_of(page, 1000, index) for index in range(0, 1000, 20)]))
    assert not [path for _, path in service.asked if "three" in path]


def test_when_what_draws_the_map_does_not_load_it_says_so(open_page: Callable[..., Page], service: FakeService) -> None:
    """Once, and does not ask for the points again and again; the rest of the page is there."""
    page = open_page(
        "/no-page", expected="404|ERR_FAILED|dynamically imported module"
    )  # for a page that can be told what not to load
    page.route("**/three.min.js", lambda route: route.abort())
    page.goto(service.url + "/projects/3")
    page.locator("#map").scroll_into_view_if_needed()
    expect(page.locator(".map-notice")).to_have_text("What draws the map did not load; reload the page.")
    page.wait_for_timeout(6000)
    assert [path for _, path in service.asked].count("/api/projects/3/map") == 1
    expect(page.locator("#calibration svg")).to_be_visible()


def test_on_a_touch_screen_a_tap_shows_the_image_and_its_link_opens_the_task(open_page: Callable[..., Page]) -> None:
    """A finger has to see first what it would open; elsewhere a tap puts it away."""
    page = open_page(width=412, has_touch=True, is_mobile=True)
    canvas = bring_up_map(page)
    x, y = place_of(page, 1000, 0)
    canvas.tap(position={"x": x, "y": y})
    tip = page.locator(".map-tip")
    expect(tip).to_contain_text("next to label")
    expect(tip.locator("img")).to_have_attribute("src", "/api/projects/3/tasks/1001/thumbnail")
    page.context.route("http://labels.example/**", lambda route: route.fulfill(body="Label Studio"))
    link = tip.get_by_role("link", name="Open in Label Studio")
    with page.context.expect_page() as opened:
        link.tap()
    opened.value.wait_for_url("http://labels.example/projects/3/data?task=1001")
    page.bring_to_front()
    canvas.tap(position={"x": 6, "y": 6})
    expect(tip).to_be_hidden()


def test_two_fingers_zoom_the_map_and_one_scrolls_the_page(open_page: Callable[..., Page]) -> None:
    """So nobody is caught in the map on the way down."""
    page = open_page(width=412, has_touch=True, is_mobile=True)
    canvas = bring_up_map(page)
    page.locator("#map summary").tap()
    shown = page.locator("#map .as-table p")
    expect(shown).to_contain_text("1,000 images in view")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    touches = page.context.new_cdp_session(page)

    def touch(kind: str, *at: tuple[float, float]) -> None:
        points = [{"x": px, "y": py, "id": finger} for finger, (px, py) in enumerate(at)]
        touches.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    touch("touchStart", (x - 20, y))
    touch("touchStart", (x - 20, y), (x + 20, y))
    for apart in range(30, 130, 10):
        touch("touchMove", (x - apart, y), (x + apart, y))
    touch("touchEnd")
    expect(shown).not_to_contain_text("1,000 images in view")
    in_view = shown.inner_text()
    before = page.evaluate("scrollY")
    touch("touchStart", (x, y))
    for moved in range(10, 130, 10):
        touch("touchMove", (x, y - moved))
    touch("touchEnd")
    page.wait_for_timeout(500)
    assert page.evaluate("scrollY") > before
    assert shown.inner_text() == in_view


# -- for everybody ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("make", [full_board, empty_board], ids=["full", "empty"])
def test_axe_finds_nothing_serious(
    open_page: Callable[..., Page], service: FakeService, scheme: str, make: Callable[[], dict[str, Any]]
) -> None:
    """Landmarks, headings, names, contrast: axe-core's rules, of which none may be broken seriously."""
    service.board = copy.deepcopy(make())
    page = open_page(color_scheme=scheme)
    if make is full_board:
        bring_up_map(page)
        page.locator("#map summary").click()
        page.get_by_role("button", name="Use this version: v0238").click()
    page.wait_for_timeout(300)
    page.evaluate(AXE.read_text(encoding="utf-8"))
    found = page.evaluate("axe.run().then(result => result.violations)")
    told = [(rule["id"], rule["impact"], [node["target"] for node in rule["nodes"]][:5]) for rule in found]
    assert [rule for rule in told if rule[1] in ("serious", "critical")] == [], json.dumps(told, indent=1)


@pytest.mark.parametrize("width", [360, 768, 1920])
def test_nothing_is_wider_than_the_screen(open_page: Callable[..., Page], width: int) -> None:
    """On phones neither."""
    page = open_page(width=width)
    expect(page.locator("#calibration svg")).to_be_visible()
    bring_up_map(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_the_first_page_lists_the_projects(open_page: Callable[..., Page], service: FakeService) -> None:
    """By the titles they have in Label Studio, which are asked for once; or goes to the only one."""
    assert open_page("/").url.endswith("/projects/3")
    service.projects = [3, 12]
    page = open_page("/")
    expect(page.get_by_role("link", name="Project 12")).to_have_attribute("href", "/projects/12")
    expect(page.locator(".project-card").last).to_contain_text("AnimalsProject 12 · 240 labels")
    service.projects = []
    page = open_page("/")
    expect(page.locator("#projects")).to_contain_text("No project is connected yet")
    expect(open_page("/projects/99", expected="404").locator("h1")).to_have_text("There is no such project here")
