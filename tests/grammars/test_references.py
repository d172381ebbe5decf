"""Schemas as pydantic and OpenAI's structured outputs send them: references, optional values, literals, defaults; and their limits."""

from __future__ import annotations

import json
from datetime import date
from enum import Enum, IntEnum, StrEnum
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal
from uuid import UUID

import pytest
from pydantic import BaseModel, ConfigDict, Field

from unmask.grammars.answer_format import of_response_format, of_schema
from unmask.grammars.automaton import compile_automaton
from unmask.grammars.references import expanded
from unmask.grammars.schema import json_texts
from unmask.tokens.prompts import COMPACT, RELEASED
from unmask.tokens.text import EOT, Text

TEXT = Text.load(Path(str(files("unmask") / "assets" / "mini" / "tokenizer.json")))
SCHEMAS = Path(__file__).parent / "schemas"


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


class One(Enum):
    ONLY = "only"


class Size(BaseModel):
    big: bool


class Box(BaseModel):
    """Its own reference inside a reference."""

    size: Size
    lid: Colour | None = None


class Thing(BaseModel):
    """Every construction at once."""

    model_config = ConfigDict(title="A thing", extra="forbid", json_schema_extra={"examples": [{"colour": "red"}]})
    colour: Colour = Field(description="what colour?", examples=["red"])
    again: Colour = Colour.RED
    maybe: Colour | None = None
    box: Box
    kind: Literal["a", 1, None]
    fixed: Literal["x"] = "x"
    one: One
    count: Annotated[int, Field(ge=0, le=9)] | None = None
    either: Size | Box
    several: Annotated[list[Colour], Field(max_length=2)]
    name: str | None = Field(None, title="Name")


THING = {
    "colour": "red",
    "again": "blue",
    "maybe": None,
    "box": {"size": {"big": True}, "lid": "red"},
    "kind": 1,
    "fixed": "x",
    "one": "only",
    "count": 3,
    "either": {"size": {"big": False}, "lid": None},
    "several": ["red", "blue"],
    "name": "q",
}


def accepts(schema: Any, value: Any) -> bool:
    text = json.dumps(value, ensure_ascii=False).encode()
    return compile_automaton(json_texts(expanded(schema))).accepts(text)


def ids(text: str) -> list[int]:
    return [TEXT.pieces.index(bytes([b])) for b in text.encode()] + [TEXT[EOT]]


def test_a_pydantic_model_accepts_what_pydantic_accepts() -> None:
    schema = Thing.model_json_schema()
    assert accepts(schema, THING)
    Thing.model_validate(THING)
    wrong: dict[str, Any] = {
        "colour": "green",
        "again": None,
        "box": {"size": True},
        "kind": 2,
        "fixed": "y",
        "count": 10,
    }
    wrong |= {"one": "two", "maybe": "x", "either": {"big": "x"}, "several": ["red"] * 3, "name": 4}
    for name, value in wrong.items():
        assert not accepts(schema, {**THING, name: value}), name
        with pytest.raises(ValueError, match=name):
            Thing.model_validate({**THING, name: value})


def test_in_one_piece_it_is_read_as_json() -> None:
    (slot,) = of_schema(Thing.model_json_schema()).slots(TEXT, RELEASED)
    assert slot.read(ids(json.dumps(THING))) == THING


def test_field_by_field_every_value_has_its_question_and_words() -> None:
    given = {"type": "json_schema", "json_schema": {"schema": Thing.model_json_schema(), "strict": True}}
    found = of_response_format(given)
    assert found is not None and found.to_json() == {"schema": Thing.model_json_schema()}
    slots = {".".join(slot.path): slot for slot in found.slots(TEXT, COMPACT)}
    assert (
        list(slots) == ["colour", "again", "maybe", "box.size.big", "box.lid", "kind", "fixed", "one"] + list(THING)[7:]
    )
    assert slots["colour"].question == "what colour?"
    said = {"colour": "red", "again": "blue", "maybe": "null", "box.size.big": "yes", "box.lid": "red", "kind": "one"}
    said |= {"fixed": "x", "one": "only", "count": "three", "either": json.dumps(THING["either"])}
    said |= {"several": '["red", "blue"]', "name": "q"}
    assert found.value([(slot.path, slot.read(ids(said[path]))) for path, slot in slots.items()]) == THING


