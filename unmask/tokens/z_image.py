"""The flow decoder's network in LLaDA2.0-Uni: Z-Image's transformer (arXiv 2511.22699) with features of codes in place of a caption.

Public idea: ``ZImage(config)(x, time, features) -> velocity``. Latents and features run through refiners of their own and then through
shared layers; both are padded to multiples of 32, and the padding takes part in attention. Parameters have the names of the released file.

Shapes: B pictures · C channels · H W latents · N tokens · D width · F width of the features · T features.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_MULTIPLE = 32  # tokens that latents and features are padded to
_PATCH = 2  # latents along a side of one token
_PERIOD = 10_000.0  # of the time's slowest wave
_FINAL_EPS = 1e-6
KIND = f"{_PATCH}-1"  # the released name of the layers for patches of 2 x 2 in one frame


@dataclass(frozen=True, kw_only=True)
class ZImageConfig:
    """The defaults are the released sizes. ``features``: width of a code's features · ``axes``: channels of a head that turn with the
    frame, the row and the column · ``time_inner``, ``waves``: widths of the time's embedding.
    """

    width: int = 3840
    layers: int = 30
    refiners: int = 2
    heads: int = 30
    channels: int = 16
    features: int = 4096
    axes: tuple[int, int, int] = (32, 48, 48)
    theta: float = 256.0
    eps: float = 1e-5
    time_scale: float = 1000.0
    time_inner: int = 1024
    waves: int = 256

    def __post_init__(self) -> None:
        if self.width % self.heads or sum(self.axes) != self.width // self.heads or any(n % 2 for n in self.axes):
            raise ValueError(
                f"axes {self.axes} must be even numbers that sum to the channels of a head, width {self.width} / heads {self.heads}"
            )

    @property
    def mlp(self) -> int:
        return int(self.width / 3 * 8)

    @property
    def condition(self) -> int:
        """Width of the time's embedding."""
        return min(self.width, 256)


