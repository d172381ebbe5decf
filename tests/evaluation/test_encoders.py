"""A CLIP folder on the disk as an encoder: equal to transformers on the same pixels, one picture or many."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from unmask.data.published import FormatError
from unmask.evaluation.encoders import ClipFolder, pictures_in, read_clip

transformers = pytest.importorskip("transformers")
WORDS = ("<start>", "<end>", "a", "cat", "dog")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP of random weights, as transformers saves it."""
    place = tmp_path_factory.mktemp("clip")
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**tower, "vocab_size": 5, "max_position_embeddings": 6, "bos_token_id": 0, "eos_token_id": 1}
    config = transformers.CLIPConfig(
        text_config=text, vision_config={**tower, "image_size": 32, "patch_size": 16}, projection_dim=8
    )
    torch.manual_seed(0)
    transformers.CLIPModel(config).save_pretrained(place)
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 0), ("<end>", 1)]
    )
    tokenizer.save(str(place / "tokenizer.json"))
    return place


@pytest.fixture(scope="module")
def clip(folder: Path) -> ClipFolder:
    return read_clip(folder)


def test_texts_do_not_depend_on_their_company_and_are_cut(clip: ClipFolder) -> None:
    both = clip.texts(["a cat", "a dog a cat a dog a cat"])
    assert both.shape == (2, 8) and np.allclose(both[:1], clip.texts(["a cat"]), atol=1e-6)
    assert np.allclose(both[1:], clip.texts(["a dog a cat"]), atol=1e-6), "six tokens, of which two are start and end"
    with torch.inference_mode():
        wanted = clip.model.get_text_features(torch.tensor([[0, 2, 3, 1]])).pooler_output
    assert np.allclose(both[:1], wanted.numpy(), atol=1e-6)


def test_pictures_of_any_size_are_cut_to_their_middle(clip: ClipFolder) -> None:
    rng = np.random.default_rng(0)
    square = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
    wide = np.concatenate([np.zeros((32, 10, 3), np.uint8), square, np.zeros((32, 10, 3), np.uint8)], axis=1)
    large = rng.integers(0, 256, (90, 70, 3), dtype=np.uint8)
    rows = clip.images(iter([square, wide, large]))
    assert rows.shape == (3, 8) and np.allclose(rows[0], rows[1], atol=1e-6) and not np.allclose(rows[0], rows[2])
    mean, spread = (np.array(v) for v in ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)))
    pixels = torch.from_numpy((square / 255 - mean) / spread).permute(2, 0, 1)[None].float()
    with torch.inference_mode():
        wanted = clip.model.get_image_features(pixels).pooler_output
    assert np.allclose(rows[:1], wanted.numpy(), atol=1e-5)


def test_nothing_has_no_features(clip: ClipFolder) -> None:
    assert clip.images([]).shape == (0, 8) and clip.texts([]).shape == (0, 8)


def test_a_folder_that_holds_no_clip(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"has no config.json; wanted"):
        read_clip(tmp_path)
    shutil.copytree(folder, tmp_path / "other")
    config = json.loads((tmp_path / "other" / "config.json").read_text())
    (tmp_path / "other" / "config.json").write_text(json.dumps({**config, "model_type": "bert"}))
    with pytest.raises(FormatError, match="a model of type 'bert'; wanted 'clip'"):
        read_clip(tmp_path / "other")
    with pytest.raises(FormatError, match="there are no pictures"):
        pictures_in(tmp_path)
