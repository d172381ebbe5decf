"""GenEval's prompts as that benchmark publishes them: ``evaluation_metadata.jsonl`` (Ghosh et al., 2023).

Public idea: ``read_geneval(path) -> (GenEvalPrompt, …)``. One object per line: ``tag``, ``prompt``, ``include`` (required objects:
``class``, ``count``, optionally ``color`` and ``position``) and optionally ``exclude`` (``class``, and an exclusive upper limit ``count``).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from unmask.data.published import Entry, json_lines
from unmask.data.world.scenes import RELATIONS

TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")


@dataclass(frozen=True, kw_only=True)
class Included:
    """At least ``count`` of ``name``. ``position`` (relation, i): its relation to entry i of the same list."""

    name: str
    count: int
    colour: str | None = None
    position: tuple[str, int] | None = None


@dataclass(frozen=True, kw_only=True)
class Excluded:
    """Fewer than ``count`` of ``name``."""

    name: str
    count: int


@dataclass(frozen=True, kw_only=True)
class GenEvalPrompt:
    """``index``: number in the file, from 0; also the name of the image folder · ``line``: the unparsed record."""

    index: int
    tag: str
    prompt: str
    include: tuple[Included, ...]
    exclude: tuple[Excluded, ...]
    line: str

    @property
    def nouns(self) -> frozenset[str]:
        return frozenset(entry.name for entry in (*self.include, *self.exclude))

    @property
    def colours(self) -> frozenset[str]:
        return frozenset(entry.colour for entry in self.include if entry.colour is not None)


def read_geneval(path: Path) -> tuple[GenEvalPrompt, ...]:
    """All prompts of a file, in order. FormatError with file and line."""
    return tuple(prompt_of(index, entry) for index, entry in enumerate(json_lines(path)))


def prompt_of(index: int, entry: Entry) -> GenEvalPrompt:
    """One object as a prompt. FormatError for missing and wrong fields."""
    tag = entry.get("tag", str)
    if tag not in TAGS:
        raise entry.wrong(f"unknown tag {tag!r}", f"expected one of {', '.join(TAGS)}")
    include = entry.objects("include")
    if not include:
        raise entry.wrong("'include' is empty", 'expected a list like [{"class": "dog", "count": 1}]')
    return GenEvalPrompt(
        index=index,
        tag=tag,
        prompt=entry.get("prompt", str),
        include=tuple(_included(e, i, len(include)) for i, e in enumerate(include)),
        exclude=tuple(Excluded(name=e.get("class", str), count=e.count("count")) for e in entry.objects("exclude")),
        line=entry.text,
    )


def _included(entry: Entry, own: int, of: int) -> Included:
    position = None
    if "position" in entry.value:
        given = entry.get("position", list)
        if len(given) != 2 or given[0] not in RELATIONS or given[1] not in range(of) or given[1] == own:
            raise entry.wrong(
                f"'position' is {given}", f"expected [relation, number of another entry], one of {', '.join(RELATIONS)}"
            )
        position = (str(given[0]), int(given[1]))
    return Included(
        name=entry.get("class", str),
        count=entry.count("count"),
        colour=entry.get("color", str) if "color" in entry.value else None,
        position=position,
    )
