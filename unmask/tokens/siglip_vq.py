"""The image tokenizer of LLaDA2.0-Uni: a patch transformer whose features become codes by cosine (SigLIP-VQ, as GLM-Image has it).

Public idea: ``SiglipEncoder(config)(pixels) -> features``; ``CosineCodebook.nearest``. Learned positions are stretched to every picture.
Parameters have the names of the released file.

Shapes: B images · N patches · W width · h w patches along the sides · d latent width · V codes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class SiglipConfig:
    """The defaults are the released ones. ``side``: rows and columns of the table of positions · ``latent``: width of a code's vector."""

    width: int = 1536
    layers: int = 40
    heads: int = 16
    mlp: int = 6144
    patch: int = 16
    side: int = 128
    eps: float = 1e-6
    latent: int = 2048
    codes: int = 16384

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} must be a multiple of heads {self.heads}")


class SelfAttention(nn.Module):
    def __init__(self, config: SiglipConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.proj = nn.Linear(config.width, config.width)

    def forward(self, x_BNW: Tensor) -> Tensor:
        q, k, v = self.qkv(x_BNW).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    def __init__(self, config: SiglipConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.width, config.mlp)
        self.fc2 = nn.Linear(config.mlp, config.width)

    def forward(self, x_BNW: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x_BNW)))


class Layer(nn.Module):
    def __init__(self, config: SiglipConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=config.eps)
        self.attn = SelfAttention(config)
        self.norm2 = nn.LayerNorm(config.width, eps=config.eps)
        self.mlp = FeedForward(config)

    def forward(self, x_BNW: Tensor) -> Tensor:
        x = x_BNW + self.attn(self.norm1(x_BNW))
        return x + self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
    def __init__(self, config: SiglipConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, config.width, config.patch, stride=config.patch)


class Positions(nn.Module):
    def __init__(self, config: SiglipConfig) -> None:
        super().__init__()
        self.position_embedding = nn.Embedding(config.side**2, config.width)

    def stretched(self, high: int, wide: int) -> Tensor:
        """The table interpolated at the centres of h x w patches, [N, W]; centres beyond the outermost entries get those."""
        table = self.position_embedding.weight
        side = round(len(table) ** 0.5)
        rows, columns = (
            ((torch.arange(n, device=table.device) + 0.5) / n * 2 - 1).to(table.dtype) for n in (high, wide)
        )
        at = torch.stack([columns.expand(high, wide), rows[:, None].expand(high, wide)], dim=-1)[None]
        grid = table.view(1, side, side, -1).permute(0, 3, 1, 2)
        found = F.grid_sample(grid, at, mode="bilinear", padding_mode="border", align_corners=False)
        return found[0].flatten(1).T


class SiglipEncoder(nn.Module):
    """Pixels in [-1, 1], [B, 3, H, W] -> features [B, W, h, w]; there is no norm after the last layer."""

    def __init__(self, config: SiglipConfig) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(config)
        self.embeddings = Positions(config)
        self.blocks = nn.ModuleList(Layer(config) for _ in range(config.layers))

    def forward(self, x_B3HW: Tensor) -> Tensor:
        x_BWhw = self.patch_embed.proj(x_B3HW)
        high, wide = x_BWhw.shape[2:]
        x = x_BWhw.flatten(2).transpose(1, 2) + self.embeddings.stretched(high, wide)
        for block in self.blocks:
            x = block(x)
        return x.transpose(1, 2).unflatten(2, (high, wide))


class CosineCodebook(nn.Module):
    """The table of code vectors, ``embedding.weight [V, d]``; lookup is by the angle."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(size, width)

    def nearest(self, z_ND: Tensor) -> Tensor:
        """Index of the code vector of the smallest angle: float [N, d] -> long [N]."""
        return (F.normalize(z_ND, dim=1) @ F.normalize(self.embedding.weight.to(z_ND.dtype), dim=1).T).argmax(1)
