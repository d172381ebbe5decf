"""The web page in a real browser against ``mini``: every task, the errors, and the layout.

``browser.py`` finds the browser; UNMASK_NEEDS_BROWSER=1 makes a missing one a failure. UNMASK_SCREENSHOTS: folder for screenshots.
"""

from __future__ import annotations

import base64
import io
import itertools
import os
import re
import shlex
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import unmask
from unmask.serving.engine import Limits
from unmask.serving.server import Server, listen
from unmask.serving.service import Service

NEEDED = os.environ.get("UNMASK_NEEDS_BROWSER") == "1"
pytest.importorskip("fastapi", reason="the server needs unmask[serve]")
if not NEEDED:
    pytest.importorskip("playwright.sync_api")
from playwright.sync_api import Browser, Locator, Page, expect  # noqa: E402

from ..pages import ROOT, commands  # noqa: E402
from .browser import MISSING, PATIENCE, Visit, chromium, launched, panel, picture, same, watch  # noqa: E402

if not chromium():
    pytest.fail(MISSING, pytrace=False) if NEEDED else pytest.skip(MISSING, allow_module_level=True)

WEB = Path(unmask.__file__).parent / "serving" / "web"
expect.set_options(timeout=PATIENCE)


@pytest.fixture(scope="module")
def model() -> Any:
    return unmask.load("mini")


@pytest.fixture(scope="module")
def server(model: Any) -> Iterator[Server]:
    with Server(Service(model, name="mini"), listen("127.0.0.1", 0)) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launched() as found:
        yield found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    named = os.environ.get("UNMASK_SCREENSHOTS")
    place = Path(named) if named else tmp_path_factory.mktemp("screenshots")
    place.mkdir(parents=True, exist_ok=True)
    return place


@pytest.fixture
def visits(browser: Browser) -> Iterator[Callable[..., Visit]]:
    """Browser windows; checked at the end: no console errors, and no requests to other hosts."""
    made: list[Visit] = []

    def visit(url: str, *, size: tuple[int, int] = (1360, 900), dark: bool = False, still: bool = False) -> Visit:
        context = browser.new_context(
            viewport={"width": size[0], "height": size[1]},
            color_scheme="dark" if dark else "light",
            reduced_motion="reduce" if still else "no-preference",
        )
        made.append(Visit(context=context, url=url))
        return made[-1]

    yield visit
    for one in made:
        one.context.close()
        assert [u for u in one.asked if not u.startswith((one.url, "data:", "blob:"))] == []
        assert [c for c in one.complaints if not (one.expected and re.search(one.expected, c))] == []
    assert all(one.asked for one in made)


@pytest.fixture
def page(visits: Callable[..., Visit], server: Server) -> Page:
    return visits(server.url).page()


@contextmanager
def standing_still(model: Any, after: int) -> Iterator[None]:
    """Stop the model after some forwards until the block is left, so that a job is certainly running."""
    go_on, count = threading.Event(), itertools.count()

    def wait(*_: Any) -> None:
        if next(count) >= after:
            go_on.wait()

    hook = model.parts.net.register_forward_pre_hook(wait)
    try:
        yield
    finally:
        hook.remove()
        go_on.set()


def freed(server: Server) -> None:
    """Wait until no call is running."""
    changed = server.service._changed
    with changed:
        assert changed.wait_for(lambda: not server.service.under_way, 120)


def ask(place: Locator, prompt: str, **settings: int) -> None:
    """Fill in a task and run it with the keyboard."""
    for name, value in settings.items():
        place.locator(f"input[name={name}]").fill(str(value))
    place.locator("textarea").first.fill(prompt)
    place.page.keyboard.press("Control+Enter")


def done(place: Locator, said: str = "Done") -> None:
    expect(place.locator(".line")).to_contain_text(said)
    expect(place.locator(".error")).to_be_hidden()


