"""The tokenizer of Qwen2.5, which Dream, LaViDa-Dream and Dimple share: byte-level BPE, with the control tokens of ChatML.

Public idea: ``read_qwen(folder) -> Text``, from tokenizer.json, or from vocab.json and merges.txt as these models are released.
"""

from __future__ import annotations

from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from unmask.files import FileRefused, read_json, read_text
from unmask.tokens.text import BOS, EOS, EOT, HEADER, MASK, Text
from unmask.tokens.tokenizer_file import TokenizerError, read_tokenizer

SPELLED = {BOS: "<|beginoftext|>", EOT: "<|im_end|>", MASK: "<|mask|>", HEADER: "<|im_start|>"}
PICTURES = ("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>")
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_FILES = ("vocab.json", "merges.txt", "tokenizer_config.json")
_FLAGS = ("lstrip", "normalized", "rstrip", "single_word", "special")
_LONGEST = 256  # characters of an added token
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
    vocabulary, merges = _vocabulary(folder / "vocab.json"), _merges(folder / "merges.txt")
    made = {first + second for first, second in merges}
    if lost := next((token for token in vocabulary if len(token) > 1 and token not in made), None):
        raise TokenizerError(
            f"{folder / 'merges.txt'} has no merge that makes {lost[:40]!r} of vocab.json; download both again"
        )
    try:
        tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
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


def _vocabulary(path: Path) -> dict[str, int]:
    """Token -> id. TokenizerError unless every id below their number belongs to one token."""
    raw = _parsed(path)
    if not isinstance(raw, dict) or not all(type(number) is int for number in raw.values()) or not all(map(_text, raw)):
        raise TokenizerError(f"{path} is not a vocabulary, an object of tokens and ids; download it again")
    if sorted(raw.values()) != list(range(len(raw))):
        raise TokenizerError(f"{path}: the ids are not 0 to {len(raw) - 1}, each once; download it again")
    return raw


def _merges(path: Path) -> list[tuple[str, str]]:
    """The pairs of tokens that are joined, first ones first."""
    try:
        lines = read_text(path, most=_LARGEST).split("\n")
    except FileRefused as error:
        raise TokenizerError(f"cannot read {path}: {error}; download it again") from error
    pairs = [line.split(" ") for line in lines if line.strip() and not line.startswith("#version")]
    if wrong := next((pair for pair in pairs if len(pair) != 2), None):
        raise TokenizerError(f"{path} holds {' '.join(wrong)[:60]!r}, wanted two tokens a line; download it again")
    return [(first, second) for first, second in pairs]


def _added(path: Path) -> dict[int, str]:
    """Id -> added token, from ``added_tokens_decoder``."""
    raw = _parsed(path)
    tokens = raw.get("added_tokens_decoder") if isinstance(raw, dict) else None
    if not isinstance(tokens, dict):
        raise TokenizerError(f"{path} has no added_tokens_decoder, an object of ids and tokens; download it again")
    for number, one in tokens.items():
        if not (number.isascii() and number.isdecimal() and len(number) < 9 and isinstance(one, dict)):
            raise TokenizerError(
                f"{path}: added_tokens_decoder has {number[:20]!r}, no id and token; download it again"
            )
        if not _text(one.get("content")) or not 0 < len(one["content"]) <= _LONGEST:
            raise TokenizerError(f"{path}: the content of added token {number} is not text; download it again")
        if wrong := next((name for name in _FLAGS if type(one.get(name, False)) is not bool), None):
            raise TokenizerError(f"{path}: {wrong} of added token {number} is not true or false; download it again")
    return {int(number): one["content"] for number, one in tokens.items()}


def _text(value: object) -> bool:
    """Whether a value is a text that UTF-8 can hold; half a surrogate pair is none."""
    return isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value)


def _parsed(path: Path) -> object:
    try:
        return read_json(path, most=_LARGEST)
    except FileRefused as error:
        raise TokenizerError(f"cannot read {path}: {error}; download it again") from error
