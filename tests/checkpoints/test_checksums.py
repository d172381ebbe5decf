"""Checksums of our own layout: a flipped bit is named, before anything is loaded; writers keep them right."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import unmask
from unmask.checkpoints.checksums import FIELD, refuse_changed, sha256, write_sums
from unmask.checkpoints.store import save_tensors
from unmask.checkpoints.stream import CheckpointError, files_of, tensors_of
from unmask.cli.main import main

from ..tiny_model import make

torch.set_num_threads(1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small model of ours with checksums, its network in several shards."""
    (tmp_path / "model").mkdir()
    made = make(tmp_path / "model", shard=200_000)
    write_sums(made)
    assert len(files_of(made, "model")) > 2
    return made


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(bytes(data))


def test_a_flipped_bit_in_the_data_is_named(folder: Path) -> None:
    unmask.load(folder)
    path = files_of(folder, "model")[1]
    flip(path, path.stat().st_size - 3)
    with pytest.raises(
        CheckpointError, match=f"{path.name} has changed since it was saved.*; copy or download it again"
    ):
        unmask.load(folder)
    unmask.load(folder, verify=False)


def test_two_tensors_exchanged_are_seen(folder: Path) -> None:
    path = next(p for p in files_of(folder, "model") if "blocks.0.und.q.weight" in load_file(p))
    tensors = load_file(path)
    same = [k for k, v in tensors.items() if v.shape == tensors["blocks.0.und.q.weight"].shape]
    a, b = same[0], same[1]
    tensors[a], tensors[b] = tensors[b], tensors[a]
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match="has changed since it was saved"):
        unmask.load(folder)


def test_only_the_files_of_the_task_are_read(folder: Path) -> None:
    (vq,) = files_of(folder, "vq")
    flip(vq, vq.stat().st_size - 3)
    unmask.load(folder, needs={"und", "text_head"})
    with pytest.raises(CheckpointError, match="vq.safetensors has changed"):
        unmask.load(folder)


def test_a_file_without_a_checksum_and_a_checksum_that_is_none(folder: Path) -> None:
    path = folder / "config.json"
    raw = json.loads(path.read_text())
    gone = raw[FIELD].pop("vq.safetensors")
    path.write_text(json.dumps(raw))
    with pytest.raises(CheckpointError, match="has no sha256 of vq.safetensors"):
        unmask.load(folder)
    for wrong in (gone[:-1], gone.upper(), 5, None):
        raw[FIELD]["vq.safetensors"] = wrong
        path.write_text(json.dumps(raw))
        with pytest.raises(CheckpointError, match="invalid value: sha256.vq.safetensors"):
            unmask.load(folder)


def test_a_folder_without_checksums_opens(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != FIELD}))
    unmask.load(folder)
    refuse_changed({}, [folder / "nothing"])


def test_checksums_that_are_null_are_named(folder: Path) -> None:
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | {FIELD: None}))
    with pytest.raises(CheckpointError, match="sha256 is None, wanted an object"):
        unmask.load(folder)


def test_saving_weights_takes_old_checksums_away(folder: Path) -> None:
    tensors = {k: torch.zeros_like(v) for p in files_of(folder, "model") for k, v in load_file(p).items()}
    save_tensors(tensors, folder, shard=200_000)
    assert FIELD not in json.loads((folder / "config.json").read_text())
    assert set(tensors_of(folder, "model")) == set(tensors)
    unmask.load(folder)


def test_a_sum_is_computed_again_when_the_file_changes(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"one")
    first = sha256(path)
    path.write_bytes(b"two more")
    assert sha256(path) != first == "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed"


def test_the_shipped_model_has_checksums_of_every_file(tmp_path: Path) -> None:
    from unmask.pipeline.loading import resolve

    shipped = resolve("mini")
    sums = json.loads((shipped / "config.json").read_text())[FIELD]
    assert sums == {p.name: sha256(p) for p in sorted(shipped.glob("*.safetensors"))}
    copied = shutil.copytree(shipped, tmp_path / "copy")
    assert unmask.load(copied, needs={"und", "text_head"})


@pytest.mark.parametrize("command", ["infill", "batch", "evaluate", "serve"])
def test_commands_skip_the_comparison_where_asked(
    command: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = files_of(folder, "model")[1]
    flip(path, path.stat().st_size - 3)
    lines = tmp_path / "lines.jsonl"
    lines.write_text('{"id": "a", "task": "infill", "text": "two [mask]"}\n')
    monkeypatch.setattr("unmask.cli.serve._run", lambda server, *more: server.close())
    words = {
        "infill": ["two [mask]", "--model", folder],
        "batch": [lines, tmp_path / "out", "--model", folder],
        "evaluate": [folder, "--only", "questions", "--limit", "1", "--json", tmp_path / "f.json"],
        "serve": [folder, "--port", "0"],
    }[command]
    given = [command, *map(str, words)]
    assert main(given) == 2
    assert f"error: {path} has changed since it was saved" in capsys.readouterr().err
    assert main([*given, "--no-checksums"]) == 0
