"""CtrlDiff: the length of the next block is chosen from what was written so far, and a classifier steers the tokens.

Paper: Huang and Tang, "CtrlDiff: Boosting Large Diffusion Language Models with Dynamic Block Prediction and Controllable Generation",
arXiv 2505.14455.

Equations: p(x_s | x_t, y) is proportional to p(x_s | x_t) p(y | x_s)^gamma. Place by place, a masked token is revealed as v with its
probability times exp(gamma r_v), where r_v = log p(y | x_t with this place v) - log p(y | x_t): one call of the classifier for each v
(``Exact``). To first order r_v = grad log p(y | x_t) (e_v - e_x) on one-hot inputs: one call and one gradient (``Taylor``). A policy
pi(length | state) = softmax(state theta) picks the next block; its gradient is that of REINFORCE, sum (reward - baseline) grad log pi.

What changes: the block schedule, and the guidance, around that of the task.

What it costs: nothing for the lengths. ``Taylor`` costs one gradient of the classifier for each step, ``Exact`` ``most`` calls for each
masked token.

The paper has no public code, and its reward and its approximation of the guidance are not known to us. The state here is the mean and the
least log-probability of the last tokens, the share that is written, and a constant; the reward is that of the recipe.

Shapes: B rows, L tokens, N scored tokens, V vocabulary (with the mask id last in the plain functions), F features, A lengths.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unmask.checkpoints.store import read_tensors, save_tensors
from unmask.methods.card import Card
from unmask.protocols import Guidance
from unmask.rng import rows
from unmask.sampling.guidance import NoGuidance
from unmask.sampling.sampler import Sampler
from unmask.sampling.schedule import Equal
from unmask.sampling.selection import Confident
from unmask.sampling.spans import still_masked, writable_spans
from unmask.sampling.token_sampler import Categorical
from unmask.sequence import Batch, Kind
from unmask.step import Prediction, Progress

Classifier = Callable[[Tensor], Tensor]  # one-hot or relaxed inputs [N, L, V] -> log p(y | x) [N]
POLICY, CLASSIFIER = "policy", "classifier"  # names of the safetensors files in a folder
LENGTHS, WINDOW = (2, 4, 8, 16), 4

# -- guidance, on one sequence of ids [L] -----------------------------------------------------------------------------


def unguided(denoiser_LV: Tensor, x_L: Tensor, t: float, s: float) -> Tensor:
    """p(x_s | x_t) of every place under linear absorbing noise, [L, V + 1]; the mask id is V."""
    mask_id = denoiser_LV.shape[1]
    revealed = torch.cat([denoiser_LV * ((t - s) / t), torch.full_like(denoiser_LV[:, :1], s / t)], 1)
    return torch.where((x_L == mask_id)[:, None], revealed, F.one_hot(x_L, mask_id + 1).to(revealed))


def exact_ratios(classifier: Classifier, x_L: Tensor, size: int) -> Tensor:
    """log p(y | x with this place v) - log p(y | x) of every place and id, [L, V]: a call for each."""
    length = len(x_L)
    every = x_L.repeat(length * size, 1)
    place = torch.arange(length).repeat_interleave(size)
    every[torch.arange(length * size), place] = torch.arange(size).repeat(length)
    found, now = classifier(_one_hot(every, size)), classifier(_one_hot(x_L[None], size))
    return (found - now).view(length, size)


def taylor_ratios(classifier: Classifier, x_L: Tensor, size: int) -> Tensor:
    """The same to first order in the one-hot input, by one gradient."""
    with torch.enable_grad():
        inputs = _one_hot(x_L[None], size).requires_grad_()
        (slope,) = torch.autograd.grad(classifier(inputs).sum(), inputs)
    return slope[0] - slope[0].gather(1, x_L[:, None])


def _one_hot(ids: Tensor, size: int) -> Tensor:
    return F.one_hot(ids, size).to(torch.get_default_dtype())


def guided(step_LV: Tensor, ratios_LV: Tensor, gamma: float) -> Tensor:
    """Each place's distribution times exp(gamma ratio), normalised; unchanged to the bit where gamma is 0."""
    if not gamma:
        return step_LV
    tilted = step_LV * (gamma * ratios_LV).exp()
    return tilted / tilted.sum(-1, keepdim=True)


