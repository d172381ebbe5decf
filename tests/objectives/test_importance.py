"""Weights of masked tokens against sums written out, exact counts of masks, one mean over tasks, and the autoregressive loss."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from unmask.corruption.counted import Counted
from unmask.corruption.schedules import Cosine
from unmask.models.elastic import Elastic, init
from unmask.models.sizes import SIZES
from unmask.objectives.importance import EachRow, InverseMean, Linear, Neighbours
from unmask.objectives.masked import Dropout, Masked, Pooled, Together, complement
from unmask.objectives.next_token import NextToken
from unmask.rng import generator
from unmask.sequence import Batch, Kind, Sequence, Span, collate
from unmask.step import Scored

torch.set_num_threads(1)


def rows(*lengths: int) -> Batch:
    """A given token and an answer of each length, with random ids."""
    made = []
    for number, length in enumerate(lengths):
        spans = (
            Span(name="prompt", kind=Kind.TEXT, start=0, stop=1),
            Span(name="answer", kind=Kind.TEXT, start=1, stop=1 + length, writable=True),
        )
        ids = torch.randint(0, 60, (1 + length,), generator=generator("rows", number))
        made.append(Sequence(ids=ids, masked=torch.zeros(1 + length, dtype=torch.bool), spans=spans))
    return collate(made, range(len(made)))


def network(**changes: object) -> Elastic:
    made = Elastic(dataclasses.replace(SIZES["tiny"], **changes), mask_id=3).eval()
    init(made, generator("importance"))
    return made


def masked(batch: Batch, *places: tuple[int, int], p: tuple[float, ...] = (0.25, 0.5)) -> Batch:
    mask, weight = torch.zeros_like(batch.masked), torch.tensor(p)[: batch.rows, None].expand_as(batch.ids)
    for row, place in places:
        mask[row, place] = True
    return batch.replace(masked=mask, weight=weight.clone())


def each(net: Elastic, noisy: Batch) -> list[float]:
    """The loss of every masked token, in order."""
    log = net(noisy).logits(Kind.TEXT).double().log_softmax(-1)
    ids = noisy.ids[noisy.masked]
    return (-log[torch.arange(len(ids)), ids]).tolist()


PLACES = ((0, 1), (0, 3), (1, 2))


def test_every_row_counts_the_same_whatever_its_length() -> None:
    net, noisy = network(), masked(rows(3, 8), *PLACES)
    a, b, c = each(net, noisy)
    wanted = ((a + b) / 0.25 / 3 + c / 0.5 / 8) / 2
    assert Masked(weight=EachRow()).of(net, noisy).total.item() == pytest.approx(wanted, rel=1e-5)


def test_a_mask_and_its_complement_count_as_twice_as_many_rows() -> None:
    net, noisy = network(), masked(rows(3, 8), *PLACES)
    other = complement(noisy)
    halves = [Masked(weight=EachRow()).of(net, view).total.item() for view in (noisy, other)]
    both = Masked(weight=EachRow()).of(net, noisy, other).total.item()
    assert both == pytest.approx(sum(halves) / 2, rel=1e-5)


def test_weights_by_time_are_means_over_masked_tokens() -> None:
    net, noisy = network(), masked(rows(3, 8), *PLACES)
    a, b, c = each(net, noisy)
    inverse, linear = (Masked(weight=w).of(net, noisy).total.item() for w in (InverseMean(), Linear()))
    assert inverse == pytest.approx(((a + b) / 0.25 + c / 0.5) / 3, rel=1e-5)
    assert linear == pytest.approx(((a + b) * 0.75 + c * 0.5) / 3, rel=1e-5)


def test_unmasked_neighbours_raise_the_weight() -> None:
    """Row 0 has tokens 0 and 2 unmasked, row 1 all but token 2; p = 0.5."""
    net, noisy = network(), masked(rows(3, 4), *PLACES)
    a, b, c = each(net, noisy)
    weights = (0.25 + 0.25, 0.25 + 0.0625, 0.125 + 0.25 + 0.25 + 0.125)
    wanted = sum(w * loss for w, loss in zip(weights, (a, b, c), strict=True)) / 3
    assert Masked(weight=Neighbours(p=0.5)).of(net, noisy).total.item() == pytest.approx(wanted, rel=1e-5)
    with pytest.raises(ValueError, match="above 0 and at most 1"):
        Neighbours(p=0)


def test_padding_is_no_neighbour() -> None:
    whole, alone = (Neighbours(p=0.5).per_token(masked(rows(*some), (0, 1))) for some in ((3, 8), (3,)))
    assert torch.equal(whole[0, :4], alone[0, :4])


def test_weights_belong_to_their_tokens_in_shared_passes() -> None:
    """Rows of several tasks that are computed together, sorted by length, give the losses of tasks computed apart."""
    net, batches = network(), {"long": rows(9, 2), "short": rows(2, 7, 3)}
    tasks = tuple((name, Masked(weight=w), 1.0) for name, w in (("long", EachRow()), ("short", Neighbours(p=0.4))))
    found = [Together(objectives=tasks, joined=j)(net, batches, generator("same")).total.item() for j in (True, False)]
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_one_mean_over_the_tokens_of_all_tasks() -> None:
    net, whole = network(), masked(rows(3, 8), *PLACES)
    pooled = Pooled(objectives=(("a", Masked()), ("b", Masked())))
    views = [whole.row(i) for i in range(2)]
    assert pooled.of(net, *views).total.item() == pytest.approx(sum(each(net, whole)) / 3, rel=1e-5)
    batches, others = {"a": rows(3), "b": rows(8), "replay": rows(5)}, Together(objectives=(("replay", Masked(), 2.0),))
    alone = pooled(net, {n: batches[n] for n in ("a", "b")}, generator("pooled"))
    more = dataclasses.replace(pooled, others=others)(net, batches, generator("pooled"))
    assert set(more.terms) == {"text", "replay.text"}
    assert more.total.item() == pytest.approx(alone.total.item() + 2 * more.terms["replay.text"].item(), rel=1e-5)
    with pytest.raises(ValueError, match="no batch for any of"):
        pooled(net, {"c": rows(2)}, generator("pooled"))


def test_next_tokens_are_predicted_from_those_before_them() -> None:
    """A later token changes no loss of an earlier one, and nothing is masked."""
    net = network(shifted=True, gen_width=0, gen_mlp=0, joint_layers=0, vision=None)
    batch = rows(6)
    loss = NextToken()(net, batch, generator("next"))
    order = torch.arange(7)[None]
    log = net(batch.replace(order=order), predict=batch.valid).logits(Kind.TEXT).double().log_softmax(-1)
    wanted = -log[torch.arange(1, 7), batch.ids[0, 1:]].mean()
    assert loss.total.item() == pytest.approx(wanted.item(), rel=1e-5) and loss.counts == {"text": 6}


def picture(begin: int) -> Batch:
    """Two lines of a picture with an end each, its edges (writable), and an answer of four tokens."""
    spans, at = [], 0
    for name, length, writable in (
        ("begin", begin, True),
        ("image", 6, True),
        ("line", 1, False),
        ("image", 6, True),
        ("line", 1, False),
        ("answer", 4, True),
    ):
        spans.append(Span(name=name, kind=Kind.TEXT, start=at, stop=at + length, writable=writable))
        at += length
    return collate([Sequence(ids=torch.arange(at), masked=torch.zeros(at, dtype=torch.bool), spans=tuple(spans))], [0])


def test_as_many_tokens_of_a_group_are_masked_as_its_ratio_says() -> None:
    """Lines of a picture are one group; a short group is masked whole; the edges are scored and never masked."""
    batch, process = picture(1), Counted(policy=Cosine(), short=5, scored=frozenset({"begin"}))
    seen = set()
    for number in range(60):
        rng = generator("counted", number)
        time = process.times(batch, rng)
        noisy = process.corrupt(batch, time, rng)
        image = noisy.masked[0, [*range(1, 7), *range(8, 14)]]
        assert int(image.sum()) == max(1, int(float(time[0, 1]) * 12)) and noisy.masked[0, 15:].all()
        assert not noisy.masked[0, [0, 7, 14]].any() and noisy.target is not None and noisy.target[0, 0]
        assert torch.equal(noisy.target[0, 1:], noisy.masked[0, 1:])
        assert float(noisy.weight[0, 1]) == pytest.approx(int(image.sum()) / 12)
        seen.add(int(image.sum()))
    assert len(seen) > 6
    half = torch.full((1,), 0.875)
    assert [
        int(Counted(whole=w).corrupt(batch, half, generator(0)).masked.sum()) for w in (torch.floor, torch.round)
    ] == [
        1 + 10 + 3,
        1 + 10 + 4,
    ]


def test_scored_tokens_have_a_loss() -> None:
    net, process = network(), Counted(scored=frozenset({"begin"}))
    loss = Masked(corruption=process)(net, picture(2), generator("edges"))
    masks = process.corrupt(picture(2), torch.full((1,), 0.0), generator("edges")).masked.sum()
    assert loss.counts["text"] > int(masks) >= 1 and isinstance(net(picture(2)).scored.get(Kind.TEXT), Scored)


def test_the_next_token_loss_does_not_score_what_guidance_dropped() -> None:
    batch, net = rows(4, 6), network(shifted=True)
    batch = batch.replace(writable=batch.valid)
    assert int((batch.ids[:, 0] == net.mask_id).sum()) == 0
    dropped = NextToken(dropouts=(Dropout(spans=frozenset({"prompt"}), rate=1.0),))
    plain, fewer = (objective(net, batch, generator("drop")) for objective in (NextToken(), dropped))
    assert (plain.counts["text"], fewer.counts["text"]) == (12, 10)
    never = NextToken(dropouts=(Dropout(spans=frozenset({"prompt"}), rate=0.0),))(net, batch, generator("drop"))
    torch.testing.assert_close(never.total, plain.total)
