"""Activations of ``Elastic`` in training, counted before anything is allocated.

Public idea: ``loads_of(batch)`` says what the network computes for a batch, ``pieces(net, ...)`` what each piece of the forward pass keeps,
and ``peak(pieces, gradients)`` the most bytes at a time in the backward pass.

In bytes, of n positions in a layer of width w, with heads of D channels together and an MLP of m channels, where s is the size of a
number of the computation (bfloat16: 2):

    trained branch   n s (4 w + 4 D + 4 m)   both norms before and after their weights; q, turned and scaled, k, v; gate, silu(gate), up
                                             and their product
    frozen branch    n s (2 w + 4 D + 3 m)   a frozen matrix does not need its input
    output matrix    n s D                   where it is trained
    attention        s H T S                 softmax of T queries over S keys in H heads; fused: s T S

A layer whose activations are recomputed keeps its input, n s w, and makes the rest again when its turn comes. At most
``cross_entropy.LARGEST`` logits exist at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from unmask.models.attention import fused
from unmask.models.elastic import Elastic
from unmask.models.sizes import VisionConfig
from unmask.objectives.cross_entropy import LARGEST
from unmask.sequence import Batch, Branch, Kind


@dataclass(frozen=True, kw_only=True)
class Load:
    """What a batch asks of the network. Per row: ``und``, ``gen`` positions, ``codes``; of the batch: ``rows``, tokens that may be scored
    (``text``, ``code``), ``views`` of pictures.
    """

    rows: int
    und: int
    gen: int
    codes: int
    text: int
    code: int
    views: int

    def of_rows(self, rows: int) -> Load:
        """The same with another number of rows."""
        scaled = {name: -(-getattr(self, name) * rows // self.rows) for name in ("text", "code", "views")}
        return replace(self, rows=rows, **scaled)


def load_of(batch: Batch) -> Load:
    """The load of a batch, with all its writable tokens masked: the most that a corruption may mask."""
    real = batch.valid & (batch.branch == Branch.GEN)
    open_ = batch.writable & batch.valid
    position = batch.valid & batch.leader
    return Load(
        rows=batch.rows,
        und=int((position & (batch.branch == Branch.UND)).sum(1).max()),
        gen=int((position & (batch.branch == Branch.GEN)).sum(1).max()),
        codes=int(real.sum(1).max()),
        text=int((open_ & (batch.kind == Kind.TEXT)).sum()),
        code=int((open_ & (batch.kind == Kind.CODE)).sum()),
        views=0 if batch.pixels is None else len(batch.pixels),
    )


def loads_of(batch: object) -> tuple[Load, ...]:
    """The loads of a source batch: one for every task in it."""
    found = batch.values() if isinstance(batch, Mapping) else [batch]
    return tuple(load_of(each) for each in found if isinstance(each, Batch))


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A piece of the forward pass, in bytes. ``kept``: until its backward pass · ``again``: made again for it · ``passing``: needed beside
    these during it · ``units``: whose weights get their gradients then, as of ``unit_of``.
    """

    units: tuple[str, ...]
    kept: int
    again: int = 0
    passing: int = 0


def unit_of(name: str) -> str:
    """The part of the network that a parameter belongs to: of a layer, and of its branch, or of none."""
    words = name.split(".")
    if words[0] == "blocks":
        return ".".join(words[:3])
    layer = next((i for i, word in enumerate(words) if word.isdigit()), 0)
    return ".".join(words[: layer + 1])


def peak(pieces: Sequence[Piece], gradients: Mapping[str, int]) -> int:
    """The most bytes of activations and gradients at a time in the backward pass, which takes the pieces from the last to the first.

    ``gradients``: bytes of every unit's, which stay.
    """
    kept, made, most, seen = sum(piece.kept for piece in pieces), 0, 0, set[str]()
    for piece in reversed(pieces):
        made += sum(gradients.get(unit, 0) for unit in {*piece.units} - seen)
        seen |= {*piece.units}
        most = max(most, kept + piece.again + piece.passing + made)
        kept -= piece.kept
    return max(most, made)


@dataclass(frozen=True, kw_only=True)
class Trained:
    """Which parts of a network are trained."""

    und: bool
    gen: bool
    out: bool
    codes: bool
    text_head: bool
    tower: bool
    projector: bool


def trained_parts(names: Iterable[str]) -> Trained:
    """From the names of the trained parameters."""
    found = list(names)

    def any_(*marks: str) -> bool:
        return any(mark in name for name in found for mark in marks)

    return Trained(
        und=any_(".und."),
        gen=any_(".gen."),
        out=any_(".out.weight"),
        codes=any_("code_embedding.", "code_head."),
        text_head=any_("text_head.", "embed.weight"),
        tower=any_("vision.tower."),
        projector=any_("vision."),
    )


def pieces(net: Elastic, trained: Trained, loads: Sequence[Load], *, size: int, recompute: bool) -> list[Piece]:
    """The forward pass of batches whose losses are added. ``size``: bytes of a number of the computation."""
    return [
        piece
        for load in loads
        for piece in (
            _tables(net, load),
            *_tower(net, trained, load, size, recompute),
            *_inputs(net, trained, load, size),
            *_layers(net, trained, load, size, recompute),
            *_heads(net, load, size),
        )
    ]


