"""Training batches: functions of the step, with the formats that the tasks ask in."""

from __future__ import annotations

import pytest
import torch

from tests.data.test_world_language import _LYING
from unmask.corruption.collapsing import Collapsing
from unmask.data.mixture import Joint, Weighted
from unmask.data.sources import (
    CachedEncoder,
    Captions,
    Drawings,
    Edits,
    Labelled,
    Planned,
    VisualQuestions,
    cell_labels,
    luminance_stats,
    pixels_of,
)
from unmask.data.thinking import Critiques, EditCritiques, EditPlans, Illustrations, Plans, Retries
from unmask.data.world.scenes import Draft, SceneObject, relation, sample
from unmask.data.world.vocabulary import CLASS_NAMES
from unmask.recipes.mini import text
from unmask.recipes.mini_tasks import LOOK_TOKENS
from unmask.rng import generator
from unmask.sequence import Batch, Kind
from unmask.tokens.layouts import from_ids
from unmask.tokens.prompts import COMPACT
from unmask.tokens.text import EXP


def fake_codes(pixels: torch.Tensor) -> torch.Tensor:
    """A code that depends on its own square alone."""
    squares = torch.nn.functional.unfold(pixels, 16, stride=16).transpose(1, 2)
    return (squares.sum(-1) * 7).long().remainder(64).reshape(len(pixels), pixels.shape[2] // 16, -1)


def sources() -> dict[str, object]:
    tokens = text()
    return {
        "draw": Drawings(text=tokens, encode=fake_codes, seed=1, batch=6),
        "draw64": Drawings(
            text=tokens, encode=fake_codes, seed=1, batch=6, side=64, fold=1, levels=(("grid_half", 1.0),)
        ),
        "look": VisualQuestions(text=tokens, seed=1, look_tokens=LOOK_TOKENS, batch=4),
        "edit": Edits(text=tokens, encode=fake_codes, seed=1, look_tokens=LOOK_TOKENS, batch=4),
        "caption": Captions(text=tokens, seed=1, batch=4),
        "draw_planned": Drawings(text=tokens, encode=fake_codes, seed=1, batch=6, plan=Planned(open=0.0)),
        "edit_planned": Edits(
            text=tokens, encode=fake_codes, seed=1, look_tokens=LOOK_TOKENS, batch=4, plan=Planned(open=0.0)
        ),
        "plan": Plans(text=tokens, seed=1, length=44, batch=4),
        "edit_plan": EditPlans(text=tokens, seed=1, length=24, look_tokens=LOOK_TOKENS, batch=4),
        "critique": Critiques(text=tokens, seed=1, look_tokens=LOOK_TOKENS, batch=4),
        "critique_edit": EditCritiques(text=tokens, seed=1, look_tokens=LOOK_TOKENS, batch=4),
        "retry": Retries(text=tokens, encode=fake_codes, seed=1, look_tokens=LOOK_TOKENS, batch=4),
    }


def test_a_batch_is_a_function_of_the_step() -> None:
    for name, source in sources().items():
        first, again, other = source(3), source(3), source(4)  # type: ignore[operator]
        assert torch.equal(first.ids, again.ids), name
        assert first.ids.shape != other.ids.shape or not torch.equal(first.ids, other.ids), name


def test_what_is_writable_is_the_answer_and_nothing_is_masked_yet() -> None:
    for name, source in sources().items():
        batch = source(0)  # type: ignore[operator]
        assert not batch.masked.any()
        wanted = (
            Kind.CODE if name.startswith(("draw", "edit")) and name != "edit_plan" or name == "retry" else Kind.TEXT
        )
        assert set(batch.kind[batch.writable].tolist()) == {int(wanted)}, name


def test_remembered_codes_equal_the_real_ones() -> None:
    pixels = pixels_of([sample("grid", "train", 0, i) for i in range(12)], 128)
    asked = []

    def counting(squares: torch.Tensor) -> torch.Tensor:
        asked.append(len(squares))
        return fake_codes(squares)

    remembered = CachedEncoder(counting)
    assert torch.equal(remembered(pixels), fake_codes(pixels))
    assert torch.equal(remembered(pixels), fake_codes(pixels))
    assert len(asked) == 1  # the second time nothing was new


def test_cell_labels_name_what_covers_a_cell() -> None:
    scene = sample("grid", "train", 0, 5)
    labels = cell_labels(scene, 4)
    covered = sum(round(t.size * 4) ** 2 for t in scene.objects)
    assert int((labels[..., 0] > 0).sum()) == covered
    assert labels[..., -1].flatten().tolist() == list(range(16))
    pixels, by_name = Labelled(seed=0, batch=3)(0)
    assert pixels.shape == (3, 3, 128, 128) and by_name["class"].shape == (3, 4, 4)


def test_light_is_mean_and_deviation_of_the_luminance() -> None:
    picture = torch.zeros(3, 4, 4)
    assert (luminance_stats(picture).luminance, luminance_stats(picture).contrast) == (0, 0)
    picture[:, :2] = 1
    assert (luminance_stats(picture).luminance, luminance_stats(picture).contrast) == pytest.approx((0.5, 0.5))
    picture[:] = torch.tensor([0.0, 1.0, 0.0])[:, None, None]
    assert (luminance_stats(picture).luminance, luminance_stats(picture).contrast) == pytest.approx((0.7152, 0))
    white = luminance_stats(torch.ones(3, 128, 128))
    assert white.luminance == pytest.approx(1) and white.contrast == pytest.approx(0, abs=1e-6)


def test_drawings_are_told_with_the_light_they_have() -> None:
    tokens = text()
    told = Drawings(text=tokens, encode=fake_codes, seed=1, batch=6, conditions=1.0)(2)
    plain = Drawings(text=tokens, encode=fake_codes, seed=1, batch=6)(2)
    said = ["".join(tokens.show(row[valid].tolist())) for row, valid in zip(told.ids, told.valid, strict=True)]
    first = sample("grid", "train", 1, 12)  # row 0 of batch 2
    assert luminance_stats(pixels_of([first], 128)[0]).text().lower() in said[0]
    assert all("luminance : 0." in s and "contrast : 0." in s for s in said) and len(set(said)) == 6
    assert not any("luminance" in tokens.show(row.tolist()) for row in plain.ids)


def test_mixtures() -> None:
    parts = sources()
    joint = Joint(parts=(("draw", parts["draw"], 1), ("caption", parts["caption"], 2)))  # type: ignore[arg-type]
    assert set(joint(0)) == {"draw", "caption"} and set(joint(1)) == {"draw"}
    weighted = Weighted(parts=(("draw", parts["draw"], 1.0), ("caption", parts["caption"], 3.0)), seed=0)  # type: ignore[arg-type]
    names = [next(iter(weighted(step))) for step in range(40)]
    assert names == [next(iter(weighted(step))) for step in range(40)]
    assert 20 <= names.count("caption") <= 38


def test_edits_go_through_the_kinds_they_are_given() -> None:
    given = {
        "text": text(), "encode": fake_codes, "seed": 1, "look_tokens": LOOK_TOKENS, "batch": 3
    }  # fmt: skip
    rows = Edits(**given, kinds=("background",))(0)  # type: ignore[arg-type]
    said = [text().decode(ids.tolist()) for ids in rows.ids]
    assert all("background" in one for one in said)
    assert not torch.equal(rows.ids, Edits(**given)(0).ids)  # type: ignore[arg-type]


def _spans(batch: Batch, row: int) -> dict[str, str]:
    """The text spans of a row, joined by name."""
    found: dict[str, str] = {}
    for span in batch.span_table[row]:
        if span.kind == Kind.TEXT:
            found[span.name] = found.get(span.name, "") + text().show(batch.ids[row, span.start : span.stop].tolist())
    return found


def test_plans_fill_their_room_and_announce_the_picture() -> None:
    for name in ("plan", "edit_plan"):
        batch = sources()[name](0)  # type: ignore[operator]
        rooms = {len(s) for table in batch.span_table for s in table if s.name == "plan"}
        assert rooms == ({44} if name == "plan" else {24})
        for row in range(batch.rows):
            said = _spans(batch, row)["plan"]
            assert (
                "<LOC_BEGIN>" in said
                and said.rstrip("<|eot_id>").endswith("<|reserved_token_7")
                and "<|eot_id|>" in said
            )


def test_the_plan_of_a_picture_names_what_is_in_it() -> None:
    scene_plan = sources()["draw_planned"](0)  # type: ignore[operator]
    for row in range(scene_plan.rows):
        said = _spans(scene_plan, row)
        assert said["prompt"].count(" draw") == 1 and said["plan"].count("<LOC_BEGIN>") >= 1
    learned = Drawings(text=text(), encode=fake_codes, seed=1, batch=6, plan=Planned(open=1.0))(0)
    assert set(learned.kind[learned.writable].tolist()) == {int(Kind.TEXT), int(Kind.CODE)}
    assert torch.equal(learned.ids, scene_plan.ids)


def plans(related: float) -> list[tuple[str, list[tuple[str, ...]]]]:
    """(caption, how objects lie in its layout as (name, relation, name)) of one batch about two objects."""
    tokens, draft = text(), Draft(counts=((2, 1.0),), alike=0.0)
    batch = Plans(text=tokens, seed=3, length=44, batch=40, related=related, draft=draft)(1)
    rows = []
    for row in range(batch.rows):
        (span,) = (s for s in batch.span_table[row] if s.name == "plan")
        ids = batch.ids[row, span.start : span.stop].tolist()
        placed = from_ids(ids, tokens, COMPACT).objects
        objects = [
            SceneObject(
                name=max((c for c in CLASS_NAMES if p.phrase.endswith(c)), key=len),
                colour="",
                x=p.box[0],
                y=p.box[1],
                size=p.box[2] - p.box[0],
            )
            for p in placed
        ]
        lies = [(a.name, relation(a, b), b.name) for a in objects for b in objects if a is not b]
        rows.append((_spans(batch, row)["prompt"], lies))
    return rows


def test_plans_tell_how_things_lie_as_often_as_asked_and_obey() -> None:
    told = {share: [(c, lies) for c, lies in plans(share) if _LYING.search(c)] for share in (0.0, 0.5, 1.0)}
    assert len(told[0.0]) < len(told[0.5]) < len(told[1.0]) and len(told[1.0]) > 25 > len(told[0.0])
    for caption, lies in told[1.0]:
        assert any((a, side, b) in lies for a, side, b in _LYING.findall(caption)), (caption, lies)


def test_half_of_the_critiques_approve_and_retries_show_what_was_wrong() -> None:
    critiques = Critiques(text=text(), seed=1, look_tokens=LOOK_TOKENS, batch=60)(0)
    answers = [s for table in critiques.span_table for s in table if s.name == "answer"]
    said = "".join(_spans(critiques, row)["answer"] for row in range(critiques.rows))
    assert len(answers) == 240 and 90 <= said.count("is correct") <= 150
    retries = sources()["retry"](0)  # type: ignore[operator]
    looks = [sum(s.name == "look" for s in table) for table in retries.span_table]
    assert set(looks) <= {1, 2, 3} and len(set(looks)) > 1
    planned = Retries(text=text(), encode=fake_codes, seed=1, look_tokens=LOOK_TOKENS, batch=4, plan=Planned())(0)
    assert all(any(s.name == "plan" for s in table) for table in planned.span_table)


def test_edit_critiques_look_twice_and_half_of_them_approve() -> None:
    batch = EditCritiques(text=text(), seed=1, look_tokens=LOOK_TOKENS, batch=140)(0)
    assert all([s.image for s in table if s.name == "look"] == [0, 1] for table in batch.span_table)
    assert batch.pixels is not None and batch.pixels.shape[0] == 280
    unchanged = sum(torch.equal(a, b) for a, b in batch.pixels.reshape(140, 2, *batch.pixels.shape[1:]))
    answers = [s for table in batch.span_table for s in table if s.name == "answer"]
    said = "".join(_spans(batch, row)["answer"] for row in range(batch.rows))
    assert unchanged == said.count("nothing has changed") > 0
    assert 0.35 < said.count("is correct") / len(answers) < 0.65 and len(answers) > 145
    assert {len(s) for s in answers} == {16}
    asked = "".join(_spans(batch, row)["question"] for row in range(batch.rows))
    assert asked.count("does this") == len(answers)


def test_answers_have_room() -> None:
    for source in (
        VisualQuestions(text=text(), seed=1, look_tokens=LOOK_TOKENS, batch=4, answer_length=30),
        Critiques(text=text(), seed=1, look_tokens=LOOK_TOKENS, batch=4, length=30),
    ):
        rooms = [len(s) for table in source(0).span_table for s in table if s.name == "answer"]
        assert rooms and set(rooms) == {30}
    rooms = [len(s) for table in sources()["look"](0).span_table for s in table if s.name == "answer"]  # type: ignore[operator]
    assert max(rooms) < 30


def test_illustrations_of_one_process_come_as_often_as_it_has_them() -> None:
    process = Collapsing(at=0.75, announce=text()[EXP])
    source = Illustrations(
        text=text(), encode=fake_codes, seed=1, look_tokens=LOOK_TOKENS, length=44, batch=200, unified=process
    )
    batch = source(0)
    announcing = process.collapsed(batch).sum(1)
    drawn = torch.tensor([sum(s.kind == Kind.CODE for s in table) for table in batch.span_table])
    assert bool((announcing + drawn == 1).all()) and 30 <= int(announcing.sum()) <= 70  # a quarter of 200
    assert all(s.writable for table in batch.span_table for s in table if s.name in ("answer", "image"))
    rng = generator("unified")
    noisy = process.corrupt(batch, process.times(batch, rng), rng)
    assert noisy.masked is not None and bool((noisy.masked & ~batch.writable).sum() == 0)
    codes, words = (batch.writable & (batch.kind == kind) & (drawn == 1)[:, None] for kind in (Kind.CODE, Kind.TEXT))
    # Between 0 and t_exp the codes go from none to all, the words of the same rows from none to t_exp.
    assert float(noisy.masked[codes].float().mean()) > float(noisy.masked[words].float().mean()) + 0.05


def test_illustrations_come_in_both_forms() -> None:
    batch = Illustrations(text=text(), encode=fake_codes, seed=1, look_tokens=LOOK_TOKENS, length=44)(0)
    joint, announcing = batch.span_table[:2]
    assert [s.name for s in joint if s.kind == Kind.CODE] == ["image"] and "<|reserved_token_7|>" not in str(
        _spans(batch, 0)
    )
    assert not any(s.kind == Kind.CODE for s in announcing) and "<|reserved_token_7|>" in _spans(batch, 1)["answer"]
