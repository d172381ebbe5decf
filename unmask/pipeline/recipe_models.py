"""Models that a recipe opens: config.json names it. Public idea: ``recipe_in(folder)`` and ``open_by_recipe(folder, name, device)``."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from unmask.checkpoints.schema import read_json
from unmask.checkpoints.stream import CheckpointError


def recipe_in(folder: Path) -> str:
    """The recipe that config.json says the model is opened by, "" where it names none or cannot be read."""
    try:
        raw = read_json(folder / "config.json")
    except CheckpointError:
        return ""
    name = raw.get("recipe", "")
    return name if isinstance(name, str) else ""


def open_by_recipe(folder: Path, name: str, device: str) -> Any:
    """What ``Recipe.open`` of unmask/recipes makes of a folder. CheckpointError for a recipe that does not exist or cannot open models."""
    family, _, function = name.partition(".")
    module = f"unmask.recipes.{family}"
    try:
        if not (family.isidentifier() and function.isidentifier()):
            raise AttributeError(name)
        make = getattr(import_module(module), function)
    except (ModuleNotFoundError, AttributeError) as error:
        if isinstance(error, ModuleNotFoundError) and error.name != module:
            raise
        raise CheckpointError(
            f"{folder / 'config.json'} names the recipe {name!r}, which does not exist; `unmask train` lists the recipes"
        ) from error
    if (opened := make().open) is None:
        raise CheckpointError(
            f"the recipe {name!r} that {folder / 'config.json'} names opens no models; set Recipe.open"
        )
    return opened(folder, device)
