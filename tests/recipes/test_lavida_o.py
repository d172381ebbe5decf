"""The published stages: what each loads and trains at the published size, and real runs of each at size tiny on data made here."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from random import Random

import pytest
import torch
from PIL import Image

import unmask
from unmask.cli.main import main
from unmask.cli.train import find
from unmask.corruption.collapsing import Collapsing
from unmask.corruption.schedules import Cosine, Uniform
from unmask.data.samples import DataError
from unmask.data.squares import Crop
from unmask.objectives.masked import Dropout, Masked
from unmask.pipeline.loading import read_spec
from unmask.recipe import Recipe, override
from unmask.recipes.lavida_o import STAGES
from unmask.sequence import Kind, Sequence
from unmask.tasks.stage_rows import shortened, stated
from unmask.tokens.views import to_pixels
from unmask.training.optim import Masters, rate
from unmask.training.train import train

sys.path.insert(0, str(Path(__file__).parents[1]))
import tiny_llada
from tasks.released_folder import make_folder

torch.set_num_threads(1)

NAMES = [stage.name for stage in STAGES]
QUICK = ("batch=4", "training.accumulate=1", "optim.lr=0.01", "training.log_every=1", "training.bf16=false")
DRAWN = ("draw", "draw_planned", "draw_open", "plan", "retry", "retry_planned", "retry_open", "retry_plan")
EDITED = ("edit", "edit_planned", "edit_open", "edit_plan")
LOOKED = ("chat", "talk", "describe", "ground", "critique")


@pytest.fixture(scope="module")
def pets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of every kind that the stages train: boxes of a captioned picture and of an edit's result, critiques of a caption's text."""
    folder = tmp_path_factory.mktemp("pets")
    for i, colour in enumerate(("red", "green", "blue")):
        Image.new("RGB", (160, 128) if i == 2 else (128, 128), colour).save(folder / f"{i}.png")
    turns = [{"from": "human", "value": "<image>\nwhat is this?"}, {"from": "gpt", "value": "a frog"}]
    rows = (
        {"image": "0.png", "caption": "a photo of a frog"},
        {"image": "2.png", "caption": "a toad on a sand background"},
        {"image": "1.png", "conversations": turns},
        {"messages": [{"role": "user", "content": "what is green?"}, {"role": "assistant", "content": "a frog"}]},
        {"image": "2.png", "boxes": [{"phrase": "toad", "box": [0.25, 0.5, 0.75, 1.0]}]},
        {"image": "1.png", "boxes": [{"phrase": "frog", "box": [0.25, 0.5, 0.75, 1.0]}]},
        {"source": "0.png", "target": "1.png", "instruction": "replace the frog by a green one"},
        {"image": "1.png", "prompt": "a toad on a sand background", "verdict": "there is no toad"},
    )
    numbered = ({"id": f"pet {i}", **row} for i, row in enumerate(rows))
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in numbered))
    return folder / "rows.jsonl"


def recipe(name: str, model: Path, data: Path, *settings: str) -> Recipe:
    return find(name, [f"model={model}", f"data={data}", "holdout=0", *settings])


# -- at the published size --------------------------------------------------------------------------------------------

LOADED = {  # parameters that are loaded and trained: spec 3.4 and 9
    "lavida_o.stage1": (8_023_068_672 + 424_561_312 + 4096, 8_023_068_672 + 424_561_312 + 4096),
    "lavida_o.stage3": (10_439_118_848 + 84_422_656 + 424_561_312 + 4096,) * 2,
}


@pytest.mark.parametrize("name", NAMES)
def test_a_stage_is_built_at_the_published_size(name: str) -> None:
    """On the meta device: its parameters, which of them train, and the groups of the optimiser."""
    made = find(name, ["model=lavida_o"])
    assert made.outline is not None
    net = made.outline()
    masters = Masters(net, made.optim, made.trainable)
    loaded = sum(p.numel() for p in net.parameters())
    trained = sum(p.numel() for p in masters.master)
    assert all(p.is_meta for p in (*net.parameters(), *masters.master))
    wanted = LOADED.get(name)
    if wanted is not None:
        assert (loaded, trained) == wanted
    else:
        assert loaded == 6_696_562_688 and trained == 2_416_050_176 + 84_422_656
        assert all(".gen." in n or n.startswith("code_") for n in masters.names)
    groups = [(group["factor"], len(group["params"])) for group in masters.adam.param_groups]
    towers = sum(n.startswith("vision.tower.") for n in masters.names)
    if towers:
        assert {factor * made.optim.lr: count for factor, count in groups} == pytest.approx(
            {made.optim.lr: len(masters.names) - towers, 2e-6: towers}
        )
    else:
        assert groups == [(1.0, len(masters.names))]


