"""The options of ``unmask train`` that stand for arguments of recipes on own data. Public idea: the decorator ``tuning_options``."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., object])


def tuning_options(command: Command) -> Command:
    """Give a command the options, and add them to its ``settings``, before those of ``-o``."""

    @functools.wraps(command)
    def wrapped(
        settings: tuple[str, ...],
        model: str | None,
        data: tuple[str, ...],
        lora: int | None,
        only: str | None,
        freeze: str | None,
        replay: str | None,
        reward: str | None,
        fit: str | None,
        steps: int | None,
        **own: Any,
    ) -> object:
        arguments = {
            "model": model,
            "data": ",".join(data) or None,
            "lora": lora,
            "only": only,
            "freeze": freeze,
            "replay": replay,
            "reward": reward,
            "fit": fit,
        }
        given = {**arguments, "training.steps": steps}
        short = tuple(f"{name}={value}" for name, value in given.items() if value is not None)
        return command(settings=(*short, *settings), **own)

    for option in reversed(_OPTIONS):
        wrapped = option(wrapped)
    return wrapped  # type: ignore[return-value]


_OPTIONS = (
    click.option(
        "--model",
        metavar="NAME",
        help="finetune, families, lavida_o, unigrpo: the model to start from.  [default: mini; a stage: what the one before it wrote]",
    ),
    click.option(
        "--data",
        metavar="PATH[=WEIGHT]",
        multiple=True,
        help="finetune, families, lavida_o: a folder or file of your samples (docs/data.md); repeatable. unigrpo: a file of prompts.",
    ),
    click.option(
        "--lora",
        type=click.IntRange(min=1),
        metavar="RANK",
        help="finetune, unigrpo: train adapters of this rank only.",
    ),
    click.option("--only", metavar="PARTS", help="finetune: train these parts only, such as gen or und,text_head."),
    click.option("--freeze", metavar="PARTS", help="finetune: do not train these parts, such as vision."),
    click.option(
        "--replay",
        metavar="NAME",
        help="finetune: keep what the model knows: auto, world, none, or a folder or file of samples.",
    ),
    click.option(
        "--reward",
        metavar="NAME,…",
        help="unigrpo: judge, answer, format, regex:PATTERN, clip:FOLDER, FILE.py:FUNCTION; each with =WEIGHT.",
    ),
    click.option("--fit", metavar="HOW", help="finetune: make pictures of captions square: pad, crop or middle."),
    click.option("--steps", type=click.IntRange(min=1), metavar="N", help="Steps of the run.  [default: the recipe's]"),
)
