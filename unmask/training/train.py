"""The one trainer. Public idea: ``train(recipe, folder)``; run it again on the same folder and it continues, bit for bit.

Nothing about data or randomness is saved, because both are functions of (seed, step).
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from unmask.recipe import Eval, Recipe
from unmask.training.device import choose, move
from unmask.training.losses import Learner
from unmask.training.meters import Meters, Silent, matmul_peak
from unmask.training.optim import Masters, move_module
from unmask.training.parallel import Place
from unmask.training.probe import flops, unchanged
from unmask.training.stopping import Stopped, stop_after_step

STATE = "state.safetensors"
_LEFTOVER = re.compile(r"\.tmp[A-Za-z0-9]{6}|.+\.(safetensors|jsonl?)\.part")


def train(recipe: Recipe, folder: Path, *, stop_after: int | None = None, place: Place = Place()) -> nn.Module:
    """Run a recipe in ``folder`` until its last step (or ``stop_after`` steps from now); returns the module with averaged
    weights, in float32 on the CPU.

    Writes metrics.jsonl, state.safetensors (atomically, every ``save_every`` steps and at the end) and, at the end, what
    the recipe exports. ``place``: this process among several that train together.

    ValueError where the folder holds a run that does not fit the recipe. Stopped (a KeyboardInterrupt) after Ctrl-C or SIGTERM, when
    the current step is finished and saved.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if place.rank == 0:
        remove_leftovers(folder)
    settings = recipe.training
    device = choose(settings.device, local_rank=place.local_rank, world=place.world)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dtype = torch.bfloat16 if settings.bf16 else torch.float32
    module = recipe.model()
    if recipe.adapt:
        recipe.adapt(module)
    masters = Masters(module, recipe.optim, recipe.trainable, dtype=dtype, device=device)
    start, updates = resume(recipe, masters, folder)
    masters.sync()
    last = settings.steps if stop_after is None else min(settings.steps, start + stop_after)
    meters = Meters(folder, settings.steps, start) if place.rank == 0 else Silent()
    try:
        if start < last:
            _run(Learner(recipe, module, masters, place, device, updates), start, last, dtype, meters, folder)
    finally:
        meters.close()
    return finish(recipe, module, masters, folder if place.rank == 0 else None)


def _run(learner: Learner, start: int, last: int, dtype: torch.dtype, meters: Meters | Silent, folder: Path) -> None:
    """Steps ``start..last``, ``accumulate`` at a time: learn, report, evaluate, save."""
    recipe, settings, place = learner.recipe, learner.recipe.training, learner.place
    peak, work, seconds = matmul_peak(dtype, learner.device), _flops_per_step(learner, start), 0.0
    with stop_after_step(quiet=place.rank > 0) as signalled:
        for first in range(start, last, settings.accumulate):
            end = min(first + settings.accumulate, last)
            began = time.perf_counter()
            for update in learner.learn(first, end):
                meters.add(update)
            seconds += 0.05 * ((time.perf_counter() - began) / (end - first) - seconds)
            stopping = place.any(signalled())
            done = stopping or end == last
            if done or _due(settings.log_every, first, end):
                meters.report(end, updates=learner.updates, peak=round(work / max(seconds, 1e-6) / peak, 3))
            else:
                meters.progress(end)
            if place.rank == 0:
                evals = [e for e in recipe.evals if end == settings.steps or _due(e.every, first, end)]
                evaluate(evals, learner.module, learner.masters, learner.device, end, meters)
                if done or _due(settings.save_every, first, end):
                    save(recipe, learner.masters, folder, end, learner.updates)
            if stopping and end < last:
                raise Stopped(f"stopped after step {end}, which is saved in {folder}")


def _due(every: int, before: int, after: int) -> bool:
    """Whether a multiple of ``every`` lies in ``before + 1..after``."""
    return after // every > before // every


def _flops_per_step(learner: Learner, step: int) -> int:
    number = learner.place.batch_number(step)
    batch = move(learner.recipe.source(number), learner.device)
    return flops(learner.recipe, learner.module, batch, number, learner.device)


def evaluate(
    evals: Sequence[Eval], module: nn.Module, masters: Masters, device: torch.device, step: int, meters: Meters | Silent
) -> None:
    """Record the evaluations of a step. They see the averaged weights, and training goes on as if they had not been."""
    if not evals:
        return
    with torch.no_grad(), unchanged(module, device):
        masters.show_average()
        try:
            for each in evals:
                module.eval()
                meters.record(step, {f"{each.name}.{k}": float(v) for k, v in each.run(module, step).items()})
        finally:
            masters.sync()


def finish(recipe: Recipe, module: nn.Module, masters: Masters, folder: Path | None) -> nn.Module:
    """Averaged weights in float32 on the CPU, as ``recipe.model`` made them; exported if the recipe exports."""
    move_module(module, "cpu", torch.float32)
    with torch.no_grad():
        averaged = masters.averaged()
        for name, p in module.named_parameters():
            p.copy_(averaged[name])
    module.eval()
    if recipe.export and folder:
        recipe.export(module, folder)
    return module


def save(recipe: Recipe, masters: Masters, folder: Path, step: int, updates: int) -> None:
    """Write the state to a second file, then rename it: a crash or a full disk leaves the previous checkpoint intact."""
    part = folder / (STATE + ".part")
    meta = {"recipe": recipe.name, "step": str(step), "updates": str(updates), "seed": str(recipe.training.seed)}
    try:
        save_file({n: t.cpu() for n, t in masters.state().items()}, str(part), metadata={"unmask": json.dumps(meta)})
        os.replace(part, folder / STATE)
    except BaseException as error:  # a second Ctrl-C too
        part.unlink(missing_ok=True)
        if not isinstance(error, OSError | SafetensorError):
            raise
        raise OSError(f"could not save the checkpoint in {folder}: {error}; the previous one is intact") from error


def remove_leftovers(folder: Path) -> None:
    """Delete what a killed run left half written in its own folder: files ``.tmp…`` of the safetensors library and ``….part`` of ours."""
    for path in folder.iterdir():
        if _LEFTOVER.fullmatch(path.name) and path.is_file() and not path.is_symlink():
            path.unlink(missing_ok=True)


def saved_step(folder: Path) -> int | None:
    """The step at which a folder's run continues; None where it holds no readable state."""
    try:
        with safe_open(str(folder / STATE), "pt") as f:
            return int(json.loads((f.metadata() or {})["unmask"])["step"])
    except (OSError, SafetensorError, KeyError, ValueError):
        return None


def resume(recipe: Recipe, masters: Masters, folder: Path) -> tuple[int, int]:
    """Load the folder's state if there is one; returns the step to continue from and the updates made so far."""
    path = folder / STATE
    if not path.exists():
        return 0, 0
    try:
        with safe_open(str(path), "pt") as f:
            meta = json.loads((f.metadata() or {}).get("unmask", "{}"))
            state = {name: f.get_tensor(name) for name in f.keys()}
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged: {error}; delete it to start again") from error
    if meta.get("recipe") != recipe.name or meta.get("seed") != str(recipe.training.seed):
        raise ValueError(
            f"{folder} holds a run of {meta.get('recipe')!r} (seed {meta.get('seed')}), not of {recipe.name!r}"
        )
    masters.load(state)
    return int(meta["step"]), int(meta.get("updates", meta["step"]))
