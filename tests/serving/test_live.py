"""Changes to a drawing over HTTP: PATCH /v1/images/generations/{name} while its stream runs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("fastapi", reason="the server needs unmask[serve]")

from unmask.serving.access import Access, Key  # noqa: E402
from unmask.serving.live_runs import LiveRuns  # noqa: E402
from unmask.serving.server import Server  # noqa: E402

from .served import Gate, data_url, gated, opened, plain, serving, until  # noqa: E402

PATH = "/v1/images/generations"
BODY = {"prompt": "a red apple", "seed": 3, "plan": False, "steps": 8, "stream": True, "trace": True}
WHITE = data_url(Image.new("L", (32, 32), 255).convert("RGB"))


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[Server, Gate]]:
    model, gate = gated()
    with serving(model) as server:
        yield server, gate


class Followed:
    """A drawing that is read event by event."""

    def __init__(self, server: Server, headers: dict[str, str] | None = None, **fields: Any) -> None:
        self.client = plain(server)
        body = {**BODY, "live": 0, **fields}
        request = self.client.build_request("POST", PATH, json=body, headers=headers)
        self.answer = self.client.send(request, stream=True)
        self.lines = self.answer.iter_lines()
        self.name = self.answer.headers.get("x-unmask-run", "")
        self.headers = headers

    def change(self, headers: dict[str, str] | None = None, **fields: Any) -> Any:
        return self.client.patch(f"{PATH}/{self.name}", json=fields, headers=headers or self.headers)

    def events(self) -> Iterator[dict[str, Any]]:
        for line in self.lines:
            if line.startswith("data: {"):
                yield json.loads(line[6:])


def test_a_live_drawing_without_a_change_is_the_plain_one(served: tuple[Server, Gate]) -> None:
    server, _ = served
    live = list(Followed(server).events())[-1]
    ordinary = plain(server).post(PATH, json={**BODY, "stream": False, "trace": False}).json()["data"][0]
    assert live["type"] == "image_generation.completed"
    assert opened(live["b64_json"]).tobytes() == opened(ordinary["b64_json"]).tobytes()


def test_a_painted_region_is_masked_again_and_the_rest_stays(served: tuple[Server, Gate]) -> None:
    server, gate = served
    drawing = Followed(server)
    events = drawing.events()
    frames = [next(e for e in events if e["type"] == "unmask.frame" and e["step"] == 4)]
    gate.open.clear()
    half = Image.new("RGB", (32, 32))
    half.paste("white", (0, 0, 16, 32))
    assert drawing.change(mask=data_url(half)).json() == {"name": drawing.name, "patch": 1}
    gate.open.set()
    frames += [e for e in events if e["type"] == "unmask.frame"]
    rows, columns = frames[0]["grid"]
    first = next(i for i, e in enumerate(frames) if e.get("patch"))
    before, after = frames[first - 1]["masked"], frames[first]["masked"]
    for i in range(rows * columns):
        if i % columns < columns // 2:
            assert after[i] == "1"
        else:
            assert after[i] <= before[i], "what stays is not masked again"
    assert set(frames[-1]["masked"]) == {"0"}
    assert frames[-1]["patch"] == 1


def test_a_change_is_taken_as_long_as_the_drawing_is_held(served: tuple[Server, Gate]) -> None:
    server, _ = served
    drawing = Followed(server, live=60)
    events = drawing.events()
    next(e for e in events if e["type"] == "unmask.frame" and "1" not in e["masked"])
    assert drawing.change(prompt="a blue car", mask=WHITE).json()["patch"] == 1
    again, last = list[dict[str, Any]](), dict[str, Any]()
    for event in events:
        if event["type"] == "unmask.frame":
            again.append(event)
            if "1" not in event["masked"]:
                assert drawing.change(finish=True).status_code == 200
        last = event
    assert "1" in again[0]["masked"] and again[-1]["patch"] == 1
    assert last["type"] == "image_generation.completed"
    late = drawing.change(prompt="a cat")
    assert (late.status_code, late.json()["error"]["code"]) == (409, "run_finished")


def test_boxes_and_pictures_of_one_request(served: tuple[Server, Gate]) -> None:
    server, gate = served
    drawing = Followed(server, n=2)
    events = drawing.events()
    next(e for e in events if e["type"] == "unmask.frame" and e["step"] == 3)
    gate.open.clear()
    box = {"phrase": "red apple", "box": [0, 0, 0.5, 0.5]}
    assert drawing.change(boxes=[box], picture=1).json()["patch"] == 1
    assert drawing.change(boxes=[], picture=2).json()["error"]["param"] == "picture"
    gate.open.set()
    done = {e["unmask"]["picture"]: e for e in events if e["type"].endswith(".completed")}
    assert done[0]["unmask"]["plan"] is None
    assert done[1]["unmask"]["plan"]["things"] == [box]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, None),
        ({"prompt": " "}, "prompt"),
        ({"prompt": "word " * 500}, "prompt"),
        ({"boxes": [{"phrase": "", "box": [0, 0, 1, 1]}]}, "boxes.0.phrase"),
        ({"mask": "data:image/png;base64,AAAA"}, "mask"),
        ({"mask": data_url(Image.new("RGB", (8, 8)))}, "mask"),
        ({"promt": "a cat"}, "promt"),
    ],
)
def test_a_wrong_change_is_refused_and_the_drawing_goes_on(
    served: tuple[Server, Gate], fields: dict[str, Any], param: str | None
) -> None:
    server, gate = served
    drawing = Followed(server)
    events = drawing.events()
    next(events)
    gate.open.clear()
    refused = drawing.change(**fields)
    gate.open.set()
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, param), refused.text
    assert list(events)[-1]["type"] == "image_generation.completed"


def test_unknown_names_and_requests_that_cannot_be_live(served: tuple[Server, Gate]) -> None:
    server, _ = served
    http = plain(server)
    for name in ("draw-0", "chatcmpl-12"):
        error = http.patch(f"{PATH}/{name}", json={"prompt": "a cat"})
        assert (error.status_code, error.json()["error"]["code"]) == (404, "run_not_found")
    for more in ({"stream": False}, {"reflect": 2}):
        refused = http.post(PATH, json={**BODY, "live": 5, **more})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "live")
    assert "x-unmask-run" not in http.post(PATH, json={**BODY, "stream": False, "trace": False}).headers


def test_only_the_key_that_started_a_drawing_changes_it() -> None:
    model, gate = gated()
    keys = (Key(secret="one"), Key(secret="two"), Key(secret="asks", scopes=frozenset({"ask"})))
    bearer = {name: {"authorization": f"Bearer {name}"} for name in ("one", "two", "asks")}
    with serving(model, access=Access(keys=keys)) as server:
        drawing = Followed(server, bearer["one"])
        events = drawing.events()
        next(events)
        gate.open.clear()
        refused = [drawing.change(bearer[name], prompt="a cat") for name in ("two", "asks")]
        other_site = drawing.change({**bearer["one"], "origin": "http://elsewhere.example"}, prompt="a cat")
        taken = drawing.change(prompt="a cat")
        gate.open.set()
        assert list(events)[-1]["type"] == "image_generation.completed"
    codes = [(r.status_code, r.json()["error"]["code"]) for r in (*refused, other_site)]
    assert codes == [(403, "not_your_run"), (403, "missing_scope"), (403, "other_site")]
    assert taken.json()["patch"] == 1


def test_a_request_that_is_refused_gets_no_name(monkeypatch: pytest.MonkeyPatch) -> None:
    named: list[int] = []
    monkeypatch.setattr(LiveRuns, "open", lambda runs, lives, owner: named.append(len(lives)) or "draw-1")
    keys = (Key(secret="draws"), Key(secret="asks", scopes=frozenset({"ask"})))
    with serving(gated()[0], access=Access(keys=keys)) as server:
        for key, status in (("asks", 403), ("draws", 200)):
            headers = {"authorization": f"Bearer {key}"}
            assert plain(server).post(PATH, json={**BODY, "live": 0}, headers=headers).status_code == status
    assert named == [1]


def test_a_client_that_leaves_ends_a_drawing_that_is_held(served: tuple[Server, Gate]) -> None:
    server, _ = served
    drawing = Followed(server, live=60)
    next(e for e in drawing.events() if e["type"] == "unmask.frame" and "1" not in e["masked"])
    drawing.answer.close()
    until(lambda: not server.service.under_way)
    assert drawing.change(prompt="a cat").json()["error"]["code"] == "run_finished"


def test_too_many_changes_between_two_steps_are_refused(served: tuple[Server, Gate]) -> None:
    server, gate = served
    drawing = Followed(server)
    events = drawing.events()
    next(events)
    gate.open.clear()
    answers = [drawing.change(mask=WHITE) for _ in range(12)]
    gate.open.set()
    refused = [a for a in answers if a.status_code == 429]
    assert refused and refused[0].json()["error"]["code"] == "too_many_changes" and refused[0].headers["retry-after"]
    assert list(events)[-1]["type"] == "image_generation.completed"


def test_a_server_that_stops_does_not_wait_for_changes() -> None:
    model, _ = gated()
    with serving(model) as server:
        drawing = Followed(server, live=60)
        events = drawing.events()
        next(e for e in events if e["type"] == "unmask.frame" and "1" not in e["masked"])
        assert server.service.drain(30)
        assert list(events)[-1]["type"] == "image_generation.completed"
