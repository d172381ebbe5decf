"""What commands read: pictures, patterns of pictures, and ``-`` for stdin.

Public idea: ``pictures_and_text(words, "question") -> (["a.png", "b.png"], "what is it?")``, with an error for whatever is missing,
swapped or not quoted, before any model is opened; ``read_picture(word)``.
"""

from __future__ import annotations

import difflib
import glob
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import click
from PIL import Image

from unmask.tokens.pictures import ImageError, read_image

STDIN = "-"
_TEXTS = {"question": "what is it?", "instruction": "make the apple blue"}  # for hints
_ENDINGS = {
    ".png",
    ".jpg",
    ".jpeg",
    ".webp",
    ".gif",
    ".bmp",
    ".tif",
    ".tiff",
    ".ppm",
    ".avif",
    ".heic",
    ".heif",
    ".jp2",
    ".ico",
    ".tga",
}


def read_text(word: str, what: str) -> str:
    """The word itself, or all of stdin for ``-``. ValueError for an empty text, UsageError where stdin has none."""
    if not word.strip():
        raise ValueError(f'the {what} is empty; give one, for example "{_TEXTS.get(what, "a red apple")}"')
    if word != STDIN:
        return word
    if sys.stdin is None:
        raise click.UsageError(f"- reads the {what} from stdin, which is closed")
    try:
        text = sys.stdin.read().strip()
    except UnicodeDecodeError as error:
        raise click.UsageError(f"the {what} on stdin is not text") from error
    if not text:
        raise click.UsageError(f"- reads the {what} from stdin, which is empty")
    return text


def read_bytes() -> bytes:
    """All of stdin. ValueError where it is a terminal, closed or empty."""
    if sys.stdin is None or sys.stdin.isatty():
        raise ValueError(
            '- reads a picture from stdin, and none comes; for example: cat dog.png | unmask ask - "what is it?"'
        )
    data = sys.stdin.buffer.read()
    if not data:
        raise ValueError("- reads a picture from stdin, which is empty; check the command before the |")
    return data


def read_picture(word: str | Path) -> Image.Image:
    """A picture file, or the bytes of one on stdin for ``-``. ImageError as of ``read_image``, and for a folder."""
    if str(word) == STDIN:
        return read_image(read_bytes())
    if os.path.isdir(word):
        raise ImageError(
            f"{word} is a folder, not a picture; for all pictures in it write '{os.path.join(word, '*.png')}'"
        )
    return read_image(Path(word))


def read_pictures(words: Sequence[str]) -> Iterator[tuple[str, Image.Image]]:
    """(word, picture) of every word. All are read once before this returns, and those that cannot be read are named together."""
    kept: dict[str, Image.Image] = {}
    wrong = []
    for word in words:
        try:
            image = read_picture(word)
        except ImageError as error:
            wrong.append(error)
            continue
        if (
            word == STDIN or len(words) == 1
        ):  # many pictures would not fit into memory; they are read again when they are used
            kept[word] = image
    if len(wrong) > 1:
        listed = ", ".join(str(error).partition(";")[0] for error in wrong[:5])
        raise ImageError(
            f"{len(wrong)} of {len(words)} pictures cannot be read: {listed}; nothing was done, leave them out"
        )
    if wrong:
        raise wrong[0]
    return ((word, kept[word] if word in kept else read_picture(word)) for word in words)


def pictures_and_text(words: Sequence[str], what: str, call: str) -> tuple[list[str], str]:
    """(picture files, text) of ``[PICTURE …] TEXT``, patterns expanded. ``call``: for hints, such as ``unmask ask``.

    The text may be alone. ValueError for a missing text, swapped arguments, and a text that is not quoted.
    """
    *given, text = words
    if _is_picture_name(text) and os.path.isfile(text):
        if given and not any(_is_there(word) for word in given):
            raise ValueError(
                f"the pictures come before the {what}; {call} {_quoted(text)} {_quoted(' '.join(given), always=True)}"
            )
        raise ValueError(f'the {what} is missing; {call} {" ".join(map(_quoted, words))} "…"')
    if STDIN in given and text == STDIN:
        raise ValueError(
            f"- stands for the picture and for the {what}, and stdin has only one of them; write the {what} in quotes"
        )
    _refuse_unquoted(given, text, what, call)
    return expand(given), text


def pictures_and_phrases(words: Sequence[str], call: str) -> tuple[list[str], list[str]]:
    """(picture files, phrases) of ``PICTURE … PHRASE …``: the first word, and those after it that are pictures. ValueError as above."""
    if words[0] != STDIN and not _is_there(words[0]) and _is_picture_name(words[-1]) and os.path.isfile(words[-1]):
        raise ValueError(
            f"the picture comes before the phrases; {call} {_quoted(words[-1])} {_quoted(words[0], always=True)}"
        )
    count = next((i for i, word in enumerate(words) if i and not _is_picture_name(word)), len(words))
    if count == len(words):
        raise ValueError(f'the phrases are missing; {call} {" ".join(map(_quoted, words))} "the cat"')
    return expand(words[:count]), list(words[count:])


def expand(words: Sequence[str]) -> list[str]:
    """Files, with patterns such as ``'*.png'`` replaced by the files that match, in order. ValueError for a pattern without a match."""
    found = []
    for word in words:
        if not glob.has_magic(word) or os.path.exists(word):
            found.append(word)
        elif matches := sorted(name for name in glob.glob(word) if os.path.isfile(name)):
            found += matches
        else:
            raise ValueError(f"no file matches {word!r}; check the pattern and the folder")
    if found.count(STDIN) > 1:
        raise ValueError("- reads one picture from stdin; give it once")
    missing = [word for word in found if word != STDIN and not os.path.exists(word)]
    if len(missing) > 1:
        raise ImageError(f"there are no files {', '.join(missing[:5])}; check the paths")
    for word in missing:
        _refuse_missing(word)
    return found


def _refuse_missing(word: str) -> None:
    folder, name = os.path.split(word)
    try:
        near = difflib.get_close_matches(name, os.listdir(folder or "."), 1, 0.7)
    except OSError:
        near = []
    hint = f"did you mean {os.path.join(folder, near[0])}?" if near else "check the path"
    raise ImageError(f"there is no file {word}; {hint}")


def _refuse_unquoted(given: Sequence[str], text: str, what: str, call: str) -> None:
    """ValueError where words are neither pictures nor the last one: a text or a file name with spaces that lacks its quotes."""
    loose = [i for i, word in enumerate(given) if not (_is_there(word) or _is_picture_name(word))]
    for start in range(len(given)):
        for stop in range(start + 2, len(given) + 1):
            name = " ".join(given[start:stop])
            if os.path.isfile(name) and not all(_is_there(word) for word in given[start:stop]):
                raise ValueError(f"put a file name with spaces in quotes; {call} {_quoted(name)} …")
    if loose:
        files = " ".join(map(_quoted, given[: loose[0]]))
        whole = " ".join([*given[loose[0] :], text])
        raise ValueError(
            f"{given[loose[0]]!r} is not a picture; if it belongs to the {what}, use quotes: "
            f"{call} {files + ' ' if files else ''}{_quoted(whole, always=True)}"
        )


def _is_there(word: str) -> bool:
    return word == STDIN or os.path.exists(word) or (glob.has_magic(word) and bool(glob.glob(word)))


def _is_picture_name(word: str) -> bool:
    return word == STDIN or os.path.splitext(word)[1].lower() in _ENDINGS


def _quoted(word: str, *, always: bool = False) -> str:
    return f'"{word}"' if always or " " in word else word
