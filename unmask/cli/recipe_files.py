"""Recipes as their files say, without importing them.

Public ideas: ``recipes()`` lists all, ``is_recipe(name)`` reads one file, and ``RecipeHelp`` is a command whose help describes the recipe
that is named beside --help.
"""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import click

_RECIPES = Path(__file__).parents[1] / "recipes"
_KINDS = ("Recipe", "Chain", "Series")  # what functions of recipes return


@dataclass(frozen=True, kw_only=True)
class RecipeFile:
    """``kind``: what its function returns · ``about``: the function's docstring · ``arguments``: with their defaults."""

    name: str
    kind: str
    about: str
    arguments: tuple[str, ...]

    @property
    def line(self) -> str:
        """The first paragraph on one line."""
        return textwrap.shorten(self.about.partition("\n\n")[0], 110, placeholder=" …")


def recipes() -> dict[str, str]:
    """``file.function`` (or ``name`` if both are that) -> first paragraph of its docstring on one line, for every public function that
    returns a ``Recipe``, or a ``Chain`` or ``Series`` of them.
    """
    known = [one for path in sorted(_RECIPES.glob("*.py")) for one in _recipes_of(path, path.stat().st_mtime_ns)]
    return {one.name: one.line for one in known}


def is_recipe(name: str, kinds: Sequence[str] = _KINDS) -> bool:
    """Whether there is a recipe of this name. Reads its file alone: all of them take half a second."""
    found = described(name)
    return found is not None and found.kind in kinds


def described(name: str) -> RecipeFile | None:
    """The recipe of a name; None where there is none."""
    path = _RECIPES / f"{name.partition('.')[0]}.py"
    found = _recipes_of(path, path.stat().st_mtime_ns) if path.stem.isidentifier() and path.exists() else ()
    return next((one for one in found if one.name == name), None)


@cache
def _recipes_of(path: Path, changed: int) -> tuple[RecipeFile, ...]:
    """The recipes of a file, which was last changed at ``changed``."""
    found, body = [], ast.parse(path.read_text(encoding="utf-8")).body
    constants = _constants(body)
    for node in body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_") and isinstance(node.returns, ast.Name):
            if node.returns.id not in _KINDS:
                continue
            name = node.name if node.name == path.stem else f"{path.stem}.{node.name}"
            given = [*node.args.args, *node.args.kwonlyargs]
            required = [None] * (len(node.args.args) - len(node.args.defaults))
            values = [
                None if value is None else ast.unparse(value)
                for value in (*required, *node.args.defaults, *node.args.kw_defaults)
            ]
            arguments = tuple(
                argument.arg if value is None else f"{argument.arg}={constants.get(value, value)}"
                for argument, value in zip(given, values, strict=True)
            )
            about = ast.get_docstring(node) or ""
            found.append(RecipeFile(name=name, kind=node.returns.id, about=about, arguments=arguments))
    return tuple(found)


def _constants(body: Sequence[ast.stmt]) -> dict[str, str]:
    """The values of the constants of a file, as text, by name."""
    found = dict[str, str]()
    for node in body:
        if not isinstance(node, ast.Assign) or len(node.targets) > 1:
            continue
        (target,), value = node.targets, node.value
        pairs = (
            zip(target.elts, value.elts, strict=False)
            if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple)
            else [(target, value)]
        )
        found |= {
            to.id: ast.unparse(of) for to, of in pairs if isinstance(to, ast.Name) and isinstance(of, ast.Constant)
        }
    return found


class RecipeHelp(click.Command):
    """A command whose first argument is a recipe, which its help describes."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[__name__] = next((found for one in args if (found := described(one))), None)
        return super().parse_args(ctx, args)

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        found = ctx.meta.get(__name__)
        if not isinstance(found, RecipeFile):
            return super().format_help(ctx, formatter)
        formatter.write(f"{found.name}: {found.about}\n\n")
        with formatter.section("Arguments, with their defaults (-o NAME=VALUE)"):
            formatter.write("".join(f"  {argument}\n" for argument in found.arguments) or "  none\n")
        formatter.write(
            "\nFields of the recipe can be set as well, such as -o training.steps=100 or -o optim.lr=1e-3.\n"
        )
        formatter.write("`unmask train --help` lists all options.\n")
