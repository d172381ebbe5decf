"""unmask verify on a folder of Lumina-DiMOO: all of its arrays, planted differences, and when ML-Cache computes what."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from unmask.checkpoints.stream import CheckpointError
from unmask.cli.main import main
from unmask.evaluation.verify import verify
from unmask.evaluation.verify_dimoo import DIMOO_INPUTS

from ..packed import given_or_own

torch.set_num_threads(1)
FIXTURE = Path(__file__).parents[1] / "golden" / "lumina_dimoo_tiny"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FIXTURE, tmp_path / "weights"))


def rewrite(folder: Path, prompts: dict[str, object] | None = None, **changes: Tensor | None) -> None:
    """Replace or take away (None) arrays, ``__`` stands for a dot, and change prompts."""
    file = folder / "expected.safetensors"
    with safe_open(str(file), "pt") as opened:
        said = json.loads(opened.metadata()["prompts"])
    arrays = load_file(file)
    for name, value in changes.items():
        arrays.pop(name.replace("__", "."), None)
        if value is not None:
            arrays[name.replace("__", ".")] = value
    save_file(arrays, file, {"prompts": json.dumps(said | (prompts or {}))})


def test_every_array_of_the_fixture_is_reproduced(
    request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    """``--golden DIR``: of DIR/lumina_dimoo_tiny, where it is there."""
    folder = given_or_own(request.config, "lumina_dimoo_tiny")
    assert main(["verify", str(folder), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    with safe_open(str(folder / "expected.safetensors"), "pt") as opened:
        assert {a["name"] for a in told["arrays"]} == set(opened.keys()) - DIMOO_INPUTS
    assert len(told["arrays"]) == 67 and all(a["worst"] < 5e-5 for a in told["arrays"])


def test_planted_differences_fail(folder: Path) -> None:
    arrays = load_file(folder / "expected.safetensors")
    rewrite(folder, cache__codes=arrays["cache.codes"] + 1, loss__batch=arrays["loss.batch"] + 1e-3)
    assert [d.name for d in verify(folder) if not d.ok] == ["cache.codes", "loss.batch"]


def test_other_prompts_give_other_rows(folder: Path) -> None:
    rewrite(folder, {"edit": "make it gold"})
    failed = {d.name for d in verify(folder) if not d.ok}
    assert {"edit_sample.ids", "edit_sample.null_image", "edit.logits"} <= failed
    assert not failed & {"edit_sample.null_text", "t2i.logits", "sample.codes"}


@pytest.mark.parametrize("name", ["sample__steps", "grid", "text__ids"])
def test_a_missing_array_is_named(folder: Path, name: str) -> None:
    rewrite(folder, None, **{name: None})
    with pytest.raises(CheckpointError, match=f"lacks {name.replace('__', '.')}"):
        verify(folder)
