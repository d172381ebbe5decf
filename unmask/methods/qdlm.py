"""Quantised masked models: GPTQ, AWQ, and rounding in rotated or rescaled bases, calibrated on masked sequences.

Paper: Lin et al., "Quantization Meets dLLMs: A Systematic Study of Post-training Quantization for Diffusion LLMs", arXiv 2508.14896.
The methods: GPTQ (arXiv 2210.17323), AWQ (2306.00978), SmoothQuant (2211.10438), QuaRot (2404.00456), DuQuant (2406.01721).

Equations: a layer computes W x. With H = 2 / n sum x x^T, the columns whose H_jj is 0 set to zero, H increased by 0.01 mean(H_jj), and
U the upper Cholesky factor of H^-1, GPTQ rounds column after column: q_j = grid(w_j), e = (w_j - q_j) / U_jj, w_k -= e U_jk for k > j.
AWQ rounds W s and divides by s = mean|x|^r, normalised by sqrt(max s min s), with the r of 0, 0.05 .. 0.95 that changes the output least;
then it clips groups of W s. SmoothQuant: s = sqrt(max|x| / max|w|) per input channel. QuaRot: x and W times a Hadamard matrix, then GPTQ
with searched ranges. DuQuant: x and W times block rotations that spread the largest entry of x over its block, a reordering that deals
the largest channels over the blocks in a zig-zag, and rotations again; then rounding with clipped ranges.

What changes: the matrices of the transformer, never embeddings and heads. All of it keeps the layer's function up to rounding, so what
was rounded in another basis is a matrix in the layer's own basis again when it is read.

What it costs: nothing when the model is used, which has the float matrices in memory. Calibration runs the model on some sequences, once
for every block, so that each block is measured on what the quantised blocks before it give.

Not as in the released code: calibration sequences are masked as in use (there: clean text only). GPTQ covers q, k and v of every layout
(there: not LLaDA's, by a mistake in names). DuQuant turns the channel of the largest entry (``by_row``: its row modulo the block, as
there). The embedding's mean is not subtracted, which RMSNorm does not ignore.

Shapes: O out, I in, N inputs, G groups.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import gcd
from typing import Protocol

import torch
from torch import Tensor, nn

from unmask.checkpoints.calibration import calibrate, input_rows
from unmask.checkpoints.grids import Asymmetric, Grid, Levels, Shrunk, Signed, Tight
from unmask.checkpoints.packed import Basis, Columns, Hadamard, Quantised, Rotations, Unchanged, in_order
from unmask.methods.card import Card
from unmask.sequence import Batch

Layers = Callable[[str], bool]
_LEAST = 1e-5
_UNCLIPPED = ("q", "k")  # the last part of the names of the layers whose groups AWQ does not clip


class Method(Protocol):
    """How a layer is quantised. ``measured``: its statistics of every chosen layer; {} where it reads weights alone ·
    ``quantised(name, weight [O, I], stats)``: the matrix with indices and scales · ``fallback``: for layers without statistics.
    """

    @property
    def fallback(self) -> Rounding: ...
    def measured(self, net: nn.Module, batches: Iterable[Batch], where: Layers) -> dict[str, Tensor]: ...
    def quantised(self, name: str, weight: Tensor, stats: Tensor | None) -> Quantised: ...


def groups_of(columns: int, group: int) -> int:
    """Columns that share a scale: the largest number that divides both; 0 asks for the whole row."""
    return gcd(columns, group) if group else columns


def _packed(ints_OI: Tensor, levels: list[Levels], group_of: Tensor, grid: Grid, basis: Basis) -> Quantised:
    """Indices are stored from 0 on. ``levels``: of each group."""
    scale_OG, zero_OG = (torch.cat([getattr(one, name) for one in levels], 1) for name in ("scale", "zero"))
    least = levels[0].least
    return Quantised(
        ints=(ints_OI - least).to(torch.uint8),
        scale=scale_OG,
        zero=zero_OG - least,
        group_of=group_of,
        bits=grid.bits,
        basis=basis,
    )


@dataclass(frozen=True, kw_only=True)
class Rounding:
    """Every weight to the nearest level of its group."""

    grid: Grid
    group: int = 128

    @property
    def fallback(self) -> Rounding:
        return self

    def measured(self, net: nn.Module, batches: Iterable[Batch], where: Layers) -> dict[str, Tensor]:
        return {}

    def quantised(self, name: str, weight: Tensor, stats: Tensor | None) -> Quantised:
        return self.rounded(weight, Unchanged())

    def rounded(self, weight_OI: Tensor, basis: Basis) -> Quantised:
        """``weight``: in ``basis``."""
        weight_OI = weight_OI.float()
        columns, group = weight_OI.shape[1], groups_of(weight_OI.shape[1], self.group)
        levels = [self.grid(part) for part in weight_OI.split(group, 1)]
        ints = torch.cat([one.ints(p) for one, p in zip(levels, weight_OI.split(group, 1), strict=True)], 1)
        return _packed(ints, levels, in_order(columns, columns // group), self.grid, basis)


@dataclass(frozen=True, kw_only=True)
class GPTQ:
    """``group``: columns that share a scale, 0: the whole row · ``block``: columns after which the rest of the row is corrected at once;
    a group that begins inside a block gets its grid from weights that the block has not corrected yet · ``by_size``: columns of large
    inputs first · ``beforehand``: all grids from the original weights.
    """

    grid: Grid
    group: int = 128
    block: int = 128
    damp: float = 0.01
    by_size: bool = False
    beforehand: bool = False

    @property
    def fallback(self) -> Rounding:
        return Rounding(grid=self.grid, group=self.group)

    def measured(self, net: nn.Module, batches: Iterable[Batch], where: Layers) -> dict[str, Tensor]:
        return calibrate(net, batches, where)

    def quantised(self, name: str, weight: Tensor, stats: Tensor | None) -> Quantised:
        return self.corrected(weight, _given(stats, name), Unchanged())

    def corrected(self, weight_OI: Tensor, h_II: Tensor, basis: Basis) -> Quantised:
        """``weight``, ``h``: in ``basis``. The scale of ``h`` has no effect."""
        weight_OI, h_II = weight_OI.float().clone(), h_II.float().clone()
        columns = weight_OI.shape[1]
        whole = self.grid(weight_OI) if not self.group else None  # before silent columns are zeroed
        silent = h_II.diagonal() == 0
        h_II.diagonal()[silent] = 1.0
        weight_OI[:, silent] = 0.0
        group = groups_of(columns, self.group)
        levels = dict[int, Levels]() if whole is None else {0: whole}
        if self.beforehand:
            levels = {g: self.grid(part) for g, part in enumerate(weight_OI.split(group, 1))}
        order = h_II.diagonal().argsort(descending=True) if self.by_size else torch.arange(columns, device=h_II.device)
        group_of = torch.arange(columns, device=order.device) // group  # of each column in order
        group_of = order // group if self.beforehand else group_of
        upper = self._factor(h_II[order][:, order])
        ints = self._rounded(weight_OI[:, order], upper, group_of, levels, group)
        back = order.argsort()
        found = [levels[g] for g in range(columns // group)]
        return _packed(ints[:, back], found, group_of[back].cpu(), self.grid, basis)

    def _factor(self, h_II: Tensor) -> Tensor:
        """The upper Cholesky factor of the inverse of the damped statistics."""
        h_II.diagonal().add_(self.damp * h_II.diagonal().mean())
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(h_II))
        return torch.linalg.cholesky(inverse, upper=True)

    def _rounded(
        self, left_OI: Tensor, upper_II: Tensor, group_of: Tensor, levels: dict[int, Levels], group: int
    ) -> Tensor:
        """The index of every weight. Fills ``levels`` with the grids of groups that it reaches."""
        columns, numbers = left_OI.shape[1], group_of.tolist()
        ints_OI = torch.empty_like(left_OI)
        for first in range(0, columns, self.block):
            last = min(first + self.block, columns)
            inner, errors = left_OI[:, first:last].clone(), torch.zeros_like(left_OI[:, first:last])
            for j in range(first, last):
                if numbers[j] not in levels:
                    levels[numbers[j]] = self.grid(left_OI[:, j : j + group])
                level, column = levels[numbers[j]], inner[:, j - first, None]
                ints_OI[:, j, None] = level.ints(column)
                error = (column - level.values(column)) / upper_II[j, j]
                inner[:, j - first :] -= error * upper_II[j, j:last]
                errors[:, j - first, None] = error
            left_OI[:, last:] -= errors @ upper_II[first:last, last:]
        return ints_OI


@dataclass(frozen=True, kw_only=True)
class AWQ:
    """``ratios``: exponents that are tried · ``shrinks``: limits of a group that are tried, in steps of 1/20 · ``tokens``: inputs that the
    clipping reads, evenly spaced.
    """

    grid: Grid
    group: int = 128
    ratios: int = 20
    shrinks: int = 10
    tokens: int = 512

    @property
    def fallback(self) -> Rounding:
        return Rounding(grid=self.grid, group=self.group)

    def measured(self, net: nn.Module, batches: Iterable[Batch], where: Layers) -> dict[str, Tensor]:
        return input_rows(net, batches, where, most=4 * self.tokens)

    def quantised(self, name: str, weight: Tensor, stats: Tensor | None) -> Quantised:
        inputs_NI, weight = _given(stats, name), weight.float()
        basis, _ = self.scaled(weight, inputs_NI)
        changed = basis.weights(weight)
        if name.rpartition(".")[2] not in _UNCLIPPED:
            changed = self._clipped(changed, self.limits(changed, basis.inputs(inputs_NI)))
        return self.fallback.rounded(changed, basis)

    def scaled(self, weight_OI: Tensor, inputs_NI: Tensor) -> tuple[Columns, Tensor]:
        """The channel scales with the least change of the output, and the change for every exponent [ratios]."""
        size_I, right = inputs_NI.abs().mean(0), inputs_NI @ weight_OI.T
        tried, losses = [], []
        for i in range(self.ratios):
            scale_I = size_I.pow(i / self.ratios).clamp(min=1e-4)
            basis = Columns(scale=scale_I / (scale_I.max() * scale_I.min()).sqrt())
            found = self.fallback.rounded(basis.weights(weight_OI), basis).values()
            tried.append(basis)
            losses.append((inputs_NI @ found.T - right).square().mean())
        return tried[int(torch.stack(losses).argmin())], torch.stack(losses)

    def limits(self, weight_OI: Tensor, inputs_NI: Tensor) -> Tensor:
        """The magnitude at which every group is clipped, [O, G, 1]: the one with the least change of the group's part of the output."""
        group = groups_of(weight_OI.shape[1], self.group)
        x_NGI = inputs_NI[:: max(1, len(inputs_NI) // self.tokens)].unflatten(1, (-1, group))
        found = [self._limits(rows.unflatten(1, (-1, group)), x_NGI) for rows in weight_OI.split(64)]
        return torch.cat(found)

    def _limits(self, weight_OGI: Tensor, x_NGI: Tensor) -> Tensor:
        largest = weight_OGI.abs().amax(-1, keepdim=True)
        right = torch.einsum("ngi,ogi->ngo", x_NGI, weight_OGI)
        best, least = largest, torch.full_like(largest, torch.inf)
        for i in range(self.shrinks):
            limit = largest * (1 - i / 20)
            cut = torch.minimum(torch.maximum(weight_OGI, -limit), limit)
            got = torch.einsum("ngi,ogi->ngo", x_NGI, self.grid(cut).values(cut))
            error = (got - right).square().mean(0).T[..., None]
            best, least = torch.where(error < least, limit, best), torch.minimum(error, least)
        return best

    def _clipped(self, weight_OI: Tensor, limits_OG1: Tensor) -> Tensor:
        parts = weight_OI.unflatten(1, (limits_OG1.shape[1], -1))
        return torch.minimum(torch.maximum(parts, -limits_OG1), limits_OG1).flatten(1)


@dataclass(frozen=True, kw_only=True)
class SmoothQuant:
    """Rounding after part of the range of the inputs has moved to the weights. ``rounding``: of the weights."""

    rounding: Rounding

    @property
    def fallback(self) -> Rounding:
        return self.rounding

    def measured(self, net: nn.Module, batches: Iterable[Batch], where: Layers) -> dict[str, Tensor]:
        return input_rows(net, batches, where, most=2048)

    def quantised(self, name: str, weight: Tensor, stats: Tensor | None) -> Quantised:
        basis = Columns(scale=smoothing(weight.float(), _given(stats, name).abs().amax(0)))
        return self.rounding.rounded(basis.weights(weight.float()), basis)


def smoothing(weight_OI: Tensor, largest_I: Tensor, share: float = 0.5) -> Tensor:
    """max|x|^share / max|w|^(1 - share) of every input channel, [I], at least 1e-5. ``largest``: max|x|."""
    weights_I = weight_OI.abs().amax(0).clamp(min=_LEAST)
    return (largest_I.pow(share) / weights_I.pow(1 - share)).clamp(min=_LEAST)


@dataclass(frozen=True, kw_only=True)
class QuaRot:
    """GPTQ after a Hadamard rotation of the largest power of two that divides the width."""

    gptq: GPTQ

    @property
    def fallback(self) -> Rounding:
        return self.gptq.fallback

    def measured(self, net: nn.Module, batches: Iterable[Batch], where: Layers) -> dict[str, Tensor]:
        return calibrate(net, batches, where)

    def quantised(self, name: str, weight: Tensor, stats: Tensor | None) -> Quantised:
        columns = weight.shape[1]
        basis = Hadamard(size=columns & -columns)
        h_II = basis.inputs(basis.inputs(_given(stats, name).float()).T)
        return self.gptq.corrected(basis.weights(weight.float()), h_II, basis)


@dataclass(frozen=True, kw_only=True)
class DuQuant:
    """Rounding after two block rotations with a zig-zag reordering between them. ``block``: channels that a rotation mixes · ``steps``:
    greedy rotations that are tried · ``seed``: of the random part of the rotation · ``by_row``: as of ``rotated``.
    """

    rounding: Rounding
    block: int = 128
    steps: int = 256
    seed: int = 0
    by_row: bool = False

    @property
    def fallback(self) -> Rounding:
        return self.rounding

    def measured(self, net: nn.Module, batches: Iterable[Batch], where: Layers) -> dict[str, Tensor]:
        return input_rows(net, batches, where, most=2048)

    def quantised(self, name: str, weight: Tensor, stats: Tensor | None) -> Quantised:
        inputs_NI = _given(stats, name)
        size = groups_of(weight.shape[1], self.block)
        basis = self.basis(inputs_NI, spread_rotation(size, self.seed).to(inputs_NI))
        return self.rounding.rounded(basis.weights(weight.float()), basis)

    def basis(self, inputs_NI: Tensor, rotation: Tensor) -> Rotations:
        """Rotations and reordering for these inputs. ``rotation [block, block]``: the one that is applied in every greedy step."""
        first, _ = rotated(inputs_NI, rotation, self.steps, by_row=self.by_row)
        once = Rotations(rotations=first[None], orders=torch.zeros(0, inputs_NI.shape[1]).long()).inputs(inputs_NI)
        order = zigzag(once, len(rotation))
        second, _ = rotated(once[:, order], rotation, self.steps, by_row=self.by_row)
        return Rotations(rotations=torch.stack([first, second]), orders=order[None])


def base_rotation(size: int) -> Tensor:
    """DuQuant's matrix, [size, size] float64: Helmert's (a product of size - 1 plane rotations) with the first and last axes swapped."""
    whole = torch.zeros(size, size, dtype=torch.float64)
    for k in range(1, size):
        whole[k - 1, :k], whole[k - 1, k] = (k * (k + 1)) ** -0.5, -k * (k * (k + 1)) ** -0.5
    whole[-1] = size**-0.5
    return swapped(whole, size - 1)


def spread_rotation(size: int, seed: int) -> Tensor:
    """``base_rotation`` times a random rotation of all axes but the first, [size, size] float32."""
    drawn = torch.randn(size - 1, size - 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (base_rotation(size) @ torch.block_diag(torch.ones(1, 1).double(), torch.linalg.qr(drawn).Q)).float()


def swapped(matrix: Tensor, axis: int) -> Tensor:
    """A matrix with axes 0 and ``axis`` swapped."""
    order = torch.arange(len(matrix))
    order[0], order[axis] = axis, 0
    return matrix[order][:, order]


def rotated(inputs_NI: Tensor, rotation: Tensor, steps: int, *, by_row: bool = False) -> tuple[Tensor, list[int]]:
    """The product of greedy rotations [block, block] with the least max - min of the rotated inputs, and the axes that were turned.

    Each step turns the axis of the largest magnitude to the front and rotates. ``by_row``: the axis is that entry's row, counted in
    blocks, modulo the block (the released code).
    """
    size = len(rotation)
    x, product = inputs_NI.reshape(-1, size), torch.eye(size).to(inputs_NI)
    best, ranges, rows, taken = product, [], list[int](), 0
    for _ in range(steps):
        row, axis = divmod(int(x.abs().argmax()), size)
        step = swapped(rotation, row % size if by_row else axis)
        x, product = x @ step, product @ step
        rows.append(row if by_row else axis)
        ranges.append(float(x.max() - x.min()))
        if ranges[-1] <= min(ranges[:-1], default=torch.inf) and ranges[-1] not in ranges[:-1]:
            best, taken = product, len(rows)
    return best, rows[:taken]


def zigzag(inputs_NI: Tensor, size: int) -> Tensor:
    """Channels by falling magnitude, dealt over the blocks forth and back, [I]: the channel that comes to each place."""
    falling = inputs_NI.abs().amax(0).argsort(descending=True)
    rounds = falling.view(size, -1).clone()
    rounds[1::2] = rounds[1::2].flip(1)
    return rounds.T.reshape(-1)


def _given(stats: Tensor | None, name: str) -> Tensor:
    if stats is None:
        raise ValueError(f"{name} has no calibration statistics; calibrate it, or round with --method rtn")
    return stats


def methods(bits: int, group: int = 128) -> dict[str, Method]:
    """The methods by the names of ``unmask quantise --method``, with their usual settings."""
    whole, searched = Asymmetric(bits=bits), Shrunk(grid=Signed(bits=bits))
    return {
        "rtn": Rounding(grid=whole, group=group),
        "gptq": GPTQ(grid=whole, group=group),
        "awq": AWQ(grid=Tight(bits=bits), group=group),
        "smooth": SmoothQuant(rounding=Rounding(grid=whole, group=group)),
        "quarot": QuaRot(gptq=GPTQ(grid=searched, group=group)),
        "duquant": DuQuant(rounding=Rounding(grid=Tight(bits=bits, clip=0.9 if bits < 8 else 1.0), group=group)),
    }


CARD = Card(
    title="Quantization Meets dLLMs: A Systematic Study of Post-training Quantization for Diffusion LLMs",
    paper="arXiv 2508.14896",
    year=2025,
    changes="weights: 2 to 8 bits by GPTQ, AWQ or rounding in another basis, calibrated on masked sequences",
    claim="4-bit weights cost little, at 3 bits mathematics and code break first; rotations keep 4-bit weights and activations usable.",
    status="tiny-checked",
    figure="mini at 2 bits, 5 calibration draws: loss of masked words .055 [.006, .104] and codes .071 [.012, .131] nats lower with masked "
    "than with clean calibration; right answers fall by 10.8 points by rounding, 10.6 with clean, 6.3 with masked calibration (difference "
    "of the last two 4.4 [-4.5, 13.3], of questions alone 8.8 [5.7, 11.8]); rounding to 4 bits costs nothing",
    command="unmask quantise MODEL OUT --method gptq",
)
