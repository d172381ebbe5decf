"""The looped network: passes over a window equal passes over whole rows, and nothing reads ahead."""

from __future__ import annotations

import pytest
import torch

from unmask.models.looped import LoopedConfig, LoopedNet

torch.set_num_threads(1)


def net() -> LoopedNet:
    torch.manual_seed(0)
    return LoopedNet(LoopedConfig(vocab_size=20, width=32)).eval()


@torch.no_grad()
def test_a_window_of_all_positions_equals_whole_rows() -> None:
    made, ids, z = net(), torch.arange(9), torch.randn(9, 32)
    wanted = made.states(ids[None], z[None], 4)[0]
    memory, e = made.empty(), made.embed(ids)
    for _ in range(4):
        z, memory = made.core(z, e, 0, memory)
    torch.testing.assert_close(z, wanted)
    assert [t.shape for t in memory] == [(9, 32), (9, 32)]


@torch.no_grad()
def test_a_later_window_reads_the_memory_and_writes_its_own() -> None:
    made, ids, z = net(), torch.arange(9), torch.randn(9, 32)
    wanted = made.states(ids[None], z[None], 1)[0]
    _, memory = made.core(z[:6], made.embed(ids[:6]), 0, made.empty())
    again, after = made.core(z[6:], made.embed(ids[6:]), 6, memory)
    torch.testing.assert_close(again, wanted[6:])
    rewritten, once_more = made.core(z[6:], made.embed(ids[6:]), 6, after)
    torch.testing.assert_close(rewritten, again)
    assert len(once_more[0]) == 9


@torch.no_grad()
def test_no_position_reads_ahead() -> None:
    made, ids, z = net(), torch.arange(9), torch.randn(9, 32)
    other = ids.clone()
    other[6:] += 3
    a, b = (made.states(row[None], z[None], 3)[0] for row in (ids, other))
    torch.testing.assert_close(a[:6], b[:6])
    assert not torch.allclose(a[6:], b[6:])


def test_a_wrong_width_is_refused() -> None:
    with pytest.raises(ValueError, match="width 33 must be an even multiple"):
        LoopedConfig(vocab_size=3, width=33)
