"""The decoder of Flux's autoencoder (diffusers' AutoencoderKL): latents -> pixels. Its encoder is not needed here.

Public idea: ``FluxDecoder(config)(latents) -> pixels``. Parameters have the names of the released file.

Shapes: B pictures · d channels of latents · C channels · h w latents · H W places.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from unmask.tokens.vq import Decoder, Resnet

_EPS = 1e-6


@dataclass(frozen=True, kw_only=True)
class FluxConfig:
    """The defaults are the released ones. ``scale``, ``shift``: of the latents that the flow makes."""

    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    latent_channels: int = 16
    norm_num_groups: int = 32
    scale: float = 0.3611
    shift: float = 0.1159

    @property
    def factor(self) -> int:
        """Pixels along a side of one latent."""
        return 2 ** (len(self.block_out_channels) - 1)


class Attention(nn.Module):
    """One head over all places."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, width, eps=_EPS)
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def forward(self, x_BCHW: Tensor) -> Tensor:
        n = self.group_norm(x_BCHW).flatten(2).transpose(1, 2)
        q, k, v = (layer(n)[:, None] for layer in (self.to_q, self.to_k, self.to_v))
        mixed = self.to_out[0](F.scaled_dot_product_attention(q, k, v)[:, 0])
        return x_BCHW + mixed.transpose(1, 2).reshape(x_BCHW.shape)


class Middle(nn.Module):
    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.attentions = nn.ModuleList([Attention(width, groups)])
        self.resnets = nn.ModuleList(Resnet(width, width, groups) for _ in range(2))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.resnets[1](self.attentions[0](self.resnets[0](x_BCHW)))


class FluxDecoder(Decoder):
    """Latents as the flow makes them, [B, d, h, w] -> pixels [B, 3, 8 h, 8 w], 0 is grey, not clipped to [-1, 1]."""

    def __init__(self, config: FluxConfig) -> None:
        super().__init__(config, middle=Middle)
        self.config = config

    def forward(self, z_Bdhw: Tensor) -> Tensor:
        return super().forward(z_Bdhw / self.config.scale + self.config.shift)
