"""ReDiff against the arrays of its official code, and its parts on their own. Two large arrays are thinned (``tests/thin.py``)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from unmask.checkpoints.loading import load_everything
from unmask.checkpoints.rediff import read_rediff, survey_rediff, views_of
from unmask.checkpoints.store import read_tensors
from unmask.evaluation.thinned import Thinning
from unmask.methods.rediff import BeforeEnd, Drafted, EachGroup, Overwriting, planted
from unmask.models.elastic import Elastic
from unmask.objectives.importance import EachRow
from unmask.objectives.masked import Masked
from unmask.sampling.blocks import Blocks
from unmask.sampling.guidance import ClassifierFree
from unmask.sampling.sampler import Sampler
from unmask.sampling.schedule import Equal
from unmask.sampling.selection import Confident
from unmask.sampling.stopping import EndOfTurn
from unmask.sampling.token_sampler import Greedy, Without
from unmask.sequence import Batch, Kind, Sequence, Span, collate

from ..packed import given_or_own

torch.set_num_threads(1)
SETTINGS = {  # tokens, steps, block
    "plain": (16, 16, 16),
    "revise": (16, 16, 16),
    "revise8": (24, 8, 24),
    "blocks": (24, 12, 8),
    "topk": (16, 8, 16),
    "late": (16, 8, 16),
    "draft": (16, 10, 16),
    "draft_kept": (16, 10, 16),
    "stop": (16, 16, 8),
    "suffix": (8, 8, 8),
    "guided": (8, 8, 8),
}
REVISED = ("revise", "revise8", "blocks", "topk", "late", "draft")
SUFFIX = (7, 8, 9)


@pytest.fixture(scope="module")
def folder(request: pytest.FixtureRequest) -> Path:
    """``--golden DIR``: the family's fixture is beside the folder of the methods."""
    return given_or_own(request.config, "rediff_tiny")


@pytest.fixture(scope="module")
def arrays(folder: Path) -> dict[str, Tensor]:
    return read_tensors(folder, "expected")


@pytest.fixture(scope="module")
def net(folder: Path) -> Elastic:
    return load_everything(survey_rediff(folder))[0].eval()


class Row:
    """Collects the spans of a row."""

    def __init__(self) -> None:
        self.ids: list[Tensor] = []
        self.spans: list[Span] = []
        self.features: Tensor | None = None

    def text(self, name: str, ids: Tensor, *, writable: bool = False) -> Row:
        start = sum(map(len, self.ids))
        self.spans.append(Span(name=name, kind=Kind.TEXT, start=start, stop=start + len(ids), writable=writable))
        self.ids.append(ids)
        return self

    def picture(self, features: Tensor) -> Row:
        start, self.features = sum(map(len, self.ids)), features
        self.spans.append(Span(name="prompt", kind=Kind.FEATURE, start=start, stop=start + len(features)))
        self.ids.append(torch.zeros(len(features), dtype=torch.long))
        return self

    def sequence(self, mask_id: int) -> Sequence:
        ids = torch.cat(self.ids)
        return Sequence(ids=ids, masked=ids == mask_id, spans=tuple(self.spans), features=self.features)


