"""The laws of sampling, checked for every part that a walk over ``unmask.sampling`` finds.

A part without an instance below fails the suite, so a new part comes with its instance.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor

import unmask.sampling
from unmask.grammars.automaton import compile_automaton
from unmask.grammars.grammar import Grammar
from unmask.grammars.regex import parse_regex
from unmask.models.elastic import Elastic, init
from unmask.models.fake import FakeDenoiser
from unmask.models.sizes import SIZES
from unmask.rng import generator
from unmask.sampling import (
    blocks,
    constrain,
    guidance,
    presets,
    schedule,
    selection,
    stopping,
    temperature,
    token_sampler,
)
from unmask.sampling.orders import stratified
from unmask.sampling.sampler import NothingPredicted, NothingUnmasked, Sampler, Step
from unmask.sequence import Batch, Kind, Sequence, Span, collate, stack
from unmask.step import Move, Prediction

torch.set_num_threads(1)
TEXT, CODES, NULL, END = 24, 16, 3, 5
DROP = frozenset({"prompt", "source"})
ORDER = tuple(stratified(4))
GRAMMAR = Grammar(compile_automaton(parse_regex("[a-z]*")), [b"", *(bytes([97 + i]) for i in range(TEXT - 1))], END)

SCHEDULES = [
    schedule.Equal(steps=3),
    schedule.Fixed(each=2),
    schedule.Shift(steps=5, shift=3.0),
    schedule.Cosine(steps=6),
]
DRAWS = [
    token_sampler.Greedy(),
    token_sampler.Greedy(score=token_sampler.Entropy()),
    token_sampler.Greedy(score=token_sampler.Margin()),
    token_sampler.Greedy(score=token_sampler.LogProbability()),
    token_sampler.Categorical(temperature=0.8),
    token_sampler.Categorical(temperature=temperature.Linear(start=2.0, end=0.0)),
    token_sampler.Categorical(temperature=temperature.CosineTo(minimum=0.2)),
    token_sampler.Categorical(temperature=temperature.ShiftTo(shift=3.0, minimum=0.1)),
    token_sampler.GumbelText(temperature=0.5),
    token_sampler.OnlyIds(low=4, high=9, token_sampler=token_sampler.Categorical()),
    token_sampler.TopP(mass=0.5, token_sampler=token_sampler.Categorical()),
    constrain.Constrained(token_sampler=token_sampler.Categorical(temperature=0.8), grammars=(("answer", GRAMMAR),)),
]
SELECTS = [
    selection.Confident(),
    selection.Confident(noise=temperature.Linear(start=5.0, end=0.5)),
    selection.MaskGit(temperature=0.5),
    selection.InOrder(order=ORDER),
    selection.RandomOrder(),
    selection.Threshold(value=0.3),
    selection.Factor(factor=1.0),
    selection.PerSpan(selection=selection.Confident(noise=1.0)),
    selection.PerSpan(selection=selection.RandomOrder()),
    selection.PerSpan(selection=selection.InOrder(order=ORDER)),
]
GUIDANCES = [
    guidance.NoGuidance(),
    guidance.ClassifierFree(scale=3.0, drop=DROP, null_id=NULL),
    guidance.ClassifierFree(scale=3.0, drop=DROP, null_id=NULL, interval=(0.3, 0.7)),
    guidance.EditGuidance(scale=1.2, image_scale=1.4, drop=DROP, keep=frozenset({"source"}), null_id=NULL),
    guidance.EditGuidance(scale=0.0, image_scale=1.4, drop=DROP, keep=frozenset({"source"}), null_id=NULL),
]
WINDOWS = [blocks.Whole(), blocks.Blocks(length=3), blocks.SpanBySpan()]
STOPS = [stopping.Never(), stopping.EndOfTurn(ids=(END, 7))]
NOT_PARTS = {"Progress", "Layout", "Sampler", "Step"}  # what flows between the parts

BASE = Sampler(
    schedule=schedule.Shift(steps=5, shift=3.0),
    token_sampler=token_sampler.Categorical(),
    selection=selection.Confident(noise=1.0),
)
SAMPLERS = (
    [dataclasses.replace(BASE, schedule=p) for p in SCHEDULES]
    + [dataclasses.replace(BASE, token_sampler=d) for d in DRAWS]
    + [dataclasses.replace(BASE, selection=s) for s in SELECTS]
    + [dataclasses.replace(BASE, guidance=g) for g in GUIDANCES]
    + [dataclasses.replace(BASE, blocks=w) for w in WINDOWS]
    + [dataclasses.replace(BASE, stopping=s) for s in STOPS]
    + [
        dataclasses.replace(
            BASE,
            blocks=blocks.Blocks(length=4),
            stopping=STOPS[1],
            guidance=GUIDANCES[2],
            schedule=schedule.Equal(steps=4),
        )
    ]
)
every_sampler = pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: repr(s).replace("Sampler", "")[:150])


def parts_in(value: Any) -> Iterable[type]:
    """The class of a value and of every part inside it."""
    yield type(value)
    for field in dataclasses.fields(value):
        if dataclasses.is_dataclass(inner := getattr(value, field.name)):
            yield from parts_in(inner)


def test_every_part_has_an_instance_here() -> None:
    found = set()
    for info in pkgutil.iter_modules(unmask.sampling.__path__, "unmask.sampling."):
        for name, thing in vars(importlib.import_module(info.name)).items():
            if isinstance(thing, type) and dataclasses.is_dataclass(thing) and thing.__module__ == info.name:
                if not name.startswith("_") and name not in NOT_PARTS:
                    found.add(thing)
    here = {part for sampler in SAMPLERS for part in parts_in(sampler)}
    missing = sorted(part.__qualname__ for part in found - here)
    assert not missing, f"add an instance of {', '.join(missing)} to this suite"
    kw_only = {part: all(field.kw_only for field in dataclasses.fields(part)) for part in found}
    loose = [part.__qualname__ for part in found if not part.__dataclass_params__.frozen or not kw_only[part]]
    assert not loose, f"parts are frozen and keyword-only; {loose} are not"


fake = FakeDenoiser(sizes={Kind.TEXT: TEXT, Kind.CODE: CODES})


def tiny() -> Elastic:
    model = Elastic(SIZES["tiny"], mask_id=NULL).eval()
    init(model, generator("contract"))
    return model


def sequence(*spans: tuple[str, int, int, bool], given: tuple[int, ...] = (), seed: int = 0) -> Sequence:
    """A request of (name, kind, tokens, writable) spans with random given ids; ``given``: writable tokens already decided."""
    start, table = 0, []
    for name, kind, tokens, writable in spans:
        grid = {"grid": (4, 4), "fold": 2} if kind == Kind.CODE else {}
        table.append(Span(name=name, kind=kind, start=start, stop=start + tokens, writable=writable, **grid))  # type: ignore[arg-type]
        start += tokens
    masked = torch.cat([torch.full((len(s),), s.writable) for s in table])
    masked[list(given)] = False
    return Sequence(ids=torch.randint(8, CODES, (start,), generator=generator(seed)), masked=masked, spans=tuple(table))


def requests(sampler: Sampler) -> list[Sequence]:
    """Four requests of different shape; an ``InOrder`` gets pictures alone, since its order fits no other span."""
    if selection.InOrder in set(parts_in(sampler.selection)):
        return [
            sequence(("prompt", Kind.TEXT, 3 + n, False), ("image", Kind.CODE, 16, True), given=given, seed=n)
            for n, given in enumerate([(), (5, 6, 7), (), (6,)])
        ]
    image, source = ("image", Kind.CODE, 16, True), ("source", Kind.CODE, 16, False)
    return [
        sequence(("prompt", Kind.TEXT, 4, False), ("answer", Kind.TEXT, 7, True), image, given=(6, 20), seed=1),
        sequence(("prompt", Kind.TEXT, 2, False), source, image, seed=2),
        sequence(
            ("prompt", Kind.TEXT, 6, False), ("answer", Kind.TEXT, 11, True), ("tail", Kind.TEXT, 3, False), seed=3
        ),
        sequence(
            ("prompt", Kind.TEXT, 1, False), ("box", Kind.TEXT, 4, True), image, ("box1", Kind.TEXT, 4, True), seed=4
        ),
    ]


def tensors(batch: Batch) -> dict[str, Tensor]:
    return {f.name: v for f in dataclasses.fields(batch) if isinstance(v := getattr(batch, f.name), Tensor)}


def run(
    sampler: Sampler, rows: list[Sequence], model: Callable[..., Prediction] = fake
) -> tuple[Batch, Batch, list[Step]]:
    """(what went in, what came out, the steps) with seeds 10, 11, ..; checks that the input is not changed."""
    batch, steps = collate(rows, range(10, 10 + len(rows))), []
    before = {name: tensor.clone() for name, tensor in tensors(batch).items()}
    result = sampler.sample(model, batch, on_step=steps.append)
    assert all(torch.equal(before[name], tensor) for name, tensor in tensors(batch).items())
    return batch, result, steps


@every_sampler
def test_it_finishes_leaves_the_given_alone_and_never_wastes_a_step(sampler: Sampler) -> None:
    batch, result, steps = run(sampler, requests(sampler))
    assert not result.masked.any()
    given = ~batch.masked
    assert torch.equal(result.ids[given], batch.ids[given])
    code = result.ids[(result.kind == Kind.CODE) & batch.masked]
    assert ((code >= 0) & (code < CODES)).all()
    left = [batch.masked.sum(1)] + [step.batch.masked.sum(1) for step in steps]
    for before, after in zip(left, left[1:], strict=False):
        assert torch.equal(after < before, before > 0)
    assert [step.number for step in steps] == list(range(1, len(steps) + 1))
    assert all(step.number <= step.of for step in steps)


@every_sampler
def test_an_answer_does_not_depend_on_its_company(sampler: Sampler) -> None:
    rows = requests(sampler)
    _, together, steps = run(sampler, rows)
    longer = rows + [sequence(("prompt", Kind.TEXT, 40, False), ("image", Kind.CODE, 16, True))]
    _, padded, _ = run(sampler, longer)
    for index, row in enumerate(rows):
        n = len(row.ids)
        alone = sampler.sample(fake, collate([row], [10 + index]), on_step=None)
        assert torch.equal(together.ids[index, :n], alone.ids[0])
        assert torch.equal(padded.ids[index, :n], alone.ids[0])
        assert together.clock[index] == alone.clock[0]
    assert together.clock.max() == len(steps)


@every_sampler
def test_a_select_stays_inside_window_and_counts(sampler: Sampler) -> None:
    batch, seen = collate(requests(sampler), range(4)), []

    def watched(b: Batch, proposal: Any, where: Tensor, counts: Tensor, at: Any) -> Move:
        move = sampler.selection(b, proposal, where, counts, at)
        asked = proposal.score > -torch.inf
        assert not (move.unmask & ~where).any() and not (asked & ~where).any()
        assert torch.equal(proposal.ids[~asked], b.ids[~asked])
        assert (move.unmask.sum(1) <= counts).all() and not (move.unmask & ~asked).any()
        assert torch.equal(move.unmask.any(1), where.any(1))
        assert not move.remask.any() and not move.redraw.any()
        seen.append(move)
        return move

    dataclasses.replace(sampler, selection=watched).sample(fake, batch)
    assert seen


@pytest.mark.parametrize("part", SCHEDULES, ids=repr)
def test_a_pace_sums_up_and_has_no_empty_step(part: Any) -> None:
    for tokens in [*range(40), 100, 1024, 4096]:
        counts = part.counts(tokens)
        assert sum(counts) == tokens and all(isinstance(n, int) and n > 0 for n in counts)


def test_a_guide_of_scale_zero_is_no_guide() -> None:
    free = guidance.ClassifierFree(scale=0.0, drop=DROP, null_id=NULL)
    edit = guidance.EditGuidance(scale=0.0, image_scale=0.0, drop=DROP, keep=frozenset({"source"}), null_id=NULL)
    never = guidance.ClassifierFree(scale=4.0, drop=DROP, null_id=NULL, interval=(0.0, 0.0))
    _, plain, _ = run(BASE, requests(BASE))
    for part in (free, edit, never):
        _, guided, _ = run(dataclasses.replace(BASE, guidance=part), requests(BASE))
        assert torch.equal(guided.ids, plain.ids)
    _, guided, _ = run(dataclasses.replace(BASE, guidance=GUIDANCES[1]), requests(BASE))
    assert not torch.equal(guided.ids, plain.ids)


def test_a_select_that_takes_nothing_is_named() -> None:
    def lazy(batch: Batch, proposal: Any, where: Tensor, counts: Tensor, at: Any) -> Move:
        return selection.move(torch.zeros_like(where))

    with pytest.raises(NothingUnmasked, match="rows \\[0, 1, 2, 3\\]"):
        run(dataclasses.replace(BASE, selection=lazy), requests(BASE))


def test_a_token_that_the_model_does_not_score_is_a_named_error() -> None:
    """A third kind of token: the fake model scores text and codes only."""
    batch = collate([sequence(("prompt", Kind.TEXT, 3, False), ("answer", Kind.TEXT, 4, True))], [0])
    strange = batch.replace(kind=batch.kind.masked_fill(batch.masked & (torch.arange(7) == 5), 9))
    with pytest.raises(NothingPredicted, match=r"row 0, token 5 \(kind 9\)"):
        BASE.sample(fake, strange)


def test_a_move_touches_nothing_but_what_was_masked_at_the_start() -> None:
    """Kept codes of an infill lie in a writable span; a selection that remasks or redraws them changes nothing."""
    batch = collate([sequence(("prompt", Kind.TEXT, 3, False), ("answer", Kind.TEXT, 6, True), given=(4, 5))], [0])

    def greedy(b: Batch, proposal: Any, where: Tensor, counts: Tensor, at: Any) -> Move:
        everything = torch.ones_like(where)
        return Move(unmask=where, remask=everything & ~where, redraw=everything)

    result = dataclasses.replace(BASE, selection=greedy).sample(fake, batch)
    assert not result.masked.any() and torch.equal(result.ids[~batch.masked], batch.ids[~batch.masked])


ELASTIC = [
    dataclasses.replace(BASE, guidance=GUIDANCES[3]),
    dataclasses.replace(BASE, blocks=blocks.Blocks(length=4), stopping=STOPS[1], guidance=GUIDANCES[1]),
    dataclasses.replace(presets.lavida_o_image(grid=(4, 4), null_id=NULL, drop=DROP)),
    presets.lavida_o_image_256(null_id=NULL, drop=DROP),
]


@pytest.mark.parametrize("sampler", ELASTIC, ids=["edit", "blocks", "stratified", "confident"])
def test_the_laws_hold_with_the_real_model(sampler: Sampler) -> None:
    model, rows = tiny(), requests(sampler)
    batch, result, _ = run(sampler, rows, model)
    assert not result.masked.any() and torch.equal(result.ids[~batch.masked], batch.ids[~batch.masked])
    for index, row in enumerate(rows):
        alone = sampler.sample(model, collate([row], [10 + index]))
        assert torch.equal(result.ids[index, : len(row.ids)], alone.ids[0])


def test_stacked_views_equal_views_one_by_one() -> None:
    batch = collate(requests(BASE), range(4))
    at = temperature.Progress(
        number=torch.zeros(4, dtype=torch.long), of=torch.ones(4, dtype=torch.long), length=batch.ids.shape[1]
    )
    views, model = GUIDANCES[3].views(batch, at), tiny()
    with torch.no_grad():
        together = model(stack(views), predict=batch.masked.repeat(3, 1))
        alone = [model(view, predict=batch.masked) for view in views]
    assert torch.allclose(together.logits(Kind.CODE), torch.cat([p.logits(Kind.CODE) for p in alone]), atol=1e-4)
    assert torch.allclose(together.logits(Kind.TEXT), torch.cat([p.logits(Kind.TEXT) for p in alone]), atol=1e-4)
