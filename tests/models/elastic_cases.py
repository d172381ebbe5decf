"""Rows of every kind for the network's tests, and how their logits are compared."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from unmask.models.elastic import Elastic, init
from unmask.models.sizes import SIZES, ElasticConfig
from unmask.rng import generator
from unmask.sequence import Batch, Kind, Sequence, Span, collate
from unmask.step import Prediction

torch.set_num_threads(1)
CONFIG, MASK_ID = SIZES["tiny"], 7
LOOK = CONFIG.vision.tokens if CONFIG.vision else 0


def make(config: ElasticConfig = CONFIG) -> Elastic:
    """Random weights everywhere, norms, biases and the newline included, so that none of them can be forgotten unseen."""
    model = Elastic(config, mask_id=MASK_ID).eval()
    init(model, generator("test_elastic"))
    rng = generator("norms")
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() == 1:
                p += 0.3 * torch.randn(p.shape, generator=rng)
    return model


def row(*spans: tuple[str, int, int | tuple[int, int], int], fold: int = 1, seed: int = 0) -> Sequence:
    """(name, kind, tokens or grid, segment) of each span; random ids, half of the tokens of "answer", "box", "image" masked."""
    rng = generator("row", seed)
    table, ids, masked, pictures = [], [], [], 0
    for name, kind, size, segment in spans:
        grid = {"grid": size, "fold": fold} if isinstance(size, tuple) else {}
        tokens = size[0] * size[1] if isinstance(size, tuple) else size
        start = sum(map(len, ids))
        writable = name in ("answer", "box", "image")
        span = Span(name=name, kind=kind, start=start, stop=start + tokens, segment=segment, writable=writable, **grid)  # type: ignore[arg-type]
        if kind == Kind.FEATURE:
            span = dataclasses.replace(span, image=pictures)
            pictures += 1
        table.append(span)
        ids.append(torch.randint(8, CONFIG.codes if kind == Kind.CODE else CONFIG.vocab_size, (tokens,), generator=rng))
        masked.append((torch.rand(tokens, generator=rng) < 0.5) & writable)
    return Sequence(
        ids=torch.cat(ids),
        masked=torch.cat(masked),
        spans=tuple(table),
        pixels=torch.rand(pictures, 3, 128, 128, generator=rng) if pictures else None,
        feature_rows=pictures * LOOK,
    )


TEXT, CODE, FEATURE = Kind.TEXT, Kind.CODE, Kind.FEATURE


def text(n: int, seed: int = 0) -> Sequence:
    return row(("prompt", TEXT, n, 0), ("answer", TEXT, 6, 0), seed=seed)


def draw(n: int, fold: int, seed: int = 0, grid: tuple[int, int] = (4, 6)) -> Sequence:
    return row(("prompt", TEXT, n, 0), ("image", CODE, grid, 0), ("end", TEXT, 2, 0), fold=fold, seed=seed)


def edit(n: int, fold: int, seed: int = 0) -> Sequence:
    before = ("prompt", TEXT, 3, 0), ("look", FEATURE, LOOK, 0), ("source", CODE, (4, 6), 0), ("prompt", TEXT, n, 0)
    return row(*before, ("image", CODE, (4, 6), 0), ("end", TEXT, 1, 0), fold=fold, seed=seed)


def look(seed: int = 0) -> Sequence:
    questions = [
        (name, TEXT, 2 + i + len(name) % 3, i) for i in (1, 2, 3) for name in ("question", "answer" if i < 3 else "box")
    ]
    return row(("prompt", TEXT, 3, 0), ("look", FEATURE, LOOK, 0), *questions, seed=seed)


# name -> (rows, names of the spans that each row loses)
CASES: dict[str, tuple[list[Sequence], list[set[str]]]] = {
    "text": ([text(5), text(5, seed=1)], [set(), set()]),
    "text, padded": ([text(9), text(2, seed=1), text(4, seed=2)], [set()] * 3),
    "drawing": ([draw(5, 1), draw(5, 1, seed=1)], [set(), set()]),
    "drawing, folded": ([draw(5, 2), draw(5, 2, seed=1)], [set(), set()]),
    "drawing, padded, one without its prompt": ([draw(8, 2), draw(3, 2, seed=1), draw(5, 2, seed=2)], [set(), {"prompt"}, set()]),
    "editing": ([edit(5, 1), edit(5, 1, seed=1)], [set(), set()]),
    "editing, folded, with and without the source": ([edit(5, 2), edit(5, 2, seed=1)], [set(), {"source"}]),
    "editing, padded, every kind of loss": (
        [edit(5, 2), edit(2, 2, seed=1), edit(9, 2, seed=2), edit(4, 2, seed=3), edit(1, 2, seed=4)],
        [{"source"}, set(), {"prompt", "look"}, {"prompt", "look", "source"}, {"look"}],
    ),
    "grids and folds of every size": (
        [draw(4, 2), draw(3, 1), row(("prompt", TEXT, 2, 0), ("source", CODE, (2, 4), 0), ("image", CODE, (4, 2), 0), fold=2), text(3)],
        [set(), set(), set(), set()],
    ),
    "looking, with segments": ([look(), look(seed=1)], [set(), {"look"}]),
    "drawing and looking together": ([draw(4, 2), look(seed=1), text(3), edit(5, 2, seed=5)], [set(), set(), set(), {"source"}]),
}  # fmt: skip


def batch_of(rows: list[Sequence], dropped: list[set[str]]) -> Batch:
    batch = collate(rows, range(len(rows)))
    gone = torch.zeros_like(batch.masked)
    for b, (sequence, names) in enumerate(zip(rows, dropped, strict=True)):
        for span in sequence.spans:
            if span.name in names:
                gone[b, span.start : span.stop] = True
    return batch.drop_tokens(gone, MASK_ID)


def by_token(prediction: Prediction) -> dict[int, Tensor]:
    """Flat token number -> logits."""
    pairs = [zip(scored.at.tolist(), prediction.logits(k), strict=True) for k, scored in prediction.scored.items()]
    return {token: logits for some in pairs for token, logits in some}


def agree(got: dict[int, Tensor], wanted: dict[int, Tensor]) -> None:
    assert got.keys() == wanted.keys()
    for token in got:
        torch.testing.assert_close(
            got[token], wanted[token], atol=1e-5, rtol=1e-5, msg=lambda m, t=token: f"token {t}: {m}"
        )


def changed(model: Elastic, before: Batch, after: Batch, predict: Tensor) -> set[int]:
    a, b = by_token(model(before, predict=predict)), by_token(model(after, predict=predict))
    return {t for t in a if not torch.equal(a[t], b[t])}
