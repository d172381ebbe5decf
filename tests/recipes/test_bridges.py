"""Captions from latents, adapters and bridges of the embedded model: trained with two steps from the command line, opened and used."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pytest
import torch
from PIL import Image

import unmask
from unmask.checkpoints.stream import CheckpointError
from unmask.cli.main import main
from unmask.data.world.pairs import Pairs
from unmask.data.world.render import render
from unmask.recipes import gill
from unmask.recipes.captioning import LAST, PAD, SHOWN, STOP, true_of, words_of
from unmask.recipes.conditions import conditioned, drawn, fingerprint, frozen, plain, states_of, told
from unmask.recipes.ladic import Captioner, strided
from unmask.recipes.sage import as_seen
from unmask.recipes.stories import TOLD, shown, story
from unmask.recipes.sur_adapter import adapted, adapter, terse
from unmask.rng import generator

torch.set_num_threads(1)
SMALL = {
    "ladic.captions": ("pictures=4", "text_steps=2", "batch=2"),
    "captioning.masked": ("pictures=4", "batch=2", "width=32", "layers=1"),
    "sur_adapter.terse": ("prompts=4", "batch=2"),
    "gill.bridge": ("stories=4", "language_steps=2", "batch=2"),
}


def trained(name: str, place: Path, *more: str) -> Path:
    settings = ("steps=2", *SMALL[name], *more)
    assert main(["train", name, "--out", str(place), *(w for s in settings for w in ("-o", s))]) == 0
    return place


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a picture and its text."""
    place = tmp_path_factory.mktemp("bridges") / "data"
    place.mkdir()
    pair = SHOWN(0, 0)
    Image.fromarray(render(pair.scene, 128)).save(place / "a.png")
    (place / "a.txt").write_text(pair.text)
    return place


def test_a_captioner_of_latents_describes_a_picture(picture: Path, tmp_path: Path) -> None:
    folder = trained("ladic.captions", tmp_path / "run", f"data={picture}")
    model = unmask.load(folder)
    assert isinstance(model, Captioner)
    said = [model.describe(picture / "a.png", passes=3, refine=refine) for refine in (False, False, True)]
    assert said[0] == said[1] and all(one.endswith(".") for one in said)
    with pytest.raises(ValueError, match="passes must be at least 2, got 1"):
        model.describe(picture / "a.png", passes=1)
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | {"words": 3}))
    with pytest.raises(CheckpointError, match="does not describe a captioner"):
        unmask.load(folder)


def test_a_masked_captioner_trains(tmp_path: Path) -> None:
    trained("captioning.masked", tmp_path / "run")


def test_training_does_not_depend_on_random_numbers_drawn_elsewhere(tmp_path: Path) -> None:
    for state, name in ((1, "a"), (2, "b")):
        torch.manual_seed(state)
        trained("gill.bridge", tmp_path / name)
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in "ab")
    assert first == second


def test_words_and_captions() -> None:
    words = words_of(["A red cat.", "the dog"])
    ids = words.ids("a red cat").tolist()
    assert words.said(ids) == ["a", "red", "cat", "."] and ids[-2:] == [STOP, LAST] and PAD not in ids
    with pytest.raises(ValueError, match="'bird' is not in the vocabulary"):
        words.ids("a bird")
    pair = SHOWN(0, 1)
    assert true_of(pair, [*pair.text.split(), "."]) and not true_of(pair, ["a", "cat"])


@pytest.mark.parametrize("refine", [False, True])
@pytest.mark.parametrize("passes", [2, 4, 16, 34])
def test_a_refined_run_has_no_more_passes(passes: int, refine: bool) -> None:
    def count(stride: int) -> int:
        t, made, again = 999, 0, refine
        while t > 0:
            made, t, again = made + 1, (999 if again and 300 < t < 600 else t) - stride, again and not 300 < t < 600
        return made

    assert count(strided(passes, refine=refine).stride) <= passes
    assert passes == 2 or count(strided(passes, refine=refine).stride) >= passes - 2


