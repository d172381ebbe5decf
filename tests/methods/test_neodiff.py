"""NeoDiff against its measured arrays: levels, times of tokens, labels, noising and steps; and the laws of training and sampling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from unmask.methods.neodiff import (
    CDCD,
    EDM,
    TRANSITIONS,
    Alike,
    AllOrNothing,
    ByConfidence,
    LeastSure,
    NeoLoss,
    Pairs,
    PoissonTimes,
    Predicted,
    Simultaneous,
    TimeGrid,
    cosine,
    linear,
    mixed,
    noised,
    poisson_quantile,
    root,
    sample,
    time_embedding,
)
from unmask.rng import generator

Golden = Callable[[str], dict[str, Tensor]]
torch.set_num_threads(1)
LEVELS: dict[str, Any] = {"linear": linear, "cosine": cosine, "sqrt": root, "edm": EDM, "cdcd": CDCD}


@pytest.fixture(scope="module")
def arrays(golden: Golden) -> dict[str, Tensor]:
    return golden("neodiff")


def times(arrays: dict[str, Tensor], name: str, *, released: bool = False) -> PoissonTimes:
    """Of a transition; the number of states is that of the arrays."""
    t, rate = arrays["t_grid"][-1], arrays[f"lambda_{name}"][-1]
    states = round(float(rate / t) / TRANSITIONS[name].mean) + 1
    return PoissonTimes(transition=TRANSITIONS[name], states=states, released=released)


def named(arrays: dict[str, Tensor], start: str, end: str) -> list[str]:
    return sorted(k[len(start) : len(k) - len(end)] for k in arrays if k.startswith(start) and k.endswith(end))


def test_every_array_is_checked_here(arrays: dict[str, Tensor]) -> None:
    known = {f"alpha_bar_{name}" for name in LEVELS} | {"t_grid", "sample_ts", "label_mask", "x0", "eps"}
    known |= {f"{kind}_{name}" for name in TRANSITIONS for kind in ("lambda", "factor")}
    known |= {f"sample_{name}_{end}" for name in named(arrays, "sample_", "_tau") for end in ("tau", "poisson")}
    known |= {f"label_{name}_{end}" for name in named(arrays, "label_", "_tau") for end in ("tau", "loss")}
    known |= {"noised_sqrt", "noised_linear_coeff", "custom_next", "time_embedding_8"}
    known |= {f"reverse_{name}" for name in ("next_t", "tau_in", "x", "cmlm_scores", "cmlm_tau", "cmlm_x")}
    assert set(arrays) == known
    assert len(named(arrays, "sample_", "_tau")) >= 3 and len(named(arrays, "label_", "_tau")) >= 3


@pytest.mark.parametrize("name", LEVELS)
def test_levels_have_the_measured_signal(arrays: dict[str, Tensor], name: str) -> None:
    found = LEVELS[name](arrays["t_grid"])
    assert torch.allclose(found, arrays[f"alpha_bar_{name}"], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", TRANSITIONS)
def test_transitions_have_the_measured_rate_and_spread(arrays: dict[str, Tensor], name: str) -> None:
    t, own = arrays["t_grid"], times(arrays, name)
    assert torch.allclose(own.transition.rate(t, own.last), arrays[f"lambda_{name}"], rtol=1e-5)
    assert torch.allclose(own.transition.factor(t, own.last), arrays[f"factor_{name}"], rtol=1e-5)


def test_counts_become_the_measured_times(arrays: dict[str, Tensor]) -> None:
    for name in named(arrays, "sample_", "_tau"):
        k, t, wanted = arrays[f"sample_{name}_poisson"], arrays["sample_ts"], arrays[f"sample_{name}_tau"]
        assert torch.equal(times(arrays, name, released=True).tau(k, t), wanted)
        meant = times(arrays, name).tau(k, t)
        assert torch.equal(meant[t <= 0.99], wanted[t <= 0.99])


def test_labels_follow_the_rank_of_the_loss(arrays: dict[str, Tensor]) -> None:
    valid = arrays["label_mask"].bool()
    for name in named(arrays, "label_", "_tau"):
        found = times(arrays, name).labels(arrays[f"label_{name}_loss"], arrays["sample_ts"][:, 0], valid)
        assert torch.equal(found, arrays[f"label_{name}_tau"]), name


def test_vectors_are_noised_as_measured(arrays: dict[str, Tensor]) -> None:
    own = times(arrays, "constant_triple")
    level = arrays["sample_constant_triple_tau"] / own.last
    x0, eps = arrays["x0"], arrays["eps"]
    assert torch.allclose(noised(x0, eps, level), arrays["noised_sqrt"], atol=1e-6)
    assert torch.allclose(mixed(x0, eps, level), arrays["noised_linear_coeff"], atol=1e-6)


class Told:
    """A network that predicts given levels."""

    def __init__(self, levels: Tensor) -> None:
        self.levels = levels

    def times(self, x: Tensor, t: Tensor) -> Tensor:
        return self.levels


def test_a_step_noises_to_the_predicted_times(arrays: dict[str, Tensor]) -> None:
    own = times(arrays, "constant_triple")
    net: Any = Told(arrays["reverse_tau_in"] / own.last)
    new = arrays["reverse_next_t"][:, 0].expand(len(arrays["x0"]))
    level = Predicted()(net, arrays["x0"], new, new)
    assert torch.allclose(noised(arrays["x0"], arrays["eps"], level), arrays["reverse_x"], atol=1e-5)


def test_a_step_by_confidence_uses_the_old_time(arrays: dict[str, Tensor]) -> None:
    """The old time is 1 / steps after the measured new one, for one number of steps."""
    rule = ByConfidence(times=times(arrays, "constant_triple"))
    valid, wanted, new = arrays["label_mask"].bool(), arrays["reverse_cmlm_tau"], float(arrays["reverse_next_t"])
    old = [new + 1 / steps for steps in range(1, 101) if new + 1 / steps <= 1]
    fits = [t for t in old if torch.equal(found(rule, arrays["reverse_cmlm_scores"], t, valid), wanted)]
    assert len(fits) >= 1 and not torch.equal(found(rule, arrays["reverse_cmlm_scores"], new, valid), wanted)
    level = wanted / rule.times.last
    assert torch.allclose(noised(arrays["x0"], arrays["eps"], level), arrays["reverse_cmlm_x"], atol=1e-5)


def found(rule: ByConfidence, scores: Tensor, t: float, valid: Tensor) -> Tensor:
    return rule.of_confidence(scores, torch.full((len(scores),), t), valid)


def test_a_searched_grid_is_used_in_rising_order_of_the_steps_left(arrays: dict[str, Tensor]) -> None:
    wanted = arrays["custom_next"].tolist()
    grid = TimeGrid(times=tuple(reversed(wanted)))
    assert [grid.after(left) for left in range(1, grid.steps)] == wanted and grid.after(0) == 0.0
    new = float(arrays["reverse_next_t"])
    assert any(abs(TimeGrid.even(10).after(left) - new) < 1e-6 for left in range(10))


def test_the_embedding_of_times(arrays: dict[str, Tensor]) -> None:
    wanted = arrays["time_embedding_8"]
    width = wanted.shape[-1]
    time = torch.atan2(wanted[..., width // 2], wanted[..., 0])  # the first frequency is 1
    assert torch.allclose(time_embedding(time, width), wanted, atol=2e-4)


def test_the_quantile_is_the_first_count_that_reaches_the_share() -> None:
    for rate in (0.0, 0.3, 7.0, 396.0):
        k = torch.arange(900, dtype=torch.float64)
        log_p = torch.special.xlogy(k, torch.tensor(rate).double()) - rate - torch.lgamma(k + 1)
        share = torch.tensor([0.01, 0.25, 0.5, 0.9, 0.999], dtype=torch.float64)
        wanted = [int((log_p.exp().cumsum(0) < s).sum()) for s in share]
        assert poisson_quantile(share, torch.tensor(rate)).tolist() == wanted


def test_all_is_noise_at_the_end_and_clean_at_the_start() -> None:
    rng = generator("neodiff times")
    for own in (PoissonTimes(), Simultaneous(), AllOrNothing()):
        ends = own.draw(torch.tensor([0.0, 1.0]), 200, rng)
        assert ends[0].max() == 0 and ends[1].float().mean() > 0.5 and ends.shape == (2, 200)
    released = PoissonTimes(transition=TRANSITIONS["constant"], released=True).draw(torch.ones(1), 50, rng)
    meant = PoissonTimes(transition=TRANSITIONS["constant"]).draw(torch.ones(1), 50, rng)
    assert released.max() < 0.02 and meant.min() == 1


class Perfect(nn.Module):
    """Knows the answer; its words are one-hot vectors."""

    def __init__(self, answer: Tensor, words: int) -> None:
        super().__init__()
        self.answer, self.table = answer, torch.eye(words)

    def embedded(self, ids: Tensor) -> Tensor:
        return self.table[ids]

    def forward(self, given: Tensor, x: Tensor, level: Tensor, before: Tensor) -> Tensor:
        return self.table[self.answer]

    def logits(self, x: Tensor) -> Tensor:
        return 50 * x

    def times(self, x: Tensor, t: Tensor) -> Tensor:
        return t[:, None].expand(x.shape[:2])


ANSWER = torch.tensor([[1, 2, 0, 3], [4, 4, 1, 0]])


def test_a_perfect_network_has_no_distance_and_writes_its_answer() -> None:
    net = Perfect(ANSWER, 5)
    batch = Pairs(ANSWER, ANSWER, torch.ones_like(ANSWER, dtype=torch.bool))
    loss = NeoLoss(labels=None, smoothing=0.0)(net, batch, generator("perfect"))
    assert float(loss.total) == pytest.approx(0.0, abs=1e-6) and loss.counts == {"distance": 8, "words": 8}
    with_times = NeoLoss(smoothing=0.0)(net, batch, generator("perfect"))
    assert float(with_times.terms["times"]) > 0 and with_times.terms["distance"] == loss.terms["distance"]
    for rule in (Predicted(), Alike(), ByConfidence(), LeastSure()):
        words = sample(net, ANSWER, lambda step: torch.zeros(2, 4, 5), grid=TimeGrid.even(3), levels=rule)
        assert torch.equal(words, ANSWER)


def test_rules_of_the_next_level_differ_where_they_should() -> None:
    net, x0 = Perfect(ANSWER, 5), torch.eye(5)[ANSWER] * torch.tensor([0.1, 0.2, 0.3, 0.4])[:, None]
    old, new = torch.full((2,), 0.75), torch.full((2,), 0.5)
    assert LeastSure()(net, x0, old, new).tolist() == [[1, 1, 0, 0]] * 2
    assert Alike()(net, x0, old, new).eq(0.5).all()
    levels = ByConfidence(times=PoissonTimes(transition=TRANSITIONS["constant_triple"]))(net, x0, old, new)
    assert (levels.diff() <= 0).all() and levels[0, 0] > levels[0, -1]


def test_padding_does_not_count() -> None:
    net = Perfect(ANSWER, 5)
    wrong = ANSWER.clone()
    wrong[:, 3] = 2
    valid = torch.ones_like(ANSWER, dtype=torch.bool)
    valid[:, 3] = False
    loss = NeoLoss(labels=None, smoothing=0.0)(net, Pairs(ANSWER, wrong, valid), generator("pad"))
    assert float(loss.total) == pytest.approx(0.0, abs=1e-6) and loss.counts["words"] == 6


def test_wrong_grids_are_refused() -> None:
    with pytest.raises(ValueError, match=r"lie in 0..1"):
        TimeGrid(times=(0.5, 1.5))
    with pytest.raises(ValueError, match="at least 1 step, got 0"):
        TimeGrid.even(0)
