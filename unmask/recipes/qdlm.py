"""Demonstration of ``methods.qdlm``: ``mini`` in 8, 4, 3 and 2 bits, rounded, and by GPTQ with clean and with masked calibration.

    unmask methods run qdlm

GPTQ is the same twice, with as many sequences; they differ in nothing but the masks. Rounding uses the same grids. Measured are the loss
of masked tokens on other sequences with the same masks for every model, and the share of drawings and answers that are right.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from unmask.evaluation.demonstration import Demonstration, Findings, Plot, Table, Work
from unmask.evaluation.evaluate import EvalPlan, Record, measure
from unmask.evaluation.metrics import Figure, average, over_seeds, paired
from unmask.evaluation.world_suite import PARTS
from unmask.methods.qdlm import GPTQ, Method, methods
from unmask.pipeline.model import Model
from unmask.pipeline.opening import load
from unmask.recipes.quantising import calibration, quantised
from unmask.recipes.starting import start_of
from unmask.sequence import Batch, Kind

BITS = (8, 4, 3, 2)
WAYS = ("rounding", "clean", "masked")
KINDS = {"words": Kind.TEXT, "codes": Kind.CODE}
SUITE = {"geneval": 36, "questions": 360}  # parts and items
_MODEL, _GROUP = "mini", 0  # one scale a row
_CALIBRATION, _CHECKED = 32, 128  # sequences
_MORE = 2  # draws of calibration sequences at the compared width, after one for each seed
_LOST = 0.02  # share of the suite: the width that is compared is the first that loses more
_OTHER = 50  # seed of the sequences that are measured
Losses = dict[str, list[float]]


def run(work: Work) -> Findings:
    losses = {
        key: work.once(f"loss/{key}", functools.partial(_losses_of, work, *key.split("-"))) for key in _every(work)
    }
    whole = work.once("loss/whole", lambda: _losses(_network(_MODEL), work))
    rises = {
        kind: {(bits, way): _rise(losses, whole, kind, bits, way, work) for bits in _bits(work) for way in WAYS}
        for kind in KINDS
    }
    suites = {"whole": work.once("suite/whole", lambda: _suite(_model(), work))}
    for bits in _bits(work):
        suites[f"{bits}-rounding-0"] = _suite_of(work, bits, "rounding", 0)
    width = _width(suites, work)
    for way in WAYS[1:]:
        for seed in work.seeds:
            suites[f"{width}-{way}-{seed}"] = _suite_of(work, width, way, seed)
    gains = _gains_of_losses(losses, width, work) | _gains_of_suites(suites, width, work)
    return _findings(rises, suites, gains, width, work)


def _bits(work: Work) -> tuple[int, ...]:
    """The widths that there is work for; a rehearsal takes the smallest alone."""
    return BITS[-min(len(BITS), work.steps(16)) :]


def _every(work: Work) -> list[str]:
    """bits-way-seed of every quantised network."""
    return [
        f"{bits}-{way}-{seed}"
        for bits in _bits(work)
        for way in WAYS
        for seed in (work.seeds if way != "rounding" else (0,))
    ]


# -- models -----------------------------------------------------------------------------------------------------------


def _model() -> Model:
    opened = load(_MODEL, device="cpu")
    assert isinstance(opened, Model)
    return opened


def _network(name: str) -> nn.Module:
    return start_of(name).network().eval()


@functools.lru_cache(maxsize=8)
def _sequences(rows: int, seed: int, clean: bool) -> tuple[Batch, ...]:
    return tuple(calibration(start_of(_MODEL), rows=rows, seed=seed, clean=clean))


def _quantise(net: nn.Module, bits: int, way: str, seed: int, work: Work) -> None:
    rounding = methods(bits, _GROUP)["rtn"]
    method: Method = rounding if way == "rounding" else methods(bits, _GROUP)["gptq"]
    assert way == "rounding" or isinstance(method, GPTQ)
    rows = () if way == "rounding" else _sequences(work.steps(_CALIBRATION, 4), 1 + seed, way == "clean")
    quantised(net, method, rows)


# -- measures ---------------------------------------------------------------------------------------------------------


def _losses_of(work: Work, bits: str, way: str, seed: str) -> Losses:
    net = _network(_MODEL)
    _quantise(net, int(bits), way, int(seed), work)
    work.on_progress("quantised networks", 0, len(_every(work)))
    return _losses(net, work)


@torch.no_grad()
def _losses(net: nn.Module, work: Work) -> Losses:
    """The mean loss of the masked words and codes of every sequence that has any, in nats."""
    found: Losses = {kind: [] for kind in KINDS}
    for batch in _sequences(work.steps(_CHECKED, 8), _OTHER, False):
        assert batch.clean is not None
        scored = net(batch, predict=batch.masked).scored
        for name, kind in KINDS.items():
            if kind in scored and len(at := scored[kind].at):
                truth = batch.clean.flatten()[at]
                found[name].append(float(nn.functional.cross_entropy(scored[kind].logits.float(), truth)))
    return found


def _suite_of(work: Work, bits: int, way: str, seed: int) -> Losses:
    def made() -> Losses:
        model = _model()
        model.parts.require(frozenset({"und", "gen", "text_head", "vision", "vq.encoder", "vq.decoder"}))
        _quantise(model.parts.net, bits, way, seed, work)
        return _suite(model, work)

    return work.once(f"suite/{bits}-{way}-{seed}", made)


def _suite(model: Model, work: Work) -> Losses:
    """Whether every item is right (1 or 0), by part."""
    found: Losses = {}
    for name, items in SUITE.items():
        part, plan = PARTS[name], EvalPlan(n=work.steps(items, 2))
        rows = measure(model, part, plan, Record(), work.on_progress).rows
        found[name] = [float(row["right"]) for row in rows]
    return found


# -- figures ----------------------------------------------------------------------------------------------------------


def _rise(losses: dict[str, Any], whole: Losses, kind: str, bits: int, way: str, work: Work) -> Figure:
    """The rise of the loss over the unquantised model's, in nats: over calibration draws, or over sequences for rounding."""
    if way == "rounding":
        return paired(losses[f"{bits}-{way}-0"][kind], whole[kind], unit="nats")
    means = [_mean(losses[f"{bits}-{way}-{seed}"][kind]) - _mean(whole[kind]) for seed in work.seeds]
    return over_seeds(means, unit="nats")


