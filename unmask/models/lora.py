"""LoRA (Hu et al. 2021, arXiv 2106.09685): a trainable low-rank product beside frozen linear layers.

Public idea: ``LoRA(rank=16, where=in_branches("und", "gen"))(model)`` adapts a model in place and freezes its other weights. A layer keeps
its class, its name and its weight; the product is added by a forward hook, so it reaches every layer that is called as a module, also one
with quantised weights. ``merge`` folds the products into the weights, ``unmerge`` restores the weights bit for bit. ``add_products``
inserts products that were saved (``checkpoints.adapters``); those of several adapters add up. ``sharing`` copies a model without its
weights. ``without_adapters`` gives the model before its adapters.

Shapes: I input width · O output width · R rank.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unmask.models.linear import is_plain
from unmask.rng import generator

M = TypeVar("M", bound=nn.Module)
_CHILD = "lora"
_BRANCHES = {
    "und": r"blocks\.\d+\.und\..+",
    "gen": r"blocks\.\d+\.gen\..+",
    "out": r"blocks\.\d+\.out",
    "codes": r"code_(embedding|head)\..+",
    "vision": r"vision\..+",
    "text_head": r"text_head",
}


def in_branches(*branches: str) -> Callable[[str], bool]:
    """Whether a layer, by its name in ``Elastic``, is in one of some parts of the network, for ``LoRA(where=...)``.

    ``und``, ``gen``: the layers of a branch · ``out``: the attention output projections, which both branches share · ``codes``: embedding
    and head of image codes · ``vision``: the vision tower and its projection · ``text_head``. ValueError for other names.
    """
    for branch in branches:
        if branch not in _BRANCHES:
            raise ValueError(f"no part of the network is called {branch!r}; choose from {', '.join(_BRANCHES)}")
    patterns = [re.compile(_BRANCHES[branch]) for branch in branches]
    return lambda name: any(pattern.fullmatch(name) for pattern in patterns)


@dataclass(frozen=True, kw_only=True)
class Product:
    """What is added to a layer's weight: ``scale * up @ down``, with ``down [R, I]`` and ``up [O, R]``."""

    down: Tensor
    up: Tensor
    scale: float


class Adapter(nn.Module):
    """The product of one layer, trainable."""

    def __init__(self, product: Product) -> None:
        super().__init__()
        self.down, self.up = nn.Parameter(product.down), nn.Parameter(product.up)
        self.scale = product.scale
        self.original: Tensor | None = None  # the layer's weight while the product is merged into it
        self.off = False

    def forward(self, x: Tensor, width: int) -> Tensor:
        """What is added to the first ``width`` outputs for an input [..., I]."""
        rank = len(self.down)
        # A product with one column takes another kernel, which rounds by the number of rows (docs/notes/0005-engine.md).
        down = self.down if rank > 1 else F.pad(self.down, (0, 0, 0, 1))
        return (x @ down.T)[..., :rank] @ self.up[:width].T * self.scale

    @property
    def product(self) -> Product:
        return Product(down=self.down.detach(), up=self.up.detach(), scale=self.scale)


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
            like, bound = {"dtype": layer.weight.dtype, "device": layer.weight.device}, layer.in_features**-0.5
            down = torch.empty(self.rank, layer.in_features)
            down.uniform_(-bound, bound, generator=generator("lora", self.seed, name))
            if is_quantised(layer.weight) and is_plain(layer):
                layer.forward = partial(_quantised, layer)  # type: ignore[method-assign]
            up = torch.zeros(layer.out_features, self.rank, **like)
            _insert(layer, Product(down=down.to(**like), up=up, scale=self.alpha / self.rank), name)


