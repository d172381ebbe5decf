"""DPLM-2: mixture of tasks, losses, self-mixup, sampler and quantiser against measured arrays."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from unmask.methods.dplm2 import (
    LETTERS,
    PAD,
    Annealed,
    Corrupted,
    GumbelArgmax,
    Mixture,
    PairLoss,
    Pairs,
    Remasking,
    Strategy,
    Times,
    WithHalves,
    argmax,
    constant,
    falling,
    gumbel,
    learning_rate,
    lowest,
    nucleus,
    structure,
    visible,
    widened,
)
from unmask.rng import generator
from unmask.tokens.lfq import Entropies, index_of, signs, vector_of

torch.set_num_threads(1)
Golden = Callable[[str], dict[str, Tensor]]
close = partial(torch.testing.assert_close, rtol=2e-6, atol=2e-6)
WEIGHTS = {"linear": falling, "constant": constant}


@pytest.fixture(scope="module")
def arrays(golden: Golden) -> dict[str, Tensor]:
    return golden("dplm2")


def test_every_array_is_checked_here(arrays: dict[str, Tensor]) -> None:
    kinds = (
        r"(aa|struct)_(masked|t|xt)|(aatype|struct)_target|attention_visible|single_modality|net_[PUW]"
        r"|corrupt_(aa_t_draw|aa_u|perm|struct_t_draw|struct_u)"
        r"|gen_(\w+)_(candidates|final|initial|scores|still_masked|tokens|u|u_logits)|gen_given_positions"
        r"|lfq_(codebook_buffer|codebook_entropy|commit|decode_little_endian|entry_of_index|grad_of_loss|index|loss|mask"
        r"|quantised|sample_entropy|x)|lfq_small_(codebook_entropy|loss|sample_entropy|x)|lfq13_(index|x)"
        r"|loss_(linear|constant)_(aa|struct|total)|weight_(linear|constant)_(aa|struct)|lr|lr_steps"
        r"|mixup_(input|loss_mask|loss_total)|topk_(cut|det|scores|stoch_0p6|u)|topp_(in|out_\d+)"
    )
    assert [key for key in arrays if not re.fullmatch(kinds, key)] == []


def pairs_of(arrays: dict[str, Tensor]) -> Pairs:
    return Pairs(structure=structure(len(arrays["net_W"]) - LETTERS.stop - 4))


def times_of(arrays: dict[str, Tensor]) -> Times:
    drawn = arrays["corrupt_struct_t_draw"], arrays["corrupt_aa_t_draw"]
    return Mixture().times(arrays["corrupt_perm"], *drawn)


def corrupted(arrays: dict[str, Tensor]) -> Corrupted:
    clean = torch.cat([arrays["struct_target"], arrays["aatype_target"]], dim=1)
    u = torch.cat([arrays["corrupt_struct_u"], arrays["corrupt_aa_u"]], dim=1)
    return pairs_of(arrays).corrupt(clean, times_of(arrays), u)


def model_of(arrays: dict[str, Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """logits = W[x_i] + mean of U[x_j] over those it reads + P[i]."""

    def model(ids: Tensor, alone: Tensor) -> Tensor:
        read = visible(ids != PAD, alone).float()
        mean = read @ arrays["net_U"][ids] / read.sum(2, keepdim=True)
        return arrays["net_W"][ids] + mean + arrays["net_P"]

    return model


def test_rows_of_the_mixture_are_corrupted(arrays: dict[str, Tensor]) -> None:
    made = corrupted(arrays)
    assert torch.equal(made.times.structure, arrays["struct_t"]) and torch.equal(made.times.letters, arrays["aa_t"])
    assert torch.equal(made.times.alone, arrays["single_modality"].bool())
    assert torch.equal(made.ids, torch.cat([arrays["struct_xt"], arrays["aa_xt"]], dim=1))
    assert torch.equal(made.hidden, torch.cat([arrays["struct_masked"], arrays["aa_masked"]], dim=1).bool())
    assert torch.equal(visible(made.ids != PAD, made.times.alone), arrays["attention_visible"].bool())


def test_losses(arrays: dict[str, Tensor]) -> None:
    made, model, pairs = corrupted(arrays), model_of(arrays), pairs_of(arrays)
    logits = model(made.ids, made.times.alone)
    for name, weight in WEIGHTS.items():
        close(weight(made.times.structure, pairs.steps), arrays[f"weight_{name}_struct"])
        close(weight(made.times.letters, pairs.steps), arrays[f"weight_{name}_aa"])
        loss = PairLoss(pairs=pairs, weight=weight).of(logits, made)
        close(loss.terms["structure"], arrays[f"loss_{name}_struct"])
        close(loss.terms["letters"], arrays[f"loss_{name}_aa"])
        close(loss.total, arrays[f"loss_{name}_total"])


def test_self_mixup(arrays: dict[str, Tensor]) -> None:
    made, model, pairs = corrupted(arrays), model_of(arrays), pairs_of(arrays)
    mixed = pairs.mixed_up(made, model(made.ids, made.times.alone).argmax(-1))
    assert torch.equal(mixed.ids, arrays["mixup_input"])
    assert torch.equal(mixed.hidden, arrays["mixup_loss_mask"].bool())
    close(PairLoss(pairs=pairs).of(model(mixed.ids, mixed.times.alone), mixed).total, arrays["mixup_loss_total"])


def test_the_learning_rate(arrays: dict[str, Tensor]) -> None:
    found = torch.tensor([learning_rate(step) for step in arrays["lr_steps"].tolist()], dtype=torch.float64)
    torch.testing.assert_close(found, arrays["lr"], rtol=1e-9, atol=1e-15)


def test_nucleus_and_lowest_scores(arrays: dict[str, Tensor]) -> None:
    for name in (key for key in arrays if key.startswith("topp_out_")):
        mass = float(name.removeprefix("topp_out_")[0] + "." + name.removeprefix("topp_out_")[1:])
        assert torch.equal(nucleus(arrays["topp_in"], mass), arrays[name])
    cut = arrays["topk_cut"][:, 0]
    assert torch.equal(lowest(arrays["topk_scores"], cut), arrays["topk_det"].bool())
    noisy = arrays["topk_scores"] + 0.6 * gumbel(arrays["topk_u"])
    assert torch.equal(lowest(noisy, cut), arrays["topk_stoch_0p6"].bool())


# name: strategy, noise of the order
RUNS: dict[str, tuple[Strategy, float]] = {
    "folding": (argmax, 0.0),
    "partial": (argmax, 0.0),
    "stochastic": (argmax, 1.0),
    "gumbel": (GumbelArgmax(), 0.5),
    "annealed": (Annealed(), 1.0),
}


@pytest.mark.parametrize("name", sorted(RUNS))
def test_runs(arrays: dict[str, Tensor], name: str) -> None:
    pairs, model, ids = pairs_of(arrays), model_of(arrays), arrays[f"gen_{name}_initial"]
    states, noise = arrays[f"gen_{name}_tokens"], arrays.get(f"gen_{name}_u")
    strategy, order = RUNS[name]
    sampler = Remasking(pairs=pairs, steps=len(states), strategy=strategy, noise=order)
    given = arrays["gen_given_positions"].bool() if name == "partial" else torch.zeros_like(ids).bool()
    open, alone = pairs.normal(ids) & ~given, torch.zeros(len(ids), dtype=torch.bool)
    for step, wanted in enumerate(states):
        logits = model(ids, alone)
        u = arrays[f"gen_{name}_u_logits"][step] if f"gen_{name}_u_logits" in arrays else torch.full_like(logits, 0.5)
        found, scores = sampler.candidates(logits, step, u)
        if isinstance(strategy, Annealed):  # the candidates were drawn by another generator
            found = arrays[f"gen_{name}_candidates"][step]
            scores = strategy.score(sampler.log_probabilities(logits), step / len(states), found.where(open, 36))
        assert torch.equal(found[open], arrays[f"gen_{name}_candidates"][step][open])
        close(scores[open], arrays[f"gen_{name}_scores"][step][open])
        pair = (ids.float(), ids.float()) if noise is None else (noise[2 * step], noise[2 * step + 1])
        ids = sampler.moved(ids, open, found, scores, step, pair)
        assert torch.equal(ids, wanted), step
        assert torch.equal((ids == pairs.masks(ids)) & open, arrays[f"gen_{name}_still_masked"][step].bool() & open)
    assert torch.equal(ids, arrays[f"gen_{name}_final"])


def test_the_quantiser(arrays: dict[str, Tensor]) -> None:
    for name in ("lfq", "lfq13"):
        assert torch.equal(index_of(arrays[f"{name}_x"]), arrays[f"{name}_index"])
    mask, dim = arrays["lfq_mask"].bool(), arrays["lfq_x"].shape[-1]
    codes = torch.arange(len(arrays["lfq_entry_of_index"]))
    close(vector_of(codes, dim), arrays["lfq_entry_of_index"])
    close(vector_of(codes, dim).flip(-1), arrays["lfq_codebook_buffer"])
    close(vector_of(codes, dim).flip(-1), arrays["lfq_decode_little_endian"])
    x = arrays["lfq_x"].clone().requires_grad_()
    close(signs(x).detach(), arrays["lfq_quantised"])
    found = Entropies()(x[mask])
    close(found.loss.detach(), arrays["lfq_loss"])
    close(found.commitment.detach(), arrays["lfq_commit"])
    close(found.sample_entropy.detach(), arrays["lfq_sample_entropy"])
    close(found.code_entropy.detach(), arrays["lfq_codebook_entropy"])
    found.loss.backward()
    close(x.grad, arrays["lfq_grad_of_loss"], atol=1e-5)
    small = Entropies()(arrays["lfq_small_x"][mask])
    close(small.loss, arrays["lfq_small_loss"])
    close(small.sample_entropy, arrays["lfq_small_sample_entropy"])
    close(small.code_entropy, arrays["lfq_small_codebook_entropy"])


# -- beyond the arrays ---------------------------------------------------------------------------------------------------


def test_signs_have_a_straight_through_gradient_and_codes_come_back() -> None:
    x = torch.tensor([[0.3, -2.0, 0.0]], requires_grad=True)
    signs(x).sum().backward()
    assert signs(x).tolist() == [[1.0, -1.0, -1.0]] and x.grad is not None and x.grad.tolist() == [[1.0, 1.0, 1.0]]
    codes = torch.arange(64)
    assert torch.equal(index_of(vector_of(codes, 6)), codes)


def test_entropies_prefer_sure_vectors_and_codes_that_are_used_alike() -> None:
    loss = Entropies(commitment=0.0, temperature=1.0)
    alike = loss(3 * vector_of(torch.arange(8), 3))
    collapsed = loss(3 * vector_of(torch.zeros(8).long(), 3))
    unsure = loss(0.1 * vector_of(torch.arange(8), 3))
    assert float(alike.loss) < min(float(collapsed.loss), float(unsure.loss))


def test_a_mixture_has_its_tasks() -> None:
    drawn = torch.arange(1, 21), torch.arange(101, 121)
    times = Mixture(alone=0.2, folding=0.3, inverse=0.1, independent=0.1).times(torch.arange(20), *drawn)
    assert (
        int(times.alone.sum()) == 4 and int((times.letters == 0).sum()) == 6 and int((times.structure == 0).sum()) == 2
    )
    assert torch.equal(times.letters[12:14], drawn[1][12:14])
    assert torch.equal(times.letters[14:], times.structure[14:]) and torch.equal(times.structure[14:], drawn[0][14:])


def test_blocked_halves_do_not_read_each_other_and_padding_is_never_read() -> None:
    valid = torch.tensor([[True, True, False, True, True, False]] * 2)
    attend = visible(valid, torch.tensor([True, False]))
    assert not bool(attend[0, :3, 3:].any()) and not bool(attend[0, 3:, :3].any())
    assert not bool(attend[:, :, [2, 5]].any()) and bool(attend[1, 0, 4])


class Trained(torch.nn.Module):
    """Logits of a table and the mean of what is read; it knows positions."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.table, self.place = torch.nn.Embedding(size, size), torch.nn.Embedding(16, size)

    def forward(self, ids: Tensor, place: Tensor, attend: Tensor) -> Tensor:
        e = self.table(ids) + self.place(place)
        return e + attend.float() @ e / attend.sum(2, keepdim=True).clamp(min=1)


