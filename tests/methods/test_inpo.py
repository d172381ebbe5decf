"""InPO against its measured arrays: the grid, inverted latents, losses, and the port to masked tokens; and its laws."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from unmask.methods.inpo import (
    Backward,
    Inversion,
    LatentPreference,
    MaskedPreference,
    PreferencePairs,
    Replay,
    UniformMasks,
    bounds,
    errors,
    from_bounds,
    from_errors,
    preference,
    scaled_linear,
)
from unmask.models.fake import FakeDenoiser
from unmask.rng import generator
from unmask.sequence import Batch, Kind, Sequence, Span, collate
from unmask.step import Prediction, Reuse, Scored

Golden = Callable[[str], dict[str, Tensor]]
torch.set_num_threads(1)


@pytest.fixture(scope="module")
def arrays(golden: Golden) -> dict[str, Tensor]:
    return golden("inpo")


@dataclass(frozen=True)
class Net:
    """tanh(x W + cos(t / 100) u + mean(cond) c)."""

    arrays: dict[str, Tensor]
    name: str

    def __call__(self, x: Tensor, t: int) -> Tensor:
        w, u, c = (self.arrays[f"{self.name}.{part}"] for part in ("W", "u", "c"))
        about = self.arrays["cond"].mean(1) @ c
        return torch.tanh(x.flatten(1) @ w + math.cos(t / 100) * u + about).view_as(x)


def test_every_array_is_checked_here(arrays: dict[str, Tensor]) -> None:
    known = {"alphas_cumprod", "beta", "cond", "eta", "grid.timesteps", "latents", "step_noise", "t0"}
    known |= {f"{net}.{part}" for net in ("model", "ref") for part in ("W", "u", "c")}
    ends = ("inside", "last_level", "loss", "model_losses", "n_steps", "noise", "noisy", "ref_losses")
    known |= {f"by_t.{end}" for end in ends} | {f"dpo.{end}" for end in ("loss", "margin", "noise")}
    known |= {f"port.{end}" for end in ("T_model", "T_ref", "beta", "loser", "winner")}
    known |= {
        f"port.{rule}.{end}"
        for rule in ("replay", "backward")
        for end in ("elbos", "loss", "margin", "state_w", "state_l")
    }
    assert set(arrays) == known


def inversion(arrays: dict[str, Tensor]) -> Inversion:
    return Inversion(
        signal=arrays["alphas_cumprod"], steps=len(arrays["grid.timesteps"]), eta=round(float(arrays["eta"]), 6)
    )


def test_the_schedule_and_the_grid(arrays: dict[str, Tensor]) -> None:
    own = inversion(arrays)
    assert torch.allclose(scaled_linear(len(own.signal)), own.signal, atol=1e-6)
    assert own.grid() == arrays["grid.timesteps"].tolist()
    for i, t in enumerate(arrays["t0"].tolist()):
        assert own.last_level(t) == arrays["by_t.last_level"][i] and len(own.times(t)) == arrays["by_t.n_steps"][i]


def test_latents_errors_and_losses_of_every_time(arrays: dict[str, Tensor]) -> None:
    model, reference, own = Net(arrays, "model"), Net(arrays, "ref"), inversion(arrays)
    beta = float(arrays["beta"])
    loss = LatentPreference(beta=beta, inversion=own, signal=own.signal)
    for i, t in enumerate(arrays["t0"].tolist()):
        x, noise = loss.state(model, arrays["latents"], t, lambda step, i=i: arrays["step_noise"][i, step])
        assert torch.allclose(x, arrays["by_t.noisy"][i], atol=2e-6)
        assert torch.allclose(noise, arrays["by_t.noise"][i], rtol=1e-4, atol=2e-5)
        m, r = (errors(net, x, t, noise) for net in (model, reference))
        assert torch.allclose(m, arrays["by_t.model_losses"][i], rtol=1e-4)
        assert torch.allclose(r, arrays["by_t.ref_losses"][i], rtol=1e-4)
        inside = loss.inside(model, reference, arrays["latents"], t, lambda step, i=i: arrays["step_noise"][i, step])
        assert torch.allclose(inside, from_errors(m, r, beta))
        assert torch.allclose(inside, arrays["by_t.inside"][i, 0], rtol=1e-3, atol=1e-4)
        assert torch.allclose(preference(inside), arrays["by_t.loss"][i], rtol=1e-3, atol=1e-4)


def test_plain_noise_is_diffusion_dpo(arrays: dict[str, Tensor]) -> None:
    """The file does not give the time of its pair: at one of the levels the measured margin is found."""
    beta, signal = float(arrays["beta"]), arrays["alphas_cumprod"]
    loss = LatentPreference(beta=beta, inversion=None, signal=signal)
    model, reference = Net(arrays, "model"), Net(arrays, "ref")
    found = torch.stack(
        [
            loss.inside(model, reference, arrays["latents"], t, lambda step: arrays["dpo.noise"])
            for t in range(len(signal))
        ]
    )
    nearest = found[(found - arrays["dpo.margin"]).abs().argmin()]
    assert torch.allclose(nearest, arrays["dpo.margin"], rtol=1e-4)
    assert torch.allclose(preference(nearest), arrays["dpo.loss"], rtol=1e-4)


@dataclass(frozen=True)
class Tabled:
    """Logits at place i are the sum over all places j of T[x_j, j, i]; the row after the last id is the mask's."""

    table: Tensor

    def __call__(self, batch: Batch, *, predict: Tensor | None = None, reuse: Reuse | None = None) -> Prediction:
        size = self.table.shape[-1]
        x = torch.where(batch.masked, size, batch.ids)
        place = torch.arange(x.shape[1])
        logits = self.table[x, place].sum(1)  # [B, L, V]
        at = (batch.masked if predict is None else predict).flatten().nonzero()[:, 0]
        return Prediction(scored={Kind.TEXT: Scored(at=at, logits=logits.flatten(0, 1)[at])})


