"""Diffusion-Link against its arrays, which follow from formulas: losses, inference and the linear baselines; and what a bridge learns."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.corruption.gaussian import linear_betas, noised, signal
from unmask.methods.diffusion_link import (
    BridgeNet,
    LinkDiffusion,
    Pairs,
    Regression,
    carried,
    gap,
    levels,
    mean_shift,
    ridge,
    squared,
    topology,
)
from unmask.rng import generator

Golden = Callable[[str], dict[str, Tensor]]
torch.set_num_threads(1)


@pytest.fixture(scope="module")
def arrays(golden: Golden) -> dict[str, Tensor]:
    return golden("diffusion_link")


def stand_in(arrays: dict[str, Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x, t: torch.tanh(x @ arrays["W"] + torch.cos(t / 200))


def test_losses(arrays: dict[str, Tensor]) -> None:
    t, text, net = arrays["t"], arrays["text"], stand_in(arrays)
    assert torch.allclose(signal(linear_betas(1000))[t], arrays["alpha_bar"], rtol=1e-6)
    level, predicted = levels()[t].float()[:, None], {}
    for name in ("text", "audio"):
        x = noised(arrays[name], arrays[f"noise_{name}"], level)
        assert torch.allclose(x, arrays[f"{name}_t"], atol=1e-5)
        predicted[name] = net(x, t[:, None])
        assert torch.allclose(predicted[name], arrays[f"pred_{name}"], atol=1e-5)
    assert torch.allclose(sum(squared(p, text) for p in predicted.values()), arrays["loss.predict"], rtol=1e-5)
    assert torch.allclose(sum(topology(p, text) for p in predicted.values()), arrays["loss.topology"], rtol=1e-5)


def test_inference(arrays: dict[str, Tensor]) -> None:
    seen: list[Tensor] = []
    down = tuple(arrays["infer.steps"].tolist())
    found = carried(stand_in(arrays), arrays["audio"], arrays["noise_audio"], down=down, on_state=seen.append)
    assert torch.allclose(torch.stack(seen), arrays["infer.states"], atol=2e-5)
    assert torch.allclose(found, arrays["infer.out"], atol=1e-5)
    last = stand_in(arrays)(seen[-1], torch.tensor(down[-1]))
    assert torch.allclose(last, arrays["infer.x0"], atol=1e-5)


def test_linear_baselines_and_the_gap(arrays: dict[str, Tensor]) -> None:
    audio, text = arrays["audio"], arrays["text"]
    shifted = F.normalize(audio + mean_shift(audio, text), dim=-1)
    assert torch.allclose(shifted, arrays["baseline.mean_shift"], atol=1e-6)
    linear = ridge(audio, text, float(arrays["baseline.ridge_lambda"]))
    assert torch.allclose(linear, arrays["baseline.ridge_W"], atol=1e-5)
    assert torch.allclose(F.normalize(audio @ linear, dim=-1), arrays["baseline.ridge"], atol=1e-5)
    centroid, cosine = gap(audio, text)
    assert torch.allclose(centroid, arrays["gap.centroid"]) and torch.allclose(cosine, arrays["gap.paired_cosine"])


TEXTS = 10 * torch.eye(4)


def pairs(count: int, seed: int) -> Pairs:
    """One of four texts, and its sound with an offset."""
    rng = generator("link", seed)
    text = TEXTS[torch.randint(4, (count,), generator=rng)]
    return Pairs(
        audio=text + torch.tensor([1.0, 1.0, -1.0, 1.0]) + 0.1 * torch.randn(count, 4, generator=rng), text=text
    )


@pytest.mark.parametrize("objective", [LinkDiffusion(), LinkDiffusion(topology=0.0), Regression()], ids=repr)
def test_a_bridge_learns_to_carry_sounds_to_their_texts(objective: LinkDiffusion | Regression) -> None:
    torch.manual_seed(0)
    net = BridgeNet(4, hidden=32)
    optimiser = torch.optim.Adam(net.parameters(), lr=3e-3)
    for step in range(200):
        loss = objective(net, pairs(64, step), generator(step))
        optimiser.zero_grad()
        loss.total.backward()
        optimiser.step()
    test = pairs(64, -1)
    untrained = carried(BridgeNet(4, hidden=32), test.audio, torch.randn(64, 4, generator=generator("n")))
    assert float((untrained.argmax(-1) == test.text.argmax(-1)).float().mean()) < 0.6
    with torch.no_grad():
        if isinstance(objective, Regression):
            found = F.normalize(net(test.audio, torch.zeros(64)), dim=-1)
        else:
            assert ("topology" in loss.terms) == bool(objective.topology)
            found = carried(net, test.audio, torch.randn(64, 4, generator=generator("n")))
    nearest = [x.argmax(-1) for x in (found, test.text)]
    assert float((nearest[0] == nearest[1]).float().mean()) > 0.9
