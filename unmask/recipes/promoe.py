"""ProMoE: a small drawing model with experts in every second layer (``methods.promoe``).

    unmask train promoe.drawer --out runs/experts                    captions and pictures of the small world
    unmask train promoe.drawer --data pets --out runs/pets           your own: a folder of pictures with texts (docs/data.md)
    unmask generate "a red apple on a white background" --model runs/experts
    unmask methods run promoe

Text and codes are tokens of one vocabulary, as in ``recipes.image_tokens``; codes are masked, and captions are dropped for guidance.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from unmask.checkpoints.schema import read_json
from unmask.checkpoints.store import load_module
from unmask.checkpoints.stream import CheckpointError
from unmask.evaluation.demonstration import Demonstration, Findings, Media, Table, Work
from unmask.evaluation.metrics import Figure, average, over_seeds
from unmask.evaluation.pairs import agrees
from unmask.json_types import Json
from unmask.methods.promoe import balanced, every_second, prototypes
from unmask.models.elastic import Elastic, init
from unmask.models.prototype_experts import Expert, RoutedExperts, Slot, WithExperts
from unmask.objectives.masked import Dropout, Masked
from unmask.pipeline import image_tokens
from unmask.pipeline.image_tokens import Kit, trunk
from unmask.pipeline.model import Model
from unmask.recipe import Optim, Recipe
from unmask.recipes.image_tokens import (
    PAIRS,
    CodedRows,
    guided,
    mini_kit,
    model_of,
    own,
    training,
    world,
    world_judge,
    world_kit,
)
from unmask.rng import generator, seeded
from unmask.sequence import Batch, Kind, collate
from unmask.tokens.image_tokens import drawn
from unmask.tokens.text import MASK

NAME = "promoe.drawer"
PROMPT = frozenset({"prompt"})
Make = Callable[..., nn.Module]  # (width, inner, routed) -> the feed-forward of a layer


class Dense(nn.Module):
    """The baseline: one expert of twice the width for all tokens."""

    def __init__(self, width: int, *, inner: int, routed: int = 0) -> None:
        super().__init__()
        self.whole = Expert(width, 2 * inner)

    def forward(self, x: Tensor, dropped: Tensor) -> Tensor:
        return self.whole(x)


KINDS: dict[str, Make] = {"prototypes": prototypes, "balanced": balanced, "dense": Dense}


def drawer(
    data: str = "",
    kind: str = "prototypes",
    routed: int = 4,
    width: int = 64,
    layers: int = 4,
    pictures: int = 4000,
    batch: int = 16,
    steps: int = 800,
    lr: float = 4e-3,
    seed: int = 0,
) -> Recipe:
    """A drawing model with experts.

    ``data``: your own captions and pictures; "": ``pictures`` pictures of the small world · ``kind``: prototypes, or for comparison
    balanced or dense · ``routed``: experts of a layer besides those for dropped captions and for all tokens.
    """
    if kind not in KINDS:
        raise ValueError(f"there is no kind {kind!r}; choose from {', '.join(KINDS)}")
    kit = mini_kit if data else world_kit

    def export(module: WithExperts, folder: Path) -> None:
        image_tokens.write_folder(folder, module, module.config, kit(), NAME, {"kind": kind, "routed": routed})

    return Recipe(
        name=NAME,
        model=lambda: fresh(kit(), kind, routed, width, layers, seed),
        source=CodedRows(
            data=lambda: own(data, kit()) if data else world(pictures, seed),
            row=lambda text, codes: drawn(kit().text, text, codes),
            seed=seed,
            batch=batch,
        ),
        objective=Masked(dropouts=(Dropout(spans=PROMPT, rate=0.15),)),
        optim=Optim(lr=lr, warmup=50, decay_from=0.3, floor=0.05, ema=0.99),
        training=training(steps, seed),
        export=export,
        open=opened,
    )


def fresh(kit: Kit, kind: str, routed: int, width: int, layers: int, seed: int) -> WithExperts:
    """A new network."""
    net = Elastic(replace(trunk(kit, width=width, layers=layers), shifted=False), mask_id=kit.text[MASK])
    init(net, generator("promoe", seed))
    return seeded(lambda: _with_experts(net, kind, routed), seed)


def _with_experts(net: Elastic, kind: str, routed: int) -> WithExperts:
    make = partial(KINDS[kind], inner=net.config.mlp // 2, routed=routed)
    return WithExperts(net, make, every_second(net.config.layers), PROMPT)


def opened(folder: Path, device: str = "cpu") -> Model:
    """The model of a folder of ``drawer``. CheckpointError for a file that is missing or does not fit."""
    raw = read_json(folder / "config.json")
    config, kit = image_tokens.described(folder, device)
    if raw.get("kind") not in KINDS or not isinstance(raw.get("routed"), int):
        raise CheckpointError(f"{folder / 'config.json'}: kind is {raw.get('kind')!r} and routed {raw.get('routed')!r}")
    net = _with_experts(Elastic(config, mask_id=kit.text[MASK]), raw["kind"], raw["routed"])
    return drawing(load_module(net, folder).to(device).eval(), kit)


def drawing(net: WithExperts, kit: Kit) -> Model:
    """The model of a network: it draws."""
    return model_of(net, kit, lambda row: row, guided)  # type: ignore[arg-type]


# -- the demonstration -------------------------------------------------------------------------------------------------

_STEPS, _PICTURES, _TESTED, _DRAWN, _ROUTED = 600, 1500, 160, 48, 4


def demo(work: Work) -> Findings:
    """Every kind of feed-forward for every seed: losses with and without a caption, drawings, and what experts specialise in."""
    return _findings(work.each(KINDS, partial(_measured, work), "networks"), work)


@lru_cache(maxsize=2)
def _net(work: Work, kind: str, seed: int) -> WithExperts:
    steps, pictures = work.steps(_STEPS, least=2), work.steps(_PICTURES, least=16)
    net = work.train(f"{kind}/{seed}", drawer(kind=kind, routed=_ROUTED, steps=steps, pictures=pictures, seed=seed))
    assert isinstance(net, WithExperts)
    return net


def _measured(work: Work, kind: str, seed: int) -> Json:
    net, kit = _net(work, kind, seed), world_kit()
    test = world(work.steps(_TESTED, least=8), 77)
    rows = [drawn(kit.text, text, codes) for text, codes in zip(test.texts, test.codes, strict=True)]
    batch = collate(rows, range(len(rows)))
    masked = (torch.rand(batch.ids.shape, generator=generator("promoe test")) < 0.6) & batch.writable
    noisy = batch.replace(masked=masked, time=masked.float())
    bare = noisy.drop(set(PROMPT), net.mask_id)
    found: Json = {"loss": _loss(net, noisy), "loss_without": _loss(net, bare)}
    if kind != "dense":
        nouns = torch.tensor([_number(text) for text in test.texts])
        found |= information_of(net, noisy, nouns)
    count = work.steps(_DRAWN, least=2)
    pictures = codes_of(net, kit, list(test.texts[:count]), seed)
    right = agrees(world_judge()(pictures), list(test.texts[:count]), placed=PAIRS.places)
    return found | {"right": float(average(right)["value"])}


def codes_of(net: WithExperts, kit: Kit, texts: list[str], seed: int) -> Tensor:
    """Codes of pictures drawn from captions, [N, h, w]."""
    model = drawing(net, kit)
    rows = [drawn(kit.text, text, kit.grid) for text in texts]
    done = guided(model.parts).sample(net, collate(rows, [seed * 1000 + i for i in range(len(rows))]))
    spans = [row.span("image") for row in rows]
    ids = [done.ids[i, span.start : span.stop] for i, span in enumerate(spans)]
    return torch.stack(ids).view(-1, *kit.grid)


@torch.no_grad()
def _loss(net: WithExperts, noisy: Batch) -> float:
    """Mean cross-entropy of the masked codes, in nats."""
    assert noisy.clean is not None
    scored = net(noisy).scored[Kind.CODE]
    assert scored.logits is not None
    return float(nn.functional.cross_entropy(scored.logits.float(), noisy.clean.flatten()[scored.at]))


@lru_cache(maxsize=1)
def _nouns() -> dict[str, int]:
    return {}


def _number(text: str) -> int:
    """A number for the object that a caption names first."""
    noun = text.split(" on ")[0].split()[-1]
    return _nouns().setdefault(noun, len(_nouns()))


@torch.no_grad()
def information_of(net: WithExperts, noisy: Batch, label_B: Tensor) -> Json:
    """Mutual information, in nats, of the routed expert of a code with its picture's object and with whether it is masked, averaged over
    layers; and the largest share of tokens that one expert has.
    """
    seen: list[tuple[Tensor, Tensor]] = []  # expert and token of every position

    def note(module: nn.Module, given: tuple[Any, ...]) -> None:
        assert isinstance(module, Slot) and isinstance(module.experts, RoutedExperts) and module.token is not None
        seen.append((module.experts.weights(given[0]).argmax(-1), module.token))

    hooks = [slot.register_forward_pre_hook(note) for slot in net.slots]
    try:
        net(noisy, predict=noisy.writable)
    finally:
        for hook in hooks:
            hook.remove()
    code, masked = (noisy.writable & noisy.valid).flatten(), noisy.masked.flatten().long()
    found = []
    for expert_N, token_N in seen:
        own = (token_N >= 0) & code[token_N]
        expert, token = expert_N[own], token_N[own]
        label = label_B[token // noisy.ids.shape[1]]
        load = expert.bincount().float().max() / len(expert)
        found.append((mutual(expert, label), mutual(expert, masked[token]), float(load)))
    return {
        name: sum(one[i] for one in found) / len(found) for i, name in enumerate(("of_object", "of_masked", "load"))
    }


def mutual(a: Tensor, b: Tensor) -> float:
    """Mutual information of two columns of numbers, in nats."""
    joint = torch.zeros(int(a.max()) + 1, int(b.max()) + 1, dtype=torch.float64)
    joint.index_put_((a, b), torch.ones(len(a), dtype=torch.float64), accumulate=True)
    joint /= joint.sum()
    apart = joint.sum(1, keepdim=True) * joint.sum(0, keepdim=True)
    return float((joint * (joint / apart).log()).nan_to_num(0.0).sum())


def _findings(found: dict[str, list[Json]], work: Work) -> Findings:
    def over(kind: str, what: str, unit: str = "nats") -> Figure:
        return over_seeds([one[what] for one in found[kind]], unit=unit)

    def gain(what: str, other: str, unit: str = "nats") -> Figure:
        pairs = zip(found["prototypes"], found[other], strict=True)
        return over_seeds([a[what] - b[what] for a, b in pairs], unit=unit)

    special = gain("of_object", "balanced")
    figures = {
        "prototypes_minus_balanced.of_object": special,
        "prototypes_minus_balanced.of_masked": gain("of_masked", "balanced"),
        **{f"prototypes_minus_{other}.loss": gain("loss", other) for other in ("dense", "balanced")},
        **{f"prototypes_minus_{other}.right": gain("right", other, "share") for other in ("dense", "balanced")},
    }
    rows = []
    for kind in KINDS:
        own = [over(kind, what) if kind != "dense" else "" for what in ("of_object", "of_masked", "load")]
        rows.append((kind, over(kind, "loss"), over(kind, "loss_without"), over(kind, "right", "share"), *own))
    head = ("feed-forward", "loss", "loss without caption", "drawings right", "expert : object", "expert : masked")
    return Findings(
        about=f"Networks of four layers draw pictures of the small world; the second and the fourth have {_ROUTED} routed experts, one for "
        "dropped captions and a shared one, each half as wide as the dense feed-forward. All kinds cost the same for a token and train for "
        f"{work.steps(_STEPS, least=2)} steps on the same batches, {len(work.seeds)} seeds. Loss: of masked codes of unseen pictures.",
        verdict=f"The expert of a token tells {over('prototypes', 'of_object')['value']:.2f} nats about the object of its picture with "
        f"prototypes and contrast, {over('balanced', 'of_object')['value']:.2f} with softmax and balance; the loss differs by "
        f"{figures['prototypes_minus_balanced.loss']['value']:+.3f}, from dense by {figures['prototypes_minus_dense.loss']['value']:+.3f}.",
        seen=special["low"] is not None and special["low"] > 0,
        figures=figures,
        shown=(
            Table(
                title="Kinds of feed-forward",
                head=(*head, "largest load"),
                rows=tuple(rows),
                note="expert : object and expert : masked are mutual information in nats; a load of 0.25 is even.",
            ),
            Media(title="Drawings of the first seed", items=_drawn(work)),
        ),
    )


def _drawn(work: Work) -> tuple[tuple[str, Image.Image], ...]:
    kit, test = world_kit(), world(work.steps(_TESTED, least=8), 77)
    items = []
    for kind in ("dense", "prototypes"):
        texts = list(test.texts[:4])
        codes = codes_of(_net(work, kind, work.seeds[0]), kit, texts, 0)
        items += [(f"{kind}: {text}", image) for text, image in zip(texts, kit.decode(codes), strict=True)]
    return tuple(items)


DEMO = Demonstration(minutes=8, run=demo)
