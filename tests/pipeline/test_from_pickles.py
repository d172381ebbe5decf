"""Pickles of weights: refused with a hint, converted on request by a process of its own, and never run."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import unmask
from unmask.checkpoints.stream import CheckpointError
from unmask.cli.main import main
from unmask.pipeline.from_pickles import to_safetensors, weights_in

from .. import tiny_dream

torch.set_num_threads(1)
GOLDEN = Path(__file__).parents[1] / "golden" / "mmada_tiny"


def pickled(folder: Path, *, part: str = "", name: str = "pytorch_model") -> None:
    """Turn the safetensors of a folder into pickles with the names that such files have."""
    files = sorted((folder / part).glob("*.safetensors"))
    for number, file in enumerate(f for f in files if f.stem != "expected"):
        shard = f"-{number + 1:05d}-of-{len(files):05d}" if len(files) > 1 and not part else ""
        torch.save(load_file(file), folder / part / f"{name}{shard}.bin")
        file.unlink()


@pytest.fixture
def dream(tmp_path: Path) -> Path:
    """A model in two shards, its pickles, and files beside them that are no weights."""
    folder = tiny_dream.make(tmp_path / "dream")
    pickled(folder)
    torch.save({"lr": 1.0}, folder / "training_args.bin")
    (folder / "pytorch_model.bin.index.json").write_text("{}")
    return folder


def test_a_folder_of_pickles_is_refused_with_a_hint_and_converted(
    dream: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ask", "why?", "--model", str(dream)]) == 2
    said = capsys.readouterr().err
    assert (
        f"hint: convert the weights to safetensors, for example with `unmask convert {dream} NEW --to safetensors`"
        in said
    )
    out = tmp_path / "new"
    assert main(["convert", str(dream), str(out), "--to", "safetensors"]) == 0
    names = sorted(p.name for p in out.iterdir())
    assert "model-00001-of-00002.safetensors" in names and "model.safetensors.index.json" in names
    assert not [n for n in names if n.endswith(".bin") or "bin.index" in n]
    assert (
        unmask.load(out).ask("why?", length=8, seed=1).text
        == unmask.load(tiny_dream.make(tmp_path / "same")).ask("why?", length=8, seed=1).text
    )
    index = json.loads((out / "model.safetensors.index.json").read_text())["weight_map"]
    assert set(index.values()) == {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"}
    capsys.readouterr()
    assert main(["convert", str(dream), str(out), "--to", "safetensors"]) == 2
    assert "exists already" in capsys.readouterr().err


def test_the_image_tokenizer_of_mmada_keeps_the_name_of_its_weights(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(GOLDEN, tmp_path / "mmada"))
    pickled(folder, part="magvitv2")
    with pytest.raises(
        CheckpointError, match="it holds pytorch_model.bin, .*unmask convert .*magvitv2 NEW --to safetensors"
    ):
        unmask.load(folder)
    to_safetensors(folder, tmp_path / "new")
    found = load_file(tmp_path / "new" / "magvitv2" / "pytorch_model.safetensors")
    assert all(
        torch.equal(found[n], t) for n, t in load_file(GOLDEN / "magvitv2" / "pytorch_model.safetensors").items()
    )
    assert unmask.load(tmp_path / "new").generate("a cat", steps=1)[0].image.size == (32, 32)  # type: ignore[union-attr]


class Harmful:
    """A pickle of it makes a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("way", ["torch", "plain"])
def test_code_in_a_pickle_is_not_run(way: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad, made = tmp_path / "bad.bin", tmp_path / "made"
    value = {"weight": torch.ones(2), "more": Harmful(made)}
    torch.save(value, bad) if way == "torch" else bad.write_bytes(pickle.dumps(value))
    assert main(["convert", str(bad), str(tmp_path / "out"), "--to", "safetensors"]) == 2
    assert "it holds more than tensors and plain containers" in capsys.readouterr().err
    assert not made.exists() and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([torch.ones(2)], "it holds list, not tensors by name"),
        ({"a": 1}, "its entry 'a' is int, not a tensor"),
        ({1: torch.ones(2)}, "its entry 1 is named by int, not by a text"),
        ({}, "it holds dict, not tensors by name"),
    ],
)
def test_what_is_no_file_of_weights_is_named(value: object, said: str, tmp_path: Path) -> None:
    torch.save(value, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=said):
        to_safetensors(tmp_path / "x.pt", tmp_path / "out")


def test_tied_and_nested_weights_are_written_apart(tmp_path: Path) -> None:
    whole = torch.arange(12.0).view(3, 4)
    torch.save({"state_dict": {"a": whole, "b": whole, "c": whole[1:], "d": whole.T}}, tmp_path / "x.ckpt")
    (file,) = to_safetensors(tmp_path / "x.ckpt", tmp_path / "out")
    found = load_file(file)
    assert torch.equal(found["a"], whole) and torch.equal(found["b"], whole)
    assert torch.equal(found["c"], whole[1:]) and torch.equal(found["d"], whole.T)


def test_wrong_sources_are_named(dream: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    same = tiny_dream.make(tmp_path / "same")
    for source, said in ((same, "holds no pickles of weights"), (tmp_path / "none", "is no folder and no pickle")):
        with pytest.raises(CheckpointError, match=said):
            to_safetensors(source, tmp_path / "out")
    (tmp_path / "cut.bin").write_bytes(next(dream.glob("pytorch_model-*.bin")).read_bytes()[:500])
    with pytest.raises(CheckpointError, match="cut.bin: .*; get the weights in safetensors"):
        to_safetensors(tmp_path / "cut.bin", tmp_path / "out")
    shutil.copyfile(same / "model-00001-of-00002.safetensors", dream / "model-00001-of-00002.safetensors")
    with pytest.raises(CheckpointError, match="has model-00001-of-00002.safetensors beside pytorch_model-00001"):
        weights_in(dream)
    assert main(["convert", str(same), str(tmp_path / "out"), "--to", "safetensors", "--like", "mini"]) == 2
    assert "--like applies to training runs" in capsys.readouterr().err
