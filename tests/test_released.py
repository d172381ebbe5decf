"""Every command and every Python block of docs/released.md, on the fixture and on tiny checkpoints in LLaDA's layout."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

import unmask
from unmask.checkpoints.adapters import save_adapter
from unmask.checkpoints.budget import Proposal, proposals
from unmask.checkpoints.elastic import Weights
from unmask.models.lora import LoRA, in_branches, sharing
from unmask.pipeline.loading import needs_of
from unmask.pipeline.named_sizes import spec_of_size

from .pages import ROOT, commands, follow, python, run
from .tiny_llada import make

PAGE = (ROOT / "docs" / "released.md").read_text()


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a reader has: a clone's tests/, two downloaded folders, and an adapter."""
    place = tmp_path_factory.mktemp("reader")
    (place / "tests").symlink_to(ROOT / "tests")
    make(place / "LLaDA-8B-Instruct")
    make(place / "LLaDA-8B-Base", seed=1)
    net = sharing(unmask.load("mini", device="cpu").parts.net)
    LoRA(rank=4, where=in_branches("und", "gen"))(net)
    save_adapter(net, place / "pets", base="mini")
    return place


def test_commands_run_in_order(here: Path) -> None:
    told = {command: follow(command, here) for command in commands(PAGE)}
    assert len(told) >= 13
    for name in ("verify", "convert", "merge", "ask", "infill", "inspect"):
        assert any(f"unmask {name} " in command for command in told), name
    figures = next(json.loads(out) for command, out in told.items() if "--json" in command)
    assert figures["ok"] and len(figures["arrays"]) == 11
    assert (here / "apple.png").exists() and (here / "steps.txt").read_text()


@pytest.mark.parametrize("block", python(PAGE))
def test_python_runs(block: str, here: Path) -> None:
    done = run([sys.executable, "-c", block], here)
    assert done.returncode == 0, done.stderr


def cell(way: Proposal | None) -> str:
    """As the page says it; its files are bfloat16 already."""
    if way is None:
        return "does not fit"
    options = way.options.removeprefix("--dtype bfloat16 ").replace("(as stored)", "as stored")
    beside = f", and {way.beside / 2**30:.1f} GiB in CPU memory" if way.beside else ""
    return f"{f'`{options}`' if options.startswith('--') else options}, {way.nbytes / 2**30:.1f} GiB{beside}"


def test_what_fits_a_machine_is_what_inspect_proposes() -> None:
    def best(device: str, task: str, gib: float) -> Proposal | None:
        weights = Weights(checkpoint=spec_of_size("lavida_o").checkpoint, device=device)
        return next((p for p in proposals(weights, needs_of(task), round(gib * 2**30), 1024) if p.fits), None)

    rows = re.findall(r"^\| (GPU|laptop)[^(|]*\(([\d.]+) GiB[^)]*\) \| (.+) \| (.+) \| (.+) \|$", PAGE, re.M)
    assert len(rows) == 4
    for kind, free, *cells in rows:
        device = "cuda" if kind == "GPU" else "cpu"
        assert cells == [cell(best(device, task, float(free))) for task in ("generate", "edit", "ask")], (kind, free)
    assert f"takes {cell(best('cuda', 'all', 27))[11:]} as stored and" in PAGE
    options, size = cell(best("cuda", "all", 21)).split(", ")
    assert f"and {size} with {options}." in PAGE
