"""The option --golden, packed fixtures, the shipped model, loaded once for all tests of tasks, and a Python that starts fast."""

from __future__ import annotations

import gc
import sys
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import unmask

from .packed import restore
from .warm import warm

if TYPE_CHECKING:
    from unmask.pipeline.model import Model  # the process that starts the workers needs no torch


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--golden",
        default=str(Path(__file__).parent / "golden" / "methods"),
        metavar="DIR",
        help="folder of the methods' measured arrays, NAME.safetensors",
    )


def pytest_configure() -> None:
    """Once in the process that starts the workers; they find all files."""
    restore()


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What is imported meanwhile stays: later collections of garbage do not look at its 640,000 objects again."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.set_threshold(7_000)  # ten times the usual number of objects
        gc.enable()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first: workers that take whole files then end with short ones, and none waits for a long one."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def model() -> Model:
    import torch

    torch.set_num_threads(1)
    return unmask.load("mini")


@pytest.fixture
def warmed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that are started by ``sys.executable``, such as those of ``launch``, need not import torch."""
    monkeypatch.setattr(sys, "executable", warm())
