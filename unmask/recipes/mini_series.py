"""The whole training of ``mini`` as one series of runs, see ``mini.all``. Public ideas: ``MiniSeries`` and ``PictureCodes``.

In the folder of the series: the runs, each in the folder of its name; ``first``, the model that draws the pictures of ``drawn``;
``evaluation``; the finished model itself with its card. Two processes share the source batches of an update; a GPU has one, and workers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

import unmask
from unmask.checkpoints.store import load_module
from unmask.data.ahead import Ahead
from unmask.data.sources import CachedEncoder, Encode, Levels
from unmask.evaluation.evaluate import EvalPart, EvalPlan, Record, measure
from unmask.evaluation.world_geneval import GenEval
from unmask.evaluation.world_questions import Questions
from unmask.models.codes import init_codes
from unmask.models.elastic import Elastic, init
from unmask.models.sizes import ElasticConfig
from unmask.pipeline.model import Model
from unmask.recipe import Eval, Optim, Recipe
from unmask.recipes import mini_drawn, mini_vq
from unmask.recipes.mini_report import evaluate, write_card
from unmask.recipes.mini_tasks import (
    SIZE,
    Part,
    Rows,
    Stage,
    drawing,
    drawing_small,
    everything,
    lines,
    not_tower,
    only_understanding,
    understanding,
    write_model,
)
from unmask.recipes.mini_vision import AlignRun, TowerRun
from unmask.rng import generator
from unmask.tokens.text import MASK, Text
from unmask.tokens.vq import VQ, VQConfig
from unmask.training.parallel import Place
from unmask.training.series import Run, Series, Work

LONG = 10**7  # steps: more than any time allows
_CONSTANT = Optim(lr=1.5e-3, warmup=100, decay_from=1.0)


class PictureCodes(Protocol):
    """An image tokenizer and what is drawn with it. ``level``: whose words the model knows · ``levels``: of the training pictures; None:
    those of each source · ``prepare``: what the run needs, by all processes · ``recipe(folder)``: the run ``vq`` of the series · ``encode``
    (picklable), ``codebook``: of the finished run.
    """

    @property
    def level(self) -> str: ...
    @property
    def levels(self) -> Levels | None: ...
    @property
    def config(self) -> VQConfig: ...
    def prepare(self, folder: Path, place: Place) -> None: ...
    def recipe(self, folder: Path) -> Recipe: ...
    def encode(self, folder: Path) -> Encode: ...
    def codebook(self, folder: Path) -> Tensor: ...


@dataclass(frozen=True, kw_only=True)
class Lattice:
    """The tokenizer of ``mini_vq``, for pictures on the lattice. ``images``: that the codebook is fitted to · ``batch``: whole pictures."""

    seed: int
    images: int = mini_vq.IMAGES
    batch: int = 8
    level: str = "grid"
    levels: Levels | None = None
    config: VQConfig = mini_vq.CONFIG

    def prepare(self, folder: Path, place: Place) -> None:
        """Fit the codebook, once for all processes and sessions."""
        if place.rank == 0:
            mini_vq.dictionary(self.seed, self.images, str(folder))

    def recipe(self, folder: Path) -> Recipe:
        made = mini_vq.vq(self.seed, self.images, str(folder))
        assert isinstance(made.source, mini_vq.Pictures)
        return replace(made, source=replace(made.source, batch=self.batch))

    def encode(self, folder: Path) -> Encode:
        return CachedEncoder(mini_vq.Trained(config=self.config, folder=str(folder / "vq")))

    def codebook(self, folder: Path) -> Tensor:
        return mini_vq.dictionary(self.seed, self.images, str(folder))[0].codebook


def size(narrow: int) -> ElasticConfig:
    """The shape of the network. ``narrow``: divides its widths and layers, for tests."""
    if narrow == 1:
        return SIZE
    assert SIZE.vision is not None
    seen = replace(SIZE.vision, width=SIZE.vision.width // narrow, mlp=SIZE.vision.mlp // narrow, layers=1)
    widths = {name: getattr(SIZE, name) // narrow for name in ("width", "mlp", "gen_width", "gen_mlp", "heads")}
    return replace(SIZE, **widths, layers=2, joint_layers=1, vision=seen)


@dataclass(frozen=True, kw_only=True)
class MiniSeries:
    """``times``: multiplies the rows of every batch · ``narrow``: as of ``size`` · ``texts``: scenes whose texts the text tokenizer is
    trained on · ``drawn``: pictures of its own that the critic learns from · ``items``: of each part of the evaluation · ``accumulate``:
    source batches per update · ``workers``: processes that make batches, for a GPU; 0: the trainer does · ``rate``: multiplies the learning
    rates of the stages · ``curve``: steps between evaluations of a stage, 0 for none.
    """

    codes: PictureCodes
    seed: int
    times: float
    narrow: int
    texts: int
    drawn: int
    items: int
    accumulate: int = 2
    workers: int = 0
    rate: float = 1.0
    curve: int = 4000

    @property
    def config(self) -> ElasticConfig:
        return size(self.narrow)

    def series(self, hours: float) -> Series:
        return Series(
            name="mini.all",
            seed=self.seed,
            hours=hours,
            parts=(
                Work(name="text", do=self.text_tokenizer),
                Work(name="codes", do=self.codes.prepare),
                Run(name="vq", share=0.06, recipe=self._prepared(self.codes.recipe)),
                Run(name="tower", share=0.015, recipe=self._prepared(self.tower)),
                Run(name="align", share=0.005, recipe=self._prepared(self.align)),
                Run(name="stage1", share=0.04, recipe=self.stage1),
                Run(name="stage2a", share=0.03, recipe=self.stage2a),
                Run(name="stage2", share=0.15, recipe=self.stage2),
                Run(name="stage3", share=0.35, recipe=self.stage3),
                Work(name="drawn", do=self.draw),
                Run(name="stage3_drawn", share=0.35, recipe=self.stage3_drawn),
                Work(name="ship", do=self.ship),
                Work(name="evaluation", do=lambda folder, place: evaluate(folder, place, self.items)),
                Work(name="card", do=lambda folder, place: write_card(folder, self.series(hours), place)),
            ),
        )

    def _prepared(self, recipe: Callable[[Path], Recipe]) -> Callable[[Path], Recipe]:
        """The recipe without an end by steps, and with the same batches per update as the stages."""

        def prepared(folder: Path) -> Recipe:
            made = recipe(folder)
            training = replace(made.training, steps=LONG, accumulate=self.accumulate)
            source: Any = Ahead(source=made.source, workers=self.workers) if self.workers else made.source  # type: ignore[bad-argument-type]
            return replace(made, source=source, training=training)

        return prepared

    def rows(self, number: int) -> int:
        return max(1, round(number * self.times))

    # -- the parts before the stages ----------------------------------------------------------------------------------

    def text_tokenizer(self, folder: Path, place: Place) -> None:
        """Train the byte-level BPE. Takes seconds."""
        if place.rank == 0:
            Text.train(lines(self.texts), self.config.vocab_size).save(folder / "tokenizer.json")

    def text(self, folder: Path) -> Text:
        return Text.load(folder / "tokenizer.json")

    def network(self, folder: Path) -> Elastic:
        return Elastic(self.config, mask_id=self.text(folder)[MASK])

    def tower(self, folder: Path) -> Recipe:
        return TowerRun(config=self.config, seed=self.seed, batch=self.rows(64))()

    def align(self, folder: Path) -> Recipe:
        """The projector of a fresh network, so that the first stage already reads features as words."""

        def model() -> Elastic:
            made = self.network(folder)
            init(made, generator("mini", self.seed))
            rng = generator("codes", self.seed)
            init_codes(made.code_embedding, made.code_head, self.codes.codebook(folder), rng)
            assert made.vision is not None
            load_module(made.vision, folder / "tower")
            return made

        return AlignRun(text=self.text(folder), model=model, seed=self.seed + 5, batch=self.rows(64))()

    # -- the stages ---------------------------------------------------------------------------------------------------

    def stage1(self, folder: Path) -> Recipe:
        parts = (understanding(self._rows(folder, 1)),)
        return self._stage("stage1", folder, "align", parts, trainable=only_understanding)

    def stage2a(self, folder: Path) -> Recipe:
        return self._stage("stage2a", folder, "stage1", self._rehearsed(folder, drawing_small(self._rows(folder, 2))))

    def stage2(self, folder: Path) -> Recipe:
        parts = self._rehearsed(folder, drawing(self._rows(folder, 3)))
        return self._stage("stage2", folder, "stage2a", parts, evals=self._evals(folder))

    def stage3(self, folder: Path) -> Recipe:
        parts = everything(self._rows(folder, 4))
        optim = Optim(lr=9e-4, warmup=100, decay_from=1.0, ema=0.999)
        return self._stage("stage3", folder, "stage2", parts, optim=optim, evals=self._evals(folder))

    def stage3_drawn(self, folder: Path) -> Recipe:
        """All tasks with own drawings, and the decay. What is exported is the average of decay .999, which ends at 2 % of the rate."""
        drawn = folder / "drawn"
        parts = everything(self._rows(folder, 6), drawn=str(drawn) if (drawn / "drawn.jsonl").exists() else "")
        optim = Optim(lr=9e-4, warmup=100, decay_from=0.3, floor=0.02, ema=0.999)
        return self._stage("stage3_drawn", folder, "stage3", parts, optim=optim, evals=self._evals(folder))

    def _rows(self, folder: Path, seed: int) -> Rows:
        assert self.config.vision is not None
        return Rows(
            text=self.text(folder),
            encode=self.codes.encode(folder),
            seed=self.seed * 1000 + seed,
            look_tokens=self.config.vision.tokens,
            levels=self.codes.levels,
            times=self.times,
        )

    def _rehearsed(self, folder: Path, part: Part) -> tuple[Part, ...]:
        """A drawing stage, with a few questions: without them the skills of the stage before decay. In every batch, because processes that
        use different weights in an update cannot sum their gradients.
        """
        name, source, every, objective, weight = understanding(self._rows(folder, 5), batch=3)
        return (part, (name, source, every, objective, 0.3 * weight))

    def _stage(
        self,
        name: str,
        folder: Path,
        before: str,
        parts: tuple[Part, ...],
        *,
        trainable: Callable[[str], bool] = not_tower,
        optim: Optim = _CONSTANT,
        evals: tuple[Eval[Elastic], ...] = (),
    ) -> Recipe:
        stage = Stage(
            name=f"mini.{name}",
            seed=self.seed,
            steps=LONG,
            model=lambda: load_module(self.network(folder), folder / before),
            parts=parts,
            config=self.config,
            accumulate=self.accumulate,
            evals=evals,
            trainable=trainable,
            optim=replace(optim, lr=self.rate * optim.lr),
            workers=self.workers,
            mask_id=self.text(folder)[MASK],
        )
        return stage()

    def _evals(self, folder: Path) -> tuple[Eval[Elastic], ...]:
        """The curve of a stage: drawings and answers on the validation split, of the averaged weights."""
        items = min(48, self.items)
        if not self.curve:
            return ()

        def run(module: Elastic, step: int) -> dict[str, float]:
            self._write(folder, folder / "latest", module)
            model = unmask.load(folder / "latest")
            assert isinstance(model, Model)
            plan = EvalPlan(level=self.codes.level, split="validation", n=items)
            parts: tuple[EvalPart, ...] = (GenEval(distance=False), Questions())
            found = {part.name: measure(model, part, plan, Record()).figures["overall"]["value"] for part in parts}
            return {name: float(value or 0.0) for name, value in found.items()}

        return (Eval(name="validation", every=self.curve, run=run),)

    # -- after the stages ---------------------------------------------------------------------------------------------

    def _write(self, folder: Path, out: Path, net: Elastic) -> None:
        vq = load_module(VQ(self.codes.config), folder / "vq")
        write_model(out, net, vq, self.text(folder), self.codes.level)

    def draw(self, folder: Path, place: Place) -> None:
        """Pictures by the weights of stage 3, which the processes draw in turns. Without a labelled one the next run goes without them."""
        if place.rank == 0:
            self._write(folder, folder / "first", load_module(self.network(folder), folder / "stage3"))
        place.gather([None])
        model, out = str(folder / "first"), str(folder / "drawn")
        mini_drawn.draw_share(model, out, self.drawn, self.seed, place.rank, place.world, self.workers)
        place.gather([None])
        if place.rank == 0:
            mini_drawn.collect(out)

    def ship(self, folder: Path, place: Place) -> None:
        """The finished model, in the folder of the series."""
        if place.rank == 0:
            self._write(folder, folder, load_module(self.network(folder), folder / "stage3_drawn"))
