"""Registers of Sparse-LaViDa (arXiv 2512.14008, section 3): learned tokens that stand for the masked tokens that a step leaves out.

Public idea: ``with_registers(batch, predict, reuse, ..)`` appends them behind every row, so that the layers read them like other tokens.
A group of masked tokens is a segment; its registers are read by that group alone, and read what the group reads.

Shapes: B rows · L tokens · R registers of all groups · D width · E generation width.
"""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unmask.models.sizes import ElasticConfig
from unmask.sequence import ON_UNMASK, Batch, Branch, Kind
from unmask.step import Reuse

REGISTER = -1  # the kind of a register inside the network: its id is its number, and no batch of a user has it


class Registers(nn.Module):
    """The vectors: ``text [rows, D]`` and ``code [rows, E]``. One row is shared by all registers of a branch."""

    def __init__(self, config: ElasticConfig) -> None:
        super().__init__()
        self.text = nn.Parameter(torch.empty(config.register_rows, config.width))
        self.code = nn.Parameter(torch.empty(config.register_rows, config.gen_width))


def placed(x_NW: Tensor, batch: Batch, token_N: Tensor, rows: Tensor) -> Tensor:
    """``x`` with the vector of each register among the tokens ``token`` (flat numbers); ``rows [n, W]``: the vectors of its branch."""
    is_register = batch.kind.flatten()[token_N] == REGISTER
    vector = rows[batch.ids.flatten()[token_N].masked_fill(~is_register, 0) % len(rows)]
    return torch.where(is_register[:, None], vector.to(x_NW.dtype), x_NW)


def with_registers(
    batch: Batch, predict_BL: Tensor, reuse: Reuse | None, config: ElasticConfig
) -> tuple[Batch, Tensor, Reuse | None]:
    """The batch with the registers of every group that is scored: und registers for text, gen registers for codes.

    They stand at the positions behind the row, and every group's at the same. They are computed at every step and never kept.
    """
    kinds = ((Kind.TEXT, Branch.UND, config.text_registers), (Kind.CODE, Branch.GEN, config.code_registers))
    masked_BL = predict_BL & batch.masked & batch.valid
    end_B1 = batch.position.masked_fill(~batch.valid, -1).amax(1, keepdim=True) + 1
    parts: list[dict[str, Tensor]] = []
    for kind, branch, count in kinds:
        of_kind = masked_BL & (batch.kind == kind)
        for group in batch.segment[of_kind].unique().tolist() if count else ():
            present_B1 = (of_kind & (batch.segment == group)).any(1, keepdim=True)
            number_BR = torch.arange(count, device=batch.device).expand(batch.rows, -1)
            parts.append(_group(number_BR, present_B1, end_B1, branch=branch, segment=group))
    if not parts:
        return batch, predict_BL, reuse
    added = {name: torch.cat([part[name] for part in parts], 1) for name in parts[0]}
    more = added["ids"].shape[1]
    whole = batch.replace(**{name: torch.cat([getattr(batch, name), x], 1) for name, x in added.items()})
    return whole, F.pad(predict_BL, (0, more)), _longer(reuse, added["valid"])


def without_registers(held_BL: Tensor, length: int) -> Tensor:
    """A mask over tokens and registers, for the tokens alone."""
    return held_BL[:, :length]


def _group(number_BR: Tensor, present_B1: Tensor, end_B1: Tensor, *, branch: int, segment: int) -> dict[str, Tensor]:
    present, none = present_B1.expand_as(number_BR), torch.zeros_like(number_BR)
    no = torch.zeros_like(present)
    return {
        "ids": number_BR,
        "kind": torch.full_like(number_BR, REGISTER),
        "branch": torch.full_like(number_BR, branch),
        "writable": no,
        "valid": present,
        "masked": no,
        "position": end_B1 + number_BR,
        "leader": torch.ones_like(present),
        "segment": torch.full_like(number_BR, segment),
        "order": torch.full_like(number_BR, ON_UNMASK),
        "stride": none,
        "feature": none,
    }


def _longer(reuse: Reuse | None, valid_BR: Tensor) -> Reuse | None:
    if reuse is None:
        return None
    more, state = valid_BR.shape[1], reuse.state
    if state is not None:
        state = dataclasses.replace(state, held=F.pad(state.held, (0, more)))
    compute = torch.cat([reuse.compute, valid_BR], 1)
    return Reuse(compute=compute, keep=F.pad(reuse.keep, (0, more)), state=state)
