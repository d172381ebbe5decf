"""Talks over HTTP: a stream of pictures and sound that letters and moves drive while it runs."""

from __future__ import annotations

import base64
import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="the server needs unmask[serve]")

import unmask  # noqa: E402
from unmask.cli.main import main  # noqa: E402
from unmask.cli.served import open_replica  # noqa: E402
from unmask.data.world import puppet  # noqa: E402
from unmask.recipes.x_streamer import talker  # noqa: E402
from unmask.serving.access import Access, Key  # noqa: E402
from unmask.serving.server import Server, listen  # noqa: E402
from unmask.serving.talks import MOST_WAITING, Talker, Talks  # noqa: E402

from ..pages import ROOT, python  # noqa: E402
from .json_schema import fits  # noqa: E402
from .served import opened, plain, until  # noqa: E402
from .talking import Scripted  # noqa: E402

PATH = "/v1/talks"


@contextmanager
def talking(model: Talker, most: int = 4, **server: Any) -> Iterator[Server]:
    with Server(Talks(model, name="face", most=most), listen("127.0.0.1", 0), **server) as served:
        yield served


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with talking(Scripted()) as served:
        yield served


class Heard:
    """A talk that is read chunk by chunk."""

    def __init__(self, server: Server, headers: dict[str, str] | None = None, **fields: Any) -> None:
        self.client, self.headers = plain(server), headers
        request = self.client.build_request("POST", PATH, json=fields, headers=headers)
        self.answer = self.client.send(request, stream=True)
        self.name = self.answer.headers.get("x-unmask-run", "")
        self.lines = self.answer.iter_lines()

    def change(self, headers: dict[str, str] | None = None, **fields: Any) -> Any:
        return self.client.patch(f"{PATH}/{self.name}", json=fields, headers=headers or self.headers)

    def chunks(self) -> Iterator[dict[str, Any]]:
        for line in self.lines:
            if line.startswith("data: {"):
                yield json.loads(line[6:])


def look(chunk: dict[str, Any]) -> puppet.Look:
    """What a picture shows, read from its pixels."""
    shown = np.asarray(opened(chunk["b64_json"]))
    return next(one for one in puppet.looks() if (np.asarray(puppet.frame(one)) == shown).all())


def wave(chunk: dict[str, Any]) -> np.ndarray:
    return np.frombuffer(base64.b64decode(chunk["sound"]), "<i2").astype(np.float32) / 32767


def test_a_talk_is_silent_and_still_until_it_is_driven(server: Server) -> None:
    talk = Heard(server, face=5, seconds=1)
    chunks = [c for c in talk.chunks() if c["type"] == "unmask.chunk"]
    assert [c["number"] for c in chunks] == list(range(20))
    assert {look(c) for c in chunks} == {puppet.Look(face=5, place=1, mouth=0, eyes=0)}
    assert not any(wave(c).any() for c in chunks)


def test_it_says_the_letters_and_makes_the_moves_that_are_sent(server: Server) -> None:
    talk = Heard(server, face=0)
    chunks = talk.chunks()
    next(chunks)
    assert talk.change(say="ab", move="<").json()["change"] == 1
    assert talk.change(move=">>").json()["change"] == 2
    told = [next(c for c in chunks if c["change"] == 1)]
    told += [next(chunks) for _ in range(3)]
    assert [look(c).place for c in told] == [0, 1, 2, 2]
    assert [look(c).mouth for c in told] == [1, 1, 0, 0]
    assert [c["change"] for c in told] == [1, 2, 2, 2]
    for chunk, letter in zip(told, "ab  ", strict=True):
        assert np.abs(wave(chunk) - puppet.tone(puppet.syllable(letter))).max() < 1e-3
    talk.answer.close()


def test_a_talk_ends_after_its_seconds_and_takes_no_more_changes(server: Server) -> None:
    talk = Heard(server, seconds=1, seed=9)
    last = list(talk.chunks())[-1]
    assert last == {"type": "unmask.talk.completed", "name": talk.name, "seed": 9, "changes": 0}
    late = talk.change(say="a")
    assert (late.status_code, late.json()["error"]["code"]) == (409, "run_finished")


def test_a_client_that_leaves_ends_its_talk(server: Server) -> None:
    talk = Heard(server)
    next(talk.chunks())
    talk.answer.close()
    until(lambda: not server.service.under_way)


@pytest.mark.parametrize(
    ("fields", "param"),
    [({}, None), ({"move": "^"}, "move"), ({"say": "a" * 1001}, "say"), ({"said": "a"}, "said"), ({"say": 3}, "say")],
)
def test_a_wrong_change_is_refused_and_the_talk_goes_on(
    server: Server, fields: dict[str, Any], param: str | None
) -> None:
    talk = Heard(server)
    chunks = talk.chunks()
    next(chunks)
    refused = talk.change(**fields)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, param), refused.text
    assert next(chunks)["change"] == 0
    talk.answer.close()


def test_letters_that_wait_are_bounded() -> None:
    with talking(Scripted(seconds=60)) as server:
        talk = Heard(server)
        next(talk.chunks())
        for _ in range(MOST_WAITING // 1000):
            assert talk.change(say="a" * 1000).status_code == 200
        refused = talk.change(say="a")
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "too_many_changes")
        talk.answer.close()


@pytest.mark.parametrize(
    ("fields", "param"), [({"face": 8}, "face"), ({"face": -1}, "face"), ({"seconds": 0}, "seconds")]
)
def test_a_talk_that_cannot_be_started_is_refused(server: Server, fields: dict[str, Any], param: str) -> None:
    refused = plain(server).post(PATH, json=fields)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, param), refused.text


