"""The GPU against the CPU: same logits, same tokens, same random numbers, every task, every way to keep the weights.

    pytest -m gpu tests/gpu                                  on a machine with a CUDA device
    UNMASK_GPU_DEVICE=cpu pytest -m gpu tests/gpu            a rehearsal without one: the CPU against itself

What the tests measure is appended as JSON rows to the file that ``UNMASK_GPU_ROWS`` names, if it is set.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import unmask
from unmask.checkpoints.elastic import WeightStorage
from unmask.checkpoints.float8 import Float8
from unmask.checkpoints.quantise import Quantiser, RoundToNearest
from unmask.cli.main import main
from unmask.data.world.render import render
from unmask.data.world.scenes import sample
from unmask.evaluation.history import Line, append
from unmask.models.attention import fused, plain
from unmask.pipeline.model import Model
from unmask.recipe import Training, override
from unmask.sampling.sampler import Sampler
from unmask.sequence import Batch, Kind, collate
from unmask.step import Prediction, Scored
from unmask.tasks import edit, generate, ground, planning, understand
from unmask.tasks.conversing import Message
from unmask.tokens.views import to_pixels
from unmask.training.train import train

from .. import tiny_model
from ..training.tiny import recipe

DEVICE = os.environ.get("UNMASK_GPU_DEVICE", "cuda")
ON_GPU = DEVICE.startswith("cuda")
GOLDEN = Path(__file__).parents[1] / "golden" / "lavida_o_tiny"
FLOAT32 = 1e-4  # norm of the difference over the norm: another order of summing gives about 1e-6, TF32 about 3e-4
BFLOAT16 = 2e-2  # bfloat16 against float32 through the 8 layers of mini; 3e-3 to 6e-3 on a CPU
MARGIN = 1e-3  # logits closer than this may change places by rounding
TASKS = ("draw", "edit", "answer", "ground", "fill", "plan")
FEW = ["schedule.steps=3"]

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(ON_GPU and not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.fixture(autouse=True)
def _true_float32() -> Iterator[None]:
    """cuDNN's convolutions use TF32 unless told otherwise; matrix products do not."""
    before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    yield
    torch.backends.cudnn.allow_tf32 = before


@pytest.fixture(scope="module")
def host() -> Model:
    return unmask.load("mini", device="cpu")


