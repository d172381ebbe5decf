"""Rotary positions (spec 1.4): half-split form, plain 1-D sequence indices for every kind of token.

Shapes: B rows · T positions · H heads · K head width.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from unmask.models.gradients import IN_CACHE, rotated, turned_on_cuda, wanted

Table = tuple[Tensor, Tensor]
Rotation = Callable[[Tensor, Table], Tensor]


def critical_dimension(base: float, head_width: int, trained: int) -> int:
    """The first even channel number whose pair turns less than once over ``trained`` positions (LongLLaDA, arXiv 2506.14429, section 4).

    The pair of channels 2i and 2i + 1 has the wavelength 2 pi base^(2i / head_width). ValueError for fewer than 7 positions: even the
    fastest pair turns less than once.
    """
    if trained < 7:
        raise ValueError(
            f"a rotary network is trained on at least 7 positions, got {trained}; give the length of its rows"
        )
    return 2 * math.ceil(head_width / 2 * math.log(trained / (2 * math.pi), base))


def ntk_factor(base: float, head_width: int, trained: int, target: int) -> float:
    """The factor of the rotary base with which the pair of the critical dimension has the wavelength ``target`` (NTK scaling).

    Exactly 1.0 where ``target`` is not above ``trained`` and where the formula gives less than 1. ValueError as of ``critical_dimension``.
    """
    critical = critical_dimension(base, head_width, trained)
    if target <= trained:
        return 1.0
    return max(1.0, (target / (2 * math.pi)) ** (head_width / critical) / base)


def rope_table(position_BT: Tensor, head_width: int, theta: float) -> Table:
    """cos and sin, float32 [B, 1, T, K], of the inverse frequencies theta^(-2i/K). The first half of sin is negative: see ``rotate``."""
    inverse = theta ** -(torch.arange(0, head_width, 2, device=position_BT.device, dtype=torch.float32) / head_width)
    angle_BTk = position_BT[..., None].float() * inverse
    angle_BTK = torch.cat([angle_BTk, angle_BTk], dim=-1)[:, None]
    sin = angle_BTK.sin()
    return angle_BTK.cos(), torch.cat([-sin[..., : head_width // 2], sin[..., head_width // 2 :]], dim=-1)


def section_table(place_3BT: Tensor, sections: tuple[int, ...], theta: float) -> Table:
    """``rope_table`` of positions with a time, a row and a column: sections of the pairs of channels turn with one of them each (M-RoPE,
    Qwen2-VL, arXiv 2409.12191).
    """
    pairs = sum(sections)
    inverse = theta ** -(torch.arange(0, 2 * pairs, 2, device=place_3BT.device, dtype=torch.float32) / (2 * pairs))
    own_k = torch.arange(3, device=place_3BT.device).repeat_interleave(torch.tensor(sections, device=place_3BT.device))
    angle_BTk = place_3BT.float().permute(1, 2, 0)[..., own_k] * inverse
    sin = angle_BTk.sin()
    return torch.cat([angle_BTk.cos()] * 2, dim=-1)[:, None], torch.cat([-sin, sin], dim=-1)[:, None]


def rotate(x_BHTK: Tensor, table: Table) -> Tensor:
    """Rotate queries or keys; computed in float32 and cast back. Channels beyond those of the table stay as they are."""
    if (width := table[0].shape[-1]) < x_BHTK.shape[-1]:
        return torch.cat([rotate(x_BHTK[..., :width], table), x_BHTK[..., width:]], dim=-1)
    if wanted(x_BHTK):
        return rotated(x_BHTK, table)
    if x_BHTK.is_cuda and not torch.is_grad_enabled():
        return turned_on_cuda(x_BHTK, *table)
    return _turned(x_BHTK, table).to(x_BHTK.dtype)


def rotate_fused(x_BHTK: Tensor, table: Table) -> Tensor:
    """``rotate`` in one kernel of ``torch.compile``, without gradients."""
    if (width := table[0].shape[-1]) < x_BHTK.shape[-1]:
        return torch.cat([rotate_fused(x_BHTK[..., :width], table), x_BHTK[..., width:]], dim=-1)
    return _compiled()(x_BHTK, table)


@functools.cache
def _compiled() -> Rotation:
    return torch.compile(lambda x, table: _turned(x, table).to(x.dtype), dynamic=True)


def rotate_into(found_BHTK: Tensor, x_BHTK: Tensor, table: Table) -> None:
    """The same bits written to ``found``, a few positions at a time, so that what is made on the way stays in the cache."""
    if (width := table[0].shape[-1]) < x_BHTK.shape[-1]:
        found_BHTK[..., width:] = x_BHTK[..., width:]
        found_BHTK, x_BHTK = found_BHTK[..., :width], x_BHTK[..., :width]
    step = max(16, IN_CACHE // (x_BHTK.numel() // x_BHTK.shape[2]))
    for start in range(0, x_BHTK.shape[2], step):
        some = slice(start, start + step)
        found_BHTK[:, :, some] = _turned(x_BHTK[:, :, some], (table[0][:, :, some], table[1][:, :, some]))


def _turned(x_BHTK: Tensor, table: Table) -> Tensor:
    cos, sin = table
    x = x_BHTK.float()
    a, b = x.chunk(2, dim=-1)
    return (x * cos).add_(torch.cat([b, a], dim=-1).mul_(sin))
