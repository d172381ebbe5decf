"""The option --golden, packed fixtures, the shipped model, loaded once for all tests of tasks, and a Python that starts fast."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

import unmask
from unmask.pipeline.model import Model

from .packed import restore
from .warm import warm


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--golden",
        default=str(Path(__file__).parent / "golden" / "methods"),
        metavar="DIR",
        help="folder of the methods' measured arrays, NAME.safetensors",
    )


def pytest_configure() -> None:
    """Once in the process that starts the workers; they find all files."""
    restore()


@pytest.fixture(scope="session")
def model() -> Model:
    torch.set_num_threads(1)
    return unmask.load("mini")


@pytest.fixture
def warmed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that are started by ``sys.executable``, such as those of ``launch``, need not import torch."""
    monkeypatch.setattr(sys, "executable", warm())