PAIRS = Pairs(structure=structure(4))


def row(tokens: int) -> Tensor:
    first = PAIRS.structure.first
    return torch.tensor([[first, *[first + 3] * tokens, first + 1, 0, *[5] * tokens, 2]])


def test_the_objective_trains_with_and_without_mixup() -> None:
    model = WithHalves(Trained(PAIRS.size))
    clean = row(6).repeat(8, 1)
    for mixup in (False, True):
        loss = PairLoss(pairs=PAIRS, mixup=mixup)(model, clean, generator("loss"))
        loss.total.backward()
        assert float(loss.total.detach()) > 0 and (loss.counts["letters"] == 8 * 6) == mixup
    torch.testing.assert_close(falling(torch.tensor([0]), 500), torch.tensor([501 / 500]))


def test_shared_positions_are_the_same_in_both_halves() -> None:
    net = SimpleNamespace(seen=[])

    def keep(ids: Tensor, place: Tensor, attend: Tensor) -> Tensor:
        net.seen.append(place.tolist())
        return torch.zeros(*ids.shape, PAIRS.size)

    for shared in (True, False):
        WithHalves(keep, shared=shared)(row(1), torch.tensor([False]))
    assert net.seen == [[0, 1, 2, 0, 1, 2], [0, 1, 2, 3, 4, 5]]


