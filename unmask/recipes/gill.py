"""GILL: a frozen text network that draws with a frozen generator and retrieves pictures, and its demonstration (``methods.gill``).

    unmask train gill.bridge --out runs/gill                       stories of the small world
    unmask train gill.bridge --data pets --out runs/pets           your own: a folder of pictures with texts (docs/data.md)
    unmask generate "there is a dog . it is red . it is at the top" --model runs/gill
    python -c "from unmask.recipes.gill import rank; print(rank('runs/gill', 'there is a dog', ['a.png', 'b.png']))"
    unmask methods run gill

A story tells what a picture shows over four sentences. The text network, which is trained first on text alone, and the generator, the
embedded model, stay frozen; the bridge between them is learned, and what it must write are the generator's own vectors of one prompt that
says all. The decision is whether a picture of the story is among those of an album. At this size it ranks pictures well and draws few of
them right (docs/methods.md has the figures).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Sequence as Items
from functools import lru_cache, partial
from pathlib import Path
from random import Random

import numpy as np
import torch
from PIL import Image

from unmask.evaluation.demonstration import Demonstration, Findings, Media, Table, Work
from unmask.evaluation.demonstration_page import said
from unmask.evaluation.judge import load_judge
from unmask.evaluation.metrics import Figure, over_seeds
from unmask.json_types import Json
from unmask.recipe import Recipe
from unmask.recipes.bridging import (
    Between,
    Told,
    flat_features,
    mapped,
    opened_model,
    own_told,
    recipe_of,
    story_texts,
    story_words,
    world,
)
from unmask.recipes.captioning import Words
from unmask.recipes.conditions import drawn, fingerprint, frozen, plain, told
from unmask.recipes.in_memory import trained_in_memory
from unmask.recipes.stories import (
    SENTENCES,
    Causal,
    Story,
    language,
    shown,
    with_images,
)
from unmask.tokens.pictures import read_image

_LANGUAGE_STEPS = 200


def bridge(
    data: str = "",
    linear: bool = False,
    stories: int = 500,
    language_steps: int = _LANGUAGE_STEPS,
    batch: int = 32,
    steps: int = 250,
    lr: float = 2e-3,
    seed: int = 0,
) -> Recipe:
    """The bridge. ``data``: your own captions and pictures; "": ``stories`` stories of the small world · ``linear``: with a linear
    mapper · ``language_steps``: of the text network, which is trained before the first step.
    """

    def found() -> tuple[Told, Words]:
        return own_told(data) if data else (world(stories, 0), story_words())

    def own_texts(step: int) -> list[str]:
        rng = Random(f"own/{step}")
        return [rng.choice(found()[0].texts) for _ in range(32)]

    @lru_cache(maxsize=1)
    def text() -> Causal:
        texts = own_texts if data else story_texts(seed)
        return trained_in_memory(language(lambda: found()[1], texts, steps=language_steps, seed=seed), "gill language")

    return recipe_of(found, text, linear=linear, steps=steps, seed=seed, batch=batch, lr=lr)


def rank(model: str, text: str, pictures: Items[str]) -> list[tuple[str, float]]:
    """Pictures with their scores for a text, the best first."""
    _, net, words = opened_model(Path(model))
    features = flat_features([read_image(Path(one)) for one in pictures])
    with torch.no_grad():
        scores = net.bridge.rank(net.read(*with_images(words, [text])), features)[0].tolist()
    return sorted(zip(pictures, scores, strict=True), key=lambda pair: -pair[1])


# -- the demonstration -------------------------------------------------------------------------------------------------

_STEPS, _STORIES, _TESTED, _RANKED, _DRAWN_IN = 250, 500, 24, 100, 8
MAPPERS: Mapping[str, bool] = {"mapper": False, "linear": True}
OWN: Mapping[str, tuple[Callable[[Story], str], int]] = {
    "one sentence": (lambda one: one.text, 1),
    "last sentence": (lambda one: one.last, SENTENCES),
    "whole story": (lambda one: one.text, SENTENCES),
    "one prompt": (lambda one: one.prompt, SENTENCES),
}  # how the generator's own reading is told of a story, and of how many sentences
LONG = (1, SENTENCES)


def demo(work: Work) -> Findings:
    before, found = fingerprint(frozen().net), []
    for n, seed in enumerate(work.seeds):
        found.append(
            {
                **work.once(f"own/{seed}", partial(_own, work, seed)),
                **{name: work.once(f"{name}/{seed}", partial(_measured, work, name, seed)) for name in MAPPERS},
            }
        )
        work.on_progress("seeds", n + 1, len(work.seeds))
    return _findings(found, work, fingerprint(frozen().net) == before)


def _tested(work: Work, sentences: int) -> tuple[Story, ...]:
    return world(work.steps(_TESTED, least=2), 77, "test", sentences).stories


def _right(pictures: np.ndarray, stories: Items[Story]) -> float:
    seen = load_judge().look(pictures)
    return sum(shown(one, about) for one, about in zip(seen, stories, strict=True)) / len(stories)


def _own(work: Work, seed: int) -> Json:
    """Drawings from the generator's own reading: the last sentence, the whole story, or the prompt that says the same."""
    parts = frozen()
    return {
        name: _right(
            drawn(parts, plain(parts, [text(one) for one in stories]), seed, _DRAWN_IN),
            stories,
        )
        for name, (text, n) in OWN.items()
        for stories in (_tested(work, n),)
    }


