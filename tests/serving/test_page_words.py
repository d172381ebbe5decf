"""What the web page says about the model: whether it plans, what it can draw, warnings, and the documents that it links to."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from unmask.serving.page_routes import docs_folder, document_titles
from unmask.serving.server import Server

from .on_page import Page, Visit, ask, done, expect, panel

WARNING = "mini does not know <b>'astronaut'</b>; it draws 24 kinds of objects"
VOCABULARY = {
    "about": "mini draws <i>24</i> kinds of objects.",
    "groups": {"objects": ["dog", "cat"], "colours": ["red"]},
}
Fake = Callable[[Any], Any]


def change(visit: Visit, path: str, how: Fake) -> None:
    """Change the JSON of an answer on its way to the page."""

    def handle(route: Any) -> None:
        answer = route.fetch()
        route.fulfill(response=answer, json=how(answer.json()))

    visit.context.route(f"**/{path}", handle)


def warn(visit: Visit, path: str) -> None:
    """Add a warning to every ``unmask`` object of an event stream."""

    def added(line: str) -> str:
        head, mark, text = line.partition("data: ")
        if not mark or not text.startswith("{"):
            return line
        event = json.loads(text)
        if isinstance(event.get("unmask"), dict) and "seed" in event["unmask"]:
            event["unmask"]["warnings"] = [WARNING]
        return f"{head}data: {json.dumps(event)}"

    def handle(route: Any) -> None:
        answer = route.fetch()
        route.fulfill(response=answer, body="\n".join(added(line) for line in answer.text().split("\n")))

    visit.context.route(f"**/{path}", handle)


def plans(fields: dict[str, Any]) -> dict[str, Any]:
    """A model whose preset plans drawings."""
    fields["generate"]["properties"]["plan"] = {
        "anyOf": [{"type": "boolean"}, {"type": "null"}],
        "default": True,
        "description": "Plan first.",
    }
    return fields


# -- planning ---------------------------------------------------------------------------------------------------------


def test_the_switch_shows_the_models_preset_and_only_a_change_is_sent(
    visits: Callable[..., Visit], server: Server
) -> None:
    visit = visits(server.url)
    change(visit, "v1/fields", plans)
    page = visit.page()
    draw = panel(page, "Draw")
    plan = draw.get_by_role("switch", name="Plan")
    expect(plan).to_be_checked()

    def sent() -> dict[str, Any]:
        with page.expect_request("**/generations") as request:
            ask(draw, "two red apples", steps=2)
        done(draw)
        return request.value.post_data_json

    assert "plan" not in sent(), "the server applies the preset"
    plan.focus()
    page.keyboard.press("Space")
    expect(plan).not_to_be_checked()
    assert sent()["plan"] is False
    # The choice is remembered with the other settings: in the gallery and in links.
    page.locator(".shot").first.click()
    facts = page.get_by_role("dialog")
    expect(facts.locator("dl")).to_contain_text("planoff")
    plan.evaluate("element => (element.checked = true)")
    facts.get_by_role("button", name="Reuse settings").click()
    expect(plan).not_to_be_checked()
    linked = visit.page("#draw?prompt=a+dog&plan=false")
    expect(linked.get_by_role("switch", name="Plan").first).not_to_be_checked()
    expect(visit.page("#draw?prompt=a+dog").get_by_role("switch", name="Plan").first).to_be_checked()


def test_a_layout_of_the_user_replaces_the_plan(visits: Callable[..., Visit], server: Server) -> None:
    visit = visits(server.url)
    change(visit, "v1/fields", plans)
    draw = panel(visit.page(), "Draw")
    draw.get_by_role("button", name="Add box").click()
    draw.get_by_label("Label of box 1").fill("red apple")
    with draw.page.expect_request("**/generations") as request:
        ask(draw, "a red apple", steps=2)
    done(draw)
    assert "plan" not in request.value.post_data_json and len(request.value.post_data_json["boxes"]) == 1


def test_the_thumb_of_the_slider_fits_the_step(page: Page) -> None:
    """With a plan, the steps of the image are the right part of the slider, which is marked."""
    draw = panel(page, "Draw")
    if not draw.get_by_role("switch", name="Plan").is_checked():
        draw.get_by_role("switch", name="Plan").check()
    ask(draw, "two red apples", seed=3, steps=16, reflect=1)
    done(draw)
    slider, stages = draw.get_by_role("slider", name="Step"), draw.locator(".stages span")
    assert [one.inner_text() for one in stages.all()] == ["Plan", "Image"]
    expect(draw.locator(".stages .now")).to_have_text("Image")
    slider.press("Home")
    expect(draw.locator(".stages .now")).to_have_text("Plan")
    slider.press("End")
    for _ in range(8):
        slider.press("ArrowLeft")
    expect(draw.locator(".step")).to_have_text("Step 9 of 16")
    track, image = slider.bounding_box(), stages.last.bounding_box()
    assert track and image
    share = slider.evaluate("slider => slider.value / slider.max")
    thumb = track["x"] + 8 + share * (track["width"] - 16)
    assert (thumb - image["x"]) / image["width"] == pytest.approx(9 / 16, abs=1 / 16)


def test_settings_are_those_for_people(page: Page) -> None:
    """Fields that exist for OpenAI's clients, or that the page fills in, are not shown."""
    draw = "seed steps plan reflect n guidance speed sampler luminance contrast score"
    names = {
        "Draw": draw.split(),
        "Edit": ["seed", "steps", "plan", "reflect", "n", "guidance", "speed", "sampler"],
        "Ground": ["seed", "steps", "speed", "sampler"],
        "Chat": ["seed", "speed", "sampler"],
    }
    for tab, wanted in names.items():
        inputs = panel(page, tab).locator(".settings input, .settings select")
        shown = inputs.evaluate_all("all => all.map(input => input.name)")
        assert [name for name in shown if "." not in name] == wanted, tab