def test_more_talks_than_the_server_takes_are_refused() -> None:
    with talking(Scripted(), most=1) as server:
        first = Heard(server)
        next(first.chunks())
        full = plain(server).post(PATH, json={})
        assert (full.status_code, full.json()["error"]["code"]) == (429, "queue_full") and full.headers["retry-after"]
        first.answer.close()
        until(lambda: not server.service.under_way)
        assert list(Heard(server, seconds=1).chunks())


def test_an_error_of_the_model_ends_the_stream_with_its_name(caplog: pytest.LogCaptureFixture) -> None:
    with talking(Scripted(fails=2)) as server:
        events = list(Heard(server).chunks())
        assert [e.get("number") for e in events] == [0, 1, None]
        assert events[-1]["error"]["code"] == "internal" and "broke" not in str(events[-1])
        assert not server.service.under_way
    assert "the network broke" in caplog.text


def test_only_the_key_that_started_a_talk_drives_it() -> None:
    keys = (Key(secret="one"), Key(secret="two"), Key(secret="asks", scopes=frozenset({"ask"})))
    bearer = {name: {"authorization": f"Bearer {name}"} for name in ("one", "two", "asks")}
    with talking(Scripted(), access=Access(keys=keys)) as server:
        assert plain(server).post(PATH, json={}).status_code == 401
        assert plain(server).post(PATH, json={}, headers=bearer["asks"]).json()["error"]["code"] == "missing_scope"
        talk = Heard(server, bearer["one"])
        next(talk.chunks())
        refused = [talk.change(bearer[name], say="a").json()["error"]["code"] for name in ("two", "asks")]
        assert refused == ["not_your_run", "missing_scope"]
        assert talk.change(say="a").status_code == 200
        talk.answer.close()


def test_a_server_that_stops_ends_its_talks_at_once() -> None:
    with talking(Scripted()) as server:
        talk = Heard(server)
        chunks = talk.chunks()
        next(chunks)
        assert server.service.drain(30)
        assert list(chunks)[-1]["type"] == "unmask.talk.completed"
        again = plain(server).post(PATH, json={})
        assert (again.status_code, again.json()["error"]["code"]) == (503, "draining")
        assert plain(server).get("/readyz").status_code == 503


def test_unknown_names(server: Server) -> None:
    error = plain(server).patch(f"{PATH}/talk-0", json={"say": "a"})
    assert (error.status_code, error.json()["error"]["code"]) == (404, "run_not_found")


def test_the_document_describes_what_is_sent(server: Server) -> None:
    http = plain(server)
    document = http.get("/openapi.json").json()
    assert set(document["paths"]) == {PATH, f"{PATH}/{{name}}", "/healthz", "/readyz", "/metrics"}
    assert "Pictures" not in document["components"]["schemas"]

    def described(value: Any, name: str) -> bool:
        return fits(value, {"$ref": f"#/components/schemas/{name}"}, document)

    assert described(http.get(PATH).json(), "TalkModel")
    talk = Heard(server, seconds=1)
    *chunks, last = talk.chunks()
    assert all(described(chunk, "TalkChunk") for chunk in chunks) and described(last, "TalkEnd")
    assert described(http.post(PATH, json={"face": 99}).json(), "Error")
    assert not described({}, "TalkEnd")


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """A folder as ``unmask train x_streamer.talker`` leaves it, of a network that was hardly trained."""
    recipe = talker(steps=1)
    assert recipe.export
    recipe.export(recipe.model(), folder := tmp_path / "runs" / "talker")
    return folder


def test_a_trained_folder_is_a_model_of_talks(trained: Path) -> None:
    model = unmask.load(trained, device="cpu")
    assert isinstance(model, Talker)
    with talking(model) as server:
        first, again = (list(Heard(server, face=2, seed=4, seconds=1).chunks())[:-1] for _ in range(2))
    assert len(first) == 4
    assert [c["b64_json"] for c in first] == [c["b64_json"] for c in again], "the seed decides"


def test_what_the_page_shows_works(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], server: Server
) -> None:
    page = (ROOT / "docs" / "talk.md").read_text()
    monkeypatch.chdir(trained.parents[1])
    driving, streaming = python(page)
    exec(driving.replace("http://127.0.0.1:8000", server.url), {})  # noqa: S102
    told = capsys.readouterr().out.splitlines()
    assert len(told) == 101 and told[99] == "99 follows change 1"
    exec(streaming, {})  # noqa: S102
    assert capsys.readouterr().out == "(48, 48) (2000,)\n" * 11
    (ask,) = re.findall(r"^curl .*$", page, re.M)
    got = subprocess.run(
        ["bash", "-c", ask.replace("http://127.0.0.1:8000", server.url)], capture_output=True, text=True
    )
    assert got.stdout.count("unmask.chunk") == 2 * 100 and got.stdout.endswith("[DONE]\n\n"), got.stderr


def test_serve_opens_it_and_refuses_what_it_cannot_serve(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = list[Any]()
    monkeypatch.setattr("unmask.cli.serve._run", lambda server, *more: seen.append(server.service) or server.close())
    assert main(["serve", str(trained), "--port", "0", "--threads", "1"]) == 0
    assert isinstance(seen[0], Talks) and seen[0].name == "talker"
    with pytest.raises(ValueError, match="leave out --replicas"):
        open_replica(1, lambda: seen[0])
    monkeypatch.setattr(unmask, "load", lambda *given, **more: object())
    assert main(["serve", str(trained), "--port", "0", "--threads", "1"]) == 2
