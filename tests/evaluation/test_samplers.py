"""Samplers compared: what is counted, what agrees, what is refused, prompts and metrics, and the report."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

import unmask
from unmask.evaluation import sampler_prompts as prompts
from unmask.evaluation.judge import Found, Seen
from unmask.evaluation.sampler_axes import REFERENCE, variants
from unmask.evaluation.sampler_prompts import Prompt, read_prompts
from unmask.evaluation.sampler_report import HEAD, SamplerReport, plot
from unmask.evaluation.sampler_requests import Requests, answering, drawing, writing
from unmask.evaluation.sampler_runs import SamplerRow, agreement, compare, quality, take
from unmask.pipeline.model import Model
from unmask.pipeline.text_model import TextModel
from unmask.sampling.sampler import Sampler
from unmask.sampling.selection import RandomOrder
from unmask.tasks.sampler_options import with_options

from .. import tiny_llada
from ..families import FAMILIES

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def llada(tmp_path_factory: pytest.TempPathFactory) -> TextModel:
    found = unmask.load(tiny_llada.make(tmp_path_factory.mktemp("own") / "llada"))
    assert isinstance(found, TextModel)
    return found


def asked(model: TextModel, *texts: str, length: int = 8) -> Requests:
    return writing(model, [Prompt(text=t) for t in texts], seed=3, change=lambda s: s, length=length, plain=False)


# -- what is measured -------------------------------------------------------------------------------------------------


def by_name(rows: list[SamplerRow]) -> dict[str, SamplerRow]:
    return {row.name: row for row in rows}


def test_forwards_tokens_and_agreement(llada: TextModel) -> None:
    requests = asked(llada, "is it?", "the sky")
    requests = replace(requests, ends=())  # random weights end a text anywhere
    chosen = variants(["own"], ["own", "equal:steps=0.5"], ["own", "block:refresh=2"], ["none"], net=requests.net)
    done: list[tuple[int, int]] = []
    found = compare(requests, chosen, progress=lambda n, of: done.append((n, of)))
    rows = by_name(found)
    assert [row.name for row in found[:2]] == [REFERENCE, "reference, other seeds"]
    reference, half = rows[REFERENCE], rows["schedule equal:steps=0.5"]
    assert (reference.forwards, reference.tokens, reference.tokens_a_forward) == (8, 8, 1)
    assert (half.forwards, half.tokens_a_forward) == (4, 2) and half.rows == 4
    length = len(requests.items[0].built.ids), len(requests.items[1].built.ids)
    assert reference.computed == 8 * sum(length) / 2
    cached = rows["cache block:refresh=2"]
    assert cached.forwards == 8 and cached.computed < reference.computed
    assert reference.agreement == reference.equal == 1 and 0 <= half.agreement <= 1 and reference.speedup == 1
    assert reference.quality is None and reference.seconds > 0
    assert done[-1][0] == done[-1][1] and len({of for _, of in done}) == 1


def test_the_same_seeds_for_every_sampler(llada: TextModel) -> None:
    """A sampler is random, and the same one twice takes the same tokens; another seed takes others."""
    change = {"seed": 5, "length": 16, "plain": False}
    hot = writing(llada, [Prompt(text="is it?")], change=lambda s: unmask_hot(s), **change)  # type: ignore[arg-type]
    (request,) = hot.items
    first, again, other = (take(hot, request, hot.sampler, seed) for seed in (5, 5, 6))
    assert request.seed == 5 and first.ids == again.ids and first.ids != other.ids
    rows = compare(hot, variants(["own"], ["own"], ["own"], ["none"], net=hot.net))
    assert rows[0].equal == 1 and rows[1].agreement < 1


def unmask_hot(sampler: Sampler) -> Sampler:
    return replace(sampler, token_sampler=replace(sampler.token_sampler, temperature=1.0))  # type: ignore[type-var, call-arg]


def test_equal_samplers_run_once(llada: TextModel) -> None:
    requests = asked(llada, "is it?", length=4)
    runs: list[Sampler] = []
    run = requests.run

    def watched(row, seed, sampler):  # type: ignore[no-untyped-def]
        runs.append(sampler)
        return run(row, seed, sampler)

    chosen = variants(["own", "random"], ["own", "equal"], ["own"], ["none", "0.9"], net=requests.net)
    rows = by_name(compare(replace(requests, run=watched), chosen))
    assert rows["schedule equal, threshold 0.9"].same_as == "threshold 0.9"
    assert rows["order random, threshold 0.9"].forwards == rows["threshold 0.9"].forwards
    # The reference, its warm-up and its other seeds, and five samplers besides it.
    different = len([row for row in rows.values() if not row.same_as]) - 1
    assert len(runs) == different + 2


def test_what_a_sampler_does_not_allow_is_in_its_row(llada: TextModel) -> None:
    requests = asked(llada, "is it?", length=4)
    rows = by_name(compare(requests, variants(["halton", "random"], ["own"], ["own"], ["none"], net=requests.net)))
    assert "the task writes text" in rows["order halton"].refused and not rows["order random"].refused
    assert rows["order halton"].to_json() == {"name": "order halton", "refused": rows["order halton"].refused}


def test_an_error_on_the_way_is_in_its_row(llada: TextModel) -> None:
    """Remasking changes what this cache holds, which the sampler finds out only while it runs."""
    requests = replace(asked(llada, "is it?", length=8), ends=())
    rows = compare(requests, variants(["remdm:eta=1"], ["own"], ["own", "prompt"], ["none"], net=requests.net))
    assert all(row.refused or row.forwards >= 8 for row in rows)
    broken = replace(requests, run=_raising(requests))
    rows = compare(broken, variants(["random"], ["own"], ["own"], ["none"], net=requests.net))
    assert rows[-1].refused == "no" and not rows[0].refused


def _raising(requests: Requests):  # type: ignore[no-untyped-def]
    def run(row, seed, sampler):  # type: ignore[no-untyped-def]
        if isinstance(sampler.selection, RandomOrder):
            raise ValueError("no")
        return requests.run(row, seed, sampler)

    return run


def test_a_text_counts_up_to_its_end(llada: TextModel) -> None:
    requests = asked(llada, "is it?", length=8)
    row = requests.items[0].built
    span = requests.items[0].span
    ids = row.ids.clone()
    ids[span.start : span.stop] = torch.tensor([5, 6, llada.parts.text.ends[0], 7, 7, 7, 7, 7])
    assert requests.ids(replace(row, ids=ids)) == (5, 6, llada.parts.text.ends[0])


@pytest.mark.parametrize(
    ("ids", "other", "share"),
    [([], [], 1.0), ([1, 2], [1, 2], 1.0), ([1, 2], [1, 3], 0.5), ([1], [1, 2, 3, 4], 0.25), ([], [1], 0.0)],
)
def test_agreement(ids: list[int], other: list[int], share: float) -> None:
    assert agreement(ids, other) == agreement(other, ids) == share


def test_pictures_and_guidance(model: Model) -> None:
    requests = drawing(model, [Prompt(text="a cat")], seed=0, change=lambda s: s)
    (reference, other, *_) = compare(requests, variants(["own"], ["own"], ["own"], ["none"], net=requests.net))
    assert reference.tokens == math.prod(model.parts.grid) and reference.rows > reference.forwards  # two views
    assert other.agreement < 1 and requests.read(requests.items[0].built).size == (128, 128)  # type: ignore[union-attr]


def test_quality_has_an_interval_and_a_paired_difference(llada: TextModel) -> None:
    requests = asked(llada, *(f"is it {n}?" for n in range(4)), length=4)
    scores = iter([1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 0.0, 1.0])  # reference, random, other seeds
    chosen = variants(["random"], ["own"], ["own"], ["none"], net=requests.net)
    reference, other, random = compare(requests, chosen, metric=lambda prompt, result: next(scores))
    assert [row.quality and row.quality["value"] for row in (reference, random, other)] == [0.75, 0.25, 0.75]
    assert random.gain and random.gain["value"] == -0.5 and random.gain["low"] < -0.5 < random.gain["high"]
    assert reference.quality and 0.3 < reference.quality["low"] < 0.75 < reference.quality["high"] < 1
    assert reference.gain == {"value": 0.0, "n": 4, "low": 0.0, "high": 0.0}
    assert quality([0.5, 0.75]) != quality([1.0, 0.0]) and quality([]) is None


def test_questions_about_pictures(model: Model) -> None:
    given = [Prompt(text="what is this?", image=Image.new("RGB", (40, 40), "red"), answer="a cat")]
    requests = answering(model, given, seed=0, change=lambda s: s, length=3)
    rows = compare(
        requests, variants(["own"], ["own"], ["own"], ["none"], net=requests.net), metric=lambda prompt, result: 0.25
    )
    assert rows[0].tokens <= 3 and rows[0].quality == {"value": 0.25, "n": 1, "low": 0.25, "high": 0.25}
    with pytest.raises(ValueError, match="the picture is missing"):
        answering(model, [Prompt(text="what is this?")], seed=0, change=lambda s: s, length=3)


def test_a_text_model_takes_no_picture_and_no_long_prompt(llada: TextModel) -> None:
    with pytest.raises(ValueError, match="leave out the picture"):
        writing(llada, [Prompt(text="a", image=Path("a.png"))], seed=0, change=lambda s: s, length=4, plain=False)
    with pytest.raises(ValueError, match=r"the model's context is 256; shorten the prompt, or use --length"):
        asked(llada, "is it?", length=400)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_reference_is_what_the_model_answers(name: str, tmp_path: Path) -> None:
    """The same text as that of ``ask`` with the same options, for every family."""
    family, image = FAMILIES[name], Image.new("RGB", (40, 24), "red")
    model = unmask.load(family.make(tmp_path / "model"))
    settings = family.quick[1::2]
    given = Prompt(text="Is it  blue?", image=image if family.reads else None)

    def change(sampler: Sampler) -> Sampler:
        return with_options(sampler, settings)

    if isinstance(model, TextModel):
        requests = writing(model, [given], seed=4, change=change, length=6, plain=False)
        wanted = model.ask(given.text, length=6, seed=4, settings=settings).text
    else:
        requests = answering(model, [given], seed=4, change=change, length=6)
        wanted = model.ask(given.image, given.text, length=6, seed=4, settings=settings).text  # type: ignore[arg-type]
    (request,) = requests.items
    assert requests.read(requests.run(request.built, request.seed, requests.sampler)) == wanted


def test_the_reference_is_what_the_model_draws(model: Model) -> None:
    requests = drawing(model, [Prompt(text="a  Cat"), Prompt(text="2 dogs")], seed=4, change=lambda s: s)
    for place, request in enumerate(requests.items):
        made = requests.read(requests.run(request.built, request.seed, requests.sampler))
        wanted = model.generate(request.prompt.text, seed=4 + place, plan=False, attempts=1)[0].image
        assert isinstance(made, Image.Image) and made.tobytes() == wanted.tobytes()


# -- prompts and metrics ----------------------------------------------------------------------------------------------


def test_prompts_of_a_file(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "p.txt").write_text("a cat\n\n two dogs \n")
    assert [p.text for p in read_prompts(tmp_path / "p.txt")] == ["a cat", "two dogs"]
    lines = [{"prompt": "what?", "image": "a.png", "answer": "a cat"}, {"prompt": "who?"}]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, lines)))
    first, second = read_prompts(tmp_path / "p.jsonl")
    assert first == Prompt(text="what?", image=tmp_path / "a.png", answer="a cat") and second == Prompt(text="who?")
    line = {"tag": "single_object", "prompt": "a photo of a dog", "include": [{"class": "dog", "count": 1}]}
    (tmp_path / "g.jsonl").write_text(json.dumps(line))
    (wanted,) = read_prompts(tmp_path / "g.jsonl")
    assert wanted.text == "a photo of a dog" and wanted.shows is not None
    dog = Found(name="dog", colour="", box=(0.1, 0.1, 0.4, 0.4), score=0.9)
    assert wanted.shows(Seen(objects=(dog,), background="sky")) and not wanted.shows(Seen(objects=(), background=""))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("p.txt", "", "is empty"),
        ("p.jsonl", '{"promt": "a"}', "unknown field 'promt'; expected prompt, image, answer"),
        ("p.jsonl", '{"image": "a.png", "prompt": "a"}', "there is no file"),
        ("p.jsonl", '{"answer": "a"}', "the field 'prompt' is missing"),
        ("p.jsonl", '{"prompt": 3}', "'prompt' is 3"),
        ("p.jsonl", "[]", "is not an object"),
        ("p.jsonl", '{"prompt": "a", "answer": 3}', "'answer' is 3"),
    ],
)
def test_a_broken_file_of_prompts(name: str, content: str, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=said):
        read_prompts(tmp_path / name)


def test_metrics_of_texts() -> None:
    right = Prompt(text="what?", answer="A red cat.")
    assert prompts.matches(right, "a red  cat") == 1 and prompts.matches(right, "it is a red cat") == 0
    assert prompts.contains(right, "it is a red cat!") == 1 and prompts.contains(right, "a red cathedral") == 0
    with pytest.raises(ValueError, match="use judge or clip"):
        prompts.matches(right, Image.new("RGB", (4, 4)))
    with pytest.raises(ValueError, match="'who' has none; give them as the field answer"):
        prompts.refuse_unanswered([right, Prompt(text="who")], "match")
    with pytest.raises(ValueError, match="use --world N"):
        prompts.refuse_unseen([right])


def test_the_world_has_prompts_with_what_judges_them() -> None:
    drawn, questions = prompts.world_drawings(7, 0), prompts.world_questions(5, 0, 32)
    assert len(drawn) == 7 and all(p.shows is not None and p.text.startswith("a photo of ") for p in drawn)
    assert len(questions) == 5 and all(p.answer and isinstance(p.image, Image.Image) for p in questions)
    assert [p.text for p in prompts.world_drawings(7, 1)] != [p.text for p in drawn]


# -- report -----------------------------------------------------------------------------------------------------------


def report(**more: object) -> SamplerReport:
    given = {"label": "m", "task": "ask", "prompts": 2, "seed": 0, "device": "cpu", "metric": "match"} | more
    figures = {"forwards": 4.0, "rows": 4.0, "computed": 80.0, "tokens": 8.0, "seconds": 0.5, "agreement": 0.75}
    half, quarter = ({"value": value, "low": value - 0.1, "high": value + 0.1, "n": 2} for value in (0.5, 0.25))
    less = {"value": -0.25, "low": -0.5, "high": 0.0, "n": 2}
    rows = (
        SamplerRow(name=REFERENCE, **{**figures, "agreement": 1.0}, equal=1.0, speedup=1.0, quality=half, gain=less),
        SamplerRow(name="reference, other seeds", **figures, speedup=1.0, quality=half),
        SamplerRow(name="order random", **figures, speedup=2.0, quality=quarter, gain=less),
        SamplerRow(name="order confidence", **figures, speedup=1.0, quality=half, same_as=REFERENCE),
        SamplerRow(name="order halton", refused="it is a text"),
    )
    return SamplerReport(**given, rows=rows)  # type: ignore[arg-type]


def test_a_report_shows_each_sampler_once() -> None:
    found = report()
    assert [cells[0] for cells in found.cells()] == [REFERENCE, "reference, other seeds", "order random"]
    assert found.cells()[2] == [
        *("order random", "4.0", "2.00", "80", "0.500", "2.00", "0.750", "0.000", "0.250 (0.15..0.35)"),
        "-0.250 (-0.50..+0.00)",
    ]
    assert found.cells()[0][-1] == ""  # the reference does not differ from itself
    assert len(HEAD) == len(found.cells()[0]) and found.refusals() == [["order halton", "it is a text"]]
    assert found.repeated == 1 and len(found.to_json()["samplers"]) == 5
    lines = {line.name: line for line in found.lines()}
    assert set(lines) == {f"samplers.m.ask.{n}" for n in (REFERENCE, "reference, other seeds", "order random")}
    line = lines["samplers.m.ask.order random"]
    assert line.value == 0.25 and (line.more or {})["gain"] == {"value": -0.25, "low": -0.5, "high": 0.0}


def test_a_plot_has_a_point_for_each_sampler() -> None:
    made = plot(report())
    colours = {colour for _, colour in made.getcolors(1 << 20) or []}
    assert (200, 60, 50) in colours and (170, 176, 186) in colours  # the reference, and one that it beats
    rows = tuple(replace(row, quality=None) for row in report().rows)
    assert plot(replace(report(), metric="", rows=rows)).size == made.size
    assert plot(replace(report(), rows=report().rows[:2])).height < made.height
