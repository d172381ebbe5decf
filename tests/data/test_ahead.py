"""Worker processes: the batches of the source itself, whatever the number of workers and the order of steps."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Iterator
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from unmask.data import ahead
from unmask.data.ahead import Ahead, spare_cores, stop_workers
from unmask.rng import generator
from unmask.sequence import Batch, Kind, Sequence, Span, collate

from ..equal import same
from ..serving.served import until


class Pair(NamedTuple):
    batch: Batch
    pictures: Tensor


@dataclasses.dataclass(frozen=True, kw_only=True)
class Made:
    """Batches with tensors of every type and layout, in dicts, tuples and batches. Fails at step ``fails``."""

    fails: int = -1

    def __call__(self, step: int) -> dict[str, Any]:
        if step == self.fails:
            raise ValueError(f"no batch {step}")
        rng = generator("made", step)
        spans = (Span(name="image", kind=Kind.CODE, start=0, stop=4, grid=(2, 2), writable=True),)
        rows = [
            Sequence(ids=torch.randint(0, 9, (4,), generator=rng), masked=torch.zeros(4, dtype=torch.bool), spans=spans)
            for _ in range(3)
        ]
        pixels = torch.randint(0, 255, (2, 5, 7, 3), dtype=torch.uint8, generator=rng).permute(0, 3, 1, 2)
        batch = collate(rows, range(3)).replace(pixels=pixels)
        return {
            "a": Pair(batch, torch.zeros(0, 4, 4, 3, dtype=torch.uint8)),
            "b": (torch.randn(3, generator=rng), [torch.tensor(step), "text"], {"c": torch.randn(2, 3).bfloat16() * 0}),
        }


@pytest.fixture(scope="module", autouse=True)
def _pool() -> Iterator[None]:
    """One pool for this file, which ends with it."""
    yield
    stop_workers()


def test_batches_are_those_of_the_source() -> None:
    source = Made()
    workers = Ahead(source=source, workers=2)
    for step in (0, 0, 1, 2, 7, 9, 11, 3):  # twice the same, in order, ahead, in strides, and back
        got, wanted = workers(step), source(step)
        same(got, wanted)
        assert got["a"].batch.pixels.stride() == wanted["a"].batch.pixels.stride()
        assert type(got["a"]) is Pair


def test_another_source_takes_the_workers_over() -> None:
    first, second = Ahead(source=Made(), workers=2), Ahead(source=Made(fails=99), workers=2)
    for step in (0, 1):
        same(first(step), Made()(step))
        same(second(step), Made()(step))


def test_stopped_workers_start_again() -> None:
    workers = Ahead(source=Made(), workers=1)
    same(workers(4), Made()(4))
    folder, processes = Path(ahead._pools[1].folder.name), list(ahead._pools[1].processes._processes.values())
    stop_workers()
    assert not ahead._pools
    # Not `join` and `exitcode`: the executor's own thread collects the exit code, and may be about to store it.
    assert all(wait([process.sentinel], 60) for process in processes)
    until(lambda: not folder.exists())
    same(workers(5), Made()(5))
    assert Path(ahead._pools[1].folder.name) != folder


def test_an_error_of_the_source_is_raised_when_its_batch_is_due() -> None:
    workers = Ahead(source=Made(fails=2), workers=2)
    workers(0)
    workers(1)
    with pytest.raises(ValueError, match="no batch 2"):
        workers(2)


def test_no_worker_is_started_for_none() -> None:
    same(Ahead(source=Made(), workers=0)(3), Made()(3))
    assert 0 not in ahead._pools


def test_equal_spans_travel_once() -> None:
    shared = ahead._shared_spans(Made()(0))["a"].batch.span_table
    assert len({id(span) for row in shared for span in row}) == 1
    assert shared == Made()(0)["a"].batch.span_table


def test_files_lie_in_memory_where_there_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "_MEMORY", tmp_path)
    for enough, wanted in ((0, tmp_path), (2**60, None)):
        monkeypatch.setattr(ahead, "_ENOUGH", enough)
        assert ahead.scratch() == wanted
    monkeypatch.setattr(ahead, "_MEMORY", tmp_path / "none")
    assert ahead.scratch() is None


def test_one_core_is_left_for_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead.os, "sched_getaffinity", lambda pid: range(16), raising=False)
    assert spare_cores() == 15 and spare_cores(most=4) == 4
    monkeypatch.setattr(ahead.os, "sched_getaffinity", lambda pid: range(1), raising=False)
    assert spare_cores() == 0


def test_a_text_tokenizer_survives_pickling() -> None:
    from unmask.recipes.mini import text

    copy = pickle.loads(pickle.dumps(text()))
    words = "two red apples <|mdm_mask|>"
    assert copy.encode(words) == text().encode(words) and copy.control == text().control
