"""What texts and boxes cost, compared with the same work without the caches.

    python bench/text.py --threads 1 --record
    python bench/text.py --only answers,boxes --width 768 --layers 8 --dtype bfloat16

``mini``: every text task of the embedded model, with its prompt cache and with none; the results must be equal. ``answers``: a random
network of the released proportions (vocabulary 127,378, a picture of 871 tokens): seconds of a step of an answer in blocks of 16 behind
a cached prompt, as published, beside full attention, which computes everything at every step. A whole answer is the first step and so
many others; the steps after the first ``--steps`` are not run. ``canvases``: answers that grow by ``--canvas`` tokens. ``boxes``: several
phrases in one prompt beside one prompt for each.
All pairs take turns.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from speed import HISTORY, INSTRUCTION, PHRASE, PROMPT, QUESTION, Effort, scene_of
from tokenizers import Tokenizer, models, pre_tokenizers

import unmask
from unmask.data.world.render import render
from unmask.evaluation.history import Line, append
from unmask.models.elastic import Elastic, init
from unmask.models.sizes import ElasticConfig, VisionConfig
from unmask.pipeline.model import Model
from unmask.rng import generator
from unmask.sampling.blocks import Blocks
from unmask.sampling.cache import NoCache
from unmask.sequence import collate
from unmask.tasks import reflecting, released, revising
from unmask.tasks.conversing import Message
from unmask.tasks.ground import Ground
from unmask.tasks.parts import Parts
from unmask.tasks.understand import Ask
from unmask.tokens.prompts import RELEASED
from unmask.tokens.text import CONTROL, MASK, Text
from unmask.tokens.vq import VQ, VQConfig

PHRASES = (PHRASE, "the red apple", "the dog", "a blue car", "the tree", "a white bird", "the house", "two clocks")
BLOCK = 16


def mini(given: argparse.Namespace) -> list[Line]:
    """Every text task of the embedded model, cached beside not cached."""
    model = unmask.load("mini")
    assert isinstance(model, Model)
    plain = model.with_sampler(lambda sampler: replace(sampler, cache=NoCache()))
    image = Image.fromarray(render(scene_of(0), 128))
    tasks: dict[str, Callable[[Model], object]] = {
        "answer": lambda m: m.ask(image, QUESTION).text,
        "describe": lambda m: m.describe(image).text,
        "box": lambda m: m.ground(image, [PHRASE]).boxes,
        "boxes4": lambda m: m.ground(image, PHRASES[:4]).boxes,
        "boxes4_steps4": lambda m: m.ground(image, PHRASES[:4], steps=4).boxes,
        "plan": lambda m: reflecting.layouts(m, [PROMPT], [0], None),
        "plan_edit": lambda m: revising.layouts(m, [(m.parts.image_views(image), INSTRUCTION)], [0]),
        "critique": lambda m: reflecting.criticise(m, [PROMPT], [image]),
        "turn": lambda m: m.converse([Message(role="user", text=QUESTION, images=(image,))]).text,
    }
    lines = []
    for name, task in tasks.items():
        if task(model) != task(plain):
            raise ValueError(f"{name} differs with and without the cache")
        cached, not_cached = timed([partial(task, model), partial(task, plain)], given)
        lines.append(beside(f"text.mini.{name}", cached, not_cached))
    return lines


def answers(given: argparse.Namespace) -> list[Line]:
    """Answers of a network of the released proportions: the first step, the others, and a whole answer of so many tokens."""
    cached = network(given)
    full = Model(replace(cached.parts, quirks=replace(cached.parts.quirks, prefix_lm=False)), cached.presets)
    lines = []
    for length in given.lengths:
        kept = [[], []]
        for _ in range(given.effort.warm + given.effort.repeats):
            for times, model in zip(kept, (cached, full), strict=True):
                times.append(steps_of(model, length, given))
        (first, later), (slow_first, slow_later) = (
            [statistics.median(column) for column in zip(*times[given.effort.warm :], strict=True)] for times in kept
        )
        whole, slow = first + (length - 1) * later, slow_first + (length - 1) * slow_later
        more = {"first_s": first, "step_s": later, "slow_first_s": slow_first, "slow_step_s": slow_later}
        line = beside(f"text.released.answer{length}", whole, slow)
        lines.append(replace(line, more={**(line.more or {}), **more, **about(given)}))
    return lines


def canvases(given: argparse.Namespace) -> list[Line]:
    """The same answers in canvases of ``--canvas`` tokens, which do not read later ones, beside one canvas (extrapolated)."""
    model, lines = network(given), []
    for length in [n for n in given.lengths if n > given.canvas]:
        grown, one = [], []
        for _ in range(given.effort.warm + given.effort.repeats):
            one.append(steps_of(model, length, given))
            began = given.clock()
            model.ask(picture(), QUESTION, length=given.canvas, max_tokens=length, settings=[f"blocks.length={BLOCK}"])
            grown.append(given.clock() - began)
        kept = slice(given.effort.warm, None)
        first, later = (statistics.median(column) for column in zip(*one[kept], strict=True))
        line = beside(f"text.released.canvases{length}", statistics.median(grown[kept]), first + (length - 1) * later)
        lines.append(replace(line, more={**(line.more or {}), "canvas": given.canvas, **about(given)}))
    return lines


def steps_of(model: Model, length: int, given: argparse.Namespace) -> tuple[float, float]:
    """Seconds of the first step of an answer, and of one of the next ``--steps``."""
    parts = model.parts
    sampler = replace(model.presets.ask(parts), blocks=Blocks(length=BLOCK))
    built = Ask(pixels=parts.image_views(picture()), question=QUESTION, length=length).build(parts)
    run = sampler.start(collate(parts.features.known([built], parts.net, model.device), [0]).to(model.device))
    took = []
    while (query := run.query) is not None and len(took) <= given.steps:
        began = given.clock()
        with torch.no_grad():
            run.advance(parts.net(query.batch, predict=query.predict, reuse=query.reuse))
        took.append(given.clock() - began)
    return took[0], statistics.mean(took[1:])


def boxes(given: argparse.Namespace) -> list[Line]:
    """Boxes of a network of the released proportions, all phrases in one prompt beside one prompt for each."""
    model, lines = network(given), []
    parts, sampler = model.parts, model.presets.ground(model.parts, 1)

    def find(turns: list[tuple[str, ...]]) -> None:
        built = [Ground(pixels=parts.image_views(picture()), phrases=turn).build(parts) for turn in turns]
        model.run(built, [0] * len(built), sampler)

    for count in given.phrases:
        some = PHRASES[:count]
        together, apart = timed([partial(find, [some]), partial(find, [(p,) for p in some])], given)
        line = beside(f"text.released.boxes{count}", together, apart)
        lines.append(replace(line, more={**(line.more or {}), **about(given)}))
    return lines


def timed(works: list[Callable[[], object]], given: argparse.Namespace) -> list[float]:
    """Median seconds of several pieces of work that take turns."""
    taken: list[list[float]] = [[] for _ in works]
    for number in range(given.effort.warm + given.effort.repeats):
        for work, times in zip(works, taken, strict=True):
            began = given.clock()
            work()
            if number >= given.effort.warm:
                times.append(given.clock() - began)
    return [statistics.median(times) for times in taken]


def network(given: argparse.Namespace) -> Model:
    """A model in the released layout with random weights, and a tokenizer of one token a word."""
    control = {name: i for i, name in enumerate(("word", *CONTROL))}
    tokenizer = Tokenizer(models.WordLevel(control, unk_token="word"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    text, width = Text(tokenizer), given.width
    config = ElasticConfig(
        width=width,
        heads=max(1, width // 128),
        layers=given.layers,
        mlp=3 * width,
        gen_width=width // 2,
        gen_mlp=2 * width,
        joint_layers=(17 * given.layers + 16) // 32,
        vision=VisionConfig(width=288, layers=6, heads=4, mlp=1152),
    )
    net = Elastic(config, mask_id=text[MASK]).eval()
    init(net, generator("bench text"))
    vq = VQ(VQConfig(block_out_channels=(32,) * 5))
    parts = Parts(text=text, net=net.to(getattr(torch, given.dtype)), vq=vq, wording=RELEASED, side=1024, fold=2)
    return Model(released.published(parts, {}), released.PRESETS)


def picture() -> Image.Image:
    return Image.new("RGB", (768, 768), (90, 120, 40))


def show(lines: list[Line]) -> None:
    for line in lines:
        more = {k: f"{v:.4g}" if isinstance(v, float) else v for k, v in (line.more or {}).items()}
        print(f"{line.name:28} {line.value:9.4g} s  {' '.join(f'{k} {v}' for k, v in more.items())}", flush=True)


def beside(name: str, fast: float, slow: float) -> Line:
    return Line(name=name, value=fast, unit="s", more={"slow_s": slow, "ratio": slow / fast})


def about(given: argparse.Namespace) -> dict[str, object]:
    return {"width": given.width, "layers": given.layers, "dtype": given.dtype}


GROUPS = {"mini": mini, "answers": answers, "canvases": canvases, "boxes": boxes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(GROUPS), help="groups to measure")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7, help="turns that each median is over")
    parser.add_argument("--warm", type=int, default=1, help="turns before them that do not count")
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16"])
    parser.add_argument("--lengths", type=int, nargs="*", default=[16, 64, 256], help="tokens of the answers")
    parser.add_argument("--canvas", type=int, default=32, help="tokens of a canvas of a growing answer")
    parser.add_argument("--phrases", type=int, nargs="*", default=[1, 4, 8])
    parser.add_argument("--steps", type=int, default=6, help="steps of an answer that are run after its first")
    parser.add_argument(
        "--cpu-time", action="store_true", help="seconds of this process, for a machine that others use too"
    )
    parser.add_argument("--history", type=Path, default=HISTORY)
    parser.add_argument("--record", action="store_true", help="append the rows to the history")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    given.clock = time.process_time if given.cpu_time else time.perf_counter
    given.effort = Effort(repeats=given.repeats, warm=given.warm)
    for name in given.only.split(","):
        if name not in GROUPS:
            parser.error(f"unknown group {name}; there are {', '.join(GROUPS)}")
        lines = GROUPS[name](given)
        show(lines)
        if given.record:
            append(given.history, lines)


if __name__ == "__main__":
    main()
