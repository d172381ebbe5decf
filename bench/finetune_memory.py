"""Memory and time of training steps: all weights against adapters, of weights in bfloat16, int8 and int4.

    python bench/finetune_memory.py --layers 10 --record

A random-weight model in the released layout, in a temporary folder. Each way runs in a process of its own: it opens the model as
``unmask train finetune`` does, then takes steps over rows of text and image codes, forward, backward and AdamW, in bfloat16 with float32
masters. Memory is the operating system's, above what the process had before the model was opened: ``opening`` is the peak until the first
step, ``steps`` the peak from there on.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))

from loading import memory, random_block, write_released

from unmask.checkpoints.elastic import BRANCHES, EVERYTHING, Weights, WeightStorage
from unmask.checkpoints.lavida_o import survey_lavida_o
from unmask.checkpoints.loading import load
from unmask.checkpoints.quantise import RoundToNearest
from unmask.evaluation.history import Line, append
from unmask.models.elastic import Elastic
from unmask.models.lora import LoRA, in_branches
from unmask.models.sizes import SIZES, ElasticConfig
from unmask.objectives.masked import Masked
from unmask.recipe import Optim
from unmask.rng import generator
from unmask.sequence import Batch, Kind, Sequence, Span, collate
from unmask.tokens.vq import VQConfig
from unmask.training.optim import Masters

WAYS = {"all": None, "lora": 0, "lora_int8": 8, "lora_int4": 4}  # bits of the weights below the adapters
HISTORY = Path(__file__).with_name("history.jsonl")


def config(layers: int, width: int) -> ElasticConfig:
    """The released proportions at a smaller width, without a vision tower; a vocabulary of a quarter."""
    return replace(
        SIZES["lavida_o"],
        vocab_size=32_000,
        width=width,
        heads=width // 128,
        layers=layers,
        mlp=3 * width,
        gen_width=width // 2,
        gen_mlp=2 * width,
        joint_layers=1 + layers // 2,
        vision=None,
    )


def rows(size: ElasticConfig, count: int) -> Batch:
    """64 tokens of prompt, 64 of answer and 32 x 32 codes, four to a position: 384 positions a row."""
    spans = (
        Span(name="prompt", kind=Kind.TEXT, start=0, stop=64),
        Span(name="answer", kind=Kind.TEXT, start=64, stop=128, writable=True),
        Span(name="image", kind=Kind.CODE, start=128, stop=1152, grid=(32, 32), fold=2, writable=True),
    )
    rng = generator("memory rows")
    ids = torch.cat(
        [torch.randint(0, most, (count, n), generator=rng) for most, n in ((30_000, 128), (size.codes, 1024))], 1
    )
    return collate(
        [Sequence(ids=one, masked=torch.zeros(1152, dtype=torch.bool), spans=spans) for one in ids], range(count)
    )


def opened(folder: Path, bits: int) -> Elastic:
    """The network as ``recipes.starting.Start`` opens it."""
    quantise = dict.fromkeys(BRANCHES, RoundToNearest(bits=bits)) if bits else {}
    weights = Weights(checkpoint=survey_lavida_o(folder), storage=WeightStorage(dtype=torch.float32, quantise=quantise))
    net, vq = weights.checkpoint.modules()
    load(weights, net, vq, EVERYTHING - {"vision", "vq.encoder", "vq.decoder"})
    net.mask_id = net.config.vocab_size - 1  # the released one is beyond this vocabulary
    return net


def measured(folder: Path, way: str, steps: int, batch: int) -> dict[str, float]:
    """Bytes and seconds of one way, in this process."""
    torch.set_num_threads(1)
    objective, optim, before = Masked(), Optim(lr=1e-4, warmup=1), memory("VmRSS")
    bits = WAYS[way]
    net = opened(folder, bits or 0)
    if bits is not None:
        LoRA(where=in_branches("und", "gen", "out"), rank=16, alpha=32.0)(net)
    masters = Masters(net, optim, lambda name: True, dtype=torch.bfloat16)
    given, opening = rows(net.config, batch), memory("VmHWM") - before
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again
    seconds, losses = list[float](), list[float]()
    for step in range(steps):
        began = time.perf_counter()
        loss = objective(net, given, generator("noise", step))
        masters.backward(loss.total, 1)
        masters.step(optim.lr, step)
        seconds.append(time.perf_counter() - began)
        losses.append(float(loss.total.detach()))
    return {
        "opening": opening,
        "steps": memory("VmHWM") - before,
        "seconds": min(seconds[1:]),
        "loss": losses[-1],
        "parameters": sum(p.numel() for p in net.parameters()),
        "trained": sum(master.numel() for master in masters.master),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=10)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument(
        "--way", choices=tuple(WAYS), help="measure this way of --folder in this process and print JSON"
    )
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--record", action="store_true", help="append the figures to bench/history.jsonl")
    given = parser.parse_args()
    if given.way:
        print(json.dumps(measured(given.folder, given.way, given.steps, given.batch)))
        return
    lines = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "model"
        write_released(folder, config(given.layers, given.width), VQConfig(), shard=2**30, block=random_block())
        for way in WAYS:
            words = ["--way", way, "--folder", str(folder), "--steps", str(given.steps), "--batch", str(given.batch)]
            done = subprocess.run([sys.executable, __file__, *words], stdout=subprocess.PIPE, text=True, check=True)
            found = json.loads(done.stdout)
            gib = {name: found[name] / 2**30 for name in ("opening", "steps")}
            print(
                f"{way}: {found['trained'] / 1e6:.1f} of {found['parameters'] / 1e6:.0f} M parameters trained, peak while "
                f"opening {gib['opening']:.2f} GiB, of the steps {gib['steps']:.2f} GiB, {found['seconds']:.1f} s a step",
                flush=True,
            )
            more = {"layers": given.layers, "width": given.width, "batch": given.batch, **found}
            lines.append(Line(name=f"memory.finetune.{way}", value=round(gib["steps"], 3), unit="GiB", more=more))
    if given.record:
        append(HISTORY, lines)


if __name__ == "__main__":
    main()
