"""A prefix at inference for models that attend everywhere: who is changed, and that the prompt is computed once."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from unmask.models.elastic import Elastic, init
from unmask.models.sizes import SIZES
from unmask.rng import generator
from unmask.sampling.cache import NoCache, PrefixCache
from unmask.sampling.prior import PrefixLM
from unmask.sampling.sampler import Sampler
from unmask.sampling.schedule import Equal
from unmask.sampling.selection import Confident
from unmask.sampling.token_sampler import Greedy
from unmask.sequence import Batch, Kind, Sequence, Span, collate
from unmask.step import Prediction, Reuse

torch.set_num_threads(1)
SAMPLER = Sampler(schedule=Equal(steps=4), token_sampler=Greedy(), selection=Confident())


def row(before: int, answer: int, after: int = 0, **more: int) -> Sequence:
    spans = [Span(name="prompt", kind=Kind.TEXT, start=0, stop=before)] if before else []
    spans.append(Span(name="answer", kind=Kind.TEXT, start=before, stop=before + answer, writable=True, **more))
    length = before + answer + after
    spans += [Span(name="given", kind=Kind.TEXT, start=before + answer, stop=length)] if after else []
    at = torch.arange(length)
    return Sequence(ids=at % 20 + 4, masked=(at >= before) & (at < before + answer), spans=tuple(spans))


def network(**changes: object) -> Elastic:
    config = dataclasses.replace(SIZES["tiny"], gen_width=0, gen_mlp=0, codes=0, code_rows=0, vision=None, **changes)
    net = Elastic(config, mask_id=3)
    init(net, generator("prefix"))
    return net.eval()


class Counting:
    """The network, and how many tokens each forward computes."""

    def __init__(self, net: Elastic) -> None:
        self.net, self.computed = net, list[int]()

    def __call__(self, batch: Batch, *, predict: Tensor | None = None, reuse: Reuse | None = None) -> Prediction:
        self.computed.append(int((batch.valid if reuse is None else reuse.compute).sum()))
        return self.net(batch, predict=predict, reuse=reuse)


def test_from_the_first_writable_token_on_the_order_is_one() -> None:
    batch = collate([row(5, 4, 3), row(2, 6)], [0, 1])
    changed = PrefixLM()(batch)
    assert changed.order.tolist() == [[0] * 5 + [1] * 7, [0] * 2 + [1] * 6 + [0] * 4]
    assert [[span.order for span in table] for table in changed.span_table] == [[0, 1, 1], [0, 1]]
    assert batch.order.sum() == 0, "the batch itself is not changed"


@pytest.mark.parametrize("more", [{"order": 1}, {"segment": 1}, {"order_step": 2}])
def test_a_row_that_has_a_prefix_stays(more: dict[str, int]) -> None:
    batch = collate([row(5, 4, **more)], [0])
    assert PrefixLM()(batch) is batch
    beside = PrefixLM()(collate([row(5, 4, **more), row(5, 4)], [0, 1]))
    assert torch.equal(beside.order[0], batch.order[0]) and beside.order[1].tolist() == [0] * 5 + [1] * 4


def test_a_row_without_a_prompt_stays() -> None:
    batch = collate([row(0, 4)], [0])
    assert PrefixLM()(batch) is batch


@pytest.mark.parametrize("shifted", [False, True])
def test_the_prompt_is_computed_once_with_the_same_result(shifted: bool) -> None:
    """The cache is exact for the prefix, which is another function than attention in both directions."""
    net, batch = network(shifted=shifted), collate([row(12, 8)], [0])
    full, plain, cached = Counting(net), Counting(net), Counting(net)
    both = SAMPLER.sample(full, batch)
    prefix = dataclasses.replace(SAMPLER, prior=PrefixLM())
    apart = dataclasses.replace(prefix, cache=NoCache()).sample(plain, batch)
    kept = dataclasses.replace(prefix, cache=PrefixCache()).sample(cached, batch)
    assert torch.equal(apart.ids, kept.ids) and not torch.equal(both.ids, kept.ids)
    assert plain.computed == [20] * 4 and cached.computed == [20, 8, 8, 8]
