"""Instances of the parts of methods in embedding spaces, bridges and searches; tests/methods has tests of each."""

from __future__ import annotations

from typing import Any

from unmask.corruption import schedules
from unmask.methods import dinoiser

PARTS: list[Any] = [
    schedules.Between(low=0.2, high=0.8),
    dinoiser.Power(),
    dinoiser.Geometric(),
    dinoiser.Integrated(),
    dinoiser.Clipped(),
    dinoiser.EmbeddingDiffusion(),
]
