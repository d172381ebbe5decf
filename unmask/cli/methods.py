"""The command methods: the published methods that this package has, and how to run each."""

from __future__ import annotations

import difflib
import textwrap

import click

from unmask.cli import completion
from unmask.cli.output import print_json, table
from unmask.pipeline.catalogue import MethodEntry, NamedSampler, samplers
from unmask.pipeline.catalogue import methods as found_methods

_MARKDOWN = """# Methods

One published method is one file in `unmask/methods/`. `unmask methods NAME` shows its equations, what it changes and what it costs.
`--sampler NAME` runs a sampler with any task (`-o ARGUMENT=VALUE` sets an argument); the HTTP API and `unmask batch` have the field
`sampler`. Status: *reference* runs and passes the contract tests, *tiny-checked* was measured on the shipped model, *reproduced* matches a
figure of the paper. Measurements are in [log.md](log.md).

This page is written by `unmask methods --markdown`.

"""


@click.command()
@click.argument("name", required=False, shell_complete=completion.methods)
@click.option("--markdown", is_flag=True, help="Print the page docs/methods.md.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def methods(name: str | None, markdown: bool, as_json: bool) -> None:
    """List the published methods and how to run them.

    With NAME: what one method does, its equations and what it costs.

    \b
    Examples:
      unmask methods
      unmask methods remdm
      unmask generate "two cats" --sampler remdm -o eta=0.2 --steps 32
    """
    known = found_methods()
    if name is not None and name not in known:
        near = difflib.get_close_matches(name, known, 1, 0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"the methods are {', '.join(known)}"
        raise ValueError(f"there is no method {name!r}; {hint}")
    chosen = [known[name]] if name else list(known.values())
    if as_json:
        print_json([_record(entry) for entry in chosen] if name is None else _record(chosen[0]))
    elif markdown:
        click.echo(page(), nl=False)
    elif name:
        click.echo(_shown(chosen[0]))
    else:
        rows = [
            [e.name, e.card["paper"], str(e.card["year"]), e.card["status"], e.card["changes"], _runs(e)[0]]
            for e in chosen
        ]
        click.echo(table(("method", "paper", "year", "status", "what it changes", "how to run it"), rows))


def page() -> str:
    """docs/methods.md."""
    return _MARKDOWN + "\n".join(_section(entry) for entry in found_methods().values()) + _others()


def _section(entry: MethodEntry) -> str:
    card = entry.card
    lines = [
        f"## {entry.name}",
        "",
        f"*{card['title']}*, {card['year']}, {card['paper']}. Status: {card['status']}.",
        "",
    ]
    lines += [f"- Changes: {card['changes']}.", f"- Claim of the paper: {card['claim']}"]
    lines += [f"- `{line}`{': ' + summary if summary else ''}" for line, summary in _described(entry)]
    return "\n".join(lines) + "\n"


def _others() -> str:
    """The named samplers of unmask/sampling/presets.py."""
    own = [s for s in samplers().values() if s.module.endswith(".presets")]
    return "".join(["\n## Other samplers\n\n", *(f"- `{_flag(s)}`: {s.summary}\n" for s in own)]) if own else ""


def _shown(entry: MethodEntry) -> str:
    card = entry.card
    head = f"{entry.name}: {card['title']}\n{card['paper']}, {card['year']} · status: {card['status']}\n"
    claim = textwrap.fill(f"claim: {card['claim']}", 100)
    return "\n".join([head, claim, "", *_runs(entry), "", entry.about])


def _runs(entry: MethodEntry) -> list[str]:
    return [line for line, _ in _described(entry)]


def _described(entry: MethodEntry) -> list[tuple[str, str]]:
    """(how to run it, what that does), for each sampler and the recipe of a method."""
    known = samplers()
    lines = [(_flag(known[name]), known[name].summary) for name in entry.card.get("sampler", ())]
    recipe = entry.card.get("recipe", "")
    return lines + ([(f"unmask train {recipe}", "")] if recipe else [])


def _flag(sampler: NamedSampler) -> str:
    return " ".join([f"--sampler {sampler.name}", *(f"-o {name}={value}" for name, value in sampler.arguments.items())])


def _record(entry: MethodEntry) -> dict[str, object]:
    return {"name": entry.name, **entry.card, "run": _runs(entry), "about": entry.about}
