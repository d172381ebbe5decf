"""The recipes of the published families on own data: their rows, losses and weights, runs that resume, and wrong input."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections import Counter
from pathlib import Path
from random import Random

import pytest
import torch
from PIL import Image

import unmask
from unmask.cli.main import main
from unmask.corruption.counted import Counted
from unmask.data.samples import Caption, Chat, EditPair, FileBytes, ImageRef, Said
from unmask.objectives.importance import EachRow, InverseMean, Neighbours
from unmask.objectives.masked import InverseTime, Masked, Pooled, Together
from unmask.objectives.next_token import NextToken
from unmask.recipe import Recipe
from unmask.recipes import families
from unmask.recipes.finetune import finetune
from unmask.recipes.starting import start_of
from unmask.rng import generator
from unmask.sequence import Kind, Sequence, Span, collate
from unmask.tasks.family_rows import (
    DiMOOExamples,
    MMaDAExamples,
    Slotted,
    family_codes,
    marks_given,
    to_block,
    to_random_length,
)
from unmask.tokens.lumina_dimoo import PADDING
from unmask.tokens.mmada import EOI, SOI
from unmask.tokens.text import END_ANSWER, EOS, EOT, Slots

from .. import tiny_dimple, tiny_dream, tiny_lavida

torch.set_num_threads(1)
GOLDEN = Path(__file__).parents[1] / "golden"
NAMES = ("mmada", "lavida", "lavida_on_dream", "dream", "dimple", "lumina_dimoo")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny model of every family, with room for the rows."""
    root = tmp_path_factory.mktemp("families")
    rooms = {
        "mmada": {"unmask": {"text_length": 100}, "max_sequence_length": 512},
        "lumina_dimoo": {"unmask": {"side": 64}, "max_sequence_length": 1024},
    }
    for name, more in rooms.items():
        shutil.copytree(GOLDEN / f"{name}_tiny", root / name)
        raw = json.loads((root / name / "config.json").read_text())
        (root / name / "config.json").write_text(json.dumps(raw | more))
    tiny_lavida.make(root / "lavida")
    tiny_lavida.make(root / "lavida_on_dream", on_dream=True)
    tiny_dream.make(root / "dream")
    tiny_dimple.make(root / "dimple")
    return {name: root / name for name in NAMES}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Captions and conversations with pictures of two shapes, conversations without, edits."""
    folder = tmp_path_factory.mktemp("data")
    for name, size in (("wide", (64, 48)), ("tall", (40, 80)), ("red", (64, 48))):
        Image.new("RGB", size, "green").save(folder / f"{name}.png")

    def talk(question: str, answer: str) -> list[dict[str, str]]:
        return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]

    rows: tuple[dict[str, object], ...] = (
        {"image": "wide.png", "caption": "a wall"},
        {"image": "tall.png", "caption": "a door"},
        {"image": "wide.png", "messages": talk("<image>\nwhat?", "a wall")},
        {"image": "tall.png", "messages": talk("<image>\nwhere?", "here")},
        {"messages": talk("why is the sky blue?", "the sky is blue")},
        {"source": "wide.png", "target": "red.png", "instruction": "make it red"},
    )
    lines = [json.dumps({"id": str(number), **row}) + "\n" for number, row in enumerate(rows)]
    (folder / "all.jsonl").write_text("".join(lines))
    (folder / "talks.jsonl").write_text(lines[4])
    return folder


def recipe(name: str, folders: dict[str, Path], data: Path, **more: object) -> Recipe:
    make = getattr(families, name.removesuffix("_on_dream"))
    own = {"length": 16} if name == "lumina_dimoo" else {}
    return make(str(folders[name]), str(data / told(name)), holdout=0, **own, **more)


def told(name: str) -> str:
    return "talks.jsonl" if name == "dream" else "all.jsonl"


# -- rows -------------------------------------------------------------------------------------------------------------


def ref(data: Path, name: str) -> ImageRef:
    return ImageRef(source=FileBytes(path=data / f"{name}.png"), name=name)


def mmada(folders: dict[str, Path], **more: object) -> MMaDAExamples:
    parts = start_of(str(folders["mmada"])).parts
    return MMaDAExamples(parts=parts, codes=family_codes(parts, None), field=parts.rows.field, **more)  # type: ignore


def learned(row: Sequence) -> list[int]:
    return [int(i) for span in row.spans if span.writable for i in row.ids[span.start : span.stop]]


def test_rows_of_mmada_are_those_of_its_trainer(folders: dict[str, Path], data: Path) -> None:
    """A drawing's codes are text ids, with the tokens around them; an answer is filled with the end of text, which is learned, to the end
    of the field of 100 tokens, and without a picture to that of a whole drawing.
    """
    made, text = mmada(folders), start_of(str(folders["mmada"])).parts.text
    drawn = made.draw(Caption(key="a", image=ref(data, "wide"), text="a wall"), Random(1))
    codes = made.parts.encode(made.parts.preprocess(Image.open(data / "wide.png"))[0]).flatten() + text.size
    assert learned(drawn) == [text[SOI], *codes.tolist(), text[EOI]]
    assert len(drawn.ids) == 100 + 1 + len(codes) + 2 and {s.kind for s in drawn.spans} == {Kind.TEXT}
    turns = (Said(role="user", text="what?"), Said(role="assistant", text="a wall"))
    looked = made.look(Chat(key="b", images=(ref(data, "wide"),), turns=turns), Random(0))
    talked = made.talk(Chat(key="c", images=(), turns=turns), Random(0))
    assert len(looked.ids) == len(talked.ids) == 100 + len(codes) + 3
    words = [*text.encode("a wall"), text[EOS]]
    for row in (looked, talked):
        assert learned(row)[: len(words)] == words and set(learned(row)[len(words) :]) == {text[EOS]}
    whole = mmada(folders, whole=True).talk(Chat(key="c", images=(), turns=turns), Random(0))
    assert torch.equal(whole.ids, talked.ids) and len(learned(whole)) == len(whole.ids)
    with pytest.raises(ValueError, match="question and answer have .* tokens, more than 100"):
        long = (Said(role="user", text="what? " * 30), turns[1])
        made.look(Chat(key="d", images=(ref(data, "wide"),), turns=long), Random(0))


def test_a_tenth_of_the_drawings_has_no_prompt(folders: dict[str, Path], data: Path) -> None:
    made, sample = mmada(folders), Caption(key="a", image=ref(data, "wide"), text="a wall")
    lengths = Counter(len(made.draw(sample, Random(i)).span("prompt")) for i in range(400))
    assert len(lengths) == 2 and 20 < lengths[min(lengths)] < 65


def test_rows_of_lumina_dimoo_are_those_of_its_trainer(folders: dict[str, Path], data: Path) -> None:
    """Codes by lines; answers with their end and a filler of its own; drawings have twice the area of edits."""
    parts = start_of(str(folders["lumina_dimoo"])).parts
    made, text = DiMOOExamples(parts=parts, codes=family_codes(parts, None), length=16), parts.text
    drawn = made.draw(Caption(key="a", image=ref(data, "wide"), text="a wall"), Random(1))
    edited = made.edit(
        EditPair(key="b", source=ref(data, "wide"), target=ref(data, "red"), instruction="red"), Random(1)
    )
    lines = [s for s in drawn.spans if s.name == "image"]
    assert len(learned(drawn)) > 1.5 * len(learned(edited)) and len({len(s) for s in lines}) == 1 and len(lines) > 2
    assert all(text.size <= i < text.size + 128 for i in (*learned(drawn), *learned(edited)))
    turns = (Said(role="user", text="what?"), Said(role="assistant", text="a wall"))
    said = made.chat(Chat(key="c", images=(ref(data, "wide"),), turns=turns), Random(0))
    answer, filler = said.span("answer"), said.span("filler")
    assert said.ids[answer.start : answer.stop].tolist() == [*text.encode("a wall"), text[END_ANSWER]]
    assert set(said.ids[filler.start : filler.stop].tolist()) == {text.tokenizer.token_to_id(PADDING)}
    assert len(answer) + len(filler) == 16 and filler.stop == len(said.ids)
    with pytest.raises(ValueError, match="source and target have different shapes"):
        pair = EditPair(key="d", source=ref(data, "wide"), target=ref(data, "tall"), instruction="red")
        made.edit(pair, Random(1))
    without = [made.edit(dataclasses.replace(pair, target=ref(data, "red")), Random(i)) for i in range(40)]
    sources = Counter(any(s.name == "source" for s in row.spans) for row in without)
    assert 0 < sources[False] < 14, "some edits are learned without picture and words"


def test_answers_end_as_published(folders: dict[str, Path]) -> None:
    text = start_of(str(folders["dimple"])).parts.text
    whole = to_block(text, " so it is ", Random(0), after="\n")
    said = [*text.encode("so it is"), text[EOT], *text.encode("\n")]
    assert len(whole) % 32 == 0 and whole[: len(said)] == said and set(whole[len(said) :]) == {text[EOS]}
    for answer in ("so", "so it is what it is and it is what it was"):
        ids = text.encode(answer)
        most = 2 ** len(ids).bit_length() if len(ids) < 16 else (len(ids) // 16 + 1) * 16
        found = {len(to_random_length(text, answer, Random(i))) for i in range(300)}
        assert min(found) == len(ids) + 1 and max(found) == most
        row = to_random_length(text, answer, Random(1))
        assert row[: len(ids)] == ids and set(row[len(ids) :]) == {text[EOS]} and text[EOT] not in row


def test_slots_of_an_answer_are_seen_and_their_fillers_learned(folders: dict[str, Path], data: Path) -> None:
    """Words, fillers and the end are learned, markers given in the mask and in its complement; short answers have no slots."""
    text, slots = start_of(str(folders["lavida"])).parts.text, Slots(marker=5, filler=6)
    made, answer = Slotted(slots=slots, share=1.0), "so it is what it is and was"
    counts = Counter[int]()
    for number in range(60):
        ids = made(text, answer, Random(number))
        kept = [i for i in ids if i not in (5, 6)]
        assert " ".join(text.raw(kept[: kept.index(text[EOT])]).split()) == answer and len(ids) % 32 == 0
        assert ids.count(6) <= 5 * ids.count(5)
        counts[ids.count(5)] += 1
    assert set(counts) == {1, 2, 3, 4, 5}
    plain = Slotted(slots=slots, share=0.0)
    assert 5 not in made(text, "so it is", Random(0)) and 5 not in plain(text, answer, Random(0))
    spans = (
        Span(name="prompt", kind=Kind.TEXT, start=0, stop=1),
        Span(name="answer", kind=Kind.TEXT, start=1, stop=6, writable=True),
    )
    row = Sequence(ids=torch.tensor([5, 1, 6, 5, 2, 5]), masked=torch.zeros(6, dtype=torch.bool), spans=spans)
    batch = collate([marks_given(row, 5)], [0])
    assert batch.writable[0].tolist() == [False, True, True, False, True, False]
    assert torch.equal(batch.position, collate([row], [0]).position)
    with pytest.raises(ValueError, match="has no slots for infilling"):
        recipe("lavida_on_dream", folders, data, slots=0.8)
    with pytest.raises(ValueError, match="slots is 2"):
        recipe("lavida", folders, data, slots=2.0)


def test_the_recipe_gives_the_markers_of_its_slots(folders: dict[str, Path], data: Path, tmp_path: Path) -> None:
    place = Path(shutil.copytree(folders["lavida"], tmp_path / "lavida"))
    raw = json.loads((place / "config.json").read_text())
    raw["unmask"] |= {"infill_id": 5, "fill_id": 6}
    (place / "config.json").write_text(json.dumps(raw))
    made = families.lavida(str(place), str(data / "talks.jsonl"), slots=1.0, holdout=0, batch=6)
    batch = made.source(0)["chat"]
    marks = (batch.ids == 5) & batch.valid
    assert marks.any() and not (marks & batch.writable).any()
    assert torch.isfinite(made.objective(made.model(), {"chat": batch}, generator("slots")).total)


# -- objectives -------------------------------------------------------------------------------------------------------


def test_every_stage_has_its_published_loss(folders: dict[str, Path], data: Path) -> None:
    def tasks(name: str, **more: object) -> dict[str, tuple[Masked, float]]:
        made = recipe(name, folders, data, **more).objective
        assert isinstance(made, Together)
        return {task: (objective, weight) for task, objective, weight in made.objectives}  # type: ignore[misc]

    third, first = tasks("mmada"), tasks("mmada", stage="1")
    assert {n: w for n, (_, w) in third.items()} == {"draw": 1.0, "describe": 0.5, "look": 0.5, "talk": 0.4}
    assert {n: w for n, (_, w) in first.items()} == {"draw": 1.0, "describe": 1.0, "look": 1.0, "talk": 0.1}
    assert isinstance(third["draw"][0].corruption, Counted) and third["talk"][0].weight == EachRow()
    assert first["talk"][0].weight == InverseTime() and first["look"][0].weight == EachRow()
    assert all(m.complementary and w == 1 for m, w in tasks("lavida").values())
    assert tasks("dream")["chat"][0].weight == Neighbours(p=0.1)
    assert tasks("dream", weight="original")["chat"][0].weight == InverseMean()
    assert not tasks("dimple")["chat"][0].complementary and tasks("dimple", masks="dual")["chat"][0].complementary
    assert tasks("dimple", stage="instruction")["chat"][0] == NextToken()
    pooled = recipe("lumina_dimoo", folders, data).objective
    assert isinstance(pooled, Pooled) and {n for n, _ in pooled.objectives} == {"draw", "describe", "edit", "chat"}


def test_pictures_of_several_sizes_share_a_batch(folders: dict[str, Path], data: Path) -> None:
    """The loss of two rows of Dimple with pictures of two shapes is that of both alone."""
    made = recipe("dimple", folders, data, batch=8)
    batch, net = made.source(0)["describe"], made.model()
    assert batch.pixels is not None and batch.pixels.isnan().any()
    scored = net(batch, predict=batch.writable & batch.valid).logits(Kind.TEXT)
    samples = [row for number in range(4) for row in [made.source.sources[0].every()["describe"].row(number % 2)]]
    assert torch.isfinite(scored).all() and len({tuple(s.ids.flatten().tolist()) for s in samples}) == 2
    start = start_of(str(folders["dimple"]))
    alone = []
    for name in ("wide", "tall"):
        view = start.parts.image_views(Image.open(data / f"{name}.png"))
        alone.append(net.features(view.views))
    both = net.features(torch.cat([_padded(v) for v in _views(start, data)]))
    torch.testing.assert_close(both, torch.cat(alone))


def _views(start: object, data: Path) -> list[torch.Tensor]:
    parts = start.parts  # type: ignore[attr-defined]
    return [parts.image_views(Image.open(data / f"{name}.png")).views for name in ("wide", "tall")]


def _padded(view: torch.Tensor) -> torch.Tensor:
    out = torch.full((1, 3, 200, 200), torch.nan)
    out[:, :, : view.shape[2], : view.shape[3]] = view
    return out


# -- runs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_resumed_run_ends_in_a_model_like_one_that_was_not_stopped(
    name: str, folders: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    words = [
        f"families.{name.removesuffix('_on_dream')}",
        "--model",
        str(folders[name]),
        "--data",
        str(data / told(name)),
    ]
    words += ["-o", "holdout=0", "-o", "batch=4", "-o", "optim.warmup=1", "-o", "optim.decay_from=1"]
    words += ["-o", "length=16"] if name == "lumina_dimoo" else []
    for out, steps, more in (("whole", 2, ()), ("parts", 1, ()), ("parts", 2, ("--resume",))):
        assert main(["train", *words, "--out", str(tmp_path / out), "--steps", str(steps), *more]) == 0
    before, whole, parts = (
        unmask.load(f).parts.net.state_dict() for f in (folders[name], tmp_path / "whole", tmp_path / "parts")
    )
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    assert before.keys() == whole.keys() and not torch.equal(before["embed.weight"], whole["embed.weight"])
    if name == "dimple":
        frozen = [key for key in whole if key.startswith("vision.")]
        assert frozen and all(torch.equal(before[key], whole[key]) for key in frozen)


@pytest.mark.parametrize("name", ["mmada", "lavida", "dimple", "lumina_dimoo"])
def test_finetune_trains_the_rows_of_the_family(name: str, folders: dict[str, Path], data: Path) -> None:
    own = finetune(str(folders[name]), str(data / "all.jsonl"), holdout=0, lora=2, replay=str(data / "talks.jsonl"))
    batch = own.source(0)
    net = own.model()
    assert own.adapt is not None
    own.adapt(net)
    loss = own.objective(net, batch, generator("finetune"))
    assert torch.isfinite(loss.total) and any(n.startswith("replay_") for n in batch)
    loss.total.backward()
    assert any(p.grad is not None and p.grad.abs().max() > 0 for n, p in net.named_parameters() if p.requires_grad)


def test_a_tiny_model_learns_its_rows(folders: dict[str, Path], data: Path, tmp_path: Path) -> None:
    """Dream answers as it was taught, in the spelling of its trainer."""
    words = ["--model", str(folders["dream"]), "--data", str(data / "talks.jsonl"), "--out", str(tmp_path / "run")]
    more = ["--steps", "150", "-o", "optim.lr=1e-2", "-o", "holdout=0", "-o", "weight=linear"]
    assert main(["train", "families.dream", *words, *more]) == 0
    said = unmask.load(tmp_path / "run").ask("why is the sky blue?", length=32, steps=32)
    assert said.text.strip() == "the sky is blue"


# -- wrong input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        ("mmada", {"stage": "5"}, "stage '5' is unknown; choose from 1, 2, 3, cot, 4"),
        ("dream", {"weight": "heavy"}, "weight 'heavy' is unknown; choose from cart, original, linear"),
        ("dimple", {"stage": "2"}, "choose from alignment, instruction, diffusion"),
        ("dimple", {"masks": "many"}, "choose from single, dual"),
        ("dimple", {"stage": "alignment", "lora": 2}, "trains the projector alone"),
        ("lumina_dimoo", {"length": 0}, "length is 0"),
    ],
)
def test_unknown_settings_are_named(
    name: str, given: dict[str, object], said: str, folders: dict[str, Path], data: Path
) -> None:
    with pytest.raises(ValueError, match=said):
        getattr(families, name)(str(folders[name]), str(data / told(name)), **given)


def test_a_model_of_another_family_is_named(folders: dict[str, Path], data: Path) -> None:
    with pytest.raises(ValueError, match="is no model of MMaDA; give one, or use `unmask train finetune"):
        families.mmada(str(folders["lumina_dimoo"]), str(data / "all.jsonl"))
    with pytest.raises(ValueError, match="shapes pictures as its family does"):
        finetune(str(folders["mmada"]), str(data / "all.jsonl"), fit="crop")
