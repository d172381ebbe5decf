"""Rows of models with codes in the text vocabulary, as parity checks compare them: as text ids, over the whole vocabulary.

Public idea: ``scored_rows(net, rows) -> (hidden states, logits)`` of every token, whatever its kind.

Shapes: B rows · L tokens · D width · V vocabulary.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

from unmask.models.elastic import Elastic
from unmask.models.shared_vocabulary import as_text
from unmask.sequence import Batch, Kind, Sequence, Span, collate
from unmask.tokens.text import Text


def scored_rows(net: Elastic, rows: list[Sequence]) -> tuple[Tensor, Tensor]:
    """What the head reads of every token, [B, L, D], and logits over the whole vocabulary, [B, L, V]."""
    batch = collate(rows, [0] * len(rows)).to(net.embed.weight.device)
    found = net.hidden_states(batch, predict=batch.valid)
    hidden = net.embed.weight.new_zeros(batch.ids.numel(), net.config.width)
    for scored in found.scored.values():
        assert scored.hidden is not None
        hidden[scored.at] = scored.hidden
    hidden = hidden.view(*batch.ids.shape, -1)
    hidden = hidden[batch.valid].view(len(rows), -1, net.config.width)
    aside = sum(
        len(span) for span in rows[0].spans if span.name.startswith("null")
    )  # prompts of guidance, which nothing reads
    hidden = hidden[:, aside:]
    return hidden, net.text_head(hidden)


def text_ids(net: Elastic, row: Sequence) -> Tensor:
    """The text ids of a row; masked ones are the mask."""
    ids = as_text(collate([row], [0]), net.config.first_code).ids[0]
    return ids.masked_fill(row.masked, net.mask_id)


def text_batch(ids: Tensor) -> Batch:
    """Rows of text ids of which none is masked for the network: what is masked has the id of the mask."""
    spans = (Span(name="prompt", kind=Kind.TEXT, start=0, stop=ids.shape[1]),)
    rows = [Sequence(ids=row, masked=torch.zeros_like(row, dtype=torch.bool), spans=spans) for row in ids.cpu()]
    return collate(rows, [0] * len(rows)).to(ids.device)


def masked_rows(ids: Tensor, labels: Tensor, mask_id: int) -> Batch:
    """Training rows: masked where ``ids`` has the mask and ``labels`` the true id, and every token counts as one that may be masked."""
    masked = (ids == mask_id) & (labels != -100)
    batch = text_batch(ids)
    return batch.replace(
        masked=masked, writable=torch.ones_like(masked), clean=labels, weight=torch.ones_like(ids, dtype=torch.float)
    )


def encoded(text: Text, prompt: str) -> list[int]:
    """A prompt in which the names of control tokens are those tokens."""
    pieces = re.split("(" + "|".join(map(re.escape, text.control)) + ")", prompt)
    return [i for piece in pieces for i in ([text[piece]] if piece in text.control else text.encode(piece))]
