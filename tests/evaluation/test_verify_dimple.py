"""unmask verify on Dimple: every measured array, and faults that it must see."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from unmask.cli.main import main
from unmask.evaluation.verify import verify

torch.set_num_threads(1)
FIXTURE = Path(__file__).parents[1] / "golden" / "dimple_tiny"


def test_every_array_is_equal(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(FIXTURE), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    found = {a["name"] for a in told["arrays"]}
    assert told["tolerance"] == 2e-4
    assert (
        len(found) == 189
        and {"vqa.confident.cached.ids", "vqa.positions", "train.loss_dual", "batch.cached.nfe"} <= found
    )


def failed(tmp_path: Path, name: str) -> set[str]:
    folder = Path(shutil.copytree(FIXTURE, tmp_path / "dimple"))
    weights = load_file(folder / "model.safetensors")
    weights[name] = weights[name] + 1
    save_file(weights, folder / "model.safetensors")
    return {d.name for d in verify(folder, device="cpu") if not d.ok}


def test_another_tower_fails_where_pictures_are_read(tmp_path: Path) -> None:
    found = failed(tmp_path, "visual.blocks.0.attn.qkv.bias")
    assert {"images.features", "vqa.logits", "train.loss_single"} <= found
    assert not found & {"images.pixels", "vqa.positions", "text.logits", "dim.entropy.ids"}


def test_other_sections_fail_where_pictures_are_read_only(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(FIXTURE, tmp_path / "dimple"))
    raw = json.loads((folder / "config.json").read_text()) | {"mrope_section": [3, 3, 2]}
    (folder / "config.json").write_text(json.dumps(raw))
    found = {d.name for d in verify(folder, device="cpu") if not d.ok}
    assert {"vqa.logits", "train.loss_single"} <= found and not found & {"text.logits", "dim.maskgit_plus.logits0"}
