"""Prompts that are computed once: the published prefix cache of a released model, and the segments of our own."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

import unmask
from unmask.data.world.render import render
from unmask.data.world.scenes import sample
from unmask.grammars.answer_format import of_schema
from unmask.methods.remdm import remdm
from unmask.pipeline.model import Model
from unmask.sampling.cache import NoCache, PrefixCache
from unmask.sampling.sampler import Sampler
from unmask.sampling.stopping import Never
from unmask.sequence import Batch, Kind, Sequence, collate
from unmask.serving.engine import Engine
from unmask.serving.jobs import Job
from unmask.step import Prediction, Reuse
from unmask.tasks import reflecting, revising
from unmask.tasks.conversing import Message
from unmask.tasks.edit import Edit
from unmask.tasks.generate import Generate
from unmask.tasks.lengths import Extent, leading, read_words
from unmask.tasks.parts import to_image
from unmask.tasks.planning import PlanEdit, PlanImage
from unmask.tasks.reflecting import Critique
from unmask.tasks.running import Decoded, OnStep, decide
from unmask.tasks.understand import Ask
from unmask.tokens.turns import Said, conversation, extended, opened, resumed

from .released_folder import make_folder
from .test_lengths import Ending

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Random weights in the released layout."""
    return unmask.load(make_folder(tmp_path_factory.mktemp("released") / "model"))


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    return to_image(torch.rand(3, 96, 96, generator=torch.Generator().manual_seed(1)))


@pytest.fixture(scope="module")
def mini() -> Model:
    return unmask.load("mini")


@pytest.fixture(scope="module")
def scene() -> Image.Image:
    return Image.fromarray(render(sample("grid", "validation", 0, 0), 128))


def answer_orders(sequence: Sequence) -> dict[str, tuple[int, int]]:
    """The order and order step of every span that has any."""
    return {span.name: (span.order, span.order_step) for span in sequence.spans if span.order or span.order_step}


def test_prompts_do_not_read_what_is_generated(model: Model, picture: Image.Image) -> None:
    """Answers, plans, critiques and turns; a second canvas is not read by the first either. Drawings read everything."""
    parts, look = model.parts, model.parts.image_views(picture)
    pixels = parts.preprocess(picture)[0]
    assert answer_orders(Ask(pixels=look, question="what?", length=3).build(parts)) == {"answer": (1, 3)}
    assert answer_orders(PlanImage(prompt="a dog", length=5).build(parts)) == {"plan": (1, 5)}
    assert answer_orders(PlanEdit(pixels=look, instruction="go", length=5).build(parts)) == {"plan": (1, 5)}
    assert answer_orders(Critique(pixels=look, caption="a dog", length=4).build(parts)) == {"answer": (1, 4)}
    turn = conversation(parts.builder(), [Said(role="user", text="draw", pictures=(look,))], 6)
    assert answer_orders(turn) == {"answer": (1, 6)} and answer_orders(extended(turn, 6, parts.text)) == {
        "answer": (1, 6)
    }
    drawn = opened(turn, turn.spans[-1].start + 2, parts.grid, parts.fold, parts.text)
    assert not answer_orders(drawn), "a picture and the words before it read each other"
    assert answer_orders(resumed(drawn, 4, parts.text, prefix_lm=True)) == {"answer": (1, 0)}
    whole = replace(parts, quirks=replace(parts.quirks, prefix_lm=False))
    for built in (
        Ask(pixels=look, question="what?", length=3).build(whole),
        Generate(prompt="a dog").build(parts),
        Edit(pixels=pixels, instruction="go", look=look).build(parts),
        conversation(parts.builder(), [Said(role="user", text="what?")], parts.text.encode("so")),  # training
    ):
        assert not answer_orders(built)


@dataclass
class Counting:
    """An executor that decodes with a model, and notes how many sequences each run has."""

    model: Model
    rows: list[int]

    def run(self, sequences: Any, seeds: Any, sampler: Any, on_step: OnStep | None = None) -> Decoded:
        self.rows.append(len(sequences))
        return self.model.run(sequences, seeds, sampler, on_step)

    def emit(self, row: int, event: Any) -> None:
        raise AssertionError("boxes emit nothing")


def test_boxes_in_one_pass_or_one_by_one(model: Model, picture: Image.Image) -> None:
    """One sequence for all phrases, or one for each, which then has the box that it has alone."""
    phrases, rows = ["the cat", "a long red bus on the left"], []
    counted = Model(model.parts, model.presets, executor=Counting(model, rows))
    together = counted.ground(picture, phrases).boxes
    apart = counted.ground(picture, phrases, separately=True).boxes
    assert rows == [1, 2] and [b.phrase for b in together] == [b.phrase for b in apart] == phrases
    assert [model.ground(picture, [p]).boxes[0] for p in phrases] == list(apart)


