"""The demonstration of Diffusion-Link: embeddings of tones carried over to embeddings of their names, by linear maps and by networks.

    unmask methods run diffusion_link
    unmask train diffusion_link.encoders      the frozen pair of encoders

A class is a melody of three notes; its tones differ in pitch, loudness and noise. A contrastive pair of small encoders embeds tones and
names, and is frozen. One to one, every class has one name; one to many, it has three, and each tone is paired with one of them at random,
so that a regression answers with their mean, which is none of them. Measured on new tones: the share whose nearest name is of their class,
and the distance to it. All networks have one size and as many updates.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unmask.evaluation.demonstration import Cell, Demonstration, Findings, Table, Work
from unmask.evaluation.metrics import Figure, over_seeds
from unmask.json_types import Json
from unmask.methods.diffusion_link import (
    BridgeNet,
    LinkDiffusion,
    Pairs,
    Regression,
    carried,
    gap,
    mean_shift,
    ridge,
)
from unmask.objectives.contrastive import both_ways
from unmask.recipe import Optim, Recipe, Training
from unmask.rng import generator, seeded
from unmask.step import Loss

CLASSES, WIDTH = 20, 24
_RATE, _SAMPLES, _BANDS = 8000, 2400, 32
_PARTS = ("raw", "mean shift", "ridge", "network", "bridge", "bridge without topology")
_STEPS, _ENCODER_STEPS, _TEST, _FIT = 1000, 300, 400, 1000
_OBJECTIVES: Mapping[str, LinkDiffusion | Regression] = {
    "network": Regression(),
    "bridge": LinkDiffusion(),
    "bridge without topology": LinkDiffusion(topology=0.0),
}


def tones(classes: Tensor, rng: torch.Generator) -> Tensor:
    """Melodies of three notes, [N, samples] in about -1..1."""
    notes = torch.stack([classes % 5, classes // 5 % 4 + 3, (classes * 7) % 8], 1).double()
    detuned = 2 ** ((notes + 0.1 * torch.randn(len(classes), 1, generator=rng).double()) / 6)
    t = torch.arange(_SAMPLES // 3) / _RATE
    wave = torch.sin(2 * math.pi * 300 * detuned[:, :, None] * t).flatten(1).float()
    loud = 0.3 + 0.7 * torch.rand(len(classes), 1, generator=rng)
    return loud * wave + 0.1 * torch.randn(wave.shape, generator=rng)


def bands(sound: Tensor) -> Tensor:
    """Log energies of 32 bands in each third, [N, 96]."""
    power = torch.fft.rfft(sound.unflatten(1, (3, -1))).abs().square()[..., 1 : 8 * _BANDS + 1]
    return power.unflatten(-1, (_BANDS, -1)).mean(-1).add(1e-3).log().flatten(1)


class Encoders(nn.Module):
    """The contrastive pair. ``names``: how many texts each class has."""

    def __init__(self, names: int) -> None:
        super().__init__()
        self.names = names
        self.sound = nn.Sequential(nn.Linear(3 * _BANDS, 64), nn.GELU(), nn.Linear(64, WIDTH))
        self.text = nn.Embedding(CLASSES * names, WIDTH)
        self.scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def embedded(self, features: Tensor, names: Tensor) -> tuple[Tensor, Tensor]:
        """Sounds and texts as vectors of length sqrt(D), so that noise of variance 1 fits them."""
        return tuple(F.normalize(x, dim=-1) * WIDTH**0.5 for x in (self.sound(features), self.text(names)))  # type: ignore[return-value]

    def table(self) -> Tensor:
        """All texts, [classes names, D]; number names * class + i is text i of a class."""
        return F.normalize(self.text.weight, dim=-1) * WIDTH**0.5


@dataclass(frozen=True, kw_only=True)
class Sounds:
    """Batches of (features, text numbers): each class has ``names`` texts, of which one is drawn."""

    names: int
    seed: int
    batch: int = 64

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        rng = generator("diffusion link", self.seed, step)
        classes = torch.randint(CLASSES, (self.batch,), generator=rng)
        which = torch.randint(self.names, (self.batch,), generator=rng)
        return bands(tones(classes, rng)), classes * self.names + which


def contrastive(model: Encoders, batch: tuple[Tensor, Tensor], rng: torch.Generator) -> Loss:
    """The contrastive loss of a batch; rows of one text count as their own negatives, as usual."""
    sound, text = model.embedded(*batch)
    loss = both_ways(model.scale.exp() * sound @ text.T / WIDTH)
    return Loss(total=loss, terms={"contrastive": loss.detach()}, counts={"contrastive": len(sound)})


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """Pairs of embeddings from frozen encoders."""

    encoders: Encoders
    sounds: Sounds

    def __call__(self, step: int) -> Pairs:
        with torch.no_grad():
            audio, text = self.encoders.embedded(*self.sounds(step))
        return Pairs(audio=audio, text=text)


def encoders(names: int = 1, seed: int = 0, steps: int = _ENCODER_STEPS) -> Recipe:
    """The contrastive pair of tones and names, in seconds."""
    return Recipe(
        name="diffusion_link.encoders",
        model=lambda: seeded(lambda: Encoders(names), seed),
        source=Sounds(names=names, seed=seed),
        objective=contrastive,
        optim=Optim(lr=3e-3, warmup=20, decay_from=0.5, floor=0.05, ema=0.98),
        training=Training(steps=steps, seed=seed, save_every=500, bf16=False, device="cpu"),
    )


def _bridge(pair: Encoders, objective: LinkDiffusion | Regression, seed: int, steps: int) -> Recipe:
    """A network from embeddings of tones to those of names; ``pair``: frozen encoders."""
    return Recipe(
        name="diffusion_link.bridge",
        model=lambda: seeded(lambda: BridgeNet(WIDTH, hidden=64), seed),
        source=Embedded(encoders=pair, sounds=Sounds(names=pair.names, seed=seed + 1000)),
        objective=objective,
        optim=Optim(lr=2e-3, warmup=50, decay_from=0.3, floor=0.05, ema=0.99),
        training=Training(steps=steps, seed=seed, save_every=500, bf16=False, device="cpu"),
    )


def judged(found: Tensor, classes: Tensor, table: Tensor, names: int) -> Json:
    """How many vectors are nearest to a text of their class, and 1 - cosine to the nearest text of any."""
    cosine = F.normalize(found, dim=-1) @ F.normalize(table, dim=-1).T
    near, which = cosine.max(1)
    return {"right": float((which // names == classes).float().mean()), "distance": float((1 - near).mean())}


def _measured(work: Work, names: int, seed: int) -> Json:
    pair = work.train(f"encoders/{names}/{seed}", encoders(names, seed, work.steps(_ENCODER_STEPS, least=2)))
    assert isinstance(pair, Encoders)
    pair.requires_grad_(False)
    fitted = Embedded(encoders=pair, sounds=Sounds(names=names, seed=seed + 2000, batch=work.steps(_FIT, least=64)))(0)
    features, numbers = Sounds(names=names, seed=seed + 3000, batch=work.steps(_TEST, least=16))(0)
    audio, text = pair.embedded(features, numbers)
    found = {
        "raw": audio,
        "mean shift": audio + mean_shift(fitted.audio, fitted.text),
        "ridge": audio @ ridge(fitted.audio, fitted.text),
    }
    for name, objective in _OBJECTIVES.items():
        steps = work.steps(_STEPS, least=2)
        net = work.train(f"{name.replace(' ', '_')}/{names}/{seed}", _bridge(pair, objective, seed, steps))
        noise = torch.randn(audio.shape, generator=generator("link noise", seed))
        with torch.no_grad():
            plain = isinstance(objective, Regression)
            found[name] = net(audio, torch.zeros(len(audio))) if plain else carried(net, audio, noise)
    measured: Json = {part: judged(found[part], numbers // names, pair.table(), names) for part in _PARTS}
    return measured | {"gap": float(gap(audio, text)[0])}


def demo(work: Work) -> Findings:
    found = {n: [work.once(f"{n}/{s}", functools.partial(_measured, work, n, s)) for s in work.seeds] for n in (1, 3)}

    def figure(names: int, part: str, key: str) -> Figure:
        return over_seeds([run[part][key] for run in found[names]])

    def gain(names: int, key: str) -> Figure:
        return over_seeds([run["bridge"][key] - run["network"][key] for run in found[names]])

    right, distance = gain(3, "right"), gain(3, "distance")
    return Findings(
        about=f"An encoder of sound and one of text put a melody and its names into one space of width {WIDTH}, but apart. A "
        f"bridge moves the embedding of a tone to where texts are; {CLASSES} melodies with one name or three, {_TEST} "
        "new tones. Raw: without a bridge; mean shift: moved by the difference of the two means; ridge: linear; "
        "network: a plain network of the bridge's size. Right: the nearest text is of the melody's class. Distance: 1 - "
        "cosine to the nearest text; the mean of several texts is far from each of them.",
        verdict=_verdict(right, distance),
        seen=distance["high"] is not None and distance["high"] < 0,
        figures={"many.distance": distance, "many.right": right, "one.right": gain(1, "right")},
        shown=tuple(
            Table(
                title="One name for each melody" if names == 1 else "Three names for each melody",
                head=("moved by", "right", "distance"),
                rows=_rows(functools.partial(figure, names)),
                note=f"The means of tones and texts are {over_seeds([run['gap'] for run in runs])['value']:.2f} apart; "
                f"embeddings are {WIDTH**0.5:.2f} long.",
            )
            for names, runs in found.items()
        ),
    )


def _rows(figure: Callable[[str, str], Figure]) -> tuple[tuple[Cell, ...], ...]:
    return tuple((part, figure(part, "right"), figure(part, "distance")) for part in _PARTS)


def _verdict(right: Figure, distance: Figure) -> str:
    from unmask.evaluation.demonstration_page import said

    return (
        f"Where a melody has three names, the bridge's distance to real texts differs from that of a plain network of the same size by "
        f"{said(distance)}, its share of right ones by {said(right)}."
    )


DEMO = Demonstration(minutes=5, run=demo)
