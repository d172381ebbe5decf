"""What step-causal decoding (Sparse-LaViDa) saves, on a network with random weights: a drawing with guidance, dense and sparse in turns.

    python bench/sparse.py --positions 1024 --steps 64 --width 512 --layers 6 --repeats 1
    python bench/sparse.py --positions 64 --steps 16 --width 192 --layers 8 --registers 4

Seconds are CPU seconds of this process, which a busy machine changes little. Both drawings use the same order, schedule and guidance.
Random weights say nothing about quality: a dense model decoded sparsely draws badly until it is trained for it (``unmask train
sparse.mini``). Rows go to --history.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from dataclasses import replace
from pathlib import Path

import torch

from unmask.evaluation.history import Line, append
from unmask.models.elastic import Elastic, init
from unmask.models.sizes import ElasticConfig
from unmask.rng import generator
from unmask.sampling.guidance import ClassifierFree
from unmask.sampling.sampler import Sampler
from unmask.sampling.schedule import Shift
from unmask.sampling.selection import InOrder
from unmask.sampling.step_causal import ByPosition, position_order, sparse_image
from unmask.sampling.token_sampler import Categorical
from unmask.sequence import Batch, Kind, Sequence, Span, collate


def config(given: argparse.Namespace, registers: int) -> ElasticConfig:
    """Widths in the proportions of the released model."""
    return ElasticConfig(
        vocab_size=4096,
        width=given.width,
        heads=max(2, given.width // 128),
        layers=given.layers,
        mlp=3 * given.width,
        gen_width=given.width // 2,
        gen_mlp=2 * given.width,
        joint_layers=given.layers // 2 + 1,
        vision=None,
        code_registers=registers,
    )


def request(given: argparse.Namespace) -> Batch:
    """A prompt, the masked picture and the end of the turn."""
    side = 2 * math.isqrt(given.positions)
    picture = Span(
        name="image",
        kind=Kind.CODE,
        start=given.prompt,
        stop=given.prompt + side**2,
        writable=True,
        grid=(side, side),
        fold=2,
    )
    prompt = Span(name="prompt", kind=Kind.TEXT, start=0, stop=given.prompt)
    end = Span(name="end", kind=Kind.TEXT, start=picture.stop, stop=picture.stop + 5)
    masked = torch.zeros(end.stop, dtype=torch.bool)
    masked[picture.start : picture.stop] = True
    return collate([Sequence(ids=torch.arange(end.stop) % 4000, masked=masked, spans=(prompt, picture, end))], [0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--positions", type=int, default=1024, help="positions of the picture, four codes each")
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--prompt", type=int, default=150, help="tokens")
    parser.add_argument("--width", type=int, default=512, help="of the understanding branch")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--registers", type=int, default=64)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--history", type=Path, help="append the rows to this file")
    given = parser.parse_args()
    if math.isqrt(given.positions) ** 2 != given.positions:
        parser.error(f"--positions {given.positions} is no square; 1024 is 32 x 32")
    torch.set_num_threads(given.threads)

    batch = request(given)
    side = 2 * math.isqrt(given.positions)
    schedule = Shift(steps=given.steps, shift=5.0)
    base = Sampler(
        schedule=schedule,
        token_sampler=Categorical(temperature=0.8),
        selection=InOrder(order=position_order((side, side), 2)),
        guidance=ClassifierFree(scale=4.0, drop=frozenset({"prompt"}), null_id=0),
    )
    samplers = {
        "dense": replace(base, schedule=ByPosition(schedule=schedule)),
        "sparse": sparse_image(base, grid=(side, side), fold=2),
    }
    seconds: dict[str, list[float]] = {name: [] for name in samplers}
    for _ in range(given.repeats):
        for name, sampler in samplers.items():
            net = Elastic(config(given, given.registers if name == "sparse" else 0), mask_id=0).eval()
            init(net, generator("bench sparse"))
            net = net.to(getattr(torch, given.dtype))
            began = time.process_time()
            sampler.sample(net, batch)
            seconds[name].append(time.process_time() - began)
            print(f"{name}: {seconds[name][-1]:.2f} CPU s", flush=True)
    medians = {name: statistics.median(some) for name, some in seconds.items()}
    ratio = medians["dense"] / medians["sparse"]
    size = f"{given.positions}.{given.dtype}"
    more = {"dense_s": medians["dense"], "sparse_s": medians["sparse"], "steps": given.steps, "width": given.width}
    print(f"sparse decoding is {ratio:.2f} times as fast: {medians['dense']:.2f} -> {medians['sparse']:.2f} CPU s")
    if given.history:
        append(given.history, [Line(name=f"sparse.speedup.{size}", value=ratio, unit="ratio", more=more)])


if __name__ == "__main__":
    main()
