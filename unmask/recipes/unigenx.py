"""UniGenX on molecules and crystals: words for elements, and numbers for places, from a diffusion head or as bins (``methods.unigenx``).

    unmask train unigenx.matter --out runs/matter
    python -c "from unmask.recipes.unigenx import build; build('runs/matter', 'rocksalt Na Cl', 'salt.cif')"
    unmask methods run unigenx

A stream is: kind, elements, the word that announces numbers, then one vector for each edge of a cell and each atom. Molecules are turned at
random about one axis; crystals of the test are compositions that no training has seen. Needs ``pip install 'unmask[matter]'``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from unmask.checkpoints.schema import read_json
from unmask.checkpoints.store import load_module, save_module
from unmask.checkpoints.stream import CheckpointError
from unmask.corruption.gaussian import EPSILON, VELOCITY, Target, cosine
from unmask.data.matter import (
    KINDS,
    Structure,
    crystals,
    distance_from,
    is_valid,
    molecules,
    picture,
    vectors_of,
    write_structure,
)
from unmask.evaluation.demonstration import Demonstration, Findings, Media, Table, Work
from unmask.evaluation.metrics import Figure, over_seeds
from unmask.methods.unigenx import MixedLoss, Stream, WordsAndNumbers, generate
from unmask.models.diffusion_head import DiffusionHead
from unmask.objectives.diffusion import DiffusionLoss
from unmask.recipe import Optim, Recipe, Training
from unmask.recipes.matter_streams import END, NUMBERS, PAD, VECTOR, WORDS, Bins, Matter, id_of, unscaled
from unmask.recipes.pair_net import PairBlock
from unmask.rng import seeded
from unmask.sampling.solver import Solver, dpm_solver
from unmask.step import Loss
from unmask.training.probe import flops
from unmask.writing import write_text

NAME = "unigenx.matter"
_LEVELS = cosine()
_SOLVER = Solver(levels=_LEVELS, steps=20)
_ATOMS = 8  # the most of a structure
_WIDTH, _LAYERS, _HEAD, _BATCH, _STEPS, _TESTED, _DRAWN = 64, 2, 64, 32, 1200, 40, 40
_MOST = 48  # slots of a stream of bins
TOLERANCES = (0.05, 0.1, 0.2)  # Angstrom


# -- the network -------------------------------------------------------------------------------------------------------


class Causal(nn.Module):
    """Embeddings [B, L, D] -> hidden states, each of what stands before and at its slot."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.place = nn.Parameter(0.02 * torch.randn(_MOST, width))
        self.blocks = nn.ModuleList(PairBlock(width) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, e: Tensor) -> Tensor:
        length = e.shape[1]
        attend, h = torch.ones(length, length, dtype=torch.bool).tril(), e + self.place[:length]
        for block in self.blocks:
            h = block(h, attend)
        return self.norm(h)


def network(seed: int, bins: int, width: int = _WIDTH, layers: int = _LAYERS) -> WordsAndNumbers:
    """``bins``: 0 for a diffusion head."""

    def made() -> WordsAndNumbers:
        head = DiffusionHead(3, width, 8 if bins else _HEAD, 1 if bins else 2, 3)
        net = WordsAndNumbers(Causal(width, layers), len(WORDS) + bins, width, head)
        nn.init.normal_(net.embed_tokens.weight, std=0.1)
        return net

    return seeded(made, seed)


