"""A recipe of milliseconds: least squares with rows as tokens, for tests of what surrounds the updates."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unmask.recipe import Optim, Recipe, Training
from unmask.rng import generator
from unmask.step import Loss


def model() -> nn.Module:
    made = nn.Linear(3, 1)
    with torch.no_grad():
        for p in made.parameters():
            p.copy_(torch.rand(p.shape, generator=generator("line")))
    return made


def source(step: int) -> Tensor:
    """2 to 5 rows of three inputs and their target, [N, 4]."""
    return torch.randn(2 + step % 4, 4, generator=generator("rows", step))


def error(module: nn.Module, rows: Tensor) -> Loss:
    total = (module(rows[:, :3].to(next(module.parameters()).dtype))[:, 0].float() - rows[:, 3]).square().mean()
    return Loss(total=total, terms={"square": total}, counts={"rows": len(rows)})


def objective(module: nn.Module, rows: Tensor, rng: torch.Generator) -> Loss:
    return error(module, rows)


def thrice(module: nn.Module, rows: Tensor, rng: torch.Generator) -> Iterator[Loss]:
    """Three updates on one batch, each with its own noise."""
    for _ in range(3):
        yield error(module, rows + torch.rand(rows.shape, generator=rng))


def recipe(of: Any = objective, **changes: Any) -> Recipe:
    training = {"steps": 8, "bf16": False, "log_every": 2, "save_every": 3, **changes}
    return Recipe(
        name="line",
        model=model,
        source=source,
        objective=of,
        optim=Optim(lr=0.05, warmup=2, ema=0.9),
        training=Training(**training),
    )


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
