"""An editor trained stage by stage from the command line: what each stage changes, its folder, drawings and edits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

import unmask
from unmask.checkpoints.store import read_tensors
from unmask.cli.main import main
from unmask.recipes.kontext_rows import KINDS, job, world_rows
from unmask.recipes.query_conditioned import QueryConfig, request
from unmask.recipes.query_kontext import editor, read, scores
from unmask.rng import generator
from unmask.sequence import Kind, collate

torch.set_num_threads(1)


def train(out: Path, stage: int, start: Path | None = None) -> Path:
    settings = ["steps=2", "pictures=16", f"stage={stage}", *([f"start={start}"] if start else [])]
    assert main(["train", "query_kontext.editor", "--out", str(out), *(w for s in settings for w in ("-o", s))]) == 0
    return out


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    place = tmp_path_factory.mktemp("kontext")
    made = [train(place / "k0", 0)]
    for stage in (1, 2, 3):
        made.append(train(place / f"k{stage}", stage, made[-1]))
    return made


def test_every_stage_trains_its_parts_alone(stages: list[Path]) -> None:
    weights = [read_tensors(folder, "model") for folder in stages]

    def same(a: dict[str, Tensor], b: dict[str, Tensor], start: str) -> bool:
        names = [name for name in a if name.startswith(start) and name in b and a[name].shape == b[name].shape]
        assert names
        return all(torch.equal(a[name], b[name]) for name in names)

    first, light, large, low = weights
    assert not same(first, light, "und.blocks.") and same(first, light, "und.embed"), "adapters are on the layers"
    assert same(light, large, "und.") and same(light, large, "look.") and not same(light, large, "tokens.")
    assert not same(light, large, "drawing.blocks.0."), "the drawing network is a new one"
    assert same(large, low, "und.") and same(large, low, "drawing.embed") and not same(large, low, "drawing.blocks.")
    assert not any(".lora." in name for found in weights for name in found)


def test_a_trained_model_draws_edits_and_takes_content(stages: list[Path], tmp_path: Path) -> None:
    model = unmask.load(stages[-1])
    drawn = model.generate("a blue cat in the centre on a sky background", seed=1, steps=2)[0].image
    assert drawn.size == (64, 64)
    drawn.save(tmp_path / "a.png")
    edited = [model.edit(tmp_path / "a.png", "make the cat green", seed=1, kind=kind)[0] for kind in ("", "reference")]
    assert all(isinstance(one.image, Image.Image) for one in edited)
    with pytest.raises(ValueError, match="edits one picture, or takes its content with the kind 'reference'"):
        model.edit(tmp_path / "a.png", "make the cat green", kind="canny")


def test_codes_of_a_source_and_of_a_reference_are_read_at_other_places(stages: list[Path]) -> None:
    _, net, _ = read(stages[-1])
    given = torch.randint(net.sizes.codes, net.sizes.grid, generator=generator("given"))
    rows = [request([1, 2, 3], net.sizes.queries, net.sizes.grid, given, name=name) for name in ("source", "reference")]
    found = [net(collate([row], [0])).scored[Kind.CODE].logits for row in rows]
    other = net(collate([request([1, 2, 3], net.sizes.queries, net.sizes.grid, given.flip(0))], [0]))
    assert not torch.allclose(found[0], found[1], atol=1e-5)
    assert not torch.allclose(found[0], other.scored[Kind.CODE].logits, atol=1e-5)


def test_rows_of_other_lengths_do_not_change_a_row(stages: list[Path]) -> None:
    _, net, _ = read(stages[-1])
    given = torch.zeros(net.sizes.grid, dtype=torch.long)
    short = request([1, 2], net.sizes.queries, net.sizes.grid)
    long = request([1, 2, 3, 4, 5, 6], net.sizes.queries, net.sizes.grid, given)
    with torch.no_grad():
        alone = net(collate([short], [0])).scored[Kind.CODE].logits
        beside = net(collate([short, long], [0, 1])).scored[Kind.CODE].logits
    torch.testing.assert_close(beside[: len(alone)], alone, atol=1e-4, rtol=1e-4)


def test_jobs_change_one_object(stages: list[Path]) -> None:
    for kind in KINDS:
        one = job(3, 5, "test", kind)
        assert one.kind == kind and (one.given is None) == (kind == "draw") and one.changed in one.target.objects
        if kind in ("recolour", "replace"):
            assert one.given is not None and len(set(one.given.objects) ^ set(one.target.objects)) == 2
    rows = world_rows(3, 1, "test", "recolour")
    assert rows.changed is not None and rows.changed.flatten(1).sum(1).tolist() == [4, 4, 4]
    for given, target, changed in zip(rows.given, rows.targets, rows.changed, strict=True):
        assert given is not None and torch.equal(given[~changed], target[~changed]) and not torch.equal(given, target)
    found = scores(read(stages[-1])[1], rows, 0)
    assert all(0 <= share <= 1 for share in found.values())


def test_wrong_settings_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the stages are 0, 1, 2, 3, 4, got 5"):
        editor(stage=5)
    for wrong in ({"stage": 0, "start": "runs/k0"}, {"stage": 1}):
        with pytest.raises(ValueError, match="every later one needs start=FOLDER"):
            editor(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="places is one of .*'aside', got 'far'"):
        QueryConfig(words=4, codes=4, grid=(2, 2), mask_id=0, places="far")


def test_own_edits_are_learned_stage_by_stage(tmp_path: Path) -> None:
    for name, colour in (("a", "red"), ("b", "blue")):
        Image.new("RGB", (32, 32), colour).save(tmp_path / f"{name}.png")
    row = '{"task": "edit", "source": "a.png", "target": "b.png", "instruction": "make it blue"}\n'
    (tmp_path / "edits.jsonl").write_text(row * 3)
    settings = [f"data={tmp_path / 'edits.jsonl'}", "steps=1", "stage=0"]
    out = str(tmp_path / "k0")
    assert main(["train", "query_kontext.editor", "--out", out, *(w for s in settings for w in ("-o", s))]) == 0
    settings = [*settings[:2], "stage=4", f"start={out}"]
    out = str(tmp_path / "k4")
    assert main(["train", "query_kontext.editor", "--out", out, *(w for s in settings for w in ("-o", s))]) == 0
    assert unmask.load(out).edit(tmp_path / "a.png", "make it blue", steps=1)[0].image.size == (128, 128)
