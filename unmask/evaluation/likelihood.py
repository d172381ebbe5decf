"""The log-likelihood of a given text or picture: the Monte-Carlo lower bound of masked diffusion.

Public idea: ``bound(model, sequence) -> Bound``, in nats. Of the L tokens in question, l are masked at random, l uniform over 1 .. L
(LLaDA: Nie et al. 2025):

    ln p(x | c)  >=  E_l E_mask [ L / l * sum of ln p(token | the rest) over the masked tokens ]
Each sample is unbiased whatever l; the numbers l are spread evenly over the samples of a call, which lowers the variance much.
Published settings of LLaDA-8B Base: 128 samples, text guidance 0.5 (ARC-C, HellaSwag, PIQA, GPQA), 2 (TruthfulQA) or 0; one sample for
one-token answers (MMLU, CMMLU, C-Eval), where the bound is exact.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as Items
from dataclasses import dataclass

import torch
from torch import Tensor

from unmask.pipeline.text_model import TextModel
from unmask.protocols import Denoiser, Guidance
from unmask.rng import generator
from unmask.sampling.guidance import ClassifierFree, NoGuidance
from unmask.sequence import Batch, Sequence, collate
from unmask.step import Progress
from unmask.tokens.build import PROMPT
from unmask.tokens.text import MASK

_UNGUIDED = NoGuidance()


@dataclass(frozen=True, kw_only=True)
class Bound:
    """``value``: the estimated lower bound of ln p, in nats · ``error``: its standard error (infinite for one sample) · ``tokens``."""

    value: float
    error: float
    tokens: int


@torch.no_grad()
def bound(
    model: Denoiser,
    sequence: Sequence,
    *,
    samples: int = 128,
    rows: int = 16,
    seed: int = 0,
    guidance: Guidance = _UNGUIDED,
    device: torch.device | str = "cpu",
) -> Bound:
    """The bound of ln p(what is writable | what is given). ``sequence`` holds the true ids everywhere; its ``masked`` is not read.

    ``rows``: samples a forward. ValueError where nothing is writable, or there is no sample.
    """
    open_L = torch.zeros(len(sequence.ids), dtype=torch.bool)
    for span in sequence.spans:
        open_L[span.start : span.stop] = span.writable
    tokens = int(open_L.sum())
    if not tokens or samples < 1:
        raise ValueError(f"a likelihood needs tokens and samples, got {tokens} writable tokens and {samples} samples")
    rng = generator("likelihood", seed)
    first = int(torch.randint(tokens, (), generator=rng))
    # Stratified over 1 .. L from a random start: each number is uniform on its own.
    counts_S = (first + torch.arange(samples) * tokens // samples) % tokens + 1
    found = []
    for counts_B in counts_S.split(rows):
        rank_BN = torch.rand(len(counts_B), tokens, generator=rng).argsort(1).argsort(1)
        masked_BL = torch.zeros(len(counts_B), len(open_L), dtype=torch.bool)
        masked_BL[:, open_L] = rank_BN < counts_B[:, None]
        batch = collate([sequence] * len(counts_B), [0] * len(counts_B))
        batch = batch.replace(masked=masked_BL, time=(counts_B / tokens)[:, None].expand_as(batch.ids)).to(device)
        found.append(_log_probability(model, batch, guidance).cpu() * tokens / counts_B)
    estimates_S = torch.cat(found)
    error = float(estimates_S.std()) / math.sqrt(samples) if samples > 1 else math.inf
    return Bound(value=float(estimates_S.mean()), error=error, tokens=tokens)


def _log_probability(model: Denoiser, batch: Batch, guidance: Guidance) -> Tensor:
    """Sum of ln p over the masked tokens of each row, [B] float64."""
    zero_B = torch.zeros(batch.rows, dtype=torch.long, device=batch.device)
    progress = Progress(number=zero_B, of=zero_B + 1, length=batch.ids.shape[1])
    prediction = guidance.merge(
        batch, [model(v, predict=batch.masked) for v in guidance.views(batch, progress)], progress
    )
    total_B = torch.zeros(batch.rows, dtype=torch.float64, device=batch.device)
    for kind, scored in sorted(prediction.scored.items()):
        ids_N1 = batch.ids.flatten()[scored.at][:, None]
        log_p_N = prediction.logits(kind).double().log_softmax(1).gather(1, ids_N1)[:, 0]
        total_B.index_add_(0, progress.row(scored.at), log_p_N)
    return total_B


def likelihood(
    model: TextModel, prompt: str, answer: str, *, samples: int = 128, seed: int = 0, scale: float = 0.0
) -> Bound:
    """The bound of ln p(answer | prompt) of a text model, without a chat template. ``scale``: text guidance."""
    text = model.parts.text
    context = prompt.rstrip()  # the token of a word includes the space before it
    whole, given = text.encode(context + prompt[len(context) :] + answer), text.encode(context)
    if not given or len(whole) <= len(given):
        raise ValueError("a likelihood needs a non-empty prompt and answer")
    b = model.parts.builder().say("prompt", *whole[: len(given)])
    sequence = b.write("answer", whole[len(given) :]).build(prompt)
    guidance = ClassifierFree(scale=scale, drop=PROMPT, null_id=text[MASK])
    return bound(model.parts.net, sequence, samples=samples, seed=seed, guidance=guidance, device=model.device)


def choose(
    model: TextModel, prompt: str, answers: Items[str], *, samples: int = 128, seed: int = 0, scale: float = 0.0
) -> tuple[int, list[Bound]]:
    """Index of the most probable answer, and the bounds of all, for multiple choice."""
    if not answers:
        raise ValueError("no answers to choose from; give at least one")
    bounds = [likelihood(model, prompt, a, samples=samples, seed=seed, scale=scale) for a in answers]
    return max(range(len(bounds)), key=lambda i: bounds[i].value), bounds
