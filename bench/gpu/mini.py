"""The transformer of ``mini.all`` on a GPU that is lent for minutes: from the finished tokenizers and tower to the last stage's weights.

    python bench/gpu/mini.py CARRIED OUT --seconds 560 --device cuda -o times=8 -o rate=2

CARRIED: the folder of a series whose parts up to ``tower`` are done, without states: chain.json, tokenizer.json, dictionary.safetensors,
vq/ and tower/ · OUT: files of at most 16 MiB each, 60 MiB together: the newest weights, every run's metrics, chain.json.
Where these are copied into the folder of the series, `unmask train mini.all --resume` exports, evaluates and writes the card. The
last stage gets the time that is left after its pictures are drawn.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import sys
import tarfile
import tempfile
import time
from pathlib import Path

from unmask.cli.train import look_up
from unmask.data.ahead import stop_workers
from unmask.training.series import Run, Series, run_series

CLOSING = 12.0  # seconds kept for the last export and for packing
LAST = "stage3_drawn"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("carried", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, default=560, help="for everything")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--spared", type=float, default=60, help="seconds expected for starting, saving and drawing")
    parser.add_argument("-o", dest="settings", action="append", default=[], help="arguments of mini.all")
    given = parser.parse_args()
    began = time.monotonic()
    series, _ = look_up("mini.all", given.settings, None)
    assert isinstance(series, Series)
    with tempfile.TemporaryDirectory(prefix="unmask-mini-") as name:
        folder = Path(name)
        shutil.copytree(given.carried, folder, dirs_exist_ok=True)
        try:
            train(series, folder, given, began)
        finally:
            stop_workers()
    return 0


def train(series: Series, folder: Path, given: argparse.Namespace, began: float) -> None:
    """All parts up to the last stage, whose time is what is left."""
    started(series, folder)
    names = [part.name for part in series.parts]
    first, last = names.index("tower") + 1, names.index(LAST)
    runs = [part for part in series.parts if isinstance(part, Run)]
    whole = sum(run.share for run in runs)
    ahead = sum(part.share for part in series.parts[first : last + 1] if isinstance(part, Run))
    seconds = (given.seconds - given.spared) * whole / ahead
    for stop in (last, last + 1):
        if stop > last:
            left = given.seconds - (time.monotonic() - began) - CLOSING
            seconds = left * whole / next(run.share for run in runs if run.name == LAST)
        some = dataclasses.replace(series, parts=series.parts[:stop])
        # Shares are of the whole series, so the parts that are left out count.
        share = sum(part.share for part in some.parts if isinstance(part, Run)) / whole
        run_series(some, folder, seconds=seconds * share, device=given.device, say=lambda text: _say(text, began))
        packed(folder, given.out)
    _say("trained", began)


def started(series: Series, folder: Path) -> None:
    """Start the workers before the time of a run begins: it takes them longer than the shortest run has."""
    recipe = next(part.recipe(folder) for part in series.parts if isinstance(part, Run) and part.name == "stage3")
    recipe.source(0)


def _say(text: str, began: float) -> None:
    print(f"[{time.monotonic() - began:.0f} s] {text}", flush=True)


def packed(folder: Path, out: Path) -> None:
    """The newest weights, metrics of all runs, and how far the series is."""
    out.mkdir(parents=True, exist_ok=True)
    newest = folder / (LAST if list((folder / LAST).glob("model*")) else "stage3")
    for path in newest.glob("model*"):
        shutil.copy(path, out)
    with tarfile.open(out / "series.tar.gz", "w:gz") as tar:
        for path in [folder / "chain.json", *sorted(folder.glob("*/metrics.jsonl"))]:
            if path.exists():
                tar.add(path, path.relative_to(folder))


if __name__ == "__main__":
    sys.exit(main())
