"""Sound for a text trunk: a Whisper encoder and the two adapters of DIFFA (arXiv 2507.18452), as rows of features in the trunk's width.

Public idea: ``SpeechReader(config)``: ``heard(mel, frames)`` are the tokens of sounds for the trunk. Names of tensors are those of the
release; the encoder is that of Whisper (Radford et al. 2022, arXiv 2212.04356), the acoustic adapter a query transformer in BERT's
post-norm blocks.

Shapes: B sounds · F frames · T encoder steps (F / 2) · D width of the encoder · Q queries · W width of the trunk.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_EPS, _BERT_EPS = 1e-5, 1e-12
_STRIDE = 4  # encoder steps of a semantic token


@dataclass(frozen=True, kw_only=True)
class SpeechConfig:
    """``mels``: bands of a frame · ``width``, ``layers``, ``heads``, ``mlp``: of the encoder · ``positions``: encoder steps of its longest
    sound, two frames each · ``out``: W · ``taps``: the layers whose outputs the acoustic adapter reads, 0 the embeddings · ``queries``: Q ·
    ``query_layers``, ``query_mlp``: of its transformer · ``prompts``: learned tokens of the first training stage.
    """

    mels: int = 80
    width: int = 768
    layers: int = 12
    heads: int = 12
    mlp: int = 3072
    positions: int = 1500
    out: int = 4096
    taps: tuple[int, ...] = (2, 5, 8, 11)
    queries: int = 64
    query_layers: int = 2
    query_mlp: int = 3072
    prompts: int = 20

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"the width {self.width} is not a multiple of {self.heads} heads")
        if not self.taps or not 0 <= min(self.taps) <= max(self.taps) <= self.layers:
            raise ValueError(f"taps are layers in 0..{self.layers}, got {self.taps}")

    @property
    def frames(self) -> int:
        """Of the longest sound."""
        return 2 * self.positions


def steps_of(frames: int) -> int:
    """Encoder steps of a sound of so many frames."""
    return (frames - 1) // 2 + 1


def _attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Attention without a mask, [B, .., D]."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class WhisperAttention(nn.Module):
    def __init__(self, config: SpeechConfig) -> None:
        super().__init__()
        width, self.heads = config.width, config.heads
        self.q_proj, self.v_proj, self.out_proj = (nn.Linear(width, width) for _ in range(3))
        self.k_proj = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.out_proj(_attend(self.q_proj(x), self.k_proj(x), self.v_proj(x), self.heads))


class WhisperLayer(nn.Module):
    def __init__(self, config: SpeechConfig) -> None:
        super().__init__()
        self.self_attn = WhisperAttention(config)
        self.self_attn_layer_norm = nn.LayerNorm(config.width, eps=_EPS)
        self.fc1, self.fc2 = nn.Linear(config.width, config.mlp), nn.Linear(config.mlp, config.width)
        self.final_layer_norm = nn.LayerNorm(config.width, eps=_EPS)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.self_attn_layer_norm(x))
        return x + self.fc2(F.gelu(self.fc1(self.final_layer_norm(x))))


class WhisperEncoder(nn.Module):
    """Mel frames [B, mels, F] -> the output of every layer, [B, T, D] each: the embeddings first, the last one normed."""

    def __init__(self, config: SpeechConfig) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(config.mels, config.width, 3, padding=1)
        self.conv2 = nn.Conv1d(config.width, config.width, 3, stride=2, padding=1)
        self.embed_positions = nn.Embedding(config.positions, config.width)
        self.layers = nn.ModuleList(WhisperLayer(config) for _ in range(config.layers))
        self.layer_norm = nn.LayerNorm(config.width, eps=_EPS)

    def forward(self, mel: Tensor) -> list[Tensor]:
        x = F.gelu(self.conv2(F.gelu(self.conv1(mel)))).transpose(1, 2)
        if x.shape[1] != self.embed_positions.num_embeddings:
            raise ValueError(
                f"the encoder reads {2 * self.embed_positions.num_embeddings} frames, got {mel.shape[-1]}; pad the sound"
            )
        states = [x + self.embed_positions.weight]
        for layer in self.layers:
            states.append(layer(states[-1]))
        return [*states[:-1], self.layer_norm(states[-1])]


class SemanticConnector(nn.Module):
    """What is said: encoder steps [B, T, D] -> a token for every four, [B, T // 4, W]."""

    def __init__(self, config: SpeechConfig) -> None:
        super().__init__()
        width, wide = config.width, _STRIDE * config.width
        first, second = nn.Conv1d(width, width, 3, padding=1), nn.Conv1d(width, wide, 3, stride=_STRIDE, padding=1)
        self.conv = nn.Sequential(first, nn.GELU(), second)
        self.linear_connector = nn.Sequential(
            nn.Linear(wide, width), nn.ReLU(), nn.Linear(width, config.out), nn.ReLU()
        )
        self.layernorm = nn.LayerNorm(config.out, eps=_EPS)

    def forward(self, x: Tensor) -> Tensor:
        whole = x[:, : x.shape[1] // _STRIDE * _STRIDE].transpose(1, 2)
        return self.layernorm(self.linear_connector(self.conv(whole).transpose(1, 2)))


class QuerySelf(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))

    def forward(self, x: Tensor, read: Tensor) -> Tensor:
        return _attend(self.query(x), self.key(read), self.value(read), self.heads)


class QueryOutput(nn.Module):
    """norm(x + dense(y))."""

    def __init__(self, inner: int, width: int) -> None:
        super().__init__()
        self.dense, self.LayerNorm = nn.Linear(inner, width), nn.LayerNorm(width, eps=_BERT_EPS)

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        return self.LayerNorm(x + self.dense(y))


class QueryAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.self, self.output = QuerySelf(width, heads), QueryOutput(width, width)

    def forward(self, x: Tensor, read: Tensor) -> Tensor:
        return self.output(self.self(x, read), x)


class QueryIntermediate(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, inner)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.dense(x))


