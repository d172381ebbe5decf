"""Image codes that are rows of the text vocabulary: code c has the text id ``first_code`` + c (MMaDA, Lumina-DiMOO).

Public idea: ``as_text(batch, first_code)`` is the batch that the text trunk reads, and ``CodeRows`` is the head of the codes: their rows of
the text head. So text and codes share one embedding, one trunk and one head, and a code is never scored against text ids.

Shapes: B rows · L tokens · N tokens scored · D width · C codes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unmask.derived import derived
from unmask.models.linear import linear
from unmask.sequence import Batch, Branch, Kind


def as_text(batch: Batch, first_code: int) -> Batch:
    """The batch with its codes as text ids, served by the text trunk. Unchanged where it has no codes.

    Kinds and branches are remembered by the batch's own (``derived``), so that the network lays out a run once.
    """
    code_BL = derived("codes", lambda: _marked(batch.kind == Kind.CODE), batch.kind)
    if code_BL is None:
        return batch
    kind_BL = derived("codes as text", lambda: batch.kind.masked_fill(code_BL, Kind.TEXT), batch.kind)
    branch_BL = derived(
        "codes as text", lambda: batch.branch.masked_fill(code_BL, Branch.UND), batch.branch, batch.kind
    )
    ids_BL = torch.where(code_BL, batch.ids + first_code, batch.ids)
    return batch.replace(ids=ids_BL, kind=kind_BL, branch=branch_BL)


@dataclass(frozen=True, kw_only=True)
class CodeRows:
    """Hidden states [N, D] -> logits of the codes [N, C]: the rows ``first .. first + codes`` of the text ``head``.

    A head with hooks, such as an adapter's, runs whole.
    """

    head: nn.Module
    first: int
    codes: int

    def __call__(self, h_ND: Tensor) -> Tensor:
        rows = slice(self.first, self.first + self.codes)
        weight = self.head.get_parameter("weight")
        plain = type(weight) is nn.Parameter and not (self.head._forward_hooks or self.head._forward_pre_hooks)
        return linear(h_ND, weight[rows]) if plain else self.head(h_ND)[:, rows]


def _marked(code_BL: Tensor) -> Tensor | None:
    return code_BL if bool(code_BL.any()) else None