@pytest.fixture(scope="module")
def card() -> Model:
    return unmask.load("mini", device=DEVICE)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model.make(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    return Image.fromarray(render(sample("grid", "validation", 0, 0), 128))


def note(name: str, value: float, unit: str, **more: Any) -> None:
    """WeightStorage a figure, where somebody collects them."""
    if rows := os.environ.get("UNMASK_GPU_ROWS"):
        append(Path(rows), [Line(name=f"gpu.test.{name}", value=value, unit=unit, more=more or None)], device=DEVICE)


def batch_of(model: Model, task: str, picture: Image.Image, seed: int = 0) -> Batch:
    """One request of a kind, on the CPU."""
    parts, pixels = model.parts, to_pixels(picture)
    built = {
        "draw": lambda: generate.Generate(prompt="two red apples and a cat").build(parts),
        "edit": lambda: edit.Edit(pixels=pixels, instruction="make the cat blue").build(parts),
        "answer": lambda: understand.Ask(pixels=pixels, question="how many apples are there?").build(parts),
        "ground": lambda: ground.Ground(pixels=pixels, phrases=("the cat", "the red apple")).build(parts),
        "fill": lambda: understand.FillText(target="a [mask] apple and a [mask]").build(parts),
        "plan": lambda: planning.PlanImage(prompt="two red apples and a cat", length=44).build(parts),
    }[task]()
    return collate([built], [seed])


def sampler_of(model: Model, task: str) -> Sampler:
    presets, parts = model.presets, model.parts
    if task == "ground":
        return presets.ground(parts, 1)
    named = {"draw": presets.generate, "edit": presets.edit, "answer": presets.ask, "fill": presets.fill}
    return (named | {"plan": presets.plan})[task](parts)


def apart(got: Tensor, wanted: Tensor) -> float:
    """Norm of the difference over the norm, in float64 on the CPU."""
    got, wanted = got.detach().cpu().double(), wanted.detach().cpu().double()
    return float((got - wanted).norm() / wanted.norm().clamp(min=1e-30)) if wanted.numel() else 0.0


def logits(prediction: Prediction) -> Tensor:
    return torch.cat([prediction.logits(kind).flatten() for kind in sorted(prediction.scored)]).cpu()


def moved(prediction: Prediction, device: str) -> Prediction:
    scored = {
        kind: Scored(at=s.at.to(device), logits=prediction.logits(kind).to(device))
        for kind, s in prediction.scored.items()
    }
    return Prediction(scored=scored)


# -- one forward pass ------------------------------------------------------------------------------------------------------


def test_matrix_products_are_float32_by_default() -> None:
    assert torch.get_float32_matmul_precision() == "highest" and not torch.backends.cuda.matmul.allow_tf32


@torch.no_grad()
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", ["tiny", "mini"])
def test_logits_in_float32(name: str, task: str, tiny: Path, host: Model, card: Model, picture: Image.Image) -> None:
    a, b = (host, card) if name == "mini" else (unmask.load(tiny, device="cpu"), unmask.load(tiny, device=DEVICE))
    batch = batch_of(a, task, picture)
    wanted, got = a.parts.net(batch), b.parts.net(batch.to(DEVICE))
    assert got.logits(Kind.TEXT).device.type == torch.device(DEVICE).type
    assert got.scored.keys() == wanted.scored.keys()
    assert all(torch.equal(got.scored[kind].at.cpu(), wanted.scored[kind].at) for kind in wanted.scored)
    difference = apart(logits(got), logits(wanted))
    note(f"float32.{name}.{task}", difference, "relative")
    assert difference < FLOAT32


@torch.no_grad()
@pytest.mark.parametrize("task", TASKS)
def test_logits_in_bfloat16(task: str, host: Model, picture: Image.Image) -> None:
    half = unmask.load("mini", device=DEVICE, storage=WeightStorage(dtype=torch.bfloat16))
    batch = batch_of(host, task, picture)
    difference = apart(logits(half.parts.net(batch.to(DEVICE))), logits(host.parts.net(batch)))
    note(f"bfloat16.{task}", difference, "relative")
    assert difference < BFLOAT16


@torch.no_grad()
@pytest.mark.parametrize("task", TASKS)
def test_fused_attention_gives_the_logits_of_plain_attention(task: str, card: Model, picture: Image.Image) -> None:
    batch, net = batch_of(card, task, picture).to(DEVICE), card.parts.net
    found = {}
    try:
        for net.attention in (plain, fused):
            found[net.attention] = logits(net(batch))
    finally:
        net.attention = plain
    assert apart(found[fused], found[plain]) < FLOAT32


@torch.no_grad()
def test_a_row_has_the_logits_that_it_has_alone(card: Model) -> None:
    prompts = ["a cat", "two red apples and a cat", "a dog", "three blue cars", "a cup left of a tree"]
    rows = [generate.Generate(prompt=p).build(card.parts) for p in (*prompts, *prompts[:3])]
    together = card.parts.net(collate(rows, range(8)).to(DEVICE)).logits(Kind.CODE)
    each = len(together) // 8
    worst, exact = 0.0, 0
    for i, row in enumerate(rows):
        alone = card.parts.net(collate([row], [i]).to(DEVICE)).logits(Kind.CODE)
        worst = max(worst, apart(together[i * each : (i + 1) * each], alone))
        exact += torch.equal(together[i * each : (i + 1) * each], alone)
    note("batch8.worst_row", worst, "relative", rows_equal_to_the_bit=exact)
    assert worst < FLOAT32


# -- sampling --------------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("task", TASKS)
def test_the_most_probable_ids_are_the_same(task: str, host: Model, card: Model, picture: Image.Image) -> None:
    """At each step of a run on the CPU, both see the same batch. Compared: argmax of every token whose margin is above rounding."""
    run = sampler_of(host, task).start(batch_of(host, task, picture))
    tokens = sure = same = 0
    while (query := run.query) is not None:
        wanted = host.parts.net(query.batch, predict=query.predict)
        got = moved(card.parts.net(query.batch.to(DEVICE), predict=query.predict.to(DEVICE)), "cpu")
        for a, b in ((wanted.logits(kind), got.logits(kind)) for kind in wanted.scored):
            if not len(a):
                continue
            best = a.topk(2, dim=1).values
            clear, equal = best[:, 0] - best[:, 1] > MARGIN, a.argmax(1) == b.argmax(1)
            assert bool(equal[clear].all())
            tokens, sure, same = tokens + len(a), sure + int(clear.sum()), same + int(equal.sum())
        run.advance(wanted)
    note(f"argmax.{task}", same / tokens, "share", tokens=tokens, above_margin=sure)
    assert sure > 0.95 * tokens


@torch.no_grad()
@pytest.mark.parametrize("kind", ["greedy", "random"])
def test_whole_drawings_are_the_same(kind: str, host: Model, card: Model, picture: Image.Image) -> None:
    """Eight free runs each. Rounding may turn one near tie, after which a run goes its own way; so one of eight may differ."""
    sampler = sampler_of(host, "draw")
    if kind == "greedy":
        sampler = override(sampler, ["token_sampler.temperature=0", "selection.noise.start=0"])
    prompts = ("a cat", "two red apples and a cat", "a dog left of a tree", "three blue cars")
    rows = [generate.Generate(prompt=p).build(host.parts) for p in prompts for _ in range(2)]
    batch = collate(rows, range(8))
    wanted, got = sampler.sample(host.parts.net, batch), sampler.sample(card.parts.net, batch.to(DEVICE))
    equal = (wanted.ids == got.ids.cpu()).all(1)
    note(f"drawings.{kind}", float(equal.float().mean()), "share", rows=8)
    assert int(equal.sum()) >= 7


@torch.no_grad()
@pytest.mark.parametrize("task", ["draw", "edit", "plan"])
def test_random_numbers_are_the_same(task: str, host: Model, card: Model, picture: Image.Image) -> None:
    """Both runs are given the CPU's logits, so that only the sampler's own arithmetic and its random numbers could differ."""
    batch, sampler = batch_of(host, task, picture, seed=5), sampler_of(host, task)
    here, there = sampler.start(batch), sampler.start(batch.to(DEVICE))
    while (query := here.query) is not None:
        assert there.query is not None and torch.equal(there.query.predict.cpu(), query.predict)
        prediction = host.parts.net(query.batch, predict=query.predict)
        here.advance(prediction)
        there.advance(moved(prediction, DEVICE))
        assert torch.equal(there.batch.ids.cpu(), here.batch.ids)
        assert torch.equal(there.batch.masked.cpu(), here.batch.masked)
    assert there.query is None


@torch.no_grad()
def test_a_drawing_in_a_batch_is_the_one_that_is_drawn_alone(card: Model) -> None:
    """The GPU picks its matrix kernels by shape, so rounding differs with the batch; the share of equal codes is noted."""
    row, sampler = generate.Generate(prompt="two red apples and a cat").build(card.parts), sampler_of(card, "draw")
    together = sampler.sample(card.parts.net, collate([row] * 8, range(8)).to(DEVICE)).ids
    alone = [sampler.sample(card.parts.net, collate([row], [i]).to(DEVICE)).ids[0] for i in range(8)]
    equal = (together == torch.stack(alone)).all(1)
    note("batch8.drawings", float(equal.float().mean()), "share", rows=8)
    assert int(equal.sum()) >= 7


# -- whole tasks, and the image tokenizer ------------------------------------------------------------------------------------


def pixels(model: Model, picture: Image.Image) -> dict[str, Callable[[], Image.Image]]:
    region = Image.new("L", picture.size)
    region.paste(255, (0, 0, 64, 64))
    asked = [Message(role="user", text="draw a red apple")]
    return {
        "generate": lambda: model.generate("a red apple", plan=False, settings=FEW)[0].image,
        "plan": lambda: model.generate("two red apples and a cat", plan=True)[0].image,
        "reflect": lambda: model.generate("two red apples and a cat", attempts=2)[0].image,
        "edit": lambda: model.edit(picture, "make the cat blue", settings=FEW)[0].image,
        "edit_plan": lambda: model.edit(picture, "make the cat blue", plan=True, settings=FEW)[0].image,
        "infill": lambda: model.infill(picture, region, prompt="a cat", settings=FEW).image,
        "converse": lambda: model.converse(asked).images[0],
    }


@pytest.mark.parametrize("task", ["generate", "plan", "reflect", "edit", "edit_plan", "infill", "converse"])
def test_every_task_that_draws(task: str, host: Model, card: Model, picture: Image.Image) -> None:
    wanted, got = (np.asarray(pixels(m, picture)[task]()).astype(float) for m in (host, card))
    assert got.shape == wanted.shape == (128, 128, 3)
    difference = float(np.abs(got - wanted).mean())
    note(f"pixels.{task}", difference, "of 255")
    assert difference < 20, "another picture than on the CPU"


def test_every_task_that_answers(host: Model, card: Model, picture: Image.Image) -> None:
    def said(model: Model) -> list[Any]:
        return [
            model.ask(picture, "how many apples are there?").text,
            model.describe(picture).text,
            model.infill_text("a [mask] apple").text,
            model.ground(picture, ["the cat", "the apple"]).boxes,
        ]

    assert said(card) == said(host)


@pytest.mark.parametrize("tf32", [False, True])
def test_codes_of_pictures(tf32: bool, host: Model, card: Model) -> None:
    """TF32 in cuDNN's convolutions is PyTorch's default; it may move a code of the nearest-neighbour search."""
    torch.backends.cudnn.allow_tf32 = tf32
    shown = [to_pixels(Image.fromarray(render(sample("grid", "validation", 0, i), 128))) for i in range(8)]
    wanted, got = (torch.stack([m.parts.encode(p).cpu() for p in shown]) for m in (host, card))
    note(f"codes.{'tf32' if tf32 else 'float32'}", float((wanted == got).float().mean()), "share", codes=wanted.numel())
    assert float((wanted == got).float().mean()) > (0.95 if tf32 else 0.995)
    decoded = [np.asarray(m.parts.decode(wanted[:1])[0]).astype(int) for m in (host, card)]
    assert np.abs(decoded[0] - decoded[1]).max() <= (8 if tf32 else 1)


def test_the_figures_of_the_official_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """``unmask verify`` with PyTorch's default settings, as a user runs it."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    assert main(["verify", str(GOLDEN), "--device", DEVICE]) == 0


def test_the_engine_serves_from_the_gpu(card: Model) -> None:
    from unmask.serving.engine import Engine
    from unmask.serving.requests import Request

    sampler = sampler_of(card, "draw")
    tasks = [generate.Generate(prompt=p) for p in ("a cat", "two red apples and a cat", "a dog")]
    with Engine(card.parts.net, device=card.device) as engine:
        built = [t.build(card.parts) for t in tasks]
        handles = [engine.submit(Request(sequence=s, sampler=sampler, seed=i)) for i, s in enumerate(built)]
        served = [t.read(h.result(timeout=60), card.parts) for t, h in zip(tasks, handles, strict=True)]
    assert [image.size for image in served] == [(128, 128)] * 3


# -- ways to keep the weights ------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("task", ["draw", "answer"])
def test_weights_that_stay_on_the_cpu(task: str, card: Model, picture: Image.Image) -> None:
    lent = unmask.load("mini", device=DEVICE, storage=WeightStorage(offload=frozenset({"und", "gen"})))
    assert lent.parts.net.blocks[0].und.mlp.gate.weight.device.type == "cpu"  # type: ignore[union-attr]
    batch = batch_of(card, task, picture).to(DEVICE)
    got, wanted = logits(lent.parts.net(batch)), logits(card.parts.net(batch))
    note(f"offload.{task}", apart(got, wanted), "relative", equal_to_the_bit=torch.equal(got, wanted))
    assert apart(got, wanted) < FLOAT32


@torch.no_grad()
@pytest.mark.parametrize(
    ("quantise", "worst"), [(RoundToNearest(bits=8), 0.02), (RoundToNearest(bits=4), 0.1), (Float8(), 0.1)]
)
def test_weights_in_few_bits(quantise: Quantiser, worst: float, host: Model, picture: Image.Image) -> None:
    if isinstance(quantise, RoundToNearest):
        pytest.importorskip("torchao")
    keep = WeightStorage(dtype=torch.bfloat16, quantise={"und": quantise, "gen": quantise})
    small, batch = unmask.load("mini", device=DEVICE, storage=keep), batch_of(host, "draw", picture)
    difference = apart(logits(small.parts.net(batch.to(DEVICE))), logits(host.parts.net(batch)))
    note(f"{quantise.label}.draw", difference, "relative")
    assert 0 < difference < worst


# -- training ----------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(
    "device" not in {f.name for f in dataclasses.fields(Training)}, reason="the trainer has no setting for the device"
)
@pytest.mark.parametrize("bf16", [False, True])
def test_training_steps(bf16: bool, tmp_path: Path) -> None:
    """Three steps from the same weights on the same data. On the CPU, bfloat16 is 0.06 of the change away from float32."""
    steps = ["training.steps=3"]
    wanted, got = (
        train(override(recipe(bf16=bf16), [*steps, f"training.device={device}"]), tmp_path / device / str(i))
        for i, device in enumerate(("cpu", DEVICE))
    )
    first = dict(recipe().model().named_parameters())
    change = {n: p.detach().cpu() - first[n].detach() for n, p in wanted.named_parameters()}
    off = {n: p.detach().cpu() - first[n].detach() - change[n] for n, p in got.named_parameters()}
    total = sum(float(c.norm() ** 2) for c in change.values()) ** 0.5
    difference = sum(float(o.norm() ** 2) for o in off.values()) ** 0.5 / total
    note(f"training.{'bf16' if bf16 else 'float32'}", difference, "of the change")
    assert total > 0 and difference < (0.2 if bf16 else 0.02)
