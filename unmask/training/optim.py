"""AdamW over float32 master weights, with clipping, an average of the weights, and the learning-rate schedule.

Public idea: ``Masters`` owns everything that a checkpoint stores; the module holds a working copy in its own dtype.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from unmask.models.lora import is_quantised
from unmask.recipe import Optim


class NotFinite(ValueError):
    """A gradient, weight or moment that is infinite or not a number."""


def rate(optim: Optim, step: int, steps: int) -> float:
    """Learning rate at a step: linear warm-up, constant until ``decay_from``, then cosine down to ``floor * lr``."""
    warm = min(1.0, (step + 1) / max(optim.warmup, 1))
    start = optim.decay_from * steps
    done = min(1.0, max(0.0, (step - start) / max(steps - start, 1)))
    return optim.lr * warm * (optim.floor + (1 - optim.floor) * 0.5 * (1 + math.cos(math.pi * done)))


def _rounds(weight: Tensor, dtype: torch.dtype | None) -> bool:
    """Whether a cast to ``dtype`` changes any value. Quantised weights only take another type to compute in."""
    if is_quantised(weight):
        return False
    return dtype is not None and weight.is_floating_point() and not torch.equal(weight, weight.to(dtype).to(weight))


def move_module(module: nn.Module, device: torch.device | str | None, dtype: torch.dtype | None) -> None:
    """Move a module to ``device`` and its float parameters to ``dtype`` (None: unchanged). Buffers keep their dtype: in bfloat16 a table
    of times would lose digits, and what is exported with it. Batch norm is the exception: it computes in the type of its statistics.
    """
    module.to(device=device)
    for p in module.parameters():
        if p.is_floating_point():
            p.data = p.data.to(dtype or p.dtype)
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._NormBase):
            part.to(dtype=dtype)


def refuse_other(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """ValueError for a checkpoint whose entries do not have the names, shapes and types of ``wanted``."""
    for name, tensor in wanted.items():
        found = state.get(name)
        if found is None or found.shape != tensor.shape or found.dtype != tensor.dtype:
            there = "missing" if found is None else f"{_form(found)}, not {_form(tensor)}"
            raise ValueError(f"the checkpoint does not fit this recipe: {name} is {there}; choose another --out")
    if unknown := set(state) - set(wanted):
        raise ValueError(
            f"the checkpoint does not fit this recipe, which trains nothing like {min(unknown)}; choose another --out"
        )


def weight_of_average(optim: Optim, number: int) -> float:
    """How far the average moves towards the weights at an update: fast at first, or the first weights would dominate a short run."""
    return 1 - min(optim.ema, (1 + number) / (10 + number))


def _form(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def freeze_others(module: nn.Module, trainable: Callable[[str], bool]) -> None:
    """Freeze the parameters that ``trainable`` leaves out; what an adapter has frozen stays frozen. ValueError where none is left."""
    for name, p in module.named_parameters():
        p.requires_grad_(p.requires_grad and trainable(name))
    if not any(p.requires_grad for p in module.parameters()):
        raise ValueError("the recipe leaves nothing to train: no parameter passes its `adapt` and `trainable`")


def adam(optim: Optim, names: Sequence[str], weights: Sequence[Tensor], *, fused: bool) -> torch.optim.Optimizer:
    """AdamW over float32 weights, one group for each factor of the learning rate. ``names``: of the weights · ``fused``: one kernel for
    all; shards take the loop over lists instead.
    """
    betas, decay = (optim.beta1, optim.beta2), optim.weight_decay
    by_factor: dict[float, list[Tensor]] = {}
    for name, weight in zip(names, weights, strict=True):
        by_factor.setdefault(optim.factor(name), []).append(weight)
    groups = [{"params": members, "factor": factor} for factor, members in by_factor.items()]
    if optim.bits == 8:
        from unmask.training.low_bits import adam8

        return adam8(optim, groups)
    return torch.optim.AdamW(
        groups,
        lr=optim.lr,
        betas=betas,
        eps=1e-8,
        weight_decay=decay,
        fused=fused or None,
        foreach=None if fused else True,
    )


def update(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """One step at this learning rate, times the factor of each group."""
    in_tensor = isinstance(optimizer.param_groups[0]["lr"], Tensor)  # torchao's 8 bits
    for group in optimizer.param_groups:
        wanted = lr * group["factor"]
        group["lr"] = torch.full_like(group["lr"], wanted) if in_tensor else wanted
    on_cpu = optimizer.param_groups[0]["params"][0].device.type == "cpu"
    with (
        torch.compiler.set_stance("force_eager") if in_tensor and on_cpu else nullcontext()
    ):  # else it compiles its step
        optimizer.step()


class Masters:
    """float32 master weights, Adam moments and averages of a module's trainable parameters."""

    def __init__(
        self,
        module: nn.Module,
        optim: Optim,
        trainable: Callable[[str], bool],
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        """Moves the module to ``device`` and its parameters to ``dtype`` (None: unchanged). The masters are on ``device`` and keep the
        unrounded weights; buffers are those of the module, whatever training does to them.

        ``trainable``: parameter name -> whether it trains; one that the module has frozen stays frozen. ValueError where none is left.
        """
        self.optim, self.weight = optim, 0.0
        freeze_others(module, trainable)
        named = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
        self.names = [n for n, _ in named]
        # Frozen weights are returned as they were given; where ``dtype`` does not round them, the module's own serve.
        frozen = {n: p.detach() for n, p in module.named_parameters() if not p.requires_grad}
        kept = {n: p for n, p in frozen.items() if _rounds(p, dtype)}
        self.master = [p.detach().to(device or p.device, torch.float32, copy=True) for _, p in named]
        move_module(module, device, dtype)
        stored = module.state_dict().keys()
        self.buffers = {n: b for n, b in module.named_buffers() if n in stored}
        self.params = [p for p in module.parameters() if p.requires_grad]
        self.frozen = {n: p.detach() for n, p in module.named_parameters() if n in frozen} | kept
        self.average = [m.clone() for m in self.master]
        self.adam = adam(optim, self.names, self.master, fused=True)

    def sync(self) -> None:
        """Copy the masters into the module."""
        with torch.no_grad():
            torch._foreach_copy_(list[Tensor](self.params), self.master)

    def gather(self, weight: float = 1) -> None:
        """Take the module's gradients, times ``weight``, into the sum that the next ``step`` divides by the sum of weights."""
        for m, p in zip(self.master, self.params, strict=True):
            if p.grad is None:
                continue
            gradient = p.grad.float() if weight == 1 else p.grad.float() * weight
            p.grad = None
            m.grad = gradient if m.grad is None else m.grad.add_(gradient)
        self.weight += weight

    def backward(self, total: Tensor, weight: float) -> None:
        """Compute the gradient of a loss and gather it with this weight."""
        total.backward()
        self.gather(weight)

    def step(
        self,
        lr: float,
        number: int,
        sum_: Callable[[Tensor], Tensor] = lambda weight: weight,
    ) -> float:
        """Update ``number`` from the gathered gradients, or else from the module's; returns their norm before clipping.

        ``sum_``: a tensor on the CPU -> its sum over the processes, whose gradients are summed already. NotFinite for a norm that is not
        finite: the gradients are dropped, and weights, moments and averages are as before.
        """
        if not self.weight and any(p.grad is not None for p in self.params):
            self.gather()
        for m in self.master:
            m.grad = torch.zeros_like(m) if m.grad is None else m.grad
        gradients = [m.grad for m in self.master if m.grad is not None]
        weight = float(sum_(torch.tensor(self.weight, dtype=torch.float64)))
        if weight not in (0, 1):
            torch._foreach_div_(gradients, weight)
        self.weight = 0.0
        total = nn.utils.get_total_norm(gradients)
        norm = float(total)
        if not math.isfinite(norm):
            bad = [n for n, g in zip(self.names, gradients, strict=True) if not bool(g.isfinite().all())]
            self.adam.zero_grad(set_to_none=True)
            raise NotFinite(f"the gradient of {bad[0]} is not finite" if bad else "the gradient's norm is not finite")
        nn.utils.clip_grads_with_norm_(self.master, self.optim.clip, total)
        update(self.adam, lr)
        self.adam.zero_grad(set_to_none=True)
        if self.optim.ema:
            torch._foreach_lerp_(self.average, self.master, weight_of_average(self.optim, number))
        self.sync()
        return norm

    def show_average(self) -> None:
        """Copy the weights to evaluate into the module; ``sync`` brings the masters back."""
        with torch.no_grad():
            torch._foreach_copy_(list[Tensor](self.params), self._shipped())

    def _shipped(self) -> list[Tensor]:
        return self.average if self.optim.ema else self.master

    def state(self) -> dict[str, Tensor]:
        """Everything a resumed run needs, by name; on the masters' device. The masters' own tensors, not copies of them. Moments in 8 bits
        are two entries, the codes and the scales.
        """
        out: dict[str, Tensor] = {}
        for name, master, average in zip(self.names, self.master, self.average, strict=True):
            moments = self.adam.state[master]
            out |= {f"master.{name}": master.detach(), f"average.{name}": average}
            for key in ("exp_avg", "exp_avg_sq"):
                moment = moments.get(key)
                out[f"{key}.{name}"] = torch.zeros_like(master) if moment is None else getattr(moment, "codes", moment)
                if hasattr(moment, "codes"):
                    out[f"{key}_scale.{name}"] = moment.scale
            out[f"step.{name}"] = moments.get("step", torch.tensor(0.0))
        return out | {f"buffer.{name}": buffer for name, buffer in self.buffers.items()}

    def load(self, state: dict[str, Tensor]) -> None:
        """The inverse of ``state``, from any device. ValueError names an entry that is missing, unknown or of another shape or type."""
        refuse_other(state, self.state())
        for name, master, average in zip(self.names, self.master, self.average, strict=True):
            master.data.copy_(state[f"master.{name}"])
            average.copy_(state[f"average.{name}"])
            moments = self.adam.state[master]
            for key in ("step", "exp_avg", "exp_avg_sq"):
                given = state[f"{key}.{name}"]
                if hasattr(moments.get(key), "codes"):
                    moments[key].codes.copy_(given)
                    moments[key].scale.copy_(state[f"{key}_scale.{name}"])
                else:
                    moments[key] = given.to(master.device, copy=True)
        for name, buffer in self.buffers.items():
            buffer.copy_(state[f"buffer.{name}"])
        self.sync()

    def averaged(self) -> dict[str, Tensor]:
        """The weights to evaluate and export: the running average (the masters with ``ema`` 0), and frozen weights as given."""
        return self.frozen | dict(zip(self.names, self._shipped(), strict=True))
