"""Options and settings of a sampler: which field each sets, and the errors where it has none or two say different things."""

from __future__ import annotations

from dataclasses import replace

import pytest
from PIL import Image

from unmask.data.world.render import render
from unmask.data.world.scenes import sample
from unmask.pipeline.model import Model
from unmask.sampling.guidance import ClassifierFree, EditGuidance
from unmask.sampling.presets import llada_text, origin
from unmask.sampling.reverse_time import Independent
from unmask.sampling.sampler import Sampler
from unmask.sampling.schedule import Cosine, Fixed
from unmask.sampling.selection import Confident
from unmask.sampling.temperature import Linear
from unmask.sampling.token_sampler import Categorical, Greedy, OnlyIds
from unmask.tasks.conversing import Message
from unmask.tasks.sampler_options import OPTIONS, with_options

SAMPLER = Sampler(
    schedule=Cosine(steps=16),
    guidance=ClassifierFree(scale=1.0, drop=frozenset({"prompt"}), null_id=0),
    token_sampler=Categorical(temperature=0.5),
    selection=Confident(),
)


def test_each_option_sets_its_field_and_nothing_else() -> None:
    assert with_options(SAMPLER, (), 8).schedule == Cosine(steps=8)
    assert with_options(SAMPLER, (), None, 3.0).guidance == replace(SAMPLER.guidance, scale=3.0)  # type: ignore[type-var]
    assert with_options(SAMPLER, (), None, None, 0.0).token_sampler == Categorical(temperature=0.0)
    assert with_options(SAMPLER, top_p=0.9).token_sampler == Categorical(temperature=0.5, top_p=0.9)
    changed = with_options(SAMPLER, ["guidance.interval=0,0.5"], 8, 3.0, 1.0)
    assert (
        replace(changed, schedule=SAMPLER.schedule, guidance=SAMPLER.guidance, token_sampler=SAMPLER.token_sampler)
        == SAMPLER
    )
    assert with_options(SAMPLER) is SAMPLER


def test_the_shipped_model_samples_its_answers_on_request(model: Model) -> None:
    """Greedy without a temperature; with one, by seed; in a nucleus of one token, greedy again."""
    image = Image.fromarray(render(sample("grid", "validation", 0, 1), 128))
    greedy = model.ask(image, "what is this?")
    assert model.ask(image, "what is this?", seed=9).text == greedy.text
    hot = [model.ask(image, "what is this?", seed=seed, temperature=4.0) for seed in (0, 0, 1, 2)]
    assert hot[0].text == hot[1].text and len({answer.text for answer in hot}) > 1
    narrow = [model.ask(image, "what is this?", seed=s, temperature=4.0, top_p=1e-6) for s in (0, 1)]
    assert {answer.text for answer in narrow} == {greedy.text}
    whole = model.ask(image, "what is this?", seed=1, temperature=4.0, top_p=1.0)
    assert whole.text == hot[2].text and whole.settings == hot[2].settings
    turn = model.converse([Message(role="user", text="hello")], seed=1, temperature=2.0, top_p=0.5)
    assert turn.settings["words"]["token_sampler"]["top_p"] == 0.5


def test_a_temperature_is_found_below_a_restriction_and_replaces_a_schedule() -> None:
    inner = OnlyIds(low=0, high=9, token_sampler=Categorical(temperature=Linear(start=1.0, end=0.0)))
    found = with_options(replace(SAMPLER, token_sampler=inner), (), None, None, 0.3).token_sampler
    assert found == replace(inner, token_sampler=Categorical(temperature=0.3))


def test_the_guidance_scale_of_an_edit_is_that_of_the_text() -> None:
    guidance = EditGuidance(scale=0.0, image_scale=0.5, drop=frozenset(), keep=frozenset(), null_id=0)
    assert with_options(replace(SAMPLER, guidance=guidance), (), None, 2.0).guidance == replace(guidance, scale=2.0)


@pytest.mark.parametrize("name", list(OPTIONS))
def test_an_option_and_a_setting_of_one_field_are_refused(name: str) -> None:
    option = OPTIONS[name]
    with pytest.raises(ValueError, match=f"{option.flag} 2 and -o {option.paths[0]}=2 change the same field; give one"):
        with_options(SAMPLER, [f"{option.paths[0]}=2"], **{name: 2})


@pytest.mark.parametrize(
    ("sampler", "option", "message"),
    [
        (
            replace(SAMPLER, schedule=Fixed(each=1)),
            {"steps": 8},
            r"schedule of this task is Fixed.* no steps; use -o schedule.each",
        ),
        (
            replace(SAMPLER, token_sampler=Greedy()),
            {"temperature": 1.0},
            "Greedy, which has no temperature; leave out --temperature",
        ),
        (
            Sampler(schedule=Cosine(steps=1), token_sampler=Greedy(), selection=Confident()),
            {"guidance_scale": 2.0},
            "NoGuidance, which has no scale; leave out --guidance",
        ),
        (SAMPLER, {"steps": 0}, "at least 1, got 0"),
        (SAMPLER, {"temperature": -0.1}, "at least 0, got -0.1"),
        (SAMPLER, {"temperature": float("nan")}, "at least 0, got nan"),
        (SAMPLER, {"guidance_scale": float("inf")}, "a finite number, got inf"),
        (SAMPLER, {"top_p": 0.0}, "above 0 and at most 1, got 0.0"),
        (SAMPLER, {"top_p": 1.5}, "above 0 and at most 1, got 1.5"),
        (SAMPLER, {"top_p": float("nan")}, "above 0 and at most 1, got nan"),
        (replace(SAMPLER, token_sampler=Greedy()), {"top_p": 0.9}, "Greedy, which has no top_p; leave out --top-p"),
    ],
)
def test_what_does_not_apply_is_refused(sampler: Sampler, option: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        with_options(sampler, (), **option)


def test_a_setting_of_steps_reaches_a_sampler_that_has_them_elsewhere() -> None:
    made = with_options(origin(llada_text(block=8)), ["schedule.steps=3"])
    assert made.selection == Independent(steps=3, eps=1e-3)
    assert with_options(origin(llada_text(block=8)), steps=3) == made
