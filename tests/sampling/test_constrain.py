"""The lattice against enumerating every answer, in a vocabulary small enough for that."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from unmask.grammars.automaton import compile_automaton
from unmask.grammars.grammar import Grammar
from unmask.grammars.lattice import Lattice, NothingFits, paths
from unmask.grammars.regex import parse_regex
from unmask.rng import generator
from unmask.sampling.constrain import Constrained
from unmask.sampling.token_sampler import Categorical, Greedy
from unmask.sequence import Kind, Sequence, Span, collate
from unmask.step import Prediction, Progress, Scored

from .slow_lattice import SlowLattice

PIECES = [b"", b"a", b"b", b"ab", b"ba", b"", b"c\xc3", b"\xa9"]  # 0 is a control token, 5 the end of turn
END, SIZE = 5, len(PIECES)
PATTERNS = ["(ab)+", "a*b?", "[ab]{3}", "a|bab|ba", "cé?a?|", "b(a|b)*b"]


def grammar(pattern: str) -> Grammar:
    return Grammar(compile_automaton(parse_regex(pattern)), PIECES, END)


def made(g: Grammar, logits: torch.Tensor, given: list[int]) -> Lattice:
    """The lattice of logits [N, V], NaN where the model gave none."""
    ways = paths(g, len(given))
    scored = (~logits[:, 0].isnan()).nonzero()[:, 0].tolist()
    return Lattice(ways, scored, logits[scored][:, torch.from_numpy(ways.fits)].numpy(), given)


def posterior(found: Lattice, scored: list[int]) -> torch.Tensor:
    """ln p of each token at these positions, [M, V]."""
    out = torch.full((len(scored), SIZE), -torch.inf, dtype=torch.float64)
    out[:, torch.from_numpy(found.paths.fits)] = torch.from_numpy(found.posterior(scored))
    return out


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
    if not every:
        with pytest.raises(NothingFits, match="raise max_tokens"):
            made(g, logits, given).posterior([0])
        return
    lattice = made(g, logits, given)
    found, whole = posterior(lattice, list(range(len(given)))), math.log(sum(math.exp(v) for v in every.values()))
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
    lattice = made(g, logits, [-1, -1, -1])
    found, open_ = posterior(lattice, [0])[0], [1, 2, 3, 4, END]
    assert found[open_].softmax(0).tolist() == pytest.approx(logits[0, open_].softmax(0).tolist())
    assert bool(found[[0, 6, 7]].isinf().all())
    assert lattice.best({0: 3}) == [3, 1, 1]  # of tokens without scores, the first one that is possible


PIECES_ABC = [b"", *(bytes([97 + i]) for i in range(20)), *(bytes([97 + i, 98 + i]) for i in range(15)), b"abc", b"qqq"]


@pytest.mark.parametrize("pattern", ["[a-t]{2,30}", "(abc|qq+)*[a-f]{0,3}", "a(b|c)*q{5}", "(ab?c?){3,9}t*"])
def test_the_slow_twin_says_the_same(pattern: str) -> None:
    """Of tokens scored, masked without scores, and unmasked. Up to rounding, which is 1e-7 beside an infinite logit."""
    g = Grammar(compile_automaton(parse_regex(pattern)), PIECES_ABC, 0)
    for seed, size in enumerate((12, 17, 24)):
        logits = 4 * torch.randn(size, len(PIECES_ABC), generator=generator(pattern, seed), dtype=torch.float64)
        logits[size // 2 : size // 2 + 3] = torch.nan
        logits[0, 3], logits[1, 2] = torch.inf, -torch.inf
        given = [-1] * size
        for n in (1, size - 2) if seed else ():
            given[n] = made(g, logits, given).best({})[n]
        quick, slow = made(g, logits, given), SlowLattice(g, logits, torch.tensor(given))
        scored = [n for n in sorted(quick.row) if given[n] < 0]
        found = torch.from_numpy(quick.posterior(scored))
        wanted = slow.posterior[scored][:, torch.from_numpy(quick.paths.fits)]
        assert torch.equal(found.isfinite(), wanted.isfinite())
        assert float((found - wanted)[found.isfinite() & (wanted > -1e8)].abs().max()) < 1e-6
        assert quick.best({}) == slow.best({})
        guess = [int(logits[n].nan_to_num().argmax()) for n in scored]
        score = torch.rand(len(scored), generator=generator(seed)).tolist()
        try:
            ids, changed = slow.together(scored, guess, score)
        except NothingFits:
            with pytest.raises(NothingFits):
                quick.together(scored, guess, score)
            continue
        own, altered = quick.together(scored, guess, score)
        assert own == ids and list(altered) == list(changed)
        assert list(altered.values()) == pytest.approx(list(changed.values()), abs=1e-6)


def test_an_unmasked_token_that_is_scored_gets_the_distribution_that_it_would_have_masked() -> None:
    g = grammar("[ab]{3}")
    logits = torch.randn(3, SIZE, generator=generator(1), dtype=torch.float64)
    kept, open_ = made(g, logits, [1, -1, 2]), made(g, logits, [-1, -1, 2])
    assert posterior(kept, [0]).tolist() == [pytest.approx(row) for row in posterior(open_, [0]).tolist()]


def test_only_edges_on_accepted_answers_are_visited() -> None:
    """One answer of 300 tokens: one edge at each of them."""
    g = Grammar(compile_automaton(parse_regex("ab" * 150)), [b"", b"a", b"b"], 0)
    assert paths(g, 300).edges == 300 and len(g.to) == 302
    with pytest.raises(NothingFits, match="needs at least 300"):
        paths(g, 299)


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
    lattice = made(grammar("ab|ba"), logits, [-1, -1])
    assert lattice.together([0, 1], [3, 1], [-0.5, -0.1])[0] == [2, 1]
    assert lattice.together([0, 1], [3, 1], [-0.1, -0.5])[0] == [3, END]
    assert lattice.together([0, 1], [2, 1], [-0.1, -0.5]) == ([2, 1], {})
