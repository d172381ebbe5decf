"""The page of a talk in a browser: the picture follows what is typed and the arrow keys."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unmask.data.world import puppet
from unmask.serving.access import Access, plain_keys
from unmask.serving.server import Server, listen
from unmask.serving.talks import Talks

from .on_page import AXE, Page, Visit, expect, violations
from .served import until
from .talking import Scripted


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(Talks(Scripted(seconds=0.1), name="face", most=1), listen("127.0.0.1", 0)) as running:
        yield running


@pytest.fixture
def page(visits: Callable[..., Visit], server: Server) -> Page:
    return visits(server.url).page(tab="")


def shown(page: Page) -> puppet.Look:
    """What the canvas shows."""
    read = "c => [...c.getContext('2d').getImageData(0, 0, 48, 48).data]"
    pixels = np.array(page.locator("canvas.face").evaluate(read), np.uint8).reshape(48, 48, 4)[..., :3]
    return next(look for look in puppet.looks() if (np.asarray(puppet.frame(look)) == pixels).all())


def begun(page: Page) -> None:
    page.get_by_role("button", name="Start").click()
    expect(page.locator("body")).to_have_attribute("data-chunk", re.compile(r"\d"))


def followed(page: Page, change: int) -> None:
    expect(page.locator("body")).to_have_attribute("data-change", str(change))


def test_it_draws_what_is_typed_and_where_it_is_moved(page: Page, server: Server, folder: Path) -> None:
    page.get_by_label("Face", exact=True).select_option("3")
    begun(page)
    page.get_by_role("button", name="Left").click()
    followed(page, 1)
    expect(page.locator(".line")).to_contain_text("followed in")
    page.get_by_role("heading").click()  # away from the text, where the arrow keys move the cursor
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    followed(page, 3)
    page.get_by_label("Say").press_sequentially("ff")
    page.get_by_label("Say").press("ArrowLeft")
    followed(page, 5)
    page.screenshot(path=folder / "talk.png")
    page.wait_for_timeout(300)  # silence again
    look = shown(page)
    assert (look.face, look.place, look.mouth) == (3, 2, 0)
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_role("button", name="Start")).to_be_visible()
    expect(page.locator("body")).to_have_attribute("data-talking", "false")
    until(lambda: not server.service.under_way)
    expect(page.locator(".error")).to_be_hidden()


def test_another_talk_than_the_server_takes_is_refused_on_the_page(
    visits: Callable[..., Visit], server: Server
) -> None:
    first, second = visits(server.url), visits(server.url)
    second.expected = "429"
    begun(page := first.page(tab=""))
    other = second.page(tab="")
    other.get_by_role("button", name="Start").click()
    expect(other.get_by_role("alert")).to_contain_text("queue is full")
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_role("button", name="Start")).to_be_visible()


def test_a_key_is_asked_for(visits: Callable[..., Visit]) -> None:
    talks, access = Talks(Scripted(seconds=0.1), name="face"), Access(keys=plain_keys(["open"]))
    with Server(talks, listen("127.0.0.1", 0), access=access) as locked:
        page = visits(locked.url).locked()
        page.get_by_label("stored in this tab only").fill("open")
        page.keyboard.press("Enter")
        begun(page)
        page.get_by_role("button", name="Left").click()
        followed(page, 1)
        page.get_by_role("button", name="Stop").click()


@pytest.mark.skipif(not AXE.exists(), reason="no axe-core: make axe fetches it from npm")
@pytest.mark.parametrize(("size", "dark"), [((1360, 900), False), ((390, 844), True)])
def test_everybody_can_use_the_page(visits: Callable[..., Visit], server: Server, size: Any, dark: bool) -> None:
    page = visits(server.url, size=size, dark=dark, still=True).page(tab="")
    assert violations(page) == []
    begun(page)
    assert violations(page) == [], "while it talks"
    assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
    page.get_by_role("button", name="Stop").click()
