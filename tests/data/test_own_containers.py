"""The containers of a user's data: folders, manifests, tars and tables, made by the libraries that write them."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest

from unmask.data.manifests import MOST_LINE
from unmask.data.opening import holdout, open_data
from unmask.data.samples import Boxes, Caption, Chat, DataError, EditPair

from .own import LLAVA, good_samples, lines, png, reasons, save

# -- folders ----------------------------------------------------------------------------------------------------------


def test_a_folder_of_pictures_with_texts_and_json_beside_them(tmp_path: Path) -> None:
    save(tmp_path / "cat.png"), (tmp_path / "cat.txt").write_text("a red cat\n")
    save(tmp_path / "v1.2.JPG".replace("JPG", "jpg")), (tmp_path / "v1.2.caption").write_text("dots")
    save(tmp_path / "sub" / "dog.png"), (tmp_path / "sub" / "dog.json").write_text(json.dumps(LLAVA))
    (
        save(tmp_path / "e.source.png"),
        save(tmp_path / "e.target.png", "blue"),
        (tmp_path / "e.txt").write_text("make it blue"),
    )
    save(tmp_path / "box.png"), (tmp_path / "box.json").write_text('{"phrase": "it", "box": [0, 0, 1, 1]}')
    save(tmp_path / "talk.png"), (tmp_path / "talk.json").write_text(json.dumps(LLAVA["conversations"]))
    (
        (tmp_path / "README.txt").write_text("about"),
        (tmp_path / ".hidden.txt").write_text("x"),
        (tmp_path / "a.npz").touch(),
    )
    found = {s.key: s for s in good_samples(open_data(tmp_path))}
    assert {key: type(s) for key, s in found.items()} == {
        "box": Boxes, "cat": Caption, "e": EditPair, "sub/dog": Chat, "talk": Chat, "v1.2": Caption
    }  # fmt: skip
    assert found["cat"].text == "a red cat" and found["e"].instruction == "make it blue"


def test_img2dataset_writes_the_caption_twice(tmp_path: Path) -> None:
    save(tmp_path / "0001.jpg"), (tmp_path / "0001.txt").write_text("a red cat")
    (tmp_path / "0001.json").write_text(
        '{"caption": "A Red Cat", "url": "http://x", "key": "0001", "status": "success"}'
    )
    (sample,) = good_samples(open_data(tmp_path))
    assert isinstance(sample, Caption) and sample.text == "a red cat"


def test_files_of_a_folder_that_do_not_fit_together(tmp_path: Path) -> None:
    save(tmp_path / "good.png"), (tmp_path / "good.txt").write_text("x")
    (
        save(tmp_path / "two.png"),
        (tmp_path / "two.txt").write_text("x"),
        (tmp_path / "two.json").write_text(json.dumps(LLAVA)),
    )
    save(tmp_path / "alone.png"), (tmp_path / "text.txt").write_text("x")
    save(tmp_path / "twin.png"), save(tmp_path / "twin.jpg"), (tmp_path / "twin.txt").write_text("x")
    save(tmp_path / "texts.png"), (tmp_path / "texts.txt").write_text("x"), (tmp_path / "texts.caption").write_text("x")
    save(tmp_path / "bad.png"), (tmp_path / "bad.json").write_text("{")
    save(tmp_path / "number.png"), (tmp_path / "number.json").write_text("3")
    save(tmp_path / "latin.png"), (tmp_path / "latin.txt").write_bytes(b"\xe9t\xe9")
    save(tmp_path / "empty.png"), (tmp_path / "empty.txt").write_text(" ")
    data = open_data(tmp_path)
    assert [i for i in range(len(data)) if data.task(i) == "caption"] and data.task(
        list(map(data.key, range(10))).index("two")
    ) is None
    assert reasons(data) == {
        "two": "two: two tasks under one name: two.txt makes it caption, two.json chat",
        "alone": "alone: there is no alone.txt or alone.json beside the picture",
        "text": "text: there is no picture beside text.txt",
        "twin": "twin: there are two pictures called twin: twin.jpg and twin.png",
        "texts": "texts: there are two texts called texts: .caption and .txt",
        "bad": "bad: bad.json is not valid JSON (Expecting property name enclosed in double quotes: line 1 column 2 (char 1))",
        "number": "number: number.json holds 3, not an object",
        "latin": "latin: latin.txt is not text in UTF-8 (byte 0)",
        "empty": "empty: the text is empty",
    }


def test_names_that_are_not_utf8_can_be_printed(tmp_path: Path) -> None:
    raw = os.fsencode(tmp_path) + b"/caf\xe9"
    with open(raw + b".png", "wb") as file:
        file.write(png())
    with open(raw + b".txt", "w") as file:
        file.write("a café")
    (sample,) = good_samples(open_data(tmp_path))
    assert sample.key.isascii() and sample.key.startswith("caf")


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "holds no pictures; put pictures with a .txt or .json of the same name in it"),
        ({"a.txt": b"x", "b.txt": b"y"}, "has texts but no picture"),
        (
            {"a.png": png(), "b.png": png()},
            "none of the 2 pictures in .* has a text; write it in a .txt of the same name, such as a.txt",
        ),
        (
            {"a.jsonl": b"{}", "b.jsonl": b"{}"},
            "holds several sets of data \\(a.jsonl, b.jsonl\\); name the one to use",
        ),
        ({"a.jsonl": b"{}", "b.tar": b""}, "holds several sets of data \\(b.tar, a.jsonl\\)"),
        ({"a.json": b"[]", "b.tar": b""}, "holds several sets of data"),
    ],
)
def test_folders_that_cannot_be_opened(tmp_path: Path, files: dict[str, bytes], said: str) -> None:
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=said):
        open_data(tmp_path)


# -- manifests --------------------------------------------------------------------------------------------------------


def test_lines_are_indexed_and_numbered_as_an_editor_does(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    row = json.dumps({"image": "a.png", "text": "é" * 9}, ensure_ascii=False)
    (tmp_path / "r.jsonl").write_bytes(f"\ufeff{row}\r\n\r\n  \n{row}\n\n{{\n{row}".encode())
    data = open_data(tmp_path / "r.jsonl")
    assert [data.key(i) for i in range(len(data))] == ["r.jsonl:1", "r.jsonl:4", "r.jsonl:6", "r.jsonl:7"]
    assert list(reasons(data)) == ["r.jsonl:6"] and "r.jsonl, line 6: not valid JSON" in reasons(data)["r.jsonl:6"]
    assert [data[i].text for i in (0, 1, 3)] == ["é" * 9] * 3
    with pytest.raises(IndexError, match="has 4 rows, numbered from 0; asked for 4"):
        data[4]


def test_a_manifest_of_100_000_rows_is_lazy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "r.jsonl").write_text("".join(f'{{"image": "no.png", "text": "{i}"}}\n' for i in range(100_000)))
    parsed = []
    real = json.loads
    monkeypatch.setattr("unmask.data.manifests.json.loads", lambda text: parsed.append(text) or real(text))
    data = open_data(tmp_path / "r.jsonl")
    assert len(data) == 100_000 and len(parsed) <= 1
    assert data[99_999].text == "99999" and len(parsed) <= 2


def test_a_line_without_end_is_a_broken_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unmask.data.manifests.MOST_LINE", 100)
    data = open_data(lines(tmp_path / "r.jsonl", {"text": "x" * 200}, {"text": "y", "image": "a.png"}))
    assert MOST_LINE > 2**20 and reasons(data) == {
        "r.jsonl:1": "r.jsonl, line 1: the line has 212 bytes, more than 100"
    }


def test_llava_json_as_its_authors_publish_it(tmp_path: Path) -> None:
    save(tmp_path / "coco" / "train2017" / "a.png")
    rows = [{**LLAVA, "id": str(i), "image": "coco/train2017/a.png"} for i in range(3)]
    (tmp_path / "llava.json").write_text(json.dumps(rows, indent=2))
    found = good_samples(open_data(tmp_path / "llava.json"))
    assert [s.key for s in found] == ["0", "1", "2"] and all(isinstance(s, Chat) for s in found)
    assert good_samples(open_data(tmp_path)) == found  # the folder with it, too
    assert good_samples(open_data(tmp_path / "llava.json", pictures=tmp_path)) == found


def test_pictures_are_looked_for_in_images_and_in_a_given_folder(tmp_path: Path) -> None:
    save(tmp_path / "images" / "a.png")
    rows = lines(tmp_path / "r.jsonl", {"image": "a.png", "text": "x"})
    good_samples(open_data(rows))
    good_samples(
        open_data(lines(tmp_path / "s.jsonl", {"image": "x.png", "text": "x"}, rows.read_text().strip())).subset([1])
    )
    absolute = lines(tmp_path / "t.jsonl", {"image": str(tmp_path / "images" / "a.png"), "text": "x"})
    good_samples(open_data(absolute, pictures=tmp_path / "images"))
    with pytest.raises(DataError, match="there is no folder"):
        open_data(rows, pictures=tmp_path / "nowhere")


def test_the_imagefolder_of_hugging_face(tmp_path: Path) -> None:
    save(tmp_path / "train" / "a.png")
    lines(tmp_path / "metadata.jsonl", {"file_name": "train/a.png", "text": "x"})
    (sample,) = good_samples(open_data(tmp_path))
    assert isinstance(sample, Caption)


REFS = [
    {"ref_id": 1, "ann_id": 7, "image_id": 3, "split": "train", "sentences": [{"sent_id": 1, "sent": "left dog"}]},
    {"ref_id": 2, "ann_id": 8, "image_id": 3, "split": "train", "sentences": [{"sent_id": 2, "sent": "right dog"}]},
    {"ref_id": 3, "ann_id": 9, "image_id": 4, "split": "val", "sentences": [{"sent_id": 3, "sent": "cat"}]},
]
INSTANCES = {
    "images": [{"id": i, "file_name": f"{i}.png", "width": 60, "height": 40} for i in (3, 4)],
    "annotations": [{"id": i, "bbox": [x, 0, 30, 40]} for i, x in ((7, 0), (8, 30), (9, 0))],
}


def test_refcoco(tmp_path: Path) -> None:
    save(tmp_path / "3.png"), save(tmp_path / "4.png")
    (tmp_path / "refs.json").write_text(json.dumps(REFS))
    with pytest.raises(DataError, match="instances.json does not exist"):
        open_data(tmp_path / "refs.json")
    (tmp_path / "instances.json").write_text(json.dumps(INSTANCES))
    (sample,) = good_samples(open_data(tmp_path / "refs.json"))
    assert isinstance(sample, Boxes)
    assert sample.phrases == (("left dog", (0, 0, 0.5, 1)), ("right dog", (0.5, 0, 1, 1)))
    (sample,) = good_samples(open_data(tmp_path / "refs.json", part="val"))
    assert isinstance(sample, Boxes) and sample.phrases == (("cat", (0, 0, 0.5, 1)),)
    with pytest.raises(DataError, match="has no split 'testA'; choose one of train, val"):
        open_data(tmp_path / "refs.json", part="testA")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", b"", "a.jsonl is empty"),
        ("a.jsonl", b"\n\n", "a.jsonl is empty"),
        ("a.json", b"", "is not valid JSON"),
        ("a.json", b"[]", "is an empty list"),
        ("a.json", b"{}", "holds {}, not a list of objects"),
        ("a.json", b"[{]", "is not valid JSON"),
        ("a.json", b"[\xe9]", "is not text in UTF-8"),
        ("a.json", b"[" * 100_000, "is not valid JSON"),
        ("a.csv", b"image,text", "is not one of the known containers; they are"),
        ("a.tar.gz", b"", "decompress it first"),
        ("a.pkl", pickle.dumps([]), "is not one of the known containers"),
    ],
)
def test_files_that_cannot_be_opened(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=said):
        open_data(tmp_path / name)


def test_a_huge_json_list_is_refused_with_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unmask.data.manifests.MOST_LIST", 10)
    (tmp_path / "a.json").write_text("[" + " " * 10 + "]")
    with pytest.raises(DataError, match="write JSON Lines: jq -c"):
        open_data(tmp_path / "a.json")


@pytest.mark.parametrize("name", ["nothing", "nothing.jsonl", "a/b/c", "", "*.tar", "owner/name.parquet"])
def test_data_that_are_not_there(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="; "):
        open_data(name)


def test_the_hub_is_asked_only_when_that_is_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        DataError, match="there is no folder owner/name; to load it from the hub, allow it with --download"
    ):
        open_data("owner/name")


# -- splits -----------------------------------------------------------------------------------------------------------


def test_splits_are_disjoint_and_stay_when_rows_are_added(tmp_path: Path) -> None:
    rows = [{"id": f"row {i}", "image": "a.png", "text": "x"} for i in range(600)]
    training, validation = holdout(0.1)

    def keys(count: int, split: Any) -> set[str]:
        data = open_data(lines(tmp_path / "r.jsonl", *rows[:count]), split=split)
        return {data.key(i) for i in range(len(data))}

    assert keys(600, training) | keys(600, validation) == {r["id"] for r in rows}
    assert not keys(600, training) & keys(600, validation) and 30 < len(keys(600, validation)) < 90
    assert keys(300, validation) == keys(600, validation) & keys(300, None)
    assert keys(600, holdout(0.2)[1]) > keys(600, validation)
    with pytest.raises(DataError, match="no row of .* is in the split"):
        keys(3, holdout(0.0001)[1])
    with pytest.raises(ValueError, match="validation share is 1"):
        holdout(1)
