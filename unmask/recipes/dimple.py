"""Dimple: the adaptation of causal language models, and the demonstration of ``unmask methods run dimple``.

    unmask train dimple.adapt -o model=QWEN2 --data chats.jsonl --out runs/adapted --steps 2000

A causal model first learns the data as it was trained, from left to right, then masked tokens of the same data with attention in both
directions. The result is a folder in Dream's layout.

The demonstration: networks are trained on the small language of ``paraphrases`` with three digits, all with the same number of steps.

1. Two ways to train: masked tokens alone (``diffusion``), and half of the steps on the next token before (``causal first``).
2. Two lengths of the learned answers: a random number of ends of text behind them, up to 16 tokens (``random``), or one (``exact``). The
   networks answer with 8, 16 and 28 masked tokens, although right answers have at most 9. Dimple draws the length up to the next power of
   two; here that would tell the wordings apart.
3. Confident decoding at several thresholds against equal steps with at least as many forwards.
4. The prompt's keys and values kept after the first step, and answers whose first words are given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from torch import Tensor, nn

from unmask.corruption.absorbing import Absorbing
from unmask.corruption.schedules import Uniform
from unmask.evaluation.demonstration import Demonstration, Findings, Plot, Table, Work
from unmask.evaluation.metrics import Figure, over_seeds
from unmask.methods.dimple import confident
from unmask.models.elastic import Elastic
from unmask.objectives.masked import Masked, Together
from unmask.objectives.next_token import NextToken
from unmask.pipeline.causal import as_dream, causal_in
from unmask.pipeline.formats import Format as Layout
from unmask.pipeline.formats import format_in
from unmask.pipeline.loading import resolve
from unmask.recipe import Recipe
from unmask.recipes import paraphrases as lang
from unmask.recipes.chatting import chat_format
from unmask.recipes.finetune import tuned
from unmask.recipes.starting import Start, start_of
from unmask.recipes.ways import Given, Way, chosen
from unmask.rng import generator
from unmask.sampling.cache import PromptCache
from unmask.sampling.sampler import Sampler, Step
from unmask.sampling.schedule import Equal
from unmask.sampling.selection import Confident
from unmask.sampling.token_sampler import Greedy
from unmask.sequence import Batch
from unmask.step import Prediction, Reuse
from unmask.tasks.family_rows import to_random_length

STEPS, ROWS, DIGITS, TESTS = 800, 32, 3, 256
CANVASES, THRESHOLDS, EQUAL = (8, 16, 28), (0.99, 0.95, 0.8, 0.5, 0.3), (1, 2, 3, 4, 6, 8, 10, 12, 14, 16)
PADDINGS: dict[str, lang.Padding] = {"random": lang.at_random, "exact": lang.exactly}
ARMS = (  # the causal phase, the padding
    (False, "random"),
    (True, "random"),
    (False, "exact"),
)
MASKS = ("single", "dual")
_MASKED = Masked(corruption=Absorbing(otherwise=Uniform()))
_PLAIN = Sampler(schedule=Equal(steps=16), token_sampler=Greedy(), selection=Confident())
_WORDING = 1  # "it is #", "they are *": given in full but for the digits
Measured = dict[str, list[float]]


def adapt(
    model: str = "Qwen/Qwen2.5-0.5B",
    data: str = "",
    causal_steps: int = 500,
    masks: str = "single",
    lora: int = 0,
    batch: int = 8,
    holdout: float = 0.1,
    seed: int = 0,
    folder: str = "",
) -> Recipe:
    """Make a masked diffusion model of a causal language model (Qwen2, Llama, Mistral), on conversations (``chat``).

    ``causal_steps``: steps on the next token before those on masked tokens; 0: none · ``masks``: single, or dual for LaViDa's complement.
    Answers end in padding of a random length, so that the model learns where they end. The other arguments are those of ``finetune``; a
    model in Dream's layout may be given, too. The run's folder keeps the first model in Dream's layout in ``start``.
    """
    if causal_steps < 0:
        raise ValueError(f"causal_steps is {causal_steps}; give the number of steps on the next token, 0 for none")
    dual = chosen("masks", masks, MASKS) == "dual"
    start = _start(model, folder)
    given = Given(data=data, lora=lora, batch=batch, replay="none", holdout=holdout, seed=seed, folder=folder)
    masked = replace(_MASKED, complementary=dual)
    way = Way(formats=lambda start, place: (chat_format(start, to_random_length),), objective=lambda name: masked)
    made = tuned(start, given, way)
    both = Together(objectives=(("causal", NextToken(), 1.0), ("chat", masked, 1.0)))
    return replace(made, name=f"adaptation of {model}", source=Phased(made.source, causal_steps), objective=both)


@dataclass(frozen=True)
class Phased:
    """The batches of ``source``, called "causal" in the first ``steps`` steps."""

    source: Callable[[int], Mapping[str, Batch]]
    steps: int

    def __call__(self, step: int) -> dict[str, Batch]:
        batches = self.source(step)
        return {"causal": batches["chat"]} if step < self.steps else dict(batches)


def _start(model: str, folder: str) -> Start:
    """The model in Dream's layout: itself, or a copy in the run's folder. ValueError for another kind of model."""
    place = causal_in(model) or resolve(model)
    if format_in(place) is Layout.DREAM:
        return start_of(model)
    if not folder:
        raise ValueError(f"{model} is adapted in the folder of a run; give one with --out")
    kept = Path(folder) / "start"
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        as_dream(place, kept)
    return start_of(str(kept))


# -- demonstration ----------------------------------------------------------------------------------------------------


def run(work: Work) -> Findings:
    """Train, answer, compare. The unit of every interval is a trained network."""
    found: dict[str, list[Measured]] = {_name(*arm): [] for arm in ARMS}
    for number, (causal, padding) in enumerate(ARMS):
        work.on_progress("trainings", number, len(ARMS))
        for seed in work.seeds:
            measure = partial(_measured, work, causal, padding, seed)
            found[_name(causal, padding)].append(work.once(f"{_file(causal, padding)}/{seed}", measure))
    return _findings(found)


def _name(causal: bool, padding: str) -> str:
    return f"{'causal first' if causal else 'diffusion'}, {padding}"


def _file(causal: bool, padding: str) -> str:
    return f"{'causal-first' if causal else 'diffusion'}-{padding}"


def _network(work: Work, causal: bool, padding: str, seed: int) -> Elastic:
    """A trained network: all steps on masked tokens, or the first half on the next token."""
    lessons, steps = lang.Lessons(rows=ROWS, seed=seed, digits=DIGITS, padding=PADDINGS[padding]), work.steps(STEPS, 4)
    first = partial(lang.network, seed, shifted=True)
    if causal:
        recipe = lang.trained("causal", first, lessons, NextToken(), steps // 2)
        first = partial(_again, work.train(f"causal-{padding}/{seed}", recipe))
        lessons, steps = replace(lessons, seed=seed + 1000), steps - steps // 2
    made = work.train(f"{_file(causal, padding)}/{seed}", lang.trained("masked", first, lessons, _MASKED, steps))
    assert isinstance(made, Elastic)
    return made


def _again(net: nn.Module) -> Elastic:
    made = lang.network(0, shifted=True)
    made.load_state_dict(net.state_dict())
    return made


# -- measurements -----------------------------------------------------------------------------------------------------


def _measured(work: Work, causal: bool, padding: str, seed: int) -> Measured:
    """Right answers and lengths by canvas; of networks trained on random lengths, everything else too."""
    net, rows = (
        _network(work, causal, padding, seed),
        lang.questions(generator("dimple", "tests"), work.steps(TESTS, 8), DIGITS),
    )
    out: Measured = {}
    for canvas in CANVASES:
        said = lang.spoken(replace(_PLAIN, schedule=Equal(steps=canvas)).sample(net, lang.prompted(rows, canvas)))
        out[f"canvas {canvas}"] = [float(v) for v in lang.right(rows, said)]
        out[f"length {canvas}"] = [float(len(answer)) for answer in said]
    if padding != "random":
        return out
    for threshold in THRESHOLDS:
        out |= _decoded(f"threshold {threshold}", net, rows, confident(_PLAIN, threshold=threshold))
    for steps in EQUAL:
        out |= _decoded(f"steps {steps}", net, rows, replace(_PLAIN, schedule=Equal(steps=steps)))
    return out | _prefilled(net, rows) | _begun(net, rows)


def _decoded(name: str, net: Elastic, rows: lang.Rows, sampler: Sampler) -> Measured:
    """Whether each answer is right, and its forwards."""
    batch = lang.prompted(rows)
    forwards = [0.0] * len(rows)
    going = [True] * len(rows)

    def count(step: Step) -> None:
        for row, masked in enumerate(step.batch.masked.any(1).tolist()):
            forwards[row] += going[row]
            going[row] = masked

    said = lang.spoken(sampler.sample(net, batch, on_step=count))
    return {f"{name} right": [float(v) for v in lang.right(rows, said)], f"{name} forwards": forwards}


class _Counting:
    """A network, and how many tokens its forwards have computed."""

    def __init__(self, net: Elastic) -> None:
        self.net, self.computed = net, 0

    def __call__(self, batch: Batch, *, predict: Tensor | None = None, reuse: Reuse | None = None) -> Prediction:
        self.computed += int((batch.valid if reuse is None else reuse.compute).sum())
        return self.net(batch, predict=predict, reuse=reuse)


def _prefilled(net: Elastic, rows: lang.Rows) -> Measured:
    """Answers with the prompt's keys and values kept from the first step, against those without."""
    said, out = [], Measured()
    for name, sampler in (("full", _PLAIN), ("prefilled", replace(_PLAIN, cache=PromptCache()))):
        counting = _Counting(net)
        said.append(lang.spoken(sampler.sample(counting, lang.prompted(rows))))
        out[f"{name} right"] = [float(v) for v in lang.right(rows, said[-1])]
        out[f"{name} tokens"] = [counting.computed / len(rows)]
    return out | {"prefilled equal": [float(a == b) for a, b in zip(*said, strict=True)]}


