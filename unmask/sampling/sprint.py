"""SPRINT of LLaDA2.0-Uni (arXiv 2604.20796): cached keys and values of the tokens before a block, some of them left out, and no training.

Public idea: ``SprintRow(..)``, a scorer of ``block_diffusion.Blocks``, and ``Adaptive``, its reveal rule. The first ``warmup`` steps of a
block compute the whole row; then its own tokens alone are computed, and read what was kept. ``Keep(ratio=1)`` is an exact cache.

Two faults of the released code are off by default. ``Keep.released``: pinned tokens count as infinite before the mean of the importance is
taken, so the norm of the keys has no say beside the confidence, and the padding of a guided row's null prompt is kept and read.

Shapes: P tokens before a block · b tokens of a block · V vocabulary · H heads · K head width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from unmask.models.elastic import Elastic
from unmask.models.prefix import LayerKeys, Passed, through
from unmask.sampling.block_diffusion import Candidates, Row, surest


@dataclass(frozen=True, kw_only=True)
class Keep:
    """How many of the tokens before a block stay in its cache. Text is pinned unless ``text_ratio`` is below 1, pictures where
    ``image_ratio`` is at least 1; other ratios only unpin. ``alpha``: share of the keys' norm in the importance, the rest is confidence ·
    ``first_code``: text id of code 0 · ``released``: with both faults.
    """

    first_code: int
    ratio: float = 0.7
    alpha: float = 0.5
    text_ratio: float | None = None
    image_ratio: float | None = None
    released: bool = False

    def pinned(self, ids_P: Tensor) -> Tensor:
        text_P = ids_P < self.first_code
        text = self.text_ratio is None or self.text_ratio >= 1
        pictures = self.image_ratio is not None and self.image_ratio >= 1
        return (text_P & text) | (~text_P & pictures)

    def kept(self, keys_HPK: Tensor, ids_P: Tensor, confidence_P: Tensor, hidden: int) -> Tensor:
        """The numbers of the tokens that a layer keeps, rising. ``hidden``: padding in front."""
        pinned_P, total = self.pinned(ids_P), len(ids_P)
        if not self.released:
            pinned_P = pinned_P & (torch.arange(total, device=ids_P.device) >= hidden)
            hidden = min(hidden, total)
        else:
            hidden = 0
        if self.ratio >= 1 or bool(pinned_P[hidden:].all()):
            return torch.arange(hidden, total, device=ids_P.device)
        count = min(max(1, int(total * self.ratio), int(pinned_P.sum())), total - hidden)
        importance_P = keys_HPK.float().norm(dim=-1).mean(0)
        if self.alpha < 1:
            mean = importance_P[~pinned_P].mean()
            own = 0.0 if self.released and bool(pinned_P.any()) else self.alpha / mean
            importance_P = own * importance_P + (1 - self.alpha) * confidence_P
        importance_P = importance_P.masked_fill(pinned_P, torch.inf)
        importance_P[:hidden] = -torch.inf
        return importance_P.topk(count).indices.sort().values


@dataclass(kw_only=True)
class SprintRow:
    """A scorer. ``row``: as it is computed whole · ``kept``: of the first block with a cache, the kept tokens of every layer ·
    ``confidence``: of its tokens · ``first_cached``: logits of the first step that used a cache.
    """

    row: Row
    keep: Keep
    warmup: int = 2
    kept: Tensor | None = field(default=None, init=False)
    confidence: Tensor | None = field(default=None, init=False)
    first_cached: Tensor | None = field(default=None, init=False)
    _lent: list[LayerKeys] = field(default_factory=list, init=False)
    _padding: Tensor | None = field(default=None, init=False)

    @property
    def net(self) -> Elastic:
        return self.row.net

    @property
    def forwards(self) -> int:
        return self.row.forwards

    def cached(self, start: int, step: int) -> bool:
        """Whether a step of a block reads a cache."""
        return 0 < self.warmup <= step and start > 0

    def logits(self, ids_L: Tensor, start: int, stop: int, step: int) -> Tensor:
        if self.cached(start, step):
            return self._short(ids_L, start, stop)
        passed = self.row.passed(ids_L[:stop])
        if step == self.warmup - 1 and start:
            self._take(self.row.ids(ids_L[:stop])[:start], passed, start)
        return self.net.text_head(passed.hidden[start:stop]).float()

    def _take(self, ids_P: Tensor, passed: Passed, start: int) -> None:
        logits_PV = self.net.text_head(passed.hidden[:start]).float()
        confidence_P = logits_PV.softmax(-1).amax(-1)
        layers = [layer.at(slice(0, start)) for layer in passed.layers]
        kept = [self.keep.kept(layer.keys, ids_P, confidence_P, self.row.hidden) for layer in layers]
        self._lent = [layer.at(index) for layer, index in zip(layers, kept, strict=True)]
        if self.kept is None:
            self.kept, self.confidence = torch.stack(kept), confidence_P

    def _short(self, ids_L: Tensor, start: int, stop: int) -> Tensor:
        own = self.row.ids(ids_L)[start:stop]
        lent = self._lent[0].keys.shape[1]
        attend = torch.ones(stop - start, lent + stop - start, dtype=torch.bool, device=ids_L.device)
        if not self.keep.released and self.row.hidden > start:
            attend[:, lent : lent + self.row.hidden - start] = False
        self.row.forwards += 1
        passed = through(self.net, own, self.row.places(stop)[start:], attend, self._lent)
        found = self.net.text_head(passed.hidden).float()
        if self.first_cached is None:
            self.first_cached = found
        return found


@dataclass(frozen=True, kw_only=True)
class Adaptive:
    """An equal share of the tokens that are left over the steps that are left, at least ``least`` of them, by rank; and all whose largest
    probability is above ``threshold``.
    """

    threshold: float
    least: int = 1

    def __call__(self, found: Candidates, masked_b: Tensor, step: int, steps: int) -> Tensor:
        left = int(masked_b.sum())
        count = min(max(self.least, math.ceil(left / (steps - step))), left)
        return surest(found.rank, masked_b, count) | (masked_b & (found.probability > self.threshold))


def by_margin(logits_bV: Tensor) -> Candidates:
    """The most probable id, ranked by its distance from the second."""
    best_b2 = logits_bV.float().softmax(-1).topk(2, dim=-1)
    probability_b2 = best_b2.values
    return Candidates(
        ids=best_b2.indices[:, 0], rank=probability_b2[:, 0] - probability_b2[:, 1], probability=probability_b2[:, 0]
    )


def by_entropy(logits_bV: Tensor) -> Candidates:
    """The most probable id, ranked by 1 - entropy / ln V."""
    p_bV = logits_bV.float().softmax(-1)
    rank_b = 1 - torch.special.entr(p_bV).sum(-1) / math.log(p_bV.shape[-1])
    return Candidates(ids=logits_bV.argmax(-1), rank=rank_b, probability=p_bV.amax(-1))
