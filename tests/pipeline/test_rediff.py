"""LLaDA-V and ReDiff as a user holds them: prompts, the resized map of a picture, the published sampler, and what they cannot do."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import unmask
from unmask.checkpoints.stream import CheckpointError
from unmask.cli.main import main
from unmask.pipeline.catalogue import find_sampler
from unmask.pipeline.formats import Format, format_in
from unmask.pipeline.model import Model
from unmask.sequence import Kind
from unmask.tasks.understand import Ask
from unmask.tokens.text import BOS, EOS, MASK
from unmask.tokens.views import ImageViews, Shrunk

from ..tiny_rediff import make

torch.set_num_threads(1)
QUESTION = "is the sky blue?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("models") / "rediff")


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    made = unmask.load(folder)
    assert isinstance(made, Model)
    return made


def picture(width: int = 50, height: int = 30) -> Image.Image:
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8))


def test_the_layout_is_told_from_lavida(folder: Path, tmp_path: Path) -> None:
    assert format_in(folder) is Format.REDIFF
    raw = json.loads((folder / "config.json").read_text())
    del raw["architectures"]
    (tmp_path / "config.json").write_text(json.dumps(raw))
    assert format_in(tmp_path) is Format.REDIFF
    (tmp_path / "config.json").write_text(
        json.dumps({**raw, "d_model": 32, "architectures": ["LlavaLladaForMaskedDiffusion"]})
    )
    assert format_in(tmp_path) is Format.LAVIDA


def test_a_picture_is_resized_after_the_tower(model: Model) -> None:
    views = model.parts.image_views(picture())
    assert isinstance(views, ImageViews) and views.tokens is not None and isinstance(model.parts.views, Shrunk)
    with torch.no_grad():
        wanted = model.parts.views.tokens(model.parts.net.features(views.views), (50, 30))
    assert torch.equal(views.tokens, wanted)
    kept = model.parts.views.views.kept((50, 30))
    assert len(views) < 49 + kept.shape[0] * (kept.shape[1] + 1), "the map of 3 x 2 tiles was not resized"
    row = Ask(pixels=views, question=QUESTION, length=4).build(model.parts)
    read = sum(len(span) for span in row.spans if span.kind == Kind.FEATURE)
    assert row.pixels is None and row.features is not None and len(row.features) == read == len(views)


def test_a_picture_is_encoded_once(model: Model) -> None:
    before = model.parts.features.hits
    first, again = (model.parts.image_views(picture(40, 40)) for _ in range(2))
    assert model.parts.features.hits == before + 1
    assert isinstance(first, ImageViews) and isinstance(again, ImageViews)
    assert first.tokens is not None and again.tokens is not None and torch.equal(first.tokens, again.tokens)


def test_answers_depend_on_the_picture_and_are_never_forbidden_ids(model: Model) -> None:
    text = model.parts.text
    bias = torch.zeros(320)
    bias[[text[MASK], text[BOS], text[EOS]]] = 1e4
    hook = model.parts.net.text_head.register_forward_hook(lambda _, __, out: out + bias)
    try:
        answers = {model.ask(picture(*size), QUESTION, length=8).text for size in ((50, 30), (30, 50))}
    finally:
        hook.remove()
    assert not any(text.spelled.get(name, name) in answer for name in (MASK, BOS, EOS) for answer in answers)
    views = [model.parts.image_views(Image.new("RGB", (30, 30), colour)) for colour in ("red", "blue")]
    rows = [Ask(pixels=one, question=QUESTION, length=8).build(model.parts) for one in views]
    assert not torch.equal(rows[0].features, rows[1].features)  # type: ignore[arg-type]


def test_several_pictures_run_together_as_alone(model: Model) -> None:
    sampler = model.presets.ask(model.parts)
    pictures = [picture(50, 30), picture(20, 60)]
    rows = [Ask(pixels=model.parts.image_views(p), question=QUESTION, length=6).build(model.parts) for p in pictures]
    together = model.run(rows, [1, 2], sampler).rows
    for n, row in enumerate(rows):
        assert torch.equal(together[n].ids, model.run([row], [1 + n], sampler).rows[0].ids)


def test_the_published_settings(model: Model) -> None:
    answer = model.ask(picture(), QUESTION, length=8)
    assert answer.settings["selection"]["part"] == "BeforeEnd" and answer.settings["schedule"]["steps"] == 128
    assert (model.presets.answer, model.presets.context) == (128, 1024)
    assert model.parts.wording.describe == "Please describe the image in detail."
    with pytest.raises(ValueError, match="cannot generate pictures"):
        model.generate("a dog")


def test_it_overwrites_with_its_sampler(model: Model, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changed = model.with_sampler(find_sampler("rediff")[0])
    sampler = changed.presets.ask(changed.parts)
    row = Ask(pixels=model.parts.image_views(picture()), question=QUESTION, length=12).build(model.parts)
    seen: list[torch.Tensor] = []
    model.run([row], [0], sampler, on_step=lambda event: seen.append(event.sequence.ids.clone()))
    moved = [(a != b) & (a != model.parts.mask_id) for a, b in zip(seen, seen[1:], strict=False)]
    assert any(bool(one.any()) for one in moved), "no token was overwritten"
    assert main(["ask", "hello", "--model", str(folder), "--sampler", "rediff", "--quiet"]) == 2
    assert "picture is missing" in capsys.readouterr().err


def test_what_it_cannot_do(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = ["train", "finetune", "--model", str(folder), "--data", str(tmp_path), "--out", str(tmp_path / "run")]
    assert main(train) == 2 and "cannot be trained here yet" in capsys.readouterr().err
    assert main(["verify", str(folder)]) == 2
    assert "has the layout rediff, whose measured arrays verify does not recompute" in capsys.readouterr().err
    raw = json.loads((folder / "config.json").read_text())
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "config.json").write_text(json.dumps(raw | {"mask_token_id": 5}))
    with pytest.raises(CheckpointError, match="in the tokenizer and 5 in config.json"):
        unmask.load(tmp_path)
