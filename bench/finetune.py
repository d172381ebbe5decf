"""Fine-tuning on 60 pictures of an object that ``mini`` does not know: is it drawn afterwards, and what is forgotten?

    python bench/finetune.py --folder /tmp/boards --record

The thing is a skateboard, the only class of the level ``free`` outside ``mini``'s 24 that ``mini``'s image tokenizer reproduces (16 of 16
reconstructions are recognised by the independent judge; it is not trained here). Each picture has one skateboard in its own colours, on
``mini``'s lattice and backgrounds, with a caption and a box. Every figure has its 95 % interval; ``change`` is the difference of the shares
of right world-GenEval prompts, after minus before, over the same prompts and seeds (paired). --record appends to bench/history.jsonl.
"""

from __future__ import annotations

import argparse
import inspect
import json
import resource
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image

import unmask
from unmask.cli.sheet import Cell, Row, sheet
from unmask.data.world import language
from unmask.data.world.render import render
from unmask.data.world.scenes import Scene, SceneObject
from unmask.evaluation.evaluate import EvalPlan
from unmask.evaluation.history import Line, append
from unmask.evaluation.judge import load_judge
from unmask.evaluation.scoring import interval
from unmask.evaluation.strategies import PromptGenerator
from unmask.evaluation.world_geneval import GenEval
from unmask.pipeline.model import Model
from unmask.recipe import override
from unmask.recipes.finetune import finetune
from unmask.tasks.reflecting import Thinking
from unmask.training.train import train

ROOT = Path(__file__).parents[1]
NEW, BACKGROUNDS = "skateboard", ("white", "grey", "sky", "sand")
PLACES = (
    *(f"a photo of a {NEW}", f"a {NEW}", f"a picture of a {NEW}", f"a big {NEW}"),
    *(f"a {NEW} at the {where}" for where in ("left", "right", "top left", "bottom right")),
    *(f"a {NEW} in the centre", f"a photo of a small {NEW}"),
)
PROMPTS = tuple(
    [f"{words} on a {BACKGROUNDS[i % 4]} background" for i, words in enumerate(PLACES)] + [*PLACES] * 3
)  # 40, drawn with seeds 0 to 39


def pictures(folder: Path, count: int = 60) -> Path:
    """Write the pictures and their manifest; no two are the same."""
    folder.mkdir(parents=True, exist_ok=True)
    rng, rows, known = Random(NEW), list[dict[str, object]](), set[Scene]()
    while len(known) < count:
        size = rng.choice((0.5, 0.5, 0.25))
        x, y = (rng.randint(0, round((1 - size) * 4)) / 4 for _ in "xy")
        placed = SceneObject(name=NEW, colour="", x=x, y=y, size=size)
        scene = Scene(objects=(placed,), background=rng.choice(BACKGROUNDS), level="free")
        if scene in known:
            continue
        name = f"{len(known):03d}.png"
        known.add(scene)
        while NEW not in (caption := language.caption(scene, rng)):
            pass
        Image.fromarray(render(scene, 128)).save(folder / name)
        rows.append({"id": f"caption {name}", "image": name, "text": caption})
        rows.append({"id": f"boxes {name}", "image": name, "boxes": [{"phrase": NEW, "box": placed.box}]})
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def tuned(data: Path, folder: Path, steps: int, settings: list[str]) -> Line:
    """Train, or go on with the run in the folder. CPU and elapsed seconds of this process, and ``settings`` of the recipe."""
    before, began = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    values = [setting for setting in settings if "." in setting.partition("=")[0]]
    given = dict(setting.split("=", 1) for setting in settings if setting not in values)
    known = inspect.signature(finetune).parameters
    arguments = {name: type(known[name].default)(value) for name, value in given.items()}
    recipe = finetune("mini", str(data), lora=16, folder=str(folder), **arguments)
    train(override(recipe, [f"training.steps={steps}", f"evals.samples.every={steps}", *values]), folder)
    after, elapsed = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter() - began
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f"{steps} steps: {seconds:.0f} CPU seconds, {elapsed:.0f} s elapsed", flush=True)
    more = {"steps": steps, "settings": " ".join(settings), "elapsed": round(elapsed)}
    return Line(name="finetune.cpu_seconds", value=round(seconds), unit="s", more=more)


def drawn(model: Model, plan: bool | None, count: int = len(PROMPTS)) -> tuple[list[bool], list[Image.Image]]:
    """For each prompt whether the judge finds the thing, and the picture of one attempt."""
    made = [model.generate(p, seed=i, plan=plan, attempts=1)[0].image for i, p in enumerate(PROMPTS[:count])]
    seen = load_judge().look(np.stack([np.asarray(image) for image in made]))
    return [any(found.name == NEW for found in one.objects) for one in seen], made


