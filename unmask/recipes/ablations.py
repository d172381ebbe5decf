"""The paper's design choices as runs of a few minutes: one small model, one change at a time, the same number of operations for each.

    unmask train ablations.run -o arm=joint_2 -o seed=1 --out runs/ablations/joint_2-1
    python bench/ablations.py          all arms with three seeds, what they learned, and docs/ablations.md

The network has 6 layers of width 128, the tasks are understanding, drawing and text that announces a picture, the level is ``grid``. Vision
tower and image tokenizer are those of ``mini``; the transformer is trained from nothing. ``ARMS`` are the changes, each in a group with
the baseline ``base``. An arm has as many steps as fit ``teraflops`` of forward and backward passes, counted in its first batches.

Source: Lavida-O (arXiv 2509.19244), sections 3 and 4 and its ablations.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import torch
from torch import nn

import unmask
from unmask.corruption.absorbing import Absorbing
from unmask.corruption.collapsing import Collapsing
from unmask.corruption.schedules import Cosine, OftenAll
from unmask.data.sources import CachedEncoder, Drawings, VisualQuestions
from unmask.data.thinking import Illustrations
from unmask.models.codes import init_codes
from unmask.models.elastic import Elastic, init
from unmask.models.sizes import ElasticConfig
from unmask.objectives.masked import Dropout, InverseTime, Masked, Plain, Together, Weight
from unmask.pipeline.model import Model
from unmask.recipe import Optim, Recipe, Training
from unmask.recipes.mini_tasks import EVEN, MANY, SIZE, Rows, export_net, not_tower
from unmask.rng import generator
from unmask.sequence import Batch, Kind
from unmask.tokens.text import EXP
from unmask.training.probe import flops

TASKS = ("look", "draw", "illustration")
Phases = tuple[tuple[float, tuple[str, ...]], ...]  # (share of the steps, tasks)
JOINT: Phases = ((1.0, TASKS),)
STAGED: Phases = ((0.2, ("look",)), (0.4, ("draw",)), (0.4, TASKS))  # understanding, drawing, everything
_COUNTED = 2  # batches of each phase whose operations are counted


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One run's settings. ``group``: the question it belongs to · ``joint``: layers in which the branches attend to each other ·
    ``conditions``: share of captions with luminance and contrast as text · ``dropout``: share of samples that guidance leaves without their
    prompt · ``t_exp``: time at which an announced picture collapses into one token; 0: separate kinds of samples.
    """

    group: str
    joint: int = 4
    gen_width: int = 96
    weight: Weight = field(default_factory=Plain)
    conditions: float = 0.0
    dropout: float = 0.1
    t_exp: float = 0.0
    phases: Phases = JOINT

    @property
    def config(self) -> ElasticConfig:
        return replace(
            SIZE,
            width=128,
            heads=4,
            layers=6,
            mlp=384,
            gen_width=self.gen_width,
            gen_mlp=4 * self.gen_width,
            joint_layers=self.joint,
        )


ARMS: dict[str, Arm] = {
    "base": Arm(group=""),
    "joint_1": Arm(group="joint_layers", joint=1),
    "joint_2": Arm(group="joint_layers", joint=2),
    "joint_6": Arm(group="joint_layers", joint=6),
    "gen_48": Arm(group="gen_width", gen_width=48),
    "gen_64": Arm(group="gen_width", gen_width=64),
    "gen_128": Arm(group="gen_width", gen_width=128),
    "staged": Arm(group="stages", phases=STAGED),
    "modality_aware": Arm(group="stages", t_exp=0.5),
    "staged_modality_aware": Arm(group="stages", t_exp=0.5, phases=STAGED),
    "inverse_time": Arm(group="weight", weight=InverseTime()),
    "conditions": Arm(group="conditions", conditions=0.5),
    "dropout_0": Arm(group="dropout", dropout=0.0),
    "dropout_30": Arm(group="dropout", dropout=0.3),
    "t_exp_25": Arm(group="t_exp", t_exp=0.25),
    "t_exp_50": Arm(group="t_exp", t_exp=0.5),
    "t_exp_75": Arm(group="t_exp", t_exp=0.75),
}


@lru_cache(maxsize=1)
def shipped() -> Model:
    """The model whose tokenizers and vision tower all arms share."""
    model = unmask.load("mini")
    assert isinstance(model, Model)
    return model


@dataclass(frozen=True, kw_only=True)
class Phased:
    """{task: batch} of the tasks of a step's phase. ``ends``: the first step after each phase."""

    parts: tuple[tuple[str, Callable[[int], Batch]], ...]
    phases: Phases
    ends: tuple[int, ...]

    def __call__(self, step: int) -> dict[str, Batch]:
        number = next((i for i, end in enumerate(self.ends) if step < end), len(self.ends) - 1)
        tasks = self.phases[number][1]
        return {name: source(step) for name, source in self.parts if name in tasks}


