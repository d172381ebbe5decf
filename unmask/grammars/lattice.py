"""All accepted answers of one span as paths through automaton states by token positions, and what the model's logits say of them.

``paths(grammar, tokens)`` finds once which edges lie on an accepted answer of that many tokens. ``Lattice(paths, ..)`` then takes the
logits of a step: ``posterior(n)`` is the distribution of each token among the accepted answers, ``best(pinned)`` the most probable one,
``together(..)`` makes candidates belong to one answer. The work of a step grows with the number of these edges, not with the vocabulary
or with the edges of the automaton.

Everything is float64 on the CPU, because the order of summation on a GPU changes from run to run. A constant added to all logits of a
token does not change the result, so the logits are not normalised.

Shapes: N tokens of a span · M of them scored · F tokens of the vocabulary that fit somewhere · K kinds of tokens · E edges · S states.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unmask.grammars.grammar import Grammar

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]
Flags = NDArray[np.bool_]
_CHUNK = 2**20  # logits that are summed by kind at once: 8 MB
_NEVER = -np.inf


class NothingFits(ValueError):
    """No accepted answer has this many tokens, or none agrees with the unmasked tokens."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Level:
    """The edges of one token position, which lie between two levels of states. States are numbered within their level.

    ``frm``, ``to``, ``at``: of each edge, in the order of ``to``; ``at`` is its place in a table [N, K] of weights · ``into``: where the
    edges into each state begin · ``back``: the edges in the order of ``frm`` · ``out``: where those out of each state begin there ·
    ``same``: the edges in the order of their kinds · ``kinds``: those that there are · ``begin``: where each of them begins.
    """

    frm: Indices
    to: Indices
    at: Indices
    into: Indices
    back: Indices
    out: Indices
    same: Indices
    kinds: Indices
    begin: Indices


@dataclass(frozen=True, kw_only=True, eq=False)
class Paths:
    """The edges on accepted answers of N tokens. ``levels``: of each token · ``fits [F]``: tokens that fit somewhere, in the order of their
    kinds · ``kind [F]`` · ``begin``: where each kind of ``present`` begins among them.
    """

    grammar: Grammar
    levels: tuple[_Level, ...]
    fits: Indices
    kind: Indices
    present: Indices
    begin: Indices

    @property
    def edges(self) -> int:
        return sum(len(level.frm) for level in self.levels)


def paths(grammar: Grammar, tokens: int) -> Paths:
    """NothingFits if no accepted answer has so many tokens."""
    live_NS = _live(grammar, tokens)
    levels = tuple(_level(grammar, n, live_NS[n], live_NS[n + 1]) for n in range(tokens))
    kind_V = grammar.kind_of.numpy()
    fits = np.flatnonzero(kind_V < grammar.kinds)
    fits = fits[np.argsort(kind_V[fits], kind="stable")]
    kind = kind_V[fits]
    begin = _begins(kind)
    return Paths(grammar=grammar, levels=levels, fits=fits, kind=kind, present=kind[begin], begin=begin)


def _level(grammar: Grammar, n: int, live: Flags, after: Flags) -> _Level:
    """The edges of token n between live states."""
    frm, kind, to = (one.numpy() for one in (grammar.frm, grammar.kind, grammar.to))
    edge = np.flatnonzero(live[frm] & after[to])
    edge = edge[np.argsort(to[edge], kind="stable")]
    number_frm, number_to, own = (live.cumsum() - 1)[frm[edge]], (after.cumsum() - 1)[to[edge]], kind[edge]
    back, same = np.argsort(number_frm, kind="stable"), np.argsort(own, kind="stable")
    begin = _begins(own[same])
    return _Level(
        frm=number_frm,
        to=number_to,
        at=n * grammar.kinds + own,
        into=_begins(number_to),
        back=back,
        out=_begins(number_frm[back]),
        same=same,
        kinds=own[same][begin],
        begin=begin,
    )


def _live(grammar: Grammar, tokens: int) -> list[Flags]:
    """Which states lie on an accepted answer, before each token and at the end: N + 1 of [S]."""
    frm, to, final = (one.numpy() for one in (grammar.frm, grammar.to, grammar.final))
    reached = [np.arange(grammar.states) == 0]
    for _ in range(tokens):
        reached.append(np.zeros(grammar.states, dtype=bool))
        reached[-1][to[reached[-2][frm]]] = True
    if not (reached[-1] & final).any():
        raise NothingFits(_missing(tokens, grammar))
    reached[-1] &= final
    for n in reversed(range(tokens)):
        before = np.zeros(grammar.states, dtype=bool)
        before[frm[reached[n + 1][to]]] = True
        reached[n] &= before
    return reached


