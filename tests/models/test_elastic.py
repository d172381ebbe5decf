"""The network equals its slow twin, whatever is folded, dropped, padded, asked or stopped early."""

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
from unmask.models.sizes import SIZES, ElasticConfig
from unmask.models.vision import Vision
from unmask.rng import generator
from unmask.sequence import Batch, Branch, Kind, Sequence, Span, collate
from unmask.step import Prediction

from .reference import embed_codes, see, twin

torch.set_num_threads(1)
CONFIG, MASK_ID = SIZES["tiny"], 7
LOOK = CONFIG.vision.tokens if CONFIG.vision else 0


def make(config: ElasticConfig = CONFIG) -> Elastic:
    """Random weights everywhere, norms, biases and the newline included, so that none of them can be forgotten unseen."""
    model = Elastic(config, mask_id=MASK_ID).eval()
    init(model, generator("test_elastic"))
    rng = generator("norms")
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() == 1:
                p += 0.3 * torch.randn(p.shape, generator=rng)
    return model


@pytest.fixture(scope="module")
def model() -> Elastic:
    return make()


@pytest.fixture(autouse=True)
def _no_grad(request: pytest.FixtureRequest) -> Iterator[None]:
    with torch.set_grad_enabled("learns" in request.node.name):
        yield


def row(*spans: tuple[str, int, int | tuple[int, int], int], fold: int = 1, seed: int = 0) -> Sequence:
    """(name, kind, tokens or grid, segment) of each span; random ids, half of the tokens of "answer", "box", "image" masked."""
    rng = generator("row", seed)
    table, ids, masked, pictures = [], [], [], 0
    for name, kind, size, segment in spans:
        grid = {"grid": size, "fold": fold} if isinstance(size, tuple) else {}
        tokens = size[0] * size[1] if isinstance(size, tuple) else size
        start = sum(map(len, ids))
        writable = name in ("answer", "box", "image")
        span = Span(name=name, kind=kind, start=start, stop=start + tokens, segment=segment, writable=writable, **grid)  # type: ignore[arg-type]
        if kind == Kind.FEATURE:
            span = dataclasses.replace(span, image=pictures)
            pictures += 1
        table.append(span)
        ids.append(torch.randint(8, CONFIG.codes if kind == Kind.CODE else CONFIG.vocab_size, (tokens,), generator=rng))
        masked.append((torch.rand(tokens, generator=rng) < 0.5) & writable)
    return Sequence(
        ids=torch.cat(ids),
        masked=torch.cat(masked),
        spans=tuple(table),
        pixels=torch.rand(pictures, 3, 128, 128, generator=rng) if pictures else None,
        feature_rows=pictures * LOOK,
    )


TEXT, CODE, FEATURE = Kind.TEXT, Kind.CODE, Kind.FEATURE


def text(n: int, seed: int = 0) -> Sequence:
    return row(("prompt", TEXT, n, 0), ("answer", TEXT, 6, 0), seed=seed)


def draw(n: int, fold: int, seed: int = 0, grid: tuple[int, int] = (4, 6)) -> Sequence:
    return row(("prompt", TEXT, n, 0), ("image", CODE, grid, 0), ("end", TEXT, 2, 0), fold=fold, seed=seed)


def edit(n: int, fold: int, seed: int = 0) -> Sequence:
    before = ("prompt", TEXT, 3, 0), ("look", FEATURE, LOOK, 0), ("source", CODE, (4, 6), 0), ("prompt", TEXT, n, 0)
    return row(*before, ("image", CODE, (4, 6), 0), ("end", TEXT, 1, 0), fold=fold, seed=seed)


def look(seed: int = 0) -> Sequence:
    questions = [
        (name, TEXT, 2 + i + len(name) % 3, i) for i in (1, 2, 3) for name in ("question", "answer" if i < 3 else "box")
    ]
    return row(("prompt", TEXT, 3, 0), ("look", FEATURE, LOOK, 0), *questions, seed=seed)


