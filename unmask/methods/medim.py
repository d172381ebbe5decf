"""MeDiM: a causal image-token model becomes one masked diffusion over a picture and its report, for both directions and for both at once.

Paper: Mao et al., "Discrete Diffusion Models with MLLMs for Unified Medical Multimodal Generation", 2025, arXiv 2510.06131.

Equations: one time t a row, one stratum of [1e-3, 1] for each row of a batch. Every token is masked with probability 1 - exp(-sigma) =
.999 t, sigma = -ln(1 - .999 t). The loss of a masked token is -ln p(true id) / t, where p is restricted to the ids of its modality without
the mask; it is summed over the batch and divided by all tokens, visible ones included. With probability ``share`` a whole batch keeps
the tokens of the spans ``spared`` visible. (The configuration's weights 1.0 and 0.6 of text and picture are read by no released code.)

The causal mask becomes all-visible. A sinusoidal embedding e of sigma, [cos, sin] of 128 frequencies through Linear, SiLU, Linear, sets a
shift, a scale and a gate before attention and before the feed-forward of each layer:

    h += gate_1 Attention(norm(h) (1 + scale_1) + shift_1),   h += gate_2 MLP(norm(h) (1 + scale_2) + shift_2)

all linear in e and zero at first. The released gate is that linear map alone, which switches every pretrained layer off at step 0
(``gate_at=0``); with ``gate_at=1`` it is 1 plus that map, and step 0 is the pretrained function.

``offset``: a token is predicted at the position ``offset`` after its own. A pretrained causal trunk wants -1 for text and codes. The
released code reads -1 for text and +1 for codes, an effect of how it cuts its logits (``RELEASED_OFFSETS``).

Sampling: MaskGIT steps with few tokens first (``Arccos``), scores ln p + 10 t Gumbel, guidance (1 + w) c - w u with w = 5 (1 - t), in
which u has the condition masked. The released code always samples so, and its first step, where w = 0, takes exp(logits) without softmax or
restriction (``probabilities(released=True)``). ``Ancestral`` is the step that its configuration names.

What changes: the trunk (attention, time), the objective and the sampler. What it costs: 6 width^2 parameters a layer for the time; a
forward reads all positions at every step, so nothing is cached. The network is ``models/timed.py``.

Shapes: B rows · L tokens · D width · V ids of text and codes together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.methods.card import Card
from unmask.models.timed import EPS, sigma_at
from unmask.rng import generator
from unmask.sampling.guidance import blended
from unmask.sampling.selection import Confident
from unmask.sampling.spans import still_masked
from unmask.sequence import Batch, Kind
from unmask.step import Loss, Prediction, Progress, Reuse

NEVER = -1e6  # what the released code adds to logits that are not allowed
OFFSETS = (-1, -1)  # of text and of codes, for a trunk that was causal
RELEASED_OFFSETS = (-1, 1)


# -- noise -------------------------------------------------------------------------------------------------------------


def rate_at(t: Tensor) -> Tensor:
    """d sigma / dt."""
    return (1 - EPS) / (1 - (1 - EPS) * t)


def masked_share(t: Tensor) -> Tensor:
    """The probability that a token is masked, 1 - exp(-sigma)."""
    return 1 - torch.exp(-sigma_at(t))


def weight_at(t: Tensor) -> Tensor:
    """The weight of the loss, d sigma / (exp(sigma) - 1), which is 1 / t."""
    return rate_at(t) / torch.expm1(sigma_at(t))


def strata(u_B: Tensor) -> Tensor:
    """Times of the rows of a batch in [eps, 1], one stratum each, from uniform numbers."""
    rows = len(u_B)
    return ((u_B / rows + torch.arange(rows, device=u_B.device) / rows) % 1) * (1 - EPS) + EPS


@dataclass(frozen=True, kw_only=True)
class OneTime:
    """The forward process: one time a row for text and codes. ``spared``: names of spans that stay visible in a ``share`` of batches."""

    spared: Container[str] = frozenset()
    share: float = 0.0

    def times(self, batch: Batch, rng: torch.Generator) -> Tensor:
        return strata(torch.rand(batch.rows, generator=rng)).to(batch.device)[:, None].expand_as(batch.ids)

    def corrupt(self, clean: Batch, time: Tensor, rng: torch.Generator) -> Batch:
        time = time[:, None].expand_as(clean.ids) if time.dim() == 1 else time
        spares = bool(torch.rand((), generator=rng) < self.share)
        u = torch.rand(clean.ids.shape, generator=rng).to(clean.device)
        return self.masked(clean, time, u, spares=spares)

    def masked(self, clean: Batch, time: Tensor, u: Tensor, *, spares: bool) -> Batch:
        """The batch in which the writable tokens with ``u [B, L]`` below their probability are masked."""
        probability = masked_share(time)
        masked = (u < probability) & clean.writable & clean.valid
        if spares:
            for row, table in enumerate(clean.span_table):
                for span in table:
                    if span.name in self.spared:
                        masked[row, span.start : span.stop] = False
        return clean.replace(masked=masked, time=time, weight=probability, target=None)


# -- loss --------------------------------------------------------------------------------------------------------------


def log_probabilities(logits: Tensor, code: Tensor, *, text_size: int, mask_id: int) -> Tensor:
    """ln p over ids of text and codes, [.., L, V]: ids of the other modality and the mask have none.

    ``code [L]`` or [.., L] bool: the tokens that are codes · ``text_size``: the first id of a code.
    """
    allowed = logits.clone()
    allowed[..., mask_id] += NEVER
    other = (torch.arange(logits.shape[-1], device=logits.device) >= text_size) != code[..., None]
    return allowed.masked_fill(other, NEVER).log_softmax(-1)


def probabilities(logits: Tensor, code: Tensor, *, text_size: int, mask_id: int, released: bool = False) -> Tensor:
    """p as of ``log_probabilities``. ``released``: exp(logits), the first step of the released sampler, which is not a distribution."""
    return logits.exp() if released else log_probabilities(logits, code, text_size=text_size, mask_id=mask_id).exp()


class _Trained(Protocol):
    mask_id: int

    def __call__(self, batch: Batch, *, predict: Tensor | None = None, reuse: Reuse | None = None) -> Prediction: ...


@dataclass(frozen=True, kw_only=True)
class JointLoss:
    """Sum of -ln p / t over masked tokens of text and codes, divided by all valid tokens."""

    corruption: OneTime = OneTime()

    def __call__(self, model: _Trained, clean: Batch, rng: torch.Generator) -> Loss:
        return self.of(model, self.corruption.corrupt(clean, self.corruption.times(clean, rng), rng))

    def of(self, model: _Trained, noisy: Batch) -> Loss:
        """The loss of a batch with given masks. ``terms``: the part of each modality, per token of that modality."""
        each_BL = self.each(model, noisy)
        terms, counts = {}, {}
        for kind, name in ((Kind.TEXT, "text"), (Kind.CODE, "code")):
            of_kind = noisy.valid & (noisy.kind == kind)
            if tokens := int(of_kind.sum()):
                terms[name], counts[name] = (each_BL * of_kind).sum() / tokens, int((of_kind & noisy.masked).sum())
        return Loss(total=(each_BL * noisy.valid).sum() / noisy.valid.sum(), terms=terms, counts=counts)

    def each(self, model: _Trained, noisy: Batch) -> Tensor:
        """The loss of every token, [B, L]: 0 where it is visible."""
        assert noisy.clean is not None and noisy.time is not None
        time_N, ids_N = noisy.time.flatten(), noisy.clean.flatten()
        found = torch.zeros(noisy.ids.numel(), device=noisy.device)
        for scored in model(noisy, predict=noisy.masked).scored.values():
            if scored.logits is not None and scored.at.numel():
                loss = F.cross_entropy(scored.logits.float(), ids_N[scored.at], reduction="none")
                found = found.index_add(0, scored.at, loss / time_N[scored.at])
        return found.view(noisy.ids.shape)


# -- sampling ----------------------------------------------------------------------------------------------------------


def falling_arccos(r: Tensor) -> Tensor:
    """arccos(r) / (pi / 2): few tokens first."""
    return torch.arccos(r) / (math.pi / 2)


def rising_cosine(r: Tensor) -> Tensor:
    """cos(pi r / 2)."""
    return torch.cos(r * math.pi / 2)


def straight(r: Tensor) -> Tensor:
    """1 - r."""
    return 1 - r


@dataclass(frozen=True, kw_only=True)
class ByShares:
    """A schedule whose steps unmask in proportion to ``curve`` of linspace(1, 0, steps), at least one token each but the last."""

    steps: int
    curve: Callable[[Tensor], Tensor] = falling_arccos

    def planned(self, tokens: int) -> Tensor:
        """The released counts, int32 [steps]; the last may be 0, and there may be more than ``tokens``."""
        share = self.curve(torch.linspace(1, 0, self.steps))
        counts = (share / share.sum() * tokens).round()
        counts[counts == 0] = 1
        counts[-1] = max(0.0, tokens - float(counts[:-1].sum()))
        return counts.int()

    def counts(self, tokens: int) -> list[int]:
        if self.steps < 1:
            raise ValueError(f"a schedule needs at least one step, got {self.steps}")
        found: list[int] = []
        for count in self.planned(tokens).tolist() if self.steps > 1 else [tokens]:
            found.append(min(count, tokens - sum(found)))
        return [count for count in found if count]


def time_of(progress: Progress) -> Tensor:
    """The released time of each row's step, [B]: linspace(1, 1e-5, steps + 1)."""
    return 1 + (1e-5 - 1) * progress.number / progress.of.clamp(min=1)


