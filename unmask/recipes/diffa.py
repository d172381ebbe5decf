"""DIFFA on the small world: spoken questions about pictures, heard by a frozen masked model through two adapters (``methods.diffa``).

    unmask train diffa.adapters --out runs/hearing        trains trunk and encoder first, in memory
    unmask ask apple.png "answer" --audio question.wav --model runs/hearing
    unmask ask apple.png "fast or slow" --audio question.wav --model runs/hearing
    unmask methods run diffa

The trunk is a small masked model of typed questions; it reads pictures as the features of ``mini``, and has never heard anything. The
encoder stands in for Whisper's: the same network, small, trained on transcripts of the same synthetic voices by CTC. Both are frozen.
Needs the program espeak-ng.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from unmask.checkpoints.schema import read_json
from unmask.checkpoints.store import load_module
from unmask.checkpoints.stream import CheckpointError
from unmask.data.world.speech import answer, program
from unmask.evaluation.demonstration import Demonstration, Findings, Media, Table, Work
from unmask.evaluation.metrics import Figure, over_seeds
from unmask.methods.diffa import STAGE_2, Hearing
from unmask.models.elastic import Elastic
from unmask.models.speech import SpeechConfig, SpeechReader
from unmask.recipe import Recipe
from unmask.recipes.spoken_rows import ENCODER, END, REQUESTS, WORDS, Said, Seen, look, pictures, replied, row, sounds
from unmask.recipes.spoken_stages import (
    ENCODING,
    FIRST,
    PICTURES,
    SECOND,
    SOUNDS,
    TRUNK,
    Listener,
    about,
    encoder_recipe,
    stage_recipe,
    trunk_recipe,
)
from unmask.rng import generator, seeded
from unmask.sampling.sampler import Sampler
from unmask.sampling.schedule import Equal
from unmask.sampling.selection import Confident
from unmask.sampling.token_sampler import Greedy
from unmask.sequence import Batch, collate
from unmask.step import Loss
from unmask.tasks.hearing import Sound, heard, spliced
from unmask.tasks.results import Answer
from unmask.tokens.pictures import read_image, square
from unmask.tokens.sound import read_sound, save_sound

_TESTED = 72
# -- the adapters ----------------------------------------------------------------------------------------------------


@torch.enable_grad()
def _in_memory(recipe: Recipe[Any, Any]) -> Any:
    """A small network that is trained without a folder: a pure function of its recipe."""
    net = recipe.model()
    chosen = [p.requires_grad_(recipe.trainable(name)) for name, p in net.named_parameters()]
    optimiser = torch.optim.AdamW([p for p in chosen if p.requires_grad], lr=recipe.optim.lr, weight_decay=0.0)
    for step in range(recipe.training.steps):
        loss = recipe.objective(net, recipe.source(step), generator("diffa", step))
        assert isinstance(loss, Loss)
        optimiser.zero_grad()
        loss.total.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
    return net.eval()


def fresh_adapters(reader: SpeechReader, seed: int) -> SpeechReader:
    """A reader with the same encoder and adapters with first weights."""
    made = seeded(lambda: SpeechReader(ENCODER), 1000 + seed)
    made.whisper_model.load_state_dict(reader.whisper_model.state_dict())
    return made


def adapters(
    steps: int = SECOND,
    first: int = FIRST,
    trunk: int = TRUNK,
    encoder: int = ENCODING,
    pictures: int = PICTURES,
    sounds: int = SOUNDS,
    seed: int = 0,
) -> Recipe:
    """The second stage, after the first one (``first`` steps), the trunk and the encoder, which are trained before the first step.

    ``trunk``, ``encoder``: steps of those.
    """

    @lru_cache(maxsize=1)
    def frozen() -> tuple[Elastic, SpeechReader]:
        program()
        net = _in_memory(trunk_recipe(trunk, pictures, seed))
        reader = fresh_adapters(_in_memory(encoder_recipe(encoder, sounds, seed)).reader, seed)
        return net, _in_memory(stage_recipe(lambda: (net, reader), "stage 1", first, seed, (pictures, sounds))).reader

    return stage_recipe(frozen, "stage 2", steps, seed, (pictures, sounds), opened)


# -- the model of a folder ---------------------------------------------------------------------------------------------


def opened(folder: Path, device: str = "cpu") -> Hearer:
    """The model of a folder of ``adapters``. CheckpointError for a file that is missing or does not fit."""
    raw = read_json(folder / "config.json")
    try:
        given: dict[str, Any] = {**raw["reader"], "taps": tuple(raw["reader"]["taps"])}
        config = SpeechConfig(**given)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder / 'config.json'} does not describe a model that hears: {error}") from error
    made = Hearing(trunk_recipe().model(), SpeechReader(config), STAGE_2)
    return Hearer(hearing=load_module(made, folder).to(device).eval())


@dataclass(frozen=True, kw_only=True)
class Hearer:
    """``ask(picture, request, audio=wave)``: a request is "answer", "repeat", "which voice" or "fast or slow", or without a sound a typed
    question.
    """

    hearing: Hearing

    def ask(self, image: Any, question: str, *, audio: Sound | None = None, seed: int = 0, **ignored: Any) -> Answer:
        """``image``: a picture, or None. ValueError for words that the model does not know, and for options that it does not have."""
        if wrong := [name for name, value in ignored.items() if value not in (None, "", (), [], False)]:
            raise ValueError(f"this model has no option {wrong[0]}; leave it out")
        seen = None
        if image is not None:
            pixels = torch.from_numpy(np.array(square(read_image(image), 128)[0])).permute(2, 0, 1).float() / 255
            seen = Seen(noun="", colour="", features=look()(pixels[None])[0])
        if audio is None:
            made, _ = row(question, "answer", None, seen)
        else:
            made, at = row("", question, None, seen)
            wave = audio if isinstance(audio, Tensor) else read_sound(audio)
            made = spliced(made, at, heard(self.hearing.reader, wave))
        text = replies(self.hearing.net, collate([made], [seed]))[0]  # type: ignore[arg-type]
        return Answer(text=text, question=question, seed=seed, seconds=0.0)


_SAMPLER = Sampler(schedule=Equal(steps=4), token_sampler=Greedy(), selection=Confident())


@torch.no_grad()
def replies(net: Elastic, batch: Batch) -> list[str]:
    """The words of each row's answer."""
    ids = _SAMPLER.sample(net, batch).ids
    found = []
    for own, table in zip(ids, batch.span_table, strict=True):
        span = next(s for s in table if s.name == "answer")
        words = own[span.start : span.stop].tolist()
        found.append(" ".join(WORDS[i] for i in words[: words.index(END)] if i) if END in words else "?")
    return found


