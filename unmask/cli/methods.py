"""The command methods: list the published methods of this package, show one, or run its demonstration."""

from __future__ import annotations

import difflib
import json
import textwrap
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import click

from unmask.cli import completion
from unmask.cli.field_map import field_map
from unmask.cli.output import news, print_json, table
from unmask.pipeline.catalogue import MethodEntry, NamedSampler, samplers
from unmask.pipeline.catalogue import methods as found_methods

if TYPE_CHECKING:
    from unmask.evaluation.demonstration import Demonstration

_OUT = Path("runs/methods")
_MARKDOWN = """# Methods

One published method is one file in `unmask/methods/`. `unmask methods show NAME` shows its equations, what it changes and what it costs;
`unmask methods run NAME` runs its demonstration, the method beside a baseline at equal compute, and writes a page with tables and plots.
`--sampler NAME` runs a sampler with any task (`-o ARGUMENT=VALUE` sets an argument); the HTTP API and `unmask batch` have the field
`sampler`. Status: *reference* matches the measured values of the official code or passes the contract tests, *tiny-checked*: the effect
was measured on a small model, outside the interval of the baseline, *not seen*: it was looked for and not found. Measurements are in
[log.md](log.md).

This page is written by `unmask methods --markdown`.

"""


_STATUSES = """reference: matches the measured values of the official code, or passes the contract tests; its effect is not claimed here.
tiny-checked: the effect was measured on a small model, outside the interval of the baseline, sometimes with more than three seeds."""


