"""What ``mini`` is trained on: the tasks of its stages, and a stage as a value. Public ideas: ``Rows``, ``everything(rows)``, ``Stage``.

A source is made for a text tokenizer and an encoder of pictures, so that a stage can use those of the shipped model or new ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor, nn

from unmask.checkpoints.checksums import write_sums
from unmask.checkpoints.store import save_module, save_tensors
from unmask.corruption.absorbing import Absorbing
from unmask.corruption.collapsing import Collapsing
from unmask.corruption.schedules import Cosine, OftenAll, Uniform
from unmask.data.ahead import Ahead
from unmask.data.drawn import DrawnCritiques
from unmask.data.mixture import Joint
from unmask.data.sources import Captions, Drawings, Edits, Encode, Levels, Planned, VisualQuestions
from unmask.data.thinking import Critiques, EditCritiques, EditPlans, Illustrations, Plans, Retries
from unmask.data.world import critiques, edits, language
from unmask.data.world.questions import questions
from unmask.data.world.scenes import Draft, sample
from unmask.data.world.words import vocabulary
from unmask.models.elastic import Elastic
from unmask.models.sizes import SIZES, ElasticConfig
from unmask.objectives.masked import Dropout, Masked, Together
from unmask.objectives.masking import Masking
from unmask.pipeline.loading import write_config
from unmask.recipe import Eval, Optim, Recipe, Training
from unmask.recipes.mini_vq import CONFIG
from unmask.sequence import Batch, Kind
from unmask.tokens.text import EXP, Text
from unmask.tokens.vocabulary import FILE
from unmask.tokens.vq import VQ
from unmask.writing import write_text

SIZE = SIZES["mini"]
assert SIZE.vision is not None
LOOK_TOKENS = SIZE.vision.tokens
MANY = Draft(counts=((1, 0.15), (2, 0.35), (3, 0.25), (4, 0.25)), alike=0.2, grouped=0.35)
EVEN = Draft(counts=((1, 0.22), (2, 0.42), (3, 0.2), (4, 0.16)), alike=0.28, grouped=0.4)

COUNTED = Draft(counts=((2, 0.3), (3, 0.35), (4, 0.35)), alike=0.85, grouped=0.5)
RELATED = Draft(counts=((2, 0.5), (3, 0.25), (4, 0.25)), alike=0.0, grouped=1.0)
EDITED = Draft(grouped=0.25)
FEW = Draft(counts=((1, 0.8), (2, 0.2)))


_DRAW_DROPS = (Dropout(spans=frozenset({"prompt"}), rate=0.1),)
_EDIT_DROPS = (
    Dropout(spans=frozenset({"prompt", "look"}), rate=0.1),
    Dropout(spans=frozenset({"source"}), rate=0.15),
)
_EDIT_PLANNED = Masked(
    dropouts=(
        Dropout(spans=frozenset({"prompt", "look", "plan"}), rate=0.1),
        Dropout(spans=frozenset({"source"}), rate=0.15),
    )
)
_LOOK = Masked(corruption=Absorbing(policies={Kind.TEXT: OftenAll(policy=Cosine(), all=0.4)}))
_PLAN = Masked(corruption=Absorbing(policies={Kind.TEXT: OftenAll(policy=Cosine(), all=0.15)}))
_DRAW = Masked(dropouts=_DRAW_DROPS)
# A luminance condition matters most while no code is known yet.
_DRAW_CONDITIONED = Masked(corruption=Absorbing(policies={Kind.CODE: OftenAll(policy=Cosine(), all=0.5)}))
_DRAW_RETRY = Masked(dropouts=(Dropout(spans=frozenset({"prompt", "plan", "look"}), rate=0.1),))
# Three in ten samples are like the first sampling step: the plan is known, and no code.
_DRAW_PLANNED = replace(_DRAW_RETRY, corruption=Absorbing(policies={Kind.CODE: OftenAll(policy=Cosine(), all=0.3)}))
_ILLUSTRATE = replace(_LOOK, dropouts=(Dropout(spans=frozenset({"prompt", "look", "question", "answer"}), rate=0.1),))


Part = tuple[str, Any, int, Masked, float]  # (task, source, every how many steps, objective, weight)


def export_net(module: nn.Module, folder: Path) -> None:
    save_module(module, folder)


def not_tower(name: str) -> bool:
    """Freeze the tower and its pooling; projector and newline are trained."""
    return not name.startswith("vision.tower") and not name.startswith("vision.pool")


def only_understanding(name: str) -> bool:
    """Train the understanding branch: neither the generation branch nor the codes."""
    return not_tower(name) and ".gen." not in name and not name.startswith("code")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A training stage of the transformer. ``parts``: its tasks · ``config``: of the network · ``workers``: processes that make and mask
    the batches, for a GPU; 0: the trainer does · ``mask_id``: of the model, for workers.
    """

    name: str
    seed: int
    steps: int
    model: Callable[[], Elastic]
    parts: tuple[Part, ...]
    optim: Optim = Optim(lr=1.5e-3, warmup=100, decay_from=1.0)
    trainable: Callable[[str], bool] = not_tower
    config: ElasticConfig = SIZE
    accumulate: int = 1
    evals: tuple[Eval[Elastic], ...] = ()
    workers: int = 0
    mask_id: int = 0

    def __call__(self) -> Recipe:
        source: Any = Joint(parts=tuple((task, source, every) for task, source, every, _, _ in self.parts))
        objective = Together(objectives=tuple((task, scored, weight) for task, _, _, scored, weight in self.parts))
        if self.workers:
            masking = Masking(source=source, objective=objective, mask_id=self.mask_id, seed=self.seed)
            source = Ahead(source=masking, workers=self.workers)
        training = Training(steps=self.steps, seed=self.seed, accumulate=self.accumulate)
        if self.workers:  # a GPU makes 20 updates a second
            training = replace(training, log_every=100, save_every=2000)
        return Recipe(
            name=self.name,
            model=self.model,
            source=source,
            objective=objective,
            optim=self.optim,
            training=training,
            trainable=self.trainable,
            outline=lambda: _outline(self.config),
            evals=self.evals,
            examples=lambda: (_unencoded(self.parts),),
            export=export_net,
        )


