"""The entropy-bounded sampler against a search over all prefixes, and its limits."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from unmask.methods.eb_sampler import EntropyBound, WithEntropy, eb_confidence, eb_margin, eb_sampler
from unmask.models.fake import FakeDenoiser
from unmask.rng import generator
from unmask.sampling import blocks, schedule, selection, stopping, token_sampler
from unmask.sampling.sampler import Sampler
from unmask.sequence import Batch, Kind, Sequence, Span, collate
from unmask.step import Prediction, Progress, Proposal, Scored

torch.set_num_threads(1)
fake = FakeDenoiser()
BASE = Sampler(schedule=schedule.Fixed(each=1), token_sampler=token_sampler.Greedy(), selection=selection.Confident())
METHODS = [eb_sampler, eb_confidence, eb_margin]
SCORES = [token_sampler.Entropy(), token_sampler.LogProbability(), token_sampler.Margin()]


def answer(tokens: int, *, prompt: int = 2, given: tuple[int, ...] = (), seed: int = 0) -> Sequence:
    length = prompt + tokens
    masked = torch.arange(length) >= prompt
    masked[[prompt + i for i in given]] = False
    return Sequence(
        ids=torch.randint(8, 16, (length,), generator=generator(seed)),
        masked=masked,
        spans=(
            Span(name="prompt", kind=Kind.TEXT, start=0, stop=prompt),
            Span(name="answer", kind=Kind.TEXT, start=prompt, stop=length, writable=True),
        ),
    )


ROWS = [answer(17, given=(0, 8), seed=1), answer(9, prompt=5, seed=2), answer(24, given=(23,), seed=3)]
START = Progress(number=torch.zeros(1), of=torch.ones(1), length=3)


def searched(entropy: list[float], score: list[float], gamma: float) -> set[int]:
    """The longest prefix, the surest first, that fits the bound: by trying all of them."""
    order = sorted(range(len(score)), key=lambda i: -score[i])
    best: set[int] = set()
    for k in range(1, len(order) + 1):
        own = [entropy[i] for i in order[:k]]
        if k == 1 or sum(own) - max(own) <= gamma:
            best = set(order[:k])
    return best


@pytest.mark.parametrize("gamma", [0.0, 0.1, 0.4, 1.0, 3.0])
def test_it_takes_the_longest_prefix_that_fits(gamma: float) -> None:
    batch = collate([answer(3, prompt=0)], [0])
    for seed in range(200):
        drawn = torch.rand(2, 1, 3, generator=generator("eb", seed))
        proposal = Proposal(ids=batch.ids, score=drawn[0], entropy=drawn[1])
        took = EntropyBound(gamma=gamma)(batch, proposal, batch.masked, torch.tensor([3]), START).unmask
        wanted = searched(drawn[1, 0].tolist(), drawn[0, 0].tolist(), gamma)
        assert set(took[0].nonzero()[:, 0].tolist()) == wanted


class Copies:
    """Three binary tokens, all equal: the first is open, and the others follow from any one that is known."""

    def __call__(self, batch: Batch, *, predict: Tensor | None = None, reuse: object = None) -> Prediction:
        at = (batch.masked if predict is None else predict).flatten().nonzero()[:, 0]
        row = at // 3
        ones = (~batch.masked & (batch.ids == 1)).sum(1)[row].double()
        known = (~batch.masked).sum(1)[row].double()
        p = torch.where(known > 0, ones / known.clamp(min=1), 0.5)
        return Prediction(scored={Kind.TEXT: Scored(at=at, logits=torch.stack([1 - p, p], 1).log().float())})


@pytest.mark.parametrize("method", METHODS)
def test_what_follows_from_known_tokens_costs_no_further_step(method) -> None:  # type: ignore[no-untyped-def]
    """One token is drawn, the two that follow from it come together, and no answer is wrong: 2 steps instead of 3."""
    base = dataclasses.replace(BASE, token_sampler=token_sampler.Categorical())
    result = method(base, gamma=0.1).sample(Copies(), collate([answer(3, prompt=0)] * 60, range(60)))
    assert {tuple(row) for row in result.ids.tolist()} == {(0, 0, 0), (1, 1, 1)}
    assert result.clock.tolist() == [2] * 60


@pytest.mark.parametrize("method", METHODS)
def test_gamma_zero_takes_one_token_a_step_and_infinity_everything(method) -> None:  # type: ignore[no-untyped-def]
    batch = collate(ROWS, [3, 4, 5])
    one, everything = (method(BASE, gamma=g).sample(fake, batch) for g in (0.0, math.inf))
    assert one.clock.tolist() == batch.masked.sum(1).tolist() and everything.clock.tolist() == [1, 1, 1]


@pytest.mark.parametrize(("method", "score"), list(zip(METHODS, SCORES, strict=True)))
def test_gamma_zero_is_one_token_a_step_by_the_proxy_to_the_bit(method, score) -> None:  # type: ignore[no-untyped-def]
    drawn = token_sampler.Categorical(temperature=0.7)
    base = dataclasses.replace(BASE, token_sampler=drawn)
    plain = dataclasses.replace(base, token_sampler=dataclasses.replace(drawn, score=score))
    batch = collate(ROWS, [3, 4, 5])
    assert torch.equal(method(base, gamma=0.0).sample(fake, batch).ids, plain.sample(fake, batch).ids)


def test_the_larger_gamma_the_fewer_steps() -> None:
    batch = collate(ROWS, [3, 4, 5])
    clocks = [eb_sampler(BASE, gamma=g).sample(fake, batch).clock.sum().item() for g in (0.0, 2.0, 6.0, math.inf)]
    assert clocks == sorted(clocks, reverse=True) and len(set(clocks)) == 4


def test_steps_still_limit_how_many_are_taken() -> None:
    limited = dataclasses.replace(eb_sampler(BASE, gamma=math.inf), schedule=schedule.Equal(steps=3))
    assert limited.sample(fake, collate([answer(9)], [0])).clock.tolist() == [3]


@pytest.mark.parametrize("method", METHODS)
def test_rows_do_not_depend_on_their_batch_and_given_tokens_stay(method) -> None:  # type: ignore[no-untyped-def]
    in_blocks = dataclasses.replace(
        BASE,
        token_sampler=token_sampler.Categorical(),
        blocks=blocks.Blocks(length=5),
        stopping=stopping.EndOfTurn(ids=(5, 7)),
    )
    for base in (BASE, in_blocks):
        sampler, batch = method(base, gamma=2.5), collate(ROWS, [3, 4, 5])
        together = sampler.sample(fake, batch)
        assert not together.masked.any() and torch.equal(together.ids[~batch.masked], batch.ids[~batch.masked])
        for i, row in enumerate(ROWS):
            alone = sampler.sample(fake, collate([row], [3 + i]))
            assert torch.equal(together.ids[i, : len(row.ids)], alone.ids[0])
            assert together.clock[i] == alone.clock[0]


def test_entropies_are_those_of_the_restricted_distribution() -> None:
    base = dataclasses.replace(
        BASE, token_sampler=token_sampler.OnlyIds(low=4, high=6, token_sampler=token_sampler.Greedy())
    )
    changed = eb_sampler(base, gamma=0.5).token_sampler
    assert isinstance(changed, token_sampler.OnlyIds) and isinstance(changed.token_sampler, WithEntropy)
    batch = collate([answer(5)], [0])
    proposal = changed(batch, fake(batch), Progress(number=torch.zeros(1), of=torch.ones(1), length=7))
    assert proposal.entropy is not None and proposal.entropy.max() <= math.log(2) + 1e-6
    logits = fake(batch).logits(Kind.TEXT)[:, 4:6].log_softmax(1)
    assert torch.allclose(proposal.entropy[0, 2:], -(logits.exp() * logits).sum(1), atol=1e-5)


def test_what_does_not_fit_is_refused() -> None:
    for gamma in (-0.1, math.nan):
        with pytest.raises(ValueError, match="gamma is a bound in nats, at least 0"):
            eb_sampler(BASE, gamma=gamma)
    with pytest.raises(ValueError, match="no entropies; use the token sampler WithEntropy"):
        dataclasses.replace(BASE, selection=EntropyBound(gamma=1.0)).sample(fake, collate([answer(3)], [0]))
