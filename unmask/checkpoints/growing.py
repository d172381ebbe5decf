"""A generation branch that begins as a copy of the understanding branch, and networks without the parts that a stage does not use.

Public idea: ``grow(net, checkpoint, codebook, rng)`` fills the generation branch and the code path of a network, ``pruned(net, needs)``
removes parameters. Lavida-O initialises the generation branch from truncated weights of the understanding branch (arXiv 2509.19244);
which rows and columns it takes is not published. The first ones are taken here, because the shared output projection serves the
generation branch with its first rows, too (spec 1.4, 3.4).
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn

from unmask.checkpoints.elastic import Checkpoint, rows_needed
from unmask.checkpoints.stream import read
from unmask.models.codes import init_codes
from unmask.models.elastic import Elastic, init


def pruned(net: Elastic, needs: frozenset[str]) -> Elastic:
    """The network with the parameters, and the rows of parameters, that tasks with these ``needs`` use; others are None. In place."""
    for name, p in list(net.named_parameters()):
        rows = rows_needed(name, p.shape[0], net.config, needs)
        path, _, attribute = name.rpartition(".")
        if rows < p.shape[0]:
            kept = nn.Parameter(p.detach()[:rows]) if rows else None
            net.get_submodule(path).register_parameter(attribute, kept)
    return net


def grow(net: Elastic, checkpoint: Checkpoint, codebook: Tensor, rng: Generator) -> None:
    """Give ``net`` a generation branch made of the understanding branch of ``checkpoint``, and a new code path that begins from the image
    tokenizer's ``codebook`` [V, d].

    Of every matrix the first rows and columns are copied, of every norm the first channels. Where the generation branch is the wider one,
    what the other lacks is random (``models.elastic.init``), as is the code path. CheckpointError for damaged files.
    """
    fresh = ("code_embedding", "code_head", *(f"blocks.{number}.gen" for number in range(net.config.layers)))
    for name in fresh:
        init(net.get_submodule(name), rng)
    init_codes(net.code_embedding, net.code_head, codebook, rng)
    for name, p in net.named_parameters():
        if ".gen." in name:
            _copy_corner(read(checkpoint.net[name.replace(".gen.", ".und.")], dtype=p.dtype), p)


@torch.no_grad()
def _copy_corner(source: Tensor, target: nn.Parameter) -> None:
    """The part of both tensors that begins at their first row and column."""
    corner = tuple(slice(min(a, b)) for a, b in zip(source.shape, target.shape, strict=True))
    target[corner] = source[corner]
