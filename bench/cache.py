"""What each cache of keys and values brings and costs, on a network with random weights.

    python bench/cache.py --width 512 --layers 8 --prefix 512 --answer 64 --threads 1

``exact``: a prefix-LM answer with ``PrefixCache`` beside no cache: times faster, and the largest difference of a logit over all steps.
``cropped`` and ``block.N`` (a refresh every N steps, 0: at the first step of a block): an answer that everything reads, in blocks, beside
no cache: times faster, and the share of tokens that agree with those of no cache (random weights, so a lower bound of no model's
quality: it says how far the cache moves the argmax). Runs of both take turns. Rows go to --history.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from unmask.evaluation.history import Line, append
from unmask.models.elastic import Elastic, init
from unmask.models.sizes import ElasticConfig
from unmask.protocols import Cache
from unmask.rng import generator
from unmask.sampling.blocks import Blocks
from unmask.sampling.cache import BlockCache, CroppedCache, NoCache, PrefixCache
from unmask.sampling.sampler import Sampler
from unmask.sampling.schedule import Fixed
from unmask.sampling.selection import Confident
from unmask.sampling.token_sampler import Greedy
from unmask.sequence import Batch, Kind, Sequence, Span, collate

VOCABULARY = 4096


def network(given: argparse.Namespace) -> Elastic:
    """A text model of the wanted size, in the wanted type."""
    config = ElasticConfig(
        vocab_size=VOCABULARY,
        width=given.width,
        heads=given.width // 64,
        layers=given.layers,
        mlp=3 * given.width,
        gen_width=0,
        gen_mlp=0,
        joint_layers=given.layers,
        codes=0,
        code_rows=0,
        vision=None,
    )
    net = Elastic(config, mask_id=0).eval()
    init(net, generator("bench cache"))
    return net.to(given.device, getattr(torch, given.dtype))


def request(given: argparse.Namespace, *, prefix_lm: bool) -> Batch:
    """A prompt and a masked answer. ``prefix_lm``: the prompt does not read the answer."""
    length = given.prefix + given.answer
    spans = (
        Span(name="prompt", kind=Kind.TEXT, start=0, stop=given.prefix),
        Span(name="answer", kind=Kind.TEXT, start=given.prefix, stop=length, order=int(prefix_lm), writable=True),
    )
    ids = torch.randint(1, VOCABULARY, (length,), generator=generator("ids"))
    sequence = Sequence(ids=ids, masked=torch.arange(length) >= given.prefix, spans=spans)
    return collate([sequence], [0]).to(given.device)


def decode(net: Elastic, batch: Batch, sampler: Sampler) -> tuple[float, Tensor, list[Tensor]]:
    """Seconds, ids, and the logits of every step."""
    run, logits = sampler.start(batch), []
    _settle(batch)
    began = time.perf_counter()
    while (query := run.query) is not None:
        with torch.no_grad():
            prediction = net(query.batch, predict=query.predict, reuse=query.reuse)
        logits.append(prediction.logits(Kind.TEXT))
        run.advance(prediction)
    _settle(batch)
    return time.perf_counter() - began, run.batch.ids, logits


def beside_no_cache(net: Elastic, batch: Batch, sampler: Sampler, cache: Cache, repeats: int) -> dict[str, float]:
    """A cache against none, taking turns; the first turn does not count."""
    slow, fast = [], []
    agree, difference = 0.0, 0.0
    for turn in range(repeats + 1):
        seconds, wanted, plain = decode(net, batch, replace(sampler, cache=NoCache()))
        cached_seconds, ids, logits = decode(net, batch, replace(sampler, cache=cache))
        open_ = batch.masked
        agree = float((ids[open_] == wanted[open_]).float().mean())
        difference = max(float((a - b).abs().max()) for a, b in zip(plain, logits, strict=True) if a.shape == b.shape)
        if turn:
            slow.append(seconds)
            fast.append(cached_seconds)
    return {
        "ratio": statistics.median(s / f for s, f in zip(slow, fast, strict=True)),
        "slow_s": statistics.median(slow),
        "fast_s": statistics.median(fast),
        "agree": agree,
        "logit_difference": difference,
    }


def lines(given: argparse.Namespace) -> list[Line]:
    net = network(given)
    sampler = Sampler(
        schedule=Fixed(each=given.each),
        token_sampler=Greedy(),
        selection=Confident(),
        blocks=Blocks(length=given.block),
    )
    about = {k: getattr(given, k) for k in ("width", "layers", "prefix", "answer", "block", "each", "dtype", "device")}
    measured: list[tuple[str, bool, Cache]] = [
        ("exact", True, PrefixCache()),
        ("cropped", False, CroppedCache()),
        *((f"block.{n}", False, BlockCache(refresh=n)) for n in given.refresh),
    ]
    found = []
    for name, prefix_lm, cache in measured:
        row = beside_no_cache(net, request(given, prefix_lm=prefix_lm), sampler, cache, given.repeats)
        found.append(Line(name=f"cache.{name}", value=row["ratio"], unit="ratio", more={**row, **about}))
    return found


def _settle(batch: Batch) -> None:
    if batch.device.type == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("width", 512), ("layers", 8), ("prefix", 512), ("answer", 64), ("block", 32), ("each", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--refresh", type=int, nargs="*", default=[0, 4, 8])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--history", type=Path, help="Append the rows to this file.")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    found = lines(given)
    for line in found:
        more = line.more or {}
        print(
            f"{line.name:16} {line.value:6.2f}x  agree {more['agree']:.3f}  largest logit difference {more['logit_difference']:.2e}"
        )
    if given.history:
        append(given.history, found, device=given.device)


if __name__ == "__main__":
    main()
