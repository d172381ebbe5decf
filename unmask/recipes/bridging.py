"""What ``gill`` trains: the bridge from a frozen text network to the embedded model, on stories or on a user's captions.

Public ideas: ``Between`` holds the frozen text network, the bridge and the decision; ``recipe_of(found, text, ..)`` trains it.

Shapes: B rows · K added tokens · D width of the text network · Q conditions · N texts · F features of a picture.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from unmask.checkpoints.schema import read_json
from unmask.checkpoints.store import load_module, save_module
from unmask.checkpoints.stream import CheckpointError
from unmask.data.samples import DataError
from unmask.data.world.render import render
from unmask.methods.gill import AddedRows, Bridge, Decision, Pictured, ThreePasses
from unmask.models.bridges import QueryMapper
from unmask.pipeline.model import Model
from unmask.recipe import Optim, Recipe, Training
from unmask.recipes.captioning import PAD, Captioned, Words, features_of, own, words_of
from unmask.recipes.conditions import drawing_model, frozen, prompt_ids, states_of
from unmask.recipes.stories import IMG, SENTENCES, TOLD, Causal, Story, img_ids, story, with_images
from unmask.rng import seeded
from unmask.step import Loss
from unmask.writing import write_text

NAME = "gill.bridge"
LENGTH, _INNER, _SHARED = 20, 64, 64
ALBUM = frozenset(TOLD.classes[::2])  # classes of which the album has pictures


class Flat(nn.Module):
    """The simplest mapper: one linear layer from all states at [IMG] to all conditions."""

    def __init__(self, width: int, out: int, queries: int) -> None:
        super().__init__()
        self.queries, self.fc = queries, nn.Linear(IMG * width, queries * out)

    def forward(self, states_BKD: Tensor) -> Tensor:
        return self.fc(states_BKD.flatten(1)).unflatten(1, (self.queries, -1))


class Between(nn.Module):
    """The frozen text network and the bridge. ``linear``: ``Flat`` in place of the mapper with queries."""

    def __init__(self, language_net: Causal, words: Words, features: int, *, linear: bool) -> None:
        super().__init__()
        self.language = language_net.requires_grad_(False)
        table, out = language_net.embed.weight, frozen().net.config.width
        mapper = (
            Flat(table.shape[1], out, LENGTH)
            if linear
            else QueryMapper(table.shape[1], out, queries=LENGTH, inner=_INNER, layers=2)
        )
        rows = AddedRows(table, img_ids(words))
        self.bridge = Bridge(rows, mapper, features=features, shared=_SHARED)  # type: ignore[arg-type]
        self.decision = Decision(table.shape[1])

    @torch.no_grad()
    def read(self, ids: Tensor, length: Tensor) -> Tensor:
        """States at [IMG], [B, K, D]."""
        states = self.language.states(self.bridge.embedding(ids))
        place = (length - IMG)[:, None] + torch.arange(IMG)
        return states[torch.arange(len(ids))[:, None], place]


def flat_features(pictures: Items[Image.Image]) -> Tensor:
    """What the embedded model sees, of all places, [N, F]."""
    return features_of(pictures).flatten(1)


@dataclass(frozen=True, kw_only=True)
class Told:
    """Texts, the prompts that say the same, and the features of their pictures, [N, F]. ``choice`` [N]: 0 draw, 1 retrieve."""

    texts: tuple[str, ...]
    prompts: tuple[str, ...]
    features: Tensor
    choice: Tensor
    stories: tuple[Story, ...] = ()


@lru_cache(maxsize=6)
def world(count: int, seed: int, split: str = "train", sentences: int = 0) -> Told:
    """``count`` stories. ``sentences``: of each, 0 for any number."""
    rng = Random(f"stories/{seed}/{split}")
    made = [story(TOLD(seed, i, split), rng, sentences or rng.randint(1, SENTENCES)) for i in range(count)]
    pictures = [Image.fromarray(render(one.pair.scene, frozen().side)) for one in made]
    return Told(
        texts=tuple(one.text for one in made),
        prompts=tuple(one.prompt for one in made),
        features=flat_features(pictures),
        choice=torch.tensor([one.pair.scene.objects[0].name in ALBUM for one in made]).long(),
        stories=tuple(made),
    )


@lru_cache(maxsize=1)
def story_words() -> Words:
    rng = Random("story words")
    return words_of([story(TOLD(-1, i, split), rng).text for split in ("train", "test") for i in range(1000)])


@lru_cache(maxsize=2)
def own_told(data: str) -> tuple[Told, Words]:
    """A user's captions that the generator can read; nothing of them is in an album. DataError where none is short enough."""
    found: Captioned = own(data)
    short = [i for i, text in enumerate(found.texts) if _fits(text)]
    if not short:
        raise DataError(f"no text of {data} fits into {LENGTH} tokens of the generator; shorten them")
    texts = tuple(found.texts[i] for i in short)
    nothing = torch.zeros(len(texts), dtype=torch.long)
    return Told(texts=texts, prompts=texts, features=found.features[short].flatten(1), choice=nothing), words_of(texts)