def test_the_strict_schema_of_the_openai_client_is_the_same() -> None:
    strict = pytest.importorskip("openai.lib._pydantic").to_strict_json_schema(Thing)
    assert accepts(strict, THING) and not accepts(strict, {**THING, "colour": "green"})


RIGHT = {
    "enum": [{"colour": "red"}, {"colour": "blue"}],
    "list_of_enum": [{"colours": []}, {"colours": ["red", "blue", "red"]}],
    "nested": [{"colour": "red", "size": {"big": True}}],
    "nullable-enum": [{"colour": "red"}, {"colour": "blue"}, {"colour": None}],
}


@pytest.mark.parametrize("name", RIGHT)
def test_reported_schemas_are_accepted(name: str) -> None:
    schema = json.loads((SCHEMAS / f"{name}.json").read_text())
    assert all(accepts(schema, value) for value in RIGHT[name])
    assert not accepts(schema, {**RIGHT[name][0], "colour": "green"})
    assert of_schema(schema).slots(TEXT, COMPACT) and of_schema(schema).slots(TEXT, RELEASED)


def test_a_nullable_enum_is_one_of_its_words() -> None:
    (slot,) = of_schema((SCHEMAS / "nullable-enum.json").read_text()).slots(TEXT, COMPACT)
    assert dict(slot.wordings) == {"red": "red", "blue": "blue", "null": None}
    assert [slot.read(ids(words)) for words in ("red", "null")] == ["red", None]


