"""``small.all`` on a GPU: every stage at its real size for seconds, workers, page-locked copies, and a folder that goes on.

UNMASK_GPU_DEVICE=cpu pytest -m gpu tests/gpu/test_small.py        a rehearsal, at a fraction of the size
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

import unmask
from unmask.cli.main import main

DEVICE = os.environ.get("UNMASK_GPU_DEVICE", "cuda")
ON_GPU = DEVICE.startswith("cuda")
SETTINGS = ("times=1", "images=300", "items=6") if ON_GPU else ("times=0.05", "narrow=4", "images=40", "items=2")
MIB = 2**20

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(ON_GPU and not torch.cuda.is_available(), reason="no CUDA device"),
]


def test_the_chain_runs_and_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "small"
    words = ["train", "small.all", "--out", str(out), "--device", DEVICE]
    words += [w for s in (*SETTINGS, "workers=2", "texts=300") for w in ("-o", s)]
    assert main([*words, "--minutes", "0.6" if ON_GPU else "0.2"]) == 0
    done = json.loads((out / "chain.json").read_text())["stages"]
    assert all(stage["share"] == 1 and stage["step"] > 0 for stage in done.values())
    for stage in done:
        rows = [json.loads(line) for line in (out / stage / "metrics.jsonl").read_text().splitlines()]
        assert rows and all(value == value for row in rows for value in row.values())
    assert main([*words, "--minutes", "0.1", "--resume"]) == 0
    assert json.loads((out / "chain.json").read_text())["stages"]["all"]["step"] > done["all"]["step"]
    sizes = [path.stat().st_size for path in out.rglob("*") if path.is_file()]
    assert max(sizes) <= 16 * MIB and sum(sizes) <= 60 * MIB
    drawn = unmask.load(out, device=DEVICE).generate("a red cup", plan=False, settings=["schedule.steps=2"])[0].image
    assert drawn.size == (256, 256)


def test_page_locked_copies_hold_the_values() -> None:
    from unmask.training.device import move

    pictures = torch.randint(0, 255, (64, 256, 256, 3), dtype=torch.uint8)
    source = pictures.pin_memory() if ON_GPU else pictures
    copies = [move((source, {"a": source[i]}), torch.device(DEVICE)) for i in range(8)]
    assert all(torch.equal(whole.cpu(), pictures) for whole, _ in copies)
    assert all(torch.equal(parts["a"].cpu(), pictures[i]) for i, (_, parts) in enumerate(copies))
