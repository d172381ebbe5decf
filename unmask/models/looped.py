"""A looped causal network: one block that is applied as often as wanted, with the embeddings fed in at every pass.

Public idea: ``LoopedNet(LoopedConfig(vocab_size=..))``. ``states(ids, z, passes)`` runs whole rows for training; ``embed``, ``core`` and
``decode`` are the pieces that a sampler of one row runs by itself (``methods.recurrent_depth``). All passes share one memory: a position
keeps the keys and values of its last pass.

Shapes: B rows · L tokens · n positions of a window · S positions of the memory · D width · H heads · K head width · V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unmask.models.attention import plain
from unmask.models.blocks import RMSNorm, SwiGLU
from unmask.models.linear import Linear
from unmask.models.rope import rope_table, rotate

Memory = tuple[Tensor, ...]


@dataclass(frozen=True, kw_only=True)
class LoopedConfig:
    """``depth``: passes of the core at full depth."""

    vocab_size: int
    width: int = 64
    heads: int = 2
    mlp: int = 128
    depth: int = 8
    rope_theta: float = 1000.0
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        if self.width % (2 * self.heads):
            raise ValueError(f"width {self.width} must be an even multiple of heads {self.heads}")


class LoopedNet(nn.Module):
    """Embedding, core block and head. States begin as standard normal noise."""

    def __init__(self, config: LoopedConfig) -> None:
        super().__init__()
        width = config.width
        self.config = config
        self.table = nn.Embedding(config.vocab_size, width)
        self.inject = Linear(2 * width, width, bias=False)
        self.attn_norm, self.mlp_norm, self.norm = (RMSNorm(width, config.norm_eps) for _ in range(3))
        self.qkv, self.out = Linear(width, 3 * width, bias=False), Linear(width, width, bias=False)
        self.mlp = SwiGLU(width, config.mlp)
        self.head = Linear(width, config.vocab_size, bias=False)

    def embed(self, ids: Tensor) -> Tensor:
        """[n] -> [n, D]."""
        return self.table(ids)

    def decode(self, z: Tensor) -> Tensor:
        """States -> logits of the next token, [.., D] -> [.., V]."""
        return self.head(z)

    def empty(self) -> Memory:
        """The memory of no position: keys and values."""
        none = self.table.weight.new_zeros(0, self.config.width)
        return none, none

    def core(self, z: Tensor, e: Tensor, start: int, memory: Memory) -> tuple[Tensor, Memory]:
        """One pass over the positions from ``start`` on, [n, D]; what the memory has of them is written anew."""
        position = torch.arange(start, start + len(z), device=z.device)[None]
        made, keys, values = self._pass(z[None], e[None], position, (memory[0][:start], memory[1][:start]))
        return made[0], (keys[0], values[0])

    def states(self, ids: Tensor, z: Tensor, passes: int) -> Tensor:
        """The states of whole rows after some passes, [B, L] and [B, L, D] -> [B, L, D]."""
        e, position = self.table(ids), torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        for _ in range(passes):
            z, _, _ = self._pass(z, e, position, None)
        return z

    def _pass(
        self, z_BLD: Tensor, e_BLD: Tensor, position_BL: Tensor, memory: Memory | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The states after one pass, and the keys and values of all positions before and in it."""
        heads, width = self.config.heads, self.config.width
        x = self.inject(torch.cat([z_BLD, e_BLD], dim=-1))
        q, k, v = self.qkv(self.attn_norm(x)).chunk(3, dim=-1)
        table = rope_table(position_BL, width // heads, self.config.rope_theta)
        q_BHLK, k_BHLK = (rotate(_by_head(t, heads), table) for t in (q, k))
        k = k_BHLK.transpose(1, 2).flatten(2)
        if memory is not None:
            k, v = torch.cat([memory[0][None], k], 1), torch.cat([memory[1][None], v], 1)
        key_S = torch.arange(k.shape[1], device=k.device)
        mask_B1LS = (key_S <= position_BL[..., None])[:, None]
        found = plain(q_BHLK, _by_head(k, heads), _by_head(v, heads), mask_B1LS).transpose(1, 2).flatten(2)
        x = x + self.out(found)
        return self.norm(x + self.mlp(self.mlp_norm(x))), k, v


def _by_head(x_BLD: Tensor, heads: int) -> Tensor:
    return x_BLD.unflatten(-1, (heads, -1)).transpose(1, 2)
