"""Generate images of training prompts with a model and label them by rules, as training data for critiques in ``mini.stage3``.

    python -c "from unmask.recipes.mini import ship; ship(out='runs/first')"
    python -c "from unmask.recipes.mini_drawn import draw; draw('runs/first', 'runs/drawn')"
    unmask train mini.stage3 --out runs/second -o start=runs/stage3 -o drawn=runs/drawn

A critic trained on renderings alone has not seen typical errors of generated images. Prompts are of GenEval's six categories, hard ones
more often, and of ``world_composed``, from scenes of the training split; three batches in four use the model's own plans. An interrupted
run resumes.
"""

from __future__ import annotations

import json
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from random import Random

import numpy as np
import torch
from rich.console import Console
from rich.progress import track

from unmask.data.drawn import Drawn, load_drawn, save_drawn
from unmask.data.world import critiques
from unmask.data.world.language import size_word
from unmask.data.world.reading import read
from unmask.data.world.scenes import Scene, SceneObject, relation, shows_held_out
from unmask.evaluation.evaluate import weights_digest
from unmask.evaluation.scoring import Related, Want
from unmask.evaluation.strategies import PromptGenerator
from unmask.evaluation.world_composed import COMPOSED
from unmask.evaluation.world_geneval import CATEGORIES, GENEVAL, Prompt, PromptKind
from unmask.pipeline.model import Model
from unmask.tasks.reflecting import Thinking
from unmask.writing import write_text

_HARD = (
    "counting",
    "position",
    "color_attr",
    "two",
    "counting",
    "position",
    "color_attr",
    "colors",
    "single",
    "position",
)
KINDS: tuple[PromptKind, ...] = (*(GENEVAL[CATEGORIES.index(name)] for name in _HARD), *COMPOSED)
BATCH, BATCH_OF_GPU = 64, 256


def draw(model: str = "mini", out: str = "runs/drawn", count: int = 6000, seed: int = 0) -> None:
    """Generate images for ``count`` prompts and keep those that could be labelled. Deterministic in ``seed``.

    ``model``: a name or a folder. ValueError if ``out`` holds images of other weights or another seed, or if no image could be labelled.
    """
    draw_share(model, out, count, seed)
    if not collect(out):
        raise ValueError(f"none of {count} images could be labelled; is {model} trained on level grid?")


def collect(out: str) -> int:
    """Join the batches that are drawn; returns the number of labelled images, and writes nothing if it is 0."""
    parts = [load_drawn(part) for part in sorted((Path(out) / "parts").iterdir())]
    drawn = [d for _, some in parts for d in some]
    if drawn:
        save_drawn(Path(out), torch.cat([pictures for pictures, _ in parts]), drawn)
    return len(drawn)


