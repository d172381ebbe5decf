"""Words and a picture in one process (spec 3.3): at ``at`` the picture, all of it masked, becomes one token that announces it.

Public idea: ``Collapsing(at=.5, announce=id)``, t_exp and the id of ``[exp]``. Below t_exp a row holds its words and the picture, above
it the words with the token in the picture's place. At time t

    a word is masked with chance t,
    a code with chance t / t_exp, so that at t_exp all are,
    the token with chance (t - t_exp) / (1 - t_exp), so that at t_exp it is not: what is expanded there has been decided.

Lengths differ, so a source makes the rows, a share ``share()`` of them collapsed, and ``times`` gives each a time of its side; together
they are drawn as if the time had come first. The paper prints the direction of the inequality both ways; this is that of its
figures and of its sampling algorithm. It leaves the distribution of t_exp open, which is one value here.
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
        """How often a row is collapsed: the chance of a time of t_exp or more."""
        return float((self.policy((torch.arange(_GRID) + 0.5) / _GRID) >= self.at).float().mean())

    def collapsed(self, batch: Batch) -> Tensor:
        """Writable tokens that announce a picture: bool [B, L]."""
        ids = batch.ids if batch.clean is None else batch.clean  # a dropout may have hidden it
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
        """The chance of every token at its row's time, [B, L]."""
        time = time_B.to(batch.device)[:, None].expand_as(batch.ids)
        time = torch.where(batch.kind == Kind.CODE, (time / self.at).clamp(max=1.0), time)
        return torch.where(self.collapsed(batch), ((time - self.at) / (1 - self.at)).clamp(min=0.0), time)

    def corrupt(self, clean: Batch, time: Tensor, rng: torch.Generator) -> Batch:
        """As ``Absorbing.corrupt``; ``time [B]`` is spread, ``[B, L]`` taken as it is."""
        return Absorbing().corrupt(clean, self.spread(clean, time) if time.dim() == 1 else time, rng)