def test_a_terse_prompt_is_drawn_through_the_adapter(tmp_path: Path) -> None:
    folder = trained("sur_adapter.terse", tmp_path / "run")
    model = unmask.load(folder)
    first, again = (model.generate("a dog", seed=1, steps=2)[0].image for _ in range(2))
    assert first.size == (128, 128) and first.tobytes() == again.tobytes()
    with pytest.raises(ValueError, match="cannot answer questions"):
        model.ask(first, "what is this?")
    (folder / "config.json").write_text(json.dumps({"recipe": "sur_adapter.terse", "released": 1}))
    with pytest.raises(CheckpointError, match="released must be true or false"):
        unmask.load(folder)


def test_an_adapter_starts_as_the_identity_and_rows_are_independent() -> None:
    texts = ["a dog at the top on a white background", "a cat"]
    states = states_of(frozen(), texts, 20)
    assert torch.equal(adapted(adapter(), texts), states)
    moved = adapter()
    moved.adapter.fc.weight.data.normal_(generator=generator("moved"))
    assert torch.allclose(adapted(moved, texts)[0], adapted(moved, texts[:1])[0], atol=1e-5)
    shrunk = adapter(released=True)
    assert torch.allclose(adapted(shrunk, texts), 0.9 * states)


def test_the_frozen_generator_gives_gradients_and_does_not_change() -> None:
    parts, recipe = frozen(), terse(prompts=4, batch=2)
    before, model = fingerprint(parts.net), recipe.model()
    loss = recipe.objective(model, recipe.source(0), generator("x"))
    loss.total.backward()  # type: ignore[union-attr]
    assert float(model.adapter.fc.weight.grad.abs().sum()) > 0 and fingerprint(parts.net) == before
    released = terse(prompts=4, batch=2, released=True)
    assert float(released.objective(model, released.source(0), generator("x")).terms["denoising"]) == 0  # type: ignore[union-attr]


def test_vectors_of_a_prompt_draw_what_the_prompt_draws() -> None:
    parts, text = frozen(), "a dog at the top on a white background"
    (row,) = plain(parts, [text])
    length = len(row.span("prompt"))
    states = states_of(parts, [text], length)
    assert (drawn(parts, [row], 0, 2) == drawn(parts, [told(parts, states[0])], 0, 2)).all()
    batch = conditioned(parts, states, torch.zeros(1, *parts.grid, dtype=torch.long))
    assert int(batch.masked.sum()) == 0 and batch.features is not None and len(batch.features) == length
    with pytest.raises(ValueError, match="tokens, more than 3; shorten it"):
        states_of(parts, [text], 3)


def test_a_story_is_drawn_and_ranks_pictures(picture: Path, tmp_path: Path) -> None:
    folder = trained("gill.bridge", tmp_path / "run")
    model = unmask.load(folder)
    assert model.generate("there is a dog . it is red", steps=2)[0].image.size == (128, 128)
    with pytest.raises(ValueError, match="not in the vocabulary"):
        model.generate("there is a palace")
    pictures = [str(picture / "a.png")] * 2
    first, second = (score for _, score in gill.rank(str(folder), "there is a dog", pictures))
    assert first == pytest.approx(second, abs=1e-4)
    own = trained("gill.bridge", tmp_path / "own", f"data={picture}", "linear=true")
    assert unmask.load(own).generate((picture / "a.txt").read_text(), steps=2)[0].image.size == (128, 128)
    (own / "config.json").write_text(json.dumps({"recipe": "gill.bridge", "words": []}))
    with pytest.raises(CheckpointError, match="does not describe a bridge"):
        unmask.load(own)


def test_stories_say_more_with_every_sentence_and_are_judged_by_what_they_said() -> None:
    pair = TOLD(0, 0)
    every = [story(pair, Random(1), n) for n in (1, 2, 3, 4)]
    assert [len(one.told) for one in every] == [0, 1, 2, 3] and every[3].text.startswith(every[2].text)
    assert every[3].prompt == pair.text
    seen = as_seen(pair.scene)
    assert all(shown(seen, one) for one in every)
    other = as_seen(Pairs(classes=TOLD.classes[1:2], places=True)(3, 0).scene)
    assert pair.scene.objects[0].name == TOLD.classes[1] or not any(shown(other, one) for one in every)
