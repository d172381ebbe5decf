"""Fine-tuning of any model that ``unmask.load`` opens on a user's own data.

    unmask train finetune --model mini --data pets/ --out runs/pets --lora 16

Public idea: ``finetune(model, data) -> Recipe``. Rows have the format of the model's requests (``tasks.examples``). The run's folder is a
model folder afterwards. docs/finetune.md shows an example.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from unmask.checkpoints.elastic import Checkpoint, part_of
from unmask.corruption.absorbing import Absorbing
from unmask.corruption.schedules import Cosine, OftenAll
from unmask.data.codes import Shards
from unmask.data.kept_codes import KeptCodes
from unmask.data.opening import holdout, open_data
from unmask.data.order import Mixture, open_mixture
from unmask.data.own import Format, OwnData
from unmask.data.samples import Boxes, Broken, Caption, DataError, texts_of
from unmask.data.squares import Crop, Pad, Square
from unmask.models.elastic import Elastic
from unmask.models.lora import LoRA
from unmask.objectives.masked import Dropout, Masked, Scores
from unmask.recipe import Eval, Optim, Recipe, Training
from unmask.recipes.chatting import plain_chat
from unmask.recipes.replay import Before, Replay, data_replay, distilled, knows_the_world, world_replay
from unmask.recipes.starting import Start, start_of
from unmask.recipes.watching import Sheet, ValidationLoss
from unmask.recipes.ways import Given, Way, chosen, summed, way_of
from unmask.sequence import Batch, Kind
from unmask.tasks.encoding import Coding
from unmask.tasks.examples import Cropping, formats_of
from unmask.tokens.boxes import FractionBox
from unmask.training.states import newest

MASKS = ("single", "complementary")
PARTS = ("und", "gen", "out", "embed", "norm", "codes", "text_head", "vision")  # of ``checkpoints.elastic.part_of``
REPLAYS = ("auto", "world", "none")
FITS = ("pad", "crop", "middle")
QUANTISED = ("", "int8", "int4")
_LARGE = 1024  # width of the network from which the learning rates of large models apply
_PICTURES = 8  # on a sample sheet
_EXAMPLES = 3  # source batches that memory is planned from
_PROMPT = Dropout(spans=frozenset({"prompt", "plan", "look"}), rate=0.1)
_SOURCE = Dropout(spans=frozenset({"source"}), rate=0.15)


def finetune(
    model: str = "mini",
    data: str = "",
    lora: int = 0,
    alpha: float = 0.0,
    quantise: str = "",
    batch: int = 24,
    only: str = "",
    freeze: str = "",
    replay: str = "auto",
    replay_share: float = 0.75,
    distill: float = 4.0,
    fit: str = "pad",
    holdout: float = 0.1,
    codes: str = "",
    masks: str = "single",
    slots: float = 0.0,
    seed: int = 0,
    folder: str = "",
) -> Recipe:
    """Fine-tune ``model`` on your own pictures and texts (``data``), with LoRA of rank ``lora`` or all weights.

    ``data``: a folder or file (docs/data.md), or several as PATH or PATH=WEIGHT, separated by commas · ``alpha``: LoRA's scale times its
    rank; 0: twice the rank · ``quantise``: int8 or int4, of the weights that LoRA leaves as they are · ``only``: train these parts of the
    network only, ``freeze``: do not train these, separated by commas: und, gen, out, embed, norm, codes, text_head, vision ·
    ``replay``: what the model should not forget: world (scenes of mini's world), a folder or file of samples, none, or auto (world for
    mini) · ``replay_share``: replayed rows relative to ``batch``; of the world, rows that draw, and the batch of other tasks relative to
    mini's training · ``distill``: weight of the loss that keeps the model's predictions for replayed rows; 0: train on these rows instead ·
    ``fit``: pictures of captions that are not square are padded (pad), cropped at random (crop) or to their middle (middle); the prompt
    states a crop · ``holdout``: share of the rows for validation · ``codes``: folder that ``unmask data encode`` has filled ·
    ``masks``: single, or complementary for a second view of every row, in which the other tokens are masked (LaViDa); not of families that
    have their own (``families``) · ``slots``: share of the answers of a text model with gaps that it may leave empty, for ``[slot:N]`` ·
    ``folder``: of the run, for image codes and sample sheets.
    """
    start = start_of(model)
    given = Given(
        data=data,
        lora=lora,
        alpha=alpha,
        quantise=quantise,
        batch=batch,
        only=only,
        freeze=freeze,
        replay=replay,
        replay_share=replay_share,
        distill=distill,
        fit=fit,
        holdout=holdout,
        codes=codes,
        masks=chosen("masks", masks, MASKS),
        slots=slots,
        seed=seed,
        folder=folder,
    )
    return tuned(start, given, way_of(start))


def tuned(start: Start, given: Given, way: Way | None) -> Recipe[Elastic, dict[str, Batch]]:
    """Fine-tune a model. ``way``: that of its family; None: rows like its requests and the loss of LaViDa-O."""
    seed, place = given.seed, _own_folder(given.folder, start)
    training, checking = _split(given.data, given.holdout)
    known = None if given.replay in REPLAYS else _split(_existing(given.replay), 0.0)[0]
    formats = _of_family(start, given, place, way) if way else _formats(start, training, known, place, given)
    source = OwnData(data=training, formats=formats, seed=seed, batch=given.batch)
    scored: Callable[[str], Scores] = way.objective if way else partial(_objective, start=start, masks=given.masks)
    objectives = {f.name: scored(f.name) for f in source.used}
    rows = _rows(given.batch, given.replay_share)
    if known is not None:
        kept = OwnData(data=known, formats=formats, seed=seed + 1, batch=rows)
        replayed: Replay | None = data_replay(kept, {f.name: scored(f.name) for f in kept.used})
    else:
        replayed = _world(given.replay, rows, given.replay_share, start)
    if _weight(given.distill) and replayed:
        replayed = distilled(replayed, Before(network=start.network), given.distill)
    merged = Merged(sources=(source, *([replayed] if replayed else [])))
    checkpoint = start.spec.checkpoint
    return Recipe(
        name=f"finetune of {start.name}",
        model=_network(start, given.quantise, given.lora),
        adapt=adapter_of(checkpoint, given),
        source=merged,
        objective=(way.together if way else partial(summed, {}))(objectives, replayed),
        optim=_optim(start, given.lora),
        training=Training(steps=340, seed=seed, save_every=100, log_every=10),
        trainable=_trainable(checkpoint, given),
        evals=_evals(start, source, checking, objectives, place, way.draws if way else not start.writes_only),
        outline=lambda: start.spec.checkpoint.modules()[0],
        examples=lambda: tuple(merged(step) for step in range(_EXAMPLES)),
        export=lambda module, folder: start.export(module, folder, _texts(training)),
    )


@dataclass(frozen=True, kw_only=True)
class Merged:
    """The batches of several sources in one step."""

    sources: tuple[Callable[[int], Mapping[str, Batch]], ...]

    def __call__(self, step: int) -> dict[str, Batch]:
        return {name: batch for source in self.sources for name, batch in source(step).items()}


# -- data -------------------------------------------------------------------------------------------------------------


def _split(data: str, share: float) -> tuple[Mixture, Mixture | None]:
    """Training and validation rows of every set. A set that is so small that no row is left for training has no validation rows."""
    if not data:
        raise DataError("fine-tuning needs data; give a folder or a file with --data, for example --data pets/")
    most, rest = holdout(share)
    whole = open_mixture([data] if Path(data).exists() else data.split(","), open_data)
    if empty := next((part.name for part in whole.parts if not len(part.data)), None):
        raise DataError(f"{empty} has no rows; see docs/data.md for what may be in it")
    training = [(part, part.data.split(most)) for part in whole.parts]
    checking = [replace(part, data=part.data.split(rest)) for part, kept in training if len(kept)]
    held = tuple(part for part in checking if len(part.data))
    parts = tuple(replace(part, data=kept) if len(kept) else part for part, kept in training)
    return Mixture(parts=parts), Mixture(parts=held) if held else None


def _of_family(start: Start, given: Given, folder: Path | None, way: Way) -> tuple[Format, ...]:
    """The rows of a family. ValueError for arguments that have no effect on them."""
    if given.fit != "pad" or given.codes:
        raise ValueError(
            f"{start.name} shapes pictures as its family does and encodes them itself; leave out fit and codes"
        )
    if given.masks != "single" or given.slots:
        raise ValueError(f"{start.name} has the masks and slots of its family; use a recipe of families (unmask train)")
    return way.formats(start, folder)


def _formats(
    start: Start, data: Mixture, known: Mixture | None, folder: Path | None, given: Given
) -> tuple[Format, ...]:
    fit, codes = given.fit, given.codes
    if fit not in FITS:
        raise ValueError(f"fit {fit!r} is unknown; choose from {', '.join(FITS)}")
    if start.writes_only:
        return (plain_chat(start, given.slots),)
    if given.slots:
        raise ValueError(f"{start.name} is not a text model, and slots are gaps of texts; leave out slots")
    parts = start.parts

    def kept(square: Square, *, read: bool, write: bool) -> KeptCodes:
        """``read``: codes made beforehand, if there are any · ``write``: a file in the run's folder."""
        made_by = Coding(parts=parts, square=square, side=parts.side).made_by()
        shards = Shards(Path(codes), made_by) if codes and read else None
        path = folder / "codes.sqlite" if folder and write else None
        return KeptCodes(encode=parts.encode, made_by=made_by, shards=shards, path=path)

    crop = None
    if fit != "pad":
        square = Crop(middle=fit == "middle")  # random crops seldom recur, so a file of them would only grow
        crop = Cropping(square=square, codes=kept(square, read=square.middle, write=square.middle))
    padded = kept(Pad(paper=parts.paper), read=fit != "middle", write=True)
    return formats_of(
        parts, padded, start.presets, _Looked(boxes=(_boxes(known) if known else {}) | _boxes(data)), crop
    )


