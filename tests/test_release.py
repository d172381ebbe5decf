"""The wheel: built, installed into a bare environment, run outside the repository. The archive: integrations/test_release.py."""

from __future__ import annotations

import os
import re
import site
import subprocess
import sys
import venv
import zipfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import unmask

from .pages import ROOT

LARGEST = 40e6  # bytes of a wheel; 33.7 MB were measured, most of them the weights of mini and of the judge


def bare(folder: Path, wheel: Path) -> Path:
    """An environment that has the wheel, and of this one the packages that it needs. Its Python."""
    venv.create(folder, with_pip=False)
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    install = ["install", "--quiet", "--no-deps", "--no-index", "--no-compile", str(wheel)]
    subprocess.run([sys.executable, "-m", "pip", "--python", str(python), *install], check=True, timeout=300)
    (place,) = folder.rglob("site-packages")
    (place / "shared.pth").write_text("\n".join(site.getsitepackages()), encoding="utf-8")
    return python


def outside(python: Path, folder: Path, *arguments: str) -> str:
    """What a program of the environment prints that is called in ``folder``, with nothing of this repository in its path."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    call = [str(python), "-P", *arguments]
    done = subprocess.run(
        call, cwd=folder, env={**clean, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    builders: Any = pytest.importorskip("hatchling.builders.wheel")
    (made,) = builders.WheelBuilder(str(ROOT)).build(
        directory=str(tmp_path_factory.mktemp("dist")), versions=["standard"]
    )
    return Path(made)


def test_what_is_in_the_wheel(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    about = f"unmask-{unmask.__version__}.dist-info"
    assert wheel.stat().st_size < LARGEST
    assert {path.split("/")[0] for path in names} == {"unmask", about}
    assert {"unmask/py.typed", "unmask/docs/serve.md", "unmask/serving/web/index.html"} <= names
    assert {f"{about}/licenses/LICENSE", f"{about}/licenses/unmask/data/world/artwork/NOTICE"} <= names
    assert not [
        name for name in names if re.search(r"golden|\.packed$|history\.jsonl|/tests?/|test_|__pycache__", name)
    ]
    tracked = subprocess.run(["git", "ls-files", "unmask"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode == 0:
        assert {name for name in tracked.stdout.splitlines() if name.startswith("unmask/")} <= names


def test_the_wheel_draws_outside_the_repository(wheel: Path, tmp_path: Path) -> None:
    python = bare(tmp_path / "environment", wheel)
    where = outside(python, tmp_path, "-c", "import unmask; print(unmask.__file__)")
    assert Path(where.strip()).is_relative_to(tmp_path.resolve()), "another installation is found first"
    outside(
        python, tmp_path, "-m", "unmask", "generate", "a red apple", "--no-plan", "--steps", "4", "--out", "apple.png"
    )
    assert Image.open(tmp_path / "apple.png").size == (128, 128)
    assert (python.parent / "unmask").exists() or (python.parent / "unmask.exe").exists()


def test_one_version() -> None:
    changes, citation = (ROOT / "CHANGELOG.md").read_text("utf-8"), (ROOT / "CITATION.cff").read_text("utf-8")
    newest = re.findall(r"^## \[(\d[^\]]*)\] - (\d{4}-\d\d-\d\d)$", changes, re.M)[0]
    assert newest[0] == unmask.__version__ and f"version: {unmask.__version__}\n" in citation
    assert f"date-released: {newest[1]}\n" in citation
