"""What a fine-tuning run measures as it goes: the loss of held-out samples, and a sheet of pictures.

Public idea: ``ValidationLoss`` and ``Sheet``, for ``recipe.Eval``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from unmask.data.own import OwnData
from unmask.models.elastic import Elastic
from unmask.objectives.masked import Scores
from unmask.pipeline.model import Model
from unmask.rng import generator
from unmask.tasks.parts import Parts, Presets
from unmask.training.device import move

_SIDE, _HIGH, _COLUMNS = 192, 34, 4  # pixels of a picture and of the text below it; pictures in a row


@dataclass(frozen=True, kw_only=True)
class ValidationLoss:
    """{format.term: loss} and their mean ``loss`` over the first ``most`` samples of every format, with the same masks every time."""

    source: OwnData
    objectives: Mapping[str, Scores]
    seed: int
    most: int = 32

    def __call__(self, module: Elastic, step: int) -> dict[str, float]:
        device = module.embed.weight.device
        found = {}
        for name, batch in self.source.every(self.most).items():
            loss = self.objectives[name](module, move(batch, device), generator("validation", self.seed, name))
            found |= {f"{name}.{term}": float(value) for term, value in loss.terms.items()}
        return found | ({"loss": sum(found.values()) / len(found)} if found else {})


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """Draws ``prompts`` and writes the pictures as samples/STEP.png into ``folder``. Returns nothing to record."""

    parts: Parts
    presets: Presets
    prompts: tuple[str, ...]
    folder: Path

    def __call__(self, module: Elastic, step: int) -> dict[str, float]:
        model = Model(replace(self.parts, net=module, weights=None), self.presets)
        self.parts.vq.to(module.embed.weight.device)
        drawn = [model.generate(prompt, attempts=1, seed=number)[0].image for number, prompt in enumerate(self.prompts)]
        path = self.folder / "samples" / f"{step:06d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".png.part")
        page(drawn, self.prompts).save(part, format="PNG")
        os.replace(part, path)
        return {}


def page(pictures: list[Image.Image], words: tuple[str, ...]) -> Image.Image:
    """Pictures in rows of four on white, each with its text below, cut to two lines."""
    rows = -(-len(pictures) // _COLUMNS)
    whole = Image.new("RGB", (_COLUMNS * (_SIDE + 8) + 8, rows * (_SIDE + _HIGH + 8) + 8), "white")
    pen, font = ImageDraw.Draw(whole), ImageFont.load_default(12)
    for i, (picture, text) in enumerate(zip(pictures, words, strict=True)):
        x, y = 8 + i % _COLUMNS * (_SIDE + 8), 8 + i // _COLUMNS * (_SIDE + _HIGH + 8)
        whole.paste(picture.convert("RGB").resize((_SIDE, _SIDE), Image.Resampling.BICUBIC), (x, y))
        lines = [text[j : j + 32] for j in range(0, min(len(text), 64), 32)]
        pen.text((x, y + _SIDE + 2), "\n".join(lines), fill=(40, 40, 44), font=font)
    return whole
