"""What is measured of a finished ``mini`` and said in its card. Public ideas: ``evaluate(folder, place, items)`` and ``write_card``."""

from __future__ import annotations

import json
from pathlib import Path

import unmask
from unmask.evaluation import world_suite
from unmask.evaluation.report import figure_lines
from unmask.json_types import Json
from unmask.pipeline.model import Model
from unmask.training.parallel import Place
from unmask.training.series import Run, Series
from unmask.writing import write_text

EVALUATION, CARD = "evaluation", "README.md"


def evaluate(folder: Path, place: Place, items: int) -> None:
    """Every part of the suite ``world`` on ``items`` test items, in folders of their names; the processes take parts in turns. A part that
    was stopped continues.
    """
    model = unmask.load(folder)
    assert isinstance(model, Model)
    for name in list(world_suite.PARTS)[place.rank :: place.world]:
        out = folder / EVALUATION / name
        if not (out / "report.json").exists():
            world_suite.run(model, only=[name], n=items, out=out)


def write_card(folder: Path, series: Series, place: Place) -> None:
    """The model card, from what is in the folder."""
    if place.rank > 0:
        return
    text = card(folder, series)
    write_text(folder / CARD, text)


def card(folder: Path, series: Series) -> str:
    """The card of a finished series: its parts with steps and hours, and every figure of its evaluation."""
    config = json.loads((folder / "config.json").read_text("utf-8"))
    return _CARD.format(
        name=series.name, seed=series.seed, side=config["side"], runs=_runs(folder, series), results=_results(folder)
    )


def _runs(folder: Path, series: Series) -> str:
    """One row per run: share, steps, updates, hours of training. From its metrics, which are small enough to come along from a machine that
    is lent; its state is not.
    """
    rows = []
    for run in series.parts:
        path = folder / run.name / "metrics.jsonl"
        if isinstance(run, Run) and path.exists():
            reports = [row for line in path.read_text("utf-8").splitlines() if "updates" in (row := json.loads(line))]
            hours = sum(row["seconds"] for row in reports) / 3600
            rows.append(
                f"| {run.name} | {run.share:g} | {reports[-1]['step']} | {reports[-1]['updates']} | {hours:.2f} |"
            )
    return "\n".join(rows)


def _results(folder: Path) -> str:
    rows = []
    for name in world_suite.PARTS:
        path = folder / EVALUATION / name / "report.json"
        found: Json = json.loads(path.read_text("utf-8"))
        for part, figures in found.items():
            if part != "about":
                label = name if part == name else f"{name} ({part})"
                rows += [f"| {label}: {line[0]} | {' | '.join(line[1:])} |" for line in figure_lines(figures)]
    return "\n".join(rows)


_CARD = """# mini

A Lavida-O model (Elastic Mixture-of-Transformers, arXiv 2509.19244) for pictures of {side} px of a small synthetic world, made from
nothing by `unmask train {name}` (seed {seed}).

**Intended use.** To try, test and measure every part of the package without a GPU. It is not a general image model.

## Data

The synthetic world of `unmask/data/world`: emoji, natural or in plain colours, on plain backgrounds. Captions, questions, phrases and edits
are templates. Only the train split was used; the test split holds out one in twelve colour and class pairs, class pairs and relations of
pairs.

**The vision tower was trained with labels** of class, colour, part, size and number of every cell, and the projector to map them to the
embeddings of the corresponding words. The judge that scores pictures is a separate network, trained on renderings alone.

## Training

| run | share of the time | source batches | updates | hours of training |
|---|---|---|---|---|
{runs}

The pictures that the critic learned from were drawn after `stage3`. What is shipped is the running average of the weights (decay 0.999) at
the end of `stage3_drawn`, where the learning rate has fallen to 2 %.

## Results

Unseen test scenes, held-out combinations included, by `unmask evaluate --suite world`; 95 % intervals.

| figure | value | interval | n | beside |
|---|---|---|---|---|
{results}
"""
