"""How a picture is made from what an item asks for: the arm of a measurement. Public idea: ``Drawer()``, ``Editor()``.

An arm is called with a model and items and hands back their pictures, in one batch; whatever has this shape can take its place
in a part (``GenEval(draw=…)``). Item i's picture must follow from its own text and seed alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image

from unmask.recipe import override
from unmask.sampling.sampler import Sampler
from unmask.sequence import Sequence as Tokens
from unmask.tasks import edit, generate
from unmask.tasks.model import Model, describe
from unmask.tasks.parts import Parts

Make = Callable[[Parts], Sampler]


class Arm(Protocol):
    """(model, items) -> uint8 [N, S, S, 3]; ``settings``: what its pictures follow from beside weights, texts and seeds."""

    def __call__(self, model: Model, items: Sequence[Any]) -> np.ndarray: ...
    def settings(self, model: Model) -> Any: ...


class Told(Protocol):
    """What is drawn: a picture of ``text``."""

    @property
    def text(self) -> str: ...
    @property
    def seed(self) -> int: ...


class Changed(Told, Protocol):
    """What is edited: ``picture(side)``, a square of that many pixels where the item can choose, changed as ``text`` says."""

    def picture(self, side: int) -> Image.Image: ...


@dataclass(frozen=True, kw_only=True)
class Drawer:
    """Draws prompts. ``sampler``: parts of the model -> how, None: the model's own · ``changes``: ``("pace.steps=8",)``."""

    sampler: Make | None = None
    changes: tuple[str, ...] = ()

    def __call__(self, model: Model, items: Sequence[Told]) -> np.ndarray:
        built = [generate.Generate(prompt=item.text).build(model.parts) for item in items]
        return _made(model, built, items, self._sampler(model))

    def settings(self, model: Model) -> Any:
        return describe(self._sampler(model))

    def _sampler(self, model: Model) -> Sampler:
        return override((self.sampler or model.presets.generate)(model.parts), self.changes)


@dataclass(frozen=True, kw_only=True)
class Editor:
    """Edits pictures. Fields as ``Drawer``'s."""

    sampler: Make | None = None
    changes: tuple[str, ...] = ()

    def __call__(self, model: Model, items: Sequence[Changed]) -> np.ndarray:
        built = []
        for item in items:
            picture = item.picture(model.parts.side)
            pixels, seen = model.parts.see(picture)[0], model.parts.look(picture)
            built.append(edit.Edit(pixels=pixels, instruction=item.text, look=seen).build(model.parts))
        return _made(model, built, items, self._sampler(model))

    def settings(self, model: Model) -> Any:
        return describe(self._sampler(model))

    def _sampler(self, model: Model) -> Sampler:
        return override((self.sampler or model.presets.edit)(model.parts), self.changes)


def _made(model: Model, built: Sequence[Tokens], items: Sequence[Told], sampler: Sampler) -> np.ndarray:
    done = model.run(built, [item.seed for item in items], sampler)
    codes = torch.stack([generate.picture_codes(row, "image") for row in done.rows])
    return np.stack([np.asarray(image) for image in model.parts.decode(codes.to(model.device))])
