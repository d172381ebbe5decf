"""Drawing continuous values with a head that denoises one vector (``models/diffusion_head.py``).

Public ideas: ``ancestral(said, levels, start, noise)`` and ``ddim(..)`` are the two loops; ``ByDiffusion`` is the token sampler that runs
such a loop for the tokens of one kind, and leaves the other kinds to another token sampler. ``GuidedHidden`` is its guidance: the head
reads the hidden states of both views and merges what it predicts, not logits.

Shapes: B rows · L tokens · N vectors · C channels · D width.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass

import torch
from torch import Tensor

from unmask.corruption.gaussian import EPSILON, NoiseLevels, Target
from unmask.models.diffusion_head import guided
from unmask.protocols import TokenSampler
from unmask.rng import rows
from unmask.sampling.token_sampler import Greedy
from unmask.sequence import Batch
from unmask.step import Prediction, Progress, Proposal, Scored

Head = Callable[[Tensor, Tensor, Tensor], Tensor]  # (x_t [N, C], step [N], z [N, D]) -> [N, C] or [N, 2 C]
Said = Callable[[Tensor, Tensor], Tensor]  # the same for given conditions: (x_t, step)
Scale = Callable[[Batch, Progress], Tensor]  # the guidance scale of each row, [B]


def ancestral(
    said: Said,
    levels: NoiseLevels,
    start: Tensor,
    noise: Tensor,
    *,
    target: Target = EPSILON,
    temperature: float = 1.0,
) -> Tensor:
    """Vectors [N, C] from ``start [N, C]``, most noise first. ``noise [T, N, C]``: of each step · ``temperature``: its factor.

    Where ``said`` gives 2 C numbers, the second half sets the variance (see ``objectives/diffusion.py``); else it is the smallest one.
    """
    x, channels = start, start.shape[1]
    for j, k in enumerate(range(len(levels) - 1, -1, -1)):
        output = said(x, levels.number[k].expand(len(x)).to(x.device))
        signal = levels.signal[k].to(x.device)
        found = target.sample(output[:, :channels], x, signal)
        mean = levels.of_sample[k].to(x) * found + levels.of_noisy[k].to(x) * x
        log_variance = levels.log_variance[k].to(x).expand_as(x)
        if output.shape[1] > channels:
            share = (output[:, channels:] + 1) / 2
            log_variance = share * levels.betas[k].to(x).log() + (1 - share) * log_variance
        x = mean + (k > 0) * (0.5 * log_variance).exp() * noise[j] * temperature
    return x


def ddim(said: Said, levels: NoiseLevels, start: Tensor, *, target: Target = EPSILON) -> Tensor:
    """Vectors [N, C] from ``start [N, C]`` without noise (Song et al. 2020, arXiv 2010.02502); after the last step the noise is 0."""
    x = start
    for k in range(len(levels) - 1, -1, -1):
        output = said(x, levels.number[k].expand(len(x)).to(x.device))[:, : start.shape[1]]
        signal, after = levels.signal[k].to(x.device), levels.before[k].to(x.device)
        found, eps = target.sample(output, x, signal), target.noise(output, x, signal)
        x = after.sqrt().to(x) * found + (1 - after).sqrt().to(x) * eps
    return x


def both(head: Head, scale: Tensor | float, z_cond: Tensor, z_null: Tensor, channels: int) -> Said:
    """A head with guidance: one call for both conditions [N, D], merged as ``guided`` says. ``scale``: a number, or [N, 1]."""
    z = torch.cat([z_cond, z_null])

    def said(x: Tensor, t: Tensor) -> Tensor:
        cond, null = head(torch.cat([x, x]), torch.cat([t, t]), z).chunk(2)
        return guided(cond, null, scale, channels)

    return said


@dataclass(frozen=True, kw_only=True)
class GuidedHidden:
    """Two views, the second without the given spans named in ``drop``; the hidden states of both stand side by side, [N, 2 D].

    For ``ByDiffusion`` with a ``scale``. Logits are those of the first view. ``null_id``: text id of the null embedding.
    """

    drop: Container[str]
    null_id: int

    def views(self, batch: Batch, progress: Progress) -> list[Batch]:
        spans = {span.name for table in batch.span_table for span in table if span.name in self.drop}
        return [batch, batch.drop(spans, self.null_id)]

    def merge(self, batch: Batch, predictions: list[Prediction], progress: Progress) -> Prediction:
        first, second = predictions
        scored = dict(first.scored)
        for kind, one in scored.items():
            other = second.scored[kind].hidden
            if one.hidden is not None and other is not None and one.logits is None:
                scored[kind] = Scored(at=one.at, hidden=torch.cat([one.hidden, other], dim=1))
        return Prediction(scored=scored, state=first.state)


@dataclass(frozen=True, kw_only=True)
class ByDiffusion:
    """A token sampler for tokens of ``kind`` with ``channels`` values; ``others`` serves all other kinds.

    ``head``: as of ``DiffusionHead`` · ``levels``: the steps it takes · ``scale``: of guidance, for hidden states of both views
    (``GuidedHidden``); None without · ``normal(row, shape)``: random numbers of a row, for tests; None: keyed by the row.
    """

    kind: int
    channels: int
    head: Head
    levels: NoiseLevels
    target: Target = EPSILON
    temperature: float = 1.0
    scale: Scale | None = None
    others: TokenSampler = Greedy()
    normal: Callable[[int, tuple[int, ...]], Tensor] | None = None

    def __call__(self, batch: Batch, prediction: Prediction, progress: Progress) -> Proposal:
        known = self.others(batch, prediction, progress)
        scored = prediction.scored.get(self.kind)
        if scored is None or scored.hidden is None or not scored.at.numel():
            return known
        row = progress.row(scored.at)
        counts = torch.bincount(row, minlength=batch.rows).tolist()
        drawn = self._drawn(batch, scored.hidden, row, counts, progress)
        shape = (*batch.ids.shape, self.channels)
        values = (torch.zeros(shape, device=batch.device) if batch.values is None else batch.values).flatten(0, 1)
        values = values.clone().index_copy_(0, scored.at, drawn.to(values))
        score = known.score.flatten().index_fill(0, scored.at, 0.0)
        return Proposal(ids=known.ids, score=score.view_as(batch.ids), values=values.view(shape))

    def _drawn(self, batch: Batch, hidden: Tensor, row: Tensor, counts: list[int], progress: Progress) -> Tensor:
        noise = self._noise(batch, counts).to(hidden)
        if self.scale is None:
            said = _unguided(self.head, hidden)
        else:
            scale = self.scale(batch, progress).to(hidden)[row][:, None]
            cond, null = hidden.chunk(2, dim=1)
            said = both(self.head, scale, cond, null, self.channels)
        return ancestral(said, self.levels, noise[0], noise[1:], target=self.target, temperature=self.temperature)

    def _noise(self, batch: Batch, counts: list[int]) -> Tensor:
        """The start and the noise of each step, [T + 1, N, C], from the generator of each row."""
        steps, rngs = len(self.levels) + 1, rows(batch, "diffusion")
        parts = []
        for b, (rng, n) in enumerate(zip(rngs, counts, strict=True)):
            shape = (steps, n, self.channels)
            parts.append(self.normal(b, shape) if self.normal else torch.randn(shape, generator=rng))
        return torch.cat(parts, dim=1)


def _unguided(head: Head, z: Tensor) -> Said:
    return lambda x, t: head(x, t, z)
