"""The error of one row. Public idea: ``RowError`` becomes a ``Broken`` where the row is read; it never stops a run by itself."""

from __future__ import annotations

from unmask.data.published import short


class RowError(ValueError):
    """A row cannot be used; the message is its reason."""


def shown(value: object) -> str:
    """A value, shortened for a reason; bytes by their number."""
    return f"{len(value):,} bytes" if isinstance(value, bytes) else short(value)
