"""Guidance whose logits get back the spread that they had without it (LLaDA2.0-Uni; rescaling of arXiv 2305.08891, section 3.4).

Public idea: ``Rescaled(scale=.., instead=.., deviation=HeadDeviation(head=net.text_head))``. The other prompts lie in the row, as for
``OtherPrompts``. The released sampler takes the deviation over the whole vocabulary, of which codes are a part, and the network scores
codes alone; ``HeadDeviation`` gets it from the hidden states, since guided logits are the logits of equally guided hidden states.

Shapes: B rows · L tokens · N tokens scored · D width · V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from unmask.sampling.other_prompts import view_of
from unmask.sequence import Batch
from unmask.step import Prediction, Progress, Scored

Deviation = Callable[[Tensor], Tensor]  # hidden states [N, D] -> the deviation of their logits, [N]
_ROWS = 64  # positions whose logits over the whole vocabulary are held at a time
_LEAST = 1e-6


@dataclass(frozen=True, kw_only=True)
class HeadDeviation:
    """Hidden states [N, D] -> the standard deviation of their logits over the whole vocabulary, [N] float32."""

    head: nn.Module

    def __call__(self, h_ND: Tensor) -> Tensor:
        return torch.cat([self.head(some).float().std(-1) for some in h_ND.split(_ROWS)])


@dataclass(frozen=True, kw_only=True)
class Rescaled:
    """t + scale (c - t) + image_scale (t - i), with t in the first and i in the second prompt of ``instead``; then the logits times
    ``rescale`` * deviation of c / deviation of the sum + 1 - ``rescale``.

    ``scale`` 1 and ``image_scale`` 0 are no guidance, and so are two scales of at most 0 where there are two prompts · ``scale`` 0 with one
    prompt: t alone · ``instead``: as of ``OtherPrompts``.
    """

    scale: float
    instead: tuple[tuple[str, Container[str]], ...]
    deviation: Deviation = field(compare=False, repr=False)
    image_scale: float = 0.0
    rescale: float = 0.7

    @property
    def _weights(self) -> tuple[float, ...]:
        """Of c, t and i in the sum; () without guidance."""
        if len(self.instead) > 1 and self.scale <= 0 and self.image_scale <= 0:
            return ()
        weights = (self.scale, 1 - self.scale + self.image_scale, -self.image_scale)[: 1 + len(self.instead)]
        return weights if any(weights[1:]) else ()

    def views(self, batch: Batch, progress: Progress) -> list[Batch]:
        names = tuple(name for name, _ in self.instead)
        views = [view_of(batch, names, "", frozenset())]
        used = [number for number, weight in enumerate(self._weights[1:]) if weight]
        for number in range(max(used, default=-1) + 1):
            name, replaced = self.instead[number]
            found = {span.name for table in batch.span_table for span in table}
            views.append(view_of(batch, names, name, frozenset(n for n in found if n in replaced)))
        return views

    def merge(self, batch: Batch, predictions: list[Prediction], progress: Progress) -> Prediction:
        if len(predictions) == 1:
            return predictions[0]
        scored = {kind: self._merged([p.scored[kind] for p in predictions]) for kind in predictions[0].scored}
        return replace(predictions[0], scored=scored)

    def _merged(self, scored: list[Scored]) -> Scored:
        own = scored[0]
        if own.logits is None or own.hidden is None or not len(own.at):
            return own
        weights = self._weights[: len(scored)]
        logits_NV = _sum(weights, [s.logits for s in scored])
        hidden_ND = _sum(weights, [s.hidden for s in scored])
        wanted_N, found_N = self.deviation(own.hidden), self.deviation(hidden_ND.to(own.hidden.dtype))
        factor_N = self.rescale * wanted_N / (found_N + _LEAST) + 1 - self.rescale
        return replace(own, logits=logits_NV * factor_N[:, None], hidden=hidden_ND)


def _sum(weights: tuple[float, ...], parts: list[Tensor | None]) -> Tensor:
    given = [part.float() for part in parts if part is not None]
    return sum((w * part for w, part in zip(weights[1:], given[1:], strict=True)), weights[0] * given[0])
