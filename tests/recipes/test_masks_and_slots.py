"""Complementary masks and slots of ``finetune`` (LaViDa) for models of any family."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from unmask.objectives.masked import Together
from unmask.recipes.finetune import finetune
from unmask.rng import generator

from .. import tiny_lavida, tiny_llada
from ..tasks.test_drafts import with_reserved

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def chats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("chats") / "chats.jsonl"
    said = "the sky is blue the sky is blue the sky is blue"
    rows = [
        {
            "id": str(n),
            "messages": [{"role": "user", "content": f"why is {n}?"}, {"role": "assistant", "content": said}],
        }
        for n in range(8)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def llada(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_reserved(tiny_llada.make(tmp_path_factory.mktemp("models") / "llada"))


def test_a_complement_scores_every_token_of_an_answer_once(llada: Path, chats: Path) -> None:
    both = finetune(str(llada), str(chats), batch=2, holdout=0, masks="complementary")
    one = finetune(str(llada), str(chats), batch=2, holdout=0)
    batch, net = both.source(0), both.model()
    tokens = int((batch["chat"].writable & batch["chat"].valid).sum())
    losses = [recipe.objective(net, batch, generator("masks")) for recipe in (both, one)]
    assert [loss.counts["chat.text"] for loss in losses][0] == tokens  # type: ignore[attr-defined]
    assert losses[1].counts["chat.text"] < tokens  # type: ignore[attr-defined]


def test_every_objective_of_a_model_that_draws_has_a_complement(tmp_path: Path) -> None:
    Image.new("RGB", (128, 128), "red").save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a red apple")
    recipe = finetune("mini", str(tmp_path), lora=2, replay="none", masks="complementary")
    assert isinstance(recipe.objective, Together)
    objectives = {name: task for name, task, _ in recipe.objective.objectives}
    assert {"draw", "describe"} <= set(objectives) and all(task.complementary for task in objectives.values())  # type: ignore[attr-defined]


def test_slots_are_learned_behind_markers_that_are_given(llada: Path, chats: Path) -> None:
    recipe = finetune(str(llada), str(chats), batch=8, holdout=0, slots=1.0)
    batch = recipe.source(0)["chat"]
    text = json.loads((llada / "tokenizer.json").read_text())
    ids = {token["content"]: token["id"] for token in text["added_tokens"]}
    marker, filler = (ids[f"<|reserved_token_{n}|>"] for n in (1, 2))
    marked, filled = batch.valid & (batch.ids == marker), batch.valid & (batch.ids == filler)
    assert bool(marked.any(1).all()) and bool(filled.any())
    assert not bool((marked & batch.writable).any()) and bool((filled & ~batch.writable).sum() == 0)
    plain = finetune(str(llada), str(chats), batch=8, holdout=0).source(0)["chat"]
    assert not bool((plain.ids == marker).any())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"masks": "dual"}, "masks 'dual' is unknown; choose from single, complementary"),
        ({"slots": 1.5}, "slots is 1.5; give a share from 0 to 1"),
    ],
)
def test_wrong_values_are_named(given: dict[str, object], said: str, llada: Path, chats: Path) -> None:
    with pytest.raises(ValueError, match=said):
        finetune(str(llada), str(chats), holdout=0, **given)  # type: ignore[arg-type]


def test_models_without_slots_or_with_their_own_masks_say_so(tmp_path: Path, chats: Path) -> None:
    plain = tiny_llada.make(tmp_path / "plain")
    with pytest.raises(ValueError, match="has no tokens for slots in its tokenizer"):
        finetune(str(plain), str(chats), slots=0.5)
    with pytest.raises(ValueError, match="mini is not a text model, and slots are gaps of texts"):
        finetune("mini", str(chats), slots=0.5)
    lavida = tiny_lavida.make(tmp_path / "lavida")
    for given in ({"masks": "complementary"}, {"slots": 0.5}):
        with pytest.raises(ValueError, match="has the masks and slots of its family"):
            finetune(str(lavida), str(chats), **given)  # type: ignore[arg-type]


def test_the_arguments_keep_what_a_run_learned_before(llada: Path, chats: Path) -> None:
    """The usual values are those of runs that were started without the arguments."""
    first, again = (finetune(str(llada), str(chats), batch=2, holdout=0, **more) for more in ({}, {"masks": "single"}))
    batch = first.source(0)
    totals = [float(r.objective(r.model(), batch, generator("same")).total.detach()) for r in (first, again)]
    assert totals[0] == totals[1] and dataclasses.asdict(first.optim) == dataclasses.asdict(again.optim)
