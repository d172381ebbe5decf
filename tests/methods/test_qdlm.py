"""QDLM's quantisers: the values measured from the official code, the laws of a change of basis, and files in few bits."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from unmask.checkpoints.calibration import calibrate, input_rows
from unmask.checkpoints.grids import Asymmetric, Grid, Shrunk, Signed, Symmetric, Tight
from unmask.checkpoints.packed import Columns, Hadamard, Quantised, Rotations, packed, unpacked
from unmask.methods.qdlm import (
    AWQ,
    GPTQ,
    DuQuant,
    Method,
    Rounding,
    base_rotation,
    methods,
    rotated,
    smoothing,
    spread_rotation,
    zigzag,
)
from unmask.sequence import Batch, Kind, Sequence, Span, collate
from unmask.step import Prediction

torch.set_num_threads(1)
Golden = Callable[[str], dict[str, Tensor]]


class OneLayer(nn.Module):
    """A network whose one layer reads the values of the tokens."""

    def __init__(self, columns: int) -> None:
        super().__init__()
        self.layer = nn.Linear(columns, 1)

    def forward(self, batch: Batch, *, predict: Tensor | None = None, reuse: object = None) -> Prediction:
        assert batch.values is not None
        self.layer(batch.values)
        return Prediction(scored={})


def batch_of(x_BLI: Tensor) -> Batch:
    length = x_BLI.shape[1]
    spans = (Span(name="all", kind=Kind.TEXT, start=0, stop=length, writable=True),)
    row = Sequence(ids=torch.zeros(length).long(), masked=torch.ones(length).bool(), spans=spans)
    return collate([replace(row, values=x) for x in x_BLI], range(len(x_BLI)))


def measured(arrays: dict[str, Tensor]) -> Tensor:
    """X^T X as ``unmask quantise`` measures it."""
    x = arrays["gptq_x"]
    return calibrate(OneLayer(x.shape[-1]), [batch_of(x)], lambda name: name == "layer")["layer"]


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found.to(wanted.dtype).view(wanted.shape), wanted, atol=2e-5, rtol=2e-5)


def size_of_group(arrays: dict[str, Tensor]) -> int:
    return arrays["gptq_w"].shape[1] // arrays["gptq3_scale"].shape[1]


def variants(group: int) -> dict[str, GPTQ]:
    """The GPTQ variants of the reference file, by the end of their names."""
    three: Grid = Asymmetric(bits=3)
    found = {
        "3_actorder": GPTQ(grid=three, group=group, by_size=True),
        "3_static": GPTQ(grid=three, group=group, beforehand=True),
        "3_static_actorder": GPTQ(grid=three, group=group, beforehand=True, by_size=True),
        "3_nogroup": GPTQ(grid=three, group=0),
        "3_mse": GPTQ(grid=Shrunk(grid=three), group=group),
    }
    for bits in (4, 3, 2):
        found[f"{bits}"] = GPTQ(grid=Asymmetric(bits=bits), group=group)
        found[f"{bits}_block8"] = GPTQ(grid=Asymmetric(bits=bits), group=group, block=group)
        found[f"{bits}_sym"] = GPTQ(grid=Symmetric(bits=bits), group=group)
    return found


def test_calibration_measures_h(golden: Golden) -> None:
    arrays = golden("qdlm")
    close(measured(arrays) * 2 / len(arrays["gptq_x"]), arrays["gptq_H"])


def test_gptq_in_all_its_variants(golden: Golden) -> None:
    arrays, seen = golden("qdlm"), set()
    h = measured(arrays)
    for name, gptq in variants(size_of_group(arrays)).items():
        found = gptq.quantised("layer", arrays["gptq_w"], h)
        held = {"w": found.values(), "scale": found.scale, "zero": found.zero, "gidx": found.group_of}
        for part, value in held.items():
            key = f"gptq{name}_{part}"
            if key in arrays:
                close(value, arrays[key])
                seen.add(key)
    assert seen == {key for key in arrays if re.match(r"gptq\d", key)}


def test_rounding_and_the_output_errors(golden: Golden) -> None:
    arrays, group = golden("qdlm"), size_of_group(golden("qdlm"))
    x, w = arrays["gptq_x"], arrays["gptq_w"]
    h = measured(arrays)
    for bits in (4, 3, 2):
        rounding, grid = Rounding(grid=Asymmetric(bits=bits), group=group), Asymmetric(bits=bits)
        found = {
            f"rtn{bits}": rounding.quantised("layer", w, None),
            f"gptq{bits}": GPTQ(grid=grid, group=group).quantised("layer", w, h),
            f"gptq{bits}_sym": GPTQ(grid=Symmetric(bits=bits), group=group).quantised("layer", w, h),
        }
        close(found[f"rtn{bits}"].values(), arrays[f"rtn{bits}_w"])
        for name, one in found.items():
            close(((x @ w.T - x @ one.values().T) ** 2).mean(), arrays[f"err_{name}"])


def test_awq(golden: Golden) -> None:
    arrays = golden("qdlm")
    w, x = arrays["awq_w"], arrays["awq_x"]
    group = w.shape[1] // arrays["awq3_clip"].shape[1]
    for bits in (4, 3):
        awq = AWQ(grid=Tight(bits=bits), group=group)
        basis, losses = awq.scaled(w, x)
        close(basis.scale, arrays[f"awq{bits}_scales"])
        close(losses, arrays[f"awq{bits}_loss_by_ratio"])
        close(awq.limits(basis.weights(w), basis.inputs(x)), arrays[f"awq{bits}_clip"])
        final = awq.quantised("layer", w, x).values()
        plain = Rounding(grid=Tight(bits=bits), group=group).quantised("layer", w, None).values()
        close(final, arrays[f"awq{bits}_final_w"])
        close(plain, arrays[f"awq{bits}_rtn_w"])
        close(((x @ w.T - x @ final.T) ** 2).mean(), arrays[f"err_awq{bits}"])
        close(((x @ w.T - x @ plain.T) ** 2).mean(), arrays[f"err_awq{bits}_rtn"])


def test_activations_and_rows_of_quarot(golden: Golden) -> None:
    arrays = golden("qdlm")
    w, x = arrays["gptq_w"], arrays["act_x"]
    for bits in (4, 8):
        close(Signed(bits=bits, clip=0.9)(x).values(x), arrays[f"act{bits}_sym_clip0.9"])
        close(Asymmetric(bits=bits, clip=0.9)(x).values(x), arrays[f"act{bits}_asym_clip0.9"])
        close(Signed(bits=bits)(w).values(w), arrays[f"quarot_w{bits}_w"])
        searched = Shrunk(grid=Signed(bits=bits))(w)
        close(searched.values(w), arrays[f"quarot_w{bits}_mse_w"])
        close(searched.scale, arrays[f"quarot_w{bits}_mse_scale"])
    size = len(arrays["hadamard16"])
    close(Hadamard(size=size).weights(torch.eye(size)), arrays["hadamard16"])


def test_smoothquant(golden: Golden) -> None:
    arrays = golden("qdlm")
    largest = arrays["gptq_x"].flatten(0, 1).abs().amax(0)
    close(largest, arrays["smooth_act_max"])
    close(smoothing(arrays["gptq_w"], largest), arrays["smooth_scale_alpha0.5"])


def test_duquant(golden: Golden) -> None:
    arrays = golden("qdlm")
    x, used = arrays["duquant_x"], arrays["duquant_rotation_used"]
    for key in arrays:
        if match := re.fullmatch(r"duquant_base_rotation_(\d+)", key):
            close(base_rotation(int(match[1])), arrays[key])
    first, rows = rotated(x, used, 5, by_row=True)
    close(first, arrays["duquant_R"])
    assert rows == arrays["duquant_exchange_rows"].tolist()
    none = torch.zeros(0, x.shape[1]).long()
    close(once := Rotations(rotations=first[None], orders=none).inputs(x), arrays["duquant_rotated"])
    assert torch.equal(zigzag(x, len(used)), arrays["duquant_zigzag"])
    basis = DuQuant(rounding=Rounding(grid=Tight(bits=4)), steps=5, by_row=True).basis(x, used)
    close(basis.rotations, arrays["duquant_full_R"])
    assert torch.equal(basis.orders, arrays["duquant_full_perm"]) and torch.equal(
        zigzag(once, len(used)), basis.orders[0]
    )
    close(basis.inputs(x), arrays["duquant_full"])
    close(basis.inputs(x), arrays["duquant_again"])
    close(basis.restored(basis.inputs(x)), x)


def test_clipped_ranges_of_duquant(golden: Golden) -> None:
    arrays = golden("qdlm")
    for bits in (4, 8):
        for ratio, x in ((0.9, arrays["duquant_x"]), (0.8, arrays["gptq_w"])):
            name = f"uniform{bits}_{'lac' if ratio == 0.9 else 'swc'}{ratio}"
            close(Tight(bits=bits, clip=ratio)(x).values(x), arrays[name])


# -- laws -------------------------------------------------------------------------------------------------------------


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def correlated(seed: int = 0) -> Tensor:
    """Inputs [N, I] with few directions and one large channel."""
    x = drawn(96, 5, seed=seed) @ drawn(5, 24, seed=seed + 1) + 0.1 * drawn(96, 24, seed=seed + 2)
    return x * torch.where(torch.arange(24) == 7, 8.0, 1.0)


def stats_of(method: Method, x: Tensor) -> Tensor:
    net, batch = OneLayer(x.shape[1]), batch_of(x.view(4, -1, x.shape[1]))
    return method.measured(net, [batch], lambda name: name == "layer").get("layer", torch.zeros(0))


BASES = {
    "columns": Columns(scale=drawn(24).abs() + 0.1),
    "hadamard": Hadamard(size=8),
    "rotations": DuQuant(rounding=Rounding(grid=Tight(bits=4)), steps=9).basis(correlated(), spread_rotation(8, 0)),
}


@pytest.mark.parametrize("name", BASES)
def test_a_change_of_basis_keeps_the_function_of_a_layer(name: str) -> None:
    basis, weight, x = BASES[name], drawn(6, 24, seed=3), correlated()
    torch.testing.assert_close(basis.inputs(x) @ basis.weights(weight).T, x @ weight.T, atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(basis.restored(basis.weights(weight)), weight, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(basis.weights(weight), weight, atol=0.1)


def test_duquant_spreads_the_largest_input() -> None:
    x = correlated()
    assert float(BASES["rotations"].inputs(x).abs().max()) < 0.8 * float(x.abs().max())
    assert torch.equal(zigzag(torch.tensor([[1.0, 4.0, 3.0, 2.0]]), 2), torch.tensor([1, 0, 2, 3]))


@pytest.mark.parametrize("name", ["gptq", "awq", "smooth", "quarot", "duquant"])
def test_what_is_calibrated_changes_the_output_less_than_rounding(name: str) -> None:
    """Over several layers; DuQuant and SmoothQuant prepare the inputs for few bits, which are quantised here too."""
    both, activations = name in ("smooth", "duquant"), Asymmetric(bits=4)
    error = dict.fromkeys(("rtn", name), 0.0)
    for seed in range(4):
        x, weight = correlated(seed), drawn(16, 24, seed=seed + 9)
        for one in error:
            method = methods(4 if both else 3, 8)[one]
            made = method.quantised("layer", weight, stats_of(method, x))
            inputs = made.basis.inputs(x)
            read = activations(inputs).values(inputs) if both else inputs
            error[one] += float((read @ made.rounded().T - x @ weight.T).square().mean())
    assert error[name] < 0.95 * error["rtn"], error


def test_the_largest_columns_come_first_by_size() -> None:
    """One column has nearly all input: by size it is rounded first, with no error of others to carry."""
    x, weight = drawn(64, 8) * torch.tensor([0.01] * 7 + [10.0]), drawn(5, 8, seed=4)
    gptq = GPTQ(grid=Asymmetric(bits=3), group=0, by_size=True)
    made = gptq.quantised("layer", weight, x.T @ x)
    close(made.values()[:, 7], Asymmetric(bits=3)(weight).values(weight)[:, 7])


def test_a_group_divides_the_row_and_bits_have_bounds() -> None:
    made = Rounding(grid=Asymmetric(bits=4), group=128).quantised("layer", drawn(3, 192), None)
    assert made.scale.shape == (3, 3) and made.group_of.tolist() == [0] * 64 + [1] * 64 + [2] * 64
    for bits in (1, 9):
        with pytest.raises(ValueError, match=f"{bits} bits is not a width of a grid; use 2 to 8"):
            methods(bits)
    with pytest.raises(ValueError, match="layer has no calibration statistics"):
        methods(4)["gptq"].quantised("layer", drawn(3, 8), None)


def test_a_silent_group_and_a_silent_layer_are_no_error() -> None:
    for method in methods(4, 8).values():
        stats = stats_of(method, torch.cat([correlated()[:, :12], torch.zeros(96, 12)], 1))
        assert method.quantised("layer", torch.zeros(4, 24), stats).values().abs().max() == 0


def test_inputs_are_thinned_out_evenly() -> None:
    x = torch.arange(400.0)[:, None].expand(-1, 3)
    kept = input_rows(OneLayer(3), [batch_of(x.reshape(8, 50, 3))], lambda name: name == "layer", most=10)["layer"][
        :, 0
    ]
    assert len(kept) == 10 and kept[0] == 0 and kept[-1] > 350 and float(kept.diff().max()) < 70


@pytest.mark.parametrize("bits", range(2, 9))
def test_bits_are_packed_and_unpacked(bits: int) -> None:
    ints = torch.randint(2**bits, (37, 19), generator=torch.Generator().manual_seed(bits)).to(torch.uint8)
    held = packed(ints, bits)
    assert held.shape == (37, -(-19 * bits // 8)) and torch.equal(unpacked(held, bits, 19), ints)


def test_orders_of_groups_are_kept() -> None:
    made = GPTQ(grid=Asymmetric(bits=3), group=8, by_size=True).quantised(
        "layer", drawn(4, 24), stats_of(methods(3)["gptq"], correlated())
    )
    held = made.tensors("a.weight")
    assert "a.weight.group_of" in held and isinstance(made, Quantised)
    plain = GPTQ(grid=Asymmetric(bits=3), group=8).quantised(
        "layer", drawn(4, 24), stats_of(methods(3)["gptq"], correlated())
    )
    assert set(plain.tensors("a.weight")) == {"a.weight.ints", "a.weight.scale", "a.weight.zero"}
