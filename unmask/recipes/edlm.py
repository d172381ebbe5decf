"""Demonstration of ``methods.edlm``: captions of rows of objects, in few steps, by a masked and an autoregressive network.

    unmask methods run edlm

Both networks are trained on the same captions, from which the energy of the second is made. Every arm answers the same rows with the same
seeds. The rival at equal forwards draws whole answers without the energy and keeps the one that the autoregressive network finds most
probable: m answers cost m (steps + 1) forwards, k candidates at every step (k + 1) steps.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from unmask.evaluation.demonstration import Demonstration, Findings, Plot, Table, Work
from unmask.evaluation.metrics import Figure, over_seeds
from unmask.json_types import Json
from unmask.methods.edlm import CausalEnergy, Reweighted
from unmask.models.elastic import Elastic
from unmask.recipes.scene_text import Caption, Row, batch_of, rows, trained
from unmask.sampling.sampler import Sampler
from unmask.sampling.schedule import Equal
from unmask.sampling.selection import RandomOrder
from unmask.sampling.token_sampler import Categorical
from unmask.sequence import Batch

STEPS, CANDIDATES = (1, 2, 4, 8), (4, 16)
_TEST = 160  # rows
FORM = Caption()


@dataclass(frozen=True, kw_only=True)
class Arm:
    """``k``: candidates, 1 for none · ``temperature``: -1 has the flipped sign · ``best_of``: whole answers of which one is kept."""

    name: str
    k: int = 1
    temperature: float = 1.0
    best_of: int = 1

    def forwards(self, steps: int) -> int:
        """Of both networks together, for one answer."""
        if self.best_of > 1:
            return self.best_of * (steps + 1)
        return steps if self.k == 1 else steps * (1 + self.k)


def arms(steps: int) -> list[Arm]:
    found = [Arm(name="without")]
    for k in CANDIDATES:
        equal = max(2, -(-steps * (1 + k) // (steps + 1)))  # rounded up: the rival never has fewer forwards
        found += [Arm(name=f"energy, k = {k}", k=k), Arm(name=f"best at the end, equal to k = {k}", best_of=equal)]
    return [*found, Arm(name="flipped sign, k = 4", k=4, temperature=-1.0)]


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
            for steps in STEPS
        }
        work.on_progress("seeds", seed + 1, len(work.seeds))
    return _findings(found, work)


@functools.lru_cache(maxsize=1)
def _networks(work: Work, seed: int) -> tuple[Elastic, CausalEnergy]:
    masked = trained(work, "masked", FORM, autoregressive=False, steps=1600, seed=seed)
    causal = trained(work, "causal", FORM, autoregressive=True, steps=500, seed=seed)
    return masked, CausalEnergy(net=causal)


def _measured(
    nets: functools.partial[tuple[Elastic, CausalEnergy]], arm: Arm, steps: int, seed: int, work: Work
) -> Json:
    """The share of answers that are true of their row, and of answers that differ from all others."""
    masked, energy = nets()
    test = rows(FORM, work.steps(_TEST, 8), f"test {seed}")
    token_sampler = Reweighted(token_sampler=Categorical(), energy=energy, k=arm.k, temperature=arm.temperature)
    sampler = Sampler(schedule=Equal(steps=steps), token_sampler=token_sampler, selection=RandomOrder())
    done = [sampler.sample(masked, batch_of(test, seed=17 + n)) for n in range(arm.best_of)]
    answers = [row.answer(ids) for row, ids in zip(test, _best(done, energy, test), strict=True)]
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
    names = [arm.name for arm in arms(1)]
    true = {
        (name, steps): over_seeds([one[steps][name]["true"] for one in found.values()], unit="share true")
        for name in names
        for steps in STEPS
    }
    most = CANDIDATES[-1]
    ours, rival = f"energy, k = {most}", f"best at the end, equal to k = {most}"
    gains = {steps: _gain(found, steps, ours, "without") for steps in STEPS}
    flipped = {steps: _gain(found, steps, "flipped sign, k = 4", "without") for steps in STEPS}
    against = {steps: _gain(found, steps, ours, rival) for steps in STEPS}
    figures: dict[str, Figure] = {}
    for steps in STEPS:
        figures |= {
            f"gain_{steps}_steps": gains[steps],
            f"flipped_sign_{steps}_steps": flipped[steps],
            f"against_best_of_{steps}_steps": against[steps],
        }
    above = [steps for steps in STEPS if (against[steps]["low"] or against[steps]["value"]) > 0]
    below = [steps for steps in STEPS if (against[steps]["high"] or against[steps]["value"]) < 0]
    verdict = (
        f"At {STEPS[0]} and {STEPS[-1]} steps k = {most} gains {100 * gains[STEPS[0]]['value']:.0f} and "
        f"{100 * gains[STEPS[-1]]['value']:.0f} points of true captions over none and the flipped sign changes them by "
        f"{100 * flipped[STEPS[0]]['value']:.0f} and {100 * flipped[STEPS[-1]]['value']:.0f}; against the best answer at the end at equal "
        f"forwards it is better at {_listed(above)} and worse at {_listed(below)}."
    )
    return Findings(
        about="Captions such as 'the red cat is left of the blue dog' of rows of three objects. A caption is true if both objects "
        "are in the row and lie as it says. Forwards count both networks.",
        verdict=verdict,
        seen=bool(above),
        figures=figures,
        shown=(_table(true, found, names), _plot(true, names)),
    )


def _listed(steps: list[int]) -> str:
    return f"{' and '.join(map(str, steps))} steps" if steps else "no number of steps"


def _table(
    true: dict[tuple[str, int], Figure], found: dict[int, dict[int, dict[str, Json]]], names: list[str]
) -> Table:
    lines = []
    for steps in STEPS:
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
    lines = {name: [(float(steps), true[name, steps]) for steps in STEPS] for name in names}
    return Plot(title="True captions by steps", across="steps", up="share true", lines=lines, log=True)


DEMO = Demonstration(minutes=5, run=run)
