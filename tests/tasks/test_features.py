"""A picture is encoded once for all requests about it, and the answers equal those of a model without the cache."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from PIL import Image

from unmask.pipeline.model import Model
from unmask.recipe import override
from unmask.sequence import collate
from unmask.tasks import reflecting, revising, understand
from unmask.tasks.features import Features
from unmask.tasks.reflecting import Thinking

FEW = ["schedule.steps=2"]
CPU = torch.device("cpu")


def picture(seed: int) -> Image.Image:
    noise = torch.randint(0, 256, (128, 128, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return Image.fromarray(noise.numpy())


@pytest.fixture
def fresh(model: Model) -> Model:
    """The shipped model with its own feature cache."""
    return Model(replace(model.parts, features=Features(2**20)))


@pytest.fixture
def calls(model: Model) -> Iterator[list[int]]:
    """Pictures of every call of the vision tower."""
    seen: list[int] = []
    assert model.parts.net.vision is not None
    hook = model.parts.net.vision.register_forward_hook(lambda module, given, out: seen.append(len(given[0])))
    yield seen
    hook.remove()


def test_calls_about_one_picture_encode_it_once(fresh: Model, calls: list[int]) -> None:
    shown = picture(1)
    fresh.ask(shown, "what is this?")
    fresh.ask(shown, "is there a cat?", max_tokens=2)
    fresh.ground(shown, ["the cat", "a dog"])
    fresh.edit(shown, "add a cat", n=3, settings=FEW, plan=True)
    reflecting.criticise(fresh, ["a cat"], [shown])
    assert calls == [1] and fresh.parts.features.hits >= 6
    revising.criticise(fresh, [shown], [picture(2)], ["add a cat"])
    assert calls == [1, 1]
    fresh.ask(picture(3), "what is this?")
    assert calls == [1, 1, 1]


def test_rounds_encode_every_picture_once(fresh: Model, calls: list[int]) -> None:
    drawn = fresh.generate("a cat", seed=1, settings=FEW, attempts=3)[0]
    assert len(calls) == len({r.image.tobytes() for r in drawn.attempts})
    calls.clear()
    tried = fresh.edit(picture(4), "add a cat", n=2, settings=FEW, attempts=2)
    assert len(calls) <= 1 + len({r.image.tobytes() for d in tried for r in d.attempts})


def test_a_model_that_remembers_nothing_says_the_same(model: Model, fresh: Model, calls: list[int]) -> None:
    forgetful = Model(replace(model.parts, features=Features(0)))
    few = override(model.presets.edit(model.parts), FEW)
    images, prompts = [picture(i) for i in (5, 6, 5)], ["a cat", "a dog", "two cats"]

    def answers(m: Model) -> list[object]:
        rounds = revising.revise(m, images[:2], prompts[:2], [1, 2], Thinking(attempts=2), few, few)
        revised = [(r.critique, r.approval, r.image.tobytes()) for attempts in rounds for r in attempts]
        return [reflecting.criticise(m, prompts, images), revised]

    wanted = answers(forgetful)
    assert answers(fresh) == wanted
    assert answers(fresh) == wanted  # everything is remembered by now
    assert forgetful.parts.features.hits == 0 and forgetful.parts.features.bytes == 0


def test_features_are_those_of_the_model_and_know_nothing_of_company(model: Model) -> None:
    parts = model.parts
    tasks = [understand.Ask(pixels=parts.image_views(picture(i)), question="what is this?") for i in (7, 8)]
    edited = revising.CritiqueEdit(before=tasks[0].pixels, after=tasks[1].pixels, instruction="add a cat", length=4)
    built = [task.build(parts) for task in (*tasks, edited)]
    memory = Features(2**20)
    together = collate(memory.known(built, parts.net, CPU), [0] * 3).features
    assert together is not None and (memory.misses, memory.hits) == (2, 2)
    alone = [Features(0).known([b], parts.net, CPU)[0].features for b in built[:2]]
    assert torch.equal(together, torch.cat([*alone, *alone]))
    batch = collate(built, [0] * 3)
    assert batch.pixels is not None
    torch.testing.assert_close(together, parts.net.features(batch.pixels).detach(), rtol=1e-4, atol=1e-4)
    words = understand.FillText(target="a [mask]").build(parts)
    assert memory.known([words], parts.net, CPU) == [words]


def test_the_least_recently_used_is_forgotten_first() -> None:
    memory, asked = Features(2 * 4 * 8), []

    def look(seed: int) -> torch.Tensor:
        return memory(torch.full((1, 3, 2, 2), float(seed)), lambda: asked.append(seed) or torch.zeros(8))

    for seed in (1, 2, 1, 3, 1, 2):
        look(seed)
    assert asked == [1, 2, 3, 2] and memory.bytes == 64
    memory.clear()
    look(2)
    assert asked[-2:] == [2, 2] and memory.bytes == 32
