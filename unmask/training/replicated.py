"""DDP: every process has the whole model, and the gradients of an update are summed while its last backward pass still runs.

Public idea: ``Replicated(module, masters, place)`` makes ``torch.nn.parallel.DistributedDataParallel`` do what ``Masters`` needs: sums in
float32, whatever the type of the computation, each batch times the number of its tokens.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from unmask.step import Loss
from unmask.training.optim import Masters


class _Next(nn.Module):
    """The next loss of a stream, as a forward pass: an objective calls its model as often and by as many methods as it likes."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.found: Loss | None = None
        like = next(p for p in module.parameters() if p.requires_grad)
        self.unused = nn.Parameter(like.new_zeros(1))  # DDP warns in every process where all parameters are used

    def forward(self, stream: Iterator[Loss]) -> Tensor:
        """The total of the loss; where the stream has ended, a zero that depends on a parameter, so that there is a backward pass."""
        self.found = next(stream, None)
        if self.found is not None:
            return self.found.total
        return next(p for p in self.module.parameters() if p.requires_grad).sum() * 0


class Replicated:
    """The gradients of several processes. All call ``take`` with ``last`` as often as the others; that is when they are summed."""

    def __init__(self, module: nn.Module, masters: Masters) -> None:
        self.masters, self.scale = masters, 1.0
        self.summed: list[tuple[list[Tensor], list[Tensor]]] = []
        self.number: dict[Tensor, int] = {p: i for i, p in enumerate(masters.params)}
        # A batch may leave parameters unused, another task's for example. With this the buckets also stay as they are at the start, so
        # that a run that continues sums in the same order.
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", "`broadcast_buffers` is deprecated"
            )  # torch 2.11 has no other name for it
            self.ddp = DistributedDataParallel(_Next(module), find_unused_parameters=True, broadcast_buffers=False)
        self.ddp.register_comm_hook(self, _start_sum)

    def take(self, stream: Iterator[Loss], last: bool, weigh: Callable[[Loss], float]) -> Loss | None:
        """Gather the gradient of a stream's next loss, times what ``weigh`` says; None where it has ended. ``last``: of this process in
        this update.
        """
        inner = self.ddp.module
        assert isinstance(inner, _Next)
        with nullcontext() if last else self.ddp.no_sync():
            total = self.ddp(stream)
            loss, inner.found = inner.found, None
            weight = self.scale = 0.0 if loss is None else weigh(loss)
            if last or loss is not None:
                total.backward()
        if last:
            self._keep(weight)
        elif loss is not None:
            used = [p for p in self.masters.params if p.grad is not None]
            self.masters.gather(weight)
            for (
                p
            ) in used:  # DDP has noted their use, and expects a gradient at the end even if no later batch uses them
                p.grad = torch.zeros_like(p)
        return loss

    def _keep(self, weight: float) -> None:
        """Give the masters the sums, which hold what this process gathered before."""
        for parameters, gradients in self.summed:
            for p, gradient in zip(parameters, gradients, strict=True):
                p.grad = None
                if p in self.number:
                    self.masters.master[self.number[p]].grad = gradient
        self.summed = []
        self.masters.weight += weight


def _start_sum(own: Replicated, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """Begin the sum of a bucket of gradients; DDP waits for it at the end of the backward pass.

    DDP reads the annotations, so this file does not postpone them.
    """
    given = bucket.buffer()
    whole = given.to(torch.float32, copy=True).mul_(own.scale)
    pieces = [
        torch.as_strided(whole, g.size(), g.stride(), g.storage_offset() - given.storage_offset())
        for g in bucket.gradients()
    ]
    for p, piece in zip(bucket.parameters(), pieces, strict=True):
        if p in own.number and (before := own.masters.master[own.number[p]].grad) is not None:
            piece.add_(before)
    own.summed.append((bucket.parameters(), pieces))
    return dist.all_reduce(whole, async_op=True).get_future().then(lambda done: given)
