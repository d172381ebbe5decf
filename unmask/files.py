"""Files that others wrote are read with bounds: regular files only, at most so many bytes, JSON of bounded depth.

Public idea: ``read_json(path)`` returns the value or raises ``FileRefused``, in bounded time and memory: a FIFO or a
device, which may not end, is not read, and deep nesting is no ``RecursionError``.
"""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

MIB = 2**20
MOST_JSON = 2 * MIB  # bytes of a configuration; released ones have a few thousand
MOST_DEPTH = 32  # levels of lists and objects; released configurations have five


class FileRefused(ValueError):
    """A file is missing, not a regular file, too large, or not what its name says. The message does not name the file."""


def read_bytes(path: Path, *, most: int) -> bytes:
    """The content of a regular file of at most ``most`` bytes. FileRefused for anything else, and where it cannot be read."""
    try:
        # Opening a FIFO without O_NONBLOCK waits for a writer.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with open(handle, "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise FileRefused("it is not a regular file")
            found = file.read(most + 1)
    except OSError as error:
        raise FileRefused((error.strerror or str(error)).lower()) from error
    except ValueError as error:  # a path with a NUL
        raise FileRefused(str(error)) from error
    if len(found) > most:
        raise FileRefused(f"it has more than {most:,} bytes, the limit for this file")
    return found


def refuse_special(path: Path) -> None:
    """FileRefused for what is not a regular file: a folder, a FIFO, a device, a link to nothing or in a circle."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:
        raise FileRefused((getattr(error, "strerror", "") or str(error)).lower()) from error
    if not stat.S_ISREG(mode):
        raise FileRefused("it is not a regular file")


def read_text(path: Path, *, most: int = MOST_JSON) -> str:
    """``read_bytes`` as UTF-8. FileRefused for other encodings too."""
    try:
        return read_bytes(path, most=most).decode("utf-8")
    except UnicodeDecodeError as error:
        raise FileRefused(f"it is not UTF-8 text (byte {error.start})") from error


def parse_json(text: str, *, depth: int = MOST_DEPTH) -> object:
    """A JSON value of at most ``depth`` nested lists and objects. FileRefused for other text."""
    deep = f"its JSON is nested more than {depth} levels deep"
    try:
        value = json.loads(text)
    except RecursionError:
        raise FileRefused(deep) from None
    except ValueError as error:
        raise FileRefused(f"it is not JSON: {error}") from error
    level = [value]
    for _ in range(depth):
        level = [inner for each in level for inner in _inside(each)]
        if not level:
            return value
    raise FileRefused(deep)


def _inside(value: object) -> list[object]:
    """The lists and objects directly inside a value."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [each for each in inner if isinstance(each, dict | list)]


def read_json(path: Path, *, most: int = MOST_JSON, depth: int = MOST_DEPTH) -> object:
    """The value of a JSON file. FileRefused for a file that is not regular, too large, not JSON, or nested too deep."""
    return parse_json(read_text(path, most=most), depth=depth)
