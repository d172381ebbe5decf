"""Rows of causal image-token models: text and picture codes in one sequence of tokens.

Public idea: ``drawn(text, caption, codes)`` puts the text first, ``reported(text, codes, report)`` the picture. A token announces the
picture and one ends it, so the rows suit any model whose vocabulary has text and codes.
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


def reported(text: Text, codes: Tensor | tuple[int, int], report: str | None, length: int) -> Sequence:
    """Picture, then its report in ``length`` tokens with end-of-turn padding. Spans: "begin", "image", "end", "report".

    ``codes``: [h, w], or the grid of masked ones · ``report``: None for masked tokens. ValueError for a report that is too long.
    """
    ids = [] if report is None else text.encode(report)
    if len(ids) + 1 > length:
        raise ValueError(f"the report has {len(ids)} tokens and its end, more than the model's {length}; shorten it")
    b = Builder(text=text).say("begin", text[EXP]).codes("image", codes, fold=1, writable=True).say("end", text[EOT])
    filled = length if report is None else [*ids, *[text[EOT]] * (length - len(ids))]
    return b.write("report", filled).build(report or "")
