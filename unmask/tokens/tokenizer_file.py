"""Read a tokenizer.json so that encoding is deterministic and bounded.

Public idea: ``read_tokenizer(path) -> Tokenizer``. Dropout, truncation and padding are switched off, because they change the ids of a
text or cut it. Normalizers that make a short text long, and regular expressions that may never finish, are refused.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer

from unmask.files import MIB, FileRefused, parse_json, read_bytes
from unmask.json_types import Json

MOST_BYTES = 64 * MIB  # a vocabulary of 256,000 tokens takes 33 MiB
MOST_GROWTH = 8  # characters that normalisation may make of one; "▁" for a space has 3 bytes
_MOST_PATTERN = 4096  # characters of a regular expression; those of released tokenizers have 300
_MOST_REPEATS = 4  # unbounded repetitions in one alternative: time grows with the text's length to this power
_MOST_DEPTH = 64
_PROBE = "The quick brown fox, 123 + 4!\n\tÄ é ‘漢字’ 🙂  <|x|>"


class TokenizerError(ValueError):
    """A tokenizer file is missing, damaged, or lacks a control token."""


def read_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a file, without dropout, truncation and padding. TokenizerError if it is missing, damaged or unsuitable; its text
    does not name the file.
    """
    try:
        content = read_bytes(path, most=MOST_BYTES)
        with _refused():
            tokenizer = Tokenizer.from_buffer(content)  # it checks the types of all fields
            tokenizer.no_truncation()
            tokenizer.no_padding()
            if getattr(tokenizer.model, "dropout", None) is not None:
                tokenizer.model.dropout = None
        raw = parse_json(content.decode("utf-8"), depth=_MOST_DEPTH)
        assert isinstance(raw, dict)
        _refuse_ids(tokenizer, raw)
        _refuse_growing(raw)
        with _refused():
            tokenizer.decode(tokenizer.encode(_PROBE, add_special_tokens=False).ids)
    except FileRefused as error:
        raise TokenizerError(str(error)) from error
    return tokenizer


@contextlib.contextmanager
def _refused() -> Iterator[None]:
    """FileRefused where the library fails. It raises plain Exception, and for a panic of its Rust code a BaseException."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise FileRefused(" ".join(str(error).split())[:200] or type(error).__name__) from error


def _refuse_ids(tokenizer: Tokenizer, raw: Json) -> None:
    """FileRefused for ids outside the vocabulary, given twice, or other than the file says, and for merges that are not there."""
    ids = tokenizer.get_vocab(with_added_tokens=True)
    if not ids:
        raise FileRefused("its vocabulary is empty")
    tokens = {i: token for token, i in ids.items()}
    if (last := max(tokens)) >= len(ids):
        raise FileRefused(f"{tokens[last]!r:.40} has the id {last}, wanted ids below the number of tokens, {len(ids)}")
    if len(tokens) < len(ids):
        twice = next(token for token, i in ids.items() if tokens[i] != token)
        raise FileRefused(f"{twice!r:.40} and {tokens[ids[twice]]!r:.40} have one id, wanted different ids")
    for added in raw.get("added_tokens") or ():
        if ids.get(added["content"]) != added["id"]:
            raise FileRefused(
                f"the added token {added['content']!r:.40} has the id {added['id']}, wanted {ids.get(added['content'])}, the next free one"
            )
    model = raw["model"]
    if model.get("merges") == [] and any(len(token) > 1 for token in model["vocab"]):
        raise FileRefused("it has no merges, so most of its vocabulary is never used")


def _refuse_growing(raw: Json) -> None:
    """FileRefused for a tokenizer that makes a short text long, and for regular expressions that may never finish."""
    growth = 1.0
    for step in _steps(raw.get("normalizer")):
        growth *= _growth(step)
    for step in _steps(raw.get("decoder")):
        growth = max(growth, _growth(step))
    if growth > MOST_GROWTH:
        raise FileRefused(
            f"its normalizer or decoder makes a text {growth:.3g} times longer, wanted at most {MOST_GROWTH}"
        )
    for part in ("normalizer", "pre_tokenizer", "decoder"):
        for step in _steps(raw.get(part)):
            _refuse_slow(_pattern(step)[1])


def _steps(part: Json | None) -> Iterator[Json]:
    """All steps of a normalizer, pre-tokenizer or decoder; sequences are flattened."""
    waiting = [part] if part else []
    while waiting:
        step = waiting.pop()
        inner = [each for key in ("normalizers", "pretokenizers", "decoders") for each in step.get(key) or ()]
        waiting.extend(reversed(inner))
        if not inner:
            yield step


def _pattern(step: Json) -> tuple[str, str]:
    """(text, regular expression) that a step looks for; "" for neither."""
    found = step.get("pattern")
    if not isinstance(found, dict):
        return "", ""
    return str(found.get("String", "")), str(found.get("Regex", ""))


def _growth(step: Json) -> float:
    """How many times longer a step can make a text of 16 characters or more."""
    text, _ = _pattern(step)
    if step.get("type") == "Replace":
        return max(1.0, len(str(step.get("content", ""))) / max(len(text), 1) + (0 if text else 1))
    if step.get("type") == "Prepend":
        return max(1.0, len(str(step.get("prepend", ""))) / 16)
    return 1.0


def _refuse_slow(pattern: str) -> None:
    """FileRefused for a pattern that can take exponential time, or more than the fourth power of the text's length.

    By form: a repeated group with a repetition inside, and many unbounded repetitions one after the other. No released tokenizer has them.
    """
    if len(pattern) > _MOST_PATTERN:
        raise FileRefused(f"a regular expression has {len(pattern):,} characters, wanted at most {_MOST_PATTERN:,}")
    plain = re.sub(r"\\.", "c", pattern, flags=re.DOTALL)
    plain = re.sub(r"\[\^?\]?(?:[^\[\]]|\[[^\]]*\])*\]", "c", plain)  # a class of characters is one character
    unbounded = re.compile(r"(?:[*+]|\{\d*,\})[?+]?")
    groups: list[bool] = []  # of the open groups, whether they hold a repetition
    at = 0
    repeats = 0
    while at < len(plain):
        if plain[at] == "(":
            groups.append(False)
        elif plain[at] == ")" and groups:
            inside = groups.pop()
            if inside and unbounded.match(plain, at + 1):
                raise FileRefused(f"the regular expression {pattern[:60]!r} repeats a repetition and may take for ever")
            groups[-1:] = [groups[-1] or inside] if groups else []
        elif plain[at] == "|" and not groups:
            repeats = 0
        elif found := unbounded.match(plain, at):
            groups[-1:] = [True] if groups else []
            repeats += 1
            at = found.end() - 1
        if repeats > _MOST_REPEATS:
            raise FileRefused(
                f"the regular expression {pattern[:60]!r} has more than {_MOST_REPEATS} repetitions in a row"
            )
        at += 1