class QueryLayer(nn.Module):
    """Queries read each other, without a mask, then the sound."""

    def __init__(self, config: SpeechConfig) -> None:
        super().__init__()
        width = config.width
        self.attention = QueryAttention(width, config.heads)
        self.crossattention = QueryAttention(width, config.heads)
        self.intermediate = QueryIntermediate(width, config.query_mlp)
        self.output = QueryOutput(config.query_mlp, width)

    def forward(self, x: Tensor, sound: Tensor) -> Tensor:
        x = self.crossattention(self.attention(x, x), sound)
        return self.output(self.intermediate(x), x)


class Queries(nn.Module):
    def __init__(self, config: SpeechConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList(QueryLayer(config) for _ in range(config.query_layers))

    def forward(self, x: Tensor, sound: Tensor) -> Tensor:
        for layer in self.layer:
            x = layer(x, sound)
        return x


class AcousticConnector(nn.Module):
    """How it sounds: outputs of several layers [B, T, D] -> [B, Q, W]. The same transformer reads each; queries mix them by softmax."""

    def __init__(self, config: SpeechConfig) -> None:
        super().__init__()
        shape = (1, config.queries, config.width)
        self.layer_prompts = nn.ParameterList(nn.Parameter(torch.randn(shape)) for _ in config.taps)
        self.layer_weights = nn.Parameter(torch.zeros(config.queries, len(config.taps)))
        self.qformer = Queries(config)
        self.proj = nn.Sequential(nn.LayerNorm(config.width, eps=_EPS), nn.Linear(config.width, config.out))

    def forward(self, taps: list[Tensor]) -> Tensor:
        read = [
            self.qformer(query.expand(len(sound), -1, -1), sound)
            for query, sound in zip(self.layer_prompts, taps, strict=True)
        ]
        mixed = (torch.stack(read, dim=2) * self.layer_weights.softmax(-1)[None, ..., None]).sum(2)
        return self.proj(mixed)


class SpeechReader(nn.Module):
    """Encoder and adapters. The first training stage reads ``prompted``, the second ``heard``."""

    def __init__(self, config: SpeechConfig) -> None:
        super().__init__()
        self.config = config
        self.whisper_model = WhisperEncoder(config)
        self.semantic_connector = SemanticConnector(config)
        self.acoustic_connector = AcousticConnector(config)
        self.trainable_prompts = nn.Embedding(config.prompts, config.out)

    def semantic(self, states: list[Tensor], frames: Tensor) -> Tensor:
        """Of sounds of ``frames [B]`` frames, as many tokens as the longest has, [B, n, W]."""
        return self.semantic_connector(states[-1][:, : steps_of(int(frames.max()))])

    def acoustic(self, states: list[Tensor]) -> Tensor:
        """[B, Q, W]."""
        return self.acoustic_connector([states[tap] for tap in self.config.taps])

    def heard(self, mel: Tensor, frames: Tensor) -> Tensor:
        """Sounds [B, mels, F] -> acoustic, then semantic tokens, [B, Q + n, W]."""
        states = self.whisper_model(mel)
        return torch.cat([self.acoustic(states), self.semantic(states, frames)], dim=1)

    def prompted(self, mel: Tensor, frames: Tensor) -> Tensor:
        """Learned prompts, then semantic tokens, [B, prompts + n, W]."""
        prompts = self.trainable_prompts.weight.expand(len(mel), -1, -1)
        return torch.cat([prompts, self.semantic(self.whisper_model(mel), frames)], dim=1)
