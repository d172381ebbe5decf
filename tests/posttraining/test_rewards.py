"""Rewards as values, by name, and the advantages that follow from them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from unmask.data.world.render import render
from unmask.data.world.scenes import Scene, SceneObject
from unmask.posttraining.rewards import AnswerMatch, Format, Function, Pattern, Pictures, Sample, Weighted
from unmask.recipes import rewarding
from unmask.recipes.rewarding import rewards_of
from unmask.sequence import Sequence

torch.set_num_threads(1)
NOTHING = Sequence(ids=torch.zeros(0).long(), masked=torch.zeros(0).bool(), spans=())


def said(text: str, **wanted: object) -> Sample:
    return Sample(sequence=NOTHING, prompt="how many?", text=text, wanted=wanted)


def shown(picture: np.ndarray, **wanted: object) -> Sample:
    return Sample(sequence=NOTHING, prompt="two cats", picture=picture, wanted=wanted)


@pytest.mark.parametrize(
    ("text", "answer", "right"),
    [
        ("Two cats.", "two cats", True),
        ("<think>one and one</think> 2", "2.0", True),
        ("1,024", "1024", True),
        ("three", "two", False),
        ("<think>two</think> three", "two", False),
        ("", "two", False),
    ],
)
def test_answer_match(text: str, answer: str, right: bool) -> None:
    assert AnswerMatch()([said(text, answer=answer)]) == [float(right)]


def test_an_answer_to_compare_with_is_needed() -> None:
    with pytest.raises(ValueError, match="the reward answer needs 'answer' in every row, and 'how many"):
        AnswerMatch()([said("two")])


def test_patterns_match_the_whole_answer_over_lines() -> None:
    assert Pattern(pattern="a.*b")([said("a\nb"), said("xa b")]) == [1.0, 0.0]
    with pytest.raises(ValueError, match="is not a regular expression"):
        Pattern(pattern="(")


def test_the_format_is_that_of_the_row_or_thinking_before_the_answer() -> None:
    samples = [said("<think>because</think> two"), said("two"), said("<think>a</think>"), said("42", format=r"\d+")]
    assert Format()(samples) == [1.0, 0.0, 0.0, 1.0]
    assert Format()([shown(np.zeros((8, 8, 3), np.uint8))]) == [1.0]


def test_rewards_of_pictures_refuse_words() -> None:
    reward = Pictures(name="judge", score=lambda pictures, samples: [0.25 for _ in pictures])
    assert reward([shown(np.zeros((8, 8, 3), np.uint8))]) == [0.25]
    with pytest.raises(ValueError, match="the reward judge scores pictures, and an answer has none"):
        reward([said("two")])


def test_a_users_function_returns_a_finite_number() -> None:
    assert Function(name="f", function=lambda sample: len(sample.text))([said("ab")]) == [2.0]
    with pytest.raises(ValueError, match="the reward f returned nan; return a finite number"):
        Function(name="f", function=lambda sample: float("nan"))([said("ab")])


def test_a_weighted_sum() -> None:
    both = Weighted(parts=(("answer", AnswerMatch(), 2.0), ("format", Format(), 0.5)))
    samples = [said("<think>so</think> 2", answer="2"), said("2", answer="2"), said("3", answer="2")]
    assert both(samples) == [2.5, 2.0, 0.0]
    assert both.each(samples) == {"answer": [1.0, 1.0, 0.0], "format": [1.0, 0.0, 0.0]}


# -- by name ----------------------------------------------------------------------------------------------------------


def test_names_and_weights() -> None:
    made = rewards_of(r"answer, format=1.5,regex:a{1\,2}=-1")
    assert [(name, weight) for name, _, weight in made.parts] == [("answer", 2.0), ("format", 1.5), ("regex", -1.0)]
    assert made([said("aa", answer="aa")]) == [2.0 - 1.0]


def test_a_function_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("def short(sample):\n    return 1 / (1 + len(sample.text))\n")
    made = rewards_of(f"{tmp_path}/own.py:short=4")
    assert made([said("abc")]) == [1.0]
    with pytest.raises(ValueError, match="has no function 'long'"):
        rewards_of(f"{tmp_path}/own.py:long")
    with pytest.raises(ValueError, match="there is no file"):
        rewards_of(f"{tmp_path}/other.py:short")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("judg", "no reward is called 'judg'; did you mean 'judge'"),
        ("regex:", "no reward is called 'regex:'"),
        (" , ", "there is no reward in"),
        ("answer,answer=2", "the reward answer occurs twice"),
    ],
)
def test_what_is_no_reward_is_named(words: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rewards_of(words)


def scene(*names: str) -> Scene:
    objects = tuple(SceneObject(name=n, colour="", x=0.5 * i, y=0.0, size=0.5) for i, n in enumerate(names))
    return Scene(objects=objects, background="white", level="grid")


def test_the_judge_reads_the_fields_of_geneval() -> None:
    two = {"include": [{"class": "cat", "count": 2}], "exclude": [{"class": "cat", "count": 3}]}
    cats, mixed = render(scene("cat", "cat"), 128), render(scene("cat", "dog"), 128)
    reward = rewards_of("judge")
    assert reward([shown(cats, **two), shown(mixed, **two)]) == [1.0, 0.0]
    assert reward([shown(mixed, include=[{"class": "cat", "count": 1}])]) == [0.5]  # another object is there too
    with pytest.raises(ValueError, match="the reward judge needs 'include' in every row"):
        reward([shown(cats)])


def test_clip_compares_a_picture_with_its_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    class Fake:
        def images(self, pictures: list[np.ndarray]) -> np.ndarray:
            return np.array([[1.0, 0.0] if p.any() else [0.0, 1.0] for p in pictures])

        def texts(self, texts: list[str]) -> np.ndarray:
            return np.array([[2.0, 0.0] for _ in texts])

    monkeypatch.setattr(rewarding, "read_clip", lambda folder: Fake())
    light, dark = np.ones((8, 8, 3), np.uint8), np.zeros((8, 8, 3), np.uint8)
    assert rewards_of("clip:here")([shown(light), shown(dark)]) == [pytest.approx(10.0), 0.0]
