"""Each part of the sampler on small cases worked out by hand, and the loop against a slow twin."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from unmask.models.elastic import Elastic, init
from unmask.models.fake import FakeDenoiser
from unmask.models.sizes import SIZES
from unmask.rng import generator
from unmask.sampling import blocks, guidance, presets, schedule, selection, stopping, token_sampler
from unmask.sampling.orders import stratified
from unmask.sampling.sampler import Sampler
from unmask.sequence import Kind, Sequence, Span, collate
from unmask.step import Prediction, Progress, Proposal, Scored

torch.set_num_threads(1)
V, NULL, END = 24, 3, 5


def row(*spans: tuple[str, int, int, bool], seed: int = 0, pixels: Tensor | None = None) -> Sequence:
    start, table = 0, []
    for name, kind, n, writable in spans:
        grid: dict[str, Any] = {"grid": (4, 4), "fold": 2} if kind == Kind.CODE else {}
        table.append(Span(name=name, kind=kind, start=start, stop=start + n, writable=writable, **grid))
        start += n
    ids = torch.randint(8, 16, (start,), generator=generator(seed))
    masked = torch.cat([torch.full((len(s),), s.writable) for s in table])
    return Sequence(ids=ids, masked=masked, spans=tuple(table), pixels=pixels)


def answer(tokens: int, seed: int = 0) -> Sequence:
    return row(("prompt", Kind.TEXT, 3, False), ("answer", Kind.TEXT, tokens, True), seed=seed)


def picture(seed: int = 0) -> Sequence:
    return row(("prompt", Kind.TEXT, 3 + seed, False), ("image", Kind.CODE, 16, True), seed=seed)


fake = FakeDenoiser(sizes={Kind.TEXT: V, Kind.CODE: 16})


def at_step(number: int, of: int, rows: int = 1, length: int = 100) -> Progress:
    return Progress(number=torch.full((rows,), number), of=torch.full((rows,), of), length=length)


def only_text(logits: Tensor, first: int = 0) -> Prediction:
    return Prediction(scored={Kind.TEXT: Scored(at=torch.arange(first, first + len(logits)), logits=logits)})


def test_the_loop_equals_a_slow_twin() -> None:
    order, counts = stratified(4), schedule.Shift(steps=6, shift=3.0).counts(16)
    sampler = Sampler(
        schedule=schedule.Shift(steps=6, shift=3.0),
        guidance=guidance.ClassifierFree(scale=2.0, drop=frozenset({"prompt"}), null_id=NULL),
        token_sampler=token_sampler.Categorical(temperature=0.8),
        selection=selection.InOrder(order=tuple(order)),
    )
    batch = collate([picture(seed) for seed in range(3)], [7, 8, 9])
    fast = sampler.sample(fake, batch)
    for b in range(3):
        slow, taken, start = batch.row(b), 0, 3 + b
        for clock, n in enumerate(counts):
            chosen = sorted(start + place for place in order[taken : taken + n])
            predict = torch.zeros_like(slow.masked)
            predict[0, chosen] = True
            c, u = (
                fake(slow, predict=predict).logits(Kind.CODE),
                fake(slow.drop({"prompt"}, NULL), predict=predict).logits(Kind.CODE),
            )
            noise = generator(7 + b, clock, "draw")
            ids, masked = slow.ids.clone(), slow.masked.clone()
            u01 = torch.rand(n, 16, generator=noise)
            for i, token in enumerate(chosen):
                scores = [3 * c[i, v] - 2 * u[i, v] - 0.8 * torch.log(-torch.log(u01[i, v])) for v in range(16)]
                ids[0, token] = max(range(16), key=lambda v, scores=scores: float(scores[v]))
                masked[0, token] = False
            slow, taken = slow.replace(ids=ids, masked=masked), taken + n
        assert torch.equal(fast.ids[b], slow.ids[0])


def test_guidance_moves_towards_the_condition_in_both_kinds() -> None:
    c, u = torch.tensor([[1.0, 2.0, -torch.inf]]), torch.tensor([[2.0, 1.0, 0.0]])
    both = [
        Prediction(scored={k: Scored(at=torch.tensor([k]), logits=x) for k in (Kind.TEXT, Kind.CODE)}) for x in (c, u)
    ]
    batch = collate([answer(2)], [0])
    merged = guidance.ClassifierFree(scale=1.5, drop=frozenset(), null_id=NULL).merge(batch, both, at_step(0, 4))
    for logits in (merged.logits(Kind.TEXT), merged.logits(Kind.CODE)):
        assert logits.tolist() == [[2.5 * 1 - 1.5 * 2, 2.5 * 2 - 1.5 * 1, -math.inf]]


def test_edit_guidance_is_the_three_stream_formula() -> None:
    c, e, u = (torch.tensor([[x]]) for x in (1.0, 0.5, -1.0))
    edit = guidance.EditGuidance(scale=1.2, image_scale=1.4, drop=frozenset(), keep=frozenset(), null_id=NULL)
    merged = edit.merge(collate([answer(2)], [0]), [only_text(x) for x in (c, e, u)], at_step(0, 1)).logits(Kind.TEXT)
    assert merged.item() == pytest.approx(2.2 * (2.4 * 1.0 - 1.4 * 0.5) - 1.2 * -1.0)


def test_edit_views_keep_what_they_should() -> None:
    code = ("source", Kind.CODE, 16, False)
    batch = collate(
        [row(("prompt", Kind.TEXT, 2, False), code, ("head", Kind.TEXT, 1, False), ("image", Kind.CODE, 16, True))], [0]
    )
    drop, keep = frozenset({"prompt", "source"}), frozenset({"source"})
    edit = guidance.EditGuidance(scale=1.0, image_scale=1.0, drop=drop, keep=keep, null_id=NULL)
    full, e, u = edit.views(batch, at_step(0, 1))
    assert full is batch
    assert e.ids[0, :2].tolist() == [NULL, NULL] and torch.equal(e.ids[0, 2:], batch.ids[0, 2:])
    assert (u.ids[0, :18] == NULL).all() and torch.equal(u.ids[0, 18:], batch.ids[0, 18:])


def test_guidance_acts_in_its_interval_row_by_row() -> None:
    cfg = guidance.ClassifierFree(scale=1.0, drop=frozenset(), null_id=NULL, interval=(0.5, 0.8))
    batch = collate([answer(2)], [0])
    assert [len(cfg.views(batch, at_step(n, 10))) for n in range(10)] == [1, 1, 1, 1, 2, 2, 2, 2, 1, 1]
    mixed = Progress(number=torch.tensor([0, 5]), of=torch.tensor([10, 10]), length=1)
    merged = cfg.merge(batch, [only_text(torch.ones(2, 1)), only_text(torch.zeros(2, 1))], mixed)
    assert merged.logits(Kind.TEXT).flatten().tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    "part", [token_sampler.Categorical(temperature=0.5), token_sampler.GumbelText(temperature=0.5)], ids=["32", "64"]
)
def test_a_draw_follows_the_tempered_softmax_and_scores_without_it(part: Any) -> None:
    n, logits_V = 4000, torch.tensor([1.0, 0.0, -1.0, -torch.inf])
    batch = collate([answer(n)], [3])
    proposal = part(batch, only_text(logits_V.expand(n, 4), first=3), at_step(0, 1, length=n + 3))
    ids_N = proposal.ids[0, 3:]
    assert torch.allclose(torch.bincount(ids_N, minlength=4) / n, (logits_V / 0.5).softmax(0), atol=0.02)
    assert torch.allclose(proposal.score[0, 3:], logits_V.log_softmax(0)[ids_N])
    assert (proposal.score[0, :3] == -torch.inf).all()


def test_limits_on_ids() -> None:
    batch, logits = collate([answer(50)], [0]), torch.linspace(0, 3, V).expand(50, V)
    only = token_sampler.OnlyIds(low=2, high=4, token_sampler=token_sampler.Categorical())(
        batch, only_text(logits, 3), at_step(0, 1, length=53)
    )
    assert set(only.ids[0, 3:].tolist()) == {2, 3}
    top = token_sampler.TopP(mass=0.2, token_sampler=token_sampler.Categorical())(
        batch, only_text(logits, 3), at_step(0, 1, length=53)
    )
    assert set(top.ids[0, 3:].tolist()) == {V - 1, V - 2}  # 0.13 + 0.11 reach 0.2
    with pytest.raises(ValueError, match="low < high"):
        token_sampler.OnlyIds(low=4, high=4, token_sampler=token_sampler.Greedy())


def nucleus(p: list[float], mass: float) -> set[int]:
    """The definition, written out: the most probable ids, until their probabilities reach the mass."""
    kept, total = set[int](), 0.0
    for i in sorted(range(len(p)), key=lambda i: -p[i]):
        if total >= mass:
            break
        kept.add(i)
        total += p[i]
    return kept


@pytest.mark.parametrize("mass", [1e-6, 0.1, 0.5, 0.9, 0.999, 1.0])
def test_the_nucleus_is_the_published_one(mass: float) -> None:
    logits_NV = torch.randn(200, 30, generator=torch.Generator().manual_seed(1)) * 3
    found_NV = token_sampler.nucleus(logits_NV, mass)
    for logits, found in zip(logits_NV, found_NV, strict=True):
        kept = {i for i in range(30) if found[i] > -torch.inf}
        assert kept == (set(range(30)) if mass == 1 else nucleus(logits.double().softmax(0).tolist(), mass))
        assert all(found[i] == logits[i] for i in kept)


@pytest.mark.parametrize("part", [token_sampler.Categorical, token_sampler.GumbelText], ids=lambda p: p.__name__)
def test_top_p_samples_the_nucleus_and_scores_the_whole(part: Any) -> None:
    n, logits_V = 6000, torch.tensor([2.0, 1.5, 0.5, -1.0])
    batch, at = collate([answer(n)], [3]), at_step(0, 1, length=n + 3)
    prediction = only_text(logits_V.expand(n, 4), first=3)
    proposal = part(temperature=0.5, top_p=0.8)(batch, prediction, at)
    ids_N = proposal.ids[0, 3:]
    kept = torch.tensor([i in nucleus(logits_V.softmax(0).tolist(), 0.8) for i in range(4)])
    assert kept.tolist() == [True, True, False, False]
    wanted = (logits_V / 0.5).masked_fill(~kept, -torch.inf).softmax(0)
    assert torch.allclose(torch.bincount(ids_N, minlength=4) / n, wanted, atol=0.02)
    assert torch.allclose(proposal.score[0, 3:], logits_V.log_softmax(0)[ids_N])
    off, unset = part(temperature=0.5, top_p=1.0)(batch, prediction, at), part(temperature=0.5)(batch, prediction, at)
    assert torch.equal(off.ids, unset.ids) and torch.equal(off.score, unset.score)
    greedy = part(temperature=0.0, top_p=0.1)(batch, prediction, at)
    assert set(greedy.ids[0, 3:].tolist()) == {0}
    assert torch.equal(greedy.score, part(temperature=0.0)(batch, prediction, at).score)
    for wrong in (0.0, -0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="top_p .* is not a share of probability"):
            part(top_p=wrong)


def test_a_text_ends_as_soon_as_enough_of_it_is_unmasked() -> None:
    """The masked rest of the span gets the end id; a span of another kind, and another row, do not."""
    until = stopping.Until(enough=lambda ids: len(ids) >= 2, fill=7)
    batch = collate([answer(5), answer(5)], [0, 1])
    masked = batch.masked.clone()
    masked[0, 3:5] = False  # two of the first row
    masked[1, 4:6] = False  # two of the second, behind a masked one
    ids = batch.ids.masked_fill(~masked, 3)
    found = until(batch.replace(ids=ids, masked=masked))
    assert found.ids[0, 3:].tolist() == [3, 3, 7, 7, 7] and not found.masked[0].any()
    assert torch.equal(found.masked[1], masked[1]) and torch.equal(found.ids[1], ids[1])


def test_scores() -> None:
    logits, ids = torch.tensor([[0.5, 0.3, 0.2]]).log(), torch.tensor([1])
    assert token_sampler.LogProbability()(logits, ids).item() == pytest.approx(math.log(0.3))
    assert token_sampler.Margin()(logits, ids).item() == pytest.approx(0.2)
    assert token_sampler.Entropy()(logits, ids).item() == pytest.approx(sum(p * math.log(p) for p in (0.5, 0.3, 0.2)))


def taken(part: Any, probabilities: list[float], counts: int, seed: int = 0) -> list[int]:
    batch = collate([answer(len(probabilities))], [seed])
    score = torch.cat([torch.full((3,), -torch.inf), torch.tensor(probabilities).log()])[None]
    move = part(batch, Proposal(ids=batch.ids, score=score), batch.masked, torch.tensor([counts]), at_step(0, 1))
    return (move.unmask[0].nonzero().flatten() - 3).tolist()


def test_selections() -> None:
    p = [0.3, 0.95, 0.5, 0.9, 0.95]
    assert taken(selection.Confident(), p, 3) == [1, 3, 4]
    assert taken(selection.Confident(), p, 1) == [1]  # the earlier of two equals
    assert len({tuple(taken(selection.Confident(noise=5.0), p, 2, seed)) for seed in range(20)}) > 3
    assert taken(selection.Threshold(value=0.9), p, 5) == [1, 3, 4]
    assert taken(selection.Threshold(value=0.99), p, 5) == [1]
    assert taken(selection.Factor(factor=0.2), p, 5) == [1, 4]  # 0.95 >= 0.9, 0.95 >= 0.933, 0.9 < 0.95
    assert taken(selection.Factor(factor=0.01), p, 5) == [1]


def test_mask_git_is_a_draw_without_replacement() -> None:
    hits = sum(taken(selection.MaskGit(temperature=0.5), [1.0, 0.5, 0.5], 1, seed) == [0] for seed in range(600))
    assert hits / 600 == pytest.approx(math.exp(2) / (math.exp(2) + 2 * math.exp(1)), abs=0.06)


def test_in_order_follows_its_order_and_says_what_does_not_fit() -> None:
    order, seen = tuple(stratified(4)), []
    sampler = Sampler(
        schedule=schedule.Fixed(each=1), token_sampler=token_sampler.Greedy(), selection=selection.InOrder(order=order)
    )
    sampler.sample(fake, collate([picture()], [0]), on_step=lambda step: seen.append(step.batch.masked[0, 3:].clone()))
    before = [torch.ones(16, dtype=torch.bool), *seen]
    assert [(b & ~a).nonzero().item() for b, a in zip(before, seen, strict=False)] == list(order)
    with pytest.raises(ValueError, match="order of 16 tokens does not fit spans of \\[5\\]"):
        sampler.sample(fake, collate([answer(5)], [0]))
    with pytest.raises(ValueError, match="0 .. 2 once"):
        selection.InOrder(order=(0, 2, 2))


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_all_boxes_advance_and_finish_together(steps: int) -> None:
    def boxes(n: int) -> Sequence:
        named = [("box" + str(i or ""), Kind.TEXT, 4, True) for i in range(n)]
        gaps = [("phrase", Kind.TEXT, 2 + i, False) for i in range(n)]
        return row(*[span for pair in zip(gaps, named, strict=True) for span in pair], seed=n)

    batch, left = collate([boxes(n) for n in (1, 2, 5)], [0, 1, 2]), []

    def watch(step: Any) -> None:
        table = step.batch.span_table
        left.append(
            [[int(step.batch.masked[b, s.start : s.stop].sum()) for s in t if s.writable] for b, t in enumerate(table)]
        )

    result = presets.lavida_o_ground(low=8, high=12, steps=steps).sample(fake, batch, on_step=watch)
    assert len(left) == steps and result.clock.tolist() == [steps] * 3
    for at_this_step in left:
        assert all(max(n) - min(n) <= (0 if 4 % steps == 0 else 1) for n in at_this_step)
    coordinates = result.ids[batch.masked]
    assert ((coordinates >= 8) & (coordinates < 12)).all()


def test_blocks_go_left_to_right_at_each_rows_own_speed() -> None:
    sampler = Sampler(
        schedule=schedule.Equal(steps=2),
        token_sampler=token_sampler.Greedy(),
        selection=selection.Confident(),
        blocks=blocks.Blocks(length=4),
    )
    batch, left = collate([answer(8), answer(3)], [0, 1]), []
    result = sampler.sample(
        fake, batch, on_step=lambda s: left.append((s.number, s.of, s.batch.masked[0, 3:].tolist()))
    )
    assert [(number, of) for number, of, _ in left] == [(i, 4) for i in (1, 2, 3, 4)]
    assert not any(left[1][2][:4]) and all(left[1][2][4:]) and result.clock.tolist() == [4, 2]


def test_end_of_turn_changes_nothing_before_the_end_and_saves_steps() -> None:
    sampler = presets.llada_text(block=8, temperature=1.0)
    batch = collate([answer(40, seed=n) for n in range(6)], range(6))
    whole, cut = (
        dataclasses.replace(sampler, stopping=s).sample(fake, batch)
        for s in (stopping.Never(), stopping.EndOfTurn(ids=(END, 6)))
    )
    ended = 0
    for b in range(6):
        ids = whole.ids[b, 3:].tolist()
        n = next((i for i, token in enumerate(ids) if token in (END, 6)), len(ids) - 1)
        assert cut.ids[b, 3 : n + 4].tolist() == ids[: n + 1]
        late = torch.tensor(ids[n + 1 :]) != cut.ids[b, n + 4 :]
        assert (cut.ids[b, n + 4 :][late] == ids[n]).all()
        ended += int(cut.clock[b] < whole.clock[b])
    assert not cut.masked.any() and ended >= 3


def test_the_threshold_needs_fewer_steps_the_lower_it_is() -> None:
    steps = [
        presets.fast_dllm_text(threshold=t).sample(fake, collate([answer(32)], [0])).clock.item()
        for t in (0.0, 0.4, 1.0)
    ]
    assert steps[0] == 1 < steps[1] < steps[2] == 32


def test_features_and_pixels_give_the_same_answer_in_any_mixture() -> None:
    model = Elastic(SIZES["tiny"], mask_id=NULL).eval()
    init(model, generator("vision"))
    n = SIZES["tiny"].vision.tokens  # type: ignore[union-attr]
    see, predict = ("picture", Kind.FEATURE, n, False), ("question", Kind.TEXT, 3, False)
    rows = [
        dataclasses.replace(
            row(
                see, predict, ("answer", Kind.TEXT, 5, True), pixels=torch.rand(1, 3, 128, 128, generator=generator(i))
            ),
            feature_rows=n,
        )
        for i in (0, 1, 2)
    ]
    with torch.no_grad():
        known = [dataclasses.replace(r, pixels=None, features=model.features(r.pixels)) for r in rows]  # type: ignore[arg-type]
    cfg = guidance.ClassifierFree(scale=1.0, drop=frozenset({"question"}), null_id=NULL)
    sampler = dataclasses.replace(presets.llada_text(block=5), guidance=cfg)
    wanted = sampler.sample(model, collate(rows, [0, 1, 2])).ids
    assert len({tuple(r) for r in wanted[:, -5:].tolist()}) > 1  # pictures matter
    for mixture in (known, [known[0], rows[1], known[2]], [rows[0], known[1], rows[2]]):
        assert torch.equal(sampler.sample(model, collate(mixture, [0, 1, 2])).ids, wanted)


def test_presets_run() -> None:
    drop, keep = frozenset({"prompt"}), frozenset({"source"})
    image = {"grid": (4, 4), "null_id": NULL, "drop": drop}
    pictures = [
        presets.lavida_o_image(**image),
        presets.lavida_o_geneval(**image),
        presets.lavida_o_edit(**image, keep=keep),
    ]
    for sampler in [*pictures, presets.lavida_o_image_256(null_id=NULL, drop=drop)]:
        assert not sampler.sample(fake, collate([picture()], [0])).masked.any()
    for sampler in (
        presets.lavida_text_few_steps(steps=3),
        presets.lavida_o_plan(end=(END,)),
        presets.lavida_o_critique(),
    ):
        assert not sampler.sample(fake, collate([answer(20)], [0])).masked.any()
    with pytest.raises(ValueError, match="square grid, got 4 x 8"):
        presets.lavida_o_image(grid=(4, 8), null_id=NULL, drop=drop)


@pytest.mark.parametrize("shift", [0.0, -1.0, math.inf, math.nan])
def test_a_shift_that_leads_nowhere_is_refused(shift: float) -> None:
    with pytest.raises(ValueError, match="a factor above 0"):
        schedule.Shift(steps=4, shift=shift)
