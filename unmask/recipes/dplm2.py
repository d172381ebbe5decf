"""DPLM-2 on small proteins: letters and backbones of ideal geometry in one masked model (``methods.dplm2``).

    unmask train dplm2.proteins --out runs/proteins
    python -c "from unmask.recipes.dplm2 import fold; fold('runs/proteins', 'AELKMARELVPSVIYTVNGTVYIVPSCH', 'fold.pdb')"
    unmask methods run dplm2

The structure of a residue is a code of a lookup-free tokenizer of torsions (``recipes.backbone_codes``). One model folds, inverts, makes
both halves together and builds around a motif. Files need ``pip install 'unmask[matter]'``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from unmask.checkpoints.schema import read_json
from unmask.checkpoints.store import load_module, save_module
from unmask.checkpoints.stream import CheckpointError
from unmask.data.world.backbones import RESIDUES, built, picture, rmsd, tm, write_protein
from unmask.evaluation.demonstration import Demonstration, Findings, Media, Table, Work
from unmask.evaluation.metrics import Figure, over_seeds
from unmask.methods.dplm2 import Annealed, Mixture, PairLoss, Remasking, WithHalves, argmax, widened
from unmask.models.lora import LoRA
from unmask.recipe import Optim, Recipe, Training
from unmask.recipes.backbone_codes import (
    BITS,
    PAIRS,
    TESTED,
    VQ_STEPS,
    Tokenizer,
    batch_of,
    letters_of,
    pool,
    rows_of,
    tokenizer_recipe,
    trained_tokenizer,
)
from unmask.recipes.pair_net import PairNet
from unmask.rng import generator, seeded
from unmask.writing import write_text

NAME = "dplm2.proteins"
_WIDTH, _LAYERS, _BATCH, _STEPS, _FIRST, _RANK = 64, 2, 20, 450, 150, 16
SLOTS = RESIDUES + 2  # of a half, with begin and end
MIXED, FOLDING, INVERSE = Mixture(), Mixture(alone=0, folding=1, inverse=0), Mixture(alone=0, folding=0, inverse=1)


class Folder(nn.Module):
    """The tokenizer, which is frozen, and the network of both halves."""

    def __init__(self, tokenizer: Tokenizer, net: PairNet) -> None:
        super().__init__()
        self.tokenizer, self.net = tokenizer.requires_grad_(False), net

    def forward(self, ids: Tensor, alone: Tensor) -> Tensor:
        return WithHalves(self.net)(ids, alone)


def fresh(size: int, seed: int, width: int = _WIDTH, layers: int = _LAYERS) -> PairNet:
    return seeded(lambda: PairNet(size, SLOTS, width, layers), seed)


def letters_recipe(steps: int, seed: int) -> Recipe[Any, Tensor]:
    """The model of letters alone, from which a warm start begins; it has no ids of structure."""
    return Recipe(
        name="dplm2.letters",
        model=lambda: WithHalves(fresh(33, seed)),
        source=lambda step: rows_of(None, batch_of(seed, _BATCH, step)),
        objective=PairLoss(pairs=PAIRS, mixture=Mixture(alone=0, folding=0, inverse=0)),
        optim=_optim(steps),
        training=_training(steps, seed),
    )


def _optim(steps: int) -> Optim:
    return Optim(lr=3e-3, warmup=min(50, steps), decay_from=0.4, floor=0.05, ema=0.99)


def _training(steps: int, seed: int) -> Training:
    return Training(steps=steps, seed=seed, device="cpu", bf16=False, save_every=300)


def pair_recipe(
    tokenizer: Tokenizer,
    steps: int,
    seed: int,
    mixture: Mixture = MIXED,
    start: WithHalves | None = None,
    whole: bool = False,
) -> Recipe[Folder, Tensor]:
    """Both halves. ``mixture``: of the tasks · ``start``: the model of letters for a warm start: its layers get LoRA, its embeddings more
    rows; None: all weights are new and train · ``whole``: train all weights after a warm start too, without LoRA.
    """

    def network() -> Folder:
        net = fresh(PAIRS.size, seed)
        if start is not None:
            net = fresh(PAIRS.size, seed)
            known = start.net
            assert isinstance(known, PairNet)
            net.load_state_dict(
                {**net.state_dict(), **{k: v for k, v in known.state_dict().items() if "blocks" in k or "norm" in k}}
            )
            rng = generator("dplm2 rows", seed)
            with torch.no_grad():
                net.embed.weight.copy_(widened(known.embed.weight, PAIRS.size, rng))
                net.head.weight.copy_(widened(known.head.weight, PAIRS.size, rng))
                net.place.copy_(known.place)
        return Folder(tokenizer, net)

    def adapt(module: Folder) -> None:
        LoRA(where=lambda name: name.startswith("net.blocks"), rank=_RANK, alpha=2.0 * _RANK, seed=seed)(module)
        module.net.embed.requires_grad_(True), module.net.head.requires_grad_(True)

    return Recipe(
        name=NAME,
        model=network,
        adapt=None if start is None or whole else adapt,
        source=lambda step: rows_of(tokenizer, batch_of(seed, _BATCH, step)),
        objective=PairLoss(pairs=PAIRS, mixture=mixture),
        optim=_optim(steps),
        training=_training(steps, seed),
        trainable=lambda name: not name.startswith("tokenizer"),
        export=_export,
        open=opened,
    )


def proteins(vq_steps: int = VQ_STEPS, steps: int = _STEPS, seed: int = 0) -> Recipe:
    """A model of letters and structure with new weights; its tokenizer (``vq_steps``) is trained before the first step."""

    @lru_cache(maxsize=1)
    def tokenizer() -> Tokenizer:
        return trained_tokenizer(vq_steps, seed)

    made = pair_recipe(Tokenizer(), steps, seed)
    return Recipe(
        name=NAME,
        model=lambda: Folder(tokenizer(), fresh(PAIRS.size, seed)),
        source=lambda step: rows_of(tokenizer(), batch_of(seed, _BATCH, step)),
        objective=made.objective,
        optim=made.optim,
        training=made.training,
        trainable=made.trainable,
        export=_export,
        open=opened,
    )


def _export(module: Folder, folder: Path) -> None:
    save_module(module, folder)
    write_text(folder / "config.json", json.dumps({"recipe": NAME, "width": module.net.embed.embedding_dim}) + "\n")


@dataclass(frozen=True, kw_only=True)
class ProteinModel:
    """``fold(letters)`` -> torsions [R, 2], ``invert(torsions)`` -> letters, ``both()`` -> letters and torsions; of 28 residues."""

    module: Folder

    def fold(self, letters: str, *, steps: int = 14, seed: int = 0) -> np.ndarray:
        """ValueError for letters that are no protein of 28 residues."""
        return folded(self.module, [letters], steps, seed)[0]

    def invert(self, torsions: np.ndarray, *, steps: int = 14, seed: int = 0) -> str:
        return inverted(self.module, torsions[None], steps, seed)[0]

    def both(self, *, steps: int = 28, seed: int = 0) -> tuple[str, np.ndarray]:
        letters, torsions = together(self.module, 1, steps, seed)
        return letters[0], torsions[0]


def opened(folder: Path, device: str = "cpu") -> ProteinModel:
    """The model of a folder of ``proteins``. CheckpointError for a file that is missing or does not fit."""
    raw = read_json(folder / "config.json")
    try:
        made = Folder(Tokenizer(), fresh(PAIRS.size, 0, int(raw["width"])))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder / 'config.json'} does not describe a protein model: {error}") from error
    return ProteinModel(module=load_module(made, folder).to(device).eval())


def fold(model: str, letters: str, out: str, seed: int = 0) -> None:
    """Write the backbone of a sequence as a PDB or CIF file."""
    write_protein(Path(out), letters, built(opened(Path(model)).fold(letters, seed=seed)))


# -- the tasks ---------------------------------------------------------------------------------------------------------


def _drawn(module: Folder, ids: Tensor, open_: Tensor, steps: int, seed: int, *, best: bool) -> Tensor:
    """Rows with the tokens of ``open_`` drawn: the best ones, or samples at a falling temperature."""
    run = Remasking(
        pairs=PAIRS, steps=steps, strategy=argmax if best else Annealed(first=1.3, last=0.7), noise=0.0 if best else 0.5
    )
    return run.sample(module, ids, open_, [seed * 10_007 + i for i in range(len(ids))])


def _halves(ids: Tensor) -> tuple[Tensor, Tensor]:
    """Where the residues of either half stand, [B, L] bool."""
    normal, first = PAIRS.normal(ids), torch.arange(ids.shape[1]) < SLOTS
    return normal & first, normal & ~first


def folded(module: Folder, letters: list[str], steps: int, seed: int) -> np.ndarray:
    """Torsions [N, R, 2] of sequences."""
    ids = rows_of(module.tokenizer, [(one, np.zeros((RESIDUES, 2), np.float32)) for one in letters])
    return module.tokenizer.torsions(_drawn(module, ids, _halves(ids)[0], steps, seed, best=True))


def inverted(module: Folder, torsions: np.ndarray, steps: int, seed: int) -> list[str]:
    """Letters for structures [N, R, 2]."""
    ids = rows_of(module.tokenizer, [("A" * RESIDUES, one) for one in torsions])
    return letters_of(_drawn(module, ids, _halves(ids)[1], steps, seed, best=True))


def together(module: Folder, count: int, steps: int, seed: int) -> tuple[list[str], np.ndarray]:
    """Letters and torsions that are made together."""
    ids = rows_of(module.tokenizer, [("A" * RESIDUES, np.zeros((RESIDUES, 2), np.float32))] * count)
    done = _drawn(module, ids, PAIRS.normal(ids), steps, seed, best=False)
    return letters_of(done), module.tokenizer.torsions(done)


MOTIF = slice(10, 18)


def scaffolded(
    module: Folder, known: list[tuple[str, np.ndarray]], steps: int, seed: int
) -> tuple[list[str], np.ndarray]:
    """Proteins around the residues ``MOTIF`` of others, whose letters and structure stay."""
    ids = rows_of(module.tokenizer, known)
    open_, at = PAIRS.normal(ids), torch.arange(1 + MOTIF.start, 1 + MOTIF.stop)
    open_[:, at] = open_[:, at + SLOTS] = False
    done = _drawn(module, ids, open_, steps, seed, best=False)
    return letters_of(done), module.tokenizer.torsions(done)


# -- the demonstration -------------------------------------------------------------------------------------------------

_SAMPLING = 14
JOINT = ("warm", "warm whole", "new")  # a warm start with LoRA, as published, and with all weights trained; none
ARMS = (*JOINT, "folding alone", "inverse alone")
_MIXTURES = {"folding alone": FOLDING, "inverse alone": INVERSE}


def demo(work: Work) -> Findings:
    """The mixture of tasks with a warm start and without, beside specialists, at equal updates."""
    found = []
    for n, seed in enumerate(work.seeds):
        found.append(work.once(f"arms/{seed}", partial(_measured, work, seed)))
        work.on_progress("seeds", n + 1, len(work.seeds))
    return _findings(found, work.once("tokenizer", partial(_coded, work)), work)


@lru_cache(maxsize=2)
def _tokenizer(work: Work) -> Tokenizer:
    found = work.train("tokenizer", tokenizer_recipe(work.steps(VQ_STEPS, least=2), 0))
    assert isinstance(found, Tokenizer)
    return found


@lru_cache(maxsize=16)
def _net(work: Work, arm: str, seed: int) -> Folder:
    tokenizer, first, steps = _tokenizer(work), work.steps(_FIRST, least=2), work.steps(_STEPS, least=2)
    start = None
    if arm.startswith("warm"):
        start = work.train(f"letters/{seed}", letters_recipe(first, seed))
        assert isinstance(start, WithHalves)
    updates = steps if start else steps + first
    recipe = pair_recipe(tokenizer, updates, seed, _MIXTURES.get(arm, MIXED), start, whole=arm == "warm whole")
    found = work.train(f"{arm.replace(' ', '-')}/{seed}", recipe)
    assert isinstance(found, Folder)
    return found


def _coded(work: Work) -> dict[str, float]:
    """How well the tokenizer gives backbones back, and how many of its codes are used, as the exponential of their entropy."""
    tokenizer, some = _tokenizer(work), list(pool("test", 0)[: work.steps(TESTED, least=4)])
    ids = rows_of(tokenizer, some)
    far = [rmsd(built(a), built(b)) for a, (_, b) in zip(tokenizer.torsions(ids), some, strict=True)]
    share = ids[_halves(ids)[0]].bincount().double() / int(_halves(ids)[0].sum())
    return {"rmsd": float(np.mean(far)), "codes": float((-(share * share.clamp(min=1e-12).log()).sum()).exp())}


def _measured(work: Work, seed: int) -> dict[str, float]:
    some = list(pool("test", seed)[: work.steps(TESTED, least=4)])
    letters, torsions = [one for one, _ in some], np.stack([t for _, t in some])
    truth, found = [built(t) for t in torsions], dict[str, float]()
    judge = _net(work, "folding alone", seed)
    for arm in ARMS:
        net = _net(work, arm, seed)
        if arm != "inverse alone":
            made = [built(t) for t in folded(net, letters, _SAMPLING, seed)]
            found[f"{arm}/rmsd"] = float(np.mean([rmsd(a, b) for a, b in zip(made, truth, strict=True)]))
            found[f"{arm}/tm"] = float(np.mean([tm(a, b) for a, b in zip(made, truth, strict=True)]))
        if arm != "folding alone":
            said = inverted(net, torsions, _SAMPLING, seed)
            pairs = [x == y for a, b in zip(said, letters, strict=True) for x, y in zip(a, b, strict=True)]
            found[f"{arm}/recovery"] = float(np.mean(pairs))
        if arm in JOINT:
            said, structures = together(net, len(some), _SAMPLING, seed)
            found[f"{arm}/agreement"] = _agreement(judge, said, structures, seed)
            # Two stages: letters that the specialist finds for the same structures, instead of both together.
            again = inverted(_net(work, "inverse alone", seed), structures, _SAMPLING, seed)
            found[f"{arm}/in two stages"] = _agreement(judge, again, structures, seed)
            around = scaffolded(net, some, _SAMPLING, seed)
            found[f"{arm}/scaffolds"] = _agreement(judge, *around, seed)
            kept = [rmsd(built(a)[MOTIF], b[MOTIF]) for a, b in zip(around[1], truth, strict=True)]
            found[f"{arm}/motif rmsd"] = float(np.mean(kept))
    return found


def _agreement(judge: Folder, letters: list[str], torsions: np.ndarray, seed: int) -> float:
    """The mean TM-like score of structures and those that the folding specialist gives the letters."""
    again = folded(judge, letters, _SAMPLING, seed)
    return float(np.mean([tm(built(a), built(b)) for a, b in zip(again, torsions, strict=True)]))


def _findings(found: list[dict[str, float]], coded: dict[str, float], work: Work) -> Findings:
    def over(key: str, unit: str = "share") -> Figure | str:
        return over_seeds([one[key] for one in found], unit=unit) if key in found[0] else "-"

    def gain(a: str, b: str, unit: str = "share") -> Figure:
        return over_seeds([one[a] - one[b] for one in found], unit=unit)

    figures: dict[str, Figure] = {
        "tm.warm_minus_specialist": gain("warm/tm", "folding alone/tm"),
        "tm.warm_minus_new": gain("warm/tm", "new/tm"),
        "tm.warm_whole_minus_new": gain("warm whole/tm", "new/tm"),
        "tm.new_minus_specialist": gain("new/tm", "folding alone/tm"),
        "recovery.warm_minus_specialist": gain("warm/recovery", "inverse alone/recovery"),
        "recovery.warm_minus_new": gain("warm/recovery", "new/recovery"),
        **{
            f"agreement.{arm.replace(' ', '_')}_minus_two_stages": gain(f"{arm}/agreement", f"{arm}/in two stages")
            for arm in JOINT
        },
        "rmsd.warm": over_seeds([one["warm/rmsd"] for one in found], unit="Angstrom"),
        "tokenizer.rmsd": {"value": coded["rmsd"], "unit": "Angstrom"},
        "tokenizer.codes": {"value": coded["codes"], "unit": "codes"},
    }
    names = {
        "rmsd": "Angstrom",
        "tm": "score",
        "recovery": "share",
        "agreement": "score",
        "in two stages": "score",
        "scaffolds": "score",
        "motif rmsd": "Angstrom",
    }
    value = {key: float(np.mean([one[key] for one in found])) for key in found[0]}
    warm, special = figures["tm.warm_minus_new"], figures["tm.warm_minus_specialist"]
    return Findings(
        about=f"Proteins of {RESIDUES} residues of helices, strands, hairpins and loops with ideal geometry; of each seed "
        f"{work.steps(TESTED, least=4)} are in no training. All arms have equal updates; those of the warm start include the model of "
        "letters. Agreement: the TM-like score of a structure and of what the folding specialist makes of its letters; scaffolds: the same "
        f"for proteins around the residues {MOTIF.start + 1} to {MOTIF.stop} of others. The tokenizer gives backbones back with "
        f"{coded['rmsd']:.2f} Angstrom.",
        verdict=f"Folding by one model with a warm start and LoRA has a TM-like score of {value['warm/tm']:.2f}, with all weights trained "
        f"{value['warm whole/tm']:.2f}, with new weights {value['new/tm']:.2f}, by a specialist {value['folding alone/tm']:.2f}; recovery "
        f"of letters is {value['warm/recovery']:.2f}, {value['warm whole/recovery']:.2f}, {value['new/recovery']:.2f} and "
        f"{value['inverse alone/recovery']:.2f}. Both halves together, with new weights, agree {value['new/agreement']:.2f}, in two stages "
        f"{value['new/in two stages']:.2f}.",
        seen=warm["low"] is not None and warm["low"] > 0 and special["value"] > -0.05,
        figures=figures,
        shown=(
            Table(
                title="One model, specialists and two stages",
                head=(
                    *("arm", "folding: RMSD", "TM-like", "recovery"),
                    *("agreement", "in two stages", "scaffolds", "motif: RMSD"),
                ),
                rows=tuple((arm, *(over(f"{arm}/{key}", unit) for key, unit in names.items())) for arm in ARMS),
                note=f"The tokenizer uses {coded['codes']:.0f} of {2**BITS} codes (exponential of their entropy).",
            ),
            Media(
                title="Backbones of the model with new weights, first seed, from blue to red; the truth in grey",
                items=_shown(work),
            ),
        ),
    )


def _shown(work: Work) -> tuple[tuple[str, Any], ...]:
    seed, items = work.seeds[0], []
    net, some = _net(work, "new", seed), list(pool("test", seed)[:4])
    for (letters, truth), made in zip(some, folded(net, [one for one, _ in some], _SAMPLING, seed), strict=True):
        items.append((f"folded {letters}: {rmsd(built(made), built(truth)):.1f} A", picture(built(made), built(truth))))
    for letters, made in zip(*together(net, 4, _SAMPLING, seed), strict=True):
        items.append((f"made with its letters {letters}", picture(built(made))))
    return tuple(items)


DEMO = Demonstration(minutes=6, run=demo)