@dataclass(frozen=True, kw_only=True)
class Cooling:
    """``start`` times the time of the step: the temperature of the order in which tokens are unmasked. s: ``Progress.fraction``."""

    steps: int
    start: float = 10.0

    def __call__(self, s: Tensor) -> Tensor:
        return self.start * (1 + (1e-5 - 1) * s * (self.steps - 1) / self.steps)


@dataclass(frozen=True, kw_only=True)
class RisingGuidance:
    """(1 + w) c - w u with w = ``scale`` (1 - t); u has the given spans named in ``drop`` masked. ``null_id``: text id of the mask."""

    scale: float
    drop: Container[str]
    null_id: int

    def views(self, batch: Batch, progress: Progress) -> list[Batch]:
        spans = [span for table in batch.span_table for span in table if span.name in self.drop and not span.writable]
        if self.scale == 0 or not spans:
            return [batch]
        return [batch, batch.drop({span.name for span in spans}, self.null_id)]

    def weight(self, progress: Progress) -> Tensor:
        return self.scale * (1 - time_of(progress))

    def merge(self, batch: Batch, predictions: list[Prediction], progress: Progress) -> Prediction:
        if len(predictions) == 1:
            return predictions[0]
        w_B, logits = self.weight(progress).float(), {}
        for kind, scored in predictions[0].scored.items():
            if scored.logits is not None:
                w_N1 = w_B[progress.row(scored.at)][:, None]
                one = [Prediction(scored={kind: p.scored[kind]}) for p in predictions]
                logits[kind] = blended(one, progress, partial(_guided, w_N1)).logits(kind)
        return predictions[0].with_logits(logits)


