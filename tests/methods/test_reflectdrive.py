"""ReflectDrive against its measured arrays: the codebook, goals, the exact planner and whole repairs; and the laws of the loop."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from unmask.methods.reflectdrive import ChainPlanner, CoordinateCodebook, Discs, Repair, Score, goals

Golden = Callable[[str], dict[str, Tensor]]
torch.set_num_threads(1)


@pytest.fixture(scope="module")
def arrays(golden: Golden) -> dict[str, Tensor]:
    return golden("reflectdrive")


def pair(tensor: Tensor) -> tuple[int, int]:
    x, y = (int(v) for v in tensor)
    return x, y


def test_every_array_is_checked_here(arrays: dict[str, Tensor]) -> None:
    known = {"goal", "quant", "repair", "small"}
    assert {name.split(".")[0] for name in arrays} == known
    for name in cases(arrays):
        wanted = {"anchor", "goal", "result", "safe", "span", "trajectories", "violation"}
        assert {k.rpartition(".")[2] for k in arrays if k.startswith(f"repair.{name}.")} == wanted


def cases(arrays: dict[str, Tensor]) -> list[str]:
    return sorted({k.split(".")[1] for k in arrays if k.startswith("repair.") and k.count(".") == 2})


def test_coordinates_are_quantised(arrays: dict[str, Tensor]) -> None:
    book = CoordinateCodebook()
    token = book.encode(arrays["quant.x"])
    assert torch.equal(token, arrays["quant.token"])
    assert torch.allclose(book.decode(token), arrays["quant.back"], atol=1e-4, rtol=0)


def test_goals_are_probable_and_apart(arrays: dict[str, Tensor]) -> None:
    apart = round(float(arrays["goal.d_nms"]) / CoordinateCodebook().step)
    chosen, probability = goals(
        *(arrays["goal.px"], arrays["goal.py"]),
        candidates=int(arrays["goal.k_prime"]),
        apart=apart,
        most=len(arrays["goal.chosen"]),
    )
    assert torch.equal(chosen, arrays["goal.chosen"])
    assert torch.allclose(probability, arrays["goal.p"], rtol=1e-6)


def world(arrays: dict[str, Tensor]) -> tuple[ChainPlanner, Callable[[int], Repair]]:
    size, _ = pair(arrays["repair.size"])
    start, velocity = pair(arrays["repair.start"]), pair(arrays["repair.velocity"].long())
    planner = ChainPlanner(size=size, alpha=round(float(arrays["repair.alpha"]), 6), start=start, velocity=velocity)
    discs = Discs(discs=arrays["repair.obstacles"].double())
    return planner, lambda span: Repair(size=size, clearance=discs, start=start, velocity=velocity, span=span)


def test_the_exact_planner_has_the_measured_marginals(arrays: dict[str, Tensor]) -> None:
    wanted = arrays["repair.marginals_x_goal12"]
    planner, _ = world(arrays)
    masked = torch.ones(len(wanted), dtype=torch.bool)
    masked[-1] = False
    found = planner.marginals(wanted.argmax(1), masked)
    assert torch.allclose(found, wanted, rtol=1e-9, atol=1e-15)
    small = arrays["small.marginals"]
    planner = ChainPlanner(size=small.shape[1], alpha=planner.alpha, start=(0, 0), velocity=(1, 1))
    assert torch.allclose(planner.marginals(small.argmax(1), small.amax(1) < 1), small, rtol=1e-9, atol=1e-15)


def test_repairs_take_the_measured_way(arrays: dict[str, Tensor]) -> None:
    planner, repair_of = world(arrays)
    _, length = pair(arrays["repair.size"])
    for name in cases(arrays):
        one = {k.rpartition(".")[2]: v for k, v in arrays.items() if k.startswith(f"repair.{name}.")}
        repair = repair_of(int(one["span"]))
        masked = torch.ones(length, dtype=torch.bool)
        masked[-1] = False
        first = planner(one["goal"].expand(length, 2), masked)
        states = repair(first, planner)
        assert torch.equal(torch.stack([s.plan for s in states]), one["trajectories"]), name
        assert [s.violation for s in states] == one["violation"].tolist()
        assert [list(s.anchor) for s in states] == one["anchor"].tolist()
        best = repair.best(states)
        assert torch.equal(best, one["result"]) and (repair.earliest(best) is None) == bool(one["safe"])


def test_a_marginal_equals_the_sum_over_all_paths() -> None:
    planner = ChainPlanner(size=4, alpha=0.5, start=(1, 0), velocity=(1, 0))
    line = torch.arange(4)
    paths = torch.cartesian_prod(line, line, line)
    paths = paths[paths[:, 1] == 2].double()
    steps = torch.cat((paths[:, :1] - 1, paths[:, 1:] - paths[:, :-1]), 1) - 1
    weight = torch.exp(-0.5 * steps.square().sum(1))
    wanted = torch.stack([(weight[:, None] * (paths[:, t, None] == line)).sum(0) for t in range(3)]) / weight.sum()
    found = planner.marginals(torch.tensor([0, 2, 0]), torch.tensor([True, False, True]))
    assert torch.allclose(found, wanted)


def test_a_repair_ends_and_keeps_the_goal_even_where_nothing_is_safe() -> None:
    planner = ChainPlanner(size=9, alpha=0.3, start=(0, 4), velocity=(1, 0))
    everywhere = Discs(discs=torch.tensor([[4.0, 4.0, 30.0]]))
    repair = Repair(size=9, clearance=everywhere, start=(0, 4), velocity=(1, 0), rounds=3)
    plan = torch.tensor([[2, 4], [4, 4], [6, 4], [8, 4]])
    states = repair(plan, planner)
    assert len(states) == 4 and all(s.plan[-1].tolist() == [8, 4] or s.violation == 3 for s in states)
    worst = [float(everywhere(s.plan).min()) for s in states]
    assert float(everywhere(repair.best(states)).min()) == max(worst)


def test_without_inpainting_only_the_unsafe_waypoint_moves() -> None:
    disc = Discs(discs=torch.tensor([[4.0, 4.0, 1.5]]))
    repair = Repair(size=9, clearance=disc, start=(0, 4), velocity=(2, 0), inpainting=False)
    plan = torch.tensor([[2, 4], [4, 4], [6, 4], [8, 4]])
    states = repair(plan, lambda tokens, masked: pytest.fail("nothing is inpainted"))
    assert [i for i in range(4) if not torch.equal(states[-1].plan[i], plan[i])] == [1]
    assert repair.earliest(states[-1].plan) is None and len(states) == 2


def test_progress_moves_waypoints_on() -> None:
    score = Score(progress=5.0)
    cells = torch.tensor([[3, 4], [6, 4]])
    found = score(cells, torch.tensor([2.0, 2.0]).double(), torch.tensor([3, 4]), torch.tensor([2, 4]))
    assert (
        found[1] > found[0]
        and Score()(cells, torch.ones(2).double(), torch.tensor([3, 4]), torch.tensor([2, 4])).argmax() == 0
    )


def test_wrong_values_are_refused() -> None:
    with pytest.raises(ValueError, match="step above 0"):
        CoordinateCodebook(step=0.0)
    with pytest.raises(ValueError, match=r"in 0..666, got 0..700"):
        CoordinateCodebook().decode(torch.tensor([0, 700]))
    assert bool(torch.isinf(Discs(discs=torch.zeros(0, 3))(torch.zeros(2, 2))).all())
