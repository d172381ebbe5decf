"""The twin of each fixture: its sizes, inputs and prompts. ``twins.py`` says what a twin is.

Public idea: ``TWINS[name](folder) -> folder``.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from unmask.checkpoints import dimple, dream, lavida, lumina_dimoo, mmada
from unmask.checkpoints.lavida_o import names, plain, read_vq_config, vision_names
from unmask.checkpoints.llada import read_config
from unmask.checkpoints.loading import load_everything
from unmask.evaluation.verify_mmada import MMaDAReference
from unmask.models.shared_vocabulary import as_text
from unmask.sequence import Sequence, collate
from unmask.tokens import lumina_dimoo as dimoo
from unmask.tokens.build import Builder
from unmask.tokens.mmada import EOI, PAD, SOI, WORDING, Field
from unmask.tokens.prompts import RELEASED
from unmask.tokens.text import MASK, Text

from .packed import GOLDEN
from .twins import Arrays, Draw, begin, finish, write_trunk

_TRUNK = {"vocab_size": 130, "hidden_size": 60, "intermediate_size": 88, "num_hidden_layers": 2, "rope_theta": 20000.0}
_TRUNK |= {"num_attention_heads": 6, "num_key_value_heads": 3, "rms_norm_eps": 1e-5, "mask_token_id": 123}
_TRUNK |= {"pad_token_id": 121, "bos_token_id": 121, "eos_token_id": 121}


def dream_twin(folder: Path) -> Path:
    raw, draw = begin("dream_tiny", folder, **_TRUNK), Draw(11, 120)
    config, mask = dream.read_trunk(raw, folder / "config.json")  # type: ignore[arg-type]
    write_trunk("dream_tiny", folder, draw, config, dream.trunk_names(config))
    given: Arrays = {"text.ids": draw.ids(3, 13), "gen.prompt": draw.ids(1, 7), "infill.prompt": draw.ids(1, 15)}
    given["text.ids"][:, 4:7] = mask
    given["infill.prompt"][:, 3:8] = mask
    for name, lengths in (("padded", (9, 4, 7)), ("batch", (10, 6, 8))):
        ids, real = draw.left_padded(lengths, 121)
        given |= {"padded.ids" if name == "padded" else "batch.prompt": ids, f"{name}.attention": real}
    given |= {"gen.hook.end": draw.ids(3), "gen.origin.uniforms": draw.uniform(16 * 9)}
    given |= {"nll.prefix": draw.ids(5), "nll.target": draw.ids(6), "nll.p": draw.uniform(3) * 0.9 + 0.1}
    given |= {"nll.mask": draw.some(3, 11) & (torch.arange(11) >= 5)}
    given |= {"train.ids": draw.ids(3, 14), "train.mask": draw.some(3, 14)}
    return finish("dream_tiny", folder, given)


def dimple_twin(folder: Path) -> Path:
    vision = {"depth": 3, "hidden_size": 24, "hidden_act": "silu", "intermediate_size": 36, "num_heads": 3}
    vision |= {"in_channels": 3, "patch_size": 3, "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 12}
    vision |= {"out_hidden_size": 28, "fullatt_block_indexes": [2]}
    extra = {"hidden_size": 72, "mrope_section": [1, 2, 3], "image_token_id": 125, "vision_config": vision}
    raw, draw = begin("dimple_tiny", folder, **_TRUNK | extra), Draw(12, 120)
    sizes = {"patch_size": 3, "merge_size": 2, "min_pixels": 144, "max_pixels": 1600}
    path = folder / dimple.PREPROCESSOR
    path.write_text(json.dumps(json.loads(path.read_text()) | sizes))
    found, pictures = dimple.read_dimple(raw, folder), dimple.read_pictures(folder)  # type: ignore[arg-type]
    tower = dimple.tower_of(found.vision_config, pictures, folder)
    sections = tuple(found.mrope_section)
    config, mask = dream.read_trunk(raw, folder / "config.json", tower=tower, rope_sections=sections)  # type: ignore[arg-type]
    write_trunk("dimple_tiny", folder, draw, config, dream.trunk_names(config) | dimple.vision_names(tower))
    given: Arrays = {"image_a.rgb": draw.picture(31, 90), "image_b.rgb": draw.picture(44, 19)}
    blocks = dimple.blocks_of(pictures)
    tokens = [int(np.prod(blocks.size((a.shape[1], a.shape[0])))) // blocks.block**2 for a in given.values()]

    def seen(*pieces: int) -> Tensor:
        """Text of the given lengths around both pictures."""
        looks = [torch.full((n,), 125) for n in tokens]
        return torch.cat([draw.ids(pieces[0]), looks[0], draw.ids(pieces[1]), looks[1], draw.ids(pieces[2])])

    given |= {"vqa.ids": seen(3, 2, 8)[None], "train.ids": torch.stack([seen(4, 1, 14) for _ in range(3)])}
    given["train.maskable"] = torch.arange(given["train.ids"].shape[1]).expand(3, -1) >= sum(tokens) + 9
    given |= {"train.t": draw.uniform(3) * 0.5 + 0.3, "train.uniforms": draw.uniform(*given["train.ids"].shape)}
    given["train.uniforms"][:, -2:] = torch.tensor([0.0, 0.999])
    for name, lengths in (("text", (9, 4, 7)), ("batch", (10, 6, 8))):
        ids, real = draw.left_padded(lengths, 121)
        given |= {"text.ids" if name == "text" else "batch.prompt": ids, f"{name}.attention": real}
    given |= {"gen.prompt": draw.ids(1, 7), "prior.positions": torch.tensor([0, 5, 6]), "prior.tokens": draw.ids(3)}
    given["dim.origin.orders"] = torch.arange(16).expand(16, -1).clone()  # an order for any number of masked tokens
    given["dim.origin_ratio.uniforms"] = draw.uniform(16 * 9)
    return finish("dimple_tiny", folder, given)


def lavida_twin(folder: Path, *, on_dream: bool = False) -> Path:
    """Average reduction, 13 patches a side with two pixels unused, another set of pinpoints, a wide and a square picture."""
    name = "lavida_dream_tiny" if on_dream else "lavida_tiny"
    tower = {"image": 41, "patch": 3, "width": 24, "layers": 3, "heads": 3, "mlp": 40, "eps": 1e-5}
    own: dict[str, object] = {"vision": tower} if on_dream else {"vision": tower, "infill_id": 122, "fill_id": 121}
    trunk = {"d_model": 60, "n_heads": 6, "n_kv_heads": 6, "n_layers": 2, "mlp_hidden_size": 88, "vocab_size": 130}
    trunk |= {"embedding_size": 130, "mask_token_id": 123, "eos_token_id": 124, "pad_token_id": 124, "rope_theta": 2e4}
    extra = {"mm_spatial_pool_mode": "average", "mm_hidden_size": 24, "unmask": own, "rms_norm_eps": 1e-6}
    extra["image_grid_pinpoints"] = [[41, 123], [82, 82], [164, 41], [123, 41]]
    raw, draw = begin(name, folder, **(_TRUNK if on_dream else trunk) | extra), Draw(13, 120)
    vision = lavida.vision_of(lavida.read_lavida(folder)[1])
    path = folder / "config.json"
    if on_dream:
        config, mask = dream.read_trunk(raw, path, vision)  # type: ignore[arg-type]
        mapping = dream.trunk_names(config) | vision_names(vision)
    else:
        config, mask = dataclasses.replace(read_config(raw, path), vision=vision), 123  # type: ignore[arg-type]
        mapping = names(config)
    write_trunk(name, folder, draw, config, {ours: plain(theirs) for ours, theirs in mapping.items()})
    given: Arrays = {"image_a.rgb": draw.picture(70, 190), "image_b.rgb": draw.picture(83, 83)}
    views = lavida.views_of(lavida.read_lavida(folder)[1])
    tokens = [len(views(Image.fromarray(one.numpy()))) for one in given.values()]
    given |= {"text.ids": draw.ids(3, 17), "vqa.ids": draw.ids(1, 11), "prefix.answer": draw.ids(1, 9)}
    given["text.ids"][:, 9:12], given["vqa.ids"][0, 3] = mask, -200
    given |= {"vqa.keep": torch.arange(1, tokens[0] + 10, 7), "vqa.image_tokens": torch.tensor(tokens[0])}
    given |= {"gen.prompt": draw.ids(1, 8), "train.ids": draw.ids(3, 19)}
    given["train.ids"][:, 2] = -200
    given["train.ids"][1, 15:] = given["train.ids"][2, 17:] = 124  # padding
    given["train.labels"] = given["train.ids"].masked_fill(torch.arange(19) < torch.tensor([[6], [9], [4]]), -100)
    given["train.mask"] = draw.some(3, 18 + tokens[1])
    if not on_dream:
        given["infill.draft"] = draw.ids(1, 14)
        given["infill.draft"][:, 2:9] = mask
        given["infill.draft"][:, 9] = 122
    return finish(name, folder, given)


def _vq_codes(folder: Path, image: Tensor, survey: Callable[[Path], Any]) -> Tensor:
    _, vq = load_everything(survey(folder))
    with torch.no_grad():
        return (vq.encode(image) if hasattr(vq, "quantize") else vq.codes(vq.latents(image))).flatten(1)


def _sizes(rows: int, **more: object) -> dict[str, object]:
    sizes = {"d_model": 60, "n_heads": 5, "n_kv_heads": 5, "n_layers": 2, "mlp_hidden_size": 88, "rope_theta": 2e4}
    return {**sizes, "rms_norm_eps": 1e-6, "vocab_size": rows, "embedding_size": rows, **more}


def _chat(words: str) -> str:
    return (
        f"<|startoftext|><|start_header_id|>user<|end_header_id|>\n{words}<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n"
    )


def _labels(draw: Draw, ids: Tensor, mask: int) -> tuple[Tensor, Tensor]:
    """Rows with about half of their tokens masked, and labels there."""
    masked = draw.some(*ids.shape)
    return ids.masked_fill(masked, mask), ids.masked_fill(~masked, -100)


def mmada_twin(folder: Path) -> Path:
    """32 codes, a drawing of 6 x 6 and a picture of 6 x 8, spare rows in the embedding, batches of three rows."""
    name, codes = "mmada_tiny", 36
    raw = begin(
        name, folder, **_sizes(330, new_vocab_size=330, llm_vocab_size=290, codebook_size=32, num_vq_tokens=codes)
    )
    halves = {"encoder": {"ch": 32, "ch_mult": [1, 1, 2], "num_res_blocks": [1, 1, 1], "z_channels": 5}}
    halves["decoder"] = halves["encoder"] | {"ch_mult": [1, 2, 1]}
    (folder / "magvitv2" / "config.json").write_text(json.dumps({"_class_name": "MAGVITv2", **halves}))
    draw = Draw(14, 256)
    vq = mmada._vq_config(folder / "magvitv2" / "config.json").build()
    called = {key: key.replace("conv_shortcut", "nin_shortcut") for key in vq.state_dict()}
    save_file(draw.weights(vq, called), folder / "magvitv2" / "pytorch_model.safetensors")
    text = mmada.read_text(folder, raw)  # type: ignore[arg-type]
    config = read_config(raw, folder / "config.json")  # type: ignore[arg-type]
    write_trunk(name, folder, draw, config, names(config))
    mask, first, length = text[MASK], text.size, 15
    given: Arrays = {"vq.image": draw.uniform(1, 3, 24, 32) * 2 - 1}
    given["vq.codes"] = _vq_codes(folder, given["vq.image"], mmada.survey_mmada)
    given["vq.latents"] = torch.zeros(1, 5, 6, 8)  # the grid
    prompts: dict[str, object] = {
        "t2i": ["a hat", "three red apples", "x"],
        "text": [_chat("why so?"), _chat("5*5=25?")],
    }
    prompts |= {"und": _chat("how many?"), "parallel": "paint", "loss_lm": ["text", "a longer one", "x"]}
    prompts["loss_chat"] = [_chat(words) + said for words, said in (("hi", "yes"), ("a b", "c"), ("1", "one"))]
    prompts |= {
        "loss_mmu": [f"{w}<|end_header_id|>\na" for w in "abc"],
        "loss_r2i": [f"{w}<|end_header_id|>b" for w in "abc"],
    }
    numbers = {"sample.text_length": length, "sample.steps": 5, "block.length": 12, "block.block": 4, "block.steps": 6}
    numbers |= {
        "loss.text_length": 17,
        "parallel.text_length": 9,
        "parallel.text_steps": 10,
        "parallel.picture_steps": 4,
    }
    reals = {"sample.guidance": 2.5, "sample.temperature": 0.7, "block.guidance": 1.5, "parallel.text_guidance": 0.5}
    reals["parallel.guidance"] = 3.0
    given |= {n: torch.tensor(v) for n, v in (numbers | reals).items()}
    given |= {
        "noisy.uniform": draw.uniform(5, codes).double(),
        "noisy.gumbel": -torch.log(-torch.log(draw.uniform(5, codes))),
    }
    given |= {"text.ids": torch.full((1, 4), mask), "und.ids": torch.full((1, 3), mask)}  # how many masks a row has
    captions = prompts["t2i"]
    assert isinstance(captions, list)
    drawn = (first + torch.randint(0, 32, (3, codes), generator=draw.g)).masked_fill(draw.some(3, codes), mask)
    given |= dict(zip(("t2i.ids", "t2i.attention_mask"), drawings(text, captions, drawn, length), strict=True))
    given |= {"inpaint.ids": given["t2i.ids"][:1].clone()}
    given["sample.ids"] = drawings(text, captions[:1], torch.full((1, codes), mask), length)[0]
    given["loss.t2i_codes"] = torch.randint(0, 32, (3, codes), generator=draw.g)
    rows = MMaDAReference(arrays=given, prompts=prompts, text=text)._training_rows()
    t2i, real = drawings(text, captions, first + given["loss.t2i_codes"], int(given["loss.text_length"]))
    ids, labels = _labels(draw, t2i, mask)
    keep = torch.arange(t2i.shape[1]) >= int(given["loss.text_length"]) + 2
    given |= {"loss.t2i_ids": torch.where(keep, ids, t2i), "loss.t2i_labels": labels.masked_fill(~keep, -100)}
    given["loss.t2i_attention_mask"] = real
    for task in ("lm", "chat", "mmu", "r2i"):
        ids, labels = _labels(draw, rows[f"loss.clean_{task}"], mask)
        given |= {f"loss.{task}_ids": ids, f"loss.{task}_labels": labels, f"loss.{task}_p": draw.uniform(3) * 0.8 + 0.1}
    ids, labels = _labels(draw, draw.ids(2, 21), mask)
    given |= {"rl.ids": ids, "rl.labels": labels, "rl.mask": labels != -100, "rl.advantage": draw.uniform(2) - 0.5}
    given["rl.logp_old"] = (-4 * draw.uniform(2, 21)).masked_fill(labels == -100, 0.0)
    return finish(name, folder, given, prompts)


def drawings(text: Text, captions: list[str], codes: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Released rows of drawings, padded on the left, and which of their tokens are no padding. ``codes``: text ids."""
    builder = Builder(text=text, wording=WORDING, look_tokens=0)
    prompts = [Field(length=length).prompt(builder, one) for one in captions]
    pads = [length + 1 - len(ids) for ids in prompts]
    rows = [
        [text[PAD]] * pad + ids + [text[SOI], *own, text[EOI]]
        for pad, ids, own in zip(pads, prompts, codes.tolist(), strict=True)
    ]
    return torch.tensor(rows), torch.tensor(
        [[0] * pad + [1] * (len(row) - pad) for pad, row in zip(pads, rows, strict=True)]
    )


