"""SUR-adapter: a small adapter on the text states of a frozen generator, so that a terse prompt draws what a detailed one would.

Paper: Zhong et al., "SUR-adapter: Enhancing Text-to-Image Pre-trained Diffusion Models with Large Language Models", 2023,
arXiv 2305.05189.

Equations: with x the states of the terse prompt, h = two transformer layers of x, q = W_q h, k = W_k x, and x itself as values:

    s = softmax(q k^T / sqrt(D)) x + x        r = MLP(s) + s        out = 0.1 (W r + b) + x                      (``models.bridges``)
    loss = denoising loss of the frozen generator that reads out
         + 1e-5 KL(softmax h || softmax of a projected language-model vector) + 1e-5 KL(softmax out || softmax of the detailed states)

The KLs are over features, summed over words, and divided by the number of rows.

What changes: the text states that a generator reads; its weights stay as they are.

What it costs: three small layers on one prompt a drawing; training runs the frozen generator forward and backward.

As released (``released``): out = 0.1 (..) + 0.9 x, so the states shrink before any training; attention runs over the rows of a batch, so
that a prompt depends on its neighbours; the adapter's output is detached before the generator, so the pictures never train it and only the
KLs do, at weight 1e-5 (``through=False``). The projection of the language-model vector is random and frozen.

Shapes: B rows · L words · D width of the text states · W width of the language model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unmask.methods.card import Card
from unmask.models.bridges import TextAdapter, feature_kl
from unmask.step import Loss

_UNUSED = ("encoder_layer.", "attention.value_layer.")  # weights of the release that nothing reads


@dataclass(frozen=True, kw_only=True)
class Triples:
    """A batch. ``short``, ``long`` [B, L, D]: text states of the terse and the detailed prompt · ``vector`` [B, 1, W]: of a language
    model · ``target``: what the generator's loss needs, such as pictures.
    """

    short: Tensor
    long: Tensor
    vector: Tensor
    target: Tensor


class SurAdapter(nn.Module):
    """The adapter, and the frozen random projection of the language-model vector."""

    def __init__(self, adapter: TextAdapter, *, vector: int, width: int) -> None:
        super().__init__()
        self.adapter, self.resize = adapter, nn.Linear(vector, width).requires_grad_(False)

    def forward(self, short_BLD: Tensor) -> tuple[Tensor, Tensor]:
        return self.adapter(short_BLD)


def released(
    width: int, state: Mapping[str, Tensor], *, heads: int = 8, share: float = 0.1, across: bool = True
) -> TextAdapter:
    """The adapter of a released checkpoint. ``across``: False lets it attend over words, as is meant. ValueError for missing weights."""
    kept = {name: tensor for name, tensor in state.items() if not name.startswith(_UNUSED)}
    layers = {name.split(".")[2] for name in kept if name.startswith("transformer_encoder.layers.")}
    first = "transformer_encoder.layers.0.linear1.weight"
    if first not in kept:
        raise ValueError(f"the weights have no {first}; pass the state dictionary of a SUR-adapter")
    adapter = TextAdapter(
        width, heads=heads, hidden=len(kept[first]), layers=len(layers), share=share, kept=1 - share, across=across
    )
    adapter.load_state_dict(kept)
    return adapter


@dataclass(frozen=True, kw_only=True)
class Distilled:
    """The objective; the model is a ``SurAdapter``.

    ``denoising(states, batch)``: the loss of the frozen generator under the new states · ``weight``: of both KLs · ``through``: False
    gives the generator's loss no gradient, as the release does.
    """

    denoising: Callable[[Tensor, Triples], Tensor]
    vector_weight: float = 1e-5
    prompt_weight: float = 1e-5
    through: bool = True

    def __call__(self, model: SurAdapter, batch: Triples, rng: torch.Generator) -> Loss:
        states, encoded = model(batch.short)
        terms = {
            "denoising": self.denoising(states if self.through else states.detach(), batch),
            "vector": feature_kl(model.resize(batch.vector), encoded),
            "prompt": feature_kl(batch.long, states),
        }
        total = terms["denoising"] + self.vector_weight * terms["vector"] + self.prompt_weight * terms["prompt"]
        logged = {name: term.detach() for name, term in terms.items()}
        return Loss(total=total, terms=logged, counts=dict.fromkeys(terms, len(batch.short)))


CARD = Card(
    title="SUR-adapter: Enhancing Text-to-Image Pre-trained Diffusion Models with Large Language Models",
    paper="arXiv 2305.05189",
    year=2023,
    changes="conditioning: an adapter on the text states of a frozen generator, distilled from detailed prompts and a language model",
    claim="Short narrative prompts draw what they mean, at the quality of the plain generator.",
    status="tiny-checked",
    figure="48 drawings of new terse prompts by the frozen mini, 3 adapters, 80 updates: as meant .333 [.244, .423] right, as released and "
    "without an adapter 0; detailed prompts 1.0 before and after",
    recipe="sur_adapter.terse",
    python="from unmask.methods.sur_adapter import Distilled, SurAdapter, Triples, released",
)
