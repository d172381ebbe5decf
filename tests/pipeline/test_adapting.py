"""Models with LoRA adapters: opened with them, merged on disk, in every layout, from Python and at the command line."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import unmask
from unmask.checkpoints.adapters import load_adapter, save_adapter
from unmask.checkpoints.elastic import WeightStorage
from unmask.checkpoints.quantise import RoundToNearest
from unmask.checkpoints.stream import CheckpointError
from unmask.cli.main import main
from unmask.models.elastic import Elastic
from unmask.models.lora import LoRA, adapters, in_branches, sharing
from unmask.pipeline.adapting import merge, with_adapters
from unmask.pipeline.loading import needs_of
from unmask.pipeline.model import Model
from unmask.rng import generator

from ..tiny_llada import make as make_llada

GOLDEN = Path(__file__).parents[1] / "golden" / "lavida_o_tiny"
PARTS = ("und", "gen", "out", "codes", "text_head")


def adapter(
    net: Elastic, folder: Path, *, branches: tuple[str, ...] = PARTS, strength: float = 0.3, base: str = "mini"
) -> Path:
    """A saved adapter of random values. The network does not change."""
    made = sharing(net)
    LoRA(where=in_branches(*branches), rank=4)(made)
    rng = generator("adapter", folder.name)
    for _, _, one in adapters(made):
        nn.init.normal_(one.up, 0, strength, generator=rng)
    save_adapter(made, folder, base=base)
    return folder


@pytest.fixture(scope="module")
def mini() -> Model:
    opened = unmask.load("mini", device="cpu")
    assert isinstance(opened, Model)
    return opened


@pytest.fixture(scope="module")
def folders(mini: Model, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    place = tmp_path_factory.mktemp("adapters")
    return adapter(mini.parts.net, place / "one"), adapter(mini.parts.net, place / "two", branches=("vision", "und"))


def pixels(model: Model, prompt: str = "a red apple") -> bytes:
    return model.generate(prompt, plan=False, attempts=1, seed=3, steps=4)[0].image.tobytes()


def weight(model: Model, name: str = "blocks.0.und.q.weight") -> torch.Tensor:
    return model.parts.net.get_parameter(name)


# -- opened with adapters ---------------------------------------------------------------------------------------------


def test_a_model_is_opened_with_one_adapter_or_several(mini: Model, folders: tuple[Path, Path]) -> None:
    one, two = folders
    base = pixels(mini)
    opened = unmask.load("mini", device="cpu", lora=one)
    assert pixels(opened) != base
    assert pixels(unmask.load("mini", device="cpu", lora=f"{one}:0")) == base
    both = unmask.load("mini", device="cpu", lora=[str(one), f"{two}:0.5"])
    by_hand = sharing(mini.parts.net)
    load_adapter(by_hand, one)
    load_adapter(by_hand, two, 0.5)
    found = {name: one.product for name, _, one in adapters(by_hand)}
    assert found.keys() == {name for name, _, _ in adapters(both.parts.net)}
    for name, _, own in adapters(both.parts.net):
        assert torch.equal(own.product.up, found[name].up) and torch.equal(own.product.down, found[name].down)


def test_parts_that_are_loaded_later_have_their_adapters(folders: tuple[Path, Path], mini: Model) -> None:
    part = unmask.load("mini", device="cpu", lora=folders, needs=needs_of("generate"))
    whole = unmask.load("mini", device="cpu", lora=folders)
    assert pixels(part) == pixels(whole)
    picture = mini.generate("a red apple", plan=False, attempts=1, seed=1, steps=4)[0].image
    assert part.ask(picture, "what is it?").text == whole.ask(picture, "what is it?").text


def test_a_picture_of_a_batch_does_not_depend_on_the_others(folders: tuple[Path, Path]) -> None:
    opened = unmask.load("mini", device="cpu", lora=folders)
    four = opened.generate("a red apple", n=4, plan=False, attempts=1, seed=3, steps=4)
    assert [pixels(opened)] == [four[0].image.tobytes()]
    assert opened.generate("a red apple", plan=False, attempts=1, seed=5, steps=4)[0].image == four[2].image


@pytest.mark.parametrize("bits", [8, 4])
def test_a_quantised_base_takes_an_adapter(bits: int, folders: tuple[Path, Path]) -> None:
    pytest.importorskip("torchao")
    storage = WeightStorage(quantise={"und": RoundToNearest(bits=bits), "gen": RoundToNearest(bits=bits)})
    plain = unmask.load("mini", device="cpu", storage=storage)
    opened = unmask.load("mini", device="cpu", storage=storage, lora=folders[0])
    assert pixels(opened) != pixels(plain)
    assert pixels(unmask.load("mini", device="cpu", storage=storage, lora=f"{folders[0]}:0")) == pixels(plain)


def test_dtype_and_offloading_apply_to_adapters_too(folders: tuple[Path, Path]) -> None:
    half = unmask.load("mini", device="cpu", storage=WeightStorage(dtype=torch.bfloat16), lora=folders[0])
    assert {one.up.dtype for _, _, one in adapters(half.parts.net)} == {torch.bfloat16}
    assert pixels(half)
    away = unmask.load("mini", device="cpu", storage=WeightStorage(offload=frozenset({"und", "gen"})), lora=folders[0])
    assert pixels(away) == pixels(unmask.load("mini", device="cpu", lora=folders[0]))


def test_an_adapted_model_shares_the_weights(mini: Model, folders: tuple[Path, Path]) -> None:
    before = pixels(mini)
    made = with_adapters(mini, folders[0])
    assert isinstance(made, Model) and weight(made) is weight(mini)
    assert pixels(made) == pixels(unmask.load("mini", device="cpu", lora=folders[0])) != before
    assert pixels(mini) == before and not list(adapters(mini.parts.net))
    assert made.parts.features is not mini.parts.features


# -- merged -----------------------------------------------------------------------------------------------------------


def test_merging_writes_a_model_that_computes_the_same(mini: Model, folders: tuple[Path, Path], tmp_path: Path) -> None:
    one, two = folders
    written = merge("mini", [one, f"{two}:0.5"], tmp_path / "merged")
    assert {p.name for p in written} >= {"config.json", "tokenizer.json", "vocabulary.json"}
    made = unmask.load(tmp_path / "merged", device="cpu")
    changed = {
        name for name, p in mini.parts.net.named_parameters() if not torch.equal(p, made.parts.net.get_parameter(name))
    }
    opened = unmask.load("mini", device="cpu", lora=[one, f"{two}:0.5"])
    assert changed == {f"{name}.weight" for name, _, _ in adapters(opened.parts.net)}
    for name, layer, own in adapters(opened.parts.net):
        wanted = layer.weight + own.up @ own.down * own.scale
        # Stored in half precision.
        torch.testing.assert_close(made.parts.net.get_parameter(f"{name}.weight"), wanted, atol=1e-6, rtol=2**-8)
    assert pixels(made) != pixels(mini)


@pytest.mark.parametrize("lora", [[], ["one"], ["one:0"]])
def test_merging_into_the_released_layout(lora: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    from unmask.checkpoints.lavida_o import load_lavida_o

    net, _ = load_lavida_o(GOLDEN)
    adapter(net, tmp_path / "one", branches=("gen",), base="")
    if not lora:
        with pytest.raises(ValueError, match="no adapter to merge"):
            merge(GOLDEN, lora, tmp_path / "merged")
        return
    merge(GOLDEN, lora, tmp_path / "merged")
    before, after = (load_file(folder / "model.safetensors") for folder in (GOLDEN, tmp_path / "merged"))
    assert before.keys() == after.keys() and all(after[k].dtype == before[k].dtype for k in before)
    changed = {k for k in before if not torch.equal(before[k], after[k])}
    assert all("_vision." in k for k in changed) and bool(changed) == (lora == ["one"])
    assert not (tmp_path / "merged" / "expected.safetensors").exists()  # measured with other weights
    assert (tmp_path / "merged" / "vqvae" / "config.json").exists()
    load_lavida_o(tmp_path / "merged")


def test_a_text_model_takes_adapters_and_is_merged(tmp_path: Path) -> None:
    folder = make_llada(tmp_path / "llada")
    base = unmask.load(folder, device="cpu")
    made = adapter(base.parts.net, tmp_path / "one", branches=("und", "out", "text_head"), strength=3.0, base="llada")
    said = [model.complete("why is", max_tokens=16).text for model in (base, with_adapters(base, made))]
    assert said[0] != said[1] == unmask.load(folder, device="cpu", lora=made).complete("why is", max_tokens=16).text
    merge(folder, made, tmp_path / "merged")
    assert unmask.load(tmp_path / "merged", device="cpu").complete("why is", max_tokens=16).text == said[1]
    assert sorted(p.name for p in (tmp_path / "merged").iterdir()) == sorted(p.name for p in folder.iterdir())


def test_the_head_of_a_tied_model_is_not_merged(tmp_path: Path) -> None:
    folder = make_llada(tmp_path / "llada")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"weight_tying": True}))
    stored = {k: v for file in folder.glob("*.safetensors") for k, v in load_file(file).items()}
    for file in folder.glob("*.safetensors"):
        copied = {"model.transformer.ff_out.weight": stored["model.transformer.wte.weight"].clone()}
        save_file({k: copied.get(k, v) for k, v in load_file(file).items()}, file)
    net = unmask.load(folder, device="cpu").parts.net
    with pytest.raises(
        CheckpointError, match="text_head is tied to the embedding, so an adapter of it cannot be merged"
    ):
        merge(folder, adapter(net, tmp_path / "one", branches=("text_head",)), tmp_path / "merged")


# -- errors -----------------------------------------------------------------------------------------------------------


def test_an_adapter_of_another_model_is_refused_before_weights_are_read(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    read: list[int] = []
    llada = make_llada(tmp_path / "llada")
    with pytest.raises(CheckpointError, match="does not fit the model: .* it was trained on mini"):
        unmask.load(llada, device="cpu", lora=folders[0], on_bytes=lambda done, of: read.append(done))
    net = sharing(unmask.load(llada, device="cpu").parts.net)
    theirs = adapter(net, tmp_path / "theirs", branches=("und",), base="llada")
    with pytest.raises(CheckpointError, match="does not fit the model: .* it was trained on llada"):
        unmask.load("mini", device="cpu", lora=theirs, on_bytes=lambda done, of: read.append(done))
    with pytest.raises(CheckpointError, match="was trained on other weights .llada.; open the model"):
        unmask.load(make_llada(tmp_path / "other", seed=1), device="cpu", lora=theirs)
    with pytest.raises(CheckpointError, match="does not fit the model: .* it was trained on mini"):
        merge(GOLDEN, folders[0], tmp_path / "merged")
    assert not read and not (tmp_path / "merged").exists()


@pytest.mark.parametrize(
    ("lora", "says"),
    [
        ("nowhere", "nowhere has no adapter_config.json; the folder does not exist"),
        ("nowhere:0.5", "nowhere has no adapter_config.json; the folder does not exist"),
        ("nowhere:half", "is neither a folder nor FOLDER:SCALE with a number"),
        (str(GOLDEN), "has no adapter_config.json; it holds a model"),
        (["nowhere:inf"], "must be a finite number, got inf"),
    ],
)
def test_places_that_hold_no_adapter(lora: str | list[str], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        unmask.load("mini", device="cpu", lora=lora, needs=())


def test_merging_never_overwrites(folders: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(ValueError, match="exists already; give a new folder"):
        merge("mini", folders[0], tmp_path / "there")


# -- the command line -------------------------------------------------------------------------------------------------


def test_commands_take_adapters(folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def draw(*more: str) -> bytes:
        out = tmp_path / "drawn.png"
        given = ["generate", "a red apple", "--no-plan", "--steps", "4", "--device", "cpu", "--out", str(out), *more]
        assert main(given) == 0
        return out.read_bytes()

    one, two = map(str, folders)
    plain, adapted = draw(), draw("--lora", one, "--lora", f"{two}:0.5")
    assert plain != adapted and draw("--lora", f"{one}:0") == plain
    merged = str(tmp_path / "merged")
    assert main(["merge", "mini", "--lora", one, "--lora", f"{two}:0.5", "--out", merged]) == 0
    assert draw("--model", merged) != plain
    capsys.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert main(["inspect", one]) == 0
    shown = capsys.readouterr().out
    assert "LoRA adapter of mini: " in shown and "rank 4, scale 4" in shown and "blocks.gen" in shown
    assert main(["inspect", one, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["adapter"]["base"] == "mini" and told["adapter"]["ranks"] == [4] and told["adapter"]["scales"] == [4.0]
    assert told["parameters"] == sum(t.numel() for t in load_file(folders[0] / "adapter_model.safetensors").values())


def test_mistakes_at_the_command_line(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for given, says in (
        (
            ["generate", "a red apple", "--lora", "nowhere"],
            "error: nowhere has no adapter_config.json\nhint: the folder does not exist",
        ),
        (
            ["generate", "a red apple", "--model", str(folders[0])],
            "hint: use the adapter with its base model: --model mini --lora",
        ),
        (["merge", "mini", "--out", str(tmp_path / "x")], "Missing option '--lora'"),
        (["merge", str(GOLDEN), "--lora", str(folders[0]), "--out", str(tmp_path / "x")], "it was trained on mini"),
    ):
        assert main(given) == 2
        assert says in capsys.readouterr().err.replace("hint: it was", "it was")
