"""Checkpoints in the layout of LLaDA2 that fit into a test: random weights, byte-level tokens, other sizes than the measured fixture."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn

from unmask.models.unfilled import unfilled
from unmask.tokens.flux_vae import FluxConfig, FluxDecoder
from unmask.tokens.uni import Prior
from unmask.tokens.z_image import ZImage, ZImageConfig

CODES = 48
CONFIG = {
    "model_type": "llada2_moe",
    "architectures": ["LLaDA2MoeModelLM"],
    "hidden_size": 48,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "rms_norm_eps": 1e-6,
    "use_qk_norm": True,
    "rope_theta": 5000.0,
    "partial_rotary_factor": 0.5,
    "first_k_dense_replace": 1,
    "num_experts": 12,
    "num_experts_per_tok": 3,
    "num_shared_experts": 2,
    "moe_intermediate_size": 16,
    "n_group": 4,
    "topk_group": 2,
    "routed_scaling_factor": 1.7,
    "max_position_embeddings": 512,
    "norm_topk_prob": True,
    "score_function": "sigmoid",
}


def names(*, pictures: bool) -> list[str]:
    """The added tokens in the released order."""
    first = ["<|startoftext|>", "<|endoftext|>", "[CLS]", "[gMASK]", "<|mask|>"]
    first += ["<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<|role_end|>"]
    taken = {0: "<|mask|>", 6: "<|image|>", 7: "<|/image|>", 9: "<boi>"}
    sides = [
        taken.get(n, f"<|reserved_token_{n}|>") for n in range(6, 70) if n < 9 or n % 2 == 0 or n > 36 or n in taken
    ]
    return [*first, *(sides if pictures else ()), "<role>", "</role>"]


def tokenizer(*, pictures: bool, codes: int = CODES) -> Tokenizer:
    """The 256 bytes, the added tokens, and the codes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in names(pictures=pictures)])
    if pictures:
        made.add_tokens([AddedToken(f"<IMAGE{c}>", normalized=False) for c in range(codes)])
    return made


def random_tensors(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, Tensor]:
    """Normal weights of deviation 1 / sqrt(fan in), norms and biases around one and zero."""
    rng, out = torch.Generator().manual_seed(seed), {}
    for name, shape in shapes.items():
        scale = 0.2 if len(shape) == 1 else max(1, torch.Size(shape[1:]).numel()) ** -0.5
        out[name] = torch.randn(shape, generator=rng) * scale
        if len(shape) == 1 and name.endswith("weight"):
            out[name] += 1
    return out


def trunk_shapes(config: dict, vocabulary: int) -> dict[str, tuple[int, ...]]:
    width, head = config["hidden_size"], config["head_dim"]
    heads, kv = config["num_attention_heads"], config["num_key_value_heads"]
    shapes: dict[str, tuple[int, ...]] = {"model.word_embeddings.weight": (vocabulary, width)}
    shapes |= {"lm_head.weight": (vocabulary, width), "model.norm.weight": (width,)}

    def mlp(prefix: str, inner: int) -> dict[str, tuple[int, ...]]:
        each = {f"{prefix}.{m}_proj.weight": (inner, width) for m in ("gate", "up")}
        return each | {f"{prefix}.down_proj.weight": (width, inner)}

    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        shapes |= {f"{layer}.{n}.weight": (width,) for n in ("input_layernorm", "post_attention_layernorm")}
        shapes[f"{layer}.attention.query_key_value.weight"] = ((heads + 2 * kv) * head, width)
        shapes |= {f"{layer}.attention.{n}_layernorm.weight": (head,) for n in ("query", "key")}
        shapes[f"{layer}.attention.dense.weight"] = (width, heads * head)
        if i < config["first_k_dense_replace"]:
            shapes |= mlp(f"{layer}.mlp", config["intermediate_size"])
            continue
        shapes |= {f"{layer}.mlp.gate.weight": (config["num_experts"], width)}
        shapes |= {f"{layer}.mlp.gate.expert_bias": (config["num_experts"],)}
        for e in range(config["num_experts"]):
            shapes |= mlp(f"{layer}.mlp.experts.{e}", config["moe_intermediate_size"])
        shapes |= mlp(f"{layer}.mlp.shared_experts", config["moe_intermediate_size"] * config["num_shared_experts"])
    return shapes


