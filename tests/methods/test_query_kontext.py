"""Query-Kontext against its arrays, which follow from the paper's formulas: positions and the straight path; and its laws."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from unmask.corruption.flow import clean_of, straight
from unmask.methods.query_kontext import STAGES, Conditioned, FlowMatching, Grid, Stage, flow_loss, placed
from unmask.models.bridges import QueryTokens
from unmask.rng import generator
from unmask.sampling.gaussian import euler
from unmask.sequence import Batch, Kind, Sequence, Span, collate

Golden = Callable[[str], dict[str, Tensor]]
torch.set_num_threads(1)


@pytest.fixture(scope="module")
def arrays(golden: Golden) -> dict[str, Tensor]:
    return golden("query_kontext")


def test_positions(arrays: dict[str, Tensor]) -> None:
    rows, columns = (arrays["pos.target"].amax(0) + 1).tolist()
    grid = Grid(rows=rows, columns=columns)
    assert torch.equal(grid.target(), arrays["pos.target"]) and torch.equal(grid.source(), arrays["pos.source"])
    for name in (name for name in arrays if name.startswith("pos.reference")):
        assert torch.equal(grid.reference(int(name.removeprefix("pos.reference"))), arrays[name]), name


@pytest.mark.parametrize(("rows", "columns"), [(3, 4), (4, 3), (5, 5), (1, 6)])
def test_only_a_source_meets_the_target_and_in_one_position(rows: int, columns: int) -> None:
    grid = Grid(rows=rows, columns=columns)
    places = [{tuple(p) for p in one.tolist()} for one in (grid.target(), *(grid.reference(n) for n in (1, 2, 3)))]
    assert sum(map(len, places)) == len(set().union(*places)) == 4 * rows * columns
    assert places[0] & {tuple(p) for p in grid.source().tolist()} == {(0, 0)}
    with pytest.raises(ValueError, match="numbered from 1 on, got 0"):
        grid.reference(0)


def test_the_straight_path(arrays: dict[str, Tensor]) -> None:
    a = {name.removeprefix("flow."): v for name, v in arrays.items()}
    t = a["t"][:, None]

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        return torch.tanh(x @ a["W"]) + t

    assert torch.allclose(straight(a["x0"], a["noise"], t), a["x_t"], atol=1e-6)
    assert torch.allclose(a["noise"] - a["x0"], a["target"], atol=1e-6)
    assert torch.allclose(velocity(a["x_t"], t), a["v"], atol=1e-5)
    assert torch.allclose(clean_of(a["x_t"], a["v"], t), a["x0_from_v"], atol=1e-5)
    assert torch.allclose(flow_loss(a["v"], a["x0"], a["noise"]), a["loss"], rtol=1e-5)
    (name,) = (name for name in a if name.startswith("euler"))
    times = torch.linspace(1, 0, int(name.removeprefix("euler")) + 1)
    assert torch.allclose(euler(velocity, a["noise"], times), a[name], atol=1e-5)


def test_a_path_with_the_right_velocity_leads_to_the_data() -> None:
    x0, noise = torch.randn(2, 3, 4, generator=generator("path"))
    assert torch.allclose(euler(lambda x, t: noise - x0, noise, torch.linspace(1, 0, 4)), x0, atol=1e-5)
    t = torch.tensor(0.3)
    assert torch.allclose(clean_of(straight(x0, noise, t), noise - x0, t), x0, atol=1e-6)


def pictures() -> Batch:
    spans = tuple(
        Span(name=name, kind=Kind.CODE, start=6 * i, stop=6 * i + 6, grid=(2, 3))
        for i, name in enumerate(("source", "image"))
    )
    row = Sequence(ids=torch.arange(12), masked=torch.zeros(12, dtype=torch.bool), spans=spans)
    return collate([row, row], [0, 1])


def test_spans_are_placed() -> None:
    grid = Grid(rows=2, columns=3)
    found = placed(pictures(), {"source": grid.source(), "image": grid.target()})
    assert found.axes is not None and torch.equal(found.axes[1, :6], grid.source())
    again = placed(found, {"source": grid.reference(1)})
    assert again.axes is not None and torch.equal(again.axes[0, :6], grid.reference(1))
    assert torch.equal(again.axes[0, 6:], grid.target()) and pictures().axes is None
    with pytest.raises(ValueError, match="source has 6 tokens, got 4 places"):
        placed(pictures(), {"source": torch.zeros(4, 2)})
    with pytest.raises(ValueError, match="no row has a span 'mask'; there are source, image"):
        placed(pictures(), {"mask": torch.zeros(6, 2)})


class Parts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.drawing = QueryTokens(4, 6, queries=3), nn.Linear(10, 4)
        self.understanding, self.adapters, self.drawing_adapters = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor, t: Tensor, given: Tensor) -> Tensor:
        read = self.tokens(self.understanding(self.tokens.appended(given))).mean(1)
        return self.drawing(torch.cat([x, read], -1)) + t[:, None]


def test_stages_train_their_parts_only() -> None:
    model = Parts()
    trained = []
    for stage in STAGES:
        stage(model)
        trained.append({name.partition(".")[0] for name, p in model.named_parameters() if p.requires_grad})
    assert trained == [{"tokens", "adapters", "drawing"}, {"tokens", "drawing"}, {"tokens", "drawing_adapters"}]
    with pytest.raises(ValueError, match=r"no parameter is called 'codes.'"):
        Stage(trained=("codes.",))(model)


def test_the_objective_trains_queries_through_a_frozen_model() -> None:
    model = Parts()
    STAGES[1](model)
    batch = Conditioned(clean=torch.randn(5, 4, generator=generator(1)), condition=torch.ones(5, 2, 4))
    loss = FlowMatching()(model, batch, generator(2))
    loss.total.backward()
    assert model.tokens.queries.grad is not None and bool(model.tokens.queries.grad.any())
    assert model.understanding.weight.grad is None
    assert model.tokens.appended(batch.condition).shape == (5, 5, 4)
    late = FlowMatching(times=torch.ones_like)(lambda x, t, given: x * 0 + t[:, None], batch, generator(2))
    assert torch.equal(
        late.total, FlowMatching(times=torch.ones_like)(lambda x, t, g: torch.ones_like(x), batch, generator(2)).total
    )
