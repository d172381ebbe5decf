"""The slow twin of ``grammars.lattice``: every edge of the automaton at every token, one tensor operation after the other."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from unmask.grammars.grammar import Grammar
from unmask.grammars.lattice import NothingFits

_NEVER = -torch.inf


class SlowLattice:
    """All accepted answers of one span. ``logits [N, V]``: NaN where the model gave no scores · ``ids [N]``: -1 where masked.

    A masked token without scores has weight 1 for every kind: it only has to be possible. Computed in float64 and always on the CPU,
    because the order of summation on a GPU changes from run to run.
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
        """ln p(token n is v | the answer is accepted and keeps the unmasked tokens), [N, V]; -inf for impossible tokens."""
        g, tokens = self.grammar, len(self.ids)
        forward, backward = self._forward(self.sums, total=True), self._backward(self.sums)
        whole = forward[tokens][g.final].logsumexp(0)
        if not bool(whole.isfinite()):
            raise NothingFits(
                f"no accepted answer has {tokens} tokens and keeps the unmasked ones; it needs at least {g.least}, so raise max_tokens"
            )
        out = torch.full((tokens, self.width), _NEVER, dtype=torch.float64)
        for n in range(tokens):
            through_E = forward[n][g.frm] + backward[n + 1][g.to]
            through_K = _gathered(through_E, g.kind, g.kinds, total=not bool(self.silent[n]))
            weight = torch.zeros(len(self.fits), dtype=torch.float64) if self.silent[n] else self.logp[n, self.fits]
            out[n, self.fits] = weight + through_K[self.kind] - whole
        return out

    def best(self, pinned: dict[int, int]) -> list[int]:
        """The most probable accepted answer in which token n is ``pinned[n]``; ids [N]. NothingFits if there is none."""
        g, weights = self.grammar, self.bests.clone()
        for n, token in pinned.items():
            weights[n] = _NEVER
            kind = int(g.kind_of[token])
            if kind < g.kinds:
                weights[n, kind] = 0.0
        forward = self._forward(weights, total=False)
        ending = forward[-1].masked_fill(~g.final, _NEVER)
        if not bool(ending.isfinite().any()):
            raise NothingFits(f"no accepted answer has the tokens {pinned} and keeps the unmasked ones")
        state, found = int(ending.argmax()), [0] * len(self.ids)
        for n in reversed(range(len(self.ids))):
            way_E = (forward[n][g.frm] + weights[n][g.kind]).masked_fill(g.to != state, _NEVER)
            edge = int(way_E.argmax())
            found[n] = pinned[n] if n in pinned else self._surest(n, int(g.kind[edge]))
            state = int(g.frm[edge])
        return found

    def together(self, asked: list[int], ids: list[int], score: list[float]) -> tuple[list[int], dict[int, float]]:
        """Candidates for the tokens ``asked`` that belong to one accepted answer, and the scores of those that had to change."""
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
        """ln weight of each kind of token, [N, K]: the sum over its tokens (``total``) or their maximum."""
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
        """ln weight of all paths (``total``) or of the best path to each state, before each token and at the end: N + 1 of [S]."""
        g = self.grammar
        at = torch.full((g.states,), _NEVER, dtype=torch.float64)
        at[0] = 0.0
        out = [at]
        for n, weights_K in enumerate(weights_NK):
            summed = total and not bool(self.silent[n])
            out.append(_gathered(out[-1][g.frm] + weights_K[g.kind], g.to, g.states, total=summed))
        return out

    def _backward(self, weights_NK: Tensor) -> list[Tensor]:
        """ln weight of all paths from each state to an accepting one, before each token and at the end: N + 1 of [S]."""
        g = self.grammar
        out = [torch.zeros(g.states, dtype=torch.float64).masked_fill(~g.final, _NEVER)]
        for n in reversed(range(len(weights_NK))):
            way_E = out[-1][g.to] + weights_NK[n][g.kind]
            out.append(_gathered(way_E, g.frm, g.states, total=not bool(self.silent[n])))
        return out[::-1]

    def _surest(self, n: int, kind: int) -> int:
        """The most probable token of a kind, or the unmasked token."""
        if int(self.ids[n]) >= 0:
            return int(self.ids[n])
        tokens = self.fits[self.kind == kind]
        return int(tokens[self.logp[n, tokens].argmax()])


def _gathered(value_E: Tensor, into_E: Tensor, size: int, *, total: bool) -> Tensor:
    """For each place: ln of the sum of exp(value) over the edges into it (``total``), or the maximum of their values."""
    most = torch.full((size,), _NEVER, dtype=torch.float64).scatter_reduce(0, into_E, value_E, "amax")
    if not total:
        return most
    level = most.masked_fill(most == _NEVER, 0.0)
    return torch.zeros(size, dtype=torch.float64).index_add(0, into_E, (value_E - level[into_E]).exp()).log() + level
