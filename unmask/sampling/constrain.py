"""Answers that an automaton accepts: constrained decoding, exact at every step.

Public idea: ``Constrained(token_sampler=.., grammars=((span name, grammar), ..))``. A masked model says of every open token how probable
each id is, and nothing of how they go together. So all accepted answers, each weighed by the product of its tokens, are the paths
through a lattice of automaton states by token numbers. A forward and a backward pass over it give the distribution of every token
*among accepted answers that keep what is decided*, and one more pass the most probable answer: what is taken can always be completed.
The dynamic programme over automaton states and token numbers is the idea of DINGO (Suresh et al. 2025, arXiv 2505.23061), which takes
the most probable text; here any token sampler works on the distributions, and its tokens are then made to go together.

Shapes: N tokens of a span · V vocabulary · K kinds of tokens · S states · E edges.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from unmask.grammars.grammar import Grammar
from unmask.protocols import TokenSampler
from unmask.sampling.spans import wished
from unmask.sequence import Batch, Kind, Span
from unmask.step import Prediction, Progress, Proposal

_NEVER = -torch.inf


class NothingFits(ValueError):
    """No accepted answer has so few tokens, or none agrees with what is decided."""


@dataclass(frozen=True, kw_only=True)
class Constrained:
    """``draw`` with the text of some spans bound to grammars, by the names of the spans; all else is as ``draw`` has it.

    ``draw`` sees the logarithm of each token's probability among accepted answers, -inf where none has it. Its candidates are kept if they
    are an accepted answer together. If not, the surest is, with the most probable answer that has it; that is what counts where
    several tokens are taken at once. Spans of one name obey one grammar, in every row of the batch.
    """

    token_sampler: TokenSampler
    grammars: tuple[tuple[str, Grammar], ...]

    def predict(self, batch: Batch, block: Tensor, counts: Tensor) -> Tensor | None:
        return wished(self.token_sampler, batch, block, counts)

    def __call__(self, batch: Batch, prediction: Prediction, progress: Progress) -> Proposal:
        if Kind.TEXT not in prediction.scored:
            return self.token_sampler(batch, prediction, progress)
        known, bound = dict(self.grammars), []
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
                lattice = Lattice(known[span.name], *_state(batch, row, span, logits[here], scored))
                constrained[here] = lattice.posterior[scored].to(constrained)
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


def _state(batch: Batch, row: int, span: Span, logits_nV: Tensor, scored: list[int]) -> tuple[Tensor, Tensor]:
    """Of a span's tokens: ``logits [N, V]``, NaN where nothing was scored, and ``ids [N]``, -1 where masked. On the CPU."""
    part = slice(span.start, span.stop)
    ids = batch.ids[row, part].masked_fill(batch.masked[row, part], -1).cpu()
    logits = torch.full((len(span), logits_nV.shape[1]), torch.nan, dtype=torch.float64)
    logits[scored] = logits_nV.cpu().double()
    return logits, ids


