"""How every request and training sample is written down: golden text, positions, segments.

After a wanted change: ``python tests/tokens/test_build.py`` writes tests/golden/prompts anew.

``compact`` files use the shipped tokenizer. ``released`` files use one token a byte, so that what stands in them is the
wire format to the last blank (spec 2.1, 2.2).
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from unmask.sequence import Branch, Kind, Sequence, collate
from unmask.tokens.build import (
    Builder,
    FailedAttempt,
    PlanIds,
    asking,
    drawing,
    editing,
    grounding,
    looking,
    plan_ids,
    planning,
    planning_edit,
)
from unmask.tokens.layouts import Layout, Placed, to_ids
from unmask.tokens.prompts import COMPACT, RELEASED, Conditions, Wording
from unmask.tokens.text import CONTROL, EOT, MASK, Text

GOLDEN = Path(__file__).parents[1] / "golden" / "prompts"
PIXELS = torch.zeros(3, 128, 128)
CODES = torch.arange(16).reshape(4, 4)
MICRO = Conditions(width=1024, height=1024, top=0, left=0, score=7.11)
LOOK = 20


def byte_text() -> Text:
    """One token a byte: no merges, nothing normalised, no blank added."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(CONTROL))
    return Text(tokenizer)


TEXTS = {
    "compact": Text.load(Path(str(files("unmask") / "assets" / "mini" / "tokenizer.json"))),
    "released": byte_text(),
}
WORDINGS = {"compact": COMPACT, "released": RELEASED}


def _look(b: Builder) -> Sequence:
    looking(b, PIXELS)
    asking(b, "how many apples are there?", [*b.text.encode("two"), b.text[EOT], b.text[EOT]], segment=1)
    asking(b, "what is on the left?", 3, segment=2)
    grounding(b, "the red apple", (0.125, 0.25, 0.5, 0.75), segment=3)
    return grounding(b, "the cat", None, segment=4).build()


def _plan(b: Builder, kind: str = "") -> list[int]:
    objects = (
        Placed(phrase="red apple", box=(0.125, 0.25, 0.5, 0.75)),
        Placed(phrase="cat", box=(0.5, 0.25, 0.75, 0.5)),
    )
    reason = b.wording.reason(kind) if kind else b.wording.plan_reason
    return to_ids(Layout(objects=objects, reason=reason), b.text, b.wording)


def _retry(b: Builder) -> Sequence:
    attempts = [
        FailedAttempt(picture=PIXELS, critique="there is no cat"),
        FailedAttempt(picture=PIXELS, critique="a cat is missing"),
    ]
    return drawing(b, "a dog", (4, 4), fold=2, plan=PlanIds(ids=tuple(_plan(b))), attempts=attempts)


TASKS: dict[str, Callable[[Builder], Sequence]] = {
    "draw": lambda b: drawing(b, "a red apple left of a cat", (4, 4), fold=2),
    "draw_with_conditions": lambda b: drawing(b, "a dog", (4, 4), fold=1, conditions=MICRO),
    "draw_training": lambda b: drawing(b, "a dog", CODES, fold=2),
    "edit": lambda b: editing(b, PIXELS, CODES, "make the apple blue", (4, 4), fold=2),
    "edit_training": lambda b: editing(b, PIXELS, CODES, "remove the cat", CODES, fold=2),
    "ask": lambda b: asking(looking(b, PIXELS), "what colour is the bus?", 6).build(),
    "describe": lambda b: asking(looking(b, PIXELS), b.wording.describe, 4).build(),
    "complete": lambda b: asking(looking(b, None), b.wording.complete, [*b.text.encode("a dog"), b.text[EOT]]).build(),
    "ground": lambda b: grounding(grounding(looking(b, PIXELS), "the cat", None), "a dog", None, segment=2).build(),
    "look_training": _look,
    "plan": lambda b: planning(b, "a red apple left of a cat", 12, conditions=MICRO),
    "plan_training": lambda b: planning(b, "a red apple left of a cat", plan_ids(b.text, _plan(b), 250)),
    "plan_edit": lambda b: planning_edit(b, PIXELS, "add a red apple", 12),
    "draw_planned_training": lambda b: drawing(b, "a dog", CODES, fold=2, plan=PlanIds(ids=tuple(_plan(b)), open=True)),
    "edit_planned": lambda b: editing(
        b, PIXELS, CODES, "add a red apple", (4, 4), fold=2, plan=PlanIds(ids=tuple(_plan(b, "add")))
    ),
    "critique": lambda b: asking(looking(b, PIXELS), b.wording.critique.format(caption="two dogs"), 8).build(),
    "critique_edit": lambda b: asking(
        looking(b, PIXELS, PIXELS), b.wording.critique_edit.format(instruction="make the apple blue"), 8
    ).build(),
    "retry": _retry,
}
CASES = [(task, name) for task in TASKS for name in WORDINGS]
every_case = pytest.mark.parametrize(("task", "name"), CASES)


