"""Folders of other people: every family by its own name, adapters, pickles, files, and tied heads."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import unmask
from unmask.checkpoints.families import RUNS
from unmask.checkpoints.stream import CheckpointError
from unmask.cli.main import main
from unmask.pipeline.loading import read_spec, resolve

from ..tiny_llada import CONFIG, make

torch.set_num_threads(1)
GOLDEN = Path(__file__).parents[1] / "golden" / "lavida_o_tiny"
HIDDEN = {"hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 100}

FAMILIES: dict[str, tuple[dict[str, Any], str]] = {
    "dream-vl": ({"model_type": "dreamvl", "architectures": ["DreamVLModel"], **HIDDEN}, "Dream-VL (model_type 'dreamvl'), which"),
    "llada_image": (
        {"model_type": "llada2_moe_veomni", "architectures": ["LLaDA2MoeModelLM"]},
        "LLaDA-Image (model_type 'llada2_moe_veomni'",
    ),
    "llada-moe": ({"model_type": "llada", "architectures": ["LLaDAMoEModelLM"], **HIDDEN}, "LLaDA-MoE (model_type 'llada'"),
    "llada-moe by its experts": ({"model_type": "llada", "num_experts": 64, **HIDDEN}, "LLaDA-MoE (model_type 'llada'"),
    "llada renamed": ({"model_type": "llada", **HIDDEN}, "LLaDA in another layout (model_type 'llada'"),
    "llada-v under another type": (
        {"model_type": "llada_v", "architectures": ["LlavaLLaDAModelLM"]},
        "LLaDA-V or of ReDiff, which has its layout (model_type 'llada_v'",
    ),
    "llava": ({"model_type": "llava", "architectures": ["LlavaForConditionalGeneration"]}, "LLaVA (model_type 'llava'"),
    "llava on qwen": ({"model_type": "llava_qwen", "architectures": ["LlavaQwenForCausalLM"]}, "LLaVA (model_type 'llava_qwen'"),
    "qwen2.5": ({"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}, "Qwen2 or Qwen2.5 (model_type 'qwen2'"),
    "qwen2.5-vl": ({"model_type": "qwen2_5_vl"}, "Qwen2.5-VL (model_type 'qwen2_5_vl')"),
    "qwen2-vl": ({"architectures": ["Qwen2VLForConditionalGeneration"]}, "Qwen2-VL (architectures 'Qwen2VLFor"),
    "llama": ({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}, "Llama (model_type 'llama'"),
    "unknown": ({"model_type": "frobnicator"}, "frobnicator (model_type 'frobnicator')"),
    "unknown class": ({"architectures": ["FrobForCausalLM"]}, "FrobForCausalLM (architectures 'FrobForCausalLM')"),
    "part of diffusers": ({"_class_name": "UNet2DConditionModel"}, "a part of a diffusers pipeline (diffusers, 'UNet2D"),
}  # fmt: skip


def folder_of(place: Path, config: object, **files: str) -> Path:
    """A folder with a config.json and a file of weights."""
    place.mkdir()
    (place / "config.json").write_text(json.dumps(config))
    save_file({"model.norm.weight": torch.zeros(2)}, str(place / "model.safetensors"))
    return place


def two_lines(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    code = main(words)
    out, err = capsys.readouterr()
    assert code == 2 and not out and len(err.splitlines()) == 2, (code, out, err)
    return err


@pytest.mark.parametrize(("config", "name"), FAMILIES.values(), ids=FAMILIES)
def test_a_family_is_told_by_its_name(
    config: dict[str, Any], name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = folder_of(tmp_path / "x", config)
    for words in (
        ["inspect", str(folder)],
        ["inspect", str(folder), "--task", "ask"],
        ["ask", "hi", "--model", str(folder)],
    ):
        told = two_lines(capsys, *words)
        assert f"this is a checkpoint of {name}" in told and "which unmask does not run yet" in told
        assert f"hint: it runs {RUNS}" in told
    with pytest.raises(CheckpointError, match="does not run yet; it runs LaViDa-O"):
        unmask.load(folder)


LUMINA: dict[str, dict[str, Any]] = {
    "its class": {"architectures": ["LLaDAForMultiModalGeneration"]},
    "its rows": {"embedding_size": 134_548},
    "rows of vocab_size": {"vocab_size": 134_548},
}


@pytest.mark.parametrize("fields", LUMINA.values(), ids=LUMINA)
def test_half_a_folder_of_lumina_is_not_taken_for_llada(
    fields: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = two_lines(capsys, "ask", "hi", "--model", str(folder_of(tmp_path / "x", CONFIG | fields)))
    assert "is a checkpoint of Lumina-DiMOO without its image tokenizer (folder vqvae)" in told


def test_lumina_is_told_by_its_image_tokenizer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Fault: a folder of Lumina-DiMOO whose config.json names LLaDA's class was opened as a text model without an error."""
    folder = make(tmp_path / "x")
    assert unmask.load(folder)
    (folder / "vqvae").mkdir()
    assert "vqvae/config.json" in two_lines(capsys, "ask", "hi", "--model", str(folder))


