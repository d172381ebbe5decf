"""unmask verify on both LaViDa variants: every measured array, and faults that it must see."""

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
from unmask.tokens.views import AnyRes

torch.set_num_threads(1)
GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.mark.parametrize(("name", "arrays"), [("lavida_tiny", 89), ("lavida_dream_tiny", 103)])
def test_every_array_is_equal(name: str, arrays: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(GOLDEN / name), "--tolerance", "5e-5", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    found = {a["name"] for a in told["arrays"]}
    assert len(found) == arrays and {"image_a.tokens", "vqa.cached.ids", "train.loss", "pair.tokens"} <= found


def copied(tmp_path: Path, name: str = "lavida_tiny") -> Path:
    return Path(shutil.copytree(GOLDEN / name, tmp_path / name))


def test_average_reduction_is_another(tmp_path: Path) -> None:
    folder = copied(tmp_path)
    raw = json.loads((folder / "config.json").read_text()) | {"mm_spatial_pool_mode": "average"}
    (folder / "config.json").write_text(json.dumps(raw))
    with pytest.raises(CheckpointError, match="image_a has 601 tokens, and measured 660"):
        verify(folder, device="cpu")


def test_padding_the_first_view_fails_where_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AnyRes, "_overview", AnyRes._whole)
    failed = {d.name for d in verify(GOLDEN / "lavida_tiny", device="cpu") if not d.ok}
    assert {"image_a.tiles", "image_a.tokens", "vqa.logits"} <= failed
    assert not failed & {"pair.tiles", "pair.tokens", "text.logits", "gen.full.ids"}


def test_another_newline_fails_where_pictures_are_read(tmp_path: Path) -> None:
    folder = copied(tmp_path, "lavida_dream_tiny")
    weights = load_file(folder / "model.safetensors")
    weights["model.image_newline"] += 1
    save_file(weights, folder / "model.safetensors")
    failed = {d.name for d in verify(folder, device="cpu") if not d.ok}
    assert {"image_b.tokens", "vqa.logits", "train.loss"} <= failed and "text.logits" not in failed


def test_a_missing_input_is_named(tmp_path: Path) -> None:
    folder = copied(tmp_path)
    arrays = load_file(folder / "expected.safetensors")
    del arrays["vqa.keep"]
    save_file(arrays, folder / "expected.safetensors")
    with pytest.raises(CheckpointError, match="lacks vqa.keep"):
        verify(folder, device="cpu")
