"""What follows from the weights of the code path alone is kept in a model that was opened for use, and never outlives them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from unmask.models.codes import CodeEmbedding, CodeHead
from unmask.models.linear import Linear, pack
from unmask.models.sizes import SIZES
from unmask.rng import generator

CONFIG = SIZES["tiny"]
CODES = torch.randint(0, CONFIG.code_rows, (1, 48), generator=generator("codes"))
SQUARES = torch.randperm(48, generator=generator("squares")).view(1, 12, 4)


def filled(module: torch.nn.Module, key: str) -> torch.nn.Module:
    rng = generator(key)
    for p in module.parameters():
        torch.nn.init.normal_(p, 0, 0.3, generator=rng)
    return module


def opened(module: torch.nn.Module) -> torch.nn.Module:
    pack(module)
    return module


@torch.no_grad()
def embedded(module: torch.nn.Module, codes: Tensor = CODES) -> Tensor:
    return module(codes, SQUARES)


def test_kept_vectors_are_those_that_are_computed() -> None:
    plain, kept = filled(CodeEmbedding(CONFIG), "a"), opened(filled(CodeEmbedding(CONFIG), "a"))
    for codes in (CODES, CODES.flip(1)):
        assert torch.equal(embedded(plain, codes), embedded(kept, codes))


def test_many_codes_are_looked_up_in_any_model() -> None:
    plain = filled(CodeEmbedding(CONFIG), "a")
    many, squares = CODES.repeat(1, 24), torch.cat([SQUARES + 48 * i for i in range(24)], 1)
    runs: list[int] = []
    with torch.no_grad():
        found = plain(many, squares)
        assert torch.equal(found[:, :12], plain(CODES, SQUARES))
        layer = plain.get_submodule("mix")
        forward = layer.forward
        layer.forward = lambda x: runs.append(len(x)) or forward(x)  # type: ignore[method-assign]
        assert torch.equal(plain(many, squares), found) and not runs
        plain(CODES, SQUARES)
    assert runs


@pytest.mark.parametrize("name", ["table.weight", "table_norm.weight", "mix.weight", "fold_norm.weight", "fold.weight"])
@pytest.mark.parametrize("storage", [False, True])
def test_a_changed_weight_changes_the_kept_vectors(name: str, storage: bool) -> None:
    """In place, and by another storage as an adapter that is merged."""
    plain, kept = filled(CodeEmbedding(CONFIG), "a"), opened(filled(CodeEmbedding(CONFIG), "a"))
    before = embedded(kept)
    for module in (plain, kept):
        weight = module.get_parameter(name)
        with torch.no_grad():
            if storage:
                weight.data = weight.data * 1.5 + 0.1
            else:
                weight.mul_(1.5).add_(0.1)
    assert torch.equal(embedded(plain), embedded(kept)) and not torch.equal(before, embedded(kept))


def test_a_hook_reaches_the_layers() -> None:
    kept = opened(filled(CodeEmbedding(CONFIG), "a"))
    before, seen = embedded(kept), []
    layer = kept.get_submodule("mix")
    assert isinstance(layer, Linear)
    layer.register_forward_hook(lambda module, given, out: seen.append(out) or out + 1)
    assert not torch.equal(before, embedded(kept)) and seen


def test_gradients_go_through_the_layers() -> None:
    kept = opened(filled(CodeEmbedding(CONFIG), "a"))
    kept(CODES, SQUARES).sum().backward()
    assert all(p.grad is not None for p in kept.parameters())


def test_the_head_unfolds_alike() -> None:
    plain, kept = filled(CodeHead(CONFIG), "h"), opened(filled(CodeHead(CONFIG), "h"))
    h = torch.randn(20, CONFIG.gen_width, generator=generator("h"))
    with torch.no_grad():
        for _ in range(2):
            assert isinstance(plain, CodeHead) and isinstance(kept, CodeHead)
            assert torch.equal(plain.unfolded(h), kept.unfolded(h))
            for module in (plain, kept):
                module.unfold.weight.mul_(-1)
