"""The demonstration of DEEM: what a frozen drawing network's feedback makes a small vision encoder keep.

    unmask methods run deem
    unmask train deem.generator --out runs/drawer                      a generator; with -o data=FOLDER of your own pictures with texts
    unmask train deem.eyes -o drawer=runs/drawer --out runs/eyes       an encoder with its feedback

The generator draws pictures of the small world from captions and is frozen. The encoder has learned one thing, which objects a picture
shows, and trains on with that loss alone or with the feedback as well, where its tokens stand in the place of the generator's captions.
Equal updates and batches in every arm; a random frozen generator is the control. The paper's middle times leave enough codes of a masked
picture to see where things are; a second arm masks nearly all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from random import Random

import torch
from torch import Tensor, nn

from unmask.corruption.absorbing import Absorbing
from unmask.corruption.schedules import Between
from unmask.evaluation.demonstration import Demonstration, Findings, Table, Work, place
from unmask.evaluation.metrics import Figure, over_seeds
from unmask.json_types import Json
from unmask.methods.deem import CodeFeedback, WithFeedback
from unmask.models.elastic import Elastic, init
from unmask.objectives.masked import Dropout, Masked
from unmask.pipeline import image_tokens
from unmask.pipeline.image_tokens import trunk
from unmask.recipe import Optim, Recipe
from unmask.recipes.image_tokens import Coded, CodedRows, guided, mini_kit, model_of, own, training
from unmask.recipes.kontext_rows import codes_of, small_kit
from unmask.recipes.seeing import (
    PROBES,
    TOKENS,
    WIDTH,
    WORLD,
    Eyes,
    Looks,
    Pictures,
    Tokens,
    naming,
    probe,
    reader,
    seen,
    shown_in,
    with_distractors,
)
from unmask.rng import generator as numbers
from unmask.rng import seeded
from unmask.sequence import Batch, Kind, Sequence, Span, collate
from unmask.step import Loss
from unmask.tokens.image_tokens import drawn
from unmask.tokens.text import BOS, EOT, MASK

GENERATOR = "deem.generator"


# -- the frozen generator ----------------------------------------------------------------------------------------------


def generator(
    data: str = "", layers: int = 3, pictures: int = 3000, steps: int = 900, lr: float = 4e-3, seed: int = 0
) -> Recipe:
    """A network that draws pictures of captions. ``data``: your own; "": ``pictures`` of one or two objects with their places."""
    kit = mini_kit if data else partial(small_kit, WORLD)

    def network() -> Elastic:
        size = replace(trunk(kit(), width=WIDTH, layers=layers), shifted=False)
        net = Elastic(size, mask_id=kit().text[MASK])
        init(net, numbers("deem generator", seed))
        return net

    return Recipe(
        name=GENERATOR,
        model=network,
        source=CodedRows(
            data=lambda: own(data, kit()) if data else captioned(pictures, seed),
            row=lambda text, codes: drawn(kit().text, text, codes),
            seed=seed,
            batch=16,
        ),
        objective=Masked(dropouts=(Dropout(spans=frozenset({"prompt"}), rate=0.1),)),
        optim=Optim(lr=lr, warmup=50, decay_from=0.3, floor=0.05, ema=0.99),
        training=training(steps, seed),
        export=lambda module, folder: image_tokens.write_folder(folder, module, module.config, kit(), GENERATOR),
        open=lambda folder, device: model_of(*image_tokens.opened(folder, device), lambda row: row, guided),
    )


@lru_cache(maxsize=2)
def captioned(count: int, seed: int) -> Coded:
    """Pictures of one or two objects, whose texts say where they are."""
    pairs = [WORLD(seed, i) for i in range(count)]
    return Coded(texts=tuple(pair.text for pair in pairs), codes=codes_of([pair.scene for pair in pairs], WORLD))


# -- the encoder -------------------------------------------------------------------------------------------------------


def conditioned(model: nn.Module, batch: Pictures) -> Batch:
    """Rows of the generator with the encoder's tokens in the place of a caption."""
    rows = collate([_row(codes) for codes in batch.codes], range(batch.rows))
    return rows.replace(features=model(batch.pixels).flatten(0, 1))


