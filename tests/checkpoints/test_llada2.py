"""LLaDA2's network against plain formulas on small random weights, and the folders that are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

import unmask
from tests.tiny_llada2 import CONFIG, write_text_model
from unmask.checkpoints.llada2 import survey_llada2
from unmask.checkpoints.loading import load_everything
from unmask.checkpoints.stream import CheckpointError
from unmask.models.elastic import Elastic
from unmask.models.experts import Experts, Router
from unmask.models.sizes import ExpertsConfig
from unmask.pipeline.adapting import merge
from unmask.pipeline.exporting import export_like
from unmask.pipeline.loading import read_spec
from unmask.sequence import Kind, collate
from unmask.tasks.conversing import Message
from unmask.tokens.llada2 import text_row

BLOCK = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text_model(tmp_path_factory.mktemp("llada2"))


def _rms(x: Tensor, weight: Tensor) -> Tensor:
    return weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


def _rotated(x: Tensor) -> Tensor:
    """[L, heads, 12]: the first half of the channels turn, in half-split pairs."""
    turning = int(CONFIG["partial_rotary_factor"] * x.shape[-1])
    inverse = CONFIG["rope_theta"] ** (-torch.arange(0, turning, 2) / turning)
    angle = torch.arange(len(x))[:, None, None] * inverse
    a, b = x[..., : turning // 2], x[..., turning // 2 : turning]
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin(), x[..., turning:]], dim=-1)


def _mlp(w: dict[str, Tensor], prefix: str, x: Tensor) -> Tensor:
    gate, up, down = (w[f"{prefix}.{m}_proj.weight"] for m in ("gate", "up", "down"))
    return (F.silu(x @ gate.T) * (x @ up.T)) @ down.T


def _experts(w: dict[str, Tensor], prefix: str, x: Tensor) -> Tensor:
    out = _mlp(w, f"{prefix}.shared_experts", x)
    size = CONFIG["num_experts"] // CONFIG["n_group"]
    for n, one in enumerate(x):
        score = torch.sigmoid(w[f"{prefix}.gate.weight"] @ one)
        biased = (score + w[f"{prefix}.gate.expert_bias"]).tolist()
        groups = sorted(range(CONFIG["n_group"]), key=lambda g: -sum(sorted(biased[g * size : g * size + size])[-2:]))
        open_ = [e for e in range(len(biased)) if e // size in groups[: CONFIG["topk_group"]]]
        chosen = sorted(open_, key=lambda e: -biased[e])[: CONFIG["num_experts_per_tok"]]
        whole = sum(score[e] for e in chosen)
        for e in chosen:
            weight = score[e] / whole * CONFIG["routed_scaling_factor"]
            out[n] += weight * _mlp(w, f"{prefix}.experts.{e}", one[None])[0]
    return out


def _logits(w: dict[str, Tensor], ids: Tensor) -> Tensor:
    heads, kv, width = (CONFIG[n] for n in ("num_attention_heads", "num_key_value_heads", "head_dim"))
    block = torch.arange(len(ids)) // BLOCK
    x = w["model.word_embeddings.weight"][ids]
    for i in range(CONFIG["num_hidden_layers"]):
        p = f"model.layers.{i}"
        n = _rms(x, w[f"{p}.input_layernorm.weight"]) @ w[f"{p}.attention.query_key_value.weight"].T
        q, k, v = (part.unflatten(1, (-1, width)) for part in n.split([heads * width, kv * width, kv * width], 1))
        q = _rotated(_rms(q, w[f"{p}.attention.query_layernorm.weight"]))
        k = _rotated(_rms(k, w[f"{p}.attention.key_layernorm.weight"]))
        mixed = []
        for h in range(heads):
            score = q[:, h] @ k[:, h // (heads // kv)].T / width**0.5
            score = score.masked_fill(block[:, None] < block[None], -torch.inf)
            mixed.append(score.softmax(1) @ v[:, h // (heads // kv)])
        x = x + torch.cat(mixed, 1) @ w[f"{p}.attention.dense.weight"].T
        m = _rms(x, w[f"{p}.post_attention_layernorm.weight"])
        x = x + (_mlp(w, f"{p}.mlp", m) if i < CONFIG["first_k_dense_replace"] else _experts(w, f"{p}.mlp", m))
    return _rms(x, w["model.norm.weight"]) @ w["lm_head.weight"].T


def _opened(folder: Path) -> Elastic:
    return load_everything(survey_llada2(folder))[0]


def test_logits_are_those_of_the_plain_formulas(folder: Path) -> None:
    ids = torch.randint(0, 256, (14,), generator=torch.Generator().manual_seed(3))
    batch = collate([text_row(ids.tolist(), BLOCK)], [0])
    with torch.no_grad():
        ours = _opened(folder)(batch, predict=batch.valid).logits(Kind.TEXT)
    wanted = _logits(load_file(folder / "model.safetensors"), ids)
    assert float((ours - wanted).abs().max()) < 1e-4 < float(wanted.abs().max())


def test_the_bias_chooses_and_does_not_weigh() -> None:
    config = ExpertsConfig(count=4, chosen=2, width=4, groups=2, groups_chosen=1, scale=2.0)
    router = Router(4, config).eval()
    router.weight.data, router.bias.data = torch.eye(4), torch.tensor([0.0, 0.0, 3.0, 0.0])
    found = router(torch.tensor([[1.0, 1.0, -1.0, 0.0]]))
    assert found.experts.tolist() == [[2, 3]]  # the group of the two largest with the bias
    score = torch.tensor([-1.0, 0.0]).sigmoid()
    assert torch.allclose(found.weights[0], 2 * score / score.sum())


def test_a_group_is_ranked_by_its_two_best() -> None:
    config = ExpertsConfig(count=6, chosen=1, width=4, groups=2, groups_chosen=1)
    router = Router(6, config).eval()
    router.weight.data, router.bias.data = torch.zeros(6, 6), torch.tensor([0.9, 0.0, 0.0, 0.5, 0.5, 0.0])
    with torch.no_grad():
        found = router(torch.zeros(1, 6))
    assert (
        int(found.experts[0, 0]) in (3, 4) and float(found.weights[0, 0]) == 0.5 * config.scale
    )  # one is not normalised


def test_a_position_does_not_depend_on_the_others() -> None:
    experts = Experts(8, ExpertsConfig(count=8, chosen=2, width=8, groups=2, groups_chosen=1)).eval()
    rng = torch.Generator().manual_seed(0)
    for p in experts.parameters():
        p.data = torch.randn(p.shape, generator=rng)
    x = torch.randn(40, 8, generator=rng)
    with torch.no_grad():
        assert torch.equal(experts(x)[:16], experts(x[:16]))


def test_experts_learn_and_the_bias_does_not() -> None:
    experts = Experts(8, ExpertsConfig(count=4, chosen=2, width=8, groups=2, groups_chosen=1))
    torch.nn.init.normal_(experts.router.weight)
    experts(torch.randn(9, 8)).square().sum().backward()
    assert experts.router.weight.grad is not None and bool(experts.router.weight.grad.any())
    assert experts.router.bias.grad is None and any(e.gate.weight.grad is not None for e in experts.experts)


def test_a_text_model_answers(folder: Path) -> None:
    model = unmask.load(str(folder), device="cpu")
    said = model.ask("why?", max_tokens=40, steps=4)
    assert said.text == unmask.load(str(folder), device="cpu").ask("why?", max_tokens=40, steps=4).text
    row = model.parts.family.template.conversation(model.parts.builder(), [_user("hi")], 3)
    assert model.parts.text.show(row.ids.tolist()) == (
        "<role>SYSTEM</role>detailed thinking off<|role_end|><role>HUMAN</role>hi<|role_end|><role>ASSISTANT</role>"
        + 3 * "<|mask|>"
    )


def test_a_written_copy_has_the_released_names(folder: Path, tmp_path: Path) -> None:
    spec = read_spec(folder)
    net, _ = load_everything(spec.checkpoint)
    export_like(spec, net.state_dict(), tmp_path)
    wanted, found = (load_file(place / "model.safetensors") for place in (folder, tmp_path))
    assert wanted.keys() == found.keys() and all(torch.equal(wanted[n], found[n]) for n in wanted)


def _user(text: str) -> Message:
    return Message(role="user", text=text)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"norm_topk_prob": False}, "norm_topk_prob is False, wanted"),
        ({"score_function": "softmax"}, "score_function is 'softmax'"),
        ({"use_qkv_bias": True}, "use_qkv_bias"),
        ({"num_experts": 8}, "num_experts 8 does not fit the weights"),
        ({"topk_group": 9}, "groups"),
        ({"rope_parameters": {"rope_theta": 1e6}}, "rope_theta has several values"),
        ({"num_key_value_heads": 3}, "query_key_value"),
    ],
)
def test_another_configuration_is_refused_by_its_field(folder: Path, tmp_path: Path, changes: dict, told: str) -> None:
    for name in ("tokenizer.json", "model.safetensors"):
        (tmp_path / name).symlink_to(folder / name)
    raw = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(raw | changes))
    with pytest.raises(CheckpointError, match=told):
        survey_llada2(tmp_path)


def test_missing_fields_are_not_guessed(folder: Path, tmp_path: Path) -> None:
    raw = json.loads((folder / "config.json").read_text())
    del raw["routed_scaling_factor"]
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(CheckpointError, match="lacks routed_scaling_factor"):
        survey_llada2(tmp_path)


def test_llada22_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="LLaDA2.2: its tokenizer has <DELETE> and <INSERT>"):
        survey_llada2(write_text_model(tmp_path, extra=("<INSERT>", "<DELETE>")))


def test_llada_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "llada2_moe_veomni", "architectures": ["LLaDA2MoeModelLM"]})
    )
    with pytest.raises(CheckpointError, match="LLaDA-Image"):
        unmask.load(str(tmp_path))


def _in_eight_bits(folder: Path, place: Path, ending: str, block: tuple[int, int]) -> Path:
    """A copy whose layers are e4m3 with a scale for each block; 0: for a whole side."""
    place.mkdir()
    for name in ("tokenizer.json", "config.json"):
        (place / name).symlink_to(folder / name)
    out = dict[str, Tensor]()
    for name, weight in load_file(folder / "model.safetensors").items():
        out[name] = weight.bfloat16()
        if ".layers." not in name or weight.dim() != 2 or name.endswith("gate.weight"):
            continue
        sides = [side or size for side, size in zip(block, weight.shape, strict=True)]
        tiles = [range(0, size, side) for side, size in zip(sides, weight.shape, strict=True)]
        scale = torch.ones(len(tiles[0]), len(tiles[1]))
        small = torch.empty_like(weight)
        for i, top in enumerate(tiles[0]):
            for j, left in enumerate(tiles[1]):
                at = (slice(top, top + sides[0]), slice(left, left + sides[1]))
                scale[i, j] = weight[at].abs().max() / 448
                small[at] = weight[at] / scale[i, j]
        out |= {name: small.to(torch.float8_e4m3fn), f"{name}{ending}": scale}
    save_file(out, place / "model.safetensors")
    return place


@pytest.mark.parametrize(
    ("ending", "block"), [("_scale_inv", (4, 32)), ("_scale", (1, 0)), ("_scale", (0, 0)), ("_scale_inv", (8, 8))]
)
def test_eight_bit_floats_are_read(folder: Path, tmp_path: Path, ending: str, block: tuple[int, int]) -> None:
    place = _in_eight_bits(folder, tmp_path / "fp8", ending, block)
    wanted, found = _opened(folder).state_dict(), _opened(place).state_dict()
    for name, weight in found.items():
        near = 0.07 * wanted[name].abs() + 0.003 * wanted[name].abs().max()  # four bits of the mantissa
        assert bool(((weight.float() - wanted[name]).abs() <= near).all()), name
    model = unmask.load(str(place), device="cpu")
    assert model.ask("why?", max_tokens=9, steps=2)


def test_eight_bit_floats_without_their_scales_are_refused(folder: Path, tmp_path: Path) -> None:
    place = _in_eight_bits(folder, tmp_path / "fp8", "_scale_inv", (0, 0))
    weights = load_file(place / "model.safetensors")
    lost = "model.layers.1.attention.dense.weight"
    save_file({n: w for n, w in weights.items() if n != f"{lost}_scale_inv"}, place / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"{lost} is stored as F8_E4M3 without {lost}_scale_inv"):
        survey_llada2(place)
    save_file(weights | {f"{lost}_scale_inv": torch.ones(5, 7)}, place / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"does not fit its scale of \(5, 7\)"):
        survey_llada2(place)


def test_adapters_by_the_released_names_are_added_and_merged(folder: Path, tmp_path: Path) -> None:
    """One of the joint matrix of queries, keys and values, and one of a plain layer."""
    weights, place, rng = load_file(folder / "model.safetensors"), tmp_path / "lora", torch.Generator().manual_seed(2)
    place.mkdir()
    made, wanted = dict[str, Tensor](), dict(weights)
    for layer in ("model.layers.1.attention.query_key_value", "model.layers.0.mlp.up_proj"):
        out, inner = weights[f"{layer}.weight"].shape
        down, up = (torch.randn(n, m, generator=rng) for n, m in ((3, inner), (out, 3)))
        made |= {f"base_model.model.{layer}.lora_A.weight": down, f"base_model.model.{layer}.lora_B.weight": up}
        wanted[f"{layer}.weight"] = weights[f"{layer}.weight"] + 2 * up @ down
    save_file(made, place / "adapter_model.safetensors")
    (place / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 3, "lora_alpha": 6}))
    merge(folder, place, tmp_path / "merged")
    found = load_file(tmp_path / "merged" / "model.safetensors")
    assert all(torch.allclose(found[name], wanted[name], atol=1e-4) for name in wanted)
    said = [
        unmask.load(str(at), device="cpu", lora=lora).ask("why?", max_tokens=12, steps=4).text
        for at, lora in ((folder, ()), (folder, str(place)), (tmp_path / "merged", ()))
    ]
    assert said[0] != said[1] == said[2]
