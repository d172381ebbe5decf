"""The command ``train``: find a recipe by its name, apply settings, and run the one trainer."""

from __future__ import annotations

import difflib
import inspect
import os
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import click

from unmask.cli import completion
from unmask.cli.chains import train_chain, train_series
from unmask.cli.kept_settings import KeptSettings, with_kept_settings
from unmask.cli.options import json_option, setting_option, threads_option, use_threads
from unmask.cli.output import news, print_json, table
from unmask.cli.recipe_files import RecipeHelp, is_recipe, recipes
from unmask.cli.tuning import tuning_options

if TYPE_CHECKING:
    from unmask.recipe import Recipe
    from unmask.training.chain import Chain
    from unmask.training.series import Series

_LENGTH = {"training.steps": "steps"}  # goes to functions with this argument, on which their other settings depend
_STOPPED = 130  # exit code of a process that the user stopped


def find(name: str, settings: Sequence[str] = (), folder: Path | None = None) -> Recipe:
    """The recipe called ``name``, as ``look_up``. ValueError for a chain too: it has no settings of its own."""
    made, rest = look_up(name, settings, folder)
    from unmask.recipe import Recipe, override

    if not isinstance(made, Recipe):
        raise ValueError(f"{name} is a chain of recipes, not one; run it with `unmask train {name} --hours H`")
    return override(made, rest)


def look_up(name: str, settings: Sequence[str], folder: Path | None) -> tuple[Recipe | Chain | Series, list[str]]:
    """The recipe, chain or series called ``name``. A setting that names an argument of its function is passed there; the others, which
    override fields, are returned. ``folder``: of the run, for functions that have this argument.

    ValueError for an unknown name (with the known ones) or a setting that does not fit.
    """
    if not is_recipe(name):
        known = recipes()
        near = [k for k in known if k.startswith(f"{name}.")][:1] or difflib.get_close_matches(name, known, 1, 0.7)
        hint = f"did you mean {near[0]!r}?" if near else "unmask train lists them"
        raise ValueError(f"there is no recipe {name!r}; {hint}")
    module, _, function = name.partition(".")
    make = getattr(import_module(f"unmask.recipes.{module}"), function or module)
    own, rest = {}, []
    if folder is not None and "folder" in inspect.signature(make).parameters:
        own["folder"] = str(folder)
    for key, separator, text in (s.partition("=") for s in settings):
        argument = inspect.signature(make).parameters.get(_LENGTH.get(key.strip(), key.strip()))
        if argument is None:
            rest.append(f"{key}{separator}{text}")
        else:
            kind = type(argument.default)
            own[argument.name] = _number(key, text, kind) if kind in (int, float) else text.strip()
    return make(**own), rest


def _number(key: str, text: str, kind: type[int] | type[float]) -> float:
    try:
        return kind(text)
    except ValueError:
        wanted, such = ("a whole number", "1") if kind is int else ("a number", "0.5")
        raise ValueError(f"setting {key}={text!r} must be {wanted}; for example {key}={such}") from None


def _list(context: click.Context, option: click.Parameter, wanted: bool) -> None:
    if wanted:
        _show_recipes()
        context.exit()


def _show_recipes() -> None:
    click.echo(table(("recipe", "what it trains"), list(recipes().items())))


_HELP = """Train with a recipe, or resume a run.

RECIPE is file.function of unmask/recipes, or finetune; without one, the recipes are listed. The folder of the run receives
metrics.jsonl, its settings, the state from which --resume continues bit for bit, and at the end the model, if the recipe writes
one. Prints the folder. `unmask train RECIPE --help` describes a recipe and its arguments.

Ctrl-C and SIGTERM finish the current step and save the state; a second Ctrl-C stops at once. The result does not depend on
the number of processes, and a run continues on another number of them.

\b
Examples:
  unmask train
  unmask train gill.bridge --help
  unmask train mini.stage2 --out runs/stage2
  unmask train mini.stage2 --out runs/stage2 --resume
  unmask train mini.stage2 --device cuda --seed 1
  unmask train mini.stage2 --processes 2 -o training.accumulate=4
  torchrun --nproc-per-node 4 -m unmask.cli.main train mini.stage2 -o training.accumulate=4
  unmask train mini.stage2 -o training.steps=100 -o optim.lr=3e-4 -o start=runs/other
  unmask train finetune --model mini --data pets/ --out runs/pets --lora 16
  unmask train small.all --out runs/small --device cuda --minutes 13
  unmask train mini.all --out runs/mini --hours 24 --processes 2
  unmask train lavida_o.stage3 --model mini --data pets/ --steps 20 -o training.accumulate=1
"""


