"""CUDA graphs of a network's layers: what was launched kernel by kernel once is launched whole from then on.

Public idea: ``net.graphs = Graphs()``, off by default. All layers below the last run as one graph for each layout, which a run keeps over
all its steps (``Layout``): shapes, masks, index and rotary tables stay the same tensors. The last layer reads only what a step scores, and
the heads and the sampler see as many tokens as the step unmasks, so these stay outside.

A graph reads its weights where they lay when it was captured. If they have moved since, it is captured again. Not used with gradients,
hooks (adapters, offloading).

Cached keys and values: a layout also stands for what is held, which does not change while it lasts. So a graph reads the keys and values
that were held when it was captured, and each step has those that it computes.

Shapes: N packed positions of a branch · D width · E generation width.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from unmask.models.layout import Layout
from unmask.models.linear import hooked
from unmask.models.memory import Memory
from unmask.step import State

Streams = tuple[Tensor | None, Tensor | None]  # understanding [N, D], generation [N, E]
Layers = Callable[[Streams, Memory | None], Streams]
Replay = Callable[[], None]
Found = tuple[Tensor | None, ...]  # both streams, then keys and values
Capture = Callable[[Callable[[], Found]], tuple[Found, Replay]]


def capture(work: Callable[[], Found]) -> tuple[Found, Replay]:
    """What ``work`` returns on the current CUDA device, and what computes it anew in the same tensors.

    All captures of a device use one stream, and the first ``work`` runs there without being captured: libraries allocate their workspaces
    for each stream, which must outlive the graph. Other threads may use the device meanwhile.
    """
    stream = _streams.get(torch.cuda.current_device())
    if stream is None:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            work()
        torch.cuda.current_stream().wait_stream(stream)
        _streams[torch.cuda.current_device()] = stream
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.stream(
        torch.cuda.current_stream()
    ):  # a capture that fails would leave its own stream as the current one
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            found = work()
    return found, graph.replay


_streams: dict[int, torch.cuda.Stream] = {}  # of each device


@dataclass(frozen=True, kw_only=True)
class _Graph:
    """``layout``, ``state``: holding them keeps what the graph reads where it is · ``weights``: where the weights lay · ``tensors``: keys
    and values that it computes, by name.
    """

    layout: Layout
    weights: tuple[int, ...]
    inputs: Streams
    outputs: Streams
    replay: Replay
    state: State | None
    tensors: dict[str, Tensor]


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

    def run(
        self,
        layers: Layers,
        blocks: nn.ModuleList,
        layout: Layout,
        streams: Streams,
        *,
        text: bool,
        memory: Memory | None = None,
    ) -> Streams:
        """What ``layers`` makes of the streams, and of ``memory``; ``text``: whether text is scored. The next call overwrites the result.

        The first pass of a layout is not captured: kernels are chosen and tables made in it.
        """
        if any(map(hooked, blocks.modules())):
            return layers(streams, memory)
        name, weights = (id(layout), text), tuple(place for p in blocks.parameters() for place in _places(p))
        graph = self.known.get(name)
        if graph is None or graph.weights != weights:
            if self.seen is None or self.seen[0] is not layout or self.seen[1] != text:
                self.seen = (layout, text)
                return layers(streams, memory)
            graph = self._captured(layers, layout, weights, streams, memory)
            self.known[name], self.captures = graph, self.captures + 1
            while len(self.known) > self.most:
                self.known.popitem(last=False)
        self.known.move_to_end(name)
        for own, given in zip(graph.inputs, streams, strict=True):
            if own is not None and given is not None:
                own.copy_(given)
        graph.replay()
        self.replays += 1
        if memory is not None:
            memory.tensors.update(graph.tensors)
        return graph.outputs

    def _captured(
        self, layers: Layers, layout: Layout, weights: tuple[int, ...], streams: Streams, memory: Memory | None
    ) -> _Graph:
        u_ND, g_NE = streams
        inputs = (None if u_ND is None else u_ND.clone(), None if g_NE is None else g_NE.clone())
        device = next(x.device for x in inputs if x is not None)

        names: list[str] = []

        def work() -> Found:
            own = memory and Memory(state=memory.state, slots=memory.slots)
            found = layers(inputs, own)
            names[:] = own.tensors if own else ()
            return (*found, *(own.tensors.values() if own else ()))

        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            (u_ND, g_NE, *rest), replay = self.capture(work)
        return _Graph(
            layout=layout,
            weights=weights,
            inputs=inputs,
            outputs=(u_ND, g_NE),
            replay=replay,
            state=memory.state if memory else None,
            tensors={name: tensor for name, tensor in zip(names, rest, strict=True) if tensor is not None},
        )


def _places(weight: Tensor) -> Iterator[int]:
    """Where the numbers of a weight lie; a quantised one holds several tensors."""
    if is_traceable_wrapper_subclass(weight):
        for name in weight.__tensor_flatten__()[0]:
            yield from _places(getattr(weight, name))
    else:
        yield weight.data_ptr()
