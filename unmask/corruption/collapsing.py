"""Text and an image in one process (spec 3.3): at time ``at`` the fully masked image collapses into one token that announces it.

Public idea: ``Collapsing(at=.5, announce=id)``, t_exp and the id of ``[exp]``. Below t_exp a row contains the text and the image, above
it the text and the token in place of the image. At time t

    a text token is masked with probability t,
    a code with probability t / t_exp, so all codes are masked at t_exp,
    the token with probability (t - t_exp) / (1 - t_exp), so it is unmasked at t_exp, where it expands.

Rows on the two sides of t_exp differ in length. A source therefore builds the rows, a share ``share()`` of them collapsed, and ``times``
draws a time on the side of each row. The joint distribution equals that of a process that draws the time first. The paper prints the
inequality in both directions; this module follows its figures and sampling algorithm. The paper does not give the distribution of
t_exp; here it is a constant.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from unmask.corruption.absorbing import Absorbing
from unmask.corruption.schedules import Policy, Uniform
from unmask.sequence import Batch, Kind

_GRID = 4096  # strata of the policy's uniform number


@dataclass(frozen=True, kw_only=True)
class Collapsing:
    """``at``: t_exp · ``announce``: the text id of a collapsed image · ``policy``: draws a row's time, shared by text and image.

    Replaces ``Absorbing`` in an objective. ValueError unless 0 < t_exp < 1.
    """

    at: float
    announce: int
    policy: Policy = Uniform()

    def __post_init__(self) -> None:
        if not 0 < self.at < 1:
            raise ValueError(f"t_exp must be between 0 and 1, got {self.at}; with 0.5 both sides are equally frequent")

    def share(self) -> float:
        """The share of collapsed rows: the probability of a time of t_exp or more."""
        return float((self.policy((torch.arange(_GRID) + 0.5) / _GRID) >= self.at).float().mean())

    def collapsed(self, batch: Batch) -> Tensor:
        """Writable tokens that announce an image: bool [B, L]."""
        ids = batch.ids if batch.clean is None else batch.clean  # guidance dropout may have replaced it
        return batch.writable & batch.valid & (batch.kind == Kind.TEXT) & (ids == self.announce)

    def times(self, batch: Batch, rng: torch.Generator) -> Tensor:
        """A time for every row on its side of t_exp, repeated for its tokens, [B, L]. Without an image both sides are possible."""
        above = self.collapsed(batch).any(1).cpu()
        below = (batch.writable & batch.valid & (batch.kind == Kind.CODE)).any(1).cpu()
        all_times = self.policy((torch.arange(_GRID) + torch.rand(_GRID, generator=rng)) / _GRID)
        late = all_times >= self.at
        time = torch.zeros(batch.rows)
        for rows, some in ((above, all_times[late]), (below, all_times[~late]), (~above & ~below, all_times)):
            if bool(rows.any()) and not len(some):
                raise ValueError(f"{self.policy} has no times on one side of t_exp {self.at}; change t_exp")
            if bool(rows.any()):
                time[rows] = some[torch.randint(len(some), (int(rows.sum()),), generator=rng)]
        return self.spread(batch, time)

    def spread(self, batch: Batch, time_B: Tensor) -> Tensor:
        """The masking probability of every token at its row's time, [B, L]."""
        time = time_B.to(batch.device)[:, None].expand_as(batch.ids)
        time = torch.where(batch.kind == Kind.CODE, (time / self.at).clamp(max=1.0), time)
        return torch.where(self.collapsed(batch), ((time - self.at) / (1 - self.at)).clamp(min=0.0), time)

    def corrupt(self, clean: Batch, time: Tensor, rng: torch.Generator) -> Batch:
        """As ``Absorbing.corrupt``; ``time [B]`` is repeated for all tokens, ``[B, L]`` is used unchanged."""
        return Absorbing().corrupt(clean, self.spread(clean, time) if time.dim() == 1 else time, rng)
