"""MeDiM: noise, loss, layer and sampler against measured arrays; the network against the causal one that it starts from."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unmask.methods import medim
from unmask.methods.medim import (
    OFFSETS,
    RELEASED_OFFSETS,
    Ancestral,
    ByShares,
    Cooling,
    JointLoss,
    OneTime,
    RisingGuidance,
    falling_arccos,
    masked_share,
    probabilities,
    rate_at,
    rising_cosine,
    straight,
    strata,
    time_of,
    weight_at,
)
from unmask.models.blocks import RMSNorm
from unmask.models.elastic import Elastic, init
from unmask.models.sizes import ElasticConfig
from unmask.models.timed import Modulation, Sublayers, Timed, TimeEmbedding, sigma_at, visible
from unmask.rng import generator
from unmask.sampling import selection
from unmask.sampling.sampler import Sampler
from unmask.sampling.selection import Confident
from unmask.sampling.token_sampler import Categorical
from unmask.sequence import Batch, Kind, Sequence, Span, collate
from unmask.step import Prediction, Progress, Proposal, Reuse, Scored

torch.set_num_threads(1)
Golden = Callable[[str], dict[str, Tensor]]
CURVES = {"arccos": falling_arccos, "cosine": rising_cosine, "linear": straight}
CONFIG = ElasticConfig(
    vocab_size=40, width=32, heads=2, layers=2, mlp=48, gen_width=0, gen_mlp=0, joint_layers=2,
    rope_theta=100.0, codes=16, code_rows=0, vision=None, shifted=True, first_code=24,
)  # fmt: skip
MASK = 1


@pytest.fixture
def arrays(golden: Golden) -> dict[str, Tensor]:
    return golden("medim")


def row(ids: Tensor, text: int, first_code: int, *, masked: Tensor | None = None, prompt: int = 0) -> Sequence:
    """A row of ``text`` tokens and codes, in ids of text and codes together; the first ``prompt`` tokens have a span of their own."""
    own = ids.clone()
    own[text:] -= first_code
    nothing = torch.zeros(len(ids), dtype=torch.bool)
    given = masked is not None
    spans = [Span(name="prompt", kind=Kind.TEXT, start=0, stop=prompt, writable=not given)] if prompt else []
    writes = masked is None or bool(masked[:text].any())
    spans.append(Span(name="report", kind=Kind.TEXT, start=prompt, stop=text, writable=writes))
    grid = (1, len(ids) - text)
    spans.append(Span(name="image", kind=Kind.CODE, start=text, stop=len(ids), grid=grid, writable=True))
    return Sequence(ids=own, masked=nothing if masked is None else masked, spans=tuple(spans))


def test_noise_is_that_of_the_measured_arrays(arrays: dict[str, Tensor]) -> None:
    t = arrays["noise.t"]
    for name, found in {
        "sigma": sigma_at(t), "dsigma": rate_at(t), "move_chance": masked_share(t), "weight": weight_at(t),
    }.items():  # fmt: skip
        torch.testing.assert_close(found, arrays[f"noise.{name}"], rtol=2e-6, atol=2e-6, msg=name)
    torch.testing.assert_close(weight_at(t), 1 / t, rtol=1e-3, atol=0)


class Given:
    """A network whose logits are known: ``logits [B, L, V]`` over ids of text and codes."""

    mask_id = 0

    def __init__(self, logits: Tensor, first_code: int, mask_id: int) -> None:
        self.logits, self.first_code, self.mask_id = logits, first_code, mask_id

    def __call__(self, batch: Batch, *, predict: Tensor | None = None, reuse: Reuse | None = None) -> Prediction:
        assert predict is not None
        scored = {}
        for kind in (Kind.TEXT, Kind.CODE):
            at = (predict & (batch.kind == kind)).flatten().nonzero()[:, 0]
            own = self.logits.flatten(0, 1)[at].clone()
            own[:, self.mask_id] = -torch.inf
            if kind == Kind.TEXT:
                own[:, self.first_code :] = -torch.inf
            scored[kind] = Scored(at=at, logits=own if kind == Kind.TEXT else own[:, self.first_code :])
        return Prediction(scored=scored)


@pytest.mark.parametrize("name", ["a", "b"])
def test_the_loss_is_that_of_the_measured_arrays(arrays: dict[str, Tensor], name: str) -> None:
    first, mask_id = int(arrays["loss.TV"]), int(arrays["loss.mask_index"])
    text, prompt = arrays["loss.text_mask"].shape[1], int(arrays["loss.prompt_idx"])
    u = arrays[f"loss.{name}.u"]
    clean = collate([row(ids, text, first, prompt=prompt) for ids in arrays["loss.x0"]], range(len(u)))
    time = strata(u)[:, None].expand_as(clean.ids)
    process = OneTime(spared={"prompt"}, share=0.1)
    noisy = process.masked(clean, time, arrays[f"loss.{name}.rand"], spares=name == "b")
    model, loss = Given(arrays["loss.logits"], first, mask_id), JointLoss(corruption=process)
    wanted = arrays[f"loss.{name}.per_token"]
    torch.testing.assert_close(loss.each(model, noisy), wanted, rtol=2e-6, atol=5e-6)
    seen = torch.cat([arrays["loss.text_mask"], arrays["loss.image_mask"]], dim=1).bool()
    made = loss.of(model, noisy.replace(valid=seen))
    torch.testing.assert_close(made.total, arrays[f"loss.{name}.loss"], rtol=2e-6, atol=2e-6)


def test_time_and_layer_are_those_of_the_measured_arrays(arrays: dict[str, Tensor]) -> None:
    weights = {key.removeprefix("time.w."): value for key, value in arrays.items() if key.startswith("time.w.")}
    time = TimeEmbedding(len(weights["mlp.2.bias"]))
    time.load_state_dict(weights)
    torch.testing.assert_close(time.waves(arrays["time.sigma"]), arrays["time.freq"], rtol=0, atol=2e-6)
    e = time(arrays["time.sigma"])
    torch.testing.assert_close(e, arrays["time.emb"], rtol=0, atol=2e-6)
    own = {key.removeprefix("layer.w."): value for key, value in arrays.items() if key.startswith("layer.w.")}
    h, width = arrays["layer.h"], arrays["layer.h"].shape[-1]
    norms = {name: RMSNorm(width, 1e-6) for name in ("input_layernorm", "post_attention_layernorm")}
    for name, norm in norms.items():
        norm.load_state_dict({"weight": 1 + own[f"{name}.weight"]})
    ids = arrays["layer.attention_ids"]
    span = Span(name="text", kind=Kind.TEXT, start=0, stop=ids.shape[1])
    blank = [Sequence(ids=one, masked=torch.zeros_like(one).bool(), spans=(span,)) for one in ids]
    attend = visible(collate(blank, range(len(ids))).replace(valid=ids != 0))
    assert torch.equal(attend, arrays["layer.additive_mask"].bool())

    def mean(x: Tensor, attend: Tensor | None) -> Tensor:
        assert attend is not None
        return attend[:, 0].float() @ x / attend[:, 0].float().sum(-1, keepdim=True)

    def mlp(x: Tensor) -> Tensor:
        gate, up, down = (own[f"mlp.{name}_proj.weight"] for name in ("gate", "up", "down"))
        return F.linear(F.gelu(F.linear(x, gate), approximate="tanh") * F.linear(x, up), down)

    layer = Sublayers(
        attn_norm=norms["input_layernorm"], attention=mean, mlp_norm=norms["post_attention_layernorm"], mlp=mlp
    )
    released = Modulation(width, gate_at=0.0)
    assert torch.equal(layer(h, released(e), attend), arrays["layer.out_at_init"])
    torch.testing.assert_close(layer(h, Modulation(width)(e), attend), layer(h, None, attend))
    released.linear.load_state_dict({n: own[f"adaLN_modulation.{n}"] for n in ("weight", "bias")})
    torch.testing.assert_close(layer(h, released(e), attend), arrays["layer.out"], rtol=0, atol=3e-6)


def test_the_released_offsets_are_the_measured_ones(arrays: dict[str, Tensor]) -> None:
    assert (int(arrays["slice.text_offset"]), int(arrays["slice.image_offset"])) == RELEASED_OFFSETS


def test_schedules_are_the_measured_ones(arrays: dict[str, Tensor]) -> None:
    names = [name for name in arrays if name.startswith("sampler.schedule.")]
    assert {name.split(".")[2] for name in names} == set(CURVES)
    for name in names:
        *_, curve, tokens, steps = name.split(".")
        schedule = ByShares(steps=int(steps[1:]), curve=CURVES[curve])
        assert torch.equal(schedule.planned(int(tokens[1:])), arrays[name]), name
        assert sum(schedule.counts(int(tokens[1:]))) == int(tokens[1:])
    for wanted in arrays["sampler.maskgit.schedule"]:
        assert torch.equal(ByShares(steps=len(wanted)).planned(int(wanted.sum())), wanted)


@pytest.mark.parametrize(("tokens", "steps"), [(5, 9), (1, 1), (7, 1), (100, 3)])
def test_counts_are_positive_and_complete(tokens: int, steps: int) -> None:
    for curve in CURVES.values():
        counts = ByShares(steps=steps, curve=curve).counts(tokens)
        assert sum(counts) == tokens and min(counts) > 0 and len(counts) <= steps
    with pytest.raises(ValueError, match="at least one step, got 0"):
        ByShares(steps=0).counts(tokens)


class Table:
    """The stand-in network of the measured arrays: each visible token adds its table to the logits of every place."""

    def __init__(self, arrays: dict[str, Tensor]) -> None:
        self.table, self.mask_id, self.first = (
            arrays["sampler.table"], int(arrays["loss.mask_index"]), int(arrays["loss.TV"])
        )  # fmt: skip

    def joint(self, batch: Batch) -> Tensor:
        ids = torch.where(batch.kind == Kind.CODE, batch.ids + self.first, batch.ids)
        hidden = batch.masked | ((batch.kind == Kind.TEXT) & (batch.ids == self.mask_id))
        return (self.table[ids] * ~hidden[:, :, None, None]).sum(1)

    def __call__(self, batch: Batch, *, predict: Tensor | None = None, reuse: Reuse | None = None) -> Prediction:
        """All ids for both kinds, so that what a restriction does can be seen."""
        assert predict is not None
        scored = {}
        for kind in (Kind.TEXT, Kind.CODE):
            at = (predict & (batch.kind == kind)).flatten().nonzero()[:, 0]
            scored[kind] = Scored(at=at, logits=self.joint(batch).flatten(0, 1)[at])
        return Prediction(scored=scored)


def measured_row(arrays: dict[str, Tensor], state: Tensor) -> Sequence:
    text, first = arrays["loss.text_mask"].shape[1], int(arrays["loss.TV"])
    masked = state == int(arrays["loss.mask_index"])
    return row(torch.where(masked, first, state) if text else state, text, first, masked=masked)


def guidance_of(arrays: dict[str, Tensor]) -> RisingGuidance:
    scale = float(arrays["sampler.cfg_weight"][-1] / (1 - arrays["sampler.times"][-2]))
    return RisingGuidance(scale=scale, drop={"report"}, null_id=int(arrays["loss.mask_index"]))


def at_step(number: int, of: int, length: int) -> Progress:
    return Progress(number=torch.tensor([number]), of=torch.tensor([of]), length=length)


def test_guided_probabilities_are_the_measured_ones(arrays: dict[str, Tensor]) -> None:
    states, wanted, guidance = arrays["sampler.maskgit.states"], arrays["sampler.maskgit.p_x0"], guidance_of(arrays)
    model, steps, length = Table(arrays), len(wanted), states.shape[-1]
    for number in range(steps):
        progress = at_step(number, steps, length)
        torch.testing.assert_close(guidance.weight(progress)[0], arrays["sampler.cfg_weight"][number])
        batch = collate([measured_row(arrays, states[number, 0])], [0])
        everything = torch.ones_like(batch.masked)
        views = [model(view, predict=everything) for view in guidance.views(batch, progress)]
        merged = guidance.merge(batch, views, progress)
        logits = torch.zeros(length, wanted.shape[-1])
        for scored in merged.scored.values():
            assert scored.logits is not None
            logits[scored.at] = scored.logits
        p = probabilities(
            logits, batch.kind[0] == Kind.CODE, text_size=model.first, mask_id=model.mask_id, released=number == 0
        )
        torch.testing.assert_close(p, wanted[number, 0], rtol=1e-5, atol=2e-6)
    times = torch.cat([time_of(at_step(number, steps, length)) for number in range(steps + 1)])
    torch.testing.assert_close(times, arrays["sampler.times"], rtol=0, atol=1e-6)


def test_the_sampler_takes_the_measured_steps(arrays: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    states, model = arrays["sampler.maskgit.states"], Table(arrays)
    steps, length = len(states) - 1, states.shape[-1]
    code = torch.arange(length) >= arrays["loss.text_mask"].shape[1]
    taken: list[Tensor] = []

    def drawn(batch: Batch, prediction: Prediction, progress: Progress) -> Proposal:
        number = int(progress.number[0])
        logits = torch.zeros(length, model.table.shape[-1])
        for scored in prediction.scored.values():
            assert scored.logits is not None
            logits[scored.at] = scored.logits
        p = probabilities(logits, code, text_size=model.first, mask_id=model.mask_id, released=number == 0)
        ids = arrays["sampler.maskgit.draws"][number]
        score = p.gather(1, ids[:, None])[:, 0].log().masked_fill(~batch.masked[0], -torch.inf)
        return Proposal(ids=torch.where(code, ids - model.first, ids)[None], score=score[None])

    def noise(batch: Batch, temperatures: tuple[float, ...]) -> Tensor:
        return arrays["sampler.maskgit.gumbel"][len(taken)].float() * temperatures[0]

    monkeypatch.setattr(selection, "_noise", noise)
    sampler = Sampler(
        schedule=ByShares(steps=steps),
        token_sampler=drawn,
        selection=Confident(noise=Cooling(steps=steps)),
        guidance=guidance_of(arrays),
    )

    def keep(step: SimpleNamespace) -> None:
        joint = torch.where(code, step.batch.ids[0] + model.first, step.batch.ids[0])
        taken.append(joint.masked_fill(step.batch.masked[0], model.mask_id))

    sampler.sample(model, collate([measured_row(arrays, states[0, 0])], [0]), on_step=keep)  # type: ignore[arg-type]
    assert torch.equal(torch.stack(taken), states[1:, 0])


def test_ancestral_steps_are_the_measured_ones(arrays: dict[str, Tensor]) -> None:
    states, model, seen = arrays["sampler.ddpm.states"], Table(arrays), []
    batch = collate([measured_row(arrays, state) for state in states[0]], range(states.shape[1]))

    def logits(batch: Batch) -> Tensor:
        joint = torch.where(batch.kind == Kind.CODE, batch.ids + model.first, batch.ids)
        seen.append(joint.masked_fill(batch.masked, model.mask_id))
        return model.joint(batch)

    sampler = Ancestral(
        steps=len(states) - 1,
        text_size=model.first,
        mask_id=model.mask_id,
        uniform=lambda step, shape: arrays["sampler.ddpm.u"][step],
    )
    done = sampler.sample(logits, batch)
    assert torch.equal(torch.stack(seen), states) and not bool(done.masked.any())


# -- beyond the arrays ---------------------------------------------------------------------------------------------------


def network(**more: object) -> tuple[Elastic, Timed]:
    trunk = Elastic(CONFIG, mask_id=MASK)
    init(trunk, generator("trunk"))
    return trunk, Timed(trunk, **more).eval()  # type: ignore[arg-type]


def pair(seed: int = 0, masked: float = 0.0) -> Sequence:
    words = torch.randint(2, 24, (7,), generator=generator("t", seed))
    ids = torch.cat([words, torch.randint(24, 40, (9,), generator=generator("c", seed))])
    hidden = torch.rand(16, generator=generator("m", seed)) < masked
    return row(ids, 7, 24, masked=hidden if masked else None)


def test_at_first_it_is_the_trunk_and_with_released_gates_it_is_not() -> None:
    batch = collate([pair(0), pair(1)], [0, 1]).replace(time=torch.full((2, 16), 0.7))
    order = torch.arange(16).expand(2, 16)
    predict = torch.ones_like(batch.masked)
    predict[:, 0] = False
    for causal, orders in ((True, order), (False, torch.zeros_like(order))):
        trunk, net = network(causal=causal)
        wanted = trunk(batch.replace(order=orders), predict=predict)
        found = net(batch, predict=predict)
        for kind in (Kind.TEXT, Kind.CODE):
            a, b = found.logits(kind), wanted.logits(kind)
            allowed = a > -torch.inf
            torch.testing.assert_close(a[allowed], b[allowed], rtol=0, atol=2e-5)
        assert int((found.logits(Kind.TEXT) == -torch.inf).sum(1)[0]) == 16 + 1
    released = network(gate_at=0.0)[1](batch, predict=predict)
    assert not torch.allclose(released.logits(Kind.CODE), found.logits(Kind.CODE), atol=1e-2)


def test_offsets_say_where_a_token_is_predicted() -> None:
    batch = collate([pair()], [0])
    every = torch.ones_like(batch.masked)
    states = {i: network(timed=False, offset=(i, i))[1](batch, predict=every) for i in (-1, 0, 1)}
    before, own, behind = (states[offset].scored[Kind.CODE].hidden for offset in (-1, 0, 1))
    assert before is not None and own is not None and behind is not None
    assert torch.equal(before[1:], own[:-1]) and torch.equal(behind[:-1], own[1:])
    joint = network(timed=False)[1].joint(batch)
    torch.testing.assert_close(joint[0, 7:, 24:], states[-1].logits(Kind.CODE))
    assert OFFSETS == (-1, -1)


def test_time_changes_the_prediction_only_where_it_is_read() -> None:
    batch = collate([pair(masked=0.5)], [0])
    for timed in (True, False):
        net = network(timed=timed)[1]
        if net.modulations is not None:
            for module in net.modulations:
                nn.init.normal_(module.linear.weight, std=0.5, generator=generator("modulation"))  # type: ignore[union-attr]
        early, late = (net(batch.replace(time=torch.full((1, 16), t))).logits(Kind.CODE) for t in (0.1, 0.9))
        assert torch.equal(early, late) != timed


def test_a_spared_span_stays_visible_in_some_batches() -> None:
    clean = collate([row(torch.arange(2, 18), 7, 9, prompt=3)] * 4, range(4))
    process = OneTime(spared={"prompt"}, share=0.5)
    masks = [process.corrupt(clean, torch.ones(4), generator("spared", i)).masked for i in range(40)]
    spared = [not bool(mask[:, :3].any()) for mask in masks]
    assert 8 < sum(spared) < 32 and all(bool(mask[:, 3:].float().mean() > 0.95) for mask in masks)


def test_times_are_one_a_row_and_stratified() -> None:
    clean = collate([pair(i) for i in range(8)], range(8))
    time = OneTime().times(clean, generator("strata"))
    assert torch.equal(time, time[:, :1].expand_as(time))
    assert sorted(((time[:, 0] - 1e-3) / 0.999 * 8).floor().tolist()) == list(range(8))


def test_pictures_and_reports_are_sampled_together_and_each_from_the_other() -> None:
    net = network()[1]
    sampler = Sampler(
        schedule=ByShares(steps=4), token_sampler=Categorical(), selection=Confident(noise=Cooling(steps=4)),
        guidance=RisingGuidance(scale=2.0, drop={"report", "image"}, null_id=MASK),
    )  # fmt: skip
    ids, text = pair().ids, torch.arange(16) < 7
    for masked in (torch.ones(16, dtype=torch.bool), text, ~text):
        report = Span(name="report", kind=Kind.TEXT, start=0, stop=7, writable=bool(masked[0]))
        image = Span(name="image", kind=Kind.CODE, start=7, stop=16, writable=bool(masked[7]), grid=(3, 3))
        given = Sequence(ids=ids, masked=masked, spans=(report, image))
        done = sampler.sample(net, collate([given], [3]))
        assert not bool(done.masked.any()) and torch.equal(done.ids[0][~masked], ids[~masked])
        assert int(done.ids[0, 7:].max()) < CONFIG.codes and int(done.ids[0, :7].max()) < 24
        assert MASK not in done.ids[0, :7][masked[:7]].tolist()


def test_what_it_cannot_do_is_named() -> None:
    batch = collate([pair(masked=0.5)], [0])
    nothing = torch.zeros_like(batch.masked)
    with pytest.raises(ValueError, match="cannot use a cache; leave the cache out"):
        network()[1](batch, reuse=Reuse(compute=nothing, keep=nothing))
    plain = Elastic(dataclasses.replace(CONFIG, codes=0, first_code=0), mask_id=MASK)
    with pytest.raises(ValueError, match="no codes in its text vocabulary"):
        Timed(plain)
    assert medim.RELEASED_OFFSETS != OFFSETS
