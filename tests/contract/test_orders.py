"""Who reads whom, by perturbation: change one token and see which hidden states of the network move."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch

from unmask.sequence import Batch, Kind, Span, collate

from .instances import row, tiny

MODEL = tiny()


def batch_of(*table: Span) -> Batch:
    """One row, nothing masked, so that every token shows its id."""
    one = row(table, seed=4)
    return collate([dataclasses.replace(one, masked=torch.zeros_like(one.masked))], [0])


def readers(batch: Batch, token: int) -> set[int]:
    """The tokens whose logits move when one token has another id."""
    ids = batch.ids.clone()
    ids[0, token] += 20
    with torch.no_grad():
        a, b = (MODEL(one, predict=batch.valid) for one in (batch, batch.replace(ids=ids)))
    return {
        int(at)
        for kind, scored in a.scored.items()
        for at, x, y in zip(scored.at, a.logits(kind), b.logits(kind), strict=True)
        if not torch.equal(x, y)
    }


def text(start: int, stop: int, name: str = "answer", **more: Any) -> Span:
    return Span(name=name, kind=Kind.TEXT, start=start, stop=stop, writable=name == "answer", **more)


LENGTH = 12
Rule = Callable[[int, int], bool]  # (query, key): whether the query reads the key
LAYOUTS: dict[str, tuple[tuple[Span, ...], Rule]] = {
    "two-way": ((text(0, 12),), lambda q, k: True),
    "causal": ((text(0, 12, order_step=1),), lambda q, k: k <= q),
    "block-causal": ((text(0, 12, order_step=4),), lambda q, k: k // 4 <= q // 4),
    "block-causal after a prompt": (
        (text(0, 4, "prompt"), text(4, 12, order=1, order_step=4)),
        lambda q, k: k // 4 <= q // 4,
    ),
    "prefix-LM": ((text(0, 5, "prompt"), text(5, 12, order=1)), lambda q, k: k < 5 or q >= 5),
    "a causal prompt": ((text(0, 5, "prompt", order_step=1), text(5, 12, order=5)), lambda q, k: k <= q or q >= 5),
    "segments": (
        (text(0, 4, "prompt"), text(4, 8, segment=1), text(8, 12, segment=2)),
        lambda q, k: k < 4 or q // 4 == k // 4,
    ),
    "segments in order": (
        (text(0, 4, "prompt"), text(4, 8, segment=1, order=1), text(8, 12, segment=2, order=2)),
        lambda q, k: k < 4 or q // 4 == k // 4,
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_changing_a_token_moves_those_that_read_it(layout: str) -> None:
    table, reads = LAYOUTS[layout]
    batch = batch_of(*table)
    for key in range(LENGTH):
        assert readers(batch, key) == {query for query in range(LENGTH) if reads(query, key)}, f"token {key}"


def two_copies(blocks: int, size: int) -> tuple[Span, ...]:
    """Training of a block-causal model: clean block b has order 2b, noisy block b order 2b - 1 in its own segment."""
    clean = [text(size * b, size * (b + 1), "clean", order=2 * (b + 1)) for b in range(blocks)]
    clean = [dataclasses.replace(span, name=f"clean{b}") for b, span in enumerate(clean)]
    first = size * blocks
    noisy = [
        text(first + size * b, first + size * (b + 1), order=2 * (b + 1) - 1, segment=b + 1, positions_of=f"clean{b}")
        for b in range(blocks)
    ]
    return (*clean, *noisy)


def test_two_copies_train_all_blocks_at_once() -> None:
    """A noisy block reads itself and the clean blocks before it; clean blocks read clean ones up to their own."""
    blocks, size = 3, 4
    batch = batch_of(*two_copies(blocks, size))
    half = blocks * size

    def reads(q: int, k: int) -> bool:
        q_block, k_block = q % half // size, k % half // size
        if q < half:
            return k < half and k_block <= q_block
        return k_block < q_block if k < half else k_block == q_block

    for key in range(2 * half):
        assert readers(batch, key) == {query for query in range(2 * half) if reads(query, key)}, f"token {key}"


def test_the_noisy_copy_equals_sampling_block_by_block() -> None:
    """With shared positions, a noisy block's logits are those of a row that holds the clean blocks before it and this one."""
    size, batch = 4, batch_of(*two_copies(3, 4))
    masked = torch.zeros_like(batch.masked)
    masked[0, 12:] = torch.arange(12) % 3 != 0
    whole = batch.replace(masked=masked, ids=torch.cat([batch.ids[:, :12], batch.ids[:, :12]], 1))
    with torch.no_grad():
        noisy = MODEL(whole, predict=masked)
        for block in range(3):
            stop = size * (block + 1)
            one = collate([row([text(0, stop, order_step=size)])], [0])
            own = torch.zeros_like(one.masked)
            own[0, stop - size :] = masked[0, 12 + stop - size : 12 + stop]
            alone = MODEL(one.replace(ids=batch.ids[:, :stop], masked=own), predict=own).logits(Kind.TEXT)
            at = noisy.scored[Kind.TEXT].at
            some = (at >= 12 + stop - size) & (at < 12 + stop)
            torch.testing.assert_close(noisy.logits(Kind.TEXT)[some], alone, atol=1e-5, rtol=1e-5)


def test_positions_of_another_span() -> None:
    batch = batch_of(text(0, 3, "prompt"), text(3, 7, "clean"), text(7, 11, positions_of="clean"), text(11, 12, "tail"))
    assert batch.position[0].tolist() == [0, 1, 2, 3, 4, 5, 6, 3, 4, 5, 6, 7]
    with pytest.raises(ValueError, match="shares positions of 'later', which is no earlier span"):
        batch_of(text(0, 3, positions_of="later"), text(3, 5, "later"))


def test_position_offset_moves_a_span_and_all_behind_it() -> None:
    batch = batch_of(text(0, 3, "prompt"), text(3, 5, position_offset=10), text(5, 6, "tail"))
    assert batch.position[0].tolist() == [0, 1, 2, 13, 14, 15]
    both = batch_of(text(0, 3, "prompt"), text(3, 5, positions_of="prompt", position_offset=1))
    assert both.position[0].tolist() == [0, 1, 2, 1, 2]


def test_segments_begin_behind_the_context() -> None:
    batch = batch_of(text(0, 3, "prompt"), text(3, 5, segment=1), text(5, 8, segment=2), text(8, 9, segment=1))
    assert batch.position[0].tolist() == [0, 1, 2, 3, 4, 3, 4, 5, 5]


def picture(**more: Any) -> Span:
    return Span(name="image", kind=Kind.CODE, start=4, stop=20, grid=(4, 4), fold=2, writable=True, **more)


def test_codes_are_read_by_position() -> None:
    """Block-causal over two rows of the grid: four codes share a position, so their readers are those of the position."""
    batch = batch_of(text(0, 4, "prompt"), picture(order=1, order_step=8))
    first, second = set(range(4, 12)), set(range(12, 20))
    assert batch.order[0].tolist() == [0] * 4 + [1] * 8 + [2] * 8
    assert readers(batch, 5) == first | second and readers(batch, 13) == second


@pytest.mark.parametrize("step", [1, 2, 4, 6, 12])
def test_an_order_that_splits_a_position_is_refused(step: int) -> None:
    """Fault: with one order a row of the grid, codes of order 1 changed what tokens of order 0 read."""
    with pytest.raises(ValueError, match=f"order_step {step} of span 'image'.* use a multiple of 8 codes"):
        batch_of(text(0, 4, "prompt"), picture(order_step=step))
