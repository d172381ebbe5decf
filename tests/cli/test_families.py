"""Every family at the command line: inspect, weights in fewer bits and on the CPU, evaluate, batch, bench samplers. A task that a family
does not have is a named error, before any weights are read.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from unmask.cli.main import main

from ..families import FAMILIES, Family

torch.set_num_threads(1)
TASKS = ("generate", "plan", "reflect", "edit", "edit-plan", "edit-reflect", "infill", "infill-text", "ask", "ground")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Family:
    return FAMILIES[request.param]


@pytest.fixture(scope="module")
def folder(family: Family, tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(family.make(tmp_path_factory.mktemp("family") / "model"))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    Image.new("RGB", (40, 24), "red").save(tmp_path / "a.png")
    Image.new("L", (40, 24), 255).save(tmp_path / "mask.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    code = main(list(words))
    out, err = capsys.readouterr()
    assert code == 0, (words, err)
    return out


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The error of a call that must fail as a user's error, in two lines."""
    assert main(list(words)) == 2, words
    out, err = capsys.readouterr()
    assert not out and err.splitlines()[-2].startswith("error: ") and err.splitlines()[-1].startswith("hint: "), err
    return err


def question(family: Family) -> list[str]:
    return [*(["a.png"] if family.reads else []), "is it blue?", "--max-tokens", "4", "--length", "4", *family.quick]


