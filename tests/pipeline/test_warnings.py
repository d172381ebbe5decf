"""Every result says which words of its request the model does not know; the file that lists them travels with the model."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

import unmask
from unmask.checkpoints.stream import CheckpointError
from unmask.cli.main import main
from unmask.pipeline.convert import to_own, to_released
from unmask.pipeline.loading import read_vocabulary, resolve
from unmask.pipeline.model import Model
from unmask.serving.batch import Share, plan, run_batch
from unmask.tasks.conversing import Message

pytestmark = pytest.mark.weights

FEW = ["schedule.steps=2"]
PICTURE = Image.new("RGB", (128, 128), "white")
UNKNOWN = "mini does not know 'giraffe'; mini draws one to four of 24 objects (dog, cat, "


def test_every_result_carries_the_warnings_of_its_request(model: Model) -> None:
    region = Image.new("L", (128, 128), 255)
    asked = [Message(role="user", text="draw a giraffe"), Message(role="assistant"), Message(role="user", text="why?")]
    results = [
        *model.generate("a dog and a giraffe", n=2, plan=False, settings=FEW),
        *model.generate("a dog and a giraffe", settings=FEW, attempts=2),
        *model.edit(PICTURE, "add a giraffe at the top", settings=FEW),
        *model.edit(PICTURE, "add a giraffe at the top", settings=FEW, attempts=2),
        model.infill(PICTURE, region, prompt="a giraffe", settings=FEW),
        model.ask(PICTURE, "is there a giraffe?"),
        model.infill_text("a [mask] giraffe"),
        model.ground(PICTURE, ["the dog", "the giraffe"]),
        model.converse(asked[:1]),
    ]
    for result in results:
        (line,) = result.warnings
        assert line.startswith(UNKNOWN) and result.to_json()["warnings"] == [line]
    assert "'why'" in model.converse(asked).warnings[0], "only the message that is answered counts"


def test_known_words_give_no_warnings(model: Model) -> None:
    region = Image.new("L", (128, 128), 255)
    results = [
        *model.generate("2 dogs", plan=False, settings=FEW),
        *model.edit(PICTURE, "make the background sand", settings=FEW),
        model.infill(PICTURE, region, settings=FEW),
        model.ask(PICTURE, "what is this?"),
        model.describe(PICTURE),
        model.infill_text("a [mask] dog"),
        model.ground(PICTURE, ["the dog"]),
        model.converse([Message(role="user", text="draw a dog")]),
    ]
    assert [result.warnings for result in results] == [()] * len(results)
    assert all(result.to_json()["warnings"] == [] for result in results)


def test_a_model_without_the_file_knows_any_text(model: Model) -> None:
    silent = Model(replace(model.parts, vocabulary=None), model.presets)
    assert silent.generate("an astronaut", plan=False, settings=FEW)[0].warnings == ()


def test_the_command_line_prints_warnings_on_stderr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    PICTURE.save(tmp_path / "p.png")
    given, out = str(tmp_path / "p.png"), str(tmp_path / "out.png")
    for command in (
        ["generate", "a dog and a giraffe", "-n", "2", "--steps", "2", "--out", out],
        ["edit", given, "add a giraffe at the top", "--steps", "2", "--out", out],
        ["infill", given, "--box", "0,0,64,64", "--prompt", "a giraffe", "--steps", "2", "--out", out],
        ["infill", "a [mask] giraffe"],
        ["ask", given, "is there a giraffe?"],
        ["ground", given, "the giraffe"],
    ):
        assert not main([*command, "--json"])
        printed = capsys.readouterr()
        assert [line[: len(UNKNOWN)] for line in printed.err.splitlines()] == [f"warning: {UNKNOWN}"[: len(UNKNOWN)]]
        found = json.loads(printed.out)
        assert (found[0] if isinstance(found, list) else found)["warnings"][0].startswith(UNKNOWN)


def test_chat_prints_warnings_on_stderr(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("is there a giraffe?\n"))
    assert not main(["chat", "--out", str(tmp_path)])
    assert f"warning: {UNKNOWN}" in capsys.readouterr().err


def test_a_batch_records_warnings(tmp_path: Path, model: Model) -> None:
    line = {"id": "a", "task": "generate", "prompt": "a dog and a giraffe", "settings": FEW}
    (tmp_path / "all.jsonl").write_text(json.dumps(line) + "\n")
    work = plan(tmp_path / "all.jsonl", tmp_path / "out", Share())
    run_batch(model, work)
    assert json.loads(work.results.read_text())["result"]["warnings"][0].startswith(UNKNOWN)


def test_the_file_travels_with_a_converted_model(tmp_path: Path) -> None:
    to_released("mini", tmp_path / "released")
    to_own(tmp_path / "released", tmp_path / "own")
    for name in ("released", "own"):
        opened = unmask.load(tmp_path / name, needs=())
        assert isinstance(opened, Model)
        assert opened.parts.vocabulary == read_vocabulary(resolve("mini")) is not None


@pytest.mark.parametrize("content", ["", "{", "[]", '{"name": "mini"}', "\udcff"])
def test_a_damaged_file_is_named(content: str, tmp_path: Path) -> None:
    shutil.copytree(resolve("mini"), tmp_path / "mini")
    file = tmp_path / "mini" / "vocabulary.json"
    file.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(CheckpointError, match=r"vocabulary.json is not a vocabulary: .*; copy that of the model"):
        unmask.load(tmp_path / "mini", needs=())