@pytest.mark.parametrize(
    "config", [[1], {}, {"model_type": 5, "architectures": "x"}, {"model_type": "", "architectures": []}]
)
def test_a_config_that_names_no_family_is_read_as_ours(config: object, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is this a folder of unmask, LaViDa-O or LLaDA"):
        unmask.load(folder_of(tmp_path / "x", config))


def test_ours_are_not_refused(tmp_path: Path) -> None:
    assert (
        read_spec(resolve("mini")).side
        and read_spec(resolve(GOLDEN)).released
        and unmask.load(make(tmp_path / "llada"))
    )


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"model_index.json": '{"_class_name": "StableDiffusionXLPipeline"}'}, "checkpoint of Stable Diffusion XL (diffusers"),
        ({"model_index.json": '{"_class_name": "OtherPipeline"}'}, "checkpoint of a pipeline of diffusers (diffusers, 'Other"),
        ({"model-q4.gguf": "GGUF"}, "it holds model-q4.gguf, but unmask reads safetensors only"),
        ({"pytorch_model.bin": "PK"}, "it holds pytorch_model.bin, but unmask reads safetensors only"),
        ({"pytorch_model.bin": "PK", "config.json": json.dumps(CONFIG)}, "it holds pytorch_model.bin, but unmask reads"),
        ({"config.json": json.dumps(CONFIG)}, "no model*.safetensors in"),
        ({"readme.txt": ""}, "has no config.json\nhint: is this a folder of a model?"),
        ({"model.safetensors.index.json": '{"weight_map": {"a": "model-1.safetensors"}}', "config.json": json.dumps(CONFIG)},
         "names 1 of 1 files that are missing (model-1.safetensors)"),
    ],
)  # fmt: skip
def test_what_is_not_a_model_is_named(
    files: dict[str, str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    for words in (["inspect", str(tmp_path)], ["ask", "hi", "--model", str(tmp_path)]):
        assert said in two_lines(capsys, *words)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ('{"base_model_name_or_path": "owner/base"}', "use the adapter with its base model: --model owner/base --lora"),
        ("[]", "use the adapter with its base model: --model MODEL --lora"),
    ],
)
def test_an_adapter_is_not_a_model(config: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "adapter_config.json").write_text(config)
    for words in (["ask", "hi", "--model", str(tmp_path)], ["inspect", str(tmp_path), "--task", "all"]):
        told = two_lines(capsys, *words)
        assert said in told and "holds a LoRA adapter (adapter_config.json) and no model" in told


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("model.safetensors", "is a single file of weights, not a model folder"),
        ("model.gguf", "is a GGUF file, not a model folder"),
        ("pytorch_model.bin", "is a pickle, which can run code"),
        ("config.json", "is a file, not a model folder"),
    ],
)
def test_a_file_is_not_a_folder(name: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / name).touch()
    assert said in two_lines(capsys, "ask", "hi", "--model", str(tmp_path / name))


def test_an_adapter_beside_a_model_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make(tmp_path / "llada")
    (folder / "adapter_config.json").write_text("{}")
    save_file({"a": torch.zeros(1000)}, str(folder / "adapter_model.safetensors"))
    with pytest.warns(UserWarning, match="holds a LoRA adapter beside the model, which is applied only with lora="):
        unmask.load(folder)
    assert main(["inspect", str(folder)]) == 0
    out, err = capsys.readouterr()
    assert "adapter_model" not in out and "not part of the model and not counted: adapter_model.safetensors" in err


def test_measured_figures_are_not_part_of_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(GOLDEN), "--json"]) == 0
    out, err = capsys.readouterr()
    told, stored = json.loads(out), load_file(GOLDEN / "model.safetensors")
    assert {part["file"] for part in told["parts"]} == {"model.safetensors"}
    assert told["parameters"] == sum(t.numel() for t in stored.values())
    assert "not counted: expected.safetensors" in err
    assert main(["inspect", str(GOLDEN / "expected.safetensors")]) == 0  # by its own name it is listed
    assert "expected.safetensors" in capsys.readouterr().out


# -- tied heads -----------------------------------------------------------------------------------------------------


def tied(place: Path, *, head: bool, **fields: bool) -> Path:
    """A folder whose head is its embedding: as a copy (``head``), or left out; ``fields`` of config.json are set."""
    folder = make(place)
    tensors = {k: v for file in sorted(folder.glob("*.safetensors")) for k, v in load_file(file).items()}
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    tensors["model.transformer.ff_out.weight"] = tensors["model.transformer.wte.weight"].clone()
    if not head:
        del tensors["model.transformer.ff_out.weight"]
    save_file(tensors, str(folder / "model.safetensors"))
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**raw, **fields}))
    return folder


@pytest.mark.parametrize(
    ("head", "fields"),
    [
        (False, {"tie_word_embeddings": True}),
        (False, {"weight_tying": True}),
        (True, {"weight_tying": True, "tie_word_embeddings": True}),
        (False, {}),
    ],
)
def test_a_tied_head_equals_its_untied_twin(head: bool, fields: dict[str, bool], tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no tensor is called unused
        model = unmask.load(tied(tmp_path / "tied", head=head, **fields))
    twin = unmask.load(tied(tmp_path / "twin", head=True, weight_tying=False))
    assert all(
        torch.equal(a, b) for a, b in zip(model.parts.net.parameters(), twin.parts.net.parameters(), strict=True)
    )
    assert torch.equal(model.parts.net.text_head.weight, model.parts.net.embed.weight)
    assert model.ask("why?", max_tokens=6, seed=1).text == twin.ask("why?", max_tokens=6, seed=1).text


def test_a_head_that_config_says_is_there_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="missing transformer.ff_out.weight"):
        unmask.load(tied(tmp_path / "tied", head=False, weight_tying=False, tie_word_embeddings=False))


def test_verify_names_the_family_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It said that a field of config.json, which only LaViDa-O has, was wrong."""
    config, name = FAMILIES["llava"]
    assert name in two_lines(capsys, "verify", str(folder_of(tmp_path / "other", config)))
