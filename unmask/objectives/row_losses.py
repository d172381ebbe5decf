"""Losses of rows of different lengths: how MMaDA weighs a token (arXiv 2505.15809, as released), from the loss of each token.

Public idea: ``text_loss``, ``answer_loss``: each masked token counts 1 / p, its row 1 / length. Pictures have the plain mean.

Shapes: N tokens scored · B rows.
"""

from __future__ import annotations

from torch import Tensor


def text_loss(each_N: Tensor, probability_N: Tensor, *, tokens: int) -> Tensor:
    """The sum of loss / p over masked tokens, divided by ``tokens``, all tokens of all rows."""
    return (each_N / probability_N).sum() / tokens


def answer_loss(each_N: Tensor, probability_N: Tensor, row_N: Tensor, length_B: Tensor) -> Tensor:
    """The mean over rows of the sum of loss / p over masked tokens, divided by the row's answer length. ``row``: of each token."""
    return (each_N / probability_N / length_B[row_N]).sum() / len(length_B)
