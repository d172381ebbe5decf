"""Calibration statistics, and a quantiser that reads them."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from unmask.checkpoints.budget import footprint, options_of
from unmask.checkpoints.calibration import calibrate
from unmask.checkpoints.elastic import EVERYTHING, Weights, WeightStorage
from unmask.checkpoints.loading import load
from unmask.checkpoints.quantise import RoundToNearest, restored
from unmask.models.elastic import Elastic
from unmask.pipeline.loading import read_spec
from unmask.sequence import Batch, Kind, Sequence, Span, collate

from ..tiny_model import make

torch.set_num_threads(1)


@dataclass(frozen=True, kw_only=True)
class Pruned:
    """A quantiser that zeroes the columns whose input is smallest in the calibration data."""

    share: float

    @property
    def label(self) -> str:
        return "pruned"

    def __call__(self, weight: Tensor, stats: Tensor | None) -> Tensor:
        assert stats is not None, "this quantiser needs calibration statistics"
        least = stats.diagonal().argsort()[: int(self.share * len(stats))]
        return weight.index_fill(1, least, 0.0)

    def nbytes(self, rows: int, columns: int, dtype: torch.dtype, device: str) -> int:
        return rows * columns * dtype.itemsize


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    return Weights(checkpoint=read_spec(make(tmp_path_factory.mktemp("model"))).checkpoint)


@pytest.fixture(scope="module")
def net(weights: Weights) -> Elastic:
    return loaded(weights)


def loaded(weights: Weights) -> Elastic:
    net, vq = weights.checkpoint.modules()
    load(weights, net, vq, EVERYTHING)
    return net


def drawing(words: int, seed: int) -> Sequence:
    """``words`` of text and 16 codes, some of both masked."""
    rng, length = torch.Generator().manual_seed(seed), words + 16
    spans = (
        Span(kind=Kind.TEXT, start=0, stop=words, name="text", writable=True),
        Span(kind=Kind.CODE, start=words, stop=length, name="picture", writable=True, grid=(4, 4)),
    )
    ids, masked = torch.randint(20, (length,), generator=rng), torch.arange(length) % 2 == 0
    return Sequence(ids=ids, masked=masked, spans=spans)


def everything(name: str) -> bool:
    return True


def joint(*words: int) -> Batch:
    return collate([drawing(n, seed=n) for n in words], words)


def test_every_linear_layer_of_both_branches_is_measured(net: Elastic) -> None:
    stats = calibrate(net, [joint(5)], everything)
    wanted = {n: m for n, m in net.named_modules() if isinstance(m, nn.Linear) and not n.startswith("vision")}
    assert set(stats) == set(wanted) and {"text_head", "blocks.0.out"} < set(stats)
    for name, h in stats.items():
        assert h.shape == (wanted[name].in_features,) * 2 and h.dtype == torch.float32
        assert torch.equal(h, h.T) and float(h.diagonal().sum()) > 0


def test_the_statistics_are_those_of_the_inputs(net: Elastic) -> None:
    batch = joint(5)
    hidden_ND = net(batch).scored[Kind.TEXT].hidden.detach()
    stats = calibrate(net, [batch], lambda name: name == "text_head")
    torch.testing.assert_close(stats["text_head"], hidden_ND.T @ hidden_ND)


def test_batches_add_up_and_padding_has_no_part(net: Elastic) -> None:
    together = calibrate(net, [joint(3, 9)], everything)
    short, long = calibrate(net, [joint(3)], everything), calibrate(net, [joint(9)], everything)
    assert set(together) == set(short)
    for name, h in together.items():
        torch.testing.assert_close(h, short[name] + long[name])


def test_clean_batches_reach_the_heads_by_their_target(net: Elastic) -> None:
    batch = joint(5)
    clean = batch.replace(masked=torch.zeros_like(batch.masked), target=batch.writable)
    assert float(calibrate(net, [clean], everything)["text_head"].diagonal().sum()) > 0


def test_the_network_is_left_as_it_was(net: Elastic) -> None:
    with pytest.raises((RuntimeError, IndexError)):
        calibrate(net, [joint(5).replace(ids=torch.zeros(1, 1))], everything)
    assert not any(m._forward_pre_hooks for m in net.modules())


def test_choosing_no_layer_is_an_error(net: Elastic) -> None:
    with pytest.raises(ValueError, match="chooses no linear layer"):
        calibrate(net, [], lambda name: False)


def test_a_quantiser_gets_the_statistics_of_its_layer(weights: Weights, net: Elastic) -> None:
    stats = calibrate(net, [joint(5)], everything)
    pruned = Pruned(share=0.25)
    storage = WeightStorage(quantise={"gen": pruned}, stats=stats)
    chosen = Weights(checkpoint=weights.checkpoint, storage=storage)
    got, plain = dict(loaded(chosen).named_parameters()), dict(net.named_parameters())
    changed = {name.removesuffix(".weight") for name, p in got.items() if not torch.equal(p, plain[name])}
    assert changed == {name for name in stats if ".gen." in name}
    for name in changed:
        assert torch.equal(got[f"{name}.weight"], pruned(plain[f"{name}.weight"], stats[name]))
    assert options_of(storage) == "--quantise gen=pruned"
    assert "pruned" in {s.dtype for s in footprint(chosen, EVERYTHING)}


def test_float_values_of_quantised_weights() -> None:
    pytest.importorskip("torchao")
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    assert restored(weight) is weight and restored(wrapped := nn.Parameter(weight)) is wrapped
    rounded = restored(RoundToNearest(bits=8)(weight, None))
    assert type(rounded) is Tensor and 0 < float((rounded - weight).abs().max()) < 0.03


def test_other_bits_are_an_error() -> None:
    with pytest.raises(ValueError, match="3 bits is not supported; use 8 or 4"):
        RoundToNearest(bits=3)
