"""The image tokenizer's objective: an encoder that reproduces a fixed dictionary of squares, and a decoder for its codes.

With a straight-through gradient the codes change during training, some become unused, and a code depends on its neighbours.
Here the codebook is fitted first: k-means over the principal components of training squares (``fit_squares``), where Euclidean
distance equals pixel error. The encoder learns those components, and the decoder learns pixels from the fixed codes.
``Rounded`` trains both together instead.

Shapes: B images · H W pixels · h w codes · N squares · d latent width · V codes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from unmask.step import Loss
from unmask.tokens.vq import VQ


@dataclass(frozen=True, kw_only=True)
class Squares:
    """Targets of the tokenizer: ``mean [768]``, orthonormal ``basis [768, d]`` and ``codebook [V, d]`` for squares of 16 x 16 x 3."""

    mean: Tensor
    basis: Tensor
    codebook: Tensor

    def to(self, device: torch.device) -> Squares:
        return Squares(mean=self.mean.to(device), basis=self.basis.to(device), codebook=self.codebook.to(device))

    def latents(self, squares_N: Tensor) -> Tensor:
        """Squares in 0..1, [N, 3 * side * side] (channel first) -> [N, d]."""
        return (squares_N - self.mean) @ self.basis

    def codes(self, image_B3HW: Tensor, side: int = 16) -> Tensor:
        """Pixels in 0..1 -> codes [B, h, w]."""
        batch, _, high, wide = image_B3HW.shape
        squares = torch.nn.functional.unfold(image_B3HW, side, stride=side).transpose(1, 2).reshape(-1, 3 * side * side)
        return assign(self.latents(squares), self.codebook)[0].reshape(batch, high // side, wide // side)


def fit_squares(squares_ND: Tensor, counts_N: Tensor, *, width: int, size: int, rng: torch.Generator) -> Squares:
    """Principal components of distinct squares, then k-means with weight sqrt(n) for a square that occurs n times."""
    mean = squares_ND.mean(0)
    some = squares_ND[torch.randperm(len(squares_ND), generator=rng)[:8000]] - mean
    basis = torch.linalg.svd(some, full_matrices=False)[2][:width].T.contiguous()
    repeat = counts_N.clamp(max=400).float().sqrt().long().clamp(min=1)
    points = ((squares_ND - mean) @ basis).repeat_interleave(repeat, dim=0)
    return Squares(mean=mean, basis=basis, codebook=kmeans(points, size, 12, rng))


@dataclass(frozen=True, kw_only=True)
class Distilled:
    """batch = (pixels [B, 3, H, W], codes [B, h, w], squares [N, 3, side, side], latents [N, d]).

    Encoder: squared error of the latents. Decoder: squared error of the pixels, plus ``absolute`` times the absolute error.
    """

    absolute: float = 0.05

    def __call__(self, model: VQ, batch: tuple[Tensor, Tensor, Tensor, Tensor], rng: torch.Generator) -> Loss:
        pixels, codes, squares, latents = batch
        dtype = next(model.parameters()).dtype
        # Contiguous: in channels-last order the backward pass of group norm was measured 40 times slower on a CPU.
        z = model.quantize.embedding(codes).permute(0, 3, 1, 2).contiguous().detach()
        difference = model.from_latents(z).float() - pixels.contiguous()
        mse = difference.square().mean()
        encoded = model.latents(squares.to(dtype)).float().flatten(1)
        # In the basis of the squares, this is the pixel error of the encoder's latents.
        error = (encoded - latents).square().sum(1).mean() / squares[0].numel()
        total = mse + self.absolute * difference.abs().mean() + error
        return Loss(
            total=total * 10, terms={"mse": mse.detach(), "latents": error.detach()}, counts={"mse": codes.numel()}
        )


@dataclass(frozen=True, kw_only=True)
class Taught:
    """batch = (pictures uint8 [B, H, W, 3],): ``distilled`` with what the teacher makes of them, on their device.

    ``squares``: how many of their squares the encoder learns from. Half are drawn from all squares, half from those of more than one
    colour: background is most of a picture, but few distinct squares.
    """

    teacher: Squares
    squares: int
    side: int = 16
    distilled: Distilled = Distilled()

    def __call__(self, model: VQ, batch: tuple[Tensor], rng: torch.Generator) -> Loss:
        pixels = (batch[0].float() / 255).permute(0, 3, 1, 2).contiguous()
        teacher = self.teacher.to(pixels.device)
        every_ND = torch.nn.functional.unfold(pixels, self.side, stride=self.side).transpose(1, 2).flatten(0, 1)
        some_ND = self._some(every_ND, rng)
        squares = some_ND.reshape(-1, 3, self.side, self.side)
        return self.distilled(model, (pixels, teacher.codes(pixels, self.side), squares, teacher.latents(some_ND)), rng)

    def _some(self, every_ND: Tensor, rng: torch.Generator) -> Tensor:
        """Without reading anything back from the device: random numbers decide, those of squares of more than one colour are higher."""
        half = min(self.squares // 2, len(every_ND))
        anywhere, busy = (torch.rand(len(every_ND), generator=rng).to(every_ND.device) for _ in range(2))
        busy = busy + (every_ND.unflatten(1, (3, -1)).std(-1).sum(1) > 0)
        return every_ND[torch.cat([anywhere.topk(half).indices, busy.topk(half).indices])]


@dataclass(frozen=True, kw_only=True)
class Rounded:
    """batch = (pictures uint8 [B, H, W, 3],): encoder and decoder trained together on a codebook that is a fixed grid (``grid``).

    Finite scalar quantisation (Mentzer et al. 2023, arXiv 2309.15505): the gradient passes the choice of the nearest code unchanged.
    Latents beyond the grid are pulled back by ``outside`` times their squared distance, in place of a bounding function, so that
    ``VQ.encode`` needs none. ``absolute``: weight of the absolute error of pixels beside the squared one.
    """

    absolute: float = 0.1
    outside: float = 0.1

    def __call__(self, model: VQ, batch: tuple[Tensor], rng: torch.Generator) -> Loss:
        pixels = (batch[0].float() / 255).permute(0, 3, 1, 2).contiguous()
        dtype = next(model.parameters()).dtype
        z_Bdhw = model.latents(pixels.to(dtype)).float()
        flat_ND = z_Bdhw.permute(0, 2, 3, 1).reshape(-1, z_Bdhw.shape[1])
        table = model.quantize.embedding.weight.detach().float()
        codes_N = assign(flat_ND.detach(), table)[0]
        near_ND = flat_ND + (table[codes_N] - flat_ND).detach()
        near = near_ND.reshape(len(pixels), *z_Bdhw.shape[2:], -1).permute(0, 3, 1, 2).contiguous()
        difference = model.from_latents(near.to(dtype)).float() - pixels
        mse = difference.square().mean()
        beyond = (flat_ND.abs() - table.max()).clamp(min=0).square().mean()
        total = mse + self.absolute * difference.abs().mean() + self.outside * beyond
        used = torch.tensor(float(len(codes_N.unique())))
        terms = {"mse": mse.detach(), "beyond": beyond.detach(), "codes": used}
        return Loss(total=total * 10, terms=terms, counts={"mse": len(codes_N)})


def grid(levels: tuple[int, ...]) -> Tensor:
    """All points of a grid in [-1, 1] with so many values along each axis: float32 [product of levels, len(levels)]."""
    return torch.cartesian_prod(*(torch.linspace(-1, 1, n) for n in levels))


def kmeans(points_ND: Tensor, size: int, rounds: int, rng: torch.Generator) -> Tensor:
    """Lloyd's algorithm; empty clusters move to points with a large error: float32 [size, D]. Deterministic in ``rng``.

    ValueError for fewer points than centres.
    """
    if len(points_ND) < size:
        raise ValueError(f"k-means has {len(points_ND)} points for {size} centres; use more images or fewer codes")
    order = torch.randperm(len(points_ND), generator=rng)
    centres = points_ND[order[:size]].clone()
    for _ in range(rounds):
        nearest, error = assign(points_ND, centres)
        counts = torch.bincount(nearest, minlength=size)
        centres = torch.zeros_like(centres).index_add_(0, nearest, points_ND) / counts.clamp(min=1)[:, None]
        empty = (counts == 0).nonzero().flatten()
        # Spread over many points with a large error: the worst ones are often copies of one another.
        worst = error.topk(min(len(error), 20 * len(empty) + 1)).indices
        pick = worst[torch.randperm(len(worst), generator=rng)[: len(empty)]]
        centres[empty[: len(pick)]] = points_ND[pick]
    return centres


def assign(points_ND: Tensor, centres_VD: Tensor) -> tuple[Tensor, Tensor]:
    """Nearest centre of each point and its squared distance, in chunks."""
    norms = centres_VD.square().sum(1)
    index, error = [], []
    for chunk in points_ND.split(8192):
        best = torch.addmm(norms, chunk, centres_VD.T, alpha=-2).min(1)
        index.append(best.indices)
        error.append((best.values + chunk.square().sum(1)).clamp(min=0))
    return torch.cat(index), torch.cat(error)
