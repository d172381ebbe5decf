"""The scripts of bench/ that try a server, in small; and that they would notice what they are there to notice."""

from __future__ import annotations

import importlib
import json
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

BENCH = Path(__file__).parents[2] / "bench"
PICTURE = {"type": "image_generation.completed", "b64_json": "AAAA", "unmask": {}}
HURRIED = """
import sys
from unmask.cli.main import main
from unmask.serving import bodies
from unmask.serving.connections import ConnectionLimits
ConnectionLimits.__init__.__kwdefaults__["head_seconds"] = bodies._PAUSE = 4.0  # instead of 15 and 20
sys.exit(main())
"""
OURS = b'{"error": {"message": "no", "type": "a", "param": null, "code": "b"}}'


@pytest.fixture(autouse=True)
def beside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCH))


def figures(script: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *given: str) -> dict[str, Any]:
    """The lines that a script leaves; it exits otherwise if anything is not as it must be."""
    history = tmp_path / "history.jsonl"
    common = ["--model", str(folder), "--threads", "1", "--record", "--history", str(history)]
    monkeypatch.setattr(sys, "argv", [script, *common, *given])
    runpy.run_path(str(BENCH / script), run_name="__main__")
    return {row["name"]: row for row in map(json.loads, history.read_text().splitlines())}


