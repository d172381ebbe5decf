"""CCDD: both forward processes, losses, steps and whole runs against measured arrays; posteriors against Bayes' rule."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.methods import ccdd
from unmask.methods.ccdd import (
    LATENT_WEIGHTS,
    Joint,
    JointLoss,
    JointSampler,
    Latents,
    TokenNoise,
    bound_weight,
    clipped_weight,
    ddim,
    ddpm,
    ddpm_as_released,
    ddpm_weights,
    drawn,
    dynamic_weight,
    even_times,
    flow_linear,
    masked_bound,
    noised,
    old,
    released_times,
    token_bound,
    vp_linear,
)
from unmask.rng import generator

torch.set_num_threads(1)
Golden = Callable[[str], dict[str, Tensor]]
SIGNALS = {"vp_linear": vp_linear, "flow_linear": flow_linear, "old": old}
TOKEN_WEIGHTS = {"elbo": bound_weight, "none": bound_weight, "clip": clipped_weight, "dynamic": dynamic_weight}
close = partial(torch.testing.assert_close, rtol=1e-10, atol=1e-12)


@pytest.fixture(scope="module")
def arrays(golden: Golden) -> dict[str, Tensor]:
    return golden("ccdd")


def noise_of(arrays: dict[str, Tensor], p: str = "0.0", g: str = "1") -> TokenNoise:
    return TokenNoise(size=int(arrays["mask_id"]) + 1, growth=float(g), uniform=float(p))


def matches(arrays: dict[str, Tensor], pattern: str) -> list[re.Match[str]]:
    found = [m for key in sorted(arrays) if (m := re.fullmatch(pattern, key))]
    assert found, f"no array is named {pattern}"
    return found


def test_every_array_is_checked_here(arrays: dict[str, Tensor]) -> None:
    inputs = {"t", "t_grid", "x0", "mask_id", "attention_mask", "encoder_table", "loss_logits", "loss_zpred"}
    kinds = (
        r"(c|alpha|beta_mask|beta_uniform)_g.*_pu.*|corrupt_.*_pr.*_(eps|probs|u|u_r|xt|zt)|model_(Ez|U|W|Wz)|latents_clean"
        r"|elbo_pu.*|mdlm_elbo_per_token|loss_.*_pu[\d.]+(_cont|_disc)?|weights_.*_pu.*"
        r"|sample_(ccdd|mdlm)_(ddim|ddpm)_(times|u|x|z|z0|eps)|step_(ccdd|mdlm)_(ddim|ddpm)_w[\d.]+_(probs|u|x|z|eps)"
        r"|step_right_ddpm_(mean|std)|step_[stxz]"
    )
    assert [key for key in arrays if key not in inputs and not re.fullmatch(kinds, key)] == []


def test_the_noise_of_the_tokens(arrays: dict[str, Tensor]) -> None:
    for m in matches(arrays, r"c_g(\d+)_pu([\d.]+)"):
        noise, tail = noise_of(arrays, m[2], m[1]), m[0][1:]
        close(noise.uniform_rate(arrays["t_grid"]), arrays[m[0]])
        for name, share in zip(("alpha", "beta_mask", "beta_uniform"), noise.shares(arrays["t_grid"]), strict=True):
            close(share, arrays[name + tail])


def latents_of(arrays: dict[str, Tensor]) -> Latents:
    def encode(ids: Tensor) -> Tensor:
        h = arrays["encoder_table"][ids]
        return h + h.cumsum(1) / torch.arange(1, h.shape[1] + 1)[:, None]

    return Latents(encode=encode, channels=arrays["latents_clean"].shape[-1])


def test_pairs_are_corrupted(arrays: dict[str, Tensor]) -> None:
    latents, x_0, t = latents_of(arrays), arrays["x0"], arrays["t"]
    close(latents.target(x_0), arrays["latents_clean"])
    for m in matches(arrays, r"corrupt_(\w+)_pu([\d.]+)_pr([\d.]+)_xt"):
        noise, at = noise_of(arrays, m[2]), m[0].removesuffix("xt")
        probs = noise.noised(F.one_hot(x_0, noise.size).double(), t)
        close(probs, arrays[at + "probs"])
        x_t = drawn(probs, arrays[at + "u"])
        assert torch.equal(x_t, arrays[m[0]])
        hidden = arrays.get(at + "u_r", torch.ones_like(t[0])).expand(x_t.shape) < float(m[3])
        shown = latents.shown(x_t, x_0, hidden, noise.mask_id)
        close(noised(shown, arrays[at + "eps"], t, SIGNALS[m[1]]), arrays[at + "zt"])


def corrupted(arrays: dict[str, Tensor], p: str) -> Tensor:
    return arrays[matches(arrays, rf"corrupt_vp_linear_pu{re.escape(p)}_pr[\d.]+_xt")[0][0]]


def test_weights_and_losses(arrays: dict[str, Tensor]) -> None:
    x_0, t, logits = arrays["x0"], arrays["t"], arrays["loss_logits"]
    said = Joint(logits=logits, latents=arrays["loss_zpred"])
    for m in matches(arrays, r"weights_(\w+)_pu([\d.]+)"):
        close(TOKEN_WEIGHTS[m[1]](noise_of(arrays, m[2]), corrupted(arrays, m[2]), x_0, t), arrays[m[0]])
    for m in matches(arrays, r"elbo_pu([\d.]+)"):
        close(token_bound(noise_of(arrays, m[1]), logits, corrupted(arrays, m[1]), x_0, t), arrays[m[0]])
    close(masked_bound(noise_of(arrays), logits, corrupted(arrays, "0.0"), x_0, t), arrays["mdlm_elbo_per_token"])
    for m in matches(arrays, r"loss_(dynamic|clip|none)_(\w+)_pu([\d.]+)"):
        loss = JointLoss(
            noise=noise_of(arrays, m[3]), token_weight=TOKEN_WEIGHTS[m[1]], latent_weight=LATENT_WEIGHTS[m[2]]
        )
        valid = arrays["attention_mask"].bool()
        made = loss.of(said, corrupted(arrays, m[3]), x_0, arrays["latents_clean"], t, valid)
        close(made.total, arrays[m[0]])
        close(made.terms["tokens"], arrays[m[0] + "_disc"])
        close(made.terms["latents"], arrays[m[0] + "_cont"])


def model_of(arrays: dict[str, Tensor]) -> ccdd.Model:
    def model(x: Tensor, z: Tensor, t: Tensor) -> Joint:
        h = arrays["model_W"][x]
        logits = 0.3 * h + h.mean(1, keepdim=True) + z @ arrays["model_U"]
        return Joint(logits=logits, latents=z @ arrays["model_Wz"] + arrays["model_Ez"][x])

    return model


def sampler_of(arrays: dict[str, Tensor], tokens: str, latents: str, scale: float, steps: int) -> JointSampler:
    noise = noise_of(arrays)
    return JointSampler(
        noise=noise,
        times=released_times(steps),
        token_step=noise.posterior if tokens == "ccdd" else noise.unmasking,
        latent_step=ddim if latents == "ddim" else ddpm_as_released,
        scale=scale,
    )


def test_single_steps(arrays: dict[str, Tensor]) -> None:
    x, z, at = arrays["step_x"], arrays["step_z"], (float(arrays["step_t"]), float(arrays["step_s"]))
    model = model_of(arrays)
    for m in matches(arrays, r"step_(ccdd|mdlm)_(ddim|ddpm)_w([\d.]+)_x"):
        sampler, own = sampler_of(arrays, m[1], m[2], float(m[3]), 6), m[0][:-1]
        eps = arrays.get(own + "eps", torch.zeros_like(z))
        x_s, z_s, probs = sampler.step(model, x, z, at, arrays[own + "u"], eps)
        if m[1] == "mdlm":  # measured before visible tokens are put back
            p, _ = sampler.predicted(model, x, z, torch.full((len(x),), at[0]))
            t, s = (torch.full((len(x),), one, dtype=z.dtype) for one in at)
            probs = sampler.token_step(p, torch.full_like(x, sampler.noise.mask_id), t, s)
        close(probs, arrays[own + "probs"])
        assert torch.equal(x_s, arrays[m[0]])
        close(z_s, arrays[own + "z"])


def test_the_right_ddpm_step(arrays: dict[str, Tensor]) -> None:
    t, s = arrays["step_t"], arrays["step_s"]
    shares = [tuple(share[:, None, None] for share in vp_linear(time)) for time in (t, s)]
    said = model_of(arrays)(arrays["step_x"], arrays["step_z"], t)
    still = torch.zeros_like(arrays["step_z"])
    mean = ddpm(arrays["step_z"], said.latents, still, *shares)  # type: ignore[arg-type]
    close(mean, arrays["step_right_ddpm_mean"])
    close(ddpm(still, still, still + 1, *shares)[0, 0, 0], arrays["step_right_ddpm_std"])  # type: ignore[arg-type]


def test_whole_runs(arrays: dict[str, Tensor]) -> None:
    model = model_of(arrays)
    for m in matches(arrays, r"sample_(ccdd|mdlm)_(ddim|ddpm)_x"):
        own, wanted = m[0][:-1], arrays[m[0]]
        sampler = sampler_of(arrays, m[1], m[2], 1.0, len(wanted))
        close(torch.tensor(sampler.times, dtype=torch.float64), arrays[own + "times"])
        z = arrays[own + "z0"]
        x = torch.full(wanted.shape[1:], sampler.noise.mask_id)
        for i, at in enumerate(sampler.times):
            u = arrays[own + "u"][i] if i < len(arrays[own + "u"]) else torch.full(x.shape, 0.5, dtype=z.dtype)
            eps = arrays[own + "eps"][i] if own + "eps" in arrays and i < len(arrays[own + "eps"]) else z * 0
            x, z, _ = sampler.step(model, x, z, at, u, eps)
            assert torch.equal(x, wanted[i]), f"{own} {i}"
            close(z, arrays[own + "z"][i])


# -- beyond the arrays ---------------------------------------------------------------------------------------------------


def test_the_token_posterior_is_bayes_rule() -> None:
    noise, t, s = TokenNoise(size=5, uniform=0.2), torch.tensor([0.7]).double(), torch.tensor([0.4]).double()
    p = torch.rand(1, 1, 5, generator=generator("p")).double()
    p[..., noise.mask_id] = 0
    p = p / p.sum()
    every = torch.arange(5)[None]
    one = torch.eye(5, dtype=torch.float64)[None]
    joint = noise.noised(p, t)[0, 0]  # q(x_t), summed over x_s below
    found = noise.posterior(p.expand(1, 5, 5), every, t, s)[0]  # of each x_t
    close(found.sum(1), torch.ones(5, dtype=torch.float64))
    close(joint @ found, noise.noised(p, s)[0, 0])
    sure = noise.posterior(one, every, t, s)[
        0
    ]  # x_0 = x_t: visible tokens that were never masked are most probably kept
    assert bool((sure[:4].argmax(1) == torch.arange(4)).all())


def test_ddpm_is_gaussian_conditioning_and_ends_at_the_prediction() -> None:
    a_t, a_s = torch.tensor(0.5).double(), torch.tensor(0.8).double()
    kept, new, variance = ddpm_weights(a_t, a_s)
    # z_t = (a_t / a_s) z_s + noise: the mean of z_s given z_0 = 1 must be a_s, its variance 1 - a_s^2.
    close(kept * a_t + new, a_s)
    close(variance + kept**2 * (1 - a_t**2), 1 - a_s**2)
    end = ddpm_weights(a_t, torch.tensor(1.0).double())
    assert float(end[0]) == 0 and float(end[1]) == 1 and float(end[2]) == 0


def test_even_times_begin_at_all_noise_and_end_with_a_decision() -> None:
    times = even_times(4)
    assert times[0][0] == pytest.approx(0.9999) and times[-1][0] == times[-1][1] and len(times) == 5
    assert released_times(4)[0][0] < 0.76
    with pytest.raises(ValueError, match="at least one step, got 0"):
        even_times(0)


def toy(size: int) -> ccdd.Model:
    def model(x: Tensor, z: Tensor, t: Tensor) -> Joint:
        h = F.one_hot(x, size).float()
        return Joint(logits=h.mean(1, keepdim=True) - h + z.sum(-1, keepdim=True) * torch.arange(size), latents=z * 0.5)

    return model


def test_a_run_fills_every_token_keeps_the_given_ones_and_rows_are_independent() -> None:
    noise = TokenNoise(size=6)
    ids = torch.arange(12).view(3, 4) % 5
    given = torch.tensor([True, False, False, True]).expand(3, 4)
    for step in (noise.posterior, noise.unmasking):
        sampler = JointSampler(noise=noise, times=even_times(3), token_step=step, latent_step=ddpm, scale=1.5)
        made = sampler.sample(toy(6), ids, given, 2, [7, 8, 9])
        assert torch.equal(made[given], ids[given])
        assert torch.equal(sampler.sample(toy(6), ids[1:2], given[1:2], 2, [8])[0], made[1])
        assert not bool((made == noise.mask_id).any())


def test_latents_of_hidden_tokens_are_zero_and_the_others_know_the_clean_text() -> None:
    """The leak of the released corruption: a visible token's latent changes with a masked neighbour."""
    table = torch.randn(6, 4, generator=generator("table"))
    latents = Latents(encode=lambda ids: table[ids] + table[ids].mean(1, keepdim=True), channels=3)
    clean, other = torch.tensor([[0, 1, 2]]), torch.tensor([[0, 1, 3]])
    x_t, hidden = torch.tensor([[0, 1, 5]]), torch.ones(1, 3, dtype=torch.bool)
    shown = latents.shown(x_t, clean, hidden, 5)
    assert not bool(shown[0, 2].any()) and bool(shown[0, :2].any())
    assert not torch.allclose(shown[0, 0], latents.shown(x_t, other, hidden, 5)[0, 0])


def test_noise_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="uniform in"):
        TokenNoise(size=4, uniform=1.0)
