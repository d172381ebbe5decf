"""The suites of ``unmask evaluate`` by name: which options each takes, and how it measures a model.

Public idea: ``SUITES["geneval"].open(options)(model) -> Report``. ``open`` reads the prompt files, before any weights are loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

if TYPE_CHECKING:
    from unmask.evaluation.encoders import Comparison
    from unmask.evaluation.evaluate import EvalPart, EvalPlan, PictureLayout
    from unmask.evaluation.report import Report
    from unmask.evaluation.strategies import PromptGenerator
    from unmask.pipeline.model import Model
    from unmask.tasks.reflecting import Thinking

    Measure = Callable[[Model], Report]

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class EvalOptions:
    """The options of ``unmask evaluate`` as typed."""

    level: str
    only: tuple[str, ...]
    limit: int | None
    prompts: Path | None
    images: Path | None
    each: int
    everything: bool
    settings: tuple[str, ...]
    plan: bool
    attempts: int
    clip: Path | None
    real: Path | None
    batch: int
    seed: int
    device: str
    out: Path | None


@dataclass(frozen=True, kw_only=True)
class Suite:
    """``takes``: parameters that apply to this suite · ``wants``: parameters that it requires · ``open``: reads the files and returns
    the measurement: model -> Report.
    """

    takes: frozenset[str]
    wants: frozenset[str]
    open: Callable[[EvalOptions], Measure]


def _world(options: EvalOptions) -> Measure:
    from unmask.evaluation import world_suite

    world_suite.select(options.only)

    def measured(model: Model) -> Report:
        return world_suite.run(
            model,
            level=options.level,
            only=options.only,
            limit=options.limit,
            seed=options.seed,
            out=options.out,
            batch=options.batch,
        )

    return measured


def _geneval(options: EvalOptions) -> Measure:
    from unmask.data.geneval import read_geneval
    from unmask.evaluation.public_geneval import PublicGenEval, lay_out, layout

    prompts = _some(read_geneval(_given(options.prompts)), options.only, lambda p: p.tag, "tag")
    part = PublicGenEval(
        prompts=prompts,
        each=options.each,
        everything=options.everything,
        draw=_drawer(options),
        compare=_comparison(options),
    )
    if not options.everything and not any(part.knows(p) for p in prompts):
        raise ValueError(
            "the judge knows the objects and colours of no prompt; add --all to generate them for other judges"
        )

    def measured(model: Model) -> Report:
        if not options.everything and not part.judges(model):
            raise ValueError(
                f"the judge reads pictures of the synthetic world of {part.judge().config.side} pixels, and this model generates "
                f"{model.parts.side}; add --all to generate every prompt for the benchmark's own scripts"
            )
        report = _run(model, part, options, len(prompts), layout)
        lay_out(_given(options.out), part.chosen(_plan(options, len(prompts))))
        return report

    return measured


def _drawer(options: EvalOptions) -> PromptGenerator:
    from unmask.evaluation.strategies import PromptGenerator

    return PromptGenerator(changes=options.settings, thinking=_thinking(options))


def _thinking(options: EvalOptions) -> Thinking:
    from unmask.tasks.reflecting import Thinking

    return Thinking(plan=options.plan, attempts=options.attempts)


def _dpg(options: EvalOptions) -> Measure:
    from unmask.data.dpg import read_dpg
    from unmask.evaluation.evaluate import one_folder
    from unmask.evaluation.public_dpg import PublicDPG

    prompts = read_dpg(_given(options.prompts))
    part = PublicDPG(prompts=prompts, each=options.each, draw=_drawer(options), compare=_comparison(options))
    return lambda model: _run(model, part, options, len(prompts), one_folder)


def _imgedit(options: EvalOptions) -> Measure:
    from unmask.data.imgedit import read_imgedit
    from unmask.data.published import require_files
    from unmask.evaluation.evaluate import one_folder
    from unmask.evaluation.public_imgedit import PublicImgEdit
    from unmask.evaluation.strategies import EditGenerator

    edits = _some(read_imgedit(_given(options.prompts)), options.only, lambda e: e.kind, "edit_type")
    folder = _given(options.images)
    require_files(folder, [e.source for e in edits[: options.limit]])
    part = PublicImgEdit(
        edits=edits, folder=folder, draw=EditGenerator(changes=options.settings, thinking=_thinking(options))
    )
    return lambda model: _run(model, part, options, len(edits), one_folder)


def _refcoco(options: EvalOptions) -> Measure:
    from unmask.data.published import require_files
    from unmask.data.refcoco import read_refcoco
    from unmask.evaluation.public_refcoco import PublicRefCOCO

    read = read_refcoco(_given(options.prompts))
    unseen = [e for e in read if e.split != "train"]
    expressions = _some(read, options.only, lambda e: e.split, "split") if options.only else tuple(unseen)
    if not expressions:
        raise ValueError("all expressions belong to the split train; add --only train to measure on it")
    folder = _given(options.images)
    require_files(folder, [e.picture for e in expressions[: options.limit]])
    part = PublicRefCOCO(expressions=expressions, folder=folder, changes=options.settings)
    return lambda model: _run(model, part, options, len(expressions), None)


_DRAWS = frozenset({"prompts", "settings"})
SUITES: dict[str, Suite] = {
    "world": Suite(takes=frozenset({"level", "only", "seed"}), wants=frozenset(), open=_world),
    "geneval": Suite(
        takes=_DRAWS | {"only", "seed", "each", "everything", "plan", "attempts", "clip", "real"},
        wants=frozenset({"prompts", "out"}),
        open=_geneval,
    ),
    "dpg": Suite(
        takes=_DRAWS | {"seed", "each", "plan", "attempts", "clip", "real"},
        wants=frozenset({"prompts", "out"}),
        open=_dpg,
    ),
    "imgedit": Suite(
        takes=_DRAWS | {"only", "seed", "images", "plan", "attempts"},
        wants=frozenset({"prompts", "images", "out"}),
        open=_imgedit,
    ),
    "refcoco": Suite(
        takes=_DRAWS | {"only", "images"},
        wants=frozenset({"prompts", "images"}),
        open=_refcoco,
    ),
}


def check(context: click.Context, name: str) -> None:
    """UsageError for an option of another suite, and for a missing one of this."""
    flags = {str(p.name): p.opts[-1] for p in context.command.params}
    suite, owned = SUITES[name], frozenset().union(*(s.takes for s in SUITES.values()))
    typed = click.core.ParameterSource.COMMANDLINE
    for parameter in sorted(owned - suite.takes):
        if context.get_parameter_source(parameter) is typed:
            others = " and ".join(n for n, s in SUITES.items() if parameter in s.takes)
            raise click.UsageError(f"{flags[parameter]} does not apply to --suite {name}, only to {others}")
    for parameter in sorted(suite.wants):
        if context.params[parameter] is None:
            raise click.UsageError(f"--suite {name} needs {flags[parameter]}")


def _given(path: Path | None) -> Path:
    assert path is not None, "check() made sure of it"
    return path


def _some(values: Sequence[T], only: Iterable[str], kind: Callable[[T], str], word: str) -> tuple[T, ...]:
    """The values of these kinds, or all if none is named. ValueError for a kind that no value has."""
    there = sorted({kind(value) for value in values})
    unknown = [name for name in only if name not in there]
    if unknown:
        raise ValueError(f"no record has the {word} {unknown[0]!r}; choose from {', '.join(there)}")
    return tuple(value for value in values if not only or kind(value) in only)


def _comparison(options: EvalOptions) -> Comparison | None:
    if options.clip is None:
        if options.real is not None:
            raise click.UsageError("--real needs --clip: the distance is measured in CLIP features")
        return None
    from unmask.evaluation.encoders import Comparison, pictures_in, read_clip

    real = pictures_in(options.real) if options.real is not None else ()
    return Comparison(encoder=read_clip(options.clip, options.device), real=real)


def _plan(options: EvalOptions, there: int) -> EvalPlan:
    from unmask.evaluation.evaluate import EvalPlan

    return EvalPlan(n=min(there, options.limit or there), seed=options.seed, batch=options.batch)


def _run(model: Model, part: EvalPart, options: EvalOptions, there: int, layout: PictureLayout | None) -> Report:
    from unmask.evaluation import suite
    from unmask.evaluation.evaluate import Record

    about = {"suite": part.name, "prompts": _given(options.prompts).name}
    return suite.run(model, {part.name: part}, _plan(options, there), Record(options.out, layout), about=about)
