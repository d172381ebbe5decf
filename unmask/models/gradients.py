"""Normalisation, rotation and attention of every layer with gradients written by hand, for training without ``torch.compile``.

Public idea: ``normed(x, weight, eps, width)``, ``rotated(x, table)`` and ``attended(q, k, v, attend)`` have the values of the plain
formulas to the bit, and make fewer passes over memory: 9 instead of autograd's 12 for the gradient of the norm. For attention,
autograd sets the gradients of masked scores to zero, which they are already, and copies all scores to mask them.

Shapes: W channels · B rows · H heads · T positions · S keys · K head width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

IN_CACHE = 2**17  # numbers that are worked on at a time where a tensor is large: 512 KB in float32
MASKED = -1e4  # the score of a key that may not be read; a large finite number: a row of padding may read nothing, and must not become NaN


def wanted(x: Tensor) -> bool:
    """Whether a gradient is wanted of ``x``, and no compiler is at work, which fuses the plain formulas."""
    return x.requires_grad and torch.is_grad_enabled() and not torch.compiler.is_compiling()


def worthwhile(x: Tensor) -> bool:
    """Whether a gradient is wanted of ``x`` on a CPU. A GPU waits for Python, which computes the gradients here, longer than for the passes
    over memory that they save; those of rotations excepted.
    """
    return wanted(x) and not x.is_cuda


def large(x: Tensor) -> bool:
    """Whether ``x`` is worked on in parts: on a CPU, memory that was never used costs more than the arithmetic on it (2.4 GB/s)."""
    return x.device.type == "cpu" and x.numel() > 8 * IN_CACHE and not torch.is_grad_enabled()


def rows_at(x_NW: Tensor, row_M: Tensor) -> Tensor:
    """``x[row]``, [M, W]. On a GPU the gradient of an index adds equal rows one after the other, 40 ms of a training step of 100 ms where
    many positions name one row; that of an embedding sorts them first.
    """
    if x_NW.is_cuda and x_NW.requires_grad and torch.is_grad_enabled():
        return F.embedding(row_M, x_NW)
    return x_NW[row_M]


class _Normed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, width: int) -> Tensor:
        y = x.float()
        scale = torch.rsqrt(y.square().sum(-1, keepdim=True) / width + eps)
        h = torch.mul(y, scale, out=torch.empty_like(x))
        ctx.save_for_backward(h, weight, scale)
        ctx.width = width
        return h * weight

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # type: ignore[bad-override]
        (grad,), (h, weight, scale) = grad_outputs, ctx.saved_tensors
        to_weight = (grad * h).flatten(0, -2).sum(0) if ctx.needs_input_grad[1] else None
        g, h = (grad * weight).float(), h.float()
        shared = (g * h).sum(-1, keepdim=True).div_(-ctx.width)
        to_x = torch.mul(g.addcmul_(h, shared), scale, out=torch.empty_like(grad))
        return to_x, to_weight, None, None


def normed(x: Tensor, weight: Tensor, eps: float, width: int) -> Tensor:
    """Root-mean-square norm over ``width`` channels, of which those that ``x [.., W]`` does not have are zero (``blocks.rms_norm``)."""
    return _Normed.apply(x, weight, eps, width)


class _Rotated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.on_cuda = x.is_cuda
        if ctx.on_cuda:
            return turned_on_cuda(x, cos, sin)
        ctx.like = torch.empty_like(x, device="meta").stride()  # as ``x`` where it is dense
        turned, other = _turned(x, cos, sin)
        # Contiguous, as attention wants it; the gradient lies as ``x`` does, as the linear layer before wants it.
        return x.new_empty(x.shape).copy_(turned.add_(other))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # type: ignore[bad-override]
        (grad,), (cos, sin) = grad_outputs, ctx.saved_tensors
        if ctx.on_cuda:
            return turned_on_cuda(grad, cos, sin, back=True), None, None
        turned, other = _turned(grad, cos, sin)
        return grad.new_empty_strided(grad.shape, ctx.like).copy_(turned.sub_(other)), None, None


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """The halves (a, b) of ``x`` times the cosine, and (b, a) times the sine, whose first half is negative (``rope_table``); in float32."""
    y = x.float()
    return y * cos, y.roll(x.shape[-1] // 2, -1).mul_(sin)


def turned_on_cuda(x: Tensor, cos: Tensor, sin: Tensor, *, back: bool = False) -> Tensor:
    """``x`` rotated, or rotated back, in three kernels that cast as they read and write: 18 bytes of memory traffic for each number in
    bfloat16 instead of 48, which is what a GPU waits for. The same values up to one rounding in float32.
    """
    half = x.shape[-1] // 2
    found, turned = torch.empty_like(x), x * cos
    for own, other in ((slice(0, half), slice(half, None)), (slice(half, None), slice(0, half))):
        into = found[..., own]
        torch.addcmul(turned[..., own], x[..., other], sin[..., own], value=-1 if back else 1, out=into)
    return found


def rotated(x_BHTK: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Rotated queries or keys, as ``rope.rotate``."""
    return _Rotated.apply(x_BHTK, *table)


def softmax(score: Tensor) -> Tensor:
    """Over the last dimension. A CPU takes half the time for half types if they are converted before and after."""
    if score.dtype == torch.float32 or score.device.type != "cpu":
        return score.softmax(-1)
    return score.softmax(-1, dtype=torch.float32).to(score.dtype)


class _Attended(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, attend: Tensor | None) -> Tensor:
        q = q * q.shape[-1] ** -0.5
        score = q @ k.transpose(-1, -2)
        if attend is not None:
            score.masked_fill_(~attend, MASKED)
        share = softmax(score)
        ctx.save_for_backward(q, k, v, share)
        return share @ v

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # type: ignore[bad-override]
        (grad,), (q, k, v, share) = grad_outputs, ctx.saved_tensors
        needs_q, needs_k, needs_v, _ = ctx.needs_input_grad
        to_v = share.transpose(-1, -2) @ grad if needs_v else None
        to_score = torch._softmax_backward_data(grad @ v.transpose(-1, -2), share, -1, share.dtype)
        to_q = (to_score @ k).mul_(k.shape[-1] ** -0.5) if needs_q else None
        to_k = (q.transpose(-1, -2) @ to_score).transpose(-1, -2) if needs_k else None
        return to_q, to_k, to_v, None


def attended(q_BHTK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, attend_B1TS: Tensor | None) -> Tensor:
    """Attention, [B, H, T, K], as ``attention.plain``. A query that may read nothing must not count in the loss: it has gradients here."""
    return _Attended.apply(q_BHTK, k_BHSK, v_BHSK, attend_B1TS)
