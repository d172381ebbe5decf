"""Reading tensor by tensor: indexes, slices, types, the released layout in full size, and how much memory it takes."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from unmask.checkpoints import stream
from unmask.checkpoints.elastic import tensors_needed
from unmask.checkpoints.lavida_o import survey_lavida_o
from unmask.checkpoints.store import read_tensors, save_module
from unmask.checkpoints.stream import CheckpointError, read, tensors_of
from unmask.models.sizes import SIZES
from unmask.pipeline.loading import needs_of
from unmask.tokens.vq import VQConfig

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def loading() -> ModuleType:
    """bench/loading.py, which can write the released layout."""
    path = Path(__file__).parents[2] / "bench" / "loading.py"
    spec = importlib.util.spec_from_file_location("bench_loading", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench_loading"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two files and an index with unusual names."""
    save_file({"a": torch.arange(12.0).view(4, 3), "b": torch.ones(2)}, tmp_path / "first.safetensors")
    save_file({"c": torch.arange(5)}, tmp_path / "second.safetensors")
    return indexed(tmp_path, a="first.safetensors", b="first.safetensors", c="second.safetensors")


def indexed(folder: Path, **where: str) -> Path:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return folder


# -- an index of shards -------------------------------------------------------------------------------------------------


def test_an_index_says_where_tensors_lie(folder: Path) -> None:
    found = tensors_of(folder, "model")
    assert {k: (s.path.name, s.dtype, s.shape) for k, s in found.items()} == {
        "a": ("first.safetensors", "F32", (4, 3)),
        "b": ("first.safetensors", "F32", (2,)),
        "c": ("second.safetensors", "I64", (5,)),
    }
    assert torch.equal(read(found["c"]), torch.arange(5))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (
            lambda f: (f / "second.safetensors").unlink(),
            r"names 1 of 2 files that are missing \(second\.safetensors\)",
        ),
        (lambda f: indexed(f, a="second.safetensors"), "second.safetensors lacks a, which"),
        (lambda f: indexed(f, a="../first.safetensors"), "which is not a file in the same folder"),
        (lambda f: (f / "model.safetensors.index.json").write_text("{"), "is not a valid shard index"),
        (lambda f: (f / "model.safetensors.index.json").write_text("{}"), "is not a valid shard index"),
        (
            lambda f: (f / "first.safetensors").write_bytes((f / "first.safetensors").read_bytes()[:-4]),
            "first.safetensors is damaged, incomplete or not a safetensors file",
        ),
    ],
    ids=["absent file", "wrong file", "outside", "no json", "empty", "half a shard"],
)
def test_an_index_that_does_not_fit(folder: Path, spoil: Callable[[Path], Any], said: str) -> None:
    spoil(folder)
    with pytest.raises(CheckpointError, match=said) as error:
        tensors_of(folder, "model")
    assert "; " in str(error.value), "no hint"


def test_saving_anew_takes_the_index_away(folder: Path) -> None:
    save_module(torch.nn.Linear(2, 2), folder)
    assert set(read_tensors(folder, "model")) == {"weight", "bias"}


