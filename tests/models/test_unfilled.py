"""Modules that files will fill: built without memory, without values, and without what initialising them imports."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from unmask.models.elastic import Elastic
from unmask.models.sizes import SIZES
from unmask.models.unfilled import unfilled
from unmask.tokens.vq import VQ, VQConfig


def test_shapes_are_those_of_a_filled_module() -> None:
    with unfilled():
        modules = Elastic(SIZES["tiny"], mask_id=3), VQ(VQConfig(block_out_channels=(32, 32, 32, 32, 32)))
    filled = Elastic(SIZES["tiny"], mask_id=3), VQ(VQConfig(block_out_channels=(32, 32, 32, 32, 32)))
    for ours, theirs in zip(modules, filled, strict=True):
        assert {n: p.shape for n, p in ours.state_dict().items()} == {
            n: p.shape for n, p in theirs.state_dict().items()
        }
        assert all(p.is_meta for p in ours.parameters())


def test_layers_are_initialised_again_afterwards() -> None:
    with pytest.raises(RuntimeError, match="stop"), unfilled():
        raise RuntimeError("stop")
    torch.manual_seed(0)
    layer = nn.Linear(64, 64)
    assert not layer.weight.is_meta and 0.01 < float(layer.weight.detach().std()) < 1


def test_opening_a_model_imports_no_compiler() -> None:
    """Fault: the first ``load`` of a process took 1 s, 0.9 s of it to import torch._dynamo for initial values that are never read."""
    code = "import sys, unmask; unmask.load('mini'); print('torch._dynamo' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
