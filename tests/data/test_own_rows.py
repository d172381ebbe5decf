"""Rows of a user's data: the fields of every task, and every way in which a row can be broken."""

from __future__ import annotations

import base64
from pathlib import Path
from random import Random
from typing import Any

import pytest

from unmask.data.opening import Data, open_data
from unmask.data.regions import RowBoxes
from unmask.data.rows import PicturesIn, Row, key_in
from unmask.data.samples import (
    Boxes,
    Broken,
    BrokenRows,
    Caption,
    Chat,
    Critique,
    DataError,
    EditPair,
    Interleaved,
    Said,
    Sample,
    opened,
    pictures_of,
    task_of,
    texts_of,
)

from .own import LLAVA, lines, png, save

EDIT = {"source": "a.png", "target": "b.png", "instruction": "make it blue"}


def data_of(folder: Path, *rows: Any, **options: Any) -> Data:
    save(folder / "a.png"), save(folder / "b.png", "blue")
    return open_data(lines(folder / "rows.jsonl", *rows), **options)


def good(folder: Path, row: Any, **options: Any) -> Sample:
    data = data_of(folder, row, **options)
    sample = data[0]
    assert not isinstance(sample, Broken), sample.reason
    assert data.task(0) == task_of(sample)
    return sample


def broken(folder: Path, row: Any, **options: Any) -> str:
    sample = data_of(folder, row, **options)[0]
    assert isinstance(sample, Broken), sample
    assert "\n" not in sample.reason and sample.reason.startswith("rows.jsonl, line 1: ")
    return sample.reason


# -- tasks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "row",
    [
        {"image": "a.png", "text": " a red square "},
        {"file_name": "a.png", "caption": "a red square"},
        {"image_path": "a.png", "captions": ["a red square", "something red"]},
        {"image": {"path": "a.png", "bytes": None}, "text": "a red square"},
        {"image": "data:image/png;base64," + base64.b64encode(png()).decode(), "text": "a red square"},
        {"task": "caption", "image": "a.png", "text": "a red square", "boxes": [], "verdict": None},
        {"image": "a.png", "text": "a red square", "question": None, "conversations": None, "bbox": None},
    ],
)
def test_captions(tmp_path: Path, row: Any) -> None:
    sample = good(tmp_path, row)
    assert isinstance(sample, Caption) and sample.text == "a red square"
    (image,) = opened(sample)
    assert image.size == sample.image.size() == (60, 40) and image.getpixel((0, 0)) == (255, 0, 0)


def test_llava_is_read_as_it_is(tmp_path: Path) -> None:
    sample = good(tmp_path, LLAVA)
    assert isinstance(sample, Chat) and sample.key == "000000033471" and len(sample.images) == 1
    assert sample.turns[:2] == (Said(role="user", text="What colour is it?"), Said(role="assistant", text="Red."))
    text_only = good(tmp_path, {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]})
    assert isinstance(text_only, Chat) and text_only.images == ()


@pytest.mark.parametrize(
    "row",
    [
        {
            "images": ["a.png"],
            "messages": [{"role": "user", "content": "what?"}, {"role": "assistant", "content": "red"}],
        },
        {
            "messages": [
                {"role": "user", "content": [{"type": "image", "image": "a.png"}, {"type": "text", "text": "what?"}]},
                {"role": "assistant", "content": [{"type": "text", "text": "red"}]},
            ]
        },
        {
            "images": ["a.png"],
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "what?"}, {"type": "image", "text": None}]},
                {"role": "assistant", "content": [{"type": "text", "text": "red"}]},
            ],
        },
        {"image": "a.png", "question": "what?", "answer": "red"},
        {"image": "a.png", "question": "what?", "answers": ["red", "crimson"]},
    ],
)
def test_chats_of_other_forms(tmp_path: Path, row: Any) -> None:
    sample = good(tmp_path, row)
    assert isinstance(sample, Chat) and sample.turns == (
        Said(role="user", text="what?"),
        Said(role="assistant", text="red"),
    )
    assert [i.open().getpixel((0, 0)) for i in sample.images] == [(255, 0, 0)]


