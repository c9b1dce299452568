"""What the open dashboard says while something is away, and that it goes on by itself when it is there again."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from chromium import CHROMIUM, PATIENCE_S, patient_chromium
from fault_stack import FaultProject, FaultStack, await_well
from playwright.sync_api import Locator, Page, expect

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the PATH; install Debian's package chromium")

LONGEST_RETRY_S = 60
"""What only a person can cure is tried again after so long, at most."""


@pytest.fixture
def page(fault_stack: FaultStack, project: FaultProject) -> Iterator[Page]:
    """The open dashboard, which is never reloaded and in which no script fails."""
    facts, problems = fault_stack.stack.facts, []
    with patient_chromium() as chromium:
        credentials = {"username": facts["backend_user"], "password": facts["backend_password"]}
        context = chromium.new_context(http_credentials=credentials)  # type: ignore[arg-type]
        page = context.new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(f"{facts['backend_url']}/projects/{project.id}")
        expect(page.locator("#live")).to_contain_text("Live")
        page.evaluate("() => { window.opened = 'once'; }")
        yield page
        assert page.evaluate("window.opened") == "once"
    assert problems == []


def labels_used(page: Page) -> Locator:
    return page.locator("#figures .figure").nth(1).locator(".value")


def test_the_open_dashboard_says_what_is_away_and_goes_on_by_itself(
    fault_stack: FaultStack, project: FaultProject, page: Page
) -> None:
    """The worker, Redis, Label Studio's consent, the service itself, one after the other, while labels come in."""
    now, banner = page.locator("#now"), page.locator("#banner")
    expect(labels_used(page)).to_have_text(str(len(project.given)))
    expect(now).to_contain_text("One worker is ready")

    fault_stack.worker.stop()
    expect(now).to_contain_text("No worker is running: labels are kept")
    project.label(1)
    expect(now).to_contain_text("A new version is waiting its turn")
    fault_stack.worker.start()
    expect(now).not_to_contain_text("No worker is running")
    expect(labels_used(page)).to_have_text(str(len(project.given)))

    fault_stack.redis.stop()
    expect(now).to_contain_text("Redis does not answer")
    expect(page.locator("#window li")).not_to_have_count(0)
    fault_stack.redis.start()
    expect(now).not_to_contain_text("Redis does not answer")
    expect(now).to_contain_text("Model up to date")

    fault_stack.label_studio_proxy.status = 401
    try:
        project.label(1)
        expect(now.locator(".troubles")).to_contain_text("401")
    finally:
        fault_stack.label_studio_proxy.status = None
    expect(labels_used(page)).to_have_text(str(len(project.given)), timeout=1000 * (LONGEST_RETRY_S + PATIENCE_S))
    expect(now).not_to_contain_text("401")

    fault_stack.web.stop()
    expect(banner).to_contain_text("The service does not answer. What you see is from")
    expect(page.locator("#window li")).not_to_have_count(0)
    fault_stack.web.start()
    expect(banner).to_be_hidden()
    project.label(1)
    expect(labels_used(page)).to_have_text(str(len(project.given)))
    await_well(fault_stack, [project])
