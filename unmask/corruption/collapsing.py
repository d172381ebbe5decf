"""Text and a picture in one process (spec 3.3): at time ``at`` the fully masked picture collapses into one token that announces it.

Public idea: ``Collapsing(at=.5, announce=id)``, t_exp and the id of ``[exp]``. Below t_exp a row holds its text and the picture, above
it the text with the token in the picture's place. At time t

    a text token is masked with probability t,
    a code with probability t / t_exp, so that at t_exp all are,
    the token with probability (t - t_exp) / (1 - t_exp), so that at t_exp it is not: a token that is expanded is unmasked.

The two sides differ in length, so a source builds the rows, a share ``share()`` of them collapsed, and ``times`` draws a time from the
side of each row. Together, rows and times have the distribution of a process that draws the time first. The paper prints the direction
of the inequality both ways; this is the one of its figures and of its sampling algorithm. The paper does not give the distribution
of t_exp; here it is one value.
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
    """``at``: t_exp · ``announce``: the text id of a collapsed picture · ``policy``: of a row's time, one for words and picture.

    It takes the place of ``Absorbing`` in an objective. ValueError for a t_exp that is not inside 0..1.
    """

    at: float
    announce: int
    policy: Policy = Uniform()

    def __post_init__(self) -> None:
        if not 0 < self.at < 1:
            raise ValueError(f"t_exp lies between 0 and 1, got {self.at}; 0.5 shows both sides equally often")

    def share(self) -> float:
        """The share of collapsed rows: the probability of a time of t_exp or more."""
        return float((self.policy((torch.arange(_GRID) + 0.5) / _GRID) >= self.at).float().mean())

    def collapsed(self, batch: Batch) -> Tensor:
        """Writable tokens that announce a picture: bool [B, L]."""
        ids = batch.ids if batch.clean is None else batch.clean  # a dropout may have replaced it
        return batch.writable & batch.valid & (batch.kind == Kind.TEXT) & (ids == self.announce)

    def times(self, batch: Batch, rng: torch.Generator) -> Tensor:
        """A time for every row, on its own side of t_exp, spread over its tokens: [B, L]. A row without a picture has any time."""
        above = self.collapsed(batch).any(1).cpu()
        below = (batch.writable & batch.valid & (batch.kind == Kind.CODE)).any(1).cpu()
        all_times = self.policy((torch.arange(_GRID) + torch.rand(_GRID, generator=rng)) / _GRID)
        late = all_times >= self.at
        time = torch.zeros(batch.rows)
        for rows, some in ((above, all_times[late]), (below, all_times[~late]), (~above & ~below, all_times)):
            if bool(rows.any()) and not len(some):
                raise ValueError(f"{self.policy} has no time on one side of t_exp {self.at}; move t_exp")
            if bool(rows.any()):
                time[rows] = some[torch.randint(len(some), (int(rows.sum()),), generator=rng)]
        return self.spread(batch, time)

    def spread(self, batch: Batch, time_B: Tensor) -> Tensor:
        """The masking probability of every token at its row's time, [B, L]."""
        time = time_B.to(batch.device)[:, None].expand_as(batch.ids)
        time = torch.where(batch.kind == Kind.CODE, (time / self.at).clamp(max=1.0), time)
        return torch.where(self.collapsed(batch), ((time - self.at) / (1 - self.at)).clamp(min=0.0), time)

    def corrupt(self, clean: Batch, time: Tensor, rng: torch.Generator) -> Batch:
        """As ``Absorbing.corrupt``; ``time [B]`` is spread, ``[B, L]`` taken as it is."""
        return Absorbing().corrupt(clean, self.spread(clean, time) if time.dim() == 1 else time, rng)
