"""Answers in company: many tasks at once, clients that leave, caches on and off. Is every answer that of the model alone, to the last bit?

    python bench/serving_company.py --answers 1000 --threads 1 --record
    python bench/serving_company.py --answers 40 --clients 4

Servers in this process take drawings, plans, edits, regions, questions, boxes, gaps in texts and conversations, as streams and whole, from
several clients at a time. Each server has limits of its own, chosen at random: rows of a forward, places, pauses, padding, and every second
one has no cache of picture features. Some clients leave at a random moment. Exits with 1 if an answer differs, or a place stays taken.
"""

from __future__ import annotations

import io
import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from clients import Job, Outcome, ask, connect
from rich.progress import track
from served import answered, finish, mixed, opened, options
from serving_faults import leave

from unmask.evaluation.history import Line
from unmask.pipeline.model import Model
from unmask.serving.engine import Limits
from unmask.serving.logs import log_to
from unmask.serving.server import Server, listen
from unmask.serving.service import Service

_LEAVES = 0.15  # share of clients that leave


def limits(number: int, rng: random.Random) -> Limits:
    return Limits(
        running=rng.randint(2, 32),
        parked=rng.choice([0, 2, 8]),
        queued=200,
        rows=rng.randint(1, 16),
        multiple=rng.choice([1, 4, 64]),
        stretch=rng.choice([1.0, 1.34, 9.0]),
        idle=rng.choice([0, 256, 9999]),
        feature_bytes=2**28 if number % 2 else 0,
    )


def company(model: Model, jobs: list[Job], number: int, answers: int, clients: int) -> tuple[list[Outcome], int, int]:
    """The outcomes of one server, how many clients left it, and the places that stayed taken."""
    rng = random.Random(number)
    service = Service(model, name="company", limits=limits(number, rng))
    with Server(service, listen("127.0.0.1", 0)) as server, ThreadPoolExecutor(clients) as pool:
        asked, left = [], []
        while len(asked) < answers:
            name, job = f"company-{number}-{len(asked)}-{len(left)}", rng.choice(jobs)
            if rng.random() < _LEAVES:
                way = rng.choice(["close", "reset", "half"])
                left.append(pool.submit(leave, server.url, job, way, random.Random(name)))
            else:
                asked.append(pool.submit(lambda job=job, name=name: ask(connect(server.url), job, name)))
        outcomes = [one.result() for one in asked]
        for one in left:
            one.result()
        service.drain(60)
        return outcomes, len(left), service.under_way


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--answers", type=int, default=1000, help="in total")
    parser.add_argument("--servers", type=int, default=10, help="with different limits")
    parser.add_argument("--clients", type=int, default=16, help="at the same time")
    parser.add_argument("--each", type=int, default=6, help="jobs of each kind, with different seeds")
    parser.add_argument("--steps", type=int, default=4, help="steps of a picture")
    given = parser.parse_args()
    model = opened(given.model, given.threads)
    jobs = answered(model, mixed(given.each, given.steps))
    undo = log_to(io.StringIO())
    outcomes, left, stayed = list[Outcome](), 0, 0
    each = -(-given.answers // given.servers)
    for number in track(range(given.servers), "servers"):
        found, leavers, taken = company(model, jobs, number, each, given.clients)
        outcomes, left, stayed = outcomes + found, left + leavers, stayed + taken
    undo()
    wrong = [one for one in outcomes if not one.right]
    more = {"left": left, "servers": given.servers, "stayed": stayed}
    more |= {f"kind_{kind}": n for kind, n in sorted(Counter(one.kind for one in outcomes).items())}
    lines = [
        Line(name="serving.company.answers", value=len(outcomes), unit="answers", more=more),
        Line(name="serving.company.wrong", value=len(wrong), unit="answers"),
    ]
    bad = [f"{one.kind} {one.name}: {one.status} {one.trouble}" for one in wrong[:10]]
    finish(given, lines, bad + ([f"{stayed} places stayed taken"] if stayed else []))


if __name__ == "__main__":
    main()
