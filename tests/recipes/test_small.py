"""``small.all``: its sizes, and all stages at a fraction of them, stopped and resumed, up to a folder that loads and draws."""

from __future__ import annotations

import dataclasses
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

import unmask
from unmask.checkpoints.store import read_tensors, save_module
from unmask.cli.main import main
from unmask.cli.train import look_up
from unmask.data.deferred import Rendered
from unmask.data.mixture import Joint
from unmask.data.world.scenes import Draft, sample
from unmask.models.elastic import Elastic
from unmask.models.vision import Vision
from unmask.objectives.cells import LabelledVision
from unmask.recipes import small, small_tasks, small_vq
from unmask.recipes.mini import text
from unmask.sequence import Kind
from unmask.tokens.vq import VQ
from unmask.training.chain import Chain

from ..equal import same

torch.set_num_threads(1)
pytestmark = pytest.mark.slow

FEW = ("times=0.05", "narrow=4", "workers=0", "texts=300", "images=40", "items=2")
MIB = 2**20


@pytest.fixture(scope="module")
def rows() -> small_tasks.Rows:
    return small_tasks.Rows(text=text(), seed=0, times=0.1, look_tokens=72, rendered=Rendered())


def test_network_and_tokenizer_take_44_mb() -> None:
    config = small.size(1)
    with torch.device("meta"):
        net, vq = Elastic(config, mask_id=0), VQ(small_vq.config())
    parameters = [sum(p.numel() for p in part.parameters()) for part in (net, vq)]
    assert 17e6 < parameters[0] < 20e6 and 2 * sum(parameters) <= 44e6
    assert config.vision is not None and config.vision.image == small.SIDE == 256
    assert config.vision.pooled == small.CELLS and config.codes == small_vq.config().num_vq_embeddings
    assert small.SIDE // small_vq.config().factor == 16


def few(folder: Path) -> Chain:
    made, rest = look_up("small.all", FEW, folder)
    assert isinstance(made, Chain) and not rest
    return made


def test_the_chain_ends_in_a_model_that_draws_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "run")
    words = ["train", "small.all", "--out", out, "--device", "cpu", *(w for s in FEW for w in ("-o", s))]
    assert main([*words, "--minutes", "0.12", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"recipe": "small.all", "folder": out}
    done = json.loads((tmp_path / "run" / "chain.json").read_text())["stages"]
    assert list(done) == ["vq", "tower", "draw", "align", "all"]
    assert all(stage["share"] == 1 and stage["step"] > 0 for stage in done.values())
    rows = [json.loads(line) for line in (tmp_path / "run" / "evaluation.jsonl").read_text().splitlines()]
    assert {row["part"] for row in rows} <= {"vq", "world_geneval", "grounding", "questions", "edit"}

    sums = json.loads((tmp_path / "run" / "config.json").read_text())["sha256"]
    assert sorted(sums) == ["model.safetensors", "vq.safetensors"]
    model = unmask.load(out)
    image = model.generate("a red cup left of a dog", plan=False, seed=1, settings=["schedule.steps=2"])[0].image
    assert image.size == (256, 256)
    assert model.ask(image, "what is this?").text is not None
    assert model.parts.vocabulary is not None and not model.parts.warnings("a pink giraffe on a sunset background")

    assert main(["train", "small.all", "--out", out, "--minutes", "0.05"]) == 2
    assert "add --resume" in capsys.readouterr().err
    assert main([*words, "--minutes", "0.05", "--resume"]) == 0
    again = json.loads((tmp_path / "run" / "chain.json").read_text())["stages"]
    assert again["all"]["step"] > done["all"]["step"]
    assert {n: s for n, s in again.items() if n != "all"} == {n: s for n, s in done.items() if n != "all"}


def test_what_a_chain_cannot_do_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "small.all", "--out", str(tmp_path / "run")]
    for more, says in (
        ([], "give --minutes or --hours"),
        (["--minutes", "1", "-o", "optim.lr=1"], "setting 'optim.lr=1': small.all is a chain"),
        (["--minutes", "1", "--processes", "2"], "one process, got --processes 2"),
        (["--minutes", "1", "--device", "cuda:77"], "cuda:77"),
        (["--minutes", "0"], "0"),
    ):
        assert main([*words, *more]) == 2
        assert says in capsys.readouterr().err
    assert main(["train", "mini.tower", "--out", str(tmp_path / "run"), "--minutes", "1"]) == 2
    assert "is trained for steps, not for a time" in capsys.readouterr().err


