"""Fast mode: its words, what each part does to a sampler, and which results say that they are approximate."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from PIL import Image

import unmask
from tests import tiny_llada
from tests.tiny_model import make
from unmask.cli.completion import SPEED_PARTS
from unmask.grammars.answer_format import of_regex, of_schema
from unmask.pipeline.model import Model
from unmask.pipeline.text_model import TextModel
from unmask.sampling.cache import BlockCache, NoCache, PrefixCache
from unmask.sampling.fast import EVERY, EXACT, FAST, Fast, FastPictures, FastText, acting
from unmask.sampling.guidance import ClassifierFree, EditGuidance
from unmask.sampling.sampler import Sampler
from unmask.sampling.schedule import Cosine, Equal, Fixed, Shift
from unmask.sampling.selection import Confident, InOrder, Threshold
from unmask.sampling.step_causal import ByPosition, SparseCache
from unmask.sampling.token_sampler import Greedy
from unmask.tasks.conversing import Message
from unmask.tasks.released import PRESETS
from unmask.tasks.speeds import parts, speed_of
from unmask.tasks.step_causal import step_causal

FREE = ClassifierFree(scale=2.0, drop=frozenset({"prompt"}), null_id=1)
DRAWS = Sampler(schedule=Cosine(steps=16), token_sampler=Greedy(), selection=Confident(), guidance=FREE)
WRITES = Sampler(schedule=Fixed(each=1), token_sampler=Greedy(), selection=Confident())
SEEN = Image.new("RGB", (32, 32), "red")


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    with TemporaryDirectory() as place:
        made = unmask.load(make(Path(place)))
        assert isinstance(made, Model)
        yield made


# -- words ------------------------------------------------------------------------------------------------------------


def test_words_of_a_speed() -> None:
    assert speed_of("exact") == EXACT and speed_of("fast") == FAST and speed_of(FAST) is FAST
    assert speed_of("refresh") == Fast(
        draw=FastPictures(refresh=EVERY.draw.refresh), edit=FastPictures(refresh=EVERY.edit.refresh)
    )
    assert speed_of(",".join(parts())) == EVERY and EVERY.draw.refresh is not None
    assert speed_of("steps=0.25, interval=0.2:0.8").draw == FastPictures(steps=0.25, interval=(0.2, 0.8))
    assert speed_of("threshold=0.7,cache=3").text == FastText(threshold=0.7, cache=3)
    assert speed_of("fast,steps=1").edit == dataclasses.replace(FAST.edit, steps=1.0)
    assert speed_of("fast,exact") == EXACT


def test_the_command_line_knows_the_same_parts() -> None:
    assert parts() == SPEED_PARTS


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fsat", "speed: there is no 'fsat'; did you mean 'fast'"),
        ("fast,refesh=2", "there is no 'refesh'; did you mean 'refresh'"),
        ("qqq", "use exact, fast, or some of interval, refresh, steps, shift, threshold, cache"),
        ("", "there is no ''"),
        ("fast=2", "there is no 'fast'; did you mean 'fast'"),
        ("steps=half", "steps='half' must be a number"),
        ("refresh=1.5", "refresh='1.5' must be a whole number"),
        ("interval=0.5", "interval='0.5' must be two numbers"),
        ("interval=0.5:0.2", "interval must be two rising numbers"),
        ("interval=0:nan", "interval must be two rising numbers"),
        ("refresh=0", "refresh counts steps, got 0"),
        ("steps=0", "steps must be a fraction"),
        ("steps=nan", "steps must be a fraction"),
        ("shift=0", "shift must be a factor above 0"),
        ("shift=inf", "shift must be a factor above 0"),
        ("threshold=2", "threshold must be a probability"),
        ("cache=-1", "cache counts steps, got -1"),
    ],
)
def test_wrong_words_are_named_errors(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as found:
        speed_of(text)
    assert str(found.value).startswith("speed: ")


# -- parts ------------------------------------------------------------------------------------------------------------


def test_each_part_changes_its_own_field() -> None:
    made = FastPictures(interval=(0.1, 0.6))(DRAWS)
    assert made == dataclasses.replace(DRAWS, guidance=dataclasses.replace(FREE, interval=(0.1, 0.6)))
    made = FastPictures(refresh=3)(DRAWS)
    assert made == dataclasses.replace(DRAWS, guidance=dataclasses.replace(FREE, refresh=3))
    assert FastPictures(steps=0.4)(DRAWS) == dataclasses.replace(DRAWS, schedule=Cosine(steps=7))
    assert FastPictures(steps=0.4, shift=3.0)(DRAWS) == dataclasses.replace(DRAWS, schedule=Shift(steps=7, shift=3.0))
    made = FastText(threshold=0.8)(WRITES)
    assert made == dataclasses.replace(WRITES, schedule=Equal(steps=1), selection=Threshold(value=0.8))
    assert FastText(cache=5)(WRITES) == dataclasses.replace(WRITES, cache=BlockCache(refresh=5))
    assert FastPictures()(DRAWS) == DRAWS and FastText()(WRITES) == WRITES


def test_a_part_that_does_not_fit_changes_nothing() -> None:
    assert FastPictures(interval=(0.0, 0.5), refresh=2)(WRITES) == WRITES
    assert FastPictures(steps=0.5, shift=2.0)(WRITES) == WRITES, "a schedule in tokens a step has no number of steps"
    shifted = dataclasses.replace(DRAWS, schedule=Shift(steps=8, shift=5.0))
    assert FastPictures(shift=3.0)(shifted) == shifted, "a published shift stays"
    cached = dataclasses.replace(WRITES, cache=PrefixCache())
    assert FastText(cache=2)(cached) == cached
    ordered = dataclasses.replace(WRITES, selection=InOrder(order=(1, 0)))
    assert FastText(threshold=0.5)(ordered) == ordered


def test_step_causal_samplers_keep_their_cache_and_their_views() -> None:
    """Scoring all masked tokens at a refresh would undo step-causal decoding."""
    sparse = dataclasses.replace(DRAWS, cache=SparseCache(), schedule=ByPosition(schedule=Cosine(steps=16)))
    made = EVERY.draw(sparse)
    assert isinstance(made.guidance, ClassifierFree) and made.guidance.refresh == 1
    assert made.guidance.interval == EVERY.draw.interval and EVERY.draw.steps is not None
    wanted = Shift(steps=round(16 * EVERY.draw.steps), shift=EVERY.draw.shift or 0.0)
    assert made.schedule == ByPosition(schedule=wanted)
    assert EVERY.text(dataclasses.replace(WRITES, cache=SparseCache())).cache == SparseCache()


def test_published_presets_at_fast_speed(model: Model) -> None:
    """Every preset of every family has a sampler that runs, and the guided ones have the guidance of fast mode."""
    fast = PRESETS.with_speed(EVERY)
    edit = fast.edit(model.parts).guidance
    assert isinstance(edit, EditGuidance)
    assert (edit.interval, edit.refresh) == (EVERY.edit.interval, EVERY.edit.refresh)
    for name in ("ask", "plan", "critique", "turn_words"):
        made = getattr(fast, name)(model.parts)
        assert isinstance(made.selection, Threshold) and not isinstance(made.cache, NoCache)
    assert fast.ground is PRESETS.ground, "boxes have no part in fast mode"
    assert isinstance(step_causal(PRESETS).with_speed(EVERY).generate(model.parts).cache, SparseCache)


def test_a_speed_takes_the_place_of_another() -> None:
    fast = PRESETS.with_speed(FAST)
    assert fast.with_speed(EXACT) is PRESETS
    assert fast.with_speed(speed_of("steps=0.5")).exact is PRESETS


def test_labels_name_the_parts_that_act() -> None:
    assert acting(FAST.draw, DRAWS, DRAWS) == ()
    change = FastPictures(interval=(0.0, 0.5), refresh=2, steps=0.5)
    fast = change(DRAWS)
    assert acting(change, DRAWS, fast) == ("interval=0:0.5", "refresh=2", "steps=0.5")
    shifted = FastPictures(steps=0.5, shift=3.0)
    assert acting(shifted, DRAWS, shifted(DRAWS)) == ("steps=0.5", "shift=3")
    assert acting(shifted, DRAWS, dataclasses.replace(DRAWS, schedule=Shift(steps=9, shift=3.0))) == ("shift=3",)
    own_steps = dataclasses.replace(fast, schedule=Cosine(steps=20))
    assert acting(change, DRAWS, own_steps) == ("interval=0:0.5", "refresh=2")
    assert isinstance(fast.guidance, ClassifierFree)
    unguided = dataclasses.replace(fast, guidance=dataclasses.replace(fast.guidance, scale=0.0))
    assert acting(change, DRAWS, unguided) == ("steps=0.5",)
    assert acting(FAST.text, WRITES, FAST.text(WRITES)) == ("threshold=0.9", "cache=4")
    assert acting(FastPictures(steps=1.0), DRAWS, DRAWS) == (), "all steps are exact"


# -- models -----------------------------------------------------------------------------------------------------------


def test_an_exact_model_is_not_changed_by_fast_ones(model: Model) -> None:
    before = model.generate("a dog", plan=False, steps=4)[0]
    fast = model.with_speed("fast")
    fast.generate("a dog", plan=False)
    for again in (model, fast.with_speed("exact")):
        drawn = again.generate("a dog", plan=False, steps=4)[0]
        assert drawn.image == before.image and drawn.settings == before.settings
        assert drawn.approximate == () and "approximate" not in drawn.to_json()


def test_every_result_says_what_acted(model: Model) -> None:
    fast = model.with_speed("refresh=2,interval=0:0.9,steps=0.5,threshold=0.9")
    pictures, text = ("interval=0:0.9", "refresh=2", "steps=0.5"), ("threshold=0.9",)
    assert fast.generate("a dog", plan=False)[0].approximate == pictures
    assert fast.generate("a dog", plan=True, attempts=1)[0].approximate == (*pictures, *text)
    assert fast.generate("a dog", plan=False, attempts=2)[0].approximate == (*pictures, *text)
    several = fast.generate(["a dog", "a cat"], plan=False, guidance_scale=0.0)
    assert [drawing.approximate for drawing in several] == [("steps=0.5",)] * 2
    assert fast.edit(SEEN, "make it blue", guidance_scale=1.0)[0].approximate == pictures
    assert fast.edit(SEEN, "make it blue", attempts=2)[0].approximate == ("steps=0.5", *text)
    assert fast.infill(SEEN, Image.new("RGB", SEEN.size, "white"), prompt="a dog").approximate == pictures
    assert fast.ask(SEEN, "what is it?").to_json()["approximate"] == list(text)
    assert fast.describe(SEEN).approximate == text
    assert fast.infill_text("a [mask] dog").approximate == text
    assert fast.converse([Message(role="user", text="what is a dog?")]).to_json()["approximate"][-1:] == list(text)
    assert "approximate" not in fast.ground(SEEN, "the dog").to_json()
    assert fast.generate("a dog", plan=False, sampler=DRAWS, steps=3)[0].approximate == ()


def test_answers_in_a_format_match_it_at_any_speed(model: Model) -> None:
    fast = model.with_speed("threshold=0.01")
    form = of_schema('{"type": "object", "properties": {"a": {"enum": ["dog", "cat"]}, "n": {"type": "integer"}}}')
    made = fast.ask(SEEN, "what is it?", form=form)
    assert isinstance(made.value, dict) and made.approximate == ("threshold=0.01",)
    assert made.settings["selection"]["part"] == "Threshold"


def test_options_and_samplers_of_a_call_take_precedence(model: Model) -> None:
    fast = model.with_speed("interval,refresh,steps")
    drawn = fast.generate("a dog", plan=False, steps=3, settings=["guidance.refresh=3"])[0]
    assert drawn.settings["schedule"]["steps"] == 3 and drawn.settings["guidance"]["refresh"] == 3
    assert drawn.approximate == ("interval=" + ":".join(f"{edge:g}" for edge in EVERY.draw.interval or ()),)
    changed = model.with_speed("threshold").with_sampler(lambda s: dataclasses.replace(s, selection=Confident()))
    assert changed.ask(SEEN, "what?").settings["selection"] == {"part": "Confident", "noise": 0.0}
    under = model.with_sampler(lambda s: dataclasses.replace(s, selection=Confident())).with_speed("threshold=0.8")
    assert under.ask(SEEN, "what?").settings["selection"] == {"part": "Threshold", "value": 0.8}
    assert under.ask(SEEN, "what?").approximate == ("threshold=0.8",)


def test_a_fast_picture_is_batch_invariant(model: Model) -> None:
    fast = model.with_speed("refresh=3,interval=0:0.8,steps=0.5")
    together = fast.generate("a dog", plan=False, n=3, guidance_scale=2.0)
    for number, drawn in enumerate(together):
        alone = fast.generate("a dog", plan=False, seed=number, guidance_scale=2.0)[0]
        assert drawn.image == alone.image


def test_load_takes_a_speed(tmp_path: Path) -> None:
    folder = make(tmp_path)
    made = unmask.load(folder, speed="steps=0.5")
    assert isinstance(made, Model) and made.presets.fast == speed_of("steps=0.5")
    with pytest.raises(ValueError, match="did you mean 'steps'"):
        unmask.load(folder, speed="step=0.5")


def test_a_text_model_at_fast_speed(tmp_path: Path) -> None:
    torch.manual_seed(0)
    exact = unmask.load(tiny_llada.make(tmp_path / "llada"))
    assert isinstance(exact, TextModel)
    fast = exact.with_speed("fast")
    before = exact.ask("why?", length=8)
    made = fast.ask("why?", length=8)
    assert made.settings["selection"]["part"] == "Threshold" and made.settings["cache"]["part"] == "BlockCache"
    assert made.approximate == ("threshold=0.9", "cache=4") and before.approximate == ()
    assert fast.complete("why", length=8).approximate == made.approximate
    assert fast.infill_text("a [mask] dog").approximate == made.approximate
    assert fast.converse([Message(role="user", text="why?")], max_tokens=4).approximate == made.approximate
    assert fast.with_speed("exact").ask("why?", length=8).text == before.text
    formed = fast.ask("why?", form=of_regex("(yes|no){2,4}"))
    assert formed.text and formed.approximate == made.approximate
    greedy = fast.with_sampler(lambda s: dataclasses.replace(s, selection=Confident(), cache=NoCache()))
    assert greedy.ask("why?", length=8).approximate == ("threshold=0.9",), "its schedule is still that of a threshold"
