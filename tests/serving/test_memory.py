"""A server's memory: the image tokenizer runs in few threads, and free pages are given back now and then."""

from __future__ import annotations

import ctypes
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from unmask.serving import memory
from unmask.serving.codec_threads import CodecThreads
from unmask.serving.memory import Seldom
from unmask.serving.service import Call

from .served import plain, serving, tiny, until

torch.set_num_threads(1)


class Noting:
    """A codec that notes the threads it runs in, and whether they compute gradients."""

    size = 7

    def __init__(self) -> None:
        self.seen: set[tuple[int, bool]] = set()
        self.both = threading.Barrier(2, timeout=30)

    def encode(self, x: Tensor, /) -> Tensor:
        self.seen.add((threading.get_ident(), torch.is_grad_enabled()))
        self.both.wait()
        return x + 1

    decode = encode


def test_a_codec_runs_in_its_own_threads_for_many_callers() -> None:
    threads, codec = CodecThreads(2), Noting()
    shown = threads.of(codec)
    with ThreadPoolExecutor(8) as pool:
        done = list(pool.map(lambda n: (shown.encode if n % 2 else shown.decode)(torch.tensor(n)), range(8)))
    threads.close()
    assert [int(one) for one in done] == list(range(1, 9)) and shown.size == 7
    assert len(codec.seen) == 2 and {gradients for _, gradients in codec.seen} == {False}


def test_a_served_picture_is_decoded_in_the_threads_of_the_codec(monkeypatch: pytest.MonkeyPatch) -> None:
    model, names = tiny(), set[str]()
    real = model.parts.vq.decode

    def decode(codes: Tensor) -> Tensor:
        names.add(threading.current_thread().name.partition("_")[0])
        return real(codes)

    monkeypatch.setattr(model.parts.vq, "decode", decode)
    with serving(model) as served:
        answer = plain(served).post("/v1/images/generations", json={"prompt": "a dog", "steps": 1, "n": 2})
    assert answer.status_code == 200 and names == {"codec"}


def test_memory_is_given_back_but_not_often() -> None:
    now, times = [0.0], list[float]()
    seldom = Seldom(lambda: times.append(now[0]), seconds=10, clock=lambda: now[0])
    for now[0] in (0.0, 5.0, 9.0, 10.5, 12.0, 30.0):
        seldom()
    seldom.close()
    assert times == [0.0, 10.5, 30.0]


def test_what_comes_too_early_is_done_later() -> None:
    times: list[float] = []
    seldom = Seldom(lambda: times.append(time.monotonic()), seconds=0.3)
    for _ in range(5):
        seldom()
    until(lambda: len(times) == 2, 30)
    assert times[1] - times[0] >= 0.3
    seldom()
    seldom.close()
    time.sleep(0.6)
    assert len(times) == 2


def test_a_service_gives_memory_back_after_a_call_also_while_another_is_in_progress() -> None:
    """A server under steady load is never idle."""
    entered, release, given = threading.Event(), threading.Event(), threading.Event()

    def waits(model: Any) -> bool:
        entered.set()
        return release.wait(60)

    with serving(tiny()) as served:
        served.service._give_back = Seldom(given.set)
        long = served.service.start([Call(ask=waits)])[0]
        assert entered.wait(30)
        assert plain(served).post("/v1/infill", json={"text": "a [mask]"}).status_code == 200
        assert given.wait(30) and not long.future.done() and served.service.under_way == 1
        release.set()
        assert long.future.result(30)


class Library:
    def __init__(self) -> None:
        self.told: list[tuple[int, int]] = []

    def mallopt(self, parameter: int, value: int) -> None:
        self.told.append((parameter, value))


def test_the_allocator_is_set_unless_the_user_has_set_it(monkeypatch: pytest.MonkeyPatch) -> None:
    library: Any = Library()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    for name in ("MALLOC_ARENA_MAX", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)
    memory.share_arenas()
    assert dict(library.told)[-8] == 2 and len(library.told) == 3
    monkeypatch.setenv("MALLOC_ARENA_MAX", "8")
    memory.share_arenas()
    assert len(library.told) == 3
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())  # a C library without these functions
    monkeypatch.delenv("MALLOC_ARENA_MAX")
    memory.share_arenas()
    memory.give_back()
