"""Tiny instances of every part, and the walk that finds the parts: what all contract suites share.

A part is a public frozen dataclass in ``unmask.{sampling,corruption,objectives,methods}``. A part without an instance fails
``test_parts.py``; the instances of a method stand on its card (``CARD.parts``, by role).
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import inspect
import pkgutil
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from unmask.corruption import absorbing, collapsing, schedules
from unmask.corruption import step_causal as masking
from unmask.grammars.automaton import compile_automaton
from unmask.grammars.grammar import Grammar
from unmask.grammars.regex import parse_regex
from unmask.models.elastic import Elastic, init
from unmask.models.fake import FakeDenoiser
from unmask.models.sizes import SIZES
from unmask.objectives import align, cells, distillation, encoded, masked, tokenizer
from unmask.rng import generator
from unmask.sampling import (
    blocks,
    cache,
    constrain,
    cooling,
    editing,
    guidance,
    kept,
    other_prompts,
    prior,
    schedule,
    selection,
    step_causal,
    stopping,
    temperature,
    token_sampler,
)
from unmask.sampling.orders import stratified
from unmask.sampling.sampler import Sampler, Step
from unmask.sequence import Batch, Kind, Sequence, Span, collate
from unmask.step import Prediction

from . import dream_parts, training_parts

torch.set_num_threads(1)
TEXT, CODES, NULL, END = 24, 16, 3, 5
DROP = frozenset({"prompt", "source"})
ORDER = tuple(stratified(4))
GRAMMAR = Grammar(compile_automaton(parse_regex("[a-z]*")), [b"", *(bytes([97 + i]) for i in range(TEXT - 1))], END)
PACKAGES = ("sampling", "corruption", "objectives", "methods")


def two_or_more(ids: list[int]) -> bool:
    """Whether a text span may end: its first two tokens are unmasked."""
    return len(ids) >= 2


SCHEDULES = [
    schedule.Equal(steps=3),
    schedule.Fixed(each=2),
    schedule.Shift(steps=5, shift=3.0),
    schedule.Cosine(steps=6),
    step_causal.ByPosition(schedule=schedule.Cosine(steps=6), codes=1),
    kept.Kept(steps=5),
    kept.Kept(steps=6, of=30),
    kept.Kept(steps=4, curve=kept.Power(exponent=2.0)),
]
TOKEN_SAMPLERS = [
    token_sampler.Greedy(),
    token_sampler.Greedy(score=token_sampler.Entropy()),
    token_sampler.Greedy(score=token_sampler.Margin()),
    token_sampler.Greedy(score=token_sampler.LogProbability()),
    token_sampler.Categorical(temperature=0.8),
    token_sampler.Categorical(temperature=temperature.Linear(start=2.0, end=0.0)),
    token_sampler.Categorical(temperature=temperature.CosineTo(minimum=0.2)),
    token_sampler.Categorical(temperature=temperature.ShiftTo(shift=3.0, minimum=0.1)),
    token_sampler.Categorical(temperature=0.8, top_p=0.6),
    token_sampler.OnlyIds(low=4, high=9, token_sampler=token_sampler.Categorical()),
    token_sampler.Without(ids=(NULL,), token_sampler=token_sampler.Categorical(), size=20),
    token_sampler.TopP(mass=0.5, token_sampler=token_sampler.Categorical()),
    constrain.Constrained(token_sampler=token_sampler.Categorical(temperature=0.8), grammars=(("answer", GRAMMAR),)),
]
SELECTIONS = [
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
    cooling.Cooling(noise=2.0),
    editing.TokenEditing(selection=selection.Confident(), threshold=0.2, most=3),
]
EDIT = guidance.EditGuidance(scale=1.2, image_scale=1.4, drop=DROP, keep=frozenset({"source"}), null_id=NULL)
GUIDANCES = [
    guidance.NoGuidance(),
    guidance.ClassifierFree(scale=3.0, drop=DROP, null_id=NULL),
    guidance.ClassifierFree(scale=3.0, drop=DROP, null_id=NULL, interval=(0.3, 0.7)),
    EDIT,
    dataclasses.replace(EDIT, scale=0.0),
    other_prompts.OtherPrompts(scale=2.0, instead=(("null", DROP), ("other", DROP)), other_scale=1.0),
    guidance.ClassifierFree(scale=3.0, drop=DROP, null_id=NULL, refresh=2),
    guidance.ClassifierFree(scale=3.0, drop=DROP, null_id=NULL, interval=(0.3, 0.9), refresh=3),
    dataclasses.replace(EDIT, refresh=2),
]
BLOCKS = [
    blocks.Whole(),
    blocks.Blocks(length=3),
    blocks.SpanBySpan(),
    blocks.ByOrder(),
    blocks.ByOrder(blocks=blocks.Blocks(length=3)),
]
STOPPINGS = [
    stopping.Never(),
    stopping.EndOfTurn(ids=(END, 7)),
    stopping.Corrections(steps=2),
    stopping.Until(enough=two_or_more, fill=END),
    stopping.Until(enough=two_or_more, fill=END, stopping=stopping.EndOfTurn(ids=(END, 7))),
]
PRIORS = [prior.AllMasked(), prior.UniformIds(sizes={Kind.TEXT: TEXT, Kind.CODE: CODES}), *dream_parts.PRIORS]
CACHES = [
    cache.NoCache(),
    cache.PrefixCache(),
    cache.PrefixCache(least=60),
    cache.CroppedCache(),
    cache.BlockCache(),
    cache.BlockCache(refresh=1),
    cache.BlockCache(refresh=2),
    step_causal.SparseCache(),
]
POLICIES = [schedules.Uniform(), schedules.Cosine(), schedules.OftenAll(policy=schedules.Uniform(), all=0.3)]
CORRUPTIONS = [absorbing.Absorbing(policies={Kind.TEXT: p}, otherwise=POLICIES[0]) for p in POLICIES]
COLLAPSING = collapsing.Collapsing(at=0.5, announce=9)
UNIFORM = absorbing.Absorbing(otherwise=POLICIES[0])
DROPOUT = masked.Dropout(spans=frozenset({"prompt"}), rate=0.5)
OBJECTIVES = [
    masked.Masked(corruption=UNIFORM),
    masked.Masked(corruption=UNIFORM, weight=masked.Plain(), dropouts=(DROPOUT,)),
    masked.Masked(corruption=UNIFORM, weight=masked.InverseTime(), complementary=True),
    masked.Masked(complementary=True),
    masked.Masked(corruption=COLLAPSING),
]
# Objectives over batches of their own kind, with tests in tests/objectives and tests/recipes.
TOGETHER = masked.Together(objectives=(("text", OBJECTIVES[0], 1.0),))
SQUARES = tokenizer.Squares(mean=torch.zeros(12), basis=torch.eye(12)[:, :2], codebook=torch.eye(2))
OTHER_OBJECTIVES = [
    TOGETHER,
    *training_parts.OTHER_OBJECTIVES,
    align.Aligned(words=(("shape", ((4,), (5, 6))),), codes=(("cell", 3),)),
    cells.Cells(),
    tokenizer.Distilled(),
    distillation.Distillation(masked=OBJECTIVES[0], teacher=contextlib.nullcontext),
    encoded.Encoded(objective=TOGETHER, tokenizer=lambda pictures: pictures[:, :1, :1, 0].long()),  # type: ignore[arg-type]
    encoded.FromBytes(objective=cells.Cells()),
    tokenizer.Taught(teacher=SQUARES, squares=2),
    tokenizer.Rounded(),
    SQUARES,
]
# what flows between the parts, changes of whole samplers, and the loop itself
NOT_PARTS = frozenset(
    "Agenda Ancestral Card Fast FastPictures FastText Lent SpanLayout Bound Group Masks PlannedStep SamplingRun Sampler Step Todo".split()
)


def method_parts(role: str | None = None) -> list[Any]:
    """The instances on the cards of ``unmask.methods``; those of one role if given: a field of
    ``Sampler``, "sampler" for a whole one, or the name of a protocol.
    """
    cards = [vars(module).get("CARD") for module in modules("methods")]
    return [
        part
        for card in cards
        if card is not None
        for key, some in card.parts.items()
        for part in some
        if role in (None, key)
    ]


def modules(package: str) -> Iterator[Any]:
    name = f"unmask.{package}"
    if importlib.util.find_spec(name) is not None:
        for info in pkgutil.iter_modules(importlib.import_module(name).__path__, f"{name}."):
            yield importlib.import_module(info.name)


def with_parts_in(value: Any) -> Iterator[Any]:
    """A value and every part inside its fields, in tuples and mappings too."""
    if isinstance(value, tuple | list):
        for inner in value:
            yield from with_parts_in(inner)
    elif isinstance(value, dict):
        yield from with_parts_in(tuple(value.values()))
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield value
        for field in dataclasses.fields(value):
            yield from with_parts_in(getattr(value, field.name))


def classes_in(value: Any) -> set[type]:
    return {type(part) for part in with_parts_in(value)}


def fits(part: Any, protocol: type) -> bool:
    """Whether a part has every member of a protocol, with as many positional parameters and the same keyword-only ones."""
    return not misfits(part, protocol)


def misfits(part: Any, protocol: type) -> list[str]:
    """What a part lacks of a protocol; empty where it fits."""
    wrong = []
    for name, member in vars(protocol).items():
        if (
            name.startswith("_")
            and name != "__call__"
            or not (inspect.isfunction(member) or isinstance(member, property))
        ):
            continue
        own = getattr(part, "forward" if name == "__call__" and isinstance(part, torch.nn.Module) else name, None)
        if isinstance(member, property):
            if not hasattr(part, name):
                wrong.append(f"no {name}")
        elif own is None or not callable(own):
            wrong.append(f"no {name}()")
        elif _shape(own) != _shape(member, skip=1):
            wrong.append(f"{name}{inspect.signature(own)} instead of {inspect.signature(member)}")
    return wrong


def _shape(function: Callable[..., Any], skip: int = 0) -> tuple[int, frozenset[str]]:
    """(positional parameters, names of the keyword-only ones without a part's own optional ones)."""
    given = list(inspect.signature(function).parameters.values())[skip:]
    return (
        sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in given),
        frozenset(p.name for p in given if p.kind == p.KEYWORD_ONLY),
    )