# -- one tensor ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("piece", [16, 20, 2**24])
def test_slices_and_types(folder: Path, monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    monkeypatch.setattr(stream, "PIECE", piece)
    a = tensors_of(folder, "model")["a"]
    whole = torch.arange(12.0).view(4, 3)
    assert torch.equal(read(a), whole)
    assert torch.equal(read(a, rows=3), whole[:3])
    half = read(a, rows=2, dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16 and torch.equal(half, whole[:2].bfloat16())


def test_scalars_and_empty_tensors(tmp_path: Path) -> None:
    save_file({"one": torch.tensor(3.0), "none": torch.zeros(0, 4)}, tmp_path / "model.safetensors")
    found = read_tensors(tmp_path, "model")
    assert found["one"].shape == () and found["one"] == 3 and found["none"].shape == (0, 4)


def test_values_that_another_type_cannot_hold(tmp_path: Path) -> None:
    save_file({"w": torch.tensor([1.0, 1e30])}, tmp_path / "model.safetensors")
    stored = tensors_of(tmp_path, "model")["w"]
    with pytest.raises(CheckpointError, match="w holds values too large for float16"):
        read(stored, dtype=torch.float16)
    assert read(stored, dtype=torch.bfloat16).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_one_value_that_is_not_finite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, value: float
) -> None:
    """Wherever it is, in whatever type, read as that type or as another."""
    monkeypatch.setattr(stream, "PIECE", 64)
    for at in (0, 5, 99):
        weights = torch.linspace(-1, 1, 100).to(dtype)
        weights[at] = value
        save_file({"w": weights}, tmp_path / "model.safetensors")
        stored = tensors_of(tmp_path, "model")["w"]
        for wanted in (dtype, torch.float32, torch.bfloat16):
            with pytest.raises(CheckpointError, match="w holds values that are not finite"):
                read(stored, dtype=wanted)


def test_a_type_that_is_not_read(tmp_path: Path) -> None:
    save_file({"w": torch.ones(2).to(torch.float8_e4m3fn)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="w is stored as F8_E4M3; supported: F64, F32, F16, BF16"):
        read_tensors(tmp_path, "model")


# -- the released layout --------------------------------------------------------------------------------------------------


def test_the_released_layout_in_full_size(tmp_path: Path, loading: ModuleType) -> None:
    """22 GB of holes: the heads alone are read, and say what section 9 of the published layout counts."""
    loading.write_released(tmp_path / "big", SIZES["lavida_o"], VQConfig(), shard=5 * 10**9, block=None)
    assert len(list((tmp_path / "big").glob("model-*-of-00005.safetensors"))) == 5
    checkpoint = survey_lavida_o(tmp_path / "big")
    assert checkpoint.config == SIZES["lavida_o"]

    def read_by(task: str) -> int:
        return sum(s.numbers // s.shape[0] * rows for _, _, s, rows in tensors_needed(checkpoint, needs_of(task)))

    vision = 397_747_744 + 5_309_568 + 21_504_000 + 4096
    assert read_by("all") == 10_439_118_848 + 84_422_656 + vision + 146_244_675
    assert read_by("generate") <= 6.95e9 and read_by("ask") <= 8.45e9


WHOLE_FIRST = """
import json, pathlib, sys
sys.path.insert(0, {bench!r})
import loading
tensor_by_tensor = loading.load

def whole_first(weights, *rest):
    held = [file.read_bytes() for file in weights.checkpoint.place.rglob("*.safetensors")]
    tensor_by_tensor(weights, *rest)

loading.load = whole_first
print(json.dumps(loading.measured(pathlib.Path({folder!r}), "all")))
"""


def test_memory_while_loading(tmp_path: Path, loading: ModuleType) -> None:
    """0.3 GB in shards of at most 0.1 GB: at most one shard and 5 % above what is kept (3 to 4 MB were measured)."""
    config = replace(
        SIZES["lavida_o"], vocab_size=8000, width=2048, heads=16, layers=2, mlp=8192, gen_width=1024, gen_mlp=4096,
        joint_layers=1, codes=1024, code_rows=1280, vision=None,
    )  # fmt: skip
    vq, shard, folder = (
        VQConfig(block_out_channels=(32, 64), norm_num_groups=8, num_vq_embeddings=1024),
        10**8,
        tmp_path / "some",
    )
    files = loading.write_released(folder, config, vq, shard=shard, block=None)
    assert len(files) > 3 and all(f.stat().st_size < 1.01 * shard for f in files)
    found = loading.in_a_process(folder, "all")
    assert found["kept"] > 3e8
    assert found["above"] <= 1.05 * shard
    code = WHOLE_FIRST.format(bench=str(Path(loading.__file__).parent), folder=str(folder))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["above"] > 3 * shard, "the figure does not see a loader that reads everything first"


def test_what_this_process_holds_is_not_counted(loading: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process inherits ``ru_maxrss`` from the one that starts it; the figure must not."""
    held = torch.ones(10**8)
    assert loading.memory("VmHWM") >= held.nbytes
    code = f"import sys; sys.path.insert(0, {str(Path(loading.__file__).parent)!r}); import loading; print(loading.memory('VmHWM'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < loading.memory("VmRSS")
