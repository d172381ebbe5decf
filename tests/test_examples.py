"""Every example of README, docs and help is one that ``mini`` gets right: run as typed, at three seeds, judged independently."""

from __future__ import annotations

import ast
import io
import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from unmask.cli.main import main
from unmask.evaluation.judge import Seen, load_judge
from unmask.evaluation.scoring import iou
from unmask.pipeline.model import Model

from .pages import ROOT, commands, python
from .truth import content, edited, pointed, truth, wanted

pytestmark = [pytest.mark.weights, pytest.mark.slow]

OFFSETS = (0, 1, 2)  # added to the seed of an example
PAGES = [ROOT / "README.md", *sorted(p for p in (ROOT / "docs").glob("*.md") if p.name != "log.md")]
HELPS = sorted((ROOT / "tests" / "golden" / "help").glob("*.txt"))
FIRST = ROOT / "tests" / "golden" / "help" / "unmask.txt"  # its commands make the picture that the other helps use
TASKS = ("generate", "edit", "ask", "ground", "infill", "chat")
DRAW_AGAIN = "describe, then draw"


def help_commands(page: Path) -> list[str]:
    return [line.strip() for line in page.read_text().splitlines() if re.match(r"    (unmask|printf)\b", line)]


def runs(lines: list[str]) -> list[list[str]]:
    """The commands that run ``mini``, as words; the input of a chat comes first."""
    found = []
    for line in lines:
        said, _, call = line.rpartition(" | ")
        words = shlex.split(call)
        if words[1] not in TASKS or words[-1] == "--help" or {"--model", "--lora", "*.png"} & set(words):
            continue
        if words[1] == "chat" and not said:
            continue
        found.append([*([shlex.split(said)[1].replace("\\n", "\n")] if said else [""]), *words[1:]])
    return found


@dataclass
class Reader:
    """Runs commands in the current folder with another seed, and judges what they made."""

    capsys: pytest.CaptureFixture[str]
    monkeypatch: pytest.MonkeyPatch
    offset: int

    def follow(self, words: list[str]) -> list[str]:
        """What is wrong with the result of a command; [] if it is right."""
        said, task, *given = words
        seed = int(given[given.index("--seed") + 1]) if "--seed" in given else 0
        self.monkeypatch.setattr("sys.stdin", io.StringIO(said))
        code = main(
            [
                task,
                *given,
                "--threads",
                "1",
                "--seed",
                str(seed + self.offset),
                *([] if "--json" in given else ["--json"]),
            ]
        )
        out, err = self.capsys.readouterr()
        assert not code, err
        wrong = ["it warns"] if "warning:" in err else []
        made = [json.loads(line) for line in out.splitlines()] if task == "chat" else json.loads(out)
        judge = {"chat": lambda: self.chat(said, made), "infill": lambda: self.infill(given, made)}
        check = judge.get(task) or (lambda: getattr(self, task)(given, made))
        return wrong + check()

    def generate(self, given: list[str], made: list[dict]) -> list[str]:
        return [f"drawn: {objects(s)}" for s in map(look, files(made)) if not wanted(given[0]).shown(s)]

    def edit(self, given: list[str], made: list[dict]) -> list[str]:
        right = edited(given[1], look(given[0]))
        return [f"edited: {content(s)}, right: {right}" for s in map(look, files(made)) if content(s) != right]

    def ask(self, given: list[str], made: dict) -> list[str]:
        if given[-1].endswith(".json"):
            return []  # its questions are in the file
        said, right = str(made["text"]).strip('"'), truth(given[1], look(given[0]))
        return [] if said == right else [f"answered: {said}, right: {right}"]

    def ground(self, given: list[str], made: dict) -> list[str]:
        seen, side = look(given[0]), made["width"]
        pairs = [(one["phrase"], tuple(v / side for v in one["box"])) for one in made["boxes"]]
        return [f"found {p} at {box}" for p, box in pairs if iou(box, pointed(p, seen).box) < 0.8]

    def infill(self, given: list[str], made: dict | list[dict]) -> list[str]:
        if isinstance(made, dict):
            wanted(made["text"])
            return []
        prompt = given[given.index("--prompt") + 1] if "--prompt" in given else ""
        return self.generate([prompt], made) if prompt else []

    def chat(self, said: str, turns: list[dict]) -> list[str]:
        wrong, shown = [], None
        for asked, turn in zip(said.split("\n"), turns, strict=False):
            after = look(turn["files"][-1]) if turn["files"] else None
            if asked.startswith("draw "):
                right = after is not None and wanted(asked.removeprefix("draw ")).shown(after)
            elif asked == DRAW_AGAIN:
                right = after is not None
            elif after is None:
                right = shown is not None and turn["parts"] == [truth(asked, shown)]
            else:
                right = shown is not None and content(after) == edited(asked, shown)
            wrong += [] if right else [f"{asked}: {turn['parts']}, {after and objects(after)}"]
            shown = after or shown
        return wrong


