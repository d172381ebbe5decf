"""The command rollout: groups of answers to prompts with the step and the log-probability of each token, for reinforcement elsewhere."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from unmask.cli.options import Run, model_options, steps_option, temperature_option
from unmask.cli.output import news, print_json
from unmask.evaluation.progress import Lines

if TYPE_CHECKING:
    from unmask.json_types import Json
    from unmask.pipeline.model import Model
    from unmask.pipeline.text_model import TextModel
    from unmask.posttraining.prompts import Prompt
    from unmask.posttraining.requests import Requests
    from unmask.posttraining.rewards import Sample, Weighted
    from unmask.posttraining.trajectories import Trajectory
    from unmask.sampling.sampler import Sampler

_ROWS = 64  # answers that are submitted together


@click.command()
@click.argument("prompts", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("out", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--group", type=click.IntRange(min=1), default=8, show_default=True, help="Answers to each prompt.")
@click.option(
    "--reward",
    metavar="NAME,…",
    help="Score each answer: judge, answer, format, regex:PATTERN, clip:FOLDER, FILE.py:FUNCTION; each with =WEIGHT.",
)
@click.option("--length", type=click.IntRange(min=1), default=None, metavar="N", help="Tokens of an answer in words.")
@click.option("--pictures", type=click.Path(file_okay=False, path_type=Path), help="Also save pictures to this folder.")
@click.option("--live", type=click.IntRange(min=1), default=16, show_default=True, help="Rows of one forward pass.")
@steps_option
@temperature_option
@model_options
def rollout(
    run: Run,
    prompts: Path,
    out: Path,
    group: int,
    reward: str | None,
    length: int | None,
    pictures: Path | None,
    live: int,
    steps: int | None,
    temperature: float | None,
) -> None:
    """Sample groups of answers to the prompts of a file, for reinforcement.

    PROMPTS has a JSON object a line: "prompt" to draw or "question" to answer, with "image" for one about a picture; other fields are for
    rewards. OUT gets a line for each answer: prompt_ids, completion_ids, the step at which each of these was unmasked, logprobs, and
    rewards with the advantage in the group. An interrupted run resumes with the same OUT.

    \b
    Examples:
      unmask rollout prompts.jsonl rollouts.jsonl --group 8 --reward judge
      unmask rollout questions.jsonl rollouts.jsonl --reward answer,format=0.5 --length 64 --model LLaDA-8B-Instruct
    """
    from unmask.posttraining.prompts import read_prompts
    from unmask.posttraining.requests import Options
    from unmask.recipes.rewarding import rewards_of

    given, scored = read_prompts(prompts), rewards_of(reward) if reward else None
    done = _complete_groups(out, group)
    options = Options(steps=steps, length=length or 0, temperature=temperature)
    todo = [number for number in range(len(given)) if number not in done]
    if todo:
        _sample(run, given, todo, _Wanted(out=out, group=group, reward=scored, pictures=pictures), options, live)
    if run.json:
        print_json({"prompts": len(given), "answers": len(todo) * group, "passed": len(done), "file": str(out)})
    else:
        click.echo(out)
    news(f"{len(todo) * group} answers to {len(todo)} prompts; {len(done)} prompts were done before")


@dataclass(frozen=True, kw_only=True)
class _Wanted:
    """``out``: of the lines · ``pictures``: folder for pictures, None: they are not saved."""

    out: Path
    group: int
    reward: Weighted | None
    pictures: Path | None


def _sample(run: Run, given: Sequence[Prompt], todo: list[int], wanted: _Wanted, options: Any, live: int) -> None:
    """Sample the answers through an engine and append their lines, one group of prompts at a time."""
    from unmask.serving.engine import Engine, Limits

    model, requests, sampler = _opened(run, given, options)
    limits = Limits(running=max(32, live), queued=max(128, _ROWS + wanted.group), rows=live)
    each = max(1, _ROWS // wanted.group)
    with Lines() as lines, Engine(model.parts.net, device=model.device, limits=limits) as engine:
        for first in range(0, len(todo), each):
            some = todo[first : first + each]
            _append(_with_engine(model, engine), requests, sampler, [(n, given[n]) for n in some], run.seed, wanted)
            lines("rollout", min(first + each, len(todo)), len(todo))


def _opened(run: Run, given: Sequence[Prompt], options: Any) -> tuple[Any, Requests, Sampler]:
    """The model with the parts that its answers need, how it gets the prompts, and its sampler."""
    from unmask.pipeline.model import Model
    from unmask.posttraining.requests import requests_of
    from unmask.tasks.own import OWN
    from unmask.tasks.sampler_options import with_options

    model = run.load()
    if isinstance(model, Model):
        model.parts.require(_needs(given))
    presets = model.presets if isinstance(model, Model) else OWN
    requests, sampler = requests_of(model.parts, presets, given, options)
    changed = sampler if isinstance(model, Model) else model.change(sampler)
    return model, requests, with_options(changed, run.settings)


def _needs(given: Sequence[Prompt]) -> frozenset[str]:
    from unmask.tasks.generate import Generate
    from unmask.tasks.understand import Ask

    return Ask.needs if given[0].asks else Generate.needs


def _with_engine(model: Model | TextModel, engine: Any) -> Any:
    from unmask.pipeline.model import Model
    from unmask.pipeline.text_model import TextModel
    from unmask.serving.jobs import Job

    if isinstance(model, Model):
        return Model(model.parts, model.presets, executor=Job(engine))
    return TextModel(model.parts, executor=Job(engine))


def _append(
    runner: Any, requests: Requests, sampler: Sampler, some: list[tuple[int, Prompt]], seed: int, wanted: _Wanted
) -> None:
    """Sample the groups of some prompts and append their lines."""
    from unmask.posttraining.trajectories import sampled
    from unmask.rng import key
    from unmask.writing import append_line

    asked = [(number, prompt, member) for number, prompt in some for member in range(wanted.group)]
    built = {number: requests.row(prompt) for number, prompt in some}
    seeds = [key("rollout", seed, prompt.text, member) for _, prompt, member in asked]
    found = sampled(runner, [built[number] for number, *_ in asked], seeds, sampler)
    samples = requests.read([prompt for _, prompt, _ in asked], [one.sequence for one in found])
    scores = _scores(wanted, samples)
    rows = []
    for (number, prompt, member), one, sample, score in zip(asked, found, samples, scores, strict=True):
        row: Json = {"prompt": number, "sample": member, "text": prompt.text, **_tokens(one), **score}
        rows.append(row | _answer(wanted, number, member, sample))
    append_line(wanted.out, "\n".join(json.dumps(row, ensure_ascii=False) for row in rows))


def _tokens(one: Trajectory) -> Json:
    at = one.answered
    given = [span for span in one.sequence.spans if not span.writable and span.kind == 0]
    return {
        "prompt_ids": [i for span in given for i in one.sequence.ids[span.start : span.stop].tolist()],
        "completion_ids": one.sequence.ids[at].tolist(),
        "steps": one.steps[at].tolist(),
        "logprobs": [round(value, 5) for value in one.scores[at].tolist()],
    }


def _scores(wanted: _Wanted, samples: Sequence[Sample]) -> list[Json]:
    """Every reward, their weighted sum and the advantage in the group, of each sample; {} without rewards."""
    if wanted.reward is None:
        return [{} for _ in samples]
    import torch

    from unmask.posttraining.advantage import group_normalised

    each = wanted.reward.each(samples)
    total = wanted.reward.total(each)
    advantage = group_normalised(torch.tensor(total).view(-1, wanted.group)).flatten().tolist()
    return [
        {"rewards": {name: values[i] for name, values in each.items()}, "reward": total[i], "advantage": advantage[i]}
        for i in range(len(samples))
    ]


def _answer(wanted: _Wanted, number: int, member: int, sample: Sample) -> Json:
    if sample.picture is None:
        return {"answer": sample.text}
    if wanted.pictures is None:
        return {}
    from PIL import Image

    from unmask.tokens.pictures import write_whole

    path, image = wanted.pictures / f"{number:05d}-{member:03d}.png", Image.fromarray(sample.picture)
    write_whole(path, lambda part: image.save(part, format="PNG"))
    return {"picture": str(path)}


def _complete_groups(out: Path, group: int) -> set[int]:
    """The prompts that a file has whole groups of. ValueError for lines of another size of group."""
    if not out.exists():
        return set()
    counts: dict[int, int] = {}
    for line in out.read_text(encoding="utf-8").split("\n"):
        try:
            number = json.loads(line)["prompt"]
        except (ValueError, KeyError, TypeError):
            continue  # the end of an interrupted write
        counts[number] = counts.get(number, 0) + 1
    if other := [count for count in counts.values() if count != group]:
        raise ValueError(f"{out} has groups of {other[0]} answers, and --group is {group}; choose another OUT")
    return set(counts)
