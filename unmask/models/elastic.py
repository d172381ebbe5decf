"""Lavida-O's network (spec 1.3 to 1.7): Elastic Mixture-of-Transformers over text, picture features and image codes.

Public idea: ``Elastic(config)(batch) -> Prediction``. Work follows need: each branch runs over its own positions, only tokens to
score reach a head, and where no text is scored the understanding branch ends with the last joint layer.

Shapes: B rows · L tokens · U understanding positions · C code positions · T code tokens · D width · E generation width · N tokens scored.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unmask.models.attention import Attention, plain
from unmask.models.blocks import ElasticBlock, Geometry, RMSNorm, SwiGLU, rms_norm
from unmask.models.codes import CodeEmbedding, CodeHead, Unfold
from unmask.models.memory import Memory, Slots
from unmask.models.registers import REGISTER, Registers, placed, with_registers, without_registers
from unmask.models.rope import rope_table
from unmask.models.sizes import ElasticConfig
from unmask.models.streams import Squares, Stream, attend, flat_tokens, squares_of, stream
from unmask.models.vision import Vision, VisionLayer
from unmask.sequence import Batch, Branch, Kind
from unmask.step import Head, Prediction, Reuse, Scored, State

_Score = Callable[
    [Tensor, Tensor, int, Head], Scored
]  # (token numbers [N], padded hidden states, how many count, head)


class Elastic(nn.Module):
    """The model. ``mask_id``: the text id of a masked token, whose embedding is also the null embedding."""

    def __init__(self, config: ElasticConfig, *, mask_id: int, attention: Attention = plain) -> None:
        super().__init__()
        self.config, self.mask_id, self.attention = config, mask_id, attention
        self.embed = nn.Embedding(config.vocab_size, config.width)
        self.blocks = nn.ModuleList(ElasticBlock(config, joint=i < config.joint_layers) for i in range(config.layers))
        self.norm = RMSNorm(config.width, config.norm_eps)
        self.text_head = nn.Linear(config.width, config.vocab_size, bias=False)
        if config.gen_width:
            self.code_embedding = CodeEmbedding(config)
            self.code_head = CodeHead(config)
        self.vision = Vision(config.vision, config.width) if config.vision else None
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
        length = batch.ids.shape[1]
        if self.has_registers:
            batch, predict, reuse = with_registers(batch, predict, reuse, self.config)
        # 1. Two streams of positions, one for each branch.
        und = stream(batch.leader & batch.valid & (batch.branch == Branch.UND), reuse)
        gen = stream(batch.leader & batch.valid & (batch.branch == Branch.GEN), reuse)
        if gen is not None and not self.config.gen_width:
            raise ValueError(
                "the batch has image codes, but this is a text model without a generation branch; give it text"
            )
        squares = squares_of(batch, gen, reuse) if gen is not None else None
        # 2. Embed them: text and picture features, and codes, four to a position where they are folded.
        u_BUD = self._embed_und(batch, und)
        g_BCE = self._embed_gen(batch, gen, squares)
        # 3. The layers. Positions that are not computed lend their keys and values.
        memory = _memory(reuse, und, gen)
        wants_text = self._wants_text(batch, predict)
        u_BUD, g_BCE = self._run(self._geometry(batch, und, gen), u_BUD, g_BCE, wants_text, memory)
        # 4. The heads, over the tokens to score alone.
        scored = {Kind.TEXT: self._read_text(batch, predict, und, u_BUD, score, length)}
        if gen is not None and squares is not None and g_BCE is not None:
            scored[Kind.CODE] = self._read_codes(batch, predict, squares, g_BCE, score, length)
        return Prediction(scored=scored, state=_next_state(reuse, memory, length))

    @property
    def has_registers(self) -> bool:
        """Whether masked tokens may be left out, with registers in their place (Sparse-LaViDa)."""
        return bool(self.config.text_registers or self.config.code_registers)

    def _wants_text(self, batch: Batch, predict: Tensor) -> bool:
        """Whether any text is to be scored. ValueError for a token of a kind that this network does not read."""
        read = (batch.kind == Kind.TEXT) | (batch.kind == Kind.FEATURE) | (batch.branch == Branch.GEN)
        read = read | (batch.kind == REGISTER)
        strange = batch.valid & batch.leader & ~batch.masked & ~read
        wants_text, has_strange = torch.stack([(predict & (batch.kind == Kind.TEXT)).any(), strange.any()]).tolist()
        if has_strange:
            kind = int(batch.kind[strange][0])
            raise ValueError(f"this network reads text, features and codes; the batch has tokens of kind {kind}")
        return wants_text

    def features(self, pixels: Tensor) -> Tensor:
        """Pictures [I, 3, H, W] -> rows of features [R, D], which ``Batch.feature`` numbers."""
        if self.vision is None:
            raise ValueError(
                "the batch has pictures to read, but the model was built or loaded without its vision part"
            )
        return self.vision(pixels).flatten(0, 1)

    def _embed_und(self, batch: Batch, und: Stream | None) -> Tensor | None:
        if und is None:
            return None
        masked = batch.masked.gather(1, und.index)
        kind = batch.kind.gather(1, und.index)
        ids = batch.ids.gather(1, und.index).masked_fill(masked, self.mask_id)
        ids = ids.masked_fill(kind != Kind.TEXT, self.mask_id)
        x = self.embed(ids)
        features = self._all_features(batch)
        read = kind == Kind.FEATURE
        # In training also where all of them were dropped: processes that share weights need the same gradients, if only zeros.
        if features is not None and (torch.is_grad_enabled() or bool(read.any())):
            rows = features[batch.feature.gather(1, und.index)]
            x = torch.where(read[..., None], rows.to(x.dtype), x)
        return placed(x, batch, und.index, self.registers.text) if self.has_registers else x

    def _all_features(self, batch: Batch) -> Tensor | None:
        found = [] if batch.pixels is None else [self.features(batch.pixels)]
        if batch.features is not None:
            found.append(batch.features)
        return torch.cat(found) if len(found) > 1 else found[0] if found else None

    def _embed_gen(self, batch: Batch, gen: Stream | None, squares: Squares | None) -> Tensor | None:
        if gen is None or squares is None:
            return None
        codes = batch.ids.masked_fill(batch.masked, self.config.mask_code).gather(1, squares.index)
        codes = codes.masked_fill(~squares.valid, self.config.mask_code)
        x = self.code_embedding(codes, squares.square, squares.alone)
        return placed(x, batch, gen.index, self.registers.code) if self.has_registers else x

    def _run(
        self,
        geometry: Geometry,
        u_BUD: Tensor | None,
        g_BCE: Tensor | None,
        wants_text: bool,
        memory: Memory | None,
    ) -> tuple[Tensor | None, Tensor | None]:
        last = self.config.joint_layers - 1
        for i, block in enumerate(self.blocks):
            ends = not wants_text and i >= last
            layer = memory.layer(i) if memory else None
            u_BUD, g_BCE = block(u_BUD, g_BCE, geometry, self.attention, last_und=ends, memory=layer)
            if u_BUD is None and g_BCE is None:
                break
        return u_BUD, g_BCE

    def _geometry(self, batch: Batch, und: Stream | None, gen: Stream | None) -> Geometry:
        head_width, theta = self.config.width // self.config.heads, self.config.rope_theta
        empty = batch.position[:, :0]
        at_und, at_gen = (batch.position.gather(1, s.index) if s else empty for s in (und, gen))
        grouped = bool(((batch.segment > 0) | (batch.order != 0)).any())
        return Geometry(
            rope_und=rope_table(at_und, head_width, theta),
            rope_gen=rope_table(at_gen, head_width, theta),
            joint=attend(batch, [s for s in (gen, und) if s], grouped),
            und=attend(batch, [und], grouped) if und else None,
            gen=attend(batch, [gen], grouped) if gen else None,
        )

    def _read_text(
        self, batch: Batch, predict: Tensor, und: Stream | None, u_BUD: Tensor | None, score: _Score, length: int
    ) -> Scored:
        if u_BUD is None or und is None:
            weight, config = self.embed.weight, self.config
            none, hidden = weight.new_zeros(0, config.vocab_size), weight.new_zeros(0, config.width)
            return Scored(at=batch.ids.new_zeros(0), logits=none, hidden=hidden)
        wanted = (predict & (batch.kind == Kind.TEXT)).gather(1, und.index) & und.valid
        h_ND, rows = _rows_of_16(u_BUD[wanted])
        h_ND = self.norm(h_ND)
        head = Head(layer=self.text_head, size=self.config.vocab_size)
        return score(flat_tokens(und.index, length)[wanted], h_ND, rows, head)

    def _read_codes(
        self, batch: Batch, predict: Tensor, squares: Squares, g_BCE: Tensor, score: _Score, length: int
    ) -> Scored:
        # The final norm runs over the full width, of which a generation position fills only the first channels (spec 1.4).
        h = rms_norm(g_BCE, self.norm.weight[: g_BCE.shape[-1]], self.config.norm_eps, width=self.config.width)
        wanted = (predict & (batch.kind == Kind.CODE)).gather(1, squares.index) & squares.valid
        h_NE, rows = _rows_of_16(squares.codes_of(h, self.code_head.unfolded, wanted))
        head = Head(layer=self.code_head, size=self.config.codes)
        return score(flat_tokens(squares.index, length)[wanted], h_NE, rows, head)


def _with_logits(at_N: Tensor, h_ND: Tensor, rows: int, head: Head) -> Scored:
    return Scored(at=at_N, logits=head(h_ND)[:rows], hidden=h_ND[:rows])


def _without_logits(at_N: Tensor, h_ND: Tensor, rows: int, head: Head) -> Scored:
    return Scored(at=at_N, hidden=h_ND[:rows], head=head)


def _rows_of_16(x_ND: Tensor) -> tuple[Tensor, int]:
    """Padded to a multiple of 16 rows, and how many there were: over few, a matrix product takes another kernel, which rounds differently.

    So the logits of a token do not depend on how many tokens are scored (docs/notes/0005-engine.md).
    """
    rows = len(x_ND)
    return F.pad(x_ND, (0, 0, 0, -rows % 16)), rows


def _memory(reuse: Reuse | None, und: Stream | None, gen: Stream | None) -> Memory | None:
    if reuse is None:
        return None
    slots = {
        name: Slots(slot=s.slot, size=s.key_index.shape[1])
        for name, s in (("und", und), ("gen", gen))
        if s is not None and s.slot is not None
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