@click.group(invoke_without_command=True)
@click.option("--markdown", is_flag=True, help="Print the page docs/methods.md.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.pass_context
def methods(context: click.Context, markdown: bool, as_json: bool) -> None:
    """List the published methods, show one, or run its demonstration.

    \b
    Examples:
      unmask methods
      unmask methods show remdm
      unmask methods run remdm
      unmask generate "two cats" --sampler remdm -o eta=0.2 --steps 32
    """
    if context.invoked_subcommand is not None:
        return
    known = found_methods().values()
    if as_json:
        print_json([_record(entry) for entry in known])
    elif markdown:
        click.echo(page(), nl=False)
    else:
        rows = [
            [
                e.name,
                e.card["paper"],
                str(e.card["year"]),
                e.card["status"],
                f"{e.minutes:g}" if e.minutes else "",
                e.card["changes"],
            ]
            for e in known
        ]
        click.echo(table(("method", "paper", "year", "status", "minutes", "what it changes"), rows))
        news(
            f"\n{_STATUSES}\nunmask methods show NAME says more; unmask methods run NAME takes about so many minutes on two cores."
        )


@methods.command()
@click.argument("name", shell_complete=completion.methods)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def show(name: str, as_json: bool) -> None:
    """What a method does, its equations and what it costs.

    \b
    Examples:
      unmask methods show remdm
      unmask methods show eb_sampler --json
    """
    entry = _entry(name)
    if as_json:
        print_json(_record(entry))
    else:
        click.echo(_shown(entry))


@methods.command()
@click.argument("name", shell_complete=completion.methods)
@click.option(
    "--minutes",
    type=click.FloatRange(min=0, min_open=True),
    metavar="M",
    help="About how long, on two cores; sets the amount of work.  [default: the method's own]",
)
@click.option(
    "--seeds",
    type=click.IntRange(1, 20),
    default=3,
    show_default=True,
    metavar="N",
    help="Runs of everything that is trained.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help=f"Folder of the results.  [default: {_OUT}/NAME]",
)
@click.option(
    "--history",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Append a row per figure to this file.",
)
@click.option("--threads", type=click.IntRange(min=1), metavar="N", help="CPU threads.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def run(
    name: str,
    minutes: float | None,
    seeds: int,
    out: Path | None,
    history: Path | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Run a method's demonstration: the method beside a baseline at equal compute, on two cores, without a download.

    Writes report.html, with tables, plots and pictures, and figures.json. A run that was stopped continues with the same command.

    \b
    Examples:
      unmask methods run remdm
      unmask methods run remdm --minutes 1 --seeds 1 --out runs/short
    """
    from unmask.cli.options import use_threads
    from unmask.evaluation import demonstration as demos
    from unmask.evaluation.history import append
    from unmask.evaluation.progress import Lines

    entry = _entry(name)
    found = demonstration_of(entry)
    folder = out or _OUT / name
    use_threads(threads)
    with Lines() as lines:
        share = 1.0 if minutes is None else minutes / found.minutes
        work = demos.Work(out=folder, share=share, seeds=tuple(range(seeds)), on_progress=lines)
        news(f"{name}: {_long(found.minutes * share)} on two cores; a stopped run continues with the same command")
        about = {key: entry.card.get(key, "") for key in ("title", "paper", "claim", "paper_figure")}
        findings = demos.demonstrate(name, found, work, **about)
    if history is not None:
        append(history, demos.lines(name, findings, work))
    if as_json:
        print_json(json.loads((folder / demos.FIGURES).read_text(encoding="utf-8")))
        return
    from unmask.evaluation.demonstration_page import outcome, said

    click.echo(table(("figure", "value"), [[key, said(figure)] for key, figure in findings.figures.items()]))
    click.echo(f"\n{outcome(findings)}. {findings.verdict}\n")
    news(f"page: {folder / demos.PAGE}")


def _long(minutes: float) -> str:
    if minutes < 1:
        return f"about {max(1, round(60 * minutes))} seconds"
    return f"about {round(minutes)} minute{'s' * (round(minutes) != 1)}"


def _entry(name: str) -> MethodEntry:
    known = found_methods()
    if name not in known:
        near = difflib.get_close_matches(name.lower(), known, 1, 0.7)
        hint = f"did you mean {near[0]!r}?" if near else f"the methods are {', '.join(known)}"
        raise ValueError(f"there is no method {name!r}; {hint}")
    return known[name]


def demonstration_of(entry: MethodEntry) -> Demonstration:
    """``DEMO`` of the method's recipe file. ValueError for a method without one."""
    if not entry.minutes:
        having = [e.name for e in found_methods().values() if e.minutes]
        raise ValueError(
            f"the method {entry.name!r} has no demonstration; those that have one: {', '.join(having) or 'none'}"
        )
    return import_module(f"unmask.recipes.{entry.name}").DEMO


def page() -> str:
    """docs/methods.md."""
    known = found_methods()
    runs = {name: [f"unmask methods run {name}"] if entry.minutes else _runs(entry) for name, entry in known.items()}
    return _MARKDOWN + field_map(known, runs) + "\n".join(_section(entry) for entry in known.values()) + _others()


def _section(entry: MethodEntry) -> str:
    card = entry.card
    lines = [
        f"## {entry.name}",
        "",
        f"*{card['title']}*, {card['year']}, {card['paper']}. Status: {card['status']}.",
        "",
    ]
    lines += [f"- Changes: {card['changes']}.", f"- Claim of the paper: {card['claim']}"]
    lines += [f"- Figure of the paper: {card['paper_figure']}"] if card.get("paper_figure") else []
    lines += [f"- Measured here: {card['figure']}"] if card.get("figure") else []
    lines += [f"- Tried: {remedy}" for remedy in card.get("tried", ())]
    lines += [f"- `{line}`{': ' + summary if summary else ''}" for line, summary in _described(entry)]
    return "\n".join(map(_wrapped, lines)) + "\n"


def _others() -> str:
    """The named samplers of unmask/sampling/presets.py."""
    own = [s for s in samplers().values() if s.module.endswith(".presets")]
    lines = [_wrapped(f"- `{_flag(s)}`: {s.summary}") for s in own]
    return "\n".join(["\n## Other samplers\n", *lines]) + "\n" if own else ""


def _wrapped(line: str) -> str:
    return textwrap.fill(line, 150, subsequent_indent="  ", break_on_hyphens=False)


def _shown(entry: MethodEntry) -> str:
    card = entry.card
    head = f"{entry.name}: {card['title']}\n{card['paper']}, {card['year']} · status: {card['status']}\n"
    texts = [
        ("claim", card["claim"]),
        ("paper's figure", card.get("paper_figure", "")),
        ("measured here", card.get("figure", "")),
    ]
    texts += [("tried", remedy) for remedy in card.get("tried", ())]
    facts = "\n".join(textwrap.fill(f"{name}: {text}", 100) for name, text in texts if text)
    runs = [f"{line}    {summary}".rstrip() for line, summary in _described(entry)]
    return "\n".join([head, _STATUSES, "", facts, "", *runs, "", entry.about])


def _runs(entry: MethodEntry) -> list[str]:
    return [line for line, _ in _described(entry)]


def _described(entry: MethodEntry) -> list[tuple[str, str]]:
    """(how to run it, what that does), for each sampler, the recipe, command, import and demonstration of a method."""
    known, card = samplers(), entry.card
    lines = [(_flag(known[name]), known[name].summary) for name in card.get("sampler", ())]
    lines += [(f"unmask train {card['recipe']}", "")] if card.get("recipe") else []
    lines += [(card["command"], "")] if card.get("command") else []
    lines += [(card["python"], "")] if card.get("python") else []
    return lines + (
        [(f"unmask methods run {entry.name}", f"about {entry.minutes:g} minutes.")] if entry.minutes else []
    )


def _flag(sampler: NamedSampler) -> str:
    return " ".join([f"--sampler {sampler.name}", *(f"-o {name}={value}" for name, value in sampler.arguments.items())])


def _record(entry: MethodEntry) -> dict[str, object]:
    return {"name": entry.name, **entry.card, "minutes": entry.minutes, "run": _runs(entry), "about": entry.about}