# name -> (rows, names of the spans that each row loses)
CASES: dict[str, tuple[list[Sequence], list[set[str]]]] = {
    "text": ([text(5), text(5, seed=1)], [set(), set()]),
    "text, padded": ([text(9), text(2, seed=1), text(4, seed=2)], [set()] * 3),
    "drawing": ([draw(5, 1), draw(5, 1, seed=1)], [set(), set()]),
    "drawing, folded": ([draw(5, 2), draw(5, 2, seed=1)], [set(), set()]),
    "drawing, padded, one without its prompt": ([draw(8, 2), draw(3, 2, seed=1), draw(5, 2, seed=2)], [set(), {"prompt"}, set()]),
    "editing": ([edit(5, 1), edit(5, 1, seed=1)], [set(), set()]),
    "editing, folded, with and without the source": ([edit(5, 2), edit(5, 2, seed=1)], [set(), {"source"}]),
    "editing, padded, every kind of loss": (
        [edit(5, 2), edit(2, 2, seed=1), edit(9, 2, seed=2), edit(4, 2, seed=3), edit(1, 2, seed=4)],
        [{"source"}, set(), {"prompt", "look"}, {"prompt", "look", "source"}, {"look"}],
    ),
    "grids and folds of every size": (
        [draw(4, 2), draw(3, 1), row(("prompt", TEXT, 2, 0), ("source", CODE, (2, 4), 0), ("image", CODE, (4, 2), 0), fold=2), text(3)],
        [set(), set(), set(), set()],
    ),
    "looking, with segments": ([look(), look(seed=1)], [set(), {"look"}]),
    "drawing and looking together": ([draw(4, 2), look(seed=1), text(3), edit(5, 2, seed=5)], [set(), set(), set(), {"source"}]),
}  # fmt: skip
each_case = pytest.mark.parametrize("case", CASES)


def batch_of(rows: list[Sequence], dropped: list[set[str]]) -> Batch:
    batch = collate(rows, range(len(rows)))
    gone = torch.zeros_like(batch.masked)
    for b, (sequence, names) in enumerate(zip(rows, dropped, strict=True)):
        for span in sequence.spans:
            if span.name in names:
                gone[b, span.start : span.stop] = True
    return batch.drop_tokens(gone, MASK_ID)


def by_token(prediction: Prediction) -> dict[int, Tensor]:
    """Flat token number -> logits."""
    pairs = [zip(scored.at.tolist(), prediction.logits(k), strict=True) for k, scored in prediction.scored.items()]
    return {token: logits for some in pairs for token, logits in some}


def agree(got: dict[int, Tensor], wanted: dict[int, Tensor]) -> None:
    assert got.keys() == wanted.keys()
    for token in got:
        torch.testing.assert_close(
            got[token], wanted[token], atol=1e-5, rtol=1e-5, msg=lambda m, t=token: f"token {t}: {m}"
        )


def expected(model: Elastic, batch: Batch, case: str) -> dict[int, Tensor]:
    """All logits of a case by its slow twin: of dropped folded codes, those of the first of each square."""
    rows, dropped = CASES[case]
    answers = twin(dict(model.named_parameters()), model.config, MASK_ID, rows, dropped)
    length = batch.ids.shape[1]
    flat = {b * length + t: x for b, a in enumerate(answers) for t, x in (a.text | a.code).items()}
    return {t: x for t, x in flat.items() if batch.kind.flatten()[t] != FEATURE}  # nothing can be asked of a patch


@each_case
def test_equals_the_slow_twin(model: Elastic, case: str) -> None:
    batch = batch_of(*CASES[case])
    ask = batch.valid & (batch.leader | (batch.branch == Branch.GEN))
    agree(by_token(model(batch, predict=ask)), expected(model, batch, case))


@each_case
def test_masked_alone_equals_the_slow_twin(model: Elastic, case: str) -> None:
    """The default question: in drawings this ends the understanding branch early, and may leave both heads nothing."""
    batch = batch_of(*CASES[case])
    wanted = expected(model, batch, case)
    asked = set(batch.masked.flatten().nonzero().flatten().tolist())
    agree(by_token(model(batch)), {t: x for t, x in wanted.items() if t in asked})


