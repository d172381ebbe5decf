"""Published methods, one file each. A file's docstring gives the paper, equations, changes and cost; the file ends with a card.

Public idea: ``cards() -> {file: Card}``. Only recipes and tests import this package; commands and the server find its samplers
by name (``pipeline.catalogue``).
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from unmask.methods.card import Card


def cards() -> dict[str, Card]:
    """The card of every method, by the name of its file. Imports all of them, and torch with them."""
    names = sorted(p.stem for p in Path(__file__).parent.glob("*.py") if p.stem not in ("__init__", "card"))
    return {name: import_module(f"{__name__}.{name}").CARD for name in names}
