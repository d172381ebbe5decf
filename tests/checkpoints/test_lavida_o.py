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
from unmask.models.elastic import Elastic
from unmask.models.sizes import SIZES
from unmask.sampling.draw import Greedy
from unmask.sampling.guide import ClassifierFree
from unmask.sampling.orders import stratified
from unmask.sampling.pace import Shift
from unmask.sampling.sampler import Sampler
from unmask.sampling.select import InOrder
from unmask.sequence import Batch, Branch, Kind, Sequence, Span, collate
from unmask.tokens.vq import VQ

torch.set_num_threads(1)
FOLDER = Path(__file__).parents[1] / "golden" / "lavida_o_tiny"
GRID, MASK_ID = (8, 8), 639


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


def close(got: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(got, wanted, atol=1e-4, rtol=0)


def row(*parts: tuple[str, Tensor], segments: tuple[int, ...] = (), writable: frozenset[str] = frozenset()) -> Sequence:
    """Spans of text (ids [n]) or codes (ids [64]; what is 129 is undecided)."""
    ids, masked, spans = [], [], []
    for i, (name, values) in enumerate(parts):
        start = sum(map(len, ids))
        code = {"kind": Kind.CODE, "grid": GRID, "fold": 2} if name in ("source", "image") else {"kind": Kind.TEXT}
        segment = segments[i] if segments else 0
        spans.append(
            Span(name=name, start=start, stop=start + len(values), segment=segment, writable=name in writable, **code)  # type: ignore[arg-type]
        )
        ids.append(values)
        masked.append((values == 129) & (code["kind"] == Kind.CODE))
    return Sequence(ids=torch.cat(ids), masked=torch.cat(masked), spans=tuple(spans))


def drawing(expected: dict[str, Tensor], b: int) -> Sequence:
    ids, first = expected["t2i.ids"][b], int(expected["sample.null_prefix"])
    return row(
        ("prompt", ids[:first]), ("assistant", ids[first:9]), ("image", expected["t2i.codes"][b]), ("end", ids[25:])
    )


def everything(batch: Batch) -> Tensor:
    return batch.valid


def test_text_sees_both_ways(net: Elastic, expected: dict[str, Tensor]) -> None:
    batch = collate([row(("text", ids)) for ids in expected["und.ids"]], [0, 0])
    close(net(batch, ask=everything(batch)).text_logits, expected["und.logits"].flatten(0, 1))


def test_cached_prefix_is_a_context_segment(net: Elastic, expected: dict[str, Tensor]) -> None:
    rows = [row(("prefix", ids[:13]), ("rest", ids[13:]), segments=(0, 1)) for ids in expected["und.ids"]]
    batch = collate(rows, [0, 0])
    close(net(batch, ask=batch.segment == 1).text_logits, expected["prefix.logits"].flatten(0, 1))


def test_code_embeddings(net: Elastic, expected: dict[str, Tensor]) -> None:
    close(net.code_embedding(expected["t2i.codes"].view(2, 1, *GRID), folded=True), expected["t2i.code_embeddings"])


def test_drawing(net: Elastic, expected: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    batch = collate([drawing(expected, b) for b in range(2)], [0, 0])
    hidden = []  # what reaches the two heads: the final norm's outputs
    unfold, read = net.code_head.unfold_positions, net.text_head.forward
    monkeypatch.setattr(net.code_head, "unfold_positions", lambda h, grid: hidden.append(h) or unfold(h, grid))
    monkeypatch.setattr(net.text_head, "forward", lambda h: hidden.append(h) or read(h))
    prediction = net(batch, ask=everything(batch))
    close(prediction.code_logits, expected["t2i.code_logits"].flatten(0, 1))

    is_gen = expected["t2i.is_gen"]
    close(prediction.text_logits, expected["t2i.text_logits"][~is_gen])
    und, gen = sorted(hidden, key=torch.Tensor.dim)
    close(und, expected["t2i.hidden"][~is_gen])
    released = expected["t2i.hidden"][is_gen].view(2, 16, 64)
    close(gen, released[..., :32])
    assert not released[..., 32:].any()


def test_editing_with_and_without_the_source(net: Elastic, expected: dict[str, Tensor]) -> None:
    source, target = expected["edit.source_codes"][0], expected["edit.target_codes"][0]
    rows = []
    for ids in expected["edit.ids"]:
        rows.append(
            row(("prompt", ids[:5]), ("source", source), ("prompt", ids[21:27]), ("image", target), ("end", ids[43:]))
        )
    batch = collate(rows, [0, 0])
    gone = torch.zeros_like(batch.masked)
    gone[1, 5:69] = True
    mixed = batch.drop_tokens(gone, MASK_ID)
    assert (mixed.branch[1, 5:69] == Branch.UND).all()
    image = torch.zeros_like(gone)
    image[:, 75:139] = True
    both = net(mixed, ask=image).code_logits.view(2, 64, -1)
    close(both, expected["edit.code_logits"])
    for b in range(2):
        alone = net(mixed.row(b), ask=image[:1]).code_logits
        close(alone, expected["edit.code_logits"][b])


def test_sampling(net: Elastic, expected: dict[str, Tensor]) -> None:
    sequence = drawing(expected, 0)
    prompt, assistant, image, end = sequence.spans
    spans = (prompt, assistant, Span(**{**vars(image), "writable": True}), end)
    masked = torch.zeros_like(sequence.masked)
    masked[image.start : image.stop] = True
    batch = collate([Sequence(ids=sequence.ids, masked=masked, spans=spans)], [0])
    pace = Shift(steps=6, shift=5.0)
    assert pace.counts(64) == expected["sample.counts"].tolist()
    sampler = Sampler(
        pace=pace,
        guide=ClassifierFree(scale=4.0, drop=frozenset({"prompt"}), null_id=MASK_ID),
        draw=Greedy(),
        select=InOrder(order=tuple(stratified(8, 42))),
    )
    done = sampler.sample(net, batch)
    assert not done.masked.any()
    assert done.ids[:, image.start : image.stop].equal(expected["sample.codes"])


def test_tokenizer(released: tuple[Elastic, VQ], expected: dict[str, Tensor]) -> None:
    vq = released[1]
    codes = vq.encode(expected["vq.image"])
    assert codes.flatten(1).equal(expected["vq.codes"].flatten(1))
    z = vq.quantize.embedding(codes).permute(0, 3, 1, 2)
    close(vq.from_latents(z), expected["vq.decoded"])
    close(vq.decode(codes), expected["vq.decoded"].clamp(0, 1))


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
    with pytest.raises(CheckpointError, match="is this a LaViDa-O folder"):
        load_lavida_o(tmp_path / "nowhere")


def test_tokenizer_weights_from_the_model_file(folder: Path, expected: dict[str, Tensor]) -> None:
    """Spec 8, 13: the VQ model is a submodule of the released one, so its weights may lie in either place."""
    file = folder / "vqvae" / "diffusion_pytorch_model.safetensors"
    rewrite(folder, **{f"model.vqvae.{k}".replace(".", "__"): v for k, v in load_file(file).items()})
    file.unlink()
    assert load_lavida_o(folder)[1].encode(expected["vq.image"]).flatten(1).equal(expected["vq.codes"].flatten(1))
