"""Dimple as a user holds it: prompt, pictures of any size, positions in three axes, confident decoding, and what it cannot do."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import unmask
from unmask.checkpoints.stream import CheckpointError
from unmask.cli.main import main
from unmask.pipeline.model import Model
from unmask.sampling.aligned import Aligned
from unmask.sampling.cache import NoCache
from unmask.sequence import Kind, Sequence, collate, stack
from unmask.tasks.understand import Ask
from unmask.tokens.text import MASK
from unmask.tokens.whole_blocks import WholeBlocks

from .. import tiny_dream
from ..tiny_dimple import make

QUESTION = "is the sky blue?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return make(tmp_path_factory.mktemp("models") / "dimple")


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    made = unmask.load(folder)
    assert isinstance(made, Model)
    return made


def picture(width: int = 50, height: int = 30, seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8))


def asked(model: Model, length: int = 4, size: tuple[int, int] = (50, 30)) -> Sequence:
    return Ask(pixels=model.parts.image_views(picture(*size)), question=QUESTION, length=length).build(model.parts)


def test_the_prompt_is_the_published_one(model: Model) -> None:
    sequence, count = asked(model), len(model.parts.image_views(picture()))
    prompt = (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>"
        + "<|image_pad|>" * count
        + f"<|vision_end|>{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
    )
    whole = tiny_dream.tokenizer().encode(prompt, add_special_tokens=False).ids
    look = sequence.span("look")
    ids = sequence.ids[:-4].tolist()
    ids[look.start : look.stop] = [tiny_dream.tokenizer().token_to_id("<|image_pad|>")] * count
    assert ids == whole


@pytest.mark.parametrize(
    ("size", "wanted"),
    [
        ((28, 28), (56, 56)),  # below the fewest pixels
        ((100, 60), (112, 56)),  # 60 / 28 = 2.14
        ((70, 42), (56, 56)),  # halves round to even: 2.5 -> 2 and 1.5 -> 2
        ((5000, 3000), (1288, 756)),  # above the most
    ],
)
def test_a_picture_is_resized_to_whole_blocks(size: tuple[int, int], wanted: tuple[int, int]) -> None:
    assert WholeBlocks().size(size) == wanted


def test_a_very_narrow_picture_is_named() -> None:
    with pytest.raises(ValueError, match="too narrow"):
        WholeBlocks().size((3000, 10))


def test_picture_tokens_share_a_time_and_have_rows_and_columns(model: Model) -> None:
    sequence = asked(model)
    batch, look = collate([sequence], [0]), sequence.span("look")
    assert look.grid is not None and batch.axes is not None
    rows, columns = look.grid
    here, start = slice(look.start, look.stop), int(batch.position[0, look.start - 1]) + 1
    assert batch.position[0, here].tolist() == [start] * len(look)
    assert batch.axes[0, here, 0].tolist() == [start + r for r in range(rows) for _ in range(columns)]
    assert batch.axes[0, here, 1].tolist() == [start + c for _ in range(rows) for c in range(columns)]
    assert int(batch.position[0, look.stop]) == start + max(rows, columns)
    assert torch.equal(batch.axes[0, look.stop :, 0], batch.position[0, look.stop :])


def test_a_batch_without_pictures_joins_one_with(model: Model) -> None:
    seen = collate([asked(model)], [0])
    text = collate([Ask(pixels=None, question=QUESTION, length=len(seen.ids[0]) - 40).build(model.parts)], [1])
    length = min(seen.ids.shape[1], text.ids.shape[1])
    cut = [
        b.replace(
            **{
                n: t[:, :length]
                for n, t in vars(b).items()
                if isinstance(t, torch.Tensor) and t.dim() > 1 and n not in ("pixels", "features")
            }
        )
        for b in (seen, text)
    ]
    both = stack(cut)
    assert both.axes is not None and torch.equal(both.axes[1, :, 0], cut[1].position[0])


def test_the_published_settings(model: Model) -> None:
    settings = model.ask(picture(), QUESTION, length=6).settings
    assert settings["selection"]["threshold"] == 0.95 and settings["selection"]["steps"] == 64
    drawn = settings["token_sampler"]["token_sampler"]
    assert (drawn["temperature"], drawn["top_p"], drawn["top_k"], drawn["original"]) == (0.2, 0.95, 50, True)


def test_steps_bound_the_forwards(model: Model) -> None:
    assert model.ask(picture(), QUESTION, length=20, steps=3).settings["selection"]["steps"] == 3
    preset, steps = model.presets.ask(model.parts), list[int]()
    few = replace(preset, selection=Aligned(steps=3))
    model.run([asked(model, 20)], [0], few, lambda step: steps.append(step.number))
    assert len(steps) == 3


def test_a_low_threshold_takes_fewer_steps(model: Model) -> None:
    def forwards(threshold: float) -> int:
        seen, preset = list[int](), model.presets.ask(model.parts)
        sampler = replace(preset, selection=Aligned(steps=16, threshold=threshold))
        model.run([asked(model, 16)], [0], sampler, lambda step: seen.append(step.number))
        return len(seen)

    assert forwards(0.001) < forwards(0.9) <= 16


def test_the_cached_prompt_is_never_computed_again(model: Model) -> None:
    batch = collate(model.parts.features.known([asked(model, 9)], model.parts.net, model.device), [0])
    run, computed = model.presets.ask(model.parts).start(batch), list[int]()
    while (query := run.query) is not None:
        assert query.reuse is not None
        computed.append(int(query.reuse.compute.sum()))
        run.advance(model.parts.net(query.batch, predict=query.predict, reuse=query.reuse))
    assert computed[0] == batch.ids.shape[1] and set(computed[1:]) == {10}  # the answer and the token before it


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
    rows = [asked(model, n, size) for n, size in ((9, (50, 30)), (3, (20, 20)), (6, (30, 90)))]
    for sampler in (preset := model.presets.ask(model.parts), replace(preset, cache=NoCache())):
        together = model.run(rows, [1, 2, 3], sampler).rows
        for row, seed, found in zip(rows, (1, 2, 3), together, strict=True):
            assert torch.equal(model.run([row], [seed], sampler).rows[0].ids, found.ids)


def test_what_it_cannot_do_is_named(model: Model) -> None:
    with pytest.raises(ValueError, match="Dimple reads pictures and writes text, and cannot generate pictures"):
        model.generate("a cat")


def test_the_commands_answer(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "x.png"
    picture().save(file)
    assert main(["ask", str(file), QUESTION, "--length", "8", "--steps", "4", "--model", str(folder)]) == 0
    assert main(["inspect", str(folder), "--json"]) == 0
    assert '"parameters": 57348' in capsys.readouterr().out


def changed(tmp_path: Path, file: str = "config.json", **fields: object) -> Path:
    folder = make(tmp_path / "dimple")
    raw = json.loads((folder / file).read_text()) | fields
    (folder / file).write_text(json.dumps(raw))
    return folder


@pytest.mark.parametrize(
    ("file", "fields", "words"),
    [
        ("config.json", {"mrope_section": [1, 1, 1]}, "must be three numbers that sum to half a head, 4"),
        ("config.json", {"mrope_section": [2, 2]}, "must be three numbers"),
        ("config.json", {"mrope_section": []}, "mrope_section is an empty list, wanted at least 1 items"),
        ("config.json", {"max_position_embeddings": None}, "max_position_embeddings is None, wanted a whole number"),
        ("config.json", {"image_token_id": 7}, r"<\|image_pad\|> is 286 in the tokenizer and 7 in config.json"),
        ("config.json", {"mask_token_id": 7}, r"<\|mask\|> is 289 in the tokenizer and 7 in config.json"),
        ("config.json", {"full_attn_mask": False}, "full_attn_mask"),
        ("config.json", {"vision_config": {"depth": 2}}, "lacks vision_config.hidden_size"),
        ("preprocessor_config.json", {"patch_size": 14}, "use files of one model"),
        ("preprocessor_config.json", {"min_pixels": 4096}, "min_pixels 4096 is above max_pixels 1024"),
        ("preprocessor_config.json", {"image_std": [0.0, 0.5, 0.5]}, "image_std"),
    ],
)
def test_a_file_that_does_not_fit_is_named(tmp_path: Path, file: str, fields: dict[str, object], words: str) -> None:
    with pytest.raises((CheckpointError, ValueError), match=words):
        unmask.load(changed(tmp_path, file, **fields))


def test_half_a_folder_is_named(tmp_path: Path) -> None:
    folder = make(tmp_path / "dimple")
    (folder / "model-00003-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match="2 of 3 shards"):
        unmask.load(folder)


def test_a_folder_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    folder = make(tmp_path / "dimple")
    (folder / "vocab.json").unlink()
    with pytest.raises(ValueError, match="has no tokenizer"):
        unmask.load(folder)


def test_kinds_of_its_sequence(model: Model) -> None:
    assert {span.kind for span in asked(model).spans} == {Kind.TEXT, Kind.FEATURE}
