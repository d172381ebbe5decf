"""Lavida-O's network (spec 1.3 to 1.7): Elastic Mixture-of-Transformers over text, picture features and image codes.

Public idea: ``Elastic(config)(batch) -> Prediction``. Work follows need: each branch runs over its own positions, only tokens to
score reach a head, and where no text is scored the understanding branch ends with the last joint layer.

Shapes: B rows · L tokens · D width · E generation width · N packed positions of a branch, or tokens scored.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unmask.derived import counts_told, derived
from unmask.models.asked import Asked, asked, with_predecessors
from unmask.models.attention import FITTING, NEVER, Attention, Fitting
from unmask.models.blocks import ElasticBlock, Read, RMSNorm, SwiGLU, rms_norm
from unmask.models.codes import CodeEmbedding, CodeHead, Unfold
from unmask.models.experts import Experts
from unmask.models.gradients import rows_at
from unmask.models.graphs import Graphs, Streams
from unmask.models.layout import Layout, Packing, lay_out
from unmask.models.linear import Linear, alike_from
from unmask.models.memory import Memory, Slots
from unmask.models.qwen_vision import QwenVision
from unmask.models.registers import REGISTER, Registers, placed, with_registers, without_registers
from unmask.models.shared_vocabulary import CodeRows, as_text
from unmask.models.sizes import ElasticConfig
from unmask.models.vision import Vision, VisionLayer
from unmask.sequence import Batch, Branch, Kind
from unmask.step import Head, Prediction, Reuse, Scored, State

# What a CPU computes, and a GPU, in the time that one more group of rows takes to launch in a layer.
GROUP_FLOPS = {"cpu": 5e6, "other": 2e10}

_Score = Callable[
    [Tensor, Tensor, int, Head], Scored
]  # (token numbers [N], padded hidden states, how many count, head)


class Elastic(nn.Module):
    """The model. ``mask_id``: the text id of a masked token, whose embedding is also the null embedding."""

    def __init__(self, config: ElasticConfig, *, mask_id: int, attention: Attention = FITTING) -> None:
        super().__init__()
        self.config, self.mask_id, self.attention = config, mask_id, attention
        self.graphs: Graphs | None = None  # of the layers, on a CUDA device (graphs.py)
        self.embed = nn.Embedding(config.vocab_size, config.width)
        blocks = [ElasticBlock(config, joint=i < config.joint_layers) for i in range(config.layers)]
        if config.experts:
            for block in blocks[config.experts.dense :]:
                block.und.mlp = Experts(config.width, config.experts)
        self.blocks = nn.ModuleList(blocks)
        self.norm = RMSNorm(config.width, config.norm_eps)
        self.text_head = Linear(config.width, config.vocab_size, bias=False)
        if config.gen_width:
            self.code_embedding = CodeEmbedding(config)
            self.code_head = CodeHead(config)
        self.vision = _vision(config)
        if config.text_registers or config.code_registers:
            self.registers = Registers(config)

    def forward(self, batch: Batch, *, predict: Tensor | None = None, reuse: Reuse | None = None) -> Prediction:
        """Logits of the tokens in ``predict [B, L]`` (default: the masked ones). ``batch.time`` is not read: this model has no clock."""
        return self._predict(batch, predict, reuse, _with_logits)

    def hidden_states(self, batch: Batch, *, predict: Tensor | None = None, reuse: Reuse | None = None) -> Prediction:
        """The forward pass without the heads, which ``Scored.head`` are. For objectives that make few logits at a time."""
        return self._predict(batch, predict, reuse, _without_logits)

    def _predict(self, batch: Batch, predict: Tensor | None, reuse: Reuse | None, score: _Score) -> Prediction:
        predict = batch.masked if predict is None else predict
        length, kind_BL = batch.ids.shape[1], batch.kind
        if self.config.first_code:
            batch = as_text(batch, self.config.first_code)
        if self.has_registers:
            batch, predict, reuse = with_registers(batch, predict, reuse, self.config)
        if self.config.shifted:
            reuse = with_predecessors(predict, reuse)
        # 1. The positions of both branches, packed, and which rows are attended together.
        layout = self._layout(batch, reuse)
        if layout.gen is not None and not self.config.gen_width:
            raise ValueError(
                "the batch has image codes, but this is a text model without a generation branch; give it text"
            )
        self._refuse_strange(batch)
        # 2. Embed them: text and picture features, and codes, four to a position where they are folded.
        u_ND, g_NE = self._embed_und(batch, layout), self._embed_gen(batch, layout)
        # 3. The layers. Positions that are not computed lend their keys and values.
        memory = _memory(reuse, layout)
        text_count, code_count = _counts(predict, layout)
        text = asked(predict, layout.und, shifted=self.config.shifted, count=text_count)
        codes = asked(predict, layout.gen, folded=layout.squares is not None, count=code_count)
        if self.has_registers:
            text, codes = (tokens.of_length(batch.ids.shape[1], length) for tokens in (text, codes))
        if not torch.is_grad_enabled():  # gradients sum over all positions, in an order that would change
            text = text.alone(u_ND, waits=text_count is None)
            codes = codes.alone(g_NE, waits=code_count is None)
        u_ND, g_NE = self._run(layout, u_ND, g_NE, text, codes, memory)
        # 4. The heads, over the tokens to score alone.
        if self.config.first_code:
            only = None if text_count is None else _writable_kind(batch, kind_BL)
            parts = {kind: text.of_kind(kind_BL, kind, only) for kind in (Kind.TEXT, Kind.CODE)}
        else:
            parts = {Kind.TEXT: text}
        scored = {kind: self._read_text(part, u_ND, score, kind) for kind, part in parts.items()}
        if g_NE is not None:
            scored[Kind.CODE] = self._read_codes(layout, codes, g_NE, score)
        return Prediction(scored=scored, state=_next_state(reuse, memory, length))

    @property
    def has_registers(self) -> bool:
        """Whether masked tokens may be left out, with registers in their place (Sparse-LaViDa)."""
        return bool(self.config.text_registers or self.config.code_registers)

    def _layout(self, batch: Batch, reuse: Reuse | None) -> Layout:
        """Made once for all steps of a run that compute the same positions: they change none of the fields that it depends on."""
        packing = self._packing(batch.device.type)
        tensors = [batch.segment, batch.order, batch.valid, batch.leader, batch.branch, batch.kind, batch.stride]
        tensors += [batch.position, batch.feature, batch.writable, *([] if batch.axes is None else [batch.axes])]
        if reuse is not None:  # first, so that what is remembered goes with them
            tensors = [reuse.compute, *([] if reuse.state is None else [reuse.state.held]), *tensors]
        return derived(("layout", packing, len(tensors)), lambda: lay_out(batch, reuse, packing), *tensors)

    def _packing(self, device: str) -> Packing:
        c, learns = self.config, torch.is_grad_enabled()
        fitting = self.attention if isinstance(self.attention, Fitting) else None
        return Packing(
            und_flops=2 * c.width * (2 * c.query_width + 2 * c.key_width + 3 * c.mlp),
            gen_flops=2 * c.gen_width * (2 * c.query_width + 2 * c.key_width + 3 * c.gen_mlp),
            width=c.query_width,
            group_flops=GROUP_FLOPS["cpu" if device == "cpu" else "other"],
            unpadded_from=fitting.unpadded_from(c.heads, self.embed.weight.dtype, device) if fitting else NEVER,
            together=learns,
            head_width=c.rope_width or c.head_channels,
            theta=c.rope_theta * c.rope_factor,
            sections=c.rope_sections,
        )

    def _refuse_strange(self, batch: Batch) -> None:
        """ValueError for a token of a kind that this network does not read."""

        def unread() -> Tensor | None:
            read = (batch.kind == Kind.TEXT) | (batch.kind == Kind.FEATURE) | (batch.branch == Branch.GEN)
            strange = batch.valid & batch.leader & ~read & (batch.kind != REGISTER)
            return strange if bool(strange.any()) else None

        strange = derived("unread", unread, batch.kind, batch.branch, batch.valid, batch.leader)
        if strange is not None and bool((strange & ~batch.masked).any()):
            kind = int(batch.kind[strange & ~batch.masked][0])
            raise ValueError(f"this network reads text, features and codes; the batch has tokens of kind {kind}")

    def features(self, pixels: Tensor) -> Tensor:
        """Pictures [I, 3, H, W] -> rows of features [R, D], which ``Batch.feature`` numbers."""
        if self.vision is None:
            raise ValueError(
                "the batch has pictures to read, but the model was built or loaded without its vision part"
            )
        return self.vision(pixels).flatten(0, 1)

    def _embed_und(self, batch: Batch, layout: Layout) -> Tensor | None:
        if layout.und is None:
            return None
        reads = layout.reads
        ids = batch.ids.masked_fill(batch.masked, self.mask_id).flatten().index_select(0, layout.und.token)
        if reads.other is not None:
            ids = ids.masked_fill(reads.other, self.mask_id)
        x = self.embed(ids)
        feature_N = reads.feature
        if feature_N is None and batch.pixels is not None and torch.is_grad_enabled():
            # All pictures were dropped. Processes that share weights need the same gradients, if only zeros.
            feature_N = torch.zeros_like(ids, dtype=torch.bool)
        if feature_N is not None and reads.row is not None and (features := self._all_features(batch)) is not None:
            x = torch.where(feature_N[:, None], rows_at(features, reads.row).to(x.dtype), x)
        return placed(x, batch, layout.und.token, self.registers.text) if self.has_registers else x

    def _all_features(self, batch: Batch) -> Tensor | None:
        found = [] if batch.pixels is None else [self.features(batch.pixels)]
        if batch.features is not None:
            found.append(batch.features)
        return torch.cat(found) if len(found) > 1 else found[0] if found else None

    def _embed_gen(self, batch: Batch, layout: Layout) -> Tensor | None:
        if layout.gen is None:
            return None
        squares = layout.squares
        token, pad = (layout.gen.token, layout.gen.pad) if squares is None else (squares.token, squares.pad)
        codes = batch.ids.masked_fill(batch.masked, self.config.mask_code).flatten().index_select(0, token)
        if pad is not None:
            codes = codes.masked_fill(pad, self.config.mask_code)
        alone = None if squares is None or squares.alone is None else squares.alone[None]
        x = self.code_embedding(codes[None], None if squares is None else squares.places[None], alone)[0]
        return placed(x, batch, layout.gen.token, self.registers.code) if self.has_registers else x

    def _run(
        self,
        layout: Layout,
        u_ND: Tensor | None,
        g_NE: Tensor | None,
        text: Asked,
        codes: Asked,
        memory: Memory | None,
    ) -> tuple[Tensor | None, Tensor | None]:
        scores_text, streams, below = bool(len(text.at)), (u_ND, g_NE), len(self.blocks) - 1

        def layers(given: Streams, memory: Memory | None) -> Streams:
            return self._through(range(below), layout, given, scores_text, memory, Read())

        # How many positions an expert gets is known on the device alone, so such layers are not captured.
        if self.graphs is not None and self.config.experts is None and not torch.is_grad_enabled():
            streams = self.graphs.run(layers, self.blocks, layout, streams, text=scores_text, memory=memory)
        else:
            streams = layers(streams, memory)
        read = Read(und=text.read, gen=codes.read)
        return self._through(range(below, below + 1), layout, streams, scores_text, memory, read)

    def _through(
        self, numbers: range, layout: Layout, streams: Streams, scores_text: bool, memory: Memory | None, read: Read
    ) -> Streams:
        """The streams after some layers; an understanding stream that nobody reads ends with the last joint layer."""
        u_ND, g_NE = streams
        for i in numbers:
            if u_ND is None and g_NE is None:
                break
            ends = not scores_text and i >= self.config.joint_layers - 1
            layer, block = memory.layer(i) if memory else None, self.blocks[i]
            u_ND, g_NE = block(u_ND, g_NE, layout.groups, self.attention, last_und=ends, memory=layer, read=read)
        return u_ND, g_NE

    def _read_text(self, text: Asked, u_ND: Tensor | None, score: _Score, kind: int) -> Scored:
        config = self.config
        if u_ND is None:
            weight = self.embed.weight
            none, hidden = weight.new_zeros(0, config.vocab_size), weight.new_zeros(0, config.width)
            return Scored(at=text.at, logits=none, hidden=hidden)
        h_ND, rows = _padded(rows_at(u_ND, text.row))
        h_ND = self.norm(h_ND)
        head = Head(layer=self.text_head, size=config.vocab_size)
        if kind == Kind.CODE:
            only = CodeRows(head=self.text_head, first=config.first_code, codes=config.codes)
            head = Head(layer=only, size=config.codes)
        return score(text.at, h_ND, rows, head)

    def _read_codes(self, layout: Layout, codes: Asked, g_NE: Tensor, score: _Score) -> Scored:
        # The final norm runs over the full width, of which a generation position fills only the first channels (spec 1.4).
        h = rms_norm(g_NE, self.norm.weight[: g_NE.shape[-1]], self.config.norm_eps, width=self.config.width)
        if layout.squares is None or codes.corner is None:
            found = rows_at(h, codes.row)
        else:
            found = rows_at(self.code_head.unfolded(h).flatten(0, 1), 4 * codes.row + codes.corner)
            if layout.squares.alone is not None:
                found = torch.where(layout.squares.alone[codes.position][:, None], rows_at(h, codes.row), found)
        h_NE, rows = _padded(found)
        head = Head(layer=self.code_head, size=self.config.codes)
        return score(codes.at, h_NE, rows, head)


def _vision(config: ElasticConfig) -> Vision | QwenVision | None:
    if config.tower:
        return QwenVision(config.tower, config.width)
    return Vision(config.vision, config.width) if config.vision else None


def _with_logits(at_N: Tensor, h_ND: Tensor, rows: int, head: Head) -> Scored:
    return Scored(at=at_N, logits=head(h_ND)[:rows], hidden=h_ND[:rows])


def _without_logits(at_N: Tensor, h_ND: Tensor, rows: int, head: Head) -> Scored:
    return Scored(at=at_N, hidden=h_ND[:rows], head=head)


def _padded(x_ND: Tensor) -> tuple[Tensor, int]:
    """With rows behind it up to a multiple of those that round alike, and how many there were.

    So the logits of a token do not depend on how many tokens are scored (docs/notes/0005-engine.md).
    """
    rows = len(x_ND)
    return F.pad(x_ND, (0, 0, 0, -rows % alike_from(x_ND))), rows


def _counts(predict_BL: Tensor, layout: Layout) -> tuple[int | None, int | None]:
    """How many tokens each branch scores, text and codes; None where only the device knows."""
    told = counts_told(predict_BL)
    if told is None or layout.scores is None:
        return None, None
    return (sum(told), 0) if layout.scores == "und" else (0, sum(told))


def _writable_kind(batch: Batch, kind_BL: Tensor) -> int | None:
    """The kind of all writable tokens; None where they differ."""

    def found() -> int | None:
        kinds = kind_BL[batch.writable & batch.valid].unique().tolist()
        return kinds[0] if len(kinds) == 1 else None

    return derived("writable kind", found, kind_BL, batch.writable, batch.valid)


def _memory(reuse: Reuse | None, layout: Layout) -> Memory | None:
    if reuse is None:
        return None
    slots = {
        name: Slots(slot=s.slot, size=s.key_index.shape[1]) for name, s in layout.streams.items() if s.slot is not None
    }
    return Memory(state=reuse.state, slots=slots)


def _next_state(reuse: Reuse | None, memory: Memory | None, length: int) -> State | None:
    if reuse is None or memory is None:
        return None
    held = torch.zeros_like(reuse.keep) if reuse.state is None else reuse.state.held & ~reuse.compute
    return State(held=without_registers(held | reuse.keep, length), tensors=memory.tensors)


def init(model: nn.Module, generator: torch.Generator) -> None:
    """Normal weights of deviation 1 / sqrt(fan in) (the last of every MLP scaled down by depth) and 0.5 in tables; other vectors one,
    biases and newlines zero.
    """
    depth = len(model.blocks) if isinstance(model, Elastic) else 1
    mlps = [m for m in model.modules() if isinstance(m, SwiGLU | VisionLayer)]
    last = {m.down if isinstance(m, SwiGLU) else m.fc2 for m in mlps}
    with torch.no_grad():
        for module in model.modules():
            for name, p in module.named_parameters(recurse=False):
                if name == "bias" or isinstance(
                    module, Vision
                ):  # a vision part has one parameter of its own, the newline
                    p.zero_()
                elif p.dim() == 1:
                    p.fill_(1.0)
                elif isinstance(module, nn.Embedding):
                    p.normal_(0, 0.5, generator=generator)
                else:
                    fan_in = len(p) if isinstance(module, Unfold) else p[0].numel()
                    scale = (2 * depth) ** -0.5 if module in last else 1.0
                    p.normal_(0, scale * fan_in**-0.5, generator=generator)
