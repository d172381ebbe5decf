"""Spoken questions about pictures of one object: sentences, and the program espeak-ng that says them.

Public ideas: ``spoken(sentence, voice, words_a_minute)`` are samples [N] at 16 kHz; ``SENTENCES`` with ``answer(sentence, noun, colour)``;
``questions(split)`` are the sentences of "train" and "test". espeak-ng is a system package (``apt-get install espeak-ng``).
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import zlib
from pathlib import Path

from torch import Tensor

from unmask.data.samples import PackageMissing
from unmask.data.world.vocabulary import COLOUR_NAMES
from unmask.tokens.sound import read_sound

NOUNS = ("dog", "cat", "horse", "bird", "apple", "car", "bus", "boat", "clock", "book", "chair", "cup")
COLOURS = COLOUR_NAMES[:6]
VOICES = {"one": "en-us", "two": "en-us+f3", "three": "en-us+m7", "four": "en-us+croak"}
SPEEDS = {"slow": (120, 150), "fast": (210, 260)}  # words a minute
_SECONDS = 20


def _sentences() -> tuple[str, ...]:
    found = ["what is this", "what colour is it"]
    found += [f"what colour is the {noun}" for noun in NOUNS] + [f"is this a {noun}" for noun in NOUNS]
    return (*found, *(f"is the {noun} {colour}" for noun in NOUNS for colour in COLOURS))


SENTENCES = _sentences()


def questions(split: str) -> tuple[str, ...]:
    """A fifth of the sentences that name a noun or colour is only in "test"; "known" has the sentences of "train", for other speakings."""
    return tuple(s for s in SENTENCES if (len(s.split()) > 3 and zlib.crc32(s.encode()) % 5 == 0) == (split == "test"))


def answer(sentence: str, noun: str, colour: str) -> str | None:
    """Of a picture of one object; None where the question supposes another object."""
    words = sentence.split()
    if sentence == "what is this":
        return noun
    if words[:2] == ["is", "this"]:
        return "yes" if words[-1] == noun else "no"
    if sentence == "what colour is it" or words[-1] == noun:
        return colour
    if words[:2] == ["is", "the"] and words[2] == noun:
        return "yes" if words[-1] == colour else "no"
    return None


def program() -> str:
    """The path of espeak-ng. PackageMissing where it is not installed."""
    found = shutil.which("espeak-ng")
    if found is None:
        raise PackageMissing("speech needs the program 'espeak-ng'; apt-get install espeak-ng (brew, dnf: espeak-ng)")
    return found


def spoken(sentence: str, voice: str, words_a_minute: int, pitch: int = 50) -> Tensor:
    """Samples [N] at 16 kHz. ``voice``: a key of VOICES · ``pitch``: 0..99."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "said.wav"
        how = ["-v", VOICES[voice], "-s", str(words_a_minute), "-p", str(pitch), "-w", str(path)]
        subprocess.run([program(), *how, "--", sentence], check=True, timeout=_SECONDS, capture_output=True)
        return read_sound(path)
