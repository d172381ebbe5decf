"""LLaDA's layout: every tensor has its place, other layouts are named, and the network is a bidirectional Llama."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from unmask.checkpoints.lavida_o import names
from unmask.checkpoints.llada import is_llada, survey_llada
from unmask.checkpoints.loading import load_everything
from unmask.checkpoints.store import CheckpointError
from unmask.models.elastic import Elastic
from unmask.models.sizes import SIZES
from unmask.sequence import Kind, Sequence, Span, collate

from ..tiny_llada import CONFIG, make, tensors

torch.set_num_threads(1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make(tmp_path / "llada")


def load_llada(folder: Path) -> Elastic:
    return load_everything(survey_llada(folder))[0]


def text(ids: list[int]) -> Sequence:
    span = Span(name="text", kind=Kind.TEXT, start=0, stop=len(ids))
    return Sequence(ids=torch.tensor(ids), masked=torch.zeros(len(ids), dtype=torch.bool), spans=(span,))


def logits(net: Elastic, *rows: list[int]) -> list[Tensor]:
    """Of every token of rows that may differ in length, [L, V] each."""
    batch = collate([text(row) for row in rows], [0] * len(rows))
    with torch.no_grad():
        flat = net(batch, predict=batch.valid).logits(Kind.TEXT)
    return list(flat.split([len(row) for row in rows]))


def test_parity_with_a_bidirectional_llama(folder: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="pip install unmask[hf]", exc_type=ImportError)
    config = transformers.LlamaConfig(
        vocab_size=CONFIG["vocab_size"],
        hidden_size=CONFIG["d_model"],
        intermediate_size=CONFIG["mlp_hidden_size"],
        num_hidden_layers=CONFIG["n_layers"],
        num_attention_heads=CONFIG["n_heads"],
        rms_norm_eps=CONFIG["rms_norm_eps"],
        rope_parameters={"rope_type": "default", "rope_theta": CONFIG["rope_theta"]},
        tie_word_embeddings=False,
        attn_implementation="eager",
    )
    llama = transformers.LlamaForCausalLM(config).eval()
    theirs = {
        "model.transformer.wte": "model.embed_tokens",
        "model.transformer.ln_f": "model.norm",
        "model.transformer.ff_out": "lm_head",
    }
    inside = {
        "attn_norm": "input_layernorm",
        "ff_norm": "post_attention_layernorm",
        "q_proj": "self_attn.q_proj",
        "k_proj": "self_attn.k_proj",
        "v_proj": "self_attn.v_proj",
        "attn_out": "self_attn.o_proj",
        "ff_proj": "mlp.gate_proj",
        "up_proj": "mlp.up_proj",
        "ff_out": "mlp.down_proj",
    }
    for i in range(CONFIG["n_layers"]):
        theirs |= {f"model.transformer.blocks.{i}.{a}": f"model.layers.{i}.{b}" for a, b in inside.items()}
    weights = {f"{b}.weight": tensors()[f"{a}.weight"] for a, b in theirs.items()}
    assert len(weights) == len(tensors())
    llama.load_state_dict(weights)

    ids = torch.randint(0, 300, (3, 40), generator=torch.Generator().manual_seed(1))
    visible = torch.zeros(3, 1, 40, 40)  # added to the scores: every token may read every other
    with torch.no_grad():
        wanted = llama(ids, attention_mask=visible).logits
        causal = llama(ids).logits
    got = torch.stack(logits(load_llada(folder), *ids.tolist()))
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-4)
    assert (got[:, :-1] - causal[:, :-1]).abs().max() > 0.1  # the test would see a causal mask


def test_padding_changes_nothing(folder: Path) -> None:
    net = load_llada(folder)
    long, short = list(range(20, 60)), list(range(100, 109))
    together = logits(net, long, short)
    torch.testing.assert_close(together[1], logits(net, short)[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(together[0], logits(net, long)[0], atol=1e-5, rtol=1e-5)


def test_every_parameter_of_the_released_size_has_its_name() -> None:
    config = SIZES["llada_8b"]
    with torch.device("meta"):
        own = Elastic(config, mask_id=126336).state_dict()
    mapping = names(config)
    assert set(mapping) == set(own) and len(mapping) == 3 + 9 * 32
    of = {theirs: tuple(own[ours].shape) for ours, theirs in mapping.items()}
    assert of["transformer.wte.weight"] == of["transformer.ff_out.weight"] == (126464, 4096)
    assert of["transformer.blocks.31.ff_out.weight"] == (4096, 12288)
    # 32 layers of 218,112,000 (spec 9), two tables, one norm: the "8B" of the name.
    assert sum(t.numel() for t in own.values()) == 32 * 218_112_000 + 2 * 126464 * 4096 + 4096 == 8_015_581_184


def test_image_codes_are_refused(folder: Path) -> None:
    span = Span(name="image", kind=Kind.CODE, start=0, stop=4, grid=(2, 2), fold=2)
    codes = Sequence(ids=torch.zeros(4, dtype=torch.long), masked=torch.ones(4, dtype=torch.bool), spans=(span,))
    with pytest.raises(ValueError, match="text model without a generation branch"):
        load_llada(folder)(collate([codes], [0]))


# -- what can be wrong ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n_kv_heads", 2),
        ("activation_type", "gelu"),
        ("block_type", "sequential"),
        ("include_qkv_bias", True),
        ("rope", False),
        ("attention_layer_norm", True),
        ("bias_for_layer_norm", True),
        ("block_group_size", 2),
        ("layer_norm_with_affine", False),
        ("multi_query_attention", True),
        ("rope_full_precision", False),
        ("d_model", None),
        ("rope_theta", None),
    ],
)
def test_other_layouts_are_named(folder: Path, field: str, value: object) -> None:
    raw = json.loads((folder / "config.json").read_text())
    raw.pop(field, None)
    (folder / "config.json").write_text(json.dumps(raw | ({} if value is None else {field: value})))
    with pytest.raises(CheckpointError, match=field):
        load_llada(folder)


def test_missing_misshapen_and_unknown_are_named(folder: Path) -> None:
    file = folder / "model-00001-of-00002.safetensors"
    weights = load_file(file)
    gone, changed = "model.transformer.blocks.0.attn_norm.weight", "model.transformer.blocks.0.ff_norm.weight"
    assert gone in weights
    weights["model.transformer.extra.weight"] = torch.zeros(2)
    save_file(weights, file)
    with pytest.warns(UserWarning, match=r"transformer\.extra\.weight"):
        load_llada(folder)
    del weights[gone], weights["model.transformer.extra.weight"]
    weights[changed] = torch.zeros(31)
    second = folder / "model-00002-of-00002.safetensors"
    save_file({k: v for k, v in load_file(second).items() if k != changed}, second)
    save_file(weights, file)
    with pytest.raises(CheckpointError, match=rf"missing {gone.removeprefix('model.')}.*\(31,\), wanted \(32,\)"):
        load_llada(folder)


def test_a_missing_shard(folder: Path) -> None:
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match="1 of 2 shards"):
        load_llada(folder)


def test_lavida_o_is_not_taken_for_llada() -> None:
    fixture = Path(__file__).parents[1] / "golden" / "lavida_o_tiny" / "config.json"
    assert not is_llada(json.loads(fixture.read_text())) and is_llada(CONFIG)