@click.command(cls=RecipeHelp, help=_HELP)
@click.argument("recipe", required=False, shell_complete=completion.recipes)
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), help="Folder of the run.  [default: runs/RECIPE]"
)
@click.option("--resume", is_flag=True, help="Continue the run in the folder; start one where there is none.")
@click.option("--seed", type=int, help="Seed of the recipe: of its first weights, its data and its noise.")
@setting_option("Set a field of the recipe or an argument of its function; repeatable.")
@click.option("--list", is_flag=True, is_eager=True, expose_value=False, callback=_list, help="List the recipes.")
@click.option(
    "--device",
    shell_complete=completion.devices,
    help="auto (CUDA, else MPS, else CPU), cpu, cuda, cuda:1, mps.  [default: the recipe's, auto]",
)
@click.option(
    "--processes",
    type=click.IntRange(1, 64),
    default=1,
    show_default=True,
    help="Processes to start by torchrun. They share the training.accumulate batches of each update.",
)
@click.option(
    "--log", type=click.Choice(["tensorboard"]), help="Write the metrics as TensorBoard events too, to OUT/tensorboard."
)
@click.option("--allow-changes", is_flag=True, help="Continue a run although settings of its recipe have changed.")
@click.option(
    "--minutes", type=click.FloatRange(0, min_open=True), help="small.all: train for so long, all stages together."
)
@click.option(
    "--hours",
    type=click.FloatRange(0, min_open=True),
    help="small.all: the same in hours; mini.all: of training, over all sessions.",
)
@tuning_options
@json_option
@threads_option
def train(
    recipe: str | None,
    out: Path | None,
    resume: bool,
    seed: int | None,
    settings: tuple[str, ...],
    device: str | None,
    processes: int,
    log: str | None,
    allow_changes: bool,
    minutes: float | None,
    hours: float | None,
    as_json: bool,
    threads: int | None,
) -> None:
    """Check the folder, build the recipe, train, and print where the result is."""
    if recipe is None:
        _show_recipes()
        return
    folder = out or Path("runs") / recipe
    from unmask.training.states import holds_run

    if not resume and os.environ.get("RANK", "0") == "0" and holds_run(folder):
        raise ValueError(f"{folder} already holds a run; add --resume to continue it, or choose another --out")
    chosen = [*([f"seed={seed}"] if seed is not None else []), *settings]
    chosen += [f"training.device={device}"] if device is not None else []
    if resume:
        chosen = with_kept_settings(folder, chosen)
    words = [recipe, "--out", str(folder), "--resume", *(w for s in chosen for w in ("-o", s))]
    words += ["--allow-changes"] if allow_changes else []
    words += ["--log", log] if log else []
    if is_recipe(recipe, kinds=("Chain", "Series")):
        made, rest = look_up(recipe, chosen, folder)
        from unmask.recipe import Recipe
        from unmask.training.series import Series

        assert not isinstance(made, Recipe)
        time = {name: value for name, value in (("minutes", minutes), ("hours", hours)) if value}
        words += [word for name, value in time.items() for word in (f"--{name}", f"{value:g}")]
        own = {"seconds": 60 * (minutes or 0) + 3600 * (hours or 0), "threads": threads, "log": log}
        shows = True
        if isinstance(made, Series):
            with _continuing(folder, [*words, *_number_of("processes", processes), *_number_of("threads", threads)]):
                if processes > 1:
                    _train_in(processes, processes, [*words, *_number_of("threads", threads)])
                else:
                    shows = train_series(made, folder, settings=rest, **own)
        else:
            train_chain(made, folder, settings=rest, words=words, processes=processes, **own)
        if shows:
            _show_result({"recipe": made.name, "folder": str(folder)}, as_json)
        return
    if minutes or hours:
        raise ValueError(f"{recipe} is trained for steps, not for a time; use -o training.steps=N")
    try:
        run = find(recipe, chosen, folder)
        if resume and "RANK" not in os.environ:  # processes of a run get --resume always
            _say_if_anew(folder)
        if processes > 1:
            more = ["--threads", str(threads)] if threads is not None else []
            _train_in(processes, run.training.accumulate, [*words, *more])
        elif not _train_here(run, folder, chosen, threads, allow_changes, log):
            return
    except KeyboardInterrupt:
        if _silent():
            raise click.exceptions.Exit(_STOPPED) from None
        more = ["--processes", str(processes)] if processes > 1 else []
        more += ["--threads", str(threads)] if threads is not None else []
        news(_how_to_continue(folder, [*words, *more, *(["--json"] if as_json else [])]))
        raise
    _show_result({"recipe": run.name, "folder": str(folder), "steps": run.training.steps}, as_json)


