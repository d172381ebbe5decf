"""X-Streamer against its arrays, which follow from its rules: who reads whom, exact memories, the window of rising noise."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from unmask.corruption.chunked import PerChunk
from unmask.methods.x_streamer import Actor, ChunkAttention, Pyramid, visible
from unmask.models.streams import attend, stream
from unmask.rng import generator
from unmask.sequence import Batch, Kind, Sequence, Span, collate

Golden = Callable[[str], dict[str, Tensor]]
torch.set_num_threads(1)


@pytest.fixture(scope="module")
def arrays(golden: Golden) -> dict[str, Tensor]:
    return golden("x_streamer")


def actor(arrays: dict[str, Tensor]) -> Actor:
    """Two layers with the same weights."""
    layer = ChunkAttention(len(arrays["attn.Q"]))
    for part, name in ((layer.query, "Q"), (layer.key, "K"), (layer.value, "V")):
        part.weight.data = arrays[f"attn.{name}"].T.contiguous()
    return Actor([layer, layer]).requires_grad_(False)


def test_who_reads_whom(arrays: dict[str, Tensor]) -> None:
    chunk, wanted = arrays["mask.chunk"], arrays["mask.visible"].bool()
    assert torch.equal(visible(chunk), wanted)
    row = Sequence(
        ids=torch.zeros(len(chunk), dtype=torch.long),
        masked=torch.zeros(len(chunk), dtype=torch.bool),
        spans=(Span(name="answer", kind=Kind.TEXT, start=0, stop=len(chunk), writable=True),),
    )
    batch = collate([row], [0]).replace(order=chunk[None])
    whole = stream(torch.ones(1, len(chunk), dtype=torch.bool), None)
    assert whole is not None
    found = attend(batch, [whole], grouped=True)
    assert found is not None and torch.equal(found[0, 0], wanted), "the models' own rule is another one"


def test_a_memory_of_finished_chunks_is_exact(arrays: dict[str, Tensor]) -> None:
    net, x, chunk = actor(arrays), arrays["attn.x"], arrays["mask.chunk"]
    assert torch.allclose(net(x, chunk), arrays["attn.out"], atol=1e-5)
    memory, found = (), []
    for number in chunk.unique().tolist():
        out, memory = net.step(x[chunk == number], memory)
        found.append(out)
    assert torch.allclose(torch.cat(found), arrays["attn.out"], atol=1e-5)


@pytest.mark.parametrize("length", [1, 3, 4])
def test_no_chunk_reads_a_later_one(length: int) -> None:
    net = Actor([ChunkAttention(6), ChunkAttention(6)]).requires_grad_(False)
    x, chunk = torch.randn(12, 6, generator=generator(length)), torch.arange(12) // length
    other = x.clone()
    other[-1] += 1
    before = chunk < chunk[-1]
    assert torch.equal(net(x, chunk)[before], net(other, chunk)[before])
    changed = (net(x, chunk) != net(other, chunk)).any(1)
    assert bool(changed[~before].all()), "a chunk reads itself whole"


def test_the_window_of_rising_noise(arrays: dict[str, Tensor]) -> None:
    log, window = arrays["pyramid.log"], int(arrays["pyramid.window"])
    ticks = list(itertools.islice(Pyramid(window=window).ticks(), len(log)))
    for tick, wanted in zip(ticks, log.tolist(), strict=True):
        found = [[one.chunk, one.before, one.after] for one in tick]
        assert found + [[-1, -1, -1]] * (log.shape[1] - len(found)) == wanted


@pytest.mark.parametrize("window", [1, 2, 5])
def test_every_chunk_passes_all_levels_and_the_stream_ends(window: int) -> None:
    ticks = list(Pyramid(window=window).ticks(3))
    assert len(ticks) == 3 + window - 1
    for chunk in range(3):
        own = [(number, one) for number, tick in enumerate(ticks) for one in tick if one.chunk == chunk]
        assert [one.before for _, one in own] == list(range(window, 0, -1)) and own[-1][1].after == 0
        assert own[-1][0] == chunk + window - 1
    with pytest.raises(ValueError, match="at least one chunk, got 0"):
        Pyramid(window=0)


def chunks(rows: int = 300) -> Batch:
    spans = (
        Span(name="identity", kind=Kind.TEXT, start=0, stop=2),
        Span(name="answer", kind=Kind.TEXT, start=2, stop=14, writable=True, order=1, order_step=4),
    )
    row = Sequence(ids=torch.arange(14), masked=torch.arange(14) > 1, spans=spans)
    return collate([row] * rows, range(rows))


def test_chunks_have_times_of_their_own() -> None:
    batch, corruption = chunks(), PerChunk()
    time = corruption.times(batch, generator("t"))
    assert not time[:, :2].any() and bool((time[:, 2:6] == time[:, 2:3]).all())
    own = time[:, [2, 6, 10]]
    assert (
        float(own.mean()) == pytest.approx(0.5, abs=0.05)
        and float(own.T.corrcoef().fill_diagonal_(0).abs().max()) < 0.2
    )
    noisy = corruption.corrupt(batch, time, generator("c"))
    assert not noisy.masked[:, :2].any()
    share = noisy.masked[:, 6:10].float().mean(1)
    assert float(torch.stack([share, time[:, 6]]).corrcoef()[0, 1]) > 0.6


def test_a_clean_past_is_teacher_forcing() -> None:
    time = PerChunk(clean=1.0).times(chunks(), generator("t"))
    assert not time[:, :10].any() and bool((time[:, 10:] > 0).all())
    with pytest.raises(ValueError, match=r"in 0..1, got 1.5"):
        PerChunk(clean=1.5)