def _fits(text: str) -> bool:
    try:
        prompt_ids(frozen(), text, LENGTH)
    except ValueError:
        return False
    return True


def story_texts(seed: int) -> Callable[[int], list[str]]:
    """Stories of batch number ``step`` for the text network."""

    def texts(step: int) -> list[str]:
        rng = Random(f"language/{seed}/{step}")
        return [story(TOLD(seed + 5, step * 32 + i), rng).text for i in range(32)]

    return texts


def recipe_of(
    found: Callable[[], tuple[Told, Words]],
    text: Callable[[], Causal],
    *,
    linear: bool,
    steps: int,
    seed: int,
    batch: int = 32,
    lr: float = 2e-3,
) -> Recipe[Any, Any]:
    """As ``bridge``, with data and a frozen text network."""

    def network() -> Between:
        told_, words = found()
        return seeded(lambda: Between(text(), words, told_.features.shape[1], linear=linear), seed)

    def rows(step: int) -> tuple[Pictured, Tensor]:
        (told_, words), rng = found(), Random(f"gill/{seed}/{step}")
        chosen = [rng.randrange(len(told_.texts)) for _ in range(batch)]
        ids, length = with_images(words, [told_.texts[i] for i in chosen])
        target = states_of(frozen(), [told_.prompts[i] for i in chosen], LENGTH)
        return Pictured(ids=ids, length=length, features=told_.features[chosen], target=target), told_.choice[chosen]

    def objective(model: Between, batch: tuple[Pictured, Tensor], rng: torch.Generator) -> Loss:
        """The three passes, and the decision from states that it does not change."""
        pictured, choice = batch
        model.bridge.embedding.renormalise()
        passes = ThreePasses(language=model.language, img=img_ids(found()[1]), pad=PAD)(model.bridge, pictured, rng)
        decided = F.cross_entropy(model.decision(model.read(pictured.ids, pictured.length), rng), choice)
        return Loss(
            total=passes.total + decided,
            terms={**passes.terms, "decision": decided.detach()},
            counts={**passes.counts, "decision": len(choice)},
        )

    def export(module: Between, folder: Path) -> None:
        module.bridge.embedding.renormalise()
        save_module(module, folder)
        words, size = found()[1], found()[0].features.shape[1]
        fields = {
            "recipe": NAME,
            "words": list(words.words),
            "length": words.length,
            "features": size,
            "linear": linear,
        }
        write_text(folder / "config.json", json.dumps(fields, indent=1) + "\n")

    return Recipe(
        name=NAME,
        model=network,
        source=rows,
        objective=objective,
        optim=Optim(lr=lr, warmup=30, decay_from=0.4, floor=0.05, ema=0.98),
        training=Training(steps=steps, seed=seed, save_every=200, bf16=False, device="cpu"),
        trainable=lambda name: not name.startswith("language."),
        export=export,
        open=lambda folder, device: opened_model(folder)[0],
    )


# -- using it ----------------------------------------------------------------------------------------------------------


def opened_model(folder: Path) -> tuple[Model, Between, Words]:
    """A model that draws texts of a folder of ``bridge``, with its parts. CheckpointError for a file that is missing or does not fit."""
    raw = read_json(folder / "config.json")
    try:
        words = Words(words=tuple(raw["words"]), length=int(raw["length"]))
        net = Between(Causal(len(words.words)), words, int(raw["features"]), linear=bool(raw["linear"]))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder / 'config.json'} does not describe a bridge: {error}") from error
    load_module(net, folder).eval()
    return drawing_model(lambda text: mapped(net, words, [text])[0], "a model with a bridge"), net, words


@torch.no_grad()
def mapped(net: Between, words: Words, texts: Items[str]) -> Tensor:
    """Drawing conditions of texts, [B, Q, C]."""
    return net.bridge.mapped(net.read(*with_images(words, texts)))
