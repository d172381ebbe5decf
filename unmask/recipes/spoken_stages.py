"""The parts of ``recipes.diffa`` that are trained: trunk, encoder, and the stages of the adapters.

Public ideas: ``trunk_recipe()``, ``encoder_recipe()``, ``stage_recipe(frozen, "stage 1", steps, seed)``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from random import Random

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unmask.checkpoints.store import save_module
from unmask.data.world.speech import SPEEDS, VOICES, answer, questions
from unmask.methods.diffa import STAGE_1, STAGE_2, AboutSounds, Hearing, HearingLoss, Stage
from unmask.models.elastic import Elastic, init
from unmask.models.sizes import text_config
from unmask.models.speech import SpeechReader
from unmask.objectives.answers import AnswerLoss
from unmask.recipe import Optim, Recipe, Training
from unmask.recipes.spoken_rows import (
    ENCODER,
    LAYERS,
    LETTERS,
    MASK,
    REQUESTS,
    WIDTH,
    WORDS,
    Said,
    fitting,
    pictures,
    replied,
    row,
    sounds,
)
from unmask.rng import generator, seeded
from unmask.sequence import Batch, Sequence, collate
from unmask.step import Loss
from unmask.writing import write_text

NAME = "diffa.adapters"

TRUNK, ENCODING, FIRST, SECOND = 900, 400, 200, 400  # steps
PICTURES, SOUNDS, BATCH = 800, 400, 12


def trunk_recipe(steps: int = TRUNK, count: int = PICTURES, seed: int = 0) -> Recipe[Elastic, Batch]:
    """Typed questions, with or without words for the voice and speed, about pictures or none."""

    def network() -> Elastic:
        made = Elastic(
            text_config(vocab_size=len(WORDS), width=WIDTH, heads=4, layers=LAYERS, mlp=3 * WIDTH, rope_theta=500.0),
            mask_id=MASK,
        )
        init(made, generator("diffa", seed))
        return made

    def source(step: int) -> Batch:
        rng, rows = Random(f"trunk {seed} {step}"), []
        while len(rows) < 24:
            request = rng.choices(REQUESTS, (5, 2, 1, 1))[0]
            seen = rng.choice(pictures("train", count)) if request == "answer" or rng.random() < 0.5 else None
            sentence = rng.choice(questions("train")) if seen is None else fitting(questions("train"), seen, rng)
            voice, speed = rng.choice(list(VOICES)), rng.choice(list(SPEEDS))
            told = request in REQUESTS[2:] or rng.random() < 0.5
            typed = f"voice {voice} {speed} : {sentence}" if told else sentence
            rows.append(row(typed, request, replied(sentence, request, voice, speed, seen), seen)[0])
        return collate(rows, range(len(rows)))

    return Recipe(
        name="diffa.trunk",
        model=network,
        source=source,
        objective=AnswerLoss(),
        optim=Optim(lr=3e-3, warmup=min(50, steps), decay_from=0.4, floor=0.05, ema=0.99),
        training=Training(steps=steps, seed=seed, device="cpu", bf16=False, save_every=200),
    )


class Listener(nn.Module):
    """The encoder with a layer for letters, which is thrown away."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        made = seeded(lambda: (SpeechReader(ENCODER), nn.Linear(ENCODER.width, 1 + len(LETTERS))), seed)
        self.reader, self.letters = made


def encoder_recipe(steps: int = ENCODING, count: int = SOUNDS, seed: int = 0) -> Recipe[Listener, list[Said]]:
    """Letters of the sentences by CTC (Graves et al. 2006)."""

    def loss(model: Listener, some: list[Said], rng: torch.Generator) -> Loss:
        states = model.reader.whisper_model(torch.stack([one.mel for one in some]))[-1]
        log_p = model.letters(states).log_softmax(-1).transpose(0, 1)
        wanted = [torch.tensor([1 + LETTERS.index(c) for c in one.sentence]) for one in some]
        steps_ = torch.tensor([min(ENCODER.positions, one.frames // 2) for one in some])
        value = F.ctc_loss(log_p, torch.cat(wanted), steps_, torch.tensor([len(w) for w in wanted]), zero_infinity=True)
        return Loss(total=value, terms={"letters": value.detach()}, counts={"letters": len(some)})

    return Recipe(
        name="diffa.encoder",
        model=partial(Listener, seed),
        source=lambda step: Random(f"encoder {seed} {step}").sample(sounds("train", count), min(16, count)),
        objective=loss,
        optim=Optim(lr=3e-3, warmup=min(50, steps), decay_from=0.5, floor=0.05, ema=0.98),
        training=Training(steps=steps, seed=seed, device="cpu", bf16=False, save_every=200),
        trainable=lambda name: not name.startswith("reader.") or name.startswith("reader.whisper_model"),
    )


def semantic_alone(reader: SpeechReader, states: list[Tensor], frames: Tensor) -> Tensor:
    """What a second stage without the acoustic adapter reads."""
    return reader.semantic(states, frames)


_ASKED = ("answer", "answer", "which voice", "which voice", "fast or slow")  # by their shares
STAGES = {
    "stage 1": (STAGE_1, ("repeat",)),
    "stage 2": (STAGE_2, _ASKED),
    "semantic": (Stage(tokens=semantic_alone, trained=("semantic_connector",)), _ASKED),
}
Frozen = Callable[[], tuple[Elastic, SpeechReader]]


def stage_recipe(
    frozen: Frozen,
    stage: str,
    steps: int,
    seed: int,
    count: tuple[int, int] = (PICTURES, SOUNDS),
    opened: Callable[[Path, str], object] | None = None,
) -> Recipe[Hearing, AboutSounds]:
    """A stage of the adapters. ``frozen``: trunk and reader to start from · ``count``: pictures and sounds."""
    how, requests = STAGES[stage]

    def source(step: int) -> AboutSounds:
        rng, rows, at, some = Random(f"{stage} {seed} {step}"), [], [], []
        while len(rows) < BATCH:
            request, one = rng.choice(requests), rng.choice(sounds("train", count[1]))
            able = [p for p in pictures("train", count[0]) if answer(one.sentence, p.noun, p.colour)]
            seen = rng.choice(able) if request == "answer" and able else None
            reply = replied(one.sentence, request, one.voice, one.speed, seen)
            if reply is not None and not (reply == "no" and rng.random() < 0.5):
                made, place = row("", request, reply, seen)
                rows.append(made), at.append(place), some.append(one)
        return about(rows, at, some)

    return Recipe(
        name=NAME,
        model=lambda: Hearing(*frozen(), how),
        source=source,
        objective=HearingLoss(),
        optim=Optim(lr=2e-3, warmup=min(40, steps), decay_from=0.5, floor=0.05, ema=0.98),
        training=Training(steps=steps, seed=seed, device="cpu", bf16=False, save_every=100),
        trainable=lambda name: any(name.startswith(f"reader.{part}.") for part in how.trained),
        export=export,
        open=opened,
    )


def about(rows: list[Sequence], at: list[int], some: list[Said]) -> AboutSounds:
    mel, frames = (
        torch.stack([one.mel for one in some]),
        torch.tensor([min(one.frames, ENCODER.frames) for one in some]),
    )
    return AboutSounds(rows=tuple(rows), at=tuple(at), mel=mel, frames=frames)


def export(module: Hearing, folder: Path) -> None:
    save_module(module, folder)
    write_text(folder / "config.json", json.dumps({"recipe": NAME, "reader": asdict(ENCODER)}, indent=1) + "\n")