SILENT = {"title": "t", "description": "d", "default": 1, "examples": [{"$ref": "#/nowhere"}], "deprecated": True}
ACCEPTED: list[tuple[Any, Any, Any]] = [
    ({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/c"}, "c": {"const": 1}}, "$ref": "#/$defs/a"}, 1, 2),
    ({"definitions": {"a": {"const": 1}}, "items": {"$ref": "#/definitions/a"}, "type": "array"}, [1, 1], [2]),
    ({"$defs": {"a/b~c d": {"const": 1}}, "$ref": "#/$defs/a~1b~0c%20d"}, 1, 2),
    ({"$defs": {"a": {"const": 1}}, "anyOf": [{"$ref": "#/$defs/a"}, {"type": "null"}]}, None, 2),
    ({"$defs": {"a": {"const": 1}}, "allOf": [{"$ref": "#/$defs/a"}], "default": 1}, 1, 2),
    ({"$defs": {"a%b": {"const": 1}}, "$ref": "#/$defs/a%25b"}, 1, 2),
    ({"$defs": {"": {"const": 1}}, "$ref": "#/$defs/"}, 1, 2),
    ({"$defs": {"~1": {"const": 1}}, "$ref": "#/$defs/~01"}, 1, 2),
    ({"$defs": {"a": {"type": "string"}}, "$ref": "#/$defs/a", "maxLength": 2}, "ab", "abc"),
    (
        {"$defs": {"a": {"type": "string", "maxLength": 3}}, "$ref": "#/$defs/a", "maxLength": 2, "minLength": 1},
        "ab",
        "abc",
    ),
    ({"allOf": [{"type": "integer", "minimum": 2}, {"type": "number", "minimum": 3, "maximum": 5}]}, 4, 2),
    ({"allOf": [{"type": ["number", "null"]}, {"type": ["integer", "string"]}], "maximum": 1}, 1, None),
    ({"allOf": [{"enum": ["a", "b"]}, {"enum": ["b", "c"], "type": "string"}]}, "b", "a"),
    ({"allOf": [{"const": 1}, {"const": 1.0}, True]}, 1, 2),
    (
        {
            "$defs": {"B": {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"]}},
            "allOf": [{"$ref": "#/$defs/B"}, {"properties": {"b": {"const": 2}}, "required": ["b"]}],
        },
        {"a": 1, "b": 2},
        {"a": 1},
    ),
    ({"anyOf": [{"const": 1}, {"$ref": "#/anyOf/0"}]}, 1, 2),
    ({"type": ["string"], "enum": ["a", 1]}, "a", 1),
    ({"type": "array", "items": [{"const": 1}, {"const": 2}], "additionalItems": False, "minItems": 2}, [1, 2], [1]),
    (
        {"type": "object", "properties": {"a": {"const": 1, "title": None, "enum": None}}, "required": None},
        {"a": 1},
        {},
    ),
    ({"const": None}, None, 1),
    ({"type": "string", "maxLength": 1, "nullable": True}, None, "ab"),
    ({"type": "string", "maxLength": 1, "nullable": False}, "a", None),
    ({"$defs": {"a": {"enum": ["a", None]}}, "$ref": "#/$defs/a", "nullable": True}, None, "b"),
    ({"properties": {"a": {"const": 1, "x-order": 1}}, "unevaluatedProperties": False}, {"a": 1}, {}),
    ({"items": {"const": 1}, "uniqueItems": False}, [1, 1], 1),
    ({"enum": [None, 1], "default": None, "maximum": None}, None, 2),
    ({"$defs": {"a": {"const": 1, **SILENT}}, "$ref": "#/$defs/a", **SILENT}, 1, 2),
    ({"$defs": {"unused": {"$ref": "https://example.org"}, "bad": 3}, "const": 1}, 1, 2),
    ({"const": {"$ref": "#/nowhere"}}, {"$ref": "#/nowhere"}, 1),
    ({"type": "object", "properties": {"$ref": {"const": 1}}}, {"$ref": 1}, {"$ref": 2}),
    (
        {"type": "object", "properties": {"a": {"const": 1}, "b": {"$ref": "#/properties/a"}}},
        {"a": 1, "b": 1},
        {"a": 1},
    ),
]


@pytest.mark.parametrize(("schema", "valid", "invalid"), ACCEPTED, ids=lambda v: json.dumps(v)[:50])
def test_references_are_followed(schema: Any, valid: Any, invalid: Any) -> None:
    assert accepts(schema, valid) and not accepts(schema, invalid)


def test_text_beside_a_reference_replaces_that_of_the_definition() -> None:
    inner = {"$ref": "#/$defs/c", "description": "what colour is it?"}
    schema = {
        "$defs": {"c": {"enum": ["red"], "description": "a colour"}},
        "type": "object",
        "properties": {"c": inner},
    }
    (slot,) = of_schema(schema).slots(TEXT, COMPACT)
    assert slot.question == "what colour is it?"


DOUBLING = {f"d{i}": {"anyOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(25)}
NAMES = {"type": "object", "properties": {f"p{i}": {"$ref": "#/$defs/words"} for i in range(100)}}
WORDS = {"enum": [f"word {i}" for i in range(500)]}
REFUSED: list[tuple[Any, str]] = [
    (json.loads((SCHEMAS / "recursive.json").read_text()), "schema.properties.n.anyOf[0].$ref: #/$defs/N refers to itself"),
    (json.loads((SCHEMAS / "outside.json").read_text()), 'schema.$ref: "https://example.org/schema.json" is not a path'),
    ({"type": "array", "items": {"$ref": "#"}}, "schema.items.items.$ref: # refers to itself"),
    ({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}, "$ref: #/$defs/a refers to"),
    ({"$defs": {"a": {"const": 1}}, "$ref": "#/$defs/b"}, "schema.$ref: #/$defs/b is not in this schema; $defs has a"),
    ({"$ref": "#/$defs/b"}, "is not in this schema; it has no $defs"),
    ({"$ref": "#name"}, 'schema.$ref: "#name" is not a path inside this schema'),
    ({"$ref": 3}, "schema.$ref: 3 is not a path"),
    ({"$defs": {"a": 3}, "$ref": "#/$defs/a"}, "schema: expected a schema, got 3"),
    ({"$defs": {"a": {"type": "string", "pattern": "a"}}, "$ref": "#/$defs/a", "pattern": "b"},
     "schema.pattern: two parts of this schema (allOf, or a $ref and the keywords beside it) disagree"),
    ({"allOf": []}, "schema.allOf: expected a list of schemas, got []"),
    ({"allOf": [{"type": "string"}, {"type": "null"}]}, "schema.type: two parts of this schema"),
    ({"allOf": [{"type": "object", "properties": {"a": {"const": 1}}, "additionalProperties": False},
                {"type": "object", "properties": {"b": {"const": 1}}}]},
     "schema.additionalProperties: forbids 'b', a property of another part"),
    ({"allOf": [{"type": "array", "items": {"const": 1}}, {"prefixItems": [{"const": 1}]}]}, "schema.items: applies to all items"),
    ({"$defs": {"a": {"type": "string", "contentEncoding": "x"}}, "type": "array", "items": {"$ref": "#/$defs/a"}},
     "schema.items.contentEncoding: this keyword"),
    ({"type": "object", "properties": {"a": {"not": {"type": "null"}}}}, "schema.properties.a.not: this keyword"),
    ({"$defs": {f"a{i}": {"$ref": f"#/$defs/a{i + 1}"} for i in range(200)}, "$ref": "#/$defs/a0"}, "more than 100 references"),
    ({"$defs": {"A": {"$ref": "#/$defs/%41"}}, "$ref": "#/$defs/A"}, "refers to itself"),
    ({"definitions": {"Named": {"const": 1}}, "$ref": "#/definitions/Other"}, "definitions has Named"),
    ({"anyOf": [{"const": 1}, {"$ref": "#/anyOf/7"}]}, "#/anyOf/7 is not in this schema"),
    ({"$defs": {**DOUBLING, "d25": {"const": 1}}, "$ref": "#/$defs/d0"}, "more than 5000 schemas after expanding $ref"),
    ({"$defs": {"words": WORDS}, **NAMES}, "more than 80000 characters of values, names and patterns after expanding $ref"),
    ({"$defs": {"words": {"pattern": "a" * 9000, "type": "string"}}, **NAMES}, "more than 80000 characters"),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "said"), REFUSED, ids=lambda v: str(v)[:50])
def test_what_is_not_supported_is_named_with_its_path(schema: Any, said: str) -> None:
    with pytest.raises(ValueError, match=".") as wrong:
        of_schema(schema)
    assert said in str(wrong.value)


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int = Field(ge=1, le=9)


class Dog(BaseModel):
    kind: Literal["dog"] = "dog"
    born: date


class Level(IntEnum):
    LOW = 1
    HIGH = 2


class Empty(BaseModel):
    pass


class Zoo(BaseModel):
    """What pydantic writes in its own ways: tuples, unions with a tag, open and broken bounds, formats, enumerations of numbers."""

    animal: Annotated[Cat | Dog, Field(discriminator="kind")]
    place: tuple[int, bool]
    share: float = Field(gt=0, le=0.5)
    level: Level | None = None
    nothing: Empty
    ident: UUID
    grid: list[list[Literal[0, 1]]] = Field(min_length=1, max_length=2)


ZOO = {
    "animal": {"kind": "cat", "lives": 9},
    "place": [4, True],
    "share": 0.25,
    "level": 2,
    "nothing": {},
    "ident": "123e4567-e89b-42d3-a456-426614174000",
    "grid": [[0, 1], []],
}


def test_all_that_pydantic_writes_is_read() -> None:
    schema = Zoo.model_json_schema()
    for right in (ZOO, {**ZOO, "animal": {"kind": "dog", "born": "2024-05-31"}, "level": None}):
        assert accepts(schema, right)
        Zoo.model_validate(right)
    wrong: dict[str, Any] = {"animal": {"kind": "dog", "lives": 9}, "place": [4], "share": 0, "level": 3, "ident": "x"}
    wrong |= {"grid": [], "nothing": None}
    for name, value in wrong.items():
        assert not accepts(schema, {**ZOO, name: value}), name
        with pytest.raises(ValueError, match=name):
            Zoo.model_validate({**ZOO, name: value})
    assert [slot.path for slot in of_schema(schema).slots(TEXT, COMPACT)] == [(name,) for name in Zoo.model_fields]


def test_the_strict_schema_of_the_zoo_is_read() -> None:
    strict = pytest.importorskip("openai.lib._pydantic").to_strict_json_schema(Zoo)
    assert accepts(strict, ZOO)


@pytest.mark.parametrize("given", [{1, 2}, Thing, {"enum": [object()]}, {"default": b"x", "const": 1}])
def test_values_that_are_not_json_are_refused(given: Any) -> None:
    with pytest.raises(ValueError, match="the schema is not JSON: .*; for a class of pydantic"):
        of_schema(given)


def test_a_value_that_holds_itself_is_refused() -> None:
    schema: dict[str, Any] = {"type": "array"}
    schema["items"] = schema
    with pytest.raises(ValueError, match="Circular|deep"):
        of_schema(schema)


def test_a_model_that_answers_value_by_value_has_a_limit_of_values() -> None:
    pair = {
        f"d{i}": {
            "type": "object",
            "properties": {"a": {"$ref": f"#/$defs/d{i + 1}"}, "b": {"$ref": f"#/$defs/d{i + 1}"}},
        }
        for i in range(8)
    }
    found = of_schema({"$defs": {**pair, "d8": {"type": "boolean"}}, "$ref": "#/$defs/d0"})
    with pytest.raises(ValueError, match="more than 200 values"):
        found.slots(TEXT, COMPACT)
    assert len(found.slots(TEXT, RELEASED)) == 1
