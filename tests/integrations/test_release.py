"""Wheel and source archive, built as for a release; the wheel draws the whole sheet outside the repository."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from PIL import Image

import unmask

from ..pages import ROOT
from ..test_release import bare, outside

BESIDES = ("LICENSE", "SECURITY.md", "CHANGELOG.md", "CITATION.cff", "mkdocs.yml", "Dockerfile", "compose.yaml")


def test_the_archive_builds_a_wheel_that_runs(tmp_path: Path) -> None:
    pytest.importorskip("build")
    pytest.importorskip("hatchling")
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path / "dist"), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True, timeout=600)
    (archive,) = (tmp_path / "dist").glob("*.tar.gz")
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    with tarfile.open(archive) as opened:
        names = {name.partition("/")[2] for name in opened.getnames()}
    assert {*BESIDES, "unmask/py.typed", "tests/test_release.py", "website/hooks.py", "docs/index.md"} <= names
    assert not [name for name in names if name.startswith(("site/", ".venv/", "runs/"))]
    python = bare(tmp_path / "environment", wheel)
    assert outside(python, tmp_path, "-m", "unmask", "--version") == f"unmask, version {unmask.__version__}\n"
    outside(python, tmp_path, "-m", "unmask", "demo", "--out", "demo")
    assert Image.open(tmp_path / "demo" / "sheet.png").width > 400
