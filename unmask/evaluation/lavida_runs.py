"""The measured runs of LaViDa's two samplers: their settings as our samplers, by the name of their arrays.

Public idea: ``LLADA_RUNS`` and ``DREAM_RUNS``: name -> ``Run``; ``run.arrays(name, net, batch, mask_id)`` runs one and counts its forwards.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from unmask.evaluation.verify_dream import record
from unmask.models.elastic import Elastic
from unmask.protocols import Selection, TokenSampler, UnmaskingSchedule
from unmask.sampling.blocks import Blocks, FirstApart
from unmask.sampling.cache import NoCache, PrefixCache
from unmask.sampling.reverse_time import FirstAlone, OnGrid
from unmask.sampling.sampler import Sampler
from unmask.sampling.schedule import Curved, Equal, Fixed, Shift, half_cosine, logit_normal, straight
from unmask.sampling.selection import Confident
from unmask.sampling.token_sampler import Entropy, Greedy, Margin, Probability, Score, Truncated
from unmask.sequence import Batch

_AT_ONCE = Fixed(each=2**31)  # the selection says how many
_THIRD = 1 / 3


@dataclass(frozen=True, kw_only=True)
class Run:
    """``new``: tokens of the answer · ``sampler``: without cache · ``cached``: behind a prompt that does not read it, whose keys and values
    are computed once · ``image``: behind a picture · ``drafted``: some of the answer is given · ``prefilled``: the released code decides
    the first token from the prompt's own forward, before it counts steps.
    """

    new: int
    sampler: Sampler
    cached: bool = False
    image: bool = False
    drafted: bool = False
    prefilled: bool = False

    def arrays(self, name: str, net: Elastic, batch: Batch, mask_id: int) -> dict[str, Tensor]:
        """Ids, steps, forwards and masked tokens after each step, as the released code counts them."""
        sampler = replace(self.sampler, cache=PrefixCache() if self.cached else NoCache())
        answer = slice(batch.span_table[0][-1].start, None)
        found = record(net, batch, sampler, mask_id)
        steps, left, forwards = found.steps[0, answer], found.left, len(found.left)
        if self.prefilled:
            steps, left = torch.where(steps > 0, steps - 1, steps), left[1:]
        elif self.cached:
            forwards += 1  # the released code computes the prompt in a forward of its own, ours within the first step
        device = found.ids.device
        return {
            f"{name}.ids": found.ids[:, answer],
            f"{name}.steps": steps,
            f"{name}.nfe": torch.tensor(forwards, device=device),
            f"{name}.masks_left": torch.tensor(left, device=device),
        }


def _llada(schedule: UnmaskingSchedule, block: int, token_sampler: TokenSampler | None = None) -> Sampler:
    chosen = token_sampler or Greedy()
    return Sampler(schedule=schedule, token_sampler=chosen, selection=Confident(), blocks=Blocks(length=block))


_EARLY = Shift(steps=16, shift=_THIRD)
LLADA_RUNS: dict[str, Run] = {
    "gen.full": Run(new=16, sampler=_llada(Equal(steps=16), 16)),
    "gen.cached": Run(new=16, sampler=_llada(Equal(steps=16), 16), cached=True),
    "gen.blocks": Run(new=24, sampler=_llada(Equal(steps=4), 8), cached=True),
    "gen.blocks_full": Run(new=24, sampler=_llada(Equal(steps=3), 8)),
    "gen.shift_third": Run(new=32, sampler=_llada(_EARLY, 32), cached=True),
    "gen.shift_033": Run(new=32, sampler=_llada(Shift(steps=8, shift=0.33), 32), cached=True),
    "gen.shift_3": Run(new=32, sampler=_llada(Shift(steps=8, shift=3.0), 16), cached=True),
    "gen.cosine": Run(new=32, sampler=_llada(Curved(steps=16, curve=half_cosine), 32), cached=True),
    "gen.logit_normal": Run(new=32, sampler=_llada(Curved(steps=16, curve=logit_normal), 32), cached=True),
    "gen.linear": Run(new=24, sampler=_llada(Curved(steps=9, curve=straight), 24), cached=True),
    "gen.margin": Run(new=16, sampler=_llada(Equal(steps=16), 16, Greedy(score=Margin())), cached=True),
    "gen.entropy": Run(new=16, sampler=_llada(Equal(steps=16), 16, Greedy(score=Entropy())), cached=True),
    "vqa.cached": Run(new=16, sampler=_llada(Shift(steps=8, shift=_THIRD), 16), cached=True, image=True),
    "vqa.full": Run(new=16, sampler=_llada(Equal(steps=8), 8), image=True),
    "infill": Run(new=24, sampler=_llada(Shift(steps=24, shift=_THIRD), 24), cached=True, drafted=True),
    "infill_blocks": Run(new=32, sampler=_llada(Equal(steps=8), 16), cached=True, drafted=True),
    "infill_image": Run(
        new=24, sampler=_llada(Shift(steps=24, shift=_THIRD), 24), cached=True, drafted=True, image=True
    ),
}


def _dream(
    name: str,
    score: Score,
    *,
    new: int = 16,
    grid: Selection | None = None,
    schedule: UnmaskingSchedule | None = None,
    top_k: int = 50,
    top_p: tuple[float, float] = (1.0, 1.0),
    image: bool = False,
) -> dict[str, Run]:
    """A run with and without the cached prompt. ``grid``: the selection where there is no schedule · ``top_p``: without and with it."""
    out = {}
    for cached, p in zip((False, True), top_p, strict=True):
        selection = Confident() if schedule else grid or OnGrid(steps=new)
        sampler = Sampler(
            schedule=schedule or _AT_ONCE,
            token_sampler=Truncated(top_k=top_k, top_p=p, score=score),
            selection=FirstAlone(selection=selection) if cached else selection,
        )
        if cached:
            sampler = replace(sampler, blocks=FirstApart())
        called = f"{name}.cached" if cached else name
        out[called] = Run(new=new, sampler=sampler, cached=cached, prefilled=cached, image=image)
    return out


def _dream_runs() -> dict[str, Run]:
    p, m, e = Probability(), Margin(), Entropy()
    out: dict[str, Run] = {}
    for name, score in (("maskgit_plus", p), ("topk_margin", m), ("entropy", e)):
        out |= _dream(f"gen.{name}", score)
    out |= _dream("gen.steps8", m, new=24, grid=OnGrid(steps=8))
    out |= _dream("gen.ratio_half", m, new=24, grid=OnGrid(steps=24, cut=12))
    out |= _dream("gen.shift_third", m, new=24, schedule=Shift(steps=12, shift=_THIRD))
    out |= _dream("gen.shift_033", m, new=24, schedule=Shift(steps=12, shift=0.33))
    out |= _dream("gen.shift_3", m, new=24, schedule=Shift(steps=6, shift=3.0))
    out |= _dream("gen.shift_all", m, new=24, schedule=Shift(steps=24, shift=_THIRD))
    out |= _dream("gen.entropy.all_tokens", e, top_k=0)
    out |= _dream("gen.top_p", e, top_p=(0.8, 0.95))
    # The released code was measured with a schedule behind the cached prompt of a picture, and without one behind the whole.
    out["vqa.cached"] = _dream("vqa", m, schedule=Shift(steps=8, shift=_THIRD), image=True)["vqa.cached"]
    out["vqa.full"] = _dream("vqa", m, image=True)["vqa"]
    return out


DREAM_RUNS = _dream_runs()
