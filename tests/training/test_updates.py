"""From source batches to updates: several losses of one batch, several batches of one update."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from unmask.rng import generator
from unmask.step import Loss
from unmask.training.losses import losses, weight
from unmask.training.optim import Masters, rate
from unmask.training.states import STATE
from unmask.training.train import train

from . import line
from .line import recipe, rows


def same(a: Path, b: Path) -> bool:
    one, other = load_file(a / STATE), load_file(b / STATE)
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


# -- several losses of one batch --------------------------------------------------------------------------------------


def test_each_yielded_loss_is_an_update(tmp_path: Path) -> None:
    """The trainer's weights equal those of a hand-written loop: each loss sees the weights after the previous update."""
    done = train(recipe(line.thrice), tmp_path)
    by_hand = recipe(line.thrice)
    module = by_hand.model()
    masters = Masters(module, by_hand.optim, lambda name: True)
    number = 0
    for step in range(8):
        for loss in line.thrice(module, line.source(step), generator("objective", 0, step)):
            loss.total.backward()
            masters.step(rate(by_hand.optim, step, 8), number)
            number += 1
    assert all(torch.equal(value, masters.averaged()[name]) for name, value in done.named_parameters())


def test_steps_count_batches_and_updates_are_counted_apart(tmp_path: Path) -> None:
    train(recipe(line.thrice), tmp_path)
    assert [(r["step"], r["updates"]) for r in rows(tmp_path)] == [(2, 6), (4, 12), (6, 18), (8, 24)]
    train(recipe(), tmp_path / "one")
    assert [(r["step"], r["updates"]) for r in rows(tmp_path / "one")] == [(2, 2), (4, 4), (6, 6), (8, 8)]


def test_a_run_of_several_updates_resumes_bit_for_bit(tmp_path: Path) -> None:
    whole = train(recipe(line.thrice), tmp_path / "whole")
    for steps in (3, 1, 4):
        last = train(recipe(line.thrice), tmp_path / "pieces", stop_after=steps)
    assert same(tmp_path / "whole", tmp_path / "pieces")
    assert all(torch.equal(p, q) for p, q in zip(whole.parameters(), last.parameters(), strict=True))
    assert rows(tmp_path / "pieces")[-1]["updates"] == 24


def test_a_batch_without_a_loss_is_no_update(tmp_path: Path) -> None:
    def sometimes(module: nn.Module, batch: Tensor, rng: torch.Generator) -> Iterator[Loss]:
        if len(batch) != 2:  # steps 0 and 4
            yield line.error(module, batch)

    train(recipe(sometimes), tmp_path)
    assert [r["updates"] for r in rows(tmp_path)] == [1, 3, 4, 6]


def test_what_is_no_loss_is_named() -> None:
    with pytest.raises(TypeError, match="returns a Loss or yields several, got float"):
        list(losses(1.0))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="but it yielded str"):
        list(losses(["a"]))  # type: ignore[list-item]


def test_an_objective_that_waits_for_the_weights_to_move_ends(tmp_path: Path) -> None:
    """Counting FLOPs makes no update, so the count must end by itself."""

    def until_moved(module: nn.Linear, batch: Tensor, rng: torch.Generator) -> Iterator[Loss]:
        before = module.bias.detach().clone()
        while torch.equal(module.bias, before):
            yield line.error(module, batch)

    train(recipe(until_moved), tmp_path)
    assert rows(tmp_path)[-1]["updates"] == 8


# -- several batches of one update ------------------------------------------------------------------------------------


def gradient(of: list[Tensor], accumulate: int, tmp_path: Path) -> float:
    made = dataclasses.replace(recipe(steps=len(of), accumulate=accumulate), source=lambda step: of[step])
    train(made, tmp_path)
    return rows(tmp_path)[-1]["grad"]