@lru_cache(maxsize=4)
def _language(work: Work, seed: int) -> Causal:
    steps = work.steps(_LANGUAGE_STEPS, least=2)
    made = work.train(f"language/{seed}", language(story_words, story_texts(seed), steps=steps, seed=seed))
    assert isinstance(made, Causal)
    return made


@lru_cache(maxsize=4)
def _net(work: Work, name: str, seed: int) -> Between:
    stories, steps = work.steps(_STORIES, least=16), work.steps(_STEPS, least=2)
    made = recipe_of(
        lambda: (world(stories, 0), story_words()),
        lambda: _language(work, seed),
        linear=MAPPERS[name],
        steps=steps,
        seed=seed,
    )
    net = work.train(f"{name}/{seed}", made)
    assert isinstance(net, Between)
    net.bridge.embedding.renormalise()
    return net


def _measured(work: Work, name: str, seed: int) -> Json:
    text, parts, words = _language(work, seed), frozen(), story_words()
    before = fingerprint(text)
    net = _net(work, name, seed)
    found: Json = {
        "same": fingerprint(net.language) == before and torch.equal(net.bridge.embedding.table, text.embed.weight)
    }
    for n in LONG:
        some = _tested(work, n)
        rows = [told(parts, one) for one in mapped(net, words, [one.text for one in some])]
        found[f"right/{n}"] = _right(drawn(parts, rows, seed, _DRAWN_IN), some)
        found |= {f"{key}/{n}": value for key, value in _retrieved(net, work, n).items()}
    return found


@torch.no_grad()
def _retrieved(net: Between, work: Work, sentences: int) -> Json:
    """Recall among pictures of new stories, and decisions: by the head, and by the best score in the album, with the best threshold."""
    some = world(work.steps(_RANKED, least=8), 78, "test", sentences)
    states = net.read(*with_images(story_words(), some.texts))
    scores = net.bridge.rank(states, some.features)
    place = (scores > scores.diagonal()[:, None]).sum(1)
    album = scores[:, some.choice == 1]
    best = album.max(1).values if album.shape[1] else torch.zeros(len(scores))
    by_score = max(float(((best >= cut) == (some.choice == 1)).float().mean()) for cut in best.tolist())
    return {
        **{f"recall@{k}": float((place < k).float().mean()) for k in (1, 5, 10)},
        "decided": float((net.decision(states).argmax(1) == some.choice).float().mean()),
        "decided_by_score": by_score,
    }


