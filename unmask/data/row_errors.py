"""The error of one row. Public idea: ``RowError`` becomes a ``Broken`` where the row is read; it never stops a run by itself."""

from __future__ import annotations

from unmask.data.published import short


class RowError(ValueError):
    """A row cannot be used; the message is its reason."""


def shown(value: object) -> str:
    """A value, shortened for a reason; bytes by their number."""
    return f"{len(value):,} bytes" if isinstance(value, bytes) else short(value)


def printable(text: str) -> str:
    """A name or reason on one line that can be printed: bytes of file names that are not UTF-8, and lone surrogates, are escaped."""
    return " ".join(text.encode("utf-8", "backslashreplace").decode("utf-8").split())
