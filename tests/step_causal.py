"""The step-causal fixture: tests/golden/sparse_lavida_tiny has what differs from lavida_o_tiny, whose weights it shares."""

from __future__ import annotations

import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

GOLDEN = Path(__file__).parent / "golden"


def sparse_folder(place: Path) -> Path:
    """The whole model folder, made at ``place``."""
    folder = Path(shutil.copytree(GOLDEN / "lavida_o_tiny", place))
    for file in ("config.json", "expected.safetensors"):
        shutil.copy(GOLDEN / "sparse_lavida_tiny" / file, folder)
    weights = load_file(folder / "model.safetensors")
    save_file(
        weights | load_file(GOLDEN / "sparse_lavida_tiny" / "registers.safetensors"), folder / "model.safetensors"
    )
    return folder