def _tables(net: Elastic, load: Load) -> Piece:
    """Rotary tables in float32: of the positions of each branch, and of the queries and keys of every set of branches that attend."""
    und, gen, config = load.und, load.gen, net.config
    sets = und + gen
    if und and gen:
        sets += 2 * (und + gen) + 2 * gen + (2 * und if load.text else und + 2 * gen)
    else:
        sets += 2 * (und + gen)
    return Piece(units=(), kept=8 * load.rows * sets * config.head_channels)


def _layers(net: Elastic, trained: Trained, load: Load, size: int, recompute: bool) -> list[Piece]:
    """The transformer's layers. The understanding branch ends with the last joint layer where no text is scored."""
    config, found = net.config, []
    for number in range(config.layers):
        joint = number < config.joint_layers and load.und and load.gen
        und = load.und if load.text or number < config.joint_layers - 1 else 0
        keys = load.und + load.gen if joint else 0
        given = inside = mlps = scores = 0
        branches = (
            (und, config.width, config.mlp, trained.und),
            (load.gen, config.gen_width, config.gen_mlp, trained.gen),
        )
        for positions, width, mlp, learns in branches:
            n = load.rows * positions
            given += n * size * width
            inside += n * (
                _branch(width, config.query_width, mlp, size, learns)
                + (size * config.query_width if trained.out else 0)
            )
            scores += n * (keys or positions) * (size if net.attention is fused else config.heads * size)
            mlps += n * size * mlp
        # The MLP's backward pass comes first, and what it kept is gone when that of attention begins.
        passing = max(2 * mlps, 2 * scores - 4 * mlps)
        used = [name for name, positions in (("und", und), ("gen", load.gen)) if positions]
        found.append(
            _piece(
                tuple(f"blocks.{number}.{name}" for name in (*used, "out")), given, inside + scores, passing, recompute
            )
        )
    return found


def _piece(units: tuple[str, ...], given: int, inside: int, passing: int, recompute: bool) -> Piece:
    if recompute:
        return Piece(units=units, kept=given, again=inside, passing=passing)
    return Piece(units=units, kept=inside, passing=passing)


def _branch(width: int, inner: int, mlp: int, size: int, learns: bool) -> int:
    """Bytes of a position in a branch of a layer, as in the docstring of this file."""
    return size * ((4 * width + 4 * inner + 4 * mlp) if learns else (2 * width + 4 * inner + 3 * mlp))


def _tower(net: Elastic, trained: Trained, load: Load, size: int, recompute: bool) -> list[Piece]:
    """The layers of the vision tower, where they are trained; else nothing of them is kept. Their attention is never fused."""
    config = net.config.vision
    if config is None or not load.views or not trained.tower:
        return []
    patches = load.views * config.side**2
    scores = patches * config.side**2 * config.heads * size
    inside = patches * size * (8 * config.width + 2 * config.mlp) + scores
    passing = max(patches * size * config.mlp, 2 * scores - 2 * patches * size * config.mlp)
    given = patches * size * config.width
    return [
        _piece((f"vision.tower.layers.{number}",), given, inside, passing, recompute) for number in range(config.layers)
    ]


def _inputs(net: Elastic, trained: Trained, load: Load, size: int) -> list[Piece]:
    """Embeddings, and the vision projector."""
    config, found = net.config, []
    if config.vision and load.views and trained.projector:
        found.append(Piece(units=("vision",), kept=_projector(config.vision, load, config.width, size)))
    found.append(Piece(units=("embed",), kept=2 * load.rows * load.und * size * config.width))
    if load.gen and trained.codes:
        norm = 2 * size * config.gen_width
        kept = load.rows * (load.codes * 2 * norm + load.gen * 2 * norm)
        found.append(Piece(units=("code_embedding",), kept=kept))
    return found


def _heads(net: Elastic, load: Load, size: int) -> list[Piece]:
    config, found = net.config, []
    if load.text:
        found.append(_head("text_head", load.text, 2 * size * config.width, config.vocab_size, size))
    if load.code:
        norm = 2 * size * config.gen_width
        found.append(Piece(units=("code_head",), kept=load.rows * load.gen * norm))
        inside = 2 * norm + size * config.gen_width
        found.append(_head("code_head", load.code, inside, config.codes, size))
    return found


def _projector(config: VisionConfig, load: Load, width: int, size: int) -> int:
    return load.views * size * (config.side**2 * config.width + config.pooled**2 * (2 * config.width + 3 * width))


def _head(unit: str, tokens: int, inside: int, vocabulary: int, size: int) -> Piece:
    """``inside``: bytes of a token before its logits. More than ``LARGEST`` logits are made again in parts."""
    logits = tokens * vocabulary
    if logits > LARGEST:
        return Piece(units=(unit,), kept=tokens * inside, again=size * LARGEST, passing=2 * size * LARGEST)
    return Piece(units=(unit,), kept=tokens * inside + size * logits, passing=2 * size * logits)
