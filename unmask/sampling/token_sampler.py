"""A candidate id and a score for every scored token.

Public idea: a token sampler is a value ``(batch, prediction, progress) -> Proposal``. Random numbers come from one generator per row and
are drawn for that row's scored tokens alone, so other rows and padding do not change them. The score is computed without temperature.

Shapes: B rows · L tokens · N tokens scored · V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unmask.derived import remembered
from unmask.models.exact import double
from unmask.protocols import TokenSampler
from unmask.rng import rows, sent
from unmask.sampling.spans import wished
from unmask.sampling.temperature import Progress, Temperature, is_zero, of_rows, scaled
from unmask.sequence import Batch, Kind
from unmask.step import Prediction, Proposal

Score = Callable[[Tensor, Tensor], Tensor]  # (logits [N, V], ids [N]) -> [N], higher is surer
Pick = Callable[[Tensor, Tensor], Tensor]  # (logits [N, V], flat token numbers [N]) -> ids [N]
OF_EACH_ROW = "scored tokens of each row"  # the key under which a run remembers them, with ``Scored.at``


@dataclass(frozen=True, kw_only=True)
class LogProbability:
    """ln p of the candidate."""

    def __call__(self, logits_NV: Tensor, ids_N: Tensor) -> Tensor:
        return logits_NV.gather(1, ids_N[:, None])[:, 0] - logits_NV.logsumexp(1)


@dataclass(frozen=True, kw_only=True)
class Probability:
    """p of the candidate (Dream's "maskgit_plus")."""

    def __call__(self, logits_NV: Tensor, ids_N: Tensor) -> Tensor:
        return logits_NV.softmax(1).gather(1, ids_N[:, None])[:, 0]


@dataclass(frozen=True, kw_only=True)
class Entropy:
    """Minus the entropy of the prediction (Dream's "entropy", spec 4.1 "negative entropy"); in nats, at most 0."""

    def __call__(self, logits_NV: Tensor, ids_N: Tensor) -> Tensor:
        return -torch.special.entr(logits_NV.softmax(1)).sum(1)


@dataclass(frozen=True, kw_only=True)
class Margin:
    """Probability of the best id minus that of the second best (Kim et al. 2025, "Train for the Worst, Plan for the Best")."""

    def __call__(self, logits_NV: Tensor, ids_N: Tensor) -> Tensor:
        best_N2 = logits_NV.softmax(1).topk(min(2, logits_NV.shape[1]), dim=1).values
        return best_N2[:, 0] - best_N2[:, 1:].sum(1)


@dataclass(frozen=True, kw_only=True)
class Greedy:
    """The most probable id."""

    score: Score = LogProbability()

    def __call__(self, batch: Batch, prediction: Prediction, progress: Progress) -> Proposal:
        return _propose(batch, prediction, progress, lambda logits_NV, at_N: logits_NV.argmax(1), self.score)


@dataclass(frozen=True, kw_only=True)
class Categorical:
    """A sample of softmax(logits / temperature), by the Gumbel-max rule in float32. Temperature 0 is greedy.

    ``top_p``: sample from the nucleus of the prediction alone (see ``nucleus``); 1 is off. The score stays that of the whole prediction.
    """

    temperature: Temperature = 1.0
    score: Score = LogProbability()
    top_p: float = 1.0

    def __post_init__(self) -> None:
        _check_mass("top_p", self.top_p)

    def __call__(self, batch: Batch, prediction: Prediction, progress: Progress) -> Proposal:
        pick = _gumbel_max(batch, progress, self.temperature, torch.float32, self.top_p)
        return _propose(batch, prediction, progress, pick, self.score)


@dataclass(frozen=True, kw_only=True)
class GumbelText:
    """argmax(exp(logits) / (-ln u)^temperature) in float64 (LLaDA; spec 4.1).

    The same distribution as ``Categorical``; the wider noise reaches the far tail of a six-figure vocabulary, which float32
    cuts off (Zheng et al. 2024, arXiv 2409.02908). ``top_p``: as of ``Categorical``.
    """

    temperature: Temperature = 0.0
    score: Score = LogProbability()
    top_p: float = 1.0

    def __post_init__(self) -> None:
        _check_mass("top_p", self.top_p)

    def __call__(self, batch: Batch, prediction: Prediction, progress: Progress) -> Proposal:
        pick = _gumbel_max(batch, progress, self.temperature, torch.float64, self.top_p)
        return _propose(batch, prediction, progress, pick, self.score)


@dataclass(frozen=True, kw_only=True)
class Truncated:
    """A sample of softmax(logits / temperature) restricted to its nucleus ``top_p`` (1: off) and then to its ``top_k`` most probable ids
    (0: off), as Dream draws (arXiv 2508.15487). Temperature 0 takes the most probable id.

    The score, too, is that of the restricted distribution; ``original``: that of the whole prediction at temperature 1 (Dimple).
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    score: Score = Probability()
    original: bool = False

    def __post_init__(self) -> None:
        _check_mass("top_p", self.top_p)
        if self.top_k < 0 or self.temperature < 0:
            raise ValueError(f"top_k {self.top_k} and temperature {self.temperature} must be at least 0")

    def __call__(self, batch: Batch, prediction: Prediction, progress: Progress) -> Proposal:
        pick = _gumbel_max(batch, progress, 1.0 if self.temperature else 0.0, torch.float32, 1.0)
        kept = {k: self._kept(s.logits.float()) for k, s in prediction.scored.items() if s.logits is not None}
        whole = prediction if self.original else None
        return _propose(batch, prediction.with_logits(kept), progress, pick, self.score, whole)

    def _kept(self, logits_NV: Tensor) -> Tensor:
        logits_NV = nucleus(logits_NV / self.temperature if self.temperature else logits_NV, self.top_p)
        if not 0 < self.top_k < logits_NV.shape[1]:
            return logits_NV
        least_N1 = logits_NV.topk(self.top_k, dim=1).values[:, -1:]
        return logits_NV.masked_fill(logits_NV < least_N1, -torch.inf)


@dataclass(frozen=True, kw_only=True)
class Without:
    """A token sampler that never takes these text ids, such as MASK and placeholders of pictures, and none from ``size`` on (0: no bound).
    Their probability goes to the others.
    """

    ids: tuple[int, ...]
    token_sampler: TokenSampler
    size: int = 0

    def predict(self, batch: Batch, block: Tensor, counts: Tensor) -> Tensor | None:
        return wished(self.token_sampler, batch, block, counts)

    def __call__(self, batch: Batch, prediction: Prediction, progress: Progress) -> Proposal:
        if Kind.TEXT in prediction.scored:
            logits_NV = prediction.logits(Kind.TEXT).clone()
            logits_NV[:, list(self.ids)] = -torch.inf
            if self.size:
                logits_NV[:, self.size :] = -torch.inf
            prediction = prediction.with_logits({Kind.TEXT: logits_NV})
        return self.token_sampler(batch, prediction, progress)


@dataclass(frozen=True, kw_only=True)
class OnlyIds:
    """``draw`` restricted to text ids in ``low <= id < high``, for instance to coordinates. Codes are not touched."""

    low: int
    high: int
    token_sampler: TokenSampler

    def __post_init__(self) -> None:
        if not 0 <= self.low < self.high:
            raise ValueError(f"ids {self.low} .. {self.high} are no range; wanted 0 <= low < high")

    def predict(self, batch: Batch, block: Tensor, counts: Tensor) -> Tensor | None:
        return wished(self.token_sampler, batch, block, counts)

    def __call__(self, batch: Batch, prediction: Prediction, progress: Progress) -> Proposal:
        if Kind.TEXT in prediction.scored:
            logits_NV = prediction.logits(Kind.TEXT)
            id_V = torch.arange(logits_NV.shape[1], device=logits_NV.device)
            outside_V = (id_V < self.low) | (id_V >= self.high)
            prediction = prediction.with_logits({Kind.TEXT: logits_NV.masked_fill(outside_V, -torch.inf)})
        return self.token_sampler(batch, prediction, progress)


@dataclass(frozen=True, kw_only=True)
class TopP:
    """A token sampler restricted to the nucleus of each prediction; its score, too, is that of the nucleus."""

    mass: float
    token_sampler: TokenSampler

    def __post_init__(self) -> None:
        _check_mass("mass", self.mass)

    def predict(self, batch: Batch, block: Tensor, counts: Tensor) -> Tensor | None:
        return wished(self.token_sampler, batch, block, counts)

    def __call__(self, batch: Batch, prediction: Prediction, progress: Progress) -> Proposal:
        kept = {
            k: nucleus(scored.logits, self.mass) for k, scored in prediction.scored.items() if scored.logits is not None
        }
        return self.token_sampler(batch, prediction.with_logits(kept), progress)


def nucleus(logits_NV: Tensor, mass: float) -> Tensor:
    """The logits, -inf outside the smallest set of ids whose probabilities reach ``mass`` (Holtzman et al. 2020, section 3.1).

    ``mass`` 1 keeps every logit as it is.
    """
    if mass == 1:
        return logits_NV
    p_NV, id_NV = logits_NV.float().softmax(1).sort(dim=1, descending=True, stable=True)
    beyond_NV = p_NV.cumsum(1) - p_NV >= mass  # what stands before an id already reaches the mass
    return logits_NV.masked_fill(torch.zeros_like(beyond_NV).scatter(1, id_NV, beyond_NV), -torch.inf)


def gumbel(
    generators: Sequence[torch.Generator],
    counts: Sequence[int],
    rest: tuple[int, ...],
    dtype: torch.dtype,
    temperatures: Sequence[float],
    device: torch.device,
) -> Tensor:
    """Gumbel noise, finite everywhere, times the temperature of each row, [N, *rest]: ``counts[0]`` entries from the first generator, and
    so on.

    The uniform numbers are drawn on the CPU, so they are the same for every device. Their logarithms are taken on the CPU and on CUDA
    where they are needed: on CUDA these may differ in the last bit, and a CPU would take longer for them than a GPU for a whole step.
    """
    u = torch.empty(sum(counts), *rest, dtype=dtype)
    first = 0
    for generator, count in zip(generators, counts, strict=True):
        if count:
            u[first : first + count].uniform_(generator=generator)
        first += count
    u = sent(u, device) if device.type == "cuda" else u
    minus = u.clamp_(min=torch.finfo(dtype).tiny).log_().neg_().log_()
    found = scaled(minus, [-t for t in temperatures], counts)
    return found if found.device == device else sent(found, device)


def _check_mass(name: str, mass: float) -> None:
    if not 0 < mass <= 1:
        raise ValueError(f"{name} {mass} is not a share of probability; it must be above 0 and at most 1")


def _gumbel_max(batch: Batch, progress: Progress, temperature: Temperature, dtype: torch.dtype, top_p: float) -> Pick:
    greedy = is_zero(temperature, progress)
    generators = [] if greedy else rows(batch, "draw")

    def pick(logits_NV: Tensor, at_N: Tensor) -> Tensor:
        if greedy:
            return logits_NV.argmax(1)
        logits_NV = nucleus(logits_NV, top_p)
        wide_NV = double(logits_NV) if dtype == torch.float64 else logits_NV.to(dtype)
        counts = _of_each_row(at_N, batch.rows, progress)
        temperatures = of_rows(temperature, progress)
        noise_NV = gumbel(generators, counts, logits_NV.shape[1:], dtype, temperatures, wide_NV.device)
        return noise_NV.add_(wide_NV).argmax(1).to(logits_NV.device)

    return pick


def _of_each_row(at_N: Tensor, rows: int, progress: Progress) -> Sequence[int]:
    """How many tokens of each row are scored."""
    if rows == 1:
        return (len(at_N),)
    told = remembered(OF_EACH_ROW, at_N)
    return told or torch.bincount(progress.row(at_N), minlength=rows).tolist()


def _propose(
    batch: Batch, prediction: Prediction, progress: Progress, pick: Pick, score: Score, whole: Prediction | None = None
) -> Proposal:
    """Ids and scores put where they belong. Kinds in rising order, so a row's generator serves text before codes. ``whole``: what is
    scored, where that is not what ids are picked from.
    """
    ids, scores = batch.ids.flatten(), torch.full((batch.ids.numel(),), -torch.inf, device=batch.device)
    for kind, scored in sorted(prediction.scored.items()):
        if scored.logits is not None and scored.at.numel():
            logits_NV = scored.logits.float()
            ids_N = pick(logits_NV, scored.at)
            judged_NV = logits_NV if whole is None else whole.logits(kind).float()
            ids = ids.scatter(0, scored.at, ids_N)
            scores.scatter_(0, scored.at, score(judged_NV, ids_N))
    return Proposal(ids=ids.view_as(batch.ids), score=scores.view_as(batch.ids))
