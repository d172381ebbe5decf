"""The trainer: a run continues bit for bit wherever it stopped, in one process or several, and checkpoints are never lost."""

from __future__ import annotations

import dataclasses
import json
import math
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from unmask.checkpoints.store import load_module
from unmask.data.mixture import Joint
from unmask.objectives.masked import Masked
from unmask.recipe import Optim, Recipe, override
from unmask.rng import generator
from unmask.sequence import Batch
from unmask.step import Loss
from unmask.training.optim import Masters, rate
from unmask.training.parallel import Place, launch
from unmask.training.train import STATE, train

from .tiny import STEPS, Numbers, model, recipe

torch.set_num_threads(1)
PROGRAM = str(Path(__file__).with_name("tiny.py"))


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    """To the last bit."""
    assert a.keys() == b.keys()
    different = [k for k in a if a[k].dtype != b[k].dtype or not torch.equal(a[k], b[k])]
    assert not different


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def losses(folder: Path) -> list[dict[str, Any]]:
    """The rows without what the clock decides."""
    return [{k: v for k, v in r.items() if k not in ("seconds", "tokens_per_s", "peak")} for r in rows(folder)]


@pytest.fixture(scope="module", params=[False, True], ids=["float32", "bf16"])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[bool, Path, nn.Module]:
    """An uninterrupted run: (bf16, its folder, its result)."""
    folder = tmp_path_factory.mktemp("whole")
    patch = pytest.MonkeyPatch()
    patch.setattr("unmask.training.train.matmul_peak", lambda dtype, device: 1e9)
    done = train(recipe(bf16=request.param), folder)
    patch.undo()
    return request.param, folder, done


# -- the same to the last bit -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("pieces", [(4, 8), (1, 6, 5), (11, 1)])
def test_stopped_and_resumed_equals_uninterrupted(
    whole: tuple[bool, Path, nn.Module], pieces: tuple[int, ...], tmp_path: Path
) -> None:
    bf16, folder, done = whole
    for steps in pieces:
        last = train(recipe(bf16=bf16), tmp_path, stop_after=steps)
    equal(load_file(tmp_path / STATE), load_file(folder / STATE))
    equal(last.state_dict(), done.state_dict())
    equal(load_file(tmp_path / "model.safetensors"), load_file(folder / "model.safetensors"))


@pytest.mark.parametrize("whole", [True], indirect=True, ids=["bf16"])
def test_killed_and_resumed_equals_uninterrupted(whole: tuple[bool, Path, nn.Module], tmp_path: Path) -> None:
    """SIGKILL in step 11, after the checkpoint of step 8 and the report of step 10."""
    bf16, folder, done = whole
    argv = [sys.executable, PROGRAM, str(tmp_path), "--stop-at", "10", *(["--bf16"] if bf16 else [])]
    child = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "metrics.jsonl"
    try:
        deadline = time.monotonic() + 120
        while not metrics.exists() or metrics.read_text().count("\n") < 5:
            assert child.poll() is None, child.stderr.read() if child.stderr else ""
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert child.returncode == -signal.SIGKILL
    assert [r["step"] for r in rows(tmp_path)] == [2, 4, 6, 8, 10]
    (tmp_path / (STATE + ".part")).write_bytes(b"half a checkpoint")
    with metrics.open("a") as f:
        f.write('{"step": 12, "te')  # it may also die while it writes a row

    last = train(recipe(bf16=bf16), tmp_path)
    equal(load_file(tmp_path / STATE), load_file(folder / STATE))
    equal(last.state_dict(), done.state_dict())
    assert losses(tmp_path) == losses(folder)  # no row twice, none torn
    assert not list(tmp_path.glob("*.part"))


def test_a_finished_run_stays_as_it_is(whole: tuple[bool, Path, nn.Module], tmp_path: Path) -> None:
    bf16, _, done = whole
    train(recipe(bf16=bf16), tmp_path)
    before = (tmp_path / STATE).read_bytes(), (tmp_path / "metrics.jsonl").read_bytes()
    again = train(recipe(bf16=bf16), tmp_path)
    assert ((tmp_path / STATE).read_bytes(), (tmp_path / "metrics.jsonl").read_bytes()) == before
    equal(again.state_dict(), done.state_dict())


def test_another_seed_is_another_run(whole: tuple[bool, Path, nn.Module], tmp_path: Path) -> None:
    bf16, folder, _ = whole
    train(override(recipe(bf16=bf16), ["training.seed=1"]), tmp_path)
    assert losses(tmp_path) != losses(folder)