def _findings(found: list[Json], work: Work, generator_same: bool) -> Findings:
    def over(arm: str, what: str) -> Figure:
        return over_seeds([one[arm][what] if arm else one[what] for one in found])

    def gain(other: str, n: int = SENTENCES) -> Figure:
        return over_seeds([one["mapper"][f"right/{n}"] - one[other] for one in found])

    whole = SENTENCES
    same = generator_same and all(one[name]["same"] for one in found for name in MAPPERS)
    linear = over_seeds([one["mapper"][f"right/{whole}"] - one["linear"][f"right/{whole}"] for one in found])
    last, story_gain, one_gain = gain("last sentence"), gain("whole story"), gain("one sentence", 1)
    unchanged = "did not change" if same else "CHANGED"
    mapper, decided = (over("mapper", f"{what}/{whole}") for what in ("right", "decided"))
    return Findings(
        about=f"Stories tell one object's class, colour, place and background in up to {whole} sentences; a drawing is right if it shows "
        f"what was told, of {len(_tested(work, 1))} new stories. The text network and the embedded model are frozen. Pictures are ranked "
        f"among {work.steps(_RANKED, least=8)}. {len(work.seeds)} seeds, {work.steps(_STEPS, least=2)} updates of each mapper.",
        verdict=f"Right drawings of stories of {whole} sentences: {said(mapper)} through the mapper, "
        f"{said(over('linear', f'right/{whole}'))} through a linear one, {said(over('', 'whole story'))} by the generator's own reading of "
        f"the story and {said(over('', 'last sentence'))} of its last sentence. Recall at 1 is "
        f"{said(over('mapper', f'recall@1/{whole}'))}, from one sentence {said(over('mapper', 'recall@1/1'))}; the choice between drawing "
        f"and retrieving is right in {said(decided)}. The frozen weights {unchanged}.",
        seen=same and all(one["low"] is not None and one["low"] > 0 for one in (last, story_gain)),
        figures={
            "mapper_minus_last_sentence": last,
            "mapper_minus_whole_story": story_gain,
            "mapper_minus_linear": linear,
            "mapper_minus_own.1": one_gain,
            "mapper": mapper,
            "recall@1": over("mapper", f"recall@1/{whole}"),
            "decided": decided,
        },
        shown=(
            Table(
                title="Drawings that show what was told",
                head=("drawn from", "sentences", "right"),
                rows=(
                    *((f"{name}, the generator's own reading", n, over("", name)) for name, (_, n) in OWN.items()),
                    *((name, n, over(name, f"right/{n}")) for name in MAPPERS for n in LONG),
                ),
                note="One prompt says in the generator's own words what the story told: the most that a bridge can reach.",
            ),
            Table(
                title="Retrieval and decision",
                head=("sentences", "recall@1", "recall@5", "recall@10", "draw or retrieve", "by the best score"),
                rows=tuple(
                    (
                        n,
                        *(over("mapper", f"recall@{k}/{n}") for k in (1, 5, 10)),
                        *(over("mapper", f"{what}/{n}") for what in ("decided", "decided_by_score")),
                    )
                    for n in LONG
                ),
                note="Whether a picture of the story is in an album, which holds half of the classes. By the best score: the "
                "score of the best picture, with the threshold that suits these very stories best: an upper limit.",
            ),
            Media(title="Drawings of stories, first seed", items=_shown(work)),
        ),
    )


def _shown(work: Work) -> tuple[tuple[str, Image.Image], ...]:
    some, parts, words = _tested(work, SENTENCES)[:4], frozen(), story_words()
    net = _net(work, "mapper", work.seeds[0])
    own_rows = plain(parts, [one.text for one in some])
    rows = [told(parts, one) for one in mapped(net, words, [one.text for one in some])]
    items = []
    for name, one in (("own reading", own_rows), ("mapper", rows)):
        pictures = drawn(parts, one, 0, _DRAWN_IN)
        items += [(f"{name}: {s.text}", Image.fromarray(p)) for s, p in zip(some, pictures, strict=True)]
    return tuple(items)


DEMO = Demonstration(minutes=6, run=demo)
