"""A model that draws and ranks captions: training from the command line, its folder, and candidates of one length."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import unmask
from unmask.cli.main import main
from unmask.recipes.diffdis import pairs, quiz, rank, read, rows_of_one_length
from unmask.sequence import collate
from unmask.tokens.image_tokens import drawn

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("diffdis") / "run"
    small = ("steps=2", "pictures=8", "batch=2", "width=32", "layers=1")
    assert main(["train", "diffdis.pairs", "--out", str(place), *(w for s in small for w in ("-o", s))]) == 0
    return place


def test_a_trained_model_draws_and_ranks_captions(folder: Path, tmp_path: Path) -> None:
    image = unmask.load(folder).generate("a red dog on a white background", seed=1, steps=2)[0].image
    image.save(tmp_path / "a.png")
    texts = ["a red cat on a white background", "a blue cat on a white background"]
    found = rank(str(folder), str(tmp_path / "a.png"), texts)
    assert {text for text, _ in found} == set(texts) and found[0][1] >= found[1][1]
    assert dict(found) == pytest.approx(dict(rank(str(folder), str(tmp_path / "a.png"), texts[::-1])), abs=1e-5)


def test_features_do_not_see_the_caption(folder: Path) -> None:
    _, net, kit = read(folder)
    codes = torch.arange(64).view(8, 8)
    texts = ("a red cat", "a blue dog")
    with torch.no_grad():
        one, two = (net.features(collate([drawn(kit.text, text, codes)], [0])) for text in texts)
        other = net.features(collate([drawn(kit.text, texts[0], codes.flip(0))], [0]))
    assert torch.allclose(one, two, atol=1e-5) and not torch.allclose(one, other, atol=1e-3)


def test_candidates_have_one_length_and_the_right_text_first(folder: Path) -> None:
    asked, (_, _, kit) = quiz(6), read(folder)
    assert len(asked.texts) == len(asked.codes) > 0
    for codes, texts in zip(asked.codes, asked.texts, strict=True):
        assert (
            len(set(texts)) == len(texts) == 8 and len({len(r.ids) for r in rows_of_one_length(kit, codes, texts)}) == 1
        )
    with pytest.raises(ValueError, match="same number of tokens"):
        rows_of_one_length(kit, asked.codes[0], ["a cat", "a cat on a white background"])


def test_unknown_weights_are_refused() -> None:
    with pytest.raises(ValueError, match="no weights 'both'; choose from joint, draw only, match only"):
        pairs(weights="both")
