"""Causal checkpoints in Dream's layout: the same function from left to right, the new control tokens, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

import unmask
from unmask.checkpoints.stream import CheckpointError
from unmask.pipeline.causal import as_dream
from unmask.pipeline.text_model import TextModel
from unmask.sequence import Kind, Sequence, Span, collate

from .. import tiny_causal, tiny_dream

torch.set_num_threads(1)


def opened(source: Path, out: Path) -> TextModel:
    as_dream(source, out)
    made = unmask.load(out)
    assert isinstance(made, TextModel)
    return made


def ours(model: TextModel, ids: list[int]) -> Tensor:
    """The prediction of each token from those before it, [L - 1, V]."""
    span = Span(name="text", kind=Kind.TEXT, start=0, stop=len(ids), writable=True, order_step=1)
    row = Sequence(ids=torch.tensor(ids), masked=torch.zeros(len(ids), dtype=torch.bool), spans=(span,))
    batch = collate([row], [0])
    predict = batch.valid.clone()
    predict[0, 0] = False
    with torch.no_grad():
        return model.parts.net(batch, predict=predict).logits(Kind.TEXT)


def theirs(folder: Path, ids: list[int]) -> Tensor:
    """The same, written from the description of Qwen2 and Llama: RMS norms, rotary positions, grouped keys, SwiGLU."""
    raw, w = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    heads, keys, eps, theta = (
        raw[n] for n in ("num_attention_heads", "num_key_value_heads", "rms_norm_eps", "rope_theta")
    )
    size, length = raw["hidden_size"] // heads, len(ids)
    angle = torch.arange(length)[:, None] / theta ** (torch.arange(0, size, 2) / size)
    cos, sin = (torch.cat([f(angle)] * 2, dim=1) for f in (torch.cos, torch.sin))

    def norm(x: Tensor, name: str) -> Tensor:
        return x * (x.square().mean(1, keepdim=True) + eps).rsqrt() * w[name]

    def turned(x: Tensor) -> Tensor:
        a, b = x.chunk(2, dim=2)
        return x * cos + torch.cat([-b, a], dim=2) * sin

    x = w["model.embed_tokens.weight"][ids]
    for i in range(raw["num_hidden_layers"]):
        at, h = f"model.layers.{i}", norm(x, f"model.layers.{i}.input_layernorm.weight")
        q, k, v = (
            F.linear(h, w[f"{at}.self_attn.{n}_proj.weight"], w.get(f"{at}.self_attn.{n}_proj.bias"))
            .view(length, -1, size)
            .transpose(0, 1)
            for n in "qkv"
        )
        k, v = (t.repeat_interleave(heads // keys, 0) for t in (turned(k), v))
        seen = F.scaled_dot_product_attention(turned(q), k, v, is_causal=True)
        x = x + F.linear(seen.transpose(0, 1).reshape(length, -1), w[f"{at}.self_attn.o_proj.weight"])
        h = norm(x, f"{at}.post_attention_layernorm.weight")
        gate, up = (F.linear(h, w[f"{at}.mlp.{n}_proj.weight"]) for n in ("gate", "up"))
        x = x + F.linear(F.silu(gate) * up, w[f"{at}.mlp.down_proj.weight"])
    head = w.get("lm_head.weight", w["model.embed_tokens.weight"])
    return F.linear(norm(x, "model.norm.weight"), head)[:-1]


@pytest.mark.parametrize("kind", ["qwen2", "llama"])
def test_the_network_computes_the_same_function(kind: str, tmp_path: Path) -> None:
    source = tiny_causal.make(tmp_path / kind, kind)
    model, ids = opened(source, tmp_path / "out"), [65, 80, 72, 90, 101, 66, 70]
    same = [i for i in range(320) if i not in model.parts.text.control.values()]  # rows of new control tokens are new
    assert torch.allclose(ours(model, ids)[:, same], theirs(source, ids)[:, same], atol=2e-5)


def test_the_missing_control_tokens_are_added(tmp_path: Path) -> None:
    """Behind the tokens that there are, in spare rows or in new ones; the rows are the mean of the others."""
    for number, (kind, rows) in enumerate((("qwen2", 320), ("llama", 320), ("qwen2", 284), ("llama", 281))):
        source = tiny_causal.make(tmp_path / f"{number}", kind, rows=rows)
        model = opened(source, tmp_path / f"out{number}")
        text, table = model.parts.text, model.parts.net.embed.weight
        assert text.spelled and {"<|mask|>", "<|im_start|>", "<|im_end|>"} <= set(text.tokenizer.get_vocab())
        assert len(table) == max(rows, text.size)
        mask = model.parts.net.mask_id
        known = load_file(source / "model.safetensors")["model.embed_tokens.weight"]
        assert mask == text.size - 1 and torch.allclose(table[mask], known.mean(0), atol=1e-6)
        kept = min(rows, 281)
        assert torch.equal(table[:kept], known[:kept])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"model_type": "gpt2"},
            "model_type 'gpt2' is not a causal model that can be adapted; wanted qwen2, llama, mistral",
        ),
        ({"rope_scaling": {"type": "yarn"}}, "rope_scaling"),
        ({"model_type": "mistral", "sliding_window": 64}, "sliding_window 64 is not supported"),
        ({"hidden_act": "gelu"}, "hidden_act"),
    ],
)
def test_layers_that_dream_has_not_are_refused(change: dict[str, object], said: str, tmp_path: Path) -> None:
    source = tiny_causal.make(tmp_path / "model", **change)  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match=said):
        as_dream(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_damaged_weights_are_named(tmp_path: Path) -> None:
    source = tiny_causal.make(tmp_path / "model")
    tensors = load_file(source / "model.safetensors")
    for number, (changed, said) in enumerate(
        (
            ({k: v for k, v in tensors.items() if "down_proj" not in k}, "missing model.layers.0.mlp.down_proj.weight"),
            (tensors | {"model.layers.0.self_attn.o_proj.bias": torch.zeros(32)}, "o_proj.bias is of no layer"),
        )
    ):
        broken = Path(shutil.copytree(source, tmp_path / f"broken{number}"))
        save_file(changed, broken / "model.safetensors")
        with pytest.raises(CheckpointError, match=said):
            as_dream(broken, tmp_path / "out")
    dream = tiny_dream.make(tmp_path / "dream")
    with pytest.raises(CheckpointError, match="model_type 'Dream' is not a causal model"):
        as_dream(dream, tmp_path / "out")
