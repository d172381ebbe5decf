"""Our layout and the released one: there and back is identical, and what comes out is what went in."""

from __future__ import annotations

import json
import os
import shutil
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import unmask
from unmask.checkpoints import store
from unmask.checkpoints.checksums import sha256
from unmask.checkpoints.lavida_o import load_lavida_o
from unmask.checkpoints.store import CheckpointError, load_module, read_tensors, save_module
from unmask.cli.main import main
from unmask.evaluation.verify import verify
from unmask.models.elastic import Elastic, init
from unmask.models.sizes import SIZES
from unmask.pipeline.convert import to_own, to_released
from unmask.rng import generator

from ..tiny_llada import make

torch.set_num_threads(1)
MINI = Path(str(files("unmask") / "assets" / "mini"))
FIXTURE = Path(__file__).parents[1] / "golden" / "lavida_o_tiny"


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """mini in the released layout."""
    out = tmp_path_factory.mktemp("there") / "released"
    written = to_released("mini", out)
    assert {str(p.relative_to(out)) for p in written} == {
        "README.md",
        "vocabulary.json",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "vqvae/config.json",
        "vqvae/diffusion_pytorch_model.safetensors",
    }
    return out


@pytest.fixture(scope="module")
def again(exported: Path) -> Path:
    out = exported.parent / "own"
    to_own(exported, out)
    return out


def config_of(folder: Path) -> dict[str, Any]:
    """config.json without the checksums, which are those of the folder's own files."""
    raw = json.loads((folder / "config.json").read_text())
    assert raw.pop("sha256") == {p.name: sha256(p) for p in sorted(folder.glob("*.safetensors"))}
    return raw


def test_mini_comes_back_bit_for_bit(again: Path) -> None:
    """The network tensor by tensor: the shipped files are older, and lack ``mlp`` in the names of feed-forward weights."""
    rest = [
        {name: data for name, data in content(f).items() if not name.startswith(("model", "config"))}
        for f in (again, MINI)
    ]
    assert rest[0] == rest[1] and rest[0]
    assert config_of(again) == config_of(MINI)
    ours, shipped = (read_tensors(folder, "model") for folder in (again, MINI))
    assert ours.keys() == shipped.keys() and "blocks.0.und.mlp.gate.weight" in ours
    assert all(ours[name].dtype == t.dtype and torch.equal(ours[name], t) for name, t in shipped.items())


def test_the_same_picture_in_every_layout(exported: Path, again: Path) -> None:
    few = ["schedule.steps=4"]
    drawn = [
        unmask.load(m).generate("two red apples", seed=5, plan=False, settings=few)[0].image
        for m in ("mini", exported, again)
    ]
    assert np.array_equal(np.asarray(drawn[0]), np.asarray(drawn[1]))
    assert np.array_equal(np.asarray(drawn[0]), np.asarray(drawn[2]))


def test_the_released_loader_finds_the_same_network(exported: Path) -> None:
    net, vq = load_lavida_o(exported)
    mini = unmask.load("mini").parts
    assert net.config == mini.net.config and vq.config == mini.vq.config and net.mask_id == mini.mask_id
    stored = read_tensors(MINI, "model")
    for key, tensor in net.state_dict().items():
        assert tensor.dtype == stored[key].dtype and torch.equal(tensor, stored[key]), key
    for key, tensor in vq.state_dict().items():
        assert torch.equal(tensor, mini.vq.state_dict()[key]), key


def test_what_the_layout_cannot_say_lies_in_one_block(exported: Path) -> None:
    raw = json.loads((exported / "config.json").read_text())
    block = raw.pop("unmask")
    assert (block["wording"], block["side"], block["fold"]) == ("compact", 128, 2) and block["vision"]["width"] == 128
    assert raw["model_type"] == "llada" and raw["dual_tower_layers"] == 5 and raw["gen_mlp_type"] == "dit2"
    assert json.loads((exported / "vqvae" / "config.json").read_text())["unmask"] == {"encode_apart": True}
    assert all(k.startswith("model.") for k in load_file(exported / "model.safetensors"))