def _row(codes: Tensor) -> Sequence:
    """As ``drawn`` with a caption of ``TOKENS`` tokens, which are features."""
    text = small_kit(WORLD).text
    bare = drawn(text, "", codes)
    begin, image, end = (bare.span(name) for name in ("begin", "image", "end"))
    first, behind = torch.tensor([text[BOS]]), torch.tensor([text[EOT]])
    ids = torch.cat([first, torch.zeros(TOKENS, dtype=torch.long), behind, bare.ids[begin.start :]])
    moved = TOKENS + 2 - begin.start
    spans = (
        Span(name="before", kind=Kind.TEXT, start=0, stop=1),
        Span(name="prompt", kind=Kind.FEATURE, start=1, stop=TOKENS + 1),
        Span(name="behind", kind=Kind.TEXT, start=TOKENS + 1, stop=TOKENS + 2),
        *(replace(span, start=span.start + moved, stop=span.stop + moved) for span in (begin, image, end)),
    )
    masked = torch.zeros(len(ids), dtype=torch.bool)
    return Sequence(ids=ids, masked=masked, spans=spans, feature_rows=TOKENS)


def eyes(
    drawer: str = "",
    steps: int = 500,
    images: int = 3000,
    lr: float = 1e-3,
    seed: int = 0,
    weight: float = 5.0,
    least: float = 0.2,
    most: float = 0.8,
    frozen: Elastic | None = None,
    start: Eyes | None = None,
) -> Recipe:
    """The encoder. ``drawer``: the folder of a ``generator`` of the small world · ``weight``: of the feedback, 0 for none · ``least``,
    ``most``: times at which codes are masked · ``frozen``: the generator itself instead of a folder · ``start``: an encoder to train on,
    whose weights are copied.
    """
    if weight and frozen is None and not drawer:
        raise ValueError("feedback needs a generator; give drawer=FOLDER of a run of deem.generator, or weight=0")

    @lru_cache(maxsize=1)
    def other() -> Elastic:
        return (image_tokens.opened(Path(drawer))[0] if frozen is None else frozen).eval()

    def objective(model: nn.Module, batch: Pictures, rng: torch.Generator) -> Loss:
        if not weight:
            return naming(model, batch, rng)
        masked = Masked(corruption=Absorbing(otherwise=Between(low=least, high=most)))
        feedback = CodeFeedback(generator=other(), conditioned=conditioned, masked=masked)
        return WithFeedback(objective=naming, feedback=feedback, weight=weight)(model, batch, rng)

    def network() -> Eyes:
        made = seeded(Eyes, seed)
        if start is not None:
            made.load_state_dict(start.state_dict())
        return made

    return Recipe(
        name="deem.eyes",
        model=network,
        source=Looks(count=images, seed=seed),
        objective=objective,
        optim=Optim(lr=lr, warmup=20, decay_from=0.5, floor=0.05, ema=0.99),
        training=training(steps, seed),
    )


# -- the demonstration -------------------------------------------------------------------------------------------------

_PRETRAIN, _STEPS, _GENERATOR, _READER, _IMAGES, _TESTED = 200, 250, 600, 300, 2000, 300
_TIMES, _LATE = (0.2, 0.8), (0.8, 1.0)
ARMS: Mapping[str, tuple[str, tuple[float, float]]] = {  # generator, and times at which codes are masked
    "classes alone": ("", _TIMES),
    "feedback": ("trained", _TIMES),
    "feedback, times .8 to 1": ("trained", _LATE),
    "feedback of a random generator, times .8 to 1": ("random", _LATE),
}
BASE, METHOD, LATE, CONTROL = ARMS


def demo(work: Work) -> Findings:
    """Each arm of each seed: probes, answers without and with distractors, and what an update costs."""
    return _findings(work.each(ARMS, partial(_measured, work), "encoders"), work)


def _generator(work: Work) -> Elastic:
    size = {"pictures": work.steps(_IMAGES, least=16), "steps": work.steps(_GENERATOR, least=2)}
    made = work.train("generator", generator(**size))
    assert isinstance(made, Elastic)
    return made


def _random(seed: int) -> Elastic:
    made = generator(seed=1000 + seed).model()
    assert isinstance(made, Elastic)
    return made


def _eyes(work: Work, name: str, seed: int) -> tuple[Eyes, float]:
    """The encoder of an arm, and the seconds of an update; 0 where the run is older."""
    images = work.steps(_IMAGES, least=16)
    first = work.train(f"start/{seed}", eyes("", work.steps(_PRETRAIN, least=2), images, seed=seed, weight=0.0))
    assert isinstance(first, Eyes)
    (which, (least, most)), steps = ARMS[name], work.steps(_STEPS, least=2)
    frozen = {"": lambda: None, "trained": partial(_generator, work), "random": partial(_random, seed)}[which]()
    recipe = eyes(
        "",
        steps,
        images,
        seed=seed + 10,
        weight=5.0 if which else 0.0,
        least=least,
        most=most,
        frozen=frozen,
        start=first,
    )
    begun = time.process_time()
    net = work.train(place(name, seed), recipe)
    assert isinstance(net, Eyes)
    return net, (time.process_time() - begun) / steps


