"""Key-value recall: rows in which some pairs of a key and a value stand among filler, and questions at the end ask for the values.

Public idea: ``Recall(pairs=8).rows(64, 32, rng) -> Recalled``, one batch whose answers are writable and masked. The distance between a pair
and its question grows with the length of the row, so that retrieval can be measured by depth at any length.

Shapes: B rows · L tokens · P pairs.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from unmask.placing import Kind
from unmask.sequence import Batch, Sequence, Span, collate


@dataclass(frozen=True, kw_only=True)
class Recalled:
    """``batch``: rows of one length · ``answer [P]``: the tokens that are asked for, in each row · ``place [B, P]``: where the key of each
    asked pair stands.
    """

    batch: Batch
    answer: Tensor
    place: Tensor


@dataclass(frozen=True, kw_only=True)
class Recall:
    """``keys``, ``values``, ``fillers``: how many different tokens of each · ``pairs``: in a row, each of another key, all asked for ·
    ``causal``: each token reads those before it alone.
    """

    keys: int = 16
    values: int = 16
    fillers: int = 8
    pairs: int = 8
    causal: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.pairs <= self.keys or min(self.values, self.fillers) < 1:
            raise ValueError(
                f"a row has at most as many pairs as there are keys, got {self.pairs} of {self.keys}, and {self.values} values and "
                f"{self.fillers} fillers; use at least one of each"
            )

    @property
    def vocabulary(self) -> int:
        """Ids: 0 is the masked token, then keys, values and fillers."""
        return 1 + self.keys + self.values + self.fillers

    def rows(self, length: int, count: int, rng: torch.Generator) -> Recalled:
        """``count`` rows of ``length`` tokens. ValueError for a length that has no room for pairs and questions."""
        asked, body = 2 * self.pairs, length - 2 * self.pairs
        if body < asked:
            raise ValueError(f"{self.pairs} pairs and their questions take {2 * asked} tokens, got rows of {length}")
        # 1. Filler, in which pairs stand at random places that do not overlap, in order.
        ids = 1 + self.keys + self.values + torch.randint(self.fillers, (count, length), generator=rng)
        spread = torch.rand(count, body - self.pairs, generator=rng).argsort(1)[:, : self.pairs].sort(1).values
        place = spread + torch.arange(self.pairs)
        key = 1 + torch.rand(count, self.keys, generator=rng).argsort(1)[:, : self.pairs]
        value = 1 + self.keys + torch.randint(self.values, (count, self.pairs), generator=rng)
        ids.scatter_(1, place, key).scatter_(1, place + 1, value)
        # 2. Questions in random order: the key, then its value.
        turn = torch.rand(count, self.pairs, generator=rng).argsort(1)
        ids[:, body::2], ids[:, body + 1 :: 2] = key.gather(1, turn), value.gather(1, turn)
        batch = self._batch(length, count).replace(ids=ids, clean=ids)
        return Recalled(batch=batch, answer=torch.arange(body + 1, length, 2), place=place.gather(1, turn))

    def _batch(self, length: int, count: int) -> Batch:
        return _template(length, count, self.pairs, self.causal)


@functools.lru_cache(maxsize=16)
def _template(length: int, count: int, pairs: int, causal: bool) -> Batch:
    """Rows without ids. One batch for all rows of a kind, so that a network lays it out once."""
    body, step = length - 2 * pairs, int(causal)
    masked = torch.zeros(length, dtype=torch.bool)
    masked[body + 1 :: 2] = True
    given = Span(name="body", kind=Kind.TEXT, start=0, stop=body, order_step=step)
    spans = [given]
    for start in range(body, length, 2):
        order = start if causal else 0
        spans.append(Span(name="key", kind=Kind.TEXT, start=start, stop=start + 1, order=order))
        answer = {"start": start + 1, "stop": start + 2, "order": order + step}
        spans.append(Span(name="value", kind=Kind.TEXT, writable=True, **answer))
    row = Sequence(ids=torch.zeros(length, dtype=torch.long), masked=masked, spans=tuple(spans))
    return collate([row] * count, range(count))
