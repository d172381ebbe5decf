"""Several processes: the same updates as one, whatever their number; torchrun starts them, and the first failure ends all."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from unmask.training import parallel, sharded
from unmask.training.parallel import Place, launch, launched, refuse_idle
from unmask.training.states import saved_step
from unmask.training.train import train

from .tiny import recipe
from .whole import state_of

torch.set_num_threads(1)
pytestmark = pytest.mark.usefixtures("warmed")
PROGRAM = str(Path(__file__).with_name("tiny.py"))
FOUR = ("--accumulate", "4")


def curve(folder: Path) -> list[dict[str, Any]]:
    """The rows without what the clock decides."""
    rows = [json.loads(text) for text in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in ("seconds", "tokens_per_s", "peak")} for row in rows]


def close(a: Path, b: Path) -> None:
    """Loss curves to 1e-5, weights to what float32 leaves of them after a few updates by Adam."""
    ours, theirs = curve(a), curve(b)
    assert [r["step"] for r in ours] == [r["step"] for r in theirs] and ours[-1]["step"] == 12
    for one, other in zip(ours, theirs, strict=True):
        # Rows are rounded to five digits, so equal values may differ by one of the last.
        assert one == pytest.approx(other, rel=1e-5, abs=2.1e-5)
    one, other = state_of(a), state_of(b)
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        if name.startswith("master."):
            torch.testing.assert_close(tensor, other[name], atol=2e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process that makes three updates of four source batches."""
    folder = tmp_path_factory.mktemp("alone")
    patch = pytest.MonkeyPatch()
    patch.setattr("unmask.training.train.matmul_peak", lambda dtype, device: 1e9)
    train(recipe(accumulate=4), folder)
    patch.undo()
    return folder


@pytest.mark.parametrize("count", [2, 3, pytest.param(4, marks=pytest.mark.slow)])
def test_any_number_of_processes_makes_the_same_updates(count: int, alone: Path, tmp_path: Path) -> None:
    """Three processes do not share four batches equally."""
    assert launch(count, [PROGRAM, str(tmp_path), *FOUR]) == 0
    close(tmp_path, alone)
    first, *others = (load_file(tmp_path / f"rank{i}.safetensors") for i in range(count))
    for other in others:
        assert all(torch.equal(first[k], other[k]) for k in first)


def test_processes_without_a_batch_or_a_loss_take_part(tmp_path: Path) -> None:
    """Three processes share updates of 5, 5 and 2 batches, each of which has no loss, one or two."""
    train(recipe(accumulate=5, in_twos=True), tmp_path / "alone")
    assert launch(3, [PROGRAM, str(tmp_path / "three"), "--accumulate", "5", "--uneven"]) == 0
    close(tmp_path / "three", tmp_path / "alone")
    assert curve(tmp_path / "alone")[-1]["updates"] > 3