def test_draw_shows_the_canvas_unmask_and_replays_it(page: Page, model: Any, folder: Path) -> None:
    draw = panel(page, "Draw")
    page.screenshot(path=folder / "empty.png")
    watch(draw)
    ask(draw, "two red apples left of a cat", seed=5, steps=12)
    done(draw)
    seen = page.evaluate("window.seen")
    assert seen[0] == 64 and seen[-1] == 0 and len(set(seen)) >= 12, "the tokens came in steps"
    assert int(page.evaluate("document.body.dataset.firstFrame")) > 0
    assert same(
        picture(draw.get_by_role("link", name="Download")),
        model.generate("two red apples left of a cat", seed=5, settings=["schedule.steps=12"])[0].image,
    )
    slider = draw.get_by_role("slider", name="Step")
    slider.press("Home")
    assert draw.locator("canvas[role=img]").get_attribute("data-masked") == "64"
    for _ in range(6):
        slider.press("ArrowRight")
    expect(draw.locator(".step")).to_have_text("Step 6 of 12")
    assert 0 < int(draw.locator("canvas[role=img]").get_attribute("data-masked") or 0) < 64
    draw.get_by_role("button", name="Replay steps").click()
    expect(draw.locator(".step")).to_have_text("Finished")
    page.screenshot(path=folder / "draw.png")


def test_timeline_shows_plans_and_attempts(page: Page, model: Any, folder: Path) -> None:
    draw = panel(page, "Draw")
    draw.get_by_role("switch", name="Plan").check()
    ask(draw, "a dog left of a cat", seed=2, reflect=2)
    done(draw)
    rounds = model.generate("a dog left of a cat", seed=2, plan=True, attempts=2)[0].attempts
    cards = draw.locator(".card")
    expect(cards).to_have_count(len(rounds))
    for card, tried in zip(cards.all(), rounds, strict=True):
        expect(card.locator("q")).to_have_text(tried.critique)
        expect(card.locator(".verdict")).to_contain_text("✓ accepted" if tried.accepted else "not accepted")
        expect(card.locator(".mini i")).to_have_count(len(tried.plan.objects))
    cards.first.click()
    assert "Attempt 2" not in draw.locator(".step").inner_text()
    page.screenshot(path=folder / "timeline.png", full_page=True)


def test_a_layout_is_drawn_named_and_sent(page: Page) -> None:
    draw = panel(page, "Draw")
    space = draw.locator(".boxes.editable").bounding_box()
    assert space
    page.mouse.move(space["x"] + 10, space["y"] + 20)
    page.mouse.down()
    page.mouse.move(space["x"] + space["width"] / 2, space["y"] + space["height"] / 2, steps=4)
    page.mouse.up()
    page.keyboard.type("red apple")
    draw.get_by_role("button", name="Add box").click()
    ask(draw, "a red apple and a dog", steps=4)
    expect(draw.locator(".error")).to_contain_text("Box 2 has no label")
    draw.get_by_label("Label of box 2").fill("dog")
    draw.get_by_role("button", name="dog 2").press("ArrowRight")
    with page.expect_request("**/generations") as sent:
        draw.get_by_role("button", name="Draw").click()
    boxes = sent.value.post_data_json["boxes"]
    assert [b["phrase"] for b in boxes] == ["red apple", "dog"]
    assert boxes[0]["box"][2:] == [pytest.approx(0.5, abs=0.01)] * 2 and boxes[1]["box"][0] == pytest.approx(0.18)
    done(draw)
    draw.get_by_role("button", name="1 red apple").click()
    expect(draw.locator(".box.chosen")).to_have_count(1)


def test_ask_streams_text_and_gives_the_models_answer(page: Page, model: Any, folder: Path) -> None:
    look = panel(page, "Ask")
    look.get_by_label("Example image: apples").click()
    ask(look, "how many apples are there?", seed=1)
    done(look)
    expected = model.ask(WEB / "example-apples.png", "how many apples are there?", seed=1).text
    expect(look.locator(".words .text")).to_have_text(expected)
    look.get_by_role("slider", name="Step").press("Home")
    assert look.locator(".words .open").count() >= 1
    page.screenshot(path=folder / "ask.png")


