"""LaViDa-O as it was published (spec 1.8, 1.9, 2, 4).

Public idea: ``published(parts, raw)`` adds the released quirks and image pipeline; ``PRESETS`` are the published samplers.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from unmask.checkpoints.stream import CheckpointError
from unmask.json_types import Json
from unmask.models.sizes import VisionConfig
from unmask.sampling.cache import PrefixCache
from unmask.sampling.presets import lavida_o_critique, lavida_o_edit, lavida_o_image, lavida_o_plan, llada_text
from unmask.sampling.sampler import Sampler
from unmask.tasks import ground, understand
from unmask.tasks.parts import Parts, Presets
from unmask.tokens.build import LOOK, PLAN, PROMPT, SOURCE
from unmask.tokens.quirks import ReleasedQuirks
from unmask.tokens.text import EOS, EOT, EXP, MASK, Text, TokenizerError
from unmask.tokens.views import PINPOINTS, AnyRes


def published(parts: Parts, raw: Json) -> Parts:
    """The same parts with the released quirks and image pipeline; ``raw`` is the released config.json."""
    vision = parts.net.config.vision
    views = _views(raw, vision) if vision else None
    return replace(parts, quirks=ReleasedQuirks(), paper=(0, 0, 0), views=views)


def read_text(folder: Path, raw: Json) -> Text:
    """The text tokenizer. Control tokens are found by name; its size must match the model. CheckpointError says what is wrong."""
    path = folder / "tokenizer.json"
    if not path.exists():
        raise CheckpointError(f"no tokenizer.json in {folder}; copy the one released with the weights")
    try:
        text = Text.load(path)
    except TokenizerError as error:
        raise CheckpointError(f"{path}: {error}; use the one of this model, LLaDA's own has no coordinates") from error
    size = raw.get("embedding_size") or raw.get("vocab_size")
    if text.size != size:
        raise CheckpointError(f"{path} has {text.size} ids and the model {size}; use the tokenizer of this model")
    if (said := raw.get("mask_token_id", text[MASK])) != text[MASK]:
        raise CheckpointError(
            f"config.json gives mask_token_id {said}, the tokenizer {text[MASK]}; use the tokenizer of this model"
        )
    return text


def _views(raw: Json, vision: VisionConfig) -> AnyRes:
    """The pinpoints of config.json, or the published ones in units of the tower's view."""
    unit = AnyRes().size
    published = [[v * vision.image // unit for v in pair] for pair in PINPOINTS]
    try:
        pinpoints = tuple((int(w), int(h)) for w, h in raw.get("image_grid_pinpoints", published))
        return AnyRes(size=vision.image, pooled=vision.pooled, pinpoints=pinpoints)
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"config.json: image_grid_pinpoints: {error}; expected pairs of width and height"
        ) from error


def _generate(tokens: Parts) -> Sampler:
    return lavida_o_image(grid=tokens.grid, null_id=tokens.mask_id, drop=PROMPT | PLAN | LOOK)


def _edit(tokens: Parts) -> Sampler:
    return lavida_o_edit(grid=tokens.grid, null_id=tokens.mask_id, drop=PROMPT | LOOK | PLAN | SOURCE, keep=SOURCE)


def _cached(sampler: Sampler) -> Sampler:
    """The sampler behind a cached prompt, which does not attend to the answer (``ReleasedQuirks.prefix_lm``)."""
    return replace(sampler, cache=PrefixCache())


def _ask(tokens: Parts) -> Sampler:
    return _cached(llada_text(end=(tokens.text[EOT], tokens.text[EOS])))


def _plan(tokens: Parts) -> Sampler:
    return _cached(lavida_o_plan(end=(tokens.text[EOT], tokens.text[EOS])))


def _plan_edit(tokens: Parts) -> Sampler:
    return _cached(lavida_o_plan(end=(tokens.text[EOT], tokens.text[EOS]), temperature=0.0))


def _critique(tokens: Parts) -> Sampler:
    return _cached(lavida_o_critique(end=(tokens.text[EOT], tokens.text[EOS])))


def _turn_words(tokens: Parts) -> Sampler:
    return _cached(llada_text(block=16, end=(tokens.text[EOT], tokens.text[EOS], tokens.text[EXP])))


PRESETS = Presets(
    generate=_generate,
    edit=_edit,
    edit_again=_edit,
    ask=_ask,
    fill=understand.fill_sampler,
    ground=ground.sampler,
    plan=_plan,
    plan_edit=_plan_edit,
    critique=_critique,
    answer=128,
    caption=128,
    plan_length=64,
    edit_plan_length=64,
    turn_words=_turn_words,
    critique_length=32,
    turn=128,
    context=8192,
)