def _measured(work: Work, name: str, seed: int) -> Json:
    net, cost = _eyes(work, name, seed)
    count, tested = work.steps(_IMAGES, least=16), work.steps(_TESTED, least=12)
    rng = Random(f"deem distractors {seed}")
    fitted = seen(net, [WORLD(seed, i).scene for i in range(count)])
    scenes = [scene for i in range(2 * tested) if len((scene := WORLD(77, i, "test").scene).objects) > 1]
    plain, hard = seen(net, scenes), seen(net, [with_distractors(scene, rng) for scene in scenes])
    every = [WORLD(78, i, "test") for i in range(tested)]
    asks = work.train(f"{place(name, seed)}/reader", reader(fitted, work.steps(_READER, least=2), seed))
    mixed = seen(net, [pair.scene for pair in every])
    with torch.no_grad():
        named = (net.named(mixed.tokens) > 0) == shown_in(every)
    answered = {"plain": _answered(asks, plain), "distractors": _answered(asks, hard)}
    return {
        "probe": probe(fitted, mixed),
        "answers": answered,
        "classes": float(named.all(1).float().mean()),
        "seconds": cost,
    }


@torch.no_grad()
def _answered(asks: nn.Module, tokens: Tokens) -> float:
    picture, question, answer = tokens.asked
    return float((asks(tokens.tokens[picture], question).argmax(1) == answer).float().mean())


def _findings(found: dict[str, list[Json]], work: Work) -> Findings:
    from unmask.evaluation.demonstration_page import said

    def of(name: str, read: Callable[[Json], float], unit: str = "share") -> Figure:
        return over_seeds([read(one) for one in found[name]], unit=unit)

    def gain(name: str, other: str, read: Callable[[Json], float]) -> Figure:
        return over_seeds([read(a) - read(b) for a, b in zip(found[name], found[other], strict=True)])

    reads: dict[str, Callable[[Json], float]] = {
        **{f"probe.{kind}": partial(_at, "probe", kind) for kind in PROBES},
        **{f"answers.{kind}": partial(_at, "answers", kind) for kind in ("plain", "distractors")},
        "classes": lambda one: one["classes"],
    }
    gains = {name: gain(LATE, BASE, read) for name, read in reads.items()}
    hard, spot = gains["answers.distractors"], gains["probe.place"]
    over_random = gain(LATE, CONTROL, reads["answers.distractors"])
    heads = ("probe: place", "probe: colour", "probe: number", "answers", "answers, distractors", "classes")
    return Findings(
        about="Pictures of one or two objects of four classes in four colours at nine places. The encoder learned classes for "
        f"{work.steps(_PRETRAIN, least=2)} updates and trains on for {work.steps(_STEPS, least=2)}, {len(work.seeds)} seeds. Probes are "
        "linear maps of the tokens; a small reader of frozen tokens tells where an object is and what colour it has. Test pictures "
        "have captions that no training picture has; distractors are small objects of other classes, on which nothing was trained.",
        verdict=f"At equal updates feedback at times .8 to 1 changes the probe of places by {said(spot)} and answers on pictures with "
        f"distractors by {said(hard)}, {said(over_random)} over a random generator's; at the paper's times the probe of places gains "
        f"{said(gain(METHOD, BASE, reads['probe.place']))}, for what is not masked shows them.",
        seen=all(one["low"] is not None and one["low"] > 0 for one in (hard, spot)),
        figures={f"late.gain.{name}": one for name, one in gains.items()}
        | {f"gain.{name}": gain(METHOD, BASE, read) for name, read in reads.items()}
        | {"late.over_random.answers.distractors": over_random}
        | {"late.over_random.probe.place": gain(LATE, CONTROL, reads["probe.place"])},
        shown=(
            Table(
                title="What the tokens tell",
                head=("trained on", *heads, "ms an update"),
                rows=tuple(
                    (
                        name,
                        *(of(name, read) for read in reads.values()),
                        of(name, lambda one: 1000 * one["seconds"], "ms"),
                    )
                    for name in ARMS
                ),
                note="Probes: explained variance of covered sixteenths, shown colours and the number of objects; 0 is chance. "
                "Answers: of pictures of two objects. Classes: pictures whose classes are all named. Time: of the CPU.",
            ),
        ),
    )


def _at(part: str, kind: str, one: Json) -> float:
    return float(one[part][kind])


DEMO = Demonstration(minutes=6, run=demo)
