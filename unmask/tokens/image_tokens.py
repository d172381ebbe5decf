"""Rows of causal image-token models: text and picture codes in one sequence of tokens.

Public idea: ``drawn(text, caption, codes)``. A token announces the picture and one ends it, so the rows suit any model whose vocabulary has
text and codes.
"""

from __future__ import annotations

from torch import Tensor

from unmask.sequence import Sequence
from unmask.tokens.build import Builder
from unmask.tokens.text import BOS, EOT, EXP, Text


def drawn(text: Text, caption: str, codes: Tensor | tuple[int, int]) -> Sequence:
    """Caption, then picture. Spans: "prompt", "begin", "image" (writable), "end". ``codes``: [h, w], or the grid of masked ones."""
    b = Builder(text=text).say("prompt", text[BOS], caption, text[EOT]).say("begin", text[EXP])
    return b.codes("image", codes, fold=1, writable=True).say("end", text[EOT]).build(caption)