def _missing(tokens: int, grammar: Grammar) -> str:
    return f"no accepted answer has {tokens} tokens and keeps the unmasked ones; it needs at least {grammar.least}, so raise max_tokens"


def _begins(group: Indices) -> Indices:
    """Where each group begins in a rising list of group numbers."""
    return np.flatnonzero(np.concatenate([np.ones(min(1, len(group)), dtype=bool), group[1:] != group[:-1]]))


class Lattice:
    """The answers of ``paths`` that keep the unmasked tokens. ``scored [M]``: the positions with logits · ``logits [M, F]``: of the tokens
    ``paths.fits`` · ``ids [N]``: -1 where masked.

    A masked token without scores has weight 1 for every kind: it only has to be possible.
    """

    def __init__(self, paths: Paths, scored: Sequence[int], logits_MF: Floats, ids: Sequence[int]) -> None:
        self.paths, self.grammar, self.ids = paths, paths.grammar, ids
        self.row = {n: m for m, n in enumerate(scored)}
        self.silent = [i < 0 and n not in self.row for n, i in enumerate(ids)]
        self.logp = np.nan_to_num(logits_MF, nan=0.0, posinf=1e9, neginf=-1e9)
        self.logp -= self.logp.max(1, keepdims=True, initial=_NEVER)
        best = np.maximum.reduceat(self.logp, paths.begin, axis=1)
        self.sums, self.bests = self._weights(self._summed(best)), self._weights(best)

    def posterior(self, scored: Sequence[int]) -> Floats:
        """ln p(token n is v | the answer is accepted and keeps the other unmasked tokens), for v in ``paths.fits``: [M, F]."""
        through_NK, whole_N = self._through
        rows, at = [self.row[n] for n in scored], list(scored)
        return self.logp[rows] + through_NK[at][:, self.paths.kind] - whole_N[at, None]

    @functools.cached_property
    def _through(self) -> tuple[Floats, Floats]:
        """ln weight of all answers with a token of each kind, without that token's own weight, [N, K], and of all answers, [N]: the same
        for every masked token, and for an unmasked one of the answers that may have another token in its place.
        """
        levels, kinds = self.paths.levels, self.grammar.kinds
        forward, backward = self._forward(self.sums, total=True), self._backward(self.sums)
        whole = float(np.logaddexp.reduce(forward[-1]))
        if not np.isfinite(whole):
            raise NothingFits(_missing(len(self.ids), self.grammar))
        through_NK = np.full((len(levels), kinds), _NEVER)
        for n in self.row:
            level = levels[n]
            through_E = forward[n].take(level.frm) + backward[n + 1].take(level.to)
            through_NK[n, level.kinds] = _grouped(through_E.take(level.same), level.begin, total=True)
        whole_N = np.full(len(levels), whole)
        for n, m in self.row.items():
            if self.ids[n] >= 0:
                whole_N[n] = np.logaddexp.reduce(self.logp[m] + through_NK[n, self.paths.kind])
        return through_NK, whole_N

    def best(self, pinned: dict[int, int]) -> list[int]:
        """The most probable accepted answer in which token n is ``pinned[n]``; ids [N]. NothingFits if there is none."""
        weights = self._pinned(pinned)
        forward = self._forward(weights, total=False)
        if not np.isfinite(forward[-1].max()):
            raise NothingFits(f"no accepted answer has the tokens {pinned} and keeps the unmasked ones")
        state, found, flat = int(forward[-1].argmax()), [0] * len(self.ids), weights.reshape(-1)
        for n in reversed(range(len(self.ids))):
            level = self.paths.levels[n]
            first = int(level.into[state])
            last = int(level.into[state + 1]) if state + 1 < len(level.into) else len(level.frm)
            edge = first
            if last > first + 1:
                edge += int((forward[n][level.frm[first:last]] + flat[level.at[first:last]]).argmax())
            found[n] = pinned[n] if n in pinned else self._surest(n, int(level.at[edge]) - n * self.grammar.kinds)
            state = int(level.frm[edge])
        return found

    def together(self, asked: list[int], ids: list[int], score: list[float]) -> tuple[list[int], dict[int, float]]:
        """Candidates for the tokens ``asked`` that belong to one accepted answer, and the scores of those that had to change."""
        if self._accepts(dict(zip(asked, ids, strict=True))):
            return ids, {}
        surest = max(range(len(asked)), key=lambda i: (score[i], -i))
        whole = self.best({asked[surest]: ids[surest]})
        fitting = [whole[n] for n in asked]
        return fitting, {i: self._probability(asked[i], v) for i, v in enumerate(fitting) if v != ids[i]}

    def _probability(self, n: int, token: int) -> float:
        """ln p of one token of the posterior."""
        through_NK, whole_N = self._through
        place = int(np.flatnonzero(self.paths.fits == token)[0])
        return float(self.logp[self.row[n], place] + through_NK[n, self.paths.kind[place]] - whole_N[n])

    def _accepts(self, given: dict[int, int]) -> bool:
        """Whether some accepted answer has all of these."""
        return bool(np.isfinite(self._forward(self._pinned(given), total=False)[-1].max()))

    def _pinned(self, pinned: dict[int, int]) -> Floats:
        """``bests`` with the tokens of ``pinned`` given."""
        weights = self.bests.copy()
        for n, token in pinned.items():
            self._give(weights, n, token)
        return weights

    def _give(self, weights_NK: Floats, n: int, token: int) -> None:
        """Token n is ``token``."""
        weights_NK[n] = _NEVER
        kind = int(self.grammar.kind_of[token]) if token < len(self.grammar.kind_of) else self.grammar.kinds
        if kind < self.grammar.kinds:
            weights_NK[n, kind] = 0.0

    def _summed(self, best_MK: Floats) -> Floats:
        """ln of the sum of exp(logit) over the tokens of each present kind."""
        p, out = self.paths, np.empty_like(best_MK)
        number = np.repeat(np.arange(len(p.begin)), np.diff([*p.begin, len(p.fits)]))
        rows = max(1, _CHUNK // len(p.fits))
        for first in range(0, len(out), rows):
            part, best = self.logp[first : first + rows], best_MK[first : first + rows]
            out[first : first + rows] = np.log(np.add.reduceat(np.exp(part - best[:, number]), p.begin, axis=1)) + best
        return out

    def _weights(self, scored_MK: Floats) -> Floats:
        """ln weight of each kind of token, [N, K], from those of the scored tokens."""
        weights = np.full((len(self.ids), self.grammar.kinds), _NEVER)
        weights[self.silent] = 0.0
        for n, m in self.row.items():
            weights[n, self.paths.present] = scored_MK[m]
        for n, token in enumerate(self.ids):
            if token >= 0:
                self._give(weights, n, token)
        return weights

    def _forward(self, weights_NK: Floats, *, total: bool) -> list[Floats]:
        """ln weight of all paths (``total``) or of the best path to each live state, before each token and at the end."""
        out, flat = [np.zeros(1)], weights_NK.reshape(-1)
        for level, silent in zip(self.paths.levels, self.silent, strict=True):
            out.append(_grouped(out[-1].take(level.frm) + flat.take(level.at), level.into, total=total and not silent))
        return out

    def _backward(self, weights_NK: Floats) -> list[Floats]:
        """ln weight of all paths from each live state to an accepting one, before each token and at the end."""
        levels, flat = self.paths.levels, weights_NK.reshape(-1)
        out = [np.zeros(len(levels[-1].into))] if levels else [np.zeros(1)]
        for level, silent in zip(reversed(levels), reversed(self.silent), strict=True):
            way = (out[-1].take(level.to) + flat.take(level.at)).take(level.back)
            out.append(_grouped(way, level.out, total=not silent))
        return out[::-1]

    def _surest(self, n: int, kind: int) -> int:
        """The most probable token of a kind, or the unmasked token."""
        if self.ids[n] >= 0:
            return self.ids[n]
        p = self.paths
        first, last = np.searchsorted(p.kind, [kind, kind + 1])
        if n not in self.row:
            return int(p.fits[first])
        return int(p.fits[first + self.logp[self.row[n], first:last].argmax()])


def _grouped(value: Floats, begin: Indices, *, total: bool) -> Floats:
    """ln of the sum of exp(value) (``total``) or the maximum, in each of the groups that begin at ``begin``."""
    if len(begin) == len(value):
        return value
    return np.logaddexp.reduceat(value, begin) if total else np.maximum.reduceat(value, begin)
