"""MMAR: schedule, head, loss, sampler and masked-order loop against measured arrays; what low precision does to each target."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from unmask.corruption.gaussian import EPSILON, SAMPLE, VELOCITY, NoiseLevels, Target, cosine
from unmask.methods.mmar import (
    ContinuousTokens,
    GrowingScale,
    MaskedOrder,
    masked_at_random,
    masked_counts,
    masked_number,
    truncated_normal_share,
    uniform_share,
)
from unmask.models.diffusion_head import DiffusionHead, guided
from unmask.models.timed import TimeEmbedding
from unmask.objectives.diffusion import DiffusionLoss
from unmask.rng import generator
from unmask.sampling import selection
from unmask.sampling.continuous import ByDiffusion, GuidedHidden, ancestral, both, ddim
from unmask.sampling.sampler import Sampler, Step
from unmask.sampling.selection import RandomOrder
from unmask.sequence import Batch, Kind, Sequence, Span, collate
from unmask.step import Prediction, Progress, Reuse, Scored

torch.set_num_threads(1)
Golden = Callable[[str], dict[str, Tensor]]
VALUE = 9  # a kind of its own
TARGETS = {"eps": EPSILON, "v": VELOCITY, "x0": SAMPLE}
LEVELS = cosine()
close = partial(torch.testing.assert_close, rtol=5e-6, atol=5e-6)
exact = partial(torch.testing.assert_close, rtol=1e-9, atol=1e-12)


@pytest.fixture(scope="module")
def arrays(golden: Golden) -> dict[str, Tensor]:
    return golden("mmar")


def test_every_array_is_checked_here(arrays: dict[str, Tensor]) -> None:
    parts = {"ddim", "head", "loop", "loss", "mask_rate", "oracle", "respace", "sample", "schedule", "vpred", "w"}
    assert {name.split(".")[0] for name in arrays} == parts
    loop = {"A", "P", "cfg", "class_emb", "fake", "image", "init", "labels", "mask_len", "mask_next", "noise", "orders"}
    assert {name.split(".")[1] for name in arrays if name.startswith("loop.")} == loop


def table(levels: NoiseLevels) -> dict[str, Tensor]:
    return {
        "betas": levels.betas,
        "alphas_cumprod": levels.signal,
        "posterior_variance": levels.variance,
        "posterior_log_variance_clipped": levels.log_variance,
        "posterior_mean_coef1": levels.of_sample,
        "posterior_mean_coef2": levels.of_noisy,
        "timestep_map": levels.number,
    }


def test_the_noise_levels(arrays: dict[str, Tensor]) -> None:
    found = table(LEVELS)
    for name in (k.removeprefix("schedule.train.") for k in arrays if k.startswith("schedule.train.")):
        exact(found[name][arrays["schedule.idx"]], arrays[f"schedule.train.{name}"])
    found = table(LEVELS.kept(len(arrays["schedule.gen.betas"])))
    for name in (k.removeprefix("schedule.gen.") for k in arrays if k.startswith("schedule.gen.")):
        exact(found[name], arrays[f"schedule.gen.{name}"])
    for name in (k for k in arrays if k.startswith("respace.")):
        assert torch.equal(LEVELS.kept(int(name.split(".")[1])).number, arrays[name])


def head_of(arrays: dict[str, Tensor], prefix: str = "w.") -> DiffusionHead:
    weights = {key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)}
    width, channels = weights["input_proj.weight"].shape
    depth = len({key.split(".")[1] for key in weights if key.startswith("res_blocks.")})
    outputs = len(weights["final_layer.linear.bias"])
    head = DiffusionHead(channels, weights["cond_embed.weight"].shape[1], width, depth, outputs)
    head.load_state_dict(weights)
    return head.requires_grad_(False)


def test_the_head(arrays: dict[str, Tensor]) -> None:
    x, t, z, head = arrays["head.x"], arrays["head.t"], arrays["head.z"], head_of(arrays)
    close(head(x, t, z), arrays["head.out"])
    waves = TimeEmbedding(1).waves(t)[:, [0, 1, 2, 63, 127, 128, 129, 191, 255]]
    close(waves, arrays["head.time_embedding"])
    half, three = len(x) // 2, torch.full((len(x) // 2,), 3)
    said = both(head, 2.5, z[:half], z[half:], x.shape[1])(x[:half], three)
    wanted = arrays["head.out_cfg2.5"]
    close(said, wanted[:half])
    # The released function writes the merged noise into both halves; the numbers of the variance stay those of each half.
    close(said[:, : x.shape[1]], wanted[half:, : x.shape[1]])
    close(head(x[:half], three, z[half:])[:, x.shape[1] :], wanted[half:, x.shape[1] :])


def test_the_loss(arrays: dict[str, Tensor]) -> None:
    head, loss = head_of(arrays), DiffusionLoss(levels=LEVELS, learned_variance=True)
    x, eps, z, t = arrays["loss.target"], arrays["loss.noise"], arrays["head.z"], arrays["loss.t"]
    close(LEVELS.noised(x, eps, t), arrays["loss.x_t"])
    found = loss.of(head, x, z, t, eps)
    close(found.error, arrays["loss.mse"])
    close(found.bound, arrays["loss.vb"], rtol=1e-5)
    mask = arrays["loss.mask"]
    close((found.total * mask).sum() / mask.sum(), arrays["loss.total"])
    early = loss.of(head, x, z, arrays["loss.t0"], eps)
    close(early.error, arrays["loss.t0_mse"])
    close(early.bound, arrays["loss.t0_vb"], rtol=1e-5, atol=1e-5)


def oracle(arrays: dict[str, Tensor]) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The exact head of x | z ~ N(z M, .3^2)."""

    def head(x: Tensor, t: Tensor, z: Tensor) -> Tensor:
        a = LEVELS.signal[t][:, None]
        eps = ((1 - a).sqrt() * (x - a.sqrt() * (z @ arrays["oracle.M"])) / (0.09 * a + 1 - a)).to(x)
        return torch.cat([eps, 0.4 * torch.tanh(z[:, :1]).expand_as(x)], dim=1)

    return head


