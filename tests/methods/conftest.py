"""The measured arrays of the methods' official code. ``--golden DIR`` reads another set with the same keys and other sizes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import Tensor

Golden = Callable[[str], dict[str, Tensor]]


@pytest.fixture(scope="session")
def golden(request: pytest.FixtureRequest) -> Golden:
    """``golden("edlm")``: the arrays of NAME.safetensors by name."""
    folder = Path(request.config.getoption("--golden"))

    def load(name: str) -> dict[str, Tensor]:
        path = folder / f"{name}.safetensors"
        if not path.exists():
            pytest.fail(f"{path} does not exist; --golden names a folder of NAME.safetensors")
        return load_file(path)

    return load
