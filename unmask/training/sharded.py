"""FSDP2: weights, gradients, moments and averages of a model in shards, one per process.

Public idea: ``Sharded`` is ``optim.Masters`` for a model that does not fit into one process: the same methods, the same state. Each layer
is a unit of its own (``torch.distributed.fsdp.fully_shard``); its weights are float32 shards, gathered in the type of the computation
while the layer runs. So the processes must run the same layers in the same order: ``agree`` compares what they are about to do.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from unmask.recipe import Optim
from unmask.training.layers import layers
from unmask.training.optim import NotFinite, adam, freeze_others, refuse_other, update, weight_of_average


def agree(batch: object) -> None:
    """ValueError where the processes hold batches of different tasks: a process would deadlock at a layer that another does not run."""
    tasks = sorted(map(str, batch)) if isinstance(batch, Mapping) else []
    found: list[list[str]] = [[]] * dist.get_world_size()
    dist.all_gather_object(found, tasks)
    if any(other != found[0] for other in found):
        raise ValueError(
            f"training.shard needs the same tasks in every source batch, and process {dist.get_rank()} has {', '.join(tasks)} "
            f"while process 0 has {', '.join(found[0])}; give every part of the mixture every=1"
        )


class Sharded:
    """The weights of a module as float32 shards, Adam's moments and the averages likewise. The module itself holds the masters."""

    def __init__(
        self,
        module: nn.Module,
        optim: Optim,
        trainable: Callable[[str], bool],
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """Moves the module to ``device`` and shards it over all processes. ``dtype``: of the computation; gradients are summed in float32.

        ValueError where nothing is left to train, and for moments in 8 bits: their scales cannot be divided among other processes.
        """
        if optim.bits == 8:
            raise ValueError("optim.bits=8 does not work with training.shard; leave out one of them")
        self.optim, self.weight = optim, 0.0
        warnings.filterwarnings(
            "ignore", "FSDP2-wrapped module .* returned a view tensor"
        )  # nothing here works in place
        freeze_others(module, trainable)
        module.to(device)
        policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
        for layer in layers(module):
            fully_shard(layer, mp_policy=policy)
        fully_shard(
            module, mp_policy=policy, reshard_after_forward=False
        )  # an objective uses the heads after the forward pass
        if hasattr(module, "hidden_states"):  # protocols.Headless
            register_fsdp_forward_method(module, "hidden_states")
        self.units = [part for part in module.modules() if isinstance(part, FSDPModule)]
        for unit in self.units:
            unit.set_gradient_divide_factor(1.0)  # sums: the weights of the batches make the mean
            unit.set_force_sum_reduction_for_comms(True)
        named = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
        self.names, self.master = [n for n, _ in named], [p for _, p in named]
        self.frozen = {n: p.detach() for n, p in module.named_parameters() if not p.requires_grad}
        stored = module.state_dict().keys()
        self.buffers = {n: b for n, b in module.named_buffers() if n in stored}
        self.average = [p.detach().clone() for p in self.master]
        self.kept: list[Tensor] = []
        self.adam = adam(optim, self.names, self.master, fused=False)

    def backward(self, total: Tensor, weight: float) -> None:
        """Add the gradient of a loss, times ``weight``, to the sum that the next ``step`` divides by the sum of weights."""
        (total * weight).backward()
        self.weight += weight

    @torch.no_grad()
    def step(self, lr: float, number: int, sum_: Callable[[Tensor], Tensor]) -> float:
        """As ``Masters.step``."""
        for p in self.master:
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        gradients = [p.grad for p in self.master if p.grad is not None]
        count = sum_(torch.tensor(self.weight, dtype=torch.float64))
        self.weight = 0.0
        if float(count) not in (0, 1):
            torch._foreach_div_([_local(g) for g in gradients], float(count))
        squares = sum_(torch.stack([_local(g).square().sum() for g in gradients]).double().cpu())
        norm = math.sqrt(float(squares.sum())) if math.isfinite(float(squares.sum())) else math.nan
        if not math.isfinite(norm):
            bad = [n for n, s in zip(self.names, squares.tolist(), strict=True) if not math.isfinite(s)]
            self.adam.zero_grad(set_to_none=True)
            raise NotFinite(f"the gradient of {bad[0]} is not finite" if bad else "the gradient's norm is not finite")
        if (factor := self.optim.clip / (norm + 1e-6)) < 1:
            torch._foreach_mul_([_local(g) for g in gradients], factor)
        update(self.adam, lr)
        self.adam.zero_grad(set_to_none=True)
        if self.optim.ema:
            ours, masters = ([_local(t) for t in some] for some in (self.average, self.master))
            torch._foreach_lerp_(ours, masters, weight_of_average(self.optim, number))
        return norm

    def sync(self) -> None:
        """Bring the masters back after ``show_average``."""
        for p, kept in zip(self.master, self.kept, strict=False):
            _local(p).copy_(kept)
        self.kept = []
        self._forget_gathered()

    def show_average(self) -> None:
        """Show the weights to evaluate; ``sync`` brings the masters back."""
        self.kept = [_local(p).clone() for p in self.master]
        for p, average in zip(self.master, self._shipped(), strict=True):
            _local(p).copy_(_local(average))
        self._forget_gathered()

    def _forget_gathered(self) -> None:
        """Weights that were gathered for a forward pass, and kept for the heads, are those of before."""
        for unit in self.units:
            unit.reshard()

    def _shipped(self) -> list[Tensor]:
        return self.average if self.optim.ema else list(self.master)

    def state(self) -> dict[str, Tensor]:
        """The entries of ``Masters.state``: shards (``DTensor``), and whole the counts of steps and the buffers. The module's own tensors,
        not copies of them.
        """
        out: dict[str, Tensor] = {}
        for p, average, name in zip(self.master, self.average, self.names, strict=True):
            moments = self.adam.state[p]
            out |= {f"master.{name}": p.detach(), f"average.{name}": average}
            out |= {f"{k}.{name}": moments.get(k, torch.zeros_like(average)) for k in ("exp_avg", "exp_avg_sq")}
            out[f"step.{name}"] = moments.get("step", torch.tensor(0.0))
        return out | {f"buffer.{name}": buffer for name, buffer in self.buffers.items()}

    @torch.no_grad()
    def load(self, state: dict[str, Tensor]) -> None:
        """The inverse of ``state``, from shards or from whole tensors. ValueError as in ``Masters.load``."""
        refuse_other(state, self.state())
        for p, average, name in zip(self.master, self.average, self.names, strict=True):
            _local(p).copy_(_local(_like(p, state[f"master.{name}"])))
            _local(average).copy_(_local(_like(p, state[f"average.{name}"])))
            moments = {k: _like(p, state[f"{k}.{name}"]) for k in ("exp_avg", "exp_avg_sq")}
            self.adam.state[p] = moments | {"step": state[f"step.{name}"].clone()}
        for name, buffer in self.buffers.items():
            buffer.copy_(state[f"buffer.{name}"])

    def averaged(self) -> dict[str, Tensor]:
        """The weights to evaluate and export, whole and on the CPU. All processes must call it."""
        frozen = {name: _whole(p) for name, p in self.frozen.items()}
        return frozen | {n: _whole(p) for n, p in zip(self.names, self._shipped(), strict=True)}


def _local(tensor: Tensor) -> Tensor:
    """This process's shard; the storage is shared."""
    if isinstance(tensor, DTensor):
        tensor = tensor.to_local()
    return tensor.detach()


def _whole(tensor: Tensor) -> Tensor:
    """All shards of a tensor, on the CPU."""
    tensor = tensor.detach()
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).cpu()


def _like(shard: Tensor, whole: Tensor) -> Tensor:
    """A whole tensor in shards like those of ``shard``; one that is in shards is returned as it is."""
    assert isinstance(shard, DTensor)
    return (
        whole
        if isinstance(whole, DTensor)
        else distribute_tensor(whole.to(shard.device), shard.device_mesh, shard.placements)
    )