def test_sampling_with_the_exact_head(arrays: dict[str, Tensor]) -> None:
    z, head, noise = arrays["head.z"], oracle(arrays), arrays["sample.plain.noise"]
    levels = LEVELS.kept(len(noise))
    temperature = float(arrays["sample.plain.temperature"])
    made = ancestral(lambda x, t: head(x, t, z), levels, arrays["sample.plain.init"], noise, temperature=temperature)
    close(made, arrays["sample.plain.out"])
    start, noise, scale = arrays["sample.cfg.init"], arrays["sample.cfg.noise"], float(arrays["sample.cfg.scale"])
    half, channels = start.shape
    merged = both(head, scale, z[:half], z[half:], channels)
    made = ancestral(merged, levels, start, noise[:, :half])
    close(made, arrays["sample.cfg.out"][:half])

    def all_rows(x: Tensor, t: Tensor) -> Tensor:
        """The second half moves along with the first one's noise and its own variance."""
        first = merged(x[:half], t[:half])
        own = head(x[:half], t[:half], z[half:])
        return torch.cat([first, torch.cat([first[:, :channels], own[:, channels:]], dim=1)])

    close(ancestral(all_rows, levels, torch.cat([start, start]), noise), arrays["sample.cfg.out"])


@dataclass(frozen=True, kw_only=True)
class StandIn:
    """z_i = tanh(mean of the visible values) A + class + P_i; the class of a row is the id of its first token, the null class the last."""

    arrays: dict[str, Tensor]

    def __call__(self, batch: Batch, *, predict: Tensor | None = None, reuse: Reuse | None = None) -> Prediction:
        assert predict is not None
        a, classes = self.arrays, torch.cat([self.arrays["loop.class_emb"], self.arrays["loop.fake"]])
        own, tokens = batch.kind == VALUE, len(a["loop.P"])
        values = torch.zeros(*own.shape, len(a["loop.A"])) if batch.values is None else batch.values
        visible = (values * (own & ~batch.masked)[..., None]).sum(1) / tokens
        z = (visible.tanh() @ a["loop.A"] + classes[batch.ids[:, 0]])[:, None] + a["loop.P"]
        chosen = predict & own
        at = chosen.flatten().nonzero()[:, 0]
        return Prediction(scored={VALUE: Scored(at=at, hidden=z.flatten(0, 1)[chosen[:, 1:].flatten()])})