def _mean(values: Sequence[float]) -> float:
    return sum(values) / max(1, len(values))


def _overall(found: Losses) -> float:
    return _mean([_mean(values) for values in found.values()])


def _width(suites: dict[str, Losses], work: Work) -> int:
    """The first width at which rounding loses more than two points of the suite, and more than chance gives; else the smallest."""
    whole = suites["whole"]
    for bits in _bits(work):
        rounded = suites[f"{bits}-rounding-0"]
        items = [sum((found[part] for part in SUITE), list[float]()) for found in (rounded, whole)]
        if _overall(whole) - _overall(rounded) > _LOST and paired(*items)["high"] < 0:
            return bits
    return BITS[-1]


def _gains_of_losses(losses: dict[str, Any], width: int, work: Work) -> dict[str, Figure]:
    """How much lower the loss is with masks than without, over draws of calibration sequences."""
    draws = (*work.seeds, *range(max(work.seeds) + 1, max(work.seeds) + 1 + work.steps(_MORE, least=0)))
    of = {
        key: work.once(f"loss/{key}", functools.partial(_losses_of, work, *key.split("-")))
        for key in (f"{width}-{way}-{draw}" for way in WAYS[1:] for draw in draws)
    }
    return {
        f"{kind}_gain_of_masks": over_seeds(
            [_mean(of[f"{width}-clean-{d}"][kind]) - _mean(of[f"{width}-masked-{d}"][kind]) for d in draws], unit="nats"
        )
        for kind in KINDS
    }


