"""The shipped model, loaded once for all tests of tasks."""

from __future__ import annotations

import pytest
import torch

import unmask
from unmask.pipeline.model import Model


@pytest.fixture(scope="session")
def model() -> Model:
    torch.set_num_threads(1)
    return unmask.load("mini")
