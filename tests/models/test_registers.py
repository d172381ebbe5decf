"""Step-causal decoding (Sparse-LaViDa): which tokens read which, what is computed, and that rows of a batch do not see each other."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

import unmask
from unmask.checkpoints.lavida_o import load_lavida_o
from unmask.models.elastic import Elastic
from unmask.models.registers import REGISTER, with_registers
from unmask.sampling import blocks, guidance, schedule, selection, token_sampler
from unmask.sampling.sampler import CachedTokenChanged, Sampler
from unmask.sampling.step_causal import ByPosition, by_position, position_order, sparse_image, sparse_text
from unmask.sequence import ON_UNMASK, Kind, Sequence, Span, collate
from unmask.step import Move

from ..step_causal import sparse_folder

torch.set_num_threads(1)
GRID = (8, 8)
IMAGE = sparse_image(
    Sampler(
        schedule=schedule.Shift(steps=5, shift=3.0),
        token_sampler=token_sampler.Categorical(temperature=0.8),
        selection=selection.Confident(),
        guidance=guidance.ClassifierFree(scale=1.5, drop=frozenset({"prompt"}), null_id=639),
    ),
    grid=GRID,
    fold=2,
)
TEXT = sparse_text(
    Sampler(
        schedule=schedule.Equal(steps=2),
        token_sampler=token_sampler.Greedy(),
        selection=selection.Confident(),
        blocks=blocks.Blocks(length=4),
    )
)


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Elastic:
    return load_lavida_o(sparse_folder(tmp_path_factory.mktemp("sparse") / "weights"))[0]


def request(prompt: int, *, kind: int = Kind.CODE, tokens: int = 64, suffix: int = 2, seed: int = 0) -> Sequence:
    """A prompt, masked tokens, and text behind them."""
    ids = torch.randint(1, 600, (prompt + tokens + suffix,), generator=torch.Generator().manual_seed(seed))
    picture: dict[str, Any] = {"grid": GRID, "fold": 2} if kind == Kind.CODE else {}
    spans = (
        Span(name="prompt", kind=Kind.TEXT, start=0, stop=prompt),
        Span(name="open", kind=kind, start=prompt, stop=prompt + tokens, writable=True, **picture),
        Span(name="end", kind=Kind.TEXT, start=prompt + tokens, stop=prompt + tokens + suffix),
    )
    masked = torch.zeros(len(ids), dtype=torch.bool)
    masked[prompt : prompt + tokens] = True
    return Sequence(ids=ids, masked=masked, spans=spans)


@pytest.mark.parametrize("sampler", [IMAGE, TEXT], ids=["image", "text"])
def test_rows_of_unequal_length_are_batch_invariant(net: Elastic, sampler: Sampler) -> None:
    more: dict[str, Any] = {} if sampler is IMAGE else {"kind": Kind.TEXT, "tokens": 12}
    rows = [request(n, seed=n, **more) for n in (9, 4, 15)]
    together = sampler.sample(net, collate(rows, [1, 2, 3]))
    for number, row in enumerate(rows):
        alone = sampler.sample(net, collate([row], [number + 1]))
        assert torch.equal(together.ids[number, : len(row.ids)], alone.ids[0])


def test_a_step_computes_what_was_unmasked_and_what_it_unmasks(net: Elastic) -> None:
    """Prompt and suffix once, every position once masked and once unmasked but the last ones, and four registers a step."""
    counts: list[tuple[int, int]] = []
    block: Any = net.blocks[0]
    hooks = [
        branch.q.register_forward_pre_hook(lambda _, args, b=b: counts.append((b, args[0].shape[:-1].numel())))
        for b, branch in (("und", block.und), ("gen", block.gen))
    ]
    sampler = dataclasses.replace(IMAGE, guidance=guidance.NoGuidance())
    try:
        sampler.sample(net, collate([request(9)], [0]))
    finally:
        for hook in hooks:
            hook.remove()
    steps = sampler.schedule.counts(64)
    positions = [0, *(n // 4 for n in steps)]
    assert [n for b, n in counts if b == "und"] == [11, *[0] * (len(steps) - 1)]
    assert [n for b, n in counts if b == "gen"] == [a + b + 4 for a, b in zip(positions, positions[1:], strict=False)]


def test_given_codes_stay_and_are_read_from_the_first_step(net: Elastic) -> None:
    """Infill: positions that are given belong to the prompt."""
    whole = IMAGE.sample(net, collate([request(9)], [5]))
    kept = torch.zeros(75, dtype=torch.bool)
    kept[torch.tensor([9 + i for i in position_order(GRID, 2)[:32]])] = True
    one = request(9)
    given = dataclasses.replace(one, ids=whole.ids[0].clone(), masked=one.masked & ~kept)
    done = IMAGE.sample(net, collate([given], [5]))
    assert torch.equal(done.ids[0][kept], whole.ids[0][kept])
    assert (done.order[0][kept] == 0).all() and (done.order[0][one.masked & ~kept] > 0).all()


def test_half_a_position_cannot_be_decoded_sparsely(net: Elastic) -> None:
    one = request(9)
    masked = one.masked.clone()
    masked[9] = False
    with pytest.raises(ValueError, match="63 masked codes are not whole positions"):
        IMAGE.sample(net, collate([dataclasses.replace(one, masked=masked)], [0]))


def test_what_is_held_cannot_be_masked_again(net: Elastic) -> None:
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Remasks:
        inner: Any

        def predict(self, batch: Any, block: Any, counts: Any) -> Any:
            return self.inner.predict(batch, block, counts)

        def extra_steps(self, tokens: int, planned: int) -> int:
            return 5

        def __call__(self, batch: Any, proposal: Any, block: Any, counts: Any, progress: Any) -> Move:
            move = self.inner(batch, proposal, block, counts, progress)
            first = (batch.order == 1) & batch.writable & (progress.number == 2)[:, None]
            return dataclasses.replace(move, remask=first)

    with pytest.raises(CachedTokenChanged):
        dataclasses.replace(IMAGE, selection=Remasks(inner=IMAGE.selection)).sample(net, collate([request(9)], [0]))


def test_registers_stand_behind_the_row_and_belong_to_a_group(net: Elastic) -> None:
    batch = collate([request(9), request(4)], [0, 1])
    segment = batch.segment.clone()
    segment[0, 9:41], segment[0, 41:73] = 1, 2
    segment[1, 4:68] = 2
    whole, predict, _ = with_registers(batch.replace(segment=segment), batch.masked, None, net.config)
    added = slice(batch.ids.shape[1], None)
    assert (whole.kind[:, added] == REGISTER).all() and not predict[:, added].any()
    assert whole.segment[0, added].tolist() == [1] * 4 + [2] * 4
    assert whole.valid[:, added].tolist() == [[True] * 8, [False] * 4 + [True] * 4]
    assert whole.position[0, added].tolist() == [27, 28, 29, 30] * 2 and int(whole.position[1, -4]) == 4 + 16 + 2
    assert (whole.order[:, added] == ON_UNMASK).all()


def test_orders_by_position_keep_the_codes_of_a_position_together() -> None:
    assert by_position([2, 0], (2, 6), 2) == (4, 5, 10, 11, 0, 1, 6, 7)
    for grid in (GRID, (4, 12), (6, 6)):
        order = position_order(grid, 2)
        assert sorted(order) == list(range(grid[0] * grid[1]))
        for at in range(0, len(order), 4):
            assert len({(code // grid[1] // 2, code % grid[1] // 2) for code in order[at : at + 4]}) == 1
    assert ByPosition(schedule=schedule.Equal(steps=3), codes=4).counts(16) == [8, 4, 4]


def test_a_step_causal_folder_decodes_sparsely_by_itself(tmp_path: Path) -> None:
    """Opening such a folder gives the samplers that it was trained for."""
    from unmask.pipeline.loading import read_spec

    presets = read_spec(sparse_folder(tmp_path / "weights")).presets

    class Picture:
        grid, fold, mask_id = GRID, 2, 639

    made = presets.generate(Picture())  # type: ignore[arg-type]
    assert made.prior == IMAGE.prior and made.cache == IMAGE.cache and isinstance(made.schedule, ByPosition)
    assert made.selection == selection.InOrder(order=position_order(GRID, 2))
    assert unmask.__version__
