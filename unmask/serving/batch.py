"""Run a file of requests through the engine, so that they share forward passes. Public idea: ``run_batch(model, plan)``.

Results are appended to ``out/results-<rank>.jsonl``, one line each; an image is saved before its line. An interrupted run therefore
resumes: lines that have a result are skipped. Every process takes its own lines, by number, and writes its own file.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unmask import writing
from unmask.evaluation.sampler_axes import sampler_change
from unmask.json_types import Json
from unmask.pipeline.loading import needs_of
from unmask.pipeline.model import Model
from unmask.serving.engine import Limits
from unmask.serving.manifest import Generate, Job, Line, Result, read
from unmask.serving.service import Call, Served, Service
from unmask.tasks.results import Drawing
from unmask.tokens.pictures import save_image
from unmask.writing import append_line

Outcome = Result | BaseException
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")  # ids that are safe file names
_PART = re.compile(r"\.(.+)\.\d+\.part")  # a picture that a kill left half written
_Known = dict[
    str | int, dict[str, tuple[bool, str]]
]  # id or number of a line -> fingerprint of its request -> (succeeded, model)


@dataclass(frozen=True, kw_only=True)
class Share:
    """The lines of one process: those whose number, counted from 0, is ``rank`` modulo ``world``."""

    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world:
            raise ValueError(f"rank {self.rank} is not in 0..{self.world - 1}; RANK counts from 0 to WORLD_SIZE - 1")

    def has(self, line: Line) -> bool:
        return (line.number - 1) % self.world == self.rank


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """``lines``: all lines of this share · ``todo``: lines without a result · ``failed``: lines with an error that are not retried ·
    ``changed``: lines of ``todo`` that have a result of another request with their id · ``model``: its fingerprint, "" for unknown.
    """

    lines: list[Line]
    todo: list[Line]
    failed: int
    changed: int
    model: str
    folder: Path
    results: Path


@dataclass(frozen=True, kw_only=True)
class Summary:
    """``done``: lines run now · ``passed``: lines skipped because they had a result · ``failed``: lines whose result is an error."""

    done: int
    passed: int
    failed: int


def plan(
    manifest: Path,
    out: Path,
    share: Share,
    *,
    retry: bool = False,
    model: str = "",
    lock: Callable[[Path], object] = lambda results: None,
) -> BatchPlan:
    """Find the lines to run. Truncates an incomplete last line of this share's results, and removes pictures that a kill left half written.

    ``retry``: run failed lines again · ``model``: fingerprint of the model that will run them (``fingerprint``) · ``lock``: called with the
    results file of this share before anything in ``out`` is read or changed. ValueError for results of another model.
    """
    lines = [line for line in read(manifest) if share.has(line)]
    (out / "pictures").mkdir(parents=True, exist_ok=True)
    results = out / f"results-{share.rank}.jsonl"
    results.touch()
    lock(results)
    _repair(results)
    _remove_parts(out / "pictures", lines)
    known = _known(out)
    _refuse_other_model(out, lines, known, model)
    found = {line.number: _status(line, known) for line in lines}
    todo = [line for line in lines if found[line.number] is None or (retry and not found[line.number])]
    failed = [line for line in lines if found[line.number] is False and not retry]
    changed = sum(found[line.number] is None and line.key in known for line in todo)
    return BatchPlan(
        lines=lines,
        todo=todo,
        failed=len(failed),
        changed=changed,
        model=model,
        folder=manifest.parent,
        results=results,
    )


@contextlib.contextmanager
def hold(results: Path) -> Iterator[None]:
    """Hold a results file for this process. ValueError where another process works on the same share."""
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(writing.lock(results))
        except writing.InUse:
            raise ValueError(
                f"another process writes {results}; wait for it, or choose another OUT, or another RANK for each process"
            ) from None
        yield


def fingerprint(folders: Iterable[Path], storage: object) -> str:
    """Of the model and its adapters: their JSON files, and names and sizes of their weights; and how the weights are stored."""
    digest = hashlib.sha256(repr(storage).encode())
    for folder in folders:
        for path in sorted([*folder.glob("*config.json"), *folder.glob("*.safetensors")]):
            digest.update(f"\n{path.name} {path.stat().st_size}\n".encode())
            if path.suffix == ".json":
                digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def run_batch(
    model: Served | None,
    plan: BatchPlan,
    *,
    live: int = 16,
    on_progress: Callable[[int, int], None] = lambda done, of: None,
) -> Summary:
    """Run all lines of a plan, at most ``live`` at a time. A failed line is recorded and does not stop the others."""
    done, failed = 0, 0
    on_progress(0, len(plan.todo))
    for line, outcome in _outcomes(model, plan, live):
        record = _record(line, outcome, plan)
        append_line(plan.results, json_line(record))
        done += 1
        failed += not record["ok"]
        on_progress(done, len(plan.todo))
    return Summary(done=done, passed=len(plan.lines) - len(plan.todo), failed=failed + plan.failed)


def needs(plan: BatchPlan) -> frozenset[str]:
    """The parts of the model that the jobs of a plan use."""
    return frozenset().union(*(line.job.needs for line in plan.todo if line.job))


def _outcomes(model: Served | None, plan: BatchPlan, live: int) -> Iterator[tuple[Line, Outcome]]:
    """Yield results or exceptions as they complete. The model is not used if no line is left."""
    if not plan.todo:
        return
    assert model is not None
    _prepare(model, plan)
    jobs = iter(plan.todo)
    under_way: dict[Future[Result], Line] = {}
    # A call leaves the service slightly after its result is known, so the queue needs as many places.
    service = Service(model, name="batch", limits=Limits(running=live, queued=live))
    try:
        while True:
            while len(under_way) < live and (line := next(jobs, None)) is not None:
                if line.job is None:
                    yield line, ValueError(line.wrong)
                    continue
                (started,) = service.start([Call(ask=_call_of(line.job, plan.folder))])
                under_way[started.future] = line
            if not under_way:
                return
            for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                yield under_way.pop(future), future.exception() or future.result()
    finally:
        service.close()


def _prepare(model: Served, plan: BatchPlan) -> None:
    """Load what the preset of a model needs for jobs that leave it the choice: ``needs`` cannot know the preset."""
    free = [j for line in plan.todo if isinstance(j := line.job, Generate) and j.plan is None and not j.boxes]
    if isinstance(model, Model) and free and (model.presets.plans or model.presets.attempts > 1):
        model.parts.require(needs_of("reflect" if model.presets.attempts > 1 else "plan"))


def _call_of(job: Job, folder: Path) -> Callable[[Any], Result]:
    """The call of a job. Its ``sampler``, ``schedule`` and ``cache`` change the presets of the model; the other settings are fields of the
    changed sampler.
    """

    def ask(model: Any) -> Result:
        model = model if job.quirks is None else model.with_quirks(job.quirks)
        model = model if job.speed is None else model.with_speed(job.speed)
        change, rest = sampler_change(job.sampler, job.schedule, job.cache, job.settings)
        if change is None:
            return job.ask(model, folder)
        return job.model_copy(update={"settings": tuple(rest)}).ask(model.with_sampler(change), folder)

    return ask


def _record(line: Line, outcome: Outcome, plan: BatchPlan) -> Json:
    """A line of the results file; saves the image first. ``request``, ``model``: fingerprints."""
    out = plan.results.parent
    head = {"id": line.id, "line": line.number, "task": line.job.task if line.job else None}
    head |= {"request": line.digest, **({"model": plan.model} if plan.model else {})}
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
    """The id if it is a safe file name, else a hash of it."""
    plain = _PLAIN.fullmatch(id_) and id_ == id_.lower()
    return (
        f"{id_}.png"
        if plain
        else f"={hashlib.blake2b(id_.encode('utf-8', 'surrogatepass'), digest_size=16).hexdigest()}.png"
    )


def json_line(record: Json) -> str:
    """A record on one line; with escapes where it holds half a surrogate pair, which UTF-8 cannot express."""
    text = json.dumps(record, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(record)
    return text


def records(path: Path) -> Iterator[Json]:
    """The records of a results file. Incomplete lines and those that are no record are left out."""
    for raw in path.read_bytes().split(b"\n")[:-1]:
        try:
            record = json.loads(raw)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict) and isinstance(record.get("ok"), bool) and isinstance(record.get("line"), int):
            if record.get("id") is None or isinstance(record["id"], str):
                yield record


def _known(out: Path) -> _Known:
    """What any process has results for."""
    known: _Known = {}
    for path in sorted(out.glob("results-*.jsonl")):
        for record in records(path):
            key = record["line"] if record.get("id") is None else record["id"]
            request, model = str(record.get("request", "")), str(record.get("model", ""))
            before, _ = known.setdefault(key, {}).get(request, (False, ""))
            known[key][request] = before or record["ok"], model
    return known


def _status(line: Line, known: _Known) -> bool | None:
    """Whether a line has succeeded; None for one without a result. Results of earlier versions name no request and count for any."""
    found = known.get(line.key, {})
    told = [ok for request, (ok, _) in found.items() if request in ("", line.digest)]
    return any(told) if told else None


def _refuse_other_model(out: Path, lines: list[Line], known: _Known, model: str) -> None:
    of = [known[line.key][line.digest][1] for line in lines if line.digest in known.get(line.key, {})]
    if model and (others := [name for name in of if name not in ("", model)]):
        raise ValueError(
            f"{len(others)} of {len(of)} results in {out} were made by another model (fingerprint {others[0]}, this one is {model}); "
            "choose another OUT, or the model of those results"
        )


def _remove_parts(pictures: Path, lines: list[Line]) -> None:
    """Delete the half-written pictures of these lines; other processes may be writing those of theirs."""
    own = {_file_name(line.id or "") for line in lines}
    for part in pictures.glob(f".*{writing.PART}"):
        if (match := _PART.fullmatch(part.name)) and match[1] in own:
            part.unlink(missing_ok=True)


def _repair(path: Path) -> None:
    """Truncate a file after its last complete line."""
    if not path.exists():
        return
    with path.open("r+b") as file:
        whole = file.read()
        end = whole.rfind(b"\n") + 1
        if end < len(whole):
            file.truncate(end)
