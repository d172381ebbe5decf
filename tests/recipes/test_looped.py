"""A looped text model from chats: training, its folder, questions at full depth and in wave fronts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import unmask
from unmask.checkpoints.stream import CheckpointError
from unmask.cli.main import main
from unmask.methods.recurrent_depth import wavefront
from unmask.pipeline.text_model import TextModel
from unmask.recipes.looped import Chats, chats, text
from unmask.rng import generator
from unmask.training.train import train

torch.set_num_threads(1)
ANSWERS = {"where is the dog?": "in the garden", "where is the cat?": "on the roof", "what is red?": "the apple"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("looped")
    with (place / "chats.jsonl").open("w") as file:
        for number, (asked, said) in enumerate(ANSWERS.items()):
            turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
            file.write(json.dumps({"id": str(number), "messages": turns}) + "\n")
    recipe = text(data=str(place / "chats.jsonl"), vocabulary=300, width=64, depth=4, batch=6, steps=160, lr=5e-3)
    train(recipe, place / "model")
    return place


def test_the_folder_answers_at_full_depth_and_in_waves(folder: Path) -> None:
    model = unmask.load(folder / "model")
    assert isinstance(model, TextModel)
    waves = model.with_sampler(lambda base: wavefront(base, window=4))
    for asked, said in ANSWERS.items():
        assert model.ask(asked, max_tokens=16, length=16).text == said
        assert waves.ask(asked, max_tokens=16, length=16).text == said


def test_the_command_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["ask", "where is the dog?", "--model", str(folder / "model"), "--max-tokens", "16", "--quiet"]
    assert main([*asked, "--sampler", "wavefront", "-o", "window=2"]) == 0
    assert capsys.readouterr().out.strip() == "in the garden"
    assert main([*asked, "--sampler", "wavefront", "-o", "window=1"]) == 2
    assert "never advances" in capsys.readouterr().err


def test_other_models_have_no_waves(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert (
        main(
            ["generate", "a dog", "--sampler", "wavefront", "--steps", "1", "--quiet", "--out", str(tmp_path / "x.png")]
        )
        == 2
    )
    assert "wavefront is for looped models" in capsys.readouterr().err


def test_gaps_in_the_middle_and_damaged_folders_are_refused(folder: Path, tmp_path: Path) -> None:
    model = unmask.load(folder / "model")
    assert isinstance(model, TextModel)
    with pytest.raises(ValueError, match="writes from left to right"):
        model.infill_text("the [mask] is red")
    raw = json.loads((folder / "model" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(raw | {"looped": {"width": 1}}))
    with pytest.raises(CheckpointError, match="is not a looped model"):
        unmask.load(tmp_path)


def test_rows_predict_answers_alone(folder: Path) -> None:
    rows = chats(str(folder / "chats.jsonl"), 300, 256)
    assert isinstance(rows, Chats)
    ids, scored = rows.batch(8, generator("t"))
    for row, asked in zip(ids, scored, strict=True):
        assert rows.text.decode(row[asked].tolist()) in ANSWERS.values()


@pytest.mark.parametrize(("given", "told"), [({}, "give your chats"), ({"context": 4}, "more than 4 tokens")])
def test_wrong_data_are_refused(folder: Path, given: dict[str, int], told: str) -> None:
    data = str(folder / "chats.jsonl") if given else ""
    with pytest.raises(ValueError, match=told):
        text(data=data, **given).model()  # type: ignore[arg-type]