@torch.no_grad()
def test_an_answer_computes_its_prompt_once(model: Model, picture: Image.Image) -> None:
    """The logits are those of a network in which nothing but the answer reads the answer, and differ from those of full attention."""
    parts, presets = model.parts, model.presets
    full = replace(parts, quirks=replace(parts.quirks, prefix_lm=False))
    task = Ask(pixels=parts.image_views(picture), question="what is it?", length=6)
    cached, whole = task.build(parts), task.build(full)
    prompt = len(cached.ids) - 6
    assert cached.ids.equal(whole.ids)
    for name, preset, length in (("ask", presets.ask, 6), ("plan", presets.plan, 6), ("critique", presets.critique, 6)):
        counts, hook = computed(model)
        runs = [
            replace(preset(parts), stopping=Never(), cache=c).start(collate([cached], [0]))
            for c in (PrefixCache(), NoCache())
        ]
        other = preset(parts).start(collate([whole], [0]))
        for step in range(length):
            found = []
            for run in runs:
                query = run.query
                assert query is not None
                found.append(parts.net(query.batch, predict=query.predict, reuse=query.reuse))
                run.advance(found[-1])
            torch.testing.assert_close(found[0].logits(Kind.TEXT), found[1].logits(Kind.TEXT), atol=2e-6, rtol=0)
            if step == 0:
                assert other.query is not None and other.query.reuse is None
                apart = parts.net(other.query.batch, predict=other.query.predict).logits(Kind.TEXT) - found[0].logits(
                    Kind.TEXT
                )
                assert apart.abs().max() > 1e-3
        hook.remove()
        assert counts[0] == prompt + 6 and 6 in counts[3:], name
        assert runs[0].query is None and runs[0].batch.ids.equal(runs[1].batch.ids)


@torch.no_grad()
def test_canvases_are_decoded_in_one_run(model: Model, picture: Image.Image) -> None:
    """What is finished is computed once more and then lent like the prompt; the text is that of a run for each canvas."""
    parts, sampler = model.parts, model.presets.ask(model.parts)
    rows: list[int] = []
    counts, hook = computed(model)
    done = Model(parts, model.presets, executor=Counting(model, rows)).ask(picture, "what?", length=8, max_tokens=20)
    hook.remove()
    built = Ask(pixels=parts.image_views(picture), question="what?", length=8).build(parts)
    wanted = [len(built.ids), *[8] * 7, *[16, *[8] * 7] * 2]
    assert rows == [1] and counts == wanted[: len(counts)] and len(counts) >= 20
    for canvas in range(3):
        built = model.run([built if not canvas else extended(built, 8, parts.text)], [0], sampler).rows[0]
    assert done.text == read_words(leading(built), parts.text, Extent(length=8, max_tokens=20)).text


def test_a_canvas_behind_the_end_of_turn_is_not_computed(model: Model, picture: Image.Image) -> None:
    parts, net = model.parts, Ending(model.parts.net, model.parts.text, 11)
    counts, hook = computed(model)
    executor = Direct(model, net)
    done = Model(parts, model.presets, executor=executor).ask(picture, "what?", length=8, max_tokens=2000)
    hook.remove()
    built = Ask(pixels=parts.image_views(picture), question="what?", length=8).build(parts)
    assert done.finish_reason == "stop" and counts[0] == len(built.ids)
    assert max(counts[1:]) == 16 and len(counts) <= 16
    stopless = model.with_sampler(lambda sampler: replace(sampler, stopping=Never()))
    again = Model(parts, stopless.presets, executor=executor).ask(picture, "what?", length=8, max_tokens=2000)
    assert again.text == done.text, "an end of turn ends the text, whatever the sampler does"


def test_samplers_that_mask_again_decode_canvas_by_canvas(model: Model, picture: Image.Image) -> None:
    rows: list[int] = []
    changed = model.with_sampler(remdm)
    counted = Model(model.parts, changed.presets, executor=Counting(changed, rows))
    done = counted.ask(picture, "what?", length=6, max_tokens=12)
    assert rows == [1, 1] and done.finish_reason == "length"


def computed(model: Model) -> tuple[list[int], Any]:
    """How many understanding positions enter the first layer at every forward, and the hook that notes it."""
    counts: list[int] = []
    layer: Any = model.parts.net.blocks[0]
    return counts, layer.und.q.register_forward_pre_hook(lambda _, given: counts.append(given[0].shape[:-1].numel()))


# -- our own models: the context, in segment 0, reads no question ------------------------------------------------------