def sampler_of(name: str, folder: Path, mask_id: int, arrays: dict[str, Tensor]) -> Sampler:
    tokens, steps, block = SETTINGS[name]
    never = tuple(read_rediff(folder)[1].unmask.forbidden_ids)
    selection = Overwriting(selection=Confident()) if name in REVISED else Confident()
    made = Sampler(
        schedule=Equal(steps=steps * block // tokens),
        token_sampler=Without(ids=never, token_sampler=Greedy()),
        selection=selection,
        blocks=Blocks(length=block),
    )
    if name == "topk":
        return replace(made, selection=Overwriting(selection=Confident(), share=0.5))
    if name == "late":
        return replace(made, selection=Overwriting(selection=Confident(), start=0.5))
    if name in ("draft", "draft_kept"):
        return replace(made, prior=Drafted(ids=tuple(arrays["gen.draft_in"][0].tolist())))
    if name == "stop":
        ends = (int(arrays["gen.stop_token"]),)
        return replace(made, selection=BeforeEnd(selection=Confident(), ids=ends), stopping=EndOfTurn(ids=ends))
    if name == "guided":
        return replace(made, guidance=ClassifierFree(scale=1.0, drop=frozenset({"prompt"}), null_id=mask_id))
    return made


def answered(net: Elastic, sampler: Sampler, batch: Batch) -> tuple[Tensor, int]:
    """The tokens behind the prompt, and the number of forward passes."""
    steps: list[int] = []
    done = sampler.sample(net, batch, on_step=lambda step: steps.append(step.number))
    return done.ids[0, batch.span_table[0][-1 if len(batch.span_table[0]) == 2 else 1].start :], len(steps)


@pytest.mark.parametrize("name", SETTINGS)
def test_runs_equal_the_measured_ones(name: str, net: Elastic, folder: Path, arrays: dict[str, Tensor]) -> None:
    tokens = SETTINGS[name][0]
    row = Row().text("prompt", arrays["gen.prompt"][0])
    row.text("answer", torch.full((tokens,), net.mask_id), writable=True)
    if name == "suffix":
        row.text("suffix", torch.tensor(SUFFIX))
    batch = collate([row.sequence(net.mask_id)], [0])
    ids, forwards = answered(net, sampler_of(name, folder, net.mask_id, arrays), batch)
    if name == "stop":
        found = ids.tolist()
        ids = ids[: found.index(int(arrays["gen.stop_token"]))]
    assert ids.tolist() == arrays[f"gen.{name}.ids"][0].tolist()
    assert forwards == int(arrays[f"gen.{name}.nfe"])


def test_logits_of_text(net: Elastic, folder: Path, arrays: dict[str, Tensor]) -> None:
    rows = [Row().text("prompt", ids).sequence(-1) for ids in arrays["text.ids"]]
    batch = collate(rows, [0] * len(rows))
    batch = batch.replace(masked=batch.ids == net.mask_id)
    with torch.no_grad():
        logits = net(batch, predict=batch.valid).logits(Kind.TEXT)
    logits = kept(folder, "text.logits", logits.view(*batch.ids.shape, -1))
    torch.testing.assert_close(logits, arrays["text.logits"], atol=1e-4, rtol=1e-4)


def kept(folder: Path, name: str, array: Tensor) -> Tensor:
    """What the folder's file keeps of an array."""
    return Thinning.read(folder / "expected.safetensors").thin(name, array)


def picture(which: str, arrays: dict[str, Tensor]) -> Image.Image:
    return Image.fromarray(arrays[f"image_{which}.rgb"].numpy())


@pytest.mark.parametrize("which", ["a", "b"])
def test_views_and_tokens_of_pictures(which: str, net: Elastic, folder: Path, arrays: dict[str, Tensor]) -> None:
    views, image = views_of(read_rediff(folder)[1]), picture(which, arrays)
    pixels = views(image).views
    torch.testing.assert_close((pixels - 0.5) / 0.5, arrays[f"image_{which}.tiles"], atol=1e-6, rtol=0)
    with torch.no_grad():
        tokens = views.tokens(net.features(pixels), image.size)
    tokens = kept(folder, f"image_{which}.tokens", tokens)
    torch.testing.assert_close(tokens, arrays[f"image_{which}.tokens"], atol=1e-4, rtol=1e-4)


def test_overwriting_behind_a_picture(net: Elastic, folder: Path, arrays: dict[str, Tensor]) -> None:
    prompt, tokens = arrays["gen.prompt"][0], arrays["image_b.tokens"]
    row = Row().text("prompt", prompt[:5]).picture(tokens).text("prompt", prompt[5:])
    batch = collate([row.text("answer", torch.full((8,), net.mask_id), writable=True).sequence(net.mask_id)], [0])
    never = tuple(read_rediff(folder)[1].unmask.forbidden_ids)
    sampler = Sampler(
        schedule=Equal(steps=4),
        token_sampler=Without(ids=never, token_sampler=Greedy()),
        selection=Overwriting(selection=Confident()),
    )
    steps: list[int] = []
    done = sampler.sample(net, batch, on_step=lambda step: steps.append(step.number))
    assert done.ids[0, -8:].tolist() == arrays["vqa.revise.ids"][0].tolist()
    assert len(steps) == int(arrays["vqa.revise.nfe"])


def training_batch(arrays: dict[str, Tensor]) -> Batch:
    ids, labels = arrays["train.ids"], arrays["train.labels"]
    rows = []
    for own, wanted in zip(ids, labels, strict=True):
        answer = int((wanted != -100).long().argmax())
        rows.append(Row().text("prompt", own[:answer]).text("answer", own[answer:], writable=True).sequence(-1))
    truth = torch.where(labels == -100, ids, labels)
    return collate(rows, [0] * len(rows)).replace(clean=truth, writable=labels != -100)


def test_losses_of_training(net: Elastic, arrays: dict[str, Tensor]) -> None:
    batch = training_batch(arrays)
    time = arrays["train.u"][:, None].expand_as(batch.ids)
    given = {"mask_u": arrays["train.mask_uniforms"], "swap_u": arrays["train.swap_uniforms"]}
    noisy = planted(batch, time, **given, other=arrays["train.swap_ids"], swap=0.05)
    drafts = (batch.ids != batch.clean) & batch.writable
    assert torch.equal(drafts, arrays["train.revise"])
    with torch.no_grad():
        loss = Masked(weight=EachGroup()).of(net, noisy).total
        plain = noisy.replace(ids=batch.ids, target=None, weight=(1 - 1e-3) * time + 1e-3)
        before = Masked(weight=EachRow()).of(net, plain).total
    torch.testing.assert_close(loss, arrays["train.loss_revise"], atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(before, arrays["train.loss_plain"], atol=1e-4, rtol=1e-5)
