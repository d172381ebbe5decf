"""The layout of MMaDA on disk: what is read, and half folders and folders of other parts by their errors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from unmask.checkpoints.loading import load_everything
from unmask.checkpoints.mmada import VQ_FOLDER, read_text, sizes_of, survey_mmada
from unmask.checkpoints.schema import read_json
from unmask.checkpoints.stream import CheckpointError
from unmask.tokens.magvit import MagvitConfig
from unmask.tokens.mmada import PAD, SOI

torch.set_num_threads(1)
GOLDEN = Path(__file__).parents[1] / "golden" / "mmada_tiny"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN, tmp_path / "mmada"))


def edit(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_codes_begin_at_the_length_of_the_tokenizer() -> None:
    found = survey_mmada(GOLDEN)
    assert (found.config.first_code, found.config.codes, found.config.vocab_size) == (276, 128, 416)
    assert found.mask_id == 272 and found.config.gen_width == 0
    net, vq = load_everything(found)
    stored = load_file(GOLDEN / "model.safetensors")
    assert torch.equal(net.embed.weight, stored["model.transformer.wte.weight"]) and vq.size == 128


def test_control_tokens_are_found_by_name() -> None:
    text = read_text(GOLDEN, read_json(GOLDEN / "config.json"))
    assert (text[SOI], text[PAD]) == (260, 269)


@pytest.mark.parametrize(
    ("gone", "said"),
    [
        ("magvitv2", "has no image tokenizer .folder magvitv2.; download showlab/magvitv2"),
        ("tokenizer.json", "no tokenizer.json in"),
        ("model.safetensors", "no model\\*.safetensors in"),
        ("magvitv2/pytorch_model.safetensors", "no weights of the image tokenizer in"),
        ("magvitv2/config.json", "cannot read .*magvitv2.config.json"),
    ],
)
def test_half_a_folder_is_named(folder: Path, gone: str, said: str) -> None:
    place = folder / gone
    shutil.rmtree(place) if place.is_dir() else place.unlink()
    with pytest.raises(CheckpointError, match=said):
        survey_mmada(folder)


def test_a_pickle_of_the_image_tokenizer_is_refused_with_a_hint(folder: Path) -> None:
    (folder / "magvitv2" / "pytorch_model.safetensors").rename(folder / "magvitv2" / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="it holds pytorch_model.bin, .* convert the weights to safetensors"):
        survey_mmada(folder)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"mask_token_id": 271}, r"<\|mdm_mask\|> is 272 in the tokenizer and 271 \(mask_token_id\) in config.json"),
        ({"eos_token_id": 2}, r"<\|endoftext\|> is 257 in the tokenizer and 2 \(eos_token_id\)"),
        ({"codebook_size": 64}, "codebook_size is 64, and the image tokenizer has 128 codes"),
        ({"llm_vocab_size": 270}, r"the tokenizer has 276 ids, wanted at most 270 \(llm_vocab_size\)"),
        ({"llm_vocab_size": 126_464}, "the tokenizer has 276 ids, wanted 126349"),
        ({"num_new_special_tokens": 2}, "num_new_special_tokens 2 is not supported"),
        ({"embedding_size": 400}, "the embedding has 400 rows, too few for 276 ids of text and 128 codes"),
        ({"n_kv_heads": 2}, "n_kv_heads 2 is not supported"),
        ({"include_bias": True}, "include_bias True is not supported"),
    ],
)
def test_a_config_that_does_not_belong_is_named(folder: Path, fields: dict[str, Any], said: str) -> None:
    edit(folder / "config.json", **fields)
    with pytest.raises(CheckpointError, match=said):
        survey_mmada(folder)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"_class_name": "VQModel"}, "is of 'VQModel'; the image tokenizer of MMaDA is MAGVITv2"),
        ({"encoder": {"ch": 32}}, "lacks encoder.ch_mult, encoder.num_res_blocks"),
        ({"encoder": {"ch": 32, "ch_mult": [1, 2, 1], "num_res_blocks": [2, 1, 1], "z_channels": 8}}, "z_channels differ"),
        ({"decoder": {"ch": 32, "ch_mult": [1, 1], "num_res_blocks": [1, 1], "z_channels": 7}}, "as many levels"),
    ],
)  # fmt: skip
def test_another_image_tokenizer_is_named(folder: Path, fields: dict[str, Any], said: str) -> None:
    edit(folder / "magvitv2" / "config.json", **fields)
    with pytest.raises(CheckpointError, match=said):
        survey_mmada(folder)


def test_bits_in_another_order_are_refused(folder: Path) -> None:
    file = folder / "magvitv2" / "pytorch_model.safetensors"
    weights = load_file(file)
    weights["quantize.power_vals"] = weights["quantize.power_vals"].flip(0).contiguous()
    save_file(weights, file)
    with pytest.raises(CheckpointError, match="gives the bits of a code another order"):
        survey_mmada(folder)


def test_a_tokenizer_without_the_reserved_tokens_is_named(folder: Path) -> None:
    raw = json.loads((folder / "tokenizer.json").read_text())
    next(t for t in raw["added_tokens"] if t["content"] == PAD)["content"] = "<|other|>"
    (folder / "tokenizer.json").write_text(json.dumps(raw))
    assert Tokenizer.from_file(str(folder / "tokenizer.json"))
    with pytest.raises(CheckpointError, match="lacks 1 control tokens, for example <.reserved_token_9.>"):
        survey_mmada(folder)


def test_the_image_tokenizer_of_another_family_is_named(folder: Path) -> None:
    (folder / VQ_FOLDER).rename(folder / "vqvae")
    with pytest.raises(CheckpointError, match="config.json is that of MMaDA, and vqvae is .* Lumina-DiMOO"):
        survey_mmada(folder)


def test_an_error_of_the_tokenizer_names_the_file_once_and_has_one_hint(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError) as refused:
        survey_mmada(folder)
    said = str(refused.value)
    assert said.count("tokenizer.json") == 1 and said.endswith("; use the one of this model, which is LLaDA's")


def test_the_side_of_a_picture() -> None:
    raw = read_json(GOLDEN / "config.json")
    tiny = survey_mmada(GOLDEN).vq_config
    assert isinstance(tiny, MagvitConfig)
    assert sizes_of(raw, tiny) == (32, 512)
    assert sizes_of(raw | {"num_vq_tokens": 256}, MagvitConfig()) == (512, 512)  # stale: that of an earlier stage
    assert sizes_of({"unmask": {"side": 256, "text_length": 128}}, MagvitConfig()) == (256, 128)
    with pytest.raises(CheckpointError, match="a picture of 250 pixels .* has no whole number of codes of 16 pixels"):
        sizes_of({"unmask": {"side": 250}}, MagvitConfig())
