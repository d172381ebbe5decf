"""LoRA (Hu et al. 2021, arXiv 2106.09685): a trainable low-rank product beside frozen linear layers.

Public idea: ``LoRA(rank=8, where=lambda name: name.endswith((".q", ".v")))(model)`` adapts a model in place and freezes its other
weights. A layer keeps its class, its name and its weight; the product is added by a forward hook, so it reaches every layer
that is called as a module. ``merge`` folds the products into the weights, ``unmerge`` restores the weights bit for bit.

Shapes: I input width · O output width · R rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unmask.rng import generator

_CHILD = "lora"


class Adapter(nn.Module):
    """``down [R, I]`` and ``up [O, R]`` of one layer. ``scale``: factor of their product."""

    def __init__(self, layer: nn.Linear, rank: int, scale: float) -> None:
        super().__init__()
        like = {"dtype": layer.weight.dtype, "device": layer.weight.device}
        self.down = nn.Parameter(torch.zeros(rank, layer.in_features, **like))
        self.up = nn.Parameter(torch.zeros(layer.out_features, rank, **like))
        self.scale = scale
        self.original: Tensor | None = None  # the layer's weight while the product is merged into it

    def forward(self, x: Tensor, width: int) -> Tensor:
        """What is added to the first ``width`` outputs for an input [..., I]."""
        return x @ self.down.T @ self.up[:width].T * self.scale


@dataclass(frozen=True, kw_only=True)
class LoRA:
    """Adapters for the linear layers whose module name ``where`` selects.

    ``alpha``: the product is scaled by alpha / rank · ``seed``: of the first ``down``; ``up`` starts at zero, so the adapted model
    first computes what the model did.
    """

    where: Callable[[str], bool]
    rank: int = 8
    alpha: float = 16.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"the rank of LoRA must be at least 1, got {self.rank}")

    def __call__(self, model: nn.Module) -> None:
        """Insert the adapters and freeze everything else, in place.

        ValueError where ``where`` selects no linear layer, or the model already has adapters.
        """
        linear = [(name, part) for name, part in model.named_modules() if isinstance(part, nn.Linear)]
        chosen = [(name, layer) for name, layer in linear if self.where(name)]
        if not chosen:
            some = ", ".join(name for name, _ in linear[:3]) or "none"
            raise ValueError(f"LoRA's `where` selects none of {len(linear)} linear layers; their names are like {some}")
        model.requires_grad_(False)
        for name, layer in chosen:
            adapter = insert(layer, self.rank, self.alpha / self.rank, name)
            with torch.no_grad():
                bound = layer.in_features**-0.5
                start = torch.empty(adapter.down.shape).uniform_(
                    -bound, bound, generator=generator("lora", self.seed, name)
                )
                adapter.down.copy_(start)


def insert(layer: nn.Linear, rank: int, scale: float, name: str) -> Adapter:
    """Give a layer an adapter, all zero. ValueError where it has one; ``name`` is the layer's, for the message."""
    if hasattr(layer, _CHILD):
        raise ValueError(f"{name} already has an adapter; merge it first, or load the base weights anew")
    adapter = Adapter(layer, rank, scale)
    layer.add_module(_CHILD, adapter)
    layer.register_forward_hook(_add)
    return adapter


def _add(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """A layer's output with its adapter's. A layer that returns its first outputs alone gets those of the adapter."""
    adapter = layer.get_submodule(_CHILD)
    assert isinstance(adapter, Adapter)
    return output if adapter.original is not None else output + adapter(inputs[0], output.shape[-1])


def adapters(model: nn.Module) -> Iterator[tuple[str, nn.Linear, Adapter]]:
    """(name of the layer, layer, its adapter) of every adapted layer."""
    for name, layer in model.named_modules():
        adapter = getattr(layer, _CHILD, None)
        if isinstance(layer, nn.Linear) and isinstance(adapter, Adapter):
            yield name, layer, adapter


@torch.no_grad()
def merge(model: nn.Module) -> None:
    """Add every product to its layer's weight, rounded once. The original weights are kept for ``unmerge``."""
    for _, layer, adapter in adapters(model):
        if adapter.original is None:
            product = adapter.up.float() @ adapter.down.float() * adapter.scale
            adapter.original = layer.weight.data
            layer.weight.data = (layer.weight.float() + product[: len(layer.weight)]).to(layer.weight.dtype)


@torch.no_grad()
def unmerge(model: nn.Module) -> None:
    """Put the original weights back, bit for bit."""
    for _, layer, adapter in adapters(model):
        if adapter.original is not None:
            layer.weight.data = adapter.original.to(layer.weight)
            adapter.original = None


def adapter_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The adapters alone, by their names in the model's state. ValueError where there are none."""
    found = {
        f"{name}.{_CHILD}.{part}": tensor.detach()
        for name, _, adapter in adapters(model)
        for part, tensor in (("down", adapter.down), ("up", adapter.up))
    }
    if not found:
        raise ValueError("the model has no adapters; call LoRA(...)(model) first")
    return found


def insert_tensors(model: nn.Module, tensors: Mapping[str, Tensor], scales: Mapping[str, float]) -> None:
    """The inverse of ``adapter_tensors``, on a model with or without its adapters. ``scales``: by the layer's name.

    ValueError names a layer that is missing or does not fit; nothing is changed then.
    """
    layers = {name: part for name, part in model.named_modules() if isinstance(part, nn.Linear)}
    own = {name: adapter for name, _, adapter in adapters(model)}
    found = {}
    for name in scales:
        down, up = (tensors.get(f"{name}.{_CHILD}.{part}") for part in ("down", "up"))
        layer = layers.get(name)
        if layer is None or down is None or up is None:
            raise ValueError(f"the adapter has {name}, but the model or the file lacks it; was it made for this model?")
        wanted = (layer.out_features, down.shape[0]), (down.shape[0], layer.in_features)
        if (tuple(up.shape), tuple(down.shape)) != wanted or (name in own and own[name].down.shape != down.shape):
            raise ValueError(f"the adapter of {name} is {tuple(up.shape)} by {tuple(down.shape)}, which does not fit")
        found[name] = layer, down, up
    for name, (layer, down, up) in found.items():
        adapter = own.get(name) or insert(layer, down.shape[0], scales[name], name)
        adapter.scale = scales[name]
        with torch.no_grad():
            adapter.down.copy_(down)
            adapter.up.copy_(up)
