"""How often a step waits for the device: every operation that hands a number of a tensor to Python, or makes a shape of one."""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from unmask.models.elastic import Elastic, init
from unmask.models.sizes import SIZES
from unmask.rng import generator
from unmask.sampling.guidance import ClassifierFree
from unmask.sampling.orders import stratified
from unmask.sampling.sampler import Sampler
from unmask.sampling.schedule import Cosine
from unmask.sampling.selection import Confident, InOrder
from unmask.sampling.token_sampler import Categorical
from unmask.sequence import Kind, Span, collate
from unmask.sequence import Sequence as Tokens

torch.set_num_threads(1)
WAITS = ("aten._local_scalar_dense", "aten.nonzero", "aten.masked_select", "aten.unique", "aten.equal", "aten.bincount")


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


def waits_of_a_step(sampler: Sampler, monkeypatch: Any) -> int:
    net = Elastic(SIZES["tiny"], mask_id=7).eval()
    init(net, generator("waits"))
    spans = (
        Span(name="prompt", kind=Kind.TEXT, start=0, stop=9),
        Span(name="image", kind=Kind.CODE, start=9, stop=73, grid=(8, 8), fold=2, writable=True),
    )
    masked = torch.arange(73) >= 9
    batch = collate([Tokens(ids=torch.full((73,), 9), masked=masked, spans=spans)], [0])
    run = sampler.start(batch)
    lists: list[int] = []
    as_list = torch.Tensor.tolist
    for _ in range(3):
        assert run.query is not None
        with torch.no_grad():
            run.advance(net(run.query.batch, predict=run.query.predict))

    def once(tensor: torch.Tensor) -> Any:
        lists.append(1)
        with _disable_current_modes():  # else every number counts
            return as_list(tensor)

    monkeypatch.setattr(torch.Tensor, "tolist", once)
    with torch.no_grad(), Waits() as waits:
        run.advance(net(run.query.batch, predict=run.query.predict))
    return sum(waits.found.values()) + len(lists)


def sampler(selection: Any) -> Sampler:
    return Sampler(
        schedule=Cosine(steps=8),
        token_sampler=Categorical(temperature=0.5),
        selection=selection,
        guidance=ClassifierFree(scale=2.0, drop={"prompt"}, null_id=7),
    )


def test_a_drawing_step_waits_seldom(monkeypatch: Any) -> None:
    """20 times before; each further one costs a GPU the time of many kernels. Lower these bounds when waits go."""
    assert waits_of_a_step(sampler(InOrder(order=tuple(stratified(8)))), monkeypatch) <= 11


def test_a_drawing_step_by_confidence_waits_seldom(monkeypatch: Any) -> None:
    assert waits_of_a_step(sampler(Confident(noise=1.0)), monkeypatch) <= 12
