"""Offline batches: answers equal those of single requests, across interruptions, resumes and several ranks."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import unmask
from unmask.cli.main import main
from unmask.data.world.render import render
from unmask.data.world.scenes import sample
from unmask.grammars.answer_format import of_schema
from unmask.pipeline.model import Model
from unmask.serving.batch import Share, Summary, needs, plan, run_batch
from unmask.serving.manifest import DuplicateIds, read

from ..pages import ROOT, environment
from ..tiny_llada import make as llada
from ..tiny_model import make
from .served import data_url

torch.set_num_threads(1)
FEW = ["schedule.steps=3"]
COLOUR = {"enum": ["red", "blue"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return unmask.load(folder)  # type: ignore[return-value]


@pytest.fixture
def here(tmp_path: Path) -> Path:
    Image.fromarray(render(sample("grid", "test", 0, 0), 128)).save(tmp_path / "in.png")
    region = Image.new("L", (128, 128))
    region.paste(255, (0, 0, 64, 128))
    region.save(tmp_path / "region.png")
    return tmp_path


def write(here: Path, *lines: dict[str, Any] | str) -> Path:
    path = here / "in.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
    return path


def drawing(number: int, steps: int = 3) -> dict[str, Any]:
    """Without a layout, which would take most of the time; ``tests/pipeline/test_presets.py`` has batches with one."""
    settings = [f"schedule.steps={steps}"]
    line = {"id": f"d{number}", "task": "generate", "prompt": f"{number} dogs", "seed": number, "plan": False}
    return {**line, "settings": settings}


def records(out: Path) -> list[dict[str, Any]]:
    """Every line of every rank, all of them complete."""
    return [json.loads(raw) for path in sorted(out.glob("results-*.jsonl")) for raw in path.read_text().splitlines()]


def results(out: Path) -> dict[str, Any]:
    """By id, without what differs from run to run."""
    told = {r["id"]: r["result"] for r in records(out) if r["ok"]}
    return {id_: {k: v for k, v in result.items() if k != "seconds"} for id_, result in told.items()}


def run(model: Model, manifest: Path, out: Path, *, retry: bool = False, **share: int) -> Summary:
    return run_batch(model, plan(manifest, out, Share(**share), retry=retry), live=4)


def test_answers_are_those_of_the_model_asked_alone(model: Model, here: Path) -> None:
    asked = {"type": "object", "properties": {"colour": COLOUR}}
    manifest = write(
        here,
        drawing(1),
        {"id": "A b/ü", "task": "generate", "prompt": "two cats", "boxes": [{"phrase": "cat", "box": [0, 0, 0.5, 0.5]}], "settings": FEW},
        {"id": "thought", "task": "generate", "prompt": "a cat", "plan": True, "reflect": 2, "settings": FEW},
        {"id": "edit", "task": "edit", "image": "in.png", "prompt": "make it blue", "seed": 7, "settings": FEW},
        {"id": "ask", "task": "ask", "image": "in.png", "prompt": "what is this?", "max_tokens": 3},
        {"id": "form", "task": "ask", "image": "in.png", "prompt": "what colour?", "schema": asked},
        {"id": "ground", "task": "ground", "image": "in.png", "phrases": ["the cat", "a dog"], "steps": 2},
        {"id": "infill", "task": "infill", "image": "in.png", "mask": "region.png", "prompt": "a cat", "settings": FEW},
        {"id": "gaps", "task": "infill", "text": "a [mask] [mask]"},
    )  # fmt: skip
    done = run(model, manifest, here / "out")
    assert done == Summary(done=9, passed=0, failed=0), records(here / "out")
    got, image = results(here / "out"), here / "in.png"
    pictures = {
        "d1": model.generate("1 dogs", seed=1, plan=False, settings=FEW)[0],
        "thought": model.generate("a cat", plan=True, attempts=2, settings=FEW)[0],
        "edit": model.edit(image, "make it blue", seed=7, settings=FEW)[0],
        "infill": model.infill(image, here / "region.png", prompt="a cat", settings=FEW),
    }
    for id_, drawn in pictures.items():
        saved = np.asarray(Image.open(here / "out" / got[id_]["file"]))
        assert np.array_equal(saved, np.asarray(drawn.image)), id_
    assert (got["thought"]["plan"] is not None) == (pictures["thought"].plan is not None)
    assert got["ask"]["text"] == model.ask(image, "what is this?", max_tokens=3).text
    assert got["form"]["value"] == model.ask(image, "what colour?", form=of_schema(asked)).value
    assert got["gaps"]["text"] == model.infill_text("a [mask] [mask]").text
    boxes = model.ground(image, ["the cat", "a dog"], steps=2).to_json()["boxes"]
    assert [b["phrase"] for b in got["ground"]["boxes"]] == ["the cat", "a dog"]
    assert [b["box"] for b in got["ground"]["boxes"]] == [pytest.approx(b["box"]) for b in boxes]
    assert re.fullmatch(r"pictures/=[0-9a-f]{32}\.png", got["A b/ü"]["file"]) and got["d1"]["file"] == "pictures/d1.png"
    assert run(model, manifest, here / "out") == Summary(done=0, passed=9, failed=0)


def test_pictures_may_be_data_urls_and_null_is_absent(model: Model, here: Path) -> None:
    image, region = (data_url(Image.open(here / name)) for name in ("in.png", "region.png"))
    nulls = {"seed": None, "settings": None, "sampler": None}
    lines = [
        {"id": "edit", "task": "edit", "image": image, "prompt": "make it blue", "plan": None},
        {"id": "ask", "task": "ask", "image": image, "prompt": "what?", "max_tokens": None, "regex": None},
        {"id": "ground", "task": "ground", "image": image, "phrases": ["the cat"], "steps": None},
        {"id": "infill", "task": "infill", "image": image, "mask": region, "prompt": "a cat", "text": None},
    ]
    folders = []
    for name, pictures in (("urls", {}), ("files", {"image": "in.png"})):
        jobs = [{**nulls, **line, **pictures} for line in lines]
        jobs[-1] |= {"mask": "region.png"} if pictures else {}
        manifest = here / f"{name}.jsonl"
        manifest.write_text("".join(json.dumps(job) + "\n" for job in jobs))
        assert run(model, manifest, here / name) == Summary(done=4, passed=0, failed=0), records(here / name)
        folders.append(results(here / name))
    assert folders[0] == folders[1]
    broken = write(here, {"id": "x", "task": "edit", "image": "data:image/png;base64,%%%", "prompt": "a"})
    assert run(model, broken, here / "broken").failed == 1
    assert "invalid base64" in records(here / "broken")[0]["error"]


def test_options_of_an_answer(model: Model, here: Path, tmp_path: Path) -> None:
    """The same for a question about an image and for a text model: the arguments of ``ask`` by the same names."""
    line = {"task": "ask", "prompt": "what?", "image": "in.png", "max_tokens": 12, "seed": 3}
    hot = {"temperature": 1.5, "top_p": 0.9}
    whole = model.ask(here / "in.png", "what?", max_tokens=12, seed=3, **hot).text
    texts = unmask.load(llada(tmp_path / "llada"))
    said = texts.ask("what?", max_tokens=12, seed=3, **hot).text
    for asked, image, text in ((model, "in.png", whole), (texts, None, said)):
        jobs = {"hot": {}, "stopped": {"stop": text[1:3]}, "listed": {"stop": ["never", text[1:3]]}}
        manifest = write(here, *({**line, **hot, "id": id_, "image": image, **more} for id_, more in jobs.items()))
        out = here / type(asked).__name__
        assert run(asked, manifest, out).failed == 0, records(out)
        cut = text[: text.find(text[1:3])]
        assert {i: found["text"] for i, found in results(out).items()} == {"hot": text, "stopped": cut, "listed": cut}


BAD: list[tuple[Any, str]] = [
    ("{nonsense", "invalid JSON"),
    ('"text"', "valid dictionary"),
    ({"task": "ask"}, "Input tag|id: Field required|prompt: Field required"),
    ({"id": "no task", "prompt": "x"}, "task"),
    ({"id": "other", "task": "dance"}, "dance"),
    ({"id": "extra", "task": "generate", "prompt": "x", "colour": 1}, "colour: Extra inputs"),
    ({"id": "empty", "task": "generate", "prompt": " "}, "the prompt is empty"),
    ({"id": "missing", "task": "ask", "image": "no.png", "prompt": "x"}, "no.png"),
    ({"id": "blind", "task": "ask", "prompt": "x"}, "a question needs an image"),
    ({"id": "half", "task": "infill", "image": "in.png"}, "image and mask, or a text"),
    (
        {"id": "two forms", "task": "ask", "image": "in.png", "prompt": "x", "regex": "a", "schema": COLOUR},
        "exclude each other",
    ),
    ({"id": "form", "task": "ask", "image": "in.png", "prompt": "x", "schema": {"type": "any"}}, "schema.type"),
    ({"id": "top_p", "task": "ask", "image": "in.png", "prompt": "x", "top_p": 2}, "top_p"),
    ({"id": "no stop", "task": "ask", "image": "in.png", "prompt": "x", "stop": ""}, "stop"),
    (
        {"id": "cut", "task": "ask", "image": "in.png", "prompt": "x", "stop": "a", "schema": COLOUR},
        "stop cannot cut an answer in a format",
    ),
    ({"id": "setting", "task": "generate", "prompt": "x", "settings": ["schedule.stepz=3"]}, "did you mean"),
]


def test_bad_lines_are_recorded_and_stop_nothing(model: Model, here: Path) -> None:
    manifest = write(here, *(line for line, _ in BAD), "", drawing(1))
    assert run(model, manifest, here / "out") == Summary(done=len(BAD) + 1, passed=0, failed=len(BAD))
    told = {r["line"]: r for r in records(here / "out")}
    for number, (line, said) in enumerate(BAD, 1):
        assert not told[number]["ok"] and re.search(said, told[number]["error"]), told[number]
        assert told[number]["id"] == (line.get("id") if isinstance(line, dict) else None)
    assert told[len(BAD) + 2]["ok"]
    assert run(model, manifest, here / "out") == Summary(done=0, passed=len(BAD) + 1, failed=len(BAD))


def test_what_failed_is_tried_again_on_request(model: Model, here: Path) -> None:
    manifest = write(here, drawing(1), {"id": "late", "task": "ask", "image": "late.png", "prompt": "what?"})
    assert run(model, manifest, here / "out").failed == 1
    (here / "in.png").rename(here / "late.png")
    assert run(model, manifest, here / "out") == Summary(done=0, passed=2, failed=1)
    assert run(model, manifest, here / "out", retry=True) == Summary(done=1, passed=1, failed=0)
    assert run(model, manifest, here / "out", retry=True) == Summary(done=0, passed=2, failed=0)
    assert [r["ok"] for r in records(here / "out") if r["id"] == "late"] == [False, True]


def test_a_run_that_was_stopped_goes_on(model: Model, here: Path) -> None:
    manifest = write(here, *map(drawing, range(6)))
    whole, out = here / "whole", here / "out"
    run(model, manifest, whole)

    def stop(done: int, of: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_batch(model, plan(manifest, out, Share()), live=3, on_progress=stop)
    with (out / "results-0.jsonl").open("a") as file:
        file.write('{"id": "d5", "line": 6, "task": "gene')  # as a power cut leaves it
    assert run(model, manifest, out) == Summary(done=4, passed=2, failed=0)
    assert sorted(r["id"] for r in records(out)) == [f"d{n}" for n in range(6)]
    assert results(out) == results(whole)
    for number in range(6):
        name = f"pictures/d{number}.png"
        assert (out / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.slow
def test_a_process_that_was_killed_goes_on(folder: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest, out = write(here, *(drawing(number, steps=12) for number in range(40))), here / "out"
    words = ["batch", str(manifest), str(out), "--model", str(folder), "--threads", "1", "--live", "2"]
    code = "import sys; from unmask.cli.main import main; sys.exit(main(sys.argv[1:]))"
    with subprocess.Popen(
        [sys.executable, "-c", code, *words], env=environment(), cwd=ROOT, stderr=subprocess.PIPE
    ) as process:
        end, file = time.monotonic() + 200, out / "results-0.jsonl"
        while not (file.exists() and file.read_bytes().count(b"\n") >= 2):
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    before = file.read_bytes().count(b"\n")
    assert main(words) == 0
    assert before < 40 and sorted(r["id"] for r in records(out)) == sorted(f"d{n}" for n in range(40))
    assert f"{before} done before" in capsys.readouterr().err


def test_two_ranks_take_all_lines_and_none_twice(model: Model, here: Path) -> None:
    manifest, out = write(here, *map(drawing, range(5)), "{bad"), here / "out"
    first = run(model, manifest, out, rank=0, world=2)
    second = run(model, manifest, out, rank=1, world=2)
    assert (first.done, second.done, first.failed, second.failed) == (3, 3, 0, 1)
    by_rank = [
        [json.loads(r)["line"] for r in (out / f"results-{rank}.jsonl").read_text().splitlines()] for rank in (0, 1)
    ]
    assert [sorted(lines) for lines in by_rank] == [[1, 3, 5], [2, 4, 6]]
    alone = here / "alone"
    run(model, manifest, alone)
    assert results(out) == results(alone)
    assert run(model, manifest, out) == Summary(done=0, passed=6, failed=1)  # a single process finds what two have done


def test_two_lines_of_one_id_are_refused(here: Path) -> None:
    manifest = write(here, drawing(1), drawing(2), "{bad", drawing(1))
    with pytest.raises(DuplicateIds, match="lines 1 and 4 of .* have the same id 'd1'; ids must be unique"):
        read(manifest)


def test_only_what_the_jobs_need_is_loaded(here: Path) -> None:
    asked = {"id": "a", "task": "ask", "image": "in.png", "prompt": "x"}
    assert "gen" not in needs(plan(write(here, asked), here / "out", Share()))
    assert "gen" in needs(plan(write(here, asked, drawing(1)), here / "out", Share()))


def test_the_command(
    folder: Path, here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest, out = str(write(here, drawing(1), drawing(2), "{bad")), str(here / "out")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["batch", manifest, out, "--model", str(folder), "--json"]) == 0
    told = capsys.readouterr()
    results = os.path.join(out, "results-1.jsonl")
    assert json.loads(told.out) == {"done": 1, "passed": 0, "failed": 0, "results": results}
    assert "1 done, 0 done before, 0 failed" in told.err
    monkeypatch.setenv("RANK", "0")
    assert main(["batch", manifest, out, "--model", str(folder)]) == 1
    assert capsys.readouterr().out.strip() == os.path.join(out, "results-0.jsonl")
    assert (
        main(["batch", manifest, out, "--model", str(here / "none")]) == 1
    )  # nothing is left to do, and no model is opened
    assert "0 done, 2 done before, 1 failed" in capsys.readouterr().err
    for rank, said in (("2", "rank 2 is not in 0..1"), ("x", "RANK is 'x'")):
        monkeypatch.setenv("RANK", rank)
        assert main(["batch", manifest, out]) == 2
        assert said in capsys.readouterr().err
    monkeypatch.setenv("RANK", "0")
    assert main(["batch", str(here / "none.jsonl"), out]) == 2
