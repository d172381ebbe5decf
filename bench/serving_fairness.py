"""How long a short request waits beside long ones: forwards, and processor time as a multiple of its time alone.

    python bench/serving_fairness.py --threads 1 --record
    python bench/serving_fairness.py --requests 8 --steps 256

The long ones are requests of ten drawings each, all submitted before. The short one is a text with one gap, which takes one forward. It
arrives at a random moment of a tick of the engine, and the time of the rest of that tick counts. No HTTP, so that forwards can be counted.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass

from rich.progress import track
from served import PROMPTS, finish, opened, options, percentile

from unmask.evaluation.history import Line
from unmask.pipeline.model import Model
from unmask.serving.engine import Engine
from unmask.serving.requests import Handle, Request
from unmask.tasks import generate, understand
from unmask.tasks.sampler_options import with_options

EACH = 10  # drawings of a long request


@dataclass(frozen=True, kw_only=True)
class Wait:
    """``forwards``: from its arrival to its end, without the one under way · ``seconds``: of the processor, with the one under way."""

    forwards: int
    seconds: float


def small(model: Model, seed: int) -> Request:
    task = understand.FillText(target="two [mask] apples")
    return Request(sequence=task.build(model.parts), sampler=model.presets.fill(model.parts), seed=seed)


def occupied(model: Model, requests: int, steps: int) -> Engine:
    """An engine with that many long requests."""
    engine = Engine(model.parts.net, device=model.device)
    sampler = with_options(model.presets.generate(model.parts), (), steps, None, None)
    for seed in range(requests * EACH):
        sequence = generate.Generate(prompt=PROMPTS[seed % 4]).build(model.parts)
        engine.submit(Request(sequence=sequence, sampler=sampler, seed=seed))
    for _ in range(5):
        engine.tick()
    return engine


def waited(engine: Engine, request: Request, rng: random.Random) -> Wait:
    for _ in range(rng.randint(0, 3)):
        engine.tick()
    began = time.process_time()
    engine.tick()
    under_way = (time.process_time() - began) * rng.random()
    began, forwards = time.process_time(), engine.metrics().forwards
    _until_done(engine, engine.submit(request))
    return Wait(forwards=engine.metrics().forwards - forwards, seconds=under_way + time.process_time() - began)


def alone(model: Model, times: int) -> float:
    """The median of its seconds on an idle engine."""
    took = []
    for seed in range(times):
        engine = Engine(model.parts.net, device=model.device)
        began = time.process_time()
        _until_done(engine, engine.submit(small(model, seed)))
        took.append(time.process_time() - began)
    return percentile(took, 0.5)


def _until_done(engine: Engine, handle: Handle) -> None:
    while not handle.done:
        engine.tick()


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--requests", type=int, default=4, help="long requests of ten drawings")
    parser.add_argument("--steps", type=int, default=64, help="steps of each drawing")
    parser.add_argument("--repeats", type=int, default=40, help="short requests")
    given = parser.parse_args()
    model = opened(given.model, given.threads)
    own, rng = alone(model, given.repeats), random.Random(0)
    engine = occupied(model, given.requests, given.steps)
    found = [waited(engine, small(model, seed), rng) for seed in track(range(given.repeats), "short requests")]
    ended, seconds = engine.metrics().finished - given.repeats, [one.seconds for one in found]
    engine.close()
    more = {"alone_s": own, "p50_s": percentile(seconds, 0.5), "p95_s": percentile(seconds, 0.95), "n": len(found)}
    forwards = [float(one.forwards) for one in found]
    lines = [
        Line(name="serving.fairness.forwards", value=percentile(forwards, 0.95), unit="forwards", more=more),
        Line(name="serving.fairness.ratio", value=more["p95_s"] / own, unit="ratio", more=more),
    ]
    finish(given, lines, [f"{ended} drawings ended during the measurement; give more --steps"] if ended else [])


if __name__ == "__main__":
    main()
