"""LoRA adapters on disk: adapter.safetensors holds their tensors alone, adapter.json the scale of every layer.

Public idea: ``save_adapter(model, folder)`` and ``load_adapter(model, folder)``; the base weights are stored elsewhere.
"""

from __future__ import annotations

import json
from pathlib import Path

from torch import nn

from unmask.checkpoints.store import read_tensors, save_tensors
from unmask.checkpoints.stream import CheckpointError
from unmask.models.lora import adapter_tensors, adapters, insert_tensors

NAME = "adapter"


def save_adapter(model: nn.Module, folder: Path) -> None:
    """Write the adapters of a model. ValueError where it has none."""
    save_tensors(adapter_tensors(model), folder, name=NAME)
    scales = {name: adapter.scale for name, _, adapter in adapters(model)}
    part = folder / f"{NAME}.json.part"
    part.write_text(json.dumps({"scales": scales}, indent=1) + "\n", encoding="utf-8")
    part.replace(folder / f"{NAME}.json")


def load_adapter(model: nn.Module, folder: Path) -> None:
    """Insert saved adapters into a model, in place. CheckpointError where the files are missing or do not fit the model."""
    path = folder / f"{NAME}.json"
    try:
        scales = json.loads(path.read_text(encoding="utf-8"))["scales"]
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{path} is missing or damaged: {error}; was the adapter saved by save_adapter?"
        ) from error
    try:
        insert_tensors(model, read_tensors(folder, NAME), scales)
    except ValueError as error:
        raise CheckpointError(f"{folder}: {error}") from error
