"""The masked objective against brute force, at its ends, and its dropouts."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from unmask.corruption.absorbing import Absorbing
from unmask.corruption.schedules import Uniform
from unmask.models.elastic import Elastic, init
from unmask.models.sizes import SIZES
from unmask.objectives.masked import Dropout, InverseTime, Masked, Plain, Together
from unmask.rng import generator
from unmask.sequence import Batch, Kind, Sequence, Span, collate
from unmask.step import Prediction, Scored

torch.set_num_threads(1)
WORDS, CODES, NULL = 3, 5, 2


def row(*spans: tuple[str, int, list[int], bool]) -> Sequence:
    """(name, kind, ids, writable) of each span."""
    table, ids = [], []
    for name, kind, values, writable in spans:
        grid = {"grid": (1, len(values))} if kind == Kind.CODE else {}
        table.append(Span(name=name, kind=kind, start=len(ids), stop=len(ids) + len(values), writable=writable, **grid))  # type: ignore[arg-type]
        ids += values
    return Sequence(ids=torch.tensor(ids), masked=torch.zeros(len(ids), dtype=torch.bool), spans=tuple(table))


def both(*seeds: int) -> Batch:
    """Given text, writable text, writable codes; random ids."""
    rows = []
    for seed in seeds:
        rng = generator("both", seed)
        text, code = (torch.randint(0, n, (k,), generator=rng).tolist() for n, k in ((WORDS, 4), (CODES, 5)))
        rows.append(
            row(
                ("prompt", Kind.TEXT, text[:1], False),
                ("answer", Kind.TEXT, text[1:], True),
                ("image", Kind.CODE, code, True),
            )
        )
    return collate(rows, seeds)


class Table(nn.Module):
    """A denoiser whose logits are a fixed function of the visible tokens."""

    mask_id = NULL

    def __init__(self, logits: object) -> None:
        super().__init__()
        self.logits, self.unused = logits, nn.Parameter(torch.zeros(1))

    def forward(self, batch: Batch, *, predict: Tensor | None = None) -> Prediction:
        predict = batch.masked if predict is None else predict
        flat, scored = torch.arange(predict.numel()).view_as(predict), {}
        for kind, size in ((Kind.TEXT, WORDS), (Kind.CODE, CODES)):
            chosen = predict & (batch.kind == kind)
            scored[kind] = Scored(at=flat[chosen], logits=self._of(batch, chosen, size))
        return Prediction(scored=scored)

    def _of(self, batch: Batch, wanted: Tensor, size: int) -> Tensor:
        rows = [self.logits(batch, int(b), int(t), size) for b, t in wanted.nonzero()]  # type: ignore[operator]
        return torch.stack(rows) if rows else torch.zeros(0, size)


def perfect(batch: Batch, b: int, t: int, size: int) -> Tensor:
    assert batch.clean is not None
    return nn.functional.one_hot(batch.clean[b, t], size).float() * 60


def arbitrary(batch: Batch, b: int, t: int, size: int) -> Tensor:
    """Logits that differ for every visible context and ignore masked tokens."""
    seen = batch.ids[b].masked_fill(batch.masked[b], -1)[batch.valid[b]].tolist()
    return 2 * torch.randn(size, generator=generator("arbitrary", seen, t))


EVERY = [
    Masked(),
    Masked(weight=InverseTime(), corruption=Absorbing(policies={Kind.TEXT: Uniform(), Kind.CODE: Uniform()})),
    Masked(complementary=True),
    Masked(complementary=True, weight=InverseTime()),
    Masked(dropouts=(Dropout(spans=frozenset({"prompt"}), rate=0.5),)),
]
every_objective = pytest.mark.parametrize("objective", EVERY, ids=lambda o: repr(o)[:90])


@every_objective
def test_finite_everywhere(objective: Masked) -> None:
    """Also for a model that is certain and wrong, at times 0 and 1, and for rows without tokens of a kind."""

    def wrong(batch: Batch, b: int, t: int, size: int) -> Tensor:
        return -1e4 * perfect(batch, b, t, size)

    text = collate([row(("a", Kind.TEXT, [0, 1, 2], True))], [0])
    code = collate([row(("p", Kind.TEXT, [0], False), ("i", Kind.CODE, [0, 4, 3], True))], [0])
    for batch in (both(1, 2, 3), both(1), text, code):
        for i in range(10):
            loss = objective(Table(wrong), batch, generator("finite", i))
            assert bool(loss.total.isfinite()) and float(loss.total.detach()) >= 0
        for time in (0.0, 1.0):
            noisy = objective.corruption.corrupt(batch, torch.full((batch.rows,), time), generator("end", time))
            assert bool(objective.of(Table(wrong), noisy).total.isfinite())


def test_nothing_to_learn_is_zero_and_has_a_gradient() -> None:
    batch = collate([row(("p", Kind.TEXT, [0, 1], False))], [0])
    loss = Masked()(Table(perfect), batch, generator(0))
    assert float(loss.total.detach()) == 0 and loss.terms == {} and loss.counts == {}
    loss.total.backward()


# -- brute force ------------------------------------------------------------------------------------------------------


def cross_entropy(batch: Batch, b: int, t: int, size: int) -> float:
    logits = arbitrary(batch, b, t, size).tolist()
    assert batch.clean is not None
    top = max(logits)
    return top + math.log(sum(math.exp(x - top) for x in logits)) - logits[int(batch.clean[b, t])]


def by_hand(noisy: Batch, weigh: str) -> dict[str, float]:
    """Terms by plain Python over every masked token."""
    assert noisy.weight is not None
    out = {}
    for name, kind, size in (("text", Kind.TEXT, WORDS), ("code", Kind.CODE, CODES)):
        tokens = [(int(b), int(t)) for b, t in (noisy.masked & (noisy.kind == kind)).nonzero()]
        each = [cross_entropy(noisy, b, t, size) for b, t in tokens]
        if weigh == "plain":
            out[name] = sum(each) / len(each)
        else:
            probability = [float(noisy.weight[b, t]) for b, t in tokens]
            out[name] = sum(e / c for e, c in zip(each, probability, strict=True)) / int(
                (noisy.writable & (noisy.kind == kind)).sum()
            )
    return out


@pytest.mark.parametrize(("weight", "weigh"), [(Plain(), "plain"), (InverseTime(), "inverse")])
def test_equals_a_sum_by_hand(weight: Plain | InverseTime, weigh: str) -> None:
    batch, objective = both(1, 2, 3), Masked(weight=weight)
    for i in range(20):
        rng = generator("hand", i)
        noisy = objective.corruption.corrupt(batch, objective.corruption.times(batch, rng), rng)
        loss, wanted = objective.of(Table(arbitrary), noisy), by_hand(noisy, weigh)
        assert {k: float(v) for k, v in loss.terms.items()} == pytest.approx(wanted, rel=1e-5)
        assert float(loss.total) == pytest.approx(sum(wanted.values()), rel=1e-5)
        assert loss.counts == {
            name: int((noisy.masked & (noisy.kind == kind)).sum())
            for name, kind in (("text", Kind.TEXT), ("code", Kind.CODE))
        }


def test_a_whole_call_is_corruption_then_the_sum() -> None:
    batch, objective = both(1, 2), Masked()
    rng = generator("call")
    noisy = objective.corruption.corrupt(batch, objective.corruption.times(batch, rng), rng)
    loss = objective(Table(arbitrary), batch, generator("call"))
    assert float(loss.total) == pytest.approx(sum(by_hand(noisy, "plain").values()), rel=1e-5)


def test_complementary_is_one_mean_over_a_mask_and_the_rest() -> None:
    seen: list[Batch] = []

    class Spy(Table):
        def forward(self, batch: Batch, *, predict: Tensor | None = None) -> Prediction:
            seen.append(batch)
            return super().forward(batch, predict=predict)

    batch = both(1, 2, 3)
    for i in range(10):
        seen.clear()
        loss = Masked(complementary=True)(Spy(arbitrary), batch, generator("complement", i))
        first, second = seen
        assert (first.masked ^ second.masked).equal(batch.writable)
        assert first.weight is not None and second.weight is not None
        drawn = first.masked & first.weight.isfinite()
        assert torch.allclose(second.weight[drawn], 1 - first.weight[drawn])
        wanted = {
            name: [
                cross_entropy(v, int(b), int(t), n) for v in seen for b, t in (v.masked & (v.kind == kind)).nonzero()
            ]
            for name, kind, n in (("text", Kind.TEXT, WORDS), ("code", Kind.CODE, CODES))
        }
        assert {k: float(v) for k, v in loss.terms.items()} == pytest.approx(
            {k: sum(v) / len(v) for k, v in wanted.items()}, rel=1e-5
        )
        assert loss.counts == {"text": 3 * 3, "code": 3 * 5}  # every writable token once
        assert float(loss.total) == pytest.approx(sum(float(v) for v in loss.terms.values()), rel=1e-6)


@dataclasses.dataclass(frozen=True)
class Replacing:
    """A corruption that masks the first half of the tokens and replaces the second token of the rest, and scores both."""

    def times(self, batch: Batch, rng: torch.Generator) -> Tensor:
        return torch.full(batch.ids.shape, 0.75)

    def corrupt(self, clean: Batch, time: Tensor, rng: torch.Generator) -> Batch:
        number = torch.arange(clean.ids.shape[1]).expand_as(clean.ids)
        masked, replaced = (number < 4) & clean.writable, (number == 5) & clean.writable
        ids = clean.ids.masked_fill(replaced, 0)
        return clean.replace(ids=ids, clean=clean.ids, masked=masked, target=masked | replaced, time=time, weight=time)


def test_the_complement_has_its_own_time_and_target() -> None:
    """Fault: it kept the time and the scored tokens of the first mask, and showed its replaced ids."""
    seen: list[tuple[Batch, Tensor]] = []

    class Spy(Table):
        def forward(self, batch: Batch, *, predict: Tensor | None = None) -> Prediction:
            seen.append((batch, batch.masked if predict is None else predict))
            return super().forward(batch, predict=predict)

    batch = both(1, 2)
    batch = batch.replace(ids=batch.ids.clamp(min=1))
    Masked(corruption=Replacing(), complementary=True)(Spy(arbitrary), batch, generator("complement"))
    (first, scored), (second, rest) = seen
    assert first.time is not None and second.time is not None
    assert torch.equal(second.time, torch.full_like(second.time, 0.25))
    assert torch.equal(scored ^ rest, batch.writable) and torch.equal(rest, second.masked)
    assert not torch.equal(first.ids, batch.ids) and torch.equal(second.ids, batch.ids)


@dataclasses.dataclass(frozen=True)
class These:
    """A corruption that masks the given tokens of one kind, each with a probability of a half."""

    masked: list[list[bool]]

    def times(self, batch: Batch, rng: torch.Generator) -> Tensor:
        return torch.full(batch.ids.shape, 0.5)

    def corrupt(self, clean: Batch, time: Tensor, rng: torch.Generator) -> Batch:
        return clean.replace(masked=torch.tensor(self.masked), weight=time)


@pytest.mark.parametrize(
    ("masked", "wanted"),
    [
        ([[True, True]], math.log(3)),  # nothing is left for the complement
        ([[True, True], [True, False]], math.log(3) / 2),  # nor in the first row: two tokens of ln 3, two of 0
        ([[True, False], [True, False]], math.log(3) / 2),
    ],
)
def test_a_row_without_a_complement_counts_once(masked: list[list[bool]], wanted: float) -> None:
    def first_row_unknown(batch: Batch, b: int, t: int, size: int) -> Tensor:
        return torch.zeros(size) if b == 0 else perfect(batch, b, t, size)

    batch = collate([row(("answer", Kind.TEXT, [0, 1], True)) for _ in masked], range(len(masked)))
    objective = Masked(complementary=True, corruption=These(masked))  # type: ignore[arg-type]
    loss = objective(Table(first_row_unknown), batch, generator(0))
    assert float(loss.total) == pytest.approx(wanted, rel=1e-6) and loss.counts == {"text": 2 * len(masked)}


def test_inverse_time_is_the_likelihood_in_a_world_of_three_tokens() -> None:
    """With exact conditionals the bound is tight: its mean over times and masks is -ln p(x) a token (LLaDA, appendix A).

    The world: three tokens over three words with an arbitrary joint distribution, all 27 sequences of it known.
    """
    p = torch.rand(3, 3, 3, generator=generator("world"), dtype=torch.float64) ** 3
    p /= p.sum()
    truth = (0, 2, 1)

    def exact(batch: Batch, b: int, t: int, size: int) -> Tensor:
        fixed = [None if batch.masked[b, i] else int(batch.ids[b, i]) for i in range(3)]
        weights = torch.zeros(3, dtype=torch.float64)
        for x in itertools.product(range(3), repeat=3):
            if all(f is None or f == v for f, v in zip(fixed, x, strict=True)):
                weights[x[t]] += p[x]
        return weights.log().float()

    objective = Masked(weight=InverseTime(), corruption=Absorbing(policies={Kind.TEXT: Uniform()}))
    # By enumeration: every mask, its probability integrated over the time; what the objective draws must weigh each like that.
    model, total = Table(exact), 0.0
    one = collate([row(("x", Kind.TEXT, list(truth), True))], [0])
    for mask in itertools.product([False, True], repeat=3):
        if any(mask):
            masked = torch.tensor([mask])
            weighted = one.replace(masked=masked, weight=torch.ones(1, 3))
            n = sum(mask)
            share = (
                math.factorial(n - 1) * math.factorial(3 - n) / math.factorial(3)
            )  # of t^(n-1) (1-t)^(3-n) over 0..1
            total += share * float(objective.of(model, weighted).total)
    assert total == pytest.approx(-math.log(float(p[truth])) / 3, rel=1e-4)

    # And as drawn. The world is small, so the exact conditionals of all masks can be looked up.
    known = {}

    def remembered(batch: Batch, b: int, t: int, size: int) -> Tensor:
        key = (tuple(batch.masked[b].tolist()), t)
        if key not in known:
            known[key] = exact(batch, b, t, size)
        return known[key]

    rows = 512
    many = collate([row(("x", Kind.TEXT, list(truth), True))] * rows, range(rows))
    drawn = [float(objective(Table(remembered), many, generator("drawn", i)).total) for i in range(12)]
    assert sum(drawn) / len(drawn) == pytest.approx(total, rel=0.05)


def test_plain_weighs_every_masked_token_alike() -> None:
    batch = both(1, 2)
    noisy = Absorbing().corrupt(batch, torch.tensor([0.1, 0.9]), generator("plain"))
    assert noisy.weight is not None
    other = noisy.replace(weight=noisy.weight * 0.5)
    table = Table(arbitrary)
    assert float(Masked().of(table, noisy).total) == float(Masked().of(table, other).total)
    half, whole = (float(Masked(weight=InverseTime()).of(table, x).total) for x in (noisy, other))
    assert whole == pytest.approx(2 * half, rel=1e-5)


# -- dropout ----------------------------------------------------------------------------------------------------------


def edits(rows: int) -> Batch:
    one = [
        ("prompt", Kind.TEXT, [0, 1], False),
        ("look", Kind.FEATURE, [0, 0], False),
        ("source", Kind.CODE, [1, 2, 3, 4], False),
        ("prompt", Kind.TEXT, [1], False),
        ("assistant", Kind.TEXT, [1, 1], False),
        ("image", Kind.CODE, [4, 3, 2, 1], True),
    ]
    return collate([row(*one)] * rows, range(rows))


def test_together_is_the_weighted_sum() -> None:
    a, b = both(1, 2), both(3)
    table, rng = Table(arbitrary), generator("together")
    loss = Together(objectives=(("one", Masked(), 1.0), ("two", Masked(), 0.25), ("absent", Masked(), 9.0)))(
        table, {"two": b, "one": a}, rng
    )
    rng = generator("together")
    one, two = Masked()(table, a, rng), Masked()(table, b, rng)
    assert float(loss.total) == pytest.approx(float(one.total) + 0.25 * float(two.total), rel=1e-6)
    assert set(loss.terms) == {"one.text", "one.code", "two.text", "two.code"}
    assert loss.counts == {f"{n}.{k}": v for n, x in (("one", one), ("two", two)) for k, v in x.counts.items()}
    with pytest.raises(ValueError, match="no batch for any of \\['one'\\]"):
        Together(objectives=(("one", Masked(), 1.0),))(table, {"two": b}, rng)


def test_a_real_model_learns_by_it() -> None:
    """The default objective brings a tiny network to memorise three drawings."""
    torch.manual_seed(0)
    config = dataclasses.replace(SIZES["tiny"], vision=None)
    model = Elastic(config, mask_id=NULL)
    init(model, generator("learn"))
    rows = []
    for i in range(3):
        ids = torch.randint(0, 64, (16,), generator=generator("codes", i))
        table = (
            Span(name="prompt", kind=Kind.TEXT, start=0, stop=2),
            Span(name="image", kind=Kind.CODE, start=2, stop=18, grid=(4, 4), fold=2, writable=True),
        )
        rows.append(
            Sequence(
                ids=torch.cat([torch.tensor([8, 9 + i]), ids]), masked=torch.zeros(18, dtype=torch.bool), spans=table
            )
        )
    batch = collate(rows * 4, range(12))
    adam = torch.optim.Adam(model.parameters(), lr=0.02)
    losses = []
    for step in range(40):
        loss = Masked()(model, batch, generator("step", step))
        adam.zero_grad()
        loss.total.backward()
        adam.step()
        losses.append(float(loss.total.detach()))
    assert losses[0] > 3.5 and sum(losses[-5:]) / 5 < 1