@dataclass(frozen=True, kw_only=True)
class _Looked:
    """The boxes of a caption's picture, by the picture's name."""

    boxes: Mapping[str, tuple[tuple[str, FractionBox], ...]]

    def __call__(self, sample: Caption) -> tuple[tuple[str, FractionBox], ...]:
        return self.boxes.get(sample.image.name, ())


def _boxes(data: Mixture) -> dict[str, tuple[tuple[str, FractionBox], ...]]:
    rows = (data[i] for i in range(len(data)) if data.task(i) == "boxes")
    return {row.image.name: row.phrases for row in rows if isinstance(row, Boxes)}


def _texts(data: Mixture) -> list[str]:
    return [
        text for row in (data[i] for i in range(len(data))) if not isinstance(row, Broken) for text in texts_of(row)
    ]


def _existing(replay: str) -> str:
    """A folder or file of samples. ValueError for a name that is none."""
    if not Path(replay).exists():
        raise ValueError(f"replay {replay!r} is unknown; choose from {', '.join(REPLAYS)}, or give a folder or file")
    return replay


def _rows(batch: int, share: float) -> int:
    if not 0 < share <= 4:
        raise ValueError(f"replay_share is {share}; give a number above 0 and at most 4")
    return max(1, round(batch * share))


def _world(name: str, rows: int, share: float, start: Start) -> Replay | None:
    """Scenes of mini's world, for a model that knows them."""
    known = not start.writes_only and knows_the_world(start.parts)
    if name == "world" and not known:
        raise ValueError(
            f"replay world needs mini or a model that was fine-tuned from it, not {start.name}; give a folder of samples"
        )
    return world_replay(start.parts, rows=rows, share=share) if known and name != "none" else None


