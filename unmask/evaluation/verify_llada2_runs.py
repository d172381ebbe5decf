"""Runs of LLaDA2's released samplers for parity: texts, token editing, SPRINT and guided SPRINT, with the settings of the measured file.

Public idea: ``Runs(..).texts() -> Arrays``. A text may hold the mask and image codes, which the samplers that serve users never write, so
these are the loops of ``sampling.block_diffusion``. ``verify_llada2_uni`` has the rest.

Shapes: L tokens · b tokens of a block · V vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from unmask.models.elastic import Elastic
from unmask.sampling.block_diffusion import Blocks, Candidates, Counted, Editing, Finished, Guided, Pick, Row, greedy
from unmask.sampling.sprint import Adaptive, Keep, SprintRow, by_entropy, by_margin

Arrays = dict[str, Tensor]
Settings = Mapping[str, object]
TEXTS = ("gen", "gen_fast", "gen_few", "gen_nostop", "gen_eos", "noisy", "noisy_sprint")
SPRINTS = ("gen_sprint", "gen_sprint_pinned", "gen_sprint_top_k_margin", "gen_sprint_neg_entropy")
LOOKS = ("und", "und_sprint", "und_prune", "und_prune_all", "und_chat")
EDITS = ("edit21", "edit21_speed", "edit21_plain")
_RANKS: dict[str, Pick] = {"low_confidence": greedy, "top_k_margin": by_margin, "neg_entropy": by_entropy}


def number(settings: Settings, name: str, default: float) -> float:
    found = settings.get(name, default)
    return float(found) if isinstance(found, int | float) else default


def share(settings: Settings, name: str) -> float | None:
    return number(settings, name, 0.0) if settings.get(name) is not None else None


@dataclass(kw_only=True)
class Filtered:
    """A draw at temperature ``temperature`` from the top k, and then the nucleus, by given uniform numbers [calls, b]."""

    temperature: float
    top_k: int
    top_p: float
    uniform: Tensor
    calls: Iterator[int] = field(default_factory=lambda: iter(range(2**31)))

    def __call__(self, logits_bV: Tensor) -> Candidates:
        logits_bV = logits_bV.float() / self.temperature
        if self.top_k:
            least_b1 = logits_bV.topk(min(self.top_k, logits_bV.shape[-1])).values[:, -1:]
            logits_bV = logits_bV.masked_fill(logits_bV < least_b1, -torch.inf)
        if self.top_p < 1:
            sorted_bV, index_bV = logits_bV.sort(descending=True)
            p_bV = sorted_bV.softmax(-1)
            beyond_bV = p_bV.cumsum(-1) - p_bV > self.top_p
            logits_bV = logits_bV.masked_fill(torch.zeros_like(beyond_bV).scatter(-1, index_bV, beyond_bV), -torch.inf)
        p_bV = logits_bV.softmax(-1)
        cumulative_bV = p_bV.double().cumsum(-1)
        u_b1 = self.uniform[next(self.calls)].to(p_bV.device)[:, None]
        ids_b = (cumulative_bV / cumulative_bV[:, -1:] <= u_b1).sum(-1).clamp(max=p_bV.shape[-1] - 1)
        chosen_b = p_bV.gather(-1, ids_b[:, None])[:, 0]
        return Candidates(ids=ids_b, rank=chosen_b, probability=chosen_b)


@dataclass(kw_only=True)
class Noised:
    """argmax of exp(logits) / (-ln u)^temperature in float64 (SPRINT), by given uniform numbers [calls, b, V]."""

    temperature: float
    uniform: Tensor
    calls: Iterator[int] = field(default_factory=lambda: iter(range(2**31)))

    def __call__(self, logits_bV: Tensor) -> Candidates:
        u_bV = self.uniform[next(self.calls)].to(logits_bV.device).double()
        ids_b = (logits_bV.double().exp() / (-u_bV.log()) ** self.temperature).argmax(-1)
        p_bV = logits_bV.float().softmax(-1)
        return Candidates(ids=ids_b, rank=p_bV.gather(-1, ids_b[:, None])[:, 0], probability=p_bV.amax(-1))


@dataclass(frozen=True, kw_only=True)
class Runs:
    """``metadata``: of the measured file · ``prompts``: ids before the answer, by the prefix of the arrays · ``end``, ``mask_id``: ids."""

    net: Elastic
    arrays: Arrays
    metadata: Mapping[str, str]
    prompts: Mapping[str, Tensor]
    mask_id: int
    end: int

    def settings(self, name: str) -> Settings:
        found = json.loads(self.metadata[name])
        assert isinstance(found, dict)
        return found

    def keep(self, settings: Settings) -> Keep:
        """What the released SPRINT keeps, with its faults."""
        return Keep(
            first_code=self.net.config.first_code,
            ratio=number(settings, "keep_ratio", 0.7),
            alpha=number(settings, "confidence_alpha", 0.5),
            text_ratio=share(settings, "text_keep_ratio"),
            image_ratio=share(settings, "image_keep_ratio"),
            released=True,
        )

    def texts(self) -> Arrays:
        """All runs that write text."""
        out = Arrays()
        for name in (*TEXTS, *SPRINTS, *LOOKS):
            out |= self._text(name)
        for name in EDITS:
            out |= self._edited(name)
        return out

    def _text(self, name: str) -> Arrays:
        settings = self.settings(name)
        row = Row(net=self.net, block=int(number(settings, "block_length", 32)))
        sprint = self.sprint_row(row, settings) if settings.get("use_sprint") else None
        done = self.loop(settings).run(
            sprint or row, self.prompts[name], int(number(settings, "gen_length", 2048)), self._pick(name, settings)
        )
        out = self._wanted(name, done, row.forwards)
        if f"{name}.kept" in self.arrays and sprint is not None and sprint.kept is not None:
            assert sprint.confidence is not None
            out |= {f"{name}.kept": sprint.kept, f"{name}.prefix_confidence": sprint.confidence}
            out[f"{name}.prefix_len"] = torch.tensor(len(sprint.confidence))
        return out

    def sprint_row(self, row: Row, settings: Settings) -> SprintRow:
        return SprintRow(row=row, keep=self.keep(settings), warmup=int(number(settings, "cache_warmup_steps", 2)))

    def loop(self, settings: Settings, *, ends: bool = True) -> Blocks:
        threshold = number(settings, "threshold", 0.95)
        stops = ends and settings.get("eos_early_stop", True)
        return Blocks(
            block=int(number(settings, "block_length", 32)),
            steps=int(number(settings, "steps", 32)),
            mask_id=self.mask_id,
            reveal=Adaptive(threshold=threshold) if settings.get("use_sprint") else Counted(threshold=threshold),
            end=self.end if stops else None,
        )

    def _pick(self, name: str, settings: Settings) -> Pick:
        if temperature := number(settings, "temperature", 0.0):
            uniform = self.arrays[f"{name}.uniform"]
            if settings.get("use_sprint"):
                return Noised(temperature=temperature, uniform=uniform)
            top_k, top_p = int(number(settings, "top_k", 0)), number(settings, "top_p", 1.0)
            return Filtered(temperature=temperature, top_k=top_k, top_p=top_p, uniform=uniform)
        return _RANKS[str(settings.get("remasking", "low_confidence"))]

    def _wanted(self, name: str, done: Finished, forwards: int) -> Arrays:
        out = {f"{name}.out": done.ids, f"{name}.order": done.order, f"{name}.forwards": torch.tensor(forwards)}
        if f"{name}.steps_run" in self.arrays:
            out[f"{name}.steps_run"] = torch.tensor(done.steps)
        return out

    def _edited(self, name: str) -> Arrays:
        settings = self.settings(name)
        block = int(number(settings, "block_length", 32))
        row = Row(net=self.net, block=block)
        editing = Editing(
            block=block,
            mask_id=self.mask_id,
            threshold=number(settings, "threshold", 0.95),
            editing_threshold=number(settings, "editing_threshold", 0.9),
            most_post_steps=int(number(settings, "max_post_steps", 16)),
            least=int(number(settings, "num_to_transfer", 1)),
            end=self.end if settings.get("eos_early_stop", True) else None,
        )
        prompt, length = self.prompts[name], int(number(settings, "gen_length", 2048))
        done = editing.run(row, prompt, length)
        whole = -(-(len(prompt) + length) // block) * block
        trace = torch.stack([torch.nn.functional.pad(one, (0, whole - len(one)), value=-1) for one in done.trace])
        return {f"{name}.out": done.ids, f"{name}.trace": trace, f"{name}.forwards": torch.tensor(row.forwards)}

    def sprint_drawing(self, name: str, null: Tensor, codes: int) -> Arrays:
        """A drawing with SPRINT, guided unless its scale is 1. ``null``: the null prompt · ``codes``: of the picture."""
        settings, prompt = self.settings(name), self.prompts[name]
        scale, block = number(settings, "cfg_scale", 4.0), int(number(settings, "block_length", 32))
        kept = null[-len(prompt) :]
        hidden = len(prompt) - len(kept)
        other = torch.cat([kept.new_full((hidden,), self.mask_id), kept])
        rows = [self.sprint_row(Row(net=self.net, block=block), settings)]
        if scale != 1:
            rows.append(self.sprint_row(Row(net=self.net, block=block, prompt=other, hidden=hidden), settings))

        def merge(logits: Sequence[Tensor]) -> Tensor:
            return self._only_codes(guided(logits, scale))

        scorer = Guided(rows=rows, merge=merge, whole=lambda start, step: not rows[0].cached(start, step))
        done = self.loop(settings, ends=False).run(scorer, prompt, int(number(settings, "gen_length", codes)))
        own = slice(len(prompt), len(prompt) + codes)
        out = {f"{name}.codes": done.ids[own] - self.net.config.first_code, f"{name}.order": done.order[own]}
        out |= {f"{name}.forwards": torch.tensor(scorer.forwards), f"{name}.steps_run": torch.tensor(done.steps)}
        for row, view in zip(rows, ("cond", "null"), strict=False):
            if f"{name}.kept_{view}" in self.arrays and row.kept is not None and row.first_cached is not None:
                out |= {f"{name}.kept_{view}": row.kept, f"{name}.cached_logits_{view}": row.first_cached}
                out[f"{name}.prefix_len"] = torch.tensor(len(prompt) // block * block)
        return out

    def _only_codes(self, logits_bV: Tensor) -> Tensor:
        number_V = torch.arange(logits_bV.shape[-1], device=logits_bV.device)
        return logits_bV.masked_fill(number_V < self.net.config.first_code, -torch.inf)


def guided(logits: Sequence[Tensor], scale: float, rescale: float = 0.7) -> Tensor:
    """u + scale (c - u) of (c, u), rescaled to the deviation of c."""
    if len(logits) == 1:
        return logits[0]
    c, u = logits
    out = u + scale * (c - u)
    return rescale * out * c.std(-1, keepdim=True) / (out.std(-1, keepdim=True) + 1e-6) + (1 - rescale) * out