def matter(
    bins: int = 0,
    published: bool = False,
    steps: int = _STEPS,
    width: int = _WIDTH,
    layers: int = _LAYERS,
    batch: int = _BATCH,
    seed: int = 0,
) -> Recipe:
    """A network that builds molecules and crystals. ``bins``: numbers as so many bins, 0: from a diffusion head, which predicts v, or
    the noise where ``published``.
    """
    target = EPSILON if published else VELOCITY
    loss = MixedLoss(vectors=DiffusionLoss(levels=_LEVELS, target=target), weight=10.0, smoothing=0.0, ignored=0)

    def objective(model: WordsAndNumbers, batch: Stream, rng: torch.Generator) -> Loss:
        return loss(model, batch, rng)

    def export(module: WordsAndNumbers, folder: Path) -> None:
        fields = {"recipe": NAME, "bins": bins, "published": published, "width": width, "layers": layers}
        save_module(module, folder)
        write_text(folder / "config.json", json.dumps(fields, indent=1) + "\n")

    return Recipe(
        name=NAME,
        model=partial(network, seed, bins, width, layers),
        source=Matter(seed=seed, bins=bins, batch=batch),
        objective=objective,
        optim=Optim(lr=3e-3, warmup=min(100, steps), decay_from=0.4, floor=0.02, ema=0.99),
        training=Training(steps=steps, seed=seed, device="cpu", bf16=False, save_every=500),
        export=export,
        open=opened,
    )


@dataclass(frozen=True, kw_only=True)
class Builder:
    """``build("rocksalt Na Cl") -> Structure``; ``write`` writes it as CIF, PDB or XYZ; ``composition("molecule")`` are kind and elements.

    ``cool``: temperature of bins.
    """

    net: WordsAndNumbers
    bins: int
    target: Target = VELOCITY
    cool: float = 1.0

    @torch.no_grad()
    def composition(self, kind: str, *, seed: int = 0) -> tuple[str, ...]:
        """Kind and elements, drawn word by word."""
        done = self._run([id_of(kind)], 0, len(WORDS), end=id_of(NUMBERS), most=_ATOMS + 2, seed=seed)
        return tuple(word for word in (WORDS[i] for i in done.ids[0].tolist()) if word != NUMBERS)

    @torch.no_grad()
    def build(self, words: str, *, seed: int = 0) -> Structure:
        """ValueError for words that are not a kind and its elements."""
        kind, *elements = words.split() or [""]
        if kind not in KINDS or not elements or set(elements) & {*KINDS, PAD, END, NUMBERS}:
            known = ", ".join(KINDS)
            raise ValueError(f"{words!r} is not a kind and elements (kinds: {known}); give for example rocksalt Na Cl")
        if len(elements) > _ATOMS:
            raise ValueError(f"{len(elements)} atoms are too many for this network; give at most {_ATOMS}")
        prompt, count = [*map(id_of, [kind, *elements]), id_of(NUMBERS)], vectors_of(kind, len(elements))
        low, high = (len(WORDS), len(WORDS) + self.bins) if self.bins else (0, 0)
        most = len(prompt) + count * (3 if self.bins else 1)
        done = self._run(prompt, low, high, end=id_of(END), most=most, seed=seed)
        numbers = Bins(count=self.bins).values(done.ids[0, len(prompt) :]).view(-1, 3) if self.bins else done.vectors
        return unscaled(kind, tuple(elements), numbers.numpy().astype(np.float32))

    def write(self, words: str, path: Path, *, seed: int = 0) -> None:
        """A file whose ending is .cif, .pdb or .xyz."""
        write_structure(self.build(words, seed=seed), path)

    def _run(self, prompt: list[int], low: int, high: int, *, end: int, most: int, seed: int) -> Stream:
        """Words with the ids ``low``..``high`` - 1 without padding, or vectors where there are none, until ``end``."""

        def draw(h: Tensor, rng: torch.Generator) -> Tensor:
            start = torch.randn(1, 3, generator=rng)
            return dpm_solver(lambda x, t: self.net.head(x, t, h), _SOLVER, start, target=self.target)

        def word(logits: Tensor, rng: torch.Generator) -> int:
            among = logits[low:high].index_fill(0, torch.tensor([0] if low == 0 else []).long(), -torch.inf)
            return low + int(torch.multinomial((among / self.cool).softmax(0), 1, generator=rng))

        return generate(
            self.net,
            prompt,
            word=word,
            draw=draw,
            vector_id=VECTOR,
            end_id=end,
            vector_next=lambda ids: low == high,
            most=most,
            seed=seed,
        )


