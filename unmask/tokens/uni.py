"""Pictures of LLaDA2.0-Uni (arXiv 2604.20796): SigLIP-VQ codes of what is read, and a flow decoder for the codes of what is drawn.

Public idea: ``UniTokenizer(config)``, a ``protocols.Codec`` whose sides differ: a code is 16 pixels of a picture that is encoded, and 32
of one that is decoded. Decoding: each code becomes 2 x 2 features, the flow turns noise into latents, Flux's decoder makes pixels.

Shapes: B pictures · h w codes · C channels · H W latents (4 h, 4 w) · F width of the features.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from unmask.rng import generator, key
from unmask.tokens.flux_vae import FluxConfig, FluxDecoder
from unmask.tokens.siglip_vq import CosineCodebook, SiglipConfig, SiglipEncoder
from unmask.tokens.z_image import ZImage, ZImageConfig

_SHIFT = 6.0  # of the times of the full decoder
_UPSAMPLED, _LATENTS = 2, 4  # features and latents along a side of one code


@dataclass(frozen=True, kw_only=True)
class FlowSchedule:
    """The full decoder: ``points`` in time, one evaluation less, with guidance; ``x += (t' - t) v``. ``guidance`` 0 is off."""

    points: int = 50
    guidance: float = 1.0

    def times(self) -> Tensor:
        """[points] float32, from 0 = noise to 1 = picture, most of them near the noise."""
        u = torch.linspace(0, 1, self.points)
        return u / (u + _SHIFT - _SHIFT * u)

    def latents(self, flow: ZImage, noise_BCHW: Tensor, features_BTF: Tensor) -> Iterator[Tensor]:
        """The latents after every evaluation."""
        x, times = noise_BCHW.float(), self.times()
        for now, then in zip(times[:-1], times[1:], strict=True):
            x = x + (then - now).to(x.device) * self.velocity(flow, x, now, features_BTF)
            yield x

    def velocity(self, flow: ZImage, x_BCHW: Tensor, now: Tensor, features_BTF: Tensor) -> Tensor:
        """c + guidance (c - n), where n has features of zeros, shrunk to at most the norm of c over each picture."""
        rows = len(x_BCHW)
        if not self.guidance:
            return flow(x_BCHW, now.to(x_BCHW.device).expand(rows), features_BTF)
        both = torch.cat([features_BTF, torch.zeros_like(features_BTF)])
        c, n = flow(x_BCHW.repeat(2, 1, 1, 1), now.to(x_BCHW.device).expand(2 * rows), both).chunk(2)
        v = c + self.guidance * (c - n)
        norm, most = (t.flatten(1).norm(dim=1).view(-1, 1, 1, 1) for t in (v, c))
        return torch.where(norm > most, v * (most / norm), v)


@dataclass(frozen=True, kw_only=True)
class TurboSchedule:
    """The distilled decoder: ``steps`` evaluations at equal times, without guidance; each jumps to the picture and back with new noise."""

    steps: int = 8

    def times(self) -> Tensor:
        """[steps + 1] float64."""
        return torch.linspace(0, 1, self.steps + 1, dtype=torch.float64)

    def latents(
        self, flow: ZImage, noise_BCHW: Tensor, features_BTF: Tensor, fresh: Sequence[Tensor]
    ) -> Iterator[Tensor]:
        """The latents after every evaluation. ``fresh``: noise of each step but the last."""
        x, times = noise_BCHW.double(), self.times()
        for number, (now, then) in enumerate(zip(times[:-1], times[1:], strict=True)):
            v = flow(x.float(), now.float().to(x.device).expand(len(x)), features_BTF)
            picture = x + (1 - now).to(x.device) * v.double()
            last = number == self.steps - 1
            x = picture if last else then * picture + (1 - then) * fresh[number].to(x.device).double()
            yield x


@dataclass(frozen=True, kw_only=True)
class UniConfig:
    """Shapes of the image tokenizer and the decoder; the defaults are the released ones. ``schedule``: of the decoder that is used."""

    encoder: SiglipConfig = field(default_factory=SiglipConfig)
    flow: ZImageConfig = field(default_factory=ZImageConfig)
    vae: FluxConfig = field(default_factory=FluxConfig)
    schedule: FlowSchedule | TurboSchedule = FlowSchedule()

    @property
    def factor(self) -> int:
        """Side of one code in a decoded picture, in pixels."""
        return _LATENTS * self.vae.factor

    @property
    def num_vq_embeddings(self) -> int:
        return self.encoder.codes

    @property
    def block_out_channels(self) -> tuple[int, ...]:
        return self.vae.block_out_channels

    def build(self) -> UniTokenizer:
        return UniTokenizer(self)


class Prior(nn.Module):
    """Codes -> features: a table and two layers, [B, h, w] -> [B, 4 h w, F]. Each code is repeated 2 x 2."""

    def __init__(self, codes: int, width: int) -> None:
        super().__init__()
        self.prior_token_embedding = nn.Embedding(codes, width)
        self.prior_projector = Projector(width)

    def forward(self, codes_Bhw: Tensor) -> Tensor:
        return self.prior_projector.net(self.prior_token_embedding(upsampled(codes_Bhw).flatten(1)))


class Projector(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(Projection(width), nn.SiLU(), nn.Linear(width, width))


class Projection(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)


def upsampled(codes_Bhw: Tensor) -> Tensor:
    """Every code twice in both directions."""
    return codes_Bhw.repeat_interleave(_UPSAMPLED, 1).repeat_interleave(_UPSAMPLED, 2)


class UniDecoder(nn.Module):
    def __init__(self, config: UniConfig) -> None:
        super().__init__()
        self.prior = Prior(config.encoder.codes, config.flow.features)
        self.flow = ZImage(config.flow)
        self.vae = FluxDecoder(config.vae)


class UniTokenizer(nn.Module):
    """Image <-> codes. ``size`` is the number of codes."""

    def __init__(self, config: UniConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = SiglipEncoder(config.encoder)
        self.quant_conv = nn.Conv2d(config.encoder.width, config.encoder.latent, 1)
        self.quantize = CosineCodebook(config.encoder.codes, config.encoder.latent)
        self.decoder = UniDecoder(config)

    @property
    def size(self) -> int:
        return self.config.num_vq_embeddings

    def codes_of(self, z_Bdhw: Tensor) -> Tensor:
        """Latents -> codes, long [B, h, w]."""
        flat = z_Bdhw.permute(0, 2, 3, 1)
        return self.quantize.nearest(flat.flatten(0, 2)).view(flat.shape[:3])

    def encode(self, image_B3HW: Tensor) -> Tensor:
        """Pixels in [0, 1], [B, 3, H, W] -> codes, long [B, H / 16, W / 16]. ValueError for a side that is not a multiple of the patch."""
        patch, (high, wide) = self.config.encoder.patch, image_B3HW.shape[-2:]
        if high % patch or wide % patch:
            raise ValueError(f"image of {wide}x{high} px: both sides must be multiples of {patch} px")
        image = image_B3HW.to(self.quantize.embedding.weight.device)
        return self.codes_of(self.quant_conv(self.encoder((image - 0.5) / 0.5)).float())

    def noise(self, codes_hw: Tensor, number: int) -> Tensor:
        """Noise of a picture, [C, 4 h, 4 w], that its codes decide: equal codes give equal pictures. ``number``: of the draw."""
        high, wide = (_LATENTS * side for side in codes_hw.shape)
        rng = generator(key("flow", number, *codes_hw.flatten().tolist()))
        return torch.randn(self.config.flow.channels, high, wide, generator=rng)

    def latents(self, codes_Bhw: Tensor) -> Tensor:
        """Codes -> latents [B, C, 4 h, 4 w] by the decoder's schedule."""
        features, schedule = self.decoder.prior(codes_Bhw), self.config.schedule
        each = [[self.noise(codes, n) for codes in codes_Bhw] for n in range(_draws(schedule))]
        noises = [torch.stack(some).to(features.device) for some in each]
        if isinstance(schedule, TurboSchedule):
            steps = schedule.latents(self.decoder.flow, noises[0], features, noises[1:])
        else:
            steps = schedule.latents(self.decoder.flow, noises[0], features)
        *_, last = steps
        return last.float()

    def decode(self, codes_Bhw: Tensor) -> Tensor:
        """Codes, long [B, h, w] -> pixels in [0, 1], [B, 3, 32 h, 32 w]. ValueError for a code that does not exist."""
        codes_Bhw = codes_Bhw.to(self.quantize.embedding.weight.device)
        if codes_Bhw.numel() and not 0 <= int(codes_Bhw.min()) <= int(codes_Bhw.max()) < self.size:
            raise ValueError(
                f"codes {int(codes_Bhw.min())} to {int(codes_Bhw.max())} do not exist; the tokenizer has codes 0 to {self.size - 1}"
            )
        weight = self.decoder.vae.conv_in.weight
        return ((self.decoder.vae(self.latents(codes_Bhw).to(weight.dtype)).float() + 1) / 2).clamp(0, 1)


def _draws(schedule: FlowSchedule | TurboSchedule) -> int:
    return schedule.steps if isinstance(schedule, TurboSchedule) else 1