def _guided(w_N1: Tensor, c_NV: Tensor, u_NV: Tensor) -> Tensor:
    return (1 + w_N1) * c_NV - w_N1 * u_NV


@dataclass(frozen=True, kw_only=True)
class Ancestral:
    """The reverse process in equal steps of time from 1 to 1e-5. ``text_size``: the first id of a code · ``uniform(step, shape)``: random
    numbers [B, L, V]; None: keyed by each row's seed.
    """

    steps: int
    text_size: int
    mask_id: int
    uniform: Callable[[int, tuple[int, ...]], Tensor] | None = None

    @torch.no_grad()
    def sample(self, logits: Callable[[Batch], Tensor], batch: Batch) -> Batch:
        """Unmask text and codes. ``logits``: of all tokens over ids of text and codes, [B, L, V] (``Timed.joint``).

        What is still masked after the last step gets its most probable id.
        """
        times = torch.linspace(1, 1e-5, self.steps + 1)
        dt = float(times[0] - times[-1]) / self.steps
        for step in range(self.steps):
            p = self._p(logits, batch, float(times[step]))
            u = (self.uniform or _keyed(batch))(step, tuple(p.shape)).to(p.device)
            batch = self._written(batch, ancestral(p, u, float(times[step]), dt, self.mask_id))
        return self._written(batch, self._p(logits, batch, float(times[-1])).argmax(-1))

    def _p(self, logits: Callable[[Batch], Tensor], batch: Batch, t: float) -> Tensor:
        found = logits(batch.replace(time=torch.full(batch.ids.shape, t, device=batch.device)))
        return probabilities(found, batch.kind == Kind.CODE, text_size=self.text_size, mask_id=self.mask_id)

    def _written(self, batch: Batch, drawn: Tensor) -> Batch:
        taken = still_masked(batch) & (drawn != self.mask_id)
        ids = torch.where(batch.kind == Kind.CODE, drawn - self.text_size, drawn)
        return batch.replace(ids=torch.where(taken, ids, batch.ids), masked=batch.masked & ~taken)


