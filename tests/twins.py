"""Twins of the fixtures of published systems: other widths, heads, layers, vocabularies, grids, prompts and seeds, in the released layouts.

Public idea: ``begin``, ``write_trunk`` and ``finish`` write one; ``twin_families.TWINS`` has all. The names of the tensors are those of
the fixture, the values random. The inputs have other lengths than the fixture's. Transformers computes the logits of rows and the features
of Qwen's vision tower; our own code computes the other outputs. So a twin finds what holds for the sizes of the fixture only. That the
numbers are right is shown by the fixtures, which the official code measured.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from unmask.checkpoints import lumina_dimoo, mmada
from unmask.checkpoints.lavida_o import plain
from unmask.checkpoints.loading import load_everything
from unmask.evaluation.verify_dimoo import dimoo_arrays
from unmask.evaluation.verify_families import REPRODUCE
from unmask.evaluation.verify_mmada import mmada_arrays
from unmask.models.elastic import Elastic
from unmask.models.sizes import ElasticConfig
from unmask.pipeline.loading import format_in

from .packed import GOLDEN

Arrays = dict[str, Tensor]
_NUMBER = re.compile(r"(?<=layers\.|blocks\.)\d+(?=\.)")


class Draw:
    """Random inputs from one seed. ``vocabulary``: ids below the special ones."""

    def __init__(self, seed: int, vocabulary: int) -> None:
        self.g, self.vocabulary = torch.Generator().manual_seed(seed), vocabulary

    def ids(self, *shape: int) -> Tensor:
        return torch.randint(0, self.vocabulary, shape, generator=self.g)

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.g)

    def some(self, *shape: int) -> Tensor:
        """About half of the places, and the last one."""
        chosen = self.uniform(*shape) < 0.5
        chosen[..., -1] = True
        return chosen

    def picture(self, height: int, width: int) -> Tensor:
        blocks = torch.randint(0, 256, (height // 8 + 1, width // 8 + 1, 3), generator=self.g, dtype=torch.uint8)
        return blocks.repeat_interleave(8, 0).repeat_interleave(8, 1)[:height, :width].contiguous()

    def left_padded(self, lengths: tuple[int, ...], pad: int) -> tuple[Tensor, Tensor]:
        """Rows of the longest length, and which of their tokens are no padding."""
        ids, real = self.ids(len(lengths), max(lengths)), torch.zeros(len(lengths), max(lengths), dtype=torch.long)
        for row, length in enumerate(lengths):
            real[row, -length:] = 1
        return torch.where(real == 1, ids, pad), real

    def weights(self, module: torch.nn.Module, name_of: dict[str, str] | None = None) -> Arrays:
        """Random values for every tensor of a module, by the names of ``name_of``."""
        out = {}
        for own, value in module.state_dict().items():
            scale = 0.3 if value.dim() == 1 else value[0].numel() ** -0.5 * 1.5
            out[name_of[own] if name_of else own] = torch.randn(value.shape, generator=self.g) * scale + (
                1.0 if value.dim() == 1 and "norm" in own and own.endswith("weight") else 0.0
            )
        return out


def begin(name: str, folder: Path, **changes: object) -> dict[str, object]:
    """A copy of the small files of a fixture with another config.json, which is returned."""
    shutil.copytree(GOLDEN / name, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    return config


def write_trunk(name: str, folder: Path, draw: Draw, config: ElasticConfig, mapping: dict[str, str]) -> None:
    """Random weights by the names that the fixture has for its own layers."""
    with safe_open(str(GOLDEN / name / "model.safetensors"), "pt") as opened:
        called = {_NUMBER.sub("#", plain(key)): key for key in opened.keys()}
    own = draw.weights(Elastic(config, mask_id=0), mapping)
    tensors = {}
    for key, value in own.items():
        number = _NUMBER.search(plain(key))
        released = called[_NUMBER.sub("#", plain(key))]
        tensors[_NUMBER.sub(number[0], released) if number else released] = value
    save_file(tensors, folder / "model.safetensors")


def finish(name: str, folder: Path, given: Arrays, prompts: dict[str, object] | None = None) -> Path:
    """Write the inputs and our outputs. Outputs that say what to compute (``masks`` of a row, names) come from ``given`` or the fixture."""
    metadata = {"prompts": json.dumps(prompts)} if prompts else None
    stand_in = {n: a for n, a in load_file(GOLDEN / name / "expected.safetensors").items() if n not in given}
    # How many steps a run takes is not known yet: ours are filled with -1 to the length of what was measured.
    stand_in |= {n: torch.zeros(64, dtype=torch.long) for n in stand_in if n.endswith(".masks_left")}
    save_file(given | stand_in, folder / "expected.safetensors", metadata)
    ours, inputs = outputs(folder, given | stand_in)
    ours |= {n: a[a >= 0] for n, a in ours.items() if n.endswith(".masks_left")}
    wanted = {n: a.contiguous().clone() for n, a in ours.items()} | {n: given[n] for n in inputs if n in given}
    wanted |= independent(folder, wanted)
    assert set(wanted) == set(given) | set(stand_in), set(wanted) ^ (set(given) | set(stand_in))
    save_file(wanted, folder / "expected.safetensors", metadata)
    return folder


def outputs(folder: Path, arrays: Arrays) -> tuple[Arrays, frozenset[str]]:
    """What our code computes from the inputs of a folder, and the names of the inputs."""
    if reproduce := REPRODUCE.get(format_in(folder)):
        ours, _, inputs = reproduce(folder, None, "cpu")
        return ours, inputs
    survey, own = (
        (mmada.survey_mmada, mmada_arrays) if "mmada" in folder.name else (lumina_dimoo.survey_dimoo, dimoo_arrays)
    )
    net, vq = load_everything(survey(folder))
    ours = own(folder, arrays, net, vq)  # type: ignore[operator]
    return ours, frozenset(arrays) - frozenset(ours)


@torch.no_grad()
def text_logits(folder: Path, ids: Tensor, real: Tensor) -> Tensor:
    """Logits of rows of text by transformers, every logit at its own position; zeros where ``real`` is false."""
    import transformers

    raw, tensors = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    on_llada = "d_model" in raw
    named = {"d_model": "hidden_size", "n_heads": "num_attention_heads", "n_layers": "num_hidden_layers"}
    named |= {"mlp_hidden_size": "intermediate_size", "n_kv_heads": "num_key_value_heads"}
    fields = {named.get(k, k): raw[k] for k in raw if k in (*named, *named.values(), "vocab_size", "rms_norm_eps")}
    rope = {"rope_type": "default", "rope_theta": raw["rope_theta"]}
    kind = transformers.LlamaConfig if on_llada else transformers.Qwen2Config
    config = kind(**fields, rope_parameters=rope, attn_implementation="eager", tie_word_embeddings=False)
    made = (transformers.LlamaForCausalLM if on_llada else transformers.Qwen2ForCausalLM)(config).eval()
    own = {as_llama(key) if on_llada else key: value for key, value in tensors.items()}
    made.load_state_dict({key: own[key] for key in made.state_dict()})
    out = torch.zeros(*ids.shape, raw["vocab_size"])
    for row, there in enumerate(real.bool()):
        everything = torch.zeros(1, 1, int(there.sum()), int(there.sum()))
        out[row, there] = made(ids[row, there][None], attention_mask=everything).logits[0]
    return out


@torch.no_grad()
def qwen_features(folder: Path, pixels: Tensor, grid: Tensor) -> Tensor:
    """Features of patches by transformers' tower of Qwen2.5-VL."""
    from transformers.models.qwen2_5_vl import configuration_qwen2_5_vl, modeling_qwen2_5_vl

    raw = json.loads((folder / "config.json").read_text())["vision_config"]
    config = configuration_qwen2_5_vl.Qwen2_5_VLVisionConfig(**raw, attn_implementation="eager")
    tower = modeling_qwen2_5_vl.Qwen2_5_VisionTransformerPretrainedModel(config).eval()
    stored = load_file(folder / "model.safetensors")
    tower.load_state_dict({k.removeprefix("visual."): v for k, v in stored.items() if k.startswith("visual.")})
    found = tower(pixels, grid)
    return found if isinstance(found, Tensor) else found.pooler_output


