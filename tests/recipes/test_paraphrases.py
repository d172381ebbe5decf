"""The small language of demonstrations: its prompts, answers, drafts and what counts as right."""

from __future__ import annotations

from random import Random

import torch

from unmask.recipes import paraphrases as lang
from unmask.recipes.lavida import with_slots
from unmask.rng import generator

torch.set_num_threads(1)
ROWS = lang.questions(generator("test"), 64)


def test_every_wording_is_a_right_answer_and_nothing_else() -> None:
    assert lang.right(ROWS, ROWS.answers()) == [True] * 64
    for number in range(lang.WORDINGS):
        said = ROWS.answers(number)
        assert lang.right(ROWS, said) == [True] * 64
        assert not any(lang.right(ROWS, [answer[:-1] for answer in said][:64]))
    lengths = [len(answer) for number in range(lang.WORDINGS) for answer in ROWS.answers(number)]
    assert (min(lengths), max(lengths)) == (1, 12)


def test_an_answer_says_the_digits_that_are_asked_for() -> None:
    for row in range(64):
        shown, asked = ROWS.digits[row].tolist(), int(ROWS.asked[row])
        wanted = shown if asked == lang.ALL else [shown[asked]]
        told = [i for i in ROWS.answers()[row] if lang.is_digit(i)]
        assert lang.words(told).split() == [str(d) for d in wanted]
    assert len(set(ROWS.asked.tolist())) == 7 and set(lang.questions(generator("few"), 64, 3).asked.tolist()) == {
        *range(3),
        lang.ALL,
    }


def test_batches_hold_the_answers_up_to_their_lengths() -> None:
    for padding, lengths in ((lang.to_canvas, {16}), (lang.exactly, None), (lang.at_random, None)):
        batch = lang.Lessons(rows=32, seed=1, padding=padding)(3)
        said, found = lang.spoken(batch), (batch.writable & batch.valid).sum(1).tolist()
        assert not bool(batch.masked.any()) and set(found) <= set(range(2, 17))
        assert lengths is None or set(found) == lengths
        if padding is lang.exactly:
            assert found == [len(answer) + 1 for answer in said]
    other = lang.Lessons(rows=32, seed=2)(3)
    assert not torch.equal(other.ids, lang.Lessons(rows=32, seed=1)(3).ids)


def test_only_the_gaps_of_a_draft_are_masked() -> None:
    rows = lang.questions(generator("two"), 2)
    batch = lang.drafted(rows, [[lang.MASK, 30, lang.END], [30, lang.MASK, lang.MASK, lang.END]], 6)
    assert batch.masked[:, rows.before :].tolist() == [
        [True, False, False, False, False, False],
        [False, True, True, False, False, False],
    ]
    assert lang.spoken(batch)[0] == [lang.MASK, 30]


def test_a_slot_stands_between_two_words_and_its_marker_is_given() -> None:
    rng, answer = Random(0), [30, 31, 32]
    seen = [with_slots(answer, rng) for _ in range(200)]
    assert sum(one == answer for one in seen) in range(20, 70) and with_slots([30], rng) == [30]
    for one in seen:
        if one != answer:
            assert [i for i in one if i not in (lang.MARKER, lang.FILLER)] == answer and one.count(lang.MARKER) == 1
            at = one.index(lang.MARKER)
            assert 0 < at < len(one) - 1 and one.count(lang.FILLER) <= 5 and one[0] == 30
    batch = lang.learned(ROWS, [[30, lang.FILLER, lang.MARKER, 31]] * 64, [5] * 64)
    marked = batch.ids == lang.MARKER
    assert bool(marked.any(1).all()) and not bool((marked & batch.writable).any())
    assert bool((batch.writable & (batch.ids == lang.FILLER)).any())
