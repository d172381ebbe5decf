"""SUR-adapter: terse prompts that draw what detailed ones would, by an adapter on a frozen generator, and its demonstration.

    unmask train sur_adapter.terse --out runs/terse                    terse prompts of the small world
    unmask train sur_adapter.terse --data pets --out runs/pets         your own: a folder of pictures with texts (docs/data.md)
    unmask generate "a dog at the top" --model runs/terse
    unmask methods run sur_adapter

In this world every object has a colour of its own, which terse prompts leave out: "a dog at the top left" means the red dog. The generator
is the embedded model, which knows nothing of that; the adapter rewrites the vectors of its prompt.
"""

from __future__ import annotations

import json
from collections.abc import Sequence as Items
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from random import Random

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from unmask.checkpoints.schema import read_json
from unmask.checkpoints.store import load_module, save_module
from unmask.checkpoints.stream import CheckpointError
from unmask.corruption.absorbing import Absorbing
from unmask.corruption.schedules import Cosine, OftenAll
from unmask.data.sources import CachedEncoder, pixels_of
from unmask.data.world.pairs import Pairs
from unmask.data.world.scenes import Scene
from unmask.data.world.vocabulary import LEVELS
from unmask.evaluation.demonstration import Demonstration, Findings, Media, Table, Work
from unmask.evaluation.demonstration_page import said
from unmask.evaluation.metrics import Figure, over_seeds
from unmask.evaluation.scoring import Want, colors
from unmask.json_types import Json
from unmask.methods.sur_adapter import Distilled, SurAdapter, Triples
from unmask.models.bridges import TextAdapter
from unmask.objectives.masked import Masked
from unmask.pipeline.model import Model
from unmask.recipe import Optim, Recipe, Training
from unmask.recipes.conditions import (
    conditioned,
    drawing_model,
    drawn,
    fingerprint,
    frozen,
    judged,
    plain,
    states_of,
    told,
)
from unmask.recipes.image_tokens import mini_kit, own
from unmask.rng import generator, seeded
from unmask.sequence import Kind, Sequence, Span, collate
from unmask.writing import write_text

NAME = "sur_adapter.terse"
CLASSES = LEVELS["grid"].classes[:12]
COLOUR = {name: LEVELS["grid"].colours[i % 6] for i, name in enumerate(CLASSES)}  # what a terse prompt implies
TERSE = Pairs(classes=CLASSES, colours=("",), places=True)
_LENGTH = 20
# Colours are chosen at the first steps, where no code is known; visible codes would tell them in training.
_DENOISING = Masked(corruption=Absorbing(policies={Kind.CODE: OftenAll(policy=Cosine(), all=0.7)}))


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """``short``, ``long``: texts of pictures · ``codes`` [N, h, w] · ``vectors`` [N, 1, D]: what the frozen network makes of the long
    texts · ``wants``: what a picture must show, empty for own data.
    """

    short: tuple[str, ...]
    long: tuple[str, ...]
    codes: Tensor
    vectors: Tensor
    wants: tuple[Want, ...] = ()


def coloured(scene: Scene) -> Scene:
    """The scene that a terse prompt means."""
    return replace(scene, objects=tuple(replace(one, colour=COLOUR[one.name]) for one in scene.objects))


def wanted(scene: Scene) -> Want:
    """Its object in the colour that it implies."""
    (thing,) = scene.objects
    return colors(thing.name, COLOUR[thing.name])


@lru_cache(maxsize=4)
def world(count: int, seed: int, split: str = "train") -> Prompts:
    """``count`` terse prompts with the detailed ones and their pictures; those of "test" are new texts."""
    parts, pairs = frozen(), [TERSE(seed, i, split) for i in range(count)]
    scenes = [coloured(pair.scene) for pair in pairs]
    encode, long = CachedEncoder(parts.vq.encode), tuple(TERSE.text(scene) for scene in scenes)
    with torch.no_grad():
        codes = [encode(pixels_of(scenes[i : i + 100], parts.side)) for i in range(0, count, 100)]
    return Prompts(
        short=tuple(pair.text for pair in pairs),
        long=long,
        codes=torch.cat(codes),
        vectors=vectors_of(long),
        wants=tuple(wanted(scene) for scene in scenes),
    )


@lru_cache(maxsize=2)
def own_prompts(data: str) -> Prompts:
    """A user's captions, each as both its own short and long text: the pictures alone teach what is implied."""
    found = own(data, mini_kit(), _LENGTH - 5)
    return Prompts(short=found.texts, long=found.texts, codes=found.codes, vectors=vectors_of(found.texts))


