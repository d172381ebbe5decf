"""How probable a text model finds given answers, for likelihood benchmarks and multiple choice.

Public idea: ``likelihood(model, prompt, answer) -> Bound`` and ``choose(model, prompt, answers)``; ``objectives.likelihood`` has the
estimator. Published settings of LLaDA-8B Base: 128 samples, text guidance 0.5 (ARC-C, HellaSwag, PIQA, GPQA), 2 (TruthfulQA) or 0; one
sample for one-token answers (MMLU, CMMLU, C-Eval), where the bound is exact.
"""

from __future__ import annotations

from collections.abc import Sequence as Items

from unmask.objectives.likelihood import Bound, bound
from unmask.pipeline.text_model import TextModel
from unmask.sampling.guidance import ClassifierFree
from unmask.tokens.build import PROMPT
from unmask.tokens.text import MASK


def likelihood(
    model: TextModel, prompt: str, answer: str, *, samples: int = 128, seed: int = 0, scale: float = 0.0
) -> Bound:
    """The bound of ln p(answer | prompt) of a text model, without a chat template. ``scale``: text guidance."""
    text = model.parts.text
    context = prompt.rstrip()  # the token of a word includes the space before it
    whole, given = text.encode(context + prompt[len(context) :] + answer), text.encode(context)
    if not given or len(whole) <= len(given):
        raise ValueError("a likelihood needs a non-empty prompt and answer")
    b = model.parts.builder().say("prompt", *whole[: len(given)])
    sequence = b.write("answer", whole[len(given) :]).build(prompt)
    guidance = ClassifierFree(scale=scale, drop=PROMPT, null_id=text[MASK])
    return bound(model.parts.net, sequence, samples=samples, seed=seed, guidance=guidance, device=model.device)


def choose(
    model: TextModel, prompt: str, answers: Items[str], *, samples: int = 128, seed: int = 0, scale: float = 0.0
) -> tuple[int, list[Bound]]:
    """Index of the most probable answer, and the bounds of all, for multiple choice."""
    if not answers:
        raise ValueError("no answers to choose from; give at least one")
    bounds = [likelihood(model, prompt, a, samples=samples, seed=seed, scale=scale) for a in answers]
    return max(range(len(bounds)), key=lambda i: bounds[i].value), bounds
