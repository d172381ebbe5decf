"""The command world: show scenes with their captions, questions and edits."""

from __future__ import annotations

import textwrap
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import click

from unmask.cli.options import json_option, path_option
from unmask.cli.output import STDOUT, news, print_json, refuse_stdout, write_picture
from unmask.data.world.scenes import SPLITS
from unmask.data.world.vocabulary import LEVELS
from unmask.tokens.pictures import WRITABLE

if TYPE_CHECKING:
    from unmask.cli.sheet import Cell
    from unmask.json_types import Json

_SIDE = 128


@click.group()
def world() -> None:
    """Show the synthetic world that models are trained on.

    \b
    Examples:
      unmask world show
      unmask world show --level free --split test --seed 3
    """


@world.command()
@click.option(
    "--level", type=click.Choice(sorted(LEVELS)), default="grid", show_default=True, help="Difficulty: lattice or free."
)
@click.option("--split", type=click.Choice(SPLITS), default="train", show_default=True, help="Data split.")
@click.option("--seed", type=int, default=0, show_default=True, help="Random seed of the scenes.")
@click.option("--first", type=click.IntRange(min=0), default=0, show_default=True, help="Number of the first scene.")
@click.option("-n", "count", type=click.IntRange(1, 400), default=12, show_default=True, help="Number of scenes.")
@path_option("--out", tuple(WRITABLE), "Output file, which is replaced; - is stdout.", "world.png")
@json_option
def show(level: str, split: str, seed: int, first: int, count: int, out: Path, as_json: bool) -> None:
    """Save a sheet of scenes: picture with boxes, caption, question and answer, edit.

    Prints the path of the sheet, or with --json all texts and boxes of every scene.

    \b
    Examples:
      unmask world show
      unmask world show --level free --split test --seed 3 -n 24 --out free.png
      unmask world show --json | head -40
    """
    from unmask.cli.sheet import Row, sheet

    refuse_stdout(out, count=1, as_json=as_json)
    scenes = [_described(level, split, seed, index) for index in range(first, first + count)]
    cells = tuple(_cell(t) for t in scenes)
    title = f"{level} · {split} · seed {seed} · scenes {first} to {first + count - 1}"
    saved = write_picture(sheet([Row(cells=cells, columns=4, title=title)]), out)
    if as_json:
        news(f"sheet: {saved}")
        print_json([{k: v for k, v in t.items() if k != "scene"} for t in scenes])
    elif saved != STDOUT:
        click.echo(saved)


def _described(level: str, split: str, seed: int, index: int) -> Json:
    """Scene, texts and boxes of one cell; a function of the four arguments alone."""
    from unmask.data.world import edits, language
    from unmask.data.world.questions import questions
    from unmask.data.world.scenes import sample

    scene = sample(level, split, seed, index)
    rng = Random(f"show/{level}/{split}/{seed}/{index}")
    asked = questions(scene, rng)
    changed = edits.edit(scene, split, rng)
    return {
        "scene": scene,
        "index": index,
        "caption": language.caption(scene, rng),
        "layout": [{"phrase": phrase, "box": box} for phrase, box in language.layout(scene, rng)],
        "referring": [{"phrase": phrase, "box": scene.objects[i].box} for phrase, i in language.referring(scene, rng)],
        "questions": [{"kind": q.kind, "text": q.text, "answer": q.answer} for q in rng.sample(asked, len(asked))],
        "edit": changed.instruction if changed else None,
    }


def _cell(scene: Json) -> Cell:
    from PIL import Image

    from unmask.cli.sheet import Cell
    from unmask.data.world.render import render
    from unmask.tokens.pictures import draw_boxes

    picture = Image.fromarray(render(scene["scene"], _SIDE))
    boxes = [(one["phrase"], tuple(v * _SIDE for v in one["box"])) for one in scene["layout"]]
    lines = [f"{scene['index']} · {scene['caption']}"]
    if scene["questions"]:
        lines.append(f"{scene['questions'][0]['text']} {scene['questions'][0]['answer']}")
    if scene["edit"]:
        lines.append(f"edit: {scene['edit']}")
    return Cell(picture=draw_boxes(picture, boxes), lines=tuple(textwrap.shorten(line, 120) for line in lines))
