"""The demonstration of LaViDa (``unmask methods run lavida``): schedules, complementary masks, a prefix at inference, slots.

The networks are trained on the small language of ``paraphrases``. Its six wordings of each answer have different lengths, so tokens that
are unmasked in one step can contradict each other, and the ends of the answers, mostly padding, are the safest tokens.

1. Three ways to spend the same number of rows on a step: a mask and its complement (``complementary``), two independent masks of the same
   answers (``two masks``), one mask of twice as many answers (``twice the data``).
2. Every trained network answers with 4, 8 and 16 forwards for 16 tokens, with time shifts of 1/3, 1 and 3.
3. The same answers behind a prompt that does not attend to them, whose keys and values are kept.
4. Answers that must end in given words: the network is trained with slots for some more steps, and fills a slot before the words.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from random import Random

import torch
from torch import Generator, Tensor

from unmask.corruption.absorbing import Absorbing
from unmask.corruption.schedules import Uniform
from unmask.evaluation.demonstration import Demonstration, Findings, Plot, Table, Work
from unmask.evaluation.metrics import Figure, over_seeds, share
from unmask.models.elastic import Elastic
from unmask.objectives.masked import Masked
from unmask.objectives.next_token import NextToken
from unmask.recipes import paraphrases as lang
from unmask.rng import generator, key
from unmask.sampling.aligned import Leftmost
from unmask.sampling.cache import PrefixCache
from unmask.sampling.prior import PrefixLM
from unmask.sampling.sampler import Sampler
from unmask.sampling.schedule import Fixed, Shift
from unmask.sampling.selection import Confident
from unmask.sampling.token_sampler import Categorical, Greedy
from unmask.sequence import Batch
from unmask.step import Loss, Prediction, Reuse

STEPS, SLOT_STEPS, CAUSAL_STEPS, ROWS, TESTS = 900, 400, 400, 32, 256
FORWARDS, SHIFTS = (4, 8, 16), (1 / 3, 1.0, 3.0)
_SLOT = 5  # tokens of a slot, at most
_SLOT_CANVAS = 12 + _SLOT + 1 + 1
_DRAWS = 24  # of masks, for the noise of gradients
_UNIFORM = Absorbing(otherwise=Uniform())
_COMPLEMENTARY = Masked(corruption=_UNIFORM, complementary=True)
Net = Elastic


@dataclass(frozen=True, kw_only=True)
class TwoMasks:
    """Every row with two independent masks: as many rows and masks as ``Masked(complementary=True)``."""

    masked: Masked

    def __call__(self, model: Elastic, clean: Batch, rng: Generator) -> Loss:
        return self.masked.of(model, *(self.masked.noisy(model, clean, rng) for _ in range(2)))


ARMS: dict[str, tuple[lang.Objective, int]] = {  # objective, rows of a batch
    "complementary": (_COMPLEMENTARY, ROWS),
    "two masks": (TwoMasks(masked=Masked(corruption=_UNIFORM)), ROWS),
    "twice the data": (Masked(corruption=_UNIFORM), 2 * ROWS),
}


def _network(work: Work, arm: str, seed: int) -> Net:
    objective, rows = ARMS[arm]
    lessons = lang.Lessons(rows=rows, seed=seed)
    recipe = lang.trained(arm, partial(lang.network, seed), lessons, objective, work.steps(STEPS, 4))
    made = work.train(f"{arm.replace(' ', '-')}/{seed}", recipe)
    assert isinstance(made, Elastic)
    return made


def run(work: Work) -> Findings:
    """Train, answer, compare. The unit of every interval is a trained network."""
    answers: dict[str, list[dict[str, list[bool]]]] = {arm: [] for arm in ARMS}
    noise, prefix, slots = list[dict[str, float]](), list[dict[str, float]](), list[dict[str, list[bool]]]()
    rows, draws = lang.questions(generator("lavida", "tests"), work.steps(TESTS, 8)), work.steps(_DRAWS, 2)
    for number, seed in enumerate(work.seeds):
        work.on_progress("seeds", number, len(work.seeds))
        for arm in ARMS:
            network = partial(_network, work, arm, seed)
            name = f"answers/{arm.replace(' ', '-')}/{seed}"
            answers[arm].append(work.once(name, lambda network=network: _answered(network(), rows)))
        network = partial(_network, work, "complementary", seed)
        noise.append(work.once(f"noise/{seed}", lambda network=network, seed=seed: _noise(network(), seed, draws)))
        prefix.append(work.once(f"prefix/{seed}", lambda network=network: _prefix(network(), rows)))
        measure = partial(_completed, work, network, rows, seed)
        slots.append(work.once(f"slots/{seed}", measure))
    return _findings(answers, noise, prefix, slots)


# -- schedules --------------------------------------------------------------------------------------------------------


def _sampler(forwards: int, shift: float) -> Sampler:
    return Sampler(schedule=Shift(steps=forwards, shift=shift), token_sampler=Greedy(), selection=Confident())


def _name(forwards: int, shift: float) -> str:
    return f"{forwards} {shift:.2g}"


def _answered(net: Net, rows: lang.Rows) -> dict[str, list[bool]]:
    """Which questions are answered right, by number of forwards and shift."""
    found = {}
    for forwards in FORWARDS:
        for shift in SHIFTS:
            done = _sampler(forwards, shift).sample(net, lang.prompted(rows))
            found[_name(forwards, shift)] = lang.right(rows, lang.spoken(done))
    return found


# -- noise of the gradients -------------------------------------------------------------------------------------------


def _noise(net: Net, seed: int, draws: int) -> dict[str, float]:
    """The variance of the gradient of one batch over random masks, summed over parameters, at the first and the last weights."""
    clean = lang.Lessons(rows=ROWS, seed=key("noise", seed))(0)
    out = {}
    for when, model in (("first", lang.network(seed)), ("last", net)):
        for arm in ("complementary", "two masks"):
            drawn = torch.stack([_gradient(model, ARMS[arm][0], clean, n) for n in range(draws)])
            out[f"{when} {arm}"] = float(drawn.var(0).sum())
    return out


def _gradient(model: Net, objective: lang.Objective, clean: Batch, number: int) -> Tensor:
    model.requires_grad_(True)
    model.zero_grad()
    objective(model, clean, generator("noise", number)).total.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


# -- prefix -----------------------------------------------------------------------------------------------------------


class _Counting:
    """A network, and how many tokens its forwards have computed."""

    def __init__(self, net: Net) -> None:
        self.net, self.computed = net, 0

    def __call__(self, batch: Batch, *, predict: Tensor | None = None, reuse: Reuse | None = None) -> Prediction:
        self.computed += int((batch.valid if reuse is None else reuse.compute).sum())
        return self.net(batch, predict=predict, reuse=reuse)


def _prefix(net: Net, rows: lang.Rows) -> dict[str, float]:
    """Right answers and computed tokens with 8 forwards, with and without a prefix, and the share of equal answers."""
    plain = _sampler(8, SHIFTS[0])
    kept = replace(plain, prior=PrefixLM(), cache=PrefixCache())
    out, said = {}, []
    for name, sampler in (("full", plain), ("prefix", kept)):
        counting = _Counting(net)
        said.append(lang.spoken(sampler.sample(counting, lang.prompted(rows))))
        rights = lang.right(rows, said[-1])
        out |= {f"{name} right": sum(rights) / len(rights), f"{name} tokens": counting.computed / len(rows)}
    return out | {"equal": sum(a == b for a, b in zip(*said, strict=True)) / len(rows)}


# -- slots ------------------------------------------------------------------------------------------------------------


def with_slots(answer: list[int], rng: Random) -> list[int]:
    """Four of five answers of several words get a slot: 0 to 5 fillers and a marker between two words."""
    if len(answer) < 2 or rng.random() >= 0.8:
        return answer
    place = rng.randint(1, len(answer) - 1)
    return [*answer[:place], *[lang.FILLER] * rng.randint(0, _SLOT), lang.MARKER, *answer[place:]]


def _to_slots(tokens: int, rng: Random) -> int:
    return _SLOT_CANVAS


def _endings(rows: lang.Rows, seed: int) -> list[tuple[int, list[int]]]:
    """For each row the last words of one right answer, and how many tokens stand before them: 1 to as many as a slot has."""
    rng, out = Random(key("endings", seed)), []
    for row in range(len(rows)):
        known = [rows.answers(number)[row] for number in range(lang.WORDINGS)]
        answer = rng.choice([one for one in known if len(one) > 1])
        before = rng.randint(1, min(_SLOT, len(answer) - 1))
        out.append((before, answer[before:]))
    return out


def _completed(work: Work, network: Callable[[], Net], rows: lang.Rows, seed: int) -> dict[str, list[bool]]:
    """Which answers are right and end in the given words, by the way they were made."""
    net, given = network(), _endings(rows, seed)
    slotted = work.train(
        f"slots/{seed}",
        lang.trained(
            "slots",
            partial(_again, net),
            lang.Lessons(rows=ROWS, seed=seed, padding=_to_slots, writing=with_slots),
            _COMPLEMENTARY,
            work.steps(SLOT_STEPS, 4),
            lr=1e-3,
        ),
    )
    causal = work.train(
        f"causal/{seed}",
        lang.trained(
            "causal",
            partial(lang.network, seed, shifted=True),
            lang.Lessons(rows=2 * ROWS, seed=seed),
            NextToken(),
            work.steps(CAUSAL_STEPS, 4),
        ),
    )
    assert isinstance(slotted, Elastic) and isinstance(causal, Elastic)
    mask, pieces = [lang.MASK], [piece for _, piece in given]
    slots = [[*mask * _SLOT, lang.MARKER, *piece, lang.END] for piece in pieces]
    fixed = [[*mask * _SLOT, *piece, lang.END] for piece in pieces]
    known = [[*mask * before, *piece, lang.END] for before, piece in given]
    return {
        "slots": _filled(slotted, rows, slots, _SLOT_CANVAS),
        "fixed gaps": _filled(net, rows, fixed, lang.CANVAS),
        "gaps of the right length": _filled(net, rows, known, lang.CANVAS),
        "causal": _until(causal, rows, pieces, 1),
        "causal, best of 4": _until(causal, rows, pieces, 4),
        "causal, without given words": _until(causal, rows, [[]] * len(rows), 1),
    }


def _again(net: Net) -> Net:
    made = lang.network(0)
    made.load_state_dict(net.state_dict())
    return made


def _filled(net: Net, rows: lang.Rows, drafts: list[list[int]], canvas: int) -> list[bool]:
    """Which drafts become right answers, one token a forward. Markers and fillers do not count."""
    longest = max(map(len, drafts))
    sampler = Sampler(schedule=Fixed(each=1), token_sampler=Greedy(), selection=Confident())
    done = sampler.sample(net, lang.drafted(rows, drafts, max(canvas, longest)))
    empty = (lang.MARKER, lang.FILLER)
    return lang.right(rows, [[i for i in said if i not in empty] for said in lang.spoken(done)])


def _until(net: Net, rows: lang.Rows, pieces: list[list[int]], tries: int) -> list[bool]:
    """Which rows have a right answer with the given end among some samples of a causal network, left to right, at temperature 1."""
    sampler = Sampler(schedule=Fixed(each=1), token_sampler=Categorical(), selection=Leftmost())
    found = [False] * len(rows)
    for number in range(tries):
        batch = lang.prompted(rows, causal=True)
        said = lang.spoken(sampler.sample(net, batch.replace(seed=batch.seed + number * len(rows))))
        rights = lang.right(rows, said)
        for row, piece in enumerate(pieces):
            ends = said[row][len(said[row]) - len(piece) :] == piece
            found[row] = found[row] or (rights[row] and ends)
    return found


# -- findings ---------------------------------------------------------------------------------------------------------


def _mean(verdicts: Sequence[bool]) -> float:
    return sum(verdicts) / len(verdicts)


def _findings(
    answers: dict[str, list[dict[str, list[bool]]]],
    noise: list[dict[str, float]],
    prefix: list[dict[str, float]],
    slots: list[dict[str, list[bool]]],
) -> Findings:
    runs = [one for arm in ARMS for one in answers[arm]]
    figures: dict[str, Figure] = {}
    for forwards in FORWARDS:
        for shift in SHIFTS:
            found = [_mean(one[_name(forwards, shift)]) for one in runs]
            figures[f"right.{forwards}_forwards.shift_{shift:.2g}"] = over_seeds(found)
    for forwards in FORWARDS[:2]:
        pairs = [(one[_name(forwards, SHIFTS[0])], one[_name(forwards, 1.0)]) for one in runs]
        gain = [_mean(early) - _mean(equal) for early, equal in pairs]
        figures[f"gain_of_a_third_over_1.{forwards}_forwards"] = over_seeds(gain)
    own = [_mean(one[_name(16, 1.0)]) for one in answers["complementary"]]
    for arm in list(ARMS)[1:]:
        other = [_mean(one[_name(16, 1.0)]) for one in answers[arm]]
        gain = [a - b for a, b in zip(own, other, strict=True)]
        figures[f"gain_of_complement_over.{arm.replace(' ', '_')}"] = over_seeds(gain)
    for when in ("first", "last"):
        ratios = [one[f"{when} complementary"] / one[f"{when} two masks"] for one in noise]
        figures[f"gradient_noise_relative.{when}"] = over_seeds(ratios)
    for name in slots[0]:
        figures[f"completed.{name.replace(', ', '_').replace(' ', '_')}"] = share(v for one in slots for v in one[name])
    figures["prefix.change_of_right_answers"] = over_seeds([p["prefix right"] - p["full right"] for p in prefix])
    figures["prefix.equal_answers"] = over_seeds([p["equal"] for p in prefix])
    figures["prefix.tokens_relative"] = over_seeds([p["prefix tokens"] / p["full tokens"] for p in prefix])
    early, against = figures["gain_of_a_third_over_1.4_forwards"], figures["gain_of_complement_over.two_masks"]
    twice, best = figures["gain_of_complement_over.twice_the_data"], figures["completed.slots"]
    other = max((v for n, v in figures.items() if n in _HONEST), key=lambda f: f["value"])
    filled = best["low"] > other["high"]
    return Findings(
        about="Small networks answer questions in one of six wordings, so tokens unmasked in one step can contradict each other. "
        "Three mask schemes spend the same number of rows on a step: a mask and its complement, two independent masks of the same answers, "
        "one mask of twice as many answers. Answers take 4, 8 or 16 forwards for 16 tokens at three time shifts, with and without a kept "
        "prefix; answers that end in given words fill a slot before them.",
        verdict=f"At 4 forwards of 16, shift 1/3 {_seen(early)} over equal steps; a complement {_seen(against)} over two "
        f"masks and {_seen(twice)} over twice the data; slots complete {best['value']:.2f} of the constrained answers, the "
        f"best other way at as many forwards {other['value']:.2f}.",
        seen=_positive(early) and filled,
        figures=figures,
        shown=_shown(answers, figures),
    )


_HONEST = ("completed.fixed_gaps", "completed.causal")


def _positive(figure: Figure) -> bool:
    return figure["low"] is not None and figure["low"] > 0


def _seen(figure: Figure) -> str:
    if figure["low"] is None:
        return f"gains {figure['value']:+.3f} (one run)"
    word = "gains" if figure["low"] > 0 else "loses" if figure["high"] < 0 else "shows no clear gain:"
    return f"{word} {figure['value']:+.3f} ({figure['low']:+.3f} to {figure['high']:+.3f})"


def _shown(answers: dict[str, list[dict[str, list[bool]]]], figures: dict[str, Figure]) -> tuple[Table | Plot, ...]:
    by_shift = tuple((f"{n} of 16", *(figures[f"right.{n}_forwards.shift_{s:.2g}"] for s in SHIFTS)) for n in FORWARDS)
    lines = {f"shift {s:.2g}": [(n, figures[f"right.{n}_forwards.shift_{s:.2g}"]) for n in FORWARDS] for s in SHIFTS}
    by_arm = tuple(
        (arm, *(over_seeds([_mean(one[_name(n, 1.0)]) for one in found]) for n in FORWARDS))
        + (", ".join(f"{_mean(one[_name(16, 1.0)]):.2f}" for one in found),)
        for arm, found in answers.items()
    )
    completed = tuple((n.removeprefix("completed."), f) for n, f in figures.items() if n.startswith("completed."))
    kept = tuple((n.removeprefix("prefix."), f) for n, f in figures.items() if n.startswith("prefix."))
    noise = tuple(
        (n.removeprefix("gradient_noise_relative."), f) for n, f in figures.items() if n.startswith("gradient")
    )
    return (
        Table(
            title="Right answers by schedule, all networks",
            head=("forwards", *(f"shift {s:.2g}" for s in SHIFTS)),
            rows=by_shift,
            note="Greedy, the most probable tokens first. Below 1, early steps unmask more tokens.",
        ),
        Plot(title="Right answers by schedule", across="forwards", up="share of right answers", lines=lines),
        Table(
            title="Right answers by mask scheme, equal steps",
            head=("masks", *(f"{n} of 16" for n in FORWARDS), "each seed at 16"),
            rows=by_arm,
        ),
        Table(
            title="Gradient noise of a complement relative to two masks",
            head=("weights", "ratio"),
            rows=noise,
            note="Variance over masks, summed over parameters, for one batch.",
        ),
        Table(title="A prefix at inference, 8 forwards, shift 1/3", head=("figure", "value"), rows=kept),
        Table(
            title="Right answers that end in given words",
            head=("how", "share"),
            rows=completed,
            note="Slots and gaps take 5 forwards, a causal sample up to 13. Gaps of the right length are told the lengths.",
        ),
    )


DEMO = Demonstration(minutes=6, run=run)