def _weight(distill: float) -> float:
    if not 0 <= distill <= 100:
        raise ValueError(f"distill is {distill}; give a weight from 0 to 100")
    return distill


# -- what is trained, and how -----------------------------------------------------------------------------------------


def _objective(name: str, start: Start, masks: str) -> Masked:
    """The masked-diffusion loss of a format, with the dropouts of guidance (spec 3.1, 4.5)."""
    both = masks == "complementary"
    if name.startswith("draw"):
        return Masked(dropouts=(_PROMPT,), complementary=both)
    if name == "edit":
        return Masked(dropouts=(_PROMPT, _SOURCE), complementary=both)
    if name != "plan" and not start.writes_only and start.parts.wording.one_turn:
        # mini writes short answers at once, so it often sees all of an answer masked.
        policies = {Kind.TEXT: OftenAll(policy=Cosine(), all=0.4)}
        return Masked(corruption=Absorbing(policies=policies), complementary=both)
    return Masked(complementary=both)


def _network(start: Start, quantise: str, lora: int) -> Callable[[], Elastic]:
    """What makes the network; its branches quantised to ``quantise``, if it is given."""
    if quantise not in QUANTISED:
        raise ValueError(f"quantise {quantise!r} is unknown; choose from {', '.join(QUANTISED[1:])}")
    if not quantise:
        return start.network
    if not lora:
        raise ValueError(f"weights in {quantise} cannot be trained; add --lora, for example --lora 16")
    return partial(start.network, bits=int(quantise.removeprefix("int")))


