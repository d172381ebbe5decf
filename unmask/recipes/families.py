"""The training of MMaDA, LaViDa, Dream, Dimple and Lumina-DiMOO on your own data, with the losses and the rows of their trainers.

    unmask train families.mmada --model MMADA --data rows.jsonl --out runs/mmada
    unmask train families.lavida --model LAVIDA --data questions.jsonl --out runs/lavida
    unmask train families.dream --model DREAM --data chats.jsonl --out runs/dream
    unmask train families.dimple --model DIMPLE --data questions.jsonl --out runs/dimple
    unmask train families.lumina_dimoo --model DIMOO --data rows.jsonl --out runs/dimoo

Each starts from a model folder of its family, trains all weights or LoRA, and ends in a folder that ``unmask.load`` opens; ``--resume``
continues a run bit for bit. Data are those of ``finetune`` (docs/data.md): captions, conversations, edits. Networks of width 1,024 and more
have the published optimiser, smaller ones that of ``finetune``. ``unmask train finetune --model FOLDER`` trains the same rows with the same
loss (but Dream like LLaDA) and with its own learning rates.

What differs from the published trainers: the padding of a batch is hidden, where theirs is read (MMaDA's drawings, LaViDa, Lumina-DiMOO);
a row that is too long is left out and named, not cut; earlier turns of a conversation are kept, but for Lumina-DiMOO, which reads none.
Not there: LaViDa's first stage (a projector alone, without reduction), reinforcement learning.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from unmask.models.elastic import Elastic
from unmask.pipeline.formats import Format as Layout
from unmask.recipe import Optim, Recipe
from unmask.recipes.chatting import chat_format
from unmask.recipes.finetune import tuned
from unmask.recipes.starting import Start, start_of
from unmask.recipes.ways import (
    PARTS_OF_DIMPLE,
    Given,
    Way,
    dimoo_way,
    dimple_way,
    dream_way,
    lavida_way,
    mmada_way,
)
from unmask.sequence import Batch
from unmask.tasks.family_rows import to_block

_LARGE = 1024  # width of the network from which the published learning rates apply


def mmada(
    model: str = "Gen-Verse/MMaDA-8B-Base",
    data: str = "",
    stage: str = "3",
    lora: int = 0,
    batch: int = 8,
    only: str = "",
    freeze: str = "",
    replay: str = "none",
    holdout: float = 0.1,
    seed: int = 0,
    folder: str = "",
) -> Recipe:
    """MMaDA: drawings, texts and understanding in one step, weighted as in a published stage.

    ``stage``: 1, 2, 3, cot or 4, which differ in these weights, and in whether whole texts (1, 2) or answers are learned. Rows: captions
    (``draw`` and ``describe``), conversations about pictures (``look``) and without (``talk``), and those in which the assistant describes
    a picture and draws it (``think``). The other arguments are those of ``finetune``.
    """
    start = _start(model, Layout.MMADA, "MMaDA")
    given = _given(data, lora, batch, only, freeze, replay, holdout, seed, folder)
    optim = Optim(lr=5e-5, beta2=0.999, weight_decay=0.01, warmup=20, floor=0.1, clip=1.0, ema=0.0)
    return _published(start, given, mmada_way(stage), optim)


def lavida(
    model: str = "jacklishufan/lavida-llada-v1.0-instruct",
    data: str = "",
    slots: float = 0.0,
    lora: int = 0,
    batch: int = 8,
    only: str = "",
    freeze: str = "",
    replay: str = "none",
    holdout: float = 0.1,
    seed: int = 0,
    folder: str = "",
) -> Recipe:
    """LaViDa on LLaDA or Dream: every row with a mask and with its complement, the vision tower at a tenth of the rate.

    ``slots``: share of the answers with slots for infilling, 0.8 in the published third stage. Rows: captions (``describe``) and
    conversations (``chat``). The other arguments are those of ``finetune``.
    """
    start = _start(model, Layout.LAVIDA, "LaViDa")
    given = _given(data, lora, batch, only, freeze, replay, holdout, seed, folder)
    tower = (("tower", 2e-6, "vision.tower."),)
    return _published(start, given, lavida_way(slots), Optim(lr=2e-5, beta2=0.999, warmup=20, ema=0.0, rates=tower))


def dream(
    model: str = "Dream-org/Dream-v0-Instruct-7B",
    data: str = "",
    weight: str = "cart",
    lora: int = 0,
    batch: int = 8,
    only: str = "",
    freeze: str = "",
    replay: str = "none",
    holdout: float = 0.1,
    seed: int = 0,
    folder: str = "",
) -> Recipe:
    """Dream, as the published trainer of Dream-Coder: a masked token counts by what stands around it.

    ``weight``: cart, original (1 / t) or linear (1 - t). Rows: conversations without pictures (``chat``). The other arguments are those of
    ``finetune``.
    """
    start = _start(model, Layout.DREAM, "Dream")
    given = _given(data, lora, batch, only, freeze, replay, holdout, seed, folder)
    way = dream_way(lambda start: chat_format(start, partial(to_block, after="\n")), weight)
    return _published(start, given, way, Optim(lr=5e-6, beta2=0.999, warmup=20, ema=0.0))


def dimple(
    model: str = "rp-yu/Dimple-7B",
    data: str = "",
    stage: str = "diffusion",
    masks: str = "single",
    lora: int = 0,
    batch: int = 8,
    replay: str = "none",
    holdout: float = 0.1,
    seed: int = 0,
    folder: str = "",
) -> Recipe:
    """Dimple: the next token in its first two stages, masked tokens in the third; the vision tower is never trained.

    ``stage``: alignment (the projector), instruction (language model and projector) or diffusion (language model) · ``masks``: single, or
    dual for LaViDa's complement. Rows: captions (``describe``) and conversations (``chat``); their answers end in padding of a random
    length. The other arguments are those of ``finetune``.
    """
    start = _start(model, Layout.DIMPLE, "Dimple")
    given = Given(data=data, lora=lora, batch=batch, replay=replay, holdout=holdout, seed=seed, folder=folder)
    rate, clip = {"alignment": (1e-3, 1.0), "instruction": (2e-5, 1.0)}.get(stage, (5e-6, 0.01))
    made = _published(
        start, given, dimple_way(stage, masks), Optim(lr=rate, beta2=0.999, clip=clip, warmup=20, ema=0.0)
    )
    if lora and stage == "alignment":
        raise ValueError("stage alignment trains the projector alone, which LoRA does not adapt; leave out --lora")
    return made if lora else replace(made, trainable=PARTS_OF_DIMPLE[stage])


def lumina_dimoo(
    model: str = "Alpha-VLLM/Lumina-DiMOO",
    data: str = "",
    length: int = 1024,
    change: str = "edit",
    lora: int = 0,
    batch: int = 8,
    only: str = "",
    freeze: str = "",
    replay: str = "none",
    holdout: float = 0.1,
    seed: int = 0,
    folder: str = "",
) -> Recipe:
    """Lumina-DiMOO: one mean over the masked codes and words of drawings, edits and answers.

    ``length``: tokens of an answer with its filler · ``change``: the released name of what edits do, such as edit_add, depth_control or
    subject_driven. Rows: captions (``draw`` and ``describe``), pairs (``edit``), conversations (``chat``). The other arguments are those of
    ``finetune``.
    """
    start = _start(model, Layout.DIMOO, "Lumina-DiMOO")
    if length < 1:
        raise ValueError(f"length is {length}; give the tokens of an answer, at least 1")
    given = _given(data, lora, batch, only, freeze, replay, holdout, seed, folder)
    optim = Optim(lr=2e-5, beta2=0.95, weight_decay=0.1, warmup=20, floor=1.0, clip=4.0, ema=0.0)
    return _published(start, given, dimoo_way(length, change), optim)


def _given(
    data: str, lora: int, batch: int, only: str, freeze: str, replay: str, holdout: float, seed: int, folder: str
) -> Given:
    return Given(
        data=data,
        lora=lora,
        batch=batch,
        only=only,
        freeze=freeze,
        replay=replay,
        holdout=holdout,
        seed=seed,
        folder=folder,
    )


def _start(model: str, wanted: Layout, family: str) -> Start:
    """The model. ValueError for one of another family."""
    start = start_of(model)
    if start.spec.format is not wanted:
        raise ValueError(f"{model} is no model of {family}; give one, or use `unmask train finetune --model {model}`")
    return start


def _published(start: Start, given: Given, way: Way, optim: Optim) -> Recipe[Elastic, dict[str, Batch]]:
    """``finetune`` with the optimiser of a publication, which is for large networks; smaller ones keep their rates."""
    made = tuned(start, given, way)
    large = start.spec.checkpoint.config.width >= _LARGE
    own = (
        optim if large and not given.lora else replace(optim, lr=made.optim.lr, rates=(), clip=1.0, ema=made.optim.ema)
    )
    return replace(made, optim=own)
