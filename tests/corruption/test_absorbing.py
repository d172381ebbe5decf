"""The absorbing process: which tokens are masked, how often, and which never are."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from unmask.corruption.absorbing import Absorbing
from unmask.corruption.schedules import Cosine, OftenAll, Policy, Uniform
from unmask.rng import generator
from unmask.sequence import Batch, Kind, Sequence, Span, collate

torch.set_num_threads(1)


def row(*spans: tuple[Kind, int, bool, int], seed: int = 0) -> Sequence:
    """(kind, tokens, writable, segment) of each span."""
    table, start = [], 0
    for kind, tokens, writable, segment in spans:
        grid = {"grid": (1, tokens)} if kind == Kind.CODE else {}
        table.append(
            Span(name="s", kind=kind, start=start, stop=start + tokens, writable=writable, segment=segment, **grid)
        )  # type: ignore[arg-type]
        start += tokens
    ids = torch.randint(0, 50, (start,), generator=generator("ids", seed))
    return Sequence(ids=ids, masked=torch.zeros(start, dtype=torch.bool), spans=tuple(table))


def mixed(rows: int, text: int = 40, code: int = 40) -> Batch:
    """Rows of given text, writable text, given codes, writable codes, given text; every second is shorter."""
    T, C = Kind.TEXT, Kind.CODE
    whole = [(T, 3, False, 0), (T, text, True, 0), (C, code, False, 0), (C, code, True, 0), (T, 2, False, 0)]
    some = [row(*(whole if i % 2 == 0 else whole[:4]), seed=i) for i in range(rows)]
    return collate(some, range(rows))


def drawn(process: Absorbing, batch: Batch, *key: object) -> Batch:
    rng = generator(*key)
    return process.corrupt(batch, process.times(batch, rng), rng)


@pytest.mark.parametrize("time", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_rate_is_the_time(time: float) -> None:
    batch = mixed(100, 200, 200)
    noisy = Absorbing().corrupt(batch, torch.full((100,), time), generator("rate", time))
    for kind in (Kind.TEXT, Kind.CODE):
        open_ = batch.writable & (batch.kind == kind)
        rate = float(noisy.masked[open_].float().mean())
        probability = 0.999 * time + 1e-3
        # A token a group is masked anyway; five standard deviations of 20,000 draws.
        assert abs(rate - max(probability, 1 / 200)) < 5 * math.sqrt(0.25 / 20_000) + 1 / 200 * (time == 0)
    assert noisy.masked[batch.writable].all() == (time == 1.0)


@pytest.mark.parametrize(
    ("text", "code"), [(Uniform(), Cosine()), (Cosine(), Uniform()), (OftenAll(policy=Cosine(), all=0.4), Uniform())]
)
def test_measured_rates_follow_the_policies(text: Policy, code: Policy) -> None:
    batch, process = mixed(60), Absorbing(policies={Kind.TEXT: text, Kind.CODE: code})
    u = (torch.arange(4000) + 0.5) / 4000
    for kind, policy in ((Kind.TEXT, text), (Kind.CODE, code)):
        open_ = batch.writable & (batch.kind == kind)
        shares = []
        for i in range(40):
            noisy = drawn(process, batch, "policy", i)
            shares.append((noisy.masked & open_).sum(1) / open_.sum(1))
        share = torch.cat(shares)
        expected = policy(u)
        assert float(share.mean()) == pytest.approx(float(expected.mean()), abs=0.02)
        for level in (0.25, 0.5, 0.75):  # and their whole distribution, blurred a little by 40 tokens a span
            assert float((share <= level).float().mean()) == pytest.approx(
                float((expected <= level).float().mean()), abs=0.05
            )


def test_text_and_codes_have_times_of_their_own() -> None:
    batch = mixed(200, 4, 4)
    times = Absorbing(policies={Kind.TEXT: Uniform(), Kind.CODE: Uniform()}).times(batch, generator("times"))
    text = times[:, 3]
    code = times[:, 7 + 4]
    assert batch.kind[0, 3] == Kind.TEXT and batch.kind[0, 11] == Kind.CODE
    correlation = float(torch.corrcoef(torch.stack([text, code]))[0, 1])
    assert abs(correlation) < 0.25  # 3.5 standard deviations
    for b in range(200):
        assert times[b, 3:7].unique().numel() == 1 and times[b, 11:15].unique().numel() == 1


def test_segments_have_times_of_their_own() -> None:
    T = Kind.TEXT
    rows = [row((T, 2, False, 0), *((T, 3, True, s) for s in (1, 2, 3)), seed=i) for i in range(150)]
    batch = collate(rows, range(150))
    times = Absorbing(policies={Kind.TEXT: Uniform()}).times(batch, generator("segments"))
    each = torch.stack([times[:, 2], times[:, 5], times[:, 8]])
    assert len(each.unique()) > 440
    correlation = torch.corrcoef(each)
    assert float((correlation - torch.eye(3)).abs().max()) < 0.3


def test_times_of_a_batch_are_spread_evenly() -> None:
    """One stratum per group of a kind: a batch of many rows never draws, for example, only low times."""
    batch = mixed(64, 1, 1)
    for i in range(5):
        times = Absorbing(policies={Kind.TEXT: Uniform(), Kind.CODE: Uniform()}).times(batch, generator("strata", i))
        for token in (3, 5):
            strata = (times[:, token] * 64).long()
            assert sorted(strata.tolist()) == list(range(64))
            assert strata.tolist() != list(range(64))


def test_one_token_at_least_in_every_group() -> None:
    T, C = Kind.TEXT, Kind.CODE
    rows = [row((T, 2, False, 0), (T, 3, True, 1), (T, 5, True, 2), (C, 4, True, 0), seed=i) for i in range(50)]
    batch = collate(rows, range(50))
    counts: dict[int, int] = {}
    for i in range(40):
        noisy = Absorbing().corrupt(batch, torch.zeros(50), generator("least", i))
        masked = noisy.masked
        for a, b in ((2, 5), (5, 10), (10, 14)):
            assert (masked[:, a:b].sum(1) >= 1).all()
            assert float(masked[:, a:b].sum(1).float().mean()) < 1.05  # time 0: one, and rarely more
        for t in masked[:, 2:5].float().argmax(1).tolist():
            counts[t] = counts.get(t, 0) + 1
    # Whichever it is, it is drawn fairly: 2,000 draws over three tokens, six standard deviations.
    assert all(abs(n - 2000 / 3) < 130 for n in counts.values()) and len(counts) == 3


def test_the_luckiest_is_told_apart_from_the_drawn() -> None:
    """A token that is masked only so that there is one has an infinite probability, hence no weight in the likelihood bound."""
    batch = collate([row((Kind.TEXT, 6, True, 0)) for _ in range(400)], range(400))
    noisy = Absorbing().corrupt(batch, torch.full((400,), 0.2), generator("forced"))
    assert noisy.weight is not None
    forced = noisy.weight.isinf()
    assert (forced & ~noisy.masked).sum() == 0
    assert (noisy.masked.sum(1)[forced.any(1)] == 1).all()
    assert float(forced.any(1).float().mean()) == pytest.approx(0.8008**6, abs=0.08)
    assert torch.allclose(noisy.weight[~forced], torch.tensor(0.999 * 0.2 + 1e-3))


def test_given_tokens_and_padding_are_never_masked_and_nothing_is_changed_in_place() -> None:
    batch = mixed(8, 5, 5)
    before = {
        f.name: v.clone() for f in dataclasses.fields(batch) if isinstance(v := getattr(batch, f.name), torch.Tensor)
    }
    for i in range(20):
        noisy = drawn(Absorbing(policies={Kind.TEXT: OftenAll(policy=Uniform(), all=0.9)}), batch, "given", i)
        assert not (noisy.masked & ~batch.writable).any()
        assert not (noisy.masked & ~batch.valid).any()
        assert noisy.ids.equal(batch.ids)
        assert noisy.clean is not None and noisy.clean.equal(batch.ids)
    for name, value in before.items():
        assert getattr(batch, name).equal(value), name


def test_nothing_writable_is_nothing_masked() -> None:
    batch = collate([row((Kind.TEXT, 4, False, 0))], [0])
    assert not drawn(Absorbing(), batch, "none").masked.any()


def test_the_same_numbers_give_the_same_mask() -> None:
    batch = mixed(6)
    a, b, c = (drawn(Absorbing(), batch, "again", i) for i in (1, 1, 2))
    assert a.masked.equal(b.masked) and not a.masked.equal(c.masked)
