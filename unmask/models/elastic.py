"""Lavida-O's network (spec 1.3 to 1.7): Elastic Mixture-of-Transformers over text, picture features and image codes.

Public idea: ``Elastic(config)(batch) -> Prediction``. Work follows need: each branch runs over its own positions, only tokens
asked for reach a head, and where no text is asked for the understanding branch ends with the last joint layer.

Shapes: B rows · L tokens · U understanding positions · C code positions · D width · E generation width · N tokens asked for.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unmask.models.attention import Attention, plain
from unmask.models.blocks import ElasticBlock, Geometry, RMSNorm, rms_norm
from unmask.models.codes import CodeEmbedding, CodeHead
from unmask.models.rope import rope_table
from unmask.models.sizes import ElasticConfig
from unmask.models.vision import Vision
from unmask.sequence import Batch, Branch, Kind, Prediction


class Elastic(nn.Module):
    """The model. ``mask_id``: the text id of an undecided token, whose embedding is also the null embedding."""

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

    def forward(
        self, batch: Batch, *, time: Tensor | None = None, ask: Tensor | None = None, carry: object = None
    ) -> Prediction:
        """Logits of the tokens in ``ask [B, L]`` (default: the masked ones). ``time`` is not read: this model has no clock.

        ``carry``: picture features of an earlier step over the same pixels, as returned in ``Prediction.carry``.
        """
        ask = batch.masked if ask is None else ask
        features = carry
        if features is None and batch.pixels is not None:
            features = self.features(batch.pixels)
        und = _pack(batch.leader & batch.valid & (batch.branch == Branch.UND))
        codes = _pack(batch.valid & (batch.branch == Branch.GEN))
        if codes is not None and not self.config.gen_width:
            raise ValueError(
                "the batch has image codes, but this is a text model without a generation branch; give it text"
            )
        gen = _leaders(codes, batch) if codes is not None else None
        wants_text = bool((ask & (batch.kind == Kind.TEXT)).any())
        u_BUD = self._embed_und(batch, und, features)  # type: ignore[arg-type]
        g_BCE = self._embed_gen(batch, codes) if codes is not None else None
        u_BUD, g_BCE = self._run(batch, u_BUD, g_BCE, und, gen, wants_text)
        text, text_logits = self._read_text(batch, ask, und, u_BUD)
        code, code_logits = self._read_codes(batch, ask, codes, g_BCE)
        return Prediction(text=text, text_logits=text_logits, code=code, code_logits=code_logits, carry=features)

    def features(self, pixels: Tensor) -> Tensor:
        """What pictures [I, 3, H, W] look like: the rows that ``batch.feature`` numbers, and the ``carry`` of ``forward``."""
        if self.vision is None:
            raise ValueError(
                "the batch has pictures to read, but the model was built or loaded without its vision part"
            )
        return self.vision(pixels).flatten(0, 1)

    def _embed_und(self, batch: Batch, und: tuple[Tensor, Tensor] | None, features: Tensor | None) -> Tensor | None:
        if und is None:
            return None
        index, _ = und
        masked = batch.masked.gather(1, index)
        kind = batch.kind.gather(1, index)
        ids = batch.ids.gather(1, index).masked_fill(masked, self.mask_id)
        ids = ids.masked_fill(kind != Kind.TEXT, self.mask_id)
        x = self.embed(ids)
        patch = kind == Kind.PATCH
        if features is not None and bool(patch.any()):
            seen = features[batch.feature.gather(1, index)]
            x = torch.where(patch[..., None], seen.to(x.dtype), x)
        return x

    def _embed_gen(self, batch: Batch, packed: tuple[Tensor, Tensor]) -> Tensor:
        index, valid = packed
        codes = batch.ids.masked_fill(batch.masked, self.config.mask_code).gather(1, index)
        codes = codes.masked_fill(~valid, self.config.mask_code)
        high, wide = batch.grid
        return self.code_embedding(codes.reshape(batch.rows, -1, high, wide), folded=batch.fold == 2)

    def _run(
        self,
        batch: Batch,
        u_BUD: Tensor | None,
        g_BCE: Tensor | None,
        und: tuple[Tensor, Tensor] | None,
        gen: tuple[Tensor, Tensor] | None,
        wants_text: bool,
    ) -> tuple[Tensor | None, Tensor | None]:
        geometry = self._geometry(batch, und, gen)
        last = self.config.joint_layers - 1
        for i, block in enumerate(self.blocks):
            ends = not wants_text and i >= last
            u_BUD, g_BCE = block(u_BUD, g_BCE, geometry, self.attention, last_und=ends)
            if u_BUD is None and g_BCE is None:
                break
        return u_BUD, g_BCE

    def _geometry(self, batch: Batch, und: tuple[Tensor, Tensor] | None, gen: tuple[Tensor, Tensor] | None) -> Geometry:
        head_width, theta = self.config.width // self.config.heads, self.config.rope_theta
        empty = batch.position[:, :0]
        at = [batch.position.gather(1, s[0]) if s else empty for s in (und, gen)]
        valid = [s[1] if s else empty.bool() for s in (und, gen)]
        segment = [batch.segment.gather(1, s[0]) if s else empty for s in (und, gen)]
        segments = bool((batch.segment > 0).any())
        return Geometry(
            rope_und=rope_table(at[0], head_width, theta),
            rope_gen=rope_table(at[1], head_width, theta),
            joint=_attend(torch.cat(valid[::-1], 1), torch.cat(segment[::-1], 1) if segments else None),
            und=_attend(valid[0], segment[0] if segments else None),
            gen=_attend(valid[1], segment[1] if segments else None),
        )

    def _read_text(
        self, batch: Batch, ask: Tensor, und: tuple[Tensor, Tensor] | None, u_BUD: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        if u_BUD is None or und is None:
            return batch.ids.new_zeros(0), self.embed.weight.new_zeros(0, self.config.vocab_size)
        index, valid = und
        wanted = (ask & (batch.kind == Kind.TEXT)).gather(1, index) & valid
        flat = (index + torch.arange(batch.rows, device=index.device)[:, None] * batch.ids.shape[1])[wanted]
        return flat, _in_company(u_BUD[wanted], lambda x: self.text_head(self.norm(x)))

    def _read_codes(
        self, batch: Batch, ask: Tensor, codes: tuple[Tensor, Tensor] | None, g_BCE: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        if g_BCE is None or codes is None:
            return batch.ids.new_zeros(0), self.embed.weight.new_zeros(0, self.config.codes)
        index, valid = codes
        # The final norm runs over the full width, of which a generation position fills only the first channels (spec 1.4).
        h = rms_norm(g_BCE, self.norm.weight[: g_BCE.shape[-1]], self.config.norm_eps, width=self.config.width)
        if batch.fold == 2:
            h = self.code_head.unfold_positions(h, batch.grid)
        wanted = (ask & (batch.kind == Kind.CODE)).gather(1, index) & valid
        flat = (index + torch.arange(batch.rows, device=index.device)[:, None] * batch.ids.shape[1])[wanted]
        return flat, _in_company(h[wanted], self.code_head)


def _in_company(x_ND: Tensor, head: Callable[[Tensor], Tensor]) -> Tensor:
    """A head over a multiple of 16 rows: over few, a matrix product takes another kernel, which rounds differently.

    So what a token's logits are does not depend on how many tokens are asked for (docs/notes/0005-engine.md).
    """
    rows = len(x_ND)
    return head(F.pad(x_ND, (0, 0, 0, -rows % 16)))[:rows]


def _pack(chosen_BL: Tensor) -> tuple[Tensor, Tensor] | None:
    """Chosen tokens of each row moved to the front: (token number [B, n], whether it is one [B, n]); None where there are none."""
    counts = chosen_BL.sum(1)
    most = int(counts.max())
    if most == 0:
        return None
    index = (~chosen_BL).to(torch.int8).argsort(dim=1, stable=True)[:, :most]
    return index, torch.arange(most, device=counts.device) < counts[:, None]


def _leaders(codes: tuple[Tensor, Tensor], batch: Batch) -> tuple[Tensor, Tensor]:
    """Of packed codes, whole grids of them, the first of every position: each fold-th row and column."""
    index, valid = (x.reshape(batch.rows, -1, *batch.grid)[..., :: batch.fold, :: batch.fold].flatten(1) for x in codes)
    return index, valid


def _attend(valid_BT: Tensor, segment_BT: Tensor | None) -> Tensor | None:
    """Who may read whom, [B, 1, T, T]: valid keys of the context or of one's own segment. None where everything may."""
    if segment_BT is None:
        if bool(valid_BT.all()):
            return None
        return valid_BT[:, None, None, :].expand(-1, 1, valid_BT.shape[1], -1)
    key, query = segment_BT[:, None, :], segment_BT[:, :, None]
    return (((key == 0) | (key == query)) & valid_BT[:, None, :])[:, None]


def init(model: nn.Module, generator: torch.Generator) -> None:
    """Normal weights of deviation 1 / sqrt(fan in) (the last of every MLP scaled down by depth), zero biases."""
    depth = len(model.blocks) if isinstance(model, Elastic) else 1
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("bias") or name.endswith("newline"):
                p.zero_()
            elif p.dim() == 1:
                p.fill_(1.0)
            elif "table" in name or "embed.weight" in name or "position" in name:
                p.normal_(0, 0.5 if "table" in name else 0.02 * 25, generator=generator)
            else:
                fan_in = p[0].numel() if "unfold." not in name else p.shape[0]
                scale = (2 * depth) ** -0.5 if name.endswith(("down.weight", ".fc2.weight")) else 1.0
                p.normal_(0, scale * fan_in**-0.5, generator=generator)
