"""Commands that look at a picture: ask and ground."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING

import click

from unmask.cli.inputs import pictures_and_phrases, pictures_and_text, read_pictures, read_text
from unmask.cli.options import (
    Run,
    guidance_option,
    max_tokens_option,
    model_options,
    path_option,
    steps_option,
    stop_option,
    temperature_option,
    top_p_option,
)
from unmask.cli.ordered_help import OrderedHelp
from unmask.cli.output import (
    STDOUT,
    news,
    numbered,
    print_json,
    print_line,
    refuse_stdout,
    save_text,
    tell_approximate,
    warn,
    write_picture,
)
from unmask.json_types import Json
from unmask.tokens.pictures import WRITABLE, draw_boxes

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from unmask.grammars.answer_format import AnswerFormat
    from unmask.tasks.results import Answer, Grounding


@click.command(cls=OrderedHelp, first=("max_tokens", "steps", "guidance", "temperature", "seed", "model"))
@click.argument("words", metavar="[IMAGE]... QUESTION", nargs=-1, required=True)
@max_tokens_option
@steps_option
@guidance_option
@temperature_option
@top_p_option
@stop_option
@click.option(
    "--length",
    type=click.IntRange(min=1),
    metavar="N",
    help="Tokens that are decoded at a time; changes the answer.  [default: the model's preset]",
)
@click.option(
    "--draft",
    default="",
    metavar="TEXT",
    help="The answer with gaps: [mask] is one token, [mask:N] are N, [slot:N] up to N (of models with slots). Other words stay.",
)
@click.option("--plain", is_flag=True, help="Text models: continue the text without a chat template (for Base models).")
@click.option("--schema", metavar="FILE|JSON", help="Constrain the answer to JSON that matches this schema.")
@click.option("--regex", metavar="PATTERN", help="Constrain the answer to a full match of this regex.")
@click.option(
    "--audio",
    type=click.Path(),
    metavar="FILE.wav",
    help="A sound that the QUESTION is about, or that asks it, of models that hear (DIFFA).",
)
@path_option("--trace", (".txt",), "Also save the answer after each step (.txt).")
@model_options
def ask(
    run: Run,
    words: tuple[str, ...],
    max_tokens: int | None,
    steps: int | None,
    guidance: float | None,
    temperature: float | None,
    top_p: float | None,
    stop: tuple[str, ...],
    length: int | None,
    draft: str,
    plain: bool,
    schema: str | None,
    regex: str | None,
    audio: str | None,
    trace: Path | None,
) -> None:
    """Answer a question about pictures.

    Prints the answer; of several pictures one line each, the file and the answer, or with --json one JSON object per line. IMAGE is a
    file, a pattern such as '*.png', or - for stdin. A text model (LLaDA) takes a QUESTION without IMAGE. --steps counts per block of the
    answer.

    \b
    Examples:
      unmask ask apple.png "how many apples are there?"
      unmask ask apple.png "what is left of the cat?" --json
      unmask ask apple.png "what colour is the apple?" --schema '{"enum": ["red", "green"]}'
      unmask ask apple.png "what is it?" --draft "It is a [mask] apple." --model DIMPLE
      unmask ask *.png "what colour is the apple?"
      unmask ask "Why is the sky blue?" --model LLaDA-8B-Instruct --max-tokens 64 --temperature 0.5
      unmask ask "What does the speaker say?" --audio question.wav --model DIFFA
      unmask ask apple.png "answer" --audio question.wav --model runs/hearing
      unmask ask "The sky is" --plain --max-tokens 32 --model LLaDA-8B-Base
    """
    names, question = pictures_and_text(words, "question", "unmask ask")
    form = _form(schema, regex)
    if form and plain:
        raise click.UsageError("--plain cannot be combined with --schema or --regex")
    _refuse_model(run, names, question, plain)
    if audio:
        _refuse_deaf(run)
    question = read_text(question, "question")
    pictures = read_pictures(names)
    model = run.open_any("ask")
    from unmask.pipeline.text_model import TextModel

    options: Json = {"seed": run.seed, "trace": trace is not None, "settings": run.settings}
    options |= {"steps": steps, "guidance_scale": guidance, "temperature": temperature, "top_p": top_p, "stop": stop}
    options |= {"max_tokens": max_tokens, "length": length, **({"form": form} if form else {})}
    if isinstance(model, TextModel):
        if audio and plain:
            raise click.UsageError("--plain cannot be combined with --audio, which needs the chat template")
        options |= {"audio": audio} if audio else {}
        if draft and plain:
            raise click.UsageError('--plain cannot be combined with --draft; use unmask infill "text with [mask]"')
        options |= {} if plain else {"draft": draft}
        _show_answers([("", (model.complete if plain else model.ask)(question, **options))], 1, trace, run)
    else:
        asked = pictures if names else iter([("", None)])  # without a picture, the model says whether it needs one
        options |= {"draft": draft}
        if audio:
            if "audio" not in inspect.signature(model.ask).parameters:
                raise ValueError(_deaf(run))
            options |= {"audio": audio}
        answers = ((name, model.ask(picture, question, **options)) for name, picture in asked)
        _show_answers(answers, max(1, len(names)), trace, run)


def _refuse_deaf(run: Run) -> None:
    """ValueError where the model hears no sound. Opens no model; whether one that a recipe opens hears, its ``ask`` says."""
    from unmask.pipeline.loading import Format, format_in, resolve
    from unmask.pipeline.recipe_models import recipe_in

    folder = resolve(run.model, download=run.download)
    if format_in(folder) is not Format.DIFFA and not recipe_in(folder):
        raise ValueError(_deaf(run))


def _deaf(run: Run) -> str:
    return f"{run.model} hears no sound; leave out --audio, or use a DIFFA model"


def _refuse_model(run: Run, names: Sequence[str], question: str, plain: bool) -> None:
    """ValueError where the model needs a picture and there is none, or the other way round. Opens no model."""
    reads = run.reads_pictures()
    if reads is None:  # a recipe opens the model, and the model says it
        return
    if reads and not names:
        raise ValueError(
            f'the picture is missing, and {run.model} answers questions about pictures; unmask ask PICTURE "{question}"'
        )
    if reads and plain:
        raise ValueError(f"--plain is for text models, and {run.model} reads pictures; leave out --plain")
    if names and not reads:
        raise ValueError(f"{run.model} is a text model and cannot read pictures; leave out {names[0]}")


def _show_answers(answers: Iterable[tuple[str, Answer]], count: int, trace: Path | None, run: Run) -> None:
    """Print answers as they come: one alone as it is, of several one line each."""
    for i, (name, answer) in enumerate(answers):
        if trace is not None:
            saved = save_text(numbered(trace, i, count), "\n".join(answer.trace) + "\n")
            news(f"trace: {saved}")
        warn(answer.warnings if i == 0 else ())
        tell_approximate(answer.approximate if i == 0 else ())
        if count == 1:
            print_json(answer.to_json()) if run.json else click.echo(answer.text)
        elif run.json:
            print_line({"image": name, **answer.to_json()})
        else:
            click.echo(f"{name}\t{' '.join(answer.text.split())}")


def _form(schema: str | None, regex: str | None) -> AnswerFormat | None:
    """The format that the answer is constrained to; None: free text."""
    if schema is None and regex is None:
        return None
    if schema is not None and regex is not None:
        raise click.UsageError("give either --schema or --regex")
    from unmask.grammars.answer_format import of_regex, of_schema

    if schema is None:
        return of_regex(regex or "")
    path = Path(schema)
    inline = schema.lstrip()[:1] in ("{", "[", '"', "") or (schema in ("true", "false", "null") and not path.exists())
    return of_schema(schema if inline else path.read_bytes())


@click.command(cls=OrderedHelp, first=("out", "steps", "seed", "model"))
@click.argument("words", metavar="IMAGE... PHRASE...", nargs=-1, required=True)
@click.option(
    "--steps",
    type=click.IntRange(1, 4),
    metavar="N",
    help="Steps for the four coordinates of a box, 1 to 4.  [default: 1]",
)
@click.option(
    "--separately",
    is_flag=True,
    help="One prompt per phrase. Changes the boxes of released models, whose phrases otherwise attend to each other.",
)
@path_option("--out", tuple(WRITABLE), "Save the picture with the boxes drawn in.")
@model_options
def ground(run: Run, words: tuple[str, ...], steps: int | None, separately: bool, out: Path | None) -> None:
    """Find objects in pictures and draw boxes around them.

    Prints one line per phrase: x1, y1, x2, y2 in pixels of the picture, and the phrase; of several pictures the file comes first, and
    --json prints one JSON object per picture and line. IMAGE is a file, a pattern such as '*.png', or - for stdin.

    \b
    Examples:
      unmask ground apple.png "the cat"
      unmask ground apple.png "the red apple" "the cat" --out boxes.png
      unmask ground apple.png "the cat" --steps 4 --json
      unmask ground *.png "the cat"
    """
    names, phrases = pictures_and_phrases(words, "unmask ground")
    refuse_stdout(out, count=len(names), as_json=run.json)
    pictures = read_pictures(names)
    model = run.open("ground")
    for i, (name, picture) in enumerate(pictures):
        found = model.ground(picture, phrases, separately=separately, steps=steps, seed=run.seed, settings=run.settings)
        warn(found.warnings if i == 0 else ())
        saved = None
        if out is not None:
            boxed = draw_boxes(picture, [(b.phrase, b.corners) for b in found.boxes])
            saved = write_picture(boxed, out if out == STDOUT else numbered(out, i, len(names)))
        if saved is not None and saved != STDOUT:
            news(f"boxes drawn: {saved}")
        _show_boxes(found, name if len(names) > 1 else "", saved, run)


def _show_boxes(found: Grounding, name: str, saved: Path | None, run: Run) -> None:
    """Print the boxes of a picture; to stderr where the picture with its boxes is on stdout."""
    if run.json:
        record = {**found.to_json(), "file": str(saved) if saved else None}
        print_line({"image": name, **record}) if name else print_json(record)
        return
    for b in found.boxes:
        row = f"{b.x1:.1f}\t{b.y1:.1f}\t{b.x2:.1f}\t{b.y2:.1f}\t{b.phrase}"
        click.echo(f"{name}\t{row}" if name else row, err=saved == STDOUT)