def joint(step_LV: Tensor, classifier: Classifier, gamma: float) -> Tensor:
    """p(x_s | x_t, y) of whole sequences by enumeration, [V, ..] with L axes; for tests of small worlds."""
    length, size = step_LV.shape
    every = torch.cartesian_prod(*[torch.arange(size)] * length).view(-1, length)
    prior = step_LV[torch.arange(length), every].prod(1)
    weighed = prior * (gamma * classifier(_one_hot(every, size))).exp()
    return (weighed / weighed.sum()).view([size] * length)


def marginals(joint_: Tensor) -> Tensor:
    """The distribution of each place, [L, V]."""
    axes = range(joint_.dim())
    return torch.stack([joint_.sum([other for other in axes if other != axis]) for axis in axes])


# -- the policy -------------------------------------------------------------------------------------------------------


def expected_gradient(state_NF: Tensor, theta_FA: Tensor, reward_NA: Tensor) -> Tensor:
    """The gradient of the mean expected reward of softmax(state theta), [F, A]."""
    pi_NA = (state_NF @ theta_FA).softmax(1)
    advantage_NA = pi_NA * (reward_NA - (pi_NA * reward_NA).sum(1, keepdim=True))
    return state_NF.T @ advantage_NA / len(state_NF)


def reinforce(state_NF: Tensor, theta_FA: Tensor, action_N: Tensor, advantage_N: Tensor) -> Tensor:
    """sum advantage grad log pi(action | state), [F, A]; ``advantage``: reward minus a baseline."""
    pi_NA = (state_NF @ theta_FA).softmax(1)
    return state_NF.T @ (advantage_N[:, None] * (F.one_hot(action_N, theta_FA.shape[1]) - pi_NA))


class LengthRule(Protocol):
    """(batch, state [B, F]) -> the number of a length for each row [B]."""

    def __call__(self, batch: Batch, state: Tensor) -> Tensor: ...


@dataclass(frozen=True, kw_only=True)
class Policy:
    """The most probable length of softmax(state theta). ``theta [F, A]``; ``explores``: a draw in its place, for training."""

    theta: Tensor = dataclasses.field(repr=False, compare=False)
    explores: bool = False

    def __call__(self, batch: Batch, state: Tensor) -> Tensor:
        logits_BA = state @ self.theta.to(state)
        if not self.explores:
            return logits_BA.argmax(1)
        drawn = [
            torch.multinomial(p, 1, generator=g)
            for p, g in zip(logits_BA.softmax(1).cpu(), rows(batch, "length"), strict=True)
        ]
        return torch.cat(drawn).to(state.device)


@dataclass(frozen=True, kw_only=True)
class Certainty:
    """The length number ``above`` where the last tokens had a mean log-probability above ``-bound``, else ``below``: by default the longest
    and the shortest (the rule to beat).
    """

    bound: float = 0.2
    above: int = len(LENGTHS) - 1
    below: int = 0

    def __call__(self, batch: Batch, state: Tensor) -> Tensor:
        return torch.where(state[:, 0] > -self.bound, self.above, self.below)


@dataclass(frozen=True, kw_only=True)
class ChosenBlocks:
    """Blocks from left to right, each as long as ``rule`` says when the row reaches it."""

    rule: LengthRule
    lengths: tuple[int, ...] = LENGTHS

    def __post_init__(self) -> None:
        if not self.lengths or min(self.lengths) < 1:
            raise ValueError(f"block lengths must be at least 1, got {self.lengths}")

    def finest(self, batch: Batch) -> Tensor:
        return still_masked(batch).long().cumsum(1).sub(1).clamp(min=0) // min(self.lengths)

    def __call__(self, batch: Batch, progress: Progress) -> Tensor:
        live_BL, at_L = still_masked(batch), torch.arange(batch.ids.shape[1], device=batch.device)
        first_B1 = torch.where(live_BL.any(1), live_BL.long().argmax(1), len(at_L))[:, None]
        number_B = self.rule(batch, block_state(batch, first_B1))
        length_B1 = torch.tensor(self.lengths, device=batch.device)[number_B][:, None]
        inside_BL = (at_L >= first_B1) & (at_L < first_B1 + length_B1)
        return torch.where(at_L < first_B1, -1, torch.where(inside_BL, first_B1, first_B1 + length_B1))