def _begun(net: Elastic, rows: lang.Rows) -> Measured:
    """Answers in one wording: with its words given and the digits masked, and those of free answers that have it."""
    wanted = rows.answers(_WORDING)
    drafts = [[lang.MASK if lang.is_digit(i) else i for i in answer] + [lang.END] for answer in wanted]
    given = lang.spoken(_PLAIN.sample(net, lang.drafted(rows, drafts, lang.CANVAS)))
    free = lang.spoken(_PLAIN.sample(net, lang.prompted(rows)))
    return {
        "given wording": [float(a == b) for a, b in zip(given, wanted, strict=True)],
        "free in that wording": [float(a == b) for a, b in zip(free, wanted, strict=True)],
    }


# -- findings ---------------------------------------------------------------------------------------------------------


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _over(found: list[Measured], key: str) -> Figure:
    return over_seeds([_mean(one[key]) for one in found])


def _findings(found: dict[str, list[Measured]]) -> Findings:
    alone, after = (found[_name(causal, "random")] for causal in (False, True))
    both, figures = [*alone, *after], dict[str, Figure]()
    for threshold in THRESHOLDS:
        name = f"threshold {threshold}"
        gains = [_gain(one, name) for one in both]
        figures[f"threshold_{threshold}.forwards"] = _over(both, f"{name} forwards")
        figures[f"threshold_{threshold}.right"] = _over(both, f"{name} right")
        figures[f"threshold_{threshold}.gain_over_equal_steps"] = over_seeds(gains)
        lost = [_mean(one[f"{name} right"]) - _mean(one["steps 16 right"]) for one in both]
        figures[f"threshold_{threshold}.change_from_16_steps"] = over_seeds(lost)
    ends = {name: [_mean(one["canvas 16"]) for one in runs] for name, runs in (("alone", alone), ("first", after))}
    figures["causal_first.gain"] = over_seeds([b - a for a, b in zip(ends["alone"], ends["first"], strict=True)])
    for name, values in ends.items():
        label = "diffusion" if name == "alone" else "causal_first"
        figures[f"{label}.right"] = over_seeds(values)
        figures[f"{label}.worst_seed"] = {"value": min(values), "n": len(values), "low": None, "high": None}
        spread = max(values) - min(values)
        figures[f"{label}.spread"] = {"value": spread, "n": len(values), "low": None, "high": None}
    for arm in ARMS:
        for canvas in CANVASES:
            key = _file(*arm).replace("-", "_")
            figures[f"{key}.canvas_{canvas}.right"] = _over(found[_name(*arm)], f"canvas {canvas}")
            figures[f"{key}.canvas_{canvas}.length"] = _over(found[_name(*arm)], f"length {canvas}")
    figures["prefilled.equal_answers"] = _over(both, "prefilled equal")
    figures["prefilled.change_of_right_answers"] = over_seeds(
        [_mean(one["prefilled right"]) - _mean(one["full right"]) for one in both]
    )
    figures["prefilled.tokens_relative"] = over_seeds(
        [_mean(one["prefilled tokens"]) / _mean(one["full tokens"]) for one in both]
    )
    figures["given_wording.right"] = _over(both, "given wording")
    figures["free_in_that_wording.right"] = _over(both, "free in that wording")
    return _told(found, figures)