def test_masters_stay_float32_and_the_frozen_stay_exact(whole: tuple[bool, Path, nn.Module]) -> None:
    _, folder, done = whole
    state = load_file(folder / STATE)
    assert {t.dtype for t in state.values()} == {torch.float32}
    assert not any("code_embedding.table." in k for k in state)
    first = model().state_dict()
    for name, value in done.state_dict().items():
        moved = not torch.equal(value, first[name])
        assert moved == (not name.startswith("code_embedding.table")), name
        assert value.dtype == torch.float32
    shipped = load_module(model(), folder)
    equal(shipped.state_dict(), done.state_dict())


def test_metrics(whole: tuple[bool, Path, nn.Module]) -> None:
    written = rows(whole[1])
    assert [r["step"] for r in written] == [2, 4, 6, 8, 10, 12]
    for r in written:
        assert set(r) == {"step", "updates", "text", "code", "grad", "peak", "tokens_per_s", "seconds"}
        assert all(math.isfinite(v) for v in r.values())
        assert r["text"] > 0 and r["code"] > 0 and r["grad"] > 0 and r["tokens_per_s"] > 0


def test_it_learns(tmp_path: Path) -> None:
    """One batch over and over is learned by heart."""
    base = recipe()
    one = dataclasses.replace(base, source=lambda step: Numbers()(0), optim=Optim(lr=0.02, warmup=2, ema=0.5))
    train(override(one, ["training.steps=30"]), tmp_path)
    assert rows(tmp_path)[-1]["code"] < 0.7 * rows(tmp_path)[0]["code"]


# -- several processes ------------------------------------------------------------------------------------------------


def test_two_processes_average_their_gradients(tmp_path: Path) -> None:
    """Both end with the same weights: those of one process that sees both batches at every step."""
    assert launch(2, [PROGRAM, str(tmp_path)]) == 0
    first, second = (load_file(tmp_path / f"rank{i}.safetensors") for i in range(2))
    equal(first, second)

    def both(step: int) -> list[tuple[int, Batch]]:
        return [(n, Numbers()(n)) for n in (2 * step, 2 * step + 1)]

    base = recipe()
    assert isinstance(base.objective, Masked)

    def objective(module: nn.Module, batches: list[tuple[int, Batch]], rng: torch.Generator) -> Loss:
        totals = [base.objective(module, b, generator("objective", 0, n)).total for n, b in batches]
        return Loss(total=torch.stack(totals).mean(), terms={}, counts={})

    alone = train(dataclasses.replace(base, source=both, objective=objective), tmp_path / "alone")
    for name, value in alone.state_dict().items():
        torch.testing.assert_close(first[name], value, atol=2e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
    assert [r["step"] for r in rows(tmp_path)] == [2, 4, 6, 8, 10, 12]  # one of them writes
    # Neither Adam nor clipping minds a factor, so only the norm tells the mean from the sum.
    wanted = [r["grad"] for r in rows(tmp_path / "alone")]
    assert [r["grad"] for r in rows(tmp_path)] == pytest.approx(wanted, rel=1e-3)


def test_batches_are_shared_out() -> None:
    taken = [Place(rank=r, world=3).batch_number(s) for s in range(4) for r in range(3)]
    assert taken == list(range(12))
    assert [Place().batch_number(s) for s in range(4)] == [0, 1, 2, 3]


def test_alone_nothing_is_averaged() -> None:
    values = [torch.tensor([1.0, 2.0])]
    Place().mean_(values)
    assert values[0].tolist() == [1.0, 2.0]


def test_one_failure_ends_them_all() -> None:
    began = time.monotonic()
    code = launch(2, ["-c", "import os, sys, time; sys.exit(3) if os.environ['RANK'] == '1' else time.sleep(100)"])
    assert code == 3 and time.monotonic() - began < 20


# -- checkpoints ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SafetensorError("I/O error: no space")])
def test_a_failing_save_keeps_the_previous_checkpoint(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(recipe(), tmp_path, stop_after=4)
    before = (tmp_path / STATE).read_bytes()

    def half(tensors: dict[str, Tensor], path: str, **more: object) -> None:
        Path(path).write_bytes(b"half a file")
        raise error

    monkeypatch.setattr("unmask.training.train.save_file", half)
    with pytest.raises(OSError, match="could not save the checkpoint .*; the previous one is intact"):
        train(recipe(), tmp_path)
    assert (tmp_path / STATE).read_bytes() == before
    assert not list(tmp_path.glob("*.part"))
    monkeypatch.undo()
    whole = train(recipe(), tmp_path / "whole")
    equal(train(recipe(), tmp_path).state_dict(), whole.state_dict())


def test_a_disk_that_is_truly_full(tmp_path: Path) -> None:
    """A limit on the size of files, as the system enforces it: the library's own writing fails half way."""
    train(recipe(), tmp_path, stop_after=4)
    before = (tmp_path / STATE).read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, hard))
    try:
        with pytest.raises(OSError, match="the previous one is intact"):
            train(recipe(), tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / STATE).read_bytes() == before
    assert not list(tmp_path.glob("*.part"))


