"""Dimple: every measured array, ``--sampler confident`` against the released sampler, and what it takes from its base.

``--golden DIR``: DIR/dimple_tiny where it exists, else tests/golden.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from unmask.checkpoints.dimple import survey_dimple
from unmask.checkpoints.loading import load_everything
from unmask.checkpoints.store import read_tensors
from unmask.evaluation.verify import verify
from unmask.evaluation.verify_dimple import DIMPLE_INPUTS
from unmask.methods.dimple import confident
from unmask.methods.remdm import Cap, Remasking
from unmask.models.elastic import Elastic
from unmask.sampling.aligned import Aligned
from unmask.sampling.blocks import Blocks
from unmask.sampling.cache import NoCache, PromptCache
from unmask.sampling.sampler import Sampler
from unmask.sampling.schedule import Equal, Fixed
from unmask.sampling.selection import Confident, RandomOrder, Threshold
from unmask.sampling.token_sampler import Entropy, Greedy, Probability, Truncated, Without
from unmask.sequence import Batch, Kind, Sequence, Span, collate

from ..packed import given_or_own

torch.set_num_threads(1)
BASE = Sampler(schedule=Equal(steps=16), token_sampler=Truncated(top_k=50), selection=Confident())


def test_every_measured_array(request: pytest.FixtureRequest) -> None:
    """Pictures, positions, logits with full and causal attention, the losses of both phases, every decoded answer with and without
    prefilling.
    """
    place = given_or_own(request.config, "dimple_tiny")
    found = {d.name: d.ok for d in verify(place, device="cpu")}
    assert all(found.values()), [name for name, ok in found.items() if not ok]
    assert set(read_tensors(place, "expected")) - set(found) <= DIMPLE_INPUTS


@pytest.fixture(scope="module")
def opened(request: pytest.FixtureRequest) -> tuple[Elastic, dict[str, Tensor]]:
    place = given_or_own(request.config, "dimple_tiny")
    net, _ = load_everything(survey_dimple(place))
    return net.eval(), read_tensors(place, "expected")


def asked(net: Elastic, prompt: Tensor, answer: Tensor) -> Batch:
    whole = torch.cat([prompt, answer])
    spans = (
        Span(name="prompt", kind=Kind.TEXT, start=0, stop=len(prompt)),
        Span(name="answer", kind=Kind.TEXT, start=len(prompt), stop=len(whole), writable=True),
    )
    return collate([Sequence(ids=whole, masked=whole == net.mask_id, spans=spans)], [0])


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("threshold", [0.95, 0.5, 0.2])
def test_the_sampler_by_name_is_the_released_one(
    threshold: float, cached: bool, opened: tuple[Elastic, dict[str, Tensor]]
) -> None:
    net, arrays = opened
    name = f"dim.confident_{threshold}" + ".cached" * cached
    wanted, prompt = arrays[f"{name}.ids"][0], arrays["gen.prompt"][0]
    base = replace(
        BASE, schedule=Equal(steps=len(wanted)), cache=PromptCache() if cached else NoCache(), blocks=Blocks(length=99)
    )
    steps = list[int]()
    done = confident(base, threshold=threshold).sample(
        net,
        asked(net, prompt, torch.full((len(wanted),), net.mask_id)),
        on_step=lambda step: steps.append(int(step.batch.masked.sum())),
    )
    assert torch.equal(done.ids[0, len(prompt) :], wanted)
    assert steps == arrays[f"{name}.masks_left"].tolist() and len(steps) == int(arrays[f"{name}.nfe"])


def test_given_pieces_of_the_answer_stay(opened: tuple[Elastic, dict[str, Tensor]]) -> None:
    """Structure priors: the measured run with some tokens of the answer given."""
    net, arrays = opened
    wanted, prompt = arrays["prior.ids"][0], arrays["gen.prompt"][0]
    answer = torch.full((len(wanted),), net.mask_id)
    answer[arrays["prior.positions"]] = arrays["prior.tokens"]
    done = confident(replace(BASE, schedule=Equal(steps=len(wanted))), threshold=0.4).sample(
        net, asked(net, prompt, answer)
    )
    assert torch.equal(done.ids[0, len(prompt) :], wanted)
    assert torch.equal(wanted[arrays["prior.positions"]], arrays["prior.tokens"])


def test_the_probability_is_that_of_the_whole_prediction() -> None:
    inner = Truncated(temperature=0.5, top_p=0.8, top_k=9, score=Entropy())
    made = confident(replace(BASE, token_sampler=Without(ids=(3,), token_sampler=inner)))
    assert made.token_sampler == Without(ids=(3,), token_sampler=replace(inner, score=Probability(), original=True))
    plain = confident(replace(BASE, token_sampler=Greedy(score=Entropy())))
    assert plain.token_sampler == Greedy(score=Probability())
    with pytest.raises(ValueError, match="has no score to compare with a threshold"):
        confident(replace(BASE, token_sampler=lambda batch, prediction, progress: None))


def test_without_a_sure_token_the_order_is_that_of_the_base() -> None:
    for selection, order in (
        (RandomOrder(), RandomOrder()),
        (Confident(noise=0.5), Confident(noise=0.5)),
        (Threshold(value=0.5), Confident()),
        (Aligned(steps=3, selection=RandomOrder()), RandomOrder()),
        (Remasking(selection=Confident(), sigma=Cap(eta=0.1)), Confident()),
    ):
        assert confident(replace(BASE, selection=selection)).selection == Aligned(
            steps=16, threshold=0.95, selection=order
        )


def test_the_grid_has_the_steps_of_the_base() -> None:
    assert confident(BASE).selection.steps == 16  # type: ignore[attr-defined]
    each = replace(BASE, schedule=Fixed(each=1))
    assert confident(replace(each, blocks=Blocks(length=32))).selection.steps == 32  # type: ignore[attr-defined]
    assert confident(each).selection.steps == 512  # type: ignore[attr-defined]
