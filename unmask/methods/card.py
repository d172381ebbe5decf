"""Metadata of a published method. Public idea: every method file of ``unmask/methods/`` ends with ``CARD = Card(...)``.

All fields but ``parts`` are literals, so that ``unmask methods`` reads them without importing the file (``pipeline.catalogue``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field

STATUSES = ("reference", "tiny-checked", "reproduced")


@dataclass(frozen=True, kw_only=True)
class Card:
    """``title``, ``paper`` (an arXiv id or a URL), ``year``: of the paper · ``changes``: the replaced part of the system, in one line ·
    ``claim``: the claim of the paper, in one line.

    ``status``: reference (runs and passes the contract tests), tiny-checked (its effect was measured on a small model) or reproduced (a
    figure of the paper was reproduced) · ``parts``: role -> tiny instances, which the contract tests run; a role is a field of ``Sampler``,
    "sampler" for whole samplers, or the name of another protocol ·
    ``sampler``: the functions of the file that ``--sampler`` takes · ``recipe``: ``file.function`` of unmask/recipes that trains it, or "".
    """

    title: str
    paper: str
    year: int
    changes: str
    claim: str
    status: str
    parts: Mapping[str, tuple[object, ...]] = field(default_factory=dict)
    sampler: tuple[str, ...] = ()
    recipe: str = ""

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            if f.name in ("title", "paper", "changes", "claim") and not getattr(self, f.name).strip():
                raise ValueError(f"a card needs a {f.name}, got an empty string")
        if self.status not in STATUSES:
            raise ValueError(f"a card's status is one of {', '.join(STATUSES)}, got {self.status!r}")
        if not self.sampler and not self.recipe:
            raise ValueError(
                f"{self.title}: the card names neither a sampler nor a recipe; set one, so that the method can be run"
            )
