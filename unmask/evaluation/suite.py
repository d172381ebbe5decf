"""Several parts measured as one report. Public idea: ``run(model, parts, plan, record, about=…) -> Report``."""

from __future__ import annotations

import time
from collections.abc import Mapping

import torch

from unmask import __version__
from unmask.evaluation.evaluate import EvalPart, EvalPlan, OnProgress, Record, fingerprint, measure
from unmask.evaluation.progress import Lines
from unmask.evaluation.report import Report, write
from unmask.json_types import Json
from unmask.pipeline.model import Model


def run(
    model: Model,
    parts: Mapping[str, EvalPart],
    plan: EvalPlan,
    record: Record,
    *,
    about: Json,
    progress: OnProgress | None = None,
) -> Report:
    """Measure ``parts``; the report is also written to the record's folder, if it has one.

    ``about``: description of the suite, besides version, weights, seed and settings · ``progress``: called with (part, done, of).
    """
    began = time.perf_counter()
    refuse_parts(model, parts)
    with Lines() as lines:
        measured = [measure(model, part, plan, record, progress or lines) for part in parts.values()]
    more = {
        "version": __version__,
        "weights": fingerprint(model),
        "n": plan.n,
        "seed": plan.seed,
        "seconds": round(time.perf_counter() - began, 1),
        "threads": torch.get_num_threads(),
        "device": str(model.device),
        "settings": {name: part.settings(model) for name, part in parts.items()},
    }
    report = Report(about={**about, **more}, parts=tuple(measured))
    if record.folder is not None:
        write(report, record.folder)
    return report


def refuse_parts(model: Model, parts: Mapping[str, EvalPart]) -> None:
    """ValueError where the model cannot do some of the parts, before any of them is measured. The hint names those that it can do."""
    wrong: dict[str, str] = {}
    for name, part in parts.items():
        try:
            part.settings(model)  # asks the model for the samplers of the part
        except ValueError as error:
            wrong[name] = str(error).partition(";")[0]
    if not wrong:
        return
    can = [name for name in parts if name not in wrong]
    hint = f"--only {','.join(can)} measures what it can do" if can else "measure something else"
    raise ValueError(f"{', '.join(dict.fromkeys(wrong.values()))} ({', '.join(wrong)}); {hint}")
