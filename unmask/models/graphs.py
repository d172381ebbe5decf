"""CUDA graphs of a network's layers: what was launched kernel by kernel once is launched whole from then on.

Public idea: ``net.graphs = Graphs()``, which ``unmask.load`` sets on a CUDA device. All layers below the last run as one graph for each
layout, which a run keeps over all its steps (``Layout``): shapes, masks, index and rotary tables stay the same tensors. The last layer
reads only what a step scores, and the heads and the sampler see as many tokens as the step unmasks, so these stay outside.

A graph reads its weights where they lay when it was captured. If they have moved since, it is captured again. Not used with gradients or
hooks (adapters, offloading), or for shapes that change at every step. A layout that cannot be captured runs kernel by kernel.

Memory: a graph holds what a forward pass needs beside the weights, until the run that it serves has ended.

Cached keys and values: a layout also stands for what is held, which does not change while it lasts. So a graph reads the keys and values
that were held when it was captured, and each step has those that it computes.

Shapes: N packed positions of a branch · D width · E generation width.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

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


@dataclass(kw_only=True, eq=False)
class _Graph:
    """``weights``: where the weights lay · ``state``: holding it keeps what the graph reads where it is; its layout lives as long as the
    graph is kept · ``tensors``: keys and values that it computes, by name · ``used``: at which pass it was used last.
    """

    weights: tuple[int, ...]
    inputs: Streams
    outputs: Streams
    replay: Replay
    state: State | None
    tensors: dict[str, Tensor]
    used: int = 0


class Graphs:
    """``most``: graphs that are kept; each holds the memory of a forward pass until its run has ended; one that was not used for
    a while makes room, and while there is no room, runs go kernel by kernel · ``after``: passes of a layout before it is captured, at least
    1, in which kernels are chosen and tables made; on an H200 a capture costs what seven replays gain · ``captures``, ``replays``: how
    often a graph was captured and used · ``failure``: why a layout could not be captured; after three, nothing is captured any more.
    """

    def __init__(self, most: int = 4, capture: Capture = capture, *, after: int = 2) -> None:
        if min(most, after) < 1:
            raise ValueError(
                f"most and after must be at least 1, got most={most}, after={after}; leave net.graphs None for no graphs"
            )
        self.most, self.after, self.capture = most, after, capture
        self.calls = self.captures = self.replays = self.failures = 0
        self.failure: Exception | None = None
        self.known: OrderedDict[_Name, _Graph] = OrderedDict()
        self.passes: dict[_Name, int] = {}  # without a graph, of the layouts of runs that go on; -1 after a failure
        self.watched: dict[int, weakref.ref[Layout]] = {}  # these layouts

    def __reduce__(self) -> tuple[Any, ...]:
        return _anew, (self.most, self.capture, self.after)  # a copy of a network captures its own

    def clear(self) -> None:
        """Forget all graphs, and free their memory."""
        self.known.clear()
        self.passes.clear()
        self.watched.clear()

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
        """What ``layers`` makes of the streams and of ``memory``; ``text``: whether text is scored. The next call overwrites the result."""
        self.calls += 1
        if any(map(hooked, blocks.modules())):
            return layers(streams, memory)
        name, weights = (id(layout), text), tuple(place for p in blocks.parameters() for place in _places(p))
        graph = self.known.get(name)
        if graph is None or graph.weights != weights:
            graph = self._made(name, layers, layout, weights, streams, memory)
            if graph is None:
                return layers(streams, memory)
        graph.used = self.calls
        self.known.move_to_end(name)
        for own, given in zip(graph.inputs, streams, strict=True):
            if own is not None and given is not None:
                own.copy_(given)
        graph.replay()
        self.replays += 1
        if memory is not None:
            memory.tensors.update(graph.tensors)
        return graph.outputs

    def _made(
        self,
        name: _Name,
        layers: Layers,
        layout: Layout,
        weights: tuple[int, ...],
        streams: Streams,
        memory: Memory | None,
    ) -> _Graph | None:
        """A new graph; None where this pass runs kernel by kernel."""
        if self.failures >= _FAILURES:
            return None
        if id(layout) not in self.watched:
            self.watched[id(layout)] = weakref.ref(layout, partial(self._ended, id(layout)))
        passes = self.passes.get(name, 0)
        if passes < self.after:
            self.passes[name] = passes + 1 if passes >= 0 else passes
            return None
        if not self._room():
            return None
        try:
            graph = self._captured(layers, weights, streams, memory)
        except Exception as error:
            self._failed(name, error)
            return None
        self.known[name], self.captures = graph, self.captures + 1
        return graph

    def _room(self) -> bool:
        """Whether one more graph may be kept: the least recently used goes if nobody used it for a while."""
        if len(self.known) >= self.most:
            name, oldest = next(iter(self.known.items()))
            if self.calls - oldest.used > _IDLE * self.most:
                self.known.pop(name, None)
        return len(self.known) < self.most

    def _failed(self, name: _Name, error: Exception) -> None:
        """Free what a capture needed; this layout is not captured again."""
        self.failure, self.failures = error.with_traceback(None), self.failures + 1
        self.known.clear()
        self.passes[name] = -1
        if isinstance(error, torch.OutOfMemoryError):
            torch.cuda.empty_cache()

    def _ended(self, layout: int, gone: object = None) -> None:
        """The run of a layout has ended: nothing will use its graphs again."""
        self.watched.pop(layout, None)
        for text in (False, True):
            self.known.pop((layout, text), None)
            self.passes.pop((layout, text), None)

    def _captured(self, layers: Layers, weights: tuple[int, ...], streams: Streams, memory: Memory | None) -> _Graph:
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
            weights=weights,
            inputs=inputs,
            outputs=(u_ND, g_NE),
            replay=replay,
            state=memory.state if memory else None,
            tensors={name: tensor for name, tensor in zip(names, rest, strict=True) if tensor is not None},
        )


_Name = tuple[int, bool]  # which layout, and whether text is scored
_FAILURES = 3
_IDLE = 4  # passes for each graph that is kept, after which one that was not used makes room


def graphs_on(device: str) -> Graphs | None:
    """What ``unmask.load`` sets as ``net.graphs``; None for a device that has no graphs."""
    return Graphs() if device.startswith("cuda") else None


def _anew(most: int, capture: Capture, after: int) -> Graphs:
    return Graphs(most, capture, after=after)


def _places(weight: Tensor) -> Iterator[int]:
    """Where the numbers of a weight lie; a quantised one holds several tensors."""
    if is_traceable_wrapper_subclass(weight):
        for name in weight.__tensor_flatten__()[0]:
            yield from _places(getattr(weight, name))
    else:
        yield weight.data_ptr()
