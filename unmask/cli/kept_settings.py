"""The settings of a run in its folder, so that --resume needs none of them again.

Public ideas: ``KeptSettings(settings, folder, start)`` is a ``training.meters.Log`` that writes them when the run begins, and
``kept_settings(folder)`` reads them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

FILE = "settings.json"


class KeptSettings:
    """``settings``: ``name=value`` each. Made when a run has passed all checks, so a run that is refused changes nothing."""

    def __init__(self, settings: Sequence[str], folder: Path, start: int) -> None:
        from unmask.writing import write_text

        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / FILE, json.dumps(list(settings)) + "\n")

    def write(self, row: Mapping[str, float]) -> None:
        pass

    def close(self) -> None:
        pass


def with_kept_settings(folder: Path, chosen: Sequence[str]) -> list[str]:
    """The settings of the run in a folder, those of another value left out, and the chosen ones."""
    given = {_name(one) for one in chosen}
    return [*(one for one in _kept(folder) if _name(one) not in given), *chosen]


def _name(setting: str) -> str:
    return setting.partition("=")[0].strip()


def _kept(folder: Path) -> list[str]:
    """None where there is no such file, or it is damaged."""
    try:
        kept = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return []
    return [one for one in kept if isinstance(one, str)] if isinstance(kept, list) else []