def request(label: int, tokens: int) -> Sequence:
    spans = (
        Span(name="class", kind=Kind.TEXT, start=0, stop=1),
        Span(name="image", kind=VALUE, start=1, stop=1 + tokens, writable=True),
    )
    ids = torch.tensor([label] + [0] * tokens)
    return Sequence(ids=ids, masked=torch.arange(1 + tokens) > 0, spans=spans)


def test_the_masked_order_loop(arrays: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, wanted, steps = len(arrays["loop.P"]), arrays["loop.mask_next"].bool(), len(arrays["loop.mask_len"])
    channels, labels = len(arrays["loop.A"]), arrays["loop.labels"].tolist()
    assert masked_counts(tokens, steps) == arrays["loop.mask_len"].tolist()
    rank = torch.nn.functional.pad(arrays["loop.orders"].argsort(1), (1, 0)).float()
    monkeypatch.setattr(selection, "_noise", lambda batch, temperatures: rank[: batch.rows])
    taken: list[Tensor] = []

    def normal(row: int, shape: tuple[int, ...]) -> Tensor:
        start, noise = arrays[f"loop.init.{len(taken)}"], arrays[f"loop.noise.{len(taken)}"]
        own = slice(row * shape[1], (row + 1) * shape[1])
        return torch.cat([start[None, own], noise[:, : len(start)][:, own]])

    scale = GrowingScale(scale=3.0, tokens=tokens)
    levels = LEVELS.kept(len(arrays["loop.noise.0"]))
    numbers = [Progress(number=torch.tensor([k]), of=torch.tensor([steps]), length=0) for k in range(steps)]
    batch = collate([request(label, tokens) for label in labels], range(len(labels)))
    close(torch.cat([scale(batch, progress) for progress in numbers]), arrays["loop.cfg"])
    sampler = Sampler(
        schedule=MaskedOrder(steps=steps),
        token_sampler=ByDiffusion(
            kind=VALUE, channels=channels, head=oracle(arrays), levels=levels, temperature=0.95, scale=scale,
            normal=normal,
        ),
        selection=RandomOrder(),
        guidance=GuidedHidden(drop={"class"}, null_id=len(arrays["loop.class_emb"])),
    )  # fmt: skip

    def keep(step: Step) -> None:
        taken.append(step.batch.masked[:, 1:])

    done = sampler.sample(StandIn(arrays=arrays), batch, on_step=keep)
    assert done.values is not None
    # mask_next: what the formula leaves masked; the last iteration draws its one token, too.
    assert torch.equal(torch.stack(taken[:-1]), wanted[:-1])
    assert torch.equal(wanted[-1], arrays["loop.orders"].argsort(1) < arrays["loop.mask_len"][-1])
    close(done.values[:, 1:].transpose(1, 2).reshape(arrays["loop.image"].shape), arrays["loop.image"])


def test_shares_of_masked_tokens(arrays: dict[str, Tensor]) -> None:
    share = truncated_normal_share(arrays["mask_rate.q"])
    exact(share, arrays["mask_rate.ppf"], rtol=1e-7)
    for name in (k for k in arrays if k.startswith("mask_rate.num_masked_L")):
        assert torch.equal(masked_number(share, int(name.rpartition("L")[2])), arrays[name])


def test_targets_and_their_gains(arrays: dict[str, Tensor]) -> None:
    x, eps = arrays["loss.target"], arrays["loss.noise"]
    signal = LEVELS.signal[arrays["loss.t"]][:, None].float()
    close(VELOCITY.of(x, eps, signal), arrays["vpred.v"])
    a_t, a_s = arrays["vpred.abar_t"], arrays["vpred.abar_s"]
    exact(LEVELS.signal[arrays["vpred.t"]], a_t)
    for name, target in TARGETS.items():
        exact(target.gain(a_t, a_s), arrays[f"vpred.gain_{name}"], rtol=1e-7, atol=1e-9)


def two_modes(target: Target, *, rounded: bool) -> Callable[[Tensor, Tensor], Tensor]:
    """The exact prediction for values +-1 with deviation .1; only the output is ``rounded`` to bfloat16."""

    def said(x: Tensor, t: Tensor) -> Tensor:
        a = LEVELS.signal[t][:, None]
        variance = 0.01 * a + 1 - a
        mean = torch.tanh(a.sqrt() * x / variance)  # probability of +1 minus that of -1
        found = mean + 0.01 * a.sqrt() / variance * (x - a.sqrt() * mean)
        eps = (x - a.sqrt() * found) / (1 - a).sqrt()
        output = target.of(found, eps, a)
        return output.bfloat16().double() if rounded else output

    return said


def test_low_precision_breaks_eps_alone(arrays: dict[str, Tensor]) -> None:
    start = arrays["ddim.init"][:, None]
    for n in sorted({int(k.split(".")[1]) for k in arrays if k.startswith("ddim.") and k.count(".") == 2}):
        levels, wanted = LEVELS.kept(n), arrays[f"ddim.{n}.exact"]
        exact(
            ddim(two_modes(VELOCITY, rounded=False), levels, start, target=VELOCITY)[:, 0], wanted, atol=1e-6, rtol=1e-6
        )
        drift = {}
        for name, target in TARGETS.items():
            found = ddim(two_modes(target, rounded=True), levels, start, target=target)[:, 0]
            drift[name] = float((found - wanted).square().mean().sqrt())
            same = arrays[f"ddim.{n}.{name}_bf16"]
            assert float(((found - same).abs() < 1e-3).double().mean()) > 0.95, (n, name)
        assert drift["v"] < 0.01 and drift["x0"] < 0.01 < 0.3 < drift["eps"]


# -- beyond the arrays ---------------------------------------------------------------------------------------------------


def test_every_target_gives_the_value_and_the_noise_back() -> None:
    rng = generator("targets")
    x, eps = torch.randn(5, 3, generator=rng).double(), torch.randn(5, 3, generator=rng).double()
    t = torch.tensor([0, 10, 500, 900, 990])
    signal = LEVELS.signal[t][:, None]
    x_t = LEVELS.noised(x, eps, t)
    for target in TARGETS.values():
        output = target.of(x, eps, signal)
        exact(target.sample(output, x_t, signal), x, rtol=1e-6, atol=1e-6)
        exact(target.noise(output, x_t, signal), eps, rtol=1e-6, atol=1e-6)


def test_levels_that_do_not_exist_are_refused() -> None:
    with pytest.raises(ValueError, match=r"steps must be in 1..1000, got 1001"):
        LEVELS.kept(1001)
    assert LEVELS.kept(1).number.tolist() == [999]


def test_the_loss_is_smallest_for_the_exact_head_of_each_target() -> None:
    rng, z = generator("exact"), torch.zeros(512, 1)
    x = 0.3 * torch.randn(512, 2, generator=rng)

    def head(target: Target, bias: float) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        def said(x_t: Tensor, t: Tensor, z: Tensor) -> Tensor:
            a = LEVELS.signal[t][:, None].float()
            found = 0.09 * a.sqrt() / (0.09 * a + 1 - a) * x_t
            eps = (x_t - a.sqrt() * found) / (1 - a).sqrt()
            return target.of(found, eps, a) + bias

        return said

    for target in TARGETS.values():
        loss = DiffusionLoss(levels=LEVELS, target=target, repeats=2)
        found = [float(loss(head(target, bias), x, z, generator("loss"))) for bias in (-0.2, 0.0, 0.2)]
        assert found[1] < min(found[0], found[2])


def test_a_fresh_head_says_zero_and_its_learned_variance_trains_without_the_mean() -> None:
    head = DiffusionHead(3, 5, 8, 2, 6)
    rng = generator("fresh")
    x, z = torch.randn(4, 3, generator=rng), torch.randn(4, 5, generator=rng)
    assert not bool(head(x, torch.tensor([0, 1, 2, 3]), z).any())
    loss = DiffusionLoss(levels=LEVELS, learned_variance=True).of(head, x, z, torch.tensor([5, 6, 7, 8]), x)
    loss.bound.sum().backward()
    grad = head.final_layer.linear.bias.grad
    assert grad is not None and not bool(grad[:3].any()) and bool(grad[3:].any())


def test_masks_of_the_objective_have_the_share_and_the_trunk_sees_no_masked_value() -> None:
    batch = collate([request(0, 10), request(1, 6)], [0, 1])
    own = batch.kind == VALUE
    masked = masked_at_random(own & batch.valid, torch.tensor([0.25, 1.0]), generator("masks"))
    assert masked.sum(1).tolist() == [3, 6] and not bool(masked[:, 0].any())
    assert float(uniform_share(torch.tensor(0.0), low=0.7)) == pytest.approx(0.7)

    def trunk(batch: Batch, *, predict: Tensor | None = None, reuse: Reuse | None = None) -> Prediction:
        assert predict is not None
        at = (predict & (batch.kind == VALUE)).flatten().nonzero()[:, 0]
        return Prediction(scored={VALUE: Scored(at=at, hidden=torch.zeros(len(at), 5))})

    model = SimpleNamespace(trunk=trunk, head=DiffusionHead(3, 5, 8, 1, 3))
    objective = ContinuousTokens(kind=VALUE, loss=DiffusionLoss(levels=LEVELS, target=VELOCITY), low=0.7)
    loss = objective(model, batch.replace(values=torch.ones(2, 11, 3)), generator("o"))
    assert loss.counts["values"] >= 7 + 5 and float(loss.total.detach()) > 0
    with pytest.raises(ValueError, match=r"no values; continuous tokens need Sequence.values"):
        objective(model, batch, generator("o"))


def test_drawn_values_are_batch_invariant_and_given_ones_stay() -> None:
    def trunk(batch: Batch, *, predict: Tensor | None = None, reuse: Reuse | None = None) -> Prediction:
        assert predict is not None
        values = torch.zeros(*batch.ids.shape, 2) if batch.values is None else batch.values
        seen = (values * (batch.valid & ~batch.masked)[..., None]).sum(1)
        at = (predict & (batch.kind == VALUE)).flatten().nonzero()[:, 0]
        return Prediction(
            scored={
                VALUE: Scored(at=at, hidden=seen[at // batch.ids.shape[1]] + batch.ids[:, :1][at // batch.ids.shape[1]])
            }
        )

    head = DiffusionHead(2, 2, 8, 1, 2)
    for value in head.parameters():
        torch.nn.init.normal_(value, std=0.3, generator=generator("head"))
    sampler = Sampler(
        schedule=MaskedOrder(steps=3),
        token_sampler=ByDiffusion(kind=VALUE, channels=2, head=head, levels=LEVELS.kept(4), target=VELOCITY),
        selection=RandomOrder(),
    )
    rows = [request(0, 7), request(1, 4), request(2, 7)]
    given = Sequence(
        ids=rows[1].ids,
        masked=rows[1].masked & (torch.arange(5) != 2),
        spans=rows[1].spans,
        values=torch.full((5, 2), 0.5),
    )
    rows[1] = given
    together = sampler.sample(trunk, collate(rows, [4, 5, 6])).values
    alone = sampler.sample(trunk, collate([given], [5])).values
    assert together is not None and alone is not None
    close(together[1, :5], alone[0])
    assert alone[0, 2].tolist() == [0.5, 0.5] and not torch.allclose(together[0], together[2])


def test_guidance_of_scale_one_is_the_condition() -> None:
    rng = generator("g")
    c, u = torch.randn(3, 4, generator=rng), torch.randn(3, 4, generator=rng)
    close(guided(c, u, 1.0, 2), c)
    close(guided(c, u, 0.0, 2)[:, :2], u[:, :2])
    assert sum(MaskedOrder(steps=9).counts(4)) == 4
    with pytest.raises(ValueError, match="at least one step, got 0"):
        MaskedOrder(steps=0)
