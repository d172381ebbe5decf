"""From Gaussian noise to continuous tokens with a network that predicts the clean ones, or a velocity.

Public ideas: ``denoise(net, x, told=.., states=..) -> x0``, with ``net(x, told, before) -> x0``; ``euler(velocity, x, times)``. The
network is told one noise level and the state has another where the two lists differ (DINOISER, arXiv 2302.10025); ``before`` is the last
prediction (self-conditioning).

Shapes: x, x0, noise any shape · S levels, from noise to clean.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from unmask.corruption.gaussian import implied_noise, noised

Net = Callable[[Tensor, Tensor, Tensor], Tensor]  # (x, told level, last prediction, zeros at first) -> x0
Move = Callable[[Tensor, Tensor, Tensor, Tensor, int], Tensor]  # (x, x0, told, next state, step) -> x at the next state


def denoise(
    net: Net,
    x: Tensor,
    *,
    told: Tensor,
    states: Tensor,
    times: Tensor | None = None,
    move: Move | None = None,
    on_state: Callable[[Tensor], None] = lambda x: None,
) -> Tensor:
    """The last prediction x0, after ``len(told)`` calls of the network.

    ``told``, ``states``: noise levels; call i is told ``told[i]`` and is followed by a move to ``states[i + 1]``, where there is one ·
    ``times``: what the network reads in place of ``told``, where its time is not a noise level · ``move``: ``deterministic`` by default ·
    ``on_state``: gets x after each move. ValueError for fewer states than calls.
    """
    if len(states) < len(told) or not len(told):
        raise ValueError(
            f"{len(told)} levels are told to the network and {len(states)} are states; give at least as many states"
        )
    move, x0, times = move or deterministic, torch.zeros_like(x), told if times is None else times
    for i, level in enumerate(told):
        x0 = net(x, times[i], x0)
        if i + 1 < len(states):
            x = move(x, x0, level, states[i + 1], i)
            on_state(x)
    return x0


def deterministic(x: Tensor, x0: Tensor, level: Tensor, following: Tensor, step: int) -> Tensor:
    """DDIM (arXiv 2010.02502): the noise that the prediction implies is kept."""
    return noised(x0, implied_noise(x, x0, level), following)


def ancestral(x: Tensor, x0: Tensor, noise: Tensor, level: Tensor, following: Tensor) -> Tensor:
    """DDPM (arXiv 2006.11239): a draw from q(x at ``following`` | x, x0); ``level`` is that of x and below 1."""
    keep, spread = posterior(level, following)
    scale = (1 - following.square()).sqrt() - keep * (1 - level.square()).sqrt()
    return keep * x + scale * x0 + spread * noise


def posterior(level: Tensor, following: Tensor) -> tuple[Tensor, Tensor]:
    """The factor of x and the deviation in q(x at ``following`` | x, x0)."""
    scale, next_scale = (1 - level.square()).sqrt(), (1 - following.square()).sqrt()
    ratio = (scale * following / (next_scale * level)).square()  # of the signal-to-noise ratios
    return ratio * next_scale / scale, following * (1 - ratio).sqrt()


def guided(with_condition: Tensor, without: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance (arXiv 2207.12598); ``scale`` 0: the condition alone."""
    return (1 + scale) * with_condition - scale * without


def euler(velocity: Callable[[Tensor, Tensor], Tensor], x: Tensor, times: Tensor) -> Tensor:
    """x at the last of ``times``, from x at the first, in straight steps: ``velocity(x, t) -> dx / dt``."""
    for t, following in zip(times[:-1], times[1:], strict=True):
        x = x + (following - t) * velocity(x, t)
    return x
