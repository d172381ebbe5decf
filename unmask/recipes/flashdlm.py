"""The demonstration of FlashDLM: frozen keys and values by block length, and drafts accepted by a small causal guide.

    unmask methods run flashdlm

A masked network and a smaller causal one learn the same texts of six words of three tokens. The first token of a word is a free choice,
some more frequent than others; it and a topic that the prompt names decide the other two. Drafts that are sampled at the same time fit
together only by chance.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from unmask.corruption.absorbing import Absorbing
from unmask.corruption.schedules import OftenAll, Uniform
from unmask.evaluation.demonstration import Demonstration, Findings, Plot, Table, Work
from unmask.evaluation.metrics import Figure, over_seeds
from unmask.methods.flashdlm import guided
from unmask.models.elastic import Elastic, init
from unmask.models.sizes import text_config
from unmask.objectives.masked import Masked
from unmask.objectives.next_token import NextToken
from unmask.recipe import Optim, Recipe, Training
from unmask.rng import generator
from unmask.sampling.aligned import Leftmost
from unmask.sampling.blocks import Blocks
from unmask.sampling.cache import NoCache, PrefixCache
from unmask.sampling.free_cache import FreeCache, ReleasedFreeCache
from unmask.sampling.sampler import Sampler
from unmask.sampling.schedule import Equal, Fixed
from unmask.sampling.selection import Confident, RandomOrder, Threshold
from unmask.sampling.token_sampler import Categorical
from unmask.sequence import Batch, Kind, Sequence, Span, collate

TOPICS, CHOICE, FORCED, FILLERS, WORDS, PROMPT = 2, (0.35, 0.25, 0.1, 0.1, 0.1, 0.1), 12, 8, 6, 48
FIRST = 1 + TOPICS  # ids: 0 the masked token, topics, free choices, two kinds of forced tokens, fillers
SECOND, THIRD = FIRST + len(CHOICE), FIRST + len(CHOICE) + FORCED
FILLER, VOCABULARY = THIRD + FORCED, THIRD + FORCED + FILLERS
ANSWER = 3 * WORDS
BLOCKS = (3, 6, 9, 18)
_RUNS = 4  # of each arm, for its CPU time
_CACHES = ("none", "free", "free, as released")
_ROWS, _STEPS, _TESTED = 16, 1200, 48


@dataclass(frozen=True, kw_only=True)
class Texts:
    """Batches of the training. ``causal``: each token reads those before it alone."""

    seed: int
    causal: bool

    def __call__(self, step: int) -> Batch:
        return texts(_ROWS, generator("flashdlm", self.seed, step), self.causal)


def texts(rows: int, rng: torch.Generator, causal: bool = False) -> Batch:
    """Prompts with one of their right answers, whose tokens are writable and masked."""
    ids = FILLER + torch.randint(FILLERS, (rows, PROMPT + ANSWER), generator=rng)
    topic = torch.randint(TOPICS, (rows, 1), generator=rng)
    ids.scatter_(1, torch.randint(PROMPT, (rows, 1), generator=rng), 1 + topic)
    choice = torch.multinomial(torch.tensor(CHOICE), rows * WORDS, replacement=True, generator=rng).view(rows, WORDS)
    ids[:, PROMPT::3] = FIRST + choice
    ids[:, PROMPT + 1 :: 3], ids[:, PROMPT + 2 :: 3] = forced(choice, topic)
    return _template(rows, causal).replace(ids=ids, clean=ids)


def forced(choice: Tensor, topic: Tensor) -> tuple[Tensor, Tensor]:
    """The second and the third token of words, by their first one and the topic."""
    return SECOND + (5 * choice + topic) % FORCED, THIRD + (choice + 3 * topic) % FORCED


def valid(batch: Batch) -> Tensor:
    """Which words of each row are right: a free choice and the two tokens that belong to it, [B, WORDS] bool."""
    prompt, answer = batch.ids[:, :PROMPT], batch.ids[:, PROMPT:]
    topic = prompt.masked_fill(prompt > TOPICS, 0).sum(1, keepdim=True) - 1
    choice = answer[:, ::3] - FIRST
    second, third = forced(choice, topic)
    return (choice >= 0) & (choice < len(CHOICE)) & (answer[:, 1::3] == second) & (answer[:, 2::3] == third)


def skew(batch: Batch) -> float:
    """Total variation between the free choices of an answer and those of the texts: 0 equal, 1 disjoint."""
    choice = batch.ids[:, PROMPT::3].flatten() - FIRST
    shares = torch.bincount(choice[(choice >= 0) & (choice < len(CHOICE))], minlength=len(CHOICE)) / len(choice)
    return float((shares - torch.tensor(CHOICE)).abs().sum() / 2)


@functools.lru_cache(maxsize=4)
def _template(rows: int, causal: bool) -> Batch:
    step = int(causal)
    prompt = Span(name="prompt", kind=Kind.TEXT, start=0, stop=PROMPT, order_step=step)
    answer = {"start": PROMPT, "stop": PROMPT + ANSWER, "order": PROMPT * step, "order_step": step}
    spans = (prompt, Span(name="answer", kind=Kind.TEXT, writable=True, **answer))
    masked = torch.arange(PROMPT + ANSWER) >= PROMPT
    row = Sequence(ids=torch.zeros(PROMPT + ANSWER, dtype=torch.long), masked=masked, spans=spans)
    return collate([row] * rows, range(rows))


def _net(seed: int, width: int, layers: int, shifted: bool) -> Elastic:
    given = {"width": width, "heads": width // 32, "layers": layers, "mlp": 2 * width}
    config = text_config(vocab_size=VOCABULARY, rope_theta=1000.0, shifted=shifted, **given)
    net = Elastic(config, mask_id=0)
    init(net, generator("flashdlm", seed, width))
    return net


def _recipe(name: str, seed: int, steps: int, model: Callable[[], Elastic]) -> Recipe[Any, Batch]:
    causal = name == "guide"
    masked = Masked(corruption=Absorbing(otherwise=OftenAll(policy=Uniform(), all=0.1)))
    return Recipe(
        name=f"flashdlm.{name}",
        model=model,
        source=Texts(seed=seed, causal=causal),
        objective=NextToken() if causal else masked,
        optim=Optim(lr=3e-3, weight_decay=0.01, warmup=min(50, steps), floor=0.05, ema=0.0),
        training=Training(steps=steps, seed=seed, device="cpu", bf16=False, save_every=max(1, steps // 2)),
    )


def demo(work: Work) -> Findings:
    """Agreement and cost of the cache by block length; forwards and validity of guided runs beside the guide alone."""
    cached, guides = [], []
    for seed in work.seeds:
        cached.append(work.once(f"cache/{seed}", partial(_cached, work, seed)))
        guides.append(work.once(f"guide/{seed}", partial(_guided, work, seed)))
    return _findings(cached, guides)


def _networks(work: Work, seed: int) -> tuple[Elastic, Elastic]:
    steps = work.steps(_STEPS, least=2)
    masked = work.train(f"{seed}/masked", _recipe("masked", seed, steps, partial(_net, seed, 64, 2, False)))
    guide = work.train(f"{seed}/guide", _recipe("guide", seed, steps, partial(_net, seed, 32, 2, True)))
    return masked, guide  # type: ignore[return-value]


def _tested(work: Work, causal: bool = False) -> Batch:
    return texts(work.steps(_TESTED, least=2), generator("flashdlm", "test"), causal)


def _plain(block: int) -> Sampler:
    """One token a step in blocks from left to right, at random places of the block, sampled at temperature 1."""
    given = {"schedule": Equal(steps=block), "blocks": Blocks(length=block)}
    return Sampler(token_sampler=Categorical(), selection=RandomOrder(), **given)


def _cached(work: Work, seed: int) -> dict[str, Any]:
    net, batch = _networks(work, seed)[0], _tested(work)
    found = {}
    for block in BLOCKS:
        caches = {"none": NoCache(), "free": FreeCache(), "free, as released": ReleasedFreeCache()}
        runs = _timed({name: (replace(_plain(block), cache=cache), net, batch) for name, cache in caches.items()})
        wanted = runs["none"][0].ids[:, PROMPT:]
        for name, (done, seconds) in runs.items():
            found[f"{block}/{name}"] = {
                "same": float((done.ids[:, PROMPT:] == wanted).float().mean()),
                "valid": float(valid(done).float().mean()),
                "ms": 1000 * seconds / (done.rows * ANSWER),
            }
    return found


def _timed(arms: dict[str, tuple[Sampler, Elastic, Batch]]) -> dict[str, tuple[Batch, float]]:
    """The finished batch of every arm, and the CPU seconds of the fastest of its runs, which take turns with those of the others."""
    done, seconds = dict[str, Batch](), {name: list[float]() for name in arms}
    for _ in range(_RUNS):
        for name, (sampler, net, batch) in arms.items():
            began = time.process_time()
            done[name] = sampler.sample(net, batch)
            seconds[name].append(time.process_time() - began)
    return {name: (done[name], min(seconds[name])) for name in arms}


def _guided(work: Work, seed: int) -> dict[str, Any]:
    net, guide = _networks(work, seed)
    base = _plain(ANSWER)
    causal = Sampler(schedule=Fixed(each=1), token_sampler=Categorical(), selection=Leftmost())
    arms = {
        "one a step": base,
        "one a step, surest first": replace(base, selection=Confident()),
        "two a step": replace(base, schedule=Fixed(each=2)),
        "threshold 0.9": replace(base, schedule=Equal(steps=1), selection=Threshold(value=0.9)),
        "guided, exact": guided(base, guide, k=1, ratio=1.0),
        "guided, 2 and 0.5": guided(base, guide),
        "guided, 8 and 0.3": guided(base, guide, k=8, ratio=0.3),
    }
    runs = {name: (sampler, net, _tested(work)) for name, sampler in arms.items()}
    runs["guide alone"] = replace(causal, cache=PrefixCache()), guide, _tested(work, causal=True)
    return {name: _measured(name, *run) for name, run in _timed(runs).items()}


def _measured(name: str, done: Batch, seconds: float) -> dict[str, float]:
    steps, alone = float(done.clock.float().mean()), name == "guide alone"
    return {
        "forwards": 0.0 if alone else steps,
        "guide forwards": steps if alone or name.startswith("guided") else 0.0,
        "valid": float(valid(done).float().mean()),
        "ms": 1000 * seconds / (done.rows * ANSWER),
        "skew": skew(done),
    }


def _over(measured: list[dict[str, Any]], name: str, what: str, unit: str = "share") -> Figure:
    return over_seeds([one[name][what] for one in measured], unit=unit)


def _findings(cached: list[dict[str, Any]], guides: list[dict[str, Any]]) -> Findings:
    figures = _figures(cached, guides)
    block = BLOCKS[1]
    fast, same = figures[f"speed.{block}.free"], figures[f"agreement.{block}"]
    fewer, harm, slower = (figures[f"guided.{name}"] for name in ("fewer_forwards", "valid", "time_of_guide_alone"))
    equal, alone = figures["guided.valid_over_two_a_step"], figures["guided.valid_over_guide_alone"]
    return Findings(
        about=f"Prompts of {PROMPT} tokens, answers of {ANSWER} tokens, sampled at temperature 1. The cache is compared with the same "
        "sampler and random numbers without one. Guided runs are compared with one token a step and with the small causal guide writing "
        "alone; CPU time includes the guide. The result counts as seen if the cache is faster. "
        "Skew is the total variation between the free choices of the answers and those of the texts.",
        verdict=f"In blocks of {block} the cache is {fast['value']:.2f} times as fast and {same['value']:.1%} of the tokens are the same; "
        f"guided runs take {fewer['value']:.2f} times fewer forwards at {harm['value']:+.3f} valid words ({equal['value']:+.3f} over two "
        f"tokens a step), and {slower['value']:.1f} times the time of the guide alone ({alone['value']:+.3f} valid words against it).",
        seen=fast["low"] is not None and fast["low"] > 1,
        figures=figures,
        shown=(
            _cache_table(cached),
            _guide_table(guides),
            Plot(
                title="Tokens that are the same as without a cache",
                across="tokens of a block",
                up="share",
                lines={n: [(b, _over(cached, f"{b}/{n}", "same")) for b in BLOCKS] for n in _CACHES[1:]},
            ),
        ),
    )


def _figures(cached: list[dict[str, Any]], guides: list[dict[str, Any]]) -> dict[str, Figure]:
    """Everything as a comparison of two arms of the same seed."""
    figures = {}
    for block in BLOCKS:
        for key, name in (("free", "free"), ("free_released", "free, as released")):
            times = [one[f"{block}/none"]["ms"] / one[f"{block}/{name}"]["ms"] for one in cached]
            figures[f"speed.{block}.{key}"] = over_seeds(times, unit="times")
        figures[f"agreement.{block}"] = _over(cached, f"{block}/free", "same")
        fresh = [one[f"{block}/free"]["same"] - one[f"{block}/free, as released"]["same"] for one in cached]
        figures[f"refreshing.{block}"] = over_seeds(fresh, unit="share")
    loose, one, alone = "guided, 8 and 0.3", "one a step", "guide alone"
    figures["guided.fewer_forwards"] = over_seeds(
        [g[one]["forwards"] / g[loose]["forwards"] for g in guides], unit="times"
    )
    figures["guided.valid"] = over_seeds([g[loose]["valid"] - g[one]["valid"] for g in guides], unit="share")
    for key, other in (("two_a_step", "two a step"), ("guide_alone", alone)):
        gained = [g[loose]["valid"] - g[other]["valid"] for g in guides]
        figures[f"guided.valid_over_{key}"] = over_seeds(gained, unit="share")
    figures["guided.skew"] = over_seeds([g[loose]["skew"] - g[one]["skew"] for g in guides], unit="share")
    figures["guided.time_of_guide_alone"] = over_seeds([g[loose]["ms"] / g[alone]["ms"] for g in guides], unit="times")
    return figures


def _cache_table(cached: list[dict[str, Any]]) -> Table:
    arms = [(block, name) for block in BLOCKS for name in _CACHES]
    units = (("same", "share"), ("valid", "share"), ("ms", "ms"))
    return Table(
        title="FreeCache by block length",
        head=("block", "cache", "same tokens", "valid words", "CPU ms a token"),
        rows=tuple((b, n, *(_over(cached, f"{b}/{n}", what, unit) for what, unit in units)) for b, n in arms),
    )


def _guide_table(guides: list[dict[str, Any]]) -> Table:
    units = (
        ("forwards", "forwards"),
        ("guide forwards", "forwards"),
        ("valid", "share"),
        ("ms", "ms"),
        ("skew", "share"),
    )
    return Table(
        title="A guide that accepts drafts",
        head=("sampler", "forwards", "of the guide", "valid words", "CPU ms a token", "skew"),
        rows=tuple((arm, *(_over(guides, arm, what, unit) for what, unit in units)) for arm in guides[0]),
    )


DEMO = Demonstration(minutes=6, run=demo)
