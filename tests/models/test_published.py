"""``bench/published.py``: the logits of our network, with the published amount of work."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from unmask.sequence import Batch, Kind

from ..objectives.test_joining import MASK, batch_of, batches, image, made, sequence, text

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))
from published import Published  # noqa: E402

sys.path.pop(0)


def views() -> dict[str, Batch]:
    """Half of the writable tokens masked, and batches with a condition dropped."""
    found = {}
    for name, batch in batches().items():
        half = batch.writable & batch.valid & (torch.arange(batch.ids.shape[1]) % 2 == 0)
        found[name] = batch.replace(masked=half)
    found["without_source"] = found["edit"].drop({"source"}, MASK)
    found["without_prompt"] = found["draw"].drop({"prompt"}, MASK)
    after = batch_of(
        [sequence(("after", i), text("prompt", 6), text("answer", 5 + i, order=1, writable=True)) for i in range(2)]
    )
    found["answer"] = after.replace(masked=after.writable & after.valid)
    return found


@pytest.mark.parametrize("name", list(views()))
@pytest.mark.parametrize("cache", [False, True])
@torch.no_grad()
def test_logits_are_ours(name: str, cache: bool) -> None:
    net, batch = made(), views()[name]
    if batch.pixels is not None:
        net.features(batch.pixels)
    wanted, twin = net(batch), Published(net, cache=cache)
    for _ in range(2):  # the second time with a prompt that is known
        got = twin(batch)
        for kind, scored in wanted.scored.items():
            assert torch.equal(got.scored[kind].at, scored.at)
            assert torch.allclose(got.logits(kind), wanted.logits(kind), atol=2e-4, rtol=1e-4)
    context = bool(((batch.segment == 0) & (batch.order == 0) & batch.valid & batch.writable).any())
    assert (twin.prompt is not None) == (cache and not context)


def flops(model: object, batch: Batch) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(batch)  # type: ignore[operator]
    return counter.get_total_flops()


def test_it_does_more_work() -> None:
    """Heads over all positions, both branches to the end; a known prompt is not computed again."""
    net, given = made(), views()
    few = given["draw"].replace(masked=given["draw"].masked & (torch.arange(given["draw"].ids.shape[1]) == 8))
    assert flops(Published(net), few) > 1.5 * flops(net, few)
    twin = Published(net)
    first, second = flops(twin, given["answer"]), flops(twin, given["answer"])
    assert second < 0.8 * first  # the head of the answer is the rest
    changed = given["answer"].replace(ids=given["answer"].ids + given["answer"].valid)
    assert flops(twin, changed) == first


def test_codes_and_words_in_one_picture() -> None:
    batch = batch_of([sequence("x", text("prompt", 2), image(4), text("more", 2, writable=True))])
    batch = batch.replace(masked=batch.writable)
    net = made()
    with torch.no_grad():
        wanted, got = net(batch), Published(net)(batch)
    for kind in (Kind.TEXT, Kind.CODE):
        assert torch.allclose(got.logits(kind), wanted.logits(kind), atol=2e-4, rtol=1e-4)
