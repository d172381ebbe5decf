"""The readers of published prompt files: a few hand-written rows in each format, and every kind of fault."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path
from typing import Any

import pytest

from unmask.data.dpg import COLUMNS, read_dpg
from unmask.data.geneval import Excluded, Included, read_geneval
from unmask.data.imgedit import EditRequest, read_imgedit
from unmask.data.published import FormatError, require_files
from unmask.data.refcoco import read_refcoco

SINGLE = {"tag": "single_object", "include": [{"class": "cat", "count": 1}], "prompt": "a photo of a cat"}
COUNT = {
    "tag": "counting",
    "include": [{"class": "dog", "count": 2}],
    "exclude": [{"class": "dog", "count": 3}],
    "prompt": "a photo of two dogs",
}
PLACED = {
    "tag": "position",
    "include": [{"class": "bus", "count": 1}, {"class": "apple", "count": 1, "color": "red", "position": ["above", 0]}],
    "prompt": "a photo of a red apple above a bus",
}


def lines(path: Path, *records: Any) -> Path:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records))
    return path


# -- GenEval ----------------------------------------------------------------------------------------------------------


def test_geneval(tmp_path: Path) -> None:
    cat, dogs, apple = read_geneval(lines(tmp_path / "m.jsonl", SINGLE, COUNT, PLACED))
    assert (cat.index, cat.tag, cat.prompt, cat.exclude) == (0, "single_object", "a photo of a cat", ())
    assert cat.include == (Included(name="cat", count=1),) and json.loads(cat.line) == SINGLE
    assert dogs.exclude == (Excluded(name="dog", count=3),) and dogs.nouns == {"dog"} and not dogs.colours
    assert apple.include[1].position == ("above", 0) and apple.colours == {"red"} and apple.nouns == {"bus", "apple"}


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ('{"tag": "single_object", ', "m.jsonl, line 2 is not valid JSON"),
        ("[1, 2]", "line 2: [1, 2] is not an object"),
        ({**SINGLE, "tag": "colour"}, "line 2: unknown tag 'colour'; expected one of single_object, two_object"),
        ({**SINGLE, "prompt": " "}, "line 2: 'prompt' is empty"),
        ({**SINGLE, "prompt": 3}, "line 2: 'prompt' is 3; expected a text"),
        ({"tag": "colors", "prompt": "x"}, "'include' is empty"),
        ({**SINGLE, "include": "cat"}, "'include' is \"cat\"; expected a list"),
        ({**SINGLE, "include": ["cat"]}, 'line 2, include[0]: "cat" is not an object'),
        ({**SINGLE, "include": [{"count": 1}]}, "line 2, include[0]: the field 'class' is missing"),
        ({**SINGLE, "include": [{"class": "cat", "count": 0}]}, "'count' is 0; expected at least 1"),
        ({**SINGLE, "include": [{"class": "cat", "count": True}]}, "'count' is true; expected a whole number"),
        ({**SINGLE, "include": [{"class": "cat", "count": 1, "position": ["left of", 0]}]}, "'position' is"),
        ({**PLACED, "include": [*PLACED["include"][:1], {**PLACED["include"][1], "position": ["near", 0]}]}, "near"),
        ('{"tag": "colors", "tag": "colors"}', "duplicate key 'tag'"),
    ],
)
def test_geneval_says_which_line_is_wrong(record: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=re.escape(said)):
        read_geneval(lines(tmp_path / "m.jsonl", SINGLE, record))


def test_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n \n")
    (tmp_path / "bytes.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(FormatError, match="empty.jsonl is empty"):
        read_geneval(tmp_path / "empty.jsonl")
    with pytest.raises(FormatError, match="not text in UTF-8"):
        read_geneval(tmp_path / "bytes.jsonl")
    with pytest.raises(FileNotFoundError):
        read_geneval(tmp_path / "missing.jsonl")


def test_blank_lines_and_a_byte_order_mark_change_nothing(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + f"{json.dumps(SINGLE)}\r\n\r\n{json.dumps(COUNT)}\r\n".encode())
    assert [p.index for p in read_geneval(path)] == [0, 1]


# -- ImgEdit ----------------------------------------------------------------------------------------------------------

EDIT = {"id": "animal/01.jpg", "prompt": "Make the shell blue.", "edit_type": "adjust"}


def test_imgedit(tmp_path: Path) -> None:
    path = lines(tmp_path / "e.json", {"12": EDIT, "7": {**EDIT, "edit_type": "style"}})
    first, second = read_imgedit(path)
    assert first == EditRequest(key="12", source="animal/01.jpg", prompt="Make the shell blue.", kind="adjust")
    assert (second.key, second.kind) == ("7", "style")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[]", "e.json holds []"),
        ("{}", "e.json holds {}"),
        (json.dumps({"12": {"id": "a.jpg"}}), "e.json, '12': the field 'prompt' is missing"),
        (json.dumps({"12": {**EDIT, "id": "../secret.jpg"}}), "leads out of the folder"),
        (json.dumps({"12": {**EDIT, "id": "/etc/x.jpg"}}), "leads out of the folder"),
        (json.dumps({"a/b": EDIT}), "the id 'a/b' is not a safe file name"),
        (f'{{"12": {json.dumps(EDIT)}, "12": {json.dumps(EDIT)}}}', "duplicate key '12'"),
        ('{"12": {', "e.json is not valid JSON"),
    ],
)
def test_imgedit_says_what_is_wrong(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=re.escape(said)):
        read_imgedit(lines(tmp_path / "e.json", text))


def test_missing_pictures_are_counted(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    require_files(tmp_path, ["a.png"])
    with pytest.raises(FormatError, match=r"2 of 3 images are missing in .*, for example b.png; "):
        require_files(tmp_path, ["a.png", "b.png", "c.png", "b.png"])


# -- DPG-Bench --------------------------------------------------------------------------------------------------------

HEAD = ",".join(COLUMNS)
ROWS = (
    'p0,"A cat, asleep on a bus",keys,1,0,entity,whole,entity - whole (cat),Is there a cat?',
    'p0,"A cat, asleep on a bus",keys,2,"1,3",attribute,state,"attribute - state (cat, asleep)",Is the cat asleep?',
    "p1,A dog,keys,1,0,entity,whole,entity - whole (dog),Is there a dog?",
)


def test_dpg_reads_every_row_of_the_table(tmp_path: Path) -> None:
    cat, dog = read_dpg(lines(tmp_path / "d.csv", HEAD, *ROWS))
    assert (cat.key, cat.text) == ("p0", "A cat, asleep on a bus") and (dog.key, dog.text) == ("p1", "A dog")
    assert [q.number for q in cat.questions] == [1, 2], "the released reader passes over the first row"
    assert [q.parents for q in cat.questions] == [(), (1, 3)]
    assert cat.questions[1].category == "attribute" and cat.questions[1].fact == "attribute - state (cat, asleep)"
    assert cat.questions[1].text == "Is the cat asleep?" and cat.questions[1].detail == "state"


def test_dpg_reads_a_folder_of_texts(tmp_path: Path) -> None:
    for name in ("b", "a"):
        (tmp_path / f"{name}.txt").write_text(f"prompt {name}\n")
    assert [(p.key, p.text, p.questions) for p in read_dpg(tmp_path)] == [("a", "prompt a", ()), ("b", "prompt b", ())]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ((HEAD.replace("dependency,", ""), ROWS[2]), "line 1: no column dependency"),
        ((HEAD,), "has a header but no rows"),
        ((HEAD, "p0,A dog"), "line 2: the number of cells differs"),
        ((HEAD, ROWS[2] + ",more"), "line 2: the number of cells differs"),
        ((HEAD, ROWS[2].replace("p1", "../p1")), "is not a safe file name"),
        ((HEAD, ROWS[2].replace("A dog", "")), "item_id or text is empty"),
        ((HEAD, ROWS[2].replace("1,0", "one,0")), "proposition_id 'one', dependency '0'; expected a number"),
        ((HEAD, ROWS[2], ROWS[2]), "line 3: 'p1' has this proposition_id already"),
        ((HEAD, ROWS[2], ROWS[2].replace("A dog", "A cat")), "line 3: 'p1' has two different texts"),
        ((HEAD, 'p0,"A dog'), "is not a valid CSV"),
    ],
)
def test_dpg_says_which_row_is_wrong(rows: tuple[str, ...], said: str, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=re.escape(said)):
        read_dpg(lines(tmp_path / "d.csv", *rows))


def test_a_folder_without_prompts(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="no .txt file"):
        read_dpg(tmp_path)


# -- RefCOCO ----------------------------------------------------------------------------------------------------------

REF = {
    "ref_id": 5,
    "ann_id": 1,
    "image_id": 9,
    "split": "val",
    "category_id": 17,
    "file_name": "COCO_train2014_000000000009_1.jpg",
    "sent_ids": [1, 2],
    "sentences": [
        {"sent_id": 1, "sent": "left cat", "raw": "Left cat", "tokens": ["left", "cat"]},
        {"sent_id": 2, "sent": "the cat"},
    ],
}
INSTANCES = {
    "images": [{"id": 9, "file_name": "COCO_train2014_000000000009.jpg", "width": 64, "height": 32}],
    "annotations": [{"id": 1, "image_id": 9, "bbox": [10.5, 4, 20, 10]}],
}


def write_refcoco(folder: Path, refs: Any, instances: Any = INSTANCES) -> Path:
    lines(folder / "instances.json", instances)
    return lines(folder / "refs.json", refs)


def test_refcoco(tmp_path: Path) -> None:
    first, second = read_refcoco(write_refcoco(tmp_path, [REF]))
    assert (first.key, first.phrase, first.split) == ("1", "left cat", "val") and second.phrase == "the cat"
    assert first.picture == "COCO_train2014_000000000009.jpg", "the name in the refs is that of no file"
    assert first.size == (64, 32) and first.box == (10.5, 4, 30.5, 14)


@pytest.mark.parametrize(
    ("refs", "instances", "said"),
    [
        ({}, INSTANCES, "refs.json holds {}; expected a list of refs"),
        ([{**REF, "ann_id": 2}], INSTANCES, "refs.json[0]: instances.json has no annotation 2"),
        ([{**REF, "image_id": 2}], INSTANCES, "has no image 2"),
        ([{**REF, "sentences": []}], INSTANCES, "'sentences' is missing"),
        ([REF, REF], INSTANCES, "duplicate sent_id 1"),
        ([REF], {**INSTANCES, "annotations": [{"id": 1, "bbox": [1, 2, 0, 4]}]}, "annotations[0]: 'bbox' is"),
        ([REF], {"images": []}, "the field 'annotations' is missing"),
    ],
)
def test_refcoco_says_what_is_wrong(refs: Any, instances: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=re.escape(said)):
        read_refcoco(write_refcoco(tmp_path, refs, instances))


def test_a_pickle_is_never_read(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "sprung",))

    path = tmp_path / "refs(unc).p"
    path.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(FormatError, match=r"is a pickle.*convert it once: python -c"):
        read_refcoco(path)
    renamed = path.rename(tmp_path / "refs.json")
    (tmp_path / "instances.json").write_text("{}")
    with pytest.raises(FormatError):
        read_refcoco(renamed)
    assert not (tmp_path / "sprung").exists()


def test_the_conversion_that_is_named_works(tmp_path: Path) -> None:
    import shlex
    import subprocess
    import sys

    from unmask.data.refcoco import CONVERT

    (tmp_path / "refs(unc).p").write_bytes(pickle.dumps([REF]))
    lines(tmp_path / "instances.json", INSTANCES)
    subprocess.run([sys.executable, *shlex.split(CONVERT)[1:]], cwd=tmp_path, check=True)
    assert len(read_refcoco(tmp_path / "refs.json")) == 2


def test_boxes_without_their_file(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"instances.json does not exist; "):
        read_refcoco(lines(tmp_path / "refs.json", [REF]))
