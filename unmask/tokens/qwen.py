"""The tokenizer of Qwen2.5, which Dream, LaViDa-Dream and Dimple share: byte-level BPE, with the control tokens of ChatML.

Public idea: ``read_qwen(folder) -> Text``, from tokenizer.json, or from vocab.json and merges.txt as these models are released.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from unmask.files import FileRefused, read_json
from unmask.tokens.text import BOS, EOS, EOT, HEADER, MASK, Text
from unmask.tokens.tokenizer_file import TokenizerError, read_tokenizer

SPELLED = {BOS: "<|beginoftext|>", EOT: "<|im_end|>", MASK: "<|mask|>", HEADER: "<|im_start|>"}
PICTURES = ("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>")
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_FILES = ("vocab.json", "merges.txt", "tokenizer_config.json")
_LARGEST = 2**26  # bytes of one of the files; released ones have up to 7 million


def read_qwen(folder: Path) -> Text:
    """The tokenizer of a folder. TokenizerError if files are missing or damaged, or a control token is.

    ``text[BOS]`` is the token before plain text; where the tokenizer has none, there is no such control token.
    """
    tokenizer = tokenizer_in(folder)
    begins = tokenizer.token_to_id(SPELLED[BOS]) is not None
    try:
        shown = [name for name in PICTURES if tokenizer.token_to_id(name) is not None]
        return Text(tokenizer, (*((BOS,) if begins else ()), EOS, EOT, MASK, HEADER, *shown), SPELLED)
    except TokenizerError as error:
        raise TokenizerError(
            f"{folder}: {error}; use the tokenizer of this model, Qwen's own has no <|mask|>"
        ) from error


def tokenizer_in(folder: Path) -> Tokenizer:
    """The tokenizer of a folder with tokenizer.json, or with Qwen's three files. TokenizerError if they are missing or damaged."""
    if (folder / "tokenizer.json").exists():
        return read_tokenizer(folder / "tokenizer.json")
    if missing := [name for name in _FILES if not (folder / name).exists()]:
        raise TokenizerError(
            f"{folder} has no tokenizer: neither tokenizer.json nor {' and '.join(missing)}; copy those released with the weights"
        )
    return _from_parts(folder)


def picture_ids(text: Text) -> tuple[int, ...]:
    """Ids that stand for pictures and videos, which no text has."""
    known = text.tokenizer.get_vocab(with_added_tokens=True)
    return tuple(known[name] for name in PICTURES if name in known)


def _from_parts(folder: Path) -> Tokenizer:
    added = _added(folder / "tokenizer_config.json")
    try:
        tokenizer = Tokenizer(models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt")))
    except Exception as error:  # the library raises bare Exception
        raise TokenizerError(f"cannot read vocab.json and merges.txt of {folder}: {error}") from error
    tokenizer.normalizer = normalizers.NFC()
    words = pre_tokenizers.Split(Regex(_WORDS), "isolated")
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, plain])
    tokenizer.decoder = decoders.ByteLevel()
    for number, name in sorted(added.items()):
        tokenizer.add_special_tokens([AddedToken(name, normalized=False, special=True)])
        if (found := tokenizer.token_to_id(name)) != number:
            raise TokenizerError(
                f"{folder / 'tokenizer_config.json'} gives {name} the id {number}, and behind vocab.json it is {found}; "
                "use files of the same model"
            )
    return tokenizer


def _added(path: Path) -> dict[int, str]:
    """Id -> added token, from ``added_tokens_decoder``."""
    try:
        raw: Any = read_json(path, most=_LARGEST)
        return {int(number): str(one["content"]) for number, one in raw["added_tokens_decoder"].items()}
    except (FileRefused, ValueError, KeyError, TypeError, AttributeError) as error:
        raise TokenizerError(f"cannot read the added tokens of {path}: {error!r}; download it again") from error
