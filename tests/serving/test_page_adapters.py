"""The choice of an adapter on the web page, in a real browser."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from unmask.checkpoints.adapters import save_adapter
from unmask.models.lora import LoRA, adapters, sharing
from unmask.pipeline.adapting import with_adapters
from unmask.rng import generator
from unmask.serving.server import Server, listen
from unmask.serving.service import Service

from .on_page import Visit, ask, done, expect, panel, picture, same

TABS = ("Draw", "Ask", "Ground", "Edit", "Chat")
SETTINGS = ["schedule.steps=4"]


@pytest.fixture(scope="module")
def adapted(model: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Models with an adapter of random weights, by name."""
    made = {}
    for name in ("pets", "style"):
        net = sharing(model.parts.net)
        LoRA(where=lambda layer: layer.endswith(".q"), rank=4)(net)
        for _, _, one in adapters(net):
            nn.init.normal_(one.up, 0, 0.2, generator=generator("adapter of the page", name))
        folder = tmp_path_factory.mktemp(name)
        save_adapter(net, folder)
        made[name] = with_adapters(model, folder)
    return made


@pytest.fixture(scope="module")
def adapting(model: Any, adapted: dict[str, Any]) -> Iterator[Server]:
    with Server(Service(model, name="mini", adapted=adapted), listen("127.0.0.1", 0)) as running:
        yield running


def test_a_server_without_adapters_has_no_such_setting(visits: Callable[..., Visit], server: Server) -> None:
    page = visits(server.url).page()
    for tab in TABS:
        assert panel(page, tab).get_by_label("Adapter").count() == 0


def test_every_task_offers_the_adapters_of_the_server(visits: Callable[..., Visit], adapting: Server) -> None:
    page = visits(adapting.url).page()
    for tab in TABS:
        choice = panel(page, tab).get_by_label("Adapter")
        expect(choice).to_be_visible()
        assert choice.locator("option").all_inner_texts() == ["none", "pets", "style"]


def test_a_drawing_uses_the_chosen_adapter(
    visits: Callable[..., Visit], adapting: Server, model: Any, adapted: dict[str, Any], folder: Path
) -> None:
    """And the gallery and links keep the choice."""
    visit = visits(adapting.url)
    page = visit.page()
    draw = panel(page, "Draw")
    draw.get_by_role("switch", name="Plan").uncheck()
    draw.get_by_label("Adapter").select_option("pets")
    page.screenshot(path=folder / "adapter.png")
    with page.expect_request("**/generations") as sent:
        ask(draw, "a red apple", seed=5, steps=4)
    assert sent.value.post_data_json["unmask"] == {"lora": "pets"}
    done(draw)
    made = {
        name: one.generate("a red apple", seed=5, plan=False, settings=SETTINGS)[0].image
        for name, one in {"none": model, **adapted}.items()
    }
    shown = picture(draw.get_by_role("link", name="Download"))
    assert [name for name, image in made.items() if same(shown, image)] == ["pets"]
    draw.get_by_label("Adapter").select_option("none")
    page.locator("#gallery .shot").first.click()
    facts = page.get_by_role("dialog")
    expect(facts.locator("dl")).to_contain_text("adapterpets")
    facts.get_by_role("button", name="Reuse settings").click()
    assert draw.get_by_label("Adapter").input_value() == "pets"
    linked = visit.page('#draw?prompt=a+red+apple&unmask={"lora":"style"}')
    assert panel(linked, "Draw").get_by_label("Adapter").input_value() == "style"
    unknown = visit.page('#draw?prompt=a+red+apple&unmask={"lora":"gone"}')
    assert panel(unknown, "Draw").get_by_label("Adapter").input_value() == ""


@pytest.mark.parametrize(
    ("tab", "example", "path", "words"),
    [
        ("Ask", "cups", "chat/completions", "how many cups are there?"),
        ("Ground", "animals", "ground", "the dog"),
        ("Edit", "animals", "images/edits", "remove the dog"),
        ("Chat", "", "chat/completions", "hello"),
    ],
)
def test_other_tasks_send_it_too(
    tab: str, example: str, path: str, words: str, visits: Callable[..., Visit], adapting: Server
) -> None:
    visit = visits(adapting.url)
    visit.expected = "ERR_FAILED"
    page = visit.page()
    page.route(f"**/v1/{path}", lambda route: route.abort())
    place = panel(page, tab)
    if example:
        place.get_by_label(f"Example image: {example}").click()
        expect(place.locator(".hint")).to_be_hidden()
    place.get_by_label("Adapter").select_option("style")
    with page.expect_request(f"**/v1/{path}") as sent:
        ask(place, words)
    if tab == "Edit":
        assert b'name="unmask"\r\n\r\n{"lora":"style"}' in (sent.value.post_data_buffer or b"")
    else:
        assert sent.value.post_data_json["unmask"] == {"lora": "style"}