def draw_share(model: str, out: str, count: int, seed: int, rank: int = 0, world: int = 1, workers: int = 0) -> None:
    """The batches of one process of several that draw at the same time; those that are there are kept. ValueError as of ``draw``.

    ``workers``: processes that label the images, for a GPU, which then draws ``BATCH_OF_GPU`` images at a time.
    """
    import unmask

    opened, folder = unmask.load(model), Path(out)
    if not isinstance(opened, Model):
        raise ValueError(f"{model} is a text model; give an image model")
    _claim(folder, {"weights": weights_digest(opened.parts.net).hex(), "seed": seed})
    wanted = training_prompts(count, seed)
    batch = BATCH_OF_GPU if workers else BATCH
    parts = _parts(folder, count, batch)[rank::world]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) if workers else nullcontext() as pool:
        for part, first in track(parts, description="drawing", console=Console(stderr=True)):
            if not (part / "drawn.jsonl").exists():  # written last
                some = wanted[first : first + batch]
                pictures = PromptGenerator(thinking=Thinking(plan=bool(first // batch % 4)))(opened, some)
                rngs = [Random(f"drawn/{seed}/{first + i}") for i in range(len(some))]
                labels = list((pool.map if pool else map)(labelled, some, pictures, rngs))
                kept = np.array([one is not None for one in labels])
                save_drawn(part, torch.from_numpy(pictures[kept]), [one for one in labels if one])


def _parts(folder: Path, count: int, batch: int) -> list[tuple[Path, int]]:
    """Folder and first prompt of every batch."""
    starts = range(0, count, batch)
    return [(folder / "parts" / f"{first:06}-{min(first + batch, count):06}", first) for first in starts]


def training_prompts(count: int, seed: int) -> list[Prompt]:
    """The first ``count`` prompts, deterministic; half of them without "a photo of"."""
    kinds = [KINDS[i % len(KINDS)] for i in range(count)]
    counts = Counter(kind.name for kind in kinds)
    ready = {
        kind.name: iter(kind.prompts(counts[kind.name], level="grid", split="train", seed=900 + seed))
        for kind in KINDS
        if counts[kind.name]
    }
    rng = Random(f"wishes/{seed}")
    made = [next(ready[kind.name]) for kind in kinds]
    return [replace(p, text=p.text.removeprefix("a photo of ")) if rng.random() < 0.5 else p for p in made]


def _claim(folder: Path, about: dict[str, object]) -> None:
    """Record which weights and seed a folder belongs to."""
    path = folder / "about.json"
    if path.exists() and json.loads(path.read_text("utf-8")) != about:
        raise ValueError(f"{folder} holds images of other weights or another seed; choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(about) + "\n")


def labelled(prompt: Prompt, picture: np.ndarray, rng: Random) -> Drawn | None:
    """The labels of an image uint8 [side, side, 3]; None if nothing was recognised reliably or a combination is held out."""
    reading = read(picture)
    words = rule_critique(prompt.want, reading.scene, rng)
    if words is None or not reading.scene.objects or shows_held_out(reading.scene) or not (words or reading.clean):
        return None
    return Drawn(prompt=prompt.text, critique=words, scene=reading.scene, clean=reading.clean)


def rule_critique(want: Want, scene: Scene, rng: Random) -> str | None:
    """The first error of a scene: counts, then colours, sizes, relations and the background; "" if there is none, None where no word
    exists for it.
    """
    for name in dict.fromkeys(item.name for item in want.items):
        items = [item for item in want.items if item.name == name]
        shown = _shown(scene, name)
        wanted = sum(item.count for item in items)
        if not shown:
            return critiques.missing_critique(name, rng)
        if len(shown) < wanted or (len(shown) > wanted and any(item.exact for item in items)):
            return critiques.count_critique(replace(shown[0], colour=""), wanted, len(shown))
    for item in want.items:
        colours = [t.colour for t in _shown(scene, item.name)]
        if item.colour is not None and colours.count(item.colour) < item.count:
            other = next(c for c in colours if c != item.colour)
            # There is no word for natural colours.
            return (
                critiques.colour_critique(item.name, item.count, item.colour, other) if item.colour and other else None
            )
    for item in want.items:
        if item.size and any(size_word(t, scene.level) != item.size for t in _shown(scene, item.name)):
            return critiques.size_critique(_shown(scene, item.name), bigger=item.size == "big")
    if want.related and (words := _relation_error(want.related, scene)):
        return words
    return critiques.background_critique(want.background, scene.background) if _other(want, scene) else ""


def _shown(scene: Scene, name: str) -> list[SceneObject]:
    return [t for t in scene.objects if t.name == name]


def _other(want: Want, scene: Scene) -> bool:
    return want.background not in ("", scene.background)


def _relation_error(related: Related, scene: Scene) -> str:
    first, second = (_shown(scene, item.name) for item in (related.first, related.second))
    holds = [relation(a, b) == related.relation for a in first for b in second if a is not b]
    if (all if related.every else any)(holds):
        return ""
    return critiques.relation_critique(critiques.those(first), related.relation, critiques.those(second))
