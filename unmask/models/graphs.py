"""CUDA graphs of a network's layers: what was launched kernel by kernel once is launched whole from then on.

Public idea: ``net.graphs = Graphs()``, off by default. All layers below the last run as one graph for each layout, which a run keeps over
all its steps (``Layout``): shapes, masks, index and rotary tables stay the same tensors. The last layer reads only what a step scores, and
the heads and the sampler see as many tokens as the step unmasks, so these stay outside.

A graph reads its weights where they lay when it was captured. If they have moved since, it is captured again. Not used with gradients,
hooks (adapters, offloading) or cached keys and values.

Shapes: N packed positions of a branch · D width · E generation width.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from unmask.models.layout import Layout
from unmask.models.linear import hooked

Streams = tuple[Tensor | None, Tensor | None]  # understanding [N, D], generation [N, E]
Layers = Callable[[Streams], Streams]
Replay = Callable[[], None]
Capture = Callable[[Callable[[], Streams]], tuple[Streams, Replay]]


def capture(work: Callable[[], Streams]) -> tuple[Streams, Replay]:
    """What ``work`` returns on the current CUDA device, and what computes it anew in the same tensors.

    ``work`` runs once without being captured, on the stream of the capture: libraries allocate their workspaces for each stream, which must
    outlive the graph. Other threads may use the device meanwhile.
    """
    stream = _stream(torch.cuda.current_device())
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        found = work()
    return found, graph.replay


@functools.cache
def _stream(device: int) -> torch.cuda.Stream:
    """The stream on which all graphs of a device are captured."""
    return torch.cuda.Stream(device)


@dataclass(frozen=True, kw_only=True)
class _Graph:
    """``layout``: holding it keeps its tables where the graph reads them · ``weights``: where the weights lay."""

    layout: Layout
    weights: tuple[int, ...]
    inputs: Streams
    outputs: Streams
    replay: Replay


class Graphs:
    """``most``: graphs that are kept, the least recently used goes first; each holds the memory of a forward pass. ``captures``,
    ``replays``: how often a graph was captured and used.
    """

    def __init__(self, most: int = 4, capture: Capture = capture) -> None:
        if most < 1:
            raise ValueError(f"at least one graph must be kept, got most={most}; leave net.graphs None for none")
        self.most, self.capture = most, capture
        self.captures = self.replays = 0
        self.known: OrderedDict[tuple[int, bool], _Graph] = OrderedDict()
        self.seen: tuple[Layout, bool] | None = None  # of the last pass without a graph

    def clear(self) -> None:
        """Forget all graphs, and free their memory."""
        self.known.clear()
        self.seen = None

    def run(self, layers: Layers, blocks: nn.ModuleList, layout: Layout, streams: Streams, *, text: bool) -> Streams:
        """What ``layers`` makes of the streams; ``text``: whether text is scored. The result is overwritten by the next call.

        The first pass of a layout is not captured: kernels are chosen and tables made in it.
        """
        if any(map(hooked, blocks.modules())):
            return layers(streams)
        name, weights = (id(layout), text), tuple(place for p in blocks.parameters() for place in _places(p))
        graph = self.known.get(name)
        if graph is None or graph.weights != weights:
            if self.seen is None or self.seen[0] is not layout or self.seen[1] != text:
                self.seen = (layout, text)
                return layers(streams)
            graph = self._captured(layers, layout, weights, streams)
            self.known[name], self.captures = graph, self.captures + 1
            while len(self.known) > self.most:
                self.known.popitem(last=False)
        self.known.move_to_end(name)
        for own, given in zip(graph.inputs, streams, strict=True):
            if own is not None and given is not None:
                own.copy_(given)
        graph.replay()
        self.replays += 1
        return graph.outputs

    def _captured(self, layers: Layers, layout: Layout, weights: tuple[int, ...], streams: Streams) -> _Graph:
        u_ND, g_NE = streams
        inputs = (None if u_ND is None else u_ND.clone(), None if g_NE is None else g_NE.clone())
        device = next(x.device for x in inputs if x is not None)
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            outputs, replay = self.capture(lambda: layers(inputs))
        return _Graph(layout=layout, weights=weights, inputs=inputs, outputs=outputs, replay=replay)


def _places(weight: Tensor) -> Iterator[int]:
    """Where the numbers of a weight lie; a quantised one holds several tensors."""
    if is_traceable_wrapper_subclass(weight):
        for name in weight.__tensor_flatten__()[0]:
            yield from _places(getattr(weight, name))
    else:
        yield weight.data_ptr()