def geneval(model: Model, count: int, plan: bool) -> list[bool]:
    """Whether each of ``count`` prompts about what ``mini`` knows is drawn right."""
    suite = GenEval(distance=False, draw=PromptGenerator(thinking=Thinking(plan=plan)))
    items = suite.items(EvalPlan(n=count))
    batches = [items[i : i + 40] for i in range(0, len(items), 40)]
    return [bool(found.row["right"]) for batch in batches for found in suite.find(model, batch)]


def share(name: str, right: list[bool]) -> Line:
    low, high = interval(sum(right), len(right))
    print(f"{name}: {sum(right)} of {len(right)}", flush=True)
    return Line(
        name=name, value=sum(right) / len(right), unit="share", more={"low": low, "high": high, "n": len(right)}
    )


def change(name: str, before: list[bool], after: list[bool]) -> Line:
    """The paired difference of two shares, with its 95 % interval by the normal approximation."""
    n, gained, lost = len(before), sum(after) - sum(map(min, before, after)), sum(before) - sum(map(min, before, after))
    value = (gained - lost) / n
    half = 1.96 * ((gained + lost) / n - value**2) ** 0.5 / n**0.5
    print(f"{name}: {100 * value:+.1f} points [{100 * (value - half):+.1f}, {100 * (value + half):+.1f}]", flush=True)
    more = {"low": value - half, "high": value + half, "n": n, "gained": gained, "lost": lost}
    return Line(name=name, value=value, unit="share", more=more)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, help="for the pictures and the run")
    parser.add_argument("--run", type=Path, help="measure this finished run instead of training")
    parser.add_argument("--steps", type=int, default=340)
    parser.add_argument("--prompts", type=int, default=240, help="of world-GenEval")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="argument or field of the recipe"
    )
    parser.add_argument("--record", action="store_true", help="append to bench/history.jsonl")
    parser.add_argument("--before", type=Path, help="file with the results of mini, which is written if it is absent")
    parser.add_argument("--picture", type=Path, help="sheet of before and after")
    args = parser.parse_args()
    if not args.run and not args.folder:
        parser.error("give --folder or --run")
    run, lines = args.run or args.folder / "run", list[Line]()
    if not args.run:
        lines.append(tuned(pictures(args.folder / "pictures"), run, args.steps, args.set))
    lines += measured(run, args.prompts, args.before)
    if args.picture:
        shown(run, args.picture)
    if args.record:
        append(ROOT / "bench" / "history.jsonl", lines)


def found_in(model: Model, prompts: int) -> dict[str, list[bool]]:
    """Every list of right and wrong pictures of one model, by figure."""
    ways: dict[str, Callable[[], list[bool]]] = {
        NEW: lambda: drawn(model, None)[0],
        "geneval_plain": lambda: geneval(model, prompts, False),
        "geneval_planned": lambda: geneval(model, prompts, True),
        f"{NEW}_plain": lambda: drawn(model, False)[0],
    }
    found = {}
    for name, way in ways.items():
        found[name] = way()
        print(f"{name}: {sum(found[name])} of {len(found[name])}", flush=True)
    return found


def measured(run: Path, prompts: int, kept: Path | None) -> list[Line]:
    """Every figure of ``mini`` and of the run, and the differences. ``kept``: file with those of ``mini``, written if it is absent."""
    if kept and kept.exists():
        before = json.loads(kept.read_text())
    else:
        before = found_in(unmask.load("mini"), prompts)  # type: ignore[arg-type]
        if kept:
            kept.write_text(json.dumps(before))
    after = found_in(unmask.load(run), prompts)  # type: ignore[arg-type]
    lines = [
        share(f"finetune.{when}.{name}", right)
        for when, found in (("before", before), ("after", after))
        for name, right in found.items()
    ]
    names = ("geneval_plain", "geneval_planned")
    return [*lines, *(change(f"finetune.change.{name}", before[name], after[name]) for name in names)]


def shown(run: Path, path: Path) -> None:
    """A sheet of the first prompts, before and after."""
    rows = []
    for when, model in (("before", unmask.load("mini")), ("after", unmask.load(run))):
        made = drawn(model, None, 8)[1]  # type: ignore[arg-type]
        cells = [Cell(picture=image, lines=(words,)) for image, words in zip(made, PROMPTS, strict=False)]
        rows.append(Row(title=when, cells=tuple(cells), columns=8))
    sheet(rows).save(path)


if __name__ == "__main__":
    main()
