"""Which tokens a head scores, and where their positions stand. Public idea: ``asked(predict, packed) -> Asked``.

Shapes: B rows · L tokens · A tokens to score · Q positions that are read.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.models.layout import Packed


@dataclass(frozen=True, kw_only=True)
class Asked:
    """``at [A]``: flat token numbers in rising order · ``position [A]``: their packed positions · ``corner [A]``: places in those, None
    where a position is one token · ``read [Q]``: the positions that are needed after the last layer, None for all of them ·
    ``row [A]``: the place of each token's position among those.
    """

    at: Tensor
    position: Tensor
    corner: Tensor | None
    row: Tensor
    read: Tensor | None = None

    def of_length(self, length: int, tokens: int) -> Asked:
        """The same in rows of ``tokens`` tokens, where they had ``length`` with others behind them."""
        return dataclasses.replace(self, at=self.at // length * tokens + self.at % length)

    def alone(self, x_ND: Tensor | None, *, waits: bool) -> Asked:
        """The same with only the scored tokens' positions read, where ``x`` has more positions than that.

        A position of several scored tokens is read once, or once for each where the device should not be waited for. A multiple of 16 is
        read: a matrix product over few rows rounds differently (docs/notes/0005-engine.md).
        """
        if x_ND is None or not len(self.at):
            return self
        if self.corner is None or not waits:
            read, row = self.position, torch.arange(len(self.position), device=self.position.device)
        else:
            marked = torch.zeros(len(x_ND), dtype=torch.bool, device=x_ND.device)
            marked[self.position] = True
            read, row = marked.nonzero()[:, 0], (marked.long().cumsum(0) - 1)[self.position]
        more = -len(read) % 16
        if len(read) + more >= len(x_ND):
            return self
        return dataclasses.replace(self, read=F.pad(read, (0, more)), row=row)


def asked(predict_BL: Tensor, packed: Packed | None, *, folded: bool = False, count: int | None = None) -> Asked:
    """The tokens of ``predict`` that a branch's head scores. ``folded``: positions are four tokens · ``count``: how many tokens are in
    ``predict``, all of them scored by this branch or 0 for none of them; None where that is not known, which waits for the device.
    """
    if packed is None or count == 0:
        none = torch.zeros(0, dtype=torch.long, device=predict_BL.device)
        return Asked(at=none, position=none, corner=None, row=none)
    if count is None or predict_BL.device.type == "mps":
        at = (predict_BL & packed.scorable).flatten().nonzero()[:, 0]
    else:
        at = torch.nonzero_static(predict_BL.flatten(), size=count)[:, 0]
    place = packed.place[at]
    position = place // 4 if folded else place
    return Asked(at=at, position=position, corner=place % 4 if folded else None, row=position)
