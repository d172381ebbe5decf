"""SUR-adapter against its measured arrays: the adapter as released and as meant, its losses and gradients."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.methods.sur_adapter import Distilled, SurAdapter, Triples, released
from unmask.models.bridges import TextAdapter, feature_kl
from unmask.rng import generator

Golden = Callable[[str], dict[str, Tensor]]
torch.set_num_threads(1)


@pytest.fixture(scope="module")
def arrays(golden: Golden) -> dict[str, Tensor]:
    return golden("sur_adapter")


def adapter(arrays: dict[str, Tensor], *, across: bool) -> TextAdapter:
    state = {name[2:]: value for name, value in arrays.items() if name.startswith("w.")}
    return released(arrays["x"].shape[-1], state, share=float(arrays["eta"]), across=across)


def model(arrays: dict[str, Tensor]) -> SurAdapter:
    vector, width = arrays["llm_vector"].shape[-1], arrays["x"].shape[-1]
    made = SurAdapter(adapter(arrays, across=True), vector=vector, width=width)
    made.resize.load_state_dict({"weight": arrays["resize.fc.weight"], "bias": arrays["resize.fc.bias"]})
    return made


def test_the_adapter_as_released_and_as_meant(arrays: dict[str, Tensor]) -> None:
    for prefix, across in (("", True), ("intended.", False)):
        one = adapter(arrays, across=across)
        out, encoded = one(arrays["x"])
        assert torch.allclose(encoded, arrays[f"{prefix}encoder_out"], atol=1e-5)
        assert torch.allclose(out, arrays[f"{prefix}out"], atol=1e-5)
        alone, _ = one(arrays["x"][:1])
        assert torch.allclose(alone, out[:1], atol=1e-6) == (not across), "rows must not depend on each other"
        if across:
            assert torch.allclose((out - one.kept * arrays["x"]) / one.share, arrays["fc_out"], atol=1e-4)
            assert torch.allclose(alone, arrays["out_first_alone"], atol=1e-5)


def denoising(arrays: dict[str, Tensor]) -> Callable[[Tensor, Triples], Tensor]:
    return lambda states, batch: F.mse_loss(torch.tanh(states @ arrays["unet.W"]), batch.target)


def batch(arrays: dict[str, Tensor]) -> Triples:
    return Triples(
        short=arrays["x"], long=arrays["long_states"], vector=arrays["llm_vector"], target=arrays["unet.target"]
    )


@pytest.mark.parametrize(("name", "through"), [("code", False), ("paper", True)])
def test_losses_and_gradients(name: str, through: bool, arrays: dict[str, Tensor]) -> None:
    one = model(arrays)
    loss = Distilled(denoising=denoising(arrays), through=through)(one, batch(arrays), generator(0))
    wanted = {"denoising": "mse", "vector": "llm_loss", "prompt": "prompt_loss"}
    for term, array in wanted.items():
        assert torch.allclose(loss.terms[term], arrays[array], rtol=1e-5), term
    assert torch.allclose(loss.total, arrays["total"])
    loss.total.backward()
    gradient, measured = one.adapter.fc.bias.grad, arrays[f"grad.fc.bias.{name}"]
    assert gradient is not None and torch.allclose(
        gradient, measured, rtol=1e-3, atol=1e-3 * float(measured.abs().max())
    )
    assert one.resize.weight.grad is None


def test_the_adapter_starts_as_the_identity() -> None:
    x = torch.randn(2, 5, 16, generator=generator("x"))
    out, encoded = TextAdapter(16, heads=4, hidden=24)(x)
    assert torch.equal(out, x) and encoded.shape == x.shape
    one = TextAdapter(16, heads=4, hidden=24).eval()
    torch.nn.init.normal_(one.fc.weight, generator=generator("w"))
    assert torch.allclose(one(x)[0][:1], one(x[:1])[0], atol=1e-5) and not torch.allclose(one(x)[0], x)


def test_the_distance_is_zero_at_the_teacher() -> None:
    x = torch.randn(2, 5, 8, generator=generator("kl"))
    assert float(feature_kl(x, x)) == pytest.approx(0, abs=1e-6) and float(feature_kl(x[:, :1], x)) > 0


def test_other_weights_are_refused() -> None:
    with pytest.raises(ValueError, match=r"have no transformer_encoder.layers.0.linear1.weight"):
        released(16, {"fc.weight": torch.zeros(16, 16)})
