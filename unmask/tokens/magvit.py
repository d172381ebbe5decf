"""MAGVIT-v2's image tokenizer without a codebook (Yu et al. 2023, arXiv 2310.05737), in the layout that Show-o released and MMaDA uses.

Public idea: ``Magvit(config).encode(image) -> codes`` and ``.decode(codes) -> image``, pixels in [0, 1] on both sides. A code is the
signs of the latent channels, read as a binary number: no codebook is searched (look-up free). Parameters have the names of the released
files, except that ``conv_shortcut`` is ``nin_shortcut`` there.

Shapes: B images · C channels · H W pixels · h w codes (H / factor, W / factor) · d bits of a code.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unmask.tokens.uni import UniConfig, UniTokenizer
from unmask.tokens.vq import VQ, Down, Resnet, Up, VQConfig

_GROUPS, _EPS = 32, 1e-6


@dataclass(frozen=True, kw_only=True)
class MagvitHalf:
    """Encoder or decoder. ``multiples``, ``blocks``: width / ``width`` and residual blocks of each level, the finest first."""

    width: int = 128
    multiples: tuple[int, ...] = (1, 2, 2, 4, 4)
    blocks: tuple[int, ...] = (4, 3, 4, 3, 4)

    def __post_init__(self) -> None:
        if len(self.multiples) != len(self.blocks) or self.width % _GROUPS:
            raise ValueError(
                f"{len(self.multiples)} multiples and {len(self.blocks)} numbers of blocks must be of the same levels, and the width "
                f"{self.width} a multiple of {_GROUPS}"
            )

    @property
    def widths(self) -> tuple[int, ...]:
        return tuple(self.width * m for m in self.multiples)


@dataclass(frozen=True, kw_only=True)
class MagvitConfig:
    """Shape of the tokenizer; the defaults are the released one: 13 bits (8,192 codes), factor 16."""

    encoder: MagvitHalf = field(default_factory=MagvitHalf)
    decoder: MagvitHalf = field(default_factory=lambda: MagvitHalf(multiples=(1, 1, 2, 2, 4), blocks=(4, 4, 3, 4, 3)))
    bits: int = 13

    def __post_init__(self) -> None:
        if len(self.encoder.multiples) != len(self.decoder.multiples):
            raise ValueError("the encoder and the decoder must have as many levels")

    @property
    def factor(self) -> int:
        """Side of the patch of one code, in pixels."""
        return 2 ** (len(self.encoder.multiples) - 1)

    @property
    def num_vq_embeddings(self) -> int:
        return 2**self.bits

    @property
    def block_out_channels(self) -> tuple[int, ...]:
        return self.encoder.widths

    def build(self) -> Magvit:
        return Magvit(self)


class Attention(nn.Module):
    """One head over all pixels; query, key and value are 1x1 convolutions of the normed input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(_GROUPS, width, eps=_EPS)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(width, width, 1) for _ in range(4))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        n_BCHW = self.norm(x_BCHW)
        q, k, v = (layer(n_BCHW).flatten(2).transpose(1, 2) for layer in (self.q, self.k, self.v))
        mixed_BNC = (q @ k.transpose(1, 2) * q.shape[-1] ** -0.5).softmax(-1) @ v
        return x_BCHW + self.proj_out(mixed_BNC.transpose(1, 2).reshape(x_BCHW.shape))


class Middle(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.block_1 = Resnet(width, width, _GROUPS)
        self.attn_1 = Attention(width)
        self.block_2 = Resnet(width, width, _GROUPS)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x_BCHW)))


class Level(nn.Module):
    """The residual blocks of one resolution and, except at the last one, the resampling to the next under the name ``change``."""

    def __init__(self, width_in: int, width: int, blocks: int, change: str, resampling: nn.Module | None) -> None:
        super().__init__()
        self.block = nn.ModuleList(Resnet(width if i else width_in, width, _GROUPS) for i in range(blocks))
        self.change = change if resampling else ""
        if resampling:
            self.add_module(change, resampling)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        for block in self.block:
            x_BCHW = block(x_BCHW)
        return self.get_submodule(self.change)(x_BCHW) if self.change else x_BCHW


