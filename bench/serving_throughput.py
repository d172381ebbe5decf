"""Throughput and latency: eight requests at once against one by one, latency by arrival rate, and time to the first step.

    python bench/serving_throughput.py --threads 2 --record
    python bench/serving_throughput.py --only texts,drawings --repeats 3
    python bench/serving_throughput.py --only texts,words --dtype bfloat16
    python bench/serving_throughput.py --only rates --rates 0.5,1,2 --seconds 20

At once means through the engine, one by one means without it. Both alternate in one run, so that other load on the machine affects both
alike, and their answers must be equal. Rates are requests a second in a Poisson process, whether or not earlier ones are done.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from clients import Job, Outcome, ask, connect, events, send
from rich.progress import Progress
from served import Hosted, answered, finish, mixed, opened, options, percentile, ticking
from speed import INSTRUCTION, PHRASE, PROMPT, QUESTION, Effort, scene_of, timed

from unmask.data.sources import pixels_of
from unmask.evaluation.history import Line
from unmask.pipeline.model import Model
from unmask.sampling.sampler import Sampler
from unmask.serving.engine import Engine
from unmask.serving.requests import Request
from unmask.tasks import edit, generate, ground, infill, understand

LENGTH = 12
THINGS = ("apples", "dogs", "clocks", "cars")
QUESTIONS = (QUESTION, "what is this?", "is there a cat?", "what color is the chair?")


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One task of a group, with the sampler and the seed that it runs with."""

    task: Any
    sampler: Sampler
    seed: int


def texts(model: Model) -> list[Piece]:
    """Eight questions of four lengths about eight pictures."""
    pixels, sampler = _pictures(model), model.presets.ask(model.parts)
    asked = [understand.Ask(pixels=p, question=QUESTIONS[i % 4], length=LENGTH) for i, p in enumerate(pixels)]
    return [Piece(task=task, sampler=sampler, seed=i) for i, task in enumerate(asked)]


def words(model: Model) -> list[Piece]:
    """Eight texts without a picture, to be continued by as many tokens as the answers of ``texts``."""
    sampler = model.presets.fill(model.parts)
    said = (f"{number} {things} and" + " [mask]" * LENGTH for number in ("two", "three") for things in THINGS)
    return [Piece(task=understand.FillText(target=s), sampler=sampler, seed=i) for i, s in enumerate(said)]


def drawings(model: Model) -> list[Piece]:
    sampler = model.presets.generate(model.parts)
    return [Piece(task=generate.Generate(prompt=PROMPT), sampler=sampler, seed=i) for i in range(8)]