def _outline(config: ElasticConfig) -> Elastic:
    with torch.device("meta"):
        return Elastic(config, mask_id=0)


def _unencoded(parts: tuple[Part, ...]) -> dict[str, Batch]:
    """A batch of every part, with zeros for the codes of its pictures."""
    return {
        name: (replace(source, encode=_zeros) if hasattr(source, "encode") else source)(0) for name, source, *_ in parts
    }


def _zeros(pixels: Tensor) -> Tensor:
    return torch.zeros(
        len(pixels), pixels.shape[2] // CONFIG.factor, pixels.shape[3] // CONFIG.factor, dtype=torch.long
    )


def lines(scenes: int = 12000) -> Iterator[str]:
    """All texts about training scenes of both levels."""
    rng = Random(0)
    for level in ("grid", "free"):
        for i in range(scenes):
            scene = sample(level, "train", 0, i)
            yield language.caption(scene, rng)
            yield from (phrase for phrase, _ in language.referring(scene, rng))
            for question in questions(scene, rng):
                yield from (question.text, question.answer)
            if i % 3 == 0 and (made := edits.edit(scene, "train", rng)):
                yield made.instruction
            if i % 6 == 0:
                yield from (*critiques.negative_pair(scene, rng), *critiques.positive_pair(scene, rng))
    yield from ("user assistant system describe caption",) * 100


@dataclass(frozen=True, kw_only=True)
class Rows:
    """What the sources of a stage share. ``encode``: of pictures · ``levels``: of all sources; None: those of each ·
    ``times``: multiplies the rows of every batch.
    """

    text: Text
    encode: Encode
    seed: int
    look_tokens: int = LOOK_TOKENS
    levels: Levels | None = None
    times: float = 1.0

    def texts(self, rows: int, seed: int = 0) -> dict[str, Any]:
        """Fields of every source. ``seed``: tells sources of one kind apart."""
        batch = max(1, round(rows * self.times))
        own = {"text": self.text, "seed": self.seed + seed, "batch": batch}
        return own | ({"levels": self.levels} if self.levels else {})

    def coded(self, rows: int, seed: int = 0) -> dict[str, Any]:
        """Fields of a source with codes."""
        return {**self.texts(rows, seed), "encode": self.encode}

    def seen(self, rows: int, seed: int = 0) -> dict[str, Any]:
        """Fields of a source whose pictures are read."""
        return {**self.texts(rows, seed), "look_tokens": self.look_tokens}

    def both(self, rows: int, seed: int = 0) -> dict[str, Any]:
        return {**self.coded(rows, seed), "look_tokens": self.look_tokens}


def understanding(rows: Rows, batch: int = 16) -> Part:
    """Questions, phrases and captions (paper stage 1)."""
    return ("look", VisualQuestions(**rows.seen(batch)), 1, _LOOK, 1.0)


def drawing_small(rows: Rows) -> Part:
    """Pictures of 64 px: 16 codes, one per position, uniform mask ratio (paper: 256 px uncompressed)."""
    draw = replace(Drawings(**rows.coded(64), side=64, fold=1), levels=(("grid_half", 1.0),))
    return ("draw", draw, 1, Masked(corruption=Absorbing(policies={Kind.CODE: Uniform()}), dropouts=_DRAW_DROPS), 1.0)


def drawing(rows: Rows) -> Part:
    """Pictures of 128 px: 64 codes on 16 positions by 2x2 folding, cosine mask ratio (paper: 1024 px compressed)."""
    return ("draw", Drawings(**rows.coded(48), draft=EVEN), 1, _DRAW, 1.0)


