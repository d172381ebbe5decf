"""A few thousand random schemas, valid and malformed: each is accepted or refused by a ValueError of ours."""

from __future__ import annotations

import re
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from random import Random

import pytest

from unmask.grammars.answer_format import of_schema
from unmask.grammars.automaton import TooLarge
from unmask.tokens.prompts import COMPACT, RELEASED
from unmask.tokens.text import Text

from .random_schemas import random_schema

TEXT = Text.load(Path(str(files("unmask") / "assets" / "mini" / "tokenizer.json")))
_FOREIGN = re.compile(
    r"Traceback|codec|int_max_str|object has no|unhashable|recursion|not supported between|unexpected keyword"
)


@pytest.mark.parametrize("seed", range(4))
def test_no_schema_raises_anything_but_an_error_of_ours(seed: int) -> None:
    rng, refused = Random(seed), 0
    for number in range(1000):
        schema = random_schema(rng)
        try:
            found = replace(of_schema(schema), most_states=300)
            if number % 10 == 0:
                assert found.slots(TEXT, COMPACT) and found.slots(TEXT, RELEASED)
        except ValueError as wrong:
            assert type(wrong) in (ValueError, TooLarge), (schema, wrong)
            assert not _FOREIGN.search(str(wrong)), (schema, wrong)
            refused += 1
    assert 300 < refused < 900
