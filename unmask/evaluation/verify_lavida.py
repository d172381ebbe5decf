"""Numerical parity of LaViDa on LLaDA and on Dream: recompute the arrays of lavida_tiny and lavida_dream_tiny.

Public idea: ``LavidaReference(arrays, ..).reproduce(net) -> Arrays``: views and features of pictures, logits of text and of text behind a
picture, with and without the cached prompt, the loss, and every run of ``lavida_runs.py``. ``verify.py`` compares them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from unmask.checkpoints.store import CheckpointError
from unmask.evaluation.lavida_runs import DREAM_RUNS, LLADA_RUNS, Run
from unmask.evaluation.verify_dream import unshifted
from unmask.models.elastic import Elastic
from unmask.models.vision import Vision
from unmask.objectives.masked import Masked, complement
from unmask.sampling.schedule import Shift
from unmask.sequence import Batch, Kind, Sequence, Span, collate
from unmask.step import Reuse
from unmask.tokens.views import AnyRes, ImageViews

Arrays = dict[str, Tensor]
IMAGE, IGNORED = -200, -100  # of the released ids and labels
LAVIDA_INPUTS = frozenset(
    {"image_a.rgb", "image_b.rgb", "text.ids", "vqa.ids", "vqa.keep", "prefix.answer", "gen.prompt", "train.ids"}
    | {"train.labels", "train.mask"}
)
_COUNTS = ((16, 1 / 3, "0.333"), (16, 1, "1"), (16, 3, "3"), (32, 1 / 3, "0.333"), (32, 3, "3"), (8, 1 / 3, "0.333"))


@dataclass(frozen=True, kw_only=True)
class LavidaReference:
    """The arrays of expected.safetensors, and the sequences that they were measured on. ``end_id``: end of text, a target where it pads ·
    ``infill_id``: the marker at the end of a slot, never a target; -1 for none.
    """

    arrays: Arrays
    mask_id: int
    views: AnyRes
    end_id: int
    infill_id: int = -1

    @property
    def inputs(self) -> frozenset[str]:
        return LAVIDA_INPUTS | ({"infill.draft"} if "infill.draft" in self.arrays else frozenset())

    @torch.no_grad()
    def reproduce(self, net: Elastic) -> Arrays:
        """Our version of every output array."""
        plain, out = unshifted(net), dict[str, Tensor]()
        out |= self.pictures(net)
        out["text.logits"] = torch.stack([every_logit(plain, self._batch([row])) for row in self.arrays["text.ids"]])
        out |= self.behind_a_picture(plain) | self.training(net)
        runs = DREAM_RUNS if net.config.shifted else LLADA_RUNS
        for name, run in runs.items():
            if f"{name}.ids" in self.arrays:
                out |= self._run(net, name, run)
        if not net.config.shifted:
            for steps, shift, called in _COUNTS:
                counts = torch.tensor(Shift(steps=steps, shift=shift).counts(64), device=self.device)
                out[f"counts.{steps}_of_64.shift_{called}"] = counts
        return out

    @property
    def device(self) -> torch.device:
        return self.arrays["text.ids"].device

    def _image(self, which: str) -> Image.Image:
        return Image.fromarray(self.arrays[f"image_{which}.rgb"].cpu().numpy())

    def _tokens(self, net: Elastic, found: ImageViews) -> Tensor:
        return net.features(found.views.to(self.device, net.embed.weight.dtype))[found.rows.to(self.device)]

    def pictures(self, net: Elastic) -> Arrays:
        """Views as the tower reads them, its output, the reduced features, and the tokens of a single and of two pictures."""
        assert isinstance(net.vision, Vision)
        out: Arrays = {}
        for which in "ab":
            found = self.views(self._image(which))
            out[f"image_{which}.tiles"] = ((found.views - 0.5) / 0.5).to(self.device)
            out[f"image_{which}.tokens"] = self._tokens(net, found)
        pixels = self.views(self._image("b")).views.to(self.device, net.embed.weight.dtype)
        out["image_b.features"] = net.vision.tower(pixels).flatten(1, 2)
        out["image_b.pooled"] = net.vision.projected(pixels).flatten(1, 2)
        pair = [self.views.one_of_several(self._image(which)) for which in "ab"]
        out["pair.tiles"] = ((torch.cat([found.views for found in pair]) - 0.5) / 0.5).to(self.device)
        out["pair.tokens"] = torch.stack([self._tokens(net, found) for found in pair])
        return out

    def behind_a_picture(self, net: Elastic) -> Arrays:
        """Logits of a spliced prompt, and of an answer behind its cached keys and values."""
        vqa, keep = self.arrays["vqa.ids"][0], self.arrays["vqa.keep"]
        whole = self._batch([vqa])
        if (wanted := int(self.arrays["vqa.image_tokens"])) != (found := len(self.views(self._image("a")))):
            raise CheckpointError(
                f"image_a has {found} tokens, and measured {wanted}; does mm_spatial_pool_mode belong to these arrays?"
            )
        out = {"vqa.image_tokens": torch.tensor(found, device=self.device)}
        out["vqa.logits"] = every_logit(net, whole)[keep][None]
        answer = self.arrays["prefix.answer"][0]
        for name, prompt in (("prefix.logits", vqa), ("prefix.text_logits", self.arrays["text.ids"][0])):
            out[name] = _cached(net, self._batch([prompt], answer=answer, order=1))[None]
        return out

    def training(self, net: Elastic) -> Arrays:
        """Targets of the masked rows and of their complements, and the mean loss over both."""
        ids, labels = self.arrays["train.ids"], self.arrays["train.labels"]
        batch = self._batch(list(ids), image="b", masks=False)
        wanted = self._batch(list(torch.where(ids == IMAGE, IMAGE, labels)), image="b", masks=False).ids
        text = batch.kind == Kind.TEXT
        targets = text & ((wanted != IGNORED) | (batch.ids == self.end_id)) & (batch.ids != self.infill_id)
        weight = torch.ones_like(targets, dtype=torch.float)
        first = batch.replace(writable=targets, masked=targets & self.arrays["train.mask"], weight=weight)
        views = (first, complement(first))
        shown = [torch.where(view.masked, view.ids, IGNORED) for view in views]
        return {"train.targets": torch.cat(shown), "train.loss": Masked(complementary=True).of(net, *views).total}

    def _run(self, net: Elastic, name: str, run: Run) -> Arrays:
        prompt = self.arrays["vqa.ids" if run.image else "gen.prompt"][0]
        answer = torch.full((run.new,), self.mask_id, device=self.device)
        if run.drafted:
            draft = self.arrays["infill.draft"][0]
            answer[: len(draft)] = draft
        batch = self._batch([prompt], answer=answer, order=1 if run.cached else 0)
        return run.arrays(name, net, batch, self.mask_id)

    def _batch(
        self, rows: list[Tensor], *, answer: Tensor | None = None, order: int = 0, image: str = "a", masks: bool = True
    ) -> Batch:
        """Released ids, in which IMAGE stands for the tokens of a picture, and an answer behind them; MASK ids are masked."""
        made = []
        for ids in rows:
            row = _Row(views=self.views(self._image(image)), per_view=self.views.pooled * (self.views.pooled + 1))
            at = (ids == IMAGE).nonzero().flatten().tolist()
            row.text("prompt", ids[: at[0]] if at else ids)
            if at:
                row.picture()
                row.text("prompt", ids[at[0] + 1 :])
            if answer is not None:
                row.text("answer", answer, writable=True, order=order, order_step=len(answer) if order else 0)
            made.append(row.sequence(self.mask_id if masks else -1))
        return collate(made, [0] * len(made)).to(self.device)


class _Row:
    """Collects the spans of a row. ``per_view``: feature rows of a view."""

    def __init__(self, *, views: ImageViews, per_view: int) -> None:
        self.views, self.per_view, self.looks = views, per_view, False
        self.ids: list[Tensor] = []
        self.feature: list[Tensor] = []
        self.spans: list[Span] = []

    def text(self, name: str, ids: Tensor, **more: Any) -> None:
        self._add(name, Kind.TEXT, ids.cpu(), torch.zeros(len(ids), dtype=torch.long), **more)

    def picture(self) -> None:
        self.looks = True
        self._add("look", Kind.FEATURE, torch.zeros(len(self.views), dtype=torch.long), self.views.rows)

    def _add(self, name: str, kind: int, ids: Tensor, feature: Tensor, **more: Any) -> None:
        start = sum(len(x) for x in self.ids)
        if len(ids):
            self.spans.append(Span(name=name, kind=kind, start=start, stop=start + len(ids), **more))
        self.ids.append(ids)
        self.feature.append(feature)

    def sequence(self, mask_id: int) -> Sequence:
        ids = torch.cat(self.ids)
        views = self.views.views
        return Sequence(
            ids=ids,
            masked=ids == mask_id,
            spans=tuple(self.spans),
            pixels=views if self.looks else None,
            feature=torch.cat(self.feature) if self.looks else None,
            feature_rows=len(views) * self.per_view if self.looks else 0,
        )


def every_logit(net: Elastic, batch: Batch) -> Tensor:
    """Logits at every position of a batch of one row, pictures included, [L, V]: heads score text alone, so they read the last layer."""
    found: list[Tensor] = []

    def whole(module: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        return args, {**kwargs, "read": None}

    last = net.blocks[-1]
    hooks = [
        last.register_forward_pre_hook(whole, with_kwargs=True),
        last.register_forward_hook(lambda _, __, out: found.append(out[0])),
    ]
    try:
        net(batch, predict=batch.valid)
    finally:
        for hook in hooks:
            hook.remove()
    return net.text_head(net.norm(found[0]))[: batch.ids.shape[1]]


def _cached(net: Elastic, batch: Batch) -> Tensor:
    """Logits of the last span, computed alone behind the kept keys and values of what is before it, [answer, V]."""
    answer = torch.zeros_like(batch.valid)
    answer[0, batch.span_table[0][-1].start :] = True
    prompt, one = batch.valid & ~answer, torch.zeros_like(answer)
    one[0, 0] = True
    state = net(batch, predict=one, reuse=Reuse(compute=prompt, keep=prompt)).state
    return net(batch, predict=answer, reuse=Reuse(compute=answer, keep=answer, state=state)).logits(Kind.TEXT)
