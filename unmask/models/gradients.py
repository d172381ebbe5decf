"""The normalisation and the rotation of every layer with gradients written by hand, for training without ``torch.compile``.

Public idea: ``normed(x, weight, eps, width)`` and ``rotated(x, table)`` have the values of the plain formulas to the bit. Autograd takes
12 passes over memory for the gradient of the one and 8 for that of the other; these take 9 and 4.

Shapes: W channels · B rows · H heads · T positions · K head width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

IN_CACHE = 2**17  # numbers that are worked on at a time where a tensor is large: 512 KB in float32


def worthwhile(x: Tensor) -> bool:
    """Whether a gradient is wanted of ``x``, and no compiler is at work, which fuses the plain formula."""
    return x.requires_grad and torch.is_grad_enabled() and not torch.compiler.is_compiling()


def large(x: Tensor) -> bool:
    """Whether ``x`` is worked on in parts: on a CPU, memory that was never used costs more than the arithmetic on it (2.4 GB/s)."""
    return x.device.type == "cpu" and x.numel() > 8 * IN_CACHE and not torch.is_grad_enabled()


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
        half = x.shape[-1] // 2
        cos, sin = cos[..., half:], sin[..., half:]  # both halves of a table are the same, but for the sign of the sine
        ctx.save_for_backward(cos, sin)
        ctx.like = torch.empty_like(x, device="meta").stride()  # as ``x`` where it is dense
        # Contiguous, as attention wants it; the gradient lies as ``x`` does, as the linear layer before wants it.
        return _turn(x, cos, sin, torch.sub, torch.add, x.new_empty(x.shape))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # type: ignore[bad-override]
        (grad,), (cos, sin) = grad_outputs, ctx.saved_tensors
        found = grad.new_empty_strided(grad.shape, ctx.like)
        return _turn(grad, cos, sin, torch.add, torch.sub, found), None, None


def _turn(x: Tensor, cos: Tensor, sin: Tensor, first: Any, second: Any, found: Tensor) -> Tensor:
    """(a cos -+ b sin, b cos +- a sin) of the halves a and b, computed in float32 and cast to the type of ``found``."""
    (a, b), (into_a, into_b) = x.float().chunk(2, dim=-1), found.chunk(2, dim=-1)
    first(a * cos, b * sin, out=into_a)
    second(b * cos, a * sin, out=into_b)
    return found


def rotated(x_BHTK: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Rotated queries or keys, as ``rope.rotate``."""
    return _Rotated.apply(x_BHTK, *table)