def test_ground_boxes_can_be_picked(page: Page, model: Any, folder: Path) -> None:
    look = panel(page, "Ground")
    look.get_by_label("Example image: animals").click()
    ask(look, "the dog\nthe umbrella")
    done(look, "2 boxes")
    (dog, _) = model.ground(WEB / "example-animals.png", ["the dog", "the umbrella"]).boxes
    style = look.locator(".box").first.get_attribute("style") or ""
    assert float(re.findall(r"left: ([\d.]+)%", style)[0]) == pytest.approx(dog.x1 / 128 * 100, abs=0.01)
    look.get_by_role("button", name="2 the umbrella").click()
    expect(look.locator(".box.chosen")).to_have_text("2 the umbrella")
    page.screenshot(path=folder / "ground.png")


def test_edit_by_instruction_and_reuse_the_result(page: Page) -> None:
    change = panel(page, "Edit")
    change.get_by_label("Example image: street").click()
    ask(change, "make the background sand", steps=6)
    done(change)
    change.get_by_role("button", name="Show original").click()
    change.locator(".use").get_by_role("button", name="Ask").click()
    look = page.locator("#panel-ask")
    expect(look).to_be_visible()
    ask(look, "is there a car?")
    done(look)
    assert look.locator(".words .text").inner_text()


def test_an_edit_with_plan_and_two_attempts(page: Page, model: Any, folder: Path) -> None:
    change = panel(page, "Edit")
    change.get_by_label("Example image: street").click()
    change.get_by_role("switch", name="Plan").check()
    ask(change, "make the background sand", seed=3, steps=4, reflect=2)
    done(change)
    street = WEB / "example-street.png"
    more = {"seed": 3, "plan": True, "attempts": 2, "settings": ["schedule.steps=4"]}
    edited = model.edit(street, "make the background sand", **more)[0]
    assert same(picture(change.get_by_role("link", name="Download")), edited.image)
    cards = change.locator(".card")
    expect(cards).to_have_count(len(edited.attempts))
    for card, tried in zip(cards.all(), edited.attempts, strict=True):
        expect(card.locator("q")).to_have_text(tried.critique)
        expect(card.locator(".mini i")).to_have_count(len(tried.plan.objects))
        expect(card.locator("img")).to_be_visible()
    page.screenshot(path=folder / "edit.png", full_page=True)


def test_only_the_painted_region_is_regenerated(page: Page, model: Any, folder: Path) -> None:
    change = panel(page, "Edit")
    change.get_by_label("Example image: street").click()
    change.get_by_role("button", name="Paint mask").click()
    brush = change.locator(".brush")
    box = brush.bounding_box()
    assert box
    page.mouse.move(box["x"] + 0.2 * box["width"], box["y"] + 0.7 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.4 * box["width"], box["y"] + 0.7 * box["height"], steps=4)
    page.mouse.up()
    brush.press(" ")
    page.screenshot(path=folder / "brush.png")
    url = brush.evaluate("canvas => canvas.toDataURL()")
    painted = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).getchannel("A")
    assert painted.size == (128, 128) and painted.getextrema() == (0, 255)
    ask(change, "a blue bus and a dog", seed=4, steps=6)
    done(change)
    own = model.infill(
        WEB / "example-street.png", painted, prompt="a blue bus and a dog", seed=4, settings=["schedule.steps=6"]
    )
    assert same(picture(change.get_by_role("link", name="Download")), own.image)


