"""An automaton over bytes, read token by token: which tokens may follow which.

``Grammar(automaton, pieces, end)``. Tokens with the same transitions in every state form one *kind*. A vocabulary of 126,000 tokens has a
few hundred kinds, and the forward-backward pass over all accepted answers works on kinds, not tokens.

To find the kinds quickly, bytes that act alike in every state are replaced by their class first; many tokens are then equal. The
remaining class strings form a trie, so a shared prefix is read once, and every level of the trie is read from many states at once.

Shapes: V vocabulary · K kinds · S states · E edges · C classes of bytes · U distinct class strings · B states in a chunk.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from unmask.grammars.automaton import (
    MOST_STATES,
    Automaton,
    Concat,
    Expression,
    check_size,
    compile_automaton,
    literal,
    optional,
)
from unmask.tokens.text import Text

_CHUNK = 300_000  # elements of a level of the trie by states: small enough to stay in the processor's cache
_RADIX = 2**62
_KEPT = 2**27  # bytes of the grammars that are kept for the next request: of a few large ones or hundreds of small ones


class Grammar:
    """The answers: a text that ``automaton`` accepts, then end-of-turn tokens up to the length of the span.

    ``kind_of [V]``: 0..K-1, where K-1 is the end of turn; K for tokens that never fit · ``frm``, ``kind``, ``to [E]``: an edge from a
    state by a kind of token to a state · ``final [S]``: whether an answer may end there; the last state follows an end of turn ·
    ``least``: tokens of the shortest answer.
    """

    def __init__(self, automaton: Automaton, pieces: list[bytes], end: int) -> None:
        self.automaton, self.end, self.pieces = automaton, end, pieces
        self.kind_of, to_SK = _kinds(automaton, pieces)
        self.kinds, self.states = to_SK.shape[1] + 1, automaton.states + 1
        self.kind_of[self.kind_of < 0] = self.kinds
        self.kind_of[end] = self.kinds - 1
        done = automaton.states
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

    @property
    def nbytes(self) -> int:
        """Memory of its tensors."""
        tensors = (self.kind_of, self.frm, self.kind, self.to, self.final, self.automaton.table, self.automaton.ends)
        return sum(tensor.nbytes for tensor in tensors)

    def text(self, ids: list[int]) -> str:
        """The text of token ids up to the first end of turn, spaces kept."""
        upto = ids.index(self.end) if self.end in ids else len(ids)
        return b"".join(self.pieces[i] for i in ids[:upto]).decode("utf-8", "replace")

    def _least(self) -> int:
        reached = torch.zeros(self.states, dtype=torch.bool)
        reached[0] = True
        for tokens in range(self.states + 1):
            if bool((reached & self.final).any()):
                return tokens
            reached = reached.scatter(0, self.to[reached[self.frm]], True)
        raise ValueError("this tokenizer cannot write any text that matches; allow other texts")


@dataclass(frozen=True, kw_only=True, eq=False)
class _Level:
    """One level of a trie with n nodes. ``parent``, ``byte [n]`` · ``ended``, ``node``: the strings that end here, and where."""

    parent: Tensor
    byte: Tensor
    ended: Tensor
    node: Tensor


def _kinds(automaton: Automaton, pieces: list[bytes]) -> tuple[Tensor, Tensor]:
    """(the kind of each token [V], -1 if it never fits; the state after a token of each kind [S, K], S for rejection)."""
    states = automaton.states
    table_SC, class_of = automaton.table.unique(dim=1, return_inverse=True)
    string_of, strings = _class_strings(table_SC, class_of, pieces)
    kind_U, fits_U = torch.zeros(len(strings), dtype=torch.long), torch.zeros(len(strings), dtype=torch.bool)
    for after_UB in _walk(table_SC, _trie(strings)):
        kind_U = _refined(kind_U, after_UB, states + 1)
        fits_U |= (after_UB < states).any(1)
    kinds, kind_U[fits_U] = kind_U[fits_U].unique(return_inverse=True)
    kind_U[~fits_U] = -1
    kind_of = torch.full((len(pieces),), -1)
    written = string_of >= 0
    kind_of[written] = kind_U[string_of[written]]
    sample = torch.zeros(len(kinds), dtype=torch.long)
    sample[kind_U[fits_U]] = fits_U.nonzero()[:, 0]
    walked = list(_walk(table_SC, _trie([strings[i] for i in sample.tolist()])))
    return kind_of, torch.cat(walked, 1).T.contiguous()


def _class_strings(table_SC: Tensor, class_of: Tensor, pieces: list[bytes]) -> tuple[Tensor, list[bytes]]:
    """(which string each token is [V], -1 if it is empty or has a byte that never fits; the distinct strings of byte classes)."""
    never = (table_SC == len(table_SC) - 1).all(0)[class_of].nonzero()[:, 0]
    classes, rejected = bytes(class_of.tolist()), bytes(never.tolist())
    number: dict[bytes, int] = {}
    string_of = [
        number.setdefault(piece.translate(classes), len(number))
        if piece and len(piece.translate(None, rejected)) == len(piece)
        else -1
        for piece in pieces
    ]
    return torch.tensor(string_of, dtype=torch.long), list(number)


def _trie(strings: list[bytes]) -> list[_Level]:
    flat = torch.tensor(list(b"".join(strings)), dtype=torch.long)
    length = torch.tensor([len(string) for string in strings], dtype=torch.long)
    start, node = length.cumsum(0) - length, torch.zeros(len(strings), dtype=torch.long)
    alive, levels = torch.arange(len(strings)), []
    while len(alive):
        depth = len(levels)
        found, node = (node * 256 + flat[start[alive] + depth]).unique(return_inverse=True)
        last = length[alive] == depth + 1
        levels.append(_Level(parent=found // 256, byte=found % 256, ended=alive[last], node=node[last]))
        alive, node = alive[~last], node[~last]
    return levels


def _walk(table_SC: Tensor, levels: list[_Level]) -> Iterator[Tensor]:
    """The state after each string from each state, [U, B] for one chunk of states after another; S for rejection."""
    states, classes = len(table_SC) - 1, table_SC.shape[1]
    size = sum(len(level.ended) for level in levels)
    step = max(1, _CHUNK // max([1, *(len(level.parent) for level in levels)]))
    for begin in range(0, states, step):
        at = torch.arange(begin, min(begin + step, states))[None]
        after_UB = torch.empty(size, at.shape[1], dtype=torch.long)
        for level in levels:
            at = table_SC.take(at[level.parent] * classes + level.byte[:, None])
            after_UB[level.ended] = at[level.node]
        yield after_UB


def _refined(kind_U: Tensor, after_UB: Tensor, radix: int) -> Tensor:
    """The kinds, split where strings of one kind lead to different states. As many states as fit into 62 bits are compared at once."""
    key, size = kind_U, len(kind_U) + 1
    for after in after_UB.T.contiguous():
        if size > _RADIX // radix:
            key = key.unique(return_inverse=True)[1]
            size = len(kind_U) + 1
        key, size = key * radix + after, size * radix
    return key.unique(return_inverse=True)[1]


class _Recent:
    """The grammars used last, as long as all of them take at most ``most`` bytes. Safe in any thread."""

    def __init__(self, most: int) -> None:
        self.most, self.size = most, 0
        self._known: OrderedDict[Hashable, Grammar] = OrderedDict()
        self._lock = threading.Lock()

    def find(self, key: Hashable) -> Grammar | None:
        with self._lock:
            if key in self._known:
                self._known.move_to_end(key)
            return self._known.get(key)

    def keep(self, key: Hashable, grammar: Grammar) -> None:
        with self._lock:
            if key not in self._known and grammar.nbytes <= self.most:
                self._known[key] = grammar
                self.size += grammar.nbytes
            while self.size > self.most:
                self.size -= self._known.popitem(last=False)[1].nbytes


_RECENT = _Recent(_KEPT)


def grammar_of(expression: Expression, text: Text, most_states: int = MOST_STATES) -> Grammar:
    """The grammar for a tokenizer. If its words begin with their space, an answer may begin with a space too.

    ValueError if no text matches; TooLarge if the automaton takes more than ``most_states`` states.
    """
    check_size(expression)
    key = expression, text, most_states
    found = _RECENT.find(key)
    if found is None:
        first = text.pieces[text.encode("a")[0]]
        spaced = Concat(parts=(optional(literal(" ")), expression)) if first.startswith(b" ") else expression
        found = Grammar(compile_automaton(spaced, most_states), text.pieces, text.ends[0])
        _RECENT.keep(key, found)
    return found
