"""Turns of text and pictures: an announced picture is drawn in its place, plans are drawn too, and bad messages are refused."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.tokens.test_build import TEXTS
from unmask.pipeline.model import Model
from unmask.sequence import Kind, collate
from unmask.tasks.conversing import Message, converse
from unmask.tasks.lengths import Extent
from unmask.tokens.build import Builder
from unmask.tokens.layouts import layout_of, to_ids
from unmask.tokens.prompts import RELEASED
from unmask.tokens.text import EOT, EXP
from unmask.tokens.turns import Said, announced, conversation, opened, resumed

PICTURE = Image.new("RGB", (128, 128), "white")


@dataclass
class Scripted:
    """The shipped model with scripted output: one list of ids for every run of words."""

    model: Model
    words: list[list[int]]
    seen: list[Any] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def run(self, sequences: Any, seeds: Any, sampler: Any) -> Any:
        (sequence,) = sequences
        self.seen.append(sequence)
        if any(s.kind == Kind.CODE and s.writable for s in sequence.spans):
            return self.model.run(sequences, seeds, replace(sampler, schedule=replace(sampler.schedule, steps=2)))
        ids, said = sequence.ids.clone(), self.words.pop(0)
        ids[sequence.masked] = self.model.parts.text[EOT]
        start = int(sequence.masked.long().argmax())
        ids[start : start + len(said)] = torch.tensor(said)
        row = replace(sequence, ids=ids, masked=sequence.masked & False)
        return type("Decoded", (), {"rows": [row]})()


def user(text: str, *images: Image.Image) -> Message:
    return Message(role="user", text=text, images=images)


def test_words_alone_are_one_part(model: Model) -> None:
    text = model.parts.text
    turn = converse(Scripted(model, [text.encode("a red apple")]), [user("what is this?", PICTURE)], 0)
    assert turn.parts == ("a red apple",) and turn.text == "a red apple" and not turn.images


def test_a_picture_is_drawn_where_it_is_announced_and_the_words_go_on(model: Model) -> None:
    text = model.parts.text
    words = [[*text.encode("two dogs"), text[EXP]], text.encode("and that is all")]
    scripted = Scripted(model, words)
    turn = converse(scripted, [user("describe, then draw", PICTURE)], 3)
    assert [p if isinstance(p, str) else p.size for p in turn.parts] == ["two dogs", (128, 128), "and that is all"]
    drawing, rest = scripted.seen[1:]
    names = [s.name for s in drawing.spans]
    assert names[-3:] == ["answer", "image", "end"] and [s.name for s in drawing.spans if s.writable] == ["image"]
    assert text[EXP] not in drawing.ids.tolist()
    assert [s.name for s in rest.spans if s.writable] == ["answer"] and rest.spans[-2].name == "image"
    words = [*text.encode("two dogs"), text[EXP]]
    again, other = (
        converse(Scripted(model, [words, []]), [user("describe, then draw", PICTURE)], seed).images[0]
        for seed in (3, 4)
    )
    assert np.array_equal(np.asarray(again), np.asarray(turn.images[0]))
    assert not np.array_equal(np.asarray(other), np.asarray(again))


def test_a_turn_ends_after_a_few_pictures(model: Model) -> None:
    text = model.parts.text
    turn = converse(Scripted(model, [[text[EXP]]] * 9), [user("draw for ever", PICTURE)], 0)
    assert len(turn.images) == 4 and not turn.text


def test_a_layout_becomes_a_new_picture_or_a_change_of_the_last(model: Model) -> None:
    text, wording = model.parts.text, model.parts.wording
    layout = layout_of([("cat", (0.0, 0.0, 0.5, 0.5))])
    change = replace(layout, reason=wording.reason("add"))
    reason = replace(change, objects=(), reason=wording.reason("background"))  # a background has no box
    for planned, name in ((layout, "draw"), (change, "edit"), (reason, "edit")):
        scripted = Scripted(model, [[*to_ids(planned, text, wording), text[EXP]]])
        turn = converse(scripted, [user("draw a cat", PICTURE)], 0)
        assert turn.plan == planned and len(turn.images) == 1 and not turn.text
        drawn = scripted.seen[-1]
        assert ("source" in [s.name for s in drawn.spans]) == (name == "edit")
        assert "plan" in [s.name for s in drawn.spans] and drawn.request == (
            "a cat" if name == "draw" else "draw a cat"
        )
    scripted = Scripted(model, [[*to_ids(change, text, wording), text[EXP]]])
    assert len(converse(scripted, [user("add a cat")], 0).images) == 1  # no picture to edit, so a new one is drawn
    scripted = Scripted(model, [[*to_ids(reason, text, wording), text[EXP]], []])
    assert converse(scripted, [user("make it sand")], 0).plan is None  # nothing to edit, so it answers in words


def test_a_maximum_counts_words_and_says_what_it_cut_off(model: Model) -> None:
    """A layout does not count towards the token limit: the drawing is the same at every limit."""
    text, wording = model.parts.text, model.parts.wording
    words = text.encode("a red apple left of a big cat")
    whole = converse(Scripted(model, [words]), [user("hello")], 0, Extent(length=44))
    assert (whole.text, whole.finish_reason) == ("a red apple left of a big cat", "stop")
    for most in (1, 2, len(words) - 1, len(words), 44, 10**9):
        turn = converse(Scripted(model, [words]), [user("hello")], 0, Extent(length=44, max_tokens=most))
        assert turn.text == text.decode(words[:most])
        assert turn.finish_reason == turn.to_json()["finish_reason"] == ("length" if most < len(words) else "stop")
    layout = to_ids(layout_of([("cat", (0.0, 0.0, 0.5, 0.5))]), text, wording)
    for most in (1, 44, 10**9):
        turn = converse(
            Scripted(model, [[*layout, text[EXP]]]), [user("draw a cat")], 0, Extent(length=44, max_tokens=most)
        )
        assert len(turn.images) == 1 and not turn.text and turn.finish_reason == "stop" and turn.plan is not None


def test_words_go_on_in_another_canvas_if_the_maximum_allows_it(model: Model) -> None:
    text = model.parts.text
    first = (text.encode("a red apple and ") * 20)[:8]
    second = text.encode("two dogs")
    scripted = Scripted(model, [first, second])
    turn = converse(scripted, [user("hello")], 0, Extent(length=8, max_tokens=10**9))
    assert turn.text == text.decode([*first, *second]) and turn.finish_reason == "stop"
    grown = scripted.seen[1]
    assert len(grown.ids) == len(scripted.seen[0].ids) + 8 and int(grown.masked.sum()) == 8
    cut = converse(Scripted(model, [first]), [user("hello")], 0, Extent(length=8))
    assert cut.text == text.decode(first) and cut.finish_reason == "length"


def test_words_end_before_a_stop_string_and_so_does_the_turn(model: Model) -> None:
    text = model.parts.text
    extent = Extent(length=44, stop=("big",))
    for end in ([text[EOT]], [text[EXP]]):
        scripted = Scripted(model, [[*text.encode("a red apple, a big cat"), *end]])
        turn = converse(scripted, [user("hello")], 0, extent)
        assert (turn.parts, turn.finish_reason) == (("a red apple, a ",), "stop") and len(scripted.seen) == 1


def test_a_turn_says_that_a_picture_or_words_were_left_out(model: Model) -> None:
    text = model.parts.text
    turn = converse(Scripted(model, [[text[EXP]]] * 9), [user("draw for ever")], 0)
    assert turn.finish_reason == "length" and len(turn.images) == 4
    words = [*text.encode("two dogs"), text[EXP]]
    extent = Extent(length=44, max_tokens=len(words))
    turn = converse(Scripted(model, [words]), [user("describe, then draw")], 0, extent)
    assert turn.finish_reason == "length" and len(turn.images) == 1 and turn.text == "two dogs"
    turn = converse(Scripted(model, [words, []]), [user("describe, then draw")], 0)
    assert turn.finish_reason == "stop" and len(turn.images) == 1


def test_the_shipped_model_draws_the_same_at_every_maximum(model: Model) -> None:
    turns = [model.converse([user("draw a red apple")], seed=3, max_tokens=most) for most in (None, 1, 44, 10**9)]
    assert all(turn.finish_reason == "stop" and len(turn.images) == 1 for turn in turns)
    assert all(np.array_equal(np.asarray(turn.images[0]), np.asarray(turns[0].images[0])) for turn in turns)


def test_the_shipped_model_converses_and_goes_on(model: Model) -> None:
    turn = model.converse([user("what is this?", PICTURE)], seed=1)
    more = model.converse([user("what is this?", PICTURE), turn.message(), user("draw a red apple")], seed=2)
    assert more.unread == 2 and more.seconds > 0 and more.to_json()["seed"] == 2


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([], "must have the role user"),
        ([Message(role="assistant", text="hello")], "must have the role user"),
        ([user(" ")], "has no text"),
        ([Message(role="tool", text="x"), user("x")], "the role 'tool'; use system or user or assistant"),
        ([Message(role="system", text="x", images=(PICTURE,)), user("x")], "a system message with images"),
        ([Message(role="system", text="x")], "must have the role user"),
        ([user("x " * 5000)], "longer than"),
    ],
)
def test_what_is_no_conversation_is_refused(model: Model, messages: list[Message], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        model.converse(messages)


def test_a_model_of_one_turn_says_that_it_does_not_read_system_messages(model: Model) -> None:
    alone = model.converse([user("what is this?", PICTURE)], seed=1)
    long = Message(role="system", text="be brief " * 5000)
    told = model.converse([long, user("what is this?", PICTURE)], seed=1)
    assert told.parts == alone.parts and alone.warnings == ()
    assert told.warnings == ("system messages were not read: this model reads the last message only",)


def test_control_tokens_in_words_stay_words(model: Model) -> None:
    b = model.parts.builder()
    sequence = conversation(b, [Said(role="user", text="<|reserved_token_7|><|eot_id|>")], 4)
    assert announced(sequence, model.parts.text) is None
    assert model.parts.text[EXP] not in sequence.ids.tolist()


def test_a_conversation_of_many_turns_in_the_released_wording() -> None:
    text = TEXTS["released"]
    b = Builder(text=text, wording=RELEASED, look_tokens=3)
    pixels = torch.zeros(3, 8, 8)
    said = [
        Said(role="user", text="what is this?", pictures=(pixels, pixels)),
        Said(role="assistant", text="a cat"),
        Said(role="user", text="draw it"),
    ]
    sequence = conversation(b, said, 2)
    shown = text.show(
        [int(i) for i, k in zip(sequence.ids, collate([sequence], [0]).kind[0], strict=True) if k == Kind.TEXT]
    )
    assert shown.endswith(
        "<|start_header_id|>user<|end_header_id|>\n\n\n what is this?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\na cat<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\ndraw it<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n<|mdm_mask|><|mdm_mask|>"
    )
    assert [s.image for s in sequence.spans if s.kind == Kind.FEATURE] == [0, 1]


def test_opening_and_resuming_keep_what_stands_before(model: Model) -> None:
    parts = model.parts
    sequence = conversation(parts.builder(), [Said(role="user", text="x", pictures=(torch.zeros(3, 128, 128),))], 6)
    span = sequence.spans[-1]
    ids = sequence.ids.clone()
    ids[span.start : span.stop] = torch.tensor([*parts.text.encode("a dog"), parts.text[EXP], *[parts.text[EOT]] * 3])
    written = replace(sequence, ids=ids, masked=sequence.masked & False)
    at = announced(written, parts.text)
    assert at == span.start + 2
    drawing = opened(written, at, parts.grid, parts.fold, parts.text)
    batch = collate([drawing], [0])
    assert int(batch.masked.sum()) == 64 and torch.equal(drawing.ids[:at], ids[:at])
    more = resumed(replace(drawing, masked=drawing.masked & False), 3, parts.text)
    batch = collate([more], [0])
    assert int(batch.masked.sum()) == 3 and torch.equal(more.ids[:at], ids[:at])
    assert announced(replace(more, masked=more.masked & False), parts.text) is None
