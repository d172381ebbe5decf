"""ImgEdit's basic (single-turn) edits as that benchmark publishes them: one JSON object, key -> {id, prompt, edit_type} (Ye et al., 2025).

Public idea: ``read_imgedit(path) -> (EditRequest, …)``. The key is the name of the edited image (``1082.png``), ``id`` the path of the
source image in the folder of originals.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from unmask.data.published import FormatError, entry_of, file_stem, inside, json_of, short


@dataclass(frozen=True, kw_only=True)
class EditRequest:
    """``source``: a path in the folder of originals · ``kind``: the benchmark's ``edit_type`` (add, remove, style …)."""

    key: str
    source: str
    prompt: str
    kind: str


def read_imgedit(path: Path) -> tuple[EditRequest, ...]:
    """All edits of a file, in order. FormatError if it has another format."""
    found = json_of(path)
    if not isinstance(found, dict) or not found:
        raise FormatError(f"{path.name} holds {short(found)}; expected {{key: {{id, prompt, edit_type}}, …}}")
    return tuple(_request(key, value, f"{path.name}, {key!r}") for key, value in found.items())


def _request(key: str, value: object, place: str) -> EditRequest:
    entry = entry_of(value, place)
    return EditRequest(
        key=file_stem(key, place),
        source=inside(entry.get("id", str), place),
        prompt=entry.get("prompt", str),
        kind=entry.get("edit_type", str),
    )