@pytest.mark.parametrize("task", TASKS)
def test_inspect_knows_the_tasks(task: str, family: Family, folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    if task in family.tasks:
        found = json.loads(run(capsys, "inspect", folder, "--task", task, "--json"))
        assert found["bytes"] > 0 and {part["part"] for part in found["parts"]} & {"und", "und.joint", "und.upper"}
    else:
        assert "cannot" in refused(capsys, "inspect", folder, "--task", task)


def test_inspect_counts_a_quantised_and_an_offloaded_branch(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("inspect", folder, "--task", "ask", "--device", "cuda", "--json")
    plain = json.loads(run(capsys, *words))
    small = json.loads(run(capsys, *words, "--quantise", "und=int8"))
    away = json.loads(run(capsys, *words, "--offload", "und"))
    assert small["bytes"] < plain["bytes"] == away["bytes"]
    assert {p["device"] for p in away["parts"]} == {"cpu", "cuda"}


@pytest.mark.parametrize(
    "options",
    [
        ("--quantise", "und=int8"),
        ("--offload", "und"),
        ("--dtype", "bfloat16"),
        ("--dtype", "bfloat16", "--quantise", "und=int8", "--offload", "und"),
        ("--speed", "fast"),
        ("--sampler", "eb_sampler"),
    ],
    ids=" ".join,
)
def test_questions_are_answered_however_the_weights_are_held(
    options: tuple[str, ...], family: Family, folder: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("ask", *question(family), "--model", folder, "--json")
    plain, other = (json.loads(run(capsys, *words, *more)) for more in ((), options))
    if options == ("--offload", "und"):
        assert other["text"] == plain["text"]
    assert other["finish_reason"] in ("stop", "length")


@pytest.mark.parametrize("option", [("--quantise", "gen=int8"), ("--offload", "gen")], ids=" ".join)
def test_a_branch_that_is_not_there_is_refused(
    option: tuple[str, str], family: Family, folder: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (["ask", *question(family), "--model", folder], ["inspect", folder, "--task", "ask"]):
        assert "has no branch gen" in refused(capsys, *words, *option)


def test_a_question_with_and_without_a_picture(
    family: Family, folder: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["is it blue?", "--max-tokens", "4", "--length", "4", "--model", folder, *family.quick]
    for given, possible in ((words, family.alone), (["a.png", *words], family.reads)):
        assert run(capsys, "ask", *given) if possible else refused(capsys, "ask", *given)


JOBS: dict[str, dict[str, object]] = {
    "generate": {"task": "generate", "prompt": "a cat", "settings": ["schedule.steps=2"]},
    "reflect": {"task": "generate", "prompt": "a cat", "settings": ["schedule.steps=2"], "reflect": 2},
    "plan": {"task": "generate", "prompt": "a cat", "plan": True},
    "edit": {"task": "edit", "image": "a.png", "prompt": "make it red", "settings": ["schedule.steps=2"]},
    "infill": {"task": "infill", "image": "a.png", "mask": "mask.png", "settings": ["schedule.steps=2"]},
    "infill-text": {"task": "infill", "text": "a [mask] b"},
    "ground": {"task": "ground", "image": "a.png", "phrases": ["the cat"]},
}


def test_a_batch_does_what_the_family_can(
    family: Family, folder: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = list(family.quick[1::2])
    answers = {"task": "ask", "prompt": "is it?", "max_tokens": 4, "settings": settings}
    jobs = {**JOBS, "ask alone": answers, "ask a picture": {**answers, "image": "a.png"}}
    lines = [json.dumps({"id": name, **job}) + "\n" for name, job in jobs.items()]
    (here / "jobs.jsonl").write_text("".join(lines))
    main(["batch", "jobs.jsonl", "out", "--model", folder])
    capsys.readouterr()
    rows = [json.loads(line) for line in (here / "out" / "results-0.jsonl").read_text().splitlines()]
    can = {*family.tasks, *(["ask alone"] if family.alone else []), *(["ask a picture"] if family.reads else [])}
    assert {row["id"] for row in rows if row["ok"]} == can - {"ask"}
    errors = {row["id"]: row["error"] for row in rows if not row["ok"]}
    assert not any(error.startswith(("KeyError", "AttributeError", "TypeError")) for error in errors.values()), errors


def test_a_model_is_measured_on_what_it_can_do(
    family: Family, folder: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(capsys, "evaluate", folder, "--limit", "1")
    if not family.parts:
        assert "is a text model, and the suites need pictures" in said
        return
    assert f"hint: --only {family.parts} measures what it can do" in said
    assert "questions" in run(capsys, "evaluate", folder, "--only", "questions", "--limit", "1")


@pytest.mark.parametrize("words", [("generate", "a cat"), ("edit", "a.png", "make it red")], ids=lambda w: w[0])
@pytest.mark.parametrize("more", [("--attempts", "2"), ("--plan",)], ids=" ".join)
def test_layouts_and_critiques_are_refused_at_once(
    words: tuple[str, ...],
    more: tuple[str, ...],
    family: Family,
    folder: str,
    here: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """None of these families judges its pictures or makes layouts; nothing is drawn before that is said. MMaDA describes a picture."""
    if words[0] == "generate" and more == ("--plan",) and "plan" in family.tasks:
        made = run(capsys, *words, *more, "--model", folder, "-o", "schedule.steps=2", "--out", "a.png", "--json")
        (drawn,) = json.loads(made)
        assert drawn["plan"]["reason"] and not drawn["plan"]["things"]
        return
    assert "cannot" in refused(capsys, *words, *more, "--model", folder, "-o", "schedule.steps=2")
    assert not list(here.glob("apple*.png")) and sorted(p.name for p in here.iterdir()) == ["a.png", "mask.png"]


def test_the_demo_needs_every_task(folder: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "cannot" in refused(capsys, "demo", "--model", folder) and not (here / "demo").exists()


def test_samplers_are_compared(family: Family, folder: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--prompt", "is it?", "--task", "ask", "--length", "8", "--json", *family.quick]
    words += ["--image", "a.png"] if family.reads and not family.alone else []
    axes = ("--orders", "own,random", "--schedules", "own", "--caches", "own,none,block", "--thresholds", "none,0.9")
    found = json.loads(run(capsys, "bench", "samplers", "--model", folder, *words, *axes))["samplers"]
    assert len(found) == 13 and not [row for row in found if "refused" in row]
    assert found[0]["agreement"] == found[0]["equal"] == 1 and all(row["forwards"] >= 1 for row in found)
