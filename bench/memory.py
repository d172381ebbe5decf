"""Peak memory of a training step with a large head, with logits of all tokens at once and in chunks.

    python bench/memory.py --vocabulary 127378 --tokens 2048 --history bench/history.jsonl

Each way runs in a process of its own: one step of cross-entropy over every token of a text, forward and backward, in float32 on the CPU.
The figure is the process's peak resident memory minus what it held before the step (weights included).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from unmask.corruption.absorbing import Absorbing  # noqa: E402
from unmask.corruption.schedules import OftenAll, Uniform  # noqa: E402
from unmask.evaluation.history import Line, append  # noqa: E402
from unmask.models.elastic import Elastic, init  # noqa: E402
from unmask.models.sizes import SIZES  # noqa: E402
from unmask.objectives import cross_entropy  # noqa: E402
from unmask.objectives.masked import Masked  # noqa: E402
from unmask.rng import generator  # noqa: E402
from unmask.sequence import Kind, Sequence, Span, collate  # noqa: E402


def step(given: argparse.Namespace) -> dict[str, float]:
    """One step in this process: bytes before it, at its peak, and its loss."""
    torch.set_num_threads(given.threads)
    if given.way == "whole":
        cross_entropy.LARGEST = sys.maxsize
    config = dataclasses.replace(SIZES["tiny"], vision=None, vocab_size=given.vocabulary, width=given.width)
    model = Elastic(config, mask_id=1)
    init(model, generator("memory"))
    span = Span(name="answer", kind=Kind.TEXT, start=0, stop=256, writable=True)
    row = Sequence(ids=torch.arange(256), masked=torch.zeros(256, dtype=torch.bool), spans=(span,))
    batch = collate([row] * (given.tokens // 256), range(given.tokens // 256))
    objective = Masked(corruption=Absorbing(policies={Kind.TEXT: OftenAll(policy=Uniform(), all=1.0)}))
    before = _resident()
    began = time.perf_counter()
    loss = objective(model, batch, generator("noise"))
    loss.total.backward()
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"before": before, "peak": peak, "loss": float(loss.total.detach()), "seconds": seconds}


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=int, default=127_378)
    parser.add_argument("--tokens", type=int, default=2048, help="tokens scored, a multiple of 256")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--way", choices=("whole", "chunks"), help="measure this way in this process and print JSON")
    parser.add_argument("--history", type=Path, help="append the figures to this file")
    given = parser.parse_args()
    if given.way:
        print(json.dumps(step(given)))
        return
    sizes = [f"--{n}={getattr(given, n)}" for n in ("vocabulary", "tokens", "width", "threads")]
    lines = []
    for way in ("whole", "chunks"):
        run = subprocess.run(
            [sys.executable, __file__, "--way", way, *sizes], capture_output=True, text=True, check=True
        )
        found = json.loads(run.stdout)
        used = (found["peak"] - found["before"]) / 2**20
        print(f"{way}: {used:.0f} MiB more than before the step, {found['seconds']:.1f} s, loss {found['loss']:.5f}")
        more = {"vocabulary": given.vocabulary, "tokens": given.tokens, "width": given.width, **found}
        lines.append(Line(name=f"memory.step.{way}", value=used, unit="MiB", more=more))
    if given.history:
        append(given.history, lines)


if __name__ == "__main__":
    main()
