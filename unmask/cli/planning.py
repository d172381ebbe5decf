"""The memory of a training run, for the command inspect.

Public idea: ``show_plan("lavida_o.stage2", ...)`` prints it. No weights are loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from unmask.cli.output import print_json, table
from unmask.cli.recipe_files import is_recipe, recipes
from unmask.cli.train import find

if TYPE_CHECKING:
    from unmask.json_types import Json
    from unmask.recipe import Recipe
    from unmask.training.memory import Part, Plan, Usage, Way


def names_recipe(name: str) -> bool:
    """Whether a name is that of a recipe, or begins with a file of recipes, so that ``find`` names the nearest one."""
    first, dot, _ = name.partition(".")
    return is_recipe(name) or (bool(dot) and any(k.partition(".")[0] == first for k in recipes()))


def show_plan(name: str, settings: Sequence[str], world: int, budget: str | None, as_json: bool) -> None:
    """Print the parameters and the memory of one process, for every way to compute a step. ValueError for a recipe without an outline."""
    from unmask.checkpoints.budget import parse_bytes
    from unmask.training.memory import parts_of

    limit = parse_bytes(budget) if budget else None
    recipe = find(name, settings)
    plan, ways = _plan(recipe, world), _ways(world)
    parts = parts_of(plan.net)
    used = [(way, plan.usage(way), plan.most_rows(way, limit) if limit else None) for way in ways]
    if as_json:
        print_json(_record(recipe, plan, parts, world, limit, used))
        return
    size = "bfloat16" if recipe.training.bf16 else "float32"
    many = recipe.training.accumulate
    batches = f"an update has {many} source batch{'es' if many > 1 else ''} of up to {plan.rows} rows"
    shared = f", {-(-many // world)} for each of {world} processes" if world > 1 else ""
    click.echo(f"{recipe.name}: {batches}{shared}; {size}\n")
    click.echo(_parts_table(parts))
    click.echo(f"\nlongest rows: {_longest(plan)}\n")
    click.echo(_ways_table(recipe, used, limit))
    _say_what_fits(used, limit)


def _plan(recipe: Recipe, world: int) -> Plan:
    from unmask.models.elastic import Elastic
    from unmask.training.activations import loads_of
    from unmask.training.memory import Plan
    from unmask.training.optim import freeze_others

    if recipe.outline is None or recipe.examples is None:
        raise ValueError(f"the memory of {recipe.name} cannot be planned; `unmask inspect` plans {', '.join(_PLANNED)}")
    net = recipe.outline()
    assert isinstance(net, Elastic)
    if recipe.adapt:
        recipe.adapt(net)
    freeze_others(net, recipe.trainable)
    steps = tuple(loads for example in recipe.examples() if (loads := loads_of(example)))
    several = recipe.training.accumulate > world
    moments = 2 if recipe.optim.bits == 8 else 8
    return Plan(net=net, steps=steps, size=2 if recipe.training.bf16 else 4, several=several, moments=moments)


_SHOWN = 3  # batches of a step that are described
_PLANNED = ("lavida_o.stage1", "… stage3", "mini.stage1", "… stage3", "finetune")


def _ways(world: int) -> list[Way]:
    from unmask.training.memory import Way

    kinds = (False, True) if world > 1 else (False,)
    return [Way(world=world, sharded=sharded, recompute=again) for sharded in kinds for again in (False, True)]


def _longest(plan: Plan) -> str:
    """The largest loads of the source batch with the most positions, in words."""
    most = max(plan.steps, key=lambda loads: sum(load.rows * (load.und + load.gen) for load in loads))
    loads = sorted(most, key=lambda load: -load.rows * (load.und + load.gen))
    shown = [
        f"{load.rows} x {load.und:,} text and feature + {load.gen:,} code positions ({load.codes:,} codes)"
        for load in loads[:_SHOWN]
    ]
    return "; ".join(shown) + (f"; {len(loads) - _SHOWN} smaller batches" if len(loads) > _SHOWN else "")


def _parts_table(parts: Sequence[Part]) -> str:
    rows = [[p.name, p.trained + p.frozen, p.trained, p.frozen] for p in parts]
    whole = [sum(p.trained for p in parts), sum(p.frozen for p in parts)]
    return table(["part", "parameters", "trained", "frozen"], [*rows, ["total", sum(whole), *whole]])


def _ways_table(recipe: Recipe, used: Sequence[tuple[Way, Usage, int | None]], limit: int | None) -> str:
    head = [
        "a process of",
        "weights",
        "optimiser",
        "summed gradients",
        "activations",
        "backward pass",
        "update",
        "peak",
    ]
    head += [f"fits {_gib(limit)}", "most rows"] if limit else []
    rows: list[list[object]] = []
    for way, usage, most in used:
        cells = [usage.weights, usage.optimiser, usage.summed, usage.activations, usage.backward, usage.exchange]
        cells.append(usage.total)
        name = f"{way.name} *" if _is_own(recipe, way) else way.name
        fits = ["yes" if limit is not None and usage.total <= limit else "no", most] if limit else []
        rows.append([name, *map(_gib, cells), *fits])
    return table(head, rows) + "\n* as the recipe is set"


def _is_own(recipe: Recipe, way: Way) -> bool:
    """Whether the recipe computes its steps this way by default."""
    return way.recompute == recipe.training.recompute and way.sharded == (recipe.training.shard and way.world > 1)


def _say_what_fits(used: Sequence[tuple[Way, Usage, int | None]], limit: int | None) -> None:
    if limit is None:
        return
    fitting = [(way, most) for way, _, most in used if most]
    if not fitting:
        click.echo(f"nothing fits into {_gib(limit)}, not even one row; use more processes or a smaller model")
        return
    way, most = max(fitting, key=lambda entry: entry[1] or 0)
    wanted = [f"-o training.recompute={str(way.recompute).lower()}", f"-o training.shard={str(way.sharded).lower()}"]
    click.echo(f"largest source batch: {most:,} rows, with {way.name} ({' '.join(wanted)})")


def _record(
    recipe: Recipe,
    plan: Plan,
    parts: Sequence[Part],
    world: int,
    limit: int | None,
    used: Sequence[tuple[Way, Usage, int | None]],
) -> Json:
    ways = [
        {
            "way": way.name,
            "sharded": way.sharded,
            "recompute": way.recompute,
            "recipe": _is_own(recipe, way),
            **vars(usage),
            "peak": usage.total,
            **({"fits": usage.total <= limit, "most_rows": most} if limit else {}),
        }
        for way, usage, most in used
    ]
    return {
        "recipe": recipe.name,
        "world": world,
        "accumulate": recipe.training.accumulate,
        "rows": plan.rows,
        "number_bytes": plan.size,
        "budget": limit,
        "parameters": sum(p.trained + p.frozen for p in parts),
        "trained": sum(p.trained for p in parts),
        "parts": [vars(p) for p in parts],
        "batches": [[vars(load) for load in loads] for loads in plan.steps],
        "ways": ways,
    }


def _gib(nbytes: int) -> str:
    return f"{nbytes / 2**30:.2f} GiB" if nbytes >= 2**27 else f"{nbytes / 2**20:.2f} MiB"
