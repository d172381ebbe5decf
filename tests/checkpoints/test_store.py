"""Weights on disk: loaded as they were saved, or a named error with nothing partly loaded or written."""

from __future__ import annotations

import errno
import resource
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from unmask.checkpoints import store
from unmask.checkpoints.store import CheckpointError, load_module, read_tensors, save_module
from unmask.models.elastic import Elastic, init
from unmask.models.sizes import SIZES
from unmask.rng import generator

torch.set_num_threads(1)
SHARD = 100_000


def make(seed: int = 0) -> Elastic:
    model = Elastic(SIZES["tiny"], mask_id=1)
    init(model, generator("store", seed))
    return model


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sharded model of seed 0."""
    save_module(make(), tmp_path, shard=SHARD)
    return tmp_path


def refused(folder: Path, says: str, module: nn.Module | None = None) -> None:
    """Loading fails with these words, and the module keeps every weight it had."""
    module = module or make(seed=9)
    before = {k: v.clone() for k, v in module.state_dict().items()}
    with pytest.raises(CheckpointError, match=says) as error:
        load_module(module, folder)
    assert "\n" not in str(error.value)
    for key, value in module.state_dict().items():
        assert torch.equal(value, before[key]), f"{key} was half loaded"


# -- there and back ---------------------------------------------------------------------------------------------------


def test_there_and_back_in_one_file(tmp_path: Path) -> None:
    written = save_module(make(), tmp_path / "new" / "folder")
    assert [p.name for p in written] == ["model.safetensors"]
    assert same(load_module(make(seed=9), tmp_path / "new" / "folder"), make())


def test_shards_stay_under_the_limit(folder: Path) -> None:
    files = sorted(folder.iterdir())
    largest = max(t.nbytes for t in make().state_dict().values())
    assert len(files) > 3
    for i, path in enumerate(files):
        assert path.name == f"model-{i + 1:05d}-of-{len(files):05d}.safetensors"
        tensors = load_file(path)
        size = sum(t.nbytes for t in tensors.values())
        assert size <= SHARD or (len(tensors) == 1 and size <= largest)
    # Every tensor once, and no shard could have been spared.
    keys = [k for p in files for k in load_file(p)]
    assert sorted(keys) == sorted(make().state_dict())
    parts = [load_file(p) for p in files]
    for part, after in zip(parts, parts[1:], strict=False):
        first = next(t for k, t in make().state_dict().items() if k in after)
        assert sum(t.nbytes for t in part.values()) + first.nbytes > SHARD
    assert same(load_module(make(seed=9), folder), make())


def test_the_default_limit_keeps_files_under_16_mib(tmp_path: Path) -> None:
    class Big(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ParameterList([nn.Parameter(torch.zeros(1_000_000)) for _ in range(9)])

    assert len(save_module(Big(), tmp_path)) == 3
    assert all(p.stat().st_size < 16 * 2**20 for p in tmp_path.iterdir())


def test_in_another_dtype(tmp_path: Path) -> None:
    save_module(make(), tmp_path, dtype=torch.bfloat16)
    assert {t.dtype for t in read_tensors(tmp_path, "model").values()} == {torch.bfloat16}
    back = load_module(make(seed=9), tmp_path)
    for a, b in zip(back.parameters(), make().parameters(), strict=True):
        assert a.dtype == torch.float32 and torch.equal(a, b.bfloat16().float())


def test_two_models_share_a_folder(tmp_path: Path) -> None:
    save_module(make(), tmp_path, shard=SHARD)
    save_module(make(seed=1), tmp_path, name="vq", shard=SHARD)
    assert same(load_module(make(seed=9), tmp_path), make())
    assert same(load_module(make(seed=9), tmp_path, name="vq"), make(seed=1))


@pytest.mark.parametrize(("first", "second"), [(SHARD, 10**9), (10**9, SHARD), (SHARD, 2 * SHARD)])
def test_saving_again_leaves_nothing_of_the_old(tmp_path: Path, first: int, second: int) -> None:
    save_module(make(), tmp_path, shard=first)
    written = save_module(make(seed=1), tmp_path, shard=second)
    assert sorted(tmp_path.iterdir()) == sorted(written)
    assert same(load_module(make(seed=9), tmp_path), make(seed=1))


def test_parts_that_were_not_built_may_be_skipped(folder: Path) -> None:
    import dataclasses

    blind = Elastic(dataclasses.replace(SIZES["tiny"], vision=None), mask_id=1)
    refused(folder, "unexpected vision", blind)
    load_module(blind, folder, skip=("vision.",))
    assert torch.equal(blind.embed.weight, make().embed.weight)


# -- what can be wrong ------------------------------------------------------------------------------------------------


def test_no_folder_and_no_files(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", r"no model\*\.safetensors in .*nowhere; is this a model folder\?")
    (tmp_path / "other.safetensors").write_bytes(b"")
    refused(tmp_path, "is this a model folder")


def test_a_missing_shard(folder: Path) -> None:
    files = sorted(folder.iterdir())
    files[1].unlink()
    refused(folder, f"holds {len(files) - 1} of {len(files)} shards of model; copy the missing ones")


def test_a_shard_too_many(folder: Path) -> None:
    files = sorted(folder.iterdir())
    (folder / f"model-00001-of-{len(files) + 1:05d}.safetensors").write_bytes(files[0].read_bytes())
    refused(folder, f"holds {len(files) + 1} of {len(files)} shards")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda b: b[: len(b) // 2],
        lambda b: b"",
        lambda b: b[:7],
        lambda b: b"\xff" * 64 + b[64:],
        lambda b: b + b"more",
    ],
    ids=["half", "empty", "stub", "overwritten", "longer"],
)
def test_a_damaged_file(folder: Path, spoil: Callable[[bytes], bytes]) -> None:
    path = sorted(folder.iterdir())[-1]  # the last one, so that others were read before it
    path.write_bytes(spoil(path.read_bytes()))
    refused(folder, rf"{path.name} is damaged, incomplete or not a safetensors file")


def test_a_folder_instead_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").mkdir()
    refused(tmp_path, "is damaged, incomplete or not a safetensors file")


def change(folder: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    """Change the tensors of the last shard."""
    path = sorted(folder.iterdir())[-1]
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path)


def test_a_missing_tensor(folder: Path) -> None:
    change(folder, lambda t: t.pop("vision.newline"))
    refused(folder, r"do not fit the model: missing vision\.newline; is its config\.json the one")


def test_an_unexpected_tensor(folder: Path) -> None:
    change(folder, lambda t: t.update(more=torch.zeros(2)))
    refused(folder, "unexpected more")


def test_another_shape(folder: Path) -> None:
    change(folder, lambda t: t.update({"vision.newline": torch.zeros(31)}))
    refused(folder, r"vision\.newline is \(31,\), wanted \(32,\)")


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_value_that_is_no_number(folder: Path, value: float) -> None:
    change(folder, lambda t: t["vision.newline"].__setitem__(3, value))
    refused(folder, r"vision\.newline holds values that are not finite")


def test_many_problems_are_counted(folder: Path) -> None:
    wrong = nn.Linear(2, 2)
    refused(folder, r"missing weight, missing bias, unexpected \S+ and \d+ more; ", wrong)


# -- a disk that is full ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("I/O error")])
@pytest.mark.parametrize("at", [0, 2])
def test_a_full_disk_changes_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch, kind: Exception, at: int) -> None:
    """Also where the first shards fitted: new ones must never lie beside old ones."""
    before, calls, save = bytes_of(folder), [0], store.save_file

    def full(tensors: dict[str, Tensor], path: str) -> None:
        calls[0] += 1
        if calls[0] > at:
            Path(path).write_bytes(b"half a file")
            raise kind
        save(tensors, path)

    monkeypatch.setattr(store, "save_file", full)
    with pytest.raises(OSError, match="could not write model in .*; nothing was changed"):
        save_module(make(seed=1), folder, shard=SHARD)
    assert bytes_of(folder) == before
    assert same(load_module(make(seed=9), folder), make())


def test_a_limit_of_the_system(folder: Path) -> None:
    """The library's own writing fails half way, with nothing replaced for the test."""
    before = bytes_of(folder)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (SHARD // 2, hard))
    try:
        with pytest.raises(OSError, match="nothing was changed"):
            save_module(make(seed=1), folder, shard=SHARD)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert bytes_of(folder) == before


def test_a_file_where_the_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "here").write_text("a file")
    with pytest.raises(OSError):
        save_module(make(), tmp_path / "here")
    assert (tmp_path / "here").read_text() == "a file"
