"""Instances of the parts of the samplers of LaViDa, Dream, Dimple and Lumina-DiMOO, for the contract suites."""

from __future__ import annotations

from typing import Any

from unmask.sampling import (
    aligned,
    blocks,
    cache,
    free_cache,
    ml_cache,
    prior,
    reverse_time,
    schedule,
    selection,
    step_causal,
    token_sampler,
)
from unmask.sampling.editing import TokenEditing
from unmask.sampling.selection import Confident

CACHES: list[Any] = [
    cache.PromptCache(),
    ml_cache.MLCache(ratio=0.6, warmup=0.2, interval=3),
    free_cache.FreeCache(),
    free_cache.ReleasedFreeCache(),
]
PRIORS: list[Any] = [step_causal.StepCausal(), prior.PrefixLM()]
BLOCKS: list[Any] = [blocks.FirstApart()]
SCHEDULES: list[Any] = [
    schedule.ReverseTime(steps=6),
    schedule.ReverseTime(steps=40, eps=0.05),
    schedule.Curved(steps=5),
    schedule.OfBlock(steps=3, block=4),
]
TOKEN_SAMPLERS: list[Any] = [
    token_sampler.GumbelText(temperature=0.5),
    token_sampler.GumbelText(temperature=0.5, top_p=0.6),
    token_sampler.Truncated(temperature=0.7, top_p=0.9, top_k=5, score=token_sampler.Entropy()),
    token_sampler.Truncated(top_k=3, score=token_sampler.Probability(), original=True),
    token_sampler.Without(ids=(9, 11), size=20, token_sampler=token_sampler.Greedy()),
]
SELECTIONS: list[Any] = [
    TokenEditing(selection=Confident(), threshold=0.2, most=3),
    reverse_time.OnGrid(steps=7),
    reverse_time.OnGrid(steps=4, selection=selection.Confident(noise=0.5), unwritten=9),
    reverse_time.OnGrid(steps=9, cut=3),
    reverse_time.Independent(steps=5),
    selection.SureOrCounted(value=0.9),
    reverse_time.FirstAlone(selection=selection.Confident()),
    reverse_time.LeftmostFirst(selection=selection.Confident()),
    reverse_time.Postponing(steps=4, threshold=0.3),
    aligned.Aligned(steps=6, threshold=0.2),
    aligned.Aligned(steps=6, uniforms=reverse_time.keyed_uniforms),
    aligned.Leftmost(),
]
