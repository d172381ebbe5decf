"""Rows of pictures, spoken sentences, requests and replies for ``recipes.diffa``, on words of its own.

Public ideas: ``pictures(split, count)``, ``sounds(split, count)`` and ``row(typed, request, reply, seen)``.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from random import Random

import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.data.world import speech
from unmask.data.world.render import render
from unmask.data.world.scenes import Draft, sample
from unmask.data.world.speech import COLOURS, NOUNS, SPEEDS, VOICES, answer, questions, spoken
from unmask.models.elastic import Elastic
from unmask.models.speech import SpeechConfig
from unmask.rng import generator
from unmask.sequence import Kind, Sequence, Span
from unmask.tokens.sound import log_mel

WIDTH, LAYERS, PICTURE, LONGEST = 96, 3, 20, 8  # LONGEST: tokens of an answer
REQUESTS = ("answer", "repeat", "which voice", "fast or slow")
ENCODER = SpeechConfig(
    mels=40, width=64, layers=3, heads=4, mlp=128, positions=128, out=WIDTH, taps=(1, 2, 3), queries=8, query_layers=1,
    query_mlp=128, prompts=4,
)  # fmt: skip
LETTERS = " abcdefghijklmnopqrstuvwxyz"
WORDS = tuple(
    dict.fromkeys(
        ["[mask]", "[end]", "[begin]", ":", "voice", "yes", "no", *VOICES, *SPEEDS]
        + " ".join((*speech.SENTENCES, *REQUESTS)).split()
        + [*NOUNS, *COLOURS]
    )
)
MASK, END = 0, 1


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A picture of one object. ``features [20, WIDTH]``: of mini, through a fixed projection."""

    noun: str
    colour: str
    features: Tensor


@dataclass(frozen=True, kw_only=True)
class Said:
    """A spoken sentence. ``samples [N]``: at 16 kHz · ``mel [mels, frames]``, ``frames``: as of ``log_mel``."""

    samples: Tensor
    sentence: str
    voice: str
    speed: str
    mel: Tensor
    frames: int


@lru_cache(maxsize=1)
def look() -> Callable[[Tensor], Tensor]:
    """Pixels [N, 3, 128, 128] in 0..1 -> features [N, 20, WIDTH] of the embedded model, as a fixed projection."""
    import unmask

    net = unmask.load("mini").parts.net
    assert isinstance(net, Elastic)
    rng = generator("diffa projection")
    down = torch.linalg.qr(torch.randn(net.config.width, WIDTH, generator=rng)).Q

    @torch.no_grad()
    def features(pixels: Tensor) -> Tensor:
        return F.layer_norm(net.features(pixels).unflatten(0, (len(pixels), -1)) @ down, (WIDTH,))

    return features


@lru_cache(maxsize=4)
def pictures(split: str, count: int) -> tuple[Seen, ...]:
    scenes, index, one = [], 0, Draft(counts=((1, 1.0),))
    while len(scenes) < count:
        scene = sample("grid", split, 0, index, one)
        index += 1
        if scene.objects[0].name in NOUNS and scene.objects[0].colour in COLOURS:
            scenes.append(scene)
    found = []
    for some in (scenes[i : i + 32] for i in range(0, count, 32)):
        pixels = torch.stack([torch.from_numpy(render(s, 128).copy()).permute(2, 0, 1).float() / 255 for s in some])
        for scene, features in zip(some, look()(pixels), strict=True):
            found.append(Seen(noun=scene.objects[0].name, colour=scene.objects[0].colour, features=features))
    return tuple(found)


def said(sentence: str, rng: Random) -> Said:
    """In a random voice, speed and pitch."""
    voice, speed = rng.choice(list(VOICES)), rng.choice(list(SPEEDS))
    wave = spoken(sentence, voice, rng.randint(*SPEEDS[speed]), rng.randint(40, 60))
    mel, frames = log_mel(wave, mels=ENCODER.mels, frames=ENCODER.frames)
    return Said(samples=wave, sentence=sentence, voice=voice, speed=speed, mel=mel, frames=frames)


@lru_cache(maxsize=4)
def sounds(split: str, count: int) -> tuple[Said, ...]:
    """Evenly over the sentences of a split; every speaking has a voice, speed and pitch of its own."""
    speech.program()
    sentences = questions(split)
    with ThreadPoolExecutor(4) as pool:
        made = pool.map(lambda i: said(sentences[i % len(sentences)], Random(f"said {split} {i}")), range(count))
        return tuple(made)


def ids_of(text: str) -> list[int]:
    """ValueError for a word that the trunk does not know."""
    if unknown := [word for word in text.lower().replace("?", "").split() if word not in WORDS]:
        raise ValueError(f"the model does not know the word {unknown[0]!r}; ask {', '.join(REQUESTS)}")
    return [WORDS.index(word) for word in text.lower().replace("?", "").split()]


def row(typed: str, request: str, reply: str | None, seen: Seen | None) -> tuple[Sequence, int]:
    """A row of a picture, what is heard as text, a request and a reply (None: masked), and the token before which a sound would stand."""
    look = 0 if seen is None else PICTURE
    head, tail = [WORDS.index("[begin]"), *ids_of(typed)], [WORDS.index(":"), *ids_of(request), WORDS.index(":")]
    body = [] if reply is None else ids_of(reply)
    ids = [0] * look + head + tail + (body + [END] * LONGEST)[:LONGEST]
    stop, last = look + len(head) + len(tail), len(ids)
    spans = [Span(name="prompt", kind=Kind.TEXT, start=look, stop=stop)]
    if seen is not None:
        spans.insert(0, Span(name="look", kind=Kind.FEATURE, start=0, stop=look))
    spans.append(Span(name="answer", kind=Kind.TEXT, start=stop, stop=last, writable=True))
    made = Sequence(
        ids=torch.tensor(ids),
        masked=(torch.arange(last) >= stop) & (reply is None),
        spans=tuple(spans),
        features=None if seen is None else seen.features,
        feature_rows=look,
    )
    return made, look + len(head)


def replied(sentence: str, request: str, voice: str, speed: str, seen: Seen | None) -> str | None:
    """The right reply to a request about a sentence; None where there is none."""
    if request == "answer":
        return None if seen is None else answer(sentence, seen.noun, seen.colour)
    return {"repeat": sentence, "which voice": voice, "fast or slow": speed}[request]


def fitting(sentences: tuple[str, ...], seen: Seen, rng: Random) -> str:
    """A sentence that has an answer for the picture, half of those with yes or no."""
    able = [s for s in sentences if answer(s, seen.noun, seen.colour) is not None]
    right = [s for s in able if answer(s, seen.noun, seen.colour) != "no"]
    return rng.choice(right if right and rng.random() < 0.7 else able)