# -- words and warnings -----------------------------------------------------------------------------------------------


def test_the_page_says_what_the_model_can_draw(visits: Callable[..., Visit], server: Server) -> None:
    def known(models: dict[str, Any]) -> dict[str, Any]:
        models["data"][0]["unmask"]["vocabulary"] = VOCABULARY
        return models

    visit = visits(server.url, size=(375, 812), dark=True)
    change(visit, "v1/models", known)
    page = visit.page()
    draw = panel(page, "Draw")
    question = draw.get_by_text("What can it draw?")
    expect(draw.locator(".known dl")).to_be_hidden()
    question.focus()
    page.keyboard.press("Enter")
    expect(draw.locator(".known")).to_contain_text("mini draws <i>24</i> kinds of objects.")
    expect(draw.locator(".known dl")).to_contain_text("objects" + "dog, cat" + "colours" + "red")
    expect(panel(page, "Ask").get_by_text("What does it know?")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 375


def test_a_model_without_a_vocabulary_says_nothing(visits: Callable[..., Visit], server: Server) -> None:
    def unknown(models: dict[str, Any]) -> dict[str, Any]:
        models["data"][0]["unmask"]["vocabulary"] = None
        return models

    visit = visits(server.url)
    change(visit, "v1/models", unknown)
    page = visit.page()
    expect(page.locator("#panel-draw textarea")).to_be_visible()
    expect(page.locator(".known")).to_have_count(0)


def test_warnings_are_shown_once_and_as_text(visits: Callable[..., Visit], server: Server) -> None:
    visit = visits(server.url)
    for path in ("v1/images/*", "v1/chat/completions"):
        warn(visit, path)
    change(visit, "v1/ground", lambda found: {**found, "warnings": [WARNING]})
    page = visit.page()
    draw = panel(page, "Draw")
    note = draw.locator(".note[role=status]")
    expect(note).to_have_text("")
    ask(draw, "an astronaut", steps=2, n=2)
    done(draw)
    expect(note).to_have_text(WARNING)
    for name, prompt in (
        ("Ask", "where is the astronaut?"),
        ("Ground", "the astronaut"),
        ("Edit", "remove the astronaut"),
    ):
        place = panel(page, name)
        place.get_by_label("Example image: street").click()
        expect(place.locator(".hint")).to_be_hidden()
        ask(place, prompt)
        expect(place.locator(".note[role=status]")).to_have_text(WARNING)
    talk = panel(page, "Chat")
    ask(talk, "draw an astronaut")
    done(talk)
    expect(talk.locator(".log .assistant .note[role=status]")).to_have_text(WARNING)


def test_a_warning_refers_to_the_words_instead_of_repeating_them(page: Page, model: Any) -> None:
    draw = panel(page, "Draw")
    ask(draw, "an astronaut and a dog", steps=2, reflect=1)
    done(draw)
    (warning,) = model.generate("an astronaut and a dog", settings=["schedule.steps=2"], attempts=1)[0].warnings
    about = model.parts.vocabulary.about.removesuffix(".")
    assert warning.endswith(about) and "'astronaut'" in warning
    expect(draw.locator(".note[role=status]")).to_have_text(
        warning.removesuffix(f"; {about}") + ". See “What can it draw?”"
    )
    ask(draw, "a dog", steps=2, reflect=1)
    done(draw)
    expect(draw.locator(".note[role=status]")).to_have_text("")


def test_a_warning_goes_with_the_next_run(visits: Callable[..., Visit], server: Server) -> None:
    visit = visits(server.url)
    warn(visit, "v1/images/*")
    page = visit.page()
    draw = panel(page, "Draw")
    ask(draw, "an astronaut", steps=2)
    expect(draw.locator(".note[role=status]")).to_contain_text("astronaut")
    visit.context.unroute("**/v1/images/*")
    ask(draw, "a dog", steps=2)
    done(draw)
    expect(draw.locator(".note[role=status]")).to_have_text("")


# -- documents --------------------------------------------------------------------------------------------------------


def test_links_to_the_card_the_documents_and_the_api(page: Page, visits: Callable[..., Visit]) -> None:
    links = page.get_by_role("navigation", name="About").get_by_role("link")
    assert [link.inner_text() for link in links.all()] == ["Model card", "Documentation", "API"]
    for link, title in zip(links.all(), ("mini", "Documentation", "API"), strict=True):
        with page.expect_popup() as opened:
            link.click()
        expect(opened.value.get_by_role("heading", level=1)).to_have_text(title)
        opened.value.close()


def test_every_document_opens_and_its_links_lead_somewhere(page: Page, server: Server) -> None:
    titles = document_titles(docs_folder())
    assert {"api.md", "page.md", "serve.md"} <= {one["name"] for one in titles}
    for place, title in [("card", "mini"), *((f"docs/{one['name']}", one["title"]) for one in titles)]:
        page.goto(f"{server.url}/web/read.html#{place}")
        expect(page.get_by_role("heading", level=1)).to_have_text(title.replace("`", ""))
        inside = page.locator("#text a").evaluate_all("links => links.map(link => link.getAttribute('href'))")
        for href in inside:
            assert href.startswith(("http", "../", "#")), (place, href)
        broken = page.evaluate(
            """async () => { const images = [...document.querySelectorAll("#text img")];
            for (const image of images) image.loading = "eager";
            await Promise.all(images.map(image => image.decode().catch(() => {})));
            return images.filter(image => !image.naturalWidth).map(image => image.src); }"""
        )
        assert broken == [], place
        left = page.locator("#text").evaluate(
            "text => { const copy = text.cloneNode(true); copy.querySelectorAll('code').forEach(c => c.remove());"
            " return copy.textContent; }"
        )
        assert "](" not in left and "**" not in left, place


def test_a_page_that_is_missing_is_named(visits: Callable[..., Visit], server: Server) -> None:
    visit = visits(server.url)
    page = visit.page()
    page.goto(f"{server.url}/web/read.html#docs/../api.py")
    expect(page.get_by_role("heading", level=1)).to_have_text("Not found")
    expect(page.locator("#text")).to_contain_text("This server has no page docs/../api.py.")


def test_markdown_is_never_markup(visits: Callable[..., Visit], server: Server) -> None:
    card = """---
license: mit
---
# A <script>card</script>

<img src=x onerror=alert(1)> [a link](javascript:alert(1)) [docs](../docs/api.md#fields) **bold *words*** `a | b`

| a | b |
|---|---|
| 1 | `2` |
- one
  more
- two

1. first
> quoted
```
# not a heading
```
"""
    visit = visits(server.url)
    visit.context.route("**/v1/card", lambda route: route.fulfill(body=card, content_type="text/markdown"))
    page = visit.page()
    page.goto(f"{server.url}/web/read.html#card")
    text = page.locator("#text")
    expect(text.get_by_role("heading", level=1)).to_have_text("A <script>card</script>")
    assert text.locator("img, script").count() == 0
    assert text.locator("a").evaluate_all("links => links.map(l => l.getAttribute('href'))") == ["#docs/api.md#fields"]
    expect(text).to_contain_text("<img src=x onerror=alert(1)> a link docs bold words a | b")
    assert text.locator("th").all_inner_texts() == ["a", "b"] and text.locator("td").all_inner_texts() == ["1", "2"]
    assert text.locator("ul li").all_inner_texts() == ["one more", "two"]
    assert text.locator("ol li").all_inner_texts() == ["first"]
    expect(text.locator("blockquote")).to_have_text("quoted")
    expect(text.locator("pre")).to_have_text("# not a heading")
    assert "license" not in text.inner_text()
