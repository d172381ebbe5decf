"""unmask verify on twins of the fixtures: nothing may hold for the sizes, prompts and seeds of the shared fixtures only."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from unmask.cli.main import main

from ..twin_families import TWINS

pytest.importorskip("transformers", reason="pip install unmask[hf]", exc_type=ImportError)
torch.set_num_threads(1)
ALTERED = {
    "dream": ("nll.value", "fast.dual.entropy.ids"),
    "dimple": ("train.loss_dual", "vqa.confident.cached.ids"),
    "lavida": ("image_a.tokens", "infill_image.steps"),
    "lavida_dream": ("prefix.logits", "vqa.cached.ids"),
    "mmada": ("rl.loss", "parallel.text"),
    "lumina_dimoo": ("style.logits", "cache.order"),
}


@pytest.mark.parametrize("name", TWINS)
def test_every_array_is_equal_but_the_altered_ones(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = TWINS[name](tmp_path / f"{name}_twin")
    file = folder / "expected.safetensors"
    with safe_open(str(file), "pt") as opened:
        metadata = opened.metadata()
    arrays = load_file(file)
    for altered in ALTERED[name]:
        arrays[altered].view(-1)[-1] += 1
    save_file(arrays, file, metadata)
    assert main(["verify", str(folder), "--json", "--device", "cpu"]) == 1
    told = json.loads(capsys.readouterr().out)["arrays"]
    assert {a["name"]: a["wrong"] for a in told if not a["ok"]} == dict.fromkeys(ALTERED[name], 1)
