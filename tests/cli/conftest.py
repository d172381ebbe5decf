"""A model folder and an empty folder to work in, for tests of the commands."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from ..tiny_model import make


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder of the smallest size, which has learned nothing; its network is in several files."""
    return make(tmp_path_factory.mktemp("tiny"), shard=200_000)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, with one picture."""
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (60, 40), "red").save("in.png")
    return tmp_path


@pytest.fixture(autouse=True)
def no_lines_of_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine a small model may take long enough for a line of progress; tests compare stderr word for word."""
    monkeypatch.setattr("unmask.cli.progress.LINE_AFTER", 3600.0)