def test_gradients_in_bfloat16_are_summed_in_float32(tmp_path: Path) -> None:
    """After one update of four batches; sums in bfloat16 would differ by a thousandth."""
    train(recipe(accumulate=4, bf16=True), tmp_path / "alone", stop_after=4)
    assert launch(2, [PROGRAM, str(tmp_path / "two"), *FOUR, "--bf16", "--signal-at", "1"]) == 130
    one, other = state_of(tmp_path / "alone"), state_of(tmp_path / "two")
    for name, moment in one.items():
        if name.startswith("exp_avg."):
            torch.testing.assert_close(moment, other[name], atol=1e-8, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def test_on_the_same_number_of_processes_a_run_continues_bit_for_bit(tmp_path: Path) -> None:
    assert launch(2, [PROGRAM, str(tmp_path / "whole"), *FOUR]) == 0
    assert launch(2, [PROGRAM, str(tmp_path / "stopped"), *FOUR, "--signal-at", "6"]) == 130
    assert saved_step(tmp_path / "stopped") == 8
    assert launch(2, [PROGRAM, str(tmp_path / "stopped"), *FOUR]) == 0
    assert curve(tmp_path / "whole") == curve(tmp_path / "stopped")
    one, other = (state_of(tmp_path / name) for name in ("whole", "stopped"))
    assert all(torch.equal(one[k], other[k]) for k in one)


def test_shards_make_the_same_updates_and_evaluations(tmp_path: Path) -> None:
    """FSDP2: every process holds a shard of each weight, all end with the same full model, and evaluations do not change it."""
    alone = tmp_path / "alone"
    train(recipe(accumulate=4, evaluate=True), alone)
    assert launch(2, [PROGRAM, str(tmp_path), *FOUR, "--shard", "--evaluate"]) == 0
    assert [name for row in curve(tmp_path) for name in row if name.startswith("scores.")] == [
        "scores.0",
        "scores.1",
    ] * 3
    close(tmp_path, alone)
    one, other = (load_file(folder / "model.safetensors") for folder in (tmp_path, alone))
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(("before", "after"), [(["--shard"], []), ([], ["--shard"])], ids=["to whole", "to shards"])
def test_a_run_continues_sharded_or_not_on_another_number_of_processes(
    before: list[str], after: list[str], alone: Path, tmp_path: Path
) -> None:
    """Two processes are stopped in the first update; four go on."""
    assert launch(2, [PROGRAM, str(tmp_path), *FOUR, *before, "--signal-at", "1"]) == 130
    assert saved_step(tmp_path) == 4
    assert launch(4, [PROGRAM, str(tmp_path), *FOUR, *after]) == 0
    close(tmp_path, alone)


@pytest.mark.slow
def test_four_shards_make_the_same_updates(alone: Path, tmp_path: Path) -> None:
    """Some weights have fewer rows than there are processes."""
    assert launch(4, [PROGRAM, str(tmp_path), *FOUR, "--shard"]) == 0
    close(tmp_path, alone)


@pytest.mark.slow
def test_shards_continue_bit_for_bit(tmp_path: Path) -> None:
    """In bfloat16 with float32 shards."""
    words = (*FOUR, "--shard", "--bf16")
    assert launch(2, [PROGRAM, str(tmp_path / "whole"), *words]) == 0
    assert launch(2, [PROGRAM, str(tmp_path / "stopped"), *words, "--signal-at", "6"]) == 130
    assert launch(2, [PROGRAM, str(tmp_path / "stopped"), *words]) == 0
    assert curve(tmp_path / "whole") == curve(tmp_path / "stopped")
    one, other = (state_of(tmp_path / name) for name in ("whole", "stopped"))
    assert all(torch.equal(one[k], other[k]) for k in one) and {t.dtype for t in one.values()} == {torch.float32}


def test_every_batch_has_one_process() -> None:
    for world in (1, 2, 3, 4):
        shares = [list(Place(rank=r, world=world).share(8, 12)) for r in range(world)]
        assert sorted(n for share in shares for n in share) == [8, 9, 10, 11]
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert list(Place().share(5, 6)) == [5]


def test_idle_processes_are_refused() -> None:
    refuse_idle(4, 4)
    with pytest.raises(ValueError, match="2 processes cannot share .*accumulate=1 .*; use one process, or -o training"):
        refuse_idle(1, 2)
    with pytest.raises(ValueError, match="at most 2 processes, or -o training.accumulate=3"):
        refuse_idle(2, 3)
    refuse_idle(4, 2, equal=True)
    with pytest.raises(ValueError, match="equal shares, and 3 processes .*=4 equally; use -o training.accumulate=6"):
        refuse_idle(4, 3, equal=True)


def test_processes_with_shards_must_have_the_same_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise they would deadlock."""

    def gathered(found: list[Any], tasks: list[str]) -> None:
        found[:] = [["draw"], tasks]

    monkeypatch.setattr(sharded.dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(sharded.dist, "get_rank", lambda: 1)
    monkeypatch.setattr(sharded.dist, "all_gather_object", gathered)
    sharded.agree({"draw": 1})
    with pytest.raises(ValueError, match="process 1 has draw, look while process 0 has draw; give every part"):
        sharded.agree({"look": 1, "draw": 2})


def test_alone_nothing_is_exchanged() -> None:
    assert Place().sum_(torch.tensor([1.0, 2.0])).tolist() == [1.0, 2.0]
    assert Place().gather([1, 2]) == [1, 2] and not launched()


# Process 0 waits until it is terminated and notes it; process 1 fails as soon as process 0 waits.
FAILING = """
import os, pathlib, signal, sys, time
waiting, ended = (pathlib.Path(sys.argv[1]) / name for name in ("waiting", "ended"))
if os.environ["RANK"] == "1":
    while not waiting.exists():
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL) if sys.argv[2] == "killed" else sys.exit(3)
signal.signal(signal.SIGTERM, lambda *_: (ended.touch(), sys.exit(0)))
waiting.touch()
while True:
    signal.pause()
"""


@pytest.mark.parametrize(("how", "code"), [("exit", 3), ("killed", 128 + signal.SIGKILL)])
def test_one_failure_ends_them_all(how: str, code: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    assert launch(2, ["-c", FAILING, str(tmp_path), how]) == code
    assert (tmp_path / "ended").exists()
    assert before == {number: signal.getsignal(number) for number in before}
    assert capfd.readouterr().err == "" and "TORCH_ELASTIC_SHUTDOWN_TIMEOUT" not in os.environ


def test_an_error_that_follows_from_another_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(parallel.time, "sleep", slept.append)
    own, gone = ValueError("no such folder"), RuntimeError("Connection closed by peer [127.0.0.1]:1")
    for place, error in ((Place(), own), (Place(), gone), (Place(world=2), own)):
        place.let_others_speak(error)
    assert slept == []
    Place(rank=1, world=2).let_others_speak(own)
    Place(rank=0, world=2).let_others_speak(gone)
    assert 0 < slept[0] < slept[1]