def rows_of(ids: Tensor, count: int) -> Batch:
    span = Span(name="answer", kind=Kind.TEXT, start=0, stop=len(ids), writable=True)
    one = Sequence(ids=ids, masked=torch.zeros(len(ids), dtype=torch.bool), spans=(span,))
    return collate([one] * count, range(count))


@pytest.mark.parametrize(("name", "rule"), [("replay", Replay()), ("backward", Backward())])
def test_the_port_visits_the_measured_states(arrays: dict[str, Tensor], name: str, rule: Any) -> None:
    model, reference = (Tabled(arrays[f"port.{table}"]) for table in ("T_model", "T_ref"))
    size, rng = arrays["port.T_model"].shape[-1], generator("inpo")
    found = []
    for side, ids in (("w", arrays["port.winner"]), ("l", arrays["port.loser"])):
        states = arrays[f"port.{name}.state_{side}"]
        clean = rows_of(ids, len(states))
        counts = (states == size).sum(1)
        assert counts.tolist() == list(range(1, len(ids) + 1))
        masked = rule(model, clean, counts, rng)
        assert torch.equal(torch.where(masked, size, clean.ids), states)
        noisy = clean.replace(masked=masked, clean=clean.ids)
        found.append([bounds(net, noisy) for net in (model, reference)])
    (mw, rw), (ml, rl) = found
    assert torch.allclose(torch.stack([mw, ml, rw, rl], 1), arrays[f"port.{name}.elbos"], rtol=1e-4)
    inside = from_bounds(torch.stack([mw, ml], 1), torch.stack([rw, rl], 1), float(arrays["port.beta"]))
    assert torch.allclose(inside, arrays[f"port.{name}.margin"], rtol=1e-3, atol=1e-5)
    assert torch.allclose(preference(inside), arrays[f"port.{name}.loss"], rtol=1e-3)


WINNER, LOSER = torch.tensor([0, 1, 2, 3, 1, 2]), torch.tensor([3, 3, 0, 1, 0, 0])
RULES = [UniformMasks(), Replay(each=2), Backward()]


class Fake(torch.nn.Module):
    """A random model with a parameter."""

    mask_id = 4

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.fake = FakeDenoiser(sizes={Kind.TEXT: 4})
        self.scale = torch.nn.Parameter(torch.tensor(scale))

    def forward(self, batch: Batch, *, predict: Tensor | None = None, reuse: Reuse | None = None) -> Prediction:
        found = self.fake(batch, predict=predict)
        return found.with_logits({kind: found.logits(kind) * self.scale for kind in found.scored})


def pairs(swapped: bool = False) -> PreferencePairs:
    both = (rows_of(WINNER, 5), rows_of(LOSER, 5))
    return PreferencePairs(*(reversed(both) if swapped else both))


@pytest.mark.parametrize("rule", RULES)
def test_without_a_difference_the_loss_is_ln_2(rule: Any) -> None:
    model = Fake()
    loss = MaskedPreference(reference=contextlib.nullcontext, states=rule)(model, pairs(), generator("x"))
    assert loss.total.item() == pytest.approx(math.log(2), abs=1e-6)
    loss.total.backward()
    assert model.scale.grad is not None and float(model.scale.grad.abs()) > 0


@pytest.mark.parametrize("rule", RULES)
def test_swapping_winner_and_loser_negates_the_margin(rule: Any) -> None:
    other = contextlib.nullcontext(Fake(scale=0.5))
    objective = MaskedPreference(reference=lambda model: other, states=rule)
    one, two = (objective(Fake(), pairs(swapped), generator("x")).terms["margin"] for swapped in (False, True))
    assert float(one) == pytest.approx(-float(two), rel=1e-4) and abs(float(one)) > 1e-3


def test_winner_and_loser_have_the_same_uniform_masks() -> None:
    seen: list[Tensor] = []

    class Seen(UniformMasks):
        def __call__(self, model: Any, clean: Batch, counts: Tensor, rng: torch.Generator) -> Tensor:
            seen.append(super().__call__(model, clean, counts, rng))
            return seen[-1]

    MaskedPreference(reference=contextlib.nullcontext, states=Seen())(Fake(), pairs(), generator("y"))
    assert torch.equal(*seen) and seen[0].any(1).all()


def test_the_winners_may_be_trained_besides() -> None:
    plain, more = (
        MaskedPreference(reference=contextlib.nullcontext, states=UniformMasks(), winners=weight)(
            Fake(), pairs(), generator("z")
        )
        for weight in (0.0, 0.5)
    )
    assert (more.total - plain.total).item() == pytest.approx(0.5 * plain.terms["words"].item(), rel=1e-5)


def test_wrong_values_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 token, got 0"):
        Replay(each=0)
