"""``unmask inspect RECIPE``: what a training run needs, without weights or data; and wrong input."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
from PIL import Image

from unmask.cli.main import main

sys.path.insert(0, str(Path(__file__).parents[1]))
import tiny_model


@pytest.fixture
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model.make(tmp_path_factory.mktemp("tiny"))


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    code = main(("inspect", *words))
    out, err = capsys.readouterr()
    assert code == 0, err
    return out


def record(capsys: pytest.CaptureFixture[str], *words: str) -> dict:
    return json.loads(shown(capsys, *words, "--json"))


def mistake(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    code = main(("inspect", *words))
    out, err = capsys.readouterr()
    assert code == 2 and not out and "Traceback" not in err, (code, out, err)
    return err


def test_a_stage_on_a_cluster(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The published stage 2 on 64 processes of 80 GiB: 2.5 B of 6.7 B parameters train, and all ways fit."""
    monkeypatch.chdir(tmp_path)
    found = record(capsys, "lavida_o.stage2", "--world", "64", "--budget", "80GiB")
    assert (found["parameters"], found["trained"], found["world"]) == (6_696_562_688, 2_500_472_832, 64)
    parts = {part["name"]: (part["trained"], part["frozen"]) for part in found["parts"]}
    assert parts["gen"] == (2_416_050_176, 0) and parts["embed"] == (0, 521_740_288) and "vision" not in parts
    ways = {(way["sharded"], way["recompute"]): way for way in found["ways"]}
    assert len(ways) == 4 and [way for way in found["ways"] if way["recipe"]] == [ways[True, True]]
    whole, shard = ways[False, True], ways[True, True]
    assert whole["weights"] == 2 * 6_696_562_688 and whole["optimiser"] == 16 * 2_500_472_832
    assert shard["optimiser"] == 12 * 2_500_472_832 // 64
    assert ways[False, False]["activations"] > 5 * whole["activations"]
    for way in found["ways"]:
        assert way["fits"] == (way["peak"] <= 80 * 2**30) and (way["most_rows"] >= found["rows"]) == way["fits"]


def test_everything_at_once_needs_shards(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ways = record(capsys, "lavida_o.stage3", "--world", "64", "--budget", "80GiB")["ways"]
    assert [way["fits"] for way in ways] == [False, False, True, True] and ways[0]["most_rows"] == 0
    said = shown(capsys, "lavida_o.stage3", "--budget", "80GiB")
    assert "nothing fits into 80.00 GiB, not even one row; use more processes or a smaller model" in said


def test_the_table_shows_the_recipe_and_what_fits(capsys: pytest.CaptureFixture[str]) -> None:
    said = shown(capsys, "mini.stage3", "--world", "2", "--budget", "2GiB", "-o", "training.accumulate=2")
    assert "an update has 2 source batches of up to 137 rows, 1 for each of 2 processes; bfloat16" in said
    assert re.search(r"^vision +829,376 +62,016 +767,360$", said, re.M) and "14 smaller batches" in said
    assert "DDP *" in said and "FSDP2, recomputed" in said and "* as the recipe is set" in said
    assert "largest source batch: " in said and "-o training.recompute=true" in said


def test_settings_change_the_plan(capsys: pytest.CaptureFixture[str], tiny: Path) -> None:
    """The model, the rows and the type of the computation; one process has no sharded way."""
    half = record(capsys, "lavida_o.stage2", "-o", f"model={tiny}", "-o", "batch=8")
    full = record(capsys, "lavida_o.stage2", "-o", f"model={tiny}", "-o", "batch=8", "-o", "training.bf16=false")
    assert [way["way"] for way in half["ways"]] == ["one process", "one process, recomputed"] and half["rows"] == 8
    assert full["ways"][0]["weights"] == 2 * half["ways"][0]["weights"]
    bits = record(capsys, "lavida_o.stage2", "-o", f"model={tiny}", "-o", "optim.bits=8")
    assert bits["ways"][0]["optimiser"] == 10 * bits["trained"] and half["ways"][0]["optimiser"] == 16 * bits["trained"]
    assert half["batches"][0][0]["codes"] == 64, "8 x 8 codes of a picture of 128 pixels"


def test_fine_tuning_is_planned_from_its_data(capsys: pytest.CaptureFixture[str], tiny: Path, tmp_path: Path) -> None:
    pets = tmp_path / "pets"
    pets.mkdir()
    Image.new("RGB", (128, 128), "red").save(pets / "a.png")
    (pets / "a.txt").write_text("a photo of a frog")
    words = ("finetune", "--data", str(pets), "-o", f"model={tiny}", "-o", "batch=6")
    whole, adapted = record(capsys, *words), record(capsys, *words, "-o", "lora=2")
    assert whole["rows"] == 6 and {load["gen"] for load in whole["batches"][0]} == {0, 16}
    assert 0 < adapted["trained"] < whole["trained"] / 2
    assert adapted["ways"][0]["optimiser"] < whole["ways"][0]["optimiser"] / 2
    assert "needs data\nhint: give a folder or a file with --data" in mistake(capsys, "finetune")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("lavida_o.stage4",), "there is no recipe 'lavida_o.stage4'\nhint: did you mean 'lavida_o.stage"),
        (("mini.tower",), "the memory of mini.tower cannot be planned"),
        (("lavida_o.stage2", "--budget", "80 apples"), "'80 apples' is not an amount of memory\nhint: use a form like"),
        (("lavida_o.stage2", "--world", "0"), "0 is not in the range"),
        (("lavida_o.stage2", "--task", "generate"), "is a recipe; --task, --dtype, --quantise and --offload are for"),
        (("lavida_o.stage2", "-o", "training.step=3"), "did you mean"),
        (("lavida_o.stage2", "-o", "model=nowhere"), "no model is called 'nowhere'"),
        (("mini", "--world", "2"), "--world, --data and -o are for recipes"),
        (("lavido",), "no file, folder, shipped model, size or recipe is called 'lavido'"),
    ],
)
def test_mistakes_are_named(words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert said in mistake(capsys, *words)
