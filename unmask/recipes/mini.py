"""Training of the embedded model from scratch: text tokenizer, vision tower, then the paper's three stages at small scale.

    unmask train mini_vq.vq   --out runs/vq       the image tokenizer
    unmask train mini.tower   --out runs/tower    the semantic encoder
    unmask train mini.stage2a --out runs/stage2a  image generation at 64 px, one code per position
    unmask train mini.stage2  --out runs/stage2   image generation at 128 px with 2x2 folding
    unmask train mini.align   --out runs/align    the projector: image features to word embeddings
    unmask train mini.stage3  --out runs/stage3   all tasks jointly
    python -c "from unmask.recipes.mini import ship; ship()"

``mini.stage1`` (understanding and grounding before image generation, as in the paper) is optional; the shipped weights were trained
without it. To use it: ``mini.stage2a -o start=runs/stage1``. ``tokenizer_file`` makes the text tokenizer. ``images``: number of images
that the codebook is fitted to; it must be the same for all stages.

Source: Lavida-O (arXiv 2509.19244) section 4 and table 1, scaled to a 7 M parameter model and two CPU cores. The measured cost and
results of the shipped weights are in the model card (unmask/assets/mini/README.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor, nn

from unmask.checkpoints.store import load_module, save_module
from unmask.corruption.absorbing import Absorbing
from unmask.corruption.collapsing import Collapsing
from unmask.corruption.schedules import Cosine, OftenAll, Uniform
from unmask.data.drawn import DrawnCritiques
from unmask.data.mixture import Joint
from unmask.data.sources import LABELS, CachedEncoder, Captions, Drawings, Edits, Labelled, Planned, VisualQuestions
from unmask.data.thinking import Critiques, EditCritiques, EditPlans, Illustrations, Plans, Retries
from unmask.data.world import critiques, edits, language
from unmask.data.world.questions import questions
from unmask.data.world.scenes import Draft, sample
from unmask.data.world.vocabulary import CLASS_NAMES, COLOUR_NAMES
from unmask.data.world.words import vocabulary
from unmask.models.codes import init_codes
from unmask.models.elastic import Elastic, init
from unmask.models.sizes import SIZES
from unmask.models.vision import Vision
from unmask.objectives.align import Aligned
from unmask.objectives.cells import Cells, LabelledVision
from unmask.objectives.masked import Dropout, Masked, Together
from unmask.pipeline.loading import resolve
from unmask.protocols import Source
from unmask.recipe import Optim, Recipe, Training
from unmask.recipes.mini_vq import CONFIG, IMAGES, dictionary
from unmask.rng import generator
from unmask.sequence import Batch, Kind
from unmask.tokens.text import EXP, MASK, Text
from unmask.tokens.vocabulary import FILE
from unmask.tokens.vq import VQ

SIZE = SIZES["mini"]
assert SIZE.vision is not None
LOOK_TOKENS = SIZE.vision.tokens
MANY = Draft(counts=((1, 0.15), (2, 0.35), (3, 0.25), (4, 0.25)), alike=0.2)
EVEN = Draft(counts=((1, 0.22), (2, 0.48), (3, 0.18), (4, 0.12)), alike=0.28)

COUNTED = Draft(counts=((2, 0.3), (3, 0.35), (4, 0.35)), alike=0.85)
PAIRS = Draft(counts=((2, 1.0),), alike=0.0)
FEW = Draft(counts=((1, 0.8), (2, 0.2)))


@lru_cache(maxsize=1)
def text() -> Text:
    """The shipped text tokenizer."""
    return Text.load(Path(str(files("unmask") / "assets" / "mini" / "tokenizer.json")))


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


def tokenizer_file(folder: Path) -> Text:
    """Train the byte-level BPE and save it. Takes seconds."""
    made = Text.train(lines(), SIZE.vocab_size)
    folder.mkdir(parents=True, exist_ok=True)
    made.save(folder / "tokenizer.json")
    return made


def tower(seed: int = 0) -> Recipe:
    """The vision tower, trained with dense labels per cell (see ``objectives.cells``). About five minutes on two cores.

    Expected: class, colour and part wrong in less than 1 % of the cells of grid scenes.
    """
    assert SIZE.vision is not None
    vision = SIZE.vision

    def model() -> nn.Module:
        made = LabelledVision(Vision(vision, SIZE.width), LABELS)
        init(made, generator("tower", seed))
        return made

    def export(module: LabelledVision, folder: Path) -> None:
        standardise(module.vision, source(10**6)[0])
        save_module(module.vision, folder)

    source = Labelled(seed=seed)
    return Recipe(
        name="mini.tower",
        model=model,
        source=source,
        objective=Cells(),
        optim=Optim(lr=1.5e-3, warmup=100, decay_from=0.4, floor=0.02, ema=0.998),
        training=Training(steps=2500, seed=seed, save_every=200),
        export=export,
    )


def standardise(vision: Vision, pixels: Tensor) -> None:
    """Normalise the pooled features to mean 0 and deviation 1 over some images, by folding both into the pooling convolution."""
    with torch.no_grad():
        features = vision.pooled(pixels).flatten(0, 2)
        mean, deviation = features.mean(0), features.std(0).clamp(min=1e-3)
        vision.pool.weight /= deviation[:, None, None, None]
        assert vision.pool.bias is not None
        vision.pool.bias.copy_((vision.pool.bias - mean) / deviation)


def _encoder(images: int) -> CachedEncoder:
    """Image codes from the tokenizer's codebook, which is fitted on first use."""
    return CachedEncoder(lambda pixels: dictionary(0, images)[0].codes(pixels))


