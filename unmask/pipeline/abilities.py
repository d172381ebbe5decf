"""Which tasks a model has, before any of its weights is read.

Public idea: ``refuse_task(spec, "edit", called)``, a ValueError where the family of a ``ModelSpec`` lacks a task; ``tasks_of(spec)``.
"""

from __future__ import annotations

from unmask.pipeline.loading import TEXT_TASKS, ModelSpec
from unmask.tasks.parts import Refused

# The presets that a task uses, by the names of the command line.
PRESETS: dict[str, tuple[str, ...]] = {
    "generate": ("generate",),
    "plan": ("generate", "plan"),
    "reflect": ("generate", "critique"),
    "edit": ("edit",),
    "edit-plan": ("edit", "plan_edit"),
    "edit-reflect": ("edit", "critique"),
    "infill": ("generate", "infill"),
    "infill-text": ("fill",),
    "ask": ("ask",),
    "ground": ("ground",),
    "converse": ("turn_words",),
}


def tasks_of(spec: ModelSpec) -> tuple[str, ...]:
    """The tasks of a model, by the names of the command line."""
    if spec.format.is_text:
        return (*(task for task in TEXT_TASKS if task in PRESETS), "converse")
    return tuple(
        task
        for task, used in PRESETS.items()
        if not any(isinstance(getattr(spec.presets, name), Refused) for name in used)
    )


def refuse_task(spec: ModelSpec, task: str, called: str) -> None:
    """ValueError for a task that the model does not have. ``called``: its name in the message for a text model."""
    if not spec.format.is_text:
        spec.presets.refuse(*PRESETS.get(task, ()))
    elif task not in TEXT_TASKS:
        raise ValueError(f"{called} is a text model, which cannot {task}; its tasks are {', '.join(TEXT_TASKS)}")