def _optim(start: Start, lora: int) -> Optim:
    """Learning rates found on mini (docs/log.md); large models use the rates that are usual for them."""
    return Optim(lr=learning_rate(start, lora), warmup=20, decay_from=0.5, floor=0.05, ema=0.99)


def learning_rate(start: Start, lora: int) -> float:
    """Of AdamW, for adapters of rank ``lora`` or all weights."""
    large = start.spec.checkpoint.config.width >= _LARGE
    return (2e-4 if lora else 1e-5) if large else (2e-3 if lora else 3e-4)


def _chosen(only: str, freeze: str) -> frozenset[str]:
    """The names of the parts to train. ValueError for others."""
    first, without = ([n.strip() for n in names.split(",") if n.strip()] for names in (only, freeze))
    for name in (*first, *without):
        if name not in PARTS:
            raise ValueError(f"no part of the network is called {name!r}; choose from {', '.join(PARTS)}")
    if not (chosen := frozenset(first or PARTS) - frozenset(without)):
        raise ValueError(f"--only {only} and --freeze {freeze} leave nothing to train; remove one")
    return chosen


def _trainable(checkpoint: Checkpoint, given: Given) -> Callable[[str], bool]:
    """The parameters of the chosen parts; with adapters, all that these left trainable."""
    chosen = _chosen(given.only, given.freeze)
    if given.lora:
        return lambda name: True
    return lambda name: part_of(name, checkpoint.config).partition(".")[0] in chosen


def adapter_of(checkpoint: Checkpoint, given: Given) -> LoRA | None:
    """Adapters of the transformer's linear layers in the chosen parts; None for rank 0."""
    config, lora = checkpoint.config, given.lora
    chosen = _chosen(given.only, given.freeze) & {"und", "gen", "out"}
    most = max(config.width, config.gen_width)
    if not 0 <= lora <= most:
        raise ValueError(f"the rank of LoRA is {lora}; give 1 to {most}, the model's width, or 0 to train all weights")
    if not lora:
        return None
    if not chosen:
        raise ValueError("LoRA adapts und, gen and out, of which --only and --freeze leave none; train without --lora")

    def where(name: str) -> bool:
        return part_of(f"{name}.weight", config).partition(".")[0] in chosen

    return LoRA(where=where, rank=lora, alpha=given.alpha or 2.0 * lora, seed=given.seed)


# -- what is measured -------------------------------------------------------------------------------------------------


def _evals(
    start: Start,
    source: OwnData,
    checking: Mixture | None,
    objectives: Mapping[str, Scores],
    folder: Path | None,
    draws: bool,
) -> tuple[Eval, ...]:
    """The loss of the validation rows, and sheets of pictures where captions are trained and the run has a folder."""
    found = [Eval(name="data", every=50, run=lambda module, step: {"broken_rows": len(source.broken.rows)})]
    if checking is not None:
        rows, seed = OwnData(data=checking, formats=source.used, seed=source.seed, most_broken=1.0), source.seed
        if any(checking.task(i) in {f.task for f in source.used} for i in range(len(checking))):
            found.append(
                Eval(name="validation", every=50, run=ValidationLoss(source=rows, objectives=objectives, seed=seed))
            )
    samples = (source.data[i] for i in range(len(source.data)))
    prompts = list(dict.fromkeys(s.text for s in samples if isinstance(s, Caption)))[:_PICTURES]
    if folder is not None and prompts and draws:
        sheet = Sheet(parts=start.parts, presets=start.presets, prompts=tuple(prompts), folder=folder)
        found.append(Eval(name="samples", every=250, run=sheet))
    return tuple(found)


def _own_folder(folder: str, start: Start) -> Path | None:
    """The folder of the run. ValueError for one that holds a model of somebody else."""
    if not folder:
        return None
    place = Path(folder)
    if (place / "config.json").exists() and newest(place) is None:
        raise ValueError(
            f"{place} holds a model that is not a run; choose another --out, so that it is not overwritten"
        )
    return place
