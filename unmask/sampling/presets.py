"""The published settings, as functions that return Samplers.

Public idea: a preset is nothing but a call of ``Sampler``; what a user changes is changed with ``dataclasses.replace``.
``grid`` is the code grid (rows, columns), ``null_id`` the text id of the null embedding, ``drop`` the names of the spans that
the unconditional view does not see.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import replace
from typing import Any

from unmask.protocols import Denoiser, EarlyStopping
from unmask.sampling.blocks import Blocks
from unmask.sampling.editing import TokenEditing
from unmask.sampling.guidance import ClassifierFree, EditGuidance
from unmask.sampling.ml_cache import MLCache
from unmask.sampling.orders import stratified
from unmask.sampling.reverse_time import Independent
from unmask.sampling.sampler import Sampler
from unmask.sampling.schedule import Equal, Fixed, ReverseTime, Shift
from unmask.sampling.selection import Confident, InOrder, PerSpan, SureOrCounted, Threshold
from unmask.sampling.stopping import EndOfTurn, Never
from unmask.sampling.token_sampler import (
    Categorical,
    Entropy,
    Greedy,
    GumbelText,
    LogProbability,
    Margin,
    OnlyIds,
    Probability,
    Score,
    Truncated,
    Without,
)


def lavida_o_image(*, grid: tuple[int, int], null_id: int, drop: Container[str], scale: float = 4.0) -> Sampler:
    """Text to image at 1024 pixels: 64 steps, shift 5, stratified order, temperature 0.8, guidance 4 (spec 4.2)."""
    return Sampler(
        schedule=Shift(steps=64, shift=5.0),
        guidance=ClassifierFree(scale=scale, drop=drop, null_id=null_id),
        token_sampler=Categorical(temperature=0.8),
        selection=InOrder(order=_stratified(grid)),
    )


def lavida_o_geneval(*, grid: tuple[int, int], null_id: int, drop: Container[str]) -> Sampler:
    """The benchmark scripts' setting: as ``lavida_o_image`` with shift 7 and guidance 4.5 (spec 4.2)."""
    return Sampler(
        schedule=Shift(steps=64, shift=7.0),
        guidance=ClassifierFree(scale=4.5, drop=drop, null_id=null_id),
        token_sampler=Categorical(temperature=0.8),
        selection=InOrder(order=_stratified(grid)),
    )


def lavida_o_image_256(*, null_id: int, drop: Container[str]) -> Sampler:
    """Text to image at 256 pixels: 20 steps, shift 5, noisy confidence, temperature 1, guidance 4 (spec 4.2)."""
    return Sampler(
        schedule=Shift(steps=20, shift=5.0),
        guidance=ClassifierFree(scale=4.0, drop=drop, null_id=null_id),
        token_sampler=Categorical(temperature=1.0),
        selection=Confident(noise=1.0),
    )


def lavida_o_edit(*, grid: tuple[int, int], null_id: int, drop: Container[str], keep: Container[str]) -> Sampler:
    """Editing at 1024 pixels: as the image, guidance 1.2, image guidance 1.4 (spec 4.2). ``keep``: the source codes' span."""
    return Sampler(
        schedule=Shift(steps=64, shift=5.0),
        guidance=EditGuidance(scale=1.2, image_scale=1.4, drop=drop, keep=keep, null_id=null_id),
        token_sampler=Categorical(temperature=0.8),
        selection=InOrder(order=_stratified(grid)),
    )


def llada_text(*, block: int = 128, temperature: float = 0.0, end: tuple[int, ...] = ()) -> Sampler:
    """Text in blocks, one token a step, the surest first (spec 4.1). ``end``: ids that end a turn, none to never stop."""
    return Sampler(
        schedule=Equal(steps=block),
        token_sampler=GumbelText(temperature=temperature),
        selection=Confident(),
        blocks=Blocks(length=block),
        stopping=_stop(end),
    )


