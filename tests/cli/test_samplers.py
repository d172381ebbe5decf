"""unmask bench samplers: its table, its JSON, its files, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from unmask.cli import samplers as command
from unmask.cli.main import main
from unmask.evaluation import sampler_axes as axes

from .. import tiny_lavida, tiny_llada
from ..tiny_model import make

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def llada(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_llada.make(tmp_path_factory.mktemp("llada") / "own"))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make(tmp_path_factory.mktemp("tiny")))


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[str, str]:
    """(stdout, stderr) of a run that must succeed."""
    code = main(["bench", "samplers", *words, "--threads", "1"])
    out, err = capsys.readouterr()
    assert code == 0, err
    return out, err


def test_the_names_are_those_of_the_axes() -> None:
    assert (command.ORDERS, command.SCHEDULES, command.CACHES) == (axes.ORDERS, axes.SCHEDULES, axes.CACHES)
    for usual in (command.DRAWING, command.WRITING):
        axes.check_names(usual.orders, usual.schedules, usual.caches, usual.thresholds)


def test_a_table_of_a_text_model(llada: str, capsys: pytest.CaptureFixture[str]) -> None:
    out, err = run(capsys, "--model", llada, "--prompt", "is it?", "--prompt", "the sky", "--length", "8")
    first, rule, *lines = out.splitlines()
    assert first.startswith("sampler ") and "tokens a forward" in first and set(rule) == {"-", " "}
    names = [line.split("  ")[0] for line in lines]
    assert names[:2] == ["reference", "reference, other seeds"] and "order left_to_right" in names
    assert "more combinations have the sampler of a row above" in err


def test_json_of_a_model_that_draws(tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = ("--plot", str(tmp_path / "p.png"), "--history", str(tmp_path / "h.jsonl"), "--label", "mine")
    words = (
        "--prompt",
        "a cat",
        "--steps",
        "4",
        "--orders",
        "random,halton",
        "--schedules",
        "own",
        "--seed",
        "7",
        *files,
    )
    out, err = run(capsys, "--model", tiny, "--json", *words)
    found = json.loads(out)
    assert (found["model"], found["task"], found["prompts"], found["seed"]) == ("mine", "generate", 1, 7)
    assert [s["name"] for s in found["samplers"]] == [
        *("reference", "reference, other seeds", "order random", "order halton"),
    ]
    assert all(s["forwards"] == 4 and s["settings"]["schedule"]["steps"] == 4 for s in found["samplers"])
    assert Image.open(tmp_path / "p.png").size[0] > 800 and "plot: " in err
    rows = [json.loads(line) for line in (tmp_path / "h.jsonl").read_text().splitlines()]
    assert [row["name"] for row in rows] == [f"samplers.mine.generate.{s['name']}" for s in found["samplers"]]


def test_the_world_brings_its_metric(tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--model", tiny, "--task", "ask", "--world", "2", "--orders", "own", "--caches", "own", "--json")
    found = json.loads(run(capsys, *words, "--schedules", "own", "--thresholds", "none")[0])
    assert found["metric"] == "match" and found["samplers"][0]["quality"]["value"] in (0, 0.5, 1)


def test_questions_about_one_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tiny_lavida.make(tmp_path / "lavida")
    Image.new("RGB", (30, 20), "red").save(tmp_path / "a.png")
    words = ("--prompt", "what?", "--image", str(tmp_path / "a.png"), "--length", "4", "--json", "--thresholds", "none")
    found = json.loads(run(capsys, "--model", str(folder), *words)[0])
    assert found["task"] == "ask" and found["samplers"][0]["tokens"] <= 4  # a model that only reads is asked


def test_what_cannot_be_done_says_why(llada: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--prompt", "is it?", "--length", "4", "--orders", "halton", "--schedules", "own", "--caches", "own")
    out, _ = run(capsys, "--model", llada, *words, "--thresholds", "none")
    assert "not possible" in out and "the task writes text" in out


def test_the_reference_has_the_options(llada: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--prompt", "is it?", "--length", "8", "--orders", "own", "--schedules", "own", "--caches", "own")
    out, _ = run(
        capsys, "--model", llada, *words, "--steps", "2", "--temperature", "0.5", "--thresholds", "none", "--json"
    )
    (reference, _) = json.loads(out)["samplers"]
    assert reference["settings"]["schedule"]["steps"] == 2
    assert reference["settings"]["token_sampler"]["temperature"] == 0.5


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "give prompts in one way"),
        (("--prompt", "a", "--world", "3"), "give prompts in one way"),
        (("--prompt", " "), "a prompt is empty"),
        (("--world", "3", "--image", "PICTURE"), "--image is the picture of --prompt"),
        (("--prompt", "a", "--orders", "randon"), "did you mean 'random'"),
        (("--prompt", "a", "--orders", " , "), "no name in"),
        (("--prompt", "a", "--thresholds", "2"), "is not a probability"),
        (("--prompt", "a", "--metric", "match"), "needs the right answers"),
        (("--prompt", "a", "--metric", "judge"), "use --world N"),
        (("--prompt", "a", "--metric", "nice"), "the metrics are match, contains, judge, clip:FOLDER"),
        (("--prompt", "a", "--metric", "clip:/nowhere"), "has no config.json"),
        (("--prompt", "a", "--task", "generate"), "text model, which cannot generate pictures"),
        (("--prompt", "a", "--length", "900"), "the model's context is 256"),
        (("--prompt", "a", "-o", "schedule.stepz=3"), "stepz"),
        (("--prompt", "a", "--plot", "a.txt"), "must end in .png"),
    ],
)
def test_mistakes(
    words: tuple[str, ...], said: str, llada: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "a.png"
    Image.new("RGB", (4, 4)).save(picture)
    given = [str(picture) if word == "PICTURE" else word for word in words]
    assert main(["bench", "samplers", "--model", llada, *given]) == 2
    out, err = capsys.readouterr()
    assert not out and said in err and "hint: " in err


def test_tasks_of_pictures_and_of_texts(tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    for words, said in (
        (("--task", "complete"), "--task complete is for text models"),
        (("--length", "4"), "--length is of answers"),
        (("--task", "ask"), "the picture is missing"),
    ):
        assert main(["bench", "samplers", "--model", tiny, "--prompt", "a cat", *words]) == 2
        assert said in capsys.readouterr().err
