"""How fast one core makes the batches of ``small``, and what a step of its training costs: how many cores feed a GPU.

    python bench/small_data.py --history bench/history.jsonl

Rates are per second of CPU time of one process, sprites rasterised before. ``small.data.*.rows`` includes scenes, texts, pictures and the
file that a worker writes. ``--flops`` counts the operations of a row, forward and backward, with the encoding of its pictures (a minute).
"""

from __future__ import annotations

import argparse
import pickle
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[1]))

from unmask.data import ahead  # noqa: E402
from unmask.data.deferred import Rendered  # noqa: E402
from unmask.data.mixture import Joint  # noqa: E402
from unmask.data.world.render import render  # noqa: E402
from unmask.data.world.scenes import sample  # noqa: E402
from unmask.data.world.sprites import SpriteFile, fresh  # noqa: E402
from unmask.evaluation.history import Line, append  # noqa: E402
from unmask.models.elastic import Elastic, init  # noqa: E402
from unmask.objectives.encoded import Encoded, Tokenizer  # noqa: E402
from unmask.objectives.masked import Together  # noqa: E402
from unmask.recipes import small, small_tasks, small_vq  # noqa: E402
from unmask.recipes.mini import text  # noqa: E402
from unmask.rng import generator  # noqa: E402
from unmask.tokens.text import MASK  # noqa: E402
from unmask.tokens.vq import VQ  # noqa: E402

STAGES = {"draw": small_tasks.drawing, "all": small_tasks.everything}


def seconds(make: Callable[[int], Any], count: int) -> float:
    """CPU seconds of one call, after two that fill the sprites."""
    make(0)
    make(1)
    began = time.process_time()
    for i in range(count):
        make(i)
    return (time.process_time() - began) / count


def joint(stage: str, rendered: Rendered, times: float) -> tuple[Joint, Encoded, int]:
    """Source and objective of a joint stage with random weights, and the rows of a batch that has every part."""
    rows = small_tasks.Rows(text=text(), seed=0, times=times, look_tokens=72, rendered=rendered)
    parts = STAGES[stage](rows)
    source = Joint(parts=tuple((p.name, small._deferred(p.source), p.every) for p in parts))
    together = Together(objectives=tuple((p.name, p.objective, p.weight) for p in parts))
    count = sum(batch.rows for batch, _ in source(0).values())
    return source, Encoded(objective=together, tokenizer=Tokenizer(VQ(small_vq.config()))), count


def rates(folder: Path, count: int) -> list[Line]:
    rendered = Rendered(sprites=SpriteFile.create(folder))
    scenes = [sample("free", "train", 0, i, small_vq.DENSE) for i in range(400)]
    whole = seconds(lambda i: [render(s, 256, rendered.sprites or fresh) for s in scenes], 3)
    lines = [Line(name="small.data.render", value=len(scenes) / whole, unit="scenes/s per core")]
    crops = small_vq.Crops(seed=0, pictures=64, levels=small_tasks.DRAFT_LEVELS, rendered=rendered)
    each = seconds(lambda i: crops(1 + 4 * (i % 2)), count)
    lines.append(Line(name="small.data.crops", value=64 * crops.each / each, unit="1/s per core"))
    for stage in STAGES:
        source, _, rows = joint(stage, rendered, 1.0)
        pickled = pickle.dumps(source)
        each = seconds(lambda i, p=pickled: ahead._make(p, 45 * (i % 2), str(folder / "batch")), count)
        size = (folder / "batch").stat().st_size / 1e6
        more = {"rows": rows, "mb": round(size, 1)}
        lines.append(Line(name=f"small.data.{stage}.rows", value=rows / each, unit="rows/s per core", more=more))
    return lines


def flops() -> list[Line]:
    """Operations of a row of each joint stage, counted over a few rows of every part."""
    lines = []
    for stage in STAGES:
        source, objective, rows = joint(stage, Rendered(), 0.1)
        model = Elastic(small.size(1), mask_id=text()[MASK])
        init(model, generator("flops"))
        with FlopCounterMode(display=False) as counter:
            objective(model, source(0), generator("flops")).total.backward()
        value = counter.get_total_flops() / rows / 1e9
        lines.append(Line(name=f"small.work.{stage}.row", value=value, unit="GFLOP", more={"rows": rows}))
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--history", type=Path, help="file to append to")
    parser.add_argument("--count", type=int, default=4, help="batches of each kind")
    parser.add_argument("--flops", action="store_true", help="count the work of a row too")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        lines = rates(Path(folder), given.count)
    lines += flops() if given.flops else []
    for line in lines:
        print(f"{line.name:28} {line.value:12.1f} {line.unit} {line.more or ''}")
    if given.history:
        append(given.history, lines)
    return 0


if __name__ == "__main__":
    sys.exit(main())
