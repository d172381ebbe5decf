"""The order of samples, mixtures, squares, and the report of ``check``."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import pytest
from PIL import Image

from unmask.data.checking import check
from unmask.data.opening import Data, open_data
from unmask.data.order import Mixture, Order, Part, open_mixture
from unmask.data.samples import Broken, DataError
from unmask.data.squares import Crop, Pad
from unmask.tokens.pictures import square

from .own import LLAVA, lines, picture, png, save


def rows(folder: Path, name: str, count: int) -> Data:
    save(folder / "a.png")
    return open_data(
        lines(folder / f"{name}.jsonl", *({"image": "a.png", "text": f"{name} {i}"} for i in range(count)))
    )


# -- order ------------------------------------------------------------------------------------------------------------


def test_the_nth_sample_depends_on_seed_and_number_alone() -> None:
    order = Order(sizes=(7, 900), weights=(1, 3), seed=5)
    whole = [order(n) for n in range(2500)]
    for n in (2499, 0, 1000, 999, 17):  # any process may ask for any number first
        assert Order(sizes=(7, 900), weights=(1, 3), seed=5)(n) == whole[n]
    assert [Order(sizes=(7, 900), weights=(1, 3), seed=6)(n) for n in range(50)] != whole[:50]


def test_weights_and_epochs_hold_exactly() -> None:
    order = Order(sizes=(7, 900), weights=(1, 3), seed=0)
    whole = [order(n) for n in range(4000)]
    for start in range(0, 4000, 1000):
        assert Counter(chosen for chosen, _ in whole[start : start + 1000]) == {0: 250, 1: 750}
    for number, size in ((0, 7), (1, 900)):
        drawn = [index for chosen, index in whole if chosen == number]
        epochs = [drawn[i : i + size] for i in range(0, len(drawn) - size + 1, size)]
        assert all(sorted(epoch) == list(range(size)) for epoch in epochs) and epochs[0] != epochs[1]


@pytest.mark.parametrize("weights", [(1, 1, 1), (1e-9, 1), (1e6, 1, 2), (0.3, 0.3, 0.4), (5,)])
def test_every_set_of_a_mixture_comes_up(weights: tuple[float, ...]) -> None:
    order = Order(sizes=(10,) * len(weights), weights=weights, seed=0)
    assert {order(n)[0] for n in range(1000)} == set(range(len(weights)))


def test_a_mixture_of_files(tmp_path: Path) -> None:
    rows(tmp_path, "one", 3), rows(tmp_path, "two=2", 5)
    words = [str(tmp_path / "one.jsonl=4"), str(tmp_path / "two=2.jsonl")]
    both = open_mixture(words, open_data)
    assert len(both) == 8 and [both[i].text for i in (0, 2, 3, 7)] == ["one 0", "one 2", "two=2 0", "two=2 4"]
    assert both.task(7) == "caption" and both.key(3) == "two=2.jsonl:1" and both.order(3).weights == (4, 5)
    for i in (-1, 8):
        with pytest.raises(IndexError, match="has 8 rows"):
            both[i]


def test_mixtures_that_make_no_sense(tmp_path: Path) -> None:
    data = rows(tmp_path, "one", 3)
    for parts, said in (
        ((), "a mixture of no data"),
        ((Part(name="a", data=data), Part(name="a", data=data)), "two data sets are called 'a'"),
        ((Part(name="a", data=data, weight=0),), "the weight of a is 0"),
        ((Part(name="a", data=data, weight=float("nan")),), "the weight of a is nan"),
    ):
        with pytest.raises(DataError, match=said):
            Mixture(parts=parts)
    with pytest.raises(DataError, match="not a number; write PATH=WEIGHT"):
        open_mixture([f"{tmp_path}/one.jsonl=much"], open_data)


# -- squares ----------------------------------------------------------------------------------------------------------


def test_padding_is_that_of_every_other_command() -> None:
    image = picture("red", (60, 40))
    made = Pad(paper=(1, 2, 3))(image, 32, Random(0))
    assert made.image.tobytes() == square(image, 32, (1, 2, 3))[0].tobytes() and made.conditions is None
    assert made.box((0, 0, 1, 1)) == pytest.approx((0, 1 / 6, 1, 5 / 6)) and Pad(paper=(1, 2, 3)).name == "pad 1,2,3"


def test_crops_are_told_to_the_model() -> None:
    image = Image.linear_gradient("L").resize((60, 40)).convert("RGB")
    middle = Crop(middle=True)(image, 20, Random(0))
    told = middle.conditions
    assert middle.image.size == (20, 20) and told and (told.width, told.height, told.top, told.left) == (60, 40, 0, 5)
    assert middle.window == pytest.approx((1 / 6, 0, 5 / 6, 1))
    assert middle.box((1 / 6, 0, 0.5, 1)) == pytest.approx((0, 0, 0.5, 1)) and middle.box((0, 0, 0.2, 1)) is None
    lefts = {c.left for s in range(40) if (c := Crop()(image, 20, Random(s)).conditions)}
    assert len(lefts) > 5 and lefts <= set(range(11)) and Crop()(image, 20, Random(1)) == Crop()(image, 20, Random(1))


def test_a_sliver_becomes_a_square() -> None:
    for size in ((1, 300), (300, 1), (1, 1)):
        assert Crop()(picture("red", size), 16, Random(0)).image.size == (16, 16)
        assert Pad(paper=(0, 0, 0))(picture("red", size), 16, Random(0)).image.size == (16, 16)


# -- check ------------------------------------------------------------------------------------------------------------


def everything(folder: Path) -> Path:
    save(folder / "a.png"), save(folder / "b.png", "blue", (30, 30)), save(folder / "c.png")
    (folder / "cut.png").write_bytes(png()[:60])
    return lines(
        folder / "r.jsonl",
        {"id": 1, "image": "a.png", "text": "four"},
        {"id": 2, "image": "c.png", "text": "four"},  # the bytes of a.png
        {"id": 2, "image": "b.png", "text": "longer"},
        {**LLAVA, "id": 3},
        {"id": 4, "conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]},
        {"id": 5, "image": "a.png", "phrase": "it", "box": [0, 0, 1, 1]},
        {"id": 6, "image": "cut.png", "text": "x"},
        {"id": 7, "image": "a.png"},
    )


def test_a_report_counts_everything(tmp_path: Path) -> None:
    progress: list[tuple[int, int]] = []
    report = check(open_data(everything(tmp_path)), on_progress=lambda done, of: progress.append((done, of)))
    told = report.to_json()
    assert told["rows"] == 8 and told["tasks"] == {"caption": 3, "chat": 2, "boxes": 1} and told["pictures"] == 5
    assert told["sizes"] == {
        "width": {"least": 30, "median": 60, "most": 60},
        "height": {"least": 30, "median": 40, "most": 40},
    }
    assert told["square"] == 0.2 and told["texts"]["caption"] == {"least": 4, "median": 4, "most": 6}
    assert told["duplicates"] == {
        "keys": {"count": 1, "first": {"2": 2}},
        "pictures": {"count": 1, "first": {"a.png": 4}},
        "texts": {"count": 1, "first": {"caption: four": 2}},
    }
    assert told["broken"]["count"] == 2 and told["broken"]["share"] == report.share == 0.25
    assert [b["key"] for b in told["broken"]["first"]] == ["6", "7"]
    assert "cut.png cannot be decoded" in told["broken"]["first"][0]["reason"]
    assert [e.task for e in report.examples] == ["caption"] * 3 + ["chat"] * 2 + ["boxes"] and progress[-1] == (8, 8)


def test_a_report_of_some_rows_and_of_a_mixture(tmp_path: Path) -> None:
    path = everything(tmp_path)
    assert check(open_data(path), limit=3).rows == 3 and check(open_data(path), limit=100).rows == 8
    assert (
        check(open_mixture([str(path)], open_data), workers=1).to_json() == check(open_data(path), workers=4).to_json()
    )


def test_pictures_are_read_in_several_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    together = threading.Barrier(2, timeout=20)
    monkeypatch.setattr("unmask.data.samples.ImageRef.open", lambda self: together.wait() and picture() or picture())
    assert check(rows(tmp_path, "one", 2), workers=2).pictures == 2


def test_a_report_of_broken_rows_alone(tmp_path: Path) -> None:
    report: Any = check(open_data(lines(tmp_path / "r.jsonl", "{", "[")))
    assert report.share == 1 and report.sizes == {} and all(isinstance(b, Broken) for b in report.broken)
