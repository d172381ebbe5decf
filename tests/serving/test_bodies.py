"""Bodies of requests: slow ones, large ones, all of them together, and JSON of very many values."""

from __future__ import annotations

import anyio
import pytest
import torch
from starlette.datastructures import Headers

from unmask.serving import bodies
from unmask.serving.bodies import Bodies, Disconnected
from unmask.serving.errors import ErrorResponse

from .served import plain, serving, tiny

torch.set_num_threads(1)


async def read(limits: Bodies, *messages: dict[str, object], headers: dict[str, str] | None = None) -> object:
    given = list(messages)

    async def receive() -> dict[str, object]:
        return given.pop(0)

    return await limits.read(Headers(headers or {}), receive)  # type: ignore[arg-type]


def piece(data: bytes, *, more: bool = True) -> dict[str, object]:
    return {"type": "http.request", "body": data, "more_body": more}


@pytest.mark.anyio
async def test_a_client_that_leaves_is_no_end_of_its_body() -> None:
    limits = Bodies(most_bytes=100)
    with pytest.raises(Disconnected):
        await read(limits, piece(b"{"), {"type": "http.disconnect"})
    assert limits.used == 0


@pytest.mark.anyio
async def test_bodies_have_a_limit_together() -> None:
    limits = Bodies(most_bytes=100, most_together=150)
    first = await read(limits, piece(b"x" * 90, more=False))
    assert isinstance(first, bodies.Body) and limits.used == 90
    second = await read(limits, piece(b"y" * 50), piece(b"y" * 20, more=False))
    assert isinstance(second, ErrorResponse) and second.status == 503 and second.retry_after
    assert limits.used == 90
    first.close()
    first.close()
    assert limits.used == 0
    assert isinstance(await read(limits, piece(b"y" * 70, more=False)), bodies.Body)


@pytest.mark.anyio
async def test_a_body_that_arrives_too_slowly_is_refused() -> None:
    now = [0.0]
    limits = Bodies(most_bytes=10**7, clock=lambda: now[0])

    async def receive() -> dict[str, object]:
        now[0] += 5.0
        return piece(b"x")

    found = await limits.read(Headers({}), receive)  # type: ignore[arg-type]
    assert isinstance(found, ErrorResponse) and found.status == 408 and 20 <= now[0] <= 30 and limits.used == 0


@pytest.mark.anyio
async def test_a_body_may_not_become_slow_after_a_fast_beginning() -> None:
    now, sent = [0.0], [0]
    limits = Bodies(most_bytes=10**8, clock=lambda: now[0])

    async def receive() -> dict[str, object]:
        now[0], sent[0] = now[0] + 1.0, sent[0] + 1
        return piece(b"x" * (10**7 if sent[0] == 1 else 1))

    found = await limits.read(Headers({}), receive)  # type: ignore[arg-type]
    assert isinstance(found, ErrorResponse) and found.status == 408 and now[0] <= 45 and limits.used == 0


@pytest.mark.anyio
async def test_where_a_body_does_not_fit_the_largest_incomplete_one_is_refused() -> None:
    limits, go = Bodies(most_bytes=100, most_together=150), [anyio.Event() for _ in range(2)]
    found: dict[str, object] = {}

    async def upload(name: str, size: int, more: anyio.Event) -> None:
        pieces = [piece(b"x" * size), piece(b"x", more=False)]

        async def receive() -> dict[str, object]:
            if len(pieces) == 1:
                await more.wait()
            return pieces.pop(0)

        found[name] = await limits.read(Headers({}), receive)  # type: ignore[arg-type]

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(upload, "large", 90, go[0])
        await anyio.wait_all_tasks_blocked()
        tasks.start_soon(upload, "middle", 55, go[1])
        await anyio.wait_all_tasks_blocked()
        third = await read(limits, piece(b"y" * 20, more=False))
        assert isinstance(third, bodies.Body) and limits.used == 75  # that of "large" is freed at once
        for event in go:
            event.set()
    assert isinstance(found["large"], ErrorResponse) and found["large"].status == 503
    assert isinstance(found["middle"], bodies.Body) and limits.used == 76


@pytest.mark.anyio
async def test_complete_large_bodies_leave_room_for_small_ones() -> None:
    limits = Bodies(most_bytes=10 * bodies.MIB, most_together=bodies._RESERVED + 3 * bodies.MIB)
    large, small = piece(b"x" * 2 * bodies.MIB, more=False), piece(b"y" * 1000, more=False)
    first, second = [await read(limits, large) for _ in range(2)]
    assert isinstance(first, bodies.Body) and isinstance(second, ErrorResponse) and second.status == 503
    assert isinstance(await read(limits, small), bodies.Body)


@pytest.mark.anyio
async def test_a_large_body_at_a_fair_rate_may_take_its_time() -> None:
    now, sent = [0.0], [0]
    limits = Bodies(most_bytes=10**8, clock=lambda: now[0])

    async def receive() -> dict[str, object]:
        now[0], sent[0] = now[0] + 1.0, sent[0] + 1
        return piece(b"x" * 50_000, more=sent[0] < 300)

    assert isinstance(await limits.read(Headers({}), receive), bodies.Body)  # type: ignore[arg-type]


def test_a_json_of_very_many_values_is_refused_before_it_is_parsed() -> None:
    with serving(tiny()) as served:
        for many in (b"[" + b"0," * 200_001 + b"0]", b"[" * 200_001):
            answer = plain(served).post("/v1/infill", content=many, headers={"content-type": "application/json"})
            assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large")
        assert plain(served).post("/v1/infill", json={"text": "a [mask]" + "," * 50}).status_code == 200