def test_hyper_parameters_are_the_published_ones() -> None:
    made = {name: find(name) for name in NAMES}
    assert [made[n].optim.lr for n in NAMES] == [5e-6, 1e-4, 1e-4, 1e-4, 2e-5]
    updates = [made[n].training.steps / made[n].training.accumulate for n in NAMES]
    assert updates[0] == 80_000 and sum(updates[1:4]) == 400_000 and updates[4] == 100_000
    for each in made.values():
        optim, steps = each.optim, each.training.steps
        assert (optim.beta1, optim.beta2, optim.weight_decay, optim.ema) == (0.99, 0.999, 0.0, 0.0)
        assert each.training.bf16 and each.training.recompute
        peak = round(0.03 * steps)
        assert rate(optim, peak // 2, steps) == pytest.approx(optim.lr / 2, rel=0.01)
        assert rate(optim, peak, steps) == pytest.approx(optim.lr, rel=0.01)
        assert rate(optim, steps - 1, steps) == pytest.approx(0.1 * optim.lr, rel=0.01)
    drawn = [dict((n, o) for n, o, _ in made[name].objective.objectives)["draw"] for name in NAMES[1:]]
    policies = [objective.corruption.policies[Kind.CODE] for objective in drawn]
    assert policies == [Uniform(), Cosine(), Cosine(), Cosine()]
    drops = dict((n, o.dropouts) for n, o, _ in made["lavida_o.stage3"].objective.objectives)
    assert [d.rate for d in drops["edit"]] == [0.1, 0.5] and "source" not in drops["edit"][0].spans
    assert "plan" in drops["draw_planned"][0].spans and "plan" not in drops["draw_open"][0].spans


@pytest.mark.parametrize(
    ("name", "side", "positions"),
    [("lavida_o.stage2_256", 16, 256), ("lavida_o.stage2_512", 32, 256), ("lavida_o.stage2", 64, 1024)],
)
def test_pictures_grow_from_256_pixels_uncompressed_to_1024_folded(name: str, side: int, positions: int) -> None:
    made = find(name, ["model=lavida_o"])
    assert made.examples is not None
    ((_, batch),) = made.examples()[0].items()
    leaders = batch.leader & (batch.kind == Kind.CODE)
    assert int((batch.kind == Kind.CODE).sum(1)[0]) == side * side and int(leaders.sum(1)[0]) == positions


# -- runs at size tiny ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_twenty_steps_train_what_the_stage_trains(
    name: str, tiny: Path, pets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """At the command line: the result is a complete model that opens, and only its trained parts have changed."""
    words = ("--data", str(pets), "--model", str(tiny), "--out", str(tmp_path / "run"), "--steps", "20")
    more = (w for s in (*QUICK, "holdout=0", *(() if "stage2" in name else ("alike=1",))) for w in ("-o", s))
    assert main(("train", name, *words, *more)) == 0, capsys.readouterr().err
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    terms = [{k: v for k, v in row.items() if k.endswith((".text", ".code"))} for row in rows if "tokens_per_s" in row]
    assert len(terms) == 20
    first, last = (_means(terms[part]) for part in (slice(0, 10), slice(10, 20)))
    shared = first.keys() & last.keys()
    assert shared and sum(last[k] for k in shared) < sum(first[k] for k in shared), (first, last)
    before, after = _weights(tiny), _weights(tmp_path / "run")
    changed = {n for n in after if not torch.equal(before[n], after[n])}
    stage = next(s for s in STAGES if s.name == name)
    loaded = {n for n, _ in find(name, [f"model={tiny}"]).outline().named_parameters()}
    assert before.keys() == after.keys() and changed and all(stage.trained(n) and n in loaded for n in changed)
    if name == "lavida_o.stage1":
        assert {n for n in loaded if "post_norm" not in n} - changed == set()
        assert not any(".gen." in n or n.startswith("code_") for n in changed)


def _means(rows: list[dict[str, float]]) -> dict[str, float]:
    names = {name for row in rows for name in row}
    found = {name: [row[name] for row in rows if name in row] for name in names}
    return {name: sum(values) / len(values) for name, values in found.items()}


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(unmask.load(folder).parts.net.state_dict())


@pytest.mark.parametrize("name", ["lavida_o.stage2_256", "lavida_o.stage3"])
def test_a_resumed_run_equals_one_that_was_not_stopped(name: str, tiny: Path, pets: Path, tmp_path: Path) -> None:
    settings = ("training.steps=8", *(("alike=1",) if name.endswith("3") else ()), *QUICK)
    for stops in ((None,), (3, None)):
        for stop in stops:
            train(recipe(name, tiny, pets, *settings), tmp_path / str(len(stops)), stop_after=stop)
    whole, parts = (_weights(tmp_path / n) if (tmp_path / n / "model.safetensors").exists() else {} for n in ("1", "2"))
    assert whole and all(torch.equal(whole[n], parts[n]) for n in whole)


def test_stages_follow_each_other(tiny: Path, pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each starts from the default folder of the one before it; the first picture branch begins from the understanding branch."""
    monkeypatch.chdir(tmp_path)
    short = ("training.steps=1", "holdout=0", *QUICK)
    train(find("lavida_o.stage1", [f"model={tiny}", f"data={pets}", *short]), tmp_path / "runs" / "lavida_o.stage1")
    for name in NAMES[1:]:
        made = find(name, [f"data={pets}", *short])
        net, before = made.model(), _weights(tmp_path / "runs" / NAMES[NAMES.index(name) - 1])
        kept = {n: bool(torch.equal(p, before[n][: len(p)])) for n, p in net.state_dict().items()}
        assert all(kept[n] for n in kept if ".gen." not in n and not n.startswith("code_"))
        und = before["blocks.0.und.q.weight"][:, : net.config.gen_width]
        begins = torch.equal(net.blocks[0].gen.q.weight, und)
        assert begins == (name == "lavida_o.stage2_256") and all(kept.values()) == (not begins)
        train(made, tmp_path / "runs" / name)
    assert read_spec(tmp_path / "runs" / "lavida_o.stage3").side == 128


def test_processes_that_share_weights_train_the_same_model(
    tiny: Path, pets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two processes with FSDP2, the default of every stage, against one; the losses of 24 updates over many kinds of rows."""
    settings = ("batch=2", "training.accumulate=2", "alike=2", "optim.lr=0.003", "training.bf16=false", "holdout=0")
    settings += ("training.log_every=2",)
    words = ("--data", str(pets), "--model", str(tiny), "--steps", "48", *(w for s in settings for w in ("-o", s)))
    for count in (1, 2):
        out = tmp_path / str(count)
        assert main(("train", "lavida_o.stage3", *words, "--out", str(out), "--processes", str(count))) == 0
    one, two = (
        [json.loads(line) for line in (tmp_path / n / "metrics.jsonl").read_text().splitlines()] for n in ("1", "2")
    )
    losses = [
        ({k: row[k] for k in row if k.endswith((".text", ".code"))}, other) for row, other in zip(one, two, strict=True)
    ]
    worst = max(abs(loss - other[name]) for row, other in losses for name, loss in row.items())
    assert sum(len(row) for row, _ in losses) >= 24 and worst <= 2e-5, worst
    source = recipe("lavida_o.stage3", tiny, pets, *settings, "training.steps=48").source
    assert len({source.group(step).name for step in range(48)}) >= 8


def test_dropped_pictures_still_have_gradients(tiny: Path, pets: Path) -> None:
    """Zeros: a process whose rows lost their pictures to guidance dropout exchanges the same gradients as the others."""
    made = recipe("lavida_o.stage3", tiny, pets)
    net, batch = made.model(), made.source.data.rows("critique", 0, 1)
    dropped = Dropout(spans=frozenset({"look"}), rate=1.0)
    Masked(dropouts=(dropped,))(net, batch, torch.Generator().manual_seed(0)).total.backward()
    found = {n: p.grad for n, p in net.named_parameters() if n.startswith("vision.") and "post_norm" not in n}
    assert found and all(g is not None and not bool(g.any()) for g in found.values())


def test_a_released_model_is_trained_in_its_layout(pets: Path, tmp_path: Path) -> None:
    base = make_folder(tmp_path / "base")
    train(recipe("lavida_o.stage2", base, pets, "training.steps=1", *QUICK), tmp_path / "run")
    before, after = _weights(base), _weights(tmp_path / "run")
    changed = {n for n in after if not torch.equal(before[n], after[n])}
    assert changed and all(".gen." in n or n.startswith("code_") for n in changed)
    assert json.loads((tmp_path / "run" / "config.json").read_text()) == json.loads((base / "config.json").read_text())


# -- rows -------------------------------------------------------------------------------------------------------------


def test_stage_3_has_every_kind_of_row(tiny: Path, pets: Path) -> None:
    source = recipe("lavida_o.stage3", tiny, pets, "batch=4").source
    groups = {g.name: g for g in source.groups}
    assert groups.keys() == {*DRAWN, *EDITED, *LOOKED}
    assert groups["draw"].weight == 580 and groups["describe"].weight == 200
    assert groups["chat"].weight == groups["talk"].weight == 100, "as many rows of both"
    assert sum(g.weight for g in groups.values()) == 2300
    assert groups["draw"].rows == 4 and groups["chat"].rows == groups["retry"].rows == 2
    used = {f.name: f for f in source.data.used}
    for name, f in used.items():
        at = [i for i in range(len(source.data.data)) if source.data.data.task(i) == f.task]
        samples = [source.data.data[i] for i in at]
        sample = next(s for s in samples if f.suits is None or f.suits(s))
        row = f.row(sample, Random(0))
        assert isinstance(row, Sequence), (name, row)
        drawn = [s for s in row.spans if s.writable and s.kind == Kind.CODE]
        written = [s for s in row.spans if s.writable and s.kind == Kind.TEXT]
        assert bool(drawn) == (name in {*DRAWN, *EDITED} - {"plan", "retry_plan", "edit_plan"}), name
        assert bool(written) == (name in LOOKED or name.endswith(("plan", "open"))), name


def test_layouts_follow_the_crop(tiny: Path, pets: Path) -> None:
    """The box of a picture of 160 x 128 pixels, in the square that was cut from it."""
    source = recipe("lavida_o.stage3", tiny, pets).source
    form = next(f for f in source.data.used if f.name == "draw_planned")
    sample, parts = source.data.data[1], unmask.load(tiny).parts
    seen = set()
    for seed in range(6):
        row = form.row(sample, Random(seed))
        plan = next(s for s in row.spans if s.name == "plan")
        first = parts.text.first_location
        bins = [int(i) - first for i in row.ids[plan.start : plan.stop] if 0 <= int(i) - first <= 1024]
        left = Crop()(sample.image.open(), 128, Random(seed)).conditions.left
        want = [round(max(0, v * 160 - left) / 128 * 1024) for v in (0.25, 0.75)]
        assert [bins[0], min(bins[2], 1024)] == [min(w, 1024) for w in want] and bins[1::2] == [512, 1024]
        seen.add(left)
    assert len(seen) > 1


def test_a_further_attempt_shows_the_earlier_one_and_its_critique(tiny: Path, pets: Path) -> None:
    source = recipe("lavida_o.stage3", tiny, pets).source
    form = next(f for f in source.data.used if f.name == "retry")
    row = form.row(source.data.data[1], Random(0))
    said = unmask.load(tiny).parts.text.show(row.ids[: row.span("image").start].tolist())
    assert "there is no toad" in said and row.pixels is not None and row.span("look")


def test_prompts_state_size_crop_and_luminance() -> None:
    squared = Crop()(Image.new("RGB", (300, 200), (255, 255, 255)), 128, Random(1))
    pixels = to_pixels(squared.image)
    found = [stated(squared, pixels, Random(seed)) for seed in range(400)]
    unstated = sum(c.text() == "" for c in found) / 400
    assert abs(unstated - 0.3) < 0.07
    some = [c for c in found if c.text()]
    assert all((c.width, c.height, c.top) == (300, 200, 0) and c.left is not None for c in some)
    for name in ("luminance", "contrast"):
        assert abs(sum(getattr(c, name) is not None for c in some) / len(some) - 0.5) < 0.1
    assert {c.luminance for c in some} == {None, 1.0}


def test_long_captions_are_shortened_at_times() -> None:
    text = "A frog sits. " * 30
    found = [shortened(text, Random(seed)) for seed in range(400)]
    assert abs(sum(f != text[:800] for f in found) / 400 - 0.2) < 0.06
    assert all(text.startswith(f) and f.rstrip().endswith(".") for f in found)
    assert len(shortened("x" * 900, Random(3))) <= 800 and shortened("a frog", Random(0)) == "a frog"


def test_the_single_process_of_text_and_picture_is_an_option(tiny: Path, pets: Path) -> None:
    made = recipe("lavida_o.stage3", tiny, pets, "t_exp=0.5")
    names = {g.name: g.weight for g in made.source.groups}
    assert names["draw_unified"] == 220 and not {"plan", "draw_planned", "draw_open"} & names.keys()
    objectives = {name: objective for name, objective, _ in made.objective.objectives}
    assert isinstance(objectives["draw_unified"].corruption, Collapsing) and not made.training.shard
    form = next(f for f in made.source.data.used if f.name == "draw_unified")
    rows = [form.row(made.source.data.data[1], Random(seed)) for seed in range(40)]
    collapsed = sum(not any(s.kind == Kind.CODE for s in row.spans) for row in rows)
    assert 8 < collapsed < 32
    batch = made.source.data.rows("draw_unified", 0, 8)
    loss = objectives["draw_unified"](made.model(), batch, torch.Generator().manual_seed(0))
    assert set(loss.terms) == {"text", "code"}


# -- wrong input ------------------------------------------------------------------------------------------------------


def test_a_stage_without_data_can_be_planned_and_not_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = find("lavida_o.stage2")
    with pytest.raises(DataError, match="needs data; give a folder or a file with --data"):
        made.model()
    assert main(("train", "lavida_o.stage2", "--out", str(tmp_path / "run"))) == 2
    assert "needs data" in capsys.readouterr().err


def test_models_that_do_not_fit_are_named(tiny: Path, pets: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a size without weights"):
        recipe("lavida_o.stage1", Path("lavida_o"), pets)
    with pytest.raises(ValueError, match="is a text model; lavida_o.stage1 needs a model that reads and draws"):
        recipe("lavida_o.stage1", tiny_llada.make(tmp_path / "llada"), pets)
    with pytest.raises(ValueError, match="starts from runs/lavida_o.stage2_256, which the stage before"):
        find("lavida_o.stage2_512", [f"data={pets}"])
    for settings, said in (
        (["gen=random"], "gen is 'random'; give und"),
        (["batch=0"], "batch is 0; give 1 or more"),
        ([f"folder={tiny}"], "holds a model that is not a run"),
    ):
        with pytest.raises(ValueError, match=said):
            recipe("lavida_o.stage2_256", tiny, pets, *settings)
    chats = tmp_path / "chats.jsonl"
    chats.write_text(
        json.dumps({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]})
    )
    with pytest.raises(DataError, match="has chat, but this model trains caption"):
        recipe("lavida_o.stage2", tiny, chats)


def test_rates_of_parts_can_be_set() -> None:
    made = find("lavida_o.stage1", ["optim.rates.tower=1e-6"])
    assert made.optim.factor("vision.tower.layers.0.q.weight") == pytest.approx(0.2)
    assert made.optim.factor("vision.project_in.weight") == 1
    with pytest.raises(ValueError, match="optim.rates.tower must be above 0"):
        override(made, ["optim.rates.tower=0"])
