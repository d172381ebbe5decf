"""The demonstration of LongLLaDA: retrieval at up to 6 times the trained length, of a masked model and of its causal twin.

    unmask methods run longllada

Both are small rotary networks that recall values by keys (``data.recall``) in rows of 64 tokens. They share the first steps, which are
causal (as Dream starts from a causal model); then one goes on with two-way attention and masked answers, the other as it is, for as many
steps. Tested are longer rows, by the distance between a pair and its question.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from unmask.data.recall import Recall
from unmask.evaluation.demonstration import Demonstration, Findings, Plot, Table, Work
from unmask.evaluation.metrics import Figure, over_seeds
from unmask.methods.longllada import ntk_factor
from unmask.models.elastic import Elastic, init
from unmask.models.sizes import text_config
from unmask.objectives.masked import Masked
from unmask.recipe import Optim, Recipe, Training
from unmask.rng import generator
from unmask.sequence import Batch, Kind
from unmask.step import Loss

TRAINED, LENGTHS = 64, (64, 128, 256, 384)
FACTORS = ("factor 1", "formula", "twice the formula")
KINDS = {"masked": Recall(), "causal": Recall(causal=True)}
_ROWS, _SHARED, _APART, _TESTED, _BINS = 32, 800, 400, 96, 6
_CONFIG = text_config(
    vocab_size=Recall().vocabulary, width=64, heads=2, layers=2, mlp=128, rope_theta=10_000.0, shifted=True
)


def demo(work: Work) -> Findings:
    """Retrieval by length and depth with three factors of the rotary base."""
    found: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for seed in work.seeds:
        for kind in KINDS:
            measured = work.once(f"{kind}/{seed}", partial(_by_length, work, kind, seed))
            for length in LENGTHS:
                found.setdefault((kind, length), []).append(measured[str(length)])
    return _findings(found)


def _by_length(work: Work, kind: str, seed: int) -> dict[str, Any]:
    """Shares of right answers of one trained network: length -> factor -> by distance, nearest first."""
    net = _trained(work, kind, seed)
    return {str(length): _tested(net, kind, length, work.steps(_TESTED, least=4)) for length in LENGTHS}


def _trained(work: Work, kind: str, seed: int) -> Elastic:
    begun = _recipe("causal", seed, work.steps(_SHARED, least=2), partial(_fresh, seed))
    first = work.train(f"{seed}/shared", replace(begun, optim=replace(begun.optim, floor=1.0)))
    more = _recipe(kind, seed, work.steps(_APART, least=2), partial(copy.deepcopy, first))
    return work.train(f"{seed}/{kind}", more)  # type: ignore[return-value]


def _recipe(kind: str, seed: int, steps: int, model: Callable[[], nn.Module]) -> Recipe[Any, Batch]:
    return Recipe(
        name=f"longllada.{kind}",
        model=model,
        source=Rows(kind=kind, seed=seed),
        objective=_loss,
        optim=Optim(lr=2e-3, weight_decay=0.01, warmup=min(100, steps), ema=0.0),
        training=Training(steps=steps, seed=seed, device="cpu", bf16=False, save_every=max(1, steps // 2)),
    )


def _fresh(seed: int) -> Elastic:
    net = Elastic(_CONFIG, mask_id=0)
    init(net, generator("longllada", seed))
    return net


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Batches of the training."""

    kind: str
    seed: int

    def __call__(self, step: int) -> Batch:
        return _asked(self.kind, TRAINED, _ROWS, generator("recall", self.kind, self.seed, step))[0]


def _asked(kind: str, length: int, rows: int, rng: torch.Generator) -> tuple[Batch, Tensor]:
    """Rows whose answers are masked, or scored by the token before them; and the distance of every question to its pair, [B, P]."""
    made = KINDS[kind].rows(length, rows, rng)
    batch = made.batch.replace(weight=torch.ones(made.batch.ids.shape))
    if kind == "causal":
        batch = batch.replace(target=batch.masked, masked=torch.zeros_like(batch.masked))
    return batch, made.answer - made.place


def _loss(model: Any, batch: Batch, rng: torch.Generator) -> Loss:
    return Masked().of(model, batch)