def test_pictures_in_answers_or_later_questions_are_interleaved(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "draw"}, {"from": "gpt", "value": "here <image> it is"}]
    sample = good(tmp_path, {"conversations": turns, "image": "a.png"})
    assert isinstance(sample, Interleaved) and len(pictures_of(sample)) == 1
    assert texts_of(sample) == ("draw", "here", "it is") and sample.turns[1].parts[0] == "here"
    later = [
        *LLAVA["conversations"][:2],
        {"from": "human", "value": "<image> and this?"},
        {"from": "gpt", "value": "blue"},
    ]
    sample = good(tmp_path, {"conversations": later, "image": ["a.png", "b.png"]})
    assert isinstance(sample, Interleaved)
    assert [p.open().getpixel((0, 0)) for p in pictures_of(sample)] == [(255, 0, 0), (0, 0, 255)]
    sample = good(tmp_path, {**LLAVA, "task": "interleaved"})
    assert isinstance(sample, Interleaved) and len(pictures_of(sample)) == 1


@pytest.mark.parametrize(
    "row",
    [
        EDIT,
        {"source_img": "a.png", "target_img": "b.png", "instruction": "make it blue"},  # MagicBrush
        {
            "original_image": "a.png",
            "edited_image": "b.png",
            "edit_prompt": "make it blue",
            "text": "x",
            "task": "edit",
        },
    ],
)
def test_edits(tmp_path: Path, row: Any) -> None:
    sample = good(tmp_path, row)
    assert isinstance(sample, EditPair) and sample.instruction == "make it blue"
    assert [i.getpixel((0, 0)) for i in opened(sample)] == [(255, 0, 0), (0, 0, 255)]


def test_critiques(tmp_path: Path) -> None:
    sample = good(tmp_path, {"image": "a.png", "prompt": "a blue square", "verdict": "it is red"})
    assert isinstance(sample, Critique) and texts_of(sample) == ("a blue square", "it is red")


QUARTER = (0.25, 0.25, 0.5, 0.5)


@pytest.mark.parametrize(
    ("row", "phrases"),
    [
        ({"boxes": [{"phrase": "it", "box": [0.25, 0.25, 0.5, 0.5]}]}, (("it", QUARTER),)),
        ({"boxes": [{"phrase": "it", "box": [15, 10, 30, 20]}]}, (("it", QUARTER),)),
        ({"boxes": [{"phrase": "it", "box": [250, 250, 500, 500]}], "box_units": "thousandths"}, (("it", QUARTER),)),
        ({"boxes": [{"phrase": "it", "bbox": [15, 10, 15, 10]}]}, (("it", QUARTER),)),
        (
            {"phrases": ["it", "that"], "boxes": [[15, 10, 30, 20], [0, 0, 60, 40]]},
            (("it", QUARTER), ("that", (0, 0, 1, 1))),
        ),
        ({"phrase": "it", "box": [15, 10, 30, 20]}, (("it", QUARTER),)),
        (
            {"sentences": [{"sent": "it"}, {"sent": "that"}], "bbox": [15, 10, 15, 10]},
            (("it", QUARTER), ("that", QUARTER)),
        ),
        ({"question": "where?", "answer": ["it"], "bbox": [15, 10, 15, 10]}, (("it", QUARTER),)),
        ({"phrase": "it", "box": [0, 0, 60.2, 40]}, (("it", (0, 0, 1, 1)),)),  # rounded beyond the edge
    ],
)
def test_boxes(tmp_path: Path, row: Any, phrases: Any) -> None:
    sample = good(tmp_path, {"image": "a.png", **row})
    assert isinstance(sample, Boxes) and sample.phrases == phrases


def test_boxes_in_pixels_are_of_the_upright_picture(tmp_path: Path) -> None:
    image = save(tmp_path / "turned.jpg")
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(image).save(tmp_path / "turned.jpg", exif=exif)
    sample = good(tmp_path, {"image": "turned.jpg", "phrase": "it", "box": [0, 0, 40, 30]})
    assert isinstance(sample, Boxes) and sample.phrases == (("it", (0, 0, 1, 0.5)),)
    assert opened(sample)[0].size == (40, 60)


def test_units_can_be_given_for_all_rows(tmp_path: Path) -> None:
    row = {"image": "a.png", "phrase": "it", "box": [0, 0, 1, 1]}
    assert good(tmp_path, row).phrases == (("it", (0, 0, 1, 1)),)
    assert good(tmp_path, row, units=RowBoxes.THOUSANDTHS).phrases == (("it", (0, 0, 0.001, 0.001)),)


