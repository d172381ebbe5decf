"""Which layers run as a graph, when one is captured, and that nothing depends on it. A CPU has no graphs: here one is a recomputation."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import unmask
from unmask.checkpoints.quantise import RoundToNearest
from unmask.models.elastic import Elastic, init
from unmask.models.graphs import Found, Graphs, Replay, capture
from unmask.models.sizes import SIZES
from unmask.rng import generator
from unmask.sampling.blocks import Blocks
from unmask.sampling.cache import PrefixCache
from unmask.sampling.sampler import Sampler
from unmask.sampling.schedule import Equal
from unmask.sampling.selection import Confident
from unmask.sampling.token_sampler import Categorical
from unmask.sequence import Batch, Kind, Span, collate
from unmask.sequence import Sequence as Tokens

from ..pretend import pretended

SAMPLER = Sampler(schedule=Equal(steps=5), token_sampler=Categorical(), selection=Confident(noise=1.0))


class Captures:
    """``made``: how many graphs there were."""

    def __init__(self) -> None:
        self.made = self.replayed = 0

    def __call__(self, work: Callable[[], Found]) -> tuple[Found, Replay]:
        self.made += 1
        found = work()

        def replay() -> None:
            self.replayed += 1
            for kept, again in zip(found, work(), strict=True):
                if kept is not None and again is not None:
                    kept.copy_(again)

        for kept in found:  # what a graph computes while it is captured is not used
            if kept is not None:
                kept.fill_(torch.nan)
        return found, replay


def network(**changes: Any) -> Elastic:
    net = Elastic(dataclasses.replace(SIZES["tiny"], **changes), mask_id=7).eval()
    init(net, generator("graphs"))
    return net


def picture(prompt: int = 5, seed: int = 0) -> Batch:
    spans = (
        Span(name="prompt", kind=Kind.TEXT, start=0, stop=prompt),
        Span(name="image", kind=Kind.CODE, start=prompt, stop=prompt + 16, grid=(4, 4), fold=2, writable=True),
    )
    masked = torch.arange(prompt + 16) >= prompt
    return collate([Tokens(ids=torch.full((prompt + 16,), 9), masked=masked, spans=spans)], [seed])


def text(order: int = 0) -> Batch:
    spans = (
        Span(name="prompt", kind=Kind.TEXT, start=0, stop=5),
        Span(name="answer", kind=Kind.TEXT, start=5, stop=15, writable=True, order=order),
    )
    return collate([Tokens(ids=torch.full((15,), 9), masked=torch.arange(15) >= 5, spans=spans)], [0])


@pytest.mark.parametrize("make", [picture, text])
@pytest.mark.parametrize("layers", [1, 3])
def test_a_run_is_the_same_with_graphs(make: Callable[[], Batch], layers: int) -> None:
    net, captures = network(layers=layers, joint_layers=min(layers, 2)), Captures()
    wanted = SAMPLER.sample(net, make())
    net.graphs = Graphs(capture=captures)
    found = SAMPLER.sample(net, make())
    assert torch.equal(found.ids, wanted.ids) and torch.equal(found.score, wanted.score)  # type: ignore[arg-type]
    assert (captures.made, captures.replayed) == (1, 3)  # the first two of five steps run kernel by kernel
    assert (net.graphs.captures, net.graphs.replays) == (1, 3)


@pytest.mark.parametrize("layers", [1, 3])
def test_an_answer_behind_a_cached_prompt_runs_as_graphs(layers: int) -> None:
    """The first step reads the prompt; the steps of a block that follow it have one layout, and the second block another."""
    net, captures, batch = network(layers=layers), Captures(), text(order=1)
    cached = dataclasses.replace(SAMPLER, schedule=Equal(steps=5), blocks=Blocks(length=5), cache=PrefixCache())
    wanted = cached.sample(net, batch)
    net.graphs = Graphs(capture=captures)
    for _ in range(2):  # another run does not read what the first one held
        found = cached.sample(net, batch)
        assert torch.equal(found.ids, wanted.ids) and torch.equal(found.score, wanted.score)  # type: ignore[arg-type]
    other = batch.replace(ids=batch.ids + 1)
    found = cached.sample(net, other)
    net.graphs = None
    assert torch.equal(found.ids, cached.sample(net, other).ids)
    assert captures.made >= 3 and captures.replayed >= 9


@torch.no_grad()
def test_two_runs_in_turns_have_a_graph_each() -> None:
    net, captures = network(), Captures()
    batches = [picture(5), picture(8, seed=3)]
    wanted = [SAMPLER.sample(net, batch).ids for batch in batches]
    net.graphs = Graphs(capture=captures)
    runs = [SAMPLER.start(batch) for batch in batches]
    for _ in range(5):
        for run in runs:
            assert run.query is not None
            run.advance(net(run.query.batch, predict=run.query.predict))
    assert all(torch.equal(run.batch.ids, ids) for run, ids in zip(runs, wanted, strict=True)) and captures.made == 2


@torch.no_grad()
def test_a_run_without_room_for_its_graph_goes_on_without() -> None:
    net, captures = network(), Captures()
    batches = [picture(5), picture(8, seed=3)]
    wanted = [SAMPLER.sample(net, batch).ids for batch in batches]
    net.graphs = Graphs(most=1, capture=captures)
    runs = [SAMPLER.start(batch) for batch in batches]
    while runs[0].query:
        for run in runs:
            assert run.query is not None
            run.advance(net(run.query.batch, predict=run.query.predict))
    assert all(torch.equal(run.batch.ids, ids) for run, ids in zip(runs, wanted, strict=True))
    assert captures.made == 1 and len(net.graphs.known) == 1
    net.graphs.clear()
    assert not net.graphs.known


@torch.no_grad()
def test_a_graph_that_was_not_used_for_a_while_makes_room() -> None:
    net, captures, old, new = network(), Captures(), picture(5), picture(8)
    net.graphs = Graphs(most=1, capture=captures)
    for _ in range(3):
        net(old)
    (first,) = net.graphs.known
    for _ in range(4):
        net(new)
    assert [*net.graphs.known] == [first]
    for _ in range(4):
        net(new)
    assert captures.made == 2 and len(net.graphs.known) == 1 and first not in net.graphs.known


@torch.no_grad()
@pytest.mark.parametrize("cached", [False, True])
def test_a_graph_goes_when_its_run_has_ended(cached: bool) -> None:
    """No later run needs it, and its memory is wanted elsewhere. What stands for a graph here keeps its results and nothing else."""
    net, made = network(), list[int]()
    sampler = dataclasses.replace(SAMPLER, cache=PrefixCache()) if cached else SAMPLER

    def still(work: Callable[[], Found]) -> tuple[Found, Replay]:
        made.append(1)
        return work(), lambda: None

    net.graphs = Graphs(capture=still)
    for seed in range(3):
        run = sampler.start(text(order=1) if cached else picture(seed=seed))
        while run.query:
            run.advance(net(run.query.batch, predict=run.query.predict, reuse=run.query.reuse))
        assert len(net.graphs.known) == (0 if cached else 1)  # the last query of a cached run is gone already
        del run
        assert not (net.graphs.known or net.graphs.passes or net.graphs.watched)
    assert len(made) == 3


@torch.no_grad()
@pytest.mark.parametrize("error", [RuntimeError("operation not permitted"), torch.OutOfMemoryError("no memory")])
def test_a_layout_that_cannot_be_captured_runs_kernel_by_kernel(error: Exception) -> None:
    """It is tried once, and after three failures no other one is."""
    net, tried, batches = network(), list[int](), [picture(prompt) for prompt in range(3, 8)]
    wanted = [net(batch).logits(Kind.CODE) for batch in batches]

    def refused(work: Callable[[], Found]) -> tuple[Found, Replay]:
        tried.append(1)
        work()
        raise error

    net.graphs = Graphs(capture=refused)
    for _ in range(5):
        for batch, logits in zip(batches, wanted, strict=True):
            assert torch.equal(net(batch).logits(Kind.CODE), logits)
    assert len(tried) == net.graphs.failures == 3 and net.graphs.failure is error and not net.graphs.known


@torch.no_grad()
def test_a_failed_capture_frees_the_graphs_that_there_are() -> None:
    net, captures, first, second = network(), Captures(), picture(5), picture(8)
    net.graphs = Graphs(capture=captures)
    wanted = net(first).logits(Kind.CODE)
    for _ in range(3):
        net(first)

    def refused(work: Callable[[], Found]) -> tuple[Found, Replay]:
        raise torch.OutOfMemoryError("no memory")

    net.graphs.capture = refused
    for _ in range(3):
        net(second)
    assert not net.graphs.known
    net.graphs.capture = captures
    assert torch.equal(net(first).logits(Kind.CODE), wanted) and captures.made == 2


@torch.no_grad()
def test_a_copy_of_a_network_captures_its_own_graphs() -> None:
    net, captures, batch = network(), Captures(), picture()
    net.graphs = Graphs(most=3, capture=captures)
    for _ in range(3):
        net(batch)
    other = copy.deepcopy(net)
    assert other.graphs is not net.graphs and other.graphs is not None
    assert (other.graphs.most, other.graphs.known) == (3, {}) and len(net.graphs.known) == 1


@torch.no_grad()
def test_weights_that_moved_are_captured_again() -> None:
    net, captures, batch = network(), Captures(), picture()
    net.graphs = Graphs(capture=captures)
    for _ in range(3):
        net(batch)
    weight = net.blocks[0].get_parameter("gen.q.weight")
    weight.data = weight.data * 2
    for _ in range(3):
        found = net(batch).logits(Kind.CODE)
    net.graphs = None
    assert captures.made == 2 and torch.equal(found, net(batch).logits(Kind.CODE))


@torch.no_grad()
def test_quantised_weights_run_as_graphs_and_are_seen_to_move() -> None:
    """Such a weight has no address of its own: those of the tensors inside it count."""
    net, captures, batch = network(), Captures(), picture()
    quantise, layer = RoundToNearest(bits=8), net.blocks[0].get_submodule("gen.q")
    assert isinstance(layer, nn.Linear)
    before = layer.weight.detach()
    for factor, made in ((1, 1), (2, 2)):
        layer.weight = nn.Parameter(quantise(before * factor, None), requires_grad=False)
        net.graphs = net.graphs or Graphs(capture=captures)
        for _ in range(3):
            found = net(batch).logits(Kind.CODE)
        graphs, net.graphs = net.graphs, None
        assert captures.made == made and torch.equal(found, net(batch).logits(Kind.CODE))
        net.graphs = graphs


def test_no_graph_with_gradients_or_hooks() -> None:
    net, captures, batch = network(), Captures(), picture()
    net.graphs = Graphs(capture=captures)
    for _ in range(3):
        net(batch).logits(Kind.CODE).sum().backward()
    hook = net.blocks[0].get_submodule("gen.q").register_forward_hook(lambda module, given, out: out + 1)
    with torch.no_grad():
        for _ in range(3):
            net(batch)
        assert captures.made == 0
        hook.remove()
        for _ in range(3):
            net(batch)
    assert captures.made == 1


def test_a_capture_warms_its_stream_once_for_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """What CUDA does, written down by a stand-in for it: one pass on the stream before the first capture, none before the second."""
    said: list[str] = []

    class Stream:
        def wait_stream(self, other: object) -> None:
            said.append("wait")

    @contextmanager
    def inside(name: str) -> Iterator[None]:
        said.append(f"{name} begins")
        yield
        said.append(f"{name} ends")

    main = Stream()
    fakes: dict[str, Any] = {
        "Stream": Stream,
        "current_stream": lambda: main,
        "current_device": lambda: 0,
        "stream": lambda stream: inside("stream"),
        "CUDAGraph": lambda: SimpleNamespace(replay="replay"),
        "graph": lambda graph, *, stream, capture_error_mode: inside(f"{capture_error_mode} capture"),
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr("unmask.models.graphs._streams", {})

    def work() -> Found:
        said.append("work")
        return None, None

    captured = ["stream begins", "thread_local capture begins", "work", "thread_local capture ends", "stream ends"]
    assert capture(work) == ((None, None), "replay")
    assert said == ["wait", "stream begins", "work", "stream ends", "wait", *captured]
    said.clear()
    capture(work)
    assert said == captured


@pytest.mark.parametrize("given", [{"most": 0}, {"after": 0}])
def test_at_least_one_graph_is_kept_after_at_least_one_pass(given: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="=0"):
        Graphs(**given)


def test_models_on_cuda_have_graphs_unless_they_are_declined() -> None:
    assert unmask.load("mini", device="cpu").parts.net.graphs is None
    with pretended():
        assert unmask.load("mini", device="cuda", graphs=False).parts.net.graphs is None
        model = unmask.load("mini", device="cuda")
        wanted = model.generate("a red apple", plan=False)[0].image.tobytes()
        graphs = model.parts.net.graphs
        assert graphs is not None and graphs.failures == 1  # this card has none, and nothing else showed it
        model.parts.net.graphs = graphs = Graphs(capture=Captures())
        assert model.generate("a red apple", plan=False)[0].image.tobytes() == wanted
        assert graphs.captures == 1 and graphs.replays > 5