def mixed_requests(model: Model) -> list[Piece]:
    """Two drawings, an edit, an infilled region, two questions, a box and a text with a gap."""
    parts, presets, pixels = model.parts, model.presets, _pictures(model)
    region = torch.zeros(parts.side, parts.side, dtype=torch.bool)
    region[: parts.side // 2] = True
    tasks: list[tuple[Any, Any]] = [
        (generate.Generate(prompt=PROMPT), presets.generate(parts)),
        (generate.Generate(prompt="a clock"), presets.generate(parts)),
        (edit.Edit(pixels=pixels[0], instruction=INSTRUCTION), presets.edit(parts)),
        (infill.Infill(pixels=pixels[1], region=region, prompt=PROMPT), presets.generate(parts)),
        (understand.Ask(pixels=pixels[2], question=QUESTION), presets.ask(parts)),
        (understand.Ask(pixels=pixels[3], question="what is this?"), presets.ask(parts)),
        (ground.Ground(pixels=pixels[4], phrases=(PHRASE,)), presets.ground(parts, 1)),
        (understand.FillText(target="two [mask] apples"), presets.fill(parts)),
    ]
    return [Piece(task=task, sampler=sampler, seed=i) for i, (task, sampler) in enumerate(tasks)]


def _pictures(model: Model) -> torch.Tensor:
    return pixels_of([scene_of(i) for i in range(8)], model.parts.side)


def one_by_one(model: Model, pieces: list[Piece]) -> list[Any]:
    model.parts.features.clear()  # a new engine has no picture features either
    answers = []
    for piece in pieces:
        done = model.run([piece.task.build(model.parts)], [piece.seed], piece.sampler)
        answers.append(piece.task.read(done.rows[0], model.parts))
    return answers


def together(model: Model, pieces: list[Piece]) -> list[Any]:
    engine = Engine(model.parts.net, device=model.device)
    handles = [
        engine.submit(Request(sequence=piece.task.build(model.parts), sampler=piece.sampler, seed=piece.seed))
        for piece in pieces
    ]
    engine.drain()
    return [piece.task.read(handle.result(), model.parts) for piece, handle in zip(pieces, handles, strict=True)]


def measured(model: Model, name: str, pieces: list[Piece], effort: Effort) -> Line:
    """How many times longer one by one takes. The name has the dtype if it is not float32. ValueError if answers differ."""
    if together(model, pieces) != one_by_one(model, pieces):
        raise ValueError(f"{name}: together and one by one give different answers")
    fast, slow = timed([lambda: together(model, pieces), lambda: one_by_one(model, pieces)], effort)
    beside = {"together_s": fast, "one_by_one_s": slow, "per_s": len(pieces) / fast}
    dtype = str(model.parts.net.embed.weight.dtype).removeprefix("torch.")
    name = name if dtype == "float32" else f"{name}.{dtype}"
    return Line(name=f"serving.together.{name}", value=slow / fast, unit="ratio", more=beside)


def by_rate(given: argparse.Namespace, model: Model) -> tuple[list[Line], list[str]]:
    """Seconds until an answer to a mixed job, for each arrival rate."""
    jobs = answered(model, mixed(2))
    lines, bad = [], []
    rates = [float(rate) for rate in given.rates.split(",")]
    with Hosted(given.model, threads=given.threads) as server, Progress() as progress:
        for job in jobs:
            ask(connect(server.url), job, "warm")
        tick = ticking(progress, "rates", len(rates))
        for rate in rates:
            outcomes = arriving(server.url, jobs, rate, given.seconds)
            took = [o.seconds for o in outcomes if o.right]
            full = sum(o.status == 429 for o in outcomes)
            bad += [f"at {rate:g}/s: {o}" for o in outcomes if not o.right and o.status != 429]
            more = {"p50": percentile(took, 0.5), "p95": percentile(took, 0.95), "n": len(outcomes), "told_429": full}
            lines.append(Line(name=f"serving.rate.{rate:g}", value=more["p50"], unit="s", more=more))
            tick()
    return lines, bad


def arriving(url: str, jobs: list[Job], rate: float, seconds: float) -> list[Outcome]:
    """Send ``rate`` requests a second for ``seconds``; the outcomes of all."""
    rng, begun = random.Random(f"rate {rate}"), []
    with ThreadPoolExecutor(max(8, int(rate * seconds * 2))) as pool:
        due = until = time.monotonic()
        while due < until + seconds:
            time.sleep(max(0.0, due - time.monotonic()))
            begun.append(pool.submit(lambda job: ask(connect(url), job, f"rate-{id(job)}"), rng.choice(jobs)))
            due += rng.expovariate(rate)
        return [one.result() for one in begun]


def starting(given: argparse.Namespace) -> tuple[list[Line], list[str]]:
    """Seconds from the command until the server listens, and until a client has the first step of a picture."""
    job = Job(
        kind="", path="/v1/images/generations", body={"prompt": PROMPT, "plan": False, "stream": True, "trace": True}
    )
    until_first, until_url = [], []
    for _ in range(given.repeats):
        with Hosted(given.model, threads=given.threads) as server:
            until_url.append(time.monotonic() - server.began)
            connection = connect(server.url)
            send(connection, job, "first")
            for event in events(connection.getresponse()):
                if event and event["type"] == "unmask.frame":
                    until_first.append(time.monotonic() - server.began)
                    break
            connection.close()
    more = {"listens_s": statistics.median(until_url), "n": given.repeats, "worst_s": max(until_first)}
    return [Line(name="serving.start.first_frame", value=statistics.median(until_first), unit="s", more=more)], []


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--repeats", type=int, default=5, help="measurements of each median")
    parser.add_argument("--warm", type=int, default=1, help="measurements before them that do not count")
    parser.add_argument("--only", default="texts,words,drawings,mixed,rates,start", help="groups to measure")
    parser.add_argument(
        "--dtype", default="float32", choices=("float32", "bfloat16"), help="of the model in this process"
    )
    parser.add_argument("--rates", default="0.5,1,2,4,8", help="requests a second")
    parser.add_argument("--seconds", type=float, default=30.0, help="seconds of each rate")
    given = parser.parse_args()
    model = opened(given.model, given.threads, given.dtype)
    groups: dict[str, Callable[[Model], list[Piece]]] = {
        "texts": texts,
        "words": words,
        "drawings": drawings,
        "mixed": mixed_requests,
    }
    effort = Effort(repeats=given.repeats, warm=given.warm)
    if unknown := set(given.only.split(",")) - {*groups, "rates", "start"}:
        parser.error(f"unknown group {', '.join(sorted(unknown))}; there are {', '.join(groups)}, rates, start")
    lines, bad = [], []
    for name in given.only.split(","):
        if name in groups:
            found, wrong = [measured(model, name, groups[name](model), effort)], list[str]()
        else:
            found, wrong = by_rate(given, model) if name == "rates" else starting(given)
        lines += found
        bad += wrong
    finish(given, lines, bad)


if __name__ == "__main__":
    main()
