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
from unmask.models.linear import alike_from
from unmask.step import Reuse


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

    def of_kind(self, kind_BL: Tensor, kind: int, only: int | None) -> Asked:
        """The tokens of one kind alone; what is read stays the same. ``only``: the kind that all of them have; None where they differ."""
        if only is not None:
            return (
                self
                if only == kind
                else dataclasses.replace(self, at=self.at[:0], position=self.position[:0], row=self.row[:0])
            )
        chosen = kind_BL.flatten()[self.at] == kind
        return dataclasses.replace(self, at=self.at[chosen], position=self.position[chosen], row=self.row[chosen])

    def alone(self, x_ND: Tensor | None, *, waits: bool) -> Asked:
        """The same with only the scored tokens' positions read, where ``x`` has more positions than that.

        A position of several scored tokens is read once, or once for each where the device should not be waited for. As many are
        read as round alike (``alike_from``): a matrix product over few rows rounds differently (docs/notes/0005-engine.md).
        """
        if x_ND is None or not len(self.at):
            return self
        if self.corner is None or not waits:
            read, row = self.position, torch.arange(len(self.position), device=self.position.device)
        else:
            marked = torch.zeros(len(x_ND), dtype=torch.bool, device=x_ND.device)
            marked[self.position] = True
            read, row = marked.nonzero()[:, 0], (marked.long().cumsum(0) - 1)[self.position]
        more = -len(read) % alike_from(x_ND)
        if len(read) + more >= len(x_ND):
            return self
        return dataclasses.replace(self, read=F.pad(read, (0, more)), row=row)


def with_predecessors(predict_BL: Tensor, reuse: Reuse | None) -> Reuse | None:
    """``reuse`` with the tokens before those in ``predict`` computed too, which shifted logits are read from; what was held stays held."""
    if reuse is None:
        return None
    read_BL = F.pad(predict_BL[:, 1:], (0, 1))
    if not bool((read_BL & ~reuse.compute).any()):
        return reuse
    held_BL = torch.zeros_like(read_BL) if reuse.state is None else reuse.state.held
    again_BL = read_BL & held_BL & ~reuse.compute
    return Reuse(compute=reuse.compute | read_BL, keep=reuse.keep | again_BL, state=reuse.state)


def asked(
    predict_BL: Tensor,
    packed: Packed | None,
    *,
    folded: bool = False,
    shifted: bool = False,
    count: int | None = None,
) -> Asked:
    """The tokens of ``predict`` that a branch's head scores. ``folded``: positions are four tokens · ``shifted``: a token is read at the
    position before it, the first of a row at its own · ``count``: how many tokens are in ``predict``, if all of them are scored by this
    branch, or 0 if none is; None where only the device knows, which is then waited for.
    """
    if packed is None or count == 0:
        none = torch.zeros(0, dtype=torch.long, device=predict_BL.device)
        return Asked(at=none, position=none, corner=None, row=none)
    if count is None or predict_BL.device.type == "mps":
        at = (predict_BL & packed.scorable).flatten().nonzero()[:, 0]
    else:
        at = torch.nonzero_static(predict_BL.flatten(), size=count)[:, 0]
    place = packed.place[at - (at % predict_BL.shape[1] > 0).long() if shifted else at]
    position = place // 4 if folded else place
    return Asked(at=at, position=position, corner=place % 4 if folded else None, row=position)
