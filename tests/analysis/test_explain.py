"""What two words tell about a picture: prompts without words, and maps of the embedded model that add up."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image

from unmask.analysis.explain import content_words, contributions, explain, without
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


def test_each_word_is_compared_with_the_prompt_without_it(model: Model) -> None:
    picture = Image.new("RGB", (128, 128), "red")
    found = contributions(model, picture, "a red apple", masks=2)
    assert list(found.maps) == ["red", "apple"] == list(found.errors)
    assert all(part.shape == model.parts.grid for part in found.maps.values())
    pair = explain(model, picture, "a red apple", ("red", "apple"), masks=2)
    both = pair.parts["both words"]
    for word, other in (("red", "apple"), ("apple", "red")):
        alone = pair.parts["redundant"] + pair.parts[f"only {other}"]
        assert torch.allclose(
            found.maps[word], both - alone, atol=1e-4
        )  # what the whole prompt has beyond the other word
    assert list(contributions(model, picture, "a red apple", ["apple"], masks=2).maps) == ["apple"]


def test_content_words() -> None:
    assert content_words("a red Apple left of the apple, two cats") == ("red", "Apple", "left", "apple", "two", "cats")
    assert content_words("of the") == ("of", "the")
    with pytest.raises(ValueError, match="fewer than two words"):
        content_words("apple")
