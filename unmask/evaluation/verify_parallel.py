"""Parity of MMaDA-Parallel-M (arXiv 2511.09611): a picture is edited and a text written in the same steps.

Public idea: ``parallel(net, text, arrays, instruction, source) -> Arrays``: the released loop, greedy; its rows are rebuilt from the
prompt. Its text guidance has the released sign, and any id may be written. There is no task of it for users yet.
"""

from __future__ import annotations

import torch
from torch import Tensor

from unmask.models.elastic import Elastic
from unmask.sampling.kept import cosine
from unmask.sampling.schedule import Equal
from unmask.sequence import Kind, Sequence, collate
from unmask.tokens.build import Builder
from unmask.tokens.mmada import EOI, INTERLEAVE, SOI, WORDING
from unmask.tokens.text import BOS, EOS, Text

Arrays = dict[str, Tensor]


def parallel(net: Elastic, text: Text, arrays: Arrays, instruction: str, source: Tensor) -> Arrays:
    """The arrays ``parallel.*``. ``source``: codes [h, w]."""
    length, steps, drawn = (int(arrays[f"parallel.{n}"]) for n in ("text_length", "text_steps", "picture_steps"))
    scales = tuple(float(arrays[f"parallel.{n}"]) for n in ("text_guidance", "guidance"))
    said = text.encode(instruction)
    rows = [_row(text, words, source, length, null) for words, null in ((said, False), ([text[EOS]] * len(said), True))]
    batch = collate(rows, [0, 0]).to(net.embed.weight.device)
    image, answer = rows[0].span("image"), rows[0].span("answer")
    counts = Equal(steps=steps).counts(length - 1)
    counts += [0] * (steps - len(counts))
    at = set(torch.linspace(steps // 4, steps - 1, drawn).round().long().tolist())
    codes, order = torch.zeros(len(image), dtype=torch.long), torch.full((length - 1,), -1)
    for step in range(steps):
        found = net(batch)
        logits = {k: found.logits(k).float().chunk(2) for k in (Kind.TEXT, Kind.CODE)}
        ids, masked = batch.ids.clone(), batch.masked.clone()
        c, u = logits[Kind.TEXT]
        where = masked[0, answer.start : answer.stop].nonzero()[:, 0]
        guided = c + scales[0] * (u - c)
        best, sure = guided.argmax(1), guided.double().softmax(1).amax(1)
        taken = sure.topk(min(counts[step], len(where))).indices
        ids[:, answer.start + where[taken]] = best[taken]
        masked[:, answer.start + where[taken]] = best[taken] == net.mask_id
        order[where[taken]] = step
        if step in at:
            c, u = logits[Kind.CODE]
            where = masked[0, image.start : image.stop].nonzero()[:, 0]
            guided = (1 + scales[1]) * c - scales[1] * u
            best, sure = guided.argmax(1), guided.log_softmax(1).amax(1)
            codes[where] = best.cpu()
            kept = int(len(image) * cosine(torch.tensor((step + 1) / steps, dtype=torch.float32)))
            kept = max(1, min(len(where) - 1, kept))
            taken = sure.argsort(descending=True)[: len(where) - kept]
            ids[:, image.start + where[taken]] = best[taken]
            masked[:, image.start + where[taken]] = False
        batch = batch.replace(ids=ids, masked=masked)
    field = batch.ids[0, answer.start - 1 : answer.stop].cpu()
    field[1:] = field[1:].masked_fill(batch.masked[0, answer.start : answer.stop].cpu(), net.mask_id)
    given = [_given(row, net.config.first_code) for row in rows]
    return {
        "parallel.ids": given[0][None],
        "parallel.null_ids": given[1][None],
        "parallel.codes": codes[None],
        "parallel.text": field[None],
        "parallel.order": torch.cat([torch.tensor([-1]), order])[None],
    }


def _row(text: Text, words: list[int], source: Tensor, length: int, null: bool) -> Sequence:
    """The prompt, the picture and the text to come. ``null``: without the source, whose tokens are 0, and without words."""
    b = Builder(text=text, wording=WORDING, look_tokens=0)
    b.say("prompt", text[INTERLEAVE], text[SOI])
    b = b.say("source", *[0] * source.numel()) if null else b.codes("source", source, fold=1, writable=False)
    b.say("prompt", text[EOI], text[BOS], *words, text[EOS])
    b.say("assistant", text[SOI]).codes("image", (source.shape[0], source.shape[1]), fold=1, writable=True)
    return b.say("assistant", text[EOI], text[BOS]).write("answer", length - 1).build()


def _given(row: Sequence, first_code: int) -> Tensor:
    """The text ids of a row up to the picture that is drawn."""
    ids = row.ids.clone()
    for span in row.spans:
        if span.kind == Kind.CODE:
            ids[span.start : span.stop] += first_code
    return ids[: row.span("assistant").start]