@torch.no_grad()
def vectors_of(texts: Items[str], at_once: int = 100) -> Tensor:
    """What the frozen network makes of texts, the mean of its last states over words, [N, 1, D]."""
    parts, found = frozen(), []
    for text in texts:
        ids = parts.text.encode(text)
        span = Span(name="answer", kind=Kind.TEXT, start=0, stop=len(ids), writable=True)
        found.append(Sequence(ids=torch.tensor(ids), masked=torch.zeros(len(ids), dtype=torch.bool), spans=(span,)))
    means = []
    for i in range(0, len(found), at_once):
        batch = collate(found[i : i + at_once], range(len(found[i : i + at_once])))
        scored = parts.net.hidden_states(batch, predict=batch.valid).scored[Kind.TEXT]
        assert scored.hidden is not None
        rows, hidden = scored.at // batch.ids.shape[1], scored.hidden[: len(scored.at)].float()
        sums = hidden.new_zeros(batch.rows, hidden.shape[1]).index_add_(0, rows, hidden)
        means.append(sums / batch.valid.sum(1, keepdim=True))
    return torch.cat(means)[:, None]


def denoising(states: Tensor, batch: Triples) -> Tensor:
    """The frozen generator's loss of pictures under prompt vectors. ``batch.target`` [B, 1 + n]: the step, then a picture's codes."""
    parts = frozen()
    codes = batch.target[:, 1:].unflatten(1, parts.grid)
    clean = conditioned(parts, states, codes)
    rng = generator("sur denoising", int(batch.target[0, 0]))
    return _DENOISING(parts.net, clean, rng).total  # type: ignore[union-attr]


def unscored(states: Tensor, batch: Triples) -> Tensor:
    """Of the release: the generator's loss gives no gradient there, so it is not computed."""
    return states.new_zeros(())


def adapter(released: bool = False) -> SurAdapter:
    """A new adapter. ``released``: it attends over rows of a batch, and shrinks its input."""
    width = frozen().net.config.width
    text = TextAdapter(width, hidden=2 * width, across=released, kept=0.9 if released else 1.0)
    return SurAdapter(text, vector=width, width=width)


def terse(
    data: str = "",
    released: bool = False,
    prompts: int = 240,
    batch: int = 8,
    steps: int = 80,
    lr: float = 4e-3,
    seed: int = 0,
) -> Recipe:
    """An adapter of the embedded model's prompts. ``data``: your own captions and pictures; "": ``prompts`` prompts of the small world ·
    ``released``: as the released code trains it, without the gradient of the generator.
    """

    def rows(step: int) -> Triples:
        found, rng, parts = own_prompts(data) if data else world(prompts, 0), Random(f"terse/{seed}/{step}"), frozen()
        chosen = [rng.randrange(len(found.short)) for _ in range(batch)]
        codes = found.codes[chosen].flatten(1)
        return Triples(
            short=states_of(parts, [found.short[i] for i in chosen], _LENGTH),
            long=states_of(parts, [found.long[i] for i in chosen], _LENGTH),
            vector=found.vectors[chosen],
            target=torch.cat([torch.full_like(codes[:, :1], seed * 100_003 + step), codes], 1),
        )

    return Recipe(
        name=NAME,
        model=lambda: seeded(lambda: adapter(released), seed),
        source=rows,
        objective=Distilled(denoising=unscored if released else denoising, through=not released),
        optim=Optim(lr=lr, warmup=20, decay_from=0.4, floor=0.05, ema=0.98),
        training=Training(steps=steps, seed=seed, save_every=100, bf16=False, device="cpu"),
        export=partial(_export, released=released),
        open=opened_model,
    )


def _export(module: SurAdapter, folder: Path, *, released: bool) -> None:
    save_module(module, folder)
    write_text(folder / "config.json", json.dumps({"recipe": NAME, "released": released}) + "\n")


def opened_model(folder: Path, device: str = "cpu") -> Model:
    """The embedded model with the adapter of a folder of ``terse``. CheckpointError for a file that is missing or does not fit."""
    raw = read_json(folder / "config.json")
    if not isinstance(raw.get("released"), bool):
        raise CheckpointError(f"{folder / 'config.json'}: released must be true or false, got {raw.get('released')!r}")
    net = load_module(adapter(raw["released"]), folder).eval()
    return drawing_model(lambda prompt: adapted(net, [prompt])[0], "a model with an adapter")


@torch.no_grad()
def adapted(net: SurAdapter, texts: Items[str]) -> Tensor:
    """The vectors of prompts, [B, L, D]."""
    return net(states_of(frozen(), texts, _LENGTH))[0]


# -- the demonstration -------------------------------------------------------------------------------------------------

_STEPS, _PROMPTS, _TESTED, _DRAWN_IN = 80, 240, 16, 8
ARMS = {"as released": True, "as meant": False}