def block_state(batch: Batch, first_B1: Tensor) -> Tensor:
    """Mean and least log-probability of the last tokens that the run wrote (0 before any), the share written, and 1: [B, 4]."""
    layout = writable_spans(batch)
    at_L = torch.arange(batch.ids.shape[1], device=batch.device)
    score_BL = torch.full(batch.ids.shape, -torch.inf, device=batch.device) if batch.score is None else batch.score
    last_BL = (at_L < first_B1) & (at_L >= first_B1 - WINDOW) & (score_BL > -torch.inf)
    scores_BL, any_B = torch.where(last_BL, score_BL, 0.0), last_BL.any(1)
    mean_B = scores_BL.sum(1) / last_BL.sum(1).clamp(min=1)
    open_BL = layout.span >= 0
    share_B = (open_BL & ~batch.masked).sum(1) / open_BL.sum(1).clamp(min=1)
    return torch.stack([mean_B, scores_BL.amin(1) * any_B, share_B, torch.ones_like(mean_B)], 1)


# -- in the sampler ---------------------------------------------------------------------------------------------------


class Ratios(Protocol):
    """(ids of a row [L], flags of its masked places [L], logits of these [M, V], size of an input) -> ratios [M, V]."""

    def __call__(self, classifier: Classifier, x: Tensor, places: Tensor, logits: Tensor, size: int) -> Tensor: ...


@dataclass(frozen=True, kw_only=True)
class Taylor:
    """``taylor_ratios``, for every id."""

    def __call__(self, classifier: Classifier, x: Tensor, places: Tensor, logits: Tensor, size: int) -> Tensor:
        return taylor_ratios(classifier, x, size)[places, : logits.shape[1]]


@dataclass(frozen=True, kw_only=True)
class Exact:
    """``exact_ratios`` of the ``most`` most probable ids of each place; the others have the ratio 0."""

    most: int = 16

    def __call__(self, classifier: Classifier, x: Tensor, places: Tensor, logits: Tensor, size: int) -> Tensor:
        top_MK = logits.topk(min(self.most, logits.shape[1]), 1).indices
        number, count = top_MK.shape
        every = x.repeat(number * count, 1)
        every[torch.arange(number * count), places.nonzero()[:, 0].repeat_interleave(count)] = top_MK.flatten()
        found = classifier(_one_hot(every, size)) - classifier(_one_hot(x[None], size))
        return torch.zeros_like(logits).scatter(1, top_MK, found.view(number, count).to(logits))


@dataclass(frozen=True, kw_only=True)
class Classified:
    """``guidance``, then its logits of text plus gamma times the classifier's ratios. ``mask_id``: of masked tokens in its inputs."""

    classifier: Classifier = dataclasses.field(repr=False)
    gamma: float
    mask_id: int
    size: int
    ratios: Ratios = Taylor()
    guidance: Guidance = NoGuidance()

    def views(self, batch: Batch, progress: Progress) -> list[Batch]:
        return self.guidance.views(batch, progress)

    def merge(self, batch: Batch, predictions: list[Prediction], progress: Progress) -> Prediction:
        merged = self.guidance.merge(batch, predictions, progress)
        if not self.gamma or Kind.TEXT not in merged.scored or not len(at := merged.scored[Kind.TEXT].at):
            return merged
        ids_BL = batch.ids.masked_fill(batch.masked, self.mask_id)
        logits_NV, length = merged.logits(Kind.TEXT).float(), batch.ids.shape[1]
        scored_BL = torch.zeros_like(batch.masked).flatten().index_fill(0, at, True).view_as(batch.masked)
        parts = []
        for row, some in enumerate(logits_NV.split(scored_BL.sum(1).tolist())):
            text_L = (batch.kind[row] == Kind.TEXT) & batch.valid[row]
            if len(some):
                ratios = self.ratios(self.classifier, ids_BL[row, text_L], scored_BL[row, text_L], some, self.size)
                parts.append(some + self.gamma * ratios.to(some))
        assert length
        return merged.with_logits({Kind.TEXT: torch.cat(parts)})