@dataclass
class Watched:
    """A network that notes how many understanding positions each forward computes, and every logit of text."""

    net: Any
    counts: list[int]
    logits: list[Tensor]

    def __call__(self, batch: Batch, *, predict: Tensor | None = None, reuse: Reuse | None = None) -> Prediction:
        self.counts.append(int((batch.valid if reuse is None else reuse.compute).sum()))
        prediction = self.net(batch, predict=predict, reuse=reuse)
        self.logits.append(prediction.logits(Kind.TEXT))
        return prediction


TASKS: dict[str, Callable[[Model, Image.Image], object]] = {
    "ask": lambda m, i: m.ask(i, "what colour is the cat?").text,
    "describe": lambda m, i: m.describe(i).text,
    "two canvases": lambda m, i: m.ask(i, "what is in the picture?", length=3, max_tokens=9).text,
    "form": lambda m, i: m.ask(i, "what is it?", form=FORM).text,
    "boxes": lambda m, i: m.ground(i, ["the cat", "the red apple", "the dog"], steps=4).boxes,
    "plan": lambda m, i: reflecting.layouts(m, ["a red apple and a cat"], [3], None),
    "edit plan": lambda m, i: revising.layouts(m, [(m.parts.image_views(i), "make the cat blue")], [0]),
    "critique": lambda m, i: reflecting.criticise(m, ["a cat"], [i]),
    "critique of an edit": lambda m, i: revising.criticise(m, [i], [i], ["make the cat blue"]),
    "turn": lambda m, i: m.converse([Message(role="user", text="what is this?", images=(i,))]).text,
}
FORM = of_schema(
    '{"type": "object", "properties": {"colour": {"enum": ["red", "blue"]}, "count": {"type": "integer", "minimum": 0, "maximum": 6}}}'
)


@dataclass
class Direct:
    """An executor that decodes with its own network, as a model without an executor does."""

    model: Model
    net: Any

    def run(self, sequences: Any, seeds: Any, sampler: Sampler, on_step: OnStep | None = None) -> Decoded:
        known = self.model.parts.features.known(sequences, self.model.parts.net, self.model.device)
        return decide(self.net, known, seeds, sampler, device=self.model.device, on_step=on_step)

    def emit(self, row: int, event: Any) -> None:
        pass


def watched(model: Model, task: str, image: Image.Image, cached: bool) -> tuple[object, Watched]:
    cache = PrefixCache() if cached else NoCache()
    changed = model.with_sampler(lambda sampler: replace(sampler, cache=cache))
    net = Watched(model.parts.net, [], [])
    return TASKS[task](Model(model.parts, changed.presets, executor=Direct(model, net)), image), net


@pytest.mark.parametrize("task", TASKS)
def test_no_bit_of_an_answer_depends_on_the_cache(mini: Model, scene: Image.Image, task: str) -> None:
    said, cached = watched(mini, task, scene, cached=True)
    wanted, plain = watched(mini, task, scene, cached=False)
    assert said == wanted and len(cached.logits) == len(plain.logits) > 0
    assert all(torch.equal(a, b) for a, b in zip(cached.logits, plain.logits, strict=True))
    assert cached.counts[0] <= plain.counts[0]
    if task != "plan":  # the prompt of a layout before a picture reads the layout, in training too
        assert max(cached.counts[1:]) < min(plain.counts), "the context is computed once"


def test_a_preset_caches_where_it_saves_time(mini: Model, scene: Image.Image) -> None:
    """A caption is, four tokens of an answer about a small picture are not."""
    for task, cached in (("describe", True), ("ask", False)):
        net = Watched(mini.parts.net, [], [])
        said = TASKS[task](Model(mini.parts, mini.presets, executor=Direct(mini, net)), scene)
        assert said == watched(mini, task, scene, cached=False)[0]
        assert (max(net.counts[1:]) < net.counts[0]) == cached


def test_served_answers_use_the_cache_and_have_every_bit(mini: Model, scene: Image.Image) -> None:
    """Requests of several tasks at once, whose states are stacked and parted at every tick."""
    net = Watched(mini.parts.net, [], [])
    net.features = mini.parts.net.features  # type: ignore[attr-defined]
    tasks = ("ask", "describe", "boxes", "edit plan", "turn")
    with Engine(net) as engine, ThreadPoolExecutor(len(tasks)) as pool:  # type: ignore[arg-type]

        def ask(task: str) -> object:
            return TASKS[task](Model(mini.parts, mini.presets, executor=Job(engine)), scene)

        found = list(pool.map(ask, tasks))
        forwards = engine.metrics().forwards
    assert found == [watched(mini, task, scene, cached=False)[0] for task in tasks]
    assert forwards == len(net.counts)
