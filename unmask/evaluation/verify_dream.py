"""Numerical parity of Dream: recompute the arrays of dream_tiny.

Public idea: ``DreamReference(arrays, mask_id=..).reproduce(net) -> Arrays``: logits, padded rows, every published order with its steps and
forwards, the caches of Fast-dLLM, likelihood and loss, each by the parts that serve users. ``verify.py`` compares them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from unmask.models.elastic import Elastic
from unmask.models.unfilled import unfilled
from unmask.objectives.masked import InverseTime, Masked
from unmask.protocols import Cache, Selection
from unmask.sampling.blocks import Blocks
from unmask.sampling.cache import BlockCache, CroppedCache
from unmask.sampling.reverse_time import Independent, LeftmostFirst, OnGrid, Postponing
from unmask.sampling.sampler import Sampler, Step
from unmask.sampling.schedule import Fixed
from unmask.sampling.selection import Threshold
from unmask.sampling.token_sampler import Entropy, LogProbability, Margin, Probability, Score, Truncated
from unmask.sequence import Batch, Kind, Sequence, Span, collate

Arrays = dict[str, Tensor]
DREAM_INPUTS = frozenset(
    {"text.ids", "padded.ids", "padded.attention", "gen.prompt", "infill.prompt", "batch.prompt", "batch.attention"}
    | {
        "gen.hook.end",
        "gen.origin.uniforms",
        "nll.prefix",
        "nll.target",
        "nll.mask",
        "nll.p",
        "train.ids",
        "train.mask",
    }
)
_PLAIN_TOP_K = 50  # in effect in a plain call of the released code (spec 4.1)
_AT_ONCE = Fixed(each=2**31)  # the selection says how many


@dataclass(frozen=True, kw_only=True)
class Case:
    """One measured run. ``new``: masked tokens behind the prompt · ``steps`` and ``eps`` of the time grid."""

    new: int
    steps: int
    score: Score
    eps: float = 1e-3
    top_p: float = 1.0
    top_k: int = 0
    selection: Selection | None = None

    def sampler(self, mask_id: int) -> Sampler:
        grid = OnGrid(steps=self.steps, eps=self.eps, unwritten=mask_id)
        return Sampler(
            schedule=_AT_ONCE,
            token_sampler=Truncated(top_p=self.top_p, top_k=self.top_k, score=self.score),
            selection=self.selection or grid,
        )


def _cases() -> Iterator[tuple[str, Case]]:
    scores: dict[str, Score] = {"maskgit_plus": Probability(), "topk_margin": Margin(), "entropy": Entropy()}
    for name, score in scores.items():
        yield f"gen.{name}", Case(new=16, steps=16, score=score)
        yield f"gen.{name}.steps6", Case(new=16, steps=6, score=score)
    p, e = scores["maskgit_plus"], scores["entropy"]
    yield "gen.entropy.steps40", Case(new=16, steps=40, score=e)
    yield "gen.eps", Case(new=16, steps=8, score=p, eps=0.05)
    yield "gen.top_p", Case(new=16, steps=8, score=e, top_p=0.7)
    yield "gen.top_k", Case(new=16, steps=8, score=p, top_k=3)
    for name, steps, threshold in (("0.9", 8, 0.9), ("0.3", 8, 0.3), ("0.3.steps16", 16, 0.3)):
        postponing = Postponing(steps=steps, threshold=threshold)
        yield f"gen.threshold_{name}", Case(new=16, steps=steps, score=p, selection=postponing)
    yield "gen.readme", Case(new=24, steps=8, score=e, top_p=0.95, top_k=_PLAIN_TOP_K)
    yield "gen.plain", Case(new=24, steps=12, score=p, top_k=_PLAIN_TOP_K)
    yield "gen.plain_entropy", Case(new=24, steps=12, score=e, top_k=_PLAIN_TOP_K)


@dataclass(frozen=True, kw_only=True)
class Record:
    """A finished run. ``steps [B, L]``: 0-based step that wrote each token, -1 for given ones and for MASK · ``left``: MASK tokens after
    each step.
    """

    ids: Tensor
    steps: Tensor
    left: list[int]

    def arrays(self, name: str, kept: Tensor | slice = slice(None)) -> Arrays:
        """By the names of the measured arrays; ``kept``: columns."""
        device = self.ids.device
        return {
            f"{name}.ids": self.ids[:, kept],
            f"{name}.steps": self.steps[:, kept],
            f"{name}.nfe": torch.tensor(len(self.left), device=device),
            f"{name}.masks_left": torch.tensor(self.left, device=device),
        }


def record(net: Elastic, batch: Batch, sampler: Sampler, mask_id: int, forwards: int = 0) -> Record:
    """Run a sampler and note when each token was written. A token for which MASK was written counts as masked.

    ``forwards``: those that the released code computes at least. It goes on when nothing is masked, which we do not; they change nothing.
    """
    steps, left = torch.full_like(batch.ids, -1), list[int]()
    masked = batch.masked

    def note(step: Step) -> None:
        nonlocal masked
        now = step.batch
        steps[masked & ~now.masked & (now.ids != mask_id)] = step.number - 1
        left.append(int(((now.masked | (now.ids == mask_id)) & now.valid).sum()))
        masked = now.masked

    done = sampler.sample(net, batch, on_step=note)
    return Record(ids=done.ids, steps=steps, left=left + left[-1:] * (forwards - len(left)))


def as_long(ours: Arrays, measured: Arrays) -> Arrays:
    """Numbers of steps that differ make lists of different length; ours are cut, or filled with -1, to be compared."""
    out = dict(ours)
    for name, array in ours.items():
        if name.endswith(".masks_left") and name in measured:
            missing = len(measured[name]) - len(array)
            out[name] = torch.nn.functional.pad(array, (0, missing), value=-1)
    return out


@dataclass(frozen=True, kw_only=True)
class DreamReference:
    """The arrays of expected.safetensors, and the sequences that they were measured on."""

    arrays: Arrays
    mask_id: int

    @torch.no_grad()
    def reproduce(self, net: Elastic) -> Arrays:
        """Our version of every output array."""
        plain = unshifted(net)
        return {
            "text.logits": _every(plain, self._rows(self.arrays["text.ids"])),
            "padded.logits": self.padded(plain),
            **self.runs(net),
            **self.batches(net),
            **self.fast(net),
            "nll.value": self.likelihood(net),
            "train.loss": self.loss(net),
        }

    def padded(self, net: Elastic) -> Tensor:
        """Logits of left-padded rows; those of padding are zero. Positions are relative, so our rows begin with their first real token."""
        ids, real = self.arrays["padded.ids"], self.arrays["padded.attention"].bool()
        out = torch.zeros(*ids.shape, net.config.vocab_size, dtype=net.embed.weight.dtype, device=ids.device)
        for row in range(len(ids)):
            out[row, real[row]] = _every(net, self._rows(ids[row][real[row]][None]))[0]
        return out

    def runs(self, net: Elastic) -> Arrays:
        """Every order, schedule and threshold for one prompt."""
        out: Arrays = {}
        for name, case in _cases():
            out |= self._run(net, self.arrays["gen.prompt"], case).arrays(name)
        infill = Case(new=4, steps=10, score=Margin())
        out |= self._run(net, self.arrays["infill.prompt"], infill).arrays("infill")
        origin = Independent(
            steps=8, unwritten=self.mask_id, uniforms=Given(numbers=self.arrays["gen.origin.uniforms"])
        )
        case = Case(new=16, steps=8, score=Probability(), selection=origin)
        out |= self._run(net, self.arrays["gen.prompt"], case).arrays("gen.origin")
        return out | self._hooked(net).arrays("gen.hook")

    def _hooked(self, net: Elastic) -> Record:
        """The last tokens are given, as the released code's hook overwrites them before and after every step."""
        end, case = self.arrays["gen.hook.end"], Case(new=16, steps=12, score=Entropy())
        ids = self._with_masks(self.arrays["gen.prompt"], case.new)
        ids[:, -len(end) :] = end
        return record(net, self._rows(ids), case.sampler(self.mask_id), self.mask_id)

    def batches(self, net: Elastic) -> Arrays:
        """Two left-padded prompts in one batch."""
        prompt, real = self.arrays["batch.prompt"], self.arrays["batch.attention"].bool()
        cases = {
            "batch": Case(new=12, steps=6, score=Entropy()),
            "batch.origin_free": Case(new=12, steps=12, score=Probability()),
        }
        out: Arrays = {}
        for name, case in cases.items():
            rows = [self._with_masks(row[there][None], case.new)[0] for row, there in zip(prompt, real, strict=True)]
            done = record(net, self._batch(rows), case.sampler(self.mask_id), self.mask_id)
            ids = self._with_masks(prompt, case.new)
            steps = torch.full_like(ids, -1)
            for number, row in enumerate(rows):
                ids[number, -len(row) :] = done.ids[number, : len(row)]
                steps[number, -len(row) :] = done.steps[number, : len(row)]
            out |= replace(done, ids=ids, steps=steps).arrays(name)
        return {key: array for key, array in out.items() if key in self.arrays}

    def fast(self, net: Elastic) -> Arrays:
        """The two caches of Fast-dLLM: 24 tokens in blocks of 8."""
        caches: dict[str, Cache] = {"prefix": CroppedCache(), "dual": BlockCache()}
        ways: dict[str, tuple[Score, Selection]] = {
            "threshold_03": (LogProbability(), Threshold(value=0.3)),
            "threshold_09": (LogProbability(), Threshold(value=0.9)),
            "entropy": (Entropy(), OnGrid(steps=8, unwritten=self.mask_id)),
            "entropy12": (Entropy(), OnGrid(steps=4, unwritten=self.mask_id)),
        }
        prompt, out = self.arrays["gen.prompt"], dict[str, Tensor]()
        for cached, cache in caches.items():
            for way, (score, selection) in ways.items():
                sampler = replace(
                    Case(new=24, steps=1, score=score, selection=LeftmostFirst(selection=selection)).sampler(0),
                    blocks=Blocks(length=8),
                    cache=cache,
                )
                batch = self._batch([self._with_masks(prompt, 24)[0]], prompt=prompt.shape[1])
                found = record(net, batch, sampler, self.mask_id)
                arrays = found.arrays(f"fast.{cached}.{way}", slice(prompt.shape[1], None))
                out |= {key: array for key, array in arrays.items() if key in self.arrays}
        return out

    def likelihood(self, net: Elastic) -> Tensor:
        """The sampled bound of -ln p(target | prefix): the mean over rows of sum(cross-entropy / probability of being masked)."""
        whole = torch.cat([self.arrays["nll.prefix"], self.arrays["nll.target"]])
        masked, p = self.arrays["nll.mask"], self.arrays["nll.p"]
        batch = self._rows(whole.expand_as(masked)).replace(masked=masked)
        weight = p[:, None].expand_as(masked).clone()
        loss = Masked(weight=InverseTime()).of(net, batch.replace(weight=weight))
        return loss.total * int((batch.writable & batch.valid).sum()) / len(masked)

    def loss(self, net: Elastic) -> Tensor:
        """The mean cross-entropy of the masked tokens, each predicted by the position before it."""
        masked = self.arrays["train.mask"]
        weight = torch.ones_like(masked, dtype=torch.float)
        return Masked().of(net, self._rows(self.arrays["train.ids"]).replace(masked=masked, weight=weight)).total

    def _run(self, net: Elastic, prompt: Tensor, case: Case) -> Record:
        batch = self._rows(self._with_masks(prompt, case.new))
        return record(net, batch, case.sampler(self.mask_id), self.mask_id, case.steps)

    def _with_masks(self, prompt: Tensor, new: int) -> Tensor:
        return torch.cat([prompt, prompt.new_full((len(prompt), new), self.mask_id)], dim=1)

    def _rows(self, ids: Tensor) -> Batch:
        return self._batch(list(ids))

    def _batch(self, rows: list[Tensor], prompt: int = 0) -> Batch:
        """Rows of one writable span behind ``prompt`` given tokens; MASK ids are masked."""
        sequences = []
        for ids in rows:
            spans = [Span(name="prompt", kind=Kind.TEXT, start=0, stop=prompt)] if prompt else []
            spans.append(Span(name="answer", kind=Kind.TEXT, start=prompt, stop=len(ids), writable=True))
            sequences.append(Sequence(ids=ids.cpu(), masked=(ids == self.mask_id).cpu(), spans=tuple(spans)))
        return collate(sequences, [0] * len(rows)).to(self.arrays["text.ids"].device)


def unshifted(net: Elastic) -> Elastic:
    """The same weights with every logit at its own position, as the released classes return them."""
    with unfilled():
        twin = Elastic(replace(net.config, shifted=False), mask_id=net.mask_id)
    twin.load_state_dict(net.state_dict(), assign=True)
    return twin.eval()


def _every(net: Elastic, batch: Batch) -> Tensor:
    """Logits of every position, [B, L, V]."""
    return net(batch, predict=batch.valid).logits(Kind.TEXT).unflatten(0, batch.ids.shape)


@dataclass(kw_only=True)
class Given:
    """Measured uniform numbers, one for every masked token, step after step."""

    numbers: Tensor
    at: int = 0

    def __call__(self, batch: Batch, block: Tensor) -> Tensor:
        count = int(block.sum())
        found = torch.ones(block.shape, device=block.device)
        found[block] = self.numbers[self.at : self.at + count].to(block.device)
        self.at += count
        return found
