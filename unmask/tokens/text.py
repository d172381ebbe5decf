"""Text <-> token ids: byte-level BPE, with control tokens accessible only by name.

Public idea: ``Text.load(path)``. ``encode`` treats user input as plain text, so ``<|mdm_mask|>`` in a prompt is ordinary text;
``text[MASK]`` is the id of a control token, resolved by name at load time.
"""

from __future__ import annotations

import codecs
import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from unmask.tokens.tokenizer_file import TokenizerError, read_tokenizer
from unmask.writing import write_whole

BOS, EOS, EOT = "<|startoftext|>", "<|endoftext|>", "<|eot_id|>"
MASK = "<|mdm_mask|>"
HEADER, END_HEADER = "<|start_header_id|>", "<|end_header_id|>"
SLOT, SOURCE, EXP = "<|reserved_token_5|>", "<|reserved_token_6|>", "<|reserved_token_7|>"
PHRASE, END_PHRASE, BOX, END_BOX = "<box_p>", "</box_p>", "<LOC_BEGIN>", "<LOC_END>"
BINS = 1024  # coordinates are 0..BINS inclusive, so there are BINS + 1 tokens


def location(k: int) -> str:
    """The name of a coordinate token, k in 0..1024."""
    return f"<LOC_{k}>"


CONTROL: tuple[str, ...] = (
    *(BOS, EOS, MASK, HEADER, END_HEADER, EOT, SLOT, SOURCE, EXP),
    *(location(k) for k in range(BINS + 1)),
    *(PHRASE, END_PHRASE, BOX, END_BOX),
)


TEXT_CONTROL: tuple[str, ...] = (BOS, EOS, EOT, MASK, HEADER, END_HEADER)  # the control tokens of a text model (LLaDA)


_AS_NAMED: Mapping[str, str] = {}
END_ANSWER = "</answer>"  # ends an answer of Lumina-DiMOO, whose tokenizer has no end of turn


@dataclass(frozen=True, kw_only=True)
class Slots:
    """Ids of gaps that a model may leave empty: ``marker`` ends one, ``filler`` stands where it needs no token."""

    marker: int
    filler: int

    @staticmethod
    def named(text: Text) -> Slots | None:
        """Those of LLaDA's tokenizer, two of its reserved tokens (LaViDa, arXiv 2505.16839); None where it has not got them."""
        marker, filler = (text.tokenizer.token_to_id(f"<|reserved_token_{i}|>") for i in (1, 2))
        return None if marker is None or filler is None else Slots(marker=marker, filler=filler)


