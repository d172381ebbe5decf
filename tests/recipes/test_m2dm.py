"""Motions from texts: the model's folder, animations, the tokenizer's importance, and words that the figure does not know."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import unmask
from unmask.checkpoints.stream import CheckpointError
from unmask.cli.main import main
from unmask.data.world.motions import CHANNELS, FRAMES
from unmask.recipes.m2dm import MotionModel, animate, motions
from unmask.recipes.motion_codes import CODES, LONGEST, importance_of, poses_of, row, trained_vq
from unmask.sequence import Kind

torch.set_num_threads(1)
TEXT = "jumps twice, then walks to the left"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("m2dm") / "run"
    small = ("steps=2", "vq_steps=2", "width=32", "layers=1", "replaced=0.1")
    assert main(["train", "m2dm.motions", "--out", str(place), *(w for s in small for w in ("-o", s))]) == 0
    return place


def test_a_trained_model_moves_and_is_animated(folder: Path, tmp_path: Path) -> None:
    model = unmask.load(folder)
    assert isinstance(model, MotionModel)
    poses = model.move(TEXT, seed=1, steps=2)
    assert poses.shape == (2 * FRAMES, CHANNELS) and np.array_equal(poses, model.move(TEXT, seed=1, steps=2))
    assert not np.array_equal(poses, model.move(TEXT, seed=2, steps=2))
    animate(str(folder), TEXT, str(tmp_path / "a.gif"))
    assert (tmp_path / "a.gif").read_bytes()[:4] == b"GIF8"


def test_a_damaged_folder_and_unknown_words_are_refused(folder: Path, tmp_path: Path) -> None:
    model = unmask.load(folder)
    assert isinstance(model, MotionModel)
    with pytest.raises(ValueError, match="does not know 'flies'; it knows walks to the left"):
        model.move("flies to the left")
    with pytest.raises(ValueError, match="at most 14 words"):
        model.move(", then ".join([TEXT] * 3))
    raw = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(raw | {"vq": {"channels": "six"}}))
    with pytest.raises(CheckpointError):
        unmask.load(tmp_path)


def test_rows_and_importance() -> None:
    vq = trained_vq(1.0, 3, 0)
    texts, poses = poses_of("train", 0, 6)
    codes = vq.encode(poses)
    assert codes.shape == (6, CODES) and torch.equal(row(texts[0], codes[0]).ids[LONGEST:], codes[0])
    table = importance_of(vq, poses).tables[Kind.CODE]
    assert table.shape == (vq.size,) and (table > 0).all() and len(table[codes.unique()].unique()) > 1
    with pytest.raises(ValueError, match="multiple of 3 with 6 channels"):
        vq.encode(torch.zeros(1, 5, CHANNELS))


def test_batches_are_functions_of_their_step() -> None:
    source = motions(vq_steps=1).source
    assert not torch.equal(source(0).ids, source(1).ids) and torch.equal(source(1).ids, source(1).ids)
