"""What the stages of ``recipes.lavida_o`` share: a stage as a value, and the recipe that it makes of a model and data.

Public idea: ``staged(stage, Given(...)) -> Recipe``. Without data the recipe can be planned (``unmask inspect``) and not run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch

from unmask.checkpoints.elastic import Weights, WeightStorage
from unmask.checkpoints.growing import grow, pruned
from unmask.checkpoints.loading import load
from unmask.checkpoints.stream import CheckpointError, read
from unmask.corruption.absorbing import Absorbing
from unmask.corruption.collapsing import Collapsing
from unmask.corruption.schedules import Cosine, Policy
from unmask.data.codes import Shards
from unmask.data.groups import Group, Groups
from unmask.data.kept_codes import KeptCodes
from unmask.data.order import Mixture
from unmask.data.own import Format, OwnData
from unmask.data.samples import DataError
from unmask.data.squares import Crop, Pad
from unmask.models.attention import fused
from unmask.models.elastic import Elastic
from unmask.models.sizes import SIZES
from unmask.objectives.masked import Dropout, Masked, Together
from unmask.pipeline.exporting import export_like
from unmask.pipeline.loading import ModelSpec, read_spec, resolve
from unmask.pipeline.named_sizes import spec_of_size
from unmask.recipe import Eval, Optim, Recipe, Training
from unmask.recipes.stage_data import all_texts, apart, attempts_of, boxes_of, split, stage_formats
from unmask.recipes.starting import Start, start_of
from unmask.recipes.watching import ValidationLoss
from unmask.rng import generator
from unmask.sequence import Batch, Kind, collate
from unmask.tasks.encoding import Coding
from unmask.tasks.examples import formats_of
from unmask.tasks.nominal import Geometry, nominal
from unmask.tasks.parts import Parts
from unmask.tasks.stage_rows import StageRows
from unmask.tokens.prompts import RELEASED
from unmask.tokens.text import EXP
from unmask.training.states import newest

SIZE = "lavida_o"  # what is planned where the first model of a stage is not there
_GIVEN = frozenset(
    {"prompt", "look", "assistant", "question", "phrase"}
)  # what a row gives beside a layout and a source
_PROMPT = Dropout(spans=_GIVEN, rate=0.1)
_PLANNED = Dropout(spans=_GIVEN | {"plan"}, rate=0.1)
_SOURCE = Dropout(spans=frozenset({"source"}), rate=0.5)
_DROPS = {
    **dict.fromkeys(("draw_planned", "retry_planned"), (_PLANNED,)),
    **dict.fromkeys(("edit", "edit_open"), (_PROMPT, _SOURCE)),
    "edit_planned": (_PLANNED, _SOURCE),
}


@dataclass(frozen=True, kw_only=True)
class Mix:
    """Groups of the formats ``names``, which share ``weight`` (``last`` at the end of the run; None: the same) · ``half``: of half as
    many rows.
    """

    names: tuple[str, ...]
    weight: float
    last: float | None = None
    half: bool = False


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A published stage. ``start``: the model that it starts from unless told otherwise · ``needs``: parts that are loaded, as of
    ``Task.needs`` · ``trained(parameter name)`` · ``mixes``: its groups of rows · ``rate``: learning rate, ``tower``: of the vision tower ·
    ``updates`` · ``part``: the side of a picture is the model's divided by this · ``fold``: codes of a position along one side ·
    ``policy``: mask ratios of image codes.
    """

    name: str
    start: str
    needs: frozenset[str]
    trained: Callable[[str], bool]
    mixes: tuple[Mix, ...]
    rate: float
    updates: int
    tower: float | None = None
    part: int = 1
    fold: int = 2
    policy: Policy = Cosine()
    accumulate: int = 512