def test_chat_draws_and_remembers(page: Page, folder: Path) -> None:
    talk = panel(page, "Chat")
    for said in ("draw a red apple", "what colour is the apple?"):
        ask(talk, said, seed=1)
        expect(talk.get_by_role("button", name="Cancel")).to_be_visible()
        expect(talk.get_by_role("button", name="Cancel")).to_be_hidden()
        done(talk)
    answers = talk.locator(".log .assistant")
    expect(answers).to_have_count(2)
    expect(answers.first.locator("canvas")).to_be_visible()
    assert answers.last.locator(".text").inner_text()
    page.screenshot(path=folder / "chat.png")


def test_gallery_and_links_reproduce_a_result(visits: Callable[..., Visit], server: Server) -> None:
    visit = visits(server.url)
    page = visit.page()
    draw = panel(page, "Draw")
    ask(draw, "<img src=x onerror=alert(1)> three dogs", steps=4)
    done(draw)
    first = picture(draw.get_by_role("link", name="Download"))
    shot = page.locator(".shot").first
    expect(shot).to_contain_text("<img src=x")
    shot.click()
    page.get_by_role("dialog").get_by_role("button", name="Reuse settings").click()
    page.keyboard.press("Control+Enter")
    expect(page.locator(".shot")).to_have_count(2)
    done(draw)
    assert same(first, picture(draw.get_by_role("link", name="Download")))
    seed = draw.locator("input[name=seed]").input_value()
    other = visit.page(
        f"#draw?prompt=three+dogs&seed={seed}&steps=4&settings=%5B%22token_sampler.temperature%3D0%22%5D"
    )
    expect(other.get_by_role("textbox", name="Prompt")).to_have_value("three dogs")
    assert other.locator("#panel-draw input[name=seed]").input_value() == seed
    assert other.locator("#panel-draw input[name='token_sampler.temperature']").input_value() == "0"
    other.keyboard.press("Control+Enter")
    done(other.locator("#panel-draw"))
    expect(visit.page("#constructor?prompt=a").locator("#panel-draw")).to_be_visible()  # no such task: the first tab


def test_escape_cancels_and_frees_the_server(page: Page, server: Server, model: Any) -> None:
    draw = panel(page, "Draw")
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


def test_invalid_images_are_refused_before_they_are_sent(visits: Callable[..., Visit], server: Server) -> None:
    visit = visits(server.url)
    look = panel(visit.page(), "Ask")
    before = len(visit.asked)
    choose = look.get_by_label("Choose an image")
    choose.set_input_files({"name": "big.png", "mimeType": "image/png", "buffer": b"\x89PNG" + bytes(11 * 2**20)})
    expect(look.locator(".error")).to_contain_text("big.png is 11.0 MB. The limit is 10 MB")
    choose.set_input_files({"name": "note.txt", "mimeType": "text/plain", "buffer": b"hello"})
    expect(look.locator(".error")).to_contain_text("note.txt is not a supported image")
    choose.set_input_files({"name": "bad.png", "mimeType": "image/png", "buffer": b"\x89PNG, not really"})
    expect(look.locator(".error")).to_contain_text("bad.png cannot be decoded")
    ask(look, "what is this?")
    expect(look.locator(".error")).to_contain_text("No image yet")
    assert len(visit.asked) == before


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
    with Server(Service(model, name="mini", limits=Limits(live=1, waiting=1)), listen("127.0.0.1", 0)) as small:
        visit = visits(small.url)
        visit.expected = "status of 4(29|00)"
        busy, draw = panel(visit.page(), "Draw"), panel(visit.page(), "Draw")
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
    with Server(Service(model, name="mini"), listen("127.0.0.1", 0), keys=["opensesame"]) as locked:
        visit = visits(locked.url)
        visit.expected = "status of 401"
        page = visit.context.new_page()
        page.on("request", lambda request: visit.asked.append(request.url))
        page.goto(locked.url)
        page.get_by_label("stored in this tab only").fill("opensesame")
        page.get_by_role("button", name="Use key").click()
        draw = panel(page, "Draw")
        ask(draw, "a cat", steps=3)
        done(draw)


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
        words = [sys.executable, "-c", program, *shlex.split(command)[1:], "--port", str(port)]
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
