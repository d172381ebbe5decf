"""How often a step waits for the device: every operation that hands a number of a tensor to Python, or makes a shape of one."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from unmask.models.elastic import Elastic, init
from unmask.models.sizes import SIZES
from unmask.rng import generator
from unmask.sampling.guidance import ClassifierFree
from unmask.sampling.orders import stratified
from unmask.sampling.sampler import Sampler
from unmask.sampling.schedule import Cosine, Equal, Fixed
from unmask.sampling.selection import Confident, InOrder, PerSpan, RandomOrder
from unmask.sampling.stopping import EndOfTurn
from unmask.sampling.temperature import Linear
from unmask.sampling.token_sampler import Categorical, Greedy, OnlyIds
from unmask.sequence import Batch, Kind, Span, collate
from unmask.sequence import Sequence as Tokens

from ..pretend import pretended

torch.set_num_threads(1)
WAITS = (
    "aten._local_scalar_dense",
    "aten.nonzero.",
    "aten.masked_select",
    "aten.unique",
    "aten.equal",
    "aten.bincount",
)
GRID = Span(name="image", kind=Kind.CODE, start=9, stop=73, grid=(8, 8), fold=2, writable=True)
PICTURE = (Span(name="prompt", kind=Kind.TEXT, start=0, stop=9), GRID)
BOXES = (
    Span(name="prompt", kind=Kind.TEXT, start=0, stop=9),
    *(Span(name=f"box{i}", kind=Kind.TEXT, start=9 + 4 * i, stop=13 + 4 * i, writable=True) for i in range(3)),
)
ANSWER = (
    Span(name="prompt", kind=Kind.TEXT, start=0, stop=9),
    Span(name="answer", kind=Kind.TEXT, start=9, stop=25, writable=True),
)


class Waits(TorchDispatchMode):
    """Counts them."""

    def __init__(self) -> None:
        super().__init__()
        self.found: collections.Counter[str] = collections.Counter()

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = str(func)
        if name.startswith(WAITS) or (name == "aten.index.Tensor" and args[1][0].dtype == torch.bool):
            self.found[name] += 1
        return func(*args, **(kwargs or {}))


def network() -> Elastic:
    net = Elastic(SIZES["tiny"], mask_id=7).eval()
    init(net, generator("waits"))
    return net


def rows_of(spans: tuple[Span, ...], rows: int = 1) -> Batch:
    length = spans[-1].stop
    ids = torch.full((length,), 9)
    return collate([Tokens(ids=ids, masked=torch.arange(length) >= 9, spans=spans)] * rows, list(range(rows)))


def waits_of_a_step(
    sampler: Sampler, monkeypatch: Any, spans: tuple[Span, ...] = PICTURE, *, rows: int = 1, after: int = 3
) -> int:
    """In the step behind the first ``after`` ones, on a pretended card: on a CPU nothing waits, and some figures are looked at.

    A whole run before computes the temperatures of all steps, which takes the CPU alone.
    """
    with pretended():
        return _waits_of_a_step(sampler, monkeypatch, network().to("cuda"), rows_of(spans, rows).to("cuda"), after)


def _waits_of_a_step(sampler: Sampler, monkeypatch: Any, net: Elastic, batch: Batch, after: int) -> int:
    sampler.sample(net, batch)
    run = sampler.start(batch)
    lists: list[int] = []
    as_list = torch.Tensor.tolist
    for _ in range(after):
        assert run.query is not None
        with torch.no_grad():
            run.advance(net(run.query.batch, predict=run.query.predict))

    def once(tensor: torch.Tensor) -> Any:
        lists.append(1)
        with monkeypatch.context() as inner, _disable_current_modes():  # else every number counts
            inner.setattr(torch.Tensor, "tolist", as_list)
            return as_list(tensor)

    monkeypatch.setattr(torch.Tensor, "tolist", once)
    assert run.query is not None
    with torch.no_grad(), Waits() as waits:
        run.advance(net(run.query.batch, predict=run.query.predict))
    monkeypatch.undo()
    return sum(waits.found.values()) + len(lists)


def sampler(selection: Any, temperature: Any = 0.5) -> Sampler:
    return Sampler(
        schedule=Cosine(steps=8),
        token_sampler=Categorical(temperature=temperature),
        selection=selection,
        guidance=ClassifierFree(scale=2.0, drop={"prompt"}, null_id=7),
    )


IN_ORDER = InOrder(order=tuple(stratified(8)))
SELECTIONS = {
    "in a fixed order": IN_ORDER,
    "by confidence": Confident(noise=1.0),
    "by confidence with falling noise": Confident(noise=Linear(start=4.0, end=0.0)),
    "at random": RandomOrder(),
}


@pytest.mark.parametrize("name", SELECTIONS)
@pytest.mark.parametrize("rows", [1, 3])
def test_a_drawing_step_never_waits(name: str, rows: int, monkeypatch: Any) -> None:
    """20 times at first, then 11; each wait costs a GPU the time of many kernels."""
    assert waits_of_a_step(sampler(SELECTIONS[name]), monkeypatch, rows=rows) == 0


def test_a_step_with_a_temperature_that_falls_never_waits(monkeypatch: Any) -> None:
    assert waits_of_a_step(sampler(IN_ORDER, Linear(start=1.0, end=0.2)), monkeypatch) == 0


def test_a_step_of_boxes_never_waits(monkeypatch: Any) -> None:
    """Three boxes in one row, one coordinate of each a step."""
    boxes = Sampler(
        schedule=Equal(steps=4),
        token_sampler=OnlyIds(low=100, high=200, token_sampler=Greedy()),
        selection=PerSpan(selection=Confident()),
    )
    assert waits_of_a_step(boxes, monkeypatch, BOXES, after=1) == 0


def test_a_step_of_an_answer_waits_seldom(monkeypatch: Any) -> None:
    """Whether the end of turn was written decides what comes next, and only the device knows it. Lower this bound when waits go."""
    answer = Sampler(
        schedule=Fixed(each=1), token_sampler=Greedy(), selection=Confident(), stopping=EndOfTurn(ids=(3,))
    )
    assert waits_of_a_step(answer, monkeypatch, ANSWER) <= 3


def test_on_a_card_a_drawing_reads_nothing_between_its_first_step_and_its_end() -> None:
    """As the pretended card counts reads, of whole runs: more steps cost no more of them."""
    reads = []
    with pretended() as card:
        net = network().to("cuda")
        for steps in (2, 2, 8):  # at first some tables of the spans are made
            before = sum(card.reads.values())
            whole = dataclasses.replace(sampler(IN_ORDER), schedule=Cosine(steps=steps)).sample(
                net, rows_of(PICTURE).to("cuda")
            )
            reads.append(sum(card.reads.values()) - before)
            assert not whole.masked.any()
    assert reads[1] == reads[2]