class _Frozen(torch.autograd.Function):
    """A linear layer whose weight gets no gradient. It keeps the weight as it is for the backward pass, where autograd would keep a copy in
    floats of a quantised one.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # type: ignore[override]
        ctx.weight = weight
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        return grad @ ctx.weight.dequantize().to(grad.dtype), None, None


def _quantised(layer: nn.Linear, x: Tensor) -> Tensor:
    return _Frozen.apply(x, layer.weight, layer.bias)  # type: ignore[no-any-return]


def _insert(layer: nn.Linear, product: Product, name: str) -> None:
    """Give a layer an adapter. ValueError where it has one; ``name`` is the layer's, for the message."""
    if hasattr(layer, _CHILD):
        raise ValueError(f"{name} already has an adapter; merge it first, or load the base weights anew")
    layer.add_module(_CHILD, Adapter(product))
    layer.register_forward_hook(_add)


def _add(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """A layer's output with its adapter's. A layer that returns its first outputs alone gets those of the adapter."""
    adapter = layer.get_submodule(_CHILD)
    assert isinstance(adapter, Adapter)
    if adapter.off or adapter.original is not None:
        return output
    return output + adapter(inputs[0], output.shape[-1])


def adapters(model: nn.Module) -> Iterator[tuple[str, nn.Linear, Adapter]]:
    """(name of the layer, layer, its adapter) of every adapted layer."""
    for name, layer in model.named_modules():
        adapter = getattr(layer, _CHILD, None)
        if isinstance(layer, nn.Linear) and isinstance(adapter, Adapter):
            yield name, layer, adapter


@contextmanager
def without_adapters(model: M) -> Iterator[M]:
    """The model as it was before its adapters, as long as the context lasts. ValueError where they are merged."""
    found = list(adapters(model))
    if merged_one := next((name for name, _, adapter in found if adapter.original is not None), None):
        raise ValueError(f"{merged_one} has an adapter that is merged; unmerge it first")
    for _, _, adapter in found:
        adapter.off = True
    try:
        yield model
    finally:
        for _, _, adapter in found:
            adapter.off = False


@torch.no_grad()
def merge(model: nn.Module) -> None:
    """Add every product to its layer's weight, rounded once. The original weights are kept for ``unmerge``.

    ValueError where a weight is quantised.
    """
    for name, layer, adapter in adapters(model):
        if adapter.original is None:
            if is_quantised(layer.weight):
                raise ValueError(f"{name} has quantised weights, which cannot be merged; merge into the original ones")
            added = merged(layer.weight, adapter.product)
            adapter.original = layer.weight.data
            layer.weight.data = added


def is_quantised(weight: Tensor) -> bool:
    """Whether a weight is held in a type of its own, as quantised ones are."""
    return type(weight) not in (Tensor, nn.Parameter)


def merged(weight: Tensor, *products: Product) -> Tensor:
    """A weight [O, I], or its first rows, with products added in float32 and rounded once."""
    total = weight.float()
    for product in products:
        up, down = (factor.to(weight.device).float() for factor in (product.up[: len(weight)], product.down))
        total = total + up @ down * product.scale
    return total.to(weight.dtype)


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


def add_products(model: nn.Module, products: Mapping[str, Product]) -> None:
    """Add products by the names of their layers, on top of those that the layers have. Each has the dtype and device to compute in."""
    for name, product in products.items():
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        if isinstance(old := getattr(layer, _CHILD, None), Adapter):
            if old.original is not None:
                raise ValueError(f"{name} has an adapter that is merged; unmerge it first")
            setattr(layer, _CHILD, Adapter(_sum(old.product, product)))
        else:
            _insert(layer, product, name)


def _sum(one: Product, other: Product) -> Product:
    """Both products as one, of the sum of their ranks."""
    up = torch.cat([one.up * one.scale, (other.up * other.scale).to(one.up)], dim=1)
    return Product(down=torch.cat([one.down, other.down.to(one.down)]), up=up, scale=1.0)


def sharing(model: M) -> M:
    """A copy with modules of its own and the weights of ``model``: adapters that are inserted into it do not change ``model``."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)
