"""LaViDa as it was published, on LLaDA and on Dream (arXiv 2505.16839): prompts, views of pictures, samplers.

Public idea: ``published(parts, folder) -> Parts`` and ``presets(on_dream=.., context=..) -> Presets``. LaViDa reads pictures and writes
text; its presets say so where a task would draw.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from unmask.checkpoints.lavida import LavidaFields, is_on_dream, read_lavida, views_of
from unmask.checkpoints.stream import CheckpointError
from unmask.sampling.blocks import Blocks, FirstApart
from unmask.sampling.cache import PrefixCache
from unmask.sampling.presets import dream_text
from unmask.sampling.sampler import Sampler
from unmask.sampling.schedule import Shift
from unmask.sampling.selection import Confident
from unmask.sampling.stopping import EndOfTurn
from unmask.sampling.token_sampler import GumbelText, Without
from unmask.tasks.parts import Parts, Presets
from unmask.tasks.some_tasks import reading_only
from unmask.tokens.prompts import RELEASED
from unmask.tokens.quirks import NO_QUIRKS
from unmask.tokens.qwen import picture_ids, read_qwen
from unmask.tokens.text import EOS, EOT, MASK, TEXT_CONTROL, Slots, Text

LENGTH = 64  # tokens of an answer in the published script
ON_LLADA = replace(RELEASED, after_image="\n")
ON_DREAM = replace(RELEASED, newlines="\n", after_image="\n", after_turn="\n", starts=False)
# The released script drops the first token after a picture where a prompt begins with the start-of-text token; its trainer does not.
_QUIRKS = replace(NO_QUIRKS, one_segment=True, prefix_lm=True)


def read_text(folder: Path) -> Text:
    """The tokenizer of the language model. TokenizerError or CheckpointError if it is missing or does not fit the model."""
    raw, found = read_lavida(folder)
    text = read_qwen(folder) if is_on_dream(raw) else Text.load(folder / "tokenizer.json", TEXT_CONTROL)
    if text[MASK] != found.mask_token_id and "mask_token_id" in raw:
        raise CheckpointError(
            f"{folder}: {text.spelled.get(MASK, MASK)} is {text[MASK]} in the tokenizer and {found.mask_token_id} in config.json"
        )
    return text


def published(parts: Parts, folder: Path) -> Parts:
    """The same parts with the published quirks and views, and on LLaDA the slots of the infilling model (section 3.3)."""
    raw, found = read_lavida(folder)
    slots = None if is_on_dream(raw) else slots_of(parts.text, found)
    return replace(parts, quirks=_QUIRKS, paper=(0, 0, 0), views=views_of(found), slots=slots)


def slots_of(text: Text, found: LavidaFields) -> Slots | None:
    """The marker and the filler of slots, from config.json or by their names in LLaDA's tokenizer; None if they are missing."""
    named, (marker, filler) = Slots.named(text), (found.unmask.infill_id, found.unmask.fill_id)
    marker = marker if marker is not None or named is None else named.marker
    filler = filler if filler is not None or named is None else named.filler
    return None if marker is None or filler is None else Slots(marker=marker, filler=filler)


def presets(*, on_dream: bool, context: int) -> Presets:
    """The published samplers. ``context``: longest sequence in tokens."""
    return reading_only("LaViDa", ask=_ask_on_dream if on_dream else _ask_on_llada, length=LENGTH, context=context)


def _never(text: Text) -> tuple[int, ...]:
    return (text[MASK], *picture_ids(text))


def _ask_on_llada(tokens: Parts) -> Sampler:
    """The published script: half as many steps as tokens, late ones larger (shift 3), temperature 0.1, behind a cached prompt."""
    text = tokens.text
    return Sampler(
        schedule=Shift(steps=LENGTH // 2, shift=3.0),
        token_sampler=Without(ids=_never(text), size=text.size, token_sampler=GumbelText(temperature=0.1)),
        selection=Confident(),
        blocks=Blocks(length=LENGTH),
        stopping=EndOfTurn(ids=(text[EOT], text[EOS])),
        cache=PrefixCache(),
    )


def _ask_on_dream(tokens: Parts) -> Sampler:
    """The defaults of its ``generate``: Dream's sampler, behind a cached prompt that alone decides the first token."""
    text = tokens.text
    dream = dream_text(length=LENGTH, never=_never(text), size=text.size, end=(text[EOT], text[EOS]))
    return replace(dream, blocks=FirstApart(), cache=PrefixCache())