def _export(module: nn.Module, folder: Path) -> None:
    save_module(module, folder)


def _start(seed: int, start: str, vision: str, images: int = IMAGES) -> Callable[[], Elastic]:
    """The weights of the run or shipped model ``start``; without it keyed random weights, with code embeddings from the codebook and the
    tower of ``vision``.
    """

    def model() -> Elastic:
        made = Elastic(SIZE, mask_id=text()[MASK])
        if start:
            return load_module(made, Path(start) if "/" in start or Path(start).is_dir() else resolve(start))
        init(made, generator("mini", seed))
        init_codes(made.code_embedding, made.code_head, dictionary(0, images)[0].codebook, generator("codes", seed))
        if vision and made.vision is not None:
            load_module(made.vision, Path(vision))
        return made

    return model


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


def not_tower(name: str) -> bool:
    """Freeze the tower and its pooling; projector and newline are trained."""
    return not name.startswith("vision.tower") and not name.startswith("vision.pool")


def align(start: str = "runs/stage2", seed: int = 5) -> Recipe:
    """The projector, from image features to word embeddings (see ``objectives.align``). Takes a minute."""
    tokens = text()
    classes = ((), *(tuple(tokens.encode(name)) for name in CLASS_NAMES))
    colours = ((), (), *(tuple(tokens.encode(name)) for name in COLOUR_NAMES))
    return Recipe(
        name="mini.align",
        model=_start(seed, start, ""),
        source=Labelled(seed=seed, levels=(("grid", 0.85), ("free", 0.15))),
        objective=Aligned(
            words=(("class", classes), ("colour", colours)), codes=(("part", 10), ("size", 4), ("cell", 16))
        ),
        optim=Optim(lr=3e-3, warmup=20, decay_from=0.2, floor=0.02, ema=0.98),
        training=Training(steps=400, seed=seed),
        trainable=lambda name: name.startswith("vision.project"),
        export=_export,
    )


@dataclass(frozen=True, kw_only=True)
class _Stage:
    """A training stage of the transformer. ``parts``: (task, source, every how many steps, objective, weight)."""

    name: str
    seed: int
    steps: int
    model: Callable[[], Elastic]
    parts: tuple[tuple[str, Source, int, Masked, float], ...]
    optim: Optim = Optim(lr=1.5e-3, warmup=100, decay_from=1.0)
    trainable: Callable[[str], bool] = not_tower

    def __call__(self) -> Recipe:
        return Recipe(
            name=self.name,
            model=self.model,
            source=Joint(parts=tuple((task, source, every) for task, source, every, _, _ in self.parts)),
            objective=Together(objectives=tuple((task, scored, weight) for task, _, _, scored, weight in self.parts)),
            optim=self.optim,
            training=Training(steps=self.steps, seed=self.seed),
            trainable=self.trainable,
            outline=_outline,
            examples=lambda: (_unencoded(self.parts),),
            export=_export,
        )