def files(made: list[dict]) -> list[str]:
    return [one["file"] for one in made]


def look(path: str) -> Seen:
    return load_judge().look([np.asarray(Image.open(path).convert("RGB"))])[0]


def objects(seen: Seen) -> list[str]:
    return [f"{one.colour} {one.name}".strip() for one in seen.objects]


def faults(lines: list[str], reader: Reader) -> Iterator[str]:
    for words in runs(lines):
        yield from (f"{shlex.join(words[1:])}, seed + {reader.offset}: {fault}" for fault in reader.follow(words))


@pytest.fixture(params=OFFSETS)
def reader(
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Reader:
    monkeypatch.chdir(tmp_path)
    painted = Image.new("L", (128, 128))
    painted.paste(255, (0, 0, 64, 64))
    painted.save("painted.png")
    return Reader(capsys=capsys, monkeypatch=monkeypatch, offset=request.param)


@pytest.mark.parametrize("page", [p for p in PAGES if runs(commands(p.read_text()))], ids=lambda p: p.stem)
def test_the_examples_of_a_page(page: Path, reader: Reader) -> None:
    for name, block in re.findall(r"`(\w+\.json)`:\n+```json\n(.*?)```", page.read_text(), re.S):
        Path(name).write_text(block)
    assert [*faults(commands(page.read_text()), reader)] == []


@pytest.fixture(scope="module")
def begun() -> dict[int, dict[str, bytes]]:
    """What the examples of the first help leave, by the offset of their seed: other helps use it."""
    return {}


@pytest.mark.parametrize("page", [p for p in HELPS if runs(help_commands(p))], ids=lambda p: p.stem)
def test_the_examples_of_a_help(page: Path, reader: Reader, begun: dict[int, dict[str, bytes]]) -> None:
    if reader.offset not in begun:
        assert [*faults(help_commands(FIRST), reader)] == []
        begun[reader.offset] = {path.name: path.read_bytes() for path in Path().iterdir()}
    for name, kept in begun[reader.offset].items():
        Path(name).write_bytes(kept)
    if page != FIRST:
        assert [*faults(help_commands(page), reader)] == []


def calls(page: Path) -> dict[str, dict[str, object]]:
    """The prompts of the calls of ``generate`` in the Python blocks and request bodies of a page, with seed, plan and attempts."""
    text = page.read_text()
    found: dict[str, dict[str, object]] = {}
    for node in (n for block in python(text) for n in ast.walk(ast.parse(block)) if isinstance(n, ast.Call)):
        if not isinstance(node.func, ast.Attribute) or node.func.attr != "generate":
            continue
        given = {
            k.arg: ast.literal_eval(k.value) for k in node.keywords if k.arg not in ("conditions", "live", "stream")
        }
        prompt = given.pop("prompt", None) or ast.literal_eval(node.args[0])
        found[prompt] = {**given, **given.get("extra_body", {})}
    for body in re.findall(r"-d '(\{\"prompt.*?\})'", text):
        found[json.loads(body)["prompt"]] = json.loads(body)
    return {p: {k: v for k, v in g.items() if k in ("seed", "plan", "attempts", "steps")} for p, g in found.items()}


@pytest.mark.parametrize(
    ("prompt", "given"), [pytest.param(*one, id=f"{p.stem}: {one[0]}") for p in PAGES for one in calls(p).items()]
)
def test_the_calls_of_a_page(prompt: str, given: dict[str, object], model: Model) -> None:
    assert drawn_right(model, prompt, **given) == [True] * len(OFFSETS)


def recommended() -> list[str]:
    (named,) = re.findall(r"^Prompts that work well: (.*?)\.$", (ROOT / "README.md").read_text(), re.M | re.S)
    return re.findall(r"`(\w[^`]*)`", named)


@pytest.mark.parametrize("prompt", recommended())
def test_the_prompts_that_work_well(prompt: str, model: Model) -> None:
    assert drawn_right(model, prompt) == [True] * len(OFFSETS)


def drawn_right(model: Model, prompt: str, *, seed: int = 0, **given: object) -> list[bool]:
    drawn: Any = model.generate(prompt, n=len(OFFSETS), seed=seed, **given)  # type: ignore[arg-type]
    assert [one.seed for one in drawn] == [seed + offset for offset in OFFSETS]
    return [wanted(prompt).shown(seen) for seen in load_judge().look([np.asarray(one.image) for one in drawn])]


def test_there_are_examples() -> None:
    """What finds them finds them: pages, helps, calls and prompts."""
    pages = sum(len(runs(commands(p.read_text()))) for p in PAGES)
    assert pages >= 15 and sum(len(runs(help_commands(p))) for p in HELPS) >= 20
    assert sum(len(calls(p)) for p in PAGES) >= 6 and len(recommended()) >= 5
