"""LoRA: the first forward is the base's, merging is undone exactly, and only the adapter is trained and kept."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from unmask.checkpoints.adapters import load_adapter, save_adapter
from unmask.checkpoints.quantise import RoundToNearest, restored
from unmask.models.elastic import Elastic, init
from unmask.models.linear import Linear
from unmask.models.lora import (
    LoRA,
    Product,
    adapter_tensors,
    adapters,
    add_products,
    in_branches,
    merge,
    merged,
    sharing,
    unmerge,
    without_adapters,
)
from unmask.models.sizes import SIZES
from unmask.objectives.masked import Masked
from unmask.recipe import Optim, Recipe, Training
from unmask.rng import generator
from unmask.sequence import Batch, Kind, Sequence, Span, collate
from unmask.training.optim import Masters
from unmask.training.states import STATE
from unmask.training.train import train

PARTS = ("und", "gen", "out", "codes", "vision", "text_head")
QUERIES = LoRA(where=lambda name: name.endswith((".q", ".v")), rank=3, alpha=6.0)
CONFIG = dataclasses.replace(SIZES["tiny"], vision=None, vocab_size=40)
SPANS = (
    Span(name="prompt", kind=Kind.TEXT, start=0, stop=3),
    Span(name="answer", kind=Kind.TEXT, start=3, stop=6, writable=True),
    Span(name="image", kind=Kind.CODE, start=6, stop=22, grid=(4, 4), fold=2, writable=True),
)


def model() -> Elastic:
    made = Elastic(CONFIG, mask_id=1)
    init(made, generator("lora test"))
    return made


def adapted(rule: LoRA = QUERIES, make: Callable[[], nn.Module] = model) -> nn.Module:
    made = make()
    rule(made)
    return made


def stir(module: nn.Module) -> None:
    """Give every ``up`` a value, as training does."""
    rng = generator("stir")
    for _, _, adapter in adapters(module):
        nn.init.normal_(adapter.up, 0, 0.1, generator=rng)


def batch(step: int = 0) -> Batch:
    rng = generator("lora rows", step)
    masked = torch.zeros(22, dtype=torch.bool)
    rows = [Sequence(ids=torch.randint(0, 40, (22,), generator=rng), masked=masked, spans=SPANS) for _ in range(2)]
    return collate(rows, range(2))


def logits(module: nn.Module) -> Tensor:
    given = batch()
    prediction = module(given.replace(masked=given.writable))
    return torch.cat([prediction.logits(kind).flatten() for kind in sorted(prediction.scored)]).detach()


# -- the layer --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_first_forward_is_the_base_bit_for_bit(dtype: torch.dtype) -> None:
    assert torch.equal(logits(adapted().to(dtype)), logits(model().to(dtype)))


def test_a_trained_adapter_adds_its_scaled_product() -> None:
    layer = nn.Sequential(nn.Linear(5, 4))
    base = layer[0].weight.detach().clone()
    LoRA(where=lambda name: name == "0", rank=2, alpha=3.0)(layer)
    stir(layer)
    (_, inner, adapter), x = next(adapters(layer)), torch.randn(7, 5, generator=generator("x"))
    wanted = F.linear(x, base + 1.5 * adapter.up @ adapter.down, inner.bias)
    torch.testing.assert_close(layer(x), wanted)
    assert not torch.allclose(layer(x), F.linear(x, base, inner.bias), atol=1e-3)


def test_a_layer_that_returns_its_first_outputs_alone() -> None:
    class Narrow(nn.Linear):
        def forward(self, x: Tensor, width: int) -> Tensor:  # type: ignore[override]
            return F.linear(x, self.weight[:width])

    layer = nn.ModuleDict({"out": Narrow(4, 4, bias=False)})
    LoRA(where=lambda name: name == "out")(layer)
    stir(layer)
    x = torch.randn(3, 4, generator=generator("x"))
    torch.testing.assert_close(layer["out"](x, 2), layer["out"](x, 4)[:, :2])


def test_the_first_weights_follow_from_the_seed_and_the_name() -> None:
    one, again = adapter_tensors(adapted()), adapter_tensors(adapted())
    other = adapter_tensors(adapted(dataclasses.replace(QUERIES, seed=1)))
    downs = [name for name in one if name.endswith("down")]
    assert all(torch.equal(one[n], again[n]) for n in one)
    assert not any(torch.equal(one[n], other[n]) for n in downs)
    assert not torch.equal(one[downs[0]], one[downs[1]])
    assert all(not one[n].any() for n in one if n.endswith("up"))


def test_layers_are_chosen_by_name_and_all_else_is_frozen() -> None:
    made = adapted()
    layers = [name for name, _, _ in adapters(made)]
    assert layers and all(name.endswith((".q", ".v")) for name in layers)
    assert {n for n, p in made.named_parameters() if p.requires_grad} == set(adapter_tensors(made))
    assert set(model().state_dict()) == {n for n in made.state_dict() if ".lora." not in n}


def test_an_adapter_reaches_every_linear_layer_of_the_network() -> None:
    """The output projection too, which both branches share: no layer's weight is read past its module."""
    made = adapted(LoRA(where=lambda name: True))
    linear = [name for name, part in made.named_modules() if isinstance(part, nn.Linear)]
    layers = [(name, adapter) for name, _, adapter in adapters(made)]
    assert [name for name, _ in layers] == linear and any(name.endswith(".out") for name in linear)
    base = logits(made)
    for name, adapter in layers:
        with torch.no_grad():
            adapter.up.fill_(0.5)
            assert not torch.equal(logits(made), base), name
            adapter.up.zero_()
    assert torch.equal(logits(made), base)


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        (lambda made: LoRA(where=lambda name: False)(made), "selects none of .* linear layers; their names are like"),
        (lambda made: (QUERIES(made), QUERIES(made)), "already has an adapter"),
        (lambda made: LoRA(where=lambda name: True, rank=0)(made), "rank of LoRA must be at least 1, got 0"),
        (lambda made: adapter_tensors(made), "the model has no adapters"),
    ],
)
def test_mistakes_are_named(rule: Callable[[nn.Module], object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        rule(model())


# -- merging ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merging_computes_the_same_and_is_undone_exactly(dtype: torch.dtype) -> None:
    made = adapted().to(dtype)
    stir(made)
    before, weights = logits(made), {n: p.detach().clone() for n, p in made.named_parameters()}
    merge(made)
    merge(made)  # a second time changes nothing
    torch.testing.assert_close(logits(made), before, atol=1e-4 if dtype == torch.float32 else 0.3, rtol=1e-2)
    changed = {n for n, p in made.named_parameters() if not torch.equal(p, weights[n])}
    assert changed == {f"{name}.weight" for name, _, _ in adapters(made)}
    unmerge(made)
    unmerge(made)
    assert all(torch.equal(p, weights[n]) for n, p in made.named_parameters())
    assert torch.equal(logits(made), before)


def test_a_copy_has_adapters_of_its_own() -> None:
    made = adapted()
    other = copy.deepcopy(made)
    stir(other)
    assert torch.equal(logits(made), logits(model())) and not torch.equal(logits(other), logits(made))


# -- several, and copies ----------------------------------------------------------------------------------------------


def products(seed: int, rank: int) -> dict[str, Product]:
    rng, found = generator("products", seed), {}
    for name, layer in model().named_modules():
        if isinstance(layer, nn.Linear) and QUERIES.where(name):
            down = torch.randn(rank, layer.in_features, generator=rng)
            found[name] = Product(down=down, up=torch.randn(layer.out_features, rank, generator=rng) * 0.1, scale=0.3)
    return found


def test_the_products_of_several_adapters_add_up() -> None:
    made, by_hand = model(), model()
    for added in (products(1, 2), products(2, 5)):
        add_products(made, added)
        for name, product in added.items():
            layer = by_hand.get_submodule(name)
            layer.weight.data = merged(layer.weight.data, product)
    assert {len(adapter.down) for _, _, adapter in adapters(made)} == {7}
    torch.testing.assert_close(logits(made), logits(by_hand), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(logits(made), logits(model()), atol=1e-2)
    merge(made)
    with pytest.raises(ValueError, match="has an adapter that is merged; unmerge it first"):
        add_products(made, products(3, 2))


def test_a_sharing_copy_holds_the_same_weights_and_its_own_adapters() -> None:
    base = model()
    copied = sharing(base)
    assert all(p is q for p, q in zip(base.parameters(), copied.parameters(), strict=True))
    add_products(copied, products(1, 2))
    assert not list(adapters(base)) and torch.equal(logits(base), logits(model()))
    assert not torch.equal(logits(copied), logits(base))
    again = sharing(copied)
    add_products(again, products(2, 2))
    assert {len(adapter.down) for _, _, adapter in adapters(copied)} == {2}


def test_layers_are_chosen_by_branch() -> None:
    made = Elastic(SIZES["tiny"], mask_id=1)
    linear = {name for name, part in made.named_modules() if isinstance(part, nn.Linear)}
    chosen = {branch: set(filter(in_branches(branch), linear)) for branch in PARTS}
    assert all(chosen.values()) and set.union(*chosen.values()) == linear
    assert sum(map(len, chosen.values())) == len(linear)
    assert set(filter(in_branches("und", "gen"), linear)) == chosen["und"] | chosen["gen"]
    assert "blocks.0.gen.mlp.up" in chosen["gen"] and "blocks.0.out" in chosen["out"]
    with pytest.raises(ValueError, match="no part of the network is called 'text'; choose from und, gen, out, codes"):
        in_branches("und", "text")


@pytest.mark.parametrize("bits", [8, 4])
def test_quantised_weights_take_adapters_and_are_not_merged(bits: int) -> None:
    pytest.importorskip("torchao")
    layer = nn.Sequential(nn.Linear(64, 48, bias=False))
    layer[0].weight = nn.Parameter(RoundToNearest(bits=bits)(layer[0].weight.detach(), None), requires_grad=False)
    x = torch.randn(5, 64, generator=generator("x"))
    base = layer(x).detach()
    LoRA(where=lambda name: name == "0", rank=4)(layer)
    torch.testing.assert_close(layer(x), base, atol=0, rtol=0)
    stir(layer)
    (_, inner, adapter), _ = next(adapters(layer)), layer(x).sum().backward()
    torch.testing.assert_close(
        layer(x), F.linear(x, merged(restored(inner.weight), adapter.product)), atol=1e-3, rtol=1e-3
    )
    assert adapter.up.grad is not None and inner.weight.grad is None
    with pytest.raises(ValueError, match="0 has quantised weights, which cannot be merged"):
        merge(layer)


@pytest.mark.parametrize("kind", [nn.Linear, Linear])
def test_a_quantised_weight_is_not_kept_in_floats_for_the_backward_pass(kind: type[nn.Linear]) -> None:
    """Fault: the layers of a network are of a class of their own, and only torch's were recognised."""
    pytest.importorskip("torchao")
    layer, kept = nn.Sequential(kind(64, 48, bias=False)), list[int]()
    layer[0].weight = nn.Parameter(RoundToNearest(bits=8)(layer[0].weight.detach(), None), requires_grad=False)
    LoRA(where=lambda name: name == "0", rank=4)(layer)
    x = torch.randn(5, 64, generator=generator("x"), requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        found = layer(x).sum()
    found.backward()
    assert x.grad is not None and kept and max(kept) < 64 * 48


def test_without_adapters_is_the_base_and_only_for_the_context() -> None:
    net, base = adapted(), model()
    stir(net)
    with_them = logits(net)
    with without_adapters(net) as bare:
        assert bare is net
        torch.testing.assert_close(logits(bare), logits(base), atol=0, rtol=0)
    torch.testing.assert_close(logits(net), with_them, atol=0, rtol=0)
    assert not torch.equal(with_them, logits(base))
    with pytest.raises(KeyError), without_adapters(net):
        raise KeyError
    torch.testing.assert_close(logits(net), with_them, atol=0, rtol=0)
    merge(net)
    with pytest.raises(ValueError, match="has an adapter that is merged; unmerge it first"), without_adapters(net):
        pass


# -- training ---------------------------------------------------------------------------------------------------------


def recipe(*, bf16: bool = False, adapt: Callable[[nn.Module], None] = QUERIES) -> Recipe:
    return Recipe(
        name="adapted",
        model=model,
        adapt=adapt,
        source=batch,
        objective=Masked(),
        optim=Optim(lr=0.02, warmup=1, ema=0.5),
        training=Training(steps=4, bf16=bf16, save_every=2),
        export=save_adapter,
    )


@pytest.mark.parametrize("bf16", [False, True])
def test_the_trainer_moves_the_adapter_alone(bf16: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unmask.training.train.matmul_peak", lambda dtype, device: 1e9)
    done = train(recipe(bf16=bf16), tmp_path)
    base = model().state_dict()
    assert all(torch.equal(value, base[n]) for n, value in done.state_dict().items() if ".lora." not in n)
    assert all(bool(adapter.up.any()) for _, _, adapter in adapters(done))
    assert {k.partition(".")[2] for k in load_file(tmp_path / STATE)} == set(adapter_tensors(done))
    train(recipe(bf16=bf16), tmp_path / "pieces", stop_after=2)
    again = train(recipe(bf16=bf16), tmp_path / "pieces")
    assert all(torch.equal(p, q) for p, q in zip(done.parameters(), again.parameters(), strict=True))
    shipped = model()
    load_adapter(shipped, tmp_path)
    assert torch.equal(logits(shipped), logits(done))


def test_what_adapt_leaves_trainable_can_be_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unmask.training.train.matmul_peak", lambda dtype, device: 1e9)

    def with_norm(module: nn.Module) -> None:
        QUERIES(module)
        module.get_submodule("norm").requires_grad_(True)

    done = train(recipe(adapt=with_norm), tmp_path)
    assert not torch.equal(done.get_parameter("norm.weight"), model().norm.weight)


@pytest.mark.parametrize(("dtype", "kept"), [(torch.float32, False), (torch.bfloat16, True)])
def test_frozen_weights_are_held_once(dtype: torch.dtype, kept: bool) -> None:
    """Weights are shared; in bfloat16 only those that rounding would change keep their own dtype."""
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    with torch.no_grad():
        module[0].weight.fill_(1 / 3)
        module[1].weight.fill_(0.5)
    given = module[0].weight.detach()
    masters = Masters(module, Optim(), lambda name: name.startswith("2"), dtype=dtype)
    assert masters.frozen["0.weight"].data_ptr() == given.data_ptr()
    assert (masters.frozen["0.weight"].data_ptr() != module[0].weight.data_ptr()) == kept
    assert masters.frozen["1.weight"].data_ptr() == module[1].weight.data_ptr()
