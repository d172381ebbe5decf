"""LaViDa: the measured arrays of both language models, the sampler by name against the released one, what its parts refuse.

``--golden DIR``: DIR/lavida_tiny and DIR/lavida_dream_tiny where they exist, else tests/golden.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from unmask.checkpoints.lavida import survey_lavida
from unmask.checkpoints.loading import load_everything
from unmask.checkpoints.store import read_tensors
from unmask.evaluation.verify import verify
from unmask.methods.lavida import CARD, lavida
from unmask.models.elastic import Elastic
from unmask.sampling.blocks import Blocks
from unmask.sampling.cache import PrefixCache
from unmask.sampling.prior import PrefixLM, UniformIds
from unmask.sampling.sampler import Sampler
from unmask.sampling.schedule import Equal, Fixed, Shift
from unmask.sampling.selection import Confident
from unmask.sampling.token_sampler import Greedy
from unmask.sequence import Batch, Kind, Sequence, Span, collate

from ..packed import given_or_own

torch.set_num_threads(1)


@pytest.mark.parametrize("name", ["lavida_tiny", "lavida_dream_tiny"])
def test_every_measured_array(name: str, request: pytest.FixtureRequest) -> None:
    """Views, features, logits behind a cached prompt, complementary targets and their loss, counts, every decoded answer."""
    place = given_or_own(request.config, name)
    found = {d.name: d.ok for d in verify(place, device="cpu")}
    assert all(found.values()), [name for name, ok in found.items() if not ok]
    inputs = {"image_a.rgb", "image_b.rgb", "text.ids", "vqa.ids", "vqa.keep", "prefix.answer", "gen.prompt"}
    inputs |= {"train.ids", "train.labels", "train.mask", "infill.draft"}
    assert set(read_tensors(place, "expected")) - set(found) <= inputs


@pytest.fixture(scope="module")
def opened(request: pytest.FixtureRequest) -> tuple[Elastic, dict[str, Tensor]]:
    place = given_or_own(request.config, "lavida_tiny")
    net, _ = load_everything(survey_lavida(place))
    return net.eval(), read_tensors(place, "expected")


def asked(net: Elastic, prompt: Tensor, answer: int) -> Batch:
    """A prompt and masked tokens that all attend to each other."""
    length = len(prompt) + answer
    spans = (
        Span(name="prompt", kind=Kind.TEXT, start=0, stop=len(prompt)),
        Span(name="answer", kind=Kind.TEXT, start=len(prompt), stop=length, writable=True),
    )
    ids = torch.cat([prompt, torch.full((answer,), net.mask_id)])
    return collate([Sequence(ids=ids, masked=torch.arange(length) >= len(prompt), spans=spans)], [0])


@pytest.mark.parametrize(
    ("name", "own", "block", "given"),
    [
        ("gen.shift_third", 32, 32, {}),
        ("gen.shift_033", 8, 32, {"shift": 0.33, "share": 1.0}),
        ("gen.shift_3", 16, 16, {"shift": 3.0}),
        ("gen.cached", 16, 16, {"shift": 1.0, "share": 1.0}),
    ],
)
def test_the_sampler_by_name_is_the_released_one(
    name: str, own: int, block: int, given: dict[str, float], opened: tuple[Elastic, dict[str, Tensor]]
) -> None:
    """From a sampler with ``own`` steps a block on a model that attends everywhere; its prompt is computed once."""
    net, arrays = opened
    wanted, prompt = arrays[f"{name}.ids"][0], arrays["gen.prompt"][0]
    base = Sampler(
        schedule=Equal(steps=own), token_sampler=Greedy(), selection=Confident(noise=1.0), blocks=Blocks(length=block)
    )
    computed = list[int]()

    def counted(batch: Batch, **more: object) -> object:
        computed.append(int(more["reuse"].compute.sum()))  # type: ignore[attr-defined]
        return net(batch, **more)

    done = lavida(base, **given).sample(counted, asked(net, prompt, len(wanted)))  # type: ignore[arg-type]
    assert torch.equal(done.ids[0, len(prompt) :], wanted)
    assert len(computed) == int(arrays[f"{name}.nfe"]) - 1, (
        "the released code computes the prompt in a forward of its own"
    )
    assert computed[0] == len(prompt) + len(wanted) and set(computed[1:]) == {len(wanted)}


def test_the_steps_are_a_share_of_those_of_the_sampler() -> None:
    base = Sampler(schedule=Fixed(each=1), token_sampler=Greedy(), selection=Confident(), blocks=Blocks(length=32))
    made = lavida(base)
    assert made.schedule == Shift(steps=16, shift=1 / 3) and made.schedule.counts(32)[0] > made.schedule.counts(32)[-1]
    assert (made.prior, made.cache) == (PrefixLM(), PrefixCache())
    assert lavida(base, share=0.1).schedule == Shift(steps=4, shift=1 / 3)


def test_what_does_not_fit_is_refused() -> None:
    base = Sampler(schedule=Equal(steps=4), token_sampler=Greedy(), selection=Confident())
    for share in (0.0, 1.5):
        with pytest.raises(ValueError, match="above 0 and at most 1"):
            lavida(base, share=share)
    with pytest.raises(ValueError, match="a shift is a factor above 0"):
        lavida(base, shift=0.0)
    with pytest.raises(ValueError, match="does not fit the prior"):
        lavida(
            Sampler(schedule=Equal(steps=4), token_sampler=Greedy(), selection=Confident(), prior=UniformIds(sizes={}))
        )
    assert CARD.sampler == ("lavida",)
