"""The log-likelihood of a given text or image: the Monte-Carlo lower bound of masked diffusion.

Public idea: ``bound(model, sequence) -> Bound``, in nats. Of the L scored tokens, l are masked at random, with l uniform over 1 .. L
(LLaDA: Nie et al. 2025, arXiv 2502.09992):

    ln p(x | c)  >=  E_l E_mask [ L / l * sum of ln p(token | the rest) over the masked tokens ]

Each sample is unbiased for every l. The values of l are stratified over the samples of a call, which lowers the variance substantially.
``masks(sequence, ..)`` returns the masks as a value: ``difference`` evaluates two models on the same masks, so most of the noise cancels.
Preference objectives use this estimator (VRPO of LLaDA 1.5, arXiv 2505.19223), and ``estimates`` keeps gradients for them.

Shapes: S samples · B rows of a forward · L tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from unmask.models.exact import double
from unmask.protocols import Denoiser, Guidance
from unmask.rng import generator
from unmask.sequence import Batch, Sequence, collate
from unmask.step import Progress


@dataclass(frozen=True, kw_only=True)
class Bound:
    """``value``: the estimated lower bound of ln p, in nats · ``error``: its standard error (infinite for one sample) · ``tokens``."""

    value: float
    error: float
    tokens: int


@dataclass(frozen=True, kw_only=True)
class Masks:
    """``masked [S, L]`` bool: one mask per sample · ``tokens``: number of writable tokens."""

    masked: Tensor
    tokens: int


def masks(sequence: Sequence, *, samples: int = 128, seed: int = 0, rows: int = 16) -> Masks:
    """Masks over the writable tokens of a sequence. ValueError without writable tokens or samples.

    ``rows``: samples per draw of random numbers.
    """
    open_L = torch.zeros(len(sequence.ids), dtype=torch.bool)
    for span in sequence.spans:
        open_L[span.start : span.stop] = span.writable
    tokens = int(open_L.sum())
    if not tokens or samples < 1:
        raise ValueError(f"a likelihood needs tokens and samples, got {tokens} writable tokens and {samples} samples")
    rng = generator("likelihood", seed)
    first = int(torch.randint(tokens, (), generator=rng))
    # Stratified over 1 .. L from a random start: the marginal of each number is uniform.
    counts_S = (first + torch.arange(samples) * tokens // samples) % tokens + 1
    masked_SL = torch.zeros(samples, len(open_L), dtype=torch.bool)
    drawn = [torch.rand(len(some), tokens, generator=rng) for some in counts_S.split(rows)]
    masked_SL[:, open_L] = torch.cat(drawn).argsort(1).argsort(1) < counts_S[:, None]
    return Masks(masked=masked_SL, tokens=tokens)


def estimates(
    model: Denoiser,
    sequence: Sequence,
    drawn: Masks,
    *,
    guidance: Guidance | None = None,
    rows: int = 16,
    device: torch.device | str = "cpu",
) -> Tensor:
    """One unbiased estimate of the bound for every mask, [S] float64, with gradients where they are enabled.

    ``sequence`` holds the true ids everywhere; its ``masked`` is not read · ``rows``: samples per forward.
    """
    found = []
    for masked_BL in drawn.masked.split(rows):
        counts_B = masked_BL.sum(1)
        batch = collate([sequence] * len(counts_B), [0] * len(counts_B))
        time = (counts_B / drawn.tokens)[:, None].expand_as(batch.ids)
        log_p_B = _log_probability(model, batch.replace(masked=masked_BL, time=time).to(device), guidance)
        found.append(log_p_B * drawn.tokens / counts_B.to(log_p_B.device))
    return torch.cat(found)


@torch.no_grad()
def bound(
    model: Denoiser,
    sequence: Sequence,
    *,
    samples: int = 128,
    rows: int = 16,
    seed: int = 0,
    guidance: Guidance | None = None,
    device: torch.device | str = "cpu",
) -> Bound:
    """The bound of ln p(writable tokens | given tokens)."""
    drawn = masks(sequence, samples=samples, seed=seed, rows=rows)
    return _bound(estimates(model, sequence, drawn, guidance=guidance, rows=rows, device=device), drawn)


@torch.no_grad()
def difference(
    model: Denoiser,
    reference: Denoiser,
    sequence: Sequence,
    *,
    samples: int = 128,
    rows: int = 16,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Bound:
    """The bound of ``model`` minus that of ``reference``, over the same masks; ``error`` is that of the difference."""
    drawn = masks(sequence, samples=samples, seed=seed, rows=rows)
    ours, theirs = (estimates(m, sequence, drawn, rows=rows, device=device) for m in (model, reference))
    return _bound(ours - theirs, drawn)


def _bound(estimates_S: Tensor, drawn: Masks) -> Bound:
    samples = len(estimates_S)
    error = float(estimates_S.std()) / math.sqrt(samples) if samples > 1 else math.inf
    return Bound(value=float(estimates_S.mean()), error=error, tokens=drawn.tokens)


def _log_probability(model: Denoiser, batch: Batch, guidance: Guidance | None) -> Tensor:
    """Sum of ln p over the masked tokens of each row, [B] float64."""
    if guidance is None:
        prediction = model(batch, predict=batch.masked)
    else:
        zero_B = torch.zeros(batch.rows, dtype=torch.long, device=batch.device)
        progress = Progress(number=zero_B, of=zero_B + 1, length=batch.ids.shape[1])
        views = [model(view, predict=batch.masked) for view in guidance.views(batch, progress)]
        prediction = guidance.merge(batch, views, progress)
    total_B = double(torch.zeros(batch.rows, device=batch.device))
    for kind, scored in sorted(prediction.scored.items()):
        ids_N1 = batch.ids.flatten()[scored.at][:, None]
        log_p_NV = double(prediction.logits(kind)).log_softmax(1)
        log_p_N = log_p_NV.gather(1, ids_N1.to(log_p_NV.device))[:, 0]
        total_B = total_B.index_add(0, (scored.at // batch.ids.shape[1]).to(total_B.device), log_p_N)
    return total_B


@torch.no_grad()
def token_log_probabilities(model: Denoiser, batch: Batch) -> Tensor:
    """ln p of the true id of every masked token, [B, L] float32; 0 elsewhere. ``batch.ids`` holds the true ids."""
    found = torch.zeros(batch.ids.numel(), device=batch.device)
    prediction = model(batch, predict=batch.masked)
    for kind, scored in prediction.scored.items():
        logits_NV = prediction.logits(kind).float()
        own_N = logits_NV.gather(1, batch.ids.flatten()[scored.at][:, None])[:, 0]
        found[scored.at] = own_N - logits_NV.logsumexp(1)
    return found.view(batch.ids.shape)
