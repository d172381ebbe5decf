"""Critiques of pictures that a model drew itself. Public ideas: a folder of ``Drawn`` pictures, and the source ``DrawnCritiques``.

Made by ``recipes.mini_drawn``: pictures of training prompts, read by ``world.reading`` (nothing learned, and not the judge of the
evaluation). A picture whose scene was read in full is also asked about with other captions, as renderings are.
"""

from __future__ import annotations

import json
from collections.abc import Sequence as Items
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from random import Random

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from unmask.data.thinking import answering
from unmask.data.world import critiques
from unmask.data.world.scenes import Scene, SceneObject, shows_held_out
from unmask.sequence import Batch, collate
from unmask.tokens.build import Builder, looking
from unmask.tokens.text import Text


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """``prompt``: what was asked for · ``critique``: what is wrong, "" if nothing is · ``scene``: what was read · ``clean``: all of it."""

    prompt: str
    critique: str
    scene: Scene
    clean: bool


def save_drawn(folder: Path, pictures_NHW3: Tensor, drawn: Items[Drawn]) -> None:
    """Pictures uint8 [N, side, side, 3] with what is known of them. ValueError where one shows a held-out combination."""
    for i, d in enumerate(drawn):
        if shows_held_out(d.scene):
            raise ValueError(f"picture {i} shows what is held out for the test split; leave it out")
    load_drawn.cache_clear()
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"pictures": pictures_NHW3}, folder / "pictures.safetensors")
    lines = (
        json.dumps(
            {
                "prompt": d.prompt,
                "critique": d.critique,
                "clean": d.clean,
                "level": d.scene.level,
                "background": d.scene.background,
                "things": [[t.name, t.colour, t.x, t.y, t.size] for t in d.scene.objects],
            }
        )
        for d in drawn
    )
    (folder / "drawn.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


@lru_cache(maxsize=4)
def load_drawn(folder: Path) -> tuple[Tensor, tuple[Drawn, ...]]:
    """What ``save_drawn`` wrote. ValueError where a file is missing or damaged, or the two do not belong together."""
    try:
        pictures = load_file(folder / "pictures.safetensors")["pictures"]
        drawn = tuple(_drawn(json.loads(line)) for line in (folder / "drawn.jsonl").read_text("utf-8").splitlines())
    except FileNotFoundError:
        raise ValueError(f"{folder} holds no drawn pictures; make them by unmask.recipes.mini_drawn") from None
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"the drawn pictures in {folder} are damaged ({error}); make them anew") from error
    if len(pictures) != len(drawn):
        raise ValueError(f"{folder} has {len(pictures)} pictures and {len(drawn)} lines about them; make it anew")
    return pictures, drawn


def _drawn(told: dict) -> Drawn:
    names = ("name", "colour", "x", "y", "size")
    objects = tuple(SceneObject(**dict(zip(names, obj, strict=True))) for obj in told["things"])
    scene = Scene(objects=objects, background=told["background"], level=told["level"])
    return Drawn(prompt=told["prompt"], critique=told["critique"], scene=scene, clean=told["clean"])


@dataclass(frozen=True, kw_only=True)
class DrawnCritiques:
    """Drawn picture and its prompt -> "... is correct", or what is wrong, in ``length`` tokens; ``captions`` more where all was read.

    Right pictures come as often as wrong ones, however many there are of either; a share ``related`` of the other captions says how two
    objects lie, where two do.
    """

    text: Text
    seed: int
    look_tokens: int
    folder: Path
    batch: int = 8
    length: int = 16
    captions: int = 2
    related: float = 0.0

    def __call__(self, step: int) -> Batch:
        rng = Random(f"drawn critiques/{self.seed}/{step}")
        pictures, drawn = load_drawn(self.folder)
        sides = [
            some for right in (True, False) if (some := [i for i, d in enumerate(drawn) if right == (not d.critique)])
        ]
        rows = []
        for i in (rng.choice(rng.choice(sides)) for _ in range(self.batch)):
            pixels = pictures[i].permute(2, 0, 1).float() / 255
            b = looking(Builder(text=self.text, look_tokens=self.look_tokens), pixels)
            pairs = [(b.wording.critique.format(caption=said), words) for said, words in self._said(drawn[i], rng)]
            rows.append(answering(b, pairs, rng, self.length))
        return collate(rows, range(self.batch), features_per_image=self.look_tokens)

    def _said(self, drawn: Drawn, rng: Random) -> list[tuple[str, str]]:
        said = [(drawn.prompt, drawn.critique or critiques.approval(rng))]
        if drawn.clean:
            said += [critiques.sample_pair(drawn.scene, rng, self.related) for _ in range(self.captions)]
        return said
