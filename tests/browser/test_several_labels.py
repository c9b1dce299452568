"""Images with several labels in the real Label Studio: two keys in its editor, none for none of these."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from live import LabelingProject, data_uri
from PIL import Image
from playwright.sync_api import Page
from test_labeling import CHROMIUM, SCREENSHOTS, LabelStream, browser, page  # noqa: F401

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the PATH; install Debian's package chromium")

CONFIG = (
    '<View><Header value="Which colours are there?"/><Image name="photo" value="$picture"/>'
    '<Choices name="colours" toName="photo" choice="multiple" showInLine="true">'
    '<Choice value="Red" alias="red" hotkey="r"/><Choice value="green" hotkey="g"/></Choices>'
    '<TextArea name="remark" toName="photo" rows="1"/></View>'
)
KEYS = {"red": ("Red", "r"), "green": ("green", "g")}
SETS = ((), ("red",), ("green",), ("green", "red"))


def square(labels: Sequence[str], seed: int) -> Image.Image:
    """A noisy square with these colours in it."""
    pixels = np.random.default_rng(seed).integers(0, 80, (48, 48, 3), dtype=np.uint8)
    for channel, name in enumerate(("red", "green")):
        pixels[..., channel] += 160 * (name in labels)
    return Image.fromarray(pixels)


def colours_of(project: LabelingProject, task_id: int) -> tuple[str, ...]:
    """What is on a task's image, sorted."""
    data = project.stack.call("GET", f"/api/tasks/{task_id}/")["data"]["picture"]
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(data.partition(",")[2]))).convert("RGB"))
    means = pixels.reshape(-1, 3).mean(axis=0)
    return tuple(sorted(name for name, mean in zip(("red", "green"), means[:2], strict=True) if mean > 120))


def submit(stream: LabelStream, wanted: Sequence[str]) -> None:
    """Presses the key of each choice that is not as wanted (a pre-label may have made some), then Submit's."""
    for name, (shown, key) in KEYS.items():
        choice = stream.page.locator(f'label:has-text("{shown}") input').first
        for _ in range(20):
            if choice.is_checked() == (name in wanted):
                break
            stream.page.keyboard.press(key)
            stream.page.wait_for_timeout(250)
        assert choice.is_checked() == (name in wanted), f"the key {key} does not switch {name}"
    stream.page.keyboard.press("Control+Enter")


def test_sets_are_labeled_with_a_key_for_each_label(
    page: Page,  # noqa: F811
    make_project: Callable[..., LabelingProject],
) -> None:
    """Eight images through the editor, some with two keys and some with none; the model then tells the others."""
    pictures = [data_uri(square(SETS[number % 4], number)) for number in range(24)]
    project = make_project(pictures, config=CONFIG, image_field="picture", from_name="colours", to_name="photo")
    stream = LabelStream(page, project, {"Red": "r", "green": "g"})
    given: dict[int, tuple[str, ...]] = {}
    while len(given) < 8 or len(set(given.values())) < 4:
        n = len(given) + 1
        task_id = stream.await_task(n)
        given[task_id] = colours_of(project, task_id)
        if len(given[task_id]) == 2:
            SCREENSHOTS.mkdir(parents=True, exist_ok=True)
            page.screenshot(path=str(SCREENSHOTS / "several-labels.png"))
        submit(stream, given[task_id])
        deadline = time.monotonic() + 20
        while len(stream.served) <= n and time.monotonic() < deadline:
            page.wait_for_timeout(50)
        status = project.wait(lambda status, n=n: status["labels_used"] == n)
    assert status["kind"] == "model"
    assert status["ignored_labels"] == {}
    assert status["labels_by_class"] == {
        name: sum(name in labels for labels in given.values()) for name in ("red", "green")
    }
    told = {task["id"]: task for task in project.tasks()}
    for task_id, labels in given.items():
        (annotation,) = told[task_id]["annotations"]
        choices = [region["value"]["choices"] for region in annotation["result"] if region["type"] == "choices"]
        assert sorted(choices[0] if choices else []) == list(labels)
        assert bool(choices) == bool(labels), "without a choice Label Studio writes no region"
    predicted = {
        task["id"]: (item["result"], colours_of(project, task["id"]))
        for task in told.values()
        for item in task["predictions"]
        if item["model_version"] == status["model_version"] and task["id"] not in given
    }
    assert predicted
    right = [
        sorted(result[0]["value"]["choices"] if result else []) == list(labels) for result, labels in predicted.values()
    ]
    assert np.mean(right) > 0.7
    both = [result for result, labels in predicted.values() if len(labels) == 2 and result]
    assert all(set(result[0]["meta"]["confidence"]) == {"red", "green"} for result in both)
    asked = project.stack.call("GET", f"/api/projects/{project.id}/")
    assert asked["model_version"] == status["model_version"]