ALL_SCHEDULES = SCHEDULES + dream_parts.SCHEDULES + method_parts("schedule")
ALL_TOKEN_SAMPLERS = TOKEN_SAMPLERS + dream_parts.TOKEN_SAMPLERS + method_parts("token_sampler")
ALL_SELECTIONS = SELECTIONS + dream_parts.SELECTIONS + method_parts("selection")
ALL_GUIDANCES = GUIDANCES + method_parts("guidance")
ALL_BLOCKS = BLOCKS + dream_parts.BLOCKS + method_parts("blocks")
ALL_STOPPINGS = STOPPINGS + method_parts("stopping")
ALL_PRIORS = PRIORS + method_parts("prior")
ALL_CACHES = CACHES + dream_parts.CACHES + method_parts("cache")
STEP_CAUSAL = masking.StepCausalMasking(corruption=UNIFORM, clean_blocks=2, text_groups=2, code_groups=2)
ALL_CORRUPTIONS = [*CORRUPTIONS, *training_parts.CORRUPTIONS, COLLAPSING, STEP_CAUSAL, *method_parts("Corruption")]
ALL_OBJECTIVES = OBJECTIVES + training_parts.OBJECTIVES + method_parts("Objective")

BASE = Sampler(
    schedule=schedule.Shift(steps=5, shift=3.0),
    token_sampler=token_sampler.Categorical(),
    selection=selection.Confident(noise=1.0),
)
SAMPLERS = (
    [dataclasses.replace(BASE, schedule=p) for p in ALL_SCHEDULES]
    + [dataclasses.replace(BASE, token_sampler=p) for p in ALL_TOKEN_SAMPLERS]
    + [dataclasses.replace(BASE, selection=p) for p in ALL_SELECTIONS]
    + [dataclasses.replace(BASE, guidance=p) for p in ALL_GUIDANCES]
    + [dataclasses.replace(BASE, blocks=p) for p in ALL_BLOCKS]
    + [dataclasses.replace(BASE, stopping=p) for p in ALL_STOPPINGS]
    + [dataclasses.replace(BASE, prior=p) for p in PRIORS[:1]]
    + [dataclasses.replace(BASE, cache=p) for p in ALL_CACHES]
    + [
        dataclasses.replace(
            BASE,
            blocks=blocks.Blocks(length=4),
            stopping=STOPPINGS[1],
            guidance=GUIDANCES[2],
            schedule=schedule.Equal(steps=4),
        )
    ]
    + method_parts("sampler")  # whole samplers, for parts that work together only
)


