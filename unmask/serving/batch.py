"""A manifest worked off through the engine, so that its requests share forwards. Public idea: ``work_off(model, manifest, out, share)``.

What is done stands in ``out/results-<rank>.jsonl``, a line as soon as it is, its picture before it. So a run that was stopped, at whatever
moment, goes on where it was: what has an answer is passed over. Every process takes its own lines, by number, and writes its own file.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unmask.pipeline.catalogue import find_sampler
from unmask.serving.engine import Limits
from unmask.serving.manifest import Line, read
from unmask.serving.service import Call, Service
from unmask.tasks.results import Drawing
from unmask.tokens.pictures import save_image

_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")  # ids that are good names of files


@dataclass(frozen=True, kw_only=True)
class Share:
    """The lines of one process among ``world``: those whose number, counted from 0, is ``rank`` modulo ``world``."""

    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world:
            raise ValueError(f"there is no rank {self.rank} among {self.world}; RANK counts from 0, WORLD_SIZE from 1")

    def has(self, line: Line) -> bool:
        return (line.number - 1) % self.world == self.rank


@dataclass(frozen=True, kw_only=True)
class Plan:
    """``lines``: those of this share · ``todo``: what is left of them · ``failed``: lines with an error that are not tried again."""

    lines: list[Line]
    todo: list[Line]
    failed: int
    folder: Path
    results: Path


@dataclass(frozen=True, kw_only=True)
class Summary:
    """``done``: in this run · ``passed``: done before · ``failed``: lines whose last word is an error."""

    done: int
    passed: int
    failed: int


def plan(manifest: Path, out: Path, share: Share, *, retry: bool = False) -> Plan:
    """What is to be done. Repairs this share's results where a run was stopped in the middle of a line.

    ``retry``: lines that failed before count as not done.
    """
    lines = [line for line in read(manifest) if share.has(line)]
    (out / "pictures").mkdir(parents=True, exist_ok=True)
    results = out / f"results-{share.rank}.jsonl"
    _repair(results)
    known = _known(out)
    todo = [line for line in lines if line.key not in known or (retry and not known[line.key])]
    failed = sum(not known.get(line.key, True) for line in lines) - sum(line.key in known for line in todo)
    return Plan(lines=lines, todo=todo, failed=failed, folder=manifest.parent, results=results)


def work_off(
    model: Any, plan: Plan, *, live: int = 16, told: Callable[[int, int], None] = lambda done, of: None
) -> Summary:
    """Everything that is to be done, at most ``live`` requests at a time. A line that fails is recorded, and does not stop the rest."""
    done, failed = 0, 0
    told(0, len(plan.todo))
    with plan.results.open("a", encoding="utf-8") as file:
        for line, outcome in _outcomes(model, plan, live):
            record = _record(line, outcome, plan.results.parent)
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
            file.flush()
            done += 1
            failed += not record["ok"]
            told(done, len(plan.todo))
    return Summary(done=done, passed=len(plan.lines) - len(plan.todo), failed=failed + plan.failed)


def needs(plan: Plan) -> frozenset[str]:
    """The parts of a model that its jobs use."""
    return frozenset().union(*(line.job.needs for line in plan.todo if line.job))


def _outcomes(model: Any, plan: Plan, live: int) -> Iterator[tuple[Line, Any]]:
    """Answers, or exceptions, as they come. Where nothing is left to do, no model is needed."""
    if not plan.todo:
        return
    jobs = iter(plan.todo)
    under_way: dict[Future[Any], Line] = {}
    # A call is counted out a moment after its answer is known, hence the places to wait in.
    service = Service(model, name="batch", limits=Limits(running=live, queued=live))
    try:
        while True:
            while len(under_way) < live and (line := next(jobs, None)) is not None:
                if line.job is None:
                    yield line, ValueError(line.wrong)
                    continue
                (started,) = service.start([Call(ask=_asked(line.job, plan.folder))])
                under_way[started.future] = line
            if not under_way:
                return
            for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                yield under_way.pop(future), future.exception() or future.result()
    finally:
        service.close()


def _asked(job: Any, folder: Path) -> Callable[[Any], Any]:
    """The call of a job. A job's ``sampler`` changes the presets of the model; the other settings are fields of the changed sampler."""

    def ask(model: Any) -> Any:
        if job.sampler is None:
            return job.ask(model, folder)
        change, rest = find_sampler(job.sampler, job.settings)
        return job.model_copy(update={"settings": tuple(rest)}).ask(model.with_sampler(change), folder)

    return ask


def _record(line: Line, outcome: Any, out: Path) -> dict[str, Any]:
    """A line of the results; a picture is saved first."""
    head = {"id": line.id, "line": line.number, "task": line.job.task if line.job else None}
    if isinstance(outcome, BaseException):
        usual = isinstance(outcome, ValueError | OSError | RuntimeError)
        return {**head, "ok": False, "error": str(outcome) if usual else repr(outcome)}
    result = outcome.to_json()
    if isinstance(outcome, Drawing):
        name = f"pictures/{_file_name(line.id or '')}"
        save_image(outcome.image, out / name)
        result = {**result, "file": name}
    return {**head, "ok": True, "result": result}


def _file_name(id_: str) -> str:
    """The id where that is a good name, else a fingerprint of it: two ids have two names."""
    plain = _PLAIN.fullmatch(id_) and id_ == id_.lower()
    return f"{id_}.png" if plain else f"={hashlib.blake2b(id_.encode(), digest_size=16).hexdigest()}.png"


def _known(out: Path) -> dict[str | int, bool]:
    """Of every line that any process has an answer for: whether all is well with it. A last line may still be in the writing."""
    known: dict[str | int, bool] = {}
    for path in sorted(out.glob("results-*.jsonl")):
        for raw in path.read_bytes().split(b"\n")[:-1]:
            try:
                record = json.loads(raw)
                key = record["line"] if record["id"] is None else record["id"]
                known[key] = known.get(key, False) or bool(record["ok"])
            except (ValueError, KeyError, TypeError):
                continue
    return known


def _repair(path: Path) -> None:
    """Cut off what stands behind the last whole line."""
    if not path.exists():
        return
    with path.open("r+b") as file:
        whole = file.read()
        end = whole.rfind(b"\n") + 1
        if end < len(whole):
            file.truncate(end)
