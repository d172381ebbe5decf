"""What is refused in a folder in the released layout, and what a folder without parts can still do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import unmask
from unmask.checkpoints.store import CheckpointError
from unmask.cli.main import main
from unmask.models.sizes import ElasticConfig
from unmask.pipeline.loading import vision_fields
from unmask.pipeline.model import describe
from unmask.tasks.parts import to_image
from unmask.tasks.understand import Ask
from unmask.tokens.quirks import NO_QUIRKS
from unmask.tokens.text import CONTROL, MASK

from .released_folder import LEVEL, VISION, configure, make_folder, write_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("released") / "model")


@pytest.fixture
def spoilt(folder: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(folder, tmp_path / "spoilt"))


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    return to_image(torch.rand(3, 96, 96, generator=torch.Generator().manual_seed(1)))


def refused(place: Path, match: str) -> None:
    with pytest.raises(CheckpointError, match=match) as error:
        unmask.load(place)
    assert "; " in str(error.value)


def shorten(place: Path) -> None:
    file = place / "model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def point_elsewhere(place: Path) -> None:
    names = dict.fromkeys(load_file(place / "model.safetensors"), "model-00002-of-00002.safetensors")
    (place / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))


def put(value: torch.Tensor) -> Callable[[Path], None]:
    """Another final norm."""

    def spoil(place: Path) -> None:
        tensors = load_file(place / "model.safetensors") | {"model.transformer.ln_f.weight": value}
        save_file(tensors, place / "model.safetensors")

    return spoil


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda f: (f / "config.json").unlink(), " has no config.json\nhint: copy the one of its weights"),
        (lambda f: (f / "config.json").write_text('{"model_type": "llama", "hidden_size": 64}'),
         "this is a checkpoint of Llama (model_type 'llama'), which unmask does not run yet\nhint: it runs"),
        (shorten, "model.safetensors is damaged, incomplete or not a safetensors file"),
        (point_elsewhere, "names 1 of 1 files that are missing"),
        (put(torch.ones(63)), "transformer.ln_f.weight is (63,), wanted (64,)"),
        (put(torch.ones(64, dtype=torch.long)), "transformer.ln_f.weight is stored as I64, wanted one of F64, F32, F16, BF16"),
        (put(torch.ones(64).index_fill(0, torch.tensor(7), torch.nan)), "transformer.ln_f.weight holds values that are not finite"),
        (lambda f: write_tokenizer(f, (*CONTROL, "<|one_more|>")), "ids and the model"),
        (lambda f: configure(f, gen_mlp_type="unitok"), "gen_mlp_type 'unitok' is not supported\nhint: wanted 'dit2'"),
        (lambda f: configure(f, n_layers="four"), "config.json: invalid value"),
        (lambda f: (f / "vqvae" / "config.json").write_text("{}"), "vqvae/config.json lacks block_out_channels, layers_per_block"),
    ],
    ids=["no folder of a model", "another model", "half a file", "absent file", "shape", "dtype", "nan", "tokenizer", "gen_mlp_type",
         "no number", "no tokenizer of pictures"],
)  # fmt: skip
def test_what_is_wrong_is_two_lines_and_nothing_is_drawn(
    spoil: Callable[[Path], object], said: str, spoilt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(spoilt)
    assert main(["generate", "a dog", "--model", str(spoilt), "--out", str(tmp_path / "a.png")]) == 2
    out, err = capsys.readouterr()
    assert said in err and not out and not (tmp_path / "a.png").exists()
    assert [line.split(":")[0] for line in err.splitlines()] == ["error", "hint"]


def test_too_little_memory_is_two_lines(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("unmask.checkpoints.budget.free_bytes", lambda device: 100_000)
    assert main(["generate", "a dog", "--model", str(folder), "--out", str(tmp_path / "a.png")]) == 2
    error, hint = capsys.readouterr().err.splitlines()
    assert "GiB on cpu, where 0.00 GiB are free" in error and f"`unmask inspect {folder} --budget" in hint


def test_no_tokenizer(spoilt: Path) -> None:
    (spoilt / "tokenizer.json").unlink()
    refused(spoilt, "no tokenizer.json in")


def test_a_tokenizer_of_another_model(spoilt: Path) -> None:
    write_tokenizer(spoilt, tuple(name for name in CONTROL if not name.startswith("<LOC")))
    refused(spoilt, "lacks 1027 control tokens, for example <LOC_0>")
    (spoilt / "tokenizer.json").write_text("{")
    refused(spoilt, "cannot read the tokenizer")


def test_a_tokenizer_of_another_size(spoilt: Path) -> None:
    size = write_tokenizer(spoilt, (*CONTROL, "<|one_more|>"))
    refused(spoilt, f"has {size} ids and the model {size - 1}")


def test_a_tokenizer_in_another_order(spoilt: Path) -> None:
    write_tokenizer(spoilt, (MASK, *(name for name in CONTROL if name != MASK)))
    refused(spoilt, "gives mask_token_id")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"mm_patch_merge_type": "flat"}, "mm_patch_merge_type 'flat' is not supported; wanted 'spatial_unpad'"),
        ({"image_grid_pinpoints": [[28, 30]]}, "multiples of the view's 28 pixels"),
        ({"image_grid_pinpoints": "anyres_max_9"}, "image_grid_pinpoints"),
        ({"unmask": {"side": 128, "vision": {"legs": 4}}}, "lacks unmask.vision.image"),
        ({"unmask": {"side": 100, "vision": vision_fields(VISION)}}, "not a multiple of 32 pixels"),
        ({"unmask": {"side": "wide"}}, "unmask.side is 'wide', wanted a whole number"),
        ({"unmask": {"wording": "old"}}, "unmask.wording is 'old', wanted 'compact' or 'released'"),
        ({"unmask": 128}, "unmask is 128, wanted an object"),
    ],
)
def test_configurations_that_do_not_fit(spoilt: Path, changes: dict[str, object], match: str) -> None:
    configure(spoilt, **changes)
    refused(spoilt, match)


def test_a_model_without_eyes_draws_and_says_that_it_cannot_look(
    spoilt: Path, picture: Image.Image, recwarn: pytest.WarningsRecorder
) -> None:
    configure(spoilt, mm_vision_tower=None, unmask={"side": 128})
    model = unmask.load(spoilt)
    assert any("unused tensors" in str(w.message) for w in recwarn)
    assert model.generate("a dog", settings=["schedule.steps=2"])[0].image.size == (128, 128)
    for asked in (
        lambda: model.ask(picture, "what?"),
        lambda: model.edit(picture, "go"),
        lambda: model.ground(picture, "x"),
    ):
        with pytest.raises(ValueError, match="no vision tower"):
            asked()


def test_a_model_of_ours_in_this_layout_keeps_its_manners(spoilt: Path, picture: Image.Image) -> None:
    own = vision_fields(replace(VISION, image=128, patch=16, layers=1))
    configure(spoilt, unmask={"side": 128, "vision": own, "wording": "compact"})
    tensors = {k: v for k, v in load_file(spoilt / "model.safetensors").items() if "encoder.layers.1" not in k}
    tensors[f"model.{LEVEL}embeddings.patch_embedding.weight"] = torch.zeros(16, 3, 16, 16)
    tensors[f"model.{LEVEL}embeddings.position_embedding.weight"] = torch.zeros(64, 16)
    save_file(tensors, spoilt / "model.safetensors")
    model = unmask.load(spoilt)
    assert model.parts.quirks == NO_QUIRKS and model.presets.answer == 4
    asked = Ask(pixels=model.parts.image_views(picture), question="what?", length=2).build(model.parts)
    assert len(asked.span("look")) == 20 and asked.span("answer").segment == 1
    assert model.parts.text.show(asked.ids[:4].tolist()).startswith("<|startoftext|><|start_header_id|>u")
    configure(spoilt, unmask={"side": 256, "vision": own, "wording": "compact"})
    refused(spoilt, "a compact model reads pictures of the size")


def test_our_own_model_keeps_its_manners() -> None:
    mini = unmask.load("mini")
    assert (
        mini.parts.quirks == NO_QUIRKS and mini.parts.views is None and isinstance(mini.parts.net.config, ElasticConfig)
    )
    assert mini.presets.answer == 4 and describe(mini.presets.generate(mini.parts))["schedule"]["steps"] == 16
