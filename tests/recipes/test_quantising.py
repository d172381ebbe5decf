"""Models in few bits: written from any layout, opened as any other, and refused where they are damaged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

import unmask
from unmask.checkpoints.adapters import save_adapter
from unmask.checkpoints.elastic import Weights
from unmask.checkpoints.loading import load_everything
from unmask.checkpoints.packed import KEY
from unmask.checkpoints.stream import CheckpointError, read_header, tensors_of
from unmask.cli.main import main
from unmask.methods.qdlm import methods
from unmask.models.lora import LoRA, in_branches
from unmask.pipeline.adapting import merge
from unmask.pipeline.loading import read_spec
from unmask.recipes.quantising import calibration, layers_of, method_of, quantise
from unmask.recipes.starting import Start, start_of

from ..tiny_dream import make as make_dream
from ..tiny_llada import make as make_llada
from ..tiny_model import make as make_own_in

torch.set_num_threads(1)


def make_own(folder: Path) -> Path:
    folder.mkdir()
    return make_own_in(folder)


MAKERS: dict[str, Callable[[Path], Path]] = {"own": make_own, "llada": make_llada, "dream": make_dream}


def chats(folder: Path) -> Path:
    path = folder / "chats.jsonl"
    rows = [("why is the sky blue?", "the sky is blue"), ("is the sky blue?", "the sky is the sky")]
    lines = [
        {"id": q, "messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]} for q, a in rows
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(scope="module", params=MAKERS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return MAKERS[request.param](tmp_path_factory.mktemp(request.param) / "model")


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Start:
    return start_of(str(make_llada(tmp_path_factory.mktemp("start") / "model")))


@pytest.mark.parametrize("name", ["rtn", "quarot"])
def test_a_folder_opens_with_the_values_that_were_packed(model: Path, name: str, tmp_path: Path) -> None:
    first = start_of(str(model))
    batches = []
    if name != "rtn" and first.writes_only:
        batches = calibration(first, data=str(chats(tmp_path)), rows=3)
    done = quantise(first, tmp_path / "out", method_of(name, 3, 8), batches)
    before, _ = load_everything(read_spec(model).checkpoint)
    after, _ = load_everything(read_spec(tmp_path / "out").checkpoint)
    layers = {f"{name}.weight" for _, names in layers_of(before) for name in names}
    assert done.layers == len(layers) and (len(done.rounded) == 0) == (name == "rtn" or first.writes_only)
    for key, value in after.state_dict().items():
        old = before.state_dict()[key]
        assert value.dtype == old.dtype and torch.equal(value, old) != (key in layers)
    if name == "rtn":
        for key in layers:
            wanted = methods(3, 8)["rtn"].quantised(key, before.state_dict()[key], None).values()
            assert torch.equal(after.state_dict()[key], wanted.to(after.state_dict()[key]))
    assert size(tmp_path / "out") < size(model)
    assert unmask.load(tmp_path / "out") is not None
    first_row = next(iter(read_spec(tmp_path / "out").checkpoint.net.values()))
    assert first_row.label == first_row.dtype


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors"))


def test_calibration_masks_as_in_training_and_clean_masks_nothing(start: Start, tmp_path: Path) -> None:
    data = str(chats(tmp_path))
    masked = calibration(start, data=data, rows=6, seed=1)
    clean = calibration(start, data=data, rows=6, seed=1, clean=True)
    assert [b.rows for b in masked] == [1] * 6 == [b.rows for b in clean]
    assert all(b.masked.any() and b.target is None for b in masked)
    assert not any(b.masked.any() for b in clean) and all(bool(b.target.any()) for b in clean if b.target is not None)
    shares = {round(float(b.masked.sum() / b.writable.sum()), 2) for b in masked}
    assert len(shares) > 2, "mask ratios are drawn as in training"
    with pytest.raises(ValueError, match="needs sequences for the calibration; add --data"):
        calibration(start)


def test_later_blocks_are_measured_on_quantised_ones(start: Start, tmp_path: Path) -> None:
    """The first block is equal however it is calibrated; the statistics of the next ones are those of the quantised network."""
    from unmask.checkpoints.calibration import calibrate
    from unmask.recipes.quantising import quantised

    batches, method = calibration(start, data=str(chats(tmp_path)), rows=2), method_of("gptq", 2, 0)
    made = {name: matrix for name, (matrix, _) in quantised(start.network(), method, batches).items()}
    whole = start.network()
    for _, names in layers_of(whole):
        stats = calibrate(whole, batches, frozenset(names).__contains__)
        for name in names:
            weight = whole.get_submodule(name).weight
            assert isinstance(weight, Tensor)
            found = method.quantised(name, weight.detach(), stats[name])
            assert torch.equal(found.ints, made[name].ints)
            weight.data.copy_(found.values())


def test_the_command(start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = str(start.spec.checkpoint.place)
    options = [
        "--method",
        "awq",
        "--bits",
        "2",
        "--rows",
        "2",
        "--data",
        str(chats(tmp_path)),
        "--threads",
        "1",
        "--json",
    ]
    assert main(["quantise", place, str(tmp_path / "out"), *options]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["bits"] == 2 and told["not_calibrated"] == [] and told["bytes"] < told["bytes_before"]
    assert main(["inspect", str(tmp_path / "out")]) == 0 and "F32 in 2 bits" in capsys.readouterr().out
    assert main(["quantise", place, str(tmp_path / "out"), *options]) == 2
    assert "exists already" in capsys.readouterr().err
    assert main(["quantise", place, str(tmp_path / "more"), "--method", "gptq", "--threads", "1"]) == 2
    assert "add --data" in capsys.readouterr().err and not (tmp_path / "more").exists()
    assert main(["quantise", str(tmp_path / "out"), str(tmp_path / "again"), "--method", "rtn", "--threads", "1"]) == 2
    assert "is quantised already" in capsys.readouterr().err


def test_adapters_are_not_merged_into_few_bits(start: Start, tmp_path: Path) -> None:
    quantise(start, tmp_path / "out", method_of("rtn", 4, 32))
    net = start.network()
    LoRA(where=in_branches("und"), rank=2)(net)
    save_adapter(net, tmp_path / "adapter", base="")
    with pytest.raises(CheckpointError, match="quantised weights, which cannot be merged; use --lora"):
        merge(tmp_path / "out", tmp_path / "adapter", tmp_path / "merged")
    assert unmask.load(tmp_path / "out", lora=str(tmp_path / "adapter")) is not None


def _rewritten(path: Path, change: Callable[[dict[str, Tensor], dict[str, str]], None]) -> None:
    with safe_open(str(path), "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        about = dict(file.metadata())
    change(tensors, about)
    save_file(tensors, str(path), about)


def _without_scale(tensors: dict[str, Tensor], about: dict[str, str]) -> None:
    del tensors[next(name for name in tensors if name.endswith(".scale"))]


def _short_ints(tensors: dict[str, Tensor], about: dict[str, str]) -> None:
    name = next(name for name in tensors if name.endswith(".ints"))
    tensors[name] = tensors[name][:, :-1].clone()


def _no_json(tensors: dict[str, Tensor], about: dict[str, str]) -> None:
    about[KEY] = "{"


def _nine_bits(tensors: dict[str, Tensor], about: dict[str, str]) -> None:
    about[KEY] = json.dumps({name: [9, *rest] for name, (_, *rest) in json.loads(about[KEY]).items()})


def _wrong_group(tensors: dict[str, Tensor], about: dict[str, str]) -> None:
    name = next(name for name in tensors if name.endswith(".ints"))
    columns = json.loads(about[KEY])[name.removesuffix(".ints")][2][1]
    tensors[name.replace(".ints", ".group_of")] = torch.full((columns,), 99, dtype=torch.int32)


def _infinite(tensors: dict[str, Tensor], about: dict[str, str]) -> None:
    name = next(name for name in tensors if name.endswith(".scale"))
    tensors[name] = torch.full_like(tensors[name], torch.inf)


def _odd_hadamard(tensors: dict[str, Tensor], about: dict[str, str]) -> None:
    name = next(name for name in tensors if name.endswith(".ints"))
    tensors[name.replace(".ints", ".hadamard")] = torch.tensor([24], dtype=torch.int32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without_scale, "does not hold the 3-bit matrix"),
        (_short_ints, "does not hold the 3-bit matrix"),
        (_no_json, "cannot be read"),
        (_nine_bits, "in 9 bits, wanted 2 to 8"),
        (_wrong_group, "do not fit"),
        (_infinite, "not finite"),
        (_odd_hadamard, "power of two"),
    ],
)
def test_damaged_files_are_refused(change: Callable[..., None], message: str, tmp_path: Path) -> None:
    start = start_of(str(make_llada(tmp_path / "model")))
    quantise(start, tmp_path / "out", method_of("rtn", 3, 16))
    _rewritten(next(iter(sorted((tmp_path / "out").glob("*.safetensors")))), change)
    with pytest.raises(CheckpointError, match=message):
        load_everything(Weights(checkpoint=read_spec(tmp_path / "out").checkpoint).checkpoint)


def test_an_ordinary_file_is_read_as_before(tmp_path: Path) -> None:
    save_file({"a.scale": torch.ones(2), "a.ints": torch.ones(2)}, str(tmp_path / "model.safetensors"))
    assert {t.name for t in read_header(tmp_path / "model.safetensors")} == {"a.scale", "a.ints"}
    assert not any(t.bits for t in tensors_of(tmp_path, "model").values())


def test_unknown_methods_are_named() -> None:
    with pytest.raises(ValueError, match="no method is called 'gtpq'; choose from rtn, gptq"):
        method_of("gtpq", 4, 128)