class Text:
    """A tokenizer with its control tokens: ``size`` ids, ``text[name]`` is a control id, ``text.first_location`` the id of <LOC_0>.

    ``control``: required control tokens. The tokenizer of a text model has no coordinates; ``first_location`` is then -1. ``spelled``: our
    name of a control token -> that of another model family, for example EOT -> ``<|im_end|>``.
    """

    def __init__(
        self, tokenizer: Tokenizer, control: tuple[str, ...] = CONTROL, spelled: Mapping[str, str] = _AS_NAMED
    ) -> None:
        self.tokenizer, self.spelled = tokenizer, dict(spelled)
        tokenizer.encode_special_tokens = True  # user text never becomes a control token
        vocabulary = tokenizer.get_vocab(with_added_tokens=True)
        missing = [own for name in control if (own := spelled.get(name, name)) not in vocabulary]
        if missing:
            raise TokenizerError(f"the tokenizer lacks {len(missing)} control tokens, for example {missing[0]}")
        self.control = {name: vocabulary[spelled.get(name, name)] for name in control}
        self.first_location = self.control.get(location(0), -1)
        if self.first_location >= 0 and self.control[location(BINS)] != self.first_location + BINS:
            raise TokenizerError("the coordinate tokens must have consecutive ids")
        self._names = {i: spelled.get(name, name) for name, i in self.control.items()}

    @classmethod
    def load(cls, path: Path, control: tuple[str, ...] = CONTROL) -> Text:
        """Load a tokenizer.json. TokenizerError if it is missing or unsuitable."""
        try:
            return cls(read_tokenizer(path), control)
        except TokenizerError as error:
            raise TokenizerError(
                f"cannot read the tokenizer {path}: {error}; use the tokenizer.json of the model"
            ) from error

    @classmethod
    def train(cls, lines: Iterable[str], size: int) -> Text:
        """Train a byte-level BPE with ``size`` ids, including control tokens, on lower-cased lines."""
        tokenizer = Tokenizer(models.BPE())
        tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=size - len(CONTROL),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(lines, trainer)
        tokenizer.add_special_tokens(list(CONTROL))
        return cls(tokenizer)

    def __reduce__(self) -> tuple[object, ...]:
        """Pickled as its file; worker processes get a copy."""
        return _from_file, (self.tokenizer.to_str(), tuple(self.control), self.spelled)

    def save(self, path: Path) -> None:
        write_whole(path, lambda part: self.tokenizer.save(str(part)))

    @property
    def size(self) -> int:
        return self.tokenizer.get_vocab_size(with_added_tokens=True)

    @property
    def ends(self) -> tuple[int, ...]:
        """The ids that end a text, the usual one first."""
        return tuple(self.control[name] for name in (EOT, END_ANSWER, EOS) if name in self.control)

    def __getitem__(self, name: str) -> int:
        return self.control[name]

    @functools.cached_property
    def pieces(self) -> list[bytes]:
        """The bytes of every id; empty for control and added tokens. TokenizerError if the tokenizer is not byte-level."""
        if not isinstance(self.tokenizer.decoder, decoders.ByteLevel):
            raise TokenizerError(
                "the tokenizer is not byte-level, so its tokens do not map to bytes; use a byte-level tokenizer"
            )
        byte_of = _byte_of()
        pieces = [b""] * (max(self.tokenizer.get_vocab(with_added_tokens=True).values()) + 1)
        for token, i in self.tokenizer.get_vocab(with_added_tokens=False).items():
            if i not in self._names and all(c in byte_of for c in token):
                pieces[i] = bytes(byte_of[c] for c in token)
        for i in self.tokenizer.get_added_tokens_decoder():
            pieces[i] = b""
        return pieces

    def plain(self, x: str) -> str:
        """A text after the tokenizer's normalisation, for example in lower case."""
        return self.tokenizer.normalizer.normalize_str(x) if self.tokenizer.normalizer else x

    def encode(self, x: str) -> list[int]:
        """Plain text -> ids without control tokens. Invalid Unicode (a lone surrogate) becomes ``?``."""
        whole = x.encode("utf-8", "replace").decode("utf-8")
        return self.tokenizer.encode(whole, add_special_tokens=False).ids

    def decode(self, ids: Iterable[int]) -> str:
        """Ids -> text up to the first end of turn, without control tokens."""
        kept: list[int] = []
        for i in ids:
            if i in self.ends:
                break
            if i not in self._names:
                kept.append(i)
        return self.tokenizer.decode(kept).strip()

    def as_text(self, prompt: str | Iterable[int]) -> str:
        """A prompt, given as text or as ids, as text."""
        return prompt if isinstance(prompt, str) else self.raw(prompt)

    def raw(self, ids: Iterable[int]) -> str:
        """Ids -> text without control tokens, with the white space at both ends: a continuation may begin with a space."""
        return self.tokenizer.decode([i for i in ids if i not in self._names])

    def decode_begun(self, ids: Sequence[int]) -> str:
        """``decode`` of ids that other ids would follow, without an incomplete character at the end."""
        said = self.decode(ids)
        if not said.endswith("\ufffd") or not isinstance(self.tokenizer.decoder, decoders.ByteLevel):
            return said
        reader = codecs.getincrementaldecoder("utf-8")("replace")
        spoken = [
            piece for i in ids if i < len(self.pieces) and (piece := self.pieces[i])
        ]  # a model may have spare ids
        reader.decode(b"".join(spoken[-4:]))  # a character has at most four bytes
        return said[:-1] if reader.getstate()[0] else said

    def show(self, ids: Iterable[int]) -> str:
        """Ids -> text with the names of control tokens, for logs and golden tests."""
        out, plain = "", []
        for i in [*ids, None]:
            if i is None or i in self._names:
                out += self.tokenizer.decode(plain) if plain else ""
                plain = []
                out += self._names[i] if i is not None else ""
            else:
                plain.append(i)
        return out


def _byte_of() -> dict[str, int]:
    """Byte-level BPE represents each byte by a visible character: itself if it is visible in Latin-1, else code points from 256 on."""
    shown = {*range(33, 127), *range(161, 173), *range(174, 256)}
    hidden = [b for b in range(256) if b not in shown]
    return {chr(b): b for b in shown} | {chr(256 + n): b for n, b in enumerate(hidden)}


def _from_file(content: str, control: tuple[str, ...], spelled: Mapping[str, str]) -> Text:
    return Text(Tokenizer.from_str(content), control, spelled)