def _number_of(name: str, value: int | None) -> list[str]:
    """The words of an option, none for its default."""
    return [f"--{name}", str(value)] if value not in (None, 1) or (name == "threads" and value is not None) else []


@contextmanager
def _continuing(folder: Path, words: Sequence[str]) -> Iterator[None]:
    """Tell the user who stopped a series how to continue it."""
    try:
        yield
    except KeyboardInterrupt:
        if _silent():
            raise click.exceptions.Exit(_STOPPED) from None
        news(f"what {folder} holds is saved; continue with: unmask train {shlex.join(words)}")
        raise


def _show_result(about: dict[str, object], as_json: bool) -> None:
    if as_json:
        print_json(about)
    else:
        click.echo(about["folder"])


def _silent() -> bool:
    """Whether another process tells the user how the run ended: the one that started this one, or the first under torchrun."""
    if "RANK" not in os.environ:
        return False
    from unmask.training.parallel import launched

    return launched() or os.environ["RANK"] != "0"


def _say_if_anew(folder: Path) -> None:
    """Tell a user who wrote --resume that there is nothing to continue."""
    from unmask.training.states import saved_step

    if saved_step(folder) is None:
        news(f"no saved state in {folder}; the run begins anew at step 0")


def _how_to_continue(folder: Path, words: Sequence[str]) -> str:
    """What is saved of a stopped run, and the command that continues it; where nothing is saved, only that."""
    from unmask.training.states import saved_step

    if (step := saved_step(folder)) is None:
        return f"nothing was saved in {folder}"
    return f"saved at step {step}; continue with: unmask train {shlex.join(words)}"


def _train_here(
    run: Recipe, folder: Path, chosen: Sequence[str], threads: int | None, allow_changes: bool, log: str | None
) -> bool:
    """Train in this process. Returns whether it is alone and so prints the result."""
    use_threads(threads)
    from unmask.training.parallel import join
    from unmask.training.stopping import leaving, prints_result
    from unmask.training.tensorboard import TensorBoard
    from unmask.training.train import train as train_by

    logs = [partial(KeptSettings, chosen), *([TensorBoard] if log else [])]
    place = join(run.training.device)  # alone, unless ``_train_in`` or torchrun started this process
    with leaving(place):
        train_by(run, folder, place=place, allow_changes=allow_changes, logs=logs)
    return prints_result(place)


def _train_in(processes: int, accumulate: int, words: list[str]) -> None:
    """Start the processes and wait. They get --resume, because the first may write to the folder before another checks it."""
    from unmask.training.parallel import launch, refuse_idle

    refuse_idle(accumulate, processes)
    code = launch(processes, ["-m", "unmask.cli.main", "train", *words])
    if code == _STOPPED:
        raise KeyboardInterrupt
    if code:
        raise click.exceptions.Exit(code)
