"""EDLM: the values measured from the official code and from the paper's rule, and what reweighting does in the sampler."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest
import torch
from torch import Tensor

from unmask.cli.main import main
from unmask.methods import edlm as method
from unmask.methods.edlm import Ancestral, CausalEnergy, Reweighted
from unmask.models.elastic import Elastic
from unmask.models.energy import EnergyNet
from unmask.models.fake import FakeDenoiser
from unmask.objectives.contrastive import NoiseContrastive, noise_contrastive
from unmask.pipeline.catalogue import find_sampler
from unmask.pipeline.opening import load
from unmask.recipes.scene_text import Caption, batch_of, network
from unmask.recipes.scene_text import rows as rows_of
from unmask.sampling.sampler import Sampler
from unmask.sampling.schedule import Equal
from unmask.sampling.selection import Confident, RandomOrder
from unmask.sampling.token_sampler import Categorical
from unmask.sequence import Batch, Kind, Sequence, Span, collate
from unmask.step import Progress

from ..tiny_dream import make as make_dream
from ..tiny_llada import make as make_llada

torch.set_num_threads(1)
Golden = Callable[[str], dict[str, Tensor]]


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found.to(wanted.dtype).reshape(wanted.shape), wanted, atol=3e-5, rtol=3e-5)


class World:
    """The small world of the reference file: denoiser and autoregressive model are tables."""

    def __init__(self, arrays: dict[str, Tensor]) -> None:
        self.arrays, self.mask_id = arrays, len(arrays["ar_bigram"]) - 1

    def mu(self, x: Tensor) -> Tensor:
        w, u, p = (self.arrays[f"denoiser_{name}"] for name in "WUP")
        seen = (x != self.mask_id)[..., None]
        mean = (u[x] * seen).sum(1, keepdim=True) / seen.sum(1, keepdim=True).clamp(min=1)
        return method.log_mu(w[x] + mean + p, x, self.mask_id)

    def energy(self, x: Tensor, ids: Tensor, mu: Tensor, *, carries: bool = True) -> Tensor:
        log_p = method.autoregressive(self.arrays["ar_bigram"][ids], ids, self.mask_id)
        return method.energy(method.of_ids(mu, ids), log_p, x == self.mask_id if carries else None)

    def energies(self, x: Tensor, candidates: Tensor, mu: Tensor) -> Tensor:
        return torch.stack([self.energy(x, ids, mu) for ids in candidates])

    def sampler(self, **more: object) -> Ancestral:
        return Ancestral(mu=self.mu, energies=self.energies, mask_id=self.mask_id, **more)  # type: ignore[arg-type]


@pytest.fixture
def arrays(golden: Golden) -> dict[str, Tensor]:
    return golden("edlm")


@pytest.fixture
def world(arrays: dict[str, Tensor]) -> World:
    return World(arrays)


def test_noise_times_and_masking(arrays: dict[str, Tensor], world: World) -> None:
    t = arrays["noise_t"]
    sigma, slope = method.noise(t)
    close(sigma, arrays["noise_sigma"])
    close(slope, arrays["noise_dsigma"])
    close(method.masking_probability(t), arrays["noise_move"])
    close(method.likelihood_weight(t), arrays["loss_weight"])
    found = method.masked_at(arrays["x0"], arrays["move_chance"], arrays["corrupt_u"], world.mask_id)
    assert torch.equal(found, arrays["xt"])


def test_prediction_candidates_and_energies(arrays: dict[str, Tensor], world: World) -> None:
    xt, mu = arrays["xt"], world.mu(arrays["xt"])
    close(mu, arrays["log_mu"])
    k = len(arrays["cand"]) // len(xt)
    sampler = world.sampler(k=k)
    candidates = sampler.candidates(mu, arrays["cand_u"])
    assert torch.equal(candidates.flatten(0, 1), arrays["cand"])
    close(world.energies(xt, candidates, mu), arrays["energy_carry"])
    close(torch.stack([world.energy(xt, ids, mu, carries=False) for ids in candidates]), arrays["energy_plain"])
    close(world.energy(xt, arrays["x0"], mu), arrays["energy_true"])
    close(sampler.weights(xt, candidates, mu).T, arrays["weights_paper"])


def test_the_weights_of_the_released_code(arrays: dict[str, Tensor], world: World) -> None:
    """The sign of the release is a negative temperature. Its grouping of several rows mixes their candidates."""
    xt, mu = arrays["xt"], world.mu(arrays["xt"])
    rows = len(xt)
    k = len(arrays["cand"]) // rows
    candidates = arrays["cand"].view(k, rows, -1)
    found = world.sampler(k=k, temperature=-1.0).weights(xt, candidates, mu)
    close(found.T, arrays["weights_code_B1"])
    wrong = method.weights(world.energies(xt, candidates, mu).reshape(rows, k).T, -1.0)
    close(wrong.T, arrays["weights_code_as_released_B3"])


def test_noise_contrastive_loss(arrays: dict[str, Tensor], world: World) -> None:
    t = method.antithetic(arrays["nce_u_time"])
    xt = method.masked_at(arrays["x0"], method.masking_probability(t)[:, None], arrays["nce_u_mask"], world.mask_id)
    mu = world.mu(xt)
    drawn = method.categorical(mu.exp(), arrays["nce_u_negative"])
    loss = noise_contrastive(world.energy(xt, arrays["x0"], mu), world.energy(xt, drawn, mu))
    close(loss, arrays["nce_loss"])


def test_the_bound_of_each_token(arrays: dict[str, Tensor], world: World) -> None:
    t = method.antithetic(arrays["val_u_time"])
    xt = method.masked_at(arrays["x0"], method.masking_probability(t)[:, None], arrays["val_u_mask"], world.mask_id)
    mu = world.mu(xt)
    found = method.token_bound(method.of_ids(mu, arrays["x0"]), world.energy(xt, arrays["x0"], mu), t)
    close(found, arrays["val_nll"])


def test_an_ancestral_step(arrays: dict[str, Tensor], world: World) -> None:
    t, xt = arrays["step_t"], arrays["xt"]
    found = method.ancestral_step(xt, world.mu(xt).exp(), t, t - arrays["step_dt"], arrays["step_u"], world.mask_id)
    assert torch.equal(found, arrays["step_next"])


def test_a_run_of_the_papers_rule(arrays: dict[str, Tensor], world: World) -> None:
    runs, picks = len(arrays["paper_run_x"]), iter(range(len(arrays["paper_run_pick"])))
    k = arrays["paper_run_weights"].shape[-1]
    sampler = world.sampler(k=k)
    x = torch.full_like(arrays["paper_run_final"], world.mask_id)
    times = torch.linspace(1, 1e-5, runs + 1)
    for i in range(runs):
        mu = world.mu(x)
        sure = mu.exp()
        if sampler.acts(float(times[i])):
            n = next(picks)
            candidates = sampler.candidates(mu, arrays["paper_run_u_candidates"][n])
            weights = sampler.weights(x, candidates, mu)
            close(weights.T, arrays["paper_run_weights"][n])
            pick = method.picked(weights, arrays["paper_run_u_pick"][n])
            assert torch.equal(pick, arrays["paper_run_pick"][n])
            sure = sampler.picked(candidates, pick, mu)
        x = method.ancestral_step(x, sure, times[i], times[i + 1], arrays["paper_run_u_step"][i], world.mask_id)
        assert torch.equal(x, arrays["paper_run_x"][i])
    assert next(picks, None) is None and torch.equal(sampler.finished(x), arrays["paper_run_final"])


def test_a_run_of_the_released_sampler(arrays: dict[str, Tensor], world: World) -> None:
    """With its sign, its probabilities in place of logarithms, and the prediction that it keeps until a token changes."""
    log = iter(sorted(key for key in arrays if re.match(r"sampler_\d+_", key)))
    starts = [key for key in arrays if re.search(r"_x_t[\d.]+_cached", key)]
    steps = len({key.split("_t")[1].split("_")[0] for key in starts})
    times = torch.linspace(1, 1e-5, steps + 1)
    k = next(v for key, v in arrays.items() if key.endswith("_weights") and key.startswith("sampler")).shape[-1]
    sampler = world.sampler(k=k, temperature=-1.0)
    x, kept = torch.full_like(arrays["sampler_final"], world.mask_id), None
    for i in range(steps):
        x, kept = _released_step(sampler, arrays, log, x, kept, times[i], times[i + 1])
    assert next(log, None) is None and torch.equal(sampler.finished(x), arrays["sampler_final"])


def _released_step(
    sampler: Ancestral,
    arrays: dict[str, Tensor],
    log: Iterator[str],
    x: Tensor,
    kept: Tensor | None,
    t: Tensor,
    s: Tensor,
) -> tuple[Tensor, Tensor | None]:
    """One step of the release, checked against what it logged. Returns the ids, and the prediction that it keeps."""
    mask_id = sampler.mask_id
    cached, mu = kept is not None, sampler.mu(x)
    used = mu.exp() if kept is None else kept
    new = method.ancestral_step(x, used.clone(), t, s, arrays[next(log)], mask_id)
    assert torch.equal(new, arrays[key := next(log)]) and key.endswith(f"cached{int(cached)}")
    if not cached and sampler.acts(float(t)):
        candidates = sampler.candidates(mu, arrays[next(log)])
        close(sampler.weights(x, candidates, mu.exp()).T, arrays[next(log)])
        used = sampler.picked(candidates, arrays[next(log)].view(-1), mu)
        new = method.ancestral_step(x, used.clone(), t, s, arrays[next(log)], mask_id)
        assert torch.equal(new, arrays[key := next(log)]) and key.endswith("cached1")
    return new, used if torch.equal(new, x) else None


# -- in the sampler ---------------------------------------------------------------------------------------------------

V = 24  # of the fake denoiser
fake = FakeDenoiser()
BASE = Sampler(schedule=Equal(steps=3), token_sampler=Categorical(), selection=RandomOrder())


def answer(tokens: int, *, prompt: int = 2) -> Sequence:
    length = prompt + tokens
    spans = (
        Span(name="prompt", kind=Kind.TEXT, start=0, stop=prompt),
        Span(name="answer", kind=Kind.TEXT, start=prompt, stop=length, writable=True),
    )
    return Sequence(ids=torch.arange(length) % V, masked=torch.arange(length) >= prompt, spans=spans)


def repeats(batch: Batch, ids: Tensor, masked: Tensor, mu: Tensor) -> Tensor:
    """Low where neighbours are equal."""
    return -4 * (ids[..., 1:] == ids[..., :-1]).float().sum(-1)


def reweighted(**more: object) -> Sampler:
    return dataclasses.replace(BASE, token_sampler=Reweighted(token_sampler=Categorical(), energy=repeats, **more))  # type: ignore[arg-type]


def mean_repeats(sampler: Sampler) -> float:
    batch = collate([answer(8)] * 64, range(64))
    done = sampler.sample(fake, batch)
    return float(-repeats(done, done.ids, done.masked, done.ids).mean())


def test_one_candidate_is_the_sampler_without_it_to_the_bit() -> None:
    batch = collate([answer(8), answer(5)], [3, 4])
    for selection, off in ((RandomOrder(), {"k": 1}), (Confident(), {"k": 4, "start": 0.0, "end": 0.0})):
        plain = dataclasses.replace(BASE, selection=selection).sample(fake, batch)
        without = dataclasses.replace(reweighted(**off), selection=selection).sample(fake, batch)
        assert torch.equal(without.ids, plain.ids)
        assert not torch.equal(
            dataclasses.replace(reweighted(k=4), selection=selection).sample(fake, batch).ids, plain.ids
        )


def test_the_right_sign_lowers_the_energy_and_the_flipped_one_raises_it() -> None:
    plain, right, more, flipped = (
        mean_repeats(reweighted(k=k, temperature=t)) for k, t in ((1, 1.0), (4, 1.0), (16, 1.0), (16, -1.0))
    )
    assert flipped < plain < right < more


def test_candidates_are_picked_with_their_weights() -> None:
    """One step, all tokens at once, two candidates: the share of first candidates that are kept is the mean of their weights."""
    batch, rows = collate([answer(2, prompt=1)] * 400, range(400)), 400
    sampler = Reweighted(token_sampler=Categorical(), energy=repeats, k=2)
    prediction, progress = fake(batch), Progress(number=torch.zeros(rows), of=torch.ones(rows), length=3)
    both = [sampler.token_sampler(b, prediction, progress).ids for b in (batch, method._reseeded(batch, 1))]
    found = sampler(batch, prediction, progress).ids
    differ = (both[0] != both[1]).any(1)
    kept = (found == both[0]).all(1)[differ].float().mean()
    energies = torch.stack([repeats(batch, ids, batch.masked, ids) for ids in both])
    assert abs(float(kept - method.weights(energies)[0][differ].mean())) < 0.06


def test_rows_do_not_depend_on_their_batch() -> None:
    sampler, sequences = reweighted(k=3), [answer(8), answer(5), answer(11, prompt=4)]
    together = sampler.sample(fake, collate(sequences, [3, 4, 5]))
    for i, sequence in enumerate(sequences):
        alone = sampler.sample(fake, collate([sequence], [3 + i]))
        assert torch.equal(together.ids[i, : len(sequence.ids)], alone.ids[0])


def test_the_energy_of_a_causal_network_is_that_of_its_next_tokens() -> None:
    net = network(shifted=True, seed=0).eval()
    test = rows_of(Caption(), 3, "test")
    batch = batch_of(test)
    ids = torch.stack([batch.ids, batch.ids.roll(1, 0)])
    ids = torch.where(batch.masked, ids, batch.ids)
    found = CausalEnergy(net=net)(batch, ids, batch.masked, torch.ones(2, 3))
    order = torch.arange(ids.shape[-1])
    for k, row in itertools.product(range(2), range(3)):
        total = 0.0
        for at in batch.masked[row].nonzero()[:, 0].tolist():
            one = batch.row(row).replace(ids=ids[k, row : row + 1], masked=(order >= at)[None], order=order[None])
            logits = net(one, predict=(order == at)[None]).logits(Kind.TEXT)
            total += float(logits.detach().log_softmax(-1)[0, ids[k, row, at]])
        assert abs(float(found[k, row]) - (1 - total)) < 1e-3


def test_a_learned_energy_tells_data_from_draws() -> None:
    """On a toy where the two tokens of the data are equal: the trained energy is lower for equal ones, and it reads what is masked."""
    torch.manual_seed(0)
    net = EnergyNet(network(shifted=False, seed=0, width=32, layers=1))
    objective = NoiseContrastive(denoiser=FakeDenoiser(spread=0.0))
    optimiser = torch.optim.Adam(net.parameters(), lr=3e-3)
    losses = []
    for step in range(120):
        ids = torch.randint(V, (32, 1), generator=torch.Generator().manual_seed(step)).expand(-1, 2)
        clean = collate([dataclasses.replace(answer(2, prompt=0), ids=row) for row in ids], range(32))
        loss = objective(net, clean, torch.Generator().manual_seed(step)).total
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss))
    assert losses[0] == pytest.approx(2 * math.log(2), abs=1e-4) and sum(losses[-20:]) / 20 < 0.7 * losses[0]
    batch = collate([answer(2, prompt=0)] * 4, range(4))
    equal, other = torch.tensor([[5, 5]] * 4), torch.tensor([[5, 9]] * 4)
    found = method.LearnedEnergy(net=net)(batch, torch.stack([equal, other]), batch.masked, torch.zeros(2, 4))
    assert (found[0] < found[1]).all()


def test_a_learned_energy_trains_in_bfloat16() -> None:
    net = EnergyNet(network(shifted=False, seed=0, width=32, layers=1)).bfloat16()
    with torch.no_grad():
        net.last.weight.fill_(0.3)
    batch = collate([answer(3)], [0])
    found = net(batch, batch.ids)
    found.sum().backward()
    assert found.dtype == torch.float32 and net.first.weight.grad is not None


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("energy")
    return {"llada": make_llada(place / "llada"), "dream": make_dream(place / "dream")}


def test_an_energy_folder_works_with_the_sampler(folders: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    place = str(folders["dream"])
    ask = [
        "ask",
        "why is the sky blue?",
        "--model",
        place,
        "--max-tokens",
        "6",
        "--steps",
        "2",
        "--quiet",
        "--threads",
        "1",
    ]
    assert main([*ask, "--sampler", "edlm", "--energy", place, "-o", "k=3"]) == 0
    assert capsys.readouterr().out
    assert main([*ask, "--sampler", "edlm"]) == 2 and "add --energy FOLDER" in capsys.readouterr().err
    assert main([*ask, "--energy", place]) == 2 and "--energy is for --sampler edlm" in capsys.readouterr().err
    assert main([*ask, "--sampler", "edlm", "--energy", str(folders["llada"])]) == 2
    assert "is not an autoregressive model" in capsys.readouterr().err


def test_a_folder_with_a_head_is_a_learned_energy(folders: dict[str, Path]) -> None:
    trunk = load(folders["llada"]).parts.net
    assert isinstance(trunk, Elastic)
    made = EnergyNet(trunk)
    with torch.no_grad():
        made.last.weight.fill_(0.3)
    method.save_energy(made, folders["llada"])
    method.folder_energy.cache_clear()
    found = method.folder_energy(str(folders["llada"]))
    assert isinstance(found, method.LearnedEnergy)
    batch = collate([answer(3)], [0])
    ids = torch.stack([batch.ids, batch.ids + 1])
    torch.testing.assert_close(
        found(batch, ids, batch.masked, torch.zeros(2, 1)), torch.stack([made(batch, i) for i in ids])
    )


def test_what_does_not_fit_is_refused() -> None:
    for wrong in ({"k": 0}, {"temperature": 0.0}):
        with pytest.raises(ValueError, match="k must be at least 1 and temperature not 0"):
            reweighted(**wrong)
    with pytest.raises(ValueError, match="the window from start 0.2 to end 0.5"):
        reweighted(start=0.2, end=0.5)
    with pytest.raises(ValueError, match="opens a folder of the server's machine"):
        find_sampler("edlm", ["energy=/etc"], folders=False)
    with pytest.raises(ValueError, match="this one is shifted"):
        EnergyNet(network(shifted=True, seed=0))


def test_true_and_false_captions() -> None:
    things = (("red", "cat"), ("blue", "dog"), ("red", "hat"))
    words = Caption().answer(things, Random(1))
    assert Caption().is_true(things, words)
    for i in range(len(words)):
        assert not Caption().is_true(things, [*words[:i], "?", *words[i + 1 :]])
    swapped = "the blue dog is left of the red cat".split()
    assert not Caption().is_true(things, swapped)
