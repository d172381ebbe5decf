"""The presets of a model that was trained for step-causal decoding (Sparse-LaViDa). Public idea: ``step_causal(presets) -> Presets``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from unmask.sampling.sampler import Sampler
from unmask.sampling.step_causal import sparse_image, sparse_text
from unmask.tasks.parts import Parts, Presets


def step_causal(presets: Presets) -> Presets:
    """The same presets, with every sampler step-causal: pictures by position in a fixed order, texts in their blocks."""

    def image(make: Callable[[Parts], Sampler]) -> Callable[[Parts], Sampler]:
        return lambda parts: sparse_image(make(parts), grid=parts.grid, fold=parts.fold)

    return replace(
        presets.with_sampler(sparse_text),
        generate=image(presets.generate),
        edit=image(presets.edit),
        edit_again=image(presets.edit_again),
    )