# -- broken rows ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("{", "not valid JSON"),
        ("[1]", "[1] is not an object"),
        ({}, "the fields (none) belong to no task"),
        ({"colour": "red"}, "the fields colour belong to no task"),
        ({"task": "draw", "image": "a.png"}, "unknown task \"draw\"; the tasks are caption, chat"),
        ({"task": ["chat"], "image": "a.png"}, 'unknown task ["chat"]'),
        ({"image": "a.png"}, "the picture has no text"),
        ({"text": "a red square"}, "the text has no picture"),
        ({"image": "a.png", "text": "x", **EDIT}, "the fields belong to caption and edit; name one in the field 'task'"),
        ({"image": "a.png", "text": ""}, "the text is empty"),
        ({"image": "a.png", "text": 3}, "the text is 3, not a text"),
        ({"image": "a.png", "captions": []}, "the text is [], not a text"),
        ({"image": 3, "text": "x"}, "the picture is 3, not a path"),
        ({"image": "", "text": "x"}, 'the picture is "", not a path'),
        ({"image": "a.png", "text": "x" * 20_001}, "the text has 20,001 characters, more than 20,000"),
        ({"image": "../a.png", "text": "x"}, "leads out of"),
        ({"image": "/etc/passwd", "text": "x"}, "leads out of"),
        ({"image": "a\0.png", "text": "x"}, "contains a NUL"),
        ({"image": "https://example.com/a.png", "text": "x"}, "is a web address; download it first"),
        ({"image": "data:image/png;base64,???", "text": "x"}, "is not base64"),
        ({"task": "edit", "source": "a.png", "instruction": "x"}, "the target picture is missing; it is called 'target'"),
        ({"task": "critique", "image": "a.png", "prompt": "x"}, "the verdict is missing"),
        ({"image": "a.png", "phrase": "x", "box": [0, 0, 61, 40]}, "is outside the picture of 60 x 40 pixels (are its numbers 0"),
        ({"image": "a.png", "phrase": "x", "box": [0, 0, 2000, 40]}, "in pixels is outside the picture of 60 x 40 pixels"),
        ({"image": "a.png", "phrase": "x", "box": [0, 0, 1.2, 1], "box_units": "fractions"}, "in fractions is outside"),
        ({"image": "a.png", "phrase": "x", "box": [-9, 0, 30, 40]}, "is outside the picture"),
        ({"image": "a.png", "phrase": "x", "box": [30, 0, 30, 40]}, "has no area"),
        ({"image": "a.png", "phrase": "x", "bbox": [0, 0, 0, 40]}, "has no area"),
        ({"image": "a.png", "phrase": "x", "box": [0, 0, 30]}, "it has four numbers"),
        ({"image": "a.png", "phrase": "x", "box": [0, 0, 30, True]}, "it has four numbers"),
        ('{"image": "a.png", "phrase": "x", "box": [0, 0, 30, NaN]}', "it has four numbers"),
        ('{"image": "a.png", "phrase": "x", "box": [0, 0, 1e400, 3]}', "it has four numbers"),
        ({"image": "a.png", "phrase": "x", "box": "0,0,1,1"}, "it has four numbers"),
        ({"image": "a.png", "boxes": []}, "the row has no box"),
        ({"image": "a.png", "boxes": {"box": 1}}, "not a list"),
        ({"image": "a.png", "boxes": [[0, 0, 1, 1]], "phrases": ["x", "y"]}, "there are 1 boxes and 2 phrases"),
        ({"image": "a.png", "bbox": [[0, 0, 1, 1]], "phrases": ["x", "y"]}, "there are 1 boxes and 2 phrases"),
        ({"image": "a.png", "box": [0, 0, 1, 1]}, "the box has no phrase"),
        ({"image": "a.png", "box": [0, 0, 1, 1], "phrase": " "}, "the phrase of a box is"),
        ({"image": "a.png", "box": [0, 0, 1, 1], "phrase": "x", "box_units": "miles"}, "box_units is \"miles\""),
        ({"image": "a.png", "boxes": [{"phrase": "x", "box": [0, 0, 1, 1]}] * 1001}, "the row has 1,001 boxes"),
        ({"image": "no.png", "phrase": "x", "box": [0, 0, 30, 40]}, "no.png: no such file"),
        ({**LLAVA, "image": ["a.png", "b.png"]}, "has 1 places for pictures (<image>) and 2 pictures"),
        ({**LLAVA, "image": None}, "has 1 places for pictures (<image>) and 0 pictures"),
        ({"conversations": []}, "the conversation is [], not a list of messages"),
        ({"conversations": ["hi"]}, 'a message is "hi", not an object'),
        ({"conversations": [{"from": "dog", "value": "x"}]}, 'the role of a message is "dog"; it is one of human'),
        ({"conversations": [{"from": "gpt", "value": "x"}]}, "does not start with a question"),
        ({"conversations": [{"from": "human", "value": "x"}]}, "does not end with an answer"),
        ({"conversations": [{"from": "human", "value": "x"}, {"from": "gpt", "value": " "}]}, "a message of the assistant is empty"),
        ({"conversations": [{"from": "human", "value": 3}]}, "neither a text nor a list of parts"),
        ({"messages": [{"role": "user", "content": [{"type": "audio"}]}]}, "its type is text or image"),
        ({"conversations": [{"from": "human", "value": "x"}] * 2 + [{"from": "gpt", "value": "y"}]}, "of the same role follow"),
        ({"question": "what?", "answer": 3}, "the answer is 3, not a text"),
        ({"image": "a.png", "question": "what?", "answers": []}, "the answer is [], not a text"),
    ],
)  # fmt: skip
def test_broken_rows_say_why(tmp_path: Path, row: Any, said: str) -> None:
    assert said in broken(tmp_path, row)


