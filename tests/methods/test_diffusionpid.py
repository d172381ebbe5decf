"""DiffusionPID against its measured arrays: levels, estimators in an exact world, decompositions, and four enumerated worlds."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch import Tensor

from unmask.analysis.information import (
    Decomposition,
    Patterns,
    decompose,
    every_pattern,
    information,
    sampled_patterns,
)
from unmask.methods.diffusionpid import (
    LogisticLevels,
    UniformLevels,
    negative_log_likelihood,
    noised,
    orthogonal_information,
    pointwise_information,
    published_redundancy,
    squared_error,
)
from unmask.rng import generator

Golden = Callable[[str], dict[str, Tensor]]
Row = tuple[int, int, int, int]  # x1, x2, word 1, word 2
torch.set_num_threads(1)
WORLDS: dict[str, Callable[[int, int, int], Row]] = {
    "same": lambda c, d, e: (c, d, c, c),
    "halves": lambda c, d, e: (c, d, c, d),
    "xor": lambda c, d, e: (c ^ d, e, c, d),
    "irrelevant": lambda c, d, e: (c, e, c, d),
}


@pytest.fixture(scope="module")
def arrays(golden: Golden) -> dict[str, Tensor]:
    return golden("diffusionpid")


def test_levels_and_weights(arrays: dict[str, Tensor]) -> None:
    clip = float(arrays["levels.range"]) / 2 / LogisticLevels().scale
    for name, levels in (
        ("logistic_integrate", LogisticLevels(clip=clip)),
        ("trunc_uniform_integrate", UniformLevels(clip=clip, released=True)),
    ):
        found = levels.levels(arrays[f"levels.{name}.u"])
        assert torch.allclose(found.float(), arrays[f"levels.{name}.logsnr"], atol=2e-5)
        weight = levels.weight(arrays[f"levels.{name}.logsnr"])
        assert torch.allclose(weight.float(), arrays[f"levels.{name}.weight"], rtol=1e-4)
    assert UniformLevels(clip=clip).weight(torch.zeros(1)).item() == pytest.approx(float(arrays["levels.range"]))


def test_a_mean_with_the_weights_is_the_integral() -> None:
    """Of 1 / (1 + a^2) over the levels that each density covers."""
    u = (torch.arange(200_000) + 0.5).double() / 200_000
    for levels in (LogisticLevels(clip=3.0), UniformLevels()):
        found = levels.levels(u)
        low, high = float(found.min()), float(found.max())
        mean = float((levels.weight(found) / (1 + found.square())).mean())
        assert mean == pytest.approx(math.atan(high) - math.atan(low), rel=2e-3)


def predicted(arrays: dict[str, Tensor], z: Tensor, level: Tensor) -> list[Tensor]:
    """Exact e_hat of the mixture of normal distributions: for the first two words, and without one."""
    mu, s2 = arrays["cont.mu"].double(), float(arrays["cont.s2"])
    a, b = torch.sigmoid(level.double()).sqrt()[:, None], torch.sigmoid(-level.double()).sqrt()[:, None]
    found, log_weight = [], []
    for one in mu:
        mean = one + s2 * a / (a * a * s2 + b * b) * (z - a * one)
        found.append((z - a * mean) / b)
        spread = (a * a * s2 + b * b)[:, 0]
        log_weight.append(-0.5 * (z - a * one).square().sum(-1) / spread)
    share = torch.stack(log_weight).softmax(0)[..., None]
    return [found[0], found[1], (torch.stack(found) * share).sum(0)]


def test_estimators_in_an_exact_world(arrays: dict[str, Tensor]) -> None:
    x, level = arrays["cont.x"].flatten(), arrays["cont.logsnr"]
    noise = arrays["cont.eps"].flatten(1)
    wrong, correct, null = predicted(arrays, noised(x, noise, level), level)
    errors = torch.stack([squared_error(p, noise) for p in (wrong, correct, null)])
    assert torch.allclose(errors.float(), arrays["cont.mse_wrong_correct_null"], rtol=1e-4, atol=2e-5)
    pairs = torch.stack([squared_error(p, q) for p, q in ((wrong, correct), (wrong, null), (correct, null))])
    assert torch.allclose(pairs.float(), arrays["cont.diff_wc_wn_cn"], rtol=1e-4, atol=2e-5)


def test_estimators_over_levels(arrays: dict[str, Tensor]) -> None:
    levels = LogisticLevels()
    level = levels.levels(arrays["cont.nll.u"])
    weight, noise = levels.weight(level), arrays["cont.nll.eps"].flatten(1)
    wrong, correct, null = predicted(arrays, noised(arrays["cont.x"].flatten(), noise, level), level)
    pairs = torch.stack([squared_error(p, q) for p, q in ((wrong, correct), (wrong, null), (correct, null))])
    assert torch.allclose(orthogonal_information(pairs, weight).float(), arrays["cont.mi"].flatten(), rtol=1e-4)
    errors = torch.stack([squared_error(p, noise) for p in (wrong, correct, null)])
    found = negative_log_likelihood(errors, level, weight)
    assert torch.allclose(found.float(), arrays["cont.nll"].flatten(), rtol=1e-4)
    gain = pointwise_information(errors[2], errors[:2], weight)
    assert torch.allclose(gain, found[2] - found[:2]) and gain[1] > gain[0]


def test_decompositions(arrays: dict[str, Tensor]) -> None:
    i1, i2, i12, h1, h2 = (arrays[f"pid.{n}"] for n in ("i1", "i2", "i12", "h1", "h2"))
    published = published_redundancy(i1, i2, h1, h2)
    for name, found in (("min", decompose(i1, i2, i12)), ("published", decompose(i1, i2, i12, redundant=published))):
        parts = {"r": found.redundant, "u1": found.unique[0], "u2": found.unique[1], "s": found.synergy}
        for key, part in parts.items():
            assert torch.allclose(part, arrays[f"pid.{name}.{key}"], atol=1e-6), f"{name} {key}"
        assert torch.allclose(found.total, i12, atol=1e-6)


def rows_of(world: str) -> list[Row]:
    return [WORLDS[world](*bits) for bits in product((0, 1), repeat=3)]


def exact(rows: list[Row], row: Row, words: tuple[int, ...]) -> Callable[[Tensor], Tensor]:
    """ln p(x_l | known tokens, the words of the row) by counting."""

    def log_p(masked_BL: Tensor) -> Tensor:
        found = torch.zeros(masked_BL.shape, dtype=torch.float64)
        for b, masked in enumerate(masked_BL.tolist()):
            given = [r for r in rows if all(r[2 + w] == row[2 + w] for w in words)]
            given = [r for r in given if all(m or r[t] == row[t] for t, m in enumerate(masked))]
            for t in range(2):
                found[b, t] = math.log(sum(r[t] == row[t] for r in given) / len(given))
        return found

    return log_p


def informed(rows: list[Row], row: Row, patterns: Patterns) -> tuple[Tensor, Tensor, Tensor]:
    null, one, two, both = (exact(rows, row, words)(patterns.masked) for words in ((), (0,), (1,), (0, 1)))
    return information(one, null, patterns), information(two, null, patterns), information(both, null, patterns)


def table(found: Decomposition) -> Tensor:
    return torch.stack((found.redundant, *found.unique, found.synergy, found.total))


@pytest.mark.parametrize("world", sorted(WORLDS))
def test_four_worlds_by_enumeration(world: str, arrays: dict[str, Tensor]) -> None:
    rows, patterns = rows_of(world), every_pattern(2)
    prior = torch.full((2,), math.log(2), dtype=torch.float64)
    smaller, published = [], []
    for row in rows:
        i1, i2, i12 = informed(rows, row, patterns)
        smaller.append(table(decompose(i1, i2, i12)))
        redundant = published_redundancy(i1, i2, prior, prior)
        published.append(table(decompose(i1, i2, i12, redundant=redundant)))
        whole = [r[:2] == row[:2] for r in rows]
        given = [r[:2] == row[:2] for r in rows if r[2:] == row[2:]]
        assert float(i12.sum()) == pytest.approx(math.log(sum(given) / len(given) / (sum(whole) / len(whole))))
    for name, found in (("min", smaller), ("published", published)):
        mean = torch.stack(found).mean(0)
        assert torch.allclose(mean, arrays[f"world.{world}.{name}"], atol=1e-12), name


def test_sampled_patterns_give_the_exact_mean() -> None:
    rng = generator("information test")
    values = torch.randn(2**4, 4, generator=rng).double()  # one value for every set of known tokens and token
    place = 2 ** torch.arange(4)

    def log_p(masked_BL: Tensor) -> Tensor:
        return values[((~masked_BL).long() * place).sum(1)]

    zero, means = torch.zeros(1, 4), []
    for patterns in (every_pattern(4), sampled_patterns(4, 40_000, rng)):
        means.append(information(log_p(patterns.masked), zero, patterns))
    assert torch.allclose(*means, atol=0.03)
    assert float(every_pattern(4).weight.sum(0)[0]) == pytest.approx(1.0)
    with pytest.raises(ValueError, match="13 tokens cannot be enumerated"):
        every_pattern(13)
    with pytest.raises(ValueError, match="patterns need tokens"):
        sampled_patterns(0, 4, rng)
