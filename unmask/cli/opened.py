"""What commands do with a model after it was opened. Public ideas: ``guided(model, run)``, ``refuse_settings(..)``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from unmask.cli.options import Run
    from unmask.pipeline.model import Model
    from unmask.pipeline.text_model import TextModel


def guided(model: Model | TextModel, run: Run) -> TextModel:
    """The model with --guide-model. ValueError where it is not a text model."""
    from unmask.pipeline.guides import guided_by, open_guide
    from unmask.pipeline.text_model import TextModel

    if not isinstance(model, TextModel):
        raise ValueError(
            f"{run.model} is not a text model; --guide-model is for those in the layouts of LLaDA and Dream"
        )
    net = open_guide(run.guide, model.parts.text, str(model.device), download=run.download)
    return model.with_sampler(guided_by(net, run.guide_settings)[0])


def refuse_settings(model: Model, task: str, settings: Sequence[str]) -> None:
    """ValueError for a setting that the sampler of the task does not have."""
    from unmask.recipe import override

    presets = {"edit": model.presets.edit, "ask": model.presets.ask, "infill-text": model.presets.fill}
    if settings and task == "ground":
        override(model.presets.ground(model.parts, 1), settings)
    elif settings:
        override(
            presets.get(task.partition("-")[0] if task.startswith("edit") else task, model.presets.generate)(
                model.parts
            ),
            settings,
        )
