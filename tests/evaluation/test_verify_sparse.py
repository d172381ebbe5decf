"""unmask verify on a step-causal checkpoint (Sparse-LaViDa): every array of the fixture, and faults that it sees."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from unmask.checkpoints.lavida_o import load_lavida_o
from unmask.checkpoints.store import CheckpointError
from unmask.cli.main import main
from unmask.evaluation.verify import verify

from ..step_causal import sparse_folder

torch.set_num_threads(1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return sparse_folder(tmp_path / "weights")


def change(file: Path, name: str, factor: float) -> None:
    tensors = load_file(file)
    tensors[name] = tensors[name] * factor
    save_file(tensors, file)


def test_every_array_of_the_fixture_passes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(folder)]) == 0
    out = capsys.readouterr().out
    assert out.count("ok") == 30 and "FAILED" not in out


@pytest.mark.parametrize(
    ("name", "fails", "passes"),
    [
        ("model.register_tokens.weight", {"text.first_logits", "train.text_logits"}, {"t2i.first_logits"}),
        ("model.register_tokens_vision.weight", {"t2i.first_logits", "edit.step_logits"}, {"text.first_logits"}),
    ],
)
def test_registers_serve_their_own_branch(folder: Path, name: str, fails: set[str], passes: set[str]) -> None:
    """Text is decoded with the text registers alone, pictures with the code registers alone."""
    weights = load_file(folder / "model.safetensors")
    change(folder / "model.safetensors", name if name in weights else name.removeprefix("model."), 3.0)
    wrong = {d.name for d in verify(folder) if not d.ok}
    assert fails <= wrong and not passes & wrong


def test_a_missing_input_is_named(folder: Path) -> None:
    file = folder / "expected.safetensors"
    arrays = load_file(file)
    del arrays["train.block"]
    save_file(arrays, file)
    with pytest.raises(CheckpointError, match=r"lacks train\.block"):
        verify(folder)


def test_released_names_that_nobody_has_seen_are_refused(folder: Path) -> None:
    """A released checkpoint would open, warn of two unused tensors and draw noise."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "gen_enc_add_pos_emb": True}))
    with pytest.raises(CheckpointError, match="gen_enc_add_pos_emb"):
        load_lavida_o(folder)
    (folder / "config.json").write_text(json.dumps(config))
    weights = load_file(folder / "model.safetensors")
    renamed = {name.replace("register_tokens", "reg_embed"): tensor for name, tensor in weights.items()}
    save_file(renamed, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"register_tokens\.weight.*not known"):
        load_lavida_o(folder)


@pytest.mark.parametrize("value", ["4", "4,x", "-1,4", 7, None])
def test_a_damaged_number_of_registers_is_named(folder: Path, value: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_register_tokens": value}))
    with pytest.raises(CheckpointError, match="config.json"):
        load_lavida_o(folder)