def opened(folder: Path, device: str = "cpu") -> Builder:
    """The model of a folder of ``matter``. CheckpointError for a file that is missing or does not fit."""
    raw = read_json(folder / "config.json")
    try:
        bins, published = int(raw["bins"]), bool(raw["published"])
        made = network(0, bins, int(raw["width"]), int(raw["layers"]))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder / 'config.json'} does not describe a model of matter: {error}") from error
    target = EPSILON if published else VELOCITY
    return Builder(net=load_module(made, folder).to(device).eval(), bins=bins, target=target)


def build(model: str, words: str, out: str, seed: int = 0) -> None:
    """Write a structure as a CIF, PDB or XYZ file."""
    opened(Path(model)).write(words, Path(out), seed=seed)


# -- the demonstration -------------------------------------------------------------------------------------------------

ARMS: dict[str, dict[str, Any]] = {
    "head, v": {},
    "64 bins": {"bins": 64},
    "256 bins": {"bins": 256},
}
_HEAD_ARM = "head, v"
_HALF = 0.5  # temperature of bins that were drawn a second time


def demo(work: Work) -> Findings:
    """Structures of known molecules in new turns and of crystals with new compositions, from a head and from bins."""
    updates = work.once("updates", partial(_updates, work))
    found = []
    for n, seed in enumerate(work.seeds):
        own = {}
        for k, name in enumerate(ARMS):
            own[name] = work.once(f"{_key(name)}/{seed}", partial(_measured, work, name, seed, updates[name]))
            work.on_progress("networks", n * len(ARMS) + k + 1, len(ARMS) * len(work.seeds))
        found.append(own)
    return _findings(found, updates, work)


def _updates(work: Work) -> dict[str, int]:
    """Updates of each arm, with the operations of ``_STEPS`` updates of the head."""
    cost = {}
    for name, options in ARMS.items():
        recipe = matter(**options)
        cost[name] = flops(recipe, recipe.model(), recipe.source(0), 0, torch.device("cpu"))
    return {name: work.steps(round(_STEPS * cost[_HEAD_ARM] / one), least=2) for name, one in cost.items()}


def _key(name: str) -> str:
    return name.replace(", ", "_").replace(" ", "_")


def _net(work: Work, name: str, seed: int, steps: int) -> Builder:
    net = work.train(f"{_key(name)}/{seed}", matter(**ARMS[name], seed=seed, steps=steps))
    assert isinstance(net, WordsAndNumbers)
    target = EPSILON if ARMS[name].get("published") else VELOCITY
    return Builder(net=net, bins=ARMS[name].get("bins", 0), target=target)