@pytest.mark.slow
def test_load(model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = "--minutes 0.05 --processes 2 --clients 8 --places 4 --each 1 --steps 2".split()
    found = figures("serving_load.py", model_folder, tmp_path, monkeypatch, *small)
    assert [found[f"serving.load.{name}"]["value"] for name in ("lost", "twice", "wrong")] == [0, 0, 0]
    assert found["serving.load.answers"]["more"]["answers"] > 0 < found["serving.load.memory_growth"]["more"]["warm_mb"]


@pytest.mark.slow
def test_soak(model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = tmp_path / "samples.jsonl"
    few = "--minutes 0.05 --requests 12 --clients 3 --each 1 --steps 2 --every 0.3 --samples"
    found = figures("serving_soak.py", model_folder, tmp_path, monkeypatch, *few.split(), str(samples))
    assert [found[f"serving.soak.{name}"]["value"] for name in ("lost", "twice", "wrong")] == [0, 0, 0]
    assert 6 <= found["serving.soak.answers"]["more"]["answers"] <= 15
    last = json.loads(samples.read_text().splitlines()[-1])
    assert last["wrong"] == 0 < min(last["bytes"], last["files"], last["threads"])


def test_growing_memory_descriptors_and_threads_are_noticed() -> None:
    soak = importlib.import_module("serving_soak")

    def samples(**late: int) -> list[Any]:
        sound = {"bytes": 100, "files": 10, "threads": 5, "requests": 0, "wrong": 0}
        return [soak.Sample(seconds=float(t), **(sound | (late if t > 70 else {}))) for t in range(1, 101)]

    assert soak.growths(samples())[1] == soak.growths(samples(bytes=109, files=12, threads=7))[1] == []
    assert soak.growths(samples(bytes=111))[1] == ["memory changed by 11.0% after the warm-up"]
    assert soak.growths(samples(bytes=85))[1] == ["memory changed by -15.0% after the warm-up"]
    assert soak.growths(samples(files=13, threads=8))[1] == ["files grew from 10 to 13", "threads grew from 5 to 8"]


@pytest.mark.slow
def test_faults(model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = "--kills 21 --deaths 3 --stops 1 --steps 2".split()
    found = figures("serving_faults.py", model_folder, tmp_path, monkeypatch, *small)
    assert found["serving.faults.places_left"]["value"] == found["serving.faults.wrong_after"]["value"] == 0
    assert found["serving.faults.clients_left"]["more"]["killed"] == 2
    assert found["serving.faults.engine_deaths"]["more"]["restarts"] >= 1
    assert found["serving.faults.drained"]["more"]["refused"] == 1


@pytest.mark.slow
def test_attacks(warmed: None, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.import_module("served").Hosted, "program", ("-c", HURRIED))
    small = "--connections 12 --bodies 8 --body-mib 2 --pictures 48 --side 300 --at-once 8".split()
    found = figures("serving_attacks.py", model_folder, tmp_path, monkeypatch, *small)
    assert found["serving.attacks.connections"]["more"]["left"] == 0
    assert (
        found["serving.attacks.bodies"]["more"]["got_400"] >= 2 <= found["serving.attacks.bodies"]["more"]["got_left"]
    )
    pictures = found["serving.attacks.pictures"]["more"]
    assert pictures["formats"] == 12 and pictures["status_200"] + pictures["status_400"] == 48


@pytest.mark.slow
def test_company(warmed: None, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = "--answers 24 --servers 2 --clients 4 --each 1 --steps 2".split()
    found = figures("serving_company.py", model_folder, tmp_path, monkeypatch, *small)
    assert found["serving.company.answers"]["value"] == 24 and found["serving.company.wrong"]["value"] == 0
    assert found["serving.company.answers"]["more"]["left"] > 0


@pytest.mark.slow
def test_fuzz(warmed: None, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = figures("serving_fuzz.py", model_folder, tmp_path, monkeypatch, "--requests", "60", "--steps", "2")
    assert found["serving.fuzz.requests"]["value"] == 60
    assert found["serving.fuzz.failures"]["value"] == found["serving.fuzz.wrong_after"]["value"] == 0
    assert found["serving.fuzz.requests"]["more"]["pictures"] > 0 < found["serving.fuzz.requests"]["more"]["status_400"]


@pytest.mark.slow
def test_throughput(warmed: None, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = "--repeats 1 --warm 0 --rates 4 --seconds 0.5".split()
    found = figures("serving_throughput.py", model_folder, tmp_path, monkeypatch, *small)
    groups = {f"serving.together.{name}" for name in ("texts", "words", "drawings", "mixed")}
    assert groups | {"serving.rate.4", "serving.start.first_frame"} == found.keys()
    assert min(row["value"] for row in found.values()) > 0
    assert found["serving.together.mixed"]["more"].keys() == {"together_s", "one_by_one_s", "per_s"}


@pytest.mark.slow
def test_fairness(warmed: None, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = figures("serving_fairness.py", model_folder, tmp_path, monkeypatch, "--repeats", "10")
    assert 1 <= found["serving.fairness.forwards"]["value"] <= 10
    assert found["serving.fairness.ratio"]["more"]["alone_s"] > 0


@pytest.mark.slow
def test_killed(warmed: None, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = "--only training,processes,batch,server --training 1 --processes 1 --batch 1 --server 1 --folder"
    small = [*few.split(), str(tmp_path / "kills")]
    found = figures("killed.py", model_folder, tmp_path, monkeypatch, *small)
    assert found["killed.training"]["value"] == 1 and found["killed.training"]["more"]["lost_steps"] <= 4
    assert found["killed.processes"]["more"]["processes"] == 2
    assert {row["more"]["failures"] for row in found.values()} == {0} and len(found) == 4


def test_an_interrupted_kill_script_continues_with_its_counts(tmp_path: Path) -> None:
    tally = importlib.import_module("killed").Tally
    assert tally.read(tmp_path).kills == 0
    tally(tmp_path / "kills.json", kills=3, saving=1, lost=2, bad=["one"]).write()
    again = tally.read(tmp_path)
    assert (again.kills, again.saving, again.lost, again.bad) == (3, 1, 2, ["one"])


def test_a_kill_of_several_processes_takes_all_the_launcher_or_one(monkeypatch: pytest.MonkeyPatch) -> None:
    killed = importlib.import_module("killed")
    monkeypatch.setattr(killed, "members", lambda folder: [7, 8, 9])
    launcher = SimpleNamespace(pid=7)
    taken = [killed.victims(Path("run"), number)(launcher) for number in range(3)]
    assert taken == [[7, 8, 9], [7], [8]]


@pytest.mark.parametrize("script", ["load", "soak", "faults", "attacks", "company", "fuzz", "throughput", "fairness"])
def test_help_has_examples(script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["x", "--help"])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(BENCH / f"serving_{script}.py"), run_name="__main__")
    told = capsys.readouterr().out
    assert stopped.value.code == 0 and f"python bench/serving_{script}.py --" in told and "--record" in told


def test_a_stream_is_whole_only_with_one_picture_and_one_end() -> None:
    clients = importlib.import_module("clients")
    assert clients.digest(clients._whole([PICTURE, None])) == clients.digest({"data": [PICTURE]})
    error = {"error": {"message": "no", "code": "engine_stopped"}}
    for broken in ([], [PICTURE], [None], [PICTURE, PICTURE, None], [PICTURE, None, None], [PICTURE, error, None]):
        with pytest.raises(ValueError):
            clients._whole(broken)


def test_digests_tell_answers_apart() -> None:
    digest = importlib.import_module("clients").digest
    answers = [
        {"data": [{"b64_json": "AAAA"}]},
        {"data": [{"b64_json": "AAAB"}]},
        {"data": [{"b64_json": "AAAA"}] * 2},
        {"text": "a"},
        {"boxes": [{"box": [0, 0, 1, 1]}]},
        {"choices": [{"message": {"content": "a", "unmask": {"images": []}}}]},
    ]
    assert len({digest(answer) for answer in answers}) == len(answers)
    assert digest({**answers[3], "seconds": 1, "settings": {}}) == digest(answers[3])


def test_lost_and_twice_are_noticed() -> None:
    load, clients = importlib.import_module("serving_load"), importlib.import_module("clients")
    right = clients.Outcome(name="load0-0-0", kind="ask", status=200, seconds=1.0, answer="a", right=True)
    memory = [(float(t), 100 + (10 if t > 70 else 0)) for t in range(100)]
    log = '{"event": "request", "id": "load0-0-0"}\n'
    assert "memory grew by 10.0%" in " ".join(load.figures([right], memory, log)[1])
    flat = [(t, 100) for t, _ in memory]
    assert load.figures([right], flat, log)[1] == []
    lost = clients.Outcome(name="load0-0-1", kind="ask", status=0, seconds=1.0)
    wrong = clients.Outcome(name="load0-0-2", kind="ask", status=200, seconds=1.0, answer="b")
    busy = clients.Outcome(name="load0-0-3", kind="ask", status=429, seconds=1.0)
    lines, bad = load.figures([right, lost, wrong, busy], flat, log * 2)
    assert {line.name.rpartition(".")[2]: line.value for line in lines[:3]} == {"lost": 1, "twice": 1, "wrong": 1}
    assert len(bad) == 5 and load.figures([busy], flat, log)[1] == ["nothing was answered"]


@pytest.mark.parametrize(
    ("status", "body", "wrong"),
    [
        (200, b"{}", ""),
        (400, OURS, ""),
        (429, OURS, ""),
        (503, OURS, ""),
        (400, b"Traceback (most recent call last)", "a traceback"),
        (500, OURS, "status 500"),
        (422, OURS, "an error that is not OpenAI's"),
        (400, b'{"detail": "no"}', "an error that is not OpenAI's"),
        (200, b'data: {"error": {"type": "server_error"}}', "a server's error in a stream"),
        (0, b"", "no answer"),
    ],
)
def test_what_is_wrong_with_an_answer(status: int, body: bytes, wrong: str) -> None:
    fuzz = importlib.import_module("serving_fuzz")
    assert fuzz.judged(fuzz.Raw(path="/v1/infill"), status, body) == wrong
