"""A recipe of a second or two, and a program that runs it: what test_train.py starts, kills and runs twice over.

python tiny.py FOLDER [--bf16] [--accumulate N] [--shard] [--evaluate] [--uneven] [--stop-at STEP] [--signal-at STEP]

--stop-at waits in that step, to be killed; --signal-at sends SIGTERM to the process that takes that batch; --uneven: ``uneven``.
"""

from __future__ import annotations

import argparse
import dataclasses
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from unmask.checkpoints.store import save_module
from unmask.models.elastic import Elastic, init
from unmask.models.sizes import SIZES
from unmask.objectives.masked import Dropout, Masked
from unmask.recipe import Eval, Optim, Recipe, Training
from unmask.rng import generator
from unmask.sequence import Batch, Kind, Sequence, Span, collate
from unmask.step import Loss
from unmask.training.parallel import join
from unmask.training.stopping import Stopped
from unmask.training.train import train

CONFIG = dataclasses.replace(SIZES["tiny"], vision=None, vocab_size=40)
STEPS = 12
SPANS = (
    Span(name="prompt", kind=Kind.TEXT, start=0, stop=3),
    Span(name="answer", kind=Kind.TEXT, start=3, stop=6, writable=True),
    Span(name="image", kind=Kind.CODE, start=6, stop=22, grid=(4, 4), fold=2, writable=True),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Numbers:
    """Random rows, a pure function of the batch number. At batch ``stop_at`` it waits; ``signal_at`` sends SIGTERM."""

    stop_at: int | None = dataclasses.field(default=None, compare=False)
    signal_at: int | None = dataclasses.field(default=None, compare=False)

    def __call__(self, step: int) -> Batch:
        if step == self.stop_at:
            time.sleep(600)
        if step == self.signal_at:
            signal.raise_signal(signal.SIGTERM)
        rng = generator("numbers", step)
        rows = [
            Sequence(
                ids=torch.randint(0, 40, (22,), generator=rng), masked=torch.zeros(22, dtype=torch.bool), spans=SPANS
            )
            for _ in range(4)
        ]
        return collate(rows, range(4))


def model() -> nn.Module:
    made = Elastic(CONFIG, mask_id=1)
    init(made, generator("tiny"))
    return made


def scores(module: nn.Module, step: int) -> dict[str, float]:
    """The mean square of all logits of one batch."""
    batch = Numbers()(99)
    found = module(batch.replace(masked=batch.writable)).scored
    return {str(kind): float(s.logits.float().square().mean()) for kind, s in found.items()}


MASKED = Masked(dropouts=(Dropout(spans=frozenset({"prompt"}), rate=0.3),))


def uneven(module: nn.Module, batch: Batch, rng: torch.Generator) -> Iterator[Loss]:
    """No loss, one or two of a batch; the second is of the text alone, so the parameters of the codes have no part in it."""
    count = int(batch.ids.sum()) % 3
    for _ in range(min(count, 1)):
        yield MASKED(module, batch, rng)
    for _ in range(count - 1):
        text = batch.replace(writable=batch.writable & (batch.kind == Kind.TEXT))
        yield MASKED(module, text, rng)


def recipe(
    *,
    bf16: bool = False,
    accumulate: int = 1,
    shard: bool = False,
    evaluate: bool = False,
    in_twos: bool = False,
    stop_at: int | None = None,
    signal_at: int | None = None,
) -> Recipe:
    """All but the code table is trained."""
    return Recipe(
        name="tiny",
        model=model,
        source=Numbers(stop_at=stop_at, signal_at=signal_at),
        objective=uneven if in_twos else MASKED,
        optim=Optim(lr=3e-3, warmup=4, decay_from=0.5, ema=0.9),
        training=Training(steps=STEPS, bf16=bf16, accumulate=accumulate, shard=shard, log_every=2, save_every=4),
        trainable=lambda name: not name.startswith("code_embedding.table"),
        evals=(Eval(name="scores", every=4, run=scores),) if evaluate else (),
        export=lambda module, folder: None if save_module(module, folder) else None,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--shard", action="store_true")
    parser.add_argument("--evaluate", action="store_true")
    parser.add_argument("--uneven", action="store_true")
    parser.add_argument("--stop-at", type=int)
    parser.add_argument("--signal-at", type=int)
    given = parser.parse_args()
    torch.set_num_threads(1)
    place = join()
    made = recipe(
        bf16=given.bf16,
        accumulate=given.accumulate,
        shard=given.shard,
        evaluate=given.evaluate,
        in_twos=given.uneven,
        stop_at=given.stop_at,
        signal_at=given.signal_at,
    )
    try:
        done = train(made, given.folder, place=place)
    except Stopped:
        place.leave()
        sys.exit(130)
    save_file(done.state_dict(), given.folder / f"rank{place.rank}.safetensors")
    place.leave()
