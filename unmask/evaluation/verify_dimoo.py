"""Numerical parity of Lumina-DiMOO: recompute the arrays of lumina_dimoo_tiny.

Public idea: ``dimoo_arrays(folder, arrays, net, vq) -> Arrays``: text, understanding, drawings, edits, in- and outpainting, ML-Cache and
losses. Rows are rebuilt from their prompts by the functions that serve users. Texts are those of the released loop, which may write image
codes and the mask (``verify_runs.PublishedText``). ``verify.py`` compares.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from unmask.checkpoints.lumina_dimoo import read_text
from unmask.checkpoints.schema import read_json
from unmask.evaluation.verify_rows import masked_rows, scored_rows, text_ids
from unmask.evaluation.verify_runs import (
    GivenCodes,
    GivenNoise,
    Measured,
    PublishedText,
    Trace,
    complete,
    prompts_of,
    record,
)
from unmask.models.elastic import Elastic
from unmask.objectives.masked import Masked, Pooled
from unmask.sampling.lumina_dimoo import dimoo_edit, dimoo_image
from unmask.sampling.ml_cache import MLCache
from unmask.sampling.sampler import Sampler
from unmask.sampling.selection import Confident
from unmask.sampling.token_sampler import Greedy
from unmask.sequence import Kind, Sequence, collate
from unmask.tokens.build import Builder
from unmask.tokens.lumina_dimoo import (
    ANSWER,
    END_IMAGE,
    IMAGE,
    LINE,
    NULL,
    NULL_IMAGE,
    NULL_TEXT,
    PADDING,
    UNCONDITION,
    Request,
    broken_lines,
    covered,
    drawing,
    editing,
    lines,
    prompt_of,
    understanding,
)
from unmask.tokens.prompts import RELEASED
from unmask.tokens.text import END_ANSWER, MASK
from unmask.tokens.vq import VQ

Arrays = dict[str, Tensor]
TOKENS = {
    **{"mask": MASK, "newline": LINE, "boi": IMAGE, "eoi": END_IMAGE, "boa": ANSWER, "eoa": END_ANSWER},
    "uncondition": UNCONDITION,
}
DIMOO_INPUTS = frozenset(
    {"vq.image", "t2i.ids", "edit.ids", "style.ids", "noisy.uniform", "noisy.gumbel", "paint.ratios"}
    | {"sample.steps", "sample.guidance", "edit_sample.guidance", "edit_sample.image_guidance"}
    | {f"cache.{n}" for n in ("steps", "ratio", "warmup", "interval")}
    | {f"block.{n}" for n in ("length", "block", "steps", "guidance")}
    | {f"loss.{task}_{n}" for task in ("t2i", "edit", "und", "batch") for n in ("ids", "labels")}
)


def dimoo_arrays(folder: Path, arrays: Arrays, net: Elastic, vq: VQ) -> Arrays:
    """Our version of every output array. CheckpointError for a file without its prompts or an array."""
    text = read_text(folder, read_json(folder / "config.json"))
    net.mask_id = text[MASK]
    reference = DiMOOReference(arrays=arrays, prompts=prompts_of(folder), text=text)
    with complete(folder):
        return reference.reproduce(net, vq)


class DiMOOReference(Measured):
    @torch.no_grad()
    def reproduce(self, net: Elastic, vq: VQ) -> Arrays:
        """Our version of every output array."""
        return {
            **{f"ids.{name}": torch.tensor(self.text[token]) for name, token in TOKENS.items()},
            "ids.pad": torch.tensor(self.text.tokenizer.token_to_id(PADDING)),
            "ids.code_offset": torch.tensor(net.config.first_code),
            **self.tokenized(vq),
            **self.read(net),
            **self.sampled(net),
            **self.painted(net, vq.config.factor),
            **self.edited(net),
            **self.cached(net),
            **self.texts(net),
            **self.losses(net),
        }

    def tokenized(self, vq: VQ) -> Arrays:
        """A picture's latents and codes, what the measured codes decode to (not clipped), and the picture as tokens."""
        latents = vq.latents(self.arrays["vq.image"])
        codes, measured = vq.encode(self.arrays["vq.image"]), self._picture().to(latents.device)
        decoded = vq.from_latents(vq.quantize.embedding(measured[None]).permute(0, 3, 1, 2))
        row = lines(self._builder(), self._picture(), "source").build()
        ids = torch.where(_is_code(row), row.ids + self._first(), row.ids)
        out = {"vq.latents": latents, "vq.codes": codes.flatten(1), "vq.decoded": decoded, "vq.row": ids[None]}
        return out | {"grid": torch.tensor(self._picture().shape)}

    def read(self, net: Elastic) -> Arrays:
        """Rows of every kind of request from their prompts: logits over the whole vocabulary, and what the head reads."""
        masks = {name: int((self.arrays[f"{name}.ids"][0] == net.mask_id).sum()) for name in ("text", "und")}
        chats = [understanding(self._builder(), self._said(p), (), masks["text"]) for p in self._strings("text")]
        look = understanding(self._builder(), self._said("und"), [self._picture()], masks["und"])
        hidden, logits = scored_rows(net, chats)
        drawn = self._partly(drawing(self._builder(), self._said("t2i"), self._grid), "t2i", net)
        edit = self._partly(editing(self._builder(), self._said("edit"), [self._picture()], self._grid), "edit", net)
        content = self._content()
        style = editing(self._builder(), self._said("edit"), [content, self._picture()], self._grid)
        answer = len(style.ids) - style.span("assistant").start
        codes = slice(net.config.first_code, net.config.first_code + net.config.codes)
        return {
            "text.ids": torch.stack([text_ids(net, row) for row in chats]),
            "text.hidden": hidden,
            "text.logits": logits,
            "und.ids": text_ids(net, look)[None],
            "und.logits": scored_rows(net, [look])[1],
            "t2i.logits": scored_rows(net, [drawn])[1],
            "edit.logits": scored_rows(net, [edit])[1],
            "style.logits": scored_rows(net, [style])[1][:, -answer:, codes],
        }

    def sampled(self, net: Elastic) -> Arrays:
        """Drawings by the published sampler: greedy, without guidance, and with given noise."""
        row, steps = drawing(self._builder(), self._said("t2i"), self._grid), int(self.arrays["sample.steps"])
        greedy = self._greedy(steps)
        drawn = self._run(net, row, greedy)
        plain = self._run(net, row, replace(greedy, guidance=replace(greedy.guidance, scale=0.0)))  # type: ignore[type-var]
        noise = GivenNoise(gumbel=self.arrays["noisy.gumbel"], temperature=lambda p: torch.ones_like(p.fraction))
        given = GivenCodes(uniform=self.arrays["noisy.uniform"])
        hot = self._run(net, row, replace(greedy, token_sampler=given, selection=noise))
        own = text_ids(net, row)[len(row.span(NULL)) :]
        begin = next(i for i, s in enumerate(row.spans) if s.name == "image")
        return {
            "sample.ids": own[None],
            "sample.null_ids": torch.tensor([prompt_of(self._builder(), self._said("t2i"), null=True)]),
            "sample.code_start": torch.tensor(row.spans[begin].start - len(row.span(NULL))),
            "sample.first_logits": drawn.merged[0].logits(Kind.CODE)[None],
            "sample.codes": _codes(drawn),
            "sample.order": _order(drawn),
            "sample.counts": torch.bincount(_order(drawn)[0], minlength=steps),
            "sample.masked_after": drawn.masked_after,
            "sample.codes_unguided": _codes(plain),
            "sample.order_unguided": _order(plain),
            "noisy.codes": _codes(hot),
            "noisy.order": _order(hot),
        }

    def painted(self, net: Elastic, factor: int) -> Arrays:
        """A hole in a picture, and all around it, drawn anew."""
        ratios = self.arrays["paint.ratios"].tolist()
        share = covered(self._grid, factor, (ratios[0], ratios[1]))
        out: Arrays = {}
        for name, masked in (("inpainting", share > 0.5), ("outpainting", share < 0.5)):
            row = _with_codes(drawing(self._builder(), self._said("t2i"), self._picture()), masked)
            done = self._run(net, row, self._greedy(int(self.arrays["sample.steps"])))
            out[f"{name}.ids"] = text_ids(net, row)[len(row.span(NULL)) :][None]
            out |= {f"{name}.codes": _codes(done), f"{name}.order": _order(done)}
        return out

    def edited(self, net: Elastic) -> Arrays:
        """A picture edited with three streams."""
        row = editing(self._builder(), self._said("edit"), [self._picture()], self._grid)
        scales = {"scale": "guidance", "image_scale": "image_guidance"}
        given = {name: float(self.arrays[f"edit_sample.{array}"]) for name, array in scales.items()}
        sampler = dimoo_edit(steps=int(self.arrays["sample.steps"]), **given)
        done = self._run(net, row, replace(sampler, token_sampler=Greedy(), selection=Confident()))
        ids, aside = text_ids(net, row), {n: _places(row, n) for n in (NULL_TEXT, NULL_IMAGE)}
        first = sum(map(len, aside.values()))
        start = next(s.start for s in row.spans if s.name == "image")
        return {
            "edit_sample.ids": ids[first:][None],
            "edit_sample.null_text": ids[aside[NULL_TEXT]][None],
            "edit_sample.null_image": ids[aside[NULL_IMAGE]][None],
            "edit_sample.code_start": torch.tensor(start - first),
            "edit_sample.codes": _codes(done),
            "edit_sample.order": _order(done),
        }

    def cached(self, net: Elastic) -> Arrays:
        """A drawing with ML-Cache, the places that each step computes, and the same without."""
        steps, row = int(self.arrays["cache.steps"]), drawing(self._builder(), self._said("t2i"), self._grid)
        ratio, warmup = (float(self.arrays[f"cache.{n}"]) for n in ("ratio", "warmup"))
        first = net.config.first_code
        cache = MLCache(
            ratio=ratio,
            warmup=warmup,
            interval=int(self.arrays["cache.interval"]),
            codes=(first, first + net.config.codes),
        )
        seen = self._run(net, row, replace(self._greedy(steps), cache=cache))
        off = self._run(net, row, self._greedy(steps))
        at = _places(row, "image")
        return {
            "cache.codes": seen.batch.ids[:, at],
            "cache.order": seen.order[at][None],
            "cache.computed": _computed(seen, 0),
            "cache.computed_null": _computed(seen, 1),
            "cache.codes_off": _codes(off),
            "cache.order_off": _order(off),
        }

    def texts(self, net: Elastic) -> Arrays:
        """Texts block by block, with and without guidance, behind a picture, and behind one with lines broken twice."""
        length, block, steps = (int(self.arrays[f"block.{n}"]) for n in ("length", "block", "steps"))
        each = PublishedText(block=block, steps=steps // (length // block))
        chat = understanding(self._builder(), self._said(self._strings("text")[0]), (), length)
        look = understanding(self._builder(), self._said("und"), [self._picture()], length)
        quirk, scale, out = self._broken(length), float(self.arrays["block.guidance"]), {}
        cases = (("block.{}", chat, 0.0), ("block.{}_guided", chat, scale), ("und_block.{}", look, 0.0))
        for name, row, g in (*cases, ("und_quirk.{}", quirk, 0.0)):
            ids, order = each.run(net, row, scale=g, device=self._device)
            whole, span = text_ids(net, row).to(ids.device), row.span("answer")
            if not g:
                out[name.format("ids")] = whole[: span.start - 1][None].clone()
            whole[span.start : span.stop] = ids
            out |= {name.format("out"): whole[None], name.format("order"): order[None]}
        return out

    def losses(self, net: Elastic) -> Arrays:
        """The mean over all labels, of each kind of row alone and of all of them padded with id 0, which is read."""
        out = {}
        for task in ("t2i", "edit", "und"):
            noisy = masked_rows(self.arrays[f"loss.{task}_ids"], self.arrays[f"loss.{task}_labels"], net.mask_id)
            out[f"loss.{task}"] = Masked().of(net, noisy).total
        ids, labels = self.arrays["loss.batch_ids"], self.arrays["loss.batch_labels"]
        rows = [masked_rows(i[None], own[None], net.mask_id) for i, own in zip(ids, labels, strict=True)]
        return out | {"loss.batch": Pooled(objectives=(("all", Masked()),)).of(net, *rows).total}

    def _builder(self) -> Builder:
        return Builder(text=self.text, wording=RELEASED, look_tokens=0)

    @property
    def _device(self) -> torch.device:
        return self.arrays["vq.image"].device

    @property
    def _grid(self) -> tuple[int, int]:
        rows, columns = self.arrays["grid"].tolist()
        return rows, columns

    def _first(self) -> int:
        return self.text.size

    def _picture(self) -> Tensor:
        return self.arrays["vq.codes"].view(self._grid).cpu()

    def _strings(self, name: str) -> list[str]:
        found = self.prompts[name]
        assert isinstance(found, list)
        return found

    def _said(self, prompt: str) -> Request:
        """A prompt of the file by its name, or as it is."""
        return Request(system=str(self.prompts["system"]), text=str(self.prompts.get(prompt, prompt)))

    def _partly(self, row: Sequence, name: str, net: Elastic) -> Sequence:
        """The row with the codes of ``name``.ids, some of them masked."""
        at, ids = _places(row, "image"), self.arrays[f"{name}.ids"][0].cpu()
        given = ids[at - (len(row.ids) - len(ids))]
        masked = given == net.mask_id
        whole = row.ids.index_put((at,), (given - net.config.first_code).masked_fill(masked, 0))
        return replace(row, ids=whole, masked=torch.zeros_like(row.masked).index_put((at,), masked))

    def _content(self) -> Tensor:
        """The first picture of ``style.ids``, of any grid: each line of its codes ends in a token."""
        ids = self.arrays["style.ids"][0].cpu()
        start, stop = (int((ids == self.text[name]).nonzero()[0]) for name in (IMAGE, END_IMAGE))
        codes = ids[start + 1 : stop]
        columns = int((codes == self.text[LINE]).nonzero()[0])
        return codes.view(-1, columns + 1)[:, :-1] - self._first()

    def _broken(self, length: int) -> Sequence:
        b, edges = self._builder(), (self.text[IMAGE], self.text[LINE], self.text[END_IMAGE])
        *ids, last = prompt_of(b, self._said("und"))
        b.say("prompt", *ids, *broken_lines(self._picture(), edges, self._first()), last)
        return b.say("assistant", self.text[ANSWER]).write("answer", length).say("end", self.text[END_ANSWER]).build()

    def _greedy(self, steps: int) -> Sampler:
        sampler = dimoo_image(steps=steps, scale=float(self.arrays["sample.guidance"]))
        return replace(sampler, token_sampler=Greedy(), selection=Confident())

    def _run(self, net: Elastic, row: Sequence, sampler: Sampler) -> Trace:
        return record(net, row, sampler, self._device)


def _is_code(row: Sequence) -> Tensor:
    return collate([row], [0]).kind[0] == Kind.CODE


def _places(row: Sequence, name: str) -> Tensor:
    """The token numbers of the spans of a name; of the codes alone where it is a picture that is drawn."""
    return torch.cat([torch.arange(s.start, s.stop) for s in row.spans if s.name == name])


def _with_codes(row: Sequence, masked: Tensor) -> Sequence:
    """The drawing of given codes, some of them masked, [h, w]."""
    at = _places(row, "image")
    return replace(row, masked=torch.zeros_like(row.masked).index_put((at,), masked.flatten()))


def _computed(seen: Trace, view: int) -> Tensor:
    """The places of a view that each step computes, [S, row]."""
    rows = [q.reuse.compute[view][q.batch.valid[view]] for q in seen.queries if q.reuse is not None]
    return torch.stack(rows)


def _codes(trace: Trace) -> Tensor:
    return trace.of("image", trace.batch.ids[0])[None]


def _order(trace: Trace) -> Tensor:
    return trace.of("image", trace.order)[None]
