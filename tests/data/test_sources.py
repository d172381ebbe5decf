"""Training batches: functions of the step, with the formats that the tasks ask in."""

from __future__ import annotations

import torch

from unmask.data.mixture import Joint, Weighted
from unmask.data.sources import Captions, Drawings, Edits, Labelled, Looks, Remembered, cell_labels, pixels_of
from unmask.data.world.scenes import sample
from unmask.recipes.mini import LOOK_TOKENS, text
from unmask.sequence import Kind


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
        "look": Looks(text=tokens, seed=1, look_tokens=LOOK_TOKENS, batch=4),
        "edit": Edits(text=tokens, encode=fake_codes, seed=1, look_tokens=LOOK_TOKENS, batch=4),
        "caption": Captions(text=tokens, seed=1, batch=4),
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
        kinds = {"draw": Kind.CODE, "draw64": Kind.CODE, "edit": Kind.CODE, "look": Kind.TEXT, "caption": Kind.TEXT}
        assert set(batch.kind[batch.writable].tolist()) == {int(kinds[name])}, name


def test_remembered_codes_equal_the_real_ones() -> None:
    pixels = pixels_of([sample("grid", "train", 0, i) for i in range(12)], 128)
    asked = []

    def counting(squares: torch.Tensor) -> torch.Tensor:
        asked.append(len(squares))
        return fake_codes(squares)

    remembered = Remembered(counting)
    assert torch.equal(remembered(pixels), fake_codes(pixels))
    assert torch.equal(remembered(pixels), fake_codes(pixels))
    assert len(asked) == 1  # the second time nothing was new


def test_cell_labels_name_what_covers_a_cell() -> None:
    scene = sample("grid", "train", 0, 5)
    labels = cell_labels(scene, 4)
    covered = sum(round(t.size * 4) ** 2 for t in scene.things)
    assert int((labels[..., 0] > 0).sum()) == covered
    assert labels[..., -1].flatten().tolist() == list(range(16))
    pixels, by_name = Labelled(seed=0, batch=3)(0)
    assert pixels.shape == (3, 3, 128, 128) and by_name["class"].shape == (3, 4, 4)


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