@pytest.mark.parametrize("strategy", [argmax, GumbelArgmax(), Annealed()])
def test_folding_keeps_the_letters_and_draws_codes_alone(strategy: Strategy) -> None:
    model, ids = WithHalves(Trained(PAIRS.size)).requires_grad_(False), row(6).repeat(3, 1)
    for i, value in enumerate(model.parameters()):
        torch.nn.init.normal_(value, generator=generator("trained", i))
    sampler = Remasking(pairs=PAIRS, steps=4, strategy=strategy, noise=1.0)
    open = PAIRS.normal(ids) & (torch.arange(16) < 8)
    made = sampler.sample(model, ids, open, [1, 2, 3])
    assert torch.equal(made[~open], ids[~open])
    drawn = made[open]
    assert int(drawn.min()) >= PAIRS.structure.first + 3 and int(drawn.max()) < PAIRS.structure.mask
    alone = sampler.sample(model, ids[1:2], open[1:2], [2])
    assert torch.equal(alone[0], made[1])


def test_an_unmasked_token_is_masked_again_by_the_score_of_its_new_candidate() -> None:
    sampler = Remasking(pairs=PAIRS, steps=4)
    ids = row(2)
    open = PAIRS.normal(ids)
    scores = torch.zeros(1, 8).index_fill(1, torch.tensor([5]), -3.0)
    made = sampler.moved(ids, open, torch.full_like(ids, 6), scores, 1, (scores, scores))
    assert made[0].tolist() == [*ids[0, :5].tolist(), LETTERS.mask, 5, 2]


def test_new_embeddings_have_the_spread_of_the_old_ones() -> None:
    weight = torch.randn(33, 4, generator=generator("old")) * torch.tensor([1.0, 2.0, 0.1, 0.5]) + 3
    made = widened(weight, 2000, generator("new"))
    assert torch.equal(made[:33], weight)
    torch.testing.assert_close(made[33:].mean(0), weight.mean(0), rtol=0, atol=0.2)
    torch.testing.assert_close(made[33:].std(0), weight.std(0), rtol=0.15, atol=0)
    with pytest.raises(ValueError, match="33 ids, and the pair 20"):
        widened(weight, 20, generator("new"))
