"""The network equals its slow twin, whatever is folded, dropped, padded, scored in part or stopped early."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from unmask.models.attention import fused, plain
from unmask.models.blocks import RMSNorm, SwiGLU
from unmask.models.elastic import Elastic, init
from unmask.rng import generator
from unmask.sequence import Batch, Branch, Kind

from .elastic_cases import (
    CASES,
    CODE,
    CONFIG,
    FEATURE,
    MASK_ID,
    TEXT,
    agree,
    batch_of,
    by_token,
    draw,
    edit,
    make,
)
from .reference import embed_codes, twin

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def model() -> Elastic:
    return make()


@pytest.fixture(autouse=True)
def _no_grad(request: pytest.FixtureRequest) -> Iterator[None]:
    with torch.set_grad_enabled("learns" in request.node.name):
        yield


each_case = pytest.mark.parametrize("case", CASES)


def expected(model: Elastic, batch: Batch, case: str) -> dict[int, Tensor]:
    """All logits of a case by its slow twin: of dropped folded codes, those of the first of each square."""
    rows, dropped = CASES[case]
    answers = twin(dict(model.named_parameters()), model.config, MASK_ID, rows, dropped)
    length = batch.ids.shape[1]
    flat = {b * length + t: x for b, a in enumerate(answers) for t, x in (a.text | a.code).items()}
    return {t: x for t, x in flat.items() if batch.kind.flatten()[t] != FEATURE}  # a feature has no logits


@each_case
def test_equals_the_slow_twin(model: Elastic, case: str) -> None:
    batch = batch_of(*CASES[case])
    predict = batch.valid & (batch.leader | (batch.branch == Branch.GEN))
    agree(by_token(model(batch, predict=predict)), expected(model, batch, case))


@each_case
def test_masked_alone_equals_the_slow_twin(model: Elastic, case: str) -> None:
    """The default, masked tokens: in drawings this ends the understanding branch early, and may leave both heads nothing."""
    batch = batch_of(*CASES[case])
    wanted = expected(model, batch, case)
    masked = set(batch.masked.flatten().nonzero().flatten().tolist())
    agree(by_token(model(batch)), {t: x for t, x in wanted.items() if t in masked})


@pytest.mark.parametrize("joint", [0, 1, 3])
def test_any_number_of_joint_layers(joint: int) -> None:
    model = make(dataclasses.replace(CONFIG, joint_layers=joint))
    for case in ("drawing and looking together", "editing, padded, every kind of loss"):
        batch = batch_of(*CASES[case])
        wanted = expected(model, batch, case)
        masked = set(batch.masked.flatten().nonzero().flatten().tolist())
        agree(by_token(model(batch)), {t: x for t, x in wanted.items() if t in masked})


def test_the_released_shape_of_fold_at_a_wide_grid(model: Elastic) -> None:
    codes = torch.randint(CONFIG.codes + 2, (2, 6, 4), generator=generator("codes"))
    w = dict(model.named_parameters())
    square = torch.arange(24).view(3, 2, 2, 2).permute(0, 2, 1, 3).reshape(1, 6, 4).expand(2, -1, -1)
    for fold in (1, 2):
        got = model.code_embedding(codes.flatten(1), square if fold == 2 else None)
        wanted = torch.stack([embed_codes(w, c, fold) for c in codes])
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)


@each_case
def test_a_row_does_not_depend_on_other_rows(model: Elastic, case: str) -> None:
    rows, dropped = CASES[case]
    batch = batch_of(rows, dropped)
    predict = batch.valid & (batch.leader | (batch.branch == Branch.GEN))
    together = by_token(model(batch, predict=predict))
    length = batch.ids.shape[1]
    for b, (sequence, names) in enumerate(zip(rows, dropped, strict=True)):
        alone = batch_of([sequence], [names])
        predict = alone.valid & (alone.leader | (alone.branch == Branch.GEN))
        shifted = {t + b * length: x for t, x in by_token(model(alone, predict=predict)).items()}
        agree(shifted, {t: x for t, x in together.items() if t // length == b})


@each_case
def test_what_lies_in_the_padding_is_never_read(model: Elastic, case: str) -> None:
    batch = batch_of(*CASES[case])
    noise = torch.randint(8, CONFIG.codes, batch.ids.shape, generator=generator("padding"))
    soiled = batch.replace(ids=torch.where(batch.valid, batch.ids, noise))
    agree(by_token(model(soiled)), by_token(model(batch)))


@each_case
def test_some_tokens_are_scored_as_all_are(model: Elastic, case: str) -> None:
    batch = batch_of(*CASES[case])
    everything = batch.valid & (batch.leader | (batch.branch == Branch.GEN))
    whole = by_token(model(batch, predict=everything))
    for i, kinds in enumerate([(TEXT,), (CODE,), (TEXT, CODE), ()]):
        some = torch.rand(batch.ids.shape, generator=generator("ask", case, i)) < 0.4
        some &= everything & torch.isin(batch.kind, torch.tensor([int(k) for k in kinds], dtype=torch.long))
        prediction = model(batch, predict=some)
        got = by_token(prediction)
        assert set(got) == set(some.flatten().nonzero().flatten().tolist())
        agree(got, {t: whole[t] for t in got})
        for scored in prediction.scored.values():
            assert scored.at.tolist() == sorted(scored.at.tolist())
            assert scored.hidden is not None and len(scored.hidden) == len(scored.at)


def test_understanding_stops_early_and_no_code_logit_changes(model: Elastic, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = batch_of([edit(5, 2), edit(3, 2, seed=1)], [set(), {"source"}])
    codes = batch.valid & (batch.branch == Branch.GEN)
    ended: list[int] = []
    for number, block in enumerate(model.blocks):
        forward = block.forward

        def spy(u: Tensor | None, *rest: Any, number: int = number, forward: Any = forward, **more: Any) -> Any:
            out = forward(u, *rest, **more)
            if out[0] is None:
                ended.append(number)
            return out

        monkeypatch.setattr(block, "forward", spy)
    with_text = model(batch, predict=batch.valid & (batch.leader | codes)).logits(Kind.CODE)
    assert not ended
    without = model(batch, predict=codes).logits(Kind.CODE)
    assert ended == list(range(CONFIG.joint_layers - 1, CONFIG.layers))
    assert torch.equal(with_text, without) or torch.allclose(with_text, without, atol=1e-6, rtol=0)


@each_case
def test_plain_equals_fused_attention(model: Elastic, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = batch_of(*CASES[case])
    slow = by_token(model(batch, predict=batch.valid))
    monkeypatch.setattr(model, "attention", fused)
    agree(by_token(model(batch, predict=batch.valid)), slow)


@pytest.mark.parametrize("attend", ["all", "some", "none for one query"])
def test_attentions_agree(attend: str) -> None:
    rng = generator("attention")
    q, k, v = (torch.randn(2, 3, n, 8, generator=rng) for n in (5, 7, 7))
    mask = None
    if attend != "all":
        mask = torch.rand(2, 1, 5, 7, generator=rng) < 0.5
        mask[..., 0] = True
        if attend.startswith("none"):
            mask[0, 0, 2] = False
    a, b = plain(q, k, v, mask), fused(q, k, v, mask)
    assert a.isfinite().all() and b.isfinite().all()
    reads = torch.ones(2, 5, dtype=torch.bool) if mask is None else mask[:, 0].any(-1)  # what reads nothing is padding
    torch.testing.assert_close(a.transpose(1, 2)[reads], b.transpose(1, 2)[reads], atol=1e-5, rtol=1e-5)
    if mask is not None:  # what may not be read changes nothing
        hidden = ~mask[0, 0, 0]
        k2, v2 = k.clone(), v.clone()
        k2[0, :, hidden], v2[0, :, hidden] = 9.0, 9.0
        assert torch.equal(plain(q, k2, v2, mask)[0, :, 0], a[0, :, 0])


# -- learning ---------------------------------------------------------------------------------------------------------


def test_every_parameter_learns() -> None:
    model = make()
    rows, dropped = CASES["drawing and looking together"]
    batch = batch_of(rows, dropped)
    prediction = model(batch)
    (prediction.logits(Kind.TEXT).square().mean() + prediction.logits(Kind.CODE).square().mean()).backward()
    still = {n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0}
    assert still == {"vision.tower.post_norm.weight", "vision.tower.post_norm.bias"}  # as released: present, unused
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_gradients_are_those_of_the_slow_twin_it_learns() -> None:
    case = "editing, folded, with and without the source"
    rows, dropped = CASES[case]
    batch = batch_of(rows, dropped)
    weight = torch.randn(batch.ids.numel(), CONFIG.codes, generator=generator("weight"))
    fast, slow = make(), make()
    prediction = fast(batch)
    (prediction.logits(Kind.CODE) * weight[prediction.scored[Kind.CODE].at]).sum().backward()
    wanted = expected(slow, batch, case)
    torch.stack([(wanted[t] * weight[t]).sum() for t in prediction.scored[Kind.CODE].at.tolist()]).sum().backward()
    for (name, p), q in zip(fast.named_parameters(), slow.parameters(), strict=True):
        if p.grad is None:
            assert q.grad is None or not q.grad.any(), name
        else:
            torch.testing.assert_close(p.grad, q.grad, atol=1e-4, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def test_init_is_keyed_and_of_unit_scale() -> None:
    a, b, c = Elastic(CONFIG, mask_id=1), Elastic(CONFIG, mask_id=1), Elastic(CONFIG, mask_id=1)
    init(a, generator(1)), init(b, generator(1)), init(c, generator(2))
    same = [torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True)]
    assert all(same)
    assert not torch.equal(a.embed.weight, c.embed.weight)
    batch = batch_of(*CASES["drawing and looking together"])
    prediction = a(batch)
    for logits in (prediction.logits(Kind.TEXT), prediction.logits(Kind.CODE)):
        assert logits.isfinite().all() and 0.1 < float(logits.detach().std()) < 10


def test_init_goes_by_module_types_not_by_names() -> None:
    """Fault: a linear layer with "table" or "position" in its name got the deviation of an embedding."""
    module = nn.ModuleDict(
        {"position": nn.Linear(400, 100), "down": nn.Linear(400, 100), "words": nn.Embedding(100, 50)}
    )
    module["mlp"], module["norm"] = SwiGLU(50, 400), RMSNorm(50, 1e-6)
    init(module, generator("types"))
    deviation = {name: float(p.detach().std()) for name, p in module.named_parameters()}
    for name, wanted in (
        ("position.weight", 400**-0.5),
        ("down.weight", 400**-0.5),
        ("words.weight", 0.5),
        ("mlp.gate.weight", 50**-0.5),
        ("mlp.down.weight", (2 * 400) ** -0.5),
    ):
        assert deviation[name] == pytest.approx(wanted, rel=0.05), name
    assert not module["position"].bias.any() and bool((module["norm"].weight == 1).all())


def test_nothing_to_score() -> None:
    model = make()
    prediction = model(batch_of([draw(3, 2)], [set()]), predict=torch.zeros(1, 29, dtype=torch.bool))
    assert prediction.logits(Kind.TEXT).shape == (0, CONFIG.vocab_size)
    assert prediction.logits(Kind.CODE).shape == (0, CONFIG.codes)
