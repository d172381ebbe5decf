"""A help page with the most used options first. Public idea: ``@click.command(cls=OrderedHelp, first=("out", "seed"))``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click


class OrderedHelp(click.Command):
    """A command whose help lists its ``first`` options (by parameter name, in this order), then all others as "More options"."""

    def __init__(self, *given: Any, first: Sequence[str] = (), **named: Any) -> None:
        super().__init__(*given, **named)
        self.first = first

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        options = [p for p in self.get_params(ctx) if isinstance(p, click.Option)]
        records = {str(p.name): record for p in options if (record := p.get_help_record(ctx))}
        with formatter.section("Options"):
            formatter.write_dl([records.pop(name) for name in self.first])
        with formatter.section("More options"):
            formatter.write_dl(list(records.values()))