def tested(count: int) -> list[Structure]:
    """Half known molecules, half new crystals, evenly from both lists."""
    half = max(1, count // 2)
    return [one[i * len(one) // half] for one in (molecules(), crystals("test")) for i in range(half)]


def _measured(work: Work, name: str, seed: int, steps: int) -> dict[str, Any]:
    model, some = _net(work, name, seed, steps), tested(work.steps(_TESTED, least=2))
    found: dict[str, Any] = {}
    for cool in (1.0, _HALF) if model.bins else (1.0,):
        chilled = Builder(net=model.net, bins=model.bins, target=model.target, cool=cool)
        far = [distance_from(chilled.build(" ".join(one.words), seed=seed), one) for one in some]
        if not found or np.median(far) < np.median(found["molecules"] + found["crystals"]):
            found |= {"molecules": far[: len(far) // 2], "crystals": far[len(far) // 2 :], "temperature": cool}
    drawn = [model.composition(KINDS[i % len(KINDS)], seed=1000 * seed + i) for i in range(work.steps(_DRAWN, least=4))]
    known = {one.words for one in (*molecules(), *crystals("train"))}
    valid = [is_valid(kind, elements) for kind, *elements in drawn]
    fresh = [right and words not in known for right, words in zip(valid, drawn, strict=True)]
    return found | {"valid": float(np.mean(valid)), "new": float(np.mean(fresh))}


def _within(one: dict[str, Any], what: str, tolerance: float) -> float:
    return float(np.mean(np.array(one[what]) < tolerance))


def _findings(found: list[dict[str, Any]], updates: dict[str, int], work: Work) -> Findings:
    def over(name: str, what: str, tolerance: float) -> Figure:
        return over_seeds([_within(one[name], what, tolerance) for one in found])

    def middle(name: str, what: str) -> Figure:
        return over_seeds([float(np.median(one[name][what])) for one in found], unit="Angstrom")

    bins = [name for name in ARMS if ARMS[name].get("bins")]
    best = {what: max(bins, key=lambda name: over(name, what, 0.1)["value"]) for what in ("molecules", "crystals")}
    gains = {
        f"{what}_within_0.1.head_minus_best_bins": over_seeds(
            [_within(one[_HEAD_ARM], what, 0.1) - _within(one[best[what]], what, 0.1) for one in found]
        )
        for what in best
    }
    shares = {f"{what}_within_0.1.{_key(name)}": over(name, what, 0.1) for what in best for name in ARMS}
    valid = {f"valid.{_key(name)}": over_seeds([o[name]["valid"] for o in found]) for name in ARMS}
    words = [
        f"{what} {over(_HEAD_ARM, what, 0.1)['value']:.2f} against {over(name, what, 0.1)['value']:.2f} ({name})"
        for what, name in best.items()
    ]
    return Findings(
        about=f"{len(molecules())} molecules of G2 in new turns, and {len(crystals('test'))} compositions of six prototypes of "
        f"crystals that no training has seen; {len(crystals('train'))} others were, with elements from DCDFT. A structure is within a "
        "tolerance where its worst number is: a distance of two atoms of a molecule, an edge of a cell or the place of an atom in it. Arms "
        "have equal operations in training; bins were drawn at two temperatures, and the better one counts.",
        verdict=f"Structures within 0.1 Angstrom by the head and the best bins: {'; '.join(words)}.",
        seen=all(one["low"] is not None and one["low"] > 0 for one in gains.values()),
        figures={**gains, **shares, **valid},
        shown=(
            *(
                Table(
                    title=f"{what.capitalize()} within a tolerance",
                    head=("numbers", "updates", *(f"{t} A" for t in TOLERANCES), "median of the worst difference"),
                    rows=tuple(
                        (name, updates[name], *(over(name, what, t) for t in TOLERANCES), middle(name, what))
                        for name in ARMS
                    ),
                )
                for what in best
            ),
            Table(
                title="Compositions that are drawn freely",
                head=("numbers", "valid", "valid and not in the training"),
                rows=tuple(
                    (name, *(over_seeds([one[name][key] for one in found]) for key in ("valid", "new")))
                    for name in ARMS
                ),
                note="Valid: charges sum to 0 and the formula is the prototype's; rings and double bonds of a molecule are a whole number.",
            ),
            Media(title="Built by the first seed: truth, head, 64 bins", items=_shown(work, updates)),
        ),
    )


def _shown(work: Work, updates: dict[str, int]) -> tuple[tuple[str, Any], ...]:
    seed, some, items = work.seeds[0], tested(16), []
    nets = {name: _net(work, name, seed, updates[name]) for name in list(ARMS)[:2]}
    for one in some[3::4]:
        words = " ".join(one.words)
        items.append((f"{words}: truth", picture(one)))
        for name, net in nets.items():
            made = net.build(words, seed=seed)
            items.append((f"{name}, {distance_from(made, one):.2f} A off", picture(made)))
    return tuple(items)


DEMO = Demonstration(minutes=8, run=demo)
