"""The tokenizer off the lattice: its grid of codes, its first weights, what is measured of it, and its place in ``mini.all``."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from unmask.checkpoints.store import save_module
from unmask.cli.train import look_up
from unmask.data.sources import pixels_of
from unmask.data.world.scenes import sample
from unmask.objectives.tokenizer import Rounded, grid
from unmask.recipes import mini_free
from unmask.recipes.mini_free import Free, Rebuilt, config, fresh
from unmask.recipes.small_vq import Crops
from unmask.rng import generator
from unmask.tokens.vq import VQ
from unmask.training.series import Run, Series

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def source() -> Crops:
    return Crops(seed=0, pictures=2, levels=mini_free.LEVELS, side=mini_free.SIDE)


@pytest.fixture(scope="module")
def first(source: Crops) -> VQ:
    return fresh(source, 16)


def test_the_grid_has_every_point_once() -> None:
    made = grid((3, 2))
    assert made.tolist() == [[-1, -1], [-1, 1], [0, -1], [0, 1], [1, -1], [1, 1]]
    assert len(grid(mini_free.STEPS).unique(dim=0)) == config().num_vq_embeddings == 4096


def test_first_latents_lie_on_the_grid_and_use_many_codes(first: VQ, source: Crops) -> None:
    pixels = (source.whole(5, 8).float() / 255).permute(0, 3, 1, 2)
    latents = first.latents(pixels)
    assert latents.shape == (8, 4, 8, 8) and 0.3 < latents.std() < 0.8
    assert (latents.abs() > 1).float().mean() < 0.1
    assert len(first.encode(pixels).unique()) > 100


@pytest.mark.parametrize("factor", [16, 8])
def test_codes_of_a_picture_by_factor(factor: int) -> None:
    shape = config(factor)
    assert shape.factor == factor and not shape.encode_apart
    with pytest.raises(ValueError, match="factor is 4; give 16"):
        config(4)


def test_the_loss_reaches_both_halves_and_falls(source: Crops) -> None:
    model, objective = fresh(source, 16), Rounded()
    optimiser = torch.optim.AdamW([p for n, p in model.named_parameters() if not n.startswith("quantize")], lr=1e-3)
    batch, losses = source(4), []
    for step in range(6):
        optimiser.zero_grad()
        loss = objective(model, batch, generator("test", step))
        loss.total.backward()
        optimiser.step()
        losses.append(float(loss.terms["mse"]))
    assert losses[-1] < 0.9 * losses[0], losses
    assert model.encoder.conv_in.weight.grad is not None and model.encoder.conv_in.weight.grad.abs().sum() > 0
    assert model.quantize.embedding.weight.grad is None and loss.terms["codes"] > 10


def test_latents_beyond_the_grid_are_pulled_back(first: VQ, source: Crops) -> None:
    strict, loose = Rounded(outside=1.0), Rounded(outside=0.0)
    with torch.no_grad():
        moved = fresh(source, 16)
        moved.quant_conv.bias.add_(2.0)
        far, near = (objective(moved, source(0), generator("test")) for objective in (strict, loose))
        inside = strict(first, source(0), generator("test"))
    assert far.terms["beyond"] > 0.5 > 0.1 > inside.terms["beyond"]
    assert float(far.total - near.total) == pytest.approx(10 * float(far.terms["beyond"]), rel=1e-3)


def test_a_perfect_tokenizer_is_recognised_and_a_blank_one_is_not(first: VQ, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Rebuilt(items=4)
    assert run(first, 0)["free.recognised"] == 0 and run(first, 0)["grid.psnr"] < 20
    kept: list[torch.Tensor] = []

    def encode(self: VQ, pixels: torch.Tensor) -> torch.Tensor:
        kept.append(pixels)
        return torch.zeros(len(pixels), 8, 8, dtype=torch.long)

    monkeypatch.setattr(VQ, "encode", encode)
    monkeypatch.setattr(VQ, "decode", lambda self, codes: kept.pop())
    found = run(first, 0)
    assert found["free.psnr"] == found["grid.psnr"] == 100 and found["free.codes"] == 1
    assert found["free.recognised"] >= 0.9 and found["grid.recognised"] == 1


def test_the_series_takes_either_tokenizer(first: VQ, tmp_path: Path) -> None:
    made = {name: look_up("mini.all", (f"tokenizer={name}",), None)[0] for name in ("lattice", "free")}
    names = {}
    for name, series in made.items():
        assert isinstance(series, Series)
        run = next(part for part in series.parts if part.name == "vq")
        assert isinstance(run, Run)
        names[name] = run.recipe(tmp_path).name
    assert names == {"lattice": "mini.vq", "free": "mini_free.vq"}
    with pytest.raises(ValueError, match="no tokenizer 'round'; choose from lattice, free"):
        look_up("mini.all", ("tokenizer=round",), None)


def test_training_codes_are_those_of_the_finished_tokenizer(first: VQ, tmp_path: Path) -> None:
    save_module(first, tmp_path / "vq")
    pixels = pixels_of([sample("free", "train", 0, i) for i in range(3)], 128)
    free = Free(seed=0)
    assert torch.equal(free.encode(tmp_path)(pixels), first.encode(pixels))
    assert torch.equal(free.codebook(tmp_path), first.quantize.embedding.weight)
