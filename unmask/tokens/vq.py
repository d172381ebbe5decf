"""The image tokenizer's network: a VQ autoencoder in the diffusers ``VQModel`` layout (spec 1.8, 7.3).

Public idea: ``VQ(config).encode(image) -> codes`` and ``.decode(codes) -> image``. Parameter names are those of the released
files, so that an aMUSEd or Meissonic tokenizer loads without conversion. Pixels are in [0, 1] on both sides.

Shapes: B images · C channels · H W pixels · h w codes (H / factor, W / factor) · d latent width · V codes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class VQConfig:
    """Shape of the tokenizer. Defaults are those of the released model (aMUSEd / Meissonic, 8,192 codes, factor 16).

    ``encode_apart``: encode every factor x factor patch separately, so that a code depends only on its own pixels.
    The released tokenizer does not; ours does: equal patches then get equal codes regardless of their neighbours, which
    makes the codes fast to learn. The decoder always uses the whole grid, so there are no seams.
    """

    block_out_channels: tuple[int, ...] = (128, 256, 256, 512, 768)
    layers_per_block: int = 2
    latent_channels: int = 64
    num_vq_embeddings: int = 8192
    norm_num_groups: int = 32
    encode_apart: bool = False

    @property
    def factor(self) -> int:
        """Side of the patch of one code, in pixels."""
        return 2 ** (len(self.block_out_channels) - 1)

    @property
    def d(self) -> int:
        return self.latent_channels

    def build(self) -> VQ:
        return VQ(self)


class Resnet(nn.Module):
    """norm, SiLU, conv, norm, SiLU, conv, plus the input (through a 1x1 conv where the width changes)."""

    def __init__(self, width_in: int, width_out: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, width_in, eps=1e-6)
        self.conv1 = nn.Conv2d(width_in, width_out, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, width_out, eps=1e-6)
        self.conv2 = nn.Conv2d(width_out, width_out, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(width_in, width_out, 1) if width_in != width_out else None

    def forward(self, x_BCHW: Tensor) -> Tensor:
        h_BCHW = self.conv1(F.silu(self.norm1(x_BCHW)))
        h_BCHW = self.conv2(F.silu(self.norm2(h_BCHW)))
        return h_BCHW + (x_BCHW if self.conv_shortcut is None else self.conv_shortcut(x_BCHW))


class Down(nn.Module):
    """3x3 conv of stride 2 with one zero row and column at the right and bottom."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.conv(F.pad(x_BCHW, (0, 1, 0, 1)))


