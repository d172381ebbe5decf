"""Pictures of one or two large objects with a text, for experiments with networks that train in minutes.

Public idea: ``Pairs()(seed, index) -> Pair``. A text names each object, its colour and the background, and with ``places`` where each
object is, which then determines the picture. Texts are split by their hash, so that those of "test" never occur in training.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from random import Random

from unmask.data.world.language import article, at, noun, position_word
from unmask.data.world.scenes import SPLITS, Scene, SceneObject, apart
from unmask.data.world.vocabulary import BACKGROUNDS, LEVELS

_SIZE = 0.5  # of the picture's side
_STEPS = 3  # places along a side, a quarter of it apart
_TEST_ONE_IN = 8


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A scene of the level "grid" and its text."""

    scene: Scene
    text: str


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """``colours``: "" is natural · ``most``: objects of a picture, 1 or 2 · ``places``: whether texts say where objects are."""

    classes: tuple[str, ...] = ("apple", "cat", "car", "book")
    colours: tuple[str, ...] = ("", "blue", "green", "yellow")
    backgrounds: tuple[str, ...] = ("white",)
    most: int = 1
    places: bool = False

    def __post_init__(self) -> None:
        unknown = set(self.classes) - set(LEVELS["grid"].classes)
        if unknown or not self.classes:
            raise ValueError(f"classes are some of the grid level's, got {sorted(unknown) or 'none'}")
        if self.most not in (1, 2):
            raise ValueError(f"a picture has at most 1 or 2 objects of this size, got most={self.most}")

    def __call__(self, seed: int, index: int, split: str = "train") -> Pair:
        """Pair number ``index`` of a split, train or test; a pure function of its arguments."""
        if split not in (SPLITS[0], SPLITS[-1]):
            raise ValueError(f"the splits of pairs are train and test, got {split!r}")
        rng = Random(f"pairs/{split}/{seed}/{index}")
        while True:
            pair = self._drawn(rng)
            if (zlib.crc32(pair.text.encode()) % _TEST_ONE_IN == 0) == (split == "test"):
                return pair

    def _drawn(self, rng: Random) -> Pair:
        spots: list[tuple[float, float, float]] = []
        for _ in range(rng.randint(1, self.most)):
            free = [spot for spot in _SPOTS if all(apart(spot, other) for other in spots)]
            spots += [rng.choice(free)] if free else []
        objects = tuple(
            SceneObject(name=rng.choice(self.classes), colour=rng.choice(self.colours), x=x, y=y, size=size)
            for x, y, size in spots
        )
        scene = Scene(objects=objects, background=rng.choice(self.backgrounds), level="grid")
        return Pair(scene=scene, text=self.text(scene))

    def text(self, scene: Scene) -> str:
        """``a red apple and a cat on a sky background``; with places ``a red apple at the top left and …``."""
        said = [
            f"{article(noun(obj))} {at(position_word(obj))}" if self.places else article(noun(obj))
            for obj in scene.objects
        ]
        return f"{' and '.join(said)} {BACKGROUNDS[scene.background][0]}"


_SPOTS = [(x / 4, y / 4, _SIZE) for y in range(_STEPS) for x in range(_STEPS)]
