"""The one trainer. Public idea: ``train(recipe, folder)``; run it again on the same folder and it goes on where it was, bit for bit.

Nothing about data or randomness is saved, because both are functions of (seed, step).
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from unmask.recipe import Recipe
from unmask.rng import generator
from unmask.training.device import choose, move
from unmask.training.meters import Meters, Silent, matmul_peak
from unmask.training.optim import Masters, rate
from unmask.training.parallel import Place
from unmask.training.probe import flops

STATE = "state.safetensors"


def train(recipe: Recipe, folder: Path, *, stop_after: int | None = None, place: Place = Place()) -> nn.Module:
    """Run a recipe in ``folder`` until its last step (or ``stop_after`` steps from now); returns the module with averaged
    weights, in float32 on the CPU.

    Writes metrics.jsonl, state.safetensors (atomically, every ``save_every`` steps and at the end) and, at the end, what
    the recipe exports. ``place``: this process among several that train together. ValueError where the folder holds a run that
    does not fit the recipe.
    """
    folder.mkdir(parents=True, exist_ok=True)
    settings = recipe.training
    device = choose(settings.device, local_rank=place.local_rank, world=place.world)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dtype = torch.bfloat16 if settings.bf16 else torch.float32
    module = recipe.model()
    masters = Masters(module, recipe.optim, recipe.trainable, dtype=dtype, device=device)
    start = resume(recipe, masters, folder)
    masters.sync()
    last = settings.steps if stop_after is None else min(settings.steps, start + stop_after)
    meters = Meters(folder, settings.steps, start) if place.rank == 0 else Silent()
    peak = matmul_peak(dtype, device)
    first = place.batch_number(start)
    work = flops(recipe, module, move(recipe.source(first), device), first, device) if start < last else 0
    module_time = 0.0
    try:
        for step in range(start, last):
            began = time.perf_counter()
            batch = move(recipe.source(place.batch_number(step)), device)
            rng = generator("objective", settings.seed, place.batch_number(step))
            loss = recipe.objective(module, batch, rng)
            loss.total.backward()
            norm = masters.step(rate(recipe.optim, step, settings.steps), step, place.mean_)
            module_time += 0.05 * (time.perf_counter() - began - module_time)
            meters.add(
                {**{k: float(v.detach()) for k, v in loss.terms.items()}, "grad": norm}, sum(loss.counts.values())
            )
            if (step + 1) % settings.log_every == 0 or step + 1 == last:
                meters.report(step + 1, peak=round(work / max(module_time, 1e-6) / peak, 3))
            if place.rank == 0 and ((step + 1) % settings.save_every == 0 or step + 1 == last):
                save(recipe, masters, folder, step + 1)
            if place.rank == 0 and recipe.sample and settings.sample_every and (step + 1) % settings.sample_every == 0:
                recipe.sample(module, folder / f"sample_{step + 1:07d}.png")
    finally:
        meters.close()
    return finish(recipe, module, masters, folder if place.rank == 0 else None)


def finish(recipe: Recipe, module: nn.Module, masters: Masters, folder: Path | None) -> nn.Module:
    """Averaged weights in float32 on the CPU, as ``recipe.model`` made them; exported if the recipe exports."""
    module.to("cpu").float()
    with torch.no_grad():
        averaged = masters.averaged()
        for name, p in module.named_parameters():
            p.copy_(averaged[name])
    module.eval()
    if recipe.export and folder:
        recipe.export(module, folder)
    return module


def save(recipe: Recipe, masters: Masters, folder: Path, step: int) -> None:
    """Write the state beside the old one, then put it in its place: a crash or a full disk never costs a checkpoint."""
    part = folder / (STATE + ".part")
    meta = {"recipe": recipe.name, "step": str(step), "seed": str(recipe.training.seed)}
    try:
        save_file({n: t.cpu() for n, t in masters.state().items()}, str(part), metadata={"unmask": json.dumps(meta)})
        os.replace(part, folder / STATE)
    except (OSError, SafetensorError) as error:
        part.unlink(missing_ok=True)
        raise OSError(f"could not save the checkpoint in {folder}: {error}; the previous one is intact") from error


def resume(recipe: Recipe, masters: Masters, folder: Path) -> int:
    """Load the folder's state if there is one; returns the step to go on from."""
    path = folder / STATE
    if not path.exists():
        return 0
    try:
        with safe_open(str(path), "pt") as f:
            meta = json.loads((f.metadata() or {}).get("unmask", "{}"))
            state = {name: f.get_tensor(name) for name in f.keys()}
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged: {error}; delete it to begin again") from error
    if meta.get("recipe") != recipe.name or meta.get("seed") != str(recipe.training.seed):
        raise ValueError(
            f"{folder} holds a run of {meta.get('recipe')!r} (seed {meta.get('seed')}), not of {recipe.name!r}"
        )
    masters.load(state)
    return int(meta["step"])
