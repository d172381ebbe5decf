"""Spoken questions: answers, rows with pictures and sounds, the model's folder, ``unmask ask --audio``, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

import unmask
from unmask.cli.main import main
from unmask.data.samples import PackageMissing
from unmask.data.world import speech
from unmask.data.world.speech import SENTENCES, answer, questions, spoken
from unmask.recipes import spoken_rows
from unmask.recipes.diffa import Hearer
from unmask.recipes.spoken_rows import ENCODER, WORDS, Said, Seen, replied, row
from unmask.tasks.hearing import spliced
from unmask.tokens.sound import read_sound, save_sound

torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("sentence", "reply"),
    [
        ("what is this", "cat"),
        ("what colour is it", "red"),
        ("what colour is the cat", "red"),
        ("what colour is the dog", None),
        ("is this a cat", "yes"),
        ("is this a dog", "no"),
        ("is the cat red", "yes"),
        ("is the cat blue", "no"),
        ("is the dog red", None),
    ],
)
def test_questions_have_their_answers(sentence: str, reply: str | None) -> None:
    assert sentence in SENTENCES and answer(sentence, "cat", "red") == reply


def test_splits_share_no_sentence_and_all_words_are_known() -> None:
    assert not set(questions("train")) & set(questions("test")) and questions("known") == questions("train")
    assert {*questions("train"), *questions("test")} == set(SENTENCES) and len(questions("test")) > 10
    assert {word for s in SENTENCES for word in s.split()} <= set(WORDS)


def test_without_espeak_the_program_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(PackageMissing, match=r"'espeak-ng'; apt-get install espeak-ng"):
        spoken("what is this", "one", 150)


def test_rows_have_a_place_for_a_sound() -> None:
    seen = Seen(noun="cat", colour="red", features=torch.randn(spoken_rows.PICTURE, spoken_rows.WIDTH))
    made, at = row("", "which voice", "two", seen)
    words = [WORDS[i] for i in made.ids[at:].tolist()]
    assert words[:6] == [":", "which", "voice", ":", "two", "[end]"] and made.ids[at - 1] == WORDS.index("[begin]")
    whole = spliced(made, at, torch.zeros(5, spoken_rows.WIDTH))
    assert whole.feature_rows == spoken_rows.PICTURE + 5 and whole.span("sound").start == at
    assert replied("what is this", "repeat", "one", "slow", None) == "what is this"
    assert replied("what is this", "answer", "one", "slow", None) is None
    with pytest.raises(ValueError, match="does not know the word 'weather'"):
        row("what weather is it", "answer", None, None)


def test_sounds_are_written_as_they_are_read(tmp_path: Path) -> None:
    wave = torch.sin(torch.arange(800) / 9)
    torch.testing.assert_close(read_sound(save_sound(wave, tmp_path / "a.wav")), wave, atol=1e-4, rtol=0)


def said(sentence: str, number: int) -> Said:
    """A stand-in for speech: noise."""
    rng = torch.Generator().manual_seed(number)
    mel = torch.randn(ENCODER.mels, ENCODER.frames, generator=rng)
    return Said(samples=mel[0], sentence=sentence, voice="one", speed="fast", mel=mel, frames=90)


def test_a_trained_model_is_asked_aloud(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(speech, "program", lambda: "espeak-ng")
    monkeypatch.setattr(spoken_rows, "said", lambda sentence, rng: said(sentence, rng.randint(0, 99)))
    spoken_rows.sounds.cache_clear()
    out, sizes = tmp_path / "run", ("steps=1", "first=1", "trunk=1", "encoder=1", "pictures=24", "sounds=8")
    assert main(["train", "diffa.adapters", "--out", str(out), *(w for s in sizes for w in ("-o", s))]) == 0
    spoken_rows.sounds.cache_clear()
    model = unmask.load(out)
    assert isinstance(model, Hearer)
    picture, wave = tmp_path / "a.png", save_sound(torch.randn(9000).clamp(-1, 1), tmp_path / "q.wav")
    Image.new("RGB", (128, 128), "red").save(picture)
    capsys.readouterr()
    asked = ["ask", str(picture), "answer", "--audio", str(wave), "--model", str(out), "--json"]
    assert main(asked) == 0
    text = json.loads(capsys.readouterr().out)["text"]
    assert (
        text
        == model.ask(str(picture), "answer", audio=wave).text
        == model.ask(picture, "answer", audio=read_sound(wave)).text
    )
    assert isinstance(model.ask(None, "what is this").text, str)
    with pytest.raises(ValueError, match="no option steps"):
        model.ask(None, "answer", steps=3)
    assert main(["ask", str(picture), "sing it", "--audio", str(wave), "--model", str(out)]) == 2
    assert "does not know the word 'sing'" in capsys.readouterr().err


@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="the program espeak-ng is not installed")
def test_espeak_speaks_slow_and_fast() -> None:
    slow, fast = (spoken("what is this", "two", speed) for speed in (120, 260))
    assert len(slow) > 1.5 * len(fast) > 3000 and float(fast.abs().max()) > 0.1