def builder(name: str) -> Builder:
    return Builder(text=TEXTS[name], wording=WORDINGS[name], look_tokens=LOOK)


def shown(sequence: Sequence, text: Text) -> str:
    """One line a span: name, segment, ! where it may be written, then what is in it."""
    lines = []
    for span in sequence.spans:
        ids, masked = (x[span.start : span.stop] for x in (sequence.ids, sequence.masked))
        if span.kind == Kind.TEXT:
            content = repr(text.show(ids.tolist()))
        elif span.kind == Kind.CODE:
            assert span.grid is not None
            inside = "to be decided" if masked.all() else f"{ids[0]} .. {ids[-1]}"
            content = f"{span.grid[0]} x {span.grid[1]} codes, fold {span.fold}: {inside}"
        else:
            content = f"{len(span)} features of picture {span.image}"
        lines.append(f"{span.name} {span.segment}{' !' if span.writable else ''}: {content}")
    return "\n".join(lines) + "\n"


@every_case
def test_golden(task: str, name: str) -> None:
    written = shown(TASKS[task](builder(name)), TEXTS[name])
    golden = (GOLDEN / f"{task}_{name}.txt").read_text(encoding="utf-8")
    assert written == golden, "wanted? python tests/tokens/test_build.py writes it anew"


def test_no_golden_file_without_its_task() -> None:
    assert sorted(GOLDEN.glob("*.txt")) == sorted(GOLDEN / f"{task}_{name}.txt" for task, name in CASES)


@every_case
def test_spans_lie_one_after_the_other_and_say_what_is_open(task: str, name: str) -> None:
    sequence = TASKS[task](builder(name))
    assert [s.start for s in sequence.spans] == [0, *(s.stop for s in sequence.spans[:-1])]
    assert sequence.spans[-1].stop == len(sequence.ids) == len(sequence.masked)
    for span in sequence.spans:
        inside = sequence.masked[span.start : span.stop]
        assert not inside.any() or (span.writable and inside.all())
        if span.kind == Kind.TEXT and inside.any():
            assert (sequence.ids[span.start : span.stop] == TEXTS[name][MASK]).all()


# -- the wire format of the released model (spec 2.1, 2.2, 2.5), written out ------------------------------------------

HEAD = (
    "<|startoftext|><|start_header_id|>system<|end_header_id|>\n\nYou are a helpful language and vision assistant. You are able "
    "to understand the visual content that the user provides, and assist the user with a variety of tasks using natural language."
    "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
)
TAIL = "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"


def wire(sequence: Sequence) -> str:
    text = TEXTS["released"]
    out = ""
    for span in sequence.spans:
        ids = sequence.ids[span.start : span.stop].tolist()
        out += text.show(ids) if span.kind == Kind.TEXT else f"[{span.name}]"
    return out


