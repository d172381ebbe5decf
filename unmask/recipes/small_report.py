"""What ``small`` can do at the end of a run: a few items of the suite ``world`` on both levels, within the time that is left.

Public idea: ``report(folder, device, seconds, items)`` writes evaluation.jsonl, one row per level and part.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import unmask
from unmask.evaluation.evaluate import EvalPart, EvalPlan, Record, measure
from unmask.evaluation.world_edit import Edits
from unmask.evaluation.world_geneval import GenEval
from unmask.evaluation.world_grounding import Grounds
from unmask.evaluation.world_questions import Questions
from unmask.evaluation.world_vq import Rebuilds
from unmask.pipeline.model import Model
from unmask.writing import write_text

FILE = "evaluation.jsonl"
_PARTS: tuple[EvalPart, ...] = (Rebuilds(), GenEval(distance=False), Grounds(), Questions(), Edits())


def report(folder: Path, device: str, seconds: float, items: int) -> None:
    """Measure the model in ``folder`` on ``items`` per part. No part begins after ``seconds``; the file then has fewer rows."""
    ends = time.monotonic() + seconds
    model = unmask.load(folder, device=device)
    assert isinstance(model, Model)
    rows: list[str] = []
    todo = [(part, level) for part in _PARTS for level in ("free", "grid")]
    for number, (part, level) in enumerate(todo):
        if time.monotonic() >= ends:
            print(f"no time left for {len(todo) - number} of {len(todo)} measurements", file=sys.stderr)
            break
        plan = EvalPlan(level=level, n=items, batch=items)
        figures = measure(model, part, plan, Record()).figures
        rows.append(json.dumps({"level": level, "part": part.name, "n": items, "figures": figures}))
    write_text(folder / FILE, "".join(f"{row}\n" for row in rows))
