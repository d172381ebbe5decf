"""Fine-tuning on 60 pictures of a thing that ``mini`` does not know: is it drawn afterwards, and what is forgotten?

    python bench/finetune.py --folder /tmp/boards

The thing is a skateboard, the only class of the level ``free`` outside ``mini``'s 24 that ``mini``'s image tokenizer reproduces (16 of 16
reconstructions are recognised by the independent judge; it is not trained here). Each picture has one skateboard in its own colours, on
``mini``'s lattice and backgrounds, with a caption and a box. Every figure is appended to bench/history.jsonl with its 95 % interval.
"""

from __future__ import annotations

import argparse
import json
import resource
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


def tuned(data: Path, folder: Path, steps: int) -> float:
    """Train. Returns CPU seconds."""
    before = resource.getrusage(resource.RUSAGE_SELF)
    recipe = finetune("mini", str(data), lora=16, folder=str(folder))
    train(override(recipe, [f"training.steps={steps}", f"evals.samples.every={steps}"]), folder)
    after = resource.getrusage(resource.RUSAGE_SELF)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def drawn(model: Model, plan: bool | None) -> tuple[list[bool], list[Image.Image]]:
    """For each prompt whether the judge finds the thing, and the picture of one attempt."""
    made = [model.generate(p, seed=i, plan=plan, attempts=1)[0].image for i, p in enumerate(PROMPTS)]
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


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, help="for the pictures and the run")
    parser.add_argument("--run", type=Path, help="measure this finished run instead of training")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--prompts", type=int, default=240, help="of world-GenEval")
    parser.add_argument("--history", type=Path, default=ROOT / "bench" / "history.jsonl")
    parser.add_argument("--picture", type=Path, help="sheet of before and after")
    args = parser.parse_args()
    if not args.run and not args.folder:
        parser.error("give --folder or --run")
    run, lines = args.run or args.folder / "run", list[Line]()
    if not args.run:
        seconds = tuned(pictures(args.folder / "pictures"), run, args.steps)
        lines.append(Line(name="finetune.cpu_seconds", value=seconds, unit="s", more={"steps": args.steps}))
    models: dict[str, Model] = {"before": unmask.load("mini"), "after": unmask.load(run)}  # type: ignore[dict-item]
    ways: dict[str, Callable[[Model], list[bool]]] = {
        "geneval_plain": lambda model: geneval(model, args.prompts, False),
        "geneval_planned": lambda model: geneval(model, args.prompts, True),
        f"{NEW}_plain": lambda model: drawn(model, False)[0],
    }
    rows = []
    for when, model in models.items():
        right, made = drawn(model, None)
        lines.append(share(f"finetune.{when}.{NEW}", right))
        cells = [Cell(picture=image, lines=(words,)) for image, words in zip(made[:8], PROMPTS, strict=False)]
        rows.append(Row(title=f"{when}: {sum(right)} of {len(right)}", cells=tuple(cells), columns=8))
        lines += [share(f"finetune.{when}.{name}", way(model)) for name, way in ways.items()]
    if args.picture:
        sheet(rows).save(args.picture)
    append(args.history, lines)


if __name__ == "__main__":
    main()
