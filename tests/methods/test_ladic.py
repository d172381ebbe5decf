"""LaDiC against its measured arrays: schedule, latents, losses and the sampler with and without its step back."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from unmask.corruption.gaussian import noised
from unmask.methods.ladic import (
    BackAndRefine,
    CaptionDiffusion,
    Captions,
    Drawn,
    Latents,
    Strided,
    WordLoss,
    betas,
    collapsed,
    confident,
    distance,
    fit,
    levels,
    sentence,
    squared_errors,
    time_waves,
    wordless,
)
from unmask.rng import generator
from unmask.sampling.gaussian import guided

Golden = Callable[[str], dict[str, Tensor]]
torch.set_num_threads(1)
SPECIAL, FULL_STOP = (101, 102, 0), 1012  # of the vocabulary of BERT


@pytest.fixture(scope="module")
def arrays(golden: Golden) -> dict[str, Tensor]:
    return golden("ladic")


def latents(arrays: dict[str, Tensor]) -> Latents:
    return Latents(mean=arrays["X_MEAN"], deviation=arrays["X_SIGMA"], neutral=arrays["special"])


def decoder(arrays: dict[str, Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda states: torch.tanh(states @ arrays["space_decoder.W"]) @ arrays["lm_head.W"]


def test_schedule_and_time(arrays: dict[str, Tensor]) -> None:
    t = arrays["schedule.t"]
    assert torch.allclose(betas()[t].float(), arrays["schedule.betas"], atol=1e-8)
    assert torch.allclose((1 - levels()[t].square()).float(), arrays["schedule.alpha_cumprod"], atol=1e-6)
    assert float(levels()[0]) == 0
    table = arrays["time_table"]
    assert torch.allclose(time_waves(torch.tensor([0, 1, 500, 999]), table.shape[1]), table, atol=1e-4)


def test_latents_and_noise(arrays: dict[str, Tensor]) -> None:
    empty = wordless(arrays["attention_mask"])
    assert torch.equal(empty, arrays["neutral_mask"].bool())
    space = latents(arrays)
    x0 = space.clean(space.states(arrays["x0"]), empty)
    assert torch.allclose(x0, arrays["x0.neutral"], atol=1e-5)
    level = levels()[arrays["t"]].float()[:, None, None]
    for name, factor, noise in (("train", 4, "noise"), ("val", 1, "noise_val")):
        x = noised(arrays["x0"], factor * arrays[noise], level)
        assert torch.allclose(x, arrays[f"x_t.{name}"], atol=2e-5), name


def test_losses(arrays: dict[str, Tensor]) -> None:
    x_pred, x0 = arrays["x_pred"], arrays["x0.neutral"]
    assert torch.allclose(distance(x_pred, x0), arrays["loss.x0"])
    valid, padding = squared_errors(x_pred, x0, arrays["attention_mask"])
    assert torch.allclose(valid, arrays["loss.valid"]) and torch.allclose(padding, arrays["loss.pad"])
    words = WordLoss(latents=latents(arrays), decode=decoder(arrays), full_stop=FULL_STOP, special=SPECIAL)
    assert torch.allclose(words(x_pred, arrays["ids"]), arrays["loss.prob_weighted"])


def given(noise: Tensor) -> Callable[[torch.Size], Tensor]:
    """The recorded draws, one after the other."""
    rows: Iterator[Tensor] = iter(noise)
    return lambda shape: next(rows).view(shape)


def drawn(arrays: dict[str, Tensor], name: str) -> Drawn:
    image = arrays["image"].flatten(1)

    def one(x: Tensor, time: Tensor, before: Tensor, picture: Tensor) -> Tensor:
        both = torch.cat([x, before], -1) @ arrays["net.Wx"]
        return torch.tanh(both + (picture @ arrays["net.Wi"])[:, None] + torch.cos(time / 100) * arrays["net.tv"])

    def net(x: Tensor, time: Tensor, before: Tensor) -> Tensor:
        return guided(one(x, time, before, image), one(x, time, before, torch.zeros_like(image)), 1.0)

    refine = None
    if name == "on":
        confidence = confident(latents(arrays), decoder(arrays))
        refine = BackAndRefine(confidence=confidence, noise=given(arrays["sample.on.refine_noise"]))
    noise = given(arrays[f"sample.{name}.noise"])
    return Strided()(net, arrays[f"sample.{name}.init"], noise, refine=refine)


@pytest.mark.parametrize("name", ["off", "on"])
def test_the_sampler_takes_the_measured_way(name: str, arrays: dict[str, Tensor]) -> None:
    found = drawn(arrays, name)
    assert list(found.told) == arrays[f"sample.{name}.net_times"].tolist()
    assert torch.allclose(found.x0, arrays[f"sample.{name}.x_pred"], atol=1e-4)
    ids = found.ids(latents(arrays), decoder(arrays))
    assert torch.equal(ids, arrays[f"sample.{name}.ids"])
    assert [len(collapsed(row)) for row in ids.tolist()] == arrays[f"sample.{name}.caption_len"].tolist()
    if name == "off":
        assert found.refined is None
        return
    assert found.refined is not None and found.refined.t == int(arrays["sample.on.refine_t"])
    assert torch.equal(found.refined.positions.sort(1)[0], arrays["sample.on.refined_positions"].sort(1)[0])


def test_captions_are_collapsed() -> None:
    assert collapsed([4, 4, 1, 1, 4]) == [4, 1, 4] and sentence(["a", "a", "cat", ".", "."]) == "a cat."


def test_latents_of_a_corpus_are_standardised() -> None:
    states = torch.randn(4000, 3, generator=generator("corpus")) * torch.tensor([1.0, 3.0, 0.5]) + 2
    space = fit(states, states[0])
    x0 = space.clean(states[None], torch.zeros(1, 4000).bool())[0]
    assert torch.allclose(x0.mean(0), torch.zeros(3), atol=1e-5) and torch.allclose(x0.std(0), torch.ones(3), atol=1e-5)
    assert torch.allclose(space.neutral, x0[0]) and torch.equal(
        fit(states, states[0], standardised=False).neutral, states[0]
    )
    assert torch.allclose(space.states(x0), states, atol=1e-5)


class Seen(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale, self.calls = nn.Parameter(torch.tensor(0.5)), list[tuple[Tensor, ...]]()

    def forward(self, x: Tensor, t: Tensor, before: Tensor, image: Tensor) -> Tensor:
        self.calls.append((before, image))
        return self.scale * x


def test_the_objective_reads_its_own_prediction_and_drops_pictures() -> None:
    rng, space = generator("objective"), Latents(mean=torch.zeros(4), deviation=torch.ones(4), neutral=torch.zeros(4))
    batch = Captions(
        states=torch.randn(3, 5, 4, generator=rng),
        ids=torch.randint(3, 8, (3, 5), generator=rng),
        valid=torch.ones(3, 5),
        image=torch.ones(3, 2, 2),
    )
    words = WordLoss(latents=space, decode=lambda x: x @ torch.ones(4, 8), full_stop=3, special=(0,))
    for again, blind in ((0.0, 0.0), (1.0, 1.0)):
        model = Seen()
        loss = CaptionDiffusion(words=words, again=again, blind=blind)(model, batch, generator("step"))
        loss.total.backward()
        before, image = model.calls[-1]
        assert len(model.calls) == 1 + (again > 0) and bool(before.any()) == (again > 0) and not before.requires_grad
        assert float(image.mean()) == 1 - blind and float(model.scale.grad) != 0
        assert loss.total.item() == pytest.approx(sum(float(term) for term in loss.terms.values()), rel=1e-6)