def _gain(one: Measured, name: str) -> float:
    """Right answers of a threshold minus those of equal steps with at least as many forwards."""
    mean = _mean(one[f"{name} forwards"])
    steps = next(n for n in EQUAL if n >= mean or n == EQUAL[-1])
    return _mean(one[f"{name} right"]) - _mean(one[f"steps {steps} right"])


def _told(found: dict[str, list[Measured]], figures: dict[str, Figure]) -> Findings:
    best = max(THRESHOLDS, key=lambda t: figures[f"threshold_{t}.gain_over_equal_steps"]["value"])
    gain = figures[f"threshold_{best}.gain_over_equal_steps"]
    sure, lost = figures["threshold_0.95.forwards"], figures["threshold_0.95.change_from_16_steps"]
    exact, cured = figures["diffusion_exact.canvas_16.right"], figures["diffusion_random.canvas_16.right"]
    first = figures["causal_first.gain"]
    confident_pays = gain["low"] is not None and gain["low"] > 0
    steady = first["low"] is not None and first["low"] > 0
    inside, beyond = "inside the interval", "outside the interval"
    said = (
        f"A threshold of 0.95 takes {sure['value']:.1f} of 16 forwards and changes right answers by {lost['value']:+.3f}",
        f"at {best} it has {gain['value']:+.3f} more than equal steps ({beyond if confident_pays else inside})",
        f"with 16 masked tokens, exact lengths in training give {exact['value']:.2f} right answers, random ones {cured['value']:.2f}",
        f"the causal phase changes right answers by {first['value']:+.3f} ({beyond if steady else inside})",
    )
    return Findings(
        about="Small networks learn by masked tokens alone or with a causal phase first, at equal numbers of steps, and with any number "
        "of ends of text behind an answer or exactly one. Confident decoding at several thresholds stands beside equal steps with at least "
        "as many forwards; prompts may be kept after the first step, and first words may be given.",
        verdict="; ".join(said) + ".",
        seen=confident_pays,
        figures=figures,
        shown=_shown(found, figures),
    )


