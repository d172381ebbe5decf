"""Files of others are read with bounds, and a configuration's fields are checked before anything is built from them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from unmask.checkpoints.schema import (
    Epsilon,
    Fields,
    Layers,
    Size,
    Theta,
    Width,
    count_layers,
    read_fields,
    read_json,
    refuse_layers,
    refuse_sizes,
)
from unmask.checkpoints.stream import CheckpointError, Stored
from unmask.files import FileRefused, parse_json, read_bytes
from unmask.files import read_json as read_bounded


class Config(Fields):
    width: Width
    layers: Layers
    theta: Theta
    eps: Epsilon = 1e-5
    sizes: list[int] | None = None


GOOD: dict[str, Any] = {"width": 8, "layers": 2, "theta": 500, "other": {"is": "ignored"}}


def written(folder: Path, text: str) -> Path:
    path = folder / "config.json"
    path.write_text(text)
    return path


def refused(path: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        read_fields(path, Config)
    text = str(error.value)
    assert text.startswith(str(path)) or f"cannot read {path}" in text
    assert "; " in text and "\n" not in text
    return text


def test_a_good_file(tmp_path: Path) -> None:
    config = read_fields(written(tmp_path, json.dumps(GOOD)), Config)
    assert (config.width, config.layers, config.theta, config.eps) == (8, 2, 500.0, 1e-5)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"width": 0}, "width is 0, wanted at least 1"),
        ({"width": 10**400}, "width is a number of more than 60 digits, wanted"),
        ({"width": "8"}, "width is '8', wanted a whole number"),
        ({"width": True}, "width is True, wanted a whole number"),
        ({"width": 8.0}, "width is 8.0, wanted a whole number"),
        ({"width": None}, "width is None, wanted a whole number"),
        ({"width": [8]}, "width is a list of 1, wanted a whole number"),
        ({"width": {}}, "width is an empty object, wanted a whole number"),
        ({"layers": 10**9}, "layers is 1000000000, wanted at most 1024"),
        ({"theta": float("nan")}, "theta is nan, wanted a finite number"),
        ({"theta": float("inf")}, "theta is inf, wanted a finite number"),
        ({"theta": -1}, "theta is -1, wanted at least 10"),
        ({"theta": 1e300}, "theta is 1e+300, wanted less than 1000000000"),
        ({"theta": "x" * 900}, "theta is 'xxxxx"),
        ({"eps": 1e308}, "eps is 1e+308, wanted at most 0.01"),
        ({"eps": True}, "eps is True, wanted a number"),
        ({"sizes": [1, "2"]}, "sizes.1 is '2', wanted a whole number"),
        ({"width": 0, "layers": 0}, "(and 1 more)"),
    ],
)
def test_a_wrong_field_is_named_with_what_came_and_what_was_wanted(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    text = refused(written(tmp_path, json.dumps(GOOD | change)))
    assert said in text and len(text) < 400


def test_missing_fields_are_named_together(tmp_path: Path) -> None:
    assert "lacks width, layers, theta" in refused(written(tmp_path, "{}"))


@pytest.mark.parametrize("text", ["null", "5", "[]", '"x"', "true", "NaN"])
def test_what_is_no_object(tmp_path: Path, text: str) -> None:
    assert "wanted an object" in refused(written(tmp_path, text))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff\xfe{}", "not UTF-8"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not JSON"),
        (b"[" * 50_000 + b"]" * 50_000, "more than 32 levels"),
        (b'{"a":' * 50_000 + b"1" + b"}" * 50_000, "more than 32 levels"),
        (b"[" * 40 + b"]" * 40, "more than 32 levels"),
        (b" " * (2 * 2**20 + 1), "more than 2,097,152 bytes"),
    ],
    ids=["empty", "half", "encoding", "digits", "deep list", "deep object", "40 levels", "large"],
)
def test_content_out_of_bounds(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    assert said in refused(path)


def test_depth_at_the_limit() -> None:
    assert parse_json("[" * 32 + "]" * 32) and parse_json("5") == 5
    with pytest.raises(FileRefused):
        parse_json("[" * 33 + "]" * 33)


def test_special_files_neither_wait_nor_fill_the_memory(tmp_path: Path) -> None:
    fifo, zero, circle, folder = (tmp_path / name for name in ("fifo", "zero", "circle", "folder"))
    os.mkfifo(fifo)
    zero.symlink_to("/dev/zero")
    circle.symlink_to(circle)
    folder.mkdir()
    for path in (fifo, zero, circle, folder, tmp_path / "nothing", tmp_path / "a\0b"):
        with pytest.raises(FileRefused):
            read_bytes(path, most=100)
        with pytest.raises(FileRefused):
            read_bounded(path)
        with pytest.raises(CheckpointError, match="cannot read"):
            read_json(path)


def stored(*shape: int) -> Stored:
    return Stored(path=Path("x"), name="x", dtype="F32", shape=shape, start=0, nbytes=0)


def test_sizes_are_those_of_the_tensors() -> None:
    found = {"embed.weight": stored(10, 4)}
    refuse_sizes([Size(field="width", value=4, tensor="embed.weight", axis=1)], found, Path("c"))
    refuse_sizes([Size(field="width", value=9, tensor="absent", axis=1)], found, Path("c"))
    for size in (
        Size(field="model.width", value=5, tensor="embed.weight", axis=1),
        Size(field="model.width", value=4, tensor="embed.weight", axis=2),
    ):
        with pytest.raises(
            CheckpointError, match=r"model.width \d does not fit the weights: embed.weight is \(10, 4\)"
        ):
            refuse_sizes([size], found, Path("c"))


def test_layers_are_those_of_the_tensors() -> None:
    found = ["b.0.q", "b.0.k", "b.1.q", "bb.7.q", "b.x"]
    assert count_layers(found, "b") == 3
    found.remove("b.x")
    refuse_layers("layers", 2, found, "b", Path("c"))
    for value, said in ((3, "missing b.2"), (1, "nothing would read b.1"), (10**9, "missing b.2")):
        with pytest.raises(CheckpointError, match=said):
            refuse_layers("layers", value, found, "b", Path("c"))
