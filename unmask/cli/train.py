"""The command train: a recipe's name becomes a recipe, and the one trainer runs it."""

from __future__ import annotations

import ast
import difflib
import inspect
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from unmask.cli.options import json_option, setting_option, threads_option, use_threads
from unmask.cli.output import news, print_json, table

_RECIPES = Path(__file__).parents[1] / "recipes"
_LEFT_BY_RUNS = ("state.safetensors", "metrics.jsonl")


def recipes(folder: Path = _RECIPES) -> dict[str, str]:
    """``file.function`` -> first line of its docstring, of all that return a ``Recipe``; nothing is imported."""
    found = {}
    for path in sorted(folder.glob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and isinstance(node.returns, ast.Name) and node.returns.id == "Recipe":
                found[f"{path.stem}.{node.name}"] = (ast.get_docstring(node) or "").partition("\n")[0]
    return found


def find(name: str, settings: Sequence[str] = ()) -> Any:
    """The recipe of this name, with settings: those that name an argument of its function go there, the others into it.

    ValueError lists the names that exist.
    """
    known = recipes()
    if name not in known:
        near = difflib.get_close_matches(name, known, 1, 0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known) or 'none'}"
        raise ValueError(f"there is no recipe {name!r}; {hint}")
    module, function = name.split(".")
    make = getattr(import_module(f"unmask.recipes.{module}"), function)
    own, rest = {}, []
    for key, separator, text in (s.partition("=") for s in settings):
        argument = inspect.signature(make).parameters.get(key.strip())
        if argument is None:
            rest.append(f"{key}{separator}{text}")
        else:
            kind = type(argument.default)
            own[key.strip()] = _number(key, text, kind) if kind in (int, float) else text.strip()
    from unmask.recipe import override

    return override(make(**own), rest)


def _number(key: str, text: str, kind: type[int] | type[float]) -> float:
    try:
        return kind(text)
    except ValueError:
        wanted, such = ("a whole number", "1") if kind is int else ("a number", "0.5")
        raise ValueError(f"setting {key}={text!r} must be {wanted}; for example {key}={such}") from None


def _list(context: click.Context, option: click.Parameter, wanted: bool) -> None:
    if wanted:
        click.echo(table(("recipe", "what it trains"), list(recipes().items())))
        context.exit()


@click.command()
@click.argument("recipe")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the run.  [default: runs/RECIPE]")
@click.option("--resume", is_flag=True, help="Go on with the run in the folder; without one, begin.")
@click.option("--seed", type=int, help="Seed of the recipe; what it begins with and what it sees follow from it.")
@setting_option("Change a field of the recipe, or an argument of its function; may be repeated.")
@click.option("--list", is_flag=True, is_eager=True, expose_value=False, callback=_list, help="List the recipes.")
@click.option("--processes", type=click.IntRange(1, 64), default=1, show_default=True, help="That share the work.")
@click.option("--device", help="cpu, cuda, cuda:1, mps, or auto for the best there is.  [default: the recipe's, cpu]")
@json_option
@threads_option
def train(
    recipe: str,
    out: Path | None,
    resume: bool,
    seed: int | None,
    settings: tuple[str, ...],
    processes: int,
    device: str | None,
    as_json: bool,
    threads: int | None,
) -> None:
    """Train by a recipe, or go on with a run.

    RECIPE is file.function of unmask/recipes. The folder of the run receives metrics.jsonl, the state from which
    --resume goes on bit for bit, sample sheets, and in the end the weights. Prints the folder.

    \b
    Examples:
      unmask train --list
      unmask train mini.stage2 --out runs/stage2
      unmask train mini.stage2 --out runs/stage2 --resume
      unmask train mini.stage2 -o training.steps=100 -o optim.lr=3e-4 -o start=runs/other
    """
    folder = out or Path("runs") / recipe
    if not resume and any((folder / name).exists() for name in _LEFT_BY_RUNS):
        raise ValueError(f"{folder} already holds a run; add --resume to go on with it, or choose another --out")
    asked = (
        *(() if seed is None else (f"seed={seed}",)),
        *settings,
        *(() if device is None else (f"training.device={device}",)),
    )
    run = find(recipe, asked)
    try:
        if processes > 1:
            _train_in(processes, [recipe, "--out", str(folder), *(w for s in asked for w in ("-o", s))])
        elif not _train_here(run, folder, threads):
            return
    except KeyboardInterrupt:
        news(f"go on with: unmask train {recipe} --out {folder} --resume")
        raise
    if as_json:
        print_json({"recipe": run.name, "folder": str(folder), "steps": run.training.steps})
    else:
        click.echo(folder)


def _train_here(run: Any, folder: Path, threads: int | None) -> bool:
    """Train in this process; whether it was alone, and so is the one to tell of it."""
    use_threads(threads)
    from unmask.training.parallel import join
    from unmask.training.train import train as train_by

    place = join(run.training.device)  # alone, unless ``_train_in`` or torchrun started this process
    train_by(run, folder, place=place)
    place.leave()
    return place.world == 1


def _train_in(processes: int, arguments: list[str]) -> None:
    from unmask.training.parallel import launch

    # --resume: the second process may look into the folder when the first has already begun to write.
    code = launch(processes, ["-m", "unmask.cli.main", "train", *arguments, "--resume"])
    if code:
        raise click.exceptions.Exit(code)
