"""LaViDa as a user holds it, on both language models: prompts, views, the published samplers, and what it cannot do."""

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
from unmask.pipeline.model import Model
from unmask.pipeline.text_model import TextModel
from unmask.sampling.cache import NoCache
from unmask.sequence import Kind, Sequence
from unmask.tasks.understand import Ask
from unmask.tokens.text import MASK

from .. import tiny_dream, tiny_llada
from ..tiny_lavida import make

QUESTION = "is the sky blue?"
SYSTEM = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user provides, "
    "and assist the user with a variety of tasks using natural language."
)


@pytest.fixture(scope="module", params=["llada", "dream"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return make(tmp_path_factory.mktemp("models") / request.param, on_dream=request.param == "dream")


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    made = unmask.load(folder)
    assert isinstance(made, Model) and not isinstance(made, TextModel)
    return made


def picture(width: int = 50, height: int = 30, seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8))


def on_dream(folder: Path) -> bool:
    return folder.name == "dream"


def asked(model: Model, length: int = 4) -> Sequence:
    return Ask(pixels=model.parts.image_views(picture()), question=QUESTION, length=length).build(model.parts)


def test_the_prompt_is_the_published_one(folder: Path, model: Model) -> None:
    """As in training. The released script drops the token after the picture on LLaDA: it is the line break."""
    pieces, sequence = prompt_pieces(folder), asked(model)
    assert texts(sequence) == pieces[0] + pieces[1]
    released = unmask.load(folder, quirks="released")
    assert isinstance(released, Model)
    assert texts(asked(released)) == pieces[0] + (pieces[1] if on_dream(folder) else pieces[1][1:])
    assert texts(asked(unmask.load(folder, quirks="none"))) == pieces[0] + pieces[1]  # type: ignore[arg-type]


def texts(sequence: Sequence) -> list[int]:
    """The ids of a question and its prompt, without the picture and the answer of four tokens."""
    text = sequence.ids[:-4][torch.tensor([s.kind == Kind.TEXT for s in sequence.spans for _ in range(len(s))])[:-4]]
    return text.tolist()


def prompt_pieces(folder: Path) -> list[list[int]]:
    """The ids before and after the picture."""
    if on_dream(folder):
        before, after = (
            f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n",
            f"\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n",
        )
        encode = tiny_dream.tokenizer()
    else:
        header = "<|start_header_id|>{}<|end_header_id|>\n\n"
        before = "<|startoftext|>" + header.format("system") + SYSTEM + "<|eot_id|>" + header.format("user")
        after = f"\n{QUESTION}<|eot_id|>" + header.format("assistant")
        encode = tiny_llada.tokenizer()
    return [encode.encode(piece, add_special_tokens=False).ids for piece in (before, after)]


def test_the_first_view_is_squashed_and_the_map_is_cropped(model: Model) -> None:
    views = model.parts.image_views(picture(50, 30))
    whole = picture(50, 30).resize((14, 14), Image.Resampling.BICUBIC)
    assert torch.equal(views.views[0], torch.from_numpy(np.asarray(whole).copy()).permute(2, 0, 1) / 255)  # type: ignore[union-attr]
    assert len(views.views) == 5 and len(views) == 16 + 4 * 9  # type: ignore[union-attr]  # rows 2 to 5 of a map of 8 x 8


def test_the_prompt_does_not_read_the_answer_and_is_cached(model: Model) -> None:
    from dataclasses import replace

    preset = model.presets.ask(model.parts)
    seeds, rows = [5], [asked(model, 12)]
    cached = model.run(rows, seeds, preset).rows[0].ids
    assert torch.equal(cached, model.run(rows, seeds, replace(preset, cache=NoCache())).rows[0].ids)


def test_the_published_settings(folder: Path, model: Model) -> None:
    settings = model.ask(picture(), QUESTION).settings
    if on_dream(folder):
        assert settings["schedule"]["steps"] == 64 and settings["token_sampler"]["token_sampler"]["top_k"] == 50
    else:
        assert (settings["schedule"]["steps"], settings["schedule"]["shift"]) == (32, 3.0)
        assert settings["token_sampler"]["token_sampler"]["temperature"] == 0.1
    assert model.presets.context == 512


def test_mask_is_never_written(model: Model) -> None:
    bias = torch.zeros(320)
    bias[model.parts.text[MASK]] = 1e4
    hook = model.parts.net.text_head.register_forward_hook(lambda _, __, out: out + bias)
    try:
        done = model.run([asked(model, 8)], [0], model.presets.ask(model.parts)).rows[0]
    finally:
        hook.remove()
    assert model.parts.text[MASK] not in done.ids[-8:].tolist()


def test_answers_are_batch_invariant(model: Model) -> None:
    preset, rows = model.presets.ask(model.parts), [asked(model, n) for n in (9, 3, 6)]
    together = model.run(rows, [1, 2, 3], preset).rows
    for row, seed, found in zip(rows, (1, 2, 3), together, strict=True):
        assert torch.equal(model.run([row], [seed], preset).rows[0].ids, found.ids)


def test_what_it_cannot_do_is_named(model: Model) -> None:
    from unmask.tasks.conversing import Message

    for call in (
        lambda: model.generate("a cat"),
        lambda: model.edit(picture(), "make it red"),
        lambda: model.infill(picture(), picture()),
        lambda: model.ground(picture(), "the cat"),
        lambda: model.converse([Message(role="user", text="draw a cat")]),
    ):
        with pytest.raises(ValueError, match="LaViDa reads pictures and writes text, and cannot"):
            call()


def test_the_commands_answer(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "x.png"
    picture().save(file)
    assert main(["ask", str(file), QUESTION, "--length", "8", "--steps", "4", "--model", str(folder)]) == 0
    assert main(["infill", "the [mask] is [mask]", "--model", str(folder)]) == 0
    assert main(["inspect", str(folder), "--json"]) == 0
    assert "vision" in capsys.readouterr().out
    assert main(["generate", "a cat", "--model", str(folder), "--out", str(tmp_path / "y.png")]) == 2
    assert "cannot generate pictures" in capsys.readouterr().err


def changed(folder: Path, tmp_path: Path, **fields: object) -> Path:
    copy = make(tmp_path / folder.name, on_dream=on_dream(folder))
    raw = json.loads((copy / "config.json").read_text()) | fields
    (copy / "config.json").write_text(json.dumps({k: v for k, v in raw.items() if v != "absent"}))
    return copy


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"mm_resampler_type": "spatial_pool"}, "mm_resampler_type is 'spatial_pool', wanted null"),
        ({"mm_spatial_pool_mode": "conv"}, "mm_spatial_pool_mode is 'conv'"),
        ({"mm_patch_merge_type": "flat"}, "mm_patch_merge_type is 'flat'"),
        ({"image_grid_pinpoints": [[15, 28]]}, "image_grid_pinpoints"),
        ({"image_grid_pinpoints": [[14]]}, "image_grid_pinpoints"),
        ({"image_grid_pinpoints": []}, "image_grid_pinpoints is an empty list"),
        ({"mm_vision_tower": 3}, "mm_vision_tower is 3, wanted a string"),
        ({"tokenizer_model_max_length": 0}, "tokenizer_model_max_length is 0, wanted at least 1"),
        ({"mask_token_id": 3}, "in the tokenizer and 3 in config.json"),
        ({"unmask": {"vision": {"image": 14}}}, "lacks unmask.vision.patch"),
    ],
)
def test_a_config_that_does_not_fit_is_named(
    folder: Path, tmp_path: Path, fields: dict[str, object], words: str
) -> None:
    with pytest.raises((CheckpointError, ValueError), match=words):
        unmask.load(changed(folder, tmp_path, **fields))


def test_the_other_language_model_is_named(folder: Path, tmp_path: Path) -> None:
    other = make(tmp_path / "other", on_dream=not on_dream(folder))
    raw = json.loads((folder / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(raw))
    with pytest.raises(CheckpointError, match="config.json is that of LaViDa on .*, and the weights are those of"):
        unmask.load(other)


def test_missing_vision_weights_are_named(folder: Path, tmp_path: Path) -> None:
    half = changed(folder, tmp_path)
    (half / "model-00003-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match="2 of 3 shards"):
        unmask.load(half)


def test_a_folder_without_a_tokenizer_is_named(folder: Path, tmp_path: Path) -> None:
    bare = changed(folder, tmp_path)
    for name in ("tokenizer.json", "vocab.json"):
        (bare / name).unlink(missing_ok=True)
    with pytest.raises(ValueError, match="tokenizer"):
        unmask.load(bare)