def test_the_fixture_comes_back_and_still_gives_its_figures(tmp_path: Path) -> None:
    there, back = tmp_path / "own", tmp_path / "released"
    to_own(FIXTURE, there)
    to_released(there, back)
    shutil.copy(FIXTURE / "expected.safetensors", back)
    for name in ("config.json", "vqvae/config.json"):
        assert json.loads((back / name).read_text()) == json.loads((FIXTURE / name).read_text())
    for name in ("model.safetensors", "vqvae/diffusion_pytorch_model.safetensors"):
        before, after = load_file(FIXTURE / name), load_file(back / name)
        assert before.keys() == after.keys()
        for key in before:
            assert before[key].dtype == after[key].dtype and torch.equal(before[key], after[key]), key
    assert all(d.ok for d in verify(back))
    raw = json.loads((there / "config.json").read_text())
    assert (raw["wording"], raw["side"], raw["released"]["config"]["max_sequence_length"]) == ("released", 1024, 256)


def test_shards_and_their_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unmask.pipeline.convert._SHARD", 6 * 2**20)
    out = tmp_path / "released"
    to_released("mini", out)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    found = {key: p.name for p in out.glob("model-*.safetensors") for key in load_file(p)}
    assert index["weight_map"] == found and len(set(found.values())) > 2
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in read_tensors(out, "model").values())
    to_own(out, tmp_path / "own")
    assert config_of(tmp_path / "own") == config_of(MINI)


def test_a_run_takes_the_rest_from_its_model(tmp_path: Path) -> None:
    run = tmp_path / "run"
    trained = Elastic(SIZES["mini"], mask_id=unmask.load("mini").parts.mask_id)
    init(trained, generator("convert", 0))
    save_module(trained, run)
    with pytest.raises(CheckpointError, match="has no config.json; for a training run, name its model"):
        to_released(run, tmp_path / "out")
    to_released(run, tmp_path / "out", like="mini")
    net, vq = load_lavida_o(tmp_path / "out")
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), trained.parameters(), strict=True))
    own = unmask.load("mini").parts.vq
    assert torch.equal(vq.quantize.embedding.weight, own.quantize.embedding.weight)


# -- what can be wrong ------------------------------------------------------------------------------------------------


def test_nothing_is_overwritten_and_nothing_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match="out exists already; "):
        to_own(FIXTURE, tmp_path / "out")
    (tmp_path / "out").rmdir()
    save, calls = store.save_file, []

    def full(tensors: dict[str, torch.Tensor], path: str) -> None:
        calls.append(path)
        if len(calls) > 1:  # the network fits, the tokenizer does not
            raise OSError(28, "No space left on device")
        save(tensors, path)

    monkeypatch.setattr(store, "save_file", full)
    for convert in (to_own, to_released):
        calls.clear()
        with pytest.raises(OSError, match="could not write"):
            convert(FIXTURE if convert is to_own else MINI, tmp_path / "out")
        assert len(calls) == 2 and os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("mini out --to own", "cannot read mini"),
        (f"{FIXTURE} out --to released", "in the released layout already"),
        (f"{MINI} out --to own", "is not in the released layout"),
        ("llada out --to own", "is a text model, which has only one layout"),
        ("llada out --to released", "is in the layout of its family, the only one of text models"),
        ("nosuch out --to released", "no model is called 'nosuch'"),
        ("mini out", "--to"),
        ("mini llada --to released", "llada exists already"),
        (f"{FIXTURE} out --to own --like mini", "--like applies to training runs"),
        ("llada out --to released --like mini", "do not fit the model"),
    ],
)
def test_mistakes(
    words: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "llada")
    before = set(tmp_path.rglob("*"))
    assert main(["convert", *words.split()]) == 2
    out, err = capsys.readouterr()
    assert said in err and len(err.splitlines()) == 2 and not out, err
    assert set(tmp_path.rglob("*")) == before


def test_the_command_says_what_it_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["convert", str(FIXTURE), "own", "--to", "own", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["files"] == {str(p.relative_to("own")): p.stat().st_size for p in Path("own").rglob("*") if p.is_file()}
    assert main(["convert", "own", "back", "--to", "released"]) == 0
    out, err = capsys.readouterr()
    assert out == "back\n" and "4 files" in err
    net = load_lavida_o(Path("back"))[0]
    assert isinstance(load_module(net, Path("own")), Elastic)