# -- the demonstration -------------------------------------------------------------------------------------------------

ARMS = ("both adapters", "semantic adapter alone")
_FOLDERS = dict(zip(ARMS, ("both", "semantic"), strict=True))


def demo(work: Work) -> Findings:
    """Typed and spoken questions, and questions about the voice, with and without the acoustic adapter, on the same frozen parts."""
    program()  # is named at once where it is missing
    found = []
    for n, seed in enumerate(work.seeds):
        own = {}
        for k, arm in enumerate(ARMS):
            own[arm] = work.once(f"{_FOLDERS[arm]}/{seed}", partial(_measured, work, arm, seed))
            work.on_progress("adapters", n * len(ARMS) + k + 1, len(ARMS) * len(work.seeds))
        found.append(own)
    return _findings(found, work.once("frozen", partial(_parts, work)), work)


def _counts(work: Work) -> tuple[int, int]:
    return work.steps(PICTURES, least=60), work.steps(SOUNDS, least=20)


@lru_cache(maxsize=1)
def _frozen(work: Work) -> tuple[Elastic, SpeechReader]:
    """One trunk and one encoder for all seeds, as DIFFA has LLaDA and Whisper."""
    counts = _counts(work)
    net = work.train("trunk", trunk_recipe(work.steps(TRUNK, least=2), counts[0]))
    listener = work.train("encoder", encoder_recipe(work.steps(ENCODING, least=2), counts[1]))
    assert isinstance(net, Elastic) and isinstance(listener, Listener)
    return net, listener.reader


def _trained(work: Work, arm: str, seed: int) -> Hearing:
    def fresh() -> tuple[Elastic, SpeechReader]:
        net, reader = _frozen(work)
        return net, fresh_adapters(reader, seed)

    def after_first() -> tuple[Elastic, SpeechReader]:
        first = work.train(f"first/{seed}", stage_recipe(fresh, "stage 1", stage_1, seed, _counts(work)))
        assert isinstance(first, Hearing)
        return _frozen(work)[0], first.reader

    stage_1, stage_2 = work.steps(FIRST, least=2), work.steps(SECOND, least=2)
    stage = "semantic" if arm.startswith("semantic") else "stage 2"
    made = work.train(f"{_FOLDERS[arm]}/{seed}", stage_recipe(after_first, stage, stage_2, seed, _counts(work)))
    assert isinstance(made, Hearing)
    return made


def _tested(work: Work, split: str) -> list[tuple[Said, Seen]]:
    """Sentences spoken anew with a picture that each has an answer for."""
    rng, found = Random(f"tested {split}"), []
    for one in sounds(split, work.steps(_TESTED, least=8)):
        able = [p for p in pictures("test", work.steps(_TESTED, least=24)) if answer(one.sentence, p.noun, p.colour)]
        right = [p for p in able if answer(one.sentence, p.noun, p.colour) != "no"]
        if able:
            found.append((one, rng.choice(right if right and rng.random() < 0.7 else able)))
    return found


