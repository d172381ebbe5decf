"""unmask verify on a folder of MMaDA: all of its arrays, and planted differences."""

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
from unmask.evaluation.verify_mmada import MMADA_INPUTS

torch.set_num_threads(1)
FIXTURE = Path(__file__).parents[1] / "golden" / "mmada_tiny"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FIXTURE, tmp_path / "weights"))


def rewrite(folder: Path, prompts: object = None, **changes: Tensor | None) -> None:
    """Replace or take away (None) arrays, ``__`` stands for a dot, and other prompts."""
    file = folder / "expected.safetensors"
    with safe_open(str(file), "pt") as opened:
        metadata = opened.metadata()
    arrays = load_file(file)
    for name, value in changes.items():
        arrays.pop(name.replace("__", "."), None)
        if value is not None:
            arrays[name.replace("__", ".")] = value
    save_file(arrays, file, metadata if prompts is None else {"prompts": json.dumps(prompts)})


def test_every_array_of_the_fixture_is_reproduced(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(FIXTURE), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    with safe_open(str(FIXTURE / "expected.safetensors"), "pt") as opened:
        assert {a["name"] for a in told["arrays"]} == set(opened.keys()) - MMADA_INPUTS
    assert len(told["arrays"]) == 72 and all(a["worst"] < 5e-5 for a in told["arrays"])


def test_planted_differences_fail(folder: Path) -> None:
    arrays = load_file(folder / "expected.safetensors")
    rewrite(folder, sample__codes=arrays["sample.codes"] + 1, loss__chat=arrays["loss.chat"] + 1e-3)
    assert [d.name for d in verify(folder) if not d.ok] == ["loss.chat", "sample.codes"]


def test_other_prompts_give_other_rows(folder: Path) -> None:
    with safe_open(str(folder / "expected.safetensors"), "pt") as opened:
        prompts = json.loads(opened.metadata()["prompts"])
    rewrite(folder, prompts | {"t2i": ["a red hat", prompts["t2i"][1]]})
    failed = {d.name for d in verify(folder) if not d.ok}
    assert {"sample.ids", "sample.first_logits", "t2i.logits"} <= failed and "text.logits" not in failed


@pytest.mark.parametrize("name", ["sample__steps", "vq__codes", "text__ids"])
def test_a_missing_array_is_named(folder: Path, name: str) -> None:
    rewrite(folder, **{name: None})
    with pytest.raises(CheckpointError, match=f"lacks {name.replace('__', '.')}"):
        verify(folder)


def test_missing_prompts_are_named(folder: Path) -> None:
    rewrite(folder, prompts=[])
    with pytest.raises(CheckpointError, match="has no prompts in its metadata"):
        verify(folder)
