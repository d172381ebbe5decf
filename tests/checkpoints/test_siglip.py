"""Our pictures and vision tower against transformers' SigLIP on random weights (spec 1.9). Skipped where it is not installed."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from unmask.checkpoints.lavida_o import names, plain
from unmask.models.sizes import SIZES, VisionConfig
from unmask.models.vision import Tower
from unmask.tokens.views import to_pixels

OURS = VisionConfig(image=56, patch=14, width=48, layers=2, heads=4, mlp=80)


def of_transformers(name: str) -> Any:
    """Imported by the tests that compare with it: other workers collect them too, and need not wait for it."""
    return pytest.importorskip(f"transformers.models.siglip.{name}_siglip", exc_type=ImportError)


def picture() -> Image.Image:
    smooth = np.random.default_rng(0).integers(0, 256, (9, 13, 3), dtype=np.uint8)
    return Image.fromarray(smooth).resize((130, 90), Image.Resampling.BICUBIC)


def test_pixels_are_those_of_the_processor() -> None:
    processor = of_transformers("image_processing_pil").SiglipImageProcessorPil(size={"height": 384, "width": 384})
    wanted = torch.as_tensor(np.asarray(processor(picture(), return_tensors="pt")["pixel_values"]))[0]
    ours = to_pixels(picture().resize((384, 384), Image.Resampling.BICUBIC))
    torch.testing.assert_close((ours - 0.5) / 0.5, wanted, atol=1e-6, rtol=0)


@pytest.mark.parametrize("level", ["vision_model.", ""])
def test_features_are_those_before_the_last_layer(level: str) -> None:
    """With or without the level ``vision_model`` in the names: releases of the library differ in it."""
    config = of_transformers("configuration").SiglipVisionConfig(
        hidden_size=OURS.width,
        intermediate_size=OURS.mlp,
        num_hidden_layers=OURS.layers + 1,
        num_attention_heads=OURS.heads,
        image_size=OURS.image,
        patch_size=OURS.patch,
    )
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        theirs = of_transformers("modeling").SiglipVisionModel(config).eval()
        for parameter in theirs.parameters():
            parameter.normal_(0, 0.2)
        pixels = torch.rand(2, 3, OURS.image, OURS.image)
        wanted = theirs(pixel_values=(pixels - 0.5) / 0.5, output_hidden_states=True).hidden_states[-2]

        prefix = "model.vision_tower.vision_tower."
        stored = {prefix + level + k.removeprefix("vision_model."): v for k, v in theirs.state_dict().items()}
        found = {plain(k): v for k, v in stored.items()}
        tower = Tower(OURS).eval()
        mapping = names(dataclasses.replace(SIZES["tiny"], vision=OURS))
        tower.load_state_dict({k: found[mapping[f"vision.tower.{k}"]] for k in tower.state_dict()})
        torch.testing.assert_close(tower(pixels).flatten(1, 2), wanted, atol=1e-5, rtol=1e-5)
