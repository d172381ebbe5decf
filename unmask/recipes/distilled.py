"""Few-step distillation: the embedded model learns to draw in half of its steps, and again in half of these.

    unmask train distilled.mini --out runs/half -o share=0.0625
    unmask train distilled.mini --out runs/quarter -o start=runs/half -o share=0.125
    python -c "from unmask.recipes.distilled import ship; ship('runs/quarter', 'runs/few')"
    unmask generate "a red apple" --steps 4 --model runs/few

One step of the model learns what two steps of the model that it starts from predict (``objectives.through_time``). The prompt is dropped
from some rows as in training, so that guidance still works. Other tasks than drawing are not trained and may become worse.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from unmask.checkpoints.store import load_module
from unmask.models.elastic import Elastic
from unmask.objectives.masked import Masked, Together
from unmask.objectives.through_time import ThroughTime
from unmask.pipeline.exporting import export_like
from unmask.pipeline.loading import read_spec, resolve
from unmask.recipe import Optim, Recipe
from unmask.recipes import mini as dense
from unmask.recipes.replay import Before


def mini(
    start: str = "mini",
    seed: int = 7,
    steps: int = 1000,
    teacher_steps: int = 2,
    share: float = 1 / 16,
    images: int = dense.IMAGES,
) -> Recipe:
    """The embedded model distilled for drawing. ``start``: a shipped model or a folder of ours, which is also the teacher ·
    ``teacher_steps``: of the teacher for one of the model · ``share``: of an image that each step of the teacher unmasks.
    """
    base = dense.stage2(vision="", start=start, seed=seed, images=images)
    assert isinstance(base.objective, Together)
    before = Before(network=base.model)

    def through_time(objective: object) -> ThroughTime:
        assert isinstance(objective, Masked)
        return ThroughTime(masked=objective, teacher=before, steps=teacher_steps, share=share)

    tasks = tuple((name, through_time(objective), weight) for name, objective, weight in base.objective.objectives)
    return replace(
        base,
        name="distilled.mini",
        objective=Together(objectives=tasks),
        optim=Optim(lr=2e-4, warmup=50, decay_from=0.5, floor=0.02, ema=0.995),
        training=replace(base.training, steps=steps, save_every=100),
    )


def ship(run: str = "runs/half", out: str = "runs/few", start: str = "mini") -> None:
    """A model folder of a finished run: its network, and all else from ``start``."""
    spec = read_spec(resolve(start))
    net = load_module(Elastic(spec.checkpoint.config, mask_id=spec.checkpoint.mask_id), Path(run))
    export_like(spec, net.state_dict(), Path(out))
