"""How much memory loading takes: a released layout of several GB, loaded part by part in its own process.

    python bench/loading.py --gigabytes 4.5 --record

The shards hold the released widths with as few layers as the size asks for, in bfloat16, written piece by piece from one block of
random numbers; they are deleted afterwards. Peak memory is the operating system's (VmHWM), above what the process had before. What is
counted in full size, parameters of every part and of every task, needs no weights: tests/checkpoints/test_elastic.py, test_stream.py.
"""

from __future__ import annotations

import argparse
import json
import signal
import struct
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from unmask.checkpoints.elastic import Checkpoint, Weights, tensors_needed
from unmask.checkpoints.lavida_o import names, survey_lavida_o
from unmask.checkpoints.loading import load
from unmask.evaluation.history import Line, append
from unmask.models.elastic import Elastic
from unmask.models.sizes import SIZES, ElasticConfig
from unmask.pipeline.convert import Content, released_config
from unmask.pipeline.loading import needs_of
from unmask.pipeline.named_sizes import spec_of_size
from unmask.tokens.vq import VQ, VQConfig

HISTORY = Path(__file__).with_name("history.jsonl")
TASKS = ("generate", "ask", "all")
BLOCK = 2**25  # random numbers that are written again and again


def sized(nbytes: float) -> ElasticConfig:
    """The released widths with the fewest layers that fill ``nbytes`` in bfloat16; two thirds of them joint."""
    for layers in range(2, 33):
        config = replace(SIZES["lavida_o"], layers=layers, joint_layers=1 + layers // 2)
        with torch.device("meta"):
            if 2 * sum(p.numel() for p in Elastic(config, mask_id=0).parameters()) >= nbytes:
                return config
    return SIZES["lavida_o"]


def write_shard(path: Path, tensors: dict[str, tuple[int, ...]], block: bytes | None) -> None:
    """A safetensors file of bfloat16 numbers, taken from ``block``; None: a hole of the right length, which reads as zeros."""
    head, at = {}, 0
    for name, shape in tensors.items():
        nbytes = 2 * torch.Size(shape).numel()
        head[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + nbytes]}
        at += nbytes
    text = json.dumps(head).encode()
    with path.open("wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        if block is None:
            f.truncate(8 + len(text) + at)
            return
        for first in range(0, at, len(block)):
            f.write(block[: min(len(block), at - first)])


def write_released(folder: Path, config: ElasticConfig, vq: VQConfig, *, shard: int, block: bytes | None) -> list[Path]:
    """A folder in the released layout, with an index, in shards of at most ``shard`` bytes where no tensor is larger."""
    with torch.device("meta"):
        net, tokenizer = Elastic(config, mask_id=0), VQ(vq)
    called = names(config)
    shapes = {f"model.{called[name]}": tuple(p.shape) for name, p in net.named_parameters()}
    parts, size = [{}], 0
    for name, shape in shapes.items():
        nbytes = 2 * torch.Size(shape).numel()
        if size and size + nbytes > shard:
            parts, size = [*parts, {}], 0
        parts[-1][name] = shape
        size += nbytes
    (folder / "vqvae").mkdir(parents=True)
    files = [folder / f"model-{i + 1:05d}-of-{len(parts):05d}.safetensors" for i in range(len(parts))]
    for file, part in zip(files, parts, strict=True):
        write_shard(file, part, block)
    where = {name: file.name for file, part in zip(files, parts, strict=True) for name in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    write_shard(
        folder / "vqvae" / "diffusion_pytorch_model.safetensors",
        {n: tuple(p.shape) for n, p in tokenizer.named_parameters()},
        block,
    )
    checkpoint = Checkpoint(
        place=folder, config=config, vq_config=vq, mask_id=min(126336, config.vocab_size - 1), net={}, vq={}
    )
    setting = {"wording": "released", "side": 1024, "fold": 2}
    said = Content(checkpoint=checkpoint, setting=setting, beside=folder, config={}, vqvae={})
    for place, fields in zip((folder, folder / "vqvae"), released_config(said), strict=True):
        (place / "config.json").write_text(json.dumps(fields))
    return files


def random_block() -> bytes:
    """Small random numbers in bfloat16, as bytes."""
    numbers = torch.randn(BLOCK, generator=torch.Generator().manual_seed(0), dtype=torch.float32).mul_(0.02)
    return numbers.bfloat16().view(torch.uint8).numpy().tobytes()


def memory(field: str) -> int:
    """VmRSS (the memory this process has now) or VmHWM (the most it has had), bytes. Not ``ru_maxrss``: a process inherits
    that from the one that started it, here a benchmark that wrote the layout, or a whole run of tests."""
    line = next(t for t in Path("/proc/self/status").read_text().splitlines() if t.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


def measured(folder: Path, task: str) -> dict[str, float]:
    """Open for one task in this process: bytes kept, peak above what was there before, parameters read, seconds."""
    # The first module without memory imports 75 MB of torch, which are no weights.
    spec_of_size("tiny").checkpoint.modules()
    before = memory("VmRSS")
    weights = Weights(checkpoint=survey_lavida_o(folder))
    net, vq = weights.checkpoint.modules()
    began = time.perf_counter()
    load(weights, net, vq, needs_of(task))
    seconds = time.perf_counter() - began
    kept = sum(p.nbytes for m in (net, vq) for p in m.parameters() if not p.is_meta)
    plan = tensors_needed(weights.checkpoint, needs_of(task))
    read = sum(stored.numbers // stored.shape[0] * rows for _, _, stored, rows in plan)
    return {"kept": kept, "above": memory("VmHWM") - before - kept, "parameters": read, "seconds": seconds}


def in_a_process(folder: Path, task: str) -> dict[str, float]:
    """``measured`` in a fresh process, so that nothing else counts."""
    words = [sys.executable, __file__, "--open", str(folder), "--task", task]
    return json.loads(subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=4.5)
    parser.add_argument("--shard", type=float, default=2.0, help="GB a shard")
    parser.add_argument("--folder", type=Path, help="where to write; default: a temporary folder")
    parser.add_argument("--record", action="store_true", help="append to bench/history.jsonl")
    parser.add_argument("--open", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--task", default="generate", help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.open:
        print(json.dumps(measured(given.open, given.task)))
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the folder is deleted then too
    with tempfile.TemporaryDirectory(dir=given.folder) as room:
        folder, config = Path(room) / "released", sized(given.gigabytes * 1e9)
        write_released(folder, config, VQConfig(), shard=round(given.shard * 1e9), block=random_block())
        stored = sum(f.stat().st_size for f in folder.rglob("*.safetensors"))
        print(f"{config.layers} layers, {stored / 1e9:.2f} GB")
        lines = []
        for task in TASKS:
            found = in_a_process(folder, task)
            above, kept = found["above"] / 1e6, found["kept"] / 1e9
            print(f"{task}: kept {kept:.2f} GB, peak {above:+.0f} MB above, {found['seconds']:.0f} s")
            more = {"stored": stored, **found}
            lines.append(Line(name=f"loading.{task}.peak_above_kept", value=found["above"], unit="bytes", more=more))
    if given.record:
        append(HISTORY, lines)


if __name__ == "__main__":
    main()
