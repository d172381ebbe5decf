"""Reading tokenizer.json: dropout, truncation and padding are switched off, and files whose patterns may never finish are refused."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from unmask.files import FileRefused
from unmask.tokens.text import Text, TokenizerError
from unmask.tokens.tokenizer_file import _refuse_slow

MINI = json.loads((Path(str(files("unmask"))) / "assets" / "mini" / "tokenizer.json").read_text(encoding="utf-8"))
PROMPT = "a red ball on the left of two green boxes, and a house"
PATTERNS = (  # of GPT-2, GPT-4, Llama 3 and Qwen 2
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\s*[\r\n/]+|\s+",
)


def written(folder: Path, change: Callable[[Any], object]) -> Path:
    raw = json.loads(json.dumps(MINI))
    change(raw)
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(raw))
    return path


def test_dropout_truncation_and_padding_are_switched_off(tmp_path: Path) -> None:
    def spoil(raw: Any) -> None:
        raw["model"]["dropout"] = 0.9
        raw["truncation"] = {"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 0}
        raw["padding"] = {
            "strategy": {"Fixed": 1000},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "!",
        }

    wanted = Text.load(written(tmp_path, lambda raw: None)).encode(PROMPT)
    text = Text.load(written(tmp_path, spoil))
    assert len(wanted) > 5
    assert all(text.encode(PROMPT) == wanted for _ in range(20))


def _id_beyond(raw: Any) -> None:
    raw["model"]["vocab"][max(raw["model"]["vocab"], key=raw["model"]["vocab"].get)] = 5000


def _one_id_twice(raw: Any) -> None:
    first, second = list(raw["model"]["vocab"])[:2]
    raw["model"]["vocab"][first] = raw["model"]["vocab"][second]


def _replace(pattern: dict[str, str], content: str, times: int) -> Callable[[Any], None]:
    step = {"type": "Replace", "pattern": pattern, "content": content}

    def spoil(raw: Any) -> None:
        raw["normalizer"] = {"type": "Sequence", "normalizers": [step] * times}

    return spoil


def _decoder(raw: Any) -> None:
    raw["decoder"] = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 10_000}


def _split(pattern: str) -> Callable[[Any], None]:
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    inside = {"type": "Sequence", "pretokenizers": [split, MINI["pre_tokenizer"]]}
    return lambda raw: raw.update(pre_tokenizer=inside)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_id_beyond, "has the id 5000, wanted ids below the number of tokens"),
        (_one_id_twice, "have one id, wanted different ids"),
        (_replace({"String": "e"}, "e" * 64, 6), "times longer, wanted at most 8"),
        (_replace({"Regex": ""}, "ab", 4), "times longer, wanted at most 8"),
        (_decoder, "times longer, wanted at most 8"),
        (_split("(a+)+$"), "repeats a repetition and may take for ever"),
        (_split("(?:(a|b*))*x"), "repeats a repetition and may take for ever"),
        (_split(".*.*.*.*.*x"), "more than 4 repetitions in a row"),
        (_split("a" * 5000), "5,000 characters, wanted at most 4,096"),
        (lambda raw: raw.update(model={"type": "BPE", "vocab": {}, "merges": []}, added_tokens=[]), "vocabulary is empty"),
        (lambda raw: raw["model"].update(merges=[["no", "such"]]), "cannot read the tokenizer"),
        (lambda raw: raw.update(model=None), "cannot read the tokenizer"),
    ],
)  # fmt: skip
def test_what_is_refused(tmp_path: Path, spoil: Callable[[Any], object], said: str) -> None:
    path = written(tmp_path, spoil)
    with pytest.raises(TokenizerError, match=said) as error:
        Text.load(path)
    assert str(path) in str(error.value) and "; " in str(error.value)


def test_special_files_and_deep_json(tmp_path: Path) -> None:
    fifo, zero, deep = (tmp_path / name for name in ("fifo", "zero", "deep"))
    os.mkfifo(fifo)
    zero.symlink_to("/dev/zero")
    deep.write_text("[" * 50_000 + "]" * 50_000)
    for path in (fifo, zero, deep, tmp_path / "absent", tmp_path):
        with pytest.raises(TokenizerError, match="cannot read the tokenizer"):
            Text.load(path)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_of_released_tokenizers_pass(tmp_path: Path, pattern: str) -> None:
    _refuse_slow(pattern)
    assert Text.load(written(tmp_path, _split(pattern))).encode(PROMPT)


@pytest.mark.parametrize("pattern", ["(a*)+", "((a+)b)*", "(?:a{2,})*", r"(\w+\s?)*", "([ab]+)+?"])
def test_patterns_that_may_not_end(pattern: str) -> None:
    with pytest.raises(FileRefused):
        _refuse_slow(pattern)


def test_a_normalizer_that_marks_spaces_passes(tmp_path: Path) -> None:
    Text.load(written(tmp_path, _replace({"String": " "}, "▁", 1)))
