"""How soon the dashboard shows something, and how it answers, at 1,000 and 100,000 points.

Before made-up answers (`tests/browser/fake_service.py`), so that what is measured is the pages themselves: a browser
with an empty cache opens the dashboard, scrolls to the map, drags and zooms it, and changes its colours. Chromium draws
WebGL by the processor here, which is slower than any graphics chip. What a repaint takes of the processor is hardly
changed by what else runs; the other times are.

python -m benchmarks.dashboard [--times 5] [--points 1000,100000]
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "browser"))

from fake_service import FakeService, map_of, running  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "dashboard.json"
SWITCHES = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --use-gl=angle --use-angle=swiftshader --enable-unsafe-swiftshader"
)
POINTS = "1000,100000"
N_REPAINTS = 20

PAINTS = """() => Object.fromEntries([...performance.getEntriesByType('paint'), ...performance.getEntriesByType('mark')]
  .map((entry) => [entry.name, entry.startTime]))"""
# Times between frames while something goes on: what a person sees as smooth or not.
FRAMES = """() => { window.frames_ms = []; let last = performance.now(); window.watching = true;
  const step = (now) => { window.frames_ms.push(now - last); last = now;
    if (window.watching) requestAnimationFrame(step); };
  requestAnimationFrame(step); }"""
WATCHED = "() => { window.watching = false; return window.frames_ms.slice(1); }"
# From a change of the colours until the frame after it is painted.
RECOLOUR = """() => new Promise((done) => { const chooser = document.getElementById('map-mode');
  const start = performance.now();
  chooser.value = 'uncertainty'; chooser.dispatchEvent(new Event('change'));
  requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now() - start))); })"""

# Moves the map by a key and waits until all of it is painted, n times; milliseconds of each.
REPAINTS = """async (n) => { const canvas = document.querySelector('canvas');
  const gl = canvas.getContext('webgl2'), took = [];
  for (let i = 0; i < n; i++) { const start = performance.now();
    canvas.dispatchEvent(new KeyboardEvent('keydown', { key: i % 2 ? 'ArrowLeft' : 'ArrowRight' }));
    await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
    gl.readPixels(0, 0, 1, 1, gl.RGBA, gl.UNSIGNED_BYTE, new Uint8Array(4));
    took.push(performance.now() - start); }
  return took; }"""


def processor_s(browser: Browser) -> float:
    """What all processes of the browser have used of the processor so far."""
    session = browser.new_browser_cdp_session()
    told = session.send("SystemInfo.getProcessInfo")
    session.detach()
    return float(sum(process["cpuTime"] for process in told["processInfo"]))


def wait_until(page: Page, condition: str) -> None:
    """Asks until it is so: the page's Content-Security-Policy forbids what `wait_for_function` does."""
    for _ in range(600):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(50)
    raise TimeoutError(condition)


def measure(browser: Browser, service: FakeService, n_points: int) -> dict[str, float]:
    """One visit with an empty cache; times in milliseconds."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.goto(service.url + "/projects/3")
    wait_until(page, "performance.getEntriesByName('drawn').length > 0")
    wait_until(page, "document.querySelector('#curve svg') !== null")
    page.locator("#map").scroll_into_view_if_needed()
    wait_until(page, "performance.getEntriesByName('map-ready').length > 0")
    wait_until(page, "document.querySelector('canvas').width > 300")
    page.wait_for_timeout(300)
    marks = page.evaluate(PAINTS)
    box = page.locator("canvas").bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.evaluate(FRAMES)
    page.mouse.move(x, y)
    page.mouse.down()
    for i in range(40):
        page.mouse.move(x + 4 * i, y + 2 * i)
    page.mouse.up()
    page.locator("canvas").focus()
    for _ in range(10):
        page.mouse.wheel(0, -120)
    frames = page.evaluate(WATCHED)
    recolour = page.evaluate(RECOLOUR)
    page.wait_for_timeout(300)
    used = processor_s(browser)
    repaints = page.evaluate(REPAINTS, N_REPAINTS)
    used = processor_s(browser) - used
    context.close()
    return {
        "first_contentful_paint_ms": marks["first-contentful-paint"],
        "figures_and_window_drawn_ms": marks["drawn"],
        "map_ready_ms": marks["map-ready"],
        "frame_median_ms": statistics.median(frames),
        "frame_95th_ms": sorted(frames)[int(0.95 * (len(frames) - 1))],
        "recolour_ms": recolour,
        "repaint_ms": statistics.median(repaints),
        "repaint_processor_ms": 1000 * used / N_REPAINTS,
        "points": n_points,
    }


def main(arguments: list[str] | None = None) -> None:
    """Measures, prints the medians, and writes them down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--points", default=POINTS)
    options = parser.parse_args(arguments)
    times, counts = options.times, [int(n) for n in options.points.split(",")]
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("error: no Chromium on the PATH; install Debian's package chromium")
    rows: list[dict[str, Any]] = []
    with sync_playwright() as playwright, running(FakeService()) as service:
        browser = playwright.chromium.launch(executable_path=chromium, args=SWITCHES.split())
        for n_points in counts:
            service.map = map_of(n_points)
            visits = [measure(browser, service, n_points) for _ in range(times)]
            rows.append({name: round(statistics.median(visit[name] for visit in visits), 1) for name in visits[0]})
        browser.close()
    for row in rows:
        print(f"{int(row.pop('points')):>7,} points  " + "  ".join(f"{name} {value:g}" for name, value in row.items()))
    RESULTS.write_text(json.dumps({"times": times, "rows": dict(zip(map(str, counts), rows, strict=True))}, indent=1))


if __name__ == "__main__":
    main()
