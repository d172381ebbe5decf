"""The web page in a real browser when things go wrong: cancelling, errors, lost connections; and its layout and keyboard use.

``browser.py`` finds the browser.
"""

from __future__ import annotations

import io
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from unmask.serving.access import Access, plain_keys
from unmask.serving.engine import Limits
from unmask.serving.server import Server, listen
from unmask.serving.service import Service

from ..pages import ROOT, commands
from ..warm import warm
from .on_page import Page, Visit, ask, done, expect, freed, panel, picture, same, standing_still


def test_escape_cancels_and_frees_the_server(page: Page, server: Server, model: Any) -> None:
    draw = panel(page, "Draw")
    draw.get_by_role("switch", name="Plan").uncheck()
    with standing_still(model, after=3):
        ask(draw, "a cat", steps=64)
        expect(draw.locator(".step")).to_have_text("Step 3 of 64")
        page.keyboard.press("Escape")
        expect(draw.locator(".line")).to_have_text("Cancelled. Last status: Generating image: step 3 of 64.")
    freed(server)
    ask(draw, "a cat", steps=3)
    done(draw)


def test_two_tabs_at_once_get_their_own_results(visits: Callable[..., Visit], server: Server, model: Any) -> None:
    visit = visits(server.url)
    both = {3: visit.page(), 4: visit.page()}
    for seed, page in both.items():
        ask(panel(page, "Draw"), "a red car left of a blue cat", seed=seed, steps=8)
    for seed, page in both.items():
        done(page.locator("#panel-draw"))
        alone = model.generate("a red car left of a blue cat", seed=seed, settings=["schedule.steps=8"])[0].image
        assert same(picture(page.locator("#panel-draw").get_by_role("link", name="Download")), alone)


def test_a_wide_image_keeps_its_aspect_ratio(page: Page) -> None:
    look = panel(page, "Ground")
    wide = io.BytesIO()
    Image.new("RGB", (300, 100), "white").save(wide, "PNG")
    look.get_by_label("Choose an image").set_input_files(
        {"name": "wide.png", "mimeType": "image/png", "buffer": wide.getvalue()}
    )
    expect(look.locator(".hint")).to_be_hidden()
    box = look.locator(".frame").bounding_box()
    assert box and box["width"] / box["height"] == pytest.approx(3, rel=0.02)


def test_a_full_queue_and_an_invalid_prompt_show_an_error(visits: Callable[..., Visit], model: Any) -> None:
    """A server with one running and one queued request, both taken."""
    with Server(Service(model, name="mini", limits=Limits(running=1, queued=1)), listen("127.0.0.1", 0)) as small:
        visit = visits(small.url)
        visit.expected = "status of 4(29|00)"
        busy, draw = panel(visit.page(), "Draw"), panel(visit.page(), "Draw")
        busy.get_by_role("switch", name="Plan").uncheck()
        with standing_still(model, after=2):
            ask(busy, "a cat", n=2)
            expect(busy.locator(".step")).to_contain_text("Step 2")
            expect(busy.locator(".picker .thumb")).to_have_count(2)
            ask(draw, "a dog", steps=3)
            expect(draw.locator(".error")).to_contain_text("Try again in")
        done(busy)
        draw.get_by_role("button", name="Try again").click()
        done(draw)
        ask(draw, "word " * 500)
        expect(draw.locator(".error")).to_contain_text("longer than 400 tokens; shorten it")


def test_the_api_key_is_requested_once(visits: Callable[..., Visit], model: Any) -> None:
    with Server(
        Service(model, name="mini"), listen("127.0.0.1", 0), access=Access(keys=plain_keys(["opensesame"]))
    ) as locked:
        page = visits(locked.url).locked()
        page.get_by_label("stored in this tab only").fill("opensesame")
        page.get_by_role("button", name="Use key").click()
        draw = panel(page, "Draw")
        ask(draw, "a cat", steps=3)
        done(draw)


