"""DiDA: the attention rule and the guidance against measured arrays, rows of two copies, and what sampling needs of them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from unmask.methods.dida import (
    CLEAN,
    NOISY,
    TEXT,
    Adaptation,
    Anchored,
    AnchorFirst,
    CausalGuidance,
    Late,
    TwoCopies,
    canvas,
    causal,
    reading,
    two_copies,
)
from unmask.models.attention import plain
from unmask.models.elastic import Elastic, init
from unmask.models.sizes import ElasticConfig
from unmask.models.streams import attend, stream
from unmask.objectives.masked import Dropout
from unmask.rng import generator
from unmask.sampling.sampler import Sampler
from unmask.sampling.schedule import Equal
from unmask.sampling.selection import Confident
from unmask.sampling.token_sampler import Categorical
from unmask.sequence import Batch, Kind, Sequence, Span, collate
from unmask.step import Prediction, Progress, Proposal, Scored

torch.set_num_threads(1)
Golden = Callable[[str], dict[str, Tensor]]
CONFIG = ElasticConfig(
    vocab_size=40, width=32, heads=2, layers=2, mlp=48, gen_width=0, gen_mlp=0, joint_layers=2,
    rope_theta=100.0, codes=16, code_rows=0, vision=None, shifted=True, first_code=24,
)  # fmt: skip
MASK = 1


def row(*pictures: int, seed: int = 0) -> Sequence:
    """Text of three tokens, then for each picture a token that announces it, so many codes, and two tokens of text."""
    spans, start = [Span(name="prompt", kind=Kind.TEXT, start=0, stop=3)], 3
    for number, codes in enumerate(pictures):
        spans.append(Span(name=f"begin {number}", kind=Kind.TEXT, start=start, stop=start + 1))
        stop = start + 1 + codes
        spans.append(
            Span(name=f"image {number}", kind=Kind.CODE, start=start + 1, stop=stop, grid=(1, codes), writable=True)
        )
        spans.append(Span(name=f"text {number}", kind=Kind.TEXT, start=stop, stop=stop + 2))
        start = stop + 2
    ids = torch.randint(2, 16, (start,), generator=generator("row", seed))
    return Sequence(ids=ids, masked=torch.zeros(start, dtype=torch.bool), spans=tuple(spans))


def network(seed: int = 0) -> Elastic:
    net = Elastic(CONFIG, mask_id=MASK)
    init(net, generator("net", seed))
    return net.eval()


def everything(net: Elastic, sequence: Sequence) -> Tensor:
    """The hidden state that predicts each token but the first, [L - 1, D]."""
    batch = collate([sequence], [0])
    predict = torch.ones_like(batch.masked)
    predict[:, 0] = False
    scored = net(batch, predict=predict).scored
    hidden = torch.zeros(len(sequence.ids), CONFIG.width)
    for part in scored.values():
        assert part.hidden is not None
        hidden[part.at] = part.hidden
    return hidden[1:].detach()


def visible_of(batch: Batch) -> Tensor:
    whole = stream(batch.valid, None)
    assert whole is not None
    found = attend(batch, [whole], True)
    assert found is not None
    return found[0, 0]


@pytest.mark.parametrize("name", ["mask.a", "mask.b"])
def test_attention_is_that_of_the_measured_arrays(golden: Golden, name: str) -> None:
    a = {key.removeprefix(f"{name}."): value for key, value in golden("dida").items() if key.startswith(name)}
    segment, order = reading(a["kind"], a["image"], a["position"])
    text = Span(name="text", kind=Kind.TEXT, start=0, stop=len(order))
    blank = collate([Sequence(ids=torch.zeros_like(order), masked=torch.zeros_like(order).bool(), spans=(text,))], [0])
    visible = visible_of(blank.replace(segment=segment[None], order=order[None]))
    assert torch.equal(visible, a["visible"].bool())
    x = a["x"][None, None]
    for _ in range(2):
        x = x + plain(x @ a["Wq"], x @ a["Wk"], x @ a["Wv"], visible[None, None])
    torch.testing.assert_close(x[0, 0], a["out"], rtol=0, atol=2e-6)


def test_guidance_is_that_of_the_measured_arrays(golden: Golden) -> None:
    a = {key.removeprefix("cfg."): value for key, value in golden("dida").items() if key.startswith("cfg.")}
    sequence = row(len(a["cond"]))
    batch = collate([sequence], [0])
    at = torch.arange(len(a["cond"])) + 4

    def guided(scale: float, image_scale: float | None) -> Tensor:
        views = ["cond", "no_text", *([] if image_scale is None else ["no_any"])]
        predictions = [Prediction(scored={Kind.CODE: Scored(at=at, logits=a[view])}) for view in views]
        guidance = CausalGuidance(
            scale=scale,
            drop={"prompt"},
            null_id=MASK,
            pictures=frozenset() if image_scale is None else frozenset({"image"}),
            image_scale=image_scale or 1.0,
        )
        return guidance.merge(batch, predictions, PROGRESS).logits(Kind.CODE)

    names = [name for name in a if "stream" in name]
    assert names
    for name in names:
        found = re.fullmatch(r"(two|three)_stream_s([0-9.]+?)(?:_i([0-9.]+))?", name)
        assert found is not None, name
        third = float(found[3]) if found[1] == "three" else None
        torch.testing.assert_close(guided(float(found[2]), third), a[name], rtol=0, atol=1e-5)


PROGRESS = Progress(number=torch.zeros(1, dtype=torch.long), of=torch.ones(1, dtype=torch.long), length=9)


def test_guidance_leaves_text_as_it_is_and_drops_what_it_names() -> None:
    batch = collate([row(3, 2)], [0])
    guidance = CausalGuidance(scale=2.0, drop={"prompt"}, null_id=MASK, pictures=frozenset({"source"}))
    views = guidance.views(batch, PROGRESS)
    assert [int((view.ids == MASK).sum()) for view in views] == [0, 3, 3]
    assert len(dataclasses.replace(guidance, pictures=frozenset()).views(batch, PROGRESS)) == 2
    assert len(CausalGuidance(scale=1.0, drop={"prompt"}, null_id=MASK).views(batch, PROGRESS)) == 1
    words, codes = (torch.randn(2, 5, generator=generator(i)) for i in (1, 2))
    both = [
        Prediction(
            scored={
                Kind.TEXT: Scored(at=torch.tensor([0, 1]), logits=words + i),
                Kind.CODE: Scored(at=torch.tensor([4, 5]), logits=codes * (i + 1)),
            }
        )
        for i in range(2)
    ]
    merged = dataclasses.replace(guidance, pictures=frozenset()).merge(batch, both, PROGRESS)
    assert torch.equal(merged.logits(Kind.TEXT), words) and not torch.equal(merged.logits(Kind.CODE), codes)
    only_text = [Prediction(scored={Kind.TEXT: p.scored[Kind.TEXT]}) for p in both]
    assert guidance.merge(batch, only_text, PROGRESS) is only_text[0]


def roles(sequence: Sequence) -> tuple[Tensor, Tensor, Tensor]:
    """What ``reading`` takes, from the spans of a row of two copies; the token that announces a picture belongs to it."""
    role, picture = torch.full((len(sequence.ids),), TEXT), torch.full((len(sequence.ids),), -1)
    clean = [span for span in sequence.spans if span.kind == Kind.CODE and not span.writable]
    for number, span in enumerate(clean):
        role[span.start - 1 : span.stop], picture[span.start - 1 : span.stop] = CLEAN, number
    for span in sequence.spans:
        if span.segment:
            role[span.start : span.stop], picture[span.start : span.stop] = NOISY, span.segment - 1
    return role, picture, collate([sequence], [0]).position[0]


@pytest.mark.parametrize("leak", [False, True])
@pytest.mark.parametrize("pictures", [(4,), (4, 3), (1, 5, 2)])
def test_rows_of_two_copies_follow_the_rule(pictures: tuple[int, ...], leak: bool) -> None:
    clean, made = row(*pictures), two_copies(row(*pictures), leak=leak)
    batch = collate([made], [0])
    role, picture, position = roles(made)
    segment, order = reading(role, picture, position, leak=leak)
    assert torch.equal(visible_of(batch), visible_of(batch.replace(segment=segment[None], order=order[None])))
    assert len(made.ids) == len(clean.ids) + sum(pictures) + len(pictures)
    assert position[role != NOISY].tolist() == list(range(len(clean.ids)))
    for number in range(len(pictures)):
        copies = [(role == kind) & (picture == number) for kind in (CLEAN, NOISY)]
        assert torch.equal(made.ids[copies[0]], made.ids[copies[1]])
        assert torch.equal(position[copies[0]], position[copies[1]])
    assert int(batch.writable.sum()) == sum(pictures) and bool((batch.segment[batch.writable] > 0).all())


def test_clean_tokens_are_those_of_the_causal_network() -> None:
    net, clean = network(), row(4, 3)
    both = everything(net, two_copies(clean))
    torch.testing.assert_close(both[: len(clean.ids) - 1], everything(net, causal(clean)), rtol=0, atol=1e-5)


def test_noisy_tokens_change_no_clean_one_and_read_no_clean_copy_of_their_own() -> None:
    net, made = network(), two_copies(row(4, 3))
    role, picture, _ = roles(made)
    before = everything(net, made)

    def after(change: Tensor) -> Tensor:
        return everything(net, dataclasses.replace(made, ids=torch.where(change, (made.ids + 1) % 16, made.ids)))

    read = torch.arange(1, len(made.ids)) - 1  # a token is predicted from the one before it
    noisy, first = role == NOISY, picture == 0
    assert torch.equal(after(noisy)[~noisy[read]], before[~noisy[read]])
    assert torch.equal(after((role == CLEAN) & first)[(noisy & first)[read]], before[(noisy & first)[read]])
    later = after((role == CLEAN) & first)[(noisy & ~first)[read]]
    assert not torch.equal(later, before[(noisy & ~first)[read]]), "a later picture reads an earlier one"
    leaky = two_copies(row(4, 3), leak=True)
    given = everything(net, leaky)[(noisy & first)[read]]
    changed = dataclasses.replace(leaky, ids=torch.where((role == CLEAN) & first, (leaky.ids + 1) % 16, leaky.ids))
    assert not torch.equal(everything(net, changed)[(noisy & first)[read]], given), "the leak is a leak"


def test_sampling_needs_no_copies() -> None:
    net, clean = network(), row(4, 3)
    made = two_copies(clean)
    role, picture, _ = roles(made)
    for number in range(2):
        noisy = (role == NOISY) & (picture == number)
        drawn = canvas(clean, f"image {number}")
        found = everything(net, drawn)[-int(noisy.sum()) + 1 :]
        wanted = everything(net, made)[noisy[1:]][1:]
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
        assert torch.equal(drawn.ids, clean.ids[: len(drawn.ids)])


def test_the_loss_is_of_masked_codes_and_of_text() -> None:
    net, batch = network(), collate([two_copies(row(4, 3)), two_copies(row(5, seed=1))], [0, 1])
    loss = Adaptation()(net, batch, generator("loss"))
    texts = (3 + 2 * 3) + (3 + 3) - 2  # all text but the first token of each row
    assert loss.counts["text"] == texts and loss.counts["code"] >= 3
    torch.testing.assert_close(loss.total, loss.terms["text"] + 0.5 * loss.terms["code"])
    torch.testing.assert_close(
        Adaptation(codes=2.0)(net, batch, generator("loss")).total, loss.terms["text"] + 2 * loss.terms["code"]
    )
    dropped = Adaptation(dropouts=(Dropout(spans=frozenset({"prompt"}), rate=1.0),))(net, batch, generator("loss"))
    assert dropped.counts["text"] == texts - 4  # two words of each prompt, whose first is never scored


def test_masked_codes_are_noisy_ones_with_a_time_for_each_picture() -> None:
    batch = collate([two_copies(row(40, 40))], [0])
    corruption, rng = TwoCopies(), generator("times")
    noisy = corruption.corrupt(batch, corruption.times(batch, rng), rng)
    assert not bool(noisy.masked[batch.segment == 0].any()) and noisy.time is not None
    times = [noisy.time[batch.writable & (batch.segment == number)].unique() for number in (1, 2)]
    assert len(times[0]) == len(times[1]) == 1 and not torch.equal(*times)


def test_a_picture_is_sampled_in_few_forwards_after_given_ones() -> None:
    sequence = canvas(row(4, 6), "image 1")
    masked = torch.zeros_like(sequence.masked)
    masked[sequence.span("image 1").start :] = True
    batch = collate([dataclasses.replace(sequence, masked=masked)], [3])
    sampler = Sampler(schedule=Equal(steps=2), token_sampler=Categorical(), selection=Confident())
    steps: list[int] = []
    done = sampler.sample(network(), batch, on_step=lambda step: steps.append(step.number))
    assert steps == [1, 2] and not bool(done.masked.any()) and int(done.ids[masked[None]].max()) < CONFIG.codes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fold": 2, "grid": (2, 2)}, "span 'image 0' has fold 2"),
        ({"segment": 1}, "has fold 1, segment 1"),
        ({"kind": Kind.FEATURE}, "a causal row has text and codes"),
    ],
)
def test_rows_that_cannot_be_causal_are_refused(change: dict[str, object], message: str) -> None:
    given = row(4)
    spans = tuple(dataclasses.replace(s, **change) if s.name == "image 0" else s for s in given.spans)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message):
        two_copies(dataclasses.replace(given, spans=spans))


def test_a_picture_needs_a_token_before_it_and_a_clean_row() -> None:
    span = Span(name="image", kind=Kind.CODE, start=0, stop=4, grid=(2, 2), writable=True)
    alone = Sequence(ids=torch.zeros(4, dtype=torch.long), masked=torch.zeros(4, dtype=torch.bool), spans=(span,))
    for make in (two_copies, canvas):
        with pytest.raises(ValueError, match="the row begins with the picture 'image'; put a token before it"):
            make(alone)
    with pytest.raises(ValueError, match="made of a clean row, got masked tokens"):
        two_copies(dataclasses.replace(row(4), masked=torch.ones(10, dtype=torch.bool)))


def test_the_first_step_takes_the_least_probable_candidates() -> None:
    batch = collate([canvas(row(6), "image 0")] * 2, [0, 1])
    block = batch.kind == Kind.CODE
    score = torch.full(batch.ids.shape, -torch.inf)
    score[block] = torch.tensor([-1.0, -5.0, -2.0, -0.5, -4.0, -3.0] * 2)
    proposal, counts = Proposal(ids=batch.ids, score=score), torch.tensor([1, 2])
    selection, start = Anchored(selection=Confident()), int(block[0].nonzero()[0])

    def taken(number: list[int], of: int) -> list[list[int]]:
        progress = Progress(number=torch.tensor(number), of=torch.tensor([of, of]), length=batch.ids.shape[1])
        found = selection(batch, proposal, block, counts, progress).unmask
        return [(one.nonzero().flatten() - start).tolist() for one in found]

    assert taken([0, 0], 3) == [[1], [1, 4]] and taken([1, 1], 3) == [[3], [0, 3]]
    assert taken([0, 1], 3) == [[1], [0, 3]] and taken([0, 0], 1) == [[3], [0, 3]]


@pytest.mark.parametrize(("steps", "tokens", "first"), [(3, 64, 1), (8, 64, 1), (2, 64, 1), (1, 64, 64), (3, 1, 1)])
def test_the_anchor_is_alone_in_the_first_step(steps: int, tokens: int, first: int) -> None:
    counts = AnchorFirst(steps=steps).counts(tokens)
    assert counts[0] == first and sum(counts) == tokens and len(counts) == min(steps, tokens)


def test_late_times_are_mostly_almost_all_masked() -> None:
    times = Late()(torch.linspace(0, 1, 1001))
    assert float(times[0]) == 1 and float(times[-1]) == 0 and float((times > 0.9).float().mean()) > 0.4
