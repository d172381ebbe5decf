"""A longer context than a model was trained with, by NTK scaling of its rotary base (LongLLaDA, arXiv 2506.14429). No training is needed.

Public idea: ``unmask.load(name, context=8192)``, or ``context=Context(tokens=8192, trained=4096)``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from unmask.models.rope import ntk_factor
from unmask.pipeline.loading import ModelSpec
from unmask.tasks.parts import Presets

DREAM_TRAINED = 2048  # tokens of a row in the training of Dream, whose config.json names the positions of Qwen2.5


@dataclass(frozen=True, kw_only=True)
class Context:
    """``tokens``: of the longest sequence, prompt and answer · ``trained``: of the longest row in training; 0: the context of the
    model's config.json, and at most 2,048 for Dream and the models made from it.
    """

    tokens: int
    trained: int = 0

    def __post_init__(self) -> None:
        for name, least in (("tokens", 1), ("trained", 0)):
            if not least <= (value := getattr(self, name)) <= 2**24:
                raise ValueError(f"context: {name} must be a whole number in {least}..{2**24}, got {value}")
        if 0 < self.trained < 7:
            raise ValueError(f"context: trained must be at least 7 tokens, got {self.trained}; 0 takes the model's own")


def as_context(given: int | Context | None) -> Context | None:
    """A number of tokens as a ``Context``. ValueError for one that is not in range."""
    return given if given is None or isinstance(given, Context) else Context(tokens=given)


def scaled(spec: ModelSpec, context: Context | None, own: int) -> ModelSpec:
    """The spec of a model whose rotary base is scaled to ``context``; the same spec for None.

    ``own``: the context of its config.json, in tokens. Text, picture features and codes share one row of positions, so the factor holds
    for all of them.
    """
    if context is None:
        return spec
    config = spec.checkpoint.config
    trained = context.trained or (min(own, DREAM_TRAINED) if config.shifted else own)
    factor = ntk_factor(config.rope_theta, config.head_channels, max(trained, 7), context.tokens)
    return replace(spec, checkpoint=replace(spec.checkpoint, config=replace(config, rope_factor=factor)))


def fitted(presets: Presets, context: Context | None) -> Presets:
    """Presets for sequences of at most ``context`` tokens, a turn of a conversation at most half of them."""
    if context is None:
        return presets
    turn = min(presets.turn, max(1, context.tokens // 2))
    exact = presets.exact and fitted(presets.exact, context)
    return replace(presets, context=context.tokens, turn=turn, exact=exact)
