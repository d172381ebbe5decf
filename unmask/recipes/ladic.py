"""LaDiC: a captioner that diffuses in the middle layers of a frozen text network, and its demonstration (``methods.ladic``).

    unmask train ladic.captions --out runs/ladic                   captions and pictures of the small world
    unmask train ladic.captions --data pets --out runs/pets        your own: a folder of pictures with texts (docs/data.md)
    python -c "import unmask; print(unmask.load('runs/ladic').describe('a.png'))"
    unmask methods run ladic

The text network, four layers that fill masked words of captions, is trained first and frozen. In the demonstration a masked captioner
reads the same features of the same pictures in as many updates, and both write with as many forwards.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor

from unmask.checkpoints.schema import read_json
from unmask.checkpoints.store import load_module, save_module
from unmask.checkpoints.stream import CheckpointError
from unmask.evaluation.demonstration import Demonstration, Findings, Plot, Table, Work
from unmask.evaluation.demonstration_page import said
from unmask.evaluation.metrics import Figure, over_seeds
from unmask.json_types import Json
from unmask.methods.ladic import (
    BackAndRefine,
    CaptionDiffusion,
    Captions,
    Strided,
    WordLoss,
    collapsed,
    confident,
    sentence,
    wordless,
)
from unmask.recipe import Optim, Recipe, Training
from unmask.recipes.captioning import (
    FIRST,
    LAST,
    PAD,
    STOP,
    Captioned,
    Reads,
    Words,
    features_of,
    masked,
    own,
    true_of,
    world,
    written,
)
from unmask.recipes.in_memory import trained_in_memory
from unmask.recipes.latent_captions import TEXT_STEPS, LatentCaptioner, TextNet, text_recipe
from unmask.rng import generator, seeded
from unmask.sampling.gaussian import guided
from unmask.step import Loss
from unmask.tokens.pictures import read_image
from unmask.tokens.sources import Picture
from unmask.writing import write_text

NAME = "ladic.captions"


def captions(
    data: str = "",
    pictures: int = 800,
    factor: float = 4.0,
    text_steps: int = TEXT_STEPS,
    batch: int = 32,
    steps: int = 400,
    lr: float = 3e-3,
    seed: int = 0,
) -> Recipe:
    """A captioner by diffusion of latents. ``data``: your own captions and pictures; "": ``pictures`` pictures of the small world ·
    ``factor``: of the noise in training · ``text_steps``: of the text network, which is trained before the first step.
    """

    @lru_cache(maxsize=1)
    def found() -> Captioned:
        return own(data) if data else world(pictures, 0)[1]

    @lru_cache(maxsize=1)
    def text() -> TextNet:
        return trained_in_memory(text_recipe(found, text_steps, seed), "ladic text")

    return recipe_of(found, text, factor=factor, batch=batch, steps=steps, lr=lr, seed=seed)


def recipe_of(
    found: Callable[[], Captioned],
    text: Callable[[], TextNet],
    *,
    factor: float,
    steps: int,
    seed: int,
    batch: int = 32,
    lr: float = 3e-3,
) -> Recipe[Any, Any]:
    """As ``captions``, with data and a frozen text network."""

    def network() -> LatentCaptioner:
        made = seeded(lambda: LatentCaptioner(text(), found().features.shape[-1]), seed)
        made.settle(torch.stack([found().words.ids(one) for one in found().texts[:500]]))
        return made

    def rows(step: int) -> Captions:
        chosen = found().some(Random(f"captions/{seed}/{step}"), batch)
        ids = torch.stack([found().words.ids(found().texts[i]) for i in chosen])
        with torch.no_grad():
            return Captions(
                states=text().lower(ids), ids=ids, valid=(ids != PAD).long(), image=found().features[chosen]
            )

    def objective(model: LatentCaptioner, batch: Captions, rng: torch.Generator) -> Loss:
        words = WordLoss(latents=model.latents, decode=model.text.upper, full_stop=STOP, special=(PAD, FIRST, LAST))
        return CaptionDiffusion(words=words, factor=factor)(model, batch, rng)

    return Recipe(
        name=NAME,
        model=network,
        source=rows,
        objective=objective,
        optim=Optim(lr=lr, warmup=50, decay_from=0.4, floor=0.05, ema=0.99),
        training=Training(steps=steps, seed=seed, save_every=400, bf16=False, device="cpu"),
        trainable=lambda name: not name.startswith("text."),
        export=lambda module, folder: _export(module, found().words, folder),
        open=opened_model,
    )


# -- using it ----------------------------------------------------------------------------------------------------------


def _export(module: LatentCaptioner, words: Words, folder: Path) -> None:
    save_module(module, folder)
    features = module.see[1].in_features
    fields = {"recipe": NAME, "words": list(words.words), "length": words.length, "features": features}
    write_text(folder / "config.json", json.dumps(fields, indent=1) + "\n")


@dataclass(frozen=True, kw_only=True)
class Captioner:
    """``describe(picture) -> caption``."""

    net: LatentCaptioner
    words: Words

    def describe(self, image: Picture, *, seed: int = 0, passes: int = 34, refine: bool = False) -> str:
        """A caption of a picture: a path, or anything that ``read_image`` takes. ``refine``: step back once for uncertain words."""
        if passes < 2:
            raise ValueError(f"passes must be at least 2, got {passes}")
        seen = features_of([read_image(image)])
        found = Captioned(texts=(), features=seen, words=self.words)
        return sentence(drawn(self.net, found, passes, refine=refine, seed=seed)[0])


def opened_model(folder: Path, device: str = "cpu") -> Captioner:
    """The model of a folder of ``captions``. CheckpointError for a file that is missing or does not fit."""
    raw = read_json(folder / "config.json")
    try:
        words = Words(words=tuple(raw["words"]), length=int(raw["length"]))
        made = LatentCaptioner(TextNet(len(words.words), words.length), int(raw["features"]))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder / 'config.json'} does not describe a captioner: {error}") from error
    return Captioner(net=load_module(made, folder).to(device).eval(), words=words)


def strided(passes: int, *, refine: bool) -> Strided:
    """The smallest stride with at most ``passes`` passes."""
    for stride in range(max(1, 999 // passes), 1001):
        t, count, again = 999, 0, refine
        while t > 0:
            count += 1
            if again and BackAndRefine.low < t < BackAndRefine.high:
                t, again = 999, False
            t -= stride
        if count <= passes:
            return Strided(stride=stride)
    raise AssertionError("a stride of all times has one pass")


@torch.no_grad()
def drawn(
    net: LatentCaptioner, found: Captioned, passes: int, *, refine: bool = False, scale: float = 1.0, seed: int = 0
) -> list[list[str]]:
    """The words of a caption for every picture; a pass is a forward with the picture and one without."""
    rng, image, latents = generator("ladic", seed), found.features, net.latents

    def noise(shape: torch.Size) -> Tensor:
        return torch.randn(shape, generator=rng).to(image)

    def both(x: Tensor, t: Tensor, before: Tensor) -> Tensor:
        twice = net(torch.cat([x, x]), t, torch.cat([before, before]), torch.cat([image, 0 * image]))
        seen, blind = twice.chunk(2)
        return guided(seen, blind, scale)

    back = BackAndRefine(confidence=confident(latents, net.text.upper), noise=noise) if refine else None
    start = noise(torch.Size((len(image), found.words.length, len(net.mean))))  # type: ignore[arg-type]
    done = strided(passes, refine=refine)(both, start, noise, refine=back)
    return [found.words.said(collapsed(one)) for one in done.ids(latents, net.text.upper).tolist()]


# -- the demonstration -------------------------------------------------------------------------------------------------

PASSES, NOISES, LEVELS = (4, 16, 34), (0.5, 0.8, 0.9, 0.95), (0, 2, 4)
_STEPS, _PICTURES, _TESTED = 400, 800, 100
ARMS = ("masked", "latent", "latent, refined")


def demo(work: Work) -> Findings:
    found = []
    for n, seed in enumerate(work.seeds):
        found.append(work.once(f"seed/{seed}", partial(_measured, work, seed)))
        work.on_progress("seeds", n + 1, len(work.seeds))
    return _findings(found, work)


def _measured(work: Work, seed: int) -> Json:
    steps, pictures = work.steps(_STEPS, least=2), work.steps(_PICTURES, least=16)
    pairs, test = world(work.steps(_TESTED, least=4), 7, "test")

    def train_set() -> Captioned:
        return world(pictures, 0)[1]

    text = work.train(f"text/{seed}", text_recipe(train_set, work.steps(TEXT_STEPS, least=2), seed))
    assert isinstance(text, TextNet)
    latent = work.train(f"latent/{seed}", recipe_of(train_set, lambda: text, factor=4.0, steps=steps, seed=seed))
    reads = work.train(f"masked/{seed}", masked(pictures=pictures, steps=steps, seed=seed))
    assert isinstance(reads, Reads) and isinstance(latent, LatentCaptioner)

    def right(words: list[list[str]]) -> float:
        return sum(true_of(pair, one) for pair, one in zip(pairs, words, strict=True)) / len(pairs)

    scores: Json = {}
    for passes in PASSES:
        scores[f"masked/{passes}"] = max(right(written(reads, test, passes, scale)) for scale in (0.0, 1.0))
        for name, refine in (("latent", False), ("latent, refined", True)):
            scores[f"{name}/{passes}"] = right(drawn(latent, test, passes, refine=refine, seed=seed))
    sizes = {
        "masked": sum(p.numel() for p in reads.parameters()),
        "latent": sum(p.numel() for p in latent.parameters() if p.requires_grad),
    }
    return {"scores": scores, "sizes": sizes, "robust": _robust(text, test)}


@torch.no_grad()
def _robust(text: TextNet, test: Captioned) -> Json:
    """How many words are decoded rightly from noisy standardised states, by layer and noise level; nothing is trained for it."""
    ids = torch.stack([test.words.ids(one) for one in test.texts])
    spoken, found = ~wordless(ids != PAD), {}
    for layer in LEVELS:
        states = text.lower(ids, layer)
        mean, spread = states[spoken].mean(0), states[spoken].std(0)
        for level in NOISES:
            noise = torch.randn(states.shape, generator=generator("ladic noise", layer))
            x = (1 - level**2) ** 0.5 * (states - mean) / spread + level * noise
            right = text.upper(x * spread + mean, layer).argmax(-1) == ids
            found[f"{layer}/{level}"] = float(right[spoken].float().mean())
    return found


def _findings(found: list[Json], work: Work) -> Findings:
    def over(arm: str, passes: int) -> Figure:
        return over_seeds([one["scores"][f"{arm}/{passes}"] for one in found])

    def gain(arm: str, other: str, passes: int) -> Figure:
        return over_seeds([one["scores"][f"{arm}/{passes}"] - one["scores"][f"{other}/{passes}"] for one in found])

    last = PASSES[-1]
    gains = {f"latent_minus_masked.{n}": gain("latent", "masked", n) for n in (16, last)}
    refined = {f"refined_minus_plain.{n}": gain("latent, refined", "latent", n) for n in (16, last)}
    best, plain = gains[f"latent_minus_masked.{last}"], over("masked", last)
    sizes = found[0]["sizes"]
    return Findings(
        about=f"Captions of {_TESTED} unseen pictures, exactly true or not. A pass is two forwards, with and "
        f"without the picture. The masked captioner has {sizes['masked']:,} parameters and the guidance (0 or 1) that suits it better, the "
        f"denoiser {sizes['latent']:,} and a frozen text network; both train for {work.steps(_STEPS, least=2)} updates on the same "
        f"pictures, {len(work.seeds)} seeds. Refined runs have longer strides, so that their passes are as many.",
        verdict=f"In {last} passes diffusion of latents writes {said(over('latent', last))} true captions, the masked captioner "
        f"{said(plain)}, a difference of {said(best)}; Back and Refine changes it by {said(refined[f'refined_minus_plain.{last}'])}.",
        seen=best["low"] is not None and best["low"] > 0,
        figures={**gains, **refined, "latent": over("latent", last), "masked": plain},
        shown=(
            Table(
                title="True captions",
                head=("passes", *ARMS),
                rows=tuple((n, *(over(arm, n) for arm in ARMS)) for n in PASSES),
                note="Masked captions have fewer tokens than 34: with more passes than tokens, each token has its own.",
            ),
            Plot(
                title="True captions by passes",
                across="passes",
                up="true",
                lines={arm: [(n, over(arm, n)) for n in PASSES] for arm in ARMS},
            ),
            Table(
                title="Words decoded from noisy states",
                head=("layer", *(f"noise {level:g}" for level in NOISES)),
                rows=tuple(
                    (layer, *(over_seeds([one["robust"][f"{layer}/{level}"] for one in found]) for level in NOISES))
                    for layer in LEVELS
                ),
                note="0: embeddings, 2: where captions are diffused, 4: the last layer.",
            ),
        ),
    )


DEMO = Demonstration(minutes=5, run=demo)