@dataclass(frozen=True, kw_only=True)
class Given:
    """The arguments of a stage, as its recipe describes them."""

    model: str
    data: str
    batch: int
    steps: int
    alike: int
    holdout: float
    codes: str
    seed: int
    folder: str
    gen: str = "kept"
    t_exp: float = 0.0


def staged(stage: Stage, given: Given) -> Recipe[Elastic, dict[str, Batch]]:
    """The recipe of a stage. ValueError for arguments that do not fit, DataError for data that cannot be used."""
    if given.batch < 1:
        raise ValueError(f"batch is {given.batch}; give 1 or more rows")
    if given.gen not in ("und", "kept"):
        raise ValueError(f"gen is {given.gen!r}; give und (begin it from the understanding branch) or kept")
    if given.folder and _holds_a_model(Path(given.folder)):
        raise ValueError(
            f"{given.folder} holds a model that is not a run; choose another --out, so that it is not overwritten"
        )
    run = Run(stage=stage, given=given)
    steps = run.steps
    rates = (("tower", stage.tower, "vision.tower."),) if stage.tower else ()
    return Recipe(
        name=stage.name,
        model=run.network,
        source=run.source if given.data else _no_data,
        objective=Together(objectives=run.objectives),
        optim=Optim(
            lr=stage.rate,
            beta1=0.99,
            beta2=0.999,
            warmup=round(0.03 * steps),
            decay_from=0.03,
            floor=0.1,
            ema=0.0,
            rates=rates,
        ),
        training=Training(
            steps=steps,
            seed=given.seed,
            accumulate=stage.accumulate,
            log_every=10 * stage.accumulate,
            save_every=250 * stage.accumulate,
            recompute=True,
            shard=not given.t_exp,  # rows with a picture and rows with its announcement use other weights
        ),
        trainable=stage.trained,
        evals=run.evals if given.data else (),
        outline=run.outline,
        examples=run.examples,
        export=run.export,
    )


def _is_size(name: str) -> bool:
    """Whether a name is a size's and not a model's. ``mini`` is both."""
    if name not in SIZES:
        return False
    try:
        resolve(name)
    except CheckpointError:
        return True
    return False


def _holds_a_model(folder: Path) -> bool:
    return (folder / "config.json").exists() and newest(folder) is None


def _no_data(step: int) -> dict[str, Batch]:
    raise DataError("a stage needs data; give a folder or a file with --data, for example --data pets/")