def write_text_model(folder: Path, *, seed: int = 0, extra: tuple[str, ...] = (), **changes: object) -> Path:
    """A text model. ``extra``: further added tokens · ``changes``: of config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    made = tokenizer(pictures=False)
    made.add_special_tokens(list(extra))
    config = CONFIG | {"vocab_size": made.get_vocab_size()} | changes
    made.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps(config))
    save_file(random_tensors(trunk_shapes(config, made.get_vocab_size()), seed), folder / "model.safetensors")
    return folder


def _tokenizer_shapes(
    width: int, layers: int, mlp: int, latent: int, side: int, codes: int
) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"embeddings.position_embedding.weight": (side**2, width)}
    shapes |= {"patch_embed.proj.weight": (width, 3, 16, 16), "patch_embed.proj.bias": (width,)}
    for i in range(layers):
        parts = {
            "attn.qkv": (3 * width, width),
            "attn.proj": (width, width),
            "mlp.fc1": (mlp, width),
            "mlp.fc2": (width, mlp),
        }
        for name, shape in parts.items():
            shapes |= {f"blocks.{i}.{name}.weight": shape, f"blocks.{i}.{name}.bias": shape[:1]}
        for name in ("norm1", "norm2"):
            shapes |= {f"blocks.{i}.{name}.{kind}": (width,) for kind in ("weight", "bias")}
    out = {f"model.visual.{name}": shape for name, shape in shapes.items()}
    out |= {"model.vqmodel.quantize.embedding.weight": (codes, latent), "model.vqmodel.quant_conv.bias": (latent,)}
    return out | {"model.vqmodel.quant_conv.weight": (latent, width, 1, 1)}


def _module_shapes(module: nn.Module, prefix: str = "") -> dict[str, tuple[int, ...]]:
    return {prefix + name: tuple(p.shape) for name, p in module.named_parameters()}


FLOW = ZImageConfig(width=24, layers=1, refiners=1, heads=2, features=20, axes=(4, 4, 4), time_inner=16, waves=8)
VAE = FluxConfig(block_out_channels=(4, 4, 4, 8), layers_per_block=1, norm_num_groups=2)


def _write(folder: Path, config: dict, weights: dict[str, Tensor], name: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(weights, folder / f"{name}.safetensors")


def write_uni_model(
    folder: Path, *, seed: int = 0, pickled: bool = False, codes: int = CODES, **changes: object
) -> Path:
    """LLaDA2.0-Uni with ``codes`` codes, drawings of 256 pixels and both decoders. ``pickled``: the features of codes as released."""
    folder.mkdir(parents=True, exist_ok=True)
    made = tokenizer(pictures=True, codes=codes)
    offset = made.get_vocab_size() - codes
    config = CONFIG | {
        "vocab_size": made.get_vocab_size(),
        "image_token_offset": offset,
        "max_position_embeddings": 2048,
    }
    config |= {"unmask": {"side": 256, "decoder_steps": 3}} | changes
    made.save(str(folder / "tokenizer.json"))
    _write(folder, config, random_tensors(trunk_shapes(config, made.get_vocab_size()), seed), "model")
    vision = {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_heads": 2,
        "patch_size": 16,
        "image_size": 48,
    }
    shapes = _tokenizer_shapes(16, 1, 24, 6, 3, codes)
    of_codes = {"vision_config": vision, "vq_config": {"embed_dim": 6, "num_embeddings": codes}}
    _write(folder / "image_tokenizer", of_codes, random_tensors(shapes, seed + 1), "image_tokenizer")
    with unfilled():
        prior, flow, vae = Prior(codes, FLOW.features), ZImage(FLOW), FluxDecoder(VAE)
    features = random_tensors(_module_shapes(prior), seed + 2)
    if pickled:
        torch.save(features, folder / "image_tokenizer" / "sigvq_embedding.pt")
    else:
        save_file(features, folder / "image_tokenizer" / "sigvq_embedding.safetensors")
    of_flow = {"_class_name": "ZImageTransformer2DModel", "dim": FLOW.width, "n_layers": 1, "n_refiner_layers": 1}
    of_flow |= {"n_heads": 2, "n_kv_heads": 2, "in_channels": 16, "axes_dims": list(FLOW.axes), "rope_theta": 256.0}
    of_flow |= {"norm_eps": 1e-5, "qk_norm": True, "t_scale": 1000.0, "all_patch_size": [2], "all_f_patch_size": [1]}
    of_flow |= {"cap_feat_dim": 2560, "axes_lens": [1536, 512, 512]}  # of another model, as released
    for number, name in enumerate(("decoder", "decoder-turbo")):
        _write(folder / name, of_flow, random_tensors(_module_shapes(flow), seed + 3 + number), "decoder_model")
    of_vae = {"_class_name": "AutoencoderKL", "block_out_channels": list(VAE.block_out_channels), "layers_per_block": 1}
    of_vae |= {"latent_channels": 16, "norm_num_groups": 2, "scaling_factor": 0.3611, "shift_factor": 0.1159}
    weights = random_tensors(_module_shapes(vae, "decoder."), seed + 5)
    _write(folder / "vae", of_vae, weights, "diffusion_pytorch_model")
    return folder