@pytest.mark.parametrize("joint", [0, 1, 3])
def test_any_number_of_joint_layers(joint: int) -> None:
    model = make(dataclasses.replace(CONFIG, joint_layers=joint))
    for case in ("drawing and looking together", "editing, padded, every kind of loss"):
        batch = batch_of(*CASES[case])
        wanted = expected(model, batch, case)
        asked = set(batch.masked.flatten().nonzero().flatten().tolist())
        agree(by_token(model(batch)), {t: x for t, x in wanted.items() if t in asked})


def test_the_released_shape_of_fold_at_a_wide_grid(model: Elastic) -> None:
    codes = torch.randint(CONFIG.codes + 2, (2, 6, 4), generator=generator("codes"))
    w = dict(model.named_parameters())
    square = torch.arange(24).view(3, 2, 2, 2).permute(0, 2, 1, 3).reshape(1, 6, 4).expand(2, -1, -1)
    for fold in (1, 2):
        got = model.code_embedding(codes.flatten(1), square if fold == 2 else None)
        wanted = torch.stack([embed_codes(w, c, fold) for c in codes])
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)


@each_case
def test_a_row_does_not_depend_on_its_company(model: Elastic, case: str) -> None:
    rows, dropped = CASES[case]
    batch = batch_of(rows, dropped)
    ask = batch.valid & (batch.leader | (batch.branch == Branch.GEN))
    together = by_token(model(batch, predict=ask))
    length = batch.ids.shape[1]
    for b, (sequence, names) in enumerate(zip(rows, dropped, strict=True)):
        alone = batch_of([sequence], [names])
        ask = alone.valid & (alone.leader | (alone.branch == Branch.GEN))
        shifted = {t + b * length: x for t, x in by_token(model(alone, predict=ask)).items()}
        agree(shifted, {t: x for t, x in together.items() if t // length == b})


@each_case
def test_what_lies_in_the_padding_is_never_read(model: Elastic, case: str) -> None:
    batch = batch_of(*CASES[case])
    noise = torch.randint(8, CONFIG.codes, batch.ids.shape, generator=generator("padding"))
    soiled = batch.replace(ids=torch.where(batch.valid, batch.ids, noise))
    agree(by_token(model(soiled)), by_token(model(batch)))


@each_case
def test_subsets_of_the_question(model: Elastic, case: str) -> None:
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


# -- who reads whom ---------------------------------------------------------------------------------------------------


def changed(model: Elastic, before: Batch, after: Batch, ask: Tensor) -> set[int]:
    a, b = by_token(model(before, predict=ask)), by_token(model(after, predict=ask))
    return {t for t in a if not torch.equal(a[t], b[t])}


def test_segments_read_the_context_and_themselves_alone(model: Elastic) -> None:
    sequence = look()
    batch = batch_of([sequence], [set()])
    ask = batch.kind == Kind.TEXT
    for segment in (0, 1, 2, 3):
        token = int(((batch.segment[0] == segment) & (batch.kind[0] == Kind.TEXT) & ~batch.masked[0]).nonzero()[0])
        ids = batch.ids.clone()
        ids[0, token] += 1 if ids[0, token] < CONFIG.vocab_size - 1 else -1
        moved = changed(model, batch, batch.replace(ids=ids), ask)
        reached = {int(batch.segment[0, t]) for t in moved}
        assert reached == ({0, 1, 2, 3} if segment == 0 else {segment})


def test_one_question_is_answered_as_if_alone(model: Elastic) -> None:
    sequence = look()
    whole = by_token(model(batch_of([sequence], [set()])))
    for segment in (1, 2, 3):
        kept = [s for s in sequence.spans if s.segment in (0, segment)]
        index = torch.cat([torch.arange(s.start, s.stop) for s in kept])
        spans, at = [], 0
        for s in kept:
            spans.append(dataclasses.replace(s, start=at, stop=at + len(s), segment=0))  # as a plain sequence
            at += len(s)
        # The context of a plain sequence sees the question, so it must be asked as a segment to be equal.
        spans = [dataclasses.replace(s, segment=int(o.segment > 0)) for s, o in zip(spans, kept, strict=True)]
        alone = Sequence(
            ids=sequence.ids[index], masked=sequence.masked[index], spans=tuple(spans), pixels=sequence.pixels
        )
        got = {int(index[t]): x for t, x in by_token(model(batch_of([alone], [set()]))).items()}
        agree(got, {t: whole[t] for t in got})


def test_an_undecided_token_hides_its_id(model: Elastic) -> None:
    """Training batches carry the truth in ``ids``: it must not leak into any logit."""
    for case, (rows, dropped) in CASES.items():
        batch = batch_of(rows, dropped)
        other = torch.randint(8, CONFIG.codes, batch.ids.shape, generator=generator("leak", case))
        lied = batch.replace(ids=torch.where(batch.masked, other, batch.ids), clean=torch.zeros_like(batch.ids))
        agree(by_token(model(lied)), by_token(model(batch)))


def test_split_layers_keep_the_branches_apart() -> None:
    model = make(dataclasses.replace(CONFIG, joint_layers=0))
    batch = batch_of([edit(5, 2)], [set()])
    ids = batch.ids.clone()
    ids[0, 0] += 1
    moved = changed(model, batch, batch.replace(ids=ids), batch.valid)
    assert moved and {int(batch.kind[0, t]) for t in moved} == {int(Kind.TEXT)}


def test_every_position_matters(model: Elastic) -> None:
    """Moving a token in the sequence changes what is said of it: RoPE is applied, in both branches."""
    batch = batch_of([draw(5, 2)], [set()])
    shifted = batch.replace(position=batch.position + 3 * (batch.branch == Branch.GEN))
    moved = changed(model, batch, shifted, batch.valid)
    assert moved == set(by_token(model(batch, predict=batch.valid)))
    # Only distances count: all moved together is the same but for rounding.
    same = by_token(model(batch.replace(position=batch.position + 11), predict=batch.valid))
    for token, logits in by_token(model(batch, predict=batch.valid)).items():
        torch.testing.assert_close(same[token], logits, atol=1e-4, rtol=1e-4)


def test_pictures_go_to_their_own_rows(model: Elastic) -> None:
    rows = [edit(3, 2), draw(4, 2), edit(5, 2, seed=2)]
    batch = batch_of(rows, [set()] * 3)
    assert batch.pixels is not None and len(batch.pixels) == 2
    other = batch.pixels.clone()
    other[1] = 1 - other[1]
    moved = changed(model, batch, batch.replace(pixels=other), batch.masked)
    assert {t // batch.ids.shape[1] for t in moved} == {2}


def test_known_features_take_the_place_of_pixels() -> None:
    model = make()
    batch = batch_of([edit(3, 2)], [set()])
    first = model(batch)
    assert batch.pixels is not None
    known = batch.replace(pixels=None, features=model.features(batch.pixels))
    model.vision = None
    agree(by_token(model(known)), by_token(first))
    with pytest.raises(ValueError, match="without its vision part"):
        model(batch)


def test_vision_equals_the_slow_twin(model: Elastic) -> None:
    assert isinstance(model.vision, Vision)
    pixels = torch.rand(2, 3, 128, 128, generator=generator("pixels"))
    got = model.vision(pixels)
    wanted = torch.stack([see(dict(model.named_parameters()), CONFIG, p) for p in pixels])
    assert got.shape == (2, LOOK, CONFIG.width)
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)


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


def test_an_empty_question() -> None:
    model = make()
    prediction = model(batch_of([draw(3, 2)], [set()]), predict=torch.zeros(1, 29, dtype=torch.bool))
    assert prediction.logits(Kind.TEXT).shape == (0, CONFIG.vocab_size)
    assert prediction.logits(Kind.CODE).shape == (0, CONFIG.codes)