def test_deep_json_is_a_broken_row(tmp_path: Path) -> None:
    assert "not valid JSON" in broken(tmp_path, "[" * 100_000)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (png()[:60], "cannot be decoded"),
        (b"", "c.png is empty"),
        (b"hello", "c.png is not a supported image"),
        (None, "c.png: no such file"),
    ],
)
def test_pictures_that_cannot_be_opened(tmp_path: Path, content: bytes | None, said: str) -> None:
    if content is not None:
        (tmp_path / "c.png").write_bytes(content)
    sample = data_of(tmp_path, {"image": "c.png", "text": "x", "id": "one"})[0]
    assert isinstance(sample, Caption)  # opening is lazy
    found = opened(sample)
    assert isinstance(found, Broken) and found.key == "one" and said in found.reason


NAMES = """image images text caption captions source target instruction task boxes bbox box phrase phrases sentences conversations
messages turns question answer answers verdict prompt box_units id from value role content type path bytes image_url url""".split()
WORDS = ["a.png", "", "x", "caption", "chat", "interleaved", "boxes", "edit", "user", "gpt", "assistant", "<image>", "text", "image",
         "pixels", "<image>\nhi", "system", "\ud800", "a\0"]  # fmt: skip
NUMBERS = [0, 1, -1, 0.5, 5, float("nan"), float("inf"), True, None, 10**400, 1e308]


def anything(rng: Random, depth: int = 0) -> Any:
    kind = rng.random()
    if kind < 0.6 or depth > 3:
        return rng.choice(WORDS if kind < 0.45 else NUMBERS)
    if kind < 0.8:
        return [anything(rng, depth + 1) for _ in range(rng.choice([0, 1, 2, 4]))]
    return {rng.choice(NAMES): anything(rng, depth + 1) for _ in range(rng.choice([0, 1, 2, 3, 5]))}


def test_no_row_raises_whatever_is_in_it(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    rng, find = Random(0), PicturesIn(folder=tmp_path)
    for _ in range(20_000):
        fields = {rng.choice(NAMES): anything(rng) for _ in range(rng.choice([1, 2, 3, 4, 6]))}
        row = Row(key=key_in(fields, "key"), place="place", fields=fields, find=find)
        task, sample = row.task(), row.sample()
        if isinstance(sample, Broken):
            assert sample.reason.encode() and "\n" not in sample.reason
        else:
            opened(sample)
            assert task == task_of(sample) or fields.get("task")


def test_too_many_broken_rows_are_an_error() -> None:
    counted = BrokenRows(total=20, most=0.1)
    for _ in range(5):  # the same row in every epoch
        counted.add(Broken(key="a", reason="a.jsonl, line 1: no"))
    counted.add(Broken(key="b", reason="a.jsonl, line 2: no"))
    assert counted.share == 0.1
    with pytest.raises(
        DataError, match=r"3 of 20 rows are broken \(15.0%, at most 10.0% may be\): a.jsonl, line 1: no, .*; run"
    ):
        counted.add(Broken(key="c", reason="a.jsonl, line 3: no"))
