"""What must fit before a run continues, one run per folder, checkpoints that are kept, and gradients that are not finite."""

from __future__ import annotations

import dataclasses
import json
import math
import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from unmask.recipe import Optim, Recipe, override
from unmask.step import Loss
from unmask.training.fingerprint import settings
from unmask.training.optim import NotFinite
from unmask.training.saving import RunInUse, lock
from unmask.training.states import STATE, saved_step
from unmask.training.train import train

from . import line
from .line import recipe, rows


def change(folder: Path, changes: dict[str, Any] | None = None, tensors: dict[str, Tensor] | None = None) -> None:
    """Write other metadata or tensors into a state; a value of None removes the entry."""
    path = folder / STATE
    with safe_open(str(path), "pt") as f:
        meta = json.loads(f.metadata()["unmask"]) | (changes or {})
    meta = {name: value for name, value in meta.items() if value is not None}
    save_file(load_file(path) | (tensors or {}), path, metadata={"unmask": json.dumps(meta)})


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """A run that has stopped at step 3."""
    train(recipe(), tmp_path, stop_after=3)
    return tmp_path


# -- states that do not fit -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"step": None}, "step is missing in its metadata"),
        ({"step": -5}, "step is -5, not a whole number of at least 0"),
        ({"step": "-5"}, "step is '-5', not a whole number"),
        ({"step": "abc"}, "step is 'abc', not a whole number"),
        ({"step": True}, "step is True, not a whole number"),
        ({"step": 2.5}, "step is 2.5, not a whole number"),
        ({"step": [1]}, r"step is \[1\], not a whole number"),
        ({"step": 10**30}, "step is 1000000+, not a whole number"),
        ({"step": 10**9}, "is at step 1000000000, beyond the last step, 8; set training.steps"),
        ({"updates": -1}, "updates is -1, not"),
        ({"skipped": "x"}, "skipped is 'x', not"),
        ({"seed": None}, "seed is missing"),
    ],
)
def test_metadata_that_does_not_fit_is_named(begun: Path, changes: dict[str, Any], error: str) -> None:
    change(begun, changes)
    with pytest.raises(ValueError, match=error) as found:
        train(recipe(), begun)
    assert str(begun / STATE) in str(found.value)


@pytest.mark.parametrize("text", ["[]", "7", "null", "not json", '"a"'])
def test_metadata_that_is_no_table_is_named(begun: Path, text: str) -> None:
    save_file(load_file(begun / STATE), begun / STATE, metadata={"unmask": text})
    with pytest.raises(ValueError, match="has no readable metadata of a run; delete it to start again"):
        train(recipe(), begun)
    assert saved_step(begun) is None


def test_a_state_of_an_earlier_version_continues(begun: Path) -> None:
    change(begun, {"settings": None, "skipped": None, "step": "3", "updates": "3", "seed": "0"})
    train(recipe(), begun)
    train(recipe(), begun / "whole")
    assert all(torch.equal(t, load_file(begun / STATE)[n]) for n, t in load_file(begun / "whole" / STATE).items())


@pytest.mark.parametrize(
    ("name", "tensor", "error"),
    [
        (
            "master.weight",
            torch.zeros(1, 3, dtype=torch.int32),
            r"master.weight is int32 \[1, 3\], not float32 \[1, 3\]",
        ),
        ("average.weight", torch.zeros(1, 3, dtype=torch.float16), "average.weight is float16"),
        ("exp_avg.bias", torch.zeros(2), r"exp_avg.bias is float32 \[2\], not float32 \[1\]"),
        ("step.bias", torch.zeros(5), r"step.bias is float32 \[5\], not float32 \[\]"),
        ("master.other", torch.zeros(1), "trains nothing like master.other"),
        ("master.weight", torch.full((1, 3), math.nan), "master.weight holds values that are not finite"),
        ("exp_avg_sq.bias", torch.tensor([math.inf]), "exp_avg_sq.bias holds values that are not finite"),
    ],
)
def test_tensors_that_do_not_fit_are_named(begun: Path, name: str, tensor: Tensor, error: str) -> None:
    change(begun, tensors={name: tensor})
    with pytest.raises(ValueError, match=error):
        train(recipe(), begun)


