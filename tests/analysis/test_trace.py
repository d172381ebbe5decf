"""Traces: the sample is the same as without one, and what is told of it agrees with its steps."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import unmask
from unmask.analysis.trace import Run, Trace, trace
from unmask.analysis.trace_page import FIGURES, PAGE, page, write
from unmask.methods.remdm import remdm

from .. import tiny_llada, tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return unmask.load(tiny_model.make(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="module")
def drawn(model: Any) -> Trace:
    return trace(model, lambda m: m.generate("a red apple", seed=2, plan=True, attempts=1, steps=6), "a red apple")


def test_the_sample_is_that_without_a_trace(model: Any, drawn: Trace) -> None:
    plain = model.generate("a red apple", seed=2, plan=True, attempts=1, steps=6)[0]
    assert drawn.result[0].image.tobytes() == plain.image.tobytes() and drawn.result[0].plan == plain.plan
    assert [run.kind for run in drawn.runs] == ["text", "picture"]


def test_orders_and_entropies_of_a_picture(model: Any, drawn: Trace) -> None:
    run = drawn.runs[1]
    assert run.grid == (8, 8) and run.steps == 6 and len(run.shown) == 7
    counts = [s["unmasked"] for s in run.summary()]
    assert counts == [int((run.order == s).sum()) for s in range(1, 7)] and sum(counts) == 64
    assert [s["left"] for s in run.summary()] == [64 - sum(counts[: s + 1]) for s in range(6)]
    codes = model.parts.net.config.codes
    seen = run.entropy[run.masked[:-1]]
    assert not bool(seen.isnan().any()) and 0 <= float(seen.min()) and float(seen.max()) <= math.log(codes) + 1e-4
    own = run.probability[run.order - 1, torch.arange(64)]
    assert bool(((own > 0) & (own <= 1)).all())
    assert not bool(run.rewrites.any())


def test_the_entropy_is_that_of_the_prediction(model: Any) -> None:
    """Without guidance, the first step of a drawing draws from the model's own prediction of an empty canvas."""
    from unmask.sequence import collate
    from unmask.tasks.generate import Generate, picture_places

    found = trace(model, lambda m: m.generate("a cat", plan=False, attempts=1, steps=2, guidance_scale=0.0))
    row = Generate(prompt="a cat").build(model.parts)
    batch = collate([row], [0])
    with torch.no_grad():
        prediction = model.parts.net(batch.replace(time=batch.valid.float()), predict=batch.masked)
    (logits,) = [s.logits for s in prediction.scored.values() if len(s.at)]
    log_p = logits.log_softmax(-1)
    at, _ = picture_places(row, "image")
    assert len(at) == len(log_p)
    assert torch.allclose(found.runs[0].entropy[0], -(log_p.exp() * log_p).sum(-1), atol=1e-4)


def test_rewrites_of_a_sampler_that_masks_again(model: Any) -> None:
    again = model.with_sampler(remdm)
    found = trace(again, lambda m: m.generate("a red apple", seed=2, plan=False, attempts=1, steps=8))
    assert (
        found.result[0].image.tobytes()
        == again.generate("a red apple", seed=2, plan=False, attempts=1, steps=8)[0].image.tobytes()
    )
    (run,) = found.runs
    assert sum(s["rewritten"] for s in run.summary()) == int(run.rewrites.sum()) > 0
    assert "written again" in page(found)


def test_what_a_rewrite_is() -> None:
    ids = torch.tensor([[0, 0, 5], [1, 0, 5], [1, 2, 6], [1, 2, 6], [1, 3, 6]])
    masked = torch.tensor([[1, 1, 0], [0, 1, 0], [0, 0, 0], [0, 1, 0], [0, 0, 0]]).bool()
    run = Run(
        kind="text",
        ids=ids,
        masked=masked,
        entropy=torch.ones(4, 3),
        probability=torch.ones(4, 3),
        shown=("",) * 5,
        names=("a", "b", "c"),
        grid=None,
    )
    assert run.order.tolist() == [1, 4, 0]
    assert run.rewrites.int().tolist() == [[0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 0, 0]]


def test_a_text_family(tmp_path: Path) -> None:
    model = unmask.load(tiny_llada.make(tmp_path / "model"))
    found = trace(model, lambda m: m.ask("why <b>?", seed=1, max_tokens=8, length=8), "why <b>?")
    assert found.result.text == model.ask("why <b>?", seed=1, max_tokens=8, length=8).text
    (run,) = found.runs
    assert run.kind == "text" and sum(s["unmasked"] for s in run.summary()) == len(run.names)
    write(found, tmp_path / "out")
    shown = (tmp_path / "out" / PAGE).read_text()
    assert "why &lt;b&gt;?" in shown and "<b>?" not in shown, "texts are escaped"
    assert json.loads((tmp_path / "out" / FIGURES).read_text()) == found.to_json()
