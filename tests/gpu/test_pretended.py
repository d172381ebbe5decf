"""Everything that a card runs, on a pretended one (``tests/pretend.py``): nothing mixes devices, and figures are those of the CPU."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import unmask
from unmask.checkpoints.elastic import WeightStorage
from unmask.data.world.render import render
from unmask.data.world.scenes import sample
from unmask.models.lora import LoRA
from unmask.objectives.likelihood import bound
from unmask.objectives.masked import Masked, Together
from unmask.pipeline.model import Model
from unmask.recipe import override
from unmask.serving.engine import Engine
from unmask.serving.requests import Request
from unmask.tasks import generate, understand
from unmask.tasks.conversing import Message
from unmask.tokens.views import to_pixels
from unmask.training.train import train

from ..pretend import CARD, Card, Mixed, on_card, pretended
from ..training.tiny import Numbers, recipe

FEW = ["schedule.steps=3"]


@pytest.fixture
def card() -> Iterator[Card]:
    with pretended() as made:
        yield made


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    return Image.fromarray(render(sample("grid", "validation", 0, 0), 128))


# -- the pretended card itself ----------------------------------------------------------------------------------------


def test_a_card_refuses_what_a_card_refuses(card: Card) -> None:
    here, there = torch.arange(3.0), torch.arange(3.0, device="cuda")
    assert there.device == CARD and (there * 2 + 1).is_cuda and not here.is_cuda and there.cpu().device.type == "cpu"
    assert torch.zeros_like(there).device == CARD and here.to(there).device == CARD
    refused: list[Callable[[], Any]] = [
        lambda: here + there,
        lambda: torch.cat([here, there]),
        lambda: torch.stack([there, torch.tensor(1.0)[None].expand(3)]),
        lambda: here[there > 1],
        lambda: there.index_select(0, torch.tensor([0])),
        lambda: there.gather(0, torch.tensor([0])),
        lambda: torch.where(there > 1, there, here),
        lambda: torch.nn.functional.linear(there, torch.ones(2, 3)),
        lambda: there.__setitem__(torch.tensor([0, 1]), torch.zeros(2)),
        lambda: torch.rand(3, generator=torch.Generator(), device="cuda"),
        lambda: torch.randn(3, device="cuda").normal_(generator=torch.Generator()),
    ]
    for number, call in enumerate(refused):
        with pytest.raises(Mixed):
            call()
            print(number)
    for call in (lambda: there.numpy(), lambda: np.asarray(there)):
        with pytest.raises(TypeError, match="cpu"):
            call()


def test_a_card_takes_what_a_card_takes(card: Card) -> None:
    there = torch.arange(3.0, device="cuda")
    there[1:] = torch.ones(2)
    there[torch.tensor([0])] = torch.tensor(5.0)
    assert there[torch.tensor([True, False, True])].tolist() == [5, 1]
    assert torch.where(there > 1, there, torch.tensor(0.0)).device == CARD
    assert (there + torch.tensor(1.0)).device == CARD
    module = torch.nn.Linear(3, 2).to("cuda")
    assert module.weight.device == CARD and module(there).device == CARD
    module(there).sum().backward()
    assert module.weight.grad is not None and module.weight.grad.device == CARD
    assert module.to(torch.bfloat16).weight.device == CARD and module.cpu().weight.device.type == "cpu"
    meta = torch.nn.Linear(3, 2, device="meta").to_empty(device="cuda")
    assert meta.weight.device == CARD
    assert card.reads["tolist"] == 1


def test_reads_are_counted(card: Card) -> None:
    there = torch.arange(3.0, device="cuda")
    card.reads.clear()
    assert float(there.sum()) == 3 and bool(there.any()) and there[there > 1].shape == (1,)
    assert there.cpu().tolist() == [0, 1, 2]
    assert sum(card.reads.values()) == 4


# -- what runs there --------------------------------------------------------------------------------------------------


def tasks(model: Model, picture: Image.Image) -> dict[str, Callable[[], Any]]:
    region = Image.new("L", picture.size)
    region.paste(255, (0, 0, 64, 64))
    return {
        "generate": lambda: model.generate("a red apple", plan=False, settings=FEW)[0].image,
        "several": lambda: model.generate("a red apple", n=3, plan=False, settings=FEW)[2].image,
        "plan": lambda: model.generate("two red apples and a cat", plan=True)[0].image,
        "reflect": lambda: model.generate("two red apples and a cat", attempts=2)[0].image,
        "edit": lambda: model.edit(picture, "make the cat blue", settings=FEW)[0].image,
        "infill": lambda: model.infill(picture, region, prompt="a cat", settings=FEW).image,
        "converse": lambda: model.converse([Message(role="user", text="draw a red apple")]).images[0],
        "ask": lambda: model.ask(picture, "how many apples are there?").text,
        "describe": lambda: model.describe(picture).text,
        "ground": lambda: model.ground(picture, ["the cat", "the apple"], steps=2).boxes,
        "infill_text": lambda: model.infill_text("a [mask] apple").text,
    }


def same(a: Any, b: Any) -> bool:
    return np.array_equal(np.asarray(a), np.asarray(b)) if isinstance(a, Image.Image) else a == b


@pytest.mark.parametrize("task", list(tasks(None, Image.new("RGB", (8, 8)))))  # type: ignore[arg-type]
def test_every_task(task: str, model: Model, picture: Image.Image, card: Card) -> None:
    there = unmask.load("mini", device="cuda")
    assert all(on_card(p) for p in there.parts.net.parameters())
    wanted, got = tasks(model, picture)[task](), tasks(there, picture)[task]()
    assert same(got, wanted)


@pytest.mark.parametrize("storage", [WeightStorage(dtype=torch.bfloat16), WeightStorage(offload=frozenset({"gen"}))])
def test_every_way_to_keep_the_weights(storage: WeightStorage, picture: Image.Image, card: Card) -> None:
    there = unmask.load("mini", device="cuda", storage=storage)
    assert there.generate("a red apple", plan=False, settings=FEW)[0].image.size == (128, 128)
    assert there.ask(picture, "how many apples are there?").text


def test_the_server(card: Card, picture: Image.Image) -> None:
    there = unmask.load("mini", device="cuda")
    draw, ask = generate.Generate(prompt="a cat"), understand.Ask(pixels=to_pixels(picture), question="is there a cat?")
    with Engine(there.parts.net, device=there.device) as engine:
        handles = [
            engine.submit(Request(sequence=task.build(there.parts), sampler=sampler, seed=i))
            for i, (task, sampler) in enumerate(
                (
                    (draw, there.presets.generate(there.parts)),
                    (ask, understand.sampler(there.parts)),
                    (draw, there.presets.generate(there.parts)),
                )
            )
        ]
        served = [t.read(h.result(timeout=120), there.parts) for t, h in zip((draw, ask, draw), handles, strict=True)]
    assert served[0].size == (128, 128) and served[1]


@pytest.mark.parametrize("settings", [[], ["training.bf16=true", "training.accumulate=2"]])
def test_training(settings: list[str], tmp_path: Path, card: Card, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps, saving, and going on, with a mixture of tasks in shared passes; without recomputation, which runs below Python."""
    monkeypatch.setattr("unmask.training.train.matmul_peak", lambda dtype, device: 1e9)  # a large product on a card
    given = recipe()

    class Both:
        def __call__(self, step: int) -> Any:
            return {"one": Numbers()(2 * step), "two": Numbers()(2 * step + 1)}

    objective = Together(objectives=(("one", given.objective, 1.0), ("two", Masked(complementary=True), 0.5)))
    lora = LoRA(where=lambda name: True, rank=2, alpha=4.0, seed=0) if settings else None
    made = dataclasses.replace(given, source=Both(), objective=objective, adapt=lora)
    steps = ["training.steps=4", "training.bf16=false", *settings]
    here = train(override(made, [*steps, "training.device=cpu"]), tmp_path / "cpu")
    train(override(made, [*steps, "training.device=cuda"]), tmp_path / "cuda", stop_after=2)
    got = train(override(made, [*steps, "training.device=cuda"]), tmp_path / "cuda")
    for (name, a), (_, b) in zip(here.named_parameters(), got.named_parameters(), strict=True):
        assert not on_card(b) and torch.allclose(a, b, atol=2e-2 if settings else 1e-5), (
            name
        )  # a card has other attention


def test_likelihood(card: Card) -> None:
    here, there = unmask.load("mini"), unmask.load("mini", device="cuda")
    row = generate.Generate(prompt="a cat").build(here.parts)
    wanted, got = (bound(m.parts.net, row, samples=4, rows=2, device=m.device) for m in (here, there))
    assert got.value == pytest.approx(wanted.value)