def demo(work: Work) -> Findings:
    before = fingerprint(frozen().net)
    base, found = [], list[Json]()
    for n, seed in enumerate(work.seeds):
        base.append(work.once(f"base/{seed}", partial(_base, work, seed)))
        found.append(
            {arm: work.once(f"{arm.replace(' ', '_')}/{seed}", partial(_measured, work, arm, seed)) for arm in ARMS}
        )
        work.on_progress("seeds", n + 1, len(work.seeds))
    if fingerprint(frozen().net) != before:
        raise RuntimeError("the frozen generator has changed")
    return _findings(base, found, work)


def _tested(work: Work) -> Prompts:
    return world(work.steps(_TESTED, least=2), 77, "test")


def _share(pictures: np.ndarray, wants: Items[Want]) -> float:
    rights = judged(pictures, wants)
    return sum(rights) / len(rights)


def _base(work: Work, seed: int) -> Json:
    test, parts = _tested(work), frozen()
    return {
        name: _share(drawn(parts, plain(parts, texts), seed, _DRAWN_IN), test.wants)
        for name, texts in (("terse", test.short), ("detailed", test.long))
    }


@lru_cache(maxsize=2)
def _net(work: Work, arm: str, seed: int) -> SurAdapter:
    steps, prompts = work.steps(_STEPS, least=2), work.steps(_PROMPTS, least=16)
    net = work.train(
        f"{arm.replace(' ', '_')}/{seed}", terse(released=ARMS[arm], prompts=prompts, steps=steps, seed=seed)
    )
    assert isinstance(net, SurAdapter)
    return net


def _pictures(net: SurAdapter, texts: Items[str], seed: int) -> np.ndarray:
    parts = frozen()
    return drawn(parts, [told(parts, one) for one in adapted(net, texts)], seed, _DRAWN_IN)


def _measured(work: Work, arm: str, seed: int) -> Json:
    test, net = _tested(work), _net(work, arm, seed)
    found = {
        name: _share(_pictures(net, texts, seed), test.wants)
        for name, texts in (("terse", test.short), ("detailed", test.long))
    }
    together, alone = adapted(net, test.short[:2]), adapted(net, test.short[:1])
    return found | {"neighbour": float((together[0] - alone[0]).norm() / alone[0].norm())}


def _findings(base: list[Json], found: list[Json], work: Work) -> Findings:
    def over(arm: str, what: str) -> Figure:
        return over_seeds([one[what] for one in base] if arm == "none" else [one[arm][what] for one in found])

    meant = over_seeds([one["as meant"]["terse"] - b["terse"] for one, b in zip(found, base, strict=True)])
    against = over_seeds([one["as meant"]["terse"] - one["as released"]["terse"] for one in found])
    detailed = over_seeds([one["as meant"]["detailed"] - b["detailed"] for one, b in zip(found, base, strict=True)])
    return Findings(
        about="Terse prompts leave out the colours that their objects imply. The embedded model is frozen and draws "
        f"{len(_tested(work).short)} new prompts in {_DRAWN_IN} steps; a judge looks for the objects in the implied colours. Both adapters "
        f"train for {work.steps(_STEPS, least=2)} updates on the same rows, {len(work.seeds)} seeds. As released, the pictures give no "
        "gradient.",
        verdict=f"On terse prompts the adapter as meant draws {said(over('as meant', 'terse'))} rightly, as released "
        f"{said(over('as released', 'terse'))}, no adapter {said(over('none', 'terse'))}; detailed prompts change by {said(detailed)}.",
        seen=all(one["low"] is not None and one["low"] > 0 for one in (meant, against)),
        figures={
            "meant_minus_none": meant,
            "meant_minus_released": against,
            "meant": over("as meant", "terse"),
            "released": over("as released", "terse"),
            "none": over("none", "terse"),
            "detailed.meant_minus_none": detailed,
        },
        shown=(
            Table(
                title="Judged right",
                head=("adapter", "terse prompts", "detailed prompts", "changed by a neighbour in the batch"),
                rows=(
                    ("none", over("none", "terse"), over("none", "detailed"), ""),
                    *((arm, *(over(arm, what) for what in ("terse", "detailed", "neighbour"))) for arm in ARMS),
                ),
                note="Detailed prompts without an adapter are what terse ones can reach at most. The last column is relative.",
            ),
            Media(title="Drawings of terse prompts, first seed", items=_shown(work)),
        ),
    )


def _shown(work: Work) -> tuple[tuple[str, Image.Image], ...]:
    texts, parts, items = list(_tested(work).short[:3]), frozen(), []
    every = {"none": drawn(parts, plain(parts, texts), 0, _DRAWN_IN)}
    every |= {arm: _pictures(_net(work, arm, work.seeds[0]), texts, 0) for arm in ARMS}
    for arm, pictures in every.items():
        items += [(f"{arm}: {text}", Image.fromarray(one)) for text, one in zip(texts, pictures, strict=True)]
    return tuple(items)


DEMO = Demonstration(minutes=6, run=demo)
