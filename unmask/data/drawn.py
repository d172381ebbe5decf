"""Critiques of generated images. Public ideas: a folder of ``Drawn`` images, and the source ``DrawnCritiques``.

Made by ``recipes.mini_drawn``: images of training prompts, labelled by ``world.reading`` (no learned parts, and not the judge of the
evaluation). Images whose scene was recognised completely are also paired with other captions, as renderings are.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from random import Random

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from unmask.data.thinking import answering
from unmask.data.world import critiques
from unmask.data.world.scenes import Scene, SceneObject, shows_held_out
from unmask.sequence import Batch, collate
from unmask.tokens.build import Builder, looking
from unmask.tokens.text import Text
from unmask.writing import pending, tensor_writer, write_together

_PICTURES, _LABELS, _JOURNAL = "pictures.safetensors", "drawn.jsonl", "drawn.pending.json"


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """``critique`` of the image for its ``prompt``, "" if correct · ``scene``: recognised objects · ``clean``: nothing else is shown."""

    prompt: str
    critique: str
    scene: Scene
    clean: bool


def save_drawn(folder: Path, pictures_NHW3: Tensor, drawn: Items[Drawn]) -> None:
    """Save images uint8 [N, side, side, 3] with their labels. ValueError if one shows a held-out combination."""
    for i, d in enumerate(drawn):
        if shows_held_out(d.scene):
            raise ValueError(f"image {i} shows a combination held out for the test split; leave it out")
    load_drawn.cache_clear()
    folder.mkdir(parents=True, exist_ok=True)
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
    text = "".join(f"{line}\n" for line in lines)
    writers: dict[Path, Callable[[Path], object]] = {
        folder / _PICTURES: tensor_writer({"pictures": pictures_NHW3}),
        folder / _LABELS: lambda part: part.write_text(text, encoding="utf-8"),
    }
    write_together(writers, folder / _JOURNAL)


@lru_cache(maxsize=4)
def load_drawn(folder: Path) -> tuple[Tensor, tuple[Drawn, ...]]:
    """Load what ``save_drawn`` wrote. ValueError if a file is missing or damaged, or the files do not match."""
    try:
        now = pending(folder / _JOURNAL)  # of a save that was interrupted
        pictures = load_file(now.get(_PICTURES, folder / _PICTURES))["pictures"]
        lines = now.get(_LABELS, folder / _LABELS).read_text("utf-8").splitlines()
        drawn = tuple(_drawn(json.loads(line)) for line in lines)
    except FileNotFoundError:
        raise ValueError(f"{folder} contains no generated images; create them with unmask.recipes.mini_drawn") from None
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"the generated images in {folder} are damaged ({error}); create them again") from error
    if len(pictures) != len(drawn):
        raise ValueError(f"{folder} has {len(pictures)} images but {len(drawn)} labels; create it again")
    return pictures, drawn


def _drawn(record: dict) -> Drawn:
    names = ("name", "colour", "x", "y", "size")
    objects = tuple(SceneObject(**dict(zip(names, obj, strict=True))) for obj in record["things"])
    scene = Scene(objects=objects, background=record["background"], level=record["level"])
    return Drawn(prompt=record["prompt"], critique=record["critique"], scene=scene, clean=record["clean"])


@dataclass(frozen=True, kw_only=True)
class DrawnCritiques:
    """Generated image and its prompt -> critique, in ``length`` tokens; ``captions`` more pairs for completely recognised images.

    Correct and incorrect images are balanced. ``related``: share of the other captions with a spatial relation, if there is one.
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
            pairs = [
                (b.wording.critique.format(caption=caption), words) for caption, words in self._pairs(drawn[i], rng)
            ]
            rows.append(answering(b, pairs, rng, self.length))
        return collate(rows, range(self.batch))

    def _pairs(self, drawn: Drawn, rng: Random) -> list[tuple[str, str]]:
        pairs = [(drawn.prompt, drawn.critique or critiques.approval(rng))]
        if drawn.clean:
            pairs += [critiques.sample_pair(drawn.scene, rng, self.related) for _ in range(self.captions)]
        return pairs
