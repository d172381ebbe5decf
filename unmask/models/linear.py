"""Matrix products by the faster of two libraries. Public idea: ``Linear``, which is ``nn.Linear`` otherwise.

PyTorch gives float32 products on a CPU to MKL, which uses only half the vector width on processors of other makers than Intel: 104 against
230 GFLOP/s of oneDNN on an AMD EPYC (Zen 5) core, which PyTorch takes for the half types already. oneDNN's rows also round alike
from two rows on, where MKL needs four (docs/notes/0013-packed.md).

Shapes: I input width · O output width.
"""

from __future__ import annotations

import functools
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MOST_PACKED = 2**20  # numbers of a matrix that is kept in oneDNN's own order too; larger ones gain nothing by it
_ROWS = 64  # for which the order is chosen; it served 8 to 300 rows equally well


class Linear(nn.Linear):
    """``packs``: whether a copy of the weight in oneDNN's order may be kept, which costs as much memory again; ``pack`` sets it for a model
    that is opened for use. The copy follows every change of the weight that autograd's version counter or a new storage shows. After
    ``weight.data.copy_(..)``, which neither shows, call ``pack`` again.
    """

    packs = False

    def forward(self, input: Tensor) -> Tensor:
        weight, bias = self.weight, self.bias
        if self.packs and served_by_onednn(input, weight) and (kept := packed([self])) is not None:
            return onednn(input, kept, bias)
        return linear(input, weight, bias)


def is_plain(layer: nn.Module) -> bool:
    """Whether a layer is one matrix product and nothing else: a linear layer without a forward pass of its own."""
    return type(layer) in (nn.Linear, Linear)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [.., I] times weight [O, I], plus bias [O]."""
    return onednn(x, weight, bias) if served_by_onednn(x, weight) else F.linear(x, weight, bias)


def side_by_side(x: Tensor, layers: Sequence[nn.Module]) -> Sequence[Tensor]:
    """The outputs of several layers that read the same; one product where their weights are packed and nothing is hooked to them."""
    own = [one for one in layers if isinstance(one, Linear) and one.packs and not hooked(one)]
    if len(own) == len(layers) and served_by_onednn(x, own[0].weight) and all(one.bias is None for one in own):
        if (kept := packed(own)) is not None:
            return torch.split_with_sizes(onednn(x, kept), [one.out_features for one in own], -1)
    return [layer(x) for layer in layers]


def hooked(layer: nn.Module) -> bool:
    return bool(layer._forward_hooks or layer._forward_pre_hooks)


def pack(module: nn.Module) -> None:
    """Let the linear layers of a module keep copies of their weights in oneDNN's order; those that are kept are made anew."""
    for part in module.modules():
        if isinstance(part, Linear):
            part.packs = True
            _kept.pop(part, None)


def served_by_onednn(x: Tensor, weight: Tensor) -> bool:
    return (
        not torch.is_grad_enabled()
        and x.dtype == weight.dtype == torch.float32
        and x.is_cpu
        and type(weight) in (Tensor, nn.Parameter)
        and onednn_is_faster()
    )


def alike_from(x: Tensor) -> int:
    """Of how many rows a product with ``x`` is a multiple, so that each row rounds the same whatever the others: over fewer, another kernel
    may serve. 4 for each thread where oneDNN serves (2 were enough in every shape that was measured), else 16.
    """
    return min(16, 4 * torch.get_num_threads()) if served_by_onednn(x, x) else 16


@functools.cache
def onednn_is_faster() -> bool:
    """Whether float32 products go to oneDNN: where MKL would serve a processor with AVX-512 that is not Intel's."""
    if not (torch.backends.mkldnn.is_available() and torch.backends.mkl.is_available()):
        return False
    return torch.backends.cpu.get_cpu_capability() == "AVX512" and "GenuineIntel" not in _processor()


def _processor() -> str:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor()


def onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


@dataclass(frozen=True, kw_only=True)
class _Packed:
    """``sources``: what was packed; holding them keeps another weight from getting the same address."""

    sources: list[Tensor]
    state: list[tuple[int, int]]
    weight: Tensor


_kept: WeakKeyDictionary[nn.Module, dict[tuple[int, int] | str, _Packed]] = WeakKeyDictionary()


def keeps(layer: nn.Module) -> bool:
    """Whether what follows from the weights around a layer may be kept: it was opened for use (``pack``), and no gradient is wanted."""
    return not torch.is_grad_enabled() and is_plain(layer) and isinstance(layer, Linear) and layer.packs


def kept(layer: nn.Module, name: str, make: Callable[[], Tensor], weights: Sequence[Tensor]) -> Tensor:
    """What ``make`` returns, which follows from ``weights`` alone; made anew when they change, as far as ``Linear`` sees it."""
    state = [(w._version, w.data_ptr()) for w in weights]
    found = _kept.get(layer, {}).get(name)
    if found is None or found.state != state:
        found = _Packed(sources=[w.detach() for w in weights], state=state, weight=make())
        _kept.setdefault(layer, {})[name] = found
    return found.weight


def reordered(matrix: Tensor) -> Tensor:
    """A matrix [O, I] as ``linear`` multiplies by it fastest: in oneDNN's order where that serves it and it is small, else as it is."""
    if served_by_onednn(matrix, matrix) and matrix.numel() <= MOST_PACKED:
        return torch.ops.mkldnn._reorder_linear_weight(matrix.contiguous(), _ROWS)
    return matrix.contiguous()


def packed(layers: Sequence[nn.Linear], rows: int | None = None) -> Tensor | None:
    """The weights of layers, one under the other (``rows``: the first of them alone), in oneDNN's order; None where they are too large."""
    weights = [layer._parameters.get("weight") for layer in layers]  # as layer.weight, three times as fast
    name, some = (len(layers), rows or 0), _kept.get(layers[0])
    found = some.get(name) if some else None
    if found is not None and found.state == [None if w is None else (w._version, w.data_ptr()) for w in weights]:
        return found.weight
    return _newly_packed(layers, rows, name)


def _newly_packed(layers: Sequence[nn.Linear], rows: int | None, name: tuple[int, int]) -> Tensor | None:
    weights = [layer.weight for layer in layers]
    if sum(w.numel() for w in weights) > MOST_PACKED or any(type(w) not in (Tensor, nn.Parameter) for w in weights):
        return None
    whole = torch.cat([w.detach() for w in weights]) if len(weights) > 1 else weights[0].detach()
    made = torch.ops.mkldnn._reorder_linear_weight(whole[:rows].contiguous(), _ROWS)
    state = [(w._version, w.data_ptr()) for w in weights]
    entry = _Packed(sources=[w.detach() for w in weights], state=state, weight=made)
    _kept.setdefault(layers[0], {})[name] = entry
    return made