class WordClassifier(nn.Module):
    """A two-layer classifier of the words of a text: log p(y | x), y being what it was trained to find.

    Inputs are one-hot or relaxed, [N, L, V]; the order of the words is not read.
    """

    def __init__(self, vocabulary: int, width: int = 32) -> None:
        super().__init__()
        self.embed = nn.Linear(vocabulary, width, bias=False)
        self.first, self.last = nn.Linear(width, width), nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.logsigmoid(self.logit(x))

    def logit(self, x: Tensor) -> Tensor:
        """log p / (1 - p), [N]."""
        return self.last(F.relu(self.first(self.embed(x).sum(1))))[:, 0]


def save_classifier(net: WordClassifier, folder: Path, mask_id: int) -> None:
    save_tensors({**net.state_dict(), "mask_id": torch.tensor([mask_id])}, folder, name=CLASSIFIER)


@functools.lru_cache(maxsize=4)
def read_classifier(folder: str) -> tuple[WordClassifier, int]:
    """The classifier of a folder and its mask id. CheckpointError for a missing or damaged file."""
    tensors = read_tensors(Path(folder), CLASSIFIER)
    mask_id = int(tensors.pop("mask_id")[0])
    width, vocabulary = tensors["embed.weight"].shape
    net = WordClassifier(vocabulary, width)
    net.load_state_dict(tensors)
    return net.eval().requires_grad_(False), mask_id


def save_policy(policy: Policy, folder: Path) -> None:
    save_tensors({"theta": policy.theta}, folder, name=POLICY)


def ctrldiff(base: Sampler, *, policy: str = "", classifier: str = "", gamma: float = 1.0, most: int = 0) -> Sampler:
    """Blocks as long as a policy says, and tokens steered by a classifier; without folders, lengths follow the certainty."""
    rule: LengthRule = Policy(theta=read_tensors(Path(policy), POLICY)["theta"]) if policy else Certainty()
    changed = dataclasses.replace(base, blocks=ChosenBlocks(rule=rule))
    if not classifier:
        return changed
    net, mask_id = read_classifier(classifier)
    ratios: Ratios = Exact(most=most) if most else Taylor()
    steered = Classified(
        classifier=net,
        gamma=gamma,
        mask_id=mask_id,
        size=net.embed.in_features,
        ratios=ratios,
        guidance=base.guidance,
    )
    return dataclasses.replace(changed, guidance=steered)


CARD = Card(
    title="CtrlDiff: Boosting Large Diffusion Language Models with Dynamic Block Prediction and Controllable Generation",
    paper="arXiv 2505.14455",
    year=2025,
    changes="block schedule: a policy picks the length of each block; guidance: a classifier tilts the tokens",
    claim="Dynamic block lengths bring block diffusion nearer to autoregressive models, and a classifier controls the text.",
    status="tiny-checked",
    figure="pairs of dependent words between fixed ones, 3 networks: the policy gets all right in 12 calls, blocks of 2 in 30, blocks of 4 "
    ".124 [.092, .156] in 16; the best certainty rule is as good as the policy. Guidance of strength 4: low texts from .50 to .997 "
    "[.986, 1.0], right pairs -.002 [-.009, .006]; 2.2 times the CPU time. Lists of scene objects were never right, at any length",
    parts={
        "blocks": (ChosenBlocks(rule=Certainty()), ChosenBlocks(rule=Policy(theta=torch.eye(4)), lengths=(1, 2, 3, 5))),
        "sampler": (
            Sampler(
                schedule=Equal(steps=2),
                token_sampler=Categorical(),
                selection=Confident(),
                blocks=ChosenBlocks(rule=Certainty(bound=0.7)),
            ),
        ),
    },
    sampler=("ctrldiff",),
)