class Up(nn.Module):
    """Nearest-neighbour doubling, then a 3x3 conv."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.conv(F.interpolate(x_BCHW, scale_factor=2.0, mode="nearest"))


class Stage(nn.Module):
    """The resnets of one resolution and, except at the last one, the resampling to the next. Named as in the released files."""

    def __init__(self, widths: list[int], groups: int, change: tuple[str, nn.Module] | None) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(Resnet(a, b, groups) for a, b in zip(widths, widths[1:], strict=False))
        self.change_name = change[0] if change else ""
        if change:
            self.add_module(change[0], nn.ModuleList([change[1]]))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        for resnet in self.resnets:
            x_BCHW = resnet(x_BCHW)
        if self.change_name:
            x_BCHW = self.get_submodule(f"{self.change_name}.0")(x_BCHW)
        return x_BCHW


class Middle(nn.Module):
    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(Resnet(width, width, groups) for _ in range(2))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        for resnet in self.resnets:
            x_BCHW = resnet(x_BCHW)
        return x_BCHW


class Convolutions(Protocol):
    """The sizes of a decoder, a part of its configuration."""

    @property
    def block_out_channels(self) -> tuple[int, ...]: ...
    @property
    def layers_per_block(self) -> int: ...
    @property
    def latent_channels(self) -> int: ...
    @property
    def norm_num_groups(self) -> int: ...


class Encoder(nn.Module):
    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        widths, groups = config.block_out_channels, config.norm_num_groups
        self.conv_in = nn.Conv2d(3, widths[0], 3, padding=1)
        stages, before = [], widths[0]
        for i, width in enumerate(widths):
            change = None if i == len(widths) - 1 else ("downsamplers", Down(width))
            stages.append(Stage([before] + [width] * config.layers_per_block, groups, change))
            before = width
        self.down_blocks = nn.ModuleList(stages)
        self.mid_block = Middle(widths[-1], groups)
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[-1], config.latent_channels, 3, padding=1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x = self.conv_in(x_BCHW)
        for stage in self.down_blocks:
            x = stage(x)
        return self.conv_out(F.silu(self.conv_norm_out(self.mid_block(x))))


class Decoder(nn.Module):
    """Latents [B, d, h, w] -> pixels. ``middle(width, groups)``: its first block."""

    def __init__(self, config: Convolutions, middle: Callable[[int, int], nn.Module] = Middle) -> None:
        super().__init__()
        widths, groups = config.block_out_channels[::-1], config.norm_num_groups
        self.conv_in = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.mid_block = middle(widths[0], groups)
        stages, before = [], widths[0]
        for i, width in enumerate(widths):
            change = None if i == len(widths) - 1 else ("upsamplers", Up(width))
            stages.append(Stage([before] + [width] * (config.layers_per_block + 1), groups, change))
            before = width
        self.up_blocks = nn.ModuleList(stages)
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[-1], 3, 3, padding=1)

    def forward(self, z_Bdhw: Tensor) -> Tensor:
        x = self.mid_block(self.conv_in(z_Bdhw))
        for stage in self.up_blocks:
            x = stage(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class Codebook(nn.Module):
    """The table of code vectors, ``embedding.weight [V, d]``; lookup is by Euclidean distance."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(size, width)

    def nearest(self, z_ND: Tensor) -> Tensor:
        """Index of the nearest code vector: float [N, d] -> long [N]."""
        table = self.embedding.weight.to(z_ND.dtype)
        distance_NV = table.pow(2).sum(1) - 2 * z_ND @ table.T
        return distance_NV.argmin(1)


class VQ(nn.Module):
    """Image <-> codes: a ``protocols.Codec``. ``size`` is the number of codes."""

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.quant_conv = nn.Conv2d(config.latent_channels, config.latent_channels, 1)
        self.quantize = Codebook(config.num_vq_embeddings, config.latent_channels)
        self.post_quant_conv = nn.Conv2d(config.latent_channels, config.latent_channels, 1)
        self.decoder = Decoder(config)

    @property
    def size(self) -> int:
        return self.config.num_vq_embeddings

    def latents(self, image_B3HW: Tensor) -> Tensor:
        """Pixels in [0, 1], [B, 3, H, W] -> latents before quantisation [B, d, h, w]."""
        factor = self.config.factor
        batch, _, high, wide = image_B3HW.shape
        if high % factor or wide % factor:
            raise ValueError(f"image of {wide}x{high} px: both sides must be multiples of {factor} px")
        if not self.config.encode_apart:
            return self.quant_conv(self.encoder(image_B3HW))
        patches = F.unfold(image_B3HW, factor, stride=factor).transpose(1, 2).reshape(-1, 3, factor, factor)
        z = self.quant_conv(self.encoder(patches))
        return z.reshape(batch, high // factor, wide // factor, self.config.d).permute(0, 3, 1, 2)

    def encode(self, image_B3HW: Tensor) -> Tensor:
        """Pixels in [0, 1], [B, 3, H, W] -> codes, long [B, h, w]. ValueError if a side is not a multiple of the factor."""
        z_Bdhw = self.latents(image_B3HW.to(self.quantize.embedding.weight.device)).float()
        batch, width, high, wide = z_Bdhw.shape
        return self.quantize.nearest(z_Bdhw.permute(0, 2, 3, 1).reshape(-1, width)).reshape(batch, high, wide)

    def from_latents(self, z_Bdhw: Tensor) -> Tensor:
        """Latents -> pixels, not yet clipped."""
        return self.decoder(self.post_quant_conv(z_Bdhw))

    def decode(self, codes_Bhw: Tensor) -> Tensor:
        """Codes, long [B, h, w] -> pixels in [0, 1], [B, 3, H, W]."""
        codes_Bhw = codes_Bhw.to(self.quantize.embedding.weight.device)
        z_Bdhw = self.quantize.embedding(codes_Bhw).permute(0, 3, 1, 2).contiguous()
        return self.from_latents(z_Bdhw).clamp(0, 1)
