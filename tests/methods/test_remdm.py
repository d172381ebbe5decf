"""ReMDM against its definition: how often tokens are remasked, the number that stays masked, and the limits."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from torch import Tensor

from unmask.methods.remdm import Cap, Remasking, Rescale, remdm, remdm_conf, remdm_rescale
from unmask.models.fake import FakeDenoiser
from unmask.rng import generator
from unmask.sampling import blocks, presets, schedule, selection, stopping, token_sampler
from unmask.sampling.sampler import Sampler
from unmask.sequence import Batch, Kind, Sequence, Span, collate
from unmask.step import Prediction, Progress, Scored

torch.set_num_threads(1)
fake = FakeDenoiser()
BASE = Sampler(
    schedule=schedule.Equal(steps=6),
    token_sampler=token_sampler.Categorical(),
    selection=selection.Confident(noise=1.0),
)
RANDOM = dataclasses.replace(BASE, selection=selection.RandomOrder())
PLAIN = [
    BASE,
    RANDOM,
    dataclasses.replace(BASE, blocks=blocks.Blocks(length=5), stopping=stopping.EndOfTurn(ids=(5, 7))),
    dataclasses.replace(BASE, selection=selection.PerSpan(selection=selection.RandomOrder())),
    presets.fast_dllm_text(threshold=0.3),
]
METHODS = [remdm, remdm_rescale, remdm_conf]


def answer(tokens: int, *, prompt: int = 2, given: tuple[int, ...] = (), seed: int = 0) -> Sequence:
    """A text to complete; ``given``: tokens of the answer that are known."""
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


@pytest.mark.parametrize("sampler", PLAIN, ids=lambda s: type(s.selection).__name__)
@pytest.mark.parametrize("method", METHODS)
def test_eta_zero_is_the_plain_sampler_to_the_bit(method, sampler: Sampler) -> None:  # type: ignore[no-untyped-def]
    batch = collate(ROWS, [3, 4, 5])
    plain, zero = (s.sample(fake, batch) for s in (sampler, method(sampler, eta=0.0)))
    assert torch.equal(plain.ids, zero.ids) and torch.equal(plain.clock, zero.clock)


@pytest.mark.parametrize("sampler", PLAIN[:4], ids=lambda s: type(s.selection).__name__)
@pytest.mark.parametrize("method", METHODS)
def test_the_number_of_masked_tokens_follows_the_plain_sampler(method, sampler: Sampler) -> None:  # type: ignore[no-untyped-def]
    without = dataclasses.replace(sampler, stopping=stopping.Never())
    counts: list[list[list[int]]] = []
    remasked = 0
    for s in (without, method(without, eta=0.5)):
        batch, seen = collate(ROWS, [3, 4, 5]), []
        before = batch.masked

        def look(step, seen=seen) -> None:  # type: ignore[no-untyped-def]
            seen.append(step.batch.masked)

        result = s.sample(fake, batch, on_step=look)
        remasked += sum(int((now & ~last).sum()) for last, now in zip([before, *seen], seen, strict=False))
        counts.append([m.sum(1).tolist() for m in seen])
        assert not result.masked.any() and torch.equal(result.ids[~batch.masked], batch.ids[~batch.masked])
    assert counts[0] == counts[1] and remasked > 5


@pytest.mark.parametrize("method", METHODS)
def test_rows_do_not_depend_on_their_batch(method) -> None:  # type: ignore[no-untyped-def]
    for sampler in PLAIN:
        changed = method(sampler, eta=0.4)
        together = changed.sample(fake, collate(ROWS, [3, 4, 5]))
        for i, row in enumerate(ROWS):
            alone = changed.sample(fake, collate([row], [3 + i]))
            assert torch.equal(together.ids[i, : len(row.ids)], alone.ids[0])


def test_only_the_current_block_is_remasked() -> None:
    sampler = remdm(dataclasses.replace(BASE, schedule=schedule.Fixed(each=1), blocks=blocks.Blocks(length=6)), eta=0.9)
    batch = collate([answer(18, seed=4)], [0])
    masks = [batch.masked[0, 2:].view(3, 6)]
    sampler.sample(fake, batch, on_step=lambda s: masks.append(s.batch.masked[0, 2:].view(3, 6)))
    for before, now in zip(masks, masks[1:], strict=False):
        finished = ~before.any(1)
        assert not now[finished].any()  # a finished block stays finished


def state(masked: list[bool], score: list[float], seed: int = 0) -> Batch:
    """One row in the middle of a run: all of it one block."""
    n = len(masked)
    batch = collate([answer(n, prompt=0)], [seed])
    at = torch.tensor([masked])
    return batch.replace(masked=at, region=torch.ones_like(at), score=torch.tensor([score]).masked_fill(at, -torch.inf))


def rates(part: Remasking, masked: list[bool], score: list[float], count: int, draws: int = 4000) -> Tensor:
    """How often each token is drawn for remasking."""
    total = torch.zeros(len(masked))
    for seed in range(draws):
        batch = state(masked, score, seed)
        total += part.drawn(batch, batch.masked, torch.tensor([count]))[0]
    return total / draws


@pytest.mark.parametrize(
    ("sigma", "wanted"), [(Cap(eta=0.2), 0.2), (Cap(eta=0.9), 0.5), (Rescale(eta=0.4), 0.2), (Cap(eta=0.0), 0.0)]
)
def test_a_token_is_remasked_with_probability_sigma(sigma, wanted: float) -> None:  # type: ignore[no-untyped-def]
    """4 unmasked and 3 masked tokens of which 1 is unmasked now: sigma_max is 2 / 4."""
    part = Remasking(selection=selection.Confident(), sigma=sigma)
    found = rates(part, [False] * 4 + [True] * 3, [-1.0] * 7, 1)
    # More than 2 of 4 are never remasked, which takes something off: E[min(n, 2)] / 4 for n binomial.
    p = torch.tensor([1.0])
    for _ in range(4):
        p = torch.cat([p * (1 - wanted), torch.zeros(1)]) + torch.cat([torch.zeros(1), p * wanted])
    exact = float((p * torch.arange(5).clamp(max=2)).sum()) / 4
    assert torch.allclose(found[:4], torch.full((4,), exact), atol=0.03) and not found[4:].any()


def test_improbable_tokens_are_remasked_more_often() -> None:
    """psi = 1 and 0: weights exp(-1) and 1, scaled to a mean of 1."""
    part = Remasking(selection=selection.Confident(), sigma=Cap(eta=0.2), confident=True)
    found = rates(part, [False, False, True, True, True], [0.0, -50.0, 0.0, 0.0, 0.0], 1)
    weights = torch.tensor([1.0, 0.0]).neg().exp()
    assert torch.allclose(found[:2], 0.2 * weights / weights.mean(), atol=0.03)


def test_nothing_is_remasked_at_the_last_step_or_before_the_switch() -> None:
    always = Remasking(selection=selection.Confident(), sigma=Cap(eta=1.0))
    late = dataclasses.replace(always, switch=0.5)
    batch = state([False, False, True, True, True], [-1.0] * 5)
    assert not always.drawn(batch, batch.masked, torch.tensor([3])).any()
    assert always.drawn(batch, batch.masked, torch.tensor([1])).sum() == 2
    assert not late.drawn(batch, batch.masked, torch.tensor([1])).any()
    later = state([False, False, False, True, True], [-1.0] * 5)
    assert late.drawn(later, later.masked, torch.tensor([1])).any()


def test_tokens_that_this_run_did_not_unmask_are_never_drawn() -> None:
    always = Remasking(selection=selection.Confident(), sigma=Cap(eta=1.0))
    batch = state([False, False, True, True, True], [-1.0, -torch.inf, 0.0, 0.0, 0.0])
    assert always.drawn(batch, batch.masked, torch.tensor([1])).tolist() == [[True, False, False, False, False]]


WORLD = torch.tensor([0.30, 0.02, 0.08, 0.10, 0.04, 0.16, 0.05, 0.25]).view(
    2, 2, 2
)  # p(a, b, c) of three binary tokens


def marginal(known: dict[int, int], token: int) -> Tensor:
    """p(token | the known ones), [2]."""
    p = WORLD
    for axis, value in known.items():
        p = p.index_select(axis, torch.tensor([value]))
    p = p.sum([axis for axis in range(3) if axis != token])
    return p / p.sum()


class Exact:
    """The perfect model of WORLD: the true marginal of every masked token."""

    def __call__(self, batch: Batch, *, predict: Tensor | None = None, reuse: object = None) -> Prediction:
        at = (batch.masked if predict is None else predict).flatten().nonzero()[:, 0]
        ids, masked = batch.ids.tolist(), batch.masked.tolist()
        logits = []
        for row, token in ((int(i) // 3, int(i) % 3) for i in at):
            known = {t: ids[row][t] for t in range(3) if not masked[row][t] and t != token}
            logits.append(marginal(known, token).log())
        return Prediction(scored={Kind.TEXT: Scored(at=at, logits=torch.stack(logits))})


def by_hand(eta: float) -> Tensor:
    """The distribution of three tokens unmasked one a step in random order, when the first may be remasked at the second step."""
    out = torch.zeros(2, 2, 2)
    for i, j, k in itertools.permutations(range(3)):
        for ids in itertools.product((0, 1), repeat=3):
            # The last factor is the last token's: k after i and j, or i again after j and k.
            plain = marginal({}, i)[ids[i]] * marginal({i: ids[i]}, j)[ids[j]]
            out[ids] += (1 - eta) * plain * marginal({i: ids[i], j: ids[j]}, k)[ids[k]] / 6
            for old in (0, 1):
                both = marginal({}, i)[old] * marginal({i: old}, j)[ids[j]] * marginal({i: old}, k)[ids[k]]
                out[ids] += eta * both * marginal({j: ids[j], k: ids[k]}, i)[ids[i]] / 6
    return out


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_three_tokens_are_distributed_as_computed_by_hand(eta: float) -> None:
    sampler = Sampler(
        schedule=schedule.Equal(steps=3), token_sampler=token_sampler.Categorical(), selection=selection.RandomOrder()
    )
    n, wanted = 4000, by_hand(eta)
    batch = collate([answer(3, prompt=0)] * n, range(n))
    found = torch.zeros(2, 2, 2)
    for ids in remdm(sampler, eta=eta).sample(Exact(), batch).ids.tolist():
        found[tuple(ids)] += 1 / n
    assert torch.allclose(wanted.sum(), torch.tensor(1.0)) and torch.allclose(found, wanted, atol=0.025)
    if eta == 0:
        assert torch.allclose(wanted, WORLD, atol=1e-6)  # one token a step is exact
    else:
        assert not torch.allclose(wanted, WORLD, atol=0.025)  # remasking costs something where nothing was wrong


def test_remasking_corrects_a_bad_start() -> None:
    """The first token is one that the world never has; without remasking it stays."""

    class Misled(Exact):
        def __call__(self, batch: Batch, *, predict: Tensor | None = None, reuse: object = None) -> Prediction:
            found = super().__call__(batch, predict=predict)
            start = batch.masked.all(1)[found.scored[Kind.TEXT].at // 3]
            logits = found.logits(Kind.TEXT)
            return found.with_logits({Kind.TEXT: torch.where(start[:, None], torch.tensor([0.0, -50.0]), logits)})

    sampler = Sampler(
        schedule=schedule.Equal(steps=3), token_sampler=token_sampler.Categorical(), selection=selection.RandomOrder()
    )
    batch = collate([answer(3, prompt=0)] * 1000, range(1000))
    error = []
    for eta in (0.0, 1.0):
        ids = remdm(sampler, eta=eta).sample(Misled(), batch).ids
        error.append(
            abs(float(ids.float().mean()) - float((WORLD.sum((1, 2)) + WORLD.sum((0, 2)) + WORLD.sum((0, 1)))[1] / 3))
        )
    assert error[1] < error[0] - 0.05


@pytest.mark.parametrize("value", [-0.1, 1.5, float("nan")])
def test_a_probability_outside_0_to_1_is_refused(value: float) -> None:
    for method in METHODS:
        with pytest.raises(ValueError, match="eta must be in 0..1"):
            method(BASE, eta=value)
    with pytest.raises(ValueError, match="switch must be in 0..1"):
        remdm(BASE, switch=value)


def test_outside_of_a_run_it_says_what_is_missing() -> None:
    batch = collate([answer(4)], [0])
    at = Progress(number=torch.zeros(1), of=torch.ones(1), length=6)
    part = remdm(BASE).selection
    proposal = token_sampler.Greedy()(batch, fake(batch), at)
    with pytest.raises(ValueError, match="inside a run of the sampler"):
        part(batch, proposal, batch.masked, torch.tensor([1]), at)
