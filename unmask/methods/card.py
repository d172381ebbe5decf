"""Metadata of a published method. Public idea: every method file of ``unmask/methods/`` ends with ``CARD = Card(...)``.

All fields but ``parts`` are literals, so that ``unmask methods`` reads them without importing the file (``pipeline.catalogue``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field

STATUSES = ("reference", "tiny-checked", "not seen")


@dataclass(frozen=True, kw_only=True)
class Card:
    """``title``, ``paper`` (an arXiv id or a URL), ``year``: of the paper · ``changes``: the replaced part of the system, in one line ·
    ``claim``: the claim of the paper, in one line.

    ``status``: reference (the measured arrays of the official code, or the contract tests, pass), tiny-checked (its effect was seen on a
    small model, outside the interval of an honest baseline) or not seen · ``figure``: our figure with its interval, in one line ·
    ``tried``: for an effect that was not seen, the remedies that were tried, at least two · ``paper_figure``: the paper's figure ·
    ``parts``: role -> tiny instances, which the contract tests run; a role is a field of ``Sampler``, "sampler" for whole samplers, or the
    name of another protocol · ``sampler``: the functions of the file that ``--sampler`` takes · ``recipe``: ``file.function`` of
    unmask/recipes that trains it, or "" · ``command``: another command that uses it, such as "unmask quantise MODEL OUT --method gptq" ·
    ``python``: the import with which a program uses it, for a method that no command runs yet.

    A file of unmask/recipes with the method's name and ``DEMO = Demonstration(…)`` is what ``unmask methods run`` runs.
    """

    title: str
    paper: str
    year: int
    changes: str
    claim: str
    status: str
    figure: str = ""
    tried: tuple[str, ...] = ()
    paper_figure: str = ""
    parts: Mapping[str, tuple[object, ...]] = field(default_factory=dict)
    sampler: tuple[str, ...] = ()
    recipe: str = ""
    command: str = ""
    python: str = ""

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            if f.name in ("title", "paper", "changes", "claim") and not getattr(self, f.name).strip():
                raise ValueError(f"a card needs a {f.name}, got an empty string")
        if self.status not in STATUSES:
            raise ValueError(f"a card's status is one of {', '.join(STATUSES)}, got {self.status!r}")
        if self.status == "tiny-checked" and not self.figure:
            raise ValueError(f"{self.title}: tiny-checked needs the figure that was measured; set figure=")
        if self.status == "not seen" and len(self.tried) < 2:
            raise ValueError(f"{self.title}: not seen needs at least two remedies in tried=, got {len(self.tried)}")
        if not self.sampler and not self.recipe and not self.command and not self.python:
            raise ValueError(
                f"{self.title}: the card names no sampler, recipe, command or python; set one, so that the method can be run"
            )
