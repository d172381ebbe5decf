"""Pictures of the small world for encoders that learn little from their labels, and what the encoders' tokens tell besides (``deem``).

Public ideas: ``Eyes`` is a small encoder and ``naming`` its loss of classes; ``probe`` fits a linear map to its tokens, and ``reader``
trains what answers questions about frozen tokens. ``with_distractors`` adds objects that nobody has seen.

Shapes: B pictures · N tokens · W width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from random import Random

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unmask.data.sources import pixels_of
from unmask.data.world.pairs import Pair, Pairs
from unmask.data.world.scenes import Scene, SceneObject, place
from unmask.data.world.vocabulary import LEVELS
from unmask.json_types import Json
from unmask.recipe import Optim, Recipe
from unmask.recipes.image_tokens import training
from unmask.recipes.kontext_rows import SIDE, codes_of
from unmask.rng import generator as numbers
from unmask.rng import seeded
from unmask.step import Loss

WORLD = Pairs(most=2, places=True, backgrounds=("white", "sky"))
TOKENS, WIDTH = 16, 64
_BATCH, _SMALL, _PLACES = 16, 0.25, 9
ANSWERS = len(WORLD.colours) + _PLACES  # a colour or a place


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """``pixels [B, 3, H, W]``, uint8 · ``codes [B, h, w]`` · ``shown [B, classes]``: which classes a picture shows."""

    pixels: Tensor
    codes: Tensor
    shown: Tensor

    @property
    def rows(self) -> int:
        return len(self.pixels)


@lru_cache(maxsize=4)
def pictures(count: int, seed: int) -> Pictures:
    """Training pictures of one or two objects."""
    pairs = [WORLD(seed, i) for i in range(count)]
    codes = codes_of([pair.scene for pair in pairs], WORLD)
    return Pictures(pixels=_bytes([pair.scene for pair in pairs]), codes=codes, shown=shown_in(pairs))


def _bytes(scenes: list[Scene]) -> Tensor:
    return torch.cat([(pixels_of(scenes[i : i + 50], SIDE) * 255).byte() for i in range(0, len(scenes), 50)])


def shown_in(pairs: list[Pair]) -> Tensor:
    return torch.tensor([[any(o.name == c for o in pair.scene.objects) for c in WORLD.classes] for pair in pairs])


@dataclass(frozen=True, kw_only=True)
class Looks:
    """Batches of a fixed set, drawn with replacement."""

    count: int
    seed: int

    def __call__(self, step: int) -> Pictures:
        data, rng = pictures(self.count, self.seed), Random(f"deem/{self.seed}/{step}")
        some = [rng.randrange(self.count) for _ in range(_BATCH)]
        return Pictures(pixels=data.pixels[some], codes=data.codes[some], shown=data.shown[some])


class Eyes(nn.Module):
    """A tower of two layers and a resampler: pictures [B, 3, H, W], uint8 -> tokens [B, N, W]; a head names the objects."""

    def __init__(self, width: int = WIDTH, patch: int = 16, most: int = 16) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, stride=patch)
        self.place = nn.Parameter(0.02 * torch.randn(most, width))
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, nn.LayerNorm(width), enable_nested_tensor=False)
        self.queries = nn.Parameter(0.5 * torch.randn(TOKENS, width))
        self.read = nn.MultiheadAttention(width, 4, batch_first=True)
        self.out = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )
        self.classes = nn.Linear(width, len(WORLD.classes))

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.layers(self.patches(pixels.float() / 255 - 0.9).flatten(2).mT + self.place)
        return self.out(self.read(self.queries.expand(len(x), -1, -1), x, x, need_weights=False)[0])

    def named(self, tokens: Tensor) -> Tensor:
        """Logits of the classes that a picture shows, [B, classes]."""
        return self.classes(tokens.mean(1))


def naming(model: nn.Module, batch: Pictures, rng: torch.Generator) -> Loss:
    """Which classes does the picture show?"""
    assert isinstance(model, Eyes)
    loss = F.binary_cross_entropy_with_logits(model.named(model(batch.pixels)), batch.shown.float())
    return Loss(total=loss, terms={"classes": loss.detach()}, counts={"classes": batch.rows})


def with_distractors(scene: Scene, rng: Random) -> Scene:
    """The scene with up to three small objects of other classes, which no encoder has seen."""
    level, taken = LEVELS[scene.level], tuple((o.x, o.y, o.size) for o in scene.objects)
    others = [name for name in level.classes if name not in WORLD.classes]
    spots = [(x, y, _SMALL) for x, y, _ in place(replace(level, sizes=(_SMALL, _SMALL)), 3, rng, taken)]
    more = [
        SceneObject(name=rng.choice(others), colour=rng.choice(level.colours), x=x, y=y, size=size, distractor=True)
        for x, y, size in spots
    ]
    return replace(scene, objects=(*scene.objects, *more))


def contents(scene: Scene) -> Tensor:
    """What the probes look for: which sixteenths of the picture are covered, which colours are shown, and the number of objects, [21]."""
    covered = torch.zeros(4, 4)
    for obj in scene.objects:
        x, y, size = (round(4 * v) for v in (obj.x, obj.y, obj.size))
        covered[y : y + size, x : x + size] = 1
    colours = torch.tensor([float(any(o.colour == c for o in scene.objects)) for c in WORLD.colours])
    return torch.cat([covered.flatten(), colours, torch.tensor([float(len(scene.objects))])])


_COLOURS = 16 + len(WORLD.colours)
PROBES = {"place": slice(0, 16), "colour": slice(16, _COLOURS), "number": slice(_COLOURS, _COLOURS + 1)}


def _place(obj: SceneObject) -> int:
    return round(obj.y * 4) * 3 + round(obj.x * 4)


def questions(scene: Scene) -> list[tuple[int, int]]:
    """Numbers of questions and answers: colour and place of every class that one object of the picture has."""
    large, asked = [o for o in scene.objects if not o.distractor], []
    for obj in large:
        if sum(other.name == obj.name for other in large) == 1:
            own_class = WORLD.classes.index(obj.name)
            asked.append((own_class, WORLD.colours.index(obj.colour)))
            asked.append((len(WORLD.classes) + own_class, len(WORLD.colours) + _place(obj)))
    return asked


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """Of pictures, [N, tokens, W], with their scenes."""

    tokens: Tensor
    scenes: tuple[Scene, ...]

    @property
    def contents(self) -> Tensor:
        return torch.stack([contents(scene) for scene in self.scenes]).double()

    @cached_property
    def asked(self) -> tuple[Tensor, Tensor, Tensor]:
        """Picture, question and answer, [Q] each."""
        found = [(i, *pair) for i, scene in enumerate(self.scenes) for pair in questions(scene)]
        return tuple(torch.tensor(found).T)  # type: ignore[return-value]


@torch.no_grad()
def seen(net: Eyes, scenes: list[Scene]) -> Tokens:
    return Tokens(tokens=torch.cat([net(some) for some in _bytes(scenes).split(50)]), scenes=tuple(scenes))


def probe(fitted: Tokens, test: Tokens, ridge: float = 0.03) -> Json:
    """What a linear map of the tokens explains of the variance of ``PROBES``; 0 is what their means explain. Fitted to one set of
    pictures and tested on another.
    """
    x, y, x_test, y_test = (
        part for some in (fitted, test) for part in (some.tokens.flatten(1).double(), some.contents)
    )
    mean, deviation = x.mean(0), x.std(0) + 1e-6
    x, x_test = ((part - mean) / deviation for part in (x, x_test))
    centre = y.mean(0)
    weights = torch.linalg.solve(x.T @ x + ridge * len(x) * torch.eye(x.shape[1], dtype=x.dtype), x.T @ (y - centre))
    left = (y_test - centre - x_test @ weights).square().sum(0) / (y_test - centre).square().sum(0).clamp(min=1e-9)
    return {kind: 1 - float(left[own_kind].mean()) for kind, own_kind in PROBES.items()}


class Reader(nn.Module):
    """Answers questions about frozen tokens: one query that reads them, and two layers."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.question = nn.Embedding(2 * len(WORLD.classes), width)
        self.norm, self.read = nn.LayerNorm(width), nn.MultiheadAttention(width, 4, batch_first=True)
        self.answer = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, ANSWERS))

    def forward(self, tokens: Tensor, question: Tensor) -> Tensor:
        asked, read = self.question(question)[:, None], self.norm(tokens)
        return self.answer((asked + self.read(asked, read, read, need_weights=False)[0])[:, 0])


@dataclass(frozen=True, kw_only=True)
class Quiz:
    """Batches of (tokens, questions, answers)."""

    tokens: Tokens
    seed: int
    batch: int = 64

    def __call__(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        picture, question, answer = self.tokens.asked
        some = torch.randint(len(picture), (self.batch,), generator=numbers("deem quiz", self.seed, step))
        return self.tokens.tokens[picture[some]], question[some], answer[some]


def _answering(model: Reader, batch: tuple[Tensor, Tensor, Tensor], rng: torch.Generator) -> Loss:
    tokens, question, answer = batch
    loss = F.cross_entropy(model(tokens, question), answer)
    return Loss(total=loss, terms={"answers": loss.detach()}, counts={"answers": len(answer)})


def reader(tokens: Tokens, steps: int, seed: int) -> Recipe[Reader, tuple[Tensor, Tensor, Tensor]]:
    """What answers questions about tokens of a frozen encoder."""

    return Recipe(
        name="deem.reader",
        model=lambda: seeded(Reader, seed),
        source=Quiz(tokens=tokens, seed=seed),
        objective=_answering,
        optim=Optim(lr=2e-3, warmup=20, decay_from=0.5, floor=0.05, ema=0.98),
        training=training(steps, seed),
    )
