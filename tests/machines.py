"""Machines with other devices than this one has."""

from __future__ import annotations

import pytest


def machine(monkeypatch: pytest.MonkeyPatch, *, cards: int = 0, mps: bool = False) -> None:
    """Let torch report this many CUDA cards, and whether there is MPS."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: cards > 0)
    monkeypatch.setattr("torch.cuda.device_count", lambda: cards)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: mps)