def independent(folder: Path, arrays: Arrays) -> Arrays:
    """The arrays that transformers computes."""
    out: Arrays = {}
    for name in ("text", "padded", "und", "t2i", "edit", "style"):
        if f"{name}.ids" in arrays and f"{name}.logits" in arrays:
            ids = arrays[f"{name}.ids"]
            real = arrays.get(f"{name}.attention", arrays.get(f"{name}.attention_mask", torch.ones_like(ids)))
            out[f"{name}.logits"] = text_logits(folder, ids, real)
    if "style.logits" in out:  # of the answer, codes alone
        count, codes = arrays["style.logits"].shape[1:]
        out["style.logits"] = out["style.logits"][:, -count:, -codes:].contiguous()
    if "images.pixels" in arrays:
        out["images.features"] = qwen_features(folder, arrays["images.pixels"], arrays["images.grid"])
    return out


def as_llama(key: str) -> str:
    """A name of LLaDA's tensors as Llama has it."""
    for theirs, ours in (
        ("model.transformer.ff_out", "lm_head"),
        ("transformer.wte", "embed_tokens"),
        ("transformer.ln_f", "norm"),
        ("transformer.blocks", "layers"),
        ("attn_norm", "input_layernorm"),
        ("ff_norm", "post_attention_layernorm"),
        ("attn_out", "self_attn.o_proj"),
        ("ff_proj", "mlp.gate_proj"),
        ("up_proj", "mlp.up_proj"),
        ("ff_out", "mlp.down_proj"),
    ):
        key = key.replace(theirs, ours)
    return re.sub(r"\.([qkv]_proj)", r".self_attn.\1", key)