def test_stages_continue_from_their_own_checkpoints(tmp_path: Path) -> None:
    """A stage resumes from the weights it saved; other weights come from the stage before."""
    stages = {stage.name: stage for stage in few(tmp_path).stages}
    for name, key in (("vq", "decoder.conv_in.weight"), ("tower", "heads.class.weight")):
        made = stages[name].recipe(tmp_path, False).model()
        with torch.no_grad():
            made.get_parameter(key).fill_(0.5)
        save_module(made, tmp_path, name=stages[name].file, dtype=torch.bfloat16)
        again, fresh = (stages[name].recipe(tmp_path, resumed).model() for resumed in (True, False))
        assert bool((again.get_parameter(key) == 0.5).all()) and not bool((fresh.get_parameter(key) == 0.5).all())
    stages["tower"].recipe(tmp_path, True).export(again, tmp_path)
    recipe = stages["draw"].recipe(tmp_path, False)
    drawn = recipe.model()
    tower = read_tensors(tmp_path, small.VISION)
    assert torch.equal(drawn.get_parameter("vision.tower.patch.weight"), tower["tower.patch.weight"].float())
    recipe.export(drawn, tmp_path)
    for name in ("draw", "align", "all"):
        made = stages[name].recipe(tmp_path, True).model()
        assert torch.equal(made.embed.weight, drawn.embed.weight.bfloat16().float())


@pytest.mark.parametrize("stage", [small_tasks.drawing, small_tasks.everything])
def test_every_task_gives_codes_and_features_of_the_size(stage: Any, rows: small_tasks.Rows) -> None:
    parts = stage(rows)
    source = Joint(parts=tuple((p.name, small._deferred(p.source), p.every) for p in parts))
    batches = pickle.loads(pickle.dumps(source))(0)  # as a worker has it
    assert set(batches) == {p.name for p in parts}
    same(batches, source(0))
    for name, (batch, pictures) in batches.items():
        spans = [span for row in batch.span_table for span in row]
        assert all(span.grid == (16, 16) and span.fold == 2 for span in spans if span.kind == Kind.CODE), name
        assert {len(span) for span in spans if span.kind == Kind.FEATURE} <= {72}
        assert pictures.shape[0] == 0 or pictures.shape[1:] == (256, 256, 3)
        references = batch.ids[(batch.kind == Kind.CODE) & batch.valid]
        assert sorted(set(references.tolist())) == list(range(256 * len(pictures)))


def test_plans_of_every_level_fit_their_length(rows: small_tasks.Rows) -> None:
    """A plan that is too long would end the run: it is refused where batches are made."""
    more = dataclasses.replace(rows, times=1.0)
    plans = [p.source for p in small_tasks.everything(more) if "plan" in p.name and p.name != "edit_planned"]
    for step in range(4):
        for source in plans:
            source(lambda pixels: torch.zeros(len(pixels), 16, 16, dtype=torch.long))(step)


def test_the_folder_can_be_carried_away(tmp_path: Path) -> None:
    """At the real size: every file at most 16 MiB, and 60 MiB together, with what training needs to go on."""
    config = small.size(1)
    assert config.vision is not None
    tower = LabelledVision(Vision(config.vision, config.width), small._LABELS)
    for name, part in (
        (small.NET, Elastic(config, mask_id=0)),
        (small_vq.FILE, VQ(small_vq.config())),
        (small.TOWER, tower),
        (small.VISION, tower.vision),
    ):
        save_module(part, tmp_path, name=name, dtype=torch.bfloat16)
    sizes = [path.stat().st_size for path in tmp_path.iterdir()]
    others = 4 * MIB  # the dictionary (1 MiB), tokenizer, metrics
    assert max(sizes) <= 16 * MIB and sum(sizes) + others <= 60 * MIB


def test_the_codebook_is_fitted_once(tmp_path: Path) -> None:
    stage = few(tmp_path).stages[0]
    first = stage.recipe(tmp_path, False).objective.teacher
    changed = tmp_path / f"{small_vq.DICTIONARY}.safetensors"
    before = changed.stat().st_mtime_ns
    second = stage.recipe(tmp_path, False).objective.teacher
    assert torch.equal(first.codebook, second.codebook) and changed.stat().st_mtime_ns == before
    pixels = Rendered()([sample("free", "train", 0, 0, Draft())], 256).float() / 255
    assert first.codes(pixels).shape == (1, 16, 16)