class Attention(nn.Module):
    def __init__(self, c: ZImageConfig) -> None:
        super().__init__()
        self.heads = c.heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(c.width, c.width, bias=False) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(c.width, c.width, bias=False)])
        self.norm_q, self.norm_k = (nn.RMSNorm(c.width // c.heads, eps=c.eps) for _ in range(2))

    def forward(self, x_BND: Tensor, turn_N1k: Tensor) -> Tensor:
        q, k, v = (layer(x_BND).unflatten(-1, (self.heads, -1)) for layer in (self.to_q, self.to_k, self.to_v))
        q, k = turned(self.norm_q(q), turn_N1k), turned(self.norm_k(k), turn_N1k)
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.to_out[0](mixed.transpose(1, 2).flatten(2))


def turned(x_BNHK: Tensor, turn_N1k: Tensor) -> Tensor:
    """Pairs of neighbouring channels turned by complex numbers."""
    pairs = torch.view_as_complex(x_BNHK.float().unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * turn_N1k).flatten(-2).to(x_BNHK.dtype)


class FeedForward(nn.Module):
    def __init__(self, c: ZImageConfig) -> None:
        super().__init__()
        self.w1, self.w3 = (nn.Linear(c.width, c.mlp, bias=False) for _ in range(2))
        self.w2 = nn.Linear(c.mlp, c.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class Block(nn.Module):
    """A layer. ``modulated``: whether the time scales and gates it."""

    def __init__(self, c: ZImageConfig, *, modulated: bool) -> None:
        super().__init__()
        self.attention = Attention(c)
        self.feed_forward = FeedForward(c)
        self.attention_norm1, self.attention_norm2 = (nn.RMSNorm(c.width, eps=c.eps) for _ in range(2))
        self.ffn_norm1, self.ffn_norm2 = (nn.RMSNorm(c.width, eps=c.eps) for _ in range(2))
        self.adaLN_modulation = nn.ModuleList([nn.Linear(c.condition, 4 * c.width)]) if modulated else None

    def forward(self, x: Tensor, turn: Tensor, time_B1c: Tensor) -> Tensor:
        if self.adaLN_modulation is None:
            scales, gates = (1.0, 1.0), (1.0, 1.0)
        else:
            s1, g1, s2, g2 = self.adaLN_modulation[0](time_B1c).chunk(4, dim=-1)
            scales, gates = (1 + s1, 1 + s2), (g1.tanh(), g2.tanh())
        x = x + gates[0] * self.attention_norm2(self.attention(self.attention_norm1(x) * scales[0], turn))
        return x + gates[1] * self.ffn_norm2(self.feed_forward(self.ffn_norm1(x) * scales[1]))


class TimeEmbedding(nn.Module):
    def __init__(self, c: ZImageConfig) -> None:
        super().__init__()
        self.scale, self.waves = c.time_scale, c.waves
        self.mlp = nn.Sequential(nn.Linear(c.waves, c.time_inner), nn.SiLU(), nn.Linear(c.time_inner, c.condition))

    def forward(self, time_B: Tensor) -> Tensor:
        half = self.waves // 2
        number = torch.arange(half, device=time_B.device, dtype=torch.float32)
        period = torch.exp(-math.log(_PERIOD) * number / half)  # angles reach 1,000: another order of rounding shows
        angle = (self.scale * time_B.float())[:, None] * period
        return self.mlp(torch.cat([angle.cos(), angle.sin()], dim=-1).to(self.mlp[0].get_parameter("weight").dtype))


class FinalLayer(nn.Module):
    def __init__(self, c: ZImageConfig) -> None:
        super().__init__()
        self.linear = nn.Linear(c.width, _PATCH**2 * c.channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(c.condition, c.width))

    def forward(self, x: Tensor, time_B1c: Tensor) -> Tensor:
        normed = F.layer_norm(x, x.shape[-1:], eps=_FINAL_EPS)
        return self.linear(normed * (1 + self.adaLN_modulation(time_B1c)))


class ZImage(nn.Module):
    """Latents [B, C, H, W] at ``time [B]`` (0 noise .. 1 picture) and features [B, T, F] -> velocity [B, C, H, W] float32."""

    def __init__(self, config: ZImageConfig) -> None:
        super().__init__()
        c = self.config = config
        self.all_x_embedder = nn.ModuleDict({KIND: nn.Linear(_PATCH**2 * c.channels, c.width)})
        self.all_final_layer = nn.ModuleDict({KIND: FinalLayer(c)})
        self.noise_refiner = nn.ModuleList(Block(c, modulated=True) for _ in range(c.refiners))
        self.context_refiner = nn.ModuleList(Block(c, modulated=False) for _ in range(c.refiners))
        self.t_embedder = TimeEmbedding(c)
        self.semantic_embedder = nn.Sequential(nn.RMSNorm(c.features, eps=c.eps), nn.Linear(c.features, c.width))
        self.x_pad_token = nn.Parameter(torch.zeros(1, c.width))
        self.cap_pad_token = nn.Parameter(torch.zeros(1, c.width))
        self.layers = nn.ModuleList(Block(c, modulated=True) for _ in range(c.layers))

    def forward(self, x_BCHW: Tensor, time_B: Tensor, features_BTF: Tensor) -> Tensor:
        high, wide = (side // _PATCH for side in x_BCHW.shape[2:])
        time = self.t_embedder(time_B)[:, None]
        x, c = self.refined(x_BCHW, time, features_BTF)
        whole, turn = torch.cat([x, c], dim=1), torch.cat(self._turns(high, wide, features_BTF.shape[1]))
        for layer in self.layers:
            whole = layer(whole, turn, time)
        out = self.all_final_layer[KIND](whole, time)[:, : high * wide].float()
        return (
            out.unflatten(2, (_PATCH, _PATCH, -1))
            .unflatten(1, (high, wide))
            .permute(0, 5, 1, 3, 2, 4)
            .reshape(x_BCHW.shape)
        )

    def refined(self, x_BCHW: Tensor, time_B1c: Tensor, features_BTF: Tensor) -> tuple[Tensor, Tensor]:
        """Latents and features after their refiners, padded, [B, N, D] each."""
        weight = self.x_pad_token
        high, wide = (side // _PATCH for side in x_BCHW.shape[2:])
        patches = x_BCHW.unflatten(3, (wide, _PATCH)).unflatten(2, (high, _PATCH)).permute(0, 2, 4, 3, 5, 1)
        x = _padded(self.all_x_embedder[KIND](patches.flatten(3).flatten(1, 2).to(weight.dtype)), self.x_pad_token)
        c = _padded(self.semantic_embedder(features_BTF.to(weight.dtype)), self.cap_pad_token)
        turn_x, turn_c = self._turns(high, wide, features_BTF.shape[1])
        for layer in self.noise_refiner:
            x = layer(x, turn_x, time_B1c)
        for layer in self.context_refiner:
            c = layer(c, turn_c, time_B1c)
        return x, c

    def _turns(self, high: int, wide: int, features: int) -> tuple[Tensor, Tensor]:
        """Rotations of latents and of features, [N, 1, k] complex. Features count up from 1 on the first axis, with their padding; all
        latents follow at one place of it, with row and column on the others; padded latents stand at 0.
        """
        device, text = self.x_pad_token.device, features + -features % _MULTIPLE
        captions = torch.zeros(text, 3, dtype=torch.long, device=device)
        captions[:, 0] = 1 + torch.arange(text, device=device)
        number = torch.arange(high * wide, device=device)
        patches = torch.stack([torch.full_like(number, 1 + text), number // wide, number % wide], dim=1)
        return self._turn(F.pad(patches, (0, 0, 0, -len(patches) % _MULTIPLE))), self._turn(captions)

    def _turn(self, place_N3: Tensor) -> Tensor:
        parts = []
        for axis, width in enumerate(self.config.axes):
            inverse = self.config.theta ** (
                -torch.arange(0, width, 2, device=place_N3.device, dtype=torch.float64) / width
            )
            parts.append(place_N3[:, axis, None].double() * inverse)
        angle = torch.cat(parts, dim=1).float()
        return torch.polar(torch.ones_like(angle), angle)[:, None]


def _padded(x_BND: Tensor, token_1D: Tensor) -> Tensor:
    missing = -x_BND.shape[1] % _MULTIPLE
    return torch.cat([x_BND, token_1D.to(x_BND.dtype).expand(len(x_BND), missing, -1)], dim=1)