def name_of(value: object) -> str:
    """A test id: the value as written, without addresses and with sets in order, so that every process collects the same tests."""
    found = re.sub(r"frozenset\(\{(.*?)\}\)", lambda m: "{" + ", ".join(sorted(m[1].split(", "))) + "}", repr(value))
    return re.sub(r" at 0x[0-9a-f]+", "", found).replace("Sampler", "")[:150]


def parts_found() -> set[type]:
    """Every public dataclass of the packages with parts."""
    found = set()
    for package in PACKAGES:
        for module in modules(package):
            for name, thing in vars(module).items():
                own = (
                    isinstance(thing, type) and dataclasses.is_dataclass(thing) and thing.__module__ == module.__name__
                )
                if own and not name.startswith("_") and name not in NOT_PARTS:
                    found.add(thing)
    return found


fake = FakeDenoiser(sizes={Kind.TEXT: TEXT, Kind.CODE: CODES})


def tiny(key: str = "contract", **changes: Any) -> Elastic:
    """The smallest network with random weights; ``changes`` to its size."""
    model = Elastic(dataclasses.replace(SIZES["tiny"], **changes), mask_id=NULL).eval()
    init(model, generator(key))
    return model


def sequence(*spans: tuple[str, int, int, bool], given: tuple[int, ...] = (), seed: int = 0) -> Sequence:
    """A request of (name, kind, tokens, writable) spans with random ids; ``given``: writable tokens that are unmasked already."""
    start, table = 0, []
    for name, kind, tokens, writable in spans:
        grid: dict[str, Any] = {"grid": (4, 4), "fold": 2} if kind == Kind.CODE else {}
        table.append(Span(name=name, kind=kind, start=start, stop=start + tokens, writable=writable, **grid))
        start += tokens
    return row(table, given=given, seed=seed)


