"""Dream's layout: every tensor has its place, and the network is Qwen2 read in both directions."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import unmask
from unmask.checkpoints.dream import is_dream, survey_dream, trunk_names
from unmask.checkpoints.loading import load_everything
from unmask.checkpoints.stream import CheckpointError
from unmask.cli.main import main
from unmask.models.sizes import SIZES
from unmask.pipeline.loading import Format, read_spec
from unmask.sequence import Kind, Sequence, Span, collate

from ..tiny_dream import CONFIG, make, tensors

torch.set_num_threads(1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make(tmp_path / "dream")


def changed(folder: Path, **fields: object) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    return folder


def test_parity_with_a_bidirectional_qwen2(folder: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="pip install unmask[hf]", exc_type=ImportError)
    config = transformers.Qwen2Config(
        **{k: v for k, v in CONFIG.items() if k not in ("model_type", "architectures", "rope_theta", "rope_scaling")},
        rope_parameters={"rope_type": "default", "rope_theta": CONFIG["rope_theta"]},
        attn_implementation="eager",
    )
    qwen = transformers.Qwen2ForCausalLM(config).eval()
    qwen.load_state_dict(tensors())
    ids = torch.randint(0, 280, (1, 11), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        theirs = qwen(ids, attention_mask=torch.zeros(1, 1, 11, 11)).logits[0]
    span = Span(name="text", kind=Kind.TEXT, start=0, stop=11)
    batch = collate([Sequence(ids=ids[0], masked=torch.zeros(11, dtype=torch.bool), spans=(span,))], [0])
    net, _ = load_everything(survey_dream(folder))
    with torch.no_grad():
        ours = net(batch, predict=batch.valid).logits(Kind.TEXT)
    torch.testing.assert_close(ours, torch.cat([theirs[:1], theirs[:-1]]), atol=2e-5, rtol=1e-5)


def test_the_released_size_has_the_published_number_of_parameters() -> None:
    from unmask.pipeline.named_sizes import spec_of_size

    found = spec_of_size("dream_7b")
    assert found.format is Format.DREAM
    assert sum(stored.numbers for stored in found.checkpoint.net.values()) == 7_615_616_512


def test_every_tensor_has_its_place(folder: Path) -> None:
    checkpoint = survey_dream(folder)
    assert {stored.name for stored in checkpoint.net.values()} == set(tensors())
    assert set(trunk_names(SIZES["dream_7b"])) == set(read_spec_names(28))


def read_spec_names(layers: int) -> list[str]:
    out = ["embed.weight", "norm.weight", "text_head.weight"]
    for i in range(layers):
        out += [f"blocks.{i}.und.{n}.{k}" for n in "qkv" for k in ("weight", "bias")]
        out += [f"blocks.{i}.{n}.weight" for n in ("out", "und.attn_norm", "und.mlp_norm")]
        out += [f"blocks.{i}.und.mlp.{n}.weight" for n in ("gate", "up", "down")]
    return out


def test_a_tied_head_is_the_embedding(folder: Path) -> None:
    for path in folder.glob("model*.safetensors"):
        kept = {k: v for k, v in load_file(path).items() if k != "lm_head.weight"}
        save_file(kept, path)
    net, _ = load_everything(survey_dream(changed(folder, tie_word_embeddings=True)))
    assert torch.equal(net.text_head.weight, net.embed.weight)


def test_it_is_told_by_its_model_type() -> None:
    assert is_dream(CONFIG) and not is_dream({"model_type": "llada"}) and not is_dream({"model_type": "dream_vl"})


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"num_attention_heads": 3}, "multiple"),
        ({"rope_scaling": {"type": "yarn"}}, "rope_scaling is an object of 1, wanted null"),
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu', wanted 'silu'"),
        ({"mask_token_id": 320}, "mask_token_id 320 is not in the vocabulary"),
        ({"mask_token_id": 5}, "is 289 in the tokenizer and 5 in config.json"),
        ({"max_position_embeddings": [4096]}, "max_position_embeddings is a list of 1, wanted a whole number"),
        ({"max_position_embeddings": 0}, "max_position_embeddings is 0, wanted at least 1"),
        ({"rope_theta": "1e6"}, "rope_theta is '1e6', wanted a number"),
        ({"num_hidden_layers": 2}, "num_hidden_layers 2 does not fit the weights, which have 3 layers"),
        ({"vocab_size": 512}, "embed_tokens.weight is"),
    ],
)
def test_a_config_that_does_not_fit_is_named(folder: Path, fields: dict[str, object], words: str) -> None:
    with pytest.raises((CheckpointError, ValueError), match=words):
        unmask.load(changed(folder, **fields))


def test_a_missing_field_is_named(folder: Path) -> None:
    raw = json.loads((folder / "config.json").read_text())
    del raw["num_attention_heads"]
    (folder / "config.json").write_text(json.dumps(raw))
    with pytest.raises(CheckpointError, match="lacks num_attention_heads"):
        unmask.load(folder)


def test_half_a_folder_is_named(folder: Path) -> None:
    (folder / "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match="lacks|missing|of 2"):
        unmask.load(folder)


def test_a_folder_without_a_tokenizer_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "merges.txt").unlink()
    assert main(["ask", "hi", "--model", str(folder)]) == 2
    assert "has no tokenizer: neither tokenizer.json nor merges.txt" in capsys.readouterr().err


def test_the_tokenizer_of_qwen_itself_is_named(folder: Path) -> None:
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["added_tokens_decoder"] = dict(list(config["added_tokens_decoder"].items())[:8])
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"lacks 1 control tokens, for example <\|mask\|>"):
        unmask.load(folder)


def test_added_tokens_with_other_ids_are_named(folder: Path) -> None:
    config = json.loads((folder / "tokenizer_config.json").read_text())
    ids = config["added_tokens_decoder"]
    config["added_tokens_decoder"] = {str(int(k) + 1): v for k, v in ids.items()}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="the id 281, and behind vocab.json it is 280"):
        unmask.load(folder)


def test_a_vision_tower_under_the_name_of_a_text_model_is_named(folder: Path) -> None:
    save_file({"visual.merger.ln_q.weight": torch.ones(4)}, folder / "model-00001-of-00002.safetensors")
    with pytest.raises(CheckpointError, match=r"a text model, and the weights hold visual.merger"):
        unmask.load(folder)


def test_inspect_knows_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(folder), "--json"]) == 0
    assert "dream" in capsys.readouterr().out


def test_the_measured_folder_opens_but_for_its_tokenizer(tmp_path: Path) -> None:
    golden = Path(__file__).parents[1] / "golden" / "dream_tiny"
    assert read_spec(golden).checkpoint.config.kv_heads == 2
    with pytest.raises(ValueError, match="has no tokenizer"):
        unmask.load(shutil.copytree(golden, tmp_path / "golden"))
