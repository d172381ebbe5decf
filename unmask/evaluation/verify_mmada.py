"""Numerical parity of MMaDA: recompute the arrays of mmada_tiny.

Public idea: ``mmada_arrays(folder, arrays, net, vq) -> Arrays``: text, understanding, drawings, infilling and losses. Rows are rebuilt from
their prompts by the functions that serve users, and drawn by their samplers. Texts are those of the released loop, which may write image
codes and the mask (``verify_runs.PublishedText``). ``verify.py`` compares.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from unmask.checkpoints.mmada import read_text
from unmask.checkpoints.schema import read_json
from unmask.evaluation.verify_parallel import parallel
from unmask.evaluation.verify_rows import encoded, masked_rows, scored_rows, text_batch, text_ids
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
from unmask.models.padding import WeightedPadding
from unmask.objectives.clipped import clipped_loss
from unmask.objectives.cross_entropy import cross_entropy
from unmask.objectives.importance import EachRow
from unmask.objectives.masked import InverseTime, Masked
from unmask.sampling.cooling import Cooling
from unmask.sampling.kept import linear
from unmask.sampling.mmada import mmada_image
from unmask.sampling.sampler import Sampler
from unmask.sampling.selection import Confident
from unmask.sampling.token_sampler import Greedy
from unmask.sequence import Batch, Kind, Sequence, collate
from unmask.tokens.build import Builder
from unmask.tokens.magvit import Magvit
from unmask.tokens.mmada import (
    EOI,
    LOOK_AT,
    NULL,
    PAD,
    SOI,
    THINK_AND_DRAW,
    TOKENS,
    WORDING,
    Field,
    drawing,
    training_drawing,
    training_text,
    training_understanding,
    understanding,
)
from unmask.tokens.text import END_HEADER, MASK, Text
from unmask.tokens.turns import Said

Arrays = dict[str, Tensor]
MMADA_INPUTS = frozenset(
    {"vq.image", "t2i.ids", "t2i.attention_mask", "inpaint.ids", "noisy.uniform", "noisy.gumbel"}
    | {f"sample.{n}" for n in ("text_length", "steps", "guidance", "temperature")}
    | {f"block.{n}" for n in ("length", "block", "steps", "guidance")}
    | {f"loss.{task}_{n}" for task in ("lm", "chat", "mmu", "r2i") for n in ("ids", "labels", "p")}
    | {"loss.t2i_ids", "loss.t2i_labels", "loss.t2i_attention_mask", "loss.t2i_codes", "loss.text_length"}
    | {f"rl.{n}" for n in ("ids", "labels", "mask", "logp_old", "advantage")}
    | {f"parallel.{n}" for n in ("text_length", "text_steps", "picture_steps", "text_guidance", "guidance")}
)


def mmada_arrays(folder: Path, arrays: Arrays, net: Elastic, vq: Magvit) -> Arrays:
    """Our version of every output array. CheckpointError for a file without its prompts or an array."""
    text = read_text(folder, read_json(folder / "config.json"))
    net.mask_id = text[MASK]
    reference = MMaDAReference(arrays=arrays, prompts=prompts_of(folder), text=text)
    with complete(folder):
        return reference.reproduce(net, vq)


class MMaDAReference(Measured):
    @torch.no_grad()
    def reproduce(self, net: Elastic, vq: Magvit) -> Arrays:
        """Our version of every output array."""
        return {
            **{f"ids.{name}": torch.tensor(self.text[token]) for name, token in TOKENS.items()},
            "ids.code_offset": torch.tensor(net.config.first_code),
            **self.tokenized(vq),
            **self.read(net),
            **self.drawings(net),
            **self.sampled(net),
            **self.texts(net),
            **self.losses(net),
            **self.policy(net),
            **parallel(net, self.text, self.arrays, str(self.prompts["parallel"]), self._picture()),
        }

    def tokenized(self, vq: Magvit) -> Arrays:
        """A picture's latents and codes, and the pixels (not clipped) that the measured codes decode to."""
        latents = vq.latents(self.arrays["vq.image"])
        codes, measured = vq.codes(latents), self.arrays["vq.codes"].view(-1, *latents.shape[2:])
        return {"vq.latents": latents, "vq.codes": codes.flatten(1), "vq.decoded": vq.from_codes(measured)}

    def read(self, net: Elastic) -> Arrays:
        """Rows of text, and of a picture and text, from their prompts: ids, logits over the whole vocabulary, and what the head reads."""
        masks = {name: int((self.arrays[f"{name}.ids"][0] == net.mask_id).sum()) for name in ("text", "und")}
        chats = [self._asking(prompt, [], masks["text"]) for prompt in self._strings("text")]
        look = self._asking(str(self.prompts["und"]), [self._picture()], masks["und"])
        hidden, logits = scored_rows(net, chats)
        return {
            "text.ids": torch.stack([text_ids(net, row) for row in chats]),
            "text.hidden": hidden,
            "text.logits": logits,
            "und.ids": text_ids(net, look)[None],
            "und.logits": scored_rows(net, [look])[1],
        }

    def drawings(self, net: Elastic) -> Arrays:
        """Drawings of which some codes are masked: one prompt is padded, one is cut. What padding says is left at 0."""
        ids, valid = self.arrays["t2i.ids"], self.arrays["t2i.attention_mask"].bool()
        rows = [self._drawing(p, one, net) for p, one in zip(self._strings("t2i"), ids, strict=True)]
        out = {"t2i.embeddings": net.embed(ids)}
        for name, size in (("hidden", net.config.width), ("logits", net.config.vocab_size)):
            out[f"t2i.{name}"] = net.embed.weight.new_zeros(*ids.shape, size)
        for b, row in enumerate(rows):
            hidden, logits = scored_rows(net, [row])
            out["t2i.hidden"][b][valid[b]], out["t2i.logits"][b][valid[b]] = hidden[0], logits[0]
        return out

    def sampled(self, net: Elastic) -> Arrays:
        """Drawings by the published sampler: greedy, without guidance, by the linear schedule, with noise, and infilling."""
        ids, steps, scale = (
            self.arrays["sample.ids"][0],
            int(self.arrays["sample.steps"]),
            float(self.arrays["sample.guidance"]),
        )
        row = self._drawing(self._strings("t2i")[0], ids, net)
        greedy = mmada_image(codes=len(row.span("image")), steps=steps, scale=scale)
        greedy = replace(greedy, token_sampler=Greedy(), selection=Confident())
        plain = replace(greedy, guidance=replace(greedy.guidance, scale=0.0))  # type: ignore[type-var]
        by_line = replace(greedy, schedule=replace(greedy.schedule, curve=linear))  # type: ignore[type-var]
        noise = GivenNoise(
            gumbel=self.arrays["noisy.gumbel"],
            temperature=Cooling(noise=float(self.arrays["sample.temperature"])).temperature,
        )
        noisy = replace(greedy, token_sampler=GivenCodes(uniform=self.arrays["noisy.uniform"]), selection=noise)
        done = {name: self._run(net, row, s) for name, s in (("", greedy), ("_unguided", plain), ("_linear", by_line))}
        drawn, hot = done[""], self._run(net, row, noisy)
        hole = self._run(net, self._drawing(self._strings("t2i")[0], self.arrays["inpaint.ids"][0], net), greedy)
        out = {"sample.first_logits": drawn.merged[0].logits(Kind.CODE)[None]}
        for name, trace in done.items():
            out |= {f"sample.codes{name}": _codes(trace), f"sample.order{name}": _order(trace, steps)}
        out["sample.counts"] = torch.bincount(out["sample.order"][0], minlength=steps)
        out["sample.masked_after"] = drawn.masked_after.clamp(min=1)  # the last draw is returned beside the row
        out |= {"noisy.codes": _codes(hot), "noisy.order": _order(hot, steps)}
        out |= {"inpaint.codes": _codes(hole), "inpaint.masked_after": hole.masked_after.clamp(min=1)}
        return out | self._prompt_fields(row, len(ids))

    def _prompt_fields(self, row: Sequence, length: int) -> Arrays:
        """The row of a drawing and its null row with their padding, and which tokens are none."""
        out = {}
        for prefix, name in (("", "prompt"), ("null_", NULL)):
            span = row.span(name)
            rest = [self.text[SOI], *[self.text[MASK]] * len(row.span("image")), self.text[EOI]]
            own = [*row.ids[span.start : span.stop].tolist(), *rest]
            pad = length - len(own)
            out[f"sample.{prefix}ids"] = torch.tensor([[self.text[PAD]] * pad + own])
            out[f"sample.{prefix}attention_mask"] = torch.tensor([[0] * pad + [1] * len(own)])
        return out

    def texts(self, net: Elastic) -> Arrays:
        """Texts block by block, with and without guidance, and one behind a picture."""
        length, block, steps = (int(self.arrays[f"block.{n}"]) for n in ("length", "block", "steps"))
        each = PublishedText(block=block, steps=steps // (length // block))
        chat = self._asking(self._strings("text")[0], [], length)
        look = self._asking(str(self.prompts["und"]), [self._picture()], length)
        out = {"block.ids": text_ids(net, chat)[None, :-length], "und_block.ids": text_ids(net, look)[None, :-length]}
        scale = float(self.arrays["block.guidance"])
        for name, row, g in (("block.{}", chat, 0.0), ("block.{}_guided", chat, scale), ("und_block.{}", look, 0.0)):
            ids, order = each.run(net, row, scale=g, device=self._device)
            whole = torch.cat([text_ids(net, row)[:-length].to(ids.device), ids])
            out |= {name.format("out"): whole[None], name.format("order"): order[None]}
        return out

    def losses(self, net: Elastic) -> Arrays:
        """The rows of a training batch from their prompts, and the loss of each task on measured masks."""
        out = self._training_rows()
        for task in ("lm", "chat", "mmu", "r2i"):
            ids, labels, p = (self.arrays[f"loss.{task}_{n}"] for n in ("ids", "labels", "p"))
            prompt = out.get(f"loss.{task}_prompt", torch.zeros_like(ids))
            noisy = masked_rows(ids, labels, net.mask_id)
            noisy = noisy.replace(writable=prompt == 0, weight=p[:, None].expand_as(ids).float())
            out[f"loss.{task}"] = Masked(weight=InverseTime() if task == "lm" else EachRow()).of(net, noisy).total
            if task == "lm":
                out["loss.base_stage4"] = Masked(weight=EachRow()).of(net, noisy).total
        return out | self._drawing_losses(net)

    def _drawing_losses(self, net: Elastic) -> Arrays:
        """With the padding weighted as the released trainer has it, hidden, and seen."""
        given, labels = self.arrays["loss.t2i_ids"], self.arrays["loss.t2i_labels"]
        field = Field(length=int(self.arrays["loss.text_length"]))
        codes = self.arrays["loss.t2i_codes"]
        rows = []
        for prompt, ids, own in zip(self._strings("t2i"), given, codes, strict=True):
            row = training_drawing(self._builder(), prompt, own, field=field)
            rows.append(replace(row, ids=ids.cpu()))  # masked codes, and the same tokens otherwise
        seen = [replace(r, spans=tuple(replace(s, segment=0, position_offset=0) for s in r.spans)) for r in rows]
        ways = {"": (WeightedPadding(), rows), "_hard_mask": (net.attention, rows), "_no_mask": (net.attention, seen)}
        out, attention = {}, net.attention
        for name, (own, some) in ways.items():
            net.attention = own
            batch = collate(some, [0] * len(some)).to(given.device)
            batch = batch.replace(masked=torch.zeros_like(batch.masked))
            batch = batch.replace(
                target=(labels != -100) & _drawn(batch), clean=labels, weight=torch.ones_like(given, dtype=torch.float)
            )
            out[f"loss.t2i{name}"] = Masked().of(net, batch).total
        net.attention = attention
        return out

    def _training_rows(self) -> Arrays:
        """The clean rows of a batch, and which of their tokens are prompt: up to the last end of a header."""
        length, codes = int(self.arrays["loss.text_length"]), self.arrays["loss.t2i_codes"]
        b, rows = self._builder(), dict[str, list[list[int]]]()
        whole = length + codes.shape[1] + 3
        for task in ("lm", "chat", "mmu", "r2i"):
            said = [encoded(self.text, prompt) for prompt in self._strings(f"loss_{task}")]
            if task in ("lm", "chat"):
                rows[task] = [training_text(b, ids, whole) for ids in said]
            else:
                name = LOOK_AT if task == "mmu" else THINK_AND_DRAW
                rows[task] = [training_understanding(b, name, c, i, length) for c, i in zip(codes, said, strict=True)]
        out = {f"loss.clean_{task}": torch.tensor(some) for task, some in rows.items()}
        edges = (self.text[SOI], self.text[EOI])
        for task in ("chat", "mmu", "r2i"):
            prompts = [prompt_of(row, self.text, edges if task == "r2i" else ()) for row in rows[task]]
            out[f"loss.{task}_prompt"] = torch.tensor(prompts).long()
        return out

    def policy(self, net: Elastic) -> Arrays:
        """Log-probabilities of masked tokens, and the clipped policy loss with and without its divergence to the old policy."""
        ids, labels, counted = (self.arrays[f"rl.{n}"] for n in ("ids", "labels", "mask"))
        advantage, old = self.arrays["rl.advantage"], self.arrays["rl.logp_old"]
        batch = text_batch(ids)
        scored = net(batch, predict=labels != -100).scored[Kind.TEXT]
        new = torch.zeros(ids.numel(), device=ids.device)
        new[scored.at] = -cross_entropy(scored, labels.flatten()[scored.at])
        new = new.view_as(old).masked_fill(~counted, 0.0)
        return {
            "rl.logp": new,
            "rl.loss": clipped_loss(new, old, advantage, counted),
            "rl.policy_loss": clipped_loss(new, old, advantage, counted, kl=0.0),
            "rl.loss_at_old": clipped_loss(new, new, advantage, counted),
        }

    def _builder(self) -> Builder:
        return Builder(text=self.text, wording=WORDING, look_tokens=0)

    @property
    def _device(self) -> torch.device:
        return self.arrays["text.ids"].device

    def _strings(self, name: str) -> list[str]:
        found = self.prompts[name]
        assert isinstance(found, list)
        return found

    def _picture(self) -> Tensor:
        """The codes that understanding reads, [h, w]."""
        return self.arrays["vq.codes"].view(self.arrays["vq.latents"].shape[2:])

    def _asking(self, prompt: str, pictures: list[Tensor], answer: int) -> Sequence:
        found = re.search(r"user<\|end_header_id\|>\n(.*?)<\|eot_id\|>", prompt, re.DOTALL)
        assert found is not None, prompt
        return understanding(self._builder(), [Said(role="user", text=found[1])], pictures, answer)

    def _drawing(self, prompt: str, ids: Tensor, net: Elastic) -> Sequence:
        """A drawing of a prompt whose codes are those of ``ids``, some of them masked."""
        length = int(self.arrays["sample.text_length"])
        given = ids[length + 2 : -1].cpu()
        side = math.isqrt(len(given))
        masked = given == net.mask_id
        codes = (given - net.config.first_code).masked_fill(masked, 0).view(side, side)
        row = drawing(self._builder(), prompt, codes, field=Field(length=length))
        span = row.span("image")
        return replace(
            row, masked=torch.zeros_like(row.masked).index_put((torch.arange(span.start, span.stop),), masked)
        )

    def _run(self, net: Elastic, row: Sequence, sampler: Sampler) -> Trace:
        return record(net, row, sampler, self._device)


def prompt_of(row: list[int], text: Text, edges: tuple[int, ...]) -> list[bool]:
    """Which tokens of a training row are prompt: up to the last end of a header; without one, the picture part of an understanding row, the
    whole text of a thinking one, and nothing of a text. ``edges``: tokens around a picture that are prompt wherever they stand.
    """
    ends = [i for i, token in enumerate(row) if token == text[END_HEADER]]
    last = ends[-1] + 1 if ends else 0
    if not ends and row[0] in (text[LOOK_AT], text[THINK_AND_DRAW]):
        last = row.index(text[EOI]) + 1 if row[0] == text[LOOK_AT] else row.index(text[SOI])
    return [i < last or token in edges for i, token in enumerate(row)]


def _drawn(batch: Batch) -> Tensor:
    """The tokens of a picture and those around it, [B, L]."""
    return batch.writable & batch.valid


def _codes(trace: Trace) -> Tensor:
    return trace.of("image", trace.batch.ids[0])[None]


def _order(trace: Trace, steps: int) -> Tensor:
    return trace.of("image", trace.until_last(steps))[None]
