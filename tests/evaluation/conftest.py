"""A model folder with random weights, for tests that measure."""

from __future__ import annotations

from pathlib import Path

import pytest

from unmask.pipeline.model import Model
from unmask.pipeline.opening import load

from ..tiny_model import make


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def model(model_folder: Path) -> Model:
    return load(model_folder)
