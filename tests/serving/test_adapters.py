"""Adapters chosen by requests: every endpoint, the document, and what is refused."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch import nn

import unmask
from unmask.checkpoints.adapters import save_adapter
from unmask.cli import serve as command
from unmask.models.lora import LoRA, adapters, sharing
from unmask.pipeline.adapting import with_adapters
from unmask.rng import generator
from unmask.serving.server import Server, listen
from unmask.serving.service import Call, Service

from ..tiny_llada import make as make_llada
from .served import client, data_url, plain, png, tiny

torch.set_num_threads(1)
DRAW = {"prompt": "a red apple", "steps": 3, "plan": False, "reflect": 1, "seed": 4}


def saved(net: Any, folder: Path) -> Path:
    made = sharing(net)
    LoRA(where=lambda name: True, rank=4)(made)
    rng = generator("served adapter", folder.name)
    for _, _, one in adapters(made):
        nn.init.normal_(one.up, 0, 0.5, generator=rng)
    save_adapter(made, folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("adapters")
    return {name: saved(tiny().parts.net, place / name) for name in ("pets", "style")}


@pytest.fixture(scope="module")
def server(folders: dict[str, Path]) -> Iterator[Server]:
    adapted = {name: with_adapters(tiny(), folder) for name, folder in folders.items()}
    with Server(Service(tiny(), name="tiny", adapted=adapted), listen("127.0.0.1", 0)) as running:
        yield running


def drawn(server: Server, lora: str | None, **more: Any) -> bytes:
    given = {**DRAW, **more, **({"unmask": {"lora": lora}} if lora else {})}
    found = plain(server).post("/v1/images/generations", json=given)
    assert found.status_code == 200, found.text
    return base64.b64decode(found.json()["data"][0]["b64_json"])


def pixels(file: bytes) -> bytes:
    return Image.open(io.BytesIO(file)).convert("RGB").tobytes()


def test_a_request_chooses_an_adapter(server: Server, folders: dict[str, Path]) -> None:
    made = {name: pixels(drawn(server, name)) for name in (None, "pets", "style")}
    assert len(set(made.values())) == 3
    options = {"steps": 3, "plan": False, "attempts": 1, "seed": 4}
    for name, image in made.items():
        model = with_adapters(tiny(), folders[name]) if name else tiny()
        assert model.generate("a red apple", **options)[0].image.convert("RGB").tobytes() == image
    assert pixels(drawn(server, None, unmask={"lora": None})) == made[None]


def test_requests_at_the_same_time_do_not_mix(server: Server) -> None:
    order = [None, "pets", "style"] * 4
    wanted = {name: drawn(server, name) for name in order[:3]}
    with ThreadPoolExecutor(len(order)) as pool:
        found = list(pool.map(lambda name: drawn(server, name), order))
    assert all(image == wanted[name] for name, image in zip(order, found, strict=True))


def test_every_endpoint_takes_an_adapter(server: Server) -> None:
    picture = Image.new("RGB", (16, 16), "red")
    url, http = data_url(picture), plain(server)

    def posted(path: str, given: dict[str, Any], lora: str | None) -> Any:
        found = http.post(path, json={**given, "seed": 1, **({"unmask": {"lora": lora}} if lora else {})}).json()
        assert "error" not in found, found
        return found

    boxes = [posted("/v1/ground", {"image": url, "phrases": ["a cat"]}, n)["boxes"] for n in (None, "pets", "pets")]
    assert boxes[0] != boxes[1] == boxes[2]
    filled = [posted("/v1/infill", {"text": "a [mask] [mask] apple"}, n)["text"] for n in (None, "pets", "pets")]
    assert filled[0] != filled[1] == filled[2]
    parts = [{"type": "text", "text": "what is it?"}, {"type": "image_url", "image_url": {"url": url}}]
    asked = {"messages": [{"role": "user", "content": parts}], "max_tokens": 8}
    said = [posted("/v1/chat/completions", asked, n)["choices"] for n in (None, "pets", "pets")]
    assert said[0] != said[1] == said[2]
    forms: list[dict[str, str]] = [{}, {"unmask": '{"lora": "pets"}'}, {"unmask[lora]": "pets"}]
    edits = [
        http.post(
            "/v1/images/edits",
            data={"prompt": "make it blue", "seed": "1", "steps": "3", **form},
            files={"image": ("a.png", png(picture), "image/png")},
        ).json()["data"][0]["b64_json"]
        for form in forms
    ]
    assert edits[0] != edits[1] == edits[2]


def test_clients_of_openai_choose_an_adapter(server: Server) -> None:
    given: dict[str, Any] = {"prompt": "a red apple", "model": "tiny"}
    more = {k: v for k, v in DRAW.items() if k != "prompt"} | {"unmask": {"lora": "pets"}}
    found = client(server).images.generate(**given, extra_body=more)
    assert base64.b64decode(found.data[0].b64_json) == drawn(server, "pets")
    edited = client(server).images.edit(
        image=("a.png", png(Image.new("RGB", (16, 16))), "image/png"),
        prompt="make it blue",
        extra_body={"unmask": {"lora": "pets"}},
    )
    assert edited.data


def test_the_adapters_are_listed_and_described(server: Server) -> None:
    http = plain(server)
    assert http.get("/v1/models").json()["data"][0]["unmask"]["adapters"] == ["pets", "style"]
    document = http.get("/openapi.json").json()
    named = document["components"]["schemas"]["Draw"]["properties"]["unmask"]["anyOf"][0]["properties"]["lora"]["enum"]
    form = document["paths"]["/v1/images/edits"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert named == ["pets", "style", None]
    assert form["properties"]["unmask[lora]"]["enum"] == [
        "pets",
        "style",
        "",
        "null",
    ]  # a form has no other way to say null


@pytest.mark.parametrize(
    ("given", "says", "param"),
    [
        ({"unmask": {"lora": "cats"}}, "no adapter is called 'cats'; the adapters are pets, style", "unmask.lora"),
        ({"unmask": {"lora": ""}}, "no adapter is called ''; the adapters are pets, style", "unmask.lora"),
        ({"unmask": {"lora": "../pets"}}, "no adapter is called '../pets'", "unmask.lora"),
        ({"unmask": {"lora": ["pets"]}}, "string", "unmask.lora"),
        ({"unmask": "pets"}, "object", "unmask"),
        ({"unmask": {"lorra": "pets"}}, "lorra", "unmask.lorra"),
        ({"unmask": {"lora": "x" * 101}}, "100", "unmask.lora"),
        ({"lora": "pets"}, 'send "unmask": {"lora": NAME}', "lora"),
    ],
)
def test_what_is_no_adapter_is_refused(server: Server, given: dict[str, Any], says: str, param: str) -> None:
    found = plain(server).post("/v1/images/generations", json={**DRAW, **given})
    assert found.status_code == 400
    error = found.json()["error"]
    assert says in error["message"] and error["param"] == param, error


def test_a_server_without_adapters_says_so() -> None:
    with Server(Service(tiny(), name="tiny"), listen("127.0.0.1", 0)) as running:
        found = plain(running).post("/v1/images/generations", json={**DRAW, "unmask": {"lora": "pets"}})
        assert found.status_code == 400 and "this server has none" in found.json()["error"]["message"]
        assert plain(running).get("/v1/models").json()["data"][0]["unmask"]["adapters"] == []


def test_a_text_model_takes_adapters(tmp_path: Path) -> None:
    model = unmask.load(make_llada(tmp_path / "llada"), device="cpu")
    adapted = {"pets": with_adapters(model, saved(model.parts.net, tmp_path / "pets"))}
    service = Service(model, name="llada", adapted=adapted)
    try:
        ask = lambda m: m.complete("why is", max_tokens=8, length=8).text  # noqa: E731
        started = service.start([Call(ask=ask, lora=name) for name in (None, "pets")])
        said = [one.future.result(60) for one in started]
        assert said == [ask(model), ask(adapted["pets"])] and said[0] != said[1]
        with pytest.raises(ValueError, match="no adapter is called 'cats'; the adapters are pets"):
            service.start([Call(ask=ask, lora="cats")])
    finally:
        service.close()


# -- unmask serve -----------------------------------------------------------------------------------------------------


def test_serve_loads_adapters_by_name_and_for_all(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Service] = []
    monkeypatch.setattr(command, "_run", lambda server, drain, show: opened.append(server.service))
    monkeypatch.setattr(unmask, "load", lambda name, lora, **more: with_adapters(tiny(), lora) if lora else tiny())
    pets, style = folders.values()
    given = ["--port", "0", "--device", "cpu", "--lora", f"pets={pets}:0.5", "--lora", str(style)]
    CliRunner().invoke(command.serve, given, catch_exceptions=False)
    (service,) = opened
    assert list(service.adapted) == ["pets"]
    base, both = (
        {n: one.product for n, _, one in adapters(m.parts.net)} for m in (service.model, service.adapted["pets"])
    )
    assert {len(one.down) for one in base.values()} == {4} and {len(one.down) for one in both.values()} == {8}
    service.close()


@pytest.mark.parametrize(
    ("lora", "says"),
    [
        (["a b=x"], "the name 'a b' is not made of letters, digits"),
        (["a=x", "a=y"], "two adapters are called 'a'"),
        (["a=nowhere"], "nowhere has no adapter_config.json; the folder does not exist"),
        (["a=x:much"], "is neither a folder nor FOLDER:SCALE with a number"),
    ],
)
def test_serve_refuses_names_before_the_model_is_loaded(lora: list[str], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        CliRunner().invoke(
            command.serve, ["--port", "0", *(w for one in lora for w in ("--lora", one))], catch_exceptions=False
        )
