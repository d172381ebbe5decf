"""Lengths of text answers: a maximum changes no answer, the finish reason is reported, and unused tokens cost nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

import unmask
from unmask.methods.remdm import remdm
from unmask.pipeline.model import Model
from unmask.pipeline.text_family import LENGTH
from unmask.pipeline.text_model import Reply, TextModel
from unmask.sequence import Batch, Kind
from unmask.serving.engine import Engine
from unmask.serving.jobs import Job
from unmask.step import Prediction, Reuse
from unmask.tasks.conversing import Message
from unmask.tasks.lengths import Extent, read_words, words_so_far
from unmask.tasks.results import Answer
from unmask.tasks.running import Decoded, OnStep, decide
from unmask.tokens.text import EOS, EOT, Text

from ..tiny_llada import CONFIG
from ..tiny_llada import make as make_llada
from ..tiny_model import make as make_tiny
from .released_folder import make_folder

torch.set_num_threads(1)
QUESTION = "why is the sky blue?"
HUGE = 10**9


class Ending:
    """A network whose answers have exactly ``length`` tokens: before that it predicts no end of turn, from there on nothing else.

    What it predicts otherwise depends on how many masked tokens it reads. ``forwards``: how often it was called.
    """

    def __init__(self, net: Any, text: Text, length: int) -> None:
        self.net, self.text, self.length, self.forwards = net, text, length, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.net, name)

    def __call__(self, batch: Batch, *, predict: Tensor | None = None, reuse: Reuse | None = None) -> Prediction:
        self.forwards += 1
        prediction = self.net(batch, predict=predict, reuse=reuse)
        logits, at = prediction.logits(Kind.TEXT).clone(), prediction.scored[Kind.TEXT].at
        length, ended = batch.ids.shape[1], torch.zeros_like(at, dtype=torch.bool)
        for row, table in enumerate(batch.span_table):
            ended |= (at // length == row) & (at % length - table[-1].start >= self.length)
        logits[:, self.text[EOS]] = -1e4
        logits[:, self.text[EOT]] = torch.where(ended, 1e4, -1e4)
        return prediction.with_logits({Kind.TEXT: logits})


@dataclass
class Direct:
    """An executor that decodes with its own network."""

    model: Model
    net: Ending

    def run(
        self, sequences: Sequence[Any], seeds: Sequence[int], sampler: Any, on_step: OnStep | None = None
    ) -> Decoded:
        known = self.model.parts.features.known(sequences, self.model.parts.net, self.model.device)
        return decide(self.net, known, seeds, sampler, device=self.model.device, on_step=on_step)

    def emit(self, row: int, event: Any) -> None:
        raise AssertionError("an answer emits nothing")


@dataclass(frozen=True)
class Asked:
    """A way to ask a model for a text; ``own``: tokens of its canvas."""

    own: int
    text: Text
    ask: Callable[..., Answer]
    net: Ending
    rest: int = HUGE  # of the context, after the prompt

    def counted(self, **given: Any) -> tuple[Answer, int]:
        before = self.net.forwards
        return self.ask(**given), self.net.forwards - before


@pytest.fixture(scope="module")
def llada(tmp_path_factory: pytest.TempPathFactory) -> TextModel:
    return unmask.load(make_llada(tmp_path_factory.mktemp("text") / "llada"))  # type: ignore[return-value]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    (place := tmp_path_factory.mktemp("models") / "tiny").mkdir()
    return {"tiny": unmask.load(make_tiny(place)), "released": unmask.load(make_folder(place.parent / "released"))}  # type: ignore[dict-item]


def picture() -> Image.Image:
    return Image.new("RGB", (40, 60), (200, 30, 40))


def writer(llada: TextModel, length: int) -> tuple[TextModel, Ending]:
    net = Ending(llada.parts.net, llada.parts.text, length)
    return TextModel(replace(llada.parts, net=net)), net


def asked(kind: str, length: int, llada: TextModel, models: dict[str, Model]) -> Asked:
    """A model of this kind whose answers have ``length`` tokens."""
    if kind in ("chat", "base"):
        model, net = writer(llada, length)
        ask, own = (model.ask, 24) if kind == "chat" else (model.complete, 12)
        prompt = len(Reply(question=QUESTION, length=1).build(llada.parts).ids) - 1
        rest = CONFIG["max_sequence_length"] - prompt if kind == "chat" else HUGE
        return Asked(own, model.parts.text, lambda **given: ask(QUESTION, length=own, **given), net, rest)
    name, method = kind.split()
    parts, presets = models[name].parts, replace(models[name].presets, answer=6, caption=9, context=400)
    net = Ending(parts.net, parts.text, length)
    model = Model(parts, presets, executor=Direct(models[name], net))
    if method == "ask":
        return Asked(6, parts.text, lambda **given: model.ask(picture(), "what?", **given), net)
    return Asked(9, parts.text, lambda **given: model.describe(picture(), **given), net)


KINDS = ["chat", "base", "tiny ask", "tiny describe", "released ask"]


@pytest.mark.parametrize("length", [0, 3, 30])
@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_does_not_change_with_its_maximum(
    kind: str, length: int, llada: TextModel, models: dict[str, Model]
) -> None:
    """The same text, or its beginning; and no maximum costs more than it must."""
    model = asked(kind, length, llada, models)
    whole, cost = model.counted(max_tokens=HUGE)
    assert whole.finish_reason == "stop"
    costs = []
    for most in (1, 2, model.own - 1, model.own, 31, 100, 1024, 32000):
        answer, forwards = model.counted(max_tokens=most)
        assert forwards <= cost
        assert answer.settings == whole.settings
        if most > length:
            assert (answer.text, answer.finish_reason, forwards) == (whole.text, "stop", cost), most
        else:
            assert whole.text.startswith(answer.text), most
        costs.append(forwards)
    assert costs == sorted(costs)
    default, forwards = model.counted()
    own, same = model.counted(max_tokens=model.own)
    assert (default.text, default.finish_reason, forwards) == (own.text, own.finish_reason, same)


@pytest.mark.parametrize("kind", ["chat", "tiny ask"])
def test_length_is_said_where_something_was_cut_off(kind: str, llada: TextModel, models: dict[str, Model]) -> None:
    for length in (0, 4, 7):
        model = asked(kind, length, llada, models)
        for most in (1, 3, 4, 5, 7, 8, 40):
            cut = most < length
            answer = model.ask(max_tokens=most)
            assert (answer.finish_reason, answer.to_json()["finish_reason"]) == (("length" if cut else "stop"),) * 2


def test_a_maximum_beyond_the_context_is_the_context(llada: TextModel, models: dict[str, Model]) -> None:
    model = asked("chat", HUGE, llada, models)
    (most, cost), (beyond, same) = model.counted(max_tokens=model.rest), model.counted(max_tokens=HUGE)
    assert most.text == beyond.text and cost == same == model.rest
    assert beyond.finish_reason == "length"
    longer = model.ask(max_tokens=model.rest - 9)
    assert beyond.text.startswith(longer.text) and longer.text != beyond.text


def test_a_canvas_is_shortened_to_the_context(llada: TextModel) -> None:
    model, _ = writer(llada, HUGE)
    words = "the sky is blue " * 20
    prompt = len(Reply(question=words, length=1).build(llada.parts).ids) - 1
    short = TextModel(replace(model.parts, context=prompt + 5))
    answer = short.ask(words)
    assert (
        answer.text
        == short.ask(words, max_tokens=HUGE).text
        == model.ask(words, length=5, settings=["blocks.length=32"]).text
    )
    assert answer.finish_reason == "length"
    for room in (0, -3):
        full = TextModel(replace(model.parts, context=prompt + room))
        with pytest.raises(ValueError, match=f"the prompt has {prompt} tokens.*context of {prompt + room}; shorten it"):
            full.ask(words)


def test_an_answer_of_several_canvases_is_the_same_beside_others(llada: TextModel) -> None:
    net = Ending(llada.parts.net, llada.parts.text, 20)
    alone = TextModel(replace(llada.parts, net=net))
    calls = [(QUESTION, {"max_tokens": most, "length": length, "temperature": t, "top_p": 0.9})
             for most, length, t in ((HUGE, 8, 0.0), (3, 8, 0.7), (19, 16, 0.7), (40, 7, 1.0))]  # fmt: skip
    wanted = [alone.ask(words, seed=n, **given) for n, (words, given) in enumerate(calls)]  # type: ignore[arg-type]
    with Engine(net) as engine:
        from concurrent.futures import ThreadPoolExecutor

        def ask(number: int) -> Answer:
            words, given = calls[number]
            return TextModel(alone.parts, executor=Job(engine)).ask(words, seed=number, **given)  # type: ignore[arg-type]

        with ThreadPoolExecutor(len(calls)) as threads:
            found = list(threads.map(ask, range(len(calls))))
    assert [(a.text, a.finish_reason) for a in found] == [(a.text, a.finish_reason) for a in wanted]
    assert len({a.text for a in wanted}) > 1


def test_the_random_numbers_of_canvases_differ(llada: TextModel) -> None:
    """With the seed alone, the second canvas would draw what the first drew."""
    seeds: list[int] = []
    model, _ = writer(llada, 20)
    run = model.run

    def watched(sequences: Any, own: Any, sampler: Any, on_step: Any = None) -> Decoded:
        seeds.extend(own)
        return run(sequences, own, sampler, on_step)

    model.run = watched  # type: ignore[method-assign]
    model.ask(QUESTION, length=8, max_tokens=HUGE, seed=5)
    assert seeds[0] == 5 and len(set(seeds)) == 3


def test_the_default_length_is_that_of_the_published_chat(llada: TextModel) -> None:
    model, net = writer(llada, HUGE)
    assert model.ask(QUESTION).text == model.ask(QUESTION, max_tokens=128).text and LENGTH == 128
    assert net.forwards == 2 * 128


def test_wrong_lengths_are_refused(llada: TextModel, models: dict[str, Model]) -> None:
    tiny = models["tiny"]
    calls: list[Callable[..., Any]] = [
        lambda **given: llada.ask("why?", **given),
        lambda **given: llada.complete("why?", **given),
        lambda **given: tiny.ask(picture(), "why?", **given),
        lambda **given: tiny.describe(picture(), **given),
    ]
    for call in calls:
        for given, said in (
            ({"max_tokens": 0}, "max_tokens must be at least 1, got 0"),
            ({"max_tokens": -5}, "max_tokens must be at least 1, got -5"),
            ({"length": 0}, "length must be at least 1, got 0"),
            ({"stop": ["a", ""]}, "a stop string is empty; leave it out"),
            ({"top_p": 0}, r"top_p \(--top-p\) must be above 0 and at most 1, got 0"),
            ({"top_p": 1.1}, "above 0 and at most 1, got 1.1"),
        ):
            with pytest.raises(ValueError, match=said):
                call(**given)


# -- stop strings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["chat", "tiny ask"])
def test_the_text_ends_before_the_first_stop_string(kind: str, llada: TextModel, models: dict[str, Model]) -> None:
    model = asked(kind, 30, llada, models)
    whole, cost = model.counted(max_tokens=HUGE, temperature=1.0, seed=3)
    places = [n for n in range(1, len(whole.text) - 2) if "\ufffd" not in whole.text[n : n + 2]]
    for at in (places[0], places[len(places) // 2], places[-1]):
        stop = whole.text[at : at + 2]
        answer, forwards = model.counted(max_tokens=HUGE, temperature=1.0, seed=3, stop=[stop, "never said"])
        assert answer.text == whole.text.partition(stop)[0] and answer.finish_reason == "stop"
        assert forwards <= cost
    assert model.counted(max_tokens=HUGE, temperature=1.0, seed=3, stop=[whole.text[:2]])[1] < cost
    later, sooner = whole.text[places[-1] : places[-1] + 2], whole.text[places[0] : places[0] + 2]
    both = model.ask(max_tokens=HUGE, temperature=1.0, seed=3, stop=[later, sooner])
    assert both.text == min((whole.text.partition(s)[0] for s in (later, sooner)), key=len)
    unsaid = model.ask(max_tokens=HUGE, temperature=1.0, seed=3, stop=["never said"])
    assert (unsaid.text, unsaid.finish_reason) == (whole.text, "stop")


def test_a_single_stop_string_is_not_taken_for_its_letters(llada: TextModel, models: dict[str, Model]) -> None:
    messages = [Message(role="user", text="why?")]
    for call in (
        lambda: llada.ask("why?", stop="END"),
        lambda: llada.complete("why?", stop="END"),
        lambda: llada.converse(messages, stop="END"),
        lambda: models["tiny"].ask(picture(), "why?", stop="END"),
        lambda: models["tiny"].describe(picture(), stop="END"),
        lambda: models["tiny"].converse(messages, stop="END"),
    ):
        with pytest.raises(
            TypeError, match=r"stop must be a list of texts, got 'END' .*give a list, for example \['END'\]"
        ):
            call()


def test_a_stop_string_behind_the_maximum_does_not_count(llada: TextModel) -> None:
    text = llada.parts.text
    ids = [*text.encode("the sky is blue"), text[EOT]]
    assert read_words(ids, text, Extent(length=9, stop=("blue",))).finish_reason == "stop"
    two = len(text.encode("the sky"))
    found = read_words(ids, text, Extent(length=9, max_tokens=two, stop=("blue",)))
    assert (found.text, found.tokens, found.finish_reason, found.cut) == ("the sky", two, "length", True)


def test_what_is_streamed_is_never_taken_back(llada: TextModel) -> None:
    """At every step a beginning of the final text, which grows; without what may become a stop string."""
    model, _ = writer(llada, 30)
    text = model.parts.text
    for seed in range(3):
        whole = model.ask(QUESTION, length=16, max_tokens=40, temperature=1.0, seed=seed).text
        stop = (whole[len(whole) // 2 :][:3], "never said")
        for extent in (Extent(length=16, max_tokens=40, stop=stop), Extent(length=16, max_tokens=9)):
            shown: list[str] = []
            model.executor = Watching(model, lambda event: shown.append(words_so_far(event.sequence, text, extent)))  # noqa: B023
            final = model.ask(
                QUESTION, length=16, max_tokens=extent.max_tokens, stop=extent.stop, temperature=1.0, seed=seed
            ).text
            assert all(final.startswith(words) for words in shown), (final, shown)
            assert shown == sorted(shown, key=len) and len(set(shown)) > 1
    model.executor = None


@dataclass
class Watching:
    """An executor that passes the steps on, as a server's listener sees them."""

    model: TextModel
    watch: Callable[[Any], None]
    seen: list[Any] = field(default_factory=list)

    def run(self, sequences: Any, seeds: Any, sampler: Any, on_step: OnStep | None = None) -> Decoded:
        return decide(self.model.parts.net, sequences, seeds, sampler, device=torch.device("cpu"), on_step=self.watch)

    def emit(self, row: int, event: Any) -> None:
        raise AssertionError("an answer emits nothing")


def test_a_sampler_that_masks_tokens_again_is_not_ended_early(llada: TextModel) -> None:
    """Its text is final only at the end, so a lower maximum costs as much, and is still the beginning of the same answer."""
    model, net = writer(llada, 30)
    model = model.with_sampler(lambda sampler: remdm(sampler, eta=0.4))
    whole = model.ask(QUESTION, length=16, max_tokens=16, temperature=1.0, seed=1)
    cost = net.forwards
    short = model.ask(QUESTION, length=16, max_tokens=5, temperature=1.0, seed=1)
    assert whole.text.startswith(short.text) and net.forwards == 2 * cost


def test_an_incomplete_character_is_left_out(llada: TextModel) -> None:
    text = llada.parts.text
    ids = text.encode("sky €")
    assert text.decode(ids[:-1]).endswith("\ufffd") and text.decode_begun(ids[:-1]) == "sky "
    assert text.decode_begun(ids) == "sky €" and text.decode_begun([]) == ""
    wrong = text.encode("€")[-1:]  # a byte that no character begins with stays what it is
    assert text.decode_begun([*text.encode("sky"), *wrong]) == text.decode([*text.encode("sky"), *wrong]) == "sky\ufffd"
