"""What two words tell about a picture: prompts without words, and maps of the embedded model that add up."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image

from unmask.analysis.explain import explain, without
from unmask.pipeline.model import Model


def test_words_are_cut_out_of_a_prompt() -> None:
    null, red, apple, whole = without("a red Apple left of a cat", ("red", "apple"))
    assert (null, red, apple) == ("a left of a cat", "a red left of a cat", "a Apple left of a cat")
    assert whole == "a red Apple left of a cat"
    with pytest.raises(ValueError, match="no word 'ed'"):
        without("a red apple", ("ed", "apple"))
    with pytest.raises(ValueError, match="overlap"):
        without("a red apple", ("red apple", "apple"))
    with pytest.raises(ValueError, match="no other word"):
        without("red apple", ("red", "apple"))
    with pytest.raises(ValueError, match="no word"):
        without("a red apple", ("red", " "))


def test_the_parts_of_an_explanation_add_up(model: Model) -> None:
    picture, words = Image.new("RGB", (128, 128), "red"), ("red", "apple")
    done: list[tuple[int, int]] = []
    found = explain(model, picture, "a red apple", words, masks=2, on_progress=lambda at, of: done.append((at, of)))
    parts = found.parts
    together = parts["redundant"] + parts["only red"] + parts["only apple"] + parts["synergy"]
    assert parts["both words"].shape == model.parts.grid and torch.allclose(together, parts["both words"])
    assert found.totals["both words"] == pytest.approx(float(together.sum())) and done[-1] == (8, 8)
    assert json.loads(json.dumps(found.to_json()))["words"] == list(words) and set(found.errors) == {
        "both words",
        *words,
    }
    assert found.sheet().width > 600
    again = explain(model, picture, "a red apple", words, masks=2)
    assert torch.equal(again.maps.synergy, found.maps.synergy)
