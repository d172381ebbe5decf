"""No test of the trainer measures this machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import unmask


@pytest.fixture(autouse=True)
def _no_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unmask.training.train.matmul_peak", lambda dtype, device: 1e9)
    repository = str(Path(unmask.__file__).parents[1])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [repository, os.environ.get("PYTHONPATH")])))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
