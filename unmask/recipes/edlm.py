"""Demonstration of ``methods.edlm``: captions of rows of objects, in few steps, by a masked and an autoregressive network.

    unmask methods run edlm

Both networks are trained on the same captions, from which the energy of the second is made. Every arm answers the same rows with the same
seeds. The rival at equal forwards draws whole answers without the energy and keeps the one that the autoregressive network finds most
probable: m answers cost m (steps + 1) forwards, k candidates at every step (k + 1) steps. Three variants are tried against it: a lower
temperature, the energy in the first half of the answer alone, and an energy that was learned by noise contrast.
"""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from unmask.evaluation.demonstration import Demonstration, Findings, Plot, Table, Work
from unmask.evaluation.metrics import Figure, over_seeds
from unmask.json_types import Json
from unmask.methods.edlm import CausalEnergy, Energy, LearnedEnergy, Reweighted
from unmask.models.elastic import Elastic
from unmask.models.energy import EnergyNet
from unmask.objectives.contrastive import NoiseContrastive
from unmask.recipe import Optim, Recipe, Training
from unmask.recipes.scene_text import Caption, Row, Source, batch_of, rows, trained
from unmask.rng import seeded
from unmask.sampling.sampler import Sampler
from unmask.sampling.schedule import Equal
from unmask.sampling.selection import RandomOrder
from unmask.sampling.token_sampler import Categorical
from unmask.sequence import Batch

STEPS, CANDIDATES = (1, 2, 4, 8), (4, 16)
_TEST = {1: 640, 2: 320, 4: 160, 8: 160}  # rows, by steps
_COLD = 0.2  # the lower temperature
_CONTRAST = 400  # updates of the learned energy
FORM = Caption()
RIVAL = "best at the end, equal to k = {}"
_WORDS = 9  # of a caption


@dataclass(frozen=True, kw_only=True)
class Arm:
    """``k``: candidates, 1 for none · ``temperature``: -1 has the flipped sign · ``best_of``: whole answers of which one is kept ·
    ``end``: the energy acts while at least this share is masked · ``learned``: the energy of noise contrast.
    """

    name: str
    k: int = 1
    temperature: float = 1.0
    best_of: int = 1
    end: float = 0.0
    learned: bool = False

    def forwards(self, steps: int) -> int:
        """Of both networks together, for one answer."""
        if self.best_of > 1:
            return self.best_of * (steps + 1)
        return steps + (0 if self.k == 1 else self.k * self.acting(steps))

    def acting(self, steps: int) -> int:
        """Steps in which the energy acts."""
        left = list(itertools.accumulate([_WORDS, *(-n for n in Equal(steps=steps).counts(_WORDS))]))
        return sum(one / _WORDS >= self.end for one in left[:-1])


