"""The tokenizer files of Qwen's models: what is damaged in them is named, and nothing waits or fills the memory."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from unmask.tokens.qwen import read_qwen
from unmask.tokens.tokenizer_file import TokenizerError

from ..tiny_dream import tokenizer, write_tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_tokenizer(tmp_path)
    return tmp_path


def changed(name: str, change: Callable[[Any], object]) -> Callable[[Path], object]:
    def make(folder: Path) -> None:
        raw = json.loads((folder / name).read_text())
        change(raw)
        (folder / name).write_text(json.dumps(raw))

    return make


def added(**fields: object) -> Callable[[Path], object]:
    """With other fields of the first added token."""
    return changed("tokenizer_config.json", lambda raw: next(iter(raw["added_tokens_decoder"].values())).update(fields))


def replaced(name: str, make: Callable[[Path], object]) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        (folder / name).unlink()
        make(folder / name)

    return change


WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "content a number": (added(content=5), "tokenizer_config.json: the content of added token"),
    "content a list": (added(content=[]), "is not text"),
    "content null": (added(content=None), "is not text"),
    "content empty": (added(content=""), "is not text"),
    "content half a surrogate": (added(content="\ud800"), "is not text"),
    "content very long": (added(content="x" * 10_000), "is not text"),
    "special a text": (added(special="yes"), "special of added token .* is not true or false"),
    "special a number": (added(special=1), "special of added token"),
    "an id that is none": (
        changed("tokenizer_config.json", lambda raw: raw["added_tokens_decoder"].update({"x": {}})),
        "'x', no id and token",
    ),
    "a token that is none": (
        changed("tokenizer_config.json", lambda raw: raw["added_tokens_decoder"].update({"7": 5})),
        "'7', no id and token",
    ),
    "no added tokens": (changed("tokenizer_config.json", lambda raw: raw.clear()), "no added_tokens_decoder"),
    "an id given twice": (changed("vocab.json", lambda raw: raw.update(dict.fromkeys(list(raw)[:2], 0))), "each once"),
    "an id too large": (changed("vocab.json", lambda raw: raw.update({next(iter(raw)): 5000})), "each once"),
    "an id that is true": (
        changed("vocab.json", lambda raw: raw.update({next(iter(raw)): True})),
        "is not a vocabulary",
    ),
    "half a surrogate": (changed("vocab.json", lambda raw: raw.update({"\ud800": len(raw)})), "is not a vocabulary"),
    "a list of tokens": (replaced("vocab.json", lambda path: path.write_text("[1]")), "is not a vocabulary"),
    "a merge of three": (replaced("merges.txt", lambda path: path.write_text("a b c\n")), "'a b c', wanted two tokens"),
    "merges that are not UTF-8": (replaced("merges.txt", lambda path: path.write_bytes(b"\xff a\n")), "not UTF-8"),
    "a cut file of merges": (replaced("merges.txt", lambda path: path.write_text("t h\n")), "has no merge that makes"),
    "a merge of unknown tokens": (replaced("merges.txt", lambda path: path.write_text("qq zz\n")), "merges.txt"),
    "vocab.json is a pipe": (replaced("vocab.json", os.mkfifo), "vocab.json: it is"),
    "merges.txt is a pipe": (replaced("merges.txt", os.mkfifo), "merges.txt: it is"),
    "merges.txt has no end": (replaced("merges.txt", lambda path: path.symlink_to("/dev/zero")), "merges.txt: it is"),
}


@pytest.mark.parametrize("change, told", WRONG.values(), ids=WRONG)
def test_damaged_files_are_named(folder: Path, change: Callable[[Path], object], told: str) -> None:
    change(folder)
    with pytest.raises(TokenizerError, match=told):
        read_qwen(folder)


def test_sound_files_give_the_ids_of_the_tokenizer_that_wrote_them(folder: Path) -> None:
    (folder / "merges.txt").write_text(f"#version: 0.2\n{(folder / 'merges.txt').read_text().partition(chr(10))[2]}\n")
    text, wanted = read_qwen(folder), tokenizer()
    assert text.tokenizer.get_vocab() == wanted.get_vocab() and len(text.tokenizer.get_vocab()) > 256
    for said in ("the cat and the dog", "ab abc 123", "a  b\n\u00e9"):
        assert text.tokenizer.encode(said).ids == wanted.encode(said).ids
