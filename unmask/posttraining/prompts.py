"""Prompts to sample answers for. Public idea: a ``Prompt`` is a request with what rewards compare its answers to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from unmask.sequence import Batch


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """``text``: of the request · ``wanted``: the other fields of its row, for rewards · ``key``: names it in reports."""

    text: str
    wanted: Mapping[str, object] = field(default_factory=dict, hash=False)
    key: str = ""


class PromptBatch(NamedTuple):
    """Prompts, and their rows with masked answers: what a source of post-training yields."""

    prompts: tuple[Prompt, ...]
    rows: Batch
