"""LLaDA2.0-Uni's measured arrays: the trimmed copy in tests/golden (``tests/trimmed_uni.py``), or another folder of the same form.

``UNMASK_LLADA2_UNI`` names such a folder (the whole one, or a twin); so does ``--golden DIR``, where DIR has llada2_uni_tiny.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from unmask.checkpoints.llada2_uni import load_flow
from unmask.checkpoints.stream import CheckpointError
from unmask.evaluation.thinned import KEY, Every, Thinning
from unmask.evaluation.verify import verify
from unmask.pipeline.from_pickles import to_safetensors

from ..packed import given_or_own
from ..tiny_llada2 import write_uni_model
from ..trimmed_uni import coarse, fewer_units

DECODED = ("dec.", "turbo.", "vq.", "vq2.")


def measured(config: pytest.Config) -> Path:
    return Path(os.environ.get("UNMASK_LLADA2_UNI") or given_or_own(config, "llada2_uni_tiny"))


def test_every_array_is_equal(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    folder = measured(request.config)
    with pytest.raises(CheckpointError, match="is a pickle.*unmask convert"):
        verify(folder, device="cpu")
    to_safetensors(folder, tmp_path / "uni")
    found = verify(tmp_path / "uni", device="cpu")
    assert not [d.name for d in found if not d.ok] and len(found) == 206
    assert max(d.worst for d in found if d.name.startswith(DECODED)) <= 1e-5
    assert any(d.worst > 0 for d in found) and sum(d.exact for d in found) > 100


def test_a_thinned_array_is_compared_all_over(tmp_path: Path) -> None:
    whole = {"a": torch.arange(2100.0).view(2, 30, 35), "b": torch.arange(12)}
    found = Thinning.of(whole, 90)
    assert dict(found.arrays) == {"a": Every(every=23, shape=[2, 30, 35])}
    kept = {name: found.thin(name, one) for name, one in whole.items()}
    assert len({int(one) % 35 for one in kept["a"]}) == 35 and torch.equal(kept["b"], whole["b"])
    save_file(kept, tmp_path / "e.safetensors", metadata=found.metadata())
    assert Thinning.read(tmp_path / "e.safetensors") == found
    with pytest.raises(CheckpointError, match=r"a is \(60, 35\), and measured \(2, 30, 35\)"):
        found.thin("a", whole["a"].flatten(0, 1))


def test_a_damaged_table_is_refused(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "e.safetensors", metadata={KEY: json.dumps({"a": {"every": 0}})})
    with pytest.raises(CheckpointError, match="thinned in the metadata is not valid"):
        Thinning.read(tmp_path / "e.safetensors")


def test_a_trimmed_decoder_is_equal_at_the_times_that_are_used(tmp_path: Path) -> None:
    folder, times = write_uni_model(tmp_path), torch.tensor([0.0, 0.4])
    path = folder / "decoder" / "decoder_model.safetensors"
    weights, latent, features = load_file(path), torch.randn(2, 16, 4, 4), torch.randn(2, 16, 20)
    weights["t_embedder.mlp.2.bias"] += 1
    save_file(weights, path)
    whole = load_flow(folder / "decoder")
    few = fewer_units(whole.t_embedder, times)
    assert few["t_embedder.mlp.0.weight"].shape == (6, 8) and whole.t_embedder.mlp[0].weight.shape == (16, 8)
    save_file(weights | few, path)
    trimmed = load_flow(folder / "decoder")
    with torch.no_grad():
        for later, equal in ((0.0, True), (0.3, False)):
            one, two = (flow(latent, times + later, features) for flow in (whole, trimmed))
            assert torch.allclose(one, two, atol=1e-5) is equal


def test_coarse_noise_is_never_0_or_1() -> None:
    noise = coarse(torch.tensor([0.0, 1e-6, 0.3, 1 - 1e-7]))
    assert (noise * 256).tolist() == [1, 1, 77, 255]
