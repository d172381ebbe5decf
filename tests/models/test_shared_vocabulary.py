"""Image codes in the text vocabulary: the network reads and scores them as the text ids that they are."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from unmask.models.elastic import Elastic, init
from unmask.models.lora import LoRA, in_branches
from unmask.models.sizes import ElasticConfig
from unmask.rng import generator
from unmask.sequence import Batch, Kind, Sequence, Span, collate

torch.set_num_threads(1)
CONFIG = ElasticConfig(
    vocab_size=40,
    width=16,
    heads=2,
    layers=2,
    mlp=24,
    gen_width=0,
    gen_mlp=0,
    joint_layers=2,
    codes=12,
    code_rows=0,
    vision=None,
    first_code=25,
)
MASK_ID = 24
CODES = [3, 0, 11, 7]


@pytest.fixture(scope="module")
def model() -> Elastic:
    made = Elastic(CONFIG, mask_id=MASK_ID).eval()
    init(made, generator("shared", 0))
    return made


def batch_of(kind: int, *, masked: tuple[int, ...] = (1, 3, 4)) -> Batch:
    """Three ids of text, four codes as ``kind``, one id of text; ``masked`` counts from the first code, -1 is the text before it."""
    first = CONFIG.first_code if kind == Kind.TEXT else 0
    spans = (
        Span(name="prompt", kind=Kind.TEXT, start=0, stop=3, writable=True),
        Span(name="image", kind=kind, start=3, stop=7, grid=(2, 2), writable=True),
        Span(name="end", kind=Kind.TEXT, start=7, stop=8, writable=True),
    )
    ids = torch.tensor([1, 2, 5, *(first + c for c in CODES), 9])
    hidden = torch.zeros(8, dtype=torch.bool)
    hidden[[3 + m for m in masked]] = True
    return collate([Sequence(ids=ids, masked=hidden, spans=spans)], [0])


@pytest.mark.parametrize("learns", [False, True])
def test_codes_are_scored_as_their_rows_of_the_text_head(model: Elastic, learns: bool) -> None:
    with torch.set_grad_enabled(learns):
        code, text = batch_of(Kind.CODE), batch_of(Kind.TEXT)
        found, whole = model(code, predict=code.valid), model(text, predict=text.valid)
    rows = slice(CONFIG.first_code, CONFIG.first_code + CONFIG.codes)
    logits = whole.logits(Kind.TEXT)
    assert found.scored[Kind.CODE].at.tolist() == [3, 4, 5, 6] and found.scored[Kind.TEXT].at.tolist() == [0, 1, 2, 7]
    torch.testing.assert_close(found.logits(Kind.CODE), logits[3:7, rows], atol=1e-6, rtol=0)
    torch.testing.assert_close(found.logits(Kind.TEXT), logits[[0, 1, 2, 7]], atol=1e-6, rtol=0)


def test_what_is_read_are_codes_and_not_text_ids(model: Elastic) -> None:
    """Fault: without the offset, code 3 would be read as the text id 3."""
    code = batch_of(Kind.CODE, masked=(0,))
    moved = code.replace(ids=torch.where(code.kind == Kind.CODE, code.ids + 1, code.ids))
    with torch.no_grad():
        assert not torch.equal(model(code).logits(Kind.CODE), model(moved).logits(Kind.CODE))
        assert not torch.equal(model(code).logits(Kind.CODE), model(batch_of(Kind.TEXT, masked=(0,))).logits(Kind.TEXT))


def test_only_masked_tokens_are_scored_and_masked_codes_are_read_as_the_mask(model: Elastic) -> None:
    code = batch_of(Kind.CODE)
    other = code.replace(ids=torch.where(code.masked & (code.kind == Kind.CODE), 5, code.ids))
    with torch.no_grad():
        found, same = model(code), model(other)
    assert found.scored[Kind.CODE].at.tolist() == [4, 6] and found.scored[Kind.TEXT].at.tolist() == [7]
    assert torch.equal(found.logits(Kind.CODE), same.logits(Kind.CODE))


def test_a_batch_without_codes_is_text(model: Elastic) -> None:
    text = batch_of(Kind.TEXT)
    plain = Elastic(replace(CONFIG, first_code=0, codes=0), mask_id=MASK_ID).eval()
    plain.load_state_dict(model.state_dict())
    with torch.no_grad():
        found, wanted = model(text), plain(text)
    assert torch.equal(found.logits(Kind.TEXT), wanted.logits(Kind.TEXT)) and not len(found.scored[Kind.CODE].at)


def test_a_head_with_an_adapter_scores_codes_too(model: Elastic) -> None:
    adapted = Elastic(CONFIG, mask_id=MASK_ID).eval()
    adapted.load_state_dict(model.state_dict())
    LoRA(where=in_branches("text_head"), rank=2)(adapted)
    up = next(p for name, p in adapted.named_parameters() if name.endswith("up"))
    nn.init.constant_(up, 0.3)
    code, text = batch_of(Kind.CODE), batch_of(Kind.TEXT)
    with torch.no_grad():
        found, before = adapted(code).logits(Kind.CODE), model(code).logits(Kind.CODE)
        whole = adapted(text, predict=code.masked).logits(Kind.TEXT)[:2, CONFIG.first_code :][:, : CONFIG.codes]
    assert not torch.allclose(found, before)
    torch.testing.assert_close(found, whole, atol=1e-6, rtol=0)


def test_the_head_is_left_to_the_caller_by_kind(model: Elastic) -> None:
    code = batch_of(Kind.CODE)
    with torch.no_grad():
        found, wanted = model.hidden_states(code), model(code)
        for kind in (Kind.TEXT, Kind.CODE):
            scored = found.scored[kind]
            assert scored.logits is None and scored.head is not None and scored.hidden is not None
            torch.testing.assert_close(scored.head(scored.hidden), wanted.logits(kind), atol=1e-6, rtol=0)


def test_a_dropped_picture_is_null_text(model: Elastic) -> None:
    code = batch_of(Kind.CODE, masked=(4,)).replace(writable=torch.zeros(1, 8, dtype=torch.bool))
    gone = code.drop_tokens(code.kind == Kind.CODE, MASK_ID)
    with torch.no_grad():
        found = model(gone).logits(Kind.TEXT)
        wanted = model(batch_of(Kind.CODE, masked=(0, 1, 2, 3, 4))).logits(Kind.TEXT)
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)


@pytest.mark.parametrize("fields", [{"first_code": 29}, {"first_code": -1}, {"gen_width": 8, "code_rows": 14}])
def test_codes_outside_the_vocabulary_and_codes_with_tables_are_refused(fields: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="first_code .* are not rows of a text model's 40"):
        replace(CONFIG, **fields)
