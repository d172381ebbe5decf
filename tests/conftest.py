"""The shipped model, loaded once for all tests of tasks, and a Python that starts fast for programs that tests start."""

from __future__ import annotations

import sys

import pytest
import torch

import unmask
from unmask.pipeline.model import Model

from .warm import warm


@pytest.fixture(scope="session")
def model() -> Model:
    torch.set_num_threads(1)
    return unmask.load("mini")


@pytest.fixture
def warmed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that are started by ``sys.executable``, such as those of ``launch``, need not import torch."""
    monkeypatch.setattr(sys, "executable", warm())
