"""A user's own network, opened by the recipe named in config.json: loaded, asked, sampled by a method and served."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import unmask
from unmask.checkpoints.elastic import WeightStorage
from unmask.checkpoints.stream import CheckpointError
from unmask.cli.main import main
from unmask.methods.eb_sampler import eb_sampler
from unmask.pipeline.text_model import TextModel, TextParts
from unmask.protocols import Codec
from unmask.recipe import Recipe
from unmask.sequence import Batch, Kind
from unmask.serving.service import Call, Service
from unmask.step import Prediction, Reuse, Scored
from unmask.tokens.text import TEXT_CONTROL, Text
from unmask.tokens.vq import VQ, VQConfig

from ..tiny_llada import CONFIG, tokenizer

torch.set_num_threads(1)
WIDTH, SIZE = 16, CONFIG["vocab_size"]


class Bag(nn.Module):
    """Scores a token from the mean of the known tokens and its own position: no attention, and nothing of ``Elastic``."""

    def __init__(self) -> None:
        super().__init__()
        self.known, self.place = nn.Embedding(SIZE, WIDTH), nn.Embedding(256, WIDTH)
        self.out = nn.Linear(WIDTH, SIZE)

    def forward(self, batch: Batch, *, predict: Tensor | None = None, reuse: Reuse | None = None) -> Prediction:
        at = (batch.masked if predict is None else predict).flatten().nonzero()[:, 0]
        known = (~batch.masked & batch.valid)[..., None]
        mean = (self.known(batch.ids) * known).sum(1, keepdim=True) / known.sum(1, keepdim=True).clamp(min=1)
        hidden = (mean + self.place(batch.position)).flatten(0, 1)[at]
        return Prediction(scored={Kind.TEXT: Scored(at=at, logits=4 * self.out(hidden), hidden=hidden)})


def opened(folder: Path, device: str) -> TextModel:
    net = Bag()
    net.load_state_dict(load_file(folder / "bag.safetensors"))
    text = Text.load(folder / "tokenizer.json", TEXT_CONTROL)
    return TextModel(TextParts(text=text, net=net.to(device).eval(), context=256))


def toy() -> Recipe:
    """A recipe whose models are opened by it."""
    return Recipe(name="toy.bag", model=Bag, source=lambda step: None, objective=lambda *given: None, open=opened)


def closed() -> Recipe:
    """A recipe that opens nothing."""
    return Recipe(name="toy.closed", model=Bag, source=lambda step: None, objective=lambda *given: None)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    module: Any = ModuleType("unmask.recipes.toy")
    module.bag, module.closed = toy, closed
    monkeypatch.setitem(sys.modules, module.__name__, module)
    torch.manual_seed(0)
    save_file(Bag().state_dict(), tmp_path / "bag.safetensors")
    tokenizer().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text(json.dumps({"recipe": "toy.bag"}))
    return tmp_path


def test_it_is_loaded_and_asked_as_any_other(folder: Path) -> None:
    model = unmask.load(folder)
    assert isinstance(model, TextModel) and isinstance(model.parts.net, Bag)
    answer = model.ask("why is the sky blue?", max_tokens=6, temperature=1.0, seed=1)
    assert answer.text == model.ask("why is the sky blue?", max_tokens=6, temperature=1.0, seed=1).text
    assert model.infill_text("the sky [mask] blue").text.startswith("the sky")


def test_a_method_samples_it(folder: Path) -> None:
    model = unmask.load(folder).with_sampler(lambda sampler: eb_sampler(sampler, gamma=50.0))
    steps = model.complete("the sky", max_tokens=8, trace=True)
    assert len(steps.trace) < 8 and steps.settings["selection"]["part"] == "EntropyBound"


def test_it_runs_at_the_command_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["ask", "why?", "--model", str(folder), "--max-tokens", "4"]
    assert main(words) == 0 and main([*words, "--sampler", "eb_sampler", "-o", "gamma=9", "--json"]) == 0
    assert '"gamma": 9.0' in capsys.readouterr().out


def test_it_is_served(folder: Path) -> None:
    model = unmask.load(folder)
    service = Service(model, name="toy")
    try:
        (call,) = service.start([Call(ask=lambda served: served.ask("why?", max_tokens=4, seed=3))])
        assert call.future.result(60).text == model.ask("why?", max_tokens=4, seed=3).text
    finally:
        service.close()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("toy.missing", "recipe 'toy.missing', which does not exist"),
        ("nowhere.bag", "recipe 'nowhere.bag', which does not exist"),
        ("toy", "recipe 'toy', which does not exist"),
        ("toy.a.b", "recipe 'toy.a.b', which does not exist"),
        ("toy.closed", "opens no models; set Recipe.open"),
    ],
)
def test_a_recipe_that_cannot_open_it_is_named(folder: Path, name: str, message: str) -> None:
    (folder / "config.json").write_text(json.dumps({"recipe": name}))
    with pytest.raises(CheckpointError, match=message):
        unmask.load(folder)


def test_it_takes_no_storage_of_the_package(folder: Path) -> None:
    with pytest.raises(ValueError, match="no other weight storage"):
        unmask.load(folder, storage=WeightStorage(dtype=torch.bfloat16))


def test_the_image_tokenizer_is_a_codec() -> None:
    vq = VQ(VQConfig())
    assert isinstance(vq, Codec) and vq.size == vq.config.num_vq_embeddings
