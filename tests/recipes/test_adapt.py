"""The adaptation of causal checkpoints: both phases on the same rows, a run to a folder that opens, and wrong input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import unmask
from unmask.checkpoints.stream import CheckpointError
from unmask.cli.main import main
from unmask.objectives.next_token import NextToken
from unmask.pipeline.text_model import TextModel
from unmask.recipes.dimple import adapt
from unmask.rng import generator

from .. import tiny_causal, tiny_dream

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def chats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("chats") / "chats.jsonl"
    rows = [
        {
            "id": str(n),
            "messages": [{"role": "user", "content": f"why {n}?"}, {"role": "assistant", "content": "the sky is blue"}],
        }
        for n in range(12)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_causal_phase_predicts_every_token_from_those_before_it(chats: Path, tmp_path: Path) -> None:
    source = tiny_causal.make(tmp_path / "qwen")
    recipe = adapt(str(source), str(chats), causal_steps=2, masks="dual", batch=3, folder=str(tmp_path / "run"))
    first, later = recipe.source(0), recipe.source(2)
    assert (list(first), list(recipe.source(1)), list(later)) == (["causal"], ["causal"], ["chat"])
    net = recipe.model()
    assert net.config.shifted
    tokens = [int((b.writable & b.valid).sum()) for b in (first["causal"], later["chat"])]
    losses = [recipe.objective(net, batches, generator("adapt")) for batches in (first, later)]
    assert [sum(loss.counts.values()) for loss in losses] == tokens  # type: ignore[attr-defined]
    alone = NextToken()(net, first["causal"], generator("adapt"))
    assert float(losses[0].total.detach()) == float(alone.total.detach())  # type: ignore[attr-defined]


def test_answers_end_in_padding_of_a_random_length(chats: Path, tmp_path: Path) -> None:
    recipe = adapt(
        str(tiny_causal.make(tmp_path / "llama", "llama")), str(chats), batch=8, folder=str(tmp_path / "run")
    )
    batch = recipe.source(3)["causal"]
    lengths = {int(n) for n in (batch.writable & batch.valid).sum(1)}
    assert len(lengths) > 1


def test_a_run_ends_in_a_folder_that_answers(chats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = tiny_causal.make(tmp_path / "qwen"), tmp_path / "run"
    words = ["train", "dimple.adapt", "--model", str(source), "--data", str(chats), "--out", str(out)]
    words += ["-o", "causal_steps=2", "-o", "batch=2", "--steps", "2"]
    assert main([*words, "-o", "training.save_every=1"]) == 0, capsys.readouterr().err
    model = unmask.load(out)
    assert isinstance(model, TextModel) and (out / "start" / "config.json").exists()
    capsys.readouterr()
    assert main(["ask", "why 1?", "--model", str(out), "--length", "8", "--sampler", "confident"]) == 0
    assert main([*words[:-1], "4", "--resume"]) == 0, "a run goes on with the converted model that it has"


def test_a_model_in_dreams_layout_needs_no_conversion(chats: Path, tmp_path: Path) -> None:
    recipe = adapt(str(tiny_dream.make(tmp_path / "dream")), str(chats), causal_steps=0, batch=2)
    assert list(recipe.source(0)) == ["chat"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"causal_steps": -1}, "causal_steps is -1; give the number of steps"),
        ({"masks": "both"}, "masks 'both' is unknown; choose from single, dual"),
        ({"folder": ""}, "is adapted in the folder of a run; give one with --out"),
    ],
)
def test_wrong_values_are_named(given: dict[str, object], said: str, chats: Path, tmp_path: Path) -> None:
    source = tiny_causal.make(tmp_path / "qwen")
    with pytest.raises(ValueError, match=said):
        adapt(str(source), str(chats), **({"folder": str(tmp_path / "run")} | given))  # type: ignore[arg-type]


def test_another_kind_of_model_is_refused(chats: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a causal model that can be adapted"):
        adapt("mini", str(chats), folder=str(tmp_path / "run"))