@pytest.mark.parametrize("row", ['{"updates": 1}', "[1]", "7", "{", '{"step": "a"}', '{"step": null}', "\udcff"])
def test_a_damaged_row_of_metrics_is_named(begun: Path, row: str) -> None:
    with (begun / "metrics.jsonl").open("a", errors="surrogateescape") as f:
        f.write(row + "\n")
    with pytest.raises(ValueError, match=r"line 3 of .*metrics\.jsonl is no row with a step: .*; delete the line"):
        train(recipe(), begun)


# -- another recipe ---------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Rows:
    """A source with settings; one that does not count."""

    scale: float = 1.0
    mixture: tuple[tuple[str, int, float], ...] = (("a", 1, 0.5),)
    place: str = dataclasses.field(default="here", compare=False)

    def __call__(self, step: int) -> Tensor:
        return line.source(step) * self.scale


@pytest.mark.parametrize(
    ("changes", "source", "error"),
    [
        ("optim.lr=0.1", Rows(), "optim.lr was 0.05, is 0.1"),
        ("training.accumulate=2", Rows(), "training.accumulate was 1, is 2"),
        ("training.bf16=true", Rows(), "training.bf16 was False, is True"),
        ("training.steps=9", Rows(scale=2.0), "source.scale was 1.0, is 2.0; use the earlier"),
        ("training.steps=9", Rows(mixture=(("a", 1, 0.25),)), "source.mixture.a.2 was 0.5, is 0.25"),
        ("training.steps=9", line.source, "source.scale was 1.0, is absent"),
    ],
)
def test_a_changed_setting_is_named_and_can_be_allowed(
    changes: str, source: Any, error: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    train(dataclasses.replace(recipe(), source=Rows()), tmp_path, stop_after=2)
    before = (tmp_path / STATE).read_bytes()
    other: Recipe = dataclasses.replace(override(recipe(), [changes]), source=source)
    with pytest.raises(ValueError, match=error):
        train(other, tmp_path)
    assert (tmp_path / STATE).read_bytes() == before
    train(other, tmp_path, allow_changes=True, stop_after=2)
    assert error.split(";")[0] in capfd.readouterr().err
    train(other, tmp_path)  # from now on these are its settings


def test_what_does_not_change_a_step_may_change(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    train(dataclasses.replace(recipe(), source=Rows()), tmp_path, stop_after=2)
    free = ["training.log_every=1", "training.save_every=1", "training.keep=2", "training.max_skipped=0"]
    free += ["training.device=cpu", "training.steps=10"]
    train(dataclasses.replace(override(recipe(), free), source=Rows(place="there")), tmp_path)
    assert "other settings: training.steps was 8, is 10\n" in capfd.readouterr().err


def test_settings_of_a_large_collection_are_a_digest() -> None:
    def found(numbers: range) -> str:
        source = dataclasses.make_dataclass("Many", [("numbers", tuple)], frozen=True)(tuple(numbers))
        return settings(dataclasses.replace(recipe(), source=source))["source.numbers"]

    assert found(range(100)) != found(range(1, 101)) and len(found(range(10**5))) < 30


# -- one run per folder -----------------------------------------------------------------------------------------------


def _hold(folder: Path, ready: Any, end: Any) -> None:
    with lock(folder):
        ready.set()
        end.wait(60)


def test_a_second_run_in_a_folder_is_refused_and_leaves_it_alone(begun: Path) -> None:
    (begun / (STATE + ".part")).write_bytes(b"what the other run is writing")
    context = multiprocessing.get_context("spawn")
    ready, end = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(begun, ready, end))
    other.start()
    assert ready.wait(60)
    before = {p.name: p.read_bytes() for p in begun.iterdir()}
    try:
        with pytest.raises(RunInUse, match="another process is training in .*; wait for it or choose another --out"):
            train(recipe(), begun)
        assert {p.name: p.read_bytes() for p in begun.iterdir()} == before
    finally:
        other.kill()  # a killed process holds nothing
        other.join()
    train(recipe(), begun)
    assert saved_step(begun) == 8


# -- checkpoints that are kept ----------------------------------------------------------------------------------------


def test_the_last_checkpoints_are_kept(tmp_path: Path) -> None:
    made = recipe(save_every=2, keep=3)
    train(made, tmp_path)
    assert sorted(p.name for p in tmp_path.glob("*.safetensors")) == [
        "state-4.safetensors",
        "state-6.safetensors",
        STATE,
    ]
    whole = (tmp_path / STATE).read_bytes()
    (tmp_path / STATE).write_bytes(whole[:100])
    with pytest.raises(ValueError, match="is damaged: .*; copy state-6.safetensors over it to continue from there"):
        train(made, tmp_path)
    (tmp_path / STATE).write_bytes((tmp_path / "state-6.safetensors").read_bytes())
    train(made, tmp_path)
    assert (tmp_path / STATE).read_bytes() == whole
    train(recipe(save_every=2, steps=9), tmp_path)
    assert [p.name for p in tmp_path.glob("*.safetensors")] == [STATE]


def test_checkpoints_are_kept_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*given: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr("os.link", refused)
    train(recipe(save_every=2, keep=2), tmp_path)
    with safe_open(str(tmp_path / "state-6.safetensors"), "pt") as f:
        assert json.loads(f.metadata()["unmask"])["step"] == 6


# -- gradients that are not finite ------------------------------------------------------------------------------------


def broken(*steps: int, value: float = math.nan) -> Any:
    """The source with rows that are not finite at these steps."""
    return lambda step: line.source(step) * (value if step in steps else 1)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_skips_its_update(
    value: float, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    train(dataclasses.replace(recipe(log_every=4), source=broken(4, 5, value=value)), tmp_path)
    told = [text for text in capfd.readouterr().err.splitlines() if "skipped" in text and "warning" in text]
    assert len(told) == 2 and "the gradient of weight is not finite (loss square is not finite either)" in told[0]
    assert told[0].endswith("update 4 is skipped, 1 of at most 3 in a row") and "2 of at most 3" in told[1]
    assert [(r["step"], r["updates"], r.get("skipped")) for r in rows(tmp_path)] == [(4, 4, None), (8, 6, 2)]
    assert all(math.isfinite(v) for r in rows(tmp_path) for v in r.values())

    def twice_less(step: int) -> Tensor:
        return line.source(step if step < 4 else step + 2)

    train(dataclasses.replace(recipe(steps=8), source=twice_less), tmp_path / "other", stop_after=4)
    first = load_file(tmp_path / "other" / STATE)
    train(dataclasses.replace(recipe(), source=broken(4, 5, value=value)), tmp_path / "stopped", stop_after=6)
    stopped = load_file(tmp_path / "stopped" / STATE)
    assert all(torch.equal(first[name], stopped[name]) for name in first)  # nothing has moved


def test_too_many_in_a_row_end_the_run(tmp_path: Path) -> None:
    made = dataclasses.replace(recipe(max_skipped=2), source=broken(0, 1, 3, 4, 5))
    with pytest.raises(NotFinite, match=r"not finite .* at update 1, after 2 skipped in a row; the last checkpoint"):
        train(made, tmp_path)
    assert saved_step(tmp_path) == 3


def test_the_count_of_skipped_updates_is_resumed(tmp_path: Path) -> None:
    made = dataclasses.replace(recipe(max_skipped=2), source=broken(4, 5, 6))
    train(made, tmp_path, stop_after=6)
    with pytest.raises(NotFinite, match="after 2 skipped in a row"):
        train(made, tmp_path)


def test_weights_that_are_not_finite_replace_no_checkpoint(tmp_path: Path) -> None:
    """Finite gradients can still end in weights that are not."""

    def straight(module: nn.Linear, batch: Tensor, rng: torch.Generator) -> Loss:
        total = module.weight.sum() + module.bias.sum()
        return Loss(total=total, terms={}, counts={})

    made = recipe(straight, save_every=1)
    train(made, tmp_path, stop_after=3)
    before = (tmp_path / STATE).read_bytes()
    steep = dataclasses.replace(made, optim=Optim(lr=3e38, warmup=1))
    with pytest.raises(NotFinite, match="master.weight is not finite at step 4, so it is not saved; continue from"):
        train(steep, tmp_path, allow_changes=True)
    assert (tmp_path / STATE).read_bytes() == before
