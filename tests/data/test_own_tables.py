"""Parquet files and Hugging Face datasets, written by ``datasets`` and ``pyarrow`` themselves."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from unmask.data.opening import Data, open_data
from unmask.data.samples import Boxes, Broken, Caption, Chat, DataError, EditPair, Interleaved, PackageMissing, opened
from unmask.data.tables import need

from .own import LLAVA, png, save

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)


def table(rows: list[dict[str, Any]], **images: Any) -> Any:
    made = datasets.Dataset.from_list(rows)
    for name, kind in images.items():
        made = made.cast_column(name, kind)
    return made


def captions(count: int = 3) -> Any:
    rows = [{"id": f"n{i}", "image": {"bytes": png(), "path": f"{i}.png"}, "text": f"number {i}"} for i in range(count)]
    return table(rows, image=datasets.Image())


def refuse_nothing(data: Data) -> list[Any]:
    found = [data[i] for i in range(len(data))]
    assert not [s for s in found if isinstance(s, Broken)], found
    assert not [s for s in map(opened, found) if isinstance(s, Broken)]
    return found


def test_parquet_with_pictures_in_it(tmp_path: Path) -> None:
    captions().to_parquet(tmp_path / "a.parquet")
    data = open_data(tmp_path / "a.parquet")
    found = refuse_nothing(data)
    assert [type(s) for s in found] == [Caption] * 3 and [s.key for s in found] == ["n0", "n1", "n2"]
    assert data.task(2) == "caption" and data.key(2) == "n2" and found[2].text == "number 2"
    assert found[1].image.name == "a.parquet, row 1, image" and opened(found[1])[0].getpixel((0, 0)) == (255, 0, 0)
    captions().to_parquet(tmp_path / "b.parquet")
    assert len(open_data(tmp_path)) == len(open_data(str(tmp_path / "*.parquet"))) == 6


def test_a_picture_is_read_when_it_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    captions().to_parquet(tmp_path / "a.parquet")
    data = open_data(tmp_path / "a.parquet")
    monkeypatch.setattr("unmask.data.tables.Cell.read", lambda self: pytest.fail("a picture was read"))
    assert [data.task(i) for i in range(3)] == ["caption"] * 3 and data[1].text == "number 1"


def test_parquet_of_pyarrow_with_paths_or_plain_bytes(tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    save(tmp_path / "x.png")
    pq.write_table(pa.table({"image": ["x.png"], "caption": ["a"]}), tmp_path / "paths.parquet")
    pq.write_table(pa.table({"jpg": [png()], "txt": ["a"]}), tmp_path / "bytes.parquet")
    for name in ("paths", "bytes"):
        (sample,) = refuse_nothing(open_data(tmp_path / f"{name}.parquet"))
        assert isinstance(sample, Caption) and sample.text == "a"


def test_datasets_saved_to_disk(tmp_path: Path) -> None:
    captions().save_to_disk(tmp_path / "one")
    assert len(refuse_nothing(open_data(tmp_path / "one"))) == 3
    datasets.DatasetDict(train=captions(2), validation=captions(1)).save_to_disk(tmp_path / "two")
    assert len(open_data(tmp_path / "two")) == 2 and len(open_data(tmp_path / "two", part="validation")) == 1
    with pytest.raises(DataError, match="has no split 'test'; choose one of train, validation"):
        open_data(tmp_path / "two", part="test")


def test_every_task_comes_out_of_a_table(tmp_path: Path) -> None:
    image = {"bytes": png(), "path": None}
    rows = {
        Chat: {"images": [image], "conversations": LLAVA["conversations"]},
        EditPair: {"source": image, "target": {"bytes": png("blue"), "path": None}, "instruction": "make it blue"},
        Boxes: {"image": image, "question": "Please describe", "answer": ["left", "it"], "bbox": [15.0, 10.0, 15.0, 10.0]},
        Interleaved: {"images": [image, image], "messages": [
            {"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": "more"}]},
            {"role": "assistant", "content": [{"type": "image", "text": None}, {"type": "text", "text": "here"}]},
        ]},
    }  # fmt: skip
    for kind, row in rows.items():
        kinds = {
            "images": datasets.List(datasets.Image()),
            **dict.fromkeys(("image", "source", "target"), datasets.Image()),
        }
        cast = {name: kinds[name] for name in row if name in kinds}
        table([row], **cast).to_parquet(tmp_path / f"{kind.__name__}.parquet")
        (sample,) = refuse_nothing(open_data(tmp_path / f"{kind.__name__}.parquet"))
        assert isinstance(sample, kind)
    assert isinstance(sample, Interleaved) and sample.turns[1].parts[1] == "here"


def test_null_cells_count_as_absent(tmp_path: Path) -> None:
    image = {"bytes": png(), "path": None}
    rows = [
        {"image": image, "text": "x", "question": None, "answer": None},
        {"image": image, "text": None, "question": "what?", "answer": "red"},
        {"image": None, "text": "x", "question": None, "answer": None},
    ]
    table(rows, image=datasets.Image()).to_parquet(tmp_path / "a.parquet")
    data = open_data(tmp_path / "a.parquet")
    assert [type(data[i]) for i in range(3)] == [Caption, Chat, Broken]
    assert data[2].reason == "a.parquet, row 2: the text has no picture; its fields are text"


def test_truncated_and_missing_pictures_of_a_table(tmp_path: Path) -> None:
    rows = [
        {"image": {"bytes": b, "path": p}, "text": "x"}
        for b, p in ((png()[:60], None), (b"", None), (None, str(save(tmp_path / "x.png"))))
    ]
    table(rows, image=datasets.Image()).to_parquet(tmp_path / "a.parquet")
    (tmp_path / "x.png").unlink()
    data = open_data(tmp_path / "a.parquet")
    found = [opened(data[i]) for i in range(3)]
    assert all(isinstance(f, Broken) for f in found)
    assert ["decoded" in found[0].reason, "is empty" in found[1].reason, "no such file" in found[2].reason] == [
        True
    ] * 3


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"image": ["x.png"]}, "belong to no task: a text .* is missing"),
        ({"text": ["x"], "n": [1]}, r"the columns of a.parquet \(text, n\) belong to no task: a picture .* is missing"),
        ({"url": ["http://x"], "caption": ["x"]}, "download the pictures first, for example with img2dataset"),
        ({"image": [], "text": []}, "a.parquet has no rows"),
    ],
)
def test_tables_without_a_column(tmp_path: Path, columns: dict[str, list[Any]], said: str) -> None:
    datasets.Dataset.from_dict(columns).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(DataError, match=said):
        open_data(tmp_path / "a.parquet")


def test_files_that_are_no_parquet(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"hello")
    with pytest.raises(DataError, match="a.parquet cannot be read as Parquet .*; write it again"):
        open_data(tmp_path / "a.parquet")
    captions().to_parquet(tmp_path / "b.parquet")
    whole = (tmp_path / "b.parquet").read_bytes()
    (tmp_path / "b.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="b.parquet cannot be read as Parquet"):
        open_data(tmp_path / "b.parquet")
    captions().save_to_disk(tmp_path / "saved")
    next((tmp_path / "saved").glob("*.arrow")).write_bytes(b"hello")
    with pytest.raises(DataError, match="cannot be read as a Hugging Face dataset"):
        open_data(tmp_path / "saved")


def test_a_hub_dataset_is_loaded_by_name_subset_and_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", lambda *given, **named: asked.append((given, named)) or captions())
    assert len(open_data("owner/name", download=True)) == 3
    assert len(open_data("owner/name:small", part="validation", download=True)) == 3
    assert asked == [(("owner/name", None), {"split": "train"}), (("owner/name", "small"), {"split": "validation"})]
    monkeypatch.setattr(datasets, "load_dataset", lambda *given, **named: 1 / 0)
    with pytest.raises(DataError, match="the dataset owner/name cannot be loaded .division by zero.; check its name"):
        open_data("owner/name", download=True)


def test_tables_can_be_read_by_other_processes(tmp_path: Path) -> None:
    captions().to_parquet(tmp_path / "a.parquet")
    data = pickle.loads(pickle.dumps(open_data(tmp_path / "a.parquet")))
    assert len(refuse_nothing(data)) == 3


def test_the_bars_of_datasets_stay_as_they_were(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    captions().to_parquet(tmp_path / "a.parquet")
    capfd.readouterr()
    open_data(tmp_path / "a.parquet")
    assert datasets.is_progress_bar_enabled() and capfd.readouterr().err == ""


def test_a_package_that_is_not_installed_is_named() -> None:
    with pytest.raises(
        PackageMissing, match="a Parquet file needs the package 'no_such_package'; pip install 'unmask.data.'"
    ):
        need("no_such_package", "a Parquet file")


def test_data_without_tables_need_no_datasets(tmp_path: Path) -> None:
    save(tmp_path / "a.png"), (tmp_path / "a.txt").write_text("x")
    code = f"import sys; from unmask.data.opening import open_data; open_data({str(tmp_path)!r})[0]; sys.exit('datasets' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0