def everything(rows: Rows, drawn: str = "", t_exp: float = 0.0) -> tuple[Part, ...]:
    """All tasks (paper stage 3). ``drawn`` and ``t_exp``: as of ``mini.stage3``."""
    unified = Collapsing(at=t_exp, announce=rows.text[EXP]) if t_exp else None
    return (*_drawings(rows), *_edits(rows), *_plans(rows), *_critiques(rows, drawn), *_sequels(rows, unified))


def _drawings(rows: Rows) -> tuple[Part, ...]:
    counted = Drawings(**rows.coded(6, 40), plan=Planned(open=0.0), draft=COUNTED)
    planned = Drawings(**rows.coded(8, 10), plan=Planned(open=0.0), draft=EVEN)
    conditioned = Drawings(**rows.coded(10, 30), conditions=1.0, draft=FEW)
    looks = VisualQuestions(**rows.seen(3), questions=4, phrases=3, draft=MANY)
    return (
        ("draw", Drawings(**rows.coded(4), draft=EVEN), 1, _DRAW, 0.6),
        ("draw_asked", conditioned, 1, _DRAW_CONDITIONED, 1.0),
        ("draw_counted", counted, 1, _DRAW_PLANNED, 0.5),
        ("draw_planned", planned, 1, _DRAW_PLANNED, 1.1),
        ("look", looks, 1, _LOOK, 0.5),
    )


def _edits(rows: Rows) -> tuple[Part, ...]:
    edit = Edits(**rows.both(7), draft=EDITED)
    planned = Edits(**rows.both(7, 10), draft=EDITED, plan=Planned())
    return (
        ("edit", edit, 1, Masked(dropouts=_EDIT_DROPS), 0.9),
        ("edit_planned", planned, 1, _EDIT_PLANNED, 0.7),
    )


def _plans(rows: Rows) -> tuple[Part, ...]:
    related = Plans(**rows.texts(30, 20), length=44, related=0.95, draft=RELATED)
    return (
        ("plan", Plans(**rows.texts(8), length=44, draft=EVEN), 1, Masked(), 0.3),
        ("plan_related", related, 1, _PLAN, 1.6),
        ("edit_plan", EditPlans(**rows.seen(8), length=24, draft=EDITED), 1, Masked(), 0.7),
    )


def _critiques(rows: Rows, drawn: str) -> tuple[Part, ...]:
    related = Critiques(**rows.seen(4, 50), related=0.8, draft=RELATED)
    seen = {name: value for name, value in rows.seen(5).items() if name != "levels"}
    own = DrawnCritiques(**seen, captions=4, related=0.3, folder=Path(drawn))
    return (
        ("critique", Critiques(**rows.seen(5), captions=5, draft=MANY), 1, _LOOK, 1.0),
        ("critique_placed", related, 1, _LOOK, 0.8),
        *([("critique_drawn", own, 1, _LOOK, 1.0)] if drawn else []),
        ("edit_critique", EditCritiques(**rows.seen(4), draft=EDITED), 1, _LOOK, 0.25),
    )


def _sequels(rows: Rows, unified: Collapsing | None) -> tuple[Part, ...]:
    """Further attempts, texts that announce an image, long answers and captions."""
    retry = Retries(**rows.both(3), plan=Planned(), draft=EVEN)
    reply = VisualQuestions(**rows.seen(6, 20), questions=1, phrases=0, draft=MANY, answer_length=44)
    illustration = Illustrations(**rows.both(8), length=44, draft=EVEN, unified=unified)
    return (
        ("retry", retry, 1, _DRAW_RETRY, 0.3),
        ("illustration", illustration, 1, replace(_ILLUSTRATE, corruption=unified or _LOOK.corruption), 1.2),
        # Must not be a multiple of the number of processes: one process would get all batches.
        ("reply", reply, 5, _LOOK, 0.5),
        ("caption", Captions(**rows.texts(16)), 9, Masked(), 0.2),
    )


def write_model(folder: Path, net: Elastic, vq: VQ, text: Text, level: str) -> None:
    """A model folder for ``level``: network in bfloat16, image tokenizer in float16.

    Its layer before the codes stays in float32: rounded like the others, it changed 17 % of the codes of ``mini``, else .07 %.
    """
    folder.mkdir(parents=True, exist_ok=True)
    save_module(net, folder, name="model", dtype=torch.bfloat16)
    rounded = {name: w if name.startswith("quant_conv") else w.half() for name, w in vq.state_dict().items()}
    save_tensors(rounded, folder, name="vq")
    text.save(folder / "tokenizer.json")
    write_text(folder / FILE, vocabulary(level, "mini").text())
    write_config(folder, net.config, vq.config, wording="compact", side=128, fold=2)
    write_sums(folder)
