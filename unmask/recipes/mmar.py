"""The demonstration of MMAR: pictures of one bar, drawn patch by patch as codes and as continuous values.

    unmask methods run mmar

A picture has a horizontal or vertical bar whose offset is any real number, so that its edges are grey. One trunk reads patches of 4 x 4
pixels as values; heads with equal updates are a softmax over 64 codes of a k-means dictionary, and diffusion heads that predict v and eps.
An exact reader compares each drawn picture with the nearest bar. The diffusion heads draw a second time with outputs in bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from unmask.corruption.gaussian import EPSILON, VELOCITY, Target, cosine
from unmask.evaluation.demonstration import Demonstration, Findings, Media, Table, Work
from unmask.evaluation.metrics import Figure, over_seeds
from unmask.methods.mmar import ContinuousTokens, MaskedOrder, masked_at_random
from unmask.models.diffusion_head import DiffusionHead
from unmask.objectives.diffusion import DiffusionLoss
from unmask.protocols import TokenSampler
from unmask.recipe import Optim, Recipe, Training
from unmask.rng import generator, rows, seeded
from unmask.sampling.continuous import ByDiffusion
from unmask.sampling.sampler import Sampler
from unmask.sampling.selection import RandomOrder
from unmask.sequence import Batch, Kind, Sequence, Span, collate
from unmask.step import Loss, Prediction, Progress, Proposal, Reuse, Scored
from unmask.tasks.parts import to_image
from unmask.tokens.pictures import save_image

VALUE = 5  # the kind of a patch
SIDE, PATCH, CODES, WIDTH = 16, 4, 64, 64
TOKENS, CHANNELS, BAR = (SIDE // PATCH) ** 2, PATCH**2, 3.0
LEVELS = cosine()
ITERATIONS, NOISE_STEPS = 8, 10
_BATCH, _STEPS, _TESTED = 64, 3000, 96
ARMS: dict[str, Target | None] = {"codes": None, "v": VELOCITY, "eps": EPSILON}
Head = Callable[[Tensor, Tensor, Tensor], Tensor]


def bars(vertical: Tensor, offset: Tensor) -> Tensor:
    """Pictures [B, 16, 16] in 0..1 of bars three pixels wide that begin at ``offset [B]``; ``vertical [B]`` bool."""
    edge = torch.arange(SIDE)
    cover = (torch.minimum(edge + 1, offset[:, None] + BAR) - torch.maximum(edge * 1.0, offset[:, None])).clamp(0, 1)
    flat = cover[:, :, None].expand(-1, SIDE, SIDE)
    return torch.where(vertical[:, None, None], flat.transpose(1, 2), flat)


def to_patches(x: Tensor) -> Tensor:
    """[B, 16, 16] in 0..1 -> [B, 16 patches, 16 values] in -1..1."""
    cut = x.unflatten(1, (-1, PATCH)).unflatten(3, (-1, PATCH)).transpose(2, 3)
    return cut.flatten(1, 2).flatten(2) * 2 - 1


def from_patches(x: Tensor) -> Tensor:
    """The inverse of ``to_patches``, cut to 0..1."""
    n = SIDE // PATCH
    return (
        (x.unflatten(1, (n, n)).unflatten(3, (PATCH, PATCH)).transpose(2, 3).reshape(-1, SIDE, SIDE) + 1)
        .div(2)
        .clamp(0, 1)
    )


def drawn(count: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Orientations [count] bool and pictures."""
    vertical = torch.rand(count, generator=rng) < 0.5
    return vertical, bars(vertical, torch.rand(count, generator=rng) * (SIDE - BAR))


def read(x: Tensor) -> tuple[Tensor, Tensor]:
    """Of pictures [B, 16, 16]: whether the nearest bar is vertical, and the root of the mean squared difference from it, [B]."""
    offset = torch.arange(0, SIDE - BAR + 1e-6, 0.05)
    vertical = torch.tensor([False, True]).repeat_interleave(len(offset))
    known = bars(vertical, offset.repeat(2)).flatten(1)
    error = torch.cdist(x.flatten(1), known) / SIDE
    return vertical[error.argmin(1)], error.amin(1)


def request(vertical: Tensor, values: Tensor | None) -> Batch:
    """Rows of a class and 16 patches: masked, or with their ``values [B, 16, C]``."""
    spans = (
        Span(name="class", kind=Kind.TEXT, start=0, stop=1),
        Span(name="image", kind=VALUE, start=1, stop=1 + TOKENS, writable=True),
    )
    masked = torch.arange(1 + TOKENS) >= (1 if values is None else 1 + TOKENS)
    made = [
        Sequence(
            ids=F.pad(torch.tensor([int(one)]), (0, TOKENS)),
            masked=masked,
            spans=spans,
            values=None if values is None else F.pad(values[i], (0, 0, 1, 0)),
        )
        for i, one in enumerate(vertical)
    ]
    return collate(made, range(len(made)))


