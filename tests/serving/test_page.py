"""The web page in a real browser against ``mini``: every task, the gallery, and reproducing results.

``browser.py`` finds the browser. UNMASK_SCREENSHOTS: folder for screenshots.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from unmask.serving.server import Server

from .on_page import (
    AXE,
    WEB,
    Locator,
    Page,
    Visit,
    ask,
    done,
    expect,
    panel,
    picture,
    same,
    standing_still,
    violations,
    watch,
)


def test_draw_shows_the_canvas_unmask_and_replays_it(page: Page, model: Any, folder: Path) -> None:
    draw = panel(page, "Draw")
    page.screenshot(path=folder / "empty.png")
    watch(draw)
    draw.get_by_role("switch", name="Plan").uncheck()
    ask(draw, "two red apples left of a cat", seed=5, steps=12)
    done(draw)
    seen = page.evaluate("window.seen")
    assert seen[0] == 64 and seen[-1] == 0 and len(set(seen)) >= 12, "the tokens came in steps"
    assert int(page.evaluate("document.body.dataset.firstFrame")) > 0
    assert same(
        picture(draw.get_by_role("link", name="Download")),
        model.generate("two red apples left of a cat", seed=5, plan=False, settings=["schedule.steps=12"])[0].image,
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


def test_an_example_sends_its_prompt_and_image_alone(visits: Callable[..., Visit], server: Server) -> None:
    """So that test_page_examples.py can hold what a visitor gets."""
    visit = visits(server.url)
    visit.expected = "ERR_FAILED"
    page = visit.page()
    for tab, path in {
        "Draw": "images/generations",
        "Ask": "chat/completions",
        "Ground": "ground",
        "Edit": "images/edits",
    }.items():
        place = panel(page, tab)
        page.route(f"**/v1/{path}", lambda route: route.abort())
        for chip in place.get_by_role("group", name="Examples").get_by_role("button").all():
            chip.click()
            if tab != "Draw":
                expect(place.locator(".hint")).to_be_hidden()
            with page.expect_request(f"**/v1/{path}") as request:
                page.keyboard.press("Control+Enter")
            expect(place.locator(".primary")).to_be_enabled()
            sent = request.value
            if tab == "Edit":
                names = set(re.findall(r'name="(\w+)"', (sent.post_data_buffer or b"").decode("latin-1")))
                assert names == {"image", "prompt", "seed", "stream", "trace"}
                continue
            body, how = sent.post_data_json, {"seed", "stream", "trace"}
            wanted = {
                "Draw": {"prompt", "response_format", *how},
                "Ask": {"model", "messages", *how},
                "Ground": {"image", "phrases", "seed"},
            }
            assert set(body) == wanted[tab], chip.inner_text()


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
    draw.get_by_role("button", name="Box 2 dog").press("ArrowRight")
    with page.expect_request("**/generations") as sent:
        draw.get_by_role("button", name="Draw").click()
    boxes = sent.value.post_data_json["boxes"]
    assert [b["phrase"] for b in boxes] == ["red apple", "dog"]
    assert boxes[0]["box"][2:] == [pytest.approx(0.5, abs=0.01)] * 2 and boxes[1]["box"][0] == pytest.approx(0.18)
    done(draw)
    draw.get_by_role("button", name="1 red apple", exact=True).click()
    expect(draw.locator(".box.chosen")).to_have_count(1)


def test_ask_streams_text_and_gives_the_models_answer(page: Page, model: Any, folder: Path) -> None:
    look = panel(page, "Ask")
    look.get_by_label("Example image: cups").click()
    ask(look, "how many cups are there?", seed=1)
    done(look)
    expected = model.ask(WEB / "example-cups.png", "how many cups are there?", seed=1).text
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
    look.get_by_role("button", name="2 the umbrella", exact=True).click()
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
    ask(change, "a bicycle and a dog", seed=4, steps=6)
    done(change)
    own = model.infill(
        WEB / "example-street.png", painted, prompt="a bicycle and a dog", seed=4, settings=["schedule.steps=6"]
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
    expect(answers.first).not_to_contain_text("empty answer")
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


def _follows(page: Page, change: int) -> None:
    """Wait until a frame shows this change, or a later one."""
    numbers = "|".join(map(str, range(change, change + 20)))
    expect(page.locator("body")).to_have_attribute("data-followed", re.compile(f"^({numbers})$"))


def _stroke(page: Page, place: Locator, start: tuple[float, float], end: tuple[float, float]) -> None:
    """Drag over a part of an element; fractions of its sides."""
    box = place.bounding_box()
    assert box
    (x, y), (w, h) = (box["x"], box["y"]), (box["width"], box["height"])
    page.mouse.move(x + start[0] * w, y + start[1] * h)
    page.mouse.down()
    page.mouse.move(x + end[0] * w, y + end[1] * h, steps=4)
    page.mouse.up()


def test_a_drawing_follows_the_prompt_the_brush_and_the_boxes(page: Page, model: Any, folder: Path) -> None:
    draw = panel(page, "Draw")
    draw.get_by_role("switch", name="Plan").uncheck()
    draw.get_by_role("button", name="Live").click()
    watch(draw)
    with standing_still(model, 6):
        ask(draw, "a red apple", seed=5, steps=8)
        expect(draw.get_by_role("button", name="Paint")).to_be_visible()
        expect(draw.locator(".step")).to_contain_text("of 8")
        with page.expect_response("**/generations/draw-*") as typed:
            draw.locator("textarea").first.fill("a blue car")
        assert typed.value.status == 200 and typed.value.json()["patch"] == 1
    _follows(page, 1)
    expect(draw.locator(".line")).to_contain_text("change it now")
    page.screenshot(path=folder / "live.png")
    draw.get_by_role("button", name="Paint").click()
    _stroke(page, draw.locator(".brush"), (0.2, 0.3), (0.4, 0.3))
    _follows(page, 2)
    assert page.evaluate("window.seen.some((masked, i) => masked > window.seen[i - 1])"), "tokens are masked again"
    draw.get_by_role("button", name="Paint").click()
    with page.expect_request("**/generations/draw-*") as sent:
        _stroke(page, draw.locator(".boxes.editable"), (0.05, 0.55), (0.45, 0.95))
        page.keyboard.type("red apple")
    (named,) = sent.value.post_data_json["boxes"]
    assert named["phrase"] == "red apple"
    _follows(page, 3)
    before = int(page.evaluate("document.body.dataset.followed"))
    with page.expect_request("**/generations/draw-*") as sent:
        draw.get_by_role("button", name="Box 1 red apple").press("ArrowUp")
    assert sent.value.post_data_json["boxes"][0]["box"][1] < named["box"][1]
    _follows(page, before + 1)
    expect(draw.locator(".line")).to_contain_text("change it now")
    draw.get_by_role("button", name="Finish").click()
    done(draw)
    expect(draw.get_by_role("link", name="Download")).to_be_visible()
    expect(draw.get_by_role("button", name="Copy link")).to_have_count(0)
    page.locator(".shot").first.click()
    expect(page.get_by_role("dialog")).to_contain_text("a blue car")


def test_the_plan_of_a_prompt_that_was_changed_does_not_stay(page: Page, model: Any) -> None:
    draw = panel(page, "Draw")
    draw.get_by_role("button", name="Live").click()
    ask(draw, "a red apple", seed=5, steps=4)
    expect(draw.locator(".line")).to_contain_text("change it now")
    expect(draw.locator(".timeline")).to_contain_text("red apple")
    draw.locator("textarea").first.fill("a blue car")
    _follows(page, 1)
    expect(draw.locator(".line")).to_contain_text("change it now, or it ends in 2")  # it counts down
    draw.get_by_role("button", name="Finish").click()
    done(draw)
    expect(draw.locator(".timeline")).not_to_contain_text("red apple")
    expect(draw.locator(".frame .boxes").filter(has_text="red apple")).to_have_count(0)


@pytest.mark.skipif(not AXE.exists(), reason="no axe-core: make axe fetches it from npm")
@pytest.mark.parametrize(("size", "dark"), [((1360, 900), False), ((390, 844), True)])
def test_everybody_can_use_the_page(
    visits: Callable[..., Visit], server: Server, size: tuple[int, int], dark: bool
) -> None:
    page = visits(server.url, size=size, dark=dark, still=True).page()
    draw = panel(page, "Draw")
    draw.get_by_role("button", name="Live").click()
    ask(draw, "a dog left of a cat", steps=2)
    expect(draw.get_by_role("button", name="Finish")).to_be_visible()
    expect(draw.locator(".line")).to_contain_text("change it now")
    draw.get_by_role("button", name="Paint").click()
    assert violations(page) == [], "while it is changed"
    draw.get_by_role("button", name="Finish").click()
    done(draw)
    draw.locator("summary", has_text="More settings").click()
    assert violations(page) == [], "a finished drawing with all settings"
    for tab in ("Ask", "Ground", "Edit", "Chat"):
        place = panel(page, tab)
        if tab != "Chat":
            place.get_by_label("Example image: cups").click()
            expect(place.locator(".hint")).to_be_hidden()
        assert violations(page) == [], tab
    page.locator(".shot").first.click()
    expect(page.get_by_role("dialog")).to_be_visible()
    assert violations(page) == [], "the gallery"
    page.goto(f"{server.url}/web/read.html#docs")
    expect(page.locator("h1").first).to_be_visible()
    assert violations(page) == [], "the documents"