def _right(said: list[str], some: list[tuple[Said, Seen]], request: str) -> float:
    wanted = [replied(one.sentence, request, one.voice, one.speed, seen) for one, seen in some]
    return sum(a == b for a, b in zip(said, wanted, strict=True)) / max(1, len(some))


def _parts(work: Work) -> dict[str, float]:
    """Typed questions by the trunk, on the same pictures."""
    net, _ = _frozen(work)
    found = {}
    for split in ("known", "test"):
        some = _tested(work, split)
        rows = [row(one.sentence, "answer", None, seen)[0] for one, seen in some]
        found[split] = _right(replies(net, collate(rows, range(len(rows)))), some, "answer")
    return found


def _measured(work: Work, arm: str, seed: int) -> dict[str, float]:
    hearing, found = _trained(work, arm, seed), {}
    for split in ("known", "test"):
        some = _tested(work, split)
        for request in ("answer", *REQUESTS[2:]):
            made = [row("", request, None, seen if request == "answer" else None) for _, seen in some]
            with torch.no_grad():
                batch = hearing.batch(about([m for m, _ in made], [at for _, at in made], [one for one, _ in some]))
            found[f"{split}/{request}"] = _right(replies(hearing.net, batch), some, request)  # type: ignore[arg-type]
    return found


def _findings(found: list[dict[str, dict[str, float]]], typed: dict[str, float], work: Work) -> Findings:
    def over(arm: str, key: str) -> Figure:
        return over_seeds([one[arm][key] for one in found])

    def gain(a: str, b: str, *keys: str) -> Figure:
        return over_seeds([sum(one[a][k] - one[b][k] for k in keys) / len(keys) for one in found])

    both, semantic = ARMS
    acoustic = [f"{split}/{request}" for split in ("known", "test") for request in REQUESTS[2:]]
    figures = {
        "spoken_minus_typed.known": over_seeds([one[both]["known/answer"] - typed["known"] for one in found]),
        "spoken_minus_typed.new": over_seeds([one[both]["test/answer"] - typed["test"] for one in found]),
        "voice.both_minus_semantic": gain(both, semantic, *acoustic[::2]),
        "speed.both_minus_semantic": gain(both, semantic, *acoustic[1::2]),
        "spoken.known": over(both, "known/answer"),
        "spoken.new": over(both, "test/answer"),
    }
    heads = ("known/answer", "test/answer", *acoustic)
    blank = ("-",) * len(acoustic)
    spoken_, voice = figures["spoken_minus_typed.known"], figures["voice.both_minus_semantic"]
    examples = _examples(work)
    return Findings(
        about="Questions about pictures of one object of the small world, spoken by espeak-ng in four voices, slow or fast. "
        f"{len(_tested(work, 'known'))} known sentences and {len(_tested(work, 'test'))} that no part has seen, spoken anew, on pictures "
        "of the test. Both arms share one frozen trunk and one frozen encoder, which was trained here, by CTC on the same voices, and is "
        "not Whisper. The seeds are those of the adapters, with equal updates in two stages.",
        verdict=f"Of known sentences, spoken questions are answered {over(both, 'known/answer')['value']:.2f} right and typed ones "
        f"{typed['known']:.2f}; the voice is named {over(both, 'known/which voice')['value']:.2f} right with the acoustic adapter and "
        f"{over(semantic, 'known/which voice')['value']:.2f} without it, the speed {over(both, 'known/fast or slow')['value']:.2f} and "
        f"{over(semantic, 'known/fast or slow')['value']:.2f}.",
        seen=spoken_["low"] is not None and spoken_["value"] > -0.1 and voice["low"] is not None and voice["low"] > 0,
        figures=figures,
        shown=(
            Table(
                title="Right replies",
                head=("heard by", "answers, known sentences", "answers, new sentences", *(
                    f"{request}, {'known' if split == 'known' else 'new'}"
                    for split, request in (key.split("/") for key in acoustic)
                )),
                rows=(
                    ("typed questions, the trunk alone", typed["known"], typed["test"], *blank),
                    *((arm, *(over(arm, key) for key in heads)) for arm in ARMS),
                ),
                note="By chance the voice is right in 1 of 4 cases and the speed in 1 of 2.",
            ),
            Media(title="Sounds of the test, and replies of the first seed with both adapters", items=examples),
        ),
    )  # fmt: skip


def _examples(work: Work) -> tuple[tuple[str, Path], ...]:
    hearing, items = _trained(work, ARMS[0], work.seeds[0]), []
    for i, (one, seen) in enumerate(_tested(work, "known")[:4]):
        made, at = row("", "answer", None, seen)
        reply = replies(hearing.net, hearing.batch(about([made], [at], [one])))[0]  # type: ignore[arg-type]
        path = save_sound(one.samples, work.out / f"question-{i}.wav")
        items.append((f"{one.sentence}? (a {seen.colour} {seen.noun}, voice {one.voice}, {one.speed}): {reply}", path))
    return tuple(items)


DEMO = Demonstration(minutes=10, run=demo)
