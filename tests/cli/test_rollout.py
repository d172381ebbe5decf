"""The command rollout: lines with tokens, steps, log-probabilities and rewards, the same as a model's own, and resumable."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import unmask
from unmask.cli.main import main
from unmask.posttraining.prompts import read_prompts
from unmask.posttraining.requests import Options, requests_of
from unmask.posttraining.trajectories import sampled
from unmask.rng import key

torch.set_num_threads(1)
FEW = ("--group", "2", "--steps", "2", "-q", "--threads", "1")


def prompts(folder: Path, *rows: dict[str, Any]) -> Path:
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


CATS = {"prompt": "two cats", "include": [{"class": "cat", "count": 2}]}
DOG = {"prompt": "a dog", "include": [{"class": "dog", "count": 1}]}


def test_each_answer_has_its_tokens_steps_and_log_probabilities(tmp_path: Path) -> None:
    given, out = prompts(tmp_path, CATS, DOG), tmp_path / "out.jsonl"
    assert main(["rollout", str(given), str(out), "--reward", "judge", "--pictures", str(tmp_path / "p"), *FEW]) == 0
    rows = lines(out)
    assert [(r["prompt"], r["sample"]) for r in rows] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    model = unmask.load("mini")
    requests, sampler = requests_of(model.parts, model.presets, read_prompts(given), Options(steps=2))
    for row, prompt in zip(rows[::2], read_prompts(given), strict=True):
        (own,) = sampled(model, [requests.row(prompt)], [key("rollout", 0, prompt.text, 0)], sampler)
        assert row["completion_ids"] == own.sequence.ids[own.answered].tolist() and len(row["steps"]) == 64
        assert row["steps"] == own.steps[own.answered].tolist() and set(row["steps"]) == {1, 2}
        assert row["logprobs"] == pytest.approx(own.scores[own.answered].tolist(), abs=1e-3)
        assert max(row["logprobs"]) <= 0 and Path(row["picture"]).is_file()
        assert row["reward"] == row["rewards"]["judge"] in (0.0, 0.5, 1.0)
    assert rows[0]["completion_ids"] != rows[1]["completion_ids"]
    assert sum(r["advantage"] for r in rows[:2]) == pytest.approx(0, abs=1e-5)


def test_an_interrupted_run_resumes_to_the_same_lines(tmp_path: Path) -> None:
    given, whole, part = prompts(tmp_path, CATS, DOG), tmp_path / "whole.jsonl", tmp_path / "part.jsonl"
    assert main(["rollout", str(given), str(whole), *FEW]) == 0
    kept = whole.read_text().splitlines(keepends=True)
    part.write_text("".join(kept[:2]))
    assert main(["rollout", str(given), str(part), *FEW]) == 0
    ours, wanted = ([{k: v for k, v in r.items() if k != "logprobs"} for r in lines(p)] for p in (part, whole))
    assert ours == wanted


def test_questions_are_answered_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unmask.load("mini").generate("a cat", attempts=1, plan=False, steps=1)[0].image.save(tmp_path / "cat.png")
    given = prompts(tmp_path, {"question": "what is it?", "image": "cat.png", "answer": "cat"})
    out = tmp_path / "out.jsonl"
    assert main(["rollout", str(given), str(out), "--group", "3", "--reward", "answer", "-q", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"prompts": 1, "answers": 3, "passed": 0, "file": str(out)}
    assert {row["reward"] for row in lines(out)} <= {0.0, 2.0} and all(row["answer"] for row in lines(out))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"text": "a cat"}], "line 1: it has no prompt; expected one of 'prompt' and 'question'"),
        ([CATS, {"question": "what?"}], "has prompts to draw and questions; put them in two files"),
        ([{"question": "what?", "image": "no.png"}], "there is no picture"),
    ],
)
def test_files_that_are_refused(
    rows: list[dict[str, Any]], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["rollout", str(prompts(tmp_path, *rows)), str(tmp_path / "out.jsonl"), *FEW]) == 2
    assert message.replace("; ", "\nhint: ") in capsys.readouterr().err.replace("error: prompts.jsonl, ", "")


def test_another_size_of_group_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given, out = prompts(tmp_path, CATS), tmp_path / "out.jsonl"
    out.write_text('{"prompt": 0}\n')
    assert main(["rollout", str(given), str(out), *FEW]) == 2
    assert "has groups of 1 answers, and --group is 2" in capsys.readouterr().err
