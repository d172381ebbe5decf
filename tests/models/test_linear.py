"""Matrix products by oneDNN are those of PyTorch, follow every change of the weights, and do not depend on the other rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from unmask.models import linear as linears
from unmask.models.blocks import SharedOut, SwiGLU
from unmask.models.linear import Linear, alike_from, pack, packed, side_by_side
from unmask.models.lora import LoRA, merge, unmerge
from unmask.rng import generator

torch.set_num_threads(1)
mkldnn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch was built without oneDNN")


@pytest.fixture(autouse=True)
def _no_grad(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[None]:
    if "choice" not in request.node.name:
        monkeypatch.setattr(linears, "onednn_is_faster", lambda: True)  # on every processor
    with torch.no_grad():
        yield


def filled(layer: nn.Module) -> nn.Module:
    rng = generator("linear", type(layer).__name__)
    for p in layer.parameters():
        p.copy_(torch.randn(p.shape, generator=rng))
    pack(layer)
    return layer


def x_of(rows: int, width: int) -> torch.Tensor:
    return torch.randn(rows, width, generator=generator("x", rows, width))


@mkldnn
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("packs", [False, True])
def test_equals_torch(bias: bool, packs: bool) -> None:
    layer = filled(Linear(160, 96, bias=bias))
    layer.packs = packs  # type: ignore[assignment]
    for x in (x_of(40, 160), x_of(40, 160).view(2, 20, 160)):
        torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias))  # type: ignore[arg-type]


@mkldnn
@pytest.mark.parametrize("threads", [1, 2])
def test_as_many_rows_as_are_computed_at_least_round_alike(threads: int) -> None:
    """Where another library serves, or gradients are wanted, more of them are needed."""
    x, layers = x_of(96, 192), [filled(Linear(192, width, bias=False)) for width in (33, 512, 1792)]
    torch.set_num_threads(threads)
    try:
        assert alike_from(x) == 4 * threads
        for layer in layers:
            whole = layer(x)
            assert all(torch.equal(layer(x[:rows]), whole[:rows]) for rows in range(4 * threads, 96, 4 * threads))
        assert alike_from(x.bfloat16()) == 16
        with torch.enable_grad():
            assert alike_from(x) == 16
    finally:
        torch.set_num_threads(1)


@mkldnn
@pytest.mark.parametrize("inputs", [160, 192, 640, 4096])
def test_rows_do_not_depend_on_other_rows(inputs: int) -> None:
    layer = filled(Linear(inputs, 192, bias=False))
    x = x_of(300, inputs)
    whole = layer(x)
    for rows in (2, 3, 5, 16, 37, 64, 299):
        assert torch.equal(layer(x[:rows]), whole[:rows])
    layer.packs = False  # type: ignore[assignment]
    assert torch.equal(layer(x), whole)


@mkldnn
def test_layers_side_by_side_are_the_layers() -> None:
    layers = [filled(Linear(192, n, bias=False)) for n in (192, 64, 32)]
    x = x_of(33, 192)
    for got, layer in zip(side_by_side(x, layers), layers, strict=True):
        assert torch.equal(got, layer(x))
    seen: list[int] = []
    layers[1].register_forward_hook(lambda *_: seen.append(1))
    side_by_side(x, layers)
    assert seen == [1]  # what is hooked to a layer still runs


CHANGES: dict[str, Callable[[Linear], None]] = {
    "in place": lambda layer: layer.weight.mul_(2),  # type: ignore[misc]
    "another parameter": lambda layer: setattr(layer, "weight", nn.Parameter(layer.weight * 2)),
    "another storage": lambda layer: setattr(layer.weight, "data", layer.weight.data * 2),
    "loaded": lambda layer: layer.load_state_dict({"weight": layer.weight * 2}),  # type: ignore[misc]
}


@mkldnn
@pytest.mark.parametrize("change", CHANGES)
def test_a_kept_copy_follows_its_weight(change: str) -> None:
    layer = filled(Linear(64, 32, bias=False))
    assert isinstance(layer, Linear)
    x = x_of(8, 64)
    for _ in range(20):  # a new storage may get the address of one that was freed
        before = layer(x)
        CHANGES[change](layer)
        torch.testing.assert_close(layer(x), 2 * before)
        layer.weight.data = layer.weight.data / 2


@mkldnn
def test_adapters_that_are_merged_are_used() -> None:
    part = filled(SwiGLU(64, 96))
    LoRA(where=lambda name: True, rank=2)(part)
    rng = generator("up")
    for name, p in part.named_parameters():
        if name.endswith("lora.up"):
            p.copy_(torch.randn(p.shape, generator=rng))
    x = x_of(20, 64)
    beside = part(x)
    merge(part)
    torch.testing.assert_close(part(x), beside, atol=1e-2, rtol=1e-3)
    unmerge(part)
    assert torch.equal(part(x), beside)


@mkldnn
def test_the_shared_projection_takes_its_first_rows() -> None:
    out = filled(SharedOut(192, 192, bias=False))
    x = x_of(33, 192)
    for width in (160, 192, 160):
        torch.testing.assert_close(out(x, width), F.linear(x, out.weight[:width]))  # type: ignore[index]


def test_large_matrices_are_not_kept_twice() -> None:
    with torch.device("meta"):
        large = Linear(2048, 1024, bias=False)
    assert packed([large]) is None


def test_gradients_go_through_torch() -> None:
    layer = filled(Linear(16, 16))
    with torch.enable_grad():
        layer(x_of(4, 16)).sum().backward()
    assert layer.weight.grad is not None


@pytest.mark.parametrize(
    ("processor", "capability", "wanted"),
    [
        ("vendor_id : AuthenticAMD", "AVX512", True),
        ("vendor_id : GenuineIntel", "AVX512", False),
        ("vendor_id : AuthenticAMD", "AVX2", False),
    ],
)
def test_choice(monkeypatch: pytest.MonkeyPatch, processor: str, capability: str, wanted: bool) -> None:
    monkeypatch.setattr(linears, "_processor", lambda: processor)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    assert linears.onednn_is_faster.__wrapped__() is (wanted and torch.backends.mkldnn.is_available())


def test_a_model_that_is_opened_in_inference_mode() -> None:
    """As ComfyUI runs its nodes. Tensors of that mode do not count writes, so weights must be ordinary ones."""
    import unmask
    from unmask.pipeline.loading import needs_of

    with torch.inference_mode():
        model = unmask.load("mini", device="cpu", needs=needs_of("generate"))
        (inside,) = model.generate("a cat", seed=1, steps=2, plan=False, attempts=1)
    (outside,) = model.generate("a cat", seed=1, steps=2, plan=False, attempts=1)
    assert inside.image.tobytes() == outside.image.tobytes()
    assert not any(p.is_inference() for p in model.parts.net.parameters())
