"""Numerical parity of LLaDA2.0-Uni: recompute the arrays of llada2_uni_tiny.

Public idea: ``uni_arrays(folder, arrays, net, vq) -> Arrays``: rows are rebuilt from their texts by the functions that serve users,
and drawings and edits run through their samplers with the exact cache. Texts and SPRINT are the released loops (``verify_llada2_runs``).
Layer 0's keys and the last block's logits come from the cache that serves users. ``verify.py`` compares.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from unmask.checkpoints.llada2 import read_text
from unmask.evaluation.verify_llada2_pictures import picture_arrays
from unmask.evaluation.verify_llada2_runs import Runs, Settings, number
from unmask.evaluation.verify_rows import encoded
from unmask.evaluation.verify_runs import Trace, complete, record
from unmask.models.elastic import Elastic
from unmask.models.experts import Router
from unmask.sampling.block_diffusion import Row
from unmask.sampling.llada2 import llada2_edit, llada2_image
from unmask.sampling.rescaled import HeadDeviation
from unmask.sampling.sampler import Sampler
from unmask.sequence import Batch, Kind, Sequence, collate
from unmask.step import Reuse
from unmask.tasks.llada2_uni import WORDING
from unmask.tokens.build import Builder
from unmask.tokens.llada2 import (
    BEGIN_CODES,
    END_IMAGE,
    END_ROLE,
    IMAGE,
    NULL,
    ROLE,
    THINK_TO_DRAW,
    UNCONDITION,
    Layout,
    draw_prompt,
    drawing,
    edit_prompts,
    editing,
    header,
    null_prompt,
    roles,
    side_token,
    text_row,
    understanding,
)
from unmask.tokens.text import EOS, EOT, MASK, Text
from unmask.tokens.uni import UniTokenizer

Arrays = dict[str, Tensor]
UNI_INPUTS = frozenset(
    {"text.ids", "text.block", "gen_eos.ids", "noisy.uniform", "noisy_sprint.uniform", "und.codes", "und.grid"}
    | {"vq.image", "vq2.image", "pre.sizes", "pre.image", "turbo.steps", "turbo.noises", "turbo.one_t"}
    | {f"dec.{name}" for name in ("codes", "grid", "noise", "one_t", "steps")}
)
_DRAWS = ("draw", "draw_short", "draw_unguided", "draw_all_steps")
_SPRINTS = ("draw_sprint", "draw_sprint_default", "draw_sprint_exact", "draw_sprint_unguided")
_EDITS = ("edit", "edit_both", "edit_off")
_QUESTION = "What is it?"  # of the rows about a picture
_UNIT = 32  # pixels of the asked size along a side of one code


def uni_arrays(folder: Path, arrays: Arrays, net: Elastic, vq: UniTokenizer) -> Arrays:
    """Our version of every output array. CheckpointError for a file without its settings or an array."""
    text = read_text(folder, pictures=True)
    net.mask_id = text[MASK]
    with safe_open(str(folder / "expected.safetensors"), "pt") as opened:
        metadata = dict(opened.metadata() or {})
    reference = UniReference(arrays=arrays, metadata=metadata, text=text, net=net, vq=vq, folder=folder)
    with complete(folder):
        return reference.reproduce()


@dataclass(frozen=True, kw_only=True)
class UniReference:
    """The arrays of expected.safetensors, and the settings that they were measured with, JSON in the file's metadata."""

    arrays: Arrays
    metadata: Mapping[str, str]
    text: Text
    net: Elastic
    vq: UniTokenizer
    folder: Path
    _prompts: dict[str, Tensor] = field(default_factory=dict)

    @torch.no_grad()
    def reproduce(self) -> Arrays:
        """Our version of every output array."""
        out = {**self.named(), **self.rows(), **self.cached(), **self.asked(), **self.draws(), **self.edits()}
        runs = self.runs()
        out |= runs.texts() | self.thought(runs)
        for name in _SPRINTS:
            null = self._ids(null_prompt(self._builder(), self._grid(name)))
            out |= runs.sprint_drawing(name, null, self._codes(name))
        return out | picture_arrays(self.folder, self.arrays, self.vq)

    def named(self) -> Arrays:
        """Ids of control tokens, and the released rows that are split into pieces of text."""
        names = {"mask": MASK, "eos": EOS, "soi": IMAGE, "eoi": END_IMAGE, "boi": BEGIN_CODES, "role": ROLE}
        names |= {"role_close": END_ROLE, "role_end": EOT}
        out = {f"ids.{name}": torch.tensor(self.text[token]) for name, token in names.items()}
        known = next(n for n in range(256) if side_token(n) in self.text.control)
        out["ids.reserved_base"] = torch.tensor(self.text[side_token(known)] - known)
        out["ids.image_token_offset"] = torch.tensor(self.net.config.first_code)
        split = f"{IMAGE}{side_token(9)}{side_token(8)}{BEGIN_CODES}"
        out |= {"quirk.header_9x8": self._ids(encoded(self.text, split))}
        return out | {"quirk.uncondition": self._ids(self.text.encode(UNCONDITION))}

    def rows(self) -> Arrays:
        """Two rows: logits with and without blocks, what every layer reads, and whom every router chooses."""
        ids, block = self.arrays["text.ids"], int(self.arrays["text.block"])
        inputs, routed = list[Tensor](), list[tuple[Tensor, Tensor, Tensor, Tensor]]()
        shape = ids.shape

        def see_router(_: nn.Module, given: tuple[Tensor], found: object) -> None:
            experts, order = found.experts.sort(-1)  # type: ignore[attr-defined]
            routed.append((given[0], experts, found.weights.gather(-1, order), found.logits))  # type: ignore[attr-defined]

        hooks = [m.register_forward_hook(see_router) for m in self.net.modules() if isinstance(m, Router)]
        hooks += [b.register_forward_pre_hook(lambda _, given: inputs.append(given[0])) for b in self.net.blocks]
        try:
            hidden, logits = self._scored(self._batch(ids, block))
        finally:
            for hook in hooks:
                hook.remove()
        assert self.net.config.experts is not None
        first = self.net.config.experts.dense
        out = {"text.hidden": hidden.view(*shape, -1), "text.logits": logits.view(*shape, -1)}
        out |= {"text.layer_inputs": torch.stack(inputs).unflatten(1, shape)}
        whole = self._scored(self._batch(ids, shape[1]))[1]
        out |= {"text.logits_full_attention": whole.view(*shape, -1)}
        parts = [torch.stack(part) for part in zip(*routed, strict=True)]
        out |= {f"router.{n}": part for n, part in zip(("input", "experts", "weights", "logits"), parts, strict=True)}
        return out | {"router.layers": torch.arange(first, first + len(routed))}

    def cached(self) -> Arrays:
        """The last block from the keys and values of the blocks before it."""
        ids, block = self.arrays["text.ids"], int(self.arrays["text.block"])
        batch = self._batch(ids, block)
        last = batch.order == batch.order.max()
        none = torch.zeros_like(last)
        first = self.net(batch, predict=~last, reuse=Reuse(compute=~last, keep=~last))
        assert first.state is not None
        found = self.net(batch, predict=last, reuse=Reuse(compute=last, keep=none, state=first.state))
        before = int((~last[0]).sum())
        keys, values = (first.state.tensors[f"0.und.{name}"][:, :, :before] for name in ("k", "v"))
        logits = found.logits(Kind.TEXT).unflatten(0, (len(ids), -1))
        return {"cache.key_l0": keys, "cache.value_l0": values, "cache.logits": logits}

    def asked(self) -> Arrays:
        """The rows of texts and questions, and the first logits of one."""
        layout = self._layout("und")
        codes = self._source()
        chat = self._ids(encoded(self.text, self.metadata["chat.text"]))
        bare, spoken = (
            understanding(self._builder(), [("user", _QUESTION, [codes])], [], layout, bare=bare)
            for bare in (True, False)
        )
        rows = {"und.ids": self._text_ids(bare), "und_chat.ids": self._text_ids(spoken)}
        for name in self.metadata:
            self._prompts[name] = chat
        for name in ("und", "und_sprint", "und_prune", "und_prune_all"):
            self._prompts[name] = rows["und.ids"]
        self._prompts.update({"und_chat": rows["und_chat.ids"], "gen_eos": self.arrays["gen_eos.ids"]})
        first = rows["und.ids"]
        more = layout.block - len(first) % layout.block
        window = torch.cat([first, first.new_full((more,), self.net.mask_id)])
        logits = self._scored(self._batch(window[None], layout.block))[1]
        return {**rows, "chat.ids": chat, "und.first_logits": logits}

    def runs(self) -> Runs:
        return Runs(
            net=self.net,
            arrays=self.arrays,
            metadata=self.metadata,
            prompts=self._prompts,
            mask_id=self.net.mask_id,
            end=self.text[EOS],
        )

    def draws(self) -> Arrays:
        """Drawings by the sampler that serves users."""
        out = Arrays()
        for name in _DRAWS:
            row, sampler = self._drawing(name)
            trace = self._run(row, sampler)
            out |= self._drawn(name, trace) | {f"{name}.steps_run": torch.tensor(len(trace.queries))}
            if name != "draw":
                continue
            cond, null = (self._block_logits(view) for view in self._views(trace, sampler))
            out |= {"draw.first_logits_cond": cond, "draw.first_logits_null": null}
            out |= self._null_row(row, self._layout(name))
        for name in ("draw", "draw_short"):
            out[f"{name}.ids"] = self._prompts[name]
        return out

    def _drawing(self, name: str) -> tuple[Sequence, Sampler]:
        settings, grid, b = self._settings(name), self._grid(name), self._builder()
        self._prepare(name)
        prompt, null = self._prompts[name].tolist(), null_prompt(b, grid)
        least = int(number(settings, "gen_length", 0))
        row = drawing(b, prompt, null, grid, self._layout(name), str(settings["prompt"]), least=least)
        return row, self._image_sampler(settings, name)

    def _image_sampler(self, settings: Settings, name: str) -> Sampler:
        return llada2_image(
            deviation=HeadDeviation(head=self.net.text_head),
            block=self._layout(name).block,
            steps=int(number(settings, "steps", 16)),
            scale=number(settings, "cfg_scale", 4.0),
        )

    def _prepare(self, name: str) -> None:
        words = str(self._settings(name)["prompt"])
        self._prompts[name] = self._ids(draw_prompt(self._builder(), words, self._grid(name)))

    def _null_row(self, row: Sequence, layout: Layout) -> Arrays:
        """The null prompt as released: padded to the prompt's length, and the first block behind it."""
        prompt, span = self._prompts["draw"], row.span(NULL)
        own = row.ids[span.start : span.stop]
        pad = len(prompt) - len(own)
        length = len(prompt) + -len(prompt) % layout.block
        ids = torch.full((length,), self.net.mask_id)
        ids[pad : len(prompt)] = own
        return {
            "draw.null_ids": self._ids(null_prompt(self._builder(), self._grid("draw"))),
            "draw.null_row": ids,
            "draw.null_pad": torch.tensor(pad),
            "draw.null_positions": (torch.arange(length) - pad).clamp(min=0),
        }

    def _drawn(self, name: str, trace: Trace) -> Arrays:
        out = {f"{name}.codes": trace.of("image", trace.batch.ids[0]), f"{name}.order": trace.of("image", trace.order)}
        return out | {f"{name}.forwards": torch.tensor(len(trace.queries))}

    def edits(self) -> Arrays:
        """Edits of the picture of the questions."""
        out, source = Arrays(), self._source()
        for name in _EDITS:
            settings = self._settings(name)
            layout = self._layout(name)
            row = editing(self._builder(), source, str(settings["instruction"]), layout)
            sampler = llada2_edit(
                deviation=HeadDeviation(head=self.net.text_head),
                block=layout.block,
                steps=int(number(settings, "steps", 8)),
                scale=number(settings, "cfg_text_scale", 4.0),
                image_scale=number(settings, "cfg_image_scale", 0.0),
            )
            trace = self._run(row, sampler)
            out |= self._drawn(name, trace)
            if name == "edit":
                all_three = replace(sampler.guidance, image_scale=1.0)  # type: ignore[type-var]
                views = self._views(trace, replace(sampler, guidance=all_three))
                out["edit.first_logits"] = torch.stack([self._block_logits(view) for view in views])
                parts = edit_prompts(self._builder(), source, str(settings["instruction"]), layout)
                names = ("ids", "null_text_ids", "null_image_ids")
                out |= {f"edit.{key}": self._ids(ids) for key, ids in zip(names, parts, strict=True)}
        return out

    def thought(self, runs: Runs) -> Arrays:
        """A text that announces its picture, and the picture."""
        settings, grid, b = self._settings("think"), self._grid("draw"), self._builder()
        layout = self._layout("draw")
        given, null = (
            [*roles(self.text, "SYSTEM", THINK_TO_DRAW), *roles(self.text, "HUMAN"), *self.text.encode(words)]
            + roles(self.text, "ASSISTANT")
            for words in (str(settings["prompt"]), UNCONDITION)
        )
        thinking = {"steps": settings["thinking_steps"], "gen_length": settings["thinking_gen_length"]}
        loop = runs.loop(thinking | {"block_length": layout.block})
        prompt = self._ids(given)
        done = loop.run(Row(net=self.net, block=layout.block), prompt, int(number(thinking, "gen_length", 4096)))
        opened = int((done.ids == self.text[BEGIN_CODES]).nonzero()[0])
        prefix, nothing = done.ids[: opened + 1], [*null, *header(self.text, grid)]
        row = drawing(b, prefix.tolist(), nothing, grid, layout, str(settings["prompt"]))
        trace = self._run(row, self._image_sampler(settings, "draw"))
        out = {"think.ids": prompt, "think.out": done.ids, "think.prefix": prefix, "think.null_ids": self._ids(nothing)}
        return out | {"think.codes": trace.of("image", trace.batch.ids[0])}

    def _settings(self, name: str) -> Settings:
        return self.runs().settings(name)

    def _layout(self, name: str) -> Layout:
        block = int(number(self._settings(name), "block_length", 32))
        return Layout(block=block, first_code=self.net.config.first_code)

    def _grid(self, name: str) -> tuple[int, int]:
        settings = self._settings(name)
        high, wide = (int(number(settings, f"image_{side}", 1024)) // _UNIT for side in "hw")
        return high, wide

    def _codes(self, name: str) -> int:
        self._prepare(name)
        high, wide = self._grid(name)
        return high * wide

    def _builder(self) -> Builder:
        return Builder(text=self.text, wording=WORDING, look_tokens=0)

    def _ids(self, ids: list[int]) -> Tensor:
        return torch.tensor(ids, device=self.net.embed.weight.device)

    def _source(self) -> Tensor:
        return self.arrays["und.codes"].view(*self.arrays["und.grid"].tolist()).cpu()

    def _text_ids(self, row: Sequence) -> Tensor:
        """The tokens of a row that are not masked, codes as text ids."""
        kind = collate([row], [0]).kind[0]
        ids = row.ids + torch.where(kind == Kind.CODE, self.net.config.first_code, 0)
        return ids[~row.masked].to(self.net.embed.weight.device)

    def _batch(self, ids: Tensor, block: int) -> Batch:
        rows = [text_row(row.tolist(), block) for row in ids]
        return collate(rows, [0] * len(rows)).to(self.net.embed.weight.device)

    def _scored(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Hidden states and logits of all tokens, [N, D] and [N, V]."""
        scored = self.net(batch, predict=batch.valid).scored[Kind.TEXT]
        assert scored.hidden is not None and scored.logits is not None
        return scored.hidden, scored.logits

    def _run(self, row: Sequence, sampler: Sampler) -> Trace:
        return record(self.net, row, sampler, self.net.embed.weight.device)

    def _views(self, trace: Trace, sampler: Sampler) -> list[Batch]:
        """The views of guidance before the first step."""
        batch = collate([trace.sequence], [0]).to(self.net.embed.weight.device)
        return sampler.guidance.views(batch, sampler.start(batch).agenda.next(batch).progress)  # type: ignore[union-attr]

    def _block_logits(self, view: Batch) -> Tensor:
        """Logits over the whole vocabulary of the first block with a masked token, [b, V]."""
        read_BL = view.valid & (view.segment == 0)
        first = view.order[view.masked & read_BL].min()
        block_BL = read_BL & (view.order == first)
        found = self.net.hidden_states(view, predict=block_BL)
        hidden = self.net.embed.weight.new_zeros(view.ids.numel(), self.net.config.width)
        for scored in found.scored.values():
            assert scored.hidden is not None
            hidden[scored.at] = scored.hidden
        return self.net.text_head(hidden[block_BL.flatten()])
