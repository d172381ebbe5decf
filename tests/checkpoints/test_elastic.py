"""What each task reads, and that reading no more changes no bit of any answer."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

import unmask
from unmask.checkpoints import loading
from unmask.checkpoints.elastic import EVERYTHING, Checkpoint, Weights, WeightStorage, part_of, tensors_needed
from unmask.checkpoints.lavida_o import load_lavida_o, survey_lavida_o
from unmask.checkpoints.loading import load
from unmask.checkpoints.quantise import RoundToNearest
from unmask.checkpoints.stream import CheckpointError
from unmask.evaluation.verify import Reference
from unmask.models.elastic import Elastic
from unmask.pipeline.loading import needs_of
from unmask.pipeline.model import Model
from unmask.pipeline.named_sizes import spec_of_size
from unmask.sampling.guidance import ClassifierFree, EditGuidance
from unmask.sequence import Batch, Kind, Sequence, Span, collate, stack
from unmask.step import Progress
from unmask.tokens.vq import VQ

torch.set_num_threads(1)
FOLDER = Path(__file__).parents[1] / "golden" / "lavida_o_tiny"
TASKS = ("generate", "edit", "infill", "infill-text", "ask", "ground")
FEW = ["schedule.steps=3"]
GRID = (8, 8)


def counts(checkpoint: Checkpoint, task: str) -> dict[str, int]:
    """Parameters that a task reads, by part."""
    out: dict[str, int] = {}
    for _, name, stored, rows in tensors_needed(checkpoint, needs_of(task)):
        part = part_of(name, checkpoint.config)
        out[part] = out.get(part, 0) + stored.numbers // stored.shape[0] * rows
    return out


# -- how much (spec 1.10 and 9) ---------------------------------------------------------------------------------------


def test_the_released_size_counts_as_published() -> None:
    every = counts(spec_of_size("lavida_o").checkpoint, "all")
    und = every["und.joint"] + every["und.upper"] + every["out"]
    assert und == 32 * 218_112_000 and every["gen"] == 32 * 75_501_568
    assert und + every["embed"] + every["text_head"] + every["norm"] == 8_023_068_672
    assert und + every["gen"] + every["embed"] + every["text_head"] + every["norm"] == 10_439_118_848
    assert every["codes"] == 84_422_656
    assert every["vision"] == 397_747_744 + 5_309_568 + 21_504_000 + 4096  # tower, pool, projector, newline
    assert every["vq.encoder"] + every["vq.codes"] + every["vq.decoder"] == 146_244_675


@pytest.mark.parametrize(("task", "most"), [("generate", 6.95e9), ("ask", 8.45e9), ("ground", 8.45e9)])
def test_a_task_of_the_released_size_reads_no_more_than_it_needs(task: str, most: float) -> None:
    read = counts(spec_of_size("lavida_o").checkpoint, task)
    assert 6e9 < sum(read.values()) <= most
    absent = {"und.upper", "text_head", "vision", "vq.encoder"} if task == "generate" else {"gen", "codes", "vq.codes"}
    assert not absent & set(read)
    if task == "generate":
        assert (
            read["out"] == 16 * 4096**2 + 16 * 2048 * 4096
        )  # whole below the last joint layer, from there the first rows
        assert read["und.joint"] == 16 * (218_112_000 - 4096**2) + 3 * 4096**2 + 4096


def test_an_unknown_part_and_task_are_told() -> None:
    told = "unknown part 'wings'; the parts are gen, text_head, und, vision, vq.decoder, vq.encoder"
    with pytest.raises(ValueError, match=told):
        list(tensors_needed(spec_of_size("tiny").checkpoint, frozenset({"wings"})))
    with pytest.raises(ValueError, match="no task is called 'fly'; choose from generate"):
        needs_of("fly")


# -- mini: every task, elastic against whole -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole() -> Model:
    return unmask.load("mini")


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (128, 128, 3), dtype=np.uint8))


def answers(picture: Image.Image) -> dict[str, Callable[[Model], Any]]:
    region = Image.new("L", picture.size)
    region.paste(255, (0, 0, 64, 64))
    return {
        "generate": lambda m: np.asarray(
            m.generate("a red apple", seed=1, plan=False, settings=FEW)[0].image
        ).tobytes(),
        "edit": lambda m: np.asarray(m.edit(picture, "make the cat blue", settings=FEW)[0].image).tobytes(),
        "infill": lambda m: np.asarray(m.infill(picture, region, prompt="a cat", settings=FEW).image).tobytes(),
        "infill-text": lambda m: m.infill_text("a [mask] apple").text,
        "ask": lambda m: m.ask(picture, "how many cats are there?", trace=True).trace,
        "ground": lambda m: m.ground(picture, ["the cat", "the dog"]).boxes,
    }


def absent(model: Model) -> set[str]:
    return {n for m in (model.parts.net, model.parts.vq) for n, p in m.named_parameters() if p.is_meta}


@pytest.mark.parametrize("task", TASKS)
def test_a_task_answers_alike_with_what_it_needs(task: str, whole: Model, picture: Image.Image) -> None:
    part, answer = unmask.load("mini", needs=needs_of(task)), answers(picture)[task]
    before = absent(part)
    assert before, "nothing was left out"
    assert answer(part) == answer(whole)
    assert absent(part) == before, "the task loaded more than it says it needs"


def test_another_task_later_loads_the_rest(whole: Model, picture: Image.Image) -> None:
    part, asked = unmask.load("mini", needs=()), answers(picture)
    assert part.device.type == "cpu"
    for task in ("infill-text", "generate", "ask", "edit"):
        assert asked[task](part) == asked[task](whole)
    assert not absent(part)
    for name, value in part.parts.net.state_dict().items():
        assert torch.equal(value, whole.parts.net.state_dict()[name]), name


# -- the fixture: logits, to the last bit ---------------------------------------------------------------------------------


def drawing(ids: Tensor, codes: Tensor) -> Batch:
    spans = (
        Span(name="prompt", start=0, stop=9, kind=Kind.TEXT),
        Span(name="image", start=9, stop=73, kind=Kind.CODE, grid=GRID, fold=2),
    )
    masked = torch.zeros(73, dtype=torch.bool)
    masked[9:] = codes == 129
    return collate([Sequence(ids=torch.cat([ids[:9], codes]), masked=masked, spans=spans)], [0])


@pytest.fixture(scope="module")
def form() -> Reference:
    return Reference(arrays=load_file(FOLDER / "expected.safetensors"), mask_id=639, mask_code=129)


Streams = dict[str, Tensor]


def guided(net: Elastic, batch: Batch, guidance: ClassifierFree | EditGuidance) -> Streams:
    """Logits of every stream of a guidance, alone and stacked as the sampler has them."""
    views = guidance.views(batch, Progress(number=torch.zeros(1), of=torch.ones(1), length=batch.ids.shape[1]))
    return {f"stream {i}": net(view).logits(Kind.CODE) for i, view in enumerate(views)} | {
        f"stacked {len(views)}": net(stack(views)).logits(Kind.CODE)
    }


def drawn(form: Reference, net: Elastic, vq: VQ) -> Streams:
    batch = drawing(form.arrays["t2i.ids"][0], form.arrays["t2i.codes"][0])
    streams = guided(net, batch, ClassifierFree(scale=4.0, drop={"prompt"}, null_id=form.mask_id))
    return streams | form.sampled(net) | {"decoded": vq.decode(form.arrays["vq.codes"].view(1, *GRID))}


def edited(form: Reference, net: Elastic, vq: VQ) -> Streams:
    """The three streams of the row with its source; then both measured rows, of which the second has lost it."""
    batch, texts = form.editing(), {"prompt", "end"}
    guidance = EditGuidance(scale=1.2, image_scale=1.4, drop={*texts, "source"}, keep={"source"}, null_id=form.mask_id)
    return guided(net, batch.row(0), guidance) | {"rows": form.edits(net, batch)} | form.tokenized(vq)


def filled(form: Reference, net: Elastic, vq: VQ) -> Streams:
    return drawn(form, net, vq) | form.tokenized(vq)


def read(form: Reference, net: Elastic, vq: VQ) -> Streams:
    """The fixture has no vision tower: what questions and boxes see is compared in tests/tasks/test_released.py."""
    return {"texts": form.texts(net), "answers": form.answers(net, vq)}


OF_THE_FIXTURE = {"generate": drawn, "edit": edited, "infill": filled, "infill-text": read, "ask": read, "ground": read}


def the_same(got: Streams, wanted: Streams) -> None:
    assert got.keys() == wanted.keys()
    for name, value in wanted.items():
        assert value.numel() and torch.equal(got[name], value), name


@torch.no_grad()
@pytest.mark.parametrize("task", TASKS)
def test_the_fixture_loaded_in_part_gives_the_same_bits(task: str, form: Reference) -> None:
    weights, full = Weights(checkpoint=survey_lavida_o(FOLDER)), load_lavida_o(FOLDER)
    net, vq = weights.checkpoint.modules()
    load(weights, net, vq, needs_of(task))
    draws = OF_THE_FIXTURE[task] is not read
    assert net.text_head.weight.is_meta == draws and net.code_head.classify.weight.is_meta != draws
    assert not draws or net.blocks[3].out.weight.shape == (32, 64)  # type: ignore[union-attr]
    wanted = OF_THE_FIXTURE[task](form, *full)
    assert draws == ("stream 1" in wanted) and (task == "edit") == ("stacked 3" in wanted)
    the_same(OF_THE_FIXTURE[task](form, net, vq), wanted)
    load(weights, net, vq, EVERYTHING)  # whatever it was opened for, it learns the rest
    for streams in (drawn, edited, read):
        the_same(streams(form, net, vq), streams(form, *full))


# -- nothing half loaded ---------------------------------------------------------------------------------------------------


def meta(net: Elastic, vq: VQ) -> bool:
    return all(p.is_meta for m in (net, vq) for p in m.parameters())


def test_too_little_memory_is_said_before_anything_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = Weights(checkpoint=survey_lavida_o(FOLDER))
    net, vq = weights.checkpoint.modules()
    read: list[str] = []
    monkeypatch.setattr(loading, "read", lambda stored, **more: read.append(stored.name))
    monkeypatch.setattr("unmask.checkpoints.budget.free_bytes", lambda device: 100_000)
    with pytest.raises(CheckpointError, match=r"need 0.00 GiB on cpu, where 0.00 GiB are free; `unmask inspect"):
        load(weights, net, vq, EVERYTHING)
    assert not read and meta(net, vq)


def test_a_failure_half_way_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = Weights(checkpoint=survey_lavida_o(FOLDER))
    net, vq = weights.checkpoint.modules()
    last = list(weights.checkpoint.vq.values())[-1]
    spoilt = dataclasses.replace(last, start=10**9)
    broken = dataclasses.replace(
        weights.checkpoint, vq={**weights.checkpoint.vq, list(weights.checkpoint.vq)[-1]: spoilt}
    )
    with pytest.raises(CheckpointError, match=f"ends inside {re.escape(last.name)}"):
        load(dataclasses.replace(weights, checkpoint=broken), net, vq, EVERYTHING)
    assert meta(net, vq)


# -- how they are kept -------------------------------------------------------------------------------------------------------


def test_another_dtype_is_kept_and_the_tokenizer_stays_as_it_is() -> None:
    model = unmask.load("mini", needs=needs_of("generate"), storage=WeightStorage(dtype=torch.bfloat16))
    kinds = {p.dtype for p in model.parts.net.parameters() if not p.is_meta}
    assert kinds == {torch.bfloat16}
    assert {p.dtype for p in model.parts.vq.parameters() if not p.is_meta} == {torch.float32}
    assert model.generate("a red apple", plan=False, settings=FEW)[0].image.size == (128, 128)


@pytest.mark.parametrize(
    ("given", "said"),
    [({"quantise": {"eyes": RoundToNearest(bits=8)}}, "unknown branch 'eyes'"), ({"offload": frozenset({"vq"})}, "unknown branch 'vq'"),
     ({"dtype": torch.int8}, "torch.int8 is not supported")],
)  # fmt: skip
def test_ways_to_keep_that_do_not_exist(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        WeightStorage(**given)


def test_a_branch_that_stays_elsewhere_answers_alike(whole: Model, picture: Image.Image) -> None:
    lent = unmask.load("mini", storage=WeightStorage(offload=frozenset({"und"})))
    layer = lent.parts.net.blocks[0].und.mlp.gate  # type: ignore[union-attr]
    kept, during = layer.weight, []
    layer.register_forward_hook(lambda m, given, result: during.append(m.weight), prepend=True)
    answer = answers(picture)["ask"]
    assert answer(lent) == answer(whole)
    assert during and all(w is not kept for w in during), "the weight that worked was the one that is kept"
    assert layer.weight is kept and not lent.parts.net.blocks[0].gen.mlp.gate._forward_pre_hooks  # type: ignore[union-attr]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(
    "storage",
    [
        WeightStorage(offload=frozenset({"und", "gen"})),
        WeightStorage(dtype=torch.bfloat16, quantise={"und": RoundToNearest(bits=8)}),
        WeightStorage(dtype=torch.bfloat16, quantise=dict.fromkeys(("und", "gen"), RoundToNearest(bits=4))),
    ],
)
def test_on_a_gpu(storage: WeightStorage, picture: Image.Image) -> None:
    model = unmask.load("mini", device="cuda", storage=storage)
    here = {p.device.type for n, p in model.parts.net.named_parameters() if ".und.mlp.gate" in n}
    assert here == {"cpu" if storage.offload else "cuda"}
    assert model.generate("a red apple", plan=False, settings=FEW)[0].image.size == (128, 128)
    assert model.ask(picture, "how many cats are there?").text is not None


@pytest.mark.parametrize(("bits", "worst"), [(8, 0.01), (4, 0.12)])
def test_fewer_bits_are_close_and_the_other_branch_is_untouched(bits: int, worst: float, whole: Model) -> None:
    pytest.importorskip("torchao")
    model = unmask.load(
        "mini", needs=needs_of("generate"), storage=WeightStorage(quantise={"und": RoundToNearest(bits=bits)})
    )
    block, same = model.parts.net.blocks[0], whole.parts.net.blocks[0]
    x = torch.randn(5, 192, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        got, wanted = block.und.mlp.gate(x), same.und.mlp.gate(x)  # type: ignore[union-attr]
    assert 0 < float((got - wanted).norm() / wanted.norm()) < worst
    assert torch.equal(block.gen.mlp.gate.weight, same.gen.mlp.gate.weight)  # type: ignore[union-attr]
    assert model.generate("a red apple", plan=False, settings=FEW)[0].image.size == (128, 128)
    assert model.infill_text("a [mask] apple").text, "what is loaded later is kept alike"


def test_without_torchao_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torchao.quantization", None)
    with pytest.raises(CheckpointError, match=r"need the package torchao; pip install 'unmask\[quant\]'"):
        unmask.load("mini", storage=WeightStorage(quantise={"gen": RoundToNearest(bits=8)}))
