"""``unmask doctor --self-test``: the figures of the release, and what it says of results that differ from them.

After a wanted change of what mini computes: ``python -m tests.evaluation.test_self_test`` writes the figures anew, with one thread.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

import unmask
from unmask.checkpoints.elastic import WeightStorage
from unmask.cli.main import main
from unmask.evaluation import self_test
from unmask.evaluation.self_test import Figure, Machine, compared, figures_of, shipped
from unmask.pipeline.model import Model


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def mini() -> Model:
    model = unmask.load("mini", device="cpu")
    assert isinstance(model, Model)
    return model


@pytest.fixture(scope="module")
def found(mini: Model) -> dict[str, Figure]:
    torch.set_num_threads(1)
    return figures_of(mini)


def test_mini_computes_what_it_computed_at_its_release(mini: Model, found: dict[str, Figure]) -> None:
    machine, wanted = shipped()
    here = Machine.of(mini)
    results = compared(found, wanted, exactly=here == machine)
    assert [one.name for one in results if not one.ok] == [], "wanted? python -m tests.evaluation.test_self_test"
    assert {"drawing", "edit", "answer", "box"} < {one.name for one in results}
    assert wanted["answer"].words == "umbrella" and machine.device == "cpu" and machine.threads == 1


def test_half_precision_is_beyond_the_tolerance_of_another_machine(found: dict[str, Figure]) -> None:
    half = unmask.load("mini", device="cpu", storage=WeightStorage(dtype=torch.bfloat16))
    assert isinstance(half, Model) and Machine.of(half).dtype == "bfloat16"
    results = {one.name: one for one in compared(figures_of(half), found, exactly=False)}
    assert not results["probabilities of a drawing"].ok and results["input picture"].exact


def test_a_machine_of_the_same_class_must_give_every_bit() -> None:
    wanted = {"a": Figure(digest="1", numbers=(1.0, 2.0), tolerance=0.1), "b": Figure(digest="2", words="a cat")}
    near = {"a": replace(wanted["a"], digest="9", numbers=(1.1, 2.05)), "b": wanted["b"]}
    assert [one.ok for one in compared(near, wanted, exactly=True)] == [False, True]
    (number, words) = compared(near, wanted, exactly=False)
    assert number.ok and not number.exact and number.difference == pytest.approx(0.075)
    for far in ((1.2, 2.1), (1.0,), (float("nan"), 2.0)):
        worse = {**near, "a": replace(near["a"], numbers=far)}
        assert not compared(worse, wanted, exactly=False)[0].ok, far
    other = {**near, "b": Figure(digest="3", words="a dog")}
    assert [one.ok for one in compared(other, wanted, exactly=False)] == [True, False]
    bare = {"c": Figure(digest="1")}
    assert not compared({"c": Figure(digest="2")}, bare, exactly=False)[0].ok
    with pytest.raises(ValueError, match=r"has c, and this version computes a, b"):
        compared(near, bare, exactly=False)


def test_doctor_says_what_there_is_and_tests_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "weights").write_bytes(bytes(2**26))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert torch.__version__ in shown and "GiB free on cpu" in shown and f"{tmp_path / 'hub'} (0.06 GiB)" in shown
    assert f"transformers {version('transformers')}" in shown and "\x1b" not in shown
    assert main(["doctor", "--json", "--threads", "2"]) == 0
    assert json.loads(capsys.readouterr().out)["threads"] == 2
    assert main(["doctor", "--self-test", "--device", "cpu", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["ok"] and told["machine"]["threads"] == 1 and len(told["results"]) == 9
    assert ("threads" in told["differs"]) is False
    machine, figures = shipped()
    wrong = tmp_path / "figures.json"
    figures["answer"] = replace(figures["answer"], digest="0", words="a dog")
    wrong.write_text(json.dumps(self_test.to_json(replace(machine, processor="another"), figures)))
    monkeypatch.setattr(self_test, "FIGURES", wrong)
    assert main(["doctor", "--self-test", "--device", "cpu"]) == 1
    out, err = capsys.readouterr()
    assert "another class of machine (processor" in err
    assert [line.split()[-1] for line in out.splitlines() if line.startswith("answer")] == ["FAILED"]


if __name__ == "__main__":
    torch.set_num_threads(1)
    model = unmask.load("mini", device="cpu")
    assert isinstance(model, Model)
    record = self_test.to_json(Machine.of(model), figures_of(model))
    self_test.FIGURES.write_text(json.dumps(record, indent=1) + "\n")
    print(asdict(Machine.of(model)))
