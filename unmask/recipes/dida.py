"""DiDA: a causal image-token model becomes one that draws a picture in a few forwards (``methods.dida``).

    unmask train image_tokens.causal --out runs/causal
    unmask train dida.adapt --model runs/causal --out runs/dida
    unmask generate "a blue cat on a white background" --model runs/dida --steps 8

``--data`` adapts on your own captions. The pictures are drawn by the causal model itself (``-o pictures=own``, as in the paper), or are
those of the data (``-o pictures=data``). The model keeps its size, its files and its text.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from unmask.checkpoints.store import read_tensors, save_tensors
from unmask.corruption.absorbing import Absorbing
from unmask.evaluation.demonstration import Demonstration, Findings, Media, Plot, Table, Work
from unmask.evaluation.metrics import Figure, average, over_seeds
from unmask.evaluation.pairs import places, right
from unmask.methods.dida import Adaptation, Anchored, AnchorFirst, Late, TwoCopies, canvas, two_copies
from unmask.methods.dida import causal as as_causal
from unmask.models.elastic import Elastic, init
from unmask.pipeline import image_tokens
from unmask.pipeline.image_tokens import Kit
from unmask.recipe import Optim, Recipe
from unmask.recipes.image_tokens import (
    PAIRS,
    PROMPT,
    Coded,
    CodedRows,
    causal,
    model_of,
    open_as,
    own,
    training,
    world,
    world_judge,
)
from unmask.rng import generator
from unmask.sampling.sampler import Sampler
from unmask.sampling.selection import Confident
from unmask.sampling.temperature import Linear
from unmask.sampling.token_sampler import Categorical
from unmask.sequence import Sequence, collate
from unmask.tasks.image_tokens import code_by_code
from unmask.tasks.parts import Parts
from unmask.tokens.image_tokens import drawn

DIDA = "dida.adapt"
PICTURES = ("own", "data")
_BATCH = 64  # pictures that are drawn together


def parallel(tokens: Parts) -> Sampler:
    """The sampler of an adapted model: one code that says much about the picture, then the most confident ones, ever colder."""
    return Sampler(
        schedule=AnchorFirst(steps=8),
        token_sampler=Categorical(temperature=Linear(start=0.8, end=0.2)),
        selection=Anchored(selection=Confident()),
    )


def adapt(
    model: str = "",
    data: str = "",
    pictures: str = "own",
    count: int = 2000,
    leak: int = 0,
    batch: int = 16,
    steps: int = 1000,
    lr: float = 5e-3,
    scratch: int = 0,
    seed: int = 0,
    folder: str = "",
) -> Recipe:
    """A causal image-token model adapted to parallel blocks.

    ``model``: a folder of a causal image-token model · ``data``: your own captions and pictures; "": the small world · ``pictures``: own,
    drawn by the causal model, or those of the data · ``count``: how many are drawn · ``leak``: 1 for the mask that lets a noisy picture
    read its clean copy, as a negative control · ``scratch``: 1 to start from random weights, for comparison.
    """
    if pictures not in PICTURES:
        raise ValueError(f"pictures {pictures!r} is unknown; choose from {', '.join(PICTURES)}")

    def rows() -> Coded:
        kit = start(model)[1]
        given = own(data, kit) if data else world(count, seed)
        return drawn_by(model, given, count, seed, folder) if pictures == "own" else given

    def row(text: str, codes: Tensor) -> Sequence:
        made = drawn(start(model)[1].text, text, codes)
        # Nothing is learned from a last picture's clean copy, which only later tokens read.
        return two_copies(made, leak=True) if leak else canvas(made)

    def network() -> Elastic:
        net = image_tokens.opened(_named(model))[0]
        if scratch:
            init(net, generator("dida from scratch", seed))
        return net

    return Recipe(
        name=DIDA,
        model=network,
        source=CodedRows(data=lru_cache(maxsize=1)(rows), row=row, seed=seed, batch=batch),
        objective=Adaptation(corruption=TwoCopies(corruption=Absorbing(otherwise=Late(power=1.5))), dropouts=(PROMPT,)),
        optim=Optim(lr=lr, warmup=30, decay_from=0.3, floor=0.05, ema=0.99),
        training=training(steps, seed),
        export=lambda module, folder: image_tokens.write_folder(folder, module, module.config, start(model)[1], DIDA),
        open=partial(open_as, arrange=canvas, sampler=parallel),
    )


@lru_cache(maxsize=2)
def start(model: str) -> tuple[Elastic, Kit]:
    """The causal model that is adapted. ValueError without one, and for a network that is not causal."""
    net, kit = image_tokens.opened(_named(model))
    if not net.config.shifted:
        raise ValueError(
            f"{model} does not predict the next token, so it is not a causal model; give one, or train image_tokens.causal"
        )
    return net, kit


def _named(model: str) -> Path:
    if not model:
        raise ValueError("give the causal model to adapt: --model FOLDER; `unmask train image_tokens.causal` makes one")
    return Path(model)


def drawn_by(model: str, given: Coded, count: int, seed: int, folder: str) -> Coded:
    """``count`` pictures that the causal model draws of the captions, in turn. ``folder``: keeps them for a resumed run."""
    texts = tuple(given.texts[i % len(given.texts)] for i in range(count))
    place = Path(folder) if folder else None
    if place and (place / "own.safetensors").exists():
        return Coded(texts=texts, codes=read_tensors(place, "own")["codes"])
    net, kit = start(model)
    codes = draw(net, kit, texts, code_by_code, as_causal, seed=seed)
    if place:
        save_tensors({"codes": codes}, place, name="own", shard=2**40)
    return Coded(texts=texts, codes=codes)


def draw(
    net: Elastic,
    kit: Kit,
    texts: tuple[str, ...],
    sampler: Callable[[Parts], Sampler],
    arrange: Callable[[Sequence], Sequence],
    *,
    seed: int,
) -> Tensor:
    """Codes of a picture for each text, [N, h, w]; picture i has the seed ``seed`` + i."""
    chosen, codes = sampler(model_of(net, kit, arrange, sampler).parts), []
    net.eval()
    for first in range(0, len(texts), _BATCH):
        rows = [arrange(drawn(kit.text, text, kit.grid)) for text in texts[first : first + _BATCH]]
        batch = collate(rows, range(seed + first, seed + first + len(rows)))
        done = chosen.sample(net, batch)
        at = [row.span("image") for row in rows]
        codes += [done.ids[i, span.start : span.stop].view(kit.grid) for i, span in enumerate(at)]
    return torch.stack(codes)


# -- the demonstration -------------------------------------------------------------------------------------------------

FEW, CODES = 3, 64  # forwards of the headline, and of the causal model for a picture of the small world
_STEPS = (1, 2, 3, 4, 8, 16)
_CAUSAL, _LONGER, _PLAIN = "causal", "causal, trained on", "not adapted"
_OWN, _REAL, _SCRATCH, _LEAK = "own pictures", "real pictures", "from scratch", "leak"
_ARMS = (_CAUSAL, _LONGER, _PLAIN, _OWN, _REAL, _SCRATCH, _LEAK)
_ONCE = (_REAL, _SCRATCH, _LEAK)  # controls, of the first seed alone
_FIRST, _MORE, _BATCH_ROWS, _DRAWN, _PICTURES, _SHOWN = 300, 800, 16, 900, 96, 4
_SEED = 77  # of the prompts


def demo(work: Work) -> Findings:
    """A causal model, the same trained on or drawn in parallel as it is, and four adaptations, at 1 to 64 forwards a picture."""
    found: dict[str, dict[int, dict[str, dict[str, float]]]] = {arm: {} for arm in _ARMS}
    for seed in work.seeds:
        for arm in _ARMS:
            if arm not in _ONCE or seed == work.seeds[0]:
                found[arm][seed] = _scores(work, arm, seed)

    def over(arm: str, steps: int, value: str = "right") -> Figure:
        return over_seeds([one[str(steps)][value] for one in found[arm].values()])

    def gain(arm: str, than: str, steps: int, others: int) -> Figure:
        both = [(found[arm][s][str(steps)]["right"], found[than][s][str(others)]["right"]) for s in work.seeds]
        return over_seeds([a - b for a, b in both])

    forwards = {arm: (CODES,) if arm in (_CAUSAL, _LONGER) else _STEPS for arm in _ARMS}
    best, cost, adapted = over(_OWN, FEW), gain(_OWN, _LONGER, FEW, CODES), gain(_OWN, _PLAIN, 8, 8)
    rows = tuple(
        (arm, n, over(arm, n), over(arm, n, "places"), over(arm, n, "seconds")) for arm in _ARMS for n in forwards[arm]
    )
    curves = {arm: [(n, over(arm, n)) for n in forwards[arm]] for arm in _ARMS}
    return Findings(
        about=_about(work),
        verdict=f"With {FEW} forwards a picture instead of {CODES}, {best['value']:.3f} of the pictures are right, "
        f"{cost['value']:+.3f} against the causal model at equal training compute; at 8 forwards the adaptation gains "
        f"{adapted['value']:+.3f} over the causal model drawn in parallel.",
        seen=adapted["low"] is not None and adapted["low"] > 0,
        figures={
            "right.few": best,
            "right.causal": over(_LONGER, CODES),
            "cost.few": cost,
            "cost.16": gain(_OWN, _LONGER, 16, CODES),
            "adapted.8": adapted,
        },
        shown=(
            Table(
                title="Right pictures", head=("arm", "forwards", "right", "places of 9", "CPU s a picture"), rows=rows
            ),
            Plot(title="Right pictures", across="forwards a picture", up="right", lines=curves, log=True),
            Media(title="Pictures of the first prompts, first seed", items=_drawn(work)),
        ),
    )


def _about(work: Work) -> str:
    prompts = work.steps(_PICTURES, least=2)
    return (
        f"A causal model of {CODES} codes a picture, trained on captions and pictures of the small world, is adapted to parallel blocks. "
        f"The detector judges whether its pictures of {prompts} prompts show the object in its colour. Baseline at equal training "
        "compute: the causal model trained on for as many steps, which takes one forward for each code. Baseline at equal forwards: the "
        "causal model drawn in parallel without adaptation. Controls of one seed: adaptation on real pictures, from random weights, "
        "and with the mask that leaks (a quarter of the steps). Means over seeds with Student's interval. Places: how many of the nine "
        "places of an object are used, so that no arm wins by drawing the same picture again."
    )


def _net(work: Work, arm: str, seed: int) -> tuple[Elastic, Kit]:
    """The trained network of an arm."""
    name = f"causal-{seed}"
    steps, more, count = work.steps(_FIRST, least=2), work.steps(_MORE, least=2), work.steps(_DRAWN, least=8)
    work.train(name, causal(steps=steps, pictures=count, seed=seed))
    base = str(work.out / "trained" / name)
    if arm in (_CAUSAL, _PLAIN):
        return start(base)
    if arm == _LONGER:
        longer = replace(
            causal(steps=more, pictures=count, seed=seed), model=lambda: image_tokens.opened(Path(base))[0]
        )
        net = work.train(f"longer-{seed}", longer)
    else:
        kept = f"{arm.partition(' ')[0]}-{seed}"
        fields = {
            "pictures": "own" if arm == _OWN else "data",
            "leak": int(arm == _LEAK),
            "scratch": int(arm == _SCRATCH),
        }
        folder = work.out / "trained" / f"drawn-{seed}"
        more = max(2, more // 4) if arm == _LEAK else more  # its loss is almost 0 by then
        recipe = adapt(model=base, count=count, steps=more, batch=_BATCH_ROWS, seed=seed, folder=str(folder), **fields)  # type: ignore[arg-type]
        net = work.train(kept, recipe)
    assert isinstance(net, Elastic)
    return net, start(base)[1]


def _scores(work: Work, arm: str, seed: int) -> dict[str, dict[str, float]]:
    """By number of forwards: the share of right pictures, the places that they use, CPU seconds a picture."""
    return work.once(f"{arm.partition(' ')[0].rstrip(',')}-{len(arm)}-{seed}", lambda: _measured(work, arm, seed))


def _measured(work: Work, arm: str, seed: int) -> dict[str, dict[str, float]]:
    net, kit = _net(work, arm, seed)
    pairs = [PAIRS(_SEED, i) for i in range(work.steps(_PICTURES, least=2))]
    judge = world_judge()
    found = {}
    for steps in (CODES,) if arm in (_CAUSAL, _LONGER) else _STEPS:
        began = time.process_time()
        codes = _few(net, kit, tuple(p.text for p in pairs), steps)
        seconds = (time.process_time() - began) / len(pairs)
        seen = judge(codes)
        found[str(steps)] = {
            "right": float(average(right(seen, pairs))["value"]),
            "places": places(seen),
            "seconds": seconds,
        }
    return found


def _few(net: Elastic, kit: Kit, texts: tuple[str, ...], steps: int) -> Tensor:
    """Codes in so many forwards; ``CODES`` of them are the causal model's."""
    if steps == CODES:
        return draw(net, kit, texts, code_by_code, as_causal, seed=0)
    return draw(
        net, kit, texts, lambda tokens: replace(parallel(tokens), schedule=AnchorFirst(steps=steps)), canvas, seed=0
    )


def _drawn(work: Work) -> tuple[tuple[str, Image.Image], ...]:
    """Pictures of the first prompts by the causal model and by its adaptation."""
    items = []
    texts = tuple(PAIRS(_SEED, i).text for i in range(_SHOWN))
    for arm, steps in ((_LONGER, CODES), (_OWN, FEW), (_OWN, 8), (_SCRATCH, FEW)):
        net, kit = _net(work, arm, work.seeds[0])
        images = kit.decode(_few(net, kit, texts, steps))
        items += [(f"{arm}, {steps} forwards: {text}", image) for text, image in zip(texts, images, strict=True)]
    return tuple(items)


DEMO = Demonstration(minutes=10, run=demo)
