"""A folder in the released layout of LaViDa-O, run as it was published (spec 1.8, 1.9, 2, 4).

Public idea: ``load_parts(folder)`` gives the parts with the released wording, quirks and image pipeline; ``PRESETS`` the published
samplers. config.json may have a key ``unmask`` for what the layout cannot say: ``side`` (pixels of a drawn picture, 1024 if
absent), ``vision`` (sizes of another tower) and ``wording`` (``compact`` for our own models in this layout).
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from unmask.checkpoints.lavida_o import OWN, load_lavida_o
from unmask.checkpoints.store import CheckpointError
from unmask.models.sizes import VisionConfig
from unmask.sampling.presets import lavida_o_edit, lavida_o_image, llada_text
from unmask.sampling.sampler import Sampler
from unmask.tasks import ground, understand
from unmask.tasks.parts import Parts, Presets
from unmask.tokens.build import LOOK, PROMPT, SOURCE
from unmask.tokens.prompts import COMPACT, RELEASED
from unmask.tokens.quirks import ReleasedQuirks
from unmask.tokens.text import EOS, EOT, MASK, Text, TokenizerError
from unmask.tokens.views import PINPOINTS, AnyRes

WORDINGS = {"released": RELEASED, "compact": COMPACT}
SIDE = 1024  # pixels: the only size that the released weights draw (spec 1.8)


def is_released(folder: Path) -> bool:
    """Whether config.json is one of the released layout rather than of ours."""
    try:
        raw = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return False
    return isinstance(raw, dict) and "d_model" in raw


def load_parts(folder: Path, *, device: str = "cpu") -> Parts:
    """All parts of a folder. CheckpointError says what is missing or does not fit, before any weight is read where possible."""
    raw: dict[str, Any] = json.loads((folder / "config.json").read_text())
    own = raw.get(OWN, {})
    side, named = (own.get("side", SIDE), own.get("wording", "released")) if isinstance(own, dict) else (own, "")
    if named not in WORDINGS or not isinstance(side, int) or side < 1:
        raise CheckpointError(
            f"config.json: unmask.side {side!r} and unmask.wording {named!r} are unknown; give pixels and one of {', '.join(WORDINGS)}"
        )
    text = read_text(folder, raw)
    net, vq = load_lavida_o(folder)
    net.mask_id = text[MASK]
    vq = vq.float()  # cheap, and what its own configuration asks for (force_upcast)
    if side % (2 * vq.config.factor):
        raise CheckpointError(
            f"config.json: side {side} is no multiple of {2 * vq.config.factor} pixels; see unmask.side"
        )
    parts = Parts(text=text, net=net.to(device), vq=vq.to(device), wording=WORDINGS[named], side=side, fold=2)
    if named == "released":
        return published(parts, raw)
    if net.config.vision and net.config.vision.image != side:
        raise CheckpointError(
            f"config.json: a compact model sees what it draws, got views of {net.config.vision.image} and pictures of {side} pixels; "
            "see unmask.vision and unmask.side"
        )
    return parts


def published(parts: Parts, raw: dict[str, Any]) -> Parts:
    """The same parts with the released quirks and image pipeline; ``raw`` is config.json."""
    vision = parts.net.config.vision
    views = _views(raw, vision) if vision else None
    return replace(parts, quirks=ReleasedQuirks(), paper=(0, 0, 0), views=views)


def read_text(folder: Path, raw: dict[str, Any]) -> Text:
    """The tokenizer, whose control tokens are found by name and whose size must be the model's. CheckpointError says what is wrong."""
    path = folder / "tokenizer.json"
    if not path.exists():
        raise CheckpointError(
            f"there is no tokenizer.json in {folder}; copy the one that was released with the weights"
        )
    try:
        text = Text.load(path)
    except TokenizerError as error:
        raise CheckpointError(f"{path}: {error}; use the one of this model, LLaDA's own has no coordinates") from error
    size = raw.get("embedding_size") or raw.get("vocab_size")
    if text.size != size:
        raise CheckpointError(f"{path} has {text.size} ids and the model {size}; use the tokenizer of this model")
    if (said := raw.get("mask_token_id", text[MASK])) != text[MASK]:
        raise CheckpointError(
            f"config.json says that token {said} is undecided text, the tokenizer {text[MASK]}; use the tokenizer of this model"
        )
    return text


def _views(raw: dict[str, Any], vision: VisionConfig) -> AnyRes:
    """The pinpoints of config.json, or the published ones in units of the tower's view."""
    unit = AnyRes().size
    published = [[v * vision.image // unit for v in pair] for pair in PINPOINTS]
    try:
        pinpoints = tuple((int(w), int(h)) for w, h in raw.get("image_grid_pinpoints", published))
        return AnyRes(size=vision.image, pooled=vision.pooled, pinpoints=pinpoints)
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"config.json: image_grid_pinpoints: {error}; wanted pairs of width and height"
        ) from error


def _generate(tokens: Parts) -> Sampler:
    return lavida_o_image(grid=tokens.grid, null_id=tokens.mask_id, drop=PROMPT)


def _edit(tokens: Parts) -> Sampler:
    return lavida_o_edit(grid=tokens.grid, null_id=tokens.mask_id, drop=PROMPT | LOOK | SOURCE, keep=SOURCE)


def _ask(tokens: Parts) -> Sampler:
    return llada_text(end=(tokens.text[EOT], tokens.text[EOS]))


PRESETS = Presets(
    generate=_generate,
    edit=_edit,
    ask=_ask,
    fill=understand.fill_sampler,
    ground=ground.sampler,
    answer=128,
    caption=128,
)
