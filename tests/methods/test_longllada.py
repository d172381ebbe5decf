"""LongLLaDA: the measured factors, wavelengths and rotations, and the context of opened models."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import unmask
from tests import tiny_dream, tiny_llada
from unmask.cli.main import main
from unmask.methods.longllada import critical_dimension, ntk_factor
from unmask.models.elastic import Elastic, init
from unmask.models.rope import rope_table, rotate
from unmask.models.sizes import SIZES
from unmask.pipeline.context import Context
from unmask.pipeline.loading import read_config, write_config
from unmask.pipeline.text_model import TextModel
from unmask.sequence import Kind, Sequence, Span, collate
from unmask.tokens.vq import VQConfig

torch.set_num_threads(1)
Golden = Callable[[str], dict[str, Tensor]]


@pytest.fixture(scope="module")
def llada(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llada.make(tmp_path_factory.mktemp("long") / "llada")


def test_factors_are_those_of_the_paper_and_clamped(golden: Golden) -> None:
    arrays = golden("longllada")
    rows = arrays["rows_base_dim_train_target"].tolist()
    assert [critical_dimension(*row[:3]) for row in rows] == arrays["critical_dim"].tolist()
    factors = [ntk_factor(*row) for row in rows]
    assert factors == pytest.approx(arrays["factor"].clamp(min=1).tolist(), rel=1e-12)
    longer = [row[3] > row[2] for row in rows]
    assert [f for f, more in zip(factors, longer, strict=True) if not more] == [1.0] * longer.count(False)
    assert [max(1, math.ceil(f)) for f in factors] == arrays["factor_ceil"].tolist()
    in_code = arrays["factor_in_code"].tolist()
    assert [math.ceil(f) for f in factors[: len(in_code)]] == in_code


def test_the_critical_pair_is_the_first_that_never_turned_and_then_turns_once(golden: Golden) -> None:
    for base, width, trained, target in golden("longllada")["rows_base_dim_train_target"].tolist():
        critical = critical_dimension(base, width, trained)
        assert 2 * math.pi * base ** ((critical - 2) / width) < trained <= 2 * math.pi * base ** (critical / width)
        if target > trained:
            scaled = base * ntk_factor(base, width, trained, target)
            assert 2 * math.pi * scaled ** (critical / width) == pytest.approx(target, rel=1e-12)


def test_frequencies_are_those_of_the_scaled_base(golden: Golden) -> None:
    arrays = golden("longllada")
    rows = arrays["rows_base_dim_train_target"].tolist()
    base, width = rows[0][:2]
    large = [name for name in arrays if name.startswith("inv_freq_llada_x")]
    assert large
    for name in large:
        assert_frequencies(base * int(name.rpartition("x")[2]), width, arrays[name])
    small = next(row for row in rows if row[3] == 2 * row[2] and row[1] == 2 * len(arrays["inv_freq_small_x1"]))
    assert_frequencies(small[0], small[1], arrays["inv_freq_small_x1"])
    assert_frequencies(small[0] * ntk_factor(*small), small[1], arrays["inv_freq_small_2x"])


def assert_frequencies(theta: float, width: int, wanted: Tensor) -> None:
    """The angle of position 1, from the table that the network reads."""
    cos, sin = rope_table(torch.tensor([[1]]), width, theta)
    half = width // 2
    torch.testing.assert_close(cos[0, 0, 0, :half], wanted.cos().float(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(sin[0, 0, 0, half:], wanted.sin().float(), rtol=1e-5, atol=1e-7)


def test_rotation_of_a_scaled_base(golden: Golden) -> None:
    arrays = golden("longllada")
    x, width = arrays["rotate_in"], arrays["rotate_in"].shape[-1]
    rows = arrays["rows_base_dim_train_target"].tolist()
    row = next(row for row in rows if row[1] == width and row[3] == 2 * row[2])
    table = rope_table(arrays["rotate_pos"][None], width, row[0] * ntk_factor(*row))
    turned = rotate(x[:, None].float(), table)[:, 0]
    torch.testing.assert_close(turned, arrays["rotate_out_half_split_2x"].float(), rtol=1e-4, atol=3e-5)


def test_factor_1_is_bit_identical_and_tables_follow_a_changed_factor() -> None:
    config = replace(SIZES["tiny"], vision=None, gen_width=0, gen_mlp=0, codes=0, code_rows=0, joint_layers=3)
    net = Elastic(config, mask_id=0).eval()
    init(net, torch.Generator().manual_seed(0))
    span = Span(name="answer", kind=Kind.TEXT, start=0, stop=40, writable=True)
    batch = collate([Sequence(ids=torch.arange(40), masked=torch.arange(40) % 3 == 0, spans=(span,))], [0])
    with torch.no_grad():
        plain = net(batch).logits(Kind.TEXT)
        net.config = replace(config, rope_factor=1.0)
        assert net(batch).logits(Kind.TEXT).equal(plain)
        net.config = replace(config, rope_factor=9.0)
        scaled = net(batch).logits(Kind.TEXT)
        whole = Elastic(replace(config, rope_theta=9 * config.rope_theta), mask_id=0).eval()
        whole.load_state_dict(net.state_dict())
        assert whole(batch).logits(Kind.TEXT).equal(scaled)
        net.config = config
        assert net(batch).logits(Kind.TEXT).equal(plain)
    assert not scaled.equal(plain)


def test_a_longer_context_answers_longer_prompts(llada: Path) -> None:
    plain, longer = unmask.load(llada), unmask.load(llada, context=8192)
    assert isinstance(plain, TextModel) and isinstance(longer, TextModel)
    words = "the sky is blue " * 80
    with pytest.raises(ValueError, match="context of 256"):
        plain.ask(words, max_tokens=4, length=4, steps=1)
    answer = longer.ask(words, max_tokens=4, length=4, steps=1)
    assert answer.finish_reason in ("stop", "length")
    assert longer.parts.net.config.rope_factor == ntk_factor(500_000, 8, 256, 8192) > 1  # type: ignore[attr-defined]


def test_the_context_of_the_training_gives_the_same_answer(llada: Path) -> None:
    plain, same = unmask.load(llada), unmask.load(llada, context=256)
    assert plain.ask("why?", max_tokens=8, seed=3).text == same.ask("why?", max_tokens=8, seed=3).text


def test_dream_counts_from_the_length_of_its_training(tmp_path: Path) -> None:
    folder = tiny_dream.make(tmp_path / "dream")
    net = unmask.load(folder, context=4096).parts.net
    base, width = net.config.rope_theta, net.config.head_channels  # type: ignore[attr-defined]
    own = unmask.load(folder).parts.context  # type: ignore[union-attr]
    assert net.config.rope_factor == ntk_factor(base, width, min(own, 2048), 4096)  # type: ignore[attr-defined]


def test_a_model_that_draws_takes_the_length_of_its_training() -> None:
    model = unmask.load("mini", needs=(), context=Context(tokens=1024, trained=256))
    config = model.parts.net.config  # type: ignore[attr-defined]
    assert config.rope_factor == ntk_factor(config.rope_theta, config.head_channels, 256, 1024) > 1
    assert model.presets.context == 1024 and model.presets.turn <= 512  # type: ignore[union-attr]


def test_the_factor_is_a_field_of_our_own_folders(tmp_path: Path) -> None:
    for factor in (1.0, 3.5):
        config = replace(SIZES["tiny"], rope_factor=factor)
        write_config(tmp_path, config, VQConfig(num_vq_embeddings=config.codes), wording="compact", side=128, fold=2)
        assert read_config(tmp_path)["model"] == config
        assert ("rope_factor" in (tmp_path / "config.json").read_text()) == (factor != 1)


@pytest.mark.parametrize("wrong", [0, -5, 2**25])
def test_a_wrong_context_is_refused(llada: Path, wrong: int) -> None:
    with pytest.raises(ValueError, match="tokens must be a whole number in 1.."):
        unmask.load(llada, context=wrong)


def test_the_command_line(llada: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = "the sky is blue " * 80
    asked = ["ask", words, "--model", str(llada), "--max-tokens", "4", "--steps", "1", "--quiet"]
    assert main([*asked, "--context", "512"]) == 0
    assert main([*asked, "--context", "512:256", "--json"]) == 0
    capsys.readouterr()
    assert main(asked) == 2 and "context of 256" in capsys.readouterr().err
    for wrong in ("512:", "many", "0", "8:9:10", "-1"):
        assert main([*asked, f"--context={wrong}"]) == 2
        assert "is not N or N:TRAINED" in capsys.readouterr().err
