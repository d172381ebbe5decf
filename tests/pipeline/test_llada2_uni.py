"""LLaDA2.0-Uni on small random weights: its tasks, the exact cache, SPRINT, sizes, quirks, and the pickle that is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

import unmask
from tests.tiny_llada2 import write_uni_model
from unmask.checkpoints.elastic import WeightStorage
from unmask.checkpoints.quantise import RoundToNearest
from unmask.checkpoints.stream import CheckpointError
from unmask.models.elastic import Elastic
from unmask.pipeline.from_pickles import to_safetensors
from unmask.pipeline.model import Model
from unmask.protocols import UnmaskingSchedule
from unmask.recipes.starting import start_of
from unmask.recipes.ways import way_of
from unmask.sampling.block_diffusion import Blocks, Counted, Editing, Row
from unmask.sampling.cache import NoCache
from unmask.sampling.rescaled import HeadDeviation, Rescaled
from unmask.sampling.sprint import Adaptive, Keep, SprintRow
from unmask.sequence import Kind, collate
from unmask.tasks.llada2_uni import UniRows, edited, read_size, understood
from unmask.tasks.parts import Parts
from unmask.tasks.rows import Extras
from unmask.tokens.layouts import Layout
from unmask.tokens.llada2 import NULL, SOURCE, header, text_row
from unmask.tokens.text import MASK

RED = Image.new("RGB", (300, 200), (200, 30, 40))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_uni_model(tmp_path_factory.mktemp("uni"))


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    opened = unmask.load(folder, device="cpu")
    assert isinstance(opened, Model)
    return opened


def test_it_draws_edits_and_answers(model: Model) -> None:
    drawn = model.generate("a fox", steps=2, seed=3)[0]
    assert (
        drawn.image.size == (256, 256)
        and drawn.image.tobytes() == model.generate("a fox", steps=2, seed=3)[0].image.tobytes()
    )
    assert model.generate("a fox", steps=2, size=(320, 256))[0].image.size == (320, 256)
    made = model.edit(RED, "make it blue", steps=2)[0]
    assert min(made.image.size) >= 256 and made.image.size[0] % 32 == 0
    said = [model.ask(RED, "What is it?", steps=2, max_tokens=9).text for _ in range(2)]
    assert said[0] == said[1]
    assert isinstance(model.ask(None, "Why?", steps=2, max_tokens=9).text, str)


def test_answers_hold_no_codes_and_no_masks(model: Model) -> None:
    row = model.parts.rows.asking(model.parts, None, "Why?", 40)
    done = model.run([row], [0], model.presets.ask(model.parts)).rows[0]
    span = done.span("answer")
    ids = done.ids[span.start : span.stop]
    assert int(ids.max()) < model.parts.net.config.first_code and not bool((ids == model.parts.text[MASK]).any())


def test_the_prompt_reads_as_released(model: Model) -> None:
    shown = model.parts.text.show
    row = model.parts.rows.asking(model.parts, torch.zeros(3, 128, 160), "What?", 4)
    first, source, after = row.span("prompt"), row.span(SOURCE), row.spans[2]
    assert shown(row.ids[first.start : first.stop].tolist()) == (
        "<role>SYSTEM</role> You are a multimodal understanding assistant. <role>HUMAN</role>"
        "<|image|><|reserved_token_8|><|reserved_token_10|><boi>"
    )
    assert source.grid == (8, 10)
    assert shown(row.ids[after.start : after.stop].tolist()) == "<|/image|>What?<role>ASSISTANT</role>"
    bare = model.with_quirks("released").parts
    assert shown(bare.rows.asking(bare, None, "What?", 4).ids.tolist()).startswith("What?<|mask|>")


def test_added_tokens_in_a_prompt_are_text(model: Model) -> None:
    for word in ("<IMAGE3>", "<|mask|>", "<role>"):
        ids = model.parts.text.encode(word)
        assert len(ids) == len(word) and max(ids) < 256


@pytest.mark.parametrize("side", [7, 9, 35])
def test_sides_without_a_token_are_refused(model: Model, side: int) -> None:
    with pytest.raises(ValueError, match=f"a picture {side} codes high has no size token"):
        header(model.parts.text, (side, 8))
    if side < 10:
        with pytest.raises(ValueError, match="has no size token"):
            model.generate("a fox", size=(32 * side, 512))


def test_infilling_is_refused(model: Model) -> None:
    with pytest.raises(ValueError, match="LLaDA2.0-Uni cannot infill pictures"):
        model.infill(RED, RED)


def test_codes_above_the_limit_are_an_error(model: Model) -> None:
    with pytest.raises(ValueError, match="codes 0 to 48 do not exist; the tokenizer has codes 0 to 47"):
        model.parts.vq.decode(torch.tensor([[[0, 48]]]))


def test_the_cache_is_exact_and_saves_tokens(model: Model) -> None:
    row = model.parts.rows.drawing(model.parts, "a red fox", Extras(size=(320, 320)))
    sampler = replace(model.presets.generate(model.parts), schedule=_steps(model, 4))
    counts, hooks = list[int](), []
    for block in model.parts.net.blocks:
        hooks.append(block.und.q.register_forward_pre_hook(lambda _, given: counts.append(len(given[0]))))
    try:
        cached = model.run([row], [0], sampler).rows[0]
        with_cache, counts[:] = sum(counts), []
        plain = model.run([row], [0], replace(sampler, cache=NoCache())).rows[0]
    finally:
        for hook in hooks:
            hook.remove()
    assert torch.equal(cached.ids, plain.ids) and 2 * with_cache < sum(counts)


def _steps(model: Model, steps: int) -> UnmaskingSchedule:
    return replace(model.presets.generate(model.parts).schedule, steps=steps)


def test_a_row_does_not_depend_on_its_batch(model: Model) -> None:
    rows = [model.parts.rows.drawing(model.parts, words, Extras()) for words in ("a fox", "a very long red fox")]
    sampler = replace(model.presets.generate(model.parts), schedule=_steps(model, 2))
    alone = [model.run([row], [0], sampler).rows[0].ids for row in rows]
    assert all(torch.equal(a, b.ids) for a, b in zip(alone, model.run(rows, [0, 0], sampler).rows, strict=True))


def test_guidance_is_rescaled_over_the_whole_vocabulary(model: Model) -> None:
    net, parts = model.parts.net, model.parts
    batch = collate([parts.rows.drawing(parts, "a red fox", Extras())], [0])
    guidance = Rescaled(
        scale=3.0, instead=((NULL, frozenset({"prompt"})),), deviation=HeadDeviation(head=net.text_head)
    )
    first = batch.order[batch.masked].min()
    predict = batch.masked & (batch.order == first)
    views = guidance.views(batch, progress=None)  # type: ignore[arg-type]
    with torch.no_grad():
        scored = [net(view, predict=predict) for view in views]
        whole = [net.text_head(s.scored[Kind.CODE].hidden) for s in scored]
        merged = guidance.merge(batch, scored, progress=None)  # type: ignore[arg-type]
    c, u = whole
    out = u + 3 * (c - u)
    out = 0.7 * out * c.std(1, keepdim=True) / (out.std(1, keepdim=True) + 1e-6) + 0.3 * out
    assert torch.allclose(merged.logits(Kind.CODE), out[:, net.config.first_code :], atol=1e-5)


def _row(net: Elastic) -> torch.Tensor:
    return torch.randint(0, 256, (21,), generator=torch.Generator().manual_seed(1))


def test_sprint_that_keeps_all_is_exact_and_pruning_is_not(model: Model) -> None:
    net = model.parts.net
    prompt, made = _row(net), {}
    for ratio in (None, 1.0, 0.3):
        row = Row(net=net, block=8)
        keep = Keep(first_code=net.config.first_code, ratio=ratio or 1.0, text_ratio=0.5)
        scorer = SprintRow(row=row, keep=keep, warmup=0 if ratio is None else 1)
        loop = Blocks(block=8, steps=4, mask_id=net.mask_id, reveal=Adaptive(threshold=0.9))
        made[ratio] = loop.run(scorer, prompt, 24).ids
        if ratio == 0.3:
            assert scorer.kept is not None and scorer.kept.shape == (net.config.layers, int(16 * 0.3))
    assert torch.equal(made[None], made[1.0]) and not torch.equal(made[1.0], made[0.3])


def test_the_faults_of_sprint_are_off_by_default() -> None:
    keys = torch.zeros(1, 6, 2)
    keys[0, :, 0] = torch.tensor([1.0, 1, 9, 1, 1, 1])
    ids, confidence = torch.tensor([5, 5, 100, 100, 100, 100]), torch.tensor([0.5, 0.5, 0.1, 0.2, 0.3, 0.4])
    keep = Keep(first_code=50, ratio=0.5)
    assert keep.kept(keys, ids, confidence, 0).tolist() == [0, 1, 2]  # the norm of the key counts
    assert replace(keep, released=True).kept(keys, ids, confidence, 0).tolist() == [0, 1, 5]  # the confidence alone
    assert 0 not in keep.kept(keys, ids, confidence, 1).tolist()  # padding is not kept
    assert 0 in replace(keep, released=True).kept(keys, ids, confidence, 1).tolist()


def test_editing_changes_what_was_written(model: Model) -> None:
    net = model.parts.net
    plain, edits = (
        Editing(block=8, mask_id=net.mask_id, threshold=0.0, editing_threshold=limit).run(
            Row(net=net, block=8), _row(net), 11
        )
        for limit in (2.0, 0.0)
    )
    assert len(plain.ids) == len(edits.ids) == 11 and edits.steps > plain.steps
    counted = Blocks(block=8, steps=8, mask_id=net.mask_id, reveal=Counted(threshold=2.0)).run(
        Row(net=net, block=8), _row(net), 11
    )
    assert counted.steps <= 16 and len(counted.ids) == 32


def test_an_answer_block_may_be_scored_from_a_cache(model: Model) -> None:
    net = model.parts.net
    batch = collate([text_row(_row(net).tolist(), 8)], [0])
    with torch.no_grad():
        whole = net(batch, predict=batch.valid).logits(Kind.TEXT)
    short = Row(net=net, block=8).passed(batch.ids[0])
    assert torch.allclose(net.text_head(short.hidden), whole, atol=1e-4)


def test_sizes_of_pictures_that_are_read() -> None:
    assert read_size((480, 640), 800**2) == (480, 640) and read_size((1080, 1920), 800**2) == (576, 1056)
    assert read_size((100, 90), 800**2) == (160, 128)
    assert understood(Image.new("RGB", (210, 135)), 1024, most=448**2).size == (224, 128)


def test_edits_scale_the_picture_and_the_released_form_cuts_it() -> None:
    large = Image.new("RGB", (4000, 3000), "red")
    large.paste("blue", (0, 0, 4000, 800))
    ours, cut = (edited(large, 1024, factor=32, cut=cut) for cut in (False, True))
    assert ours.size == cut.size and ours.getpixel((5, 5)) == (0, 0, 255) and cut.getpixel((5, 5)) == (255, 0, 0)


def test_the_turbo_decoder_is_another(folder: Path, tmp_path: Path, model: Model) -> None:
    raw = json.loads((folder / "config.json").read_text())
    for entry in folder.iterdir():
        if entry.name != "config.json":
            (tmp_path / entry.name).symlink_to(entry)
    (tmp_path / "config.json").write_text(json.dumps(raw | {"unmask": {"side": 256, "decoder": "decoder-turbo"}}))
    codes = torch.zeros(1, 8, 8, dtype=torch.long)
    turbo = unmask.load(tmp_path, device="cpu", needs={"vq.decoder"})
    assert isinstance(turbo, Model)
    with torch.no_grad():
        found = [one.parts.vq.decode(codes) for one in (model, turbo)]
    assert found[0].shape == found[1].shape == (1, 3, 256, 256) and not torch.equal(*found)


def test_the_pickle_is_refused_until_it_is_converted(tmp_path: Path) -> None:
    source = write_uni_model(tmp_path / "source", pickled=True)
    with pytest.raises(CheckpointError, match="sigvq_embedding.pt is a pickle.*unmask convert"):
        unmask.load(source, device="cpu")
    assert unmask.load(source, device="cpu", needs={"und", "text_head"}).ask(None, "Why?", steps=1, max_tokens=4)
    to_safetensors(source, tmp_path / "new")
    assert not list((tmp_path / "new").rglob("*.pt"))
    assert unmask.load(tmp_path / "new", device="cpu").generate("a fox", steps=1)


def test_a_quantised_model_answers_and_the_router_stays_a_float(folder: Path) -> None:
    storage = WeightStorage(quantise={"und": RoundToNearest(bits=8)})
    opened = unmask.load(folder, device="cpu", storage=storage, needs={"und", "text_head"})
    assert isinstance(opened, Model) and isinstance(opened.parts, Parts) and isinstance(opened.parts.rows, UniRows)
    mlp = opened.parts.net.blocks[1].und.mlp
    assert type(mlp.router.weight) is torch.nn.Parameter and type(mlp.experts[0].gate.weight) is not torch.nn.Parameter
    assert opened.ask(None, "Why?", steps=1, max_tokens=4)


def test_thoughts_stand_before_the_picture(model: Model) -> None:
    drawn = model.generate("a fox", plan=True, steps=2, seed=1)[0]
    assert drawn.plan is not None and drawn.plan.objects == ()
    row = model.parts.rows.drawing(model.parts, "a fox", Extras(plan=Layout(objects=(), reason="red fur")))
    span = row.span("prompt")
    assert model.parts.text.show(row.ids[span.start : span.stop].tolist()) == (
        "<role>SYSTEM</role> You are a text-to-image generation assistant with a thinking process. <role>HUMAN</role>a fox"
        "<role>ASSISTANT</role>red fur<|image|><|reserved_token_8|><|reserved_token_8|><boi>"
    )
    text = model.parts.text
    ids = [*text.encode("so: "), text["<|image|>"], 3]
    assert model.parts.rows.plan_in(model.parts, ids).reason == "so:"


def test_training_is_refused_by_name(folder: Path) -> None:
    with pytest.raises(ValueError, match="is LLaDA2.0-Uni, whose training rows are not published"):
        way_of(start_of(str(folder)))
