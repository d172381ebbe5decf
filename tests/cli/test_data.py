"""The commands data check and data encode."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from unmask.cli.main import main

from ..data.own import LLAVA, lines, png, save


@pytest.fixture
def pets(here: Path) -> Path:
    for i in range(20):
        save(here / "pets" / f"p{i}.png", (i * 9, 0, 0)), (here / "pets" / f"p{i}.txt").write_text(f"pet {i}")
    return here / "pets"


def call(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str, str]:
    code = main([str(w) for w in words])
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return code, out, err


def test_check_says_what_is_there(pets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(pets / "talk.png"), (pets / "talk.json").write_text(json.dumps(LLAVA))
    code, out, err = call(capsys, "data", "check", "pets", "--sheet", "sheet.png")
    assert code == 0 and err == "sheet: sheet.png\n" and Image.open("sheet.png").width == 1200
    assert "caption       20" in out and "chat           1" in out and "broken: 0 of 21 rows (0.0%)" in out
    assert json.loads(call(capsys, "data", "check", "pets", "--json")[1])["tasks"] == {"caption": 20, "chat": 1}
    assert json.loads(call(capsys, "data", "check", "pets", "--json", "--limit", "5", "--workers", "1")[1])["rows"] == 5


def test_check_fails_with_more_broken_rows_than_allowed(pets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (pets / "p3.png").write_bytes(png()[:60])
    assert call(capsys, "data", "check", "pets")[0] == 0
    (pets / "p4.txt").unlink()
    code, out, err = call(capsys, "data", "check", "pets")
    assert code == 1 and err == "2 of 20 rows are broken (10.0%), more than 5.0%\n"
    assert "  p3: p3.png cannot be decoded" in out and "  p4: there is no p4.txt or p4.json beside the picture" in out
    assert call(capsys, "data", "check", "pets", "--allow", "0.1")[0] == 0


def test_options_reach_the_reader(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(here / "elsewhere" / "a.png")
    row = {"image": "a.png", "phrase": "it", "box": [0, 0, 1000, 1000]}
    lines(here / "r.jsonl", row)
    for words, share in (
        ((), 1),
        (("--pictures", "elsewhere"), 1),
        (("--pictures", "elsewhere", "--boxes", "thousandths"), 0),
    ):
        told = json.loads(call(capsys, "data", "check", "r.jsonl", "--json", *words)[1])
        assert told["broken"]["share"] == share
    code, out, _ = call(
        capsys, "data", "check", "r.jsonl", "--pictures", "elsewhere", "--boxes", "thousandths", "--most-text", "1"
    )
    assert code == 1 and "the text has 2 characters, more than 1" in out


def test_several_sets_are_one(pets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines(pets.parent / "r.jsonl", {"image": "pets/p0.png", "text": "x"})
    assert json.loads(call(capsys, "data", "check", "pets", "r.jsonl=3", "--json")[1])["rows"] == 21


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("check", "nothing"), "there is no file or folder nothing"),
        (("check", "in.png"), "in.png is not one of the known containers"),
        (("check", "owner/name"), "allow it with --download"),
        (("check",), "Missing argument"),
        (("check", "pets", "pets"), "two data sets are called 'pets'"),
        (("check", "pets=x"), "not a number"),
        (("check", "pets", "--pictures", "no"), "there is no folder no"),
        (("encode", "pets", "out", "--side", "77"), "give a multiple of 16"),
        (("encode", "pets", "in.png"), "is a file"),
        (("encode", "nothing", "out"), "there is no file or folder nothing"),
    ],
)
def test_mistakes(pets: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], said: str) -> None:
    code, _, err = call(capsys, "data", *words)
    assert code == 2 and said in err and err.count("\n") == 2 and not Path("out").exists()


def test_encode_writes_shards_and_resumes(pets: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(pets / "talk.png", "green"), (pets / "talk.json").write_text(json.dumps(LLAVA))
    words = ("data", "encode", "pets", "out", "--model", folder)
    code, out, err = call(capsys, *words)
    assert (code, out, err) == (0, "out\n", "codes: 20 encoded, 0 encoded before, 0 pictures cannot be read\n")
    told = json.loads(call(capsys, *words, "--json", "--features", "--quiet")[1])
    assert told["codes"] == {"new": 0, "known": 20, "broken": []} and told["features"]["new"] == 21
    assert sorted(p.name.partition("-")[0] for p in Path("out").iterdir()) == [
        "codes",
        "codes.json",
        "features",
        "features.json",
    ]
    code, _, err = call(capsys, *words, "--crop")
    assert code == 2 and "out was encoded differently (way to make pictures square" in err
    code, _, err = call(capsys, *words[:-2])  # mini
    assert code == 2 and "hash of the weights" in err


def test_every_process_encodes_its_share(
    pets: Path, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, count in (("0", 10), ("1", 10)):
        monkeypatch.setenv("RANK", rank)
        assert f"codes: {count} encoded" in call(capsys, "data", "encode", "pets", "out", "--model", folder)[2]
    monkeypatch.setenv("WORLD_SIZE", "1"), monkeypatch.setenv("RANK", "0")
    assert "codes: 0 encoded, 20 encoded before" in call(capsys, "data", "encode", "pets", "out", "--model", folder)[2]


def test_encode_stops_with_too_many_broken_pictures(
    pets: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("p3", "p4"):
        (pets / f"{name}.png").write_bytes(png()[:60])
    code, _, err = call(capsys, "data", "encode", "pets", "out", "--model", folder)
    assert code == 2 and "2 of 20 rows are broken (10.0%, at most 5.0% may be): p3.png cannot be decoded" in err
    assert call(capsys, "data", "encode", "pets", "out", "--model", folder, "--allow", "0.2")[0] == 0
