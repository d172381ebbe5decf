"""Numerical parity of Dimple: recompute the arrays of dimple_tiny.

Public idea: ``DimpleReference(arrays, ..).reproduce(net) -> Arrays``: patches and features of pictures, positions in three axes, logits
with full and causal attention, losses, and every run of ``dimple_runs.py``. ``verify.py`` compares them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from unmask.evaluation.dimple_runs import DimpleRun, InOrders, Together, runs
from unmask.evaluation.verify_dream import Given, record, unshifted
from unmask.evaluation.verify_lavida import every_logit
from unmask.models.elastic import Elastic
from unmask.models.qwen_vision import QwenVision, patches_of
from unmask.objectives.masked import Masked, complement
from unmask.objectives.next_token import NextToken
from unmask.sampling.aligned import Aligned
from unmask.sampling.sampler import Sampler
from unmask.sampling.token_sampler import Probability
from unmask.sequence import Batch, Kind, Sequence, Span, collate
from unmask.tokens.whole_blocks import WholeBlocks

Arrays = dict[str, Tensor]
DIMPLE_INPUTS = frozenset(
    {
        "image_a.rgb",
        "image_b.rgb",
        "vqa.ids",
        "text.ids",
        "text.attention",
        "gen.prompt",
        "batch.prompt",
        "batch.attention",
    }
    | {"prior.positions", "prior.tokens", "dim.origin.orders", "dim.origin_ratio.uniforms"}
    | {"train.ids", "train.maskable", "train.t", "train.uniforms"}
)


@dataclass(frozen=True, kw_only=True)
class DimpleReference:
    """The arrays of expected.safetensors, and the sequences that they were measured on. ``image_id``: stands for a token of a picture."""

    arrays: Arrays
    mask_id: int
    image_id: int
    views: WholeBlocks

    @torch.no_grad()
    def reproduce(self, net: Elastic) -> Arrays:
        """Our version of every output array."""
        plain, out = unshifted(net), self.pictures(net)
        features = out["images.projected"]
        out |= self.texts(plain) | self.questions(plain, features) | self.training(net, features)
        for name, run in runs(self.mask_id):
            for cached in (False, True):
                batch = self._prompted(run, features)
                out |= self._run(net, f"{name}.cached" if cached else name, batch, run, cached)
        out |= self.random_orders(net) | self.batches(net)
        return out

    @property
    def device(self) -> torch.device:
        return self.arrays["text.ids"].device

    def pictures(self, net: Elastic) -> Arrays:
        """Normalised patches, their grids, and features before and after the projector."""
        assert isinstance(net.vision, QwenVision)
        config = net.vision.tower.config
        images = [Image.fromarray(self.arrays[f"image_{which}.rgb"].cpu().numpy()) for which in "ab"]
        pixels = [self.views(image).views[0].to(self.device) for image in images]
        grids = [[1, *(side // config.patch for side in one.shape[1:])] for one in pixels]
        features = torch.cat([net.vision.tower(one.to(net.embed.weight.dtype)) for one in pixels])
        return {
            "images.pixels": torch.cat([patches_of(one, config) for one in pixels]),
            "images.grid": torch.tensor(grids, device=self.device),
            "images.features": features,
            "images.projected": net.vision.project(features),
        }

    def texts(self, net: Elastic) -> Arrays:
        """Left-padded rows: ours begin with their first real token. Logits of padding are zero, its positions one."""
        ids, real = self.arrays["text.ids"], self.arrays["text.attention"].bool()
        logits = torch.zeros(*ids.shape, net.config.vocab_size, dtype=net.embed.weight.dtype, device=self.device)
        positions = torch.ones(3, *ids.shape, dtype=torch.long, device=self.device)
        for row in range(len(ids)):
            batch = self._batch([ids[row][real[row]]])
            logits[row, real[row]] = every_logit(net, batch)
            positions[:, row, real[row]] = _axes(batch)[:, 0]
        return {"text.logits": logits, "text.positions": positions}

    def questions(self, net: Elastic, features: Tensor) -> Arrays:
        """A prompt with both pictures: positions, and logits with full and with causal attention."""
        batch = self._batch([self.arrays["vqa.ids"][0]], features=features)
        positions, length = _axes(batch), batch.ids.shape[1]
        causal = batch.replace(order=torch.arange(length, device=self.device)[None])
        return {
            "vqa.positions": positions,
            "vqa.delta": (positions.max() + 1 - length).view(1, 1),
            "vqa.logits": every_logit(net, batch)[None],
            "vqa.causal_logits": every_logit(net, causal)[None],
        }

    def training(self, net: Elastic, features: Tensor) -> Arrays:
        """The losses of one mask, of a mask with its complement, and of the autoregressive stages."""
        ids, maskable = self.arrays["train.ids"], self.arrays["train.maskable"]
        batch = self._batch(list(ids), features=features, masks=False)
        drawn = self.arrays["train.uniforms"] < self.arrays["train.t"][:, None]
        weight = torch.ones_like(maskable, dtype=torch.float)
        noisy = batch.replace(writable=maskable, masked=maskable & drawn, weight=weight)
        loss, clean = Masked(), batch.replace(writable=maskable)
        return {
            "train.loss_single": loss.of(net, noisy).total,
            "train.loss_dual": loss.of(net, noisy, complement(noisy)).total,
            "train.loss_autoregressive": NextToken()(net, clean, torch.Generator()).total,
        }

    def random_orders(self, net: Elastic) -> Arrays:
        """The two random orders, with the measured random numbers."""
        orders = InOrders(orders=self.arrays["dim.origin.orders"])
        uniforms = Given(numbers=self.arrays["dim.origin_ratio.uniforms"])
        ways = {
            "dim.origin": Aligned(steps=8, threshold=0.7, selection=orders, unwritten=self.mask_id),
            "dim.origin_ratio": Aligned(steps=8, uniforms=uniforms, unwritten=self.mask_id),
        }
        out: Arrays = {}
        for name, selection in ways.items():
            run = DimpleRun(selection=selection, score=Probability())
            out |= self._run(net, name, self._prompted(run, None), run, False)
        return out

    def batches(self, net: Elastic) -> Arrays:
        """Two left-padded prompts in one batch, whose masked tokens are ranked together."""
        prompt, real = self.arrays["batch.prompt"], self.arrays["batch.attention"].bool()
        rows = [ids[there] for ids, there in zip(prompt, real, strict=True)]
        selection = Together(selection=Aligned(steps=6, unwritten=self.mask_id))
        run = DimpleRun(selection=selection, score=Probability(), new=12)
        batch, out = self._batch(rows, answer=self._masks(12)), dict[str, Tensor]()
        for cached in (False, True):
            out |= self._run(net, "batch.cached" if cached else "batch", batch, run, cached)
        return out

    def _masks(self, count: int) -> Tensor:
        return torch.full((count,), self.mask_id, device=self.device)

    def _prompted(self, run: DimpleRun, features: Tensor | None) -> Batch:
        answer = self._masks(run.new)
        if run.prompt == "prior":
            answer[self.arrays["prior.positions"]] = self.arrays["prior.tokens"]
        seen = features if run.prompt == "vqa" else None
        ids = self.arrays["vqa.ids" if run.prompt == "vqa" else "gen.prompt"][0]
        return self._batch([ids], features=seen, answer=answer)

    def _run(self, net: Elastic, name: str, batch: Batch, run: DimpleRun, cached: bool) -> Arrays:
        """The answer of a run, and its logits at the first two steps where they were measured."""
        sampler, own = run.sampler(cached=cached), dict[str, Tensor]()
        answers = torch.stack(
            [torch.arange(run.new, device=self.device) + table[-1].start for table in batch.span_table]
        )
        if f"{name}.logits0" in self.arrays:
            own = _first_logits(net, name, batch, sampler, cached)
        found = record(net, batch, sampler, self.mask_id)
        return own | {
            f"{name}.ids": found.ids.gather(1, answers),
            f"{name}.steps": found.steps.gather(1, answers),
            f"{name}.nfe": torch.tensor(len(found.left), device=self.device),
            f"{name}.masks_left": torch.tensor(found.left, device=self.device),
        }

    def _batch(
        self, rows: list[Tensor], *, features: Tensor | None = None, answer: Tensor | None = None, masks: bool = True
    ) -> Batch:
        """Rows of released ids, in which ``image_id`` reads the features in order, and an answer behind them; MASK ids are masked."""
        made = [self._row(ids, features, answer, self.mask_id if masks else -1) for ids in rows]
        return collate(made, [0] * len(made)).to(self.device)

    def _row(self, ids: Tensor, features: Tensor | None, answer: Tensor | None, mask_id: int) -> Sequence:
        whole = ids if answer is None else torch.cat([ids, answer])
        spans, feature = list[Span](), torch.zeros(len(whole), dtype=torch.long)
        grids = iter(self._grids())
        at, seen = 0, 0
        while at < len(ids):
            shown = features is not None and bool(ids[at] == self.image_id)
            if shown:
                grid = next(grids)
                stop = at + grid[0] * grid[1]
                feature[at:stop] = torch.arange(seen, seen + stop - at)
                seen += stop - at
                spans.append(Span(name="look", kind=Kind.FEATURE, start=at, stop=stop, grid=grid))
            else:
                later = (ids[at:] == self.image_id).nonzero().flatten() if features is not None else ids[:0]
                stop = at + int(later[0]) if len(later) else len(ids)
                spans.append(Span(name="prompt", kind=Kind.TEXT, start=at, stop=stop))
            at = stop
        if answer is not None:
            spans.append(Span(name="answer", kind=Kind.TEXT, start=at, stop=len(whole), writable=True))
        known = {} if features is None else {"features": features.cpu(), "feature": feature}
        return Sequence(ids=whole.cpu(), masked=(whole == mask_id).cpu(), spans=tuple(spans), **known)  # type: ignore[arg-type]

    def _grids(self) -> list[tuple[int, int]]:
        images = [Image.fromarray(self.arrays[f"image_{which}.rgb"].cpu().numpy()) for which in "ab"]
        return [grid for image in images if (grid := self.views(image).grid)]


def _axes(batch: Batch) -> Tensor:
    """Time, row and column of every position, [3, B, L]."""
    if batch.axes is None:
        return batch.position.expand(3, -1, -1)
    return torch.stack([batch.position, *batch.axes.unbind(2)])


def _first_logits(net: Elastic, name: str, batch: Batch, sampler: Sampler, cached: bool) -> Arrays:
    """Shifted logits of the last token of the prompt and of the answer, at the first two steps. From the second on, the released code feeds
    only these tokens where it keeps the prompt, and takes the first logits twice.
    """
    run, out = sampler.start(batch), dict[str, Tensor]()
    answer = batch.span_table[0][-1].start
    for step in (0, 1):
        query = run.query
        assert query is not None
        alone = cached and step > 0
        wanted = torch.zeros_like(batch.valid)
        wanted[0, answer if alone else answer - 1 :] = True
        logits = net(query.batch, predict=wanted, reuse=query.reuse).logits(Kind.TEXT)
        out[f"{name}.logits{step}"] = (torch.cat([logits[:1], logits]) if alone else logits)[None]
        run.advance(net(query.batch, predict=query.predict, reuse=query.reuse))
    return out