class Encoder(nn.Module):
    def __init__(self, half: MagvitHalf, bits: int) -> None:
        super().__init__()
        widths = half.widths
        self.conv_in = nn.Conv2d(3, half.width, 3, padding=1)
        before, last = (half.width, *widths[:-1]), len(widths) - 1
        self.down = nn.ModuleList(
            Level(before[i], width, half.blocks[i], "downsample", Down(width) if i < last else None)
            for i, width in enumerate(widths)
        )
        self.mid = Middle(widths[-1])
        self.norm_out = nn.GroupNorm(_GROUPS, widths[-1], eps=_EPS)
        self.conv_out = nn.Conv2d(widths[-1], bits, 3, padding=1)
        self.quant_conv = nn.Conv2d(bits, bits, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x = self.conv_in(x_BCHW)
        for level in self.down:
            x = level(x)
        return self.quant_conv(self.conv_out(F.silu(self.norm_out(self.mid(x)))))


class Decoder(nn.Module):
    """Levels are numbered from the finest, and run from the coarsest."""

    def __init__(self, half: MagvitHalf, bits: int) -> None:
        super().__init__()
        widths = half.widths
        self.post_quant_conv = nn.Conv2d(bits, bits, 1)
        self.conv_in = nn.Conv2d(bits, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1])
        before = (*widths[1:], widths[-1])
        self.up = nn.ModuleList(
            Level(before[i], width, half.blocks[i], "upsample", Up(width) if i else None)
            for i, width in enumerate(widths)
        )
        self.norm_out = nn.GroupNorm(_GROUPS, widths[0], eps=_EPS)
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, z_Bdhw: Tensor) -> Tensor:
        x = self.mid(self.conv_in(self.post_quant_conv(z_Bdhw)))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Magvit(nn.Module):
    """Image <-> codes: a ``protocols.Codec``. ``size`` is the number of codes."""

    def __init__(self, config: MagvitConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config.encoder, config.bits)
        self.decoder = Decoder(config.decoder, config.bits)

    @property
    def size(self) -> int:
        return self.config.num_vq_embeddings

    def latents(self, image_B3HW: Tensor) -> Tensor:
        """Pixels in [-1, 1], [B, 3, H, W] -> latents [B, d, h, w], whose signs are the bits. ValueError for a side not divisible by
        the factor.
        """
        factor, (high, wide) = self.config.factor, image_B3HW.shape[-2:]
        if high % factor or wide % factor:
            raise ValueError(f"image of {wide}x{high} px: both sides must be multiples of {factor} px")
        return self.encoder(image_B3HW)

    def codes(self, z_Bdhw: Tensor) -> Tensor:
        """Latents -> codes, long [B, h, w]; the first channel is the most significant bit, and 0 counts as negative."""
        bits_Bdhw = (z_Bdhw > 0).long()
        return (bits_Bdhw << self._places(z_Bdhw.device)).sum(1)

    def encode(self, image_B3HW: Tensor) -> Tensor:
        """Pixels in [0, 1], [B, 3, H, W] -> codes, long [B, h, w]."""
        image_B3HW = image_B3HW.to(self.encoder.conv_in.weight.device)
        return self.codes(self.latents((image_B3HW - 0.5) / 0.5).float())

    def from_codes(self, codes_Bhw: Tensor) -> Tensor:
        """Codes, long [B, h, w] -> pixels, 0 is grey, not yet clipped to [-1, 1]."""
        weight = self.decoder.conv_in.weight
        codes_Bhw = codes_Bhw.to(weight.device)
        bits_Bdhw = codes_Bhw[:, None] >> self._places(weight.device) & 1
        return self.decoder((2 * bits_Bdhw - 1).to(weight.dtype))

    def decode(self, codes_Bhw: Tensor) -> Tensor:
        """Codes, long [B, h, w] -> pixels in [0, 1], [B, 3, H, W]."""
        return ((self.from_codes(codes_Bhw) + 1) / 2).clamp(0, 1)

    def _places(self, device: torch.device) -> Tensor:
        return torch.arange(self.config.bits - 1, -1, -1, device=device).view(1, -1, 1, 1)


ImageTokenizer = VQ | Magvit | UniTokenizer
ImageTokenizerConfig = VQConfig | MagvitConfig | UniConfig