def ancestral(p: Tensor, u: Tensor, t: float, dt: float, mask_id: int) -> Tensor:
    """Ids of one step from t to t - dt, [..]: a token stays masked (``mask_id``) with probability (t - dt) / t. ``p``, ``u``: [.., V].

    An exponential race: argmax q / -ln u with q = p dt, and t - dt for the mask.
    """
    q = p * dt
    q[..., mask_id] = t - dt
    return (q / (1e-10 - (u + 1e-10).log())).argmax(-1)


def _keyed(batch: Batch) -> Callable[[int, tuple[int, ...]], Tensor]:
    """Uniform numbers from the seeds of the rows."""

    def draw(step: int, shape: tuple[int, ...]) -> Tensor:
        seeds = batch.seed.tolist()
        return torch.stack([torch.rand(shape[1:], generator=generator(seed, step, "ancestral")) for seed in seeds])

    return draw


CARD = Card(
    title="Discrete Diffusion Models with MLLMs for Unified Medical Multimodal Generation",
    paper="arXiv 2510.06131",
    year=2025,
    changes="trunk, objective and sampler: a causal image-token model becomes one masked diffusion of pictures and reports",
    claim="One model draws pictures from reports, writes reports of pictures, and samples pairs of both.",
    status="tiny-checked",
    figure="3 networks, 1,000 steps: attention to all tokens changes the loss of pictures given reports by -.342 [-.386, -.298] nats, that "
    "of reports given pictures by .018 [-.111, .147]; the time (-.015 [-.069, .040] for pictures) and the causal start (-.030 [-.098, "
    ".039]; -.347 after 200 steps) are not seen; .073 [-.089, .235] of the pairs that are made up together agree",
    paper_figure="FID 16.60 (MIMIC-CXR) and 24.19 (PathGen); METEOR of reports 0.2650 and 0.2580",
    parts={
        "schedule": (ByShares(steps=4), ByShares(steps=3, curve=straight)),
        "selection": (Confident(noise=Cooling(steps=4)),),
        "guidance": (RisingGuidance(scale=5.0, drop=frozenset({"prompt", "source"}), null_id=2),),
        "Corruption": (OneTime(spared=frozenset({"answer"}), share=0.1),),
    },
    recipe="medim.joint",
)
