"""The layout of Lumina-DiMOO on disk: how it is told from LLaDA, and half folders and folders of other parts by their errors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from unmask.checkpoints.families import is_dimoo
from unmask.checkpoints.lumina_dimoo import survey_dimoo
from unmask.checkpoints.stream import CheckpointError

from ..tiny_llada import CONFIG

torch.set_num_threads(1)
GOLDEN = Path(__file__).parents[1] / "golden" / "lumina_dimoo_tiny"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN, tmp_path / "dimoo"))


def edit(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_codes_are_the_last_rows_of_the_embedding() -> None:
    found = survey_dimoo(GOLDEN)
    assert (found.config.first_code, found.config.codes, found.config.vocab_size, found.mask_id) == (272, 128, 400, 261)


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({}, False),
        ({"architectures": ["LLaDAForMultiModalGeneration"]}, True),
        ({"embedding_size": 134_548}, True),
        ({"embedding_size": 134_548, "architectures": None}, True),
        ({"embedding_size": 126_464}, False),
        ({"embedding_size": 134_548, "model_type": "mmada"}, False),
        ({"embedding_size": 134_548, "dual_tower": True}, False),
        ({"embedding_size": 134_548, "num_experts": 8}, False),
        ({"embedding_size": 134_548, "architectures": ["LlavaLLaDAModelLM"]}, False),
    ],
)
def test_it_is_told_from_llada_by_class_and_rows(fields: dict[str, Any], wanted: bool, tmp_path: Path) -> None:
    assert is_dimoo({**CONFIG, **fields}, tmp_path) is wanted


def test_it_is_told_from_llada_by_its_image_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "vqvae").mkdir()
    assert is_dimoo(CONFIG, tmp_path) and not is_dimoo(CONFIG | {"dual_tower": True}, tmp_path)


@pytest.mark.parametrize(
    ("gone", "said"),
    [
        ("vqvae", "without its image tokenizer .folder vqvae."),
        ("tokenizer.json", "no tokenizer.json in"),
        ("model.safetensors", "no model\\*.safetensors in"),
        ("vqvae/diffusion_pytorch_model.safetensors", "no diffusion_pytorch_model\\*.safetensors in"),
    ],
)
def test_half_a_folder_is_named(folder: Path, gone: str, said: str) -> None:
    place = folder / gone
    shutil.rmtree(place) if place.is_dir() else place.unlink()
    with pytest.raises(CheckpointError, match=said):
        survey_dimoo(folder)


def test_other_offsets_and_special_ids_are_named(folder: Path) -> None:
    edit(folder / "config.json", mask_token_id=260)
    with pytest.raises(CheckpointError, match="is 261 in the tokenizer and 260 .mask_token_id. in config.json"):
        survey_dimoo(folder)
    edit(folder / "config.json", mask_token_id=261, embedding_size=408)
    with pytest.raises(
        CheckpointError, match="begin at row 280 of the embedding, its last 128 rows, and the tokenizer has 272 ids"
    ):
        survey_dimoo(folder)


def test_a_tokenizer_without_its_tokens_is_named(folder: Path) -> None:
    raw = json.loads((folder / "tokenizer.json").read_text())
    next(t for t in raw["added_tokens"] if t["content"] == "</user>")["content"] = "<other>"
    (folder / "tokenizer.json").write_text(json.dumps(raw))
    with pytest.raises(CheckpointError, match="lacks 1 control tokens, for example </user>"):
        survey_dimoo(folder)