def lavida_text_few_steps(*, steps: int, block: int = 128, end: tuple[int, ...] = ()) -> Sampler:
    """Fewer steps than tokens: many tokens early, shift 1/3 (LaViDa; spec 4.1). ``steps`` are those of one block."""
    return Sampler(
        schedule=Shift(steps=steps, shift=1 / 3),
        token_sampler=Greedy(),
        selection=Confident(),
        blocks=Blocks(length=block),
        stopping=_stop(end),
    )


def fast_dllm(base: Sampler, *, threshold: float = 0.9) -> Sampler:
    """As many tokens a step as are probable enough (Fast-dLLM, arXiv 2505.22618), without its caches."""
    sure = with_score(base.token_sampler, LogProbability()) if _has_score(base.token_sampler) else base.token_sampler
    return replace(base, schedule=Equal(steps=1), token_sampler=sure, selection=Threshold(value=threshold))


def ml_cache(base: Sampler, net: Denoiser, *, ratio: float = 0.9, warmup: float = 0.3, refresh: int = 5) -> Sampler:
    """Between full steps only the least certain tokens are computed (ML-Cache of Lumina-DiMOO, arXiv 2510.06308); approximate."""
    config = getattr(net, "config", None)
    first = getattr(config, "first_code", 0)
    codes = (first, first + config.codes) if config is not None and first else None
    return replace(base, cache=MLCache(ratio=ratio, warmup=warmup, interval=refresh, codes=codes))


def fast_dllm_text(*, threshold: float = 0.9, block: int = 32, end: tuple[int, ...] = ()) -> Sampler:
    """``fast_dllm`` for text in blocks, greedy."""
    return fast_dllm(replace(llada_text(block=block, end=end), token_sampler=Greedy()), threshold=threshold)


def lavida_o_plan(*, end: tuple[int, ...] = (), temperature: float = 0.5) -> Sampler:
    """A layout before the picture: blocks of 16, temperature 0.5 for images and 0 for edits (spec 4.8)."""
    return llada_text(block=16, temperature=temperature, end=end)


def lavida_o_critique(*, end: tuple[int, ...] = ()) -> Sampler:
    """A judgement of a picture: blocks of 16, greedy (spec 4.8)."""
    return llada_text(block=16, end=end)


def lavida_o_ground(*, low: int, high: int, steps: int = 1) -> Sampler:
    """Boxes: 4 / steps coordinates of every box a step, ids ``low <= id < high`` alone (spec 4.7).

    Each box is a writable span of its own. ``steps`` is 1, 2 or 4 in the paper.
    """
    return Sampler(
        schedule=Equal(steps=steps),
        token_sampler=OnlyIds(low=low, high=high, token_sampler=Greedy()),
        selection=PerSpan(selection=Confident()),
    )


def shared_vocabulary_text(
    *,
    text_ids: int,
    mask_id: int,
    drop: Container[str],
    end: tuple[int, ...],
    block: int,
    steps: int,
    temperature: float,
) -> Sampler:
    """Text of a model whose vocabulary has image codes too: LLaDA's blocks from left to right, the most probable tokens first.

    Only ids below ``text_ids`` are written, and never the mask; the released samplers take the best of all ids · ``end``: ids that end a
    text.
    """
    words = GumbelText(temperature=temperature)
    return Sampler(
        schedule=Equal(steps=steps),
        guidance=ClassifierFree(scale=0.0, drop=drop, null_id=mask_id),
        token_sampler=Without(ids=(mask_id,), token_sampler=words, size=text_ids),
        selection=Confident(),
        blocks=Blocks(length=block),
        stopping=_stop(end),
    )


def llada_base(
    *, null_id: int, drop: Container[str], end: tuple[int, ...] = (), length: int = 1024, scale: float = 0.0
) -> Sampler:
    """LLaDA-8B Base: the whole answer is one block, one token a step, the surest first (published: 1,024 tokens, guidance 0).

    ``scale``: text guidance, (1 + scale) c - scale u, where u sees the mask embedding instead of the prompt · ``end``: ids that end a
    text, which changes nothing before it; none to unmask every token, as published.
    """
    guidance = ClassifierFree(scale=scale, drop=drop, null_id=null_id)
    return replace(llada_text(block=length, end=end), guidance=guidance)


