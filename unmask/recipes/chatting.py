"""The rows of a text model that is trained on conversations.

Public ideas: ``plain_chat(start, slots) -> Format``, and ``chat_format(start, answered)`` where a family writes answers in its own way.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from random import Random

from unmask.data.own import Format
from unmask.data.samples import Broken, Chat, Sample
from unmask.recipes.starting import Start
from unmask.sequence import Sequence
from unmask.tasks.conversing import Message
from unmask.tasks.examples import Answered, padded_answer
from unmask.tasks.family_rows import Slotted, marks_given


def plain_chat(start: Start, slots: float = 0.0) -> Format:
    """Answers that end in a whole block. ``slots``: share of the answers with slots for infilling, as in LaViDa's third stage.

    ValueError for a share out of range, and where the tokenizer has no tokens for slots.
    """
    if not 0 <= slots <= 1:
        raise ValueError(f"slots is {slots}; give a share from 0 to 1")
    if not slots:
        return chat_format(start, partial(padded_answer, short=False))
    known = start.text_parts.slots
    if known is None:
        raise ValueError(
            f"{start.name} has no tokens for slots in its tokenizer, which LLaDA's has (<|reserved_token_1|>); leave out slots"
        )
    return chat_format(start, Slotted(slots=known, share=slots), known.marker)


def chat_format(start: Start, answered: Answered, marker: int | None = None) -> Format:
    """The rows of a text model. ``marker``: a token that is given wherever it stands in an answer."""
    return Format(name="chat", task="chat", row=_Chatting(start=start, answered=answered, marker=marker))


@dataclass(frozen=True, kw_only=True)
class _Chatting:
    """Rows of a text model: an answer of the conversation, drawn at random, after the messages before it. ``answered``: its ids."""

    start: Start
    answered: Answered
    marker: int | None = None

    def __call__(self, sample: Sample, rng: Random) -> Sequence | Broken:
        assert isinstance(sample, Chat)
        if sample.images:
            return Broken(key=sample.key, reason=f"{sample.key} has pictures, which a text model cannot read")
        pairs = [i for i, t in enumerate(sample.turns) if i and t.role == "assistant"]
        if not pairs:
            return Broken(key=sample.key, reason=f"{sample.key} has no answer of the assistant")
        at, parts = rng.choice(pairs), self.start.text_parts
        messages = [Message(role=t.role, text=t.text) for t in sample.turns[:at]]
        answer = self.answered(parts.text, sample.turns[at].text, rng)
        row = parts.family.template.conversation(parts.builder(), messages, answer)
        row = row if self.marker is None else marks_given(row, self.marker)
        if len(row.ids) > parts.context:
            reason = f"{sample.key} has {len(row.ids)} tokens, more than the model's {parts.context}"
            return Broken(key=sample.key, reason=reason)
        return row