def test_the_gradient_is_the_mean_over_all_tokens(tmp_path: Path) -> None:
    batches = [line.source(n) for n in range(4)]
    assert [len(b) for b in batches] == [2, 3, 4, 5]
    whole = gradient([torch.cat(batches)], 1, tmp_path / "whole")
    assert gradient(batches, 4, tmp_path / "parts") == pytest.approx(whole, rel=1e-4)
    module = line.model()
    torch.stack([line.error(module, b).total for b in batches]).mean().backward()
    of_means = float(torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None]).norm())
    assert of_means != pytest.approx(whole, rel=1e-2)  # the two differ, so the test can tell them apart


def test_a_loss_without_counts_has_weight_one() -> None:
    zero = torch.zeros(())
    assert weight(Loss(total=zero, terms={}, counts={})) == 1
    assert weight(Loss(total=zero, terms={}, counts={"text": 3, "code": 4})) == 7


def test_accumulation_resumes_and_the_last_update_may_be_smaller(tmp_path: Path) -> None:
    made = recipe(accumulate=3)
    train(made, tmp_path / "whole")
    assert [(r["step"], r["updates"]) for r in rows(tmp_path / "whole")] == [(3, 1), (6, 2), (8, 3)]
    train(made, tmp_path / "pieces", stop_after=3)
    train(made, tmp_path / "pieces")
    assert same(tmp_path / "whole", tmp_path / "pieces")


def test_losses_of_several_batches_meet_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Update k is made of the k-th loss of each batch, all of which begin at the same weights."""
    seen: list[tuple[int, int, float]] = []

    def noted(module: nn.Linear, batch: Tensor, rng: torch.Generator) -> Iterator[Loss]:
        for k in range(2):
            seen.append((len(batch), k, module.bias.item()))
            yield line.error(module, batch)

    monkeypatch.setattr("unmask.training.train._COUNTED", 1)  # this short run's operations are counted too
    train(recipe(noted, accumulate=2), tmp_path, stop_after=2)
    counted, run = seen[:2], seen[2:]
    assert [(n, k) for n, k, _ in run] == [(2, 0), (3, 0), (2, 1), (3, 1)] and len(counted) == 2
    assert run[0][2] == run[1][2] != run[2][2] == run[3][2]


# -- buffers ----------------------------------------------------------------------------------------------------------


class Counting(nn.Linear):
    """A linear layer with a table of times, and a mean of the rows it has seen."""

    def __init__(self) -> None:
        super().__init__(3, 1)
        self.load_state_dict(line.model().state_dict())
        self.register_buffer("table", torch.tensor([0.1234567, 1 / 3], dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("scratch", torch.zeros(1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean.lerp_(x.float().mean(0), 0.1)
        return super().forward(x)


def test_buffers_keep_their_digits_in_bfloat16(tmp_path: Path) -> None:
    """A table leaves training as it came, in its own dtype; what training changes is exported in full precision."""
    given, exported = Counting(), []
    changed = dataclasses.replace(recipe(bf16=True), model=Counting, export=lambda m, folder: exported.append(m))
    done = train(changed, tmp_path)
    assert exported == [done] and done.weight.dtype == torch.float32
    assert done.table.dtype == torch.float64 and torch.equal(done.table, given.table)
    assert bool(done.mean.ne(0).any()) and not torch.equal(done.mean, done.mean.bfloat16().float())


def test_buffers_resume_where_they_were(tmp_path: Path) -> None:
    changed = dataclasses.replace(recipe(bf16=True), model=Counting)
    whole = train(changed, tmp_path / "whole")
    for steps in (3, 1, 4):
        last = train(changed, tmp_path / "pieces", stop_after=steps)
    assert same(tmp_path / "whole", tmp_path / "pieces")
    assert all(torch.equal(b, c) for b, c in zip(whole.buffers(), last.buffers(), strict=True))
    assert {n for n in load_file(tmp_path / "whole" / STATE) if n.startswith("buffer.")} == {
        "buffer.table",
        "buffer.mean",
    }


def test_a_missing_buffer_is_named() -> None:
    masters = Masters(Counting(), recipe().optim, lambda name: True)
    state = {name: value for name, value in masters.state().items() if name != "buffer.table"}
    with pytest.raises(ValueError, match=r"buffer\.table is missing; choose"):
        masters.load(state)
