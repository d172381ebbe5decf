"""Constrained decoding with an automaton, exact at every step.

``Constrained(token_sampler=.., grammars=((span name, grammar), ..))``. A masked model predicts every masked token independently of the
others. Weigh every accepted answer by the product of its token probabilities; the answers are then the paths through a lattice of
automaton states by token positions. A forward-backward pass gives the distribution of each token *among accepted answers that keep the
unmasked tokens*, and a Viterbi pass the most probable answer, so a partly unmasked answer can always be completed.
The dynamic programme over automaton states and token positions is that of DINGO (Suresh et al. 2025, arXiv 2505.23061), which takes the
most probable text. Here any token sampler draws from the distributions, and its candidates are then made consistent with each other
(``grammars/lattice.py``).
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from unmask.grammars.grammar import Grammar
from unmask.grammars.lattice import Lattice, Paths, paths
from unmask.protocols import TokenSampler
from unmask.sampling.spans import wished
from unmask.sequence import Batch, Kind, Span
from unmask.step import Prediction, Progress, Proposal


@dataclass(frozen=True, kw_only=True)
class Constrained:
    """``token_sampler`` with the text of some spans constrained by grammars, given by span name; other tokens are left alone.

    ``token_sampler`` gets the log probability of each token among accepted answers, -inf for tokens in none of them. Its candidates are
    kept if some accepted answer has all of them. Otherwise the candidate with the highest score is kept, and the others come from the
    most probable answer that has it; this matters when several tokens are unmasked in one step. Spans with the same name share a grammar.
    """

    token_sampler: TokenSampler
    grammars: tuple[tuple[str, Grammar], ...]

    def predict(self, batch: Batch, block: Tensor, counts: Tensor) -> Tensor | None:
        return wished(self.token_sampler, batch, block, counts)

    def __call__(self, batch: Batch, prediction: Prediction, progress: Progress) -> Proposal:
        if Kind.TEXT not in prediction.scored:
            return self.token_sampler(batch, prediction, progress)
        known, bound = dict(self.grammars), list[tuple[int, Span, list[int], Lattice]]()
        at, logits = prediction.scored[Kind.TEXT].at, prediction.logits(Kind.TEXT)
        constrained = logits.to(torch.float32, copy=True)
        length = batch.ids.shape[1]
        for row, table in enumerate(batch.span_table):
            for span in table:
                if span.name not in known or not span.writable:
                    continue
                low, high = row * length + span.start, row * length + span.stop
                here = ((at >= low) & (at < high)).nonzero()[:, 0]
                if not len(here):
                    continue
                scored = (at[here] - low).tolist()
                ways = self._paths_of(span.name, len(span))
                fits = torch.from_numpy(ways.fits).to(logits.device)
                fitting = logits[here[:, None], fits].cpu().double().numpy()
                lattice = Lattice(ways, scored, fitting, _ids(batch, row, span))
                constrained[here] = -torch.inf
                constrained[here[:, None], fits] = torch.from_numpy(lattice.posterior(scored)).to(constrained)
                bound.append((row, span, scored, lattice))
        proposal = self.token_sampler(batch, prediction.with_logits({Kind.TEXT: constrained}), progress)
        ids, score = proposal.ids.clone(), proposal.score.clone()
        for row, span, scored, lattice in bound:
            place = torch.tensor(scored, device=ids.device) + span.start
            together, changed = lattice.together(scored, ids[row, place].tolist(), score[row, place].tolist())
            ids[row, place] = torch.tensor(together, device=ids.device)
            for i, value in changed.items():
                score[row, place[i]] = value
        return dataclasses.replace(proposal, ids=ids, score=score)

    def _paths_of(self, name: str, tokens: int) -> Paths:
        """The paths of a span, found at the first step and kept as long as this value lives."""
        grammar = dict(self.grammars)[name]
        if (id(grammar), tokens) not in self._paths:
            self._paths[id(grammar), tokens] = paths(grammar, tokens)
        return self._paths[id(grammar), tokens]

    @functools.cached_property
    def _paths(self) -> dict[tuple[int, int], Paths]:
        return {}


def _ids(batch: Batch, row: int, span: Span) -> list[int]:
    """The ids of a span, -1 where masked."""
    part = slice(span.start, span.stop)
    return batch.ids[row, part].masked_fill(batch.masked[row, part], -1).tolist()