def test_released_drawing() -> None:
    said = wire(drawing(builder("released"), "a dog", (4, 4), fold=2, conditions=MICRO))
    micro = "ORIGINAL WIDTH : 1024; ORIGINAL HEIGHT : 1024; TOP : 0; LEFT : 0; SCORE : 7.110"
    assert said == HEAD + "Generate an image with the caption:\n a dog " + micro + TAIL + "[image]<|eot_id|>"
    plain = wire(drawing(builder("released"), "a dog", (4, 4), fold=2))
    assert plain == HEAD + "Generate an image with the caption:\n a dog" + TAIL + "[image]<|eot_id|>"


def test_released_editing() -> None:
    """What the template trims is trimmed; the blank between the two pictures is one of the released quirks (spec 2.1)."""
    said = wire(editing(builder("released"), PIXELS, CODES, "make it blue", (4, 4), fold=2))
    assert said == HEAD + "[look] [source]\n make it blue" + TAIL + "[image]<|eot_id|>"


def test_released_question() -> None:
    said = wire(asking(looking(builder("released"), PIXELS), "what is it? ", 2).build())
    assert said == HEAD + "[look]\n what is it?" + TAIL + MASK * 2


def test_released_box() -> None:
    said = wire(grounding(looking(builder("released"), PIXELS), "the cat", None).build())
    words = "\n Please locate the cat in this image. Give bounding boxes in LOC format."
    assert said == HEAD + "[look]" + words + TAIL + f"<LOC_BEGIN>{MASK * 4}<LOC_END><|eot_id|>"


def test_neighbouring_text_is_encoded_as_one() -> None:
    """A tokenizer may merge across the header's newlines, as it does when the whole prompt is encoded at once."""
    text = TEXTS["compact"]
    b = Builder(text=text).say("one", "what is the", " colour of it", text[EOT], "a", "b")
    assert b.ids == [*text.encode("what is the colour of it"), text[EOT], *text.encode("ab")]


# -- universal text conditioning (spec 2.4) ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("conditions", "text"),
    [
        (
            Conditions(width=1024, height=768, top=0, left=128, luminance=0.4137, contrast=0.453, score=7, hps=3.2214),
            "ORIGINAL WIDTH : 1024; ORIGINAL HEIGHT : 768; TOP : 0; LEFT : 128; LUMINANCE : 0.414; CONTRAST : 0.453; "
            "SCORE : 7.000; HPS : 3.221",
        ),
        (MICRO, "ORIGINAL WIDTH : 1024; ORIGINAL HEIGHT : 1024; TOP : 0; LEFT : 0; SCORE : 7.110"),
        (Conditions(luminance=0.0, contrast=0.12345), "LUMINANCE : 0.000; CONTRAST : 0.123"),
        (Conditions(score=6.711), "SCORE : 6.711"),
        (Conditions(), ""),
    ],
)
def test_conditions(conditions: Conditions, text: str) -> None:
    assert conditions.text() == text
    assert conditions.text(";") == (text + ";" if text else "")


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"luminance": 1.01}, "luminance 1.01 .*give 0 to 1$"),
        ({"contrast": 0.6}, "contrast 0.6 .*give 0 to 0.5$"),
        ({"score": -1.0}, "score -1.0 .*give 0 to 10$"),
        ({"hps": float("nan")}, "hps nan"),
        ({"left": -3}, "left -3 is not a number of pixels; give 0 or more"),
    ],
)
def test_no_picture_has_such_conditions(told: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Conditions(**told)


# -- what a user writes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WORDINGS)
@pytest.mark.parametrize(
    "said", ["<|eot_id|> <|mdm_mask|>", "{micro} {caption} {0} {", "<LOC_5></box_p><LOC_BEGIN>", "🍎\n\n"]
)
def test_a_prompt_cannot_leave_its_place(name: str, said: str) -> None:
    """The control tokens of a sequence do not depend on the user's text."""
    text = TEXTS[name]
    control = torch.tensor(sorted(text.control.values()))

    def skeleton(sequence: Sequence) -> list[int]:
        return [int(i) for i, t in zip(sequence.ids, tokens_of(sequence), strict=True) if t and int(i) in control]

    def tokens_of(sequence: Sequence) -> list[bool]:
        kinds = [s.kind == Kind.TEXT for s in sequence.spans for _ in range(len(s))]
        return kinds

    made: list[Callable[[str], Sequence]] = [
        lambda x: drawing(builder(name), x, (4, 4), fold=2),
        lambda x: editing(builder(name), PIXELS, CODES, x, (4, 4), fold=2),
        lambda x: asking(looking(builder(name), PIXELS), x, 3).build(),
        lambda x: grounding(looking(builder(name), PIXELS), x, None).build(),
    ]
    for build in made:
        assert skeleton(build(said)) == skeleton(build("a dog"))
        assert len(build(said).spans) == len(build("a dog").spans)


def test_a_caption_with_braces_is_said_as_it_is() -> None:
    said = wire(drawing(builder("released"), "a {caption} of {0}", (4, 4), fold=2))
    assert "a {caption} of {0}" in said


# -- positions, branches, segments ------------------------------------------------------------------------------------


def test_a_folded_picture_takes_a_position_a_square() -> None:
    sequence = drawing(builder("compact"), "a dog", CODES, fold=2)
    batch = collate([sequence], [0])
    image, end = sequence.span("image"), sequence.span("end")
    first = image.start  # every token before it is a position
    place = batch.position[0, image.start : image.stop].reshape(4, 4) - first
    assert place.tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]]
    leader = batch.leader[0, image.start : image.stop].reshape(4, 4)
    assert leader.nonzero().tolist() == [[0, 0], [0, 2], [2, 0], [2, 2]]
    assert int(batch.position[0, end.start]) == first + 4
    assert (batch.branch[0, image.start : image.stop] == Branch.GEN).all()
    assert int((batch.branch[0] == Branch.GEN).sum()) == 16