def dimoo_twin(folder: Path) -> Path:
    """64 codes, a grid of 4 x 7, another style picture, prompts and fields of other lengths."""
    name, grid = "lumina_dimoo_tiny", (4, 7)
    raw = json.loads((GOLDEN / name / "config.json").read_text())
    text = lumina_dimoo.read_text(GOLDEN / name, raw)
    raw = begin(name, folder, **_sizes(text.size + 64))
    path = folder / "vqvae" / "config.json"
    own = {"block_out_channels": [8, 16, 12], "num_vq_embeddings": 64, "latent_channels": 6, "vq_embed_dim": 6}
    path.write_text(json.dumps(json.loads(path.read_text()) | own | {"layers_per_block": 1}))
    draw = Draw(15, 256)
    save_file(draw.weights(read_vq_config(path).build()), folder / "vqvae" / "diffusion_pytorch_model.safetensors")
    config = read_config(raw, folder / "config.json")  # type: ignore[arg-type]
    write_trunk(name, folder, draw, config, names(config))
    given: Arrays = {"vq.image": draw.uniform(1, 3, 4 * grid[0], 4 * grid[1]), "grid": torch.tensor(grid)}
    given["vq.codes"] = _vq_codes(folder, given["vq.image"], lumina_dimoo.survey_dimoo)
    prompts: dict[str, object] = {"t2i": "a hat", "und": "how many?", "edit": "paint it", "text": ["so?", "5*5", "hi!"]}
    prompts |= {"answer": "a dog", "system": "sys"}
    mask, first = text[MASK], text.size
    given |= {"text.ids": torch.full((1, 5), mask), "und.ids": torch.full((1, 4), mask)}  # how many masks a row has
    numbers = {"sample.steps": 5, "cache.steps": 8, "cache.interval": 3, "block.length": 12, "block.block": 4}
    reals = {"sample.guidance": 2.5, "edit_sample.guidance": 2.0, "edit_sample.image_guidance": 3.0, "cache.ratio": 0.6}
    reals |= {"cache.warmup": 0.25, "block.guidance": 1.5}
    given |= {n: torch.tensor(v) for n, v in (numbers | reals | {"block.steps": 6}).items()}
    given |= {n: given[n].double() for n in ("cache.ratio", "cache.warmup")}
    codes = grid[0] * grid[1]
    given |= {"noisy.uniform": draw.uniform(5, codes).double(), "paint.ratios": torch.tensor([0.5, 0.6])}
    given["noisy.gumbel"] = -torch.log(-torch.log(draw.uniform(5, codes)))
    picture, other = given["vq.codes"].view(grid), torch.randint(0, 64, (3, 5), generator=draw.g)
    t2i, edit = (dimoo.Request(system="sys", text=str(prompts[n])) for n in ("t2i", "edit"))

    def builder() -> Builder:
        return Builder(text=text, wording=RELEASED, look_tokens=0)

    rows = {"t2i": dimoo.drawing(builder(), t2i, grid), "edit": dimoo.editing(builder(), edit, [picture], grid)}
    rows["style"] = dimoo.editing(builder(), edit, [other, picture], grid)
    for kind, row in rows.items():  # the answer to two pictures is all masks
        given[f"{kind}.ids"] = text_row(row, draw.some(len(row.ids)) & (kind != "style"), draw, first, mask)
    for kind, size in (("t2i", (1, 30)), ("edit", (1, 41)), ("und", (1, 22)), ("batch", (4, 35))):
        given |= dict(
            zip((f"loss.{kind}_ids", f"loss.{kind}_labels"), _labels(draw, draw.ids(*size), mask), strict=True)
        )
    return finish(name, folder, given, prompts)


def text_row(row: Sequence, drawn: Tensor, draw: Draw, first: int, mask: int) -> Tensor:
    """The text ids of a row without the prompts of guidance, with random codes in the masked places that are ``drawn``."""
    aside = sum(len(span) for span in row.spans if span.name.startswith("null"))
    ids = as_text(collate([row], [0]), first).ids[0]
    random = first + torch.randint(0, 64, ids.shape, generator=draw.g)
    return torch.where(row.masked, torch.where(drawn, random, mask), ids)[aside:][None]


TWINS = {"dream": dream_twin, "dimple": dimple_twin, "lavida": lavida_twin}
TWINS |= {
    "lavida_dream": functools.partial(lavida_twin, on_dream=True),
    "mmada": mmada_twin,
    "lumina_dimoo": dimoo_twin,
}
