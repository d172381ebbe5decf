"""Planning and reflection: the attempts of a prompt, what each keeps of the last one, and what is refused. Critiques are scripted."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from unmask.pipeline.model import Model
from unmask.recipe import override
from unmask.sequence import Kind
from unmask.tasks import planning, reflecting, revising
from unmask.tasks.reflecting import Thinking, accepts, best, criticise, remembered, think
from unmask.tasks.results import Attempt
from unmask.tasks.revising import revise
from unmask.tokens.layouts import Layout, Placed, layout_of, to_ids
from unmask.tokens.text import EOT

FEW = ["schedule.steps=3"]
LAYOUT = layout_of([("red apple", (0.0, 0.0, 0.5, 0.5)), ("cat", (0.5, 0.5, 1.0, 1.0))])


@dataclass
class Scripted:
    """The shipped model, but every text it writes is taken from ``plans`` and ``critiques``, keyed by what was asked and how often."""

    model: Model
    plans: list[Layout] = field(default_factory=list)
    critiques: dict[str, list[str]] = field(default_factory=dict)
    drawn: list[list[Any]] = field(default_factory=list)
    events: list[tuple[int, Any]] = field(default_factory=list)

    @property
    def parts(self) -> Any:
        return self.model.parts

    @property
    def presets(self) -> Any:
        return self.model.presets

    @property
    def device(self) -> Any:
        return self.model.device

    def run(self, sequences: Any, seeds: Any, sampler: Any) -> Any:
        if all(s.spans[-2].kind == Kind.CODE for s in sequences):
            self.drawn.append(list(sequences))
            return self.model.run(sequences, seeds, replace(sampler, schedule=replace(sampler.schedule, steps=2)))
        return type("Decoded", (), {"rows": [self._written(s) for s in sequences]})()

    def emit(self, row: int, event: Any) -> None:
        self.events.append((row, event))

    def _written(self, sequence: Any) -> Any:
        text, span = self.parts.text, sequence.spans[-1]
        if span.name == "plan":
            words = to_ids(self.plans.pop(0), text, self.parts.wording)
        else:
            words = text.encode(self.critiques[sequence.request].pop(0))
        ids = sequence.ids.clone()
        ids[span.start : span.stop] = text[EOT]
        ids[span.start : span.start + len(words)] = torch.tensor(words)
        return replace(sequence, ids=ids, masked=sequence.masked & False)


def same(a: Image.Image, b: Image.Image) -> bool:
    return np.array_equal(np.asarray(a), np.asarray(b))


def test_a_prompt_stops_when_it_is_right_and_the_others_go_on(model: Model) -> None:
    said = {
        "a dog": ["there is no dog", "the picture is correct"],
        "a cat": ["everything is correct"],
        "two cups": ["there is no cup"] * 3,
    }
    scripted = Scripted(model, critiques={k: list(v) for k, v in said.items()})
    found = think(scripted, list(said), [1, 2, 3], Thinking(attempts=3), model.presets.generate(model.parts))
    assert [[r.critique for r in attempts] for attempts in found] == list(said.values())
    assert [attempts[-1].accepted for attempts in found] == [True, True, False]
    assert [len(batch) for batch in scripted.drawn] == [3, 2, 1]
    seeds = [r.seed for attempts in found for r in attempts]
    assert [attempts[0].seed for attempts in found] == [1, 2, 3] and len(set(seeds)) == len(seeds)
    alone = Scripted(model, critiques={"a dog": list(said["a dog"])})
    again = think(alone, ["a dog"], [1], Thinking(attempts=3), model.presets.generate(model.parts))
    assert all(same(a.image, b.image) for a, b in zip(again[0], found[0], strict=True))


def test_a_retry_is_shown_its_failures_and_none_without_memory(model: Model) -> None:
    for memory, looks in ((3, [0, 1, 2]), (1, [0, 1, 1]), (0, [0, 0, 0])):
        scripted = Scripted(model, critiques={"a dog": ["there is no dog", "a dog is missing", "no"]})
        think(scripted, ["a dog"], [5], Thinking(attempts=3, memory=memory), model.presets.generate(model.parts))
        assert [sum(s.name == "look" for s in batch[0].spans) for batch in scripted.drawn] == looks


def test_memory_has_distinct_critiques_in_order(model: Model) -> None:
    picture = Image.new("RGB", (128, 128))
    critiques = ["a", "b", "a", "c", "a", "d"]
    attempts = [Attempt(image=picture, plan=None, critique=c, accepted=False, approval=0.0, seed=0) for c in critiques]
    kept = [tuple(a.critique for a in remembered(model.parts, attempts, 3, seed)) for seed in range(30)]
    assert all(len(set(k)) == len(k) == 3 for k in kept) and len(set(kept)) > 3
    assert remembered(model.parts, attempts, 3, 7)[0].critique == remembered(model.parts, attempts, 3, 7)[0].critique
    assert not remembered(model.parts, attempts, 0, 1)


def test_the_best_try_is_the_approved_one_or_the_nearest_to_it(model: Model) -> None:
    picture = Image.new("RGB", (128, 128))
    tries = [
        Attempt(image=picture, plan=None, critique="", accepted=a, approval=p, seed=i)
        for i, (a, p) in enumerate([(False, 0.2), (False, 0.4), (False, 0.4), (True, 0.1)])
    ]
    assert best(tries).seed == 3 and best(tries[:3]).seed == 1


def test_approval_is_a_chance_that_follows_from_picture_and_prompt_alone(model: Model) -> None:
    pictures = [Image.new("RGB", (128, 128), c) for c in ("white", "red", "green")]
    together = criticise(model, ["a cat", "a dog", "two big cups"], pictures)
    assert all(0 <= p <= 1 for _, p in together)
    for i, prompt in enumerate(("a cat", "a dog", "two big cups")):
        said, chance = criticise(model, [prompt], [pictures[i]])[0]
        assert said == together[i][0] and abs(chance - together[i][1]) < 1e-5


def test_plans_are_drawn_from_and_told(model: Model) -> None:
    other = layout_of([("cat", (0.25, 0.25, 0.5, 0.5))])
    scripted = Scripted(model, plans=[LAYOUT, other], critiques={"x": ["no", "is correct"]})
    (attempts,) = think(scripted, ["x"], [1], Thinking(plan=True, attempts=2), model.presets.generate(model.parts))
    assert [r.plan for r in attempts] == [LAYOUT, other]
    ids = [batch[0].ids[batch[0].span("plan").start : batch[0].span("plan").stop].tolist() for batch in scripted.drawn]
    assert ids == [to_ids(layout, model.parts.text, model.parts.wording) for layout in (LAYOUT, other)]


def test_generate_plans_reflects_and_takes_a_layout(model: Model) -> None:
    plain, given, other = (
        model.generate("a red apple and a cat", seed=1, settings=FEW, plan=plan)[0]
        for plan in (False, LAYOUT, layout_of([("cat", (0.0, 0.0, 1.0, 1.0))]))
    )
    assert plain.plan is None and given.plan == LAYOUT and not plain.attempts
    assert not same(plain.image, given.image) and not same(given.image, other.image)
    planned = model.generate("a cat", n=2, seed=1, settings=FEW, plan=True)
    assert planned[1].plan == model.generate("a cat", seed=2, settings=FEW, plan=True)[0].plan
    tried = model.generate("a cat", seed=1, settings=FEW, plan=True, attempts=2)[0]
    assert 1 <= len(tried.attempts) <= 2 and same(tried.image, best(tried.attempts).image)
    told = tried.to_json()["attempts"]
    assert [sorted(r) for r in told] == [["accepted", "approval", "critique", "plan", "seed"]] * len(told)


def test_edit_takes_and_makes_a_plan(model: Model) -> None:
    picture = Image.new("RGB", (128, 128), "white")
    layout = replace(layout_of([("cat", (0.0, 0.0, 0.5, 0.5))]), reason="add")
    plain, planned = (model.edit(picture, "add a cat", settings=FEW, plan=plan)[0] for plan in (False, layout))
    assert planned.plan == layout and not same(plain.image, planned.image)
    assert model.edit(picture, "add a cat", settings=FEW, plan=True)[0].plan is not None


def test_an_edit_is_tried_again_until_it_is_approved(model: Model) -> None:
    pictures = [Image.new("RGB", (128, 128), colour) for colour in ("white", "grey")]
    said = {"add a cat": ["a cat is missing", "this is correct"], "add a dog": ["everything is correct"]}
    plans = [replace(LAYOUT, reason="add")] * 3
    # Hot, so that a second try by the same sampler, or from the same seed, would show.
    sampler, again = (
        model.presets.edit(model.parts),
        override(model.presets.edit_again(model.parts), ["token_sampler.temperature=9"]),
    )

    def tried(some: list[str], shown: list[Image.Image]) -> tuple[Scripted, list[list[Attempt]]]:
        scripted = Scripted(model, plans=list(plans), critiques={k: list(said[k]) for k in some})
        seeds = [10 + list(said).index(k) for k in some]
        return scripted, revise(scripted, shown, some, seeds, Thinking(plan=True, attempts=4), sampler, again)

    scripted, found = tried(list(said), pictures)
    assert [[r.critique for r in attempts] for attempts in found] == list(said.values())
    assert [len(batch) for batch in scripted.drawn] == [2, 1] and [r.plan for r in found[0]] == plans[:2]
    # Nothing of the first try is in the second: the same look and source, and codes of its own chance.
    first, second = scripted.drawn[0][0], scripted.drawn[1][0]
    assert torch.equal(first.ids, second.ids) and [s.name for s in second.spans].count("look") == 1
    assert not same(found[0][0].image, found[0][1].image)
    assert len({r.seed for attempts in found for r in attempts}) == 3
    _, alone = tried(["add a cat"], pictures[:1])
    assert all(same(a.image, b.image) for a, b in zip(alone[0], found[0], strict=True))


def test_the_judge_of_an_edit_sees_before_and_after(model: Model) -> None:
    white, red = (Image.new("RGB", (128, 128), colour) for colour in ("white", "red"))
    asked = revising.CritiqueEdit(
        before=model.parts.overview(white), after=model.parts.overview(red), instruction="paint it red", length=16
    )
    built = asked.build(model.parts)
    assert built.pixels is not None
    assert torch.equal(built.pixels, torch.stack([model.parts.preprocess(p)[0] for p in (white, red)]))
    assert "does this paint it red" in model.parts.text.decode(built.ids.tolist())
    told = revising.criticise(model, [white, red], [red, white], ["paint it red"] * 2)
    assert told[0][1] != told[1][1] and all(0 <= chance <= 1 for _, chance in told)


def test_edit_reflects(model: Model) -> None:
    picture = Image.new("RGB", (128, 128), "white")
    tried = model.edit(picture, "add a cat", n=2, seed=3, settings=FEW, plan=True, attempts=2)
    assert [d.seed for d in tried] == [3, 4] and all(1 <= len(d.attempts) <= 2 for d in tried)
    for drawing in tried:
        assert same(drawing.image, best(drawing.attempts).image) and drawing.plan == best(drawing.attempts).plan
        assert len(drawing.to_json()["attempts"]) == len(drawing.attempts)
    alone = model.edit(picture, "add a cat", seed=4, settings=FEW, plan=True, attempts=2)[0]
    assert [same(a.image, b.image) for a, b in zip(alone.attempts, tried[1].attempts, strict=True)] == [True] * len(
        alone.attempts
    )
    given = model.edit(picture, "add a cat", settings=FEW, plan=LAYOUT, attempts=2)[0]
    assert all(r.plan == LAYOUT for r in given.attempts)
    with pytest.raises(ValueError, match="leave out trace or attempts"):
        model.edit(picture, "add a cat", attempts=2, trace=True)


@pytest.mark.parametrize("attempts", [0, -3, 65, 10**9])
def test_absurd_rounds_are_refused(model: Model, attempts: int) -> None:
    with pytest.raises(ValueError, match="attempts must be 1 to 64"):
        model.generate("a cat", attempts=attempts)
    with pytest.raises(ValueError, match="attempts must be 1 to 64"):
        model.edit(Image.new("RGB", (8, 8)), "add a cat", attempts=attempts)


def test_bad_settings_are_refused(model: Model) -> None:
    with pytest.raises(ValueError, match="leave out trace or attempts"):
        model.generate("a cat", attempts=2, trace=True)
    with pytest.raises(ValueError, match="memory"):
        Thinking(memory=-1)
    many = Layout(objects=tuple(Placed(phrase=f"cat {i}", box=(0, 0, 1, 1)) for i in range(200)))
    with pytest.raises(ValueError, match="use fewer objects"):
        model.generate("a cat", plan=many)


@pytest.mark.parametrize(
    ("objects", "said"),
    [
        ([], "empty"),
        ([(" ", (0, 0, 1, 1))], "no phrase"),
        ([("cat", (0, 0, 1))], "four numbers"),
        ([("cat", (0, 0, float("nan"), 1))], "four numbers"),
        ([("cat", (0.5, 0, 0.2, 1))], "x1 < x2"),
        ([("cat", (0, 0, 1.2, 1))], "fractions of the picture"),
    ],
)
def test_a_users_layout_is_checked(objects: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        layout_of(objects)


def test_what_counts_as_approval() -> None:
    assert accepts("the picture is correct") and accepts("Everything is correct.")
    assert not accepts("there is no dog") and not accepts("")


def test_needs_name_what_thinking_reads(model: Model) -> None:
    parts = model.parts
    plan = planning.PlanImage(prompt="a", length=8)
    assert plan.needs <= reflecting.NEEDS
    assert plan.read(plan.build(parts), parts).objects == ()
