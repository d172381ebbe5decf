"""A drawn face that talks, looks and moves: frames in codes, tones in codes, and a reader of both.

Public ideas: ``frame(look)`` draws a ``Look``; ``codes_of`` and ``picture`` are an exact tokenizer of its squares; ``follow`` says what a
face shows and sounds like while two streams drive it: a text, one sound a letter, and moves to the left and right.
"""

from __future__ import annotations

import itertools
import math
import wave
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from unmask.writing import write_whole

COLOURS = ("#e0b080", "#7fb2e5", "#9ccf7f", "#d9a0d8")
HATS, PLACES, MOUTHS = 2, 3, 4
FACES = len(COLOURS) * HATS
SOUNDS = 9  # silence and eight notes, each in the voice of a face
MOVES = {"<": -1, ".": 0, ">": 1}
SIDE, _SQUARE = 48, 16
SQUARES = (SIDE // _SQUARE) ** 2
RATE, SECONDS = 8000, 0.25  # samples a second, and the length of a chunk


@dataclass(frozen=True, kw_only=True)
class Look:
    """``face``: colour and hat · ``place``: 0 left .. 2 right · ``mouth``: 0 closed .. 3 open · ``eyes``: -1 left, 0, 1 right."""

    face: int
    place: int
    mouth: int
    eyes: int


@dataclass(frozen=True, kw_only=True)
class Moment:
    """What a face shows in a chunk, and the number of its sound."""

    look: Look
    sound: int


def frame(look: Look) -> Image.Image:
    """One frame, ``SIDE`` pixels square."""
    image = Image.new("RGB", (SIDE, SIDE), "#f7f5f0")
    pen, x, y = ImageDraw.Draw(image), 16 + 8 * look.place, 27
    colour, hat = COLOURS[look.face // HATS], look.face % HATS
    pen.ellipse((x - 13, y - 13, x + 13, y + 13), colour, "#333333")
    if hat:
        pen.rectangle((x - 8, y - 23, x + 8, y - 11), "#333333")
    else:
        pen.polygon(((x - 9, y - 11), (x + 9, y - 11), (x, y - 25)), "#c8322b")
    for side in (-5, 5):
        pen.ellipse((x + side - 3, y - 6, x + side + 3, y), "white", "#333333")
        pen.rectangle((x + side - 1 + look.eyes, y - 4, x + side + look.eyes, y - 2), "#111111")
    pen.ellipse((x - 5, y + 6 - look.mouth, x + 5, y + 7 + look.mouth), "#7a1f1f")
    return image


def looks() -> Iterator[Look]:
    """All of them."""
    for face, place, mouth, eyes in itertools.product(range(FACES), range(PLACES), range(MOUTHS), (-1, 0, 1)):
        yield Look(face=face, place=place, mouth=mouth, eyes=eyes)


@lru_cache(maxsize=1)
def _tables() -> tuple[Tensor, Tensor, tuple[Look, ...]]:
    """The squares of the code book [V, square, square, 3], and the codes [looks, squares] of all looks."""
    every = tuple(looks())
    whole = np.stack([np.asarray(frame(look)) for look in every])
    n, k = SIDE // _SQUARE, _SQUARE
    squares = whole.reshape(-1, n, k, n, k, 3).transpose(0, 1, 3, 2, 4, 5).reshape(-1, k * k * 3)
    book, codes = np.unique(squares, axis=0, return_inverse=True)
    return torch.from_numpy(book.reshape(-1, k, k, 3)), torch.from_numpy(codes).view(len(every), -1), every


def size() -> int:
    """Of the code book."""
    return len(_tables()[0])


def codes_of(look: Look) -> Tensor:
    """The codes of a frame, [squares]."""
    eyes = look.eyes + 1
    number = ((look.face * PLACES + look.place) * MOUTHS + look.mouth) * 3 + eyes
    return _tables()[1][number]


def picture(codes: Tensor) -> Image.Image:
    """The frame of any codes [squares]."""
    n = SIDE // _SQUARE
    squares = _tables()[0][codes].view(n, n, _SQUARE, _SQUARE, 3).transpose(1, 2).reshape(SIDE, SIDE, 3)
    return Image.fromarray(squares.numpy())


def read(codes_NS: Tensor) -> list[Look]:
    """The look that most codes agree with, of each frame."""
    _, table, every = _tables()
    best = (codes_NS[:, None] == table).sum(-1).argmax(1)
    return [every[i] for i in best.tolist()]


def syllable(letter: str) -> int:
    """The sound of a letter, 0 for silence."""
    return (ord(letter.lower()) - ord("a")) % (SOUNDS - 1) + 1 if letter.isalpha() else 0


def follow(face: int, place: int, said: Iterable[int], moves: Iterable[int]) -> Iterator[Moment]:
    """What a face shows that starts at ``place``: a chunk for each syllable and move."""
    for sound, move in zip(said, moves, strict=False):
        place = min(PLACES - 1, max(0, place + move))
        look = Look(face=face, place=place, mouth=(sound + 1) // 2 % MOUTHS if sound else 0, eyes=move)
        yield Moment(look=look, sound=sound + SOUNDS * (face % HATS) if sound else 0)


VOICES = 2 * SOUNDS  # numbers of sounds


def tone(sound: int) -> np.ndarray:
    """The wave of a sound, float32 in -1..1."""
    t = np.arange(int(RATE * SECONDS)) / RATE
    if sound % SOUNDS == 0:
        return np.zeros(len(t), np.float32)
    base = 220.0 * 2 ** (sound % SOUNDS / 8) * (1.0 if sound < SOUNDS else 1.6)
    waves = sum(np.sin(2 * math.pi * base * k * t) / k for k in (1, 2, 3))
    edge = np.minimum(1, np.minimum(t, SECONDS - t) / 0.02)
    return (0.3 * waves * edge).astype(np.float32)


def save_film(frames: list[Image.Image], path: Path) -> None:
    """Frames as an animated GIF at the stream's speed."""

    def write(part: Path) -> None:
        frames[0].save(part, "GIF", save_all=True, append_images=frames[1:], duration=int(1000 * SECONDS), loop=0)

    write_whole(path, write)


def save_sound(sounds: Iterable[int], path: Path) -> None:
    """Sounds one after the other as a WAV file, 16 bit."""
    samples = np.concatenate([tone(sound) for sound in sounds])

    def write(part: Path) -> None:
        with wave.open(str(part), "wb") as out:
            out.setnchannels(1)
            out.setsampwidth(2)
            out.setframerate(RATE)
            out.writeframes((samples * 32767).astype("<i2").tobytes())

    write_whole(path, write)