def _shown(found: dict[str, list[Measured]], figures: dict[str, Figure]) -> tuple[Table | Plot, ...]:
    both = [*found[_name(False, "random")], *found[_name(True, "random")]]
    equal = [(n, _over(both, f"steps {n} right")) for n in EQUAL]
    sure = sorted((figures[f"threshold_{t}.forwards"]["value"], figures[f"threshold_{t}.right"]) for t in THRESHOLDS)
    parts = ("forwards", "right", "change_from_16_steps", "gain_over_equal_steps")
    thresholds = tuple((t, *(figures[f"threshold_{t}.{part}"] for part in parts)) for t in THRESHOLDS)
    arms = tuple(
        (_name(*arm), *(_over(found[_name(*arm)], f"{what} {n}") for n in CANVASES for what in ("canvas", "length")))
        for arm in ARMS
    )
    seeds = tuple(
        (_name(causal, "random"), ", ".join(f"{_mean(one['canvas 16']):.2f}" for one in found[_name(causal, "random")]))
        for causal in (False, True)
    )
    others = ("prefilled", "given_wording", "free_in_that_wording")
    return (
        Table(
            title="Confident decoding, 16 masked tokens",
            head=("threshold", "forwards", "right", "change from 16 steps", "gain over equal steps"),
            rows=thresholds,
            note="The last column: against the smallest number of equal steps that has at least as many forwards.",
        ),
        Plot(
            title="Right answers against forwards",
            across="forwards of an answer",
            up="share of right answers",
            lines={"equal steps": equal, "thresholds": sure},
        ),
        Table(
            title="Right answers and mean length by the number of masked tokens",
            head=("training", *(f"{n}: {what}" for n in CANVASES for what in ("right", "length"))),
            rows=arms,
            note="Longer wordings do not fit into 8 tokens.",
        ),
        Table(title="Each seed, random lengths, 16 masked tokens", head=("training", "right"), rows=seeds),
        Table(
            title="Prefilling, and answers with given words",
            head=("figure", "value"),
            rows=tuple((name, f) for name, f in figures.items() if name.startswith(others)),
        ),
    )


DEMO = Demonstration(minutes=4, run=run)
