"""The first part of docs/methods.md: every method and every technique of the surveys as tables.

Public idea: ``field_map(methods, runs)``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from unmask.pipeline.catalogue import MethodEntry
from unmask.pipeline.field import PARTS, SURVEYS, Technique, rows

_NO_FIGURE = "none yet"
_INTRODUCTION = """## The map

Every published system that is built in, and where it stands in the field: modelling, training, inference or applications. *Measured here*
is the first of our figures, in a small world and with its interval, never the paper's; the sections below have the rest.

| system | part | file | command | status | measured here | in the paper |
|---|---|---|---|---|---|---|
"""
_SAMPLERS = """
Every sampler that needs no folder, with its own schedule and with half of the steps, in one run of
`unmask bench samplers --world 14 --orders all --schedules own,equal:steps=0.5 --plot FILE`: quality of pictures of the embedded model
against forwards and seconds, both axes logarithmic, with 14 prompts. An interval is about .2 wide on either side, so of equal forwards none
is seen to beat the reference; half of the steps cost .1 to .4. [samplers.md](samplers.md) has four orders with more prompts.

![Quality of pictures of mini against forwards and seconds for every sampler](pictures/samplers-mini-all.png)
"""
_TAXONOMY = """
## What the surveys name

A, B and C are the surveys {surveys}. *Here* means that the code has it, not that it was measured to help: figures are with the
system, or on the page.

"""


def field_map(methods: Mapping[str, MethodEntry], runs: Mapping[str, Sequence[str]]) -> str:
    """Markdown. ``runs``: how to run each method, the best first."""
    lines = [_system(entry, runs[name][0]) for name, entry in methods.items()]
    named = ", ".join(f"{letter} ({paper})" for letter, paper in SURVEYS.items())
    parts = [_part(part) for part in PARTS]
    taxonomy = _TAXONOMY.format(surveys=named)
    return _INTRODUCTION + "\n".join(lines) + "\n" + _SAMPLERS + taxonomy + "\n".join(parts) + "\n"


def _system(entry: MethodEntry, run: str) -> str:
    name, card = entry.name, entry.card
    places = ", ".join(part for part in PARTS if any(name in one.methods for one in rows(part)))
    file = f"[{name}.py](../unmask/methods/{name}.py)"
    ours, theirs = (
        _first(card.get("figure", "")) or _NO_FIGURE,
        _first(card.get("paper_figure", "")) or "no figure kept",
    )
    return f"| [{name}](#{name}) | {places} | {file} | `{run}` | {card['status']} | {ours} | {theirs} |"


def _first(figure: str) -> str:
    """The first clause of a figure, as the cell of a table."""
    return figure.partition(";")[0].strip().replace("|", "\\|")


def _part(part: str) -> str:
    head = f"**{part.capitalize()}**\n\n| technique | survey | where | how | status | figures |\n|---|---|---|---|---|---|\n"
    return head + "".join(f"{_technique(one)}\n" for one in rows(part))


def _technique(one: Technique) -> str:
    links = [f"[{name}](#{name})" for name in one.methods]
    links += [f"[{file}](../unmask/{file})" for file in one.files]
    page = f"[{one.page}]({one.page})" if one.page else "with the system" if one.methods else ""
    how = f"`{one.use}`" if one.use else ""
    letters = ", ".join(one.named)
    return f"| {one.name} | {letters} | {', '.join(links) or one.why} | {how} | {one.status} | {page} |"
