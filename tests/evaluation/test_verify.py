"""unmask verify passes on the fixture, finds every planted difference and explains faults of a folder."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from unmask.checkpoints.store import CheckpointError
from unmask.cli.main import main
from unmask.evaluation.verify import INPUTS, compare, verify
from unmask.tokens.quirks import ReleasedQuirks

torch.set_num_threads(1)
FIXTURE = Path(__file__).parents[1] / "golden" / "lavida_o_tiny"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FIXTURE, tmp_path / "weights"))


def rewrite(file: Path, **changes: Tensor | None) -> None:
    """Replace, add or take away (None) arrays; ``__`` stands for a dot."""
    arrays = load_file(file)
    for name, value in changes.items():
        arrays.pop(name.replace("__", "."), None)
        if value is not None:
            arrays[name.replace("__", ".")] = value
    save_file(arrays, file)


def test_the_fixture_passes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(FIXTURE)]) == 0
    out = capsys.readouterr().out
    assert out.count("ok") == 11 and "FAILED" not in out


def test_another_weight_fails_where_it_is_used(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = folder / "model.safetensors"
    name = "model.gen_predictor.2.weight"
    rewrite(file, **{name.replace(".", "__"): load_file(file)[name] * 1.5})
    assert main(["verify", str(folder), "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    failed = {a["name"] for a in told["arrays"] if not a["ok"]}
    assert not told["ok"] and {"t2i.code_logits", "edit.code_logits"} <= failed
    assert not failed & {"und.logits", "prefix.logits", "t2i.hidden", "vq.codes", "vq.decoded"}


def test_prefix_logits_are_those_of_the_published_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fault: they came from a function beside the task, which computed something else."""
    whole = replace(ReleasedQuirks(), prefix_lm=False)
    monkeypatch.setattr("unmask.tasks.released.ReleasedQuirks", lambda: whole)
    assert [d.name for d in verify(FIXTURE) if not d.ok] == ["prefix.logits"]


@pytest.mark.parametrize("name", ["und.logits", "t2i.hidden", "t2i.text_logits", "sample.codes", "vq.decoded"])
def test_one_other_figure_is_seen(folder: Path, name: str) -> None:
    file = folder / "expected.safetensors"
    array = load_file(file)[name]
    array.view(-1)[-1] += 1
    rewrite(file, **{name.replace(".", "__"): array})
    assert [(d.name, d.wrong) for d in verify(folder) if not d.ok] == [(name, 1)]


def test_tolerance_and_dtype_do_what_they_say() -> None:
    assert not all(d.ok for d in verify(FIXTURE, tolerance=0))
    half = {d.name: d for d in verify(FIXTURE, dtype=torch.bfloat16)}
    assert not half["und.logits"].ok and half["sample.counts"].ok
    coarse = {d.name: d for d in verify(FIXTURE, dtype=torch.bfloat16, tolerance=1.0)}
    assert coarse["und.logits"].ok and coarse["und.logits"].worst == half["und.logits"].worst > 1e-3


def test_another_code_changes_the_pixels_it_decodes_to(folder: Path) -> None:
    file = folder / "expected.safetensors"
    codes = load_file(file)["vq.codes"]
    rewrite(file, vq__codes=(codes + 1) % 128)
    assert [d.name for d in verify(folder) if not d.ok] == ["vq.codes", "vq.decoded"]


def test_nan_does_not_pass(folder: Path) -> None:
    file = folder / "expected.safetensors"
    array = load_file(file)["und.logits"]
    array[0, 0, 0] = torch.nan
    rewrite(file, und__logits=array)
    with pytest.raises(CheckpointError, match=r"und\.logits holds values that are not finite"):
        verify(folder)
    found = compare("x", torch.tensor([torch.nan, 1.0]), torch.tensor([0.0, 1.0]), 1e-4)  # ours can overflow too
    assert not found.ok and found.wrong == 1


@pytest.mark.parametrize("name", sorted(INPUTS - {"t2i.codes"})[:3] + ["und.logits", "sample.counts", "prefix.logits"])
def test_a_missing_array_is_named(folder: Path, name: str) -> None:
    rewrite(folder / "expected.safetensors", **{name.replace(".", "__"): None})
    with pytest.raises(CheckpointError, match=f"lacks {name}; "):
        verify(folder)


def test_an_unknown_array_and_another_shape_are_named(folder: Path) -> None:
    file = folder / "expected.safetensors"
    rewrite(file, more=torch.zeros(1))
    with pytest.raises(CheckpointError, match="has unknown more"):
        verify(folder)
    rewrite(file, more=None, sample__codes=torch.zeros(1, 63, dtype=torch.long))
    with pytest.raises(CheckpointError, match=r"sample\.codes is \(1, 64\), and measured \(1, 63\)"):
        verify(folder)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere"], "is this a folder of weights"),
        ([str(FIXTURE), "--tolerance", "-1"], "at least 0"),
        ([str(FIXTURE), "--dtype", "int8"], "'int8'"),
        ([str(FIXTURE / "vqvae")], "vqvae"),
    ],
)
def test_mistakes(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", *words]) == 2
    out, err = capsys.readouterr()
    assert said in err and len(err.splitlines()) == 2 and not out


def test_without_measured_arrays(folder: Path) -> None:
    (folder / "expected.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"no expected\*\.safetensors"):
        verify(folder)
