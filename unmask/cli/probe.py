"""The command probe: search for prompts on which a model fails."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from unmask.cli import completion
from unmask.cli.options import device_option, found_device, seed_option, threads_option, use_threads
from unmask.cli.output import news, print_json, table
from unmask.cli.progress import Bar, opening, silent

if TYPE_CHECKING:
    from unmask.analysis.search import Trial
    from unmask.json_types import Json
    from unmask.recipes.sage import Prober

_SEARCHES = ("thompson", "cross-entropy", "random")
_TRIALS, _FOUND, _PAGE = "trials.jsonl", "failures.json", "report.html"


@click.command()
@click.argument("model", default="mini", shell_complete=completion.models)
@click.option(
    "--calls", type=click.IntRange(min=1), default=200, show_default=True, metavar="N", help="Pictures to generate."
)
@click.option(
    "--search", type=click.Choice(_SEARCHES), default="thompson", show_default=True, help="What chooses the prompts."
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("runs/probe"),
    show_default=True,
    metavar="DIR",
    help="Folder of the results.",
)
@seed_option
@device_option
@threads_option
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def probe(
    model: str, calls: int, search: str, out: Path, seed: int, device: str, threads: int | None, as_json: bool
) -> None:
    """Search for prompts on which a model fails.

    Generates pictures of prompts of the synthetic world, and looks for those that two independent judges both call wrong. Later prompts
    follow earlier failures. Writes trials.jsonl, failures.json (prompts and seeds, to try a later model on) and report.html with pictures.
    A stopped search goes on with the same command; a larger --calls continues it.

    \b
    Examples:
      unmask probe mini
      unmask probe mini --calls 500 --out runs/weak
      unmask probe mini --calls 100 --search random --out runs/random --json
    """
    use_threads(threads)
    import unmask
    from unmask.analysis.search import search as searched
    from unmask.pipeline.model import Model
    from unmask.recipes.sage import STRATEGIES, Prober, distinct, kinds, regressions, space

    before = _before(out, {"model": model, "search": search, "seed": seed})
    opened = unmask.load(model, device=found_device(device), on_bytes=opening(model, lines=not as_json))
    if not isinstance(opened, Model):
        raise click.UsageError(f"{model} is a text model, which cannot generate pictures; probe a model that can")
    opened.presets.refuse("generate")
    prober, shown = (
        Prober(model=opened),
        silent if as_json else Bar(what="pictures", words=lambda done, of: f"{done} of {of}"),
    )
    done = len(before)

    def on_trial(trial: Trial) -> None:
        nonlocal done
        done += 1
        _keep(out, trial)
        shown(done, calls)

    trials = searched(
        space(), STRATEGIES[search], prober.fails, budget=calls, seed=seed, before=before[:calls], on_trial=on_trial
    )
    found: Json = {"model": model, "search": search, "seed": seed, "calls": len(trials)}
    found |= {"failed": sum(t.failed for t in trials), "different": len(distinct(trials)), **regressions(trials)}
    _write(out, found, prober, trials)
    if as_json:
        print_json(found)
        return
    click.echo(table(("form", "pictures", "failures"), kinds(trials)))
    click.echo(f"\n{found['failed']} of {len(trials)} pictures failed, of {found['different']} different prompts\n")
    news(f"page: {out / _PAGE}")


def _before(out: Path, settings: Json) -> list[Trial]:
    """The trials of a stopped search. ValueError for one with other settings."""
    from unmask.analysis.search import Trial
    from unmask.writing import append_line

    path = out / _TRIALS
    if not path.exists():
        out.mkdir(parents=True, exist_ok=True)
        append_line(path, json.dumps(settings))
        return []
    first, *rest = path.read_text(encoding="utf-8").splitlines()
    if (kept := json.loads(first)) != settings:
        changed = ", ".join(f"{k} {kept.get(k)!r} instead of {v!r}" for k, v in settings.items() if kept.get(k) != v)
        raise ValueError(f"{out} holds a search with {changed}; name another folder with --out")
    rows = [json.loads(line) for line in rest]
    return [Trial(point=tuple(row["point"]), seed=row["seed"], failed=row["failed"]) for row in rows]


def _keep(out: Path, trial: Trial) -> None:
    from unmask.recipes.sage import request
    from unmask.writing import append_line

    row = {"prompt": request(trial.point).text, "seed": trial.seed, "failed": trial.failed, "point": trial.point}
    append_line(out / _TRIALS, json.dumps(row))


def _write(out: Path, found: Json, prober: Prober, trials: list[Trial]) -> None:
    """failures.json and report.html."""
    from unmask.evaluation.demonstration import Findings, Table
    from unmask.evaluation.demonstration_page import page
    from unmask.evaluation.metrics import share
    from unmask.recipes.sage import kinds, pictures
    from unmask.writing import write_text

    findings = Findings(
        about=f"{len(trials)} prompts chosen by {found['search']} search, each generated once. A failure is a picture that two "
        "independent judges both call wrong.",
        verdict=f"{found['failed']} of {len(trials)} pictures failed, of {found['different']} different prompts.",
        seen=bool(found["failed"]),
        figures={"failed": share([t.failed for t in trials])},
        shown=(
            Table(title="By form", head=("form", "pictures", "failures"), rows=tuple(kinds(trials))),
            pictures(prober, trials, most=24),
        ),
    )
    about: Json = {
        "method": "sage",
        "title": f"Failures of {found['model']}",
        "paper": "arXiv 2306.00974",
        "share": 1.0,
    }
    write_text(out / _FOUND, json.dumps(found, indent=1) + "\n")
    write_text(out / _PAGE, page(findings, about | {"seeds": [found["seed"]]}))
