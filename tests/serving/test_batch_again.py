"""Offline batches that are run again: what was changed, who else runs, and what a kill or a full disk leaves."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

import unmask
from unmask import writing
from unmask.cli.main import main
from unmask.pipeline.model import Model
from unmask.serving.batch import Share, Summary, fingerprint, hold, json_line, plan, records, run_batch

from ..tiny_model import make

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return unmask.load(folder)  # type: ignore[return-value]


def gap(id_: str, text: str = "a [mask] ball") -> dict[str, Any]:
    return {"id": id_, "task": "infill", "text": text}


def write(here: Path, *lines: dict[str, Any]) -> Path:
    path = here / "in.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def run(model: Model, manifest: Path, out: Path, *, name: str = "") -> tuple[Summary, int]:
    made = plan(manifest, out, Share(), model=name)
    return run_batch(model, made, live=2), made.changed


def written(out: Path) -> list[dict[str, Any]]:
    return list(records(out / "results-0.jsonl"))


def test_half_a_surrogate_pair_stops_nothing(model: Model, tmp_path: Path) -> None:
    manifest = write(tmp_path, gap("a", "\ud800 a [mask]"), gap("\udfff"), gap("c", "no gap \ud800"), gap("d"))
    assert run(model, manifest, tmp_path / "out")[0] == Summary(done=4, passed=0, failed=2)
    assert {r["id"] for r in written(tmp_path / "out")} == {"a", "\udfff", "c", "d"}
    assert run(model, manifest, tmp_path / "out")[0] == Summary(done=0, passed=4, failed=2)
    assert {r["id"]: r["ok"] for r in written(tmp_path / "out")} == {"a": True, "\udfff": False, "c": False, "d": True}


def test_records_are_readable_where_utf8_allows() -> None:
    assert json_line({"a": "é"}) == '{"a": "é"}' and json_line({"a": "\ud800"}) == '{"a": "\\ud800"}'


def test_a_changed_request_runs_again_and_its_last_line_counts(model: Model, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(model, write(tmp_path, gap("a"), gap("b")), out)
    reordered = {"text": "a [mask] ball", "task": "infill", "id": "b"}
    manifest = write(tmp_path, gap("a", "two [mask] boxes"), reordered)
    assert run(model, manifest, out) == (Summary(done=1, passed=1, failed=0), 1)
    assert [r["id"] for r in written(out)][-1] == "a" and len(written(out)) == 3
    assert "boxes" in written(out)[-1]["result"]["text"]
    assert run(model, manifest, out) == (Summary(done=0, passed=2, failed=0), 0)


def test_results_of_earlier_versions_count(model: Model, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "results-0.jsonl").write_text(json.dumps({"id": "a", "line": 1, "task": "infill", "ok": True}) + "\n")
    assert run(model, write(tmp_path, gap("a")), out, name="m") == (Summary(done=0, passed=1, failed=0), 0)


def test_results_of_another_model_are_refused(model: Model, tmp_path: Path) -> None:
    manifest, out = write(tmp_path, gap("a"), gap("b")), tmp_path / "out"
    run(model, manifest, out, name="one")
    run(model, manifest, out, name="one")
    with pytest.raises(
        ValueError, match="2 of 2 results in .*out were made by another model .*one.*two.*; choose another OUT"
    ):
        plan(manifest, out, Share(), model="two")


def test_the_fingerprint_follows_the_files(folder: Path, tmp_path: Path) -> None:
    first = fingerprint([folder], None)
    assert first == fingerprint([folder], None) != fingerprint([folder], "bfloat16") != fingerprint([], None)
    (tmp_path / "config.json").write_text("{}")
    second = fingerprint([tmp_path], None)
    (tmp_path / "config.json").write_text("[]")
    assert fingerprint([tmp_path], None) != second


def test_one_process_a_rank(model: Model, tmp_path: Path) -> None:
    manifest, out = write(tmp_path, gap("a")), tmp_path / "out"
    run(model, manifest, out)
    before = (out / "results-0.jsonl").read_bytes()
    with hold(out / "results-0.jsonl"):
        with pytest.raises(ValueError, match="another process writes .*results-0.jsonl; wait for it"):
            with hold(out / "results-0.jsonl"):
                pass
        with pytest.raises(ValueError, match="another process writes"):
            plan(manifest, out, Share(), lock=lambda results: hold(results).__enter__())
        plan(manifest, out, Share(rank=1, world=2), lock=lambda results: hold(results).__enter__())
    assert (out / "results-0.jsonl").read_bytes() == before
    with hold(out / "results-0.jsonl"):
        pass


def test_the_command_says_so_in_two_lines(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest, out = write(tmp_path, gap("a")), tmp_path / "out"
    words = ["batch", str(manifest), str(out), "--model", str(folder)]
    assert main(words) == 0
    assert written(out)[0]["model"]
    capsys.readouterr()
    with hold(out / "results-0.jsonl"):
        assert main(words) == 2
    assert capsys.readouterr().err.startswith("error: another process writes")
    write(tmp_path, gap("a", "one [mask] cat"))
    assert main(words) == 0
    assert "1 done, 0 done before, 0 failed; 1 had a result of another request" in capsys.readouterr().err
    assert main([*words, "--dtype", "bfloat16"]) == 2
    assert "made by another model" in capsys.readouterr().err


@pytest.mark.parametrize(
    "line", ["[" * 100_000 + "]" * 100_000, "null", "[]", '{"ok": 1}', '{"ok": true, "line": 1, "id": []}', "\0", "{"]
)
def test_damaged_lines_of_results_are_left_out(
    model: Model, folder: Path, tmp_path: Path, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest, out = write(tmp_path, gap("a"), gap("b", "no gap")), tmp_path / "out"
    out.mkdir()
    (out / "results-0.jsonl").write_text(line + "\n" + '{"half": ')
    assert main(["batch", str(manifest), str(out), "--model", str(folder)]) == 1
    assert "line 2: " in capsys.readouterr().err
    assert run(model, manifest, out)[0] == Summary(done=0, passed=2, failed=1)


def test_a_full_disk_keeps_what_was_written(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest, out = write(tmp_path, *(gap(str(n)) for n in range(4))), tmp_path / "out"
    real, calls = os.fsync, iter(range(99))

    def full(handle: int) -> None:
        if next(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            run(model, manifest, out)
    assert len(written(out)) == 2
    assert run(model, manifest, out)[0] == Summary(done=2, passed=2, failed=0)
    assert sorted(r["id"] for r in written(out)) == ["0", "1", "2", "3"]


def test_half_written_pictures_of_own_lines_are_removed(model: Model, tmp_path: Path) -> None:
    line = {"id": "mine", "task": "generate", "prompt": "a dog", "settings": ["schedule.steps=2"]}
    manifest, pictures = write(tmp_path, line), tmp_path / "out" / "pictures"
    pictures.mkdir(parents=True)
    for name in (".mine.png.123.part", ".other.png.123.part"):
        (pictures / name).write_bytes(b"half")
    run(model, manifest, tmp_path / "out")
    assert sorted(p.name for p in pictures.iterdir()) == [".other.png.123.part", "mine.png"]
    assert writing.PART == ".part"