@dataclass(frozen=True, kw_only=True)
class Bars:
    """Batches of the training; with ``codes``, every patch is its nearest one."""

    seed: int
    codes: Tensor | None = None

    def __call__(self, step: int) -> Batch:
        vertical, pictures = drawn(_BATCH, generator("mmar", self.seed, step))
        patches = to_patches(pictures)
        if self.codes is not None:
            patches = self.codes[nearest(patches, self.codes)]
        return request(vertical, patches)


def nearest(patches: Tensor, codes: Tensor) -> Tensor:
    """The number of the nearest code of each patch."""
    return torch.cdist(patches.flatten(0, -2), codes).argmin(1).view(patches.shape[:-1])


def dictionary(seed: int) -> Tensor:
    """Codes [64, 16] by k-means over patches, empty ones drawn anew."""
    rng = generator("mmar codes", seed)
    patches = to_patches(drawn(512, rng)[1]).flatten(0, 1)
    codes = patches[torch.randperm(len(patches), generator=rng)[:CODES]]
    for _ in range(20):
        own = F.one_hot(nearest(patches, codes), CODES).float()
        mean = own.T @ patches / own.sum(0)[:, None].clamp(min=1)
        fresh = patches[torch.randint(len(patches), (CODES,), generator=rng)]
        codes = torch.where(own.sum(0)[:, None] > 0, mean, fresh)
    return codes


