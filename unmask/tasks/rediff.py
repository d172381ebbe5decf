"""LLaDA-V and ReDiff as they were published (arXiv 2505.16933, 2510.19871): prompts, views of pictures, the sampler.

Public idea: ``published(parts, folder) -> Parts`` and ``presets(raw) -> Presets``. Both read pictures and write text. The preset is that of
LLaDA-V; a model that was trained to mend wrong tokens also overwrites what it has revealed, with ``--sampler rediff``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from unmask.checkpoints.rediff import FORBIDDEN, read_rediff, views_of
from unmask.checkpoints.stream import CheckpointError
from unmask.json_types import Json
from unmask.sampling.before_end import BeforeEnd
from unmask.sampling.blocks import Blocks
from unmask.sampling.sampler import Sampler
from unmask.sampling.schedule import Equal
from unmask.sampling.selection import Confident
from unmask.sampling.stopping import EndOfTurn
from unmask.sampling.token_sampler import GumbelText, Without
from unmask.tasks.parts import Parts, Presets
from unmask.tasks.some_tasks import reading_only
from unmask.tokens.prompts import RELEASED
from unmask.tokens.quirks import NO_QUIRKS
from unmask.tokens.text import EOT, MASK, TEXT_CONTROL, Text

LENGTH = 128  # tokens of an answer in the published script
WORDING = replace(RELEASED, after_image="\n", describe="Please describe the image in detail.")
_QUIRKS = replace(NO_QUIRKS, one_segment=True)


def read_text(folder: Path, mask_id: int) -> Text:
    """The tokenizer of the language model. TokenizerError or CheckpointError if it is missing or does not fit the model."""
    text = Text.load(folder / "tokenizer.json", TEXT_CONTROL)
    if text[MASK] != mask_id:
        called = text.spelled.get(MASK, MASK)
        raise CheckpointError(f"{folder}: {called} is {text[MASK]} in the tokenizer and {mask_id} in config.json")
    return text


def published(parts: Parts, folder: Path) -> Parts:
    """The same parts with the published views and one segment for the whole prompt."""
    _, found = read_rediff(folder)
    return replace(parts, quirks=_QUIRKS, paper=(0, 0, 0), views=views_of(found))


def presets(raw: Json) -> Presets:
    """The published sampler. ``raw``: config.json, or {} for the released sizes."""
    own = raw.get("unmask") or {}
    never: Sequence[int] = own.get("forbidden_ids", FORBIDDEN)

    def ask(tokens: Parts) -> Sampler:
        """The most probable tokens, one a step, before the end of the turn; the ids of ``forbidden_ids`` and MASK are never written."""
        text = tokens.text
        ids = (text[MASK], *(i for i in never if i < text.size))
        return Sampler(
            schedule=Equal(steps=LENGTH),
            token_sampler=Without(ids=ids, size=text.size, token_sampler=GumbelText(temperature=0.0)),
            selection=BeforeEnd(selection=Confident(), ids=(text[EOT],)),
            blocks=Blocks(length=LENGTH),
            stopping=EndOfTurn(ids=(text[EOT],)),
        )

    context = int(raw.get("tokenizer_model_max_length", 8192))
    return reading_only("LLaDA-V", ask=ask, length=LENGTH, context=context)
