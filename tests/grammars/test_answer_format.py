"""Answer formats: how users give them, and their slots for a model that writes JSON and for one that answers in words."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from unmask.grammars.answer_format import AnswerFormat, of_regex, of_response_format, of_schema
from unmask.grammars.grammar import grammar_of
from unmask.grammars.regex import parse_regex
from unmask.tokens.prompts import COMPACT, RELEASED
from unmask.tokens.text import CONTROL, EOT, Text, TokenizerError

TEXT = Text.load(Path(str(files("unmask") / "assets" / "mini" / "tokenizer.json")))
COUNT = {"type": "integer", "minimum": 0, "maximum": 9, "description": "how many?"}
SCHEMA = {
    "type": "object",
    "properties": {"colour": {"enum": ["Red", "sea green"]}, "in": {"type": "object", "properties": {"n": COUNT}}},
}


def test_every_byte_of_a_text_stands_in_its_tokens() -> None:
    for text in ("a red apple", "é€😀 x\n\t", '{"a": 1}'):
        assert b"".join(TEXT.pieces[i] for i in TEXT.encode(text)).decode().strip() == text.strip()
    assert all(TEXT.pieces[TEXT[name]] == b"" for name in CONTROL)
    assert sorted(p for p in TEXT.pieces if len(p) == 1) == [bytes([b]) for b in range(256)]


def test_a_tokenizer_that_is_not_of_bytes_is_refused() -> None:
    from tokenizers import Tokenizer, models

    class Other(Text):
        def __init__(self) -> None:
            self.tokenizer = Tokenizer(models.BPE())

    with pytest.raises(TokenizerError, match="byte-level"):
        Other().pieces  # noqa: B018


def ids_of(text: str) -> list[int]:
    return [*TEXT.encode(text), TEXT[EOT], TEXT[EOT]]


def test_one_slot_for_a_model_that_writes_json() -> None:
    (slot,) = of_schema(SCHEMA).slots(TEXT, RELEASED)
    said = '{"colour": "Red", "in": {"n": 7}}'
    ids = [TEXT.pieces.index(bytes([b])) for b in said.encode()] + [TEXT[EOT]]
    assert slot.read(ids) == {"colour": "Red", "in": {"n": 7}} and slot.question == ""
    with pytest.raises(ValueError, match="does not match the answer format"):
        slot.read(ids_of("red"))


def test_a_slot_for_every_value_for_a_model_that_speaks() -> None:
    form = of_schema(SCHEMA)
    colour, number = form.slots(TEXT, COMPACT)
    assert (colour.path, number.path, number.question) == (("colour",), ("in", "n"), "how many?")
    assert colour.read(ids_of("red")) == "Red" and colour.read(ids_of("sea green")) == "sea green"
    assert [number.read(ids_of(said)) for said in ("two", "2", "zero", "9")] == [2, 2, 0, 9]
    with pytest.raises(ValueError, match="does not match the answer format"):
        number.read(ids_of("10"))
    assert form.value([(colour.path, "Red"), (number.path, 2)]) == {"colour": "Red", "in": {"n": 2}}
    assert colour.default_length(1) == len(TEXT.encode("sea green")) + 1 and colour.default_length(9) == 9


@pytest.mark.parametrize(
    ("schema", "said", "value"),
    [
        ({"type": "boolean"}, "yes", True),
        ({"type": "boolean"}, "no", False),
        ({"type": "null"}, "null", None),
        ({"type": "string", "pattern": "[a-z]+"}, "cat", "cat"),
        ({"type": "string"}, 'a "b', 'a "b'),
        ({"type": "number", "minimum": 0}, "0.5", 0.5),
        ({"enum": [1, True, None, "x y"]}, "one", 1),
        ({"anyOf": [{"type": "null"}, {"const": "a"}]}, "a", "a"),
        ({"anyOf": [{"type": "null"}, {"const": "a"}]}, "null", None),
        ({"anyOf": [{"type": "null"}, {"type": "integer", "minimum": 0}]}, "two", 2),
        ({"anyOf": [{"type": "null"}, {"type": "integer", "minimum": 0}]}, "27", 27),
        ({"anyOf": [{"type": "null"}, {"type": "string"}]}, "null", None),
        ({"type": ["string", "null"], "maxLength": 3}, "two", "two"),
        ({"enum": ["red", "red", True]}, "red", "red"),
        ({"anyOf": [{"type": "string"}, {"type": "integer"}]}, '"two"', "two"),
        ({"type": "array", "items": {"type": "null"}}, "[null]", [None]),
        ({"type": "integer", "minimum": 5}, "six", 6),
    ],
)
def test_values_are_said_in_words(schema: Any, said: str, value: Any) -> None:
    (slot,) = of_schema(schema).slots(TEXT, COMPACT)
    read = slot.read(ids_of(said))
    assert read == value and type(read) is type(value)


def test_values_that_sound_alike_are_refused() -> None:
    with pytest.raises(ValueError, match="with the same words; keep one"):
        of_schema({"enum": ["Red", "red"]}).slots(TEXT, COMPACT)


def test_the_least_length_is_that_of_the_shortest_answer() -> None:
    (slot,) = of_regex("(red){3}").slots(TEXT, COMPACT)
    assert slot.grammar.least == 5  # " red", "r"?: re + d twice
    slot.check(5)
    with pytest.raises(ValueError, match="at least 5 tokens, and there is room for 4; set max_tokens to 5"):
        slot.check(4)
    (deep,) = of_schema({"type": "object", "properties": {"a": {"type": "object", "properties": {"b": COUNT}}}}).slots(
        TEXT, COMPACT
    )
    with pytest.raises(ValueError, match="an answer for a.b in this format needs at least 1"):
        deep.check(0)


def test_what_a_user_says_becomes_an_answer_format() -> None:
    assert of_schema('{"type": "null"}') == of_schema({"type": "null"}) == AnswerFormat(schema='{"type": "null"}')
    assert of_response_format({"type": "text"}) is None
    assert of_response_format({"type": "regex", "regex": "a+"}) == of_regex("a+") == AnswerFormat(regex="a+")
    told = {"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": SCHEMA}}
    assert of_response_format(told) == of_schema(SCHEMA)
    assert of_schema(SCHEMA).to_json() == {"schema": SCHEMA} and of_regex("a").to_json() == {"regex": "a"}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"type": "json_object"}, "send json_schema with a schema"),
        ({"type": "json_schema"}, "has no schema"),
        ({"type": "json_schema", "json_schema": {"schema": {"type": "any"}}}, "schema.type"),
        ({"type": "regex"}, "is not supported"),
        ({"type": 3}, "3 is not supported"),
        ({}, "null is not supported"),
        ({"type": "regex", "regex": ""}, "the regex is empty"),
    ],
)
def test_wrong_response_formats_are_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=".") as wrong:
        of_response_format(given)
    assert said in str(wrong.value)


def test_a_schema_that_is_not_json_is_refused() -> None:
    with pytest.raises(ValueError, match="the schema is not JSON"):
        of_schema("{nonsense")
    with pytest.raises(ValueError, match="nested"):
        of_schema('{"anyOf": [' * 40 + '{"type": "null"}' + "]}" * 40)


def test_what_no_token_can_write_is_refused() -> None:
    with pytest.raises(ValueError, match="no text matches"):
        grammar_of(parse_regex(r"\ud800"), TEXT)
