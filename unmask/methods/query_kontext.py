"""Query-Kontext: a drawing network that reads learned query tokens of an understanding model, and pictures at shifted positions.

Paper: Song et al., "Query-Kontext: An Unified Multimodal Model for Image Generation and Editing", 2025, arXiv 2509.26641. No code was
released.

Equations: learned queries stand behind the inputs of an understanding model; a connector of two layers makes conditions of its states, of
words and queries. The drawing network predicts the velocity of x_t = (1 - t) x0 + t noise, loss |v - (noise - x0)|^2, from the conditions
and the low-level tokens of given pictures, which stand at positions of their own:

    target (i, j)        source of an edit (-i, -j)        n-th reference (i + w n, j + h n), for a picture of h rows and w columns

so that a source shares one position with the target, and a reference none. Three stages: a light drawing network with connector, queries
and adapters of the understanding model; a new large one, adapters merged and frozen; low-level tokens join, with adapters on the drawing
network.

What changes: the conditions of a drawing network, the positions of given pictures (``placed``, for networks with rows and columns), and
what is trained when (``STAGES``).

What it costs: the queries lengthen the understanding model's input (128 in the paper), and each given picture the drawing network's.

The paper shifts rows by the width and columns by the height, as above; positions of pictures stay distinct also where they are not square.

Shapes: B rows · L tokens · D numbers of a position.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unmask.corruption.flow import straight
from unmask.methods.card import Card
from unmask.sequence import Batch
from unmask.step import Loss


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Positions of the tokens of one picture, each [rows columns, 2], row by row."""

    rows: int
    columns: int

    def target(self) -> Tensor:
        return torch.cartesian_prod(torch.arange(self.rows), torch.arange(self.columns)).view(-1, 2)

    def source(self) -> Tensor:
        """Of the picture that is edited."""
        return -self.target()

    def reference(self, number: int) -> Tensor:
        """Of the ``number``-th picture to take content from, from 1 on. ValueError below 1, where it would lie on the target."""
        if number < 1:
            raise ValueError(f"references are numbered from 1 on, got {number}; the target itself has number 0")
        return self.target() + number * torch.tensor([self.columns, self.rows])


def placed(batch: Batch, places: Mapping[str, Tensor]) -> Batch:
    """The batch with the rows and columns of some spans given: name -> [tokens, 2]. For networks whose positions have rows and columns.

    ValueError for a span that is absent, or another number of tokens.
    """
    own = batch.position[..., None].expand(-1, -1, 2) if batch.axes is None else batch.axes
    axes, found = own.clone(), set[str]()
    for row, table in enumerate(batch.span_table):
        for span in table:
            if span.name in places:
                if len(places[span.name]) != len(span):
                    raise ValueError(f"{span.name} has {len(span)} tokens, got {len(places[span.name])} places")
                axes[row, span.start : span.stop] = places[span.name].to(axes)
                found.add(span.name)
    if missing := places.keys() - found:
        raise ValueError(
            f"no row has a span {min(missing)!r}; there are {', '.join(s.name for s in batch.span_table[0])}"
        )
    return batch.replace(axes=axes)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """``trained``: starts of the names of the parameters that are trained; all others are frozen."""

    trained: tuple[str, ...]

    def __call__(self, model: nn.Module) -> None:
        """Set what is trained, in place. ValueError where a start fits no parameter."""
        names = [name for name, _ in model.named_parameters()]
        for start in self.trained:
            if not any(name.startswith(start) for name in names):
                raise ValueError(f"no parameter is called {start!r}...; their names are like {', '.join(names[:3])}")
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.startswith(self.trained))


# For the parts ``tokens`` (queries and connector), ``adapters`` (of the understanding model), ``drawing`` and ``drawing_adapters``.
STAGES = (
    Stage(trained=("tokens.", "adapters.", "drawing.")),
    Stage(trained=("tokens.", "drawing.")),
    Stage(trained=("tokens.", "drawing_adapters.")),
)


@dataclass(frozen=True, kw_only=True)
class Conditioned:
    """A batch. ``clean`` [B, L, D]: values of the target · ``condition`` [B, C, W]: of the understanding model, or what it is made of."""

    clean: Tensor
    condition: Tensor


def flow_loss(velocity: Tensor, x0: Tensor, noise: Tensor) -> Tensor:
    """The mean squared error of a velocity."""
    return (velocity - (noise - x0)).square().mean()


@dataclass(frozen=True, kw_only=True)
class FlowMatching:
    """The objective; the model is (x, t [B], condition) -> velocity. ``times``: maps uniform numbers to times."""

    times: Callable[[Tensor], Tensor] = torch.clone

    def __call__(self, model: nn.Module, batch: Conditioned, rng: torch.Generator) -> Loss:
        x0 = batch.clean
        t = self.times(torch.rand(len(x0), generator=rng)).to(x0)
        noise = torch.randn(x0.shape, generator=rng).to(x0)
        x = straight(x0, noise, t.view(-1, *[1] * (x0.dim() - 1)))
        loss = flow_loss(model(x, t, batch.condition), x0, noise)
        return Loss(total=loss, terms={"velocity": loss.detach()}, counts={"velocity": x0.numel()})


CARD = Card(
    title="Query-Kontext: An Unified Multimodal Model for Image Generation and Editing",
    paper="arXiv 2509.26641",
    year=2025,
    changes="conditions: query tokens of an understanding model, and given pictures at shifted positions of a drawing network",
    claim="Query tokens carry reasoning, low-level tokens carry appearance, and both are trained in three stages.",
    status="reference",
    figure="right codes of objects that a small model draws anew, 3 seeds: queries in place of words change them by -.416 [-.733, "
    "-.099], beside words by -.004 [-.248, .239]; given codes change the rest of edits by -.002 [-.013, .009]; pictures right "
    "in every code .220 after three stages, .497 trained at once with as many updates: -.278 [-.551, -.004]",
    recipe="query_kontext.editor",
    python="from unmask.methods.query_kontext import STAGES, FlowMatching, Grid, placed",
)
