"""The demonstration of CCDD: layouts of two objects as text, from a masked model with and without latents.

    unmask methods run ccdd

A request names two sizes and a relation; the layout has two boxes on a grid of eight by eight. A box is valid if it is a square of its
size on the grid, a layout true if its boxes are valid, do not overlap, and stand as the request says. Few steps of a masked model draw
numbers that do not fit each other. Latents come from a bidirectional encoder that is trained beforehand and frozen; the baseline gets its
updates, and those that running it costs, on top of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from unmask.evaluation.demonstration import Demonstration, Findings, Plot, Table, Work
from unmask.evaluation.metrics import Figure, over_seeds
from unmask.methods.ccdd import Joint, JointLoss, JointSampler, Latents, TokenNoise, divergence, even_times, noised
from unmask.recipe import Optim, Recipe, Training
from unmask.rng import generator, seeded
from unmask.step import Loss

GRID, RELATIONS, SIDES = 8, ("left", "right", "above", "below"), {"small": 2, "large": 3}
_SIZE_ID = GRID + 1  # ids 0..8 are edges on the grid
_RELATION_ID = _SIZE_ID + len(SIDES)
NOISE = TokenNoise(size=_RELATION_ID + len(RELATIONS) + 1)
REQUEST, LENGTH = 3, 11  # size, relation, size; then x1 y1 x2 y2 of both boxes
CHANNELS, WIDTH = 8, 64
STEPS = (2, 4, 8, 32)
_BATCH, _ENCODER, _JOINT, _TESTED = 64, 1000, 5000, 256
_EXTRA = 4 / 3  # updates of the baseline for one of the joint model, whose encoder runs forward alone


def layouts(count: int, rng: torch.Generator) -> Tensor:
    """Requests with true layouts, [count, 11], by rejection: of a request, every placement that fits is equally probable."""
    found, sides = torch.zeros(0, LENGTH, dtype=torch.long), torch.tensor(list(SIDES.values()))
    while len(found) < count:
        size = torch.randint(len(SIDES), (8 * count, 2), generator=rng)
        relation = torch.randint(len(RELATIONS), (8 * count, 1), generator=rng)
        side = sides[size][..., None]
        at = (torch.rand(8 * count, 2, 2, generator=rng) * (GRID + 1 - side)).long()
        boxes = torch.cat([at, at + side], dim=2).flatten(1)
        rows = torch.cat([_SIZE_ID + size[:, :1], _RELATION_ID + relation, _SIZE_ID + size[:, 1:], boxes], dim=1)
        found = torch.cat([found, rows[judged(rows)[1]]])
    return found[:count]


def judged(ids: Tensor) -> tuple[Tensor, Tensor]:
    """Of rows [B, 11]: whether both boxes are valid, and whether the layout is true."""
    sides = torch.tensor(list(SIDES.values()))[(ids[:, [0, 2]] - _SIZE_ID).clamp(0, len(SIDES) - 1)]
    box = ids[:, REQUEST:].view(-1, 2, 4)
    square = (box[..., 2] - box[..., 0] == sides) & (box[..., 3] - box[..., 1] == sides)
    valid = (square & (box >= 0).all(-1) & (box <= GRID).all(-1)).all(1)
    a, b = box[:, 0], box[:, 1]
    stands = torch.stack([a[:, 2] <= b[:, 0], b[:, 2] <= a[:, 0], a[:, 3] <= b[:, 1], b[:, 3] <= a[:, 1]], dim=1)
    relation = (ids[:, 1] - _RELATION_ID).clamp(0, len(RELATIONS) - 1)
    return valid, valid & stands.gather(1, relation[:, None])[:, 0]


class Trunk(nn.Module):
    """Ids, latents and a time -> logits and latents. Without ``latents`` it reads and predicts none."""

    def __init__(self, *, latents: bool, width: int = WIDTH, layers: int = 2) -> None:
        super().__init__()
        self.latents = latents
        self.embed, self.place = nn.Embedding(NOISE.size, width), nn.Parameter(0.02 * torch.randn(LENGTH, width))
        self.read, self.time = nn.Linear(CHANNELS, width), nn.Sequential(nn.Linear(1, width), nn.SiLU())
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True, norm_first=True)
            for _ in range(layers)
        )
        self.norm, self.logits, self.say = nn.LayerNorm(width), nn.Linear(width, NOISE.size), nn.Linear(width, CHANNELS)

    def hidden(self, ids: Tensor, z: Tensor, t: Tensor) -> Tensor:
        h = self.embed(ids) + self.place + self.time(t.float()[:, None])[:, None]
        h = h + self.read(z) if self.latents else h
        for layer in self.layers:
            h = layer(h)
        return self.norm(h)

    def forward(self, ids: Tensor, z: Tensor, t: Tensor) -> Joint:
        h = self.hidden(ids, z, t)
        return Joint(logits=self.logits(h), latents=self.say(h))

    def encode(self, ids: Tensor) -> Tensor:
        """Contextual embeddings of visible text, [B, L, D]."""
        nothing = torch.zeros(*ids.shape, CHANNELS)
        return self.hidden(ids, nothing, torch.zeros(len(ids)))


@dataclass(frozen=True, kw_only=True)
class Layouts:
    """Batches of the training."""

    seed: int

    def __call__(self, step: int) -> Tensor:
        return layouts(_BATCH, generator("ccdd", self.seed, step))


@dataclass(frozen=True, kw_only=True)
class Noised:
    """A batch at one time a row: the given request stays visible."""

    x_t: Tensor
    z: Tensor
    z_t: Tensor
    t: Tensor


def corrupted(ids: Tensor, latents: Latents | None, rng: torch.Generator) -> Noised:
    """Ids and latents at random times; without ``latents`` zeros in their place."""
    t = 1e-3 + (1 - 2e-3) * torch.rand(len(ids), generator=rng)
    hidden = (torch.rand(ids.shape, generator=rng) < t[:, None]) & (torch.arange(LENGTH) >= REQUEST)
    x_t = ids.masked_fill(hidden, NOISE.mask_id)
    if latents is None:
        nothing = torch.zeros(*ids.shape, CHANNELS)
        return Noised(x_t=x_t, z=nothing, z_t=nothing, t=t)
    with torch.no_grad():
        z = latents.target(ids)
    return Noised(x_t=x_t, z=z, z_t=noised(z, torch.randn(z.shape, generator=rng), t), t=t)


@dataclass(frozen=True, kw_only=True)
class LayoutLoss:
    """The joint loss with the latents of ``encoder``; that of the tokens alone without one."""

    encoder: Callable[[Tensor], Tensor] | None = None

    def __call__(self, net: Any, ids: Tensor, rng: torch.Generator) -> Loss:
        latents = Latents(encode=self.encoder, channels=CHANNELS) if self.encoder else None
        made = corrupted(ids, latents, rng)
        valid = (torch.arange(LENGTH) >= REQUEST).expand_as(ids)
        loss = JointLoss(noise=NOISE).of(net(made.x_t, made.z_t, made.t), made.x_t, ids, made.z, made.t, valid)
        return loss if latents else Loss(total=loss.terms["tokens"], terms=loss.terms, counts=loss.counts)


def _fresh(seed: int, latents: bool) -> Trunk:
    return seeded(lambda: Trunk(latents=latents), seed)


def layouts_of(
    seed: int, steps: int, encoder: Callable[[Tensor], Tensor] | None, *, latents: bool
) -> Recipe[Trunk, Tensor]:
    """One training run."""
    return Recipe(
        name="ccdd",
        model=partial(_fresh, seed, latents),
        source=Layouts(seed=seed),
        objective=LayoutLoss(encoder=encoder),
        optim=Optim(lr=2e-3, weight_decay=0.01, warmup=min(100, steps), ema=0.0),
        training=Training(steps=steps, seed=seed, device="cpu", bf16=False, save_every=max(1, steps // 2)),
    )


def demo(work: Work) -> Findings:
    """True layouts of both models at every number of steps, and the leak tests."""
    return _findings([work.once(f"seed/{seed}", partial(_measured, work, seed)) for seed in work.seeds])


def _measured(work: Work, seed: int) -> dict[str, Any]:
    encoder_steps, joint_steps = work.steps(_ENCODER, least=2), work.steps(_JOINT, least=2)
    encoder = work.train(f"encoder/{seed}", layouts_of(seed, encoder_steps, None, latents=False))
    assert isinstance(encoder, Trunk)
    encoder.requires_grad_(False)
    joint = work.train(f"joint/{seed}", layouts_of(seed, joint_steps, encoder.encode, latents=True))
    alone = work.train(
        f"masked/{seed}", layouts_of(seed, encoder_steps + round(_EXTRA * joint_steps), None, latents=False)
    )
    asked = layouts(work.steps(_TESTED, least=4), generator("ccdd", "test"))
    found: dict[str, Any] = {}
    for name, net in (("joint", joint), ("masked", alone)):
        for steps in STEPS:
            made = _drawn(net, asked, steps, seed)
            valid, true = judged(made)
            found[f"{name}/{steps}"] = {"valid": float(valid.float().mean()), "true": float(true.float().mean())}
    return found | {"leak": _leaks(joint, encoder.encode, asked)}


def _drawn(net: Any, asked: Tensor, steps: int, seed: int) -> Tensor:
    sampler = JointSampler(noise=NOISE, times=even_times(steps), token_step=NOISE.unmasking)
    given = (torch.arange(LENGTH) < REQUEST).expand_as(asked)
    return sampler.sample(net, asked, given, CHANNELS, [seed * 10**6 + i for i in range(len(asked))])


@torch.no_grad()
def _leaks(net: Any, encode: Callable[[Tensor], Tensor], ids: Tensor) -> dict[str, float]:
    """The divergence of masked tokens at t = 1/2 with latents of the clean text, of the masked text, and of another row."""
    rng = generator("ccdd", "leak")
    t = torch.full((len(ids),), 0.5)
    hidden = (torch.rand(ids.shape, generator=rng) < 0.5) & (torch.arange(LENGTH) >= REQUEST)
    x_t, latents = ids.masked_fill(hidden, NOISE.mask_id), Latents(encode=encode, channels=CHANNELS)
    eps = torch.randn(*ids.shape, CHANNELS, generator=rng)
    clean = latents.target(ids)
    found = {}
    for name, z in (("clean text", clean), ("masked text", latents.target(x_t)), ("another row", clean.roll(1, 0))):
        logits = net(x_t, noised(z, eps, t), t).logits
        each = divergence(NOISE, logits, x_t, ids, t, most=torch.inf)
        found[name] = float((each * hidden).sum() / hidden.sum().clamp(min=1))
    return found


def _findings(found: list[dict[str, Any]]) -> Findings:
    def of(name: str, steps: int, what: str) -> Figure:
        return over_seeds([one[f"{name}/{steps}"][what] for one in found])

    gains = {
        steps: over_seeds([o[f"joint/{steps}"]["true"] - o[f"masked/{steps}"]["true"] for o in found])
        for steps in STEPS
    }
    leak = {name: over_seeds([one["leak"][name] for one in found], unit="nats") for name in found[0]["leak"]}
    few = gains[STEPS[0]]
    rows = tuple(
        (steps, name, of(name, steps, "valid"), of(name, steps, "true"))
        for steps in STEPS
        for name in ("masked", "joint")
    )
    return Findings(
        about="Two boxes for two sizes and a relation, from a masked model, and from one of the same size that denoises latents too. "
        "The masked model got the updates of the encoder, and a third more for each of the joint one.",
        verdict=f"True layouts of the joint model against the masked one: {100 * few['value']:+.1f} points in {STEPS[0]} steps, "
        f"{100 * gains[STEPS[-1]]['value']:+.1f} in {STEPS[-1]}.",
        seen=few["low"] is not None and few["low"] > 0,
        figures={f"true_gain.{steps}": gain for steps, gain in gains.items()}
        | {f"leak.{name.replace(' ', '_')}": figure for name, figure in leak.items()},
        shown=(
            Table(title="Layouts", head=("steps", "model", "both boxes valid", "true"), rows=rows),
            Table(
                title="Leak test",
                head=("latents at t = 1/2", "loss of a masked token"),
                rows=tuple(leak.items()),
                note="Latents of the clean text know the masked tokens, so a bound that is measured with them cannot be compared with a "
                "masked model's; the layouts above start from noise.",
            ),
            Plot(
                title="True layouts",
                across="steps",
                up="share",
                lines={name: [(steps, of(name, steps, "true")) for steps in STEPS] for name in ("masked", "joint")},
                log=True,
            ),
        ),
    )


DEMO = Demonstration(minutes=8, run=demo)
