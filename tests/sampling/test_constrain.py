"""The lattice against enumerating every answer, in a vocabulary small enough for that."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from unmask.grammars.automaton import compile_automaton
from unmask.grammars.grammar import Grammar
from unmask.grammars.regex import parse_regex
from unmask.rng import generator
from unmask.sampling.constrain import Constrained, Lattice, NothingFits
from unmask.sampling.token_sampler import Categorical, Greedy
from unmask.sequence import Kind, Sequence, Span, collate
from unmask.step import Prediction, Progress, Scored

PIECES = [b"", b"a", b"b", b"ab", b"ba", b"", b"c\xc3", b"\xa9"]  # 0 is a control token, 5 the end of turn
END, SIZE = 5, len(PIECES)
PATTERNS = ["(ab)+", "a*b?", "[ab]{3}", "a|bab|ba", "cé?a?|", "b(a|b)*b"]


def grammar(pattern: str) -> Grammar:
    return Grammar(compile_automaton(parse_regex(pattern)), PIECES, END)


def accepted(g: Grammar, ids: tuple[int, ...]) -> bool:
    """The rule by itself: text, then nothing but end-of-turn tokens."""
    upto = ids.index(END) if END in ids else len(ids)
    text, rest = ids[:upto], ids[upto:]
    if any(i != END for i in rest) or any(not PIECES[i] for i in text):
        return False
    return g.automaton.accepts(b"".join(PIECES[i] for i in text))


def answers(g: Grammar, logp: torch.Tensor, given: list[int]) -> dict[tuple[int, ...], float]:
    """Every accepted answer that keeps the given tokens (-1: masked), and ln of its weight."""
    found = {}
    for ids in itertools.product(range(SIZE), repeat=len(given)):
        if all(g_ in (-1, i) for g_, i in zip(given, ids, strict=True)) and accepted(g, ids):
            found[ids] = sum(float(logp[n, i]) for n, i in enumerate(ids) if given[n] < 0)
    return found


def cases() -> list[tuple[str, list[int]]]:
    kept = {
        "(ab)+": [3, -1, -1, -1],
        "a*b?": [-1, -1, END, -1],
        "[ab]{3}": [-1, 4, -1, -1],
        "b(a|b)*b": [-1, -1, -1, 2],
        "a|bab|ba": [2, -1, -1, -1],
        "cé?a?|": [-1, -1, -1, -1],
    }
    return [(p, [-1] * n) for p in PATTERNS for n in (2, 3, 4)] + list(kept.items())


@pytest.mark.parametrize(("pattern", "given"), cases(), ids=str)
def test_distributions_and_the_best_answer_are_those_of_all_answers(pattern: str, given: list[int]) -> None:
    g = grammar(pattern)
    logits = 3 * torch.randn(len(given), SIZE + 2, generator=generator(pattern, str(given)), dtype=torch.float64)
    logp = logits[:, :SIZE].log_softmax(1)
    every = answers(g, logp, given)
    lattice = Lattice(g, logits, torch.tensor(given))
    if not every:
        with pytest.raises(NothingFits, match="raise max_tokens"):
            lattice.posterior  # noqa: B018
        return
    found, whole = lattice.posterior, math.log(sum(math.exp(v) for v in every.values()))
    assert bool((found[:, SIZE:] == -torch.inf).all())
    for n in (i for i, v in enumerate(given) if v < 0):
        for token in range(SIZE):
            weight = sum(math.exp(v - whole) for ids, v in every.items() if ids[n] == token)
            assert float(found[n, token].exp()) == pytest.approx(weight, abs=1e-12), (n, token)
            assert bool(found[n, token].isfinite()) == any(ids[n] == token for ids in every)
    assert tuple(lattice.best({})) == max(every, key=lambda ids: every[ids])
    shortest = min(len([i for i in ids if i != END]) for ids in answers(g, torch.zeros(4, SIZE), [-1] * 4))
    assert g.least == shortest


def test_a_masked_token_without_scores_only_has_to_be_possible() -> None:
    g = grammar("(a|b)*")
    logits = torch.randn(3, SIZE, generator=generator(0), dtype=torch.float64)
    logits[1:] = torch.nan
    found = Lattice(g, logits, torch.tensor([-1, -1, -1])).posterior
    open_ = [1, 2, 3, 4, END]
    assert found[0, open_].softmax(0).tolist() == pytest.approx(logits[0, open_].softmax(0).tolist())
    assert set(found[2].isfinite().nonzero()[:, 0].tolist()) == set(open_)


def rows(names: list[str], given: list[list[int]]) -> list[Sequence]:
    """A prompt token, then a writable span of four tokens; -1: masked."""
    made = []
    for name, ids in zip(names, given, strict=True):
        spans = (
            Span(name="prompt", kind=Kind.TEXT, start=0, stop=1),
            Span(name=name, kind=Kind.TEXT, start=1, stop=5, writable=True),
        )
        open_ = torch.tensor([False, *(i < 0 for i in ids)])
        made.append(Sequence(ids=torch.tensor([1, *(max(i, 0) for i in ids)]), masked=open_, spans=spans))
    return made


def predicted(batch: object, seed: int) -> Prediction:
    flat = batch.masked.flatten().nonzero()[:, 0]  # type: ignore[attr-defined]
    text = torch.stack([torch.randn(SIZE, generator=generator(seed, int(i))) * 3 for i in flat])
    return Prediction(scored={Kind.TEXT: Scored(at=flat, logits=text)})


@pytest.mark.parametrize("draw", [Greedy(), Categorical(temperature=3.0)], ids=str)
def test_candidates_are_one_answer_and_other_rows_are_left_alone(draw: Greedy | Categorical) -> None:
    changed = 0
    for seed in range(25):
        names = ["bound", "free", "other", "bound"]
        given = [[-1, -1, -1, -1], [-1, 1, -1, -1], [-1, -1, -1, -1], [3, -1, -1, -1]]
        batch = collate(rows(names, given), [seed, seed, seed, 9])
        at = Progress(number=torch.zeros(4), of=torch.ones(4), length=5)
        said = predicted(batch, seed)
        grammars = (("bound", grammar("(ab)+")), ("other", grammar("b(a|b)*b")))
        got = Constrained(token_sampler=draw, grammars=grammars)(batch, said, at)
        free = draw(batch, said, at)
        for row, name in enumerate(names):
            ids = got.ids[row, 1:]
            if name == "free":
                assert torch.equal(ids, free.ids[row, 1:]) and torch.equal(got.score[row], free.score[row])
                continue
            whole = tuple(torch.where(batch.masked[row, 1:], ids, batch.ids[row, 1:]).tolist())
            assert accepted(dict(grammars)[name], whole), whole
            changed += whole != tuple(free.ids[row, 1:].tolist())
            assert bool((got.score[row, 1:][batch.masked[row, 1:]] <= 1e-6).all())
    assert changed > 50


def test_the_candidate_with_the_highest_score_is_kept() -> None:
    """Two answers, ``ab`` as one token and ``ba`` as two, whose most probable tokens belong to no common answer."""
    logits = torch.full((2, SIZE), -9.0, dtype=torch.float64)
    logits[0, 3], logits[0, 2], logits[1, 1], logits[1, END] = 1.0, 0.9, 3.0, -2.0
    lattice = Lattice(grammar("ab|ba"), logits, torch.tensor([-1, -1]))
    assert lattice.together([0, 1], [3, 1], [-0.5, -0.1])[0] == [2, 1]
    assert lattice.together([0, 1], [3, 1], [-0.1, -0.5])[0] == [3, END]
    assert lattice.together([0, 1], [2, 1], [-0.1, -0.5]) == ([2, 1], {})