def _outline() -> Elastic:
    with torch.device("meta"):
        return Elastic(SIZE, mask_id=0)


def _unencoded(parts: tuple[tuple[str, Any, int, Masked, float], ...]) -> dict[str, Batch]:
    """A batch of every part, with zeros for the codes of its pictures."""
    return {
        name: (replace(source, encode=_zeros) if hasattr(source, "encode") else source)(0) for name, source, *_ in parts
    }


def _zeros(pixels: Tensor) -> Tensor:
    return torch.zeros(
        len(pixels), pixels.shape[2] // CONFIG.factor, pixels.shape[3] // CONFIG.factor, dtype=torch.long
    )


def stage1(vision: str = "runs/tower", start: str = "", seed: int = 1, images: int = IMAGES) -> Recipe:
    """Understanding and grounding: questions, phrases and captions (paper stage 1)."""
    looks = VisualQuestions(text=text(), seed=seed, look_tokens=LOOK_TOKENS, batch=16)
    return _Stage(
        name="mini.stage1",
        seed=seed,
        steps=1500,
        model=_start(seed, start, vision, images),
        parts=(("look", looks, 1, _LOOK, 1.0),),
        trainable=lambda name: not_tower(name) and ".gen." not in name and not name.startswith("code"),
    )()


def stage2a(vision: str = "runs/tower", start: str = "", seed: int = 2, images: int = IMAGES) -> Recipe:
    """Image generation at 64 px: 16 codes, one per position, uniform mask ratio (paper: 256 px uncompressed)."""
    draw = Drawings(
        text=text(), encode=_encoder(images), seed=seed, side=64, fold=1, batch=64, levels=(("grid_half", 1.0),)
    )
    return _Stage(
        name="mini.stage2a",
        seed=seed,
        steps=1500,
        model=_start(seed, start, vision, images),
        parts=(
            ("draw", draw, 1, Masked(corruption=Absorbing(policies={Kind.CODE: Uniform()}), dropouts=_DRAW_DROPS), 1.0),
        ),
    )()


def stage2(vision: str = "runs/tower", start: str = "runs/stage2a", seed: int = 3, images: int = IMAGES) -> Recipe:
    """Image generation at 128 px: 64 codes on 16 positions by 2x2 folding, cosine mask ratio (paper: 1024 px compressed)."""
    draw = Drawings(text=text(), encode=_encoder(images), seed=seed, batch=48, draft=EVEN)
    return _Stage(
        name="mini.stage2",
        seed=seed,
        steps=6000,
        model=_start(seed, start, vision, images),
        parts=(("draw", draw, 1, _DRAW, 1.0),),
    )()


