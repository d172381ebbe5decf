"""The suite ``world``: generation, grounding, questions, edits and the tokenizer on held-out scenes.

Public idea: ``run(unmask.load("mini")) -> Report``, with ``to_json()`` and ``table()``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from unmask.evaluation import suite
from unmask.evaluation.evaluate import EvalPart, EvalPlan, OnProgress, Record
from unmask.evaluation.report import Report
from unmask.evaluation.strategies import EditGenerator
from unmask.evaluation.world_composed import COMPOSED
from unmask.evaluation.world_conditions import Conditioned
from unmask.evaluation.world_edit import Edits
from unmask.evaluation.world_geneval import GenEval
from unmask.evaluation.world_grounding import Grounds
from unmask.evaluation.world_questions import Questions
from unmask.evaluation.world_thinking import Critiques, Reflections
from unmask.evaluation.world_vq import Rebuilds
from unmask.pipeline.model import Model
from unmask.tasks.reflecting import Thinking

PARTS: dict[str, EvalPart] = {
    "geneval": GenEval(),
    "grounding": Grounds(),
    "questions": Questions(),
    "edit": Edits(),
    "vq": Rebuilds(),
    "edit_plan": Edits(draw=EditGenerator(thinking=Thinking(plan=True)), name="edit_plan"),
    "edit_reflection": Edits(draw=EditGenerator(thinking=Thinking(plan=True, attempts=8)), name="edit_reflection"),
    "critique": Critiques(),
    "reflection": Reflections(),
    "conditions": Conditioned(),
    "composed": Reflections(kinds=COMPOSED, name="composed"),
}


def run(
    model: Model,
    *,
    level: str = "grid",
    n: int = 600,
    limit: int | None = None,
    only: Sequence[str] = (),
    seed: int = 0,
    split: str = "test",
    out: Path | None = None,
    batch: int = 32,
    progress: OnProgress | None = None,
) -> Report:
    """Measure a model on ``n`` held-out items per part (or ``limit``, for a quick run).

    ``only``: names of ``PARTS``, none for all · ``out``: a folder for the report; verdicts are recorded there, so
    that an interrupted run resumes · ``progress``: called with (part, done, of).
    ValueError for an unknown part, level or split.
    """
    chosen = select(only)
    plan = EvalPlan(level=level, split=split, n=min(n, limit or n), seed=seed, batch=batch)
    about = {"suite": "world", "level": level, "split": split}
    return suite.run(model, chosen, plan, Record(out), about=about, progress=progress)


def select(only: Sequence[str]) -> dict[str, EvalPart]:
    """The parts of these names, or all parts if none is named. ValueError for an unknown name."""
    unknown = [name for name in only if name not in PARTS]
    if unknown:
        raise ValueError(f"the suite has no part {unknown[0]!r}; the parts are {', '.join(PARTS)}")
    return {name: part for name, part in PARTS.items() if not only or name in only}
