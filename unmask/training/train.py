"""The one trainer. Public idea: ``train(recipe, folder)``; run it again on the same folder and it continues, bit for bit.

Nothing about data or randomness is saved, because both are functions of (seed, step).
"""

from __future__ import annotations

import functools
import math
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn

from unmask.models.lora import is_quantised
from unmask.recipe import Eval, Recipe
from unmask.training.clock import Budget, Clock
from unmask.training.device import choose, many_shapes, move
from unmask.training.fingerprint import settings as settings_of
from unmask.training.layers import prepared
from unmask.training.losses import Learner, size
from unmask.training.low_bits import refuse_without_float8, to_float8
from unmask.training.meters import Log, Meters, Silent, matmul_peak
from unmask.training.optim import Masters, move_module
from unmask.training.parallel import Place, refuse_idle
from unmask.training.probe import flops, unchanged
from unmask.training.saving import Saver, lock, opened, refuse_apart, refuse_broken, resume
from unmask.training.sharded import Sharded
from unmask.training.states import Saved, remove_leftovers
from unmask.training.stopping import Stopped, stop_after_step

_COUNTED = 20  # steps from which a run's operations are counted, which takes as long as a few of them


def train(
    recipe: Recipe,
    folder: Path,
    *,
    stop_after: int | None = None,
    place: Place = Place(),
    allow_changes: bool = False,
    logs: Sequence[Callable[[Path, int], Log]] = (),
    clock: Clock | Budget | None = None,
) -> nn.Module:
    """Run a recipe in ``folder`` until its last step (or ``stop_after`` steps from now); returns the module with averaged
    weights, in float32 on the CPU.

    Writes metrics.jsonl, a state (atomically, every ``save_every`` steps and at the end; ``saving``) and, at the end, what the recipe
    exports. ``place``: this process among several that train together · ``allow_changes``: continue although settings
    of the recipe differ from those that the folder's run has had so far · ``logs``: made with the folder and the step at which the run
    continues, they take every row too (``tensorboard.TensorBoard``) · ``clock``: end by time; a ``Clock`` also saves in place of the
    folder, a ``Budget`` counts the time of all sessions.

    RunInUse where another process trains in the folder. ValueError where the folder holds a run that does not fit the recipe.
    NotFinite after too many gradients in a row that are not finite. Stopped (a KeyboardInterrupt) after Ctrl-C or SIGTERM, when the
    current step is finished and saved.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with lock(folder) if place.rank == 0 else nullcontext():
        return _train(recipe, folder, stop_after, place, allow_changes, logs, clock)


def _train(
    recipe: Recipe,
    folder: Path,
    stop_after: int | None,
    place: Place,
    allow_changes: bool,
    logs: Sequence[Callable[[Path, int], Log]],
    clock: Clock | Budget | None,
) -> nn.Module:
    if place.rank == 0:
        remove_leftovers(folder)
    settings = recipe.training
    device = choose(settings.device, local_rank=place.local_rank, world=place.world)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    refuse_idle(settings.accumulate, place.world)
    if isinstance(clock, Clock) and place.world > 1:
        raise ValueError(f"a run by the clock is one process, got {place.world}: their clocks differ; use one process")
    dtype = torch.bfloat16 if settings.bf16 else torch.float32
    module = recipe.model()
    if recipe.adapt:
        recipe.adapt(module)
    if settings.float8:
        refuse_without_float8(device)
        to_float8(module)
    if settings.shard and place.world > 1:
        refuse_idle(math.gcd(settings.accumulate, settings.steps), place.world, equal=True)
        masters = Sharded(module, recipe.optim, recipe.trainable, dtype=dtype, device=device)
    else:
        masters = Masters(module, recipe.optim, recipe.trainable, dtype=dtype, device=device)
    if isinstance(clock, Clock):
        saved, changed = _saved_by(recipe, clock), []
    else:
        saved, changed = resume(recipe, masters, folder, allow_changes=allow_changes)
    refuse_apart(saved.step, folder, place)
    if changed and place.rank == 0:
        print(f"this run continues with other settings: {', '.join(changed)}", file=sys.stderr)
    masters.sync()
    last = settings.steps if stop_after is None else min(settings.steps, saved.step + stop_after)
    rate_at = functools.partial(clock.rate, recipe.optim) if clock else None
    learner = Learner(recipe, module, masters, place, device, saved.updates, saved.skipped, rate_at)
    if isinstance(clock, Budget):
        clock.start(saved.seconds or 0.0)
    if saved.step < last and not (isinstance(clock, Budget) and clock.over()):
        own_logs = [log(folder, saved.step) for log in logs] if place.rank == 0 else []
        meters = Meters(folder, settings.steps, saved.step, own_logs) if place.rank == 0 else Silent()
        try:
            fastest = None
            if last - saved.step >= _COUNTED:
                with many_shapes(device), prepared(module, recompute=settings.recompute, compile=False):
                    work = _flops(learner, saved.step)  # before anything compiles: under the counter nothing would
                fastest = work / matmul_peak(dtype, device)
            with many_shapes(device), prepared(module, recompute=settings.recompute, compile=settings.compile):
                with opened(folder, place, settings.keep) as saver:
                    if isinstance(clock, Budget):
                        clock.start(saved.seconds or 0.0)  # anew: workers may have taken a while for the first batch
                    _run(learner, saved.step, last, fastest, meters, folder, saver, clock)
        finally:
            meters.close()
    if isinstance(masters, Sharded) or settings.float8:  # what is returned has the layers of the recipe
        averaged, buffers = masters.averaged(), masters.buffers
        module = recipe.model()
        if recipe.adapt:
            recipe.adapt(module)
        for name, buffer in module.named_buffers():
            buffer.copy_(buffers[name]) if name in buffers else None
    else:
        averaged = masters.averaged()
    return finish(recipe, module, averaged, folder if place.rank == 0 else None)


def _run(
    learner: Learner,
    start: int,
    last: int,
    fastest: float | None,
    meters: Meters | Silent,
    folder: Path,
    saver: Saver,
    clock: Clock | Budget | None,
) -> None:
    """Steps ``start..last``, ``accumulate`` at a time: learn, report, evaluate, save.

    ``fastest``: seconds that a unit of a batch's size would take at the device's peak speed; None: not measured.
    """
    recipe, settings, place = learner.recipe, learner.recipe.training, learner.place
    seconds, reported = 0.0, 0  # since the last report, without the source; ``learner.size`` at it
    with stop_after_step(quiet=place.rank > 0) as signalled:
        for first in range(start, last, settings.accumulate):
            end = min(first + settings.accumulate, last)
            if isinstance(clock, Budget):
                clock.agree(place)
            began, waited = time.perf_counter(), learner.waited
            for update in learner.learn(first, end):
                meters.add(update)
            seconds += time.perf_counter() - began - (learner.waited - waited)
            stopping, failed = place.any(signalled() or place.abandoned(), saver.failed())
            if failed:
                saver.wait()
                raise OSError(f"another process could not save the checkpoint in {folder}; the previous one is intact")
            if clock is not None:
                meters.expect(clock.steps(end))
            done = stopping or end == last or (clock is not None and clock.over())
            if done or _due(settings.log_every, first, end):
                units_a_second = (learner.size - reported) / max(seconds, 1e-6)
                peak = {} if fastest is None else {"peak": round(fastest * units_a_second, 3)}
                meters.report(end, updates=learner.updates, **peak)
                seconds, reported = 0.0, learner.size
            else:
                meters.progress(end)
            if place.rank == 0 or isinstance(learner.masters, Sharded):  # of shards, no process has the whole model
                evals = [e for e in recipe.evals if end == settings.steps or _due(e.every, first, end)]
                evaluate(evals, learner.module, learner.masters, learner.device, end, meters)
            if isinstance(clock, Clock):
                clock.checkpoint(learner.masters.averaged, end, now=done)
            elif done or _due(settings.save_every, first, end):
                _save(learner, end, folder, saver, None if clock is None else clock.total())
            if stopping and end < last:
                saver.wait()
                raise Stopped(f"stopped after step {end}, which is saved in {folder}")
            if done:
                break


def _save(learner: Learner, step: int, folder: Path, saver: Saver, seconds: float | None) -> None:
    recipe = learner.recipe
    saved = Saved(
        recipe=recipe.name,
        seed=recipe.training.seed,
        step=step,
        updates=learner.updates,
        skipped=learner.skipped,
        settings=settings_of(recipe),
        seconds=seconds,
    )
    state = learner.masters.state()
    refuse_broken(state, saved, folder, learner.place)
    saver.save(state, saved)


def _saved_by(recipe: Recipe, clock: Clock) -> Saved:
    return Saved(recipe=recipe.name, seed=recipe.training.seed, step=clock.step, updates=clock.step)


def _due(every: int, before: int, after: int) -> bool:
    """Whether a multiple of ``every`` lies in ``before + 1..after``."""
    return after // every > before // every


def _flops(learner: Learner, step: int) -> float:
    """Operations for each unit of a batch's size, counted in the batch of a step."""
    made = learner.recipe.source(step)
    counted = flops(learner.recipe, learner.module, move(made, learner.device), step, learner.device)
    return counted / max(size(made), 1)


def evaluate(
    evals: Sequence[Eval],
    module: nn.Module,
    masters: Masters | Sharded,
    device: torch.device,
    step: int,
    meters: Meters | Silent,
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


def finish(recipe: Recipe, module: nn.Module, averaged: dict[str, Tensor], folder: Path | None) -> nn.Module:
    """Averaged weights in float32 on the CPU, as ``recipe.model`` made them; exported if the recipe exports."""
    move_module(module, "cpu", torch.float32)
    with torch.no_grad():
        for name, p in module.named_parameters():
            if not is_quantised(p):  # the module's own: they are never trained
                p.copy_(averaged[name])
    module.eval()
    if recipe.export and folder:
        recipe.export(module, folder)
    return module
