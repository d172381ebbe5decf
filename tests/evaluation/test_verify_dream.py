"""unmask verify on Dream: every measured array, and faults that it must see."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from unmask.checkpoints.stream import CheckpointError
from unmask.cli.main import main
from unmask.evaluation.verify import verify

from ..packed import given_or_own

torch.set_num_threads(1)
FIXTURE = Path(__file__).parents[1] / "golden" / "dream_tiny"


def test_every_array_is_equal(request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]) -> None:
    """``--golden DIR``: of DIR/dream_tiny, where it is there."""
    folder = given_or_own(request.config, "dream_tiny")
    assert main(["verify", str(folder), "--tolerance", "5e-5", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    outputs = {a["name"] for a in told["arrays"]}
    assert len(outputs) == 104 and {"gen.readme.ids", "fast.dual.entropy.nfe", "train.loss", "nll.value"} <= outputs


def test_integers_are_equal_in_float64_too() -> None:
    assert all(found.ok for found in verify(FIXTURE, dtype=torch.float64, tolerance=1e-4, device="cpu"))


def copied(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FIXTURE, tmp_path / "dream"))


def test_another_bias_fails(tmp_path: Path) -> None:
    folder = copied(tmp_path)
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.self_attn.k_proj.bias"] += 1
    save_file(weights, folder / "model.safetensors")
    failed = {found.name for found in verify(folder, device="cpu") if not found.ok}
    assert {"text.logits", "train.loss"} <= failed


def test_unshifted_losses_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shift is in the network: without it, the loss and every run differ, and the unshifted logits do not."""
    from unmask.evaluation import verify_dream

    whole = verify_dream.DreamReference.loss
    monkeypatch.setattr(verify_dream.DreamReference, "loss", lambda self, net: whole(self, verify_dream.unshifted(net)))
    assert {found.name for found in verify(FIXTURE, device="cpu") if not found.ok} == {"train.loss"}


def test_a_missing_input_is_named(tmp_path: Path) -> None:
    folder = copied(tmp_path)
    arrays = load_file(folder / "expected.safetensors")
    del arrays["gen.prompt"]
    save_file(arrays, folder / "expected.safetensors")
    with pytest.raises(CheckpointError, match="lacks gen.prompt"):
        verify(folder, device="cpu")