def sources(arm: Arm, seed: int, times: float = 1.0) -> tuple[tuple[str, Callable[[int], Batch]], ...]:
    """The task sources of an arm. ``times``: multiplies the rows of a batch."""
    parts = shipped().parts
    rows = Rows(text=parts.text, encode=CachedEncoder(parts.codec.encode), seed=1000 * seed, times=times)
    unified = Collapsing(at=arm.t_exp, announce=parts.text[EXP]) if arm.t_exp else None
    return (
        ("look", VisualQuestions(**rows.seen(6), draft=MANY)),
        ("draw", Drawings(**rows.coded(24), draft=EVEN, conditions=arm.conditions)),
        ("illustration", Illustrations(**rows.both(6), length=44, draft=EVEN, unified=unified)),
    )


def objectives(arm: Arm) -> tuple[tuple[str, Masked, float], ...]:
    """The objectives of an arm."""
    often = Absorbing(policies={Kind.TEXT: OftenAll(policy=Cosine(), all=0.4)})
    parts = shipped().parts
    unified = Collapsing(at=arm.t_exp, announce=parts.text[EXP]) if arm.t_exp else often
    drops: dict[str, tuple[str, ...]] = {"draw": ("prompt",), "illustration": ("prompt", "look", "question", "answer")}
    dropped = {
        name: (Dropout(spans=frozenset(spans), rate=arm.dropout),) if arm.dropout else ()
        for name, spans in drops.items()
    }
    return (
        ("look", Masked(corruption=often, weight=arm.weight), 0.5),
        ("draw", Masked(weight=arm.weight, dropouts=dropped["draw"]), 1.0),
        ("illustration", Masked(corruption=unified, weight=arm.weight, dropouts=dropped["illustration"]), 0.5),
    )


def network(arm: Arm, seed: int) -> Elastic:
    """A fresh network with the tower of ``mini`` and code tables from its codebook."""
    parts = shipped().parts
    made = Elastic(arm.config, mask_id=parts.mask_id)
    init(made, generator("ablations", seed))
    codebook = parts.vq.get_parameter("quantize.embedding.weight").detach().cpu()
    init_codes(made.code_embedding, made.code_head, codebook, generator("ablation codes", seed))
    seen, own = parts.net.vision, made.vision
    assert seen is not None and own is not None
    tower = {n: v.detach().float().cpu() for n, v in seen.state_dict().items() if not not_tower(f"vision.{n}")}
    own.load_state_dict(own.state_dict() | tower)
    return made


def cost(arm: Arm, recipe: Recipe[Elastic, Any], module: nn.Module) -> list[float]:
    """Mean operations of a step, forward and backward, in each phase."""
    source, found = recipe.source, []
    assert isinstance(source, Phased)
    for number, (_, tasks) in enumerate(arm.phases):
        first = 0 if number == 0 else source.ends[number - 1]
        batches = [source(first + i) for i in range(_COUNTED)]
        assert all(set(batch) == set(tasks) for batch in batches)
        counts = [flops(recipe, module, batch, i, torch.device("cpu")) for i, batch in enumerate(batches)]
        found.append(sum(counts) / len(counts))
    return found


@dataclass(frozen=True, kw_only=True)
class Made:
    """The run of an arm with a number of steps: ``()`` is the recipe."""

    name: str
    arm: Arm
    seed: int
    times: float
    steps: int

    def __call__(self) -> Recipe:
        total, ends = 0.0, []
        for share, _ in self.arm.phases:
            total += share
            ends.append(round(total * self.steps))
        parts = sources(self.arm, self.seed, self.times)
        return Recipe(
            name=f"ablations.{self.name}",
            model=lambda: network(self.arm, self.seed),
            source=Phased(parts=parts, phases=self.arm.phases, ends=tuple(ends)),
            objective=Together(objectives=objectives(self.arm)),
            optim=Optim(lr=2e-3, warmup=100, decay_from=0.4, floor=0.02, ema=0.998),
            training=Training(steps=self.steps, seed=self.seed, save_every=500),
            trainable=not_tower,
            export=export_net,
        )


def run(arm: str = "base", seed: int = 0, teraflops: float = 100.0, times: float = 1.0) -> Recipe:
    """One arm of the ablations: a small model of the paper's design with one change, at the compute of all others.

    ``teraflops``: operations of the run, 100 are 10 to 20 minutes of one core · ``times``: multiplies the rows of a batch. ValueError for
    an unknown arm.
    """
    if arm not in ARMS:
        raise ValueError(f"there is no arm {arm!r}; choose from {', '.join(ARMS)}")
    chosen = ARMS[arm]
    made = Made(name=arm, arm=chosen, seed=seed, times=times, steps=1000)
    each = cost(chosen, made(), network(chosen, seed))
    mean = sum(share * value for (share, _), value in zip(chosen.phases, each, strict=True))
    return replace(made, steps=max(1, round(1e12 * teraflops / mean)))()
