"""DINOISER against its measured arrays: schedules, clipping, losses, grids and samplers; and what the objective trains."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from unmask.corruption.gaussian import implied_noise, noised
from unmask.corruption.schedules import Between
from unmask.methods.dinoiser import (
    Clipped,
    EmbeddingDiffusion,
    Geometric,
    Integrated,
    Level,
    Power,
    UnitRows,
    cedi,
    confusion,
    falling,
    released_ancestral,
    rising,
    row_losses,
    spaced,
    std_at,
    two_clocks,
    words,
)
from unmask.rng import generator
from unmask.sampling.gaussian import ancestral, denoise, guided, posterior
from unmask.sequence import Batch, Kind, Sequence, Span, collate

Golden = Callable[[str], dict[str, Tensor]]
torch.set_num_threads(1)
SCHEDULES: dict[str, Level] = {
    "interchangeable": Power(),
    "sqrt": Power(exponent=0.25),
    "geometric": Geometric(),
    "linear": Integrated(),
    "quadratic": Integrated(quadratic=True),
}


@pytest.fixture(scope="module")
def arrays(golden: Golden) -> dict[str, Tensor]:
    return golden("dinoiser")


def close(found: Tensor, wanted: Tensor) -> bool:
    return torch.allclose(found.double(), wanted.double(), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules(name: str, arrays: dict[str, Tensor]) -> None:
    t, schedule = arrays["t_grid"], SCHEDULES[name]
    assert {k.partition("_")[2] for k in arrays if k.startswith("std_")} == set(SCHEDULES)
    assert close(schedule.std(t), arrays[f"std_{name}"])
    assert close((1 - schedule.std(t).square()).sqrt(), arrays[f"scale_{name}"])
    assert torch.allclose(schedule.log_snr(t), arrays[f"logsnr_{name}"], atol=2e-4)


def test_clipping_follows_the_table(arrays: dict[str, Tensor]) -> None:
    for width in {k.rpartition("_")[2] for k in arrays if k.startswith("clip_E_")}:
        table = arrays[f"clip_E_{width}"]
        assert close(confusion(table), arrays[f"clip_delta2_{width}"])
        for name, margin in (("clipped", 0.0), ("clipped_s", 1.0)):
            wanted = float(arrays[f"clip_{name}_{width}_min_t"])
            assert Clipped(margin=margin)(table) == pytest.approx(wanted, abs=1e-6)
    assert close(Between(low=0.5)(arrays["clip_u"]), arrays["clip_t"])
    updates = (0, 50_000, 150_000, 199_000)
    for name, least in (("decay", falling), ("ascend", rising)):
        found = torch.stack([Between(low=least(n))(arrays["clip_u"]) for n in updates])
        assert close(found, arrays[f"sampler_anneal_{name}"]), name


def test_distances_of_large_tables_are_those_of_small_ones() -> None:
    table = torch.randn(1500, 8, generator=generator("table")).double()
    squared = (table[:, None] - table).square().sum(-1) + torch.eye(1500) * 1e9
    assert float(confusion(table)) == pytest.approx(float(squared.amin(1).mean() / 8), rel=1e-6)
    with pytest.raises(ValueError, match="has no nearest other word"):
        confusion(table[:1])


def test_embeddings_and_losses(arrays: dict[str, Tensor]) -> None:
    rows = UnitRows(*arrays["embedding_weight"].shape)
    rows.weight.data = arrays["embedding_weight"]
    assert close(rows.table, arrays["embedding_normalised"])
    table, ids = arrays["clip_E_D4"], arrays["loss_target"]
    x = noised(table[ids], arrays["loss_noise"], arrays["loss_t"][:, None, None])
    assert close(x, arrays["loss_xt"])
    found = row_losses(table, arrays["loss_model_out"], ids, ~arrays["loss_ignore"].bool())
    assert close(found[0], arrays["loss_diffusion"]) and close(found[1], arrays["loss_nll"])


def ends(arrays: dict[str, Tensor]) -> tuple[float, float]:
    """The last level that the network is told, and the last state, as the arrays of the samplers have them."""
    return float(arrays["cedi_told_times"][-1]), float(arrays["cedi_state_times"][-1])


def test_grids(arrays: dict[str, Tensor]) -> None:
    told, last = ends(arrays)
    for name, end in (("time", told), ("noise", told), ("time_full", last)):
        grid = arrays[f"grid_{name}"]
        assert close(spaced(1.0, end, len(grid) - 1), grid), name
    grid = arrays["grid_quadratic"]
    assert close(spaced(1.0, last, len(grid) - 1, of=torch.sqrt, back=torch.square), grid)
    grid = arrays["grid_halflogsnr"]
    assert close(spaced(1.0, told, len(grid) - 1, of=Power().log_snr, back=std_at), grid)


def network(arrays: dict[str, Tensor], guidance: float = 0.0) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    def net(x: Tensor, told: Tensor, before: Tensor) -> Tensor:
        found = torch.tanh(torch.cat([x, before], -1) @ arrays["net_A"] + told * arrays["net_b"])
        return guided(found, 0.5 * found, guidance)

    return net


@pytest.mark.parametrize(("name", "guidance"), [("cedi", 0.0), ("cedi_guided", 1.5), ("ddim", 0.0)])
def test_samplers_with_one_clock_and_two(name: str, guidance: float, arrays: dict[str, Tensor]) -> None:
    if f"{name}_x0" not in arrays:
        pytest.fail(f"the arrays have no {name}_x0")
    told, last = ends(arrays)
    levels, states = two_clocks(len(arrays[f"{name}_states"]), told=told, last=last)
    if name == "ddim":
        levels = states[:-1]
    assert close(levels, arrays[f"{name}_told_times"][:-1]) and close(states[1:], arrays[f"{name}_state_times"])
    seen: list[Tensor] = []
    net = network(arrays, guidance)
    x0 = denoise(net, arrays["sample_z"], told=levels, states=states, on_state=seen.append)
    assert close(torch.stack(seen), arrays[f"{name}_states"]) and close(x0, arrays[f"{name}_x0"])
    if name == "cedi":
        assert close(cedi(net, arrays["sample_z"], len(levels), told=told), x0)


def test_the_released_ancestral_sampler(arrays: dict[str, Tensor]) -> None:
    told, last = ends(arrays)
    noise = arrays["ddpm_eps"]
    levels = spaced(told, last, len(noise))

    def move(x: Tensor, x0: Tensor, level: Tensor, following: Tensor, step: int) -> Tensor:
        return released_ancestral(x, x0, noise[step], level, following)

    x0 = denoise(network(arrays), arrays["sample_z"], told=levels[:-1], states=levels, move=move)
    assert close(x0, arrays["ddpm_x0"])


def test_an_ancestral_step_keeps_the_marginal() -> None:
    """From q(x_t | x0), the step gives q(x_s | x0): the right mean and deviation."""
    level, following = torch.tensor(0.8).double(), torch.tensor(0.3).double()
    x0 = torch.full((200_000,), 1.5).double()
    first, second = torch.randn(2, len(x0), generator=generator("marginal")).double()
    found = ancestral(noised(x0, first, level), x0, second, level, following)
    assert float(found.mean()) == pytest.approx(1.5 * (1 - 0.3**2) ** 0.5, abs=3e-3)
    assert float(found.std()) == pytest.approx(0.3, abs=3e-3)
    keep, spread = posterior(level, following)
    assert float((keep * level).square() + spread.square()) == pytest.approx(0.09)


def test_noise_is_found_again() -> None:
    x0, noise = torch.randn(2, 3, 4, generator=generator("again")).double()
    assert torch.allclose(implied_noise(noised(x0, noise, 0.4), x0, 0.4), noise)
    with pytest.raises(ValueError, match="3 levels are told to the network and 2 are states"):
        denoise(lambda x, told, before: x, x0, told=torch.ones(3), states=torch.ones(2))


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.linear = UnitRows(9, 4), nn.Linear(9, 4)

    def forward(self, batch: Batch, x: Tensor, level: Tensor, before: Tensor) -> Tensor:
        return self.linear(torch.cat([x, before, level[:, None, None].expand(*x.shape[:2], 1)], -1))


def rows() -> Batch:
    spans = (
        Span(name="prompt", kind=Kind.TEXT, start=0, stop=2),
        Span(name="answer", kind=Kind.TEXT, start=2, stop=5, writable=True),
    )
    made = [Sequence(ids=torch.arange(5) + i, masked=torch.arange(5) > 1, spans=spans) for i in range(3)]
    return collate(made, range(3))


def test_the_objective_noises_answers_only_and_trains_network_and_table() -> None:
    torch.manual_seed(0)
    model, seen = Tiny(), []
    model.register_forward_pre_hook(lambda module, given: seen.append(given))
    loss = EmbeddingDiffusion()(model, rows(), generator("loss"))
    loss.total.backward()
    table = model.embedding.table.detach()
    least = Clipped()(table)
    (_, x, level, zeros), (_, again, _, before) = seen
    assert torch.equal(x[:, :2], table[rows().ids[:, :2]]) and not torch.equal(x[:, 2:], table[rows().ids[:, 2:]])
    assert bool((level >= least).all()) and not zeros.any() and before.any() and not before.requires_grad
    assert torch.equal(x, again) and loss.total.item() == pytest.approx(
        sum(float(term) for term in loss.terms.values())
    )
    assert model.linear.weight.grad is not None and model.embedding.weight.grad is not None
    assert torch.equal(words(table, table[torch.arange(9)]), torch.arange(9))
    perfect = row_losses(table, table[rows().ids], rows().ids, rows().writable)
    assert float(perfect[0].sum()) == 0