def test_a_foreign_folder_is_refused(tmp_path: Path) -> None:
    train(recipe(), tmp_path, stop_after=1)
    before = (tmp_path / STATE).read_bytes()
    with pytest.raises(ValueError, match="holds a run of 'tiny' .* not of 'other'"):
        train(dataclasses.replace(recipe(), name="other"), tmp_path)
    with pytest.raises(ValueError, match="holds a run of 'tiny' \\(seed 0\\)"):
        train(override(recipe(), ["training.seed=5"]), tmp_path)
    assert (tmp_path / STATE).read_bytes() == before
    (tmp_path / STATE).write_bytes(before[: len(before) // 2])
    with pytest.raises(ValueError, match="is damaged"):
        train(recipe(), tmp_path)


def test_a_checkpoint_of_another_shape_is_named(tmp_path: Path) -> None:
    train(recipe(), tmp_path, stop_after=1)
    wider = dataclasses.replace(recipe(), model=lambda: nn.Linear(3, 3))
    with pytest.raises(ValueError, match="does not fit this recipe: master.weight is missing"):
        train(wider, tmp_path)


def test_nothing_to_train(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="leaves nothing to train"):
        train(dataclasses.replace(recipe(), trainable=lambda name: False), tmp_path)


def test_a_gradient_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    train(recipe(), tmp_path, stop_after=4)
    before = (tmp_path / STATE).read_bytes()

    def broken(module: nn.Module, batch: Batch, rng: torch.Generator) -> Loss:
        total = next(module.parameters()).sum() * math.nan
        return Loss(total=total, terms={"text": total}, counts={"text": 1})

    with pytest.raises(FloatingPointError, match="not finite at update 4"):
        train(dataclasses.replace(recipe(), objective=broken), tmp_path)
    assert (tmp_path / STATE).read_bytes() == before


# -- the optimiser ----------------------------------------------------------------------------------------------------


def test_learning_rate() -> None:
    optim = Optim(lr=2.0, warmup=10, decay_from=0.5, floor=0.1)
    curve = [rate(optim, step, 100) for step in range(100)]
    assert curve[:10] == pytest.approx([0.2 * (i + 1) for i in range(10)])
    assert curve[10:51] == pytest.approx([2.0] * 41)
    assert curve[75] == pytest.approx(2.0 * (0.1 + 0.9 * 0.5))
    assert all(a > b for a, b in zip(curve[50:], curve[51:], strict=False))
    assert curve[99] == pytest.approx(0.2, rel=0.01) and rate(optim, 100, 100) == pytest.approx(0.2)
    assert [rate(Optim(lr=1.0, warmup=0, decay_from=1.0), s, 9) for s in (0, 8)] == [1.0, 1.0]


def linear(bias: float = 0.0) -> nn.Linear:
    made = nn.Linear(2, 1)
    with torch.no_grad():
        made.weight.copy_(torch.tensor([[1.0, -2.0]]))
        made.bias.fill_(bias)
    return made


def test_average_follows_the_weights() -> None:
    module = linear()
    masters = Masters(module, Optim(ema=0.9), lambda name: True)
    expected = module.weight.detach().clone()
    for number in range(40):
        module(torch.tensor([1.0, 2.0])).sum().backward()
        masters.step(0.1, number)
        decay = min(0.9, (1 + number) / (10 + number))
        expected = decay * expected + (1 - decay) * module.weight.detach()
    torch.testing.assert_close(masters.averaged()["weight"], expected)
    assert not torch.allclose(masters.averaged()["weight"], module.weight)


def test_without_an_average_the_weights_are_shipped() -> None:
    module = linear()
    masters = Masters(module, Optim(ema=0.0), lambda name: name == "weight")
    module(torch.tensor([1.0, 2.0])).sum().backward()
    masters.step(0.1, 0)
    assert torch.equal(masters.averaged()["weight"], module.weight)
    assert masters.averaged()["bias"].item() == 0.0 and not module.bias.requires_grad


def test_gradients_are_clipped_and_their_norm_is_returned() -> None:
    """AdamW alone hides a scale; with the second moment's beta at 1 - tiny it would not. The norm is that before clipping."""
    module = linear()
    masters = Masters(module, Optim(clip=1.0), lambda name: True)
    (module(torch.tensor([300.0, 400.0])) * 2).sum().backward()
    seen: list[Tensor] = []
    step = masters.adam.step
    masters.adam.step = lambda: seen.extend(m.grad.clone() for m in masters.master) or step()  # type: ignore[union-attr]
    norm = masters.step(0.1, 0)
    assert norm == pytest.approx(math.sqrt(600**2 + 800**2 + 2**2), rel=1e-5)
    assert float(torch.cat([g.flatten() for g in seen]).norm()) == pytest.approx(1.0, rel=1e-4)


def test_small_steps_are_not_lost_in_bf16() -> None:
    """The reason for float32 masters: a thousandth of a bfloat16 step, a thousand times, must arrive."""
    module = linear().to(torch.bfloat16)
    masters = Masters(module, Optim(ema=0.0), lambda name: True)
    for number in range(300):
        module(torch.tensor([1.0, 1.0], dtype=torch.bfloat16)).sum().backward()
        masters.step(1e-4, number)
    assert float(module.weight.detach()[0, 0]) == pytest.approx(1 - 300 * 1e-4, abs=0.005)


def test_a_parameter_without_gradient_stays() -> None:
    module = linear(0.5)
    masters = Masters(module, Optim(), lambda name: True)
    (module.weight.sum() * 1.0).backward()
    masters.step(0.1, 0)
    assert module.bias.item() == 0.5 and module.weight[0, 0].item() != 1.0


# -- overrides --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "read", "value"),
    [
        ("training.steps=7", lambda r: r.training.steps, 7),
        ("optim.lr=3e-4", lambda r: r.optim.lr, 3e-4),
        (" optim.lr = 2 ", lambda r: r.optim.lr, 2.0),
        ("training.bf16=false", lambda r: r.training.bf16, False),
        ("training.bf16=yes", lambda r: r.training.bf16, True),
        ("name=mine", lambda r: r.name, "mine"),
        ("source.stop_at=3", lambda r: r.source.stop_at, "3"),  # None says nothing of its type
        ("objective.complementary=1", lambda r: r.objective.complementary, True),
        ("objective.corruption.otherwise.all=0.5", lambda r: r.objective.corruption.otherwise.all, 0.5),
    ],
)
def test_override(setting: str, read: Callable[[Recipe], Any], value: Any) -> None:
    from unmask.corruption.absorbing import Absorbing
    from unmask.corruption.schedules import Cosine, OftenAll

    base = dataclasses.replace(recipe(), objective=Masked(corruption=Absorbing(otherwise=OftenAll(policy=Cosine()))))
    changed = override(base, [setting])
    assert read(changed) == value and type(read(changed)) is type(value)
    assert base.training.steps == STEPS  # nothing is changed in place


def test_later_overrides_win_and_tuples_are_read() -> None:
    @dataclasses.dataclass(frozen=True)
    class Value:
        sizes: tuple[int, ...] = (1,)
        names: tuple[str, ...] = ()

    assert override(Value(), ["sizes=1,2", "sizes=(3, 4)", "names=a,b"]) == Value(sizes=(3, 4), names=("a", "b"))


def test_parts_are_changed_by_name() -> None:
    base = Joint(parts=(("one", Numbers(), 1), ("two", Numbers(), 8)))
    assert override(base, ["parts.two.stop_at=3"]) == Joint(
        parts=(("one", Numbers(), 1), ("two", Numbers(stop_at="3"), 8))
    )  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no field 'twoo'; did you mean 'two'"):
        override(base, ["parts.twoo.stop_at=3"])
    with pytest.raises(ValueError, match="'parts' cannot be changed from the command line"):
        override(base, ["parts=3"])


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("training.steps", "must look like name=value"),
        ("training.step=3", "Training has no field 'step'; did you mean 'steps'"),
        ("zzz=3", "Recipe has no field 'zzz'; known: name"),
        ("training.steps=many", "wanted a number like 12"),
        ("training.steps=1.5", "wanted a number like 12"),
        ("training.bf16=maybe", "wanted true or false"),
        ("training.steps.more=1", "there is nothing below int"),
        ("model=3", "cannot be changed from the command line"),
        ("training.steps=0", "training.steps must be at least 1, got 0"),
        ("training.log_every=0", "training.log_every must be at least 1"),
        ("optim.lr=0", "optim.lr must be above 0"),
        ("optim.lr=nan", "optim.lr must be above 0"),
        ("optim.ema=1.5", "optim.ema must be in 0..1"),
        ("optim.beta1=-0.1", "optim.beta1 must be in 0..1"),
    ],
)
def test_a_bad_override_says_what_is_wrong(setting: str, says: str) -> None:
    with pytest.raises(ValueError) as error:
        override(recipe(), [setting])
    assert says in str(error.value)