def test_a_key_that_was_dismissed_or_wrong_is_asked_for_again(visits: Callable[..., Visit], model: Any) -> None:
    with Server(
        Service(model, name="mini"), listen("127.0.0.1", 0), access=Access(keys=plain_keys(["open"]))
    ) as locked:
        page = visits(locked.url).locked()
        page.get_by_label("stored in this tab only").press("Escape")
        expect(page.get_by_role("alert")).to_contain_text("This server requires a valid API key.")
        page.get_by_role("button", name="API key", exact=True).click()
        page.get_by_label("stored in this tab only").fill("shut")
        page.keyboard.press("Enter")
        page.get_by_label("did not accept this key").fill("open")
        page.keyboard.press("Enter")
        expect(page.get_by_role("tab", name="Draw")).to_be_visible()


def test_a_mistake_disappears_when_it_is_mended(page: Page) -> None:
    draw = panel(page, "Draw")
    draw.get_by_role("button", name="Draw").click()
    expect(draw.locator(".error")).to_contain_text("Enter a prompt.")
    draw.locator("textarea").first.fill("a cat")
    expect(draw.locator(".error")).to_be_hidden()


def test_a_lost_connection_is_shown_and_can_be_retried(visits: Callable[..., Visit], folder: Path) -> None:
    """The server is killed during a stream and comes back at the same address."""

    (command,) = commands((ROOT / "docs" / "page.md").read_text())
    stuck = """
import itertools, threading
from unmask.models.elastic import Elastic
forward, count = Elastic.forward, itertools.count()
def stopping(self, *args, **more):
    if next(count) >= 5:
        threading.Event().wait()
    return forward(self, *args, **more)
Elastic.forward = stopping
"""

    def serve(port: int, before: str = "") -> tuple[subprocess.Popen[str], str]:
        program = f"{before}\nimport sys; from unmask.cli.main import main; sys.exit(main())"
        words = [warm(), "-c", program, *shlex.split(command)[1:], "--port", str(port)]
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert process.stdout
        return process, process.stdout.readline().strip()

    first, url = serve(0, stuck)
    second: subprocess.Popen[str] | None = None
    try:
        visit = visits(url)
        visit.expected = "ERR_|net::"
        page = visit.page()
        draw = panel(page, "Draw")
        draw.get_by_role("switch", name="Plan").uncheck()
        ask(draw, "a cat", steps=16)
        expect(draw.locator(".step")).to_have_text("Step 5 of 16")
        first.kill()
        expect(draw.locator(".error")).to_contain_text("connection was lost")
        expect(page.locator("#server")).to_have_text("Connection lost")
        page.screenshot(path=folder / "lost.png")
        second, _ = serve(int(url.rpartition(":")[2]))
        expect(page.locator("#server")).to_have_text("mini")
        draw.locator("input[name=steps]").fill("3")
        draw.get_by_role("button", name="Try again").click()
        done(draw)
    finally:
        for process in filter(None, (first, second)):
            process.kill()
            process.wait()


def test_no_horizontal_scrolling_on_a_phone_in_dark_mode(
    visits: Callable[..., Visit], server: Server, folder: Path
) -> None:
    page = visits(server.url, size=(375, 812), dark=True, still=True).page()
    ask(panel(page, "Draw"), "an elephant above a pink umbrella", steps=6, n=2)
    done(page.locator("#panel-draw"))
    page.locator("#panel-draw").get_by_role("button", name="Image 2").click()
    for name in ("Draw", "Ask", "Ground", "Edit", "Chat"):
        panel(page, name)
        assert page.evaluate("document.documentElement.scrollWidth") <= 375, name
    panel(page, "Draw")
    page.screenshot(path=folder / "phone.png")
    page.get_by_role("button", name="Light").click()
    assert page.evaluate("document.documentElement.dataset.theme") == "light"


def test_keyboard_use(page: Page) -> None:
    page.get_by_role("tab", name="Draw").focus()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("tab", name="Ask")).to_be_focused()
    expect(page.get_by_role("tabpanel")).to_have_attribute("aria-labelledby", "tab-ask")
    for _ in range(2):
        page.keyboard.press("Tab")
    expect(page.get_by_role("textbox", name="Question")).to_be_focused()
    unnamed = page.evaluate(
        """[...document.querySelectorAll("button, input, textarea, select")].filter(e => !e.hidden && e.id !== "theme"
        && !(e.labels?.length || e.getAttribute("aria-label") || e.textContent.trim())).map(e => e.outerHTML)"""
    )
    assert unnamed == []
    assert page.locator("#announcement").get_attribute("aria-live") == "polite"
