"""The objectives of ``small`` on another device than the CPU. The meta device stands for an accelerator: it refuses to mix with the CPU,
and everything that reads a value back from the device fails on it.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from unmask.models.elastic import Elastic
from unmask.objectives.align import Aligned
from unmask.objectives.encoded import Encoded, FromBytes, Tokenizer
from unmask.objectives.masked import Together
from unmask.objectives.tokenizer import Squares, Taught
from unmask.recipes import small, small_tasks, small_vq
from unmask.recipes.mini import text
from unmask.rng import generator
from unmask.tokens.vq import VQ
from unmask.training.device import move

META = torch.device("meta")
BF16 = torch.bfloat16


def labelled() -> tuple[Tensor, dict[str, Tensor]]:
    labels = {name: torch.zeros(2, small.CELLS, small.CELLS, dtype=torch.long) for name in small._LABELS}
    return torch.zeros(2, 3, small.SIDE, small.SIDE, dtype=torch.uint8), labels


def teacher() -> Squares:
    shape = small_vq.config(4)
    return Squares(
        mean=torch.zeros(768), basis=torch.zeros(768, shape.d), codebook=torch.zeros(shape.num_vq_embeddings, shape.d)
    )


def aligned() -> Aligned:
    others = (("part", small._LABELS["part"]), ("size", small._LABELS["size"]), ("cell", small._LABELS["cell"]))
    return Aligned(
        words=(("class", ((), *((3, 4) for _ in range(61)))), ("colour", ((), *((5,) for _ in range(11))))),
        codes=others,
    )


CASES: dict[str, tuple[Any, Any, Any]] = {
    "tokenizer": (
        lambda: VQ(small_vq.config(4)),
        lambda: Taught(teacher=teacher(), squares=16),
        lambda: (torch.zeros(2, 64, 64, 3, dtype=torch.uint8),),
    ),
    "align": (lambda: Elastic(small.size(4), mask_id=0), lambda: FromBytes(objective=aligned()), labelled),
}


def test_the_meta_device_refuses_to_mix() -> None:
    with pytest.raises(RuntimeError):
        torch.zeros(3, device=META) @ torch.zeros(3)


@pytest.mark.parametrize("name", CASES)
def test_an_objective_stays_on_the_device(name: str) -> None:
    model, objective, batch = (make() for make in CASES[name])
    loss = objective(model.to(META, BF16), move(batch, META), generator("meta"))
    assert loss.total.device == META and {t.device for t in loss.terms.values()} == {META}
    loss.total.backward()
    assert {p.grad.device for p in model.parameters() if p.grad is not None} == {META}


def test_codes_are_computed_on_the_device() -> None:
    rows = small_tasks.Rows(text=text(), seed=0, times=0.02, look_tokens=72, rendered=small.Rendered())
    encoded = Encoded(objective=Together(objectives=()), tokenizer=Tokenizer(VQ(small_vq.config(4))))
    for part in (*small_tasks.drawing(rows)[:1], *small_tasks._edits(rows)[:1]):
        batch, pictures = move(small._deferred(part.source)(0), META)
        assert pictures.device == META and batch.device == META
        done = encoded.encoded(batch, pictures)
        assert done.ids.device == META and done.clean is done.ids
        assert done.pixels is None or (done.pixels.device == META and done.pixels.dtype == torch.float32)


def test_attention_is_chosen_by_the_device_of_the_batch() -> None:
    q = torch.randn(1, 2, 3, 4, generator=generator("q"))
    mask = torch.ones(1, 1, 3, 3, dtype=torch.bool).tril()
    assert torch.equal(small.by_device(q, q, q, mask), small.plain(q, q, q, mask))
