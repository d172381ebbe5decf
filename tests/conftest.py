"""The option --golden, and the shipped model, loaded once for all tests of tasks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import unmask
from unmask.pipeline.model import Model


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--golden",
        default=str(Path(__file__).parent / "golden" / "methods"),
        metavar="DIR",
        help="folder of the methods' measured arrays, NAME.safetensors",
    )


@pytest.fixture(scope="session")
def model() -> Model:
    torch.set_num_threads(1)
    return unmask.load("mini")
