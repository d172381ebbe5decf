"""Every recipe by the command line, two steps of it; those of the shipped model in the documented order, to a model that draws."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import unmask
from unmask.checkpoints.store import read_tensors
from unmask.cli.main import main
from unmask.cli.recipe_files import recipes
from unmask.cli.train import find
from unmask.corruption.absorbing import Absorbing
from unmask.data.drawn import Drawn, save_drawn
from unmask.data.sources import pixels_of
from unmask.data.world.scenes import sample
from unmask.recipes import distilled, lavida_o, mini, sparse

torch.set_num_threads(1)
pytestmark = pytest.mark.slow

STAGE3 = (
    "draw",
    "draw_asked",
    "draw_counted",
    "draw_planned",
    "look",
    "edit",
    "edit_planned",
    "plan",
    "plan_related",
    "edit_plan",
    "critique",
    "critique_placed",
    "edit_critique",
    "retry",
    "illustration",
    "reply",
    "caption",
)
SMALL = {
    "ablations.run": ("teraflops=0.01", "times=0.05"),
    "distilled.mini": ("images=400", "source.parts.draw.batch=2"),
    "judge.detector": ("source.batch=2",),
    "mini.align": ("source.batch=4",),
    "mini.stage1": ("vision=", "images=400", "source.parts.look.batch=2"),
    "mini.stage2": ("images=400", "source.parts.draw.batch=2"),
    "mini.stage2a": ("images=400", "source.parts.draw.batch=2"),
    "mini.stage3": ("images=400", *(f"source.parts.{n}.batch=2" for n in STAGE3)),
    "mini.tower": ("source.batch=4",),
    "mini_free.vq": ("pictures=1", "items=2"),
    "mini_vq.vq": ("images=400", "source.batch=1"),
    "mmada.supervised": ("source.batch=2",),
    "rediff": ("batch=2",),
    "sparse.mini": ("images=400", *(f"source.parts.{n}.batch=2" for n in STAGE3)),
    "unigrpo": ("batch=1", "group=2", "updates=1", "sample_steps=1"),
}
CHAIN = re.findall(r"unmask train (\S+) +--out (\S+)", mini.__doc__ or "")


def run(recipe: str, out: str, steps: int, *more: str) -> list[int]:
    """Train by the command line; the steps of which the run tells."""
    settings = (f"training.steps={steps}", "training.log_every=1", *SMALL[recipe])
    assert main(["train", recipe, "--out", out, *more, *(w for s in settings for w in ("-o", s))]) == 0
    rows = [json.loads(line) for line in (Path(out) / "metrics.jsonl").read_text().splitlines()]
    return [row["step"] for row in rows if "updates" in row]  # evaluations have rows of their own


def test_every_recipe_is_tried() -> None:
    stages = {stage.name for stage in lavida_o.STAGES}
    others = {f"families.{name}" for name in ("mmada", "lavida", "dream", "dimple", "lumina_dimoo")}
    others |= {"dida.adapt", "dimple.adapt", "image_tokens.causal", "medim.joint", "rediff", "reflectdrive.planner"}
    others |= {
        "captioning.masked",
        "diffa.adapters",
        "deem.eyes",
        "deem.generator",
        "diffdis.pairs",
        "diffusion_link.encoders",
        "diffusionpid.world",
        "dinoiser.captions",
        "gill.bridge",
        "dplm2.proteins",
        "inpo.pairs",
        "ladic.captions",
        "looped.text",
        "m2dm.motions",
        "neodiff.texts",
        "promoe.drawer",
        "sur_adapter.terse",
        "unigenx.matter",
        "query_kontext.editor",
        "unigrpo",
        "x_streamer.talker",
    }
    # Those that are not in SMALL have tests of their own.
    assert {*SMALL, *stages, *others, "finetune", "small.all", "mini.all"} == set(recipes())
    assert not any(name.rpartition(".")[2].startswith("_") for name in recipes())


def test_the_documented_chain_ends_in_a_model_that_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # so that every recipe finds the runs before it where the documentation puts them
    assert [name.partition(".")[2] for name, _ in CHAIN] == ["vq", "tower", "stage2a", "stage2", "align", "stage3"]
    for name, out in CHAIN:
        assert run(name, out, 2) == [1, 2]
    weights = {out: read_tensors(Path(out), "model") for _, out in CHAIN}
    before, aligned, after = (weights[f"runs/{n}"]["vision.project_in.weight"] for n in ("stage2", "align", "stage3"))
    assert (before - aligned).abs().max() > 1e-4  # two steps of align, then two of a rate still close to zero
    torch.testing.assert_close(after, aligned, atol=1e-4, rtol=0)
    tower = [n for n in weights["runs/tower"] if n.startswith(("tower.", "pool."))]
    assert tower and all(torch.equal(weights["runs/tower"][n], weights["runs/stage3"][f"vision.{n}"]) for n in tower)

    mini.ship()
    model = unmask.load("unmask/assets/mini")
    assert torch.equal(model.parts.net.vision.project_in.weight, after.bfloat16().float())
    first, again, other = (
        model.generate("two red apples", seed=s, plan=False, settings=["schedule.steps=4"])[0].image for s in (1, 1, 2)
    )
    assert first.size == (128, 128) and np.array_equal(first, again) and not np.array_equal(first, other)


def test_the_unified_process_is_chosen_by_its_time() -> None:
    kinds, unified = (find("mini.stage3", settings) for settings in ((), ("t_exp=0.25",)))
    seen = [
        {name: source.unified for name, source, _ in r.source.parts if name == "illustration"} for r in (kinds, unified)
    ]
    scored = [{name: scored.corruption for name, scored, _ in r.objective.objectives} for r in (kinds, unified)]
    process = seen[1]["illustration"]
    assert seen[0]["illustration"] is None and isinstance(scored[0]["illustration"], Absorbing)
    assert process.at == 0.25 and scored[1]["illustration"] == process
    assert {n: c for n, c in scored[0].items() if n != "illustration"} == {
        n: c for n, c in scored[1].items() if n != "illustration"
    }


def test_own_drawings_are_one_more_part(tmp_path: Path) -> None:
    scenes = [sample("grid", "train", 0, i) for i in range(3)]
    about = [Drawn(prompt="a cat", critique="there is no cat", scene=scene, clean=False) for scene in scenes]
    pictures = (pixels_of(scenes, 128) * 255).byte().permute(0, 2, 3, 1).contiguous()
    save_drawn(tmp_path, pictures, about)
    plain, more = (find("mini.stage3", settings) for settings in ((), (f"drawn={tmp_path}",)))
    assert tuple(name for name, *_ in plain.source.parts) == STAGE3
    own = {name: source for name, source, _ in more.source.parts if name not in STAGE3}
    assert list(own) == ["critique_drawn"] and len(more.source.parts) == len(STAGE3) + 1
    assert "there is no cat" in mini.text().show(own["critique_drawn"](0).ids[0].tolist())
    scored = {name: weight for name, _, weight in more.objective.objectives}
    assert scored.pop("critique_drawn") > 0 and scored == {n: w for n, _, w in plain.objective.objectives}


@pytest.mark.parametrize("recipe", sorted(set(SMALL) - {name for name, _ in CHAIN}))
def test_a_recipe_beside_the_chain_runs_and_resumes(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(recipe, "run", 2) == [1, 2]
    assert run(recipe, "run", 3, "--resume") == [1, 2, 3]
    written = {p.name for p in Path("run").glob("*.safetensors")}
    assert "state.safetensors" in written and len(written) > 1  # and what it exports


def test_a_step_causal_run_becomes_a_model_for_every_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run("sparse.mini", "run", 2)
    sparse.ship("run", "model")
    model = unmask.load("model")
    assert model.parts.net.config.code_registers == sparse.REGISTERS
    picture, again = (model.generate("a red apple", seed=1, attempts=1)[0] for _ in range(2))
    assert np.array_equal(picture.image, again.image) and "SparseCache" in str(picture.settings)
    assert model.edit(picture.image, "remove the apple", seed=1)[0].image.size == (128, 128)
    assert model.ask(picture.image, "what is this?").text
    assert len(model.ground(picture.image, ["the apple", "the cat"]).boxes) == 2


def test_a_distilled_run_becomes_a_model_that_draws_in_few_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run("distilled.mini", "run", 2)
    distilled.ship("run", "model")
    few, first = unmask.load("model"), unmask.load("mini")
    assert few.generate("a red apple", steps=4, plan=False)[0].image.size == (128, 128)
    moved = [
        name for name, w in few.parts.net.state_dict().items() if not torch.equal(w, first.parts.net.state_dict()[name])
    ]
    assert moved and all(
        torch.equal(a, b) for a, b in zip(few.parts.vq.parameters(), first.parts.vq.parameters(), strict=True)
    )


def test_registers_start_as_masked_tokens() -> None:
    """So that the untrained model reads what it read in their place."""
    net = sparse.with_registers("mini")
    assert torch.equal(net.registers.text[0], net.embed.weight[net.mask_id])
    codes, square = torch.full((1, 64), net.config.mask_code), torch.arange(4)[None, None]
    torch.testing.assert_close(net.registers.code, net.code_embedding(codes, square)[0], atol=1e-5, rtol=1e-5)
    shipped = unmask.load("mini").parts.net.state_dict()
    assert all(torch.equal(net.state_dict()[name], weight) for name, weight in shipped.items())


def test_a_stage_starts_from_a_shipped_model() -> None:
    module, shipped = mini.stage3(start="mini").model(), unmask.load("mini").parts.net
    assert all(torch.equal(weight, shipped.state_dict()[name]) for name, weight in module.state_dict().items())
