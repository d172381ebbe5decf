"""The notebooks of docs/notebooks: small and without outputs; ``make test-integrations`` executes them, with one step of training."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from ..pages import ROOT, environment

NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


def cells(path: Path, kind: str) -> list[dict[str, Any]]:
    return [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == kind]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_has_code_and_no_outputs(path: Path) -> None:
    code = cells(path, "code")
    for cell in code:
        compile("".join(cell["source"]), str(path), "exec")
        assert cell["outputs"] == [] and cell["execution_count"] is None, "clear the outputs"
    assert len(code) > 4 and len(cells(path, "markdown")) > 4 and path.stat().st_size < 20_000


def test_there_are_three() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["finetune", "first-steps", "sampling"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat: Any = pytest.importorskip("nbformat")
    nbclient: Any = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    for name, value in environment().items():
        monkeypatch.setitem(os.environ, name, value)
    book = nbformat.reads(path.read_text(encoding="utf-8").replace("STEPS = 340", "STEPS = 1"), as_version=4)
    nbformat.validate(book)
    done = nbclient.NotebookClient(book, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [
        output["data"] for cell in done.cells if cell.cell_type == "code" for output in cell.outputs if "data" in output
    ]
    assert sum("image/png" in data or "data:image/png;base64," in str(data.get("text/html")) for data in shown) >= 2
