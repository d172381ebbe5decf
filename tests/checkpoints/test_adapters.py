"""LoRA adapters in peft's file format: there and back, other bases and shapes, unsupported features, and peft itself."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from unmask.checkpoints.adapters import adapter_place, holds_adapter, load_adapter, read_adapter, save_adapter
from unmask.checkpoints.quantise import RoundToNearest, restored
from unmask.checkpoints.stream import CheckpointError
from unmask.models.elastic import Elastic, init
from unmask.models.lora import LoRA, adapters, add_products, in_branches, merge
from unmask.models.sizes import SIZES
from unmask.rng import generator
from unmask.sequence import Kind, Sequence, Span, collate

CONFIG = dataclasses.replace(SIZES["tiny"], vocab_size=40)
SPANS = (
    Span(name="prompt", kind=Kind.TEXT, start=0, stop=3),
    Span(name="answer", kind=Kind.TEXT, start=3, stop=6, writable=True),
    Span(name="image", kind=Kind.CODE, start=6, stop=22, grid=(4, 4), fold=2, writable=True),
)


def model(seed: int = 0, dtype: torch.dtype = torch.float32) -> Elastic:
    made = Elastic(CONFIG, mask_id=1)
    init(made, generator("adapters test", seed))
    return made.to(dtype).eval()


def stir(module: nn.Module) -> None:
    rng = generator("stir")
    for _, _, adapter in adapters(module):
        nn.init.normal_(adapter.up, 0, 0.1, generator=rng)


def adapted(rank: int = 3, alpha: float = 6.0, branches: tuple[str, ...] = ("und", "gen", "out")) -> Elastic:
    made = model()
    LoRA(where=in_branches(*branches), rank=rank, alpha=alpha)(made)
    stir(made)
    return made


@torch.no_grad()
def logits(module: nn.Module) -> Tensor:
    ids = torch.randint(0, 40, (2, 22), generator=generator("rows"))
    given = collate([Sequence(ids=row, masked=torch.zeros(22, dtype=torch.bool), spans=SPANS) for row in ids], range(2))
    prediction = module(given.replace(masked=given.writable))
    return torch.cat([prediction.logits(kind).flatten() for kind in sorted(prediction.scored)]).float()


def write(folder: Path, *, tensors: dict[str, Tensor] | None = None, **fields: Any) -> Path:
    """An adapter of two layers of ``model()`` with other fields or tensors."""
    folder.mkdir(exist_ok=True)
    width = CONFIG.width
    made = {
        f"base_model.model.blocks.{i}.und.q.lora_{part}.weight": torch.full(shape, 0.1)
        for i in (0, 1)
        for part, shape in (("A", (4, width)), ("B", (width, 4)))
    }
    save_file(made if tensors is None else tensors, str(folder / "adapter_model.safetensors"))
    raw = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q"], **fields}
    (folder / "adapter_config.json").write_text(json.dumps(raw))
    return folder


# -- there and back ---------------------------------------------------------------------------------------------------


def test_only_the_adapter_is_saved_and_it_loads_into_a_bare_model(tmp_path: Path) -> None:
    made = adapted()
    save_adapter(made, tmp_path, base="owner/base")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    assert holds_adapter(tmp_path)
    stored = load_file(tmp_path / "adapter_model.safetensors")
    names = [name for name, _, _ in adapters(made)]
    assert set(stored) == {f"base_model.model.{name}.lora_{part}.weight" for name in names for part in "AB"}
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["base_model_name_or_path"]) == (3, 6.0, "owner/base")
    fresh = model()
    load_adapter(fresh, tmp_path)
    assert torch.equal(logits(fresh), logits(made)) and not torch.equal(logits(fresh), logits(model()))
    found = read_adapter(tmp_path)
    assert (found.base, found.ranks, found.scales, len(found.layers)) == ("owner/base", [3], [2.0], len(names))


def test_layers_of_other_rank_and_alpha_are_named_in_patterns(tmp_path: Path) -> None:
    made = model()
    LoRA(where=in_branches("und"), rank=3, alpha=6.0)(made)
    made.requires_grad_(False)
    other = model()
    LoRA(where=lambda name: name == "blocks.0.gen.q", rank=5, alpha=1.0)(other)
    add_products(made, {name: adapter.product for name, _, adapter in adapters(other)})
    stir(made)
    save_adapter(made, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["rank_pattern"] == {r"^blocks\.0\.gen\.q": 5} and config["r"] == 3
    assert config["alpha_pattern"] == {r"^blocks\.0\.gen\.q": 1.0}
    fresh = model()
    load_adapter(fresh, tmp_path)
    assert torch.equal(logits(fresh), logits(made))


def test_a_scale_multiplies_the_adapter_and_several_add_up(tmp_path: Path) -> None:
    save_adapter(adapted(), tmp_path / "one")
    save_adapter(adapted(rank=2, alpha=1.0, branches=("vision", "codes")), tmp_path / "two")
    twice, doubled = model(), model()
    load_adapter(twice, tmp_path / "one")
    load_adapter(twice, tmp_path / "one")
    load_adapter(doubled, tmp_path / "one", 2.0)
    torch.testing.assert_close(logits(twice), logits(doubled), atol=1e-4, rtol=1e-4)
    none, both = model(), model()
    load_adapter(none, tmp_path / "one", 0.0)
    assert torch.equal(logits(none), logits(model()))
    load_adapter(both, tmp_path / "one")
    alone = logits(both)
    load_adapter(both, tmp_path / "two")
    assert not torch.equal(logits(both), alone)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_computes_what_the_merged_weights_compute(dtype: torch.dtype, tmp_path: Path) -> None:
    save_adapter(adapted(branches=("und", "gen", "out", "codes", "text_head")), tmp_path)
    beside, whole = model(dtype=dtype), model(dtype=dtype)
    for made in (beside, whole):
        load_adapter(made, tmp_path)
    merge(whole)
    close = {"atol": 1e-4, "rtol": 1e-3} if dtype == torch.float32 else {"atol": 0.3, "rtol": 0.05}
    torch.testing.assert_close(logits(beside), logits(whole), **close)
    assert (logits(beside) - logits(whole)).abs().mean() < 0.1 * (logits(beside) - logits(model())).abs().mean()


@pytest.mark.parametrize("bits", [8, 4])
def test_a_quantised_base_computes_what_merged_dequantised_weights_compute(bits: int, tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    save_adapter(adapted(branches=("und",)), tmp_path)
    beside, whole = model(), model()
    for name, layer in beside.named_modules():
        if isinstance(layer, nn.Linear) and in_branches("und")(name) and layer.in_features % 32 == 0:
            quantised = RoundToNearest(bits=bits)(layer.weight.detach(), None)
            layer.weight = nn.Parameter(quantised, requires_grad=False)
            whole.get_submodule(name).weight.data = restored(quantised)
    for made in (beside, whole):
        load_adapter(made, tmp_path)
    merge(whole)
    torch.testing.assert_close(logits(beside), logits(whole), atol=2e-2, rtol=2e-2)
    assert not torch.allclose(logits(beside), logits(model()), atol=0.1)


def test_names_of_the_released_layout_load(tmp_path: Path) -> None:
    ours = write(tmp_path / "ours")
    renamed = {
        key.replace("blocks", "model.transformer.blocks").replace("und.q", "q_proj"): tensor
        for key, tensor in load_file(ours / "adapter_model.safetensors").items()
    }
    one, other = model(), model()
    load_adapter(one, ours)
    load_adapter(other, write(tmp_path / "theirs", tensors=renamed))
    assert torch.equal(logits(one), logits(other)) and not torch.equal(logits(one), logits(model()))


@pytest.mark.parametrize(
    ("fields", "scales"),
    [
        ({}, [2.0]),
        ({"use_rslora": True}, [4.0]),
        ({"alpha_pattern": {r"blocks\.1\..*": 4}}, [1.0, 2.0]),
        ({"r": 16, "rank_pattern": {"q": 4}}, [2.0]),
        ({"alpha_pattern": {"1.und.q": 2, "q": 4}}, [0.5, 1.0]),  # the first that fits counts
        ({"lora_alpha": 0}, [0.0]),
    ],
)
def test_scales_follow_the_configuration(fields: dict[str, Any], scales: list[float], tmp_path: Path) -> None:
    assert read_adapter(write(tmp_path / "a", **fields)).scales == scales


# -- what does not fit ------------------------------------------------------------------------------------------------


def test_an_adapter_of_other_weights_is_refused(tmp_path: Path) -> None:
    save_adapter(adapted(), tmp_path, base="mini")
    other = model(seed=1)
    with pytest.raises(
        CheckpointError, match=r"trained on other weights \(mini\); open the model that it was trained on"
    ):
        load_adapter(other, tmp_path)
    assert not list(adapters(other))
    half = model(dtype=torch.float16)  # rounding is no other base
    load_adapter(half, tmp_path)
    assert list(adapters(half))


def test_another_name_of_the_base_is_a_warning_where_the_file_says_no_more(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", base_model_name_or_path="owner/Theirs")
    with pytest.warns(UserWarning, match="was trained on owner/Theirs, and the model is ours"):
        load_adapter(model(), folder, called="ours")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_adapter(model(), folder, called="/models/theirs")
        load_adapter(model(), folder)


def layer(
    name: str = "blocks.0.und.q", down: tuple[int, ...] = (4, 64), up: tuple[int, ...] = (64, 4)
) -> dict[str, Tensor]:
    return {
        f"base_model.model.{name}.lora_A.weight": torch.ones(down),
        f"base_model.model.{name}.lora_B.weight": torch.ones(up),
    }


W = CONFIG.width


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        (
            layer(down=(4, W + 1), up=(W, 4)),
            r"blocks.0.und.q is .* there, the adapter's is .*; it was trained on x/y",
        ),
        (layer("blocks.9.und.q"), "it adapts blocks.9.und.q, which the model lacks; it was trained on x/y"),
        (layer("layers.0.self_attn.q_proj"), "adapts layers.0.self_attn.q_proj, which the model lacks"),
        (layer("embed"), "it adapts embed, a Embedding and not a linear layer"),
        (layer(down=(2, W), up=(W, 2)), "and adapter_config.json says rank 4; use both files of one adapter"),
        (
            {"base_model.model.embed.lora_embedding_A": torch.ones(4, 9)},
            "lora_embedding_A .* is not part of a LoRA of linear layers",
        ),
        (
            {"base_model.model.x.lora_A.weight": torch.ones(4, 3, 2, 2)},
            "x.lora_A.weight .* is not part of a LoRA of linear",
        ),
        ({"base_model.model.x.lora_magnitude_vector": torch.ones(4)}, "lora_magnitude_vector .* is not part of a LoRA"),
        ({"base_model.model.x.lora_A.weight": torch.ones(4, 3)}, "x lacks lora_B; copy the adapter again"),
        (
            {"base_model.model.blocks.0.und.q.bias": torch.ones(4)},
            "und.q.bias .* is not part of a LoRA of linear layers",
        ),
        ({}, "holds no tensors"),
        (
            layer(down=(4, W), up=(W, 4)) | layer("transformer.blocks.0.q_proj", (4, W), (W, 4)),
            "adapts blocks.0.und.q twice",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(tensors: dict[str, Tensor], says: str, tmp_path: Path) -> None:
    made = model()
    with pytest.raises(CheckpointError, match=says):
        load_adapter(made, write(tmp_path / "a", tensors=tensors, base_model_name_or_path="x/y"))
    assert not list(adapters(made))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"peft_type": "LOHA"}, "peft_type 'LOHA' is not supported; unmask reads LORA"),
        ({"use_dora": True}, "use_dora true is not supported; train the adapter without it"),
        ({"bias": "lora_only"}, 'bias "lora_only" is not supported'),
        ({"lora_bias": True}, "lora_bias true is not supported"),
        ({"modules_to_save": ["embed"]}, "modules_to_save .* is not supported"),
        ({"layer_replication": [[0, 1]]}, "layer_replication .* is not supported"),
        ({"alora_invocation_tokens": [3]}, "alora_invocation_tokens .* is not supported"),
        ({"a_field_of_next_year": {"x": 1}}, "a_field_of_next_year .* is not supported"),
        ({"init_lora_weights": "pissa_niter_16"}, "init_lora_weights 'pissa_niter_16' changes the base model"),
        ({"r": 0}, "r of blocks.0.und.q is 0, wanted a number"),
        ({"lora_alpha": "much"}, "lora_alpha of blocks.0.und.q is 'much', wanted a number"),
        ({"lora_alpha": math.inf}, "lora_alpha of blocks.0.und.q is inf, wanted a number"),
        ({"rank_pattern": ["q"]}, "rank_pattern is not an object of patterns"),
        ({"alpha_pattern": {"(": 2}}, "alpha_pattern is not an object of patterns"),
    ],
)
def test_fields_that_change_the_result_are_refused_by_name(fields: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=says):
        load_adapter(model(), write(tmp_path / "a", **fields))


def test_missing_and_damaged_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="has no adapter_config.json; is this the folder of a LoRA adapter"):
        read_adapter(tmp_path)
    with pytest.raises(CheckpointError, match="the folder does not exist"):
        read_adapter(tmp_path / "nothing")
    folder = write(tmp_path / "a")
    with pytest.raises(CheckpointError, match=f"has no adapter_config.json; use {folder}"):
        read_adapter(tmp_path)
    (folder / "adapter_model.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(CheckpointError, match="damaged, incomplete or not a safetensors file"):
        read_adapter(folder)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(CheckpointError, match="unmask reads safetensors only"):
        read_adapter(folder)
    for text in ("[]", "{", "[" * 100_000):
        (folder / "adapter_config.json").write_text(text)
        with pytest.raises(CheckpointError, match="adapter_config.json is damaged"):
            read_adapter(folder)
    bad = layer(down=(4, W), up=(W, 4))
    next(iter(bad.values()))[0, 0] = math.nan
    with pytest.raises(CheckpointError, match="holds values that are not finite"):
        load_adapter(model(), write(folder, tensors=bad))
    with pytest.raises(ValueError, match="the model has no adapters to save"):
        save_adapter(model(), tmp_path / "b")


def test_a_folder_may_have_a_scale(tmp_path: Path) -> None:
    (tmp_path / "with:2").mkdir()
    assert adapter_place(tmp_path / "with:2") == (tmp_path / "with:2", 1.0)
    assert adapter_place(f"{tmp_path}/with:2:-0.5") == (tmp_path / "with:2", -0.5)
    assert adapter_place("somewhere") == (Path("somewhere"), 1.0)
    with pytest.raises(ValueError, match="is neither a folder nor FOLDER:SCALE with a number"):
        adapter_place("somewhere:much")
    with pytest.raises(ValueError, match="must be a finite number, got nan"):
        adapter_place("somewhere:nan")


# -- the library itself -----------------------------------------------------------------------------------------------

NOT_OUT = r"(blocks\.\d+\.(und|gen)\.(q|v|mlp\.up)|text_head|code_head\.classify|vision\.project_in)"


@pytest.mark.parametrize(
    "more", [{}, {"use_rslora": True}, {"rank_pattern": {r"gen\.q": 2}, "alpha_pattern": {"v": 1}}]
)
def test_an_adapter_that_peft_wrote_loads(more: dict[str, Any], tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    theirs = peft.get_peft_model(model(), peft.LoraConfig(r=4, lora_alpha=6, target_modules=NOT_OUT, **more))
    rng = generator("peft")
    for name, weight in theirs.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight, 0, 0.1, generator=rng)
    theirs.save_pretrained(tmp_path)
    ours = model()
    load_adapter(ours, tmp_path)
    torch.testing.assert_close(logits(ours), logits(theirs), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(logits(ours), logits(model()), atol=0.1)


@pytest.mark.parametrize("branches", [("und", "gen"), ("vision", "codes", "text_head")])
def test_our_adapter_loads_in_peft(branches: tuple[str, ...], tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    made = adapted(branches=branches)
    one_more = model()
    LoRA(where=lambda name: name == "blocks.1.und.k", rank=7, alpha=2.0)(one_more)
    stir(one_more)
    add_products(made, {name: adapter.product for name, _, adapter in adapters(one_more)})
    save_adapter(made, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        theirs = peft.PeftModel.from_pretrained(model(), tmp_path)
    torch.testing.assert_close(logits(theirs), logits(made), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(logits(theirs), logits(model()), atol=0.1)
    merged = theirs.merge_and_unload()
    own = copy.deepcopy(made)
    merge(own)
    for name, layer, _ in adapters(own):
        torch.testing.assert_close(merged.get_submodule(name).weight, layer.weight, atol=1e-6, rtol=1e-6)


def test_peft_cannot_wrap_the_projection_that_returns_its_first_outputs(tmp_path: Path) -> None:
    """Why LoRA is our own code (docs/notes/0011-lora.md). If this fails, peft has learned it."""
    peft = pytest.importorskip("peft")
    theirs = peft.get_peft_model(model(), peft.LoraConfig(target_modules=["out"]))
    with pytest.raises(RuntimeError, match="must match the size"):
        logits(theirs)
