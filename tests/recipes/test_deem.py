"""Feedback of a trained generator to a small encoder: from the command line, what stays frozen, probes and questions."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
import torch

import unmask
from unmask.cli.main import main
from unmask.pipeline import image_tokens
from unmask.recipes.deem import conditioned, eyes
from unmask.recipes.kontext_rows import SIDE
from unmask.recipes.seeing import (
    PROBES,
    TOKENS,
    WORLD,
    Eyes,
    Looks,
    Tokens,
    contents,
    probe,
    questions,
    seen,
    with_distractors,
)
from unmask.rng import generator
from unmask.sequence import Kind
from unmask.step import Loss

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def drawer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("deem") / "drawer"
    small = ("steps=2", "pictures=8", "layers=1")
    assert main(["train", "deem.generator", "--out", str(place), *(w for s in small for w in ("-o", s))]) == 0
    return place


def test_a_generator_draws_and_gives_feedback_to_an_encoder(drawer: Path, tmp_path: Path) -> None:
    assert unmask.load(drawer).generate("a blue cat in the centre", steps=2)[0].image.size == (SIDE, SIDE)
    small = (f"drawer={drawer}", "steps=2", "images=16")
    assert main(["train", "deem.eyes", "--out", str(tmp_path / "eyes"), *(w for s in small for w in ("-o", s))]) == 0
    assert '"feedback"' in (tmp_path / "eyes" / "metrics.jsonl").read_text()
    with pytest.raises(ValueError, match="give drawer=FOLDER"):
        eyes()


def test_feedback_reaches_the_encoder_and_leaves_the_generator(drawer: Path) -> None:
    net, _ = image_tokens.opened(drawer)
    recipe, model = eyes(frozen=net, images=16), Eyes()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    loss = recipe.objective(model, Looks(count=16, seed=0)(0), generator("deem"))
    assert isinstance(loss, Loss)
    loss.total.backward()
    assert model.queries.grad is not None and float(model.queries.grad.abs().sum()) > 0
    assert all(parameter.grad is None for parameter in net.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


def test_features_stand_in_the_place_of_a_caption() -> None:
    batch = conditioned(Eyes(), Looks(count=16, seed=0)(0))
    (row, *_) = batch.span_table
    assert [span.name for span in row] == ["before", "prompt", "behind", "begin", "image", "end"]
    assert len(row[1]) == TOKENS and row[1].kind == Kind.FEATURE
    assert batch.features is not None and batch.features.shape[0] == batch.rows * TOKENS
    assert torch.equal(batch.feature[1, 1 : TOKENS + 1], torch.arange(TOKENS, 2 * TOKENS))


def test_distractors_change_neither_questions_nor_objects() -> None:
    rng = Random("distractors")
    for i in range(20):
        scene = WORLD(5, i, "test").scene
        harder = with_distractors(scene, rng)
        assert questions(harder) == questions(scene) and harder.objects[: len(scene.objects)] == scene.objects
        assert all(o.distractor and o.name not in WORLD.classes for o in harder.objects[len(scene.objects) :])
    assert len(harder.objects) > len(scene.objects)


def test_a_probe_finds_what_tokens_tell_and_nothing_else() -> None:
    scenes = tuple(WORLD(6, i).scene for i in range(300))
    told = torch.stack([contents(scene) for scene in scenes])[:, None]
    noise = torch.randn(300, 1, 21, generator=generator("noise"))

    def found(tokens: torch.Tensor) -> dict[str, float]:
        halves = [Tokens(tokens=tokens[part], scenes=scenes[part]) for part in (slice(0, 200), slice(200, 300))]
        return probe(*halves)

    assert set(found(told)) == set(PROBES) and min(found(told).values()) > 0.9
    assert max(found(noise).values()) < 0.1


def test_tokens_of_an_encoder_do_not_depend_on_the_batch() -> None:
    net, scenes = Eyes(), [WORLD(7, i).scene for i in range(3)]
    torch.testing.assert_close(seen(net, scenes).tokens[1:2], seen(net, scenes[1:2]).tokens, atol=1e-5, rtol=1e-4)
