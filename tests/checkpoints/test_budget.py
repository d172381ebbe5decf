"""What a task needs in memory, and what fits: the arithmetic, by hand and against measured memory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import unmask
from unmask.checkpoints.budget import footprint, nbytes_kept, options_of, parse_bytes, proposals, working
from unmask.checkpoints.elastic import Checkpoint, Weights, WeightStorage
from unmask.checkpoints.quantise import RoundToNearest
from unmask.cli.main import main
from unmask.pipeline.loading import needs_of, read_spec, resolve
from unmask.pipeline.named_sizes import spec_of_size

from ..tiny_llada import make, tensors

torch.set_num_threads(1)
FOLDER = Path(__file__).parents[1] / "golden" / "lavida_o_tiny"
SIDE = 1024
UND = 32 * (218_112_000 - 2 * 4096 - 4096**2)  # matrices of the understanding branch, shared output aside


@pytest.fixture(scope="module")
def released() -> Checkpoint:
    return spec_of_size("lavida_o").checkpoint


def total(weights: Weights, task: str, device: str | None = None) -> int:
    return sum(s.nbytes for s in footprint(weights, needs_of(task)) if device in (None, s.device))


def test_two_bytes_a_parameter(released: Checkpoint) -> None:
    assert total(Weights(checkpoint=released), "ask") == 2 * 8_447_634_080
    assert total(Weights(checkpoint=released, storage=WeightStorage(dtype=torch.float32)), "ask") == 4 * 8_447_634_080
    vq = 4 * (146_244_675)  # float32 whatever the network is
    assert total(Weights(checkpoint=released), "all") == 2 * (10_439_118_848 + 84_422_656 + 424_565_408) + vq


def test_int8_and_int4_by_hand(released: Checkpoint) -> None:
    plain = total(Weights(checkpoint=released), "ask")
    rows = 32 * (3 * 4096 + 2 * 12288 + 4096)  # of q, k, v, gate, up, down
    int8 = Weights(checkpoint=released, storage=WeightStorage(quantise={"und": RoundToNearest(bits=8)}))
    assert total(int8, "ask") == plain - UND * 2 + UND + 4 * rows
    on_cpu = Weights(checkpoint=released, storage=WeightStorage(quantise={"und": RoundToNearest(bits=4)}))
    assert total(on_cpu, "ask") == plain - UND * 2 + UND + UND // 32 * 3
    on_gpu = Weights(
        checkpoint=released, device="cuda", storage=WeightStorage(quantise={"und": RoundToNearest(bits=4)})
    )
    assert total(on_gpu, "ask") == plain - UND * 2 + UND // 2 + UND // 32 * 4


def test_offload_moves_bytes_and_loses_none(released: Checkpoint) -> None:
    plain = Weights(checkpoint=released, device="cuda")
    lent = Weights(checkpoint=released, device="cuda", storage=WeightStorage(offload=frozenset({"und"})))
    assert total(lent, "ask") == total(plain, "ask")
    assert total(lent, "ask", "cpu") == UND * 2


def test_the_least_loss_that_fits_is_proposed_first(released: Checkpoint) -> None:
    weights, needs = Weights(checkpoint=released, device="cuda"), needs_of("all")

    def first(gib: float) -> str | None:
        return next((p.options for p in proposals(weights, needs, round(gib * 2**30), SIDE) if p.fits), None)

    ways = proposals(weights, needs, 0, SIDE)
    assert not any(p.fits for p in ways)
    for way in ways:  # each is proposed for exactly its size if nothing gentler is as small
        chosen = first(way.nbytes / 2**30)
        gentler = [p.options for p in ways if p.nbytes <= way.nbytes]
        assert chosen == gentler[0]
    assert [first(g) for g in (27, 21, 19, 16, 14.9, 11)] == [
        "(as stored)",
        "--dtype bfloat16 --quantise und=int8",
        "--dtype bfloat16 --quantise und=int8 --quantise gen=int8",
        "--dtype bfloat16 --quantise und=int4 --quantise gen=int4",
        "--dtype bfloat16 --offload und",
        "--dtype bfloat16 --offload und --offload gen",
    ]
    assert ways[-1].storage.offload == {"und", "gen"} and ways[-1].beside == 2 * (UND + 32 * (75_501_568 - 2 * 2048))
    assert first(0.5) is None


def test_on_a_cpu_nothing_is_proposed_that_saves_no_memory(released: Checkpoint) -> None:
    ways = proposals(Weights(checkpoint=released), needs_of("ask"), 2**40, SIDE)
    assert [w.options for w in ways] == ["(as stored)", "--dtype bfloat16 --quantise und=int8"]
    assert all(w.beside == 0 for w in ways)


def test_work_grows_with_the_picture(released: Checkpoint) -> None:
    weights = Weights(checkpoint=released)
    drawing = [working(weights, needs_of("generate"), side) for side in (256, 512, 1024)]
    assert drawing == sorted(set(drawing))
    assert working(weights, needs_of("ask"), 256) == working(weights, needs_of("ask"), 1024)


@pytest.mark.parametrize(
    "storage",
    [
        WeightStorage(),
        WeightStorage(dtype=torch.bfloat16),
        WeightStorage(quantise={"und": RoundToNearest(bits=8), "gen": RoundToNearest(bits=8)}),
        WeightStorage(quantise={"gen": RoundToNearest(bits=4)}),
    ],
)
@pytest.mark.parametrize("task", ["generate", "ask"])
def test_what_is_said_is_what_is_kept(storage: WeightStorage, task: str) -> None:
    if storage.quantise:
        pytest.importorskip("torchao")
    weights = Weights(checkpoint=read_spec(resolve("mini")).checkpoint, storage=storage)
    model = unmask.load("mini", needs=needs_of(task), storage=storage)
    for module, net, found in (
        ("net", model.parts.net, weights.checkpoint.net),
        ("vq", model.parts.vq, weights.checkpoint.vq),
    ):
        for name, p in net.named_parameters():
            if not p.is_meta:
                pieces = [getattr(p, n) for n in getattr(p, "tensor_data_names", [])] or [p]
                kept = sum(t.nbytes for t in pieces)
                assert kept == nbytes_kept(weights, module, name, found[name], p.shape[0]), name


@pytest.mark.parametrize(
    ("text", "nbytes"), [("24GiB", 24 * 2**30), ("16 GB", 16 * 10**9), ("0.5gib", 2**29), ("1000", 1000)]
)
def test_amounts_of_memory(text: str, nbytes: int) -> None:
    assert parse_bytes(text) == nbytes


@pytest.mark.parametrize("text", ["", "GiB", "24 apples", "-1GiB", "nanGiB", "0", "infGB"])
def test_no_amounts_of_memory(text: str) -> None:
    with pytest.raises(ValueError, match="is not an amount of memory; use a form like 24GiB"):
        parse_bytes(text)


def test_options_are_what_the_command_line_takes(capsys: pytest.CaptureFixture[str]) -> None:
    storage = WeightStorage(dtype=torch.bfloat16, quantise={"und": RoundToNearest(bits=8)}, offload=frozenset({"und"}))
    assert (
        main(["inspect", "lavida_o", "--task", "ask", "--device", "cuda", *options_of(storage).split(), "--json"]) == 0
    )
    told = json.loads(capsys.readouterr().out)
    beside = [p for p in told["parts"] if p["device"] == "cpu"]
    assert {p["dtype"] for p in beside} == {"int8"} and sum(p["parameters"] for p in beside) == UND


def test_inspect_tells_a_task_of_the_fixture(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(FOLDER), "--task", "ask", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    und = 4 * (2 * 64 + 4 * 64 * 64 + 3 * 64 * 128)
    assert told["parameters"] == und + 2 * 640 * 64 + 64 == told["bytes"] / 4
    assert told["free"] is None or told["free"] > 0


def test_inspect_proposes(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["inspect", "lavida_o", "--task", "ask", "--device", "cuda", "--budget", "12GiB"]
    assert main(words) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "proposed: --dtype bfloat16 --quantise und=int8"
    assert main([*words[:-1], "1GiB", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["proposed"] is None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["inspect", "mini", "--task", "fly"], "no task is called 'fly'"),
        (["inspect", "mini", "--budget", "much"], "not an amount of memory"),
        (["inspect", str(FOLDER / "model.safetensors"), "--task", "ask"], "give its folder"),
        (["inspect", "mini", "--task", "ask", "--quantise", "und"], "use und or gen with int8, int4 or float8"),
        (["inspect", "mini", "--task", "ask", "--quantise", "eyes=int8"], "unknown branch 'eyes'"),
        (["generate", "x", "--dtype", "int8"], "int8"),
    ],
)
def test_mistakes(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert said in capsys.readouterr().err


def test_a_text_model_is_told_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make(tmp_path / "llada")
    assert main(["inspect", str(folder), "--task", "ask", "--budget", "1GiB", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["parameters"] == sum(t.numel() for t in tensors().values()) and told["proposed"] == "(as stored)"
    assert main(["inspect", str(folder), "--task", "generate"]) == 2
    said = capsys.readouterr().err
    assert "is a text model, which cannot generate\nhint: its tasks are ask, infill-text, all" in said
    kept = unmask.load(folder, storage=WeightStorage(dtype=torch.bfloat16))
    assert {p.dtype for p in kept.parts.net.parameters()} == {torch.bfloat16}
    assert kept.ask("why?", max_tokens=4, settings=["schedule.steps=2"]).settings
