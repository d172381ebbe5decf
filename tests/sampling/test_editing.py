"""Token editing as a sampler equals LLaDA2.1's released loop, which the measured arrays prove, with and without the exact cache."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import unmask
from tests.tiny_llada2 import write_text_model
from unmask.pipeline.text_model import TextModel
from unmask.protocols import Lingering
from unmask.sampling.block_diffusion import Candidates, Editing, Finished, Row, greedy
from unmask.sampling.cache import NoCache
from unmask.sampling.editing import TokenEditing
from unmask.sampling.llada2 import llada2_text
from unmask.sampling.presets import token_editing
from unmask.sampling.sampler import Sampler
from unmask.sequence import Kind, Sequence, Span
from unmask.tokens.llada2 import in_blocks
from unmask.tokens.text import MASK

BLOCK, PROMPT, LENGTH = 8, 13, 19


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TextModel:
    opened = unmask.load(write_text_model(tmp_path_factory.mktemp("llada21")), device="cpu")
    assert isinstance(opened, TextModel)
    return opened


def _prompt(seed: int) -> Tensor:
    return torch.randint(0, 256, (PROMPT,), generator=torch.Generator().manual_seed(seed))


def _request(model: TextModel, prompt: Tensor) -> Sequence:
    ids = torch.tensor([*prompt.tolist(), *[model.parts.text[MASK]] * LENGTH])
    spans = (
        Span(name="prompt", kind=Kind.TEXT, start=0, stop=PROMPT),
        Span(name="answer", kind=Kind.TEXT, start=PROMPT, stop=len(ids), writable=True),
    )
    return in_blocks(Sequence(ids=ids, masked=torch.arange(len(ids)) >= PROMPT, spans=spans), BLOCK)


def _sampler(model: TextModel, **given: float) -> Sampler:
    base = llada2_text(text_ids=model.parts.text.size, mask_id=model.parts.text[MASK], block=BLOCK)
    return token_editing(base, **given)  # type: ignore[arg-type]


def _released(model: TextModel, prompt: Tensor, threshold: float, editing: float, most: int) -> Finished:
    mask = model.parts.text[MASK]

    def never_the_mask(logits: Tensor) -> Candidates:
        return greedy(logits.index_fill(1, torch.tensor([mask]), -torch.inf))

    loop = Editing(block=BLOCK, mask_id=mask, threshold=threshold, editing_threshold=editing, most_post_steps=most)
    return loop.run(Row(net=model.parts.net, block=BLOCK), prompt, LENGTH, never_the_mask)


@pytest.mark.parametrize(("threshold", "editing", "most"), [(0.02, 0.01, 16), (0.95, 0.9, 16), (0.02, 0.0, 2)])
def test_it_is_the_released_loop(model: TextModel, threshold: float, editing: float, most: int) -> None:
    sampler = _sampler(model, threshold=threshold, editing=editing, most=most)
    rows = [_request(model, _prompt(seed)) for seed in (1, 2)]
    wanted = [_released(model, _prompt(seed), threshold, editing, most).ids.tolist() for seed in (1, 2)]
    done = model.run(rows, [0, 0], sampler).rows
    alone = model.run(rows[1:], [0], replace(sampler, cache=NoCache())).rows[0]
    assert [one.ids[PROMPT:].tolist() for one in done] == wanted and torch.equal(done[1].ids, alone.ids)


def test_editing_changes_the_answer(model: TextModel) -> None:
    made = [_released(model, _prompt(1), 0.02, editing, 16).ids.tolist() for editing in (0.01, 2.0)]
    assert made[0] != made[1]


def test_a_user_names_it(model: TextModel) -> None:
    from unmask.pipeline.catalogue import find_sampler

    change, rest = find_sampler("token_editing", ["threshold=0.02", "editing=0.01", "most=4", "blocks.x=1"])
    assert rest == ["blocks.x=1"]
    edited = model.with_sampler(change)
    assert edited.ask("why?", max_tokens=40).text != model.ask("why?", max_tokens=40).text


def test_it_lingers_and_needs_a_run(model: TextModel) -> None:
    selection = _sampler(model, most=5).selection
    assert isinstance(selection, TokenEditing) and isinstance(selection, Lingering) and selection.lingering == 5