@torch.no_grad()
def _tested(net: Elastic, kind: str, length: int, rows: int) -> dict[str, Any]:
    factor = ntk_factor(_CONFIG.rope_theta, _CONFIG.head_channels, TRAINED, length)
    found = {}
    for name, used in zip(FACTORS, (1.0, factor, 2 * factor), strict=True):
        net.config = replace(_CONFIG, rope_factor=used)
        batch, distance_BP = _asked(kind, length, rows, generator("recall", "test", length))
        predict = batch.masked if batch.target is None else batch.target
        scored = net(batch, predict=predict).scored[Kind.TEXT]
        assert scored.logits is not None
        right_BP = (scored.logits.argmax(1) == batch.ids.flatten()[scored.at]).view_as(distance_BP)
        bins_BP = ((distance_BP - 1) * _BINS // length).clamp(max=_BINS - 1)
        shares = [right_BP[bins_BP == b].float() for b in range(_BINS)]
        found[name] = {
            "all": float(right_BP.float().mean()),
            "near": float(right_BP[distance_BP < TRAINED].float().mean()),
            "far": float(right_BP[distance_BP >= length // 2].float().mean()),
            "by depth": [float(part.mean()) if len(part) else None for part in shares],
        }
    net.config = _CONFIG
    return found


def _findings(found: dict[tuple[str, int], list[dict[str, Any]]]) -> Findings:
    def of(kind: str, length: int, name: str, what: str = "all") -> Figure:
        return over_seeds([one[name][what] for one in found[kind, length]], unit="share")

    def gain(kind: str, length: int) -> Figure:
        return over_seeds([one["formula"]["all"] - one["factor 1"]["all"] for one in found[kind, length]], unit="share")

    names = [(kind, name) for kind in KINDS for name in FACTORS]
    rows = tuple(
        (length, kind, name, *(of(kind, length, name, what) for what in ("all", "near", "far")))
        for length in LENGTHS
        for kind, name in names
    )
    gains = {(kind, length): gain(kind, length) for kind in KINDS for length in LENGTHS[1:]}
    best = gains["masked", LENGTHS[1]]
    seen = all(
        gains["masked", length]["low"] is not None and gains["masked", length]["low"] > 0 for length in LENGTHS[1:]
    )
    said = ", ".join(f"{gains['masked', n]['value']:+.3f} at {n // TRAINED} times" for n in LENGTHS[1:])
    return Findings(
        about=f"Networks trained on rows of {TRAINED} tokens answer questions about pairs that stand up to {LENGTHS[-1]} tokens before. "
        "The factor costs nothing, so all arms of a row make the same forwards. Near: pairs within the trained length; far: in the far "
        "half of the row.",
        verdict=f"The factor changes the share of right answers of the masked model by {said} the trained length.",
        seen=seen and best["value"] > 0,
        figures={f"gain.{kind}.{length}": figure for (kind, length), figure in gains.items()},
        shown=(
            Table(title="Right answers", head=("tokens", "model", "rotary base", "all", "near", "far"), rows=rows),
            Plot(
                title="Right answers by length",
                across="tokens of a row",
                up="share right",
                lines={f"{kind}, {name}": [(n, of(kind, n, name)) for n in LENGTHS] for kind, name in names},
                log=True,
            ),
            *(_depths(found, length) for length in LENGTHS[1:]),
        ),
    )


def _depths(found: dict[tuple[str, int], list[dict[str, Any]]], length: int) -> Plot:
    lines: dict[str, Sequence[tuple[float, float | Figure]]] = {}
    for kind in KINDS:
        for name in FACTORS[:2]:
            measured = [one[name]["by depth"] for one in found[kind, length]]
            points = [(b, [one[b] for one in measured if one[b] is not None]) for b in range(_BINS)]
            lines[f"{kind}, {name}"] = [
                ((b + 0.5) * length / _BINS, over_seeds(values, unit="share")) for b, values in points if values
            ]
    return Plot(title=f"Rows of {length} tokens", across="distance in tokens", up="share right", lines=lines)


DEMO = Demonstration(minutes=3, run=demo)
