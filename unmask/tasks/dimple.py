"""Dimple as it was published (arXiv 2505.16990): prompts, pictures, confident decoding behind a prompt computed once.

Public idea: ``published(parts, folder) -> Parts`` and ``presets(context) -> Presets``.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from unmask.checkpoints.dimple import blocks_of, read_dimple, read_pictures
from unmask.checkpoints.schema import read_json
from unmask.checkpoints.stream import CheckpointError
from unmask.sampling.aligned import Aligned
from unmask.sampling.cache import PromptCache
from unmask.sampling.sampler import Sampler
from unmask.sampling.schedule import Fixed
from unmask.sampling.selection import RandomOrder
from unmask.sampling.stopping import EndOfTurn
from unmask.sampling.token_sampler import Probability, Truncated, Without
from unmask.tasks.parts import Parts, Presets
from unmask.tasks.some_tasks import reading_only
from unmask.tokens.prompts import RELEASED
from unmask.tokens.quirks import NO_QUIRKS
from unmask.tokens.qwen import picture_ids, read_qwen
from unmask.tokens.text import EOS, EOT, MASK, Text

LENGTH = 64  # tokens and steps of the published example
_IMAGE = "<|image_pad|>"
WORDING = replace(
    RELEASED,
    system="You are a helpful assistant.",
    newlines="\n",
    after_image="",
    after_turn="\n",
    starts=False,
    around_image=("<|vision_start|>", "<|vision_end|>"),
)


def read_text(folder: Path, mask_id: int) -> Text:
    """The tokenizer. TokenizerError or CheckpointError if it is missing or does not fit config.json."""
    text, found = read_qwen(folder), read_dimple(read_json(folder / "config.json"), folder)
    for name, wanted in ((MASK, mask_id), (_IMAGE, found.image_token_id)):
        if text.control.get(name) != wanted:
            raise CheckpointError(
                f"{folder}: {text.spelled.get(name, name)} is {text.control.get(name)} in the tokenizer and {wanted} in config.json"
            )
    if missing := [name for name in WORDING.around_image or () if name not in text.control]:
        raise CheckpointError(f"{folder}: the tokenizer lacks {missing[0]}; use the tokenizer of this model")
    return text


def published(parts: Parts, folder: Path) -> Parts:
    """The same parts with the pictures of preprocessor_config.json. Everything reads everything, as in training."""
    quirks = replace(NO_QUIRKS, one_segment=True)
    return replace(parts, quirks=quirks, paper=(0, 0, 0), views=blocks_of(read_pictures(folder)))


def presets(context: int) -> Presets:
    """The sampler of the published example. ``context``: longest sequence in tokens."""
    return reading_only("Dimple", ask=_ask, length=LENGTH, context=context)


def _ask(tokens: Parts) -> Sampler:
    """64 steps at most, everything above 0.95 at once, else random tokens; temperature 0.2, top-p 0.95, and the top-k 50 that its code
    takes from the library's defaults.
    """
    text = tokens.text
    drawn = Truncated(temperature=0.2, top_p=0.95, top_k=50, score=Probability(), original=True)
    return Sampler(
        schedule=Fixed(each=2**31),  # the selection says how many
        token_sampler=Without(ids=(text[MASK], *picture_ids(text)), size=text.size, token_sampler=drawn),
        selection=Aligned(steps=LENGTH, threshold=0.95, selection=RandomOrder()),
        stopping=EndOfTurn(ids=(text[EOT], text[EOS])),
        cache=PromptCache(),
    )
