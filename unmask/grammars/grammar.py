"""An automaton over bytes, read token by token: which tokens may follow which.

Public idea: ``Grammar(automaton, text)``. Tokens that do the same in every state are one *kind*; a vocabulary of six figures has some
dozens of them, and what walks over all accepted answers walks over kinds.

Shapes: V vocabulary · K kinds · S states · E edges.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from unmask.grammars.automaton import (
    MOST_STATES,
    Automaton,
    Concat,
    Expression,
    TooLarge,
    compile_automaton,
    literal,
    optional,
)
from unmask.tokens.text import EOT, Text


class Grammar:
    """The answers are a text that ``automaton`` accepts, and ends of turn behind it.

    ``kind_of [V]``: 0..K-1, K-1 being the end of turn, and K for what never fits · ``frm``, ``kind``, ``to [E]``: from a state by a kind
    of token to a state · ``final [S]``: where an answer may end; the last state is the one behind an end of turn · ``least``: tokens of
    the shortest.
    """

    def __init__(self, automaton: Automaton, pieces: list[bytes], end: int) -> None:
        self.automaton, self.end, self.pieces = automaton, end, pieces
        walk = _Walk(automaton, pieces)
        kind_of, samples = walk.kinds()
        self.kinds, self.states = len(samples) + 1, automaton.states + 1
        kind_of[end] = self.kinds - 1
        self.kind_of = kind_of.masked_fill(kind_of < 0, self.kinds)
        done = automaton.states
        to_SK = torch.stack([walk.step(state, samples) for state in range(automaton.states)])
        frm, kind = (to_SK < done).nonzero().unbind(1)
        ends = automaton.ends.nonzero()[:, 0]
        last = torch.full((len(ends) + 1,), self.kinds - 1)
        self.frm = torch.cat([frm, ends, torch.tensor([done])])
        self.kind = torch.cat([kind, last])
        self.to = torch.cat([to_SK[frm, kind], torch.full_like(last, done)])
        self.final = torch.cat([automaton.ends, torch.tensor([True])])
        self.least = self._least()

    def __repr__(self) -> str:
        return f"Grammar({self.states} states, {self.kinds} kinds of tokens)"

    def text(self, ids: list[int]) -> str:
        """What ids say, up to the first end of turn, every space kept."""
        upto = ids.index(self.end) if self.end in ids else len(ids)
        return b"".join(self.pieces[i] for i in ids[:upto]).decode("utf-8", "replace")

    def _least(self) -> int:
        reached = torch.zeros(self.states, dtype=torch.bool)
        reached[0] = True
        for tokens in range(self.states + 1):
            if bool((reached & self.final).any()):
                return tokens
            reached = reached.scatter(0, self.to[reached[self.frm]], True)
        raise ValueError("this tokenizer cannot write any text that fits; allow something else")


class _Walk:
    """All tokens at once through the automaton."""

    def __init__(self, automaton: Automaton, pieces: list[bytes]) -> None:
        self.automaton, self.dead = automaton, automaton.states
        self.longest = max(map(len, pieces), default=0)
        self.table = automaton.table
        # 256: no byte any more.
        rows = [[*piece, *[256] * (self.longest - len(piece))] for piece in pieces]
        self.bytes = torch.tensor(rows, dtype=torch.int16).view(len(pieces), self.longest)
        self.size = len(pieces)
        self.written = torch.tensor([len(piece) > 0 for piece in pieces]).nonzero()[:, 0]

    def step(self, state: int, tokens: Tensor) -> Tensor:
        """The state after each token, ``dead`` for those that do not fit."""
        after = torch.full((len(tokens),), state)
        going = torch.arange(len(tokens))
        for column in range(self.longest):
            after[going] = self.table[after[going], self.bytes[tokens[going], column].long()]
            going = going[after[going] < self.dead]
            if column + 1 < self.longest:
                going = going[self.bytes[tokens[going], column + 1] < 256]
            if not len(going):
                break
        return after

    def kinds(self) -> tuple[Tensor, Tensor]:
        """(the kind of each token, -1 for what fits nowhere; a token of each kind)."""
        kind = torch.full((self.size,), -1)
        many = 0
        for state in range(self.automaton.states):
            after = self.step(state, self.written)
            tokens, after = self.written[after < self.dead], after[after < self.dead]
            # Tokens that were alike so far, and are not here, part; those that do not fit here keep their kind among themselves.
            _, own = ((kind[tokens] + 1) * (self.dead + 1) + after).unique(return_inverse=True)
            kind[tokens] = many + own
            many += int(own.max()) + 1 if len(own) else 0
        used, compact = kind.unique(return_inverse=True)
        if len(used) and int(used[0]) < 0:
            compact -= 1
        kinds = int(compact.max()) + 1 if len(compact) else 0
        samples = torch.zeros(kinds, dtype=torch.long)
        live = (compact >= 0).nonzero()[:, 0]
        samples[compact[live]] = live
        return compact, samples


@functools.lru_cache(maxsize=64)
def grammar_of(language: Expression, text: Text, most_states: int = MOST_STATES) -> Grammar:
    """For a tokenizer. One whose words begin with their space may begin an answer with one.

    ValueError where no text fits, or where it would take an automaton of more than ``most_states``.
    """
    first = text.pieces[text.encode("a")[0]]
    spaced = Concat(parts=(optional(literal(" ")), language)) if first.startswith(b" ") else language
    automaton = compile_automaton(spaced)
    if automaton.states > most_states:
        raise TooLarge(f"this takes more than {most_states} states; use shorter lengths or fewer alternatives")
    return Grammar(automaton, text.pieces, text[EOT])
