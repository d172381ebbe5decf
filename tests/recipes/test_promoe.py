"""A drawing model with experts: training from the command line, its folder, and information between experts and objects."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

import unmask
from unmask.checkpoints.stream import CheckpointError
from unmask.cli.main import main
from unmask.recipes.image_tokens import world_kit
from unmask.recipes.promoe import drawer, fresh, information_of, mutual
from unmask.sequence import collate
from unmask.tokens.image_tokens import drawn

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("promoe") / "run"
    small = ("steps=2", "pictures=8", "batch=2", "width=32", "layers=2", "routed=3")
    assert main(["train", "promoe.drawer", "--out", str(place), *(w for s in small for w in ("-o", s))]) == 0
    return place


def test_a_trained_model_draws(folder: Path) -> None:
    model = unmask.load(folder)
    first, again = (model.generate("a red apple on a white background", seed=1, steps=2)[0].image for _ in range(2))
    assert first.size == (128, 128) and first.tobytes() == again.tobytes()
    assert {name for name, _ in model.parts.net.named_parameters() if "cluster_centers" in name}


def test_a_damaged_folder_is_refused(folder: Path) -> None:
    path = folder / "config.json"
    raw = json.loads(path.read_text())
    path.write_text(json.dumps(raw | {"kind": "magic"}))
    try:
        with pytest.raises(CheckpointError, match="kind is 'magic'"):
            unmask.load(folder)
    finally:
        path.write_text(json.dumps(raw))


def test_mutual_information() -> None:
    a = torch.tensor([0, 0, 1, 1])
    assert mutual(a, a) == pytest.approx(math.log(2)) and mutual(a, torch.tensor([0, 1, 0, 1])) == pytest.approx(0)
    assert mutual(a, torch.zeros(4, dtype=torch.long)) == 0


def test_information_of_experts_is_measured_over_codes() -> None:
    kit = world_kit()
    net = fresh(kit, "prototypes", 3, 32, 2, 0)
    codes = torch.randint(100, (4, *kit.grid), generator=torch.Generator().manual_seed(0))
    batch = collate([drawn(kit.text, "a red cat", one) for one in codes], range(4))
    found = information_of(net, batch, torch.arange(4))
    assert found["of_masked"] == pytest.approx(0) and 0 < found["of_object"] < math.log(3) and found["load"] >= 1 / 3


def test_unknown_kinds_are_refused() -> None:
    with pytest.raises(ValueError, match="no kind 'sparse'; choose from prototypes, balanced, dense"):
        drawer(kind="sparse")
