"""ReDiff on captions of the synthetic world, and its demonstration: errors that a sampler mends against those that it keeps.

    unmask methods run rediff
    unmask train rediff --out runs/rediff

Public ideas: ``rediff() -> Recipe``, which tunes ``mini`` on captions with planted errors, and ``DEMO``. Every scene has one caption, so
that an answer can be compared word for word.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from torch import Tensor

from unmask.corruption.absorbing import Absorbing
from unmask.corruption.schedules import Uniform
from unmask.data.sources import pixels_of, scenes_of_batch
from unmask.data.world.language import article, at, noun, position_word
from unmask.data.world.scenes import Draft, Scene
from unmask.data.world.vocabulary import BACKGROUNDS
from unmask.methods.rediff import EachGroup, Planted
from unmask.objectives.masked import Masked
from unmask.recipe import Optim, Recipe, Training
from unmask.recipes.starting import start_of
from unmask.sequence import Batch, collate
from unmask.sequence import Sequence as Row
from unmask.tasks.parts import Parts
from unmask.tokens.build import asking, looking
from unmask.tokens.text import EOT

LENGTH = 40  # tokens of an answer, its ends of turn included
SCENES = Draft(counts=((2, 0.4), (3, 0.4), (4, 0.2)), alike=0.1)
EACH = (1, 2, 4, 8)  # tokens a step


def caption(scene: Scene) -> str:
    """The one caption of a scene: its objects in reading order, each with its place, and the background."""
    objects = sorted(scene.objects, key=lambda o: (o.centre[1], o.centre[0], o.name, o.colour))
    said = ", ".join(f"{article(noun(o))} {at(position_word(o))}" for o in objects)
    return f"{said} {BACKGROUNDS[scene.background][0]}"


def answer_ids(parts: Parts, scene: Scene) -> list[int]:
    """The caption's tokens, filled with ends of turn."""
    ids = parts.text.encode(caption(scene))[: LENGTH - 1]
    return ids + [parts.text[EOT]] * (LENGTH - len(ids))


def row_of(parts: Parts, pixels: Tensor, answer: list[int] | int) -> Row:
    """The request for a caption, with its answer or so many masked tokens."""
    b = looking(parts.builder(), pixels)
    return asking(b, b.wording.describe, answer).build()


@dataclass(frozen=True, kw_only=True)
class CaptionsOfPictures:
    """Pictures of training scenes with their captions."""

    parts: Parts
    seed: int
    batch: int = 16

    def __call__(self, step: int) -> Batch:
        rng = Random(f"rediff/{self.seed}/{step}")
        scenes = list(scenes_of_batch((("grid", 1.0),), self.seed + 31, step, self.batch, rng, SCENES))
        pixels = pixels_of(scenes, self.parts.side)
        return collate(
            [row_of(self.parts, p, answer_ids(self.parts, s)) for p, s in zip(pixels, scenes, strict=True)],
            range(self.batch),
        )


def ordinary_ids(parts: Parts) -> tuple[int, int]:
    """The ids that may be planted: those of words, below the first special token."""
    return 0, min(parts.mask_id, parts.text[EOT])


def rediff(model: str = "mini", planted: int = 1, swap: float = 0.1, batch: int = 16, seed: int = 0) -> Recipe:
    """Tune a model of the world on captions with planted errors (ReDiff, arXiv 2510.19871). ``planted``: 0 for masks alone."""
    start = start_of(model)
    parts = start.parts
    low, high = ordinary_ids(parts)
    errors = Masked(corruption=Planted(low=low, high=high, swap=swap), weight=EachGroup())
    return Recipe(
        name=f"rediff of {start.name}",
        model=start.network,
        source=CaptionsOfPictures(parts=parts, seed=seed, batch=batch),
        objective=errors if planted else Masked(corruption=Absorbing(otherwise=Uniform())),
        optim=Optim(lr=6e-4, warmup=20, decay_from=0.5, floor=0.05, ema=0.98, clip=1.0),
        training=Training(steps=400, seed=seed, save_every=100, log_every=20),
        trainable=lambda name: not name.startswith("vision"),
        export=lambda module, folder: start.export(module, folder, ()),
    )