def arms(steps: int) -> list[Arm]:
    found = [Arm(name="without")]
    for k in CANDIDATES:
        equal = max(2, -(-steps * (1 + k) // (steps + 1)))  # rounded up: the rival never has fewer forwards
        found += [Arm(name=f"energy, k = {k}", k=k), Arm(name=RIVAL.format(k), best_of=equal)]
    most = CANDIDATES[-1]
    found += [
        Arm(name="flipped sign, k = 4", k=4, temperature=-1.0),
        Arm(name=f"energy, k = {most}, temperature {_COLD:g}", k=most, temperature=_COLD),
        Arm(name=f"learned energy, k = {most}", k=most, learned=True),
        Arm(name=f"learned energy, k = {most}, temperature {_COLD:g}", k=most, temperature=_COLD, learned=True),
    ]
    first = Arm(name=f"energy, k = {most}, temperature {_COLD:g}, first half", k=most, temperature=_COLD, end=0.5)
    return [*found, first] if steps > 1 else found


def run(work: Work) -> Findings:
    found: dict[int, dict[int, dict[str, Json]]] = {}  # seed -> steps -> arm
    for seed in work.seeds:
        nets = functools.partial(_networks, work, seed)
        found[seed] = {
            steps: {
                arm.name: work.once(
                    f"{seed}/{steps}/{number}", functools.partial(_measured, nets, arm, steps, seed, work)
                )
                for number, arm in enumerate(arms(steps))
            }
            for steps in STEPS[: work.steps(len(STEPS), least=2)]
        }
        work.on_progress("seeds", seed + 1, len(work.seeds))
    return _findings(found, work)


@functools.lru_cache(maxsize=1)
def _networks(work: Work, seed: int) -> tuple[Elastic, CausalEnergy, LearnedEnergy]:
    masked = trained(work, "masked", FORM, autoregressive=False, steps=1600, seed=seed)
    causal = trained(work, "causal", FORM, autoregressive=True, steps=500, seed=seed)
    contrast = work.train(f"contrast/{seed}", _contrast(masked, work.steps(_CONTRAST, 2), seed))
    return masked, CausalEnergy(net=causal), LearnedEnergy(net=contrast)


def _contrast(masked: Elastic, steps: int, seed: int) -> Recipe[EnergyNet, Batch]:
    """An energy that starts from the masked network and learns to tell true captions from that network's draws."""

    def network() -> EnergyNet:
        return seeded(lambda: EnergyNet(copy.deepcopy(masked)).requires_grad_(True), seed)

    return Recipe(
        name="edlm contrast",
        model=network,
        source=Source(form=FORM, batch=64, seed=seed + 1000),
        objective=NoiseContrastive(denoiser=masked),
        optim=Optim(lr=1e-3, warmup=20, decay_from=0.5, floor=0.05, ema=0.99),
        training=Training(steps=steps, seed=seed, device="cpu", bf16=False, save_every=500, log_every=200),
    )


Networks = functools.partial[tuple[Elastic, CausalEnergy, LearnedEnergy]]


def _measured(nets: Networks, arm: Arm, steps: int, seed: int, work: Work) -> Json:
    """The share of answers that are true of their row, and of answers that differ from all others."""
    masked, causal, learned = nets()
    energy: Energy = learned if arm.learned else causal
    test = rows(FORM, work.steps(_TEST[steps], 8), f"test {seed}")
    token_sampler = Reweighted(
        token_sampler=Categorical(), energy=energy, k=arm.k, temperature=arm.temperature, end=arm.end
    )
    sampler = Sampler(schedule=Equal(steps=steps), token_sampler=token_sampler, selection=RandomOrder())
    done = [sampler.sample(masked, batch_of(test, seed=17 + n)) for n in range(arm.best_of)]
    answers = [row.answer(ids) for row, ids in zip(test, _best(done, causal, test), strict=True)]
    true = [FORM.is_true(row.things, words) for row, words in zip(test, answers, strict=True)]
    distinct = len({(row.things, tuple(words)) for row, words in zip(test, answers, strict=True)}) / len(test)
    ways = len({tuple(_shape(row, words)) for row, words, ok in zip(test, answers, true, strict=True) if ok})
    return {"true": sum(true) / len(true), "distinct": distinct, "ways": ways}


def _shape(row: Row, words: Sequence[str]) -> list[int]:
    """Which objects of the row a true caption names."""
    return [list(row.things).index((words[i], words[i + 1])) for i in (1, 7)]


def _best(done: list[Batch], energy: CausalEnergy, test: list[Row]) -> torch.Tensor:
    """The ids of each row's most probable answer."""
    if len(done) == 1:
        return done[0].ids
    start = batch_of(test)
    ids = torch.stack([one.ids for one in done])
    with torch.no_grad():
        best_B = energy.log_p(start, ids, start.masked).argmax(0)
    return ids[best_B, torch.arange(len(best_B))]


def _gain(found: dict[int, dict[int, dict[str, Json]]], steps: int, a: str, b: str) -> Figure:
    return over_seeds([one[steps][a]["true"] - one[steps][b]["true"] for one in found.values()])


def _findings(found: dict[int, dict[int, dict[str, Json]]], work: Work) -> Findings:
    names, counts = [arm.name for arm in arms(1)], list(found[work.seeds[0]])
    true = {
        (name, steps): over_seeds([one[steps][name]["true"] for one in found.values()], unit="share true")
        for steps in counts
        for name in found[work.seeds[0]][steps]
    }
    figures = _figures(found)
    return Findings(
        about="Captions such as 'the red cat is left of the blue dog' of rows of three objects. A caption is true if both objects "
        "are in the row and lie as it says. Forwards count both networks; the rival draws finished answers and keeps the one that the "
        "autoregressive network finds most probable.",
        verdict=_verdict(figures, counts),
        seen=any((figures[f"{arm}_against_best_of_{n}_steps"]["low"] or 0) > 0 for arm in _TRIED for n in counts),
        figures=figures,
        shown=(_table(true, found), _plot(true, names)),
    )


_TRIED = {
    "energy": "energy, k = 16",
    "cold": "energy, k = 16, temperature 0.2",
    "learned": "learned energy, k = 16",
    "cold_learned": "learned energy, k = 16, temperature 0.2",
}


def _figures(found: dict[int, dict[int, dict[str, Json]]]) -> dict[str, Figure]:
    """By steps: gains over none, and every variant with the most candidates against the best answer at equal forwards."""
    figures: dict[str, Figure] = {}
    for n in next(iter(found.values())):
        figures |= {f"gain_{n}_steps": _gain(found, n, _TRIED["energy"], "without")}
        figures |= {f"flipped_sign_{n}_steps": _gain(found, n, "flipped sign, k = 4", "without")}
        rival = RIVAL.format(CANDIDATES[-1])
        figures |= {f"{key}_against_best_of_{n}_steps": _gain(found, n, name, rival) for key, name in _TRIED.items()}
    return figures


def _verdict(figures: dict[str, Figure], counts: list[int]) -> str:
    first, last, most = counts[0], counts[-1], CANDIDATES[-1]
    gains, flipped = ([100 * figures[f"{key}_{n}_steps"]["value"] for n in (first, last)] for key in _SIGNS)
    sides = {
        key: [[n for n in counts if _beyond(figures[f"{key}_against_best_of_{n}_steps"], side)] for side in (1, -1)]
        for key in _TRIED
    }
    compared = "; ".join(
        f"{_TRIED[key]}: better at {_listed(a)}, worse at {_listed(b)}" for key, (a, b) in sides.items()
    )
    return (
        f"At {first} and {last} steps, k = {most} gains {gains[0]:.0f} and {gains[1]:.0f} points of true captions over none; the flipped "
        f"sign changes them by {flipped[0]:.0f} and {flipped[1]:.0f}. Against the best finished answer at equal forwards: {compared}."
    )


_SIGNS = ("gain", "flipped_sign")


def _beyond(figure: Figure, side: int) -> bool:
    """Whether a figure lies above 0 (side 1) or below it (-1) with its interval."""
    bound = figure["low"] if side > 0 else figure["high"]
    return side * (figure["value"] if bound is None else bound) > 0


def _listed(steps: list[int]) -> str:
    if not steps:
        return "no number of steps"
    *most, last = map(str, steps)
    return f"{', '.join(most)} and {last} steps" if most else f"{last} step{'s' if last != '1' else ''}"


def _table(true: dict[tuple[str, int], Figure], found: dict[int, dict[int, dict[str, Json]]]) -> Table:
    lines = []
    for steps in next(iter(found.values())):
        for arm in arms(steps):
            ways = over_seeds([one[steps][arm.name]["ways"] for one in found.values()])
            lines.append((steps, arm.name, arm.forwards(steps), true[arm.name, steps], ways))
    head = ("steps", "sampler", "forwards an answer", "true", "pairs of objects")
    return Table(
        title="True captions",
        head=head,
        rows=tuple(lines),
        note="Pairs: how many of the six orders of two objects true captions name.",
    )


def _plot(true: dict[tuple[str, int], Figure], names: list[str]) -> Plot:
    lines = {name: [(float(steps), one) for (arm, steps), one in true.items() if arm == name] for name in names}
    return Plot(title="True captions by steps", across="steps", up="share true", lines=lines, log=True)


DEMO = Demonstration(minutes=9, run=run)