@dataclass(frozen=True, kw_only=True)
class Run:
    """A stage with its arguments. Weights and data are read when they are needed."""

    stage: Stage
    given: Given

    @property
    def steps(self) -> int:
        """Source batches of the run."""
        return self.given.steps or self.stage.updates * self.stage.accumulate

    # -- the model ----------------------------------------------------------------------------------------------------

    @cached_property
    def start(self) -> Start:
        """The model that the stage starts from. CheckpointError where there is none, ValueError where it lacks a branch."""
        name = self.given.model or self.stage.start
        if _is_size(name):
            raise CheckpointError(
                f"{name} is a size without weights, which can be inspected only; give a model's folder"
            )
        if not self.given.model and not Path(name).exists() and name.startswith("runs/"):
            raise CheckpointError(
                f"{self.stage.name} starts from {name}, which the stage before it writes; train that one, or name a model with --model"
            )
        found = start_of(name)
        if found.writes_only:
            raise ValueError(f"{name} is a text model; {self.stage.name} needs a model that reads and draws pictures")
        if "vision" in self.stage.needs and found.spec.checkpoint.config.vision is None:
            raise ValueError(f"{name} has no vision tower, which {self.stage.name} trains; choose another --model")
        return found

    @property
    def planned(self) -> ModelSpec:
        """The spec of that model; where the default is not there, the published size."""
        name = self.given.model or self.stage.start
        if _is_size(name):
            return spec_of_size(name)
        try:
            return read_spec(resolve(name))
        except CheckpointError:
            if self.given.model:
                raise
            return spec_of_size(SIZE)

    def network(self) -> Elastic:
        """The loaded part of the network in float32 on the CPU, with a generation branch that begins from the understanding branch if
        the stage says so.
        """
        if not self.given.data:
            _no_data(0)
        checkpoint = self.start.spec.checkpoint
        net, vq = checkpoint.modules()
        load(Weights(checkpoint=checkpoint, storage=WeightStorage(dtype=torch.float32)), net, vq, self.stage.needs)
        pruned(net, self.stage.needs)
        net.mask_id = self.start.parts.mask_id
        if self.given.gen == "und":
            grow(
                net,
                checkpoint,
                self.start.parts.vq.get_parameter("quantize.embedding.weight"),
                generator("grow", self.given.seed),
            )
        return net

    def outline(self) -> Elastic:
        """The loaded part on the meta device, with the attention of a GPU."""
        net = pruned(self.planned.checkpoint.modules()[0], self.stage.needs)
        net.attention = fused
        return net

    def export(self, module: Elastic, folder: Path) -> None:
        """Write the whole model: what the stage did not load is that of the first model."""
        stored, state = self.start.spec.checkpoint.net, dict(module.state_dict())
        for name, where in stored.items():
            if name not in state:
                state[name] = read(where)
            elif len(state[name]) < where.shape[0]:  # its first rows
                whole = read(where, dtype=state[name].dtype)
                whole[: len(state[name])] = state[name]
                state[name] = whole
        export_like(self.start.spec, state, folder)
        self.start.write_vocabulary(folder, all_texts(self.data[0]))

    # -- data ---------------------------------------------------------------------------------------------------------

    @cached_property
    def parts(self) -> Parts:
        """Those of the model, for the resolution of the stage."""
        parts = self.start.parts
        side, factor = parts.side // self.stage.part, parts.vq.config.factor
        if side % (factor * self.stage.fold):
            raise ValueError(
                f"{self.stage.name} draws at {side} pixels, which is not a multiple of {factor * self.stage.fold}; choose a larger model"
            )
        return replace(parts, side=side, fold=self.stage.fold)

    @cached_property
    def data(self) -> tuple[Mixture, Mixture | None]:
        return split(self.given.data, self.given.holdout)

    @cached_property
    def rows(self) -> OwnData:
        """Training rows, in the formats that the data have samples for."""
        return OwnData(data=self.data[0], formats=self._formats(self.data[0]), seed=self.given.seed)

    @cached_property
    def source(self) -> Groups:
        shares = {f.name: (f.task, self.rows.weight(f.name)) for f in self.rows.used}
        return Groups(
            data=self.rows,
            groups=tuple(self.groups(shares)),
            seed=self.given.seed,
            steps=self.steps,
            alike=self.given.alike,
        )

    def groups(self, shares: Mapping[str, tuple[str, float]]) -> list[Group]:
        """The groups of the stage. ``shares``: (task, weight) of every format that there are samples for. The tasks of a mix share its
        weight equally, and the formats of a task by their weights.
        """
        found = []
        for mix in self.mixes:
            names = [name for name in mix.names if name in shares]
            rows = max(1, self.given.batch // 2) if mix.half else self.given.batch
            for name in names:
                task, weight = shares[name]
                whole = sum(shares[n][1] for n in names if shares[n][0] == task)
                share = weight / whole / len({shares[n][0] for n in names})
                last = None if mix.last is None else mix.last * share
                found.append(Group(name=name, weight=mix.weight * share, last=last, rows=rows))
        return found

    @property
    def mixes(self) -> tuple[Mix, ...]:
        """Those of the stage; with ``t_exp`` one process in place of layouts, of pictures after them, and of both."""
        kinds = {"plan", "draw_planned", "draw_open"}
        if not self.given.t_exp or not any(kinds & {*mix.names} for mix in self.stage.mixes):
            return self.stage.mixes
        whole = sum(mix.weight for mix in self.stage.mixes if kinds & {*mix.names})
        rest = tuple(mix for mix in self.stage.mixes if not kinds & {*mix.names})
        return (*rest, Mix(names=("draw_unified",), weight=whole))

    def _formats(self, data: Mixture) -> tuple[Format, ...]:
        """The formats of the stage's groups: those of fine-tuning, and those of ``StageRows``."""
        parts, presets = self.parts, self.start.presets
        boxes = boxes_of(data)
        made_by = Coding(parts=parts, square=Pad(paper=parts.paper), side=parts.side).made_by()
        path = Path(self.given.folder) / "codes.sqlite" if self.given.folder else None
        kept = KeptCodes(encode=parts.encode, made_by=made_by, path=path)
        known = apart(formats_of(parts, kept, presets, lambda sample: boxes.get(sample.image.name, ())))
        crop = Crop(middle=bool(self.given.codes))
        coding = Coding(parts=parts, square=crop, side=parts.side).made_by()
        rows = StageRows(
            parts=parts,
            square=crop,
            boxes=boxes,
            attempts=attempts_of(data),
            length=presets.plan_length,
            shards=Shards(Path(self.given.codes), coding) if self.given.codes else None,
        )
        wanted = {name for mix in self.mixes for name in mix.names}
        own = stage_formats(rows, presets.context, self._unified)
        names = {f.name for f in own}
        return tuple(f for f in (*own, *(k for k in known if k.name not in names)) if f.name in wanted)

    @property
    def _unified(self) -> Collapsing | None:
        return Collapsing(at=self.given.t_exp, announce=self.start.parts.text[EXP]) if self.given.t_exp else None

    # -- what is learned ----------------------------------------------------------------------------------------------

    @property
    def objectives(self) -> tuple[tuple[str, Masked, float], ...]:
        return tuple((name, self._objective(name), 1.0) for mix in self.mixes for name in mix.names)

    def _objective(self, name: str) -> Masked:
        """The mean loss of masked tokens, with the dropouts of guidance (spec 3.1, 3.2)."""
        drops = _DROPS.get(name, (_PROMPT,))
        if name == "draw_unified" and self.given.data and self._unified is not None:
            return Masked(corruption=self._unified, dropouts=drops)
        return Masked(corruption=Absorbing(policies={Kind.CODE: self.stage.policy}), dropouts=drops)

    @property
    def evals(self) -> tuple[Eval[Elastic], ...]:
        """Broken rows, and the loss of the validation rows where the data have some."""
        every, rows = 50 * self.stage.accumulate, self.rows
        found = [
            Eval[Elastic](name="data", every=every, run=lambda module, step: {"broken_rows": len(rows.broken.rows)})
        ]
        checking = self.data[1]
        if checking is not None:
            held = OwnData(data=checking, formats=self._formats(checking), seed=self.given.seed, most_broken=1.0)
            if any(checking.task(i) in {f.task for f in held.formats} for i in range(len(checking))):
                objectives = {name: objective for name, objective, _ in self.objectives}
                loss = ValidationLoss(source=held, objectives=objectives, seed=self.given.seed)
                found.append(Eval(name="validation", every=every, run=loss))
        return tuple(found)

    # -- planning -----------------------------------------------------------------------------------------------------

    def examples(self) -> tuple[dict[str, Batch], ...]:
        """A batch of every group, of usual lengths and without values."""
        spec = self.planned
        config, factor = spec.checkpoint.config, spec.checkpoint.vq_config.factor
        geometry = Geometry(
            grid=spec.side // self.stage.part // factor,
            fold=self.stage.fold,
            vision=config.vision if "vision" in self.stage.needs else None,
            tiled=spec.wording == RELEASED,
        )
        every = {name: (name, 1.0) for mix in self.mixes for name in mix.names}
        return tuple({g.name: collate([nominal(g.name, geometry)] * g.rows, range(g.rows))} for g in self.groups(every))
