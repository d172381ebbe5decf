"""M2DM: a stick figure's motions from texts, with important tokens corrupted last and restored first (``methods.m2dm``).

    unmask train m2dm.motions --out runs/motions
    python -c "from unmask.recipes.m2dm import animate; animate('runs/motions', 'jumps twice, then walks to the left', 'motion.gif')"
    unmask methods run m2dm

A motion is 48 poses in 16 codes of a transformer VQ, which is trained first. Words and codes are tokens of one vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from unmask.checkpoints.schema import read_json
from unmask.checkpoints.store import load_module, save_module
from unmask.checkpoints.stream import CheckpointError
from unmask.data.world.motions import read, save_animation
from unmask.evaluation.demonstration import Demonstration, Findings, Media, Plot, Table, Work
from unmask.evaluation.metrics import Figure, over_seeds
from unmask.json_types import Json
from unmask.methods.m2dm import CodeImportance, ImportantFirst, PriorityMasking
from unmask.models.elastic import Elastic, init
from unmask.models.sequence_vq import SequenceVQ, SequenceVQConfig
from unmask.models.sizes import text_config
from unmask.objectives.masked import Masked
from unmask.protocols import Selection
from unmask.recipe import Optim, Recipe, Training
from unmask.recipes.motion_codes import (
    BATCH,
    CONFIG,
    LONGEST,
    MASK,
    REGULAR,
    VQ_STEPS,
    importance_of,
    poses_of,
    row,
    trained_vq,
    vq_recipe,
)
from unmask.rng import generator
from unmask.sampling.sampler import Sampler
from unmask.sampling.schedule import Equal
from unmask.sampling.selection import Confident, RandomOrder
from unmask.sampling.token_sampler import Categorical
from unmask.sequence import Batch, Kind, collate
from unmask.step import Loss
from unmask.writing import write_text

NAME = "m2dm.motions"
_STEPS = 900


# -- the network -------------------------------------------------------------------------------------------------------


class Figure2D(nn.Module):
    """The tokenizer, which is frozen, the importance of its codes, and the network that fills codes."""

    def __init__(self, vq: SequenceVQ, table: Tensor, width: int, layers: int) -> None:
        super().__init__()
        self.vq = vq.requires_grad_(False)
        self.register_buffer("importance", table)
        size = text_config(
            vocab_size=MASK + 1 + vq.size, width=width, heads=4, layers=layers, mlp=3 * width, rope_theta=500.0
        )
        self.net = Elastic(replace(size, codes=vq.size, first_code=MASK + 1), mask_id=MASK)
        self.mask_id = MASK

    def forward(self, batch: Batch, **given: Any) -> Any:
        return self.net(batch, **given)

    @property
    def important(self) -> CodeImportance:
        table = self.importance
        assert isinstance(table, Tensor)
        return CodeImportance(tables={Kind.CODE: table})


@dataclass(frozen=True, kw_only=True)
class Motions:
    """Texts with the codes of their motions."""

    vq: Callable[[], SequenceVQ]
    seed: int
    batch: int = BATCH

    def __call__(self, step: int) -> Batch:
        vq, (texts, poses) = self.vq(), poses_of("train", self.seed, self.batch, step * self.batch)
        with torch.no_grad():
            codes = vq.encode(poses)
        return collate([row(text, one) for text, one in zip(texts, codes, strict=True)], range(self.batch))


def motions(
    strength: float = 0.3,
    replaced: float = 0.0,
    regular: float = REGULAR,
    vq_steps: int = VQ_STEPS,
    steps: int = _STEPS,
    width: int = 64,
    layers: int = 3,
    seed: int = 0,
) -> Recipe:
    """A network that moves a stick figure as a text says; its tokenizer is trained before the first step.

    ``strength``: of importance in the corruption, 0 for all tokens alike · ``replaced``: share of corrupted tokens that get another code
    instead of the mask · ``regular``: weight of the codebook's regulariser · ``vq_steps``: of the tokenizer.
    """

    @lru_cache(maxsize=1)
    def tokenizer() -> SequenceVQ:
        return trained_vq(regular, vq_steps, seed)

    return motion_recipe(
        tokenizer, strength=strength, replaced=replaced, steps=steps, width=width, layers=layers, seed=seed
    )


def motion_recipe(
    tokenizer: Callable[[], SequenceVQ],
    *,
    strength: float,
    steps: int,
    seed: int,
    replaced: float = 0.0,
    width: int = 64,
    layers: int = 3,
) -> Recipe[Figure2D, Batch]:
    """The recipe for a given tokenizer."""

    @lru_cache(maxsize=1)
    def important() -> CodeImportance:
        return importance_of(tokenizer(), poses_of("train", seed, 64)[1])

    def network() -> Figure2D:
        made = Figure2D(tokenizer(), important().tables[Kind.CODE], width, layers)
        init(made.net, generator("m2dm", seed))
        return made

    def objective(model: Any, batch: Batch, rng: torch.Generator) -> Loss:
        process = PriorityMasking(
            importance=important(), strength=strength, replaced=replaced, sizes={Kind.CODE: CONFIG.codes}
        )
        return Masked(corruption=process)(model, batch, rng)

    return Recipe(
        name=NAME,
        model=network,
        source=Motions(vq=tokenizer, seed=seed),
        objective=objective,
        optim=Optim(lr=3e-3, warmup=min(50, steps), decay_from=0.3, floor=0.05, ema=0.99),
        training=Training(steps=steps, seed=seed, device="cpu", bf16=False, save_every=300),
        trainable=lambda name: not name.startswith("vq"),
        export=_export,
        open=opened,
    )


def _export(module: Figure2D, folder: Path) -> None:
    config = module.net.config
    fields = {"recipe": NAME, "vq": asdict(module.vq.config), "width": config.width, "layers": config.layers}
    save_module(module, folder)
    write_text(folder / "config.json", json.dumps(fields, indent=1) + "\n")


@dataclass(frozen=True, kw_only=True)
class MotionModel:
    """``move(text) -> poses``; ``animate`` writes them as a GIF."""

    net: Figure2D

    def move(self, text: str, *, seed: int = 0, steps: int = 8) -> np.ndarray:
        """Poses [T, C]. ValueError for words that the figure does not know."""
        order = ImportantFirst(importance=self.net.important)
        return poses_from(self.net, [text], seed, steps, order).numpy()[0]

    def animate(self, text: str, path: Path, *, seed: int = 0, steps: int = 8) -> None:
        save_animation(self.move(text, seed=seed, steps=steps), path)


def opened(folder: Path, device: str = "cpu") -> MotionModel:
    """The model of a folder of ``motions``. CheckpointError for a file that is missing or does not fit."""
    raw = read_json(folder / "config.json")
    try:
        config = SequenceVQConfig(**raw["vq"])
        made = Figure2D(SequenceVQ(config), torch.ones(config.codes), int(raw["width"]), int(raw["layers"]))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder / 'config.json'} does not describe a motion model: {error}") from error
    return MotionModel(net=load_module(made, folder).to(device).eval())


def animate(model: str, text: str, out: str, seed: int = 0) -> None:
    """Write the motion of a text as an animated GIF."""
    opened(Path(model)).animate(text, Path(out), seed=seed)


@torch.no_grad()
def poses_from(net: Figure2D, texts: list[str], seed: int, steps: int, order: Selection) -> Tensor:
    """Poses [N, T, C] of texts."""
    run = Sampler(schedule=Equal(steps=steps), token_sampler=Categorical(), selection=order)
    batch = collate([row(text, None) for text in texts], [seed * 10_007 + i for i in range(len(texts))])
    return net.vq.decode(run.sample(net, batch).ids[:, LONGEST:])


# -- the demonstration -------------------------------------------------------------------------------------------------

STEPS, _TESTED = (2, 4, 8, 16), 160


def orders(net: Figure2D) -> Mapping[str, Selection]:
    return {
        "random": RandomOrder(),
        "confidence": Confident(),
        "importance": ImportantFirst(importance=net.important),
    }


def demo(work: Work) -> Findings:
    """Tokenizers with and without regulariser; networks with and without importance in training; three orders at every number of steps."""
    books, found = [], []
    for n, seed in enumerate(work.seeds):
        books.append({name: work.once(f"vq-{name}/{seed}", partial(_book, work, name, seed)) for name in _BOOKS})
        own = {name: work.once(f"{name}/{seed}", partial(_measured, work, name, seed)) for name in _STRENGTHS}
        found.append(own)
        work.on_progress("seeds", n + 1, len(work.seeds))
    return _findings(books, found, work)


_BOOKS = {"regular": REGULAR, "plain": 0.0}
_STRENGTHS = {"priority": 0.3, "uniform": 0.0}


@lru_cache(maxsize=8)
def _vq(work: Work, name: str, seed: int) -> SequenceVQ:
    found = work.train(
        f"vq-{name}/{seed}", vq_recipe(regular=_BOOKS[name], steps=work.steps(VQ_STEPS, least=2), seed=seed)
    )
    assert isinstance(found, SequenceVQ)
    return found


def _book(work: Work, name: str, seed: int) -> Json:
    """How many codes are used, as the exponential of their entropy, and how many motions are read rightly after coding."""
    vq = _vq(work, name, seed)
    texts, poses = poses_of("test", 1, work.steps(_TESTED, least=8))
    with torch.no_grad():
        ids = vq.encode(poses)
        back = vq.decode(ids)
    share = ids.flatten().bincount(minlength=vq.size).double() / ids.numel()
    entropy = -(share * share.clamp(min=1e-12).log()).sum()
    error = float((back - poses).square().mean())
    return {"codes": float(entropy.exp()), "right": _right(texts, back), "error": error}


@lru_cache(maxsize=8)
def _net(work: Work, name: str, seed: int) -> Figure2D:
    recipe = motion_recipe(
        lambda: _vq(work, "regular", seed), strength=_STRENGTHS[name], steps=work.steps(_STEPS, least=2), seed=seed
    )
    found = work.train(f"{name}/{seed}", recipe)
    assert isinstance(found, Figure2D)
    return found


def _measured(work: Work, name: str, seed: int) -> Json:
    net = _net(work, name, seed)
    texts, _ = poses_of("test", 1, work.steps(_TESTED, least=8))
    found: Json = {}
    for steps in STEPS:
        for order, selection in orders(net).items():
            poses = poses_from(net, texts, seed, steps, selection)
            found[f"{order}/{steps}"] = _right(texts, poses)
            again = poses_from(net, texts, seed + 500, steps, selection)
            found[f"{order}/{steps}/variety"] = float((poses - again).square().mean().sqrt())
    return found


def _right(texts: list[str], poses: Tensor) -> float:
    return sum(read(one) == text for text, one in zip(texts, poses.numpy(), strict=True)) / len(texts)


def _findings(books: list[dict[str, Json]], found: list[dict[str, Json]], work: Work) -> Findings:
    def over(name: str, key: str, unit: str = "share") -> Figure:
        return over_seeds([one[name][key] for one in found], unit=unit)

    def gain(steps: int, other: tuple[str, str]) -> Figure:
        """Importance in training and order against another choice of both."""
        name, order = other
        return over_seeds([one["priority"][f"importance/{steps}"] - one[name][f"{order}/{steps}"] for one in found])

    rows = [
        (name, order, *(over(name, f"{order}/{n}") for n in STEPS), over(name, f"{order}/4/variety", "units"))
        for name in _STRENGTHS
        for order in ("random", "confidence", "importance")
    ]
    gains = {f"importance_minus_random.{n}": gain(n, ("uniform", "random")) for n in STEPS}
    sure = {f"importance_minus_confidence.{n}": gain(n, ("uniform", "confidence")) for n in STEPS}
    order = {
        f"order_alone.{n}": over_seeds([o["uniform"][f"importance/{n}"] - o["uniform"][f"random/{n}"] for o in found])
        for n in STEPS
    }
    codes = {name: over_seeds([one[name]["codes"] for one in books], unit="codes") for name in _BOOKS}
    heard = gains["importance_minus_random.4"]
    lines = {
        f"{name}, {order_}": [(n, over(name, f"{order_}/{n}")) for n in STEPS]
        for name, order_ in (("uniform", "random"), ("uniform", "confidence"), ("priority", "importance"))
    }
    return Findings(
        about="Motions of two actions from texts whose pairs of actions were not in the training; right means that the exact reader finds "
        f"both. {work.steps(_TESTED, least=8)} texts, {len(work.seeds)} tokenizers and networks of each kind, equal updates and steps.",
        verdict=f"At 4 steps importance in training and order makes {over('priority', 'importance/4')['value']:.2f} of the motions right, "
        f"random order {over('uniform', 'random/4')['value']:.2f}, confidence {over('uniform', 'confidence/4')['value']:.2f}; the "
        f"regulariser uses {codes['regular']['value']:.1f} codes instead of {codes['plain']['value']:.1f}.",
        seen=all(one["low"] is not None and one["low"] > 0 for one in (heard, sure["importance_minus_confidence.4"])),
        figures={**gains, **sure, **order, **{f"codes.{name}": one for name, one in codes.items()}},
        shown=(
            Table(
                title="Motions that are right",
                head=("training", "order", *(f"{n} steps" for n in STEPS), "variety at 4 steps"),
                rows=tuple(rows),
                note="Variety: root mean square difference of two motions of one text, in units of the poses.",
            ),
            Table(
                title="Tokenizers",
                head=("codebook", "codes in use", "read rightly after coding", "squared error"),
                rows=tuple(
                    (
                        name,
                        codes[name],
                        over_seeds([one[name]["right"] for one in books]),
                        over_seeds([one[name]["error"] for one in books]),
                    )
                    for name in _BOOKS
                ),
            ),
            Plot(title="Motions that are right", across="steps", up="share right", lines=lines, log=True),
            Media(title="Motions of the first seed, 4 steps, importance", items=_shown(work)),
        ),
    )


def _shown(work: Work) -> tuple[tuple[str, Path], ...]:
    net = _net(work, "priority", work.seeds[0])
    texts, _ = poses_of("test", 1, 4)
    poses = poses_from(net, texts, 0, 4, ImportantFirst(importance=net.important)).numpy()
    items = []
    for i, (text, one) in enumerate(zip(texts, poses, strict=True)):
        path = work.out / f"motion-{i}.gif"
        save_animation(one, path)
        items.append((f"{text} (read: {read(one)})", path))
    return tuple(items)


DEMO = Demonstration(minutes=8, run=demo)