def llada_instruct(
    *, null_id: int, drop: Container[str], end: tuple[int, ...], block: int = 32, scale: float = 0.0
) -> Sampler:
    """LLaDA-8B Instruct and 1.5: blocks of 32 from left to right, one token a step (the published chat: 128 tokens).

    A row stops at its first end of turn, which changes nothing before it. ``scale`` as in ``llada_base``.
    """
    guidance = ClassifierFree(scale=scale, drop=drop, null_id=null_id)
    return replace(llada_text(block=block, end=end), guidance=guidance)


def dream_text(*, length: int, never: tuple[int, ...] = (), size: int = 0, end: tuple[int, ...] = ()) -> Sampler:
    """Dream-7B Instruct as its authors run it: as many steps as tokens, least entropy first, temperature 0.2, top-p 0.95, and the top-k 50
    that its code takes from the library's defaults (spec 4.1). ``never``: ids that no text has · ``size``: of the tokenizer.
    """
    return Sampler(
        schedule=ReverseTime(steps=length),
        token_sampler=Without(
            ids=never, size=size, token_sampler=Truncated(temperature=0.2, top_p=0.95, top_k=50, score=Entropy())
        ),
        selection=Confident(),
        stopping=_stop(end),
    )


def maskgit_plus(base: Sampler, *, noise: float = 0.0) -> Sampler:
    """Dream's order "maskgit_plus": the most probable candidates first. ``noise``: Dream's alg_temp, 0 for none."""
    return _ordered(base, Probability(), noise)


def topk_margin(base: Sampler, *, noise: float = 0.0) -> Sampler:
    """Dream's order "topk_margin": the largest distance between the best two candidates first. ``noise``: its alg_temp."""
    return _ordered(base, Margin(), noise)


def entropy(base: Sampler, *, noise: float = 0.0) -> Sampler:
    """Dream's order "entropy": the least uncertain first. ``noise``: its alg_temp."""
    return _ordered(base, Entropy(), noise)


def origin(base: Sampler, *, steps: int = 512, eps: float = 1e-3) -> Sampler:
    """Dream's order "origin": every masked token on its own, with the probability that time gives it. A step may unmask none."""
    return replace(base, schedule=Fixed(each=2**31), selection=Independent(steps=steps, eps=eps))


def token_editing(base: Sampler, *, threshold: float = 0.95, editing: float = 0.9, most: int = 16) -> Sampler:
    """Token editing of LLaDA2.1: ``threshold`` unmasks, ``editing`` replaces what was written in the block. ``most``: steps without a mask.

    A step unmasks at least as many tokens as the schedule says; LLaDA2.1's says one.
    The paper's speed mode has a low threshold and edits more, its quality mode a high one.
    """
    sure = SureOrCounted(value=threshold)
    scored = with_score(base.token_sampler, LogProbability())
    selection = TokenEditing(selection=sure, threshold=editing, most=most)
    return replace(base, token_sampler=scored, selection=selection)


def _ordered(base: Sampler, score: Score, noise: float) -> Sampler:
    return replace(base, token_sampler=with_score(base.token_sampler, score), selection=Confident(noise=noise))


def with_score(part: Any, score: Score) -> Any:
    """A token sampler whose candidates have another score. ValueError where it has none."""
    if not _has_score(part):
        raise ValueError(f"the token sampler of this task, {type(part).__name__}, has no score to order tokens by")
    if hasattr(part, "token_sampler"):
        return replace(part, token_sampler=with_score(part.token_sampler, score))
    return replace(part, score=score)


def _has_score(part: Any) -> bool:
    return _has_score(part.token_sampler) if hasattr(part, "token_sampler") else hasattr(part, "score")


def _stratified(grid: tuple[int, int]) -> tuple[int, ...]:
    if grid[0] != grid[1]:
        raise ValueError(
            f"the stratified order wants a square grid, got {grid[0]} x {grid[1]}; use InOrder(order=halton(..))"
        )
    return tuple(stratified(grid[0], 42))


def _stop(end: tuple[int, ...]) -> EarlyStopping:
    return EndOfTurn(ids=end) if end else Never()