def stage3(
    vision: str = "runs/tower",
    start: str = "runs/align",
    drawn: str = "",
    seed: int = 4,
    images: int = IMAGES,
    t_exp: float = 0.0,
) -> Recipe:
    """All tasks jointly (paper stage 3), with learning rate decay: image generation, questions and grounding, editing, captions; layouts
    before images and edits, critiques, further attempts, text that announces an image.

    ``drawn``: a folder of ``mini_drawn``, to train critiques on generated images too · ``t_exp=0.5``: mask the announcing text together
    with the image, in the paper's single process that collapses at this time; 0: three kinds of samples, as in the released code
    (spec 3.3).
    """
    tokens, encode = text(), _encoder(images)
    common = {"text": tokens, "seed": seed}
    coded, seeing = {**common, "encode": encode}, {**common, "look_tokens": LOOK_TOKENS}
    draw = Drawings(**coded, batch=4, draft=EVEN)
    edit = Edits(**coded, look_tokens=LOOK_TOKENS, batch=7)
    counted = replace(draw, seed=seed + 40, batch=6, plan=Planned(open=0.0), draft=COUNTED)
    planned = replace(draw, seed=seed + 10, batch=8, plan=Planned(open=0.0))
    conditioned = replace(draw, seed=seed + 30, batch=10, conditions=1.0, draft=FEW)
    related = Plans(text=tokens, seed=seed + 20, length=44, batch=30, related=0.95, draft=PAIRS)
    retry = Retries(**coded, look_tokens=LOOK_TOKENS, batch=3, plan=Planned(), draft=EVEN)
    reply = VisualQuestions(
        **{**seeing, "seed": seed + 20}, batch=6, questions=1, phrases=0, draft=MANY, answer_length=44
    )
    unified = Collapsing(at=t_exp, announce=tokens[EXP]) if t_exp else None
    illustration = Illustrations(**coded, look_tokens=LOOK_TOKENS, batch=8, length=44, draft=EVEN, unified=unified)
    critique_relations = Critiques(**{**seeing, "seed": seed + 50}, batch=4, related=0.8, draft=PAIRS)
    critique_drawn = DrawnCritiques(**seeing, batch=5, captions=4, related=0.3, folder=Path(drawn))
    return _Stage(
        name="mini.stage3",
        seed=seed,
        steps=19500,
        model=_start(seed, start, vision, images),
        parts=(
            ("draw", draw, 1, _DRAW, 0.6),
            ("draw_asked", conditioned, 1, _DRAW_CONDITIONED, 1.0),
            ("draw_counted", counted, 1, _DRAW_PLANNED, 0.5),
            ("draw_planned", planned, 1, _DRAW_PLANNED, 1.1),
            ("look", VisualQuestions(**seeing, batch=3, questions=4, phrases=3, draft=MANY), 1, _LOOK, 0.5),
            ("edit", edit, 1, Masked(dropouts=_EDIT_DROPS), 0.9),
            ("edit_planned", replace(edit, seed=seed + 10, plan=Planned(), batch=7), 1, _EDIT_PLANNED, 0.7),
            ("plan", Plans(**common, length=44, batch=8, draft=EVEN), 1, Masked(), 0.3),
            ("plan_related", related, 1, _PLAN, 1.6),
            ("edit_plan", EditPlans(**seeing, length=24, batch=8), 1, Masked(), 0.7),
            ("critique", Critiques(**seeing, batch=5, captions=5, draft=MANY), 1, _LOOK, 1.0),
            ("critique_placed", critique_relations, 1, _LOOK, 0.8),
            *([("critique_drawn", critique_drawn, 1, _LOOK, 1.0)] if drawn else []),
            ("edit_critique", EditCritiques(**seeing, batch=4), 1, _LOOK, 0.25),
            ("retry", retry, 1, _DRAW_RETRY, 0.3),
            ("illustration", illustration, 1, replace(_ILLUSTRATE, corruption=unified or _LOOK.corruption), 1.2),
            # Must not be a multiple of the number of processes: one process would get all batches.
            ("reply", reply, 5, _LOOK, 0.5),
            ("caption", Captions(**common, batch=16), 9, Masked(), 0.2),
        ),
        optim=Optim(lr=9e-4, warmup=100, decay_from=0.5, floor=0.02, ema=0.999),
    )()


def ship(net: str = "runs/stage3", vq: str = "runs/vq", out: str = "unmask/assets/mini") -> None:
    """Write the trained parts as a model folder: network in bfloat16, image tokenizer in float32 (rounding would change its codes)."""
    from unmask.checkpoints.checksums import write_sums
    from unmask.pipeline.loading import write_config

    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    model = load_module(Elastic(SIZE, mask_id=text()[MASK]), Path(net))
    save_module(model, folder, name="model", dtype=torch.bfloat16)
    save_module(load_module(VQ(CONFIG), Path(vq)), folder, name="vq")
    text().save(folder / "tokenizer.json")
    (folder / FILE).write_text(vocabulary("grid", "mini").text(), encoding="utf-8")
    write_config(folder, SIZE, CONFIG, wording="compact", side=128, fold=2)
    write_sums(folder)