class Lattice:
    """All accepted answers of one span. ``logits [N, V]``: NaN where the model was not asked · ``ids [N]``: -1 where undecided.

    A token of which nothing is known weighs nothing: any way through it is as good as another. In float64 and always on the
    CPU: sums over a GPU's threads would come out in another order each time.
    """

    def __init__(self, grammar: Grammar, logits_NV: Tensor, ids_N: Tensor) -> None:
        self.grammar, self.ids = grammar, ids_N
        size, self.width = len(grammar.kind_of), logits_NV.shape[1]
        self.silent = logits_NV[:, 0].isnan() & (ids_N < 0)
        self.logp = logits_NV[:, :size].nan_to_num(0.0, posinf=1e9, neginf=-1e9).log_softmax(1)
        kind_V = grammar.kind_of
        self.fits = (kind_V < grammar.kinds).nonzero()[:, 0]
        self.kind = kind_V[self.fits]
        self.sums, self.bests = self._weights(total=True), self._weights(total=False)

    @functools.cached_property
    def posterior(self) -> Tensor:
        """ln p(token n is v | the answer is accepted and keeps what is decided), [N, V], -inf for what cannot be."""
        g, tokens = self.grammar, len(self.ids)
        forward, backward = self._forward(self.sums, total=True), self._backward(self.sums)
        whole = forward[tokens][g.final].logsumexp(0)
        if not bool(whole.isfinite()):
            raise NothingFits(
                f"no accepted answer has {tokens} tokens, what is decided kept; it needs at least {g.least}, so give it more room"
            )
        out = torch.full((tokens, self.width), _NEVER, dtype=torch.float64)
        for n in range(tokens):
            through_E = forward[n][g.frm] + backward[n + 1][g.to]
            through_K = _gathered(through_E, g.kind, g.kinds, total=not bool(self.silent[n]))
            weight = torch.zeros(len(self.fits), dtype=torch.float64) if self.silent[n] else self.logp[n, self.fits]
            out[n, self.fits] = weight + through_K[self.kind] - whole
        return out

    def best(self, pinned: dict[int, int]) -> list[int]:
        """The most probable accepted answer in which token n is ``pinned[n]``; ids [N]. NothingFits where there is none."""
        g, weights = self.grammar, self.bests.clone()
        for n, token in pinned.items():
            weights[n] = _NEVER
            kind = int(g.kind_of[token])
            if kind < g.kinds:
                weights[n, kind] = 0.0
        forward = self._forward(weights, total=False)
        ending = forward[-1].masked_fill(~g.final, _NEVER)
        if not bool(ending.isfinite().any()):
            raise NothingFits(f"no accepted answer has the tokens {pinned} and what is decided")
        state, found = int(ending.argmax()), [0] * len(self.ids)
        for n in reversed(range(len(self.ids))):
            way_E = (forward[n][g.frm] + weights[n][g.kind]).masked_fill(g.to != state, _NEVER)
            edge = int(way_E.argmax())
            found[n] = pinned[n] if n in pinned else self._surest(n, int(g.kind[edge]))
            state = int(g.frm[edge])
        return found

    def together(self, asked: list[int], ids: list[int], score: list[float]) -> tuple[list[int], dict[int, float]]:
        """Candidates for the tokens ``asked`` that are one accepted answer, and the scores of those that had to change."""
        if self._accepts(dict(zip(asked, ids, strict=True))):
            return ids, {}
        surest = max(range(len(asked)), key=lambda i: (score[i], -i))
        whole = self.best({asked[surest]: ids[surest]})
        fitting, posterior = [whole[n] for n in asked], self.posterior
        changed = {i: float(posterior[asked[i], v]) for i, v in enumerate(fitting) if v != ids[i]}
        return fitting, changed

    def _accepts(self, given: dict[int, int]) -> bool:
        """Whether some accepted answer has all of these."""
        try:
            self.best(given)
        except NothingFits:
            return False
        return True

    def _weights(self, *, total: bool) -> Tensor:
        """ln of what the tokens of each kind weigh, summed or the best of them, [N, K]."""
        g, tokens = self.grammar, len(self.ids)
        known = torch.stack(
            [_gathered(self.logp[n, self.fits], self.kind, g.kinds, total=total) for n in range(tokens)]
        )
        known[self.silent] = 0.0
        for n in (self.ids >= 0).nonzero()[:, 0].tolist():
            known[n] = _NEVER
            token = int(self.ids[n])
            kind = int(g.kind_of[token]) if token < len(g.kind_of) else g.kinds
            if kind < g.kinds:
                known[n, kind] = 0.0
        return known

    def _forward(self, weights_NK: Tensor, *, total: bool) -> list[Tensor]:
        """ln of what leads to each state before each token, [S] each, N + 1 of them."""
        g = self.grammar
        at = torch.full((g.states,), _NEVER, dtype=torch.float64)
        at[0] = 0.0
        out = [at]
        for n, weights_K in enumerate(weights_NK):
            summed = total and not bool(self.silent[n])
            out.append(_gathered(out[-1][g.frm] + weights_K[g.kind], g.to, g.states, total=summed))
        return out

    def _backward(self, weights_NK: Tensor) -> list[Tensor]:
        """ln of what leads from each state before each token to an end, [S] each, N + 1 of them."""
        g = self.grammar
        out = [torch.zeros(g.states, dtype=torch.float64).masked_fill(~g.final, _NEVER)]
        for n in reversed(range(len(weights_NK))):
            way_E = out[-1][g.to] + weights_NK[n][g.kind]
            out.append(_gathered(way_E, g.frm, g.states, total=not bool(self.silent[n])))
        return out[::-1]

    def _surest(self, n: int, kind: int) -> int:
        """The id of a kind that stands for a token."""
        if int(self.ids[n]) >= 0:
            return int(self.ids[n])
        tokens = self.fits[self.kind == kind]
        return int(tokens[self.logp[n, tokens].argmax()])


def _gathered(value_E: Tensor, into_E: Tensor, size: int, *, total: bool) -> Tensor:
    """ln of the sum of exp(value), or the largest value, of all that goes into each place."""
    most = torch.full((size,), _NEVER, dtype=torch.float64).scatter_reduce(0, into_E, value_E, "amax")
    if not total:
        return most
    level = most.masked_fill(most == _NEVER, 0.0)
    return torch.zeros(size, dtype=torch.float64).index_add(0, into_E, (value_E - level[into_E]).exp()).log() + level
