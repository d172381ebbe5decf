"""Prompts to sample answers for, from a JSON Lines file. Public idea: ``read_prompts(path) -> (Prompt, …)``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from unmask.data.published import Entry, FormatError, json_lines
from unmask.sequence import Batch


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """``text``: to draw, or with ``asks`` a question, about ``image`` if there is one · ``wanted``: the other fields of its row, for
    rewards · ``name``: for errors and figures.
    """

    text: str
    wanted: Mapping[str, object] = field(default_factory=dict, hash=False)
    name: str = ""
    asks: bool = False
    image: Path | None = None


class PromptBatch(NamedTuple):
    """Prompts, and their rows with masked answers: what a source of post-training yields."""

    prompts: tuple[Prompt, ...]
    rows: Batch


def read_prompts(path: Path) -> tuple[Prompt, ...]:
    """A prompt for each line: an object with ``prompt`` (a picture is drawn) or ``question``, with ``image`` for one about a picture, whose
    path is relative to the file. All other fields are for rewards. FormatError with file and line; also where both kinds occur.
    """
    found = tuple(_prompt(entry, path.parent) for entry in json_lines(path))
    if len({prompt.asks for prompt in found}) > 1:
        raise FormatError(f"{path} has prompts to draw and questions; put them in two files")
    return found


def _prompt(entry: Entry, folder: Path) -> Prompt:
    names = [name for name in ("prompt", "question") if name in entry.value]
    if len(names) != 1:
        raise entry.wrong(f"it has {' and '.join(names) or 'no prompt'}", "expected one of 'prompt' and 'question'")
    image = folder / entry.get("image", str) if "image" in entry.value else None
    if image is not None and not image.is_file():
        raise entry.wrong(f"there is no picture {image}", "expected a path relative to the file")
    rest = {name: value for name, value in entry.value.items() if name not in (*names, "image")}
    text = entry.get(names[0], str)
    return Prompt(text=text, wanted=rest, name=entry.place, asks=names[0] == "question", image=image)