class Trunk(nn.Module):
    """Values of visible patches and a class -> hidden states of the patches to predict."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.name = nn.Linear(CHANNELS, WIDTH), nn.Embedding(2, WIDTH)
        self.masked = nn.Parameter(0.02 * torch.randn(WIDTH))
        self.place = nn.Parameter(0.02 * torch.randn(1 + TOKENS, WIDTH))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(WIDTH, 4, 2 * WIDTH, dropout=0.0, batch_first=True, norm_first=True)
            for _ in range(2)
        )
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, batch: Batch, *, predict: Tensor | None = None, reuse: Reuse | None = None) -> Prediction:
        predict = batch.masked if predict is None else predict
        values = torch.zeros(*batch.ids.shape, CHANNELS) if batch.values is None else batch.values
        shown = torch.where(batch.masked[..., None], self.masked, self.read(values))
        h = torch.cat([self.name(batch.ids[:, :1]), shown[:, 1:]], dim=1) + self.place
        for layer in self.layers:
            h = layer(h)
        at = predict.flatten().nonzero()[:, 0]
        return Prediction(scored={VALUE: Scored(at=at, hidden=self.norm(h).flatten(0, 1)[at])})


class Drawer(nn.Module):
    """A trunk with a head: a softmax over codes, or a diffusion head."""

    def __init__(self, *, of_codes: bool) -> None:
        super().__init__()
        self.trunk = Trunk()
        self.head: nn.Module = nn.Linear(WIDTH, CODES) if of_codes else DiffusionHead(CHANNELS, WIDTH, 128, 2, CHANNELS)


@dataclass(frozen=True, kw_only=True)
class CodeLoss:
    """Cross-entropy of masked codes: what ``ContinuousTokens`` is for values."""

    codes: Tensor

    def __call__(self, model: Drawer, clean: Batch, rng: torch.Generator) -> Loss:
        assert clean.values is not None
        masked = masked_at_random(clean.kind == VALUE, torch.rand(clean.rows, generator=rng), rng)
        scored = model.trunk(clean.replace(masked=masked), predict=masked).scored[VALUE]
        wanted = nearest(clean.values.flatten(0, 1)[scored.at], self.codes)
        loss = F.cross_entropy(model.head(scored.hidden), wanted)
        return Loss(total=loss, terms={"codes": loss.detach()}, counts={"codes": len(wanted)})


@dataclass(frozen=True, kw_only=True)
class DrawCodes:
    """A token sampler: a code by its probability, and its values."""

    head: Callable[[Tensor], Tensor]
    codes: Tensor

    def __call__(self, batch: Batch, prediction: Prediction, progress: Progress) -> Proposal:
        scored = prediction.scored[VALUE]
        assert scored.hidden is not None
        counts = torch.bincount(progress.row(scored.at), minlength=batch.rows).tolist()
        u = torch.cat([torch.rand(n, generator=rng) for n, rng in zip(counts, rows(batch, "codes"), strict=True)])
        chosen = (self.head(scored.hidden).softmax(1).cumsum(1) < u[:, None]).sum(1).clamp(max=CODES - 1)
        values = (
            torch.zeros(batch.ids.numel(), CHANNELS) if batch.values is None else batch.values.flatten(0, 1).clone()
        )
        values[scored.at] = self.codes[chosen]
        score = torch.full((batch.ids.numel(),), -torch.inf).index_fill(0, scored.at, 0.0)
        return Proposal(ids=batch.ids, score=score.view_as(batch.ids), values=values.view(*batch.ids.shape, CHANNELS))


def _fresh(seed: int, of_codes: bool) -> Drawer:
    return seeded(lambda: Drawer(of_codes=of_codes), seed)


def _recipe(seed: int, steps: int, target: Target | None, codes: Tensor) -> Recipe[Drawer, Batch]:
    objective: Any = (
        CodeLoss(codes=codes)
        if target is None
        else ContinuousTokens(kind=VALUE, loss=DiffusionLoss(levels=LEVELS, target=target))
    )
    return Recipe(
        name="mmar",
        model=partial(_fresh, seed, target is None),
        source=Bars(seed=seed, codes=codes if target is None else None),
        objective=objective,
        optim=Optim(lr=2e-3, weight_decay=0.01, warmup=min(100, steps), ema=0.99),
        training=Training(steps=steps, seed=seed, device="cpu", bf16=False, save_every=max(1, steps // 2)),
    )


def demo(work: Work) -> Findings:
    """Errors of pictures by each head, in full and in low precision."""
    found = [work.once(f"seed/{seed}", partial(_measured, work, seed)) for seed in work.seeds]
    return _findings(found, work)


def _measured(work: Work, seed: int) -> dict[str, Any]:
    codes, count = dictionary(seed), work.steps(_TESTED, least=2)
    truth = to_patches(drawn(count, generator("mmar", "test"))[1])
    found: dict[str, Any] = {"dictionary": float(read(from_patches(codes[nearest(truth, codes)]))[1].mean())}
    for arm, target in ARMS.items():
        net = work.train(f"{arm}/{seed}", _recipe(seed, work.steps(_STEPS, least=2), target, codes))
        for precision in ("float32",) if target is None else ("float32", "bfloat16"):
            vertical, pictures = _pictures(net, target, codes, count, rounded=precision == "bfloat16")
            says, error = read(pictures)
            if seed == work.seeds[0]:
                _save(work, f"{arm} {precision}", pictures[:8])
            right = float((says == vertical).float().mean())
            found[f"{arm} {precision}"] = {"error": float(error.mean()), "class": right}
    return found


@torch.no_grad()
def _pictures(net: Any, target: Target | None, codes: Tensor, count: int, *, rounded: bool) -> tuple[Tensor, Tensor]:
    def head(x: Tensor, t: Tensor, z: Tensor) -> Tensor:
        said = net.head(x, t, z)
        return said.bfloat16().float() if rounded else said

    vertical = torch.arange(count) % 2 == 0
    chooser: TokenSampler = DrawCodes(head=net.head, codes=codes)
    if target is not None:
        chooser = ByDiffusion(kind=VALUE, channels=CHANNELS, head=head, levels=LEVELS.kept(NOISE_STEPS), target=target)
    sampler = Sampler(schedule=MaskedOrder(steps=ITERATIONS), token_sampler=chooser, selection=RandomOrder())
    done = sampler.sample(net.trunk, request(vertical, None))
    assert done.values is not None
    return vertical, from_patches(done.values[:, 1:].nan_to_num())


def _save(work: Work, name: str, pictures: Tensor) -> None:
    sheet = F.pad(pictures, (1, 1, 1, 1), value=0.5).transpose(0, 1).flatten(1)
    image = to_image(sheet.expand(3, -1, -1)).resize((sheet.shape[1] * 4, sheet.shape[0] * 4), Image.Resampling.NEAREST)
    save_image(image, work.out / f"{name.replace(' ', '_')}.png")


def _findings(found: list[dict[str, Any]], work: Work) -> Findings:
    names = [name for name in found[0] if name != "dictionary"]

    def of(name: str, what: str) -> Figure:
        return over_seeds([one[name][what] for one in found], unit="share" if what == "class" else "of full scale")

    def less(a: str, b: str) -> Figure:
        return over_seeds([one[a]["error"] - one[b]["error"] for one in found], unit="of full scale")

    gain, low = less("codes float32", "v float32"), less("eps bfloat16", "v bfloat16")
    floor = over_seeds([one["dictionary"] for one in found], unit="of full scale")
    return Findings(
        about=f"Pictures of a bar in {ITERATIONS} iterations; the error is the root of the mean squared difference from the nearest bar. "
        f"Diffusion heads take {NOISE_STEPS} steps.",
        verdict=f"The error of codes is {of('codes float32', 'error')['value']:.3f}, that of the head that predicts v "
        f"{of('v float32', 'error')['value']:.3f}; in bfloat16 eps has {of('eps bfloat16', 'error')['value']:.3f} and v "
        f"{of('v bfloat16', 'error')['value']:.3f}.",
        seen=gain["low"] is not None and gain["low"] > 0,
        figures={"error_less_than_codes": gain, "error_less_than_eps_in_bfloat16": low, "error_of_dictionary": floor},
        shown=(
            Table(
                title="Pictures",
                head=("head", "error", "right orientation"),
                rows=tuple((name, of(name, "error"), of(name, "class")) for name in names),
                note=f"Coding true pictures with the dictionary has an error of {floor['value']:.3f}.",
            ),
            Media(
                title="Drawn",
                items=tuple((name, work.out / f"{name.replace(' ', '_')}.png") for name in names),
            ),
        ),
    )


DEMO = Demonstration(minutes=12, run=demo)
