"""The released layout: every array of tests/golden/lavida_o_tiny, measured from the official implementation, is reproduced."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from unmask.checkpoints.lavida_o import load_lavida_o, names
from unmask.checkpoints.store import CheckpointError
from unmask.evaluation.verify import INPUTS, Difference, Reference, verify
from unmask.models.elastic import Elastic
from unmask.models.sizes import SIZES
from unmask.sequence import Branch
from unmask.tokens.vq import VQ

torch.set_num_threads(1)
FOLDER = Path(__file__).parents[1] / "golden" / "lavida_o_tiny"


@pytest.fixture(scope="module")
def released() -> tuple[Elastic, VQ]:
    return load_lavida_o(FOLDER)


@pytest.fixture(scope="module")
def net(released: tuple[Elastic, VQ]) -> Elastic:
    return released[0]


@pytest.fixture(scope="module")
def expected() -> dict[str, Tensor]:
    return load_file(FOLDER / "expected.safetensors")


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def found() -> dict[str, Difference]:
    return {d.name: d for d in verify(FOLDER)}


OUTPUTS = (
    "edit.code_logits prefix.logits sample.codes sample.counts t2i.code_embeddings t2i.code_logits t2i.hidden "
    "t2i.text_logits und.logits vq.codes vq.decoded"
).split()


@pytest.mark.parametrize("name", OUTPUTS)
def test_every_array_is_reproduced(name: str, found: dict[str, Difference], expected: dict[str, Tensor]) -> None:
    assert found[name].ok, found[name]
    assert found[name].shape == expected[name].shape and found[name].exact == (not expected[name].is_floating_point())


def test_nothing_is_left_out(found: dict[str, Difference], expected: dict[str, Tensor]) -> None:
    assert sorted(found) == OUTPUTS and set(expected) == set(OUTPUTS) | INPUTS and len(expected) == 22


def test_editing_rows_have_no_company(net: Elastic, expected: dict[str, Tensor]) -> None:
    form = Reference(arrays=expected, mask_id=net.mask_id, mask_code=net.config.mask_code)
    mixed = form.editing()
    span = next(s for s in mixed.span_table[1] if s.name == "source")
    assert (mixed.branch[1, span.start : span.stop] == Branch.UND).all()
    for b in range(2):
        torch.testing.assert_close(form.edits(net, mixed.row(b))[0], expected["edit.code_logits"][b], atol=1e-4, rtol=0)


def test_pixels_are_clipped(released: tuple[Elastic, VQ], expected: dict[str, Tensor]) -> None:
    pixels = released[1].decode(expected["vq.codes"].view(1, 8, 8))
    torch.testing.assert_close(pixels, expected["vq.decoded"].clamp(0, 1), atol=1e-4, rtol=0)


# -- names and what can be wrong --------------------------------------------------------------------------------------


def test_every_parameter_of_the_released_size_has_one_name() -> None:
    with torch.device("meta"):
        own = Elastic(SIZES["lavida_o"], mask_id=126336).state_dict()
    mapping = names(SIZES["lavida_o"])
    assert set(mapping) == set(own)
    assert len(set(mapping.values())) == len(mapping)
    # A sample of spec 7.2, shape by shape.
    of = {theirs: tuple(own[ours].shape) for ours, theirs in mapping.items()}
    assert of["transformer.wte.weight"] == of["transformer.ff_out.weight"] == (127378, 4096)
    assert of["transformer.blocks.31.ff_proj.weight"] == of["transformer.blocks.0.up_proj.weight"] == (12288, 4096)
    assert of["transformer.blocks.31.k_proj_vision.weight"] == (4096, 2048)
    assert of["transformer.blocks.0.ff_out_vision.weight"] == (2048, 8192)
    assert of["gen_embedding.0.weight"] == (8448, 2048)
    assert of["gen_predictor.2.weight"] == (8192, 2048)
    assert of["upsample_gen.upsample.conv.weight"] == (2048, 2048, 2, 2)
    assert of["vision_resampler.pool.weight"] == (1152, 1152, 2, 2)
    assert of["mm_projector.0.weight"] == (4096, 1152) and of["mm_projector.2.weight"] == (4096, 4096)
    tower = "vision_tower.vision_tower.vision_model"
    assert of[f"{tower}.embeddings.patch_embedding.weight"] == (1152, 3, 14, 14)
    assert of[f"{tower}.embeddings.position_embedding.weight"] == (729, 1152)
    assert of[f"{tower}.encoder.layers.25.mlp.fc1.weight"] == (4304, 1152)
    assert of[f"{tower}.post_layernorm.bias"] == (1152,)
    assert of["image_newline"] == (4096,)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    copy = tmp_path / "released"
    shutil.copytree(FOLDER, copy)
    return copy


def rewrite(folder: Path, **changes: Tensor | None) -> None:
    """Tensors of the model file replaced, added, or taken away (None); ``__`` in a name stands for a dot."""
    tensors = load_file(folder / "model.safetensors")
    for name, value in changes.items():
        tensors.pop(name.replace("__", "."), None)
        if value is not None:
            tensors[name.replace("__", ".")] = value
    save_file(tensors, folder / "model.safetensors")


def test_missing_and_misshapen_are_all_named(folder: Path) -> None:
    rewrite(
        folder,
        model__transformer__ln_f__weight=None,
        model__transformer__blocks__2__q_proj_vision__weight=None,
        model__gen_predictor__0__weight=torch.zeros(32, 31),
    )
    with pytest.raises(CheckpointError) as error:
        load_lavida_o(folder)
    for part in ("missing transformer.ln_f", "missing transformer.blocks.2.q_proj_vision", "(32, 31), wanted (32, 32)"):
        assert part in str(error.value)


def test_unknown_is_a_warning(folder: Path) -> None:
    rewrite(folder, model__transformer__blocks__0__attn_out_vision__weight=torch.zeros(32, 64))
    with pytest.warns(UserWarning, match="blocks.0.attn_out_vision.weight"):
        load_lavida_o(folder)


def test_not_a_number(folder: Path) -> None:
    rewrite(folder, model__transformer__ln_f__weight=torch.full((64,), torch.nan))
    with pytest.raises(CheckpointError, match="ln_f.weight holds values that are not finite"):
        load_lavida_o(folder)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("gen_mlp_type", "unitok"),
        ("gen_mlp_type", None),
        ("dual_tower", None),
        ("n_kv_heads", 2),
        ("enc_use_image_branch", None),
        ("unified_gen_enc", True),
    ],
)
def test_other_layouts_are_named(folder: Path, field: str, value: object) -> None:
    raw = json.loads((folder / "config.json").read_text())
    raw.pop(field, None)
    (folder / "config.json").write_text(json.dumps(raw | ({field: value} if value else {})))
    with pytest.raises(CheckpointError, match=field):
        load_lavida_o(folder)


def test_never_split_without_the_field(folder: Path) -> None:
    raw = json.loads((folder / "config.json").read_text())
    raw.pop("dual_tower_layers")
    (folder / "config.json").write_text(json.dumps(raw))
    assert load_lavida_o(folder)[0].config.joint_layers == 4


def test_no_folder_and_no_config(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is this a folder of weights"):
        load_lavida_o(tmp_path / "nowhere")


def test_tokenizer_weights_from_the_model_file(folder: Path, expected: dict[str, Tensor]) -> None:
    """Spec 8, 13: the VQ model is a submodule of the released one, so its weights may lie in either place."""
    file = folder / "vqvae" / "diffusion_pytorch_model.safetensors"
    rewrite(folder, **{f"model.vqvae.{k}".replace(".", "__"): v for k, v in load_file(file).items()})
    file.unlink()
    assert load_lavida_o(folder)[1].encode(expected["vq.image"]).flatten(1).equal(expected["vq.codes"].flatten(1))
