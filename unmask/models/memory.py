"""Keys and values of a run by position: those of the positions computed now beside those that an earlier step computed.

Public idea: ``Memory(state, slots)``; a layer's ``merge(name, x)`` returns what its queries read, and ``tensors`` is what the next state
holds. Keys are stored after rotation, at the slot of their position, so nothing depends on the order in which tokens were unmasked.

Shapes: B rows · H heads · T computed positions · S slots · K head width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.step import State


@dataclass(frozen=True, kw_only=True)
class Slots:
    """Where the computed positions of a stream stand: ``slot [B, T]`` among ``size`` slots; ``size`` itself is a place for padding."""

    slot: Tensor
    size: int


@dataclass(frozen=True, kw_only=True)
class Memory:
    """``slots``: of each stream, by the first part of a name ("und", "gen")."""

    state: State | None
    slots: Mapping[str, Slots]
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def layer(self, number: int) -> LayerMemory:
        return LayerMemory(memory=self, number=number)


@dataclass(frozen=True, kw_only=True)
class LayerMemory:
    """The memory as one layer sees it."""

    memory: Memory
    number: int

    def merge(self, name: str, x_BHTK: Tensor) -> Tensor:
        """[B, H, S, K]: what is stored under ``name`` with ``x`` written to its slots.

        ValueError if the state holds tokens but has nothing for this layer: its forward scored codes only and ended early.
        """
        slots, key = self.memory.slots[name.partition(".")[0]], f"{self.number}.{name}"
        state = self.memory.state
        stored = state.tensors.get(key) if state else None
        if stored is None:
            if state is not None and bool(state.held.any()):
                raise ValueError(
                    f"the state has no {name} of layer {self.number}; score text and codes in runs of their own when caching"
                )
            stored = x_BHTK.new_zeros(*x_BHTK.shape[:2], slots.size + 1, x_BHTK.shape[3])
        if stored.shape[2] <= slots.size:
            stored = F.pad(stored, (0, 0, 0, slots.size + 1 - stored.shape[2]))
        index_BHTK = slots.slot[:, None, :, None].expand_as(x_BHTK)
        self.memory.tensors[key] = merged = torch.scatter(stored, 2, index_BHTK, x_BHTK)
        return merged[:, :, : slots.size]