def _gains_of_suites(suites: dict[str, Losses], width: int, work: Work) -> dict[str, Figure]:
    """How much more is right with masks than without: by part over items, each the mean of its draws, and of both parts over draws."""

    def items(way: str, part: str) -> list[float]:
        draws = [suites[f"{width}-{way}-{seed}"][part] for seed in work.seeds]
        return [_mean(one) for one in zip(*draws, strict=True)]

    parts = {f"{part}_gain_of_masks": paired(items("masked", part), items("clean", part)) for part in SUITE}
    whole = [_overall(suites[f"{width}-masked-{s}"]) - _overall(suites[f"{width}-clean-{s}"]) for s in work.seeds]
    return parts | {"suite_gain_of_masks": over_seeds(whole)}


def _findings(
    rises: dict[str, Any], suites: dict[str, Losses], gains: dict[str, Figure], width: int, work: Work
) -> Findings:
    lost = {
        way: [_overall(suites["whole"]) - _overall(suites[f"{width}-{way}-{s}"]) for s in work.seeds]
        for way in WAYS[1:]
    }
    rounding = _overall(suites["whole"]) - _overall(suites[f"{width}-rounding-0"])
    figures: dict[str, Figure] = dict(gains)
    for kind, found in rises.items():
        figures |= {f"{kind}_{bits}bit_{way}": figure for (bits, way), figure in found.items() if bits < 8}
    seen = all((gains[f"{kind}_gain_of_masks"]["low"] or 0) > 0 for kind in KINDS)
    means = {way: _mean(values) for way, values in lost.items()}
    verdict = (
        f"At {width} bits, the first width at which rounding loses more than 2 points, the suite loses {100 * rounding:.1f} points by "
        f"rounding, {100 * means['clean']:.1f} with clean and {100 * means['masked']:.1f} with masked calibration; with masks the loss of "
        f"words is {gains['words_gain_of_masks']['value']:.3f} and that of codes {gains['codes_gain_of_masks']['value']:.3f} nats lower."
    )
    return Findings(
        about="mini with one scale a row; GPTQ calibrated on the same number of sequences, with and without masks; "
        "rounding on the same grids. The suite is the mean of drawings (geneval) and answers (questions) that are right.",
        verdict=verdict,
        seen=seen,
        figures=figures,
        shown=(*_tables(rises, suites, width, work), *_plots(rises, work)),
    )


def _tables(rises: dict[str, Any], suites: dict[str, Losses], width: int, work: Work) -> tuple[Table, ...]:
    rows = tuple(
        (kind, bits, *(found[bits, way] for way in WAYS)) for kind, found in rises.items() for bits in _bits(work)
    )
    whole = suites["whole"]
    lost: list[tuple[str | int | float | Figure, ...]] = []
    for bits in _bits(work):
        rounded = suites[f"{bits}-rounding-0"]
        paired_rows = [paired(rounded[part], whole[part]) for part in SUITE]
        lost.append((bits, "rounding", *paired_rows))
    for way in WAYS[1:]:
        for_parts = [
            over_seeds([_mean(suites[f"{width}-{way}-{s}"][part]) - _mean(whole[part]) for s in work.seeds])
            for part in SUITE
        ]
        lost.append((width, way, *for_parts))
    start = ("none", "not quantised", *(average(whole[part]) for part in SUITE))
    return (
        Table(title="Rise of the loss of masked tokens, nats", head=("tokens", "bits", *WAYS), rows=rows),
        Table(
            title="Change of the suite",
            head=("bits", "calibration", *SUITE),
            rows=(start, *lost),
            note="The first row is the share that is right; all others are differences to it.",
        ),
    )


def _plots(rises: dict[str, Any], work: Work) -> tuple[Plot, ...]:
    def line(kind: str, way: str) -> list[tuple[float, float | Figure]]:
        return [(float(bits), rises[kind][bits, way]) for bits in sorted(_bits(work)) if bits < 8]

    return tuple(
        Plot(
            title=f"Loss of masked {kind}", across="bits", up="rise, nats", lines={way: line(kind, way) for way in WAYS}
        )
        for kind in KINDS
    )


DEMO = Demonstration(minutes=8, run=run)
