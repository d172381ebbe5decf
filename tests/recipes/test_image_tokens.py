"""Image-token models by the command line: a causal one, its adaptation to parallel blocks, and its joint model of pictures and reports."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import unmask
from unmask.checkpoints.store import read_tensors
from unmask.checkpoints.stream import CheckpointError
from unmask.cli.main import main
from unmask.cli.train import find
from unmask.data.samples import DataError
from unmask.data.sources import pixels_of
from unmask.data.world.pairs import Pairs
from unmask.recipes import medim
from unmask.recipes.image_tokens import own, world, world_kit
from unmask.tasks.parts import to_image

torch.set_num_threads(1)
CAUSAL = ("-o", "pictures=16", "-o", "steps=2", "-o", "batch=4")
ADAPT = ("-o", "count=6", "-o", "steps=2", "-o", "batch=3")
JOINT = ("-o", "pictures=16", "-o", "steps=2", "-o", "batch=4")
TEXT = "a blue cat at the top left on a white background"


def train(recipe: str, out: Path, *more: str) -> Path:
    assert main(["train", recipe, "--out", str(out), *more]) == 0
    return out


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train("image_tokens.causal", tmp_path_factory.mktemp("causal") / "run", *CAUSAL)


@pytest.fixture(scope="module")
def reporting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train("image_tokens.causal", tmp_path_factory.mktemp("reports") / "run", "-o", "reports=28", *CAUSAL)


@pytest.fixture(scope="module")
def joint(reporting: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train("medim.joint", tmp_path_factory.mktemp("joint") / "run", "--model", str(reporting), *JOINT)


@pytest.fixture(scope="module")
def pets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of pictures with texts."""
    folder, pairs = tmp_path_factory.mktemp("pets"), Pairs(places=True)
    for i in range(4):
        to_image(pixels_of([pairs(0, i).scene], 128)[0]).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(pairs(0, i).text)
    return folder


def test_a_causal_model_draws_one_code_a_forward(causal: Path) -> None:
    model = unmask.load(causal)
    (drawing,) = model.generate("a blue cat on a white background", trace=True)
    assert drawing.image.size == (128, 128) and len(drawing.trace) == 64
    assert json.loads((causal / "config.json").read_text())["recipe"] == "image_tokens.causal"


def test_an_adapted_model_draws_in_few_forwards_by_the_command_line(causal: Path, tmp_path: Path) -> None:
    out = train("dida.adapt", tmp_path / "run", "--model", str(causal), *ADAPT)
    kept = read_tensors(out, "own")["codes"]
    assert kept.shape == (6, 8, 8), "the pictures of the causal model are kept for a resumed run"
    picture = tmp_path / "a.png"
    words = ["generate", "a red apple", "--model", str(out), "--steps", "3", "--seed", "1", "--out", str(picture)]
    assert main(words) == 0 and picture.exists()
    model = unmask.load(out)
    (drawing,) = model.generate("a red apple", steps=3, seed=1, trace=True)
    assert len(drawing.trace) == 3
    train("dida.adapt", out, "--model", str(causal), "--resume", *ADAPT)
    assert torch.equal(read_tensors(out, "own")["codes"], kept)
    with pytest.raises(ValueError, match="it has generate"):
        model.ask(drawing.image, "what is this?")


@pytest.mark.parametrize("more", [("leak=1",), ("scratch=1", "pictures=data"), ("pictures=data",)])
def test_the_arms_of_the_demonstration_are_options(causal: Path, more: tuple[str, ...]) -> None:
    recipe = find("dida.adapt", (f"model={causal}", "count=6", "batch=2", *more))
    batch = recipe.source(0)
    assert (batch.ids.shape[1] > 130) == ("leak=1" in more), "only the leak needs the clean copy"
    loss = recipe.objective(recipe.model(), batch, torch.Generator().manual_seed(0))
    assert set(loss.terms) == {"text", "code"}


def test_own_pictures_with_texts_are_learned(pets: Path, causal: Path) -> None:
    kit = world_kit()
    coded = own(str(pets), kit)
    wanted = world(4, 0, Pairs(places=True))
    assert coded.texts == wanted.texts and torch.equal(coded.codes, wanted.codes)
    recipe = find("dida.adapt", (f"model={causal}", f"data={pets}", "pictures=data", "batch=2"))
    assert recipe.source(0).rows == 2
    with pytest.raises(DataError, match="has a text of .* tokens, more than 3"):
        own(str(pets), kit, 3)


def test_reports_and_pictures_are_made_of_each_other_and_together(joint: Path, tmp_path: Path) -> None:
    model = unmask.load(joint)
    (drawing,) = model.generate(TEXT, steps=4)
    assert drawing.image.size == (128, 128) and model.generate(TEXT, steps=4)[0].image == drawing.image
    assert isinstance(model.describe(drawing.image, steps=4).text, str)
    medim.pairs(str(joint), 2, str(tmp_path / "made"))
    assert sorted(p.name for p in (tmp_path / "made").iterdir()) == ["0000.png", "0000.txt", "0001.png", "0001.txt"]
    with pytest.raises(ValueError, match="cannot edit"):
        model.edit(drawing.image, "remove the cat")


def test_joint_training_on_own_reports_and_from_random_weights(pets: Path, tmp_path: Path) -> None:
    out = train("medim.joint", tmp_path / "run", "--data", str(pets), "-o", "steps=1", "-o", "batch=2", "-o", "timed=0")
    assert unmask.load(out).parts.net.time is None
    with pytest.raises(DataError, match="more than 5"):
        find("medim.joint", (f"data={pets}", "length=6")).source(0)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("dida.adapt", ()), "give the causal model to adapt: --model FOLDER"),
        (("dida.adapt", ("pictures=others",)), "pictures 'others' is unknown; choose from own, data"),
    ],
)
def test_wrong_settings_are_named(words: tuple[str, tuple[str, ...]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find(*words).source(0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"timed": "yes"}, "timed is 'yes', wanted bool"),
        ({"length": None}, "length is None, wanted int"),
        ({"side": 100}, "side 100; was it changed?"),
        ({"model": {}}, "does not describe an image-token model"),
    ],
)
def test_a_damaged_folder_is_a_named_error(
    joint: Path, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    for path in joint.glob("*.safetensors"):
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "tokenizer.json").symlink_to(joint / "tokenizer.json")
    (tmp_path / "config.json").write_text(json.dumps(json.loads((joint / "config.json").read_text()) | change))
    with pytest.raises(CheckpointError, match=message):
        unmask.load(tmp_path)
