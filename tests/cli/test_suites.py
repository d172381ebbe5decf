"""``unmask evaluate --suite …``: its options reach the measurement, and every mistake is reported before a model is opened."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from unmask.cli.main import main
from unmask.cli.suites import SUITES, EvalOptions

CAT = {"tag": "single_object", "include": [{"class": "cat", "count": 1}], "prompt": "a photo of a cat"}
BENCH = {"tag": "colors", "include": [{"class": "bench", "count": 1, "color": "red"}], "prompt": "a red bench"}
REF = {"ann_id": 1, "image_id": 9, "split": "train", "sentences": [{"sent_id": 1, "sent": "left cat"}]}
INSTANCES = {
    "images": [{"id": 9, "file_name": "in.png", "width": 60, "height": 40}],
    "annotations": [{"id": 1, "bbox": [1, 2, 30, 20]}],
}
NOTHING = EvalOptions(
    level="grid",
    only=(),
    limit=None,
    prompts=None,
    images=None,
    each=4,
    everything=False,
    settings=(),
    plan=False,
    attempts=1,
    clip=None,
    real=None,
    batch=32,
    seed=0,
    device="cpu",
    out=None,
)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one prompt file of every kind and one picture."""
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (60, 40), "red").save("in.png")
    Path("m.jsonl").write_text("".join(json.dumps(r) + "\n" for r in (CAT, BENCH)))
    Path("bench.jsonl").write_text(json.dumps(BENCH))
    Path("broken.jsonl").write_text(json.dumps(CAT) + "\n{")
    edit = {"id": "in.png", "prompt": "make it blue", "edit_type": "adjust"}
    Path("e.json").write_text(json.dumps({"1": edit, "2": {**edit, "edit_type": "style", "id": "gone.png"}}))
    Path("refs.json").write_text(json.dumps([REF]))
    Path("refs.p").write_bytes(b"\x80\x04.")
    Path("instances.json").write_text(json.dumps(INSTANCES))
    Path("prompts").mkdir()
    Path("prompts/p0.txt").write_text("a dog")
    return tmp_path


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--suite geneval --prompts m.jsonl", "--suite geneval needs --out"),
        ("--suite geneval --out o", "--suite geneval needs --prompts"),
        ("--suite imgedit --prompts e.json --out o", "--suite imgedit needs --images"),
        (
            "--suite geneval --prompts m.jsonl --out o --level grid",
            "--level does not apply to --suite geneval, only to world",
        ),
        ("--prompts m.jsonl", "--prompts does not apply to --suite world"),
        ("--all", "--all does not apply to --suite world, only to geneval"),
        ("--plan", "--plan does not apply to --suite world"),
        (
            "--suite refcoco --prompts refs.json --images . --attempts 2",
            "--attempts does not apply to --suite refcoco",
        ),
        ("-o schedule.steps=2", "-o does not apply to --suite world"),
        ("--suite dpg --prompts prompts --out o --all", "--all does not apply"),
        ("--suite dpg --prompts prompts --out o -n 3", "got 3 images"),
        ("--suite dpg --prompts prompts --out o --only a", "--only does not apply to --suite dpg"),
        ("--suite imgedit --prompts e.json --images . --out o -n 2", "-n does not apply to --suite imgedit"),
        ("--suite refcoco --prompts refs.json --images . --seed 1", "--seed does not apply to --suite refcoco"),
        ("--suite geneval --prompts broken.jsonl --out o", "broken.jsonl, line 2 is not valid JSON"),
        ("--suite geneval --prompts nosuch.jsonl --out o", "nosuch.jsonl"),
        ("--suite geneval --prompts prompts --out o", "directory: prompts"),
        ("--suite geneval --prompts m.jsonl --out o --only shapes", "'shapes'; choose from"),
        ("--suite geneval --prompts bench.jsonl --out o", "add --all"),
        ("--suite geneval --prompts m.jsonl --out o --real prompts", "--real needs --clip"),
        ("--suite geneval --prompts m.jsonl --out o --clip prompts", "prompts has no config.json"),
        ("--suite imgedit --prompts e.json --images . --out o", "1 of 2 images are missing in ., for example gone.png"),
        ("--suite refcoco --prompts refs.p --images .", "is a pickle"),
        ("--suite refcoco --prompts refs.json --images .", "add --only train"),
        ("--suite refcoco --prompts refs.json --images prompts --only train", "for example in.png"),
        ("--batch 0", "0 is not in the range"),
    ],
)
def test_a_mistake_is_two_lines_and_exit_2(
    words: str, said: str, here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unmask.load", lambda *_, **__: pytest.fail("a model was opened"))
    before = set(here.rglob("*"))
    code = main(["evaluate", "mini", *words.split()])
    out, err = capsys.readouterr()
    told = err.splitlines()
    assert code == 2 and not out and len(told) == 2, err
    assert told[0].startswith("error: ") and told[1].startswith("hint: ") and said in err.replace("\nhint: ", "; "), err
    assert set(here.rglob("*")) == before, "something was written"


@pytest.fixture
def reached(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the measurement was asked for: its parts, plan and record."""
    seen: dict[str, Any] = {}

    def run(model: Any, parts: Any, plan: Any, record: Any, **more: Any) -> None:
        seen.update(parts=parts, plan=plan, record=record, **more)

    monkeypatch.setattr("unmask.evaluation.suite.run", run)
    return seen


def test_options_reach_the_measurement(here: Path, reached: dict[str, Any]) -> None:
    own = {"prompts": Path("m.jsonl"), "each": 2, "settings": ("schedule.steps=3",), "batch": 5, "seed": 7, "limit": 1}
    asked = dataclasses.replace(NOTHING, **own, everything=True, only=("colors",), out=here / "o")
    SUITES["geneval"].open(asked)(None)
    part = reached["parts"]["geneval"]
    assert (part.each, part.everything, part.draw.changes) == (2, True, ("schedule.steps=3",))
    assert [p.prompt for p in part.prompts] == ["a red bench"] and reached["record"].folder == here / "o"
    assert (reached["plan"].n, reached["plan"].batch, reached["plan"].seed) == (1, 5, 7)
    assert [p.name for p in (here / "o").iterdir()].count("00001") == 1, "its folder keeps its number in the file"


def test_edits_and_expressions_are_chosen_by_kind_and_number(here: Path, reached: dict[str, Any]) -> None:
    asked = dataclasses.replace(
        NOTHING, prompts=Path("e.json"), images=here, out=here / "o", settings=("schedule.steps=3",)
    )
    SUITES["imgedit"].open(dataclasses.replace(asked, limit=1))(None)  # the second picture is not there
    assert reached["plan"].n == 1 and reached["parts"]["imgedit"].draw.changes == ("schedule.steps=3",)
    SUITES["imgedit"].open(dataclasses.replace(asked, only=("adjust",), out=here / "p"))(None)
    assert [e.key for e in reached["parts"]["imgedit"].edits] == ["1"]
    SUITES["refcoco"].open(dataclasses.replace(asked, prompts=Path("refs.json"), only=("train",), out=None))(None)
    part = reached["parts"]["refcoco"]
    assert [e.key for e in part.expressions] == ["1"] and part.changes == ("schedule.steps=3",)


def test_the_world_takes_level_parts_and_batch(here: Path, reached: dict[str, Any]) -> None:
    SUITES["world"].open(dataclasses.replace(NOTHING, level="free", only=("edit",), limit=3, batch=2))(None)
    assert list(reached["parts"]) == ["edit"] and reached["plan"].level == "free"
    assert (reached["plan"].n, reached["plan"].batch) == (3, 2)