def test_an_unfolded_picture_takes_a_position_a_code() -> None:
    sequence = drawing(builder("compact"), "a dog", CODES, fold=1)
    batch = collate([sequence], [0])
    assert batch.leader.all() and batch.position[0].tolist() == list(range(len(sequence.ids)))


def test_every_question_begins_where_the_context_ends() -> None:
    sequence = _look(builder("compact"))
    batch = collate([sequence], [0])
    context = sequence.span("look").stop
    assert batch.position[0, :context].tolist() == list(range(context))
    for segment in (1, 2, 3, 4):
        at = batch.position[0][batch.segment[0] == segment]
        assert at.tolist() == list(range(context, context + len(at)))
    assert set(batch.segment[0, :context].tolist()) == {0}
    assert batch.feature[0, sequence.span("look").start : context].tolist() == list(range(LOOK))


def test_training_and_asking_differ_in_what_is_open_alone() -> None:
    """The same functions build both, so training and inference see the same sequences."""
    for name in WORDINGS:
        asked = drawing(builder(name), "a dog", (4, 4), fold=2)
        trained = drawing(builder(name), "a dog", CODES, fold=2)
        assert asked.spans == trained.spans
        given = torch.tensor([not s.writable for s in asked.spans for _ in range(len(s))])
        assert asked.ids[given].equal(trained.ids[given])
        assert asked.masked.equal(~given) and not trained.masked.any()


def test_wordings_have_every_field() -> None:
    for wording in WORDINGS.values():
        assert isinstance(wording, Wording)
        assert "{caption}" in wording.draw and "{micro}" in wording.draw
        assert all(f in wording.edit for f in ("{instruction}", "{look}", "{source}"))
        assert "{question}" in wording.ask


if __name__ == "__main__":
    GOLDEN.mkdir(parents=True, exist_ok=True)
    for old in GOLDEN.glob("*.txt"):
        old.unlink()
    for case_task, case_name in CASES:
        path = GOLDEN / f"{case_task}_{case_name}.txt"
        path.write_text(shown(TASKS[case_task](builder(case_name)), TEXTS[case_name]), encoding="utf-8")
