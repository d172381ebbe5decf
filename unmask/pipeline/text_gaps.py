"""A text with gaps for a text model. Public idea: ``FillGaps(target="The sky is [mask:2].")``, a task of ``TextModel.infill_text``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from unmask.sequence import Sequence
from unmask.tasks.drafts import read_gaps, with_gaps

if TYPE_CHECKING:
    from unmask.pipeline.text_model import TextParts


@dataclass(frozen=True, kw_only=True)
class FillGaps:
    """A text with gaps ``[mask]``, ``[mask:N]`` and ``[slot:N]`` (``tasks.drafts``); given words stay."""

    target: str
    needs: ClassVar[frozenset[str]] = frozenset({"und", "text_head"})

    def build(self, tokens: TextParts) -> Sequence:
        before = tokens.family.template.before(tokens.text)
        b = tokens.builder().say("prompt", *before) if before else tokens.builder()
        return tokens.family.template.row(with_gaps(b, self.target, tokens).build(self.target))

    def read(self, sequence: Sequence, tokens: TextParts) -> str:
        return read_gaps(sequence, self.target, tokens)