def row(spans: Iterable[Span], given: tuple[int, ...] = (), seed: int = 0) -> Sequence:
    """A request of any spans: random ids, the writable ones masked but for ``given``."""
    table = tuple(spans)
    masked = torch.cat([torch.full((len(s),), s.writable) for s in table])
    masked[list(given)] = False
    return Sequence(
        ids=torch.randint(8, CODES, (table[-1].stop,), generator=generator(seed)), masked=masked, spans=table
    )


def requests(sampler: Sampler) -> list[Sequence]:
    """Four requests of different shape; an ``InOrder`` gets pictures alone, since its order fits no other span."""
    if selection.InOrder in classes_in(sampler.selection):
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


def assert_batch_invariant(sampler: Sampler, rows: list[Sequence], model: Callable[..., Prediction] = fake) -> Batch:
    """Each row gives the same alone, with the others, and with the others and a longer row. Returns the rows together."""
    _, together, _ = run(sampler, rows, model)
    _, padded, _ = run(sampler, [*rows, longer_than(rows)], model)
    for index, one in enumerate(rows):
        n = len(one.ids)
        alone = sampler.sample(model, collate([one], [10 + index]))
        for found in (together, padded):
            assert torch.equal(found.ids[index, :n], alone.ids[0]), f"row {index}"
            assert found.clock[index] == alone.clock[0], f"row {index}"
            if found.values is not None and alone.values is not None:
                assert torch.equal(found.values[index, :n], alone.values[0]), f"row {index}"
    return together


def longer_than(rows: list[Sequence]) -> Sequence:
    """A row with a longer prompt than any, and the writable spans of the first."""
    wanted = max(len(r.ids) for r in rows) + 8
    prompt = Span(name="prompt", kind=Kind.TEXT, start=0, stop=wanted)
    table, at = [prompt], wanted
    for span in rows[0].spans:
        if span.writable:
            table.append(dataclasses.replace(span, start=at, stop=at + len(span), positions_of=""))
            at += len(span)
    longer = row(table, seed=99)
    channels = None if rows[0].values is None else rows[0].values.shape[1]
    return longer if channels is None else dataclasses.replace(longer, values=torch.zeros(at, channels))
